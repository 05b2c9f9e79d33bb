//! What the archive takes, refuses, confirms and lists when the disk does its duty.
//! Never needs a server. Invariant tested: a stored file stays as it is, whoever offers what
//! under its name.

use std::os::unix::fs::{MetadataExt, symlink};
use std::sync::{Barrier, mpsc};
use std::time::Duration;

use walmgr_protocol::names::{SystemId, WalFileName};

use super::archive::StoredFile;
use super::beside::damaged_copy_of;
use super::testing::{
    BINDING, FaultyDisk, Op, assert_stored, history_file, names, new_archive, open, places, push,
    real, scratch_folder, segment, stored_bytes,
};
use super::{Archive, ArchiveFolders, Binding, FileSealed, Health, StoreError, StoredUnderName};
use crate::error::Kind;
use crate::wal::segment::Verify;

#[test]
fn fault_1_an_identical_file_is_synced_again_and_keeps_its_inode() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let disk = FaultyDisk::over(real());
    let archive = Archive::open(&places, disk.clone()).unwrap();
    let sample = segment(3, 1);
    assert_stored(&archive, &sample);
    let path = places.completed_wals.join(sample.name.to_string());
    let inode = std::fs::metadata(&path).unwrap().ino();
    let before = disk.log().len();
    let held = archive
        .lookup(&sample.name, sample.len(), sample.crc32(), Verify::Records)
        .unwrap();
    assert!(matches!(held, StoredUnderName::Identical(proof) if proof.crc32() == sample.crc32()));
    let syncs: Vec<Op> = disk.log()[before..]
        .iter()
        .map(|(op, _)| *op)
        .filter(|op| matches!(op, Op::SyncFile | Op::Read | Op::SyncDirectory))
        .collect();
    assert_eq!(syncs.first(), Some(&Op::SyncFile));
    assert_eq!(syncs.last(), Some(&Op::SyncDirectory));
    assert!(syncs.contains(&Op::Read));
    // A client that did not ask first is answered the same.
    assert_stored(&archive, &sample);
    assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode);
    assert_eq!(names(&places), [sample.name.to_string()]);
}

#[test]
fn fault_2_other_bytes_under_the_same_name_conflict_and_change_nothing() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let (first, second) = (segment(3, 1), segment(3, 2));
    assert_stored(&archive, &first);
    for _ in 0..2 {
        let held = archive
            .lookup(&second.name, second.len(), second.crc32(), Verify::Records)
            .unwrap();
        assert!(matches!(held, StoredUnderName::Different { crc32, .. } if crc32 == first.crc32()));
        let sealed = push(&archive, &second).unwrap();
        assert!(matches!(sealed, FileSealed::Conflict { crc32, .. } if crc32 == first.crc32()));
    }
    assert_eq!(stored_bytes(&places, &first), first.bytes);
    // One other is kept, that which was offered last: a master offers the genuine one for ever.
    let keeps = |sample: &crate::store::testing::Sample| {
        let (len, crc32) = (sample.len(), sample.crc32());
        archive.keeps_differing(sample.name, len, crc32).unwrap()
    };
    let third = segment(3, 3);
    assert!(keeps(&second) && !keeps(&third));
    let sealed = push(&archive, &third).unwrap();
    assert!(matches!(sealed, FileSealed::Conflict { .. }));
    assert!(keeps(&third));
    let differs = format!("{}.differs", first.name);
    assert_eq!(names(&places), [first.name.to_string(), differs.clone()]);
    let kept = std::fs::read(places.completed_wals.join(differs)).unwrap();
    assert_eq!(kept, third.bytes);
}

#[test]
fn fault_2_another_clusters_file_is_kept_and_conflicts() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let ours = segment(3, 1);
    let mut theirs = ours.bytes.clone();
    theirs[24] ^= 1;
    std::fs::write(places.completed_wals.join(ours.name.to_string()), &theirs).unwrap();
    let held = archive
        .lookup(&ours.name, ours.len(), ours.crc32(), Verify::Records)
        .unwrap();
    assert!(
        matches!(held, StoredUnderName::Different { .. }),
        "{held:?}"
    );
    drop(archive);
    let archive = open(&places);
    assert_eq!(archive.recovery().foreign.len(), 1);
    assert_eq!(stored_bytes(&places, &ours), theirs);
}

