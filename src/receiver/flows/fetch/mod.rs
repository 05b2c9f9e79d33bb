//! The fetch flow on a channel: between its session and the worker that reads.
//! Never reads a disk. Invariant: a peer that stops reading is hung up on, so that it cannot hold a backup
//! set for good.

pub(crate) mod send;

use walmgr_protocol::compress::Block;
use walmgr_protocol::message::Message;
use walmgr_protocol::session::fetch::{Provider, ProviderAction};

use self::send::FetchWorker;
use crate::receiver::FRAME_DEADLINE;
use crate::receiver::link::{ConnectionEnd, Link};
use crate::receiver::reports::{FetchReport, FlowReport};
use crate::receiver::worker::FromWorker;

/// A channel on which something is fetched.
pub(crate) struct FetchFlow {
    channel: u16,
    session: Provider,
    reading: Option<FetchWorker>,
}

impl FetchFlow {
    /// Nothing is asked for yet.
    pub(crate) fn new(channel: u16) -> Self {
        FetchFlow {
            channel,
            session: Provider::default(),
            reading: None,
        }
    }

    /// Whether nothing is being fetched.
    pub(crate) const fn is_idle(&self) -> bool {
        self.session.is_idle()
    }

    /// A message that would begin another fetch meanwhile.
    pub(crate) fn unexpected(&self, message: &Message) -> ConnectionEnd {
        self.session.unexpected(message).into()
    }

    /// A message arrived on the channel.
    pub(crate) async fn received(
        &mut self,
        link: &mut Link,
        message: Message,
    ) -> Result<(), ConnectionEnd> {
        let action = self.session.received(message)?;
        self.provide(link, action).await
    }

    /// The worker spoke.
    pub(crate) async fn reported(
        &mut self,
        link: &mut Link,
        said: FromWorker<FetchReport>,
    ) -> Result<(), ConnectionEnd> {
        if (self.reading.as_ref()).is_none_or(|reading| reading.id() != said.worker) {
            return Ok(());
        }
        let action = match said.report {
            FetchReport::Block(block) => return self.send_block(link, block).await,
            FetchReport::Found => {
                let action = self.session.found()?;
                return self.provide(link, action).await;
            }
            FetchReport::NotFound(what) => self.session.not_found(what)?,
            FetchReport::Ended(crc32) => self.session.ended(crc32)?,
            FetchReport::Failed(error) => self.session.failed(error)?,
        };
        // Its thread has said its last word.
        self.reading = None;
        self.provide(link, action).await
    }

    async fn provide(
        &mut self,
        link: &mut Link,
        action: Option<ProviderAction>,
    ) -> Result<(), ConnectionEnd> {
        match action {
            Some(ProviderAction::Find(request)) => {
                let say = link.reports_of(self.channel, FlowReport::Fetch);
                let served = link.served.clone();
                self.reading = Some(send::start(served, &link.peer, request, say));
            }
            Some(ProviderAction::Send(message)) => link.send(self.channel, &message).await?,
            Some(ProviderAction::Stop) => self.reading = None,
            // The thread sends by itself.
            Some(ProviderAction::SendFrom(_)) | None => {}
        }
        Ok(())
    }

    async fn send_block(&mut self, link: &mut Link, mut block: Block) -> Result<(), ConnectionEnd> {
        let sending = link.wire.send_block(self.channel, &mut block);
        match tokio::time::timeout(FRAME_DEADLINE, sending).await {
            Ok(sent) => sent?,
            Err(_) => {
                let text = format!("it read nothing for {FRAME_DEADLINE:?}");
                return Err(ConnectionEnd::Gone(text));
            }
        }
        // It takes blocks, so it is alive, though it has nothing to say.
        link.heard();
        self.session.block_sent(block.raw_bytes)?;
        if let Some(reading) = &self.reading {
            // The worker may have ended; then nobody needs the buffer.
            reading.offer(block.into_buffer());
        }
        Ok(())
    }
}
