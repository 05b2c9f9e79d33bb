//! The loop of one connection: wait, feed what happened to the session, do what it says.
//! Never touches the archive itself. Invariant: at most one upload a channel, and a peer that
//! breaks a rule is told which before it is hung up on.

mod backup;
mod fetch;
mod partial;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use walmgr_protocol::codec::Frame;
use walmgr_protocol::error::{PeerMisbehaved, ProtocolError};
use walmgr_protocol::limits::CHANNELS_MAX;
use walmgr_protocol::message::{Error, ErrorCode, Message, Scope};
use walmgr_protocol::session::Misuse;
use walmgr_protocol::session::keepalive::{Keepalive, Next};
use walmgr_protocol::session::push::{Receiver, ReceiverAction};

use crate::receiver::admission::HeldConnection;
use crate::receiver::cluster::Cluster;
use crate::receiver::cluster::running::BackupReport;
use crate::receiver::fetch::Report as FetchReport;
use crate::receiver::partial::Report as PartialReport;
use crate::receiver::peer::{Peer, with_key};
use crate::receiver::refusal;
use crate::receiver::refusal_log::Refusals;
use crate::receiver::upload::{self, Job, Report, Slot, Upload};
use crate::receiver::{BLOCK_DEADLINE, DRAIN_DEADLINE, FRAME_DEADLINE, IDLE_DEADLINE, control};
use crate::transport::authorized_keys::Right;
use crate::transport::tls::unix_now;
use crate::transport::wire::{Wire, WireFault};

/// Why a connection ends.
enum End {
    /// The peer said goodbye, or went.
    Gone(String),
    /// This side ends it and says why.
    Hangup(Error),
}

impl From<WireFault> for End {
    fn from(fault: WireFault) -> Self {
        match fault {
            WireFault::Protocol(error) => error.into(),
            WireFault::Closed => End::Gone("it closed the connection".to_owned()),
            WireFault::StoppedReading | WireFault::Silent => End::Gone(fault.to_string()),
            WireFault::Io(error) => End::Gone(error.to_string()),
        }
    }
}

impl From<ProtocolError> for End {
    fn from(error: ProtocolError) -> Self {
        End::Hangup(Error::connection(error.code(), error.to_string(), ""))
    }
}

impl From<Misuse> for End {
    fn from(misuse: Misuse) -> Self {
        let text = format!("a fault of walmgr itself: {misuse}");
        End::Hangup(Error::connection(
            ErrorCode::Internal,
            text,
            "please report it",
        ))
    }
}

/// Serves a peer until either side ends it.
pub async fn serve(
    cluster: Arc<Cluster>,
    refusals: Arc<Refusals>,
    peer: Peer,
    wire: Wire,
    (slot, gives_way): (HeldConnection, oneshot::Receiver<()>),
) {
    // Without a bound: an upload says two things at most, and those are bounded.
    let (reports, inbox) = mpsc::unbounded_channel();
    let began = Instant::now();
    let mut connection = Connection {
        channels: (0..CHANNELS_MAX).map(|_| Channel::default()).collect(),
        fetching: fetch::Fetching::default(),
        link: backup::Link::default(),
        stream: partial::Stream::default(),
        keepalive: Keepalive::new(Duration::ZERO, IDLE_DEADLINE),
        certificate_ends: (peer.certificate.as_ref()).and_then(|shown| shown.next_end(unix_now())),
        frame_began: None,
        stop_by: None,
        cluster,
        refusals,
        began,
        peer,
        wire,
        slot,
        gives_way,
        reports,
    };
    let end = connection.run(inbox).await;
    let Connection {
        refusals,
        peer,
        mut wire,
        channels,
        link,
        ..
    } = connection;
    let cut_short = channels.iter().any(|channel| channel.upload.is_some()) || link.is_busy();
    // Uploads under way end when their channel does, and remove what they wrote.
    drop((channels, link));
    match end {
        End::Gone(reason) if cut_short => {
            tracing::warn!("{peer} left in the middle of an upload: {reason}");
        }
        End::Gone(reason) => tracing::debug!("{peer} left: {reason}"),
        End::Hangup(error) => {
            if error.code == ErrorCode::ShuttingDown {
                tracing::debug!("{peer}: {}", error.message);
            } else {
                let key = with_key(peer.certificate.as_ref());
                let reason = format!("{peer}{key}: {}", error.message);
                refusals.refused(peer.address.ip(), &reason);
            }
            // It may be gone, or not reading.
            let message = Message::Error(error);
            let telling = wire.send(0, &message);
            let _ = tokio::time::timeout(Duration::from_secs(1), telling).await;
            wire.close().await;
        }
    }
}

