//! Segments that follow each other in progress, or come before the one before them.
//! Never talks to a server. Invariant tested: what crosses a boundary is seen, and what is led to is finished.

use super::*;
use crate::store::PartialWals;
use crate::wal::obstacle_walk::ObstacleWalk;

/// WAL over segments 3, 4 and 5, with records that cross from each into the next. What crosses into the second is
/// one of an unknown manager.
fn three_segments() -> Vec<Sample> {
    let mut writer = WalWriter::new(name(3), BINDING.segment_size, BINDING.system_id, 15);
    let size = usize::try_from(SIZE).unwrap();
    while writer.bytes().len() < 3 * size {
        let crosses = writer.bytes().len() < size && writer.bytes().len() + 8_000 > size;
        writer.record(if crosses { 130 } else { 10 }, 0, &[7; 7_000]);
    }
    let pieces = (3..6).zip(writer.bytes().chunks_exact(size));
    let sample = |(number, bytes): (u64, &[u8])| Sample {
        name: WalFileName::Segment(name(number)),
        bytes: bytes.to_vec(),
    };
    pieces.map(sample).collect()
}

/// Ships the beginning of a segment, up to whatever record ends in it.
fn ship(stream: &mut PartialStream, number: u64, bytes: &[u8]) -> Lsn {
    let opened = stream.open(&Open {
        segment: name(number),
        bytes: 0,
        crc32: 0,
    });
    assert_eq!(opened.unwrap().held_bytes, 0);
    let end = Lsn(number * SIZE + bytes.len() as u64);
    // No further than whole records go.
    stream.append(0, Lsn(number * SIZE), bytes).unwrap();
    stream.sync().unwrap();
    end
}

#[test]
fn fault_113_an_early_segment_counts_once_it_is_led_to() {
    let samples = three_segments();
    for restarted in [false, true] {
        let folder = scratch_folder();
        let places = new_archive(folder.path());
        let archive = open(&places);
        assert_stored(&archive, &samples[0]);
        ship(&mut begin(&archive), 5, &samples[2].bytes[..300_000]);
        assert_stored(&archive, &samples[2]);
        let early = places
            .completed_wals
            .join(format!(".apart/{}.early", name(5)));
        let shipped = places.partial_wals.join(name(5).to_string());
        assert!(!archive.settle_partial(samples[2].name).unwrap());
        assert!(early.exists() && shipped.exists());
        if restarted {
            drop(archive);
            let path = places.completed_wals.join(samples[1].name.to_string());
            std::fs::write(path, &samples[1].bytes).unwrap();
            open(&places);
        } else {
            assert_stored(&archive, &samples[1]);
            assert!(!archive.settle_partial(samples[1].name).unwrap());
        }
        assert!(!early.exists() && !shipped.exists(), "{restarted}");
        assert!(stored_bytes(&places, &samples[2]) == samples[2].bytes);
    }
}

#[test]
fn fault_113_an_early_segment_that_is_not_led_to_stays_marked() {
    let samples = three_segments();
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    assert_stored(&archive, &samples[0]);
    ship(&mut begin(&archive), 5, &samples[2].bytes[..300_000]);
    let mut writer = WalWriter::new(name(5), BINDING.segment_size, BINDING.system_id, 15);
    while writer.bytes().len() < samples[2].bytes.len() {
        writer.record(10, 0, &[9; 7_000]);
    }
    let forged = Sample {
        bytes: writer.bytes()[..samples[2].bytes.len()].to_vec(),
        ..samples[2].clone()
    };
    assert_stored(&archive, &forged);
    archive.settle_partial(forged.name).unwrap();
    assert_stored(&archive, &samples[1]);
    archive.settle_partial(samples[1].name).unwrap();
    let early = places
        .completed_wals
        .join(format!(".apart/{}.early", name(5)));
    let shipped = places.partial_wals.join(name(5).to_string());
    assert!(early.exists() && shipped.exists());
    // The genuine one takes its place.
    assert_stored(&archive, &samples[2]);
    archive.settle_partial(samples[2].name).unwrap();
    assert!(!early.exists() && !shipped.exists());
}

#[test]
fn fault_127_a_record_that_crosses_segments_in_progress_is_seen() {
    let samples = three_segments();
    // From a finished segment into one in progress, and between two in progress.
    for finished in [true, false] {
        let folder = scratch_folder();
        let places = new_archive(folder.path());
        let archive = open(&places);
        let mut stream = begin(&archive);
        match finished {
            true => assert_stored(&archive, &samples[0]),
            false => drop(ship(&mut stream, 3, &samples[0].bytes)),
        }
        ship(&mut stream, 4, &samples[1].bytes[..300_000]);
        let reader = ArchiveReader::open(&places.completed_wals, real()).unwrap();
        let before = |segment| reader.scanner_before(segment);
        let partials = PartialWals::open(&places.partial_wals, real()).unwrap();
        let found = partials.obstacles(&before).unwrap();
        let (last, met) = found.last().unwrap();
        assert_eq!((*last, met.all().len()), (name(4), 1), "{finished}");
        // So it is when the copies are handed out, one by one.
        let freeze = partials.freeze(timeline(1), "41 1700", false, |_| Ok(true), &before);
        let copies = freeze.unwrap().segments.unwrap();
        let copy = copies.last().unwrap();
        assert_eq!(
            (copy.segment, copies.len()),
            (name(4), if finished { 1 } else { 2 })
        );
        let scanner = partials.scanner_before_copy(copy.segment, &before).unwrap();
        let mut walk = ObstacleWalk::from(scanner.unwrap());
        let read = partials.read_copy(copy, |piece| {
            walk.update(piece);
            true
        });
        read.unwrap();
        assert_eq!(walk.obstacles().all().len(), 1, "{finished}");
    }
}
