//! Opens, closes and re-reads the clusters of a host's folder, while the others serve.
//! Never waits for one cluster with the hands of another: what may block is done on threads, a few at a time.
//! Invariant: a cluster is led to, held open and named in the pidfile of its file from the same moment to the same
//! moment; a file that is wrong changes nothing of what is in force, and is named; none is opened where another may
//! still write.
//!
//! ```text
//! wanted ──▶ opening ──▶ held ──▶ closing ──▶ gone, or wanted again with other folders
//!    ▲          │
//!    └─ broken ◀┘   tried again every minute and at SIGHUP
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tracing::{Instrument, Span};
use walmgr_protocol::message::ErrorCode;

use crate::config::{self, HostConfig, ListenAddress, StandbyConfig, WantedInForce, WantedPaths};
use crate::daemon::{self, PidFile, UnservedClusters};
use crate::error::{CommandError, Result};
use crate::options::Options;
use crate::output;
use crate::patience::Patience;
use crate::receiver::cluster::census::StoreCensus;
use crate::receiver::cluster::{Cluster, keeper};
use crate::receiver::clusters::reading::{self, GoodCluster, HostRead};
use crate::receiver::clusters::{BrokenCluster, Clusters, HostedCluster};
use crate::receiver::worker::{self, Workforce};
use crate::receiver::{DRAIN_DEADLINE, THREADS_DEADLINE, wait_named};
use crate::store::{Disk, RealDisk};

/// Clusters that are opened at once: each reads much of its disk, and most share one.
const OPENINGS_MAX: usize = 4;

/// How long an opening keeps others from beginning, and a start from listening: longer than a healthy disk needs,
/// and a mount that hangs holds nobody up for good.
fn opening_patience() -> Duration {
    wait_named("WALMGR_OPENING_PATIENCE_MS", Duration::from_secs(30))
}

/// How often a broken cluster is tried again.
fn retry_interval() -> Duration {
    wait_named("WALMGR_RETRY_INTERVAL_MS", Duration::from_secs(60))
}

/// Time for the connections of a cluster that is served no more: those that drain, and a moment.
const CLOSED_WITHIN: Duration = DRAIN_DEADLINE.saturating_add(THREADS_DEADLINE);

/// The clusters of a host's folder.
pub(crate) struct ClusterFolder {
    host: HostConfig,
    options: Options,
    clusters: Arc<Clusters>,
    census: Arc<StoreCensus>,
    /// Cancelled when the process stops.
    stopping: CancellationToken,
    clusters_max: usize,
    patience: Patience,
    workforce: Workforce,
    permits: Arc<Semaphore>,
    /// Good files whose clusters are not open.
    wanted: BTreeMap<String, GoodCluster>,
    held: BTreeMap<String, HeldCluster>,
    /// Names of files whose turn comes when others have let go of the places.
    waiting: BTreeSet<String>,
    opening: BTreeMap<String, Arc<WantedPaths>>,
    openings: JoinSet<OpenedCluster>,
    closing: BTreeMap<String, Arc<WantedPaths>>,
    closings: JoinSet<String>,
    readings: JoinSet<Result<HostRead>>,
    is_reload: bool,
    reload_is_due: bool,
    /// Until when a reload waits at most for what it opens.
    reload_ends: Option<Instant>,
    retry: Interval,
    /// What `status` was told last of those that are not served.
    noted: Option<UnservedClusters>,
}

/// A cluster that is open.
struct HeldCluster {
    hosted: Arc<HostedCluster>,
    config: StandbyConfig,
    wanted: Arc<WantedPaths>,
    stopping: CancellationToken,
    _keeper: AbortOnDropHandle<()>,
    pidfile: PidFile,
}

/// What came of an opening.
struct OpenedCluster {
    name: String,
    file: GoodCluster,
    stopping: CancellationToken,
    result: Result<(Cluster, PidFile)>,
}

/// Something to see to.
pub(crate) enum FolderEvent {
    Opened(Box<OpenedInFolder>),
    Closed(String),
    Read(Result<Box<HostRead>>),
    RetryDue,
    ReloadOver,
}

/// What came of an opening, for [`ClusterFolder::handle`] alone.
pub(crate) struct OpenedInFolder(OpenedCluster);

