//! Whether replay can go from where it stands to the end of the archive and of what is partly there.
//! Never reads a record. Invariant: a gap that is named is one that replay would stop at.

use std::collections::BTreeMap;

use walmgr_protocol::names::{Lsn, SegmentName, TimelineId, WalFileName};

use crate::store::reader::Listing;
use crate::store::{PartialEnd, Reader, StoreError};

/// A segment that is not there although later ones are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The first segment that is missing.
    pub missing: SegmentName,
    /// Its damaged copy, if there is one.
    pub damaged_copy: Option<String>,
    /// Whether its beginning is there.
    pub is_partly_there: bool,
    /// Where replay would end.
    pub lost_from: Lsn,
    /// Up to where the archive has WAL.
    pub lost_to: Lsn,
}

/// The first gap on the way of a server that stands on `timeline` and needs the WAL from `from`
/// on; it will follow the newest timeline that came from its own. `partials` has to be older than
/// this look at the archive, where a segment may be finished any moment.
pub fn find(
    archive: &Reader,
    partials: &[PartialEnd],
    timeline: TimelineId,
    from: Lsn,
) -> Result<Option<Gap>, StoreError> {
    let listing = archive.listing()?;
    let size = archive.binding().segment_size;
    let lineage = lineage(archive, &listing, timeline)?;
    // Each with where its records end, if that is not where it ends itself.
    let mut segments = BTreeMap::new();
    for name in &listing.finished {
        if let WalFileName::Segment(segment) = name
            && lineage.contains(&segment.timeline())
            && let Some(number) = segment.number(size)
        {
            segments.insert(number, (segment.timeline(), None));
        }
    }
    for partial in wanted(partials, &listing, &lineage) {
        let timeline = partial.segment.timeline();
        let Some(number) = partial.segment.number(size) else {
            continue;
        };
        let known = segments.get(&number);
        if known.is_none_or(|(known, _)| *known < timeline) {
            let end = (!partial.is_whole).then_some(partial.end);
            segments.insert(number, (timeline, end));
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
    let ends_early = |number: &u64| match segments.get(number) {
        None => true,
        Some((_, end)) => end.is_some() && *number < last,
    };
    let Some(missing) = (first..=last).find(ends_early) else {
        return Ok(None);
    };
    // On its own timeline, or on that of the segment before it.
    let before = segments.range(..=missing).next_back();
    let timeline = before.map_or(timeline, |(_, (timeline, _))| *timeline);
    let end_of = |number: u64| segments.get(&number).and_then(|(_, end)| *end);
    let lost_from = end_of(missing).unwrap_or(Lsn(missing * size.bytes()));
    Ok(Some(Gap {
        missing: SegmentName::from_number(timeline, missing, size),
        damaged_copy: damaged.get(&missing).map(|copy| (*copy).clone()),
        is_partly_there: segments.contains_key(&missing),
        lost_from: lost_from.max(from),
        lost_to: end_of(last).unwrap_or(Lsn((last + 1) * size.bytes())),
    }))
}

/// The timeline that a server on `timeline` ends on.
pub fn newest_timeline(archive: &Reader, timeline: TimelineId) -> Result<TimelineId, StoreError> {
    let lineage = lineage(archive, &archive.listing()?, timeline)?;
    Ok(lineage.into_iter().max().unwrap_or(timeline))
}

/// The partial segments that replay can use: those on the way that are not finished.
fn wanted<'a>(
    partials: &'a [PartialEnd],
    listing: &Listing,
    lineage: &[TimelineId],
) -> impl Iterator<Item = &'a PartialEnd> {
    partials.iter().filter(|partial| {
        let segment = partial.segment;
        let finished = listing.finished.contains(&WalFileName::Segment(segment));
        !finished && lineage.contains(&segment.timeline())
    })
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
        missing_with(names, &[])
    }

    /// The same beside partial segments, each with where its records end.
    fn missing_with(names: &[&str], partials: &[(&str, u64)]) -> Option<Gap> {
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
        let partials = partials.iter().map(|(name, end)| PartialEnd {
            segment: name.parse().unwrap(),
            end: Lsn(*end),
            is_whole: *end % MIB == 0,
        });
        let partials: Vec<PartialEnd> = partials.collect();
        let timeline = TimelineId::new(1).unwrap();
        find(&archive, &partials, timeline, Lsn(3 * MIB + 100)).unwrap()
    }

    #[test]
    fn fault_78_a_hole_before_or_within_what_is_partly_there_is_found() {
        let [third, fourth, fifth] = [
            "000000010000000000000003",
            "000000010000000000000004",
            "000000010000000000000005",
        ];
        let (middle, end) = (4 * MIB + 500, 5 * MIB + 700);
        assert_eq!(missing_with(&[third], &[(fourth, middle)]), None);
        let both = [(fourth, 5 * MIB), (fifth, end)];
        assert_eq!(missing_with(&[third], &both), None);
        assert_eq!(missing_with(&[], &[(third, 3 * MIB + 8)]), None);
        let gap = missing_with(&[third], &[(fifth, end)]).unwrap();
        assert_eq!(gap.missing.to_string(), fourth);
        assert_eq!((gap.lost_from, gap.lost_to), (Lsn(4 * MIB), Lsn(end)));
        let gap = missing_with(&[third], &[(fourth, middle), (fifth, end)]).unwrap();
        assert_eq!(gap.missing.to_string(), fourth);
        assert!(gap.is_partly_there);
        assert_eq!((gap.lost_from, gap.lost_to), (Lsn(middle), Lsn(end)));
        let gap = missing_with(&[third, fifth], &[(fourth, middle)]).unwrap();
        assert_eq!((gap.lost_from, gap.lost_to), (Lsn(middle), Lsn(6 * MIB)));
        // One that is finished counts as such, whatever is left of its beginning.
        let left = [(fourth, middle)];
        assert_eq!(missing_with(&[third, fourth, fifth], &left), None);
        // Of a timeline that is none of ours.
        let other = "000000020000000000000006";
        assert_eq!(missing_with(&[third], &[(other, 6 * MIB + 9)]), None);
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
