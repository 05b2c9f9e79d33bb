//! Fuzz bodies of this module, as functions so that they are compiled and run with the tests.
//! Never does IO. Invariant: they panic only where the code under test broke a promise.

use super::authorized_keys::AuthorizedKeys;

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
        }
    }
}
