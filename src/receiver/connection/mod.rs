//! The loop of one connection: wait, give what happened to the flow that it concerns, watch the deadlines.
//! Never touches the archive itself, nor knows what a flow does. Invariant: a peer that breaks a rule is told
//! which before it is hung up on.

mod flow;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use walmgr_protocol::codec::Frame;
use walmgr_protocol::message::{Error, ErrorCode, Message, Scope};
use walmgr_protocol::session::keepalive::Next;

use self::flow::Flows;
use crate::receiver::cluster::{Cluster, ServedCluster};
use crate::receiver::connections::HeldConnection;
use crate::receiver::link::{ConnectionEnd, Link};
use crate::receiver::peer::Peer;
use crate::receiver::refusal_log::Refusals;
use crate::receiver::reports::FlowReport;
use crate::receiver::{FRAME_DEADLINE, IDLE_DEADLINE, worker};
use crate::transport::tls::unix_now;
use crate::transport::wire::Wire;

/// Serves a peer until either side ends it.
pub(crate) async fn serve(
    cluster: Arc<Cluster>,
    refusals: Arc<Refusals>,
    peer: Peer,
    wire: Wire,
    (slot, gives_way): (HeldConnection, CancellationToken),
) {
    let served = match cluster.store() {
        Ok(store) => ServedCluster { cluster, store },
        Err(retired) => return hang_up(wire, &Message::Error(retired)).await,
    };
    let (reports, inbox) = mpsc::unbounded_channel();
    let mut connection = ServedConnection {
        certificate_ends: (peer.certificate.as_ref()).and_then(|shown| shown.next_end(unix_now())),
        link: Link::new(served, refusals, peer, wire, slot, reports),
        flows: Flows::default(),
        gives_way,
        inbox,
        frame_began: None,
    };
    let served = worker::contained_task("connection", connection.run()).await;
    let end = served.unwrap_or_else(|failed| {
        let scope = Scope::Connection;
        ConnectionEnd::Hangup(Error { scope, ..failed })
    });
    let ServedConnection { link, flows, .. } = connection;
    let cut_short = flows.would_be_cut_short();
    // Uploads under way end when their channel does, and remove what they wrote.
    drop(flows);
    match end {
        ConnectionEnd::Gone(reason) if cut_short => {
            tracing::warn!("{} disconnected during an upload: {reason}", link.peer);
        }
        ConnectionEnd::Gone(reason) => tracing::debug!("{} left: {reason}", link.peer),
        ConnectionEnd::Hangup(error) => {
            match error.code {
                ErrorCode::ShuttingDown => tracing::debug!("{}: {}", link.peer, error.message),
                _ => link.log_refusal(&error),
            }
            let message = Message::Error(error);
            link.count_refusal(&message);
            hang_up(link.wire, &message).await;
        }
    }
}

async fn hang_up(mut wire: Wire, message: &Message) {
    // It may be gone, or not reading.
    let telling = wire.send(0, message);
    let _ = tokio::time::timeout(Duration::from_secs(1), telling).await;
    wire.close().await;
}

struct ServedConnection {
    link: Link,
    flows: Flows,
    /// What workers say.
    inbox: mpsc::UnboundedReceiver<(u16, FlowReport)>,
    /// Cancelled when the slot is somebody else's.
    gives_way: CancellationToken,
    /// When the next certificate of the peer's chain ends, in seconds since 1970.
    certificate_ends: Option<u64>,
    frame_began: Option<Instant>,
}

enum Happened {
    Arrived(Option<Frame>),
    Reported(u16, FlowReport),
    Answered(Message),
    Reloaded,
    Stopping,
    Retired,
    GivesWay,
    Tick,
}

impl ServedConnection {
    async fn run(&mut self) -> ConnectionEnd {
        let mut reloads = self.link.served.cluster.settings.subscribe();
        let stopping = self.link.served.cluster.stopping.clone();
        let retired = self.link.served.store.retired.clone();
        let mut is_retiring = false;
        // The keys may have been read again while this peer was being greeted.
        if let Err(end) = self.still_welcome() {
            return end;
        }
        loop {
            let wait = match self.next_wait().await {
                Ok(wait) => wait,
                Err(end) => return end,
            };
            let is_ending = self.link.ending().is_some();
            let happened = tokio::select! {
                Some((channel, report)) = self.inbox.recv() => Happened::Reported(channel, report),
                answer = self.link.asking.next() => Happened::Answered(answer),
                step = self.link.wire.receive_step() => match step {
                    Ok(frame) => Happened::Arrived(frame),
                    Err(fault) => return fault.into(),
                },
                Ok(()) = reloads.changed() => Happened::Reloaded,
                () = stopping.cancelled(), if !is_ending => Happened::Stopping,
                () = retired.cancelled(), if !is_retiring => {
                    is_retiring = true;
                    Happened::Retired
                }
                () = self.gives_way.cancelled() => Happened::GivesWay,
                () = tokio::time::sleep(wait) => Happened::Tick,
            };
            if let Err(end) = self.handle(happened).await {
                return end;
            }
        }
    }

