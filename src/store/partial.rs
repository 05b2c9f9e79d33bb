//! The segments that are still being written on the master, record by record: `partial_wals`.
//! Never acknowledges before the records are durable, and never gives a partial segment its final
//! name but for a push that brought the rest. Invariant: what is durable of one is found by
//! reading its records; there is no state beside the file.
//!
//! ```text
//! create, allocate         a crash leaves nothing, or a file of zeros: no records
//! check, write behind the end    a crash leaves whole records, or the beginning of one: the end
//!                          is found before it, and what is behind is cleared before the next write
//! sync the data            from here on the records are acknowledged
//! sync the folder          once, before the first acknowledgement of a new file
//! look for a freeze        behind one nothing is acknowledged any more
//! ```

mod file;
mod finish;
mod freeze;
mod read_back;
#[cfg(test)]
mod tests;

use finish::settle;

pub use finish::Finishing;
pub(super) use freeze::partial_end;
pub use freeze::{Freeze, FrozenSegment, OwnSegment, PartialEnd, PartialWals};

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use walmgr_protocol::message::partial::{At, Open};
use walmgr_protocol::names::{Lsn, SegmentName, TimelineId, WalFileName};

use self::file::{End, PartialFile, scanner_at, start_of};
use self::read_back::ReadBack;
use super::archive::{Archive, Shared, finished_names};
use super::binding::Binding;
use super::durable::{DurableRecords, Existing};
use super::error::StoreError;
use super::folder::Folder;
use crate::wal::scan::{Scanner, Step};

/// What this process knows of a partial segment that it has written to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Extent {
    /// Bytes that were acknowledged; nobody may write other bytes there.
    held_bytes: u64,
    /// Whether a push that did not come to its end may have left bytes behind them.
    disturbed: bool,
    /// What is known of the acknowledged bytes without reading them again.
    checked: Option<Checked>,
    /// What the whole file was when it was read back.
    read_back: Option<ReadBack>,
}

/// Bytes from a segment's beginning that this process has found to be records, and has synced.
#[derive(Debug, Clone, Copy)]
pub(super) struct Checked {
    bytes: u64,
    crc32: u32,
    /// Whether the last record is a switch: what follows has to be zeros.
    switched: bool,
}

impl Checked {
    /// Whether nothing of the segment is missing.
    const fn is_whole(&self, size: u64) -> bool {
        self.switched || self.bytes == size
    }
}

/// The partial segments written to since the start.
#[derive(Debug, Default)]
pub(super) struct Extents {
    extents: Mutex<HashMap<SegmentName, Extent>>,
    reading_back: read_back::Busy,
}

impl Extents {
    fn of(&self, segment: SegmentName) -> Extent {
        self.map().get(&segment).copied().unwrap_or_default()
    }

    fn change(&self, segment: SegmentName, change: impl FnOnce(&mut Extent)) {
        change(self.map().entry(segment).or_default());
    }

    /// The same, unless nothing is known of it any more.
    fn change_known(&self, segment: SegmentName, change: impl FnOnce(&mut Extent)) {
        if let Some(extent) = self.map().get_mut(&segment) {
            change(extent);
        }
    }

    fn forget(&self, segment: SegmentName) {
        self.map().remove(&segment);
    }

    fn map(&self) -> MutexGuard<'_, HashMap<SegmentName, Extent>> {
        // Each change is one assignment, so a panic elsewhere cannot have left half of one.
        self.extents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the archive stands on a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The highest finished segment.
    pub newest_finished: Option<SegmentName>,
    /// The lowest partial segment behind it.
    pub oldest_partial: Option<SegmentName>,
    /// The highest partial segment behind it.
    pub newest_partial: Option<SegmentName>,
}

/// The one stream of records into the archive; whoever has it makes sure that there is no other.
pub struct PartialStream {
    shared: Arc<Shared>,
    binding: Binding,
    timeline: TimelineId,
    open: Option<OpenSegment>,
    /// The scanner as it left the segment before the named one.
    carried: Option<(SegmentName, Scanner)>,
}

struct OpenSegment {
    segment: SegmentName,
    start: Lsn,
    /// `None` for a finished one, which can only be compared.
    file: Option<PartialFile>,
    /// The scanner at the segment's beginning, for a rewrite.
    first_scanner: Scanner,
    scanner: Scanner,
    /// Where the next append begins.
    next_offset: u64,
    held_bytes: u64,
    /// CRC-32 of everything before `next_offset`, if it was all seen.
    crc: Option<crc32fast::Hasher>,
    /// Bytes below `held_bytes` are compared, not written.
    comparing: bool,
    last_switch: Option<Lsn>,
    /// The end of the last whole record, as far as the sender states it too.
    end: Lsn,
    folder_synced: bool,
}

