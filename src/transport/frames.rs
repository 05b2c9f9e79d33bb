//! The protocol's codec as tokio-util's framing wants it, and the stream that framing reads from.
//! Never waits and never sends by itself. Invariant: whoever asks is told of each arrival of bytes,
//! which framing alone hides until a frame is whole.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::codec;
use walmgr_protocol::codec::{Decoder, Encoder, Frame};
use walmgr_protocol::compress::Block;
use walmgr_protocol::error::ProtocolError;
use walmgr_protocol::hello::{Hello, HelloAnswer};
use walmgr_protocol::message::Message;
use walmgr_protocol::session::hello::ReceivedHello;
use walmgr_protocol::version::VersionRange;

use crate::transport::stream::ByteStream;
use crate::transport::wire::WireFault;

/// Bytes asked of the socket at once: several TLS records, and a whole default block.
const READ_BYTES: usize = 288 << 10;

/// Bytes taken in at once beside sending; answers to blocks are short.
const LISTEN_BYTES: usize = 4 << 10;

/// The introduction as the client has it: it says a hello, and hears the answer.
#[derive(Default)]
pub(crate) struct ClientIntroduction;

/// The introduction as the receiver has it: it hears a hello, and says the answer.
#[derive(Default)]
pub(crate) struct ReceiverIntroduction;

impl codec::Decoder for ClientIntroduction {
    type Item = HelloAnswer;
    type Error = WireFault;

    fn decode(&mut self, inbox: &mut BytesMut) -> Result<Option<HelloAnswer>, WireFault> {
        Ok(HelloAnswer::decode(inbox).map_err(ProtocolError::from)?)
    }

    fn decode_eof(&mut self, inbox: &mut BytesMut) -> Result<Option<HelloAnswer>, WireFault> {
        self.decode(inbox)
    }
}

impl codec::Encoder<&Hello> for ClientIntroduction {
    type Error = WireFault;

    fn encode(&mut self, hello: &Hello, outbox: &mut BytesMut) -> Result<(), WireFault> {
        hello.encode(VersionRange::OURS, outbox);
        Ok(())
    }
}

impl codec::Decoder for ReceiverIntroduction {
    type Item = ReceivedHello;
    type Error = WireFault;

    fn decode(&mut self, inbox: &mut BytesMut) -> Result<Option<ReceivedHello>, WireFault> {
        Ok(Hello::decode(inbox).map_err(ProtocolError::from)?)
    }

    fn decode_eof(&mut self, inbox: &mut BytesMut) -> Result<Option<ReceivedHello>, WireFault> {
        self.decode(inbox)
    }
}

impl codec::Encoder<&HelloAnswer> for ReceiverIntroduction {
    type Error = WireFault;

    fn encode(&mut self, answer: &HelloAnswer, outbox: &mut BytesMut) -> Result<(), WireFault> {
        answer.encode(outbox);
        Ok(())
    }
}

/// Both ends of a connection's frames.
pub(super) struct FrameCodec {
    pub(super) encoder: Encoder,
    pub(super) decoder: Decoder,
}

impl FrameCodec {
    /// The whole frame of a block, in the block's own buffer.
    pub(super) fn encode_block<'a>(&mut self, channel: u16, block: &'a mut Block) -> &'a [u8] {
        self.encoder.encode_block(channel, block)
    }
}

impl codec::Decoder for FrameCodec {
    type Item = Frame;
    type Error = WireFault;

    fn decode(&mut self, inbox: &mut BytesMut) -> Result<Option<Frame>, WireFault> {
        let frame = self.decoder.decode(inbox)?;
        // The protocol's decoder makes room for the rest of a frame it has begun. Asking for more than
        // that would move the part that is there already; framing by itself would ask for one byte.
        if frame.is_none() && inbox.capacity() == inbox.len() {
            inbox.reserve(READ_BYTES);
        }
        Ok(frame)
    }

    /// Frames have their own ends: what is left of one is the connection's end, not a fault of its own.
    fn decode_eof(&mut self, inbox: &mut BytesMut) -> Result<Option<Frame>, WireFault> {
        self.decode(inbox)
    }
}

impl codec::Encoder<(u16, &Message)> for FrameCodec {
    type Error = WireFault;

    fn encode(
        &mut self,
        (channel, message): (u16, &Message),
        outbox: &mut BytesMut,
    ) -> Result<(), WireFault> {
        self.encoder.encode(channel, message, outbox);
        Ok(())
    }
}

/// The connection's bytes, counted as they arrive.
pub(super) struct PeerStream {
    stream: ByteStream,
    /// What arrived beside sending, before it was asked for.
    early: BytesMut,
    arrivals: u64,
    /// Whether something was written behind the last flush: TLS takes more than it passes on to a socket that is full,
    /// and keeps the rest until it is asked again.
    owes_flush: bool,
}

impl PeerStream {
    pub(super) fn new(stream: ByteStream) -> Self {
        PeerStream {
            stream,
            early: BytesMut::new(),
            arrivals: 0,
            owes_flush: false,
        }
    }

    /// How often bytes arrived.
    pub(super) fn arrivals(&self) -> u64 {
        self.arrivals
    }

    /// Whether bytes wait that framing has not asked for.
    pub(super) fn has_early(&self) -> bool {
        !self.early.is_empty()
    }

    /// Takes in what has arrived; whether there may be more.
    pub(super) fn listen(&mut self, context: &mut Context<'_>) -> Result<bool, WireFault> {
        if self.early.len() >= READ_BYTES {
            // Whoever sends takes these out before the next block.
            return Ok(false);
        }
        let mut bytes = [0; LISTEN_BYTES];
        let mut buffer = ReadBuf::new(&mut bytes);
        match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => Err(WireFault::Closed),
            Poll::Ready(Ok(())) => {
                self.early.extend_from_slice(buffer.filled());
                self.arrivals += 1;
                Ok(true)
            }
            Poll::Ready(Err(error)) => Err(error.into()),
            Poll::Pending => Ok(false),
        }
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.early.is_empty() {
            let taken = self.early.len().min(buffer.remaining());
            buffer.put_slice(&self.early[..taken]);
            self.early.advance(taken);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        if self.owes_flush {
            // Whoever waits for an answer must not keep what asks for it. A fault shows in reading, behind what the
            // other side said last.
            let _ = self.as_mut().poll_flush(context);
        }
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.arrivals += 1;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.owes_flush = true;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.owes_flush = flushed.is_pending();
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