    async fn handle(&mut self, happened: Happened) -> Result<(), ConnectionEnd> {
        match happened {
            Happened::Arrived(frame) => {
                self.link.heard();
                if let Some(frame) = frame {
                    // What is behind it in the buffer belongs to the next frame, whose time begins.
                    self.frame_began = None;
                    self.frame(frame).await?;
                }
                self.watch_frame();
                Ok(())
            }
            Happened::Reported(channel, report) => {
                self.flows.reported(&mut self.link, channel, report).await
            }
            Happened::Answered(answer) => self.link.send(0, &answer).await,
            Happened::Reloaded => self.still_welcome(),
            Happened::Stopping => {
                self.link.stop();
                Ok(())
            }
            Happened::Retired => {
                self.link.retire();
                Ok(())
            }
            Happened::GivesWay => Err(ConnectionEnd::Hangup(Error::connection(
                ErrorCode::Busy,
                "a peer with fewer connections needs this one's place",
                "walmgr tries again",
            ))),
            Happened::Tick => Ok(()),
        }
    }

    /// How long to wait for something to happen; pings and deadlines are dealt with on the way.
    async fn next_wait(&mut self) -> Result<Duration, ConnectionEnd> {
        let now = Instant::now();
        let mut wait = IDLE_DEADLINE;
        if let Some(ending) = self.link.ending() {
            if !self.flows.are_busy() || now >= ending.by {
                return Err(ConnectionEnd::Hangup(ending.why.clone()));
            }
            wait = ending.by - now;
        }
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
        } else if let Some(left) = self.flows.end_idle_uploads(&mut self.link, now).await? {
            wait = wait.min(left);
        }
        loop {
            match self.link.watch_silence() {
                Next::Wait(until) => return Ok(wait.min(until)),
                Next::Ping => self.link.send(0, &Message::Ping).await?,
                Next::Dead => {
                    return Err(timed_out(format!("nothing arrived for {IDLE_DEADLINE:?}")));
                }
            }
        }
    }

    async fn frame(&mut self, frame: Frame) -> Result<(), ConnectionEnd> {
        match (frame.channel, frame.message) {
            (channel, Message::Ping) => self.link.send(channel, &Message::Pong).await,
            (_, Message::Pong) => Ok(()),
            (0, Message::Goodbye) => Err(ConnectionEnd::Gone("goodbye".to_owned())),
            (0, Message::Error(error)) => Err(ConnectionEnd::Gone(error.message)),
            (channel, message) => {
                // What workers have said comes before they get more to do, so that it never piles up.
                for _ in 0..self.inbox.len() {
                    if let Ok((channel, report)) = self.inbox.try_recv() {
                        self.flows.reported(&mut self.link, channel, report).await?;
                    }
                }
                self.flows.received(&mut self.link, channel, message).await
            }
        }
    }

    /// Ends a connection whose key was revoked by a reload; what it sent before is kept.
    fn still_welcome(&mut self) -> Result<(), ConnectionEnd> {
        let settings = self.link.served.cluster.settings.borrow().clone();
        let gone = |why: String, hint: &str| {
            let code = ErrorCode::NotAuthorized;
            Err(ConnectionEnd::Hangup(Error::connection(code, why, hint)))
        };
        match settings.know(self.link.peer.certificate.as_ref()) {
            Err(unknown) => {
                let why = format!("the key was revoked on the standby: {}", unknown.why);
                gone(why, &unknown.hint)
            }
            // What was begun by a right that is gone would go on otherwise.
            Ok(known) if !known.rights.cover(self.link.peer.rights) => gone(
                "the key lost rights on the standby".to_owned(),
                "it can connect again with the rights that are left",
            ),
            Ok(known) => {
                self.link.peer.rights = known.rights;
                self.link.slot.may_push(known.rights.push);
                Ok(())
            }
        }
    }

    /// Ends a connection whose certificate has ended; says how long until the next look.
    fn still_valid(&mut self) -> Result<Option<Duration>, ConnectionEnd> {
        let Some(certificate) = &self.link.peer.certificate else {
            return Ok(None);
        };
        let now = unix_now();
        if self.certificate_ends.is_some_and(|end| now > end) {
            let settings = self.link.served.cluster.settings.borrow().clone();
            if let Err(unknown) = settings.know(Some(certificate)) {
                let code = ErrorCode::NotAuthorized;
                let error = Error::connection(code, unknown.why, unknown.hint);
                return Err(ConnectionEnd::Hangup(error));
            }
            self.certificate_ends = certificate.next_end(now);
        }
        let left = |end: u64| Duration::from_secs(end.saturating_sub(now) + 1);
        Ok(self.certificate_ends.map(left))
    }

    fn watch_frame(&mut self) {
        if !self.link.wire.mid_frame() {
            self.frame_began = None;
        } else if self.frame_began.is_none() {
            self.frame_began = Some(Instant::now());
        }
    }
}

fn timed_out(message: String) -> ConnectionEnd {
    ConnectionEnd::Hangup(Error::connection(ErrorCode::TimedOut, message, ""))
}
