//! Backup sets as they are meant to be used: received, cut, continued, sealed, rotated, listed.
//! Never needs a server: the sets are small and made up. Invariant tested: what is listed is what
//! was sent, byte for byte, and nothing else.

use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;
use walmgr_protocol::message::backup::FileDigest;
use walmgr_protocol::names::Lsn;

use super::testing::{
    PAGES_FILE, back_up, incremental_stream, keep, label, lease, leftovers, manifest, path,
    prepare, real_sets, sample_files, sample_manifest, sample_stream, seal, sets, versions,
    wal_proof, whole_version, write,
};
use super::{ExpectedFile, HeldFile, Parts, SetError};
use crate::store::testing::{FaultyDisk, Op, open, places, push, real, scratch_folder, segment};
use crate::store::{Disk, Health, StoreError, WalProof};

fn no_archive(_: &Path) -> Result<(), String> {
    Ok(())
}

/// Whichever stream's failure the master hears of first, it is told that a full backup goes well.
#[test]
fn fault_207_every_stream_tells_that_the_older_set_is_none_to_build_on() {
    let folder = scratch_folder();
    prepare(folder.path());
    let wal = wal_proof(folder.path());
    let sets = real_sets(folder.path());
    let lease = lease(&sets).unwrap();
    back_up(&sets, &lease, 1, &wal).unwrap();
    let parent = Arc::new(sets.newest_as_parent().unwrap());
    std::fs::write(folder.path().join("data.master").join(PAGES_FILE), "short").unwrap();
    let incoming = sets.begin(&lease).unwrap();
    incoming.build_on(&parent);
    let mut other = incoming.stream().unwrap();
    let unfit = write(&incoming, &incremental_stream(2)).unwrap_err();
    assert!(matches!(unfit, SetError::ParentUnfit { .. }), "{unfit}");
    let told = other.write(&sample_stream(2)).unwrap_err();
    let needs_full = matches!(
        told,
        SetError::GivenUp {
            needs_full: true,
            ..
        }
    );
    assert!(needs_full, "{told}");
}

#[test]
fn a_set_is_listed_with_what_its_label_says() {
    let folder = scratch_folder();
    prepare(folder.path());
    let wal = wal_proof(folder.path());
    let sets = real_sets(folder.path());
    let lease = lease(&sets).unwrap();
    assert_eq!(sets.list().unwrap(), []);
    let incoming = sets.begin(&lease).unwrap();
    let sealed = write(&incoming, &sample_stream(7)).unwrap();
    assert_eq!(sealed.len(), sample_files(7).len());
    for file in &sealed {
        let content = &sample_files(7)[&file.path.to_string()];
        let (len, crc32c) = (content.len() as u64, crc32c::crc32c(content));
        assert_eq!(file.digest, FileDigest { len, crc32c });
        assert_eq!(incoming.held(&file.path), HeldFile::Complete(file.digest));
    }
    assert_eq!(incoming.complete_files().len(), sealed.len());
    assert_eq!(sets.list().unwrap(), []);
    let name = seal(incoming, 7, &wal).unwrap();
    assert_eq!(name.to_string(), "data.master");
    let listed = sets.list().unwrap();
    let facts = listed[0].label.as_ref().unwrap();
    assert_eq!((listed.len(), &listed[0].name), (1, &name));
    assert_eq!(facts.first_segment.to_string(), "000000010000000000000003");
    assert_eq!(facts.start.to_string(), "0/300028");
    assert_eq!(facts.start_time, "2026-01-02 03:04:07 UTC");
    assert_eq!(facts.label, "FullBackup");
    assert_eq!(whole_version(&folder.path().join("data.master")), Ok(7));
    assert!(folder.path().join("data.master/pg_wal").is_dir());
    assert_eq!(leftovers(folder.path()), [""; 0]);
}

#[test]
fn fault_58_a_backup_that_is_given_up_leaves_nothing() {
    let folder = scratch_folder();
    prepare(folder.path());
    let wal = wal_proof(folder.path());
    let sets = real_sets(folder.path());
    let lease = lease(&sets).unwrap();
    back_up(&sets, &lease, 1, &wal).unwrap();
    let stream = sample_stream(2);
    for end in (0..stream.len()).step_by(700) {
        let incoming = sets.begin(&lease).unwrap();
        let mut writer = incoming.stream().unwrap();
        writer.write(&stream[..end]).unwrap();
        assert!(
            !folder
                .path()
                .join("data.master.incoming/backup_label")
                .exists()
        );
        drop(incoming);
        drop(writer);
        assert_eq!(leftovers(folder.path()), [""; 0]);
    }
    assert_eq!(
        versions(folder.path()).unwrap(),
        [("data.master".to_owned(), 1)]
    );
}

