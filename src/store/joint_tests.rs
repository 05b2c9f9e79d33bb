//! Flips at the boundaries of segments, and in what is kept of finished files.
//! Never needs a server. Invariant tested: what was acknowledged comes back as it was or as an error, and of
//! two segments that do not go together the second is never handed out.

use std::fs;

use walmgr_protocol::names::{Lsn, SegmentName, TimelineId, WalFileName};

use super::checksums::KeptChecksum;
use super::reader::SegmentBefore;
use super::testing::{
    BINDING, FaultyDisk, Op, Sample, assert_stored, history_file, names, new_archive, open, push,
    real, scratch_folder, segment, stored_bytes,
};
use super::{
    Archive, ArchiveFolders, ArchiveReader, FileSealed, PartialWals, StoreError, StoredUnderName,
    WalProof,
};
use crate::wal::page::PAGE_BYTES;
use crate::wal::segment::Verify;
use crate::wal::writer::WalWriter;

const SIZE: usize = 1 << 20;
const SEED: u64 = 0x5EED_0100;

/// A small generator, so that a round can be repeated from its printed number.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = (self.0)
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from((self.0 >> 33) % u64::try_from(limit).unwrap()).unwrap()
    }
}

fn timeline(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

fn name(timeline_number: u32, number: u64) -> SegmentName {
    SegmentName::from_number(timeline(timeline_number), number, BINDING.segment_size)
}

fn writer(number: u64) -> WalWriter {
    let (size, system) = (BINDING.segment_size, BINDING.system_id);
    WalWriter::new(name(1, number), size, system, 15)
}

/// The whole segments that were written, from this number on.
fn samples(writer: &WalWriter, number: u64) -> Vec<Sample> {
    let whole = writer.bytes().chunks_exact(SIZE);
    let named = whole.zip(number..).map(|(bytes, number)| Sample {
        name: WalFileName::Segment(name(1, number)),
        bytes: bytes.to_vec(),
    });
    named.collect()
}

/// Segments 3 to 5 full of records, with one across each boundary.
fn crossed() -> Vec<Sample> {
    let mut writer = writer(3);
    while writer.bytes().len() < 3 * SIZE {
        writer.record(10, 0, &[5; 7_001]);
    }
    samples(&writer, 3)
}

/// Segments 3 to 7, of which one record fills the third and reaches into its neighbours.
fn spanned() -> Vec<Sample> {
    let mut writer = writer(3);
    while writer.bytes().len() < SIZE + SIZE / 2 {
        writer.record(10, 0, &[5; 7_001]);
    }
    writer.record(10, 0, &vec![6; 2 * SIZE]);
    while writer.bytes().len() < 5 * SIZE {
        writer.record(10, 0, &[7; 7_001]);
    }
    samples(&writer, 3)
}

fn stored(samples: &[Sample]) -> (tempfile::TempDir, ArchiveFolders) {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    for sample in samples {
        assert_stored(&archive, sample);
    }
    drop(archive);
    (folder, places)
}

fn forget_checksums(places: &ArchiveFolders) {
    fs::remove_dir_all(places.completed_wals.join(".checksums")).unwrap();
}

fn plant(places: &ArchiveFolders, sample: &Sample, bytes: &[u8]) {
    fs::write(places.completed_wals.join(sample.name.to_string()), bytes).unwrap();
}

fn flipped(sample: &Sample, bit: usize) -> Sample {
    let mut bytes = sample.bytes.clone();
    bytes[bit / 8] ^= 1 << (bit % 8);
    let name = sample.name;
    Sample { name, bytes }
}

fn read(places: &ArchiveFolders, name: WalFileName) -> Result<Vec<u8>, StoreError> {
    let reader = ArchiveReader::open(&places.completed_wals, real()).unwrap();
    let mut bytes = Vec::new();
    let stored = reader.find(name).unwrap().unwrap();
    stored.read_verified(SegmentBefore::Read, |piece| {
        bytes.extend_from_slice(piece);
        true
    })?;
    Ok(bytes)
}

/// Which of the files are handed out; each of those has to be what was stored.
fn served(places: &ArchiveFolders, samples: &[Sample]) -> Vec<bool> {
    let served = samples
        .iter()
        .map(|sample| match read(places, sample.name) {
            Ok(bytes) => bytes == stored_bytes(places, sample),
            Err(StoreError::Damaged { .. } | StoreError::Foreign { .. }) => false,
            Err(other) => panic!("{}: {other}", sample.name),
        });
    served.collect()
}

#[test]
fn fault_100_a_flip_at_a_boundary_is_never_handed_out() {
    let mut random = Random(SEED);
    for samples in [crossed(), spanned()] {
        let (_folder, places) = stored(&samples);
        assert!(served(&places, &samples).iter().all(|served| *served));
        for with_checksums in [true, false] {
            if !with_checksums {
                forget_checksums(&places);
            }
            assert!(served(&places, &samples).iter().all(|served| *served));
            for round in 0..60 {
                let index = random.below(samples.len() - 1);
                // Within the record that crosses the boundary, before or behind it.
                let (hit, at) = match round % 2 {
                    0 => (index, SIZE - 1 - random.below(1_000)),
                    _ => (index + 1, 40 + random.below(1_000)),
                };
                let flipped = flipped(&samples[hit], at * 8 + random.below(8));
                plant(&places, &samples[hit], &flipped.bytes);
                let served = served(&places, &samples);
                plant(&places, &samples[hit], &samples[hit].bytes);
                // Padding between two records is nobody's.
                let is_padding = samples[hit].bytes[at] == 0;
                assert!(
                    served.contains(&false) || (is_padding && !with_checksums),
                    "round {round}: byte {at} of {}, checksums {with_checksums}: {served:?}",
                    samples[hit].name
                );
            }
        }
    }
}

#[test]
fn fault_100_a_push_reads_and_syncs_no_more_than_it_needs() {
    let samples = crossed();
    let (_folder, places) = stored(&samples[..1]);
    for remembered in [false, true] {
        let sample = &samples[1 + usize::from(remembered)];
        let disk = FaultyDisk::over(real());
        let archive = Archive::open(&places, disk.clone()).unwrap();
        if remembered {
            // What was stored a moment ago is not looked at again.
            fs::remove_file(places.completed_wals.join(samples[1].name.to_string())).unwrap();
            assert_stored(&archive, &samples[1]);
        }
        let before = disk.log().len();
        assert_stored(&archive, sample);
        let log = disk.log().split_off(before);
        let count = |op: Op, about: &str| {
            let found = log
                .iter()
                .filter(|(found, name)| *found == op && name.starts_with(about));
            found.count()
        };
        let (all, own) = (count(Op::Read, ""), count(Op::Read, ".in."));
        let earlier = count(Op::Read, &samples[0].name.to_string());
        // Two pages of 8 KiB at most; of the one before its checksum and the record that is open.
        assert!((1..=2).contains(&own), "{log:?}");
        match remembered {
            true => assert_eq!(all, own, "{log:?}"),
            false => assert!(earlier <= 6 && all == own + earlier, "{log:?}"),
        }
        assert_eq!(count(Op::SyncFile, ""), 1);
        assert_eq!(count(Op::SyncDirectory, ""), 1);
        assert_eq!(count(Op::SyncBytes, ""), 0);
    }
}

/// Whoever hands a segment out without reading it looks at the record that crosses into it once more only where the
/// segment before is not the one that it was found to go on with.
#[test]
fn what_was_found_to_follow_is_not_looked_at_again() {
    let samples = crossed();
    let (_folder, places) = stored(&samples);
    let reads = |sample: &Sample| {
        let disk = FaultyDisk::over(real());
        let reader = ArchiveReader::open(&places.completed_wals, disk.clone()).unwrap();
        let stored = reader.find(sample.name).unwrap().unwrap();
        let begun = disk.log().len();
        let unread = stored.obstacles_unread(SegmentBefore::Read);
        let log = disk.log().split_off(begun);
        // Those of a checksum end with one that finds nothing more.
        let read = log.iter().filter(|(op, _)| *op == Op::Read).count();
        (unread.map(|unread| unread.is_some()), read)
    };
    let (known, few) = reads(&samples[1]);
    assert!(known.unwrap());
    // A person put another one there, or the disk changed what was kept of it.
    let before = &samples[0];
    let kept = places
        .completed_wals
        .join(".checksums")
        .join(before.name.to_string());
    let text = fs::read_to_string(&kept).unwrap();
    fs::remove_file(&kept).unwrap();
    let (known, more) = reads(&samples[1]);
    assert!(known.unwrap() && more > few, "{more} reads, {few} before");
    fs::write(&kept, text).unwrap();
    // One that came without it was never compared.
    let (_folder, apart) = stored(&samples[1..2]);
    let kept = |places: &ArchiveFolders| {
        let folder = places.completed_wals.join(".checksums");
        let text = fs::read_to_string(folder.join(samples[1].name.to_string())).unwrap();
        text.contains("\nfollows ")
    };
    assert!(kept(&places) && !kept(&apart));
    // Another one of that name, whose end does not lead here.
    let other = flipped(before, (SIZE - 500) * 8);
    let crc32 = crc32fast::hash(&other.bytes);
    let text = KeptChecksum {
        len: other.len(),
        crc32,
        end: None,
        has_sound_records: true,
        follows: None,
        is_found: false,
    }
    .text(before.name, "");
    plant(&places, before, &other.bytes);
    let folder = places.completed_wals.join(".checksums");
    fs::write(folder.join(before.name.to_string()), text).unwrap();
    assert!(reads(&samples[1]).0.is_err());
}

/// A record that fills the segment before begins further back, in a segment that may have been replaced since.
#[test]
fn fault_100_behind_a_filled_segment_the_whole_record_is_looked_at() {
    let samples = spanned();
    let (_folder, places) = stored(&samples);
    let ends = samples.iter().position(|sample| {
        let path = places.completed_wals.join(".checksums");
        let text = fs::read_to_string(path.join(sample.name.to_string())).unwrap();
        text.contains("\nend inside\n")
    });
    let (filled, ends) = (ends.unwrap(), ends.unwrap() + 1);
    assert_eq!(
        read(&places, samples[ends].name).unwrap(),
        samples[ends].bytes
    );
    let begins = &samples[filled - 1];
    let other = flipped(begins, (SIZE - 500) * 8);
    let kept = KeptChecksum {
        len: other.len(),
        crc32: crc32fast::hash(&other.bytes),
        end: None,
        has_sound_records: true,
        follows: None,
        is_found: false,
    };
    plant(&places, begins, &other.bytes);
    let folder = places.completed_wals.join(".checksums");
    fs::write(
        folder.join(begins.name.to_string()),
        kept.text(begins.name, ""),
    )
    .unwrap();
    assert!(read(&places, samples[ends].name).is_err());
}

#[test]
fn fault_100_a_damaged_second_half_is_never_acknowledged() {
    for (samples, hit) in [(crossed(), 1), (spanned(), 3)] {
        let damaged = flipped(&samples[hit], 500 * 8);
        for restarted in [false, true] {
            let folder = scratch_folder();
            let places = new_archive(folder.path());
            let mut archive = open(&places);
            samples[..hit]
                .iter()
                .for_each(|sample| assert_stored(&archive, sample));
            // The segment before is remembered, or its checksum says where to look.
            if restarted {
                drop(archive);
                archive = open(&places);
            }
            refuses(&archive, &damaged, &samples[hit]);
        }
    }
}

fn refuses(archive: &Archive, damaged: &Sample, good: &Sample) {
    let error = push(archive, damaged).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    assert!(error.to_string().contains("does not go on with"), "{error}");
    // Genuine WAL looks the same where its server began anew.
    assert!(error.to_string().contains("pg_resetwal"), "{error}");
    assert_stored(archive, good);
}

#[test]
fn fault_100_where_nobody_knows_which_half_is_damaged_neither_counts() {
    let samples = crossed();
    let (_folder, places) = stored(&samples[..1]);
    forget_checksums(&places);
    let archive = open(&places);
    let damaged = flipped(&samples[1], 500 * 8);
    assert_stored(&archive, &damaged);
    assert_eq!(served(&places, &samples[..2]), [true, false]);
    let proof = archive.prove_wal(name(1, 3), Lsn(5 << 20), Verify::Records);
    assert!(
        matches!(proof, Err(StoreError::Damaged { .. })),
        "{proof:?}"
    );
    drop(archive);
    assert_eq!(open(&places).recovery().damaged.len(), 1);
}

#[test]
fn fault_100_a_damaged_neighbour_refuses_nobody() {
    let samples = crossed();
    for with_checksums in [true, false] {
        let (_folder, places) = stored(&samples[..1]);
        if !with_checksums {
            forget_checksums(&places);
        }
        let damaged = flipped(&samples[0], (SIZE - 100) * 8);
        plant(&places, &samples[0], &damaged.bytes);
        // Not the newest at a start, which would be read whole.
        let archive = open(&places);
        assert_stored(&archive, &samples[1]);
        assert_stored(&archive, &samples[2]);
        let served = served(&places, &samples);
        assert_eq!(served, [!with_checksums, with_checksums, true]);
    }
}

#[test]
fn fault_100_neighbours_may_come_in_any_order() {
    let samples = spanned();
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    for index in [4, 2, 0, 3, 1] {
        assert_stored(&archive, &samples[index]);
    }
    assert!(served(&places, &samples).iter().all(|served| *served));
    // Whoever sent the later one need not be who sends this one: it is no reason to refuse.
    let (_folder, places) = stored(&samples[1..]);
    let archive = open(&places);
    let other = flipped(&samples[0], (SIZE - 100) * 8);
    assert_stored(&archive, &other);
    assert_eq!(served(&places, &samples)[..2], [true, false]);
}

#[test]
fn fault_100_the_levels_of_verification_hold_for_boundaries_too() {
    let samples = crossed();
    let body = flipped(&samples[1], 500 * 8);
    // `xlp_rem_len` of the first page.
    let length = flipped(&samples[1], 16 * 8);
    for (verify, damaged, is_refused) in [
        (Verify::Records, &body, true),
        (Verify::Headers, &body, false),
        (Verify::Headers, &length, true),
        (Verify::Off, &length, false),
    ] {
        let (_folder, places) = stored(&samples[..1]);
        let archive = open(&places);
        let mut incoming = archive.begin(damaged.name, damaged.len(), verify).unwrap();
        let sealed = (incoming.write(&damaged.bytes))
            .and_then(|()| incoming.seal(damaged.len(), damaged.crc32()));
        assert_eq!(sealed.is_err(), is_refused, "{verify}: {sealed:?}");
    }
}

#[test]
fn fault_100_a_record_that_a_crash_cut_at_a_boundary_is_no_damage() {
    let mut writer = writer(3);
    while writer.bytes().len() as u64 + PAGE_BYTES < SIZE as u64 {
        writer.record(10, 0, &[5; 1_001]);
    }
    writer.overwritten_record(20_000);
    assert!(writer.bytes().len() > SIZE);
    while writer.bytes().len() < 3 * SIZE {
        writer.record(10, 0, &[5; 7_001]);
    }
    let samples = samples(&writer, 3);
    let (_folder, places) = stored(&samples);
    assert!(served(&places, &samples).iter().all(|served| *served));
    forget_checksums(&places);
    assert!(served(&places, &samples).iter().all(|served| *served));
}

#[test]
fn fault_100_a_segment_goes_on_behind_a_switch() {
    let mut writer = writer(3);
    for _ in 0..3 {
        writer.record(10, 0, &[5; 7_001]);
        writer.switch();
    }
    let samples = samples(&writer, 3);
    let (_folder, places) = stored(&samples);
    assert!(served(&places, &samples).iter().all(|served| *served));
    // The middle one is one that follows something else.
    let mut other = self::writer(4);
    other.record(10, 0, &[5; 7_001]);
    other.switch();
    let stranger = self::samples(&other, 4).remove(0);
    let (_folder, places) = stored(&samples[..1]);
    let error = push(&open(&places), &stranger).unwrap_err();
    assert!(error.to_string().contains("link"), "{error}");
}

/// Timeline 2 leaves timeline 1 within segment 4, or at its beginning; a record crosses into segment 4.
fn branched(switch_point: u64) -> (Vec<Sample>, Sample) {
    let mut writer = writer(3);
    while writer.bytes().len() < SIZE + 20_000 {
        writer.record(10, 0, &[5; 7_001]);
    }
    writer.set_timeline(timeline(2));
    while writer.bytes().len() < 3 * SIZE {
        writer.record(10, 0, &[5; 7_001]);
    }
    let mut samples = samples(&writer, 3);
    samples[1].name = WalFileName::Segment(name(2, 4));
    samples[2].name = WalFileName::Segment(name(2, 5));
    let mut history = history_file(2, "promoted");
    history.bytes = format!("1\t{}\tpromoted\n", Lsn(switch_point)).into_bytes();
    (samples, history)
}

#[test]
fn fault_100_a_timeline_goes_on_with_the_one_it_left() {
    let (samples, history) = branched((4 << 20) + 20_008);
    let (_folder, places) = stored(&samples[..1]);
    let archive = open(&places);
    assert_stored(&archive, &history);
    let damaged = flipped(&samples[1], 500 * 8);
    let error = push(&archive, &damaged).unwrap_err();
    assert!(error.to_string().contains("does not go on with"), "{error}");
    assert_stored(&archive, &samples[1]);
    assert_stored(&archive, &samples[2]);
    assert!(served(&places, &samples).iter().all(|served| *served));
    plant(&places, &samples[1], &damaged.bytes);
    forget_checksums(&places);
    assert_eq!(served(&places, &samples), [true, false, true]);
}

#[test]
fn fault_100_no_set_counts_on_segments_that_do_not_go_together() {
    let samples = crossed();
    let (_folder, places) = stored(&samples);
    let stop = Lsn(6 << 20);
    let prove = |archive: &Archive| archive.prove_wal(name(1, 3), stop, Verify::Records);
    let archive = open(&places);
    assert!(matches!(prove(&archive), Ok(WalProof::Durable(_))));
    drop(archive);
    for with_checksums in [true, false] {
        for hit in [(0, SIZE - 100), (1, 500), (1, SIZE - 100), (2, 500)] {
            let (index, at) = hit;
            plant(
                &places,
                &samples[index],
                &flipped(&samples[index], at * 8).bytes,
            );
            if !with_checksums {
                forget_checksums(&places);
            }
            let proof = prove(&open(&places));
            assert!(
                matches!(proof, Err(StoreError::Damaged { .. })),
                "{hit:?}: {proof:?}"
            );
            plant(&places, &samples[index], &samples[index].bytes);
        }
    }
}

#[test]
fn fault_107_every_finished_file_is_what_was_acknowledged_or_an_error() {
    let mut samples = vec![history_file(2, "promoted"), backup_history()];
    samples.extend(crossed());
    let (_folder, places) = stored(&samples);
    let mut random = Random(SEED);
    for round in 0..200 {
        let sample = &samples[round % samples.len()];
        let damaged = flipped(sample, random.below(sample.bytes.len() * 8));
        plant(&places, sample, &damaged.bytes);
        assert!(
            read(&places, sample.name).is_err(),
            "round {round}: {}",
            sample.name
        );
        plant(&places, sample, &sample.bytes);
    }
    assert!(served(&places, &samples).iter().all(|served| *served));
}

fn backup_history() -> Sample {
    let text = "START WAL LOCATION: 0/300028 (file 000000010000000000000003)\n\
                STOP WAL LOCATION: 0/400000 (file 000000010000000000000003)\n";
    Sample {
        name: "000000010000000000000003.00000028.backup".parse().unwrap(),
        bytes: text.as_bytes().to_vec(),
    }
}

#[test]
fn fault_107_a_start_finds_flips_in_histories_and_the_newest_segments() {
    let mut samples = vec![history_file(2, "promoted"), backup_history()];
    samples.extend(crossed());
    let (_folder, places) = stored(&samples);
    for sample in &samples {
        // A digit of the switch point, the label, a record: nothing that shows by itself.
        let at = (sample.bytes.len() - 20).min(500_000);
        let damaged = flipped(sample, at * 8);
        plant(&places, sample, &damaged.bytes);
        let archive = open(&places);
        let found = &archive.recovery().damaged;
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].0, sample.name);
        assert_eq!(stored_bytes(&places, sample), damaged.bytes);
        drop(archive);
        plant(&places, sample, &sample.bytes);
    }
    assert_eq!(open(&places).recovery().damaged, []);
}

