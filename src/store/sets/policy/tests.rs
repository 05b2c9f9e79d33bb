//! The policy against a model that knows only the promises: 10,000 random histories under random policies.
//! Never looks at how the policy comes to what it decides. Invariant: a seed that fails is printed.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

const HOUR_MS: i64 = 3_600_000;

/// The first moment of every history: 2026-01-01.
const BEGIN_MS: i64 = 1_767_225_600_000;

const HISTORIES: u64 = 10_000;

fn set(name: BackupName, sealed_ms: i64, quality: SetQuality) -> RetainedSet {
    let sealed = jiff::Timestamp::from_millisecond(sealed_ms).unwrap();
    RetainedSet {
        name,
        sealed_ms,
        day: sealed.to_zoned(jiff::tz::TimeZone::UTC).date(),
        quality,
        leads_on: true,
        pin: None,
        is_read: false,
        first: None,
        last: None,
    }
}

fn named(place: usize) -> BackupName {
    let newest = BackupName::newest("data.master").unwrap();
    match u32::try_from(place).unwrap() {
        0 => newest,
        place => newest.numbered(place - 1).unwrap(),
    }
}

/// Which of these go, by their place; each is its age in hours and its quality.
fn gone(sets: u32, hours: &[(i64, SetQuality)]) -> Vec<usize> {
    let keeping = Keeping {
        sets,
        minimum_age: Duration::from_secs(24 * 3_600),
        ..Keeping::default()
    };
    let listed = hours.iter().enumerate();
    let listed =
        listed.map(|(at, (age, quality))| set(named(at), BEGIN_MS - age * HOUR_MS, *quality));
    let decided = decide(&listed.collect::<Vec<_>>(), keeping, BEGIN_MS);
    (0..hours.len()).filter(|at| decided[*at].goes()).collect()
}

#[test]
fn fault_111_a_young_set_neither_goes_nor_makes_one_go() {
    let good = |hours: &[i64]| -> Vec<(i64, SetQuality)> {
        hours.iter().map(|age| (*age, SetQuality::Good)).collect()
    };
    assert_eq!(gone(2, &good(&[1, 23, 25, 49, 73])), [4]);
    assert_eq!(gone(2, &good(&[0, 0, 0, 0, 0, 25, 49])), [0; 0]);
    assert_eq!(gone(1, &good(&[25, 26, 27])), [1, 2]);
    // A clock that stands behind makes every set young.
    assert_eq!(gone(1, &good(&[-1, -25, -49])), [0; 0]);
}

#[test]
fn fault_121_a_set_goes_only_for_newer_ones_as_good_as_it_is() {
    let (good, lesser, broken) = (SetQuality::Good, SetQuality::Lesser, SetQuality::Damaged);
    let old = |qualities: &[SetQuality]| -> Vec<(i64, SetQuality)> {
        qualities.iter().map(|quality| (99, *quality)).collect()
    };
    assert_eq!(gone(1, &old(&[lesser, good])), [0; 0]);
    assert_eq!(gone(1, &old(&[lesser, lesser, good])), [1]);
    assert_eq!(gone(1, &old(&[good, lesser, good])), [1, 2]);
    assert_eq!(gone(1, &old(&[broken, broken, good])), [0; 0]);
    assert_eq!(gone(2, &old(&[lesser, lesser, good, good, good])), [4]);
}

/// A day apart from each other, the newest first, each under its own name.
fn daily(days: i64) -> Vec<RetainedSet> {
    let one = |day: i64| {
        let made = set(
            named(usize::try_from(day).unwrap()),
            BEGIN_MS - day * DAY_MS,
            SetQuality::Good,
        );
        let first = u64::try_from(10_000 - day * 10).unwrap();
        RetainedSet {
            first: Some(SegmentPlace(first)),
            last: Some(SegmentPlace(first + 1)),
            ..made
        }
    };
    (0..days).map(one).collect()
}

