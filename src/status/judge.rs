//! What of the facts is a reason to warn or to wake somebody up.
//! Never looks at anything but the facts. Invariant: what cannot be found out is a finding, never
//! silence.

use std::time::Duration;

use walmgr_protocol::message::Overview;
use walmgr_protocol::message::overview::SetReach;
use walmgr_protocol::names::TimelineId;

use super::page::{ago, size_text};
use super::{
    AgentFacts, Archiving, DrillFacts, Facts, Here, HostFacts, KeepsAll, Master, StandbyFacts,
    StreamFacts, Syncdaemon, Thresholds, ahead, seconds,
};
use crate::output::escaped;

const WARNING_LAG: Duration = Duration::from_secs(60);
const CRITICAL_LAG: Duration = Duration::from_secs(300);
const WARNING_BACKUP_AGE: Duration = Duration::from_secs(8 * 86_400);
const CRITICAL_BACKUP_AGE: Duration = Duration::from_secs(30 * 86_400);
const WARNING_FREE: u64 = 1 << 30;
const CRITICAL_FREE: u64 = 128 << 20;

/// A script that copies sets every night is well; what locks them for longer was forgotten.
const LOCKED_LONG_S: f64 = 86_400.0;

/// How old the oldest WAL may be where nobody has decided what is kept: who tries walmgr out is not bothered, and
/// nobody's disk is full by then.
const UNDECIDED_AGE: Duration = Duration::from_secs(7 * 86_400);

/// How far the clocks of the two hosts may differ, the time of a question and its answer included.
const CLOCKS_DIFFER_S: f64 = 60.0;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Exit code 1.
    Warning,
    /// Exit code 2.
    Critical,
}

impl Level {
    /// For people and programs.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Level::Warning => "warning",
            Level::Critical => "critical",
        }
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $word:literal,)*) => {
        /// What a finding is about, for programs; the words never change their meaning.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// Each of them.
            pub const ALL: &'static [Code] = &[$(Code::$name,)*];

            /// The word in `--json`.
            pub const fn word(self) -> &'static str {
                match self { $(Code::$name => $word,)* }
            }
        }
    };
}

codes! {
    /// The receiver does not answer, or refuses.
    Receiver = "receiver",
    /// No receiver runs on the standby.
    NoReceiver = "no_receiver",
    /// PostgreSQL cannot be asked.
    Server = "server",
    /// The master's server is a standby.
    IsStandby = "is_standby",
    /// The archive is bound to no cluster.
    NotSetUp = "not_set_up",
    /// The archive has a newer timeline than the master.
    Timeline = "timeline",
    /// The standby is behind.
    Lag = "lag",
    /// Nobody can tell how far it is behind.
    LagUnknown = "lag_unknown",
    /// Finished segments are archived nowhere.
    ArchivingOff = "archiving_off",
    /// PostgreSQL does not hear that a segment did not arrive.
    ArchivingUnheard = "archiving_unheard",
    /// Finished segments go to another program.
    ArchivingForeign = "archiving_foreign",
    /// The last file could not be archived.
    ArchivingFails = "archiving_fails",
    /// WAL is missing in the archive.
    Gap = "gap",
    /// Files were found damaged.
    Damaged = "damaged",
    /// Files are set apart, so that no reader follows them.
    Apart = "apart",
    /// Another file of a stored name was offered.
    Differs = "differs",
    /// There is no backup set.
    NoBackup = "no_backup",
    /// The newest backup set is old.
    BackupAge = "backup_age",
    /// A backup set cannot be read, or not be recovered to the end.
    Backup = "backup",
    /// A backup that was built on an older one would have been wrong.
    Incremental = "incremental",
    /// WAL grows, and nothing ever removes any.
    Retention = "retention",
    /// A server on the standby's host removes WAL from the archive.
    ArchiveCleanup = "archive_cleanup",
    /// Little space is left.
    Free = "free",
    /// The disk refused something.
    Disk = "disk",
    /// The syncdaemon died.
    Syncdaemon = "syncdaemon",
    /// Commits do not wait for the syncdaemon, which was taken out.
    Synchronous = "synchronous",
    /// Lines of the audit log are lost, or would be.
    AuditLog = "audit_log",
    /// Replay is held.
    Paused = "paused",
    /// The backup sets have been locked by hand for long.
    Locked = "locked",
    /// Replay stands still, or is far behind what is held.
    Replay = "replay",
    /// The standby's server does not run.
    StandbyServer = "standby_server",
    /// Replay may not make a tablespace where the WAL says.
    Tablespace = "tablespace",
    /// WAL that is here and whole cannot be replayed.
    Unreplayable = "unreplayable",
    /// The stream of the newest timeline is refused.
    Frozen = "frozen",
        /// A boot opened the server without coming to its end.
        Boot = "boot",
    /// The last drill failed, or was killed and left its directory.
    Drill = "drill",
    /// A time lies ahead of the clock, or the two hosts' clocks differ: ages mean nothing.
    Clock = "clock",
}