#[test]
fn fault_107_a_start_keeps_what_is_not_kept_yet() {
    let samples = [&crossed()[..], &[history_file(2, "promoted")]].concat();
    let (_folder, places) = stored(&samples);
    let checksums = places.completed_wals.join(".checksums");
    let kept = |sample: &Sample| fs::read(checksums.join(sample.name.to_string()));
    let before: Vec<Vec<u8>> = (samples.iter())
        .map(|sample| kept(sample).unwrap())
        .collect();
    forget_checksums(&places);
    for sample in &samples {
        assert!(kept(sample).is_err());
    }
    drop(open(&places));
    for (sample, before) in samples.iter().zip(before) {
        // Some words are left out: nobody acknowledged the file meanwhile, nor looked at its records before.
        let lines = |text: Vec<u8>| {
            let text = String::from_utf8(text).unwrap();
            let lines = text.lines().map(str::to_owned);
            let left_out = |line: &str| {
                let is_anew = line.starts_with("check ") || line.starts_with("follows ");
                ["found", "records"].contains(&line) || is_anew
            };
            let lines = lines.filter(|line| !left_out(line));
            lines.collect::<Vec<_>>()
        };
        assert_eq!(lines(kept(sample).unwrap()), lines(before));
    }
    assert!(served(&places, &samples).iter().all(|served| *served));
}

