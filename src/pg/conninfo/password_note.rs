//! `INI.pgpass` beside an ini file: which lines of `.pgpass` `init --add-password` wrote for it.
//! Never has a password. Invariant: a line counts as walmgr's only while every byte of it is what was written, so what
//! somebody edited, or had there before, is never taken out.
//!
//! ```text
//! {"file": "/home/postgres/.pgpass", "lines": [{"crc32": 1, "fields": "db1:5432:replication:repl"}]}
//! ```
//!
//! The checksum is of the whole line. The note is written before the line, so a line without a note is somebody's own;
//! nobody but its user reads either.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use walmgr_protocol::limits::SMALL_FILE_BYTES_MAX;

use super::password_lines::{PasswordEdit, PasswordLines, edit, lines_in};
use crate::error::{IoContext, Kind, Result};
use crate::files;

/// Lines of one file of passwords.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PasswordNote {
    file: PathBuf,
    lines: Vec<NotedLine>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct NotedLine {
    crc32: u32,
    fields: String,
}

impl NotedLine {
    fn of(line: &[u8], fields: &str) -> NotedLine {
        NotedLine {
            crc32: crc32fast::hash(line),
            fields: fields.to_owned(),
        }
    }

    fn is(&self, line: &[u8]) -> bool {
        let has_fields = line.strip_prefix(self.fields.as_bytes());
        has_fields.is_some_and(|rest| rest.starts_with(b":")) && crc32fast::hash(line) == self.crc32
    }
}

impl PasswordNote {
    /// Where the note of an ini file is.
    pub(crate) fn path(ini: &Path) -> PathBuf {
        ini.with_extension("pgpass")
    }

    /// What is noted; `None` where nothing is, or the note is none of walmgr's.
    pub(crate) fn read(ini: &Path) -> Option<PasswordNote> {
        let text = files::read_at_most(&PasswordNote::path(ini), SMALL_FILE_BYTES_MAX).ok()?;
        PasswordNote::parse(&text)
    }

    fn parse(text: &[u8]) -> Option<PasswordNote> {
        let value: Value = serde_json::from_slice(text).ok()?;
        let lines = value.get("lines")?.as_array()?.iter().map(|line| {
            Some(NotedLine {
                crc32: u32::try_from(line.get("crc32")?.as_u64()?).ok()?,
                fields: line.get("fields")?.as_str()?.to_owned(),
            })
        });
        Some(PasswordNote {
            file: value.get("file")?.as_str()?.into(),
            lines: lines.collect::<Option<_>>()?,
        })
    }

    /// Notes the lines that are about to be added, but for those that are there and were not noted before.
    pub(crate) fn write(ini: &Path, adding: &PasswordLines, password: &[u8]) -> Result<()> {
        let Some(file) = adding.file().to_str() else {
            // The line is then nobody's, and stays.
            return Ok(());
        };
        let there = lines_in(adding.file())?;
        let before = PasswordNote::read(ini).filter(|note| note.file == adding.file());
        let mut lines = before.map(|note| note.lines).unwrap_or_default();
        for (fields, line) in adding.each_written(password) {
            let noted = NotedLine::of(&line, &fields);
            if !there.contains(&line) && !lines.contains(&noted) {
                lines.push(noted);
            }
        }
        if lines.is_empty() {
            return Ok(());
        }
        let lines: Vec<Value> = (lines.iter())
            .map(|line| json!({"crc32": line.crc32, "fields": line.fields}))
            .collect();
        let text = format!("{:#}\n", json!({"file": file, "lines": lines}));
        let path = PasswordNote::path(ini);
        files::replace(&path, text.as_bytes(), 0o600).at(Kind::Config, "write", &path)
    }

    /// Removes the note, as somebody took the lines out.
    pub(crate) fn remove(ini: &Path) -> Result<()> {
        let path = PasswordNote::path(ini);
        files::remove(&path).at(Kind::Config, "remove", &path)?;
        Ok(())
    }

    /// The file of passwords.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// Host, port, database and user of each line that is there as it was written.
    pub(crate) fn there(&self) -> Vec<String> {
        let found = lines_in(&self.file).unwrap_or_default();
        let noted = self.lines.iter();
        let there = noted.filter(|noted| found.iter().any(|line| noted.is(line)));
        there.map(|noted| noted.fields.clone()).collect()
    }

    /// Takes the lines with these fields out.
    pub(crate) fn take_out(&self, fields: &[String]) -> Result<PasswordEdit> {
        let goes = |line: &[u8]| {
            let mut noted = self.lines.iter();
            noted.any(|noted| fields.contains(&noted.fields) && noted.is(line))
        };
        edit(&self.file, |text| {
            let lines = text.split_inclusive(|byte| *byte == b'\n');
            let kept = lines.filter(|line| !goes(line.strip_suffix(b"\n").unwrap_or(line)));
            kept.collect::<Vec<_>>().concat()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::conninfo::{self, Environment};

    fn lines(file: &Path, host: &str) -> PasswordLines {
        let text = format!("host={host} user=repl passfile={}", file.display());
        let environment = Environment::of_process().without_libpq();
        PasswordLines::of(&conninfo::parse(&text, &environment).unwrap()).unwrap()
    }

    #[test]
    fn fault_174_only_what_was_written_is_taken_out() {
        let folder = tempfile::tempdir().unwrap();
        let (ini, file) = (folder.path().join("a.ini"), folder.path().join("pgpass"));
        let add = |host: &str, password: &[u8]| {
            let lines = lines(&file, host);
            PasswordNote::write(&ini, &lines, password).unwrap();
            lines.add(password).unwrap();
        };
        std::fs::write(&file, "db0:5432:replication:repl:own\n*:*:*:other:x\n").unwrap();
        add("db1", b"secret");
        add("db2", b"sec:ret");
        // Somebody's own line that says the same is no line of ours.
        add("db0", b"own");
        let note = PasswordNote::read(&ini).unwrap();
        let of = |host: &str| format!("{host}:5432:replication:repl");
        assert_eq!(note.there(), [of("db1"), of("db2")]);
        assert!(
            !std::fs::read_to_string(PasswordNote::path(&ini))
                .unwrap()
                .contains("secret")
        );
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace(":secret\n", ":edited\n")).unwrap();
        assert_eq!(note.there(), [of("db2")]);
        let all = [of("db1"), of("db2"), of("db0")];
        assert_eq!(note.take_out(&all).unwrap(), PasswordEdit::Changed);
        assert_eq!(note.take_out(&all).unwrap(), PasswordEdit::Unchanged);
        let left = std::fs::read_to_string(&file).unwrap();
        let kept = format!("{}:own\n*:*:*:other:x\n{}:edited\n", of("db0"), of("db1"));
        assert_eq!(left, kept);
    }

    #[test]
    fn a_note_of_something_else_says_nothing() {
        for text in [
            "",
            "{}",
            "[1]",
            "{\"file\": 1, \"lines\": []}",
            "{\"file\": \"/x\", \"lines\": [{}]}",
        ] {
            assert_eq!(PasswordNote::parse(text.as_bytes()), None, "{text}");
        }
    }
}
