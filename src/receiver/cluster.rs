//! A cluster: everything the receiver keeps for it, from its archive to who ships its records.
//! Never talks to a peer. Invariant: what is kept here sees nothing of what flows over connections, which all
//! take it as it is.
//!
//! [`open_store`] is what is open of it, [`census`] counts those of all clusters, and [`keeper`] opens one again that
//! has retired. [`backups`] knows which backup runs, [`running`] is one of them, [`writer_lock`] says who ships records,
//! [`masters`] who is connected, [`meter`] what is counted, [`settings`] is what a reload may change, [`rounds`] reads the archive again and again.

pub(crate) mod backups;
pub(crate) mod census;
mod disk_use;
pub(crate) mod incremental;
pub(crate) mod keeper;
pub(crate) mod masters;
pub(crate) mod meter;
pub(crate) mod open_store;
pub(crate) mod rounds;
pub(crate) mod running;
pub(crate) mod settings;
pub(crate) mod writer_lock;

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use walmgr_protocol::message::{ClusterIdentity, Error, ErrorCode};
use walmgr_protocol::names::SegmentName;

use crate::audit::{Actor, AuditEvent, AuditLog, AuditOutcome};
use crate::config::StandbyConfig;
use crate::error::{CommandError, Kind, Result};
use crate::rate_limit::RateLimit;
use crate::receiver::cluster::census::StoreCensus;
use crate::receiver::cluster::masters::Masters;
use crate::receiver::cluster::meter::ClusterMeter;
use crate::receiver::cluster::open_store::OpenStore;
use crate::receiver::cluster::settings::ClusterSettings;
use crate::receiver::cluster::writer_lock::WriterLock;
use crate::receiver::refusal_log::{FetchedFiles, RewriteRefusals};
use crate::receiver::shares::Shares;
use crate::receiver::{
    BACKUP_THREADS_MAX, BACKUP_THREADS_PER_PEER_MAX, FETCHES_MAX, FETCHES_PER_PEER_MAX,
    STREAMS_MAX, STREAMS_PER_PEER_MAX, UPLOAD_BYTES_PER_PEER_MAX, UPLOADS_MAX,
    UPLOADS_PER_PEER_MAX, refusal,
};
use crate::store::sets::BackupSets;
use crate::store::{ArchiveFolders, Disk, RealDisk, StoreError};

/// What all connections of a cluster share.
pub(crate) struct Cluster {
    /// No two clusters of a process have the same, not even after one another.
    pub number: u64,
    /// Where its folders are.
    pub folders: ArchiveFolders,
    /// The archive's folder, for people.
    pub completed_wals: PathBuf,
    /// Where the newest backup set is, if the settings say so.
    pub full_backup: Option<PathBuf>,
    /// Folders beside the sets.
    pub backup_folders: BackupFolders,
    /// The configuration in force.
    pub settings: watch::Sender<Arc<ClusterSettings>>,
    /// Who ships records.
    pub writer: Arc<WriterLock>,
    /// The masters that are connected.
    pub masters: Masters,
    /// What is counted.
    pub meter: ClusterMeter,
    /// Threads of uploads.
    pub uploads: Arc<Shares>,
    /// Threads of fetches.
    pub fetches: Arc<Shares>,
    /// How fast all fetches of its sets together may read.
    fetch_limit: RateLimit,
    /// Threads of streams of records.
    pub streams: Arc<Shares>,
    /// Threads of connections that are part of a backup.
    pub backup_threads: Arc<Shares>,
    /// Cancelled once, when nothing more is to be begun.
    pub stopping: CancellationToken,
    /// Which refused rewrites are told of.
    pub rewrites: RewriteRefusals,
    /// Which fetched files are told of.
    pub fetched: FetchedFiles,
    /// Where it is told who did what to it.
    pub audit: Arc<AuditLog>,
    /// Its lines in the log are in this span.
    pub span: tracing::Span,
    disk: Arc<dyn Disk>,
    census: Arc<StoreCensus>,
    store: RwLock<StoreState>,
    /// Behind the store, so that whoever waits for it finds the archive's lock let go.
    gone: DropGuard,
}

