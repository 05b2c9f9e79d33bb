//! The slots of connections whose peers are known, and who gives way when there is none left.
//! Never knows a stranger. Invariant: a peer that has more connections than another cannot keep that one out, and
//! whoever only reads leaves room for those who archive.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::receiver::CONNECTION_PATIENCE;
use crate::receiver::peer::PeerKey;

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
    key: PeerKey,
    may_push: bool,
    /// Whether it is part of a backup, which has threads of its own.
    of_backup: bool,
    /// Ends the connection when this is dropped.
    _gives_way: DropGuard,
}

impl Connections {
    /// Takes a connection slot, of `most` that there are, and waits for a moment while there is
    /// none. What is returned second ends when the connection has to give way.
    pub(crate) async fn connect(
        self: &Arc<Self>,
        key: &PeerKey,
        may_push: bool,
        most: usize,
    ) -> Result<(HeldConnection, CancellationToken), String> {
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
    ) -> Result<(HeldConnection, CancellationToken), String> {
        let mut slots = self.slots();
        let gives_way = slots.place_for(key, may_push, most)?;
        if let Some(id) = gives_way {
            slots.taken.remove(&id);
        }
        let lost = CancellationToken::new();
        slots.begun += 1;
        let id = slots.begun;
        let connection = ConnectionSlot {
            key: key.clone(),
            may_push,
            of_backup: false,
            _gives_way: lost.clone().drop_guard(),
        };
        slots.taken.insert(id, connection);
        drop(slots);
        let connections = Arc::clone(self);
        Ok((HeldConnection { connections, id }, lost))
    }

    /// Connections open.
    pub(crate) fn count(&self) -> usize {
        self.slots().taken.len()
    }

    fn slots(&self) -> MutexGuard<'_, ConnectionSlots> {
        // Nothing between two changes that belong together can panic.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConnectionSlots {
    /// Which connection has to give way for another one of this key: `None` if none has to.
    fn place_for(&self, key: &PeerKey, may_push: bool, most: usize) -> Result<Option<u64>, String> {
        let counted = || self.taken.iter().filter(|(_, one)| !one.of_backup);
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
        let counted = || (self.taken.iter()).filter(|(_, one)| !one.of_backup && of(one));
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

/// A connection slot, given back when dropped.
pub(crate) struct HeldConnection {
    connections: Arc<Connections>,
    id: u64,
}

impl HeldConnection {
    /// Connections of all peers.
    pub(crate) fn connections(&self) -> usize {
        self.connections.count()
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
    use super::*;

    fn gives_way(slot: &mut CancellationToken) -> bool {
        slot.is_cancelled()
    }

    fn named(name: &str) -> PeerKey {
        PeerKey::Named(name.to_owned())
    }

    #[test]
    fn fault_116_peers_that_only_read_leave_room_for_those_who_archive() {
        let connections = Arc::new(Connections::default());
        let connect = |name: &str, push| connections.try_connect(&named(name), push, 64);
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
        assert_eq!(connections.count(), 0);
    }

    #[test]
    fn fault_116_a_reader_gives_the_only_connection_up_to_one_who_archives() {
        let connections = Arc::new(Connections::default());
        let connect = |name: &str, push| connections.try_connect(&named(name), push, 1);
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
        let connect = |push| connections.try_connect(&named("db1"), push, 8);
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
        let connect = |name: &str| connections.try_connect(&named(name), true, 8);
        let mut stolen: Vec<_> = (0..8).map(|_| connect("stolen").unwrap()).collect();
        assert!(connect("stolen").is_err());
        let genuine: Vec<_> = (0..8).filter_map(|_| connect("db1").ok()).collect();
        assert_eq!(genuine.len(), 4);
        let lost: Vec<bool> = stolen.iter_mut().map(|(_, lost)| gives_way(lost)).collect();
        assert_eq!(lost, [[false; 4], [true; 4]].concat());
    }

    #[test]
    fn fault_118_the_connections_of_a_backup_take_no_slot_from_others() {
        let connections = Arc::new(Connections::default());
        let connect = || connections.try_connect(&named("db1"), true, 4);
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
        let held = connections.connect(&named("db1"), true, 1).await.unwrap();
        let waiting = Arc::clone(&connections);
        let late =
            tokio::spawn(async move { waiting.connect(&named("db1"), true, 1).await.map(drop) });
        tokio::time::sleep(CONNECTION_PATIENCE / 2).await;
        drop(held);
        assert_eq!(late.await.unwrap(), Ok(()));
        let _held = connections.connect(&named("db1"), true, 1).await.unwrap();
        let refused = connections.connect(&named("db1"), true, 1).await.map(drop);
        assert_eq!(refused, Err("all 1 connections are in use".to_owned()));
    }
}
