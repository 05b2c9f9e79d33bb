//! Behind a sealed set: what the standby's own settings no longer keep goes.
//! Never removes what a master asks to have removed, nor before the new set is listed. Invariant: a
//! failure is a warning, because the set is good.

use std::path::Path;
use std::sync::Arc;

use walmgr_protocol::message::backup::BackupSealed;

use crate::audit::{AuditEvent, AuditOutcome};
use crate::receiver::cluster::ServedCluster;
use crate::receiver::peer::AuditedPeer;
use crate::shell;

/// What the rules of retention and the sets that are left make superfluous. A failure here is a warning.
pub(crate) fn clear_away((served, by): (&ServedCluster, &AuditedPeer), facts: &mut BackupSealed) {
    let ServedCluster { cluster, store } = served;
    let rotation = cluster.settings.borrow().rotation.clone();
    let Ok(sets) = store.backups.sets() else {
        return;
    };
    if rotation.keeping.keeps_all() {
        return;
    }
    let (audit, who) = (Arc::clone(&cluster.audit), by.who.clone());
    let sets = sets.clone().telling(move |removal| {
        audit.record_durably(&who, &AuditOutcome::Begun, removal);
    });
    let lease = match sets.lease("the rotation after a backup") {
        Ok(lease) => lease,
        Err(error) => {
            return facts
                .warnings
                .push(format!("no old set is removed: {error}"));
        }
    };
    let slave_data = cluster.backup_folders.slave_data.as_deref();
    let mut archive = |set: &Path| match &rotation.archive_command {
        Some(command) => shell::archive_set(command, rotation.programs.as_deref(), set),
        None => Ok(()),
    };
    let cleared = sets.clear_away(&lease, rotation.keeping, slave_data, &mut archive);
    let why = cleared.warnings.join("; ");
    let outcome = match cleared.warnings.is_empty() {
        true => AuditOutcome::Done,
        false => AuditOutcome::Failed(&why),
    };
    let event = AuditEvent::ClearedAway {
        sets: cleared.expired,
        wal_files: cleared.purged,
    };
    if outcome != AuditOutcome::Done || cleared.expired > 0 || cleared.purged > 0 {
        cluster.audit.record(&by.who, &outcome, &event);
    }
    (facts.expired, facts.purged) = (cleared.expired, cleared.purged);
    facts.warnings.extend(cleared.warnings);
}
