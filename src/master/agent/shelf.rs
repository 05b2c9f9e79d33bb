//! What was shipped and not asked for yet, what is under way, and what comes next.
//! Never does IO. Invariant: a file is under way once at most, no more wait to be asked for than the settings say but for
//! those whose records are shipped, and an answer is a receiver's proof for a file with this very stamp.

use std::collections::{BTreeMap, VecDeque};

use tokio::sync::watch;
use walmgr_protocol::names::WalFileName;

use super::words::ProvenFile;
use crate::files::ChangeStamp;

/// Names that are read at once of a backlog: after so many the folder is read again.
pub(super) const WAITING_MAX: usize = 64;

/// Segments that were shipped record by record and are finished before anybody asks, and those of them that wait for
/// it: a backlog of 16 GiB, in a hundred bytes each.
const CLOSED_MAX: usize = 1_024;

/// Answers that are kept for whoever asks again, because it was killed before it could pass one on.
const ANSWERED_MAX: usize = 4;

/// The work and its results.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    /// Most files that are shipped, or on their way, before anybody asks.
    batch: usize,
    /// What the server has just closed, which comes before all others.
    closed: VecDeque<WalFileName>,
    /// What comes next, in this order.
    waiting: VecDeque<WalFileName>,
    under_way: BTreeMap<WalFileName, ShelfWork>,
    /// In the order in which they came.
    proofs: VecDeque<Proof>,
    /// What somebody else has shipped, whatever its mark still says.
    shipped_elsewhere: Option<WalFileName>,
}

/// What a file is shipped for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ShippedFor {
    /// Somebody who asks.
    Asker,
    /// Whoever will ask: it is ready.
    Ready,
    /// The server has closed the file. Its records are shipped already, so finishing it costs next to nothing.
    Closed,
}

#[derive(Debug)]
struct ShelfWork {
    /// Ends when the work does.
    done: watch::Receiver<()>,
    shipped_for: ShippedFor,
}

impl ShelfWork {
    /// Whoever was at it is gone without a word.
    fn is_lost(&self) -> bool {
        self.done.has_changed().is_err()
    }
}

#[derive(Debug)]
struct Proof {
    /// The name in `pg_wal`, which may differ from that in the archive.
    name: WalFileName,
    stored: ProvenFile,
    shipped_for: ShippedFor,
}

/// How a file stands that is asked for.
pub(super) enum AskedStanding {
    /// It is stored.
    Stored(ProvenFile),
    /// Somebody is at it; this ends when they are done.
    UnderWay(watch::Receiver<()>),
    /// It is the caller's, from now until this is dropped.
    Yours(watch::Sender<()>),
}

impl Shelf {
    /// Keeps so many that nobody has asked for.
    pub(super) fn new(batch: usize) -> Shelf {
        Shelf {
            batch,
            ..Shelf::default()
        }
    }

    /// A file is asked for.
    pub(super) fn asked(&mut self, name: WalFileName, stamp: &ChangeStamp) -> AskedStanding {
        let mut proofs = self.proofs.iter_mut();
        let proof = proofs.find(|proof| proof.name == name && proof.stored.stamp == *stamp);
        if let Some(proof) = proof {
            proof.shipped_for = ShippedFor::Asker;
            let stored = proof.stored;
            self.keep_at_most(ShippedFor::Asker, ANSWERED_MAX);
            return AskedStanding::Stored(stored);
        }
        if let Some(under_way) = (self.under_way.get_mut(&name)).filter(|found| !found.is_lost()) {
            under_way.shipped_for = ShippedFor::Asker;
            return AskedStanding::UnderWay(under_way.done.clone());
        }
        self.closed.retain(|waiting| *waiting != name);
        self.waiting.retain(|waiting| *waiting != name);
        AskedStanding::Yours(self.begin(name, ShippedFor::Asker))
    }

    /// The next file that nobody has asked for, if there is room for one. Without an archiver that asks only what is closed.
    pub(super) fn next(&mut self, archiver_asks: bool) -> Option<(WalFileName, watch::Sender<()>)> {
        let name = self.first(archiver_asks)?;
        let shipped_for = match self.is_closed(name) {
            true => ShippedFor::Closed,
            false => ShippedFor::Ready,
        };
        self.closed.retain(|waiting| *waiting != name);
        self.waiting.retain(|waiting| *waiting != name);
        Some((name, self.begin(name, shipped_for)))
    }

