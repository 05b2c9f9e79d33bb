//! Who may come in: strangers before they are known, and the connections of those who are.
//! Never reads a byte of anybody. Invariant: a stranger that has not spoken takes no slot from one
//! that has, and nobody keeps a connection slot from a peer that has fewer.
//!
//! ```text
//! silent      a socket that waits for its ClientHello; holds a descriptor, nothing else. When there
//!    │        are too many, the one gives way that has been silent longest at the most crowded
//!    │        address: whoever wants in speaks in a moment, on any link
//!    ▼
//! speaking    TLS and hello; has buffers. When there are too many the newest is refused, unless
//!    │        one of a more crowded address can give way
//!    ▼
//! known       a connection. When there are too many, one of the peer gives way that has most
//! ```
//!
//! An address that authenticated within the last hour counts for a quarter of a crowd.
//! `TCP_DEFER_ACCEPT` was rejected: it leaves silent connections to the kernel's queue, which drops
//! whoever comes when it is full.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, oneshot};

use crate::receiver::peer::{NetworkAddress, PeerKey};
use crate::receiver::{
    CONNECTION_PATIENCE, DESCRIPTORS_WANTED, HANDSHAKES_MAX, KNOWN_ADDRESSES_MAX, KNOWN_FOR,
    SILENT_MAX,
};

/// The tables; one a receiver.
pub struct Admission {
    tables: Mutex<Tables>,
    begun: AtomicU64,
    /// A connection slot became free.
    freed: Notify,
    silent_max: usize,
    speaking_max: usize,
}

#[derive(Default)]
struct Tables {
    /// In the order they came.
    strangers: BTreeMap<u64, StrangerSlot>,
    crowds: HashMap<NetworkAddress, Crowd>,
    silent: usize,
    known: HashMap<NetworkAddress, Instant>,
    /// In the order they came.
    connections: BTreeMap<u64, ConnectionSlot>,
}

struct StrangerSlot {
    place: NetworkAddress,
    speaks: bool,
    /// Dropped with this value, which the task that greets the peer notices.
    _slot: oneshot::Sender<()>,
}

/// How many strangers there are of one place.
#[derive(Default, Clone, Copy)]
struct Crowd {
    silent: usize,
    speaking: usize,
}

struct ConnectionSlot {
    key: PeerKey,
    may_push: bool,
    /// Whether it is part of a backup, which has seats of its own.
    of_backup: bool,
    /// Dropped with this value, which ends the connection.
    _slot: oneshot::Sender<()>,
}

impl Admission {
    /// Tables for a process that may open so many descriptors: a quarter of them for silence, a
    /// quarter for handshakes, the rest for peers and files.
    pub fn new(descriptors_max: usize) -> Arc<Self> {
        let quarter = (descriptors_max / 4).max(1);
        Arc::new(Admission {
            tables: Mutex::default(),
            begun: AtomicU64::new(0),
            freed: Notify::new(),
            silent_max: quarter.min(SILENT_MAX),
            speaking_max: quarter.min(HANDSHAKES_MAX),
        })
    }

    /// Notes a socket that has said nothing yet. What is returned second ends when it has to give
    /// way.
    pub fn arrive(self: &Arc<Self>, address: IpAddr) -> (Arrival, oneshot::Receiver<()>) {
        let place = NetworkAddress::from(address);
        let (slot, gives_way) = oneshot::channel();
        let id = self.begun.fetch_add(1, Ordering::Relaxed);
        let mut tables = self.tables();
        if tables.silent >= self.silent_max {
            tables.drop_longest_silence();
        }
        let speaks = false;
        let stranger = StrangerSlot {
            place,
            speaks,
            _slot: slot,
        };
        tables.strangers.insert(id, stranger);
        tables.count(place, speaks, 1);
        drop(tables);
        let admission = Arc::clone(self);
        let arrival = Arrival {
            admission,
            id,
            place,
        };
        (arrival, gives_way)
    }

    /// Drops the socket that has been silent longest, because the process can open no more; whether
    /// there was one.
    pub fn make_room(&self) -> bool {
        self.tables().drop_longest_silence()
    }

