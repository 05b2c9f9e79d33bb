//! What a connection string says about TLS: when it is used, and how a server is known.
//! Never reads a certificate. Invariant: a combination that libpq refuses as weak is refused.

use std::path::{Path, PathBuf};

use crate::pg::conninfo::one_of_given;
use crate::pg::conninfo::options::Given;

/// `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    /// Never.
    Disable,
    /// If the server refuses to go without.
    Allow,
    /// If the server can.
    Prefer,
    /// Always, with any server.
    Require,
    /// Always, with a server whose certificate an authority has signed.
    VerifyCa,
    /// Always, with a server whose certificate an authority has signed for the host's name.
    VerifyFull,
}

/// `channel_binding`, and `sslcertmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demand {
    /// It is not done.
    Disable,
    /// It is done if the server can.
    Prefer,
    /// It is done or nothing is.
    Require,
}

/// Whose signature on a server's certificate counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authority {
    /// Those that this host trusts (`sslrootcert=system`).
    System,
    /// Those in this file, if it exists.
    File(PathBuf),
    /// Nobody's: there is neither an option nor a home.
    Nobody,
}

/// A version of TLS that rustls speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// How connections are encrypted and servers known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encryption {
    /// When.
    pub mode: SslMode,
    /// Whether TLS begins without being asked for (`sslnegotiation=direct`).
    pub direct: bool,
    /// `channel_binding`.
    pub channel_binding: Demand,
    /// `sslrootcert`.
    pub authority: Authority,
    /// `sslcrl`; the file at home only if it exists.
    pub revocations: Option<PathBuf>,
    /// `sslcrldir`.
    pub revocation_folder: Option<PathBuf>,
    /// `sslcert`, if it exists.
    pub certificate: Option<PathBuf>,
    /// `sslkey`.
    pub key: Option<PathBuf>,
    /// `sslcertmode`.
    pub certificate_demand: Demand,
    /// Whether the server is told the name of the host (`sslsni`).
    pub tells_name: bool,
    /// `ssl_min_protocol_version`.
    pub oldest: TlsVersion,
    /// `ssl_max_protocol_version`.
    pub newest: TlsVersion,
}

/// Takes it out of the options.
pub(crate) fn read(given: &Given, home: Option<&Path>) -> Result<Encryption, String> {
    let path = |name: &str| given.get(name).map(PathBuf::from);
    let at_home = |name: &str| home.map(|home| home.join(".postgresql").join(name));
    let authority = match path("sslrootcert") {
        Some(path) if path.as_os_str() == "system" => Authority::System,
        Some(path) => Authority::File(path),
        None => at_home("root.crt").map_or(Authority::Nobody, Authority::File),
    };
    let mode = mode(given, &authority)?;
    let direct = one_of_given(given, "sslnegotiation", &["postgres", "direct"])? == 1;
    if direct && mode < SslMode::Require {
        return Err(format!(
            "sslnegotiation=direct is weak with sslmode={}; write sslmode=require or more",
            given.get("sslmode").map_or("prefer", String::as_str)
        ));
    }
    let (oldest, newest) = versions(given)?;
    Ok(Encryption {
        mode,
        direct,
        channel_binding: demand(given, "channel_binding", ["prefer", "disable", "require"])?,
        authority,
        revocations: path("sslcrl").or_else(|| at_home("root.crl").filter(|file| file.exists())),
        revocation_folder: path("sslcrldir"),
        certificate: path("sslcert").or_else(|| at_home("postgresql.crt")),
        key: path("sslkey").or_else(|| at_home("postgresql.key")),
        certificate_demand: demand(given, "sslcertmode", ["allow", "disable", "require"])?,
        tells_name: given.get("sslsni").is_none_or(|value| value != "0"),
        oldest,
        newest,
    })
}

fn mode(given: &Given, authority: &Authority) -> Result<SslMode, String> {
    let modes = [
        ("prefer", SslMode::Prefer),
        ("disable", SslMode::Disable),
        ("allow", SslMode::Allow),
        ("require", SslMode::Require),
        ("verify-ca", SslMode::VerifyCa),
        ("verify-full", SslMode::VerifyFull),
    ];
    let mode = modes[one_of_given(given, "sslmode", &modes.map(|(name, _)| name))?].1;
    match (authority, given.get("sslmode")) {
        // Whoever an authority of the whole world trusts may be anybody but for the name.
        (Authority::System, None) => Ok(SslMode::VerifyFull),
        (Authority::System, Some(weak)) if mode != SslMode::VerifyFull => Err(format!(
            "sslmode={weak} is weak with sslrootcert=system; write sslmode=verify-full"
        )),
        _ => Ok(mode),
    }
}

/// The words for `Prefer`, which is the default, `Disable` and `Require`.
fn demand(given: &Given, name: &str, words: [&str; 3]) -> Result<Demand, String> {
    let demands = [Demand::Prefer, Demand::Disable, Demand::Require];
    Ok(demands[one_of_given(given, name, &words)?])
}

fn versions(given: &Given) -> Result<(TlsVersion, TlsVersion), String> {
    let names = ["TLSv1.2", "TLSv1", "TLSv1.1", "TLSv1.3"];
    // libpq does not mind the case.
    let of = |name: &str| -> Result<Option<usize>, String> {
        let Some(value) = given.get(name) else {
            return Ok(None);
        };
        let known = names
            .iter()
            .position(|known| known.eq_ignore_ascii_case(value));
        known
            .map(Some)
            .ok_or_else(|| format!("{name}={value} is not one of TLSv1, TLSv1.1, TLSv1.2, TLSv1.3"))
    };
    let oldest = match of("ssl_min_protocol_version")? {
        Some(3) => TlsVersion::Tls13,
        // What is older is not spoken here, and then 1.2 is the oldest.
        _ => TlsVersion::Tls12,
    };
    let newest = match of("ssl_max_protocol_version")? {
        None | Some(3) => TlsVersion::Tls13,
        Some(0) => TlsVersion::Tls12,
        Some(old) => {
            return Err(format!(
                "ssl_max_protocol_version={}: walmgr speaks TLSv1.2 and TLSv1.3",
                names[old]
            ));
        }
    };
    if newest < oldest {
        return Err("ssl_min_protocol_version is newer than ssl_max_protocol_version".to_owned());
    }
    Ok((oldest, newest))
}
