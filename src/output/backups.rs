//! The list of backup sets, as both sides print it.
//! Never asks where the sets are. Invariant: a set is one line, whatever its label contains.

use indicatif::BinaryBytes;
use serde_json::{Value, json};
use walmgr_protocol::message::fetch::{MadeOn, SetDetails};

/// A backup set as its `backup_label` describes it, or why nobody can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupLine {
    /// Its name.
    pub set: String,
    /// What the label says.
    pub label: Result<BackupFacts, String>,
    /// What is known beside it.
    pub details: BackupDetails,
    /// What becomes of it, if that is decided here.
    pub kept: Option<KeptLine>,
    /// Why it is of no use on the newest timeline, if its backup ended off that one's line, and that is seen here.
    pub off_line: Option<String>,
}

/// What becomes of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptLine {
    /// Whether the next backup or `expire` removes it.
    pub goes: bool,
    /// Why it stays or goes.
    pub why: String,
    /// Whether WAL leads on from its end, as far as that is kept for it.
    pub has_way_forward: bool,
    /// The note of its pin, if it has one.
    pub pin: Option<String>,
}

/// What a label says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupFacts {
    /// `START TIME`, as the master wrote it.
    pub timestamp: String,
    /// `LABEL`.
    pub label: String,
    /// The first segment that a recovery of the set reads.
    pub first_wal: String,
    /// The timeline that the backup was made on.
    pub timeline: u32,
    /// The LSN at which a recovery of the set begins.
    pub start: String,
}

/// What is known of a set beside its label.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BackupDetails {
    /// The lengths of its files.
    pub size_bytes: Option<u64>,
    /// What its removal would free on the standby's disk.
    pub own_bytes: Option<u64>,
    /// How long it took to make, in seconds.
    pub duration_s: Option<u64>,
    /// The LSN at which the backup ended.
    pub stop: Option<String>,
    /// Where it was made: `master` or `standby`.
    pub made_on: Option<&'static str>,
}

impl From<SetDetails> for BackupDetails {
    fn from(details: SetDetails) -> Self {
        BackupDetails {
            size_bytes: details.size_bytes,
            own_bytes: details.own_bytes,
            duration_s: details.duration_s,
            stop: details.stop.map(|lsn| lsn.to_string()),
            made_on: details.made_on.map(MadeOn::word),
        }
    }
}

const HEAD: [&str; 4] = ["Backup set", "Timestamp", "Label", "First WAL"];
const WIDTHS: [usize; 4] = [15, 24, 11, 24];

/// What `-v` adds.
const MORE: [&str; 7] = [
    "Timeline",
    "WAL range",
    "Size",
    "Own",
    "Duration",
    "Made on",
    "Stays or goes",
];

/// What stands where a value is not known.
const UNKNOWN: &str = "-";

/// The list for people: the manual's table, with `verbose` more columns.
pub fn text(backups: &[BackupLine], verbose: bool) -> String {
    match verbose {
        false => table(backups, HEAD, WIDTHS, row),
        true => {
            let (mut head, mut widths) = ([""; 11], [0; 11]);
            widths[..4].copy_from_slice(&WIDTHS);
            head[..4].copy_from_slice(&HEAD);
            head[4..].copy_from_slice(&MORE);
            table(backups, head, widths, row_with_details)
        }
    }
}

fn table<const COLUMNS: usize>(
    backups: &[BackupLine],
    head: [&str; COLUMNS],
    mut widths: [usize; COLUMNS],
    row: fn(&BackupLine) -> [String; COLUMNS],
) -> String {
    if backups.is_empty() {
        return "There are no backups.".to_owned();
    }
    let rows: Vec<[String; COLUMNS]> = backups.iter().map(row).collect();
    let head = head.map(str::to_owned);
    for row in [&head].into_iter().chain(&rows) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let rule = widths.map(|width| "-".repeat(width));
    let mut text = String::from("List of backups:\n");
    for row in [head, rule].iter().chain(&rows) {
        let cells = row.iter().zip(widths);
        let cells: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push('\n');
        text.push_str(cells.join(" ").trim_end());
    }
    text
}

/// The list for programs: the JSON text of [`value`].
pub fn json(backups: &[BackupLine]) -> String {
    value(backups).to_string()
}

/// The list as a JSON array with an object for each set. What is not known is null.
pub fn value(backups: &[BackupLine]) -> Value {
    let sets = backups.iter().map(|backup| {
        let details = &backup.details;
        let mut set = match &backup.label {
            Ok(facts) => json!({
                "set": backup.set,
                "timestamp": facts.timestamp,
                "label": facts.label,
                "first_wal": facts.first_wal,
                "timeline": facts.timeline,
                "start_lsn": facts.start,
            }),
            Err(why) => json!({
                "set": backup.set,
                "error": why,
                "timeline": null,
                "start_lsn": null,
            }),
        };
        set["stop_lsn"] = json!(details.stop);
        set["size_bytes"] = json!(details.size_bytes);
        set["own_bytes"] = json!(details.own_bytes);
        set["duration_s"] = json!(details.duration_s);
        set["made_on"] = json!(details.made_on);
        let kept = backup.kept.as_ref();
        set["goes"] = json!(kept.map(|kept| kept.goes));
        set["why"] = json!(kept.map(|kept| &kept.why));
        set["pinned"] = json!(kept.map(|kept| kept.pin.is_some()));
        set["note"] = json!(kept.and_then(|kept| kept.pin.as_ref()));
        set["off_line"] = json!(backup.off_line);
        set["has_way_forward"] = json!(kept.map(|kept| kept.has_way_forward));
        set
    });
    Value::Array(sets.collect())
}

