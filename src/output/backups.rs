//! The list of backup sets, as both sides print it.
//! Never asks where the sets are. Invariant: a set is one line, whatever its label contains.

use serde_json::{Value, json};

/// A backup set as its `backup_label` describes it, or why nobody can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupLine {
    /// Its name.
    pub set: String,
    /// What the label says.
    pub label: Result<BackupFacts, String>,
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
}

const HEAD: [&str; 4] = ["Backup set", "Timestamp", "Label", "First WAL"];
const WIDTHS: [usize; 4] = [15, 24, 11, 24];

/// The manual's table.
pub fn table(backups: &[BackupLine]) -> String {
    if backups.is_empty() {
        return "There are no backups.".to_owned();
    }
    let rows: Vec<[String; 4]> = backups.iter().map(row).collect();
    let mut widths = WIDTHS;
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let rule = widths.map(|width| "-".repeat(width));
    let mut text = String::from("List of backups:\n");
    for row in [HEAD.map(str::to_owned), rule].iter().chain(&rows) {
        let cells = row.iter().zip(widths);
        let cells: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push('\n');
        text.push_str(cells.join(" ").trim_end());
    }
    text
}

/// The same for programs, an object a set.
pub fn json(backups: &[BackupLine]) -> String {
    value(backups).to_string()
}

/// The same as a value, to stand in another's.
pub fn value(backups: &[BackupLine]) -> Value {
    let sets = backups.iter().map(|backup| match &backup.label {
        Ok(facts) => json!({
            "set": backup.set,
            "timestamp": facts.timestamp,
            "label": facts.label,
            "first_wal": facts.first_wal,
        }),
        Err(why) => json!({ "set": backup.set, "error": why }),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn backups() -> Vec<BackupLine> {
        let facts = BackupFacts {
            timestamp: "2011-09-21 17:00:17 CEST".to_owned(),
            label: "FullBackup".to_owned(),
            first_wal: "000000010000000200000092".to_owned(),
        };
        let line = |set: &str, label| BackupLine {
            set: set.to_owned(),
            label,
        };
        vec![
            line("data.master", Ok(facts)),
            line("data.master.0", Err("it has no\nLABEL".to_owned())),
        ]
    }

    #[test]
    fn the_table_is_the_walkthroughs() {
        let text = table(&backups()[..1]);
        assert_eq!(
            text,
            "List of backups:\n\
             \n\
             Backup set      Timestamp                Label       First WAL\n\
             --------------- ------------------------ ----------- ------------------------\n\
             data.master     2011-09-21 17:00:17 CEST FullBackup  000000010000000200000092"
        );
        assert_eq!(table(&[]), "There are no backups.");
    }

    #[test]
    fn a_set_nobody_can_read_is_a_line_too() {
        let text = table(&backups());
        let last = text.lines().last().unwrap();
        assert!(last.ends_with(r"damaged: it has no\nLABEL"), "{text}");
        assert_eq!(text.lines().count(), 6);
        let parsed: Value = serde_json::from_str(&json(&backups())).unwrap();
        assert_eq!(parsed[0]["first_wal"], "000000010000000200000092");
        assert_eq!(parsed[1]["error"], "it has no\nLABEL");
        assert_eq!(json(&[]), "[]");
    }
}
