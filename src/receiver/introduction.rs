//! Who is there: TLS, hello, and the decision whether to talk, and for which cluster.
//! Never allocates for a peer beyond the handshake before its key is known. Invariant: a refusal
//! is logged here with its reason and sent to the peer in the same words.

use std::net::SocketAddr;
use std::sync::Arc;

use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::net::TcpStream;
use walmgr_protocol::error::{Malformed, ProtocolError};
use walmgr_protocol::frame::Direction;
use walmgr_protocol::hello::{Hello, HelloAnswer, Refusal, Welcome};
use walmgr_protocol::message::ErrorCode;
use walmgr_protocol::session::hello::{HELLO_MAGIC, choose_version};
use walmgr_protocol::version::VersionRange;

use crate::receiver::clusters::{Clusters, HostedCluster};
use crate::receiver::peer::{Peer, actor, with_key};
use crate::receiver::process_settings::{ProcessSettings, Protection};
use crate::receiver::refusal;
use crate::receiver::refusal_log::Refusals;
use crate::receiver::refusal_reason::RefusalReason;
use crate::transport::connect::fresh_nonce;
use crate::transport::stream::{ByteStream, buffered};
use crate::transport::tls::{self, PeerCertificate, TlsFault};
use crate::transport::wire::{Introduction, Wire, WireFault};

/// Most that is looked at of a first message; a ClientHello of walmgr's has less than 2 KiB.
const FIRST_WORDS_BYTES: usize = 4 << 10;

/// Waits until a client has sent its first message, the ClientHello or without TLS the hello, and
/// leaves it where it is. Allocates nothing.
pub(crate) async fn first_words(stream: &TcpStream, secured: bool) -> std::io::Result<()> {
    loop {
        let ready = stream.ready(Interest::READABLE).await?;
        // An answer that more is needed makes the next turn wait for more.
        let looked = stream.try_io(Interest::READABLE, || {
            let mut bytes = [0; FIRST_WORDS_BYTES];
            let (_, count) = rustix::net::recv(stream, &mut bytes, RecvFlags::PEEK)?;
            match is_whole(&bytes[..count], secured) {
                true => Ok(()),
                false => Err(std::io::ErrorKind::WouldBlock.into()),
            }
        });
        match looked {
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return Err(error),
            Ok(()) => return Ok(()),
            Err(_) if ready.is_read_closed() => {
                let text = "the peer closed the connection before it sent anything";
                return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, text));
            }
            Err(_) => {}
        }
    }
}

/// Whether a first message is there to its end, or something that cannot become one. Its own words
/// on its length are enough: what it is the handshake finds out.
fn is_whole(bytes: &[u8], secured: bool) -> bool {
    let add = |sum: usize, byte: &u8| (sum << 8) | usize::from(*byte);
    let needed = match (bytes, secured) {
        ([], _) => 1,
        // RFC 8446, sections 5.1 and 4: a record with a handshake message in it.
        ([22, _, _, high, low, _, sizes @ ..], true) if sizes.len() >= 3 => {
            let record = 5 + [high, low].into_iter().fold(0, add);
            record.max(9 + sizes[..3].iter().fold(0, add))
        }
        ([22, ..], true) => 9,
        (other, false) if HELLO_MAGIC.starts_with(&other[..other.len().min(HELLO_MAGIC.len())]) => {
            match other.get(12..16) {
                None => 16,
                Some(size) => 20 + size.iter().rev().fold(0, add),
            }
        }
        _ => 0,
    };
    bytes.len() >= needed.min(FIRST_WORDS_BYTES)
}

/// Greets a connection; `None` when it was refused, which has been logged and said.
pub(crate) async fn greet(
    clusters: &Clusters,
    refusals: &Refusals,
    server: &Arc<ProcessSettings>,
    stream: TcpStream,
    address: SocketAddr,
) -> Option<(Arc<HostedCluster>, Peer, Wire)> {
    let (stream, certificate) = match secure(server, stream).await {
        Ok(secured) => secured,
        Err(reason) => {
            let text = format!("{address}: {reason}");
            refusals.refused(address.ip(), RefusalReason::Handshake, &text);
            return None;
        }
    };
    let key = with_key(certificate.as_ref());
    let who = actor(None, certificate.as_ref(), address);
    let mut introduction = Introduction::new(stream);
    match introduce(clusters, server, &mut introduction, address, certificate).await {
        Ok((hosted, peer, hello, welcome)) => {
            let answer = HelloAnswer::Welcome(VersionRange::OURS.highest, welcome.clone());
            introduction.send_answer(&answer).await.ok()?;
            let wire = introduction.into_wire(Direction::FromReceiver, &hello.nonce, &welcome);
            Some((hosted, peer, wire))
        }
        Err(Refused::InWords(refusal)) => {
            let text = format!("{address}{key}: {}", refusal.message);
            refusals.refused_whom(address.ip(), refusal.code.into(), &who, &text);
            // The peer may be gone; then there is nobody left to tell.
            let _ = introduction
                .send_answer(&HelloAnswer::Refused(refusal))
                .await;
            introduction.close().await;
            None
        }
        Err(Refused::Silently(reason)) => {
            let text = format!("{address}{key}: {reason}");
            refusals.refused_whom(address.ip(), RefusalReason::Handshake, &who, &text);
            // Not by a reset: it would hide from the peer that this end hung up on purpose.
            introduction.close().await;
            None
        }
    }
}

