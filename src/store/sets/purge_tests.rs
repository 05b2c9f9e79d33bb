//! Purges of WAL, the locks, and everything at once.
//! Never sleeps to get an order. Invariant tested: no listed set ever lacks a segment that a
//! recovery from it could ask for, and no reader sees half a set.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use walmgr_protocol::names::{SegmentName, TimelineId, WalSegmentSize};

use super::testing::{back_up, keep, lease, prepare, real_sets, wal_proof, whole_version};
use super::{Keeping, SetError};
use crate::store::testing::{names, places, scratch_folder};

const SIZE: WalSegmentSize = WalSegmentSize::new(1 << 20).expect("a size PostgreSQL has");

pub(super) fn segment_name(timeline: u32, number: u64) -> SegmentName {
    SegmentName::from_number(TimelineId::new(timeline).unwrap(), number, SIZE)
}

/// A set of which only the label matters.
pub(super) fn plant_set(root: &Path, name: &str, timeline: u32, number: u64) {
    let file = segment_name(timeline, number);
    let start = file.start(SIZE).unwrap();
    std::fs::create_dir(root.join(name)).unwrap();
    let label = format!(
        "START WAL LOCATION: {start} (file {file})\nCHECKPOINT LOCATION: {start}\nSTART TIME: now\nLABEL: x\n\
         START TIMELINE: {timeline}\n"
    );
    std::fs::write(root.join(name).join("backup_label"), label).unwrap();
}

pub(super) fn plant_wal(root: &Path, name: &str) {
    std::fs::write(places(root).completed_wals.join(name), "WAL").unwrap();
}

pub(super) fn stored(root: &Path) -> BTreeSet<String> {
    names(&places(root)).into_iter().collect()
}

#[test]
fn a_purge_removes_what_is_older_than_the_oldest_set_and_keeps_histories() {
    let folder = scratch_folder();
    prepare(folder.path());
    plant_set(folder.path(), "data.master", 2, 40);
    plant_set(folder.path(), "data.master.3", 1, 20);
    let kept = [
        "00000002.history",
        "00000003.history",
        "000000010000000000000014",
        "000000010000000000000014.00000028.backup",
        "000000020000000000000015.partial",
        "0000000300000001000000FF",
        "000000010000000000000014.displaced",
        "00000002.history.displaced",
    ];
    let gone = [
        "000000010000000000000002.damaged",
        "000000010000000000000003.displaced",
        "000000010000000000000003.displaced.1",
        "000000020000000000000013.differs",
        "000000010000000000000013",
        "000000010000000000000013.00000028.backup",
        "000000030000000000000001",
        "000000020000000000000012.partial",
    ];
    for name in kept.iter().chain(&gone) {
        plant_wal(folder.path(), name);
    }
    // Copies beside segments in progress, and what is no copy.
    let partials = places(folder.path()).partial_wals;
    let of = |end: &str| partials.join(format!("000000010000000000000013{end}"));
    for end in [".differs", ".differs.1", ".damaged", ".acknowledged", ""] {
        std::fs::write(of(end), "WAL").unwrap();
    }
    let needed = partials.join("000000010000000000000014.differs");
    std::fs::write(&needed, "WAL").unwrap();
    let notes = places(folder.path()).completed_wals.join(".apart");
    std::fs::create_dir_all(&notes).unwrap();
    let noted = |name: &str| notes.join(name);
    for name in [
        "000000010000000000000003.displaced",
        "000000010000000000000014.displaced",
    ] {
        std::fs::write(noted(name), "thief\n").unwrap();
    }
    let sets = real_sets(folder.path());
    let lease = lease(&sets).unwrap();
    let purged = sets
        .purge_wal(&lease, keep(0), None, &|_| Ok(Vec::new()))
        .unwrap();
    assert_eq!(purged.oldest_needed, Some(segment_name(1, 20)));
    // The prepared segment too.
    assert_eq!(purged.files, gone.len() + 1 + 3);
    for end in [".differs", ".differs.1", ".damaged"] {
        assert!(!of(end).exists(), "{end}");
    }
    assert!(of(".acknowledged").exists() && of("").exists() && needed.exists());
    assert!(!noted("000000010000000000000003.displaced").exists());
    assert!(noted("000000010000000000000014.displaced").exists());
    let mut expected: BTreeSet<String> = kept.iter().map(|name| (*name).to_owned()).collect();
    expected.insert("BACKUPLOCK".to_owned());
    assert_eq!(stored(folder.path()), expected);
}

