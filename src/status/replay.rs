//! How far the standby's server has replayed what is held, and what holds it up.
//! Never asks anybody. Invariant: each reason says what lets replay go on, and nothing that does not.

use walmgr_protocol::names::{Lsn, SegmentName, TimelineId};

use super::judge::{Code, Findings, Level};
use super::page::size_text;

/// Replay that is further behind than this, and for no reason that is known, is worth a look.
const WARNING_REPLAY_LAG_S: f64 = 300.0;

/// Where a server stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Replay {
    /// The timeline it replays.
    pub timeline: TimelineId,
    /// Where the last record ends that it has replayed.
    pub replayed: Lsn,
    /// Why the server was not asked; then it may have replayed more, and this comes from its control file.
    pub unasked: Option<String>,
    /// Bytes that are held and not replayed; no more than this where the server was not asked.
    pub lag_bytes: Option<u64>,
    /// The age of the first commit among them; 0 if there is none.
    pub lag_seconds: Option<f64>,
    /// What holds it up.
    pub holds: Vec<Hold>,
    /// Parameters that are too low for WAL that it has not replayed yet.
    pub too_low_ahead: Vec<TooLow>,
    /// Queries that were cancelled because of replay, since the statistics were reset.
    pub cancelled_queries: Option<i64>,
}

/// What holds replay up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hold {
    /// `pg_wal_replay_pause()`.
    Paused,
    /// It has reached the target of its recovery.
    AtTarget,
    /// Its server does not run, and a recovery target is where it ends when it is started.
    DownWithTarget,
    /// Parameters are lower than on the master: replay stops until they are raised.
    TooLow(Vec<TooLow>),
    /// A backup of the standby, and whose it is, until it has copied the data directory.
    Backup(String),
    /// `recovery_min_apply_delay`, and where it is set.
    Delay(String, String),
    /// Sessions, and `max_standby_archive_delay`, after which they are ended.
    Sessions(Vec<String>, String),
    /// The next record is in a segment in progress: archived replay reads finished ones only.
    InProgress(SegmentName),
    /// The next segment is not there.
    Missing(SegmentName),
    /// The next segment is there and not fit to be replayed.
    Damaged(String),
}

/// A parameter that a hot standby must not have lower than its master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TooLow {
    /// Its name.
    pub name: &'static str,
    /// What it is on the standby.
    pub here: i64,
    /// What it was on the master.
    pub needed: i64,
    /// Where the standby's value is set.
    pub place: String,
}

impl TooLow {
    /// What is wrong, for a sentence.
    pub(crate) fn sentence(list: &[TooLow]) -> String {
        let one = |low: &TooLow| {
            format!(
                "{} is {}, and {} on the master",
                low.name, low.here, low.needed
            )
        };
        list.iter().map(one).collect::<Vec<_>>().join("; ")
    }

    /// What to do about it.
    pub(crate) fn remedy(list: &[TooLow]) -> String {
        let one =
            |low: &TooLow| format!("set {} = {} (set in {})", low.name, low.needed, low.place);
        let all = list.iter().map(one).collect::<Vec<_>>().join(", ");
        format!("{all}, and restart the standby's server")
    }
}

impl Hold {
    /// For the row.
    pub(crate) fn text(&self) -> String {
        match self {
            Hold::Paused => "paused by pg_wal_replay_pause()".to_owned(),
            Hold::AtTarget => "its recovery has reached the target; `boot` opens it".to_owned(),
            Hold::DownWithTarget => "it does not run, and its recovery ends at a target; `boot` \
                starts it so that it opens there"
                .to_owned(),
            Hold::TooLow(list) => format!("a parameter is too low: {}", TooLow::sentence(list)),
            Hold::Backup(holder) => format!(
                "held (PAUSE.backup) until a backup has copied the data directory: {holder}"
            ),
            Hold::Delay(delay, place) => {
                format!("recovery_min_apply_delay = {delay}, set in {place}")
            }
            Hold::Sessions(who, limit) => sessions_text(who, limit),
            Hold::InProgress(segment) => format!("waits until {segment} is finished"),
            Hold::Missing(segment) => format!("waits for {segment}, which is missing"),
            Hold::Damaged(why) => format!("cannot go on: {why}"),
        }
    }
}

fn sessions_text(who: &[String], limit: &str) -> String {
    let who = match who {
        [] => "a session".to_owned(),
        who => who.join(", "),
    };
    let limit = match limit {
        "-1" => "max_standby_archive_delay = -1 sets no limit".to_owned(),
        limit => format!("max_standby_archive_delay = {limit} ends it"),
    };
    format!("held up by {who}; {limit}")
}

/// The row of the screen.
pub(super) fn row(replay: &Replay) -> String {
    let at_least = if replay.unasked.is_some() {
        "at least "
    } else {
        ""
    };
    let mut text = format!(
        "timeline {}, {at_least}up to {}",
        replay.timeline, replay.replayed
    );
    let at_most = if replay.unasked.is_some() {
        "at most "
    } else {
        ""
    };
    match (replay.lag_bytes, replay.lag_seconds) {
        (Some(0), _) => text.push_str(", all held WAL"),
        (Some(bytes), Some(seconds)) => text.push_str(&format!(
            ", {at_most}{} and {:.1} s behind the held WAL",
            size_text(bytes),
            seconds.max(0.0)
        )),
        (Some(bytes), None) => {
            text.push_str(&format!(
                ", {at_most}{} behind the held WAL",
                size_text(bytes)
            ));
        }
        (None, _) => {}
    }
    for hold in &replay.holds {
        text.push_str("; ");
        text.push_str(&hold.text());
    }
    if let Some(why) = &replay.unasked {
        text.push_str(&format!("; not asked: {why}"));
    }
    if let Some(count @ 1..) = replay.cancelled_queries {
        text.push_str(&format!("; {count} queries were cancelled for replay"));
    }
    text
}

