//! What one segment changes: the records that begin in it; and how that is written down.
//! Never says what a record changes of which the references stand in the next segment; it says where that begins.
//! Invariant: the maps of all segments of a stretch, and those records, are all that the stretch changes; bytes that
//! were not written as the map of this file are no map.
//!
//! # Format 1
//!
//! Little-endian, without padding:
//!
//! ```text
//! 8 bytes     "walmap 1"
//! 24 bytes    the name of the segment
//! u64 u32     length and CRC-32 (zlib) of the file that it is the map of
//! u64         where the record begins whose references run on into the next segment; 0 if none does
//! u8          1 if everything may have changed; then u64, u64: where the first and the last record begin that may
//!             have changed it, u8, u8, u8: why, with resource manager and `xl_info` of the first
//! u32         how many databases are whole, then of each u32 tablespace, u32 database; in order, as all lists
//! u32         how many forks there are, then of each
//!   u32 u32 u32 u8   tablespace, database, relfilenode, fork number
//!   u8               0: only blocks; 1: a limit too, in a u32 that follows; 2: whole, and nothing follows
//!   u32              how many bytes follow: the blocks in the portable format of Roaring bitmaps
//! u32         CRC-32 of everything above
//! ```
//!
//! A map that would have more than a 32nd of the segment's bytes says "whole" of the forks with the longest lists, and
//! if that is not enough, that everything may have changed.

use roaring::RoaringBitmap;
use walmgr_protocol::names::{Lsn, SegmentName, WalSegmentSize};

use super::changes::{Changes, EverythingReason, Fork, ForkChange, RelationFork};
use super::scan::{ScanStep, Scanner};
use super::segment::ExpectedSegment;

const MAGIC: &[u8; 8] = b"walmap 1";

/// The share of a segment's bytes that its map may have: one over this. A segment with nothing but the shortest
/// records, each of a block of its own, needs about that.
const SHARE: u64 = 32;

/// The changes of the records that begin in a segment.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct SegmentMap {
    /// Those whose references are in it.
    pub changes: Changes,
    /// Where the one begins whose references run on into the next segment.
    pub open: Option<Lsn>,
}

/// The file that a map is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MappedFile {
    /// Its name.
    pub segment: SegmentName,
    /// Its length in bytes.
    pub len: u64,
    /// CRC-32 of its bytes.
    pub crc32: u32,
}

/// A walk through a segment, or what there is of one, for nothing but its map; whoever has it walk knows that the
/// records are what they should be.
pub(crate) struct MapReader {
    scanner: Scanner,
    segment_end: Lsn,
    is_switched: bool,
}

impl MapReader {
    /// A walk from the segment's beginning on.
    pub(crate) fn new(segment: SegmentName, expected: &ExpectedSegment) -> MapReader {
        let size = expected.segment_size;
        let start = segment.start(size).unwrap_or_default();
        let scanner = Scanner::new(start, size)
            .of_cluster(expected.system_id)
            .up_to_timeline(segment.timeline())
            .noting_changes();
        MapReader {
            scanner: match expected.postgres_major {
                Some(major) => scanner.of_major(major),
                None => scanner,
            },
            segment_end: Lsn(start.0.saturating_add(size.bytes())),
            is_switched: false,
        }
    }

    /// Walks on; `false` when no more bytes are wanted.
    pub(crate) fn feed(&mut self, mut piece: &[u8]) -> bool {
        loop {
            match self.scanner.advance(&mut piece) {
                ScanStep::NeedMore => return true,
                ScanStep::Record(record) if record.is_switch() => {
                    self.is_switched = true;
                    return false;
                }
                ScanStep::Record(_) => {}
                ScanStep::EndOfWal(_) | ScanStep::Invalid { .. } => return false,
            }
        }
    }

    /// The map, and up to where it is all that the records change.
    pub(crate) fn finish(mut self) -> (SegmentMap, Lsn) {
        // A record that runs on into the next segment has its references here, or the map says where it begins.
        let is_whole = self.is_switched || self.scanner.position() >= self.segment_end;
        let end = match is_whole {
            true => self.segment_end,
            false => self.scanner.valid_end(),
        };
        let map = SegmentMap::take(&mut self.scanner).unwrap_or_default();
        (map, end)
    }
}

impl MappedFile {
    /// The longest that its map is.
    pub(crate) const fn map_bytes_max(&self) -> u64 {
        self.len / SHARE
    }
}

impl SegmentMap {
    /// What a scanner noted that walked from a segment's beginning to its end; `None` if it notes no changes.
    pub(crate) fn take(scanner: &mut Scanner) -> Option<SegmentMap> {
        let (changes, open) = scanner.take_changes()?;
        Some(SegmentMap { changes, open })
    }

