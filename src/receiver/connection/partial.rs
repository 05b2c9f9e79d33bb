//! The part of a connection that belongs to the partial stream: between its session and its thread.
//! Never blocks on the disk. Invariant: reports are dealt with in the order of the jobs.

use std::sync::Arc;

use tokio::sync::mpsc;
use walmgr_protocol::limits::BLOCKS_IN_FLIGHT;
use walmgr_protocol::message::Message;
use walmgr_protocol::message::partial::Partial;
use walmgr_protocol::session::partial::{Receiver, ReceiverAction};

use super::{Connection, End};
use crate::receiver::partial::{self, Job, Report, StreamWorker};
use crate::receiver::worker;
use crate::transport::authorized_keys::Right;

/// A connection's partial stream, if it has one.
pub(super) struct Stream {
    session: Receiver,
    channel: u16,
    worker: Option<StreamWorker>,
    reports: mpsc::Sender<Report>,
    /// What the thread says.
    pub(super) inbox: mpsc::Receiver<Report>,
}

impl Default for Stream {
    fn default() -> Self {
        // One report a job, so that the thread never waits for the connection to hear it.
        let (reports, inbox) = mpsc::channel(2 * BLOCKS_IN_FLIGHT);
        Stream {
            session: Receiver::default(),
            channel: 0,
            worker: None,
            reports,
            inbox,
        }
    }
}

impl Stream {
    /// Whether what arrives on this channel is the stream's.
    pub(super) const fn owns(&self, channel: u16) -> bool {
        self.channel != 0 && self.channel == channel
    }
}

impl Connection {
    pub(super) async fn partial_message(
        &mut self,
        channel: u16,
        message: Message,
    ) -> Result<(), End> {
        self.index(channel)?;
        if matches!(message, Message::Partial(Partial::Begin(_))) {
            if let Some(refusal) = self.cannot_take("a partial stream", Right::Push) {
                self.log_refusal(&refusal);
                return Ok(self.wire.send(channel, &Message::Error(refusal)).await?);
            }
            self.stream.channel = channel;
        }
        let action = self.stream.session.received(message)?;
        match action {
            Some(action) => self.perform_partial(action).await,
            None => Ok(()),
        }
    }

    pub(super) async fn partial_reported(&mut self, report: Report) -> Result<(), End> {
        let session = &mut self.stream.session;
        let action = match report {
            Report::Begun(begun) => match self.cluster.archive.binding() {
                Some(binding) => session.begun(begun, binding.segment_size)?,
                None => None,
            },
            Report::Opened(at) => session.opened(at)?,
            Report::Durable(proof) => {
                self.cluster.note_records(&proof);
                session.durable(&proof)?
            }
            Report::Failed(error) => Some(session.failed(error)),
            Report::Over(error) => {
                self.stream.worker = None;
                Some(session.failed(error))
            }
        };
        match action {
            Some(action) => self.perform_partial(action).await,
            None => Ok(()),
        }
    }

    async fn perform_partial(&mut self, action: ReceiverAction) -> Result<(), End> {
        match action {
            ReceiverAction::Begin(begin) => {
                if self.stream.worker.is_none() {
                    let cluster = Arc::clone(&self.cluster);
                    let reports = self.stream.reports.clone();
                    let who = self.peer.to_string();
                    match partial::start(cluster, &self.peer.key(), who, reports) {
                        Ok(worker) => self.stream.worker = Some(worker),
                        Err(refusal) => {
                            let failed = Report::Failed(refusal);
                            return Box::pin(self.partial_reported(failed)).await;
                        }
                    }
                }
                self.give_partial(Job::Begin(begin)).await
            }
            ReceiverAction::Open(open) => self.give_partial(Job::Open(open)).await,
            ReceiverAction::Rewrite => self.give_partial(Job::Rewrite).await,
            ReceiverAction::Append(append) => self.give_partial(Job::Append(append)).await,
            ReceiverAction::Send(message) => {
                let channel = self.stream.channel;
                Ok(self.wire.send(channel, &message).await?)
            }
        }
    }

    async fn give_partial(&mut self, job: Job) -> Result<(), End> {
        while let Ok(report) = self.stream.inbox.try_recv() {
            // It ends with something to send, never with another job.
            Box::pin(self.partial_reported(report)).await?;
        }
        match &self.stream.worker {
            Some(worker) => worker.give(job).await,
            // The one there was ended; what it was to do is done by none.
            None => {
                let failed = Report::Failed(worker::failed_on("stream"));
                Box::pin(self.partial_reported(failed)).await?;
            }
        }
        // While the disk was slow the peer may well have spoken; it just was not read.
        self.heard();
        Ok(())
    }
}
