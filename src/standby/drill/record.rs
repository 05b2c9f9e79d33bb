//! `completed_wals/DRILL`: the drill that goes on or was killed, and how the last one ended; and who drills.
//! Never decides what is removed: the directory's own mark does. Invariant: a torn or foreign file says nothing.
//!
//! ```json
//! {
//!   "crc32": 2309737967,        of the compact form of the rest
//!   "last": {"begun_s": 1, ...}, only once a drill has ended; members that are not known are absent
//!   "under_way": {"begun_s": 1, "directory": "/srv/standby.drill", "process": 4711}
//! }
//! ```
//!
//! It is written durably before the directory is made and after it was removed. `.drill-lock` beside it is locked while a
//! drill goes on; its text is for people. A crash frees the lock and leaves `under_way`.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Write};
use std::path::PathBuf;

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use walmgr_protocol::limits::SMALL_FILE_BYTES_MAX;
use walmgr_protocol::names::{Lsn, TimelineId};

use crate::config::StandbyConfig;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use crate::output::escaped;
use crate::pg::recovery::time_text;
use crate::status::{DrillFacts, DrillOutcome};

const NAME: &str = "DRILL";
const LOCK_NAME: &str = ".drill-lock";

/// Notes that are kept of one drill; there are four kinds.
const NOTES_MAX: usize = 16;

/// A longer failure or note is cut: the file has to stay a small one.
const TEXT_CHARS_MAX: usize = 2_000;

/// A drill that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UnderWay {
    /// Where it works.
    pub(crate) directory: PathBuf,
    /// Its process.
    pub(crate) process: u32,
    /// When it began, in seconds since 1970.
    pub(crate) begun_s: i64,
}

/// What the file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct DrillRecord {
    /// One that goes on, or was killed.
    pub(crate) under_way: Option<UnderWay>,
    /// The last that ended.
    pub(crate) last: Option<DrillOutcome>,
}

impl DrillRecord {
    /// Reads it; an absent one is empty, and one that says nothing is told.
    pub(super) fn read(config: &StandbyConfig) -> DrillRecord {
        let path = path(config);
        match files::read_at_most(&path, SMALL_FILE_BYTES_MAX) {
            Ok(text) => DrillRecord::parse(&text).unwrap_or_else(|| {
                tracing::warn!("{} is damaged, or drill did not write it", path.display());
                DrillRecord::default()
            }),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!("read {}: {error}", path.display());
                }
                DrillRecord::default()
            }
        }
    }

    /// Writes it durably.
    pub(super) fn write(&self, config: &StandbyConfig) -> Result<()> {
        let path = path(config);
        files::replace_own(&path, self.text().as_bytes()).at(Kind::Retry, "write", &path)
    }

    /// The file.
    pub(crate) fn text(&self) -> String {
        let mut value = json!({});
        if let Some(under_way) = &self.under_way {
            value["under_way"] = json!({
                "directory": under_way.directory.to_string_lossy(),
                "process": under_way.process,
                "begun_s": under_way.begun_s,
            });
        }
        if let Some(last) = &self.last {
            value["last"] = outcome_value(last);
        }
        let crc32 = crc32fast::hash(value.to_string().as_bytes());
        value["crc32"] = json!(crc32);
        format!("{value:#}\n")
    }

    /// Sound only if every byte of it is what would be written.
    pub(crate) fn parse(text: &[u8]) -> Option<DrillRecord> {
        let value: Value = serde_json::from_slice(text).ok()?;
        let record = DrillRecord {
            under_way: match value.get("under_way") {
                None => None,
                Some(under_way) => Some(UnderWay {
                    directory: under_way.get("directory")?.as_str()?.into(),
                    process: u32::try_from(under_way.get("process")?.as_u64()?).ok()?,
                    begun_s: under_way.get("begun_s")?.as_i64()?,
                }),
            },
            last: match value.get("last") {
                None => None,
                Some(last) => Some(parse_outcome(last)?),
            },
        };
        (record.text().as_bytes() == text).then_some(record)
    }
}

fn outcome_value(outcome: &DrillOutcome) -> Value {
    let cut = |text: &str| -> String { text.chars().take(TEXT_CHARS_MAX).collect() };
    let notes = outcome.notes.iter().take(NOTES_MAX);
    let members = [
        ("begun_s", Some(json!(outcome.begun_s))),
        ("set", Some(json!(outcome.set))),
        (
            "timeline",
            outcome
                .reached
                .map(|(timeline, _)| json!(timeline.number())),
        ),
        (
            "lsn",
            outcome.reached.map(|(_, end)| json!(end.to_string())),
        ),
        ("commit_us", outcome.commit_us.map(|it| json!(it))),
        ("copied_ms", outcome.copied_ms.map(|it| json!(it))),
        ("replayed_ms", outcome.replayed_ms.map(|it| json!(it))),
        ("checked_ms", outcome.checked_ms.map(|it| json!(it))),
        ("notes", Some(notes.map(|note| json!(cut(note))).collect())),
        (
            "failure",
            outcome.failure.as_ref().map(|why| json!(cut(why))),
        ),
    ];
    let known = members
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(known.collect::<Map<_, _>>())
}

