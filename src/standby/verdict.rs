//! Up to where WAL was acknowledged on the line that a server follows, and whether it opened there.
//! Never changes anything. Invariant: the end is a lower bound, so a server that opened before it
//! lacks something for certain.
//!
//! A segment in progress counts to its acknowledged end, a finished one to the end of its last whole
//! record: one that only begins there is in nobody's hands yet. A finished one that is damaged
//! counts to its last byte, as all of it was acknowledged.

use walmgr_protocol::names::{Lsn, SegmentName, TimelineId, WalFileName};

use crate::error::{CommandError, Kind, Result};
use crate::store::lineage::{LineGap, TimelineLine};
use crate::store::{ArchiveReader, Damage, PartialEnd, Route, StoreError};
use crate::wal::history::History;
use crate::wal::scan::Scanner;
use crate::wal::through::Through;

/// What a server has to open with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AcknowledgedEnd {
    /// The timeline of the last record.
    pub timeline: TimelineId,
    /// Where that record ends, at least.
    pub end: Lsn,
}

/// What is known of the segments in progress.
#[derive(Debug, Default)]
pub(super) struct InProgress {
    /// Where they end.
    pub ends: Vec<PartialEnd>,
    /// The acknowledged segments whose file is gone.
    pub vanished: Vec<Damage>,
}

/// What there is on the way of a server.
#[derive(Debug)]
pub(super) struct WayFound {
    /// Up to where it was acknowledged.
    pub acknowledged: AcknowledgedEnd,
    /// The first damage in what is in progress.
    pub damage: Option<Damage>,
    /// The first segment that is missing although there is more.
    pub gap: Option<LineGap>,
}

/// Looks along the line of a server that stands on `timeline` and needs the WAL from `from` on.
/// `partials` has to be older than this look at the archive.
pub(super) fn find(
    archive: &ArchiveReader,
    partials: &InProgress,
    at: (TimelineId, Lsn),
) -> Result<WayFound> {
    let (timeline, from) = at;
    let failed =
        |error: StoreError| CommandError::new(error.kind(), "look for the end").because(error);
    let route = Route::of_server(archive, &partials.ends, at).map_err(failed)?;
    let line = route.line();
    let mut acknowledged = AcknowledgedEnd {
        timeline,
        end: from,
    };
    for segment in route.gapless(from).into_iter().rev() {
        let end = match route.is_finished(segment) {
            true => finished_end(archive, line, segment)
                .map_err(|error| CommandError::retry("read the archive").because(error))?,
            false => partial_end(&partials.ends, segment),
        };
        if let Some(end) = end {
            acknowledged.raise(line, segment, end);
            break;
        }
    }
    let damages = partials.ends.iter().filter_map(|partial| partial.damage);
    let mut damages: Vec<Damage> = damages.chain(partials.vanished.iter().copied()).collect();
    let is_missed = |damage: &Damage| {
        let led = line.led_to(damage.segment, damage.known_to());
        !route.is_finished(damage.segment) && led.is_some_and(|led| led > from)
    };
    damages.retain(is_missed);
    damages.sort_by_key(|damage| damage.segment);
    for damage in &damages {
        acknowledged.raise(line, damage.segment, damage.known_to());
    }
    let gap = route.gap(from);
    if let Some(LineGap {
        missing, lost_to, ..
    }) = gap
    {
        let timeline = missing.timeline().max(acknowledged.timeline);
        acknowledged = AcknowledgedEnd {
            timeline,
            end: acknowledged.end.max(lost_to),
        };
    }
    Ok(WayFound {
        acknowledged,
        damage: damages.first().copied(),
        gap,
    })
}

impl AcknowledgedEnd {
    /// This end or that of a server's frozen records, whichever is further.
    #[must_use]
    pub(crate) fn with(self, frozen: Option<AcknowledgedEnd>) -> AcknowledgedEnd {
        // Its timeline goes with it: a stream may have changed to a newer one since the look.
        frozen
            .filter(|frozen| frozen.end > self.end)
            .unwrap_or(self)
    }

    fn raise(&mut self, line: &TimelineLine, segment: SegmentName, end: Lsn) {
        if let Some(led) = line.led_to(segment, end).filter(|led| *led > self.end) {
            *self = AcknowledgedEnd {
                timeline: segment.timeline(),
                end: led,
            };
        }
    }

