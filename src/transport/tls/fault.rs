//! A failed handshake in words: whose fault, what was expected, what was found, what to do.
//! Never decides anything. Invariant: every failure of TLS or of the socket below it becomes one
//! sentence, and only a refused certificate counts as [`Kind::Identity`].

use std::fmt;
use std::io;

use jiff::Timestamp;
use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

use super::pinned::OtherKey;
use crate::error::{CommandError, Kind};

const CLOCK_HINT: &str = "set the clock right, or renew the certificate on the other side";
const PLAINTEXT_HINT: &str = "check whether `tls = off` is set there, or another service uses \
    that port";
const UPDATE_HINT: &str = "check that walmgr runs on both sides and update the older one";

/// Why a TLS connection did not come about, or broke.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFault {
    /// [`Kind::Identity`] if a certificate was refused by either side, else [`Kind::Retry`].
    pub kind: Kind,
    /// One sentence naming the peer.
    pub sentence: String,
    /// What a person can do; may be empty.
    pub hint: String,
}

impl TlsFault {
    /// Explains the error of a handshake, a read or a write.
    /// `whom` is the peer, such as `the receiver 10.0.0.2:7432`.
    pub fn of(error: &io::Error, whom: &str) -> Self {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        if let Some(error) = inner {
            return Self::of_tls(error, whom);
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::retry(
                format!("{whom} closed the connection during the TLS handshake"),
                PLAINTEXT_HINT,
            ),
            _ => Self::retry(format!("the connection to {whom} failed: {error}"), ""),
        }
    }

    /// Explains an error of TLS itself.
    pub fn of_tls(error: &Error, whom: &str) -> Self {
        match error {
            Error::InvalidCertificate(refusal) => of_certificate(refusal, whom),
            Error::NoCertificatesPresented => Self::identity(
                format!("{whom} presented no certificate"),
                "create a key and a certificate there: `walmgr INI identity`",
            ),
            Error::AlertReceived(alert) => of_alert(*alert, whom),
            Error::InvalidMessage(
                InvalidMessage::InvalidContentType
                | InvalidMessage::UnknownProtocolVersion
                | InvalidMessage::InvalidEmptyPayload
                | InvalidMessage::MessageTooLarge,
            ) => Self::retry(format!("{whom} does not speak TLS"), PLAINTEXT_HINT),
            Error::PeerIncompatible(why) => Self::retry(
                format!("{whom} does not speak the TLS 1.3 of walmgr ({why:?})"),
                UPDATE_HINT,
            ),
            Error::NoApplicationProtocol => Self::retry(
                format!("{whom} speaks TLS, but not the protocol walmgr/1"),
                UPDATE_HINT,
            ),
            Error::DecryptError => Self::retry(
                format!("data from {whom} was damaged on the way and cannot be decrypted"),
                "",
            ),
            other => Self::retry(format!("TLS with {whom} failed: {other}"), ""),
        }
    }

    fn identity(sentence: String, hint: &str) -> Self {
        Self::new(Kind::Identity, sentence, hint)
    }

    fn retry(sentence: String, hint: &str) -> Self {
        Self::new(Kind::Retry, sentence, hint)
    }

    fn new(kind: Kind, sentence: String, hint: &str) -> Self {
        TlsFault {
            kind,
            sentence,
            hint: hint.to_owned(),
        }
    }
}

impl fmt::Display for TlsFault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.sentence)?;
        if !self.hint.is_empty() {
            write!(out, "; {}", self.hint)?;
        }
        Ok(())
    }
}

impl std::error::Error for TlsFault {}

impl From<TlsFault> for CommandError {
    fn from(fault: TlsFault) -> Self {
        CommandError::new(fault.kind, fault.sentence).hint(fault.hint)
    }
}

/// Whether these first bytes of a peer open a TLS connection (RFC 8446 section 5.1: a record of
/// content type 20 to 23, version 3.x). A side without TLS can then say that the other has it.
pub(crate) fn looks_like_tls(first_bytes: &[u8]) -> bool {
    matches!(first_bytes, [20..=23, 3, 0..=4, ..])
}

