//! What a standby keeps: the one place that decides which sets and which WAL stay or go, and why.
//! Never looks at a disk or a clock: facts come in, reasons come out. Invariant: of the sets that are old enough
//! the best one that restores to the end stays, and all WAL from it on.
//!
//! | a set stays, with all WAL from it on, if | a set stays, with the WAL that makes it consistent, if |
//! |---|---|
//! | nothing says what goes: `keep_backups` and `keep_days` are 0 | somebody pinned it (`keep`) |
//! | it is damaged, so that a person can look at it | it is the first of one of the last `keep_weekly` weeks |
//! | it is younger than `keep_minimum_age`; then it makes no other go | it is the first of one of the last `keep_monthly` months |
//! | `keep_backups` counts it | |
//! | `keep_days` began after it was sealed, or it is the newest from before | |
//! | it is the last that restores to the end, or the last good one | |
//! | somebody reads it | |
//!
//! Times are those at which this host sealed the sets: a master's clock says nothing here. The order is that of their
//! names, which is that of the WAL, so a clock that jumps changes no order. A set from the future is young. A time of
//! weeks in which no set was sealed does not count for `keep_days`: a clock that jumps ahead looks just like it, and the days
//! begin to pass once sets are made again.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use jiff::civil::Date;
use walmgr_protocol::names::BackupName;

use crate::config::StandbyConfig;

#[cfg(test)]
mod tests;

const DAY_MS: i64 = 86_400_000;

/// A longer pause between two sets is no schedule, not even a monthly one. Backups had stopped, or the clock had jumped
/// ahead.
const PAUSE_MS: i64 = 45 * DAY_MS;

/// How many days the search for the set that goes next looks ahead.
const NEXT_DAYS_MAX: u32 = 62;

/// With more sets than this the search is left out: nobody waits for the next one to go.
const NEXT_SETS_MAX: usize = 512;

/// What the settings say of which sets stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Keeping {
    /// `keep_backups`: how many; 0 for no such rule.
    pub sets: u32,
    /// `keep_days`: every instant of so many days stays reachable; 0 for no such rule.
    pub days: u32,
    /// `keep_weekly`: of how many weeks the first set stays.
    pub weekly: u32,
    /// `keep_monthly`: of how many months the first set stays.
    pub monthly: u32,
    /// `keep_minimum_age`: a younger set neither goes nor counts, so that sets that are made one right after
    /// the other make no older set go.
    pub minimum_age: Duration,
}

impl Keeping {
    /// As a cluster's file says.
    pub(crate) const fn of(config: &StandbyConfig) -> Keeping {
        Keeping {
            sets: config.keep_backups,
            days: config.keep_days,
            weekly: config.keep_weekly,
            monthly: config.keep_monthly,
            minimum_age: config.keep_minimum_age,
        }
    }

    /// These rules without a minimum age, for a person who says on this host what goes.
    pub(crate) const fn at_any_age(self) -> Keeping {
        Keeping {
            minimum_age: Duration::ZERO,
            ..self
        }
    }

    /// Whether nothing says what goes.
    pub(crate) const fn keeps_all(self) -> bool {
        self.sets == 0 && self.days == 0
    }

    /// Whether this moment is that long ago. A clock that stands behind makes nothing old.
    pub(crate) fn is_old(self, since_ms: i64, now_ms: i64) -> bool {
        let minimum_ms = i64::try_from(self.minimum_age.as_millis()).unwrap_or(i64::MAX);
        self.minimum_age.is_zero() || now_ms.saturating_sub(since_ms) >= minimum_ms
    }
}

impl fmt::Display for Keeping {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rules = [
            ("keep_backups", self.sets),
            ("keep_days", self.days),
            ("keep_weekly", self.weekly),
            ("keep_monthly", self.monthly),
        ];
        let set = rules
            .iter()
            .filter(|(_, number)| *number > 0 && !self.keeps_all());
        let set: Vec<String> = set
            .map(|(name, number)| format!("{name} = {number}"))
            .collect();
        out.write_str(&set.join(", "))
    }
}