#[test]
fn fault_3_an_invalid_stored_file_is_set_aside_and_the_new_one_taken() {
    let sample = segment(3, 1);
    let mut torn = sample.bytes.clone();
    torn[45] ^= 0xFF;
    for (number, planted) in [
        Vec::new(),
        vec![0; 1 << 20],
        sample.bytes[..4096].to_vec(),
        torn,
    ]
    .iter()
    .enumerate()
    {
        let folder = scratch_folder();
        let places = new_archive(folder.path());
        let archive = open(&places);
        let path = places.completed_wals.join(sample.name.to_string());
        for round in 0..3 {
            std::fs::write(&path, planted).unwrap();
            if round == 2 {
                // Without asking first.
                assert_stored(&archive, &sample);
                continue;
            }
            let held = archive
                .lookup(&sample.name, sample.len(), sample.crc32(), Verify::Records)
                .unwrap();
            assert!(
                matches!(held, StoredUnderName::Absent),
                "{number}: {held:?}"
            );
        }
        let name = sample.name.to_string();
        let damaged = [".damaged", ".damaged.1", ".damaged.2"].map(|end| format!("{name}{end}"));
        assert_eq!(names(&places)[1..], damaged);
        assert_eq!(stored_bytes(&places, &sample), sample.bytes);
        assert_eq!(
            std::fs::read(places.completed_wals.join(&damaged[2])).unwrap(),
            *planted
        );
    }
}

#[test]
fn what_was_let_in_unchecked_is_not_called_damaged_later() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let mut sample = segment(3, 1);
    sample.bytes[45] ^= 1;
    let open = || Archive::open(&places, real()).unwrap();
    let archive = open();
    let mut incoming = archive
        .begin(sample.name, sample.len(), Verify::Off)
        .unwrap();
    incoming.write(&sample.bytes).unwrap();
    assert!(matches!(
        incoming.seal(sample.len(), sample.crc32()),
        Ok(FileSealed::Stored(_))
    ));
    drop(archive);
    let archive = open();
    assert_eq!(archive.recovery().set_aside, []);
    assert_eq!(
        archive.recovery().damaged.len(),
        1,
        "it is said, not acted on"
    );
    let held = archive
        .lookup(&sample.name, sample.len(), sample.crc32(), Verify::Off)
        .unwrap();
    assert!(matches!(held, StoredUnderName::Identical(_)));
    let other = segment(3, 2);
    let held = archive
        .lookup(&other.name, other.len(), other.crc32(), Verify::Off)
        .unwrap();
    assert!(matches!(held, StoredUnderName::Different { .. }));
}

#[test]
fn damaged_copies_are_recognised_by_their_names() {
    let name = segment(3, 1).name;
    assert_eq!(damaged_copy_of(&format!("{name}.damaged")), Some(name));
    assert_eq!(damaged_copy_of(&format!("{name}.damaged.12")), Some(name));
    for other in [
        format!("{name}"),
        format!("{name}.damagedX"),
        "x.damaged".to_owned(),
    ] {
        assert_eq!(damaged_copy_of(&other), None, "{other}");
    }
}

#[test]
fn fault_7_small_files_keep_the_rules_and_their_limit() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let (first, second) = (history_file(2, "first"), history_file(2, "second"));
    assert_stored(&archive, &first);
    assert_stored(&archive, &first);
    assert!(matches!(
        push(&archive, &second).unwrap(),
        FileSealed::Conflict { .. }
    ));
    let huge = archive.begin(first.name, 2 << 20, Verify::Records);
    assert!(matches!(
        huge,
        Err(StoreError::TooLarge {
            limit: 0x10_0000,
            ..
        })
    ));
    let segment = segment(3, 1);
    let huge = archive.begin(segment.name, segment.len() + 1, Verify::Records);
    assert!(matches!(huge, Err(StoreError::TooLarge { .. })));
    let kept = [first.name.to_string(), format!("{}.differs", first.name)];
    assert_eq!(names(&places), kept);
}

