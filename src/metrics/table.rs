//! Every metric that walmgr has, one row each: the only place where a name or its meaning is written.
//! Never holds a value. Invariant: a name that was released keeps its meaning; units stand at the end of a name, and
//! the labels of a row are the only ones that its samples have.

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MetricKind {
    /// It goes up and down.
    Gauge,
    /// It goes up, and begins at 0 with the process.
    Counter,
    /// How many values there were up to each bound, since the process began.
    Histogram,
    /// What stands in its labels, with the value 1.
    Info,
}

impl MetricKind {
    /// For people.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            MetricKind::Gauge => "gauge",
            MetricKind::Counter => "counter",
            MetricKind::Histogram => "histogram",
            MetricKind::Info => "info",
        }
    }
}

/// Which daemon has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MetricSide {
    /// Both.
    Both,
    /// The syncdaemon, and `status` with a master's file.
    Master,
    /// The receiver, and `status` with a standby's file.
    Standby,
    /// The syncdaemon alone, for the same reason.
    Syncdaemon,
    /// The receiver alone: who counts has to be there when it happens.
    Receiver,
}

impl MetricSide {
    /// For people.
    pub(crate) const fn words(self) -> &'static str {
        match self {
            MetricSide::Both => "Both sides",
            MetricSide::Master => "Master",
            MetricSide::Standby => "Standby",
            MetricSide::Syncdaemon => "The syncdaemon alone",
            MetricSide::Receiver => "The receiver alone",
        }
    }
}

/// A metric.
#[derive(Debug)]
pub(crate) struct MetricRow {
    /// Its name without [`PREFIX`].
    pub name: &'static str,
    /// What its value is.
    pub kind: MetricKind,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// Who has it.
    pub side: MetricSide,
    /// What it says, in a sentence.
    pub help: &'static str,
}

/// What all names begin with.
pub(crate) const PREFIX: &str = "walmgr";

/// The units that a name may end with; of the rest the value is a plain number.
const UNITS: [&str; 2] = ["seconds", "bytes"];

impl MetricRow {
    /// The name up to its unit, and the unit.
    pub(crate) fn split(&self) -> (&'static str, Option<&'static str>) {
        let suffix = match self.kind {
            MetricKind::Counter => "_total",
            MetricKind::Info => "_info",
            MetricKind::Gauge | MetricKind::Histogram => "",
        };
        let name = self.name.strip_suffix(suffix).unwrap_or(self.name);
        for unit in UNITS {
            let stem = name.strip_suffix(unit);
            if let Some(stem) = stem.and_then(|stem| stem.strip_suffix('_')) {
                return (stem, Some(unit));
            }
        }
        (name, None)
    }
}

macro_rules! metrics {
    ($($variant:ident = $name:literal, $kind:ident, [$($label:literal),*], $side:ident, $help:literal;)*) => {
        /// A metric of the table.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Metric { $(#[doc = $help] $variant,)* }

        impl Metric {
            /// All there are, in the order of the page.
            pub(crate) const ALL: &'static [Metric] = &[$(Metric::$variant,)*];

            /// Its row.
            pub(crate) const fn row(self) -> &'static MetricRow {
                match self {
                    $(Metric::$variant => &MetricRow {
                        name: $name,
                        kind: MetricKind::$kind,
                        labels: &[$($label),*],
                        side: MetricSide::$side,
                        help: $help,
                    },)*
                }
            }
        }
    };
}

