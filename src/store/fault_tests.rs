//! The archive on disks that are full, broken, replaced, locked or of a newer format.
//! Never needs root. Invariant tested: a refusal leaves no temporary, no final name, and an
//! archive that takes the same file as soon as the fault is gone.

use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::io::Errno;
use walmgr_protocol::names::TimelineId;

use super::testing::{
    BINDING, FaultyDisk, Op, assert_stored, history_file, names, new_archive, open, places, push,
    real, scratch_folder, segment, stored_bytes,
};
use super::{
    Archive, ArchiveFolders, ArchiveReader, FileSealed, Health, StoreError, StoredUnderName,
};
use crate::config::StoreCompression;
use crate::error::Kind;
use crate::wal::segment::Verify;

/// What happens after `op` failed once in a push: the archive the file comes to next, and whether
/// that has to be a new process.
fn push_with_fault(op: Op, nth: usize, errno: Errno) {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let disk = FaultyDisk::over(real());
    let archive = Archive::open(&places, disk.clone()).unwrap();
    let sample = segment(3, 1);
    disk.fail(op, nth, 1, errno);
    let error = push(&archive, &sample).unwrap_err();
    assert_eq!(
        error.kind(),
        Kind::ReceiverDisk,
        "{op:?} {errno:?}: {error}"
    );
    assert_eq!(names(&places), [""; 0], "{op:?} {errno:?}");
    let space = [Errno::NOSPC, Errno::DQUOT, Errno::FBIG].contains(&errno);
    if space {
        let text = error.to_string();
        let start = format!("no space left on the standby's disk for {}: ", sample.name);
        assert!(text.starts_with(&start), "{text}");
        let place = format!("free space in {}", places.completed_wals.display());
        assert!(text.contains(&place), "{text}");
    }
    if op == Op::SyncDirectory || !space && matches!(op, Op::SyncFile | Op::Close) {
        assert!(matches!(archive.health(), Health::SyncFailed { .. }));
        assert!(matches!(
            push(&archive, &sample),
            Err(StoreError::SyncFailed { .. })
        ));
        let held = archive.lookup(&sample.name, sample.len(), sample.crc32(), Verify::Records);
        assert!(matches!(held, Err(StoreError::SyncFailed { .. })));
        drop(archive);
        assert_stored(&open(&places), &sample);
    } else {
        assert!(
            matches!(archive.health(), Health::Impaired { .. }),
            "{op:?} {errno:?}"
        );
        assert_stored(&archive, &sample);
        assert_eq!(archive.health(), Health::Good);
    }
    assert_eq!(stored_bytes(&places, &sample), sample.bytes);
    assert_eq!(names(&places), [sample.name.to_string()]);
}

#[test]
fn fault_237_disk_that_fails_while_blocks_are_packed_leaves_nothing() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let disk = FaultyDisk::over(real());
    let archive = Archive::open(&places, disk.clone()).unwrap();
    archive.set_compression(StoreCompression::default());
    let sample = segment(3, 1);
    let text = sample.name.to_string();
    // At each block, and at what stands behind them.
    for nth in 0..=sample.bytes.len() / (256 << 10) {
        for errno in [Errno::NOSPC, Errno::IO] {
            disk.fail(Op::Write, nth, 1, errno);
            let error = push(&archive, &sample).unwrap_err();
            assert_eq!(error.kind(), Kind::ReceiverDisk, "{nth}: {error}");
            assert!(error.to_string().contains(&text), "{error}");
            assert_eq!(names(&places), [""; 0], "{nth} {errno:?}");
        }
    }
    assert_stored(&archive, &sample);
    assert_eq!(names(&places), [format!("{text}.zst")]);
}

#[test]
fn fault_31_32_36_no_space_at_any_step_is_refused_and_taken_later() {
    for errno in [Errno::NOSPC, Errno::DQUOT, Errno::FBIG] {
        for op in [
            Op::Create,
            Op::Allocate,
            Op::Write,
            Op::SyncFile,
            Op::Close,
            Op::RenameNew,
        ] {
            push_with_fault(op, 0, errno);
        }
        push_with_fault(Op::Write, 1, errno);
        push_with_fault(Op::StartWriteback, 0, errno);
    }
}