#[test]
fn fault_10_a_foreign_or_damaged_segment_is_refused() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let mut foreign = segment(3, 1);
    foreign.bytes[24] ^= 1;
    assert_eq!(
        push(&archive, &foreign).unwrap_err().kind(),
        Kind::ForeignCluster
    );
    let mut damaged = segment(3, 1);
    damaged.bytes[45] ^= 1;
    assert!(matches!(
        push(&archive, &damaged),
        Err(StoreError::Damaged { .. })
    ));
    assert_eq!(names(&places), [""; 0]);
    assert_eq!(archive.health(), Health::Good);
}

#[test]
fn fault_4_what_is_not_what_was_announced_leaves_nothing() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let sample = history_file(2, "first");
    let begin = || {
        archive
            .begin(sample.name, sample.len(), Verify::Records)
            .unwrap()
    };
    let mut incoming = begin();
    incoming.write(&sample.bytes[..5]).unwrap();
    assert_eq!(names(&places).len(), 1);
    drop(incoming);
    assert_eq!(names(&places), [""; 0]);

    let mut incoming = begin();
    incoming.write(&sample.bytes[..5]).unwrap();
    let error = incoming.seal(sample.len(), sample.crc32()).unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Mismatch {
                what: "length",
                found: 5,
                ..
            }
        ),
        "{error}"
    );

    let mut incoming = begin();
    incoming.write(&sample.bytes).unwrap();
    let error = incoming.seal(sample.len(), sample.crc32() ^ 1).unwrap_err();
    assert!(
        matches!(error, StoreError::Mismatch { what: "CRC-32", .. }),
        "{error}"
    );

    let mut incoming = begin();
    incoming.write(&sample.bytes).unwrap();
    assert!(matches!(
        incoming.write(b"x"),
        Err(StoreError::TooLarge { .. })
    ));
    assert!(matches!(
        incoming.write(b"x"),
        Err(StoreError::GivenUp { .. })
    ));
    assert_eq!(names(&places), [""; 0]);
}

#[test]
fn fault_95_a_link_under_a_final_name_is_not_followed() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let sample = history_file(2, "first");
    let victim = folder.path().join("victim");
    std::fs::write(&victim, &sample.bytes).unwrap();
    symlink(&victim, places.completed_wals.join(sample.name.to_string())).unwrap();
    assert!(
        archive
            .lookup(&sample.name, sample.len(), sample.crc32(), Verify::Records)
            .is_err()
    );
    assert!(push(&archive, &sample).is_err());
    assert_eq!(archive.list(None, 10).unwrap(), []);
}