/// How good a set is: the better one comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SetQuality {
    /// It may take the place of an older one.
    Good,
    /// With damaged pages, or without something that was there: it never makes a good one go.
    Lesser,
    /// Nobody may recover from it; it stays for a person.
    Damaged,
}

/// What is asked of the WAL for a set that somebody pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PinnedWal {
    /// What makes it consistent.
    ToItsEnd,
    /// All from it on.
    All,
}

/// Where a segment stands in the WAL, whatever its timeline: the log and the segment of its name. An LSN only grows
/// along a cluster's history, also where it changes timelines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SegmentPlace(pub u64);

/// What is known of a set.
#[derive(Debug, Clone)]
pub(crate) struct RetainedSet {
    pub name: BackupName,
    /// When this host sealed it, in milliseconds since 1970.
    pub sealed_ms: i64,
    /// The day on which its label was written, on this host's calendar.
    pub day: Date,
    pub quality: SetQuality,
    /// Whether the WAL leads from it to the newest record without a gap.
    pub leads_on: bool,
    pub pin: Option<PinnedWal>,
    /// Whether somebody reads it.
    pub is_read: bool,
    /// The first segment that a recovery of it reads; nothing where that is unknown.
    pub first: Option<SegmentPlace>,
    /// The last that it reads until it is consistent; nothing where that is unknown.
    pub last: Option<SegmentPlace>,
}

/// Why a set stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeepReason {
    NoRule,
    Damaged,
    Young,
    Future,
    Counted(u32),
    InWindow(u32),
    /// It is in the window, as a pause of so many days does not count.
    BeforePause {
        window_days: u32,
        pause_days: i64,
    },
    BeginsWindow(u32),
    LastToTheEnd,
    LastGood,
    IsRead,
    Pinned(PinnedWal),
    FirstOfWeek,
    FirstOfMonth,
}

impl KeepReason {
    /// Whether all WAL from the set on stays for this reason.
    const fn needs_way_forward(self) -> bool {
        !matches!(
            self,
            KeepReason::Pinned(PinnedWal::ToItsEnd)
                | KeepReason::FirstOfWeek
                | KeepReason::FirstOfMonth
        )
    }
}

impl fmt::Display for KeepReason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeepReason::NoRule => out.write_str("neither keep_backups nor keep_days is set"),
            KeepReason::Damaged => out.write_str("damaged, for a person to look at"),
            KeepReason::Young => out.write_str("younger than keep_minimum_age"),
            KeepReason::Future => {
                out.write_str("sealed in the future: this host's clock was ahead, or is behind")
            }
            KeepReason::Counted(sets) => write!(out, "keep_backups = {sets}"),
            KeepReason::InWindow(days) => write!(out, "keep_days = {days}"),
            KeepReason::BeforePause {
                window_days,
                pause_days,
            } => write!(
                out,
                "keep_days = {window_days}, without the {pause_days} days in which no set was made: backups had stopped, or \
                this host's clock jumped ahead"
            ),
            KeepReason::BeginsWindow(days) => {
                write!(out, "the days of keep_days = {days} begin behind it")
            }
            KeepReason::LastToTheEnd => out.write_str("the last that restores to the end"),
            KeepReason::LastGood => out.write_str("the last good one"),
            KeepReason::IsRead => out.write_str("somebody reads it"),
            KeepReason::Pinned(PinnedWal::ToItsEnd) => out.write_str("pinned"),
            KeepReason::Pinned(PinnedWal::All) => out.write_str("pinned with all WAL"),
            KeepReason::FirstOfWeek => out.write_str("the first of its week"),
            KeepReason::FirstOfMonth => out.write_str("the first of its month"),
        }
    }
}

/// What becomes of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SetDecision {
    pub name: BackupName,
    /// Why it stays; it goes if there is nothing.
    pub keeps: Vec<KeepReason>,
    /// The rules that it is beyond, if it goes.
    rules: Keeping,
    /// Whether it can be recovered beyond its own end.
    pub has_way_forward: bool,
}

