//! TLS as walmgr speaks it: 1.3 only, ALPN `walmgr/1`, a certificate from both sides.
//! Never opens a socket and never decides what a known peer may do. Invariant: a finished
//! handshake means that the peer holds the key of the valid certificate it showed.

mod certificate;
mod fault;
mod pinned;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::pki_types::ServerName;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::error::{CommandError, Result};

use super::identity::{Fingerprint, Identity, load_certificates};
pub(crate) use certificate::{PeerCertificate, SystemClock, unix_now};
pub(crate) use fault::{TlsFault, looks_like_tls};
use pinned::{AnyKey, OneKey};

/// The protocol name both sides must agree on (ALPN, RFC 7301).
pub(crate) const ALPN: &[u8] = b"walmgr/1";

/// How the master knows its receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerTrust {
    /// By its key: `slave_fingerprint`. Names and addresses do not matter.
    Pinned(Fingerprint),
    /// By an authority's signature and its host name: `tls_ca`, a PEM file.
    Authority(PathBuf),
}

/// What the connecting side uses.
pub fn client_config(identity: &Identity, trust: &PeerTrust) -> Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_details(provider(), Arc::new(SystemClock))
        .with_protocol_versions(&[&TLS13])
        .map_err(unusable)?;
    let builder = match trust {
        PeerTrust::Pinned(fingerprint) => {
            let algorithms = provider().signature_verification_algorithms;
            let verifier = OneKey::new(*fingerprint, algorithms);
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier))
        }
        PeerTrust::Authority(path) => {
            let verifier =
                WebPkiServerVerifier::builder_with_provider(authorities(path)?, provider())
                    .build()
                    .map_err(unusable)?;
            builder.with_webpki_verifier(verifier)
        }
    };
    let certificate = SingleCertAndKey::from(identity.certified_key());
    let mut config = builder.with_client_cert_resolver(Arc::new(certificate));
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would skip the check of a certificate that expired meanwhile, and an
    // `xarchive` lives for one connection.
    config.resumption = Resumption::disabled();
    // A pinned receiver has no use for the name, and an eavesdropper should not learn it.
    config.enable_sni = matches!(trust, PeerTrust::Authority(_));
    Ok(Arc::new(config))
}

/// How the listening side checks certificates.
///
/// Without `authority` every valid certificate passes: who its fingerprint belongs to is decided
/// after the handshake, where a refusal can be said in words. With it only certificates which
/// that authority signed pass.
pub fn client_verifier(authority: Option<&Path>) -> Result<Arc<dyn ClientCertVerifier>> {
    match authority {
        None => {
            let algorithms = provider().signature_verification_algorithms;
            Ok(Arc::new(AnyKey::new(algorithms)))
        }
        Some(path) => WebPkiClientVerifier::builder_with_provider(authorities(path)?, provider())
            .build()
            .map_err(unusable),
    }
}

/// What the listening side uses.
pub fn server_config(
    identity: &Identity,
    verifier: Arc<dyn ClientCertVerifier>,
) -> Result<Arc<ServerConfig>> {
    let builder = ServerConfig::builder_with_details(provider(), Arc::new(SystemClock))
        .with_protocol_versions(&[&TLS13])
        .map_err(unusable)?
        .with_client_cert_verifier(verifier);
    let certificate = SingleCertAndKey::from(identity.certified_key());
    let mut config = builder.with_cert_resolver(Arc::new(certificate));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// The host of the `slave` setting as TLS wants it; an address may stand in brackets.
pub(crate) fn server_name(host: &str) -> Result<ServerName<'static>> {
    let bare = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(host);
    // The scope of a link-local address (`fe80::1%eth0`) is no part of any certificate.
    let address = bare.split('%').next().unwrap_or(bare);
    if let Ok(address) = address.parse::<IpAddr>() {
        return Ok(ServerName::IpAddress(address.into()));
    }
    ServerName::try_from(bare.to_owned()).map_err(|_| {
        CommandError::config(format!("{host:?} is neither a host name nor an address"))
            .hint("check the `slave` setting")
    })
}

/// Refuses a peer that finished the handshake without saying [`ALPN`]: TLS lets a client leave
/// its protocol out, and then rustls does not complain. `agreed` is `alpn_protocol()`.
pub(crate) fn require_walmgr(agreed: Option<&[u8]>, whom: &str) -> Result<(), TlsFault> {
    match agreed {
        Some(ALPN) => Ok(()),
        _ => Err(TlsFault::of_tls(
            &rustls::Error::NoApplicationProtocol,
            whom,
        )),
    }
}

/// AES-128-GCM comes first because it is the fastest where the processor has AES instructions:
/// 8 GiB/s a core measured against 6 for AES-256 and 1.5 for ChaCha20-Poly1305.
///
/// The hybrid of X25519 and ML-KEM-768 costs 0.1 ms more a handshake than X25519 alone (0.2 ms
/// against 0.1, both ends together), which vanishes beside the sync of one segment; in return
/// recorded WAL stays secret from a later quantum computer, as over a current ssh.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                cipher_suite::TLS13_AES_128_GCM_SHA256,
                cipher_suite::TLS13_AES_256_GCM_SHA384,
                cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ],
            kx_groups: vec![
                kx_group::X25519MLKEM768,
                kx_group::X25519,
                kx_group::SECP256R1,
            ],
            ..aws_lc_rs::default_provider()
        })
    });
    Arc::clone(&PROVIDER)
}

fn authorities(path: &Path) -> Result<Arc<RootCertStore>> {
    let mut store = RootCertStore::empty();
    for certificate in load_certificates(path)? {
        store.add(certificate).map_err(|error| {
            CommandError::config(format!(
                "{} holds a certificate that cannot be an authority",
                path.display()
            ))
            .because(error)
            .hint("set tls_ca to the authority's certificate in PEM")
        })?;
    }
    Ok(Arc::new(store))
}

fn unusable(error: impl std::error::Error) -> CommandError {
    CommandError::config("set up TLS").because(error)
}
