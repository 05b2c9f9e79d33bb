//! What `xarchive` and its agent say to each other, and how it stands in bytes.
//! Never trusts a length that it reads. Invariant: bytes of another version, or of somebody else, are no word.
//!
//! ```text
//! | 0 magic "wmag" | 4 version u16 | 6 kind u16 | 8 bytes behind the header u32 |
//! ```
//!
//! Numbers are little endian; a text stands behind its length (u32). A change of any of this is another version: the
//! two then do not understand each other, and `xarchive` pushes by itself.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use walmgr_protocol::limits::NAME_BYTES_MAX;
use walmgr_protocol::names::WalFileName;

use crate::error::{CommandError, Kind};
use crate::files::{ChangeStamp, FileId};
use crate::status::AgentFigures;

/// What every word begins with.
const MAGIC: [u8; 4] = *b"wmag";

/// Of these words and their meaning.
const VERSION: u16 = 1;

/// Bytes before those that a word's kind decides.
pub(super) const HEADER_BYTES: usize = 12;

/// Longest part of a sentence: one with two of the longest paths in it.
const TEXT_BYTES_MAX: usize = 12 << 10;

/// A failure with a cause behind a cause, which is more than there ever are.
const CAUSES_MAX: usize = 8;

/// Most of all its causes together.
const CAUSES_BYTES_MAX: usize = 24 << 10;

/// Most bytes behind a header: the longest failure, its lengths included.
const BODY_BYTES_MAX: usize = 2 * TEXT_BYTES_MAX + CAUSES_BYTES_MAX + (1 << 10);

/// Longest path that Linux takes.
const PATH_BYTES_MAX: usize = 4096;

/// Bytes of a digest of settings.
pub(super) const SETTINGS_BYTES: usize = 32;

/// One word of either side.
#[derive(Debug)]
pub(super) enum AgentWord {
    /// `xarchive`: this file is to be archived.
    Ask(Ask),
    /// It is seen to; an answer follows.
    Taken,
    /// Somebody else has to see to it.
    Elsewhere(String),
    /// The receiver proved that it stored exactly this file.
    Stored(ProvenFile),
    /// It could not be archived.
    Failed(CommandError),
    /// `status`, with a digest of the settings that it runs with: how do you stand?
    Look([u8; SETTINGS_BYTES]),
    /// So.
    Standing(AgentFigures),
}

/// What `xarchive` was called with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ask {
    /// Of the settings that it runs with.
    pub settings: [u8; SETTINGS_BYTES],
    /// The file, absolute.
    pub path: PathBuf,
    /// `%f`.
    pub name: WalFileName,
    /// The file as it is.
    pub stamp: ChangeStamp,
}

/// What was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProvenFile {
    /// Under which name.
    pub name: WalFileName,
    /// The file as it was read.
    pub stamp: ChangeStamp,
    /// Of what was read, and of what the receiver stored.
    pub crc32: u32,
}

/// Why bytes are no word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadWord {
    /// They begin otherwise.
    Foreign,
    /// They are of another version.
    Version(u16),
    /// There is no such word.
    Kind(u16),
    /// It is longer than any.
    TooLong(usize),
    /// It ends early, or goes on behind its end.
    Length,
    /// This field cannot be so.
    Field(&'static str),
}

impl fmt::Display for BadWord {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadWord::Foreign => out.write_str("these are not words of an agent"),
            BadWord::Version(found) => {
                write!(out, "expected words of version {VERSION}, found {found}")
            }
            BadWord::Kind(kind) => write!(out, "there is no word {kind}"),
            BadWord::TooLong(bytes) => {
                write!(
                    out,
                    "a word has at most {BODY_BYTES_MAX} bytes, not {bytes}"
                )
            }
            BadWord::Length => out.write_str("a word has another length than its fields"),
            BadWord::Field(what) => write!(out, "{what} cannot be so"),
        }
    }
}

impl std::error::Error for BadWord {}

