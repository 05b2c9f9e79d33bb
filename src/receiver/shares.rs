//! Places of one kind that peers share: so many in all, and so many for one of them.
//! Never waits for a place. Invariant: whoever is alone cannot take what the next one needs to begin.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::receiver::admission::Holder;

/// How many places there are, and who has them.
pub struct Shares {
    most: usize,
    most_for_one: usize,
    taken: Mutex<HashMap<Holder, usize>>,
}

/// A place, given back when dropped.
pub struct Share {
    of: Arc<Shares>,
    holder: Holder,
}

impl Shares {
    /// So many places in all, and so many of them for one peer.
    pub fn new(most: usize, most_for_one: usize) -> Arc<Self> {
        Arc::new(Shares {
            most,
            most_for_one,
            taken: Mutex::default(),
        })
    }

    /// Takes a place; `None` when all are taken, or all that this peer may have.
    pub fn take(self: &Arc<Self>, holder: &Holder) -> Option<Share> {
        let mut taken = self.taken();
        let own = taken.get(holder).copied().unwrap_or(0);
        if own >= self.most_for_one || taken.values().sum::<usize>() >= self.most {
            return None;
        }
        taken.insert(holder.clone(), own + 1);
        drop(taken);
        Some(Share {
            of: Arc::clone(self),
            holder: holder.clone(),
        })
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<Holder, usize>> {
        // Each change is one call, so a panic elsewhere cannot have left half of one.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// Whose it is.
    pub const fn holder(&self) -> &Holder {
        &self.holder
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.of.taken();
        if let Some(count) = taken.get_mut(&self.holder) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_116_one_peer_cannot_take_the_places_of_all() {
        let shares = Shares::new(8, 6);
        let take = |name: &str| shares.take(&Holder::Named(name.to_owned()));
        let mut stolen: Vec<_> = (0..10).filter_map(|_| take("stolen")).collect();
        let genuine: Vec<_> = (0..10).filter_map(|_| take("db1")).collect();
        assert_eq!((stolen.len(), genuine.len()), (6, 2));
        stolen.pop();
        assert!(take("db1").is_some());
        drop((stolen, genuine));
        assert!(shares.taken().is_empty());
    }
}
