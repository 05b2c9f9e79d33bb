//! A base backup on its way: the control connection and the streams, both ends of each.
//! Never does IO. Invariant: a set counts as sealed for its sender only when the receiver says so,
//! which needs a [`ProofOfSeal`]; and a stream's blocks follow one another without hole or overlap.
//!
//! ```text
//! master                                         receiver
//!   Begin {who, origin, label, timeline}   ->      takes the lease
//!                                          <-      Granted {token, lease, streams}
//!   ParentRequest {start, …}               ->      looks for a set that need not be sent again
//!                                          <-      Parent {name, start}, or why a full one
//!   NeededRequest {path, length} …         ->      compares with what WAL changed since
//!                                          <-      Needed {blocks} …
//! on more connections, one a stream:
//!   Join {token, stream}                   ->
//!                                          <-      Granted
//!   Data {offset, raw length, bytes} …     ->      unpacks tar, writes files
//!                                          <-      FilesDone {path, length, CRC-32C} …
//!   StreamEnd {length}                     ->
//!                                          <-      StreamTaken {length}
//! on the first connection again:
//!   Part {label}, Data …                   ->
//!   Part {manifest}, Data …                ->
//!   Finish {start, stop, timeline}         ->      waits for the WAL, compares, syncs, renames
//!                                          <-      Sealed {name, …}
//! ```
//!
//! Everything of one connection runs on one channel. A stream whose connection breaks joins again,
//! asks what is held of the files it had not heard of (`HeldRequest` → `Held`), and goes on with a new
//! tar stream: files that are complete are left out, one that was cut goes on where it was. The control
//! connection comes back with `Resume` within the lease; after that the set is removed.
//!
//! Whoever only wants to know what a backup would send asks for the parent on a connection of its own, without
//! `Begin`, and for what is needed behind that.
//!
//! ```text
//! receiver:  Idle ─▶ Admitting ─┬─▶ Controlling ⇄ Choosing, Comparing
//!                               │       └─▶ Finishing ─▶ Over
//!                               ├─▶ Rehearsing ⇄ Comparing
//!                               └─▶ Streaming ⇄ LookingUp
//!                                       └─▶ Ending ─▶ Over
//! ```

use crate::error::{PeerMisbehaved, ProtocolError};
use crate::message::backup::{
    Backup, BackupBegin, BackupHeld, BackupSealed, Finish, Granted, Join, Part, PartName,
    SetAcknowledgement, Token,
};
use crate::message::parent::{FileLen, FileNeed, ParentAnswer, ParentRequest};
use crate::message::{Data, Error, Message, MessageKind};
use crate::names::RelativePath;
use crate::session::{Misuse, Standing, misuse, unexpected};

/// Shown by whoever sealed a set. The archive's store is the only place that may implement it.
pub trait ProofOfSeal {
    /// The name of the set.
    fn name(&self) -> String;
}

/// The confirmation of a sealed set: there is no other way to build one.
pub fn acknowledge(proof: &impl ProofOfSeal, mut facts: BackupSealed) -> Message {
    facts.name = proof.name();
    Message::Backup(Backup::Sealed(SetAcknowledgement(facts)))
}

/// How a connection asks to be part of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupRequest {
    /// To begin one.
    Begin(BackupBegin),
    /// To control one again.
    Resume(Token),
    /// To carry a stream of one.
    Join(Join),
    /// To be told what one would send.
    Rehearse(ParentRequest),
}

