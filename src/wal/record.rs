//! The header of a WAL record, and the few records that change how WAL is read.
//! Never decodes what a record says about tables. Invariant: plain values, no checks hidden here.
//!
//! Layout (`XLogRecord`, `src/include/access/xlogrecord.h`), little-endian:
//!
//! ```text
//!  0  u32 xl_tot_len   whole record with this header, never split over two pages
//!  4  u32 xl_xid
//!  8  u64 xl_prev      LSN of the record before
//! 16  u8  xl_info
//! 17  u8  xl_rmid
//! 18  u16 padding
//! 20  u32 xl_crc       CRC-32C of what follows the header, then of bytes 0 to 19
//! ```

use walmgr_protocol::names::{Lsn, WalSegmentSize};

use super::page::{PAGE_BYTES, header_bytes};

/// `SizeOfXLogRecord`.
pub(crate) const RECORD_HEADER_BYTES: usize = 24;

/// How many bytes of the header the checksum covers.
pub(crate) const CHECKED_HEADER_BYTES: usize = RECORD_HEADER_BYTES - 4;

/// Records begin at multiples of this (`MAXALIGN`).
pub(crate) const ALIGNMENT: u64 = 8;

/// `XLogRecordMaxSize`, the longest record PostgreSQL 16 and later write.
pub(crate) const RECORD_BYTES_MAX: u32 = 1020 << 20;

/// `MaxAllocSize`, the longest record older versions can read back. They write without a limit
/// of their own, so a record of theirs above 1020 MiB is rare but right.
pub(crate) const RECORD_BYTES_MAX_BEFORE_16: u32 = (1 << 30) - 1;

/// `RM_XLOG_ID`: the resource manager of the records below.
pub const RM_XLOG: u8 = 0;

/// `XLOG_CHECKPOINT_SHUTDOWN`: the last record of a clean stop.
pub const XLOG_CHECKPOINT_SHUTDOWN: u8 = 0x00;
/// `XLOG_NOOP`: a record without meaning.
pub const XLOG_NOOP: u8 = 0x20;
/// `XLOG_SWITCH`: the rest of the segment means nothing.
pub(crate) const XLOG_SWITCH: u8 = 0x40;
/// `XLOG_FPW_CHANGE`: `full_page_writes` is another from here on.
pub(crate) const XLOG_FPW_CHANGE: u8 = 0x80;
/// `XLOG_OVERWRITE_CONTRECORD`: the record before this page lost its rest in a crash.
pub const XLOG_OVERWRITE_CONTRECORD: u8 = 0xD0;

/// The bits of `xl_info` that belong to the resource manager (`~XLR_INFO_MASK`).
const RMGR_INFO_MASK: u8 = 0xF0;

/// The longest record a server of this major version leaves behind.
pub(crate) const fn record_bytes_max(major: Option<u8>) -> u32 {
    match major {
        Some(major) if major >= 16 => RECORD_BYTES_MAX,
        _ => RECORD_BYTES_MAX_BEFORE_16,
    }
}

/// The fields of a record header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    /// `xl_tot_len`
    pub total_bytes: u32,
    /// `xl_xid`
    pub xid: u32,
    /// `xl_prev`
    pub prev: Lsn,
    /// `xl_info`
    pub info: u8,
    /// `xl_rmid`
    pub rmid: u8,
    /// `xl_crc`
    pub crc: u32,
}

impl RecordHeader {
    /// Reads a header.
    pub(crate) fn decode(bytes: &[u8; RECORD_HEADER_BYTES]) -> Self {
        let [t0, t1, t2, t3, x0, x1, x2, x3, rest @ ..] = *bytes;
        let [
            p0,
            p1,
            p2,
            p3,
            p4,
            p5,
            p6,
            p7,
            info,
            rmid,
            _,
            _,
            c0,
            c1,
            c2,
            c3,
        ] = rest;
        RecordHeader {
            total_bytes: u32::from_le_bytes([t0, t1, t2, t3]),
            xid: u32::from_le_bytes([x0, x1, x2, x3]),
            prev: Lsn(u64::from_le_bytes([p0, p1, p2, p3, p4, p5, p6, p7])),
            info,
            rmid,
            crc: u32::from_le_bytes([c0, c1, c2, c3]),
        }
    }

