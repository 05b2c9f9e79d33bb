//! Replay held by a backup: `PAUSE.backup` in `completed_wals`, as long as the process lives that wrote it.
//! Never touches PAUSE, which is a person's. Invariant: the lock on the file holds replay, and not the file: whatever
//! becomes of its process, replay goes on by itself.

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;

/// The file's name.
pub(crate) const HOLD_NAME: &str = "PAUSE.backup";

/// Whoever looks whether replay is held has the lock for an instant.
const READERS_PATIENCE: Duration = Duration::from_secs(5);

/// Replay is held until this is dropped, or its process ends.
#[derive(Debug)]
pub(super) struct ReplayHold {
    path: PathBuf,
    _file: File,
}

impl ReplayHold {
    /// Holds the replay of the servers that restore from this folder. One backup runs at a time, so what is there is of
    /// one that was killed.
    pub(super) fn take(completed_wals: &Path) -> Result<ReplayHold> {
        let path = completed_wals.join(HOLD_NAME);
        let mut file = files::open_lock(&path).at(Kind::Retry, "lock", &path)?;
        let is_taken = files::lock_within(READERS_PATIENCE, || files::try_lock_open(&file));
        if !is_taken.at(Kind::Retry, "lock", &path)? {
            let doing = format!("another process holds {}", path.display());
            return Err(CommandError::retry(doing));
        }
        // For people; a full disk is no reason to let replay go on.
        let text = format!("a backup holds replay: process {}\n", std::process::id());
        let _ = file
            .set_len(0)
            .and_then(|()| file.write_all(text.as_bytes()));
        Ok(ReplayHold { path, _file: file })
    }
}

impl Drop for ReplayHold {
    fn drop(&mut self) {
        // While it is locked, so that nobody else's can be removed; a file that stays holds nobody.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Whether a backup holds the replay of servers that restore from this folder.
pub(super) fn is_held(completed_wals: &Path) -> Result<bool> {
    let path = completed_wals.join(HOLD_NAME);
    let file = match files::open_at_once(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).at(Kind::Retry, "open", &path),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error).at(Kind::Retry, "lock", &path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_154_a_hold_lasts_as_long_as_its_process_and_touches_no_pause() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("PAUSE"), "").unwrap();
        assert!(!is_held(folder.path()).unwrap());
        let hold = ReplayHold::take(folder.path()).unwrap();
        assert!(is_held(folder.path()).unwrap());
        drop(hold);
        assert!(!is_held(folder.path()).unwrap());
        assert!(!folder.path().join(HOLD_NAME).exists());
        // As a killed process leaves it.
        std::fs::write(folder.path().join(HOLD_NAME), "a backup").unwrap();
        assert!(!is_held(folder.path()).unwrap());
        drop(ReplayHold::take(folder.path()).unwrap());
        assert!(!folder.path().join(HOLD_NAME).exists());
        assert!(folder.path().join("PAUSE").exists());
    }

    #[test]
    fn fault_175_a_fifo_of_the_name_neither_holds_replay_nor_blocks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(HOLD_NAME);
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert!(!is_held(folder.path()).unwrap());
        let refused = ReplayHold::take(folder.path()).unwrap_err().to_string();
        assert!(
            refused.contains("PAUSE.backup") && refused.contains("found a FIFO"),
            "{refused}"
        );
        assert!(path.exists());
    }
}
