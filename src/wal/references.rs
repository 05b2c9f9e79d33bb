//! Which blocks a record changes, from its first bytes, for PostgreSQL 13 to 18.
//! Never looks at the data of a block, and never at a checksum. Invariant: a record that it does not understand
//! to the last field changes everything.
//!
//! Behind the record's header stand, little-endian and packed (`src/include/access/xlogrecord.h`, `DecodeXLogRecord`
//! in `src/backend/access/transam/xlogreader.c`):
//!
//! ```text
//! u8 0..=32     a block: u8 fork and flags, u16 length of its data
//!               with an image (0x10): u16 length, u16 hole offset, u8 image flags,
//!                 with a hole (0x01) in a compressed one: u16 hole length.
//!                 Compressed is 0x02 in 13 and 14; since 15 that says "apply", and 0x04, 0x08, 0x10 are
//!                 pglz, lz4, zstd
//!               without "same relation" (0x80): u32 tablespace, u32 database, u32 relfilenode
//!               u32 block number
//! u8 253        u16 replication origin
//! u8 252        u32 top-level transaction (14)
//! u8 255, 254   u8 or u32: length of the main data; always the last of the headers
//! ```
//!
//! then the images and data of the blocks, then the main data. The headers end where the rest of the record is as
//! long as they say.
//!
//! # What is not in block references
//!
//! | record | what it changes |
//! |---|---|
//! | `XLOG_SMGR_CREATE`, `XLOG_SMGR_TRUNCATE` | a length: what is behind it is not what it was |
//! | creation of a database | all of it: files are copied without a word (13, 14, and `STRATEGY = file_copy`) |
//! | `wal_level = minimal`, `pg_resetwal` | everything: what changed is not in the WAL |
//! | clearing bits of visibility maps, all of free space maps | whole, whatever the WAL says (see `changes`) |
//! | commit records, removal of a database or tablespace | nothing that is there afterwards: a relation that comes back under its number comes with `XLOG_SMGR_CREATE`, a database with its creation |
//! | `XLOG_RELMAP_UPDATE`, transactions, multixacts, … | files that are no relations |
//!
//! Unlogged relations are not in a backup; the WAL tells of their init forks as of others.

use std::sync::OnceLock;

use walmgr_protocol::names::Lsn;

use super::changes::{Changes, EverythingReason, Fork, RelationFork};
use super::obstacle::INFO_MASK;
use super::recent_blocks::RecentBlocks;
use super::record::{RECORD_HEADER_BYTES, RM_XLOG, RecordHeader, XLOG_CHECKPOINT_SHUTDOWN};

/// This many bytes of a record, its header among them, are enough for all of its references: `XLR_MAX_BLOCK_ID` and
/// one blocks, an origin, a transaction, and the main data of the records that are looked at.
pub(crate) const REFERENCES_BYTES_MAX: usize = RECORD_HEADER_BYTES + 33 * 27 + 3 + 5 + 5 + 24;

/// A variable of the environment: the number of the resource manager of [`is_passed_over`].
const PASSED_OVER_MANAGER: &str = "WALMGR_PASSED_OVER_MANAGER";

const RM_SMGR: u8 = 2;
const RM_DBASE: u8 = 4;

const XLOG_PARAMETER_CHANGE: u8 = 0x60;
const XLOG_SMGR_CREATE: u8 = 0x10;
const XLOG_DBASE_CREATE_FILE_COPY: u8 = 0x00;
/// Of 15 and later; `XLOG_DBASE_DROP` in 13 and 14.
const XLOG_DBASE_CREATE_WAL_LOG: u8 = 0x10;
/// `SMGR_TRUNCATE_HEAP`: the main fork.
const TRUNCATES_MAIN: u32 = 1;
const WAL_LEVEL_MINIMAL: u32 = 0;

/// `XLR_MAX_BLOCK_ID`
const BLOCK_ID_MAX: u8 = 32;
const BLOCK_ID_DATA_SHORT: u8 = 255;
const BLOCK_ID_DATA_LONG: u8 = 254;
const BLOCK_ID_ORIGIN: u8 = 253;
const BLOCK_ID_TOPLEVEL_XID: u8 = 252;

