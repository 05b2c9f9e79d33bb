//! `postgresql.conf`: what it sets, and changing that without disturbing a byte beside it.
//! Never reorders, reformats or re-encodes. Invariant: lines that a change does not concern come
//! out as they went in, comments in any encoding included.

pub(crate) mod brought;
mod command_line;
mod effective;
pub(crate) mod foreign;
mod line;
mod pieces;
mod raise;
mod server;

use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub(in crate::pg) use command_line::CommandLine;
pub use effective::{Setter, last_setter};
pub(crate) use effective::{last_setter_after, last_setter_beneath};
pub(in crate::pg) use pieces::pieces_in_texts;
pub(crate) use pieces::{PieceKind, make_missing_folders, pieces};
pub(crate) use raise::raise;
pub(crate) use server::ServerSettings;

use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;

/// One parameter that a change gives another value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The parameter.
    pub name: String,
    /// What the file said before, if it said anything.
    pub old: Option<String>,
    /// What it says after.
    pub new: String,
}

/// What this text alone sets the parameter to; the last line that sets it wins.
pub fn value(text: &[u8], name: &str) -> Option<String> {
    let name = name.to_ascii_lowercase();
    lines(text)
        .filter_map(line::setting)
        .filter(|setting| setting.name == name)
        .last()
        .map(|setting| String::from_utf8_lossy(&setting.value).into_owned())
}

/// Whether a value of a Boolean parameter is one of PostgreSQL's words for "on", or the beginning of one
/// (`parse_bool`).
pub(crate) fn is_on(value: &str) -> bool {
    let value = value.to_ascii_lowercase();
    let begins = |word: &str, least: usize| value.len() >= least && word.starts_with(&value);
    begins("true", 1) || begins("yes", 1) || value == "on" || value == "1"
}

/// The text with these parameters set, and what is different for it.
///
/// The last line in force is changed in place; else a line goes behind the commented default;
/// else to the end. A parameter that has its value already leaves the text as it is.
pub(crate) fn edit(text: &[u8], changes: &[(&str, &str)]) -> Result<(Vec<u8>, Vec<Change>)> {
    let mut edited = text.to_vec();
    let mut made = Vec::new();
    for (name, new) in changes {
        check(name, new)?;
        let old = value(&edited, name);
        if old.as_deref() == Some(*new) {
            continue;
        }
        edited = set(&edited, name, new);
        made.push(Change {
            name: (*name).to_owned(),
            old,
            new: (*new).to_owned(),
        });
    }
    Ok((edited, made))
}

/// The text without the lines that set parameters of these names; comments stay.
pub(crate) fn without(text: &[u8], unwanted: impl Fn(&str) -> bool) -> Vec<u8> {
    let keep = |line: &&[u8]| !line::setting(line).is_some_and(|setting| unwanted(&setting.name));
    lines(text).filter(keep).collect::<Vec<_>>().concat()
}

/// Sets parameters in a file, whose former content stays beside it under `PATH.old`.
///
/// Owner, mode and symlinks stay as they are. Without a difference nothing is written, so that
/// the copy keeps what it was made for; with `not_really` nothing is written in any case.
pub fn apply(path: &Path, changes: &[(&str, &str)], not_really: bool) -> Result<Vec<Change>> {
    let text = files::read(path).at(Kind::Config, "read", path)?;
    let (edited, made) = edit(&text, changes)?;
    if made.is_empty() || not_really {
        return Ok(made);
    }
    let metadata = std::fs::metadata(path).at(Kind::Config, "read", path)?;
    let copy = old_copy_of(path);
    files::replace(&copy, &text, metadata.mode() & 0o7777).at(Kind::Config, "write", &copy)?;
    give_to_owner(&copy, &metadata).at(Kind::Config, "change the owner of", &copy)?;
    files::replace(path, &edited, metadata.mode() & 0o7777).at(Kind::Config, "write", path)?;
    Ok(made)
}

/// Where [`apply`] leaves the former content.
pub fn old_copy_of(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".old");
    PathBuf::from(name)
}

/// The copy lies in the data directory as a rule, and a base backup that PostgreSQL's user makes
/// fails on a file it may not read.
fn give_to_owner(copy: &Path, original: &Metadata) -> std::io::Result<()> {
    let metadata = std::fs::metadata(copy)?;
    if (metadata.uid(), metadata.gid()) == (original.uid(), original.gid()) {
        return Ok(());
    }
    std::os::unix::fs::chown(copy, Some(original.uid()), Some(original.gid()))
}