#[derive(Default)]
struct Channel {
    session: Receiver,
    upload: Option<Upload>,
    /// Uploads begun on the channel so far.
    uploads: u64,
    /// Since when the upload has waited for its peer.
    waits_since: Option<Instant>,
}

struct Connection {
    cluster: Arc<Cluster>,
    refusals: Arc<Refusals>,
    /// The clock that keepalive counts from.
    began: Instant,
    peer: Peer,
    wire: Wire,
    slot: HeldConnection,
    /// Ends when the slot is somebody else's.
    gives_way: oneshot::Receiver<()>,
    channels: Vec<Channel>,
    link: backup::Link,
    stream: partial::Stream,
    reports: mpsc::UnboundedSender<(Slot, Report)>,
    fetching: fetch::Fetching,
    keepalive: Keepalive,
    /// See [`PeerCertificate::next_end`](crate::transport::tls::PeerCertificate::next_end).
    certificate_ends: Option<u64>,
    frame_began: Option<Instant>,
    stop_by: Option<Instant>,
}

enum Happened {
    Arrived(Option<Frame>),
    Reported(Slot, Report),
    Fetched(FetchReport),
    BackupReported(BackupReport),
    PartialReported(PartialReport),
    Reloaded,
    Stopping,
    GivesWay,
    Tick,
}

impl Connection {
    async fn run(&mut self, mut reports: mpsc::UnboundedReceiver<(Slot, Report)>) -> End {
        let mut reloads = self.cluster.settings.subscribe();
        let stopping = self.cluster.stopping.clone();
        // The keys may have been read again while this peer was being greeted.
        if let Err(end) = self.still_welcome() {
            return end;
        }
        loop {
            let wait = match self.next_wait().await {
                Ok(wait) => wait,
                Err(end) => return end,
            };
            let asked_to_stop = self.stop_by.is_some();
            let happened = tokio::select! {
                Some((slot, report)) = reports.recv() => Happened::Reported(slot, report),
                report = self.fetching.next() => Happened::Fetched(report),
                Some(report) = self.link.inbox.recv() => Happened::BackupReported(report),
                Some(report) = self.stream.inbox.recv() => Happened::PartialReported(report),
                step = self.wire.receive_step() => match step {
                    Ok(frame) => Happened::Arrived(frame),
                    Err(fault) => return fault.into(),
                },
                Ok(()) = reloads.changed() => Happened::Reloaded,
                () = stopping.cancelled(), if !asked_to_stop => Happened::Stopping,
                _ = &mut self.gives_way => Happened::GivesWay,
                () = tokio::time::sleep(wait) => Happened::Tick,
            };
            if let Err(end) = self.handle(happened).await {
                return end;
            }
        }
    }

    async fn handle(&mut self, happened: Happened) -> Result<(), End> {
        match happened {
            Happened::Arrived(frame) => {
                self.heard();
                if let Some(frame) = frame {
                    // What is behind it in the buffer belongs to the next frame, whose time begins.
                    self.frame_began = None;
                    self.frame(frame).await?;
                }
                self.watch_frame();
                Ok(())
            }
            Happened::Reported(slot, report) => self.reported(slot, report).await,
            Happened::Fetched(report) => self.fetch_reported(report).await,
            Happened::BackupReported(report) => self.backup_reported(report).await,
            Happened::PartialReported(report) => self.partial_reported(report).await,
            Happened::Reloaded => self.still_welcome(),
            Happened::Stopping => {
                self.stop_by = Some(Instant::now() + DRAIN_DEADLINE);
                Ok(())
            }
            Happened::GivesWay => Err(End::Hangup(Error::connection(
                ErrorCode::Busy,
                "a peer with fewer connections needs this one's place",
                "it will be tried again",
            ))),
            Happened::Tick => Ok(()),
        }
    }

