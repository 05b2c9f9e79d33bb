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

use tokio_util::sync::{CancellationToken, DropGuard};

use crate::receiver::peer::NetworkAddress;
use crate::receiver::{
    DESCRIPTORS_WANTED, HANDSHAKES_MAX, KNOWN_ADDRESSES_MAX, KNOWN_FOR, SILENT_MAX,
};

/// Everybody who is not known yet; one a receiver.
pub(crate) struct Admission {
    strangers: Mutex<Strangers>,
    begun: AtomicU64,
    silent_max: usize,
    speaking_max: usize,
}

#[derive(Default)]
struct Strangers {
    /// In the order they came.
    slots: BTreeMap<u64, StrangerSlot>,
    crowds: HashMap<NetworkAddress, Crowd>,
    silent: usize,
    known: HashMap<NetworkAddress, Instant>,
}

struct StrangerSlot {
    place: NetworkAddress,
    speaks: bool,
    /// Tells the task that greets the peer when this is dropped.
    _gives_way: DropGuard,
}

/// How many strangers there are of one place.
#[derive(Default, Clone, Copy)]
struct Crowd {
    silent: usize,
    speaking: usize,
}

impl Admission {
    /// Strangers for a process that may open so many descriptors: a quarter of them for silence, a
    /// quarter for handshakes, the rest for peers and files.
    pub(crate) fn new(descriptors_max: usize) -> Arc<Self> {
        let quarter = (descriptors_max / 4).max(1);
        Arc::new(Admission {
            strangers: Mutex::default(),
            begun: AtomicU64::new(0),
            silent_max: quarter.min(SILENT_MAX),
            speaking_max: quarter.min(HANDSHAKES_MAX),
        })
    }

    /// Notes a socket that has said nothing yet. What is returned second ends when it has to give
    /// way.
    pub(crate) fn arrive(self: &Arc<Self>, address: IpAddr) -> (Arrival, CancellationToken) {
        let place = NetworkAddress::from(address);
        let gives_way = CancellationToken::new();
        let id = self.begun.fetch_add(1, Ordering::Relaxed);
        let mut strangers = self.strangers();
        if strangers.silent >= self.silent_max {
            strangers.drop_longest_silence();
        }
        let speaks = false;
        let stranger = StrangerSlot {
            place,
            speaks,
            _gives_way: gives_way.clone().drop_guard(),
        };
        strangers.slots.insert(id, stranger);
        strangers.count(place, speaks, 1);
        drop(strangers);
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
    pub(crate) fn make_room(&self) -> bool {
        self.strangers().drop_longest_silence()
    }

    fn strangers(&self) -> MutexGuard<'_, Strangers> {
        // Nothing between two changes that belong together can panic.
        self.strangers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Strangers {
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
        if let Some(stranger) = self.slots.remove(&id) {
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
        let longest = self.slots.iter().find(|(_, stranger)| {
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
        let Some(stranger) = self.slots.get(&id) else {
            return false;
        };
        let place = stranger.place;
        let speaking = self.slots.len() - self.silent;
        if speaking >= most && !self.drop_newest_speaker(place) {
            self.remove(id);
            return false;
        }
        self.count(place, false, -1);
        self.count(place, true, 1);
        if let Some(stranger) = self.slots.get_mut(&id) {
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
        let newest = (self.slots.iter().rev())
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
}

/// A stranger in the tables; taken out when this is dropped.
pub(crate) struct Arrival {
    admission: Arc<Admission>,
    id: u64,
    place: NetworkAddress,
}

impl Arrival {
    /// It has sent its ClientHello, and wants the slot of a handshake; `false` when there is none.
    pub(crate) fn speak(&self) -> bool {
        let admission = &self.admission;
        (admission.strangers()).speak(self.id, admission.speaking_max)
    }

    /// It has authenticated: its address counts for less in a crowd from here on.
    pub(crate) fn is_known(&self) {
        let mut strangers = self.admission.strangers();
        let known = &mut strangers.known;
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
        self.admission.strangers().remove(self.id);
    }
}

/// Raises the bound on descriptors as far as it may be; returns how many there are.
pub(crate) fn raise_descriptors() -> usize {
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

    fn gives_way(slot: &mut CancellationToken) -> bool {
        slot.is_cancelled()
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
        assert!(admission.strangers().crowds.is_empty());
        assert_eq!(admission.strangers().silent, 0);
    }
}
