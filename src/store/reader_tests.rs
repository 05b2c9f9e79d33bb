//! What a reader of the archive hands out, says is absent, and knows without going through it.
//! Never needs a server. Invariant tested: what is handed out is what was stored, or an error.

use walmgr_protocol::names::{SegmentName, WalFileName};

use super::obstacle_notes;
use super::reader::{Absence, ArchiveReader, SegmentBefore};
use super::testing::{
    BINDING, Sample, assert_stored, history_file, names, new_archive, open, real, scratch_folder,
    segment,
};
use crate::wal::segment::Verify;
use crate::wal::writer::WalWriter;

fn name(text: &str) -> WalFileName {
    text.parse().unwrap()
}

#[test]
fn a_reader_works_beside_the_process_that_has_the_lock() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let reader = ArchiveReader::open(&places.completed_wals, real()).unwrap();
    let sample = segment(3, 1);
    assert!(reader.find(sample.name).unwrap().is_none());
    assert_stored(&archive, &sample);
    assert_eq!(reader.absence(sample.name).unwrap(), Absence::Appeared);
    let mut bytes = Vec::new();
    let stored = reader.find(sample.name).unwrap().unwrap();
    stored
        .read_verified(SegmentBefore::Read, |piece| {
            bytes.extend_from_slice(piece);
            true
        })
        .unwrap();
    assert_eq!(bytes, sample.bytes);
}

#[test]
fn fault_73_damage_is_an_error_and_the_file_stays() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let (sample, other) = (segment(3, 1), segment(4, 1));
    assert_stored(&archive, &sample);
    let path = places.completed_wals.join(sample.name.to_string());
    let mut flipped = sample.bytes.clone();
    flipped[50] ^= 1;
    let zeroed = vec![0; sample.bytes.len()];
    let short = sample.bytes[..sample.bytes.len() - 1].to_vec();
    let long = [&sample.bytes[..], &[0]].concat();
    for wrong in [flipped, zeroed, short, long, other.bytes, Vec::new()] {
        std::fs::write(&path, wrong).unwrap();
        let reader = ArchiveReader::open(&places.completed_wals, real()).unwrap();
        let stored = reader.find(sample.name).unwrap().unwrap();
        stored
            .read_verified(SegmentBefore::Read, |_| true)
            .unwrap_err();
        assert_eq!(names(&places), [sample.name.to_string()]);
    }
}

/// Segments with records that replay may not get past in them and across their ends.
fn segments_with_obstacles() -> Vec<Sample> {
    let first: SegmentName = "000000010000000000000003".parse().unwrap();
    let mut writer = WalWriter::new(first, BINDING.segment_size, BINDING.system_id, 15);
    let size = usize::try_from(BINDING.segment_size.bytes()).unwrap();
    writer.record(130, 0, &[7; 40]);
    writer.record(131, 0, &vec![7; size]);
    writer.record(132, 0, &[7; 40]);
    writer.record(133, 0, &vec![7; size * 2]);
    writer.record(134, 0, &[7; 40]);
    writer.switch();
    let mut segments = Vec::new();
    let mut name = Some(first);
    for bytes in writer.bytes().chunks(size) {
        let segment = name.unwrap();
        segments.push(Sample {
            name: WalFileName::Segment(segment),
            bytes: bytes.to_vec(),
        });
        name = segment.next(BINDING.segment_size);
    }
    segments
}

#[test]
fn fault_283_what_is_noted_of_a_segment_is_what_its_records_say() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let segments = segments_with_obstacles();
    // The last comes first, so that what crosses is noted beside either.
    for sample in segments.iter().skip(1).chain(&segments[..1]) {
        assert_stored(&archive, sample);
    }
    archive.note_older_obstacles(&|| false).unwrap();
    let read = |sample: &Sample, is_proven: bool| {
        let reader = ArchiveReader::open(&places.completed_wals, real()).unwrap();
        let stored = reader.find(sample.name).unwrap().unwrap();
        assert_eq!(
            stored.proven().unwrap().is_some(),
            is_proven,
            "{}",
            sample.name
        );
        let mut bytes = Vec::new();
        let obstacles = stored.read_verified(SegmentBefore::Read, |piece| {
            bytes.extend_from_slice(piece);
            true
        });
        assert_eq!(bytes, sample.bytes);
        obstacles.unwrap().all().to_vec()
    };
    let noted: Vec<_> = segments.iter().map(|sample| read(sample, true)).collect();
    assert!(noted.iter().flatten().count() >= 5, "{noted:?}");
    // As where nobody knows that its records held.
    let checksums = places.completed_wals.join(".checksums");
    std::fs::remove_dir_all(checksums).unwrap();
    for (sample, noted) in segments.iter().zip(noted) {
        assert_eq!(read(sample, false), noted, "{}", sample.name);
    }
}

