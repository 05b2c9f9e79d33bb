//! A connection to a server as the driver gets it: a socket, encrypted or not.
//! Never decides whether to encrypt. Invariant: of a server that asks for a proof which
//! `require_auth` forbids, the driver hears an error and no question, so that it answers nothing.

use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};
use tokio_rustls::TlsConnector;

use super::DialFault;
use crate::pg::conninfo::Authentication;
use crate::pg::encryption;

/// A socket, encrypted or not.
pub(crate) struct PgSocket {
    /// There until this is dropped, or encrypted.
    socket: Option<Socket>,
    /// Who gets the connection when the driver drops it.
    heir: Option<oneshot::Sender<PgSocket>>,
    gate: Option<Gate>,
    /// Whether what is written first is to ask for replication, for which the driver has no word.
    begins_replication: bool,
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl PgSocket {
    /// Over the network, in the clear.
    pub(crate) fn tcp(stream: TcpStream) -> PgSocket {
        PgSocket::over(Socket::Tcp(stream))
    }

    /// Within this host.
    pub(crate) fn unix(stream: UnixStream) -> PgSocket {
        PgSocket::over(Socket::Unix(stream))
    }

    const fn over(socket: Socket) -> PgSocket {
        PgSocket {
            socket: Some(socket),
            heir: None,
            gate: None,
            begins_replication: false,
        }
    }

    /// This connection, and whether it begins with the wish to replicate.
    pub(crate) fn begun(mut self, begins_replication: bool) -> PgSocket {
        self.begins_replication = begins_replication;
        self
    }

    /// This connection, and where it is found once the driver, which has nothing more to say, is dropped.
    pub(crate) fn lent(mut self) -> (PgSocket, oneshot::Receiver<PgSocket>) {
        let (heir, back) = oneshot::channel();
        self.heir = Some(heir);
        (self, back)
    }

    /// This connection, where `gate` sees what the server says until it says how we are to prove who we are.
    pub(crate) fn gated(mut self, gate: Gate) -> PgSocket {
        self.gate = Some(gate);
        self
    }

    /// Sends these bytes.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes).await
    }

    /// The next byte, and not one more: what follows may be TLS.
    pub(crate) async fn receive_byte(&mut self) -> io::Result<u8> {
        self.read_u8().await
    }

    /// This connection with everything from here on inside TLS, the server known by `name`.
    pub(crate) async fn encrypted(
        mut self,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<PgSocket, DialFault> {
        let Some(Socket::Tcp(stream)) = self.socket.take() else {
            return Err(DialFault::Unfit(
                "TLS is for connections over the network".to_owned(),
            ));
        };
        match TlsConnector::from(config).connect(name, stream).await {
            Ok(stream) => Ok(PgSocket::over(Socket::Tls(Box::new(stream)))),
            Err(error) => Err(refused(error)),
        }
    }

    /// What a proof can be bound to: none without TLS, nor where a signature names no hash.
    pub(crate) fn end_point(&self) -> Option<Vec<u8>> {
        let Some(Socket::Tls(stream)) = &self.socket else {
            return None;
        };
        let certificates = stream.get_ref().1.peer_certificates();
        encryption::end_point(certificates?.first()?)
    }

    /// The protocol that both sides agreed on in the handshake.
    pub(crate) fn agreed(&self) -> Option<&[u8]> {
        match &self.socket {
            Some(Socket::Tls(stream)) => stream.get_ref().1.alpn_protocol(),
            _ => None,
        }
    }
}

/// What rustls refused, without its preface.
fn refused(error: io::Error) -> DialFault {
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::General(text)) => DialFault::Unfit(text.clone()),
        // No common cipher, or a key of a sort that rustls does not know.
        Some(rustls::Error::AlertReceived(rustls::AlertDescription::HandshakeFailure)) => DialFault::Unfit(
            "TLS: the server finds nothing in common: its key has to be RSA, ECDSA (P-256, P-384 or P-521) or Ed25519, and \
             its TLS 1.2 or 1.3"
                .to_owned(),
        ),
        Some(inner) => DialFault::Unfit(format!("TLS: {inner}")),
        None => DialFault::Network(error),
    }
}

/// Reads along until the server has said how we are to prove who we are.
pub(crate) struct Gate {
    allowed: Authentication,
    seen: Vec<u8>,
}

impl Gate {
    /// Type, length and code of a message of authentication.
    const BYTES: usize = 9;

    /// Lets these ways pass.
    pub(crate) fn new(allowed: &Authentication) -> Gate {
        Gate {
            allowed: allowed.clone(),
            seen: Vec::with_capacity(Gate::BYTES),
        }
    }

