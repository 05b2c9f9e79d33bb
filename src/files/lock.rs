//! Locks on files and directories, and the wait for one.
//! Never removes what is locked. Invariant: a lock ends with the process that holds it, however that ends.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files::directory_of;

/// How often a lock that somebody holds is tried again. The kernel has no wait for it that ends.
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Tries a lock until it is taken, but no longer than so; `false` when somebody held it all the time. `attempt` says
/// whether it took the lock, and is made once at least.
pub(crate) fn lock_within(
    patience: Duration,
    mut attempt: impl FnMut() -> io::Result<bool>,
) -> io::Result<bool> {
    let begun = Instant::now();
    loop {
        if attempt()? {
            return Ok(true);
        }
        if begun.elapsed() >= patience {
            return Ok(false);
        }
        std::thread::sleep(LOCK_POLL_INTERVAL);
    }
}

/// Takes the lock of an open file; `false` while somebody else has it.
pub(crate) fn try_lock_open(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Locks a directory for as long as the answer lives, without a trace in it; `None` while somebody else has it
/// locked.
pub(crate) fn try_lock(kind: Kind, directory: &Path) -> Result<Option<File>> {
    let file = File::open(directory).at(kind, "open", directory)?;
    let is_taken = try_lock_open(&file).at(Kind::Retry, "lock", directory)?;
    Ok(is_taken.then_some(file))
}

/// Keeps other processes that ask the same from changing what lies in this file's folder, until
/// the answer is dropped. The folder is locked, not the file: that is replaced, and a file made for
/// the lock could belong to the wrong user.
pub(crate) fn lock_folder_of(path: &Path, patience: Duration) -> Result<File> {
    let resolved = std::fs::canonicalize(path);
    let folder = directory_of(resolved.as_deref().unwrap_or(path));
    let locked = File::open(folder).at_setting("open", folder)?;
    let is_taken = lock_within(patience, || try_lock_open(&locked));
    match is_taken.at_setting("lock", folder)? {
        true => Ok(locked),
        false => {
            let says = format!("{} is locked by another process", folder.display());
            let hint = format!("find the process that holds it: fuser {}", folder.display());
            Err(CommandError::retry(says).hint(hint))
        }
    }
}
