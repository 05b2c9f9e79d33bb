//! The slots of connections whose peers are known, and who gives way when there is none left.
//! Never knows a stranger. Invariant: a peer that has more connections than another cannot keep that one out, nor can
//! a cluster another one, and whoever only reads leaves room for those who archive.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::receiver::peer::PeerKey;
use crate::receiver::{CONNECTION_PATIENCE, RESERVED};

/// All connections; one a receiver.
#[derive(Default)]
pub(crate) struct Connections {
    slots: Mutex<ConnectionSlots>,
    /// A slot became free.
    freed: Notify,
}

#[derive(Default)]
struct ConnectionSlots {
    begun: u64,
    /// In the order they came.
    taken: BTreeMap<u64, ConnectionSlot>,
}

struct ConnectionSlot {
    /// The [`Cluster::number`](crate::receiver::cluster::Cluster) that it is for.
    cluster: u64,
    key: PeerKey,
    may_push: bool,
    /// Whether it is part of a backup, which has threads of its own.
    of_backup: bool,
    /// Ends the connection when this is dropped.
    _gives_way: DropGuard,
}

/// Who wants a slot, and how many there are.
pub(crate) struct SlotClaim {
    /// The number of the cluster that it is for.
    pub cluster: u64,
    /// Whose the connection is.
    pub key: PeerKey,
    /// Whether it may archive, or only reads.
    pub may_push: bool,
    /// Most connections of the cluster.
    pub cluster_max: usize,
    /// Most connections of all clusters.
    pub all_max: usize,
}

