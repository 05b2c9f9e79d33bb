//! What gets a note when it arrives, and what takes it away again.
//! Never asks the model by itself. Invariant: a note is there before its file has its name.

use super::*;
use crate::store::apart_notes::APART_NAME;
use crate::store::testing::{
    BINDING, FaultyDisk, Op, Sample, assert_stored, history_file, new_archive,
    open as open_archive, push, scratch_folder, segment,
};
use crate::store::{ArchiveFolders, Disk, FileSealed};
use crate::wal::segment::Verify;
use crate::wal::writer::WalWriter;

fn note_names(places: &ArchiveFolders) -> Vec<String> {
    let entries = std::fs::read_dir(places.completed_wals.join(APART_NAME));
    let names = entries.into_iter().flatten().flatten();
    let mut names: Vec<String> = names
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn fault_113_a_far_segment_stays_apart_until_its_run_arrives() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open_archive(&places);
    archive.set_ahead_max(2);
    assert_stored(&archive, &segment(3, 1));
    assert_stored(&archive, &segment(7, 1));
    let note = format!("{}.ahead", segment(7, 1).name);
    assert_eq!(note_names(&places), [note.as_str()]);
    assert!(archive.is_noted(segment(7, 1).name));
    drop(archive);
    let archive = open_archive(&places);
    for number in 4..6 {
        assert_stored(&archive, &segment(number, 1));
        assert_eq!(note_names(&places), [note.as_str()]);
    }
    assert_stored(&archive, &segment(6, 1));
    assert_eq!(note_names(&places), [""; 0]);
    // Nothing is looked up any more for the next one.
    assert!(!archive.shared.has_notes.load(Ordering::Relaxed));
}

#[test]
fn fault_113_a_start_joins_what_a_crash_left_apart() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open_archive(&places);
    archive.set_ahead_max(2);
    for number in [3, 7, 12] {
        assert_stored(&archive, &segment(number, 1));
    }
    assert_eq!(note_names(&places).len(), 2);
    drop(archive);
    // Published, and killed before the note was taken away.
    for number in 4..7 {
        let sample = segment(number, 1);
        let path = places.completed_wals.join(sample.name.to_string());
        std::fs::write(path, sample.bytes).unwrap();
    }
    let archive = open_archive(&places);
    let left = format!("{}.ahead", segment(12, 1).name);
    assert_eq!(note_names(&places), [left]);
    // A run begins where a backup set does.
    archive
        .begin_run(segment(12, 1).name.segment().unwrap())
        .unwrap();
    assert_eq!(note_names(&places), [""; 0]);
}

#[test]
fn fault_113_a_start_takes_away_notes_whose_files_are_gone() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open_archive(&places);
    archive.set_ahead_max(2);
    for number in [3, 7, 12] {
        assert_stored(&archive, &segment(number, 1));
    }
    drop(archive);
    // A purge that was killed between the files and their notes.
    let gone = places.completed_wals.join(segment(7, 1).name.to_string());
    std::fs::remove_file(gone).unwrap();
    let last = places.completed_wals.join(segment(12, 1).name.to_string());
    std::fs::rename(&last, last.with_extension("damaged")).unwrap();
    drop(open_archive(&places));
    let left = format!("{}.ahead", segment(12, 1).name);
    assert_eq!(note_names(&places), [left]);
}

#[test]
fn fault_110_a_note_names_who_brought_a_history_and_why_it_waits() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open_archive(&places);
    assert_stored(&archive, &segment(3, 1));
    let sample = history_file(9, "forged");
    let begun = archive.begin(sample.name, sample.len(), Verify::Records);
    let mut incoming = begun.unwrap().brought_by("thief\n(192.0.2.1:1)");
    incoming.write(&sample.bytes).unwrap();
    let sealed = incoming.seal(sample.len(), sample.crc32()).unwrap();
    assert!(matches!(sealed, FileSealed::Stored(_)));
    let told = told(&archive.shared.completed).unwrap();
    assert_eq!((told.len(), told[0].kind), (1, ApartKind::History));
    assert_eq!(told[0].by, "thief (192.0.2.1:1)");
    assert!(told[0].why.contains("there is no history of 2"), "{told:?}");
    // A note that a bit flipped in keeps its file apart all the same.
    let path = places
        .completed_wals
        .join(APART_NAME)
        .join("00000009.history.history");
    std::fs::write(path, [0xFF; 9]).unwrap();
    assert_eq!(
        archive.shared.lineage().unwrap().newest().unwrap().number(),
        1
    );
}

