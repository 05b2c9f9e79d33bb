//! A master's other records that end in no segment of their own, or are the rest of one.
//! Never talks to a server. Invariant tested: what is acknowledged of them is on the disk under the segment's name.

use super::*;

/// WAL from segment 3 on, up to a record that begins 5000 bytes before segment 4 and ends in it; then one more.
fn crossing(fill: u8) -> (Vec<u8>, u64) {
    let mut writer = WalWriter::new(name(3), BINDING.segment_size, BINDING.system_id, 15);
    while writer.bytes().len() as u64 + 10_000 < SIZE {
        writer.record(10, 0, &[7; 4_000]);
    }
    let begins = writer.bytes().len() as u64;
    writer.record(10, 0, &[fill; 20_000]);
    let end = writer.position().0 - 4 * SIZE;
    writer.record(10, 0, &[fill; 100]);
    assert!(begins < SIZE && end > 0);
    (writer.bytes().to_vec(), end)
}

fn open_segment(stream: &mut PartialStream, number: u64, bytes: &[u8]) -> At {
    let open = Open {
        segment: name(number),
        bytes: bytes.len() as u64,
        crc32: crc32fast::hash(bytes),
    };
    stream.open(&open).unwrap()
}

fn shipped(places: &ArchiveFolders, number: u64) -> Vec<u8> {
    std::fs::read(places.partial_wals.join(name(number).to_string())).unwrap()
}

#[test]
fn fault_151_a_crossing_record_waits_for_its_beginning() {
    let size = usize::try_from(SIZE).unwrap();
    let (old, _) = crossing(7);
    let (anew, _) = crossing(9);
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let mut stream = begin(&archive);
    open_segment(&mut stream, 3, &[]);
    stream.append(0, Lsn(3 * SIZE), &old[..size]).unwrap();
    stream.sync().unwrap();
    let mut stream = begin(&archive);
    open_segment(&mut stream, 3, &anew[..size]);
    stream.rewrite().unwrap();
    stream.append(0, Lsn(3 * SIZE), &anew[..size]).unwrap();
    let refused = stream.sync().unwrap_err();
    assert!(matches!(refused, StoreError::Diverged { .. }), "{refused}");
    assert!(shipped(&places, 3) == old[..size], "nothing is dropped yet");
    // Its archiver brings the segment, and the stream goes on behind it.
    let sample = Sample {
        name: WalFileName::Segment(name(3)),
        bytes: anew[..size].to_vec(),
    };
    assert!(matches!(
        finish(&archive, &sample).unwrap(),
        FileSealed::Stored(_)
    ));
    let mut stream = begin(&archive);
    open_segment(&mut stream, 4, &[]);
    stream.append(0, Lsn(4 * SIZE), &anew[size..]).unwrap();
    stream.sync().unwrap();
    assert!(stored_bytes(&places, &sample) == sample.bytes);
    assert!(shipped(&places, 4)[..anew.len() - size] == anew[size..]);
}

#[test]
fn fault_151_the_rest_of_a_record_is_in_place_when_it_is_acknowledged() {
    let size = usize::try_from(SIZE).unwrap();
    let (old, _) = crossing(7);
    let (anew, end) = crossing(9);
    let to = size + usize::try_from(end).unwrap();
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let mut stream = begin(&archive);
    open_segment(&mut stream, 4, &[]);
    stream.append(0, Lsn(4 * SIZE), &old[size..]).unwrap();
    stream.sync().unwrap();
    let ship = |archive: &Archive| {
        let mut stream = begin(archive);
        open_segment(&mut stream, 4, &anew[size..to]);
        stream.rewrite().unwrap();
        stream
            .append(0, Lsn(4 * SIZE + end), &anew[size..to])
            .unwrap();
        stream.sync().map(|proof| proof.end())
    };
    // Without the segment before it nothing says that it is a record.
    let refused = ship(&archive).unwrap_err();
    assert!(matches!(refused, StoreError::Diverged { .. }), "{refused}");
    assert!(shipped(&places, 4)[..old.len() - size] == old[size..]);
    let sample = Sample {
        name: WalFileName::Segment(name(3)),
        bytes: anew[..size].to_vec(),
    };
    assert_stored(&archive, &sample);
    assert_eq!(ship(&archive).unwrap(), Lsn(4 * SIZE + end));
    assert!(shipped(&places, 4)[..to - size] == anew[size..to]);
}
