//! The note in `slave_data` that it was a backup set, which a restore took from the list by moving it.
//! Never says so of a copy. Invariant: once there is a newer set nobody hears of it any more.

use std::path::Path;

use serde_json::{Value, json};
use walmgr_protocol::limits::SMALL_FILE_BYTES_MAX;
use walmgr_protocol::names::Lsn;

use crate::config::StandbyConfig;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use crate::pg::backup_label::BackupLabel;
use crate::pg::layout;
use crate::pg::leftovers::RESTORED_SET;
use crate::store::sets::SetEntry;

/// A set that became a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TakenSet {
    /// Its name, if it is known: a restore that was interrupted did not keep it.
    name: Option<String>,
    start_time: String,
    timeline: u32,
    start: Lsn,
}

/// Notes that what lies in `staging` is the set of this name.
pub(crate) fn write(staging: &Path, name: Option<String>) -> Result<()> {
    let path = staging.join(layout::BACKUP_LABEL);
    let text = files::read(&path).at(Kind::Retry, "read", &path)?;
    let label = BackupLabel::parse(&text)
        .map_err(|why| CommandError::retry(format!("{}: {why}", path.display())))?;
    let note = json!({
        "set": name,
        "start_time": label.start_time,
        "timeline": label.first_segment.timeline().number(),
        "start": label.start.0,
    });
    let path = staging.join(RESTORED_SET);
    files::replace(&path, format!("{note}\n").as_bytes(), 0o600).at(Kind::Retry, "write", &path)
}

impl TakenSet {
    /// What the note in this data directory says, if there is one that can be read.
    fn of(slave_data: &Path) -> Option<TakenSet> {
        let path = slave_data.join(RESTORED_SET);
        let is_small = path.metadata().ok()?.len() <= SMALL_FILE_BYTES_MAX;
        let text = is_small.then(|| files::read(&path).ok())??;
        let note: Value = serde_json::from_slice(&text).ok()?;
        let timeline = note.get("timeline")?.as_u64()?;
        Some(TakenSet {
            name: note.get("set")?.as_str().map(str::to_owned),
            start_time: note.get("start_time")?.as_str()?.to_owned(),
            timeline: u32::try_from(timeline).ok()?,
            start: Lsn(note.get("start")?.as_u64()?),
        })
    }

    /// The line for a person about the set that became the server in `slave_data`, if none of these is newer.
    pub(crate) fn newest_of(config: &StandbyConfig, listed: &[SetEntry]) -> Option<String> {
        let data = config.slave_data.as_deref()?;
        let taken = TakenSet::of(data)?;
        let mut labels = listed.iter().filter_map(|entry| entry.label.as_ref().ok());
        let is_replaced = labels.any(|label| taken.is_older_than(label));
        (!is_replaced).then(|| taken.sentence(data))
    }

    /// Whether this set was made later.
    fn is_older_than(&self, label: &BackupLabel) -> bool {
        let other = (
            label.first_segment.timeline().number(),
            label.start,
            &label.start_time,
        );
        // Backups of a standby begin at the same place until the master makes a checkpoint.
        (self.timeline, self.start, &self.start_time) < other
    }

    fn sentence(&self, slave_data: &Path) -> String {
        let name = self.name.as_deref().unwrap_or("A set");
        let (begun, data) = (&self.start_time, slave_data.display());
        format!(
            "{name} of {begun} is not listed: `restore` moved it to {data}, as the server's data \
            directory. `backup` makes the next set."
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: &str = "START WAL LOCATION: 0/300028 (file 000000010000000000000003)\n\
        CHECKPOINT LOCATION: 0/300060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
        START TIME: 2026-01-02 03:04:05 UTC\nLABEL: FullBackup\nSTART TIMELINE: 1\n";

    #[test]
    fn fault_134_a_set_that_was_moved_is_told_of_until_there_is_a_newer_one() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path();
        assert_eq!(TakenSet::of(data), None);
        std::fs::write(data.join("backup_label"), LABEL).unwrap();
        write(data, Some("data.master".to_owned())).unwrap();
        let taken = TakenSet::of(data).unwrap();
        let said = taken.sentence(data);
        assert!(said.starts_with("data.master of 2026-01-02 03:04:05 UTC"));
        let label = |text: &str| BackupLabel::parse(text.as_bytes()).unwrap();
        assert!(!taken.is_older_than(&label(LABEL)));
        assert!(taken.is_older_than(&label(&LABEL.replace("0/300028", "0/300030"))));
        // A standby's backups begin where the master's did, until there is another checkpoint.
        assert!(taken.is_older_than(&label(&LABEL.replace("03:04:05", "03:04:06"))));
        assert!(!taken.is_older_than(&label(&LABEL.replace("03:04:05", "03:04:04"))));
        for damaged in ["", "{}", "{\"set\":1}", "\u{1b}"] {
            std::fs::write(data.join(RESTORED_SET), damaged).unwrap();
            assert_eq!(TakenSet::of(data), None, "{damaged:?}");
        }
    }
}
