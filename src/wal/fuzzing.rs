//! Bodies of the fuzz targets, as functions, so that unit tests run them too.
//! Never catch anything: a broken claim is a failed assertion.
//! Invariant: each body is bounded by the length of its input.

use walmgr_protocol::names::{Lsn, SegmentName, SystemId, TimelineId, WalFileName, WalSegmentSize};

use super::behind::Behind;
use super::commit;
use super::history::History;
use super::joint::Joint;
use super::record::{RECORD_HEADER_BYTES, RM_XLOG, RecordHeader, XLOG_OVERWRITE_CONTRECORD};
use super::references::{ChangeReader, REFERENCES_BYTES_MAX};
use super::scan::{ScanStep, Scanner};
use super::segment::{ExpectedSegment, SegmentCheck, SegmentSummary, Verify};
use super::segment_map::{MappedFile, SegmentMap};
use super::writer::WalWriter;

/// The scanner on arbitrary bytes: the steps do not depend on the pieces, positions only grow,
/// and there are never more records than bytes can hold.
pub fn scanner(data: &[u8]) {
    let Some((settings, wal)) = data.split_first_chunk::<12>() else {
        return;
    };
    let [shift, seed, mode, kind, start @ ..] = *settings;
    let Some(size) = WalSegmentSize::new(1 << (20 + shift % 11)) else {
        return;
    };
    let start = Lsn(u64::from_le_bytes(start));
    let start = match kind % 3 {
        0 => start,
        1 => Lsn(start.0 - start.0 % 8192),
        _ => Lsn(start.0 - start.0 % size.bytes()),
    };
    let mut scanner = Scanner::new(start, size);
    if mode % 2 == 1 {
        // A fuzzer cannot guess checksums; without them it reaches what lies behind one.
        scanner = scanner.without_checksums();
    }
    let whole = all_steps(scanner.clone(), &[wal]);
    let pieces = pieces_of(wal, seed);
    assert_eq!(whole, all_steps(scanner, &pieces));
    assert!(whole.len() <= wal.len() / 24 + 1);
    let mut end = start;
    for step in &whole {
        if let ScanStep::Record(record) = step {
            assert!(record.lsn >= end || end.0 > u64::MAX - (2 << 30));
            end = record.end;
        }
    }
}

/// The references of an arbitrary record: they do not depend on the pieces it arrives in, and end within their bound.
pub fn record_references(data: &[u8]) {
    let Some(([major, piece], record)) = data.split_first_chunk() else {
        return;
    };
    let Some((header, body)) = record.split_first_chunk() else {
        return;
    };
    let header = RecordHeader::decode(header);
    let body_bytes = (header.total_bytes as usize).saturating_sub(RECORD_HEADER_BYTES);
    let is_whole = body.len() >= body_bytes;
    let body = &body[..body_bytes.min(body.len())];
    let read = |piece_bytes: usize| {
        let mut reader = ChangeReader::default();
        reader.begin(Lsn(8), header, Some(*major));
        body.chunks(piece_bytes)
            .for_each(|piece| reader.update(piece));
        reader
    };
    let at_once = read(body.len().max(1));
    let in_pieces = read(usize::from(*piece) + 1);
    assert_eq!(at_once.is_due(), in_pieces.is_due());
    assert!(!at_once.is_due() || (!is_whole && record.len() < REFERENCES_BYTES_MAX));
    assert_eq!(at_once.into_changes(), in_pieces.into_changes());
}

/// An arbitrary map of a segment: what it says survives being written again.
pub fn segment_map(data: &[u8]) {
    let text = data
        .get(8..32)
        .and_then(|text| std::str::from_utf8(text).ok());
    let Some(segment) = text.and_then(|text| text.parse().ok()) else {
        return;
    };
    let number = |from: usize| data.get(from..)?.first_chunk().copied();
    let (Some(len), Some(crc32)) = (number(32), data.get(40..).and_then(|it| it.first_chunk()))
    else {
        return;
    };
    let file = MappedFile {
        segment,
        len: u64::from_le_bytes(len),
        crc32: u32::from_le_bytes(*crc32),
    };
    if let Some(map) = SegmentMap::parse(&file, data) {
        let again = SegmentMap::parse(&file, &map.encode(&file));
        assert_eq!(again, Some(map));
    }
}

