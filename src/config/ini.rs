//! The file's dialect, Python's ConfigParser of version 2, to keys and texts with line numbers.
//! Never knows what a key means, never reads a file. Invariant: time and memory grow no faster
//! than the file, and the file is at most [`FILE_BYTES_MAX`].
//!
//! - `[section]`: any name. Of several, `[walmgr]` is read, else the one that is `[wal-master]` or
//!   `[wal-slave]`, and the others are named in a note. A section that stands twice is one.
//! - `[DEFAULT]`: what the section does not set itself.
//! - `key = value` or `key: value`; keys in any case; spaces around both are not part of them. Of a
//!   key that stands twice the last one counts.
//! - Lines that begin with `#` or `;`, after any spaces, or with the word `rem`, are comments.
//! - Behind a value, ` ;` (with the space) starts a comment, if that is the line's first semicolon;
//!   ` #` does not, it belongs to the value.
//! - A line indented deeper than its key continues the value (taken whole, comments included); the
//!   parts are joined by newlines. Blank lines and comment lines do not end a value.
//! - `""` alone is the empty value.
//! - UTF-8 (comments may hold any bytes), with or without byte order mark, LF or CRLF.

use super::fault::{Fault, SettingPlace, shown};

/// Largest ini file: a thousand times a real one.
pub(crate) const FILE_BYTES_MAX: usize = 1 << 20;

/// Most keys in a file: many times the number that exist.
const ENTRIES_MAX: usize = 1_000;

/// Sections that Skytools read, the newest name first.
const KNOWN_SECTIONS: [&str; 3] = ["walmgr", "wal-master", "wal-slave"];

/// The section whose keys every other section has too, in Python's spelling.
const DEFAULTS: &str = "DEFAULT";

/// The section that is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Section {
    /// What stands between the brackets.
    pub name: String,
    /// Line of the brackets, from 1.
    pub line: u32,
    /// The keys in the order of the file, duplicates included.
    pub entries: Vec<Entry>,
    /// The keys of `[DEFAULT]`.
    pub defaults: Vec<Entry>,
    /// The keys of sections that are not read.
    pub unread: Vec<Entry>,
    /// Things worth saying of the file's form, with their lines.
    pub notes: Vec<(u32, String)>,
}

/// One key of the section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The key in lower case.
    pub key: String,
    /// Line of the key, from 1.
    pub line: u32,
    /// The value's text before interpolation, line by line, the key's own line first.
    pub lines: Vec<ValueLine>,
}

/// One line of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ValueLine {
    /// Line in the file, from 1.
    pub line: u32,
    /// The text without surrounding spaces.
    pub text: String,
}

impl Entry {
    /// The whole value before interpolation.
    pub(crate) fn value(&self) -> String {
        let parts: Vec<&str> = self.lines.iter().map(|line| line.text.as_str()).collect();
        parts.join("\n").trim_matches('\n').to_owned()
    }
}

/// Reads a file's bytes.
pub(crate) fn parse(bytes: &[u8]) -> Result<Section, Fault> {
    if bytes.len() > FILE_BYTES_MAX {
        return Err(too_large());
    }
    if bytes.starts_with(b"\xFF\xFE") || bytes.starts_with(b"\xFE\xFF") {
        return Err(
            Fault::new(SettingPlace::File, "the file is UTF-16, expected UTF-8")
                .hint("save it as UTF-8, in an editor or with iconv"),
        );
    }
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let mut parser = Parser::default();
    for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        parser.line(number, line.strip_suffix(b"\r").unwrap_or(line))?;
    }
    parser.finish()
}

/// What is said of a file above [`FILE_BYTES_MAX`].
pub(crate) fn too_large() -> Fault {
    Fault::new(
        SettingPlace::File,
        format!("the file is larger than {FILE_BYTES_MAX} bytes, so it is no walmgr ini file"),
    )
    .hint("check the path on the command line")
}

