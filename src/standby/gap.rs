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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{new_archive, real, scratch_folder};

    const MIB: u64 = 1 << 20;

    /// What is missing in an archive of these names for a server on timeline 1 at segment 3.
    fn missing_in(names: &[&str]) -> Option<Gap> {
        let folder = scratch_folder();
        let places = new_archive(folder.path());
        for name in names {
            let history = name.ends_with(".history");
            let text = if history {
                "1\t0/580000\tpromoted\n"
            } else {
                ""
            };
            std::fs::write(places.completed_wals.join(name), text).unwrap();
        }
        let archive = Reader::open(&places.completed_wals, real()).unwrap();
        find(&archive, TimelineId::new(1).unwrap(), Lsn(3 * MIB + 100)).unwrap()
    }

    #[test]
    fn fault_78_a_hole_is_found_wherever_it_is_and_nothing_else_is() {
        let [third, fourth, fifth] = [
            "000000010000000000000003",
            "000000010000000000000004",
            "000000010000000000000005",
        ];
        assert_eq!(missing_in(&[]), None);
        assert_eq!(missing_in(&["000000010000000000000001", third]), None);
        assert_eq!(missing_in(&[third, fourth, fifth]), None);
        let gap = missing_in(&[fourth]).unwrap();
        assert_eq!(gap.missing.to_string(), third);
        assert_eq!(
            (gap.lost_from, gap.lost_to),
            (Lsn(3 * MIB + 100), Lsn(5 * MIB))
        );
        let gap = missing_in(&[third, fifth]).unwrap();
        assert_eq!(gap.missing.to_string(), fourth);
        assert_eq!((gap.lost_from, gap.lost_to), (Lsn(4 * MIB), Lsn(6 * MIB)));
        let copy = format!("{fifth}.damaged");
        let gap = missing_in(&[third, fourth, &copy]).unwrap();
        assert_eq!(gap.damaged_copy, Some(copy));
    }

    #[test]
    fn the_way_goes_on_along_the_newest_timeline_that_came_from_ours() {
        let ours = ["000000010000000000000003", "000000010000000000000004"];
        let first = "000000020000000000000005";
        let third = "000000020000000000000007";
        let history = "00000002.history";
        assert_eq!(missing_in(&[ours[0], ours[1], first, history]), None);
        // Without its history the other timeline is none of ours.
        assert_eq!(missing_in(&[ours[0], first, third]), None);
        let gap = missing_in(&[ours[0], ours[1], first, third, history]).unwrap();
        assert_eq!(gap.missing.to_string(), "000000020000000000000006");
        let gap = missing_in(&[ours[0], first, history]).unwrap();
        assert_eq!(gap.missing.to_string(), ours[1]);
    }
}