impl ClusterFolder {
    /// A folder whose clusters are not open yet. At most `clusters_max` of them are served; `patience` bounds the wait
    /// for their disks. Has to be called within a runtime.
    pub(crate) fn new(
        host: &HostConfig,
        options: &Options,
        (clusters, census, stopping): (&Arc<Clusters>, &Arc<StoreCensus>, &CancellationToken),
        (clusters_max, patience): (usize, Patience),
    ) -> Self {
        let mut retry = tokio::time::interval(retry_interval());
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        retry.reset();
        ClusterFolder {
            host: host.clone(),
            options: options.clone(),
            clusters: Arc::clone(clusters),
            census: Arc::clone(census),
            stopping: stopping.clone(),
            clusters_max,
            patience,
            workforce: Workforce::new(Span::none(), || {}),
            permits: Arc::new(Semaphore::new(OPENINGS_MAX)),
            wanted: BTreeMap::new(),
            held: BTreeMap::new(),
            waiting: BTreeSet::new(),
            opening: BTreeMap::new(),
            openings: JoinSet::new(),
            closing: BTreeMap::new(),
            closings: JoinSet::new(),
            readings: JoinSet::new(),
            is_reload: false,
            reload_is_due: false,
            reload_ends: None,
            retry,
            noted: None,
        }
    }

    /// Opens what was read, and returns when that is done, or when what is left takes too long to wait for.
    pub(crate) async fn start(&mut self, read: HostRead) {
        self.apply(read);
        let all = async {
            while !self.openings.is_empty() {
                let event = self.next().await;
                self.handle(event);
            }
        };
        if timeout(opening_patience(), all).await.is_err() {
            for name in self.opening.keys() {
                self.note_slow(name);
            }
        }
        self.census.is_complete();
        self.tell_status();
    }

    /// The next thing to see to. Safe to drop and call again: nothing is lost.
    pub(crate) async fn next(&mut self) -> FolderEvent {
        tokio::select! {
            Some(Ok(opened)) = self.openings.join_next() => {
                FolderEvent::Opened(Box::new(OpenedInFolder(opened)))
            }
            Some(Ok(name)) = self.closings.join_next() => FolderEvent::Closed(name),
            Some(Ok(read)) = self.readings.join_next() => FolderEvent::Read(read.map(Box::new)),
            _ = self.retry.tick() => FolderEvent::RetryDue,
            () = at(self.reload_ends) => FolderEvent::ReloadOver,
        }
    }

    /// Sees to it.
    pub(crate) fn handle(&mut self, event: FolderEvent) {
        match event {
            FolderEvent::Opened(opened) => self.opened(opened.0),
            FolderEvent::Closed(name) => {
                self.closing.remove(&name);
                self.open_wanted();
            }
            FolderEvent::Read(read) => self.was_read(read),
            FolderEvent::RetryDue => self.retry_broken(),
            FolderEvent::ReloadOver => self.end_reload(),
        }
        if self.reload_ends.is_some() && self.opening.is_empty() && !self.waits_to_open() {
            self.end_reload();
        }
    }

    /// Whether a cluster is to be opened once another has been closed, or it itself.
    fn waits_to_open(&self) -> bool {
        let mut waiting = self.waiting.iter();
        waiting.any(|name| self.wanted.contains_key(name))
    }

    /// Says that the reload is done, and what it has come to.
    fn end_reload(&mut self) {
        self.reload_ends = None;
        tracing::info!("settings and keys reloaded; {}", self.clusters.summary());
        daemon::tell_ready();
        self.tell_status();
        self.read_if_due();
    }

    /// Where metrics are to be served, as the host's file was read last.
    pub(crate) fn metrics_listen(&self) -> &[ListenAddress] {
        &self.host.metrics_listen
    }

    /// Reads everything again, behind what is being read.
    pub(crate) fn reload(&mut self) {
        daemon::tell_reloading();
        self.reload_is_due = true;
        self.read_if_due();
    }

    fn read_if_due(&mut self) {
        if self.reload_is_due && self.readings.is_empty() && self.reload_ends.is_none() {
            self.reload_is_due = false;
            self.begin_reading(true);
        }
    }

    fn begin_reading(&mut self, is_reload: bool) {
        self.is_reload = is_reload;
        let (old, options) = (self.host.clone(), self.options.clone());
        let (workforce, clusters_max) = (self.workforce.clone(), self.clusters_max);
        let patience = self.patience.clone();
        let (in_force, process) = (self.in_force(), self.clusters.process());
        self.readings.spawn(async move {
            let read = move || match is_reload {
                true => reading::read_again(&old, &options, clusters_max, &in_force, &patience),
                // What the host's file says now, nobody has asked for.
                false => reading::read_folder(old, process, clusters_max, &in_force, &patience),
            };
            let done = worker::once(&workforce, "reading of settings", read).await;
            done.unwrap_or_else(|failed| Err(CommandError::retry(failed.message)))
        });
    }

