//! Claims about what may enter the archive, proven on WAL that [`WalWriter`] makes.
//! Never touch a disk. Invariant: each test names its claim.

#![allow(
    clippy::cast_possible_truncation,
    reason = "the streams here are small"
)]

use walmgr_protocol::limits::SMALL_FILE_BYTES_MAX;
use walmgr_protocol::names::{Lsn, SegmentName, SystemId, TimelineId, WalFileName, WalSegmentSize};

use super::segment::{ExpectedSegment, SegmentCheck, SegmentFault, SegmentSummary, Verify};
use super::writer::WalWriter;

const SYSTEM: SystemId = SystemId(7_123_456_789);
const MIB: WalSegmentSize = WalSegmentSize::new(1 << 20).unwrap();
const EXPECTED: ExpectedSegment = ExpectedSegment {
    system_id: SYSTEM,
    segment_size: MIB,
    postgres_major: Some(15),
};
const LEVELS: [Verify; 3] = [Verify::Records, Verify::Headers, Verify::Off];

fn timeline(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

fn segment(timeline_number: u32, number: u64) -> SegmentName {
    SegmentName::from_number(timeline(timeline_number), number, MIB)
}

fn check_as(
    name: WalFileName,
    expected: &ExpectedSegment,
    verify: Verify,
    bytes: &[u8],
) -> Result<SegmentSummary, SegmentFault> {
    let mut whole = SegmentCheck::new(name, expected, verify);
    let mut blocks = SegmentCheck::new(name, expected, verify);
    let by_blocks = bytes
        .chunks(1_013)
        .try_for_each(|block| blocks.update(block))
        .and_then(|()| blocks.finish());
    let at_once = whole.update(bytes).and_then(|()| whole.finish());
    if !matches!(at_once, Err(SegmentFault::WrongLength { .. })) {
        assert_eq!(at_once, by_blocks, "the pieces changed the answer");
    }
    at_once
}

fn check(name: WalFileName, bytes: &[u8]) -> Result<SegmentSummary, SegmentFault> {
    check_as(name, &EXPECTED, Verify::Records, bytes)
}

/// Segment 5 of timeline 1, full of records, the last of which runs on.
fn full_segment() -> (WalFileName, Vec<u8>) {
    let mut writer = WalWriter::new(segment(1, 5), MIB, SYSTEM, 15);
    writer.tail(&[1; 300]);
    while (writer.bytes().len() as u64) < MIB.bytes() {
        writer.record(10, 0, &[2; 5_000]);
    }
    let bytes = writer.bytes()[..1 << 20].to_vec();
    (WalFileName::Segment(segment(1, 5)), bytes)
}

fn what_is_foreign(outcome: Result<SegmentSummary, SegmentFault>) -> &'static str {
    match outcome {
        Err(SegmentFault::Foreign { what, .. }) => what,
        other => panic!("expected a foreign file, found {other:?}"),
    }
}

#[test]
fn a_full_segment_passes_at_every_level() {
    let (name, bytes) = full_segment();
    for verify in LEVELS {
        let summary = check_as(name, &EXPECTED, verify, &bytes).unwrap();
        let wal = summary.wal.unwrap();
        assert_eq!(summary.bytes, MIB.bytes());
        assert_eq!(
            (wal.system_id, wal.postgres_major, wal.timeline),
            (SYSTEM, 15, timeline(1))
        );
        assert_eq!(wal.continues, verify != Verify::Off);
        assert_eq!(wal.records > 0, verify != Verify::Off);
    }
}

#[test]
fn a_segment_may_end_with_its_last_record_or_with_a_switch() {
    let mut writer = WalWriter::new(segment(1, 5), MIB, SYSTEM, 15);
    writer.record(10, 0, &[2; 5_000]);
    let last = writer.fill_segment();
    let summary = check(WalFileName::Segment(segment(1, 5)), writer.bytes()).unwrap();
    let wal = summary.wal.unwrap();
    assert_eq!(
        (wal.records, wal.last_record, wal.continues),
        (2, Some(last.lsn), false)
    );
    assert_eq!(wal.valid_end.0, 6 * MIB.bytes());

    let mut writer = WalWriter::new(segment(1, 5), MIB, SYSTEM, 15);
    writer.record(10, 0, &[2; 5_000]);
    writer.switch();
    let mut bytes = writer.bytes().to_vec();
    let name = WalFileName::Segment(segment(1, 5));
    assert!(check(name, &bytes).unwrap().wal.unwrap().ends_with_switch);
    // A crash within the switch leaves what the segment held before it was recycled.
    bytes[20_000..].fill(0xEE);
    assert!(check(name, &bytes).is_ok());
}

