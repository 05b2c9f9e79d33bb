//! What a reload may change: keys, certificates, who may come in, how many.
//! Never takes half of it: either all of a new configuration is good, or the old one stays.

use std::sync::Arc;

use rustls::server::danger::ClientCertVerifier;
use tokio_rustls::TlsAcceptor;

use crate::config::VerifyWal;
use crate::config::standby::StandbyConfig;
use crate::error::Result;
use crate::store::sets::Keeping;
use crate::transport::authorized_keys::{AuthorizedKeys, Rights};
use crate::transport::authorized_names::AuthorizedNames;
use crate::transport::identity::Identity;
use crate::transport::tls::{self, PeerCertificate};
use crate::wal::segment::Verify;

/// How connections are protected.
pub(crate) enum Protection {
    /// `tls = off`: loopback, or the operator means it.
    Plain,
    /// TLS.
    Tls {
        /// Greets peers.
        acceptor: TlsAcceptor,
        /// Judges their certificates.
        verifier: Arc<dyn ClientCertVerifier>,
        /// Whom it lets in.
        known: KnownPeers,
    },
}

/// Whom the receiver knows.
pub(crate) enum KnownPeers {
    /// By their keys.
    Keys(AuthorizedKeys),
    /// By the names that an authority certifies.
    Names(AuthorizedNames),
}

/// A peer that may come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KnownPeer {
    /// What the operator calls it; on a plain connection nothing.
    pub name: Option<String>,
    /// What it may do.
    pub rights: Rights,
}

/// Why a peer may not come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unknown {
    /// In words.
    pub why: String,
    /// What an operator can do.
    pub hint: String,
}

/// What becomes of old backup sets.
#[derive(Debug, Clone)]
pub(crate) struct Rotation {
    /// Which sets stay, and from which age on WAL may go.
    pub keeping: Keeping,
    /// Run before one is removed.
    pub archive_command: Option<String>,
}

/// One good configuration.
pub(crate) struct ClusterSettings {
    /// How connections are protected.
    pub protection: Protection,
    /// Connections open at once.
    pub connections_max: usize,
    /// How closely WAL is checked at least.
    pub verify_min: Verify,
    /// How far beyond the end of its run a segment may be that is not set apart.
    pub ahead_max: u64,
    /// Bytes a second that are read to find what the disk changed.
    pub recheck_rate: u64,
    /// What becomes of old backup sets.
    pub rotation: Rotation,
}

impl ClusterSettings {
    /// Reads everything the settings name.
    pub(crate) fn load(config: &StandbyConfig) -> Result<Arc<ClusterSettings>> {
        let protection = match config.tls.enabled {
            true => secured(config)?,
            false => Protection::Plain,
        };
        let connections_max = usize::try_from(config.max_connections).unwrap_or(usize::MAX);
        Ok(Arc::new(ClusterSettings {
            protection,
            connections_max,
            verify_min: match config.verify_wal_min {
                VerifyWal::Off => Verify::Off,
                VerifyWal::Headers => Verify::Headers,
                VerifyWal::Records => Verify::Records,
            },
            ahead_max: config.archive_ahead_max,
            recheck_rate: config.recheck_rate,
            rotation: Rotation {
                keeping: Keeping {
                    sets: config.keep_backups,
                    minimum_age: config.keep_minimum_age,
                },
                archive_command: config.archive_command.clone(),
            },
        }))
    }

    /// Whom a peer with this certificate is taken for.
    pub(crate) fn know(&self, certificate: Option<&PeerCertificate>) -> Result<KnownPeer, Unknown> {
        let (verifier, known) = match &self.protection {
            Protection::Plain => {
                return Ok(KnownPeer {
                    name: None,
                    rights: Rights::ALL,
                });
            }
            Protection::Tls {
                verifier, known, ..
            } => (verifier, known),
        };
        let Some(certificate) = certificate else {
            return Err(Unknown {
                why: "the peer presented no certificate".to_owned(),
                hint: String::new(),
            });
        };
        certificate.check(&**verifier).map_err(|fault| Unknown {
            why: fault.sentence,
            hint: fault.hint,
        })?;
        match known {
            KnownPeers::Keys(keys) => {
                let fingerprint = certificate.fingerprint();
                let key = keys.lookup(fingerprint).ok_or_else(|| Unknown {
                    why: format!("key {fingerprint} is not in the receiver's authorized_keys"),
                    hint: format!(
                        "on the standby run `walmgr STANDBY.ini authorize {fingerprint} NAME`"
                    ),
                })?;
                Ok(KnownPeer {
                    name: Some(key.name.clone()),
                    rights: key.rights,
                })
            }
            KnownPeers::Names(names) => {
                let entry = names.lookup(&certificate.names()).ok_or_else(|| {
                    let shown = certificate.shown_name().unwrap_or_default();
                    Unknown {
                        why: format!(
                            "the certificate is for {shown:?}, which is not in the receiver's \
                             authorized_names"
                        ),
                        hint: "on the standby add the name to authorized_names and run `walmgr \
                               STANDBY.ini receiver --reload`"
                            .to_owned(),
                    }
                })?;
                Ok(KnownPeer {
                    name: Some(entry.name.clone()),
                    rights: entry.rights,
                })
            }
        }
    }
}

fn secured(config: &StandbyConfig) -> Result<Protection> {
    let identity = Identity::load(&config.tls.key, &config.tls.certificate)?;
    let authority = config.tls.authority.as_deref();
    let verifier = tls::client_verifier(authority)?;
    let acceptor = TlsAcceptor::from(tls::server_config(&identity, Arc::clone(&verifier))?);
    let known = match authority {
        Some(_) => KnownPeers::Names(AuthorizedNames::load(&config.authorized_names)?),
        None => KnownPeers::Keys(AuthorizedKeys::load(&config.authorized_keys)?),
    };
    Ok(Protection::Tls {
        acceptor,
        verifier,
        known,
    })
}
