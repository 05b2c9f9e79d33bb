//! The partial flow from the receiver's side: one stream of records, on a worker of its own.
//! Never talks to the socket. Invariant: one client writes the stream at a time, and appends that
//! wait together are synced together.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::mpsc;
use walmgr_protocol::compress::Unpacker;
use walmgr_protocol::limits::BLOCKS_IN_FLIGHT;
use walmgr_protocol::message::partial::{Append, At, Begin, Begun, Open};
use walmgr_protocol::message::{Error, ErrorCode};
use walmgr_protocol::names::{SegmentName, TimelineId};

use crate::receiver::admission::Holder;
use crate::receiver::server::Daemon;
use crate::receiver::worker::{self, Worker};
use crate::receiver::{STREAM_DOUBTED_FOR, STREAM_IDLE_MAX, STREAMS_PER_PEER_MAX, refusal};
use crate::store::{DurableRecords, PartialStream, StoreError};

/// The one place a writer of the partial stream can have.
#[derive(Default)]
pub struct Seat(Mutex<Holding>);

#[derive(Default)]
struct Holding {
    /// Counts those who had the place.
    number: u64,
    writer: Option<Writer>,
    /// Who shipped the last of the segments that are in progress.
    shippers: BTreeMap<SegmentName, String>,
    /// Whose records an archived segment contradicted, and when.
    doubted: BTreeMap<String, Instant>,
}

/// For how many segments it is remembered who shipped them, and how many are doubted at once: more than a master
/// is ahead of its archiver when that works.
const REMEMBERED_MAX: usize = 256;

struct Writer {
    who: String,
    timeline: TimelineId,
    /// Whether its thread is doing a job.
    at_work: bool,
    /// When it took the place, or its last records became durable.
    since: Instant,
}

/// What whoever has the place is doing. Only records renew its claim: questions cost nothing.
#[derive(Clone, Copy)]
enum Work {
    Begins,
    Ends,
    /// A job ends, and records became durable by it.
    Shipped,
}

/// Who has the place; it is free again when this is dropped.
struct Seated {
    daemon: Arc<Daemon>,
    number: u64,
}

impl Seat {
    /// Who has it.
    pub fn taken_by(&self) -> Option<String> {
        let holding = self.holding();
        holding.writer.as_ref().map(|writer| writer.who.clone())
    }

    /// Takes the place. Whoever has it loses it to a newer timeline, for the archive follows that one,
    /// by shipping nothing for [`STREAM_IDLE_MAX`], and when the archive contradicts what he shipped.
    fn take(&self, who: &str, timeline: TimelineId, now: Instant) -> Result<u64, Error> {
        let mut holding = self.holding();
        if let Some(writer) = &holding.writer {
            let is_idle = now.duration_since(writer.since) >= STREAM_IDLE_MAX;
            let is_better = timeline > writer.timeline
                || (holding.is_doubted(&writer.who, now) && !holding.is_doubted(who, now));
            if writer.at_work || (!is_idle && !is_better) {
                return Err(active(&writer.who));
            }
            tracing::info!("{who} takes over the stream of records from {}", writer.who);
        }
        holding.number += 1;
        holding.writer = Some(Writer {
            who: who.to_owned(),
            timeline,
            at_work: false,
            since: now,
        });
        Ok(holding.number)
    }

    /// Whoever has the place with this number shipped records of a segment.
    fn shipped(&self, number: u64, segment: SegmentName) {
        let mut holding = self.holding();
        let who = holding.writer.as_ref().map(|writer| writer.who.clone());
        if let Some(who) = who.filter(|_| holding.number == number) {
            holding.shippers.insert(segment, who);
            while holding.shippers.len() > REMEMBERED_MAX {
                holding.shippers.pop_first();
            }
        }
    }

    /// An archived segment is another than what was shipped of it.
    pub fn doubt(&self, segment: SegmentName) {
        self.doubt_at(segment, Instant::now());
    }

