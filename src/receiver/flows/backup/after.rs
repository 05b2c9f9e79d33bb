//! Behind a sealed set: what the standby's own settings no longer keep goes.
//! Never removes what a master asks to have removed, nor before the new set is listed. Invariant: a
//! failure is a warning, because the set is good.

use std::path::Path;

use walmgr_protocol::message::backup::Sealed;

use crate::receiver::cluster::ServedCluster;
use crate::shell;

/// What `keep_backups` and the sets that are left make superfluous. A failure here is a warning.
pub(crate) fn clear_away(served: &ServedCluster, facts: &mut Sealed) {
    let ServedCluster { cluster, store } = served;
    let rotation = cluster.settings.borrow().rotation.clone();
    let Ok(sets) = store.backups.sets() else {
        return;
    };
    if rotation.keeping.sets == 0 {
        return;
    }
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
    (facts.expired, facts.purged) = (cleared.expired, cleared.purged);
    facts.warnings.extend(cleared.warnings);
}
