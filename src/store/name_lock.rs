//! One file name, one change at a time.
//! Never held while bytes arrive from the network. Invariant: two guards of one name never exist
//! at the same time.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use walmgr_protocol::names::WalFileName;

/// The names that somebody is looking up or sealing.
#[derive(Debug, Default)]
pub(super) struct NameLocks {
    taken: Mutex<HashSet<WalFileName>>,
    freed: Condvar,
}

/// The right to look at and change one name, until it is dropped.
#[derive(Debug)]
pub(super) struct NameGuard<'a> {
    locks: &'a NameLocks,
    name: WalFileName,
}

impl NameLocks {
    /// Waits for the name; whoever holds it is between two system calls, not waiting for a peer.
    pub(super) fn lock(&self, name: WalFileName) -> NameGuard<'_> {
        let mut taken = self.taken();
        while !taken.insert(name) {
            taken = self
                .freed
                .wait(taken)
                .unwrap_or_else(PoisonError::into_inner);
        }
        NameGuard { locks: self, name }
    }

    /// The name, if nobody has it: for whoever holds another one.
    pub(super) fn try_lock(&self, name: WalFileName) -> Option<NameGuard<'_>> {
        let is_free = self.taken().insert(name);
        is_free.then(|| NameGuard { locks: self, name })
    }

    fn taken(&self) -> MutexGuard<'_, HashSet<WalFileName>> {
        // The set is changed by single inserts and removes, so a panic cannot have torn it.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NameGuard<'_> {
    /// The name that is locked.
    pub(super) const fn name(&self) -> WalFileName {
        self.name
    }
}

impl Drop for NameGuard<'_> {
    fn drop(&mut self) {
        self.locks.taken().remove(&self.name);
        self.locks.freed.notify_all();
    }
}
