//! Has files of an old data directory become files of a copy, with the blocks that differ.
//! Never takes a file that was not read, and never writes into one that has another name. Invariant: what is handed on is
//! what the manifest lists.
//!
//! ```text
//! beside       a file of the old directory is cloned and the clone compared; the old one may be written meanwhile
//! in place     all were compared first (`delta`); each changes directories, and blocks are written into it
//! ```

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::io::Errno;

use super::delta::{Verdict, check, relative};
use super::error::SetError;
use super::out::Copier;
use crate::pg::manifest::{FileEntry, ListedDigest};
use crate::pg::old_files::{ChangedBlocks, PIECE_BYTES, agreeing, read_full};

impl Copier<'_> {
    /// Has a file of the old directory change directories, and writes what differs into it; its length and CRC-32C
    /// then. `None` if it has to be copied.
    pub(super) fn move_over(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        path: &Path,
    ) -> Result<Option<(u64, u32)>, SetError> {
        let Some(taken) = &mut self.copying.taken else {
            return Ok(None);
        };
        let Some(verdict) = (taken.verdicts.as_mut()).and_then(|all| all.remove(path)) else {
            return Ok(None);
        };
        let old = relative(path).and_then(|path| taken.old.find(&path));
        let name = path.file_name().unwrap_or_default();
        let Some(old) = old.filter(|old| old.len() == verdict.old_len) else {
            return Ok(None);
        };
        match old.move_to(to, name) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::XDEV) => return Ok(None),
            other => other.map_err(|error| self.failure("move to", path, error))?,
        }
        let brought_bytes = self.bring_blocks(from, to, path, &verdict)?;
        self.count(verdict.len, brought_bytes)?;
        Ok(Some((verdict.len, verdict.crc32c)))
    }

    fn bring_blocks(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        path: &Path,
        verdict: &Verdict,
    ) -> Result<u64, SetError> {
        if verdict.changed == ChangedBlocks::default() && verdict.old_len == verdict.len {
            return Ok(0);
        }
        let disk = &self.set.sets.parent.disk;
        let name = path.file_name().unwrap_or_default();
        let source = disk.open_file(from, name);
        let source = source.map_err(|error| self.set.failure("open", path, error))?;
        let file = disk.reopen_file(to, name);
        let file = file.map_err(|error| self.failure("open", path, error))?;
        if verdict.old_len != verdict.len {
            let cut = disk.set_len(file.as_fd(), verdict.len);
            cut.map_err(|error| self.failure("set the length of", path, error))?;
        }
        let (mut crc32c, mut brought_bytes) = (0, 0);
        for (offset, len) in verdict.changed.runs(verdict.len) {
            let piece = &mut self.buffer[..len];
            let read_bytes = (self.set).read_piece(source.as_fd(), piece, offset, path)?;
            crc32c = crc32c::crc32c_append(crc32c, &piece[..read_bytes]);
            let written = disk.write_all(file.as_fd(), &self.buffer[..read_bytes], offset);
            written.map_err(|error| self.failure("write", path, error))?;
            brought_bytes += read_bytes as u64;
        }
        (disk.close(file)).map_err(|error| self.failure("close", path, error))?;
        if crc32c != verdict.changed.crc32c() {
            let why = "the set's file was read twice and was different each time";
            return Err(SetError::InTheWay {
                path: self.set.path().join(path),
                why: why.to_owned(),
            });
        }
        Ok(brought_bytes)
    }

    /// Clones a file of the old directory into the new file `into`, and writes what differs into the clone; its length
    /// and CRC-32C then. `None` if it has to be copied.
    pub(super) fn clone_over(
        &mut self,
        source: BorrowedFd<'_>,
        into: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        path: &Path,
    ) -> Result<Option<(u64, u32)>, SetError> {
        let Some(taken) = (self.copying.taken.as_ref()).filter(|taken| taken.verdicts.is_none())
        else {
            return Ok(None);
        };
        let Some(relative) = relative(path) else {
            return Ok(None);
        };
        let (disk, entry) = (&self.set.sets.parent.disk, taken.entry(&relative));
        let Some(old) = taken.old.find(&relative) else {
            return Ok(None);
        };
        if disk.share_content(old.handle(), into).is_err() {
            return Ok(None);
        }
        let clone = disk.open_file(to, path.file_name().unwrap_or_default());
        let clone = clone.map_err(|error| self.failure("open", path, error))?;
        let is_of_length = |entry: &&FileEntry| {
            let stat = disk.stat(clone.as_fd());
            stat.is_ok_and(|stat| stat.len == entry.size)
        };
        if let Some(entry) = entry.filter(is_of_length)
            && let Some(crc32c) = agreeing(clone.as_fd(), entry, &mut self.buffer)
        {
            let len = entry.size;
            self.count(len, 0)?;
            return Ok(Some((len, crc32c)));
        }
        let entry = entry.cloned();
        let mut digest = ListedDigest::begin(entry.as_ref().and_then(|it| it.checksum.as_ref()));
        let (mut old_piece, mut brought_bytes) = (vec![0; PIECE_BYTES], 0);
        loop {
            let offset = digest.len();
            let read_bytes = (self.set).read_piece(source, &mut self.buffer, offset, path)?;
            let new = &self.buffer[..read_bytes];
            // What cannot be read is written anew.
            let found = read_full(clone.as_fd(), &mut old_piece, offset).unwrap_or(0);
            let mut changed = ChangedBlocks::default();
            changed.compare(0, &old_piece[..found], new);
            for (at, len) in changed.runs(read_bytes as u64) {
                let from = usize::try_from(at).unwrap_or_default();
                let written = disk.write_all(into, &new[from..from + len], offset + at);
                written.map_err(|error| self.failure("write", path, error))?;
                brought_bytes += len as u64;
            }
            digest.update(new);
            if read_bytes < self.buffer.len() {
                break;
            }
        }
        let (len, crc32c) = (digest.len(), digest.crc32c());
        let cut = disk.set_len(into, len);
        cut.map_err(|error| self.failure("set the length of", path, error))?;
        check(digest, entry.as_ref(), &relative)?;
        self.count(len, brought_bytes)?;
        Ok(Some((len, crc32c)))
    }

    fn count(&mut self, len: u64, brought_bytes: u64) -> Result<(), SetError> {
        if let Some(taken) = &mut self.copying.taken {
            taken.taken_bytes += len.saturating_sub(brought_bytes);
            taken.brought_bytes += brought_bytes;
        }
        match (self.copying.progress)(len) {
            true => Ok(()),
            false => Err(SetError::Interrupted),
        }
    }

    /// Counts a file that was copied whole.
    pub(super) fn count_copied(&mut self, len: u64) {
        if let Some(taken) = &mut self.copying.taken {
            taken.brought_bytes += len;
        }
    }
}
