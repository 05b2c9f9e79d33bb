//! Valid WAL files and archives to put them in.
//! Never talks to a server. Invariant: a sample is as short as PostgreSQL allows and passes every
//! check the archive makes.

use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;
use walmgr_protocol::names::{SystemId, WalFileName, WalSegmentSize};

use crate::store::checksums::CHECKSUMS_NAME;
use crate::store::{Archive, ArchiveFolders, Binding, Disk, FileSealed, RealDisk, StoreError};
use crate::wal::segment::Verify;

/// The cluster of every sample: the smallest segments there are.
pub(crate) const BINDING: Binding = Binding {
    system_id: SystemId(7_301_234_567_890_123_456),
    segment_size: WalSegmentSize::new(1 << 20).expect("a size PostgreSQL has"),
    postgres_major: 15,
};

const LONG_HEADER_BYTES: usize = 40;
const RECORD_HEADER_BYTES: usize = 24;

/// A file to store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) name: WalFileName,
    pub(crate) bytes: Vec<u8>,
}

impl Sample {
    pub(crate) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(crate) fn crc32(&self) -> u32 {
        crc32fast::hash(&self.bytes)
    }
}

/// A segment of timeline 1 that ends early with a switch; `filler` stands behind the switch,
/// where nothing is checked, so segments of one name can differ.
pub(crate) fn segment(number: u64, filler: u8) -> Sample {
    let start = number * BINDING.segment_size.bytes();
    let name = format!(
        "00000001{:08X}{:08X}",
        start >> 32,
        (start & 0xFFFF_FFFF) >> 20
    );
    let mut bytes = vec![0_u8; 1 << 20];
    // XLogLongPageHeaderData, src/include/access/xlog_internal.h; the magic is PostgreSQL 15's.
    bytes[0..2].copy_from_slice(&0xD110_u16.to_le_bytes());
    bytes[2..4].copy_from_slice(&2_u16.to_le_bytes());
    bytes[4..8].copy_from_slice(&1_u32.to_le_bytes());
    bytes[8..16].copy_from_slice(&start.to_le_bytes());
    bytes[24..32].copy_from_slice(&BINDING.system_id.0.to_le_bytes());
    bytes[32..36].copy_from_slice(&(1_u32 << 20).to_le_bytes());
    bytes[36..40].copy_from_slice(&8192_u32.to_le_bytes());
    // XLogRecord, src/include/access/xlogrecord.h: an XLOG_SWITCH without data.
    let record = &mut bytes[LONG_HEADER_BYTES..LONG_HEADER_BYTES + RECORD_HEADER_BYTES];
    record[0..4].copy_from_slice(&24_u32.to_le_bytes());
    // The switch of the segment before.
    let previous = start - (1 << 20) + LONG_HEADER_BYTES as u64;
    record[8..16].copy_from_slice(&previous.to_le_bytes());
    record[16] = 0x40;
    let crc = crc32c::crc32c(&record[..20]);
    record[20..24].copy_from_slice(&crc.to_le_bytes());
    let last = bytes.len() - 1;
    bytes[last] = filler;
    Sample {
        name: name.parse().unwrap(),
        bytes,
    }
}

/// The history of a timeline that branched off timeline 1.
pub(crate) fn history_file(timeline: u32, reason: &str) -> Sample {
    Sample {
        name: format!("{timeline:08X}.history").parse().unwrap(),
        bytes: format!("1\t0/3000000\t{reason}\n").into_bytes(),
    }
}

/// A directory in memory where there is one: the tests count syncs, they do not need slow ones.
pub(crate) fn scratch_folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

pub(crate) fn places(root: &Path) -> ArchiveFolders {
    ArchiveFolders {
        completed_wals: root.join("logs.complete"),
        partial_wals: root.join("logs.partial"),
    }
}

/// An archive below `root` that is bound to the samples' cluster.
pub(crate) fn new_archive(root: &Path) -> ArchiveFolders {
    let places = places(root);
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    Archive::create(&places, Arc::clone(&disk)).unwrap();
    Archive::open(&places, disk)
        .unwrap()
        .bind(&BINDING)
        .unwrap();
    places
}

/// An archive of empty files of these names; timeline 2 left timeline 1 in the middle of segment 5.
pub(crate) fn archive_of_names(root: &Path, names: &[&str]) -> ArchiveFolders {
    let places = new_archive(root);
    for name in names {
        let text = match name.ends_with(".history") {
            true => "1\t0/580000\tpromoted\n",
            false => "",
        };
        std::fs::write(places.completed_wals.join(name), text).unwrap();
    }
    places
}

/// Sends a whole file the way a receiver does.
pub(crate) fn push(archive: &Archive, sample: &Sample) -> Result<FileSealed, StoreError> {
    let mut incoming = archive.begin(sample.name, sample.len(), Verify::Records)?;
    for block in sample.bytes.chunks(512 << 10) {
        incoming.write(block)?;
    }
    incoming.seal(sample.len(), sample.crc32())
}

/// The production disk.
pub(crate) fn real() -> Arc<dyn Disk> {
    Arc::new(RealDisk)
}

/// Opens an archive that has to be in order.
pub(crate) fn open(places: &ArchiveFolders) -> Archive {
    Archive::open(places, real()).unwrap()
}

/// Stores a file that has to be accepted.
pub(crate) fn assert_stored(archive: &Archive, sample: &Sample) {
    match push(archive, sample) {
        Ok(FileSealed::Stored(proof)) => assert_eq!(proof.name(), sample.name),
        other => panic!("{}: {other:?}", sample.name),
    }
}

/// What stands under the file's final name.
pub(crate) fn stored_bytes(places: &ArchiveFolders, sample: &Sample) -> Vec<u8> {
    std::fs::read(places.completed_wals.join(sample.name.to_string())).unwrap()
}

/// The names that are neither the marker nor the lock nor what is kept of files.
pub(crate) fn names(places: &ArchiveFolders) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(&places.completed_wals)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| {
            let own = [CHECKSUMS_NAME, ".apart", ".maps", ".names"];
            !name.starts_with(".walmgr") && !own.contains(&name.as_str())
        })
        .collect();
    names.sort();
    names
}
