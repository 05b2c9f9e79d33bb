//! What `verify` remembers of files that it found good, so that the next run reads only what is new or was read
//! long ago. Never says what is damaged. Invariant: sound only if every byte of it is what would be written.
//!
//! # `completed_wals/.verified`
//!
//! ```text
//! lock                            flock of the `verify` that runs; its text, a process id, is for people
//! wal                             the finished files of the archive
//! set.INODE                       the files of the set whose directory has this inode
//! good                            when the whole archive was last found good, for monitoring (`standby::verified`)
//! damaged, damaged.sets           what was found damaged, as in `.rounds` and `.rounds.sets` (see `rounds`)
//! ```
//!
//! The two notes of good files are lines of text:
//!
//! ```text
//! verified 1 wal                                             the version; `set` and the CRC-32 of the manifest's own
//!                                                            checksum: the numbers below count in that manifest
//! 000000010000000000000007 131085 1048576 17…123 17…123 89ABCDEF 1767225600
//! 000000010000000000000008 131086 … first 0/8000148 1767225600123456 last 0/80FF120 1767225601123456 open 0/80FFFE8
//! check 01234567                                             CRC-32 of the lines above
//! ```
//!
//! Behind the name (in a set: the number of the manifest's entry, from 0) stand the file's inode, its length in bytes,
//! the times of its last write and of its last change in nanoseconds since 1970, the CRC of its content (CRC-32 of an
//! archived file, CRC-32C of a set's) and when it was read, in seconds since 1970. Of a segment follow its first and its
//! last commit, in microseconds since 1970, and where a commit begins whose record runs on into the next segment.
//!
//! A note that is absent, torn, flipped, of another version or of another manifest says nothing: everything is read.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::str::FromStr;

use walmgr_protocol::names::{Lsn, WalFileName};

use crate::store::disk::FileStat;
use crate::wal::commit::{CommitAt, CommitSpan};

/// The folder in `completed_wals`.
pub(crate) const VERIFIED_NAME: &str = ".verified";

/// The note about finished files.
pub(in crate::store) const WAL_NOTE: &str = "wal";

/// What the first line begins with.
const VERSION: &str = "verified 1 ";

/// A longer note says nothing: it is that of more than a million files.
pub(in crate::store) const NOTE_BYTES_MAX: usize = 512 << 20;

/// How old the last change of a file has to be when the file is read, in nanoseconds. Times of files are coarse: some
/// file systems keep whole seconds.
const SETTLED_NS: i64 = 2_000_000_000;

/// What the entries of a note are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum NoteSubject {
    /// The archive.
    Wal,
    /// A set whose manifest has this checksum.
    Set(u32),
}

/// A file as it was when it was found good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) struct VerifiedFile {
    inode: u64,
    len: u64,
    modified_ns: i64,
    changed_ns: i64,
    pub(in crate::store) crc: u32,
    at_s: i64,
    pub(in crate::store) commits: CommitSpan,
}

/// The files that were found good, by what names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store) struct VerifiedNote<K> {
    pub(in crate::store) subject: NoteSubject,
    pub(in crate::store) files: BTreeMap<K, VerifiedFile>,
}

impl VerifiedFile {
    /// A file that was read from `now_ns` on; `None` if it changed so shortly before that nobody can tell a later
    /// change from this one.
    pub(in crate::store) fn of(
        stat: &FileStat,
        crc: u32,
        commits: CommitSpan,
        now_ns: i64,
    ) -> Option<Self> {
        let is_settled = stat.changed_ns.saturating_add(SETTLED_NS) <= now_ns;
        is_settled.then_some(VerifiedFile {
            inode: stat.identity.inode,
            len: stat.len,
            modified_ns: stat.modified_ns,
            changed_ns: stat.changed_ns,
            crc,
            at_s: now_ns.div_euclid(1_000_000_000),
            commits,
        })
    }

    /// Whether this is the file, unchanged.
    pub(in crate::store) fn is_of(&self, stat: &FileStat) -> bool {
        let found = (
            stat.identity.inode,
            stat.len,
            stat.modified_ns,
            stat.changed_ns,
        );
        (self.inode, self.len, self.modified_ns, self.changed_ns) == found
    }

