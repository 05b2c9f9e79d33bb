//! What is kept, read on its way back to the master.
//! Never changes anything and never talks to the socket. Invariant: the end of an archived file is
//! said only when all of it was found good: what was stored when each record was checked, or checked now. What travels as
//! it is stored is compared here by the checksum of each block, and by the master by that of the whole file.
//!
//! A worker reads and packs into the few buffers that it is given, and gets each again once it was sent, so a
//! slow master costs no memory. A backup set is held by a shared lock as long as its thread reads, so that no
//! rotation removes it meanwhile.

use std::sync::Arc;

use tokio::sync::mpsc;
use walmgr_protocol::compress::{Block, Packer};
use walmgr_protocol::limits::{BLOCK_BYTES_DEFAULT, BLOCKS_IN_FLIGHT};
use walmgr_protocol::message::fetch::{GetPages, GetSet, NotFound};
use walmgr_protocol::message::{Error, ErrorCode};
use walmgr_protocol::names::{Lsn, SegmentName, WalFileName};
use walmgr_protocol::session::fetch::FetchRequest;

use crate::audit::{AuditEvent, AuditOutcome};
use crate::rate_limit::RateLimit;
use crate::receiver::cluster::{Cluster, ServedCluster};
use crate::receiver::peer::{AuditedPeer, Peer};
use crate::receiver::refusal;
use crate::receiver::reports::FetchReport;
use crate::receiver::shares::SharedPlaces;
use crate::receiver::worker::{AwaitedWork, FromWorker, Worker};
use crate::store::lineage::HistoryAnswer;
use crate::store::sets::{HeldSet, SetError, Streamed};
use crate::store::{Absence, ArchiveReader, RealDisk, SegmentBefore, StoreError, StoredPiece};

/// How often an archive that changes at the wrong moment is looked at again.
const LOOKS_MAX: usize = 10;

/// The connection's end of a fetch under way; it gets buffers whose blocks were sent.
pub(crate) type FetchWorker = Worker<Vec<u8>, FetchReport>;

/// Starts a worker for what was asked for. Dropping the returned value ends it.
pub(crate) fn start(
    served: ServedCluster,
    peer: &Peer,
    request: FetchRequest,
    say: impl Fn(FromWorker<FetchReport>) -> bool + Send + Sync + 'static,
) -> FetchWorker {
    let place = match served.cluster.fetches.take(&peer.key()) {
        Ok(place) => place,
        Err(none) => return Worker::refused(SharedPlaces::Fetches.all_taken(none), say),
    };
    let by = peer.audited();
    let workforce = served.store.workforce.clone();
    let worker = Worker::start(
        &workforce,
        AwaitedWork::Fetch,
        BLOCKS_IN_FLIGHT,
        say,
        move |buffers, say| {
            let _place = place;
            work((&served.cluster, &by), &request, buffers, &**say);
            Ok(())
        },
    );
    for _ in 0..BLOCKS_IN_FLIGHT {
        worker.offer(Vec::new());
    }
    worker
}

fn work(
    (cluster, by): (&Cluster, &AuditedPeer),
    request: &FetchRequest,
    buffers: mpsc::Receiver<Vec<u8>>,
    say: &dyn Fn(FetchReport) -> bool,
) {
    let compression = match request {
        FetchRequest::File(file) => file.compression,
        FetchRequest::Set(set) | FetchRequest::Outline(set) => set.compression,
        FetchRequest::Pages(pages) => pages.compression,
    };
    // WAL is never kept back: somebody replays it, or waits for its end.
    let limits = (!matches!(request, FetchRequest::File(_))).then(|| cluster.fetch_limits());
    let mut blocks = OutgoingBlocks {
        packer: Packer::new(compression),
        limits,
        raw: Vec::new(),
        offset: 0,
        crc: crc32fast::Hasher::new(),
        say,
        buffers,
    };
    let ended = match request {
        FetchRequest::File(file) => {
            let ended = send_file(cluster, file.name, &mut blocks);
            if let Some(outcome) = outcome(&ended) {
                let (name, audit) = (file.name.to_string(), &cluster.audit);
                (cluster.fetched).fetched(audit, by, &name, &outcome);
            }
            ended
        }
        FetchRequest::Set(set) => {
            blocks.offset = set.offset;
            send_set((cluster, by), (set, false), &mut blocks)
        }
        FetchRequest::Outline(set) => {
            blocks.offset = set.offset;
            send_set((cluster, by), (set, true), &mut blocks)
        }
        FetchRequest::Pages(pages) => send_pages((cluster, by), pages, &mut blocks),
    };
    blocks.end(ended);
}

