//! Fuzz bodies of the small files that the archive keeps about itself.
//! Never touches the disk. Invariant: each takes any bytes and asserts what must hold for all.

use walmgr_protocol::names::{SegmentName, WalFileName};

use super::checksums::KeptChecksum;
use super::held_names::HeldNames;
use super::packed::{BlockUnpacker, ForeignUnpacker, SeekTable};
use super::partial::acknowledged;
use super::verify::note;

/// What stands before the checksum of the end that was acknowledged.
const CRC: &str = " crc ";

/// The note of an acknowledged end: torn, flipped or another segment's, it says nothing. The second
/// time its checksum is made right, so that what lies behind it is reached.
pub fn acknowledged_end(bytes: &[u8]) {
    read_acknowledged(bytes);
    let said = String::from_utf8_lossy(bytes);
    let said = said.split_once(CRC).map_or(&*said, |(said, _)| said);
    let crc32 = crc32fast::hash(said.as_bytes());
    read_acknowledged(format!("{said}{CRC}{crc32:08X}\n").as_bytes());
}

fn read_acknowledged(bytes: &[u8]) {
    let name = bytes
        .get(..24)
        .and_then(|name| std::str::from_utf8(name).ok());
    let Some(segment) = name.and_then(|name| name.parse::<SegmentName>().ok()) else {
        return;
    };
    let Some(found) = acknowledged::parse(segment, bytes) else {
        return;
    };
    // Of all texts that say this, the one that is written is the only one that is believed.
    let text = String::from_utf8_lossy(bytes);
    let boot = text.split(' ').nth(3).unwrap_or_default();
    assert_eq!(acknowledged::text_of(segment, found.end, boot), text);
    let other = segment.next(walmgr_protocol::names::WalSegmentSize::DEFAULT);
    assert_eq!(
        other.and_then(|other| acknowledged::parse(other, bytes)),
        None
    );
}

/// The checksum that is kept of a finished file: what is read can be written and read again, and says
/// nothing of another file.
pub fn kept_checksum(bytes: &[u8]) {
    let first = bytes.split(|byte| *byte == b'\n').next();
    let name = first.and_then(|line| std::str::from_utf8(line.strip_prefix(b"name ")?).ok());
    let Some(name) = name.and_then(|name| name.parse::<WalFileName>().ok()) else {
        return;
    };
    let Some(kept) = KeptChecksum::parse(name, bytes) else {
        return;
    };
    let text = kept.text(name, "db1 check 0");
    assert_eq!(KeptChecksum::parse(name, text.as_bytes()), Some(kept));
    let other = WalFileName::History(walmgr_protocol::names::TimelineId::FIRST);
    assert!(name == other || KeptChecksum::parse(other, text.as_bytes()).is_none());
}

/// The index of an archive's names: what is read can be written and read again. The second time its checksum is made right,
/// so that what lies behind it is reached.
pub fn held_names(bytes: &[u8]) {
    read_names(bytes);
    let said = String::from_utf8_lossy(bytes);
    let said = said.rsplit_once("check ").map_or(&*said, |(said, _)| said);
    let crc32 = crc32fast::hash(said.as_bytes());
    read_names(format!("{said}check {crc32:08X}\n").as_bytes());
}

fn read_names(bytes: &[u8]) {
    if let Some((moment, names)) = HeldNames::parse(bytes) {
        let text = names.text(&moment).expect("what was read is of lines");
        assert_eq!(HeldNames::parse(text.as_bytes()), Some((moment, names)));
    }
}

/// What `verify` remembers of good files: what is believed is what would be written, and about nothing else.
pub fn verified_note(bytes: &[u8]) {
    note::read_any(bytes);
}

