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
        for _ in 0..3 {
            writer.record(RM_HEAP, 0x40, &row(&mut random, transaction, 72));
        }
        writer.record(RM_HEAP, 0x00, &row(&mut random, transaction, 79));
        writer.record(RM_XACT, 0x00, &row(&mut random, transaction, 34));
        if transaction.is_multiple_of(IMAGE_EVERY) {
            writer.record(RM_HEAP, 0x40, &page_image(&mut random));
        }
    }
    writer.fill_segment();
    let bytes = writer.bytes().to_vec();
    assert_eq!(bytes.len(), SEGMENT_BYTES);
    bytes
}

/// A row's change: a block reference, the transaction, two numbers nobody can foresee, padding.
fn row(random: &mut Random, transaction: u32, bytes: usize) -> Vec<u8> {
    let mut body = vec![
        0, 0x60, 0x12, 0, 0x7F, 0x06, 0, 0, 5, 0, 0, 0, 0x0A, 0x40, 0, 0,
    ];
    body.extend_from_slice(&random.next().to_le_bytes()[..6]);
    body.extend_from_slice(&transaction.to_le_bytes());
    body.resize(bytes, b' ');
    body
}

/// A page of rows with 84 blanks each, as `pgbench -i` fills them.
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
    page
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
}