#[test]
fn a_segment_can_be_nothing_but_the_middle_of_one_record() {
    let mut writer = WalWriter::new(segment(1, 4), MIB, SYSTEM, 15);
    writer.record(10, 0, &vec![2; 3 << 20]);
    let name = WalFileName::Segment(segment(1, 5));
    let summary = check(name, &writer.bytes()[1 << 20..2 << 20]).unwrap();
    let wal = summary.wal.unwrap();
    assert_eq!((wal.records, wal.continues), (0, true));
}

#[test]
fn fault_10_a_segment_of_another_cluster_is_foreign_at_every_level() {
    let (name, bytes) = full_segment();
    let other = |change: &dyn Fn(&mut ExpectedSegment)| {
        let mut expected = EXPECTED;
        change(&mut expected);
        expected
    };
    for verify in LEVELS {
        let what = |expected: &ExpectedSegment, name| {
            what_is_foreign(check_as(name, expected, verify, &bytes))
        };
        assert_eq!(
            what(&other(&|it| it.system_id = SystemId(2)), name),
            "system identifier"
        );
        assert_eq!(
            what(&other(&|it| it.postgres_major = Some(18)), name),
            "PostgreSQL version"
        );
        let larger = other(&|it| it.segment_size = WalSegmentSize::DEFAULT);
        assert_eq!(what(&larger, name), "segment size");
        assert_eq!(
            what(&EXPECTED, WalFileName::Segment(segment(1, 6))),
            "content"
        );
        assert_eq!(
            what(&EXPECTED, WalFileName::Segment(segment(1, 4))),
            "content"
        );
        let mut newer = bytes.clone();
        newer[4] = 2;
        assert_eq!(
            what_is_foreign(check_as(name, &EXPECTED, verify, &newer)),
            "timeline"
        );
        let mut unknown = bytes.clone();
        unknown[0] = 0x19;
        assert_eq!(
            what_is_foreign(check_as(name, &EXPECTED, verify, &unknown)),
            "PostgreSQL version"
        );
    }
    let unknown_major = other(&|it| it.postgres_major = None);
    assert!(check_as(name, &unknown_major, Verify::Records, &bytes).is_ok());
}

#[test]
fn the_first_segment_of_a_timeline_may_hold_pages_of_the_one_before() {
    let mut writer = WalWriter::new(segment(1, 5), MIB, SYSTEM, 15);
    writer.record(10, 0, &[2; 50_000]);
    writer.set_timeline(timeline(2));
    writer.fill_segment();
    let name = WalFileName::Segment(segment(2, 5));
    let wal = check(name, writer.bytes()).unwrap().wal.unwrap();
    assert_eq!(wal.timeline, timeline(2));
    let older_name = WalFileName::Segment(segment(1, 5));
    assert!(matches!(
        check(older_name, writer.bytes()),
        Err(SegmentFault::Damaged { .. })
    ));
}

#[test]
fn fault_73_damaged_segments_are_refused() {
    let (name, bytes) = full_segment();
    let damage = |change: &dyn Fn(&mut Vec<u8>), verify| {
        let mut bytes = bytes.clone();
        change(&mut bytes);
        check_as(name, &EXPECTED, verify, &bytes)
    };
    let flipped = |bytes: &mut Vec<u8>| bytes[700_001] ^= 4;
    assert!(matches!(
        damage(&flipped, Verify::Records),
        Err(SegmentFault::Damaged { lsn, .. }) if lsn.0 / MIB.bytes() == 5
    ));
    assert!(damage(&flipped, Verify::Headers).is_ok());
    for verify in [Verify::Records, Verify::Headers] {
        let zeroed = |bytes: &mut Vec<u8>| bytes[400_000..].fill(0);
        assert!(matches!(
            damage(&zeroed, verify),
            Err(SegmentFault::Damaged { .. })
        ));
    }
    for verify in LEVELS {
        let zeros = |bytes: &mut Vec<u8>| bytes.fill(0);
        assert!(matches!(
            damage(&zeros, verify),
            Err(SegmentFault::Damaged { .. })
        ));
        for length in [0, 39, 40, (1 << 20) - 1] {
            let short = |bytes: &mut Vec<u8>| bytes.truncate(length);
            let expected = SegmentFault::WrongLength {
                expected: 1 << 20,
                found: length as u64,
            };
            assert_eq!(damage(&short, verify), Err(expected));
        }
        let long = |bytes: &mut Vec<u8>| bytes.push(0);
        let expected = SegmentFault::WrongLength {
            expected: 1 << 20,
            found: (1 << 20) + 1,
        };
        assert_eq!(damage(&long, verify), Err(expected));
    }
}

#[test]
fn a_fault_is_found_before_the_file_has_ended_and_stays() {
    let (name, bytes) = full_segment();
    let mut check = SegmentCheck::new(name, &EXPECTED, Verify::Records);
    let mut first = bytes[..8192].to_vec();
    first[1_000] ^= 1;
    let fault = check
        .update(&first)
        .and_then(|()| check.update(&bytes[8192..20_000]));
    let fault = fault.unwrap_err();
    assert_eq!(check.update(&bytes[20_000..]), Err(fault.clone()));
    assert_eq!(check.finish(), Err(fault));
}

