//! `status`, the command both sides have: what was found out, what is wrong with it, how it is told.
//! Never asks anybody; the two sides do. Invariant: the recovery point stands first, and the exit code
//! is that of the worst finding.

mod drill;
mod judge;
mod page;
mod replay;
mod retention;
mod sampled;
mod thresholds;

pub(crate) use drill::{DrillFacts, DrillOutcome};
pub use judge::Code;
pub(crate) use judge::{Finding, Level};
pub(crate) use replay::{Hold, Replay, TooLow};
pub(crate) use sampled::samples;
pub(crate) use thresholds::Thresholds;

use walmgr_protocol::message::Overview;
use walmgr_protocol::names::{Lsn, TimelineId};

use crate::error::{CommandError, Kind, Result};
use crate::metrics::{MetricsPage, textfile};
use crate::options::Options;
use crate::output;

/// Everything that was found out.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// What would be lost.
    pub lag: Lag,
    /// What the standby holds, or why nobody can tell.
    pub standby: std::result::Result<Overview, String>,
    /// The side that was asked.
    pub here: Here,
}

/// What only this side knows.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "there is one in a process")]
pub(crate) enum Here {
    /// Where PostgreSQL writes.
    Master(Box<Master>),
    /// Where WAL is kept.
    Standby(StandbyFacts),
}

/// How far the standby is behind the master. An age below 0 says that a clock was set back: judged
/// as [`judge::Code::Clock`] and shown as unknown, never as 0.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Lag {
    /// Seconds of transactions that would be lost: the age of the first one that was committed on the
    /// master and that the standby does not hold; 0 when it holds all. `None` if that cannot be told.
    pub seconds: Option<f64>,
    /// No more than this, where the exact number is not known.
    pub seconds_at_most: Option<f64>,
    /// Bytes of flushed WAL that the standby does not hold.
    pub bytes: Option<u64>,
}

impl Lag {
    /// What can be told of it: an age that a clock contradicts is not known.
    fn known(self) -> Lag {
        let told = |seconds: Option<f64>| Some(seconds?.max(0.0)).filter(|_| !ahead(seconds));
        Lag {
            seconds: told(self.seconds),
            seconds_at_most: told(self.seconds_at_most),
            bytes: self.bytes,
        }
    }

    /// Whether a clock contradicts an age in it.
    fn is_contradicted(self) -> bool {
        ahead(self.seconds) || ahead(self.seconds_at_most)
    }
}

/// How far a time that this host wrote may lie ahead of its clock: clocks are slewed, and a file's
/// time is that of the last tick.
const CLOCK_TOLERANCE_S: f64 = 1.0;

fn ahead(seconds: Option<f64>) -> bool {
    seconds.is_some_and(|seconds| seconds < -CLOCK_TOLERANCE_S)
}

/// An age of the overview in seconds.
#[expect(clippy::cast_precision_loss, reason = "an age has no 53 bits")]
pub(crate) fn seconds(age_ms: i64) -> f64 {
    age_ms as f64 / 1e3
}

/// What the master knows.
#[derive(Debug, Clone, Default)]
pub(crate) struct Master {
    /// The receiver's address.
    pub receiver: String,
    /// Why the server could not be asked.
    pub unasked: Option<String>,
    /// Whether the server replays another's WAL.
    pub is_standby: bool,
    /// The timeline it writes, and up to where its disk holds it; read from its files where the
    /// server could not be asked.
    pub flushed: Option<(TimelineId, Lsn)>,
    /// Whether finished segments come to walmgr.
    pub archiving: Option<Archiving>,
    /// What the next reload or restart changes for the worse.
    pub archiving_pending: Option<String>,
    /// `pg_stat_archiver`.
    pub archiver: Option<Archiver>,
    /// Whether a syncdaemon runs.
    pub syncdaemon: Syncdaemon,
    /// What it does for `xarchive`; nothing where none runs or this user may not ask it.
    pub agent: Option<AgentFacts>,
    /// The synchronous standby that the syncdaemon took out, and seconds since.
    pub taken_out: Option<(String, f64)>,
    /// A segment that the standby lacks and that is not in `pg_wal` any more.
    pub gone: Option<String>,
    /// How far the standby's clock is ahead of this host's, in seconds; below 0 if it is behind.
    pub clock_ahead: Option<f64>,
}