    /// Takes a connection slot, of `most` that there are, and waits for a moment while there is
    /// none. What is returned second ends when the connection has to give way.
    pub async fn connect(
        self: &Arc<Self>,
        key: &PeerKey,
        may_push: bool,
        most: usize,
    ) -> Result<(HeldConnection, oneshot::Receiver<()>), String> {
        let until = tokio::time::Instant::now() + CONNECTION_PATIENCE;
        loop {
            let freed = self.freed.notified();
            let refused = match self.try_connect(key, may_push, most) {
                Ok(open) => return Ok(open),
                Err(refused) => refused,
            };
            if tokio::time::timeout_at(until, freed).await.is_err() {
                return Err(refused);
            }
        }
    }

    fn try_connect(
        self: &Arc<Self>,
        key: &PeerKey,
        may_push: bool,
        most: usize,
    ) -> Result<(HeldConnection, oneshot::Receiver<()>), String> {
        let mut tables = self.tables();
        let gives_way = tables.place_for(key, may_push, most)?;
        if let Some(id) = gives_way {
            tables.connections.remove(&id);
        }
        let (slot, lost) = oneshot::channel();
        let id = self.begun.fetch_add(1, Ordering::Relaxed);
        let connection = ConnectionSlot {
            key: key.clone(),
            may_push,
            of_backup: false,
            _slot: slot,
        };
        tables.connections.insert(id, connection);
        drop(tables);
        let admission = Arc::clone(self);
        Ok((HeldConnection { admission, id }, lost))
    }

