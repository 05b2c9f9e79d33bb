//! The records of one partial segment, from its beginning to their end.
//! Never reads a file: it is fed the bytes. Invariant: an end is behind a whole record, or at the segment's own end
//! within one that goes on in the next.

use walmgr_protocol::names::{Lsn, SegmentName};

use crate::store::binding::Binding;
use crate::store::error::StoreError;
use crate::wal::scan::{ScanStep, Scanner};

/// Where the records of a partial segment end.
pub(super) struct RecordsEnd {
    /// Bytes from the segment's beginning that are records, or the beginning of one that
    /// continues in the next segment.
    pub(super) held_bytes: u64,
    /// The end of the last whole record.
    pub(super) lsn: Lsn,
    /// A scanner that has seen all of them.
    pub(super) scanner: Scanner,
    /// Whether the last record is a switch: the rest of the segment means nothing.
    pub(super) switched: Option<Lsn>,
}

/// Gives the scanner that stands at a segment's beginning and has walked the finished segment before; `None` if the
/// segment before is not there.
pub(super) type Before<'a> = &'a dyn Fn(SegmentName) -> Result<Option<Scanner>, StoreError>;

/// A scanner for a segment's beginning.
pub(super) fn scanner_at(segment: SegmentName, lsn: Lsn, binding: &Binding) -> Scanner {
    Scanner::new(lsn, binding.segment_size)
        .of_cluster(binding.system_id)
        .of_major(binding.postgres_major)
        .up_to_timeline(segment.timeline())
}

/// The beginning of a segment; a name that no segment of this size has means the first.
pub(super) fn start_of(segment: SegmentName, binding: &Binding) -> Lsn {
    segment.start(binding.segment_size).unwrap_or_default()
}

/// Walks the records of a segment to their end.
pub(super) struct RecordSearch<'a> {
    segment: SegmentName,
    binding: &'a Binding,
    start: Lsn,
    /// As it was at the segment's beginning.
    first: Scanner,
    scanner: Scanner,
    last: Option<RecordsEnd>,
}

impl<'a> RecordSearch<'a> {
    pub(super) fn new(segment: SegmentName, binding: &'a Binding, scanner: Scanner) -> Self {
        RecordSearch {
            segment,
            binding,
            start: start_of(segment, binding),
            first: scanner.clone(),
            scanner,
            last: None,
        }
    }

    pub(super) const fn segment(&self) -> SegmentName {
        self.segment
    }

    /// Whether more bytes are wanted.
    pub(super) fn feed(&mut self, piece: &[u8]) -> bool {
        let mut rest = piece;
        loop {
            match self.scanner.advance(&mut rest) {
                ScanStep::NeedMore => return true,
                ScanStep::EndOfWal(_) | ScanStep::Invalid { .. } => return false,
                ScanStep::Record(record) => {
                    let switched = record.is_switch();
                    let end = match switched {
                        true => aligned(self.scanner.position()),
                        false => record.end,
                    };
                    let held_bytes = end.0.saturating_sub(self.start.0);
                    self.last = Some(RecordsEnd {
                        held_bytes,
                        lsn: record.end,
                        scanner: self.scanner.clone(),
                        switched: switched.then_some(record.lsn),
                    });
                    if switched {
                        return false;
                    }
                }
            }
        }
    }

    pub(super) fn finish(self) -> RecordsEnd {
        let size = self.binding.segment_size.bytes();
        let at_the_end = self.scanner.position().0 == self.start.0.wrapping_add(size);
        if at_the_end && self.scanner.in_record() {
            return RecordsEnd {
                held_bytes: size,
                lsn: self.scanner.valid_end(),
                scanner: self.scanner,
                switched: None,
            };
        }
        if let Some(mut last) = self.last {
            pad(&mut last.scanner, self.start, last.held_bytes);
            return last;
        }
        // No record is whole, but the rest of one that began in the segment before may be.
        let tail_end = self.scanner.valid_end();
        if tail_end > self.start {
            return RecordsEnd {
                held_bytes: tail_end.0 - self.start.0,
                lsn: tail_end,
                scanner: scanner_at(self.segment, tail_end, self.binding),
                switched: None,
            };
        }
        RecordsEnd {
            held_bytes: 0,
            lsn: tail_end,
            scanner: self.first,
            switched: None,
        }
    }
}

/// A scanner at the beginning of the next segment, after one whose records end at `end`; `None` if replay does not get
/// there: the records neither fill the segment nor end with a switch.
pub(super) fn out_of(end: RecordsEnd, segment: SegmentName, binding: &Binding) -> Option<Scanner> {
    let size = binding.segment_size.bytes();
    let behind = Lsn(start_of(segment, binding).0.wrapping_add(size));
    match end.switched {
        Some(switch) => Some(scanner_at(segment, behind, binding).following(switch)),
        None => Some(end.scanner).filter(|scanner| scanner.position() == behind),
    }
}

/// Brings a scanner that stands behind a record to where the next one begins.
fn pad(scanner: &mut Scanner, start: Lsn, held_bytes: u64) {
    let missing = (start.0.wrapping_add(held_bytes)).wrapping_sub(scanner.position().0);
    if let Ok(missing) = usize::try_from(missing) {
        let zeros = [0_u8; 8];
        let mut padding = &zeros[..missing.min(zeros.len())];
        // Padding holds nothing that could be said.
        let _ = scanner.advance(&mut padding);
    }
}

fn aligned(lsn: Lsn) -> Lsn {
    Lsn(lsn.0.next_multiple_of(crate::wal::record::ALIGNMENT))
}
