//! What the backup sets take on the disk, as it was measured last.
//! Never says that a set is good. Invariant: a line counts only for the set that it was measured of.
//!
//! # `completed_wals/.sets.use`
//!
//! ```text
//! set 131073 1767225600123 4294967296 73400320 89ABCDEF
//! check 01234567                                          CRC-32 of the lines above
//! ```
//!
//! The inode of a set's directory, which keeps it under whatever name a rotation gives it; when it was sealed, in
//! milliseconds since 1970; the bytes of its blocks; those of them that no other file had, or `-`; the CRC-32 of the
//! inodes and times of all sets that there were. A note that is absent, torn or flipped says nothing, and the sets are
//! measured again.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::store::StoreError;
use crate::store::folder::Folder;

/// The note's name.
const NOTE_NAME: &str = ".sets.use";

/// How many sets are noted; more are measured each time.
const NOTED_MAX: usize = 1024;

/// Five numbers of 20 digits at most, and the words.
const LINE_BYTES_MAX: usize = 128;

/// What a set takes on the disk, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SetUse {
    /// The blocks of its files.
    pub allocated_bytes: u64,
    /// Those that no other file has; `None` where the file system does not tell.
    pub own_bytes: Option<u64>,
}

impl SetUse {
    /// Whether other sets' coming and going changes what is its own.
    fn is_shared(&self) -> bool {
        self.own_bytes.is_some_and(|own| own < self.allocated_bytes)
    }
}

/// Which set it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SetKey {
    /// Of its directory.
    pub(super) inode: u64,
    /// When it got its label.
    pub(super) sealed_ms: i64,
}

/// What is known of all sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct UseNote {
    measured: BTreeMap<SetKey, MeasuredUse>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct MeasuredUse {
    taken: SetUse,
    /// Which sets there were.
    among: u32,
}

impl UseNote {
    pub(super) fn read(completed: &Folder) -> UseNote {
        let text = completed.read_small(NOTE_NAME, (NOTED_MAX + 1) * LINE_BYTES_MAX);
        let text = text.ok().flatten();
        text.and_then(|text| UseNote::parse(&text))
            .unwrap_or_default()
    }

    pub(super) fn write(&self, completed: &Arc<Folder>) -> Result<(), StoreError> {
        completed.write_small(NOTE_NAME, self.text().as_bytes())
    }

    /// What this set was measured to take last.
    pub(super) fn of(&self, key: SetKey) -> Option<SetUse> {
        self.measured.get(&key).map(|measured| measured.taken)
    }

    /// Forgets all sets but these.
    pub(super) fn keep(&mut self, keys: &[SetKey]) {
        self.measured.retain(|key, _| keys.contains(key));
    }

    /// A set that has to be measured. Either it never was, or sets share blocks and other sets were there when it was
    /// measured.
    pub(super) fn due(&self, keys: &[SetKey]) -> Option<SetKey> {
        let among = crc32_of(keys);
        let are_shared = self.measured.values().any(|it| it.taken.is_shared());
        let is_due = |key: &&SetKey| match self.measured.get(key) {
            None => true,
            Some(measured) => are_shared && measured.among != among,
        };
        keys.iter().take(NOTED_MAX).find(is_due).copied()
    }

    /// Notes what a set takes among these.
    pub(super) fn insert(&mut self, key: SetKey, taken: SetUse, keys: &[SetKey]) {
        if self.measured.contains_key(&key) || self.measured.len() < NOTED_MAX {
            let among = crc32_of(keys);
            self.measured.insert(key, MeasuredUse { taken, among });
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (key, MeasuredUse { taken, among }) in &self.measured {
            let (inode, sealed_ms, allocated) = (key.inode, key.sealed_ms, taken.allocated_bytes);
            let own = taken
                .own_bytes
                .map_or("-".to_owned(), |own| own.to_string());
            text += &format!("set {inode} {sealed_ms} {allocated} {own} {among:08X}\n");
        }
        let check = crc32fast::hash(text.as_bytes());
        text + &format!("check {check:08X}\n")
    }

    fn parse(content: &[u8]) -> Option<UseNote> {
        let told = std::str::from_utf8(content).ok()?;
        let (above, _) = told.rsplit_once("check ")?;
        let mut note = UseNote::default();
        for line in above.lines() {
            let mut words = line.strip_prefix("set ")?.split(' ');
            let mut word = || words.next();
            let key = SetKey {
                inode: word()?.parse().ok()?,
                sealed_ms: word()?.parse().ok()?,
            };
            let taken = SetUse {
                allocated_bytes: word()?.parse().ok()?,
                own_bytes: match word()? {
                    "-" => None,
                    own => Some(own.parse().ok()?),
                },
            };
            let among = u32::from_str_radix(word()?, 16).ok()?;
            note.measured.insert(key, MeasuredUse { taken, among });
        }
        (note.text() == told).then_some(note)
    }
}

fn crc32_of(keys: &[SetKey]) -> u32 {
    let mut keys = keys.to_vec();
    keys.sort_unstable();
    let mut hasher = crc32fast::Hasher::new();
    for key in keys {
        hasher.update(&key.inode.to_le_bytes());
        hasher.update(&key.sealed_ms.to_le_bytes());
    }
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(inode: u64) -> SetKey {
        SetKey {
            inode,
            sealed_ms: 1_767_225_600_000 + i64::try_from(inode).unwrap(),
        }
    }

    const fn taken(allocated_bytes: u64, own_bytes: Option<u64>) -> SetUse {
        SetUse {
            allocated_bytes,
            own_bytes,
        }
    }

    #[test]
    fn fault_224_a_note_of_what_sets_take_with_a_flipped_bit_says_nothing() {
        let mut note = UseNote::default();
        note.insert(key(4), taken(9_000, Some(4_096)), &[key(4)]);
        note.insert(key(9), taken(8_192, None), &[key(4), key(9)]);
        let text = note.text().into_bytes();
        assert_eq!(UseNote::parse(&text), Some(note));
        for bit in 0..text.len() * 8 {
            let mut flipped = text.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(UseNote::parse(&flipped), None, "bit {bit}");
        }
    }

    #[test]
    fn fault_224_sets_that_share_are_measured_again_when_one_comes_or_goes() {
        let mut note = UseNote::default();
        assert_eq!(note.due(&[]), None);
        assert_eq!(note.due(&[key(1)]), Some(key(1)));
        note.insert(key(1), taken(100, Some(100)), &[key(1)]);
        assert_eq!(note.due(&[key(1)]), None);
        // Nobody shares yet: what is new is all that is measured.
        let both = [key(2), key(1)];
        assert_eq!(note.due(&both), Some(key(2)));
        note.insert(key(2), taken(100, Some(100)), &both);
        assert_eq!(note.due(&both), None);
        let three = [key(3), key(2), key(1)];
        note.insert(key(3), taken(100, Some(10)), &three);
        assert_eq!(note.due(&three), Some(key(2)));
        note.insert(key(2), taken(100, Some(20)), &three);
        assert_eq!(note.due(&three), Some(key(1)));
        note.insert(key(1), taken(100, Some(100)), &three);
        assert_eq!(note.due(&three), None);
        let left = [key(3), key(1)];
        note.keep(&left);
        assert_eq!(note.of(key(2)), None);
        assert_eq!(note.due(&left), Some(key(3)));
        // Another set in the same place is another set.
        let anew = SetKey {
            sealed_ms: 7,
            ..key(1)
        };
        assert_eq!(note.of(anew), None);
    }

    proptest! {
        #[test]
        fn arbitrary_notes_never_panic(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = UseNote::parse(&text);
        }
    }
}
