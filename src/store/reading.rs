//! Reads one file of the archive of WAL to its end and says what is wrong with it: for the receiver's rounds and
//! for `verify`. Never locks, moves or changes a file. Invariant: what was replaced or removed while it was read is
//! not called damaged.

use std::sync::Arc;

use walmgr_protocol::names::{Lsn, SegmentName, WalFileName};

use super::binding::Binding;
use super::checksums::Checksums;
use super::damage::Damage;
use super::disk::FileStat;
use super::error::StoreError;
use super::folder::Folder;
use super::partial::{PartialEnd, PartialLook, look_at_partial};
use super::recovery::FinishedCheck;
use crate::wal::commit::CommitSpan;

/// The two folders of an archive, to read files in them.
pub(super) struct WalReading<'a> {
    pub(super) completed: &'a Arc<Folder>,
    pub(super) partial: &'a Folder,
    pub(super) binding: &'a Binding,
}

/// What is wrong with which finished file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WalFault {
    pub(super) name: WalFileName,
    /// Where it begins, if that is known.
    pub(super) lsn: Option<Lsn>,
    pub(super) why: String,
}

/// A finished file that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FinishedRead {
    pub(super) stat: FileStat,
    /// How much was looked at: of a packed one what it unpacks to, which costs time although the disk reads less.
    pub(super) raw_bytes: u64,
    pub(super) crc32: u32,
    pub(super) commits: CommitSpan,
    pub(super) fault: Option<WalFault>,
}

/// A segment in progress that was read.
pub(super) struct PartialRead {
    pub(super) read_bytes: u64,
    /// `None` if the disk does not give it back.
    pub(super) found: Option<PartialEnd>,
    pub(super) commits: CommitSpan,
    pub(super) fault: Option<PartialFault>,
}

/// What is wrong with a segment in progress.
pub(super) enum PartialFault {
    Damaged(Damage),
    Unreadable(String),
}

impl std::fmt::Display for PartialFault {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PartialFault::Damaged(damage) => damage.fmt(out),
            PartialFault::Unreadable(why) => why.fmt(out),
        }
    }
}

impl WalReading<'_> {
    /// Reads a finished file and what joins it to the one before; `None` when there is none, or it was replaced
    /// meanwhile.
    pub(super) fn finished(&self, name: WalFileName) -> Result<Option<FinishedRead>, StoreError> {
        let text = name.to_string();
        let Some(stat) = self.completed.stat_at(&text)? else {
            return Ok(None);
        };
        let checksums = Checksums::open(self.completed);
        let check = FinishedCheck {
            folder: self.completed,
            checksums: &checksums,
            binding: self.binding,
        };
        let mut read = FinishedRead {
            stat,
            raw_bytes: stat.len,
            crc32: 0,
            commits: CommitSpan::default(),
            fault: None,
        };
        let judged = check.look(name).and_then(|found| {
            let Some(found) = found else {
                return Ok(None);
            };
            (read.crc32, read.commits) = (found.crc32(), found.commits());
            read.raw_bytes = stat.len.max(found.raw_bytes());
            let fault = check.fault(name, &found)?;
            let lsn = check.place(name, &found);
            Ok(fault.map(|(at_fault, why)| WalFault {
                lsn: lsn.filter(|_| at_fault == name),
                name: at_fault,
                why,
            }))
        });
        read.fault = match judged {
            Ok(fault) => fault,
            // The disk does not give it back.
            Err(error @ StoreError::Disk { .. }) => Some(WalFault {
                name,
                lsn: None,
                why: error.to_string(),
            }),
            Err(error) => return Err(error),
        };
        // What was replaced while it was read is looked at the next time.
        let is_same = self.completed.stat_at(&text)? == Some(stat);
        Ok(is_same.then_some(read))
    }

    /// Reads a segment in progress up to the end of its records; `None` when there is none, or nothing in it.
    pub(super) fn in_progress(
        &self,
        segment: SegmentName,
    ) -> Result<Option<PartialRead>, StoreError> {
        let read_bytes = self.binding.segment_size.bytes();
        match look_at_partial(self.partial, self.binding, segment) {
            Ok(None) => Ok(None),
            Ok(Some(PartialLook { found, commits })) => Ok(Some(PartialRead {
                read_bytes,
                found: Some(found),
                commits,
                fault: found.damage.map(PartialFault::Damaged),
            })),
            Err(error @ StoreError::Disk { .. }) => Ok(Some(PartialRead {
                read_bytes,
                found: None,
                commits: CommitSpan::default(),
                fault: Some(PartialFault::Unreadable(error.to_string())),
            })),
            Err(error) => Err(error),
        }
    }
}