impl Archive {
    /// Begins the stream of a timeline.
    ///
    /// Refused when the archive has a newer timeline: then this master is one of the past, and when
    /// the timeline is frozen. One that came from another one needs its history in the archive
    /// first.
    pub fn partial_stream(
        &self,
        timeline: TimelineId,
    ) -> Result<(PartialStream, Standing), StoreError> {
        let shared = &self.shared;
        shared.monitor.check()?;
        freeze::refuse(&shared.partial, timeline)?;
        let finished = finished_names(&shared.completed)?;
        let partials = partial_names(&shared.partial)?;
        let timelines = finished.keys().map(|name| name.timeline());
        let newest = timelines
            .chain(partials.iter().map(|name| name.timeline()))
            .max();
        if let Some(newest) = newest.filter(|newest| *newest > timeline) {
            let why = format!(
                "the master is on timeline {timeline}, but the archive has timeline {newest} already"
            );
            return Err(StoreError::Diverged { why });
        }
        if timeline.number() > 1 && !finished.contains_key(&WalFileName::History(timeline)) {
            return Err(StoreError::HistoryMissing { timeline });
        }
        let segments = finished.keys().filter_map(|name| match name {
            WalFileName::Segment(segment) => Some(*segment),
            _ => None,
        });
        let newest_finished = segments.filter(|name| name.timeline() == timeline).max();
        let mut unfinished = (partials.into_iter())
            .filter(|name| name.timeline() == timeline && Some(*name) > newest_finished);
        let oldest_partial = unfinished.next();
        let standing = Standing {
            newest_finished,
            oldest_partial,
            newest_partial: unfinished.next_back().or(oldest_partial),
        };
        let stream = PartialStream {
            shared: Arc::clone(shared),
            binding: shared.binding()?,
            timeline,
            open: None,
            carried: None,
        };
        Ok((stream, standing))
    }

    /// Every partial segment and where its records end; reads all of them.
    pub fn partial_ends(&self) -> Result<Vec<(SegmentName, Lsn)>, StoreError> {
        let binding = self.shared.binding()?;
        ends(&self.shared.partial, &binding)
    }
}

impl PartialStream {
    /// Goes on with this segment and says what is held of it, all of that durable.
    pub fn open(&mut self, open: &Open) -> Result<At, StoreError> {
        let opened = self.try_open(open);
        self.shared.monitor.watch(opened)
    }

    /// From here on the open segment is appended from its beginning, and compared with what is
    /// held: the first difference ends what counts.
    pub fn rewrite(&mut self) -> Result<(), StoreError> {
        let open = self.opened()?;
        if open.file.is_none() {
            let why = format!(
                "the master's {} is not the one that was archived",
                open.segment
            );
            return Err(StoreError::Diverged { why });
        }
        open.scanner = open.first_scanner.clone();
        open.end = open.scanner.valid_end();
        open.next_offset = 0;
        open.crc = None;
        open.comparing = true;
        Ok(())
    }

    /// Checks and writes bytes behind the ones before; `end` is where the sender says that the
    /// records in them end. Nothing of it counts before [`PartialStream::sync`].
    pub fn append(&mut self, offset: u64, end: Lsn, bytes: &[u8]) -> Result<(), StoreError> {
        let appended = self.try_append(offset, end, bytes);
        self.shared.monitor.watch(appended)
    }

    /// Makes everything appended durable.
    pub fn sync(&mut self) -> Result<DurableRecords, StoreError> {
        let shared = Arc::clone(&self.shared);
        let size = self.binding.segment_size.bytes();
        let open = self.opened()?;
        let file = open.file()?;
        let synced = file
            .folder()
            .sync_records(file.handle(), open.segment, open.end)
            .and_then(|proof| {
                if !open.folder_synced {
                    shared.partial.sync()?;
                }
                Ok(proof)
            });
        let proof = shared.monitor.outcome(synced)?;
        // Behind the sync: whoever freezes copies what was written before it did.
        freeze::refuse(&shared.partial, open.segment.timeline())?;
        open.folder_synced = true;
        if !open.comparing {
            open.held_bytes = open.next_offset;
            let (held_bytes, checked) = (open.held_bytes, open.checked());
            (shared.partials).change(open.segment, |extent| {
                extent.held_bytes = held_bytes;
                extent.checked = checked;
                extent.read_back = None;
            });
            if checked.is_some_and(|checked| checked.is_whole(size)) {
                read_back::begin(&shared.partial, &shared.partials, open.segment, size);
            }
        }
        self.carry();
        Ok(proof)
    }