    /// Connections open, strangers not counted.
    pub fn connections(&self) -> usize {
        self.tables().connections.len()
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        // Nothing between two changes that belong together can panic.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables {
    fn count(&mut self, place: NetworkAddress, speaks: bool, change: isize) {
        let crowd = self.crowds.entry(place).or_default();
        let counted = match speaks {
            true => &mut crowd.speaking,
            false => &mut crowd.silent,
        };
        *counted = counted.saturating_add_signed(change);
        if !speaks {
            self.silent = self.silent.saturating_add_signed(change);
        }
        if (crowd.silent, crowd.speaking) == (0, 0) {
            self.crowds.remove(&place);
        }
    }

    fn remove(&mut self, id: u64) {
        if let Some(stranger) = self.strangers.remove(&id) {
            self.count(stranger.place, stranger.speaks, -1);
        }
    }

    fn is_known(&self, place: NetworkAddress) -> bool {
        let since = self.known.get(&place);
        since.is_some_and(|since| since.elapsed() < KNOWN_FOR)
    }

    /// A crowd as it weighs against others.
    fn weight(&self, place: NetworkAddress, count: usize) -> usize {
        match self.is_known(place) {
            true => count / 4,
            false => count,
        }
    }

    fn drop_longest_silence(&mut self) -> bool {
        let silent = (self.crowds.iter()).filter(|(_, crowd)| crowd.silent > 0);
        let heaviest = silent.map(|(place, crowd)| self.weight(*place, crowd.silent));
        let Some(heaviest) = heaviest.max() else {
            return false;
        };
        // Of crowds that weigh the same, whoever came first has had most time to speak.
        let longest = self.strangers.iter().find(|(_, stranger)| {
            !stranger.speaks
                && self.crowds.get(&stranger.place).is_some_and(|crowd| {
                    crowd.silent > 0 && self.weight(stranger.place, crowd.silent) == heaviest
                })
        });
        let longest = longest.map(|(id, _)| *id);
        if let Some(id) = longest {
            self.remove(id);
        }
        longest.is_some()
    }

    /// Makes a silent stranger one that speaks, if there is room for it.
    fn speak(&mut self, id: u64, most: usize) -> bool {
        let Some(stranger) = self.strangers.get(&id) else {
            return false;
        };
        let place = stranger.place;
        let speaking = self.strangers.len() - self.silent;
        if speaking >= most && !self.drop_newest_speaker(place) {
            self.remove(id);
            return false;
        }
        self.count(place, false, -1);
        self.count(place, true, 1);
        if let Some(stranger) = self.strangers.get_mut(&id) {
            stranger.speaks = true;
        }
        true
    }

    /// Of the most crowded place the newest, if `place` with one more weighs less still.
    fn drop_newest_speaker(&mut self, place: NetworkAddress) -> bool {
        let speakers = self.crowds.iter().filter(|(_, crowd)| crowd.speaking > 0);
        let heaviest = speakers
            .max_by_key(|(place, crowd)| (self.weight(**place, crowd.speaking), crowd.speaking));
        let Some((crowded, crowd)) = heaviest.map(|(place, crowd)| (*place, *crowd)) else {
            return false;
        };
        let own = self.crowds.get(&place).map_or(0, |crowd| crowd.speaking);
        let weighs_less =
            self.weight(place, own + 1) < self.weight(crowded, crowd.speaking) && place != crowded;
        let newest = (self.strangers.iter().rev())
            .find(|(_, stranger)| stranger.speaks && stranger.place == crowded)
            .map(|(id, _)| *id);
        match newest.filter(|_| weighs_less) {
            Some(id) => {
                self.remove(id);
                true
            }
            None => false,
        }
    }

    /// Which connection has to give way for another one of this key: `None` if none has to.
    fn place_for(&self, key: &PeerKey, may_push: bool, most: usize) -> Result<Option<u64>, String> {
        let counted = || self.connections.iter().filter(|(_, one)| !one.of_backup);
        // Whoever only reads leaves room for those who archive.
        let readers_max = (most - most.div_ceil(8)).max(1);
        let readers = counted().filter(|(_, one)| !one.may_push).count();
        if !may_push && readers >= readers_max {
            let newest = self.newest_of_largest(key, |one| !one.may_push);
            return newest.map(Some).ok_or_else(|| {
                format!("all {readers_max} connections for peers that do not push are in use")
            });
        }
        if counted().count() < most {
            return Ok(None);
        }
        let newest = self.newest_of_largest(key, |_| true);
        // Where there is one slot alone there is none that readers could leave free.
        let only_readers = may_push && counted().all(|(_, one)| !one.may_push);
        let reader = counted().rfind(|_| only_readers);
        newest
            .or_else(|| reader.map(|(id, _)| *id))
            .map(Some)
            .ok_or_else(|| format!("all {most} connections are in use"))
    }

    /// The newest connection of whoever has most of these, if that is more than this key would
    /// have with one more.
    fn newest_of_largest(
        &self,
        key: &PeerKey,
        of: impl Fn(&ConnectionSlot) -> bool,
    ) -> Option<u64> {
        let counted = || (self.connections.iter()).filter(|(_, one)| !one.of_backup && of(one));
        let mut shares: BTreeMap<&PeerKey, usize> = BTreeMap::new();
        for (_, one) in counted() {
            *shares.entry(&one.key).or_default() += 1;
        }
        let own = shares.get(key).copied().unwrap_or(0);
        let (largest, count) = shares.into_iter().max_by_key(|(_, count)| *count)?;
        let newest = counted().filter(|(_, one)| one.key == *largest).last();
        newest.filter(|_| count >= own + 2).map(|(id, _)| *id)
    }
}

/// A stranger in the tables; taken out when this is dropped.
pub struct Arrival {
    admission: Arc<Admission>,
    id: u64,
    place: NetworkAddress,
}

impl Arrival {
    /// It has sent its ClientHello, and wants the slot of a handshake; `false` when there is none.
    pub fn speak(&self) -> bool {
        let admission = &self.admission;
        (admission.tables()).speak(self.id, admission.speaking_max)
    }

    /// It has authenticated: its address counts for less in a crowd from here on.
    pub fn is_known(&self) {
        let mut tables = self.admission.tables();
        let known = &mut tables.known;
        if known.len() >= KNOWN_ADDRESSES_MAX && !known.contains_key(&self.place) {
            known.retain(|_, since| since.elapsed() < KNOWN_FOR);
            let oldest = known.iter().min_by_key(|(_, since)| **since);
            if let Some(place) = oldest.map(|(place, _)| *place)
                && known.len() >= KNOWN_ADDRESSES_MAX
            {
                known.remove(&place);
            }
        }
        known.insert(self.place, Instant::now());
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.admission.tables().remove(self.id);
    }
}

/// A connection slot, given back when dropped.
pub struct HeldConnection {
    admission: Arc<Admission>,
    id: u64,
}

impl HeldConnection {
    /// Connections of all peers.
    pub fn connections(&self) -> usize {
        self.admission.connections()
    }