fn kept(sets: &[RetainedSet], keeping: Keeping) -> Vec<usize> {
    let decided = decide(sets, keeping, BEGIN_MS);
    (0..sets.len()).filter(|at| !decided[*at].goes()).collect()
}

#[test]
fn days_keep_the_set_that_the_window_begins_behind() {
    let sets = daily(20);
    let keeping = Keeping {
        days: 7,
        ..Keeping::default()
    };
    assert_eq!(kept(&sets, keeping), (0..=7).collect::<Vec<_>>());
    let decided = decide(&sets, keeping, BEGIN_MS);
    assert_eq!(decided[7].keeps, [KeepReason::BeginsWindow(7)]);
    assert_eq!(decided[8].why(), "not needed for keep_days = 7");
    // The newest from before leads nowhere: the one before that does.
    let mut torn = sets.clone();
    torn[7].leads_on = false;
    assert!(kept(&torn, keeping).contains(&8));
    // Nothing says what goes.
    assert_eq!(kept(&sets, Keeping::default()).len(), 20);
    let weekly = Keeping {
        weekly: 1,
        ..Keeping::default()
    };
    assert_eq!(kept(&sets, weekly).len(), 20);
}

/// These sets, where all but the `newest` newest were sealed `days` days earlier.
fn paused(mut sets: Vec<RetainedSet>, newest: usize, days: i64) -> Vec<RetainedSet> {
    for set in &mut sets[newest..] {
        set.sealed_ms -= days * DAY_MS;
    }
    sets
}

#[test]
fn fault_245_a_clock_that_jumps_ahead_makes_no_set_go_for_keep_days() {
    let keeping = Keeping {
        days: 7,
        minimum_age: Duration::from_secs(24 * 3_600),
        ..Keeping::default()
    };
    let all: Vec<usize> = (0..=8).collect();
    // No set was made since it jumped; then one, and one a day.
    assert_eq!(kept(&paused(daily(20), 0, 3_650), keeping), all[..8]);
    for newest in 1..8 {
        let sets = paused(daily(20), newest, 3_650);
        assert_eq!(kept(&sets, keeping), all, "{newest}");
        let why = decide(&sets, keeping, BEGIN_MS)[newest].why();
        assert!(why.contains("without the 3651 days in which"), "{why}");
    }
    // So many days have passed since by any clock.
    assert_eq!(kept(&paused(daily(20), 8, 3_650), keeping), all[..8]);
    let sets = paused(daily(20), 8, 3_650);
    assert_eq!(
        decide(&sets, keeping, BEGIN_MS)[7].why(),
        "the days of keep_days = 7 begin behind it"
    );
    // A month is no pause: whoever makes a set a month has none pile up.
    let monthly: Vec<RetainedSet> = (daily(300).into_iter().step_by(31)).collect();
    assert_eq!(kept(&monthly, keeping), [0, 1]);
    // Nor does every quarter of a year count.
    let quarterly: Vec<RetainedSet> = (daily(900).into_iter().step_by(91)).collect();
    assert_eq!(kept(&quarterly, keeping), [0, 1, 2]);
}

#[test]
fn fault_245_a_set_from_the_future_says_so_and_makes_none_go() {
    let keeping = Keeping {
        days: 3,
        minimum_age: Duration::from_secs(24 * 3_600),
        ..Keeping::default()
    };
    let mut sets = daily(10);
    sets[0].sealed_ms += 3_650 * DAY_MS;
    let decided = decide(&sets, keeping, BEGIN_MS);
    assert_eq!(decided[0].keeps[0], KeepReason::Future);
    assert_eq!(kept(&sets, keeping), [0, 1, 2, 3]);
}

