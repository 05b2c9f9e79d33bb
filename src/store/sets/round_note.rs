//! What a round through the backup sets found damaged, and where it was.
//! Never says what a set is worth. Invariant: sound only if every byte of it is what would be written.
//!
//! # `completed_wals/.rounds.sets`
//!
//! ```text
//! at 131073 4711                                    where a receiver that is started goes on
//! damaged 131073 131085 1767225600123 6261…39 its CRC-32C is …
//! check 01234567                                    CRC-32 of the lines above
//! ```
//!
//! The first number is the inode of a set's directory, which keeps it under whatever name a rotation gives it;
//! `at` says how many of the files in its manifest were read. The others are the damaged file's inode and the
//! time of its last change in milliseconds since 1970, both 0 for one that cannot be opened; its path is in
//! hexadecimal. A note that is absent, torn or flipped says nothing, and a round begins anew.

use std::collections::BTreeMap;
use std::sync::Arc;

use walmgr_protocol::names::RelativePath;

use crate::store::StoreError;
use crate::store::disk::FileStat;
use crate::store::folder::Folder;
use crate::store::verify::note::VERIFIED_NAME;

/// The note's name.
const NOTE_NAME: &str = ".rounds.sets";

/// The name of the note that `verify` writes in its folder.
const VERIFY_NOTE_NAME: &str = "damaged.sets";

/// How many damaged sets are noted, a file of each.
const NOTED_MAX: usize = 128;

/// How much is said about one.
const WHY_CHARS_MAX: usize = 240;

/// Its lines at their longest: paths of 4 KiB in hexadecimal.
const NOTE_BYTES_MAX: usize = (NOTED_MAX + 2) * (WHY_CHARS_MAX * 4 + (8 << 10) + 128);

/// What a round over the sets found, in `full_backup`'s folder; the round writes it, `status` reads it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SetsNote {
    pub(super) at: Option<(u64, u64)>,
    /// By the inode of the set's directory.
    pub(super) damaged: BTreeMap<u64, NotedFile>,
}

/// A damaged file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NotedFile {
    inode: u64,
    changed_ms: i64,
    /// Where the set keeps it.
    pub(super) path: RelativePath,
    pub(super) why: String,
}

impl NotedFile {
    pub(super) fn of(path: &RelativePath, stat: Option<&FileStat>, why: &str) -> NotedFile {
        let (inode, changed_ms) = place_of(stat);
        let why = why.chars().take(WHY_CHARS_MAX);
        NotedFile {
            inode,
            changed_ms,
            path: path.clone(),
            why: why
                .map(|char| if char.is_control() { ' ' } else { char })
                .collect(),
        }
    }

    /// Whether this is the file; `None` for one that is not there.
    pub(super) fn is_of(&self, stat: Option<&FileStat>) -> bool {
        place_of(stat) == (self.inode, self.changed_ms)
    }
}

fn place_of(stat: Option<&FileStat>) -> (u64, i64) {
    stat.map_or((0, 0), |stat| (stat.identity.inode, stat.changed_ms))
}

impl SetsNote {
    pub(super) fn read(completed: &Folder) -> SetsNote {
        SetsNote::read_named(completed, NOTE_NAME)
    }

    /// That of `verify`, in its folder.
    pub(super) fn read_by_verify(folder: &Folder) -> SetsNote {
        SetsNote::read_named(folder, VERIFY_NOTE_NAME)
    }

    /// What rounds found, and what `verify` found.
    pub(super) fn read_all(completed: &Folder) -> [SetsNote; 2] {
        let folder = completed.below(VERIFIED_NAME).ok().flatten();
        let by_verify = folder.map(|folder| SetsNote::read_by_verify(&folder));
        [SetsNote::read(completed), by_verify.unwrap_or_default()]
    }

    fn read_named(folder: &Folder, name: &str) -> SetsNote {
        let text = folder.read_small(name, NOTE_BYTES_MAX);
        let text = text.ok().flatten();
        text.and_then(|text| SetsNote::parse(&text))
            .unwrap_or_default()
    }

    pub(super) fn write(&self, completed: &Arc<Folder>) -> Result<(), StoreError> {
        completed.write_small(NOTE_NAME, self.text().as_bytes())
    }

    pub(super) fn write_by_verify(&self, folder: &Arc<Folder>) -> Result<(), StoreError> {
        folder.write_small(VERIFY_NOTE_NAME, self.text().as_bytes())
    }

    pub(super) fn insert(&mut self, set: u64, noted: NotedFile) {
        if self.damaged.contains_key(&set) || self.damaged.len() < NOTED_MAX {
            self.damaged.insert(set, noted);
        }
    }

    fn text(&self) -> String {
        let at = self.at.map(|(set, passed)| format!("at {set} {passed}\n"));
        let mut text = at.unwrap_or_default();
        for (set, noted) in &self.damaged {
            let (inode, changed_ms, why) = (noted.inode, noted.changed_ms, &noted.why);
            text += &format!("damaged {set} {inode} {changed_ms} ");
            for byte in noted.path.as_bytes() {
                text += &format!("{byte:02x}");
            }
            text += &format!(" {why}\n");
        }
        let check = crc32fast::hash(text.as_bytes());
        text + &format!("check {check:08X}\n")
    }

    fn parse(content: &[u8]) -> Option<SetsNote> {
        let told = std::str::from_utf8(content).ok()?;
        let (above, _) = told.rsplit_once("check ")?;
        let mut note = SetsNote::default();
        for line in above.lines() {
            let mut words = line.splitn(6, ' ');
            match words.next()? {
                "at" => note.at = Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?)),
                "damaged" => {
                    let set = words.next()?.parse().ok()?;
                    let noted = NotedFile {
                        inode: words.next()?.parse().ok()?,
                        changed_ms: words.next()?.parse().ok()?,
                        path: RelativePath::new(&from_hexadecimal(words.next()?)?).ok()?,
                        why: words.next()?.to_owned(),
                    };
                    note.damaged.insert(set, noted);
                }
                _ => return None,
            }
        }
        (note.text() == told).then_some(note)
    }
}

fn from_hexadecimal(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fault_107_a_note_about_sets_with_a_flipped_bit_says_nothing() {
        let noted = |path: &str, why: &str| NotedFile {
            inode: 7,
            changed_ms: -3,
            path: path.parse().unwrap(),
            why: why.to_owned(),
        };
        let damaged = [(4, noted("base/1/a b", "it is gone")), (9, noted("x", ""))];
        let note = SetsNote {
            at: Some((4, 17)),
            damaged: damaged.into_iter().collect(),
        };
        let text = note.text().into_bytes();
        assert_eq!(SetsNote::parse(&text), Some(note));
        for bit in 0..text.len() * 8 {
            let mut flipped = text.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SetsNote::parse(&flipped), None, "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = SetsNote::parse(&text);
        }
    }
}
