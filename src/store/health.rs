//! Whether the archive can still be trusted with new files.
//! Never decides to exit; the daemon asks. Invariant: a failed sync is remembered for good.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::error::StoreError;
use crate::metrics::StoreMeter;

/// What the archive says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// The last file was stored, or none was tried yet.
    Good,
    /// The last file was refused by the disk (full, read-only, broken); the next one may succeed.
    Impaired {
        /// What the disk said.
        why: String,
        /// Whether it said that it is full.
        is_full: bool,
    },
    /// A sync failed. What the kernel reports from then on proves nothing, so everything is
    /// refused and the process has to be started anew.
    SyncFailed {
        /// What the disk said the first time.
        why: String,
    },
}

/// The memory behind [`Health`], shared by everything that writes, and what is counted of it.
#[derive(Debug)]
pub(super) struct Monitor {
    state: Mutex<Health>,
    meter: OnceLock<Arc<StoreMeter>>,
}

impl Monitor {
    pub(super) const fn new() -> Self {
        Monitor {
            state: Mutex::new(Health::Good),
            meter: OnceLock::new(),
        }
    }

    /// Counts there from here on.
    pub(super) fn count_in(&self, meter: Arc<StoreMeter>) {
        // Nobody has two.
        let _ = self.meter.set(meter);
    }

    /// Does a sync, and counts how long it took.
    pub(super) fn timed<T>(&self, sync: impl FnOnce() -> T) -> T {
        match self.meter.get() {
            Some(meter) => meter.syncs.time(sync),
            None => sync(),
        }
    }

    /// Counts records that were found good.
    pub(super) fn checked(&self, records: u64) {
        if let Some(meter) = self.meter.get() {
            meter.records_checked.add(records);
        }
    }

    pub(super) fn health(&self) -> Health {
        self.state().clone()
    }

    /// Refuses once a sync has failed.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        match &*self.state() {
            Health::SyncFailed { why } => Err(StoreError::SyncFailed { why: why.clone() }),
            Health::Good | Health::Impaired { .. } => Ok(()),
        }
    }

    /// Remembers a failed sync for good; the first one is the one worth reading.
    pub(super) fn sync_failed(&self, error: &StoreError) {
        let mut state = self.state();
        if !matches!(*state, Health::SyncFailed { .. }) {
            let why = error.to_string();
            *state = Health::SyncFailed { why };
        }
    }

    /// Remembers a refusal by the disk, unless a sync failed before.
    pub(super) fn watch<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        let mut state = self.state();
        if !matches!(*state, Health::SyncFailed { .. })
            && let Err(
                error @ (StoreError::Disk { .. }
                | StoreError::NoSpace { .. }
                | StoreError::Moved { .. }),
            ) = &result
        {
            let why = error.to_string();
            let is_full = matches!(error, StoreError::NoSpace { .. });
            *state = Health::Impaired { why, is_full };
        }
        drop(state);
        result
    }

    /// Watches the last step of a write: a failed sync is remembered for good, and success proves the disk well
    /// again.
    pub(super) fn outcome<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        let mut state = self.state();
        if result.is_ok() && matches!(*state, Health::Impaired { .. }) {
            *state = Health::Good;
        }
        drop(state);
        self.watch(result)
    }

    /// Forgets that the disk was full; nothing else that it said.
    pub(super) fn has_room(&self) {
        let mut state = self.state();
        if matches!(*state, Health::Impaired { is_full: true, .. }) {
            *state = Health::Good;
        }
    }

    fn state(&self) -> MutexGuard<'_, Health> {
        // Each change is one assignment, so a panic elsewhere cannot have left half of one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