#[test]
fn weeks_and_months_keep_their_first_set_without_a_way_forward() {
    // 2026-01-01 is a Thursday: weeks begin 3, 10 and 17 days before; months 0 and 31 days before.
    let sets = daily(70);
    let keeping = Keeping {
        days: 2,
        weekly: 3,
        monthly: 2,
        ..Keeping::default()
    };
    assert_eq!(kept(&sets, keeping), [0, 1, 2, 3, 10, 17, 31]);
    let decided = decide(&sets, keeping, BEGIN_MS);
    assert_eq!(
        decided[10].why(),
        "the first of its week, no way forward from its end"
    );
    let stay: Vec<RetainedSet> = (sets.iter().zip(&decided))
        .filter(|(_, decision)| !decision.goes())
        .map(|(set, _)| set.clone())
        .collect();
    let needs = WalNeeds::of(&stay, &decide(&stay, keeping, BEGIN_MS)).unwrap();
    let by = |place| needs.by(SegmentPlace(place));
    assert_eq!(by(9_900), Some("data.master.9"));
    assert_eq!(by(9_901), Some("data.master.9"));
    assert_eq!((by(9_902), by(9_969), by(9_899)), (None, None, None));
    assert_eq!(by(9_980), Some("data.master.1"));
    assert!(by(10_500).is_some());
}

#[test]
fn what_goes_next_is_found_by_looking_ahead() {
    let sets = daily(3);
    let keeping = Keeping {
        sets: 3,
        minimum_age: Duration::from_secs(24 * 3_600),
        ..Keeping::default()
    };
    let next = next_to_go(&sets, keeping, BEGIN_MS);
    // The newest is young today, and so is the next one tomorrow.
    assert_eq!(next, Some((named(2), 2)));
    assert_eq!(next_to_go(&sets, Keeping::default(), BEGIN_MS), None);
    let pinned: Vec<RetainedSet> = sets
        .into_iter()
        .map(|set| RetainedSet {
            pin: Some(PinnedWal::All),
            ..set
        })
        .collect();
    assert_eq!(next_to_go(&pinned, keeping, BEGIN_MS), None);
}

/// Numbers that follow from a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % end
    }

    fn policy(&mut self) -> Keeping {
        let mut some = |end| match self.below(3) {
            0 => 0,
            _ => u32::try_from(self.below(end)).unwrap(),
        };
        Keeping {
            sets: some(6),
            days: some(15),
            weekly: some(5),
            monthly: some(4),
            minimum_age: Duration::from_secs(3_600 * u64::from(some(72))),
        }
    }
}

/// A standby's archive, as far as the policy matters.
struct ModelArchive {
    dice: Dice,
    keeping: Keeping,
    /// By this host's clock, which jumps now and then.
    now_ms: i64,
    /// The newest first.
    sets: Vec<RetainedSet>,
    /// When each segment was stored.
    wal: BTreeMap<u64, i64>,
    next_segment: u64,
    names: u32,
}

impl ModelArchive {
    fn new(seed: u64) -> ModelArchive {
        let mut dice = Dice(seed);
        ModelArchive {
            keeping: dice.policy(),
            dice,
            now_ms: BEGIN_MS,
            sets: Vec::new(),
            wal: BTreeMap::new(),
            next_segment: 1,
            names: 0,
        }
    }

    fn store_wal(&mut self, count: u64) {
        for _ in 0..count {
            self.wal.insert(self.next_segment, self.now_ms);
            self.next_segment += 1;
        }
    }

    fn back_up(&mut self) {
        let quality = match self.dice.below(8) {
            0 => SetQuality::Lesser,
            _ => SetQuality::Good,
        };
        let first = self.next_segment;
        let count = 1 + self.dice.below(3);
        self.store_wal(count);
        let name = named(usize::try_from(self.names).unwrap());
        self.names += 1;
        let made = RetainedSet {
            first: Some(SegmentPlace(first)),
            last: (self.dice.below(10) > 0).then(|| SegmentPlace(self.next_segment - 1)),
            ..set(name, self.now_ms, quality)
        };
        self.sets.insert(0, made);
    }

    fn any_set(&mut self) -> Option<usize> {
        let count = u64::try_from(self.sets.len()).unwrap();
        (count > 0).then(|| usize::try_from(self.dice.below(count)).unwrap())
    }

