//! The folder of `verify`'s notes, held by one `verify` at a time.
//! Never fails the one that works with it: without a folder, as on a full disk, nothing is remembered. Invariant:
//! a note is replaced as a whole, so a kill leaves the old one or the new one.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::os::fd::{AsFd, OwnedFd};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::note::{NOTE_BYTES_MAX, NoteSubject, VERIFIED_NAME, VerifiedFile, VerifiedNote};
use crate::store::disk::FileStat;
use crate::store::error::StoreError;
use crate::store::folder::{Folder, TEMPORARY_PREFIX};
use crate::store::sets::SetError;

const LOCK_NAME: &str = "lock";

/// A process id, and a line's end.
const LOCK_BYTES_MAX: usize = 32;

/// What the name of a note about a set begins with.
const SET_NOTE_PREFIX: &str = "set.";

/// What is remembered, and for how long.
pub(in crate::store) struct VerifyMemory {
    folder: Option<Arc<Folder>>,
    /// Why nothing is remembered.
    why_not: Option<String>,
    ages: ReadAges,
    _lock: Option<OwnedFd>,
}

/// Which files need not be read again.
#[derive(Debug, Clone, Copy)]
struct ReadAges {
    since_s: i64,
    now_s: i64,
}

impl VerifyMemory {
    /// Takes the folder, which is made if there is none.
    pub(in crate::store) fn open(
        completed: &Folder,
        again_after: Duration,
        reads_all: bool,
    ) -> Result<VerifyMemory, SetError> {
        let again_after_s = i64::try_from(again_after.as_secs()).unwrap_or(i64::MAX);
        let now_s = now_ns().div_euclid(1_000_000_000);
        let mut memory = VerifyMemory {
            folder: None,
            why_not: None,
            ages: ReadAges {
                since_s: match reads_all {
                    true => i64::MAX,
                    false => now_s.saturating_sub(again_after_s),
                },
                now_s,
            },
            _lock: None,
        };
        let made =
            (completed.make_below(VERIFIED_NAME)).and_then(|()| completed.below(VERIFIED_NAME));
        let folder = match made {
            Ok(Some(folder)) => folder,
            Ok(None) => return Ok(memory),
            Err(error) => {
                memory.why_not = Some(error.to_string());
                return Ok(memory);
            }
        };
        match lock(&folder) {
            Ok(Some(held)) => memory._lock = Some(held),
            Ok(None) => {
                let holder = folder.read_small(LOCK_NAME, LOCK_BYTES_MAX).ok().flatten();
                let holder = holder.unwrap_or_default();
                let holder = String::from_utf8_lossy(&holder);
                return Err(SetError::Busy {
                    what: "the memory of verify".to_owned(),
                    holder: format!("another verify runs, process {}", holder.trim()),
                });
            }
            Err(error) => {
                memory.why_not = Some(error.to_string());
                return Ok(memory);
            }
        }
        for name in folder.names()? {
            if name.starts_with(TEMPORARY_PREFIX) {
                folder.remove(&name)?;
            }
        }
        memory.folder = Some(folder);
        Ok(memory)
    }

    /// The folder, where there is one.
    pub(in crate::store) const fn folder(&self) -> Option<&Arc<Folder>> {
        self.folder.as_ref()
    }

    /// Whether a file is the one that was read, and not too long ago.
    pub(in crate::store) fn is_fresh(&self, known: &VerifiedFile, stat: &FileStat) -> bool {
        known.is_of(stat) && known.was_read_between(self.ages.since_s, self.ages.now_s)
    }

    /// What a note says; nothing if there is none.
    pub(in crate::store) fn read<K: Ord + Display + FromStr>(
        &self,
        name: &str,
        subject: NoteSubject,
    ) -> VerifiedNote<K> {
        let read = || {
            let folder = self.folder.as_ref()?;
            let file = folder.open_file(name).ok()??;
            let mut text = Vec::new();
            let read = folder.read_through(file.as_fd(), name, |piece| {
                text.extend_from_slice(piece);
                text.len() <= NOTE_BYTES_MAX
            });
            read.ok()?;
            VerifiedNote::parse(subject, &text)
        };
        read().unwrap_or_else(|| VerifiedNote::empty(subject))
    }

    /// Replaces a note. One that cannot be written costs the next run time.
    pub(in crate::store) fn write<K: Ord + Display + FromStr>(
        &mut self,
        name: &str,
        note: &VerifiedNote<K>,
    ) {
        let folder = self.folder.clone();
        self.keep(|| match folder {
            Some(folder) => folder.write_small(name, note.text().as_bytes()),
            None => Ok(()),
        });
    }

    /// Does something with the folder that may fail.
    pub(in crate::store) fn keep(&mut self, write: impl FnOnce() -> Result<(), StoreError>) {
        if let Err(error) = write() {
            self.why_not.get_or_insert_with(|| error.to_string());
        }
    }

    /// Removes the notes about sets that are not there any more.
    pub(in crate::store) fn forget_sets_but(&mut self, inodes: &BTreeSet<u64>) {
        let Some(folder) = self.folder.clone() else {
            return;
        };
        self.keep(|| {
            let names = folder.names()?.into_iter();
            let gone = names.filter(|name| {
                let inode = name.strip_prefix(SET_NOTE_PREFIX);
                let inode = inode.and_then(|inode| inode.parse().ok());
                inode.is_some_and(|inode| !inodes.contains(&inode))
            });
            folder.remove_present(gone)
        });
    }

    /// Why nothing is remembered for the next run, if that is so.
    pub(in crate::store) fn into_why_not(self) -> Option<String> {
        self.why_not
    }
}

/// The name of the note about the set whose directory has this inode.
pub(in crate::store) fn set_note(inode: u64) -> String {
    format!("{SET_NOTE_PREFIX}{inode}")
}

/// This host's clock.
pub(in crate::store) fn now_ns() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| i64::try_from(now.as_nanos()).unwrap_or(i64::MAX))
}

/// `None` if another process has it.
fn lock(folder: &Folder) -> Result<Option<OwnedFd>, StoreError> {
    let failed = |error| folder.failure("lock", LOCK_NAME, error);
    let disk = &folder.disk;
    let file = disk.open_lock(folder.handle(), LOCK_NAME).map_err(failed)?;
    if !disk.lock(file.as_fd()).map_err(failed)? {
        return Ok(None);
    }
    let text = format!("{}\n", std::process::id());
    // A full disk is no reason not to look.
    let _ =
        (disk.set_len(file.as_fd(), 0)).and_then(|()| disk.write(file.as_fd(), text.as_bytes(), 0));
    Ok(Some(file))
}