    /// Decides about a server that opened with this history.
    pub(crate) fn judge(&self, history: &History) -> Result<()> {
        let ancestors = history.ancestors();
        let ours = (ancestors.iter()).find(|ancestor| ancestor.timeline == self.timeline);
        let AcknowledgedEnd { timeline, end } = self;
        let opened = match (ours, ancestors.last()) {
            (Some(ours), _) if ours.switch_point >= *end => return Ok(()),
            (Some(ours), _) => (ours.timeline, ours.switch_point),
            (None, Some(last)) => (last.timeline, last.switch_point),
            (None, None) => (*timeline, Lsn(0)),
        };
        Err(CommandError::retry(format!(
            "the database is open, but lacks WAL that was acknowledged: it followed timeline {} up \
             to {}, and timeline {timeline} was acknowledged up to {end}",
            opened.0, opened.1
        ))
        .hint(
            "if you need that WAL, keep clients off this server; archive and partial_wals are \
            unchanged: restore, and boot once more",
        ))
    }
}

/// The refusal of a boot that would open with less.
pub(super) fn refusal(damage: &Damage) -> CommandError {
    CommandError::new(
        Kind::Retry,
        format!(
            "{damage}: the WAL from {} to {} would be lost",
            damage.end,
            damage.known_to()
        ),
    )
    .hint(
        "send it again from the master (syncdaemon, or xarchive of the segment), or type boot \
        --force to open without it",
    )
}

fn partial_end(partials: &[PartialEnd], segment: SegmentName) -> Option<Lsn> {
    let found = partials.iter().find(|partial| partial.segment == segment);
    found.map(|partial| partial.end)
}

/// Where the last whole record of a finished segment ends; `None` if it has none.
fn finished_end(
    archive: &ArchiveReader,
    line: &TimelineLine,
    segment: SegmentName,
) -> std::io::Result<Option<Lsn>> {
    let stored = archive.find(WalFileName::Segment(segment));
    let Some(stored) = stored.map_err(std::io::Error::other)? else {
        return Ok(None);
    };
    let binding = archive.binding();
    let size = binding.segment_size;
    let start = segment.start(size).unwrap_or_default();
    let segment_end = Lsn(start.0.saturating_add(size.bytes()));
    let scanner = Scanner::new(start, size)
        .of_cluster(binding.system_id)
        .of_major(binding.postgres_major)
        .up_to_timeline(segment.timeline());
    let mut through = Through::new(scanner, segment, size);
    let read = stored.read_unchecked(|piece| through.update(piece));
    read.map_err(std::io::Error::other)?;
    let end = through.records_end();
    let needed = line.led_to(segment, segment_end).unwrap_or(segment_end);
    if through.is_broken() && end < needed {
        return Ok(Some(segment_end));
    }
    Ok(Some(end).filter(|end| *end > start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_101_a_boot_is_judged_by_the_acknowledged_line_and_end() {
        let timeline = |number| TimelineId::new(number).unwrap();
        let history = |text: &str| History::parse(timeline(3), text.as_bytes()).unwrap();
        let acknowledged = |number, end| AcknowledgedEnd {
            timeline: timeline(number),
            end: Lsn(end),
        };
        let opened = history("1\t0/3000000\tpromoted\n2\t0/5000000\tpromoted\n");
        assert!(acknowledged(2, 0x500_0000).judge(&opened).is_ok());
        assert!(acknowledged(2, 0x400_0000).judge(&opened).is_ok());
        assert!(acknowledged(1, 0x300_0000).judge(&opened).is_ok());
        for less in [acknowledged(2, 0x500_0008), acknowledged(1, 0x300_0008)] {
            let told = less.judge(&opened).unwrap_err().to_string();
            assert!(told.contains(&less.end.to_string()), "{told}");
        }
        // It followed another timeline.
        let foreign = history("1\t0/9000000\tpromoted\n");
        let told = acknowledged(2, 0x500_0000).judge(&foreign).unwrap_err();
        assert!(
            told.to_string().contains("timeline 1 up to 0/9000000"),
            "{told}"
        );
        let frozen = acknowledged(2, 0x100).with(Some(acknowledged(3, 0x200)));
        assert_eq!(frozen, acknowledged(3, 0x200));
        assert_eq!(frozen.with(Some(acknowledged(2, 0x180))), frozen);
        assert_eq!(frozen.with(None), frozen);
        // What was frozen of the timeline that replay came to, and not of the one it left.
        let opened = history("1\t0/3000000\tpromoted\n2\t0/5000000\tpromoted\n");
        let with_frozen = acknowledged(1, 0x300_0000).with(Some(acknowledged(2, 0x500_0000)));
        assert!(with_frozen.judge(&opened).is_ok());
    }
}
