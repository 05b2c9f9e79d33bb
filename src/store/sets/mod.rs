//! Base backups on the standby: received, sealed, rotated, listed; and the WAL that they need.
//! Never starts a server and never talks to a peer. Invariant: a directory with the name of a set
//! and a `backup_label` in it is a whole, durable set, and the archive had its WAL when it was sealed.
//!
//! # On disk, beside `full_backup`
//!
//! ```text
//! data.master/                     the newest set, a data directory PostgreSQL can start from
//!   backup_label                   from the server; a set is listed by it
//!   tablespace_map                 from the server, if there are tablespaces
//!   backup_manifest                what pg_verifybackup reads
//!   tmpspc/OID/                    the content of a tablespace
//!   pg_tblspc/OID -> ../tmpspc/OID
//! data.master.0/, data.master.1/   older sets
//! data.master.incoming/            a set being received, without a backup_label (at most backup_label.unsealed)
//! data.master.expired.RANDOM/      a set that is being removed
//! .data.master.intent              a rotation in progress (see `rotate`)
//! .data.master.lock                the lock on the names (see `lock`)
//! .data.master.keep.*              sets that somebody pinned (see `pins`)
//! completed_wals/BACKUPLOCK        who makes a backup, while that lasts; who locked the sets by hand (see `by_hand`)
//! completed_wals/.rounds.sets      files found damaged while all sets were read (see `round_note`)
//! completed_wals/.sets.use         what each set takes on the disk (see `use_note`)
//! ```
//!
//! There is no list of sets. An administrator may copy a set here under a free name, or move a set away.

mod ahead;
mod by_hand;
mod clear_away;
pub(crate) mod condition;
mod delta;
pub(crate) mod disk_use;
pub(crate) mod error;
pub(crate) mod expire;
mod file_writer;
pub(crate) mod fuzzing;
mod hand_note;
pub(crate) mod incoming;
pub(crate) mod inventory;
pub(crate) mod list;
pub(crate) mod lock;
mod make_room;
mod names;
pub(crate) mod out;
mod pages;
mod parent;
mod patched_file;
pub(crate) mod pins;
pub(crate) mod policy;
pub(crate) mod purge;
pub(in crate::store) mod purged_note;
mod reading;
mod remove;
pub(crate) mod retention;
pub(crate) mod rotate;
pub(crate) mod round;
mod round_note;
pub(crate) mod seal;
mod shared;
mod slices;
pub(crate) mod stream;
mod take_over;
pub(crate) mod unpack;
mod use_note;
pub(super) mod verify;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod long_files_tests;
#[cfg(test)]
mod out_tests;
#[cfg(test)]
mod purge_tests;
#[cfg(test)]
mod retention_tests;
#[cfg(test)]
mod round_tests;
#[cfg(test)]
mod set_tests;
#[cfg(test)]
mod stream_tests;
#[cfg(test)]
pub(in crate::store) mod testing;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use walmgr_protocol::names::BackupName;

pub(crate) use clear_away::ClearedAway;
pub(crate) use condition::Condition;
pub use delta::DeltaSource;
pub(crate) use error::SetError;
pub(crate) use expire::Expiry;
pub(crate) use file_writer::{FileWriter, SealedFile};
pub(crate) use hand_note::HandNote;
pub(crate) use incoming::IncomingSet;
pub(crate) use inventory::HeldFile;
pub(crate) use list::{HeldSet, SetEntry};
pub(crate) use lock::Lease;
pub use out::Copying;
pub(crate) use out::SetSize;
pub(crate) use parent::ParentOfSet;
pub(crate) use pins::{NOTE_CHARS_MAX, SetPin};
pub(crate) use policy::{Keeping, PinnedWal, SetDecision};
pub(crate) use purge::Purged;
pub(crate) use retention::Retention;
pub(crate) use round::SetsRound;
pub(crate) use seal::{ExpectedFile, Parts, SealedSet};
pub(crate) use stream::Streamed;
pub(crate) use unpack::StreamWriter;

