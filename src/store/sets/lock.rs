//! Who may change backup sets: the lease of a backup, and the lock on the names of the sets.
//! Never trusts a pid or a file's age: `flock` decides, and it ends with its process; what a person locked (see
//! `by_hand`) ends when a person says so. Invariant: they are taken in one order: lease, names, one set.
//!
//! | lock | file | alone | shared |
//! |---|---|---|---|
//! | lease | `completed_wals/BACKUPLOCK`, there while a backup or a purge runs, and from `xlock` to `xrelease` | backup, expiry, purge | |
//! | names | `.data.master.lock` beside the sets, always there | the renames, purge, taking a set away | list, opening a set |
//! | one set | the set's directory | expiry, taking it away | restore, verify |

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::error::SetError;
use super::hand_note::HandNote;
use crate::files::lock_within;
use crate::store::StoreError;
use crate::store::folder::Folder;

/// The visible file of the lease, where the manual puts it.
pub(crate) const LEASE_NAME: &str = "BACKUPLOCK";

/// Nothing that holds the lock on the names waits for a peer or removes a tree.
const NAMES_PATIENCE: Duration = Duration::from_secs(30);

/// A set is being moved to another file system, perhaps.
const SEAL_PATIENCE: Duration = Duration::from_secs(600);

/// Somebody who looks whether the lease is held has it for an instant.
const LEASE_PATIENCE: Duration = Duration::from_millis(500);

/// How often the file may vanish between opening and locking it.
const OPEN_ATTEMPTS_MAX: usize = 100;

/// A host, a job, a process and a time fit; a flood does not.
const OWNER_BYTES_MAX: usize = 512;

/// The right to make a new set. It ends when it is dropped, or with its process.
pub struct Lease {
    folder: Arc<Folder>,
    file: OwnedFd,
    /// A set is being received under it.
    is_receiving: AtomicBool,
    /// Whether its file goes with it: not while that may be a person's lock.
    removes_file: AtomicBool,
}

impl Lease {
    /// Takes the lease; `owner` is what others read while it is held: who, and since when.
    pub(super) fn acquire(folder: &Arc<Folder>, owner: &str) -> Result<Self, SetError> {
        let lease = Self::acquire_unsaid(folder)?;
        if let Some(note) = HandNote::parse(&lease.text()?) {
            return Err(note.refusal());
        }
        lease.removes_file(true);
        // A full disk is no reason to refuse: the lock is what counts.
        let _ = note_owner(folder, &lease.file, owner);
        Ok(lease)
    }

    /// Takes the lease and leaves its file as it is, which may be a person's lock.
    pub(super) fn acquire_unsaid(folder: &Arc<Folder>) -> Result<Self, SetError> {
        let disk = &folder.disk;
        let failed = |op| move |error| folder.failure(op, LEASE_NAME, error);
        for _ in 0..OPEN_ATTEMPTS_MAX {
            let file = disk
                .open_lock(folder.handle(), LEASE_NAME)
                .map_err(failed("open lock"))?;
            let taken = lock_within(LEASE_PATIENCE, || disk.lock(file.as_fd()));
            if !taken.map_err(failed("lock"))? {
                return Err(busy("the backup", read_owner(folder, &file)?));
            }
            // The owner before may have removed the file that was opened: a lock on that is none.
            let opened = disk.stat(file.as_fd()).map_err(failed("examine"))?.identity;
            let named = folder.stat_at(LEASE_NAME)?;
            if named.is_some_and(|named| named.identity == opened) {
                return Ok(Lease {
                    folder: Arc::clone(folder),
                    file,
                    is_receiving: AtomicBool::new(false),
                    removes_file: AtomicBool::new(false),
                });
            }
        }
        Err(busy("the backup", "its lock changes hands".to_owned()))
    }

    /// Fails while a set is being received: what looks interrupted then is not.
    pub(super) fn ensure_idle(&self) -> Result<(), SetError> {
        match self.is_receiving.load(Ordering::SeqCst) {
            false => Ok(()),
            true => Err(busy("the backup", "its set is being received".to_owned())),
        }
    }

    /// Notes that a set is being received; `Busy` when there is one already.
    pub(super) fn begin_set(&self) -> Result<(), SetError> {
        match self.is_receiving.swap(true, Ordering::SeqCst) {
            false => Ok(()),
            true => Err(busy("the backup", "its set is being received".to_owned())),
        }
    }

    /// Notes that the set is sealed or gone.
    pub(super) fn end_set(&self) {
        self.is_receiving.store(false, Ordering::SeqCst);
    }

    /// What stands in its file.
    pub(super) fn text(&self) -> Result<Vec<u8>, StoreError> {
        read_text(&self.folder, &self.file)
    }

