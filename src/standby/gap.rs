//! Whether replay can go from where it stands to the end of the archive and of what is partly there.
//! Never reads a record. Invariant: a gap that is named is one that replay would stop at.

use std::collections::BTreeMap;

use walmgr_protocol::names::{Lsn, SegmentName, TimelineId, WalFileName, WalSegmentSize};

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
/// on; it will follow the newest timeline that came from its own behind `from`. `partials` has to be
/// older than this look at the archive, where a segment may be finished any moment.
pub fn find(
    archive: &Reader,
    partials: &[PartialEnd],
    timeline: TimelineId,
    from: Lsn,
) -> Result<Option<Gap>, StoreError> {
    let listing = archive.listing()?;
    let way = Way::along(archive, &listing, timeline, from)?;
    let segments = way.segments(&listing, partials);
    let damaged = listing.damaged.iter().filter_map(|(name, _)| match name {
        WalFileName::Segment(segment) => way.part_of(*segment),
        _ => None,
    });
    let damaged: BTreeMap<u64, Lsn> = damaged.collect();
    let first = from.0 / way.size.bytes();
    let last = segments.keys().chain(damaged.keys()).max().copied();
    let Some(last) = last.filter(|last| *last >= first) else {
        return Ok(None);
    };
    let ends_early = |number: &u64| match segments.get(number) {
        None => true,
        Some((_, end)) => *number < last && *end < way.start_of(*number + 1),
    };
    let Some(number) = (first..=last).find(ends_early) else {
        return Ok(None);
    };
    let missing = way.name(number);
    let there = segments.get(&number);
    let lost_from = there.map_or(way.start_of(number), |(_, end)| *end);
    let last_end = segments.get(&last).map(|(_, end)| *end);
    let copies = |(name, _): &&(WalFileName, String)| *name == WalFileName::Segment(missing);
    Ok(Some(Gap {
        missing,
        damaged_copy: (listing.damaged.iter().rfind(copies)).map(|(_, copy)| copy.clone()),
        is_partly_there: there.is_some_and(|(timeline, _)| *timeline == missing.timeline()),
        lost_from: lost_from.max(from),
        lost_to: last_end.or(damaged.get(&last).copied()).unwrap_or(from),
    }))
}

/// The part of a timeline that a server replays.
struct Leg {
    timeline: TimelineId,
    begin: Lsn,
    /// Where the next one leaves it.
    end: Lsn,
}

/// The timelines a server on `timeline` reads: those of the newest that came from it at `from` or
/// behind, newest first. One that left earlier is none that it could go over to.
fn legs(
    archive: &Reader,
    listing: &Listing,
    timeline: TimelineId,
    from: Lsn,
) -> Result<Vec<Leg>, StoreError> {
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
        let mut end = Lsn(u64::MAX);
        let timelines = history.timelines().into_iter();
        let legs = timelines.map(|(timeline, begin)| Leg {
            timeline,
            begin,
            end: std::mem::replace(&mut end, begin),
        });
        let legs: Vec<Leg> = legs.collect();
        let own = legs.iter().find(|leg| leg.timeline == timeline);
        if own.is_some_and(|own| own.end >= from) {
            return Ok(legs);
        }
    }
    Ok(vec![Leg {
        timeline,
        begin: Lsn(0),
        end: Lsn(u64::MAX),
    }])
}

/// What a server reads on its way.
pub struct Way {
    size: WalSegmentSize,
    legs: Vec<Leg>,
}

impl Way {
    /// That of a server that stands on `timeline` and needs the WAL from `from` on.
    pub fn of(archive: &Reader, timeline: TimelineId, from: Lsn) -> Result<Way, StoreError> {
        Way::along(archive, &archive.listing()?, timeline, from)
    }

    fn along(
        archive: &Reader,
        listing: &Listing,
        timeline: TimelineId,
        from: Lsn,
    ) -> Result<Way, StoreError> {
        Ok(Way {
            size: archive.binding().segment_size,
            legs: legs(archive, listing, timeline, from)?,
        })
    }

    /// The timeline that it ends on.
    pub fn newest_timeline(&self) -> Option<TimelineId> {
        self.legs.first().map(|leg| leg.timeline)
    }

    /// How far records of this segment that end there lead; `None` if it is not read.
    pub fn led_to(&self, segment: SegmentName, end: Lsn) -> Option<Lsn> {
        let (_, last) = self.part_of(segment)?;
        Some(end.min(last))
    }

    /// A segment's number, and where what the way needs of it ends; `None` if that is nothing.
    fn part_of(&self, segment: SegmentName) -> Option<(u64, Lsn)> {
        let number = segment.number(self.size)?;
        let timeline = segment.timeline();
        let leg = self.legs.iter().find(|leg| leg.timeline == timeline)?;
        let (start, end) = (self.start_of(number), self.start_of(number + 1));
        (end > leg.begin && start < leg.end).then_some((number, end.min(leg.end)))
    }