/// How many bytes follow a header, and of which word.
pub(super) fn header(bytes: &[u8; HEADER_BYTES]) -> Result<(u16, usize), BadWord> {
    let mut fields = WordFields(bytes);
    if fields.array()? != MAGIC {
        return Err(BadWord::Foreign);
    }
    let version = fields.u16()?;
    if version != VERSION {
        return Err(BadWord::Version(version));
    }
    let (kind, bytes) = (fields.u16()?, fields.length()?);
    match bytes <= BODY_BYTES_MAX {
        true => Ok((kind, bytes)),
        false => Err(BadWord::TooLong(bytes)),
    }
}

impl AgentWord {
    /// What stands behind a header of this kind.
    pub(super) fn read(kind: u16, body: &[u8]) -> Result<AgentWord, BadWord> {
        let mut fields = WordFields(body);
        let word = match kind {
            1 => AgentWord::Ask(Ask {
                settings: fields.array()?,
                path: fields.path()?,
                name: fields.name()?,
                stamp: fields.stamp()?,
            }),
            2 => AgentWord::Taken,
            3 => AgentWord::Elsewhere(fields.text()?),
            4 => AgentWord::Stored(ProvenFile {
                name: fields.name()?,
                stamp: fields.stamp()?,
                crc32: fields.u32()?,
            }),
            5 => AgentWord::Failed(fields.failure()?),
            6 => AgentWord::Look(fields.array()?),
            7 => AgentWord::Standing(AgentFigures {
                asked: fields.u64()?,
                answered: fields.u64()?,
                failures: fields.u64()?,
                waiting: fields.u64()?,
            }),
            other => return Err(BadWord::Kind(other)),
        };
        match fields.0.is_empty() {
            true => Ok(word),
            false => Err(BadWord::Length),
        }
    }

    /// Header and all.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let kind: u16 = match self {
            AgentWord::Ask(ask) => {
                body.extend(ask.settings);
                put(&mut body, ask.path.as_os_str().as_bytes());
                put(&mut body, ask.name.to_string().as_bytes());
                put_stamp(&mut body, &ask.stamp);
                1
            }
            AgentWord::Taken => 2,
            AgentWord::Elsewhere(why) => {
                put_text(&mut body, why);
                3
            }
            AgentWord::Stored(stored) => {
                put(&mut body, stored.name.to_string().as_bytes());
                put_stamp(&mut body, &stored.stamp);
                body.extend(stored.crc32.to_le_bytes());
                4
            }
            AgentWord::Failed(error) => {
                put_failure(&mut body, error);
                5
            }
            AgentWord::Look(settings) => {
                body.extend(settings);
                6
            }
            AgentWord::Standing(figures) => {
                for number in [
                    figures.asked,
                    figures.answered,
                    figures.failures,
                    figures.waiting,
                ] {
                    body.extend(number.to_le_bytes());
                }
                7
            }
        };
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend(body);
        bytes
    }
}

/// Those that a failure of `xarchive` has, by their numbers.
const KINDS: [Kind; 7] = [
    Kind::Usage,
    Kind::Config,
    Kind::Retry,
    Kind::Conflict,
    Kind::Identity,
    Kind::ForeignCluster,
    Kind::ReceiverDisk,
];

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(u32::try_from(bytes.len()).unwrap_or(0).to_le_bytes());
    out.extend(bytes);
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let end = text.floor_char_boundary(TEXT_BYTES_MAX);
    put(out, &text.as_bytes()[..end]);
}

fn put_stamp(out: &mut Vec<u8>, stamp: &ChangeStamp) {
    for number in [stamp.id.device, stamp.id.inode, stamp.size] {
        out.extend(number.to_le_bytes());
    }
    for (seconds, nanoseconds) in [stamp.modified, stamp.changed] {
        out.extend(seconds.to_le_bytes());
        out.extend(nanoseconds.to_le_bytes());
    }
}

