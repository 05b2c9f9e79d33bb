//! The TLS settings, the same on both sides.
//! Never opens a key. Invariant: without TLS every address is loopback, or the file says in a
//! setting of its own that plain text is meant.

use std::path::PathBuf;

use super::fault::{Fault, SettingPlace};
use super::settings::GivenSettings;

/// How a side proves itself and checks the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// `tls`.
    pub enabled: bool,
    /// `tls_key`: this side's private key.
    pub key: PathBuf,
    /// `tls_cert`: this side's certificate.
    pub certificate: PathBuf,
    /// `tls_ca`: certificates to check the other side with, instead of fingerprints.
    pub authority: Option<PathBuf>,
    /// `allow_plaintext`: `tls = off` is meant even beyond loopback.
    pub allow_plaintext: bool,
}

impl TlsSettings {
    pub(super) fn read(settings: &GivenSettings) -> Result<Self, Fault> {
        let beside = |extension| settings.file.with_extension(extension);
        Ok(TlsSettings {
            enabled: settings.boolean("tls")?,
            key: settings.path("tls_key").unwrap_or_else(|| beside("key")),
            certificate: settings.path("tls_cert").unwrap_or_else(|| beside("crt")),
            authority: settings.path("tls_ca"),
            allow_plaintext: settings.boolean("allow_plaintext")?,
        })
    }

    /// Refuses plain text to or from an address that `name` sets and that is not loopback.
    pub(super) fn check_plaintext(
        &self,
        settings: &GivenSettings,
        name: &str,
        address: &str,
        is_loopback: bool,
    ) -> Result<(), Fault> {
        if self.enabled || self.allow_plaintext || is_loopback {
            return Ok(());
        }
        let place = settings
            .get("tls")
            .map_or(SettingPlace::File, |setting| setting.place);
        let written = settings.get(name);
        let key = written.map_or(name, |setting| setting.spelled.as_str());
        let line = written.map_or(String::new(), |at| format!(" ({})", at.place.in_words()));
        let says =
            format!("expected on, as {key} = {address}{line} is not a loopback address, found off");
        Err(Fault::of_key(place, "tls", says).hint(
            "remove `tls = off`, or write `allow_plaintext = 1` if everybody on that network may \
             read and write the archive",
        ))
    }
}
