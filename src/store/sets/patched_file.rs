//! A file of the incoming set that begins as its parent's, and gets the pages that are not the same.
//! Never writes the parent's. Invariant: it is complete only when it was read from beginning to end, and when what came of
//! the parent is what the parent's manifest lists.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use walmgr_protocol::message::backup::FileDigest;
use walmgr_protocol::names::{Lsn, RelativePath};
use walmgr_protocol::patch::{PAGE_BYTES, PageLook, PatchReader, PatchStep};

use super::error::SetError;
use super::parent::ParentOfSet;
use super::shared::SetShared;
use crate::files;
use crate::files::slices::{PartDigest, in_slices};
use crate::pg::hashed_pages::AHEAD_BYTES;
use crate::pg::listed::stored_path;
use crate::pg::page;
use crate::store::disk::read_full;
use crate::store::taken_over::{TakenContent, take_over};

/// What is read at once: whole pages.
const PIECE_BYTES: usize = 256 << 10;

/// Looks that wait until all of the file is read, where each page comes in its turn: more than one in a hundred pages of
/// the longest file that PostgreSQL makes. Of a longer one the rest is read at once.
const LOOKS_MAX: usize = 1 << 14;

/// What becomes the file's own when a page is written.
const UNSHARED_BYTES: u32 = 8 << 10;

/// What was read of a slice of a file: what it is, and what its parent's is.
#[derive(Clone, Copy, Default)]
struct FoundSlice {
    made: PartDigest,
    listed: PartDigest,
}

/// A file that is being patched.
pub(super) struct PatchedFile {
    parent: Arc<ParentOfSet>,
    source: OwnedFd,
    listed: FileDigest,
    len: u64,
    patch: PatchReader,
    /// It has the parent's blocks where it was not written.
    shares_blocks: bool,
    /// Where it was written, in ascending order.
    written: Vec<Range<u64>>,
    /// What pages of the parent have to be, by their numbers, in ascending order.
    looks: Vec<(u32, PageLook)>,
}

impl PatchedFile {
    /// Lets an empty file begin as the parent's of this path, for a patch that makes it so long.
    pub(super) fn begin(
        shared: &SetShared,
        path: &RelativePath,
        into: BorrowedFd<'_>,
        len: u64,
    ) -> Result<PatchedFile, SetError> {
        let parent = shared.parent().ok_or_else(|| SetError::Entry {
            path: path.clone(),
            why: "it is a patch, and nothing was chosen to be patched",
        })?;
        let (source, listed) = parent.open(path)?;
        let disk = &shared.sets.parent.disk;
        let taken = take_over(&**disk, source.as_fd(), into);
        let taken = taken.map_err(|error| shared.failure("write", path, error))?;
        match taken {
            TakenContent::Copied(bytes) => shared.note_stored(bytes),
            // XFS would keep 128 KiB for each page that is written, for half an hour. Where there is no such choice it is
            // as it is.
            TakenContent::Shared => drop(disk.set_unshared_bytes(into, Some(UNSHARED_BYTES))),
        }
        if len != listed.len {
            (disk.set_len(into, len)).map_err(|error| shared.failure("extend", path, error))?;
        }
        Ok(PatchedFile {
            parent,
            source,
            listed,
            len,
            patch: PatchReader::new(len),
            shares_blocks: taken == TakenContent::Shared,
            written: Vec::new(),
            looks: Vec::new(),
        })
    }

