//! The archive and the backup sets of a cluster while they are open, and what is known of them only as long.
//! Never outlives a failed sync. Invariant: what is remembered here was read from the disk since this was opened, or
//! was synced since.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio_util::sync::CancellationToken;
use walmgr_protocol::message::{ClusterIdentity, Error, ErrorCode};
use walmgr_protocol::names::{Lsn, SegmentName, WalFileName};
use walmgr_protocol::session::partial::ProofOfRecords;

use crate::receiver::cluster::backups::RunningBackups;
use crate::receiver::cluster::census::StoreCensus;
use crate::receiver::worker::Workforce;
use crate::store::{Archive, ArchiveFolders, Disk, DurableRecords, Health, KeptIndex, StoreError};

/// What is open of a cluster.
pub(crate) struct OpenStore {
    /// Where files go.
    pub archive: Archive,
    /// Where base backups go.
    pub backups: RunningBackups,
    /// Cancelled once, when a sync failed: whoever works with it ends.
    pub retired: CancellationToken,
    /// The threads that work with it.
    pub workforce: Workforce,
    census: Arc<StoreCensus>,
    /// Keeps the index of the archive's names.
    index: OnceLock<KeptIndex>,
    /// Why it retired.
    why: OnceLock<String>,
    /// A file became durable.
    stored: Notify,
    newest: Mutex<Option<SegmentName>>,
    partial_end: Mutex<Option<(SegmentName, Lsn)>>,
}

impl OpenStore {
    /// Takes the archive and the sets, and sees to what an earlier receiver left, or this one before a sync failed.
    pub(crate) fn open(
        folders: &ArchiveFolders,
        full_backup: Option<&Path>,
        disk: &Arc<dyn Disk>,
        census: &Arc<StoreCensus>,
        span: &tracing::Span,
    ) -> Result<Arc<OpenStore>, StoreError> {
        let archive = Archive::open(folders, Arc::clone(disk))?;
        let newest = archive.newest_segment()?;
        let partial_end = archive.recovery().partials.iter().max().copied();
        let retired = CancellationToken::new();
        let opened = Arc::new_cyclic(|store: &Weak<OpenStore>| {
            let store = Weak::clone(store);
            let worked = move || {
                if let Some(store) = store.upgrade() {
                    store.check_health();
                }
            };
            let workforce = Workforce::new(span.clone(), worked);
            OpenStore {
                backups: RunningBackups::open(folders, full_backup, disk, &workforce),
                archive,
                retired,
                workforce,
                census: Arc::clone(census),
                index: OnceLock::new(),
                why: OnceLock::new(),
                stored: Notify::new(),
                newest: Mutex::new(newest),
                partial_end: Mutex::new(partial_end),
            }
        });
        opened.keep_index();
        Ok(opened)
    }

    /// Has the index of its names kept, once it is bound to a cluster.
    pub(crate) fn keep_index(&self) {
        if self.index.get().is_none()
            && let Some(kept) = self.census.keep_index(&self.archive)
        {
            let _ = self.index.set(kept);
        }
    }

    /// Writes into the log what was found.
    pub(crate) fn report_start(&self) {
        match self.archive.binding() {
            Some(binding) => tracing::info!("the archive belongs to {binding}"),
            None => tracing::info!("the archive waits for `walmgr MASTER.ini setup`"),
        }
        let recovery = self.archive.recovery();
        if recovery.temporaries_removed > 0 {
            let count = recovery.temporaries_removed;
            tracing::info!("removed {count} unfinished files of the receiver before this one");
        }
        for damage in &recovery.damaged_partials {
            tracing::error!("ALARM: {damage}; the file is kept unchanged");
        }
        for (segment, end) in &recovery.partials {
            tracing::info!("{segment} is held up to {end}");
        }
    }

    /// The cluster that the archive is bound to; none before `setup`.
    pub(crate) fn identity(&self) -> Option<ClusterIdentity> {
        self.archive.binding().map(ClusterIdentity::from)
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
        self.stored.notify_waiters();
    }

    /// Completes when a file has become durable since this was called.
    pub(crate) fn stored(&self) -> Notified<'_> {
        self.stored.notified()
    }

    /// What is known of the disk, in words; empty if it works.
    pub(crate) fn trouble(&self) -> String {
        match self.health() {
            Health::Good => String::new(),
            Health::Impaired { why, .. } => why,
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

    /// Why it must not be used, though it was opened: what a start can do without, opening again cannot.
    pub(crate) fn failed_at_opening(&self) -> Option<String> {
        match self.health() {
            Health::SyncFailed { why } => Some(why),
            Health::Good | Health::Impaired { .. } => {
                self.backups.sync_failure().map(str::to_owned)
            }
        }
    }

    /// Retires the store once its disk has lied about a sync: what was written since cannot be trusted, and only
    /// opening it again reads everything anew. Says whether it is retired; that has its own line in the log, and
    /// whoever saw the failure need not write another.
    pub(crate) fn check_health(&self) -> bool {
        let Health::SyncFailed { why } = self.health() else {
            return self.retired.is_cancelled();
        };
        if self.why.set(why.clone()).is_ok() {
            let goes_on = self.census.retires(&why);
            let _named = self.workforce.span().enter();
            if goes_on {
                tracing::error!(
                    "ALARM: a sync failed: {why}; the archive is closed until what counts was read from the disk again"
                );
            }
            self.retired.cancel();
        }
        true
    }

    /// What everybody is told who asks for it once it has retired.
    pub(crate) fn refusal(&self) -> Error {
        retired(self.why().unwrap_or("of what is not known"))
    }

    /// Why it retired.
    pub(crate) fn why(&self) -> Option<&str> {
        self.why.get().map(String::as_str)
    }
}

/// What everybody is told who asks for a store that has retired.
pub(crate) fn retired(why: &str) -> Error {
    Error::connection(
        ErrorCode::DiskFailed,
        format!("a sync failed: {why}"),
        "look at the receiver's log and check the standby's disk",
    )
}

fn locked<T>(field: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one assignment, so a panic elsewhere cannot have left half of one.
    field.lock().unwrap_or_else(PoisonError::into_inner)
}
