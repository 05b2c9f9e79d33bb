//! The directory of a drill: made for it, marked as its own, removed with every process that works in it.
//! Never removes a directory without the mark of a drill on this archive, and never follows a link. Invariant: the mark
//! goes last, so what a kill leaves while it is being removed is removed by the next.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use walmgr_protocol::limits::SMALL_FILE_BYTES_MAX;

use crate::config::StandbyConfig;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files::{self, FileId};
use crate::pg::layout;
use crate::standby::replay::TICK;
use crate::store::{ArchiveReader, RealDisk};

/// What is appended to the job's name.
const SUFFIX: &str = ".drill";

/// The mark.
const MARK_NAME: &str = "walmgr-drill";

/// The restored set in it.
const DATA_NAME: &str = "data";

/// Programs that a drill starts and that may outlive it.
const PROGRAMS: [&str; 2] = ["postgres", "pg_amcheck"];

/// PostgreSQL's own patience with its processes at an immediate shutdown is 5 s; a busy disk may hold them longer.
const QUIT_PATIENCE: Duration = Duration::from_secs(20);

/// A process that a kill has not ended by then hangs in the kernel, on a dead disk.
const KILL_PATIENCE: Duration = Duration::from_secs(60);

/// Longest path of a socket, with the NUL byte behind it (`sun_path`).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The number in the socket's name; nothing listens on such a port.
pub(super) const PORT: u16 = 5432;

/// Where one drill works.
pub(super) struct ScratchPlace {
    path: PathBuf,
    /// What the mark says.
    mark: String,
    /// Directories that the drill must not lie in, nor around.
    taken: Vec<PathBuf>,
}

impl ScratchPlace {
    /// That of the settings.
    pub(super) fn of(config: &StandbyConfig) -> Result<ScratchPlace> {
        let beside = config.full_backup.as_deref().and_then(Path::parent);
        let above = config.drill_directory.as_deref().or(beside);
        let above = above.ok_or_else(|| {
            CommandError::config("drill needs the setting `drill_directory`")
                .hint("set it to a directory with room for a backup set")
        })?;
        let above = above
            .canonicalize()
            .at(Kind::Config, "find the directory", above)?;
        if above.to_str().is_none() {
            return Err(
                CommandError::config(format!("{} is not plain text", above.display()))
                    .hint("set drill_directory to a path of ordinary characters"),
            );
        }
        let job = config.job_name.replace(['/', '\0'], "_");
        let place = ScratchPlace::at(config, above.join(format!("{job}{SUFFIX}")));
        place.check_apart()?;
        Ok(place)
    }

    /// Another one, of an earlier drill.
    pub(super) fn at(config: &StandbyConfig, path: PathBuf) -> ScratchPlace {
        let resolved = |path: &PathBuf| files::resolved(path);
        ScratchPlace {
            path,
            mark: format!(
                "walmgr drill of the archive {}\n",
                files::resolved(&config.completed_wals).display()
            ),
            taken: config.directories().map(resolved).collect(),
        }
    }