    fn doubt_at(&self, segment: SegmentName, now: Instant) {
        let mut holding = self.holding();
        let Some(who) = holding.shippers.remove(&segment) else {
            return;
        };
        tracing::warn!(
            "what {who} shipped of {segment} is not what was archived: it gives way to any other that ships"
        );
        let doubted = &mut holding.doubted;
        doubted.retain(|_, since| now.duration_since(*since) < STREAM_DOUBTED_FOR);
        if doubted.len() < REMEMBERED_MAX {
            doubted.insert(place_of(&who).to_owned(), now);
        }
    }

    /// Whoever took the place with this number begins or ends a job; fails when it is another's.
    fn work(&self, number: u64, work: Work, now: Instant) -> Result<(), Error> {
        let mut holding = self.holding();
        let is_his = holding.number == number;
        match &mut holding.writer {
            Some(writer) if is_his => {
                writer.at_work = matches!(work, Work::Begins);
                if let Work::Shipped = work {
                    writer.since = now;
                }
                Ok(())
            }
            Some(writer) => Err(active(&writer.who)),
            None => Err(not_begun()),
        }
    }

    fn leave(&self, number: u64) {
        let mut holding = self.holding();
        if holding.number == number {
            holding.writer = None;
        }
    }

    fn holding(&self) -> MutexGuard<'_, Holding> {
        // Each change is complete before the next can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Holding {
    fn is_doubted(&self, who: &str, now: Instant) -> bool {
        let since = self.doubted.get(place_of(who));
        since.is_some_and(|since| now.duration_since(*since) < STREAM_DOUBTED_FOR)
    }
}

/// A peer with its address, whatever port it comes from.
fn place_of(who: &str) -> &str {
    who.rsplit_once(':').map_or(who, |(place, _)| place)
}

fn active(who: &str) -> Error {
    Error::channel(
        ErrorCode::WriterActive,
        format!("{who} ships the same WAL record by record already"),
        "one syncdaemon is enough; if its host died, it is given up after 30 s",
    )
}

