//! What the two sides of a backup say to each other so that it need not send what an older set, its parent, holds.
//! Never interprets a message. Invariant: what does not fit into an answer is asked for as a whole file, so that no
//! bound ever loses a block.

use bytes::{BufMut, BytesMut};

use crate::error::Malformed;
use crate::fields::{Fields, put_path, put_string};
use crate::limits::{BACKUP_PATHS_MAX, FILE_RANGES_MAX, NEEDED_RANGES_MAX};
use crate::message::shared::{bounded, list};
use crate::names::{Lsn, RelativePath, TimelineId};

/// Asks whether there is a set that a backup need not send again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParentRequest {
    /// Where the backup begins: what WAL changes behind this is not asked about.
    pub start: Lsn,
    /// The timeline of that.
    pub timeline: TimelineId,
    /// Whether the master's pages carry checksums.
    pub data_checksums: bool,
    /// Bytes in a page.
    pub block_bytes: u32,
    /// Pages in a file of a relation before the next file begins.
    pub segment_blocks: u32,
    /// How long to wait for WAL up to `start` to be in the archive, in seconds.
    pub wal_wait_s: u32,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParentAnswer {
    /// There is none, and why: the backup has to be a full one.
    Full(String),
    /// This one.
    Parent(ParentSet),
}

/// The set that a backup begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentSet {
    /// Its name, for people.
    pub name: String,
    /// Where its WAL begins: every block that WAL names since then is needed.
    pub start: Lsn,
    /// Backups since the last full one, with the one that asks.
    pub since_full: u32,
}

/// A relation's file as the master has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileLen {
    /// Its path in the data directory.
    pub path: RelativePath,
    /// Its length in bytes.
    pub len: u64,
}

/// Blocks of a file that follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRange {
    /// The first, counted from the beginning of the file.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// What is needed of a file; the rest of it the parent has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileNeed {
    /// All of it.
    Whole,
    /// These blocks, in ascending order and not touching each other, and what lies behind the length that was asked
    /// about.
    Blocks(Vec<BlockRange>),
}

impl ParentRequest {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.start.0);
        out.put_u32_le(self.timeline.number());
        out.put_u8(u8::from(self.data_checksums));
        out.put_u32_le(self.block_bytes);
        out.put_u32_le(self.segment_blocks);
        out.put_u32_le(self.wal_wait_s);
    }

    pub(super) fn decode(fields: &mut Fields) -> Result<ParentRequest, Malformed> {
        Ok(ParentRequest {
            start: Lsn(fields.u64()?),
            timeline: fields.timeline()?,
            data_checksums: fields.boolean("whether pages carry checksums")?,
            block_bytes: fields.u32()?,
            segment_blocks: fields.u32()?,
            wal_wait_s: fields.u32()?,
        })
    }
}

impl ParentAnswer {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        match self {
            ParentAnswer::Full(why) => {
                out.put_u8(0);
                put_string(out, why);
            }
            ParentAnswer::Parent(parent) => {
                out.put_u8(1);
                put_string(out, &parent.name);
                out.put_u64_le(parent.start.0);
                out.put_u32_le(parent.since_full);
            }
        }
    }

    pub(super) fn decode(fields: &mut Fields) -> Result<ParentAnswer, Malformed> {
        Ok(match fields.u8()? {
            0 => ParentAnswer::Full(fields.string("why a backup has to be full")?),
            1 => ParentAnswer::Parent(ParentSet {
                name: fields.string("name of a backup set")?,
                start: Lsn(fields.u64()?),
                since_full: fields.u32()?,
            }),
            found => {
                return Err(Malformed::BadValue {
                    what: "whether there is a parent",
                    found: u64::from(found),
                });
            }
        })
    }
}

pub(super) fn put_files(out: &mut BytesMut, files: &[FileLen]) {
    for file in bounded(out, files, BACKUP_PATHS_MAX) {
        put_path(out, &file.path);
        out.put_u64_le(file.len);
    }
}

