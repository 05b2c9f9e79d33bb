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

/// The note of one data directory.
#[derive(Debug)]
pub(crate) struct SynchNote {
    path: PathBuf,
    values: Vec<String>,
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
        }
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

    /// Notes that of all values only this may be set; none removes the note.
    pub(crate) fn keep_only(&mut self, value: Option<&str>) -> Result<()> {
        self.values.retain(|noted| Some(noted.as_str()) == value);
        match self.values.is_empty() {
            true => (files::remove(&self.path).map(drop)).at(Kind::Retry, "remove", &self.path),
            false => self.write(),
        }
    }

    fn write(&self) -> Result<()> {
        let note = json!({ SYNCHRONOUS_NAMES: self.values });
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
        read().keep_only(Some("other")).unwrap();
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
