//! Rounds through backup sets: what they find, what they forget, and what does not disturb them.
//! Never needs a server: the sets are small and made up. Invariant tested: a flipped bit in any file of a set
//! is in the list after a round, and nothing else is.

use std::fs;
use std::path::Path;

use walmgr_protocol::names::BackupName;

use super::testing::{back_up, keep, lease, prepare, real_sets, sample_files, wal_proof};
use super::{BackupSets, Condition, SetsRound};
use crate::store::testing::scratch_folder;

fn two_sets(folder: &Path) -> BackupSets {
    prepare(folder);
    let sets = real_sets(folder);
    let wal = wal_proof(folder);
    let lease = lease(&sets).unwrap();
    for version in [1, 2] {
        back_up(&sets, &lease, version, &wal).unwrap();
    }
    sets
}

/// Through all sets once; how many bytes were read.
fn round(rounds: &mut SetsRound) -> u64 {
    std::iter::from_fn(|| rounds.step().unwrap()).sum()
}

fn damaged(sets: &BackupSets) -> Vec<(String, String)> {
    let listed = sets.list().unwrap().into_iter();
    listed
        .filter_map(|set| match set.condition {
            Condition::Good => None,
            Condition::DamagedFile(why) => Some((set.name.to_string(), why)),
            other => panic!("{other:?}"),
        })
        .collect()
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(path, bytes).unwrap();
}

#[test]
fn fault_107_a_round_finds_flips_in_a_set_and_forgets_mended_ones() {
    let folder = scratch_folder();
    let sets = two_sets(folder.path());
    let mut rounds = SetsRound::of(sets.clone());
    let all: u64 = (sample_files(1).values()).map(|it| it.len() as u64).sum();
    // The labels too.
    assert!(round(&mut rounds) > 2 * all);
    assert_eq!(damaged(&sets), []);
    let names = sample_files(1).into_keys();
    for name in names.filter(|name| name.starts_with("base/1/1") || name.starts_with("tmpspc")) {
        let path = folder.path().join("data.master.0").join(&name);
        let good = fs::read(&path).unwrap();
        flip(&path);
        assert_eq!(damaged(&sets), [], "nobody has read it");
        round(&mut rounds);
        let why = format!("its {name}: its CRC-32C is not the manifest's: expected ");
        let told = damaged(&sets);
        assert!(told[0].1.starts_with(&why), "{told:?}");
        assert_eq!((told.len(), &*told[0].0), (1, "data.master.0"));
        // The next process knows too.
        assert_eq!(damaged(&real_sets(folder.path())), told);
        // Whatever takes its place has no note.
        fs::remove_file(&path).unwrap();
        fs::write(&path, &good).unwrap();
        assert_eq!(damaged(&sets), []);
        flip(&path);
        round(&mut rounds);
        assert_eq!(damaged(&sets).len(), 1);
        fs::write(&path, &good).unwrap();
        round(&mut rounds);
        assert_eq!(damaged(&sets), []);
    }
    let gone = folder.path().join("data.master/base/1/empty");
    fs::remove_file(&gone).unwrap();
    round(&mut rounds);
    assert_eq!(damaged(&sets)[0].1, "its base/1/empty: it is gone");
    fs::write(&gone, "").unwrap();
    assert_eq!(damaged(&sets), []);
}

#[test]
fn fault_107_a_damaged_set_keeps_its_note_and_blocks_no_purge() {
    let folder = scratch_folder();
    let sets = two_sets(folder.path());
    flip(&folder.path().join("data.master/base/1/1259"));
    round(&mut SetsRound::of(sets.clone()));
    assert_eq!(damaged(&sets)[0].0, "data.master");
    let wal = wal_proof(folder.path());
    let lease = lease(&sets).unwrap();
    back_up(&sets, &lease, 3, &wal).unwrap();
    assert_eq!(damaged(&sets)[0].0, "data.master.0");
    // It counts for nothing, so no good one goes for it.
    let expiry = sets.expire(&lease, keep(2), &mut |_| Ok(())).unwrap();
    assert!(expiry.removed.is_empty(), "{expiry:?}");
    let purged = sets.purge_wal(&lease, keep(0), None, &|_| Ok(Vec::new()));
    let oldest = purged.unwrap().oldest_needed.unwrap();
    assert_eq!(oldest.to_string(), "000000010000000000000003");
}

#[test]
fn a_round_through_sets_goes_on_where_it_was_cut_and_holds_no_set() {
    let folder = scratch_folder();
    let sets = two_sets(folder.path());
    let whole = round(&mut SetsRound::of(sets.clone()));
    let mut rounds = SetsRound::of(sets.clone());
    assert!(!rounds.is_under_way());
    rounds.step().unwrap();
    let cut = SetsRound::of(sets.clone());
    assert!(cut.is_under_way());
    // The first set is taken away amid the round, and changed there.
    let name = BackupName::newest("data.master").unwrap();
    let taken = sets.take(&name).unwrap();
    let moved = folder.path().join("moved");
    assert!(taken.move_to(&moved).unwrap().is_none());
    flip(&moved.join("base/1/1259"));
    round(&mut rounds);
    assert_eq!(damaged(&sets), []);
    assert_eq!(rounds.note().damaged.len(), 0);
    sets.put_back(&moved, &name).unwrap();
    flip(&folder.path().join("data.master/base/1/1259"));
    // A round that was in the second set reads that one only.
    let mut rounds = SetsRound::of(sets.clone());
    rounds.step().unwrap();
    let first = rounds.note().at;
    while rounds.note().at == first {
        rounds.step().unwrap();
    }
    let second = round(&mut SetsRound::of(sets.clone()));
    assert!(second > 0 && second < whole, "{second} of {whole}");
}