    /// The map as it is stored.
    pub(crate) fn to_bytes(&self, file: &MappedFile) -> Vec<u8> {
        let bytes_max = usize::try_from(file.map_bytes_max()).unwrap_or(usize::MAX);
        let bytes = self.encode(file);
        if bytes.len() <= bytes_max {
            return bytes;
        }
        let mut shorter = self.clone();
        let mut longest: Vec<(usize, RelationFork)> = (self.changes.forks())
            .map(|(fork, change)| (change.blocks().serialized_size(), *fork))
            .collect();
        longest.sort_unstable_by(|one, other| other.cmp(one));
        let mut over = bytes.len() - bytes_max;
        for (saved_bytes, fork) in longest {
            shorter.changes.add_whole(fork);
            over = over.saturating_sub(saved_bytes);
            if over == 0 {
                return shorter.encode(file);
            }
        }
        let mut everything = SegmentMap::default();
        let met = self.changes.everything_span();
        let ((first, reason), last) = met.unwrap_or_else(|| too_many(file));
        everything.changes.set_everything(first, reason);
        everything.changes.set_everything(last, reason);
        everything.open = self.open;
        everything.encode(file)
    }

    pub(super) fn encode(&self, file: &MappedFile) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(file.segment.to_string().as_bytes());
        out.extend(file.len.to_le_bytes());
        out.extend(file.crc32.to_le_bytes());
        out.extend(self.open.map_or(0, |open| open.0).to_le_bytes());
        match self.changes.everything_span() {
            None => out.push(0),
            Some(((first, reason), last)) => {
                out.push(1);
                out.extend(first.0.to_le_bytes());
                out.extend(last.0.to_le_bytes());
                out.extend(reason_bytes(reason));
            }
        }
        put_count(&mut out, self.changes.databases().count());
        for (tablespace, database) in self.changes.databases() {
            out.extend(tablespace.to_le_bytes());
            out.extend(database.to_le_bytes());
        }
        put_count(&mut out, self.changes.forks().count());
        for (fork, change) in self.changes.forks() {
            put_fork(&mut out, fork, change);
        }
        let check = crc32fast::hash(&out);
        out.extend(check.to_le_bytes());
        out
    }

    /// Reads what [`SegmentMap::to_bytes`] wrote for this file.
    pub(crate) fn parse(file: &MappedFile, bytes: &[u8]) -> Option<SegmentMap> {
        let (above, check) = bytes.split_last_chunk()?;
        if crc32fast::hash(above) != u32::from_le_bytes(*check) && !cfg!(fuzzing) {
            return None;
        }
        let mut input = MapInput { rest: above };
        let is_of_file = input.take::<8>()? == *MAGIC
            && input.take::<24>()? == *file.segment.to_string().as_bytes()
            && input.u64()? == file.len
            && input.u32()? == file.crc32;
        if !is_of_file {
            return None;
        }
        let open = input.u64()?;
        let mut changes = Changes::default();
        match input.u8()? {
            0 => {}
            1 => {
                let (first, last) = (input.u64()?, input.u64()?);
                let reason = reason_of(input.take()?)?;
                changes.set_everything(Lsn(first), reason);
                // Of the last one nobody asks why.
                changes.set_everything(Lsn(last), reason);
            }
            _ => return None,
        }
        for _ in 0..input.u32()? {
            let tablespace = input.u32()?;
            changes.add_database(tablespace, input.u32()?);
        }
        for _ in 0..input.u32()? {
            let (fork, change) = input.fork()?;
            changes.put(fork, change);
        }
        input.rest.is_empty().then_some(SegmentMap {
            changes,
            open: (open != 0).then_some(Lsn(open)),
        })
    }
}

/// Somewhere in the segment, from its first record to its last.
fn too_many(file: &MappedFile) -> ((Lsn, EverythingReason), Lsn) {
    let size = u32::try_from(file.len).ok();
    let size = size.and_then(WalSegmentSize::new);
    let start = size.and_then(|size| file.segment.start(size));
    let (first, last) = match start {
        Some(start) => (start, Lsn(start.0 + file.len - 1)),
        None => (Lsn(0), Lsn(u64::MAX)),
    };
    ((first, EverythingReason::TooMany), last)
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    // A segment has fewer bytes than that.
    out.extend(u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
}

fn put_fork(out: &mut Vec<u8>, fork: &RelationFork, change: &ForkChange) {
    out.extend(fork.tablespace.to_le_bytes());
    out.extend(fork.database.to_le_bytes());
    out.extend(fork.relfilenode.to_le_bytes());
    out.push(fork.fork.number());
    match change.limit() {
        _ if change.is_whole() => return out.push(2),
        Some(limit) => {
            out.push(1);
            out.extend(limit.to_le_bytes());
        }
        None => out.push(0),
    }
    put_count(out, change.blocks().serialized_size());
    // A Vec takes whatever is written to it.
    let _ = change.blocks().serialize_into(&mut *out);
}

const fn reason_bytes(reason: EverythingReason) -> [u8; 3] {
    match reason {
        EverythingReason::Manager(rmid) => [1, rmid, 0],
        EverythingReason::Record { rmid, info } => [2, rmid, info],
        EverythingReason::Garbled(rmid) => [3, rmid, 0],
        EverythingReason::Minimal => [4, 0, 0],
        EverythingReason::Reset => [5, 0, 0],
        EverythingReason::TooMany => [6, 0, 0],
    }
}

const fn reason_of([kind, rmid, info]: [u8; 3]) -> Option<EverythingReason> {
    Some(match kind {
        1 => EverythingReason::Manager(rmid),
        2 => EverythingReason::Record { rmid, info },
        3 => EverythingReason::Garbled(rmid),
        4 => EverythingReason::Minimal,
        5 => EverythingReason::Reset,
        6 => EverythingReason::TooMany,
        _ => return None,
    })
}

struct MapInput<'a> {
    rest: &'a [u8],
}

