//! A file that measures the archive's disk: written, synced, and gone.
//! Never gets a name that a reader knows. Invariant: it needs the room that an upload of its size needs, so that a trial
//! fills no disk, and what is left of it after a kill is a temporary, which the next start removes.

use walmgr_protocol::limits::RESERVED_SEGMENTS;

use super::durable::Temporary;
use super::error::StoreError;
use super::shared::Archive;

/// Bytes of a trial on their way to the disk. Dropping it removes them.
pub(crate) struct TrialFile(Temporary);

impl Archive {
    /// Begins a trial of so many bytes.
    pub(crate) fn begin_trial(&self, len: u64) -> Result<TrialFile, StoreError> {
        let shared = &self.shared;
        let reserved = RESERVED_SEGMENTS * shared.binding()?.segment_size.bytes();
        shared.monitor.check()?;
        let folder = &shared.completed;
        let begun = (folder.ensure_in_place())
            .and_then(|()| folder.keep_free("trial", len, reserved))
            .and_then(|()| Temporary::create(folder, "trial", len));
        shared.monitor.watch(begun).map(TrialFile)
    }
}

impl TrialFile {
    /// Writes these bytes behind the ones before.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.0.append(bytes)
    }

    /// Syncs it, and removes it.
    pub(crate) fn sync(self) -> Result<(), StoreError> {
        self.0.sync().map(drop)
    }
}