/// What has become of a cluster's store.
enum StoreState {
    /// It is open; or has retired a moment ago, which itself knows.
    Open(Arc<OpenStore>),
    /// It is closed, and is opened again when its disk works.
    Retired {
        why: String,
        /// What it was bound to, which it is for good.
        identity: Option<ClusterIdentity>,
    },
}

/// A cluster, and the store that was open when somebody began to work with it.
#[derive(Clone)]
pub(crate) struct ServedCluster {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// Its store; none that is opened later takes the place of this one.
    pub store: Arc<OpenStore>,
}

/// Folders beside the sets that the end of a backup touches.
pub(crate) struct BackupFolders {
    /// Where the master's configuration files go.
    pub config_backup: Option<PathBuf>,
    /// The data directory of the standby's own server.
    pub slave_data: Option<PathBuf>,
}

impl Cluster {
    /// Takes the archive and the sets, and sees to what an earlier receiver left. The audit log has this name of it.
    pub(crate) fn open(
        (name, config): (&str, &StandbyConfig),
        settings: Arc<ClusterSettings>,
        disk: &Arc<dyn Disk>,
        census: &Arc<StoreCensus>,
        stopping: CancellationToken,
        span: tracing::Span,
    ) -> Result<Cluster> {
        let folders = ArchiveFolders::of(config);
        let full_backup = config.full_backup.as_deref();
        let _opening = census.opening();
        let store = OpenStore::open(&folders, full_backup, disk, census, &span)
            .map_err(|error| opening(&error))?;
        settings.apply_to(&store.archive);
        let audit = AuditLog::new(name, settings.audit_log.as_deref())
            .noting_losses_at(&AuditLog::losses_in(&config.completed_wals));
        let meter = ClusterMeter::default();
        store.archive.count_in(Arc::clone(&meter.store));
        let (number, pools) = (census.opened(), &census.pools);
        Ok(Cluster {
            number,
            folders,
            completed_wals: config.completed_wals.clone(),
            full_backup: config.full_backup.clone(),
            backup_folders: BackupFolders {
                config_backup: config.config_backup.clone(),
                slave_data: config.slave_data.clone(),
            },
            fetch_limit: RateLimit::new(settings.fetch_rate),
            settings: watch::Sender::new(settings),
            writer: Arc::default(),
            masters: Masters::default(),
            meter,
            uploads: Shares::of_bytes(
                &pools.uploads,
                UPLOADS_MAX,
                UPLOADS_PER_PEER_MAX,
                UPLOAD_BYTES_PER_PEER_MAX,
            ),
            fetches: Shares::new(&pools.fetches, FETCHES_MAX, FETCHES_PER_PEER_MAX),
            streams: Shares::new(&pools.streams, STREAMS_MAX, STREAMS_PER_PEER_MAX),
            backup_threads: Shares::new(
                &pools.backup_threads,
                BACKUP_THREADS_MAX,
                BACKUP_THREADS_PER_PEER_MAX,
            ),
            stopping,
            rewrites: RewriteRefusals::default(),
            fetched: FetchedFiles::default(),
            audit: Arc::new(audit),
            span,
            disk: Arc::clone(disk),
            census: Arc::clone(census),
            store: RwLock::new(StoreState::Open(store)),
            gone: CancellationToken::new().drop_guard(),
        })
    }

    /// What is open of it; while that has retired, what everybody is told who asks.
    pub(crate) fn store(&self) -> Result<Arc<OpenStore>, Error> {
        match &*self.store.read().unwrap_or_else(PoisonError::into_inner) {
            StoreState::Open(store) => match store.why() {
                None => Ok(Arc::clone(store)),
                Some(why) => Err(open_store::retired(why)),
            },
            StoreState::Retired { why, .. } => Err(open_store::retired(why)),
        }
    }

    /// What is open of it, even if that has just retired; none while it is closed.
    fn current(&self) -> Option<Arc<OpenStore>> {
        match &*self.store.read().unwrap_or_else(PoisonError::into_inner) {
            StoreState::Open(store) => Some(Arc::clone(store)),
            StoreState::Retired { .. } => None,
        }
    }

