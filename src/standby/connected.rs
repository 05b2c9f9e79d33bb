//! Who is connected to the receiver, as the kernel tells it.
//! Never speaks to the receiver, which would want a key for that. Invariant: an address is listed only
//! if its connection leads to a port that the receiver listens on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::StandbyConfig;

/// `TCP_ESTABLISHED`, include/net/tcp_states.h of Linux.
const ESTABLISHED: &str = "01";

/// The other ends of the connections to this receiver's ports.
pub(super) fn peers(config: &StandbyConfig) -> Vec<String> {
    let ports: Vec<u16> = config.listen.iter().map(|listen| listen.port).collect();
    let mut found = Vec::new();
    for path in ["/proc/net/tcp", "/proc/net/tcp6"] {
        // A kernel without IPv6 has no second one.
        let text = std::fs::read_to_string(path).unwrap_or_default();
        found.extend(peers_in(&text, &ports));
    }
    found.sort();
    found.iter().map(ToString::to_string).collect()
}

/// Each line has local address, remote address and state behind its number (proc(5)).
fn peers_in(text: &str, ports: &[u16]) -> Vec<SocketAddr> {
    let lines = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (local, remote) = (address(words.next()?)?, address(words.next()?)?);
        let is_ours = words.next()? == ESTABLISHED && ports.contains(&local.port());
        is_ours.then_some(remote)
    });
    lines.collect()
}

/// `0100007F:1D08`: the address in words of the host's byte order, the port in the usual one.
fn address(text: &str) -> Option<SocketAddr> {
    let (words, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::new();
    for at in (0..words.len()).step_by(8) {
        let word = u32::from_str_radix(words.get(at..at + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let host = match <[u8; 16]>::try_from(&bytes[..]) {
        Ok(bytes) => Ipv6Addr::from(bytes).to_canonical(),
        Err(_) => IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(&bytes[..]).ok()?)),
    };
    Some(SocketAddr::new(host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn only_connections_to_the_port_are_listed() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue\n\
             0: 00000000:1D08 00000000:0000 0A 00000000:00000000 00:00000000\n\
             1: 0100007F:1D08 0100007F:B2F0 01 00000000:00000000 00:00000000\n\
             2: 0100007F:B2F0 0100007F:1D08 01 00000000:00000000 00:00000000\n\
             3: 0000000000000000FFFF00000100007F:1D08 \
                0000000000000000FFFF0000020200C0:0050 01 0:0 0:0\n\
             nonsense : :\n";
        let found: Vec<String> = (peers_in(text, &[7432]).iter())
            .map(ToString::to_string)
            .collect();
        assert_eq!(found, ["127.0.0.1:45808", "192.0.2.2:80"]);
        assert!(peers_in(text, &[80]).is_empty());
    }
}
