//! Ends of partial segments against flips, torn tails and masters that write their WAL anew.
//! Never talks to a server. Invariant tested: nothing that was acknowledged is cleared, truncated or
//! replaced without a copy, and no end before it is believed.

use super::*;
use crate::store::damage::{Damage, KnownBy};
use crate::store::partial::acknowledged::write_under_another_boot;
use crate::store::testing::real;
use crate::store::{PartialEnd, PartialWals};

const BODIES: [usize; 6] = [100, 9_000, 300, 400, 12_000, 50];

struct Shipped {
    _folder: tempfile::TempDir,
    places: ArchiveFolders,
    wal: Wal,
}

impl Shipped {
    /// All records but the last are acknowledged.
    fn new() -> Shipped {
        let folder = scratch_folder();
        let places = new_archive(folder.path());
        let wal = Wal::of(&BODIES, 7);
        let archive = open(&places);
        let mut stream = begin(&archive);
        open_with(&mut stream, &wal.bytes).unwrap();
        append(&mut stream, &wal, 0, wal.ends[0]).unwrap();
        append(&mut stream, &wal, wal.ends[0], wal.ends[4]).unwrap();
        Shipped {
            _folder: folder,
            places,
            wal,
        }
    }

    fn path(&self, suffix: &str) -> std::path::PathBuf {
        self.places
            .partial_wals
            .join(format!("{}{suffix}", name(3)))
    }

    /// Changes a byte of the second record, which ends behind the first page.
    fn flip(&self) -> Vec<u8> {
        let mut bytes = on_disk(&self.places);
        bytes[700] ^= 8;
        std::fs::write(self.path(""), &bytes).unwrap();
        bytes
    }

    fn end(&self) -> Option<PartialEnd> {
        let partials = PartialWals::open(&self.places.partial_wals, real()).unwrap();
        partials.ends().unwrap().pop()
    }
}

#[test]
fn fault_101_damage_is_told_from_an_end_and_heals_from_the_master() {
    for noted in [true, false] {
        let shipped = Shipped::new();
        let (places, wal) = (&shipped.places, &shipped.wal);
        assert_eq!(shipped.end().unwrap().damage, None);
        if !noted {
            std::fs::remove_file(shipped.path(".acknowledged")).unwrap();
        }
        let flipped = shipped.flip();
        let known = match noted {
            true => KnownBy::Acknowledged(Lsn(3 * SIZE + wal.ends[4])),
            false => KnownBy::Behind(Lsn(3 * SIZE + wal.ends[2])),
        };
        let damage = Damage {
            segment: name(3),
            end: Lsn(3 * SIZE + wal.ends[0]),
            known,
        };
        assert_eq!(shipped.end().unwrap().damage, Some(damage));
        let partials = PartialWals::open(&places.partial_wals, real()).unwrap();
        let freeze =
            |force| partials.freeze(timeline(1), "41 1700", force, |_| Ok(true), &|_| Ok(None));
        let refused = freeze(false).unwrap_err();
        assert!(matches!(refused, StoreError::PartialDamaged(found) if found == damage));
        let frozen = freeze(true).unwrap().segments.unwrap();
        assert_eq!(frozen[0].end, damage.end);
        partials.thaw().unwrap();

        let archive = open(places);
        assert_eq!(archive.recovery().damaged_partials, [damage]);
        let mut stream = begin(&archive);
        // A master that has less cannot heal it, and nothing is cleared for it.
        let less = &wal.bytes[..usize::try_from(wal.ends[1]).unwrap()];
        let refused = open_with(&mut stream, less).unwrap_err();
        assert!(
            matches!(refused, StoreError::PartialDamaged(_)),
            "{refused}"
        );
        let at = open_with(&mut stream, &wal.bytes).unwrap();
        assert_eq!(at.held_bytes, wal.ends[0]);
        assert!(on_disk(places) == flipped, "not before the master sends it");
        append(&mut stream, wal, wal.ends[0], wal.ends[1]).unwrap();
        assert!(std::fs::read(shipped.path(".damaged")).unwrap() == flipped);
        // What is not there again yet is still missed, by those who can know.
        assert_eq!(shipped.end().unwrap().damage.is_some(), noted);
        append(&mut stream, wal, wal.ends[1], wal.ends[5]).unwrap();
        assert_holds(places, wal, wal.ends[5]);
        assert_eq!(shipped.end().unwrap().damage, None);
        drop((stream, archive));
        assert_eq!(open(places).recovery().damaged_partials, []);
    }
}

