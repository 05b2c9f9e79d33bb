//! What the replay commands share: the control files PAUSE, STOP and PROGRESS in `completed_wals`,
//! and the server that replays. Never touches a WAL file. Invariant: a control file that a killed
//! command left behind holds up nobody: it names the process it was for.

use std::cell::Cell;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, getppid, test_kill_process};
use walmgr_protocol::names::WalFileName;

use crate::config::StandbyConfig;
use crate::error::{IoContext, Kind, Result};
use crate::files::{self, ChangeStamp};
use crate::pg::data_directory::{DataDirectory, Postmaster};
use crate::standby::hold;

/// How long anything here sleeps at most before it looks around.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// How soon a change of the archive is noted.
pub(crate) const STEP: Duration = Duration::from_millis(10);

/// A shutdown waits for its checkpoint, a start for replay to get consistent, or up to its target.
pub(crate) const COMMAND_TIMEOUT: Duration = Duration::from_secs(600);

/// How long a server may outlive the command that stopped it, or come up after its start.
pub(crate) const SERVER_TIMEOUT: Duration = Duration::from_secs(60);

/// What PROGRESS says, filled up with blanks: the name of a backup's history and a process.
const PROGRESS_BYTES: usize = 40 + 1 + 10;

/// Enough for any control file.
const CONTROL_BYTES_MAX: u64 = 256;

/// The control files of one archive.
#[derive(Debug, Clone)]
pub(crate) struct ControlFiles {
    folder: PathBuf,
}

/// What STOP says: which server is being booted, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StopFile {
    /// The server; one made by hand with `touch` speaks to every server.
    server: Option<(i32, i64)>,
    /// Whether missing and damaged WAL is to be taken for the end.
    pub force: bool,
}

impl ControlFiles {
    /// Those of the archive in the settings.
    pub(crate) fn of(config: &StandbyConfig) -> ControlFiles {
        ControlFiles {
            folder: config.completed_wals.clone(),
        }
    }

    /// The directory they are in.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Whether replay is to be held.
    pub(crate) fn is_paused(&self) -> Result<bool> {
        let path = self.path("PAUSE");
        path.try_exists().at(Kind::Retry, "look for", &path)
    }

    /// Whether a backup holds replay while it copies.
    pub(crate) fn is_held_by_backup(&self) -> Result<bool> {
        hold::is_held(&self.folder)
    }

    /// Writes PAUSE durably; `false` when it was there.
    pub(crate) fn pause(&self) -> Result<bool> {
        let path = self.path("PAUSE");
        match files::create_new(&path, b"", 0o600) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            other => other.map(|()| true).at(Kind::Retry, "write", &path),
        }
    }

    /// Removes PAUSE; `false` when there was none.
    pub(crate) fn resume(&self) -> Result<bool> {
        let path = self.path("PAUSE");
        files::remove(&path).at(Kind::Retry, "remove", &path)
    }

    /// Writes STOP for this server.
    pub(crate) fn stop(&self, server: &Postmaster, force: bool) -> Result<()> {
        let path = self.path("STOP");
        let how = if force { " force" } else { "" };
        let text = format!("{}{how}\n", server_text(server));
        files::replace_own(&path, text.as_bytes()).at(Kind::Retry, "write", &path)
    }

    /// Removes STOP.
    pub(crate) fn remove_stop(&self) -> Result<()> {
        let path = self.path("STOP");
        files::remove(&path).at(Kind::Retry, "remove", &path)?;
        Ok(())
    }

    /// Removes STOP if it is this server's.
    pub(crate) fn remove_stop_of(&self, server: &str) -> Result<()> {
        let path = self.path("STOP");
        let text = read_control(&path).at(Kind::Retry, "read", &path)?;
        let rest = text.as_deref().and_then(|text| text.strip_prefix(server));
        if rest.is_some_and(|rest| rest.starts_with([' ', '\n'])) {
            return self.remove_stop();
        }
        Ok(())
    }

    /// What STOP says to this server, or `None` when there is none or it is another server's.
    pub(crate) fn stop_for(&self, server: Option<&Postmaster>) -> Result<Option<StopFile>> {
        let path = self.path("STOP");
        let Some(text) = read_control(&path).at(Kind::Retry, "read", &path)? else {
            return Ok(None);
        };
        let stop = parse_stop(&text);
        let ours = server.map(|server| (server.pid, server.started_s.unwrap_or_default()));
        Ok((stop.server.is_none() || stop.server == ours).then_some(stop))
    }

    /// Says that this file is being restored by this process, until the result is dropped. The file stays then, blank:
    /// were it removed, the index of the folder's names would be older than the folder behind each segment. It keeps its
    /// length too, so that no call has the file system free a block and set one aside.
    ///
    /// Best effort: replay must not end because a note cannot be written.
    pub(crate) fn progress(&self, name: WalFileName) -> ProgressFile {
        let progress = ProgressFile {
            path: self.path("PROGRESS"),
            text: progress_text(&format!("{name} {}", std::process::id())),
        };
        let noted = files::note_in_place(&progress.path, progress.text.as_bytes());
        if let Err(error) = noted {
            tracing::debug!("write {}: {error}", progress.path.display());
        }
        progress
    }

    /// The file that is being restored, if any; what a killed process left does not count.
    pub(crate) fn restoring(&self) -> Result<Option<String>> {
        let path = self.path("PROGRESS");
        let text = read_control(&path).at(Kind::Retry, "read", &path)?;
        Ok(text.and_then(|text| {
            let (name, pid) = text.trim().split_once(' ')?;
            let pid = pid.parse().ok().and_then(Pid::from_raw)?;
            let gone = test_kill_process(pid) == Err(rustix::io::Errno::SRCH);
            (!gone).then(|| name.to_owned())
        }))
    }
}