    /// Takes the next bytes of the patch.
    pub(super) fn take(
        &mut self,
        shared: &SetShared,
        (path, into): (&RelativePath, BorrowedFd<'_>),
        mut data: &[u8],
    ) -> Result<(), SetError> {
        let disk = &shared.sets.parent.disk;
        loop {
            let step = self.patch.next(&mut data);
            match step.map_err(|fault| patch_refused(path, fault))? {
                PatchStep::NeedMore => return Ok(()),
                PatchStep::Bytes(offset, bytes) => {
                    (disk.write_all(into, bytes, offset))
                        .map_err(|error| shared.failure("write", path, error))?;
                    shared.note_stored(bytes.len() as u64);
                    let end = offset + bytes.len() as u64;
                    match self.written.last_mut() {
                        Some(last) if last.end == offset => last.end = end,
                        _ => self.written.push(offset..end),
                    }
                }
                PatchStep::Look(block, look) if self.looks.len() < LOOKS_MAX => {
                    self.looks.push((block, look));
                }
                PatchStep::Look(block, look) => {
                    let mut found = [0; page::PAGE_BYTES];
                    let offset = u64::from(block) * PAGE_BYTES;
                    let read = read_full(&**disk, self.source.as_fd(), &mut found, offset);
                    let read_bytes = read.map_err(|error| self.unreadable(path, &error))?;
                    self.compare_page(shared, path, (block, look), &found[..read_bytes])?;
                }
            }
        }
    }

    /// Refuses a page of the parent that is not what the master has there.
    fn compare_page(
        &self,
        shared: &SetShared,
        path: &RelativePath,
        (block, look): (u32, PageLook),
        found: &[u8],
    ) -> Result<(), SetError> {
        // One that the parent has not, or in part only, has no LSN.
        let found = <&[u8; page::PAGE_BYTES]>::try_from(found).map(page::look);
        let is_same = found.is_ok_and(|found| {
            found.lsn == look.lsn && (!self.parent.compares_pages() || found.crc32c == look.crc32c)
        });
        if is_same {
            return Ok(());
        }
        let what = format!(
            "{path} block {block} is not the same on the master and in {}, although no WAL since {} \
             names it (LSN {} on the master, {} in the set)",
            self.parent.name(),
            self.parent.start(),
            look.lsn,
            found.map_or(Lsn(0), |found| found.lsn)
        );
        shared.sets.note_difference(&what)?;
        Err(SetError::PageDiffers { what })
    }

    /// Compares the looked at pages of a piece of the parent that begins here.
    fn compare_looks(
        &self,
        (shared, path): (&SetShared, &RelativePath),
        piece: Range<u64>,
        of_parent: &[u8],
    ) -> Result<(), SetError> {
        let before = |(block, _): &(u32, PageLook)| u64::from(*block) * PAGE_BYTES < piece.start;
        for (block, look) in &self.looks[self.looks.partition_point(before)..] {
            let offset = u64::from(*block) * PAGE_BYTES;
            if offset >= piece.end {
                break;
            }
            let at = usize::try_from(offset - piece.start).unwrap_or(usize::MAX);
            let page = of_parent.get(at..).unwrap_or_default();
            let page = &page[..page.len().min(page::PAGE_BYTES)];
            self.compare_page(shared, path, (*block, *look), page)?;
        }
        Ok(())
    }

    /// Reads what came of it, and compares what the parent holds with the parent's manifest and the looks on the way.
    pub(super) fn finish(
        self,
        shared: &SetShared,
        path: &RelativePath,
        made: BorrowedFd<'_>,
    ) -> Result<FileDigest, SetError> {
        if !self.patch.is_at_end() {
            let (path, why) = (path.clone(), "its patch is cut short");
            return Err(SetError::Entry { path, why });
        }
        let disk = &shared.sets.parent.disk;
        if self.shares_blocks {
            // A server that is made of the set would have it too, and its files would fall into pieces.
            let _ = disk.set_unshared_bytes(made, None);
        }
        self.parent
            .leave(&stored_path(path.clone()), self.listed.len);
        let end = self.len.max(self.listed.len);
        let slices = in_slices(end, |slice| self.look(shared, path, made, slice))?;
        let mut both = FoundSlice::default();
        for slice in slices {
            both.made.append(slice.made);
            both.listed.append(slice.listed);
        }
        let listed_crc32c = both.listed.crc32c;
        if listed_crc32c != self.listed.crc32c {
            let why = format!(
                "its CRC-32C is not its manifest's: expected {:08X}, found {listed_crc32c:08X}",
                self.listed.crc32c
            );
            return Err(self.unfit(path, why));
        }
        let (len, crc32c) = (self.len, both.made.crc32c);
        Ok(FileDigest { len, crc32c })
    }

    /// Reads a slice of what came of it, and what the parent has there.
    fn look(
        &self,
        shared: &SetShared,
        path: &RelativePath,
        made: BorrowedFd<'_>,
        slice: Range<u64>,
    ) -> Result<FoundSlice, SetError> {
        let (mut found, mut both) = (FoundSlice::default(), PieceReader::of(shared, path, made));
        for offset in slice.clone().step_by(PIECE_BYTES) {
            let stop = slice.end.min(offset + PIECE_BYTES as u64);
            let in_file = |len: u64| {
                let left = len.min(stop).saturating_sub(offset);
                usize::try_from(left).unwrap_or(PIECE_BYTES)
            };
            let (want, of_parent) = (in_file(self.len), in_file(self.listed.len));
            let behind = offset + want as u64;
            let here = |range: &Range<u64>| range.end <= offset;
            let written = &self.written[self.written.partition_point(here)..];
            let written = &written[..written.partition_point(|range| range.start < behind)];
            let is_untouched = written.is_empty() && want >= of_parent;
            both.may_read_until = slice.end.min(stop + AHEAD_BYTES);
            let were_same = found.made == found.listed;
            if !is_untouched && self.shares_blocks && want == of_parent {
                both.read_parents(self, offset, of_parent)?;
                both.overlay(offset, want, written)?;
            } else {
                both.read_made(self, offset, want, is_untouched && want == of_parent)?;
                match is_untouched {
                    true => both.old.clear(),
                    false => both.read_parents(self, offset, of_parent)?,
                }
            }
            let parents = match is_untouched {
                true => &both.new[..of_parent],
                false => &both.old,
            };
            self.compare_looks((shared, path), offset..stop, parents)?;
            found.made.update(&both.new);
            match is_untouched {
                true if want == of_parent && were_same => found.listed = found.made,
                true => found.listed.update(&both.new[..of_parent]),
                false => found.listed.update(&both.old),
            }
        }
        Ok(found)
    }

    fn unreadable(&self, path: &RelativePath, error: &io::Error) -> SetError {
        self.unfit(path, format!("it cannot be read: {error}"))
    }

    fn unfit(&self, path: &RelativePath, why: String) -> SetError {
        SetError::ParentUnfit {
            set: self.parent.name().to_string(),
            path: path.clone(),
            why,
        }
    }
}

/// Reads a file and its parent's in turn, a piece of each.
struct PieceReader<'a> {
    shared: &'a SetShared,
    path: &'a RelativePath,
    made: BorrowedFd<'a>,
    new: Vec<u8>,
    old: Vec<u8>,
    /// How far the disk was asked to read ahead, and how far it may be.
    ahead_end: u64,
    may_read_until: u64,
}

