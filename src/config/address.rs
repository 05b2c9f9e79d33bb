//! Network addresses in settings: the standby as the master writes it, and what to listen on.
//! Never resolves a name. Invariant: host and port print so that they read back the same.

use std::fmt;
use std::net::IpAddr;

use super::value::Expected;

/// The receiver's port where none is written.
pub(crate) const DEFAULT_PORT: u16 = 7432;

/// The port of the metrics where none is written.
pub(crate) const METRICS_PORT: u16 = 7433;

/// Most addresses in one list.
const LISTEN_MAX: usize = 16;

/// Longest host name, DNS's bound.
const HOST_CHARS_MAX: usize = 253;

/// Where the master finds the receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlaveAddress {
    /// A name or an IP address, without brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
    /// The directory an old file writes behind the host; folders are the standby's own.
    pub ignored_path: Option<String>,
    /// The ssh user an old file writes before the host.
    pub ignored_user: Option<String>,
}

/// Where the receiver listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenAddress {
    /// A name or an IP address, without brackets.
    pub host: String,
    /// The TCP port; 0 takes any free one.
    pub port: u16,
}

impl SlaveAddress {
    /// Whether only this machine can answer.
    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.host)
    }

    /// Reads `host`, `host:port`, `host:path`, and IPv6 addresses, in brackets before a port. What
    /// stands behind a colon and has a slash in it, or begins with no digit, is a path.
    pub(super) fn parse(text: &str) -> Result<Self, Expected> {
        let expected = || Expected::new("HOST or HOST:PORT");
        if text.starts_with(['/', '~', '.']) {
            return Err(expected()
                .hint("in the master's file `slave` names the standby's host, not a directory"));
        }
        let (user, text) = match text.split_once('@') {
            Some((user, text)) if !user.contains([':', '/']) => (Some(user.to_owned()), text),
            _ => (None, text),
        };
        let (text, path) = split_path(text);
        let (host, port) = host_and_port(text).ok_or_else(expected)?;
        if port == Some(0) {
            return Err(Expected::new("a port from 1 to 65535"));
        }
        Ok(SlaveAddress {
            host: host.to_owned(),
            port: port.unwrap_or(DEFAULT_PORT),
            ignored_path: path,
            ignored_user: user,
        })
    }
}

impl ListenAddress {
    /// Whether only this machine can connect.
    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.host)
    }

    /// Whether both cannot be listened on.
    pub(super) fn is_same_place(&self, other: &ListenAddress) -> bool {
        let is_every = |host: &str| host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified());
        let overlap = self.host == other.host || is_every(&self.host) || is_every(&other.host);
        self.port != 0 && self.port == other.port && overlap
    }

    /// Reads `ADDRESS[:PORT]`, several of them separated by commas.
    pub(super) fn parse_list(text: &str, default_port: u16) -> Result<Vec<Self>, Expected> {
        let mut addresses: Vec<ListenAddress> = Vec::new();
        for part in text.split(',').map(str::trim) {
            let expected = || Expected::new("ADDRESS:PORT, several separated by commas");
            if part.starts_with(['*', ':']) && !part.starts_with("::") {
                return Err(expected().hint(format!(
                    "for every address of this host write 0.0.0.0:{default_port}, or [::]:{default_port} with IPv6",
                )));
            }
            let (host, port) = host_and_port(part).ok_or_else(expected)?;
            let address = ListenAddress {
                host: host.to_owned(),
                port: port.unwrap_or(default_port),
            };
            if addresses.contains(&address) || addresses.len() == LISTEN_MAX {
                return Err(Expected::new(format!(
                    "at most {LISTEN_MAX} addresses, each written once"
                )));
            }
            addresses.push(address);
        }
        Ok(addresses)
    }
}

/// Takes the directory of an old file off the address before it.
fn split_path(text: &str) -> (&str, Option<String>) {
    let is_path = |path: &str| {
        let begins = path.starts_with(|c: char| c.is_alphabetic() || "/~._".contains(c));
        begins || path.contains('/')
    };
    // The colons of an IPv6 address come before its bracket, or it has no path.
    let first = match text.rfind(']') {
        _ if is_ipv6(text) => return (text, None),
        Some(bracket) => bracket,
        None => 0,
    };
    for (at, _) in text[first..].match_indices(':').take(2) {
        let (address, path) = (&text[..first + at], &text[first + at + 1..]);
        let port_follows = path
            .split_once(':')
            .is_some_and(|(port, _)| port_number(port).is_some());
        if is_path(path) && !port_follows {
            return (address, Some(path.to_owned()));
        }
    }
    (text, None)
}