/// Splits a line at its first `=` or `:`.
fn split_key(text: &str) -> Option<(&str, &str)> {
    let at = text.find(['=', ':'])?;
    Some((blank_trimmed(&text[..at]), &text[at + 1..]))
}

/// Unlike `str::trim` leaves Unicode's other spaces: they may be part of a path.
pub(crate) fn blank_trimmed(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}

/// The first character that no value may contain.
pub(crate) fn forbidden_character(text: &str) -> Option<char> {
    text.chars()
        .find(|c| c.is_control() && *c != '\t' && *c != '\n')
}

/// `value` written so that it reads back the same, or `None` if the dialect cannot express it.
pub(crate) fn print_value(value: &str) -> Option<String> {
    let expressible = blank_trimmed(value) == value
        && forbidden_character(value).is_none()
        && !value.contains('\n')
        && value != "\"\""
        && !value.starts_with(';')
        && inline_comment(value).is_none();
    expressible.then(|| value.replace('%', "%%"))
}

/// Where a comment behind a value starts. Only the first semicolon can start one, as in Python: a
/// shell command with semicolons of its own stays whole.
fn inline_comment(text: &str) -> Option<usize> {
    let at = text.find(';')?;
    text[..at].ends_with([' ', '\t']).then_some(at)
}

/// Whether a line is a comment of DOS's kind.
fn is_remark(text: &str) -> bool {
    let word = text.split([' ', '\t']).next().unwrap_or_default();
    word.eq_ignore_ascii_case("rem")
}

/// What a line says before the comment behind it, where only the comment is not UTF-8.
fn readable(bytes: &[u8]) -> Result<&str, std::str::Utf8Error> {
    let error = match std::str::from_utf8(bytes) {
        Ok(text) => return Ok(text),
        Err(error) => error,
    };
    let before = std::str::from_utf8(&bytes[..error.valid_up_to()])?;
    let comment = match before.trim_start_matches([' ', '\t']).strip_prefix('[') {
        // A header's comment needs no semicolon.
        Some(_) => before.find(']').map(|at| at + 1),
        None => split_key(before)
            .and_then(|(_, value)| Some(before.len() - value.len() + inline_comment(value)?)),
    };
    comment.map(|at| &before[..at]).ok_or(error)
}

/// A section as it stands in the file.
struct FoundSection {
    name: String,
    line: u32,
    entries: Vec<Entry>,
}

#[derive(Default)]
struct Parser {
    sections: Vec<FoundSection>,
    /// Which of them the next key belongs to.
    current: usize,
    entries: usize,
    /// Indentation of the key that a deeper line would continue, in bytes.
    open_indent: Option<usize>,
    notes: Vec<(u32, String)>,
}

impl Parser {
    fn line(&mut self, number: u32, bytes: &[u8]) -> Result<(), Fault> {
        let start = bytes.trim_ascii_start();
        if start.is_empty() || start[0] == b'#' || start[0] == b';' {
            return Ok(());
        }
        let indent = bytes.iter().take_while(|byte| matches!(byte, b' ' | b'\t'));
        let indent = indent.count();
        let continues = self.open_indent.is_some_and(|open| indent > open);
        if !continues && is_remark(&String::from_utf8_lossy(start)) {
            return Ok(());
        }
        let place = SettingPlace::Line(number);
        let text = match continues {
            true => std::str::from_utf8(bytes),
            false => readable(bytes),
        };
        let text = text.map_err(|error| {
            let byte = bytes.get(error.valid_up_to()).copied().unwrap_or_default();
            Fault::new(
                place,
                format!("expected UTF-8, found the byte 0x{byte:02X}"),
            )
            .hint("save the file as UTF-8, in an editor or with iconv")
        })?;
        if let Some(found) = forbidden_character(text) {
            let says = format!(
                "expected text, found the control character U+{:04X}",
                found as u32
            );
            return Err(Fault::new(place, says).hint("type the line again"));
        }
        let text = blank_trimmed(text);
        if continues {
            self.continuation(number, text);
            return Ok(());
        }
        if text.starts_with('[') {
            self.open_indent = None;
            return self.header(number, text);
        }
        self.open_indent = Some(indent);
        self.key(number, text)
    }

