//! The WAL that a recovery reads, segment by segment along the timelines it follows.
//! Never checks checksums: `xrestore` does before PostgreSQL sees a byte. Invariant: a segment of the
//! route is the one that PostgreSQL would ask for, and the route ends at the first that is missing.
//!
//! However much WAL it leads through, a walk holds one piece of [`PIECE_BYTES`] of it.

use std::io;
use std::ops::ControlFlow;

use walmgr_protocol::names::{Lsn, SegmentName, TimelineId, WalFileName, WalSegmentSize};

use super::error::StoreError;
use super::lineage::{Led, LineGap, Lineage, TimelineLine};
use super::partial::PartialEnd;
use super::reader::ArchiveReader;
use crate::error::{CommandError, Result};
use crate::pg::recovery::TargetTimeline;
use crate::wal::obstacle::Met;
use crate::wal::record::{self, RecordInfo};
use crate::wal::scan::{ScanStep, Scanner};

#[cfg(test)]
mod tests;

const PIECE_BYTES: usize = 1 << 20;

/// How far a walk came.
#[must_use = "what was not walked says nothing"]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Walked {
    /// To its end, or as far as it was wanted.
    All,
    /// Somebody gave up waiting for it.
    GivenUp,
}

/// A route through an archive.
pub(crate) struct Route<'a> {
    archive: &'a ArchiveReader,
    size: WalSegmentSize,
    lineage: Lineage,
    line: TimelineLine,
}