fn check(name: &str, value: &str) -> Result<()> {
    let probe = format!("{name} = x");
    let is_name = line::setting(probe.as_bytes())
        .is_some_and(|setting| setting.name == name.to_ascii_lowercase() && setting.value == b"x");
    if !is_name {
        return Err(CommandError::config(format!(
            "{name:?} cannot be the name of a parameter"
        )));
    }
    if value.contains('\0') {
        return Err(CommandError::config(format!(
            "the value of {name} contains a NUL byte"
        )));
    }
    Ok(())
}

fn set(text: &[u8], name: &str, value: &str) -> Vec<u8> {
    let wanted = name.to_ascii_lowercase();
    let mut at = 0;
    let mut in_force = None;
    let mut commented_end = None;
    for line in lines(text) {
        match line::setting(line) {
            Some(setting) if setting.name == wanted => {
                let range = setting.value_at;
                in_force = Some(at + range.start..at + range.end);
            }
            _ if line::commented_name(line).is_some_and(|name| name == wanted) => {
                commented_end = Some(at + line.len());
            }
            _ => {}
        }
        at += line.len();
    }
    let mut edited = text.to_vec();
    if let Some(range) = in_force {
        let was_quoted = text[range.start] == b'\'';
        let mut new = line::quoted(value, was_quoted);
        // `name'value'` is legal; a bare word right behind the name would become part of it.
        if range.start > 0 && !matches!(text[range.start - 1], b' ' | b'\t' | b'\r' | b'=') {
            new.insert(0, ' ');
        }
        edited.splice(range, new.into_bytes());
        return edited;
    }
    let position = commented_end.unwrap_or(text.len());
    let line_end = if text.ends_with(b"\r\n") {
        "\r\n"
    } else {
        "\n"
    };
    let mut inserted = format!("{name} = {}{line_end}", line::quoted(value, false));
    if position > 0 && text[position - 1] != b'\n' {
        inserted.insert_str(0, line_end);
    }
    edited.splice(position..position, inserted.into_bytes());
    edited
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split_inclusive(|byte| *byte == b'\n')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt;

    fn edited(text: &str, changes: &[(&str, &str)]) -> String {
        String::from_utf8(edit(text.as_bytes(), changes).unwrap().0).unwrap()
    }

    #[test]
    fn the_last_line_in_force_is_changed_in_place() {
        let text = "# mine\n\tArchive_Mode = off  # (change requires restart)\nother = 1\n";
        assert_eq!(
            edited(text, &[("archive_mode", "on")]),
            "# mine\n\tArchive_Mode = on  # (change requires restart)\nother = 1\n"
        );
        assert_eq!(
            edited("a = 1\na = '2'\n#a = 3\n", &[("a", "4")]),
            "a = 1\na = '4'\n#a = 3\n"
        );
        assert_eq!(edited("a '2'", &[("a", "it's")]), "a 'it''s'");
        assert_eq!(edited("a'2'\n", &[("a", "3")]), "a '3'\n");
    }

    #[test]
    fn a_commented_default_keeps_its_line_and_gets_one_behind_it() {
        let text = "#archive_command = ''\t\t# command\n\t\t# placeholders: %p %f\nb = 1\n";
        assert_eq!(
            edited(text, &[("archive_command", "walmgr a.ini xarchive %p %f")]),
            "#archive_command = ''\t\t# command\n\
             archive_command = 'walmgr a.ini xarchive %p %f'\n\
             \t\t# placeholders: %p %f\nb = 1\n"
        );
        assert_eq!(edited("#a = 1", &[("a", "2")]), "#a = 1\na = 2\n");
    }

    #[test]
    fn an_unknown_parameter_goes_to_the_end() {
        assert_eq!(edited("", &[("a", "on")]), "a = on\n");
        assert_eq!(edited("b = 1", &[("a", "")]), "b = 1\na = ''\n");
        assert_eq!(
            edited("b = 1\r\n", &[("a", "x y")]),
            "b = 1\r\na = 'x y'\r\n"
        );
    }

    #[test]
    fn lines_of_unwanted_parameters_go_and_all_others_stay() {
        let text = b"a = 1\n#ab = 2\nAB = 3\nb = 'a = 1'\nab = 4";
        let left = without(text, |name| name == "ab");
        assert_eq!(left, b"a = 1\n#ab = 2\nb = 'a = 1'\n");
    }

    #[test]
    fn changes_tell_old_and_new_and_leave_out_what_is_set_already() {
        let changes = [("a", "1"), ("b", "2"), ("c", "3")];
        let (_, made) = edit(b"a = 1\nb = 1\n", &changes).unwrap();
        let change = |name: &str, old: Option<&str>, new: &str| Change {
            name: name.into(),
            old: old.map(Into::into),
            new: new.into(),
        };
        assert_eq!(made, [change("b", Some("1"), "2"), change("c", None, "3")]);
    }

    #[test]
    fn names_and_values_that_would_break_the_file_are_refused() {
        for (name, value) in [
            ("a b", "1"),
            ("", "1"),
            ("a\nb", "1"),
            ("a=", "1"),
            ("a", "\0"),
        ] {
            assert!(edit(b"", &[(name, value)]).is_err(), "{name:?} {value:?}");
        }
    }

    #[test]
    fn a_file_keeps_its_mode_and_leaves_a_copy_of_what_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("postgresql.conf");
        let text = b"# gr\xfc\xdfe\narchive_mode = off\n";
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        let changes = [("archive_mode", "on")];
        assert_eq!(apply(&path, &changes, true).unwrap().len(), 1);
        assert_eq!(std::fs::read(&path).unwrap(), text);
        assert_eq!(apply(&path, &changes, false).unwrap().len(), 1);
        assert_eq!(
            std::fs::read(&path).unwrap(),
            b"# gr\xfc\xdfe\narchive_mode = on\n"
        );
        let old = old_copy_of(&path);
        assert_eq!(std::fs::read(&old).unwrap(), text);
        for path in [&path, &old] {
            assert_eq!(std::fs::metadata(path).unwrap().mode() & 0o7777, 0o640);
        }
        assert_eq!(apply(&path, &changes, false).unwrap(), []);
        assert_eq!(
            std::fs::read(&old).unwrap(),
            text,
            "a second run must not lose the original"
        );
    }

    fn text() -> impl Strategy<Value = Vec<u8>> {
        let line = prop_oneof![
            "[#a-c=' \\\\\t]{0,12}".prop_map(String::into_bytes),
            "#?[abc] ?=? ?('[^'\\\\\n]{0,5}'|[a-z]{1,4}|[0-9]{1,3}) {0,2}(#.{0,5})?"
                .prop_map(String::into_bytes),
            proptest::collection::vec(any::<u8>(), 0..12),
        ];
        (proptest::collection::vec(line, 0..12), any::<bool>()).prop_map(|(lines, end)| {
            let mut text = lines.join(&b'\n');
            text.extend(end.then_some(b'\n'));
            text
        })
    }

    proptest! {
        #[test]
        fn what_is_set_can_be_read_and_setting_it_again_changes_nothing(
            text in text(), name in "[abcAB]", new in "[^\0]{0,20}",
        ) {
            let changes = [(name.as_str(), new.as_str())];
            let (once, made) = edit(&text, &changes).unwrap();
            prop_assert_eq!(value(&once, &name), Some(new.clone()));
            prop_assert_eq!(made.is_empty(), value(&text, &name).as_deref() == Some(&new));
            let (twice, again) = edit(&once, &changes).unwrap();
            prop_assert!(again.is_empty());
            prop_assert_eq!(twice, once);
        }

        #[test]
        fn all_lines_but_one_stay_byte_for_byte(text in text(), name in "[abc]", new in "[^\0]{0,9}") {
            let (after, _) = edit(&text, &[(&name, &new)]).unwrap();
            let strip = |text: &[u8]| -> Vec<Vec<u8>> {
                lines(text).map(|line| line.strip_suffix(b"\n").unwrap_or(line).to_vec()).collect()
            };
            let (mut before, mut after) = (strip(&text), strip(&after));
            while before.first().is_some_and(|line| after.first() == Some(line)) {
                before.remove(0);
                after.remove(0);
            }
            while before.last().is_some_and(|line| after.last() == Some(line)) {
                before.pop();
                after.pop();
            }
            prop_assert!(before.len() <= 1 && after.len() <= 1, "{:?} {:?}", before, after);
        }
    }
}
