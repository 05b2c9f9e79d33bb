//! Writes small, valid WAL, so that tests, fuzzers and benches need no server to have some.
//! Never used to make WAL for PostgreSQL to replay: the records mean nothing.
//! Invariant: what it wrote, PostgreSQL's own reader would walk from end to end.

#![allow(
    clippy::cast_possible_truncation,
    reason = "no length here exceeds a segment, and a segment fits 32 bits"
)]

use walmgr_protocol::names::{Lsn, SegmentName, SystemId, TimelineId, WalSegmentSize};

use super::page::{
    FIRST_IS_CONTRECORD, FIRST_IS_OVERWRITE_CONTRECORD, LONG_HEADER, PAGE_BYTES, PageHeader,
    header_bytes, magic_of,
};
use super::record::{
    ALIGNMENT, CHECKED_HEADER_BYTES, RECORD_HEADER_BYTES, RM_XLOG, RecordHeader, RecordInfo,
    XLOG_NOOP, XLOG_OVERWRITE_CONTRECORD, XLOG_SWITCH,
};

/// Appends records and lays them out over pages and segments.
#[derive(Debug, Clone)]
pub struct WalWriter {
    start: Lsn,
    size: WalSegmentSize,
    timeline: TimelineId,
    system_id: SystemId,
    magic: u16,
    previous: Lsn,
    bytes: Vec<u8>,
}

impl WalWriter {
    /// A writer that begins with the first byte of `segment` and writes as this major version
    /// (15 if it is none of 13 to 18). A name that no segment of this size has means the first.
    pub fn new(segment: SegmentName, size: WalSegmentSize, system_id: SystemId, major: u8) -> Self {
        let start = segment.start(size).unwrap_or_default();
        WalWriter {
            start,
            size,
            timeline: segment.timeline(),
            system_id,
            magic: magic_of(major).unwrap_or(0xD110),
            previous: Lsn(start.0.saturating_sub(64)),
            bytes: Vec::new(),
        }
    }

    /// Makes the first record follow the one that begins at `previous`, in the segment before.
    #[must_use]
    pub fn following(mut self, previous: Lsn) -> Self {
        self.previous = previous;
        self
    }

    /// Everything written so far, from the beginning of the first segment.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The LSN of the next byte.
    pub fn position(&self) -> Lsn {
        Lsn(self.start.0 + self.bytes.len() as u64)
    }

    /// Pages from here on are of this timeline.
    pub fn set_timeline(&mut self, timeline: TimelineId) {
        self.timeline = timeline;
    }

    /// Begins with the rest of a record whose beginning is in the segment before; only before
    /// anything else was written.
    pub fn tail(&mut self, tail: &[u8]) {
        self.put(tail, FIRST_IS_CONTRECORD);
        self.align();
    }

    /// Appends one record with this body.
    pub fn record(&mut self, rmid: u8, info: u8, body: &[u8]) -> RecordInfo {
        self.page_header_if_due(0, 0);
        let lsn = self.position();
        let header = self.header_for(rmid, info, body);
        let mut record = header.encode().to_vec();
        record.extend_from_slice(body);
        self.put(&record, 0);
        self.align();
        if header.is_xlog(XLOG_SWITCH) {
            self.zeros_to_segment_end();
        }
        self.previous = lsn;
        RecordInfo {
            lsn,
            end: self.position(),
            prev: header.prev,
            xid: header.xid,
            tot_len: header.total_bytes,
            rmid,
            info,
        }
    }

    /// Appends a switch: the rest of the segment is zeros.
    pub fn switch(&mut self) -> RecordInfo {
        self.record(RM_XLOG, XLOG_SWITCH, &[])
    }

    /// Appends a record that fills the segment to its last byte, with at least this body.
    /// When that is more than is left, it reaches into the next segment.
    pub fn fill_segment(&mut self) -> RecordInfo {
        self.page_header_if_due(0, 0);
        let body_bytes = self
            .room_in_segment()
            .saturating_sub(RECORD_HEADER_BYTES as u64);
        self.record(RM_XLOG, XLOG_NOOP, &vec![0x5A; body_bytes as usize])
    }