/// What a receiver's driver does.
#[must_use = "a session goes on only when its driver does what it says"]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupReceiverAction {
    /// Decide about this and feed [`BackupReceiver::admitted`], [`BackupReceiver::sealed`] or
    /// [`BackupReceiver::failed`].
    Admit(BackupRequest),
    /// Look these up, behind every block so far, and feed [`BackupReceiver::looked_up`].
    LookUp(Vec<RelativePath>),
    /// Look for a set to begin with, and feed [`BackupReceiver::parent_chosen`].
    ChooseParent(ParentRequest),
    /// Say what is needed of these files, and feed [`BackupReceiver::compared`].
    Compare(Vec<FileLen>),
    /// Unpack this block and take it into the set.
    Write(Data),
    /// The stream came to its end: see that its tar did too, and feed [`BackupReceiver::stream_taken`].
    EndStream(u64),
    /// A part begins; every [`BackupReceiverAction::WritePart`] up to the next belongs to it.
    BeginPart(Part),
    /// Unpack this block and append it to the part.
    WritePart(Data),
    /// Seal the set and feed [`BackupReceiver::sealed`].
    Finish(Finish),
    /// The sender gave the backup up, in these words.
    Abort(String),
    /// Send this.
    Send(Message),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum BackupReceiverState {
    Idle,
    Admitting(BackupRequest),
    Controlling {
        /// What is missing of the part under way, and where it goes on.
        part: Option<(u64, u64)>,
    },
    /// A set to begin with is looked for.
    Choosing,
    /// Somebody was told what set a backup would begin with.
    Rehearsing,
    Comparing {
        count: usize,
        rehearses: bool,
    },
    Finishing,
    Streaming {
        next_offset: u64,
    },
    LookingUp {
        next_offset: u64,
        count: usize,
    },
    Ending {
        bytes: u64,
    },
    Over,
    /// An error was sent while more may be on its way: it is dropped.
    Draining,
}

/// The receiver's end of one connection of a backup.
#[derive(Debug)]
pub struct BackupReceiver {
    state: BackupReceiverState,
}

impl Default for BackupReceiver {
    fn default() -> Self {
        BackupReceiver {
            state: BackupReceiverState::Idle,
        }
    }
}

impl BackupReceiver {
    /// Whether the connection has nothing to do with a backup, or not any more.
    pub const fn is_idle(&self) -> bool {
        matches!(
            self.state,
            BackupReceiverState::Idle | BackupReceiverState::Over | BackupReceiverState::Draining
        )
    }

    /// Whether a set is being sealed.
    pub const fn is_finishing(&self) -> bool {
        matches!(self.state, BackupReceiverState::Finishing)
    }

    /// A message arrived on the backup's channel.
    pub fn received(
        &mut self,
        message: Message,
    ) -> Result<Option<BackupReceiverAction>, ProtocolError> {
        match (&mut self.state, message) {
            (BackupReceiverState::Draining | BackupReceiverState::Over, Message::Error(_)) => {
                Ok(None)
            }
            (BackupReceiverState::Draining, Message::Data(_) | Message::Backup(_)) => Ok(None),
            (_, Message::Error(error)) => {
                self.state = BackupReceiverState::Over;
                Ok(Some(BackupReceiverAction::Abort(error.message)))
            }
            (BackupReceiverState::Idle, Message::Backup(Backup::Begin(begin))) => {
                self.admit(BackupRequest::Begin(begin))
            }
            (BackupReceiverState::Idle, Message::Backup(Backup::Resume(token))) => {
                self.admit(BackupRequest::Resume(token))
            }
            (BackupReceiverState::Idle, Message::Backup(Backup::Join(join))) => {
                self.admit(BackupRequest::Join(join))
            }
            (BackupReceiverState::Idle, Message::Backup(Backup::ParentRequest(request))) => {
                self.admit(BackupRequest::Rehearse(request))
            }
            (
                BackupReceiverState::Controlling { part },
                Message::Backup(Backup::ParentRequest(request)),
            ) => {
                whole(part)?;
                self.state = BackupReceiverState::Choosing;
                Ok(Some(BackupReceiverAction::ChooseParent(request)))
            }
            (
                BackupReceiverState::Controlling { part },
                Message::Backup(Backup::NeededRequest(files)),
            ) => {
                whole(part)?;
                Ok(Some(self.compare(files, false)))
            }
            (BackupReceiverState::Rehearsing, Message::Backup(Backup::NeededRequest(files))) => {
                Ok(Some(self.compare(files, true)))
            }
            (BackupReceiverState::Controlling { part }, Message::Data(data)) => {
                part_data(part, &data)?;
                Ok(Some(BackupReceiverAction::WritePart(data)))
            }
            (BackupReceiverState::Controlling { part }, Message::Backup(Backup::Part(begun))) => {
                whole(part)?;
                *part = Some((0, begun.size));
                Ok(Some(BackupReceiverAction::BeginPart(begun)))
            }
            (
                BackupReceiverState::Controlling { part },
                Message::Backup(Backup::Finish(finish)),
            ) => {
                whole(part)?;
                self.state = BackupReceiverState::Finishing;
                Ok(Some(BackupReceiverAction::Finish(finish)))
            }
            (BackupReceiverState::Streaming { next_offset }, Message::Data(data)) => {
                *next_offset = continues(*next_offset, &data)?;
                Ok(Some(BackupReceiverAction::Write(data)))
            }
            (
                BackupReceiverState::Streaming { next_offset },
                Message::Backup(Backup::HeldRequest(paths)),
            ) => {
                self.state = BackupReceiverState::LookingUp {
                    next_offset: *next_offset,
                    count: paths.len(),
                };
                Ok(Some(BackupReceiverAction::LookUp(paths)))
            }
            (
                BackupReceiverState::Streaming { next_offset },
                Message::Backup(Backup::StreamEnd(end)),
            ) => {
                if *next_offset != end {
                    let (expected, found) = (*next_offset, end);
                    return Err(PeerMisbehaved::Offset { expected, found }.into());
                }
                self.state = BackupReceiverState::Ending { bytes: end };
                Ok(Some(BackupReceiverAction::EndStream(end)))
            }
            (state, message) => Err(unexpected(state, &message)),
        }
    }

