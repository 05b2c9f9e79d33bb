//! What a reload may change: keys, certificates, who may come in, how many.
//! Never takes half of it: either all of a new configuration is good, or the old one stays.

use std::path::PathBuf;
use std::sync::Arc;

use crate::audit::AuditLog;
use crate::config::standby::StandbyConfig;
use crate::config::{StoreCompression, VerifyWal};
use crate::error::Result;
use crate::receiver::process_settings::{ProcessSettings, Protection, ProvenPeer, Unknown};
use crate::store::Archive;
use crate::store::sets::Keeping;
use crate::transport::authorized_keys::{AuthorizedKeys, Rights};
use crate::transport::authorized_names::AuthorizedNames;
use crate::transport::tls::PeerCertificate;
use crate::wal::segment::Verify;

/// Whom a cluster knows.
pub(crate) enum KnownPeers {
    /// Whoever reaches the receiver, without TLS.
    Everybody,
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

/// What becomes of old backup sets.
#[derive(Debug, Clone)]
pub(crate) struct Rotation {
    /// Which sets stay, and from which age on WAL may go.
    pub keeping: Keeping,
    /// Run before one is removed.
    pub archive_command: Option<String>,
    /// Where that finds PostgreSQL's programs: `slave_bin`.
    pub programs: Option<PathBuf>,
}

/// One good configuration.
pub(crate) struct ClusterSettings {
    /// The settings of the process when the file was read. If the file cannot be read again, its list of peers stays in
    /// force together with the certificates that prove the names in it.
    pub server: Arc<ProcessSettings>,
    /// Who may come in.
    pub known: KnownPeers,
    /// Connections open at once.
    pub connections_max: usize,
    /// How closely WAL is checked at least.
    pub verify_min: Verify,
    /// How far beyond the end of its run a segment may be that is not set apart.
    pub ahead_max: u64,
    /// In which form segments are stored.
    pub compression: StoreCompression,
    /// Every such backup is a full one; with 0 only those that have to be.
    pub full_every: u32,
    /// Bytes a second that are read to find what the disk changed.
    pub recheck_rate: u64,
    /// Bytes a second that are read at most of sets that are fetched.
    pub fetch_rate: Option<u64>,
    /// Where it is told who did what to the archive.
    pub audit_log: Option<PathBuf>,
    /// What becomes of old backup sets.
    pub rotation: Rotation,
}

impl ClusterSettings {
    /// Reads everything the settings name, for a process with these.
    pub(crate) fn load(
        config: &StandbyConfig,
        server: &Arc<ProcessSettings>,
    ) -> Result<Arc<ClusterSettings>> {
        AuditLog::check(config.audit_log.as_deref())?;
        let audit_log = config
            .audit_log
            .clone()
            .or_else(|| server.audit_log.clone());
        let connections_max = usize::try_from(config.max_connections).unwrap_or(usize::MAX);
        Ok(Arc::new(ClusterSettings {
            server: Arc::clone(server),
            known: KnownPeers::load(config, &server.protection)?,
            connections_max,
            verify_min: match config.verify_wal_min {
                VerifyWal::Off => Verify::Off,
                VerifyWal::Headers => Verify::Headers,
                VerifyWal::Records => Verify::Records,
            },
            ahead_max: config.archive_ahead_max,
            compression: config.store_compression,
            full_every: config.full_every,
            recheck_rate: config.recheck_rate,
            fetch_rate: config.fetch_rate,
            audit_log,
            rotation: Rotation {
                keeping: Keeping::of(config),
                archive_command: config.archive_command.clone(),
                programs: config.slave_bin.clone(),
            },
        }))
    }

    /// What the archive itself goes by.
    pub(crate) fn apply_to(&self, archive: &Archive) {
        archive.set_ahead_max(self.ahead_max);
        archive.set_compression(self.compression);
    }

    /// Whom a peer with this certificate is taken for.
    pub(crate) fn know(&self, certificate: Option<&PeerCertificate>) -> Result<KnownPeer, Unknown> {
        let proven = self.server.proven(certificate)?;
        self.lists(&proven).ok_or_else(|| proven.is_unknown())
    }

    /// The line of the list that a peer is on which has proved this by the settings here.
    pub(crate) fn lists(&self, proven: &ProvenPeer) -> Option<KnownPeer> {
        let (name, rights) = match (&self.known, proven) {
            (KnownPeers::Everybody, ProvenPeer::Anybody) => (None, Rights::DAILY),
            (KnownPeers::Keys(keys), ProvenPeer::Key(fingerprint)) => {
                let key = keys.lookup(fingerprint)?;
                (Some(key.name.clone()), key.rights)
            }
            (KnownPeers::Names(names), ProvenPeer::Names { names: shown, .. }) => {
                let entry = names.lookup(shown)?;
                (Some(entry.name.clone()), entry.rights)
            }
            // What proves one thing by these settings proves no other.
            _ => return None,
        };
        Some(KnownPeer { name, rights })
    }
}

impl KnownPeers {
    fn load(config: &StandbyConfig, protection: &Protection) -> Result<KnownPeers> {
        Ok(match protection {
            Protection::Plain => KnownPeers::Everybody,
            Protection::Tls { by_name: true, .. } => {
                KnownPeers::Names(AuthorizedNames::load(&config.authorized_names)?)
            }
            Protection::Tls { .. } => {
                KnownPeers::Keys(AuthorizedKeys::load(&config.authorized_keys)?)
            }
        })
    }
}
