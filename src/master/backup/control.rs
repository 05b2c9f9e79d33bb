//! The control connection of a backup: it takes the lease, keeps it, and has the set sealed.
//! Never gives a backup up because a connection broke: it comes back until the lease has run out.
//! Invariant: `BackupSealed` is returned only when the receiver said so.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::time::timeout;
use walmgr_protocol::compress::Packer;
use walmgr_protocol::message::backup::{
    BackupBegin, BackupSealed, Finish, Granted, PartName, Token,
};
use walmgr_protocol::message::parent::{FileLen, FileNeed, ParentAnswer, ParentRequest};
use walmgr_protocol::message::{Error, ErrorCode, Message, MessageKind, Scope};
use walmgr_protocol::session::Misuse;
use walmgr_protocol::session::backup::{Control as Session, ControlEvent};

use crate::config::MasterConfig;
use crate::error::{CommandError, Kind, Result};
use crate::master::cluster::ClusterFacts;
use crate::transport::connect::{ReceiverTarget, answered_with, refused};
use crate::transport::wire::{Wire, WireFault};

/// The channel that everything of a backup's connection runs on.
pub(crate) const CHANNEL: u16 = 1;

/// Silence after which a connection counts as lost: the receiver asks after 10 s of it.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(40);

/// Pause before a connection is made again.
pub(crate) const RETRY_INTERVAL: Duration = Duration::from_millis(300);

/// Time to say that the backup is given up.
const GIVE_UP_DEADLINE: Duration = Duration::from_secs(2);

/// Where the receiver is, and who asks.
pub(crate) struct ReceiverLink {
    target: ReceiverTarget,
    facts: ClusterFacts,
    receiver: String,
    /// Why nothing can be built on the receiver's older set.
    unfit: OnceLock<String>,
}

/// What kept a connection from doing its work.
pub(crate) enum LinkError {
    /// The link, or the receiver for the moment: another connection may fare better.
    Retry(CommandError),
    /// Another one would end the same way.
    Final(CommandError),
}

impl LinkError {
    /// The error, whatever may become of another attempt.
    pub(crate) fn into_error(self) -> CommandError {
        match self {
            LinkError::Retry(error) | LinkError::Final(error) => error,
        }
    }
}

impl From<Misuse> for LinkError {
    fn from(misuse: Misuse) -> Self {
        LinkError::Final(misuse.into())
    }
}

impl From<WireFault> for LinkError {
    fn from(fault: WireFault) -> Self {
        LinkError::Retry(fault.into())
    }
}

impl ReceiverLink {
    /// The way to the receiver that the settings name.
    pub(crate) fn new(config: &MasterConfig, facts: ClusterFacts) -> Result<ReceiverLink> {
        Ok(ReceiverLink {
            target: ReceiverTarget::from_config(config)?,
            facts,
            receiver: config.slave.to_string(),
            unfit: OnceLock::new(),
        })
    }

    /// Who asks.
    pub(crate) const fn facts(&self) -> ClusterFacts {
        self.facts
    }

    /// Connects.
    pub(crate) async fn connect(&self) -> Result<Wire, LinkError> {
        let connecting = self.target.connect(self.facts.cluster, self.facts.timeline);
        match connecting.await {
            Ok(connection) => Ok(connection.wire),
            Err(error) if error.kind() == Kind::Retry => Err(LinkError::Retry(error)),
            Err(error) => Err(LinkError::Final(error)),
        }
    }

    /// What a refusal means for the backup.
    pub(crate) fn refused(&self, error: Error) -> LinkError {
        let (code, scope) = (error.code, error.scope);
        if code == ErrorCode::ParentUnfit {
            self.unfit.get_or_init(|| error.message.clone());
        }
        let refused = refused(&self.receiver, "refused", error);
        match code {
            // A frame that was damaged on its way, or a receiver that is busy or restarting.
            ErrorCode::Malformed | ErrorCode::TimedOut | ErrorCode::ShuttingDown
                if scope == Scope::Connection =>
            {
                LinkError::Retry(refused)
            }
            _ => LinkError::Final(refused),
        }
    }

    /// Why the receiver's older set is none that a backup can be built on, if that came out on the way.
    pub(crate) fn unfit(&self) -> Option<&str> {
        self.unfit.get().map(String::as_str)
    }

    /// It answered with something else than was asked.
    pub(crate) fn answered_with(&self, found: MessageKind) -> LinkError {
        LinkError::Final(answered_with(&self.receiver, found))
    }
}

/// The next message; silence is an end.
pub(crate) async fn receive(wire: &mut Wire) -> Result<Message, WireFault> {
    Ok(wire.next_within(SILENCE_MAX).await?.message)
}

/// The right to make a backup, as long as this exists and its connection comes back in time.
pub(crate) struct BackupControl<'a> {
    way: &'a ReceiverLink,
    wire: Option<Wire>,
    session: Session,
    granted: Granted,
    /// When the connection was lost, if it is.
    lost: Instant,
    /// The answer to a rehearsal.
    rehearsed: Option<ParentAnswer>,
}