#[test]
fn fault_33_an_io_error_at_any_step_is_refused() {
    for op in [
        Op::Create,
        Op::Allocate,
        Op::Write,
        Op::StartWriteback,
        Op::SyncFile,
        Op::Close,
        Op::RenameNew,
        Op::SyncDirectory,
    ] {
        push_with_fault(op, 0, Errno::IO);
    }
}

#[test]
fn fault_304_a_damaged_file_system_stores_nothing_until_it_is_mended() {
    for errno in [Errno::BADMSG, Errno::UCLEAN] {
        for op in [Op::Create, Op::Allocate, Op::Write, Op::RenameNew] {
            push_with_fault(op, 0, errno);
        }
    }
}

#[test]
fn fault_34_a_failed_sync_is_never_tried_again_on_the_same_file() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let disk = FaultyDisk::over(real());
    let archive = Archive::open(&places, disk.clone()).unwrap();
    let sample = segment(3, 1);
    disk.fail(Op::SyncFile, 0, 1, Errno::IO);
    assert!(push(&archive, &sample).is_err());
    drop(archive);
    assert_stored(&Archive::open(&places, disk.clone()).unwrap(), &sample);
    let log = disk.log();
    let synced: Vec<&String> = log
        .iter()
        .filter(|(op, _)| *op == Op::SyncFile)
        .map(|(_, name)| name)
        .collect();
    assert_eq!(synced.len(), 2);
    assert_ne!(synced[0], synced[1]);
}

#[test]
fn fault_34_an_existing_file_whose_sync_fails_is_not_confirmed() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let disk = FaultyDisk::over(real());
    let archive = Archive::open(&places, disk.clone()).unwrap();
    let sample = history_file(2, "first");
    assert_stored(&archive, &sample);
    disk.fail(Op::SyncFile, 0, 1, Errno::IO);
    assert!(
        archive
            .lookup(&sample.name, sample.len(), sample.crc32(), Verify::Records)
            .is_err()
    );
    assert!(matches!(archive.health(), Health::SyncFailed { .. }));
    assert_eq!(stored_bytes(&places, &sample), sample.bytes);
}

#[test]
fn fault_35_a_read_only_file_system_is_refused_until_it_is_writable() {
    for op in [Op::Create, Op::RenameNew] {
        push_with_fault(op, 0, Errno::ROFS);
    }
}

#[test]
fn file_systems_without_the_newer_calls_are_served() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let disk = FaultyDisk::over(real());
    disk.fail(Op::Allocate, 0, usize::MAX, Errno::OPNOTSUPP);
    disk.fail(Op::StartWriteback, 0, usize::MAX, Errno::NOSYS);
    disk.fail(Op::RenameNew, 0, usize::MAX, Errno::INVAL);
    disk.fail(Op::ForgetCache, 0, usize::MAX, Errno::NOSYS);
    let archive = Archive::open(&places, disk).unwrap();
    let (first, second) = (segment(3, 1), segment(3, 2));
    assert_stored(&archive, &first);
    assert!(matches!(
        push(&archive, &second).unwrap(),
        FileSealed::Conflict { .. }
    ));
    let kept = [first.name.to_string(), format!("{}.differs", first.name)];
    assert_eq!(names(&places), kept);
}