impl Code {
    /// The page of docs/runbooks/ that says what to do.
    pub(crate) const fn runbook(self) -> &'static str {
        match self {
            Code::Gap => "hole-in-archive",
            Code::Damaged => "damaged-segment",
            Code::Free | Code::Disk => "disk-full",
            // A command or a task has the same name.
            Code::Backup => "runbooks/backup",
            Code::Boot => "runbooks/boot",
            Code::Drill => "runbooks/drill",
            Code::Receiver => "runbooks/receiver",
            Code::Replay => "runbooks/replay",
            Code::Retention => "runbooks/retention",
            Code::Syncdaemon => "runbooks/syncdaemon",
            code => code.word(),
        }
    }
}

/// Something that a person should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What it is about.
    pub code: Code,
    /// One sentence.
    pub text: String,
}

fn judge_drill(found: &mut Findings, drill: &DrillFacts) {
    if let Some(left) = &drill.left {
        let text =
            format!("a drill was killed and left {left}: type `drill` again, which removes it");
        found.warn(Code::Drill, text);
    }
    if let Some((last, age_s)) = &drill.last
        && let Some(why) = &last.failure
    {
        let set = match last.set.as_str() {
            "" => "a backup set",
            set => set,
        };
        let text = format!("the drill of {set} {} failed: {why}", ago(*age_s));
        found.warn(Code::Drill, text);
    }
}

/// The findings so far.
pub(super) struct Findings(pub(super) Vec<Finding>);

impl Findings {
    pub(super) fn add(&mut self, level: Level, code: Code, text: impl Into<String>) {
        let text = text.into();
        self.0.push(Finding { level, code, text });
    }

    pub(super) fn warn(&mut self, code: Code, text: impl Into<String>) {
        self.add(Level::Warning, code, text);
    }

    pub(super) fn alarm(&mut self, code: Code, text: impl Into<String>) {
        self.add(Level::Critical, code, text);
    }
}

/// What is wrong, the worst first.
pub(super) fn findings(facts: &Facts, thresholds: &Thresholds) -> Vec<Finding> {
    let mut found = Findings(Vec::new());
    if let Err(why) = &facts.standby {
        found.alarm(Code::Receiver, why);
    }
    match &facts.here {
        Here::Master(master) => judge_master(&mut found, master, facts, thresholds),
        Here::Standby(standby) => judge_standby(&mut found, standby, facts, thresholds),
    }
    judge_clocks(&mut found, facts);
    if let Ok(overview) = &facts.standby {
        judge_archive(&mut found, overview, thresholds);
    }
    found
        .0
        .sort_by_key(|finding| std::cmp::Reverse(finding.level));
    found.0
}

fn judge_master(found: &mut Findings, master: &Master, facts: &Facts, thresholds: &Thresholds) {
    if let Some(why) = &master.unasked {
        found.alarm(Code::Server, format!("the server does not answer: {why}"));
    }
    if master.is_standby {
        let text = "the server is a standby: its master ships the WAL";
        found.warn(Code::IsStandby, text);
        return;
    }
    judge_lag_of_master(found, master, facts, thresholds);
    match &master.archiving {
        Some(Archiving::Off(what) | Archiving::Kept(what)) => {
            let text = format!("archiving is off: {what}; run `setup`");
            found.alarm(Code::ArchivingOff, text);
        }
        Some(Archiving::Foreign(what)) => {
            let text = format!("{what}, which is not walmgr's with this ini file");
            found.warn(Code::ArchivingForeign, text);
        }
        Some(Archiving::Unheard(what)) => {
            found.alarm(Code::ArchivingUnheard, format!("{what}; run `setup`"));
        }
        Some(Archiving::On) | None => {}
    }
    if let Some((name, age_s)) = &master.taken_out {
        let text = format!(
            "{name} was taken out of synchronous_standby_names {}: commits do not wait for the standby's disk",
            ago(*age_s)
        );
        found.alarm(Code::Synchronous, text);
    }
    if let Some(pending) = &master.archiving_pending {
        found.warn(Code::ArchivingForeign, pending);
    }
    if let Some(archiver) = &master.archiver
        && archiver.fails()
        && let Some((name, age_s)) = &archiver.last_failed
    {
        let text = format!(
            "{name} could not be archived {}; PostgreSQL's log says why",
            ago(*age_s)
        );
        found.warn(Code::ArchivingFails, text);
    }
    if master.syncdaemon == Syncdaemon::Died {
        let text = "the syncdaemon died: its pidfile exists, but no process holds it";
        found.warn(Code::Syncdaemon, text);
    }
    if let Some(AgentFacts::Unheard(why)) = &master.agent {
        let text = format!("xarchive cannot ask the syncdaemon, so each file takes longer: {why}");
        found.warn(Code::Syncdaemon, text);
    }
}