/// What names a server in `STOP` and in a freeze: no other one has ever had both.
pub(crate) fn server_text(server: &Postmaster) -> String {
    format!("{} {}", server.pid, server.started_s.unwrap_or_default())
}

/// PROGRESS in its one length, in which the longest name and number have room.
fn progress_text(said: &str) -> String {
    format!("{said:<PROGRESS_BYTES$}\n")
}

fn read_control(path: &Path) -> io::Result<Option<String>> {
    match files::read_at_most(path, CONTROL_BYTES_MAX) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse_stop(text: &str) -> StopFile {
    let mut words = text.split_whitespace();
    let pid = words.next().and_then(|word| word.parse().ok());
    let started_s = words.next().and_then(|word| word.parse().ok());
    StopFile {
        server: pid.zip(started_s),
        force: words.next() == Some("force"),
    }
}

/// PROGRESS while it names a file.
pub(crate) struct ProgressFile {
    path: PathBuf,
    text: String,
}

impl Drop for ProgressFile {
    fn drop(&mut self) {
        // A note that stays names a process that is gone, and so does not count. Another standby's is its own to clear.
        if !matches!(read_control(&self.path), Ok(Some(text)) if text == self.text) {
            return;
        }
        // Of one that is root's, the server's user could not learn that it names nothing.
        let owner = |path: &Path| path.symlink_metadata().map(|found| found.uid()).ok();
        let _ = match owner(&self.path) == self.path.parent().and_then(owner) {
            true => files::note_in_place(&self.path, progress_text("").as_bytes()),
            false => std::fs::remove_file(&self.path),
        };
    }
}

/// The PostgreSQL that asked for a file: our parent, and the server whose directory we stand in.
#[derive(Debug)]
pub(crate) struct Asker {
    parent: Option<Pid>,
    data: Option<DataDirectory>,
    server: Option<Postmaster>,
}

impl Asker {
    /// Whoever runs this process. The server is absent when a person typed the command. One that
    /// has crashed since it asked is still the one, and gone.
    pub(crate) fn of_this_process() -> Asker {
        let data = DataDirectory::open(Path::new(".")).ok();
        let server = (data.as_ref()).and_then(|data| data.last_server().ok().flatten());
        Asker {
            parent: getppid(),
            data,
            server,
        }
    }

    /// Its server.
    pub(crate) const fn server(&self) -> Option<&Postmaster> {
        self.server.as_ref()
    }

    /// Whether nobody waits for the answer any more. The shell between PostgreSQL and us outlives
    /// it, so the parent alone does not tell.
    pub(crate) fn is_gone(&self) -> bool {
        let (Some(data), Some(server)) = (&self.data, &self.server) else {
            return getppid() != self.parent;
        };
        let running = data.running();
        let same = |found: &Option<Postmaster>| {
            found.as_ref().is_some_and(|found| found.pid == server.pid)
        };
        // A file that cannot be read for the moment proves nothing.
        getppid() != self.parent || running.is_ok_and(|found| !same(&found))
    }
}

/// Notes that something changed in a directory, by the time of its last change.
/// The kernel's own word (`inotify`) costs a walk over every name of the directory that it has in memory, which is a
/// tenth of a second for a million, at each call. What somebody writes into a file in its place is not noted.
#[derive(Debug)]
pub(crate) struct Watch {
    folder: PathBuf,
    seen: Cell<Option<ChangeStamp>>,
}

impl Watch {
    /// Notes changes from here on. Of two within one tick of the file system's clock it may note one.
    pub(crate) fn on(folder: &Path) -> Watch {
        Watch {
            folder: folder.to_path_buf(),
            seen: Cell::new(Watch::stamp(folder)),
        }
    }

    fn stamp(folder: &Path) -> Option<ChangeStamp> {
        let metadata = std::fs::metadata(folder);
        metadata.ok().as_ref().map(ChangeStamp::of)
    }

    /// Waits for a change, but not longer than `limit` nor than a [`TICK`]; whether there was one.
    pub(crate) fn wait(&self, limit: Duration) -> bool {
        let begun = Instant::now();
        loop {
            let stamp = Watch::stamp(&self.folder);
            if self.seen.replace(stamp) != stamp {
                return true;
            }
            let left = limit.min(TICK).saturating_sub(begun.elapsed());
            if left.is_zero() {
                return false;
            }
            std::thread::sleep(left.min(STEP));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control() -> (tempfile::TempDir, ControlFiles) {
        let folder = tempfile::tempdir().unwrap();
        let control = ControlFiles {
            folder: folder.path().to_path_buf(),
        };
        (folder, control)
    }

    fn server(pid: i32, started_s: i64) -> Postmaster {
        Postmaster::parse(&format!("{pid}\n/data\n{started_s}\n")).unwrap()
    }

    #[test]
    fn stop_speaks_to_the_server_it_names_or_made_by_hand_to_all() {
        let (folder, control) = control();
        let (ours, other) = (server(41, 1_700), server(41, 1_701));
        assert_eq!(control.stop_for(Some(&ours)).unwrap(), None);
        for force in [false, true] {
            control.stop(&ours, force).unwrap();
            let stop = control.stop_for(Some(&ours)).unwrap().unwrap();
            assert_eq!(stop.force, force);
            assert_eq!(control.stop_for(Some(&other)).unwrap(), None);
            assert_eq!(control.stop_for(None).unwrap(), None);
        }
        control.remove_stop().unwrap();
        control.remove_stop().unwrap();
        std::fs::write(folder.path().join("STOP"), "").unwrap();
        for anybody in [None, Some(&ours), Some(&other)] {
            assert!(!control.stop_for(anybody).unwrap().unwrap().force);
        }
    }

    #[test]
    fn progress_of_a_process_that_is_gone_does_not_count() {
        let (folder, control) = control();
        let name: WalFileName = "000000010000000000000001".parse().unwrap();
        assert_eq!(control.restoring().unwrap(), None);
        let progress = control.progress(name);
        assert_eq!(control.restoring().unwrap(), Some(name.to_string()));
        let folder_changed = || folder.path().metadata().unwrap().modified().unwrap();
        let changed = folder_changed();
        let len = || control.path("PROGRESS").metadata().unwrap().len();
        let said = len();
        drop(progress);
        assert_eq!(control.restoring().unwrap(), None);
        assert_eq!(len(), said, "it was cut");
        let next = control.progress("000000010000000000000002".parse().unwrap());
        // Of a process that is none of this one's: it stays.
        std::fs::write(control.path("PROGRESS"), format!("{name} 1\n")).unwrap();
        drop(next);
        assert_eq!(control.restoring().unwrap(), Some(name.to_string()));
        assert_eq!(changed, folder_changed(), "the folder was changed");
        for left in [
            format!("{name} {}\n", i32::MAX),
            "1".to_owned(),
            String::new(),
        ] {
            std::fs::write(folder.path().join("PROGRESS"), left).unwrap();
            assert_eq!(control.restoring().unwrap(), None);
        }
    }

    #[test]
    fn fault_175_control_files_change_nothing_behind_a_link() {
        let (folder, control) = control();
        let precious = folder.path().join("precious");
        std::fs::write(&precious, "precious").unwrap();
        for name in ["PROGRESS", "STOP"] {
            std::os::unix::fs::symlink(&precious, folder.path().join(name)).unwrap();
        }
        let name: WalFileName = "000000010000000000000001".parse().unwrap();
        drop(control.progress(name));
        control.stop(&server(41, 1_700), false).unwrap();
        assert!(
            control
                .stop_for(Some(&server(41, 1_700)))
                .unwrap()
                .is_some()
        );
        assert_eq!(std::fs::read(&precious).unwrap(), b"precious");
    }

    #[test]
    fn pause_and_continue_say_what_was_there() {
        let (_folder, control) = control();
        assert!(!control.is_paused().unwrap() && !control.resume().unwrap());
        assert!(control.pause().unwrap() && !control.pause().unwrap());
        assert!(control.is_paused().unwrap() && control.resume().unwrap());
        assert!(!control.is_paused().unwrap());
    }

    #[test]
    fn a_watch_wakes_up_at_a_rename_into_the_directory() {
        let folder = tempfile::tempdir().unwrap();
        let watch = Watch::on(folder.path());
        // The file system's clock ticks.
        assert!(!watch.wait(Duration::from_millis(20)));
        files::replace(&folder.path().join("a"), b"", 0o600).unwrap();
        assert!(watch.wait(Duration::from_secs(1)));
        assert!(!watch.wait(Duration::from_millis(1)));
    }
}
