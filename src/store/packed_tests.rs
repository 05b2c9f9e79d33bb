//! The archive with segments in both forms: what is stored, served, compared, set aside and removed.
//! Never talks to a server. Invariant tested: whichever form a segment has, everybody gets the bytes that were offered,
//! or an error.

use std::path::PathBuf;

use super::checksums::remove_finished;
use super::compress::{Compressed, Compressor, plain_segments};
use super::folder::Folder;
use super::health::Monitor;
use super::testing::{
    Sample, assert_stored, names, new_archive, open, push, real, scratch_folder, segment,
};
use super::*;
use crate::config::StoreCompression;
use crate::wal::segment::Verify;
use std::sync::Arc;
use walmgr_protocol::names::WalFileName;

fn packing(places: &ArchiveFolders) -> Archive {
    let archive = open(places);
    archive.set_compression(StoreCompression::default());
    archive
}

fn packed_path(places: &ArchiveFolders, sample: &Sample) -> PathBuf {
    places.completed_wals.join(format!("{}.zst", sample.name))
}

fn plain_path(places: &ArchiveFolders, sample: &Sample) -> PathBuf {
    places.completed_wals.join(sample.name.to_string())
}

fn served(places: &ArchiveFolders, name: WalFileName) -> Result<Option<Vec<u8>>, StoreError> {
    let reader = ArchiveReader::open(&places.completed_wals, real())?;
    let Some(stored) = reader.find(name)? else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    stored.read_verified(SegmentBefore::NotRead, |piece| {
        bytes.extend_from_slice(piece);
        true
    })?;
    Ok(Some(bytes))
}

fn is_identical(archive: &Archive, sample: &Sample) -> bool {
    let found = archive.lookup(&sample.name, sample.len(), sample.crc32(), Verify::Records);
    matches!(found, Ok(StoredUnderName::Identical(_)))
}

#[test]
fn a_segment_is_stored_packed_and_served_as_it_came() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let (archive, sample) = (packing(&places), segment(3, 7));
    assert_stored(&archive, &sample);
    assert_eq!(names(&places), [format!("{}.zst", sample.name)]);
    let stored = std::fs::read(packed_path(&places, &sample)).unwrap();
    assert_eq!(zstd::stream::decode_all(&stored[..]).unwrap(), sample.bytes);
    assert!(stored.len() < 4096, "{} bytes", stored.len());
    assert_eq!(
        served(&places, sample.name).unwrap(),
        Some(sample.bytes.clone())
    );
    let listed = archive.list(None, 10).unwrap();
    assert_eq!((listed[0].name, listed[0].len), (sample.name, sample.len()));
    let reader = ArchiveReader::open(&places.completed_wals, real()).unwrap();
    assert!(reader.listing().unwrap().contains(sample.name));
    let mut some = [0; 100];
    let found = reader.find(sample.name).unwrap().unwrap();
    assert_eq!(found.read_at(&mut some, 300_000).unwrap(), 100);
    assert_eq!(some, sample.bytes[300_000..300_100]);
}

#[test]
fn a_packed_segment_is_handed_over_as_it_is_stored() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let (archive, sample, other) = (packing(&places), segment(3, 7), segment(4, 9));
    assert_stored(&archive, &sample);
    assert_stored(&archive, &other);
    let handed = |is_wanted: bool| {
        let reader = ArchiveReader::open(&places.completed_wals, real()).unwrap();
        let stored = reader.find(sample.name).unwrap().unwrap();
        let (mut raw, mut packed) = (Vec::new(), 0);
        let read = stored.read_as_stored(SegmentBefore::NotRead, |piece| {
            match piece {
                StoredPiece::Raw(bytes) => raw.extend_from_slice(bytes),
                StoredPiece::Packed { frame, raw_bytes } => {
                    packed += 1;
                    let unpacked = zstd::bulk::decompress(frame, raw_bytes as usize).unwrap();
                    assert_eq!(unpacked.len(), raw_bytes as usize);
                    raw.extend(unpacked);
                }
            }
            is_wanted
        });
        (read, raw, packed)
    };
    let whole = (sample.len(), sample.crc32());
    let (read, raw, packed) = handed(true);
    assert!(read.unwrap() == whole && raw == sample.bytes && packed > 1);
    assert!(matches!(handed(false).0, Err(StoreError::Damaged { .. })));
    // Sound by itself, and another than was stored.
    let path = packed_path(&places, &sample);
    let own = std::fs::read(&path).unwrap();
    std::fs::copy(packed_path(&places, &other), &path).unwrap();
    let read = handed(true).0;
    assert!(matches!(read, Err(StoreError::Foreign { .. })), "{read:?}");
    // What nobody has kept a word of is gone through as before.
    std::fs::write(&path, own).unwrap();
    std::fs::remove_dir_all(places.completed_wals.join(".checksums")).unwrap();
    let (read, raw, packed) = handed(true);
    assert!(read.unwrap() == whole && raw == sample.bytes && packed == 0);
}