/// Valid WAL made of what the input asks for: the scanner finds exactly the records written.
pub fn written_wal(data: &[u8]) {
    let Some((first, asked)) = data.split_first() else {
        return;
    };
    let size = WalSegmentSize::DEFAULT;
    let Some(segment) = TimelineId::new(1).map(|one| SegmentName::from_number(one, 3, size)) else {
        return;
    };
    let mut writer = WalWriter::new(segment, size, SystemId(1), 13 + first % 6);
    let mut written = Vec::new();
    // Some dozens of records cross every kind of border, and the writer's memory stays small.
    for (index, pair) in asked.chunks_exact(2).take(64).enumerate() {
        let (info, length) = (pair[0], usize::from(pair[1]));
        let record = match info {
            0 => writer.overwritten_record(9_000 + length),
            info => {
                let is_control = |other: u8| other & 0xF0 == info & 0xF0;
                let plain = !is_control(XLOG_OVERWRITE_CONTRECORD) && !is_control(0x40);
                let info = if plain { info } else { 0x20 };
                let body_bytes = length * if index % 7 == 3 { 200 } else { 1 };
                writer.record(RM_XLOG, info, &vec![info; body_bytes])
            }
        };
        written.push(record);
    }
    let scanner = Scanner::new(Lsn(size.bytes() * 3), size).of_cluster(SystemId(1));
    let pieces = pieces_of(writer.bytes(), *first);
    let found = all_steps(scanner, &pieces);
    assert_eq!(
        found,
        written
            .into_iter()
            .map(ScanStep::Record)
            .collect::<Vec<_>>()
    );
}

/// The check of a whole file on its way into the archive: the answer does not depend on the pieces,
/// and what passes is what its name says. A segment is filled up with zeros.
pub fn segment(data: &[u8]) {
    let Some((&[kind, major, cut, verify], content)) = data.split_first_chunk::<4>() else {
        return;
    };
    let Some(size) = WalSegmentSize::new(1 << 20) else {
        return;
    };
    // The first page says whose it is and where it belongs; the file is taken for that.
    let field = |at: usize| {
        content
            .get(at..at + 8)
            .and_then(|bytes| bytes.first_chunk())
    };
    let field = |at| u64::from_le_bytes(*field(at).unwrap_or(&[0; 8]));
    let timeline = TimelineId::new(1 + u32::from(kind >> 6)).unwrap_or(TimelineId::FIRST);
    let named = SegmentName::from_number(timeline, field(8) / size.bytes(), size);
    let name = match kind % 8 {
        0 => WalFileName::History(timeline),
        1 => WalFileName::BackupHistory(named, u32::from(cut)),
        2 => WalFileName::Partial(named),
        _ => WalFileName::Segment(named),
    };
    let expected = ExpectedSegment {
        system_id: SystemId(field(24)),
        segment_size: size,
        postgres_major: (major % 7 != 0).then_some(12 + major % 7),
    };
    let verify = [Verify::Records, Verify::Headers, Verify::Off][usize::from(verify % 3)];
    let mut whole = content.to_vec();
    if matches!(name, WalFileName::Segment(_) | WalFileName::Partial(_)) && cut % 8 != 7 {
        whole.resize(1 << 20, 0);
    }
    let check = |pieces: &[&[u8]]| {
        let mut check = SegmentCheck::new(name, &expected, verify);
        pieces.iter().try_for_each(|piece| check.update(piece))?;
        check.finish()
    };
    let summary = check(&[&whole]);
    // Behind the content everything is zero; one piece of that is as good as many.
    let (content, zeros) = whole.split_at(content.len());
    let mut pieces = pieces_of(content, cut);
    pieces.push(zeros);
    assert_eq!(summary, check(&pieces));
    if let Ok(summary) = summary {
        assert_summary(&summary, whole.len(), named.start(size));
    }
}

fn assert_summary(summary: &SegmentSummary, bytes: usize, start: Option<Lsn>) {
    assert_eq!(summary.bytes, bytes as u64);
    let (Some(wal), Some(start)) = (&summary.wal, start) else {
        return;
    };
    assert!(wal.valid_end >= start && wal.valid_end.0 - start.0 <= summary.bytes);
    assert_eq!(wal.records == 0, wal.first_record.is_none());
    assert!(wal.first_record <= wal.last_record);
    assert!((13..=18).contains(&wal.postgres_major));
}

/// The look behind an end of WAL: the answer does not depend on the pieces, zeros are nothing, and
/// what is found lies in what was looked at.
pub fn behind(data: &[u8]) {
    let Some((&[seed, major, offset @ ..], bytes)) = data.split_first_chunk::<4>() else {
        return;
    };
    let size = WalSegmentSize::DEFAULT;
    let end = Lsn(size.bytes() * 3 + u64::from(u16::from_le_bytes(offset)) * 8);
    let look = |pieces: &[&[u8]]| {
        let scanner_at = |lsn| {
            let scanner = Scanner::new(lsn, size);
            match major % 7 {
                0 => scanner,
                known => scanner.of_major(12 + known),
            }
        };
        let mut behind = Behind::new(end, scanner_at);
        for piece in pieces {
            if !behind.feed(piece) {
                break;
            }
        }
        behind.finish()
    };
    let found = look(&[bytes]);
    assert_eq!(found, look(&pieces_of(bytes, seed)));
    if let Some(found) = found {
        assert!(found > end && bytes.iter().any(|byte| *byte != 0));
    }
}

