//! The push flow on a channel: between its session and the worker of its upload.
//! Never blocks on the disk. Invariant: at most one upload at a time, and what an upload that was given up says
//! answers nothing that was begun since.

pub(crate) mod work;

use std::time::Instant;

use walmgr_protocol::message::{ErrorCode, Message};
use walmgr_protocol::session::push::{PushReceiver, PushReceiverAction};

use self::work::UploadJob;
use crate::receiver::BLOCK_DEADLINE;
use crate::receiver::link::{ConnectionEnd, Link};
use crate::receiver::reports::{FlowReport, UploadReport};
use crate::receiver::worker::{FromWorker, Worker};

/// A channel that takes files.
pub(crate) struct PushFlow {
    channel: u16,
    session: PushReceiver,
    upload: Option<Worker<UploadJob, UploadReport>>,
    /// Since when the upload has waited for its peer.
    waits_since: Option<Instant>,
}

impl PushFlow {
    /// Nothing is offered yet.
    pub(crate) fn new(channel: u16) -> Self {
        PushFlow {
            channel,
            session: PushReceiver::default(),
            upload: None,
            waits_since: None,
        }
    }

    /// Whether no file is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.session.is_idle()
    }

    /// Whether an upload is at work.
    pub(crate) const fn is_busy(&self) -> bool {
        self.upload.is_some()
    }

    /// A message arrived on the channel.
    pub(crate) async fn received(
        &mut self,
        link: &mut Link,
        message: Message,
    ) -> Result<(), ConnectionEnd> {
        match self.session.received(message)? {
            Some(action) => self.perform(link, action).await,
            None => Ok(()),
        }
    }

    /// An upload spoke.
    pub(crate) async fn reported(
        &mut self,
        link: &mut Link,
        said: FromWorker<UploadReport>,
    ) -> Result<(), ConnectionEnd> {
        if (self.upload.as_ref()).is_none_or(|upload| upload.id() != said.worker) {
            // The last words of an upload that the peer gave up.
            return Ok(());
        }
        let action = match said.report {
            UploadReport::LookedUp(held) => self.session.looked_up(&held)?,
            UploadReport::Sealed(sealed) => self.session.sealed(&sealed)?,
            UploadReport::Failed(error) => {
                self.upload = None;
                self.session.failed(error.code, error.message, error.hint)
            }
        };
        self.perform(link, action).await
    }

    /// When the peer has sent no block for too long.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let since = self.waits_since.filter(|_| self.upload.is_some());
        since.map(|since| since + BLOCK_DEADLINE)
    }

    /// Ends an upload whose peer is there and sends no block.
    pub(crate) async fn expired(&mut self, link: &mut Link) -> Result<(), ConnectionEnd> {
        self.upload = None;
        let text = format!("no block arrived for {BLOCK_DEADLINE:?}");
        tracing::warn!("{}: an upload was ended: {text}", link.peer);
        let answer = (self.session).failed(ErrorCode::TimedOut, text, String::new());
        self.perform(link, answer).await
    }

    async fn perform(
        &mut self,
        link: &mut Link,
        action: PushReceiverAction,
    ) -> Result<(), ConnectionEnd> {
        match action {
            PushReceiverAction::LookUp(offer) => {
                self.waits_since = None;
                let may_fail_over = link.peer.rights.failover;
                let (by, peer) = (link.peer.to_string(), link.peer.audited());
                let offered = (offer, by, peer, may_fail_over);
                let say = link.reports_of(self.channel, FlowReport::Push);
                let begun = work::start(link.served.clone(), &link.peer.key(), offered, say);
                self.upload = Some(begun);
            }
            PushReceiverAction::Send(message) => {
                if self.session.is_idle() {
                    self.upload = None;
                }
                link.send(self.channel, &message).await?;
            }
            PushReceiverAction::Begin(_, answer) => {
                link.send(self.channel, &answer).await?;
                self.waits_since = Some(Instant::now());
            }
            PushReceiverAction::Write(data) => {
                self.give(link, UploadJob::Write(data)).await;
                self.waits_since = Some(Instant::now());
            }
            PushReceiverAction::Seal(digest) => {
                self.waits_since = None;
                self.give(link, UploadJob::Seal(digest)).await;
            }
            PushReceiverAction::Discard => self.upload = None,
        }
        Ok(())
    }

    async fn give(&self, link: &mut Link, job: UploadJob) {
        if let Some(upload) = &self.upload {
            upload.give(job).await;
        }
        link.heard();
    }
}
