//! The fetch flow from the receiver's side: what is kept, on its way back to the master.
//! Never changes anything and never talks to the socket. Invariant: an archived file is checked
//! record by record on its way out, and its end is said only when all of it was found good.
//!
//! A worker reads and packs; the connection takes a few blocks at a time from it, so a slow
//! master costs no memory. A backup set is held by a shared lock as long as its thread reads, so that no
//! rotation removes it meanwhile.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::mpsc;
use walmgr_protocol::compress::{Block, Packer};
use walmgr_protocol::limits::{BLOCK_BYTES_DEFAULT, BLOCKS_IN_FLIGHT, LISTED_BACKUPS_MAX};
use walmgr_protocol::message::fetch::{
    Backups, Fetch, ListBackups, ListedSet, NotFound, SetDescription, SetLabel, Tablespace,
};
use walmgr_protocol::message::{Error, ErrorCode, Message};
use walmgr_protocol::names::{SegmentName, WalFileName};
use walmgr_protocol::session::fetch::Request;

use crate::pg::backup_label::BackupLabel;
use crate::pg::conf::ServerSettings;
use crate::receiver::cluster::Cluster;
use crate::receiver::peer::PeerKey;
use crate::receiver::worker::{self, Worker};
use crate::receiver::{FETCHES_MAX, FETCHES_PER_PEER_MAX, refusal};
use crate::store::lineage::Asked;
use crate::store::sets::{BackupSets, SetError, Streamed};
use crate::store::{Absence, Disk, Reader, RealDisk, StoreError};
use crate::wal::obstacle::{Demands, Obstacle};

/// How often an archive that changes at the wrong moment is looked at again.
const LOOKS_MAX: usize = 10;

/// What a fetch tells its connection.
pub enum Report {
    /// It is there, and its blocks follow.
    Found,
    /// It is not there.
    NotFound(NotFound),
    /// The next block.
    Block(Block),
    /// That was all of it, and this is its CRC-32.
    Ended(u32),
    /// It cannot be read, or not to its end.
    Failed(Error),
}

impl worker::WorkerReport for Report {
    fn failed(error: Error) -> Self {
        Report::Failed(error)
    }
}

/// The connection's end of a fetch under way.
pub struct Reading {
    /// What its worker says.
    pub reports: mpsc::Receiver<Report>,
    /// Gets buffers that were sent and can be filled again.
    worker: Worker<Vec<u8>>,
}

impl Reading {
    /// Starts a worker for what was asked for. Dropping the returned value ends it.
    pub fn start(cluster: Arc<Cluster>, key: &PeerKey, request: Request) -> Reading {
        let (full, reports) = mpsc::channel(BLOCKS_IN_FLIGHT);
        let Some(place) = cluster.fetches.take(key) else {
            let text = format!(
                "all {FETCHES_PER_PEER_MAX} fetches that a peer may have at once, or all \
                 {FETCHES_MAX} there are, are under way"
            );
            let busy = Error::channel(ErrorCode::Busy, text, "try again later");
            // There is room: the channel is new.
            let _ = full.try_send(Report::Failed(busy));
            let worker = Worker::none();
            return Reading { reports, worker };
        };
        let say = move |report| full.blocking_send(report).is_ok();
        let worker = Worker::start("fetch", BLOCKS_IN_FLIGHT, say, move |reusable, say| {
            let _place = place;
            work(&cluster, &request, reusable, say);
            Ok(())
        });
        Reading { reports, worker }
    }

    /// Hands back a block that was sent.
    pub fn sent(&self, block: Block) {
        // The worker may have ended; then nobody needs the buffer.
        self.worker.offer(block.into_buffer());
    }
}

fn work(
    cluster: &Cluster,
    request: &Request,
    reusable: mpsc::Receiver<Vec<u8>>,
    say: &dyn Fn(Report) -> bool,
) {
    let compression = match request {
        Request::File(file) => file.compression,
        Request::Set(set) => set.compression,
    };
    let mut blocks = Blocks {
        packer: Packer::new(compression),
        raw: Vec::new(),
        offset: 0,
        crc: crc32fast::Hasher::new(),
        say,
        reusable,
    };
    let ended = match request {
        Request::File(file) => send_file(cluster, file.name, &mut blocks),
        Request::Set(set) => {
            blocks.offset = set.offset;
            let wanted = (set.start, set.timestamp.as_str());
            send_set(cluster, wanted, set.offset, &mut blocks)
        }
    };
    blocks.end(ended);
}

/// How reading ended that did not fail.
enum Ended {
    Whole,
    NotFound(NotFound),
    /// Nobody listens any more.
    Abandoned,
}

/// The blocks of a fetch on their way to the connection.
struct Blocks<'a> {
    packer: Packer,
    /// Bytes for the next block.
    raw: Vec<u8>,
    /// Where it begins.
    offset: u64,
    crc: crc32fast::Hasher,
    say: &'a dyn Fn(Report) -> bool,
    reusable: mpsc::Receiver<Vec<u8>>,
}

