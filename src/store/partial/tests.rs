//! The partial stream against files, restarts and pushes, without a network.
//! Never talks to a server. Invariant tested: what was acknowledged is there and is WAL, and what
//! is behind it is zeros.

mod crossing;
mod disk;
mod freeze;
mod proven;
mod rewrite;

use walmgr_protocol::message::partial::{At, Open};
use walmgr_protocol::names::{Lsn, SegmentName, TimelineId, WalFileName};
use walmgr_protocol::session::partial::ProofOfRecords;

use crate::store::partial::Finishing;
use crate::store::testing::{
    BINDING, Sample, assert_stored, history_file, names, new_archive, open, push, real,
    scratch_folder, stored_bytes,
};
use crate::store::{Archive, ArchiveFolders, ArchiveReader, FileSealed, PartialStream, StoreError};
use crate::wal::segment::Verify;
use crate::wal::writer::WalWriter;

const SIZE: u64 = 1 << 20;

fn timeline(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

fn name(number: u64) -> SegmentName {
    SegmentName::from_number(timeline(1), number, BINDING.segment_size)
}

/// WAL from segment 3 on, and where each of its records ends.
struct Wal {
    bytes: Vec<u8>,
    ends: Vec<u64>,
}

impl Wal {
    /// Records of these lengths; another `fill` gives other records.
    fn of(bodies: &[usize], fill: u8) -> Wal {
        let mut writer = WalWriter::new(name(3), BINDING.segment_size, BINDING.system_id, 15);
        let ends = bodies.iter().map(|body| {
            let record = writer.record(10, 0, &vec![fill; *body]);
            record.end.0 - 3 * SIZE
        });
        let ends = ends.collect();
        Wal {
            bytes: writer.bytes().to_vec(),
            ends,
        }
    }

    /// The whole segment: the records, a switch, zeros.
    fn finished(bodies: &[usize], fill: u8) -> Sample {
        let mut writer = WalWriter::new(name(3), BINDING.segment_size, BINDING.system_id, 15);
        for body in bodies {
            writer.record(10, 0, &vec![fill; *body]);
        }
        writer.switch();
        let name = WalFileName::Segment(name(3));
        let bytes = writer.bytes().to_vec();
        assert_eq!(bytes.len() as u64, SIZE);
        Sample { name, bytes }
    }
}

fn begin(archive: &Archive) -> PartialStream {
    archive.partial_stream(timeline(1)).unwrap().0
}

fn open_with(stream: &mut PartialStream, ours: &[u8]) -> Result<At, StoreError> {
    stream.open(&Open {
        segment: name(3),
        bytes: ours.len() as u64,
        crc32: crc32fast::hash(ours),
    })
}

/// Appends a range of the WAL and returns the end that was proven.
fn append(stream: &mut PartialStream, wal: &Wal, from: u64, to: u64) -> Result<Lsn, StoreError> {
    let range = usize::try_from(from).unwrap()..usize::try_from(to).unwrap();
    let whole = wal.ends.iter().filter(|end| **end <= to).max();
    let end = Lsn(3 * SIZE + whole.copied().unwrap_or(0));
    stream.append(from, end, &wal.bytes[range])?;
    Ok(stream.sync()?.end())
}

fn on_disk(places: &ArchiveFolders) -> Vec<u8> {
    std::fs::read(places.partial_wals.join(name(3).to_string())).unwrap()
}

#[track_caller]
fn assert_holds(places: &ArchiveFolders, wal: &Wal, to: u64) {
    let found = on_disk(places);
    let to = usize::try_from(to).unwrap();
    assert_eq!(found.len() as u64, SIZE);
    assert!(found[..to] == wal.bytes[..to], "other bytes");
    assert!(found[to..].iter().all(|byte| *byte == 0), "no zeros behind");
}

#[test]
fn fault_42_records_are_held_and_found_again_by_reading() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    // The third needs several pages, the last ends with its page.
    let wal = Wal::of(&[8, 100, 30_000, 500, 9_000], 7);
    let mut from = 0;
    for end in wal.ends.clone() {
        let archive = open(&places);
        let mut stream = begin(&archive);
        let at = open_with(&mut stream, &wal.bytes).unwrap();
        assert_eq!((at.held_bytes, at.common_bytes), (from, from));
        let held = &wal.bytes[..usize::try_from(from).unwrap()];
        assert_eq!(at.common_crc32, crc32fast::hash(held));
        let proven = append(&mut stream, &wal, from, end).unwrap();
        assert_eq!(proven, Lsn(3 * SIZE + end));
        assert_holds(&places, &wal, end);
        drop((stream, archive));
        let archive = open(&places);
        assert_eq!(archive.recovery().partials, [(name(3), proven)]);
        from = end;
    }
}

