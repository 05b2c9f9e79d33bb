//! Which commands the audit log tells of, and what was typed for them.
//! Never tells of what only reads, nor of a command of the master, which has no archive. Invariant: a new command does not
//! compile before it is decided here whether it changes an archive or its rules.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use super::command::Command;
use crate::audit::{Actor, AuditEvent, AuditLog, AuditOutcome};
use crate::config::{self, Config};
use crate::error::Result;
use crate::options::Options;
use crate::standby;

/// What a command does to an archive, its rules, or the server that replays it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ArchiveEffect {
    /// It changes some of them.
    Changes,
    /// It proves the archive.
    Proves,
    /// Neither, or its own code tells of what it does.
    None,
}

const fn effect(command: &Command) -> ArchiveEffect {
    match command {
        Command::Authorize(_)
        | Command::Revoke(_)
        | Command::Setup(_)
        | Command::Backup(_)
        | Command::Restore(_)
        | Command::Xpartialsync(_)
        | Command::Cleanup(_)
        | Command::CreateSlave(_)
        | Command::Keep(_)
        | Command::Unkeep(_)
        | Command::Expire
        | Command::Xpurgewals
        | Command::Compress
        | Command::Xlock
        | Command::Xrelease(_)
        | Command::Xrotate
        | Command::Pause
        | Command::Continue
        | Command::Boot(_) => ArchiveEffect::Changes,
        Command::Choose(typed) if typed.take => ArchiveEffect::Changes,
        Command::Verify(_) | Command::Drill(_) => ArchiveEffect::Proves,
        // `init` is told of by `run_init`.
        Command::Init(_)
        | Command::Identity
        | Command::Stop
        | Command::Xarchive(_)
        | Command::Periodic
        | Command::Bench(_)
        | Command::Sync
        | Command::Syncdaemon(_)
        | Command::SynchStandby(_)
        | Command::Receiver(_)
        | Command::Xrestore(_)
        | Command::ListBackups(_)
        | Command::Status(_)
        | Command::Choose(_) => ArchiveEffect::None,
    }
}

/// Runs a command; before it begins to change anything, and when it ends, the audit log is told.
pub(super) fn run(
    (command, word): (&Command, &str),
    config: &Config,
    options: &Options,
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let effect = effect(command);
    if effect == ArchiveEffect::None || options.not_really {
        return work();
    }
    let Some(log) = log_of(config) else {
        return work();
    };
    let typed = typed(std::env::args_os().skip(1));
    let event = AuditEvent::Command {
        command: word,
        typed: &typed,
    };
    if effect == ArchiveEffect::Changes {
        log.record_durably(&Actor::User, &AuditOutcome::Begun, &event);
    }
    let ended = work();
    tell_end(&log, &event, &ended);
    ended
}

/// Runs `init`, which makes the file that names the audit log: that is told when it ends.
pub(super) fn run_init(
    (ini, word): (&Path, &str),
    options: &Options,
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let ended = work();
    let config = config::load(ini, &options.overrides).ok();
    let config = config.filter(|_| !options.not_really);
    if let Some(log) = config.as_ref().and_then(log_of) {
        let typed = typed(std::env::args_os().skip(1));
        let event = AuditEvent::Command {
            command: word,
            typed: &typed,
        };
        tell_end(&log, &event, &ended);
    }
    ended
}

fn log_of(config: &Config) -> Option<Arc<AuditLog>> {
    match config {
        Config::Master(_) => None,
        Config::Standby(config) => Some(standby::audited::log(config)),
        Config::Host(config) => {
            let log = AuditLog::new(&config.job_name, config.audit_log.as_deref());
            let note = AuditLog::losses_beside(&config.receiver_pidfile());
            Some(Arc::new(log.noting_losses_at(&note)))
        }
    }
}

fn tell_end(log: &AuditLog, event: &AuditEvent<'_>, ended: &Result<()>) {
    let why = ended.as_ref().err().map(ToString::to_string);
    let outcome = why
        .as_deref()
        .map_or(AuditOutcome::Done, AuditOutcome::Failed);
    log.record_durably(&Actor::User, &outcome, event);
}

/// The words of the line, without what may be a secret: values of `--set`, connection strings.
fn typed(words: impl Iterator<Item = OsString>) -> Vec<String> {
    let mut is_value = false;
    let shown = |word: OsString| {
        let word = word.to_string_lossy().into_owned();
        let was_value = std::mem::replace(&mut is_value, word == "--set");
        match word.split_once('=') {
            _ if was_value => "...".to_owned(),
            Some((option, _)) if option == "--set" => format!("{option}=..."),
            _ if word.contains("password=") || word.contains("://") => "...".to_owned(),
            _ => word,
        }
    };
    words.map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_186_no_secret_that_is_typed_gets_into_the_audit_log() {
        let line = [
            "--set",
            "primary_conninfo=host=a password=secret",
            "standby.ini",
            "--set=primary_conninfo=secret",
            "restore",
            "data.master",
            "host=a password=secret",
            "postgres://me:secret@host/",
            "--target-time=2011-11-12 13:00",
        ];
        let shown = typed(line.into_iter().map(OsString::from));
        assert_eq!(
            shown,
            [
                "--set",
                "...",
                "standby.ini",
                "--set=...",
                "restore",
                "data.master",
                "...",
                "...",
                "--target-time=2011-11-12 13:00"
            ]
        );
    }
}