/// We refused the peer's certificate.
fn of_certificate(refusal: &CertificateError, whom: &str) -> TlsFault {
    match refusal {
        CertificateError::Other(other) => match other.0.downcast_ref::<OtherKey>() {
            Some(OtherKey {
                expected,
                presented,
            }) => TlsFault::identity(
                format!(
                    "{whom} holds another key: expected {expected} (slave_fingerprint), presented {presented}"
                ),
                "if the standby has a new key, run `walmgr STANDBY.ini identity` there, check the \
                fingerprint and set slave_fingerprint to it",
            ),
            None => {
                TlsFault::identity(format!("the certificate of {whom} is refused: {other}"), "")
            }
        },
        CertificateError::ExpiredContext { time, not_after } => TlsFault::identity(
            format!(
                "the certificate of {whom} expired on {}; the clock here says {}",
                date(not_after),
                date(time)
            ),
            CLOCK_HINT,
        ),
        CertificateError::NotValidYetContext { time, not_before } => TlsFault::identity(
            format!(
                "the certificate of {whom} is not valid before {}; the clock here says {}",
                date(not_before),
                date(time)
            ),
            CLOCK_HINT,
        ),
        CertificateError::UnknownIssuer => TlsFault::identity(
            format!("the certificate of {whom} is not signed by an authority in tls_ca"),
            "set tls_ca to the authority's certificate, or pin the key instead",
        ),
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => TlsFault::identity(
            format!(
                "the certificate of {whom} is for {}, not for {}",
                listed(presented),
                expected.to_str()
            ),
            "set `slave` to a name that the certificate carries",
        ),
        CertificateError::BadSignature => TlsFault::identity(
            format!("{whom} presented a certificate whose signature or key is not its own"),
            "",
        ),
        other => TlsFault::identity(format!("the certificate of {whom} is refused: {other}"), ""),
    }
}

/// The peer refused something of ours.
fn of_alert(alert: AlertDescription, whom: &str) -> TlsFault {
    use AlertDescription as Alert;
    let (why, hint) = match alert {
        Alert::CertificateRequired => (
            "it requires a certificate and received none",
            "run `walmgr INI identity` on this side",
        ),
        Alert::CertificateExpired => (
            "by its clock the certificate is expired or not yet valid",
            "compare the clocks of both hosts, or renew this side's certificate",
        ),
        Alert::UnknownCA => (
            "the certificate is not signed by an authority in its tls_ca",
            "use a certificate of that authority here, or remove tls_ca there",
        ),
        Alert::CertificateUnknown => (
            "it expects another key",
            "compare what `walmgr INI identity` prints on this side with what the other side expects",
        ),
        Alert::BadCertificate => (
            "the certificate is not for the host name that it connected to, or cannot be read",
            "",
        ),
        Alert::CertificateRevoked => ("it is revoked", ""),
        Alert::UnsupportedCertificate => ("the certificate is not meant for this use", ""),
        Alert::AccessDenied => ("access is denied", ""),
        Alert::ProtocolVersion | Alert::HandshakeFailure | Alert::InsufficientSecurity => {
            let text = format!("{whom} does not speak the TLS 1.3 of walmgr ({alert:?})");
            return TlsFault::retry(text, UPDATE_HINT);
        }
        Alert::NoApplicationProtocol => {
            return TlsFault::of_tls(&Error::NoApplicationProtocol, whom);
        }
        other => {
            return TlsFault::retry(format!("{whom} broke off TLS: {other:?}"), "");
        }
    };
    TlsFault::identity(format!("{whom} rejected our certificate: {why}"), hint)
}

fn listed(names: &[String]) -> String {
    match names {
        [] => "no name at all".to_owned(),
        names => names.join(", "),
    }
}

fn date(time: &UnixTime) -> String {
    i64::try_from(time.as_secs())
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .map_or_else(
            || format!("second {} of Unix time", time.as_secs()),
            |time| time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        )
}