    /// What the holder may do changed.
    pub fn may_push(&self, may_push: bool) {
        let mut tables = self.admission.tables();
        if let Some(connection) = tables.connections.get_mut(&self.id) {
            connection.may_push = may_push;
        }
    }

    /// Whether the connection is part of a backup: then it has one of the backup's seats, and its
    /// slot is free for another.
    pub fn is_of_backup(&self, of_backup: bool) {
        let mut tables = self.admission.tables();
        if let Some(connection) = tables.connections.get_mut(&self.id) {
            connection.of_backup = of_backup;
        }
        drop(tables);
        if of_backup {
            self.admission.freed.notify_waiters();
        }
    }
}

impl Drop for HeldConnection {
    fn drop(&mut self) {
        self.admission.tables().connections.remove(&self.id);
        self.admission.freed.notify_waiters();
    }
}

/// Raises the bound on descriptors as far as it may be; returns how many there are.
pub fn raise_descriptors() -> usize {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = u64::try_from(DESCRIPTORS_WANTED).unwrap_or(u64::MAX);
    let reachable = limit.maximum.map_or(wanted, |most| most.min(wanted));
    let before = limit.current.unwrap_or(u64::MAX);
    if before < reachable {
        limit.current = Some(reachable);
        if setrlimit(Resource::Nofile, limit).is_ok() {
            return usize::try_from(reachable).unwrap_or(usize::MAX);
        }
    }
    usize::try_from(before).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn gives_way(slot: &mut oneshot::Receiver<()>) -> bool {
        slot.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    fn small(silent_max: usize, speaking_max: usize) -> Arc<Admission> {
        let mut admission = Arc::into_inner(Admission::new(1024)).unwrap();
        (admission.silent_max, admission.speaking_max) = (silent_max, speaking_max);
        Arc::new(admission)
    }

    #[test]
    fn fault_118_silence_gives_way_at_the_most_crowded_address_first() {
        let admission = small(8, 4);
        let (_one, mut one_slot) = admission.arrive(address(1));
        let mut crowd: Vec<_> = (0..20).map(|_| admission.arrive(address(2))).collect();
        let dropped: Vec<bool> = crowd.iter_mut().map(|(_, slot)| gives_way(slot)).collect();
        // Seven of them and the one: the newest are there, the oldest went.
        assert_eq!(dropped, [[true; 13].as_slice(), &[false; 7]].concat());
        assert!(!gives_way(&mut one_slot));
        // A speaker takes no place from silence, and none gives way for silence.
        assert!(crowd[19].0.speak());
        let _more: Vec<_> = (0..20).map(|_| admission.arrive(address(2))).collect();
        assert!(!gives_way(&mut crowd[19].1));
        assert!(!gives_way(&mut one_slot));
    }

    #[test]
    fn fault_118_an_address_that_authenticated_outlasts_many_others() {
        let admission = small(8, 4);
        let (known, _) = admission.arrive(address(1));
        known.is_known();
        drop(known);
        let mut own: Vec<_> = (0..3).map(|_| admission.arrive(address(1))).collect();
        let _others: Vec<_> = (10..200)
            .map(|last| admission.arrive(address(last)))
            .collect();
        assert!(own.iter_mut().all(|(_, slot)| !gives_way(slot)));
    }

    #[test]
    fn fault_118_the_newest_speaker_of_the_most_crowded_address_gives_way() {
        let admission = small(100, 4);
        let mut old: Vec<_> = (0..4).map(|_| admission.arrive(address(1))).collect();
        assert!(old.iter().all(|(arrival, _)| arrival.speak()));
        let (late, mut late_slot) = admission.arrive(address(1));
        assert!(!late.speak());
        assert!(gives_way(&mut late_slot));
        let (other, _slot) = admission.arrive(address(2));
        assert!(other.speak());
        let dropped: Vec<bool> = old.iter_mut().map(|(_, slot)| gives_way(slot)).collect();
        assert_eq!(dropped, [false, false, false, true]);
        drop(old);
        let (again, _slot) = admission.arrive(address(1));
        assert!(again.speak());
        drop((late, other, again));
        assert!(admission.tables().crowds.is_empty());
        assert_eq!(admission.tables().silent, 0);
    }

    fn named(name: &str) -> PeerKey {
        PeerKey::Named(name.to_owned())
    }

    #[test]
    fn fault_116_peers_that_only_read_leave_room_for_those_who_archive() {
        let admission = Admission::new(1024);
        let connect = |name: &str, push| admission.try_connect(&named(name), push, 64);
        let mut readers: Vec<_> = (0..80)
            .filter_map(|_| connect("reader", false).ok())
            .collect();
        assert_eq!(readers.len(), 56);
        // Nor does one of them keep another out.
        let others: Vec<_> = (0..80)
            .filter_map(|_| connect("other reader", false).ok())
            .collect();
        assert_eq!(others.len(), 28);
        let lost = readers
            .iter_mut()
            .filter_map(|(_, lost)| gives_way(lost).then_some(()));
        assert_eq!(lost.count(), 28);
        let masters: Vec<_> = (0..8).map(|_| connect("db1", true).unwrap()).collect();
        drop((readers, others, masters));
        assert_eq!(admission.connections(), 0);
    }

    #[test]
    fn fault_116_a_reader_gives_the_only_connection_up_to_one_who_archives() {
        let admission = Admission::new(1024);
        let connect = |name: &str, push| admission.try_connect(&named(name), push, 1);
        let (_reader, mut slot) = connect("reader", false).unwrap();
        assert!(connect("other reader", false).is_err());
        assert!(!gives_way(&mut slot));
        let (_master, mut masters) = connect("db1", true).unwrap();
        assert!(gives_way(&mut slot));
        assert!(connect("reader", false).is_err());
        assert!(connect("db2", true).is_err());
        assert!(!gives_way(&mut masters));
    }

    #[test]
    fn fault_116_reader_that_gains_push_counts_as_an_archiver() {
        let admission = Admission::new(1024);
        let connect = |push| admission.try_connect(&named("db1"), push, 8);
        let held: Vec<_> = (0..7).map(|_| connect(false).unwrap()).collect();
        assert!(connect(false).is_err());
        held[0].0.may_push(true);
        let more = connect(false).unwrap();
        assert!(connect(false).is_err());
        drop((held, more));
    }

    #[test]
    fn fault_116_the_key_with_most_connections_gives_way_to_one_with_fewer() {
        let admission = Admission::new(1024);
        let connect = |name: &str| admission.try_connect(&named(name), true, 8);
        let mut stolen: Vec<_> = (0..8).map(|_| connect("stolen").unwrap()).collect();
        assert!(connect("stolen").is_err());
        let genuine: Vec<_> = (0..8).filter_map(|_| connect("db1").ok()).collect();
        assert_eq!(genuine.len(), 4);
        let lost: Vec<bool> = stolen.iter_mut().map(|(_, lost)| gives_way(lost)).collect();
        assert_eq!(lost, [[false; 4], [true; 4]].concat());
    }

    #[test]
    fn fault_118_the_connections_of_a_backup_take_no_slot_from_others() {
        let admission = Admission::new(1024);
        let connect = || admission.try_connect(&named("db1"), true, 4);
        let streams: Vec<_> = (0..65)
            .map(|_| {
                let (open, lost) = connect().unwrap();
                open.is_of_backup(true);
                (open, lost)
            })
            .collect();
        let others: Vec<_> = (0..5).filter_map(|_| connect().ok()).collect();
        assert_eq!((streams.len(), others.len()), (65, 4));
    }

    #[tokio::test]
    async fn fault_118_a_slot_that_becomes_free_in_a_moment_is_waited_for() {
        let admission = Admission::new(1024);
        let held = admission.connect(&named("db1"), true, 1).await.unwrap();
        let waiting = Arc::clone(&admission);
        let late =
            tokio::spawn(async move { waiting.connect(&named("db1"), true, 1).await.map(drop) });
        tokio::time::sleep(CONNECTION_PATIENCE / 2).await;
        drop(held);
        assert_eq!(late.await.unwrap(), Ok(()));
        let _held = admission.connect(&named("db1"), true, 1).await.unwrap();
        let refused = admission.connect(&named("db1"), true, 1).await.map(drop);
        assert_eq!(refused, Err("all 1 connections are in use".to_owned()));
    }
}
