//! The status as a screen for people and as JSON for programs.
//! Never judges. Invariant: the first line, and the first member, is the recovery point in seconds.
//!
//! # Members of the JSON
//!
//! A number or an object that nobody can tell is `null`; times are seconds, LSNs are text. An age below 0
//! is a time ahead of the clock.
//!
//! | member | is |
//! |---|---|
//! | `rpo_seconds` | age of the first transaction that was committed on the master and is not on the standby; 0 if there is none |
//! | `rpo_seconds_at_most` | an upper bound where the exact number is not known |
//! | `bytes_behind` | flushed WAL that is not on the standby |
//! | `state` | `ok`, `warning` or `critical`, as the exit code |
//! | `findings` | array of `level`, `code`, `text`; the codes are [`super::judge::Code`]'s |
//! | `side` | `master` or `standby`: where it was asked |
//! | `master` | on the master: `receiver`, `timeline`, `flushed_lsn`, `server_reachable`, `is_standby`, `archiving` (`on`, `off`, `foreign`), `archiver` (`last_archived`, `last_archived_age_seconds`, `failed_count`, `last_failed`, `last_failed_age_seconds`), `syncdaemon` (`running`, `stopped`, `died`), `standby_clock_ahead_seconds` |
//! | `standby` | on the standby: `receiver_runs`, `paused`, `wal_segments`, `wal_size_bytes` (as the server wrote them), `wal_stored_bytes` (as they are stored; of more than 1,000 an estimate), `newest_set` (`set`, `kind`, `read_bytes`, `sent_bytes`, `ratio`, `own_bytes`), `sets_size_bytes` (the files of all sets), `sets_own_bytes` (blocks that one set has and no other file), `sets_locked_by`, `server_runs`, `frozen_timeline`, `tablespace`, `unreplayable`, `moved_set`, `unfinished_boot`, `unfinished_drill`, `drill` (`set`, `age_seconds`, `timeline`, `lsn`, `commit_time`, `rto_seconds`, `copy_seconds`, `replay_seconds`, `check_seconds`, `notes`, `failure`), `replay` (`timeline`, `replayed_lsn`, `server_asked`, `replay_lag_bytes`, `replay_lag_seconds`, `replay_paused`, `held_by_backup`, `reasons`, `cancelled_queries`) |
//! | `receiver_reachable` | on the master: whether the receiver answered |
//! | `archive` | `system_identifier`, `newest_segment`, `newest_segment_age_seconds`, `partial_segment`, `partial_lsn`, `held_timeline`, `held_lsn`, `received_age_seconds`, `missing_segment`, `damaged_files`, `files_apart`, `differing_files`, `free_bytes`, `path` |
//! | `shipped_by` | who ships records |
//! | `connected_masters` | array of text |
//! | `backups` | array of `set`, `timestamp`, `age_seconds`, `timeline`, `start_lsn`, `reaches_lsn`, or `set` and `error` |
//! | `recovery_window` | `set`, `from_lsn`, `from_age_seconds`, `to_lsn`, `to_age_seconds` |

use indicatif::HumanBytes;
use serde_json::{Value, json};
use walmgr_protocol::message::Overview;
use walmgr_protocol::message::overview::{SetReach, SetStanding};

use super::{
    AgentFacts, AgentFigures, Archiver, Archiving, Facts, Finding, Here, MadeFigures, Master,
    SetFigures, SetsSizes, StandbyFacts, StoredWal, StreamFacts, Syncdaemon, seconds,
};
use crate::output::progress::ratio;

/// The screen.
pub(super) fn text(facts: &Facts, findings: &[Finding]) -> String {
    let mut lines = vec![brief(facts, findings)];
    // Paths, names and words of the other side: each row stays one.
    let mut row = |name: &str, value: String| {
        let value = crate::output::escaped(&value);
        lines.push(format!("  {name:10} {value}"));
    };
    match &facts.here {
        Here::Master(master) => master_rows(master, &mut row),
        Here::Standby(standby) => {
            row("receiver", standby_text(standby));
            if let Some(replay) = &standby.replay {
                row("replay", super::replay::row(replay));
            }
            if let StreamFacts::Frozen(timeline) = standby.stream {
                let text = format!("timeline {timeline} is frozen: the standby was booted");
                row("stream", text);
            }
            if let Some(sentence) = &standby.moved_set {
                row("moved set", sentence.clone());
            }
            if let Some(drill) = standby.drill.row() {
                row("drill", drill);
            }
        }
    }
    if let Ok(overview) = &facts.standby {
        archive_rows(overview, &mut row);
    }
    if let Here::Standby(standby) = &facts.here {
        if let Some((set, made)) = newest_made(standby, facts.standby.as_ref().ok()) {
            row("made", made_text(set, made));
        }
        if let Some(wal) = standby.wal.filter(|wal| wal.segments > 0) {
            row("wal", wal_text(wal));
        }
        if let Some(sizes) = sizes_text(SetsSizes::of(&standby.sets)) {
            row("sizes", sizes);
        }
        if let Some(retention) = &standby.retention {
            row("kept", retention.text());
        }
    }
    lines.join("\n")
}

