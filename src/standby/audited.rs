//! What the standby's commands tell the audit log of what they do to the archive.
//! Never holds a command up, and never writes a line for what only reads. Invariant: whatever a command removes for good
//! is told of before it goes.

use crate::audit::{Actor, AuditEvent, AuditLog, AuditOutcome};
use crate::config::StandbyConfig;
use crate::standby::hosted;
use crate::store::sets::{BackupSets, Removal};

/// Where it is told who did what to this cluster's archive: its own file, or that of its host.
pub(crate) fn log(config: &StandbyConfig) -> AuditLog {
    let of_host = || hosted::audit_log(config);
    let path = config.audit_log.clone().or_else(of_host);
    AuditLog::new(&config.job_name, path.as_deref())
}

/// Tells of something that was done.
pub(super) fn tell(config: &StandbyConfig, outcome: AuditOutcome<'_>, event: &AuditEvent<'_>) {
    log(config).record_durably(&Actor::User, &outcome, event);
}

/// The sets, which tell of what a command removes of them.
pub(super) fn telling(config: &StandbyConfig, sets: BackupSets) -> BackupSets {
    let config = config.clone();
    sets.telling(move |removal: &Removal<'_>| {
        let event = match *removal {
            Removal::Set(name, because) => AuditEvent::SetRemoved {
                set: name.to_string(),
                because,
            },
            Removal::Wal(first, last, files) => AuditEvent::WalPurged {
                first: first.to_string(),
                last: last.to_string(),
                files,
            },
        };
        tell(&config, AuditOutcome::Begun, &event);
    })
}