impl SetDecision {
    /// It stays, because somebody reads it.
    pub(crate) fn is_read(&mut self) {
        self.keeps.push(KeepReason::IsRead);
        self.has_way_forward = true;
    }

    /// Whether it goes.
    pub(crate) const fn goes(&self) -> bool {
        self.keeps.is_empty()
    }

    /// Why it stays or goes.
    pub(crate) fn why(&self) -> String {
        let mut whys: Vec<String> = self.keeps.iter().map(ToString::to_string).collect();
        if self.goes() {
            let Keeping { sets, days, .. } = self.rules;
            whys.extend((sets > 0).then(|| format!("beyond keep_backups = {sets}")));
            whys.extend((days > 0).then(|| format!("not needed for keep_days = {days}")));
        } else if !self.has_way_forward {
            whys.push("no way forward from its end".to_owned());
        }
        whys.join(", ")
    }
}

/// Decides on sets, the newest first.
pub(crate) fn decide(sets: &[RetainedSet], keeping: Keeping, now_ms: i64) -> Vec<SetDecision> {
    let mut reasons: Vec<Vec<KeepReason>> = vec![Vec::new(); sets.len()];
    if keeping.keeps_all() {
        for reasons in &mut reasons {
            reasons.push(KeepReason::NoRule);
        }
    } else {
        let old: Vec<bool> = (sets.iter())
            .map(|set| keeping.is_old(set.sealed_ms, now_ms))
            .collect();
        keep_what_does_not_count(sets, (&old, now_ms), &mut reasons);
        keep_counted(sets, &old, keeping.sets, &mut reasons);
        keep_window(sets, &old, (keeping.days, now_ms), &mut reasons);
        keep_last(sets, &old, &mut reasons);
        let week = |day: Date| {
            let week = day.iso_week_date();
            (week.year(), week.week())
        };
        let month = |day: Date| (day.year(), day.month());
        keep_firsts(sets, &old, (keeping.weekly, week), |at| {
            reasons[at].push(KeepReason::FirstOfWeek);
        });
        keep_firsts(sets, &old, (keeping.monthly, month), |at| {
            reasons[at].push(KeepReason::FirstOfMonth);
        });
    }
    for (set, reasons) in sets.iter().zip(&mut reasons) {
        reasons.extend(set.pin.map(KeepReason::Pinned));
        if reasons.is_empty() && set.is_read {
            reasons.push(KeepReason::IsRead);
        }
    }
    let decided = sets.iter().zip(reasons).map(|(set, keeps)| SetDecision {
        name: set.name.clone(),
        has_way_forward: set.last.is_none() || keeps.iter().any(|why| why.needs_way_forward()),
        keeps,
        rules: keeping,
    });
    decided.collect()
}

/// The day of this moment on this host's calendar.
pub(super) fn day_of(ms: i64) -> Date {
    let moment = jiff::Timestamp::from_millisecond(ms).unwrap_or_default();
    moment.to_zoned(jiff::tz::TimeZone::system()).date()
}

/// Which set goes next, and in how many days, if a backup is made on each of them; nothing if that is far away.
pub(crate) fn next_to_go(
    sets: &[RetainedSet],
    keeping: Keeping,
    now_ms: i64,
) -> Option<(BackupName, u32)> {
    if keeping.keeps_all() || sets.len() > NEXT_SETS_MAX {
        return None;
    }
    let newest = sets.iter().find(|set| set.quality == SetQuality::Good)?;
    let mut sets = sets.to_vec();
    let (real, template) = (sets.len(), newest.clone());
    // The newest may be as old as it likes.
    let today = day_of(now_ms).max(template.day);
    for days in 0..=NEXT_DAYS_MAX {
        let now_ms = now_ms.saturating_add(i64::from(days) * DAY_MS);
        if days > 0 {
            let day = today.saturating_add(jiff::Span::new().days(days));
            sets.insert(
                0,
                RetainedSet {
                    sealed_ms: now_ms,
                    day,
                    pin: None,
                    leads_on: true,
                    ..template.clone()
                },
            );
        }
        let decided = decide(&sets, keeping, now_ms);
        let own = &decided[decided.len() - real..];
        if let Some(next) = own.iter().rev().find(|set| set.goes()) {
            return Some((next.name.clone(), days));
        }
    }
    None
}