#[test]
fn fault_107_a_copy_that_a_person_put_there_is_judged_by_what_it_holds() {
    let (first, better) = (segment(3, 1), segment(3, 2));
    let (_folder, places) = stored(&[first.clone(), segment(4, 1)]);
    forget_checksums(&places);
    drop(open(&places));
    plant(&places, &first, &better.bytes);
    assert_eq!(read(&places, better.name).unwrap(), better.bytes);
    let archive = open(&places);
    assert_eq!(archive.recovery().damaged, []);
    assert!(matches!(push(&archive, &better), Ok(FileSealed::Stored(_))));
    // One whose records do not hold is damaged all the same.
    plant(&places, &first, &flipped(&better, 60 * 8).bytes);
    assert!(read(&places, better.name).is_err());
}

#[test]
fn fault_107_what_was_acknowledged_takes_the_place_of_what_became_of_it() {
    for sample in [history_file(2, "promoted"), crossed().remove(0)] {
        let (_folder, places) = stored(std::slice::from_ref(&sample));
        let archive = open(&places);
        let at = sample.bytes.len() - 20;
        let damaged = flipped(&sample, at * 8);
        plant(&places, &sample, &damaged.bytes);
        let lookup = |sample: &Sample| {
            let (len, crc32) = (sample.len(), sample.crc32());
            archive.lookup(&sample.name, len, crc32, Verify::Records)
        };
        // Neither what became of it is acknowledged, nor a third one.
        for other in [&damaged, &flipped(&sample, at * 8 + 1)] {
            let error = lookup(other).unwrap_err();
            assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
            assert_eq!(stored_bytes(&places, &sample), damaged.bytes);
        }
        assert!(matches!(lookup(&sample).unwrap(), StoredUnderName::Absent));
        assert_stored(&archive, &sample);
        assert!(matches!(
            lookup(&sample).unwrap(),
            StoredUnderName::Identical(_)
        ));
        let aside = format!("{}.damaged", sample.name);
        assert_eq!(
            fs::read(places.completed_wals.join(&aside)).unwrap(),
            damaged.bytes
        );
        assert_eq!(names(&places).len(), 2);
    }
}

