//! What joins a segment to the one before it: the record that crosses the boundary, and the link back.
//! Never reads a file and never holds a record. Invariant: two segments are joined only if a reader that
//! comes from the first walks into the second without a fault.
//!
//! A segment that is looked at alone cannot be checked at its two ends: the record that runs out of it has
//! no end there, and the rest of the one that runs into it has no checksum. Both are checked by a scanner
//! that comes from the segment before, no further than to the first record that begins behind the boundary.

use walmgr_protocol::names::{Lsn, SegmentName, WalSegmentSize};

use super::obstacle::Obstacles;
use super::page::PAGE_BYTES;
use super::scan::{ScanStep, Scanner, Why};

/// How a segment ends, as far as the next one has to go on with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SegmentEnd {
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
    pub(crate) fn of(scanner: &Scanner) -> SegmentEnd {
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
pub(crate) enum Unjoined {
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
pub(crate) struct Joint {
    scanner: Scanner,
    boundary: Lsn,
    decided: Option<Result<(), Unjoined>>,
}

impl Joint {
    /// A check of `segment` by a scanner that stands at its beginning and comes from what is before.
    pub(crate) fn new(before: Scanner, segment: SegmentName) -> Joint {
        Joint {
            boundary: before.position(),
            scanner: before.up_to_timeline(segment.timeline()).forgetting(),
            decided: None,
        }
    }

    /// Looks at the next bytes; `false` when no more are wanted.
    pub(crate) fn update(&mut self, bytes: &[u8]) -> bool {
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
                    ScanStep::Record(record) if record.lsn < self.boundary => {}
                    ScanStep::Record(_) => break Some(Ok(())),
                    ScanStep::NeedMore => {
                        break self
                            .scanner
                            .is_in_body_from(self.boundary)
                            .then_some(Ok(()));
                    }
                    ScanStep::EndOfWal(_) => break Some(Err(Unjoined::Blank(self.boundary))),
                    ScanStep::Invalid { lsn, why } => {
                        break Some(Err(Unjoined::Invalid { lsn, why }));
                    }
                }
            };
        }
        self.decided.is_none()
    }

    /// The obstacle that a record is which crosses the boundary.
    pub(crate) fn crossing(&self) -> Obstacles {
        let mut crossing = Obstacles::default();
        crossing.add_before(self.scanner.obstacles(), self.boundary);
        crossing
    }

    /// Decides, when the segment has been looked at or no more of it is wanted. The scanner is returned if
    /// one record fills the segment: it goes on into the next.
    ///
    /// # Errors
    /// Why the segment is not the one that follows.
    pub(crate) fn finish(self, size: WalSegmentSize) -> Result<Option<Scanner>, Unjoined> {
        match self.decided {
            Some(decided) => decided.map(|()| None),
            None if self.scanner.position().0 == self.boundary.0.wrapping_add(size.bytes()) => {
                Ok(Some(self.scanner))
            }
            None => Err(Unjoined::Blank(self.scanner.position())),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use walmgr_protocol::names::{SystemId, TimelineId, WalFileName};

    use super::*;
    use crate::wal::segment::{ExpectedSegment, SegmentCheck, Verify};
    use crate::wal::writer::WalWriter;

    const MIB: WalSegmentSize = WalSegmentSize::new(1 << 20).expect("a size PostgreSQL has");
    const SIZE: usize = 1 << 20;
    const EXPECTED: ExpectedSegment = ExpectedSegment {
        system_id: SystemId(7),
        segment_size: MIB,
        postgres_major: Some(15),
    };

    fn name(number: u64) -> SegmentName {
        SegmentName::from_number(TimelineId::FIRST, number, MIB)
    }

    /// Two segments with a record across their boundary, and how long that is on either side.
    fn pair(before: usize, behind: usize) -> Vec<u8> {
        let mut writer = WalWriter::new(name(3), MIB, SystemId(7), 15);
        writer.record(10, 0, &[1; 500]);
        let record = SIZE - before - writer.bytes().len();
        // A record of all the pages up to there; their headers are none of its bytes.
        let headers = 24 * ((SIZE - before) / 8192);
        writer.record(10, 0, &vec![2; record - headers - 24]);
        writer.record(10, 0, &vec![3; before + behind - 24]);
        while writer.bytes().len() < 2 * SIZE {
            writer.record(10, 0, &[4; 3_000]);
        }
        writer.bytes()[..2 * SIZE].to_vec()
    }

    fn alone(number: u64, bytes: &[u8]) -> Option<Scanner> {
        let name = WalFileName::Segment(name(number));
        let mut check = SegmentCheck::new(name, &EXPECTED, Verify::Records);
        check.update(bytes).ok()?;
        check.finish_at_end().ok()?.1
    }

    fn joined(before: Scanner, second: &[u8], piece: usize) -> Result<bool, Unjoined> {
        let mut joint = Joint::new(before, name(4));
        let mut pieces = second.chunks(piece);
        while pieces.next().is_some_and(|piece| joint.update(piece)) {}
        joint.finish(MIB).map(|scanner| scanner.is_some())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn fault_100_no_flip_in_a_record_across_a_boundary_goes_unnoticed(
            before in 1_usize..900, behind in 100_usize..9_000, at: prop::sample::Index, bit in 0..8,
        ) {
            let before = before * 8;
            let good = pair(before, behind);
            let first = alone(3, &good[..SIZE]).unwrap();
            let end = SegmentEnd::of(&first);
            prop_assert!(matches!(end, SegmentEnd::Open { previous: Some(_), .. }), "{end:?}");
            prop_assert_eq!(joined(first, &good[SIZE..], SIZE), Ok(false));
            // Both halves of it, and the page header between them.
            let at = SIZE - before + at.index(before + 40 + behind.min(8_000));
            let mut flipped = good;
            flipped[at] ^= 1_u8 << bit;
            let first = alone(3, &flipped[..SIZE]);
            let second = alone(4, &flipped[SIZE..]);
            let whole = first.map(|first| joined(first, &flipped[SIZE..], SIZE));
            // Some bits of a page header mean nothing.
            let in_header = at.checked_sub(SIZE).is_some_and(|at| at < 40);
            let noticed = second.is_none() || whole != Some(Ok(false));
            prop_assert!(noticed || in_header, "byte {at}");
        }

        #[test]
        fn the_pieces_change_nothing(before in 1_usize..900, behind in 100_usize..9_000,
                                     piece in 1_usize..20_000, damaged: bool) {
            let mut bytes = pair(before * 8, behind);
            bytes[SIZE + 60] ^= u8::from(damaged);
            let first = alone(3, &bytes[..SIZE]).unwrap();
            let at_once = joined(first.clone(), &bytes[SIZE..], SIZE);
            prop_assert_eq!(at_once.is_err(), damaged);
            prop_assert_eq!(joined(first, &bytes[SIZE..], piece), at_once);
        }
    }
}
