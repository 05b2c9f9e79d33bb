//! One line of `postgresql.conf`, as PostgreSQL's scanner reads it.
//! Never looks at another line. Invariant: a line that PostgreSQL would refuse is no setting.
//!
//! The grammar is that of `src/backend/utils/misc/guc-file.l`: a name, an optional `=`, a value
//! bare or in single quotes, an optional comment. Names do not care about case.

use std::ops::Range;

/// A setting in force, or a directive such as `include`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ConfSetting {
    /// In lower case.
    pub name: String,
    /// Without quotes and escapes.
    pub value: Vec<u8>,
    /// Where the value stands in the line, quotes included.
    pub value_at: Range<usize>,
}

/// Reads a line, with or without its line end; `None` if it sets nothing.
pub(super) fn setting(line: &[u8]) -> Option<ConfSetting> {
    let mut cursor = Cursor { line, at: 0 };
    cursor.skip_space();
    let name = cursor.name()?;
    cursor.skip_space();
    if cursor.peek() == Some(b'=') {
        cursor.at += 1;
        cursor.skip_space();
    }
    let begin = cursor.at;
    let value = match cursor.peek()? {
        b'\'' => c_string(cursor.quoted()?),
        _ => cursor.bare()?,
    };
    let value_at = begin..cursor.at;
    cursor.skip_space();
    matches!(cursor.peek(), None | Some(b'#' | b'\n')).then_some(ConfSetting {
        name,
        value,
        value_at,
    })
}

/// PostgreSQL goes on with the value as a C string, so `\0` ends it.
fn c_string(mut value: Vec<u8>) -> Vec<u8> {
    let end = value.iter().position(|byte| *byte == 0);
    value.truncate(end.unwrap_or(value.len()));
    value
}

/// The name in a line such as `#archive_mode = off`, which shows a default.
pub(super) fn commented_name(line: &[u8]) -> Option<String> {
    let rest = line.trim_ascii_start().strip_prefix(b"#")?;
    // Prose that happens to begin with a name has no equals sign behind it.
    let equals = rest.iter().position(|byte| *byte == b'=')?;
    let name = rest[..equals].trim_ascii();
    let mut cursor = Cursor { line: name, at: 0 };
    cursor.name().filter(|_| cursor.at == name.len())
}

/// The value as text for the file: bare where that is safe, in quotes otherwise.
pub(super) fn quoted(value: &str, always: bool) -> String {
    let starts_as_word = value.starts_with(|first: char| first.is_ascii_alphanumeric());
    let all_plain = value
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let word = starts_as_word && all_plain && bare_is_one_token(value);
    if word && !always {
        return value.to_owned();
    }
    let mut text = String::from("'");
    for letter in value.chars() {
        match letter {
            '\'' => text.push_str("''"),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            letter => text.push(letter),
        }
    }
    text.push('\'');
    text
}

fn bare_is_one_token(value: &str) -> bool {
    let mut cursor = Cursor {
        line: value.as_bytes(),
        at: 0,
    };
    cursor.bare().is_some() && cursor.at == value.len()
}

