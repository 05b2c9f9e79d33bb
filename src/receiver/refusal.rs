//! What the store's failures are called on the wire, with a hint for whoever reads it.
//! Never hides a failure: each is logged here once, on the standby, where it happened.

use walmgr_protocol::hello::Refusal;
use walmgr_protocol::message::{ClusterIdentity, Error, ErrorCode};

use crate::store::StoreError;
use crate::store::sets::SetError;

/// The refusal that tells the sender.
pub(crate) fn of(error: &StoreError) -> Error {
    let (code, hint) = match error {
        StoreError::Damaged { .. } => (
            ErrorCode::DamagedFile,
            "the file is damaged on the master: check its disk, and look at the file with \
             pg_waldump",
        ),
        StoreError::Foreign { .. } => (
            ErrorCode::ForeignFile,
            "one archive holds one cluster: give the other its own receiver and folders",
        ),
        StoreError::TooLarge { .. } => (ErrorCode::TooLarge, ""),
        StoreError::Mismatch { .. } => (
            ErrorCode::Mismatch,
            "the bytes changed between the two hosts or on the master's disk; it will be tried \
             again",
        ),
        StoreError::NotSetUp { .. } | StoreError::NotBound => (
            ErrorCode::NotSetUp,
            "run `walmgr MASTER.ini setup` on the master",
        ),
        StoreError::NoSpace { .. } => (
            ErrorCode::DiskFull,
            "free space on the standby; archiving goes on by itself afterwards",
        ),
        StoreError::Unfollowed { .. } => (
            ErrorCode::DiskFull,
            "type `status` on the standby: it names what is set apart, and `choose NAME` shows it; \
             archiving goes on by itself once readers follow this line, or that is gone",
        ),
        StoreError::Disk { .. } | StoreError::SyncFailed { .. } => (
            ErrorCode::DiskFailed,
            "look at the receiver's log and at the disk on the standby",
        ),
        StoreError::Moved { .. } => (
            ErrorCode::DiskFailed,
            "the archive's folder was replaced on the standby: is its file system mounted?",
        ),
        StoreError::Diverged { .. } => (
            ErrorCode::Diverged,
            "was this master restored, rewound or replaced? Give it an archive of its own, or move \
             the standby's aside and make a new base backup",
        ),
        StoreError::Frozen { .. } => (
            ErrorCode::Diverged,
            "stop this server: the standby is the master now. If it is not, type `restore` on the \
             standby",
        ),
        StoreError::Finished { .. } => (ErrorCode::Finished, ""),
        StoreError::PartialDamaged(_) => (
            ErrorCode::DamagedFile,
            "nothing was cleared; look at the disk on the standby. It heals as soon as the master \
             has that WAL to send again, or archives the whole segment",
        ),
        StoreError::Rotten { .. } => (
            ErrorCode::DamagedFile,
            "look at the disk on the standby; the next attempt sends the whole file",
        ),
        StoreError::HistoryMissing { .. } => (
            ErrorCode::HistoryMissing,
            "it is archived first; it will be tried again",
        ),
        StoreError::GivenUp { .. }
        | StoreError::Locked { .. }
        | StoreError::NewerFormat { .. }
        | StoreError::DamagedMarker { .. }
        | StoreError::Marker { .. } => (
            ErrorCode::Internal,
            "look at the receiver's log on the standby",
        ),
    };
    Error::channel(code, error.to_string(), hint)
}

/// An archive that is bound talks to its own cluster only; an unbound one waits for `setup`.
pub(crate) fn foreign(bound: Option<ClusterIdentity>, theirs: ClusterIdentity) -> Option<Refusal> {
    let bound = bound.filter(|bound| *bound != theirs)?;
    Some(Refusal {
        code: ErrorCode::ForeignCluster,
        message: format!("the archive belongs to the cluster with {bound}; this one has {theirs}"),
        hint: "one archive holds one cluster: check `slave`, or give this cluster its own receiver and \
               folders"
            .to_owned(),
    })
}

/// The refusal that tells whoever makes a backup.
pub(crate) fn of_set(error: &SetError) -> Error {
    let (code, hint) = match error {
        SetError::Store(error) => return of(error),
        SetError::Tar(_) | SetError::Entry { .. } => (
            ErrorCode::Malformed,
            "the two sides may run versions too far apart",
        ),
        SetError::TooManyEntries { .. } | SetError::PathsTooLong { .. } => (
            ErrorCode::TooLarge,
            "move what is no part of the cluster out of its data directory",
        ),
        SetError::Manifest { .. } | SetError::NotComplete { .. } => (
            ErrorCode::Mismatch,
            "nothing was kept of it; start the backup again",
        ),
        SetError::GivenUp { .. } => (ErrorCode::Abandoned, "start the backup again"),
        SetError::Busy { .. } => (ErrorCode::Busy, "wait for its end"),
        SetError::InTheWay { .. } => (
            ErrorCode::DiskFailed,
            "look at the folder of `full_backup` on the standby",
        ),
        SetError::Absent { .. } | SetError::Damaged { .. } | SetError::Unknown { .. } => (
            ErrorCode::Internal,
            "look at the receiver's log on the standby",
        ),
    };
    Error::channel(code, error.to_string(), hint)
}

/// The refusal that tells whoever reads the archive; damage is the standby's here.
pub(crate) fn to_reader(error: &StoreError) -> Error {
    match error {
        StoreError::Damaged { .. } | StoreError::Foreign { .. } => Error::channel(
            ErrorCode::DamagedFile,
            error.to_string(),
            "put a good copy into the archive on the standby (the master's pg_wal may have one)",
        ),
        error => of(error),
    }
}

/// The refusal that tells whoever reads a backup set.
pub(crate) fn set_to_reader(error: &SetError) -> Error {
    match error {
        SetError::Store(error) => to_reader(error),
        SetError::Busy { .. } => {
            let hint = "try again when that has ended";
            Error::channel(ErrorCode::Busy, error.to_string(), hint)
        }
        error => Error::channel(
            ErrorCode::DiskFailed,
            error.to_string(),
            "look at the folder of `full_backup` on the standby",
        ),
    }
}