#[test]
fn fault_83_of_two_clients_with_one_name_one_wins() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    for (number, other) in [(3, 1), (4, 2)] {
        let samples = [segment(number, 1), segment(number, other)];
        let barrier = Barrier::new(2);
        let sealed: Vec<FileSealed> = std::thread::scope(|scope| {
            let threads = samples.each_ref().map(|sample| {
                let (archive, barrier) = (&archive, &barrier);
                scope.spawn(move || {
                    let mut incoming = archive
                        .begin(sample.name, sample.len(), Verify::Records)
                        .unwrap();
                    incoming.write(&sample.bytes).unwrap();
                    barrier.wait();
                    incoming.seal(sample.len(), sample.crc32()).unwrap()
                })
            });
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        let stored = sealed
            .iter()
            .filter(|sealed| matches!(sealed, FileSealed::Stored(_)))
            .count();
        assert_eq!(stored, if other == 1 { 2 } else { 1 });
    }
    // Both names, and the one that lost.
    assert_eq!(names(&places).len(), 3);
}

#[test]
fn a_binding_is_for_good() {
    let folder = scratch_folder();
    let places = places(folder.path());
    Archive::create(&places, real()).unwrap();
    let archive = open(&places);
    assert_eq!(archive.binding(), None);
    let sample = segment(3, 1);
    assert!(matches!(push(&archive, &sample), Err(StoreError::NotBound)));
    archive.bind(&BINDING).unwrap();
    archive.bind(&BINDING).unwrap();
    let other = Binding {
        system_id: SystemId(1),
        ..BINDING
    };
    assert_eq!(
        archive.bind(&other).unwrap_err().kind(),
        Kind::ForeignCluster
    );
    drop(archive);
    assert_eq!(open(&places).binding(), Some(BINDING));
}

#[test]
fn asking_for_the_binding_never_waits_for_a_stalled_disk() {
    let folder = scratch_folder();
    let places = places(folder.path());
    Archive::create(&places, real()).unwrap();
    let disk = FaultyDisk::over(real());
    let archive = &Archive::open(&places, disk.clone()).unwrap();
    let other = Binding {
        system_id: SystemId(1),
        ..BINDING
    };
    let stalled = disk.stall(Op::SyncFile);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| archive.bind(&BINDING));
        stalled.wait();
        let second = scope.spawn(|| archive.bind(&other));
        let (sender, answer) = mpsc::channel();
        scope.spawn(move || sender.send(archive.binding()).unwrap());
        let answer = answer.recv_timeout(Duration::from_secs(30));
        stalled.wait();
        first.join().unwrap().unwrap();
        assert_eq!(answer, Ok(None));
        // Two that bind take their turns.
        let refused = second.join().unwrap().unwrap_err();
        assert_eq!(refused.kind(), Kind::ForeignCluster);
    });
    assert_eq!(archive.binding(), Some(BINDING));
}

#[test]
fn lists_are_sorted_paged_and_free_of_everything_else() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    for sample in [
        segment(5, 1),
        history_file(2, "x"),
        segment(3, 1),
        segment(4, 1),
    ] {
        assert_stored(&archive, &sample);
    }
    let folder = &places.completed_wals;
    for name in [
        "PAUSE",
        "STOP",
        "BACKUPLOCK",
        "PROGRESS",
        "readme",
        ".in.x.1",
    ] {
        std::fs::write(folder.join(name), "").unwrap();
    }
    std::fs::write(folder.join(format!("{}.damaged", segment(3, 1).name)), "").unwrap();
    std::fs::create_dir(folder.join(segment(6, 1).name.to_string())).unwrap();
    let all = archive.list(None, 100).unwrap();
    let expected: Vec<WalFileName> = vec![
        history_file(2, "x").name,
        segment(3, 1).name,
        segment(4, 1).name,
        segment(5, 1).name,
    ];
    assert_eq!(
        all.iter().map(|entry| entry.name).collect::<Vec<_>>(),
        expected
    );
    assert_eq!(all[1].len, 1 << 20);
    let mut paged: Vec<StoredFile> = Vec::new();
    loop {
        let page = archive
            .list(paged.last().map(|entry| entry.name), 3)
            .unwrap();
        if page.is_empty() {
            break;
        }
        assert!(page.len() <= 3);
        paged.extend(page);
    }
    assert_eq!(paged, all);
}

#[test]
fn set_up_makes_private_folders_and_may_be_repeated() {
    let folder = scratch_folder();
    let deep = folder.path().join("a/b");
    let places = places(&deep);
    for _ in 0..2 {
        Archive::create(&places, real()).unwrap();
    }
    for path in [&places.completed_wals, &places.partial_wals] {
        assert_eq!(std::fs::metadata(path).unwrap().mode() & 0o777, 0o700);
    }
    let archive = open(&places);
    archive.bind(&BINDING).unwrap();
    let sample = segment(3, 1);
    assert_stored(&archive, &sample);
    let path = places.completed_wals.join(sample.name.to_string());
    assert_eq!(std::fs::metadata(path).unwrap().mode() & 0o777, 0o600);
    let missing = ArchiveFolders {
        partial_wals: deep.join("nowhere"),
        ..places
    };
    assert!(matches!(
        Archive::open(&missing, real()),
        Err(StoreError::NotSetUp { .. })
    ));
}
