//! What gave way to another file of its name, and what later offers do to it.
//! Never asks which of the files is the right one. Invariant: every byte that was acknowledged is in some file.

use std::path::Path;

use super::*;
use crate::store::differs::keep_history;
use crate::store::testing::{
    BINDING, Sample, assert_stored, history_file, names, new_archive, open, push, real,
    scratch_folder, segment, stored_bytes,
};
use crate::store::{Archive, ArchiveFolders, FileSealed, StoredUnderName};
use crate::wal::segment::Verify;
use crate::wal::writer::WalWriter;

/// A segment of valid records that go on with nothing.
fn forged(number: u64, fill: u8) -> Sample {
    let name = segment(number, 1).name;
    let first = name.segment().unwrap();
    let mut writer = WalWriter::new(first, BINDING.segment_size, BINDING.system_id, 15);
    while writer.bytes().len() < 1 << 20 {
        writer.record(10, 0, &[fill; 7_000]);
    }
    Sample {
        name,
        bytes: writer.bytes()[..1 << 20].to_vec(),
    }
}

fn is_kept(places: &ArchiveFolders, bytes: &[u8]) -> bool {
    let entries = std::fs::read_dir(&places.completed_wals).unwrap().flatten();
    let mut contents = entries.map(|entry| std::fs::read(entry.path()).unwrap_or_default());
    contents.any(|content| content == bytes)
}

fn at(places: &ArchiveFolders, sample: &Sample, end: &str) -> Option<Vec<u8>> {
    std::fs::read(places.completed_wals.join(format!("{}{end}", sample.name))).ok()
}

fn assert_refused(archive: &Archive, sample: &Sample) {
    let sealed = push(archive, sample).unwrap();
    assert!(matches!(sealed, FileSealed::Conflict { .. }), "{sealed:?}");
}

/// A forged fifth segment was acknowledged, and gave way to the genuine one.
fn displaced(root: &Path) -> (ArchiveFolders, Archive, Sample, Sample) {
    let places = new_archive(root);
    let archive = open(&places);
    let (forged, genuine) = (forged(5, 7), segment(5, 1));
    assert_stored(&archive, &segment(3, 1));
    assert_stored(&archive, &forged);
    assert_stored(&archive, &segment(4, 1));
    assert_stored(&archive, &genuine);
    assert_eq!(stored_bytes(&places, &genuine), genuine.bytes);
    (places, archive, forged, genuine)
}

#[test]
fn fault_113_what_gave_way_is_written_over_by_no_later_offer() {
    let folder = scratch_folder();
    let (places, archive, forged, genuine) = displaced(folder.path());
    assert_eq!(
        at(&places, &genuine, ".displaced").as_ref(),
        Some(&forged.bytes)
    );
    for filler in [2, 3] {
        let other = segment(5, filler);
        assert_refused(&archive, &other);
        assert!(is_kept(&places, &forged.bytes) && is_kept(&places, &genuine.bytes));
        assert_eq!(at(&places, &genuine, ".differs"), Some(other.bytes));
    }
    // It is kept already, and says who brought it.
    let before = names(&places);
    push(&archive, &forged).unwrap_err();
    assert_eq!(names(&places), before);
    assert!(
        archive
            .keeps_differing(forged.name, forged.len(), forged.crc32())
            .unwrap()
    );
    let reader = ArchiveReader::open(&places.completed_wals, real()).unwrap();
    let beside = reader.beside().unwrap();
    let copies = &beside[&forged.name];
    assert_eq!(copies.len(), 2);
    let displaced = copies
        .iter()
        .find(|it| it.kind == Beside::Displaced)
        .unwrap();
    // Its checksum went with it.
    assert_eq!(reader.copy_is_changed(displaced).unwrap(), None);
    let path = places.completed_wals.join(displaced.to_string());
    let mut bytes = forged.bytes;
    bytes[77_777] ^= 4;
    std::fs::write(path, bytes).unwrap();
    assert!(reader.copy_is_changed(displaced).unwrap().is_some());
}

