//! Who of the connected peers is a master, for `status`.
//! Never decides anything. Invariant: a master is in the list from its welcome to the end of its
//! connection, however that ends.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use walmgr_protocol::hello::Role;

use crate::receiver::introduction::Peer;

/// The masters by the number of their connection; clones share the list.
#[derive(Clone, Default)]
pub struct Masters(Arc<Mutex<List>>);

#[derive(Default)]
struct List {
    begun: u64,
    names: BTreeMap<u64, String>,
}

/// A master's place in the list, given up when dropped.
pub struct Noted {
    list: Masters,
    number: u64,
}

impl Masters {
    /// Notes a peer for as long as the returned value lives; `None` if it is no master.
    pub fn note(&self, peer: &Peer) -> Option<Noted> {
        if peer.role != Role::Master {
            return None;
        }
        let mut list = self.list();
        list.begun += 1;
        let number = list.begun;
        list.names.insert(number, peer.to_string());
        drop(list);
        let list = self.clone();
        Some(Noted { list, number })
    }

    /// At most so many of them, those first that have been there longest, and how many there are.
    pub fn some(&self, most: usize) -> (Vec<String>, u64) {
        let list = self.list();
        let names = list.names.values().take(most).cloned().collect();
        (names, list.names.len() as u64)
    }

    fn list(&self) -> MutexGuard<'_, List> {
        // Each change is one call, so a panic elsewhere cannot have left half of one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        self.list.list().names.remove(&self.number);
    }
}
