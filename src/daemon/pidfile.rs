//! The pidfile: its lock says whether the daemon runs, its text says which process that is.
//! Never believes the text of a file that nobody holds. Invariant: a signal goes only to a process
//! that has the locked file open, so a number left over from a crash reaches nobody.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::DaemonControl;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use crate::output::Waiting;
use crate::patience::process::has_ended_within;

/// How often a wait for a daemon's end looks at the clock.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How often a wait looks again.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// `signal_running` holds a lock for a few microseconds; a start has to outlive that.
const LOCK_PATIENCE: Duration = Duration::from_millis(300);

/// Between its lock and its text a starting daemon needs less than this.
const TEXT_PATIENCE: Duration = Duration::from_secs(2);

/// Longest text that is read: a process id, and a path of Linux' longest. The file may be anything.
const TEXT_BYTES_MAX: u64 = 32 + 4_096 + 16;

/// How the second line begins, where the process serves the clusters of a folder.
const HOST_WORD: &str = "host ";

/// The lock of a running daemon. Dropping it removes the file and ends the lock.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    file: File,
}

impl PidFile {
    /// Locks `path` and writes this process's id into it. From then on signals may arrive, so
    /// [`super::Notices::listen`] comes first.
    ///
    /// Fails with [`Kind::AlreadyRunning`] while another process holds the lock. What a crashed
    /// daemon left behind is taken over.
    pub fn acquire(path: &Path) -> Result<Self> {
        Self::acquire_with(path, &own_id())
    }

    /// Locks the pidfile of one cluster of many, and writes the path of the host's file behind this process's id.
    /// Commands that are given the cluster's file learn from it which host's file the process serves.
    pub fn acquire_of_host(path: &Path, host_ini: &Path) -> Result<Self> {
        let mut text = own_id();
        text.extend_from_slice(HOST_WORD.as_bytes());
        text.extend_from_slice(host_ini.as_os_str().as_encoded_bytes());
        text.push(b'\n');
        Self::acquire_with(path, &text)
    }

    fn acquire_with(path: &Path, text: &[u8]) -> Result<Self> {
        loop {
            let mut file = open(
                OpenOptions::new().write(true).create(true).mode(0o644),
                path,
            )?;
            let is_taken = files::lock_within(LOCK_PATIENCE, || files::try_lock_open(&file));
            if !is_taken.at(Kind::Config, "lock pidfile", path)? {
                return Err(already_running(path, &mut file));
            }
            // Someone who ended in between has removed the file: its name is free, or another's.
            if leads_to(path, &file) {
                write_text(&mut file, text).at_setting("write pidfile", path)?;
                return Ok(PidFile {
                    path: path.to_path_buf(),
                    file,
                });
            }
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Under the lock, so the name cannot be a newer daemon's file.
        if leads_to(&self.path, &self.file) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Whether a daemon holds the lock of `path`.
pub(crate) fn is_running(path: &Path) -> Result<bool> {
    Ok(holder(path)?.is_some())
}

/// The ini file of the host whose process holds the lock of `path` for one of its clusters; `None` if nobody does, or a
/// process that serves this cluster alone.
pub(crate) fn serving_host(path: &Path) -> Result<Option<PathBuf>> {
    Ok(holder(path)?.as_deref().and_then(host_ini))
}

/// Sends what `control` stands for to the daemon that holds `path`; on `Stop` and `Kill` waits up
/// to `end_timeout` for its end. Answers with the id of the process.
///
/// Nobody holding the lock is a failure, as is a daemon that has not ended in time.
pub fn signal_running(path: &Path, control: DaemonControl, end_timeout: Duration) -> Result<i32> {
    let (pid, process) = running(path)?;
    let signal = match control {
        DaemonControl::Reload => Signal::HUP,
        DaemonControl::Stop => Signal::INT,
        DaemonControl::Kill => Signal::TERM,
    };
    pidfd_send_signal(&process, signal).map_err(|error| match error {
        Errno::SRCH => not_running(path),
        error => CommandError::retry(format!("send {control} to process {pid}"))
            .because(io::Error::from(error)),
    })?;
    if control != DaemonControl::Reload {
        wait_for_end(&process, pid, end_timeout)?;
    }
    Ok(pid)
}

/// Waits for the process itself: a daemon gives its lock up a moment before it ends.
fn wait_for_end(process: &OwnedFd, pid: i32, timeout: Duration) -> Result<()> {
    let (deadline, mut waiting) = (Instant::now() + timeout, Waiting::begin());
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let has_ended = has_ended_within(process, left.min(LOOK_INTERVAL));
        let doing = || CommandError::retry(format!("wait for the end of process {pid}"));
        match has_ended.map_err(|error| doing().because(error))? {
            true => return Ok(()),
            false if left > LOOK_INTERVAL => {
                if waiting.is_due() {
                    tracing::info!(
                        "waiting for process {pid} to end; it may be finishing an upload"
                    );
                }
            }
            false => {
                return Err(CommandError::retry(format!(
                    "process {pid} is still running {} s after the signal",
                    timeout.as_secs()
                ))
                .hint("it may be finishing an upload; see its log"));
            }
        }
    }
}

/// The process that holds the lock. Its id is checked after the handle is open, so that the handle
/// cannot belong to a process that got the number later.
fn running(path: &Path) -> Result<(i32, OwnedFd)> {
    let patience_ends = Instant::now() + TEXT_PATIENCE;
    loop {
        let text = holder(path)?.ok_or_else(|| not_running(path))?;
        if let Some((id, pid)) = process_id(&text)
            && let Ok(process) = pidfd_open(pid, PidfdFlags::empty())
            && has_open(id, path)
        {
            return Ok((id, process));
        }
        if Instant::now() >= patience_ends {
            return Err(CommandError::retry(format!(
                "pidfile {} is locked, but not by the process it names ({})",
                path.display(),
                first_line(&text)
            ))
            .hint(format!(
                "find the process that holds it: fuser {}",
                path.display()
            )));
        }
        sleep(POLL_INTERVAL);
    }
}

/// The text of the file if someone holds its lock.
fn holder(path: &Path) -> Result<Option<String>> {
    if !path.try_exists().at(Kind::Config, "find pidfile", path)? {
        return Ok(None);
    }
    let file = match open(&mut OpenOptions::new(), path) {
        Ok(file) => file,
        // It ended between the two looks.
        Err(_) if !path.exists() => return Ok(None),
        Err(error) => return Err(error),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => Ok(Some(text_of(&file).at(
            Kind::Config,
            "read pidfile",
            path,
        )?)),
        Err(TryLockError::Error(error)) => Err(error).at(Kind::Config, "lock pidfile", path),
    }
}

/// A symlink is refused: the text would replace what it leads to. Anything but a file, too.
fn open(options: &mut OpenOptions, path: &Path) -> Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = options
        .read(true)
        .custom_flags(i32::try_from(flags.bits()).unwrap_or(0))
        .open(path);
    let file = match opened {
        Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
            return Err(
                CommandError::config(format!("pidfile {} is a symlink", path.display()))
                    .hint("name the file that the link points to"),
            );
        }
        other => other.at_setting("open pidfile", path)?,
    };
    if file
        .metadata()
        .at(Kind::Config, "examine pidfile", path)?
        .is_file()
    {
        Ok(file)
    } else {
        Err(CommandError::config(format!(
            "pidfile {} is not a file",
            path.display()
        )))
    }
}