#[test]
fn identical_content_is_stored_already_whichever_form_it_has() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let (plain, packed) = (segment(3, 7), segment(4, 7));
    assert_stored(&open(&places), &plain);
    let archive = packing(&places);
    assert_stored(&archive, &packed);
    for sample in [&plain, &packed] {
        assert!(is_identical(&archive, sample));
        assert_stored(&archive, sample);
    }
    archive.set_compression(StoreCompression::None);
    assert!(is_identical(&archive, &packed));
    assert_stored(&archive, &packed);
    assert_eq!(
        names(&places),
        [plain.name.to_string(), format!("{}.zst", packed.name)]
    );
    drop(archive);
    let again = open(&places);
    assert!(again.recovery().set_aside.is_empty() && is_identical(&again, &packed));
}

#[test]
fn another_file_of_a_packed_name_is_kept_beside_it() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let (archive, sample, other) = (packing(&places), segment(3, 7), segment(3, 8));
    assert_stored(&archive, &sample);
    assert!(matches!(
        push(&archive, &other),
        Ok(FileSealed::Conflict { .. })
    ));
    assert!(
        archive
            .keeps_differing(other.name, other.len(), other.crc32())
            .unwrap()
    );
    let differs = format!("{}.differs.zst", sample.name);
    assert!(places.completed_wals.join(differs).exists());
    assert_eq!(served(&places, sample.name).unwrap(), Some(sample.bytes));
}

#[test]
fn both_forms_of_one_content_are_one_segment() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let (archive, sample) = (packing(&places), segment(3, 7));
    assert_stored(&archive, &sample);
    std::fs::write(plain_path(&places, &sample), &sample.bytes).unwrap();
    assert!(is_identical(&archive, &sample));
    assert_eq!(
        served(&places, sample.name).unwrap(),
        Some(sample.bytes.clone())
    );
    let reader = ArchiveReader::open(&places.completed_wals, real()).unwrap();
    assert_eq!(reader.listing().unwrap().segments.len(), 1);
}

#[test]
fn fault_199_of_two_forms_that_differ_the_acknowledged_one_is_served() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let (archive, sample, other) = (packing(&places), segment(3, 7), segment(3, 8));
    assert_stored(&archive, &sample);
    std::fs::write(plain_path(&places, &sample), &other.bytes).unwrap();
    // The checksum tells.
    assert!(is_identical(&archive, &sample));
    assert_eq!(
        served(&places, sample.name).unwrap(),
        Some(sample.bytes.clone())
    );
    let checksum = places
        .completed_wals
        .join(".checksums")
        .join(sample.name.to_string());
    std::fs::remove_file(checksum).unwrap();
    let told = served(&places, sample.name).unwrap_err().to_string();
    assert!(
        told.contains(&format!("{}.zst hold different", sample.name)),
        "{told}"
    );
    // The start and the master leave both where they are.
    drop(archive);
    let archive = open(&places);
    assert!(archive.recovery().set_aside.is_empty());
    assert!(push(&archive, &sample).is_err());
    assert!(packed_path(&places, &sample).exists() && plain_path(&places, &sample).exists());
}

