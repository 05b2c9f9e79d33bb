//! Whether replay can go from where it stands to the end of the archive.
//! Never reads a record. Invariant: a gap that is named is one that replay would stop at.

use std::collections::BTreeMap;

use walmgr_protocol::names::{Lsn, SegmentName, TimelineId, WalFileName};

use crate::store::reader::Listing;
use crate::store::{Reader, StoreError};

/// A segment that is not there although later ones are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The first segment that is missing.
    pub missing: SegmentName,
    /// Its damaged copy, if there is one.
    pub damaged_copy: Option<String>,
    /// Where replay would end.
    pub lost_from: Lsn,
    /// Up to where the archive has WAL.
    pub lost_to: Lsn,
}

/// The first gap on the way of a server that stands on `timeline` and needs the WAL from `from`
/// on; it will follow the newest timeline that came from its own.
pub fn find(archive: &Reader, timeline: TimelineId, from: Lsn) -> Result<Option<Gap>, StoreError> {
    let listing = archive.listing()?;
    let size = archive.binding().segment_size;
    let lineage = lineage(archive, &listing, timeline)?;
    let mut segments = BTreeMap::new();
    for name in &listing.finished {
        if let WalFileName::Segment(segment) = name
            && lineage.contains(&segment.timeline())
            && let Some(number) = segment.number(size)
        {
            segments.insert(number, segment.timeline());
        }
    }
    let damaged = listing.damaged.iter().filter_map(|(name, copy)| {
        let WalFileName::Segment(segment) = name else {
            return None;
        };
        let ours = lineage.contains(&segment.timeline());
        Some((segment.number(size).filter(|_| ours)?, copy))
    });
    let damaged: BTreeMap<u64, &String> = damaged.collect();
    let first = from.0 / size.bytes();
    let last = segments.keys().chain(damaged.keys()).max().copied();
    let Some(last) = last.filter(|last| *last >= first) else {
        return Ok(None);
    };
    let Some(missing) = (first..=last).find(|number| !segments.contains_key(number)) else {
        return Ok(None);
    };
    // On the timeline of the segment before it.
    let before = segments.range(..missing).next_back();
    let timeline = before.map_or(timeline, |(_, timeline)| *timeline);
    Ok(Some(Gap {
        missing: SegmentName::from_number(timeline, missing, size),
        damaged_copy: damaged.get(&missing).map(|copy| (*copy).clone()),
        lost_from: Lsn(missing * size.bytes()).max(from),
        lost_to: Lsn((last + 1) * size.bytes()),
    }))
}

/// The timelines a server on `timeline` reads: those of the newest that came from it.
fn lineage(
    archive: &Reader,
    listing: &Listing,
    timeline: TimelineId,
) -> Result<Vec<TimelineId>, StoreError> {
    for name in listing.finished.iter().rev() {
        let WalFileName::History(newest) = name else {
            continue;
        };
        if *newest < timeline {
            continue;
        }
        let Some(history) = archive.history(*newest)? else {
            continue;
        };
        let ancestors = history.ancestors().iter().map(|ancestor| ancestor.timeline);
        let lineage: Vec<TimelineId> = ancestors.chain([*newest]).collect();
        if lineage.contains(&timeline) {
            return Ok(lineage);
        }
    }
    Ok(vec![timeline])
}