    /// Something happens.
    fn step(&mut self) {
        match self.dice.below(24) {
            0..8 => self.back_up(),
            // A stolen key makes many.
            8 => (0..8).for_each(|_| self.back_up()),
            9..17 => {
                self.now_ms += i64::try_from(self.dice.below(80)).unwrap() * HOUR_MS;
                let count = self.dice.below(6);
                self.store_wal(count);
            }
            17 => self.now_ms += i64::try_from(self.dice.below(2_000)).unwrap() * HOUR_MS,
            18 => self.now_ms -= i64::try_from(self.dice.below(400)).unwrap() * HOUR_MS,
            19 => {
                let lost = 1 + self.dice.below(self.next_segment);
                self.wal.remove(&lost);
            }
            20 | 21 => {
                if let Some(at) = self.any_set() {
                    self.sets[at].pin = match self.dice.below(3) {
                        0 => None,
                        1 => Some(PinnedWal::All),
                        _ => Some(PinnedWal::ToItsEnd),
                    };
                }
            }
            22 => {
                if let Some(at) = self.any_set() {
                    self.sets[at].is_read = !self.sets[at].is_read;
                }
            }
            _ => {
                if let Some(at) = self.any_set() {
                    self.sets[at].quality = SetQuality::Damaged;
                }
            }
        }
        for at in 0..self.sets.len() {
            self.sets[at].leads_on = self.has_all(first(&self.sets[at]), self.next_segment);
        }
    }

    fn has_all(&self, first: u64, end: u64) -> bool {
        let there = self.wal.range(first..end).count();
        u64::try_from(there).unwrap() == end - first
    }

    /// What goes, of both.
    fn expire(&mut self) -> Vec<SetDecision> {
        let decided = decide(&self.sets, self.keeping, self.now_ms);
        let mut goes = decided.iter().map(SetDecision::goes);
        self.sets.retain(|_| !goes.next().unwrap());
        let staying: Vec<SetDecision> = decided.into_iter().filter(|it| !it.goes()).collect();
        let needs = WalNeeds::of(&self.sets, &staying).unwrap();
        if !needs.is_empty() {
            let (keeping, now_ms) = (self.keeping, self.now_ms);
            let superfluous = self
                .wal
                .iter()
                .filter(|(place, _)| needs.by(SegmentPlace(**place)).is_none());
            let superfluous =
                superfluous.take_while(|(_, stored)| keeping.is_old(**stored, now_ms));
            for place in superfluous.map(|(place, _)| *place).collect::<Vec<_>>() {
                self.wal.remove(&place);
            }
        }
        staying
    }

    fn is_old(&self, since_ms: i64) -> bool {
        let minimum_ms = i64::try_from(self.keeping.minimum_age.as_millis()).unwrap();
        minimum_ms == 0 || self.now_ms - since_ms >= minimum_ms
    }
}

fn first(set: &RetainedSet) -> u64 {
    set.first.unwrap().0
}

/// Whether a set counts: it is old enough, and somebody may recover from it.
fn counts(archive: &ModelArchive, set: &RetainedSet) -> bool {
    archive.is_old(set.sealed_ms) && set.quality != SetQuality::Damaged
}

/// The first good set of each period, the last periods first.
fn firsts<P: Ord>(
    archive: &ModelArchive,
    sets: &[RetainedSet],
    period: impl Fn(Date) -> P,
) -> Vec<BackupName> {
    let good = sets
        .iter()
        .filter(|set| counts(archive, set) && set.quality == SetQuality::Good);
    let mut found: BTreeMap<P, BackupName> = BTreeMap::new();
    for set in good.rev() {
        found
            .entry(period(set.day))
            .or_insert_with(|| set.name.clone());
    }
    found.into_values().rev().collect()
}