impl<'a> Route<'a> {
    /// The way from a place on a timeline to where `wanted` leads.
    pub(crate) fn find(
        archive: &'a ArchiveReader,
        from: (TimelineId, Lsn),
        wanted: TargetTimeline,
    ) -> Result<Route<'a>> {
        let lineage = archive.lineage(&[]).map_err(|error| failed(&error))?;
        Route::within(archive, lineage, from, wanted)
    }

    /// The way along `lineage`, which need not be the archive's yet: `from` a timeline and a position on it, to
    /// where `wanted` leads.
    pub(crate) fn within(
        archive: &'a ArchiveReader,
        lineage: Lineage,
        from: (TimelineId, Lsn),
        wanted: TargetTimeline,
    ) -> Result<Route<'a>> {
        let (timeline, start) = from;
        let newest = match wanted {
            TargetTimeline::Current => timeline,
            TargetTimeline::Number(number) => number,
            TargetTimeline::Latest => {
                (lineage.newest_for(timeline)).map_err(|error| failed(&StoreError::from(error)))?
            }
        };
        let line = lineage.line_to(newest);
        if newest != timeline {
            let is_known = lineage.facts().histories.contains_key(&newest);
            if !is_known {
                let damaged = archive.history(newest).map_err(|error| failed(&error));
                damaged?;
                return Err(CommandError::retry(format!(
                    "the archive has no history of timeline {newest}"
                )));
            }
            if line.leg(timeline).is_none_or(|own| own.end < start) {
                return Err(CommandError::retry(format!(
                    "timeline {newest} does not branch off timeline {timeline} after {start}"
                )));
            }
        }
        Ok(Route::along(archive, lineage, line))
    }

    /// The way of a server that stands on `timeline` and needs the WAL from `from` on: it follows the newest
    /// timeline that came from its own there or behind. `partials` has to be older than this look at the
    /// archive, where a segment may be finished any moment.
    pub(crate) fn of_server(
        archive: &'a ArchiveReader,
        partials: &[PartialEnd],
        (timeline, from): (TimelineId, Lsn),
    ) -> Result<Route<'a>, StoreError> {
        let lineage = archive.lineage(partials)?;
        let line = lineage.line_from(timeline, from)?;
        Ok(Route::along(archive, lineage, line))
    }

    /// The way along the newest timeline; `None` in an archive without WAL.
    pub(crate) fn to_newest(archive: &'a ArchiveReader, lineage: Lineage) -> Option<Route<'a>> {
        let line = lineage.line_to(lineage.newest()?);
        Some(Route::along(archive, lineage, line))
    }

    fn along(archive: &'a ArchiveReader, lineage: Lineage, line: TimelineLine) -> Route<'a> {
        Route {
            archive,
            size: archive.binding().segment_size,
            lineage,
            line,
        }
    }

    /// The timelines that it follows.
    pub(crate) const fn line(&self) -> &TimelineLine {
        &self.line
    }

    /// The first segment that is not there to its end although there is more behind it; what is before the one
    /// with `from` does not matter.
    pub(crate) fn gap(&self, from: Lsn) -> Option<LineGap> {
        self.lineage.gap(&self.line, from)
    }

    /// Every hole behind `from`; see [`Lineage::holes`].
    pub(crate) fn holes(&self, from: Lsn) -> Vec<(SegmentName, SegmentName)> {
        self.lineage.holes(&self.line, from)
    }

    /// Up to where WAL leads from `from`.
    pub(crate) fn led(&self, from: Lsn) -> Led {
        self.lineage.led(&self.line, from)
    }

    /// Up to where WAL leads behind the last gap, for somebody who needs nothing before it.
    pub(crate) fn led_behind_last_gap(&self) -> Option<Led> {
        self.lineage.led_behind_last_gap(&self.line)
    }

    /// The segments from the one with `from` to the last before the first gap, in order.
    pub(crate) fn gapless(&self, from: Lsn) -> Vec<SegmentName> {
        self.lineage.gapless(&self.line, from)
    }

    /// Whether a finished segment of this name is on it.
    pub(crate) fn is_read(&self, segment: SegmentName) -> bool {
        self.line.part_of(segment).is_some() && self.lineage.is_plain(segment)
    }

    /// Whether the archive has this segment under its final name.
    pub(crate) fn is_finished(&self, segment: SegmentName) -> bool {
        self.lineage.facts().segments.contains(segment)
    }

    /// The segment that PostgreSQL reads for this number: it tries the newest timeline first.
    pub(super) fn segment(&self, number: u64) -> Option<SegmentName> {
        self.lineage.segment(&self.line, number)
    }

    fn number(&self, lsn: Lsn) -> u64 {
        lsn.0 / self.size.bytes()
    }

    /// What replay meets on the route from `from` on, in the order of the WAL, as far as it is noted beside
    /// finished segments.
    pub(crate) fn obstacles(&self, from: Lsn) -> Result<Vec<Met>, StoreError> {
        (self.archive).obstacles_on(&self.lineage, &self.line, from)
    }

    /// Where the WAL begins from which the route leads to `from` without a gap.
    pub(crate) fn begin(&self, from: Lsn) -> Lsn {
        self.lineage.begin_of_run(&self.line, from)
    }

    /// Shows every record that begins at `from` or behind and before `end`, until `each` breaks, or `goes_on`
    /// says no, which is asked before each piece.
    pub(crate) fn forward(
        &self,
        from: Lsn,
        end: Lsn,
        goes_on: &dyn Fn() -> bool,
        each: &mut dyn FnMut(&RecordInfo) -> ControlFlow<()>,
    ) -> io::Result<Walked> {
        let mut number = self.number(from);
        let mut scanner = Scanner::new(self.start_of(number), self.size).without_checksums();
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let position = scanner.position();
            if position >= end && !scanner.in_record() {
                return Ok(Walked::All);
            }
            if !goes_on() {
                return Ok(Walked::GivenUp);
            }
            let read_bytes = self.read_at(position, &mut piece)?;
            if read_bytes == 0 {
                return Ok(Walked::All);
            }
            let mut input = &piece[..read_bytes];
            loop {
                match scanner.advance(&mut input) {
                    ScanStep::Record(record) if record.lsn >= end => return Ok(Walked::All),
                    ScanStep::Record(record) => {
                        if record.lsn >= from && each(&record).is_break() {
                            return Ok(Walked::All);
                        }
                        if record.is_switch() {
                            // Nothing behind it means anything.
                            number = self.number(record.lsn) + 1;
                            let next = self.start_of(number);
                            scanner = Scanner::new(next, self.size).without_checksums();
                            break;
                        }
                    }
                    ScanStep::NeedMore => break,
                    ScanStep::EndOfWal(_) | ScanStep::Invalid { .. } => return Ok(Walked::All),
                }
            }
        }
    }

    /// The last record before `end` and not before `from` for which this holds. Looks at the last
    /// segments first: `None` with `Walked::GivenUp` once `goes_on` says no.
    pub(crate) fn last(
        &self,
        from: Lsn,
        end: Lsn,
        goes_on: &dyn Fn() -> bool,
        wanted: fn(&RecordInfo) -> bool,
    ) -> io::Result<(Option<RecordInfo>, Walked)> {
        let last = self.number(Lsn(end.0.saturating_sub(1)));
        for number in (self.number(from)..=last).rev() {
            let mut found = None;
            let segment_end = self.start_of(number + 1).min(end);
            let segment_start = self.start_of(number).max(from);
            // The last segment is always walked.
            let goes_on_here = || number == last || goes_on();
            let walked =
                self.forward(segment_start, segment_end, &goes_on_here, &mut |record| {
                    if wanted(record) {
                        found = Some(*record);
                    }
                    ControlFlow::Continue(())
                })?;
            if walked == Walked::GivenUp {
                return Ok((None, walked));
            }
            if found.is_some() {
                return Ok((found, walked));
            }
        }
        Ok((None, Walked::All))
    }

    /// The record's first bytes; what lies behind the end of the route stays as it is.
    pub(crate) fn read_record(&self, lsn: Lsn, record: &mut [u8]) -> io::Result<()> {
        let read_at = |lsn: Lsn, piece: &mut [u8]| self.read_at(lsn, piece);
        record::read_record(lsn, self.size, record, read_at).map(drop)
    }

    fn start_of(&self, number: u64) -> Lsn {
        Lsn(number.saturating_mul(self.size.bytes()))
    }

    /// Reads within one segment; 0 where there is none.
    pub(super) fn read_at(&self, lsn: Lsn, buffer: &mut [u8]) -> io::Result<usize> {
        let offset_bytes = lsn.0 % self.size.bytes();
        let left = usize::try_from(self.size.bytes() - offset_bytes).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let Some(segment) = self.segment(self.number(lsn)) else {
            return Ok(0);
        };
        let stored = self.archive.find(WalFileName::Segment(segment));
        match stored.map_err(io::Error::other)? {
            Some(stored) => stored.read_at(&mut buffer[..wanted], offset_bytes),
            None => Ok(0),
        }
    }
}

/// What a command says that could not read the archive.
pub(crate) fn failed(error: &StoreError) -> CommandError {
    CommandError::new(error.kind(), "read the archive").because(error)
}