/// The recovery point and what is wrong, a line each.
pub(super) fn brief(facts: &Facts, findings: &[Finding]) -> String {
    let state = state(findings);
    let mut text = format!("RPO {}: {state}", lag_text(facts));
    for finding in findings {
        let (level, what) = (finding.level.word(), crate::output::escaped(&finding.text));
        let runbook = finding.code.runbook();
        text.push_str(&format!("\n{level}: {what} (walmgr help {runbook})"));
    }
    text
}

fn state(findings: &[Finding]) -> &'static str {
    findings
        .first()
        .map_or("ok", |finding| finding.level.word())
}

fn lag_text(facts: &Facts) -> String {
    let lag = facts.lag.known();
    let seconds = match (lag.seconds, lag.seconds_at_most) {
        (Some(seconds), _) => format!("{seconds:.1} s"),
        (None, Some(most)) => format!("at most {most:.1} s"),
        (None, None) => "unknown".to_owned(),
    };
    let lacks = (facts.standby.as_ref().ok()).and_then(|overview| overview.missing);
    match (lag.bytes, lacks) {
        // Without a backup everything counts as held from behind the gap on.
        (Some(0), Some(_)) => format!("{seconds}, the standby holds everything behind a gap"),
        (Some(0), None) => format!("{seconds}, the standby holds everything"),
        (Some(bytes), _) if lag.seconds == Some(0.0) => {
            let behind = size_text(bytes);
            format!("{seconds}, {behind} behind without a committed transaction")
        }
        (Some(bytes), _) => format!("{seconds}, {} behind", size_text(bytes)),
        (None, _) => seconds,
    }
}

fn master_rows(master: &Master, row: &mut impl FnMut(&str, String)) {
    if let Some((timeline, flushed)) = master.flushed {
        row("master", format!("timeline {timeline}, flushed {flushed}"));
    }
    row("receiver", master.receiver.clone());
    if let Some(archiver) = &master.archiver {
        row("archiver", archiver_text(archiver));
    }
    let syncdaemon = match master.syncdaemon {
        Syncdaemon::Running => "running",
        Syncdaemon::Stopped => "not running",
        Syncdaemon::Died => "died",
    };
    let heard = match &master.agent {
        Some(AgentFacts::Heard(figures)) => agent_text(figures),
        Some(AgentFacts::Unheard(_)) => "; xarchive pushes by itself".to_owned(),
        None => String::new(),
    };
    row("syncdaemon", format!("{syncdaemon}{heard}"));
}

fn agent_text(figures: &AgentFigures) -> String {
    let AgentFigures {
        asked,
        answered,
        failures,
        waiting,
    } = figures;
    let mut text = match asked {
        0 => "; xarchive may ask it".to_owned(),
        1 => format!("; xarchive asked for 1 file, {answered} shipped before"),
        _ => format!("; xarchive asked for {asked} files, {answered} shipped before"),
    };
    if *failures > 0 {
        text.push_str(&format!(", {failures} failed"));
    }
    if *waiting > 0 {
        text.push_str(&format!("; {waiting} ready to be shipped"));
    }
    text
}

fn archiver_text(archiver: &Archiver) -> String {
    let mut text = match &archiver.last_archived {
        Some((name, age_s)) => format!("{name} {}", ago(*age_s)),
        None => "nothing yet".to_owned(),
    };
    if archiver.failed_count > 0 {
        text.push_str(&format!("; {} failures", archiver.failed_count));
    }
    if let Some((name, age_s)) = &archiver.last_failed {
        text.push_str(&format!(", the last with {name} {}", ago(*age_s)));
    }
    text
}