#[test]
fn fault_107_a_checksum_that_was_left_behind_condemns_no_other_file() {
    let (first, second) = (history_file(2, "one"), history_file(2, "two"));
    let (_folder, places) = stored(std::slice::from_ref(&first));
    fs::remove_file(places.completed_wals.join(first.name.to_string())).unwrap();
    let archive = open(&places);
    assert!(matches!(push(&archive, &second), Ok(FileSealed::Stored(_))));
    assert_eq!(read(&places, second.name).unwrap(), second.bytes);
    drop(archive);
    assert_eq!(open(&places).recovery().damaged, []);
}

/// Freezes what is shipped as a boot does; the frozen segments.
fn frozen(places: &ArchiveFolders, force: bool) -> Result<Vec<SegmentName>, StoreError> {
    let reader = ArchiveReader::open(&places.completed_wals, real())?;
    let partials = PartialWals::open(&places.partial_wals, real())?;
    let before = |segment| reader.scanner_before(segment);
    let freeze = partials.freeze(timeline(1), "41 1700", force, |_| Ok(true), &before);
    partials.thaw()?;
    let segments = freeze?.segments.unwrap_or_default();
    Ok(segments.into_iter().map(|copy| copy.segment).collect())
}

#[test]
fn fault_100_freeze_refuses_a_flip_that_crosses_into_the_partial_segment() {
    let samples = crossed();
    // The one before is finished, or in progress as well.
    for finished in [1, 0] {
        let (_folder, places) = stored(&samples[..finished]);
        if finished == 0 {
            assert_stored(&open(&places), &history_file(2, "binds the archive"));
        }
        let ship = |number: usize, bytes: &[u8]| {
            let path = places.partial_wals.join(samples[number].name.to_string());
            fs::write(path, bytes).unwrap();
        };
        let mut shipped = samples[1].bytes[..SIZE / 2].to_vec();
        shipped.resize(SIZE, 0);
        if finished == 0 {
            ship(0, &samples[0].bytes);
        }
        ship(1, &shipped);
        let all: Vec<SegmentName> = (finished..2).map(|at| name(1, 3 + at as u64)).collect();
        assert_eq!(frozen(&places, false).unwrap(), all);
        // Behind the page header lies the rest of a record that begins in the segment before.
        shipped[60] ^= 4;
        ship(1, &shipped);
        let refused = frozen(&places, false).unwrap_err();
        let is_told =
            matches!(refused, StoreError::PartialDamaged(damage) if damage.segment == name(1, 4));
        assert!(is_told, "{refused}");
        assert_eq!(frozen(&places, true).unwrap(), all[..all.len() - 1]);
    }
}