pub(super) fn files(fields: &mut Fields) -> Result<Vec<FileLen>, Malformed> {
    let what = "a list of relations' files";
    list(fields, what, BACKUP_PATHS_MAX, |fields| {
        Ok(FileLen {
            path: fields.path()?,
            len: fields.u64()?,
        })
    })
}

pub(super) fn put_needs(out: &mut BytesMut, needs: &[FileNeed]) {
    let mut left = NEEDED_RANGES_MAX;
    for need in bounded(out, needs, BACKUP_PATHS_MAX) {
        match need {
            FileNeed::Blocks(ranges)
                if ranges.len() <= usize::from(FILE_RANGES_MAX) && ranges.len() <= left =>
            {
                left -= ranges.len();
                out.put_u8(1);
                for range in bounded(out, ranges, FILE_RANGES_MAX) {
                    out.put_u32_le(range.first);
                    out.put_u32_le(range.count);
                }
            }
            FileNeed::Whole | FileNeed::Blocks(_) => out.put_u8(0),
        }
    }
}

pub(super) fn needs(fields: &mut Fields) -> Result<Vec<FileNeed>, Malformed> {
    let what = "a list of what is needed";
    list(fields, what, BACKUP_PATHS_MAX, |fields| {
        Ok(match fields.u8()? {
            0 => FileNeed::Whole,
            1 => FileNeed::Blocks(ranges(fields)?),
            found => {
                return Err(Malformed::BadValue {
                    what: "what is needed of a file",
                    found: u64::from(found),
                });
            }
        })
    })
}

/// Ranges that ascend, with blocks between them that are not needed.
fn ranges(fields: &mut Fields) -> Result<Vec<BlockRange>, Malformed> {
    let mut least = 0;
    list(fields, "a list of blocks", FILE_RANGES_MAX, |fields| {
        let (first, count) = (fields.u32()?, fields.u32()?);
        let end = first.checked_add(count).filter(|_| count > 0);
        match end.filter(|_| first >= least) {
            Some(end) => {
                least = end.saturating_add(1);
                Ok(BlockRange { first, count })
            }
            None => Err(Malformed::BadValue {
                what: "a range of blocks",
                found: u64::from(first),
            }),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_back(needs: &[FileNeed]) -> Result<Vec<FileNeed>, Malformed> {
        let mut out = BytesMut::new();
        put_needs(&mut out, needs);
        super::needs(&mut Fields::new("needs", out.freeze()))
    }

    fn every_other(count: u32) -> FileNeed {
        let range = |at| BlockRange {
            first: 2 * at,
            count: 1,
        };
        FileNeed::Blocks((0..count).map(range).collect())
    }

    #[test]
    fn fault_204_more_ranges_than_an_answer_holds_are_whole_files() {
        let most = u32::from(FILE_RANGES_MAX);
        let too_many = every_other(most + 1);
        assert_eq!(read_back(&[too_many]), Ok(vec![FileNeed::Whole]));
        let fit = NEEDED_RANGES_MAX / usize::from(FILE_RANGES_MAX);
        let needs = vec![every_other(most); fit + 2];
        let read = read_back(&needs).unwrap();
        assert_eq!(read[..fit], needs[..fit]);
        assert_eq!(read[fit..], [FileNeed::Whole, FileNeed::Whole]);
    }

    #[test]
    fn ranges_that_do_not_ascend_are_refused() {
        let range = |first, count| BlockRange { first, count };
        for ranges in [
            vec![range(3, 0)],
            vec![range(3, 2), range(4, 1)],
            vec![range(3, 2), range(5, 1)],
            vec![range(3, 2), range(1, 1)],
            vec![range(u32::MAX, 2)],
        ] {
            assert!(read_back(&[FileNeed::Blocks(ranges)]).is_err());
        }
        let good = FileNeed::Blocks(vec![range(0, 1), range(2, 5)]);
        assert_eq!(read_back(std::slice::from_ref(&good)), Ok(vec![good]));
    }
}
