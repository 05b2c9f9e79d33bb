//! Checks what joins a finished segment to its neighbours in the archive.
//! Never changes anything. Invariant: it reads no more of a neighbour than the record that crosses the
//! boundary, unless nothing is kept of it.
//!
//! The segment before is the one that replay comes from: of the same timeline, or of the one that this
//! timeline left, where it begins. Its checksum says where its last record begins; a scanner goes from there
//! over the boundary. A receiver that stored it a moment ago still has that scanner.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use walmgr_protocol::limits::SMALL_FILE_BYTES_MAX;
use walmgr_protocol::names::{Lsn, SegmentName, TimelineId, WalFileName};

use super::binding::Binding;
use super::checksums::{Checksums, KeptChecksum};
use super::error::StoreError;
use super::folder::Folder;
use crate::wal::history::History;
use crate::wal::joint::{Joint, SegmentEnd, Unjoined};
use crate::wal::obstacle::Obstacles;
use crate::wal::record::record_bytes_max;
use crate::wal::scan::Scanner;
use crate::wal::segment::Verify;
use crate::wal::through::{Reached, Through};

/// How many scanners are remembered: as many as a stream of records may be ahead of the archiver without
/// a segment having to be walked through again.
const CARRIED_MAX: usize = 32;

/// The archive around a segment.
#[derive(Clone, Copy)]
pub(super) struct Joints<'a> {
    pub(super) completed: &'a Folder,
    pub(super) checksums: &'a Checksums,
    pub(super) binding: Binding,
    /// How closely: as `verify_wal` says, `off` checks nothing.
    pub(super) verify: Verify,
}

/// What was found before a segment.
pub(super) enum FoundBefore {
    /// Nothing that it could be checked against.
    Nothing,
    /// A segment with a scanner that walked to its end.
    Walked(SegmentName, Box<Scanner>),
    /// A segment whose own records do not hold, which says nothing about the next.
    Broken(SegmentName),
}

/// How a segment and the one before it go together.
#[derive(Debug)]
pub(super) enum JointVerdict {
    /// They do; with what the record is that crosses the boundary.
    Joined(Obstacles),
    /// There is nothing that could be compared.
    Unchecked,
    /// One record fills the segment; the scanner goes on into the next.
    Inside(Box<Scanner>),
    /// They do not, and this is the segment before.
    Unjoined(SegmentName, Unjoined),
}

