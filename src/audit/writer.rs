//! The thread that writes the lines of one audit log.
//! Never stops the process, and never writes into what is no file of its own. Invariant: whatever the disk does, whoever
//! passes a line on goes on at once, and what was not written is told of with its number.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

use rustix::fs::{Access, AtFlags, CWD, OFlags};

use super::{Actor, AuditEvent, AuditOutcome, line_of, loss};
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;

/// Lines that wait for a slow disk; a line has less than 8 KiB, so this is at most 4 MiB.
const WAITING_LINES_MAX: usize = 512;

/// How often it is said that lines are lost.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

/// How long the end of a log waits for its last lines.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// What the thread is asked for.
pub(super) enum WriterOrder {
    /// To write this, and if somebody waits for it to sync it.
    Line(String, Option<Sender<()>>),
    /// To open the file again by its name.
    Reopen,
    /// To say when everything before is written.
    Flush(Sender<()>),
}

/// The way to the thread, which ends with this.
pub(super) struct AuditWriter {
    /// What the thread does next.
    pub(super) orders: SyncSender<WriterOrder>,
    /// Lines that are not in the file, nor told of there, nor noted.
    pub(super) lost: Arc<AtomicU64>,
}

impl AuditWriter {
    /// Starts the thread; the file is opened by its first line.
    pub(super) fn start(path: &Path, losses: Option<&Path>) -> AuditWriter {
        let (orders, inbox) = sync_channel(WAITING_LINES_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let work = AuditFile {
            path: path.to_path_buf(),
            losses: losses.map(Path::to_path_buf),
            file: None,
            lost: Arc::clone(&lost),
            complained: None,
        };
        let named = std::thread::Builder::new().name("audit".to_owned());
        // Without a thread every line counts as lost, and archiving goes on.
        if let Err(error) = named.spawn(move || work.run(&inbox)) {
            tracing::warn!("audit_log {}: start its thread: {error}", path.display());
        }
        AuditWriter { orders, lost }
    }

    /// Opens the file again behind the lines before.
    pub(super) fn reopen(&self) {
        // Where so many lines wait the disk hangs, and the file is opened again when it does not.
        let _ = self.orders.try_send(WriterOrder::Reopen);
    }
}

impl Drop for AuditWriter {
    fn drop(&mut self) {
        let (written, told) = channel();
        if self.orders.try_send(WriterOrder::Flush(written)).is_ok() {
            let _ = told.recv_timeout(END_PATIENCE);
        }
    }
}

/// The file as its thread has it.
struct AuditFile {
    path: PathBuf,
    /// Where it is noted what is lost.
    losses: Option<PathBuf>,
    file: Option<File>,
    lost: Arc<AtomicU64>,
    complained: Option<Instant>,
}

impl AuditFile {
    fn run(mut self, inbox: &Receiver<WriterOrder>) {
        while let Ok(order) = inbox.recv() {
            match order {
                WriterOrder::Line(line, written) => {
                    if let Err(error) = self.write(&line, written.is_some()) {
                        self.lost.fetch_add(1, Ordering::Relaxed);
                        self.complain(&error);
                        self.note_losses(&error);
                        // It is not gone altogether.
                        tracing::info!("audit: {}", line.trim_end());
                    }
                    // Whoever waits may have given up.
                    let _ = written.map(|written| written.send(()));
                }
                WriterOrder::Reopen => self.file = None,
                WriterOrder::Flush(written) => {
                    let _ = written.send(());
                }
            }
        }
    }