    /// The segment on the newest timeline that has one of this number.
    fn name(&self, number: u64) -> SegmentName {
        let end = self.start_of(number + 1);
        let leg = self.legs.iter().find(|leg| leg.begin < end);
        let timeline = leg.map_or(TimelineId::FIRST, |leg| leg.timeline);
        SegmentName::from_number(timeline, number, self.size)
    }

    fn start_of(&self, number: u64) -> Lsn {
        Lsn(number.saturating_mul(self.size.bytes()))
    }

    /// What there is of each number, on the newest timeline that has it, and where that ends.
    fn segments(
        &self,
        listing: &Listing,
        partials: &[PartialEnd],
    ) -> BTreeMap<u64, (TimelineId, Lsn)> {
        let mut segments: BTreeMap<u64, (TimelineId, Lsn)> = BTreeMap::new();
        let mut add = |segment: SegmentName, end: Lsn| {
            let Some((number, wanted)) = self.part_of(segment) else {
                return;
            };
            let found = (segment.timeline(), end.min(wanted));
            let known = segments.entry(number).or_insert(found);
            // A finished one comes before its beginning.
            if known.0 < found.0 {
                *known = found;
            }
        };
        for name in &listing.finished {
            if let WalFileName::Segment(segment) = name {
                add(*segment, Lsn(u64::MAX));
            }
        }
        for partial in partials {
            let end = if partial.is_whole {
                Lsn(u64::MAX)
            } else {
                partial.end
            };
            add(partial.segment, end);
        }
        segments
    }
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
        missing_from(3 * MIB + 100, names, partials)
    }

    /// The same for a server elsewhere on timeline 1.
    fn missing_from(from: u64, names: &[&str], partials: &[(&str, u64)]) -> Option<Gap> {
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
        find(&archive, &partials, timeline, Lsn(from)).unwrap()
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

    /// Timeline 2 leaves timeline 1 in the middle of segment 5.
    #[test]
    fn fault_78_what_a_timeline_has_behind_its_end_is_neither_lost_nor_in_place_of_the_next_one() {
        let old = |number: u64| format!("{:024X}", (1_u128 << 64) + u128::from(number));
        let new = |number: u64| format!("{:024X}", (2_u128 << 64) + u128::from(number));
        let there = |names: &[String]| -> Vec<String> {
            let before = [old(3), old(4), "00000002.history".to_owned()];
            before.iter().chain(names).cloned().collect()
        };
        let gap = |names: &[String], partials: &[(String, u64)]| {
            let names = there(names);
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let partials = partials.iter().map(|(name, end)| (name.as_str(), *end));
            missing_with(&names, &partials.collect::<Vec<_>>())
        };
        let told = |gap: Gap| {
            let range = (gap.lost_from.0, gap.lost_to.0);
            (gap.missing.to_string(), gap.is_partly_there, range)
        };
        let switch = 5 * MIB + MIB / 2;
        // What the old master went on to write.
        assert_eq!(gap(&[new(5), old(7)], &[]), None);
        assert_eq!(gap(&[new(5)], &[(old(7), 7 * MIB + 9)]), None);
        assert_eq!(gap(&[new(5), format!("{}.damaged", old(7))], &[]), None);
        assert_eq!(gap(&[], &[(old(5), 6 * MIB), (old(7), 7 * MIB + 9)]), None);
        // It fills no hole in the new one either.
        let found = gap(&[new(5), old(6), new(7)], &[]).map(told);
        assert_eq!(found, Some((new(6), false, (6 * MIB, 8 * MIB))));
        for partials in [&[][..], &[(old(5), 6 * MIB)]] {
            let whole = partials.is_empty().then(|| old(5));
            let names = [Vec::from_iter(whole), vec![new(6)]].concat();
            let found = gap(&names, partials).map(told);
            assert_eq!(found, Some((new(5), false, (switch, 7 * MIB))));
        }
        let found = gap(&[new(6)], &[(old(5), 5 * MIB + 9)]).map(told);
        assert_eq!(found, Some((new(5), false, (5 * MIB + 9, 7 * MIB))));
        // The end of what would be lost is that of what is needed.
        let history = "00000002.history";
        let found = missing_with(&[&old(3), history], &[(&old(5), 5 * MIB + 700_000)]);
        let lost = (4 * MIB, switch);
        assert_eq!(found.map(told), Some((old(4), false, lost)));
    }

    #[test]
    fn fault_78_a_server_that_is_past_the_switch_stays_on_its_timeline() {
        let [sixth, eighth] = ["000000010000000000000006", "000000010000000000000008"];
        let others = ["00000002.history", "000000020000000000000005"];
        let names = [&others[..], &[sixth, eighth]].concat();
        let gap = missing_from(6 * MIB + 100, &names, &[]).unwrap();
        assert_eq!(gap.missing.to_string(), "000000010000000000000007");
        assert_eq!((gap.lost_from, gap.lost_to), (Lsn(7 * MIB), Lsn(9 * MIB)));
        let names = [&others[..], &["000000020000000000000009"]].concat();
        let partial = (sixth, 6 * MIB + 500);
        assert_eq!(missing_from(6 * MIB + 100, &names, &[partial]), None);
    }
}
