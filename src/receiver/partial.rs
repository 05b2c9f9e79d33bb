//! The partial flow from the receiver's side: one stream of records, on a blocking thread.
//! Never talks to the socket. Invariant: one client writes the stream at a time, and appends that
//! wait together are synced together.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;
use walmgr_protocol::compress::Unpacker;
use walmgr_protocol::limits::BLOCKS_IN_FLIGHT;
use walmgr_protocol::message::partial::{Append, At, Begin, Begun, Open};
use walmgr_protocol::message::{Error, ErrorCode};

use crate::receiver::refusal;
use crate::receiver::server::Daemon;
use crate::store::{DurableRecords, PartialStream, StoreError};

/// The one place a writer of the partial stream can have.
#[derive(Default)]
pub struct Seat(Mutex<Option<String>>);

/// Who has the place; it is free again when this is dropped.
struct Seated {
    daemon: Arc<Daemon>,
}

impl Seat {
    /// Who has it.
    pub fn taken_by(&self) -> Option<String> {
        self.holder().clone()
    }

    fn take(daemon: &Arc<Daemon>, who: &str) -> Result<Seated, Error> {
        let mut holder = daemon.partial_writer.holder();
        if let Some(holder) = &*holder {
            return Err(Error::channel(
                ErrorCode::WriterActive,
                format!("{holder} ships the same WAL record by record already"),
                "one syncdaemon is enough; if its host died, it is given up after 30 s",
            ));
        }
        *holder = Some(who.to_owned());
        Ok(Seated {
            daemon: Arc::clone(daemon),
        })
    }

    fn holder(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        *self.daemon.partial_writer.holder() = None;
    }
}

/// What the connection asks of the stream.
pub enum Job {
    /// Take it.
    Begin(Begin),
    /// Go on with this segment.
    Open(Open),
    /// From its beginning, comparing.
    Rewrite,
    /// Check and write this, and make it durable.
    Append(Append),
}

/// What the stream tells its connection.
pub enum Report {
    /// The answer to [`Job::Begin`].
    Begun(Begun),
    /// The answer to [`Job::Open`].
    Opened(At),
    /// Everything appended so far is durable.
    Durable(DurableRecords),
    /// It failed; jobs up to the next `Begin` or `Open` are dropped.
    Failed(Error),
}

/// The connection's end of the stream.
pub struct Worker {
    jobs: mpsc::Sender<Job>,
}

impl Worker {
    /// Starts the thread; dropping the returned value ends it once its last job is done.
    pub fn start(daemon: Arc<Daemon>, who: String, reports: mpsc::Sender<Report>) -> Worker {
        let (jobs, inbox) = mpsc::channel(BLOCKS_IN_FLIGHT);
        tokio::task::spawn_blocking(move || {
            let mut stream = Stream {
                daemon,
                who,
                unpacker: Unpacker::default(),
                begun: None,
                failed: false,
            };
            stream.work(inbox, &|report| reports.blocking_send(report).is_ok());
        });
        Worker { jobs }
    }

    /// Hands over a job, waiting while the disk is behind.
    pub async fn give(&self, job: Job) {
        // A thread that panicked takes none; the connection's reports then end too.
        let _ = self.jobs.send(job).await;
    }
}

struct Stream {
    daemon: Arc<Daemon>,
    who: String,
    unpacker: Unpacker,
    begun: Option<(PartialStream, Seated)>,
    failed: bool,
}

impl Stream {
    fn work(&mut self, mut jobs: mpsc::Receiver<Job>, report: &dyn Fn(Report) -> bool) {
        let mut next = None;
        while let Some(job) = next.take().or_else(|| jobs.blocking_recv()) {
            let dropped = self.failed && matches!(job, Job::Append(_) | Job::Rewrite);
            let done = match job {
                _ if dropped => continue,
                Job::Begin(begin) => self.begin(&begin).map(Report::Begun).map(Some),
                Job::Open(open) => self.open(&open).map(Report::Opened).map(Some),
                Job::Rewrite => self.rewrite().map(|()| None),
                Job::Append(append) => {
                    let (appended, behind) = self.append_all(append, &mut jobs);
                    next = behind;
                    appended.map(Report::Durable).map(Some)
                }
            };
            self.failed = done.is_err();
            let said = match done {
                Ok(None) => true,
                Ok(Some(done)) => report(done),
                Err(error) => {
                    tracing::warn!(
                        "the partial stream of {} stops: {}",
                        self.who,
                        error.message
                    );
                    // Here, because the connection that would hear of it may be gone.
                    self.daemon.check_health();
                    report(Report::Failed(error))
                }
            };
            if !said {
                return;
            }
        }
    }

    fn begin(&mut self, begin: &Begin) -> Result<Begun, Error> {
        self.begun = None;
        let seated = Seat::take(&self.daemon, &self.who)?;
        let (stream, standing) = (self.daemon.archive)
            .partial_stream(begin.timeline)
            .map_err(of)?;
        self.begun = Some((stream, seated));
        tracing::info!(
            "{} ships timeline {} record by record",
            self.who,
            begin.timeline
        );
        Ok(Begun {
            newest_finished: standing.newest_finished,
            oldest_partial: standing.oldest_partial,
            newest_partial: standing.newest_partial,
        })
    }

    fn open(&mut self, open: &Open) -> Result<At, Error> {
        self.stream()?.open(open).map_err(of)
    }

    fn rewrite(&mut self) -> Result<(), Error> {
        self.stream()?.rewrite().map_err(of)
    }

    /// Appends this and what waits behind it, and syncs once. Also returns the job that came
    /// behind them.
    fn append_all(
        &mut self,
        first: Append,
        jobs: &mut mpsc::Receiver<Job>,
    ) -> (Result<DurableRecords, Error>, Option<Job>) {
        let mut behind = None;
        let mut appended = self.append(&first);
        for _ in 1..BLOCKS_IN_FLIGHT {
            match jobs.try_recv() {
                Ok(Job::Append(append)) => {
                    appended = appended.and_then(|()| self.append(&append));
                }
                Ok(other) => {
                    behind = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        let synced = appended.and_then(|()| self.stream()?.sync().map_err(of));
        (synced, behind)
    }

    fn append(&mut self, append: &Append) -> Result<(), Error> {
        let raw = (self.unpacker)
            .unpack(&append.bytes, append.raw_bytes, append.zstd)
            .map_err(|error| Error::channel(ErrorCode::Malformed, error.to_string(), ""))?;
        let (stream, _) = self.begun.as_mut().ok_or_else(not_begun)?;
        stream.append(append.offset, append.end, raw).map_err(of)
    }

    fn stream(&mut self) -> Result<&mut PartialStream, Error> {
        let (stream, _) = self.begun.as_mut().ok_or_else(not_begun)?;
        Ok(stream)
    }
}

/// The session lets nothing through before the stream was granted.
fn not_begun() -> Error {
    Error::channel(ErrorCode::Internal, "no partial stream was begun", "")
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "it stands where errors are mapped"
)]
fn of(error: StoreError) -> Error {
    refusal::of(&error)
}