fn parse_outcome(value: &Value) -> Option<DrillOutcome> {
    let number = |name: &str| value.get(name).and_then(Value::as_u64);
    let timeline = number("timeline").and_then(|number| u32::try_from(number).ok());
    let timeline = timeline.and_then(TimelineId::new);
    let end = value.get("lsn").and_then(Value::as_str);
    let end = end.and_then(|text| text.parse::<Lsn>().ok());
    let notes = value.get("notes")?.as_array()?.iter();
    let notes = notes
        .take(NOTES_MAX)
        .map(|note| note.as_str().map(ToOwned::to_owned));
    Some(DrillOutcome {
        begun_s: value.get("begun_s")?.as_i64()?,
        set: value.get("set")?.as_str()?.to_owned(),
        reached: timeline.zip(end),
        commit_us: value.get("commit_us").and_then(Value::as_i64),
        copied_ms: number("copied_ms"),
        replayed_ms: number("replayed_ms"),
        checked_ms: number("checked_ms"),
        notes: notes.collect::<Option<_>>()?,
        failure: value
            .get("failure")
            .and_then(Value::as_str)
            .map(ToOwned::to_owned),
    })
}

fn path(config: &StandbyConfig) -> PathBuf {
    config.completed_wals.join(NAME)
}

/// Held by the one drill on an archive.
pub(super) struct DrillLock(#[expect(dead_code, reason = "dropping it ends the lock")] File);

impl DrillLock {
    /// Takes it; the error says who has it.
    pub(super) fn take(config: &StandbyConfig) -> Result<DrillLock> {
        let path = config.completed_wals.join(LOCK_NAME);
        let mut file = files::open_lock(&path).at(Kind::Config, "lock", &path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let who = holder(&mut file);
                return Err(
                    CommandError::retry(format!("another drill is running: {who}"))
                        .hint("wait until it ends; `status` shows its result"),
                );
            }
            Err(TryLockError::Error(error)) => return Err(error).at(Kind::Retry, "lock", &path),
        }
        let now_us = Timestamp::now().as_second().saturating_mul(1_000_000);
        let text = format!(
            "process {} since {}\n",
            std::process::id(),
            time_text(now_us)
        );
        // A full disk is no reason to refuse: the lock is what counts.
        let _ = file
            .set_len(0)
            .and_then(|()| file.write_all(text.as_bytes()));
        Ok(DrillLock(file))
    }
}

fn holder(file: &mut File) -> String {
    let mut text = Vec::new();
    let _ = file
        .take(SMALL_FILE_BYTES_MAX.min(256))
        .read_to_end(&mut text);
    match String::from_utf8_lossy(&text).trim() {
        "" => "an unknown process".to_owned(),
        who => escaped(who),
    }
}

/// What `status` tells.
pub(crate) fn facts(config: &StandbyConfig) -> DrillFacts {
    let record = DrillRecord::read(config);
    let lock = files::open_at_once(config.completed_wals.join(LOCK_NAME));
    let is_running =
        lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)));
    let now_s = Timestamp::now().as_second();
    let age_s =
        |begun_s: i64| crate::status::seconds(now_s.saturating_sub(begun_s).saturating_mul(1_000));
    let under_way = record.under_way;
    DrillFacts {
        last: record.last.map(|last| {
            let age_s = age_s(last.begun_s);
            (last, age_s)
        }),
        running: under_way
            .as_ref()
            .filter(|_| is_running)
            .map(|it| it.process),
        left: under_way
            .filter(|_| !is_running)
            .map(|it| it.directory.display().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_says_what_was_written_and_a_damaged_one_nothing() {
        let last = DrillOutcome {
            begun_s: 1_700_000_000,
            set: "data.master".to_owned(),
            reached: TimelineId::new(2).map(|timeline| (timeline, Lsn(0x500_0148))),
            commit_us: Some(1_700_000_000_123_456),
            copied_ms: Some(1_200),
            replayed_ms: Some(0),
            checked_ms: None,
            notes: vec!["a \"note\"".to_owned()],
            failure: Some("why".to_owned()),
        };
        let under_way = UnderWay {
            directory: "/srv/it's here".into(),
            process: 4711,
            begun_s: 1,
        };
        for record in [
            DrillRecord::default(),
            DrillRecord {
                under_way: Some(under_way),
                last: Some(DrillOutcome::begin(3)),
            },
            DrillRecord {
                under_way: None,
                last: Some(last),
            },
        ] {
            let text = record.text();
            assert_eq!(DrillRecord::parse(text.as_bytes()), Some(record), "{text}");
            for damaged in [
                text.replace("crc32", "crc33"),
                text.replace('1', "2"),
                text.trim_end().to_owned(),
            ] {
                assert_eq!(DrillRecord::parse(damaged.as_bytes()), None, "{damaged}");
            }
        }
    }

    #[test]
    fn a_long_failure_is_cut_and_read_again() {
        let record = DrillRecord {
            under_way: None,
            last: Some(DrillOutcome {
                failure: Some("é".repeat(3 * TEXT_CHARS_MAX)),
                ..DrillOutcome::begin(1)
            }),
        };
        let read = DrillRecord::parse(record.text().as_bytes()).unwrap();
        let failure = read.last.unwrap().failure.unwrap();
        assert_eq!(failure.chars().count(), TEXT_CHARS_MAX);
    }
}