#[rustfmt::skip]
metrics! {
    Build = "build_info", Info, ["version"], Both,
        "The version of walmgr that answers.";
    Up = "up", Gauge, ["cluster"], Both,
        "1 while a segment could be taken now; of a syncdaemon: its last pass ended well.";
    Rpo = "rpo_seconds", Gauge, ["cluster"], Master,
        "Age of the oldest commit that the receiver has not acknowledged; 0 if it has all.";
    ReceivedAge = "received_age_seconds", Gauge, ["cluster"], Standby,
        "Seconds since WAL arrived last. What would be lost only the master knows.";
    Behind = "behind_bytes", Gauge, ["cluster"], Master,
        "WAL written and not yet acknowledged by the receiver.";
    SynchronousOut = "synchronous_out", Gauge, ["cluster"], Master,
        "1 while the syncdaemon is taken out of synchronous_standby_names: commits do not wait.";
    HeldLsn = "held_lsn_bytes", Gauge, ["cluster"], Both,
        "Up to where WAL is held without a gap, as a position in bytes.";
    AgentAsked = "agent_asked_total", Counter, ["cluster"], Syncdaemon,
        "Files that xarchive asked the syncdaemon to archive.";
    AgentAnswered = "agent_answered_total", Counter, ["cluster"], Syncdaemon,
        "Those that had been shipped, or were on their way, when they were asked for.";
    AgentPushed = "agent_pushed_total", Counter, ["cluster"], Syncdaemon,
        "Those that were pushed because they were asked for.";
    AgentFailures = "agent_failures_total", Counter, ["cluster"], Syncdaemon,
        "Those that could not be archived.";
    AgentWaiting = "agent_waiting", Gauge, ["cluster"], Syncdaemon,
        "Ready files that are still to be shipped ahead; 64 at most are counted.";
    ArchiveSegments = "archive_segments_total", Counter, ["cluster"], Receiver,
        "WAL files stored and acknowledged.";
    ArchiveBytes = "archive_bytes_total", Counter, ["cluster", "kind"], Receiver,
        "WAL received, as files and record by record: raw as the server wrote it, wire as sent.";
    ArchiveDuration = "archive_duration_seconds", Histogram, ["cluster"], Receiver,
        "From the offer of a WAL file until it was durable.";
    FsyncDuration = "fsync_duration_seconds", Histogram, ["cluster"], Receiver,
        "Syncs of the archive's files and directories.";
    RecordsChecked = "records_checked_total", Counter, ["cluster"], Receiver,
        "WAL records checked before they were acknowledged.";
    Refusals = "refusals_total", Counter, ["reason"], Receiver,
        "Peers and requests refused, of all clusters and of strangers.";
    Connections = "connections", Gauge, ["cluster"], Receiver,
        "Connections of known peers.";
    WalGap = "wal_gap", Gauge, ["cluster"], Both,
        "1 while WAL is missing before other WAL: recovery would stop there.";
    DamagedFiles = "damaged_files", Gauge, ["cluster"], Both,
        "Files found damaged of which there is no good copy.";
    Backups = "backups", Gauge, ["cluster"], Both,
        "Backup sets there are.";
    BackupSuccess = "backup_last_success_timestamp_seconds", Gauge, ["cluster"], Both,
        "When the newest readable backup set began.";
    BackupDuration = "backup_last_duration_seconds", Gauge, ["cluster"], Standby,
        "How long the newest backup set took.";
    BackupSize = "backup_last_size_bytes", Gauge, ["cluster"], Standby,
        "Size of the newest backup set's files.";
    BackupOwn = "backup_last_own_bytes", Gauge, ["cluster"], Standby,
        "What removing the newest backup set would free: blocks that it shares with no other file.";
    BackupIncremental = "backup_last_incremental", Gauge, ["cluster"], Standby,
        "1 if the newest backup set was built on an older one, 0 if it is full.";
    BackupRead = "backup_last_read_bytes", Gauge, ["cluster"], Standby,
        "What was read on the master for the newest backup set.";
    BackupSent = "backup_last_sent_bytes", Gauge, ["cluster"], Standby,
        "What the master sent for it; what was read divided by this is the ratio that `status` shows.";
    BackupsSize = "backups_size_bytes", Gauge, ["cluster"], Standby,
        "Sizes of all backup sets' files.";
    BackupsOwn = "backups_own_bytes", Gauge, ["cluster"], Standby,
        "Blocks that belong to one backup set each and to no other file.";
    WalSize = "archived_wal_size_bytes", Gauge, ["cluster"], Standby,
        "Finished segments in the archive, as the server wrote them.";
    WalStored = "archived_wal_stored_bytes", Gauge, ["cluster"], Standby,
        "What they take as they are stored, packed or not; of more than 1,000 an estimate by a sample.";
    WindowStart = "recovery_window_start_timestamp_seconds", Gauge, ["cluster"], Standby,
        "Earliest time that a backup set can be recovered to.";
    WindowEnd = "recovery_window_end_timestamp_seconds", Gauge, ["cluster"], Standby,
        "When the newest WAL arrived that a recovery reaches.";
    DiskFree = "disk_free_bytes", Gauge, ["cluster"], Both,
        "Free for the archive's user where the archive is.";
    ReplayLag = "replay_lag_bytes", Gauge, ["cluster"], Standby,
        "WAL held that the standby's server has not replayed.";
    ReplayPaused = "replay_paused", Gauge, ["cluster"], Standby,
        "1 while replay is paused.";
    FrozenTimeline = "frozen_timeline", Gauge, ["cluster"], Standby,
        "Timeline whose records a boot froze; 0 if none is.";
    VerifySuccess = "verify_last_success_timestamp_seconds", Gauge, ["cluster"], Standby,
        "When `verify` last found everything good.";
    DrillSuccess = "drill_last_success_timestamp_seconds", Gauge, ["cluster"], Standby,
        "When the last drill began, if it ended well.";
    DrillRto = "drill_rto_seconds", Gauge, ["cluster"], Standby,
        "How long that drill took until its server was open.";
    Finding = "finding", Gauge, ["cluster", "code", "level"], Both,
        "1 for what `status` finds, 0 for the rest of its codes.";
    Refreshed = "refresh_timestamp_seconds", Gauge, ["cluster"], Both,
        "When it was last looked at what `status` shows.";
}