    fn write(&mut self, line: &str, durably: bool) -> Result<()> {
        let lost = Arc::clone(&self.lost);
        let (path, losses) = (self.path.clone(), self.losses.clone());
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(open(&path)?),
        };
        let write = |file: &mut File, line: &str| {
            append(file, line).at(Kind::Retry, "write audit_log", &path)
        };
        let mut tell = |lost: u64| {
            let event = AuditEvent::LinesLost { lost };
            let failed = AuditOutcome::Failed("see the log");
            write(file, &line_of("", &Actor::Receiver, &failed, &event))
        };
        // What this process could not even note, and what was noted by whichever.
        let unnoted = lost.load(Ordering::Relaxed);
        if unnoted > 0 {
            tell(unnoted)?;
            lost.fetch_sub(unnoted, Ordering::Relaxed);
        }
        if let Some(losses) = &losses {
            loss::tell(losses, tell)?;
        }
        write(file, line)?;
        match durably {
            true => files::sync_content(file).at(Kind::Retry, "sync audit_log", &path),
            false => Ok(()),
        }
    }

    /// Notes what is lost for those who look, and for the process that writes the next line.
    fn note_losses(&self, error: &CommandError) {
        let Some(losses) = &self.losses else { return };
        let lost = self.lost.load(Ordering::Relaxed);
        match loss::add(losses, lost, &error.to_string()) {
            Ok(()) => drop(self.lost.fetch_sub(lost, Ordering::Relaxed)),
            Err(error) => tracing::debug!("{}: {error}", losses.display()),
        }
    }

    fn complain(&mut self, error: &CommandError) {
        if self
            .complained
            .is_some_and(|last| last.elapsed() < COMPLAINT_INTERVAL)
        {
            return;
        }
        self.complained = Some(Instant::now());
        tracing::warn!("lines of the audit log are lost, and everything else goes on: {error}");
    }
}

/// One write. A file that ends amid a line gets a new line before it; of several processes that see the same two
/// may, and an empty line means nothing.
fn append(file: &mut File, line: &str) -> io::Result<()> {
    let len = file.metadata()?.len();
    let mut last = [b'\n'];
    if let Some(at) = len.checked_sub(1) {
        file.read_at(&mut last, at)?;
    }
    let text = match last {
        [b'\n'] => line.to_owned(),
        _ => format!("\n{line}"),
    };
    match file.write(text.as_bytes())? {
        count if count == text.len() => Ok(()),
        _ => Err(io::ErrorKind::StorageFull.into()),
    }
}

/// Refuses what is there and is no file: whoever can plant a link could make walmgr write into another file, and a
/// pipe would hold the writer up.
pub(super) fn refuse_foreign(path: &Path) -> Result<()> {
    let what = match path.symlink_metadata() {
        Ok(found) if found.is_symlink() => "a symlink",
        Ok(found) if found.is_dir() => "a directory",
        Ok(found) if !found.is_file() => "no regular file",
        _ => return Ok(()),
    };
    let refused = CommandError::config(format!("audit_log {} is {what}", path.display()));
    Err(refused.hint("name a file, or one that does not exist yet"))
}

/// Why a line would be lost now, as far as that can be seen without writing one; nothing else is made or changed.
pub(super) fn obstacle(path: &Path) -> Option<String> {
    if let Err(error) = refuse_foreign(path) {
        return Some(error.to_string());
    }
    let folder = path.parent().unwrap_or(path);
    let (at, needed) = match path.exists() {
        true => (path, Access::READ_OK | Access::WRITE_OK),
        false => (folder, Access::WRITE_OK | Access::EXEC_OK),
    };
    if let Err(error) = rustix::fs::accessat(CWD, at, needed, AtFlags::EACCESS) {
        return Some(format!("write audit_log {}: {error}", path.display()));
    }
    let room = rustix::fs::statvfs(at).ok()?;
    // The rest of its last block may take some lines yet.
    (room.f_bavail == 0).then(|| format!("no space is left at {}", folder.display()))
}

/// Opens the file for append, and makes it if it is absent.
fn open(path: &Path) -> Result<File> {
    refuse_foreign(path)?;
    // It may be another one by now.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(i32::try_from(flags.bits()).unwrap_or(0))
        .open(path)
        .at_setting("open audit_log", path)?;
    let found = file
        .metadata()
        .at(Kind::Config, "examine audit_log", path)?;
    match found.is_file() {
        true => Ok(file),
        false => Err(CommandError::config(format!(
            "audit_log {} is no regular file",
            path.display()
        ))),
    }
}
