//! One stream of a backup: a connection that sends files, and comes back when it was cut.
//! Never sends a file again that the receiver holds. Invariant: files pass from a reading thread to
//! the socket through a bounded queue, and that thread has ended before another one begins.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::timeout;
use walmgr_protocol::compress::{Block, Packer};
use walmgr_protocol::frame::HEADER_BYTES;
use walmgr_protocol::limits::{BACKUP_PATHS_MAX, BLOCKS_IN_FLIGHT};
use walmgr_protocol::message::backup::{Granted, Join};
use walmgr_protocol::message::{Message, MessageKind};
use walmgr_protocol::session::backup::{Stream as Session, StreamEvent};

use crate::error::{CommandError, Result};
use crate::master::backup::control::{
    CHANNEL, LinkError, RETRY_INTERVAL, ReceiverLink, SILENCE_MAX, receive,
};
use crate::master::backup::source::StreamSource;
use crate::master::backup::work_queue::{OnItsWay, Resend, WorkQueue};
use crate::master::push::Blocks;
use crate::output::progress::Counters;
use crate::rate_limit::RateLimit;
use crate::transport::connect::fresh_nonce;
use crate::transport::wire::{Wire, WireFault};

/// Time to wait for the words behind a connection that takes nothing more.
const LAST_WORDS_DEADLINE: Duration = Duration::from_millis(500);

/// One stream, from its first connection to its last.
pub(crate) struct BackupStream {
    /// The way to the receiver.
    pub way: Arc<ReceiverLink>,
    /// What is to be sent.
    pub load: Arc<WorkQueue>,
    /// What the receiver granted.
    pub granted: Granted,
    /// Which of the streams.
    pub number: u16,
    /// How blocks are made.
    pub blocks: Blocks,
    /// How fast all streams together may read.
    pub limit: Arc<RateLimit>,
}

