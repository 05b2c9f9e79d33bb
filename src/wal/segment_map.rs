//! What one segment changes: the records that begin in it.
//! Never says what a record changes of which the references stand in the next segment; it says where that begins.
//! Invariant: the maps of all segments of a stretch, and those records, are all that the stretch changes.

use walmgr_protocol::names::Lsn;

use super::changes::Changes;
use super::scan::Scanner;

/// The changes of the records that begin in a segment.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct SegmentMap {
    /// Those whose references are in it.
    pub changes: Changes,
    /// Where the one begins whose references run on into the next segment.
    pub open: Option<Lsn>,
}

impl SegmentMap {
    /// What a scanner noted that walked from a segment's beginning to its end; `None` if it notes no changes.
    pub(crate) fn of(scanner: &Scanner) -> Option<SegmentMap> {
        let (changes, open) = scanner.changes()?;
        Some(SegmentMap {
            changes: changes.clone(),
            open,
        })
    }
}
