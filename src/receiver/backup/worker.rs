//! The blocking thread behind one connection of a backup.
//! Never talks to the socket, and holds no more than the blocks that wait for it. Invariant: when it
//! fails or panics the whole backup is over, and its client is told in words.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use walmgr_protocol::compress::Unpacker;
use walmgr_protocol::limits::{BACKUP_PATHS_MAX, BLOCKS_IN_FLIGHT, CONFIG_FILES_MAX};
use walmgr_protocol::message::backup::{FileDigest, FileDone, Finish, Join, Part, PartName};
use walmgr_protocol::message::{Data, Error, ErrorCode};
use walmgr_protocol::names::RelativePath;
use walmgr_protocol::session::backup::Request;

use super::running::{Place, Reports, Running};
use super::{Report, Resumed, finish, report};
use crate::receiver::refusal;
use crate::receiver::server::Daemon;
use crate::store::sets::SealedFile;

/// What the connection asks of its worker.
pub enum Job {
    /// Say what is held of these.
    LookUp(Vec<RelativePath>),
    /// Unpack this block and take it into the set.
    Write(Data),
    /// See that the stream's tar came to its end too.
    EndStream,
    /// A part begins.
    BeginPart(Part),
    /// Append this block to it.
    WritePart(Data),
    /// Seal the set.
    Finish(Finish),
}

/// The connection's end of a worker.
pub struct Worker {
    jobs: mpsc::Sender<Job>,
}

impl Worker {
    /// Decides about the request and then does what comes. Dropping the value ends it; what it had
    /// taken of a file stays, for a stream that comes back.
    pub fn start(
        daemon: Arc<Daemon>,
        thread: OwnedSemaphorePermit,
        request: Request,
        reports: Reports,
    ) -> Worker {
        let (jobs, inbox) = mpsc::channel(BLOCKS_IN_FLIGHT);
        tokio::task::spawn_blocking(move || {
            let _thread = thread;
            let working = || work(&daemon, request, inbox, &reports);
            let ended = catch_unwind(AssertUnwindSafe(working)).unwrap_or_else(|_| Err(panicked()));
            if let Err(error) = ended {
                tracing::warn!("a connection of a backup ends: {}", error.message);
                daemon.check_health();
                report(&reports, Report::Failed(error));
            }
        });
        Worker { jobs }
    }

    /// Hands over a job, waiting while the disk is behind. A worker that failed takes none; its
    /// report is on the way.
    pub async fn give(&self, job: Job) {
        let _ = self.jobs.send(job).await;
    }
}

type Jobs = mpsc::Receiver<Job>;

fn work(daemon: &Daemon, request: Request, jobs: Jobs, reports: &Reports) -> Result<(), Error> {
    let running = match request {
        Request::Begin(begin) => {
            let running = daemon.backups.begin(&begin)?;
            tracing::info!("a backup begins: {}", running.holder());
            running
        }
        Request::Resume(token) => match daemon.backups.resume(token)? {
            Resumed::Running(running) => {
                tracing::info!("the backup of {} goes on", running.holder());
                running
            }
            Resumed::Sealed(set, facts) => {
                report(reports, Report::Sealed(set, facts));
                return Ok(());
            }
        },
        Request::Join(join) => {
            let running = daemon.backups.find(join.token)?;
            return over_on_failure(&running, || stream(&running, join, jobs, reports));
        }
    };
    over_on_failure(&running, || control(daemon, &running, jobs, reports))
}

/// A failure of one connection's work, a panic included, is the end of the backup.
fn over_on_failure(
    running: &Running,
    work: impl FnOnce() -> Result<(), Error>,
) -> Result<(), Error> {
    let ended = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(panicked()));
    ended.inspect_err(|error| {
        running.end(error);
    })
}

fn panicked() -> Error {
    Error::channel(
        ErrorCode::Internal,
        "the receiver failed on this backup",
        "look at its log on the standby",
    )
}

fn stream(
    running: &Arc<Running>,
    join: Join,
    mut jobs: Jobs,
    reports: &Reports,
) -> Result<(), Error> {
    running.let_drain(join.stream);
    let attachment = running.attach(Place::Stream(join.stream), reports)?;
    // The thread of the connection before keeps what it has of a file when it ends.
    let at_work = running.stream_at_work(join.stream);
    let _at_work = at_work.lock().unwrap_or_else(PoisonError::into_inner);
    let mut writer = running.open_stream()?;
    report(reports, Report::Admitted(attachment));
    let mut unpacker = Unpacker::default();
    while let Some(job) = jobs.blocking_recv() {
        match job {
            Job::LookUp(paths) => {
                report(reports, Report::LookedUp(running.held(&paths)?));
            }
            Job::Write(data) => {
                let raw = unpack(&mut unpacker, &data)?;
                let files = writer.write(raw).map_err(|error| refusal::of_set(&error))?;
                for files in files.chunks(usize::from(BACKUP_PATHS_MAX)) {
                    let done = files.iter().map(done).collect();
                    report(reports, Report::FilesDone(done));
                }
            }
            Job::EndStream => {
                writer.finish().map_err(|error| refusal::of_set(&error))?;
                report(reports, Report::StreamTaken);
                return Ok(());
            }
            Job::BeginPart(_) | Job::WritePart(_) | Job::Finish(_) => return Err(out_of_place()),
        }
    }
    Ok(())
}

fn control(
    daemon: &Daemon,
    running: &Arc<Running>,
    mut jobs: Jobs,
    reports: &Reports,
) -> Result<(), Error> {
    let attachment = running.attach(Place::Control, reports)?;
    report(reports, Report::Admitted(attachment));
    let mut parts = finish::Received::default();
    let mut unpacker = Unpacker::default();
    while let Some(job) = jobs.blocking_recv() {
        match job {
            Job::BeginPart(part) => {
                let configs = (parts.0.iter()).filter(|(part, _)| is_config(part)).count();
                if is_config(&part) && configs >= CONFIG_FILES_MAX {
                    let text = format!("more than {CONFIG_FILES_MAX} configuration files");
                    return Err(Error::channel(ErrorCode::TooLarge, text, ""));
                }
                parts.0.push((part, Vec::new()));
            }
            Job::WritePart(data) => {
                let raw = unpack(&mut unpacker, &data)?;
                let (_, content) = parts.0.last_mut().ok_or_else(out_of_place)?;
                content.extend_from_slice(raw);
            }
            Job::Finish(asked) => {
                let (set, facts) = finish::finish(daemon, running, &parts, &asked)?;
                report(reports, Report::Sealed(set, facts));
                return Ok(());
            }
            Job::LookUp(_) | Job::Write(_) | Job::EndStream => return Err(out_of_place()),
        }
    }
    Ok(())
}

fn is_config(part: &Part) -> bool {
    matches!(part.name, PartName::Config(_))
}

fn unpack<'a>(unpacker: &'a mut Unpacker, data: &'a Data) -> Result<&'a [u8], Error> {
    unpacker
        .unpack(&data.bytes, data.raw_bytes, data.zstd)
        .map_err(|error| Error::channel(ErrorCode::Malformed, error.to_string(), ""))
}

fn done(file: &SealedFile) -> FileDone {
    FileDone {
        path: file.path.clone(),
        digest: FileDigest {
            len: file.digest.len,
            crc32c: file.digest.crc32c,
        },
    }
}

/// The session lets none of them through.
fn out_of_place() -> Error {
    Error::channel(
        ErrorCode::Misbehaved,
        "a message out of place in a backup",
        "",
    )
}
