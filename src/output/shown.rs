//! What of a text is shown and what would do something: cursors, colours, new lines, turned words.
//! Never drops a character. Invariant: what leaves walmgr for a terminal or a log has no character
//! that acts, whoever put it into the text; this is the one place that decides which those are.

use std::io::{self, Write};

use tracing_subscriber::fmt::MakeWriter;

/// Whether a terminal does something about a character, or shows the text around it otherwise than
/// it is: control characters, C1's included, and Unicode's marks of direction and of no width.
const fn acts(character: char) -> bool {
    matches!(
        character,
        '\0'..='\u{1f}'
            | '\u{7f}'..='\u{9f}'
            | '\u{61c}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
    )
}

/// A text as one line, with what acts made visible, so that nobody can forge a line.
pub(crate) fn escaped(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        match acts(character) {
            true => line.extend(character.escape_default()),
            false => line.push(character),
        }
    }
    line
}

/// Lines that the program made, with what acts made visible as JSON has it too.
pub(super) fn lines(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match acts(character) && !matches!(character, '\n' | '\t') {
            true => out.push_str(&format!("\\u{:04x}", u32::from(character))),
            false => out.push(character),
        }
    }
    out
}

/// A writer of JSON lines: JSON leaves C1's and Unicode's characters as they are.
pub(super) struct JsonLines<W>(pub W);

impl<W: Write> Write for JsonLines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match std::str::from_utf8(bytes) {
            Ok(text) if text.chars().any(acts) => self.0.write_all(lines(text).as_bytes())?,
            _ => self.0.write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl<'event, W: MakeWriter<'event>> MakeWriter<'event> for JsonLines<W> {
    type Writer = JsonLines<W::Writer>;

    fn make_writer(&'event self) -> Self::Writer {
        JsonLines(self.0.make_writer())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_123_what_acts_is_made_visible_and_nothing_else_is_touched() {
        let plain = "wal \u{2013} Größe 日本 \u{1f418}";
        assert_eq!((escaped(plain), lines(plain)), (plain.into(), plain.into()));
        let evil = "a\u{1b}[31m\n\u{9b}1m\u{202e}b\u{7f}";
        assert_eq!(escaped(evil), r"a\u{1b}[31m\n\u{9b}1m\u{202e}b\u{7f}");
        assert_eq!(lines(evil), "a\\u001b[31m\n\\u009b1m\\u202eb\\u007f");
        let json = serde_json::json!({ "said": evil }).to_string();
        let shown = lines(&json);
        assert!(!shown.chars().any(acts), "{shown}");
        let parsed: serde_json::Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(parsed["said"], evil);
        let mut out = Vec::new();
        JsonLines(&mut out).write_all(json.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), shown);
    }
}
