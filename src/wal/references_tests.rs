//! Tests of what records are found to change.

use proptest::prelude::*;
use walmgr_protocol::names::{Lsn, SegmentName, SystemId, TimelineId, WalSegmentSize};

use super::changes::{Changes, EverythingReason, Fork, RelationFork};
use super::record::{RM_XLOG, RecordHeader};
use super::references::{REFERENCES_BYTES_MAX, note_record};
use super::scan::{ScanStep, Scanner};
use super::segment_map::SegmentMap;
use super::writer::WalWriter;

const MIB: WalSegmentSize = WalSegmentSize::new(1 << 20).expect("a size PostgreSQL has");
const RM_SMGR: u8 = 2;
const RM_DBASE: u8 = 4;
const RM_HEAP: u8 = 10;

fn main_fork(relfilenode: u32) -> RelationFork {
    RelationFork {
        tablespace: 1663,
        database: 5,
        relfilenode,
        fork: Fork::Main,
    }
}

/// A block of a record as it is written.
#[derive(Debug, Clone)]
struct WrittenBlock {
    fork: RelationFork,
    block: u32,
    same: bool,
    /// Image flags of 15 and later, and how many bytes.
    image: Option<(u8, u16)>,
    data_bytes: u16,
}

/// The body of a record with these blocks and this main data.
fn body(blocks: &[WrittenBlock], major: u8, main: &[u8]) -> Vec<u8> {
    let (mut headers, mut data_bytes) = (Vec::new(), 0);
    for (id, block) in (0_u8..).zip(blocks) {
        let mut flags = block.fork.fork.number() | 0x20;
        flags |= if block.same { 0x80 } else { 0 };
        flags |= if block.image.is_some() { 0x10 } else { 0 };
        headers.extend([id, flags]);
        headers.extend(block.data_bytes.to_le_bytes());
        data_bytes += usize::from(block.data_bytes);
        if let Some((image, image_bytes)) = block.image {
            let is_compressed = image & 0x1C != 0;
            // "Apply" is 0x02 since 15, and 0x04 before; "compressed" was 0x02.
            let written = match major {
                15.. => image,
                _ => image & 1 | if is_compressed { 2 } else { 0 } | 4,
            };
            headers.extend(image_bytes.to_le_bytes());
            headers.extend([9, 0, written]);
            if image & 1 != 0 && is_compressed {
                headers.extend([7, 7]);
            }
            data_bytes += usize::from(image_bytes);
        }
        if !block.same {
            for field in [
                block.fork.tablespace,
                block.fork.database,
                block.fork.relfilenode,
            ] {
                headers.extend(field.to_le_bytes());
            }
        }
        headers.extend(block.block.to_le_bytes());
    }
    match u8::try_from(main.len()) {
        Ok(0) => {}
        Ok(bytes) => headers.extend([255, bytes]),
        Err(_) => {
            headers.push(254);
            headers.extend(u32::try_from(main.len()).unwrap().to_le_bytes());
        }
    }
    headers.resize(headers.len() + data_bytes, 0xEE);
    headers.extend(main);
    headers
}

fn writer(major: u8) -> WalWriter {
    let segment = SegmentName::from_number(TimelineId::FIRST, 3, MIB);
    WalWriter::new(segment, MIB, SystemId(7), major)
}

/// What a scanner notes that is fed in pieces of this length.
fn scanned(wal: &[u8], piece_bytes: usize) -> SegmentMap {
    let mut scanner = Scanner::new(Lsn(3 << 20), MIB).noting_changes();
    for mut piece in wal.chunks(piece_bytes) {
        while let ScanStep::Record(_) = scanner.advance(&mut piece) {}
    }
    SegmentMap::take(&mut scanner).unwrap()
}

fn noted(major: u8, rmid: u8, info: u8, body: &[u8]) -> Changes {
    let mut writer = writer(major);
    writer.record(rmid, info, body);
    scanned(writer.bytes(), 8192).changes
}

fn fields(values: &[u32]) -> Vec<u8> {
    let data = values.iter().flat_map(|value| value.to_le_bytes());
    body(&[], 15, &data.collect::<Vec<u8>>())
}

#[test]
fn fault_200_lengths_and_copied_databases_are_changes() {
    let create = fields(&[1663, 5, 99, 0]);
    let mut expected = Changes::default();
    expected.add_limit(main_fork(99), 0);
    assert_eq!(noted(15, RM_SMGR, 0x10, &create), expected);
    let mut expected = Changes::default();
    expected.add_limit(main_fork(99), 7);
    assert_eq!(
        noted(15, RM_SMGR, 0x20, &fields(&[7, 1663, 5, 99, 7])),
        expected
    );
    // Only its maps are cut.
    let maps_only = noted(15, RM_SMGR, 0x20, &fields(&[7, 1663, 5, 99, 6]));
    assert_eq!(maps_only, Changes::default());
    let mut database = Changes::default();
    database.add_database(1663, 77);
    let created = fields(&[77, 1663, 1, 1663]);
    for major in 13..=18 {
        assert_eq!(noted(major, RM_DBASE, 0x00, &created), database);
    }
    // Block by block in 15; what was removed in 14.
    assert_eq!(noted(15, RM_DBASE, 0x10, &created), database);
    assert_eq!(noted(14, RM_DBASE, 0x10, &created), Changes::default());
}

