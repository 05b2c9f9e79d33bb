//! A backup set on its way: `data.master.incoming`, from its first byte until it is sealed.
//! Never lists it and never gives it a `backup_label`. Invariant: it lives as long as its process
//! and no longer: whatever is cut, the directory goes away, here or at the next start.
//!
//! A connection may break and come back: what each file has is kept here in memory. A receiver
//! that dies takes the backup along, because the master's session that made it is bound to it.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use walmgr_protocol::limits::SMALL_FILE_BYTES_MAX;
use walmgr_protocol::names::RelativePath;

use super::BackupSets;
use super::error::SetError;
use super::file_writer::{FileWriter, SealedFile};
use super::inventory::{HeldFile, KnownFile};
use super::lock::Lease;
use super::parent::ParentOfSet;
use super::shared::{SetShared, descend};
use super::unpack::StreamWriter;
use crate::files::FileId;

/// A set that is being received. Dropping it and its streams without sealing it removes it.
pub struct IncomingSet {
    pub(super) shared: Arc<SetShared>,
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
                parent: OnceLock::new(),
                stored_bytes: AtomicU64::new(0),
                is_sealed: AtomicBool::new(false),
            }),
        })
    }

    fn make_incoming(&self) -> Result<(OwnedFd, FileId), SetError> {
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

    /// A writer of files that come in no stream.
    pub fn files(&self) -> Result<FileWriter, SetError> {
        FileWriter::new(Arc::clone(&self.shared))
    }

    /// What is held of a file, for a sender that comes back.
    pub fn held(&self, path: &RelativePath) -> HeldFile {
        self.shared.inventory().held(path)
    }

    /// The content of a small file that is complete; empty for any other.
    pub fn read_small(&self, path: &RelativePath) -> Result<Vec<u8>, SetError> {
        let shared = &self.shared;
        let known = shared.inventory().known(path);
        let Some(KnownFile::Complete(digest)) = known else {
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

    /// Lets files that come as patches begin as this set has them; one that was named before stays.
    pub(crate) fn build_on(&self, parent: &Arc<ParentOfSet>) {
        self.shared.parent.get_or_init(|| Arc::clone(parent));
    }

    /// Bytes that the set takes up so far and shares with no other.
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.shared.stored_bytes.load(Ordering::Relaxed)
    }

    /// The longest that a manifest of what has arrived can be.
    pub fn manifest_bytes_max(&self) -> u64 {
        self.shared.inventory().manifest_bytes_max()
    }

    /// Every file that is complete, in no order.
    pub fn complete_files(&self) -> Vec<SealedFile> {
        let inventory = self.shared.inventory();
        let files = inventory.iter().filter_map(|(path, known)| match known {
            KnownFile::Complete(digest) => Some(SealedFile {
                path: path.clone(),
                digest: *digest,
            }),
            _ => None,
        });
        files.collect()
    }
}