impl Connections {
    /// Takes a connection slot, and waits for a moment while there is none. What is returned second ends when the
    /// connection has to give way.
    pub(crate) async fn connect(
        self: &Arc<Self>,
        claim: &SlotClaim,
    ) -> Result<(HeldConnection, CancellationToken), String> {
        let until = tokio::time::Instant::now() + CONNECTION_PATIENCE;
        loop {
            let freed = self.freed.notified();
            let refused = match self.try_connect(claim) {
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
        claim: &SlotClaim,
    ) -> Result<(HeldConnection, CancellationToken), String> {
        let mut slots = self.slots();
        let gives_way = slots.place_for(claim)?;
        if let Some(id) = gives_way {
            slots.taken.remove(&id);
        }
        let lost = CancellationToken::new();
        slots.begun += 1;
        let id = slots.begun;
        let connection = ConnectionSlot {
            cluster: claim.cluster,
            key: claim.key.clone(),
            may_push: claim.may_push,
            of_backup: false,
            _gives_way: lost.clone().drop_guard(),
        };
        slots.taken.insert(id, connection);
        drop(slots);
        let connections = Arc::clone(self);
        let cluster = claim.cluster;
        let held = HeldConnection {
            connections,
            cluster,
            id,
        };
        Ok((held, lost))
    }

    /// How many are open of the cluster with this number.
    pub(crate) fn of_cluster(&self, cluster: u64) -> usize {
        let slots = self.slots();
        let own = slots.taken.values().filter(|slot| slot.cluster == cluster);
        own.count()
    }

    fn slots(&self) -> MutexGuard<'_, ConnectionSlots> {
        // Nothing between two changes that belong together can panic.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The taken slots that a claim counts against, and how many there may be: those of its cluster, or all.
struct SlotBound<'a> {
    slots: Vec<(u64, &'a ConnectionSlot)>,
    most: usize,
}

impl ConnectionSlots {
    /// Which connection has to give way for this claim: `None` if none has to.
    fn place_for(&self, claim: &SlotClaim) -> Result<Option<u64>, String> {
        let counted = || (self.taken.iter()).filter(|(_, slot)| !slot.of_backup);
        let of_cluster = SlotBound {
            slots: counted()
                .filter(|(_, slot)| slot.cluster == claim.cluster)
                .map(|(id, slot)| (*id, slot))
                .collect(),
            most: claim.cluster_max,
        };
        let of_key = |slot: &ConnectionSlot| slot.key.clone();
        // Within a cluster as if it were alone: it may take one from itself, or has room.
        if let Some(own) = of_cluster.place_for(claim, &claim.key, of_key, |_| true)? {
            return Ok(Some(own));
        }
        let all = SlotBound {
            slots: counted().map(|(id, slot)| (*id, slot)).collect(),
            most: claim.all_max,
        };
        let group_of = |slot: &ConnectionSlot| slot.cluster;
        let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
        for (_, slot) in &all.slots {
            *counts.entry(slot.cluster).or_default() += 1;
        }
        let count_of = |cluster| counts.get(&cluster).copied().unwrap_or(0);
        let can_spare = |slot: &ConnectionSlot| count_of(slot.cluster) > RESERVED;
        match all.place_for(claim, &claim.cluster, group_of, can_spare) {
            // Beyond the bound rather than refused.
            Err(_) if count_of(claim.cluster) < RESERVED => Ok(None),
            Err(why) => {
                // No other cluster has more than this one; a key of it may.
                let may_give_way = |slot: &ConnectionSlot| claim.may_push || !slot.may_push;
                let own = of_cluster.newest_of_largest(&claim.key, of_key, may_give_way, |_| true);
                own.map(Some).ok_or(why)
            }
            other => other,
        }
    }
}

impl SlotBound<'_> {
    /// Which of these has to give way for a claim of `group`; an error when none has to and there is no room.
    fn place_for<G: Ord>(
        &self,
        claim: &SlotClaim,
        group: &G,
        group_of: impl Fn(&ConnectionSlot) -> G,
        can_spare: impl Fn(&ConnectionSlot) -> bool,
    ) -> Result<Option<u64>, String> {
        let most = self.most;
        // Whoever only reads leaves room for those who archive.
        let readers_max = (most - most.div_ceil(8)).max(1);
        let readers = self.slots.iter().filter(|(_, slot)| !slot.may_push).count();
        if !claim.may_push && readers >= readers_max {
            let is_reader = |slot: &ConnectionSlot| !slot.may_push;
            let newest = self.newest_of_largest(group, group_of, is_reader, can_spare);
            return newest.map(Some).ok_or_else(|| {
                format!("all {readers_max} connections for peers that do not push are in use")
            });
        }
        if self.slots.len() < most {
            return Ok(None);
        }
        let newest = self.newest_of_largest(group, group_of, |_| true, &can_spare);
        // Where there is one slot alone there is none that readers could leave free.
        let only_readers = claim.may_push && self.slots.iter().all(|(_, slot)| !slot.may_push);
        let reader = (self.slots.iter()).rfind(|(_, slot)| only_readers && can_spare(slot));
        newest
            .or_else(|| reader.map(|(id, _)| *id))
            .map(Some)
            .ok_or_else(|| format!("all {most} connections are in use"))
    }

    /// Of the group that has most of these and can spare one, if that is more than this group would have with one
    /// more, the key that has most, and of its connections the newest.
    fn newest_of_largest<G: Ord>(
        &self,
        group: &G,
        group_of: impl Fn(&ConnectionSlot) -> G,
        of: impl Fn(&ConnectionSlot) -> bool,
        can_spare: impl Fn(&ConnectionSlot) -> bool,
    ) -> Option<u64> {
        let counted = || self.slots.iter().filter(|(_, slot)| of(slot));
        let mut groups: BTreeMap<G, usize> = BTreeMap::new();
        for (_, slot) in counted() {
            *groups.entry(group_of(slot)).or_default() += 1;
        }
        let own = groups.get(group).copied().unwrap_or(0);
        let sparing = counted().filter(|(_, slot)| can_spare(slot));
        let sparing = sparing.map(|(_, slot)| group_of(slot));
        let sizes = sparing.map(|group| (groups.get(&group).copied().unwrap_or(0), group));
        let (count, largest) = sizes.max()?;
        if count < own + 2 {
            return None;
        }
        let in_largest = || counted().filter(|(_, slot)| group_of(slot) == largest);
        let mut keys: BTreeMap<&PeerKey, usize> = BTreeMap::new();
        for (_, slot) in in_largest() {
            *keys.entry(&slot.key).or_default() += 1;
        }
        let (key, _) = keys.into_iter().max_by_key(|(_, count)| *count)?;
        let newest = in_largest().filter(|(_, slot)| slot.key == *key).last();
        newest.map(|(id, _)| *id)
    }
}

/// A connection slot, given back when dropped.
pub(crate) struct HeldConnection {
    connections: Arc<Connections>,
    cluster: u64,
    id: u64,
}

impl HeldConnection {
    /// Connections of all peers of the cluster; how many others have is not told.
    pub(crate) fn connections(&self) -> usize {
        let slots = self.connections.slots();
        let taken = slots.taken.values();
        taken.filter(|slot| slot.cluster == self.cluster).count()
    }

    /// What the peer may do changed.
    pub(crate) fn may_push(&self, may_push: bool) {
        let mut slots = self.connections.slots();
        if let Some(connection) = slots.taken.get_mut(&self.id) {
            connection.may_push = may_push;
        }
    }

    /// Whether the connection is part of a backup: then it has one of the backup's threads, and its
    /// slot is free for another.
    pub(crate) fn is_of_backup(&self, of_backup: bool) {
        let mut slots = self.connections.slots();
        if let Some(connection) = slots.taken.get_mut(&self.id) {
            connection.of_backup = of_backup;
        }
        drop(slots);
        if of_backup {
            self.connections.freed.notify_waiters();
        }
    }
}

impl Drop for HeldConnection {
    fn drop(&mut self) {
        self.connections.slots().taken.remove(&self.id);
        self.connections.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn gives_way(slot: &mut CancellationToken) -> bool {
        slot.is_cancelled()
    }

    /// Of a receiver with one cluster.
    fn claim(name: &str, may_push: bool, most: usize) -> SlotClaim {
        SlotClaim {
            cluster: 1,
            key: PeerKey::Named(name.to_owned()),
            may_push,
            cluster_max: most,
            all_max: most,
        }
    }

    #[test]
    fn fault_116_peers_that_only_read_leave_room_for_those_who_archive() {
        let connections = Arc::new(Connections::default());
        let connect = |name: &str, push| connections.try_connect(&claim(name, push, 64));
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
        assert!(connections.slots().taken.is_empty());
    }

    #[test]
    fn fault_116_a_reader_gives_the_only_connection_up_to_one_who_archives() {
        let connections = Arc::new(Connections::default());
        let connect = |name: &str, push| connections.try_connect(&claim(name, push, 1));
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
        let connections = Arc::new(Connections::default());
        let connect = |push| connections.try_connect(&claim("db1", push, 8));
        let held: Vec<_> = (0..7).map(|_| connect(false).unwrap()).collect();
        assert!(connect(false).is_err());
        held[0].0.may_push(true);
        let more = connect(false).unwrap();
        assert!(connect(false).is_err());
        drop((held, more));
    }

    #[test]
    fn fault_116_the_key_with_most_connections_gives_way_to_one_with_fewer() {
        let connections = Arc::new(Connections::default());
        let connect = |name: &str| connections.try_connect(&claim(name, true, 8));
        let mut stolen: Vec<_> = (0..8).map(|_| connect("stolen").unwrap()).collect();
        assert!(connect("stolen").is_err());
        let genuine: Vec<_> = (0..8).filter_map(|_| connect("db1").ok()).collect();
        assert_eq!(genuine.len(), 4);
        let lost: Vec<bool> = stolen.iter_mut().map(|(_, lost)| gives_way(lost)).collect();
        assert_eq!(lost, [[false; 4], [true; 4]].concat());
    }

    /// Of one of several clusters, each of which alone may have all.
    fn claim_of(cluster: u64, name: &str, may_push: bool, all_max: usize) -> SlotClaim {
        SlotClaim {
            cluster,
            cluster_max: 1_000,
            all_max,
            ..claim(name, may_push, 0)
        }
    }

    #[test]
    fn fault_116_the_cluster_with_most_connections_gives_way_to_another() {
        let connections = Arc::new(Connections::default());
        let connect = |cluster, name: &str| {
            (connections.try_connect(&claim_of(cluster, name, true, 16))).map_err(drop)
        };
        let mut flood: Vec<_> = (0..6).map(|_| connect(1, "db1").unwrap()).collect();
        flood.extend((0..10).map(|_| connect(1, "stolen").unwrap()));
        // Within it, as always.
        let mut own = connect(1, "db1").unwrap();
        assert!(gives_way(&mut flood[15].1));
        let others: Vec<_> = (0..20).filter_map(|_| connect(2, "db2").ok()).collect();
        assert_eq!(others.len(), 8);
        let lost: Vec<bool> = flood.iter_mut().map(|(_, lost)| gives_way(lost)).collect();
        // The newest of the key that has most of them, each time.
        assert_eq!(lost[..6], [false, false, false, false, true, true]);
        assert!(gives_way(&mut own.1));
        // Nobody has a connection too many, and the third gets its own for certain.
        let third: Vec<_> = (0..20).filter_map(|_| connect(3, "db3").ok()).collect();
        assert!(third.len() >= RESERVED);
        drop((own, flood, others, third));
        assert!(connections.slots().taken.is_empty());
    }

    #[test]
    fn a_cluster_is_told_the_number_of_its_own_connections_alone() {
        let connections = Arc::new(Connections::default());
        let connect = |cluster| connections.try_connect(&claim_of(cluster, "db", true, 16));
        let own: Vec<_> = (0..2).map(|_| connect(1).unwrap()).collect();
        let others: Vec<_> = (0..5).map(|_| connect(2).unwrap()).collect();
        own[1].0.is_of_backup(true);
        assert_eq!(own[0].0.connections(), 2);
        assert_eq!(others[0].0.connections(), 5);
        drop(others);
        assert_eq!(own[0].0.connections(), 2);
    }

    proptest! {
        #[test]
        fn fault_116_whatever_others_hold_a_cluster_gets_its_connections(
            acts in proptest::collection::vec((0_u64..4, 0_u8..3, any::<bool>(), 0_u8..4), 0..150),
            all_max in 1_usize..24,
        ) {
            let connections = Arc::new(Connections::default());
            let mut held: Vec<(u64, HeldConnection, CancellationToken)> = Vec::new();
            let count = |held: &[(u64, HeldConnection, CancellationToken)], cluster| {
                held.iter().filter(|(of, _, lost)| *of == cluster && !lost.is_cancelled()).count()
            };
            for (cluster, name, may_push, act) in acts {
                let before: Vec<usize> = (0..4).map(|of| count(&held, of)).collect();
                let own = before[usize::try_from(cluster).unwrap()];
                if act == 0 {
                    if let Some(at) = held.iter().rposition(|(of, ..)| *of == cluster) {
                        held.remove(at);
                    }
                    continue;
                }
                let claim = claim_of(cluster, &format!("db{name}"), may_push, all_max);
                match connections.try_connect(&claim) {
                    Ok((slot, lost)) => held.push((cluster, slot, lost)),
                    Err(why) => prop_assert!(own >= RESERVED, "{why} with {own}"),
                }
                for (other, before) in (0..4).zip(before) {
                    let after = count(&held, other);
                    prop_assert!(after >= before || other == cluster || after >= RESERVED);
                }
                let all: usize = (0..4).map(|of| count(&held, of)).sum();
                prop_assert!(all <= all_max + 4 * RESERVED);
            }
        }
    }

    #[test]
    fn fault_118_the_connections_of_a_backup_take_no_slot_from_others() {
        let connections = Arc::new(Connections::default());
        let connect = || connections.try_connect(&claim("db1", true, 4));
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
        let connections = Arc::new(Connections::default());
        let held = connections.connect(&claim("db1", true, 1)).await.unwrap();
        let waiting = Arc::clone(&connections);
        let late =
            tokio::spawn(async move { waiting.connect(&claim("db1", true, 1)).await.map(drop) });
        tokio::time::sleep(CONNECTION_PATIENCE / 2).await;
        drop(held);
        assert_eq!(late.await.unwrap(), Ok(()));
        let _held = connections.connect(&claim("db1", true, 1)).await.unwrap();
        let refused = connections.connect(&claim("db1", true, 1)).await.map(drop);
        assert_eq!(refused, Err("all 1 connections are in use".to_owned()));
    }
}