fn keep_what_does_not_count(
    sets: &[RetainedSet],
    (old, now_ms): (&[bool], i64),
    reasons: &mut [Vec<KeepReason>],
) {
    for ((set, is_old), reasons) in sets.iter().zip(old).zip(reasons) {
        if set.quality == SetQuality::Damaged {
            reasons.push(KeepReason::Damaged);
        } else if !is_old && set.sealed_ms > now_ms {
            reasons.push(KeepReason::Future);
        } else if !is_old {
            reasons.push(KeepReason::Young);
        }
    }
}

/// A set goes when as many newer ones are there that are as good as it is.
fn keep_counted(sets: &[RetainedSet], old: &[bool], most: u32, reasons: &mut [Vec<KeepReason>]) {
    let (mut good, mut any) = (0_u32, 0_u32);
    for ((set, is_old), reasons) in sets.iter().zip(old).zip(reasons) {
        if set.quality == SetQuality::Damaged || !is_old {
            continue;
        }
        let place = match set.quality {
            SetQuality::Good => {
                good += 1;
                good
            }
            _ => any + 1,
        };
        any += 1;
        if place <= most {
            reasons.push(KeepReason::Counted(most));
        }
    }
}

/// Keeps the sound sets within the window of `keep_days`. From before the window it keeps the newest of the sets that reach
/// furthest and are older than the minimum age.
fn keep_window(
    sets: &[RetainedSet],
    old: &[bool],
    (days, now_ms): (u32, i64),
    reasons: &mut [Vec<KeepReason>],
) {
    if days == 0 {
        return;
    }
    let begin_ms = now_ms.saturating_sub(i64::from(days) * DAY_MS);
    let pause = newest_pause(sets, now_ms);
    let is_in = |set: &RetainedSet| match pause {
        // Behind it only what passed since counts.
        Some((from_ms, pause_ms)) if set.sealed_ms <= from_ms => {
            set.sealed_ms > begin_ms.saturating_sub(pause_ms)
        }
        _ => set.sealed_ms > begin_ms,
    };
    for (set, reasons) in sets.iter().zip(&mut *reasons) {
        if set.quality == SetQuality::Damaged || !is_in(set) {
            continue;
        }
        reasons.push(match pause {
            Some((_, pause_ms)) if set.sealed_ms <= begin_ms => KeepReason::BeforePause {
                window_days: days,
                pause_days: pause_ms / DAY_MS,
            },
            _ => KeepReason::InWindow(days),
        });
    }
    let from_before = |at: usize| !is_in(&sets[at]) && old[at];
    if let Some(at) = newest_of_the_best(sets, from_before) {
        reasons[at].push(KeepReason::BeginsWindow(days));
    }
}

/// Since when and for how long no set was sealed, if that was too long to be meant; the last time that it was. Sets that
/// go leave no such pause behind them that matters: the ones before were older than the window already.
fn newest_pause(sets: &[RetainedSet], now_ms: i64) -> Option<(i64, i64)> {
    let mut times: Vec<i64> = sets.iter().map(|set| set.sealed_ms).collect();
    times.retain(|sealed_ms| *sealed_ms <= now_ms);
    times.push(now_ms);
    times.sort_unstable();
    let mut pauses = times.windows(2).rev().filter_map(|pair| match pair {
        [from_ms, to_ms] => Some((*from_ms, to_ms.saturating_sub(*from_ms))),
        _ => None,
    });
    pauses.find(|(_, pause_ms)| *pause_ms > PAUSE_MS)
}