#[test]
fn fault_58_what_a_killed_receiver_left_is_removed_before_the_next_backup() {
    let folder = scratch_folder();
    prepare(folder.path());
    let wal = wal_proof(folder.path());
    let sets = real_sets(folder.path());
    let lease = lease(&sets).unwrap();
    let incoming = sets.begin(&lease).unwrap();
    write(&incoming, &sample_stream(1)).unwrap();
    // As a kill would: nothing is cleaned up.
    incoming.shared.keep();
    drop(incoming);
    assert_eq!(leftovers(folder.path()), ["data.master.incoming"]);
    assert_eq!(sets.list().unwrap(), []);
    let report = sets.recover(&lease).unwrap();
    assert_eq!((report.finished_rotation, report.removed), (false, 1));
    assert_eq!(leftovers(folder.path()), [""; 0]);
    back_up(&sets, &lease, 2, &wal).unwrap();
}

/// Or the index of the names in it would be of an older moment behind each start.
#[test]
fn a_start_that_finds_nothing_left_changes_nothing_in_the_archive() {
    let folder = scratch_folder();
    prepare(folder.path());
    let wal = wal_proof(folder.path());
    let sets = real_sets(folder.path());
    let start = || sets.recover_at_start("a start").unwrap().removed;
    let changed = || sets.completed.moment().unwrap();
    let first = lease(&sets).unwrap();
    back_up(&sets, &first, 1, &wal).unwrap();
    let second = sets.begin(&first).unwrap();
    write(&second, &sample_stream(2)).unwrap();
    second.shared.keep();
    drop((second, first));
    assert_eq!(start(), 1, "what a kill left is removed");
    let before = changed();
    std::thread::sleep(2 * crate::store::disk::CLOCK_STEP);
    assert_eq!(start(), 0);
    assert_eq!(changed(), before);
    let lock = sets.completed.path().join(super::lock::LEASE_NAME);
    std::fs::write(&lock, "who was killed\n").unwrap();
    assert_eq!(start(), 0);
    assert!(!lock.exists());
}

#[test]
fn fault_68_a_set_that_is_not_what_its_manifest_says_is_refused() {
    type Change = fn(&mut Vec<ExpectedFile>);
    let changes: [(&str, Change); 7] = [
        ("a flipped bit", |files| {
            files[0].crc32c = files[0].crc32c.map(|crc| crc ^ 1)
        }),
        ("a shorter file", |files| files[1].len += 1),
        ("a file that is missing", |files| {
            files[0].path = path("base/1/none")
        }),
        ("a file too many", |files| drop(files.pop())),
        ("a file twice", |files| files.push(files[0].clone())),
        ("a map nobody sent", |files| {
            files.push(ExpectedFile {
                path: path("tablespace_map"),
                ..files[0].clone()
            });
        }),
        ("another label", |files| {
            let label = files
                .iter_mut()
                .find(|file| file.path == path("backup_label"));
            label.unwrap().crc32c = Some(0);
        }),
    ];
    let folder = scratch_folder();
    prepare(folder.path());
    let wal = wal_proof(folder.path());
    let sets = real_sets(folder.path());
    let lease = lease(&sets).unwrap();
    for (name, change) in changes {
        let incoming = sets.begin(&lease).unwrap();
        write(&incoming, &sample_stream(3)).unwrap();
        let mut files = sample_manifest(3);
        change(&mut files);
        let error = incoming.seal(Parts {
            backup_label: &label(3),
            tablespace_map: None,
            manifest: &manifest(3),
            files: &mut files.into_iter(),
            wal: &wal,
        });
        assert!(
            matches!(error, Err(SetError::Manifest { .. })),
            "{name}: {error:?}"
        );
        assert_eq!(sets.list().unwrap(), []);
        assert_eq!(leftovers(folder.path()), [""; 0]);
    }
}

#[test]
fn an_incremental_backup_is_not_sealed() {
    let folder = scratch_folder();
    prepare(folder.path());
    let wal = wal_proof(folder.path());
    let sets = real_sets(folder.path());
    let incoming = sets.begin(&lease(&sets).unwrap()).unwrap();
    let lines = b"INCREMENTAL FROM LSN: 0/200028\nINCREMENTAL FROM TLI: 1\n";
    let error = incoming.seal(Parts {
        backup_label: &[&label(3)[..], lines].concat(),
        tablespace_map: None,
        manifest: &manifest(3),
        files: &mut std::iter::empty(),
        wal: &wal,
    });
    let why = error.unwrap_err().to_string();
    assert!(why.contains("incremental"), "{why}");
}