    /// The answer to [`BackupReceiverAction::Admit`]: it may. Nothing is done about this and the next three
    /// where the backup was refused or given up meanwhile.
    pub fn admitted(&mut self, granted: Granted) -> Result<Option<BackupReceiverAction>, Misuse> {
        self.state = match &self.state {
            BackupReceiverState::Admitting(BackupRequest::Begin(_) | BackupRequest::Resume(_)) => {
                BackupReceiverState::Controlling { part: None }
            }
            BackupReceiverState::Admitting(BackupRequest::Join(_)) => {
                BackupReceiverState::Streaming { next_offset: 0 }
            }
            _ => return self.late("admitted"),
        };
        Ok(Some(send(Backup::Granted(granted))))
    }

    /// The answer to [`BackupReceiverAction::ChooseParent`], or to a rehearsal.
    pub fn parent_chosen(
        &mut self,
        answer: ParentAnswer,
    ) -> Result<Option<BackupReceiverAction>, Misuse> {
        self.state = match &self.state {
            BackupReceiverState::Choosing => BackupReceiverState::Controlling { part: None },
            BackupReceiverState::Admitting(BackupRequest::Rehearse(_)) => {
                BackupReceiverState::Rehearsing
            }
            _ => return self.late("parent_chosen"),
        };
        Ok(Some(send(Backup::Parent(answer))))
    }

    /// The answer to [`BackupReceiverAction::Compare`].
    pub fn compared(
        &mut self,
        needs: Vec<FileNeed>,
    ) -> Result<Option<BackupReceiverAction>, Misuse> {
        let BackupReceiverState::Comparing { count, rehearses } = self.state else {
            return self.late("compared");
        };
        if needs.len() != count {
            return Err(misuse(&self.state, "compared with another number"));
        }
        self.state = match rehearses {
            true => BackupReceiverState::Rehearsing,
            false => BackupReceiverState::Controlling { part: None },
        };
        Ok(Some(send(Backup::Needed(needs))))
    }

    /// The answer to [`BackupReceiverAction::LookUp`].
    pub fn looked_up(
        &mut self,
        held: Vec<BackupHeld>,
    ) -> Result<Option<BackupReceiverAction>, Misuse> {
        let BackupReceiverState::LookingUp { next_offset, count } = self.state else {
            return self.late("looked_up");
        };
        if held.len() != count {
            return Err(misuse(&self.state, "looked_up of another number"));
        }
        self.state = BackupReceiverState::Streaming { next_offset };
        Ok(Some(send(Backup::Held(held))))
    }

    /// The answer to [`BackupReceiverAction::EndStream`].
    pub fn stream_taken(&mut self) -> Result<Option<BackupReceiverAction>, Misuse> {
        let BackupReceiverState::Ending { bytes } = self.state else {
            return self.late("stream_taken");
        };
        self.state = BackupReceiverState::Over;
        Ok(Some(send(Backup::StreamTaken(bytes))))
    }