#[test]
fn a_record_longer_than_an_append_counts_when_its_last_byte_is_there() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let mut stream = begin(&archive);
    let wal = Wal::of(&[100, 90_000], 7);
    open_with(&mut stream, &wal.bytes).unwrap();
    let first = Lsn(3 * SIZE + wal.ends[0]);
    let mut from = 0;
    for to in [wal.ends[0] + 10, 40_000, 80_000] {
        assert_eq!(append(&mut stream, &wal, from, to).unwrap(), first);
        from = to;
    }
    let whole = append(&mut stream, &wal, from, wal.ends[1]).unwrap();
    assert_eq!(whole, Lsn(3 * SIZE + wal.ends[1]));
}

#[test]
fn fault_43_46_what_is_behind_the_last_record_is_cleared_before_the_next() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let wal = Wal::of(&[100, 200, 300, 400], 7);
    append(
        &mut {
            let mut stream = begin(&open(&places));
            open_with(&mut stream, &wal.bytes).unwrap();
            stream
        },
        &wal,
        0,
        wal.ends[1],
    )
    .unwrap();
    let path = places.partial_wals.join(name(3).to_string());
    let end = usize::try_from(wal.ends[1]).unwrap();
    let mut torn = on_disk(&places);
    // Half a record, and something from nowhere far behind.
    torn[end..end + 40].copy_from_slice(&wal.bytes[end..end + 40]);
    torn[900_000..900_100].fill(0xAA);
    std::fs::write(&path, &torn).unwrap();
    let archive = open(&places);
    let mut stream = begin(&archive);
    assert_eq!(
        open_with(&mut stream, &wal.bytes).unwrap().held_bytes,
        wal.ends[1]
    );
    assert_holds(&places, &wal, wal.ends[1]);
    append(&mut stream, &wal, wal.ends[1], wal.ends[3]).unwrap();
    assert_holds(&places, &wal, wal.ends[3]);
    // A crash while the file was created leaves it short, or of zeros.
    drop(stream);
    for empty in [&[][..], &[0; 100]] {
        std::fs::write(&path, empty).unwrap();
        let mut stream = begin(&archive);
        assert_eq!(open_with(&mut stream, &wal.bytes).unwrap().held_bytes, 0);
        append(&mut stream, &wal, 0, wal.ends[0]).unwrap();
        assert_holds(&places, &wal, wal.ends[0]);
    }
}

#[test]
fn what_is_no_record_is_refused_and_never_held() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let wal = Wal::of(&[100, 200], 7);
    let end = Lsn(3 * SIZE + wal.ends[0]);
    let first = &wal.bytes[..usize::try_from(wal.ends[0]).unwrap()];
    let mut flipped = first.to_vec();
    flipped[60] ^= 1;
    let mut foreign = first.to_vec();
    foreign[24] ^= 1;
    let zeros = vec![0; first.len()];
    for wrong in [&flipped[..], &foreign, &zeros, &first[..60]] {
        let mut stream = begin(&archive);
        open_with(&mut stream, &wal.bytes).unwrap();
        let error = stream.append(0, end, wrong).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        // Only records make a file.
        assert!(!places.partial_wals.join(name(3).to_string()).exists());
    }
}

