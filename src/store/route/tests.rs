//! What a server would lack on its way, and up to where a recovery finds WAL.
//! Never reads a record.

use super::*;
use crate::store::testing::{archive_of_names, real, scratch_folder};

const MIB: u64 = 1 << 20;

/// What is missing in an archive of these names for a server on timeline 1 at segment 3.
fn missing_in(names: &[&str]) -> Option<LineGap> {
    missing_with(names, &[])
}

/// What is missing for that server where `partials` lie beside these names: name, and where the records end, in
/// bytes from the beginning of the segment.
fn missing_with(names: &[&str], partials: &[(&str, u64)]) -> Option<LineGap> {
    missing_from(3 * MIB + 100, names, partials)
}

/// What is missing for a server on timeline 1 that has replayed up to `from`, a position in bytes.
fn missing_from(from: u64, names: &[&str], partials: &[(&str, u64)]) -> Option<LineGap> {
    let folder = scratch_folder();
    let archive = archive_of(&folder, names);
    let partials = partials.iter().map(|(name, end)| PartialEnd {
        segment: name.parse().unwrap(),
        end: Lsn(*end),
        is_whole: *end % MIB == 0,
        damage: None,
    });
    let partials: Vec<PartialEnd> = partials.collect();
    let at = (TimelineId::FIRST, Lsn(from));
    let route = Route::of_server(&archive, &partials, at).unwrap();
    route.gap(Lsn(from))
}

/// An archive of empty files of these names; timeline 2 left timeline 1 in the middle of segment 5.
fn archive_of(folder: &tempfile::TempDir, names: &[&str]) -> ArchiveReader {
    let places = archive_of_names(folder.path(), names);
    ArchiveReader::open(&places.completed_wals, real()).unwrap()
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
    let names = [third, fourth, copy.as_str()];
    let gap = missing_in(&names).unwrap();
    let folder = scratch_folder();
    let found = archive_of(&folder, &names).damaged_copy(gap.missing);
    assert_eq!(found.unwrap(), Some(copy));
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
fn fault_78_wal_behind_the_end_of_a_timeline_is_neither_lost_nor_read() {
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
    let told = |gap: LineGap| {
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

/// PostgreSQL does not go on behind the end of a timeline with what its master wrote there.
#[test]
fn a_recovery_is_told_the_end_that_status_tells() {
    let names = [
        "000000010000000000000004",
        "000000010000000000000005",
        "000000020000000000000006",
        "00000002.history",
    ];
    let folder = scratch_folder();
    let archive = archive_of(&folder, &names);
    let from = Lsn(4 * MIB);
    let wanted = TargetTimeline::Latest;
    let route = Route::find(&archive, (TimelineId::FIRST, from), wanted).unwrap();
    let switch = Lsn(5 * MIB + MIB / 2);
    assert_eq!(route.led(from).end, switch);
    let gap = route.gap(from).unwrap();
    assert_eq!(
        (gap.missing.to_string().as_str(), gap.lost_from),
        ("000000020000000000000005", switch)
    );
    assert_eq!(route.begin(Lsn(5 * MIB + 9)), from);
    assert_eq!(route.begin(Lsn(6 * MIB + 9)), Lsn(6 * MIB));
}
