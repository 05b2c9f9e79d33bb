//! What the archive refuses or fails with, and whose fault each is.
//! Never printed here. Invariant: an error of the disk carries the operation and the path.

use std::io;
use std::path::PathBuf;

use walmgr_protocol::names::{SegmentName, TimelineId, WalFileName};

use super::damage::Damage;
use super::lineage::Unreadable;
use super::packed::PackedFault;
use crate::error::Kind;
use crate::wal::segment::SegmentFault;

/// A failure of the archive.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// An operation of the operating system failed.
    #[error("{op} {}: {source}", path.display())]
    Disk {
        /// What was tried, as a verb phrase.
        op: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The disk, the user's quota or the process's file size limit is used up.
    #[error(
        "no space left on the standby's disk for {what}: {source}; free space in {} {}",
        directory.display(),
        free_text(*free_bytes)
    )]
    NoSpace {
        /// The file that found no room.
        what: String,
        /// Where it was to be.
        directory: PathBuf,
        /// What the file system says is left for this user, if it says anything.
        free_bytes: Option<u64>,
        /// `ENOSPC`, `EDQUOT` or `EFBIG`.
        source: io::Error,
    },
    /// The bytes offered are not what their name promises.
    #[error("{name} is damaged: {why}")]
    Damaged {
        /// The file.
        name: WalFileName,
        /// What is wrong with it, and where.
        why: String,
    },
    /// The bytes, or a binding, belong to another cluster, version, timeline or segment size.
    #[error("{subject} belongs elsewhere: {why}")]
    Foreign {
        /// The file or the archive.
        subject: String,
        /// What was expected and what was found.
        why: String,
    },
    /// A file announced or sent more bytes than it may have.
    #[error("{name} has {len} bytes or more, {limit} allowed")]
    TooLarge {
        /// The file.
        name: WalFileName,
        /// Bytes announced or sent.
        len: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// What arrived is not what was announced.
    #[error("{name}: {what} expected {expected}, found {found}")]
    Mismatch {
        /// The file.
        name: WalFileName,
        /// `length` or `CRC-32`.
        what: &'static str,
        /// What the sender announced.
        expected: u64,
        /// What arrived.
        found: u64,
    },
    /// Another process has the archive open.
    #[error("{} is locked by another receiver (process {pid})", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// What the lock file says, for people; the lock itself decides.
        pid: String,
    },
    /// A directory does not carry the mark that set-up leaves: not mounted, or not set up.
    #[error("{} is not set up as an archive: it has no .walmgr-archive", path.display())]
    NotSetUp {
        /// The directory.
        path: PathBuf,
    },
    /// The archive was written by a newer walmgr.
    #[error("{} has format {found}, this walmgr knows up to {supported}", path.display())]
    NewerFormat {
        /// The marker file.
        path: PathBuf,
        /// The format it names.
        found: u64,
        /// The newest format known here.
        supported: u64,
    },
    /// A marker cannot be understood, or the two directories do not belong together.
    #[error("{}: {why}", path.display())]
    Marker {
        /// The marker file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A marker is not what was written.
    #[error(
        "{} is damaged: {why}; `walmgr STANDBY.ini setup` rebuilds it from the marker in {other}, \
        if that one is whole",
        path.display()
    )]
    DamagedMarker {
        /// The marker file.
        path: PathBuf,
        /// What shows it.
        why: String,
        /// The setting whose folder has the other marker.
        other: &'static str,
    },
    /// The configured path leads to another directory than the one that was opened.
    #[error("{} was moved or replaced while in use", path.display())]
    Moved {
        /// The configured path.
        path: PathBuf,
    },
    /// Nothing can be checked before the archive knows its cluster.
    #[error("the archive is not bound to a cluster yet")]
    NotBound,
    /// An earlier write to the same file failed and its temporary is gone, or its final name was
    /// taken and free again too often while it was to be published.
    #[error("{name} was given up after an earlier failure")]
    GivenUp {
        /// The file.
        name: WalFileName,
    },
    /// The WAL that is offered contradicts what is kept, or comes from a past the archive has left.
    #[error("{why}")]
    Diverged {
        /// What contradicts what, as a sentence.
        why: String,
    },
    /// The standby was booted, and has taken what it had of this timeline for all there is.
    #[error("timeline {timeline} is frozen: the standby was booted with its WAL")]
    Frozen {
        /// The timeline.
        timeline: TimelineId,
    },
    /// An open partial segment was finished by a push.
    #[error("{segment} was archived meanwhile")]
    Finished {
        /// The segment.
        segment: SegmentName,
    },
    /// The disk gives back other bytes of a partial segment than were shipped and synced.
    #[error("the standby's disk changed the shipped records of {segment}")]
    Rotten {
        /// The segment.
        segment: SegmentName,
    },
    /// A partial segment ends before what is known to have been in it.
    #[error("{0}")]
    PartialDamaged(Damage),
    /// A timeline begins that the archive knows no history of.
    #[error("the archive does not hold {} yet", WalFileName::History(*timeline))]
    HistoryMissing {
        /// The timeline.
        timeline: TimelineId,
    },
    /// A key has reached its limit of bytes in files that nobody follows.
    #[error(
        "{name} would be set apart, and {key} has already stored {mib_max} MiB that nobody \
        follows, the limit of one key"
    )]
    Unfollowed {
        /// The file.
        name: WalFileName,
        /// Whose it would be.
        key: String,
        /// What one key may have.
        mib_max: u64,
    },
    /// A sync failed earlier; nothing more is acknowledged until a new process starts.
    #[error("nothing more is acknowledged after a failed sync: {why}")]
    SyncFailed {
        /// The first failure.
        why: String,
    },
}

