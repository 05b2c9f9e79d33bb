//! TLS as PostgreSQL's clients speak it, with rustls: which servers are believed, and which
//! certificate is shown. Never opens a socket. Invariant: with `verify-ca` and more, and with `require` where
//! a file of authorities is at hand, a server that cannot be verified gets nothing, not a password.

mod chain;
mod names;
pub(crate) mod settings;
mod shown;

use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature_with_raw_key};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::signature_algorithm::SignatureAlgorithm;

use super::conninfo::read_file;
use chain::Trusted;
use settings::{Authority, Encryption, SslMode, TlsVersion};
pub(crate) use shown::ShownCertificate;

/// What a server answers with to a connection that begins with TLS (`sslnegotiation=direct`).
pub(crate) const ALPN: &[u8] = b"postgresql";

/// Everything that one handshake needs.
pub(crate) struct Handshake {
    /// For rustls.
    pub config: Arc<ClientConfig>,
    /// What rustls is to call the server; the certificate is compared with the host as it was written.
    pub name: ServerName<'static>,
    /// Our certificate, and whether the server wanted to see it.
    pub shown: Arc<ShownCertificate>,
}

/// Reads the files that the settings name. `host` is the server's as it was written.
pub(crate) fn handshake(settings: &Encryption, host: Option<&str>) -> Result<Handshake, String> {
    let trusted = trusted(settings)?;
    let expected = match (settings.mode, host) {
        (SslMode::VerifyFull, None) => {
            return Err(
                "sslmode=verify-full needs host=, since no certificate has a hostaddr".to_owned(),
            );
        }
        (SslMode::VerifyFull, Some(host)) => Some(host.to_owned()),
        _ => None,
    };
    let provider = Arc::new(aws_lc_rs::default_provider());
    let judge = ServerJudge {
        trusted,
        expected,
        provider: Arc::clone(&provider),
    };
    let versions: Vec<_> = [(TlsVersion::Tls13, &TLS13), (TlsVersion::Tls12, &TLS12)]
        .into_iter()
        .filter(|(version, _)| (settings.oldest..=settings.newest).contains(version))
        .map(|(_, version)| version)
        .collect();
    let shown = Arc::new(ShownCertificate::read(settings, &provider)?);
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(judge))
        .with_client_cert_resolver(Arc::clone(&shown) as Arc<_>);
    config.resumption = Resumption::disabled();
    // An address is no name (RFC 6066), and some names of hosts are none for DNS.
    let name = host.and_then(|host| ServerName::try_from(host.to_owned()).ok());
    config.enable_sni = settings.tells_name && matches!(name, Some(ServerName::DnsName(_)));
    if settings.direct {
        config.alpn_protocols = vec![ALPN.to_vec()];
    }
    let nameless = ServerName::IpAddress(std::net::IpAddr::from([0, 0, 0, 0]).into());
    Ok(Handshake {
        config: Arc::new(config),
        name: name.unwrap_or(nameless),
        shown,
    })
}

/// `None` if any server will do.
fn trusted(settings: &Encryption) -> Result<Option<Trusted>, String> {
    let roots = match &settings.authority {
        Authority::System => {
            let found = rustls_native_certs::load_native_certs();
            if found.certs.is_empty() {
                let first = found
                    .errors
                    .first()
                    .map_or(String::new(), |error| format!(": {error}"));
                return Err(format!(
                    "sslrootcert=system: this host has no authorities{first}"
                ));
            }
            found.certs
        }
        Authority::File(path) if path.exists() => certificates("sslrootcert", path)?,
        _ if settings.mode < SslMode::VerifyCa => return Ok(None),
        Authority::File(path) => {
            return Err(format!(
                "{} does not exist: put the certificate of the server's authority there, name its \
                file with sslrootcert=FILE, or write sslrootcert=system for the authorities that \
                this host trusts",
                path.display()
            ));
        }
        Authority::Nobody => {
            return Err("no authority is configured; write sslrootcert=FILE".to_owned());
        }
    };
    Trusted::new(roots, revocations(settings)?).map(Some)
}

/// A file of certificates; the first is the one that counts where only one does.
fn certificates(option: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let shown = path.display();
    let text = read_file(path).map_err(|error| format!("{option}: read {shown}: {error}"))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(format!("{option}: {shown} holds no certificate in PEM")),
        Err(error) => Err(format!("{option}: read {shown}: {error}")),
    }
}