/// The sets that are gone now.
fn check_sets(before: &[RetainedSet], after: &ModelArchive) {
    let stays: BTreeSet<&BackupName> = after.sets.iter().map(|set| &set.name).collect();
    let keeping = after.keeping;
    for (at, set) in before.iter().enumerate() {
        if stays.contains(&set.name) {
            continue;
        }
        assert!(!keeping.keeps_all());
        assert!(after.is_old(set.sealed_ms), "a young set went");
        assert!(
            set.pin.is_none() && !set.is_read,
            "a set that is wanted went"
        );
        assert_ne!(set.quality, SetQuality::Damaged);
        let as_good = |newer: &&RetainedSet| counts(after, newer) && newer.quality <= set.quality;
        let newer = before[..at].iter().filter(as_good).count();
        assert!(
            newer >= usize::try_from(keeping.sets).unwrap(),
            "fewer than keep_backups"
        );
        if keeping.days > 0 {
            let begin_ms = after.now_ms - i64::from(keeping.days) * DAY_MS;
            assert!(set.sealed_ms <= begin_ms, "a set of the window went");
        }
    }
    let week = |day: Date| (day.iso_week_date().year(), day.iso_week_date().week());
    let of_weeks = firsts(after, before, week);
    let of_months = firsts(after, before, |day| (day.year(), day.month()));
    for (most, firsts) in [(keeping.weekly, of_weeks), (keeping.monthly, of_months)] {
        for name in firsts.iter().take(usize::try_from(most).unwrap()) {
            assert!(stays.contains(name), "the first of a week or a month went");
        }
    }
}

/// What could be reached still can be, as far as it is promised.
fn check_reach(before: &[RetainedSet], after: &ModelArchive) {
    let leads = |set: &&RetainedSet| {
        set.quality != SetQuality::Damaged && after.has_all(first(set), after.next_segment)
    };
    let led = |set: &&RetainedSet| set.quality != SetQuality::Damaged && set.leads_on;
    // Whoever is sealed before a moment and leads on reaches it.
    let (had, has) = (
        before.iter().filter(led).map(|set| set.sealed_ms).min(),
        after
            .sets
            .iter()
            .filter(leads)
            .map(|set| set.sealed_ms)
            .min(),
    );
    if after.keeping.days > 0
        && let Some(had) = had
    {
        let begin_ms = after.now_ms - i64::from(after.keeping.days) * DAY_MS;
        assert!(
            has.is_some_and(|has| has <= had.max(begin_ms)),
            "an instant of keep_days is lost"
        );
    }
    let old = |set: &&RetainedSet| after.is_old(set.sealed_ms);
    if before.iter().filter(led).any(|set| old(&set)) {
        assert!(
            after.sets.iter().filter(leads).any(|set| old(&set)),
            "no set restores to the end"
        );
    }
    let good = |set: &RetainedSet| set.quality == SetQuality::Good && after.is_old(set.sealed_ms);
    assert_eq!(
        before.iter().any(good),
        after.sets.iter().any(good),
        "the last good set went"
    );
}

/// WAL is kept exactly where some kept point needs it.
fn check_wal(before: &BTreeMap<u64, i64>, after: &ModelArchive, staying: &[SetDecision]) {
    for set in &after.sets {
        let last = set.last.map_or(after.next_segment, |last| last.0 + 1);
        let had = before.range(first(set)..last).count();
        assert_eq!(
            after.wal.range(first(set)..last).count(),
            had,
            "a set that stays lost WAL"
        );
    }
    let needs = |place: u64| {
        let sets = after.sets.iter().zip(staying);
        let mut whom = sets.filter(|(set, decision)| {
            let ends = set.last.filter(|_| !decision.has_way_forward);
            first(set) <= place && ends.is_none_or(|last| place <= last.0)
        });
        whom.next().is_some()
    };
    let mut young = false;
    for (place, stored) in before {
        let stays = after.wal.contains_key(place);
        assert!(stays || after.is_old(*stored), "young WAL went");
        assert!(stays || !needs(*place), "WAL that is needed went");
        young |= !needs(*place) && !after.is_old(*stored);
        assert!(
            !stays || after.sets.is_empty() || young || needs(*place),
            "WAL stays for nobody"
        );
    }
}

