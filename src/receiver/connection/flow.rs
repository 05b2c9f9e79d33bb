//! The flows of a connection: which there are, which message opens what, and which flow gets it.
//! Never does a flow's work. Invariant: a channel has one flow, and of fetches, backups and streams of records a
//! connection has one each.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use walmgr_protocol::error::PeerMisbehaved;
use walmgr_protocol::limits::CHANNELS_MAX;
use walmgr_protocol::message::backup::Backup;
use walmgr_protocol::message::partial::Partial;
use walmgr_protocol::message::trial::Trial;
use walmgr_protocol::message::{Flow as FlowKind, Message};

use crate::receiver::flows::backup::BackupFlow;
use crate::receiver::flows::control;
use crate::receiver::flows::fetch::FetchFlow;
use crate::receiver::flows::partial::PartialFlow;
use crate::receiver::flows::push::PushFlow;
use crate::receiver::flows::trial::TrialFlow;
use crate::receiver::link::{ConnectionEnd, Link};
use crate::receiver::reports::FlowReport;
use crate::transport::authorized_keys::Right;

/// What a channel is used for.
enum ServedFlow {
    Push(PushFlow),
    Partial(PartialFlow),
    Backup(BackupFlow),
    Fetch(FetchFlow),
    Trial(TrialFlow),
}

impl ServedFlow {
    fn new(kind: FlowKind, channel: u16) -> ServedFlow {
        match kind {
            FlowKind::Partial => ServedFlow::Partial(PartialFlow::new(channel)),
            FlowKind::Backup => ServedFlow::Backup(BackupFlow::new(channel)),
            FlowKind::Fetch => ServedFlow::Fetch(FetchFlow::new(channel)),
            FlowKind::Trial => ServedFlow::Trial(TrialFlow::new(channel)),
            FlowKind::Push | FlowKind::Any | FlowKind::Control => {
                ServedFlow::Push(PushFlow::new(channel))
            }
        }
    }

    const fn kind(&self) -> FlowKind {
        match self {
            ServedFlow::Push(_) => FlowKind::Push,
            ServedFlow::Partial(_) => FlowKind::Partial,
            ServedFlow::Backup(_) => FlowKind::Backup,
            ServedFlow::Fetch(_) => FlowKind::Fetch,
            ServedFlow::Trial(_) => FlowKind::Trial,
        }
    }

    fn is_idle(&self) -> bool {
        match self {
            ServedFlow::Push(flow) => flow.is_idle(),
            ServedFlow::Partial(flow) => flow.is_idle(),
            ServedFlow::Backup(flow) => flow.is_idle(),
            ServedFlow::Fetch(flow) => flow.is_idle(),
            ServedFlow::Trial(flow) => flow.is_idle(),
        }
    }

    const fn moves_to(&mut self, channel: u16) {
        match self {
            ServedFlow::Push(_)
            | ServedFlow::Backup(_)
            | ServedFlow::Fetch(_)
            | ServedFlow::Trial(_) => {}
            ServedFlow::Partial(flow) => flow.moves_to(channel),
        }
    }

    async fn received(&mut self, link: &mut Link, message: Message) -> Result<(), ConnectionEnd> {
        match self {
            ServedFlow::Push(flow) => flow.received(link, message).await,
            ServedFlow::Partial(flow) => flow.received(link, message).await,
            ServedFlow::Backup(flow) => flow.received(link, message).await,
            ServedFlow::Fetch(flow) => flow.received(link, message).await,
            ServedFlow::Trial(flow) => flow.received(link, message).await,
        }
    }
}

/// The flows of a connection by their channels; channel 0 is for requests, which have none.
#[derive(Default)]
pub(super) struct Flows(BTreeMap<u16, ServedFlow>);

impl Flows {
    /// A message arrived on a channel.
    pub(super) async fn received(
        &mut self,
        link: &mut Link,
        channel: u16,
        message: Message,
    ) -> Result<(), ConnectionEnd> {
        if channel == 0 {
            return control::received(link, message).await;
        }
        if channel > CHANNELS_MAX {
            let (most, found) = (CHANNELS_MAX, channel);
            return Err(PeerMisbehaved::Channel { most, found }.into());
        }
        match self.receiver_of(link, channel, &message).await? {
            Some(flow) => flow.received(link, message).await,
            None => Ok(()),
        }
    }

    /// The flow that gets a message; none where it was refused.
    async fn receiver_of(
        &mut self,
        link: &mut Link,
        channel: u16,
        message: &Message,
    ) -> Result<Option<&mut ServedFlow>, ConnectionEnd> {
        let kind = message.kind().flow();
        let here = self.0.get(&channel);
        if here.is_some_and(|flow| flow.kind() != kind && !flow.is_idle()) {
            // It is at work, and says what it thinks of that.
            return Ok(self.0.get_mut(&channel));
        }
        let there = self.channel_of(kind);
        let is_idle = (there.and_then(|there| self.0.get(&there))).is_none_or(ServedFlow::is_idle);
        if let Some(ServedFlow::Fetch(flow)) = there.and_then(|there| self.0.get(&there))
            && !is_idle
            && there != Some(channel)
        {
            return Err(flow.unexpected(message));
        }
        let opens = match message {
            Message::Offer(_) | Message::Partial(Partial::Begin(_)) => true,
            Message::Backup(backup) => is_idle && asks(backup),
            Message::Fetch(_) | Message::Trial(Trial::Begin(_)) => is_idle,
            _ => false,
        };
        let refusal = match message {
            Message::Offer(_) => link.cannot_take("an offer", Right::Push),
            Message::Partial(_) if opens => link.cannot_take("a partial stream", Right::Push),
            Message::Backup(_) if opens => link.cannot_take("a backup", Right::Backup),
            Message::Fetch(_) => link.cannot_begin(message.name(), Right::Read),
            Message::Trial(_) if opens => link.cannot_take("a trial", Right::Push),
            _ => None,
        };
        if let Some(refusal) = refusal {
            link.refuse(channel, refusal).await?;
            return Ok(None);
        }
        Ok(Some(self.place(kind, channel, opens)))
    }