fn standby_text(standby: &StandbyFacts) -> String {
    let receiver = match standby.receiver_runs {
        true => "running",
        false => "not running",
    };
    let server = match standby.server_runs {
        Some(true) => "; the standby's server runs",
        Some(false) => "; the standby's server does not run",
        None => "",
    };
    let paused = if standby.paused {
        "; replay is paused"
    } else {
        ""
    };
    let locked = match &standby.locked {
        Some(lock) => format!("; the backup sets are locked: {}", lock.holder),
        None => String::new(),
    };
    format!("{receiver}{server}{paused}{locked}")
}

fn archive_rows(overview: &Overview, row: &mut impl FnMut(&str, String)) {
    if let Some(newest) = overview.newest_segment {
        let age = ago(seconds(overview.newest_age_ms));
        row("archived", format!("{newest} {age}"));
    }
    if let Some(partial) = overview.partial_segment {
        let by = match overview.shipped_by.as_str() {
            "" => String::new(),
            who => format!(", shipped by {who}"),
        };
        row(
            "partial",
            format!("{partial} up to {}{by}", overview.partial_end),
        );
    }
    if let Some((timeline, end)) = overview.held {
        let age = ago(seconds(overview.received_age_ms));
        row(
            "held",
            format!("up to {end} of timeline {timeline}, received {age}"),
        );
    }
    let masters = match overview.masters_count {
        0 => "none".to_owned(),
        _ => overview.masters.join(", "),
    };
    row("masters", masters);
    let newest = super::judge::newest(overview);
    let newest = newest.map_or(String::new(), |(name, reach)| {
        format!(
            ", the newest is {name}, begun {}",
            ago(seconds(reach.age_ms))
        )
    });
    row("backups", format!("{}{newest}", overview.sets_count));
    if let Some((set, reach)) = window(overview) {
        let (from, to) = (ago(seconds(reach.age_ms)), reach.reaches);
        row("window", format!("from {from} ({}) to {to}", set.name));
    }
    let (free, path) = (size_text(overview.free_bytes), &overview.completed_wals);
    row("disk", format!("{free} free at {path}"));
}

/// The newest set that can be read, if it says how it was made.
fn newest_made<'a>(
    standby: &'a StandbyFacts,
    overview: Option<&Overview>,
) -> Option<(&'a SetFigures, MadeFigures)> {
    let (newest, _) = super::judge::newest(overview?)?;
    let set = standby.sets.iter().find(|set| set.name == newest)?;
    Some((set, set.made?))
}

fn made_text(set: &SetFigures, made: MadeFigures) -> String {
    let MadeFigures {
        is_incremental,
        read_bytes,
        sent_bytes,
    } = made;
    let kind = kind_word(is_incremental);
    let own = set
        .own_bytes
        .map(|own| format!(", {} its own", size_text(own)));
    format!(
        "{} is {kind}: {} read, {} sent, ratio {:.2}{}",
        set.name,
        size_text(read_bytes),
        size_text(sent_bytes),
        ratio(read_bytes, sent_bytes),
        own.unwrap_or_default()
    )
}

const fn kind_word(is_incremental: bool) -> &'static str {
    if is_incremental {
        "incremental"
    } else {
        "full"
    }
}

fn newest_set_json(standby: &StandbyFacts, overview: Option<&Overview>) -> Value {
    newest_made(standby, overview).map_or(Value::Null, |(set, made)| {
        json!({
            "set": set.name,
            "kind": kind_word(made.is_incremental),
            "read_bytes": made.read_bytes,
            "sent_bytes": made.sent_bytes,
            "ratio": (ratio(made.read_bytes, made.sent_bytes) * 1e2).round() / 1e2,
            "own_bytes": set.own_bytes,
        })
    })
}

fn wal_text(wal: StoredWal) -> String {
    let (size, stored) = (size_text(wal.size_bytes), size_text(wal.stored_bytes));
    match wal.segments {
        1 => format!("1 segment of {size}, {stored} as it is stored"),
        count => format!("{count} segments of {size}, {stored} as they are stored"),
    }
}

