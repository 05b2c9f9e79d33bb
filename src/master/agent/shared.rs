//! What the tasks of the agent have in common.
//! Never waits. Invariant: nothing is shipped ahead that no archiver would ask for, but for segments whose records the
//! receiver has anyway.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use walmgr_protocol::names::WalFileName;

use super::marks::Marks;
use super::meter::AgentMeter;
use super::shelf::{AskedStanding, Shelf};
use super::words::{Ask, ProvenFile, SETTINGS_BYTES};
use crate::config::MasterConfig;
use crate::error::Result;
use crate::master::archived_file::ArchivedFile;

/// Nothing is shipped ahead unless an archiver asked within this: another program may be what archives.
const ARCHIVER_ASKED_WITHIN: Duration = Duration::from_secs(3_600);

/// A file that is asked for, and who wants to know.
pub(super) struct AskedPush {
    /// The file.
    pub source: ArchivedFile,
    /// As it was asked for.
    pub ask: Ask,
    /// When it is too late.
    pub until: tokio::time::Instant,
    /// Nobody else begins with it as long as this is there.
    pub ticket: watch::Sender<()>,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Result<ProvenFile>>,
}

/// What its tasks have in common.
pub(super) struct AgentShared {
    /// The settings it works with.
    pub config: MasterConfig,
    /// What tells them from others.
    pub settings: [u8; SETTINGS_BYTES],
    /// What was done.
    pub meter: Arc<AgentMeter>,
    /// What is shipped, under way, and next.
    pub shelf: Mutex<Shelf>,
    /// There may be something to ship ahead.
    pub has_work: watch::Sender<()>,
    /// Nothing is left of what was ready.
    pub out_of_work: Notify,
    /// The receiver answers.
    pub is_there: Notify,
    /// When an archiver asked last.
    pub asked_at: Mutex<Option<Instant>>,
    /// A place for each who asks at the moment.
    pub askers: Arc<Semaphore>,
    /// Whoever has this has the connection for what is asked for.
    pub front: Semaphore,
    /// The way to it.
    pub to_front: mpsc::Sender<AskedPush>,
}

impl AgentShared {
    /// The shelf, for a moment.
    pub(super) fn shelf(&self) -> MutexGuard<'_, Shelf> {
        // Each change of it is whole before anything of it can panic.
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An archiver asks.
    pub(super) fn asked(&self, ask: &Ask) -> AskedStanding {
        self.hears_archiver();
        let standing = self.shelf().asked(ask.name, &ask.stamp);
        if let AskedStanding::Stored(_) = standing {
            // There is room for another.
            self.has_work.send_replace(());
        }
        standing
    }

    /// There is an archiver at work.
    pub(super) fn hears_archiver(&self) {
        let mut asked_at = self.asked_at.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = asked_at.replace(Instant::now()).is_none();
        drop(asked_at);
        if is_first {
            self.out_of_work.notify_one();
        }
    }

    /// Whether there is an archiver that asks.
    pub(super) fn looks_ahead(&self) -> bool {
        self.was_asked_within(ARCHIVER_ASKED_WITHIN)
    }

    /// Whether an archiver was heard within this.
    pub(super) fn was_asked_within(&self, patience: Duration) -> bool {
        let asked_at = self.asked_at.lock().unwrap_or_else(PoisonError::into_inner);
        asked_at.is_some_and(|at| at.elapsed() < patience)
    }

    /// What comes next of what nobody has asked for.
    pub(super) fn first(&self) -> Option<WalFileName> {
        let archiver_asks = self.looks_ahead();
        self.shelf().first(archiver_asks)
    }

    /// Whether nothing is left of what was ready.
    pub(super) fn is_out_of_work(&self) -> bool {
        self.shelf().is_out_of_work()
    }

    /// PostgreSQL has these ready. Returns whether one of them is to be shipped.
    pub(super) fn are_ready(&self, marks: Marks) -> bool {
        let mut shelf = self.shelf();
        shelf.forget(|name| !marks.unwanted.contains(&name));
        shelf.replace(marks.ready);
        self.meter.waits(shelf.waiting());
        let has_work = !shelf.is_out_of_work();
        drop(shelf);
        self.has_work.send_replace(());
        has_work
    }

    /// The work at a file is over, with a proof or without.
    pub(super) fn done(&self, name: WalFileName, stored: Option<ProvenFile>) {
        self.shelf().done(name, stored);
        self.has_work.send_replace(());
    }
}

/// What tells settings apart: the agent works with those that it has read, `xarchive` with those of the file.
pub(in crate::master) fn settings_digest(config: &MasterConfig) -> [u8; SETTINGS_BYTES] {
    let said = digest(&SHA256, format!("{config:?}").as_bytes());
    let mut bytes = [0; SETTINGS_BYTES];
    bytes.copy_from_slice(said.as_ref());
    bytes
}
