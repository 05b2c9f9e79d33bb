//! What a flow may use of the connection that it flows over: the wire, the peer, the cluster.
//! Never knows which flows there are. Invariant: a refusal is sent and logged in the same words.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use walmgr_protocol::error::{PeerMisbehaved, ProtocolError};
use walmgr_protocol::message::{Error, ErrorCode, Message, Scope};
use walmgr_protocol::session::Misuse;
use walmgr_protocol::session::keepalive::{Keepalive, Next};

use crate::receiver::asking::SetAsking;
use crate::receiver::cluster::ServedCluster;
use crate::receiver::connections::HeldConnection;
use crate::receiver::peer::{Peer, with_key};
use crate::receiver::refusal_log::Refusals;
use crate::receiver::reports::FlowReport;
use crate::receiver::worker::FromWorker;
use crate::receiver::{DRAIN_DEADLINE, IDLE_DEADLINE, RETIRING_DEADLINE, refusal};
use crate::transport::authorized_keys::Right;
use crate::transport::wire::{Wire, WireFault};

/// Why a connection ends.
pub(crate) enum ConnectionEnd {
    /// The peer said goodbye, or went.
    Gone(String),
    /// This side ends it and says why.
    Hangup(Error),
}

impl From<WireFault> for ConnectionEnd {
    fn from(fault: WireFault) -> Self {
        match fault {
            WireFault::Protocol(error) => error.into(),
            WireFault::Closed => ConnectionEnd::Gone("it closed the connection".to_owned()),
            WireFault::StoppedReading | WireFault::Silent => ConnectionEnd::Gone(fault.to_string()),
            WireFault::Io(error) => ConnectionEnd::Gone(error.to_string()),
        }
    }
}

impl From<ProtocolError> for ConnectionEnd {
    fn from(error: ProtocolError) -> Self {
        ConnectionEnd::Hangup(Error::connection(error.code(), error.to_string(), ""))
    }
}

impl From<Misuse> for ConnectionEnd {
    fn from(misuse: Misuse) -> Self {
        let text = format!("a bug in walmgr: {misuse}");
        ConnectionEnd::Hangup(Error::connection(
            ErrorCode::Internal,
            text,
            "please report it",
        ))
    }
}

impl From<PeerMisbehaved> for ConnectionEnd {
    fn from(misbehaved: PeerMisbehaved) -> Self {
        ProtocolError::from(misbehaved).into()
    }
}

/// A connection that is about to end.
pub(crate) struct Ending {
    /// When it ends at the latest.
    pub by: Instant,
    /// Why, in the words for the peer.
    pub why: Error,
}

/// A connection as its flows see it.
pub(crate) struct Link {
    /// The frames.
    pub wire: Wire,
    /// Who is at the other end.
    pub peer: Peer,
    /// The cluster that it speaks for.
    pub served: ServedCluster,
    /// Its slot among the connections.
    pub slot: HeldConnection,
    /// Its question that takes a while.
    pub asking: SetAsking,
    refusals: Arc<Refusals>,
    reports: mpsc::UnboundedSender<(u16, FlowReport)>,
    keepalive: Keepalive,
    /// The clock that keepalive counts from.
    began: Instant,
    /// Set once nothing more is begun.
    ending: Option<Ending>,
}

impl Link {
    /// A connection that begins now; workers report to where `reports` leads. Without a bound: a worker says one
    /// thing for each job that it was given, and those are bounded.
    pub(crate) fn new(
        served: ServedCluster,
        refusals: Arc<Refusals>,
        peer: Peer,
        wire: Wire,
        slot: HeldConnection,
        reports: mpsc::UnboundedSender<(u16, FlowReport)>,
    ) -> Self {
        Link {
            wire,
            peer,
            served,
            slot,
            asking: SetAsking::default(),
            refusals,
            reports,
            keepalive: Keepalive::new(Duration::ZERO, IDLE_DEADLINE),
            began: Instant::now(),
            ending: None,
        }
    }