fn row(backup: &BackupLine) -> [String; 4] {
    let set = backup.set.as_str();
    let unreadable;
    let cells = match &backup.label {
        Ok(facts) => [set, &facts.timestamp, &facts.label, &facts.first_wal],
        Err(why) => {
            unreadable = format!("damaged: {why}");
            [set, "", &unreadable, ""]
        }
    };
    cells.map(super::escaped)
}

fn row_with_details(backup: &BackupLine) -> [String; 11] {
    let details = &backup.details;
    let unknown = || UNKNOWN.to_owned();
    let (timeline, range) = match &backup.label {
        Err(_) => (unknown(), unknown()),
        Ok(facts) => {
            let stop = details.stop.as_deref().unwrap_or(UNKNOWN);
            (
                facts.timeline.to_string(),
                format!("{} - {stop}", facts.start),
            )
        }
    };
    let bytes = |bytes: Option<u64>| bytes.map_or_else(unknown, |it| BinaryBytes(it).to_string());
    let (size, own) = (bytes(details.size_bytes), bytes(details.own_bytes));
    let duration = details.duration_s.map_or_else(unknown, duration_text);
    let made_on = details.made_on.unwrap_or(UNKNOWN).to_owned();
    let kept = backup.kept.as_ref();
    let kept = kept.map_or_else(unknown, |kept| {
        let does = if kept.goes { "goes" } else { "stays" };
        super::escaped(&format!("{does}: {}", kept.why))
    });
    let [set, timestamp, label, first_wal] = row(backup);
    [
        set, timestamp, label, first_wal, timeline, range, size, own, duration, made_on, kept,
    ]
}

fn duration_text(seconds: u64) -> String {
    let (minutes, rest) = (seconds / 60, seconds % 60);
    match minutes {
        0 => format!("{rest} s"),
        1..60 => format!("{minutes} min {rest} s"),
        _ => format!("{} h {} min", minutes / 60, minutes % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backups() -> Vec<BackupLine> {
        let facts = BackupFacts {
            timestamp: "2011-09-21 17:00:17 CEST".to_owned(),
            label: "FullBackup".to_owned(),
            first_wal: "000000010000000200000092".to_owned(),
            timeline: 1,
            start: "2/92000028".to_owned(),
        };
        let details = BackupDetails {
            size_bytes: Some(3 << 20),
            own_bytes: Some(1 << 20),
            duration_s: Some(75),
            stop: Some("2/92000138".to_owned()),
            made_on: Some("standby"),
        };
        let line = |set: &str, label, details| BackupLine {
            set: set.to_owned(),
            label,
            details,
            kept: None,
            off_line: None,
        };
        let damaged = Err("it has no\nLABEL".to_owned());
        vec![
            line("data.master", Ok(facts.clone()), details),
            line("data.master.0", damaged, BackupDetails::default()),
            line("data.master.1", Ok(facts), BackupDetails::default()),
        ]
    }

    #[test]
    fn the_table_is_the_walkthroughs() {
        let text = text(&backups()[..1], false);
        assert_eq!(
            text,
            "List of backups:\n\
             \n\
             Backup set      Timestamp                Label       First WAL\n\
             --------------- ------------------------ ----------- ------------------------\n\
             data.master     2011-09-21 17:00:17 CEST FullBackup  000000010000000200000092"
        );
        for verbose in [false, true] {
            assert_eq!(super::text(&[], verbose), "There are no backups.");
        }
    }

    #[test]
    fn a_set_nobody_can_read_is_a_line_too() {
        let text = text(&backups()[..2], false);
        let last = text.lines().last().unwrap();
        assert!(last.ends_with(r"damaged: it has no\nLABEL"), "{text}");
        assert_eq!(text.lines().count(), 6);
        let parsed: Value = serde_json::from_str(&json(&backups())).unwrap();
        assert_eq!(parsed[0]["first_wal"], "000000010000000200000092");
        assert_eq!(parsed[1]["error"], "it has no\nLABEL");
        assert_eq!(json(&[]), "[]");
    }

    #[test]
    fn more_columns_follow_the_manuals_and_what_is_unknown_is_a_dash() {
        let (plain, verbose) = (text(&backups(), false), text(&backups(), true));
        for (short, long) in plain.lines().zip(verbose.lines()) {
            assert!(long.starts_with(short), "{short:?} {long:?}");
        }
        let behind = |line: usize| {
            let [short, long] = [&plain, &verbose].map(|text| text.lines().nth(line).unwrap());
            let words = long.strip_prefix(short).unwrap().split_whitespace();
            words.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            behind(2),
            "Timeline WAL range Size Own Duration Made on Stays or goes"
        );
        let whole = "1 2/92000028 - 2/92000138 3.00 MiB 1.00 MiB 1 min 15 s standby -";
        assert_eq!(behind(4), whole);
        assert_eq!(behind(5), "- - - - - - -");
        assert_eq!(behind(6), "1 2/92000028 - - - - - - -");
        let parsed: Value = serde_json::from_str(&json(&backups())).unwrap();
        for (name, known) in [
            ("timeline", json!(1)),
            ("start_lsn", json!("2/92000028")),
            ("stop_lsn", json!("2/92000138")),
            ("size_bytes", json!(3 << 20)),
            ("own_bytes", json!(1 << 20)),
            ("duration_s", json!(75)),
            ("made_on", json!("standby")),
        ] {
            assert_eq!(parsed[0][name], known, "{name}");
            assert_eq!(parsed[1][name], Value::Null, "{name}");
            assert!(parsed[2].get(name).is_some(), "{name}");
        }
        assert_eq!(["5 s", "1 h 1 min"], [5, 3_661].map(duration_text));
    }
}