/// Whether one segment goes on with the one before: the end of the first and the begin of the second,
/// with the boundary one to four pages in. The answer does not depend on the pieces.
pub fn joint(data: &[u8]) {
    let Some((&[seed, pages], bytes)) = data.split_first_chunk::<2>() else {
        return;
    };
    let (size, page_bytes) = (WalSegmentSize::DEFAULT, 8_192);
    let first_bytes = (usize::from(pages % 4) + 1) * page_bytes;
    let Some((mut first, second)) = bytes.split_at_checked(first_bytes) else {
        return;
    };
    let boundary = Lsn(size.bytes() * 3);
    let mut scanner = Scanner::new(Lsn(boundary.0 - first_bytes as u64), size);
    while let ScanStep::Record(_) = scanner.advance(&mut first) {}
    if !first.is_empty() {
        return;
    }
    let segment = SegmentName::containing(TimelineId::FIRST, boundary, size);
    let join = |pieces: &[&[u8]]| {
        let mut joint = Joint::new(scanner.clone(), segment);
        for piece in pieces {
            if !joint.update(piece) {
                break;
            }
        }
        let joined = joint.finish(size);
        joined.map(|goes_on| goes_on.map(|scanner| scanner.position()))
    };
    let joined = join(&[second]);
    assert_eq!(joined, join(&pieces_of(second, seed)));
    // Less than a segment cannot be filled by one record.
    assert!(!matches!(joined, Ok(Some(_))) || second.len() as u64 >= size.bytes());
}

/// The begin of a record's content: a time or a name is found in it, or nothing.
pub fn commit_record(data: &[u8]) {
    if let Some(name) = commit::restore_point_name(data) {
        assert!(!name.contains(&0) && name.len() < data.len());
    }
    if commit::commit_time_us(data).is_some() {
        assert!(data.len() > 24);
    }
}

/// The history parser on arbitrary bytes: what it accepts is ordered.
pub fn history(data: &[u8]) {
    let Some((number, text)) = data.split_first_chunk::<4>() else {
        return;
    };
    let Some(timeline) = TimelineId::new(u32::from_le_bytes(*number)) else {
        return;
    };
    if let Ok(history) = History::parse(timeline, text) {
        let ancestors = history.ancestors();
        assert!(!ancestors.is_empty() && ancestors.len() <= text.len());
        assert!(
            ancestors
                .iter()
                .is_sorted_by(|a, b| a.timeline < b.timeline)
        );
        assert!(ancestors.iter().all(|one| one.timeline < timeline));
        let newest = history.timelines();
        assert_eq!(newest.len(), ancestors.len() + 1);
        for ancestor in ancestors {
            let holder = history.timeline_at(ancestor.switch_point);
            assert!(newest.iter().any(|(timeline, _)| *timeline == holder));
        }
    }
}

/// Everything the scanner says about these pieces, without the requests for more.
fn all_steps(mut scanner: Scanner, pieces: &[&[u8]]) -> Vec<ScanStep> {
    let mut steps = Vec::new();
    for piece in pieces {
        let mut rest = *piece;
        loop {
            match scanner.advance(&mut rest) {
                ScanStep::NeedMore => {
                    assert!(rest.is_empty());
                    break;
                }
                step @ ScanStep::Record(_) => steps.push(step),
                step => {
                    steps.push(step);
                    return steps;
                }
            }
        }
    }
    steps
}