impl<'a> BackupControl<'a> {
    /// Asks for the right; it is refused while somebody else has it.
    pub(crate) async fn begin(
        way: &'a ReceiverLink,
        begin: BackupBegin,
    ) -> Result<BackupControl<'a>> {
        let mut wire = way.connect().await.map_err(LinkError::into_error)?;
        let (mut session, message) = Session::begin(begin);
        wire.send(CHANNEL, &message).await?;
        let event = session.received(receive(&mut wire).await?);
        match event.map_err(WireFault::from)? {
            ControlEvent::Granted(granted) => Ok(BackupControl {
                way,
                wire: Some(wire),
                session,
                granted,
                lost: Instant::now(),
                rehearsed: None,
            }),
            ControlEvent::Refused(error) => Err(way.refused(error).into_error()),
            event => Err(way.answered_with(kind_of(&event)).into_error()),
        }
    }

    /// Asks what a backup would be built on, without beginning one.
    pub(crate) async fn rehearse(
        way: &'a ReceiverLink,
        request: ParentRequest,
    ) -> Result<BackupControl<'a>> {
        let mut wire = way.connect().await.map_err(LinkError::into_error)?;
        let (mut session, message) = Session::rehearse(request);
        wire.send(CHANNEL, &message).await?;
        let event = session.received(receive(&mut wire).await?);
        match event.map_err(WireFault::from)? {
            ControlEvent::Parent(answer) => Ok(BackupControl {
                way,
                wire: Some(wire),
                session,
                granted: Granted {
                    token: Token([0; 16]),
                    lease_s: 0,
                    streams_max: 0,
                },
                lost: Instant::now(),
                rehearsed: Some(answer),
            }),
            ControlEvent::Refused(error) => Err(way.refused(error).into_error()),
            event => Err(way.answered_with(kind_of(&event)).into_error()),
        }
    }

    /// The answer to that.
    pub(crate) const fn rehearsed(&self) -> Option<&ParentAnswer> {
        self.rehearsed.as_ref()
    }

    /// What was granted.
    pub(crate) const fn granted(&self) -> Granted {
        self.granted
    }

    /// Does something else while the lease is kept; a refusal by the receiver ends it.
    pub(crate) async fn during<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut work = std::pin::pin!(work);
        loop {
            let wire = self.connected().await?;
            let arrived = tokio::select! {
                biased;
                done = &mut work => return done,
                arrived = wire.next_within(SILENCE_MAX) => arrived,
            };
            match arrived {
                Ok(frame) => self.unasked(frame.message)?,
                Err(fault) => self.lose(&fault),
            }
        }
    }

    /// Asks for an older set that need not be sent again.
    pub(crate) async fn parent(&mut self, request: ParentRequest) -> Result<ParentAnswer> {
        match self.ask(|session| session.parent(request)).await? {
            ControlEvent::Parent(answer) => Ok(answer),
            event => Err(self.way.answered_with(kind_of(&event)).into_error()),
        }
    }

    /// Asks what is needed of these files beside what that set has.
    pub(crate) async fn compare(&mut self, files: Vec<FileLen>) -> Result<Vec<FileNeed>> {
        match self.ask(|session| session.compare(files.clone())).await? {
            ControlEvent::Needed(needs) => Ok(needs),
            event => Err(self.way.answered_with(kind_of(&event)).into_error()),
        }
    }

    /// Asks until there is an answer; what is lost with a connection is asked again on the next.
    async fn ask(
        &mut self,
        question: impl Fn(&mut Session) -> std::result::Result<Message, Misuse>,
    ) -> Result<ControlEvent> {
        loop {
            match self.try_ask(&question).await {
                Ok(event) => return Ok(event),
                Err(LinkError::Final(error)) => return Err(error),
                Err(LinkError::Retry(error)) => self.lose(&error),
            }
            self.connected().await?;
        }
    }

    async fn try_ask(
        &mut self,
        question: &impl Fn(&mut Session) -> std::result::Result<Message, Misuse>,
    ) -> Result<ControlEvent, LinkError> {
        let wire = match &mut self.wire {
            Some(wire) => wire,
            None => return Err(WireFault::Closed.into()),
        };
        let question = question(&mut self.session)?;
        wire.send(CHANNEL, &question).await?;
        let message = receive(wire).await?;
        match self.session.received(message).map_err(WireFault::from)? {
            ControlEvent::Refused(error) => Err(self.way.refused(error)),
            event => Ok(event),
        }
    }

    /// Has the set sealed; what is lost with a connection is said again on the next.
    pub(crate) async fn finish(
        &mut self,
        parts: &[(PartName, Bytes)],
        finish: Finish,
    ) -> Result<BackupSealed> {
        loop {
            match self.try_finish(parts, finish).await {
                Ok(sealed) => return Ok(sealed),
                Err(LinkError::Final(error)) => return Err(error),
                Err(LinkError::Retry(error)) => self.lose(&error),
            }
            if let Some(sealed) = self.reconnect().await? {
                return Ok(sealed);
            }
        }
    }

    /// Tells the receiver that nothing more comes, so that others need not wait for the lease.
    pub(crate) async fn give_up(mut self, why: &str) {
        let Some(mut wire) = self.wire.take() else {
            return;
        };
        let error = Error::channel(ErrorCode::Abandoned, why, "");
        // It may be gone; then the lease ends by itself.
        let telling = async {
            let _ = wire.send(CHANNEL, &Message::Error(error)).await;
            wire.goodbye().await;
        };
        let _ = timeout(GIVE_UP_DEADLINE, telling).await;
    }

    async fn try_finish(
        &mut self,
        parts: &[(PartName, Bytes)],
        finish: Finish,
    ) -> Result<BackupSealed, LinkError> {
        let wire = match &mut self.wire {
            Some(wire) => wire,
            None => return Err(WireFault::Closed.into()),
        };
        for (name, content) in parts {
            let (size, crc32) = (content.len() as u64, crc32fast::hash(content));
            let part = self.session.part(name.clone(), size, crc32)?;
            wire.send(CHANNEL, &part).await?;
            send_content(wire, content).await?;
        }
        let finish = self.session.finish(finish)?;
        wire.send(CHANNEL, &finish).await?;
        let message = receive(wire).await?;
        match self.session.received(message).map_err(WireFault::from)? {
            ControlEvent::Sealed(sealed) => Ok(sealed),
            ControlEvent::Refused(error) => Err(self.way.refused(error)),
            event => Err(self.way.answered_with(kind_of(&event))),
        }
    }

    /// The connection, made again if it was lost.
    async fn connected(&mut self) -> Result<&mut Wire> {
        if self.wire.is_none() && self.reconnect().await?.is_some() {
            let found = MessageKind::BackupSealed;
            return Err(self.way.answered_with(found).into_error());
        }
        Ok(self.wire.as_mut().ok_or(WireFault::Closed)?)
    }

    /// Comes back within the lease; `Some` when the set was sealed meanwhile.
    async fn reconnect(&mut self) -> Result<Option<BackupSealed>> {
        let lease = Duration::from_secs(u64::from(self.granted.lease_s));
        loop {
            match self.try_resume().await {
                Ok(sealed) => return Ok(sealed),
                Err(LinkError::Final(error)) => return Err(error),
                Err(LinkError::Retry(error)) if self.lost.elapsed() >= lease => {
                    return Err(error);
                }
                Err(LinkError::Retry(error)) => tracing::debug!("{error}"),
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    async fn try_resume(&mut self) -> Result<Option<BackupSealed>, LinkError> {
        let mut wire = self.way.connect().await?;
        let (mut session, message) = Session::resume(self.granted.token);
        wire.send(CHANNEL, &message).await?;
        let event = session.received(receive(&mut wire).await?);
        let sealed = match event.map_err(WireFault::from)? {
            ControlEvent::Granted(_) => None,
            ControlEvent::Sealed(sealed) => Some(sealed),
            ControlEvent::Refused(error) => return Err(self.way.refused(error)),
            event => return Err(self.way.answered_with(kind_of(&event))),
        };
        tracing::debug!("the control connection of the backup is re-established");
        (self.wire, self.session) = (Some(wire), session);
        Ok(sealed)
    }

    fn unasked(&mut self, message: Message) -> Result<()> {
        match self.session.received(message) {
            Ok(ControlEvent::Refused(error)) => match self.way.refused(error) {
                LinkError::Final(error) => Err(error),
                LinkError::Retry(error) => {
                    self.lose(&error);
                    Ok(())
                }
            },
            Ok(event) => Err(self.way.answered_with(kind_of(&event)).into_error()),
            Err(error) => Err(WireFault::from(error).into()),
        }
    }

    fn lose(&mut self, why: &dyn std::fmt::Display) {
        tracing::debug!("the control connection of the backup is lost: {why}");
        self.wire = None;
        self.lost = Instant::now();
    }
}

/// The message that an event was.
const fn kind_of(event: &ControlEvent) -> MessageKind {
    match event {
        ControlEvent::Granted(_) => MessageKind::BackupGranted,
        ControlEvent::Parent(_) => MessageKind::BackupParent,
        ControlEvent::Needed(_) => MessageKind::BackupNeeded,
        ControlEvent::Sealed(_) => MessageKind::BackupSealed,
        ControlEvent::Refused(_) => MessageKind::Error,
    }
}

/// Sends the blocks of a part; it is small, or compresses well.
async fn send_content(wire: &mut Wire, content: &Bytes) -> Result<(), WireFault> {
    let mut packer = Packer::new(1);
    let mut offset = 0_u64;
    let block_bytes = walmgr_protocol::limits::BLOCK_BYTES_DEFAULT as usize;
    for piece in content.chunks(block_bytes) {
        let packed = packer.pack(Vec::new(), offset, |buffer| {
            buffer.extend_from_slice(piece);
            Ok::<(), std::convert::Infallible>(())
        });
        let Ok(mut block) = packed;
        wire.send_block_listening(CHANNEL, &mut block).await?;
        offset += piece.len() as u64;
    }
    Ok(())
}
