//! What the recovery at a start found, for whoever tells people.
//! Never acts on it. Invariant: nothing that it names was removed.

use walmgr_protocol::names::{Lsn, SegmentName, WalFileName};

use super::damage::Damage;

/// What the start-up recovery found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Temporaries that an earlier process left.
    pub temporaries_removed: usize,
    /// The newest segments that were read and synced.
    pub segments_checked: Vec<WalFileName>,
    /// Files that are not what was acknowledged, and segments whose records do not hold or do not go on
    /// with the segment before; they stay, because they may have been let in so.
    pub damaged: Vec<(WalFileName, String)>,
    /// Segments that were torn, what they are called since, and what was wrong.
    pub set_aside: Vec<(WalFileName, String, String)>,
    /// Segments of another cluster, version or size; they stay.
    pub foreign: Vec<(WalFileName, String)>,
    /// Segments that the disk does not give back, or whose name leads to no file; they stay.
    pub unreadable: Vec<(WalFileName, String)>,
    /// The segments still being written, and where their records end.
    pub partials: Vec<(SegmentName, Lsn)>,
    /// Those whose records end before what is known to have been there; they stay.
    pub damaged_partials: Vec<Damage>,
}