/// Cuts `bytes` into pieces of lengths that look random, mostly short, some long or empty.
fn pieces_of(bytes: &[u8], seed: u8) -> Vec<&[u8]> {
    let mut state = u32::from(seed) | 0x9E37_0000;
    let mut pieces = vec![&bytes[..0]];
    let mut rest = bytes;
    while !rest.is_empty() {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        let longest = if state & 0x7000 == 0 { 20_000 } else { 40 };
        let length = (state as usize >> 16) % longest;
        let (piece, later) = rest.split_at(length.min(rest.len()));
        pieces.push(piece);
        rest = later;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn references_and_maps_of_any_bytes_pass(bytes in prop::collection::vec(any::<u8>(), 0..400), rmid in 0_u8..24) {
            let mut record = bytes.clone();
            if let Some(byte) = record.get_mut(19) {
                *byte = rmid;
            }
            record_references(&record);
            segment_map(&[b"walmap 1000000010000000000000003", &bytes[..]].concat());
        }
    }

    #[test]
    fn the_scanner_body_accepts_the_shortest_inputs() {
        for length in 0..64 {
            scanner(&vec![0; length]);
            scanner(&vec![0xFF; length]);
            history(&vec![b'1'; length]);
            segment(&vec![0xFF; length]);
            commit_record(&vec![0xFF; length]);
            joint(&vec![0; length]);
            behind(&vec![0; length]);
            behind(&vec![0xFF; length]);
        }
    }

    /// A segment that ends with a switch, made to be of the size that the body expects.
    #[test]
    fn whole_segments_and_damaged_ones_pass() {
        let size = WalSegmentSize::new(1 << 20).unwrap();
        let name = SegmentName::from_number(TimelineId::FIRST, 3, size);
        let mut writer = WalWriter::new(name, size, SystemId(7), 15);
        for length in [1, 500, 9_000] {
            writer.record(RM_XLOG, 0x20, &vec![7; length]);
        }
        writer.switch();
        let wal = &writer.bytes()[..24_576];
        for (kind, verify) in [(3, 0), (3, 1), (3, 2), (2, 0), (0, 0), (1, 0)] {
            segment(&[&[kind, 3, 0, verify], wal].concat());
            for at in (0..wal.len()).step_by(331) {
                let mut damaged = wal.to_vec();
                damaged[at] ^= 0x11;
                segment(&[&[kind, 3, 0, verify], &damaged[..]].concat());
            }
        }
    }

    #[test]
    fn segments_that_join_and_damaged_ones_pass() {
        let size = WalSegmentSize::DEFAULT;
        let name = SegmentName::from_number(TimelineId::FIRST, 2, size);
        let mut writer = WalWriter::new(name, size, SystemId(7), 15);
        for length in [(16 << 20) - 30_000, 9_000, 30_000, 700] {
            writer.record(10, 0, &vec![7; length]);
        }
        let boundary = 16 << 20;
        let (from, to) = (boundary - 8_192, boundary + 16_384);
        let both = &writer.bytes()[from..to.min(writer.bytes().len())];
        joint(&[&[5, 0], both].concat());
        for at in (0..both.len()).step_by(509) {
            let mut damaged = both.to_vec();
            damaged[at] ^= 0x21;
            joint(&[&[5, 0], &damaged[..]].concat());
        }
    }

    #[test]
    fn wal_behind_a_hole_passes_however_it_is_cut() {
        let size = WalSegmentSize::DEFAULT;
        let name = SegmentName::from_number(TimelineId::FIRST, 3, size);
        let mut writer = WalWriter::new(name, size, SystemId(7), 15);
        for length in [100, 9_000, 30, 700] {
            writer.record(10, 0, &vec![7; length]);
        }
        for from in [0, 40, 8_192, 8_240, 9_000] {
            let offset = u16::try_from(from / 8).unwrap().to_le_bytes();
            let settings = [5, 3, offset[0], offset[1]];
            behind(&[&settings, &writer.bytes()[from..]].concat());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_scanner_gives_one_answer_for_arbitrary_bytes(
            data in proptest::collection::vec(any::<u8>(), 0..2_000),
        ) {
            scanner(&data);
        }

        #[test]
        fn the_scanner_gives_one_answer_for_damaged_wal(
            seed: u8, mode: u8, damage in proptest::collection::vec((0_usize..60_000, any::<u8>()), 0..4),
        ) {
            let size = WalSegmentSize::DEFAULT;
            let segment = SegmentName::from_number(TimelineId::new(1).unwrap(), 3, size);
            let mut writer = WalWriter::new(segment, size, SystemId(1), 17);
            for index in 0..100_usize {
                writer.record(10, 0, &vec![seed; index * 7 % 900 + index / 99 * 9_000]);
            }
            let mut data = vec![4, seed, mode, 0];
            data.extend_from_slice(&segment.start(size).unwrap().0.to_le_bytes());
            data.extend_from_slice(writer.bytes());
            for (at, value) in damage {
                let at = 12 + at % (data.len() - 12);
                data[at] ^= value;
            }
            scanner(&data);
        }

        #[test]
        fn written_wal_is_found_whole(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            written_wal(&data);
        }

        #[test]
        fn histories_that_parse_are_ordered(
            number: [u8; 4], text in "([0-9]{1,3}[ \t][0-9A-F]{1,3}/[0-9]{1,3}.{0,5}\n){0,5}",
        ) {
            let mut data = number.to_vec();
            data.extend_from_slice(text.as_bytes());
            history(&data);
        }
    }
}