    /// Appends the beginning of a record that a crash cut at the end of this page, then what
    /// the server writes over its rest.
    pub fn overwritten_record(&mut self, body_bytes: usize) -> RecordInfo {
        self.page_header_if_due(0, 0);
        let header = self.header_for(RM_XLOG, XLOG_NOOP, &vec![1; body_bytes]);
        let mut record = header.encode().to_vec();
        record.resize(RECORD_HEADER_BYTES + body_bytes, 1);
        let on_page = PAGE_BYTES - self.position().0 % PAGE_BYTES;
        record.truncate(on_page as usize);
        self.put(&record, 0);
        self.zeros((PAGE_BYTES - self.position().0 % PAGE_BYTES) % PAGE_BYTES);
        self.page_header_if_due(FIRST_IS_OVERWRITE_CONTRECORD, 0);
        self.record(RM_XLOG, XLOG_OVERWRITE_CONTRECORD, &[7; 18])
    }

    /// Appends zeros up to the end of the segment.
    pub fn zeros_to_segment_end(&mut self) {
        let segment_bytes = self.size.bytes();
        self.zeros((segment_bytes - self.position().0 % segment_bytes) % segment_bytes);
    }

    fn header_for(&self, rmid: u8, info: u8, body: &[u8]) -> RecordHeader {
        let mut header = RecordHeader {
            total_bytes: u32::try_from(RECORD_HEADER_BYTES + body.len()).unwrap_or(u32::MAX),
            xid: 700,
            prev: self.previous,
            info,
            rmid,
            crc: 0,
        };
        let checked = &header.encode()[..CHECKED_HEADER_BYTES];
        header.crc = crc32c::crc32c_append(crc32c::crc32c(body), checked);
        header
    }

    fn put(&mut self, record: &[u8], first_page_flags: u16) {
        let mut rest = record;
        let mut flags = first_page_flags;
        while !rest.is_empty() {
            self.page_header_if_due(flags, rest.len());
            flags = FIRST_IS_CONTRECORD;
            let on_page = (PAGE_BYTES - self.position().0 % PAGE_BYTES) as usize;
            let (piece, later) = rest.split_at(on_page.min(rest.len()));
            self.bytes.extend_from_slice(piece);
            rest = later;
        }
    }

    fn page_header_if_due(&mut self, flags: u16, remaining_bytes: usize) {
        let address = self.position();
        if !address.0.is_multiple_of(PAGE_BYTES) {
            return;
        }
        let length = header_bytes(address, self.size);
        let long = address.0.is_multiple_of(self.size.bytes());
        let continues = flags & FIRST_IS_CONTRECORD != 0;
        let header = PageHeader {
            magic: self.magic,
            flags: flags | if long { LONG_HEADER } else { 0 },
            timeline: self.timeline.number(),
            address,
            remaining_bytes: match u32::try_from(remaining_bytes) {
                Ok(bytes) if continues => bytes,
                _ => 0,
            },
            system_id: self.system_id,
            segment_bytes: self.size.bytes_u32(),
            page_bytes: 8192,
        };
        self.bytes.extend_from_slice(&header.encode()[..length]);
    }

    /// Bytes for records between here and the segment's end, page headers left out.
    fn room_in_segment(&self) -> u64 {
        let segment_bytes = self.size.bytes();
        let left = segment_bytes - self.position().0 % segment_bytes;
        let later_pages = left / PAGE_BYTES - u64::from(left.is_multiple_of(PAGE_BYTES));
        left - later_pages * header_bytes(Lsn(PAGE_BYTES), self.size) as u64
    }

    fn align(&mut self) {
        self.zeros((ALIGNMENT - self.position().0 % ALIGNMENT) % ALIGNMENT);
    }

    fn zeros(&mut self, count: u64) {
        self.bytes.resize(self.bytes.len() + count as usize, 0);
    }
}
