//! A cluster: everything the receiver keeps for it, from its archive to who ships its records.
//! Never talks to a peer. Invariant: what is kept here sees nothing of what flows over connections, which all
//! take it as it is.
//!
//! [`backups`] knows which backup runs, [`running`] is one of them, [`writer_lock`] says who ships records, [`masters`]
//! who is connected, [`settings`] is what a reload may change, [`rounds`] reads the archive again and again.

pub(crate) mod backups;
pub(crate) mod masters;
pub(crate) mod rounds;
pub(crate) mod running;
pub(crate) mod settings;
pub(crate) mod writer_lock;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use walmgr_protocol::message::{ClusterIdentity, Error, ErrorCode};
use walmgr_protocol::names::{Lsn, SegmentName, WalFileName};
use walmgr_protocol::session::partial::ProofOfRecords;

use crate::config::StandbyConfig;
use crate::error::{CommandError, Kind, Result};
use crate::receiver::cluster::backups::RunningBackups;
use crate::receiver::cluster::masters::Masters;
use crate::receiver::cluster::settings::ClusterSettings;
use crate::receiver::cluster::writer_lock::WriterLock;
use crate::receiver::shares::Shares;
use crate::receiver::{
    FETCHES_MAX, FETCHES_PER_PEER_MAX, STREAMS_MAX, STREAMS_PER_PEER_MAX,
    UPLOAD_BYTES_PER_PEER_MAX, UPLOADS_MAX, UPLOADS_PER_PEER_MAX, refusal,
};
use crate::store::sets::BackupSets;
use crate::store::{Archive, ArchiveFolders, Disk, DurableRecords, Health, RealDisk, StoreError};

/// What all connections of a cluster share.
pub(crate) struct Cluster {
    /// Where files go.
    pub archive: Archive,
    /// Where base backups go.
    pub backups: RunningBackups,
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
    /// Threads of uploads.
    pub uploads: Arc<Shares>,
    /// Threads of fetches.
    pub fetches: Arc<Shares>,
    /// Threads of streams of records.
    pub streams: Arc<Shares>,
    /// Cancelled once, when nothing more is to be begun.
    pub stopping: CancellationToken,
    newest: Mutex<Option<SegmentName>>,
    partial_end: Mutex<Option<(SegmentName, Lsn)>>,
}

/// Folders beside the sets that the end of a backup touches.
pub(crate) struct BackupFolders {
    /// Where the master's configuration files go.
    pub config_backup: Option<PathBuf>,
    /// The data directory of the standby's own server.
    pub slave_data: Option<PathBuf>,
}

impl Cluster {
    /// Takes the archive and the sets, and sees to what an earlier receiver left.
    pub(crate) fn open(
        config: &StandbyConfig,
        settings: Arc<ClusterSettings>,
        disk: &Arc<dyn Disk>,
        stopping: CancellationToken,
    ) -> Result<Cluster> {
        let folders = ArchiveFolders::of(config);
        let archive = Archive::open(&folders, Arc::clone(disk)).map_err(|error| opening(&error))?;
        let backups = RunningBackups::open(config, disk);
        archive.set_ahead_max(settings.ahead_max);
        let newest = newest_segment(&archive).map_err(|error| opening(&error))?;
        let partial_end = archive.recovery().partials.iter().max().copied();
        Ok(Cluster {
            archive,
            backups,
            folders,
            completed_wals: config.completed_wals.clone(),
            full_backup: config.full_backup.clone(),
            backup_folders: BackupFolders {
                config_backup: config.config_backup.clone(),
                slave_data: config.slave_data.clone(),
            },
            settings: watch::Sender::new(settings),
            writer: Arc::default(),
            masters: Masters::default(),
            uploads: Shares::of_bytes(UPLOADS_MAX, UPLOADS_PER_PEER_MAX, UPLOAD_BYTES_PER_PEER_MAX),
            fetches: Shares::new(FETCHES_MAX, FETCHES_PER_PEER_MAX),
            streams: Shares::new(STREAMS_MAX, STREAMS_PER_PEER_MAX),
            stopping,
            newest: Mutex::new(newest),
            partial_end: Mutex::new(partial_end),
        })
    }

    /// The cluster that the archive is bound to; none before `setup`.
    pub(crate) fn identity(&self) -> Option<ClusterIdentity> {
        self.archive.binding().map(ClusterIdentity::from)
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

    /// The highest finished segment stored.
    pub(crate) fn newest_segment(&self) -> Option<SegmentName> {
        *locked(&self.newest)
    }

    /// Up to where the last partial segment that was written to is durable.
    pub(crate) fn partial_end(&self) -> Option<(SegmentName, Lsn)> {
        *locked(&self.partial_end)
    }

    /// Remembers records that became durable.
    pub(crate) fn note_records(&self, proof: &DurableRecords) {
        *locked(&self.partial_end) = Some((proof.segment(), proof.end()));
    }

    /// Remembers a file that became durable.
    pub(crate) fn note_stored(&self, name: WalFileName) {
        if let WalFileName::Segment(segment) = name
            && !self.archive.is_noted(name)
        {
            let mut newest = locked(&self.newest);
            *newest = (*newest).max(Some(segment));
        }
    }

    /// What is known of the disk, in words; empty if it works.
    pub(crate) fn trouble(&self) -> String {
        match self.health() {
            Health::Good => String::new(),
            Health::Impaired { why } => why,
            Health::SyncFailed { why } => format!("a sync failed: {why}"),
        }
    }

    /// What is known of the disk below the archive and the backup sets, the worse of the two.
    pub(crate) fn health(&self) -> Health {
        match self.archive.health() {
            failed @ Health::SyncFailed { .. } => failed,
            health => match self.backups.health() {
                failed @ Health::SyncFailed { .. } => failed,
                _ => health,
            },
        }
    }

    /// Ends the daemon when the disk has lied about an fsync: what was written since cannot be
    /// trusted, and a fresh start reads everything again. Says whether it does; the daemon's last
    /// line then tells why, and whoever saw the failure need not.
    pub(crate) fn check_health(&self) -> bool {
        let failed = matches!(self.health(), Health::SyncFailed { .. });
        if failed {
            self.stopping.cancel();
        }
        failed
    }
}

fn locked<T>(field: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one assignment, so a panic elsewhere cannot have left half of one.
    field.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why an archive cannot be opened, for whoever starts the receiver.
pub(crate) fn opening(error: &StoreError) -> CommandError {
    let (kind, hint) = match error {
        StoreError::Locked { .. } => (Kind::AlreadyRunning, "stop it first, or leave it running"),
        StoreError::NotSetUp { .. } => (
            Kind::Config,
            "run `walmgr STANDBY.ini setup` first; if it was set up before, its file system is \
             not mounted",
        ),
        StoreError::NewerFormat { .. } => (Kind::Config, "upgrade walmgr on this host"),
        error => (error.kind(), ""),
    };
    CommandError::new(kind, format!("open the archive: {error}")).hint(hint)
}

/// The highest finished segment there is when the daemon starts.
fn newest_segment(archive: &Archive) -> Result<Option<SegmentName>, StoreError> {
    let names = archive.list(None, usize::MAX)?;
    let noted = archive.noted()?;
    let names = names
        .into_iter()
        .filter(|entry| !noted.contains(&entry.name));
    Ok(names
        .filter_map(|entry| match entry.name {
            WalFileName::Segment(segment) => Some(segment),
            _ => None,
        })
        .max())
}