#[test]
fn fault_82_a_purge_that_does_not_know_what_is_needed_removes_nothing() {
    let folder = scratch_folder();
    prepare(folder.path());
    let sets = real_sets(folder.path());
    let lease = lease(&sets).unwrap();
    let before = stored(folder.path());
    assert_eq!(
        sets.purge_wal(&lease, keep(0), None, &|_| Ok(Vec::new()))
            .unwrap()
            .oldest_needed,
        None
    );
    plant_set(folder.path(), "data.master", 1, 9);
    for label in [
        "",
        "START WAL LOCATION: 0/1",
        "START WAL LOCATION: 0/1 (file x)\nLABEL: a\n",
    ] {
        std::fs::create_dir_all(folder.path().join("data.master.0")).unwrap();
        std::fs::write(folder.path().join("data.master.0/backup_label"), label).unwrap();
        let error = sets
            .purge_wal(&lease, keep(0), None, &|_| Ok(Vec::new()))
            .unwrap_err();
        assert!(matches!(error, SetError::Unknown { .. }), "{error}");
    }
    assert_eq!(stored(folder.path()), before);
    // A server that was restored from a set that is gone still reads the third segment.
    std::fs::remove_dir_all(folder.path().join("data.master.0")).unwrap();
    let purged = sets
        .purge_wal(&lease, keep(0), Some(Path::new("/pg")), &|_| {
            Ok(vec![segment_name(1, 3)])
        })
        .unwrap();
    assert_eq!(
        (purged.oldest_needed, purged.files),
        (Some(segment_name(1, 3)), 0)
    );
}

