//! Whether a certificate names a host, by libpq's rules (`fe-secure-common.c`).
//! Never looks a name up. Invariant: the common name counts only where no other name of the host's
//! sort is in the certificate.

use std::net::IpAddr;

use x509_parser::extensions::GeneralName;

use super::parsed;

/// Compares with the host as it was written.
pub(super) fn check(certificate: &[u8], host: &str) -> Result<(), String> {
    let certificate = parsed(certificate)?;
    let address: Option<IpAddr> = host.parse().ok();
    let names = certificate.subject_alternative_name();
    let names =
        names.map_err(|_| "the names in the server's certificate cannot be read".to_owned())?;
    let mut found = Vec::new();
    let mut common_name_counts = true;
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::DNSName(name) => {
                common_name_counts &= address.is_some();
                found.push((*name).to_owned());
                if fits(name, host, address.is_some()) {
                    return Ok(());
                }
            }
            GeneralName::IPAddress(bytes) => {
                common_name_counts &= address.is_none();
                let named = match *bytes {
                    [a, b, c, d] => Some(IpAddr::from([*a, *b, *c, *d])),
                    bytes => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
                };
                found.extend(named.map(|named| named.to_string()));
                if named.is_some() && named == address {
                    return Ok(());
                }
            }
            // What cannot be read is a name all the same: dNSName is 2, iPAddress 7.
            GeneralName::Invalid(tag, _) => {
                let is_address = address.is_some();
                common_name_counts &= tag.0 != if is_address { 7 } else { 2 };
            }
            _ => {}
        }
    }
    if common_name_counts {
        let common = certificate.subject().iter_common_name().next();
        if let Some(name) = common.and_then(|name| name.as_str().ok()) {
            found.push(name.to_owned());
            if fits(name, host, address.is_some()) {
                return Ok(());
            }
        }
    }
    Err(match found.is_empty() {
        true => format!("the server's certificate names no host, so not {host}"),
        false => format!(
            "the server's certificate is for {}, not for {host}",
            found.join(", ")
        ),
    })
}

/// `*.example.com` stands for one label.
fn fits(name: &str, host: &str, is_address: bool) -> bool {
    if name.contains('\0') {
        return false;
    }
    if name.eq_ignore_ascii_case(host) {
        return true;
    }
    let Some(domain) = name
        .strip_prefix('*')
        .filter(|domain| domain.starts_with('.'))
    else {
        return false;
    };
    let label_bytes = host.len().saturating_sub(domain.len());
    !is_address
        && domain.len() > 1
        && label_bytes > 0
        && host.is_char_boundary(label_bytes)
        && host[label_bytes..].eq_ignore_ascii_case(domain)
        && !host[..label_bytes].contains('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(common: &str, names: &[&str]) -> Vec<u8> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut parameters = rcgen::CertificateParams::new(names).unwrap();
        let mut subject = rcgen::DistinguishedName::new();
        subject.push(rcgen::DnType::CommonName, common);
        parameters.distinguished_name = subject;
        let key = rcgen::KeyPair::generate().unwrap();
        parameters.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn a_host_is_named_as_libpq_reads_it() {
        for (common, names, host, named) in [
            ("db.example", &[][..], "db.example", true),
            ("db.example", &[], "DB.Example", true),
            ("db.example", &[], "db2.example", false),
            ("*.example", &[], "db.example", true),
            ("*.example", &[], "a.db.example", false),
            ("*.example", &[], "example", false),
            ("*.example", &[], ".example", false),
            ("*", &[], "db", false),
            ("*.", &[], "db.", false),
            ("*.0.0.1", &[], "127.0.0.1", false),
            ("db.example", &["other.example"], "db.example", false),
            ("db.example", &["a", "other.example"], "other.example", true),
            ("db.example", &["127.0.0.1"], "db.example", true),
            ("127.0.0.1", &["db.example"], "127.0.0.1", true),
            ("127.0.0.1", &["127.0.0.2"], "127.0.0.1", false),
            ("x", &["::1", "127.0.0.1"], "127.0.0.1", true),
            ("x", &["::1"], "0::1", true),
        ] {
            let found = check(&certificate(common, names), host);
            assert_eq!(found.is_ok(), named, "{common} {names:?} {host}: {found:?}");
        }
    }
}
