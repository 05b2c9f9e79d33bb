//! One backup that is being received: its set, its phase, and the connections that take part.
//! Never touches the socket. Invariant: once it is over nothing is added to its set, and every
//! connection of it has been told.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use walmgr_protocol::limits::BACKUP_STREAMS_MAX;
use walmgr_protocol::message::backup::{
    BackupBegin, BackupHeld, BackupSealed, FileDone, Granted, Token,
};
use walmgr_protocol::message::parent::{FileNeed, ParentAnswer};
use walmgr_protocol::message::{Error, ErrorCode};
use walmgr_protocol::names::{RelativePath, TimelineId};

use crate::receiver::cluster::incremental::Incremental;
use crate::receiver::worker::{self, Say, WorkerReport, Workforce};
use crate::receiver::{
    BACKUP_IDLE_MAX, BACKUP_LEASE, BACKUP_LEASE_S, BACKUP_PROGRESS_BYTES_MIN, refusal,
};
use crate::store::sets::{HeldFile, IncomingSet, SealedSet, StreamWriter};

/// How long a connection is still read after another connection came to replace it.
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);

/// What a connection's worker, or the backup itself, tells the connection.
pub(crate) enum BackupReport {
    /// It is part of the backup as long as it keeps this.
    Admitted(Attachment),
    /// The answer to a question what is held.
    LookedUp(Vec<BackupHeld>),
    /// The answer to a question for a set to build on.
    ParentChosen(ParentAnswer),
    /// The answer to a question what is needed.
    Compared(Vec<FileNeed>),
    /// Files have arrived.
    FilesDone(Vec<FileDone>),
    /// The stream was taken to its end.
    StreamTaken,
    /// The set is sealed.
    Sealed(SealedSet, BackupSealed),
    /// It failed, or the backup is over; nothing follows.
    Failed(Error),
}

/// A backup that is being received.
pub(crate) struct Running {
    token: Token,
    holder: String,
    origin: String,
    timeline: TimelineId,
    workforce: Workforce,
    inner: Mutex<Inner>,
    /// The phase is another, or a stream has lost its connection.
    changed: Condvar,
    /// Cancelled when nothing more comes of it.
    over: CancellationToken,
    /// Held by the thread that fills a stream, so that its successor waits for its end.
    streams_at_work: Mutex<HashMap<u16, Arc<Mutex<()>>>>,
}

struct Inner {
    phase: Phase,
    set: Option<IncomingSet>,
    /// What it is built on.
    incremental: Option<Arc<Incremental>>,
    control: Option<Member>,
    /// The connection that controls it, or did so last.
    last_control: u64,
    streams: HashMap<u16, Member>,
    /// The connections that carry the streams, or did so last.
    last_streams: HashMap<u16, u64>,
    members: u64,
    /// When its connections had last brought enough for it to count as progress.
    active: Instant,
    /// What they brought since.
    bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Streams bring files.
    Receiving,
    /// The client asked to seal; the WAL is being waited for, and everything can still be undone.
    Waiting,
    /// It is being sealed: nobody can end it any more.
    Sealing,
    Over,
}

impl Inner {
    fn is_replaced(&self, PartNumber { place, id }: PartNumber) -> bool {
        match place {
            BackupPart::Control => self.last_control != id,
            BackupPart::Stream(number) => self.last_streams.get(&number) != Some(&id),
        }
    }
}

struct Member {
    id: u64,
    reports: Say<BackupReport>,
}

/// Which part a connection has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BackupPart {
    /// It controls the backup.
    Control,
    /// It carries this stream.
    Stream(u16),
}

/// A connection's part in the backup, with a number that differs from those of earlier connections with the same part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PartNumber {
    place: BackupPart,
    id: u64,
}

/// A connection's part in a backup, from when it was let in until this is dropped.
pub(crate) struct Attachment {
    running: Arc<Running>,
    place: BackupPart,
    id: u64,
    runtime: Handle,
}