fn judge_lag_of_master(
    found: &mut Findings,
    master: &Master,
    facts: &Facts,
    thresholds: &Thresholds,
) {
    let held = facts
        .standby
        .as_ref()
        .ok()
        .and_then(|overview| overview.held);
    if let (Some((ours, _)), Some((theirs, _))) = (master.flushed, held)
        && theirs > ours
    {
        let text = format!("the archive has timeline {theirs}, this master writes {ours}");
        return found.alarm(Code::Timeline, text);
    }
    if let Some(segment) = &master.gone {
        let text = format!("{segment} is neither on the standby nor in pg_wal: make a new backup");
        found.alarm(Code::Gap, text);
    }
    let warning = thresholds.warning_lag.unwrap_or(WARNING_LAG);
    let critical = thresholds.critical_lag.unwrap_or(CRITICAL_LAG.max(warning));
    match facts.lag.known().seconds {
        Some(seconds) => judge_seconds(found, seconds, Some(warning), Some(critical)),
        // Whatever keeps it from being known is an alarm of its own.
        None if facts.lag.is_contradicted() => {}
        None if found
            .0
            .iter()
            .any(|finding| finding.level == Level::Critical) => {}
        None if held.is_none() => found.alarm(Code::LagUnknown, "the standby holds no WAL yet"),
        None => found.alarm(Code::LagUnknown, "the lag is unknown"),
    }
}

fn judge_seconds(
    found: &mut Findings,
    seconds: f64,
    warning: Option<Duration>,
    critical: Option<Duration>,
) {
    let beyond = |limit: Option<Duration>| limit.filter(|limit| seconds > limit.as_secs_f64());
    let (level, limit) = match (beyond(critical), beyond(warning)) {
        (Some(limit), _) => (Level::Critical, limit),
        (None, Some(limit)) => (Level::Warning, limit),
        (None, None) => return,
    };
    let text = format!("the standby is {seconds:.1} s behind, more than {limit:?}");
    found.add(level, Code::Lag, text);
}

fn judge_receiver(found: &mut Findings, standby: &StandbyFacts) {
    let host = standby.host.as_ref();
    let unserved = host.and_then(|host| host.unserved.as_deref());
    let text = match (host, unserved) {
        (_, Some(why)) if standby.receiver_runs => {
            let text = format!("the receiver goes on with this cluster's old settings: {why}");
            return found.warn(Code::Receiver, text);
        }
        _ if standby.receiver_runs => return,
        (None, _) => "no receiver runs: start it with `walmgr STANDBY.ini receiver -d`".to_owned(),
        (Some(host), Some(why)) => {
            format!(
                "the receiver of {} does not serve this cluster: {why}",
                host.ini
            )
        }
        (
            Some(HostFacts {
                ini, runs: true, ..
            }),
            None,
        ) => format!(
            "the receiver of {ini} does not serve this cluster: type `walmgr {ini} receiver --reload` and look at \
             its log"
        ),
        (Some(HostFacts { ini, .. }), None) => {
            format!("no receiver runs: start it with `walmgr {ini} receiver -d`")
        }
    };
    found.alarm(Code::NoReceiver, text);
}

