//! A path inside a backup set, as bytes, because PostgreSQL's files may have any name.
//! Never resolves anything. Invariant: every component is a name that leads one step down: not
//! empty, not `.` or `..`, without NUL and `/`.

use std::fmt;
use std::str::FromStr;

use super::InvalidName;
use crate::limits::{COMPONENT_BYTES_MAX, PATH_BYTES_MAX, PATH_DEPTH_MAX};

/// A path below the root of a backup set. It has one spelling, so two paths that differ in a byte
/// are two files wherever the file system does not fold names.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelativePath(Box<[u8]>);

impl RelativePath {
    /// Checks every component; a path that needs tidying up is refused, not tidied up.
    pub fn new(bytes: &[u8]) -> Result<Self, InvalidName> {
        let refuse = |expected| {
            Err(InvalidName::new(
                expected,
                &bytes.escape_ascii().to_string(),
            ))
        };
        if bytes.is_empty() {
            return refuse("a path with a name in it");
        }
        if bytes.len() > PATH_BYTES_MAX {
            return refuse("a path of at most 4096 bytes");
        }
        if bytes[0] == b'/' {
            return refuse("a path below the backup set");
        }
        let mut depth = 0;
        for component in bytes.split(|byte| *byte == b'/') {
            depth += 1;
            match component {
                b"" => return refuse("a path without empty components"),
                b"." | b".." => return refuse("a path without `.` and `..`"),
                _ if component.contains(&0) => return refuse("a path without NUL"),
                _ if component.len() > COMPONENT_BYTES_MAX => {
                    return refuse("a path with components of at most 255 bytes");
                }
                _ => {}
            }
        }
        if depth > PATH_DEPTH_MAX {
            return refuse("a path of at most 64 components");
        }
        Ok(RelativePath(bytes.into()))
    }

    /// Its bytes, components separated by `/`.
    pub const fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Its components, from the root down; there is at least one.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/')
    }

    /// The last component.
    pub fn file_name(&self) -> &[u8] {
        let begin = self.0.iter().rposition(|byte| *byte == b'/');
        &self.0[begin.map_or(0, |slash| slash + 1)..]
    }

    /// The path without its last component; `None` for a path directly below the root.
    pub fn parent(&self) -> Option<Self> {
        let slash = self.0.iter().rposition(|byte| *byte == b'/')?;
        Some(RelativePath(self.0[..slash].into()))
    }
}

impl fmt::Display for RelativePath {
    /// As text that fits a line: everything that is not printable ASCII is escaped.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for RelativePath {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "\"{self}\"")
    }
}

impl FromStr for RelativePath {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Self::new(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    #[test]
    fn paths_of_a_data_directory_are_read() {
        let path: RelativePath = "base/16384/PG_VERSION".parse().unwrap();
        assert_eq!(path.components().count(), 3);
        assert_eq!(path.file_name(), b"PG_VERSION");
        let parent = path.parent().unwrap();
        assert_eq!(parent.to_string(), "base/16384");
        assert_eq!(parent.parent().unwrap().parent(), None);
        assert_eq!(parent.parent().unwrap().file_name(), b"base");
    }

    #[test]
    fn fault_90_paths_that_lead_elsewhere_are_refused() {
        let long = "a".repeat(256);
        let longer = format!("{}b", "a/".repeat(2_048));
        let deep = "a/".repeat(64) + "a";
        for path in [
            "",
            "/",
            "/etc/passwd",
            ".",
            "..",
            "../a",
            "a/..",
            "a/../b",
            "./a",
            "a/.",
            "a//b",
            "a/",
            "a\0b",
            "a/\0",
            &long,
            &longer,
            &deep,
        ] {
            assert!(
                path.parse::<RelativePath>().is_err(),
                "{path:?} was accepted"
            );
        }
        assert!(deep[2..].parse::<RelativePath>().is_ok());
        assert!(long[1..].parse::<RelativePath>().is_ok());
    }

    #[test]
    fn fault_65_names_of_any_bytes_are_kept_and_shown_on_one_line() {
        let bytes = b"base/\xFF\n\\ \"x\"/...";
        let path = RelativePath::new(bytes).unwrap();
        assert_eq!(path.as_bytes(), bytes);
        assert_eq!(path.to_string(), r#"base/\xff\n\\ \"x\"/..."#);
    }

    proptest! {
        /// FAULTS 89, 90: whatever is accepted goes one step down with every component.
        #[test]
        fn fault_90_no_accepted_path_can_leave_the_root(
            bytes in vec(prop_oneof![
                4 => any::<u8>(), 3 => Just(b'/'), 3 => Just(b'.'), 1 => Just(0)], 0..40)
        ) {
            if let Ok(path) = RelativePath::new(&bytes) {
                prop_assert_eq!(path.as_bytes(), &bytes[..]);
                let components: Vec<&[u8]> = path.components().collect();
                prop_assert_eq!(components.join(&b'/'), bytes);
                for component in components {
                    prop_assert!(!component.is_empty() && component != b"." && component != b"..");
                    prop_assert!(!component.contains(&b'/') && !component.contains(&0));
                }
                prop_assert!(path.to_string().bytes().all(|byte| (b' '..=b'~').contains(&byte)));
            }
        }

        /// FAULTS 65: every name a Linux file system can hold is accepted and kept byte for byte.
        #[test]
        fn fault_65_every_file_name_is_accepted(
            names in vec(vec(any::<u8>().prop_filter("a name", |byte| ![0, b'/'].contains(byte)),
                1..=255), 1..5)
        ) {
            prop_assume!(names.iter().all(|name| ![&b"."[..], b".."].contains(&&name[..])));
            let joined = names.join(&b'/');
            let path = RelativePath::new(&joined).unwrap();
            prop_assert_eq!(path.as_bytes(), &joined[..]);
        }
    }
}
