//! Frames over a stream: the tokio side of `walmgr_protocol::codec`, the same for both ends.
//! Never decides anything; a client may have it answer pings. Invariant: whatever waits for a frame may
//! be dropped and called again without losing a byte, of what arrives or of what is answered.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tokio_util::codec::{Decoder, Framed};
use walmgr_protocol::codec::Frame;
use walmgr_protocol::compress::Block;
use walmgr_protocol::error::{Malformed, ProtocolError};
use walmgr_protocol::frame::{Direction, Nonce};
use walmgr_protocol::hello::{Hello, HelloAnswer, Welcome, coders};
use walmgr_protocol::message::Message;
use walmgr_protocol::session::Misuse;
use walmgr_protocol::session::hello::ReceivedHello;

use crate::error::{CommandError, Kind};
use crate::transport::frames::{ClientIntroduction, FrameCodec, PeerStream, ReceiverIntroduction};
use crate::transport::stream::ByteStream;

/// Room for a hello or its answer, at first; a stranger gets no more.
const INTRODUCTION_BYTES: usize = 1024;

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
pub(crate) struct Introduction<Side = ReceiverIntroduction> {
    frames: Framed<PeerStream, Side>,
}

impl<Side: Decoder<Error = WireFault> + Default> Introduction<Side> {
    /// Begins on a connected stream.
    pub(crate) fn new(stream: ByteStream) -> Self {
        let stream = PeerStream::new(stream);
        Introduction {
            frames: Framed::with_capacity(stream, Side::default(), INTRODUCTION_BYTES),
        }
    }

    /// Both sides know each other: frames from here on.
    pub(crate) fn into_wire(self, side: Direction, hello: &Nonce, welcome: &Welcome) -> Wire {
        let (encoder, decoder) = coders(side, hello, welcome);
        Wire {
            frames: (self.frames).map_codec(|_| FrameCodec { encoder, decoder }),
        }
    }

    /// Ends the stream in good order, so that what was sent last arrives.
    pub(crate) async fn close(mut self) {
        close(self.frames.get_mut()).await;
    }

    async fn receive(&mut self) -> Result<Side::Item, WireFault> {
        match self.frames.next().await {
            Some(said) => said,
            None if self.frames.read_buffer().is_empty() => Err(WireFault::Closed),
            None => Err(ProtocolError::from(Malformed::CutShort { what: "a hello" }).into()),
        }
    }
}

impl Introduction<ClientIntroduction> {
    /// Sends a hello.
    pub(crate) async fn send_hello(&mut self, hello: &Hello) -> Result<(), WireFault> {
        self.frames.send(hello).await
    }

    /// Waits for the answer.
    pub(crate) async fn receive_answer(&mut self) -> Result<HelloAnswer, WireFault> {
        self.receive().await
    }
}

impl Introduction<ReceiverIntroduction> {
    /// Waits for a hello.
    pub(crate) async fn receive_hello(&mut self) -> Result<ReceivedHello, WireFault> {
        self.receive().await
    }

    /// Sends the answer.
    pub(crate) async fn send_answer(&mut self, answer: &HelloAnswer) -> Result<(), WireFault> {
        self.frames.send(answer).await
    }
}

/// A stream of frames.
pub struct Wire {
    frames: Framed<PeerStream, FrameCodec>,
}

impl Wire {
    /// The next frame. Dropping the future loses nothing.
    pub async fn receive(&mut self) -> Result<Frame, WireFault> {
        self.frames.next().await.unwrap_or(Err(WireFault::Closed))
    }

    /// The next frame, or `None` when bytes arrived that are none yet: the caller sees every arrival.
    /// Dropping the future loses nothing.
    pub async fn receive_step(&mut self) -> Result<Option<Frame>, WireFault> {
        let before = self.frames.get_ref().arrivals();
        poll_fn(|context| match self.frames.poll_next_unpin(context) {
            Poll::Ready(Some(frame)) => Poll::Ready(frame.map(Some)),
            Poll::Ready(None) => Poll::Ready(Err(WireFault::Closed)),
            Poll::Pending if self.frames.get_ref().arrivals() > before => Poll::Ready(Ok(None)),
            Poll::Pending => Poll::Pending,
        })
        .await
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

    /// The next frame that is about something; pings are answered on the way. Fails if no frame comes for longer than
    /// `silence`. A ping is a frame, too.
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
        let begun = self
            .frames
            .codec()
            .decoder
            .mid_frame(self.frames.read_buffer());
        begun || self.frames.get_ref().has_early()
    }

    /// Whether more has been read already than the frames that were taken out.
    pub(crate) fn has_more(&self) -> bool {
        !self.frames.read_buffer().is_empty() || self.frames.get_ref().has_early()
    }