    fn check_apart(&self) -> Result<()> {
        for taken in &self.taken {
            if self.path.starts_with(taken) || taken.starts_with(&self.path) {
                return Err(CommandError::config(format!(
                    "{} and {} must not contain each other",
                    self.path.display(),
                    taken.display()
                ))
                .hint("set drill_directory to another directory"));
            }
        }
        Ok(())
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the restored set goes.
    pub(super) fn data(&self) -> PathBuf {
        self.path.join(DATA_NAME)
    }

    /// Whether anything has its name.
    pub(super) fn is_there(&self) -> Result<bool> {
        match self.path.symlink_metadata() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).at(Kind::Config, "examine", &self.path),
        }
    }

    /// Makes it, and marks it. Nobody else may look into it.
    pub(super) fn make(&self) -> Result<()> {
        let made = std::fs::DirBuilder::new().mode(0o700).create(&self.path);
        made.at(Kind::Config, "create", &self.path)?;
        let mark = self.path.join(MARK_NAME);
        let written = files::create_new(&mark, self.mark.as_bytes(), 0o600);
        written.at(Kind::Retry, "write", &mark)
    }

    /// Whether files in it can share the content of those in the set, where both lie on a file system that can.
    pub(super) fn can_share_with(&self, set: &Path) -> bool {
        files::can_share(&set.join(layout::PG_CONTROL), &self.path.join("probe"))
    }

    /// Ends what works in it and removes it, if it is there; refuses one that no drill on this archive made.
    pub(super) fn remove(&self, config: &StandbyConfig) -> Result<()> {
        if !self.is_there()? {
            return Ok(());
        }
        if !self.is_ours()? {
            return Err(CommandError::config(format!(
                "{} is not the directory of a drill on this archive",
                self.path.display()
            ))
            .hint("move it away, or set drill_directory to another directory"));
        }
        self.end_processes()?;
        self.forget_server(config)?;
        for name in entries(&self.path)? {
            if name != MARK_NAME {
                files::remove_any(&self.path.join(name))?;
            }
        }
        files::remove_any(&self.path.join(MARK_NAME))?;
        std::fs::remove_dir(&self.path).at(Kind::Retry, "remove", &self.path)
    }

    /// Whether it has the mark, or is empty, as a kill leaves it right after it was made.
    fn is_ours(&self) -> Result<bool> {
        let found = self.path.symlink_metadata();
        if !found.at(Kind::Config, "examine", &self.path)?.is_dir() {
            return Ok(false);
        }
        let mark = files::read_at_most(&self.path.join(MARK_NAME), SMALL_FILE_BYTES_MAX);
        match mark {
            // A disk that was full took none of it, and then nothing else is there either.
            Ok(text) if text.is_empty() => Ok(entries(&self.path)?.len() == 1),
            Ok(text) => Ok(text == self.mark.as_bytes()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok(entries(&self.path)?.is_empty())
            }
            Err(error) => Err(error).at(Kind::Config, "read the mark in", &self.path),
        }
    }

    /// No purge is to wait for a server that is about to be removed.
    fn forget_server(&self, config: &StandbyConfig) -> Result<()> {
        let archive = ArchiveReader::open(&config.completed_wals, Arc::new(RealDisk));
        let forgotten = archive.and_then(|archive| archive.forget_server(&self.data()));
        forgotten.map_err(|error| {
            CommandError::new(error.kind(), "remove the drill's note from the archive")
                .because(error)
        })
    }

    /// Ends PostgreSQL and what checks it, as far as they work in here: nothing else does, whatever number a pid file
    /// that was left has.
    fn end_processes(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let found = self.processes();
            let Some(first) = found.first() else {
                return Ok(());
            };
            if begun.elapsed() > KILL_PATIENCE {
                return Err(CommandError::retry(format!(
                    "process {} in {} has not ended within {} s of being killed",
                    first.as_raw_pid(),
                    self.path.display(),
                    KILL_PATIENCE.as_secs()
                )));
            }
            let signal = match begun.elapsed() < QUIT_PATIENCE {
                true => Signal::QUIT,
                false => Signal::KILL,
            };
            for pid in found {
                // Its number may be another's by now, but not that of what was opened before it was looked at.
                if let Ok(process) = pidfd_open(pid, PidfdFlags::empty())
                    && self.is_process_here(pid)
                {
                    let _ = pidfd_send_signal(process, signal);
                }
            }
            std::thread::sleep(TICK);
        }
    }

    fn processes(&self) -> Vec<Pid> {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let pids = names.filter_map(|name| name.parse().ok().and_then(Pid::from_raw));
        pids.filter(|pid| self.is_process_here(*pid)).collect()
    }

    fn is_process_here(&self, pid: Pid) -> bool {
        let folder = PathBuf::from(format!("/proc/{}", pid.as_raw_pid()));
        let Ok(works_in) = std::fs::metadata(folder.join("cwd")) else {
            return false;
        };
        let here = [self.path.clone(), self.data()];
        let works_in = FileId::of_metadata(&works_in);
        let is_here = here.iter().any(|path| FileId::at(path) == Some(works_in));
        is_here && std::fs::read_link(folder.join("exe")).is_ok_and(|exe| is_program(&exe))
    }

    /// Where a client that works in the directory finds the socket, however long the directory's path is.
    pub(super) fn socket_folder(&self) -> PathBuf {
        let name_bytes = format!("/.s.PGSQL.{PORT}.lock").len();
        match self.path.as_os_str().len() + name_bytes < SOCKET_PATH_BYTES_MAX {
            true => self.path.clone(),
            false => PathBuf::from("/proc/self/cwd"),
        }
    }
}

