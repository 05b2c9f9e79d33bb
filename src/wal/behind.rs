//! Whether an end of WAL is damage before more WAL: decided by what lies behind it.
//! Never reads a file and never holds more than a page. Invariant: zeros, and WAL from before the
//! segment was recycled, are never taken for WAL that follows.
//!
//! Behind a true end come zeros, older WAL, or the beginning of a record that was not written to
//! its end. A whole record at its own address with its own checksum is none of these: it was written
//! behind what cannot be read. It is looked for where a page begins and, as damage may lie in front
//! of it on its page, at every place of a page where a record can begin.

use walmgr_protocol::names::Lsn;

use super::page::PAGE_BYTES;
use super::record::{ALIGNMENT, RECORD_HEADER_BYTES, RecordHeader};
use super::scan::{ScanStep, Scanner};

/// One look: feed it every byte from the end of WAL on.
pub(crate) struct Behind<F> {
    /// Makes a scanner for this cluster that begins at an LSN.
    scanner_at: F,
    /// Where the first record begins that is not whole.
    end: Lsn,
    position: Lsn,
    page: Vec<u8>,
    /// In a record that goes on in the next page.
    open: Option<Scanner>,
    found: Option<Lsn>,
}

impl<F: Fn(Lsn) -> Scanner> Behind<F> {
    /// A look behind `end`, with scanners for the cluster and timeline of the segment.
    pub(crate) fn new(end: Lsn, scanner_at: F) -> Self {
        Behind {
            scanner_at,
            end,
            position: end,
            page: Vec::new(),
            open: None,
            found: None,
        }
    }

    /// Looks at the next bytes; `false` when no more are needed.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) -> bool {
        while self.found.is_none() && !bytes.is_empty() {
            let page_start = self.position.0 + self.page.len() as u64;
            let wanted = usize::try_from(PAGE_BYTES - page_start % PAGE_BYTES).unwrap_or(0);
            let (piece, rest) = bytes.split_at(wanted.min(bytes.len()));
            self.page.extend_from_slice(piece);
            bytes = rest;
            if piece.len() == wanted {
                self.look_at_page();
            }
        }
        self.found.is_none()
    }

    /// Where a whole record ends behind the end of WAL, if there is one.
    pub(crate) fn finish(mut self) -> Option<Lsn> {
        if self.found.is_none() {
            self.look_at_page();
        }
        self.found
    }

    fn look_at_page(&mut self) {
        let page = std::mem::take(&mut self.page);
        let at = self.position;
        self.position = Lsn(at.0.wrapping_add(page.len() as u64));
        if page.iter().all(|byte| *byte == 0) {
            self.open = None;
            return;
        }
        let whole = at.0.is_multiple_of(PAGE_BYTES);
        let begun = (self.open.take()).or_else(|| whole.then(|| (self.scanner_at)(at)));
        match begun.map(|scanner| walk(scanner, &page)) {
            Some(BehindWalk::Record(end)) => self.found = Some(end),
            Some(BehindWalk::Open(scanner)) => self.open = Some(*scanner),
            Some(BehindWalk::Stopped) | None => self.found = self.within(at, &page),
        }
        self.page = page;
        self.page.clear();
    }

    /// A whole record anywhere in these bytes, which end with their page.
    fn within(&self, at: Lsn, page: &[u8]) -> Option<Lsn> {
        let aligned = |place: &usize| at.0.wrapping_add(*place as u64).is_multiple_of(ALIGNMENT);
        let places = (0..page.len()).filter(aligned);
        places
            .filter_map(|place| self.record(at, page, place))
            .next()
    }

    fn record(&self, at: Lsn, page: &[u8], place: usize) -> Option<Lsn> {
        let bytes = page.get(place..)?;
        let header = RecordHeader::decode(bytes.first_chunk::<RECORD_HEADER_BYTES>()?);
        let lsn = Lsn(at.0.wrapping_add(place as u64));
        let fits = usize::try_from(header.total_bytes)
            .is_ok_and(|total_bytes| (RECORD_HEADER_BYTES..=bytes.len()).contains(&total_bytes));
        // What it follows was not whole either, or it would be older WAL.
        if !fits || header.prev < self.end || header.prev >= lsn {
            return None;
        }
        match walk((self.scanner_at)(lsn), bytes) {
            BehindWalk::Record(end) => Some(end),
            BehindWalk::Open(_) | BehindWalk::Stopped => None,
        }
    }
}

enum BehindWalk {
    /// A record is whole, and ends there.
    Record(Lsn),
    /// All bytes belong to a record that goes on.
    Open(Box<Scanner>),
    Stopped,
}

