//! The ends of segments in progress that have not changed since they were read.
//! Never gives the end of a segment that may have changed. Invariant: a remembered end is what reading the segment
//! again would find, unless the disk changed it by itself, which rounds and `verify` find.
//!
//! Each failover leaves a segment in progress behind, and whatever arrives is judged by all of them.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use walmgr_protocol::names::SegmentName;

use super::acknowledged;
use super::names::{PartialEnd, partial_end};
use crate::store::binding::Binding;
use crate::store::disk::{FileStat, is_past};
use crate::store::error::StoreError;
use crate::store::folder::Folder;

/// More than an archive has unless something is wrong; the others are read each time.
const KNOWN_MAX: usize = 4096;

/// What was read of segments in progress.
#[derive(Debug, Default)]
pub(in crate::store) struct KnownEnds(Mutex<BTreeMap<SegmentName, (Seen, Option<PartialEnd>)>>);

/// What its two files were: the records, and up to where they were acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    records: Option<FileStat>,
    acknowledged: Option<FileStat>,
}

impl KnownEnds {
    /// Where this one ends, as [`partial_end`] says it.
    pub(in crate::store) fn of(
        &self,
        folder: &Folder,
        binding: &Binding,
        segment: SegmentName,
    ) -> Result<Option<PartialEnd>, StoreError> {
        let seen = Seen::of(folder, segment)?;
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((then, end)) = known().get(&segment)
            && *then == seen
        {
            return Ok(*end);
        }
        // Before it is read: what changes meanwhile has another time.
        let is_still = seen.is_still();
        let end = partial_end(folder, binding, segment)?;
        let mut known = known();
        known.remove(&segment);
        if is_still && known.len() < KNOWN_MAX {
            known.insert(segment, (seen, end));
        }
        Ok(end)
    }

    /// Forgets those that are no longer in progress.
    pub(in crate::store) fn keep_only(&self, segments: &[SegmentName]) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|segment, _| segments.binary_search(segment).is_ok());
    }
}

impl Seen {
    fn of(folder: &Folder, segment: SegmentName) -> Result<Seen, StoreError> {
        Ok(Seen {
            records: folder.stat_at(&segment.to_string())?,
            acknowledged: folder.stat_at(&acknowledged::name_of(segment))?,
        })
    }

    fn is_still(&self) -> bool {
        let both = [&self.records, &self.acknowledged];
        both.into_iter()
            .flatten()
            .all(|stat| is_past(stat.changed_ns))
    }
}
