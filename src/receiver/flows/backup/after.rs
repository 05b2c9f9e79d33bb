//! Behind a sealed set: what the standby's own settings no longer keep goes.
//! Never removes what a master asks to have removed, nor before the new set is listed. Invariant: a
//! failure is a warning, because the set is good.

use std::path::Path;

use walmgr_protocol::message::backup::Sealed;
use walmgr_protocol::names::BackupName;

use crate::pg::needs;
use crate::receiver::cluster::settings::Rotation;
use crate::receiver::cluster::{BackupFolders, ServedCluster};
use crate::shell::archive_set;
use crate::store::sets::{BackupSets, Lease};

/// What `keep_backups` and the sets that are left make superfluous. A failure here is a warning.
pub(crate) fn clear_away(served: &ServedCluster, facts: &mut Sealed) {
    let ServedCluster { cluster, store } = served;
    let rotation = cluster.settings.borrow().rotation.clone();
    let Ok(sets) = store.backups.sets() else {
        return;
    };
    if rotation.keeping.sets == 0 {
        // All of them, and nobody knows which sets were moved elsewhere and need which WAL.
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
    expire(sets, &lease, &rotation, facts);
    purge(sets, &lease, &cluster.backup_folders, &rotation, facts);
}

fn expire(sets: &BackupSets, lease: &Lease, rotation: &Rotation, facts: &mut Sealed) {
    let mut archive = |set: &Path| match &rotation.archive_command {
        Some(command) => archive_set(command, rotation.programs.as_deref(), set),
        None => Ok(()),
    };
    match sets.expire(lease, rotation.keeping, &mut archive) {
        Ok(expiry) => {
            facts.expired = u32::try_from(expiry.removed.len()).unwrap_or(u32::MAX);
            let in_use = |name: &BackupName| format!("{name} is being read and was kept");
            facts.warnings.extend(expiry.in_use.iter().map(in_use));
            facts.warnings.extend(expiry.refused.map(|(name, why)| {
                format!("{name} was kept, because archive_command failed: {why}")
            }));
        }
        Err(error) => {
            let text = format!("old sets were not removed: {error}");
            facts.warnings.push(text);
        }
    }
}

fn purge(
    sets: &BackupSets,
    lease: &Lease,
    folders: &BackupFolders,
    rotation: &Rotation,
    facts: &mut Sealed,
) {
    let needed = |data: &Path| needs::of_servers(data).map_err(|error| error.to_string());
    let slave_data = folders.slave_data.as_deref();
    match sets.purge_wal(lease, rotation.keeping.minimum_age, slave_data, &needed) {
        Ok(purged) => {
            tracing::info!("{purged}");
            facts.purged = u32::try_from(purged.files).unwrap_or(u32::MAX);
        }
        Err(why) => facts
            .warnings
            .push(format!("old WAL was not removed: {why}")),
    }
}