/// The outcome for the audit log; `None` if what was asked for does not exist.
fn outcome(ended: &Result<FetchEnd, Error>) -> Option<AuditOutcome<'_>> {
    match ended {
        Ok(FetchEnd::Whole) => Some(AuditOutcome::Done),
        Ok(FetchEnd::Abandoned) => Some(AuditOutcome::Failed("the peer wanted no more of it")),
        Ok(FetchEnd::NotFound(_)) => None,
        Err(error) => Some(AuditOutcome::Failed(&error.message)),
    }
}

/// How reading ended that did not fail.
enum FetchEnd {
    Whole,
    NotFound(NotFound),
    /// Nobody listens any more.
    Abandoned,
}

/// The blocks of a fetch on their way to the connection.
struct OutgoingBlocks<'a> {
    packer: Packer,
    /// How fast they may be read.
    limits: Option<[&'a RateLimit; 2]>,
    /// Bytes for the next block.
    raw: Vec<u8>,
    /// Where it begins.
    offset: u64,
    crc: crc32fast::Hasher,
    say: &'a dyn Fn(FetchReport) -> bool,
    buffers: mpsc::Receiver<Vec<u8>>,
}

impl OutgoingBlocks<'_> {
    fn report(&self, report: FetchReport) -> bool {
        (self.say)(report)
    }

    /// Takes bytes; `false` when nobody wants them.
    fn take(&mut self, mut bytes: &[u8]) -> bool {
        self.crc.update(bytes);
        while !bytes.is_empty() {
            let room = BLOCK_BYTES_DEFAULT as usize - self.raw.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.raw.extend_from_slice(now);
            bytes = later;
            if self.raw.len() == BLOCK_BYTES_DEFAULT as usize && !self.flush() {
                return false;
            }
        }
        true
    }

    /// Takes a piece of a file of the archive, as [`OutgoingBlocks::take`]. Only the file knows its checksum then.
    fn take_stored(&mut self, piece: StoredPiece<'_>) -> bool {
        let (frame, raw_bytes) = match piece {
            StoredPiece::Raw(bytes) => return self.take(bytes),
            StoredPiece::Packed { frame, raw_bytes } => (frame, raw_bytes),
        };
        if !self.flush() {
            return false;
        }
        let Some(buffer) = self.buffer_for(u64::from(raw_bytes)) else {
            return false;
        };
        let block = Block::of_packed(buffer, self.offset, raw_bytes, frame);
        self.offset += u64::from(raw_bytes);
        self.report(FetchReport::Block(block))
    }

    /// A buffer, when so many bytes may be sent; nothing when nobody wants them.
    fn buffer_for(&mut self, raw_bytes: u64) -> Option<Vec<u8>> {
        let is_wanted = || !self.buffers.is_closed();
        let wait = |limit: &RateLimit| limit.take(raw_bytes, &is_wanted);
        let may_be_sent = self.limits.into_iter().flatten().all(wait);
        // There are so many buffers, so a slow peer makes this wait instead of filling memory.
        may_be_sent.then(|| self.buffers.blocking_recv())?
    }

    fn flush(&mut self) -> bool {
        if self.raw.is_empty() {
            return true;
        }
        let Some(buffer) = self.buffer_for(self.raw.len() as u64) else {
            return false;
        };
        let raw = &self.raw;
        let Ok(block) = self.packer.pack(buffer, self.offset, |buffer| {
            buffer.extend_from_slice(raw);
            Ok::<(), std::convert::Infallible>(())
        });
        self.offset += u64::from(block.raw_bytes);
        self.raw.clear();
        self.report(FetchReport::Block(block))
    }

    fn end(mut self, ended: Result<FetchEnd, Error>) {
        let last = match ended {
            Ok(FetchEnd::Abandoned) => return,
            Ok(FetchEnd::Whole) if !self.flush() => return,
            Ok(FetchEnd::Whole) => FetchReport::Ended(self.crc.clone().finalize()),
            Ok(FetchEnd::NotFound(what)) => FetchReport::NotFound(what),
            Err(error) => {
                tracing::warn!("a fetch failed: {}", error.message);
                FetchReport::Failed(error)
            }
        };
        self.report(last);
    }
}

