//! The freeze between a receiver and whoever boots, at each moment of a delta.
//! Never talks to a server. Invariant tested: what was acknowledged is in the copies, whose bytes do
//! not change, and nothing is acknowledged behind a freeze.

use super::*;
use crate::store::testing::real;
use crate::store::{Freeze, OwnSegment, PartialWals};

fn booting(places: &ArchiveFolders) -> PartialWals {
    PartialWals::open(&places.partial_wals, real()).unwrap()
}

fn freeze(partials: &PartialWals) -> Freeze {
    partials
        .freeze(timeline(1), "41 1700", false, |_| Ok(true), &|_| Ok(None))
        .unwrap()
}

fn copy(partials: &PartialWals, freeze: &Freeze) -> Vec<u8> {
    let [frozen] = freeze.segments.as_deref().unwrap() else {
        panic!("{freeze:?}");
    };
    let mut bytes = Vec::new();
    let read = partials.read_copy(frozen, |piece| {
        bytes.extend_from_slice(piece);
        true
    });
    read.unwrap();
    bytes
}

fn is_refused<T>(result: Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Frozen { .. }))
}

fn padded(wal: &Wal, bytes: u64) -> Vec<u8> {
    let mut padded = wal.bytes[..usize::try_from(bytes).unwrap()].to_vec();
    padded.resize(usize::try_from(SIZE).unwrap(), 0);
    padded
}

#[test]
fn fault_77_a_delta_in_flight_is_refused_or_in_the_copy() {
    let wal = Wal::of(&[100, 9_000, 300, 400], 1);
    // Frozen before a delta is written, between its pieces, before it is synced, behind that.
    for moment in 0..4 {
        let folder = scratch_folder();
        let places = new_archive(folder.path());
        let archive = open(&places);
        let mut stream = begin(&archive);
        open_with(&mut stream, &[]).unwrap();
        let acknowledged = append(&mut stream, &wal, 0, wal.ends[0]).unwrap();
        let partials = booting(&places);
        let mut frozen = None;
        let (from, middle, to) = (wal.ends[0], wal.ends[0] + 4_096, wal.ends[1]);
        let pieces = [(from, middle), (middle, to)];
        let mut outcome = Ok(());
        for (at, (from, to)) in pieces.into_iter().enumerate() {
            if moment == at {
                frozen = Some(freeze(&partials));
            }
            let range = usize::try_from(from).unwrap()..usize::try_from(to).unwrap();
            let bytes = &wal.bytes[range];
            outcome = outcome.and_then(|()| stream.append(from, Lsn(3 * SIZE), bytes));
        }
        if moment == 2 {
            frozen = Some(freeze(&partials));
        }
        let synced = outcome.and_then(|()| stream.sync());
        assert_eq!(is_refused(synced), moment < 3, "{moment}");
        let frozen = frozen.unwrap_or_else(|| freeze(&partials));
        let whole = if moment < 2 { wal.ends[0] } else { wal.ends[1] };
        assert_eq!(copy(&partials, &frozen), padded(&wal, whole), "{moment}");
        let [segment] = frozen.segments.as_deref().unwrap() else {
            panic!()
        };
        assert!(segment.end >= acknowledged);
        assert_eq!(segment.end, Lsn(3 * SIZE + whole));
    }
}

#[test]
fn fault_76_frozen_copy_stays_and_the_stream_is_refused_until_thawed() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let wal = Wal::of(&[100, 200, 300], 1);
    let mut stream = begin(&archive);
    open_with(&mut stream, &[]).unwrap();
    append(&mut stream, &wal, 0, wal.ends[0]).unwrap();
    let partials = booting(&places);
    let frozen = freeze(&partials);
    assert!(is_refused(append(
        &mut stream,
        &wal,
        wal.ends[0],
        wal.ends[1]
    )));
    assert!(is_refused(open_with(&mut stream, &[])));
    assert_eq!(copy(&partials, &frozen), padded(&wal, wal.ends[0]));
    drop((stream, archive));
    // Another process, and once more for the same server.
    let archive = open(&places);
    assert!(is_refused(archive.partial_stream(timeline(1)).map(drop)));
    assert_eq!(freeze(&partials), frozen);
    assert_eq!(copy(&partials, &frozen), padded(&wal, wal.ends[0]));
    // A newer timeline is not concerned.
    assert_stored(&archive, &history_file(2, "promoted"));
    archive.partial_stream(timeline(2)).unwrap();
    std::fs::remove_file(places.completed_wals.join("00000002.history")).unwrap();

    assert!(partials.thaw().unwrap() && !partials.thaw().unwrap());
    assert!(
        partials
            .read_copy(&frozen.segments.unwrap()[0], |_| true)
            .is_err()
    );
    let mut stream = begin(&archive);
    open_with(
        &mut stream,
        &wal.bytes[..usize::try_from(wal.ends[0]).unwrap()],
    )
    .unwrap();
    append(&mut stream, &wal, wal.ends[0], wal.ends[2]).unwrap();
    // Frozen anew, with what came since.
    let frozen = freeze(&partials);
    assert_eq!(copy(&partials, &frozen), padded(&wal, wal.ends[2]));
    std::fs::write(places.partial_wals.join("FROZEN"), "nonsense").unwrap();
    assert!(open_with(&mut stream, &[]).is_err() && partials.frozen().is_err());
    let frozen = freeze(&partials);
    assert_eq!(copy(&partials, &frozen), padded(&wal, wal.ends[2]));
    assert!(is_refused(open_with(&mut stream, &[])));
}