    /// Whether the decision is made; an error is one against the server.
    fn look(&mut self, bytes: &[u8]) -> io::Result<bool> {
        let missing = Gate::BYTES - self.seen.len();
        self.seen.extend(bytes.iter().take(missing));
        let is_question = self.seen.first().is_some_and(|kind| *kind == b'R');
        if !is_question {
            return Ok(!self.seen.is_empty());
        }
        if self.seen.len() < Gate::BYTES {
            return Ok(false);
        }
        // `AUTH_REQ_...`, src/include/libpq/protocol.h
        let method = match self.seen[5..] {
            [0, 0, 0, 0] => "none",
            [0, 0, 0, 3] => "password",
            [0, 0, 0, 5] => "md5",
            [0, 0, 0, 7] => "gss",
            [0, 0, 0, 9] => "sspi",
            // The driver knows no other of this family.
            [0, 0, 0, 10] => "scram-sha-256",
            _ => "an unknown method",
        };
        match self.allowed.allows(method) {
            true => Ok(true),
            false => Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!(
                    "the server asks for authentication by {method}, which require_auth forbids"
                ),
            )),
        }
    }
}

impl Drop for PgSocket {
    fn drop(&mut self) {
        if let (Some(heir), Some(socket)) = (self.heir.take(), self.socket.take()) {
            // Mostly nobody waits for it, and it is closed here.
            drop(heir.send(PgSocket::over(socket)));
        }
    }
}

impl AsyncRead for PgSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = match &mut self.socket {
            Some(Socket::Tcp(stream)) => Pin::new(stream).poll_read(context, buffer),
            Some(Socket::Unix(stream)) => Pin::new(stream).poll_read(context, buffer),
            Some(Socket::Tls(stream)) => Pin::new(stream.as_mut()).poll_read(context, buffer),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        };
        if let (Some(gate), Poll::Ready(Ok(()))) = (&mut self.gate, &polled) {
            match gate.look(&buffer.filled()[before..]) {
                Ok(false) => {}
                Ok(true) => self.gate = None,
                Err(error) => {
                    buffer.set_filled(before);
                    return Poll::Ready(Err(error));
                }
            }
        }
        polled
    }
}

/// The startup message with `replication=true` in front of the end of its parameters; `None` for any other.
fn for_replication(startup: &[u8]) -> Option<Vec<u8>> {
    const PARAMETER: &[u8] = b"replication\0true\0";
    // Length and version (`PG_PROTOCOL(3,0)`), then names and values, then a zero.
    let (length, rest) = startup.split_first_chunk::<4>()?;
    let is_startup = rest.starts_with(&[0, 3, 0, 0]) && rest.ends_with(&[0]);
    let length = u32::from_be_bytes(*length);
    if !is_startup || usize::try_from(length).ok()? != startup.len() {
        return None;
    }
    let longer = length.checked_add(u32::try_from(PARAMETER.len()).ok()?)?;
    let parameters = &rest[..rest.len() - 1];
    Some([&longer.to_be_bytes(), parameters, PARAMETER, &[0]].concat())
}

impl PgSocket {
    fn poll_write_plain(
        &mut self,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.socket {
            Some(Socket::Tcp(stream)) => Pin::new(stream).poll_write(context, bytes),
            Some(Socket::Unix(stream)) => Pin::new(stream).poll_write(context, bytes),
            Some(Socket::Tls(stream)) => Pin::new(stream.as_mut()).poll_write(context, bytes),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl AsyncWrite for PgSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !self.begins_replication {
            return self.poll_write_plain(context, bytes);
        }
        let broken = |why: &str| Poll::Ready(Err(io::Error::other(why.to_owned())));
        let Some(longer) = for_replication(bytes) else {
            return broken("the driver does not begin with a whole startup message");
        };
        match self.poll_write_plain(context, &longer) {
            // It fits the buffer of a socket to which nothing was written yet.
            Poll::Ready(Ok(written)) if written < longer.len() => {
                broken("the startup message was cut short")
            }
            Poll::Ready(Ok(_)) => {
                self.begins_replication = false;
                Poll::Ready(Ok(bytes.len()))
            }
            other => other,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Some(Socket::Tcp(stream)) => Pin::new(stream).poll_flush(context),
            Some(Socket::Unix(stream)) => Pin::new(stream).poll_flush(context),
            Some(Socket::Tls(stream)) => Pin::new(stream.as_mut()).poll_flush(context),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Some(Socket::Tcp(stream)) => Pin::new(stream).poll_shutdown(context),
            Some(Socket::Unix(stream)) => Pin::new(stream).poll_shutdown(context),
            Some(Socket::Tls(stream)) => Pin::new(stream.as_mut()).poll_shutdown(context),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl TlsStream for PgSocket {
    fn channel_binding(&self) -> ChannelBinding {
        match self.end_point() {
            Some(digest) => ChannelBinding::tls_server_end_point(digest),
            None => ChannelBinding::none(),
        }
    }
}

/// Tells the driver that there is nothing left to negotiate.
pub(super) struct Established;

impl TlsConnect<PgSocket> for Established {
    type Stream = PgSocket;
    type Error = io::Error;
    type Future = Ready<io::Result<PgSocket>>;

    fn connect(self, stream: PgSocket) -> Self::Future {
        ready(Ok(stream))
    }
}