    fn opened(&mut self) -> Result<&mut OpenSegment, StoreError> {
        let timeline = self.timeline;
        self.open.as_mut().ok_or_else(|| StoreError::Diverged {
            why: format!("no segment of timeline {timeline} is open"),
        })
    }

    fn try_open(&mut self, open: &Open) -> Result<At, StoreError> {
        let (segment, binding) = (open.segment, self.binding);
        if segment.timeline() != self.timeline || segment.number(binding.segment_size).is_none() {
            let timeline = self.timeline;
            let why = format!("{segment} is no segment of timeline {timeline}");
            return Err(StoreError::Diverged { why });
        }
        self.open = None;
        self.shared.monitor.check()?;
        freeze::refuse(&self.shared.partial, self.timeline)?;
        let start = start_of(segment, &binding);
        let first_scanner = match &self.carried {
            Some((next, scanner)) if *next == segment => scanner.clone(),
            _ => scanner_at(segment, start, &binding),
        };
        if let Some((opened, at)) = self.open_finished(open, &first_scanner)? {
            freeze::refuse(&self.shared.partial, self.timeline)?;
            self.open = Some(opened);
            return Ok(at);
        }
        let shared = Arc::clone(&self.shared);
        let _guard = shared.names.lock(WalFileName::Partial(segment));
        let size = binding.segment_size.bytes();
        let file = match PartialFile::open(&shared.partial, segment, size)? {
            Some(file) => file,
            None => PartialFile::create(&shared.partial, segment, size)?,
        };
        let end = self.settled_end(&file, segment, first_scanner.clone())?;
        let common_bytes = end.held_bytes.min(open.bytes);
        let common_crc32 = file.crc32(common_bytes)?;
        let crc = crc32fast::Hasher::new_with_initial_len(common_crc32, common_bytes);
        let opened = OpenSegment {
            segment,
            start,
            file: Some(file),
            first_scanner,
            scanner: end.scanner,
            next_offset: end.held_bytes,
            held_bytes: end.held_bytes,
            crc: (common_bytes == end.held_bytes).then_some(crc),
            comparing: false,
            last_switch: end.switched,
            end: end.lsn,
            folder_synced: true,
        };
        (shared.partials).change(segment, |extent| *extent = opened.extent());
        // A push may have written behind what was frozen while this one waited for the name.
        freeze::refuse(&shared.partial, self.timeline)?;
        self.open = Some(opened);
        self.carry();
        Ok(At {
            held_bytes: end.held_bytes,
            common_bytes,
            common_crc32,
        })
    }

    /// Where the records of a segment end, with all of them durable and zeros behind them.
    fn settled_end(
        &self,
        file: &PartialFile,
        segment: SegmentName,
        scanner: Scanner,
    ) -> Result<End, StoreError> {
        let (folder, name) = (&self.shared.partial, segment.to_string());
        // What is read next may be in memory only; it is about to be called durable.
        folder.sync_content(file.handle(), &name)?;
        folder.sync()?;
        let end = file.find_end(&self.binding, scanner)?;
        if !file.is_clear_behind(end.held_bytes)? {
            tracing::info!(
                "{segment}: what is behind its last record, which ends at {}, is cleared",
                end.lsn
            );
            file.clear_behind(end.held_bytes)?;
            folder.sync_content(file.handle(), &name)?;
        }
        Ok(end)
    }