    /// How long to wait for something to happen; pings and deadlines are dealt with on the way.
    async fn next_wait(&mut self) -> Result<Duration, End> {
        let now = Instant::now();
        if let Some(stop_by) = self.stop_by
            && (!self.busy() || now >= stop_by)
        {
            let text = "the receiver is stopping";
            let hint = "it will be tried again";
            return Err(End::Hangup(Error::connection(
                ErrorCode::ShuttingDown,
                text,
                hint,
            )));
        }
        let mut wait = self.stop_by.map_or(IDLE_DEADLINE, |stop_by| stop_by - now);
        // The clock may be set meanwhile; no wait is longer than the deadline for silence.
        if let Some(left) = self.still_valid()? {
            wait = wait.min(left);
        }
        if let Some(began) = self.frame_began {
            let left = (began + FRAME_DEADLINE).saturating_duration_since(now);
            if left.is_zero() {
                return Err(timed_out(format!(
                    "a frame took longer than {FRAME_DEADLINE:?}"
                )));
            }
            wait = wait.min(left);
        } else if let Some(left) = self.end_idle_uploads(now).await? {
            wait = wait.min(left);
        }
        loop {
            match self.keepalive.next(self.began.elapsed()) {
                Next::Wait(until) => return Ok(wait.min(until)),
                Next::Ping => self.wire.send(0, &Message::Ping).await?,
                Next::Dead => {
                    return Err(timed_out(format!("nothing arrived for {IDLE_DEADLINE:?}")));
                }
            }
        }
    }

    /// Ends uploads whose peer is there and sends no block; says how long the next one has left.
    async fn end_idle_uploads(&mut self, now: Instant) -> Result<Option<Duration>, End> {
        let mut soonest = None;
        for channel in 1..=CHANNELS_MAX {
            let index = self.index(channel)?;
            let slot = &mut self.channels[index];
            let Some(since) = slot.waits_since.filter(|_| slot.upload.is_some()) else {
                continue;
            };
            let left = (since + BLOCK_DEADLINE).saturating_duration_since(now);
            if !left.is_zero() {
                soonest = Some(soonest.map_or(left, |other: Duration| other.min(left)));
                continue;
            }
            slot.upload = None;
            let text = format!("no block arrived for {BLOCK_DEADLINE:?}");
            tracing::warn!("{}: an upload was ended: {text}", self.peer);
            let answer = slot
                .session
                .failed(ErrorCode::TimedOut, text, String::new());
            self.perform(channel, answer).await?;
        }
        Ok(soonest)
    }

    async fn frame(&mut self, frame: Frame) -> Result<(), End> {
        match (frame.channel, frame.message) {
            (_, Message::Ping) => Ok(self.wire.send(frame.channel, &Message::Pong).await?),
            (_, Message::Pong) => Ok(()),
            (0, Message::Goodbye) => Err(End::Gone("goodbye".to_owned())),
            (0, Message::Error(error)) => Err(End::Gone(error.message)),
            (0, request) => self.control(request).await,
            (channel, message @ Message::Fetch(_)) => self.fetch_message(channel, message).await,
            (channel, message) if self.fetching.owns(channel) => {
                self.fetch_message(channel, message).await
            }
            (channel, message @ Message::Backup(_)) => self.backup_message(channel, message).await,
            (channel, message) if self.link.owns(channel) => {
                self.backup_message(channel, message).await
            }
            (channel, message @ Message::Partial(_)) => {
                self.partial_message(channel, message).await
            }
            (channel, message) if self.stream.owns(channel) => {
                self.partial_message(channel, message).await
            }
            (channel, message) => self.upload_message(channel, message).await,
        }
    }

