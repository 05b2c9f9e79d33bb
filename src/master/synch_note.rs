//! The note in the data directory of the synchronous standbys that walmgr set, so that `stop` clears these and
//! no others. Never changes the setting. Invariant: a value of ours is noted before the server is told of it,
//! and struck out after the server has let go of it.
//!
//! A kill in between leaves a value too many in the note. It does no harm: what is cleared is what both the note
//! and `postgresql.auto.conf` have.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use walmgr_protocol::limits::SMALL_FILE_BYTES_MAX;

use crate::error::{IoContext, Kind, Result};
use crate::files;
use crate::pg::conf;
use crate::pg::layout;
use crate::pg::leftovers::SYNCHRONOUS_NOTE;
use crate::pg::sql_standbys::SYNCHRONOUS_NAMES;

/// The member of the note with a standby that was taken out.
const TAKEN_OUT: &str = "taken_out";

/// The note of one data directory.
#[derive(Debug)]
pub(crate) struct SynchNote {
    path: PathBuf,
    values: Vec<String>,
    taken_out: Option<TakenOut>,
}

/// A standby that the syncdaemon took out of the names, to put it back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TakenOut {
    /// Which.
    pub name: String,
    /// What was in force with it.
    pub was: String,
    /// What was set by `ALTER SYSTEM` then; nothing where a file alone had the names.
    pub was_set: Option<String>,
    /// What is in force without it.
    pub left: String,
    /// Whether `synch-standby` had set the names.
    pub is_ours: bool,
    /// When, in seconds since 1970.
    pub at_s: i64,
}

impl TakenOut {
    fn read(note: &Value) -> Option<TakenOut> {
        let text = |key: &str| note.get(key).and_then(Value::as_str).map(str::to_owned);
        Some(TakenOut {
            name: text("name")?,
            was: text("was")?,
            was_set: text("was_set"),
            left: text("left")?,
            is_ours: note.get("is_ours")?.as_bool()?,
            at_s: note.get("at_s")?.as_i64()?,
        })
    }

    fn written(&self) -> Value {
        json!({
            "name": self.name, "was": self.was, "was_set": self.was_set, "left": self.left,
            "is_ours": self.is_ours, "at_s": self.at_s,
        })
    }
}

impl SynchNote {
    /// Reads it; a file that says nothing sensible is as good as none.
    pub(crate) fn read(data: &Path) -> SynchNote {
        let path = data.join(SYNCHRONOUS_NOTE);
        let text = files::read_at_most(&path, SMALL_FILE_BYTES_MAX).unwrap_or_default();
        let note: Value = serde_json::from_slice(&text).unwrap_or_default();
        let values = note.get(SYNCHRONOUS_NAMES).and_then(Value::as_array);
        let values = values.into_iter().flatten().filter_map(Value::as_str);
        SynchNote {
            path,
            values: values.map(str::to_owned).collect(),
            taken_out: note.get(TAKEN_OUT).and_then(TakenOut::read),
        }
    }

    /// The standby that the syncdaemon took out and has to put back.
    pub(crate) const fn taken_out(&self) -> Option<&TakenOut> {
        self.taken_out.as_ref()
    }

    /// Notes who is taken out, or that nobody is.
    pub(crate) fn set_taken_out(&mut self, taken_out: Option<TakenOut>) -> Result<()> {
        if self.taken_out == taken_out {
            return Ok(());
        }
        self.taken_out = taken_out;
        self.save()
    }

    /// Whether walmgr set this value.
    pub(crate) fn has(&self, value: &str) -> bool {
        self.values.iter().any(|noted| noted == value)
    }

    /// Notes a value that is going to be set, beside those that may be set now.
    pub(crate) fn add(&mut self, value: &str) -> Result<()> {
        if !self.has(value) {
            self.values.push(value.to_owned());
        }
        self.write()
    }

    /// Notes that only this value may be set. `None` removes the note.
    pub(crate) fn keep_only(&mut self, value: Option<&str>) -> Result<()> {
        self.values.retain(|noted| Some(noted.as_str()) == value);
        self.save()
    }

    fn save(&self) -> Result<()> {
        match self.values.is_empty() && self.taken_out.is_none() {
            true => (files::remove(&self.path).map(drop)).at(Kind::Retry, "remove", &self.path),
            false => self.write(),
        }
    }

    fn write(&self) -> Result<()> {
        let mut note = json!({ SYNCHRONOUS_NAMES: self.values });
        if let Some(taken_out) = &self.taken_out {
            note[TAKEN_OUT] = taken_out.written();
        }
        let text = format!("{note}\n");
        files::replace_own(&self.path, text.as_bytes()).at(Kind::Retry, "write", &self.path)
    }
}

/// What `ALTER SYSTEM` has set in this data directory.
pub(crate) fn set_by_alter_system(data: &Path) -> Result<Option<String>> {
    let path = data.join(layout::AUTO_CONF);
    match files::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        read => Ok(conf::value(
            &read.at(Kind::Config, "read", &path)?,
            SYNCHRONOUS_NAMES,
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_161_the_note_has_what_was_set_and_no_more() {
        let data = tempfile::tempdir().unwrap();
        let read = || SynchNote::read(data.path());
        assert!(!read().has(""));
        read().add("a").unwrap();
        read().add("ANY 1 (\"b\")").unwrap();
        assert!(read().has("a") && read().has("ANY 1 (\"b\")"));
        read().keep_only(Some("ANY 1 (\"b\")")).unwrap();
        assert!(!read().has("a") && read().has("ANY 1 (\"b\")"));
        let taken_out = TakenOut {
            name: "b".to_owned(),
            was: "b".to_owned(),
            was_set: None,
            left: String::new(),
            is_ours: true,
            at_s: 7,
        };
        read().set_taken_out(Some(taken_out.clone())).unwrap();
        read().keep_only(Some("other")).unwrap();
        assert_eq!(read().taken_out(), Some(&taken_out));
        read().set_taken_out(None).unwrap();
        assert!(!data.path().join(SYNCHRONOUS_NOTE).exists());
        for damaged in [
            "",
            "{}",
            "[1]",
            "{\"synchronous_standby_names\":1}",
            "\u{1b}",
        ] {
            std::fs::write(data.path().join(SYNCHRONOUS_NOTE), damaged).unwrap();
            assert!(!read().has("a"), "{damaged:?}");
        }
        std::fs::write(
            data.path().join(layout::AUTO_CONF),
            "synchronous_standby_names = 'it''s'\n",
        )
        .unwrap();
        assert_eq!(
            set_by_alter_system(data.path()).unwrap().as_deref(),
            Some("it's")
        );
    }
}