    /// The answer to [`BackupReceiverAction::Finish`], or to a resumption that comes after it; `sealed`
    /// is what [`acknowledge`] made.
    pub fn sealed(&mut self, sealed: Message) -> Result<Option<BackupReceiverAction>, Misuse> {
        match self.state {
            BackupReceiverState::Finishing
            | BackupReceiverState::Admitting(BackupRequest::Resume(_)) => {
                self.state = BackupReceiverState::Over;
                Ok(Some(BackupReceiverAction::Send(sealed)))
            }
            _ => self.late("sealed"),
        }
    }

    /// Something the driver was asked to do failed, or the backup ended; the error goes to the
    /// sender.
    pub fn failed(&mut self, error: Error) -> BackupReceiverAction {
        self.state = BackupReceiverState::Draining;
        BackupReceiverAction::Send(Message::Error(error))
    }

    /// An answer that is not awaited: to something that was refused or given up, or to nothing.
    fn late(&self, called: &'static str) -> Result<Option<BackupReceiverAction>, Misuse> {
        match &self.state {
            BackupReceiverState::Over | BackupReceiverState::Draining => Ok(None),
            state => Err(misuse(state, called)),
        }
    }

    fn compare(&mut self, files: Vec<FileLen>, rehearses: bool) -> BackupReceiverAction {
        let count = files.len();
        self.state = BackupReceiverState::Comparing { count, rehearses };
        BackupReceiverAction::Compare(files)
    }

    fn admit(
        &mut self,
        request: BackupRequest,
    ) -> Result<Option<BackupReceiverAction>, ProtocolError> {
        self.state = BackupReceiverState::Admitting(request.clone());
        Ok(Some(BackupReceiverAction::Admit(request)))
    }
}

impl Standing for BackupReceiverState {
    fn name(&self) -> &'static str {
        match self {
            BackupReceiverState::Idle => "no backup is open on the channel",
            BackupReceiverState::Admitting(_) => "a connection asks to be part of a backup",
            BackupReceiverState::Controlling { .. } => "a backup is controlled",
            BackupReceiverState::Choosing => "a backup's parent is chosen",
            BackupReceiverState::Rehearsing => "somebody asks what a backup would send",
            BackupReceiverState::Comparing { .. } => "files are compared with a backup's parent",
            BackupReceiverState::Finishing => "a backup set is being sealed",
            BackupReceiverState::Streaming { .. } => "a stream of a backup is received",
            BackupReceiverState::LookingUp { .. } => "files of a backup are looked up",
            BackupReceiverState::Ending { .. } => "a stream of a backup ends",
            BackupReceiverState::Over => "the backup is over",
            BackupReceiverState::Draining => "a refused backup is being drained",
        }
    }

    fn expects(&self) -> &'static [MessageKind] {
        match self {
            BackupReceiverState::Idle => &[
                MessageKind::BackupBegin,
                MessageKind::BackupResume,
                MessageKind::BackupJoin,
                MessageKind::BackupParentRequest,
                MessageKind::Error,
            ],
            BackupReceiverState::Rehearsing => {
                &[MessageKind::BackupNeededRequest, MessageKind::Error]
            }
            BackupReceiverState::Controlling { .. } => &[
                MessageKind::BackupParentRequest,
                MessageKind::BackupNeededRequest,
                MessageKind::BackupPart,
                MessageKind::Data,
                MessageKind::BackupFinish,
                MessageKind::Error,
            ],
            BackupReceiverState::Streaming { .. } => &[
                MessageKind::Data,
                MessageKind::BackupHeldRequest,
                MessageKind::BackupStreamEnd,
                MessageKind::Error,
            ],
            BackupReceiverState::Draining => DRAINED,
            BackupReceiverState::Admitting(_)
            | BackupReceiverState::Finishing
            | BackupReceiverState::Choosing
            | BackupReceiverState::Comparing { .. }
            | BackupReceiverState::LookingUp { .. }
            | BackupReceiverState::Ending { .. }
            | BackupReceiverState::Over => &[MessageKind::Error],
        }
    }
}

fn send(backup: Backup) -> BackupReceiverAction {
    BackupReceiverAction::Send(Message::Backup(backup))
}

