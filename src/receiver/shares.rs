//! Places of one kind that peers share: so many in all clusters, so many in one, and so many of those for one peer.
//! Never waits for a place. Invariant: whoever is alone cannot take what the next one needs to begin, be it another
//! peer or another cluster.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use walmgr_protocol::message::{Error, ErrorCode};

use crate::receiver::peer::PeerKey;
use crate::receiver::{
    ALL_CLUSTERS_TIMES, BACKUP_THREADS_MAX, FETCHES_MAX, FETCHES_PER_PEER_MAX, RESERVED,
    STREAMS_MAX, UPLOAD_BYTES_PER_PEER_MAX, UPLOADS_MAX, UPLOADS_PER_PEER_MAX,
};

/// Places of one kind that the clusters of a process share.
pub(crate) struct SharePool {
    most: usize,
    taken: AtomicUsize,
}

/// The pools of all kinds.
pub(crate) struct SharePools {
    /// Threads of uploads.
    pub uploads: Arc<SharePool>,
    /// Threads of fetches.
    pub fetches: Arc<SharePool>,
    /// Threads of streams of records.
    pub streams: Arc<SharePool>,
    /// Threads of connections that are part of a backup.
    pub backup_threads: Arc<SharePool>,
}

/// How many places a cluster has, and who has them.
pub(crate) struct Shares {
    pool: Arc<SharePool>,
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

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoShare {
    /// All of the cluster's are taken, or all that this peer may have of them.
    OfCluster,
    /// All clusters together have so many.
    OfAll(usize),
}

impl NoShare {
    /// In words, of places for what is called so; `own` says it of a cluster that is alone.
    pub(crate) fn text(self, what: &str, own: String) -> String {
        match self {
            NoShare::OfCluster => own,
            NoShare::OfAll(most) => {
                format!(
                    "all {most} {what} that this receiver's clusters may have at once are under way"
                )
            }
        }
    }
}

/// What a request takes one of for as long as it lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SharedPlaces {
    /// An upload, or a trial of the way.
    Uploads,
    /// A fetch, or a question about a set.
    Fetches,
}

impl SharedPlaces {
    /// The refusal where none is left.
    pub(crate) fn all_taken(self, none: NoShare) -> Error {
        let (what, own, hint) = match self {
            SharedPlaces::Uploads => {
                let own = format!(
                    "all {UPLOADS_PER_PEER_MAX} uploads of a peer, or {} MiB of them, or all \
                    {UPLOADS_MAX} uploads, are in progress",
                    UPLOAD_BYTES_PER_PEER_MAX >> 20
                );
                ("uploads", own, "walmgr tries again")
            }
            SharedPlaces::Fetches => {
                let own = format!(
                    "all {FETCHES_PER_PEER_MAX} fetches of a peer, or all {FETCHES_MAX} fetches, \
                    are in progress"
                );
                ("fetches", own, "try again later")
            }
        };
        Error::channel(ErrorCode::Busy, none.text(what, own), hint)
    }
}

impl Default for SharePools {
    fn default() -> Self {
        let pool = |most| SharePool::new(ALL_CLUSTERS_TIMES * most);
        SharePools {
            uploads: pool(UPLOADS_MAX),
            fetches: pool(FETCHES_MAX),
            streams: pool(STREAMS_MAX),
            backup_threads: pool(BACKUP_THREADS_MAX),
        }
    }
}

impl SharePool {
    fn new(most: usize) -> Arc<Self> {
        let taken = AtomicUsize::new(0);
        Arc::new(SharePool { most, taken })
    }

    /// Counts one place more for a cluster that has so many.
    fn take(&self, own: usize) -> Result<(), NoShare> {
        // A cluster that has few is never refused because others have many.
        let is_reserved = own < RESERVED;
        let more = |taken| (is_reserved || taken < self.most).then_some(taken + 1);
        let counted = (self.taken).fetch_update(Ordering::SeqCst, Ordering::SeqCst, more);
        counted.map(drop).map_err(|_| NoShare::OfAll(self.most))
    }
}

impl Shares {
    /// So many places in all, and so many of them for one peer.
    pub(crate) fn new(pool: &Arc<SharePool>, most: usize, most_for_one: usize) -> Arc<Self> {
        Shares::of_bytes(pool, most, most_for_one, u64::MAX)
    }

    /// So many places in all and for one peer, whose places may take so many bytes together.
    pub(crate) fn of_bytes(
        pool: &Arc<SharePool>,
        most: usize,
        most_for_one: usize,
        bytes_for_one: u64,
    ) -> Arc<Self> {
        Arc::new(Shares {
            pool: Arc::clone(pool),
            most,
            most_for_one,
            bytes_for_one,
            taken: Mutex::default(),
        })
    }

