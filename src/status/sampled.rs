//! The facts as samples for monitoring: what `status` prints, in numbers.
//! Never judges anything itself. Invariant: every code of a finding has a sample for each level, 1 or 0, so that an
//! alert on any of them needs no list of its own; what is not known has none.

use walmgr_protocol::message::Overview;

use super::judge::{Code, Level, newest};
use super::page::window;
use super::replay::Hold;
use super::{Facts, Here, SetsSizes, StandbyFacts, StreamFacts, Thresholds, seconds};
use crate::metrics::{Metric, Samples};

/// All that the facts say.
pub(crate) fn samples(facts: &Facts, thresholds: &Thresholds) -> Samples {
    let mut samples = Samples::default();
    let findings = facts.findings(thresholds);
    for code in Code::ALL {
        for level in [Level::Warning, Level::Critical] {
            let is_found = |found: &super::Finding| (found.code, found.level) == (*code, level);
            let labels = [("code", code.word()), ("level", level.word())];
            let is_found = findings.iter().any(is_found);
            samples.flag_of(Metric::Finding, &labels, is_found);
        }
    }
    if let Ok(overview) = &facts.standby {
        of_archive(&mut samples, overview);
    }
    match &facts.here {
        Here::Standby(standby) => {
            samples.gauge(Metric::ReceivedAge, facts.lag.known().seconds_at_most);
            of_standby(&mut samples, standby);
            if let Ok(overview) = &facts.standby {
                of_sets(&mut samples, standby, overview);
            }
        }
        Here::Master(master) => {
            samples.flag(Metric::SynchronousOut, master.taken_out.is_some());
            samples.gauge(Metric::Rpo, facts.lag.known().seconds);
            samples.whole(Metric::Behind, facts.lag.bytes);
        }
    }
    samples
}

fn of_archive(samples: &mut Samples, overview: &Overview) {
    samples.whole(Metric::HeldLsn, overview.held.map(|(_, end)| end.0));
    samples.flag(Metric::WalGap, overview.missing.is_some());
    samples.whole(Metric::DamagedFiles, overview.damaged_count);
    samples.whole(Metric::Backups, overview.sets_count);
    samples.whole(Metric::DiskFree, overview.free_bytes);
    let newest = newest(overview).map(|(_, reach)| seconds(overview.clock_ms - reach.age_ms));
    samples.gauge(Metric::BackupSuccess, newest);
}

fn of_standby(samples: &mut Samples, standby: &StandbyFacts) {
    let replay = standby.replay.as_ref();
    samples.whole(
        Metric::ReplayLag,
        replay.and_then(|replay| replay.lag_bytes),
    );
    let holds = |replay: &super::Replay| replay.holds.contains(&Hold::Paused);
    let paused = standby.paused || replay.is_some_and(holds);
    samples.flag(Metric::ReplayPaused, paused);
    let frozen = match &standby.stream {
        StreamFacts::Open => Some(0),
        StreamFacts::Frozen(timeline) => Some(timeline.number()),
        StreamFacts::Unknown(_) => None,
    };
    samples.whole(Metric::FrozenTimeline, frozen.map(u64::from));
    samples.whole(Metric::WalSize, standby.wal.map(|wal| wal.size_bytes));
    samples.whole(Metric::WalStored, standby.wal.map(|wal| wal.stored_bytes));
    if let Some((last, _)) = &standby.drill.last
        && last.failure.is_none()
    {
        #[expect(clippy::cast_precision_loss, reason = "a time")]
        samples.gauge(Metric::DrillSuccess, last.begun_s as f64);
        let rto = last.rto_ms().map(|ms| seconds(ms.cast_signed()));
        samples.gauge(Metric::DrillRto, rto);
    }
}

/// The newest set that can be read, and the times that the sets lead to.
#[expect(clippy::cast_precision_loss, reason = "times and sizes for people")]
fn of_sets(samples: &mut Samples, standby: &StandbyFacts, overview: &Overview) {
    let figures = |name: &str| standby.sets.iter().find(|set| set.name == name);
    let newest = newest(overview).and_then(|(name, _)| figures(name));
    samples.whole(Metric::BackupSize, newest.and_then(|set| set.size_bytes));
    samples.whole(Metric::BackupOwn, newest.and_then(|set| set.own_bytes));
    let made = newest.and_then(|set| set.made);
    samples.flag(
        Metric::BackupIncremental,
        made.map(|made| made.is_incremental),
    );
    samples.whole(Metric::BackupRead, made.map(|made| made.read_bytes));
    samples.whole(Metric::BackupSent, made.map(|made| made.sent_bytes));
    let sizes = SetsSizes::of(&standby.sets);
    samples.whole(Metric::BackupsSize, sizes.size_bytes);
    samples.whole(Metric::BackupsOwn, sizes.own_bytes);
    samples.whole(
        Metric::BackupDuration,
        newest.and_then(|set| set.duration_s),
    );
    if let Some((set, reach)) = window(overview) {
        let begun_s = seconds(overview.clock_ms - reach.age_ms);
        // A recovery cannot end before the backup did.
        let took_s = figures(&set.name).and_then(|set| set.duration_s);
        samples.gauge(Metric::WindowStart, begun_s + took_s.unwrap_or(0) as f64);
        let received_s = seconds(overview.clock_ms - overview.received_age_ms);
        samples.gauge(Metric::WindowEnd, received_s);
    }
    samples.gauge(
        Metric::VerifySuccess,
        standby.verified_s.map(|at_s| at_s as f64),
    );
}