    async fn control(&mut self, request: Message) -> Result<(), End> {
        let rights = self.peer.rights;
        let (allowed, needed) = match request {
            Message::Setup => (rights.push, Right::Push),
            Message::Fetch(_) => (rights.read, Right::Read),
            _ => (rights.any(), Right::Read),
        };
        if !allowed {
            let refusal = self.lacks_right(request.name(), needed);
            self.log_refusal(&refusal);
            return Ok(self.wire.send(0, &Message::Error(refusal)).await?);
        }
        let answer =
            control::answer(&self.cluster, &self.peer, self.slot.connections(), request).await;
        self.heard();
        if let Message::Error(error) = &answer
            && error.scope == Scope::Connection
        {
            return Err(End::Hangup(error.clone()));
        }
        Ok(self.wire.send(0, &answer).await?)
    }

    async fn upload_message(&mut self, channel: u16, message: Message) -> Result<(), End> {
        let index = self.index(channel)?;
        if matches!(message, Message::Offer(_))
            && let Some(refusal) = self.cannot_take("an offer", Right::Push)
        {
            self.log_refusal(&refusal);
            return Ok(self.wire.send(channel, &Message::Error(refusal)).await?);
        }
        let action = self.channels[index]
            .session
            .received(message)
            .map_err(End::from)?;
        match action {
            Some(action) => self.perform(channel, action).await,
            None => Ok(()),
        }
    }

    async fn reported(&mut self, from: Slot, report: Report) -> Result<(), End> {
        let channel = from.channel;
        let index = self.index(channel)?;
        let slot = &mut self.channels[index];
        if slot.uploads != from.upload || slot.upload.is_none() {
            // The last words of an upload that the peer gave up; they answer nothing it began since.
            return Ok(());
        }
        let action = match &report {
            Report::LookedUp(held) => Some(slot.session.looked_up(held)?),
            Report::Sealed(sealed) => Some(slot.session.sealed(sealed)?),
            Report::Failed(error) => {
                let (message, hint) = (error.message.clone(), error.hint.clone());
                Some(slot.session.failed(error.code, message, hint))
            }
        };
        if let Report::Failed(_) = report {
            slot.upload = None;
        }
        match action {
            Some(action) => self.perform(channel, action).await,
            None => Ok(()),
        }
    }

    async fn perform(&mut self, channel: u16, action: ReceiverAction) -> Result<(), End> {
        let index = self.index(channel)?;
        match action {
            ReceiverAction::LookUp(offer) => {
                let cluster = Arc::clone(&self.cluster);
                let reports = self.reports.clone();
                self.channels[index].waits_since = None;
                let uploads = &mut self.channels[index].uploads;
                *uploads += 1;
                let slot = Slot {
                    channel,
                    upload: *uploads,
                };
                let key = self.peer.key();
                let offered = (offer, self.peer.to_string());
                let begun = upload::start(cluster, &key, slot, offered, reports);
                self.channels[index].upload = Some(begun);
            }
            ReceiverAction::Send(message) => {
                if self.channels[index].session.is_idle() {
                    self.channels[index].upload = None;
                }
                self.wire.send(channel, &message).await?;
            }
            ReceiverAction::Begin(_, answer) => {
                self.wire.send(channel, &answer).await?;
                self.channels[index].waits_since = Some(Instant::now());
            }
            ReceiverAction::Write(data) => {
                self.give(index, Job::Write(data)).await;
                self.channels[index].waits_since = Some(Instant::now());
            }
            ReceiverAction::Seal(digest) => {
                self.channels[index].waits_since = None;
                self.give(index, Job::Seal(digest)).await;
            }
            ReceiverAction::Discard => self.channels[index].upload = None,
        }
        Ok(())
    }

    async fn give(&mut self, index: usize, job: Job) {
        if let Some(upload) = &self.channels[index].upload {
            upload.give(job).await;
        }
        // While the disk was slow the peer may well have spoken; it just was not read.
        self.heard();
    }

    fn index(&self, channel: u16) -> Result<usize, End> {
        let index = usize::from(channel).wrapping_sub(1);
        if index < self.channels.len() {
            return Ok(index);
        }
        let misbehaved = PeerMisbehaved::Channel {
            most: CHANNELS_MAX,
            found: channel,
        };
        Err(ProtocolError::from(misbehaved).into())
    }

