//! Places of one kind that peers share: so many in all, and so many for one of them.
//! Never waits for a place. Invariant: whoever is alone cannot take what the next one needs to begin.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::receiver::peer::PeerKey;

/// How many places there are, and who has them.
pub(crate) struct Shares {
    most: usize,
    most_for_one: usize,
    bytes_for_one: u64,
    taken: Mutex<HashMap<PeerKey, Taken>>,
}

/// What a peer has.
#[derive(Default)]
struct Taken {
    places: usize,
    bytes: u64,
}

/// As many places as a peer may always have, however much each of them takes.
const PLACES_OF_ANY_SIZE: usize = 4;

/// A place, given back when dropped.
pub(crate) struct Share {
    of: Arc<Shares>,
    key: PeerKey,
    bytes: u64,
}

impl Shares {
    /// So many places in all, and so many of them for one peer.
    pub(crate) fn new(most: usize, most_for_one: usize) -> Arc<Self> {
        Shares::of_bytes(most, most_for_one, u64::MAX)
    }

    /// So many places in all and for one peer, whose places may take so many bytes together.
    pub(crate) fn of_bytes(most: usize, most_for_one: usize, bytes_for_one: u64) -> Arc<Self> {
        Arc::new(Shares {
            most,
            most_for_one,
            bytes_for_one,
            taken: Mutex::default(),
        })
    }

    /// Takes a place; `None` when all are taken, or all that this peer may have.
    pub(crate) fn take(self: &Arc<Self>, key: &PeerKey) -> Option<Share> {
        self.take_for(key, 0)
    }

    /// Takes a place for what needs so many bytes of room.
    pub(crate) fn take_for(self: &Arc<Self>, key: &PeerKey, bytes: u64) -> Option<Share> {
        let mut taken = self.taken();
        let (places, own) = taken.get(key).map_or((0, 0), |own| (own.places, own.bytes));
        let all: usize = taken.values().map(|one| one.places).sum();
        let has_room =
            places < PLACES_OF_ANY_SIZE || own.saturating_add(bytes) <= self.bytes_for_one;
        if places >= self.most_for_one || all >= self.most || !has_room {
            return None;
        }
        let own = taken.entry(key.clone()).or_default();
        own.places += 1;
        own.bytes = own.bytes.saturating_add(bytes);
        drop(taken);
        Some(Share {
            of: Arc::clone(self),
            key: key.clone(),
            bytes,
        })
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<PeerKey, Taken>> {
        // Each change is one call, so a panic elsewhere cannot have left half of one.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// Whose it is.
    pub(crate) const fn key(&self) -> &PeerKey {
        &self.key
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.of.taken();
        if let Some(own) = taken.get_mut(&self.key) {
            own.places -= 1;
            own.bytes = own.bytes.saturating_sub(self.bytes);
            if own.places == 0 {
                taken.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_116_the_room_of_one_peer_is_bounded_and_a_few_places_always_fit() {
        let shares = Shares::of_bytes(64, 48, 100);
        let take = |name: &str, bytes| shares.take_for(&PeerKey::Named(name.to_owned()), bytes);
        let mut large: Vec<_> = (0..6).filter_map(|_| take("stolen", 1_000)).collect();
        assert_eq!(large.len(), 4);
        let small: Vec<_> = (0..20).filter_map(|_| take("db1", 10)).collect();
        assert_eq!(small.len(), 10);
        large.clear();
        assert!(take("stolen", 1_000).is_some());
        drop(small);
        assert!(shares.taken().is_empty());
    }

    #[test]
    fn fault_116_one_peer_cannot_take_the_places_of_all() {
        let shares = Shares::new(8, 6);
        let take = |name: &str| shares.take(&PeerKey::Named(name.to_owned()));
        let mut stolen: Vec<_> = (0..10).filter_map(|_| take("stolen")).collect();
        let genuine: Vec<_> = (0..10).filter_map(|_| take("db1")).collect();
        assert_eq!((stolen.len(), genuine.len()), (6, 2));
        stolen.pop();
        assert!(take("db1").is_some());
        drop((stolen, genuine));
        assert!(shares.taken().is_empty());
    }
}