/// What all sets take; nothing where there are none.
fn sizes_text(sizes: SetsSizes) -> Option<String> {
    let size = sizes.size_bytes.filter(|bytes| *bytes > 0)?;
    let own = sizes.own_bytes.map(|own| {
        let own = size_text(own);
        format!(", {own} on the disk beside what sets share")
    });
    Some(format!(
        "{} in all sets{}",
        size_text(size),
        own.unwrap_or_default()
    ))
}

/// The oldest set that leads to the end of what is held.
pub(super) fn window(overview: &Overview) -> Option<(&SetStanding, &SetReach)> {
    let (_, end) = overview.held?;
    let readable = overview.sets.iter().rev();
    let mut readable = readable.filter_map(|set| Some((set, set.reach.as_ref().ok()?)));
    readable.find(|(_, reach)| reach.reaches >= end)
}

/// One JSON object on one line; `rpo_seconds` first.
pub(super) fn json(facts: &Facts, findings: &[Finding]) -> String {
    let rounded = |seconds: Option<f64>| seconds.map(|seconds| (seconds * 1e3).round() / 1e3);
    let listed = findings.iter().map(|finding| {
        json!({
            "level": finding.level.word(),
            "code": finding.code.word(),
            "text": finding.text,
        })
    });
    let (overview, lag) = (facts.standby.as_ref().ok(), facts.lag.known());
    let (side, master, standby) = match &facts.here {
        Here::Master(master) => ("master", master_json(master), Value::Null),
        Here::Standby(standby) => ("standby", Value::Null, standby_json(standby, overview)),
    };
    let reachable = match &facts.here {
        Here::Master(_) => json!(facts.standby.is_ok()),
        Here::Standby(_) => Value::Null,
    };
    // A map of serde_json would sort them.
    let members = [
        ("rpo_seconds", json!(rounded(lag.seconds))),
        ("rpo_seconds_at_most", json!(rounded(lag.seconds_at_most))),
        ("bytes_behind", json!(lag.bytes)),
        ("state", json!(state(findings))),
        ("findings", Value::Array(listed.collect())),
        ("side", json!(side)),
        ("master", master),
        ("standby", standby),
        ("receiver_reachable", reachable),
        ("archive", overview.map_or(Value::Null, archive_json)),
        (
            "shipped_by",
            json!(
                overview
                    .map(|found| &found.shipped_by)
                    .filter(|who| !who.is_empty())
            ),
        ),
        (
            "connected_masters",
            json!(overview.map(|found| &found.masters)),
        ),
        ("backups", overview.map_or(Value::Null, backups_json)),
        ("recovery_window", overview.map_or(Value::Null, window_json)),
    ];
    let members = members.map(|(name, value)| format!("\"{name}\":{value}"));
    format!("{{{}}}", members.join(","))
}

fn master_json(master: &Master) -> Value {
    let archiving = master.archiving.as_ref().map(|archiving| match archiving {
        Archiving::On => "on",
        Archiving::Off(_) | Archiving::Kept(_) => "off",
        Archiving::Unheard(_) => "unheard",
        Archiving::Foreign(_) => "foreign",
    });
    let syncdaemon = match master.syncdaemon {
        Syncdaemon::Running => "running",
        Syncdaemon::Stopped => "stopped",
        Syncdaemon::Died => "died",
    };
    let agent = master.agent.as_ref().map(|agent| match agent {
        AgentFacts::Heard(figures) => json!({
            "asked": figures.asked,
            "answered": figures.answered,
            "failures": figures.failures,
            "waiting": figures.waiting,
        }),
        AgentFacts::Unheard(why) => json!({ "unheard": why }),
    });
    let archiver = master.archiver.as_ref().map(|archiver| {
        let name = |file: &Option<(String, f64)>| file.as_ref().map(|(name, _)| name.clone());
        let age = |file: &Option<(String, f64)>| file.as_ref().map(|(_, age_s)| age_s.round());
        json!({
            "last_archived": name(&archiver.last_archived),
            "last_archived_age_seconds": age(&archiver.last_archived),
            "failed_count": archiver.failed_count,
            "last_failed": name(&archiver.last_failed),
            "last_failed_age_seconds": age(&archiver.last_failed),
        })
    });
    json!({
        "receiver": master.receiver,
        "timeline": master.flushed.map(|(timeline, _)| timeline.number()),
        "flushed_lsn": master.flushed.map(|(_, flushed)| flushed.to_string()),
        "server_reachable": master.unasked.is_none(),
        "is_standby": master.is_standby,
        "archiving": archiving,
        "archiver": archiver,
        "syncdaemon": syncdaemon,
        "agent": agent,
        "standby_clock_ahead_seconds": master.clock_ahead,
    })
}

