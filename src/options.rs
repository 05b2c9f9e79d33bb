//! The options every command understands, as the command line gave them.
//! Never reads a file or the environment. Invariant: a value of this type passed the grammar, so a
//! command may rely on it (`reload`, `stop`, `kill` and `daemon` exclude each other, for example).

use std::path::PathBuf;
use std::time::Duration;

/// What stood before the command's own arguments, wherever it was typed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// `-q`: say nothing but errors.
    pub quiet: bool,
    /// How many `-v` were given; the archiver's commands need one more to say the same.
    pub verbosity: u8,
    /// `-n`: print what would be done, change nothing, exit as the real run would.
    pub not_really: bool,
    /// `-d`: go into the background once everything is ready.
    pub daemon: bool,
    /// `-r`: make the running daemon read its settings and keys again.
    pub reload: bool,
    /// `-s`: let the running daemon finish what it does, and wait for its end.
    pub stop: bool,
    /// `-k`: the same with SIGTERM.
    pub kill: bool,
    /// `--set`: settings that win over the file's, in the order they were given.
    pub overrides: Vec<(String, String)>,
    /// `--json`: print for programs, not for people.
    pub json: bool,
}

/// From where on `status` warns and alarms, as far as it was typed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Thresholds {
    /// `--warning-lag`: seconds of transactions that would be lost.
    pub warning_lag: Option<Duration>,
    /// `--critical-lag`.
    pub critical_lag: Option<Duration>,
    /// `--warning-backup-age`: time since the newest backup began.
    pub warning_backup_age: Option<Duration>,
    /// `--critical-backup-age`.
    pub critical_backup_age: Option<Duration>,
    /// `--warning-free`: bytes left for the archive.
    pub warning_free: Option<u64>,
    /// `--critical-free`.
    pub critical_free: Option<u64>,
}

/// What stood behind `restore`, which both sides have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restoring {
    /// The set; without it the newest, or the one that fits the target.
    pub set: Option<String>,
    /// Where it goes.
    pub destination: Option<PathBuf>,
    /// How far to recover.
    pub target: TargetWords,
    /// `--tablespace-mapping OLD=NEW`: where tablespaces go.
    pub tablespaces: Vec<(PathBuf, PathBuf)>,
    /// `--trust-settings`: what the set's settings order is obeyed.
    pub trusts_settings: bool,
}

/// `--target-…`, as typed; at most one of the first four is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TargetWords {
    /// `--target-time`.
    pub time: Option<String>,
    /// `--target-lsn`.
    pub lsn: Option<String>,
    /// `--target-xid`.
    pub xid: Option<String>,
    /// `--target-name`.
    pub name: Option<String>,
    /// `--target-timeline`.
    pub timeline: Option<String>,
    /// `--target-action`.
    pub action: Option<String>,
}