    /// Makes it a person's lock, which is there until somebody says that it ends. Durable when it returns.
    pub(super) fn leave_by_hand(self, note: &HandNote) -> Result<(), SetError> {
        let (folder, file) = (&self.folder, &self.file);
        let failed = |op| move |error| folder.failure(op, LEASE_NAME, error);
        (folder.disk.set_len(file.as_fd(), 0)).map_err(failed("cut"))?;
        (folder
            .disk
            .write_all(file.as_fd(), note.text().as_bytes(), 0))
        .map_err(failed("write"))?;
        folder.sync_content(file.as_fd(), LEASE_NAME)?;
        folder.sync()?;
        self.removes_file(false);
        Ok(())
    }

    /// Whether its file goes when it is dropped.
    pub(super) fn removes_file(&self, removes: bool) {
        self.removes_file.store(removes, Ordering::SeqCst);
    }

    /// Who holds the lease, if anybody does; a person's lock too.
    pub(super) fn holder(folder: &Folder) -> Result<Option<String>, SetError> {
        let Some(file) = folder.open_file(LEASE_NAME)? else {
            return Ok(None);
        };
        let is_free = (folder.disk.lock_shared(file.as_fd()))
            .map_err(|error| folder.failure("lock", LEASE_NAME, error))?;
        match is_free {
            true => Ok(HandNote::parse(&read_text(folder, &file)?).map(|note| note.holder())),
            false => read_owner(folder, &file).map(Some).map_err(Into::into),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.removes_file.load(Ordering::SeqCst) {
            return;
        }
        // While it is still locked, so that nobody's lock but ours can be removed.
        let _ = self.folder.disk.remove(self.folder.handle(), LEASE_NAME);
    }
}

fn note_owner(folder: &Folder, file: &OwnedFd, owner: &str) -> io::Result<()> {
    let line: String = owner
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(OWNER_BYTES_MAX / 4)
        .collect();
    folder.disk.set_len(file.as_fd(), 0)?;
    let text = format!("{line}\n");
    folder
        .disk
        .write(file.as_fd(), text.as_bytes(), 0)
        .map(drop)
}

pub(super) fn read_text(folder: &Folder, file: &OwnedFd) -> Result<Vec<u8>, StoreError> {
    let mut text = Vec::new();
    folder.read_through(file.as_fd(), LEASE_NAME, |bytes| {
        text.extend_from_slice(bytes);
        text.len() < OWNER_BYTES_MAX
    })?;
    text.truncate(OWNER_BYTES_MAX);
    Ok(text)
}

fn read_owner(folder: &Folder, file: &OwnedFd) -> Result<String, StoreError> {
    let text = read_text(folder, file)?;
    let text = String::from_utf8_lossy(&text);
    Ok(match text.trim() {
        "" => "an unknown process".to_owned(),
        owner => owner.to_owned(),
    })
}

fn busy(what: &str, holder: String) -> SetError {
    let what = what.to_owned();
    SetError::Busy { what, holder }
}

/// How a lock is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Shared,
    Alone,
}

/// The lock on the names of all sets; dropping it ends it.
pub(super) struct NamesLock {
    _file: OwnedFd,
}

impl NamesLock {
    pub(super) fn acquire(folder: &Folder, name: &str, mode: Mode) -> Result<Self, SetError> {
        Self::wait(folder, name, mode, NAMES_PATIENCE)
    }

    /// For a set that is complete: whoever waits here has hours of work to lose.
    pub(super) fn acquire_to_seal(folder: &Folder, name: &str) -> Result<Self, SetError> {
        Self::wait(folder, name, Mode::Alone, SEAL_PATIENCE)
    }

    fn wait(folder: &Folder, name: &str, mode: Mode, patience: Duration) -> Result<Self, SetError> {
        let disk = &folder.disk;
        // Never removed: a removed one could be locked twice.
        let file = (disk.open_lock(folder.handle(), name))
            .map_err(|error| folder.failure("open lock", name, error))?;
        let taken = lock_within(patience, || lock(folder, &file, mode));
        match taken.map_err(|error| folder.failure("lock", name, error))? {
            true => Ok(NamesLock { _file: file }),
            false => Err(busy(
                "the list of backup sets",
                format!(
                    "another process has had {} locked for {} s",
                    folder.path().join(name).display(),
                    patience.as_secs()
                ),
            )),
        }
    }
}

/// Tries once.
pub(super) fn lock(folder: &Folder, file: &OwnedFd, mode: Mode) -> io::Result<bool> {
    match mode {
        Mode::Shared => folder.disk.lock_shared(file.as_fd()),
        Mode::Alone => folder.disk.lock(file.as_fd()),
    }
}