/// Unpacks a segment by its seek table or, if another program packed it, from its beginning. It never gives more bytes
/// than it states or than a segment may have, and its memory is bounded.
pub fn packed_segment(bytes: &[u8]) {
    let Ok(Some(tail_bytes)) = SeekTable::tail_bytes(bytes) else {
        return foreign_segment(bytes);
    };
    let Some(tail_at) = bytes.len().checked_sub(tail_bytes) else {
        return;
    };
    let Ok(table) = SeekTable::parse(bytes.len() as u64, &bytes[tail_at..]) else {
        return;
    };
    let (mut unpacker, mut raw_bytes) = (BlockUnpacker::new(), 0);
    for block in &table.blocks {
        let at = usize::try_from(block.offset_bytes).unwrap_or(usize::MAX);
        let stored = bytes.get(at..at.saturating_add(block.bytes as usize));
        raw_bytes += u64::from(block.raw_bytes());
        let Ok(raw) = unpacker.unpack(block, stored.expect("every block is in the file")) else {
            return;
        };
        assert_eq!(raw.len(), block.raw_bytes() as usize);
    }
    assert_eq!(raw_bytes, table.raw_bytes);
}

fn foreign_segment(bytes: &[u8]) {
    let Ok(mut unpacker) = ForeignUnpacker::new() else {
        return;
    };
    let mut raw_bytes = 0;
    for piece in bytes.chunks(11) {
        let unpacked = unpacker.update(piece, |raw| {
            raw_bytes += raw.len();
            raw_bytes <= 1 << 20
        });
        if !matches!(unpacked, Ok(true)) {
            return;
        }
    }
    let _ = unpacker.finish();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::joint::SegmentEnd;
    use proptest::prelude::*;
    use walmgr_protocol::names::Lsn;

    fn sound() -> Vec<u8> {
        let segment = "000000010000000000000003".parse().unwrap();
        let boot = "b9cf12a3-27be-4bb7-bd5c-0a81b0ba5c70";
        acknowledged::text_of(segment, Lsn(0x0312_A4C8), boot).into_bytes()
    }

    fn index() -> String {
        let said = "walmgr names 1\nfolder 2050 131073 1 2\nboot b9cf12a3\nsize 16777216\n\
            plain 000000010000000000000001 000000010000000100000002\n\
            packed 000000010000000100000003 000000010000000100000003\nother 00000002.history\n";
        format!("{said}check {:08X}\n", crc32fast::hash(said.as_bytes()))
    }

    #[test]
    fn the_body_takes_an_index_of_names_and_none_that_is_flipped() {
        let index = index();
        assert!(HeldNames::parse(index.as_bytes()).is_some());
        held_names(index.as_bytes());
        for at in 0..index.len() * 8 {
            let mut flipped = index.clone().into_bytes();
            flipped[at / 8] ^= 1 << (at % 8);
            assert_eq!(HeldNames::parse(&flipped), None, "bit {at}");
            held_names(&flipped);
        }
    }

    #[test]
    fn notes_cut_or_flipped_anywhere_pass() {
        let note = sound();
        acknowledged_end(&note);
        for at in 0..note.len() {
            acknowledged_end(&note[..at]);
            for bit in 0..8 {
                let mut damaged = note.clone();
                damaged[at] ^= 1 << bit;
                acknowledged_end(&damaged);
            }
        }
    }

    #[test]
    fn kept_checksums_cut_or_flipped_anywhere_pass() {
        let name: WalFileName = "000000010000000000000003".parse().unwrap();
        let ends = [
            SegmentEnd::Closed { last: Lsn(9) },
            SegmentEnd::Open {
                begins: Lsn(9),
                previous: Some(Lsn(7)),
            },
            SegmentEnd::Inside,
        ];
        for end in ends {
            let kept = KeptChecksum {
                len: 1 << 24,
                crc32: 7,
                end: Some(end),
                has_sound_records: end != SegmentEnd::Inside,
                follows: (end != SegmentEnd::Inside).then_some(7),
                is_found: end == SegmentEnd::Inside,
            };
            let text = kept.text(name, "db1").into_bytes();
            for at in 0..text.len() {
                kept_checksum(&text[..at]);
                let mut damaged = text.clone();
                damaged[at] ^= 3;
                kept_checksum(&damaged);
            }
            kept_checksum(&text);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_pass(bytes: Vec<u8>, text in "[0-9A-F]{24} [0-9A-F]{1,9}/[+0-9A-F]{1,9} boot .{0,40}") {
            acknowledged_end(&bytes);
            acknowledged_end(text.as_bytes());
            kept_checksum(&bytes);
        }
    }
}