#[test]
fn the_last_segment_of_a_timeline_may_stop_anywhere() {
    let (_, mut bytes) = full_segment();
    let name = WalFileName::Partial(segment(1, 5));
    bytes[500_000..].fill(0);
    let ended = check(name, &bytes).unwrap().wal.unwrap();
    // Streaming writes into recycled segments without regard to pages.
    bytes[500_000..].fill(0xEE);
    let stale = check(name, &bytes).unwrap().wal.unwrap();
    assert_eq!(ended, stale);
    assert!(ended.records > 50 && ended.valid_end.0 < 5 * MIB.bytes() + 500_000);
    bytes.truncate(600_000);
    assert!(matches!(
        check(name, &bytes),
        Err(SegmentFault::WrongLength { .. })
    ));
    assert!(matches!(
        check(name, &vec![0; 1 << 20]),
        Err(SegmentFault::Damaged { .. })
    ));
    let (_, bytes) = full_segment();
    let elsewhere = WalFileName::Partial(segment(1, 9));
    assert_eq!(what_is_foreign(check(elsewhere, &bytes)), "content");
}

#[test]
fn a_name_that_no_segment_of_this_size_has_is_foreign() {
    let name: WalFileName = "000000010000000000001000".parse().unwrap();
    let (_, bytes) = full_segment();
    for verify in LEVELS {
        assert_eq!(
            what_is_foreign(check_as(name, &EXPECTED, verify, &bytes)),
            "segment size"
        );
    }
}

#[test]
fn a_history_file_has_to_lead_to_its_own_timeline() {
    let name = WalFileName::History(timeline(3));
    let text = b"1\t0/3000158\tno recovery target specified\n2\t0/5000000\tagain\n";
    let summary = check(name, text).unwrap();
    assert_eq!((summary.bytes, summary.wal), (text.len() as u64, None));
    for damaged in [&b""[..], b"\0\0\0\0", b"3\t0/3000158\tx\n", b"garbage"] {
        assert!(matches!(
            check(name, damaged),
            Err(SegmentFault::Text { .. })
        ));
        assert!(check_as(name, &EXPECTED, Verify::Off, damaged).is_ok());
    }
}

#[test]
fn a_backup_history_file_has_to_name_its_own_start() {
    let name = WalFileName::BackupHistory(segment(1, 5), 0x28);
    let text = |segment: SegmentName, lsn: u64| {
        let first = format!("START WAL LOCATION: {} (file {segment})", Lsn(lsn));
        format!("{first}\nSTOP WAL LOCATION: 0/600000 (file {segment})\nLABEL: x\n").into_bytes()
    };
    let start = 5 * MIB.bytes() + 0x28;
    assert!(check(name, &text(segment(1, 5), start)).is_ok());
    assert_eq!(
        what_is_foreign(check(name, &text(segment(1, 6), start))),
        "first segment"
    );
    assert_eq!(
        what_is_foreign(check(name, &text(segment(1, 5), start + 8))),
        "start location"
    );
    assert!(matches!(
        check(name, b"LABEL: x\n"),
        Err(SegmentFault::Text { .. })
    ));
    assert!(matches!(check(name, b""), Err(SegmentFault::Text { .. })));
}

#[test]
fn text_is_never_held_beyond_its_limit() {
    let name = WalFileName::History(timeline(3));
    let mut check = SegmentCheck::new(name, &EXPECTED, Verify::Records);
    let comment = vec![b'#'; SMALL_FILE_BYTES_MAX as usize];
    assert!(check.update(&comment).is_ok());
    let found = SMALL_FILE_BYTES_MAX + 1;
    let fault = SegmentFault::WrongLength {
        expected: SMALL_FILE_BYTES_MAX,
        found,
    };
    assert_eq!(check.update(b"#"), Err(fault));
}

#[test]
fn the_setting_reads_as_it_prints() {
    for verify in LEVELS {
        assert_eq!(verify.to_string().parse(), Ok(verify));
    }
    assert!("Records".parse::<Verify>().is_err());
    assert_eq!(Verify::default(), Verify::Records);
}

#[test]
fn a_fault_is_one_sentence() {
    let (name, mut bytes) = full_segment();
    bytes[24] ^= 1;
    assert_eq!(
        check(name, &bytes).unwrap_err().to_string(),
        "the file is not of this archive: its system identifier is 7123456788, \
         expected 7123456789"
    );
    bytes[24] ^= 1;
    bytes[8_192 + 8] ^= 1;
    assert_eq!(
        check(name, &bytes).unwrap_err().to_string(),
        "the WAL is damaged at 0/502000: the page says its address is 0/502001, \
         expected 0/502000"
    );
}
