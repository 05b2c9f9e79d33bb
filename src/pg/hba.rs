//! `pg_hba.conf`: which lines let in somebody whom another file does not.
//! Never decides who may come in. Invariant: a line that is not in the other file, word for word, is
//! told, and so is one that includes a file.

use std::collections::BTreeSet;

/// Methods that let nobody in.
const REJECT: &str = "reject";

/// The lines of `foreign` that `own` does not have; with no `own`, those that reach beyond the host
/// or ask for no proof from there.
pub(crate) fn wider(foreign: &[u8], own: Option<&[u8]>) -> Vec<String> {
    let known: BTreeSet<String> = own.map(|own| entries(own).collect()).unwrap_or_default();
    let is_wider = |entry: &String| match own {
        Some(_) => !known.contains(entry),
        None => !is_of_this_host(entry),
    };
    entries(foreign).filter(is_wider).collect()
}

/// Lines in force, without comments, a blank between words; those that refuse somebody are left out.
fn entries(text: &[u8]) -> impl Iterator<Item = String> {
    let text = String::from_utf8_lossy(text).into_owned();
    // A backslash at the end of a line continues it.
    let text = text.replace("\\\r\n", " ").replace("\\\n", " ");
    let entries: Vec<String> = (text.lines())
        .map(|line| line.split('#').next().unwrap_or_default())
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        // The method is the last word of a line that refuses; anywhere else it is somebody's name.
        .filter(|line| !line.is_empty() && line.rsplit(' ').next() != Some(REJECT))
        .collect();
    entries.into_iter()
}

fn is_of_this_host(entry: &str) -> bool {
    let words: Vec<&str> = entry.split(' ').collect();
    let local = ["127.0.0.1/32", "::1/128", "samehost", "localhost"];
    match words.first() {
        Some(&"local") => true,
        // A list may go on behind a blank: then the address is not where it seems to be.
        Some(kind) if kind.starts_with("host") && !entry.contains(',') => {
            words.get(3).is_some_and(|address| local.contains(address))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_112_lines_that_let_more_in_are_told() {
        let own = b"local all all peer\nhost all all 10.0.0.0/8 scram-sha-256\n";
        let foreign = b"# TYPE\nlocal   all\tall peer # mine\nhost all all 0.0.0.0/0 trust\n\
            host all all 1.2.3.4/32 reject\ninclude /tmp/more\nhost all \\\n all 10.0.0.0/8 scram-sha-256\n";
        let expected = ["host all all 0.0.0.0/0 trust", "include /tmp/more"];
        assert_eq!(wider(foreign, Some(own)), expected);
        let first =
            b"local all all trust\nhost all all 127.0.0.1/32 trust\nhost all all ::/0 md5\n";
        assert_eq!(wider(first, None), ["host all all ::/0 md5"]);
        assert_eq!(wider(b"", None), [""; 0]);
        for disguised in [
            "host all all, reject 0.0.0.0/0 trust",
            "host reject all ::/0 md5",
            "host all all, 127.0.0.1/32 0.0.0.0/0 trust",
        ] {
            assert_eq!(wider(disguised.as_bytes(), Some(own)), [disguised]);
            assert_eq!(wider(disguised.as_bytes(), None), [disguised]);
        }
    }
}
