//! One line of timelines: what a server reads on its way, where it leads, and what it lacks.
//! Never looks at a timeline that is not on the line. Invariant: a gap that is named is one that replay
//! would stop at, and no segment counts for more than the line needs of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use walmgr_protocol::names::{Lsn, SegmentName, TimelineId, WalFileName, WalSegmentSize};

use super::model::Lineage;
use super::pieces::LinePieces;
use crate::wal::history::History;

/// The part of a timeline that is on a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leg {
    /// Which.
    pub timeline: TimelineId,
    /// Where it leaves the one before; 0 for the first.
    pub begin: Lsn,
    /// Where the next one leaves it; the highest LSN for the last.
    pub end: Lsn,
}

/// A timeline and those it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineLine {
    size: WalSegmentSize,
    /// Newest first.
    legs: Vec<Leg>,
}

/// A segment that is not there although later ones are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineGap {
    /// The first segment that is missing.
    pub missing: SegmentName,
    /// Whether its beginning is there.
    pub is_partly_there: bool,
    /// Where replay would end.
    pub lost_from: Lsn,
    /// Up to where there is WAL.
    pub lost_to: Lsn,
}

/// Up to where WAL leads, and what is missing there although more follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Led {
    /// The first byte that is not there.
    pub end: Lsn,
    /// The segment that it would be in, if there are later ones.
    pub missing: Option<SegmentName>,
}

impl TimelineLine {
    pub(super) fn alone(timeline: TimelineId, size: WalSegmentSize) -> TimelineLine {
        let (begin, end) = (Lsn(0), Lsn(u64::MAX));
        TimelineLine {
            size,
            legs: vec![Leg {
                timeline,
                begin,
                end,
            }],
        }
    }

    pub(super) fn of(history: &History, size: WalSegmentSize) -> TimelineLine {
        let mut end = Lsn(u64::MAX);
        let timelines = history.timelines().into_iter();
        let legs = timelines.map(|(timeline, begin)| Leg {
            timeline,
            begin,
            end: std::mem::replace(&mut end, begin),
        });
        TimelineLine {
            size,
            legs: legs.collect(),
        }
    }

    /// Its parts, the newest first; never empty.
    pub fn legs(&self) -> &[Leg] {
        &self.legs
    }

    /// The part of a timeline.
    pub fn leg(&self, timeline: TimelineId) -> Option<&Leg> {
        self.legs.iter().find(|leg| leg.timeline == timeline)
    }

    /// Whether it leads through this place. A set whose backup ended elsewhere is of no use along it: PostgreSQL never
    /// meets the end of that backup, and the set has pages that no WAL of this line tells of.
    pub fn passes(&self, (timeline, lsn): (TimelineId, Lsn)) -> bool {
        self.leg(timeline).is_some_and(|leg| lsn <= leg.end)
    }

    /// Whether it leads through a backup, whose end may not be known.
    pub fn passes_backup(&self, start: (TimelineId, Lsn), end: Option<(TimelineId, Lsn)>) -> bool {
        self.passes(start) && end.is_none_or(|end| self.passes(end))
    }

    /// The timeline that it ends on.
    pub fn newest_timeline(&self) -> TimelineId {
        let newest = self.legs.first();
        newest.map_or(TimelineId::FIRST, |leg| leg.timeline)
    }

    /// How far records of this segment that end there lead; `None` if it is not read.
    pub fn led_to(&self, segment: SegmentName, end: Lsn) -> Option<Lsn> {
        let (_, last) = self.part_of(segment)?;
        Some(end.min(last))
    }

    /// A segment's number, and where what the line needs of it ends; `None` if that is nothing.
    pub fn part_of(&self, segment: SegmentName) -> Option<(u64, Lsn)> {
        let number = segment.number(self.size)?;
        let leg = self.leg(segment.timeline())?;
        let (start, end) = (self.start_of(number), self.start_of(number + 1));
        (end > leg.begin && start < leg.end).then_some((number, end.min(leg.end)))
    }

    /// The segment on the newest timeline that has one of this number.
    pub fn name(&self, number: u64) -> SegmentName {
        let end = self.start_of(number + 1);
        let leg = self.legs.iter().find(|leg| leg.begin < end);
        let timeline = leg.map_or(TimelineId::FIRST, |leg| leg.timeline);
        SegmentName::from_number(timeline, number, self.size)
    }

    fn start_of(&self, number: u64) -> Lsn {
        Lsn(number.saturating_mul(self.size.bytes()))
    }
}

impl Lineage {
    /// The finished segment that a server on this line reads for a number: the newest timeline's.
    pub fn segment(&self, line: &TimelineLine, number: u64) -> Option<SegmentName> {
        let mut legs = line.legs.iter();
        legs.find_map(|leg| {
            let name = SegmentName::from_number(leg.timeline, number, line.size);
            let read = line.part_of(name).is_some() && self.is_read(name);
            (read && self.facts.segments.contains(name)).then_some(name)
        })
    }

