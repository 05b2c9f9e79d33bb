//! The model against a slow one that walks as PostgreSQL does, and what may arrive against what is there.
//! Never touches a disk. Invariant: the slow model knows no runs and no legs, only single steps.

use std::collections::BTreeMap;

use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use walmgr_protocol::names::WalSegmentSize;

use super::*;
use crate::store::segment_runs::SegmentRuns;

const MIB: u64 = 1 << 20;

/// Switch points and ends lie on these.
const STEP: u64 = MIB / 4;

const AHEAD_MAX: u64 = 3;

fn timeline(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

fn segment((number_of_timeline, number): (u32, u64)) -> SegmentName {
    let size = WalSegmentSize::new(1 << 20).unwrap();
    SegmentName::from_number(timeline(number_of_timeline), number, size)
}

fn history(number: u32, ancestors: &[(u32, u64)]) -> History {
    let lines = ancestors.iter();
    let text: String = lines
        .map(|(parent, step)| format!("{parent}\t{}\twhy\n", Lsn(step * STEP)))
        .collect();
    History::parse(timeline(number), text.as_bytes()).unwrap()
}

fn facts(segments: &[(u32, u64)], histories: &[History]) -> LineageFacts {
    let histories = histories.iter();
    LineageFacts {
        size: WalSegmentSize::new(1 << 20).unwrap(),
        segments: SegmentRuns::of(
            WalSegmentSize::new(1 << 20).unwrap(),
            segments.iter().map(|name| segment(*name)),
        ),
        damaged: BTreeSet::new(),
        partials: BTreeMap::new(),
        histories: histories
            .map(|history| (history.timeline(), history.clone()))
            .collect(),
        unreadable: BTreeMap::new(),
        notes: BTreeMap::new(),
        claimed: BTreeSet::new(),
        unended: BTreeMap::new(),
    }
}

/// Lets a file in as the receiver does: judged, noted, and whatever it connects joined.
fn arrive(lineage: Lineage, name: WalFileName, content: Option<&History>) -> Lineage {
    let apart = match (name, content) {
        (WalFileName::Segment(segment), _) => lineage.judge(segment, AHEAD_MAX),
        (_, Some(history)) => lineage.judge_history(history),
        _ => None,
    };
    let mut facts = lineage.facts;
    let is_new = match (name, content) {
        (WalFileName::Segment(segment), _) => facts.segments.insert(segment),
        (_, Some(history)) if facts.histories.contains_key(&history.timeline()) => false,
        (_, Some(history)) => {
            facts.histories.insert(history.timeline(), history.clone());
            true
        }
        _ => false,
    };
    if !is_new {
        return Lineage::of(facts);
    }
    match apart {
        Some(apart) => {
            facts.notes.insert(name, apart.kind());
        }
        None if content.is_some() => {
            facts.claimed.insert(name.timeline());
        }
        None => {}
    }
    settled(Lineage::of(facts))
}

/// Joins and gives up as the receiver does.
fn settled(mut lineage: Lineage) -> Lineage {
    loop {
        if let Some(outgrown) = lineage.outgrown() {
            (lineage, _) = lineage.given_up(outgrown.timeline);
        } else if let Some(joined) = lineage.joined(AHEAD_MAX) {
            if let WalFileName::History(timeline) = joined {
                lineage = lineage.with_claim(timeline);
            }
            lineage = lineage.without_note(joined);
        } else {
            return lineage;
        }
    }
}

/// Which segment PostgreSQL reads for a number: it tries the timelines of its history, newest first.
fn slow_segment(
    facts: &LineageFacts,
    history: Option<&History>,
    own: u32,
    number: u64,
) -> Option<SegmentName> {
    let mut timelines = vec![(own, 0, u64::MAX)];
    if let Some(history) = history {
        timelines.clear();
        let mut begin = 0;
        for ancestor in history.ancestors() {
            let end = ancestor.switch_point.0;
            timelines.insert(0, (ancestor.timeline.number(), begin, end));
            begin = end;
        }
        timelines.insert(0, (own, begin, u64::MAX));
    }
    let (start, end) = (number * MIB, (number + 1) * MIB);
    for (timeline, begins, ends) in timelines {
        let name = segment((timeline, number));
        if start < ends && end > begins && facts.segments.contains(name) {
            return Some(name);
        }
    }
    None
}

fn slow_newest(facts: &LineageFacts, from: u32) -> u32 {
    let mut newest = from;
    while facts.histories.contains_key(&timeline(newest + 1)) {
        newest += 1;
    }
    newest
}

prop_compose! {
    /// Histories in which each timeline came from the one before, and any segments.
    fn archives()(
        segments in btree_set((1_u32..4, 1_u64..12), 1..30),
        second in 1_u64..44, third in 0_u64..20,
        there in (any::<bool>(), any::<bool>()),
    ) -> (Vec<(u32, u64)>, Vec<History>) {
        let mut histories = Vec::new();
        if there.0 {
            histories.push(history(2, &[(1, second)]));
        }
        if there.1 {
            histories.push(history(3, &[(1, second), (2, second + third)]));
        }
        let mut segments: Vec<_> = segments.into_iter().collect();
        // Timeline 1 is where the archive begins.
        segments.push((1, 1));
        (segments, histories)
    }
}

proptest! {
    #[test]
    fn the_route_is_the_one_that_postgresql_takes((segments, histories) in archives(), from in 1_u64..12) {
        let lineage = Lineage::of(facts(&segments, &histories));
        let facts = lineage.facts();
        let newest = lineage.newest_for(timeline(1)).unwrap();
        // Here, without notes, a timeline counts if PostgreSQL finds it. It finds one whose only
        // sign is a segment as soon as it gets a placeholder for it.
        let slow = slow_newest(facts, 1);
        let own_name = |number| segments.iter().any(|(timeline, _)| *timeline == number);
        let passed = slow == 1 && histories.iter().any(|one| one.timeline() == timeline(3)) && own_name(2);
        prop_assert!(newest == timeline(slow) || (passed && newest != timeline(2)));
        let line = lineage.line_to(newest);
        let history = facts.histories.get(&newest);
        for number in 0..14 {
            let slow = slow_segment(facts, history, newest.number(), number);
            prop_assert_eq!(lineage.segment(&line, number), slow);
        }
        let there = |number: u64| slow_segment(facts, history, newest.number(), number).is_some();
        let mut end = from;
        while there(end) {
            end += 1;
        }
        let led = lineage.led(&line, Lsn(from * MIB));
        let short = |number| {
            let name = slow_segment(facts, history, newest.number(), number);
            let own = name.and_then(|name| line.leg(name.timeline()).copied());
            own.is_some_and(|own| own.end.0 < (number + 1) * MIB)
        };
        let cut = (from..end).find(|number| short(*number));
        let expected = match cut {
            Some(number) => {
                let name = slow_segment(facts, history, newest.number(), number).unwrap();
                line.leg(name.timeline()).unwrap().end
            }
            None => Lsn(end * MIB),
        };
        prop_assert_eq!(led.end, expected);
        let number = led.end.0 / MIB;
        let more = (number + 1..14).any(there);
        prop_assert_eq!(led.missing.is_some(), more);
        prop_assert_eq!(lineage.gap(&line, Lsn(from * MIB)).map(|gap| gap.missing), led.missing);
        let gapless = lineage.gapless(&line, Lsn(from * MIB));
        let last = cut.map_or(end, |number| number + 1);
        prop_assert_eq!(gapless.len() as u64, last - from);
    }

    /// Whoever may add files may make nothing unreachable, in whatever order he adds them.
    #[test]
    fn fault_110_what_arrives_takes_nothing_away(
        genuine in 1_u64..8,
        forged in vec((any::<bool>(), 1_u32..5, 0_u64..40, btree_map(1_u32..4, 0_u64..60, 1..3)), 0..24),
        on_the_end in any::<bool>(),
    ) {
        let mut lineage = Lineage::of(facts(&[], &[]));
        for number in 0..=genuine {
            lineage = arrive(lineage, WalFileName::Segment(segment((1, number))), None);
        }
        if on_the_end {
            // A forgery that connects, so that what follows is weighed against it.
            let switch = (genuine + 1) * 4;
            let forged = history(2, &[(1, switch)]);
            lineage = arrive(lineage, WalFileName::History(timeline(2)), Some(&forged));
            lineage = arrive(lineage, whole(2, genuine + 1).0, None);
            prop_assert_eq!(lineage.newest(), Some(timeline(2)));
        }
        for (is_history, number, at, ancestors) in forged {
            let before = lineage.line_from(timeline(1), Lsn(MIB)).unwrap();
            let led = lineage.led(&before, Lsn(MIB));
            let name = segment((number, at));
            lineage = if is_history {
                let ancestors: Vec<_> = ancestors.into_iter().filter(|(one, _)| *one < number).collect();
                if ancestors.is_empty() {
                    continue;
                }
                let forged = history(number, &ancestors);
                arrive(lineage, WalFileName::History(timeline(number)), Some(&forged))
            } else {
                arrive(lineage, WalFileName::Segment(name), None)
            };
            let after = lineage.line_from(timeline(1), Lsn(MIB)).unwrap();
            let now = lineage.led(&after, Lsn(MIB));
            prop_assert!(now.end >= led.end, "{led:?} became {now:?}");
            // Only a segment that the archive may expect next shows a gap.
            if let (Some(missing), None) = (now.missing, led.missing) {
                let missing = missing.number(lineage.facts().size).unwrap();
                let mut expected = missing + 1..=missing + AHEAD_MAX;
                let is_near = expected.any(|number| lineage.segment(&after, number).is_some());
                prop_assert!(is_near, "{missing}");
            }
        }
    }
}

/// What becomes of these, arriving one after the other behind segments 1 to 5 of timeline 1.
fn after(arrivals: &[(WalFileName, Option<History>)]) -> Lineage {
    let segments: Vec<_> = (1..=5).map(|number| (1, number)).collect();
    let mut lineage = Lineage::of(facts(&segments, &[]));
    for (name, content) in arrivals {
        lineage = arrive(lineage, *name, content.as_ref());
    }
    lineage
}

fn named(number: u32, ancestors: &[(u32, u64)]) -> (WalFileName, Option<History>) {
    let name = WalFileName::History(timeline(number));
    (name, Some(history(number, ancestors)))
}

fn whole(number_of_timeline: u32, number: u64) -> (WalFileName, Option<History>) {
    (
        WalFileName::Segment(segment((number_of_timeline, number))),
        None,
    )
}

#[test]
fn fault_110_a_history_that_postgresql_would_not_find_does_not_count() {
    let forged = named(0x7FFF_FFF0, &[(1, 4)]);
    let lineage = after(&[forged]);
    assert_eq!(lineage.newest(), Some(timeline(1)));
    assert_eq!(
        lineage.asked(timeline(0x7FFF_FFF0), true),
        HistoryAnswer::Placeholder
    );
    assert_eq!(
        lineage.asked(timeline(0x7FFF_FFF0), false),
        HistoryAnswer::Nothing
    );
    let line = lineage.line_from(timeline(1), Lsn(MIB)).unwrap();
    assert_eq!(lineage.led(&line, Lsn(MIB)).end, Lsn(6 * MIB));
}

#[test]
fn fault_110_a_switch_point_before_acknowledged_wal_is_followed_by_nobody() {
    for early in [1, 4 * 4, 6 * 4 - 1] {
        let lineage = after(&[named(2, &[(1, early)]), whole(2, early / 4)]);
        assert_eq!(lineage.newest(), Some(timeline(1)));
        assert_eq!(lineage.asked(timeline(2), false), HistoryAnswer::Nothing);
        // A server that opens takes another number.
        assert_eq!(lineage.asked(timeline(2), true), HistoryAnswer::Placeholder);
        assert_eq!(lineage.asked(timeline(3), true), HistoryAnswer::Nothing);
        // PostgreSQL copies what it gets for its own timeline into the next history.
        assert_eq!(lineage.asked(timeline(1), true), HistoryAnswer::Nothing);
    }
    // One that lies far ahead does not stop the master that goes on before it.
    let lineage = after(&[named(2, &[(1, 400)]), whole(1, 6), whole(1, 7)]);
    assert_eq!(lineage.newest(), Some(timeline(1)));
    let line = lineage.line_from(timeline(1), Lsn(MIB)).unwrap();
    assert_eq!(lineage.led(&line, Lsn(MIB)).end, Lsn(8 * MIB));
}

#[test]
fn fault_105_a_failover_elsewhere_joins_in_whatever_order_its_files_come() {
    let arrivals = [named(2, &[(1, 25)]), whole(2, 6), whole(2, 7)];
    for order in [[0, 1, 2], [1, 0, 2], [2, 1, 0], [1, 2, 0]] {
        let arrivals = order.map(|index| arrivals[index].clone());
        let lineage = after(&arrivals);
        assert_eq!(lineage.newest(), Some(timeline(2)), "{order:?}");
        assert_eq!(lineage.facts().notes, BTreeMap::new(), "{order:?}");
        let line = lineage.line_from(timeline(1), Lsn(MIB)).unwrap();
        assert_eq!(lineage.led(&line, Lsn(MIB)).end, Lsn(8 * MIB));
        // What the old master goes on to write is nobody's.
        let lineage = arrive(lineage, whole(1, 6).0, None);
        let behind = WalFileName::Segment(segment((1, 6)));
        assert_eq!(lineage.facts().notes.get(&behind), Some(&ApartKind::Behind));
        assert_eq!(lineage.newest(), Some(timeline(2)));
    }
}

#[test]
fn fault_300_a_timeline_left_in_its_first_segment_joins_in_any_order() {
    // 2 begins in segment 6; 3 and 4 begin in it too, and only 4 ends it.
    let arrivals = [
        named(2, &[(1, 25)]),
        named(3, &[(1, 25), (2, 26)]),
        named(4, &[(1, 25), (2, 26), (3, 27)]),
        whole(4, 6),
        whole(4, 7),
    ];
    for order in [
        [0, 1, 2, 3, 4],
        [4, 3, 2, 1, 0],
        [3, 0, 2, 1, 4],
        [2, 4, 1, 3, 0],
    ] {
        let arrivals = order.map(|index| arrivals[index].clone());
        let lineage = after(&arrivals);
        assert_eq!(lineage.facts().notes, BTreeMap::new(), "{order:?}");
        assert_eq!(lineage.newest(), Some(timeline(4)), "{order:?}");
        let line = lineage.line_from(timeline(1), Lsn(MIB)).unwrap();
        assert_eq!(lineage.led(&line, Lsn(MIB)).end, Lsn(8 * MIB));
    }
    // Left in a later segment, it has to have its own.
    let lineage = after(&[
        named(2, &[(1, 25)]),
        named(3, &[(1, 25), (2, 29)]),
        whole(3, 7),
    ]);
    assert_eq!(lineage.newest(), Some(timeline(1)));
    // One that tells another past vouches for nothing.
    let lineage = after(&[
        named(2, &[(1, 25)]),
        named(3, &[(1, 24), (2, 26)]),
        whole(3, 6),
    ]);
    assert_eq!(lineage.newest(), Some(timeline(1)));
}

#[test]
fn fault_303_a_damaged_end_is_no_place_to_leave_a_timeline_at() {
    for is_damaged in [false, true] {
        let mut facts = facts(&[(1, 5), (2, 6)], &[]);
        let end = Lsn(25 * STEP);
        let progress = SegmentProgress {
            end,
            is_whole: true,
            is_damaged,
        };
        facts.partials.insert(segment((1, 6)), Some(progress));
        let mut lineage = Lineage::of(facts);
        let history = history(2, &[(1, 25)]);
        let unknown = |_| Ok::<_, std::convert::Infallible>(None);
        lineage.learn_unended(Some(&history), unknown).unwrap();
        let judged = lineage.judge_history(&history);
        assert_eq!(judged.is_some(), is_damaged, "{judged:?}");
    }
}

#[test]
fn fault_110_a_connected_forgery_gives_way_to_the_parent_that_goes_on() {
    let forged = [named(2, &[(1, 24)]), whole(2, 6), whole(2, 7)];
    let lineage = after(&forged);
    assert_eq!(lineage.newest(), Some(timeline(2)));
    assert_eq!(lineage.fencing(timeline(1)), None);
    // The parent goes on. As long as it leads less far it waits.
    let mut lineage = lineage;
    for number in [6, 7] {
        lineage = arrive(lineage, whole(1, number).0, None);
        assert_eq!(lineage.newest(), Some(timeline(2)));
        let contested = lineage.contested();
        assert_eq!(
            (contested[0].parent, contested[0].end),
            (timeline(1), Lsn((number + 1) * MIB))
        );
    }
    let both = lineage.clone();
    let lineage = arrive(lineage, whole(1, 8).0, None);
    let line = lineage.line_from(timeline(1), Lsn(MIB)).unwrap();
    assert_eq!(lineage.led(&line, Lsn(MIB)).end, Lsn(9 * MIB));
    let history = WalFileName::History(timeline(2));
    assert_eq!(
        lineage.facts().notes.get(&history),
        Some(&ApartKind::History)
    );
    assert_eq!(lineage.facts().notes.len(), 3);
    // More forged WAL does not bring it back.
    let lineage = (8..14).fold(lineage, |lineage, number| {
        arrive(lineage, whole(2, number).0, None)
    });
    assert_eq!(lineage.newest(), Some(timeline(1)));
    // A person may decide earlier, either way.
    let chosen = settled(both.clone().without_note(whole(1, 6).0));
    assert_eq!(chosen.newest(), Some(timeline(1)));
    let mut facts = both.facts.clone();
    facts.claimed.clear();
    let lineage = arrive(Lineage::of(facts), whole(1, 8).0, None);
    assert_eq!(lineage.newest(), Some(timeline(2)));
    assert_eq!(lineage.fencing(timeline(1)), Some(timeline(2)));
}

#[test]
fn fault_110_records_in_progress_outgrow_a_forgery_as_segments_do() {
    let lineage = after(&[named(2, &[(1, 24)]), whole(2, 6)]);
    let with = |end: u64| {
        let mut facts = lineage.facts.clone();
        let (end, is_whole) = (Lsn(end), false);
        let progress = Some(SegmentProgress {
            end,
            is_whole,
            is_damaged: false,
        });
        facts.partials.insert(
            segment((1, 6)),
            Some(SegmentProgress {
                end: Lsn(7 * MIB),
                is_whole: true,
                is_damaged: false,
            }),
        );
        facts.partials.insert(segment((1, 7)), progress);
        settled(Lineage::of(facts)).newest()
    };
    assert_eq!(with(7 * MIB), Some(timeline(2)));
    assert_eq!(with(7 * MIB + 8), Some(timeline(1)));
}

#[test]
fn fault_110_what_a_boot_opened_stands_and_so_does_what_it_came_from() {
    // A failover elsewhere, and then a boot on this host, whose history no key brought.
    let mut facts = after(&[named(2, &[(1, 24)]), whole(2, 6)]).facts;
    let (booted, history) = named(3, &[(1, 24), (2, 28)]);
    facts.histories.insert(booted.timeline(), history.unwrap());
    let mut lineage = Lineage::of(facts);
    assert_eq!(lineage.fencing(timeline(1)), Some(timeline(3)));
    for number in 6..12 {
        lineage = arrive(lineage, whole(1, number).0, None);
        assert_eq!(lineage.newest(), Some(timeline(3)));
    }
}

#[test]
fn fault_113_a_segment_far_ahead_shows_no_gap_until_its_run_leads_to_it() {
    let lineage = after(&[whole(1, 30), whole(7, 3), whole(7, 6)]);
    let line = lineage.line_from(timeline(1), Lsn(MIB)).unwrap();
    assert_eq!(lineage.gap(&line, Lsn(MIB)), None);
    assert_eq!(lineage.missing(segment((1, 6))).unwrap(), Missing::Nothing);
    let mut lineage = lineage;
    for number in 6..29 {
        lineage = arrive(lineage, whole(1, number).0, None);
        let line = lineage.line_from(timeline(1), Lsn(MIB)).unwrap();
        assert_eq!(lineage.gap(&line, Lsn(MIB)), None);
    }
    lineage = arrive(lineage, whole(1, 29).0, None);
    let line = lineage.line_from(timeline(1), Lsn(MIB)).unwrap();
    assert_eq!(lineage.led(&line, Lsn(MIB)).end, Lsn(31 * MIB));
    // One that the archive may expect is a gap, as it always was.
    let lineage = after(&[whole(1, 8)]);
    let later = Missing::Later(segment((1, 8)));
    assert_eq!(lineage.missing(segment((1, 6))).unwrap(), later);
}

#[test]
fn fault_113_wal_older_than_the_archive_does_not_move_its_beginning() {
    let segments = [(5, 8), (5, 9)];
    let lineage = Lineage::of(facts(&segments, &[history(5, &[(4, 20)])]));
    let lineage = arrive(lineage, whole(1, 2).0, None);
    assert_eq!(lineage.newest(), Some(timeline(5)));
    // A history that contradicts the WAL that is there is not handed to anybody either.
    let lineage = Lineage::of(facts(&segments, &[]));
    let (name, forged) = named(5, &[(4, 4 * 100)]);
    let lineage = arrive(lineage, name, forged.as_ref());
    assert_eq!(lineage.newest(), Some(timeline(5)));
    assert_eq!(lineage.asked(timeline(5), false), HistoryAnswer::Nothing);
    let line = lineage.line_to(timeline(5));
    assert_eq!(lineage.led(&line, Lsn(8 * MIB)).end, Lsn(10 * MIB));
}

/// Timeline 2 left 1 where that ends, and is followed up to 6 MiB.
fn failed_over(is_settled: bool) -> Lineage {
    let mut lineage = Lineage::of(facts(&[], &[]));
    for number in 0..4 {
        lineage = arrive(lineage, whole(1, number).0, None);
    }
    let second = history(2, &[(1, 16)]);
    lineage = arrive(lineage, WalFileName::History(timeline(2)), Some(&second));
    for number in 4..6 {
        lineage = arrive(lineage, whole(2, number).0, None);
    }
    if is_settled {
        lineage.facts.claimed.clear();
    }
    Lineage::of(lineage.facts)
}

/// A history of timeline 3 with its first segments.
fn third(
    mut lineage: Lineage,
    ancestors: &[(u32, u64)],
    segments: std::ops::Range<u64>,
) -> Lineage {
    let third = history(3, ancestors);
    lineage = arrive(lineage, WalFileName::History(timeline(3)), Some(&third));
    for number in segments {
        lineage = arrive(lineage, whole(3, number).0, None);
    }
    lineage
}

fn led_from_the_first(lineage: &Lineage) -> (TimelineId, Lsn) {
    let line = lineage.line_from(timeline(1), Lsn(MIB)).unwrap();
    (
        lineage.newest_for(timeline(1)).unwrap(),
        lineage.led(&line, Lsn(MIB)).end,
    )
}

#[test]
fn fault_110_a_timeline_shorter_than_its_sibling_is_not_followed() {
    for is_settled in [false, true] {
        let lineage = third(failed_over(is_settled), &[(1, 16)], 4..5);
        assert_eq!(led_from_the_first(&lineage), (timeline(2), Lsn(6 * MIB)));
        // It is there for a person to choose.
        assert!(lineage.facts().histories.contains_key(&timeline(3)));
    }
}

#[test]
fn fault_110_of_two_claims_from_one_point_the_longer_is_followed() {
    let mut lineage = third(failed_over(false), &[(1, 16)], 4..7);
    assert_eq!(led_from_the_first(&lineage), (timeline(3), Lsn(7 * MIB)));
    assert_eq!(lineage.contested()[0].followed, timeline(2));
    lineage = arrive(lineage, whole(2, 6).0, None);
    lineage = arrive(lineage, whole(2, 7).0, None);
    assert_eq!(led_from_the_first(&lineage), (timeline(2), Lsn(8 * MIB)));
}

#[test]
fn fault_110_no_claim_takes_readers_off_what_was_opened_here() {
    let lineage = third(failed_over(true), &[(1, 16)], 4..12);
    assert_eq!(led_from_the_first(&lineage), (timeline(2), Lsn(6 * MIB)));
    // What comes from that one is no rival of it.
    let lineage = third(failed_over(true), &[(1, 16), (2, 24)], 6..7);
    assert_eq!(led_from_the_first(&lineage), (timeline(3), Lsn(7 * MIB)));
}
