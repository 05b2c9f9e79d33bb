//! A walk through WAL for what replay may not get past in it.
//! Never checks a checksum: whoever feeds it has. Invariant: what was met lies before the end of the records.

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

    /// What was met.
    pub(crate) const fn obstacles(&self) -> &Obstacles {
        self.0.obstacles()
    }
}