/// Stores a file as this peer.
fn store_by(archive: &crate::store::Archive, sample: &crate::store::testing::Sample, by: &str) {
    let begun = archive.begin(sample.name, sample.len(), Verify::Records);
    let mut incoming = begun.unwrap().brought_by(by);
    incoming.write(&sample.bytes).unwrap();
    let sealed = incoming.seal(sample.len(), sample.crc32()).unwrap();
    assert!(matches!(sealed, FileSealed::Stored(_)));
}

#[test]
fn fault_116_what_a_key_brings_in_vain_is_bounded_and_no_wal_goes_for_it() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open_archive(&places);
    archive.set_ahead_max(2);
    archive
        .shared
        .unfollowed_bytes_max
        .store(4 << 20, Ordering::Relaxed);
    let stored = |number: u64| {
        places
            .completed_wals
            .join(segment(number, 1).name.to_string())
            .exists()
    };
    store_by(&archive, &segment(3, 1), "db1 (192.0.2.1:1)");
    store_by(&archive, &segment(100, 1), "db1 (192.0.2.1:2)");
    for number in (200..220).step_by(2) {
        // From wherever it comes.
        let by = format!("thief (192.0.2.9:{number})");
        let sample = segment(number, 1);
        let begun = archive.begin(sample.name, sample.len(), Verify::Records);
        let mut incoming = begun.unwrap().brought_by(&by);
        incoming.write(&sample.bytes).unwrap();
        match incoming.seal(sample.len(), sample.crc32()) {
            Ok(FileSealed::Stored(_)) => assert!(number < 208, "{number} was stored"),
            Err(StoreError::Unfollowed { key, .. }) => {
                assert!(number >= 208 && key == "thief", "{number} was refused");
            }
            _ => panic!("{number} was neither stored nor refused"),
        }
    }
    let left: Vec<u64> = (200..220).filter(|number| stored(*number)).collect();
    assert_eq!(left, [200, 202, 204, 206]);
    assert!(stored(3) && stored(100));
    // What no reader ever asks for counts as well, whatever its length.
    for number in 0..10 {
        let sample = crate::store::testing::Sample {
            name: format!("0000000100000000000000{number:02X}.00000028.backup")
                .parse()
                .unwrap(),
            bytes: format!(
                "START WAL LOCATION: 0/{:X} (file 0000000100000000000000{number:02X})\n",
                (number << 20) + 0x28
            )
            .into_bytes(),
        };
        store_by(&archive, &sample, "thief (192.0.2.9:1)");
        // Ages are kept to the millisecond.
        std::thread::sleep(std::time::Duration::from_millis(3));
    }
    let names = std::fs::read_dir(&places.completed_wals).unwrap().flatten();
    let backups = names.filter(|entry| entry.file_name().to_string_lossy().ends_with(".backup"));
    assert_eq!(backups.count(), 4);
    assert!(stored(3) && stored(100) && stored(206));
    // The genuine run, however long, is followed and met by no bound.
    for number in 4..40 {
        store_by(&archive, &segment(number, 1), "db1 (192.0.2.1:1)");
    }
    assert!((3..40).all(stored));
}

#[test]
fn fault_116_the_last_room_is_kept_for_a_boot() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open_archive(&places);
    let completed = &archive.shared.completed;
    completed.keep_free("a file", 1, 1 << 20).unwrap();
    let refused = completed.keep_free("a file", 1, 1 << 60).unwrap_err();
    assert_eq!(refused.kind(), crate::error::Kind::ReceiverDisk);
    assert!(
        refused.to_string().contains("are kept free for a boot"),
        "{refused}"
    );
}