#[test]
fn fault_38_a_replaced_directory_gets_no_proof() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let (stored, sample) = (history_file(2, "first"), segment(3, 1));
    assert_stored(&archive, &stored);
    let mut incoming = archive
        .begin(sample.name, sample.len(), Verify::Records)
        .unwrap();
    incoming.write(&sample.bytes).unwrap();
    let aside = folder.path().join("elsewhere");
    std::fs::rename(&places.completed_wals, &aside).unwrap();
    let moved = |error: StoreError| assert!(matches!(error, StoreError::Moved { .. }), "{error}");
    moved(
        archive
            .lookup(&stored.name, stored.len(), stored.crc32(), Verify::Records)
            .unwrap_err(),
    );
    std::fs::create_dir(&places.completed_wals).unwrap();
    moved(incoming.seal(sample.len(), sample.crc32()).unwrap_err());
    moved(push(&archive, &sample).unwrap_err());
    moved(
        archive
            .lookup(&stored.name, stored.len(), stored.crc32(), Verify::Records)
            .unwrap_err(),
    );
    assert_eq!(names(&places), [""; 0]);
    assert!(!aside.join(sample.name.to_string()).exists());

    // A receiver that starts on the empty directory refuses and leaves nothing in it.
    let error = Archive::open(&places, real()).unwrap_err();
    assert!(matches!(error, StoreError::NotSetUp { .. }), "{error}");
    assert_eq!(
        std::fs::read_dir(&places.completed_wals).unwrap().count(),
        0
    );

    std::fs::remove_dir(&places.completed_wals).unwrap();
    std::fs::rename(&aside, &places.completed_wals).unwrap();
    assert_stored(&archive, &sample);
}

#[test]
fn fault_38_a_link_to_another_directory_is_refused() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let aside = folder.path().join("elsewhere");
    std::fs::rename(&places.completed_wals, &aside).unwrap();
    symlink(&aside, &places.completed_wals).unwrap();
    let archive = open(&places);
    assert_stored(&archive, &segment(8, 1));
    let other = folder.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::remove_file(&places.completed_wals).unwrap();
    symlink(&other, &places.completed_wals).unwrap();
    let error = push(&archive, &segment(9, 1)).unwrap_err();
    assert!(matches!(error, StoreError::Moved { .. }), "{error}");
    drop(archive);
    assert!(Archive::open(&places, real()).is_err());
}

#[test]
fn fault_12_18_19_open_clears_temporaries_and_checks_segments() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let newest = segment(9, 1);
    assert_stored(&open(&places), &segment(8, 1));
    assert_stored(&open(&places), &newest);
    let temporary = format!(".in.{}.0123456789abcdef", newest.name);
    std::fs::write(places.completed_wals.join(&temporary), "half").unwrap();
    std::fs::write(places.partial_wals.join(".in..walmgr-archive.01"), "half").unwrap();

    let disk = FaultyDisk::over(real());
    let archive = Archive::open(&places, disk.clone()).unwrap();
    assert_eq!(archive.recovery().temporaries_removed, 2);
    assert_eq!(
        archive.recovery().segments_checked,
        [segment(8, 1).name, newest.name]
    );
    let log = disk.log();
    let position = |op: Op, name: &str| {
        let found = log
            .iter()
            .position(|(found, about)| *found == op && about.contains(name));
        found.unwrap_or_else(|| panic!("no {op:?} {name}"))
    };
    let order = [
        position(Op::Lock, ".walmgr-lock"),
        position(Op::Remove, &temporary),
        position(Op::SyncDirectory, "logs.complete"),
        position(Op::SyncFile, &newest.name.to_string()),
        position(Op::Read, &newest.name.to_string()),
        position(Op::SyncDirectory, "logs.partial"),
    ];
    assert!(order.is_sorted(), "{order:?}");
    drop(archive);
    for _ in 0..50 {
        assert_eq!(open(&places).recovery().temporaries_removed, 0);
    }
    assert_eq!(names(&places).len(), 2);
}

#[test]
fn fault_20_lock_that_needs_a_writable_file_is_taken() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let disk = FaultyDisk::over(real());
    disk.fail(Op::Lock, 0, 1, Errno::BADF);
    let _archive = Archive::open(&places, disk).unwrap();
    let second = Archive::open(&places, real());
    assert!(matches!(second, Err(StoreError::Locked { .. })));
}