/// Splits `host`, `host:port`, `[v6]`, `[v6]:port` or a bare IPv6 address.
fn host_and_port(text: &str) -> Option<(&str, Option<u16>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        let port = match rest.strip_prefix(':') {
            Some(port) => Some(port_number(port)?),
            None if rest.is_empty() => None,
            None => return None,
        };
        return is_ipv6(host).then_some((host, port));
    }
    if is_ipv6(text) {
        return Some((text, None));
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port_number(port)?)),
        None => (text, None),
    };
    is_host(host).then_some((host, port))
}

fn port_number(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// An IPv6 address, with or without a zone such as `%eth0`.
fn is_ipv6(text: &str) -> bool {
    let (address, zone) = text.split_once('%').unwrap_or((text, "0"));
    let zone_is_word = !zone.is_empty() && zone.bytes().all(|b| b.is_ascii_alphanumeric());
    zone_is_word && matches!(address.parse(), Ok(IpAddr::V6(_)))
}

fn is_host(text: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    (1..=HOST_CHARS_MAX).contains(&text.len())
        && text.bytes().all(letter)
        && !text.starts_with(['.', '-'])
}

fn is_loopback(host: &str) -> bool {
    match host.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

fn print(host: &str, port: u16, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    match host.contains(':') {
        true => write!(out, "[{host}]:{port}"),
        false => write!(out, "{host}:{port}"),
    }
}

impl fmt::Display for SlaveAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(&self.host, self.port, out)
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(&self.host, self.port, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slave(text: &str) -> (String, u16, Option<String>) {
        let address = SlaveAddress::parse(text).unwrap();
        (address.host, address.port, address.ignored_path)
    }

    #[test]
    fn the_standby_is_a_host_with_port_or_with_the_old_path() {
        assert_eq!(slave("db2"), ("db2".into(), 7432, None));
        assert_eq!(slave("db2:7500"), ("db2".into(), 7500, None));
        assert_eq!(
            slave("10.0.0.1:/a/b"),
            ("10.0.0.1".into(), 7432, Some("/a/b".into()))
        );
        assert_eq!(
            slave("db2:7500:~/b"),
            ("db2".into(), 7500, Some("~/b".into()))
        );
        for (text, host, port, path) in [
            ("db2:walshipping", "db2", 7432, "walshipping"),
            ("db2:9.1/main", "db2", 7432, "9.1/main"),
            ("db2:7500:9.1/main", "db2", 7500, "9.1/main"),
            ("db2:./a:b", "db2", 7432, "./a:b"),
            ("db2:a@b/c", "db2", 7432, "a@b/c"),
            ("[::1]:archive", "::1", 7432, "archive"),
            ("[::1]:7500:/a", "::1", 7500, "/a"),
        ] {
            assert_eq!(
                slave(text),
                (host.into(), port, Some(path.into())),
                "{text}"
            );
        }
        assert_eq!(slave("::1"), ("::1".into(), 7432, None));
        assert_eq!(slave("[::1]:7500"), ("::1".into(), 7500, None));
        assert_eq!(slave("fe80::1%eth0").0, "fe80::1%eth0");
        let old = SlaveAddress::parse("postgres@db2:/a").unwrap();
        assert_eq!(
            (old.host.as_str(), old.ignored_user.as_deref()),
            ("db2", Some("postgres"))
        );
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for text in [
            "/var/lib", "~/x", "a b", "a:0", "a:70000", "a:", "a:74x2", "[::1", "[a]:1", "-x",
            ":b", "b c:/a", "[::1]:",
        ] {
            assert!(SlaveAddress::parse(text).is_err(), "{text}");
        }
        assert!(
            SlaveAddress::parse("/var")
                .unwrap_err()
                .hint
                .contains("not a directory")
        );
    }

    #[test]
    fn addresses_to_listen_on_may_be_several() {
        let list = ListenAddress::parse_list("127.0.0.1, [::1]:7500,db2:0", DEFAULT_PORT).unwrap();
        let printed: Vec<String> = list.iter().map(ToString::to_string).collect();
        assert_eq!(printed, ["127.0.0.1:7432", "[::1]:7500", "db2:0"]);
        for text in ["*", "*:7432", ":7432", "a,a", "a,,b", ""] {
            assert!(
                ListenAddress::parse_list(text, DEFAULT_PORT).is_err(),
                "{text}"
            );
        }
        assert!(ListenAddress::parse_list(&vec!["a"; 100].join(","), DEFAULT_PORT).is_err());
    }

    #[test]
    fn only_the_machine_itself_is_loopback() {
        for host in [
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "localhost",
            "::ffff:127.0.0.1",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "0.0.0.0",
            "::",
            "10.0.0.1",
            "localhost.example",
            "127.0.0.1.example",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
