//! A client written by hand, with TLS or without: it says whatever a test wants a receiver to hear.
//! Never keeps a rule by itself but the framing. Invariant: every wait for the receiver ends.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use walmgr_protocol::codec::{Decoder, Frame};
use walmgr_protocol::frame::{Direction, HEADER_BYTES, Header, first_sequence};
use walmgr_protocol::hello::{Hello, HelloAnswer, Refusal, Role, Welcome};
use walmgr_protocol::limits::BLOCK_BYTES_DEFAULT;
use walmgr_protocol::message::{ClusterIdentity, Data, Digest, Error, Message, Offer, WireVerify};
use walmgr_protocol::names::{TimelineId, WalFileName};
use walmgr_protocol::version::VersionRange;

/// How long an answer may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What the frames travel over.
pub enum Line {
    /// The bare socket.
    Plain(TcpStream),
    /// TLS over it.
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Line {
    /// Completes the handshake of TLS over a connected socket.
    pub fn secured(stream: TcpStream, config: Arc<ClientConfig>) -> io::Result<Line> {
        let name = ServerName::try_from("localhost").unwrap();
        let session = ClientConnection::new(config, name).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(session, stream);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Line::Tls(Box::new(stream)))
    }

    /// The socket below.
    pub fn socket(&mut self) -> &mut TcpStream {
        match self {
            Line::Plain(stream) => stream,
            Line::Tls(stream) => &mut stream.sock,
        }
    }
}

impl Read for Line {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Line::Plain(stream) => stream.read(buffer),
            Line::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Line::Plain(stream) => stream.write(bytes),
            Line::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Line::Plain(stream) => stream.flush(),
            Line::Tls(stream) => stream.flush(),
        }
    }
}

/// A connection that was welcomed.
pub struct Peer {
    line: Line,
    inbox: BytesMut,
    sequence: u32,
    decoder: Decoder,
    /// What the receiver welcomed it with.
    pub welcome: Welcome,
}

/// A hello of a master of this cluster.
pub fn hello(cluster: Option<ClusterIdentity>) -> Hello {
    Hello {
        role: Role::Master,
        cluster,
        timeline: TimelineId::new(1).unwrap(),
        nonce: *b"never the same!!",
        software: "a test".to_owned(),
    }
}

/// The hello as bytes, with any versions.
pub fn hello_bytes(hello: &Hello, lowest: u16, highest: u16) -> Vec<u8> {
    let mut out = BytesMut::new();
    hello.encode(VersionRange { lowest, highest }, &mut out);
    out.to_vec()
}

/// The bytes of a frame with any sequence number.
pub fn frame_of(sequence: u32, channel: u16, message: &Message) -> Vec<u8> {
    let mut payload = BytesMut::new();
    let flags = message.encode(&mut payload);
    let header = Header {
        payload_bytes: u32::try_from(payload.len()).unwrap(),
        kind: message.kind() as u8,
        flags,
        channel,
        sequence,
        payload_crc32: crc32fast::hash(&payload),
    };
    [&header.encode()[..], &payload].concat()
}

/// A connected socket whose reads and writes do not hang.
pub fn dial(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Everything until the receiver closes, however it does so; panics if it does not.
pub fn rest_of(stream: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Err(error) if would_wait(&error) => panic!("not closed within {PATIENCE:?}"),
        _ => rest,
    }
}

