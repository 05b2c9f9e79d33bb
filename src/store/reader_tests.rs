//! What a reader of the archive hands out, says is absent, and knows without going through it.
//! Never needs a server. Invariant tested: what is handed out is what was stored, or an error.

use walmgr_protocol::names::{SegmentName, WalFileName};

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
fn fault_283_what_replay_may_not_get_past_is_the_same_either_way() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let segments = segments_with_obstacles();
    // The last comes first, so that what crosses is known with either.
    for sample in segments.iter().skip(1).chain(&segments[..1]) {
        assert_stored(&archive, sample);
    }
    let read = |sample: &Sample| {
        let reader = ArchiveReader::open(&places.completed_wals, real()).unwrap();
        let stored = reader.find(sample.name).unwrap().unwrap();
        let mut bytes = Vec::new();
        let obstacles = stored.read_verified(SegmentBefore::Read, |piece| {
            bytes.extend_from_slice(piece);
            true
        });
        assert_eq!(bytes, sample.bytes);
        let is_proven = stored.proven().is_some();
        (is_proven, obstacles.unwrap().all().to_vec())
    };
    let first: Vec<_> = segments.iter().map(&read).collect();
    assert!(first.iter().any(|(is_proven, _)| *is_proven), "{first:?}");
    assert!(first.iter().any(|(is_proven, _)| !is_proven), "{first:?}");
    // Nothing depends on the notes.
    std::fs::remove_dir_all(places.completed_wals.join(".obstacles")).unwrap();
    assert_eq!(segments.iter().map(&read).collect::<Vec<_>>(), first);
    // As where nobody knows that its records held.
    std::fs::remove_dir_all(places.completed_wals.join(".checksums")).unwrap();
    for (sample, (_, obstacles)) in segments.iter().zip(first) {
        assert_eq!(read(sample), (false, obstacles), "{}", sample.name);
    }
}

#[test]
fn fault_283_only_a_segment_whose_records_were_looked_at_is_proven() {
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
        stored.read_verified(SegmentBefore::Read, |_| true).unwrap();
        stored.proven().is_some()
    };
    assert!(is_proven(&sample));
    assert!(!is_proven(&other), "only its headers were looked at");
    let reader = ArchiveReader::open(&places.completed_wals, real()).unwrap();
    let stored = reader.find(sample.name).unwrap().unwrap();
    let ended = stored.read_verified(SegmentBefore::Read, |_| false);
    let why = ended.unwrap_err().to_string();
    assert!(why.contains("not read to its end"), "{why}");
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
