//! A stream of records, on a worker of its own, or on the thread of its connection where that is quicker.
//! Never talks to the socket. Invariant: nothing is written without the lock, and appends that
//! wait together are synced together.
//!
//! A commit that waits for the standby waits for every change of threads too. So records that come alone, while the
//! worker has nothing to do and the disk is quick, are made durable by the thread that read them from the socket,
//! which says so itself. Everything else is the worker's: records that come in a row or are many, so that the socket is
//! read while the disk syncs, and all of them behind a sync that took longer than [`QUICK`], so that a connection still
//! answers while a disk does not. One that hangs all of a sudden keeps its connection waiting, and no other: the event
//! loop goes on with another thread. That connection then answers no ping and heeds no reload; its client gives it up,
//! and hears on the next that records wait for the disk. A stop of the receiver waits for it as long as for an upload.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use walmgr_protocol::compress::Unpacker;
use walmgr_protocol::limits::BLOCKS_IN_FLIGHT;
use walmgr_protocol::message::partial::{Append, At, Begun, Open, PartialBegin};
use walmgr_protocol::message::{Error, ErrorCode};
use walmgr_protocol::names::TimelineId;

use crate::receiver::cluster::ServedCluster;
use crate::receiver::cluster::writer_lock::{StreamWork, WriterGuard, not_begun};
use crate::receiver::peer::{AuditedPeer, PeerKey};
use crate::receiver::reports::RecordReport;
use crate::receiver::shares::NoShare;
use crate::receiver::worker::{self, AwaitedWork, FromWorker, Worker, WorkerReport};
use crate::receiver::{STREAMS_PER_PEER_MAX, refusal, wait_named};
use crate::store::{DurableRecords, PartialStream, StoreError};

/// What the connection asks of the stream.
pub(crate) enum RecordJob {
    /// Take it.
    Begin(PartialBegin),
    /// Go on with this segment.
    Open(Open),
    /// From its beginning, comparing.
    Rewrite,
    /// Check and write this, and make it durable.
    Append(Append),
}

/// How long appending and syncing may take for the next records to be done on the connection's thread. Two changes
/// of threads take some tens of microseconds: nothing beside a disk that is slower than this.
const QUICK: Duration = Duration::from_millis(2);

/// More bytes than these do not come alone: a commit has some hundreds.
const ALONE_BYTES_MAX: u32 = 32 << 10;

/// A stream of records and its worker; dropping it ends the worker once its last job is done.
pub(crate) struct StreamWorker {
    worker: Worker<RecordJob, RecordReport>,
    stream: Arc<Mutex<RecordStream>>,
    /// Jobs that it was given.
    given: u64,
    /// Reports of it that were dealt with.
    heard: u64,
}

impl StreamWorker {
    /// Starts the worker.
    pub(crate) fn start(
        served: ServedCluster,
        key: &PeerKey,
        (who, peer): (String, AuditedPeer),
        say: impl Fn(FromWorker<RecordReport>) -> bool + Send + Sync + 'static,
    ) -> Result<StreamWorker, Error> {
        let place = served.cluster.streams.take(key).map_err(|none| {
            let own = format!("{STREAMS_PER_PEER_MAX} connections of this peer ask for the stream");
            let (code, hint) = match none {
                NoShare::OfCluster => (ErrorCode::WriterActive, "run one syncdaemon"),
                NoShare::OfAll(_) => (ErrorCode::Busy, "walmgr tries again"),
            };
            Error::channel(code, none.text("streams of records", own), hint)
        })?;
        let workforce = served.store.workforce.clone();
        let stream = Arc::new(Mutex::new(RecordStream {
            served,
            who,
            peer,
            unpacker: Unpacker::default(),
            begun: None,
            failed: false,
            done: 0,
            said: 0,
            quick: wait_named("WALMGR_QUICK_SYNC_MS", QUICK),
            is_quick: false,
        }));
        let at_work = Arc::clone(&stream);
        let worker = Worker::start(
            &workforce,
            AwaitedWork::Stream,
            BLOCKS_IN_FLIGHT,
            say,
            move |mut jobs, say| {
                let _place = place;
                let mut next = None;
                while let Some(job) = next.take().or_else(|| jobs.blocking_recv()) {
                    let (report, behind) = locked(&at_work).perform(job, || jobs.try_recv().ok());
                    next = behind;
                    if report.is_some_and(|report| !say(report)) {
                        break;
                    }
                }
                Ok(())
            },
        );
        Ok(StreamWorker {
            worker,
            stream,
            given: 0,
            heard: 0,
        })
    }

    /// Whether a report is of this one; it counts as dealt with.
    pub(crate) fn hears(&mut self, said: &FromWorker<RecordReport>) -> bool {
        let is_own = self.worker.id() == said.worker;
        self.heard += u64::from(is_own);
        is_own
    }

    /// Has a job done. Returns its report if it was done at once; `is_last` says that no other was read yet.
    pub(crate) async fn give(&mut self, job: RecordJob, is_last: bool) -> Option<RecordReport> {
        self.given += 1;
        let stream = Arc::clone(&self.stream);
        if is_last
            && matches!(&job, RecordJob::Append(append) if append.raw_bytes <= ALONE_BYTES_MAX)
            && let Some(mut stream) = self.at_hand(&stream)
        {
            let done = tokio::task::block_in_place(|| {
                worker::contained("append", || stream.perform(job, || None).0)
            });
            let report = done.unwrap_or_else(|error| Some(RecordReport::failed(error)));
            self.heard += u64::from(report.is_some());
            return report;
        }
        self.worker.give(job).await;
        None
    }

