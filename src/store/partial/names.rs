//! Which segments are in progress, and how far each goes.
//! Never opens one for writing. Invariant: an end that it states is proven (see `proven`).

use walmgr_protocol::names::{Lsn, SegmentName};

use super::proven;
use crate::store::binding::Binding;
use crate::store::damage::Damage;
use crate::store::error::StoreError;
use crate::store::folder::Folder;

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

/// The segments in the folder, in their order.
pub(in crate::store) fn partial_names(folder: &Folder) -> Result<Vec<SegmentName>, StoreError> {
    let names = folder.names()?.into_iter();
    let mut segments: Vec<SegmentName> = names.filter_map(|name| name.parse().ok()).collect();
    segments.sort();
    Ok(segments)
}

/// Where a partial segment ends; `None` if it holds nothing, or a push has finished it meanwhile.
pub(in crate::store) fn partial_end(
    folder: &Folder,
    binding: &Binding,
    segment: SegmentName,
) -> Result<Option<PartialEnd>, StoreError> {
    let Some(proven) = proven::by_name(folder, binding, segment, None)? else {
        return Ok(None);
    };
    let (end, damage) = (proven.end, proven.damage);
    Ok(
        (end.held_bytes > 0 || damage.is_some()).then(|| PartialEnd {
            segment,
            end: end.lsn,
            is_whole: end.switched.is_some() || end.held_bytes >= binding.segment_size.bytes(),
            damage,
        }),
    )
}
