//! Which segments are in progress, and how far each goes.
//! Never opens one for writing. Invariant: an end that it states is proven (see `proven`).

use walmgr_protocol::names::{Lsn, SegmentName};

use super::proven;
use super::records::{scanner_at, start_of};
use crate::store::binding::Binding;
use crate::store::damage::Damage;
use crate::store::error::StoreError;
use crate::store::folder::Folder;
use crate::store::lineage::SegmentProgress;
use crate::wal::commit::CommitSpan;

/// How far a partial segment goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartialEnd {
    /// The segment.
    pub segment: SegmentName,
    /// The end of its last whole record.
    pub end: Lsn,
    /// Whether replay goes on in the next segment.
    pub is_whole: bool,
    /// Set when there was more of it.
    pub damage: Option<Damage>,
}

impl PartialEnd {
    /// How far it goes.
    pub(in crate::store) const fn progress(&self) -> SegmentProgress {
        SegmentProgress {
            end: self.end,
            is_whole: self.is_whole,
            is_damaged: self.damage.is_some(),
        }
    }
}

/// The segments in the folder, in their order.
pub(in crate::store) fn partial_names(folder: &Folder) -> Result<Vec<SegmentName>, StoreError> {
    let names = folder.names()?.into_iter();
    let mut segments: Vec<SegmentName> = names.filter_map(|name| name.parse().ok()).collect();
    segments.sort();
    Ok(segments)
}

/// A partial segment that was read.
pub(in crate::store) struct PartialLook {
    pub(in crate::store) found: PartialEnd,
    /// The commits in its records.
    pub(in crate::store) commits: CommitSpan,
}

/// Where a partial segment ends; `None` if it holds nothing, or a push has finished it meanwhile.
pub(in crate::store) fn partial_end(
    folder: &Folder,
    binding: &Binding,
    segment: SegmentName,
) -> Result<Option<PartialEnd>, StoreError> {
    let looked = look_at_partial(folder, binding, segment)?;
    Ok(looked.map(|looked| looked.found))
}

/// Where a partial segment ends, and when the commits in its records were; `None` if it holds nothing, or a push has
/// finished it meanwhile.
pub(in crate::store) fn look_at_partial(
    folder: &Folder,
    binding: &Binding,
    segment: SegmentName,
) -> Result<Option<PartialLook>, StoreError> {
    let scanner = scanner_at(segment, start_of(segment, binding), binding).noting_commits();
    let Some(proven) = proven::by_name(folder, binding, segment, Some(scanner))? else {
        return Ok(None);
    };
    let (end, damage) = (proven.end, proven.damage);
    let is_there = end.held_bytes > 0 || damage.is_some();
    Ok(is_there.then(|| PartialLook {
        found: PartialEnd {
            segment,
            end: end.lsn,
            is_whole: end.switched.is_some() || end.held_bytes >= binding.segment_size.bytes(),
            damage,
        },
        commits: end.scanner.commits(),
    }))
}