    /// The stream, if the disk is quick, the worker has done all that it was given before, and no report of it is on its
    /// way.
    fn at_hand<'a>(&self, stream: &'a Mutex<RecordStream>) -> Option<MutexGuard<'a, RecordStream>> {
        // Of a worker that panicked nobody else takes over what it left.
        let stream = stream.try_lock().ok()?;
        let is_free = stream.done + 1 == self.given && stream.said == self.heard;
        (stream.is_quick && is_free).then_some(stream)
    }
}

/// Only its worker waits for it, which ends when it panics.
fn locked(stream: &Mutex<RecordStream>) -> MutexGuard<'_, RecordStream> {
    stream.lock().unwrap_or_else(PoisonError::into_inner)
}

struct RecordStream {
    served: ServedCluster,
    who: String,
    peer: AuditedPeer,
    unpacker: Unpacker,
    begun: Option<(PartialStream, WriterGuard)>,
    failed: bool,
    /// Jobs that were done, or dropped behind one that failed.
    done: u64,
    /// What was said of them.
    said: u64,
    /// [`QUICK`].
    quick: Duration,
    /// Whether the last append was durable within that.
    is_quick: bool,
}

impl RecordStream {
    /// Does a job, together with those that wait behind it where that is one thing to the disk. Returns what there is
    /// to say of it, and the job that came behind them.
    fn perform(
        &mut self,
        job: RecordJob,
        more: impl FnMut() -> Option<RecordJob>,
    ) -> (Option<RecordReport>, Option<RecordJob>) {
        self.done += 1;
        if self.failed && matches!(job, RecordJob::Append(_) | RecordJob::Rewrite) {
            return (None, None);
        }
        let lost = match job {
            RecordJob::Begin(_) => None,
            _ => self.lock(StreamWork::Begins).err(),
        };
        let mut behind = None;
        let done = match job {
            _ if lost.is_some() => Err(lost.unwrap_or_else(not_begun)),
            RecordJob::Begin(begin) => self.begin(&begin).map(RecordReport::Begun).map(Some),
            RecordJob::Open(open) => self.open(&open).map(RecordReport::Opened).map(Some),
            RecordJob::Rewrite => self.rewrite().map(|()| None),
            RecordJob::Append(append) => {
                let began = Instant::now();
                let appended;
                (appended, behind) = self.append_all(append, more);
                self.is_quick = began.elapsed() < self.quick;
                appended.map(RecordReport::Durable).map(Some)
            }
        };
        self.failed = done.is_err();
        let work = match &done {
            Ok(Some(RecordReport::Durable(records))) => {
                self.served.cluster.meter.wal_is_durable();
                if let Some((_, lock)) = &self.begun {
                    lock.shipped(records.segment());
                }
                StreamWork::Shipped
            }
            _ => StreamWork::Ends,
        };
        if self.begun.is_some() && self.lock(work).is_err() {
            // The archive is another's to write to.
            self.begun = None;
        }
        let report = done.unwrap_or_else(|error| {
            self.log_failure(&error);
            Some(RecordReport::Failed(error))
        });
        self.said += u64::from(report.is_some());
        (report, behind)
    }

    /// Here, because the connection that would hear of it may be gone.
    fn log_failure(&self, error: &Error) {
        tracing::warn!(
            "the partial stream of {} stops: {}",
            self.who,
            error.message
        );
        if matches!(error.code, ErrorCode::Diverged | ErrorCode::ForeignFile) {
            let cluster = &self.served.cluster;
            let file = "a segment in progress";
            (cluster.rewrites).refused(&cluster.audit, &self.peer, file, &error.message);
        }
        self.served.store.check_health();
    }

    fn begin(&mut self, begin: &PartialBegin) -> Result<Begun, Error> {
        self.begun = None;
        let (stream, standing) = (self.served.store.archive)
            .partial_stream(begin.timeline)
            .map_err(of)?;
        // A newer timeline is a claim only where the archive follows it: a history can be made up.
        let claim = match standing.is_settled {
            true => begin.timeline,
            false => TimelineId::FIRST,
        };
        let lock = (self.served.cluster.writer).take(&self.who, claim, Instant::now())?;
        self.begun = Some((stream, lock));
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

    /// A job begins or ends; an error when the lock was lost meanwhile.
    fn lock(&self, work: StreamWork) -> Result<(), Error> {
        let (_, lock) = self.begun.as_ref().ok_or_else(not_begun)?;
        lock.work(work, Instant::now())
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
        mut more: impl FnMut() -> Option<RecordJob>,
    ) -> (Result<DurableRecords, Error>, Option<RecordJob>) {
        let mut behind = None;
        let mut appended = self.append(&first);
        for _ in 1..BLOCKS_IN_FLIGHT {
            match more() {
                Some(RecordJob::Append(append)) => {
                    self.done += 1;
                    appended = appended.and_then(|()| self.append(&append));
                }
                other => {
                    behind = other;
                    break;
                }
            }
        }
        let synced = appended.and_then(|()| self.stream()?.sync().map_err(of));
        (synced, behind)
    }

    fn append(&mut self, append: &Append) -> Result<(), Error> {
        let raw = (self.unpacker)
            .unpack(&append.bytes, append.raw_bytes, append.zstd)
            .map_err(|error| Error::channel(ErrorCode::Malformed, error.to_string(), ""))?;
        let meter = &self.served.cluster.meter;
        meter.received(raw.len(), append.bytes.len());
        let (stream, _) = self.begun.as_mut().ok_or_else(not_begun)?;
        stream.append(append.offset, append.end, raw).map_err(of)
    }

    fn stream(&mut self) -> Result<&mut PartialStream, Error> {
        let (stream, _) = self.begun.as_mut().ok_or_else(not_begun)?;
        Ok(stream)
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "it stands where errors are mapped"
)]
fn of(error: StoreError) -> Error {
    refusal::of(&error)
}