    fn continuation(&mut self, number: u32, text: &str) {
        let section = self.sections.get_mut(self.current);
        if let Some(entry) = section.and_then(|section| section.entries.last_mut()) {
            entry.lines.push(ValueLine {
                line: number,
                text: text.to_owned(),
            });
        }
    }

    fn header(&mut self, number: u32, text: &str) -> Result<(), Fault> {
        let (name, rest) = text[1..].split_once(']').unwrap_or_default();
        let rest = blank_trimmed(rest);
        let is_setting = !rest.starts_with(['#', ';']) && split_key(rest).is_some();
        if name.is_empty() || is_setting {
            let says = format!(
                "expected a section such as [walmgr], found `{}`",
                shown(text)
            );
            let hint = "write [walmgr] alone on the line";
            return Err(Fault::new(SettingPlace::Line(number), says).hint(hint));
        }
        let found = self
            .sections
            .iter()
            .position(|section| section.name == name);
        self.current = found.unwrap_or(self.sections.len());
        if found.is_none() {
            self.sections.push(FoundSection {
                name: name.to_owned(),
                line: number,
                entries: Vec::new(),
            });
        }
        Ok(())
    }

    fn key(&mut self, number: u32, text: &str) -> Result<(), Fault> {
        let place = SettingPlace::Line(number);
        let Some((key, rest)) = split_key(text).filter(|(key, _)| !key.is_empty()) else {
            let says = format!("expected `key = value`, found `{}`", shown(text));
            return Err(Fault::new(place, says).hint("a comment starts with # or ;"));
        };
        let key = key.to_ascii_lowercase();
        let Some(section) = self.sections.get_mut(self.current) else {
            let says = "expected a section before the first key";
            return Err(Fault::of_key(place, &shown(&key), says)
                .hint("put a line [walmgr] above the first key"));
        };
        if self.entries == ENTRIES_MAX {
            let says = format!("expected at most {ENTRIES_MAX} keys, found more");
            return Err(Fault::new(place, says).hint("check the path on the command line"));
        }
        self.entries += 1;
        let value = match inline_comment(rest) {
            Some(at) => &rest[..at],
            None => rest,
        };
        let value = match blank_trimmed(value) {
            "\"\"" => "",
            value => value,
        };
        section.entries.push(Entry {
            key,
            line: number,
            lines: vec![ValueLine {
                line: number,
                text: value.to_owned(),
            }],
        });
        Ok(())
    }

    fn finish(mut self) -> Result<Section, Fault> {
        let defaults = self
            .sections
            .iter()
            .position(|section| section.name == DEFAULTS)
            .map(|at| self.sections.remove(at));
        let read = self.read_section(defaults.as_ref())?;
        let section = self.sections.remove(read);
        let mut unread = Vec::new();
        for other in self.sections {
            let says = format!(
                "[{}] is ignored: the settings are in [{}]",
                shown(&other.name),
                shown(&section.name)
            );
            self.notes.push((other.line, says));
            unread.extend(other.entries);
        }
        Ok(Section {
            name: section.name,
            line: section.line,
            entries: section.entries,
            defaults: defaults.map(|found| found.entries).unwrap_or_default(),
            unread,
            notes: self.notes,
        })
    }

