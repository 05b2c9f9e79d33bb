//! What a peer's certificate says: key, names, and until when; and the clock that judges it.
//! Never decides whether a name may come in. Invariant: a clock that stands before 1970 is a clock
//! that no certificate is valid for, and nothing panics over it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::time_provider::TimeProvider;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::fault::TlsFault;
use crate::transport::authorized_names::CertifiedName;
use crate::transport::identity::Fingerprint;

/// Longest name of a peer that goes into a log.
const PEER_NAME_CHARS_MAX: usize = 64;

/// Seconds since 1970 by this host's clock; 0 before that.
pub(crate) fn unix_now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

/// The clock of this host as TLS asks for it. The one that comes with TLS panics before 1970.
#[derive(Debug)]
pub(crate) struct SystemClock;

impl TimeProvider for SystemClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(unix_now())))
    }
}

/// The certificates that a peer has proven to hold the key of.
#[derive(Debug, Clone)]
pub(crate) struct PeerCertificate {
    chain: Vec<CertificateDer<'static>>,
    fingerprint: Fingerprint,
    /// The last second of each certificate of the chain.
    ends: Vec<u64>,
}

impl PeerCertificate {
    /// Reads what the peer showed; `None` when that is no certificate.
    pub(crate) fn of(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let fingerprint = Fingerprint::of_certificate(chain.first()?)?;
        let end_of = |certificate: &CertificateDer<'_>| {
            let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
            let end = certificate.validity().not_after.timestamp();
            Some(u64::try_from(end).unwrap_or(0))
        };
        let ends: Option<Vec<u64>> = chain.iter().map(end_of).collect();
        Some(PeerCertificate {
            chain: chain.iter().map(|one| one.clone().into_owned()).collect(),
            fingerprint,
            ends: ends?,
        })
    }

    /// Of the key that the peer holds.
    pub(crate) const fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// The last second before a certificate of the chain ends that has not ended yet. The chain may
    /// hold more than is needed, so what that means [`PeerCertificate::check`] has to say.
    pub(crate) fn next_end(&self, now: u64) -> Option<u64> {
        self.ends.iter().copied().filter(|end| *end >= now).min()
    }

    /// Checks once more what was checked when the peer came: rules may have changed, and time passes.
    pub(crate) fn check(&self, verifier: &dyn ClientCertVerifier) -> Result<(), TlsFault> {
        let Some((first, others)) = self.chain.split_first() else {
            return Ok(());
        };
        let now = UnixTime::since_unix_epoch(Duration::from_secs(unix_now()));
        match verifier.verify_client_cert(first, others, now) {
            Ok(_) => Ok(()),
            Err(error) => Err(TlsFault::of_tls(&error, "the client")),
        }
    }

    /// What the certificate calls its holder; anybody can sign any name for himself, so they mean
    /// something only where an authority vouches for them.
    pub(crate) fn names(&self) -> Vec<CertifiedName> {
        let Some(Ok((_, certificate))) = self
            .chain
            .first()
            .map(|first| X509Certificate::from_der(first))
        else {
            return Vec::new();
        };
        let mut names = Vec::new();
        if let Ok(Some(alternative)) = certificate.subject_alternative_name() {
            for name in &alternative.value.general_names {
                match name {
                    GeneralName::DNSName(name) => {
                        names.push(CertifiedName::Dns((*name).to_owned()))
                    }
                    GeneralName::URI(name) => names.push(CertifiedName::Uri((*name).to_owned())),
                    _ => {}
                }
            }
        }
        if names.is_empty() {
            let mut common = certificate.subject().iter_common_name();
            if let Some(Ok(name)) = common.next().map(|name| name.as_str()) {
                names.push(CertifiedName::Common(name.to_owned()));
            }
        }
        names
    }

    /// The first of its names, fit for a log.
    pub(crate) fn shown_name(&self) -> Option<String> {
        let printable = |character: char| match character.is_control() {
            true => '?',
            false => character,
        };
        let names = self.names();
        let name = names.first()?.as_str().chars();
        let name: String = name.take(PEER_NAME_CHARS_MAX).map(printable).collect();
        (!name.is_empty()).then_some(name)
    }
}