    /// A segment that was archived already is compared, so that a master from another past is
    /// told from one that only repeats itself.
    fn open_finished(
        &self,
        open: &Open,
        first_scanner: &Scanner,
    ) -> Result<Option<(OpenSegment, At)>, StoreError> {
        let name = WalFileName::Segment(open.segment);
        let _guard = self.shared.names.lock(name);
        let Some(existing) = Existing::open(&self.shared.completed, name)? else {
            return Ok(None);
        };
        let mut crc = crc32fast::Hasher::new();
        let mut left = open.bytes;
        let content = existing.read(|piece| {
            let counted = usize::try_from(left).map_or(piece.len(), |left| left.min(piece.len()));
            crc.update(&piece[..counted]);
            left -= counted as u64;
        })?;
        let at = At {
            held_bytes: content.len,
            common_bytes: open.bytes - left,
            common_crc32: crc.finalize(),
        };
        let start = start_of(open.segment, &self.binding);
        let opened = OpenSegment {
            segment: open.segment,
            start,
            file: None,
            first_scanner: first_scanner.clone(),
            scanner: first_scanner.clone(),
            next_offset: content.len,
            held_bytes: content.len,
            crc: None,
            comparing: false,
            last_switch: None,
            end: start,
            folder_synced: true,
        };
        Ok(Some((opened, at)))
    }

    fn try_append(&mut self, offset: u64, end: Lsn, bytes: &[u8]) -> Result<(), StoreError> {
        let shared = Arc::clone(&self.shared);
        shared.monitor.check()?;
        let open = self.opened()?;
        let segment = open.segment;
        let _guard = shared.names.lock(WalFileName::Partial(segment));
        if !open.file()?.is_in_place()? {
            return Err(StoreError::Finished { segment });
        }
        freeze::refuse(&shared.partial, segment.timeline())?;
        if shared.partials.of(segment).disturbed {
            // What was appended and not synced yet is not held, and is still wanted.
            let wanted_bytes = open.held_bytes.max(open.next_offset);
            open.file()?.clear_behind(wanted_bytes)?;
            shared
                .partials
                .change(segment, |extent| extent.disturbed = false);
        }
        let boundaries = open.check(bytes, end)?;
        match open.comparing {
            true => {
                let dropped = open.compare(offset, bytes, &boundaries)?;
                if let Some(kept) = dropped {
                    shared.partials.change(segment, |extent| {
                        extent.held_bytes = kept;
                        extent.checked = None;
                    });
                    drop_later(&shared.partial, segment)?;
                }
            }
            false => {
                open.file()?.write(offset, bytes)?;
                if let Some(crc) = &mut open.crc {
                    crc.update(bytes);
                }
            }
        }
        open.next_offset = offset + bytes.len() as u64;
        Ok(())
    }

    /// Keeps the scanner for the next segment once this one is at its end.
    fn carry(&mut self) {
        let size = self.binding.segment_size;
        let Some(open) = &self.open else { return };
        let Some(next) = open.segment.next(size) else {
            return;
        };
        let end = start_of(next, &self.binding);
        if let Some(switch) = open.last_switch {
            let scanner = scanner_at(next, end, &self.binding).following(switch);
            self.carried = Some((next, scanner));
        } else if open.scanner.position() == end {
            self.carried = Some((next, open.scanner.clone()));
        }
    }
}

impl OpenSegment {
    fn file(&self) -> Result<&PartialFile, StoreError> {
        let segment = self.segment;
        self.file.as_ref().ok_or(StoreError::Finished { segment })
    }

    /// What is known after it was opened.
    fn extent(&self) -> Extent {
        Extent {
            held_bytes: self.held_bytes,
            disturbed: false,
            checked: self.checked(),
            read_back: None,
        }
    }

    /// What has been seen of the bytes before `next_offset`, all of them synced.
    fn checked(&self) -> Option<Checked> {
        self.crc.clone().map(|crc| Checked {
            bytes: self.next_offset,
            crc32: crc.finalize(),
            switched: self.last_switch.is_some(),
        })
    }

    /// Walks the records in `bytes` and returns the offsets where whole ones end.
    fn check(&mut self, bytes: &[u8], stated: Lsn) -> Result<Vec<u64>, StoreError> {
        let name = WalFileName::Partial(self.segment);
        let damaged = |why: String| StoreError::Damaged { name, why };
        let mut boundaries = Vec::new();
        let mut rest = bytes;
        loop {
            match self.scanner.advance(&mut rest) {
                Step::NeedMore => break,
                Step::Record(record) => {
                    boundaries.push(record.end.0.saturating_sub(self.start.0));
                    self.last_switch = record.is_switch().then_some(record.lsn);
                }
                Step::EndOfWal(lsn) => {
                    return Err(damaged(format!("no record begins at {lsn}")));
                }
                Step::Invalid { lsn, why } => return Err(damaged(format!("at {lsn}, {why}"))),
            }
        }
        let found = self.scanner.valid_end();
        // A sender that does not know how the segment before ended states this one's beginning.
        if stated > found.max(self.start) {
            return Err(damaged(format!(
                "its records end at {found}, not at {stated} as was said"
            )));
        }
        self.end = stated.min(found);
        Ok(boundaries)
    }

