//! The holes in the WAL that sets need, and the times to which each set can be restored.
//! Never checks a checksum: what was found damaged is told beforehand. Invariant: a window ends before the first
//! segment that is missing or damaged, and holds no commit from before the backup's end.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use walmgr_protocol::names::{Lsn, SegmentName, TimelineId};

use crate::store::error::StoreError;
use crate::store::partial::PartialEnd;
use crate::store::reach;
use crate::store::reader::ArchiveReader;
use crate::store::route::{Route, Walked};
use crate::wal::commit::{CommitAt, CommitSpan, TIME_BYTES_MAX, commit_time_us, is_commit};

/// The first and the last segment of a hole.
pub(super) type WalHole = (SegmentName, SegmentName);

/// The WAL from the beginning of a backup on.
pub(super) struct BackupWal<'a> {
    route: Route<'a>,
    segment_bytes: u64,
    start: Lsn,
    end: Lsn,
    segments: Vec<SegmentName>,
}

impl<'a> BackupWal<'a> {
    /// What a recovery reads that begins here, up to the first segment in `broken`.
    pub(super) fn find(
        reader: &'a ArchiveReader,
        partials: &[PartialEnd],
        from: (TimelineId, Lsn),
        broken: &BTreeSet<SegmentName>,
    ) -> Result<BackupWal<'a>, StoreError> {
        let (route, start) = (Route::of_server(reader, partials, from)?, from.1);
        let mut segments = route.gapless(start);
        let mut end = route.led(start).end;
        for met in route.obstacles(start)? {
            if met.obstacle.is_end() {
                end = end.min(met.lsn);
            }
        }
        let size = reader.binding().segment_size;
        if let Some(at) = segments.iter().position(|name| broken.contains(name)) {
            let broken_at = segments[at].start(size).unwrap_or_default();
            end = end.min(broken_at.max(start));
            segments.truncate(at);
        }
        Ok(BackupWal {
            route,
            segment_bytes: size.bytes(),
            start,
            end,
            segments,
        })
    }

    /// Up to where it leads.
    pub(super) const fn end(&self) -> Lsn {
        self.end
    }

    /// Where it left the timeline of a backup that ended there, and why that is of no use then; nothing where it is.
    pub(super) fn off_line(&self, end: (TimelineId, Lsn)) -> Option<(Lsn, String)> {
        let line = self.route.line();
        let left_at = line.leg(end.0).map_or(Lsn(0), |leg| leg.end);
        (!line.passes(end)).then(|| (left_at, reach::off_line(end, line)))
    }

    /// The timelines that it follows.
    pub(super) fn timelines(&self) -> impl Iterator<Item = TimelineId> {
        self.route.line().legs().iter().map(|leg| leg.timeline)
    }

    /// What is not there although more follows.
    pub(super) fn holes(&self) -> Vec<WalHole> {
        self.route.holes(self.start)
    }

    /// The first and the last commit from `stop` on.
    pub(super) fn window(
        &self,
        stop: Lsn,
        commits: &BTreeMap<SegmentName, CommitSpan>,
    ) -> (Option<CommitAt>, Option<CommitAt>) {
        let spans = || self.segments.iter().map(|name| commits.get(name).copied());
        let is_in = |commit: &CommitAt| commit.lsn >= stop && commit.lsn < self.end;
        let first = spans().flatten().find_map(|span| {
            let from_segment = match (span.first, span.last) {
                (Some(first), _) if first.lsn >= stop => Some(first),
                (Some(_), Some(last)) if last.lsn >= stop => {
                    self.first_behind(stop, last.lsn).or(Some(last))
                }
                _ => None,
            };
            from_segment.or_else(|| self.open(span)).filter(is_in)
        });
        let last = spans().rev().flatten().find_map(|span| {
            let whole = self.open(span).filter(is_in).or(span.last);
            match whole {
                Some(last) if last.lsn < self.end => Some(last),
                Some(_) => self.last_before_end(span.first?.lsn),
                None => None,
            }
        });
        (first, last.filter(is_in))
    }

    /// A commit whose record runs on into the next segment, if that is there.
    fn open(&self, span: CommitSpan) -> Option<CommitAt> {
        let begins = span.open?;
        let boundary = begins.0 - begins.0 % self.segment_bytes + self.segment_bytes;
        // Without the next segment it is not whole.
        (boundary < self.end.0).then(|| self.at(begins))?
    }

    fn first_behind(&self, stop: Lsn, last: Lsn) -> Option<CommitAt> {
        let mut found = None;
        let end = Lsn(last.0 + 1);
        let walked = self.route.forward(stop, end, &|| true, &mut |record| {
            if !is_commit(record) {
                return ControlFlow::Continue(());
            }
            found = Some(record.lsn);
            ControlFlow::Break(())
        });
        match walked.ok()? {
            Walked::All => self.at(found?),
            Walked::GivenUp => None,
        }
    }

    fn last_before_end(&self, from: Lsn) -> Option<CommitAt> {
        let found = self.route.last(from, self.end, &|| true, is_commit);
        self.at(found.ok()?.0?.lsn)
    }

    fn at(&self, lsn: Lsn) -> Option<CommitAt> {
        let mut record = [0; TIME_BYTES_MAX];
        self.route.read_record(lsn, &mut record).ok()?;
        let time_us = commit_time_us(&record)?;
        Some(CommitAt { lsn, time_us })
    }
}