    /// The one that [`Shelf::next`] would give.
    pub(super) fn first(&self, archiver_asks: bool) -> Option<WalFileName> {
        let ready = || {
            let first = self.waiting.front();
            first.filter(|_| archiver_asks && self.has_room())
        };
        self.closed.front().or_else(ready).copied()
    }

    /// Whether the server has just closed it, and will not write to it any more.
    pub(super) fn is_closed(&self, name: WalFileName) -> bool {
        self.closed.contains(&name)
    }

    /// Whether there is nothing left to begin with.
    pub(super) fn is_out_of_work(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether a file is under way.
    pub(super) fn is_at_work(&self) -> bool {
        self.under_way.values().any(|work| !work.is_lost())
    }

    /// How many wait to be begun.
    pub(super) fn waiting(&self) -> usize {
        self.closed.len() + self.waiting.len()
    }

    /// The work at a file is over, with a proof or without.
    pub(super) fn done(&mut self, name: WalFileName, stored: Option<ProvenFile>) {
        let under_way = self.under_way.remove(&name);
        let Some(stored) = stored else { return };
        self.proofs.retain(|proof| proof.name != name);
        self.proofs.push_back(Proof {
            name,
            stored,
            shipped_for: under_way.map_or(ShippedFor::Ready, |under_way| under_way.shipped_for),
        });
        self.keep_at_most(ShippedFor::Asker, ANSWERED_MAX);
        self.keep_at_most(ShippedFor::Closed, CLOSED_MAX);
    }

    /// The work at a file came to nothing for now; it is the next one again.
    pub(super) fn put_back(&mut self, name: WalFileName) {
        let under_way = self.under_way.remove(&name);
        match under_way.map_or(ShippedFor::Ready, |under_way| under_way.shipped_for) {
            ShippedFor::Asker => {}
            ShippedFor::Ready => self.waiting.push_front(name),
            ShippedFor::Closed => self.closed.push_front(name),
        }
    }

    /// These are what comes next, but for those that are seen to.
    pub(super) fn replace(&mut self, names: impl IntoIterator<Item = WalFileName>) {
        let is_fresh = |name: &WalFileName| {
            !self.knows(*name)
                && !self.closed.contains(name)
                && self.shipped_elsewhere != Some(*name)
        };
        let fresh = names.into_iter().filter(is_fresh);
        self.waiting = fresh.take(WAITING_MAX).collect();
    }

    /// Somebody else has shipped this one.
    pub(super) fn leave_out(&mut self, name: WalFileName) {
        self.shipped_elsewhere = Some(name);
    }

    /// The server has closed this one.
    pub(super) fn close(&mut self, name: WalFileName) {
        if !self.knows(name) && !self.closed.contains(&name) {
            self.closed.push_back(name);
            // It is pushed when it is asked for.
            if self.closed.len() > CLOSED_MAX {
                self.closed.pop_front();
            }
        }
    }

    /// Of what there is a proof that nobody has asked for yet.
    pub(super) fn proven(&self) -> Vec<WalFileName> {
        let unasked = |proof: &&Proof| proof.shipped_for != ShippedFor::Asker;
        let unasked = self.proofs.iter().filter(unasked);
        unasked.map(|proof| proof.name).collect()
    }

    /// Forgets what nobody will ask for: of what `is_wanted` says that it is not.
    pub(super) fn forget(&mut self, is_wanted: impl Fn(WalFileName) -> bool) {
        let is_asked = |proof: &Proof| proof.shipped_for == ShippedFor::Asker;
        (self.proofs).retain(|proof| is_asked(proof) || is_wanted(proof.name));
    }

    /// The receiver says that it lacks these, whatever it acknowledged: its archive is another one, or an older copy.
    pub(super) fn disprove(&mut self, lacks: impl Fn(WalFileName) -> bool) {
        self.proofs.retain(|proof| !lacks(proof.name));
    }

    fn begin(&mut self, name: WalFileName, shipped_for: ShippedFor) -> watch::Sender<()> {
        let (sender, done) = watch::channel(());
        self.under_way.insert(name, ShelfWork { done, shipped_for });
        sender
    }

    fn knows(&self, name: WalFileName) -> bool {
        self.under_way.contains_key(&name) || self.proofs.iter().any(|proof| proof.name == name)
    }

    fn has_room(&self) -> bool {
        let under_way = self.under_way.values().map(|work| work.shipped_for);
        let shipped = self.proofs.iter().map(|proof| proof.shipped_for);
        let ahead = under_way.chain(shipped);
        ahead.filter(|why| *why == ShippedFor::Ready).count() < self.batch
    }

    /// Forgets the oldest proofs that there are too many of.
    fn keep_at_most(&mut self, shipped_for: ShippedFor, most: usize) {
        let counts = |proof: &Proof| proof.shipped_for == shipped_for;
        let count = self.proofs.iter().filter(|proof| counts(proof)).count();
        let mut surplus = count.saturating_sub(most);
        self.proofs.retain(|proof| {
            let goes = counts(proof) && surplus > 0;
            surplus -= usize::from(goes);
            !goes
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::FileId;

    fn name(number: u32) -> WalFileName {
        format!("0000000100000000{number:08X}").parse().unwrap()
    }

    fn stamp(size: u64) -> ChangeStamp {
        ChangeStamp {
            id: FileId {
                device: 1,
                inode: 2,
            },
            size,
            modified: (3, 4),
            changed: (5, 6),
        }
    }

    fn stored(number: u32, size: u64) -> ProvenFile {
        ProvenFile {
            name: name(number),
            stamp: stamp(size),
            crc32: number,
        }
    }

    fn is_stored(shelf: &mut Shelf, number: u32, size: u64) -> bool {
        matches!(
            shelf.asked(name(number), &stamp(size)),
            AskedStanding::Stored(_)
        )
    }

    #[test]
    fn no_more_are_shipped_than_the_settings_say_until_somebody_asks() {
        let mut shelf = Shelf::new(2);
        shelf.replace((1..=5).map(name));
        let mut begun = Vec::new();
        while let Some((name, ticket)) = shelf.next(true) {
            begun.push((name, ticket));
        }
        assert_eq!(
            begun.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
            [name(1), name(2)]
        );
        shelf.done(name(1), Some(stored(1, 7)));
        shelf.done(name(2), Some(stored(2, 7)));
        assert!(shelf.next(true).is_none());
        assert!(is_stored(&mut shelf, 1, 7));
        // Whoever was killed with the answer asks again.
        assert!(is_stored(&mut shelf, 1, 7));
        assert_eq!(shelf.next(true).map(|(name, _)| name), Some(name(3)));
        shelf.put_back(name(3));
        assert_eq!(shelf.next(true).map(|(name, _)| name), Some(name(3)));
        // The folder is read again: what is seen to is not begun twice.
        shelf.replace((1..=4).map(name));
        assert_eq!(shelf.waiting(), 1);
        // One that PostgreSQL does not want any more makes room.
        shelf.done(name(3), None);
        shelf.forget(|_| false);
        assert_eq!(shelf.next(true).map(|(name, _)| name), Some(name(4)));
    }

    #[test]
    fn what_somebody_else_has_shipped_is_left_out_until_it_is_asked_for() {
        let mut shelf = Shelf::new(2);
        shelf.leave_out(name(1));
        shelf.replace((1..=3).map(name));
        assert_eq!(shelf.next(true).map(|(name, _)| name), Some(name(2)));
        let asked = shelf.asked(name(1), &stamp(7));
        assert!(matches!(asked, AskedStanding::Yours(_)));
    }

    #[test]
    fn fault_255_a_file_that_changed_since_is_pushed_anew() {
        let mut shelf = Shelf::new(8);
        shelf.done(name(1), Some(stored(1, 7)));
        let asked = shelf.asked(name(1), &stamp(8));
        assert!(
            matches!(asked, AskedStanding::Yours(_)),
            "the old proof is no answer"
        );
        shelf.done(name(1), Some(stored(1, 8)));
        assert!(is_stored(&mut shelf, 1, 8));
        assert!(!is_stored(&mut shelf, 1, 7));
    }

    #[test]
    fn what_is_asked_for_is_not_begun_a_second_time_and_is_waited_for() {
        let mut shelf = Shelf::new(1);
        shelf.replace([name(1), name(2)]);
        let AskedStanding::Yours(ticket) = shelf.asked(name(2), &stamp(7)) else {
            panic!("nobody has begun it");
        };
        // It takes no room from the others.
        assert_eq!(shelf.next(true).map(|(name, _)| name), Some(name(1)));
        let AskedStanding::UnderWay(done) = shelf.asked(name(2), &stamp(7)) else {
            panic!("it was begun");
        };
        assert!(done.has_changed().is_ok());
        // One that failed while somebody waited is theirs to begin.
        shelf.put_back(name(2));
        drop(ticket);
        assert!(done.has_changed().is_err());
        assert_eq!(shelf.waiting(), 0);
        assert!(matches!(
            shelf.asked(name(2), &stamp(7)),
            AskedStanding::Yours(_)
        ));
    }

    #[test]
    fn what_is_closed_needs_no_room_and_no_archiver_that_asks() {
        let mut shelf = Shelf::new(1);
        shelf.replace([name(1)]);
        shelf.done(name(2), Some(stored(2, 7)));
        assert_eq!(shelf.first(true), None, "there is no room");
        for number in 3..=9 {
            shelf.close(name(number));
        }
        for number in 3..=9 {
            let next = shelf.next(false).map(|(name, _)| name);
            assert_eq!(next, Some(name(number)));
            // The receiver was away once.
            shelf.put_back(name(number));
            let next = shelf.next(false).map(|(name, _)| name);
            assert_eq!(next, Some(name(number)));
            shelf.done(name(number), Some(stored(number, 7)));
        }
        assert_eq!(shelf.first(false), None);
        // One that is asked for is the caller's, closed or not.
        shelf.close(name(10));
        assert!(matches!(
            shelf.asked(name(10), &stamp(7)),
            AskedStanding::Yours(_)
        ));
        assert_eq!(shelf.first(false), None);
        for number in 3..=9 {
            assert!(is_stored(&mut shelf, number, 7), "{number}");
        }
    }

    #[test]
    fn of_what_is_closed_no_more_is_known_than_the_bound() {
        let mut shelf = Shelf::new(1);
        let last = 2 * u32::try_from(CLOSED_MAX).unwrap();
        for number in 1..=last {
            shelf.close(name(number));
        }
        assert_eq!(shelf.waiting(), CLOSED_MAX);
        for number in 1..=last {
            shelf.close(name(number));
            let (name, _) = shelf.next(false).unwrap();
            shelf.done(name, Some(stored(number, 7)));
        }
        assert_eq!(shelf.proofs.len(), CLOSED_MAX);
    }

    #[test]
    fn a_segment_that_was_just_closed_comes_first_and_once() {
        let mut shelf = Shelf::new(8);
        shelf.replace([name(1), name(2)]);
        shelf.close(name(9));
        shelf.close(name(9));
        shelf.replace([name(1), name(2), name(9)]);
        let mut begun = Vec::new();
        while let Some(next) = shelf.next(true) {
            begun.push(next);
        }
        let names: Vec<WalFileName> = begun.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, [name(9), name(1), name(2)]);
        // Work that panicked is nobody's.
        drop(begun);
        assert!(matches!(
            shelf.asked(name(9), &stamp(7)),
            AskedStanding::Yours(_)
        ));
    }

    #[test]
    fn answers_are_kept_for_few() {
        let mut shelf = Shelf::new(8);
        for number in 1..=100 {
            let _ = shelf.asked(name(number), &stamp(7));
            shelf.done(name(number), Some(stored(number, 7)));
        }
        assert_eq!(shelf.proofs.len(), ANSWERED_MAX);
        assert!(is_stored(&mut shelf, 100, 7));
    }

    #[test]
    fn what_the_receiver_lacks_is_proven_no_more_and_finished_again() {
        let mut shelf = Shelf::new(8);
        for number in 1..=3 {
            shelf.close(name(number));
            let (begun, _done) = shelf.next(false).unwrap();
            shelf.done(begun, Some(stored(number, 9)));
        }
        assert!(is_stored(&mut shelf, 3, 9));
        shelf.disprove(|lacked| lacked >= name(2));
        assert!(is_stored(&mut shelf, 1, 9));
        shelf.close(name(2));
        assert_eq!(shelf.first(false), Some(name(2)));
        assert!(!is_stored(&mut shelf, 3, 9));
    }
}