    /// Whether it was read since this second, and before this one: a clock that was set back makes nothing young.
    pub(in crate::store) const fn was_read_between(&self, since_s: i64, now_s: i64) -> bool {
        since_s < self.at_s && self.at_s <= now_s
    }
}

impl<K: Ord + Display + FromStr> VerifiedNote<K> {
    /// One that says nothing.
    pub(in crate::store) const fn empty(subject: NoteSubject) -> Self {
        VerifiedNote {
            subject,
            files: BTreeMap::new(),
        }
    }

    pub(in crate::store) fn text(&self) -> String {
        let mut text = match self.subject {
            NoteSubject::Wal => format!("{VERSION}wal\n"),
            NoteSubject::Set(crc32) => format!("{VERSION}set {crc32:08X}\n"),
        };
        for (key, file) in &self.files {
            put(&mut text, key, file);
        }
        let check = crc32fast::hash(text.as_bytes());
        // A string takes all that is written.
        let _ = writeln!(text, "check {check:08X}");
        text
    }

    /// Sound only if it is about this, and every byte of it is what would be written.
    pub(in crate::store) fn parse(subject: NoteSubject, content: &[u8]) -> Option<Self> {
        let told = std::str::from_utf8(content).ok()?;
        let (above, _) = told.rsplit_once("check ")?;
        let mut note = VerifiedNote::empty(subject);
        let mut lines = above.lines();
        lines.next()?;
        for line in lines {
            let (key, file) = entry(line)?;
            note.files.insert(key, file);
        }
        (note.text() == told).then_some(note)
    }
}

fn put(text: &mut String, key: &impl Display, file: &VerifiedFile) {
    let VerifiedFile {
        inode,
        len,
        modified_ns,
        changed_ns,
        crc,
        at_s,
        commits,
    } = file;
    // A string takes all that is written.
    let _ = write!(
        text,
        "{key} {inode} {len} {modified_ns} {changed_ns} {crc:08X} {at_s}"
    );
    for (word, commit) in [("first", commits.first), ("last", commits.last)] {
        if let Some(CommitAt { lsn, time_us }) = commit {
            let _ = write!(text, " {word} {lsn} {time_us}");
        }
    }
    if let Some(lsn) = commits.open {
        let _ = write!(text, " open {lsn}");
    }
    text.push('\n');
}

fn entry<K: FromStr>(line: &str) -> Option<(K, VerifiedFile)> {
    let mut words = line.split(' ');
    let key = words.next()?.parse().ok()?;
    let mut file = VerifiedFile {
        inode: words.next()?.parse().ok()?,
        len: words.next()?.parse().ok()?,
        modified_ns: words.next()?.parse().ok()?,
        changed_ns: words.next()?.parse().ok()?,
        crc: u32::from_str_radix(words.next()?, 16).ok()?,
        at_s: words.next()?.parse().ok()?,
        commits: CommitSpan::default(),
    };
    while let Some(word) = words.next() {
        let lsn: Lsn = words.next()?.parse().ok()?;
        let commit = |time: Option<&str>| {
            let time_us = time?.parse().ok()?;
            Some(CommitAt { lsn, time_us })
        };
        match word {
            "first" => file.commits.first = Some(commit(words.next())?),
            "last" => file.commits.last = Some(commit(words.next())?),
            "open" => file.commits.open = Some(lsn),
            _ => return None,
        }
    }
    Some((key, file))
}

/// The fuzz body: any bytes are read as a note about the archive and as one about a set, and so is the note that their
/// lines would be with a right checksum; what is believed is what would be written.
pub(crate) fn read_any(bytes: &[u8]) {
    let said = String::from_utf8_lossy(bytes);
    let above = said
        .rsplit_once("check ")
        .map_or(&*said, |(above, _)| above);
    let lines = above.lines().skip(1);
    let body: String = lines.map(|line| format!("{line}\n")).collect();
    for (subject, head) in [
        (NoteSubject::Wal, format!("{VERSION}wal\n")),
        (NoteSubject::Set(7), format!("{VERSION}set 00000007\n")),
    ] {
        let above = format!("{head}{body}");
        let sealed = format!("{above}check {:08X}\n", crc32fast::hash(above.as_bytes()));
        for text in [bytes, sealed.as_bytes()] {
            if subject == NoteSubject::Wal {
                believed::<WalFileName>(subject, text);
            } else {
                believed::<u32>(subject, text);
            }
        }
    }
}