    /// Compares bytes with what is held, and writes from the first difference on. Returns how
    /// much of what was held stays if there is one.
    fn compare(
        &mut self,
        offset: u64,
        bytes: &[u8],
        boundaries: &[u64],
    ) -> Result<Option<u64>, StoreError> {
        let file = self.file.as_ref();
        let file = file.ok_or(StoreError::Finished {
            segment: self.segment,
        })?;
        let end = offset + bytes.len() as u64;
        let mut same = 0_usize;
        file.read(offset..end.min(self.held_bytes), |piece| {
            let ours = &bytes[same..same + piece.len()];
            let equal = ours.iter().zip(piece).take_while(|(a, b)| a == b).count();
            same += equal;
            equal == piece.len()
        })?;
        if same == bytes.len() {
            return Ok(None);
        }
        self.comparing = false;
        let differs_at = offset + same as u64;
        if differs_at < self.held_bytes {
            let whole = (boundaries.iter().copied()).filter(|end| *end <= differs_at);
            let last_common = whole.max().map_or(offset, |end| end.max(offset));
            tracing::warn!(
                "{}: the master wrote its WAL anew behind {}; {} bytes behind it that were held \
                 are dropped",
                self.segment,
                Lsn(self.start.0 + last_common),
                self.held_bytes - last_common
            );
            file.clear_behind(differs_at)?;
        }
        file.write(differs_at, &bytes[same..])?;
        let shrunk = differs_at < self.held_bytes;
        self.held_bytes = differs_at;
        Ok(shrunk.then_some(differs_at))
    }
}

/// What was held behind a segment whose end was rewritten continues nothing any more.
fn drop_later(folder: &Folder, segment: SegmentName) -> Result<(), StoreError> {
    let timeline = segment.timeline();
    let later = partial_names(folder)?.into_iter();
    for name in later.filter(|name| name.timeline() == timeline && *name > segment) {
        let aside = folder.set_aside_as(&name.to_string(), "differs")?;
        tracing::warn!("{name} follows what was dropped; it is kept as {aside}");
    }
    Ok(())
}

/// The segments in the folder, in their order.
fn partial_names(folder: &Folder) -> Result<Vec<SegmentName>, StoreError> {
    let names = folder.names()?.into_iter();
    let mut segments: Vec<SegmentName> = names.filter_map(|name| name.parse().ok()).collect();
    segments.sort();
    Ok(segments)
}

/// Clears away partial segments that are finished, and finds where the others end.
///
/// One that the disk does not give back is no reason not to serve the rest: it stays, and whoever
/// opens it is told.
pub(super) fn recover(
    completed: &Arc<Folder>,
    partial: &Arc<Folder>,
    binding: &Binding,
) -> Result<Vec<(SegmentName, Lsn)>, StoreError> {
    for segment in partial_names(partial)? {
        match settle(completed, partial, binding, segment) {
            Err(error @ StoreError::Disk { .. }) if partial.monitor.check().is_ok() => {
                tracing::error!("a partial segment stays as it is: {error}");
            }
            other => other?,
        }
    }
    ends(partial, binding)
}

/// Syncs each partial segment and finds where its records end.
fn ends(folder: &Arc<Folder>, binding: &Binding) -> Result<Vec<(SegmentName, Lsn)>, StoreError> {
    let mut found = Vec::new();
    for segment in partial_names(folder)? {
        match end_of(folder, binding, segment) {
            Ok(end) => found.extend(end.map(|end| (segment, end))),
            Err(error @ StoreError::Disk { .. }) if folder.monitor.check().is_ok() => {
                tracing::error!("a partial segment cannot be read: {error}");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn end_of(
    folder: &Arc<Folder>,
    binding: &Binding,
    segment: SegmentName,
) -> Result<Option<Lsn>, StoreError> {
    let size = binding.segment_size.bytes();
    let Some(file) = PartialFile::open(folder, segment, size)? else {
        return Ok(None);
    };
    folder.sync_content(file.handle(), &segment.to_string())?;
    let scanner = scanner_at(segment, start_of(segment, binding), binding);
    Ok(Some(file.find_end(binding, scanner)?.lsn))
}
