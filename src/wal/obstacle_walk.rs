//! A walk through WAL for what replay may not get past in it.
//! Never checks a checksum: whoever feeds it has. Invariant: what was met lies before the end of the records.

use walmgr_protocol::names::Lsn;

use super::obstacle::Obstacles;
use super::scan::{ScanStep, Scanner};

/// Walks through WAL that somebody else has checked, for its obstacles.
#[derive(Debug, Clone)]
pub(crate) struct ObstacleWalk(Scanner);

impl ObstacleWalk {
    /// From a segment's beginning, or on from where a scanner stands.
    pub(crate) fn from(scanner: Scanner) -> ObstacleWalk {
        ObstacleWalk(scanner.forgetting())
    }

    /// Walks on; behind the end of the records it does nothing.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let ScanStep::Record(_) = self.0.advance(&mut rest) {}
    }

    /// Walks on to the end of the record that crosses this LSN; whether more is wanted for that.
    pub(crate) fn cross(&mut self, boundary: Lsn, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        loop {
            match self.0.advance(&mut rest) {
                ScanStep::Record(record) if record.lsn < boundary => {}
                ScanStep::NeedMore => return !self.0.is_in_body_from(boundary),
                _ => return false,
            }
        }
    }

    /// What was met.
    pub(crate) const fn obstacles(&self) -> &Obstacles {
        self.0.obstacles()
    }
}