fn standby_json(standby: &StandbyFacts, overview: Option<&Overview>) -> Value {
    json!({
        "receiver_runs": standby.receiver_runs,
        "paused": standby.paused,
        "wal_segments": standby.wal.map(|wal| wal.segments),
        "wal_size_bytes": standby.wal.map(|wal| wal.size_bytes),
        "wal_stored_bytes": standby.wal.map(|wal| wal.stored_bytes),
        "newest_set": newest_set_json(standby, overview),
        "sets_size_bytes": SetsSizes::of(&standby.sets).size_bytes,
        "sets_own_bytes": SetsSizes::of(&standby.sets).own_bytes,
        "sets_locked_by": standby.locked.as_ref().map(|lock| lock.holder.clone()),
        "server_runs": standby.server_runs,
        "replay": standby.replay.as_ref().map(super::replay::json),
        "frozen_timeline": match standby.stream {
            StreamFacts::Frozen(timeline) => Some(timeline.number()),
            StreamFacts::Open | StreamFacts::Unknown(_) => None,
        },
        "tablespace": standby.tablespace,
        "unreplayable": standby.unreplayable,
        "moved_set": standby.moved_set,
        "changed_by_boot": standby.changed_by_boot,
        "unfinished_boot": standby.unfinished_boot,
        "drill": standby.drill.json(),
        "unfinished_drill": standby.drill.left,
        "retention": standby.retention.as_ref().map(super::RetentionFacts::json),
    })
}

fn archive_json(overview: &Overview) -> Value {
    let text =
        |name: Option<walmgr_protocol::names::SegmentName>| name.map(|name| name.to_string());
    let partial = overview.partial_segment;
    let newest = overview.newest_segment;
    json!({
        "system_identifier": overview.cluster.map(|cluster| cluster.system_id.to_string()),
        "newest_segment": text(newest),
        "newest_segment_age_seconds": newest.map(|_| seconds(overview.newest_age_ms)),
        "partial_segment": text(partial),
        "partial_lsn": partial.map(|_| overview.partial_end.to_string()),
        "held_timeline": overview.held.map(|(timeline, _)| timeline.number()),
        "held_lsn": overview.held.map(|(_, end)| end.to_string()),
        "received_age_seconds": overview.held.map(|_| seconds(overview.received_age_ms)),
        "missing_segment": text(overview.missing),
        "damaged_files": overview.damaged_count,
        "files_apart": overview.apart_count,
        "differing_files": overview.differing_count,
        "free_bytes": overview.free_bytes,
        "path": overview.completed_wals,
    })
}

fn backups_json(overview: &Overview) -> Value {
    let sets = overview.sets.iter().map(|set| match &set.reach {
        Ok(reach) => json!({
            "set": set.name,
            "timestamp": reach.timestamp,
            "age_seconds": seconds(reach.age_ms),
            "timeline": reach.timeline.number(),
            "start_lsn": reach.start.to_string(),
            "reaches_lsn": reach.reaches.to_string(),
        }),
        Err(why) => json!({ "set": set.name, "error": why }),
    });
    Value::Array(sets.collect())
}

fn window_json(overview: &Overview) -> Value {
    window(overview).map_or(Value::Null, |(set, reach)| {
        json!({
            "set": set.name,
            "from_lsn": reach.start.to_string(),
            "from_age_seconds": seconds(reach.age_ms),
            "to_lsn": reach.reaches.to_string(),
            "to_age_seconds": seconds(overview.received_age_ms),
        })
    })
}

/// Bytes for people.
pub(super) fn size_text(bytes: u64) -> String {
    HumanBytes(bytes).to_string()
}

/// An age for people.
pub(super) fn ago(age_s: f64) -> String {
    match age_s {
        age if age <= -0.5 => format!("{:.0} s ahead of the clock", -age),
        age if age < 120.0 => format!("{:.0} s ago", age.max(0.0)),
        age if age < 7_200.0 => format!("{:.0} min ago", age / 60.0),
        age if age < 172_800.0 => format!("{:.1} h ago", age / 3_600.0),
        age => format!("{:.1} d ago", age / 86_400.0),
    }
}