/// Where finished segments go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Archiving {
    /// To walmgr, with this ini file.
    On,
    /// Nowhere, and why: they are thrown away.
    Off(String),
    /// Nowhere, and why: they pile up.
    Kept(String),
    /// To walmgr, which PostgreSQL does not hear fail, and why.
    Unheard(String),
    /// To another program, and which.
    Foreign(String),
}

/// `pg_stat_archiver`, its times as ages.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Archiver {
    /// The file archived last, and seconds since.
    pub last_archived: Option<(String, f64)>,
    /// Failures since the statistics were reset.
    pub failed_count: i64,
    /// The file that failed last, and seconds since.
    pub last_failed: Option<(String, f64)>,
}

impl Archiver {
    /// Whether the last thing it did was to fail.
    pub(crate) fn fails(&self) -> bool {
        match (&self.last_failed, &self.last_archived) {
            (Some((_, failed)), Some((_, archived))) => failed < archived,
            (failed, None) => failed.is_some(),
            (None, _) => false,
        }
    }
}

/// Whether records are shipped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Syncdaemon {
    /// It runs.
    Running,
    /// None runs, and none was left running.
    #[default]
    Stopped,
    /// It died: its pidfile exists, and no process holds it.
    Died,
}

/// What a syncdaemon says when it is asked how it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AgentFacts {
    /// `xarchive` asks it.
    Heard(AgentFigures),
    /// `xarchive` pushes by itself, and why.
    Unheard(String),
}

/// What a syncdaemon did for `xarchive` since it began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct AgentFigures {
    /// Files that it was asked for.
    pub asked: u64,
    /// Of those, the ones that had been shipped, or were on their way.
    pub answered: u64,
    /// Of those, the ones that failed.
    pub failures: u64,
    /// Ready files that are still to be shipped ahead.
    pub waiting: u64,
}

/// The host of several clusters, as one of them sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HostFacts {
    /// Its ini file.
    pub ini: String,
    /// Whether its receiver runs.
    pub runs: bool,
    /// Why that does not serve this cluster, or not as its file says.
    pub unserved: Option<String>,
}

/// What the standby's host knows.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct StandbyFacts {
    /// Whether a receiver runs on this ini file.
    pub receiver_runs: bool,
    /// The host whose receiver serves this cluster among others, or should.
    pub host: Option<HostFacts>,
    /// Whether PAUSE holds replay.
    pub paused: bool,
    /// Who has the backup sets locked by hand.
    pub locked: Option<SetsLock>,
    /// Whether the server in `slave_data` runs; `None` if there is none to replay.
    pub server_runs: Option<bool>,
    /// Where that server stands; `None` if there is none that replays.
    pub replay: Option<Replay>,
    /// Whether a boot froze the master's stream.
    pub stream: StreamFacts,
    /// Why its server is not given the next tablespace, or shares one.
    pub tablespace: Option<String>,
    /// Where no recovery gets past that begins where its server stands.
    pub unreplayable: Option<String>,
    /// The newest set, where a restore made it the server by moving it.
    pub moved_set: Option<String>,
    /// What a boot that was killed, or goes on, set for itself alone.
    pub changed_by_boot: Option<String>,
    /// The data directory of a server that a boot opened without coming to its end.
    pub unfinished_boot: Option<String>,
    /// What is known of each backup set beside the overview.
    pub sets: Vec<SetFigures>,
    /// When `verify` last found everything good, in seconds since 1970.
    pub verified_s: Option<i64>,
    /// How drills of backup sets ended.
    pub drill: DrillFacts,
    /// Which lines of the audit log are lost, or would be.
    pub audit: Option<String>,
    /// Commands of servers that remove WAL from the archive, a sentence each.
    pub archive_cleaners: Vec<String>,
    /// What the rules of retention make of the sets; nothing where there are none to ask.
    pub retention: Option<RetentionFacts>,
    /// Why no backup is built on an older one, if such a one would have been wrong.
    pub incremental_differs: Option<String>,
    /// What the finished segments take.
    pub wal: Option<StoredWal>,
    /// What is kept where nothing is ever removed.
    pub keeps_all: Option<KeepsAll>,
}

/// How large a backup set is, and how long it took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SetFigures {
    /// Its name.
    pub name: String,
    /// The lengths of its files.
    pub size_bytes: Option<u64>,
    /// What its removal would free.
    pub own_bytes: Option<u64>,
    /// In seconds.
    pub duration_s: Option<u64>,
    /// How it was made; nothing where it does not say so.
    pub made: Option<MadeFigures>,
}