#[test]
fn fault_47_48_rewritten_tail_ends_what_was_held_of_the_old_one() {
    let old = Wal::of(&[100, 200, 300, 400], 7);
    let mut anew = Wal::of(&[100, 200, 350, 20, 20, 9_000], 7);
    anew.bytes.truncate(usize::try_from(anew.ends[5]).unwrap());
    // In one append, in two with the difference in the second, and with the difference cut.
    for cuts in [
        vec![anew.ends[5]],
        vec![anew.ends[0], anew.ends[5]],
        vec![anew.ends[1] + 30, anew.ends[5]],
    ] {
        let folder = scratch_folder();
        let places = new_archive(folder.path());
        let archive = open(&places);
        let mut stream = begin(&archive);
        open_with(&mut stream, &old.bytes).unwrap();
        append(&mut stream, &old, 0, old.ends[3]).unwrap();
        let later = places.partial_wals.join(name(4).to_string());
        std::fs::write(&later, "of the old tail").unwrap();
        let mut stream = begin(&archive);
        let at = open_with(&mut stream, &anew.bytes).unwrap();
        assert_eq!(at.held_bytes, old.ends[3]);
        let ours = &anew.bytes[..usize::try_from(at.common_bytes).unwrap()];
        assert_ne!(at.common_crc32, crc32fast::hash(ours));
        stream.rewrite().unwrap();
        let mut from = 0;
        for to in cuts {
            append(&mut stream, &anew, from, to).unwrap();
            from = to;
        }
        assert_holds(&places, &anew, anew.ends[5]);
        assert!(!later.exists(), "what followed the old tail is aside");
        assert!(later.with_extension("differs").exists());
        let at = open_with(&mut stream, &anew.bytes).unwrap();
        assert_eq!(at.common_crc32, crc32fast::hash(&anew.bytes));
    }
}

#[test]
fn a_rewrite_that_differs_nowhere_drops_nothing() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let wal = Wal::of(&[100, 200, 300], 7);
    let mut stream = begin(&archive);
    open_with(&mut stream, &wal.bytes).unwrap();
    append(&mut stream, &wal, 0, wal.ends[1]).unwrap();
    open_with(&mut stream, &wal.bytes).unwrap();
    stream.rewrite().unwrap();
    append(&mut stream, &wal, 0, wal.ends[0]).unwrap();
    assert_holds(&places, &wal, wal.ends[1]);
    append(&mut stream, &wal, wal.ends[0], wal.ends[2]).unwrap();
    assert_holds(&places, &wal, wal.ends[2]);
}

#[test]
fn fault_49_a_timeline_needs_its_history_and_ends_the_one_before() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let missing = archive.partial_stream(timeline(2)).err().unwrap();
    assert!(matches!(missing, StoreError::HistoryMissing { .. }));
    assert_stored(&archive, &history_file(2, "promoted"));
    let (_, standing) = archive.partial_stream(timeline(2)).unwrap();
    assert_eq!(standing.newest_partial, None);
    // Its history is apart as long as no WAL leads there, and nobody has to give way to it.
    assert!(!standing.is_settled);
    // A history alone ends nothing: it leaves timeline 1 where that one has not come yet.
    archive.partial_stream(timeline(1)).unwrap();
    // That of a boot does, which no key brought.
    let booted = places.completed_wals.join("00000003.history");
    std::fs::write(booted, "1\t0/3000000\tbooted\n").unwrap();
    let old = archive.partial_stream(timeline(1)).err().unwrap();
    assert!(matches!(old, StoreError::Diverged { .. }), "{old}");
    assert!(old.to_string().contains("timeline 3 already"));
}

#[test]
fn fault_50_a_master_from_another_past_is_refused() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    assert_stored(&archive, &Wal::finished(&[100, 200], 7));
    let mut stream = begin(&archive);
    let same = Wal::of(&[100, 200], 7);
    let at = open_with(&mut stream, &same.bytes).unwrap();
    assert_eq!((at.held_bytes, at.common_bytes), (SIZE, same.ends[1]));
    assert_eq!(at.common_crc32, crc32fast::hash(&same.bytes));
    let other = Wal::of(&[100, 300], 7);
    let at = open_with(&mut stream, &other.bytes).unwrap();
    assert_ne!(at.common_crc32, crc32fast::hash(&other.bytes));
    let refused = stream.rewrite().unwrap_err();
    assert!(matches!(refused, StoreError::Diverged { .. }), "{refused}");
}