    fn retry_broken(&mut self) {
        self.open_wanted();
        let is_idle = self.readings.is_empty() && self.reload_ends.is_none();
        if is_idle && self.clusters.has_broken() {
            self.begin_reading(false);
        }
    }

    fn was_read(&mut self, read: Result<Box<HostRead>>) {
        let was_reload = std::mem::take(&mut self.is_reload);
        match read {
            Ok(read) if was_reload => {
                self.apply(*read);
                self.reload_ends = Some(Instant::now() + opening_patience());
            }
            Ok(read) => self.mend(*read),
            Err(error) if was_reload => {
                tracing::error!("reload failed, the old settings stay in force: {error}");
                self.clusters.tell_reload_failed(&error);
                daemon::tell_ready();
            }
            Err(error) => tracing::debug!("broken clusters are not read again: {error}"),
        }
        if was_reload {
            self.clusters.reopen_audit_logs();
        }
        if was_reload && let Err(error) = output::reopen_logfile() {
            tracing::warn!("{error}");
        }
        self.tell_status();
        self.read_if_due();
    }

    /// Puts all that was read in force.
    fn apply(&mut self, read: HostRead) {
        let HostRead {
            host,
            process,
            good,
            broken,
        } = read;
        self.host = host;
        self.census.fetch_limit.set(process.fetch_rate);
        self.clusters.set_process(process);
        let is_there = |name: &String| good.contains_key(name) || broken.contains_key(name);
        let gone: Vec<String> = self
            .held
            .keys()
            .filter(|name| !is_there(name))
            .cloned()
            .collect();
        for name in gone {
            self.close(&name, "its file is gone", None);
        }
        self.clusters
            .forget_broken(|name| !is_there(&name.to_owned()));
        self.wanted.retain(|name, _| good.contains_key(name));
        for (name, file) in broken {
            self.note_broken(&name, file, true);
        }
        for (name, file) in good {
            self.take_in(name, file);
        }
        self.open_wanted();
    }

    /// Takes in what was broken and is not open; what serves is read again by a reload alone.
    fn mend(&mut self, read: HostRead) {
        for (name, file) in read.good {
            if !self.held.contains_key(&name) && self.clusters.is_broken(&name) {
                self.wanted.insert(name, file);
            }
        }
        for (name, file) in read.broken {
            if !self.held.contains_key(&name) && self.clusters.is_broken(&name) {
                self.wanted.remove(&name);
                self.note_broken(&name, file, false);
            }
        }
        self.open_wanted();
    }

    fn take_in(&mut self, name: String, file: GoodCluster) {
        let Some(held) = self.held.get_mut(&name) else {
            self.wanted.insert(name, file);
            return;
        };
        match moved(&held.config, &file.config) {
            None => {
                held.hosted.cluster.reconfigure(file.settings);
                held.config = file.config;
                held.wanted = file.wanted;
                self.clusters.is_mended(&name);
            }
            Some(setting) => {
                let why = format!("{setting} has changed, so it is opened again");
                self.close(&name, &why, Some(&file));
                self.wanted.insert(name, file);
            }
        }
    }

    /// What the clusters have on the disk that are open, or are opened meanwhile.
    fn in_force(&self) -> WantedInForce {
        let opened = self.wanted.values();
        let opened = opened.map(|file| (file.config.path.clone(), Arc::clone(&file.wanted)));
        let held = self.held.values();
        let held = held.map(|held| (held.config.path.clone(), Arc::clone(&held.wanted)));
        opened.chain(held).collect()
    }

    fn open_wanted(&mut self) {
        self.open_those(self.wanted.keys().cloned().collect());
    }

    /// Opens what had to wait for others, if it need not any more.
    fn open_waiting(&mut self) {
        self.open_those(self.waiting.iter().cloned().collect());
    }

