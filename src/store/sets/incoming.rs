//! A backup set on its way: `data.master.incoming`, from its first byte until it is sealed.
//! Never lists it and never gives it a `backup_label`. Invariant: it lives as long as its process
//! and no longer: whatever is cut, the directory goes away, here or at the next start.
//!
//! A connection may break and come back: what each file has is kept here in memory. A receiver
//! that dies takes the backup along, because the master's session that made it is bound to it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use walmgr_protocol::limits::SMALL_FILE_BYTES_MAX;
use walmgr_protocol::names::RelativePath;

use super::BackupSets;
use super::error::SetError;
use super::inventory::{HeldFile, Inventory, Known};
use super::lock::Lease;
use super::unpack::{SealedFile, StreamWriter, descend};
use crate::store::disk::Identity;

/// The files of a set that only sealing writes. The rest are the names that would tell PostgreSQL,
/// or whoever reads the set, something that only sealing may say.
const RESERVED: [&str; 4] = [
    "backup_label",
    UNSEALED_LABEL,
    "tablespace_map",
    "backup_manifest",
];

/// What `backup_label` is called until the set is sealed: PostgreSQL does not start from it.
pub(super) const UNSEALED_LABEL: &str = "backup_label.unsealed";

/// A set that is being received. Dropping it and its streams without sealing it removes it.
pub struct IncomingSet {
    pub(super) shared: Arc<SetShared>,
}

/// What the streams of a set share.
pub(super) struct SetShared {
    pub(super) sets: BackupSets,
    /// Opened before the first byte is written, so that the sync at the end reports every failure.
    pub(super) root: Arc<OwnedFd>,
    pub(super) identity: Identity,
    /// Held until the set is sealed or gone.
    lease: Arc<Lease>,
    inventory: Mutex<Inventory>,
    /// The set may be sealed on the disk: nobody removes it any more.
    pub(super) is_sealed: AtomicBool,
}

impl BackupSets {
    /// Starts a new set. What an interrupted backup or rotation left is seen to first.
    pub fn begin(&self, lease: &Arc<Lease>) -> Result<IncomingSet, SetError> {
        lease.begin_set()?;
        let made = self.recover_idle().and_then(|_| self.make_incoming());
        let (root, identity) = made.inspect_err(|_| lease.end_set())?;
        Ok(IncomingSet {
            shared: Arc::new(SetShared {
                sets: self.clone(),
                root: Arc::new(root),
                identity,
                lease: Arc::clone(lease),
                inventory: Mutex::default(),
                is_sealed: AtomicBool::new(false),
            }),
        })
    }

    fn make_incoming(&self) -> Result<(OwnedFd, Identity), SetError> {
        let parent = &self.parent;
        parent.monitor.check()?;
        parent.ensure_in_place()?;
        let name = self.incoming_name();
        let disk = &parent.disk;
        let made = || {
            disk.make_directory(parent.handle(), name.as_ref())?;
            let root = disk.enter(parent.handle(), name.as_ref())?;
            let identity = disk.stat(root.as_fd())?.identity;
            Ok((root, identity))
        };
        Ok(made().map_err(|error| parent.failure("create directory", &name, error))?)
    }
}

impl IncomingSet {
    /// A writer for one more tar stream; several may fill the set at once.
    pub fn stream(&self) -> Result<StreamWriter, SetError> {
        StreamWriter::new(Arc::clone(&self.shared))
    }

    /// What is held of a file, for a sender that comes back.
    pub fn held(&self, path: &RelativePath) -> HeldFile {
        self.shared.inventory().held(path)
    }

    /// The content of a small file that is complete; empty for any other.
    pub fn read_small(&self, path: &RelativePath) -> Result<Vec<u8>, SetError> {
        let shared = &self.shared;
        let known = shared.inventory().known(path);
        let Some(Known::Complete(digest)) = known else {
            return Ok(Vec::new());
        };
        if digest.len > SMALL_FILE_BYTES_MAX {
            return Ok(Vec::new());
        }
        let (sets, name) = (&shared.sets, shared.sets.incoming_name());
        let file_name = OsStr::from_bytes(path.file_name()).to_string_lossy();
        match path.parent() {
            None => Ok(sets.read_small(shared.root.as_fd(), &name, &file_name)?),
            Some(parent) => {
                let directory = descend(shared, &parent)?;
                Ok(sets.read_small(directory.as_fd(), &name, &file_name)?)
            }
        }
    }

    /// The longest that a manifest of what has arrived can be.
    pub fn manifest_bytes_max(&self) -> u64 {
        self.shared.inventory().manifest_bytes_max()
    }

    /// Every file that is complete, in no order.
    pub fn complete_files(&self) -> Vec<SealedFile> {
        let inventory = self.shared.inventory();
        let files = inventory.iter().filter_map(|(path, known)| match known {
            Known::Complete(digest) => Some(SealedFile {
                path: path.clone(),
                digest: *digest,
            }),
            _ => None,
        });
        files.collect()
    }
}

impl SetShared {
    pub(super) fn inventory(&self) -> MutexGuard<'_, Inventory> {
        // A claim is made before the disk is touched and finished behind it, so what a panic
        // leaves is a file that is never complete.
        self.inventory
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn failure(
        &self,
        op: &'static str,
        path: &RelativePath,
        error: io::Error,
    ) -> SetError {
        let name = format!("{}/{path}", self.sets.incoming_name());
        self.sets.parent.failure(op, &name, error).into()
    }
}

impl Drop for SetShared {
    fn drop(&mut self) {
        if !*self.is_sealed.get_mut() {
            // What cannot be removed now is removed before the next backup.
            let _ = self.sets.discard_incoming();
        }
        self.lease.end_set();
    }
}

impl SetShared {
    pub(super) fn keep(&self) {
        self.is_sealed.store(true, Ordering::SeqCst);
    }

    pub(super) fn may_go(&self) {
        self.is_sealed.store(false, Ordering::SeqCst);
    }
}

/// Whether only sealing may write this file.
pub(super) fn is_reserved(path: &RelativePath) -> bool {
    let first = path.components().next().unwrap_or_default();
    RESERVED.iter().any(|name| name.as_bytes() == first)
}