/// A restore takes a set that is neither in `slave_data` when that is looked at, nor would be in the list that
/// is read behind that.
#[test]
fn fault_104_a_set_that_is_taken_while_a_purge_asks_keeps_its_wal() {
    let folder = scratch_folder();
    prepare(folder.path());
    plant_set(folder.path(), "data.master", 1, 40);
    plant_set(folder.path(), "data.master.0", 1, 20);
    let needed = segment_name(1, 20).to_string();
    plant_wal(folder.path(), &needed);
    let (sets, others) = (real_sets(folder.path()), real_sets(folder.path()));
    let older = sets.newest().parse_sibling("data.master.0").unwrap();
    let slave_data = folder.path().join("slave_data");
    let restoring = std::cell::Cell::new(None);
    let lease = lease(&sets).unwrap();
    let asked = |_: &Path| {
        let (others, older, to) = (others.clone(), older.clone(), slave_data.clone());
        let taking = std::thread::spawn(move || others.take(&older)?.move_to(&to));
        // As long as it could take if nothing held it back.
        for _ in 0..200 {
            if taking.is_finished() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        restoring.set(Some(taking));
        Ok(Vec::new())
    };
    sets.purge_wal(&lease, keep(0), Some(&slave_data), &asked)
        .unwrap();
    assert!(stored(folder.path()).contains(&needed));
    let taking = restoring.take().unwrap();
    assert!(taking.join().unwrap().unwrap().is_none());
    assert!(slave_data.join("backup_label").exists());
}

#[test]
fn fault_111_wal_younger_than_the_minimum_age_stays() {
    let folder = scratch_folder();
    prepare(folder.path());
    plant_set(folder.path(), "data.master", 1, 40);
    plant_wal(folder.path(), "000000010000000000000013");
    let sets = real_sets(folder.path());
    let lease = lease(&sets).unwrap();
    let of_age = |minimum_age| Keeping {
        minimum_age,
        ..keep(0)
    };
    let purge = |minimum_age| {
        sets.purge_wal(&lease, of_age(minimum_age), None, &|_| Ok(Vec::new()))
            .unwrap()
    };
    assert_eq!(purge(Duration::from_secs(60)).files, 0);
    assert!(stored(folder.path()).contains("000000010000000000000013"));
    assert!(purge(Duration::ZERO).files > 0);
    let now_ms = jiff::Timestamp::now().as_millisecond();
    let is_old = |since_ms| of_age(Duration::from_secs(1)).is_old(since_ms, now_ms);
    assert!(is_old(now_ms - 2_000) && !is_old(now_ms + 3_600_000));
}

/// A tree of timelines: each but the first leaves an older one at a segment.
#[derive(Debug, Clone)]
struct Branch {
    parent: usize,
    at: u64,
}

fn timelines() -> impl Strategy<Value = Vec<Branch>> {
    proptest::collection::vec((any::<proptest::sample::Index>(), 1..12_u64), 0..5).prop_map(
        |drawn| {
            let mut branches = vec![Branch { parent: 0, at: 1 }];
            for (parent, further) in drawn {
                let parent = parent.index(branches.len());
                let at = branches[parent].at + further;
                branches.push(Branch { parent, at });
            }
            branches
        },
    )
}

/// The segments that a recovery reads which begins in `start` of `from` and follows to `to`.
fn read_by(branches: &[Branch], from: usize, start: u64, to: usize, end: u64) -> Vec<SegmentName> {
    let mut path = vec![to];
    while path[0] != from {
        if path[0] == 0 {
            return Vec::new();
        }
        path.insert(0, branches[path[0]].parent);
    }
    let mut segments = Vec::new();
    let mut begin = start;
    for (step, timeline) in path.iter().enumerate() {
        let last = path.get(step + 1).map_or(end, |next| branches[*next].at);
        if last < begin {
            return Vec::new();
        }
        let number = u32::try_from(*timeline).unwrap() + 1;
        segments.extend((begin..=last).map(|segment| segment_name(number, segment)));
        begin = last;
    }
    segments
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// FAULTS 82: whichever timeline a recovery follows from whichever set, its WAL stays.
    #[test]
    fn fault_82_a_purge_keeps_all_wal_that_any_listed_set_can_reach(
        branches in timelines(),
        starts in proptest::collection::vec((any::<proptest::sample::Index>(), 0..10_u64), 1..4),
    ) {
        let folder = scratch_folder();
        prepare(folder.path());
        let end = 50;
        for (timeline, branch) in branches.iter().enumerate() {
            for number in branch.at..end {
                let timeline = u32::try_from(timeline).unwrap() + 1;
                plant_wal(folder.path(), &segment_name(timeline, number).to_string());
            }
        }
        let mut needed = BTreeSet::new();
        for (number, (timeline, behind)) in starts.iter().enumerate() {
            let timeline = timeline.index(branches.len());
            let start = branches[timeline].at + behind;
            let name = format!("data.master.{number}");
            plant_set(folder.path(), &name, u32::try_from(timeline).unwrap() + 1, start);
            for to in 0..branches.len() {
                needed.extend(read_by(&branches, timeline, start, to, end - 1));
            }
        }
        let before = stored(folder.path());
        let sets = real_sets(folder.path());
        sets.purge_wal(&lease(&sets).unwrap(), keep(0), None, &|_| Ok(Vec::new())).unwrap();
        let after = stored(folder.path());
        for name in needed {
            let name = name.to_string();
            prop_assert!(after.contains(&name) || !before.contains(&name), "{} is gone", name);
        }
    }
}

#[test]
fn fault_84_one_backup_at_a_time_and_a_dead_owner_holds_nothing() {
    let folder = scratch_folder();
    prepare(folder.path());
    let file = places(folder.path()).completed_wals.join("BACKUPLOCK");
    let sets = real_sets(folder.path());
    assert_eq!(sets.lease_holder().unwrap(), None);
    let lease = sets
        .lease("backup of main from db1, since\n04:05:06")
        .unwrap();
    let text = "backup of main from db1, since 04:05:06";
    assert_eq!(std::fs::read_to_string(&file).unwrap().trim(), text);
    assert_eq!(sets.lease_holder().unwrap().as_deref(), Some(text));
    match sets.lease("another").map(drop) {
        Err(SetError::Busy { holder, .. }) => assert_eq!(holder, text),
        other => panic!("{other:?}"),
    }
    drop(lease);
    assert!(!file.exists());
    // What a killed owner leaves is a file that nobody has locked.
    std::fs::write(&file, "a process that died\n").unwrap();
    assert_eq!(sets.lease_holder().unwrap(), None);
    drop(sets.lease("the next").unwrap());
    assert!(!file.exists());
}

/// FAULTS 84: backups with expiry, readers and purges at once; whoever reads sees whole sets.
#[test]
fn fault_84_backup_rotation_restore_and_purge_do_not_disturb_each_other() {
    let folder = scratch_folder();
    let root = folder.path();
    prepare(root);
    let wal = wal_proof(root);
    let (first, is_done) = (real_sets(root), AtomicBool::new(false));
    back_up(&first, &lease(&first).unwrap(), 1, &wal).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let sets = real_sets(root);
            for round in 0..30_u8 {
                let lease = loop {
                    match lease(&sets) {
                        Ok(lease) => break lease,
                        Err(SetError::Busy { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                };
                back_up(&sets, &lease, round % 9 + 1, &wal).unwrap();
                sets.expire(&lease, keep(2), &mut |_| Ok(())).unwrap();
            }
            is_done.store(true, Ordering::SeqCst);
        });
        scope.spawn(|| {
            let sets = real_sets(root);
            while !is_done.load(Ordering::SeqCst) {
                match lease(&sets)
                    .and_then(|lease| sets.purge_wal(&lease, keep(0), None, &|_| Ok(Vec::new())))
                {
                    Ok(purged) => assert_eq!(purged.files, 0),
                    Err(SetError::Busy { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                use std::os::fd::AsRawFd;
                let sets = real_sets(root);
                while !is_done.load(Ordering::SeqCst) {
                    let listed = sets.list().unwrap();
                    assert!(!listed.is_empty());
                    let oldest = &listed.last().unwrap().name;
                    // It may have moved or expired since it was listed, but never while held.
                    match sets.hold(oldest) {
                        Ok(held) => {
                            let number = held.directory().as_raw_fd();
                            let through = format!("/proc/self/fd/{number}");
                            whole_version(Path::new(&through)).unwrap();
                        }
                        Err(SetError::Absent { .. } | SetError::Busy { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
    });
    // The last expiry may have left what was being read.
    (first.expire(&lease(&first).unwrap(), keep(2), &mut |_| Ok(()))).unwrap();
    assert_eq!(first.list().unwrap().len(), 2);
}