#[test]
fn fault_201_what_no_record_is_known_to_do_changes_everything() {
    let reason = |rmid, info, body: &[u8]| {
        let everything = noted(15, rmid, info, body).everything();
        everything.map(|(_, reason)| reason)
    };
    let some = fields(&[1, 2]);
    assert_eq!(reason(130, 0, &some), Some(EverythingReason::Manager(130)));
    assert_eq!(reason(22, 0, &some), Some(EverythingReason::Manager(22)));
    let record = |rmid, info| Some(EverythingReason::Record { rmid, info });
    assert_eq!(reason(RM_SMGR, 0x30, &some), record(RM_SMGR, 0x30));
    assert_eq!(reason(RM_XLOG, 0xC0, &some), record(RM_XLOG, 0xC0));
    for garbled in [
        &[0, 0x80, 0, 0, 1, 0, 0, 0][..],
        &[77, 1, 2],
        &[0, 0x0F, 0, 0],
    ] {
        let garbled = [garbled, &[0; 12]].concat();
        assert_eq!(
            reason(RM_HEAP, 0, &garbled),
            Some(EverythingReason::Garbled(RM_HEAP))
        );
    }
    assert_eq!(
        reason(RM_SMGR, 0x10, &some),
        Some(EverythingReason::Garbled(RM_SMGR))
    );
    let minimal = fields(&[1, 2, 3, 4, 5, 0]);
    assert_eq!(
        reason(RM_XLOG, 0x60, &minimal),
        Some(EverythingReason::Minimal)
    );
    assert_eq!(reason(RM_XLOG, 0x60, &fields(&[1, 2, 3, 4, 5, 1])), None);
}

#[test]
fn a_reset_changes_everything() {
    let mut writer = writer(15).following(Lsn(0));
    writer.record(RM_XLOG, 0, &fields(&[0; 22]));
    let everything = scanned(writer.bytes(), 4096).changes.everything();
    assert!(matches!(everything, Some((_, EverythingReason::Reset))));
}

#[test]
fn every_known_record_of_a_server_without_blocks_changes_nothing() {
    for rmid in [1, 3, 5, 6, 7, 8, 11, 18, 19, 20, 21] {
        let changes = noted(18, rmid, 0, &fields(&[1, 2, 3]));
        assert_eq!(changes, Changes::default(), "{rmid}");
    }
}

fn blocks() -> impl Strategy<Value = Vec<WrittenBlock>> {
    let block = (
        (16_384_u32..16_390, 0_u32..4, 0_u32..5_000),
        any::<bool>(),
        prop::option::of((0_u8..8, 1_u16..9_000)),
        0_u16..300,
    );
    let block = block.prop_map(|((relfilenode, fork, block), same, image, data_bytes)| {
        let kinds = [0x02, 0x03, 0x06, 0x07, 0x0A, 0x0B, 0x12, 0x13];
        WrittenBlock {
            fork: RelationFork {
                fork: Fork::of_number(fork).unwrap(),
                ..main_fork(relfilenode)
            },
            block,
            same,
            image: image.map(|(kind, bytes)| (kinds[usize::from(kind)], bytes)),
            data_bytes,
        }
    });
    let blocks = prop::collection::vec(block, 0..33);
    blocks.prop_map(|mut blocks| {
        let mut relation = None;
        for block in &mut blocks {
            let fork = block.fork.fork;
            match relation {
                Some(before) if block.same => block.fork = RelationFork { fork, ..before },
                _ => block.same = false,
            }
            relation = Some(block.fork);
        }
        blocks
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn fault_200_every_block_is_noted_wherever_the_record_lies(
        major in 13_u8..=18,
        records in prop::collection::vec((blocks(), 0_usize..600), 1..20),
        piece_bytes in 1_usize..9_000,
    ) {
        let mut writer = writer(major);
        let mut expected = Changes::default();
        for (blocks, main_bytes) in &records {
            writer.record(RM_HEAP, 0x10, &body(blocks, major, &vec![0xDD; *main_bytes]));
            for block in blocks {
                expected.add_block(block.fork, block.block);
            }
        }
        let map = scanned(writer.bytes(), piece_bytes);
        prop_assert_eq!(&map.changes, &expected);
        prop_assert_eq!(map.open, None);
    }

    #[test]
    fn a_record_cut_anywhere_is_open_or_noted(
        major in 13_u8..=18, blocks in blocks(), cut: prop::sample::Index, skipped in 0_usize..9_000,
    ) {
        let mut writer = writer(major);
        writer.record(RM_XLOG, 0x20, &body(&[], major, &vec![0; skipped]));
        let record = writer.record(RM_HEAP, 0, &body(&blocks, major, &[1; 300]));
        let mut expected = Changes::default();
        for block in &blocks {
            expected.add_block(block.fork, block.block);
        }
        let at = usize::try_from(record.lsn.0 - (3 << 20)).unwrap();
        let length = cut.index(writer.bytes().len() - at);
        let map = scanned(&writer.bytes()[..at + length], 8192);
        match map.open {
            Some(open) => prop_assert_eq!(open, record.lsn),
            // Padding before its first byte may be all there is of it.
            None if length == 0 => {}
            None => prop_assert_eq!(&map.changes, &expected),
        }
    }

    #[test]
    fn arbitrary_records_never_panic(mut record in prop::collection::vec(any::<u8>(), 0..1_200), major in 0_u8..30, rmid in 0_u8..24) {
        if let Some(byte) = record.get_mut(17) {
            *byte = rmid;
        }
        let mut changes = Changes::default();
        let is_noted = note_record(&mut changes, Lsn(8), &record, major);
        let header = record.first_chunk().map(RecordHeader::decode);
        let is_whole = header.is_some_and(|header| header.total_bytes as usize <= record.len());
        prop_assert!(is_noted || !is_whole && record.len() < REFERENCES_BYTES_MAX);
    }
}
