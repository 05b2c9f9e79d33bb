//! How the last drill ended, for people and for programs.
//! Never judges it. Invariant: a drill that failed says why, and one that did not says how far it came.

use serde_json::{Value, json};
use walmgr_protocol::names::{Lsn, TimelineId};

use super::page::ago;

/// The result of a drill.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct DrillOutcome {
    /// When it began, in seconds since 1970.
    pub begun_s: i64,
    /// The set; empty where none could be chosen.
    pub set: String,
    /// The timeline and the end of the last record that was replayed.
    pub reached: Option<(TimelineId, Lsn)>,
    /// When the last commit before that happened, in microseconds since 1970.
    pub commit_us: Option<i64>,
    /// How long it took to bring the set, in milliseconds.
    pub copied_ms: Option<u64>,
    /// How long replay took, until the server was open.
    pub replayed_ms: Option<u64>,
    /// How long the checks took.
    pub checked_ms: Option<u64>,
    /// What was not checked, or will not be as it was here.
    pub notes: Vec<String>,
    /// Why it failed.
    pub failure: Option<String>,
}

/// What `status` knows of drills.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct DrillFacts {
    /// The last one, and how many seconds ago it began.
    pub last: Option<(DrillOutcome, f64)>,
    /// The process of one that goes on.
    pub running: Option<u32>,
    /// The directory of one that was killed.
    pub left: Option<String>,
}

impl DrillOutcome {
    /// One that has begun.
    pub(crate) fn begin(begun_s: i64) -> DrillOutcome {
        DrillOutcome {
            begun_s,
            ..DrillOutcome::default()
        }
    }

    /// The time until the server was open, in milliseconds.
    pub(super) fn rto_ms(&self) -> Option<u64> {
        Some(self.copied_ms? + self.replayed_ms?)
    }

    /// What a successful one prints.
    pub(crate) fn text(&self) -> String {
        let (timeline, end) = match self.reached {
            Some((timeline, end)) => (timeline.to_string(), end.to_string()),
            None => ("unknown".to_owned(), "unknown".to_owned()),
        };
        let mut lines = vec![
            format!(
                "{} restores: it was replayed to {end} of timeline {timeline}, {}",
                self.set,
                self.commit_text()
            ),
            format!(
                "  RTO        {}: set brought in {}, WAL replayed in {}; checked in {}",
                seconds_text(self.rto_ms()),
                seconds_text(self.copied_ms),
                seconds_text(self.replayed_ms),
                seconds_text(self.checked_ms)
            ),
        ];
        lines.extend(self.notes.iter().map(|note| format!("  note       {note}")));
        lines.join("\n")
    }

    fn commit_text(&self) -> String {
        match self.commit_us {
            Some(commit_us) => format!("the last commit is of {}", time_text(commit_us)),
            None => "its last segments hold no commit".to_owned(),
        }
    }

    /// For programs; `age_s` is how long ago it began.
    pub(crate) fn json(&self, age_s: f64) -> Value {
        let seconds = |ms: Option<u64>| ms.map(seconds_of);
        json!({
            "set": Some(&self.set).filter(|set| !set.is_empty()),
            "age_seconds": age_s.round(),
            "timeline": self.reached.map(|(timeline, _)| timeline.number()),
            "lsn": self.reached.map(|(_, end)| end.to_string()),
            "commit_time": self.commit_us.map(time_text),
            "rto_seconds": seconds(self.rto_ms()),
            "copy_seconds": seconds(self.copied_ms),
            "replay_seconds": seconds(self.replayed_ms),
            "check_seconds": seconds(self.checked_ms),
            "notes": self.notes,
            "failure": self.failure,
        })
    }
}

impl DrillFacts {
    /// The row of the screen; none where nothing was drilled.
    pub(super) fn row(&self) -> Option<String> {
        let running = self.running.map(|pid| format!("process {pid} drills"));
        let last = self.last.as_ref().map(|(last, age_s)| {
            let (set, age) = (&last.set, ago(*age_s));
            match (&last.failure, last.reached) {
                (Some(_), _) => format!("failed {age}"),
                (None, Some((_, end))) => format!(
                    "{set} {age}, in {} to {end}, {}",
                    seconds_text(last.rto_ms()),
                    last.commit_text()
                ),
                (None, None) => format!("{set} {age}"),
            }
        });
        let words: Vec<String> = running.into_iter().chain(last).collect();
        (!words.is_empty()).then(|| words.join("; "))
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        (self.last.as_ref()).map_or(Value::Null, |(last, age_s)| last.json(*age_s))
    }
}

/// In UTC, as PostgreSQL reads it anywhere.
fn time_text(time_us: i64) -> String {
    match jiff::Timestamp::from_microsecond(time_us) {
        Ok(time) => {
            let utc = time.to_zoned(jiff::tz::TimeZone::UTC);
            format!("{}+00", utc.strftime("%Y-%m-%d %H:%M:%S%.6f"))
        }
        Err(_) => format!("{time_us} microseconds since 1970"),
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a drill takes no 53 bits of milliseconds"
)]
fn seconds_of(ms: u64) -> f64 {
    ms as f64 / 1e3
}

fn seconds_text(ms: Option<u64>) -> String {
    ms.map_or_else(
        || "unknown".to_owned(),
        |ms| format!("{:.1} s", seconds_of(ms)),
    )
}
