//! What a reload may change of the daemon itself: how connections are protected, and how many there may be in all.
//! Never knows a cluster. Invariant: whoever speaks to the receiver proved a key by these settings before any list of
//! a cluster is asked for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::server::danger::ClientCertVerifier;
use tokio_rustls::TlsAcceptor;

use crate::audit::AuditLog;
use crate::config::TlsSettings;
use crate::error::Result;
use crate::transport::authorized_names::CertifiedName;
use crate::transport::identity::{Fingerprint, Identity};
use crate::transport::tls::{self, PeerCertificate};

/// The settings of the process, read once for all of its clusters.
pub(crate) struct ProcessSettings {
    /// How connections are protected.
    pub protection: Protection,
    /// Connections of all clusters that are open at once.
    pub connections_max: usize,
    /// Bytes a second that are read at most of sets that are fetched, of all clusters together.
    pub fetch_rate: Option<u64>,
    /// The cluster, where it serves no more than that.
    pub cluster: String,
    /// Where it is told who did what that belongs to no cluster.
    pub audit_log: Option<PathBuf>,
    /// Where it is noted which lines of that are lost.
    pub audit_losses: PathBuf,
}

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
        /// Whether an authority vouches for names; otherwise keys are known by their fingerprints.
        by_name: bool,
    },
}

/// Why a peer may not come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unknown {
    /// In words.
    pub why: String,
    /// What an operator can do.
    pub hint: String,
}

/// What a peer has proved of itself; whether that gives it any right, the list of a cluster says.
pub(crate) enum ProvenPeer {
    /// Nothing, and nothing was asked: the connection is plain.
    Anybody,
    /// That it holds this key.
    Key(Fingerprint),
    /// That an authority calls it so.
    Names {
        /// All names of its certificate.
        names: Vec<CertifiedName>,
        /// The first of them, fit for a log.
        shown: String,
    },
}

impl ProcessSettings {
    /// Reads everything the settings name.
    pub(crate) fn load(
        tls: &TlsSettings,
        (connections_max, fetch_rate): (u32, Option<u64>),
        (cluster, audit_log, audit_losses): (&str, Option<&Path>, PathBuf),
    ) -> Result<Arc<ProcessSettings>> {
        AuditLog::check(audit_log)?;
        let protection = match tls.enabled {
            true => secured(tls)?,
            false => Protection::Plain,
        };
        Ok(Arc::new(ProcessSettings {
            protection,
            connections_max: usize::try_from(connections_max).unwrap_or(usize::MAX),
            fetch_rate,
            cluster: cluster.to_owned(),
            audit_log: audit_log.map(Path::to_path_buf),
            audit_losses,
        }))
    }

    /// What a peer with this certificate has proved at this moment.
    pub(crate) fn proven(
        &self,
        certificate: Option<&PeerCertificate>,
    ) -> Result<ProvenPeer, Unknown> {
        let Protection::Tls {
            verifier, by_name, ..
        } = &self.protection
        else {
            return Ok(ProvenPeer::Anybody);
        };
        let certificate = certificate.ok_or_else(|| Unknown {
            why: "the peer presented no certificate".to_owned(),
            hint: String::new(),
        })?;
        certificate.check(&**verifier).map_err(|fault| Unknown {
            why: fault.sentence,
            hint: fault.hint,
        })?;
        Ok(match by_name {
            true => ProvenPeer::Names {
                names: certificate.names(),
                shown: certificate.shown_name().unwrap_or_default(),
            },
            false => ProvenPeer::Key(*certificate.fingerprint()),
        })
    }
}

impl ProvenPeer {
    /// Why a peer may not come in that is on no list.
    pub(crate) fn is_unknown(&self) -> Unknown {
        match self {
            ProvenPeer::Anybody => Unknown {
                why: "the receiver serves no cluster".to_owned(),
                hint: "look at its log on the standby".to_owned(),
            },
            ProvenPeer::Key(fingerprint) => Unknown {
                why: format!("key {fingerprint} is not in the receiver's authorized_keys"),
                hint: format!(
                    "on the standby run `walmgr STANDBY.ini authorize {fingerprint} NAME`"
                ),
            },
            ProvenPeer::Names { shown, .. } => Unknown {
                why: format!(
                    "the certificate is for {shown:?}, which is not in the receiver's \
                     authorized_names"
                ),
                hint: "on the standby add the name to authorized_names and run `walmgr \
                       STANDBY.ini receiver --reload`"
                    .to_owned(),
            },
        }
    }
}

fn secured(tls: &TlsSettings) -> Result<Protection> {
    let identity = Identity::load(&tls.key, &tls.certificate)?;
    let authority = tls.authority.as_deref();
    let verifier = tls::client_verifier(authority)?;
    let acceptor = TlsAcceptor::from(tls::server_config(&identity, Arc::clone(&verifier))?);
    Ok(Protection::Tls {
        acceptor,
        verifier,
        by_name: authority.is_some(),
    })
}