/// Everything a connection of a backup may have on its way.
const DRAINED: &[MessageKind] = &[
    MessageKind::BackupBegin,
    MessageKind::BackupGranted,
    MessageKind::BackupResume,
    MessageKind::BackupJoin,
    MessageKind::BackupHeldRequest,
    MessageKind::BackupHeld,
    MessageKind::BackupFilesDone,
    MessageKind::BackupStreamEnd,
    MessageKind::BackupStreamTaken,
    MessageKind::BackupPart,
    MessageKind::BackupFinish,
    MessageKind::BackupSealed,
    MessageKind::BackupParentRequest,
    MessageKind::BackupParent,
    MessageKind::BackupNeededRequest,
    MessageKind::BackupNeeded,
    MessageKind::Data,
    MessageKind::Error,
];

/// The offset behind a block that has to begin at `expected`.
fn continues(expected: u64, data: &Data) -> Result<u64, PeerMisbehaved> {
    if data.offset != expected {
        let found = data.offset;
        return Err(PeerMisbehaved::Offset { expected, found });
    }
    Ok(expected.saturating_add(u64::from(data.raw_bytes)))
}

fn part_data(part: &mut Option<(u64, u64)>, data: &Data) -> Result<(), PeerMisbehaved> {
    // Without a part every block is one too many.
    let (next_offset, size) = part.get_or_insert((0, 0));
    let end = continues(*next_offset, data)?;
    if end > *size {
        return Err(PeerMisbehaved::BeyondOffer { size: *size, end });
    }
    *next_offset = end;
    Ok(())
}

/// Fails while blocks of the part under way are missing.
fn whole(part: &Option<(u64, u64)>) -> Result<(), PeerMisbehaved> {
    match part {
        Some((found, expected)) if found != expected => Err(PeerMisbehaved::Offset {
            expected: *found,
            found: *expected,
        }),
        _ => Ok(()),
    }
}

/// What a message means to the master's control connection.
#[must_use = "a session goes on only when its driver does what it says"]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlEvent {
    /// The backup may begin, or go on.
    Granted(Granted),
    /// The answer to [`Control::parent`] or [`Control::rehearse`].
    Parent(ParentAnswer),
    /// The answer to [`Control::compare`], in its order.
    Needed(Vec<FileNeed>),
    /// The set is sealed; the connection has nothing more to say.
    Sealed(BackupSealed),
    /// It was refused, or given up by the receiver, in words.
    Refused(Error),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ControlState {
    Asking { resumes: bool },
    Granted,
    Choosing { rehearses: bool },
    Rehearsing,
    Comparing { count: usize, rehearses: bool },
    Finishing,
    Over,
}

/// The master's end of the control connection.
#[derive(Debug)]
pub struct Control {
    state: ControlState,
}

impl Control {
    /// Asks for a backup.
    pub fn begin(begin: BackupBegin) -> (Self, Message) {
        let state = ControlState::Asking { resumes: false };
        (Control { state }, Message::Backup(Backup::Begin(begin)))
    }

    /// Asks to go on with one.
    pub fn resume(token: Token) -> (Self, Message) {
        let state = ControlState::Asking { resumes: true };
        (Control { state }, Message::Backup(Backup::Resume(token)))
    }

    /// Asks what a backup would begin with, and nothing more.
    pub fn rehearse(request: ParentRequest) -> (Self, Message) {
        let state = ControlState::Choosing { rehearses: true };
        (
            Control { state },
            Message::Backup(Backup::ParentRequest(request)),
        )
    }

    /// Asks for a set to begin with.
    pub fn parent(&mut self, request: ParentRequest) -> Result<Message, Misuse> {
        if self.state != ControlState::Granted {
            return Err(misuse(&self.state, "parent"));
        }
        self.state = ControlState::Choosing { rehearses: false };
        Ok(Message::Backup(Backup::ParentRequest(request)))
    }

    /// Asks what is needed of these files beside what that set has.
    pub fn compare(&mut self, files: Vec<FileLen>) -> Result<Message, Misuse> {
        let rehearses = match self.state {
            ControlState::Granted => false,
            ControlState::Rehearsing => true,
            _ => return Err(misuse(&self.state, "compare")),
        };
        let count = files.len();
        self.state = ControlState::Comparing { count, rehearses };
        Ok(Message::Backup(Backup::NeededRequest(files)))
    }