    /// Which of the sections, those of `[DEFAULT]` taken out, has the settings.
    fn read_section(&self, defaults: Option<&FoundSection>) -> Result<usize, Fault> {
        let sections = &self.sections;
        let (Some(first), second) = (sections.first(), sections.get(1)) else {
            let (place, found) = match defaults {
                Some(defaults) => (SettingPlace::Line(defaults.line), "[DEFAULT] alone"),
                None => (SettingPlace::File, "no line but comments"),
            };
            let says = format!("expected a section such as [walmgr], found {found}");
            return Err(Fault::new(place, says).hint(match defaults {
                Some(_) => "write [walmgr] above the settings",
                None => "start from the sample that walmgr --ini prints",
            }));
        };
        let Some(second) = second else {
            return Ok(0);
        };
        let named = |name: &str| sections.iter().position(|section| section.name == name);
        let [newest, older @ ..] = KNOWN_SECTIONS;
        let older: Vec<usize> = older.into_iter().filter_map(named).collect();
        match (named(newest), older.as_slice()) {
            (Some(at), _) | (None, &[at]) => Ok(at),
            _ => {
                let says = format!(
                    "expected one section, found a second, [{}], after [{}] on line {}",
                    shown(&second.name),
                    shown(&first.name),
                    first.line
                );
                Err(Fault::new(SettingPlace::Line(second.line), says)
                    .hint("keep the settings of master and standby in a file each"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        let section = parse(text.as_bytes()).unwrap();
        section
            .entries
            .iter()
            .map(|entry| (entry.key.clone(), entry.value()))
            .collect()
    }

    fn one(text: &str) -> String {
        let mut found = pairs(&format!("[s]\n{text}"));
        assert_eq!(found.len(), 1, "{text:?}");
        found.remove(0).1
    }

    fn fault(bytes: &[u8]) -> String {
        parse(bytes)
            .unwrap_err()
            .into_error(std::path::Path::new("f.ini"))
            .to_string()
    }

    #[test]
    fn equals_and_colon_both_separate_and_the_first_wins() {
        assert_eq!(one("Key=a=b:c"), "a=b:c");
        assert_eq!(one("key : a=b"), "a=b");
        assert_eq!(pairs("[s]\nMaster_DB =x\n")[0].0, "master_db");
    }

    #[test]
    fn comments_stand_on_their_own_line_or_behind_space_and_semicolon() {
        assert_eq!(pairs("# a\n ; b\n[s] ; c\n#k = v\n  # d\n"), vec![]);
        assert_eq!(pairs("rem a\nREM\n[s] c\n rem\td = e\nrem = f\n"), vec![]);
        assert_eq!(one("k = a\nRem b\n  rem c"), "a\nrem c");
        assert_eq!(pairs("[s]\nremote = a")[0].0, "remote");
        assert_eq!(one("k = a ; b ; c"), "a");
        assert_eq!(one("k = a;b ; c"), "a;b ; c");
        assert_eq!(one("k = a # part"), "a # part");
        assert_eq!(one("k = ;all comment"), "");
        assert_eq!(one("k = \"\""), "");
    }

    #[test]
    fn deeper_lines_continue_a_value_and_comments_do_not_end_it() {
        assert_eq!(one("k = a\n  b ; kept\n# no\n\n\tc\n"), "a\nb ; kept\nc");
        assert_eq!(one("k =\n  b"), "b");
        let indented = pairs("   [s]\n   a = 1\n   b = 2\n     3\n");
        assert_eq!(indented.len(), 2);
        assert_eq!(indented[1].1, "2\n3");
    }

    #[test]
    fn carriage_returns_and_byte_order_marks_are_taken() {
        assert_eq!(pairs("\u{FEFF}[s]\r\nk = v\r\n\r\n  w\r\n")[0].1, "v\nw");
    }

    #[test]
    fn foreign_bytes_are_named_with_their_line_but_pass_in_comments() {
        assert!(parse(b"[s]\n# caf\xE9\nk = v\nrem caf\xE9\n").is_ok());
        let behind = parse(b"[s] ; caf\xE9\nk = v=w ; caf\xE9\nl : m ;\xE9\n").unwrap();
        assert_eq!(behind.entries[0].value(), "v=w");
        assert_eq!(behind.entries[1].value(), "m");
        assert!(fault(b"[s]\nk = v\n  w ; caf\xE9\n").starts_with("f.ini:3: expected UTF-8"));
        assert!(
            fault(b"[s]\nk = caf\xE9\n")
                .starts_with("f.ini:2: expected UTF-8, found the byte 0xE9")
        );
        assert!(fault(b"\xFF\xFE[\0").contains("UTF-16"));
        assert!(fault(b"[s]\nk = a\0b\n").starts_with("f.ini:2: expected text, found"));
        assert!(fault(b"[s]\rk = v\r").contains("U+000D"));
    }

    #[test]
    fn lines_that_make_no_sense_are_named() {
        assert!(fault(b"k = v\n").starts_with("f.ini:1: k: expected a section"));
        assert!(fault(b"").contains("no line but comments"));
        assert!(
            fault(b"[s]\nhello\n").starts_with("f.ini:2: expected `key = value`, found `hello`")
        );
        assert!(fault(b"[s]\n= v\n").starts_with("f.ini:2: expected `key = value`"));
        assert!(fault(b"[s\n").starts_with("f.ini:1: expected a section"));
        assert!(fault(b"[]\n").starts_with("f.ini:1: expected a section"));
        assert!(fault(b"[s] k = v\n").starts_with("f.ini:1: expected a section"));
        assert!(fault(b"[DEFAULT]\nk = v\n").starts_with("f.ini:1: expected a section"));
        let both = fault(b"[wal-master]\nk = v\n[wal-slave]\nk = v\n");
        assert!(both.contains("keep the settings of master and standby in a file each"));
        let second = fault(b"[s]\nk = v\n[t]\n");
        assert!(
            second.starts_with("f.ini:3: expected one section, found a second, [t], after [s]")
        );
    }

    #[test]
    fn of_several_sections_the_one_that_skytools_read_is_read() {
        for name in KNOWN_SECTIONS {
            let text = format!("[a]\nk = 1\n[{name}]\nk = 2\n[b]\nk = 3\n[{name}]\nl = 4\n");
            let section = parse(text.as_bytes()).unwrap();
            let keys: Vec<&str> = section.entries.iter().map(|e| e.key.as_str()).collect();
            assert_eq!((section.name.as_str(), section.line), (name, 3));
            assert_eq!((keys, section.unread.len()), (vec!["k", "l"], 2));
            assert_eq!(section.notes.len(), 2);
            assert_eq!(
                section.notes[0],
                (1, format!("[a] is ignored: the settings are in [{name}]"))
            );
        }
        let defaults = parse(b"[DEFAULT]\nd = 1\n[s]\nk = 2\n[DEFAULT]\ne = 3\n").unwrap();
        assert_eq!((defaults.defaults.len(), defaults.entries.len()), (2, 1));
        assert_eq!(defaults.notes, vec![]);
        assert_eq!(
            parse(b"[wal-slave]\nk = 1\n[walmgr]\n").unwrap().name,
            "walmgr"
        );
    }

    #[test]
    fn size_and_number_of_keys_are_bounded() {
        assert!(fault(&vec![b'#'; FILE_BYTES_MAX + 1]).contains("larger than"));
        let many = format!("[s]\n{}", "k = v\n".repeat(ENTRIES_MAX + 1));
        assert!(fault(many.as_bytes()).contains("at most 1000 keys"));
    }

    proptest! {
        #[test]
        fn a_printed_value_reads_back_the_same(value in "\\PC*") {
            if let Some(printed) = print_value(&value) {
                let read = one(&format!("k = {printed}"));
                prop_assert_eq!(read.replace("%%", "%"), value);
            }
        }

        #[test]
        fn values_without_odd_spaces_can_be_printed(value in "[a-zA-Z0-9/_.%:=#-]{1,40}") {
            prop_assert!(print_value(&value).is_some());
        }
    }
}