impl Blocks<'_> {
    fn report(&self, report: Report) -> bool {
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

    fn flush(&mut self) -> bool {
        if self.raw.is_empty() {
            return true;
        }
        let buffer = self.reusable.try_recv().unwrap_or_default();
        let raw = &self.raw;
        let Ok(block) = self.packer.pack(buffer, self.offset, |buffer| {
            buffer.extend_from_slice(raw);
            Ok::<(), std::convert::Infallible>(())
        });
        self.offset += u64::from(block.raw_bytes);
        self.raw.clear();
        self.report(Report::Block(block))
    }

    fn end(mut self, ended: Result<Ended, Error>) {
        let last = match ended {
            Ok(Ended::Abandoned) => return,
            Ok(Ended::Whole) if !self.flush() => return,
            Ok(Ended::Whole) => Report::Ended(self.crc.clone().finalize()),
            Ok(Ended::NotFound(what)) => Report::NotFound(what),
            Err(error) => {
                tracing::warn!("a fetch failed: {}", error.message);
                Report::Failed(error)
            }
        };
        self.report(last);
    }
}

fn send_file(
    cluster: &Cluster,
    name: WalFileName,
    blocks: &mut Blocks<'_>,
) -> Result<Ended, Error> {
    let of = |error: StoreError| of_store(&error);
    let archive = Reader::open(&cluster.completed_wals, Arc::new(RealDisk)).map_err(of)?;
    if let WalFileName::History(timeline) = name
        && archive.asked(timeline, false).map_err(of)? == Asked::Nothing
    {
        return Ok(Ended::NotFound(NotFound::NothingLater));
    }
    for _ in 0..LOOKS_MAX {
        if let Some(stored) = archive.find(name).map_err(of)? {
            if !blocks.report(Report::Found) {
                return Ok(Ended::Abandoned);
            }
            let mut is_wanted = true;
            let begins = |segment| recoveries_begin_with(cluster, &archive, segment);
            let read = stored.read_for(begins, |bytes| {
                is_wanted = blocks.take(bytes);
                is_wanted
            });
            return match (is_wanted, read) {
                (false, _) => Ok(Ended::Abandoned),
                (true, Ok(_)) => Ok(Ended::Whole),
                (true, Err(error)) => Err(of(error)),
            };
        }
        match archive.absence(name).map_err(of)? {
            Absence::Appeared => {}
            Absence::Proven => return Ok(Ended::NotFound(NotFound::NothingLater)),
            Absence::Gap(later) => return Ok(Ended::NotFound(NotFound::Gap(later))),
            Absence::OnlyDamaged(copy) => {
                return Ok(Ended::NotFound(NotFound::OnlyDamaged(copy)));
            }
        }
    }
    let text = format!("{name} comes and goes in the archive");
    let hint = "look at the archive's folder on the standby";
    Err(Error::channel(ErrorCode::DiskFailed, text, hint))
}