fn put_failure(out: &mut Vec<u8>, error: &CommandError) {
    let kind = KINDS.iter().position(|kind| *kind == error.kind());
    out.push(kind.and_then(|kind| u8::try_from(kind).ok()).unwrap_or(2));
    let (doing, causes, hint) = error.parts();
    put_text(out, doing);
    let mut room = CAUSES_BYTES_MAX;
    let causes: Vec<&str> = (causes.iter().take(CAUSES_MAX))
        .map(|cause| {
            let end = cause.floor_char_boundary(room.min(TEXT_BYTES_MAX));
            room -= end;
            &cause[..end]
        })
        .collect();
    out.push(u8::try_from(causes.len()).unwrap_or(0));
    for cause in causes {
        put_text(out, cause);
    }
    put_text(out, hint.unwrap_or_default());
}

/// Takes fields off the front of what is left.
struct WordFields<'a>(&'a [u8]);

impl<'a> WordFields<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], BadWord> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or(BadWord::Length)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], BadWord> {
        let taken = self.take(N)?;
        taken.try_into().map_err(|_| BadWord::Length)
    }

    fn u16(&mut self) -> Result<u16, BadWord> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, BadWord> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, BadWord> {
        self.array().map(u64::from_le_bytes)
    }

    fn i64(&mut self) -> Result<i64, BadWord> {
        self.array().map(i64::from_le_bytes)
    }

    fn length(&mut self) -> Result<usize, BadWord> {
        usize::try_from(self.u32()?).map_err(|_| BadWord::Length)
    }

    fn bytes(&mut self, most: usize) -> Result<&'a [u8], BadWord> {
        match self.length()? {
            bytes if bytes <= most => self.take(bytes),
            bytes => Err(BadWord::TooLong(bytes)),
        }
    }

    fn text(&mut self) -> Result<String, BadWord> {
        let bytes = self.bytes(TEXT_BYTES_MAX)?;
        let text = std::str::from_utf8(bytes).map_err(|_| BadWord::Field("a text"))?;
        Ok(text.to_owned())
    }

    fn path(&mut self) -> Result<PathBuf, BadWord> {
        let path = Path::new(OsStr::from_bytes(self.bytes(PATH_BYTES_MAX)?));
        match path.is_absolute() {
            true => Ok(path.to_path_buf()),
            false => Err(BadWord::Field("a path that is not absolute")),
        }
    }

    fn name(&mut self) -> Result<WalFileName, BadWord> {
        let name = std::str::from_utf8(self.bytes(NAME_BYTES_MAX)?);
        let name = name.ok().and_then(|name| name.parse().ok());
        name.ok_or(BadWord::Field("a file name"))
    }

    fn stamp(&mut self) -> Result<ChangeStamp, BadWord> {
        Ok(ChangeStamp {
            id: FileId {
                device: self.u64()?,
                inode: self.u64()?,
            },
            size: self.u64()?,
            modified: (self.i64()?, self.i64()?),
            changed: (self.i64()?, self.i64()?),
        })
    }

    fn failure(&mut self) -> Result<CommandError, BadWord> {
        let [kind] = self.array()?;
        let kind = KINDS.get(usize::from(kind));
        let kind = *kind.ok_or(BadWord::Field("the kind of a failure"))?;
        let doing = self.text()?;
        let [count] = self.array()?;
        if usize::from(count) > CAUSES_MAX {
            return Err(BadWord::Field("the number of causes"));
        }
        let causes: Result<Vec<String>, BadWord> = (0..count).map(|_| self.text()).collect();
        let causes = causes?;
        let bytes: usize = causes.iter().map(String::len).sum();
        match bytes <= CAUSES_BYTES_MAX {
            true => Ok(CommandError::from_parts(kind, doing, causes, self.text()?)),
            false => Err(BadWord::TooLong(bytes)),
        }
    }
}

