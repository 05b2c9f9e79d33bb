//! Files of the incoming set as they are written: those that a tar stream brings, and those that a standby copies.
//! Never follows a link and never opens a path of more than one component. Invariant: nothing outside the set's
//! directory is touched, and no file has two names: what the file system can share between two files it copies
//! when either is written.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use walmgr_protocol::message::backup::FileDigest;
use walmgr_protocol::names::RelativePath;

use super::error::SetError;
use super::inventory::{Claim, KnownFile};
use super::names::is_reserved;
use super::patched_file::PatchedFile;
use super::shared::{SetShared, descend};

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

/// Writes one file after the other. Dropping it in the middle of one keeps what is there of it.
pub struct FileWriter {
    shared: Arc<SetShared>,
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
    /// What comes is a patch for it.
    patched: Option<PatchedFile>,
}

impl FileWriter {
    pub(super) fn new(shared: Arc<SetShared>) -> Result<Self, SetError> {
        let mut inventory = shared.inventory();
        inventory.check()?;
        inventory.streams += 1;
        drop(inventory);
        Ok(FileWriter {
            shared,
            file: None,
            directory: None,
        })
    }

    /// Bytes that can still be written where the set lies.
    pub fn free_bytes(&self) -> Result<u64, SetError> {
        let (parent, root) = (&self.shared.sets.parent, &self.shared.root);
        let free = parent.disk.free_bytes(root.as_fd());
        let name = self.shared.sets.incoming_name();
        Ok(free.map_err(|error| parent.failure("ask for the free space of", &name, error))?)
    }

    /// Makes a directory.
    pub fn declare(&mut self, path: &RelativePath) -> Result<(), SetError> {
        refuse_reserved(path)?;
        let known = self.shared.inventory().known(path);
        if let Some(KnownFile::Directory { is_declared: true }) = known {
            let (path, why) = (path.clone(), "it comes twice");
            return Err(SetError::Entry { path, why });
        }
        self.directory(Some(path))?;
        let is_declared = true;
        (self.shared.inventory()).set(path, KnownFile::Directory { is_declared })
    }

    /// Begins a file, or goes on with one at this offset; `size` bytes of it follow.
    pub fn begin(&mut self, path: RelativePath, size: u64, offset: u64) -> Result<(), SetError> {
        refuse_reserved(&path)?;
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
            patched: None,
        });
        Ok(())
    }

    /// Begins a file that is so long and otherwise as the parent has it; a patch follows.
    pub fn begin_patch(&mut self, path: RelativePath, len: u64) -> Result<(), SetError> {
        self.begin(path, len, 0)?;
        if let Some(open) = &mut self.file {
            let into = open.file.as_fd();
            open.patched = Some(PatchedFile::begin(&self.shared, &open.path, into, len)?);
            open.stored_bytes = len;
        }
        Ok(())
    }

    /// Appends the next bytes of the file that was begun.
    pub fn append(&mut self, mut data: &[u8]) -> Result<(), SetError> {
        let Some(open) = &mut self.file else {
            // The reader gives data only behind the entry of a file.
            return Ok(());
        };
        let shared = &self.shared;
        if let Some(patched) = &mut open.patched {
            return patched.take(shared, (&open.path, open.file.as_fd()), data);
        }
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
                shared.note_stored(piece.len() as u64);
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

    /// Ends the file that was begun.
    pub fn end(&mut self) -> Result<Option<SealedFile>, SetError> {
        let Some(mut open) = self.file.take() else {
            return Ok(None);
        };
        if let Some(patched) = open.patched.take() {
            let directory = self.directory(open.path.parent().as_ref())?;
            let name = OsStr::from_bytes(open.path.file_name());
            let made = (self.shared.sets.parent.disk).open_file(directory.as_fd(), name);
            let made = made.map_err(|error| self.shared.failure("open", &open.path, error))?;
            open.arrived = patched.finish(&self.shared, &open.path, made.as_fd())?;
        }
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

    /// Has the file that was just begun share what this one holds now, as one instant saw it, and returns it to
    /// be read: its content counts only as far as it [passes](Self::pass). `None` where the file system shares nothing
    /// between files, and the content has to be appended.
    pub fn share(&mut self, source: BorrowedFd<'_>) -> Result<Option<(File, u64)>, SetError> {
        let Some(open) = &mut self.file else {
            return Ok(None);
        };
        let disk = &self.shared.sets.parent.disk;
        // Whatever keeps it from sharing is found again, or not, when the content is written.
        if disk.share_content(source, open.file.as_fd()).is_err() {
            return Ok(None);
        }
        let stat = disk.stat(open.file.as_fd());
        let stat = stat.map_err(|error| self.shared.failure("examine", &open.path, error))?;
        (open.len, open.stored_bytes) = (stat.len, stat.len);
        let (path, len) = (open.path.clone(), stat.len);
        let directory = self.directory(path.parent().as_ref())?;
        let name = OsStr::from_bytes(path.file_name());
        let disk = &self.shared.sets.parent.disk;
        let copy = disk.open_file(directory.as_fd(), name);
        let copy = copy.map_err(|error| self.shared.failure("open", &path, error))?;
        Ok(Some((File::from(copy), len)))
    }

    /// Takes what was read of a shared file into account; `is_mended` where that is not what it holds yet.
    pub fn pass(&mut self, data: &[u8], is_mended: bool) -> Result<(), SetError> {
        let Some(open) = &mut self.file else {
            return Ok(());
        };
        if is_mended {
            let disk = &self.shared.sets.parent.disk;
            (disk.write_all(open.file.as_fd(), data, open.arrived.len))
                .map_err(|error| self.shared.failure("write", &open.path, error))?;
        }
        open.arrived.crc32c = crc32c::crc32c_append(open.arrived.crc32c, data);
        open.arrived.len += data.len() as u64;
        Ok(())
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

impl Drop for FileWriter {
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

fn refuse_reserved(path: &RelativePath) -> Result<(), SetError> {
    match is_reserved(path) {
        false => Ok(()),
        true => Err(SetError::Entry {
            path: path.clone(),
            why: "only sealing writes it",
        }),
    }
}