#[test]
fn fault_195_a_damaged_packed_segment_is_set_aside_and_stored_again() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let (archive, sample) = (packing(&places), segment(3, 7));
    assert_stored(&archive, &sample);
    let path = packed_path(&places, &sample);
    let sound = std::fs::read(&path).unwrap();
    for byte in [20, sound.len() / 2, sound.len() - 1] {
        let mut damaged = sound.clone();
        damaged[byte] ^= 4;
        std::fs::write(&path, &damaged).unwrap();
        let told = served(&places, sample.name).unwrap_err();
        assert!(matches!(told, StoreError::Damaged { .. }), "{told}");
        assert_stored(&archive, &sample);
        assert_eq!(
            served(&places, sample.name).unwrap(),
            Some(sample.bytes.clone())
        );
    }
    let aside = format!("{}.damaged.2.zst", sample.name);
    assert!(names(&places).contains(&aside), "{:?}", names(&places));
    // A start finds it too.
    std::fs::write(&path, &sound[..sound.len() - 3]).unwrap();
    drop(archive);
    assert_eq!(open(&places).recovery().set_aside.len(), 1);
    assert_eq!(served(&places, sample.name).unwrap(), None);
    let reader = ArchiveReader::open(&places.completed_wals, real()).unwrap();
    assert!(matches!(
        reader.absence(sample.name).unwrap(),
        Absence::OnlyDamaged(_)
    ));
}

#[test]
fn what_an_administrator_packed_by_hand_is_served() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let sample = segment(3, 7);
    let by_hand = zstd::stream::encode_all(&sample.bytes[..], 19).unwrap();
    std::fs::write(packed_path(&places, &sample), by_hand).unwrap();
    assert_eq!(
        served(&places, sample.name).unwrap(),
        Some(sample.bytes.clone())
    );
    assert!(is_identical(&open(&places), &sample));
    let short = zstd::stream::encode_all(&sample.bytes[..5000], 3).unwrap();
    std::fs::write(packed_path(&places, &sample), short).unwrap();
    assert!(served(&places, sample.name).is_err());
}

#[test]
fn removing_a_name_removes_both_forms_and_its_checksum() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let (archive, sample) = (packing(&places), segment(3, 7));
    assert_stored(&archive, &sample);
    std::fs::write(plain_path(&places, &sample), &sample.bytes).unwrap();
    let monitor = Arc::new(Monitor::new());
    let completed = Folder::open_completed(&places.completed_wals, real(), monitor).unwrap();
    remove_finished(&completed, &[sample.name.to_string()]).unwrap();
    assert_eq!(names(&places), Vec::<String>::new());
    let checksum = places
        .completed_wals
        .join(".checksums")
        .join(sample.name.to_string());
    assert!(!checksum.exists());
}

#[test]
fn a_copy_takes_the_place_of_the_stored_one_in_the_other_form() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let (sample, other) = (segment(3, 7), segment(3, 8));
    assert_stored(&open(&places), &sample);
    let archive = packing(&places);
    assert!(matches!(
        push(&archive, &other),
        Ok(FileSealed::Conflict { .. })
    ));
    drop(archive);
    let copy = beside::CopyName::parse(&format!("{}.differs", sample.name)).unwrap();
    displaced::take_copy(&places.completed_wals, real(), &copy).unwrap();
    assert_eq!(
        served(&places, sample.name).unwrap(),
        Some(other.bytes.clone())
    );
    let back = beside::CopyName::parse(&format!("{}.displaced", sample.name)).unwrap();
    displaced::take_copy(&places.completed_wals, real(), &back).unwrap();
    assert_eq!(served(&places, sample.name).unwrap(), Some(sample.bytes));
}

fn compressor(places: &ArchiveFolders) -> Compressor {
    Compressor::open(&places.completed_wals, real())
        .unwrap()
        .unwrap()
}

