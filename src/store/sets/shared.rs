//! What the streams of an incoming set work with: its directory, and what is known of each file in it.
//! Never follows a link on the way to a directory of the set. Invariant: whoever drops the last of it
//! without sealing the set removes that.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::io::Errno;
use walmgr_protocol::names::RelativePath;

use super::BackupSets;
use super::error::SetError;
use super::inventory::{Inventory, KnownFile};
use super::lock::Lease;
use super::parent::ParentOfSet;
use crate::files::FileId;

/// What the streams of a set share.
pub(super) struct SetShared {
    pub(super) sets: BackupSets,
    /// Opened before the first byte is written, so that the sync at the end reports every failure.
    pub(super) root: Arc<OwnedFd>,
    pub(super) identity: FileId,
    /// Held until the set is sealed or gone.
    pub(super) lease: Arc<Lease>,
    pub(super) inventory: Mutex<Inventory>,
    /// What files are patched of that are not sent whole.
    pub(super) parent: OnceLock<Arc<ParentOfSet>>,
    /// Bytes that were written, and are no other file's.
    pub(super) stored_bytes: AtomicU64,
    /// The set may be sealed on the disk: nobody removes it any more.
    pub(super) is_sealed: AtomicBool,
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

    /// The error for a system call that failed on an entry. All names in the set are known, so `EEXIST` means
    /// that this file system takes two different names for the same.
    pub(super) fn entry_failure(
        &self,
        op: &'static str,
        path: &RelativePath,
        error: io::Error,
    ) -> SetError {
        match Errno::from_io_error(&error) {
            Some(Errno::EXIST) => SetError::Entry {
                path: path.clone(),
                why: "the file system takes it for another entry's name",
            },
            Some(Errno::LOOP | Errno::NOTDIR) => SetError::Entry {
                path: path.clone(),
                why: "a link or a file is where a directory was",
            },
            _ => self.failure(op, path, error),
        }
    }

    pub(super) fn parent(&self) -> Option<Arc<ParentOfSet>> {
        self.parent.get().map(Arc::clone)
    }

    pub(super) fn note_stored(&self, bytes: u64) {
        self.stored_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn keep(&self) {
        self.is_sealed.store(true, Ordering::SeqCst);
    }

    pub(super) fn may_go(&self) {
        self.is_sealed.store(false, Ordering::SeqCst);
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

/// Walks from the root of the set to a directory, one component at a time.
pub(super) fn descend(shared: &SetShared, path: &RelativePath) -> Result<OwnedFd, SetError> {
    let mut here: Option<OwnedFd> = None;
    let mut end_bytes = 0;
    for component in path.components() {
        // Behind the component before and its slash.
        end_bytes += component.len() + usize::from(end_bytes > 0);
        let prefix = match RelativePath::new(&path.as_bytes()[..end_bytes]) {
            Ok(prefix) => prefix,
            // The beginning of a valid path is one.
            Err(_) => path.clone(),
        };
        let above = here.as_ref().unwrap_or(&shared.root);
        let name = OsStr::from_bytes(component);
        make_once(shared, &prefix, above, name)?;
        let entered = shared.sets.parent.disk.enter(above.as_fd(), name);
        here = Some(entered.map_err(|error| shared.entry_failure("enter", &prefix, error))?);
    }
    match here {
        Some(handle) => Ok(handle),
        None => {
            let (path, why) = (path.clone(), "it has no components");
            Err(SetError::Entry { path, why })
        }
    }
}

/// Makes a directory unless it is known. The inventory stays locked meanwhile, so that another
/// stream never finds a directory known that does not exist yet.
fn make_once(
    shared: &SetShared,
    path: &RelativePath,
    above: &OwnedFd,
    name: &OsStr,
) -> Result<(), SetError> {
    let mut inventory: MutexGuard<'_, Inventory> = shared.inventory();
    match inventory.known(path) {
        Some(KnownFile::Directory { .. }) => Ok(()),
        Some(_) => {
            let (path, why) = (path.clone(), "a directory where a file is");
            Err(SetError::Entry { path, why })
        }
        None => {
            let is_declared = false;
            inventory.set(path, KnownFile::Directory { is_declared })?;
            let disk = &shared.sets.parent.disk;
            (disk.make_directory(above.as_fd(), name))
                .map_err(|error| shared.entry_failure("create directory", path, error))
        }
    }
}
