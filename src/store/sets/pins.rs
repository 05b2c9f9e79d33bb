//! Sets that a person pinned: they stay until they are unpinned, whatever the rules say.
//! Never in the set itself, which would carry the pin into what is restored from it. Invariant: while a pin's file is
//! there, whatever stands in it, its set stays.
//!
//! # `.data.master.keep.SEGMENT.OFFSET.CRC`
//!
//! ```text
//! {"by":"postgres","format":1,"note":"before the upgrade","since_ms":1769877900000,"wal":"end"}
//! ```
//!
//! It lies beside the sets. Its name says where the WAL of the set begins, as the name of a backup history file does, and
//! ends with the CRC-32C of its `backup_label`: no rotation changes either, so nothing is renamed with the set, and a set
//! that comes back from elsewhere is pinned as before. `wal` is `end` for the WAL up to the set's own end, `all` for
//! all from the set on.

use serde_json::{Value, json};
use walmgr_protocol::names::BackupName;

use super::BackupSets;
use super::error::SetError;
use super::lock::{Mode, NamesLock};
use super::policy::PinnedWal;
use crate::pg::backup_label::BackupLabel;

/// The newest format of a pin that this walmgr writes.
const FORMAT: u64 = 1;

/// Longer than any pin: a note of its most letters, each escaped.
const PIN_BYTES_MAX: usize = 8 << 10;

/// The longest note.
pub(crate) const NOTE_CHARS_MAX: usize = 200;

/// What a person wants of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SetPin {
    /// Who pinned it.
    pub by: String,
    /// When, in milliseconds since 1970.
    pub since_ms: i64,
    /// Why; empty if nobody said.
    pub note: String,
    /// Which WAL stays with it.
    pub wal: PinnedWal,
}

impl SetPin {
    /// What stands in a file. What is not understood keeps the most.
    fn parse(content: &[u8]) -> SetPin {
        let value: Value = serde_json::from_slice(content).unwrap_or_default();
        let text = |key: &str| {
            let text = value.get(key).and_then(Value::as_str).unwrap_or_default();
            text.chars().take(NOTE_CHARS_MAX).collect()
        };
        SetPin {
            by: text("by"),
            since_ms: value
                .get("since_ms")
                .and_then(Value::as_i64)
                .unwrap_or_default(),
            note: text("note"),
            wal: match value.get("wal").and_then(Value::as_str) {
                Some("end") => PinnedWal::ToItsEnd,
                _ => PinnedWal::All,
            },
        }
    }

    fn content(&self) -> String {
        let wal = match self.wal {
            PinnedWal::ToItsEnd => "end",
            PinnedWal::All => "all",
        };
        let (by, note, since_ms) = (&self.by, &self.note, self.since_ms);
        let value =
            json!({ "format": FORMAT, "by": by, "since_ms": since_ms, "note": note, "wal": wal });
        format!("{value}\n")
    }
}

impl BackupSets {
    /// Pins a set, or pins it anew. Durable when it returns.
    pub(crate) fn pin(&self, name: &BackupName, pin: &SetPin) -> Result<(), SetError> {
        // Whoever removes a set looks for its pin under this lock.
        let _names = NamesLock::acquire(&self.parent, &self.lock_name(), Mode::Alone)?;
        let file = self.pin_name(&self.label_of(name)?);
        Ok(self.parent.write_small(&file, pin.content().as_bytes())?)
    }

    /// Whether it was pinned; it is not any more.
    pub(crate) fn unpin(&self, name: &BackupName) -> Result<bool, SetError> {
        let _names = NamesLock::acquire(&self.parent, &self.lock_name(), Mode::Alone)?;
        let file = self.pin_name(&self.label_of(name)?);
        if self.parent.stat_at(&file)?.is_none() {
            return Ok(false);
        }
        self.parent.remove(&file)?;
        self.parent.sync()?;
        Ok(true)
    }

    /// The pin of the set with this name, if it has one.
    pub(crate) fn pin_named(&self, name: &BackupName) -> Result<Option<SetPin>, SetError> {
        let _names = NamesLock::acquire(&self.parent, &self.lock_name(), Mode::Shared)?;
        self.pin_of(&self.label_of(name)?)
    }

    /// The pin of the set with this label.
    pub(crate) fn pin_of(&self, label: &BackupLabel) -> Result<Option<SetPin>, SetError> {
        let file = self.pin_name(label);
        if self.parent.stat_at(&file)?.is_none() {
            return Ok(None);
        }
        // What cannot be read is there all the same.
        let content = self.parent.read_small(&file, PIN_BYTES_MAX);
        Ok(Some(SetPin::parse(
            &content.ok().flatten().unwrap_or_default(),
        )))
    }

    fn label_of(&self, name: &BackupName) -> Result<BackupLabel, SetError> {
        let damaged = |why| SetError::Damaged {
            name: name.clone(),
            why,
        };
        match self.read_set(name) {
            Ok(Some(opened)) => opened.label.map_err(damaged),
            Ok(None) => Err(SetError::Absent { name: name.clone() }),
            Err(condition) => Err(damaged(condition.refusal().unwrap_or_default().to_owned())),
        }
    }

    fn pin_name(&self, label: &BackupLabel) -> String {
        let base = self.newest.base();
        let crc = crc32c::crc32c(&label.to_bytes());
        let (segment, offset) = (label.first_segment, label.start.0 & 0xFFFF_FFFF);
        format!(".{base}.keep.{segment}.{offset:08X}.{crc:08X}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_read_as_it_was_written_and_a_torn_one_keeps_the_most() {
        for wal in [PinnedWal::ToItsEnd, PinnedWal::All] {
            let pin = SetPin {
                by: "postgres".to_owned(),
                since_ms: 1_769_877_900_000,
                note: "before \"14\"\n\u{1F600}".to_owned(),
                wal,
            };
            let content = pin.content();
            assert_eq!(SetPin::parse(content.as_bytes()), pin);
            assert_eq!(content.lines().count(), 1);
            for cut in 0..content.len() - 1 {
                let torn = SetPin::parse(&content.as_bytes()[..cut]);
                assert_eq!(torn.wal, PinnedWal::All, "{cut}");
            }
        }
        let longest = SetPin {
            by: "\u{1}".repeat(NOTE_CHARS_MAX),
            since_ms: i64::MIN,
            note: "\u{1}".repeat(NOTE_CHARS_MAX),
            wal: PinnedWal::All,
        };
        assert!(longest.content().len() < PIN_BYTES_MAX);
    }
}