    /// The first gap on the line of a server that needs the WAL from `from` on.
    pub fn gap(&self, line: &TimelineLine, from: Lsn) -> Option<LineGap> {
        let pieces = self.pieces(line);
        let damaged = self
            .facts
            .damaged
            .iter()
            .filter(|name| self.is_read(**name));
        let damaged = damaged.filter_map(|name| line.part_of(*name));
        let damaged: BTreeMap<u64, Lsn> = damaged.collect();
        let first = from.0 / line.size.bytes();
        let last = pieces.last().map(|(last, _)| last);
        let last = last.max(damaged.keys().next_back().copied());
        let last = last.filter(|last| *last >= first)?;
        let number = pieces.first_short(first, last)?;
        let missing = line.name(number);
        let there = pieces.get(number);
        let lost_from = there.map_or(line.start_of(number), |it| it.end);
        let last_end = pieces.get(last).map(|it| it.end);
        Some(LineGap {
            missing,
            is_partly_there: there.is_some_and(|it| it.timeline == missing.timeline()),
            lost_from: lost_from.max(from),
            lost_to: last_end.or(damaged.get(&last).copied()).unwrap_or(from),
        })
    }

    /// Every hole on the line of a server that needs the WAL from `from` on: the first and the last segment of each that
    /// is not there to its end although there is more behind it. One where there is nothing at all has one segment.
    pub fn holes(&self, line: &TimelineLine, from: Lsn) -> Vec<(SegmentName, SegmentName)> {
        let pieces = self.pieces(line);
        let first = from.0 / line.size.bytes();
        let Some((last, _)) = pieces.last().filter(|(last, _)| *last >= first) else {
            return vec![(line.name(first), line.name(first))];
        };
        let (mut holes, mut expected) = (Vec::new(), first);
        for (numbers, part) in pieces.from(first) {
            if *numbers.start() > expected {
                holes.push((line.name(expected), line.name(numbers.start() - 1)));
            }
            let ends = *numbers.end();
            if ends < last && part.end < line.start_of(ends + 1) {
                holes.push((line.name(ends), line.name(ends)));
            }
            expected = ends + 1;
        }
        holes
    }

    /// Up to where WAL leads from here. Damaged copies do not count as more that follows.
    pub fn led(&self, line: &TimelineLine, start: Lsn) -> Led {
        let pieces = self.pieces(line);
        let first = start.0 / line.size.bytes();
        let end = match pieces.get(first) {
            Some(_) => pieces.end_of_run(first),
            None => start,
        };
        let number = end.0 / line.size.bytes();
        let more = pieces.last().is_some_and(|(last, _)| last > number);
        Led {
            end,
            missing: more.then(|| line.name(number)),
        }
    }

    /// Up to where the last run leads, and the gap before it.
    pub fn led_behind_last_gap(&self, line: &TimelineLine) -> Option<Led> {
        let pieces = self.pieces(line);
        let (last, _) = pieces.last()?;
        let first = pieces.first_of_run(last);
        let missing = pieces.before(first).and_then(|(before, _)| {
            let number = pieces.first_short(before, first)?;
            Some(line.name(number))
        });
        Some(Led {
            end: pieces.end_of_run(first),
            missing,
        })
    }

    /// Where the WAL begins that leads to `from` without a gap.
    pub fn begin_of_run(&self, line: &TimelineLine, from: Lsn) -> Lsn {
        let number = from.0 / line.size.bytes();
        line.start_of(self.pieces(line).first_of_run(number))
    }

    /// What there is of each number, on the newest timeline that has it.
    pub(super) fn pieces(&self, line: &TimelineLine) -> LinePieces {
        let mut pieces = LinePieces::new(line.size);
        for leg in &line.legs {
            let (begin, end) = (leg.begin.0, leg.end.0);
            let size = line.size.bytes();
            let Some(last) = end.div_ceil(size).checked_sub(1) else {
                continue;
            };
            let first = begin / size;
            // A finished one comes before its beginning.
            for run in self.plain_runs(leg.timeline) {
                let numbers = first.max(*run.start())..=last.min(*run.end());
                pieces.add(numbers, leg.timeline, leg.end);
            }
            let partials = self.facts.partials.iter();
            for (segment, progress) in partials.filter(|(it, _)| it.timeline() == leg.timeline) {
                let Some((number, wanted)) = line.part_of(*segment) else {
                    continue;
                };
                let ends = progress.filter(|it| !it.is_whole).map(|it| it.end);
                let ends = ends.map_or(wanted, |end| end.min(wanted));
                pieces.add(number..=number, leg.timeline, ends);
            }
        }
        pieces
    }

    /// The runs of a timeline's finished segments that readers take.
    fn plain_runs(&self, timeline: TimelineId) -> Vec<RangeInclusive<u64>> {
        let noted = self.facts.notes.keys().filter_map(|name| match name {
            WalFileName::Segment(segment) if segment.timeline() == timeline => {
                segment.number(self.facts.size)
            }
            _ => None,
        });
        let noted: BTreeSet<u64> = noted.collect();
        let mut plain = Vec::new();
        for run in self.facts.segments.runs(timeline) {
            let mut first = *run.start();
            for number in noted.range(run.clone()) {
                if first < *number {
                    plain.push(first..=number - 1);
                }
                first = number + 1;
            }
            if first <= *run.end() {
                plain.push(first..=*run.end());
            }
        }
        plain
    }

    /// Whether a reader whose line has this segment takes it. Its timeline is on the line, whether
    /// it counts or not: who wants that line said so.
    fn is_read(&self, segment: SegmentName) -> bool {
        self.is_plain(segment)
    }
}