fn judge_standby(
    found: &mut Findings,
    standby: &StandbyFacts,
    facts: &Facts,
    thresholds: &Thresholds,
) {
    judge_receiver(found, standby);
    // A master that writes nothing looks the same as one that is gone, so only who asks for it.
    if let Some(seconds) = facts.lag.known().seconds_at_most {
        let (warning, critical) = (thresholds.warning_lag, thresholds.critical_lag);
        judge_seconds(found, seconds, warning, critical);
    }
    if standby.paused {
        found.warn(Code::Paused, "replay is paused: `continue` resumes it");
    }
    if let Some(lock) = standby
        .locked
        .as_ref()
        .filter(|lock| lock.age_s > LOCKED_LONG_S)
    {
        let text = format!(
            "no backup is made, since the backup sets are locked: {}; if nobody copies them any more type: walmgr \
             STANDBY.ini xrelease",
            lock.holder
        );
        found.warn(Code::Locked, text);
    }
    if standby.server_runs == Some(false) {
        found.warn(Code::StandbyServer, "the standby's server does not run");
    }
    if let Some(text) = &standby.tablespace {
        found.alarm(Code::Tablespace, text);
    }
    if let Some(text) = &standby.unreplayable {
        found.alarm(Code::Unreplayable, text);
    }
    if let Some(text) = &standby.changed_by_boot {
        found.warn(Code::Boot, text);
    }
    if let Some(data) = &standby.unfinished_boot {
        let text = format!(
            "the boot of the server in {data} was not completed: it may lack WAL, and the history \
            of its timeline may be missing in the archive: type `boot` again"
        );
        found.warn(Code::Boot, text);
    }
    judge_drill(found, &standby.drill);
    if let Some(replay) = &standby.replay {
        super::replay::judge(found, replay);
    }
    if let Some(text) = &standby.audit {
        found.warn(Code::AuditLog, text);
    }
    for text in &standby.archive_cleaners {
        found.alarm(Code::ArchiveCleanup, text);
    }
    if let Some(text) = &standby.incremental_differs {
        found.alarm(Code::Incremental, text.clone());
    }
    if let Some(keeps_all) = &standby.keeps_all {
        judge_retention(found, keeps_all);
    }
    match &standby.stream {
        StreamFacts::Open => {}
        // The booted server ships by now, on a timeline that was never frozen.
        StreamFacts::Frozen(timeline) if newest_held(facts) > Some(*timeline) => {}
        StreamFacts::Frozen(timeline) => found.warn(
            Code::Frozen,
            format!(
                "timeline {timeline} is frozen: the standby was booted, and records of the old \
                master are refused; if the old master stays the master, `restore` the standby"
            ),
        ),
        StreamFacts::Unknown(why) => {
            let text = format!(
                "no records are accepted, since the files of a boot cannot be \
                read: {why}"
            );
            found.alarm(Code::Frozen, text);
        }
    }
}

/// Skytools removed replayed WAL where `keep_backups` was 0, so a file of old may leave it at that.
fn judge_retention(found: &mut Findings, all: &KeepsAll) {
    if !all.is_set && all.oldest_age < UNDECIDED_AGE.as_secs_f64() {
        return;
    }
    let text = format!(
        "keep_backups is 0, so every backup and all WAL is kept: {} of {} segments, the oldest from {}, and nothing \
        removes any; set it to a number of backups (10000 keeps practically all)",
        size_text(all.bytes),
        all.segments,
        ago(all.oldest_age)
    );
    found.warn(Code::Retention, text);
}

/// A clock that was set back makes old things young: a negative age is never taken for 0.
fn judge_clocks(found: &mut Findings, facts: &Facts) {
    if facts.lag.is_contradicted() {
        let text = "the lag is unknown: the WAL is newer than this host's clock, so the clock was \
            set back; set it right";
        found.alarm(Code::Clock, text);
    }
    if let Here::Master(master) = &facts.here
        && let Some(ahead) = master.clock_ahead
        && ahead.abs() > CLOCKS_DIFFER_S
    {
        let side = if ahead > 0.0 { "ahead of" } else { "behind" };
        let text = format!(
            "the standby's clock is {:.0} s {side} the master's",
            ahead.abs()
        );
        return found.warn(Code::Clock, text);
    }
    let Ok(overview) = &facts.standby else {
        return;
    };
    // The time of a set is the master's, the others are the standby's own.
    let held = overview.held.map(|_| seconds(overview.received_age_ms));
    let sets = overview
        .sets
        .iter()
        .filter_map(|set| set.reach.as_ref().ok());
    let youngest = sets.map(|reach| seconds(reach.age_ms)).reduce(f64::min);
    if ahead(held) && !facts.lag.is_contradicted() {
        let text = "the newest WAL is newer than the standby's clock";
        found.warn(Code::Clock, text);
    } else if youngest.is_some_and(|age| age < -CLOCKS_DIFFER_S) {
        let text = "a backup set is newer than the standby's clock";
        found.warn(Code::Clock, text);
    }
}

