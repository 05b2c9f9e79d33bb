//! What each finished file was when it was acknowledged: `completed_wals/.checksums/NAME`.
//! Never needed to serve a file, and never synced on the way of an acknowledgement. Invariant: a sound
//! one is of the file that has its name, or of one that is gone.
//!
//! # Format
//!
//! Lines of text, the last of them over the ones before:
//!
//! ```text
//! name 000000010000000000000002
//! length 16777216
//! crc32 89ABCDEF                      CRC-32 (zlib) of the whole file
//! end open 0/2FFFFA8 after 0/2FFFF38  how a segment ends (`SegmentEnd`): here a record that begins at
//!                                     0/2FFFFA8, behind the one at 0/2FFFF38, runs on into the next.
//!                                     `end open LSN`, `end closed LSN`, `end inside`; no line if unknown
//! records                             every record of it held when it was stored, by its own checksum, and none is one
//!                                     that replay may not get past (`obstacle_notes`)
//! follows 01234567                    CRC-32 of the segment before, if this one was found to go on with it
//! found                               only if a start of the receiver found the file without a checksum
//! by master (192.0.2.7:51234)         who brought it, if that is known; no line where nobody did
//! check 01234567                      CRC-32 of the lines above
//! ```
//!
//! One that is absent, torn, unreadable or of another name says nothing: the file is then judged by what
//! it holds, as if there were no checksums.
//!
//! # What a crash leaves
//!
//! A checksum is written once, when its file's content and name have been synced, and before the file is
//! acknowledged. It is not synced: after a power cut it is whole, torn or absent, and the last two say
//! nothing. It is there only if its file is, because the file was durable before.
//!
//! What would be wrong is an older checksum beside a newer file. A name gets a newer file only when the
//! older one is gone: set aside as damaged, taken away by hand, or lost with its disk. Its checksum is left
//! behind then. `Checksums::clear` removes that and syncs the removal before the name is given away again, so
//! no power cut brings it back. A file that is set aside keeps its checksum until then, because a crash
//! before the rename would leave the damaged file without the only thing that tells it from an honest one.
//!
//! A purge removes the checksums first and syncs that: a crash leaves files without checksums, and the
//! next purge takes them.

use std::os::fd::AsFd;
use std::sync::Arc;

use walmgr_protocol::names::{Lsn, WalFileName};

use super::error::StoreError;
use super::folder::Folder;
use super::map_notes;
use super::obstacle_notes;
use crate::wal::joint::SegmentEnd;

/// The folder in `completed_wals`.
pub(crate) const CHECKSUMS_NAME: &str = ".checksums";

/// More than any of them has.
const TEXT_BYTES_MAX: usize = 512 + BY_CHARS_MAX * 4;

/// How much is kept of who brought a file: a name that a person gave, and an address.
const BY_CHARS_MAX: usize = 200;

/// A finished file as it was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeptChecksum {
    /// Its length in bytes.
    pub len: u64,
    /// The CRC-32 of its content.
    pub crc32: u32,
    /// How it ends, if it is a segment whose records were looked at.
    pub end: Option<SegmentEnd>,
    /// Whether each of its records was found to be whole before it was acknowledged, and none to be an obstacle.
    pub has_sound_records: bool,
    /// The CRC-32 of the segment before, if this segment was found to go on with it. While the segment before has this
    /// CRC-32, the record that crosses between the two need not be read again.
    pub follows: Option<u32>,
    /// Whether this is how a start found it, without a checksum. Then it says that the file has not changed
    /// since, and not that it is what was acknowledged.
    pub is_found: bool,
}

impl KeptChecksum {
    /// What is wrong with a file of this length and CRC-32, as a sentence; `None` if it is the one.
    ///
    /// If a start found the file and its records were looked at, only the length is compared: nobody
    /// acknowledged those bytes, and a person may have put a better copy there since.
    pub(super) fn contradicts(&self, len: u64, crc32: u32) -> Option<String> {
        let is_judged_by_its_records = self.is_found && self.end.is_some();
        if is_judged_by_its_records && self.len == len {
            return None;
        }
        if self.len != len {
            let expected = self.len;
            return Some(format!(
                "it has {len} bytes, but had {expected} when it was acknowledged"
            ));
        }
        let expected = self.crc32;
        (expected != crc32).then(|| {
            format!(
                "its CRC-32 is {crc32:08X}, but was {expected:08X} when it was acknowledged \
                 (kept in {CHECKSUMS_NAME})"
            )
        })
    }

    pub(super) fn text(&self, name: WalFileName, by: &str) -> String {
        let (len, crc32) = (self.len, self.crc32);
        let mut text = format!("name {name}\nlength {len}\ncrc32 {crc32:08X}\n");
        match self.end {
            None => {}
            Some(SegmentEnd::Closed { last }) => text += &format!("end closed {last}\n"),
            Some(SegmentEnd::Open { begins, previous }) => {
                text += &format!("end open {begins}");
                if let Some(previous) = previous {
                    text += &format!(" after {previous}");
                }
                text += "\n";
            }
            Some(SegmentEnd::Inside) => text += "end inside\n",
        }
        if self.has_sound_records {
            text += "records\n";
        }
        if let Some(follows) = self.follows {
            text += &format!("follows {follows:08X}\n");
        }
        if self.is_found {
            text += "found\n";
        }
        if !by.is_empty() {
            text += &format!("by {by}\n");
        }
        let check = crc32fast::hash(text.as_bytes());
        text + &format!("check {check:08X}\n")
    }