const FORK_MASK: u8 = 0x0F;
const HAS_IMAGE: u8 = 0x10;
const SAME_RELATION: u8 = 0x80;
const IMAGE_HAS_HOLE: u8 = 0x01;
const IMAGE_COMPRESSED_BEFORE_15: u8 = 0x02;
const IMAGE_COMPRESSED: u8 = 0x04 | 0x08 | 0x10;

/// The first version whose image flags moved, and that logs the creation of a database block by block.
const MOVED_FLAGS_MAJOR: u8 = 15;

/// Of each resource manager, in the order of `src/include/access/rmgrlist.h`, the values of the upper half of
/// `xl_info` that any of 13 to 18 writes, a bit each.
const KNOWN_RECORDS: [u16; 22] = [
    0b0110_1111_1111_1111, // XLOG
    0b0111_1111_0111_1111, // Transaction, with XLOG_XACT_HAS_INFO
    0b0000_0000_0000_0110, // Storage
    0b0000_0000_0000_0011, // CLOG
    0b0000_0000_0000_0111, // Database
    0b0000_0000_0000_0011, // Tablespace
    0b0000_0000_0000_1111, // MultiXact
    0b0000_0000_0000_0001, // RelMap
    0b0000_0000_0000_0111, // Standby
    0b1111_1111_1111_1111, // Heap2
    0b1111_1111_1111_1111, // Heap
    0b0111_1111_1111_1111, // Btree
    0b0001_1111_1111_1111, // Hash
    0b0000_0011_1111_1110, // Gin
    0b0000_0000_1100_1111, // Gist
    0b0000_0000_0000_0001, // Sequence
    0b0000_0001_1111_1110, // SPGist
    0b0011_1111_0011_1111, // BRIN
    0b0000_0000_0000_0111, // CommitTs
    0b0000_0000_0000_0011, // ReplicationOrigin
    0b0000_0000_0000_0001, // Generic
    0b0000_0000_0000_0001, // LogicalMessage
];

/// How a look at a record ended.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReferencesRead {
    /// All of them are noted.
    All,
    /// The bytes end before they do; some may be noted.
    NeedMore,
}

/// Why a look goes no further.
enum Stop {
    Short,
    Garbled,
}

/// Notes what the record at `lsn` changes, from its first bytes, page headers taken out; `false` if more of
/// them are needed. Of a record with fewer, [`REFERENCES_BYTES_MAX`] may go beyond its end.
pub(crate) fn note_record(changes: &mut Changes, lsn: Lsn, record: &[u8], major: u8) -> bool {
    let Some((header, body)) = record.split_first_chunk() else {
        return false;
    };
    let header = RecordHeader::decode(header);
    let body_bytes = (header.total_bytes as usize).saturating_sub(RECORD_HEADER_BYTES);
    let body = &body[..body_bytes.min(body.len())];
    note(changes, (lsn, &header), major, body) == ReferencesRead::All
}

/// Where changes are noted.
trait ChangeSink {
    /// Notes a block.
    fn add_block(&mut self, fork: RelationFork, block: u32);

    /// Where everything else goes.
    fn changes(&mut self) -> &mut Changes;
}

impl ChangeSink for Changes {
    fn add_block(&mut self, fork: RelationFork, block: u32) {
        Changes::add_block(self, fork, block);
    }

    fn changes(&mut self) -> &mut Changes {
        self
    }
}

/// Changes, and the blocks that are still to be added to them.
#[derive(Debug, Clone, Default)]
struct BufferedChanges {
    changes: Changes,
    recent: RecentBlocks,
}

impl ChangeSink for BufferedChanges {
    #[inline]
    fn add_block(&mut self, fork: RelationFork, block: u32) {
        if fork.fork.is_told() {
            self.recent.add(fork, block, &mut self.changes);
        }
    }

    fn changes(&mut self) -> &mut Changes {
        &mut self.changes
    }
}