fn walk(mut scanner: Scanner, mut bytes: &[u8]) -> BehindWalk {
    match scanner.advance(&mut bytes) {
        ScanStep::Record(record) => BehindWalk::Record(record.end),
        ScanStep::NeedMore => BehindWalk::Open(Box::new(scanner)),
        ScanStep::EndOfWal(_) | ScanStep::Invalid { .. } => BehindWalk::Stopped,
    }
}

#[cfg(test)]
mod tests {
    use walmgr_protocol::names::{SegmentName, SystemId, TimelineId, WalSegmentSize};

    use super::*;
    use crate::wal::writer::WalWriter;

    const SIZE: WalSegmentSize = WalSegmentSize::new(1 << 20).unwrap();
    const SYSTEM: SystemId = SystemId(42);

    fn scanner_at(lsn: Lsn) -> Scanner {
        Scanner::new(lsn, SIZE).of_cluster(SYSTEM).of_major(15)
    }

    /// Segment `number` with records of these lengths, and where each begins and ends.
    fn wal(number: u64, bodies: &[usize]) -> (Vec<u8>, Vec<(u64, u64)>) {
        let name = SegmentName::from_number(TimelineId::FIRST, number, SIZE);
        let mut writer = WalWriter::new(name, SIZE, SYSTEM, 15);
        let start = number * SIZE.bytes();
        let places = bodies.iter().map(|body| {
            let record = writer.record(10, 0, &vec![0x5A; *body]);
            (record.lsn.0 - start, record.end.0 - start)
        });
        let places = places.collect();
        let mut bytes = writer.bytes().to_vec();
        bytes.resize(1 << 20, 0);
        (bytes, places)
    }

    fn end_of(bytes: &[u8]) -> u64 {
        let start = 3 * SIZE.bytes();
        let (mut scanner, mut rest) = (scanner_at(Lsn(start)), bytes);
        while let ScanStep::Record(_) = scanner.advance(&mut rest) {}
        scanner.valid_end().0 - start
    }

    /// What a look in pieces of this length finds behind where the records end.
    fn look(bytes: &[u8], piece_bytes: usize) -> Option<u64> {
        let (start, end) = (3 * SIZE.bytes(), end_of(bytes));
        let mut behind = Behind::new(Lsn(start + end), scanner_at);
        for piece in bytes[usize::try_from(end).unwrap()..].chunks(piece_bytes) {
            if !behind.feed(piece) {
                break;
            }
        }
        behind.finish().map(|end| end.0 - start)
    }

    #[test]
    fn fault_101_zeros_older_wal_and_a_torn_record_are_a_true_end() {
        let (bytes, places) = wal(3, &[100, 9_000, 300, 30_000, 50]);
        let (stale, _) = wal(2, &[100, 700, 9_000, 40, 40, 40, 900, 70_000, 50]);
        for (lsn, end) in &places {
            let (lsn, end) = (
                usize::try_from(*lsn).unwrap(),
                usize::try_from(*end).unwrap(),
            );
            for cut in [lsn, lsn + 5, lsn + 30, end.saturating_sub(9), end] {
                for behind in [&vec![0; bytes.len()], &stale] {
                    let mut file = bytes[..cut].to_vec();
                    file.extend_from_slice(&behind[cut..]);
                    for piece_bytes in [97, 8_192, 1 << 20] {
                        assert_eq!(look(&file, piece_bytes), None, "cut at {cut}");
                    }
                }
            }
        }
    }

    #[test]
    fn fault_101_a_flipped_bit_before_a_whole_record_is_damage() {
        let (bytes, places) = wal(3, &[100, 60, 40, 9_000, 300, 30_000, 50, 50]);
        let last = places[places.len() - 2].1;
        for at in (40..usize::try_from(last).unwrap()).step_by(61) {
            for bit in [0, 5] {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                if end_of(&flipped) == places[places.len() - 1].1 {
                    // Padding means nothing.
                    continue;
                }
                for piece_bytes in [1_000, 8_192, 1 << 20] {
                    let found = look(&flipped, piece_bytes);
                    assert!(found > Some(at as u64), "bit {bit} of byte {at}: {found:?}");
                }
            }
        }
    }

    #[test]
    fn fault_101_a_page_that_is_gone_before_more_wal_is_damage() {
        let (bytes, _) = wal(3, &[100; 900]);
        for page in 1..10 {
            let mut holed = bytes.clone();
            holed[page * 8_192..(page + 1) * 8_192].fill(0);
            assert!(look(&holed, 64 << 10) > Some((page as u64 + 1) * 8_192));
        }
    }
}
