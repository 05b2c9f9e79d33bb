//! The records that end a transaction for good, and when they say it was.
//! Never decodes anything else of them. Invariant: a time comes from the record's own bytes.
//!
//! Behind the record header stand blocks, each with an id of its own, and the main data, of which
//! a commit's first eight bytes are its time (`XLogRecordDataHeaderShort` in
//! `src/include/access/xlogrecord.h`, `xl_xact_commit` in `src/include/access/xact.h`).

use super::record::{RECORD_HEADER_BYTES, RecordInfo};

/// This many bytes of a commit record are enough to tell its time.
pub const TIME_BYTES_MAX: usize = RECORD_HEADER_BYTES + 3 + 5 + 5 + 8;

const RM_XACT: u8 = 1;
const XACT_OPERATION_MASK: u8 = 0x70;
const XACT_COMMIT: u8 = 0x00;
const XACT_COMMIT_PREPARED: u8 = 0x30;

const BLOCK_ID_DATA_SHORT: u8 = 255;
const BLOCK_ID_DATA_LONG: u8 = 254;
const BLOCK_ID_ORIGIN: u8 = 253;
const BLOCK_ID_TOPLEVEL_XID: u8 = 252;

/// Seconds from 1970 to 2000, where PostgreSQL's clock begins.
const EPOCH_SECONDS: i64 = 946_684_800;

/// Whether a record commits a transaction.
pub const fn is_commit(record: &RecordInfo) -> bool {
    let operation = record.info & XACT_OPERATION_MASK;
    record.rmid == RM_XACT && (operation == XACT_COMMIT || operation == XACT_COMMIT_PREPARED)
}

/// When a commit happened, in microseconds since 1970, from the record's first
/// [`TIME_BYTES_MAX`] bytes, page headers taken out.
pub fn commit_time_us(record: &[u8]) -> Option<i64> {
    let mut rest = record.get(RECORD_HEADER_BYTES..)?;
    loop {
        let (id, behind) = rest.split_first()?;
        rest = match *id {
            BLOCK_ID_ORIGIN => behind.get(2..)?,
            BLOCK_ID_TOPLEVEL_XID => behind.get(4..)?,
            BLOCK_ID_DATA_SHORT => return time_at(behind.get(1..)?),
            BLOCK_ID_DATA_LONG => return time_at(behind.get(4..)?),
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