    /// Writes a header.
    pub(crate) fn encode(&self) -> [u8; RECORD_HEADER_BYTES] {
        let mut bytes = [0; RECORD_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&self.total_bytes.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.xid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.prev.0.to_le_bytes());
        bytes[16] = self.info;
        bytes[17] = self.rmid;
        bytes[20..24].copy_from_slice(&self.crc.to_le_bytes());
        bytes
    }

    /// Whether this is the record of [`RM_XLOG`] with this `info`.
    pub(crate) const fn is_xlog(&self, info: u8) -> bool {
        self.rmid == RM_XLOG && self.info & RMGR_INFO_MASK == info
    }
}

/// Reads the first bytes of the record at `lsn`, the headers of the pages they lie on left out, and
/// says how many there were. `read_at` may read less than it is asked for; 0 ends it.
pub(crate) fn read_record<E>(
    lsn: Lsn,
    size: WalSegmentSize,
    record: &mut [u8],
    mut read_at: impl FnMut(Lsn, &mut [u8]) -> Result<usize, E>,
) -> Result<usize, E> {
    let (mut position, mut filled) = (lsn.0, 0);
    while filled < record.len() {
        if position.is_multiple_of(PAGE_BYTES) {
            position += header_bytes(Lsn(position), size) as u64;
        }
        let left = PAGE_BYTES - position % PAGE_BYTES;
        let wanted = (record.len() - filled).min(usize::try_from(left).unwrap_or(usize::MAX));
        let read_bytes = read_at(Lsn(position), &mut record[filled..filled + wanted])?;
        if read_bytes == 0 {
            break;
        }
        filled += read_bytes;
        position += read_bytes as u64;
    }
    Ok(filled)
}

/// A record that the scanner has seen whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordInfo {
    /// Where its header begins; never within a page header.
    pub lsn: Lsn,
    /// Where the next record may begin: aligned, at the segment's end behind a switch, and on a
    /// page's boundary (not behind its header) when the record fills the page before.
    pub end: Lsn,
    /// `xl_prev`
    pub prev: Lsn,
    /// `xl_xid`
    pub xid: u32,
    /// `xl_tot_len`
    pub tot_len: u32,
    /// `xl_rmid`
    pub rmid: u8,
    /// `xl_info`
    pub info: u8,
}

impl RecordInfo {
    /// Whether this is the record of [`RM_XLOG`] with this `info`.
    pub const fn is_xlog(&self, info: u8) -> bool {
        self.rmid == RM_XLOG && self.info & RMGR_INFO_MASK == info
    }

    /// Whether the rest of the segment means nothing.
    pub const fn is_switch(&self) -> bool {
        self.is_xlog(XLOG_SWITCH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_encoding() {
        let header = RecordHeader {
            total_bytes: 0x0102_0304,
            xid: 0x0506_0708,
            prev: Lsn(0x1122_3344_5566_7788),
            info: 0x40,
            rmid: RM_XLOG,
            crc: 0x99AA_BBCC,
        };
        assert_eq!(RecordHeader::decode(&header.encode()), header);
        assert_eq!(&header.encode()[..4], &[4, 3, 2, 1]);
        assert!(header.is_xlog(XLOG_SWITCH));
    }

    #[test]
    fn only_versions_from_16_on_have_the_narrow_bound() {
        assert_eq!(record_bytes_max(Some(16)), 1020 << 20);
        assert_eq!(record_bytes_max(Some(15)), 0x3FFF_FFFF);
        assert_eq!(record_bytes_max(None), 0x3FFF_FFFF);
    }
}