impl Running {
    /// A backup that nobody takes part in yet.
    pub(crate) fn new(
        set: IncomingSet,
        holder: String,
        begin: &BackupBegin,
        workforce: Workforce,
    ) -> crate::error::Result<Self> {
        Ok(Running {
            token: Token(crate::transport::connect::fresh_nonce()?),
            holder,
            origin: begin.origin.clone(),
            timeline: begin.timeline,
            workforce,
            inner: Mutex::new(Inner {
                phase: Phase::Receiving,
                set: Some(set),
                incremental: None,
                control: None,
                last_control: 0,
                streams: HashMap::new(),
                last_streams: HashMap::new(),
                members: 0,
                active: Instant::now(),
                bytes: 0,
            }),
            changed: Condvar::new(),
            over: CancellationToken::new(),
            streams_at_work: Mutex::default(),
        })
    }

    /// What its connections show.
    pub(crate) const fn token(&self) -> Token {
        self.token
    }

    /// Who makes it, since when.
    pub(crate) fn holder(&self) -> &str {
        &self.holder
    }

    /// What tells this master's backups from another's, with the peer that named it.
    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    /// The timeline it began on.
    pub(crate) const fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// A connection of it brought so many bytes of files. A message now and then renews no claim.
    pub(crate) fn note_progress(&self, bytes: usize) {
        let mut inner = self.inner();
        inner.bytes = inner.bytes.saturating_add(bytes);
        if inner.bytes >= BACKUP_PROGRESS_BYTES_MIN {
            (inner.active, inner.bytes) = (Instant::now(), 0);
        }
    }

    /// Whether so little has come for so long that another backup may take its place.
    pub(crate) fn is_idle(&self) -> bool {
        self.inner().active.elapsed() >= BACKUP_IDLE_MAX
    }

    /// Whether nothing more comes of it.
    pub(crate) fn is_over(&self) -> bool {
        self.inner().phase == Phase::Over
    }

    /// Cancelled when nothing more comes of it.
    pub(crate) const fn over(&self) -> &CancellationToken {
        &self.over
    }

    /// Whether the client asked to have it sealed.
    pub(crate) fn is_finishing(&self) -> bool {
        matches!(self.inner().phase, Phase::Waiting | Phase::Sealing)
    }

    /// Waits until it is over, or not being finished any more; that goes on without the client.
    pub(crate) fn let_finish(&self) {
        let is_finishing =
            |inner: &mut Inner| matches!(inner.phase, Phase::Waiting | Phase::Sealing);
        let _inner = (self.changed.wait_while(self.inner(), is_finishing))
            .unwrap_or_else(PoisonError::into_inner);
    }

    /// Waits until it is over, or can be ended.
    pub(crate) fn let_seal(&self, until: Instant) {
        let left = until.saturating_duration_since(Instant::now());
        let is_sealing = |inner: &mut Inner| inner.phase == Phase::Sealing;
        let _waited = (self.changed).wait_timeout_while(self.inner(), left, is_sealing);
    }

    /// Lets a connection in; the one that had this part before is told to go.
    pub(crate) fn attach(
        self: &Arc<Self>,
        place: BackupPart,
        reports: &Say<BackupReport>,
    ) -> Result<Attachment, Error> {
        if matches!(place, BackupPart::Stream(number) if number >= BACKUP_STREAMS_MAX) {
            let text = format!("a backup has at most {BACKUP_STREAMS_MAX} streams");
            return Err(Error::channel(ErrorCode::Misbehaved, text, ""));
        }
        let mut inner = self.inner();
        match inner.phase {
            Phase::Receiving => {}
            Phase::Waiting | Phase::Sealing | Phase::Over => return Err(unknown()),
        }
        inner.members += 1;
        let id = inner.members;
        let reports = Arc::clone(reports);
        let member = Member { id, reports };
        let before = match place {
            BackupPart::Control => {
                inner.last_control = id;
                inner.control.replace(member)
            }
            BackupPart::Stream(number) => {
                inner.last_streams.insert(number, id);
                inner.streams.insert(number, member)
            }
        };
        if let Some(before) = before {
            let text = "another connection took the place of this one in the backup";
            let error = Error::connection(ErrorCode::Abandoned, text, "");
            (before.reports)(BackupReport::Failed(error));
        }
        drop(inner);
        Ok(Attachment {
            running: Arc::clone(self),
            place,
            id,
            runtime: Handle::current(),
        })
    }