impl BackupStream {
    /// Sends until nothing is waiting; gives up when nothing got through for as long as the lease.
    pub(crate) async fn run(self) -> Result<()> {
        let on_its_way = Arc::new(OnItsWay::default());
        let lease = Duration::from_secs(u64::from(self.granted.lease_s));
        let mut got_on = Instant::now();
        loop {
            match self.carry(&on_its_way, &mut got_on).await {
                Ok(()) => return on_its_way.ended(),
                Err(LinkError::Final(error)) => return Err(error),
                Err(LinkError::Retry(error)) if got_on.elapsed() >= lease => return Err(error),
                Err(LinkError::Retry(error)) => {
                    tracing::debug!("stream {} reconnects: {error}", self.number);
                    Counters::add(&self.load.counters.reconnections, 1);
                }
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    async fn carry(
        &self,
        on_its_way: &Arc<OnItsWay>,
        got_on: &mut Instant,
    ) -> Result<(), LinkError> {
        let mut wire = self.way.connect().await?;
        let (mut session, join) = Session::join(Join {
            token: self.granted.token,
            stream: self.number,
        });
        wire.send(CHANNEL, &join).await?;
        match self.event(&mut wire, &mut session).await? {
            StreamEvent::Granted => {}
            event => return Err(self.way.answered_with(kind_of(&event))),
        }
        let again = self.ask(&mut wire, &mut session, on_its_way).await?;
        let (full, mut ready) = mpsc::channel::<Block>(BLOCKS_IN_FLIGHT);
        let (empty, reusable) = std::sync::mpsc::channel::<Vec<u8>>();
        let nonce = fresh_nonce().map_err(LinkError::Final)?;
        let random = nonce
            .iter()
            .fold(0, |seed: u64, byte| seed << 4 ^ u64::from(*byte));
        let (load, way) = (Arc::clone(&self.load), Arc::clone(on_its_way));
        let source = StreamSource::new(load, way, again, random);
        let (blocks, limit) = (self.blocks, Arc::clone(&self.limit));
        let reading = tokio::task::spawn_blocking(move || {
            read_blocks(source, blocks, &limit, &full, &reusable)
        });
        let sending = async {
            while let Some(mut block) = self
                .next(&mut wire, &mut session, &mut ready, on_its_way)
                .await?
            {
                self.send(&mut wire, &mut session, &mut block, on_its_way)
                    .await?;
                *got_on = Instant::now();
                // The reader may have ended; then nobody needs the buffer.
                let _ = empty.send(block.into_buffer());
            }
            Ok(())
        };
        let sent: Result<(), LinkError> = sending.await;
        // Without anybody to take its blocks the reader ends, and has to before another begins.
        drop(ready);
        let read = reading.await.map_err(|error| {
            LinkError::Final(CommandError::retry("read the data directory").because(error))
        })?;
        sent?;
        read.map_err(LinkError::Final)?;
        self.end(&mut wire, &mut session, on_its_way).await?;
        wire.goodbye().await;
        Ok(())
    }

    /// Asks what is held of everything that was not confirmed.
    async fn ask(
        &self,
        wire: &mut Wire,
        session: &mut Session,
        on_its_way: &OnItsWay,
    ) -> Result<Vec<Resend>, LinkError> {
        let mut again = Vec::new();
        for paths in on_its_way
            .unconfirmed()
            .chunks(usize::from(BACKUP_PATHS_MAX))
        {
            let question = session.ask(paths.to_vec())?;
            wire.send(CHANNEL, &question).await?;
            let held = match self.event(wire, session).await? {
                StreamEvent::Held(held) => held,
                event => return Err(self.way.answered_with(kind_of(&event))),
            };
            for (path, held) in paths.iter().zip(held) {
                let settled = on_its_way.settle(&self.load, path, held);
                again.extend(settled.map_err(LinkError::Final)?);
            }
        }
        Ok(again)
    }

    /// The next block, while confirmations are taken in; `None` at the end.
    async fn next(
        &self,
        wire: &mut Wire,
        session: &mut Session,
        ready: &mut mpsc::Receiver<Block>,
        on_its_way: &OnItsWay,
    ) -> Result<Option<Block>, LinkError> {
        loop {
            let frame = tokio::select! {
                biased;
                block = ready.recv() => return Ok(block),
                frame = wire.next() => frame?,
            };
            self.message(session, frame.message, on_its_way)?;
        }
    }

    async fn send(
        &self,
        wire: &mut Wire,
        session: &mut Session,
        block: &mut Block,
        on_its_way: &OnItsWay,
    ) -> Result<(), LinkError> {
        let bytes = (HEADER_BYTES + 12 + block.payload().len()) as u64;
        if let Err(fault) = wire.send_block_listening(CHANNEL, block).await {
            // The receiver may have said why before it stopped reading.
            return Err(self.last_words(wire, session, fault).await);
        }
        session.block_sent(block.raw_bytes)?;
        Counters::add(&self.load.counters.sent_bytes, bytes);
        while let Some(frame) = wire.arrived().await? {
            self.message(session, frame.message, on_its_way)?;
        }
        Ok(())
    }

    /// Says that this was all, and waits until it was taken.
    async fn end(
        &self,
        wire: &mut Wire,
        session: &mut Session,
        on_its_way: &OnItsWay,
    ) -> Result<(), LinkError> {
        let end = session.end()?;
        wire.send(CHANNEL, &end).await?;
        loop {
            let message = receive(wire).await?;
            if self.message(session, message, on_its_way)? {
                return Ok(());
            }
        }
    }

    /// Deals with what arrived; `true` when the stream was taken.
    fn message(
        &self,
        session: &mut Session,
        message: Message,
        on_its_way: &OnItsWay,
    ) -> Result<bool, LinkError> {
        match session.received(message).map_err(WireFault::from)? {
            StreamEvent::FilesDone(files) => {
                for file in &files {
                    on_its_way
                        .done(&self.load, file)
                        .map_err(LinkError::Final)?;
                }
                Ok(false)
            }
            StreamEvent::Taken => Ok(true),
            StreamEvent::Refused(error) => Err(self.way.refused(error)),
            event @ (StreamEvent::Granted | StreamEvent::Held(_)) => {
                Err(self.way.answered_with(kind_of(&event)))
            }
        }
    }

    /// The next thing the receiver says, confirmations aside: none are due here.
    async fn event(
        &self,
        wire: &mut Wire,
        session: &mut Session,
    ) -> Result<StreamEvent, LinkError> {
        let message = receive(wire).await?;
        match session.received(message).map_err(WireFault::from)? {
            StreamEvent::Refused(error) => Err(self.way.refused(error)),
            event => Ok(event),
        }
    }

    async fn last_words(
        &self,
        wire: &mut Wire,
        session: &mut Session,
        fault: WireFault,
    ) -> LinkError {
        let until = Instant::now() + LAST_WORDS_DEADLINE;
        while let Some(left) = until.checked_duration_since(Instant::now())
            && let Ok(Ok(frame)) = timeout(left.min(SILENCE_MAX), wire.next()).await
        {
            if let message @ Message::Error(_) = frame.message
                && let Ok(StreamEvent::Refused(error)) = session.received(message)
            {
                return self.way.refused(error);
            }
        }
        fault.into()
    }
}

/// Makes blocks of the stream until it ends, or nobody takes them any more.
fn read_blocks(
    mut source: StreamSource,
    blocks: Blocks,
    limit: &RateLimit,
    full: &mpsc::Sender<Block>,
    reusable: &std::sync::mpsc::Receiver<Vec<u8>>,
) -> Result<()> {
    let mut packer = Packer::new(blocks.compression);
    let mut offset = 0;
    let block_bytes = u64::from(blocks.block_bytes);
    // Before reading: what burdens the master is its disk as much as the network.
    while limit.take(block_bytes, &|| !full.is_closed()) {
        let buffer = reusable.try_recv().unwrap_or_default();
        let block = packer.pack(buffer, offset, |buffer| {
            source.fill(buffer, blocks.block_bytes as usize)
        })?;
        limit.give_back(block_bytes.saturating_sub(u64::from(block.raw_bytes)));
        if block.raw_bytes == 0 {
            return Ok(());
        }
        offset += u64::from(block.raw_bytes);
        if full.blocking_send(block).is_err() {
            break;
        }
    }
    // The connection is gone; what was read is sent again, or asked for.
    Ok(())
}

/// The message that an event was.
const fn kind_of(event: &StreamEvent) -> MessageKind {
    match event {
        StreamEvent::Granted => MessageKind::BackupGranted,
        StreamEvent::Held(_) => MessageKind::BackupHeld,
        StreamEvent::FilesDone(_) => MessageKind::BackupFilesDone,
        StreamEvent::Taken => MessageKind::BackupStreamTaken,
        StreamEvent::Refused(_) => MessageKind::Error,
    }
}
