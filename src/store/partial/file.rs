//! One partial segment as a file: fixed length, records from its beginning, zeros behind them.
//! Never syncs by itself and never decides what may be written. Invariant: its end is found by
//! reading records, and proven before anybody calls what is behind it worth nothing.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use walmgr_protocol::names::SegmentName;

use super::proven::{self, Proven};
use crate::files::FileId;
use crate::store::binding::Binding;
use crate::store::disk::FileStat;
use crate::store::error::StoreError;
use crate::store::folder::Folder;
use crate::wal::scan::Scanner;

/// Bytes read at once: some pages, so that small segments do not cost many calls.
const READ_BYTES: usize = 64 << 10;

/// From here on a second thread is worth its start.
const HALVES_BYTES_MIN: u64 = 4 << 20;

/// An open partial segment.
pub(super) struct PartialFile {
    folder: Arc<Folder>,
    segment: SegmentName,
    name: String,
    file: OwnedFd,
    identity: FileId,
    size: u64,
}

impl PartialFile {
    /// Opens the file of a segment, or says `None` when there is none.
    pub(super) fn open(
        folder: &Arc<Folder>,
        segment: SegmentName,
        size: u64,
    ) -> Result<Option<Self>, StoreError> {
        let name = segment.to_string();
        let file = match folder.disk.reopen(folder.handle(), &name) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(folder.failure("open", &name, error)),
        };
        let stat = (folder.disk.stat(file.as_fd()))
            .map_err(|error| folder.failure("examine", &name, error))?;
        if !stat.is_file {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
            return Err(folder.failure("open", &name, error));
        }
        let partial = PartialFile {
            folder: Arc::clone(folder),
            segment,
            name,
            file,
            identity: stat.identity,
            size,
        };
        // A crash while it was created leaves it short.
        if stat.len != size {
            partial.set_len(size)?;
        }
        Ok(Some(partial))
    }

    /// Creates the file of a segment that has none; a crash leaves nothing, or zeros.
    pub(super) fn create(
        folder: &Arc<Folder>,
        segment: SegmentName,
        size: u64,
    ) -> Result<Self, StoreError> {
        Self::create_as(folder, segment, segment.to_string(), size)
    }

    /// Creates the file of a segment under another name, for a file that is to replace the segment's.
    pub(super) fn create_as(
        folder: &Arc<Folder>,
        segment: SegmentName,
        name: String,
        size: u64,
    ) -> Result<Self, StoreError> {
        folder.ensure_in_place()?;
        // What creates a file opens it for writing only, and this one is read again.
        drop(
            (folder.disk.create(folder.handle(), &name))
                .map_err(|error| folder.failure("create", &name, error))?,
        );
        let file = (folder.disk.reopen(folder.handle(), &name))
            .map_err(|error| folder.failure("open", &name, error))?;
        let identity = (folder.disk.stat(file.as_fd()))
            .map_err(|error| folder.failure("examine", &name, error))?
            .identity;
        let partial = PartialFile {
            folder: Arc::clone(folder),
            segment,
            name,
            file,
            identity,
            size,
        };
        match partial.reserve() {
            Ok(()) => Ok(partial),
            Err(error) => {
                // Its room is somebody else's chance; what stays is found empty later.
                let _ = folder.remove(&partial.name);
                Err(error)
            }
        }
    }

    pub(super) fn handle(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// What the file is now.
    pub(super) fn stat(&self) -> Result<FileStat, StoreError> {
        (self.folder.disk.stat(self.handle()))
            .map_err(|error| self.folder.failure("examine", &self.name, error))
    }

    pub(super) fn folder(&self) -> &Arc<Folder> {
        &self.folder
    }

    /// The name that it was opened or created under.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Its length in bytes.
    pub(super) const fn size(&self) -> u64 {
        self.size
    }

    /// This file once it has the segment's own name.
    pub(super) fn renamed(mut self) -> Self {
        self.name = self.segment.to_string();
        self
    }

    /// Whether the segment's name still leads to this file; a push may have finished it.
    pub(super) fn is_in_place(&self) -> Result<bool, StoreError> {
        let found = self.folder.stat_at(&self.name)?;
        Ok(found.is_some_and(|stat| stat.identity == self.identity))
    }

    /// Writes bytes; whoever calls has found them to be WAL that belongs there.
    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        (self.folder.disk.write_all(self.handle(), bytes, offset))
            .map_err(|error| self.folder.failure("write", &self.name, error))
    }

    /// Hands a part of the file to `each`, piece by piece, until it has seen enough.
    pub(super) fn read(
        &self,
        range: Range<u64>,
        mut each: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), StoreError> {
        let mut buffer = vec![0_u8; READ_BYTES];
        let mut offset = range.start;
        while offset < range.end {
            let want = usize::try_from(range.end - offset)
                .map_or(buffer.len(), |left| left.min(buffer.len()));
            match (self.folder.disk).read(self.handle(), &mut buffer[..want], offset) {
                Ok(0) => return Ok(()),
                Ok(read_bytes) => {
                    offset += read_bytes as u64;
                    if !each(&buffer[..read_bytes]) {
                        return Ok(());
                    }
                }
                Err(error) => return Err(self.folder.failure("read", &self.name, error)),
            }
        }
        Ok(())
    }

    /// CRC-32 of the first `bytes` bytes. Two threads read a large part, one each half: a push
    /// waits for it, and so does the `archive_command` behind that.
    pub(super) fn crc32(&self, bytes: u64) -> Result<u32, StoreError> {
        if bytes < HALVES_BYTES_MIN {
            return Ok(self.hash(0..bytes)?.finalize());
        }
        let half = bytes / 2;
        std::thread::scope(|scope| {
            let begun = std::thread::Builder::new().spawn_scoped(scope, || self.hash(half..bytes));
            let mut crc = self.hash(0..half)?;
            let second = match begun.ok().map(std::thread::ScopedJoinHandle::join) {
                Some(Ok(second)) => second?,
                // No thread was to be had.
                _ => self.hash(half..bytes)?,
            };
            crc.combine(&second);
            Ok(crc.finalize())
        })
    }

    pub(super) fn hash(&self, range: Range<u64>) -> Result<crc32fast::Hasher, StoreError> {
        let mut crc = crc32fast::Hasher::new();
        self.read(range, |piece| {
            crc.update(piece);
            true
        })?;
        Ok(crc)
    }

    /// Reads records from the beginning with this scanner, which stands there, and proves their
    /// end.
    pub(super) fn find_end(
        &self,
        binding: &Binding,
        scanner: Scanner,
    ) -> Result<Proven, StoreError> {
        proven::find(&self.folder, self.handle(), binding, self.segment, scanner)
    }

    /// Makes everything behind `held_bytes` zeros.
    pub(super) fn clear_behind(&self, held_bytes: u64) -> Result<(), StoreError> {
        self.set_len(held_bytes)?;
        self.reserve()
    }

    /// Whether something else than zeros is behind `held_bytes`.
    pub(super) fn is_clear_behind(&self, held_bytes: u64) -> Result<bool, StoreError> {
        let mut clear = true;
        self.read(held_bytes..self.size, |piece| {
            clear = piece.iter().all(|byte| *byte == 0);
            clear
        })?;
        Ok(clear)
    }

    /// Sets the whole segment's space aside, so that a full disk is found before it is written.
    fn reserve(&self) -> Result<(), StoreError> {
        match self.folder.disk.allocate(self.handle(), self.size) {
            Ok(()) => Ok(()),
            // A file system that cannot do it finds out while writing.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => self.set_len(self.size),
            Err(error) => Err(self.folder.failure("allocate", &self.name, error)),
        }
    }

    fn set_len(&self, len: u64) -> Result<(), StoreError> {
        (self.folder.disk.set_len(self.handle(), len))
            .map_err(|error| self.folder.failure("set the length of", &self.name, error))
    }
}