    fn cannot_take(&self, what: &str, right: Right) -> Option<Error> {
        if self.stop_by.is_some() {
            let text = "the receiver is stopping";
            return Some(Error::channel(
                ErrorCode::ShuttingDown,
                text,
                "it will be tried again",
            ));
        }
        if !self.peer.rights.has(right) {
            return Some(self.lacks_right(what, right));
        }
        if self.cluster.archive.binding().is_none() {
            return Some(Error::channel(
                ErrorCode::NotSetUp,
                "the archive is bound to no cluster yet",
                "run `walmgr MASTER.ini setup` on the master",
            ));
        }
        let Some(theirs) = self.peer.cluster else {
            let text = "the peer did not say which cluster it speaks for";
            return Some(Error::channel(ErrorCode::ForeignCluster, text, ""));
        };
        // It may have been bound since this peer was greeted.
        let foreign = refusal::foreign(self.cluster.identity(), theirs)?;
        Some(Error::channel(foreign.code, foreign.message, foreign.hint))
    }

    /// The peer is told in the same words; a receiver that stops says so in its own line.
    fn log_refusal(&self, refusal: &Error) {
        if refusal.code == ErrorCode::ShuttingDown {
            return;
        }
        let key = with_key(self.peer.certificate.as_ref());
        let reason = format!("{}{key}: {}", self.peer, refusal.message);
        self.refusals.refused(self.peer.address.ip(), &reason);
    }

    fn lacks_right(&self, what: &str, right: Right) -> Error {
        let name = self.peer.name.as_deref().unwrap_or("this key");
        Error::channel(
            ErrorCode::RightMissing,
            format!("{name} lacks the right `{right}` that {what} needs"),
            "change its line in authorized_keys (with tls_ca: authorized_names) on the standby and \
             reload the receiver",
        )
    }

    /// After a reload a revoked key is shown the door; what it sent before is kept.
    fn still_welcome(&mut self) -> Result<(), End> {
        let settings = self.cluster.settings.borrow().clone();
        let gone = |why: String, hint: &str| {
            let code = ErrorCode::NotAuthorized;
            Err(End::Hangup(Error::connection(code, why, hint)))
        };
        match settings.know(self.peer.certificate.as_ref()) {
            Err(unknown) => {
                let why = format!("the key was revoked on the standby: {}", unknown.why);
                gone(why, &unknown.hint)
            }
            // What was begun by a right that is gone would go on otherwise.
            Ok(known) if !known.rights.cover(self.peer.rights) => gone(
                "rights of the key were taken back on the standby".to_owned(),
                "it comes in again with those that are left",
            ),
            Ok(known) => {
                self.peer.rights = known.rights;
                self.slot.may_push(known.rights.push);
                Ok(())
            }
        }
    }

    /// Ends a connection whose certificate has ended; says how long until the next look.
    fn still_valid(&mut self) -> Result<Option<Duration>, End> {
        let Some(certificate) = &self.peer.certificate else {
            return Ok(None);
        };
        let now = unix_now();
        if self.certificate_ends.is_some_and(|end| now > end) {
            let settings = self.cluster.settings.borrow().clone();
            if let Err(unknown) = settings.know(Some(certificate)) {
                let code = ErrorCode::NotAuthorized;
                let error = Error::connection(code, unknown.why, unknown.hint);
                return Err(End::Hangup(error));
            }
            self.certificate_ends = certificate.next_end(now);
        }
        let left = |end: u64| Duration::from_secs(end.saturating_sub(now) + 1);
        Ok(self.certificate_ends.map(left))
    }

    fn busy(&self) -> bool {
        self.channels.iter().any(|channel| channel.upload.is_some()) || self.link.is_finishing()
    }

    fn heard(&mut self) {
        self.keepalive.heard(self.began.elapsed());
    }

    fn watch_frame(&mut self) {
        if !self.wire.mid_frame() {
            self.frame_began = None;
        } else if self.frame_began.is_none() {
            self.frame_began = Some(Instant::now());
        }
    }
}

fn timed_out(message: String) -> End {
    End::Hangup(Error::connection(ErrorCode::TimedOut, message, ""))
}
