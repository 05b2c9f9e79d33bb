//! What monitoring sees of the syncdaemon: how its last pass went, the RPO now, and what was looked at lately.
//! Never looks at a disk while somebody asks. Invariant: what is shown has no path, address or name of a file in it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::config::MasterConfig;
use crate::error::Result;
use crate::master::agent::AgentMeter;
use crate::master::held_note::HeldNote;
use crate::master::rpo::RpoWatch;
use crate::master::status;
use crate::metrics::{
    Metric, MetricsPage, MetricsService, MetricsSource, REFRESH_INTERVAL, Refreshes, Samples,
    Subject,
};
use crate::status::{Thresholds, samples};

/// What is shown of a syncdaemon.
pub(super) struct MonitoredSyncdaemon {
    /// What would be lost.
    pub rpo: Arc<RpoWatch>,
    /// What was done for `xarchive`.
    pub agent: Arc<AgentMeter>,
    config: Mutex<Arc<MasterConfig>>,
    /// Whether the last pass ended well; nothing before the first.
    is_shipping: Mutex<Option<bool>>,
}

impl MonitoredSyncdaemon {
    /// One that has not made a pass yet.
    pub(super) fn new(config: &MasterConfig) -> MonitoredSyncdaemon {
        let rpo = RpoWatch::default();
        rpo.note_in(HeldNote::of(config));
        MonitoredSyncdaemon {
            rpo: Arc::new(rpo),
            agent: Arc::default(),
            config: Mutex::new(Arc::new(config.clone())),
            is_shipping: Mutex::default(),
        }
    }

    /// Serves it where the settings say.
    pub(super) fn serve(self: &Arc<Self>) -> Result<MetricsService> {
        let (shown, addresses) = (Arc::clone(self), self.config().metrics_listen.clone());
        MetricsService::start(&addresses, move || {
            shown.rpo.start();
            let looked_at = Arc::clone(&shown);
            let refreshes = Refreshes::start(move || looked_at.subjects(), REFRESH_INTERVAL);
            let shown = Arc::clone(&shown);
            Arc::new(SyncdaemonSource { shown, refreshes })
        })
    }

    /// The settings were read again.
    pub(super) fn reloaded(&self, config: &MasterConfig) {
        self.rpo.note_in(HeldNote::of(config));
        *locked(&self.config) = Arc::new(config.clone());
    }

    /// A pass ended.
    pub(super) fn passed(&self, is_shipping: bool) {
        *locked(&self.is_shipping) = Some(is_shipping);
    }

    fn config(&self) -> Arc<MasterConfig> {
        Arc::clone(&locked(&self.config))
    }

    fn subjects(&self) -> Vec<Subject> {
        let (config, rpo) = (self.config(), Arc::clone(&self.rpo));
        let (name, path) = (config.job_name.clone(), config.path.clone());
        let look = move || {
            let asked = Instant::now();
            let facts = status::facts(&config).ok()?;
            if let Ok(overview) = &facts.standby {
                rpo.overview(overview, asked);
            }
            Some(samples(&facts, &Thresholds::default()))
        };
        let look = Arc::new(look);
        vec![Subject { name, path, look }]
    }
}

struct SyncdaemonSource {
    shown: Arc<MonitoredSyncdaemon>,
    refreshes: Refreshes,
}

impl MetricsSource for SyncdaemonSource {
    fn page(&self) -> MetricsPage {
        let name = self.shown.config().job_name.clone();
        let mut samples = Samples::default();
        samples.flag(Metric::Up, self.troubles().is_empty());
        samples.gauge(Metric::Rpo, self.shown.rpo.seconds());
        self.shown.agent.show(&mut samples);
        if let Some((mut found, _)) = self.refreshes.of(&name) {
            found.retain(|metric| metric != Metric::Rpo);
            samples.extend(&found);
        }
        MetricsPage::of(&name, samples)
    }

    fn troubles(&self) -> Vec<String> {
        let trouble = match *locked(&self.shown.is_shipping) {
            Some(true) => return Vec::new(),
            Some(false) => "records are not shipped; the syncdaemon's log says why",
            None => "no pass has ended yet",
        };
        vec![format!("{}: {trouble}", self.shown.config().job_name)]
    }
}

fn locked<T>(field: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one assignment, so a panic elsewhere cannot have left half of one.
    field.lock().unwrap_or_else(PoisonError::into_inner)
}