use super::disk::Disk;
use super::folder::Folder;
use super::health::{Health, Monitor};
use crate::audit::AuditEvent;

/// The backup sets of a standby. Clones share the handles.
#[derive(Clone)]
pub struct BackupSets {
    /// The directory that `full_backup` lies in.
    parent: Arc<Folder>,
    completed: Arc<Folder>,
    /// Where copies are that a purge removes too.
    partial: Option<Arc<Folder>>,
    newest: BackupName,
    told: Option<RemovalTeller>,
}

/// Is told what goes, before it goes.
type RemovalTeller = Arc<dyn Fn(&AuditEvent<'_>) + Send + Sync>;

impl BackupSets {
    /// These sets, where `told` hears of each removal before it happens.
    pub(crate) fn telling(
        mut self,
        told: impl Fn(&AuditEvent<'_>) + Send + Sync + 'static,
    ) -> Self {
        self.told = Some(Arc::new(told));
        self
    }

    fn tell(&self, removal: &AuditEvent<'_>) {
        if let Some(told) = &self.told {
            told(removal);
        }
    }

    /// Opens the directories; takes no lock and changes nothing.
    pub fn open(
        full_backup: &Path,
        completed_wals: &Path,
        disk: &Arc<dyn Disk>,
    ) -> Result<Self, SetError> {
        let in_the_way = |why: String| SetError::InTheWay {
            path: full_backup.to_path_buf(),
            why,
        };
        let name = full_backup.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| in_the_way("it has no name that is text".to_owned()))?;
        let newest = BackupName::newest(name).map_err(|error| in_the_way(error.to_string()))?;
        let above = match full_backup.parent() {
            Some(above) if !above.as_os_str().is_empty() => above,
            _ => Path::new("."),
        };
        let monitor = Arc::new(Monitor::new());
        let open = |path| Folder::open(path, Arc::clone(disk), Arc::clone(&monitor)).map(Arc::new);
        Ok(BackupSets {
            parent: open(above)?,
            completed: Arc::new(Folder::open_completed(
                completed_wals,
                Arc::clone(disk),
                Arc::clone(&monitor),
            )?),
            partial: None,
            newest,
            told: None,
        })
    }

    /// The sets for a purge, which removes copies of segments in progress in this folder too.
    pub fn with_partials(mut self, partial_wals: &Path) -> Result<Self, SetError> {
        let (disk, monitor) = (&self.completed.disk, &self.completed.monitor);
        let opened = Folder::open(partial_wals, Arc::clone(disk), Arc::clone(monitor))?;
        self.partial = Some(Arc::new(opened));
        Ok(self)
    }

    /// The name of the newest set, from which every other is parsed.
    pub const fn newest(&self) -> &BackupName {
        &self.newest
    }

    /// Takes the right to make a backup, to expire sets or to purge WAL. `owner` says who and
    /// since when, for those who find it taken.
    pub fn lease(&self, owner: &str) -> Result<Lease, SetError> {
        Lease::acquire(&self.completed, owner)
    }

    /// Who has that right at the moment, if anybody does.
    pub fn lease_holder(&self) -> Result<Option<String>, SetError> {
        Lease::holder(&self.completed)
    }

    /// Whether the disk can be trusted; after a failed sync it never is again.
    pub fn health(&self) -> Health {
        self.parent.monitor.health()
    }

    /// Where a name beside the sets is, for people and their programs.
    fn path_of(&self, name: &str) -> PathBuf {
        self.parent.path().join(name)
    }

    fn incoming_name(&self) -> String {
        format!("{}.incoming", self.newest.base())
    }

    fn expired_prefix(&self) -> String {
        format!("{}.expired.", self.newest.base())
    }

    fn intent_name(&self) -> String {
        format!(".{}.intent", self.newest.base())
    }

    fn lock_name(&self) -> String {
        format!(".{}.lock", self.newest.base())
    }
}
