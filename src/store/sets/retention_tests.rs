//! Pins, and the WAL between sets that need no way forward.
//! Never waits for a clock. Invariant tested: what a set that stays needs is there, and what went is noted.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::io::Errno;
use walmgr_protocol::names::BackupName;

use super::policy::{Keeping, PinnedWal};
use super::purge_tests::{plant_set, plant_wal, segment_name, stored};
use super::purged_note::PurgedStretches;
use super::testing::{keep, lease, prepare, real_sets, sets};
use super::{BackupSets, SetError, SetPin};
use crate::store::testing::scratch_folder;
use crate::store::testing::{FaultyDisk, Op};
use crate::store::{Disk, RealDisk};

fn pin(wal: PinnedWal) -> SetPin {
    SetPin {
        by: "test".to_owned(),
        since_ms: 0,
        note: "before the upgrade".to_owned(),
        wal,
    }
}

fn set_of(sets: &BackupSets, number: u32) -> BackupName {
    sets.newest().numbered(number).unwrap()
}

/// Three sets, the oldest at 20, and all WAL from 10 to 65.
fn prepare_three(root: &Path) -> BackupSets {
    prepare(root);
    for (name, number) in [
        ("data.master", 60),
        ("data.master.0", 40),
        ("data.master.1", 20),
    ] {
        plant_set(root, name, 1, number);
        let end = segment_name(1, number + 1);
        let text = format!(
            "START WAL LOCATION: 0/{:X} (file {})\nSTOP WAL LOCATION: 0/{:X} (file {end})\n",
            number << 20,
            segment_name(1, number),
            ((number + 1) << 20) + 0x100,
        );
        let history = format!("{}.00000000.backup", segment_name(1, number));
        let completed = crate::store::testing::places(root).completed_wals;
        std::fs::write(completed.join(history), text).unwrap();
    }
    for number in 10..=65 {
        plant_wal(root, &segment_name(1, number).to_string());
    }
    real_sets(root)
}

/// The segments that are there, of those that were planted.
fn segments(root: &Path) -> Vec<u64> {
    let names = stored(root);
    let is_there = |number: &u64| names.contains(&segment_name(1, *number).to_string());
    (10..=65).filter(is_there).collect()
}

fn expire(sets: &BackupSets, keeping: Keeping) -> (Vec<BackupName>, usize) {
    let nobody = |_: &Path| Ok(Vec::new());
    let to_come = sets.expiry(keeping).unwrap();
    let goes: Vec<BackupName> = (to_come.decided.iter())
        .filter(|set| set.goes())
        .map(|set| set.name.clone())
        .collect();
    let told = sets.purge_to_come((keeping, &goes), None, &nobody).unwrap();
    let lease = lease(sets).unwrap();
    let expiry = sets.expire(&lease, keeping, &mut |_| Ok(())).unwrap();
    let purged = sets.purge_wal(&lease, keeping, None, &nobody).unwrap();
    // What is told beforehand is what is done.
    assert_eq!((&to_come.decided, &told), (&expiry.decided, &purged));
    (expiry.removed, purged.files)
}

#[test]
fn fault_213_wal_that_a_pinned_set_needs_stays_and_the_rest_goes() {
    let folder = scratch_folder();
    let sets = prepare_three(folder.path());
    sets.pin(&set_of(&sets, 0), &pin(PinnedWal::ToItsEnd))
        .unwrap();
    let (removed, _) = expire(&sets, keep(1));
    assert_eq!(removed, [set_of(&sets, 1)]);
    let kept: Vec<u64> = [40, 41].into_iter().chain(60..=65).collect();
    assert_eq!(segments(folder.path()), kept);
    // What went between is no loss; whatever else is missing there is.
    let noted = PurgedStretches::read(&sets.completed);
    let covers = |first, last| noted.covers(segment_name(1, first), segment_name(1, last));
    assert!(covers(42, 59) && covers(50, 50));
    assert!(!covers(41, 59) && !covers(42, 60) && !covers(30, 39));

    // The pin goes with the set, whatever its name is.
    sets.make_room(&lease(&sets).unwrap()).unwrap();
    let moved = set_of(&sets, 1);
    assert_eq!(
        sets.pin_named(&moved).unwrap(),
        Some(pin(PinnedWal::ToItsEnd))
    );
    assert_eq!(sets.pin_named(&set_of(&sets, 0)).unwrap(), None);
    assert_eq!(expire(&sets, keep(1)), (Vec::new(), 0));
    assert!(sets.unpin(&moved).unwrap());
    assert!(!sets.unpin(&moved).unwrap());
    assert_eq!(expire(&sets, keep(1)).0, [moved]);
    assert_eq!(segments(folder.path()), (60..=65).collect::<Vec<_>>());
}

