//! A partial segment becomes a finished one: a push brings the rest and has the whole checked.
//! Never writes to a partial segment: that is the stream's alone. Invariant: a final name is given
//! only to a file whose every byte is what the push offered.
//!
//! | of the segment was shipped | the push |
//! |---|---|
//! | all | writes nothing; the partial segment itself gets the final name |
//! | the beginning | writes a file of its own: the beginning copied, then what the client sends |
//! | other bytes, or none | is a push like any other |
//!
//! A push that wrote into the stream's file would change bytes that the stream has appended and not
//! synced yet, whose sync would then acknowledge them unseen; and the stream, which clears what
//! stands behind its own bytes, would take from the push what it has counted already.

use std::sync::Arc;

use walmgr_protocol::compress::UnpackedBlock;
use walmgr_protocol::names::{SegmentName, WalFileName};

use super::acknowledged;
use super::anew::DIFFERS;
use super::extents::{CheckedRecords, PartialExtent};
use super::file::PartialFile;
use super::freeze::is_frozen;
use super::records::{scanner_at, start_of};
use crate::store::apart_notes::is_unproven;
use crate::store::binding::Binding;
use crate::store::durable::{Existing, Linked, SyncedTemporary, Temporary};
use crate::store::error::StoreError;
use crate::store::folder::Folder;
use crate::store::incoming::{FileSealed, Incoming};
use crate::store::joined::Joined;
use crate::store::shared::{Archive, Shared, StoredCheck, StoredUnderName};
use crate::wal::scan::Scanner;
use crate::wal::segment::{SegmentFault, Verify};
use crate::wal::segment_map::{MapReader, SegmentMap};

/// How often the final name may turn out taken by a file that is then set aside or vanishes.
const FINISH_ATTEMPTS_MAX: u32 = 3;

/// A partial segment whose rest is arriving. Dropping it leaves it partial.
pub struct Finishing {
    shared: Arc<Shared>,
    segment: SegmentName,
    file: PartialFile,
    verify: Verify,
    /// Who sends the rest.
    by: String,
    prefix: Prefix,
    /// The file of the push itself, from the first byte that the client sent.
    own: Option<Incoming>,
}

/// What is held of the segment.
struct Prefix {
    bytes: u64,
    crc32: u32,
    /// Whether it was found to be records while it was shipped, not by reading it now.
    remembered: bool,
}

impl Prefix {
    /// What this process checked and synced when it was shipped.
    fn remembered(checked: CheckedRecords, size: u64) -> Prefix {
        let CheckedRecords { bytes, crc32, .. } = checked;
        let mut crc = crc32fast::Hasher::new_with_initial_len(crc32, bytes);
        if checked.switched {
            // The server writes zeros behind a switch; whether they are there the seal finds out.
            let zeros = [0_u8; 16 << 10];
            let mut left = size - bytes;
            while left > 0 {
                let counted =
                    usize::try_from(left).map_or(zeros.len(), |left| left.min(zeros.len()));
                crc.update(&zeros[..counted]);
                left -= counted as u64;
            }
        }
        Prefix {
            bytes: if checked.switched { size } else { bytes },
            crc32: crc.finalize(),
            remembered: true,
        }
    }

    /// What the file says.
    fn read(
        file: &PartialFile,
        segment: SegmentName,
        binding: &Binding,
    ) -> Result<Prefix, StoreError> {
        let scanner = scanner_at(segment, start_of(segment, binding), binding);
        // What is missing behind damage the client sends.
        let end = file.find_end(binding, scanner)?.end;
        let bytes = match end.switched {
            Some(_) => binding.segment_size.bytes(),
            None => end.held_bytes,
        };
        Ok(Prefix {
            bytes,
            crc32: file.crc32(bytes)?,
            remembered: false,
        })
    }
}

