//! The part of a connection's loop that sends what is fetched.
//! Never reads a disk. Invariant: one fetch at a time on a connection, and a peer that stops reading
//! is hung up on, so that it cannot hold a backup set for good.

use std::sync::Arc;

use walmgr_protocol::compress::Block;
use walmgr_protocol::message::{Error, ErrorCode, Message};
use walmgr_protocol::session::fetch::{Provider, ProviderAction};

use super::{Connection, End};
use crate::receiver::FRAME_DEADLINE;
use crate::receiver::fetch::{Reading, Report};
use crate::transport::authorized_keys::Right;

/// What is fetched on a connection.
#[derive(Default)]
pub(super) struct Fetching {
    channel: u16,
    session: Provider,
    reading: Option<Reading>,
}

impl Fetching {
    /// Whether messages on this channel are about what is fetched.
    pub(super) fn owns(&self, channel: u16) -> bool {
        self.channel == channel && !self.session.is_idle()
    }

    /// What the reading thread says next; never comes while there is none.
    pub(super) async fn next(&mut self) -> Report {
        let Some(reading) = &mut self.reading else {
            return std::future::pending().await;
        };
        match reading.reports.recv().await {
            Some(report) => report,
            // A worker ends with a report; this one has been heard.
            None => std::future::pending().await,
        }
    }
}

impl Connection {
    pub(super) async fn fetch_message(
        &mut self,
        channel: u16,
        message: Message,
    ) -> Result<(), End> {
        self.index(channel)?;
        if !self.fetching.owns(channel) {
            if !self.fetching.session.is_idle() {
                return Err(self.fetching.session.unexpected(&message).into());
            }
            self.fetching.channel = channel;
        }
        if let Message::Fetch(_) = message
            && let Some(refusal) = self.cannot_give(message.name())
        {
            self.log_refusal(&refusal);
            return Ok(self.wire.send(channel, &Message::Error(refusal)).await?);
        }
        let action = self.fetching.session.received(message).map_err(End::from)?;
        self.provide(action).await
    }

    pub(super) async fn fetch_reported(&mut self, report: Report) -> Result<(), End> {
        let session = &mut self.fetching.session;
        let action = match report {
            Report::Block(block) => return self.send_block(block).await,
            Report::Found => {
                let action = session.found()?;
                return self.provide(action).await;
            }
            Report::NotFound(what) => session.not_found(what)?,
            Report::Ended(crc32) => session.ended(crc32)?,
            Report::Failed(error) => session.failed(error)?,
        };
        // Its thread has said its last word.
        self.fetching.reading = None;
        self.provide(action).await
    }

    async fn provide(&mut self, action: Option<ProviderAction>) -> Result<(), End> {
        match action {
            Some(ProviderAction::Find(request)) => {
                let cluster = Arc::clone(&self.cluster);
                self.fetching.reading = Some(Reading::start(cluster, &self.peer.key(), request));
            }
            Some(ProviderAction::Send(message)) => {
                let channel = self.fetching.channel;
                self.wire.send(channel, &message).await?;
            }
            Some(ProviderAction::Stop) => self.fetching.reading = None,
            // The thread sends by itself.
            Some(ProviderAction::SendFrom(_)) | None => {}
        }
        Ok(())
    }

    async fn send_block(&mut self, mut block: Block) -> Result<(), End> {
        let channel = self.fetching.channel;
        let sending = self.wire.send_block(channel, &mut block);
        match tokio::time::timeout(FRAME_DEADLINE, sending).await {
            Ok(sent) => sent?,
            Err(_) => {
                let text = format!("it took nothing of what it fetches for {FRAME_DEADLINE:?}");
                return Err(End::Gone(text));
            }
        }
        // It takes blocks, so it is alive, though it has nothing to say.
        self.heard();
        self.fetching.session.block_sent(block.raw_bytes)?;
        if let Some(reading) = &self.fetching.reading {
            reading.sent(block);
        }
        Ok(())
    }

    fn cannot_give(&self, what: &str) -> Option<Error> {
        if self.stop_by.is_some() {
            let (text, hint) = ("the receiver is stopping", "it will be tried again");
            return Some(Error::channel(ErrorCode::ShuttingDown, text, hint));
        }
        (!self.peer.rights.read).then(|| self.lacks_right(what, Right::Read))
    }
}