    /// Sends one message.
    pub async fn send(&mut self, channel: u16, message: &Message) -> Result<(), WireFault> {
        // Not `SinkExt::send`, which may wait before it takes the message: it would be lost with the future.
        self.frames.start_send_unpin((channel, message))?;
        self.flush().await
    }

    /// Sends one block of a file without copying it; the message behind the last flushes it.
    ///
    /// Past the framing, whose buffer would take a copy; `benches/README.md` has what that costs.
    pub async fn send_block(&mut self, channel: u16, block: &mut Block) -> Result<(), WireFault> {
        self.flush().await?;
        let bytes = self.frames.codec_mut().encode_block(channel, block);
        Ok(self.frames.get_mut().write_all(bytes).await?)
    }

    /// Sends one block while taking in what arrives: a peer that answers blocks would otherwise wait for
    /// this side to read as long as this side waits for it.
    pub async fn send_block_listening(
        &mut self,
        channel: u16,
        block: &mut Block,
    ) -> Result<(), WireFault> {
        self.flush().await?;
        let mut left = self.frames.codec_mut().encode_block(channel, block);
        let stream = self.frames.get_mut();
        let both = poll_fn(|context| {
            while stream.listen(context)? {}
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
        while let Some(arrived) = self.frames.next().now_or_never() {
            let frame = arrived.unwrap_or(Err(WireFault::Closed))?;
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
        close(self.frames.get_mut()).await;
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
        if self.frames.write_buffer().is_empty() {
            return Ok(());
        }
        let sending = SinkExt::<(u16, &Message)>::flush(&mut self.frames);
        match timeout(SEND_DEADLINE, sending).await {
            Ok(sent) => sent,
            Err(_) => Err(WireFault::StoppedReading),
        }
    }
}

/// Says goodbye to TLS and TCP, and reads what is still coming for a moment: closing a socket
/// with unread bytes in it resets the connection and takes the last answer with it.
async fn close(stream: &mut PeerStream) {
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
    use crate::transport::identity::Identity;
    use crate::transport::stream::buffered;
    use crate::transport::tls;
    use tokio::net::TcpStream;
    use tokio_rustls::{TlsAcceptor, TlsConnector};
    use walmgr_protocol::compress::Packer;
    use walmgr_protocol::limits::BLOCK_BYTES_MAX;
    use walmgr_protocol::message::Have;
    use walmgr_protocol::message::backup::Backup;

    const PINGS: usize = 20_000;

    /// More than the sockets hold, and less than is taken in beside sending.
    const ANSWERS: u64 = 5_000;

    /// Two ends that know each other, with as little room between them as the kernel gives.
    async fn ends() -> (Wire, Wire) {
        let (client, receiver) = sockets(false).await;
        wires(ByteStream::Plain(client), ByteStream::Plain(receiver))
    }

    /// Two ends that know each other and talk within TLS, with as little room between them as the kernel gives.
    async fn secured_ends() -> (Wire, Wire) {
        let folder = tempfile::tempdir().unwrap();
        let identity = |name: &str| {
            let at = |end: &str| folder.path().join(format!("{name}.{end}"));
            Identity::create(&at("key"), &at("crt"), name).unwrap()
        };
        let (master, standby) = (identity("master"), identity("standby"));
        let trust = tls::PeerTrust::Pinned(standby.fingerprint());
        let connector = TlsConnector::from(tls::client_config(&master, &trust).unwrap());
        let verifier = tls::client_verifier(None).unwrap();
        let acceptor = TlsAcceptor::from(tls::server_config(&standby, verifier).unwrap());
        let (client, receiver) = sockets(true).await;
        let name = tls::server_name("localhost").unwrap();
        let (client, receiver) = tokio::join!(
            connector.connect(name, buffered(client)),
            acceptor.accept(buffered(receiver))
        );
        let secured = |stream: tokio_rustls::TlsStream<_>| ByteStream::Tls(Box::new(stream));
        let (client, receiver) = (client.unwrap().into(), receiver.unwrap().into());
        wires(secured(client), secured(receiver))
    }

    /// Two ends of a connection, the receiver's with as little room to read as that of the client, or with the usual.
    async fn sockets(reads_little: bool) -> (TcpStream, TcpStream) {
        let small_socket = || {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.set_send_buffer_size(1).unwrap();
            socket.set_recv_buffer_size(1).unwrap();
            socket
        };
        let socket = small_socket();
        let listener = match reads_little {
            true => small_socket(),
            false => tokio::net::TcpSocket::new_v4().unwrap(),
        };
        listener.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = listener.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let connecting = socket.connect(address);
        let (client, accepted) = tokio::join!(connecting, listener.accept());
        let (receiver, _) = accepted.unwrap();
        (client.unwrap(), receiver)
    }

    fn wires(client: ByteStream, receiver: ByteStream) -> (Wire, Wire) {
        let nonce = Nonce::default();
        let welcome = Welcome {
            nonce,
            newest_segment: None,
            block_bytes_max: BLOCK_BYTES_MAX,
            payload_bytes_max: 1 << 20,
            channels_max: 1,
            software: String::new(),
            store_level: 0,
        };
        let wire = |stream, side| {
            let introduction = Introduction::<ReceiverIntroduction>::new(stream);
            introduction.into_wire(side, &nonce, &welcome)
        };
        (
            wire(client, Direction::FromClient),
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

    /// A peer that lets a frame drip is alive, and owes the rest.
    #[tokio::test]
    async fn each_arrival_of_bytes_is_seen_before_its_frame_is_whole() {
        let (mut client, mut receiver) = ends().await;
        let mut frame = bytes::BytesMut::new();
        let message = Message::Ping;
        (client.frames.codec_mut().encoder).encode(7, &message, &mut frame);
        let patience = Duration::from_secs(60);
        let (last, rest) = frame.split_last().unwrap();
        for byte in rest {
            let stream = client.frames.get_mut();
            stream.write_all(std::slice::from_ref(byte)).await.unwrap();
            let step = timeout(patience, receiver.receive_step()).await.unwrap();
            assert_eq!(step.unwrap(), None);
            assert!(receiver.mid_frame());
        }
        client.frames.get_mut().write_all(&[*last]).await.unwrap();
        let step = timeout(patience, receiver.receive_step()).await.unwrap();
        assert_eq!(
            step.unwrap(),
            Some(Frame {
                channel: 7,
                message
            })
        );
        assert!(!receiver.mid_frame());
        // An end within a frame is an end.
        client
            .frames
            .get_mut()
            .write_all(&frame[..3])
            .await
            .unwrap();
        drop(client);
        let fault = receiver.receive().await.unwrap_err();
        assert!(matches!(fault, WireFault::Closed), "{fault}");
    }

    /// What arrives beside sending is told in order, and before what comes later.
    #[tokio::test]
    async fn answers_taken_in_beside_a_block_are_told_in_order() {
        let (mut client, mut receiver) = ends().await;
        let answering = tokio::spawn(async move {
            for prefix_bytes in 0..ANSWERS {
                let have = Have {
                    prefix_bytes,
                    prefix_crc32: 1,
                };
                receiver.send(3, &Message::Have(have)).await.unwrap();
            }
            while receiver.receive().await.is_ok() {}
        });
        // Wider than the socket: it goes out once the other end has said everything, and reads.
        let fill = |buffer: &mut Vec<u8>| {
            buffer.resize(buffer.len() + (256 << 10), b'w');
            Ok::<(), std::convert::Infallible>(())
        };
        let Ok(mut block) = Packer::new(0).pack(Vec::new(), 0, fill);
        let mut told = 0..ANSWERS;
        let mut expect = |frame: Frame| {
            let have = Have {
                prefix_bytes: told.next().unwrap(),
                prefix_crc32: 1,
            };
            assert_eq!(frame.message, Message::Have(have));
            told.is_empty()
        };
        for _ in 0..3 {
            client.send_block_listening(3, &mut block).await.unwrap();
            while let Some(frame) = client.arrived().await.unwrap() {
                expect(frame);
            }
        }
        while !expect(client.receive().await.unwrap()) {}
        client.close().await;
        answering.await.unwrap();
    }

    /// TLS takes what the socket does not, and whoever is to answer waits for all of it.
    #[tokio::test]
    async fn what_tls_keeps_back_goes_out_while_an_answer_is_waited_for() {
        for cut in [false, true] {
            let (mut client, mut receiver) = secured_ends().await;
            // More than the sockets hold, and less than TLS takes.
            let fill = |buffer: &mut Vec<u8>| {
                buffer.resize(48 << 10, b'w');
                Ok::<(), std::convert::Infallible>(())
            };
            let Ok(mut block) = Packer::new(0).pack(Vec::new(), 0, fill);
            if cut {
                let path = |number: usize| format!("{number}/{0}/{0}", "w".repeat(250));
                let paths = (0..100).map(|number| path(number).parse().unwrap());
                let question = Message::Backup(Backup::HeldRequest(paths.collect()));
                let sending = client.send(3, &question);
                assert!(timeout(Duration::from_millis(50), sending).await.is_err());
            } else {
                client.send_block(3, &mut block).await.unwrap();
            }
            let answering = tokio::spawn(async move {
                assert_eq!(receiver.receive().await.unwrap().channel, 3);
                receiver.send(3, &Message::Pong).await.unwrap();
                receiver
            });
            let answer = timeout(Duration::from_secs(60), client.receive()).await;
            assert_eq!(answer.unwrap().unwrap().message, Message::Pong);
            drop(answering.await.unwrap());
        }
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
