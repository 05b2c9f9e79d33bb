//! Who of the connected peers is a master, for `status`.
//! Never decides anything. Invariant: a master is in the list from its welcome to the end of its
//! connection, however that ends.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The masters by the number of their connection; clones share the list.
#[derive(Clone, Default)]
pub(crate) struct Masters(Arc<Mutex<MasterNames>>);

#[derive(Default)]
struct MasterNames {
    begun: u64,
    names: BTreeMap<u64, String>,
}

/// A master's place in the list, given up when dropped.
pub(crate) struct ListedMaster {
    list: Masters,
    number: u64,
}

impl Masters {
    /// Notes a master for as long as the returned value lives.
    pub(crate) fn note(&self, name: String) -> ListedMaster {
        let mut list = self.list();
        list.begun += 1;
        let number = list.begun;
        list.names.insert(number, name);
        drop(list);
        let list = self.clone();
        ListedMaster { list, number }
    }

    /// At most so many of them, those first that have been there longest, and how many there are.
    pub(crate) fn some(&self, most: usize) -> (Vec<String>, u64) {
        let list = self.list();
        let names = list.names.values().take(most).cloned().collect();
        (names, list.names.len() as u64)
    }

    fn list(&self) -> MutexGuard<'_, MasterNames> {
        // Each change is one call, so a panic elsewhere cannot have left half of one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ListedMaster {
    fn drop(&mut self) {
        self.list.list().names.remove(&self.number);
    }
}