    /// Gives the connection that carried a stream before a moment to take in what had arrived when
    /// it was cut, so that it need not be sent again.
    pub(crate) fn let_drain(&self, stream: u16) {
        let is_carried = |inner: &mut Inner| inner.streams.contains_key(&stream);
        let _waited = (self.changed).wait_timeout_while(self.inner(), DRAIN_PATIENCE, is_carried);
    }

    /// What a connection that was let in is told.
    pub(crate) const fn granted(&self) -> Granted {
        Granted {
            token: self.token,
            lease_s: BACKUP_LEASE_S,
            streams_max: BACKUP_STREAMS_MAX,
        }
    }

    /// The lock of one stream's thread.
    pub(crate) fn stream_at_work(&self, number: u16) -> Arc<Mutex<()>> {
        let streams = self.streams_at_work.lock();
        let mut streams = streams.unwrap_or_else(PoisonError::into_inner);
        Arc::clone(streams.entry(number).or_default())
    }

    /// A writer for a stream.
    pub(crate) fn open_stream(&self) -> Result<StreamWriter, Error> {
        match &self.inner().set {
            Some(set) => set.stream().map_err(|error| refusal::of_set(&error)),
            None => Err(unknown()),
        }
    }

    /// What it is built on, if that was chosen.
    pub(crate) fn incremental(&self) -> Option<Arc<Incremental>> {
        self.inner().incremental.clone()
    }

    /// Has it built on this, unless another question for it was answered meanwhile.
    pub(crate) fn build_on(&self, chosen: Incremental) -> Result<Arc<Incremental>, Error> {
        let mut inner = self.inner();
        let Some(set) = &inner.set else {
            return Err(unknown());
        };
        if let Some(chosen) = &inner.incremental {
            return Ok(Arc::clone(chosen));
        }
        set.build_on(&chosen.parent);
        let chosen = Arc::new(chosen);
        inner.incremental = Some(Arc::clone(&chosen));
        Ok(chosen)
    }

    /// What is held of each of these.
    pub(crate) fn held(&self, paths: &[RelativePath]) -> Result<Vec<BackupHeld>, Error> {
        match &self.inner().set {
            Some(set) => Ok(paths.iter().map(|path| held(set.held(path))).collect()),
            None => Err(unknown()),
        }
    }

    /// The content of a small file of the set; empty if it has not arrived.
    pub(crate) fn read_small(&self, path: &str) -> Result<Vec<u8>, Error> {
        let Ok(path) = path.parse::<RelativePath>() else {
            return Ok(Vec::new());
        };
        match &self.inner().set {
            Some(set) => set
                .read_small(&path)
                .map_err(|error| refusal::of_set(&error)),
            None => Err(unknown()),
        }
    }

    /// The longest that the manifest of what has arrived can be.
    pub(crate) fn manifest_bytes_max(&self) -> Result<u64, Error> {
        match &self.inner().set {
            Some(set) => Ok(set.manifest_bytes_max()),
            None => Err(unknown()),
        }
    }

    /// The client wants the set sealed, and says so over the connection with this part.
    pub(crate) fn begin_waiting(&self, part: PartNumber) -> Result<(), Error> {
        let mut inner = self.inner();
        match inner.phase {
            Phase::Receiving if !inner.is_replaced(part) => {
                self.is_now(Phase::Waiting, &mut inner);
                Ok(())
            }
            Phase::Receiving | Phase::Waiting | Phase::Sealing | Phase::Over => Err(unknown()),
        }
    }

    /// Whether another connection has this part by now: what is still done for this one concerns nobody.
    pub(crate) fn is_replaced(&self, part: PartNumber) -> bool {
        self.inner().is_replaced(part)
    }

    /// Takes the set, to seal it: from here on nobody else ends the backup.
    pub(crate) fn begin_sealing(&self) -> Result<IncomingSet, Error> {
        let mut inner = self.inner();
        match (inner.phase, inner.set.take()) {
            (Phase::Waiting, Some(set)) => {
                // Nobody reads the older set any more, and it may expire.
                inner.incremental = None;
                self.is_now(Phase::Sealing, &mut inner);
                Ok(set)
            }
            (_, set) => {
                inner.set = set;
                Err(unknown())
            }
        }
    }

