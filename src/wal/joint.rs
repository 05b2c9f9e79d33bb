//! What joins a segment to the one before it: the record that crosses the boundary, and the link back.
//! Never reads a file and never holds a record. Invariant: two segments are joined only if a reader that
//! comes from the first walks into the second without a fault.
//!
//! A segment that is looked at alone cannot be checked at its two ends: the record that runs out of it has
//! no end there, and the rest of the one that runs into it has no checksum. Both are checked by a scanner
//! that comes from the segment before, no further than to the first record that begins behind the boundary.

use walmgr_protocol::names::{Lsn, SegmentName, WalSegmentSize};

use super::page::PAGE_BYTES;
use super::scan::{Scanner, Step, Why};

/// How a segment ends, as far as the next one has to go on with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentEnd {
    /// With a record's end, or with a switch.
    Closed {
        /// Where that record begins.
        last: Lsn,
    },
    /// A record that begins in it runs on.
    Open {
        /// Where that record begins.
        begins: Lsn,
        /// The record before it, if the segment shows it.
        previous: Option<Lsn>,
    },
    /// No record begins in it: one from before fills it.
    Inside,
}

impl SegmentEnd {
    /// The end that a scanner has come to, which began at the segment's beginning or before it.
    pub fn of(scanner: &Scanner) -> SegmentEnd {
        if let Some((begins, previous)) = scanner.open_record() {
            return SegmentEnd::Open { begins, previous };
        }
        match scanner.last_record() {
            Some(last) if !scanner.in_record() => SegmentEnd::Closed { last },
            _ => SegmentEnd::Inside,
        }
    }
}

/// Why a segment is not the one that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unjoined {
    /// The record or the page at fault.
    #[error("it does not go on with what the segment before left at {lsn}: {why}")]
    Invalid {
        /// Where the record or the page at fault begins.
        lsn: Lsn,
        /// What is wrong with it.
        why: Why,
    },
    /// It holds nothing where it should go on.
    #[error(
        "it does not go on with what the segment before left at {0}: nothing was written there"
    )]
    Blank(Lsn),
}

/// The check: feed it the second segment from its first byte on.
#[derive(Debug, Clone)]
pub struct Joint {
    scanner: Scanner,
    boundary: Lsn,
    decided: Option<Result<(), Unjoined>>,
}

impl Joint {
    /// A check of `segment` by a scanner that stands at its beginning and comes from what is before.
    pub fn new(before: Scanner, segment: SegmentName) -> Joint {
        Joint {
            boundary: before.position(),
            scanner: before.up_to_timeline(segment.timeline()),
            decided: None,
        }
    }

    /// Looks at the next bytes; `false` when no more are wanted.
    pub fn update(&mut self, bytes: &[u8]) -> bool {
        let mut bytes = bytes;
        while self.decided.is_none() && !bytes.is_empty() {
            // Not beyond the page: what follows the first header behind the boundary is the check's of
            // the segment alone.
            let left = PAGE_BYTES - self.scanner.position().0 % PAGE_BYTES;
            let counted = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
            let (mut page, rest) = bytes.split_at(counted);
            bytes = rest;
            self.decided = loop {
                match self.scanner.advance(&mut page) {
                    Step::Record(record) if record.lsn < self.boundary => {}
                    Step::Record(_) => break Some(Ok(())),
                    Step::NeedMore => {
                        break self
                            .scanner
                            .is_in_body_from(self.boundary)
                            .then_some(Ok(()));
                    }
                    Step::EndOfWal(_) => break Some(Err(Unjoined::Blank(self.boundary))),
                    Step::Invalid { lsn, why } => break Some(Err(Unjoined::Invalid { lsn, why })),
                }
            };
        }
        self.decided.is_none()
    }

    /// Decides, when the segment has been looked at or no more of it is wanted. The scanner is returned if
    /// one record fills the segment: it goes on into the next.
    ///
    /// # Errors
    /// Why the segment is not the one that follows.
    pub fn finish(self, size: WalSegmentSize) -> Result<Option<Scanner>, Unjoined> {
        match self.decided {
            Some(decided) => decided.map(|()| None),
            None if self.scanner.position().0 == self.boundary.0.wrapping_add(size.bytes()) => {
                Ok(Some(self.scanner))
            }
            None => Err(Unjoined::Blank(self.scanner.position())),
        }
    }
}