impl Joints<'_> {
    /// Whether a segment goes on where the one before it ends. `read` hands out the segment's bytes
    /// until they are wanted no longer.
    pub(super) fn check(
        &self,
        segment: SegmentName,
        carried: Option<&Carried>,
        read: impl FnOnce(&mut dyn FnMut(&[u8]) -> bool) -> Result<(), StoreError>,
    ) -> Result<JointVerdict, StoreError> {
        if self.verify == Verify::Off {
            return Ok(JointVerdict::Unchecked);
        }
        let before = match self.before(segment, carried) {
            // One bad sector is no reason to refuse what comes behind it.
            Err(error @ StoreError::Disk { .. }) => {
                tracing::error!(
                    "ALARM: {segment} is not checked against the segment before: \
                    {error}"
                );
                return Ok(JointVerdict::Unchecked);
            }
            other => other?,
        };
        let (before, scanner) = match before {
            FoundBefore::Walked(before, scanner) => (before, scanner),
            FoundBefore::Broken(before) => {
                tracing::error!(
                    "ALARM: {before} is damaged, so walmgr cannot check whether {segment} \
                    continues it"
                );
                return Ok(JointVerdict::Unchecked);
            }
            FoundBefore::Nothing => return Ok(JointVerdict::Unchecked),
        };
        self.walk(*scanner, segment, before, read)
    }

    /// A scanner that comes out of the segment before; `None` where nothing can be said.
    pub(super) fn scanner_before(
        &self,
        segment: SegmentName,
    ) -> Result<Option<Scanner>, StoreError> {
        match self.before(segment, None) {
            Ok(FoundBefore::Walked(_, scanner)) => Ok(Some(*scanner)),
            Ok(FoundBefore::Nothing | FoundBefore::Broken(_)) => Ok(None),
            Err(error @ StoreError::Disk { .. }) => {
                tracing::error!(
                    "ALARM: {segment} is not checked against the segment before: \
                    {error}"
                );
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the segment behind goes on where `scanner` has come to, if it is there; the segment at
    /// fault otherwise.
    pub(super) fn check_next(
        &self,
        segment: SegmentName,
        scanner: &Scanner,
    ) -> Result<JointVerdict, StoreError> {
        let nothing = || JointVerdict::Joined(Obstacles::default());
        let Some(next) = segment.next(self.binding.segment_size) else {
            return Ok(nothing());
        };
        let walked = (self.completed.open_finished(&next.to_string())).and_then(|file| {
            let Some(file) = file else {
                return Ok(nothing());
            };
            self.walk(scanner.clone(), next, next, |each| {
                self.completed.read_finished_pages(&file, 0, each)
            })
        });
        match walked {
            Err(error @ (StoreError::Disk { .. } | StoreError::Damaged { .. })) => {
                tracing::error!(
                    "ALARM: {segment} is not checked against the next segment: {error}"
                );
                Ok(nothing())
            }
            other => other,
        }
    }

    /// `before` is the segment that is named if they do not go together.
    fn walk(
        &self,
        scanner: Scanner,
        segment: SegmentName,
        before: SegmentName,
        read: impl FnOnce(&mut dyn FnMut(&[u8]) -> bool) -> Result<(), StoreError>,
    ) -> Result<JointVerdict, StoreError> {
        let mut joint = Joint::new(scanner, segment);
        read(&mut |bytes| joint.update(bytes))?;
        let crossing = joint.crossing();
        Ok(match joint.finish(self.binding.segment_size) {
            Ok(None) => JointVerdict::Joined(crossing),
            Ok(Some(scanner)) => JointVerdict::Inside(Box::new(scanner)),
            Err(why) => JointVerdict::Unjoined(before, why),
        })
    }

    /// Lets a segment be stored that does not go on with the one before it, with an alarm, unless that one is what
    /// was acknowledged.
    pub(super) fn admit_unjoined(
        &self,
        segment: SegmentName,
        before: SegmentName,
        why: &str,
    ) -> Result<(), StoreError> {
        match self.is_as_kept(before)? {
            Some(true) => {
                let name = WalFileName::Segment(segment);
                let why = format!(
                    "{why}, and {before} is unchanged since it was acknowledged. If pg_resetwal \
                    was run on the master, its WAL starts over here: move {before} out of \
                    completed_wals, and make a backup"
                );
                return Err(StoreError::Damaged { name, why });
            }
            Some(false) => tracing::error!(
                "ALARM: {before} has changed since it was acknowledged, so it is damaged: \
                {segment} is stored although {why}"
            ),
            None => tracing::error!(
                "ALARM: {before} or {segment} is damaged; both are stored although {why}"
            ),
        }
        Ok(())
    }

    /// Whether a stored segment is what was acknowledged, read to its end; `None` if nobody knows, as where
    /// a start found it without a checksum.
    pub(super) fn is_as_kept(&self, segment: SegmentName) -> Result<Option<bool>, StoreError> {
        let Some(kept) = self.checksums.read(WalFileName::Segment(segment)) else {
            return Ok(None);
        };
        let file = match self.completed.open_finished(&segment.to_string()) {
            Ok(Some(file)) => file,
            Ok(None) | Err(StoreError::Disk { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let (len, crc32) = match self.completed.digest_of(&file) {
            // It cannot be unpacked.
            Err(StoreError::Damaged { .. }) => return Ok(Some(false)),
            digest => digest?,
        };
        Ok(match kept.contradicts(len, crc32) {
            Some(_) => Some(false),
            None => (!kept.is_found).then_some(true),
        })
    }

    /// A scanner that stands at the beginning of a segment and comes from what is before it.
    fn before(
        &self,
        segment: SegmentName,
        carried: Option<&Carried>,
    ) -> Result<FoundBefore, StoreError> {
        let size = self.binding.segment_size;
        let Some(last) = self.name_before(segment)? else {
            return Ok(FoundBefore::Nothing);
        };
        // Segments that one record fills, the last first.
        let mut filled: Vec<SegmentName> = Vec::new();
        let record_bytes = u64::from(record_bytes_max(Some(self.binding.postgres_major)));
        let mut before = last;
        let mut scanner = loop {
            if let Some(scanner) = carried.and_then(|carried| carried.of(before, self.verify)) {
                break scanner;
            }
            match self.walk_out_of(before)? {
                WalkEnd::Walked(scanner) => break *scanner,
                WalkEnd::Broken => return self.broken(before),
                WalkEnd::Inside(_) if filled.len() as u64 * size.bytes() > record_bytes => {
                    return Ok(FoundBefore::Broken(before));
                }
                WalkEnd::Inside(_) => {
                    filled.push(before);
                    match self.name_before(before)? {
                        Some(earlier) => before = earlier,
                        None => return Ok(FoundBefore::Nothing),
                    }
                }
            }
        };
        while let Some(next) = filled.pop() {
            scanner = scanner.up_to_timeline(next.timeline());
            scanner = match self.walk_to_end(scanner, next, Lsn(0))? {
                WalkEnd::Walked(scanner) | WalkEnd::Inside(Some(scanner)) => *scanner,
                WalkEnd::Inside(None) | WalkEnd::Broken => return self.broken(next),
            };
        }
        Ok(FoundBefore::Walked(last, Box::new(scanner)))
    }

    /// What a segment is that nobody walked through: a purge may have removed it meanwhile.
    fn broken(&self, segment: SegmentName) -> Result<FoundBefore, StoreError> {
        let stat = self.completed.stat_at(&segment.to_string())?;
        Ok(match stat {
            Some(_) => FoundBefore::Broken(segment),
            None => FoundBefore::Nothing,
        })
    }

    /// What the segment is that replay reads before this one, by its CRC-32, if that was kept when it was acknowledged.
    pub(super) fn kept_before(&self, segment: SegmentName) -> Result<Option<u32>, StoreError> {
        let before = self.name_before(segment)?;
        let kept = before.and_then(|before| self.checksums.read(WalFileName::Segment(before)));
        // One that a record fills does not tell where that begins.
        let is_known = |kept: &KeptChecksum| !kept.is_found && kept.end != Some(SegmentEnd::Inside);
        Ok(kept.filter(is_known).map(|kept| kept.crc32))
    }

    /// How a stored segment ends, as it was kept when it was acknowledged, or else as it is read; `None` if it is not
    /// there, cannot be read, or its records do not hold.
    pub(super) fn end_of(&self, segment: SegmentName) -> Result<Option<SegmentEnd>, StoreError> {
        match self.read_end_of(segment) {
            // One bad sector is no reason to refuse what does not come from there.
            Err(error @ StoreError::Disk { .. }) => {
                tracing::error!("ALARM: nobody knows how {segment} ends: {error}");
                Ok(None)
            }
            other => other,
        }
    }

    fn read_end_of(&self, segment: SegmentName) -> Result<Option<SegmentEnd>, StoreError> {
        let kept = self.checksums.read(WalFileName::Segment(segment));
        let acknowledged = kept.filter(|kept| !kept.is_found);
        if let Some(end) = acknowledged.and_then(|kept| kept.end) {
            return Ok(Some(end));
        }
        // What a start found may have been replaced by hand since.
        if let Some(end @ SegmentEnd::Open { begins, previous }) = kept.and_then(|kept| kept.end) {
            let scanner = self.scanner_at(begins, previous, segment);
            if let WalkEnd::Walked(scanner) = self.walk_to_end(scanner, segment, begins)?
                && matches!(SegmentEnd::of(&scanner), SegmentEnd::Open { begins: found, .. } if found == begins)
            {
                return Ok(Some(end));
            }
        }
        let start = segment.start(self.binding.segment_size).unwrap_or_default();
        let walked = self.walk_to_end(self.scanner(start, segment), segment, start)?;
        Ok(match walked {
            WalkEnd::Walked(scanner) => Some(SegmentEnd::of(&scanner)),
            WalkEnd::Inside(_) => Some(SegmentEnd::Inside),
            WalkEnd::Broken => None,
        })
    }

    /// The segment that replay reads before this one, if it is there.
    pub(super) fn name_before(
        &self,
        segment: SegmentName,
    ) -> Result<Option<SegmentName>, StoreError> {
        let size = self.binding.segment_size;
        let number = segment.number(size);
        let Some(number) = number.and_then(|number| number.checked_sub(1)) else {
            return Ok(None);
        };
        let last_byte = Lsn((number + 1) * size.bytes() - 1);
        let timeline = self.timeline_at(segment.timeline(), last_byte)?;
        let name = SegmentName::from_number(timeline, number, size);
        Ok((self.completed.stat_at(&name.to_string())?)
            .filter(|stat| stat.is_file)
            .map(|_| name))
    }

    /// The timeline whose segment replay reads for the byte at `lsn` on its way to `timeline`. A segment in
    /// which a timeline begins is read from that timeline's own file, which has the parent's part too. Without
    /// a sound history this is `timeline` itself; readers of the history are told of the damage.
    fn timeline_at(&self, timeline: TimelineId, lsn: Lsn) -> Result<TimelineId, StoreError> {
        if timeline == TimelineId::FIRST {
            return Ok(timeline);
        }
        let name = WalFileName::History(timeline);
        let bytes_max = usize::try_from(SMALL_FILE_BYTES_MAX).unwrap_or(usize::MAX);
        let Some(text) = (self.completed).read_small(&name.to_string(), bytes_max)? else {
            return Ok(timeline);
        };
        let kept = self.checksums.read(name);
        let differs =
            kept.and_then(|kept| kept.contradicts(text.len() as u64, crc32fast::hash(&text)));
        let history = History::parse(timeline, &text)
            .ok()
            .filter(|_| differs.is_none());
        let size = self.binding.segment_size.bytes();
        let begins = history.as_ref().map(History::timelines).unwrap_or_default();
        let newest = (begins.into_iter()).find(|(_, begin)| begin.0 / size <= lsn.0 / size);
        Ok(newest.map_or(timeline, |(timeline, _)| timeline))
    }

    /// Where a scanner stands that walked to the end of a segment.
    fn walk_out_of(&self, segment: SegmentName) -> Result<WalkEnd, StoreError> {
        let size = self.binding.segment_size;
        let start = segment.start(size).unwrap_or_default();
        let inside = |lsn: Lsn| lsn >= start && lsn.0 - start.0 < size.bytes();
        // Whoever replaced by hand what a start found has not told where its last record begins.
        let kept = self.checksums.read(WalFileName::Segment(segment));
        let kept = kept.filter(|kept| !kept.is_found);
        let (scanner, from) = match kept.and_then(|kept| kept.end) {
            Some(SegmentEnd::Inside) => return Ok(WalkEnd::Inside(None)),
            Some(SegmentEnd::Closed { last }) => {
                let end = Lsn(start.0.wrapping_add(size.bytes()));
                let scanner = self.scanner(end, segment).following(last);
                return Ok(WalkEnd::Walked(Box::new(scanner)));
            }
            Some(SegmentEnd::Open { begins, previous }) if inside(begins) => {
                (self.scanner_at(begins, previous, segment), begins)
            }
            Some(SegmentEnd::Open { .. }) | None => (self.scanner(start, segment), start),
        };
        self.walk_to_end(scanner, segment, from)
    }

    /// Feeds a segment from `from` on to its end.
    fn walk_to_end(
        &self,
        scanner: Scanner,
        segment: SegmentName,
        from: Lsn,
    ) -> Result<WalkEnd, StoreError> {
        let size = self.binding.segment_size;
        let start = segment.start(size).unwrap_or_default();
        let Some(file) = self.completed.open_finished(&segment.to_string())? else {
            return Ok(WalkEnd::Broken);
        };
        let mut through = Through::new(scanner, segment, size);
        let from_bytes = from.0.saturating_sub(start.0);
        let read =
            (self.completed).read_finished_pages(&file, from_bytes, |piece| through.update(piece));
        match read {
            Err(StoreError::Damaged { .. }) => return Ok(WalkEnd::Broken),
            read => read?,
        }
        Ok(match through.finish() {
            Reached::Next(scanner) => WalkEnd::Walked(scanner),
            Reached::Inside(scanner) => WalkEnd::Inside(Some(scanner)),
            Reached::Short => WalkEnd::Broken,
        })
    }

    /// A scanner that stands before the record at `begins`, and knows where the record before it is, if `previous` is
    /// known.
    fn scanner_at(&self, begins: Lsn, previous: Option<Lsn>, segment: SegmentName) -> Scanner {
        let scanner = self.scanner(begins, segment);
        match previous {
            Some(previous) => scanner.following(previous),
            None => scanner,
        }
    }

    fn scanner(&self, lsn: Lsn, segment: SegmentName) -> Scanner {
        let scanner = Scanner::new(lsn, self.binding.segment_size)
            .of_cluster(self.binding.system_id)
            .of_major(self.binding.postgres_major)
            .up_to_timeline(segment.timeline());
        match self.verify {
            Verify::Headers => scanner.without_checksums(),
            Verify::Records | Verify::Off => scanner,
        }
    }
}

/// How a walk to a segment's end went.
enum WalkEnd {
    Walked(Box<Scanner>),
    /// The end lies inside a record. The scanner is there if the segment was walked through.
    Inside(Option<Box<Scanner>>),
    Broken,
}

/// The scanners that walked to the ends of the last segments that were stored.
#[derive(Debug, Default)]
pub(super) struct Carried(Mutex<VecDeque<CarriedEnd>>);

#[derive(Debug)]
struct CarriedEnd {
    segment: SegmentName,
    verify: Verify,
    scanner: Scanner,
    /// Of the segment, once it is finished.
    crc32: Option<u32>,
}

impl Carried {
    /// Remembers the scanner at a segment's end, or that there is none, and the CRC-32 of a finished one. A scanner that
    /// has seen no record begin cannot check what it is in.
    pub(super) fn put(
        &self,
        segment: SegmentName,
        verify: Verify,
        scanner: Option<Scanner>,
        crc32: Option<u32>,
    ) {
        let mut carried = self.entries();
        carried.retain(|one| one.segment != segment);
        let scanner = scanner.filter(|scanner| SegmentEnd::of(scanner) != SegmentEnd::Inside);
        let Some(scanner) = scanner else { return };
        if carried.len() == CARRIED_MAX {
            carried.pop_front();
        }
        carried.push_back(CarriedEnd {
            segment,
            verify,
            scanner,
            crc32,
        });
    }

    pub(super) fn of(&self, segment: SegmentName, verify: Verify) -> Option<Scanner> {
        let carried = self.entries();
        let mut found = carried.iter();
        let found = found.find(|one| one.segment == segment && one.verify == verify);
        found.map(|one| one.scanner.clone())
    }

    /// The CRC-32 of a finished segment whose scanner is remembered.
    pub(super) fn crc32_of(&self, segment: SegmentName) -> Option<u32> {
        let carried = self.entries();
        let found = carried.iter().find(|one| one.segment == segment);
        found.and_then(|one| one.crc32)
    }

    fn entries(&self) -> MutexGuard<'_, VecDeque<CarriedEnd>> {
        // Each change leaves whole entries, so a panic elsewhere cannot have torn one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