fn is_program(exe: &Path) -> bool {
    let name = exe.file_name().and_then(|name| name.to_str());
    // An upgrade may have replaced it meanwhile.
    let name = name.map(|name| name.trim_end_matches(" (deleted)"));
    name.is_some_and(|name| PROGRAMS.contains(&name))
}

fn entries(directory: &Path) -> Result<Vec<std::ffi::OsString>> {
    let listed = std::fs::read_dir(directory);
    let names = listed.and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect());
    names.at(Kind::Retry, "list", directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(folder: &Path) -> ScratchPlace {
        ScratchPlace {
            path: folder.join("job.drill"),
            mark: "ours\n".to_owned(),
            taken: vec![folder.join("archive")],
        }
    }

    #[test]
    fn fault_158_only_a_directory_with_the_mark_of_a_drill_is_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let place = place(folder.path());
        assert!(!place.is_there().unwrap());
        place.make().unwrap();
        assert!(place.is_ours().unwrap());
        let mark = place.path.join(MARK_NAME);
        for (text, ours) in [("", true), ("other\n", false), ("ours\n", true)] {
            std::fs::write(&mark, text).unwrap();
            assert_eq!(place.is_ours().unwrap(), ours, "{text:?}");
        }
        // A kill right after the directory was made, and an administrator's file.
        std::fs::remove_file(&mark).unwrap();
        assert!(place.is_ours().unwrap());
        std::fs::write(place.path.join("kept"), "").unwrap();
        assert!(!place.is_ours().unwrap());
        std::fs::write(&mark, "").unwrap();
        assert!(!place.is_ours().unwrap());
        std::fs::remove_dir_all(&place.path).unwrap();
        std::os::unix::fs::symlink(folder.path(), &place.path).unwrap();
        assert!(place.is_there().unwrap() && !place.is_ours().unwrap());
        std::fs::remove_file(&place.path).unwrap();
        std::fs::write(&place.path, "ours\n").unwrap();
        assert!(!place.is_ours().unwrap());
    }

    #[test]
    fn fault_158_a_drill_lies_beside_archive_and_server() {
        let folder = tempfile::tempdir().unwrap();
        let mut place = place(folder.path());
        assert!(place.check_apart().is_ok());
        for inside in ["archive", "archive/job.drill"] {
            place.path = folder.path().join(inside);
            assert!(place.check_apart().is_err(), "{inside}");
        }
        place.path = folder.path().to_path_buf();
        assert!(place.check_apart().is_err());
    }

    #[test]
    fn a_process_is_ended_by_its_program_and_its_place() {
        for (exe, is_one) in [
            ("/usr/lib/postgresql/15/bin/postgres", true),
            ("/usr/lib/postgresql/15/bin/postgres (deleted)", true),
            ("/opt/bin/pg_amcheck", true),
            ("/usr/bin/bash", false),
            ("/usr/bin/psql", false),
        ] {
            assert_eq!(is_program(Path::new(exe)), is_one, "{exe}");
        }
    }
}
