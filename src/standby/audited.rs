//! What the standby's commands tell the audit log of what they do to the archive, and what `status` tells of that log.
//! Never holds a command up, and never writes a line for what only reads. Invariant: whatever a command removes for good
//! is told of before it goes.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::audit::{Actor, AuditEvent, AuditLog, AuditLoss, AuditOutcome};
use crate::config::StandbyConfig;
use crate::standby::hosted;
use crate::store::sets::BackupSets;

/// The logs that this process has open, by the files of their clusters: a command has one.
static OPEN: Mutex<Vec<(PathBuf, Arc<AuditLog>)>> = Mutex::new(Vec::new());

/// Where it is told who did what to this cluster's archive. It is opened once, however much a command tells.
pub(crate) fn log(config: &StandbyConfig) -> Arc<AuditLog> {
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, log)) = open.iter().find(|(path, _)| *path == config.path) {
        return Arc::clone(log);
    }
    let path = path(config);
    let log = AuditLog::new(&hosted::shown_name(config), path.as_deref());
    let log = Arc::new(log.noting_losses_at(&AuditLog::losses_in(&config.completed_wals)));
    open.push((config.path.clone(), Arc::clone(&log)));
    log
}

/// Its own file, or that of its host.
fn path(config: &StandbyConfig) -> Option<PathBuf> {
    let of_host = || hosted::audit_log_and_losses(config).map(|(path, _)| path);
    config.audit_log.clone().or_else(of_host)
}

/// Which lines are lost, or would be, of this cluster's log or of its host's own; for `status` and `verify`.
pub(super) fn trouble(config: &StandbyConfig) -> Option<String> {
    let own = path(config).and_then(|path| {
        let loss = AuditLog::lost(&AuditLog::losses_in(&config.completed_wals));
        told(&path, loss)
    });
    own.or_else(|| {
        let (path, note) = hosted::audit_log_and_losses(config)?;
        told(&path, AuditLog::lost(&note))
    })
}

fn told(path: &Path, loss: Option<AuditLoss>) -> Option<String> {
    match (AuditLog::obstacle(path), loss) {
        (Some(why), None) => Some(format!(
            "the audit log {} would lose its next line: {why}",
            path.display()
        )),
        (Some(why), Some(loss)) => Some(format!(
            "the audit log {} has lost {} lines since {}, and would lose the next: {why}",
            path.display(),
            loss.lines,
            loss.since
        )),
        (None, Some(loss)) => Some(format!(
            "{} lost {} lines since {}, and does not say so before its next line: {}",
            path.display(),
            loss.lines,
            loss.since,
            loss.why
        )),
        (None, None) => None,
    }
}

/// Tells of something that was done.
pub(super) fn tell(config: &StandbyConfig, outcome: AuditOutcome<'_>, event: &AuditEvent<'_>) {
    log(config).record_durably(&Actor::User, &outcome, event);
}

/// The sets, which tell of what a command removes of them.
pub(super) fn telling(config: &StandbyConfig, sets: BackupSets) -> BackupSets {
    let config = config.clone();
    sets.telling(move |removal| tell(&config, AuditOutcome::Begun, removal))
}