#[test]
fn fault_213_a_pin_with_all_wal_keeps_all_wal() {
    let folder = scratch_folder();
    let sets = prepare_three(folder.path());
    sets.pin(&set_of(&sets, 1), &pin(PinnedWal::All)).unwrap();
    assert_eq!(expire(&sets, keep(1)).0, [set_of(&sets, 0)]);
    assert_eq!(segments(folder.path()), (20..=65).collect::<Vec<_>>());
}

#[test]
fn fault_211_what_lies_in_the_place_of_a_pin_keeps_the_set() {
    let folder = scratch_folder();
    let sets = prepare_three(folder.path());
    let oldest = set_of(&sets, 1);
    sets.pin(&oldest, &pin(PinnedWal::ToItsEnd)).unwrap();
    let names = std::fs::read_dir(folder.path()).unwrap();
    let mut names = names.map(|entry| entry.unwrap().path());
    let is_pin = |path: &std::path::PathBuf| path.to_string_lossy().contains(".keep.");
    let file = names.find(is_pin).unwrap();
    for put in [
        |at: &Path| std::fs::write(at, "torn").unwrap(),
        |at: &Path| std::fs::create_dir(at).unwrap(),
        |at: &Path| std::os::unix::fs::symlink("/nowhere", at).unwrap(),
    ] {
        std::fs::remove_file(&file).unwrap();
        put(&file);
        assert_eq!(expire(&sets, keep(2)).0, []);
        // All WAL stays where nobody can tell how much is wanted.
        assert_eq!(segments(folder.path())[0], 20);
        assert_eq!(sets.list().unwrap().len(), 3);
        if file.is_dir() {
            assert!(sets.pin(&oldest, &pin(PinnedWal::All)).is_err());
            std::fs::remove_dir(&file).unwrap();
            std::fs::write(&file, "").unwrap();
        }
        // Only what a person says ends it.
        std::fs::remove_file(&file).unwrap();
        sets.pin(&oldest, &pin(PinnedWal::All)).unwrap();
    }
}

#[test]
fn fault_211_a_set_that_is_pinned_while_it_is_to_go_stays() {
    let folder = scratch_folder();
    let sets = prepare_three(folder.path());
    let lease = lease(&sets).unwrap();
    let mut pin_it = |path: &Path| {
        let text = path.file_name().unwrap().to_str().unwrap();
        let name = sets.newest().parse_sibling(text).unwrap();
        sets.pin(&name, &pin(PinnedWal::All))
            .map_err(|error| error.to_string())
    };
    let expiry = sets.expire(&lease, keep(1), &mut pin_it).unwrap();
    assert_eq!(expiry.removed, []);
    assert_eq!(sets.list().unwrap().len(), 3);
    let absent = sets.pin(&set_of(&sets, 7), &pin(PinnedWal::All));
    assert!(matches!(absent, Err(SetError::Absent { .. })));
}

#[test]
fn fault_299_an_archive_that_moves_keeps_its_months() {
    let folder = scratch_folder();
    let sets = prepare_three(folder.path());
    // As it is behind `cp -a`, `rsync -a` or `chown -R`: every inode was changed just now.
    let month = Duration::from_secs(31 * 86_400);
    for (number, name) in ["data.master", "data.master.0", "data.master.1"]
        .iter()
        .enumerate()
    {
        let label = folder.path().join(name).join("backup_label");
        let label = std::fs::File::options().write(true).open(label).unwrap();
        let made = SystemTime::now() - month * u32::try_from(number).unwrap();
        label.set_modified(made).unwrap();
    }
    let keeping = Keeping {
        monthly: 3,
        ..keep(1)
    };
    assert_eq!(expire(&sets, keeping).0, []);
    // A time to come is nobody's.
    let label = folder.path().join("data.master/backup_label");
    let label = std::fs::File::options().write(true).open(label).unwrap();
    label.set_modified(SystemTime::now() + month * 40).unwrap();
    let newest = &sets.list().unwrap()[0];
    assert!(newest.written_ms == newest.sealed_ms);
    let keeping = Keeping {
        monthly: 2,
        ..keep(1)
    };
    assert_eq!(expire(&sets, keeping).0, [set_of(&sets, 1)]);
}

#[test]
fn fault_299_a_set_whose_pin_cannot_be_read_stays() {
    let folder = scratch_folder();
    drop(prepare_three(folder.path()));
    let disk = FaultyDisk::over(Arc::new(RealDisk));
    let sets = sets(folder.path(), &(disk.clone() as Arc<dyn Disk>)).unwrap();
    let oldest = set_of(&sets, 1);
    let expired = sets.expire(&lease(&sets).unwrap(), keep(2), &mut |_| {
        // Pinned while `archive_command` runs.
        sets.pin(&oldest, &pin(PinnedWal::ToItsEnd)).unwrap();
        disk.fail(Op::StatAt, 0, 1, Errno::IO);
        Ok(())
    });
    assert!(
        matches!(expired, Err(SetError::Damaged { .. })),
        "{expired:?}"
    );
    assert!(folder.path().join("data.master.1/backup_label").exists());
}
