//! One wrong thing in the settings: where it stands, which key, what is wrong, what to do.
//! Never reads or prints anything. Invariant: what it quotes of a file is short and one line.

use std::fmt;
use std::path::Path;

use crate::error::CommandError;

/// Longest piece of a file that a message quotes, in characters.
const QUOTED_CHARS_MAX: usize = 64;

/// Where a setting was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SettingPlace {
    /// On this line of the ini file, counted from 1.
    Line(u32),
    /// On the command line.
    Set,
    /// Nowhere in particular: the file as a whole.
    File,
}

impl SettingPlace {
    /// `line 7` or `--set`, for the middle of a sentence.
    pub(crate) fn in_words(self) -> String {
        match self {
            SettingPlace::Line(number) => format!("line {number}"),
            SettingPlace::Set => "--set".to_owned(),
            SettingPlace::File => "the file".to_owned(),
        }
    }

    /// `FILE:7`, `--set` or `FILE`, for the head of a message.
    pub(crate) fn in_file(self, file: &Path) -> String {
        match self {
            SettingPlace::Line(number) => format!("{}:{number}", file.display()),
            SettingPlace::Set => "--set".to_owned(),
            SettingPlace::File => file.display().to_string(),
        }
    }
}

/// A reason why the settings cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    place: SettingPlace,
    key: Option<String>,
    says: String,
    hint: String,
}

impl Fault {
    /// A fault of a whole line or of the file.
    pub(crate) fn new(place: SettingPlace, says: impl Into<String>) -> Self {
        Fault {
            place,
            key: None,
            says: says.into(),
            hint: String::new(),
        }
    }

    /// A fault of one key, under the name it was written with.
    pub(crate) fn of_key(place: SettingPlace, key: &str, says: impl Into<String>) -> Self {
        Fault {
            key: Some(key.to_owned()),
            ..Fault::new(place, says)
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// The command's error, naming the file.
    pub(crate) fn into_error(self, file: &Path) -> CommandError {
        let place = self.place.in_file(file);
        let text = match &self.key {
            Some(key) => format!("{place}: {key}: {}", self.says),
            None => format!("{place}: {}", self.says),
        };
        CommandError::config(text).hint(self.hint)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.key {
            Some(key) => write!(out, "{key}: {}", self.says),
            None => out.write_str(&self.says),
        }
    }
}

/// A piece of somebody's file for a message: shortened, and with odd characters escaped.
pub(crate) fn shown(text: &str) -> String {
    let mut short: String = text
        .chars()
        .take(QUOTED_CHARS_MAX)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(QUOTED_CHARS_MAX).is_some() {
        short.push_str("...");
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_names_file_line_key_and_what_to_do() {
        let error = Fault::of_key(SettingPlace::Line(7), "compression", "is wrong")
            .hint("write 1")
            .into_error(Path::new("/etc/m.ini"));
        assert_eq!(
            error.to_string(),
            "/etc/m.ini:7: compression: is wrong; write 1"
        );
    }

    #[test]
    fn a_quoted_piece_stays_short_and_on_one_line() {
        let long = "x\n".repeat(10_000);
        let quoted = shown(&long);
        assert!(quoted.len() < 200 && !quoted.contains('\n'));
        assert!(quoted.ends_with("..."));
    }
}