#[test]
fn fault_60_a_set_without_its_wal_is_not_sealed() {
    let folder = scratch_folder();
    prepare(folder.path());
    let wal = wal_proof(folder.path());
    let sets = real_sets(folder.path());
    let lease = lease(&sets).unwrap();
    let text = String::from_utf8(label(3)).unwrap();
    let earlier = text.replace(
        "0/300028 (file 000000010000000000000003)",
        "0/200028 (file 000000010000000000000002)",
    );
    for label in ["", "START WAL LOCATION: 0/300028\n", &earlier] {
        let incoming = sets.begin(&lease).unwrap();
        write(&incoming, &sample_stream(3)).unwrap();
        let error = incoming.seal(Parts {
            backup_label: label.as_bytes(),
            tablespace_map: None,
            manifest: &manifest(3),
            files: &mut std::iter::empty(),
            wal: &wal,
        });
        assert!(
            matches!(error, Err(SetError::NotComplete { .. })),
            "{label}: {error:?}"
        );
    }
    let archive = open(&places(folder.path()));
    let first = "000000010000000000000003".parse().unwrap();
    let verify = crate::wal::segment::Verify::Records;
    let missing = |lsn| archive.prove_wal(first, Lsn(lsn), verify).unwrap();
    let next = "000000010000000000000004".parse().unwrap();
    assert_eq!(missing(0x40_0001), WalProof::Missing(next));
    assert!(matches!(missing(0x40_0000), WalProof::Durable(_)));
    push(&archive, &segment(5, 1)).unwrap();
    assert_eq!(missing(0x50_0001), WalProof::Missing(next));
    push(&archive, &segment(4, 1)).unwrap();
    let WalProof::Durable(proof) = missing(0x50_0001) else {
        panic!("a segment is missing")
    };
    assert_eq!(proof.first(), first);
    assert_eq!(proof.last().to_string(), "000000010000000000000005");
}

#[test]
fn older_sets_move_up_and_the_oldest_expire() {
    let folder = scratch_folder();
    prepare(folder.path());
    let wal = wal_proof(folder.path());
    let sets = real_sets(folder.path());
    let lease = lease(&sets).unwrap();
    for version in 1..=4 {
        back_up(&sets, &lease, version, &wal).unwrap();
    }
    let named = |names: &[(&str, u8)]| -> Vec<(String, u8)> {
        names
            .iter()
            .map(|(name, version)| ((*name).to_owned(), *version))
            .collect()
    };
    let all = named(&[
        ("data.master", 4),
        ("data.master.0", 3),
        ("data.master.1", 2),
        ("data.master.2", 1),
    ]);
    assert_eq!(versions(folder.path()).unwrap(), all);
    assert_eq!(
        sets.expire(&lease, keep(0), &mut no_archive)
            .unwrap()
            .removed,
        []
    );

    // archive_command sees the set under its name, and can stop the expiry.
    let refuse = |set: &Path| Err(format!("{} is not on tape", set.display()));
    let expiry = sets.expire(&lease, keep(2), &mut { refuse }).unwrap();
    let (name, why) = expiry.refused.unwrap();
    let oldest = folder.path().join("data.master.2");
    assert_eq!(name.to_string(), "data.master.2");
    assert_eq!(why, format!("{} is not on tape", oldest.display()));
    assert_eq!(versions(folder.path()).unwrap(), all);

    // A set that is being read stays, and so does one without a label.
    let held = sets.hold(&sets.newest().numbered(1).unwrap()).unwrap();
    std::fs::create_dir(folder.path().join("data.master.9")).unwrap();
    let expiry = sets.expire(&lease, keep(2), &mut no_archive).unwrap();
    assert_eq!(
        (expiry.removed.len(), expiry.in_use),
        (1, vec![held.name().clone()])
    );
    assert!(matches!(sets.take(held.name()), Err(SetError::Busy { .. })));
    drop(held);
    sets.expire(&lease, keep(2), &mut no_archive).unwrap();
    let why = versions(folder.path()).unwrap_err();
    assert!(why.contains("no backup_label"), "{why}");
    std::fs::remove_dir(folder.path().join("data.master.9")).unwrap();
    assert_eq!(versions(folder.path()).unwrap(), all[..2]);

    // A name that became free is used, and no other set moves.
    std::fs::remove_dir_all(folder.path().join("data.master.0")).unwrap();
    std::fs::create_dir(folder.path().join("data.master.0")).unwrap();
    std::fs::remove_dir_all(folder.path().join("data.master")).unwrap();
    back_up(&sets, &lease, 5, &wal).unwrap();
    std::fs::remove_dir(folder.path().join("data.master.0")).unwrap();
    assert_eq!(
        versions(folder.path()).unwrap(),
        named(&[("data.master", 5)])
    );
}