/// The newest timeline that there is WAL of; its history comes earlier.
fn newest_held(facts: &Facts) -> Option<TimelineId> {
    let overview = facts.standby.as_ref().ok()?;
    let newest = overview.newest_segment.max(overview.partial_segment)?;
    Some(newest.timeline())
}

fn judge_archive(found: &mut Findings, overview: &Overview, thresholds: &Thresholds) {
    if overview.cluster.is_none() {
        let text = "the archive is bound to no cluster yet: run `walmgr MASTER.ini setup`";
        found.alarm(Code::NotSetUp, text);
    }
    if !overview.trouble.is_empty() {
        let text = format!(
            "the standby's disk refused the last file: {}",
            overview.trouble
        );
        found.alarm(Code::Disk, text);
    }
    if overview.damaged_count > 0 {
        let (count, first) = (overview.damaged_count, &overview.damaged);
        let text = format!("{count} archived files are damaged, the first is {first}");
        found.alarm(Code::Damaged, text);
    }
    if overview.apart_count > 0 {
        let (count, first) = (overview.apart_count, escaped(&overview.apart));
        let text =
            format!("{count} archived files are set apart and not used, the first is {first}");
        found.warn(Code::Apart, text);
    }
    if overview.differing_count > 0 {
        let (count, first) = (overview.differing_count, escaped(&overview.differing));
        let text = format!(
            "for {count} stored files a different file of the same name is kept, the first is \
            {first}: `choose` on the standby shows both"
        );
        found.alarm(Code::Differs, text);
    }
    judge_gap(found, overview);
    judge_free(found, overview.free_bytes, thresholds);
    if overview.cluster.is_some() {
        judge_backups(found, overview, thresholds);
    }
}

fn judge_gap(found: &mut Findings, overview: &Overview) {
    let Some(missing) = overview.missing else {
        return;
    };
    match newest(overview) {
        Some((name, _)) => found.alarm(
            Code::Gap,
            format!("{missing} is missing in the archive: {name} cannot be recovered beyond it"),
        ),
        None => found.warn(
            Code::Gap,
            format!(
                "{missing} is missing in the archive: older backups can be recovered only up \
                to there"
            ),
        ),
    }
}

fn judge_free(found: &mut Findings, free_bytes: u64, thresholds: &Thresholds) {
    let warning = thresholds.warning_free.unwrap_or(WARNING_FREE);
    let critical = thresholds
        .critical_free
        .unwrap_or(CRITICAL_FREE.min(warning));
    let level = match free_bytes {
        free if free < critical => Level::Critical,
        free if free < warning => Level::Warning,
        _ => return,
    };
    let text = format!("{} are free for the archive", size_text(free_bytes));
    found.add(level, Code::Free, text);
}

fn judge_backups(found: &mut Findings, overview: &Overview, thresholds: &Thresholds) {
    if overview.sets.is_empty() {
        let text = "there is no backup: run `walmgr MASTER.ini backup`";
        return found.warn(Code::NoBackup, text);
    }
    let end = overview.held.map(|(_, end)| end);
    for set in &overview.sets {
        let name = &set.name;
        match &set.reach {
            Err(why) => found.warn(Code::Backup, format!("{name} cannot be read: {why}")),
            Ok(reach) if Some(reach.reaches) < end => {
                let (reaches, text) = (reach.reaches, "can be recovered only up to");
                found.warn(Code::Backup, format!("{name} {text} {reaches}"));
            }
            Ok(_) => {}
        }
    }
    let Some((name, reach)) = newest(overview) else {
        return;
    };
    let warning = (thresholds.warning_backup_age).unwrap_or(WARNING_BACKUP_AGE);
    let critical = thresholds.critical_backup_age;
    let critical = critical.unwrap_or(CRITICAL_BACKUP_AGE.max(warning));
    // One that lies ahead of the clock is a finding of its own.
    let age = Duration::from_millis(reach.age_ms.max(0).cast_unsigned());
    let level = match age {
        age if age > critical => Level::Critical,
        age if age > warning => Level::Warning,
        _ => return,
    };
    let text = format!(
        "the newest backup, {name}, began {}",
        ago(age.as_secs_f64())
    );
    found.add(level, Code::BackupAge, text);
}

/// The newest set that can be read.
pub(super) fn newest(overview: &Overview) -> Option<(&str, &SetReach)> {
    let mut readable = (overview.sets.iter())
        .filter_map(|set| Some((set.name.as_str(), set.reach.as_ref().ok()?)));
    readable.next()
}