impl Archive {
    /// What is held of a segment that a client offers and that is not finished, if it is worth
    /// continuing. What is frozen stays as it is.
    pub fn held_prefix(
        &self,
        name: WalFileName,
        verify: Verify,
    ) -> Result<Option<Finishing>, StoreError> {
        let WalFileName::Segment(segment) = name else {
            return Ok(None);
        };
        let shared = Arc::clone(&self.shared);
        shared.monitor.check()?;
        let begun = Finishing::begin(&shared, segment, verify);
        shared.monitor.watch(begun)
    }

    /// Clears away the partial segment of a file that is finished. If the partial segment is not the file's
    /// beginning, it is kept under another name, with an alarm, and this returns `true`.
    pub fn settle_partial(&self, name: WalFileName) -> Result<bool, StoreError> {
        let WalFileName::Segment(segment) = name else {
            return Ok(false);
        };
        let shared = &self.shared;
        let settled = shared.settle_one(segment);
        // Segments that came early count from here on if this one leads to them; what was shipped of them is cleared.
        let settled = settled.and_then(|differs| {
            let proven = shared.settle_early(Some(segment))?;
            shared.settle_shipped(&proven)?;
            Ok(differs)
        });
        shared.monitor.watch(settled)
    }
}

impl Shared {
    /// Clears away the partial segments of files that are known by now to belong where they are.
    pub(in crate::store) fn settle_shipped(
        &self,
        segments: &[SegmentName],
    ) -> Result<(), StoreError> {
        for segment in segments {
            self.settle_one(*segment)?;
        }
        Ok(())
    }

    fn settle_one(&self, segment: SegmentName) -> Result<bool, StoreError> {
        let _guard = self.names.lock(WalFileName::Partial(segment));
        let binding = self.binding()?;
        let settled = settle(&self.completed, &self.partial, &binding, segment);
        self.partials.forget(segment);
        settled
    }
}

impl Finishing {
    fn begin(
        shared: &Arc<Shared>,
        segment: SegmentName,
        verify: Verify,
    ) -> Result<Option<Self>, StoreError> {
        let binding = shared.binding()?;
        let size = binding.segment_size.bytes();
        let _guard = shared.names.lock(WalFileName::Partial(segment));
        let Some(file) = PartialFile::open(&shared.partial, segment, size)? else {
            return Ok(None);
        };
        // What an old master goes on to write stays apart from what counts of the segment.
        if is_frozen(&shared.partial, segment.timeline())? || shared.is_left(segment.timeline())? {
            return Ok(None);
        }
        let prefix = match shared.partials.of(segment).checked {
            Some(checked) => Prefix::remembered(checked, size),
            None => Prefix::read(&file, segment, &binding)?,
        };
        Ok((prefix.bytes > 0).then(|| Finishing {
            shared: Arc::clone(shared),
            segment,
            file,
            verify,
            by: String::new(),
            prefix,
            own: None,
        }))
    }

    /// Remembers who sends the rest, for the note that it may get.
    #[must_use]
    pub fn brought_by(mut self, by: &str) -> Self {
        by.clone_into(&mut self.by);
        self
    }

    /// Bytes held from the segment's beginning, and their CRC-32.
    pub const fn prefix(&self) -> (u64, u32) {
        (self.prefix.bytes, self.prefix.crc32)
    }

