//! What gets a note when it arrives, and what takes it away again.
//! Never asks the model by itself. Invariant: a note is there before its file has its name.

use walmgr_protocol::names::Lsn;

use super::*;
use crate::store::apart_notes::APART_NAME;
use crate::store::checksums::CHECKSUMS_NAME;
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

/// A master that died amid a record of several segments, and the server that was promoted where that begins.
struct Promoted {
    /// Segments 3 to 6 of timeline 1; in the third a record begins that ends in the sixth.
    old: Vec<Sample>,
    history: Sample,
    /// Segments 3 and 4 of timeline 2.
    new: Vec<Sample>,
}

/// `begins_page`: whether the record that nobody ended is the first on its page.
fn promoted_amid_a_record(begins_page: bool) -> Promoted {
    const SIZE: usize = 1 << 20;
    let first = segment(3, 1).name.segment().unwrap();
    // Behind the switch that ends segment 2.
    let old = WalWriter::new(first, BINDING.segment_size, BINDING.system_id, 15);
    let mut old = old.following(Lsn(2 * SIZE as u64 + 40));
    while old.bytes().len() < SIZE / 2 {
        old.record(10, 0, &[5; 7_001]);
    }
    if begins_page {
        old.record(10, 0, &[5; 60]);
        let left = 8192 - usize::try_from(old.position().0 % 8192).unwrap();
        old.record(10, 0, &vec![5; left - 24]);
        assert!(old.position().0.is_multiple_of(8192), "{}", old.position());
    }
    let mut new = old.clone();
    let left_at = old.position();
    old.record(10, 0, &vec![6; 2 * SIZE + SIZE / 2 + SIZE / 4]);
    while old.bytes().len() < 4 * SIZE {
        old.record(10, 0, &[7; 7_001]);
    }
    let two = TimelineId::new(2).unwrap();
    new.set_timeline(two);
    while new.bytes().len() < 2 * SIZE {
        new.record(10, 0, &[8; 7_001]);
    }
    let samples = |writer: &WalWriter, timeline| {
        let pieces = (3..).zip(writer.bytes().chunks_exact(SIZE));
        let samples = pieces.map(|(number, bytes)| {
            let name = SegmentName::from_number(timeline, number, BINDING.segment_size);
            Sample {
                name: WalFileName::Segment(name),
                bytes: bytes.to_vec(),
            }
        });
        samples.collect()
    };
    Promoted {
        old: samples(&old, first.timeline()),
        history: Sample {
            name: WalFileName::History(two),
            bytes: format!("1\t{left_at}\tno recovery target specified\n").into_bytes(),
        },
        new: samples(&new, two),
    }
}

fn newest(archive: &Archive) -> u32 {
    archive.shared.lineage().unwrap().newest().unwrap().number()
}

#[test]
fn fault_303_a_record_that_nobody_ended_keeps_no_failover_apart() {
    for begins_page in [false, true] {
        let Promoted { old, history, new } = promoted_amid_a_record(begins_page);
        let [a, b, c, end] = &old[..] else {
            panic!("{} segments", old.len())
        };
        for order in [
            [a, b, c, &history, &new[0], &new[1]],
            [a, &history, b, c, &new[0], &new[1]],
            // The old one's last segments come when the new timeline is followed.
            [&history, a, &new[0], b, &new[1], c],
        ] {
            let folder = scratch_folder();
            let places = new_archive(folder.path());
            let archive = open_archive(&places);
            assert_stored(&archive, &segment(2, 1));
            for sample in order {
                assert_stored(&archive, sample);
            }
            let order = order.map(|sample| sample.name);
            assert_eq!(newest(&archive), 2, "{begins_page} {order:?}");
            let claimed = format!("{}.claimed", history.name);
            assert_eq!(note_names(&places), [claimed.as_str()], "{order:?}");
            drop(archive);
            // What is kept of a file is not synced: a power cut may take it.
            let kept = places.completed_wals.join(CHECKSUMS_NAME);
            std::fs::remove_file(kept.join(a.name.to_string())).unwrap();
            let archive = open_archive(&places);
            assert_eq!(newest(&archive), 2, "{begins_page} {order:?}");
            drop(archive);
            let archive = open_archive(&places);
            assert_eq!(newest(&archive), 2, "{begins_page} {order:?}");
            let _ = std::fs::remove_file(kept.join(a.name.to_string()));
            assert_stored(&archive, &segment(1, 1));
            assert_eq!(newest(&archive), 2, "{begins_page} {order:?}");
            drop(archive);
            let disk = FaultyDisk::over(crate::store::testing::real());
            for _ in 0..100 {
                disk.fail_named(Op::Read, &a.name.to_string(), rustix::io::Errno::IO);
            }
            let archive = Archive::open(&places, disk as Arc<dyn Disk>).unwrap();
            assert_eq!(newest(&archive), 2, "{begins_page} {order:?}");
            drop(archive);
            let archive = open_archive(&places);
            // It went on after all, and is ahead of the other.
            assert_stored(&archive, end);
            assert_eq!(newest(&archive), 1, "{begins_page} {order:?}");
        }
    }
}

#[test]
fn fault_303_an_end_that_nobody_kept_is_read_when_the_history_comes() {
    let Promoted { old, history, new } = promoted_amid_a_record(false);
    // Whether a start comes between, which keeps what it finds.
    for is_found in [false, true] {
        let folder = scratch_folder();
        let places = new_archive(folder.path());
        let mut archive = open_archive(&places);
        for sample in [&segment(2, 1), &old[0], &old[1]] {
            assert_stored(&archive, sample);
        }
        let kept = places.completed_wals.join(CHECKSUMS_NAME);
        std::fs::remove_file(kept.join(old[0].name.to_string())).unwrap();
        if is_found {
            drop(archive);
            archive = open_archive(&places);
        }
        for sample in [&history, &new[0]] {
            assert_stored(&archive, sample);
        }
        assert_eq!(newest(&archive), 2, "{is_found}");
    }
}

#[test]
fn fault_303_records_in_progress_may_end_amid_one_as_well() {
    let Promoted { old, history, new } = promoted_amid_a_record(false);
    // How many of the old one's are finished, and how many in progress behind them.
    for (finished, in_progress) in [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2)] {
        let folder = scratch_folder();
        let places = new_archive(folder.path());
        let archive = open_archive(&places);
        for sample in [&[segment(2, 1)][..], &old[..finished]].concat() {
            assert_stored(&archive, &sample);
        }
        drop(archive);
        for left in &old[finished..finished + in_progress] {
            let path = places.partial_wals.join(left.name.to_string());
            std::fs::write(path, &left.bytes).unwrap();
        }
        let archive = open_archive(&places);
        for sample in [&history, &new[0]] {
            assert_stored(&archive, sample);
        }
        assert_eq!(newest(&archive), 2, "{finished} {in_progress}");
    }
}

#[test]
fn fault_303_a_history_before_the_unended_record_stays_apart() {
    let Promoted { old, history, new } = promoted_amid_a_record(false);
    let left_at = String::from_utf8(history.bytes.clone()).unwrap();
    let left_at: Lsn = left_at.split('\t').nth(1).unwrap().parse().unwrap();
    let earlier = Lsn(left_at.0 - 7_032);
    let history = Sample {
        name: history.name,
        bytes: format!("1\t{earlier}\tforged\n").into_bytes(),
    };
    let folder = scratch_folder();
    let archive = open_archive(&new_archive(folder.path()));
    for sample in [&segment(2, 1), &old[0], &history, &new[0]] {
        assert_stored(&archive, sample);
    }
    assert_eq!(newest(&archive), 1);
}
