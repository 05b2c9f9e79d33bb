//! Claims about the scanner, proven on WAL that [`WalWriter`] makes.
//! Never start a server; `tests/wal.rs` does. Invariant: each test names its claim.

#![allow(
    clippy::cast_possible_truncation,
    reason = "the streams here are small"
)]

use proptest::prelude::*;
use walmgr_protocol::names::{Lsn, SegmentName, SystemId, TimelineId, WalSegmentSize};

use super::page::{FIRST_IS_CONTRECORD, PAGE_BYTES, PageFault};
use super::record::{RM_XLOG, RecordInfo, XLOG_NOOP, XLOG_OVERWRITE_CONTRECORD};
use super::scan::{ScanStep, Scanner, Why};
use super::writer::WalWriter;

const SYSTEM: SystemId = SystemId(7_123_456_789);
const MIB: WalSegmentSize = WalSegmentSize::new(1 << 20).unwrap();
const HEAP: u8 = 10;

fn timeline(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

fn segment(number: u64, size: WalSegmentSize) -> SegmentName {
    SegmentName::from_number(timeline(1), number, size)
}

fn writer(size: WalSegmentSize) -> WalWriter {
    WalWriter::new(segment(5, size), size, SYSTEM, 15)
}

fn scanner(size: WalSegmentSize) -> Scanner {
    Scanner::new(Lsn(5 * size.bytes()), size)
        .of_cluster(SYSTEM)
        .up_to_timeline(timeline(1))
}

/// All records, and the step that came behind them.
fn scan_all(mut scanner: Scanner, mut bytes: &[u8]) -> (Vec<RecordInfo>, ScanStep) {
    let mut records = Vec::new();
    loop {
        match scanner.advance(&mut bytes) {
            ScanStep::Record(record) => records.push(record),
            last => return (records, last),
        }
    }
}

fn why_invalid(scanner: Scanner, bytes: &[u8]) -> (Lsn, Why) {
    match scan_all(scanner, bytes).1 {
        ScanStep::Invalid { lsn, why } => (lsn, why),
        other => panic!("expected invalid WAL, found {other:?}"),
    }
}

/// A few records that cross every kind of border within three pages.
fn small_stream() -> (WalWriter, Vec<RecordInfo>) {
    let mut writer = writer(MIB);
    let mut records = Vec::new();
    for length in [0, 1, 7, 8, 100, 7_000, 900, 33, 8_400, 2_000] {
        records.push(writer.record(HEAP, 0x20, &vec![0xA5; length]));
    }
    (writer, records)
}

#[test]
fn every_record_written_is_found() {
    let (writer, written) = small_stream();
    let (found, last) = scan_all(scanner(MIB), writer.bytes());
    assert_eq!(found, written);
    assert_eq!(last, ScanStep::NeedMore);
}

#[test]
fn a_record_is_reported_with_its_last_byte() {
    let mut writer = writer(MIB);
    let record = writer.record(HEAP, 0, &[1; 8]);
    let bytes = writer.bytes();
    let mut scanner = scanner(MIB);
    assert_eq!(
        scanner.advance(&mut &bytes[..bytes.len() - 1]),
        ScanStep::NeedMore
    );
    assert!(scanner.in_record());
    let mut last = &bytes[bytes.len() - 1..];
    assert_eq!(scanner.advance(&mut last), ScanStep::Record(record));
    assert_eq!(
        (scanner.valid_end(), scanner.in_record()),
        (record.end, false)
    );
}

#[test]
fn feeding_can_be_cut_at_every_byte() {
    let (writer, written) = small_stream();
    let bytes = writer.bytes();
    for cut in 0..=bytes.len() {
        let mut scanner = scanner(MIB);
        let mut found = Vec::new();
        for mut piece in [&bytes[..cut], &bytes[cut..]] {
            while let ScanStep::Record(record) = scanner.advance(&mut piece) {
                found.push(record);
            }
        }
        assert_eq!(found, written, "cut at {cut}");
    }
}

#[test]
fn feeding_byte_by_byte_changes_nothing() {
    let (writer, written) = small_stream();
    let mut scanner = scanner(MIB);
    let mut found = Vec::new();
    for mut piece in writer.bytes().chunks(1) {
        if let ScanStep::Record(record) = scanner.advance(&mut piece) {
            found.push(record);
        }
    }
    assert_eq!(found, written);
}

/// Which bytes no reader looks at: padding behind records and in headers, `xlp_rem_len` where
/// no record continues, and the flag that allows full-page images to be removed.
fn bytes_without_meaning(records: &[RecordInfo], writer: &WalWriter) -> Vec<usize> {
    let start = 5 * MIB.bytes();
    let mut free = Vec::new();
    let bytes = writer.bytes();
    for page in (0..bytes.len()).step_by(PAGE_BYTES as usize) {
        free.extend(page + 20..page + 24);
        if u16::from(bytes[page + 2]) & FIRST_IS_CONTRECORD == 0 {
            free.extend(page + 16..page + 20);
        }
    }
    for record in records {
        // Padding never crosses a page, so the record's bytes end right before it.
        let mut end = (record.end.0 - start) as usize;
        let padding = record.tot_len.wrapping_neg() as usize & 7;
        // A page header has a multiple of 8 bytes and moves the padding not at all.
        end -= padding;
        free.extend(end..end + padding);
    }
    free
}

#[test]
fn fault_73_every_flipped_bit_that_matters_is_found() {
    let (writer, written) = small_stream();
    let free = bytes_without_meaning(&written, &writer);
    for at in 0..writer.bytes().len() {
        for bit in 0..8 {
            let mut bytes = writer.bytes().to_vec();
            bytes[at] ^= 1 << bit;
            let removable = at % PAGE_BYTES as usize == 2 && bit == 2;
            let (found, last) = scan_all(scanner(MIB), &bytes);
            if free.contains(&at) || removable {
                assert_eq!(
                    (&found, last),
                    (&written, ScanStep::NeedMore),
                    "byte {at} bit {bit}"
                );
            } else {
                // A length that became 0 and a page that became older are the end of WAL, which
                // is damage too wherever more has to follow.
                let noticed = last != ScanStep::NeedMore || found.len() < written.len();
                assert!(noticed, "byte {at} bit {bit} was not noticed");
                assert!(found.iter().zip(&written).all(|(a, b)| a == b));
            }
        }
    }
}

#[test]
fn zeros_behind_the_last_record_are_the_end_of_wal() {
    let (mut writer, written) = small_stream();
    let end = writer.position();
    writer.zeros_to_segment_end();
    let (found, last) = scan_all(scanner(MIB), writer.bytes());
    assert_eq!((found, last), (written, ScanStep::EndOfWal(end)));
}

#[test]
fn a_blank_page_is_the_end_of_wal() {
    let mut writer = writer(MIB);
    let room = PAGE_BYTES as usize - 40 - 24;
    let record = writer.record(HEAP, 0, &vec![3; room]);
    assert_eq!(record.end.0 % PAGE_BYTES, 0);
    writer.zeros_to_segment_end();
    let (_, last) = scan_all(scanner(MIB), writer.bytes());
    assert_eq!(last, ScanStep::EndOfWal(record.end));
    assert_eq!(
        scan_all(scanner(MIB), &vec![0; 8192]).1,
        ScanStep::EndOfWal(Lsn(5 * MIB.bytes()))
    );
}

#[test]
fn fault_46_a_recycled_page_is_the_end_of_wal() {
    let mut old = WalWriter::new(segment(2, MIB), MIB, SYSTEM, 15);
    for _ in 0..40 {
        old.record(HEAP, 0, &[9; 1_000]);
    }
    let mut writer = writer(MIB);
    let room = 2 * PAGE_BYTES as usize - 40 - 24 - 24;
    let record = writer.record(HEAP, 0, &vec![3; room]);
    let mut bytes = writer.bytes().to_vec();
    bytes.extend_from_slice(&old.bytes()[bytes.len()..]);
    let (found, last) = scan_all(scanner(MIB), &bytes);
    assert_eq!((found.len(), last), (1, ScanStep::EndOfWal(record.end)));
}

#[test]
fn a_record_without_its_rest_is_not_valid_wal_yet() {
    let mut writer = writer(MIB);
    let whole = writer.record(HEAP, 0, &[3; 100]);
    writer.record(HEAP, 0, &vec![4; 20_000]);
    for keep in [PAGE_BYTES as usize, 2 * PAGE_BYTES as usize] {
        let mut bytes = writer.bytes().to_vec();
        bytes[keep..].fill(0);
        let (found, last) = scan_all(scanner(MIB), &bytes);
        assert_eq!((found.len(), last), (1, ScanStep::EndOfWal(whole.end)));
    }
}

#[test]
fn a_switch_ends_its_segment_and_the_next_record_follows_it() {
    let mut writer = writer(MIB);
    writer.record(HEAP, 0, &[3; 100]);
    let switch = writer.switch();
    let next = writer.record(HEAP, 0, &[4; 100]);
    assert_eq!(switch.end.0, 6 * MIB.bytes());
    let mut bytes = writer.bytes().to_vec();
    // A crash may leave bytes behind the switch from before the segment was recycled.
    bytes[60_000..1 << 20].fill(0xEE);
    let (found, last) = scan_all(scanner(MIB), &bytes);
    assert_eq!(found[1..], [switch, next]);
    assert_eq!(last, ScanStep::NeedMore);
    assert_eq!(next.prev, switch.lsn);
}

#[test]
fn a_switch_that_fills_its_segment_wastes_no_other() {
    let mut writer = writer(MIB);
    writer.record(HEAP, 0, &[3; 8]);
    let pages = MIB.bytes() / PAGE_BYTES;
    let left = MIB.bytes() - writer.bytes().len() as u64 - 24 * (pages - 1);
    writer.record(HEAP, 0, &vec![3; left as usize - 24 - 24]);
    let switch = writer.switch();
    assert_eq!(switch.end.0, 6 * MIB.bytes());
    assert_eq!(switch.lsn.0, switch.end.0 - 24);
    let next = writer.record(HEAP, 0, &[4; 8]);
    let (found, _) = scan_all(scanner(MIB), writer.bytes());
    assert_eq!(found[2..], [switch, next]);
}

#[test]
fn records_run_on_into_the_next_segment() {
    let mut writer = writer(MIB);
    let long = writer.record(HEAP, 0, &vec![6; 3 << 20]);
    let after = writer.record(HEAP, 0, &[7; 10]);
    let (found, last) = scan_all(scanner(MIB), writer.bytes());
    assert_eq!((found, last), (vec![long, after], ScanStep::NeedMore));
}

#[test]
fn scan_begins_behind_the_rest_of_an_older_record() {
    let mut writer = writer(MIB);
    writer.tail(&[8; 20_001]);
    let record = writer.record(HEAP, 0, &[1; 50]);
    let (found, last) = scan_all(scanner(MIB), writer.bytes());
    assert_eq!((found, last), (vec![record], ScanStep::NeedMore));
}

#[test]
fn a_scan_can_begin_at_any_record_and_at_any_records_end() {
    let (writer, written) = small_stream();
    let start = 5 * MIB.bytes();
    for (index, record) in written.iter().enumerate() {
        let from = &writer.bytes()[(record.lsn.0 - start) as usize..];
        let scanner = Scanner::new(record.lsn, MIB).following(record.prev);
        assert_eq!(scan_all(scanner, from).0, written[index..]);
        let behind = &writer.bytes()[(record.end.0 - start) as usize..];
        let scanner = Scanner::new(record.end, MIB).following(record.lsn);
        assert_eq!(scan_all(scanner, behind).0, written[index + 1..]);
    }
}

#[test]
fn a_scan_behind_a_known_record_does_not_skip_the_rest_of_another() {
    let mut writer = writer(MIB);
    writer.tail(&[8; 100]);
    let start = Lsn(5 * MIB.bytes());
    let scanner = Scanner::new(start, MIB).following(Lsn(start.0 - 24));
    let (lsn, why) = why_invalid(scanner, writer.bytes());
    assert_eq!((lsn, why), (start, Why::UnexpectedContinuation));
}

#[test]
fn a_scan_cannot_begin_within_a_header_or_off_the_grid() {
    for offset in [8, 39, 41, 8_192 + 16] {
        let start = Lsn(5 * MIB.bytes() + offset);
        let mut scanner = Scanner::new(start, MIB);
        let refused = ScanStep::Invalid {
            lsn: start,
            why: Why::Start,
        };
        assert_eq!(scanner.advance(&mut &[][..]), refused);
        assert_eq!(scanner.advance(&mut &[1, 2, 3][..]), refused);
    }
}

#[test]
fn a_record_whose_rest_was_overwritten_is_forgotten() {
    let mut writer = writer(MIB);
    let before = writer.record(HEAP, 0, &[3; 100]);
    let overwrite = writer.overwritten_record(30_000);
    let after = writer.record(HEAP, 0, &[3; 100]);
    assert_eq!(overwrite.prev, before.lsn);
    let (found, last) = scan_all(scanner(MIB), writer.bytes());
    assert_eq!(
        (found, last),
        (vec![before, overwrite, after], ScanStep::NeedMore)
    );
}

#[test]
fn an_overwritten_rest_needs_the_record_that_says_so() {
    let mut writer = writer(MIB);
    writer.overwritten_record(30_000);
    let mut bytes = writer.bytes().to_vec();
    bytes[PAGE_BYTES as usize + 2] = 0;
    let (lsn, why) = why_invalid(scanner(MIB), &bytes);
    assert_eq!(lsn.0 % MIB.bytes(), PAGE_BYTES);
    assert!(matches!(why, Why::MissingContinuation { .. }));

    let mut writer = self::writer(MIB);
    let record = writer.record(RM_XLOG, XLOG_OVERWRITE_CONTRECORD, &[7; 18]);
    let (lsn, why) = why_invalid(scanner(MIB), writer.bytes());
    assert_eq!((lsn, why), (record.lsn, Why::Overwrite));
}

#[test]
fn a_missing_record_breaks_the_link() {
    let mut writer = writer(MIB);
    let first = writer.record(HEAP, 0, &[3; 40]);
    let second = writer.record(HEAP, 0, &[3; 40]);
    let third = writer.record(HEAP, 0, &[3; 40]);
    let mut bytes = writer.bytes().to_vec();
    let start = 5 * MIB.bytes();
    bytes.drain((second.lsn.0 - start) as usize..(third.lsn.0 - start) as usize);
    let (lsn, why) = why_invalid(scanner(MIB), &bytes);
    assert_eq!(lsn, second.lsn);
    assert_eq!(
        why,
        Why::PreviousLink {
            expected: first.lsn,
            found: second.lsn
        }
    );
}

#[test]
fn timelines_grow_from_page_to_page_and_never_shrink() {
    let mut writer = writer(MIB);
    writer.record(HEAP, 0, &[3; 9_000]);
    writer.set_timeline(timeline(3));
    writer.record(HEAP, 0, &[3; 9_000]);
    let open = || Scanner::new(Lsn(5 * MIB.bytes()), MIB).of_cluster(SYSTEM);
    let (found, last) = scan_all(open().up_to_timeline(timeline(3)), writer.bytes());
    assert_eq!((found.len(), last), (2, ScanStep::NeedMore));
    let (_, why) = why_invalid(open().up_to_timeline(timeline(2)), writer.bytes());
    assert!(matches!(
        why,
        Why::Page(PageFault::NewerTimeline { found: 3, .. })
    ));
    writer.set_timeline(timeline(2));
    writer.record(HEAP, 0, &[3; 9_000]);
    let (_, why) = why_invalid(open(), writer.bytes());
    assert_eq!(
        why,
        Why::Page(PageFault::OlderTimeline {
            expected: 3,
            found: 2
        })
    );
}

#[test]
fn impossible_lengths_are_refused_at_once() {
    for (length, major) in [(1, 15), (23, 15), (0x4000_0000, 15), ((1020 << 20) + 1, 16)] {
        let mut writer = WalWriter::new(segment(5, MIB), MIB, SYSTEM, major);
        let record = writer.record(RM_XLOG, XLOG_NOOP, &[1; 40]);
        let mut bytes = writer.bytes()[..44].to_vec();
        bytes[40..44].copy_from_slice(&u32::to_le_bytes(length));
        let (lsn, why) = why_invalid(scanner(MIB), &bytes);
        assert_eq!((lsn, why), (record.lsn, Why::Length(length)));
    }
}

#[test]
fn without_checksums_bodies_are_not_looked_at() {
    let (writer, written) = small_stream();
    let mut bytes = writer.bytes().to_vec();
    bytes[500] ^= 1;
    assert!(matches!(
        why_invalid(scanner(MIB), &bytes).1,
        Why::Checksum { .. }
    ));
    let (found, last) = scan_all(scanner(MIB).without_checksums(), &bytes);
    assert_eq!((found, last), (written, ScanStep::NeedMore));
}

#[test]
fn the_end_of_all_wal_is_no_reason_to_panic() {
    let size = WalSegmentSize::new(1 << 30).unwrap();
    let start = Lsn(u64::MAX - PAGE_BYTES + 1);
    let mut bytes = vec![0xFF; 1 << 16];
    let _ = scan_all(Scanner::new(start, size), &bytes);
    let mut header = writer(MIB);
    header.record(HEAP, 0, &[1; 9_000]);
    bytes[..24].copy_from_slice(&header.bytes()[8192..8216]);
    bytes[8..16].copy_from_slice(&start.0.to_le_bytes());
    let _ = scan_all(Scanner::new(start, size).without_checksums(), &bytes);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn fault_51_records_of_every_length_are_found_in_segments_of_every_size(
        shift in 20_u32..=30, major in 13_u8..=18, number in 1_u64..1 << 20,
        lengths in proptest::collection::vec(0_usize..20_000, 1..60), switches: u64,
    ) {
        let size = WalSegmentSize::new(1 << shift).unwrap();
        let mut writer = WalWriter::new(segment(number, size), size, SYSTEM, major);
        let mut written = Vec::new();
        for (index, length) in lengths.iter().enumerate() {
            written.push(writer.record(HEAP, 0, &vec![index as u8; *length]));
            // A switch costs a segment of memory, so only the smallest have some.
            if shift == 20 && index < 3 && switches >> index & 1 == 1 {
                written.push(writer.switch());
            }
        }
        let scanner = Scanner::new(segment(number, size).start(size).unwrap(), size)
            .of_cluster(SYSTEM)
            .of_major(major);
        let (found, last) = scan_all(scanner, writer.bytes());
        prop_assert_eq!(found, written);
        prop_assert_eq!(last, ScanStep::NeedMore);
    }

    #[test]
    fn any_change_of_a_few_bytes_leaves_only_records_before_it(
        at in 40_usize..18_000, bytes in proptest::collection::vec(1_u8.., 1..8),
    ) {
        let (writer, written) = small_stream();
        let mut damaged = writer.bytes().to_vec();
        let reach = at + bytes.len();
        for (offset, byte) in bytes.iter().enumerate() {
            damaged[at + offset] ^= byte;
        }
        let (found, _) = scan_all(scanner(MIB), &damaged);
        let start = 5 * MIB.bytes();
        for (found, written) in found.iter().zip(&written) {
            prop_assert_eq!(found, written);
        }
        let before = written.iter().filter(|record| record.end.0 - start <= at as u64).count();
        prop_assert!(found.len() >= before, "{} of {before} up to {reach}", found.len());
    }
}
