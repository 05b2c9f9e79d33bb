//! What the clusters of a process share: how many of their stores are open, whose turn it is, what they have together.
//! Never touches a store. Invariant: once the last that is open has retired, and none is being opened, none is opened again: the process ends.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::rate_limit::RateLimit;
use crate::receiver::shares::SharePools;
use crate::store::{Archive, IndexKeeper, KeptIndex};

/// The stores of a process.
#[derive(Default)]
pub(crate) struct StoreCensus {
    /// The threads that they have together.
    pub pools: SharePools,
    /// How fast all fetches of their sets together may read.
    pub fetch_limit: RateLimit,
    /// Who keeps the indices of their names; begun with the first.
    names: OnceLock<Option<IndexKeeper>>,
    counts: Mutex<StoreCounts>,
    /// Cancelled when the last has retired.
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
    /// Clusters that are being opened.
    opening: usize,
    /// Whether no more are about to be opened for the first time.
    is_complete: bool,
    /// Why the last one retired.
    why: String,
    /// The last has retired.
    is_over: bool,
}

/// Counts a cluster that is being opened, until it is dropped.
pub(crate) struct ClusterOpening<'a>(&'a StoreCensus);

impl Drop for ClusterOpening<'_> {
    fn drop(&mut self) {
        let mut counts = self.0.counts();
        counts.opening = counts.opening.saturating_sub(1);
    }
}

impl StoreCensus {
    /// Has an index of an archive's names kept, where that can be.
    pub(crate) fn keep_index(&self, archive: &Archive) -> Option<KeptIndex> {
        let keeper = self.names.get_or_init(IndexKeeper::start);
        archive.keep_index(keeper.as_ref()?)
    }

    /// A cluster is being opened, for as long as what is returned lives.
    pub(crate) fn opening(&self) -> ClusterOpening<'_> {
        self.counts().opening += 1;
        ClusterOpening(self)
    }

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

    /// A cluster is served no more. That ends nothing: it may be closed to be opened again with other settings, and the
    /// retired ones go on trying.
    pub(crate) fn closed(&self, had_retired: bool) {
        let mut counts = self.counts();
        let count = match had_retired {
            true => &mut counts.retired,
            false => &mut counts.open,
        };
        *count = count.saturating_sub(1);
    }

    /// The turn of whoever reads a whole archive behind a start.
    pub(crate) async fn turn_to_read(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.reading.lock().await
    }

    /// Returns when the last store has retired.
    pub(crate) async fn none_left(&self) {
        self.none_left.cancelled().await;
    }

    /// Why the process ends, once the last store has retired.
    pub(crate) fn ends_because(&self) -> Option<String> {
        let counts = self.counts();
        counts.is_over.then(|| counts.why.clone())
    }

    fn end_if_none_is_left(&self) -> bool {
        let mut counts = self.counts();
        let is_open = counts.open > 0 || counts.opening > 0;
        counts.is_over |= counts.is_complete && !is_open && counts.retired > 0;
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
    fn a_process_goes_on_without_clusters_and_beside_a_closed_one() {
        let census = StoreCensus::default();
        census.is_complete();
        census.opened();
        census.closed(false);
        assert_eq!(census.ends_because(), None);
        census.opened();
        census.opened();
        assert!(census.retires("one"));
        census.closed(false);
        assert_eq!(census.ends_because(), None);
        assert!(census.reopened());
        assert!(!census.retires("two"));
        assert_eq!(census.ends_because().as_deref(), Some("two"));
    }

    #[test]
    fn fault_33_a_process_goes_on_while_its_only_open_cluster_is_reopened() {
        for retires_first in [true, false] {
            let census = StoreCensus::default();
            census.opened();
            census.opened();
            census.is_complete();
            if retires_first {
                assert!(census.retires("one"));
            }
            census.closed(false);
            let opening = census.opening();
            if !retires_first {
                assert!(census.retires("one"));
            }
            assert_eq!(census.ends_because(), None);
            census.opened();
            drop(opening);
            assert_eq!(census.ends_because(), None);
            assert!(!census.retires("two"));
        }
    }
}