struct Cursor<'a> {
    line: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn peek(&self) -> Option<u8> {
        self.line.get(self.at).copied()
    }

    fn skip_while(&mut self, belongs: impl Fn(u8) -> bool) -> usize {
        let begin = self.at;
        while self.peek().is_some_and(&belongs) {
            self.at += 1;
        }
        self.at - begin
    }

    fn skip_space(&mut self) {
        self.skip_while(|byte| matches!(byte, b' ' | b'\t' | b'\r'));
    }

    fn name(&mut self) -> Option<String> {
        let begin = self.at;
        loop {
            self.peek().filter(|byte| is_letter(*byte))?;
            self.skip_while(is_letter_or_digit);
            if self.peek() != Some(b'.') {
                break;
            }
            self.at += 1;
        }
        let name = String::from_utf8_lossy(&self.line[begin..self.at]);
        Some(name.to_ascii_lowercase())
    }

    fn quoted(&mut self) -> Option<Vec<u8>> {
        let mut value = Vec::new();
        self.at += 1;
        loop {
            let byte = self.peek()?;
            self.at += 1;
            match (byte, self.peek()) {
                (b'\'', Some(b'\'')) => {
                    self.at += 1;
                    value.push(b'\'');
                }
                (b'\'', _) => return Some(value),
                (b'\n', _) | (b'\\', None | Some(b'\n')) => return None,
                (b'\\', Some(escaped)) => value.push(self.escaped(escaped)),
                (byte, _) => value.push(byte),
            }
        }
    }

    fn escaped(&mut self, first: u8) -> u8 {
        let begin = self.at;
        self.at += 1;
        match first {
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'0'..=b'7' => {
                let digits = self.line[begin..].iter().take(3);
                let digits = digits.take_while(|digit| matches!(digit, b'0'..=b'7'));
                let mut number = 0_u8;
                for (count, digit) in digits.enumerate() {
                    self.at = begin + count + 1;
                    // PostgreSQL keeps the low eight bits of \777.
                    number = number.wrapping_mul(8).wrapping_add(digit - b'0');
                }
                number
            }
            other => other,
        }
    }

    /// A word (`replica`, `/bin/true` is none: it begins with a slash), or a number with a unit.
    fn bare(&mut self) -> Option<Vec<u8>> {
        let begin = self.at;
        if self.peek().is_some_and(is_letter) {
            self.skip_while(|byte| is_letter_or_digit(byte) || b"-._:/".contains(&byte));
        } else {
            self.number()?;
        }
        Some(self.line[begin..self.at].to_vec())
    }

    /// `INTEGER` and `REAL`: `-1`, `0x10`, `16MB`, `0.5`, `.5e-3`, also `.`, but not `1e3`.
    fn number(&mut self) -> Option<()> {
        if matches!(self.peek(), Some(b'+' | b'-')) {
            self.at += 1;
        }
        let rest = &self.line[self.at..];
        if rest.starts_with(b"0x") && rest.get(2).is_some_and(u8::is_ascii_hexdigit) {
            self.at += 2;
            self.skip_while(|byte| byte.is_ascii_hexdigit());
            self.skip_while(|byte| byte.is_ascii_alphabetic());
            return Some(());
        }
        let whole = self.skip_while(|byte| byte.is_ascii_digit());
        let real = self.peek() == Some(b'.');
        if real {
            self.at += 1;
            self.skip_while(|byte| byte.is_ascii_digit());
        }
        // The scanner takes a lone point for a `REAL`, and `include_dir .` for what it says.
        if whole == 0 && !real {
            return None;
        }
        if real {
            self.skip_exponent();
        } else {
            self.skip_while(|byte| byte.is_ascii_alphabetic());
        }
        Some(())
    }

    fn skip_exponent(&mut self) {
        let rest = &self.line[self.at..];
        let sign = usize::from(matches!(rest.get(1), Some(b'+' | b'-')));
        if matches!(rest.first(), Some(b'e' | b'E'))
            && rest.get(1 + sign).is_some_and(u8::is_ascii_digit)
        {
            self.at += 1 + sign;
            self.skip_while(|byte| byte.is_ascii_digit());
        }
    }
}

fn is_letter(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn is_letter_or_digit(byte: u8) -> bool {
    is_letter(byte) || byte.is_ascii_digit()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(line: &str) -> Option<(String, String)> {
        setting(line.as_bytes())
            .map(|setting| (setting.name, String::from_utf8(setting.value).unwrap()))
    }

    #[test]
    fn settings_are_read_as_postgresql_reads_them() {
        for (line, name, value) in [
            ("a = b", "a", "b"),
            ("  Archive_Mode on # why not\r\n", "archive_mode", "on"),
            ("a=b", "a", "b"),
            ("x.y = 'it''s'#c", "x.y", "it's"),
            (r"a = 'b\'c\\d\n\101\7'", "a", "b'c\\d\nA\u{7}"),
            ("a = ''", "a", ""),
            ("a = '#'", "a", "#"),
            ("a = -1", "a", "-1"),
            ("a = 16MB", "a", "16MB"),
            ("a = 0x1F", "a", "0x1F"),
            ("a = .5e-3", "a", ".5e-3"),
            ("a = en_US.UTF-8", "a", "en_US.UTF-8"),
            ("include_dir .", "include_dir", "."),
            ("include -.", "include", "-."),
            ("include 'other.conf'", "include", "other.conf"),
        ] {
            assert_eq!(read(line), Some((name.into(), value.into())), "{line}");
        }
    }

    #[test]
    fn what_sets_nothing_is_no_setting() {
        for line in [
            "",
            "\n",
            "# a = b",
            "a",
            "a =",
            "= b",
            "a = b c",
            "a = 'b",
            "a = 'b\n'",
            "a = /bin/true",
            "1a = b",
            "a. = b",
            "a = 'b' 'c'",
            "a == b",
            "a = 1e3",
            "a = 1 MB",
            "a = 1.5GB",
            "a = 'b\\",
            "a = -",
        ] {
            assert_eq!(read(line), None, "{line:?}");
        }
    }

    #[test]
    fn a_commented_default_is_told_from_prose() {
        assert_eq!(
            commented_name(b"#archive_mode = off\t# x"),
            Some("archive_mode".into())
        );
        assert_eq!(commented_name(b"  # Work_Mem=4MB"), Some("work_mem".into()));
        for prose in [
            "# archive_mode is off",
            "#",
            "archive_mode = on",
            "# set archive_mode = on",
        ] {
            assert_eq!(commented_name(prose.as_bytes()), None, "{prose}");
        }
    }

    proptest! {
        #[test]
        fn every_value_survives_quoting(value in "[^\0]*", always: bool) {
            let line = format!("name = {} # comment", quoted(&value, always));
            let read = setting(line.as_bytes()).unwrap();
            prop_assert_eq!(read.value, value.as_bytes());
            prop_assert!(!line.contains('\n'));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = setting(&bytes);
            let _ = commented_name(&bytes);
        }
    }
}