fn believed<K: Ord + Display + FromStr>(subject: NoteSubject, text: &[u8]) {
    let Some(note) = VerifiedNote::<K>::parse(subject, text) else {
        return;
    };
    assert_eq!(note.text().as_bytes(), text);
    assert!(VerifiedNote::<K>::parse(NoteSubject::Set(8), text).is_none());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(commits: CommitSpan) -> VerifiedFile {
        VerifiedFile {
            inode: 7,
            len: 1 << 20,
            modified_ns: -3,
            changed_ns: 1_767_225_600_123_456_789,
            crc: 0x89AB_CDEF,
            at_s: 1_767_225_700,
            commits,
        }
    }

    fn notes() -> (VerifiedNote<WalFileName>, VerifiedNote<u32>) {
        let at = |lsn, time_us| {
            Some(CommitAt {
                lsn: Lsn(lsn),
                time_us,
            })
        };
        let spans = [
            CommitSpan::default(),
            CommitSpan {
                first: at(9, -5),
                last: at(10, 7),
                open: None,
            },
            CommitSpan {
                open: Some(Lsn(77)),
                ..CommitSpan::default()
            },
        ];
        let names = [
            "000000010000000000000007",
            "000000010000000000000008",
            "00000002.history",
        ];
        let named = names.iter().zip(spans);
        let wal = named.map(|(name, span)| (name.parse().unwrap(), file(span)));
        let set = [
            (0, file(CommitSpan::default())),
            (4711, file(CommitSpan::default())),
        ];
        let wal = VerifiedNote {
            subject: NoteSubject::Wal,
            files: wal.collect(),
        };
        let set = VerifiedNote {
            subject: NoteSubject::Set(0x0BAD_CAFE),
            files: set.into_iter().collect(),
        };
        (wal, set)
    }

    #[test]
    fn fault_155_a_note_of_good_files_that_is_cut_or_flipped_says_nothing() {
        let (wal, set) = notes();
        let text = wal.text().into_bytes();
        assert_eq!(VerifiedNote::parse(NoteSubject::Wal, &text), Some(wal));
        for bit in 0..text.len() * 8 {
            let mut flipped = text.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let read = VerifiedNote::<WalFileName>::parse(NoteSubject::Wal, &flipped);
            assert_eq!(read, None, "bit {bit}");
            read_any(&flipped);
        }
        for len in 0..text.len() {
            let read = VerifiedNote::<WalFileName>::parse(NoteSubject::Wal, &text[..len]);
            assert_eq!(read, None);
            read_any(&text[..len]);
        }
        let (subject, text) = (set.subject, set.text());
        assert_eq!(VerifiedNote::parse(subject, text.as_bytes()), Some(set));
        let other = VerifiedNote::<u32>::parse(NoteSubject::Set(1), text.as_bytes());
        assert_eq!(other, None, "another manifest's");
    }

    #[test]
    fn a_file_that_changed_just_before_it_was_read_is_not_remembered() {
        let stat = FileStat {
            identity: crate::files::FileId {
                device: 1,
                inode: 2,
            },
            len: 3,
            is_file: true,
            modified_ns: 0,
            changed_ns: 10_000_000_000,
            changed_ms: 10_000,
        };
        let of = |now_ns| VerifiedFile::of(&stat, 1, CommitSpan::default(), now_ns);
        assert_eq!(of(11_000_000_000), None);
        let known = of(12_000_000_000).unwrap();
        assert!(known.is_of(&stat));
        let later = FileStat {
            changed_ns: stat.changed_ns + 1,
            ..stat
        };
        assert!(!known.is_of(&later));
        assert!(known.was_read_between(11, 12));
        assert!(!known.was_read_between(12, 13), "too long ago");
        assert!(!known.was_read_between(0, 11), "the clock was set back");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_as_a_note(bytes: Vec<u8>, text in "([0-9A-F]{24}( [0-9]{1,9}){4} [0-9A-F]{8} [0-9]{1,9}\n){0,3}") {
            read_any(&bytes);
            read_any(format!("x\n{text}check ").as_bytes());
        }
    }
}