    /// The flow that gets a message of this kind, which a flow that is at work on the channel does not get.
    fn place(&mut self, kind: FlowKind, channel: u16, opens: bool) -> &mut ServedFlow {
        let mut at = channel;
        if let Some(there) = self.channel_of(kind) {
            match kind {
                // What opens nothing is for the one there is.
                FlowKind::Backup | FlowKind::Partial | FlowKind::Trial if !opens => at = there,
                // One that is over has nothing more to say.
                FlowKind::Backup | FlowKind::Fetch | FlowKind::Trial if opens => {
                    drop(self.0.remove(&there));
                }
                // Its worker has the lock on the stream, and would keep its successor out.
                FlowKind::Partial if there != channel => {
                    if let Some(mut flow) = self.0.remove(&there) {
                        flow.moves_to(channel);
                        self.0.insert(channel, flow);
                    }
                }
                _ => {}
            }
        }
        let flow = self
            .0
            .entry(at)
            .or_insert_with(|| ServedFlow::new(kind, at));
        let stays = match flow.kind() {
            own if own == kind => true,
            FlowKind::Fetch => false,
            // A backup or a stream has its channel until something else is opened there.
            _ => !opens && matches!(kind, FlowKind::Any | FlowKind::Control | FlowKind::Push),
        };
        if !stays {
            *flow = ServedFlow::new(kind, at);
        }
        flow
    }

    /// Where the flow of this kind is, of which there is one; pushes are on many channels.
    fn channel_of(&self, kind: FlowKind) -> Option<u16> {
        let mut flows = self.0.iter();
        let found = flows.find(|(_, flow)| flow.kind() == kind && kind != FlowKind::Push);
        found.map(|(channel, _)| *channel)
    }

    /// A worker spoke.
    pub(super) async fn reported(
        &mut self,
        link: &mut Link,
        channel: u16,
        report: FlowReport,
    ) -> Result<(), ConnectionEnd> {
        // A flow that is gone, or began anew, is not interested.
        let kind = match &report {
            FlowReport::Push(_) => FlowKind::Push,
            FlowReport::Partial(_) => FlowKind::Partial,
            FlowReport::Backup(_) => FlowKind::Backup,
            FlowReport::Fetch(_) => FlowKind::Fetch,
            FlowReport::Trial(_) => FlowKind::Trial,
        };
        let channel = self.channel_of(kind).unwrap_or(channel);
        match (self.0.get_mut(&channel), report) {
            (Some(ServedFlow::Push(flow)), FlowReport::Push(said)) => {
                flow.reported(link, said).await
            }
            (Some(ServedFlow::Partial(flow)), FlowReport::Partial(said)) => {
                flow.reported(link, said).await
            }
            (Some(ServedFlow::Backup(flow)), FlowReport::Backup(said)) => {
                flow.reported(link, said).await
            }
            (Some(ServedFlow::Fetch(flow)), FlowReport::Fetch(said)) => {
                flow.reported(link, said).await
            }
            (Some(ServedFlow::Trial(flow)), FlowReport::Trial(said)) => {
                flow.reported(link, said).await
            }
            _ => Ok(()),
        }
    }

    /// Ends uploads whose peer is there and sends no block; says how long the next one has left.
    pub(super) async fn end_idle_uploads(
        &mut self,
        link: &mut Link,
        now: Instant,
    ) -> Result<Option<Duration>, ConnectionEnd> {
        let mut soonest: Option<Duration> = None;
        for flow in self.0.values_mut() {
            let deadline = match flow {
                ServedFlow::Push(flow) => flow.deadline(),
                ServedFlow::Trial(flow) => flow.deadline(),
                _ => None,
            };
            let Some(deadline) = deadline else {
                continue;
            };
            let left = deadline.saturating_duration_since(now);
            match (left.is_zero(), flow) {
                (true, ServedFlow::Push(flow)) => flow.expired(link).await?,
                (true, ServedFlow::Trial(flow)) => flow.expired(link).await?,
                _ => soonest = Some(soonest.map_or(left, |other| other.min(left))),
            }
        }
        Ok(soonest)
    }

    /// Whether there is something that a receiver which stops waits for.
    pub(super) fn are_busy(&self) -> bool {
        self.0.values().any(|flow| match flow {
            ServedFlow::Push(flow) => flow.is_busy(),
            ServedFlow::Backup(flow) => flow.is_finishing(),
            ServedFlow::Partial(_) | ServedFlow::Fetch(_) | ServedFlow::Trial(_) => false,
        })
    }

    /// Whether something is cut short when the connection ends now.
    pub(super) fn would_be_cut_short(&self) -> bool {
        self.0.values().any(|flow| match flow {
            ServedFlow::Push(flow) => flow.is_busy(),
            ServedFlow::Backup(flow) => flow.is_busy(),
            ServedFlow::Partial(_) | ServedFlow::Fetch(_) | ServedFlow::Trial(_) => false,
        })
    }
}

/// Whether a message asks to be part of a backup.
const fn asks(backup: &Backup) -> bool {
    matches!(
        backup,
        Backup::Begin(_) | Backup::Resume(_) | Backup::Join(_)
    )
}
