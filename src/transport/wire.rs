//! Frames over a stream: the tokio side of `walmgr_protocol::codec`, the same for both ends.
//! Never decides anything; a client may have it answer pings. Invariant: whatever waits for a frame may
//! be dropped and called again without losing a byte, of what arrives or of what is answered.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;
use walmgr_protocol::codec::{Decoder, Encoder, Frame};
use walmgr_protocol::compress::Block;
use walmgr_protocol::error::{Malformed, ProtocolError};
use walmgr_protocol::frame::{Direction, Nonce};
use walmgr_protocol::hello::{Answer, Hello, Welcome, coders};
use walmgr_protocol::message::Message;
use walmgr_protocol::session::Misuse;
use walmgr_protocol::session::hello::ReceivedHello;
use walmgr_protocol::version::VersionRange;

use crate::error::{CommandError, Kind};
use crate::transport::stream::ByteStream;

/// Bytes asked of the socket at once: several TLS records, and a whole default block.
const READ_BYTES: usize = 288 << 10;

/// Bytes taken in at once beside sending; answers to blocks are short.
const LISTEN_BYTES: usize = 4 << 10;

/// Time a peer may take to read one block: its disk may be busy, but not for good.
const BLOCK_DEADLINE: Duration = Duration::from_secs(120);

/// Time that closing in good order may take before the socket is simply dropped.
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

/// Time a peer may take to read one message. A peer that asks without ever reading answers would
/// otherwise hold its connection for good.
const SEND_DEADLINE: Duration = Duration::from_secs(30);

/// Why nothing more comes over a connection.
#[derive(Debug, thiserror::Error)]
pub enum WireFault {
    /// The other side closed it.
    #[error("the other side closed the connection")]
    Closed,
    /// The other side takes no bytes.
    #[error("the other side does not read")]
    StoppedReading,
    /// Nothing came for too long.
    #[error("the other side does not answer")]
    Silent,
    /// The socket or TLS failed.
    #[error("the connection broke")]
    Io(#[source] std::io::Error),
    /// The bytes were not what the protocol allows.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

impl From<std::io::Error> for WireFault {
    fn from(error: std::io::Error) -> Self {
        // An end without the close_notify of TLS: a peer that crashed, or a connection that was cut.
        // Frames have their own ends, so nothing can be mistaken for complete.
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => WireFault::Closed,
            _ => WireFault::Io(error),
        }
    }
}

impl From<WireFault> for CommandError {
    fn from(fault: WireFault) -> Self {
        CommandError::new(Kind::Retry, "talk to the receiver")
            .because(fault)
            .hint(
                "if this repeats, check the network and look at the receiver's log on the \
                standby",
            )
    }
}

impl From<Misuse> for CommandError {
    fn from(misuse: Misuse) -> Self {
        CommandError::new(Kind::Retry, "talk to the receiver")
            .because(misuse)
            .hint("this is a bug in walmgr: please report it with this line")
    }
}

/// A stream before the introduction: it carries a hello and its answer, nothing else.
pub(crate) struct Introduction {
    stream: ByteStream,
    inbox: BytesMut,
}

impl Introduction {
    /// Begins on a connected stream.
    pub(crate) fn new(stream: ByteStream) -> Self {
        Introduction {
            stream,
            inbox: BytesMut::new(),
        }
    }

    /// Sends a hello (client).
    pub(crate) async fn send_hello(&mut self, hello: &Hello) -> Result<(), WireFault> {
        let mut out = BytesMut::new();
        hello.encode(VersionRange::OURS, &mut out);
        self.send(&out).await
    }

    /// Waits for the answer (client).
    pub(crate) async fn receive_answer(&mut self) -> Result<Answer, WireFault> {
        loop {
            if let Some(answer) = Answer::decode(&mut self.inbox).map_err(ProtocolError::from)? {
                return Ok(answer);
            }
            self.read_more().await?;
        }
    }

    /// Waits for a hello (receiver).
    pub(crate) async fn receive_hello(&mut self) -> Result<ReceivedHello, WireFault> {
        loop {
            if let Some(hello) = Hello::decode(&mut self.inbox).map_err(ProtocolError::from)? {
                return Ok(hello);
            }
            self.read_more().await?;
        }
    }

    /// Sends the answer (receiver).
    pub(crate) async fn send_answer(&mut self, answer: &Answer) -> Result<(), WireFault> {
        let mut out = BytesMut::new();
        answer.encode(&mut out);
        self.send(&out).await
    }

    /// Both sides know each other: frames from here on.
    pub(crate) fn into_wire(self, side: Direction, hello: &Nonce, welcome: &Welcome) -> Wire {
        let (encoder, decoder) = coders(side, hello, welcome);
        Wire {
            stream: self.stream,
            inbox: self.inbox,
            outbox: BytesMut::new(),
            encoder,
            decoder,
        }
    }

    /// Ends the stream in good order, so that what was sent last arrives.
    pub(crate) async fn close(mut self) {
        close(&mut self.stream).await;
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), WireFault> {
        self.stream.write_all(bytes).await?;
        Ok(self.stream.flush().await?)
    }