/// Notes what the record at `lsn` changes. `body` begins behind its header and may end anywhere, but not before
/// the record's end if it has [`REFERENCES_BYTES_MAX`] or fewer.
fn note(
    sink: &mut impl ChangeSink,
    (lsn, header): (Lsn, &RecordHeader),
    major: u8,
    body: &[u8],
) -> ReferencesRead {
    if let Some(reason) = unknown(header) {
        sink.changes().set_everything(lsn, reason);
        return ReferencesRead::All;
    }
    if is_passed_over(header.rmid) {
        return ReferencesRead::All;
    }
    if is_noted_at_once(sink, header, body) {
        return ReferencesRead::All;
    }
    note_in_order(sink, (lsn, header), major, body)
}

/// Notes a record of the two shapes that most have: main data alone, and one block without an image before it. `false`
/// where it is none of them, and [`note_in_order`] has to look; that would note the same of these.
#[inline]
fn is_noted_at_once(sink: &mut impl ChangeSink, header: &RecordHeader, body: &[u8]) -> bool {
    // The header of such a block, and that of the main data.
    let Some(head) = body.first_chunk::<22>() else {
        return false;
    };
    if matches!(header.rmid, RM_XLOG | RM_SMGR | RM_DBASE) {
        return false;
    }
    if head[0] == BLOCK_ID_DATA_SHORT {
        return true;
    }
    let is_plain = head[1] & (FORK_MASK | HAS_IMAGE | SAME_RELATION) == 0;
    if head[0] > BLOCK_ID_MAX || !is_plain || head[20] != BLOCK_ID_DATA_SHORT {
        return false;
    }
    let number =
        |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let relation = (number(4), number(8), number(12));
    sink.add_block(fork_of(relation, Fork::Main), number(16));
    true
}

/// Notes the headers of a record one by one.
fn note_in_order(
    sink: &mut impl ChangeSink,
    (lsn, header): (Lsn, &RecordHeader),
    major: u8,
    body: &[u8],
) -> ReferencesRead {
    let total_bytes = u64::from(header.total_bytes).saturating_sub(RECORD_HEADER_BYTES as u64);
    let bytes_max = REFERENCES_BYTES_MAX - RECORD_HEADER_BYTES;
    let is_all = body.len() as u64 >= total_bytes || body.len() >= bytes_max;
    let body = &body[..body.len().min(bytes_max)];
    let mut input = Input { rest: body };
    let outcome = blocks(sink, major, total_bytes, &mut input).and_then(|has_blocks| {
        // Then the main data is far behind; the records whose data is looked at have none.
        match is_told_by_main_data(header, major) {
            false => Ok(()),
            true if has_blocks => Err(Stop::Garbled),
            true => main_data(sink.changes(), (lsn, header), &mut input),
        }
    });
    match outcome {
        Ok(()) => ReferencesRead::All,
        Err(Stop::Short) if !is_all => ReferencesRead::NeedMore,
        Err(Stop::Short | Stop::Garbled) => {
            (sink.changes()).set_everything(lsn, EverythingReason::Garbled(header.rmid));
            ReferencesRead::All
        }
    }
}

/// Whether a test of this program wants the records of this resource manager passed over, so that it is seen who
/// notices. A program for users does not ask.
fn is_passed_over(rmid: u8) -> bool {
    static PASSED_OVER: OnceLock<Option<u8>> = OnceLock::new();
    let asked = || std::env::var(PASSED_OVER_MANAGER).ok()?.parse().ok();
    cfg!(debug_assertions) && *PASSED_OVER.get_or_init(asked) == Some(rmid)
}

fn unknown(header: &RecordHeader) -> Option<EverythingReason> {
    let (rmid, info) = (header.rmid, header.info & INFO_MASK);
    let Some(known) = KNOWN_RECORDS.get(usize::from(rmid)) else {
        return Some(EverythingReason::Manager(rmid));
    };
    if known >> (info >> 4) & 1 == 0 {
        return Some(EverythingReason::Record { rmid, info });
    }
    // The first record of a cluster has none before it either; nobody has a backup of before.
    let is_reset = header.is_xlog(XLOG_CHECKPOINT_SHUTDOWN) && header.prev.0 == 0;
    is_reset.then_some(EverythingReason::Reset)
}