/// A push of this file by a client that sends what is asked for.
fn finish(archive: &Archive, sample: &Sample) -> Result<FileSealed, StoreError> {
    let Some(mut held) = archive.held_prefix(sample.name, Verify::Records)? else {
        return push(archive, sample);
    };
    let (bytes, crc32) = held.prefix();
    let prefix = usize::try_from(bytes).unwrap();
    if crc32 != crc32fast::hash(&sample.bytes[..prefix]) {
        drop(held);
        let sealed = push(archive, sample)?;
        archive.settle_partial(sample.name)?;
        return Ok(sealed);
    }
    for block in sample.bytes[prefix..].chunks(10_000) {
        held.write(block)?;
    }
    let sealed = held.seal(sample.len(), sample.crc32())?;
    archive.settle_partial(sample.name)?;
    Ok(sealed)
}

#[test]
fn a_segment_is_finished_in_place_with_what_is_missing_of_it() {
    let bodies = [100, 200, 30_000, 400];
    let (wal, whole) = (Wal::of(&bodies, 7), Wal::finished(&bodies, 7));
    for held in [wal.ends[0], wal.ends[2], wal.ends[3]] {
        let folder = scratch_folder();
        let places = new_archive(folder.path());
        let archive = open(&places);
        let mut stream = begin(&archive);
        open_with(&mut stream, &wal.bytes).unwrap();
        append(&mut stream, &wal, 0, held).unwrap();
        let prefix = archive.held_prefix(whole.name, Verify::Records).unwrap();
        assert_eq!(prefix.unwrap().prefix().0, held);
        let FileSealed::Stored(proof) = finish(&archive, &whole).unwrap() else {
            panic!("not stored");
        };
        assert_eq!((proof.len(), proof.crc32()), (whole.len(), whole.crc32()));
        let path = places.completed_wals.join(whole.name.to_string());
        assert!(std::fs::read(path).unwrap() == whole.bytes);
        assert!(!places.partial_wals.join(name(3).to_string()).exists());
        // The stream that was at it is told, and finds it complete.
        let from = held;
        if from < wal.ends[3] {
            let error = append(&mut stream, &wal, from, wal.ends[3]).unwrap_err();
            assert!(matches!(error, StoreError::Finished { .. }), "{error}");
        }
        let at = open_with(&mut begin(&archive), &whole.bytes).unwrap();
        assert_eq!((at.held_bytes, at.common_crc32), (SIZE, whole.crc32()));
    }
}