    /// Takes a place, unless all are taken, or all that this peer may have.
    pub(crate) fn take(self: &Arc<Self>, key: &PeerKey) -> Result<Share, NoShare> {
        self.take_for(key, 0)
    }

    /// Takes a place for what needs so many bytes of room.
    pub(crate) fn take_for(self: &Arc<Self>, key: &PeerKey, bytes: u64) -> Result<Share, NoShare> {
        let mut taken = self.taken();
        let (places, own) = taken.get(key).map_or((0, 0), |own| (own.places, own.bytes));
        let all: usize = taken.values().map(|one| one.places).sum();
        let has_room =
            places < PLACES_OF_ANY_SIZE || own.saturating_add(bytes) <= self.bytes_for_one;
        if places >= self.most_for_one || all >= self.most || !has_room {
            return Err(NoShare::OfCluster);
        }
        self.pool.take(all)?;
        let own = taken.entry(key.clone()).or_default();
        own.places += 1;
        own.bytes = own.bytes.saturating_add(bytes);
        drop(taken);
        Ok(Share {
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
        drop(taken);
        self.of.pool.taken.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn named(name: &str) -> PeerKey {
        PeerKey::Named(name.to_owned())
    }

    #[test]
    fn fault_116_the_room_of_one_peer_is_bounded_and_a_few_places_always_fit() {
        let shares = Shares::of_bytes(&SharePool::new(256), 64, 48, 100);
        let take = |name: &str, bytes| shares.take_for(&named(name), bytes).ok();
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
        let shares = Shares::new(&SharePool::new(32), 8, 6);
        let take = |name: &str| shares.take(&named(name)).ok();
        let mut stolen: Vec<_> = (0..10).filter_map(|_| take("stolen")).collect();
        let genuine: Vec<_> = (0..10).filter_map(|_| take("db1")).collect();
        assert_eq!((stolen.len(), genuine.len()), (6, 2));
        stolen.pop();
        assert!(take("db1").is_some());
        drop((stolen, genuine));
        assert!(shares.taken().is_empty());
    }

    #[test]
    fn fault_116_clusters_that_have_all_places_leave_some_to_the_next() {
        let pool = SharePool::new(32);
        let clusters: Vec<_> = (0..6).map(|_| Shares::new(&pool, 8, 8)).collect();
        let key = named("db1");
        let mut held: Vec<Vec<Share>> = Vec::new();
        for cluster in &clusters {
            held.push((0..10).filter_map(|_| cluster.take(&key).ok()).collect());
        }
        let counts: Vec<usize> = held.iter().map(Vec::len).collect();
        assert_eq!(counts, [8, 8, 8, 8, RESERVED, RESERVED]);
        let refused = clusters[5].take(&key).err().unwrap();
        assert_eq!(refused, NoShare::OfAll(32));
        let text = refused.text("uploads", String::new());
        assert!(text.starts_with("all 32 uploads"), "{text}");
        held.truncate(3);
        assert!(clusters[5].take(&key).is_ok());
        drop(held);
        assert_eq!(pool.taken.load(Ordering::SeqCst), 0);
    }

    proptest! {
        #[test]
        fn fault_116_whatever_others_hold_a_cluster_gets_what_is_reserved(
            takers in proptest::collection::vec((0_usize..5, 0_usize..3), 0..200),
            most in 1_usize..40,
        ) {
            let pool = SharePool::new(most);
            let clusters: Vec<_> = (0..5).map(|_| Shares::new(&pool, 16, 12)).collect();
            let mut held: Vec<(usize, Share)> = Vec::new();
            for (cluster, act) in takers {
                let own = held.iter().filter(|(of, _)| *of == cluster).count();
                if act == 0 && own > 0 {
                    let last = held.iter().rposition(|(of, _)| *of == cluster);
                    held.remove(last.unwrap());
                    continue;
                }
                match clusters[cluster].take(&named("db1")) {
                    Ok(share) => held.push((cluster, share)),
                    Err(refused) => {
                        prop_assert!(own >= RESERVED, "refused {refused:?} with {own}");
                        prop_assert!(own >= 12 || held.len() >= most);
                    }
                }
                prop_assert!(held.len() <= most + 5 * RESERVED);
            }
            drop(held);
            prop_assert_eq!(pool.taken.load(Ordering::SeqCst), 0);
        }
    }
}