    fn open_those(&mut self, names: Vec<String>) {
        // Whoever is being opened by a file that has changed since may write elsewhere than its new file says.
        let stale = self.opening.iter().filter(|(name, wanted)| {
            let file = self.wanted.get(*name);
            file.is_none_or(|file| !file.wanted.is_same(wanted))
        });
        let in_the_way = self.closing.iter().chain(stale);
        let in_the_way: Vec<(String, Arc<WantedPaths>)> = in_the_way
            .map(|(name, wanted)| (name.clone(), Arc::clone(wanted)))
            .collect();
        for name in names {
            self.waiting.remove(&name);
            let Some(file) = self.wanted.get(&name).cloned() else {
                continue;
            };
            if self.opening.contains_key(&name) {
                continue;
            }
            let mut others = in_the_way.iter();
            if others.any(|(other, wanted)| *other == name || wanted.may_meet(&file.wanted)) {
                let (path, settings) = (&file.config.path, Arc::clone(&file.settings));
                self.clusters.is_being_opened(&name, path, settings);
                self.waiting.insert(name);
            } else {
                self.open(name, file);
            }
        }
    }

    fn open(&mut self, name: String, file: GoodCluster) {
        self.opening.insert(name.clone(), Arc::clone(&file.wanted));
        let settings = Arc::clone(&file.settings);
        self.clusters
            .is_being_opened(&name, &file.config.path, settings);
        let span = tracing::error_span!("cluster", cluster = %name);
        let stopping = self.stopping.child_token();
        let opener = ClusterOpener {
            file: file.clone(),
            census: Arc::clone(&self.census),
            stopping: stopping.clone(),
            span: span.clone(),
            host: self.host.path.clone(),
        };
        let (permits, workforce) = (Arc::clone(&self.permits), self.workforce.clone());
        let opening = async move {
            let permit = permits.acquire_owned().await;
            let opening = worker::once(&workforce, "opening of a cluster", move || opener.open());
            tokio::pin!(opening);
            let done = match timeout(opening_patience(), &mut opening).await {
                Ok(done) => done,
                Err(_) => {
                    drop(permit);
                    opening.await
                }
            };
            OpenedCluster {
                name,
                file,
                stopping,
                result: done.unwrap_or_else(|failed| Err(CommandError::retry(failed.message))),
            }
        };
        self.openings.spawn(opening.instrument(span));
    }

    fn opened(&mut self, opened: OpenedCluster) {
        let OpenedCluster {
            name,
            file: GoodCluster { config, wanted, .. },
            stopping,
            result,
        } = opened;
        self.opening.remove(&name);
        let (cluster, pidfile) = match result {
            Ok(open) => open,
            Err(error) => {
                if let Some(file) = self.wanted.get(&name) {
                    let settings = Some(Arc::clone(&file.settings));
                    let broken = reading::of_error(&config.path, &error, settings);
                    self.note_broken(&name, broken, false);
                    self.tell_status();
                }
                self.open_waiting();
                return;
            }
        };
        // Its file may have gone meanwhile.
        let Some(file) = self.wanted.remove(&name) else {
            drop((cluster, pidfile));
            self.open_waiting();
            return;
        };
        let cluster = Arc::new(cluster);
        let span = cluster.span.clone();
        let hosted = Arc::new(HostedCluster {
            path: config.path.clone(),
            cluster: Arc::clone(&cluster),
            tasks: TaskTracker::new(),
        });
        if let Ok(store) = cluster.store() {
            span.in_scope(|| store.report_start());
        }
        let keeper = tokio::spawn(keeper::run(cluster).instrument(span));
        self.clusters.serve(&name, Arc::clone(&hosted));
        let held = HeldCluster {
            hosted,
            config,
            wanted,
            stopping,
            _keeper: AbortOnDropHandle::new(keeper),
            pidfile,
        };
        self.held.insert(name.clone(), held);
        // Or have been changed.
        self.take_in(name, file);
        self.tell_status();
        self.open_wanted();
    }

