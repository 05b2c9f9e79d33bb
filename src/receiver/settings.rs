//! What a reload may change: keys, certificates, who may come in, how many.
//! Never takes half of it: either all of a new configuration is good, or the old one stays.

use std::sync::Arc;

use tokio_rustls::TlsAcceptor;

use crate::config::standby::StandbyConfig;
use crate::error::Result;
use crate::transport::authorized_keys::{AuthorizedKeys, Rights};
use crate::transport::identity::{Fingerprint, Identity};
use crate::transport::tls;

/// How connections are protected.
pub enum Protection {
    /// `tls = off`: loopback, or the operator means it.
    Plain,
    /// TLS with keys pinned in `authorized_keys`.
    Pinned(TlsAcceptor, AuthorizedKeys),
    /// TLS with certificates of an authority.
    Authority(TlsAcceptor),
}

/// What becomes of old backup sets.
#[derive(Debug, Clone)]
pub struct Rotation {
    /// Sets to keep; 0 for all.
    pub keep_backups: u32,
    /// Run before one is removed.
    pub archive_command: Option<String>,
}

/// One good configuration.
pub struct Settings {
    /// How connections are protected.
    pub protection: Protection,
    /// Connections open at once.
    pub connections_max: usize,
    /// What becomes of old backup sets.
    pub rotation: Rotation,
}

impl Settings {
    /// Reads everything the settings name.
    pub fn load(config: &StandbyConfig) -> Result<Arc<Settings>> {
        let protection = if !config.tls.enabled {
            Protection::Plain
        } else {
            let identity = Identity::load(&config.tls.key, &config.tls.certificate)?;
            let authority = config.tls.authority.as_deref();
            let acceptor = TlsAcceptor::from(tls::server_config(&identity, authority)?);
            match authority {
                Some(_) => Protection::Authority(acceptor),
                None => {
                    let keys = AuthorizedKeys::load(&config.authorized_keys)?;
                    Protection::Pinned(acceptor, keys)
                }
            }
        };
        let connections_max = usize::try_from(config.max_connections).unwrap_or(usize::MAX);
        Ok(Arc::new(Settings {
            protection,
            connections_max,
            rotation: Rotation {
                keep_backups: config.keep_backups,
                archive_command: config.archive_command.clone(),
            },
        }))
    }

    /// What a peer with this key may do, `None` when it may not even come in.
    pub fn rights(&self, fingerprint: Option<&Fingerprint>) -> Option<Rights> {
        match (&self.protection, fingerprint) {
            (Protection::Plain | Protection::Authority(_), _) => Some(Rights::ALL),
            (Protection::Pinned(_, keys), Some(fingerprint)) => {
                keys.lookup(fingerprint).map(|key| key.rights)
            }
            (Protection::Pinned(..), None) => None,
        }
    }

    /// What the operator calls the holder of this key.
    pub fn name(&self, fingerprint: Option<&Fingerprint>) -> Option<String> {
        match (&self.protection, fingerprint) {
            (Protection::Pinned(_, keys), Some(fingerprint)) => {
                keys.lookup(fingerprint).map(|key| key.name.clone())
            }
            _ => None,
        }
    }
}