/// Waits for the thread that reads a whole segment, and returns what it found.
fn wait_until_read_back(archive: &Archive) -> u32 {
    let begun = std::time::Instant::now();
    loop {
        if let Some(read_back) = archive.shared.partials.of(name(3)).read_back {
            return read_back.crc32;
        }
        assert!(begun.elapsed().as_secs() < 60, "it was not read back");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn fault_37_segment_shipped_whole_is_finished_unless_the_disk_changed_it() {
    let (wal, whole) = (Wal::of(&[100, 200], 7), Wal::finished(&[100, 200], 7));
    // The switch is a record of 24 bytes, and all that the server has to say of this segment.
    let shipped_bytes = wal.ends[1].next_multiple_of(8) + 24;
    let shipped = &whole.bytes[..usize::try_from(shipped_bytes).unwrap()];
    for (rotten, read_back) in [(false, false), (true, false), (false, true), (true, true)] {
        let folder = scratch_folder();
        let places = new_archive(folder.path());
        let archive = open(&places);
        let mut stream = begin(&archive);
        open_with(&mut stream, shipped).unwrap();
        stream
            .append(0, Lsn(3 * SIZE + shipped_bytes), shipped)
            .unwrap();
        stream.sync().unwrap();
        let held = archive.held_prefix(whole.name, Verify::Records).unwrap();
        assert_eq!(held.unwrap().prefix(), (SIZE, whole.crc32()));
        if read_back {
            assert_eq!(wait_until_read_back(&archive), whole.crc32());
        }
        let path = places.completed_wals.join(whole.name.to_string());
        if rotten {
            let mut found = on_disk(&places);
            found[50] ^= 1;
            std::fs::write(places.partial_wals.join(name(3).to_string()), found).unwrap();
            let refused = finish(&archive, &whole).unwrap_err();
            assert!(matches!(refused, StoreError::Rotten { .. }), "{refused}");
            assert!(!path.exists());
        }
        // The attempt after a refusal reads what is there, and takes the whole file.
        assert!(matches!(
            finish(&archive, &whole).unwrap(),
            FileSealed::Stored(_)
        ));
        assert!(std::fs::read(path).unwrap() == whole.bytes);
    }
}

#[test]
fn fault_127_obstacles_of_a_shipped_segment_are_noted_without_its_scanner() {
    let writer = |switched: bool| {
        let mut writer = WalWriter::new(name(3), BINDING.segment_size, BINDING.system_id, 15);
        writer.record(10, 0, &[7; 100]);
        writer.record(130, 0, &[7; 40]);
        if switched {
            writer.switch();
        }
        writer.bytes().to_vec()
    };
    let (shipped_bytes, bytes) = (writer(false).len().next_multiple_of(8) + 24, writer(true));
    let whole = Sample {
        name: WalFileName::Segment(name(3)),
        bytes,
    };
    for (verify, is_forgotten) in [
        (Verify::Records, false),
        (Verify::Records, true),
        (Verify::Headers, false),
    ] {
        let folder = scratch_folder();
        let places = new_archive(folder.path());
        let archive = open(&places);
        let mut stream = begin(&archive);
        let shipped = &whole.bytes[..shipped_bytes];
        open_with(&mut stream, shipped).unwrap();
        let end = Lsn(3 * SIZE + shipped_bytes as u64);
        stream.append(0, end, shipped).unwrap();
        stream.sync().unwrap();
        if is_forgotten {
            (archive.shared.carried).put(name(3), Verify::Records, None, None);
        }
        let held = archive.held_prefix(whole.name, verify).unwrap().unwrap();
        assert_eq!(held.prefix(), (SIZE, whole.crc32()));
        assert!(matches!(
            held.seal(SIZE, whole.crc32()).unwrap(),
            FileSealed::Stored(_)
        ));
        let reader = ArchiveReader::open(&places.completed_wals, real()).unwrap();
        let found = reader.obstacles().unwrap();
        assert_eq!(found[&name(3)].all().len(), 1, "{verify:?} {is_forgotten}");
    }
}

/// A push of a whole segment of which a beginning was shipped, and where its rest begins.
fn begin_push(archive: &Archive, whole: &Sample) -> (Finishing, usize) {
    let held = archive.held_prefix(whole.name, Verify::Records).unwrap();
    let held = held.expect("a beginning is held");
    let from = usize::try_from(held.prefix().0).unwrap();
    (held, from)
}

#[test]
fn fault_102_a_push_never_changes_what_the_stream_appended() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let wal = Wal::of(&[100, 200, 300], 7);
    let mut stream = begin(&archive);
    open_with(&mut stream, &wal.bytes).unwrap();
    append(&mut stream, &wal, 0, wal.ends[0]).unwrap();
    let other = Wal::finished(&[100, 900, 300], 7);
    let (mut held, from) = begin_push(&archive, &other);
    // Appended and not synced yet when the push brings its own bytes.
    let range = from..usize::try_from(wal.ends[2]).unwrap();
    let end = Lsn(3 * SIZE + wal.ends[2]);
    stream
        .append(wal.ends[0], end, &wal.bytes[range.clone()])
        .unwrap();
    held.write(&other.bytes[from..from + 4_000]).unwrap();
    assert_eq!(stream.sync().unwrap().end(), end);
    assert_holds(&places, &wal, wal.ends[2]);
    // One that breaks off leaves nothing, one that is no WAL neither.
    drop(held);
    let (mut held, _) = begin_push(&archive, &other);
    held.write(&[9; 50]).unwrap_err();
    assert_holds(&places, &wal, wal.ends[2]);
    assert_eq!(names(&places), Vec::<String>::new());
}

#[test]
fn fault_108_a_push_beside_the_stream_is_stored_at_the_first_try() {
    let bodies = [100, 9_000, 300, 20_000];
    let (wal, whole) = (Wal::of(&bodies, 7), Wal::finished(&bodies, 7));
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let mut stream = begin(&archive);
    open_with(&mut stream, &wal.bytes).unwrap();
    append(&mut stream, &wal, 0, wal.ends[0]).unwrap();
    let (mut held, from) = begin_push(&archive, &whole);
    let (middle, end) = (from + 15_000, whole.bytes.len());
    held.write(&whole.bytes[from..middle]).unwrap();
    // The stream goes on while the push is between two of its blocks.
    append(&mut stream, &wal, wal.ends[0], wal.ends[1]).unwrap();
    held.write(&whole.bytes[middle..end]).unwrap();
    append(&mut stream, &wal, wal.ends[1], wal.ends[2]).unwrap();
    let sealed = held.seal(whole.len(), whole.crc32());
    assert!(matches!(sealed, Ok(FileSealed::Stored(_))), "{sealed:?}");
    archive.settle_partial(whole.name).unwrap();
    assert!(stored_bytes(&places, &whole) == whole.bytes);
    let aside = places.partial_wals.join(format!("{}.differs", name(3)));
    assert!(!aside.exists(), "nothing differs");
    let late = append(&mut stream, &wal, wal.ends[2], wal.ends[3]).unwrap_err();
    assert!(matches!(late, StoreError::Finished { .. }), "{late}");
}

#[test]
fn fault_103_a_whole_segment_wins_over_a_copy_that_the_disk_changed() {
    let bodies = [100, 9_000, 300];
    let (wal, whole) = (Wal::of(&bodies, 7), Wal::finished(&bodies, 7));
    for known in [true, false] {
        let folder = scratch_folder();
        let places = new_archive(folder.path());
        let mut archive = open(&places);
        let mut stream = begin(&archive);
        open_with(&mut stream, &wal.bytes).unwrap();
        append(&mut stream, &wal, 0, wal.ends[2]).unwrap();
        let mut found = on_disk(&places);
        found[5_000] ^= 1;
        std::fs::write(places.partial_wals.join(name(3).to_string()), &found).unwrap();
        if known {
            // What this process remembers is not on the disk: that is the reason it gives.
            let (mut held, from) = begin_push(&archive, &whole);
            let rotten = held.write(&whole.bytes[from..]).unwrap_err();
            assert!(matches!(rotten, StoreError::Rotten { .. }), "{rotten}");
        } else {
            drop((stream, archive));
            archive = open(&places);
        }
        assert!(matches!(
            finish(&archive, &whole),
            Ok(FileSealed::Stored(_))
        ));
        archive.settle_partial(whole.name).unwrap();
        assert!(stored_bytes(&places, &whole) == whole.bytes);
        let aside = places.partial_wals.join(format!("{}.differs", name(3)));
        assert!(std::fs::read(aside).unwrap() == found, "it is kept");
    }
}

#[test]
fn fault_52_a_whole_segment_wins_over_other_records_which_are_kept_aside() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let wal = Wal::of(&[100, 200, 300], 7);
    let mut stream = begin(&archive);
    open_with(&mut stream, &wal.bytes).unwrap();
    append(&mut stream, &wal, 0, wal.ends[2]).unwrap();
    // A chain of records that is none wins over nothing.
    let mut broken = Wal::finished(&[100, 250, 300], 7);
    broken.bytes[70] ^= 1;
    finish(&archive, &broken).unwrap_err();
    assert_holds(&places, &wal, wal.ends[2]);
    let whole = Wal::finished(&[100, 250, 300], 7);
    assert!(matches!(
        finish(&archive, &whole),
        Ok(FileSealed::Stored(_))
    ));
    let aside = places.partial_wals.join(format!("{}.differs", name(3)));
    assert!(std::fs::read(aside).unwrap()[..wal.bytes.len()] == wal.bytes);
}

