//! What backup sets refuse or fail with, and whose fault each is.
//! Never printed here. Invariant: text from a peer is escaped before it stands in a sentence.

use std::path::PathBuf;

use walmgr_protocol::names::{BackupName, RelativePath};

use crate::error::Kind;
use crate::store::StoreError;
use crate::tar::TarFault;

/// A failure of the backup sets.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    /// The disk, the directories or the archive of WAL.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The tar stream is not one that is taken apart here.
    #[error(transparent)]
    Tar(#[from] TarFault),
    /// An entry of the stream must not be where it says.
    #[error("{path}: {why}")]
    Entry {
        /// The entry.
        path: RelativePath,
        /// What is wrong with it.
        why: &'static str,
    },
    /// More files and directories than a set may have.
    #[error("the backup has more than {limit} files and directories")]
    TooManyEntries {
        /// How many it may have.
        limit: usize,
    },
    /// Longer paths than those of a set may be together.
    #[error("the paths of the backup are longer than {limit} bytes together")]
    PathsTooLong {
        /// How many bytes they may have.
        limit: usize,
    },
    /// What was received is not what the manifest says.
    #[error("{path}: {why}")]
    Manifest {
        /// The file.
        path: RelativePath,
        /// Expected and found.
        why: String,
    },
    /// What a backup was to take of an older set is not what that set was sealed with.
    #[error("{path} of the older set {set}: {why}")]
    ParentUnfit {
        /// The name of the older set.
        set: String,
        /// The file.
        path: RelativePath,
        /// What is wrong with it.
        why: String,
    },
    /// A page changed that no WAL names.
    #[error("an incremental backup would be wrong: {what}")]
    PageDiffers {
        /// Which page, and how it differs.
        what: String,
    },
    /// The backup was given up after an earlier failure.
    #[error("the backup was given up: {why}")]
    GivenUp {
        /// The first failure.
        why: String,
        /// It was the set that this one was built on: a full backup goes well.
        needs_full: bool,
    },
    /// The set is not complete, or its parts do not belong together.
    #[error("the backup set cannot be sealed: {why}")]
    NotComplete {
        /// What is missing or wrong.
        why: String,
    },
    /// Somebody else holds the lock that this needs.
    #[error("{what} is busy: {holder}")]
    Busy {
        /// What is locked.
        what: String,
        /// Who says to hold it, and since when.
        holder: String,
    },
    /// A person or a script has the sets locked.
    #[error("the backup sets are locked: {holder}")]
    LockedByHand {
        /// Who, and since when.
        holder: String,
    },
    /// There is no such set.
    #[error("there is no backup set {name}")]
    Absent {
        /// Its name.
        name: BackupName,
    },
    /// The set is not what was sealed.
    #[error("{name} is damaged: {why}")]
    Damaged {
        /// Its name.
        name: BackupName,
        /// What is wrong.
        why: String,
    },
    /// A name that a set or the rotation needs is taken by something else.
    #[error("{}: {why}", path.display())]
    InTheWay {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Whoever asked for it does not want it any more.
    #[error("it was interrupted")]
    Interrupted,
    /// Nobody can say which WAL a listed set needs, so none may go.
    #[error("no WAL is removed: {why}")]
    Unknown {
        /// Which set, and what is wrong with its label.
        why: String,
    },
}

impl SetError {
    /// Whose fault it is, which picks the exit code.
    pub const fn kind(&self) -> Kind {
        match self {
            SetError::Store(error) => error.kind(),
            SetError::Busy { .. } | SetError::LockedByHand { .. } => Kind::AlreadyRunning,
            SetError::InTheWay { .. } => Kind::Config,
            SetError::Absent { .. } => Kind::Usage,
            SetError::Tar(_)
            | SetError::Entry { .. }
            | SetError::TooManyEntries { .. }
            | SetError::PathsTooLong { .. }
            | SetError::Manifest { .. }
            | SetError::ParentUnfit { .. }
            | SetError::PageDiffers { .. }
            | SetError::Damaged { .. }
            | SetError::GivenUp { .. }
            | SetError::NotComplete { .. }
            | SetError::Interrupted
            | SetError::Unknown { .. } => Kind::Retry,
        }
    }
}