    pub(super) fn parse(name: WalFileName, text: &[u8]) -> Option<KeptChecksum> {
        let text = std::str::from_utf8(text).ok()?;
        let at = text.rfind("check ")?;
        let (above, check) = text.split_at(at);
        let check = hexadecimal(check.strip_prefix("check ")?.strip_suffix('\n')?)?;
        if crc32fast::hash(above.as_bytes()) != check && !cfg!(fuzzing) {
            return None;
        }
        let mut lines = above.lines();
        if lines.next()?.strip_prefix("name ")? != name.to_string() {
            return None;
        }
        let len = lines.next()?.strip_prefix("length ")?.parse().ok()?;
        let crc32 = hexadecimal(lines.next()?.strip_prefix("crc32 ")?)?;
        let mut rest = lines.peekable();
        let end = match rest.next_if(|line| line.starts_with("end ")) {
            Some(line) => Some(parse_end(line.strip_prefix("end ")?)?),
            None => None,
        };
        let has_sound_records = rest.next_if_eq(&"records").is_some();
        let follows = match rest.next_if(|line| line.starts_with("follows ")) {
            Some(line) => Some(hexadecimal(line.strip_prefix("follows ")?)?),
            None => None,
        };
        let is_found = rest.next_if_eq(&"found").is_some();
        let _ = rest.next_if(|line| line.starts_with("by "));
        rest.next().is_none().then_some(KeptChecksum {
            len,
            crc32,
            end,
            has_sound_records,
            follows,
            is_found,
        })
    }
}

fn parse_end(text: &str) -> Option<SegmentEnd> {
    let lsn = |text: &str| text.parse::<Lsn>().ok();
    let words: Vec<&str> = text.split(' ').collect();
    Some(match words[..] {
        ["closed", last] => SegmentEnd::Closed { last: lsn(last)? },
        ["open", begins] => SegmentEnd::Open {
            begins: lsn(begins)?,
            previous: None,
        },
        ["open", begins, "after", previous] => SegmentEnd::Open {
            begins: lsn(begins)?,
            previous: Some(lsn(previous)?),
        },
        ["inside"] => SegmentEnd::Inside,
        _ => return None,
    })
}

fn hexadecimal(text: &str) -> Option<u32> {
    let is_plain = text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_plain
        .then(|| u32::from_str_radix(text, 16).ok())
        .flatten()
}

/// The checksums of an archive; without their folder nothing is known of any file.
pub(super) struct Checksums {
    folder: Option<Arc<Folder>>,
}

impl Checksums {
    /// Those of a folder of finished files, to read them.
    pub(super) fn open(completed: &Folder) -> Checksums {
        Checksums {
            folder: completed.below(CHECKSUMS_NAME).ok().flatten(),
        }
    }

    /// Those of a folder of finished files, to write them; they are made if there are none. An archive without them is served too: a full disk is no reason to refuse
    /// what is stored.
    pub(super) fn open_or_create(completed: &Folder) -> Checksums {
        let path = completed.path().join(CHECKSUMS_NAME);
        let created = match completed.stat_at(CHECKSUMS_NAME) {
            Ok(None) => completed.disk.create_directory(&path),
            _ => Ok(()),
        };
        let checksums = Checksums::open(completed);
        if checksums.folder.is_none() {
            let why = created
                .err()
                .map_or_else(String::new, |why| format!(": {why}"));
            tracing::warn!(
                "{} cannot be used, so no checksums are kept{why}",
                path.display()
            );
        }
        checksums
    }

    /// What is kept of a file; `None` when that is unknown, for whatever reason.
    pub(super) fn read(&self, name: WalFileName) -> Option<KeptChecksum> {
        let folder = self.folder.as_ref()?;
        let text = folder
            .read_small(&name.to_string(), TEXT_BYTES_MAX)
            .ok()??;
        KeptChecksum::parse(name, &text)
    }

    /// Who brought a file, if that was kept.
    pub(super) fn brought_by(&self, name: WalFileName) -> Option<String> {
        let folder = self.folder.as_ref()?;
        let text = folder
            .read_small(&name.to_string(), TEXT_BYTES_MAX)
            .ok()??;
        KeptChecksum::parse(name, &text)?;
        let text = String::from_utf8(text).ok()?;
        text.lines()
            .find_map(|line| line.strip_prefix("by ").map(str::to_owned))
    }

    /// Keeps what a file is whose content and name are durable, and who brought it. A failure costs nothing
    /// but the checksum.
    pub(super) fn keep(&self, name: WalFileName, kept: &KeptChecksum, by: &str) {
        let Some(folder) = &self.folder else { return };
        let plain = |char: char| if char.is_control() { ' ' } else { char };
        let by: String = by.chars().take(BY_CHARS_MAX).map(plain).collect();
        write(folder, &name.to_string(), kept.text(name, &by).as_bytes());
    }