#[test]
fn plain_segments_are_packed_beside_a_receiver_and_once() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let samples = [segment(3, 7), segment(4, 7)];
    for sample in &samples {
        assert_stored(&archive, sample);
    }
    let (plain, bytes) = plain_segments(&places.completed_wals, real()).unwrap();
    assert_eq!((plain.len(), bytes), (2, 2 << 20));
    let compressor = compressor(&places);
    assert!(
        Compressor::open(&places.completed_wals, real())
            .unwrap()
            .is_none()
    );
    for name in plain {
        let packed = compressor.pack(name, StoreCompression::default()).unwrap();
        assert!(matches!(packed, Compressed::Packed { before, after } if after < before / 100));
        // It has no plain form any more.
        let again = compressor.pack(name, StoreCompression::default()).unwrap();
        assert!(matches!(again, Compressed::Gone));
    }
    let expected = samples
        .each_ref()
        .map(|sample| format!("{}.zst", sample.name));
    assert_eq!(names(&places), expected);
    assert_eq!(
        plain_segments(&places.completed_wals, real()).unwrap().0,
        []
    );
    for sample in &samples {
        assert!(is_identical(&archive, sample));
        assert_eq!(
            served(&places, sample.name).unwrap(),
            Some(sample.bytes.clone())
        );
    }
}

#[test]
fn what_is_damaged_or_there_in_another_form_stays_as_it_is() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let (sample, other) = (segment(3, 7), segment(3, 8));
    assert_stored(&archive, &sample);
    let compressor = compressor(&places);
    let mut damaged = sample.bytes.clone();
    damaged[5000] ^= 1;
    for (plain, packed) in [(&damaged, None), (&sample.bytes, Some(&other.bytes))] {
        std::fs::write(plain_path(&places, &sample), plain).unwrap();
        if let Some(packed) = packed {
            let packed = zstd::stream::encode_all(&packed[..], 1).unwrap();
            std::fs::write(packed_path(&places, &sample), packed).unwrap();
        }
        let left = compressor
            .pack(sample.name, StoreCompression::default())
            .unwrap();
        assert!(matches!(left, Compressed::Left { .. }), "{left:?}");
        assert_eq!(std::fs::read(plain_path(&places, &sample)).unwrap(), *plain);
        assert_eq!(packed_path(&places, &sample).exists(), packed.is_some());
    }
}

#[test]
fn fault_198_a_conversion_that_was_killed_between_its_steps_is_finished() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let (archive, sample) = (packing(&places), segment(3, 7));
    assert_stored(&archive, &sample);
    std::fs::write(plain_path(&places, &sample), &sample.bytes).unwrap();
    let packed = compressor(&places).pack(sample.name, StoreCompression::default());
    assert!(matches!(packed.unwrap(), Compressed::Packed { .. }));
    assert_eq!(names(&places), [format!("{}.zst", sample.name)]);
    assert_eq!(served(&places, sample.name).unwrap(), Some(sample.bytes));
}

/// What a `compress` leaves that was killed: the last of these in `completed_wals`.
fn left_by_compress(places: &ArchiveFolders) -> Vec<String> {
    let entries = std::fs::read_dir(&places.completed_wals).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| name.starts_with(".packing.") || name.starts_with(".retired."))
        .collect()
}

#[test]
fn fault_219_what_a_killed_compress_left_goes_with_the_next_or_a_start() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let sample = segment(3, 7);
    assert_stored(&packing(&places), &sample);
    let at = |prefix: &str| {
        let name = format!("{prefix}{}.0123456789abcdef", sample.name);
        places.completed_wals.join(name)
    };
    let clearers: [&dyn Fn(); 3] = [
        &|| drop(compressor(&places)),
        &|| drop(open(&places)),
        &|| {
            let archive = open(&places);
            std::fs::write(at(".packing."), "half").unwrap();
            let mut rounds = archive.rounds(None).unwrap();
            while !rounds.step().unwrap().is_round_done {}
        },
    ];
    for clear in clearers {
        std::fs::write(at(".packing."), "half").unwrap();
        std::fs::write(at(".retired."), &sample.bytes).unwrap();
        clear();
        assert_eq!(left_by_compress(&places), [""; 0]);
        assert!(!plain_path(&places, &sample).exists() && packed_path(&places, &sample).exists());
    }
    // Beside one that runs, its files stay.
    let running = compressor(&places);
    std::fs::write(at(".packing."), "half").unwrap();
    drop(open(&places));
    assert_eq!(left_by_compress(&places).len(), 1);
    drop(running);
    drop(open(&places));
    assert_eq!(left_by_compress(&places), [""; 0]);
}