    /// Ends a cluster's connections, and lets go of its store; `again` is what it is opened by after that.
    fn close(&mut self, name: &str, why: &str, again: Option<&GoodCluster>) {
        let instead = again.map(|file| {
            let settings = Some(Arc::clone(&file.settings));
            BrokenCluster::being_opened(&file.config.path, settings)
        });
        self.clusters.remove(name, instead);
        let Some(held) = self.held.remove(name) else {
            return;
        };
        let span = held.hosted.cluster.span.clone();
        span.in_scope(|| tracing::info!("served no more: {why}"));
        held.stopping.cancel();
        self.closing
            .insert(name.to_owned(), Arc::clone(&held.wanted));
        let (name, workforce) = (name.to_owned(), self.workforce.clone());
        self.closings.spawn(
            async move {
                let HeldCluster {
                    hosted,
                    pidfile,
                    _keeper: keeper,
                    ..
                } = held;
                drop(keeper);
                hosted.tasks.close();
                let ended = timeout(CLOSED_WITHIN, hosted.tasks.wait()).await;
                if let Ok(store) = hosted.cluster.store() {
                    let _ = timeout(THREADS_DEADLINE, store.workforce.ended()).await;
                }
                if ended.is_err() {
                    tracing::warn!("some of its connections have not ended");
                }
                let gone = hosted.cluster.gone();
                // On a thread: its disk may hang.
                worker::aside(&workforce, "closing of a cluster", move || drop(hosted));
                // Its lock goes with the last who has it, as a handshake that is about to end.
                let _ = timeout(CLOSED_WITHIN, gone.cancelled()).await;
                let released =
                    worker::once(&workforce, "pidfile of a cluster", move || drop(pidfile));
                let _ = timeout(THREADS_DEADLINE, released).await;
                name
            }
            .instrument(span),
        );
    }

    fn note_slow(&self, name: &str) {
        if let Some(file) = self.wanted.get(name) {
            let patience = opening_patience();
            let sentence = format!("it is being opened for longer than {patience:?}");
            let settings = Some(Arc::clone(&file.settings));
            let path = &file.config.path;
            let broken = BrokenCluster::new(path, &sentence, ErrorCode::Busy, settings);
            self.note_broken(name, broken, false);
        }
    }

    /// Names a broken file, once for each thing that is wrong with it, or again where somebody has just looked.
    fn note_broken(&self, name: &str, broken: BrokenCluster, always: bool) {
        let is_served = self.held.contains_key(name);
        let sentence = broken.sentence.clone();
        let is_new = self.clusters.note_broken(name, broken);
        if !is_new && !always {
            return;
        }
        match is_served {
            true => tracing::error!("{name}: its old settings stay in force: {sentence}"),
            false => tracing::error!("{name}: not served: {sentence}"),
        }
    }

    fn tell_status(&mut self) {
        daemon::tell_status(&self.clusters.summary());
        let unserved = self.clusters.unserved();
        // The first time in any case: a process that was killed leaves its note.
        if self.noted.as_ref() == Some(&unserved) {
            return;
        }
        if let Err(error) = daemon::note_unserved(&self.host.receiver_pidfile(), &unserved) {
            tracing::warn!("`status` cannot tell which clusters are not served: {error}");
        }
        self.noted = Some(unserved);
    }
}

impl Drop for ClusterFolder {
    fn drop(&mut self) {
        // Nobody believes it any more in any case.
        let _ = daemon::note_unserved(&self.host.receiver_pidfile(), &UnservedClusters::new());
    }
}

/// What opens one cluster.
struct ClusterOpener {
    file: GoodCluster,
    census: Arc<StoreCensus>,
    stopping: CancellationToken,
    span: Span,
    /// The host's file.
    host: PathBuf,
}

impl ClusterOpener {
    /// Blocks for as long as the disk does.
    fn open(self) -> Result<(Cluster, PidFile)> {
        let _named = self.span.enter();
        let GoodCluster {
            config, settings, ..
        } = self.file;
        let pidfile = PidFile::acquire_of_host(&config.receiver_pidfile(), &self.host)?;
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let (census, stopping) = (&self.census, self.stopping);
        let (name, span) = (config::shown_cluster_name(&config.path), self.span.clone());
        let cluster = Cluster::open((&name, &config), settings, &disk, census, stopping, span)?;
        Ok((cluster, pidfile))
    }
}

/// Waits until then; for ever without a time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// The setting that an open cluster cannot follow, if one has changed.
fn moved(old: &StandbyConfig, new: &StandbyConfig) -> Option<&'static str> {
    let changed = [
        ("completed_wals", old.completed_wals != new.completed_wals),
        ("partial_wals", old.partial_wals != new.partial_wals),
        ("full_backup", old.full_backup != new.full_backup),
        ("config_backup", old.config_backup != new.config_backup),
        ("slave_data", old.slave_data != new.slave_data),
        ("pidfile", old.receiver_pidfile() != new.receiver_pidfile()),
    ];
    let changed = changed.into_iter().find(|(_, changed)| *changed);
    changed.map(|(setting, _)| setting)
}