#[test]
fn fault_79_83_what_is_frozen_is_never_finished_in_place() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let bodies = [100, 200, 300];
    let (wal, finished) = (Wal::of(&bodies, 1), Wal::finished(&bodies, 1));
    let mut stream = begin(&archive);
    open_with(&mut stream, &[]).unwrap();
    append(&mut stream, &wal, 0, wal.ends[1]).unwrap();
    let partials = booting(&places);
    let frozen = freeze(&partials);
    let held = archive.held_prefix(finished.name, Verify::Records);
    assert!(held.unwrap().is_none());
    // Brought whole it is archived; the copy is what it was.
    assert_stored(&archive, &finished);
    archive.settle_partial(finished.name).unwrap();
    assert_eq!(copy(&partials, &frozen), padded(&wal, wal.ends[1]));
    drop((stream, archive));
    open(&places);
    assert_eq!(copy(&partials, &frozen), padded(&wal, wal.ends[1]));
}

#[test]
fn fault_76_repeated_boot_replays_what_was_finished_since() {
    let wal = Wal::of(&[100, 200, 300], 1);
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let mut stream = begin(&archive);
    open_with(&mut stream, &[]).unwrap();
    append(&mut stream, &wal, 0, wal.ends[0]).unwrap();
    let partials = booting(&places);
    assert_eq!(freeze(&partials).segments.unwrap().len(), 1);
    assert_stored(&archive, &Wal::finished(&[100, 200, 300], 1));
    let again = partials.freeze(timeline(1), "41 1700", false, |_| Ok(false), &|_| Ok(None));
    assert_eq!(again.unwrap().segments, Some(Vec::new()));
    assert_eq!(
        partials.frozen().unwrap().unwrap().segments,
        Some(Vec::new())
    );
}

#[test]
fn server_with_more_wal_is_told_from_one_with_less_or_other() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let wal = Wal::of(&[100, 20_000, 300], 1);
    let mut stream = begin(&archive);
    open_with(&mut stream, &[]).unwrap();
    append(&mut stream, &wal, 0, wal.ends[1]).unwrap();
    let partials = booting(&places);
    let frozen = freeze(&partials).segments.unwrap()[0];
    let compared = |bytes: &[u8]| {
        let path = folder.path().join("own");
        std::fs::write(&path, bytes).unwrap();
        let own = std::fs::File::open(path).unwrap();
        partials.compare(&frozen, &own).unwrap()
    };
    for bytes in [0, wal.ends[0], wal.ends[0] + 9_000, wal.ends[1]] {
        assert_eq!(compared(&padded(&wal, bytes)), OwnSegment::NoMore);
    }
    // A segment that was recycled, and one that was cut.
    assert_eq!(compared(&vec![7; 1 << 20]), OwnSegment::NoMore);
    assert_eq!(compared(&[]), OwnSegment::NoMore);
    assert_eq!(compared(&padded(&wal, wal.ends[2])), OwnSegment::Further);
    let other = Wal::of(&[100, 20_000, 300], 2);
    assert_eq!(compared(&padded(&other, wal.ends[2])), OwnSegment::Other);
}

#[test]
fn fault_76_a_freeze_with_a_flipped_bit_is_found_and_nothing_passes() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let wal = Wal::of(&[100, 200], 1);
    let mut stream = begin(&archive);
    open_with(&mut stream, &[]).unwrap();
    append(&mut stream, &wal, 0, wal.ends[1]).unwrap();
    let partials = booting(&places);
    let frozen = freeze(&partials);
    let path = places.partial_wals.join("FROZEN");
    let text = std::fs::read(&path).unwrap();
    for at in 0..text.len() {
        let mut flipped = text.clone();
        flipped[at] ^= 1 << (at % 7);
        std::fs::write(&path, flipped).unwrap();
        assert!(partials.frozen().is_err(), "byte {at}");
        assert!(archive.partial_stream(timeline(1)).is_err(), "byte {at}");
    }
    std::fs::write(&path, text).unwrap();
    assert_eq!(partials.frozen().unwrap(), Some(frozen));
}
