//! A stream of records, on a worker of its own.
//! Never talks to the socket. Invariant: nothing is written without the lock, and appends that
//! wait together are synced together.

use std::time::Instant;

use tokio::sync::mpsc;
use walmgr_protocol::compress::Unpacker;
use walmgr_protocol::limits::BLOCKS_IN_FLIGHT;
use walmgr_protocol::message::partial::{Append, At, Begin, Begun, Open};
use walmgr_protocol::message::{Error, ErrorCode};
use walmgr_protocol::names::TimelineId;

use crate::receiver::cluster::ServedCluster;
use crate::receiver::cluster::writer_lock::{StreamWork, WriterGuard, not_begun};
use crate::receiver::peer::{AuditedPeer, PeerKey};
use crate::receiver::reports::RecordReport;
use crate::receiver::shares::NoShare;
use crate::receiver::worker::{FromWorker, Worker};
use crate::receiver::{STREAMS_PER_PEER_MAX, refusal};
use crate::store::{DurableRecords, PartialStream, StoreError};

/// What the connection asks of the stream.
pub(crate) enum RecordJob {
    /// Take it.
    Begin(Begin),
    /// Go on with this segment.
    Open(Open),
    /// From its beginning, comparing.
    Rewrite,
    /// Check and write this, and make it durable.
    Append(Append),
}

/// Starts the worker; dropping the returned value ends it once its last job is done.
pub(crate) fn start(
    served: ServedCluster,
    key: &PeerKey,
    (who, peer): (String, AuditedPeer),
    say: impl Fn(FromWorker<RecordReport>) -> bool + Send + Sync + 'static,
) -> Result<Worker<RecordJob, RecordReport>, Error> {
    let place = served.cluster.streams.take(key).map_err(|none| {
        let own = format!("{STREAMS_PER_PEER_MAX} connections of this peer ask for the stream");
        let (code, hint) = match none {
            NoShare::OfCluster => (ErrorCode::WriterActive, "run one syncdaemon"),
            NoShare::OfAll(_) => (ErrorCode::Busy, "walmgr tries again"),
        };
        Error::channel(code, none.text("streams of records", own), hint)
    })?;
    let workforce = served.store.workforce.clone();
    let worker = Worker::start(
        &workforce,
        "stream",
        BLOCKS_IN_FLIGHT,
        say,
        move |inbox, say| {
            let _place = place;
            let mut stream = RecordStream {
                served,
                who,
                peer,
                unpacker: Unpacker::default(),
                begun: None,
                failed: false,
            };
            stream.work(inbox, &**say);
            Ok(())
        },
    );
    Ok(worker)
}

struct RecordStream {
    served: ServedCluster,
    who: String,
    peer: AuditedPeer,
    unpacker: Unpacker,
    begun: Option<(PartialStream, WriterGuard)>,
    failed: bool,
}

impl RecordStream {
    fn work(&mut self, mut jobs: mpsc::Receiver<RecordJob>, report: &dyn Fn(RecordReport) -> bool) {
        let mut next = None;
        while let Some(job) = next.take().or_else(|| jobs.blocking_recv()) {
            if self.failed && matches!(job, RecordJob::Append(_) | RecordJob::Rewrite) {
                continue;
            }
            let lost = match job {
                RecordJob::Begin(_) => None,
                _ => self.lock(StreamWork::Begins).err(),
            };
            let done = match job {
                _ if lost.is_some() => Err(lost.unwrap_or_else(not_begun)),
                RecordJob::Begin(begin) => self.begin(&begin).map(RecordReport::Begun).map(Some),
                RecordJob::Open(open) => self.open(&open).map(RecordReport::Opened).map(Some),
                RecordJob::Rewrite => self.rewrite().map(|()| None),
                RecordJob::Append(append) => {
                    let (appended, behind) = self.append_all(append, &mut jobs);
                    next = behind;
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
            let said = match done {
                Ok(None) => true,
                Ok(Some(done)) => report(done),
                Err(error) => {
                    tracing::warn!(
                        "the partial stream of {} stops: {}",
                        self.who,
                        error.message
                    );
                    if matches!(error.code, ErrorCode::Diverged | ErrorCode::ForeignFile) {
                        let cluster = &self.served.cluster;
                        let file = "a segment in progress";
                        (cluster.rewrites).refused(
                            &cluster.audit,
                            &self.peer,
                            file,
                            &error.message,
                        );
                    }
                    // Here, because the connection that would hear of it may be gone.
                    self.served.store.check_health();
                    report(RecordReport::Failed(error))
                }
            };
            if !said {
                return;
            }
        }
    }

    fn begin(&mut self, begin: &Begin) -> Result<Begun, Error> {
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
        jobs: &mut mpsc::Receiver<RecordJob>,
    ) -> (Result<DurableRecords, Error>, Option<RecordJob>) {
        let mut behind = None;
        let mut appended = self.append(&first);
        for _ in 1..BLOCKS_IN_FLIGHT {
            match jobs.try_recv() {
                Ok(RecordJob::Append(append)) => {
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
