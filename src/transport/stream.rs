//! A TCP connection with or without TLS around it, as one type.
//! Never decides which of the two: that is settled before it is built.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

/// Bytes taken from the socket at once below TLS, which by itself asks for a record of 16 KiB at
/// most: four calls become one, and the kernel sends a quarter of the window updates.
const TLS_READ_BYTES: usize = 64 << 10;

/// What TLS runs over.
pub(crate) type Buffered = BufReader<TcpStream>;

/// Prepares a connection for TLS.
pub(crate) fn buffered(stream: TcpStream) -> Buffered {
    BufReader::with_capacity(TLS_READ_BYTES, stream)
}

/// A connected byte stream.
pub(crate) enum ByteStream {
    /// Bytes as they are; loopback, or where the operator allowed it.
    Plain(TcpStream),
    /// Inside TLS 1.3.
    Tls(Box<TlsStream<Buffered>>),
}

impl AsyncRead for ByteStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            ByteStream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            ByteStream::Tls(stream) => Pin::new(stream.as_mut()).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for ByteStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            ByteStream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            ByteStream::Tls(stream) => Pin::new(stream.as_mut()).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            ByteStream::Plain(stream) => Pin::new(stream).poll_flush(context),
            ByteStream::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            ByteStream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            ByteStream::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(context),
        }
    }
}