#[test]
fn fault_83_two_pushes_that_finish_one_segment_both_hear_stored() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let (wal, whole) = (Wal::of(&[100, 200], 7), Wal::finished(&[100, 200], 7));
    let mut stream = begin(&archive);
    open_with(&mut stream, &wal.bytes).unwrap();
    append(&mut stream, &wal, 0, wal.ends[0]).unwrap();
    let from = usize::try_from(wal.ends[0]).unwrap();
    let mut pushes: Vec<_> = (0..2)
        .map(|_| {
            archive
                .held_prefix(whole.name, Verify::Records)
                .unwrap()
                .unwrap()
        })
        .collect();
    for held in &mut pushes {
        held.write(&whole.bytes[from..]).unwrap();
    }
    for held in pushes {
        let sealed = held.seal(whole.len(), whole.crc32()).unwrap();
        assert!(matches!(sealed, FileSealed::Stored(_)), "{sealed:?}");
    }
}

#[test]
fn a_start_clears_away_a_partial_segment_that_has_both_names() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let (wal, whole) = (Wal::of(&[100, 200], 7), Wal::finished(&[100, 200], 7));
    let [finished, partial] = [&places.completed_wals, &places.partial_wals]
        .map(|folder| folder.join(name(3).to_string()));
    std::fs::write(&finished, &whole.bytes).unwrap();
    let archive = open(&places);
    let (from, to) = (&archive.shared.completed, &archive.shared.partial);
    let text = name(3).to_string();
    (from
        .disk
        .link_into(from.handle(), &text, to.handle(), &text))
    .unwrap();
    drop(archive);
    assert_eq!(open(&places).recovery().partials, []);
    assert!(finished.exists() && !partial.exists());
    // And one that is a beginning of it.
    let mut beginning = wal.bytes.clone();
    beginning.resize(usize::try_from(SIZE).unwrap(), 0);
    std::fs::write(&partial, &beginning).unwrap();
    open(&places);
    assert!(finished.exists() && !partial.exists());
}