    /// The announcement of a part, whose blocks have to follow.
    pub fn part(&self, name: PartName, size: u64, crc32: u32) -> Result<Message, Misuse> {
        if self.state != ControlState::Granted {
            return Err(misuse(&self.state, "part"));
        }
        Ok(Message::Backup(Backup::Part(Part { name, size, crc32 })))
    }

    /// Asks to have the set sealed.
    pub fn finish(&mut self, finish: Finish) -> Result<Message, Misuse> {
        if self.state != ControlState::Granted {
            return Err(misuse(&self.state, "finish"));
        }
        self.state = ControlState::Finishing;
        Ok(Message::Backup(Backup::Finish(finish)))
    }

    /// A message arrived.
    pub fn received(&mut self, message: Message) -> Result<ControlEvent, ProtocolError> {
        match (self.state, message) {
            (ControlState::Over, message) => Err(unexpected(&self.state, &message)),
            (_, Message::Error(error)) => {
                self.state = ControlState::Over;
                Ok(ControlEvent::Refused(error))
            }
            (ControlState::Asking { .. }, Message::Backup(Backup::Granted(granted))) => {
                self.state = ControlState::Granted;
                Ok(ControlEvent::Granted(granted))
            }
            (ControlState::Choosing { rehearses }, Message::Backup(Backup::Parent(answer))) => {
                self.state = asked_in(rehearses);
                Ok(ControlEvent::Parent(answer))
            }
            (ControlState::Comparing { count, rehearses }, Message::Backup(Backup::Needed(it))) => {
                answers("files asked about", count as u64, it.len() as u64)?;
                self.state = asked_in(rehearses);
                Ok(ControlEvent::Needed(it))
            }
            (
                ControlState::Finishing | ControlState::Asking { resumes: true },
                Message::Backup(Backup::Sealed(sealed)),
            ) => {
                self.state = ControlState::Over;
                Ok(ControlEvent::Sealed(sealed.0))
            }
            (state, message) => Err(unexpected(&state, &message)),
        }
    }
}

const fn asked_in(rehearses: bool) -> ControlState {
    match rehearses {
        true => ControlState::Rehearsing,
        false => ControlState::Granted,
    }
}

impl Standing for ControlState {
    fn name(&self) -> &'static str {
        match self {
            ControlState::Asking { .. } => "waiting for the grant of a backup",
            ControlState::Granted => "controlling a backup",
            ControlState::Choosing { .. } => "waiting for a backup's parent",
            ControlState::Rehearsing => "asking what a backup would send",
            ControlState::Comparing { .. } => "waiting for the answer what is needed",
            ControlState::Finishing => "waiting until a backup set is sealed",
            ControlState::Over => "the backup is over",
        }
    }

    fn expects(&self) -> &'static [MessageKind] {
        match self {
            ControlState::Asking { resumes: false } => {
                &[MessageKind::BackupGranted, MessageKind::Error]
            }
            ControlState::Asking { resumes: true } => &[
                MessageKind::BackupGranted,
                MessageKind::BackupSealed,
                MessageKind::Error,
            ],
            ControlState::Granted | ControlState::Rehearsing => &[MessageKind::Error],
            ControlState::Choosing { .. } => &[MessageKind::BackupParent, MessageKind::Error],
            ControlState::Comparing { .. } => &[MessageKind::BackupNeeded, MessageKind::Error],
            ControlState::Finishing => &[MessageKind::BackupSealed, MessageKind::Error],
            ControlState::Over => &[],
        }
    }
}

/// What a message means to one of the master's streams.
#[must_use = "a session goes on only when its driver does what it says"]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamEvent {
    /// Ask what is held, or send.
    Granted,
    /// The answer to [`Stream::ask`], in its order.
    Held(Vec<BackupHeld>),
    /// These files have arrived.
    FilesDone(Vec<crate::message::backup::FileDone>),
    /// All of the stream was taken.
    Taken,
    /// It was refused in words.
    Refused(Error),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StreamState {
    Asking,
    Open,
    LookingUp { count: usize },
    Ending { bytes: u64 },
    Over,
}

/// The master's end of one stream.
#[derive(Debug)]
pub struct Stream {
    state: StreamState,
    sent_bytes: u64,
}

