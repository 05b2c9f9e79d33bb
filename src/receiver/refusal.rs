//! What the store's failures are called on the wire, with a hint for whoever reads it.
//! Never hides a failure: each is logged here once, on the standby, where it happened.

use std::io;

use rustix::io::Errno;
use walmgr_protocol::hello::Refusal;
use walmgr_protocol::message::{ClusterIdentity, Error, ErrorCode};

use crate::receiver::process_settings::Unknown;
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
            "one archive holds one cluster: give the other cluster its own archive",
        ),
        StoreError::TooLarge { .. } => (ErrorCode::TooLarge, ""),
        StoreError::Mismatch { .. } => (
            ErrorCode::Mismatch,
            "the bytes changed between the two hosts or on the master's disk; walmgr tries again",
        ),
        StoreError::NotSetUp { .. } | StoreError::NotBound => (
            ErrorCode::NotSetUp,
            "run `walmgr MASTER.ini setup` on the master",
        ),
        StoreError::NoSpace { .. } => (
            ErrorCode::DiskFull,
            "free space on the standby; archiving then continues by itself",
        ),
        StoreError::Unfollowed { .. } => (
            ErrorCode::DiskFull,
            "type `status` on the standby: it names the files that are set apart, and `choose \
            NAME` shows one; archiving continues by itself when readers follow these files, or \
            when they are removed",
        ),
        StoreError::Disk { source, .. } if says_damaged(source) => (
            ErrorCode::DiskFailed,
            "the file system below the standby's archive is damaged: stop the receiver, unmount the file system, check it \
            (fsck, xfs_repair), mount it and start the receiver; archiving then goes on",
        ),
        StoreError::Disk { .. } | StoreError::SyncFailed { .. } => (
            ErrorCode::DiskFailed,
            "look at the receiver's log and check the standby's disk",
        ),
        StoreError::Moved { .. } => (
            ErrorCode::DiskFailed,
            "the archive's directory was replaced on the standby: check that its file system is \
            mounted",
        ),
        StoreError::Diverged { .. } => (
            ErrorCode::Diverged,
            "if this master was restored, rewound or replaced, give it its own archive, or move \
            the standby's archive aside and make a new base backup",
        ),
        StoreError::Frozen { .. } => (
            ErrorCode::Diverged,
            "stop this server: the standby is the master now. If this server stays the master, \
            type `restore` on the standby",
        ),
        StoreError::Finished { .. } => (ErrorCode::Finished, ""),
        StoreError::PartialDamaged(_) => (
            ErrorCode::DamagedFile,
            "nothing was removed; check the standby's disk. The file is repaired when the master \
            sends that WAL again, or archives the whole segment",
        ),
        StoreError::Rotten { .. } => (
            ErrorCode::DamagedFile,
            "check the standby's disk; the next attempt sends the whole file",
        ),
        StoreError::HistoryMissing { .. } => (
            ErrorCode::HistoryMissing,
            "it is archived first; walmgr tries again",
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

/// Whether a file system says by this error that its own structure is damaged: ext4 and XFS say `EUCLEAN` or `EBADMSG`.
fn says_damaged(error: &io::Error) -> bool {
    let damaged = [Errno::UCLEAN, Errno::BADMSG];
    Errno::from_io_error(error).is_some_and(|errno| damaged.contains(&errno))
}

/// An archive that is bound talks to its own cluster only; an unbound one waits for `setup`.
pub(crate) fn foreign(bound: Option<ClusterIdentity>, theirs: ClusterIdentity) -> Option<Refusal> {
    let bound = bound.filter(|bound| *bound != theirs)?;
    Some(Refusal {
        code: ErrorCode::ForeignCluster,
        message: format!("the archive belongs to the cluster with {bound}; this one has {theirs}"),
        hint: "one archive holds one cluster: check `slave`, or give this cluster its own archive"
            .to_owned(),
    })
}

/// The refusal of a peer that is listed only by archives of other clusters.
pub(crate) fn foreign_to_all(bound: &[ClusterIdentity], theirs: ClusterIdentity) -> Refusal {
    if let [bound] = bound
        && let Some(refusal) = foreign(Some(*bound), theirs)
    {
        return refusal;
    }
    let each: Vec<String> = bound.iter().take(3).map(ToString::to_string).collect();
    let more = match bound.len() - each.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Refusal {
        code: ErrorCode::ForeignCluster,
        message: format!(
            "the archives that list this key belong to the clusters with {}{more}; this one has {theirs}",
            each.join("; with ")
        ),
        hint:
            "one archive holds one cluster: on the standby authorize the key in this cluster's own \
               file"
                .to_owned(),
    }
}

/// The refusal of a peer that several files list, if nothing says which of them it means.
pub(crate) fn several_clusters(files: &str, theirs: Option<ClusterIdentity>) -> Refusal {
    let (message, hint) = match theirs {
        Some(theirs) => (
            format!(
                "{files} all list this key, and any of them could be for the cluster with {theirs}"
            ),
            "on the standby type `walmgr FILE revoke NAME` for each file that is not this cluster's",
        ),
        None => (
            format!("{files} all list this key, and nothing says which cluster is asked for"),
            "on the standby list the key in one file alone: `walmgr FILE revoke NAME` for each of the \
             others",
        ),
    };
    Refusal {
        code: ErrorCode::NotAuthorized,
        message,
        hint: hint.to_owned(),
    }
}

/// A peer that is on no list.
pub(crate) fn not_authorized(unknown: Unknown) -> Refusal {
    Refusal {
        code: ErrorCode::NotAuthorized,
        message: unknown.why,
        hint: unknown.hint,
    }
}

/// What ends a lock by hand, on the standby.
const LOCKED_HINT: &str =
    "when the copying there has ended type on the standby: walmgr STANDBY.ini xrelease";

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
            "move files that do not belong to the cluster out of its data directory",
        ),
        SetError::Manifest { .. } | SetError::NotComplete { .. } => (
            ErrorCode::Mismatch,
            "this backup was removed; start the backup again",
        ),
        SetError::ParentUnfit { .. } => (
            ErrorCode::ParentUnfit,
            "type `verify` on the standby: it says what else of that set is damaged",
        ),
        SetError::PageDiffers { .. } => (
            ErrorCode::ParentUnfit,
            "please report this; backups are full ones until it is settled",
        ),
        // Another stream's answer may come first.
        SetError::GivenUp {
            needs_full: true, ..
        } => (ErrorCode::ParentUnfit, "start the backup again"),
        SetError::GivenUp { .. } => (ErrorCode::Abandoned, "start the backup again"),
        SetError::Busy { .. } => (ErrorCode::Busy, "wait until it ends"),
        SetError::LockedByHand { .. } => (ErrorCode::Busy, LOCKED_HINT),
        SetError::InTheWay { .. } => (
            ErrorCode::DiskFailed,
            "look at the directory of `full_backup` on the standby",
        ),
        SetError::Absent { .. }
        | SetError::Damaged { .. }
        | SetError::Interrupted
        | SetError::Unknown { .. } => (
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
            let hint = "try again when it has ended";
            Error::channel(ErrorCode::Busy, error.to_string(), hint)
        }
        error => Error::channel(
            ErrorCode::DiskFailed,
            error.to_string(),
            "look at the directory of `full_backup` on the standby",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_304_a_damaged_file_system_is_named_with_its_remedy() {
        let refused = |errno: Errno| {
            of(&StoreError::Disk {
                op: "examine",
                path: "/archive/logs.complete".into(),
                source: errno.into(),
            })
        };
        for errno in [Errno::UCLEAN, Errno::BADMSG] {
            let refused = refused(errno);
            assert_eq!(refused.code, ErrorCode::DiskFailed);
            assert!(refused.hint.contains("fsck"), "{errno}: {refused}");
        }
        assert!(!refused(Errno::IO).hint.contains("fsck"));
    }
}
