//! What is counted of a cluster on the way of its data.
//! Never locks or allocates. Invariant: what is counted outlives a store that retires, and nothing outlives the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use crate::metrics::{Counter, Histogram, StoreMeter};

/// The counters of a cluster.
#[derive(Debug, Default)]
pub(crate) struct ClusterMeter {
    /// What the archive counts.
    pub store: Arc<StoreMeter>,
    /// Files that became durable.
    pub segments: Counter,
    /// Bytes of WAL that were received, as the server wrote them.
    pub raw_bytes: Counter,
    /// Bytes of that WAL as they came over the network, packed or not.
    pub wire_bytes: Counter,
    /// From an offer until the file was durable.
    pub durations: Histogram,
    /// When WAL became durable last, in milliseconds since 1970; 0 if none has since the start.
    received_ms: AtomicU64,
}

impl ClusterMeter {
    /// A block of so many bytes came as so many.
    pub(crate) fn received(&self, raw_bytes: usize, wire_bytes: usize) {
        self.raw_bytes.add(raw_bytes as u64);
        self.wire_bytes.add(wire_bytes as u64);
    }

    /// A file became durable, so long after it was offered.
    pub(crate) fn stored(&self, took: Duration) {
        self.segments.add(1);
        self.durations.observe(took);
    }

    /// WAL became durable.
    pub(crate) fn wal_is_durable(&self) {
        self.received_ms.store(now_ms(), Ordering::Relaxed);
    }

    /// Seconds since WAL became durable last; nothing if none has since the start.
    #[expect(clippy::cast_precision_loss, reason = "an age has no 53 bits")]
    pub(crate) fn received_age_s(&self) -> Option<f64> {
        let received_ms = self.received_ms.load(Ordering::Relaxed);
        let is_known = received_ms > 0;
        is_known.then(|| now_ms().saturating_sub(received_ms) as f64 / 1e3)
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}