/// Notes the blocks, and says whether there are any with images or data.
fn blocks(
    sink: &mut impl ChangeSink,
    major: u8,
    total_bytes: u64,
    input: &mut Input<'_>,
) -> Result<bool, Stop> {
    let (mut read_bytes, mut data_bytes) = (0, 0);
    let mut relation = None;
    let mut before = input.rest.len();
    while total_bytes - read_bytes > data_bytes {
        match input.u8()? {
            BLOCK_ID_DATA_SHORT => {
                input.take::<1>()?;
                break;
            }
            BLOCK_ID_DATA_LONG => {
                input.take::<4>()?;
                break;
            }
            BLOCK_ID_ORIGIN => {
                input.take::<2>()?;
            }
            BLOCK_ID_TOPLEVEL_XID => {
                input.take::<4>()?;
            }
            0..=BLOCK_ID_MAX => data_bytes += block(sink, major, &mut relation, input)?,
            _ => return Err(Stop::Garbled),
        }
        read_bytes += (before - input.rest.len()) as u64;
        before = input.rest.len();
        if read_bytes > total_bytes {
            return Err(Stop::Garbled);
        }
    }
    Ok(data_bytes > 0)
}

/// Notes one block; how many bytes of images and data it has.
fn block(
    sink: &mut impl ChangeSink,
    major: u8,
    relation: &mut Option<(u32, u32, u32)>,
    input: &mut Input<'_>,
) -> Result<u64, Stop> {
    let flags = input.u8()?;
    let mut data_bytes = u64::from(input.u16()?);
    if flags & HAS_IMAGE != 0 {
        data_bytes += u64::from(input.u16()?);
        input.take::<2>()?;
        let image = input.u8()?;
        let compressed = match major {
            MOVED_FLAGS_MAJOR.. => IMAGE_COMPRESSED,
            _ => IMAGE_COMPRESSED_BEFORE_15,
        };
        if image & IMAGE_HAS_HOLE != 0 && image & compressed != 0 {
            input.take::<2>()?;
        }
    }
    if flags & SAME_RELATION == 0 {
        *relation = Some((input.u32()?, input.u32()?, input.u32()?));
    }
    let fork = Fork::of_number(u32::from(flags & FORK_MASK)).ok_or(Stop::Garbled)?;
    let relation = relation.ok_or(Stop::Garbled)?;
    sink.add_block(fork_of(relation, fork), input.u32()?);
    Ok(data_bytes)
}

/// Whether a record changes something without naming its blocks.
fn is_told_by_main_data(header: &RecordHeader, major: u8) -> bool {
    match (header.rmid, header.info & INFO_MASK) {
        (RM_XLOG, info) => info == XLOG_PARAMETER_CHANGE,
        (RM_SMGR, _) => true,
        (RM_DBASE, info) => {
            info == XLOG_DBASE_CREATE_FILE_COPY
                || (major >= MOVED_FLAGS_MAJOR && info == XLOG_DBASE_CREATE_WAL_LOG)
        }
        _ => false,
    }
}

/// Notes what the main data of such a record says.
fn main_data(
    changes: &mut Changes,
    (lsn, header): (Lsn, &RecordHeader),
    input: &mut Input<'_>,
) -> Result<(), Stop> {
    match (header.rmid, header.info & INFO_MASK) {
        (RM_XLOG, _) => {
            input.take::<20>()?;
            if input.u32()? == WAL_LEVEL_MINIMAL {
                changes.set_everything(lsn, EverythingReason::Minimal);
            }
        }
        (RM_SMGR, XLOG_SMGR_CREATE) => {
            let relation = (input.u32()?, input.u32()?, input.u32()?);
            let fork = Fork::of_number(input.u32()?).ok_or(Stop::Garbled)?;
            changes.add_limit(fork_of(relation, fork), 0);
        }
        (RM_SMGR, _) => {
            let blocks = input.u32()?;
            let relation = (input.u32()?, input.u32()?, input.u32()?);
            if input.u32()? & TRUNCATES_MAIN != 0 {
                changes.add_limit(fork_of(relation, Fork::Main), blocks);
            }
        }
        _ => {
            let database = input.u32()?;
            changes.add_database(input.u32()?, database);
        }
    }
    Ok(())
}

