//! The segment that a stream of records goes into, and what is known of it.
//! Never decides what may be written over. Invariant: bytes count as checked only behind the records that were walked
//! through.

use std::sync::Arc;
use std::time::Instant;

use walmgr_protocol::limits::{RESERVED_SEGMENTS, STRAY_SEGMENTS_MAX};
use walmgr_protocol::names::{Lsn, SegmentName, TimelineId, WalFileName};

use super::acknowledged::{self, AcknowledgedNote};
use super::anew::{DIFFERS, Rewriting};
use super::extents::{CheckedRecords, Extent};
use super::file::PartialFile;
use super::names::partial_names;
use crate::store::apart_notes::is_unproven;
use crate::store::binding::Binding;
use crate::store::durable::Existing;
use crate::store::error::StoreError;
use crate::store::folder::Folder;
use crate::store::shared::Shared;
use crate::wal::scan::{ScanStep, Scanner};
use crate::wal::segment::Verify;

/// The one stream of records into the archive; whoever has it makes sure that there is no other.
pub struct PartialStream {
    pub(super) shared: Arc<Shared>,
    pub(super) binding: Binding,
    pub(super) timeline: TimelineId,
    pub(super) open: Option<OpenSegment>,
    /// The scanner as it left the segment before the named one.
    pub(super) carried: Option<(SegmentName, Scanner)>,
    /// When what is shipped was last weighed against a newer timeline.
    pub(super) weighed: Option<Instant>,
}

pub(super) struct OpenSegment {
    pub(super) segment: SegmentName,
    pub(super) start: Lsn,
    /// `None` for a finished one, which can only be compared, and for a new one.
    pub(super) file: Option<PartialFile>,
    /// Whether nothing is held of it: the first records make its file, so that asking for segments
    /// costs no room.
    pub(super) is_new: bool,
    /// The scanner at the segment's beginning, for a rewrite.
    pub(super) first_scanner: Scanner,
    pub(super) scanner: Scanner,
    /// Where the next append begins.
    pub(super) next_offset: u64,
    pub(super) held_bytes: u64,
    /// CRC-32 of everything before `next_offset`, if it was all seen.
    pub(super) crc: Option<crc32fast::Hasher>,
    /// Bytes below `held_bytes` are compared, not written.
    pub(super) comparing: bool,
    /// Whether a whole record was the same while they were compared.
    pub(super) has_common_record: bool,
    /// Where they differ, what the master has instead.
    pub(super) rewriting: Option<Rewriting>,
    /// Whether its records end before what was acknowledged, and its file is still as it was found.
    pub(super) is_damaged: bool,
    /// Up to where it was acknowledged, at least.
    pub(super) acknowledged: Lsn,
    /// Where that is noted; opened by the first append.
    pub(super) note: Option<AcknowledgedNote>,
    pub(super) last_switch: Option<Lsn>,
    /// The end of the last whole record, as far as the sender states it too.
    pub(super) end: Lsn,
    pub(super) folder_synced: bool,
}

impl PartialStream {
    /// The segment that is open.
    pub(super) fn opened(&mut self) -> Result<&mut OpenSegment, StoreError> {
        let timeline = self.timeline;
        self.open.as_mut().ok_or_else(|| StoreError::Diverged {
            why: format!("no segment of timeline {timeline} is open"),
        })
    }
}

impl OpenSegment {
    /// A segment of which nothing is known yet.
    pub(super) fn of(segment: SegmentName, start: Lsn, first_scanner: Scanner) -> Self {
        OpenSegment {
            segment,
            start,
            file: None,
            is_new: false,
            scanner: first_scanner.clone(),
            first_scanner,
            next_offset: 0,
            held_bytes: 0,
            crc: None,
            comparing: false,
            has_common_record: false,
            rewriting: None,
            is_damaged: false,
            acknowledged: Lsn(0),
            note: None,
            last_switch: None,
            end: start,
            folder_synced: true,
        }
    }

    /// Notes that everything held is acknowledged.
    pub(super) fn note_acknowledged(&mut self, folder: &Folder) -> Result<(), StoreError> {
        let mut note = AcknowledgedNote::open(folder, self.segment)?;
        note.raise(folder, self.end)?;
        self.acknowledged = self.acknowledged.max(self.end);
        self.note = Some(note);
        Ok(())
    }

