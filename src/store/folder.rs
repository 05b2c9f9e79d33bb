//! One directory of the archive, held open, reached by its handle and never by its path again.
//! Never syncs, renames or writes; that is `durable`'s. Invariant: what is read through a folder
//! lies in the directory that was opened, whatever its path leads to later.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use rustix::io::Errno;

use super::beside::{name_of_packed, packed_name};
use super::disk::{Disk, FileStat};
use super::error::StoreError;
use super::health::Monitor;
use crate::files::FileId;

/// What every temporary begins with; nothing else in the archive does.
pub(super) const TEMPORARY_PREFIX: &str = ".in.";

/// What `compress` is writing, which no receiver removes while it does.
pub(super) const PACKING_PREFIX: &str = ".packing.";

/// A directory of the archive.
pub(super) struct Folder {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) monitor: Arc<Monitor>,
    path: PathBuf,
    handle: OwnedFd,
    identity: FileId,
    /// Whether segments in it may be packed.
    holds_finished: bool,
    /// How many callers have asked for a sync, and how many of those a finished sync covers.
    pub(super) syncs_asked: AtomicU64,
    pub(super) syncs_covered: Mutex<u64>,
}

impl Folder {
    /// Opens the directory at this path; `NotSetUp` when there is none.
    pub(super) fn open(
        path: &Path,
        disk: Arc<dyn Disk>,
        monitor: Arc<Monitor>,
    ) -> Result<Self, StoreError> {
        // For messages: without the `.` that a path to the directory behind a link ends with.
        let shown: PathBuf = path.components().collect();
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => StoreError::NotSetUp {
                path: shown.clone(),
            },
            _ => StoreError::Disk {
                op: "open directory",
                path: shown.clone(),
                source,
            },
        };
        let handle = disk.open_directory(path).map_err(failed)?;
        let identity = disk.stat(handle.as_fd()).map_err(failed)?.identity;
        Ok(Folder {
            disk,
            monitor,
            path: shown,
            handle,
            identity,
            holds_finished: false,
            syncs_asked: AtomicU64::new(0),
            syncs_covered: Mutex::new(0),
        })
    }

    /// The folder of finished files, whose names stand for either form that they may be stored in.
    pub(super) fn open_completed(
        path: &Path,
        disk: Arc<dyn Disk>,
        monitor: Arc<Monitor>,
    ) -> Result<Self, StoreError> {
        let folder = Folder::open(path, disk, monitor)?;
        Ok(Folder {
            holds_finished: true,
            ..folder
        })
    }

    /// Opens the directory once more. Failures there go to this monitor and not to the one that is used so far.
    pub(super) fn again(&self, monitor: Arc<Monitor>) -> Result<Self, StoreError> {
        let folder = Folder::open(&self.path, Arc::clone(&self.disk), monitor)?;
        Ok(Folder {
            holds_finished: self.holds_finished,
            ..folder
        })
    }

    pub(super) const fn holds_finished(&self) -> bool {
        self.holds_finished
    }

    pub(super) fn handle(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Fails when the configured path leads somewhere else than to this directory: after an
    /// unmount or a replaced directory, files would be acknowledged that nobody finds again.
    pub(super) fn ensure_in_place(&self) -> Result<(), StoreError> {
        let moved = || StoreError::Moved {
            path: self.path.clone(),
        };
        match self.disk.identity_at(&self.path) {
            Ok(identity) if identity == self.identity => Ok(()),
            Ok(_) => Err(moved()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(moved()),
            Err(error) => Err(self.failure("find directory", "", error)),
        }
    }

    /// The names in it; of a file that is packed the name that it has unpacked, once.
    pub(super) fn names(&self) -> Result<Vec<String>, StoreError> {
        let names = self.disk.names(self.handle());
        let mut names = names.map_err(|error| self.failure("list directory", "", error))?;
        if self.holds_finished {
            let mut is_packed = false;
            for name in &mut names {
                if let Some(text) = name_of_packed(name) {
                    *name = text.to_owned();
                    is_packed = true;
                }
            }
            if is_packed {
                names.sort_unstable();
                names.dedup();
            }
        }
        Ok(names)
    }

    /// What a name is, or `None` when it does not exist; of a packed file what it is on the disk.
    pub(super) fn stat_at(&self, name: &str) -> Result<Option<FileStat>, StoreError> {
        match (self.stat_stored(name)?, self.packed_name(name)) {
            (None, Some(packed)) => self.stat_stored(&packed),
            (stat, _) => Ok(stat),
        }
    }

    /// The name that the packed form of this file would have here.
    pub(super) fn packed_name(&self, name: &str) -> Option<String> {
        packed_name(name).filter(|_| self.holds_finished)
    }

    /// The names under which a file lies here: none, one, or both of its forms.
    pub(super) fn stored_names(&self, name: &str) -> Result<Vec<String>, StoreError> {
        let mut stored = Vec::new();
        for form in std::iter::once(name.to_owned()).chain(self.packed_name(name)) {
            if self.stat_stored(&form)?.is_some() {
                stored.push(form);
            }
        }
        Ok(stored)
    }

    /// What a name is on the disk.
    pub(super) fn stat_stored(&self, name: &str) -> Result<Option<FileStat>, StoreError> {
        match self.disk.stat_at(self.handle(), name) {
            Ok(stat) => Ok(Some(stat)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failure("examine", name, error)),
        }
    }

    /// Opens a regular file, or says `None` when the name does not exist.
    pub(super) fn open_file(&self, name: &str) -> Result<Option<OwnedFd>, StoreError> {
        let file = match self.disk.open(self.handle(), name) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failure("open", name, error)),
        };
        let stat =
            (self.disk.stat(file.as_fd())).map_err(|error| self.failure("examine", name, error))?;
        if !stat.is_file {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
            return Err(self.failure("open", name, error));
        }
        Ok(Some(file))
    }

    /// Hands a file to `each` piece by piece, to its end or until `each` has seen enough.
    pub(super) fn read_through(
        &self,
        file: BorrowedFd<'_>,
        name: &str,
        each: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), StoreError> {
        self.read_on(file, name, 0, each)
    }

    /// Reads a file through from an offset in bytes on, piece by piece, as far as `each` wants, with no pages of it
    /// left in memory.
    pub(super) fn read_on(
        &self,
        file: BorrowedFd<'_>,
        name: &str,
        mut offset_bytes: u64,
        mut each: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), StoreError> {
        let mut buffer = vec![0_u8; 256 << 10];
        loop {
            match self.disk.read(file, &mut buffer, offset_bytes) {
                Ok(0) => return Ok(()),
                Ok(read_bytes) => {
                    offset_bytes += read_bytes as u64;
                    if !each(&buffer[..read_bytes]) {
                        return Ok(());
                    }
                }
                Err(error) => return Err(self.failure("read", name, error)),
            }
        }
    }

    /// Hands a file to `each` from an offset on, a page at a time, until `each` has seen enough: for those
    /// who want only some of it.
    pub(super) fn read_pages(
        &self,
        file: BorrowedFd<'_>,
        name: &str,
        from_bytes: u64,
        mut each: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), StoreError> {
        let (mut page, mut offset_bytes) = ([0_u8; 8 << 10], from_bytes);
        loop {
            match self.disk.read(file, &mut page, offset_bytes) {
                Ok(0) => return Ok(()),
                Ok(read_bytes) => {
                    offset_bytes += read_bytes as u64;
                    if !each(&page[..read_bytes]) {
                        return Ok(());
                    }
                }
                Err(error) => return Err(self.failure("read", name, error)),
            }
        }
    }

    /// The content of a small file, or the beginning of one that has more than `bytes_max`, which is
    /// then longer than that; `None` when the name does not exist.
    pub(super) fn read_small(
        &self,
        name: &str,
        bytes_max: usize,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(file) = self.open_file(name)? else {
            return Ok(None);
        };
        let mut content = Vec::new();
        self.read_pages(file.as_fd(), name, 0, |page| {
            content.extend_from_slice(page);
            content.len() <= bytes_max
        })?;
        Ok(Some(content))
    }

    /// Fails unless so many bytes stay free when a file of this length is there. A file system that does not say
    /// how many are free finds out while writing.
    pub(super) fn keep_free(&self, name: &str, len: u64, reserved: u64) -> Result<(), StoreError> {
        let Ok(free_bytes) = self.disk.free_bytes(self.handle()) else {
            return Ok(());
        };
        if free_bytes >= len.saturating_add(reserved) {
            return Ok(());
        }
        let why = format!(
            "{} MiB are kept free for a boot",
            reserved.div_ceil(1 << 20)
        );
        Err(StoreError::NoSpace {
            what: name.to_owned(),
            directory: self.path.clone(),
            free_bytes: Some(free_bytes),
            source: io::Error::new(io::ErrorKind::StorageFull, why),
        })
    }

    /// The error of an operation on a name in this directory, or on itself for the empty name.
    pub(super) fn failure(&self, op: &'static str, name: &str, source: io::Error) -> StoreError {
        let path = if name.is_empty() {
            self.path.clone()
        } else {
            self.path.join(name)
        };
        if !is_out_of_space(&source) {
            return StoreError::Disk { op, path, source };
        }
        StoreError::NoSpace {
            what: final_name(name).to_owned(),
            directory: self.path.clone(),
            free_bytes: self.disk.free_bytes(self.handle()).ok(),
            source,
        }
    }
}

/// The name a temporary is for; people know no other.
fn final_name(name: &str) -> &str {
    let stem = [TEMPORARY_PREFIX, PACKING_PREFIX]
        .into_iter()
        .find_map(|prefix| name.strip_prefix(prefix))
        .and_then(|rest| rest.rsplit_once('.'));
    stem.map_or(name, |(stem, _)| stem)
}

/// Random, so that two writers of one name do not wait for each other; `O_EXCL` decides.
pub(super) fn random_suffix() -> io::Result<String> {
    let mut bytes = [0_u8; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)))
}

fn is_out_of_space(error: &io::Error) -> bool {
    Errno::from_io_error(error)
        .is_some_and(|errno| matches!(errno, Errno::NOSPC | Errno::DQUOT | Errno::FBIG))
}