fn send_file(
    cluster: &Cluster,
    name: WalFileName,
    blocks: &mut OutgoingBlocks<'_>,
) -> Result<FetchEnd, Error> {
    let of = |error: StoreError| refusal::to_reader(&error);
    let archive = ArchiveReader::open(&cluster.completed_wals, Arc::new(RealDisk)).map_err(of)?;
    if let WalFileName::History(timeline) = name
        && archive.asked(timeline, false).map_err(of)? == HistoryAnswer::Nothing
    {
        return Ok(FetchEnd::NotFound(NotFound::NothingLater));
    }
    for _ in 0..LOOKS_MAX {
        if let Some(stored) = archive.find(name).map_err(of)? {
            if !blocks.report(FetchReport::Found) {
                return Ok(FetchEnd::Abandoned);
            }
            let mut is_wanted = true;
            let begins = |segment| recoveries_begin_with(cluster, &archive, segment);
            let read = stored.read_as_stored(SegmentBefore::ReadUnless(&begins), |piece| {
                is_wanted = blocks.take_stored(piece);
                is_wanted
            });
            return match (is_wanted, read) {
                (false, _) => Ok(FetchEnd::Abandoned),
                (true, Ok((len, crc32))) => {
                    blocks.crc = crc32fast::Hasher::new_with_initial_len(crc32, len);
                    Ok(FetchEnd::Whole)
                }
                (true, Err(error)) => Err(of(error)),
            };
        }
        match archive.absence(name).map_err(of)? {
            Absence::Appeared => {}
            Absence::Proven => return Ok(FetchEnd::NotFound(NotFound::NothingLater)),
            Absence::Gap(later) => return Ok(FetchEnd::NotFound(NotFound::Gap(later))),
            Absence::OnlyDamaged(copy) => {
                return Ok(FetchEnd::NotFound(NotFound::OnlyDamaged(copy)));
            }
        }
    }
    let text = format!("{name} appears and disappears in the archive");
    let hint = "look at the archive's directory on the standby";
    Err(Error::channel(ErrorCode::DiskFailed, text, hint))
}

/// Whether no listed set needs the segment before this one: whatever is stored there is on nobody's way.
fn recoveries_begin_with(cluster: &Cluster, archive: &ArchiveReader, segment: SegmentName) -> bool {
    let size = archive.binding().segment_size;
    let Ok(Ok(listed)) = cluster.open_sets().map(|sets| sets.list()) else {
        return false;
    };
    let firsts: Option<Vec<Option<u64>>> = (listed.into_iter())
        .map(|set| Some(set.label.ok()?.first_segment.number(size)))
        .collect();
    let oldest = firsts.and_then(|firsts| firsts.into_iter().min());
    oldest
        .flatten()
        .is_some_and(|oldest| Some(oldest) == segment.number(size))
}

fn send_set(
    by: (&Cluster, &AuditedPeer),
    (asked, is_outline): (&GetSet, bool),
    blocks: &mut OutgoingBlocks<'_>,
) -> Result<FetchEnd, Error> {
    let of = if is_outline { "the outline of " } else { "" };
    let (wanted, offset) = ((asked.start, asked.timestamp.as_str()), asked.offset);
    send_held(by, wanted, blocks, |held, each| {
        tracing::info!("sending {of}{} from byte {offset} on", held.name());
        let streamed = match is_outline {
            true => held.outline(offset, each)?,
            false => held.stream(offset, each)?,
        };
        if streamed == Streamed::Whole {
            tracing::info!("{of}{} sent", held.name());
        }
        Ok(streamed)
    })
}

fn send_pages(
    by: (&Cluster, &AuditedPeer),
    asked: &GetPages,
    blocks: &mut OutgoingBlocks<'_>,
) -> Result<FetchEnd, Error> {
    let (wanted, count) = ((asked.start, asked.timestamp.as_str()), asked.files.len());
    send_held(by, wanted, blocks, |held, each| {
        tracing::debug!("sending pages of {count} files of {}", held.name());
        held.pages(&asked.files, each)
    })
}

/// Finds a set by its label, holds it while something of it is sent, and has the audit log told.
fn send_held(
    (cluster, by): (&Cluster, &AuditedPeer),
    (start, timestamp): (Lsn, &str),
    blocks: &mut OutgoingBlocks<'_>,
    send: impl FnOnce(&HeldSet, &mut dyn FnMut(&[u8]) -> bool) -> Result<Streamed, SetError>,
) -> Result<FetchEnd, Error> {
    let sets = cluster.open_sets()?;
    let held = sets.hold_labelled(start, timestamp);
    let Some(held) = held.map_err(|error| refusal::set_to_reader(&error))? else {
        return Ok(FetchEnd::NotFound(NotFound::NoSuchSet));
    };
    if !blocks.report(FetchReport::Found) {
        return Ok(FetchEnd::Abandoned);
    }
    let (name, begin) = (held.name().to_string(), blocks.offset);
    let tell = |outcome: &AuditOutcome<'_>, sent_bytes| {
        let event = AuditEvent::SetFetched {
            set: &name,
            offset_bytes: begin,
            sent_bytes,
        };
        cluster.audit.record(&by.who, outcome, &event);
    };
    tell(&AuditOutcome::Begun, 0);
    let streamed = send(&held, &mut |bytes| blocks.take(bytes));
    let ended = match streamed.map_err(|error| refusal::set_to_reader(&error)) {
        Ok(Streamed::Whole) => Ok(FetchEnd::Whole),
        Ok(Streamed::Stopped) => Ok(FetchEnd::Abandoned),
        Err(error) => Err(error),
    };
    if let Some(outcome) = outcome(&ended) {
        tell(&outcome, blocks.offset + blocks.raw.len() as u64 - begin);
    }
    ended
}
