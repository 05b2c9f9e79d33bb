//! The WAL that a recovery reads, segment by segment along the timelines it follows.
//! Never checks checksums: `xrestore` does before PostgreSQL sees a byte. Invariant: a segment of the
//! route is the one that PostgreSQL would ask for, and the route ends at the first that is missing.
//!
//! However much WAL it leads through, a walk holds one piece of [`PIECE_BYTES`] of it.

use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

use walmgr_protocol::names::{Lsn, SegmentName, TimelineId, WalFileName, WalSegmentSize};

use super::error::StoreError;
use super::lineage::{Lineage, TimelineLine};
use super::reader::ArchiveReader;
use crate::error::{CommandError, Result};
use crate::pg::recovery::TargetTimeline;
use crate::wal::obstacle::Met;
use crate::wal::record::{self, RecordInfo};
use crate::wal::scan::{ScanStep, Scanner};

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
    /// The way from a place on a timeline along the one that is wanted.
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
                ))
                .hint("choose another set, or another --target-timeline"));
            }
        }
        Ok(Route {
            archive,
            size: archive.binding().segment_size,
            lineage,
            line,
        })
    }

    /// The segment that PostgreSQL reads for this number: it tries the newest timeline first.
    fn segment(&self, number: u64) -> Option<SegmentName> {
        self.lineage.segment(&self.line, number)
    }

    fn number(&self, lsn: Lsn) -> u64 {
        lsn.0 / self.size.bytes()
    }

    /// Where the route ends that begins at `from`: the first byte that is missing.
    pub(crate) fn end(&self, from: Lsn) -> Lsn {
        let first = self.number(from);
        let missing = (first..).find(|number| self.segment(*number).is_none());
        Lsn(missing
            .unwrap_or(u64::MAX)
            .saturating_mul(self.size.bytes()))
    }

    /// What replay meets on the route from `from` on, in the order of the WAL.
    pub(crate) fn obstacles(&self, from: Lsn) -> Result<Vec<Met>> {
        let met = (self.archive).obstacles_on(&self.lineage, &self.line, from);
        met.map_err(|error| failed(&error))
    }

    /// Where WAL begins from which the route leads to `from` without a gap.
    pub(crate) fn begin(&self, from: Lsn) -> Lsn {
        let mut first = self.number(from);
        while let Some(before) = first.checked_sub(1)
            && self.segment(before).is_some()
        {
            first = before;
        }
        self.start_of(first)
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
    fn read_at(&self, lsn: Lsn, buffer: &mut [u8]) -> io::Result<usize> {
        let offset_bytes = lsn.0 % self.size.bytes();
        let left = usize::try_from(self.size.bytes() - offset_bytes).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let Some(segment) = self.segment(self.number(lsn)) else {
            return Ok(0);
        };
        let stored = self.archive.find(WalFileName::Segment(segment));
        match stored.map_err(io::Error::other)? {
            Some(stored) => stored
                .into_file()
                .read_at(&mut buffer[..wanted], offset_bytes),
            None => Ok(0),
        }
    }
}

fn failed(error: &StoreError) -> CommandError {
    CommandError::new(error.kind(), "read the archive").because(error)
}