pub(super) fn json(replay: &Replay) -> serde_json::Value {
    let rounded = |seconds: f64| (seconds * 1e3).round() / 1e3;
    let paused = |hold: &Hold| matches!(hold, Hold::Paused | Hold::AtTarget | Hold::TooLow(_));
    let backup = |hold: &Hold| match hold {
        Hold::Backup(holder) => Some(holder.clone()),
        _ => None,
    };
    serde_json::json!({
        "timeline": replay.timeline.number(),
        "replayed_lsn": replay.replayed.to_string(),
        "server_asked": replay.unasked.is_none(),
        "replay_lag_bytes": replay.lag_bytes,
        "replay_lag_seconds": replay.lag_seconds.map(|seconds| rounded(seconds.max(0.0))),
        "replay_paused": replay.holds.iter().any(paused),
        "held_by_backup": replay.holds.iter().find_map(backup),
        "reasons": replay.holds.iter().map(Hold::text).collect::<Vec<_>>(),
        "cancelled_queries": replay.cancelled_queries,
    })
}

pub(super) fn judge(found: &mut Findings, replay: &Replay) {
    if !replay.too_low_ahead.is_empty() {
        let list = &replay.too_low_ahead;
        let (what, remedy) = (TooLow::sentence(list), TooLow::remedy(list));
        found.warn(Code::Replay, format!("replay will stop: {what}; {remedy}"));
    }
    for hold in &replay.holds {
        match hold {
            Hold::Paused => found.warn(
                Code::Paused,
                "replay is paused by pg_wal_replay_pause(): SELECT pg_wal_replay_resume() on the \
                standby resumes it",
            ),
            Hold::TooLow(list) => {
                let (what, remedy) = (TooLow::sentence(list), TooLow::remedy(list));
                let text = format!("replay has stopped: {what}; {remedy}");
                found.alarm(Code::Replay, text);
            }
            Hold::Sessions(..) => found.warn(Code::Replay, format!("replay is {}", hold.text())),
            Hold::Missing(_) => {
                found.alarm(Code::Replay, format!("replay {}", hold.text()));
            }
            Hold::Damaged(_) => found.alarm(Code::Replay, format!("replay {}", hold.text())),
            // Somebody asked for it, or nothing is wrong.
            Hold::AtTarget
            | Hold::DownWithTarget
            | Hold::Backup(_)
            | Hold::Delay(..)
            | Hold::InProgress(_) => {}
        }
    }
    if let Some(seconds) = replay.lag_seconds
        && replay.holds.is_empty()
        && seconds > WARNING_REPLAY_LAG_S
    {
        let text = format!("replay is {seconds:.0} s behind the held WAL");
        found.add(Level::Warning, Code::Replay, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replay(holds: Vec<Hold>) -> Replay {
        Replay {
            timeline: TimelineId::FIRST,
            replayed: Lsn(0x500_0028),
            unasked: None,
            lag_bytes: Some(3 << 20),
            lag_seconds: Some(4_000.04),
            holds,
            too_low_ahead: Vec::new(),
            cancelled_queries: Some(2),
        }
    }

    #[test]
    fn a_row_says_position_lag_and_reason() {
        let hold = Hold::Delay("1h".to_owned(), "/c, line 3".to_owned());
        assert_eq!(
            row(&replay(vec![hold])),
            "timeline 1, up to 0/5000028, 3.00 MiB and 4000.0 s behind the held WAL; \
            recovery_min_apply_delay = 1h, set in /c, line 3; 2 queries were cancelled for replay"
        );
        let unasked = Replay {
            unasked: Some("it says no".to_owned()),
            lag_seconds: None,
            cancelled_queries: None,
            ..replay(vec![])
        };
        assert_eq!(
            row(&unasked),
            "timeline 1, at least up to 0/5000028, at most 3.00 MiB behind the held WAL; not \
            asked: it says no"
        );
    }

    #[test]
    fn a_lag_is_a_finding_only_where_nothing_explains_it() {
        let segment: SegmentName = "000000010000000000000005".parse().unwrap();
        let judged = |holds| {
            let mut found = Findings(Vec::new());
            judge(&mut found, &replay(holds));
            found
                .0
                .iter()
                .map(|it| (it.level, it.code))
                .collect::<Vec<_>>()
        };
        assert_eq!(judged(vec![]), [(Level::Warning, Code::Replay)]);
        assert_eq!(judged(vec![Hold::InProgress(segment)]), []);
        assert_eq!(judged(vec![Hold::AtTarget]), []);
        assert_eq!(judged(vec![Hold::Backup("main".to_owned())]), []);
        assert_eq!(judged(vec![Hold::DownWithTarget]), []);
        assert_eq!(judged(vec![Hold::Paused]), [(Level::Warning, Code::Paused)]);
        let low = TooLow {
            name: "max_connections",
            here: 10,
            needed: 20,
            place: "/c, line 3".to_owned(),
        };
        assert_eq!(
            judged(vec![Hold::TooLow(vec![low])]),
            [(Level::Critical, Code::Replay)]
        );
    }
}