impl<'a> PieceReader<'a> {
    const fn of(shared: &'a SetShared, path: &'a RelativePath, made: BorrowedFd<'a>) -> Self {
        PieceReader {
            shared,
            path,
            made,
            new: Vec::new(),
            old: Vec::new(),
            ahead_end: 0,
            may_read_until: 0,
        }
    }

    /// Reads what the parent has here.
    fn read_parents(&mut self, of: &PatchedFile, offset: u64, len: usize) -> Result<(), SetError> {
        self.read_ahead(of.source.as_fd(), offset);
        let disk = &*self.shared.sets.parent.disk;
        self.old.resize(len, 0);
        let read = read_full(disk, of.source.as_fd(), &mut self.old, offset);
        let read_bytes = read.map_err(|error| of.unreadable(self.path, &error))?;
        self.old.truncate(read_bytes);
        Ok(())
    }

    /// Has the new piece be the parent's, whose blocks it shares, but for what was written: all of it read of the new file
    /// would come from the disk twice.
    fn overlay(&mut self, offset: u64, len: usize, written: &[Range<u64>]) -> Result<(), SetError> {
        self.new.clone_from(&self.old);
        self.new.resize(len, 0);
        for range in written {
            let (from, to) = (range.start.max(offset), range.end.min(offset + len as u64));
            let place = |at: u64| usize::try_from(at - offset).unwrap_or(len);
            let own = &mut self.new[place(from)..place(to)];
            let disk = &*self.shared.sets.parent.disk;
            let own_bytes = own.len();
            let read = read_full(disk, self.made, own, from);
            if read.map_err(|error| self.failed(error))? < own_bytes {
                return Err(self.failed(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Ok(())
    }

    /// Reads what came of it.
    fn read_made(
        &mut self,
        of: &PatchedFile,
        offset: u64,
        len: usize,
        is_parents: bool,
    ) -> Result<(), SetError> {
        self.new.resize(len, 0);
        let disk = &*self.shared.sets.parent.disk;
        // The blocks are the same. Whoever made the parent may have left them in memory; what is not there is read of the
        // new file, on which the next backup is built.
        let is_parents = is_parents && of.shares_blocks;
        let source = of.source.as_fd();
        if is_parents && disk.read_in_memory(source, &mut self.new, offset) == Some(len) {
            return Ok(());
        }
        self.read_ahead(self.made, offset);
        let disk = &*self.shared.sets.parent.disk;
        let error = match read_full(disk, self.made, &mut self.new, offset) {
            Ok(read_bytes) if read_bytes == len => return Ok(()),
            Ok(_) => io::ErrorKind::UnexpectedEof.into(),
            Err(error) => error,
        };
        match is_parents {
            true => Err(of.unreadable(self.path, &error)),
            false => Err(self.failed(error)),
        }
    }

    /// The disk reads on while this piece is looked at.
    fn read_ahead(&mut self, file: BorrowedFd<'_>, offset: u64) {
        files::read_ahead(file, self.ahead_end.max(offset)..self.may_read_until);
        self.ahead_end = self.may_read_until;
    }

    fn failed(&self, error: io::Error) -> SetError {
        self.shared.failure("read", self.path, error)
    }
}

fn patch_refused(path: &RelativePath, fault: walmgr_protocol::patch::PatchFault) -> SetError {
    tracing::debug!("{path}: {fault}");
    SetError::Entry {
        path: path.clone(),
        why: "its patch goes back, or beyond the file",
    }
}
