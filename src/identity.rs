//! `identity`, the command both sides have: creates the key and certificate if they are absent and
//! prints the fingerprint. Never replaces a key: the other side knows it.

use serde_json::json;

use crate::config::TlsSettings;
use crate::error::Result;
use crate::options::Options;
use crate::output;
use crate::transport::identity::{Fingerprint, Identity};

/// Creates or reads the identity and prints its fingerprint on stdout.
pub(crate) fn run(tls: &TlsSettings, job_name: &str, options: &Options) -> Result<()> {
    if options.not_really && !tls.key.exists() {
        return output::not_really(&format!("create {}", tls.key.display()));
    }
    let fingerprint = ensure(tls, job_name)?;
    if options.json {
        return output::print(&json!({ "fingerprint": fingerprint.to_string() }).to_string());
    }
    output::print(&fingerprint.to_string())
}

/// The fingerprint of this side's identity, which is created if there is none.
pub(crate) fn ensure(tls: &TlsSettings, job_name: &str) -> Result<Fingerprint> {
    if tls.key.exists() || tls.certificate.exists() {
        return Ok(Identity::load(&tls.key, &tls.certificate)?.fingerprint());
    }
    let identity = Identity::create(&tls.key, &tls.certificate, job_name)?;
    tracing::info!(
        "created {} and {}",
        tls.key.display(),
        tls.certificate.display()
    );
    Ok(identity.fingerprint())
}