#[test]
fn fault_283_a_segment_is_gone_through_unless_all_that_was_noted_is_there() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let (sample, other) = (segment(3, 1), segment(4, 1));
    assert_stored(&archive, &sample);
    let mut incoming = archive
        .begin(other.name, other.len(), Verify::Headers)
        .unwrap();
    incoming.write(&other.bytes).unwrap();
    incoming.seal(other.len(), other.crc32()).unwrap();
    let is_proven = |sample: &Sample| {
        let reader = ArchiveReader::open(&places.completed_wals, real()).unwrap();
        let stored = reader.find(sample.name).unwrap().unwrap();
        let proven = stored.proven().unwrap().is_some();
        stored.read_verified(SegmentBefore::Read, |_| true).unwrap();
        proven
    };
    assert!(is_proven(&sample));
    std::fs::remove_file(places.completed_wals.join(".obstacles/walked")).unwrap();
    assert!(!is_proven(&sample), "nobody looked for older ones yet");
    archive.note_older_obstacles(&|| false).unwrap();
    assert!(is_proven(&sample));
    assert!(!is_proven(&other), "only its headers were looked at");
    let WalFileName::Segment(segment) = sample.name else {
        unreachable!("it is one")
    };
    obstacle_notes::doubt(&archive.shared.completed, segment).unwrap();
    assert!(!is_proven(&sample), "its note is doubted");
    obstacle_notes::renew(&archive.shared.completed, segment, BINDING.segment_size).unwrap();
    assert!(is_proven(&sample));
}

#[test]
fn fault_72_only_a_file_with_nothing_behind_it_is_absent() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let reader = ArchiveReader::open(&places.completed_wals, real()).unwrap();
    let third = segment(3, 1).name;
    assert_eq!(reader.absence(third).unwrap(), Absence::Proven);
    assert_stored(&archive, &segment(2, 1));
    assert_stored(&archive, &history_file(2, "promoted"));
    assert_eq!(reader.absence(third).unwrap(), Absence::Proven);
    let fifth = segment(5, 1);
    assert_stored(&archive, &fifth);
    assert_eq!(reader.absence(third).unwrap(), Absence::Gap(fifth.name));
    let copy = |of: WalFileName| places.completed_wals.join(format!("{of}.damaged.1"));
    std::fs::write(copy(third), "x").unwrap();
    let damaged = Absence::OnlyDamaged(format!("{third}.damaged.1"));
    assert_eq!(reader.absence(third).unwrap(), damaged);
    // A damaged copy shows as well as a good file that there was something.
    std::fs::write(copy(segment(9, 1).name), "x").unwrap();
    let ninth = Absence::Gap(segment(9, 1).name);
    assert_eq!(reader.absence(segment(6, 1).name).unwrap(), ninth);
}

#[test]
fn a_timeline_lacks_nothing_from_before_it_began() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let reader = ArchiveReader::open(&places.completed_wals, real()).unwrap();
    // It leaves timeline 1 at 0/3000000: its first segment is number 0x30.
    let path = |text: &str| places.completed_wals.join(text);
    std::fs::write(path("000000020000000000000031"), "x").unwrap();
    let later = name("000000020000000000000031");
    let early = name("00000002000000000000002F");
    assert_eq!(reader.absence(early).unwrap(), Absence::Gap(later));
    assert_stored(&archive, &history_file(2, "promoted"));
    assert_eq!(reader.absence(early).unwrap(), Absence::Proven);
    let first = name("000000020000000000000030");
    assert_eq!(reader.absence(first).unwrap(), Absence::Gap(later));
    std::fs::write(path("00000002.history"), "nonsense").unwrap();
    assert!(reader.absence(early).is_err());
}
