//! One segment of WAL that looks like pgbench's to a checksum, a scanner and a compressor.
//! Never what a server would replay: only lengths, mix and entropy are as in the real thing.

use walmgr::test_support::wal::writer::WalWriter;
use walmgr_protocol::names::{SegmentName, SystemId, WalSegmentSize};

/// The segment's name.
pub const SEGMENT: &str = "000000010000000000000003";

/// The cluster it is of.
pub const SYSTEM_ID: SystemId = SystemId(7_000_000_000_000_000_042);

/// The major version that is said to have written it.
pub const MAJOR: u8 = 15;

const SEGMENT_BYTES: usize = 16 << 20;
const RM_XACT: u8 = 1;
const RM_HEAP: u8 = 10;
const HEAP_INSERT: u8 = 0x00;
const HEAP_HOT_UPDATE: u8 = 0x40;

/// `pgbench -s 10`: tables as their relfilenodes, and how many pages they have.
const ACCOUNTS: (u32, u32) = (16_402, 16_400);
const BRANCHES: (u32, u32) = (16_405, 1);
const TELLERS: (u32, u32) = (16_399, 1);
const HISTORY: u32 = 16_396;

/// Transactions between two images of whole pages; right after a checkpoint of a real server there
/// are more of them, later fewer.
const IMAGE_EVERY: u32 = 16;

/// 16 MiB: transactions of five short records each (three updates of 72 bytes, an insert of 79, a
/// commit of 34), and now and then the image of a page full of `pgbench_accounts`.
pub fn segment() -> Vec<u8> {
    let name: SegmentName = SEGMENT.parse().expect("it is a segment's name");
    let mut writer = WalWriter::new(name, WalSegmentSize::DEFAULT, SYSTEM_ID, MAJOR);
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut transaction = 0;
    while writer.bytes().len() < SEGMENT_BYTES - 16 * 1024 {
        transaction += 1;
        for (relfilenode, pages) in [ACCOUNTS, TELLERS, BRANCHES] {
            let place = (relfilenode, random.below(pages));
            let row = row(&mut random, place, transaction, 72);
            writer.record(RM_HEAP, HEAP_HOT_UPDATE, &row);
        }
        let row = row(&mut random, (HISTORY, transaction / 157), transaction, 79);
        writer.record(RM_HEAP, HEAP_INSERT, &row);
        writer.record(RM_XACT, 0x00, &commit(&mut random));
        if transaction.is_multiple_of(IMAGE_EVERY) {
            let image = page_image(&mut random);
            writer.record(RM_HEAP, HEAP_HOT_UPDATE, &image);
        }
    }
    writer.fill_segment();
    let bytes = writer.bytes().to_vec();
    assert_eq!(bytes.len(), SEGMENT_BYTES);
    bytes
}

/// The relation and block that a header of a block ends with.
fn reference(body: &mut Vec<u8>, (relfilenode, block): (u32, u32)) {
    for field in [1663, 5, relfilenode, block] {
        body.extend_from_slice(&field.to_le_bytes());
    }
}

/// A row's change: a block reference, the transaction, two numbers nobody can foresee, padding.
fn row(random: &mut Random, place: (u32, u32), transaction: u32, bytes: u8) -> Vec<u8> {
    const MAIN_BYTES: u8 = 14;
    let data_bytes = bytes - 4 - 16 - 2 - MAIN_BYTES;
    let mut body = vec![0, 0x20, data_bytes, 0];
    reference(&mut body, place);
    body.extend_from_slice(&[255, MAIN_BYTES]);
    body.extend_from_slice(&random.next().to_le_bytes()[..6]);
    body.extend_from_slice(&transaction.to_le_bytes());
    body.resize(bytes.into(), b' ');
    body
}

/// A commit at some time.
fn commit(random: &mut Random) -> Vec<u8> {
    let mut body = vec![255, 8];
    body.extend_from_slice(&random.next().to_le_bytes()[..4]);
    body.resize(10, 0);
    body
}

/// A page of rows with 84 blanks each, as `pgbench -i` fills them, with the hole in it taken out.
fn page_image(random: &mut Random) -> Vec<u8> {
    let mut page = vec![0; 300];
    let first = random.next() >> 40;
    for row in 0..61 {
        page.extend_from_slice(&[0x2C, 0x03, 0, 0, 0, 0, 0, 0, 4, 0, 2, 0x09, 0x18, 0]);
        page.extend_from_slice(&(first + row).to_le_bytes()[..4]);
        page.extend_from_slice(&random.next().to_le_bytes()[..2]);
        page.resize(page.len() + 84, b' ');
        page.resize(page.len().next_multiple_of(8), 0);
    }
    let image_bytes = u16::try_from(page.len()).expect("it is shorter than a page");
    let mut body = vec![0, 0x10, 0, 0];
    body.extend_from_slice(&image_bytes.to_le_bytes());
    body.extend_from_slice(&[0x2C, 0x01, 0x03]);
    reference(&mut body, (ACCOUNTS.0, random.below(ACCOUNTS.1)));
    body.extend_from_slice(&page);
    body
}

/// Xorshift: the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u32) -> u32 {
        u32::try_from(self.next() % u64::from(bound)).expect("it is below a u32")
    }
}
