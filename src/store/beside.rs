//! What is kept beside the file of a name: copies under that name with a suffix, and a number behind it.
//! Never opens one. Invariant: no name of a copy is the name of a WAL file, and none is given twice.
//!
//! | suffix | of what |
//! |---|---|
//! | `.damaged` | what was found under the name and was no valid WAL |
//! | `.differs` | another valid file that was offered and never acknowledged; the last one (see `differs`) |
//! | `.displaced` | what was stored and acknowledged under the name until another file got it (see `displaced`) |
//!
//! Behind all that stands `.zst` where a segment or a copy of one is packed.

use walmgr_protocol::names::{SegmentName, WalFileName};

/// What stands behind the name of a packed file.
pub(crate) const PACKED_SUFFIX: &str = ".zst";

/// Why a copy is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Beside {
    /// It was offered.
    Differs,
    /// It was stored, and gave way.
    Displaced,
    /// It was stored, and the disk changed it; or it was never whole.
    Damaged,
}

impl Beside {
    /// Every kind.
    pub const ALL: [Beside; 3] = [Beside::Differs, Beside::Displaced, Beside::Damaged];

    /// What stands behind the name.
    pub const fn suffix(self) -> &'static str {
        match self {
            Beside::Differs => ".differs",
            Beside::Displaced => ".displaced",
            Beside::Damaged => ".damaged",
        }
    }
}

/// A copy by its name in the directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CopyName {
    /// The file that it is a copy of.
    pub name: WalFileName,
    /// Why it is there.
    pub kind: Beside,
    /// The number behind it; the first has none.
    pub number: u32,
}

impl CopyName {
    /// What this name in the directory is a copy of, if it is one.
    pub fn parse(text: &str) -> Option<CopyName> {
        Beside::ALL.into_iter().find_map(|kind| {
            let (name, rest) = text.split_once(kind.suffix())?;
            let number = match rest.strip_prefix('.') {
                Some(number) => number.parse().ok()?,
                None if rest.is_empty() => 0,
                None => return None,
            };
            let copy = CopyName {
                name: name.parse().ok()?,
                kind,
                number,
            };
            Some(copy)
        })
    }

    /// The copies of a name that are served by nobody but might be, in the order of their numbers.
    pub fn to_choose_from(
        name: WalFileName,
        texts: impl IntoIterator<Item = String>,
    ) -> Vec<CopyName> {
        let copies = texts.into_iter().filter_map(|text| CopyName::parse(&text));
        let mut copies: Vec<CopyName> = copies
            .filter(|copy| copy.name == name && copy.kind != Beside::Damaged)
            .collect();
        copies.sort();
        copies
    }
}

impl std::fmt::Display for CopyName {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}{}", self.name, self.kind.suffix())?;
        match self.number {
            0 => Ok(()),
            number => write!(out, ".{number}"),
        }
    }
}

/// The file that this name in the directory is a damaged copy of. A segment of which only such a copy exists is
/// not "absent" for a recovering PostgreSQL, which would end its recovery there.
pub(crate) fn damaged_copy_of(text: &str) -> Option<WalFileName> {
    let copy = CopyName::parse(text)?;
    (copy.kind == Beside::Damaged).then_some(copy.name)
}

/// The name of the packed file of this name, if there can be one: only segments and copies of them are packed.
pub(super) fn packed_name(text: &str) -> Option<String> {
    can_be_packed(text).then(|| format!("{text}{PACKED_SUFFIX}"))
}

/// The file that this name in the directory is the packed form of.
pub(super) fn name_of_packed(stored: &str) -> Option<&str> {
    stored
        .strip_suffix(PACKED_SUFFIX)
        .filter(|text| can_be_packed(text))
}

fn can_be_packed(text: &str) -> bool {
    file_of(text).is_some_and(|name| matches!(name, WalFileName::Segment(_)))
}

/// The file that has this name in the directory, or whose copy has it.
pub(super) fn file_of(text: &str) -> Option<WalFileName> {
    match text.parse::<SegmentName>() {
        Ok(segment) => Some(WalFileName::Segment(segment)),
        Err(_) => CopyName::parse(text).map(|copy| copy.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_copy_is_known_by_its_name() {
        let names = [
            "000000010000000000000003",
            "00000002.history",
            "000000010000000000000003.partial",
            "000000010000000000000003.00000028.backup",
        ];
        for name in names {
            for (kind, end) in [
                (Beside::Differs, ".differs"),
                (Beside::Displaced, ".displaced.12"),
                (Beside::Damaged, ".damaged.1"),
            ] {
                let text = format!("{name}{end}");
                let copy = CopyName::parse(&text).unwrap();
                assert_eq!((copy.name, copy.kind), (name.parse().unwrap(), kind));
                assert_eq!(copy.to_string(), text);
            }
            for end in [
                "",
                ".early",
                ".differs.",
                ".differs.x",
                ".displacedx",
                ".damaged.-1",
            ] {
                assert_eq!(
                    CopyName::parse(&format!("{name}{end}")),
                    None,
                    "{name}{end}"
                );
            }
        }
        assert_eq!(CopyName::parse("x.displaced"), None);
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in ".{0,60}") {
            let _ = CopyName::parse(&text);
            let _ = CopyName::parse(&format!("000000010000000000000003.displaced{text}"));
        }
    }
}