    /// Writes bytes behind the prefix and the ones before. They are checked with the whole.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.append(|own| own.write(bytes))
    }

    /// Writes a block as it travelled behind the prefix and the bytes before. They are checked with the whole.
    pub fn write_block(&mut self, block: &UnpackedBlock<'_>) -> Result<(), StoreError> {
        self.append(|own| own.write_block(block))
    }

    fn append(
        &mut self,
        append: impl FnOnce(&mut Incoming) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut own = match self.own.take() {
            Some(own) => own,
            None => {
                let copied = self.copy_prefix();
                self.shared.monitor.watch(copied)?
            }
        };
        append(&mut own)?;
        self.own = Some(own);
        Ok(())
    }

    /// A file of its own that begins with the prefix. Its records are checked whatever the client
    /// asked for: where the stream has shipped other bytes, only records that hold win.
    fn copy_prefix(&self) -> Result<Incoming, StoreError> {
        let (shared, name) = (&self.shared, WalFileName::Segment(self.segment));
        let size = shared.binding()?.segment_size.bytes();
        let own = Incoming::begin(Arc::clone(shared), name, size, Verify::Records)?;
        let mut own = own.brought_by(&self.by);
        let (mut crc, mut copied) = (crc32fast::Hasher::new(), Ok(()));
        self.file.read(0..self.prefix.bytes, |piece| {
            crc.update(piece);
            copied = own.write(piece);
            copied.is_ok()
        })?;
        if copied.is_ok() && crc.finalize() == self.prefix.crc32 {
            return Ok(own);
        }
        // The next attempt reads what is there.
        self.forget_checked();
        Err(self.not_what_was_shipped())
    }

    fn forget_checked(&self) {
        let forget = |extent: &mut PartialExtent| extent.checked = None;
        self.shared.partials.change_known(self.segment, forget);
    }

    fn not_what_was_shipped(&self) -> StoreError {
        StoreError::Rotten {
            segment: self.segment,
        }
    }

    /// Checks the whole segment and makes it durable under its final name.
    pub fn seal(mut self, len: u64, crc32: u32) -> Result<FileSealed, StoreError> {
        if let Some(own) = self.own.take() {
            return own.seal(len, crc32);
        }
        let shared = Arc::clone(&self.shared);
        let sealed = self.try_seal(len, crc32);
        shared.monitor.outcome(sealed)
    }

    fn try_seal(self, len: u64, crc32: u32) -> Result<FileSealed, StoreError> {
        let (shared, name) = (&self.shared, WalFileName::Segment(self.segment));
        let (guard, _next) = shared.lock_with_next(name);
        let _partial = shared.names.lock(WalFileName::Partial(self.segment));
        shared.monitor.check()?;
        // Of one whose scanner is forgotten, nobody knows what replay may not get past in it, or how it ends.
        let shipped = self.is_shipped(len, crc32)?
            && (self.verify == Verify::Off
                || shared.carried.of(self.segment, self.verify).is_some());
        let mut joined = Joined::default();
        if self.file.is_in_place()? {
            if !shipped {
                self.read_anew_from_disk()?;
            }
            let scanner = self.check(len, crc32, shipped)?;
            let read = |each: &mut dyn FnMut(&[u8]) -> bool| self.file.read(0..len, each);
            joined = shared.join(name, self.verify, scanner, read)?;
            if joined.map.is_none() && self.verify != Verify::Off {
                joined.map = self.map(len)?;
            }
        }
        let admission =
            shared.admit((name, (len, crc32)), (&[], joined.end()), (&self.by, false))?;
        for _ in 0..FINISH_ATTEMPTS_MAX {
            // Whoever was faster took the file with its name.
            if self.file.is_in_place()? && shared.make_way(name, &joined)? {
                let (from, to) = (&shared.partial, &shared.completed);
                let linked = match shared.compression().level() {
                    Some(_) => Linked::Impossible,
                    None => from.finish_into(to, self.segment, (len, crc32))?,
                };
                match linked {
                    Linked::Durable(durable) => {
                        shared.keep(&durable, joined, &self.by);
                        shared.partials.forget(self.segment);
                        acknowledged::remove(&shared.partial, self.segment)?;
                        shared.admitted(&admission, name);
                        return Ok(FileSealed::Stored(durable));
                    }
                    Linked::Impossible => {
                        if let Some(durable) = self.copy()?.publish(name)? {
                            self.remove_partial()?;
                            shared.keep(&durable, joined, &self.by);
                            shared.admitted(&admission, name);
                            return Ok(FileSealed::Stored(durable));
                        }
                    }
                    Linked::Taken => {}
                }
            }
            match shared.held(&guard, len, crc32, self.verify)? {
                StoredUnderName::Identical(durable) => return Ok(FileSealed::Stored(durable)),
                StoredUnderName::Different { .. }
                    if self.file.is_in_place()?
                        && shared.gives_way(name, &[], joined.is_led)? =>
                {
                    shared.note_joined(name, &joined)?;
                    let (content, by) = ((&[][..], joined.end()), self.by.as_str());
                    let durable = shared.take_place(name, self.copy()?, &admission, content, by)?;
                    self.remove_partial()?;
                    shared.keep(&durable, joined, &self.by);
                    shared.admitted(&admission, name);
                    return Ok(FileSealed::Stored(durable));
                }
                StoredUnderName::Different { len, crc32 } => {
                    return Ok(FileSealed::Conflict { len, crc32 });
                }
                StoredUnderName::Absent => {}
            }
        }
        Err(StoreError::GivenUp { name })
    }

    /// Syncs the content, and has what is read next come from the disk: what a failed sync of an earlier process
    /// has lost may still stand in the kernel's memory.
    fn read_anew_from_disk(&self) -> Result<(), StoreError> {
        let folder = &self.shared.partial;
        folder.sync_content(self.file.handle(), &self.segment.to_string())?;
        // Advice only, as for a finished file.
        let _ = folder.disk.forget_cache(self.file.handle());
        Ok(())
    }

    /// What its records change, which were checked before.
    fn map(&self, len: u64) -> Result<Option<SegmentMap>, StoreError> {
        let binding = self.shared.binding()?;
        let mut reader = MapReader::new(self.segment, &binding.expected());
        self.file.read(0..len, |piece| reader.feed(piece))?;
        let (map, end) = reader.finish();
        let start = start_of(self.segment, &binding);
        Ok((end.0 - start.0 >= len).then_some(map))
    }

    /// Whether all of it was shipped, checked and synced, and nothing has changed it since.
    fn is_shipped(&self, len: u64, crc32: u32) -> Result<bool, StoreError> {
        let size = self.shared.binding()?.segment_size.bytes();
        let extent = self.shared.partials.of(self.segment);
        let known = extent
            .checked
            .map(|checked| Prefix::remembered(checked, size));
        let is_this = |prefix: &Prefix| (prefix.bytes, prefix.crc32) == (len, crc32);
        Ok(self.prefix.remembered && is_this(&self.prefix) && known.as_ref().is_some_and(is_this))
    }

    /// Checks the whole file against length and CRC-32. Records that were shipped were checked as they came, so a
    /// file that was shipped to its end is not walked through again; its CRC-32 may have been computed before (see
    /// `read_back`).
    ///
    /// Returns the scanner that walked to the file's end, if one did.
    fn check(&self, len: u64, crc32: u32, shipped: bool) -> Result<Option<Scanner>, StoreError> {
        let name = WalFileName::Segment(self.segment);
        let size = self.shared.binding()?.segment_size.bytes();
        let (found, walked) = match shipped {
            true => (self.shipped_crc32(size)?, Ok(None)),
            false => self.read_records(size)?,
        };
        let mismatch = |what, expected, found| StoreError::Mismatch {
            name,
            what,
            expected,
            found,
        };
        if len != size {
            return Err(mismatch("length", len, size));
        }
        if found != crc32 && shipped {
            // What this process remembers is not what the disk has: the next attempt reads it.
            self.forget_checked();
            return Err(self.not_what_was_shipped());
        }
        if found != crc32 {
            return Err(mismatch("CRC-32", crc32.into(), found.into()));
        }
        walked.map_err(|fault| StoreError::of_fault(name, &fault))
    }

    /// The CRC-32 of the file, which may have been read already.
    fn shipped_crc32(&self, size: u64) -> Result<u32, StoreError> {
        if let Some(read_back) = self.shared.partials.of(self.segment).read_back
            && read_back.is_of(&self.file)?
        {
            return Ok(read_back.crc32);
        }
        self.file.crc32(size)
    }

    /// The CRC-32 of the file, and what is wrong with its records or where they led.
    fn read_records(
        &self,
        size: u64,
    ) -> Result<(u32, Result<Option<Scanner>, SegmentFault>), StoreError> {
        let name = WalFileName::Segment(self.segment);
        let expected = self.shared.binding()?.expected();
        let mut check = StoredCheck::new(name, &expected, self.verify).noting_changes();
        let mut crc = crc32fast::Hasher::new();
        self.file.read(0..size, |piece| {
            crc.update(piece);
            check.update(piece);
            true
        })?;
        Ok((crc.finalize(), check.finish_at_end()))
    }

    /// For a segment that is stored packed, for two file systems, and where another file has to make way: the bytes go
    /// over on this host at least.
    fn copy(&self) -> Result<SyncedTemporary, StoreError> {
        let size = self.shared.binding()?.segment_size.bytes();
        let text = self.segment.to_string();
        let (completed, form) = (&self.shared.completed, self.shared.compression());
        let mut temporary = Temporary::create_in(completed, (&text, size), form)?;
        let mut copied = Ok(());
        self.file.read(0..size, |piece| {
            copied = temporary.append(piece);
            copied.is_ok()
        })?;
        copied?;
        temporary.sync()
    }

    /// Behind the proof that the finished one is there.
    fn remove_partial(&self) -> Result<(), StoreError> {
        self.shared.partial.remove(&self.segment.to_string())?;
        self.shared.partials.forget(self.segment);
        acknowledged::remove(&self.shared.partial, self.segment)
    }
}