#[test]
fn a_rotation_or_a_second_set_never_touches_the_one_that_is_arriving() {
    let folder = scratch_folder();
    prepare(folder.path());
    let wal = wal_proof(folder.path());
    let sets = real_sets(folder.path());
    let lease = lease(&sets).unwrap();
    let incoming = sets.begin(&lease).unwrap();
    write(&incoming, &sample_stream(1)).unwrap();
    let busy = |error: SetError| assert!(matches!(error, SetError::Busy { .. }), "{error}");
    busy(sets.begin(&lease).map(drop).unwrap_err());
    busy(sets.recover(&lease).unwrap_err());
    busy(sets.expire(&lease, keep(1), &mut no_archive).unwrap_err());
    busy(
        sets.purge_wal(&lease, keep(0), None, &|_| Ok(Vec::new()))
            .unwrap_err(),
    );
    seal(incoming, 1, &wal).unwrap();
    assert_eq!(
        sets.recover(&lease).unwrap(),
        super::rotate::SetsRecovery::default()
    );
}

#[test]
fn a_set_is_taken_away_by_one_alone_and_not_in_the_middle_of_a_rotation() {
    let folder = scratch_folder();
    prepare(folder.path());
    let wal = wal_proof(folder.path());
    let sets = real_sets(folder.path());
    let lease = lease(&sets).unwrap();
    let absent = sets.take(sets.newest()).map(drop).unwrap_err();
    assert!(matches!(absent, SetError::Absent { .. }), "{absent}");
    back_up(&sets, &lease, 1, &wal).unwrap();
    let held = sets.hold(sets.newest()).unwrap();
    let second = sets.hold(sets.newest()).unwrap();
    assert!(sets.take(sets.newest()).is_err());
    drop((held, second));
    let taken = sets.take(sets.newest()).unwrap();
    assert_eq!(taken.label().label, "FullBackup");
    std::fs::remove_dir_all(taken.path()).unwrap();
    drop(taken);
    back_up(&sets, &lease, 2, &wal).unwrap();
    sets.write_intent(1).unwrap();
    assert!(matches!(
        sets.take(sets.newest()),
        Err(SetError::Busy { .. })
    ));
    for intent in ["", "{", "{\"format\":1}", "{\"format\":1,\"shifted\":-1}"] {
        std::fs::write(folder.path().join(".data.master.intent"), intent).unwrap();
        let error = sets.recover(&lease).unwrap_err();
        assert!(
            matches!(error, SetError::InTheWay { .. }),
            "{intent}: {error}"
        );
    }
    assert_eq!(
        versions(folder.path()).unwrap(),
        [("data.master".to_owned(), 2)]
    );
}

#[test]
fn fault_99_an_intent_of_a_newer_format_is_left_alone() {
    let folder = scratch_folder();
    prepare(folder.path());
    let sets = real_sets(folder.path());
    let intent = folder.path().join(".data.master.intent");
    std::fs::write(&intent, "{\"format\":2}").unwrap();
    let error = sets.recover(&lease(&sets).unwrap()).unwrap_err();
    let StoreError::NewerFormat { found: 2, .. } = (match error {
        SetError::Store(error) => error,
        other => panic!("{other}"),
    }) else {
        panic!("another error of the store")
    };
    assert!(intent.exists());
}

#[test]
fn removing_a_set_follows_no_link_out_of_it() {
    let folder = scratch_folder();
    prepare(folder.path());
    let wal = wal_proof(folder.path());
    let outside = folder.path().join("tablespace");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("16390"), "rows").unwrap();
    let sets = real_sets(folder.path());
    let lease = lease(&sets).unwrap();
    back_up(&sets, &lease, 1, &wal).unwrap();
    let links = folder.path().join("data.master/pg_tblspc");
    std::os::unix::fs::symlink(&outside, links.join("16400")).unwrap();
    std::os::unix::fs::symlink("..", links.join("up")).unwrap();
    back_up(&sets, &lease, 2, &wal).unwrap();
    let expiry = sets.expire(&lease, keep(1), &mut no_archive).unwrap();
    assert_eq!(expiry.removed.len(), 1);
    assert_eq!(std::fs::read(outside.join("16390")).unwrap(), b"rows");
    assert_eq!(
        versions(folder.path()).unwrap(),
        [("data.master".to_owned(), 2)]
    );
}

