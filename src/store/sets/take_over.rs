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

use super::delta::{Verdict, relative};
use super::error::SetError;
use super::out::{Copier, failure};
use super::slices::{Slice, from_offset};
use crate::pg::hashed_pages::HashedPages;
use crate::pg::old_files::ChangedBlocks;

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
        let old = relative(path).and_then(|path| taken.old.find_again(&path, verdict.old));
        let name = path.file_name().unwrap_or_default();
        let Some(old) = old else {
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
        if verdict.changed == ChangedBlocks::default() && verdict.old.size == verdict.len {
            return Ok(0);
        }
        let disk = &self.set.sets.parent.disk;
        let name = path.file_name().unwrap_or_default();
        let source = disk.open_file(from, name);
        let source = source.map_err(|error| self.set.failure("open", path, error))?;
        let file = disk.reopen_file(to, name);
        let file = file.map_err(|error| self.failure("open", path, error))?;
        if verdict.old.size != verdict.len {
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
        let stat = disk.stat(clone.as_fd());
        let old_len = stat
            .map_err(|error| self.failure("examine", path, error))?
            .len;
        let end = entry.map_or(old_len, |entry| entry.size.min(old_len));
        // What cannot be read is written anew.
        let pages = HashedPages::of(clone.as_fd(), end, |_, _| Ok::<_, SetError>(()))?;
        if let Some(entry) = entry
            && let Some(crc32c) = pages.agrees(entry, (clone.as_fd(), old_len), &mut self.buffer)
        {
            let len = entry.size;
            self.count(len, 0)?;
            return Ok(Some((len, crc32c)));
        }
        let (set, place) = (self.set, self.copying.to.join(path));
        let bring = |(brought_bytes, whole): Slice<'_, u64>, new: &[u8], offset: u64| {
            let mut changed = ChangedBlocks::default();
            changed.compare_digests(0, from_offset(&pages.digests, offset), new, whole);
            for (at, len) in changed.runs(new.len() as u64) {
                let from = usize::try_from(at).unwrap_or_default();
                let written = disk.write_all(into, &new[from..from + len], offset + at);
                written.map_err(|error| failure("write", &place, error))?;
                *brought_bytes += len as u64;
            }
            Ok(())
        };
        let (whole, brought_bytes) = set.read_slices(source, &relative, entry, bring)?;
        let cut = disk.set_len(into, whole.len);
        cut.map_err(|error| self.failure("set the length of", path, error))?;
        self.count(whole.len, brought_bytes.iter().sum())?;
        Ok(Some((whole.len, whole.crc32c)))
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