#[test]
fn fault_19_unreadable_newest_segment_is_reported_and_the_rest_served() {
    type Spoil = fn(&Path, &FaultyDisk);
    let ways: [(&str, Spoil); 3] = [
        ("Input/output error", |_, disk| {
            disk.fail_named(Op::Read, &segment(9, 1).name.to_string(), Errno::IO)
        }),
        ("symbolic links", |path, _| {
            std::fs::rename(path, path.with_file_name("elsewhere")).unwrap();
            symlink("elsewhere", path).unwrap();
        }),
        ("not a regular file", |path, _| {
            std::fs::remove_file(path).unwrap();
            std::fs::create_dir(path).unwrap();
        }),
    ];
    for (words, spoil) in ways {
        let folder = scratch_folder();
        let places = new_archive(folder.path());
        let (older, newest) = (segment(8, 1), segment(9, 1));
        for sample in [&older, &newest] {
            assert_stored(&open(&places), sample);
        }
        let disk = FaultyDisk::over(real());
        spoil(&places.completed_wals.join(newest.name.to_string()), &disk);
        let archive = Archive::open(&places, disk).unwrap();
        let recovery = archive.recovery();
        assert_eq!(recovery.segments_checked, [older.name], "{words}");
        let [(name, why)] = &recovery.unreadable[..] else {
            panic!("{words}: {recovery:?}");
        };
        assert_eq!(*name, newest.name);
        assert!(why.contains(words), "{why} lacks {words}");
        assert_stored(&archive, &segment(10, 1));
        assert_stored(&archive, &older);
    }
}

#[test]
fn fault_33_newest_segment_that_fails_to_sync_keeps_the_archive_closed() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    assert_stored(&open(&places), &segment(9, 1));
    for errno in [Errno::IO, Errno::NOSPC] {
        let disk = FaultyDisk::over(real());
        disk.fail(Op::SyncFile, 0, 1, errno);
        assert!(Archive::open(&places, disk).is_err(), "{errno:?}");
    }
}

#[test]
fn fault_18_a_recovery_that_stops_anywhere_is_finished_by_the_next() {
    let newest = segment(9, 1);
    for stop_after in 0.. {
        let folder = scratch_folder();
        let places = new_archive(folder.path());
        assert_stored(&open(&places), &segment(8, 1));
        let path = places.completed_wals.join(newest.name.to_string());
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        std::fs::write(places.completed_wals.join(".in.x"), "half").unwrap();
        let disk = FaultyDisk::over(real());
        disk.freeze_after(stop_after);
        let is_finished = Archive::open(&places, disk).is_ok();
        let archive = open(&places);
        let set_aside = archive.recovery().set_aside.len();
        assert!(set_aside == 1 || names(&places).contains(&format!("{}.damaged", newest.name)));
        let old = segment(8, 1);
        let held = archive
            .lookup(&old.name, old.len(), old.crc32(), Verify::Records)
            .unwrap();
        assert!(matches!(held, StoredUnderName::Identical(_)));
        assert_stored(&archive, &newest);
        assert_eq!(names(&places).len(), 3, "{:?}", names(&places));
        if is_finished {
            assert!(stop_after > 20);
            return;
        }
    }
}

#[test]
fn fault_20_a_lock_file_that_nobody_locks_is_no_lock() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    std::fs::write(places.completed_wals.join(".walmgr-lock"), "1\n").unwrap();
    let archive = open(&places);
    let text = std::fs::read_to_string(places.completed_wals.join(".walmgr-lock")).unwrap();
    assert_eq!(text.trim(), std::process::id().to_string());
    drop(archive);
    open(&places);
}

#[test]
fn fault_85_a_second_receiver_is_refused_and_the_first_unharmed() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let sample = segment(3, 1);
    let mut incoming = archive
        .begin(sample.name, sample.len(), Verify::Records)
        .unwrap();
    incoming.write(&sample.bytes).unwrap();
    let error = Archive::open(&places, real()).unwrap_err();
    assert_eq!(error.kind(), Kind::AlreadyRunning);
    let StoreError::Locked { pid, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(pid, std::process::id().to_string());
    // Set-up beside a running receiver finds everything done.
    Archive::create(&places, real()).unwrap();
    let sealed = incoming.seal(sample.len(), sample.crc32()).unwrap();
    assert!(matches!(sealed, FileSealed::Stored(_)));
}

