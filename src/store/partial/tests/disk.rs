//! What the partial stream asks of the disk before it calls records durable.
//! Never breaks a real disk. Invariant tested: what is acknowledged was read from the disk, or synced to it.

use rustix::io::Errno;

use super::super::acknowledged::Acknowledged;
use super::*;
use crate::store::Health;
use crate::store::testing::{FaultyDisk, Op};

fn shipped_on(
    places: &ArchiveFolders,
) -> (std::sync::Arc<FaultyDisk>, Archive, PartialStream, Wal) {
    let disk = FaultyDisk::over(real());
    let archive = Archive::open(places, disk.clone()).unwrap();
    let wal = Wal::of(&[100, 200, 300], 7);
    let mut stream = begin(&archive);
    open_with(&mut stream, &wal.bytes).unwrap();
    append(&mut stream, &wal, 0, wal.ends[1]).unwrap();
    (disk, archive, stream, wal)
}

#[test]
fn a_failed_sync_of_records_is_known_before_the_cache_is_dropped() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let (disk, archive, mut stream, wal) = shipped_on(&places);
    disk.fail(Op::SyncBytes, 0, 1, Errno::IO);
    let forgets = disk.stall(Op::ForgetCache);
    let failing = std::thread::spawn(move || append(&mut stream, &wal, wal.ends[1], wal.ends[2]));
    forgets.wait();
    let health = archive.health();
    forgets.wait();
    failing.join().unwrap().unwrap_err();
    assert!(matches!(health, Health::SyncFailed { .. }));
}

#[test]
fn the_first_acknowledgement_of_rewritten_records_is_noted() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let (_, archive, mut stream, _) = shipped_on(&places);
    let anew = Wal::of(&[100, 350, 20], 7);
    open_with(&mut stream, &anew.bytes).unwrap();
    stream.rewrite().unwrap();
    let end = append(&mut stream, &anew, 0, anew.ends[2]).unwrap();
    let noted = Acknowledged::read(&archive.shared.partial, name(3)).unwrap();
    assert_eq!(noted.map(|noted| noted.end), Some(end));
}

#[test]
fn a_segment_that_is_opened_again_is_read_from_the_disk() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let (disk, archive, mut stream, wal) = shipped_on(&places);
    let is_read_anew = |before: usize| {
        let log = disk.log().split_off(before);
        let of = |op| {
            let call = (op, name(3).to_string());
            log.iter().position(|other| *other == call).unwrap()
        };
        of(Op::SyncFile) < of(Op::ForgetCache) && of(Op::ForgetCache) < of(Op::Read)
    };
    let before = disk.log().len();
    open_with(&mut stream, &wal.bytes).unwrap();
    assert!(is_read_anew(before), "by the stream");
    drop((stream, archive));
    let archive = Archive::open(&places, disk.clone()).unwrap();
    let whole = Wal::finished(&[100, 200], 7);
    std::fs::write(places.partial_wals.join(name(3).to_string()), &whole.bytes).unwrap();
    let held = archive
        .held_prefix(whole.name, Verify::Records)
        .unwrap()
        .unwrap();
    let before = disk.log().len();
    let sealed = held.seal(SIZE, whole.crc32()).unwrap();
    assert!(matches!(sealed, FileSealed::Stored(_)));
    assert!(is_read_anew(before), "by a push");
}

#[test]
fn the_name_of_an_archived_segment_is_synced_before_it_is_called_held() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let disk = FaultyDisk::over(real());
    let archive = Archive::open(&places, disk.clone()).unwrap();
    assert_stored(&archive, &Wal::finished(&[100, 200], 7));
    let before = disk.log().len();
    let wal = Wal::of(&[100, 200], 7);
    open_with(&mut begin(&archive), &wal.bytes).unwrap();
    let log = disk.log().split_off(before);
    assert!(
        log.iter().any(|(op, _)| *op == Op::SyncDirectory),
        "{log:?}"
    );
}