    /// The sealing came to an end, good or bad.
    pub(crate) fn end_sealing(&self) {
        self.is_now(Phase::Over, &mut self.inner());
    }

    fn is_now(&self, phase: Phase, inner: &mut Inner) {
        inner.phase = phase;
        if phase == Phase::Over {
            self.over.cancel();
        }
        self.changed.notify_all();
    }

    /// Ends the backup, removes its set, and tells every connection why; `false` when it is being
    /// sealed, or over. Blocks while files are removed.
    pub(crate) fn end(&self, why: &Error) -> bool {
        let mut inner = self.inner();
        if matches!(inner.phase, Phase::Sealing | Phase::Over) {
            return false;
        }
        self.is_now(Phase::Over, &mut inner);
        let set = inner.set.take();
        let incremental = inner.incremental.take();
        let streams = std::mem::take(&mut inner.streams);
        let members: Vec<Member> = inner
            .control
            .take()
            .into_iter()
            .chain(streams.into_values())
            .collect();
        drop(inner);
        tracing::warn!("the backup of {} is over: {}", self.holder, why.message);
        for member in members {
            (member.reports)(BackupReport::Failed(why.clone()));
        }
        // The last of it goes with the threads of its streams.
        drop((set, incremental));
        true
    }

    fn leave(self: &Arc<Self>, place: BackupPart, id: u64, runtime: &Handle) {
        let mut inner = self.inner();
        match place {
            BackupPart::Stream(number) => {
                if inner
                    .streams
                    .get(&number)
                    .is_some_and(|member| member.id == id)
                {
                    inner.streams.remove(&number);
                    self.changed.notify_all();
                }
            }
            BackupPart::Control => {
                if inner.control.as_ref().is_none_or(|member| member.id != id) {
                    return;
                }
                inner.control = None;
                if inner.phase != Phase::Receiving {
                    return;
                }
                let running = Arc::clone(self);
                drop(inner);
                tracing::info!(
                    "the backup of {} lost its connection; the client can reconnect within \
                    {BACKUP_LEASE:?}",
                    self.holder
                );
                runtime.spawn(async move {
                    tokio::select! {
                        () = tokio::time::sleep(BACKUP_LEASE) => {}
                        () = running.over.cancelled() => return,
                    }
                    let workforce = running.workforce.clone();
                    worker::aside(&workforce, "backup", move || running.lease_ran_out(id));
                });
            }
        }
    }

    /// Ends the backup unless somebody has controlled it since `id` left.
    fn lease_ran_out(&self, id: u64) {
        let is_lost = {
            let inner = self.inner();
            inner.phase == Phase::Receiving && inner.last_control == id
        };
        if is_lost {
            let text = format!("its client was gone for longer than {BACKUP_LEASE:?}");
            self.end(&Error::connection(ErrorCode::Abandoned, text, ""));
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attachment {
    /// The backup.
    pub(crate) const fn running(&self) -> &Arc<Running> {
        &self.running
    }

    /// What tells this part from others.
    pub(crate) const fn number(&self) -> PartNumber {
        PartNumber {
            place: self.place,
            id: self.id,
        }
    }

    /// The part the connection has.
    pub(crate) const fn place(&self) -> BackupPart {
        self.place
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.running.leave(self.place, self.id, &self.runtime);
    }
}

/// The answer to whoever asks for a backup that is none any more.
pub(crate) fn unknown() -> Error {
    Error::channel(
        ErrorCode::Abandoned,
        "no such backup is running: it ended, or the receiver was restarted",
        "start the backup again",
    )
}

impl WorkerReport for BackupReport {
    fn failed(error: Error) -> Self {
        BackupReport::Failed(error)
    }
}

fn held(held: HeldFile) -> BackupHeld {
    match held {
        HeldFile::Absent => BackupHeld::Nothing,
        HeldFile::Partial { held, len } => BackupHeld::Beginning {
            bytes: held.len,
            crc32c: held.crc32c,
            len,
        },
        HeldFile::Complete(digest) => BackupHeld::All(digest),
        HeldFile::Directory => BackupHeld::Directory,
    }
}
