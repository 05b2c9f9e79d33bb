//! Fuzz bodies of this module, as functions so that they are compiled and run with the tests.
//! Never does IO. Invariant: they panic only where the code under test broke a promise.

use rustls::pki_types::CertificateDer;

use super::authorized_keys::AuthorizedKeys;
use super::authorized_names::{AuthorizedNames, CertifiedName};
use super::tls::PeerCertificate;

/// Any text is refused with the number of one of its lines, or read; what was read is written
/// back unchanged, and every key of it is found and can be revoked.
pub fn authorized_keys(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let mut list = match AuthorizedKeys::parse(text) {
        Ok(list) => list,
        Err(bad) => {
            assert!((1..=text.split('\n').count()).contains(&bad.line));
            return;
        }
    };
    assert_eq!(
        list.to_string().trim_end_matches('\n'),
        text.trim_end_matches('\n')
    );
    let keys: Vec<_> = list.keys().cloned().collect();
    for key in keys {
        assert_eq!(list.lookup(&key.fingerprint), Some(&key));
        let line = AuthorizedKeys::parse(&key.to_string()).ok();
        assert_eq!(
            line.and_then(|line| line.keys().next().cloned()).as_ref(),
            Some(&key)
        );
        assert_eq!(list.revoke(&key.name).as_ref(), Some(&key));
        assert_eq!(list.lookup(&key.fingerprint), None);
    }
    assert_eq!(list.keys().count(), 0);
}

/// Any text as the list of names: it is refused with the number of one of its lines, or every name
/// of it is found, and nobody without one is.
pub fn authorized_names(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let list = match AuthorizedNames::parse(text) {
        Ok(list) => list,
        Err(bad) => {
            assert!((1..=text.split('\n').count()).contains(&bad.line));
            return;
        }
    };
    assert_eq!(list.lookup(&[]), None);
    for line in text.split('\n').map(str::trim_ascii) {
        let Some(name) = line.split_ascii_whitespace().next() else {
            continue;
        };
        let found = list.lookup(&[CertifiedName::Dns(name.to_owned())]);
        assert!(line.starts_with('#') || found.is_some_and(|found| found.name == name));
    }
}

/// Any bytes as a peer's certificate: no panic, and what the log shows of it is one short line.
pub fn certificate(bytes: &[u8]) {
    let Some(certificate) = PeerCertificate::of(&[CertificateDer::from(bytes)]) else {
        return;
    };
    if let Some(name) = certificate.shown_name() {
        assert!(!name.chars().any(char::is_control) && !certificate.names().is_empty());
    }
    let end = certificate.next_end(0);
    assert!(end.is_some_and(|end| certificate.next_end(end) == Some(end)));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    const NAMES: &str = "# hosts\ndb1.example.org push,read\n\nspiffe://example.org/db2 backup\n";

    #[test]
    fn names_and_certificates_hold_when_damaged() {
        super::authorized_names(NAMES.as_bytes());
        let key = rcgen::KeyPair::generate().unwrap();
        let names = vec!["db1.example.org".to_owned()];
        let parameters = rcgen::CertificateParams::new(names).unwrap();
        let certificate = parameters.self_signed(&key).unwrap().der().to_vec();
        super::certificate(&certificate);
        for at in 0..certificate.len() {
            super::certificate(&certificate[..at]);
            let mut damaged = certificate.clone();
            damaged[at] ^= 0x21;
            super::certificate(&damaged);
        }
    }

    const SEED: &str = "# masters\nSHA256:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8 db1 push\n\n\
                        SHA256:AQECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8 db2\n";

    #[test]
    fn the_seed_and_its_edges_hold() {
        for text in [SEED, "", "\n", "\n\n", "#", "\r", "# \n\n\n"] {
            super::authorized_keys(text.as_bytes());
        }
    }

    proptest! {
        #[test]
        fn authorized_keys_hold_on_a_damaged_list(at in 0..SEED.len(), byte: u8) {
            let mut bytes = SEED.as_bytes().to_vec();
            bytes[at] = byte;
            super::authorized_keys(&bytes);
        }

        #[test]
        fn authorized_keys_hold_on_any_bytes(bytes: Vec<u8>) {
            super::authorized_keys(&bytes);
            super::authorized_names(&bytes);
            super::certificate(&bytes);
        }

        #[test]
        fn authorized_names_hold_on_a_damaged_list(at in 0..NAMES.len(), byte: u8) {
            let mut bytes = NAMES.as_bytes().to_vec();
            bytes[at] = byte;
            super::authorized_names(&bytes);
        }
    }
}