impl MapInput<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn fork(&mut self) -> Option<(RelationFork, ForkChange)> {
        let (tablespace, database, relfilenode) = (self.u32()?, self.u32()?, self.u32()?);
        let fork = RelationFork {
            tablespace,
            database,
            relfilenode,
            fork: Fork::of_number(self.u8()?.into())?,
        };
        let limit = match self.u8()? {
            0 => None,
            1 => Some(self.u32()?),
            2 => return Some((fork, ForkChange::of_parts(RoaringBitmap::new(), None, true))),
            _ => return None,
        };
        let bytes = usize::try_from(self.u32()?).ok()?;
        let (mut blocks, rest) = self.rest.split_at_checked(bytes)?;
        self.rest = rest;
        // Reads no more than there is, and believes no list that is out of order.
        let bitmap = RoaringBitmap::deserialize_from(&mut blocks).ok()?;
        let change = ForkChange::of_parts(bitmap, limit, false);
        blocks.is_empty().then_some((fork, change))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file() -> MappedFile {
        MappedFile {
            segment: "000000010000000000000003".parse().unwrap(),
            len: 1 << 20,
            crc32: 0x89AB_CDEF,
        }
    }

    fn fork(relfilenode: u32) -> RelationFork {
        RelationFork {
            tablespace: 1663,
            database: 5,
            relfilenode,
            fork: Fork::Main,
        }
    }

    fn sample() -> SegmentMap {
        let mut map = SegmentMap::default();
        map.changes.add_database(1663, 99);
        map.changes.add_limit(fork(7), 3);
        map.changes.add_block(fork(7), 1);
        map.changes.add_whole(fork(8));
        for block in [0, 5, 6, 70_000, u32::MAX] {
            map.changes.add_block(fork(9), block);
        }
        map.open = Some(Lsn(77));
        map
    }

    #[test]
    fn fault_203_a_map_reads_as_it_was_written_or_is_not_believed() {
        let mut everything = sample();
        let reason = EverythingReason::Record {
            rmid: 2,
            info: 0x30,
        };
        everything.changes.set_everything(Lsn(9), reason);
        everything.changes.set_everything(Lsn(99), reason);
        for map in [SegmentMap::default(), sample(), everything] {
            let bytes = map.to_bytes(&file());
            assert_eq!(SegmentMap::parse(&file(), &bytes), Some(map));
            for len in 0..bytes.len() {
                assert_eq!(SegmentMap::parse(&file(), &bytes[..len]), None);
            }
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(SegmentMap::parse(&file(), &flipped), None, "bit {bit}");
            }
        }
    }

    #[test]
    fn fault_203_a_map_of_another_file_is_none() {
        let bytes = sample().to_bytes(&file());
        let segment = "000000010000000000000004".parse().unwrap();
        let others = [
            MappedFile { segment, ..file() },
            MappedFile {
                len: 2 << 20,
                ..file()
            },
            MappedFile { crc32: 1, ..file() },
        ];
        for other in others {
            assert_eq!(SegmentMap::parse(&other, &bytes), None);
        }
    }

    #[test]
    fn a_map_that_grows_too_long_says_less_and_never_too_little() {
        let mut map = sample();
        for block in 0..40_000 {
            map.changes.add_block(fork(10), block * 50);
        }
        let bytes = map.to_bytes(&file());
        assert!(bytes.len() as u64 <= file().map_bytes_max());
        let mut expected = map.clone();
        expected.changes.add_whole(fork(10));
        assert_eq!(SegmentMap::parse(&file(), &bytes), Some(expected));
        for relfilenode in 100..4_000 {
            map.changes.add_block(fork(relfilenode), 1);
        }
        let bytes = map.to_bytes(&file());
        assert!(bytes.len() as u64 <= file().map_bytes_max());
        let read = SegmentMap::parse(&file(), &bytes).unwrap();
        let begin = Lsn(3 << 20);
        assert_eq!(
            read.changes.everything(),
            Some((begin, EverythingReason::TooMany))
        );
        assert_eq!(read.open, map.open);
    }

    proptest! {
        #[test]
        fn arbitrary_maps_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0_usize..200) {
            let mut map = sample().encode(&file());
            map.truncate(at);
            map.extend(&bytes);
            let check = crc32fast::hash(&map);
            map.extend(check.to_le_bytes());
            let _ = SegmentMap::parse(&file(), &map);
        }
    }
}