fn revocations(
    settings: &Encryption,
) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let mut lists = Vec::new();
    let mut take = |option: &str, path: &Path| -> Result<(), String> {
        let shown = path.display();
        let text = read_file(path).map_err(|error| format!("{option}: read {shown}: {error}"))?;
        let found: Result<Vec<_>, _> =
            CertificateRevocationListDer::pem_slice_iter(&text).collect();
        lists.extend(found.map_err(|error| format!("{option}: read {shown}: {error}"))?);
        Ok(())
    };
    if let Some(path) = &settings.revocations {
        take("sslcrl", path)?;
    }
    if let Some(folder) = &settings.revocation_folder {
        let wrong = |error| format!("sslcrldir: list {}: {error}", folder.display());
        for entry in std::fs::read_dir(folder).map_err(wrong)? {
            let path = entry.map_err(wrong)?.path();
            if path.is_file() {
                take("sslcrldir", &path)?;
            }
        }
    }
    let asked = settings.revocations.is_some() || settings.revocation_folder.is_some();
    match asked && lists.is_empty() {
        true => Err("sslcrl: there is no list of revoked certificates in PEM".to_owned()),
        false => Ok(lists),
    }
}

/// Judges servers as OpenSSL does for libpq.
#[derive(Debug)]
struct ServerJudge {
    trusted: Option<Trusted>,
    /// The name that the certificate has to bear.
    expected: Option<String>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ServerJudge {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        if let Some(trusted) = &self.trusted {
            (trusted.check(end_entity, intermediates, algorithms.all, now))
                .map_err(Error::General)?;
        }
        if let Some(expected) = &self.expected {
            names::check(end_entity, expected).map_err(Error::General)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    /// rustls reads certificates of version 3 only here, and PostgreSQL's manual makes others.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = key_of(certificate)?;
        let mapping = self.provider.signature_verification_algorithms.mapping;
        let known = mapping.iter().find(|(scheme, _)| *scheme == signed.scheme);
        let algorithms = known.map_or(&[][..], |(_, algorithms)| algorithms);
        match chain::is_signed(algorithms, None, &key, message, signed.signature()) {
            true => Ok(HandshakeSignatureValid::assertion()),
            false => Err(Error::General(
                "the server does not hold its certificate's key".to_owned(),
            )),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(key_of(certificate)?.raw);
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &key, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

fn key_of<'a>(
    certificate: &'a CertificateDer<'_>,
) -> Result<x509_parser::x509::SubjectPublicKeyInfo<'a>, Error> {
    Ok(parsed(certificate)
        .map_err(Error::General)?
        .tbs_certificate
        .subject_pki)
}

fn parsed<'a>(certificate: &'a [u8]) -> Result<X509Certificate<'a>, String> {
    match X509Certificate::from_der(certificate) {
        Ok((_, certificate)) => Ok(certificate),
        Err(_) => Err("a certificate of the server cannot be read".to_owned()),
    }
}

/// `tls-server-end-point` (RFC 5929): the digest of the server's certificate, with the hash that it
/// is signed with, and SHA-256 for what is too weak. `None` where there is no such hash.
pub(crate) fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    use ::aws_lc_rs::digest::{SHA224, SHA256, SHA384, SHA512, digest};
    let certificate_read = parsed(certificate).ok()?;
    let named = &certificate_read.signature_algorithm;
    let signature = match SignatureAlgorithm::try_from(named) {
        // It says with which hash, as the others do by their names.
        Ok(SignatureAlgorithm::RSASSA_PSS(parameters)) => {
            parameters.hash_algorithm_oid().to_id_string()
        }
        _ => named.algorithm.to_id_string(),
    };
    let algorithm = match signature.as_str() {
        // SHA-1, SHA-256, SHA-384, SHA-512 and SHA-224 themselves.
        "1.3.14.3.2.26" | "2.16.840.1.101.3.4.2.1" => &SHA256,
        "2.16.840.1.101.3.4.2.2" => &SHA384,
        "2.16.840.1.101.3.4.2.3" => &SHA512,
        "2.16.840.1.101.3.4.2.4" => &SHA224,
        // MD5 and SHA-1 with RSA, SHA-1 with ECDSA; SHA-256 with both.
        "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.5" | "1.2.840.10045.4.1" => &SHA256,
        "1.2.840.113549.1.1.11" | "1.2.840.10045.4.3.2" => &SHA256,
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => &SHA384,
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => &SHA512,
        "1.2.840.113549.1.1.14" | "1.2.840.10045.4.3.1" => &SHA224,
        _ => return None,
    };
    Some(digest(algorithm, certificate).as_ref().to_vec())
}

/// What a server shows, judged in every way, for [`super::fuzzing`]: whether these authorities are
/// led to.
pub(super) fn judged(shown: &[u8], authorities: &[&[u8]], host: &str, now_s: u64) -> bool {
    let provider = aws_lc_rs::default_provider();
    let shown = CertificateDer::from(shown);
    let _ = (names::check(&shown, host), end_point(&shown));
    let owned = |der: &&[u8]| CertificateDer::from(der.to_vec());
    let list = CertificateRevocationListDer::from(shown.to_vec());
    let between: Vec<_> = authorities.iter().map(owned).collect();
    let _ = Trusted::new(between.clone(), vec![list]);
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now_s));
    let algorithms = provider.signature_verification_algorithms.all;
    let trusted = Trusted::new(between.clone(), Vec::new());
    trusted.is_ok_and(|trusted| trusted.check(&shown, &between, algorithms, now).is_ok())
}