/// Whether no listed set needs the segment before this one: whatever is stored there is on nobody's way.
fn recoveries_begin_with(cluster: &Cluster, archive: &Reader, segment: SegmentName) -> bool {
    let size = archive.binding().segment_size;
    let Ok(Ok(listed)) = open_sets(cluster).map(|sets| sets.list()) else {
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
    cluster: &Cluster,
    (start, timestamp): (walmgr_protocol::names::Lsn, &str),
    offset: u64,
    blocks: &mut Blocks<'_>,
) -> Result<Ended, Error> {
    let sets = open_sets(cluster)?;
    let held = sets.hold_labelled(start, timestamp);
    let Some(held) = held.map_err(|error| of_set(&error))? else {
        return Ok(Ended::NotFound(NotFound::NoSuchSet));
    };
    if !blocks.report(Report::Found) {
        return Ok(Ended::Abandoned);
    }
    tracing::info!("sending {} from byte {offset} on", held.name());
    let streamed = held.stream(offset, &mut |bytes| blocks.take(bytes));
    match streamed.map_err(|error| of_set(&error))? {
        Streamed::Whole => {
            tracing::info!("{} sent", held.name());
            Ok(Ended::Whole)
        }
        Streamed::Stopped => Ok(Ended::Abandoned),
    }
}

/// The answer to a question about the sets.
pub fn answer(cluster: &Cluster, question: &Fetch) -> Message {
    let answered = match question {
        Fetch::ListBackups(request) => list(cluster, request),
        Fetch::DescribeSet(name) => describe(cluster, name),
        other => {
            let text = format!(
                "{} has no place on channel 0",
                Message::Fetch(other.clone()).name()
            );
            return Message::Error(Error::connection(ErrorCode::Misbehaved, text, ""));
        }
    };
    match answered {
        Ok(answer) => Message::Fetch(answer),
        Err(error) => {
            tracing::warn!("a question about the backup sets failed: {}", error.message);
            Message::Error(error)
        }
    }
}

fn list(cluster: &Cluster, request: &ListBackups) -> Result<Fetch, Error> {
    let sets = open_sets(cluster)?;
    let mut listed = sets.list().map_err(|error| of_set(&error))?;
    if !request.after.is_empty() {
        let after = sets.newest().parse_sibling(&request.after);
        let after =
            after.map_err(|error| Error::channel(ErrorCode::Malformed, error.to_string(), ""))?;
        listed.retain(|set| set.name > after);
    }
    let limit = usize::from(request.limit.min(LISTED_BACKUPS_MAX));
    let more = listed.len() > limit;
    let archive = Reader::open(&cluster.completed_wals, Arc::new(RealDisk)).ok();
    let listed = listed.into_iter().take(limit).map(|set| {
        let ahead = archive.as_ref().zip(set.label.as_ref().ok());
        let ahead = ahead.and_then(|(archive, label)| archive.ahead_of(label).ok());
        ListedSet {
            name: set.name.to_string(),
            label: set
                .readable_label(&ahead.unwrap_or_default())
                .map(|it| label(&it)),
        }
    });
    let sets = listed.collect();
    Ok(Fetch::Backups(Backups { sets, more }))
}

fn describe(cluster: &Cluster, name: &str) -> Result<Fetch, Error> {
    use std::os::unix::ffi::OsStringExt;
    let Some(binding) = cluster.archive.binding() else {
        return Err(of_store(&StoreError::NotBound));
    };
    let sets = open_sets(cluster)?;
    let Ok(name) = sets.newest().parse_sibling(name) else {
        return Ok(Fetch::NotFound(NotFound::NoSuchSet));
    };
    let held = match sets.hold(&name) {
        Err(SetError::Absent { .. }) => return Ok(Fetch::NotFound(NotFound::NoSuchSet)),
        held => held.map_err(|error| of_set(&error))?,
    };
    let content = held.content(binding.postgres_major);
    let content = content.map_err(|error| of_set(&error))?;
    let tablespaces = content.tablespaces.into_iter().map(|(oid, space)| {
        let (bytes, path) = (space.bytes, space.location.into_os_string().into_vec());
        Tablespace { oid, bytes, path }
    });
    let archive = Reader::open(&cluster.completed_wals, Arc::new(RealDisk)).ok();
    let met = archive.and_then(|archive| archive.ahead_of(held.label()).ok());
    let met = met.unwrap_or_default();
    let loads = ServerSettings::of(held.path(), None).may_load_libraries();
    let end = met.iter().find(|met| met.obstacle.ends(loads));
    let demands = met.iter().filter_map(|met| match met.obstacle {
        Obstacle::Settings(demands) => Some(demands),
        _ => None,
    });
    let demands = demands.fold(Demands::default(), Demands::or);
    Ok(Fetch::Set(SetDescription {
        name: name.to_string(),
        label: label(held.label()),
        stream_bytes: content.stream_bytes,
        bytes: content.bytes,
        recovery_end: end.map(|met| met.lsn),
        demands: demands
            .each()
            .map(|(_, needed)| u32::try_from(needed).unwrap_or_default()),
        tablespaces: tablespaces.collect(),
    }))
}

fn label(label: &BackupLabel) -> SetLabel {
    SetLabel {
        timestamp: label.start_time.clone(),
        label: label.label.clone(),
        first_segment: label.first_segment,
        start: label.start,
    }
}

fn open_sets(cluster: &Cluster) -> Result<BackupSets, Error> {
    let Some(full_backup) = &cluster.full_backup else {
        let text = "the standby has no setting `full_backup`, so it keeps no backups";
        let hint = "set it, or `walmgr_data`, in the standby's ini file";
        return Err(Error::channel(ErrorCode::NotSetUp, text, hint));
    };
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let open = |path: &Path| BackupSets::open(path, &cluster.completed_wals, &disk);
    open(full_backup).map_err(|error| of_set(&error))
}

/// The refusal that tells whoever reads the archive; damage is the standby's here.
fn of_store(error: &StoreError) -> Error {
    match error {
        StoreError::Damaged { .. } | StoreError::Foreign { .. } => Error::channel(
            ErrorCode::DamagedFile,
            error.to_string(),
            "put a good copy into the archive on the standby (the master's pg_wal may have one)",
        ),
        error => refusal::of(error),
    }
}

/// The same for the sets.
fn of_set(error: &SetError) -> Error {
    match error {
        SetError::Store(error) => of_store(error),
        SetError::Busy { .. } => {
            let hint = "try again when that has ended";
            Error::channel(ErrorCode::Busy, error.to_string(), hint)
        }
        error => Error::channel(
            ErrorCode::DiskFailed,
            error.to_string(),
            "look at the folder of `full_backup` on the standby",
        ),
    }
}
