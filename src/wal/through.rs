//! A walk through one segment, record by record, to its last byte: the one loop of all who read one to its end.
//! Never reads a file. Invariant: whoever is told that it came out stands at the first byte of the next segment,
//! and got there through whole records and the beginning of one that runs on.

use walmgr_protocol::names::{Lsn, SegmentName, WalSegmentSize};

use super::joint::SegmentEnd;
use super::scan::{ScanStep, Scanner};

/// The walk: feed it the segment from where its scanner stands on.
#[derive(Debug, Clone)]
pub(crate) struct Through {
    scanner: Scanner,
    boundary: Lsn,
    /// Where the switch ends that the segment ends with: what is behind means nothing.
    switched: Option<Lsn>,
    is_broken: bool,
}

/// How far a walk came.
#[derive(Debug)]
pub(crate) enum Reached {
    /// Out of the segment.
    Next(Box<Scanner>),
    /// Out of it too, but one record fills it, and nobody knows what is in that.
    Inside(Box<Scanner>),
    /// Not to its end.
    Short,
}

impl Through {
    /// A walk through `segment` by a scanner that stands in it, or at its beginning.
    pub(crate) fn new(scanner: Scanner, segment: SegmentName, size: WalSegmentSize) -> Through {
        let start = segment.start(size).unwrap_or_default();
        Through {
            scanner,
            boundary: Lsn(start.0.wrapping_add(size.bytes())),
            switched: None,
            is_broken: false,
        }
    }

    /// Walks on; `false` when no more bytes are wanted.
    pub(crate) fn update(&mut self, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        while self.is_unfinished() {
            match self.scanner.advance(&mut rest) {
                ScanStep::NeedMore => return true,
                ScanStep::Record(record) if record.is_switch() => self.switched = Some(record.end),
                ScanStep::Record(_) => {}
                ScanStep::EndOfWal(_) | ScanStep::Invalid { .. } => self.is_broken = true,
            }
        }
        false
    }

    /// Where the last whole record ends, or where the walk began.
    pub(crate) fn records_end(&self) -> Lsn {
        self.switched.unwrap_or_else(|| self.scanner.valid_end())
    }

    /// Whether the records end within the segment.
    pub(crate) const fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Decides, when the segment has been read or no more of it is wanted.
    pub(crate) fn finish(mut self) -> Reached {
        let zeros = [0_u8; 16 << 10];
        while self.switched.is_some() && self.scanner.position() < self.boundary {
            let left = self.boundary.0 - self.scanner.position().0;
            let left = usize::try_from(left).map_or(zeros.len(), |left| left.min(zeros.len()));
            let before = self.scanner.position();
            // Passed over unread.
            let _ = self.scanner.advance(&mut &zeros[..left]);
            if self.scanner.position() == before {
                break;
            }
        }
        if self.is_broken || self.scanner.position() != self.boundary {
            return Reached::Short;
        }
        match SegmentEnd::of(&self.scanner) {
            SegmentEnd::Inside => Reached::Inside(Box::new(self.scanner)),
            _ => Reached::Next(Box::new(self.scanner)),
        }
    }

    const fn is_unfinished(&self) -> bool {
        !self.is_broken && self.switched.is_none()
    }
}

impl Reached {
    /// The scanner that came out, even if one record fills the segment.
    pub(crate) fn out(self) -> Option<Scanner> {
        match self {
            Reached::Next(scanner) | Reached::Inside(scanner) => Some(*scanner),
            Reached::Short => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::joint::Joint;
    use crate::wal::writer::WalWriter;
    use walmgr_protocol::names::SystemId;

    const MIB: usize = 1 << 20;

    fn size() -> WalSegmentSize {
        WalSegmentSize::new(1 << 20).unwrap()
    }

    fn name(number: u64) -> SegmentName {
        let timeline = walmgr_protocol::names::TimelineId::FIRST;
        SegmentName::from_number(timeline, number, size())
    }

    fn written(record_bytes: usize, bytes: usize) -> Vec<u8> {
        let mut writer = WalWriter::new(name(3), size(), SystemId(7), 15);
        while writer.bytes().len() < bytes {
            writer.record(10, 0, &vec![7; record_bytes]);
        }
        writer.bytes()[..bytes].to_vec()
    }

    fn walked(bytes: &[u8], number: u64, scanner: Option<Scanner>) -> Reached {
        let start = Lsn(number << 20);
        let scanner = scanner.unwrap_or_else(|| Scanner::new(start, size()));
        let mut through = Through::new(scanner, name(number), size());
        for piece in bytes.chunks(10_007) {
            if !through.update(piece) {
                break;
            }
        }
        through.finish()
    }

    #[test]
    fn a_walk_comes_out_where_the_next_segment_goes_on() {
        let bytes = written(9_000, 2 * MIB);
        let (first, second) = bytes.split_at(MIB);
        let scanner = match walked(first, 3, None) {
            Reached::Next(scanner) => *scanner,
            other => panic!("{other:?}"),
        };
        let mut joint = Joint::new(scanner.clone(), name(4));
        joint.update(second);
        assert!(joint.finish(size()).is_ok());
        assert!(matches!(walked(second, 4, Some(scanner)), Reached::Next(_)));
    }

    #[test]
    fn a_segment_that_one_record_fills_is_told_from_others() {
        let bytes = written(3 * MIB, 3 * MIB);
        let inside = walked(&bytes[MIB..2 * MIB], 4, None);
        assert!(matches!(inside, Reached::Inside(_)), "{inside:?}");
        assert!(inside.out().is_some());
    }

    #[test]
    fn damage_and_a_missing_end_are_short() {
        let bytes = written(9_000, MIB);
        assert!(matches!(walked(&bytes[..MIB - 1], 3, None), Reached::Short));
        let mut flipped = bytes.clone();
        flipped[MIB / 2] ^= 1;
        assert!(matches!(walked(&flipped, 3, None), Reached::Short));
        assert!(matches!(walked(&[0; MIB], 3, None), Reached::Short));
    }
}
