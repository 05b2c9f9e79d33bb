//! The certificate that a server is shown if it asks (`sslcert`, `sslkey`).
//! Never uses a key that others may read. Invariant: without both files there is none, and the
//! handshake goes on without.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::CertifiedKey;

use super::settings::{Demand, Encryption};
use crate::pg::conninfo::read_file;

/// Our certificate, and whether the server wanted to see it.
#[derive(Debug)]
pub(crate) struct ShownCertificate {
    certificate: Option<Arc<CertifiedKey>>,
    asked: AtomicBool,
}

impl ShownCertificate {
    /// Reads the files, if they are there.
    pub(crate) fn read(
        settings: &Encryption,
        provider: &CryptoProvider,
    ) -> Result<ShownCertificate, String> {
        let wanted = settings.certificate_demand != Demand::Disable;
        let file = settings
            .certificate
            .as_ref()
            .filter(|file| wanted && file.exists());
        let certificate = match file {
            None => None,
            Some(file) => {
                let chain = super::certificates("sslcert", file)?;
                let key = settings.key.as_ref().ok_or("sslcert has no sslkey")?;
                let key = (provider.key_provider)
                    .load_private_key(private_key(key)?)
                    .map_err(|error| format!("sslkey: {}: {error}", key.display()))?;
                let own = chain.first().map(|first| super::key_of(first));
                let own = own.and_then(Result::ok).map(|own| own.raw.to_vec());
                // rustls would compare them for certificates of version 3 only.
                let of_key = key.public_key().map(|of_key| of_key.to_vec());
                if of_key.is_some() && of_key != own {
                    return Err(format!("sslkey is not the key of {}", file.display()));
                }
                Some(Arc::new(CertifiedKey::new(chain, key)))
            }
        };
        if certificate.is_none() && settings.certificate_demand == Demand::Require {
            return Err("sslcertmode=require, and there is no certificate in sslcert".to_owned());
        }
        Ok(ShownCertificate {
            certificate,
            asked: AtomicBool::new(false),
        })
    }

    /// Whether the server asked for it.
    pub(crate) fn was_asked_for(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }
}

impl ResolvesClientCert for ShownCertificate {
    fn resolve(
        &self,
        _authorities: &[&[u8]],
        _schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        self.asked.store(true, Ordering::Relaxed);
        self.certificate.clone()
    }

    fn has_certs(&self) -> bool {
        self.certificate.is_some()
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let shown = path.display();
    let metadata = std::fs::metadata(path)
        .map_err(|error| format!("sslcert has no key: read {shown}: {error}"))?;
    // libpq's rule: a key of root's may be readable for a group, such as Debian's ssl-cert.
    let closed = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.mode() & closed != 0 {
        return Err(format!(
            "sslkey: others may read {shown}; type `chmod 600 {shown}`"
        ));
    }
    let text = read_file(path).map_err(|error| format!("sslkey: read {shown}: {error}"))?;
    let encrypted = [&b"ENCRYPTED PRIVATE KEY"[..], b"Proc-Type: 4,ENCRYPTED"];
    if encrypted
        .iter()
        .any(|words| text.windows(words.len()).any(|window| window == *words))
    {
        return Err(format!(
            "sslkey: {shown} is encrypted, and sslpassword is not supported; decrypt it with \
             `openssl pkey -in {shown} -out NEW` and keep that file to yourself"
        ));
    }
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| format!("sslkey: read {shown}: {error}"))
}
