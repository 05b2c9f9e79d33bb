//! The segments in progress, which the master ships record by record: `partial_wals`.
//! Never acknowledges records before they are durable, and gives a partial segment its final
//! name only for a push that sends the rest. Invariant: reading the records of a partial segment finds its
//! durable end, and an end before the acknowledged end is damage (see `proven`).
//!
//! ```text
//! create, allocate         a crash leaves nothing, or a file of zeros: no records
//! check, write behind the end    a crash leaves whole records, or the beginning of a record: the end
//!                          is found before it, and the rest is cleared before the next write
//! sync the data            from here on the records are durable
//! sync the folder          once, before the first acknowledgement of a new file
//! look for a freeze        after a freeze nothing is acknowledged
//! write NAME.acknowledged  not synced: a crash leaves the previous file, a power cut any or none
//! ```

pub(super) mod acknowledged;
mod anew;
mod changes;
mod crossing;
pub(super) mod extents;
mod file;
mod finish;
mod freeze;
pub(super) mod known_ends;
mod names;
mod open;
mod proven;
mod read_back;
mod records;
mod rewrite;
mod state;
#[cfg(test)]
mod tests;
mod typed;

use finish::settle;

pub(crate) use finish::Finishing;
pub use freeze::{Freeze, PartialWals};
pub(crate) use freeze::{FrozenSegment, OwnSegment};
pub use names::PartialEnd;
pub(super) use names::{PartialLook, look_at_partial, partial_end, partial_names};
pub(crate) use open::PartialStream;
pub(super) use proven::vanished;
pub(crate) use typed::NotTaken;

use std::sync::Arc;
use std::time::{Duration, Instant};

use walmgr_protocol::message::partial::{At, Open};
use walmgr_protocol::names::{Lsn, SegmentName, TimelineId, WalFileName};

use self::extents::PartialExtent;
use self::file::PartialFile;
use self::proven::Proven;
use self::records::{scanner_at, start_of};
use self::state::{HeldSegment, OpenSegment, SegmentState, WalkPosition};
use super::apart_notes::{early, is_unproven};
use super::binding::Binding;
use super::damage::Damage;
use super::durable::{DurableRecords, Existing};
use super::error::StoreError;
use super::folder::Folder;
use super::shared::Archive;
use crate::wal::scan::Scanner;
use crate::wal::segment::Verify;

/// How often the WAL of a timeline is compared with the one that claims to have left it. The comparison reads
/// all segments in progress.
const WEIGH_INTERVAL: Duration = Duration::from_secs(1);