impl Drop for Seated {
    fn drop(&mut self) {
        self.daemon.partial_writer.leave(self.number);
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
    /// It failed, and its thread has ended.
    Over(Error),
}

impl worker::Report for Report {
    fn failed(error: Error) -> Self {
        Report::Over(error)
    }
}

/// The connection's end of the stream.
pub type StreamWorker = Worker<Job>;

/// Starts the worker; dropping the returned value ends it once its last job is done.
pub fn start(
    daemon: Arc<Daemon>,
    holder: &Holder,
    who: String,
    reports: mpsc::Sender<Report>,
) -> Result<StreamWorker, Error> {
    let Some(place) = daemon.streams.take(holder) else {
        let text = format!("{STREAMS_PER_PEER_MAX} connections of this peer ask for the stream");
        let hint = "one syncdaemon is enough";
        return Err(Error::channel(ErrorCode::WriterActive, text, hint));
    };
    let say = move |report| reports.blocking_send(report).is_ok();
    let worker = Worker::start("stream", BLOCKS_IN_FLIGHT, say, move |inbox, say| {
        let _place = place;
        let mut stream = Stream {
            daemon,
            who,
            unpacker: Unpacker::default(),
            begun: None,
            failed: false,
        };
        stream.work(inbox, say);
        Ok(())
    });
    Ok(worker)
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
            if self.failed && matches!(job, Job::Append(_) | Job::Rewrite) {
                continue;
            }
            let lost = match job {
                Job::Begin(_) => None,
                _ => self.seat(Work::Begins).err(),
            };
            let done = match job {
                _ if lost.is_some() => Err(lost.unwrap_or_else(not_begun)),
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
            let work = match &done {
                Ok(Some(Report::Durable(records))) => {
                    if let Some((_, seated)) = &self.begun {
                        (self.daemon.partial_writer).shipped(seated.number, records.segment());
                    }
                    Work::Shipped
                }
                _ => Work::Ends,
            };
            if self.begun.is_some() && self.seat(work).is_err() {
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
        let (stream, standing) = (self.daemon.archive)
            .partial_stream(begin.timeline)
            .map_err(of)?;
        let seat = &self.daemon.partial_writer;
        // A newer timeline is a claim only where the archive follows it: a history can be made up.
        let claim = match standing.is_settled {
            true => begin.timeline,
            false => TimelineId::FIRST,
        };
        let number = seat.take(&self.who, claim, Instant::now())?;
        let seated = Seated {
            daemon: Arc::clone(&self.daemon),
            number,
        };
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

    /// A job begins or ends; an error when the place was lost meanwhile.
    fn seat(&self, work: Work) -> Result<(), Error> {
        let (_, seated) = self.begun.as_ref().ok_or_else(not_begun)?;
        (self.daemon.partial_writer).work(seated.number, work, Instant::now())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_116_a_writer_whom_the_archive_contradicts_loses_the_stream() {
        let seat = Seat::default();
        let one = TimelineId::FIRST;
        let [segment, other] = ["000000010000000000000005", "000000010000000000000006"]
            .map(|name| name.parse().unwrap());
        let now = Instant::now();
        let thief = seat.take("db1 (192.0.2.9:1)", one, now).unwrap();
        seat.shipped(thief, segment);
        assert!(seat.take("db1 (192.0.2.1:7)", one, now).is_err());
        // Somebody else's segment is no reason.
        seat.doubt_at(other, now);
        assert!(seat.take("db1 (192.0.2.1:7)", one, now).is_err());
        seat.doubt_at(segment, now);
        // Nor does it get the place back, from whatever port it comes; but where nobody else is, it may ship.
        let genuine = seat.take("db1 (192.0.2.1:7)", one, now).unwrap();
        assert!(seat.take("db1 (192.0.2.9:2)", one, now).is_err());
        seat.leave(genuine);
        seat.take("db1 (192.0.2.9:3)", one, now).unwrap();
        seat.take("db1 (192.0.2.1:8)", one, now).unwrap();
        let later = now + STREAM_DOUBTED_FOR;
        seat.take("db1 (192.0.2.9:4)", one, later).unwrap();
        assert!(seat.take("db1 (192.0.2.1:9)", one, later).is_err());
    }

    #[test]
    fn fault_116_an_idle_writer_loses_the_stream_and_a_busy_one_does_not() {
        let seat = Seat::default();
        let [one, two] = [1, 2].map(|number| TimelineId::new(number).unwrap());
        let begin = Instant::now();
        let first = seat.take("first", one, begin).unwrap();
        let soon = begin + STREAM_IDLE_MAX / 2;
        assert!(seat.take("second", one, soon).is_err());
        seat.work(first, Work::Begins, soon).unwrap();
        let late = soon + STREAM_IDLE_MAX * 2;
        let refused = seat.take("second", two, late).unwrap_err();
        assert!(refused.message.contains("first ships"), "{refused}");
        seat.work(first, Work::Shipped, late).unwrap();
        assert!(seat.take("second", one, late).is_err());
        let second = seat.take("second", one, late + STREAM_IDLE_MAX).unwrap();
        assert!(
            seat.work(first, Work::Begins, late + STREAM_IDLE_MAX)
                .is_err()
        );
        // Whoever lost the place does not free it by leaving.
        seat.leave(first);
        assert_eq!(seat.taken_by().as_deref(), Some("second"));
        // A newer timeline does not wait.
        let third = seat.take("third", two, late + STREAM_IDLE_MAX).unwrap();
        assert!(seat.work(second, Work::Begins, late).is_err());
        // A job that ships nothing renews no claim.
        let (taken, later) = (late + STREAM_IDLE_MAX, late + STREAM_IDLE_MAX * 2);
        seat.work(third, Work::Begins, taken).unwrap();
        seat.work(third, Work::Ends, later).unwrap();
        let fourth = seat.take("fourth", two, later).unwrap();
        seat.leave(third);
        assert_eq!(seat.taken_by().as_deref(), Some("fourth"));
        seat.leave(fourth);
        assert_eq!(seat.taken_by(), None);
    }
}