#[test]
fn fault_113_what_is_refused_sets_nothing_apart() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open_archive(&places);
    // Three segments of records that cross into the next one; the other fills begin within the second.
    let of = |fill: u8| -> Vec<Sample> {
        let first = segment(3, 1).name.segment().unwrap();
        let mut writer = WalWriter::new(first, BINDING.segment_size, BINDING.system_id, 15);
        while writer.bytes().len() < 3 << 20 {
            let is_common = writer.bytes().len() < (1 << 20) + 9_000;
            writer.record(10, 0, &[if is_common { 7 } else { fill }; 7_000]);
        }
        let pieces = (3..).zip(writer.bytes().chunks_exact(1 << 20));
        let samples = pieces.map(|(number, bytes)| Sample {
            name: segment(number, 1).name,
            bytes: bytes.to_vec(),
        });
        samples.take(3).collect()
    };
    let (genuine, forged) = (of(7), of(8));
    assert!(genuine[0].bytes == forged[0].bytes && genuine[1].bytes != forged[1].bytes);
    for number in [0, 2, 1] {
        assert_stored(&archive, &genuine[number]);
    }
    let early = format!("{}.early", genuine[2].name);
    assert_eq!(note_names(&places), [early.as_str()]);
    let refused = push(&archive, &forged[1]).unwrap();
    assert!(matches!(refused, FileSealed::Conflict { .. }));
    let differs = format!("{}.differs", genuine[1].name);
    assert_eq!(note_names(&places), [differs.as_str(), early.as_str()]);
}

#[test]
fn fault_113_only_an_acknowledged_file_heals_a_damaged_one_unjudged() {
    for (filler, is_genuine) in [(1, true), (2, false)] {
        let folder = scratch_folder();
        let places = new_archive(folder.path());
        let archive = open_archive(&places);
        archive.set_ahead_max(2);
        assert_stored(&archive, &segment(3, 1));
        let far = segment(100, 1);
        assert_stored(&archive, &far);
        archive.begin_run(far.name.segment().unwrap()).unwrap();
        assert_eq!(note_names(&places), [""; 0]);
        // The disk changed it, and it was set aside; its checksum stays.
        let path = places.completed_wals.join(far.name.to_string());
        std::fs::rename(&path, path.with_extension("damaged")).unwrap();
        assert_stored(&archive, &segment(100, filler));
        assert_eq!(archive.is_noted(far.name), !is_genuine, "{filler}");
    }
}

/// Many failovers leave many segments in progress, and each file that arrives is judged by all of them.
#[test]
fn fault_282_a_segment_in_progress_is_read_once_until_it_changes() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open_archive(&places);
    archive.set_ahead_max(2);
    // The second one stays apart, so whatever arrives is weighed.
    for number in [3, 90] {
        assert_stored(&archive, &segment(number, 1));
    }
    drop(archive);
    let left = segment(4, 1);
    let path = places.partial_wals.join(left.name.to_string());
    std::fs::write(&path, &left.bytes[..300_000]).unwrap();
    let disk = FaultyDisk::over(crate::store::testing::real());
    let archive = Archive::open(&places, Arc::clone(&disk) as Arc<dyn Disk>).unwrap();
    let mut number = 100;
    let mut ends_when_pushed = || {
        let reads = || {
            let log = disk.log().into_iter();
            log.filter(|(op, name)| *op == Op::Read && *name == left.name.to_string())
                .count()
        };
        std::thread::sleep(std::time::Duration::from_millis(50));
        let before = reads();
        number += 10;
        push(&archive, &segment(number, 1)).unwrap();
        let lineage = archive.shared.lineage().unwrap();
        let (_, progress) = lineage.facts().partials.first_key_value().unwrap();
        (reads() > before, progress.unwrap().end)
    };
    let (_, first) = ends_when_pushed();
    assert_eq!(ends_when_pushed(), (false, first));
    std::fs::write(&path, &left.bytes[..600_000]).unwrap();
    let (is_read, further) = ends_when_pushed();
    assert!(is_read, "what changed is read again");
    assert_eq!(ends_when_pushed(), (false, further));
}