/// Where the archive stands on a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamPosition {
    /// The highest finished segment.
    pub newest_finished: Option<SegmentName>,
    /// The lowest partial segment behind it.
    pub oldest_partial: Option<SegmentName>,
    /// The highest partial segment behind it.
    pub newest_partial: Option<SegmentName>,
    /// Whether readers follow the timeline, and not only because of what a key brought.
    pub is_settled: bool,
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
    ) -> Result<(PartialStream, StreamPosition), StoreError> {
        let shared = &self.shared;
        shared.monitor.check()?;
        freeze::refuse(&shared.partial, timeline)?;
        let finished = shared.listing()?;
        let partials = partial_names(&shared.partial)?;
        let lineage = shared.lineage()?;
        // What is set apart is no reason to refuse a master, nor is what only a key claims.
        if let Some(newest) = lineage.fencing(timeline) {
            let why = format!(
                "the master is on timeline {timeline}, but the archive has timeline {newest} already"
            );
            return Err(StoreError::Diverged { why });
        }
        if timeline.number() > 1 && !finished.contains(WalFileName::History(timeline)) {
            return Err(StoreError::HistoryMissing { timeline });
        }
        let early = early(&shared.completed)?;
        let mut newest_first = finished.segments.on(timeline).rev();
        let newest_finished =
            newest_first.find(|segment| lineage.is_plain(*segment) && !early.contains(segment));
        let mut unfinished = (partials.into_iter())
            .filter(|name| name.timeline() == timeline && Some(*name) > newest_finished);
        let oldest_partial = unfinished.next();
        let standing = StreamPosition {
            newest_finished,
            oldest_partial,
            newest_partial: unfinished.next_back().or(oldest_partial),
            is_settled: lineage.counts(timeline) && !lineage.is_claimed(timeline),
        };
        let stream = PartialStream {
            shared: Arc::clone(shared),
            binding: shared.binding()?,
            timeline,
            open: None,
            carried: None,
            weighed: None,
        };
        Ok((stream, standing))
    }

    /// Every partial segment and where its records end; reads all of them.
    pub fn partial_ends(&self) -> Result<Vec<(SegmentName, Lsn)>, StoreError> {
        let binding = self.shared.binding()?;
        Ok(ends(&self.shared.partial, &binding)?.ends)
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
        self.opened()?.restart()
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
        let adopted = self.adopt();
        shared.monitor.outcome(adopted)?;
        let open = self.opened()?;
        let (segment, end) = (open.position.segment, open.position.end);
        let held = open.held()?;
        let file = &held.file;
        let synced = (file.folder())
            .sync_records(file.handle(), segment, end)
            .and_then(|proof| {
                if !held.folder_synced {
                    shared.partial.sync()?;
                }
                Ok(proof)
            });
        let proof = shared.monitor.outcome(synced)?;
        // Behind the sync: whoever freezes copies what was written before it did.
        freeze::refuse(&shared.partial, segment.timeline())?;
        let is_first = !std::mem::replace(&mut held.folder_synced, true);
        held.acknowledge(&shared.partial, end)?;
        // Where a newer timeline is claimed, what this one ships decides whether it is followed.
        let is_claimed_away = shared.has_newer_than(segment.timeline())
            && (self.weighed).is_none_or(|weighed| weighed.elapsed() >= WEIGH_INTERVAL);
        if is_first || is_claimed_away {
            self.weighed = Some(Instant::now());
            shared.joined_by_partial(segment);
        }
        let open = self.opened()?;
        if let SegmentState::Writing(held) | SegmentState::Damaged(held) = &mut open.state {
            held.held_bytes = open.position.next_offset;
            let checked = open.position.checked();
            let read_back = None;
            (shared.partials).change(segment, |extent| {
                *extent = PartialExtent { checked, read_back }
            });
            if checked.is_some_and(|checked| checked.is_whole(size)) {
                read_back::begin(&shared.partial, &shared.partials, segment, size);
            }
        }
        self.carry();
        Ok(proof)
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
        let position = WalkPosition::at_start(segment, start, &first_scanner);
        if let Some(at) = self.finished(open)? {
            freeze::refuse(&self.shared.partial, self.timeline)?;
            let state = SegmentState::Finished;
            self.open = Some(OpenSegment { position, state });
            return Ok(at);
        }
        let shared = Arc::clone(&self.shared);
        let _guard = shared.names.lock(WalFileName::Partial(segment));
        let size = binding.segment_size.bytes();
        let Some(file) = PartialFile::open(&shared.partial, segment, size)? else {
            let state = SegmentState::New;
            self.open = Some(OpenSegment { position, state });
            self.carry();
            return Ok(At {
                held_bytes: 0,
                common_bytes: 0,
                common_crc32: 0,
            });
        };
        let proven = self.settled_end(&file, segment, first_scanner)?;
        let is_damaged = self.can_heal(&proven, open, start)?;
        let (end, known) = (proven.end, proven.acknowledged.map(|known| known.end));
        let held_bytes = end.held_bytes;
        let common_bytes = held_bytes.min(open.bytes);
        let common_crc32 = file.crc32(common_bytes)?;
        let crc = crc32fast::Hasher::new_with_initial_len(common_crc32, common_bytes);
        let position = WalkPosition {
            scanner: end.scanner,
            next_offset: held_bytes,
            crc: (common_bytes == held_bytes).then_some(crc),
            last_switch: end.switched,
            end: end.lsn,
            ..position
        };
        let mut held = HeldSegment {
            file,
            held_bytes,
            acknowledged: known.unwrap_or_default(),
            note: None,
            folder_synced: true,
        };
        if !is_damaged && held_bytes > 0 {
            // The answer says that all of it is held.
            held.note(&shared.partial, segment)?;
            held.acknowledge(&shared.partial, position.end)?;
        }
        let (checked, read_back) = (position.checked(), None);
        (shared.partials).change(segment, |extent| {
            *extent = PartialExtent { checked, read_back }
        });
        // A push may have written behind what was frozen while this one waited for the name.
        freeze::refuse(&shared.partial, self.timeline)?;
        let state = match is_damaged {
            true => SegmentState::Damaged(held),
            false => SegmentState::Writing(held),
        };
        self.open = Some(OpenSegment { position, state });
        self.carry();
        Ok(At {
            held_bytes,
            common_bytes,
            common_crc32,
        })
    }

    /// Where the records of a segment end, with all of them durable and, unless it is damaged,
    /// zeros behind them.
    fn settled_end(
        &self,
        file: &PartialFile,
        segment: SegmentName,
        scanner: Scanner,
    ) -> Result<Proven, StoreError> {
        let (folder, name) = (&self.shared.partial, segment.to_string());
        // What is read next may be in memory only; it is about to be called durable.
        folder.sync_content(file.handle(), &name)?;
        // Nor is what a failed sync has lost, which still stands in the kernel's memory. Advice only.
        let _ = folder.disk.forget_cache(file.handle());
        folder.sync()?;
        let proven = file.find_end(&self.binding, scanner)?;
        let end = &proven.end;
        if proven.damage.is_none() && !file.is_clear_behind(end.held_bytes)? {
            tracing::info!(
                "{segment}: what is behind its last record, which ends at {}, is cleared",
                end.lsn
            );
            file.clear_behind(end.held_bytes)?;
            folder.sync_content(file.handle(), &name)?;
        }
        Ok(proven)
    }

    /// Whether the segment is damaged and its master has what is missing. Fails if the master does not have it; then
    /// nothing is cleared.
    fn can_heal(&self, proven: &Proven, open: &Open, start: Lsn) -> Result<bool, StoreError> {
        let Some(damage) = &proven.damage else {
            return Ok(false);
        };
        let known_bytes = damage.known_to().0.saturating_sub(start.0);
        // A segment that a switch ended is acknowledged to its end, and its records end before.
        let is_whole = known_bytes >= self.binding.segment_size.bytes();
        let has_less = open.bytes < known_bytes && !is_whole;
        if has_less || open.bytes <= proven.end.held_bytes {
            tracing::error!("ALARM: {damage}; the master has no more of it to send again");
            return Err(StoreError::PartialDamaged(*damage));
        }
        tracing::error!("ALARM: {damage}; the master is asked to send it again");
        Ok(true)
    }

    /// What is held of a segment that was archived already. Its content is compared: a master with another past
    /// differs, a master that only repeats itself does not.
    fn finished(&self, open: &Open) -> Result<Option<At>, StoreError> {
        let name = WalFileName::Segment(open.segment);
        let _guard = self.shared.names.lock(name);
        // One that nobody follows gives way to what goes on with the segment before it.
        if is_unproven(&self.shared.completed, name)? {
            return Ok(None);
        }
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
        if let Some(why) = content.broken {
            return Err(StoreError::Damaged { name, why });
        }
        // The answer says that it is held: its name outlives a power cut too.
        self.shared.completed.sync()?;
        Ok(Some(At {
            held_bytes: content.len,
            common_bytes: open.bytes - left,
            common_crc32: crc.finalize(),
        }))
    }

    fn try_append(&mut self, offset: u64, end: Lsn, bytes: &[u8]) -> Result<(), StoreError> {
        let shared = Arc::clone(&self.shared);
        shared.monitor.check()?;
        let size = self.binding.segment_size.bytes();
        let open = self.opened()?;
        let segment = open.position.segment;
        let _guard = shared.names.lock(WalFileName::Partial(segment));
        if !open.is_in_place()? {
            return Err(StoreError::Finished { segment });
        }
        freeze::refuse(&shared.partial, segment.timeline())?;
        let boundaries = open.position.walk(bytes, end)?;
        shared.monitor.checked(boundaries.len() as u64);
        if let SegmentState::New = open.state {
            open.make_file(&shared, size)?;
        }
        open.held()?.note(&shared.partial, segment)?;
        open.take(offset, bytes, &boundaries)?;
        open.position.next_offset = offset + bytes.len() as u64;
        Ok(())
    }

    /// Keeps the scanner for the next segment once this one is at its end.
    fn carry(&mut self) {
        let size = self.binding.segment_size;
        let Some(OpenSegment { position, .. }) = &self.open else {
            return;
        };
        let Some(next) = position.segment.next(size) else {
            return;
        };
        let end = start_of(next, &self.binding);
        let scanner = match position.last_switch {
            Some(switch) => {
                let scanner = scanner_at(next, end, &self.binding).following(switch);
                scanner.having_met(position.scanner.obstacles())
            }
            None if position.scanner.position() == end => position.scanner.clone(),
            None => return,
        };
        // A push that finishes the segment does not walk through it again.
        let carried = &self.shared.carried;
        carried.put(
            position.segment,
            Verify::Records,
            Some(scanner.clone()),
            None,
        );
        self.carried = Some((next, scanner.forgetting()));
    }
}