/// Any bytes are refused, or are a word that stands in the same bytes again.
pub fn read_any(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first_chunk() else {
        return;
    };
    let Ok((kind, length)) = header(first) else {
        return;
    };
    let Some(Ok(word)) = rest.get(..length).map(|body| AgentWord::read(kind, body)) else {
        return;
    };
    assert_eq!(word.to_bytes(), bytes[..HEADER_BYTES + length], "{word:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored() -> ProvenFile {
        ProvenFile {
            name: "000000010000000000000003".parse().unwrap(),
            stamp: ChangeStamp {
                id: FileId {
                    device: 1,
                    inode: 2,
                },
                size: 3,
                modified: (4, 5),
                changed: (-6, 7),
            },
            crc32: 8,
        }
    }

    fn words() -> Vec<AgentWord> {
        let ProvenFile { name, stamp, .. } = stored();
        let cause = std::io::Error::other("the disk is full");
        vec![
            AgentWord::Ask(Ask {
                settings: [9; SETTINGS_BYTES],
                path: "/data/pg_wal/x".into(),
                name,
                stamp,
            }),
            AgentWord::Taken,
            AgentWord::Elsewhere("settings".to_owned()),
            AgentWord::Stored(stored()),
            AgentWord::Failed(
                CommandError::new(Kind::ReceiverDisk, "store it")
                    .because(cause)
                    .hint("free some space"),
            ),
            AgentWord::Look([7; SETTINGS_BYTES]),
            AgentWord::Standing(AgentFigures {
                asked: 4,
                answered: 3,
                failures: 1,
                waiting: 2,
            }),
            AgentWord::Failed(CommandError::retry("ä".repeat(TEXT_BYTES_MAX))),
        ]
    }

    fn read(bytes: &[u8]) -> Result<AgentWord, BadWord> {
        let (first, body) = bytes.split_first_chunk().ok_or(BadWord::Length)?;
        let (kind, length) = header(first)?;
        match body.len() == length {
            true => AgentWord::read(kind, body),
            false => Err(BadWord::Length),
        }
    }

    #[test]
    fn each_word_is_read_as_it_was_written_and_no_part_of_it_is_one() {
        for word in words() {
            let bytes = word.to_bytes();
            read_any(&bytes);
            let found = read(&bytes).unwrap();
            assert_eq!(found.to_bytes(), bytes);
            if let (AgentWord::Failed(said), AgentWord::Failed(heard)) = (&word, &found) {
                assert_eq!(said.kind(), heard.kind());
                let text = said.to_string();
                assert!(text.starts_with(&heard.to_string()), "{text}");
            }
            for end in 0..bytes.len().min(200) {
                assert!(read(&bytes[..end]).is_err(), "{end} of {word:?}");
            }
            let longer = [&bytes[..], b"x"].concat();
            assert_eq!(read(&longer).err(), Some(BadWord::Length));
        }
    }

    #[test]
    fn fault_258_words_of_another_version_or_of_somebody_else_are_none() {
        let bytes = AgentWord::Stored(stored()).to_bytes();
        let changed = |at: usize, byte: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = byte;
            read(&bytes).map(|word| word.to_bytes())
        };
        assert_eq!(changed(0, b'x'), Err(BadWord::Foreign));
        assert_eq!(changed(4, 2), Err(BadWord::Version(2)));
        assert_eq!(changed(6, 77), Err(BadWord::Kind(77)));
        assert!(matches!(changed(11, 1), Err(BadWord::TooLong(_))));
        // The length of the name.
        assert!(matches!(changed(13, 1), Err(BadWord::TooLong(_))));
        assert_eq!(changed(16, b'x'), Err(BadWord::Field("a file name")));
        for text in ["", "HTTP/1.1 200 OK\r\n\r\n", "stored stored stored"] {
            assert!(read(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn changed_words_are_refused_or_stand_in_the_same_bytes_again() {
        for word in words().iter().take(7) {
            let bytes = word.to_bytes();
            for at in 0..bytes.len() {
                for byte in [0, 1, 3, 255, bytes[at] ^ 32] {
                    let mut changed = bytes.clone();
                    changed[at] = byte;
                    read_any(&changed);
                }
            }
        }
    }
}