/// When the days begin, a pause of more than 45 of them not counted: day by day, from now on back.
fn begin_without_pause(after: &ModelArchive, sets: &[RetainedSet]) -> i64 {
    let mut sealed: Vec<i64> = sets.iter().map(|set| set.sealed_ms).collect();
    sealed.retain(|sealed_ms| *sealed_ms <= after.now_ms);
    sealed.sort_unstable_by(|one, other| other.cmp(one));
    let (mut from_ms, mut left_ms) = (after.now_ms, i64::from(after.keeping.days) * DAY_MS);
    let mut was_pause = false;
    for sealed_ms in sealed {
        let step_ms = from_ms - sealed_ms;
        if step_ms > 45 * DAY_MS && !was_pause {
            was_pause = true;
        } else if step_ms >= left_ms {
            break;
        } else {
            left_ms -= step_ms;
        }
        from_ms = sealed_ms;
    }
    from_ms - left_ms
}

/// Why all WAL from a set on stays has to be one of the promises.
fn check_way_forward(before: &[RetainedSet], after: &ModelArchive, staying: &[SetDecision]) {
    let keeping = after.keeping;
    let begin_ms = begin_without_pause(after, before);
    for (at, (set, decision)) in after.sets.iter().zip(staying).enumerate() {
        let wanted = keeping.keeps_all()
            || set.pin == Some(PinnedWal::All)
            || set.is_read
            || set.last.is_none()
            || !counts(after, set);
        if wanted || !decision.has_way_forward {
            continue;
        }
        let newer = || after.sets[..at].iter().filter(|newer| counts(after, newer));
        let better =
            |newer: &&RetainedSet| newer.quality <= set.quality && newer.leads_on >= set.leads_on;
        let counted = newer().filter(|newer| newer.quality <= set.quality).count();
        assert!(
            counted < usize::try_from(keeping.sets).unwrap()
                || (keeping.days > 0 && set.sealed_ms > begin_ms)
                || !newer()
                    .filter(better)
                    .any(|newer| newer.sealed_ms <= begin_ms || keeping.days == 0),
            "all WAL stays for {} without need: {}",
            set.name,
            decision.why()
        );
    }
}

#[test]
fn fault_210_ten_thousand_histories_keep_what_is_promised() {
    let counts: Vec<u64> = match std::env::var("WALMGR_POLICY_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..HISTORIES).collect(),
    };
    let (mut went, mut holes) = (0, 0);
    for seed in counts {
        let history = std::panic::catch_unwind(|| {
            let mut archive = ModelArchive::new(seed);
            let (mut went, mut holes) = (0, 0);
            for _ in 0..24 {
                archive.step();
                let (sets, wal) = (archive.sets.clone(), archive.wal.clone());
                let staying = archive.expire();
                check_sets(&sets, &archive);
                check_reach(&sets, &archive);
                check_wal(&wal, &archive, &staying);
                check_way_forward(&sets, &archive, &staying);
                let again = decide(&archive.sets, archive.keeping, archive.now_ms);
                assert!(
                    again.iter().all(|set| !set.goes()),
                    "a second look gives more up"
                );
                went += sets.len() - archive.sets.len();
                holes += staying.iter().filter(|set| !set.has_way_forward).count();
            }
            (went, holes)
        });
        match history {
            Ok((sets, ends)) => (went, holes) = (went + sets, holes + ends),
            Err(_) => panic!("seed {seed}: type WALMGR_POLICY_SEED={seed} before the test"),
        }
    }
    // Otherwise the histories prove nothing.
    assert!(
        went > 100 || std::env::var("WALMGR_POLICY_SEED").is_ok(),
        "{went} {holes}"
    );
}
