//! The segments of an archive as runs without a hole, so that a million of them take as little as one.
//! Never knows of a file. Invariant: two runs of a timeline neither overlap nor touch.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use walmgr_protocol::names::{SegmentName, TimelineId, WalSegmentSize};

/// A set of segments of one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentRuns {
    size: WalSegmentSize,
    /// Of each timeline the first and the last number of each run.
    runs: BTreeMap<TimelineId, BTreeMap<u64, u64>>,
}

impl SegmentRuns {
    /// None.
    pub const fn new(size: WalSegmentSize) -> SegmentRuns {
        SegmentRuns {
            size,
            runs: BTreeMap::new(),
        }
    }

    /// These.
    pub fn of(size: WalSegmentSize, segments: impl IntoIterator<Item = SegmentName>) -> Self {
        let mut runs = SegmentRuns::new(size);
        for segment in segments {
            runs.insert(segment);
        }
        runs
    }

    /// Adds one; no if it is there, or no segment of this size has such a name.
    pub fn insert(&mut self, segment: SegmentName) -> bool {
        match segment.number(self.size) {
            Some(number) if !self.contains(segment) => {
                self.merge(segment.timeline(), number, number);
                true
            }
            _ => false,
        }
    }

    /// Adds all from one to another on the same timeline; no if there can be no such run.
    pub fn insert_run(&mut self, first: SegmentName, last: SegmentName) -> bool {
        let numbers = (first.number(self.size), last.number(self.size));
        match numbers {
            (Some(begin), Some(end)) if first <= last && first.timeline() == last.timeline() => {
                self.merge(first.timeline(), begin, end);
                true
            }
            _ => false,
        }
    }

    /// Adds those of another set.
    pub fn add_runs(&mut self, others: &SegmentRuns) {
        for timeline in others.timelines() {
            for run in others.runs(timeline) {
                self.merge(timeline, *run.start(), *run.end());
            }
        }
    }

    fn merge(&mut self, timeline: TimelineId, mut first: u64, mut last: u64) {
        let runs = self.runs.entry(timeline).or_default();
        if let Some((begins, ends)) = runs.range(..=first).next_back()
            && ends.saturating_add(1) >= first
        {
            (first, last) = (*begins, last.max(*ends));
        }
        while let Some((begins, ends)) = runs.range(first..=last.saturating_add(1)).next() {
            let (begins, ends) = (*begins, *ends);
            last = last.max(ends);
            runs.remove(&begins);
        }
        runs.insert(first, last);
    }

    /// Takes one away; no if it is not there.
    pub fn remove(&mut self, segment: SegmentName) -> bool {
        let Some((number, run)) = self.run_with(segment) else {
            return false;
        };
        let timeline = segment.timeline();
        let runs = self.runs.entry(timeline).or_default();
        runs.remove(run.start());
        if *run.start() < number {
            runs.insert(*run.start(), number - 1);
        }
        if number < *run.end() {
            runs.insert(number + 1, *run.end());
        }
        if runs.is_empty() {
            self.runs.remove(&timeline);
        }
        true
    }