const fn fork_of((tablespace, database, relfilenode): (u32, u32, u32), fork: Fork) -> RelationFork {
    RelationFork {
        tablespace,
        database,
        relfilenode,
        fork,
    }
}

/// Notes the changes of records while their bytes arrive.
#[derive(Debug, Clone, Default)]
pub(super) struct ChangeReader {
    noted: BufferedChanges,
    record: Option<DueRecord>,
    /// What has come of a body whose references have not all come.
    gathered: Vec<u8>,
}

/// A record whose references are not all read.
#[derive(Debug, Clone, Copy)]
struct DueRecord {
    lsn: Lsn,
    header: RecordHeader,
    major: u8,
}

impl ChangeReader {
    /// Begins with a record of this header; `major` is not known in WAL whose first page was not seen.
    pub(super) fn begin(&mut self, lsn: Lsn, header: RecordHeader, major: Option<u8>) {
        self.gathered.clear();
        self.record = None;
        let Some(major) = major else {
            let reason = EverythingReason::Garbled(header.rmid);
            return self.noted.changes.set_everything(lsn, reason);
        };
        self.record = Some(DueRecord { lsn, header, major });
        if header.total_bytes as usize <= RECORD_HEADER_BYTES {
            self.update(&[]);
        }
    }

    /// Reads on in the body of the record.
    pub(super) fn update(&mut self, piece: &[u8]) {
        let Some(due) = &self.record else {
            return;
        };
        let record = (due.lsn, &due.header);
        let read = match self.gathered.is_empty() {
            true => note(&mut self.noted, record, due.major, piece),
            false => {
                gather(&mut self.gathered, piece);
                note(&mut self.noted, record, due.major, &self.gathered)
            }
        };
        match read {
            ReferencesRead::All => self.record = None,
            ReferencesRead::NeedMore if self.gathered.is_empty() => {
                gather(&mut self.gathered, piece);
            }
            ReferencesRead::NeedMore => {}
        }
    }

    /// What the records so far change.
    pub(super) fn into_changes(mut self) -> Changes {
        self.noted.recent.hand_over(&mut self.noted.changes);
        self.noted.changes
    }

    /// Whether the open record changes more than is noted.
    pub(super) const fn is_due(&self) -> bool {
        self.record.is_some()
    }
}

fn gather(gathered: &mut Vec<u8>, piece: &[u8]) {
    let room = (REFERENCES_BYTES_MAX - RECORD_HEADER_BYTES).saturating_sub(gathered.len());
    gathered.extend_from_slice(&piece[..room.min(piece.len())]);
}

struct Input<'a> {
    rest: &'a [u8],
}

impl Input<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(Stop::Short)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, Stop> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, Stop> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Stop> {
        self.take().map(u32::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn fault_200_the_short_way_notes_what_the_long_one_does(
            rmid in 0_u8..22,
            first in prop_oneof![Just(0_u8), Just(255), any::<u8>()],
            flags in prop_oneof![Just(0x20_u8), any::<u8>()],
            next in prop_oneof![Just(255_u8), any::<u8>()],
            mut body in prop::collection::vec(any::<u8>(), 0..80),
            missing in 0_u32..40,
        ) {
            for (at, byte) in [(0, first), (1, flags), (3, 0), (20, next)] {
                if let Some(place) = body.get_mut(at) {
                    *place = byte;
                }
            }
            let header = RecordHeader {
                total_bytes: u32::try_from(RECORD_HEADER_BYTES + body.len()).unwrap() + missing,
                xid: 0,
                prev: Lsn(8),
                info: 0,
                rmid,
                crc: 0,
            };
            let (mut at_once, mut in_order) = (Changes::default(), Changes::default());
            if is_noted_at_once(&mut at_once, &header, &body) {
                let read = note_in_order(&mut in_order, (Lsn(64), &header), 15, &body);
                prop_assert_eq!(read, ReferencesRead::All);
                prop_assert_eq!(at_once, in_order);
            } else {
                prop_assert_eq!(at_once, Changes::default());
            }
        }
    }
}