impl StoreError {
    /// Whose fault it is, which picks the exit code.
    pub const fn kind(&self) -> Kind {
        match self {
            StoreError::Disk { .. }
            | StoreError::NoSpace { .. }
            | StoreError::Moved { .. }
            | StoreError::Unfollowed { .. }
            | StoreError::SyncFailed { .. } => Kind::ReceiverDisk,
            StoreError::Foreign { .. } => Kind::ForeignCluster,
            StoreError::Diverged { .. } | StoreError::Frozen { .. } => Kind::Conflict,
            StoreError::Locked { .. } => Kind::AlreadyRunning,
            StoreError::NotSetUp { .. }
            | StoreError::NewerFormat { .. }
            | StoreError::DamagedMarker { .. }
            | StoreError::Marker { .. } => Kind::Config,
            StoreError::Damaged { .. }
            | StoreError::TooLarge { .. }
            | StoreError::Mismatch { .. }
            | StoreError::NotBound
            | StoreError::Finished { .. }
            | StoreError::Rotten { .. }
            | StoreError::PartialDamaged(_)
            | StoreError::HistoryMissing { .. }
            | StoreError::GivenUp { .. } => Kind::Retry,
        }
    }

    /// The refusal for a file that its check found wrong.
    pub(super) fn of_fault(name: WalFileName, fault: &SegmentFault) -> Self {
        let why = fault.to_string();
        match fault {
            SegmentFault::Foreign { .. } => StoreError::Foreign {
                subject: name.to_string(),
                why,
            },
            SegmentFault::Damaged { .. }
            | SegmentFault::Text { .. }
            | SegmentFault::Packed { .. }
            | SegmentFault::WrongLength { .. } => StoreError::Damaged { name, why },
        }
    }
}

impl From<PackedFault> for StoreError {
    fn from(fault: PackedFault) -> Self {
        StoreError::Disk {
            op: "pack",
            path: PathBuf::from("a segment"),
            source: io::Error::other(fault),
        }
    }
}

impl From<Unreadable> for StoreError {
    fn from(unreadable: Unreadable) -> Self {
        StoreError::Damaged {
            name: WalFileName::History(unreadable.timeline),
            why: unreadable.why,
        }
    }
}

fn free_text(free_bytes: Option<u64>) -> String {
    match free_bytes {
        Some(bytes) => format!("is {bytes} bytes"),
        None => "is unknown".to_owned(),
    }
}