    /// Makes the file of a new segment, while its name is locked. Its name is synced before its first
    /// records are acknowledged.
    pub(super) fn make_file(&mut self, shared: &Shared, size: u64) -> Result<(), StoreError> {
        let segment = self.segment;
        let name = WalFileName::Segment(segment);
        if Existing::open(&shared.completed, name)?.is_some()
            && !is_unproven(&shared.completed, name)?
        {
            return Err(StoreError::Finished { segment });
        }
        refuse_more_strays(shared, segment)?;
        (shared.partial).keep_free(&segment.to_string(), size, RESERVED_SEGMENTS * size)?;
        self.file = Some(PartialFile::create(&shared.partial, segment, size)?);
        (self.is_new, self.folder_synced) = (false, false);
        Ok(())
    }

    pub(super) fn file(&self) -> Result<&PartialFile, StoreError> {
        let segment = self.segment;
        self.file.as_ref().ok_or(StoreError::Finished { segment })
    }

    /// What is known after it was opened.
    pub(super) fn extent(&self) -> Extent {
        Extent {
            checked: self.checked(),
            read_back: None,
        }
    }

    /// What has been seen of the bytes before `next_offset`, all of them synced.
    pub(super) fn checked(&self) -> Option<CheckedRecords> {
        self.crc.clone().map(|crc| CheckedRecords {
            bytes: self.next_offset,
            crc32: crc.finalize(),
            switched: self.last_switch.is_some(),
        })
    }

    /// Walks the records in `bytes` and returns the offsets where whole ones end.
    pub(super) fn check(&mut self, bytes: &[u8], stated: Lsn) -> Result<Vec<u64>, StoreError> {
        let name = WalFileName::Partial(self.segment);
        let damaged = |why: String| StoreError::Damaged { name, why };
        let mut boundaries = Vec::new();
        let mut rest = bytes;
        loop {
            match self.scanner.advance(&mut rest) {
                ScanStep::NeedMore => break,
                ScanStep::Record(record) => {
                    boundaries.push(record.end.0.saturating_sub(self.start.0));
                    self.last_switch = record.is_switch().then_some(record.lsn);
                }
                ScanStep::EndOfWal(lsn) => {
                    return Err(damaged(format!("no record begins at {lsn}")));
                }
                ScanStep::Invalid { lsn, why } => return Err(damaged(format!("at {lsn}, {why}"))),
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
}

/// Fails when a segment has no whole one before it, and as many like it are there as may be. A master's stream
/// goes from one to the next.
fn refuse_more_strays(shared: &Shared, segment: SegmentName) -> Result<(), StoreError> {
    let size = shared.binding()?.segment_size;
    let partials = partial_names(&shared.partial)?;
    let is_led = |name: SegmentName| -> Result<bool, StoreError> {
        let before = name.number(size).and_then(|number| number.checked_sub(1));
        let Some(before) = before else {
            return Ok(true);
        };
        let before = SegmentName::from_number(name.timeline(), before, size);
        if partials.contains(&before) {
            let checked = shared.partials.of(before).checked;
            // Of one that this process has not written to nobody knows it without reading it.
            return Ok(checked.is_none_or(|checked| checked.is_whole(size.bytes())));
        }
        Ok(shared.completed.stat_at(&before.to_string())?.is_some())
    };
    if is_led(segment)? {
        return Ok(());
    }
    let mut strays = 0;
    for name in &partials {
        strays += usize::from(!is_led(*name)?);
    }
    if strays < STRAY_SEGMENTS_MAX {
        return Ok(());
    }
    Err(StoreError::Diverged {
        why: format!(
            "{segment} goes on with nothing that is here, and {} holds {strays} segments like that: somebody \
             has to look at them and move them away first",
            shared.partial.path().display()
        ),
    })
}

/// What was held behind a segment whose end was rewritten continues nothing any more.
pub(super) fn drop_later(shared: &Shared, segment: SegmentName) -> Result<(), StoreError> {
    let (folder, timeline) = (&shared.partial, segment.timeline());
    let later = partial_names(folder)?.into_iter();
    for name in later.filter(|name| name.timeline() == timeline && *name > segment) {
        acknowledged::remove(folder, name)?;
        let aside = folder.set_aside_as(&name.to_string(), DIFFERS)?;
        // What is remembered of it is not true of what comes under its name.
        shared.partials.forget(name);
        shared.carried.put(name, Verify::Records, None);
        tracing::warn!("{name} follows what was dropped; it is kept as {aside}");
    }
    Ok(())
}