/// FAULTS 70: whatever is full or broken, the old sets stay, and the next backup works.
#[test]
fn fault_66_70_a_disk_that_fails_at_any_step_costs_no_set() {
    let steps = [
        Op::MakeDirectory,
        Op::Enter,
        Op::MakeFile,
        Op::Write,
        Op::Close,
        Op::MakeLink,
        Op::SyncEverything,
        Op::SyncFile,
        Op::Create,
        Op::Allocate,
        Op::RenameNew,
        Op::RenameOver,
        Op::SyncDirectory,
        Op::Entries,
        Op::RemoveName,
        Op::Stat,
        Op::StatAt,
        Op::Names,
    ];
    for op in steps {
        for errno in [Errno::NOSPC, Errno::IO] {
            for nth in [0, 1, 2, 4] {
                fail_once(op, nth, errno);
            }
        }
    }
}

fn fail_once(op: Op, nth: usize, errno: Errno) {
    let folder = scratch_folder();
    prepare(folder.path());
    let wal = wal_proof(folder.path());
    let good = real_sets(folder.path());
    back_up(&good, &lease(&good).unwrap(), 1, &wal).unwrap();
    let disk = FaultyDisk::over(real());
    let faulty: std::sync::Arc<dyn Disk> = disk.clone();
    let sets = sets(folder.path(), &faulty).unwrap();
    disk.fail(op, nth, 1, errno);
    let result = lease(&sets).and_then(|lease| back_up(&sets, &lease, 2, &wal));
    let what = format!("{op:?} {nth} {errno:?}: {result:?}");
    if result.is_err() && errno == Errno::IO && format!("{op:?}").starts_with("Sync") {
        assert!(matches!(sets.health(), Health::SyncFailed { .. }), "{what}");
        let again = lease(&sets).and_then(|lease| back_up(&sets, &lease, 3, &wal));
        assert!(again.is_err(), "{what}");
    }
    let lease = lease(&good).unwrap();
    let before: Vec<u8> = versions(folder.path())
        .unwrap()
        .into_iter()
        .map(|set| set.1)
        .collect();
    good.recover(&lease).unwrap();
    let after: Vec<u8> = versions(folder.path())
        .unwrap()
        .into_iter()
        .map(|set| set.1)
        .collect();
    assert!(
        before.contains(&1) && after.contains(&1),
        "{what}: {before:?} {after:?}"
    );
    assert!(result.is_err() || after == [2, 1], "{what}: {after:?}");
    assert_eq!(leftovers(folder.path()), [""; 0], "{what}");
    back_up(&good, &lease, 3, &wal).unwrap();
    assert_eq!(
        versions(folder.path()).unwrap()[0],
        ("data.master".to_owned(), 3),
        "{what}"
    );
}

#[test]
fn kernels_that_do_not_report_from_syncfs_get_a_sync_for_each_file() {
    let folder = scratch_folder();
    prepare(folder.path());
    let wal = wal_proof(folder.path());
    let disk = FaultyDisk::over(real());
    disk.fail(Op::SyncEverything, 0, usize::MAX, Errno::NOSYS);
    let old: std::sync::Arc<dyn Disk> = disk.clone();
    let sets = sets(folder.path(), &old).unwrap();
    back_up(&sets, &lease(&sets).unwrap(), 1, &wal).unwrap();
    let log = disk.log();
    let synced = |name: &str| log.contains(&(Op::SyncFile, name.to_owned()));
    assert!(synced("1259") && synced("pg_control") && synced("16390"));
    assert!(log.contains(&(Op::SyncDirectory, "PG_15_202209061".to_owned())));
}

#[test]
fn small_files_cost_no_sync_each() {
    let folder = scratch_folder();
    prepare(folder.path());
    let wal = wal_proof(folder.path());
    let disk = FaultyDisk::over(real());
    let counted: std::sync::Arc<dyn Disk> = disk.clone();
    let sets = sets(folder.path(), &counted).unwrap();
    back_up(&sets, &lease(&sets).unwrap(), 1, &wal).unwrap();
    let log = disk.log();
    let count = |op: Op| log.iter().filter(|(found, _)| *found == op).count();
    assert_eq!(count(Op::SyncEverything), 1);
    // Manifest, label and intent.
    assert_eq!(count(Op::SyncFile), 3);
}
