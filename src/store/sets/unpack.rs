//! One tar stream of a backup, taken apart into files of the incoming set as it arrives.
//! Never follows a link and never opens a path of more than one component. Invariant: nothing
//! outside the set's directory is touched, whatever the stream holds.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use walmgr_protocol::message::backup::FileDigest;
use walmgr_protocol::names::RelativePath;

use super::error::SetError;
use super::inventory::{Claim, KnownFile};
use super::names::is_reserved;
use super::shared::{SetShared, descend};
use crate::tar::{EntryKind, TarEntry, TarReader, TarStep};

/// How much of a file is written before its write-back is started, so that the one sync at the end
/// finds little left to do. Smaller files are left to the kernel.
const WRITEBACK_BYTES: u64 = 8 << 20;

/// Zeros are recognised in pieces of this size and left out: a hole reads the same.
const HOLE_BYTES: usize = 64 << 10;

static ZEROS: [u8; HOLE_BYTES] = [0; HOLE_BYTES];

/// A file that arrived completely.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedFile {
    /// Where it is in the set.
    pub path: RelativePath,
    /// What it is.
    pub digest: FileDigest,
}

/// The writer for one stream. Dropping it in the middle of a file keeps what has arrived, so
/// that another stream can go on from there.
pub struct StreamWriter {
    shared: Arc<SetShared>,
    tar: TarReader,
    file: Option<ReceivedFile>,
    /// The directory that was used last: files come in the order of their directories.
    directory: Option<(Option<RelativePath>, Arc<OwnedFd>)>,
}

struct ReceivedFile {
    path: RelativePath,
    file: OwnedFd,
    /// The length it will have.
    len: u64,
    /// How much has arrived, and its checksum.
    arrived: FileDigest,
    /// How much of it the file system knows of; behind that there are zeros.
    stored_bytes: u64,
    writeback_bytes: u64,
}

impl StreamWriter {
    pub(super) fn new(shared: Arc<SetShared>) -> Result<Self, SetError> {
        let mut inventory = shared.inventory();
        inventory.check()?;
        inventory.streams += 1;
        drop(inventory);
        Ok(StreamWriter {
            shared,
            tar: TarReader::default(),
            file: None,
            directory: None,
        })
    }

    /// Takes the next bytes of the stream and returns the files that became complete. After an
    /// error the whole set is given up.
    pub fn write(&mut self, bytes: &[u8]) -> Result<Vec<SealedFile>, SetError> {
        self.shared.inventory().check()?;
        let result = self.take(bytes);
        if let Err(error) = &result {
            self.shared.inventory().give_up(error);
        }
        result
    }

