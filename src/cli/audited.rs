//! Which commands the audit log tells of, and what was typed for them.
//! Never tells of what only reads, nor of a command of the master, which has no archive. Invariant: a new command does not
//! compile before it is decided here whether it changes an archive or its rules.

use std::ffi::OsString;

use super::command::Command;
use crate::audit::{Actor, AuditEvent, AuditLog, AuditOutcome};
use crate::config::Config;
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
        // `init` makes the file that names the audit log.
        Command::Init(_)
        | Command::Identity
        | Command::Stop
        | Command::Xarchive(_)
        | Command::Periodic
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
    let log = match config {
        _ if effect == ArchiveEffect::None || options.not_really => None,
        Config::Master(_) => None,
        Config::Standby(config) => Some(standby::audited::log(config)),
        Config::Host(config) => Some(AuditLog::new(&config.job_name, config.audit_log.as_deref())),
    };
    let Some(log) = log else { return work() };
    let typed = typed(std::env::args_os().skip(1));
    let event = AuditEvent::Command {
        command: word,
        typed: &typed,
    };
    if effect == ArchiveEffect::Changes {
        log.record_durably(&Actor::User, &AuditOutcome::Begun, &event);
    }
    let ended = work();
    let why = ended.as_ref().err().map(ToString::to_string);
    let outcome = why
        .as_deref()
        .map_or(AuditOutcome::Done, AuditOutcome::Failed);
    log.record_durably(&Actor::User, &outcome, &event);
    ended
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