    /// The way of what the worker of a channel says.
    pub(crate) fn reports_of<R: 'static>(
        &self,
        channel: u16,
        kind: fn(FromWorker<R>) -> FlowReport,
    ) -> impl Fn(FromWorker<R>) -> bool + Send + Sync + 'static {
        let reports = self.reports.clone();
        move |said| reports.send((channel, kind(said))).is_ok()
    }

    /// Sends one message.
    pub(crate) async fn send(
        &mut self,
        channel: u16,
        message: &Message,
    ) -> Result<(), ConnectionEnd> {
        self.count_refusal(message);
        Ok(self.wire.send(channel, message).await?)
    }

    /// Counts what is about to be sent if it is a refusal.
    pub(crate) fn count_refusal(&self, message: &Message) {
        if let Message::Error(error) = message {
            self.refusals.count(error.code.into());
        }
    }

    /// Says no on a channel, and logs it.
    pub(crate) async fn refuse(
        &mut self,
        channel: u16,
        refusal: Error,
    ) -> Result<(), ConnectionEnd> {
        self.log_refusal(&refusal);
        self.send(channel, &Message::Error(refusal)).await
    }

    /// The peer gave a sign of life. So it counts too when a slow disk kept this side from reading: the peer may
    /// well have spoken; it just was not read.
    pub(crate) fn heard(&mut self) {
        self.keepalive.heard(self.began.elapsed());
    }

    /// What to do about a peer that is silent.
    pub(crate) fn watch_silence(&mut self) -> Next {
        self.keepalive.next(self.began.elapsed())
    }

    /// The receiver stops: from here on nothing is begun, and what is under way has its time.
    pub(crate) fn stop(&mut self) {
        let (text, hint) = ("the receiver is stopping", "walmgr tries again");
        let by = Instant::now() + DRAIN_DEADLINE;
        let why = Error::connection(ErrorCode::ShuttingDown, text, hint);
        self.ending.get_or_insert(Ending { by, why });
    }

    /// The store retired: nothing is begun, and what is under way fails in its own words or in these.
    pub(crate) fn retire(&mut self) {
        let by = Instant::now() + RETIRING_DEADLINE;
        let why = self.served.store.refusal();
        self.ending = Some(Ending { by, why });
    }

    /// Set once nothing more is begun.
    pub(crate) const fn ending(&self) -> Option<&Ending> {
        self.ending.as_ref()
    }

    /// Whether the store retired below this connection.
    pub(crate) fn is_retired(&self) -> bool {
        self.served.store.retired.is_cancelled()
    }

    /// Why nothing can be taken from this peer now, if so.
    pub(crate) fn cannot_take(&self, what: &str, right: Right) -> Option<Error> {
        if let Some(refusal) = self.cannot_begin(what, right) {
            return Some(refusal);
        }
        let Some(bound) = self.served.store.identity() else {
            return Some(Error::channel(
                ErrorCode::NotSetUp,
                "the archive is bound to no cluster yet",
                "run `walmgr MASTER.ini setup` on the master",
            ));
        };
        let Some(theirs) = self.peer.cluster else {
            let text = "the peer did not say which cluster it speaks for";
            return Some(Error::channel(ErrorCode::ForeignCluster, text, ""));
        };
        // It may have been bound since this peer was greeted.
        let foreign = refusal::foreign(Some(bound), theirs)?;
        Some(Error::channel(foreign.code, foreign.message, foreign.hint))
    }

    /// Why nothing can be begun for this peer now, if so.
    pub(crate) fn cannot_begin(&self, what: &str, right: Right) -> Option<Error> {
        if self.is_retired() {
            let scope = Scope::Channel;
            return Some(Error {
                scope,
                ..self.served.store.refusal()
            });
        }
        if self.served.cluster.stopping.is_cancelled() {
            let (text, hint) = ("the receiver is stopping", "walmgr tries again");
            return Some(Error::channel(ErrorCode::ShuttingDown, text, hint));
        }
        (!self.peer.rights.has(right)).then(|| self.lacks_right(what, right))
    }

    /// The refusal that names a right which is missing.
    pub(crate) fn lacks_right(&self, what: &str, right: Right) -> Error {
        let name = self.peer.name.as_deref().unwrap_or("this key");
        Error::channel(
            ErrorCode::RightMissing,
            format!("{name} lacks the right `{right}` that {what} needs"),
            "change its line in authorized_keys (with tls_ca: authorized_names) on the standby and \
             reload the receiver",
        )
    }

    /// The peer is told in the same words; a receiver that stops says so in its own line, and so does a store that
    /// retires.
    pub(crate) fn log_refusal(&self, refusal: &Error) {
        if refusal.code == ErrorCode::ShuttingDown || self.is_retired() {
            return;
        }
        let key = with_key(self.peer.certificate.as_ref());
        let reason = format!("{}{key}: {}", self.peer, refusal.message);
        let (peer, audit) = (self.peer.audited(), &self.served.cluster.audit);
        self.refusals.log(peer.address, &peer.who, &reason, audit);
    }
}
