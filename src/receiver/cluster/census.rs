//! What the clusters of a process share: how many of their stores are open, whose turn it is, what they have together.
//! Never touches a store. Invariant: once all of them have retired none is opened again: the process ends.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::receiver::shares::SharePools;

/// The stores of a process.
#[derive(Default)]
pub(crate) struct StoreCensus {
    /// The threads that they have together.
    pub pools: SharePools,
    counts: Mutex<StoreCounts>,
    /// Cancelled when all have retired.
    none_left: CancellationToken,
    /// Held by whoever reads a whole archive behind a start: one at a time, whatever the number of clusters.
    reading: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct StoreCounts {
    /// Clusters since the start.
    clusters: u64,
    open: usize,
    retired: usize,
    /// Whether no more are about to be opened for the first time.
    is_complete: bool,
    /// Why the last one retired.
    why: String,
    /// All have retired.
    is_over: bool,
}

impl StoreCensus {
    /// A cluster's store was opened for the first time; the cluster has the returned number.
    pub(crate) fn opened(&self) -> u64 {
        let mut counts = self.counts();
        counts.open += 1;
        counts.clusters += 1;
        counts.clusters
    }

    /// All stores that a start opens have been counted.
    pub(crate) fn is_complete(&self) {
        self.counts().is_complete = true;
        self.end_if_none_is_left();
    }

    /// A store that was open retires. Says whether the process goes on without it.
    pub(crate) fn retires(&self, why: &str) -> bool {
        let mut counts = self.counts();
        counts.open = counts.open.saturating_sub(1);
        counts.retired += 1;
        if !counts.is_over {
            why.clone_into(&mut counts.why);
        }
        drop(counts);
        !self.end_if_none_is_left()
    }

    /// A store that had retired is open again; `false` when the process ends meanwhile.
    pub(crate) fn reopened(&self) -> bool {
        let mut counts = self.counts();
        if counts.is_over {
            return false;
        }
        counts.retired = counts.retired.saturating_sub(1);
        counts.open += 1;
        true
    }

    /// A cluster is served no more.
    pub(crate) fn closed(&self, had_retired: bool) {
        let mut counts = self.counts();
        let count = match had_retired {
            true => &mut counts.retired,
            false => &mut counts.open,
        };
        *count = count.saturating_sub(1);
        drop(counts);
        self.end_if_none_is_left();
    }

    /// The turn of whoever reads a whole archive behind a start.
    pub(crate) async fn turn_to_read(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.reading.lock().await
    }

    /// Returns when all stores have retired.
    pub(crate) async fn none_left(&self) {
        self.none_left.cancelled().await;
    }

    /// Why the process ends, once all stores have retired.
    pub(crate) fn ends_because(&self) -> Option<String> {
        let counts = self.counts();
        counts.is_over.then(|| counts.why.clone())
    }

    fn end_if_none_is_left(&self) -> bool {
        let mut counts = self.counts();
        counts.is_over |= counts.is_complete && counts.open == 0 && counts.retired > 0;
        let is_over = counts.is_over;
        drop(counts);
        if is_over {
            self.none_left.cancel();
        }
        is_over
    }

    fn counts(&self) -> MutexGuard<'_, StoreCounts> {
        // Each change is complete before anything can panic.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_33_a_process_ends_only_when_all_its_stores_have_retired() {
        let census = StoreCensus::default();
        census.opened();
        // Others are about to be opened.
        assert!(census.retires("one"));
        census.opened();
        census.is_complete();
        assert_eq!(census.ends_because(), None);
        assert!(census.reopened());
        assert!(census.retires("two"));
        assert!(!census.retires("three"));
        assert_eq!(census.ends_because().as_deref(), Some("three"));
        assert!(census.none_left.is_cancelled());
        assert!(!census.reopened());
    }

    #[test]
    fn a_process_goes_on_without_clusters_and_not_with_retired_ones_alone() {
        let census = StoreCensus::default();
        census.is_complete();
        census.opened();
        census.closed(false);
        assert_eq!(census.ends_because(), None);
        census.opened();
        census.opened();
        assert!(census.retires("one"));
        census.closed(false);
        assert_eq!(census.ends_because().as_deref(), Some("one"));
    }
}