#[test]
fn fault_99_a_newer_format_is_refused() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let path = places.partial_wals.join(".walmgr-archive");
    std::fs::write(&path, r#"{"format": 2, "surprise": true}"#).unwrap();
    for result in [
        Archive::open(&places, real()).map(drop),
        Archive::create(&places, real()),
    ] {
        let error = result.unwrap_err();
        assert!(
            matches!(error, StoreError::NewerFormat { found: 2, .. }),
            "{error}"
        );
    }
    assert_eq!(
        std::fs::read(&path).unwrap(),
        br#"{"format": 2, "surprise": true}"#
    );
}

#[test]
fn directories_of_two_archives_are_refused() {
    let (one, two) = (scratch_folder(), scratch_folder());
    let mixed = ArchiveFolders {
        completed_wals: new_archive(one.path()).completed_wals,
        partial_wals: new_archive(two.path()).partial_wals,
    };
    let error = Archive::open(&mixed, real()).unwrap_err();
    assert!(matches!(error, StoreError::Marker { .. }), "{error}");
    let swapped = ArchiveFolders {
        completed_wals: places(one.path()).partial_wals,
        partial_wals: places(one.path()).completed_wals,
    };
    let error = Archive::open(&swapped, real()).unwrap_err();
    assert!(matches!(error, StoreError::Marker { .. }), "{error}");
}

#[test]
fn markers_that_make_no_sense_are_refused() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let path = places.completed_wals.join(".walmgr-archive");
    for text in [
        "",
        "{",
        "[]",
        "{}",
        r#"{"format":"1"}"#,
        r#"{"format":0}"#,
        r#"{"format":1}"#,
    ] {
        std::fs::write(&path, text).unwrap();
        let error = Archive::open(&places, real()).unwrap_err();
        assert!(
            matches!(
                error,
                StoreError::Marker { .. } | StoreError::DamagedMarker { .. }
            ),
            "{text}: {error}"
        );
    }
    std::fs::write(&path, vec![b' '; 1 << 20]).unwrap();
    assert!(matches!(
        Archive::open(&places, real()),
        Err(StoreError::Marker { .. })
    ));
}

#[test]
fn fault_107_no_flipped_bit_in_a_marker_is_believed_and_set_up_mends_it() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    for broken in [&places.completed_wals, &places.partial_wals] {
        let path = broken.join(".walmgr-archive");
        let good = std::fs::read(&path).unwrap();
        for bit in 0..good.len() * 8 {
            let mut flipped = good.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &flipped).unwrap();
            // White space may become other white space; everything else is noticed.
            let opened = Archive::open(&places, real()).map(|archive| archive.binding());
            assert!(
                matches!(opened, Err(_) | Ok(Some(BINDING))),
                "bit {bit}: {opened:?}"
            );
            let read = ArchiveReader::open(broken, real()).map(|reader| reader.binding());
            assert!(matches!(read, Err(_) | Ok(BINDING)), "bit {bit}: {read:?}");
            if let Err(StoreError::DamagedMarker { .. }) = opened {
                Archive::create(&places, real()).unwrap();
                assert_eq!(open(&places).binding(), Some(BINDING));
                assert_eq!(std::fs::read(&path).unwrap(), good);
            }
        }
        std::fs::write(&path, &good).unwrap();
    }
}

#[test]
fn an_error_names_operation_and_path() {
    let error = StoreError::Disk {
        op: "sync",
        path: Path::new("/a/b").to_path_buf(),
        source: io::Error::from(Errno::IO),
    };
    assert!(error.to_string().starts_with("sync /a/b: "));
}

#[test]
fn fault_37_what_the_disk_does_not_give_back_keeps_no_other_file_out() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    assert_stored(&archive, &segment(3, 1));
    // Whoever reads them gets an error, as from a bad sector.
    let lost = places.partial_wals.join(segment(9, 1).name.to_string());
    std::fs::create_dir(&lost).unwrap();
    std::fs::create_dir(lost.with_extension("acknowledged")).unwrap();
    std::fs::create_dir(places.completed_wals.join("00000002.history")).unwrap();
    for number in [5, 4] {
        assert_stored(&archive, &segment(number, 1));
    }
    archive.partial_stream(TimelineId::FIRST).unwrap();
    drop(archive);
    let archive = open(&places);
    assert_stored(&archive, &segment(6, 1));
    archive.partial_stream(TimelineId::FIRST).unwrap();
}