    async fn read_more(&mut self) -> Result<(), WireFault> {
        self.inbox.reserve(1024);
        if self.stream.read_buf(&mut self.inbox).await? > 0 {
            return Ok(());
        }
        match self.inbox.is_empty() {
            true => Err(WireFault::Closed),
            false => Err(ProtocolError::from(Malformed::CutShort { what: "a hello" }).into()),
        }
    }
}

/// A stream of frames.
pub struct Wire {
    stream: ByteStream,
    inbox: BytesMut,
    outbox: BytesMut,
    encoder: Encoder,
    decoder: Decoder,
}

impl Wire {
    /// The next frame. Dropping the future loses nothing.
    pub async fn receive(&mut self) -> Result<Frame, WireFault> {
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.inbox)? {
                return Ok(frame);
            }
            self.read_more().await?;
        }
    }

    /// Takes a frame that has already arrived, or reads once from the socket and returns `None`.
    /// Dropping the future loses nothing; the caller sees every arrival of bytes.
    pub async fn receive_step(&mut self) -> Result<Option<Frame>, WireFault> {
        if let Some(frame) = self.decoder.decode(&mut self.inbox)? {
            return Ok(Some(frame));
        }
        self.read_more().await?;
        Ok(None)
    }

    /// The next frame that is about something; pings are answered on the way. Dropping the future loses
    /// nothing: what is left of an answer goes out before the next frame does.
    pub async fn next(&mut self) -> Result<Frame, WireFault> {
        self.flush().await?;
        loop {
            let frame = self.receive().await?;
            if let Some(frame) = self.answer_ping(frame).await? {
                return Ok(frame);
            }
        }
    }

    /// The same; a silence longer than `silence` in between is an end, and a ping is none.
    pub async fn next_within(&mut self, silence: Duration) -> Result<Frame, WireFault> {
        self.flush().await?;
        loop {
            let frame = match timeout(silence, self.receive()).await {
                Ok(frame) => frame?,
                Err(_) => return Err(WireFault::Silent),
            };
            if let Some(frame) = self.answer_ping(frame).await? {
                return Ok(frame);
            }
        }
    }

    /// Whether the other side owes the rest of a frame.
    pub fn mid_frame(&self) -> bool {
        self.decoder.mid_frame(&self.inbox)
    }

    /// Sends one message.
    pub async fn send(&mut self, channel: u16, message: &Message) -> Result<(), WireFault> {
        self.encoder.encode(channel, message, &mut self.outbox);
        self.flush().await
    }

    /// Sends one block of a file without copying it; the message behind the last flushes it.
    pub async fn send_block(&mut self, channel: u16, block: &mut Block) -> Result<(), WireFault> {
        self.flush().await?;
        let bytes = self.encoder.encode_block(channel, block);
        Ok(self.stream.write_all(bytes).await?)
    }

    /// The same while taking in what arrives: a peer that answers blocks would otherwise wait for
    /// this side to read as long as this side waits for it.
    pub async fn send_block_listening(
        &mut self,
        channel: u16,
        block: &mut Block,
    ) -> Result<(), WireFault> {
        self.flush().await?;
        let mut left = self.encoder.encode_block(channel, block);
        let (stream, inbox) = (&mut self.stream, &mut self.inbox);
        let both = std::future::poll_fn(|context| {
            while listen(stream, inbox, context)? {}
            while !left.is_empty() {
                match Pin::new(&mut *stream).poll_write(context, left) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(WireFault::Closed)),
                    Poll::Ready(Ok(written)) => left = &left[written..],
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                    Poll::Pending => return Poll::Pending,
                }
            }
            Poll::Ready(Ok(()))
        });
        match timeout(BLOCK_DEADLINE, both).await {
            Ok(sent) => sent,
            Err(_) => Err(WireFault::StoppedReading),
        }
    }

    /// A frame about something that has arrived already.
    pub async fn arrived(&mut self) -> Result<Option<Frame>, WireFault> {
        while let Some(frame) = self.decoder.decode(&mut self.inbox)? {
            if let Some(frame) = self.answer_ping(frame).await? {
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }

    /// Says that nothing follows, and ends the stream in good order.
    pub async fn goodbye(mut self) {
        // The other side sees the connection end either way.
        let _ = self.send(0, &Message::Goodbye).await;
        self.close().await;
    }

    /// Ends the stream in good order, so that what was sent last arrives.
    pub async fn close(mut self) {
        close(&mut self.stream).await;
    }

    /// The frame, unless it only asked or said that somebody is there.
    async fn answer_ping(&mut self, frame: Frame) -> Result<Option<Frame>, WireFault> {
        match frame.message {
            Message::Ping => self.send(frame.channel, &Message::Pong).await?,
            Message::Pong => {}
            _ => return Ok(Some(frame)),
        }
        Ok(None)
    }

    /// Sends what is waiting. Each byte leaves the outbox as it goes out.
    async fn flush(&mut self) -> Result<(), WireFault> {
        if self.outbox.is_empty() {
            return Ok(());
        }
        let sending = async {
            self.stream.write_all_buf(&mut self.outbox).await?;
            self.stream.flush().await
        };
        match timeout(SEND_DEADLINE, sending).await {
            Ok(sent) => Ok(sent?),
            Err(_) => Err(WireFault::StoppedReading),
        }
    }

    async fn read_more(&mut self) -> Result<(), WireFault> {
        // The decoder makes room for the rest of a frame it has begun. Asking for more than that
        // would move the part that is there already.
        if self.inbox.capacity() == self.inbox.len() {
            self.inbox.reserve(READ_BYTES);
        }
        if self.stream.read_buf(&mut self.inbox).await? > 0 {
            return Ok(());
        }
        Err(WireFault::Closed)
    }
}

/// Takes in what has arrived; whether there may be more.
fn listen(
    stream: &mut ByteStream,
    inbox: &mut BytesMut,
    context: &mut Context<'_>,
) -> Result<bool, WireFault> {
    if inbox.len() >= READ_BYTES {
        // Whoever sends takes these out before the next block.
        return Ok(false);
    }
    let mut bytes = [0; LISTEN_BYTES];
    let mut buffer = ReadBuf::new(&mut bytes);
    match Pin::new(stream).poll_read(context, &mut buffer) {
        Poll::Ready(Ok(())) if buffer.filled().is_empty() => Err(WireFault::Closed),
        Poll::Ready(Ok(())) => {
            inbox.extend_from_slice(buffer.filled());
            Ok(true)
        }
        Poll::Ready(Err(error)) => Err(error.into()),
        Poll::Pending => Ok(false),
    }
}

/// Says goodbye to TLS and TCP, and reads what is still coming for a moment: closing a socket
/// with unread bytes in it resets the connection and takes the last answer with it.
async fn close(stream: &mut ByteStream) {
    let closing = async {
        if stream.shutdown().await.is_ok() {
            let mut rest = [0_u8; 4096];
            while matches!(stream.read(&mut rest).await, Ok(bytes) if bytes > 0) {}
        }
    };
    // A peer that does not let go in time loses the courtesy, nothing else.
    let _ = timeout(CLOSE_DEADLINE, closing).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::stream::ByteStream;
    use walmgr_protocol::limits::BLOCK_BYTES_MAX;

    const PINGS: usize = 20_000;

    /// Two ends that know each other, with as little room between them as the kernel gives.
    async fn ends() -> (Wire, Wire) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_send_buffer_size(1).unwrap();
        socket.set_recv_buffer_size(1).unwrap();
        let address = listener.local_addr().unwrap();
        let connecting = socket.connect(address);
        let (client, accepted) = tokio::join!(connecting, listener.accept());
        let (receiver, _) = accepted.unwrap();
        let nonce = Nonce::default();
        let welcome = Welcome {
            nonce,
            newest_segment: None,
            block_bytes_max: BLOCK_BYTES_MAX,
            payload_bytes_max: 1 << 20,
            channels_max: 1,
            software: String::new(),
        };
        let wire = |stream, side| {
            Introduction::new(ByteStream::Plain(stream)).into_wire(side, &nonce, &welcome)
        };
        (
            wire(client.unwrap(), Direction::FromClient),
            wire(receiver, Direction::FromReceiver),
        )
    }

    /// Whoever pings does not read until all was asked, so answers get stuck halfway.
    #[tokio::test]
    async fn an_answer_that_is_cut_short_goes_on_where_it_was() {
        let (mut client, mut receiver) = ends().await;
        let asking = tokio::spawn(async move {
            for _ in 0..PINGS {
                receiver.send(0, &Message::Ping).await.unwrap();
            }
            receiver.send(0, &Message::Goodbye).await.unwrap();
            for _ in 0..PINGS {
                assert_eq!(receiver.receive().await.unwrap().message, Message::Pong);
            }
        });
        let mut cuts = 0;
        loop {
            match timeout(Duration::from_micros(200), client.next()).await {
                Ok(frame) => break assert_eq!(frame.unwrap().message, Message::Goodbye),
                Err(_) => cuts += 1,
            }
        }
        client.flush().await.unwrap();
        assert!(cuts > 0);
        asking.await.unwrap();
    }

    #[tokio::test]
    async fn silence_is_told_from_pings() {
        let (mut client, mut receiver) = ends().await;
        let silence = Duration::from_secs(1);
        let pinging = tokio::spawn(async move {
            for _ in 0..5 {
                tokio::time::sleep(silence / 4).await;
                receiver.send(0, &Message::Ping).await.unwrap();
            }
            receiver
        });
        let begin = tokio::time::Instant::now();
        let fault = client.next_within(silence).await.unwrap_err();
        assert!(matches!(fault, WireFault::Silent), "{fault}");
        // Later than after the first silence: the pings counted.
        assert!(begin.elapsed() > silence * 5 / 4);
        drop(pinging.await.unwrap());
    }
}