    /// Cancelled when the last who has it has let go of it, and its files are closed.
    pub(crate) fn gone(&self) -> CancellationToken {
        self.gone.token().clone()
    }

    /// Whether its store has retired.
    pub(crate) fn is_retired(&self) -> bool {
        self.store().is_err()
    }

    /// Lets go of a store that has retired.
    fn close(&self, store: &OpenStore) {
        let (why, identity) = (store.why().unwrap_or_default().to_owned(), store.identity());
        self.put(StoreState::Retired { why, identity });
    }

    /// Opens the store again as a start would, which reads everything that counts; blocks. `false` when the process
    /// ends.
    fn reopen(&self) -> Result<bool, String> {
        let full_backup = self.full_backup.as_deref();
        let opened = OpenStore::open(
            &self.folders,
            full_backup,
            &self.disk,
            &self.census,
            &self.span,
        );
        let store = opened.map_err(|error| error.to_string())?;
        if let Some(why) = store.failed_at_opening() {
            return Err(why);
        }
        self.settings.borrow().apply_to(&store.archive);
        store.archive.count_in(Arc::clone(&self.meter.store));
        if !self.census.reopened() {
            return Ok(false);
        }
        store.report_start();
        self.put(StoreState::Open(store));
        Ok(true)
    }

    fn put(&self, state: StoreState) {
        let mut store = self.store.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *store, state);
        drop(store);
        // Closing files may take its time, and nobody has to wait for that.
        drop(before);
    }

    /// Puts another configuration in force.
    pub(crate) fn reconfigure(&self, settings: Arc<ClusterSettings>) {
        if let Ok(store) = self.store() {
            settings.apply_to(&store.archive);
        }
        self.fetch_limit.set(settings.fetch_rate);
        self.audit.set(settings.audit_log.clone());
        let reloaded = AuditEvent::Reloaded {};
        (self.audit).record(&Actor::Receiver, &AuditOutcome::Done, &reloaded);
        self.settings.send_replace(settings);
    }

    /// How fast sets may be read that are fetched: of this cluster, and of all of the process.
    pub(crate) fn fetch_limits(&self) -> [&RateLimit; 2] {
        [&self.fetch_limit, &self.census.fetch_limit]
    }

    /// The cluster that the archive is bound to; none before `setup`.
    pub(crate) fn identity(&self) -> Option<ClusterIdentity> {
        match &*self.store.read().unwrap_or_else(PoisonError::into_inner) {
            StoreState::Open(store) => store.identity(),
            StoreState::Retired { identity, .. } => *identity,
        }
    }

    /// The highest finished segment stored, as far as that is known.
    pub(crate) fn newest_segment(&self) -> Option<SegmentName> {
        self.store().ok().and_then(|store| store.newest_segment())
    }

    /// The backup sets, for whoever reads them.
    pub(crate) fn open_sets(&self) -> Result<BackupSets, Error> {
        let Some(full_backup) = &self.full_backup else {
            let text = "the standby has no setting `full_backup`, so it keeps no backups";
            let hint = "set it, or `walmgr_data`, in the standby's ini file";
            return Err(Error::channel(ErrorCode::NotSetUp, text, hint));
        };
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        BackupSets::open(full_backup, &self.completed_wals, &disk)
            .map_err(|error| refusal::set_to_reader(&error))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.census.closed(self.is_retired());
    }
}

/// Why an archive cannot be opened, for whoever starts the receiver.
pub(crate) fn opening(error: &StoreError) -> CommandError {
    let (kind, hint) = match error {
        StoreError::Locked { .. } => (Kind::AlreadyRunning, "stop it first, or keep using it"),
        StoreError::NotSetUp { .. } => (
            Kind::Config,
            "run `walmgr STANDBY.ini setup` first; if that was done before, check that the file \
            system is mounted",
        ),
        StoreError::NewerFormat { .. } => (Kind::Config, "upgrade walmgr on this host"),
        error => (error.kind(), ""),
    };
    CommandError::new(kind, format!("open the archive: {error}")).hint(hint)
}
