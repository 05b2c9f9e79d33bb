//! The options every command understands, as the command line gave them, and the arguments of commands that both
//! sides have. Never reads a file or the environment. Invariant: a value of these types passed the grammar, so a
//! command may rely on it (`reload`, `stop`, `kill` and `daemon` exclude each other, for example).

mod backup;
pub(crate) mod init;
mod restore;
mod xrestore;

pub(crate) use backup::BackupArgs;
pub(crate) use init::{InitArgs, OldInit};
pub(crate) use restore::{Restoring, TargetWords, tablespace_mapping};
pub(crate) use xrestore::XrestoreArgs;

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