    /// What is kept of the file that has this name in the directory, whatever it was stored as, to hand it on.
    pub(super) fn text(&self, file: &str) -> Option<Vec<u8>> {
        let folder = self.folder.as_ref()?;
        folder.read_small(file, TEXT_BYTES_MAX).ok()?
    }

    /// Keeps that of a file under this name.
    pub(super) fn put(&self, file: &str, text: Option<Vec<u8>>) {
        if let (Some(folder), Some(text)) = (&self.folder, text) {
            write(folder, file, &text);
        }
    }

    /// What is kept of a file goes with it to another name, for good.
    pub(super) fn hand_on(&self, from: &str, to: &str) -> Result<(), StoreError> {
        match &self.folder {
            Some(folder) => {
                folder.remove_present([to])?;
                folder.hand_on(from, to)
            }
            None => Ok(()),
        }
    }

    /// Whether a copy is what was acknowledged under the name that it had; `None` if nobody knows.
    pub(super) fn read_copy(&self, name: WalFileName, copy: &str) -> Option<KeptChecksum> {
        KeptChecksum::parse(name, &self.text(copy)?)
    }

    /// Removes a checksum that was left behind, before its name is given to a file. Nothing is left
    /// behind in the ordinary way, so the sync is rare.
    pub(super) fn clear(&self, name: WalFileName) -> Result<(), StoreError> {
        self.remove(&[name.to_string()])
    }

    /// Removes the checksums of files that are about to lose their names, for good.
    pub(super) fn remove(&self, names: &[String]) -> Result<(), StoreError> {
        match &self.folder {
            Some(folder) => folder.remove_present(names),
            None => Ok(()),
        }
    }
}

fn write(folder: &Folder, name: &str, text: &[u8]) {
    let disk = &folder.disk;
    let create = || disk.create(folder.handle(), name);
    let created = match create() {
        // One that says nothing; a sound one is not written again.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            disk.remove(folder.handle(), name).and_then(|()| create())
        }
        other => other,
    };
    let written = created.and_then(|file| disk.write_all(file.as_fd(), text, 0));
    if let Err(error) = written {
        tracing::warn!("cannot keep the checksum of {name}: {error}");
    }
}

/// Removes finished files with what is kept of them, in this order and for good.
pub(super) fn remove_finished(completed: &Folder, names: &[String]) -> Result<(), StoreError> {
    if names.is_empty() {
        return Ok(());
    }
    Checksums::open(completed).remove(names)?;
    for name in names {
        completed.remove(name)?;
    }
    completed.sync()?;
    map_notes::remove(completed, names)?;
    obstacle_notes::remove(completed, names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name() -> WalFileName {
        "000000010000000000000002".parse().unwrap()
    }

    fn ends() -> Vec<Option<SegmentEnd>> {
        let (begins, previous) = (Lsn(0x2F_FFA8), Some(Lsn(0x2F_FF38)));
        let open = |previous| Some(SegmentEnd::Open { begins, previous });
        let closed = Some(SegmentEnd::Closed { last: begins });
        let inside = Some(SegmentEnd::Inside);
        vec![None, closed, open(None), open(previous), inside]
    }

    fn kept(end: Option<SegmentEnd>) -> KeptChecksum {
        KeptChecksum {
            len: 1 << 20,
            crc32: 0x89AB_CDEF,
            end,
            has_sound_records: matches!(end, Some(SegmentEnd::Closed { .. })),
            follows: end.map(|_| 0x0123_4567),
            is_found: end == Some(SegmentEnd::Inside),
        }
    }

    #[test]
    fn a_checksum_reads_as_it_was_written() {
        for end in ends() {
            let text = kept(end).text(name(), "master (192.0.2.7:51234)");
            assert!(text.len() < TEXT_BYTES_MAX, "{text}");
            assert_eq!(
                KeptChecksum::parse(name(), text.as_bytes()),
                Some(kept(end)),
                "{text}"
            );
            let other = "000000010000000000000003".parse().unwrap();
            assert_eq!(KeptChecksum::parse(other, text.as_bytes()), None);
        }
    }

    #[test]
    fn fault_107_a_torn_or_flipped_checksum_says_nothing() {
        for end in ends() {
            let text = kept(end).text(name(), "db1 check 01234567").into_bytes();
            for len in 0..text.len() {
                assert_eq!(KeptChecksum::parse(name(), &text[..len]), None);
                let mut zeroed = text.clone();
                zeroed[len..].fill(0);
                assert_eq!(KeptChecksum::parse(name(), &zeroed), None);
            }
            for bit in 0..text.len() * 8 {
                let mut flipped = text.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                // The case of a hexadecimal digit in the last line changes nothing.
                let read = KeptChecksum::parse(name(), &flipped);
                assert!(read.is_none_or(|read| read == kept(end)), "bit {bit}");
            }
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = KeptChecksum::parse(name(), &text);
        }
    }
}