#[test]
fn fault_219_another_file_that_a_killed_compress_moved_gets_its_name_back() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let (sample, other) = (segment(3, 7), segment(3, 8));
    let retired = places
        .completed_wals
        .join(format!(".retired.{}.0123456789abcdef", sample.name));
    // Nothing else has the name; the packed form of another file has it; another plain file has it.
    assert_stored(&open(&places), &other);
    let plain = plain_path(&places, &sample);
    std::fs::rename(&plain, &retired).unwrap();
    drop(open(&places));
    assert_eq!(
        served(&places, sample.name).unwrap(),
        Some(other.bytes.clone())
    );

    let old = zstd::stream::encode_all(&sample.bytes[..], 1).unwrap();
    std::fs::write(packed_path(&places, &sample), old).unwrap();
    std::fs::rename(&plain, &retired).unwrap();
    drop(compressor(&places));
    assert_eq!(
        served(&places, sample.name).unwrap(),
        Some(other.bytes.clone())
    );
    assert_eq!(left_by_compress(&places), [""; 0]);

    std::fs::rename(&plain, &retired).unwrap();
    std::fs::remove_file(packed_path(&places, &sample)).unwrap();
    std::fs::write(&plain, &sample.bytes).unwrap();
    drop(open(&places));
    let kept = format!("{}.displaced", sample.name);
    let kept = std::fs::read(places.completed_wals.join(kept)).unwrap();
    assert!(kept == other.bytes && std::fs::read(&plain).unwrap() == sample.bytes);
}

#[test]
fn a_packed_segment_keeps_the_time_of_the_plain_one() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let sample = segment(3, 7);
    assert_stored(&open(&places), &sample);
    let written =
        std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(1_700_000_000, 5_000);
    let plain = std::fs::File::options()
        .write(true)
        .open(plain_path(&places, &sample));
    plain.unwrap().set_modified(written).unwrap();
    let packed = compressor(&places).pack(sample.name, StoreCompression::default());
    assert!(matches!(packed.unwrap(), Compressed::Packed { .. }));
    let stored = std::fs::metadata(packed_path(&places, &sample)).unwrap();
    assert_eq!(stored.modified().unwrap(), written);
}

#[test]
fn a_segment_that_cannot_be_read_keeps_no_other_from_being_packed() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let samples = [segment(3, 7), segment(4, 7)];
    for sample in &samples {
        assert_stored(&archive, sample);
    }
    let disk = super::testing::FaultyDisk::over(real());
    let name = samples[0].name.to_string();
    disk.fail_named(super::testing::Op::Read, &name, rustix::io::Errno::IO);
    let compressor = Compressor::open(&places.completed_wals, disk)
        .unwrap()
        .unwrap();
    let form = StoreCompression::default();
    let error = compressor.pack(samples[0].name, form).unwrap_err();
    assert!(compressor.concerns_one(&error), "{error}");
    let packed = compressor.pack(samples[1].name, form).unwrap();
    assert!(matches!(packed, Compressed::Packed { .. }));
    assert!(served(&places, samples[0].name).unwrap() == Some(samples[0].bytes.clone()));
}

#[test]
fn a_round_goes_by_what_a_packed_segment_unpacks_to() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let (archive, sample) = (packing(&places), segment(3, 7));
    assert_stored(&archive, &sample);
    let mut rounds = archive.rounds(None).unwrap();
    let mut read_bytes = 0;
    loop {
        let stride = rounds.step().unwrap();
        read_bytes += stride.read_bytes;
        if stride.is_round_done {
            break;
        }
    }
    assert_eq!(read_bytes, sample.len());
}