/// Removes a partial segment that is finished under its final name, or keeps it under another one
/// if it is not that file's beginning, and says so. The name must be locked, or nobody else be there.
pub(in crate::store) fn settle(
    completed: &Arc<Folder>,
    partial: &Arc<Folder>,
    binding: &Binding,
    segment: SegmentName,
) -> Result<bool, StoreError> {
    // What an old master finished goes further than the timeline does; the part that counts stays.
    // One that nobody follows may be forged, and says nothing about what was shipped.
    if is_unproven(completed, WalFileName::Segment(segment))? {
        return Ok(false);
    }
    let (text, size) = (segment.to_string(), binding.segment_size.bytes());
    let (Some(ours), Some(finished)) = (partial.stat_at(&text)?, completed.stat_at(&text)?) else {
        return Ok(false);
    };
    // A crash between the two names of one file.
    if ours.identity == finished.identity {
        partial.remove(&text)?;
        return acknowledged::remove(partial, segment).map(|()| false);
    }
    let Some(file) = PartialFile::open(partial, segment, size)? else {
        return Ok(false);
    };
    let scanner = scanner_at(segment, start_of(segment, binding), binding);
    let proven = file.find_end(binding, scanner)?;
    let start = start_of(segment, binding);
    // Of a damaged one as much as is known to have been there counts.
    let known = proven.damage.map_or(start, |damage| damage.known_to());
    let known_bytes = known.0.saturating_sub(start.0).min(size);
    let held_bytes = proven.end.held_bytes.max(known_bytes);
    let expected = file.crc32(held_bytes)?;
    let name = WalFileName::Segment(segment);
    let Some(existing) = Existing::open(completed, name)? else {
        return Ok(false);
    };
    let (mut crc, mut left) = (crc32fast::Hasher::new(), held_bytes);
    let content = existing.read(|piece| {
        let counted = usize::try_from(left).map_or(piece.len(), |left| left.min(piece.len()));
        crc.update(&piece[..counted]);
        left -= counted as u64;
    })?;
    // Nothing of a damaged one says that what was shipped is in it.
    if content.broken.is_some() {
        return Ok(false);
    }
    // First, as a partial segment without one is believed no less.
    acknowledged::remove(partial, segment)?;
    if left == 0 && crc.finalize() == expected {
        return partial.remove(&text).map(|()| false);
    }
    let aside = partial.set_aside_as(&text, DIFFERS)?;
    tracing::error!(
        "ALARM: the archived {segment} differs from the partial segment, which is kept as {aside}"
    );
    Ok(true)
}