    /// Ends the stream; an error when that is not its end. A stream whose connection broke is
    /// dropped instead.
    pub fn finish(self) -> Result<(), SetError> {
        self.shared.inventory().check()?;
        let result = self.tar.finish().map_err(SetError::from);
        if let Err(error) = &result {
            self.shared.inventory().give_up(error);
        }
        result
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<Vec<SealedFile>, SetError> {
        let mut sealed = Vec::new();
        loop {
            match self.tar.next(&mut bytes)? {
                TarStep::Entry(entry) => self.begin(entry)?,
                TarStep::Data(data) => self.append(data)?,
                TarStep::FileEnd => sealed.extend(self.end()?),
                TarStep::NeedMore => return Ok(sealed),
            }
        }
    }

    fn begin(&mut self, entry: TarEntry) -> Result<(), SetError> {
        let TarEntry { path, kind } = entry;
        if is_reserved(&path) {
            let why = "it is not taken from a stream";
            return Err(SetError::Entry { path, why });
        }
        match kind {
            EntryKind::Directory => self.declare(&path),
            EntryKind::File { size, offset } => self.open(path, size, offset),
        }
    }

    fn declare(&mut self, path: &RelativePath) -> Result<(), SetError> {
        let known = self.shared.inventory().known(path);
        if let Some(KnownFile::Directory { is_declared: true }) = known {
            let (path, why) = (path.clone(), "it comes twice");
            return Err(SetError::Entry { path, why });
        }
        self.directory(Some(path))?;
        let is_declared = true;
        (self.shared.inventory()).set(path, KnownFile::Directory { is_declared })
    }

    fn open(&mut self, path: RelativePath, size: u64, offset: u64) -> Result<(), SetError> {
        let directory = self.directory(path.parent().as_ref())?;
        let claim = self.shared.inventory().claim(&path, size, offset)?;
        let name = OsStr::from_bytes(path.file_name());
        let disk = &self.shared.sets.parent.disk;
        let opened = match claim {
            Claim::Create => disk.make_file(directory.as_fd(), name),
            Claim::Restart | Claim::Continue(_) => disk.reopen_file(directory.as_fd(), name),
        };
        let file = opened.map_err(|error| self.shared.entry_failure("create", &path, error))?;
        let arrived = match claim {
            Claim::Create | Claim::Restart => FileDigest { len: 0, crc32c: 0 },
            Claim::Continue(held) => held,
        };
        if claim == Claim::Restart {
            (disk.set_len(file.as_fd(), 0))
                .map_err(|error| self.shared.failure("truncate", &path, error))?;
        }
        let stored = disk.stat(file.as_fd());
        let stored = stored.map_err(|error| self.shared.failure("examine", &path, error))?;
        self.file = Some(ReceivedFile {
            len: offset + size,
            path,
            file,
            arrived,
            stored_bytes: stored.len,
            writeback_bytes: arrived.len,
        });
        Ok(())
    }

    fn append(&mut self, mut data: &[u8]) -> Result<(), SetError> {
        let Some(open) = &mut self.file else {
            // The reader gives data only behind the entry of a file.
            return Ok(());
        };
        let shared = &self.shared;
        let crc32c = crc32c::crc32c_append(open.arrived.crc32c, data);
        let disk = &shared.sets.parent.disk;
        while !data.is_empty() {
            let piece = &data[..data.len().min(HOLE_BYTES)];
            let is_hole = piece.len() == HOLE_BYTES
                && piece == ZEROS
                && open.arrived.len >= open.stored_bytes;
            let end = open.arrived.len + piece.len() as u64;
            if !is_hole {
                disk.write_all(open.file.as_fd(), piece, open.arrived.len)
                    .map_err(|error| shared.failure("write", &open.path, error))?;
                open.stored_bytes = open.stored_bytes.max(end);
            }
            open.arrived.len = end;
            data = &data[piece.len()..];
        }
        open.arrived.crc32c = crc32c;
        let waiting_bytes = open.stored_bytes.saturating_sub(open.writeback_bytes);
        if waiting_bytes >= WRITEBACK_BYTES {
            // Advice only: the sync at the end is what counts, and it reports every failure.
            let from = open.writeback_bytes;
            let _ = disk.start_writeback(open.file.as_fd(), from, waiting_bytes);
            open.writeback_bytes = open.stored_bytes;
        }
        Ok(())
    }

    fn end(&mut self) -> Result<Option<SealedFile>, SetError> {
        let Some(open) = self.file.take() else {
            return Ok(None);
        };
        let shared = &self.shared;
        let disk = &shared.sets.parent.disk;
        if open.stored_bytes != open.len {
            (disk.set_len(open.file.as_fd(), open.len))
                .map_err(|error| shared.failure("extend", &open.path, error))?;
        }
        (disk.close(open.file)).map_err(|error| shared.failure("close", &open.path, error))?;
        let (path, digest) = (open.path, open.arrived);
        shared.inventory().set(&path, KnownFile::Complete(digest))?;
        Ok(Some(SealedFile { path, digest }))
    }

    /// The handle of a directory of the set, made if it is not there yet.
    fn directory(&mut self, path: Option<&RelativePath>) -> Result<Arc<OwnedFd>, SetError> {
        if let Some((last, handle)) = &self.directory
            && last.as_ref() == path
        {
            return Ok(Arc::clone(handle));
        }
        let handle = match path {
            None => Arc::clone(&self.shared.root),
            Some(path) => Arc::new(descend(&self.shared, path)?),
        };
        self.directory = Some((path.cloned(), Arc::clone(&handle)));
        Ok(handle)
    }
}

impl Drop for StreamWriter {
    fn drop(&mut self) {
        let mut inventory = self.shared.inventory();
        inventory.streams -= 1;
        if let Some(open) = self.file.take() {
            let (held, len) = (open.arrived, open.len);
            // The path is known, so there is room for it.
            let _ = inventory.set(&open.path, KnownFile::Partial { held, len });
        }
    }
}
