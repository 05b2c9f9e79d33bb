//! Behind a sealed set: what the rules of retention and the sets that are left make superfluous goes.
//! Never fails what was done before it. Invariant: whatever could not be removed is said in a sentence, because the
//! new set is good.

use std::path::Path;

use walmgr_protocol::names::BackupName;

use super::{BackupSets, Keeping, Lease};
use crate::pg::needs;

/// What became of old sets and old WAL.
#[derive(Debug, Default)]
pub(crate) struct ClearedAway {
    /// Sets that are gone.
    pub expired: u32,
    /// WAL files that are gone.
    pub purged: u32,
    /// What stays although it should be gone, and why.
    pub warnings: Vec<String>,
}

impl BackupSets {
    /// Removes old sets, each shown to `archive` first, and the WAL that neither the others nor the servers of this
    /// host need; nothing where all sets are kept.
    pub(crate) fn clear_away(
        &self,
        lease: &Lease,
        keeping: Keeping,
        slave_data: Option<&Path>,
        archive: &mut dyn FnMut(&Path) -> Result<(), String>,
    ) -> ClearedAway {
        let mut cleared = ClearedAway::default();
        if keeping.keeps_all() {
            // Nobody knows which sets were moved elsewhere and need which WAL.
            return cleared;
        }
        match self.expire(lease, keeping, archive) {
            Ok(expiry) => {
                cleared.expired = u32::try_from(expiry.removed.len()).unwrap_or(u32::MAX);
                let in_use = |name: &BackupName| format!("{name} is being read and was kept");
                cleared.warnings.extend(expiry.in_use.iter().map(in_use));
                cleared.warnings.extend(expiry.refused.map(|(name, why)| {
                    format!("{name} was kept, because archive_command failed: {why}")
                }));
            }
            Err(error) => {
                let text = format!("old sets were not removed: {error}");
                cleared.warnings.push(text);
            }
        }
        let needed = |data: &Path| needs::of_servers(data).map_err(|error| error.to_string());
        match self.purge_wal(lease, keeping, slave_data, &needed) {
            Ok(purged) => {
                tracing::info!("{purged}");
                cleared.purged = u32::try_from(purged.files).unwrap_or(u32::MAX);
            }
            Err(why) => cleared
                .warnings
                .push(format!("old WAL was not removed: {why}")),
        }
        cleared
    }
}