/// Why a peer is not let in.
enum Refused {
    /// It is told.
    InWords(Refusal),
    /// It is not: what it sent was no hello.
    Silently(String),
}

async fn secure(
    server: &ProcessSettings,
    stream: TcpStream,
) -> Result<(ByteStream, Option<PeerCertificate>), String> {
    let Protection::Tls { acceptor, .. } = &server.protection else {
        return Ok((ByteStream::Plain(stream), None));
    };
    let whom = "the client";
    let stream = acceptor
        .accept(buffered(stream))
        .await
        .map_err(|error| TlsFault::of(&error, whom).to_string())?;
    let agreed = stream.get_ref().1.alpn_protocol();
    tls::require_walmgr(agreed, whom).map_err(|fault| fault.to_string())?;
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let certificate = PeerCertificate::of(certificates);
    Ok((ByteStream::Tls(Box::new(stream.into())), certificate))
}

async fn introduce(
    clusters: &Clusters,
    server: &Arc<ProcessSettings>,
    introduction: &mut Introduction,
    address: SocketAddr,
    certificate: Option<PeerCertificate>,
) -> Result<(Arc<HostedCluster>, Peer, Hello, Welcome), Refused> {
    let candidates = clusters
        .candidates(server, certificate.as_ref())
        .map_err(|unknown| Refused::InWords(refusal::not_authorized(unknown)))?;
    let (versions, hello) = introduction
        .receive_hello()
        .await
        .map_err(|fault| Refused::Silently(no_hello(&fault)))?;
    choose_version(VersionRange::OURS, versions).map_err(Refused::InWords)?;
    let hello = hello.map_err(|error| {
        Refused::InWords(refuse(
            ErrorCode::Malformed,
            error.to_string(),
            String::new(),
        ))
    })?;
    let (hosted, known) = candidates.choose(hello.cluster).map_err(Refused::InWords)?;
    let nonce = fresh_nonce().map_err(|error| {
        Refused::InWords(refuse(
            ErrorCode::Internal,
            error.to_string(),
            String::new(),
        ))
    })?;
    let software = env!("CARGO_PKG_VERSION").to_owned();
    let newest = hosted.cluster.newest_segment();
    let form = hosted.cluster.settings.borrow().compression;
    let welcome = Welcome::with_our_limits(nonce, newest, software)
        .storing_at(form.level().unwrap_or_default());
    let peer = Peer {
        address,
        certificate,
        name: known.name,
        rights: known.rights,
        role: hello.role,
        cluster: hello.cluster,
    };
    Ok((hosted, peer, hello, welcome))
}

fn refuse(code: ErrorCode, message: String, hint: String) -> Refusal {
    Refusal {
        code,
        message,
        hint,
    }
}

/// Why what arrived is no hello.
fn no_hello(fault: &WireFault) -> String {
    match fault {
        WireFault::Protocol(ProtocolError::Malformed(Malformed::NotWalmgr { found }))
            if tls::looks_like_tls(found) =>
        {
            "the client speaks TLS, but tls = off is set here".to_owned()
        }
        fault => in_full(fault),
    }
}

/// An error and everything that led to it, in one line.
fn in_full(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        next = cause.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_118_a_first_message_is_whole_when_its_own_length_says_so() {
        let mut hello = vec![22, 3, 1, 0, 204, 1, 0, 0, 200];
        hello.resize(5 + 204, 0);
        for cut in 0..hello.len() {
            assert!(!is_whole(&hello[..cut], true), "{cut}");
        }
        assert!(is_whole(&hello, true));
        // A record that ends before its message does, a length beyond all reason, something else.
        hello[4] = 4;
        assert!(!is_whole(&hello[..9], true));
        assert!(!is_whole(&[22; FIRST_WORDS_BYTES - 1], true));
        assert!(is_whole(&[22; FIRST_WORDS_BYTES], true));
        assert!(is_whole(b"GET", true));
        let mut plain = HELLO_MAGIC.to_vec();
        plain.extend_from_slice(&[1, 0, 1, 0, 2, 0, 0, 0, 9, 9, 1, 2, 3, 4]);
        for cut in 0..plain.len() {
            assert!(!is_whole(&plain[..cut], false), "{cut}");
        }
        assert!(is_whole(&plain, false));
        assert!(is_whole(&[22, 3, 1], false));
    }
}
