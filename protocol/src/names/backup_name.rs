//! The names of backup sets: `data.master` for the newest, `data.master.0` and so on behind it.
//! Never a path. Invariant: a number has one spelling, so no two texts name one set.

use std::fmt;
use std::sync::Arc;

use super::InvalidName;
use crate::limits::{BACKUP_NUMBER_MAX, COMPONENT_BYTES_MAX};

/// The name of a backup set: the last component of `full_backup`, with a number for each set but
/// the newest. Ordered from the newest to the oldest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupName {
    base: Arc<str>,
    number: Option<u32>,
}

/// What the store appends to the base for itself, with room for a random number behind it.
const SUFFIX_BYTES_MAX: usize = 64;

impl BackupName {
    /// The newest set's name: the last component of `full_backup`.
    pub fn newest(base: &str) -> Result<Self, InvalidName> {
        let fits = !base.is_empty()
            && base.len() <= COMPONENT_BYTES_MAX - SUFFIX_BYTES_MAX
            && !base.starts_with('.')
            && !base.contains(|c: char| c == '/' || c.is_control());
        if !fits {
            let expected = "a directory name of at most 191 bytes that begins with no dot";
            return Err(InvalidName::new(expected, base));
        }
        let base = base.into();
        Ok(BackupName { base, number: None })
    }

    /// The name with this number; 0 is the second newest.
    pub fn numbered(&self, number: u32) -> Option<Self> {
        (number <= BACKUP_NUMBER_MAX).then(|| BackupName {
            base: Arc::clone(&self.base),
            number: Some(number),
        })
    }

    /// The name a set gets when a newer one arrives, or `None` behind the last.
    pub fn next(&self) -> Option<Self> {
        self.numbered(self.number.map_or(0, |number| number + 1))
    }

    /// Reads the name of any set beside this one.
    pub fn parse_sibling(&self, text: &str) -> Result<Self, InvalidName> {
        let behind = text.strip_prefix(&*self.base);
        let number = match behind {
            Some("") => Some(None),
            Some(behind) => behind.strip_prefix('.').and_then(number).map(Some),
            None => None,
        };
        match number {
            Some(number) => Ok(BackupName {
                base: Arc::clone(&self.base),
                number,
            }),
            None => Err(InvalidName::new(
                "the name of a backup set, as `listbackups` prints it",
                text,
            )),
        }
    }

    /// The last component of `full_backup`.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The number behind it; the newest set has none.
    pub const fn number(&self) -> Option<u32> {
        self.number
    }
}

fn number(digits: &str) -> Option<u32> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    let canonical = plain && (digits == "0" || !digits.starts_with('0'));
    let number = canonical.then(|| digits.parse().ok()).flatten()?;
    (number <= BACKUP_NUMBER_MAX).then_some(number)
}

impl fmt::Display for BackupName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            None => write!(out, "{}", self.base),
            Some(number) => write!(out, "{}.{number}", self.base),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn newest() -> BackupName {
        BackupName::newest("data.master").unwrap()
    }

    #[test]
    fn sets_are_ordered_from_the_newest_to_the_oldest() {
        let name = |text| newest().parse_sibling(text).unwrap();
        let mut names = [name("data.master.10"), name("data.master.2"), newest()];
        names.sort();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["data.master", "data.master.2", "data.master.10"]);
        assert_eq!(newest().next(), newest().numbered(0));
        assert_eq!(name("data.master.10000").next(), None);
    }

    #[test]
    fn names_of_anything_else_are_refused() {
        for text in [
            "",
            "data",
            "data.master.",
            "data.master.incoming",
            "data.master.01",
            "data.master.+1",
            "data.master.-1",
            "data.master.10001",
            "data.master.0/..",
            "../data.master",
            "data.master.0.0",
            "data.master0",
            "DATA.MASTER",
            "data.master.expired.1",
            "x.0",
        ] {
            assert!(
                newest().parse_sibling(text).is_err(),
                "{text:?} was accepted"
            );
        }
        for base in [
            "",
            ".",
            "..",
            ".hidden",
            "a/b",
            "a\0b",
            "a\nb",
            &"x".repeat(192),
        ] {
            assert!(BackupName::newest(base).is_err(), "{base:?} was accepted");
        }
    }

    proptest! {
        #[test]
        fn a_backup_name_has_one_spelling(text in "data\\.master(\\.[0-9]{0,6})?") {
            if let Ok(name) = newest().parse_sibling(&text) {
                prop_assert_eq!(name.to_string(), text);
            }
        }

        #[test]
        fn every_number_is_read_back(number in 0..=BACKUP_NUMBER_MAX) {
            let name = newest().numbered(number).unwrap();
            prop_assert_eq!(newest().parse_sibling(&name.to_string()).unwrap(), name);
        }
    }
}