impl Stream {
    /// Asks to carry a stream.
    pub fn join(join: Join) -> (Self, Message) {
        let stream = Stream {
            state: StreamState::Asking,
            sent_bytes: 0,
        };
        (stream, Message::Backup(Backup::Join(join)))
    }

    /// Asks what is held of these files.
    pub fn ask(&mut self, paths: Vec<RelativePath>) -> Result<Message, Misuse> {
        if self.state != StreamState::Open {
            return Err(misuse(&self.state, "ask"));
        }
        self.state = StreamState::LookingUp { count: paths.len() };
        Ok(Message::Backup(Backup::HeldRequest(paths)))
    }

    /// Where in the stream the next block begins.
    pub const fn next_offset(&self) -> u64 {
        self.sent_bytes
    }

    /// A block of this many raw bytes went out.
    pub fn block_sent(&mut self, raw_bytes: u32) -> Result<(), Misuse> {
        if self.state != StreamState::Open {
            return Err(misuse(&self.state, "block_sent"));
        }
        self.sent_bytes = self.sent_bytes.saturating_add(u64::from(raw_bytes));
        Ok(())
    }

    /// Says that this was all.
    pub fn end(&mut self) -> Result<Message, Misuse> {
        if self.state != StreamState::Open {
            return Err(misuse(&self.state, "end"));
        }
        let bytes = self.sent_bytes;
        self.state = StreamState::Ending { bytes };
        Ok(Message::Backup(Backup::StreamEnd(bytes)))
    }

    /// A message arrived.
    pub fn received(&mut self, message: Message) -> Result<StreamEvent, ProtocolError> {
        match (self.state, message) {
            (StreamState::Over, message) => Err(unexpected(&self.state, &message)),
            (_, Message::Error(error)) => {
                self.state = StreamState::Over;
                Ok(StreamEvent::Refused(error))
            }
            (StreamState::Asking, Message::Backup(Backup::Granted(_))) => {
                self.state = StreamState::Open;
                Ok(StreamEvent::Granted)
            }
            (StreamState::LookingUp { count }, Message::Backup(Backup::Held(held))) => {
                answers("files asked about", count as u64, held.len() as u64)?;
                self.state = StreamState::Open;
                Ok(StreamEvent::Held(held))
            }
            (
                StreamState::Open | StreamState::LookingUp { .. } | StreamState::Ending { .. },
                Message::Backup(Backup::FilesDone(files)),
            ) => Ok(StreamEvent::FilesDone(files)),
            (StreamState::Ending { bytes }, Message::Backup(Backup::StreamTaken(taken))) => {
                answers("bytes of a stream", bytes, taken)?;
                self.state = StreamState::Over;
                Ok(StreamEvent::Taken)
            }
            (state, message) => Err(unexpected(&state, &message)),
        }
    }
}

impl Standing for StreamState {
    fn name(&self) -> &'static str {
        match self {
            StreamState::Asking => "waiting to be let into a backup",
            StreamState::Open => "sending a stream of a backup",
            StreamState::LookingUp { .. } => "waiting for the answer what is held",
            StreamState::Ending { .. } => "waiting until a stream is taken",
            StreamState::Over => "the stream is over",
        }
    }

    fn expects(&self) -> &'static [MessageKind] {
        match self {
            StreamState::Asking => &[MessageKind::BackupGranted, MessageKind::Error],
            StreamState::Open => &[MessageKind::BackupFilesDone, MessageKind::Error],
            StreamState::LookingUp { .. } => &[
                MessageKind::BackupHeld,
                MessageKind::BackupFilesDone,
                MessageKind::Error,
            ],
            StreamState::Ending { .. } => &[
                MessageKind::BackupStreamTaken,
                MessageKind::BackupFilesDone,
                MessageKind::Error,
            ],
            StreamState::Over => &[],
        }
    }
}

/// Fails where the receiver speaks of another number than it was told.
fn answers(of: &'static str, expected: u64, found: u64) -> Result<(), PeerMisbehaved> {
    match expected == found {
        true => Ok(()),
        false => Err(PeerMisbehaved::Count {
            of,
            expected,
            found,
        }),
    }
}

#[cfg(test)]
#[path = "backup_tests.rs"]
mod tests;
