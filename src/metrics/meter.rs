//! Counters and histograms that the way of the data adds to.
//! Never locks, allocates or waits. Invariant: an event costs an atomic addition to each number it changes, and nothing
//! outlives the process.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Counts so many more.
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// How many there were.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds in milliseconds: from a fast disk's sync to as long as an archiver waits.
const BOUNDS_MS: [f64; 16] = [
    0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 10e3, 30e3, 60e3,
];

/// How long something took, each time.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    /// The last is for what took longer than all bounds.
    counts: [AtomicU64; BOUNDS_MS.len() + 1],
    sum_ns: AtomicU64,
}

/// What a histogram had counted at a moment.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HistogramRead {
    /// Seconds of all together.
    pub sum_s: f64,
    /// How many.
    pub count: u64,
    /// Upper bounds in seconds, and how many lie between each and the bound before.
    pub buckets: Vec<(f64, u64)>,
}

impl Histogram {
    /// It took so long once.
    pub(crate) fn observe(&self, took: Duration) {
        let took_ms = took.as_secs_f64() * 1e3;
        let bucket = BOUNDS_MS.partition_point(|bound| *bound < took_ms);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.sum_ns.fetch_add(took_ns, Ordering::Relaxed);
    }

    /// Does something and counts how long that took.
    pub(crate) fn time<T>(&self, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let done = work();
        self.observe(begun.elapsed());
        done
    }

    /// What was counted so far.
    #[expect(clippy::cast_precision_loss, reason = "a sum for people")]
    pub(crate) fn read(&self) -> HistogramRead {
        let bounds = BOUNDS_MS.iter().map(|ms| ms / 1e3).chain([f64::INFINITY]);
        let counts = self
            .counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        HistogramRead {
            sum_s: self.sum_ns.load(Ordering::Relaxed) as f64 / 1e9,
            count: buckets.iter().map(|(_, count)| count).sum(),
            buckets,
        }
    }
}

/// What an archive counts of its own.
#[derive(Debug, Default)]
pub(crate) struct StoreMeter {
    /// Syncs of files and folders.
    pub syncs: Histogram,
    /// Records that were checked before they were acknowledged.
    pub records_checked: Counter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_counted_below_the_first_bound_that_it_does_not_exceed() {
        let histogram = Histogram::default();
        for ms in [0, 1, 2, 100, 70_000] {
            histogram.observe(Duration::from_millis(ms));
        }
        let read = histogram.read();
        assert_eq!(read.count, 5);
        assert!((read.sum_s - 70.103).abs() < 1e-6);
        let counted = |bound: f64| read.buckets.iter().find(|(found, _)| *found == bound);
        for (bound, count) in [
            (0.000_5, 1),
            (0.001, 1),
            (0.002_5, 1),
            (0.1, 1),
            (60.0, 0),
            (f64::INFINITY, 1),
        ] {
            assert_eq!(
                counted(bound).map(|(_, count)| *count),
                Some(count),
                "{bound}"
            );
        }
    }
}