    /// Whether it is there.
    pub fn contains(&self, segment: SegmentName) -> bool {
        self.run_with(segment).is_some()
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        let runs = self.runs.values().flatten();
        runs.map(|(first, last)| last - first + 1).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The timelines that have any, in order.
    pub fn timelines(&self) -> impl DoubleEndedIterator<Item = TimelineId> {
        self.runs.keys().copied()
    }

    /// The runs of a timeline, in order.
    pub fn runs(
        &self,
        timeline: TimelineId,
    ) -> impl DoubleEndedIterator<Item = RangeInclusive<u64>> {
        let runs = self.runs.get(&timeline).into_iter().flatten();
        runs.map(|(first, last)| *first..=*last)
    }

    /// The first and the last segment of every run, in order.
    pub fn named_runs(&self) -> impl Iterator<Item = (SegmentName, SegmentName)> {
        self.timelines().flat_map(move |timeline| {
            let name = move |number| SegmentName::from_number(timeline, number, self.size);
            let runs = self.runs(timeline);
            runs.map(move |run| (name(*run.start()), name(*run.end())))
        })
    }

    /// The segments of a timeline, in order.
    pub fn on(&self, timeline: TimelineId) -> impl DoubleEndedIterator<Item = SegmentName> {
        let numbers = self.runs(timeline).flatten();
        numbers.map(move |number| SegmentName::from_number(timeline, number, self.size))
    }

    /// The segments of a timeline behind one of them.
    pub fn behind(&self, segment: SegmentName) -> impl Iterator<Item = SegmentName> {
        let timeline = segment.timeline();
        // One that no segment of this size has stands between two that may.
        let runs = self.runs(timeline).filter_map(move |run| {
            let ends = SegmentName::from_number(timeline, *run.end(), self.size);
            if ends <= segment {
                return None;
            }
            let begins = segment.number(self.size).map_or(0, |number| number + 1);
            Some(begins.max(*run.start())..=*run.end())
        });
        let names = runs.flatten();
        let names = names.map(move |number| SegmentName::from_number(timeline, number, self.size));
        names.skip_while(move |name| *name <= segment)
    }

    /// The segments that are next behind this one, on its timeline and on newer ones, the oldest timeline first.
    pub fn following(&self, segment: SegmentName) -> impl Iterator<Item = SegmentName> {
        let number = segment.number(self.size).map_or(u64::MAX, |it| it + 1);
        let timelines = self.runs.range(segment.timeline()..);
        let names = timelines.map(move |(timeline, _)| (*timeline, number));
        let names = names.filter(|(_, number)| *number < u64::MAX);
        let names = names.map(|(it, number)| SegmentName::from_number(it, number, self.size));
        names.filter(|name| self.contains(*name))
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = SegmentName> {
        self.timelines().flat_map(|timeline| self.on(timeline))
    }

    /// So many of them at most, spread evenly over all, in order; with how many each stands for.
    pub fn sample(&self, most: u64) -> (Vec<SegmentName>, u64) {
        let step = self.len().div_ceil(most.max(1)).max(1);
        let (mut sample, mut skipped) = (Vec::new(), 0);
        for timeline in self.timelines() {
            for run in self.runs(timeline) {
                let mut number = run.start() + skipped;
                while number <= *run.end() {
                    sample.push(SegmentName::from_number(timeline, number, self.size));
                    number += step;
                }
                skipped = number - run.end() - 1;
            }
        }
        (sample, step)
    }

    fn run_with(&self, segment: SegmentName) -> Option<(u64, RangeInclusive<u64>)> {
        let number = segment.number(self.size)?;
        let runs = self.runs.get(&segment.timeline())?;
        let (first, last) = runs.range(..=number).next_back()?;
        (number <= *last).then_some((number, *first..=*last))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn name((timeline, number): (u32, u64)) -> SegmentName {
        let size = WalSegmentSize::new(1 << 20).unwrap();
        SegmentName::from_number(TimelineId::new(timeline).unwrap(), number, size)
    }

    proptest! {
        #[test]
        fn runs_hold_what_a_set_of_names_holds(
            changes in proptest::collection::vec((any::<bool>(), 1_u32..4, 4_085_u64..4_105), 0..120),
        ) {
            let size = WalSegmentSize::new(1 << 20).unwrap();
            let (mut runs, mut set) = (SegmentRuns::new(size), BTreeSet::new());
            for (adds, timeline, number) in changes {
                let name = name((timeline, number));
                match adds {
                    true => prop_assert_eq!(runs.insert(name), set.insert(name)),
                    false => prop_assert_eq!(runs.remove(name), set.remove(&name)),
                }
            }
            prop_assert!(runs.iter().eq(set.iter().copied()));
            prop_assert!(runs.iter().rev().eq(set.iter().rev().copied()));
            prop_assert_eq!(runs.len(), set.len() as u64);
            prop_assert_eq!(runs.is_empty(), set.is_empty());
            let timelines: BTreeSet<TimelineId> = set.iter().map(|name| name.timeline()).collect();
            prop_assert!(runs.timelines().eq(timelines));
            for asked in (1..4).flat_map(|timeline| (4_084..4_106).map(move |it| name((timeline, it)))) {
                prop_assert_eq!(runs.contains(asked), set.contains(&asked));
                let behind = set.iter().filter(|it| it.timeline() == asked.timeline() && **it > asked);
                prop_assert!(runs.behind(asked).eq(behind.copied()));
            }
            let mut copy = SegmentRuns::new(size);
            for (first, last) in runs.named_runs().collect::<Vec<_>>().into_iter().rev() {
                prop_assert!(copy.insert_run(first, last));
            }
            prop_assert_eq!(&copy, &runs);
            let (mut one, mut other) = (SegmentRuns::new(size), SegmentRuns::new(size));
            for (at, name) in set.iter().enumerate() {
                let half = if at % 3 == 0 { &mut one } else { &mut other };
                prop_assert!(half.insert(*name));
            }
            one.add_runs(&other);
            one.add_runs(&runs);
            prop_assert_eq!(&one, &runs);
            let (sample, step) = runs.sample(7);
            prop_assert!(sample.len() <= 7);
            prop_assert!(sample.iter().eq(set.iter().step_by(usize::try_from(step).unwrap())));
            for timeline in runs.timelines() {
                let held: Vec<_> = runs.runs(timeline).collect();
                for two in held.windows(2) {
                    prop_assert!(two[0].end() + 1 < *two[1].start());
                }
            }
        }
    }

    #[test]
    fn a_name_that_no_segment_of_the_size_has_is_in_no_run() {
        let size = WalSegmentSize::new(16 << 20).unwrap();
        let odd: SegmentName = "000000010000000100000FFF".parse().unwrap();
        let mut runs = SegmentRuns::of(size, ["000000010000000100000001".parse().unwrap()]);
        assert!(!runs.insert(odd) && !runs.contains(odd) && !runs.remove(odd));
        runs.insert("000000010000000200000000".parse().unwrap());
        assert_eq!(runs.behind(odd).count(), 1);
    }
}
