//! The records a recovery can end at: the ends of transactions and the restore points, with what
//! they say of themselves. Never decodes anything else of them. Invariant: a time or a name comes
//! from the record's own bytes.
//!
//! Behind the record header stand blocks, each with an id of its own, and the main data, of which
//! a commit's first eight bytes are its time (`XLogRecordDataHeaderShort` in
//! `src/include/access/xlogrecord.h`, `xl_xact_commit` in `src/include/access/xact.h`).

use walmgr_protocol::names::Lsn;

use super::record::{RECORD_HEADER_BYTES, RecordHeader, RecordInfo};

/// This many bytes of a commit record are enough to tell its time.
pub(crate) const TIME_BYTES_MAX: usize = RECORD_HEADER_BYTES + 3 + 5 + 5 + 8;

/// This many bytes of the record of a restore point are enough to tell its name.
pub(crate) const RESTORE_POINT_BYTES_MAX: usize = TIME_BYTES_MAX + NAME_BYTES;

const RM_XACT: u8 = 1;
const XACT_OPERATION_MASK: u8 = 0x70;
const XACT_COMMIT: u8 = 0x00;
const XACT_ABORT: u8 = 0x20;
const XACT_COMMIT_PREPARED: u8 = 0x30;
const XACT_ABORT_PREPARED: u8 = 0x40;

/// `XLOG_RESTORE_POINT`; its record is a time and a name (`xl_restore_point`,
/// `src/include/access/xlog_internal.h`).
const XLOG_RESTORE_POINT: u8 = 0x70;

/// `MAXFNAMELEN`.
const NAME_BYTES: usize = 64;

const BLOCK_ID_DATA_SHORT: u8 = 255;
const BLOCK_ID_DATA_LONG: u8 = 254;
const BLOCK_ID_ORIGIN: u8 = 253;
const BLOCK_ID_TOPLEVEL_XID: u8 = 252;

/// Seconds from 1970 to 2000, where PostgreSQL's clock begins.
const EPOCH_SECONDS: i64 = 946_684_800;

/// A commit, and when it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CommitAt {
    /// Where its record begins.
    pub lsn: Lsn,
    /// Microseconds since 1970, by the master's clock.
    pub time_us: i64,
}

/// The commits of a stretch of WAL: the first and the last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CommitSpan {
    /// The first whose record is whole.
    pub first: Option<CommitAt>,
    /// The last whose record is whole.
    pub last: Option<CommitAt>,
    /// Where one begins whose record runs on behind the stretch.
    pub open: Option<Lsn>,
}

impl CommitSpan {
    /// Adds one behind the others.
    pub(super) fn add(&mut self, commit: CommitAt) {
        self.first = self.first.or(Some(commit));
        self.last = Some(commit);
    }
}

/// Whether a record commits a transaction.
pub(crate) const fn is_commit(record: &RecordInfo) -> bool {
    commits(record.rmid, record.info)
}

/// Whether a record that begins with this header does.
pub(super) const fn begins_commit(header: &RecordHeader) -> bool {
    commits(header.rmid, header.info)
}

const fn commits(rmid: u8, info: u8) -> bool {
    let operation = info & XACT_OPERATION_MASK;
    rmid == RM_XACT && (operation == XACT_COMMIT || operation == XACT_COMMIT_PREPARED)
}

/// Whether a record ends a transaction, whose number is in its header unless it was prepared.
pub(crate) const fn is_transaction_end(record: &RecordInfo) -> bool {
    let operation = record.info & XACT_OPERATION_MASK;
    let aborts = operation == XACT_ABORT || operation == XACT_ABORT_PREPARED;
    is_commit(record) || (record.rmid == RM_XACT && aborts)
}

/// Whether a record ends a transaction that was prepared for it, by whatever session.
pub(crate) const fn ends_prepared(record: &RecordInfo) -> bool {
    let operation = record.info & XACT_OPERATION_MASK;
    record.rmid == RM_XACT
        && (operation == XACT_COMMIT_PREPARED || operation == XACT_ABORT_PREPARED)
}

/// Whether a record is a restore point.
pub(crate) const fn is_restore_point(record: &RecordInfo) -> bool {
    record.is_xlog(XLOG_RESTORE_POINT)
}

/// A restore point's name, from the record's first [`RESTORE_POINT_BYTES_MAX`] bytes, page headers
/// taken out.
pub(crate) fn restore_point_name(record: &[u8]) -> Option<&[u8]> {
    let name = main_data(record)?.get(8..)?;
    let end = name.iter().position(|byte| *byte == 0)?;
    Some(&name[..end])
}

/// When a transaction ended, in microseconds since 1970, from the record's first
/// [`TIME_BYTES_MAX`] bytes, page headers taken out.
pub(crate) fn commit_time_us(record: &[u8]) -> Option<i64> {
    time_at(main_data(record)?)
}

/// A record's main data, if it has no blocks; `record` may be its first bytes only.
pub(super) fn main_data(record: &[u8]) -> Option<&[u8]> {
    let mut rest = record.get(RECORD_HEADER_BYTES..)?;
    loop {
        let (id, behind) = rest.split_first()?;
        rest = match *id {
            BLOCK_ID_ORIGIN => behind.get(2..)?,
            BLOCK_ID_TOPLEVEL_XID => behind.get(4..)?,
            BLOCK_ID_DATA_SHORT => return behind.get(1..),
            BLOCK_ID_DATA_LONG => return behind.get(4..),
            _ => return None,
        };
    }
}

fn time_at(data: &[u8]) -> Option<i64> {
    let since_2000 = i64::from_le_bytes(*data.first_chunk()?);
    since_2000.checked_add(EPOCH_SECONDS * 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restore_point_has_a_name() {
        let data = [&[255, 72][..], &[0; 8], b"before\0\0\0rest"].concat();
        let record = [&[0; RECORD_HEADER_BYTES][..], &data].concat();
        assert_eq!(restore_point_name(&record), Some(&b"before"[..]));
        assert_eq!(
            restore_point_name(&record[..RECORD_HEADER_BYTES + 12]),
            None
        );
    }

    #[test]
    fn the_time_is_found_behind_whatever_comes_first() {
        let time = 1_000_000_i64.to_le_bytes();
        for before in [
            vec![255, 8],
            vec![254, 8, 0, 0, 0],
            vec![253, 1, 2, 255, 20],
            vec![253, 1, 2, 252, 1, 2, 3, 4, 254, 8, 0, 0, 0],
        ] {
            let record = [&[0; RECORD_HEADER_BYTES][..], &before, &time].concat();
            assert!(record.len() <= TIME_BYTES_MAX);
            assert_eq!(commit_time_us(&record), Some(946_684_801_000_000));
            assert_eq!(commit_time_us(&record[..record.len() - 1]), None);
        }
        assert_eq!(commit_time_us(&[0; 60]), None, "a block of a table");
    }
}
