//! The partial flow on a channel: between its session and the worker that has the stream of records.
//! Waits for the disk itself only where [`work`] says so. Invariant: reports are dealt with in the order of the jobs.

pub(crate) mod work;

use walmgr_protocol::message::{Error, Message};
use walmgr_protocol::session::partial::{PartialReceiver, PartialReceiverAction};

use self::work::{RecordJob, StreamWorker};
use crate::receiver::link::{ConnectionEnd, Link};
use crate::receiver::reports::{FlowReport, RecordReport};
use crate::receiver::worker::{FromWorker, failed_on};

/// A channel that takes records.
pub(crate) struct PartialFlow {
    channel: u16,
    session: PartialReceiver,
    worker: Option<StreamWorker>,
}

impl PartialFlow {
    /// No stream is asked for yet.
    pub(crate) fn new(channel: u16) -> Self {
        PartialFlow {
            channel,
            session: PartialReceiver::default(),
            worker: None,
        }
    }

    /// Whether no worker has the stream, or asks for it.
    pub(crate) const fn is_idle(&self) -> bool {
        self.worker.is_none()
    }

    /// Its messages come on another channel from here on.
    pub(crate) const fn moves_to(&mut self, channel: u16) {
        self.channel = channel;
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
        said: FromWorker<RecordReport>,
    ) -> Result<(), ConnectionEnd> {
        if !(self.worker.as_mut()).is_some_and(|worker| worker.hears(&said)) {
            return Ok(());
        }
        match self.heard(link, said.report)? {
            Some(action) => self.perform(link, action).await,
            None => Ok(()),
        }
    }

    /// What comes of a report.
    fn heard(
        &mut self,
        link: &Link,
        report: RecordReport,
    ) -> Result<Option<PartialReceiverAction>, ConnectionEnd> {
        Ok(match report {
            RecordReport::Begun(begun) => match link.served.store.archive.binding() {
                Some(binding) => self.session.begun(begun, binding.segment_size)?,
                None => None,
            },
            RecordReport::Opened(at) => self.session.opened(at)?,
            RecordReport::Durable(proof) => {
                link.served.store.note_records(&proof);
                self.session.durable(&proof)?
            }
            RecordReport::Failed(error) => Some(self.session.failed(error)),
            RecordReport::Over(error) => {
                self.worker = None;
                Some(self.session.failed(error))
            }
        })
    }

    async fn perform(
        &mut self,
        link: &mut Link,
        action: PartialReceiverAction,
    ) -> Result<(), ConnectionEnd> {
        let mut next = Some(action);
        while let Some(action) = next.take() {
            let job = match action {
                PartialReceiverAction::Begin(begin) => {
                    if self.worker.is_none() {
                        let say = link.reports_of(self.channel, FlowReport::Partial);
                        let who = (link.peer.to_string(), link.peer.audited());
                        let served = link.served.clone();
                        match StreamWorker::start(served, &link.peer.key(), who, say) {
                            Ok(worker) => self.worker = Some(worker),
                            Err(refusal) => return self.fail(link, refusal).await,
                        }
                    }
                    RecordJob::Begin(begin)
                }
                PartialReceiverAction::Open(open) => RecordJob::Open(open),
                PartialReceiverAction::Rewrite => RecordJob::Rewrite,
                PartialReceiverAction::Append(append) => RecordJob::Append(append),
                PartialReceiverAction::Send(message) => {
                    return link.send(self.channel, &message).await;
                }
            };
            let is_last = !link.wire.has_more();
            let done = match &mut self.worker {
                Some(worker) => worker.give(job, is_last).await,
                // The one there was ended; what it was to do is done by none.
                None => return self.fail(link, failed_on("stream")).await,
            };
            link.heard();
            next = match done {
                Some(report) => self.heard(link, report)?,
                None => None,
            };
        }
        Ok(())
    }

    async fn fail(&mut self, link: &mut Link, error: Error) -> Result<(), ConnectionEnd> {
        match self.session.failed(error) {
            PartialReceiverAction::Send(message) => link.send(self.channel, &message).await,
            // Whoever failed has no more to do.
            _ => Ok(()),
        }
    }
}
