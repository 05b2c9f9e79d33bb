//! A trial on a channel: between its session and the worker that takes the blocks.
//! Never stores a file of the archive. Invariant: a peer that begins a trial and sends nothing loses its place.

pub(crate) mod work;

use std::time::Instant;

use walmgr_protocol::message::{Error, ErrorCode, Message};
use walmgr_protocol::session::trial::{TrialReceiver, TrialReceiverAction};

use self::work::{TrialJob, TrialWorker};
use crate::receiver::BLOCK_DEADLINE;
use crate::receiver::link::{ConnectionEnd, Link};
use crate::receiver::reports::{FlowReport, TrialReport};
use crate::receiver::worker::FromWorker;

/// A channel on which blocks are measured.
pub(crate) struct TrialFlow {
    channel: u16,
    session: TrialReceiver,
    worker: Option<TrialWorker>,
    /// Since when it has waited for its peer.
    waits_since: Option<Instant>,
}

impl TrialFlow {
    /// No trial yet.
    pub(crate) fn new(channel: u16) -> Self {
        TrialFlow {
            channel,
            session: TrialReceiver::default(),
            worker: None,
            waits_since: None,
        }
    }

    /// Whether no trial is under way.
    pub(crate) const fn is_idle(&self) -> bool {
        self.session.is_idle()
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

    /// The worker spoke.
    pub(crate) async fn reported(
        &mut self,
        link: &mut Link,
        said: FromWorker<TrialReport>,
    ) -> Result<(), ConnectionEnd> {
        if (self.worker.as_ref()).is_none_or(|worker| worker.id() != said.worker) {
            // The last words of a trial that the peer gave up.
            return Ok(());
        }
        let action = match said.report {
            TrialReport::Begun => {
                self.waits_since = Some(Instant::now());
                self.session.begun()?
            }
            TrialReport::Measured(measured) => self.session.measured(measured)?,
            TrialReport::Failed(error) => self.session.failed(error),
        };
        self.perform(link, action).await
    }

    /// When the peer has sent no block for too long.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let since = self.waits_since.filter(|_| self.worker.is_some());
        since.map(|since| since + BLOCK_DEADLINE)
    }

    /// Ends a trial whose peer is there and sends no block.
    pub(crate) async fn expired(&mut self, link: &mut Link) -> Result<(), ConnectionEnd> {
        let text = format!("no block arrived for {BLOCK_DEADLINE:?}");
        tracing::warn!("{}: a trial was ended: {text}", link.peer);
        let error = Error::channel(ErrorCode::TimedOut, text, "");
        let answer = self.session.failed(error);
        self.perform(link, answer).await
    }

    async fn perform(
        &mut self,
        link: &mut Link,
        action: TrialReceiverAction,
    ) -> Result<(), ConnectionEnd> {
        match action {
            TrialReceiverAction::Begin(begin) => {
                self.waits_since = None;
                let say = link.reports_of(self.channel, FlowReport::Trial);
                let worker = work::start(link.served.clone(), &link.peer.key(), begin, say);
                self.worker = Some(worker);
            }
            TrialReceiverAction::Send(message) => {
                if self.session.is_idle() {
                    self.worker = None;
                }
                link.send(self.channel, &message).await?;
            }
            TrialReceiverAction::Take(data) => {
                self.give(link, TrialJob::Take(data)).await;
                self.waits_since = Some(Instant::now());
            }
            TrialReceiverAction::Measure => {
                self.waits_since = None;
                self.give(link, TrialJob::Measure).await;
            }
            TrialReceiverAction::Stop => self.worker = None,
        }
        Ok(())
    }

    async fn give(&self, link: &mut Link, job: TrialJob) {
        if let Some(worker) = &self.worker {
            worker.give(job).await;
        }
        link.heard();
    }
}