/// What it cost to make a backup set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MadeFigures {
    /// Whether it was built on an older set.
    pub is_incremental: bool,
    /// What was read on the master.
    pub read_bytes: u64,
    /// What was sent for that.
    pub sent_bytes: u64,
}

/// How large all sets are together; nothing where it is not known of one of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SetsSizes {
    /// The lengths of their files.
    pub size_bytes: Option<u64>,
    /// Blocks that one set has and no other file.
    pub own_bytes: Option<u64>,
}

impl SetsSizes {
    /// Of these.
    pub(crate) fn of(sets: &[SetFigures]) -> SetsSizes {
        SetsSizes {
            size_bytes: sets.iter().map(|set| set.size_bytes).sum(),
            own_bytes: sets.iter().map(|set| set.own_bytes).sum(),
        }
    }
}

/// The finished segments of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StoredWal {
    /// How many there are.
    pub segments: u64,
    /// As the server wrote them.
    pub size_bytes: u64,
    /// As they are stored, packed or not; of many an estimate.
    pub stored_bytes: u64,
}

/// What becomes of the backup sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RetentionFacts {
    /// The settings that decide; empty where all is kept.
    pub rules: String,
    /// Sets that somebody pinned, and what was said of each.
    pub pinned: Vec<(String, String)>,
    /// Sets that the next backup or `expire` removes, oldest first, and why.
    pub goes: Vec<(String, String)>,
    /// The set that goes next, and in how many days, if a backup is made on each of them.
    pub next: Option<(String, u32)>,
}

/// An archive of `keep_backups = 0`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct KeepsAll {
    /// Whether the file says 0, and not the default.
    pub is_set: bool,
    /// Finished segments that it holds; at least one.
    pub segments: u64,
    /// About what they take.
    pub bytes: u64,
    /// Seconds since the oldest was stored.
    pub oldest_age: f64,
}

/// A lock of a person or a script on the backup sets.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SetsLock {
    /// Who, and since when.
    pub holder: String,
    /// How long, in seconds.
    pub age_s: f64,
}

/// Whether the receiver may take records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum StreamFacts {
    /// Of every timeline.
    #[default]
    Open,
    /// Not of this timeline or an older one: the standby was booted.
    Frozen(TimelineId),
    /// What a boot wrote cannot be read, so of none.
    Unknown(String),
}

impl Facts {
    /// What is wrong, the worst first.
    pub(crate) fn findings(&self, thresholds: &Thresholds) -> Vec<Finding> {
        judge::findings(self, thresholds)
    }
}

/// It all in one line, and the level of the worst finding.
pub(crate) fn line(facts: &Facts, thresholds: &Thresholds) -> (Option<Level>, String) {
    let findings = facts.findings(thresholds);
    let text = page::brief(facts, &findings).replace('\n', "; ");
    (findings.first().map(|finding| finding.level), text)
}

/// How a command ends that judges: with the code that monitoring expects.
pub(crate) fn ended(word: &str, level: Option<Level>) -> Result<()> {
    match level {
        None => Ok(()),
        Some(Level::Warning) => Err(CommandError::new(Kind::Warned, format!("{word}: warning"))),
        Some(Level::Critical) => Err(CommandError::new(
            Kind::Alarmed,
            format!("{word}: critical"),
        )),
    }
}

/// The page for programs as a value, to stand in another's.
pub(crate) fn value(facts: &Facts, thresholds: &Thresholds) -> serde_json::Value {
    let text = page::json(facts, &facts.findings(thresholds));
    serde_json::from_str(&text).unwrap_or_default()
}

/// Prints it, writes the metrics of the cluster with this name if that is asked for, and ends with the code that
/// monitoring expects.
pub(crate) fn finish(
    facts: &Facts,
    name: &str,
    thresholds: &Thresholds,
    options: &Options,
) -> Result<()> {
    if let Some(path) = &thresholds.metrics {
        let page = MetricsPage::of(name, samples(facts, thresholds).refreshed_now());
        textfile::write(path, page)?;
    }
    let findings = facts.findings(thresholds);
    let level = findings.first().map(|finding| finding.level);
    if options.json {
        output::print(&page::json(facts, &findings))?;
    } else if !options.quiet {
        output::print(&page::text(facts, &findings))?;
    } else if level.is_some() {
        output::print(&page::brief(facts, &findings))?;
    }
    ended("status", level)
}

#[cfg(test)]
mod tests;