fn leads_to(path: &Path, file: &File) -> bool {
    match (std::fs::symlink_metadata(path), file.metadata()) {
        (Ok(named), Ok(held)) => (named.dev(), named.ino()) == (held.dev(), held.ino()),
        _ => false,
    }
}

fn own_id() -> Vec<u8> {
    format!("{}\n", std::process::id()).into_bytes()
}

fn write_text(file: &mut File, text: &[u8]) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    // At once, so that a reader sees the second line wherever it sees the first one whole.
    file.write_all(text)
}

fn text_of(file: &File) -> io::Result<String> {
    let bytes = files::read_open_at_most(file, TEXT_BYTES_MAX)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The first line, which is all of most.
fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default().trim()
}

/// The host's ini file that the second line names.
fn host_ini(text: &str) -> Option<PathBuf> {
    let named = text.lines().nth(1)?.strip_prefix(HOST_WORD)?;
    Some(PathBuf::from(named)).filter(|path| path.is_absolute())
}

fn process_id(text: &str) -> Option<(i32, Pid)> {
    let id = first_line(text).parse().ok()?;
    Some((id, Pid::from_raw(id)?))
}

/// Whether that process has the file open; who may signal a process may also look.
fn has_open(id: i32, path: &Path) -> bool {
    let Ok(wanted) = std::fs::metadata(path) else {
        return false;
    };
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{id}/fd")) else {
        return false;
    };
    descriptors
        .flatten()
        .filter_map(|descriptor| std::fs::metadata(descriptor.path()).ok())
        .any(|open| (open.dev(), open.ino()) == (wanted.dev(), wanted.ino()))
}

fn already_running(path: &Path, file: &mut File) -> CommandError {
    let pid = text_of(file).unwrap_or_default();
    let hint = match host_ini(&pid) {
        Some(host) => format!(
            "the receiver of {} serves this cluster: keep the cluster's file in the folder of one host alone",
            host.display()
        ),
        None => "stop it with --stop".to_owned(),
    };
    let message = match process_id(&pid) {
        Some((id, _)) => format!(
            "already running as process {id} (pidfile {})",
            path.display()
        ),
        None => format!("already running (pidfile {} is locked)", path.display()),
    };
    CommandError::new(Kind::AlreadyRunning, message).hint(hint)
}

fn not_running(path: &Path) -> CommandError {
    CommandError::retry(format!(
        "not running: no process holds pidfile {}",
        path.display()
    ))
}

#[cfg(test)]
mod tests;
