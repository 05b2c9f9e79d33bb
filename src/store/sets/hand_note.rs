//! The note of a person who locked the backup sets: what makes `BACKUPLOCK` a lock that ends by hand.
//! Never opens the file. Invariant: text that is torn, or that a backup wrote, is no such note.
//!
//! ```text
//! postgres, by hand since 2026-01-31 17:45:00 +0100
//! walmgr xlock 26 1769877900000
//! ```
//!
//! The first line is for people. The second has the user's number and the time in milliseconds since 1970. What a
//! backup writes has one line: whatever its owner calls itself, there is no line break in it.

use super::error::SetError;

/// How the line begins that makes the file a person's lock.
const MARK: &str = "walmgr xlock ";

/// A name and a time; users have no longer names.
const WHO_CHARS_MAX: usize = 96;

/// Who locked the sets by hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HandNote {
    /// Who, and since when, for people.
    pub(crate) who: String,
    /// The user's number.
    pub(crate) uid: u32,
    /// Since when, in milliseconds since 1970.
    pub(crate) since_ms: i64,
}

impl HandNote {
    /// What stands in the file, if that makes it a person's lock.
    pub(crate) fn parse(text: &[u8]) -> Option<HandNote> {
        let text = std::str::from_utf8(text).ok()?;
        let (who, mark) = text.strip_suffix('\n')?.split_once('\n')?;
        let (uid, since_ms) = mark.strip_prefix(MARK)?.split_once(' ')?;
        Some(HandNote {
            who: who.to_owned(),
            uid: uid.parse().ok()?,
            since_ms: since_ms.parse().ok()?,
        })
    }

    pub(super) fn text(&self) -> String {
        let plain = |c: char| if c.is_control() { ' ' } else { c };
        let who: String = self.who.chars().map(plain).take(WHO_CHARS_MAX).collect();
        format!("{who}\n{MARK}{} {}\n", self.uid, self.since_ms)
    }

    /// Who holds it, as it stands in a sentence.
    pub(crate) fn holder(&self) -> String {
        let shown = |c: char| if c.is_control() { ' ' } else { c };
        self.who.chars().map(shown).collect()
    }

    pub(super) fn refusal(&self) -> SetError {
        SetError::LockedByHand {
            holder: self.holder(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_164_only_a_whole_note_is_a_lock_by_hand() {
        let note = HandNote {
            who: "post\ngres, since a moment ago".to_owned(),
            uid: 26,
            since_ms: 1_769_877_900_000,
        };
        let text = note.text();
        let read = HandNote::parse(text.as_bytes()).unwrap();
        assert_eq!(read.who, "post gres, since a moment ago");
        assert_eq!((read.uid, read.since_ms), (note.uid, note.since_ms));
        assert_eq!(read.text(), text);
        for cut in 0..text.len() {
            assert_eq!(HandNote::parse(&text.as_bytes()[..cut]), None, "{cut}");
        }
        for other in [
            "",
            "\n",
            "db1, since 2026\n",
            "a\nwalmgr xlock x 1\n",
            "a\nb\nwalmgr xlock 1 1\n",
        ] {
            assert_eq!(HandNote::parse(other.as_bytes()), None, "{other:?}");
        }
        assert_eq!(HandNote::parse(&[0xFF, b'\n']), None);
    }
}