#[test]
fn fault_113_an_offered_file_that_gets_the_name_is_not_kept_twice() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let (forged, genuine) = (forged(5, 7), segment(5, 1));
    assert_stored(&archive, &segment(3, 1));
    assert_stored(&archive, &forged);
    // Nothing is before it yet that it could be said to go on with.
    assert_refused(&archive, &genuine);
    assert_stored(&archive, &segment(4, 1));
    assert_stored(&archive, &genuine);
    assert_eq!(at(&places, &genuine, ".differs"), None);
    assert_eq!(at(&places, &genuine, ".displaced"), Some(forged.bytes));
}

#[test]
fn fault_110_histories_that_gave_way_are_kept_up_to_a_bound() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    assert_stored(&archive, &segment(3, 1));
    let history = |number: usize| Sample {
        bytes: format!("1\t0/FF00000\tforged {number}\n").into_bytes(),
        ..history_file(2, "")
    };
    for number in 0..=DISPLACED_MAX {
        assert_stored(&archive, &history(number));
    }
    for number in DISPLACED_MAX + 1..DISPLACED_MAX + 4 {
        assert_refused(&archive, &history(number));
    }
    let last = history(DISPLACED_MAX);
    assert_eq!(stored_bytes(&places, &last), last.bytes);
    for number in 0..=DISPLACED_MAX {
        assert!(is_kept(&places, &history(number).bytes), "{number}");
    }
    // A server that opens on this host gets its name all the same.
    let own = b"1\t0/400000\tno recovery target specified\n";
    let disk = || Arc::new(crate::store::RealDisk);
    assert!(!keep_history(&places.completed_wals, disk(), last.name, own).unwrap());
    assert!(is_kept(&places, own) && is_kept(&places, &last.bytes));
    assert_refused(&archive, &history(99));
    for number in 0..=DISPLACED_MAX {
        assert!(is_kept(&places, &history(number).bytes), "{number}");
    }
}

#[test]
fn fault_113_what_a_person_exchanged_is_written_over_by_no_later_offer() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let (stored, offered) = (segment(3, 1), segment(3, 2));
    assert_stored(&archive, &stored);
    assert_refused(&archive, &offered);
    drop(archive);
    let take = |end: &str| {
        let copy = CopyName::parse(&format!("{}{end}", stored.name)).unwrap();
        take_copy(&places.completed_wals, real(), &copy).unwrap()
    };
    assert_eq!(take(".differs"), format!("{}.displaced", stored.name));
    let archive = open(&places);
    assert_stored(&archive, &offered);
    assert_refused(&archive, &segment(3, 3));
    assert!(is_kept(&places, &stored.bytes) && is_kept(&places, &offered.bytes));
    drop(archive);
    // And back, with its checksum.
    take(".displaced");
    assert_eq!(stored_bytes(&places, &stored), stored.bytes);
    assert_eq!(
        at(&places, &stored, ".displaced"),
        Some(offered.bytes.clone())
    );
    let checksums = Checksums::open(
        &Folder::open(&places.completed_wals, real(), Arc::new(Monitor::new())).unwrap(),
    );
    let kept = checksums.read(stored.name).unwrap();
    assert_eq!(kept.contradicts(stored.len(), stored.crc32()), None);
    // A third one is put in its place: both that were stored stay.
    assert_eq!(take(".differs"), format!("{}.displaced.1", stored.name));
    let archive = open(&places);
    let held = archive.lookup(&stored.name, stored.len(), stored.crc32(), Verify::Records);
    assert!(matches!(held.unwrap(), StoredUnderName::Different { .. }));
    assert!(is_kept(&places, &stored.bytes) && is_kept(&places, &offered.bytes));
}

#[test]
fn fault_113_a_crash_between_the_two_names_leaves_one_copy() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let (forged, genuine) = (forged(5, 7), segment(5, 1));
    assert_stored(&archive, &segment(3, 1));
    assert_stored(&archive, &forged);
    assert_stored(&archive, &segment(4, 1));
    let path = |end: &str| places.completed_wals.join(format!("{}{end}", forged.name));
    std::fs::hard_link(path(""), path(".displaced")).unwrap();
    assert_stored(&archive, &genuine);
    assert_eq!(at(&places, &forged, ".displaced"), Some(forged.bytes));
    assert!(!path(".displaced.1").exists());
}
