//! The receiver's list of the names it knows in certificates of an authority: one `NAME [rights]` a line.
//! Never reads a list that somebody else could have written. Invariant: a name stands in it once at
//! most, and a certificate that has none of the names has no rights.
//!
//! A name is a DNS name or a URI (`spiffe://…`) among the certificate's alternative names, or its
//! common name where it has no such names. Patterns do not exist: a name means one peer.

use std::path::Path;

use crate::error::Result;

use super::authorized_keys::{BadLine, Rights, read_list, shortened, text_of};

/// Longest name: what DNS allows. URIs are no longer in practice.
const NAME_BYTES_MAX: usize = 253;

/// What a certificate calls its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CertifiedName {
    /// A host.
    Dns(String),
    /// A service, such as `spiffe://example.org/db1`.
    Uri(String),
    /// The common name of a certificate that has neither.
    Common(String),
}

impl CertifiedName {
    /// As the certificate has it.
    pub(crate) fn as_str(&self) -> &str {
        match self {
            CertifiedName::Dns(name) | CertifiedName::Uri(name) | CertifiedName::Common(name) => {
                name
            }
        }
    }

    fn is(&self, listed: &str) -> bool {
        match self {
            CertifiedName::Dns(name) => name.eq_ignore_ascii_case(listed),
            CertifiedName::Uri(name) => name == listed,
            // Otherwise an authority that checks URIs and no common names could be fooled.
            CertifiedName::Common(name) => name == listed && !listed.contains("://"),
        }
    }
}

/// One name of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AuthorizedName {
    /// As the certificate has it.
    pub name: String,
    /// What its holder may do.
    pub rights: Rights,
}

/// The whole list.
#[derive(Debug, Clone, Default)]
pub(crate) struct AuthorizedNames(Vec<AuthorizedName>);

impl AuthorizedNames {
    /// Reads the list; a file that is not there is a list of nobody.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let Some(content) = read_list(path)? else {
            return Ok(Self::default());
        };
        text_of(&content).and_then(Self::parse).map_err(|bad| {
            bad.of(path)
                .hint("a line is: NAME [push,backup,read,failover]")
        })
    }

    /// Reads a list from memory.
    pub(crate) fn parse(text: &str) -> Result<Self, BadLine> {
        let mut list = AuthorizedNames::default();
        for (index, text) in text.split_terminator('\n').enumerate() {
            let bad = |why: String| BadLine {
                line: index + 1,
                why,
            };
            let Some(entry) = parse_line(text).map_err(bad)? else {
                continue;
            };
            let is_known = |known: &AuthorizedName| known.name.eq_ignore_ascii_case(&entry.name);
            if list.0.iter().any(is_known) {
                return Err(bad(format!("{} is listed twice", entry.name)));
            }
            list.0.push(entry);
        }
        Ok(list)
    }

    /// The first line that one of a certificate's names is on.
    pub(crate) fn lookup(&self, names: &[CertifiedName]) -> Option<&AuthorizedName> {
        let is_on = |entry: &&AuthorizedName| names.iter().any(|name| name.is(&entry.name));
        self.0.iter().find(is_on)
    }
}

fn parse_line(text: &str) -> Result<Option<AuthorizedName>, String> {
    let text = text.trim_ascii();
    if text.is_empty() || text.starts_with('#') {
        return Ok(None);
    }
    let mut words = text.split_ascii_whitespace();
    let name = words.next().unwrap_or_default();
    if name.len() > NAME_BYTES_MAX || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("{:?} is no name", shortened(name)));
    }
    if name.contains('*') {
        return Err(format!("{name}: a name has no `*`, it means one peer"));
    }
    let rights = words.next().map(str::parse).transpose()?;
    if let Some(word) = words.next() {
        return Err(format!("{:?} after the rights", shortened(word)));
    }
    Ok(Some(AuthorizedName {
        name: name.to_owned(),
        rights: rights.unwrap_or_default(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dns(name: &str) -> CertifiedName {
        CertifiedName::Dns(name.to_owned())
    }

    #[test]
    fn fault_117_a_certificate_has_the_rights_of_the_line_it_is_on() {
        let text = "# masters\n\nDB1.example push\nspiffe://example.org/db2\r\ndb3 read\n";
        let list = AuthorizedNames::parse(text).unwrap();
        let rights = |name| list.lookup(&[dns("web"), name]).map(|found| found.rights);
        assert_eq!(rights(dns("db1.EXAMPLE")).unwrap().to_string(), "push");
        assert_eq!(rights(dns("www.example")), None);
        let uri = || "spiffe://example.org/db2".to_owned();
        assert_eq!(rights(CertifiedName::Uri(uri())), Some(Rights::default()));
        assert_eq!(rights(CertifiedName::Common(uri())), None);
        let common = CertifiedName::Common("db3".to_owned());
        assert_eq!(rights(common).unwrap().to_string(), "read");
        assert!(list.lookup(&[]).is_none());
    }

    #[test]
    fn fault_117_a_bad_line_of_names_is_refused_with_its_number() {
        for (text, line, word) in [
            ("a\nA push", 2, "twice"),
            ("*.example", 1, "one peer"),
            ("a write", 1, "not a right"),
            ("a push read", 1, "after the rights"),
            ("\u{e4}", 1, "no name"),
        ] {
            let bad = AuthorizedNames::parse(text).unwrap_err();
            assert_eq!(bad.line, line, "{bad}");
            assert!(bad.why.contains(word), "{bad}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("authorized_names");
        assert!(AuthorizedNames::load(&path).unwrap().0.is_empty());
        std::fs::write(&path, b"a\n\xff").unwrap();
        let error = AuthorizedNames::load(&path).unwrap_err().to_string();
        assert!(
            error.contains("authorized_names, line 2: not UTF-8"),
            "{error}"
        );
    }
}