/// The tables of the manual's page, one for each side.
pub fn reference_tables() -> String {
    let row = |row: &MetricRow| {
        let labels = row.labels.iter().filter(|label| **label != "cluster");
        let labels: String = labels.map(|label| format!(", `{label}`")).collect();
        let (name, kind, help) = (row.name, row.kind.word(), row.help);
        format!("| `{PREFIX}_{name}` | {kind}{labels} | {help} |\n")
    };
    let table = |side: MetricSide| {
        let rows = Metric::ALL.iter().map(|metric| metric.row());
        let rows: String = rows.filter(|found| found.side == side).map(row).collect();
        let head = "| metric | type, further labels | meaning |\n|---|---|---|\n";
        format!("## {}\n\n{head}{rows}", side.words())
    };
    let sides = [
        MetricSide::Both,
        MetricSide::Master,
        MetricSide::Standby,
        MetricSide::Syncdaemon,
        MetricSide::Receiver,
    ];
    sides.map(table).join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_of_prometheus_words_and_end_with_their_unit() {
        let mut names = std::collections::BTreeSet::new();
        for metric in Metric::ALL {
            let row = metric.row();
            assert!(names.insert(row.name), "{} is there twice", row.name);
            let is_word = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
            assert!(row.name.bytes().all(is_word), "{}", row.name);
            assert_eq!(
                row.name.ends_with("_total"),
                row.kind == MetricKind::Counter,
                "{}",
                row.name
            );
            assert!(row.help.ends_with('.'), "{}", row.name);
            for forbidden in ["lsn", "segment", "set", "address", "path", "peer"] {
                assert!(!row.labels.contains(&forbidden), "{}", row.name);
            }
        }
        let split = |metric: Metric| metric.row().split();
        assert_eq!(split(Metric::ArchiveBytes), ("archive", Some("bytes")));
        assert_eq!(split(Metric::Rpo), ("rpo", Some("seconds")));
        assert_eq!(split(Metric::Build), ("build", None));
        assert_eq!(split(Metric::ArchiveSegments), ("archive_segments", None));
    }
}