/// Keeps the last set that restores to the end of the WAL and the last good set, whatever the rules say. A set that is
/// younger than the minimum age counts for neither.
fn keep_last(sets: &[RetainedSet], old: &[bool], reasons: &mut [Vec<KeepReason>]) {
    let stays = |at: usize, reasons: &[Vec<KeepReason>]| {
        old[at] && reasons[at].iter().any(|why| why.needs_way_forward())
    };
    if let Some(best) = newest_of_the_best(sets, |at| old[at]) {
        let rank = |at: usize| (!sets[at].leads_on, sets[at].quality);
        let mut equals = (0..sets.len()).filter(|at| rank(*at) == rank(best));
        if !equals.any(|at| stays(at, reasons)) {
            reasons[best].push(KeepReason::LastToTheEnd);
        }
    }
    let is_good = |at: &usize| sets[*at].quality == SetQuality::Good && old[*at];
    let mut good = (0..sets.len()).filter(is_good);
    if let Some(newest) = good.clone().next()
        && !good.any(|at| stays(at, reasons))
    {
        reasons[newest].push(KeepReason::LastGood);
    }
}

/// The best set that is not damaged: one that leads to the end of the WAL before one that does not, then by quality,
/// and the newest among equals.
fn newest_of_the_best(sets: &[RetainedSet], counts: impl Fn(usize) -> bool) -> Option<usize> {
    let sound =
        (0..sets.len()).filter(|at| sets[*at].quality != SetQuality::Damaged && counts(*at));
    // The first of equals is the newest.
    sound.min_by_key(|at| (!sets[*at].leads_on, sets[*at].quality))
}

/// The first good set of each of the last periods that have such a set.
fn keep_firsts<P: Ord>(
    sets: &[RetainedSet],
    old: &[bool],
    (most, period): (u32, impl Fn(Date) -> P),
    mut keep: impl FnMut(usize),
) {
    let mut firsts: BTreeMap<P, usize> = BTreeMap::new();
    for (at, set) in sets.iter().enumerate() {
        if old[at] && set.quality == SetQuality::Good {
            // The oldest comes last.
            firsts.insert(period(set.day), at);
        }
    }
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    for at in firsts.into_values().rev().take(most) {
        keep(at);
    }
}

/// The WAL that stays, and for whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct WalNeeds(Vec<WalNeed>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct WalNeed {
    first: SegmentPlace,
    /// Nothing for all from there on.
    last: Option<SegmentPlace>,
    by: String,
}

impl WalNeeds {
    /// The WAL that the sets need. A set that should go and is still there needs all WAL from its beginning on, since
    /// somebody may be restoring it. `None` if the beginning of a set is unknown.
    pub(crate) fn of(sets: &[RetainedSet], decided: &[SetDecision]) -> Option<WalNeeds> {
        let mut needs = WalNeeds::default();
        for (set, decision) in sets.iter().zip(decided) {
            let last = set
                .last
                .filter(|_| !decision.goes() && !decision.has_way_forward);
            needs.add(set.first?, last, set.name.to_string());
        }
        Some(needs)
    }

    /// Somebody reads from this segment on, to this one or to the end.
    pub(crate) fn add(&mut self, first: SegmentPlace, last: Option<SegmentPlace>, by: String) {
        self.0.push(WalNeed { first, last, by });
    }

    /// Whether nobody is known to need anything.
    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether something that is needed begins behind the one place, and not behind the other.
    pub(crate) fn begins_between(&self, before: SegmentPlace, place: SegmentPlace) -> bool {
        let mut firsts = self.0.iter().map(|need| need.first);
        firsts.any(|first| before < first && first <= place)
    }

    /// Who needs this segment, if anybody does.
    pub(crate) fn by(&self, place: SegmentPlace) -> Option<&str> {
        let is_in =
            |need: &&WalNeed| need.first <= place && need.last.is_none_or(|last| place <= last);
        self.0.iter().find(is_in).map(|need| need.by.as_str())
    }
}
