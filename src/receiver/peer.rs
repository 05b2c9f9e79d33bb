//! A peer that was let in: where it comes from, what it is called, what it may do.
//! Never decides whether it may come in. Invariant: all connections of a listed name have one key, wherever they
//! come from.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use walmgr_protocol::hello::Role;
use walmgr_protocol::message::ClusterIdentity;

use crate::audit::Actor;
use crate::transport::authorized_keys::Rights;
use crate::transport::tls::PeerCertificate;

/// A peer that was let in.
pub(crate) struct Peer {
    /// Where it connects from.
    pub address: SocketAddr,
    /// Its certificate; none on a plain connection.
    pub certificate: Option<PeerCertificate>,
    /// Its name in `authorized_keys` or `authorized_names`.
    pub name: Option<String>,
    /// What it may do.
    pub rights: Rights,
    /// What it wants to be taken for.
    pub role: Role,
    /// The cluster it speaks for.
    pub cluster: Option<ClusterIdentity>,
}

impl Peer {
    /// Whose its connections are.
    pub(crate) fn key(&self) -> PeerKey {
        match &self.name {
            Some(name) => PeerKey::Named(name.clone()),
            None => PeerKey::At(self.address.ip().into()),
        }
    }

    /// As the audit log calls it.
    pub(crate) fn audited(&self) -> AuditedPeer {
        AuditedPeer {
            who: actor(
                self.name.as_deref(),
                self.certificate.as_ref(),
                self.address,
            ),
            address: self.address.ip(),
        }
    }
}

/// A peer as those know it who work for it elsewhere.
#[derive(Clone)]
pub(crate) struct AuditedPeer {
    /// Who it is.
    pub who: Actor,
    /// Where it connects from.
    pub address: IpAddr,
}

/// Somebody who proved this, or nothing.
pub(crate) fn actor(
    name: Option<&str>,
    certificate: Option<&PeerCertificate>,
    address: SocketAddr,
) -> Actor {
    Actor::Peer {
        name: name.map(str::to_owned),
        key: certificate.map(|certificate| certificate.fingerprint().to_string()),
        address: address.to_string(),
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(out, "{name} ({})", self.address),
            None => write!(out, "{}", self.address),
        }
    }
}

/// The owner of a connection: a peer by its name in the list, or an address where there is no list.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum PeerKey {
    /// By its name in the list.
    Named(String),
    /// By where it comes from.
    At(NetworkAddress),
}

/// An address as crowds are counted: of IPv6 the network that a subscriber has to himself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NetworkAddress(IpAddr);

impl From<IpAddr> for NetworkAddress {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => NetworkAddress(address.into()),
            IpAddr::V6(address) => {
                let network = address.to_bits() >> 64 << 64;
                NetworkAddress(Ipv6Addr::from_bits(network).into())
            }
        }
    }
}

/// A certificate's key for the log; nothing on a plain connection.
pub(crate) fn with_key(certificate: Option<&PeerCertificate>) -> String {
    certificate.map_or_else(String::new, |certificate| {
        format!(" with key {}", certificate.fingerprint())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_118_ipv6_is_counted_by_network_and_mapped_addresses_as_ipv4() {
        let place = |text: &str| NetworkAddress::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(place("2001:db8:0:1::1"), place("2001:db8:0:1:ffff::2"));
        assert_ne!(place("2001:db8:0:1::1"), place("2001:db8:0:2::1"));
        assert_eq!(place("::ffff:192.0.2.1"), place("192.0.2.1"));
        assert_ne!(place("192.0.2.1"), place("192.0.2.2"));
    }
}