fn would_wait(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// What a receiver answers to these first bytes; `None` when it just closes.
pub fn answer_to(address: SocketAddr, first_bytes: &[u8]) -> Option<HelloAnswer> {
    let mut stream = dial(address);
    // It may have hung up before it read everything.
    let _ = stream.write_all(first_bytes);
    let mut inbox = BytesMut::from(&rest_of(&mut stream)[..]);
    HelloAnswer::decode(&mut inbox).unwrap()
}

impl Peer {
    /// Connects and introduces itself; panics when it is refused.
    pub fn connect(address: SocketAddr, cluster: Option<ClusterIdentity>) -> Peer {
        Peer::try_connect(address, cluster).unwrap_or_else(|refusal| panic!("refused: {refusal}"))
    }

    /// Connects and introduces itself.
    pub fn try_connect(
        address: SocketAddr,
        cluster: Option<ClusterIdentity>,
    ) -> Result<Peer, Refusal> {
        let line = Line::Plain(dial(address));
        Peer::introduce(line, &hello(cluster)).unwrap()
    }

    /// Introduces itself over a line; the error is the line's, or that of a receiver that hangs up.
    pub fn introduce(mut line: Line, hello: &Hello) -> io::Result<Result<Peer, Refusal>> {
        line.write_all(&hello_bytes(hello, 1, 1))?;
        line.flush()?;
        let mut inbox = BytesMut::new();
        let welcome = loop {
            match HelloAnswer::decode(&mut inbox).map_err(io::Error::other)? {
                Some(HelloAnswer::Welcome(_, welcome)) => break welcome,
                Some(HelloAnswer::Refused(refusal)) => return Ok(Err(refusal)),
                None => {}
            }
            if !read_some(&mut line, &mut inbox)? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        let first = |direction| first_sequence(&hello.nonce, &welcome.nonce, direction);
        Ok(Ok(Peer {
            line,
            inbox,
            sequence: first(Direction::FromClient),
            decoder: Decoder::new(first(Direction::FromReceiver), welcome.payload_bytes_max),
            welcome,
        }))
    }

    /// The socket below.
    pub fn stream(&mut self) -> &mut TcpStream {
        self.line.socket()
    }

    /// The bytes of the next frame; it counts as sent.
    pub fn frame(&mut self, channel: u16, message: &Message) -> Vec<u8> {
        let mut payload = BytesMut::new();
        let flags = message.encode(&mut payload);
        self.raw_frame(message.kind() as u8, flags, channel, &payload)
    }

    /// The bytes of a frame of any kind, flags and payload; it counts as sent.
    pub fn raw_frame(&mut self, kind: u8, flags: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
        let payload_bytes = u32::try_from(payload.len()).unwrap();
        let mut bytes = self
            .header(kind, flags, channel, payload_bytes, payload)
            .to_vec();
        bytes.extend_from_slice(payload);
        bytes
    }

    /// A header that may announce another length than the payload has; it counts as sent.
    pub fn header(
        &mut self,
        kind: u8,
        flags: u8,
        channel: u16,
        payload_bytes: u32,
        payload: &[u8],
    ) -> [u8; HEADER_BYTES] {
        let header = Header {
            payload_bytes,
            kind,
            flags,
            channel,
            sequence: self.sequence,
            payload_crc32: crc32fast::hash(payload),
        };
        self.sequence = self.sequence.wrapping_add(1);
        header.encode()
    }

    /// Sends bytes as they are.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        // A receiver that hung up already is found by what is received.
        let _ = self.line.write_all(bytes);
        let _ = self.line.flush();
    }

    /// Sends one message.
    pub fn send(&mut self, channel: u16, message: &Message) {
        let frame = self.frame(channel, message);
        self.send_bytes(&frame);
    }

    /// The next frame; `None` when the receiver closed. Pings are left to the caller.
    pub fn receive(&mut self) -> Option<Frame> {
        match self.listen() {
            Ok(frame) => frame,
            Err(_) => panic!("no answer within {PATIENCE:?}"),
        }
    }

    /// The same; an error when nothing came for as long as the socket waits.
    pub fn listen(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.inbox).unwrap() {
                return Ok(Some(frame));
            }
            match read_some(&mut self.line, &mut self.inbox) {
                Ok(true) => {}
                Err(error) if would_wait(&error) => return Err(error),
                Ok(false) | Err(_) => return Ok(None),
            }
        }
    }

    /// The next message on a channel, which must be the next frame but for pings.
    pub fn answer(&mut self, channel: u16) -> Message {
        let mut frame = self.receive().expect("an answer, not the end");
        while frame.message == Message::Ping {
            self.send(frame.channel, &Message::Pong);
            frame = self.receive().expect("an answer, not the end");
        }
        assert_eq!(frame.channel, channel, "{:?}", frame.message);
        frame.message
    }

    /// The refusal that must come next, on any channel.
    pub fn refusal(&mut self) -> Error {
        match self.receive().expect("a refusal, not the end").message {
            Message::Error(error) => error,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    /// The refusal that must come next and be the last of the connection.
    pub fn last_words(&mut self) -> Error {
        let error = self.refusal();
        let begin = Instant::now();
        assert_eq!(self.receive(), None, "hung up after {error}");
        assert!(begin.elapsed() < Duration::from_secs(60), "hung up late");
        error
    }

    /// Offers a file.
    pub fn offer(&mut self, channel: u16, name: WalFileName, content: &[u8]) {
        self.send(channel, &Message::Offer(offer_of(name, content)));
    }

    /// Sends all blocks of a file, and the commit.
    pub fn upload(&mut self, channel: u16, content: &[u8]) {
        for (index, block) in content.chunks(BLOCK_BYTES_DEFAULT as usize).enumerate() {
            let offset = index as u64 * u64::from(BLOCK_BYTES_DEFAULT);
            self.send(channel, &data(offset, block));
        }
        self.send(channel, &commit(content));
    }
}

/// The offer of a file.
pub fn offer_of(name: WalFileName, content: &[u8]) -> Offer {
    Offer {
        name,
        size: content.len() as u64,
        crc32: Some(crc32fast::hash(content)),
        verify: WireVerify::Records,
    }
}

/// An uncompressed block.
pub fn data(offset: u64, block: &[u8]) -> Message {
    Message::Data(Data {
        offset,
        raw_bytes: u32::try_from(block.len()).unwrap(),
        zstd: false,
        bytes: Bytes::copy_from_slice(block),
    })
}

/// The commit of a file.
pub fn commit(content: &[u8]) -> Message {
    Message::Commit(Digest {
        size: content.len() as u64,
        crc32: crc32fast::hash(content),
    })
}

/// Whether anything arrived; `false` at the end.
/// What has arrived. A signal to the process, as when one of its children ends, interrupts a socket that has a
/// timeout, and says nothing about the peer.
pub fn read_arrived(stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

fn read_some(stream: &mut impl Read, inbox: &mut BytesMut) -> io::Result<bool> {
    let mut buffer = [0; 16 << 10];
    let count = read_arrived(stream, &mut buffer)?;
    inbox.extend_from_slice(&buffer[..count]);
    Ok(count > 0)
}

/// A socket from another address of the loopback network, so that the receiver takes it for
/// another host.
pub fn dial_from(last: u8, address: SocketAddr) -> io::Result<TcpStream> {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    bind(&socket, &SocketAddr::from(([127, 0, 1, last], 0)))?;
    connect(&socket, &address)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}