#[test]
fn fault_101_a_torn_tail_is_an_end_where_the_acknowledged_end_is_exact() {
    for powered in [true, false] {
        let shipped = Shipped::new();
        let (places, wal) = (&shipped.places, &shipped.wal);
        let mut longer = Wal::of(&[&BODIES[..], &[9_000, 60, 60]].concat(), 7);
        longer.bytes.resize(usize::try_from(SIZE).unwrap(), 0);
        // Appended and never synced: the first of its pages did not reach the disk.
        let mut torn = longer.bytes.clone();
        let end = usize::try_from(wal.ends[4]).unwrap();
        torn[end..end.next_multiple_of(8_192)].fill(0);
        std::fs::write(shipped.path(""), &torn).unwrap();
        if !powered {
            write_under_another_boot(&places.partial_wals);
        }
        let found = shipped.end().unwrap();
        assert_eq!(found.end, Lsn(3 * SIZE + wal.ends[4]));
        assert_eq!(found.damage.is_none(), powered);
        let archive = open(places);
        let mut stream = begin(&archive);
        let at = open_with(&mut stream, &longer.bytes).unwrap();
        assert_eq!(at.held_bytes, wal.ends[4]);
        append(&mut stream, wal, wal.ends[4], wal.ends[5]).unwrap();
        assert_holds(places, wal, wal.ends[5]);
        assert_eq!(shipped.path(".damaged").exists(), !powered);
    }
}

#[test]
fn fault_101_a_partial_segment_that_is_gone_or_short_is_missed() {
    for gone in [true, false] {
        let shipped = Shipped::new();
        if gone {
            std::fs::remove_file(shipped.path("")).unwrap();
        } else {
            std::fs::write(shipped.path(""), "").unwrap();
        }
        let archive = open(&shipped.places);
        let damage = Damage {
            segment: name(3),
            end: Lsn(3 * SIZE),
            known: KnownBy::Acknowledged(Lsn(3 * SIZE + shipped.wal.ends[4])),
        };
        assert_eq!(archive.recovery().damaged_partials, [damage]);
        assert_stored(&archive, &Wal::finished(&BODIES, 7));
        archive
            .settle_partial(WalFileName::Segment(name(3)))
            .unwrap();
        drop(archive);
        assert_eq!(open(&shipped.places).recovery().damaged_partials, []);
        assert!(!shipped.path(".acknowledged").exists());
    }
}

#[test]
fn fault_114_acknowledged_records_that_are_replaced_are_kept_first() {
    let shipped = Shipped::new();
    let (places, old) = (&shipped.places, on_disk(&shipped.places));
    let anew = Wal::of(&[100, 9_000, 350, 20_000], 7);
    let archive = open(places);
    let mut stream = begin(&archive);
    open_with(&mut stream, &anew.bytes).unwrap();
    stream.rewrite().unwrap();
    // Not even a whole record of its own: nothing is proven, and nothing is dropped.
    let within = anew.ends[1] + 40;
    let proven = append(&mut stream, &anew, 0, within).unwrap();
    assert_eq!(proven, Lsn(3 * SIZE + anew.ends[1]));
    assert!(on_disk(places) == old && !shipped.path(".differs").exists());
    append(&mut stream, &anew, within, anew.ends[2]).unwrap();
    assert_holds(places, &anew, anew.ends[2]);
    assert!(std::fs::read(shipped.path(".differs")).unwrap() == old);
    // From here on the new records are what was acknowledged.
    assert_eq!(shipped.end().unwrap().damage, None);
    append(&mut stream, &anew, anew.ends[2], anew.ends[3]).unwrap();
    assert_holds(places, &anew, anew.ends[3]);
    let whole = Wal::finished(&[100, 9_000, 350, 20_000], 7);
    assert!(matches!(
        finish(&archive, &whole),
        Ok(FileSealed::Stored(_))
    ));
}

#[test]
fn fault_114_records_that_share_none_with_those_held_replace_nothing() {
    let shipped = Shipped::new();
    let old = on_disk(&shipped.places);
    let other = Wal::of(&[150, 200], 9);
    let archive = open(&shipped.places);
    let mut stream = begin(&archive);
    open_with(&mut stream, &other.bytes).unwrap();
    stream.rewrite().unwrap();
    let refused = append(&mut stream, &other, 0, other.ends[1]).unwrap_err();
    assert!(matches!(refused, StoreError::Diverged { .. }), "{refused}");
    assert!(on_disk(&shipped.places) == old);
    drop((stream, archive));
    assert_eq!(open(&shipped.places).recovery().damaged_partials, []);
    assert!(on_disk(&shipped.places) == old);
}

#[test]
fn fault_114_a_key_cannot_fill_the_disk_with_what_it_replaces() {
    let shipped = Shipped::new();
    let archive = open(&shipped.places);
    let mut stream = begin(&archive);
    let mut kept = 0;
    let refused = loop {
        let anew = Wal::of(&[100, 200 + 8 * kept, 300], 7);
        open_with(&mut stream, &anew.bytes).unwrap();
        stream.rewrite().unwrap();
        match append(&mut stream, &anew, 0, anew.ends[2]) {
            Ok(_) => kept += 1,
            Err(error) => break error,
        }
        assert!(kept < 100);
    };
    assert!(matches!(refused, StoreError::Diverged { .. }), "{refused}");
    assert_eq!(kept, 16);
    assert_eq!(shipped.end().unwrap().damage, None);
}
