//! What monitoring sees of the receiver: what was counted, what is known anyway, and what was looked at lately.
//! Never looks at a disk while somebody asks. Invariant: what is shown has no path, address or name of a file in it.

use std::path::Path;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use walmgr_protocol::limits::RESERVED_SEGMENTS;

use crate::config::ListenAddress;
use crate::error::Result;
use crate::metrics::{
    Metric, MetricsPage, MetricsService, MetricsSource, REFRESH_INTERVAL, Refreshes, Samples,
    Subject,
};
use crate::receiver::cluster::Cluster;
use crate::receiver::clusters::Clusters;
use crate::receiver::connections::Connections;
use crate::receiver::refusal_log::Refusals;
use crate::store::Health;

/// Looks at the cluster of a file as `status` does, with settings that were typed in place of the file's; nothing
/// where that cannot be read.
pub(crate) type StandbyLook = fn(&Path, &[(String, String)]) -> Option<Samples>;

/// What is shown of a receiver.
#[derive(Clone)]
pub(crate) struct MonitoredReceiver {
    /// All clusters.
    pub clusters: Arc<Clusters>,
    /// The connections of known peers.
    pub connections: Arc<Connections>,
    /// Who was refused.
    pub refusals: Arc<Refusals>,
    /// Cancelled when nothing more is begun.
    pub stopping: CancellationToken,
    /// Settings that were typed, for the looks.
    pub overrides: Vec<(String, String)>,
}

impl MonitoredReceiver {
    /// Serves it on these addresses.
    pub(crate) fn serve(
        self,
        addresses: &[ListenAddress],
        look: StandbyLook,
    ) -> Result<MetricsService> {
        MetricsService::start(addresses, move || {
            let (shown, looked_at) = (self.clone(), self.clone());
            let subjects = move || looked_at.subjects(look);
            let refreshes = Refreshes::start(subjects, REFRESH_INTERVAL);
            Arc::new(ReceiverSource { shown, refreshes })
        })
    }

    fn subjects(&self, look: StandbyLook) -> Vec<Subject> {
        let served = self.clusters.served().into_iter();
        let each = served.map(|(name, hosted)| {
            let (path, overrides) = (hosted.path.clone(), self.overrides.clone());
            let cluster = Arc::clone(&hosted.cluster);
            let look_at_both = {
                let path = path.clone();
                move || {
                    if let Ok(store) = cluster.store() {
                        store.archive.look_for_room();
                    }
                    look(&path, &overrides)
                }
            };
            let look = Arc::new(look_at_both);
            Subject { name, path, look }
        });
        each.collect()
    }
}

/// The finding of a cluster that is served with its old settings, as `status` has it.
const OLD_SETTINGS: [(&str, &str); 2] = [("code", "receiver"), ("level", "warning")];

struct ReceiverSource {
    shown: MonitoredReceiver,
    refreshes: Refreshes,
}

impl MetricsSource for ReceiverSource {
    fn page(&self) -> MetricsPage {
        let mut page = MetricsPage::default();
        for (reason, counter) in self.shown.refusals.counts() {
            let labels = [("reason", reason.word())];
            page.process.counter(Metric::Refusals, &labels, counter);
        }
        for (name, hosted) in self.shown.clusters.served() {
            let samples = self.samples(&name, &hosted.cluster);
            page.clusters.push((name, samples));
        }
        for name in self.shown.clusters.not_served() {
            let mut samples = Samples::default();
            samples.flag(Metric::Up, false);
            page.clusters.push((name, samples));
        }
        page
    }

    fn troubles(&self) -> Vec<String> {
        if self.shown.stopping.is_cancelled() {
            return vec!["the receiver stops".to_owned()];
        }
        let served = self.shown.clusters.served();
        let mut troubles: Vec<String> = (served.iter())
            .filter_map(|(name, hosted)| {
                let found = self.refreshes.of(name);
                let free = found.and_then(|(found, _)| found.get(Metric::DiskFree));
                let trouble = trouble(&hosted.cluster, free)?;
                Some(format!("{name}: {trouble}"))
            })
            .collect();
        let unserved = self.shown.clusters.not_served().into_iter();
        troubles.extend(unserved.map(|name| {
            format!("{name}: it is not served, or not yet; the receiver's log says why")
        }));
        troubles
    }
}

impl ReceiverSource {
    fn samples(&self, name: &str, cluster: &Cluster) -> Samples {
        let meter = &cluster.meter;
        let mut samples = Samples::default();
        let raw = [("kind", "raw")];
        let wire = [("kind", "wire")];
        samples.counter(Metric::ArchiveSegments, &[], &meter.segments);
        samples.counter(Metric::ArchiveBytes, &raw, &meter.raw_bytes);
        samples.counter(Metric::ArchiveBytes, &wire, &meter.wire_bytes);
        samples.histogram(Metric::ArchiveDuration, &meter.durations);
        samples.histogram(Metric::FsyncDuration, &meter.store.syncs);
        samples.counter(Metric::RecordsChecked, &[], &meter.store.records_checked);
        let connections = self.shown.connections.of_cluster(cluster.number);
        samples.whole(Metric::Connections, connections as u64);
        let found = self.refreshes.of(name);
        let free = (found.as_ref()).and_then(|(found, _)| found.get(Metric::DiskFree));
        let up = !self.shown.stopping.is_cancelled() && trouble(cluster, free).is_none();
        samples.flag(Metric::Up, up);
        let looked_at = found.as_ref().and_then(|(found, age)| {
            let received_age_s = found.get(Metric::ReceivedAge)?;
            Some(received_age_s + age.as_secs_f64())
        });
        // Whatever came since the look has made it smaller.
        let received = meter.received_age_s();
        let least = looked_at.into_iter().chain(received).reduce(f64::min);
        samples.gauge(Metric::ReceivedAge, least);
        if let Some((mut found, _)) = found {
            found.retain(|metric| metric != Metric::ReceivedAge);
            samples.extend(&found);
        }
        // No look finds this: a look takes the file, and not the settings that are in force.
        if self.shown.clusters.has_old_settings(name) {
            samples.set_flag_of(Metric::Finding, &OLD_SETTINGS, true);
        }
        samples
    }
}

/// Why a segment of the cluster could not be taken now.
fn trouble(cluster: &Cluster, free_bytes: Option<f64>) -> Option<&'static str> {
    let Ok(store) = cluster.store() else {
        return Some(
            "its archive is closed, since a sync failed, until everything was read again; check the disk",
        );
    };
    match store.health() {
        Health::Good => {}
        Health::Impaired { is_full: true, .. } => {
            return Some("no space is left for the archive: the last file was refused");
        }
        Health::Impaired { .. } => return Some("the disk refused the last file; check it"),
        Health::SyncFailed { .. } => return Some("a sync failed; check the disk"),
    }
    let Some(binding) = store.archive.binding() else {
        return Some("no cluster has its archive yet: `setup` on the master comes first");
    };
    let segment_bytes = binding.segment_size.bytes();
    #[expect(clippy::cast_precision_loss, reason = "a few segments")]
    let needed_bytes = ((RESERVED_SEGMENTS + 1) * segment_bytes) as f64;
    let is_full = free_bytes.is_some_and(|free_bytes| free_bytes < needed_bytes);
    is_full.then_some("no space is left for another segment")
}