/// What the partial segments hold.
#[derive(Debug, Default)]
pub(super) struct PartialEnds {
    /// Where the records of each end.
    pub(super) ends: Vec<(SegmentName, Lsn)>,
    /// The segments whose records end before what is known to have been there.
    pub(super) damaged: Vec<Damage>,
}

/// Clears away partial segments that are finished, and finds where the others end.
///
/// A segment that the disk does not give back stays, and fails when it is opened. The rest is served
/// meanwhile.
pub(super) fn recover(
    completed: &Arc<Folder>,
    partial: &Arc<Folder>,
    binding: &Binding,
) -> Result<PartialEnds, StoreError> {
    for segment in partial_names(partial)? {
        match settle(completed, partial, binding, segment) {
            Err(error @ StoreError::Disk { .. }) if partial.monitor.check().is_ok() => {
                tracing::error!("a partial segment stays as it is: {error}");
            }
            other => {
                other?;
            }
        }
    }
    forget_finished(completed, partial)?;
    let mut found = ends(partial, binding)?;
    (found.damaged).extend(proven::vanished(Some(completed), partial, binding)?);
    Ok(found)
}

/// Removes what is noted of segments that were finished just before the last process died.
fn forget_finished(completed: &Folder, partial: &Folder) -> Result<(), StoreError> {
    let names = partial.names()?;
    for segment in (names.iter()).filter_map(|name| acknowledged::segment_of(name)) {
        let name = segment.to_string();
        if partial.stat_at(&name)?.is_none() && completed.stat_at(&name)?.is_some() {
            acknowledged::remove(partial, segment)?;
        }
    }
    Ok(())
}

/// Syncs each partial segment and finds where its records end.
fn ends(folder: &Arc<Folder>, binding: &Binding) -> Result<PartialEnds, StoreError> {
    let mut found = PartialEnds::default();
    for segment in partial_names(folder)? {
        match end_of(folder, binding, segment) {
            Ok(Some(proven)) => {
                found.ends.push((segment, proven.end.lsn));
                found.damaged.extend(proven.damage);
            }
            Ok(None) => {}
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
) -> Result<Option<Proven>, StoreError> {
    let size = binding.segment_size.bytes();
    let Some(file) = PartialFile::open(folder, segment, size)? else {
        return Ok(None);
    };
    folder.sync_content(file.handle(), &segment.to_string())?;
    // What a failed sync has lost still stands in the kernel's copy: the end is that of what the disk gives back.
    // Advice only, as for a finished file.
    let _ = folder.disk.forget_cache(file.handle());
    let scanner = scanner_at(segment, start_of(segment, binding), binding);
    file.find_end(binding, scanner).map(Some)
}