#[test]
fn a_stream_goes_on_over_segments_with_a_record_across_their_border() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let mut writer = WalWriter::new(name(3), BINDING.segment_size, BINDING.system_id, 15);
    let mut across = Lsn(0);
    let mut lsn = Lsn(0);
    while writer.position().0 < 4 * SIZE + 50_000 {
        let record = writer.record(10, 0, &[5; 3_000]);
        if record.lsn.0 < 4 * SIZE && record.end.0 > 4 * SIZE {
            (across, lsn) = (record.end, record.lsn);
        }
    }
    let end = writer.record(10, 0, &[5; 10]).end;
    assert_ne!(across, Lsn(0), "a record lies across the border");
    let (third, fourth) = writer.bytes().split_at(usize::try_from(SIZE).unwrap());
    let mut stream = begin(&archive);
    open_with(&mut stream, third).unwrap();
    stream.append(0, lsn, &third[..500_000]).unwrap_err();
    let mut stream = begin(&archive);
    open_with(&mut stream, third).unwrap();
    stream.append(0, lsn, third).unwrap();
    assert_eq!(stream.sync().unwrap().end(), lsn);
    let next = Open {
        segment: name(4),
        bytes: fourth.len() as u64,
        crc32: crc32fast::hash(fourth),
    };
    assert_eq!(stream.open(&next).unwrap().held_bytes, 0);
    let mut damaged = fourth.to_vec();
    damaged[100] ^= 1;
    let error = stream.append(0, end, &damaged).unwrap_err();
    assert!(error.to_string().contains("checksum"), "{error}");
    let mut stream = begin(&archive);
    let at = open_with(&mut stream, third).unwrap();
    assert_eq!(
        (at.held_bytes, at.common_crc32),
        (SIZE, crc32fast::hash(third))
    );
    assert_eq!(stream.open(&next).unwrap().held_bytes, 0);
    stream.append(0, end, fourth).unwrap();
    assert_eq!(stream.sync().unwrap().end(), end);
    let standing = archive.partial_stream(timeline(1)).unwrap().1;
    assert_eq!(standing.oldest_partial, Some(name(3)));
    assert_eq!(standing.newest_partial, Some(name(4)));
    assert_eq!(
        archive.partial_ends().unwrap().last(),
        Some(&(name(4), end))
    );
}

#[test]
fn what_follows_a_rewritten_segment_is_forgotten_with_its_file() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let bodies = vec![7_000; 160];
    let wal = Wal::of(&bodies, 7);
    let mut stream = begin(&archive);
    let size = usize::try_from(SIZE).unwrap();
    for (number, bytes) in (3..).zip(wal.bytes.chunks(size)) {
        stream
            .open(&Open {
                segment: name(number),
                bytes: bytes.len() as u64,
                crc32: crc32fast::hash(bytes),
            })
            .unwrap();
        stream.append(0, Lsn(number * SIZE), bytes).unwrap();
        stream.sync().unwrap();
    }
    let shared = &archive.shared;
    assert!(shared.partials.of(name(4)).checked.is_some());
    super::open::drop_later(shared, name(3)).unwrap();
    assert!(shared.partials.of(name(4)).checked.is_none());
    assert!(shared.partials.of(name(3)).checked.is_some());
    let aside = places.partial_wals.join(format!("{}.differs", name(4)));
    assert!(aside.exists());
}
