//! What a line has of each segment number, as runs.
//! Never asks which files there are. Invariant: no number is in two runs, and of a run all but the last segment is
//! whole.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use walmgr_protocol::names::{Lsn, TimelineId, WalSegmentSize};

/// What there is of each number: on which timeline, and where that ends.
pub(super) struct LinePieces {
    size: WalSegmentSize,
    /// By the first number of each run.
    runs: BTreeMap<u64, Run>,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    last: u64,
    timeline: TimelineId,
    /// Where the last one ends.
    end: Lsn,
}

/// What there is of one number.
#[derive(Debug, Clone, Copy)]
pub(super) struct LinePart {
    pub(super) timeline: TimelineId,
    pub(super) end: Lsn,
}

impl LinePieces {
    pub(super) const fn new(size: WalSegmentSize) -> LinePieces {
        LinePieces {
            size,
            runs: BTreeMap::new(),
        }
    }

    /// Adds those numbers that are not there yet; the last of them ends at `end`, or with its segment.
    pub(super) fn add(&mut self, numbers: RangeInclusive<u64>, timeline: TimelineId, end: Lsn) {
        let mut first = *numbers.start();
        while first <= *numbers.end() {
            let next = self.runs.range(first..).next().map(|(next, _)| *next);
            if let Some((_, held)) = self.runs.range(..=first).next_back()
                && held.last >= first
            {
                first = held.last + 1;
                continue;
            }
            let last = next.map_or(*numbers.end(), |next| (next - 1).min(*numbers.end()));
            let whole = self.start_of(last + 1);
            let end = match last == *numbers.end() {
                true => end.min(whole),
                false => whole,
            };
            let run = Run {
                last,
                timeline,
                end,
            };
            self.runs.insert(first, run);
            first = last + 1;
        }
    }

    /// What there is of a number.
    pub(super) fn get(&self, number: u64) -> Option<LinePart> {
        let (found, part) = self.up_to(number)?;
        (found == number).then_some(part)
    }

    /// The last number that is there.
    pub(super) fn last(&self) -> Option<(u64, LinePart)> {
        self.up_to(u64::MAX)
    }

    /// The last number before this one that is there.
    pub(super) fn before(&self, number: u64) -> Option<(u64, LinePart)> {
        self.up_to(number.checked_sub(1)?)
    }

    /// The last number up to this one that is there.
    pub(super) fn up_to(&self, number: u64) -> Option<(u64, LinePart)> {
        let (_, run) = self.runs.range(..=number).next_back()?;
        let number = number.min(run.last);
        let end = match number == run.last {
            true => run.end,
            false => self.start_of(number + 1),
        };
        let timeline = run.timeline;
        Some((number, LinePart { timeline, end }))
    }

    /// The runs from this number on, in order, with what there is of the last number of each.
    pub(super) fn from(&self, first: u64) -> impl Iterator<Item = (RangeInclusive<u64>, LinePart)> {
        let before = self.runs.range(..first).next_back();
        let before = before.filter(|(_, run)| run.last >= first);
        let runs = before.into_iter().chain(self.runs.range(first..));
        runs.map(move |(begins, run)| {
            let Run {
                last,
                timeline,
                end,
            } = *run;
            ((*begins).max(first)..=last, LinePart { timeline, end })
        })
    }

    /// The first number of those that lead to this one without a gap.
    pub(super) fn first_of_run(&self, number: u64) -> u64 {
        let Some((mut first, _)) = self.runs.range(..=number).next_back() else {
            return number;
        };
        if self.get(number).is_none() {
            return number;
        }
        while let Some((before, run)) = self.runs.range(..*first).next_back()
            && run.end == self.start_of(*first)
        {
            first = before;
        }
        *first
    }

    /// The first number of these that is not there to its end; the last one may be in progress.
    pub(super) fn first_short(&self, first: u64, last: u64) -> Option<u64> {
        let mut expected = first;
        for (numbers, part) in self.from(first) {
            if *numbers.start() != expected || expected > last {
                break;
            }
            let ends = *numbers.end();
            if ends < last && part.end < self.start_of(ends + 1) {
                return Some(ends);
            }
            expected = ends.saturating_add(1);
        }
        (expected <= last).then_some(expected)
    }

    /// Where the run ends that this number, which is there, belongs to.
    pub(super) fn end_of_run(&self, first: u64) -> Lsn {
        let mut end = self.start_of(first);
        for (numbers, part) in self.from(first) {
            if self.start_of(*numbers.start()) != end {
                break;
            }
            end = part.end;
        }
        end
    }

    fn start_of(&self, number: u64) -> Lsn {
        Lsn(number.saturating_mul(self.size.bytes()))
    }
}
