//! `tablespace_map`: which directory each link of `pg_tblspc` leads to.
//! Never reads a file. Invariant: a path comes out of a map as it went in, whatever bytes it has.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// One line of the map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedTablespace {
    /// Its OID, the name of the link.
    pub oid: u32,
    /// The directory that the link leads to.
    pub location: PathBuf,
}

/// Why bytes are not a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MapFault {
    /// The last line has no end, so the others may be missing.
    #[error("its last line is cut")]
    Cut,
    /// A line is not an OID, a space and a path.
    #[error("its line {0} is not an OID and a directory")]
    Line(usize),
    /// A link can lead to one directory only.
    #[error("it has tablespace {0} twice")]
    Twice(u32),
}

/// How a server writes a path with bytes that would end the line
/// (`do_pg_start_backup` in `src/backend/access/transam/xlog.c`, `do_pg_backup_start` from 15 on).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Escaping {
    /// A backslash before newline and carriage return; other backslashes stand for themselves.
    LineEnds,
    /// A backslash before newline, carriage return and backslash.
    LineEndsAndBackslashes,
}

/// Reads the map that a server of this major version returned.
pub fn parse(bytes: &[u8], major: u8) -> Result<Vec<MappedTablespace>, MapFault> {
    let escaping = Escaping::of(major);
    let mut tablespaces: Vec<MappedTablespace> = Vec::new();
    let mut oids = std::collections::HashSet::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let number = tablespaces.len() + 1;
        let line = escaping.take_line(&mut rest).ok_or(MapFault::Cut)?;
        let space = line.iter().position(|byte| *byte == b' ');
        let (name, location) = line.split_at(space.ok_or(MapFault::Line(number))?);
        let oid = oid_of(name).ok_or(MapFault::Line(number))?;
        // A path has no NUL, and the server refuses an empty one.
        if location.len() < 2 || location.contains(&0) {
            return Err(MapFault::Line(number));
        }
        if !oids.insert(oid) {
            return Err(MapFault::Twice(oid));
        }
        tablespaces.push(MappedTablespace {
            oid,
            location: PathBuf::from(OsString::from_vec(location[1..].to_vec())),
        });
    }
    Ok(tablespaces)
}

/// The map as a server of this major version writes and reads it.
pub fn to_bytes(tablespaces: &[MappedTablespace], major: u8) -> Vec<u8> {
    let escaping = Escaping::of(major);
    let mut bytes = Vec::new();
    for tablespace in tablespaces {
        bytes.extend_from_slice(format!("{} ", tablespace.oid).as_bytes());
        for byte in tablespace.location.as_os_str().as_bytes() {
            if escaping.escapes(*byte) {
                bytes.push(b'\\');
            }
            bytes.push(*byte);
        }
        bytes.push(b'\n');
    }
    bytes
}

/// The OID that a name in `pg_tblspc` or `base` stands for: a number in its only spelling.
pub fn oid_of(name: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(name).ok()?;
    let oid: u32 = text.parse().ok()?;
    (oid > 0 && oid.to_string() == text).then_some(oid)
}

impl Escaping {
    const fn of(major: u8) -> Escaping {
        match major {
            ..=13 => Escaping::LineEnds,
            _ => Escaping::LineEndsAndBackslashes,
        }
    }

    const fn escapes(self, byte: u8) -> bool {
        match byte {
            b'\n' | b'\r' => true,
            b'\\' => matches!(self, Escaping::LineEndsAndBackslashes),
            _ => false,
        }
    }

    /// The next line without its end and its escapes, or `None` when it has no end. A backslash
    /// before a byte that needs none disappears in newer servers and stays in 13.
    fn take_line(self, rest: &mut &[u8]) -> Option<Vec<u8>> {
        let mut line = Vec::new();
        let mut at = 0;
        while let Some(byte) = rest.get(at) {
            let next = rest.get(at + 1);
            let is_escape = match self {
                Escaping::LineEnds => next.is_some_and(|next| self.escapes(*next)),
                Escaping::LineEndsAndBackslashes => true,
            };
            match byte {
                b'\\' if is_escape => {
                    line.push(*next?);
                    at += 2;
                }
                b'\n' => {
                    *rest = &rest[at + 1..];
                    return Some(line);
                }
                byte => {
                    line.push(*byte);
                    at += 1;
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn tablespace(oid: u32, location: &[u8]) -> MappedTablespace {
        MappedTablespace {
            oid,
            location: PathBuf::from(OsString::from_vec(location.to_vec())),
        }
    }

    #[test]
    fn a_map_of_two_tablespaces_is_read() {
        let map = b"16385 /srv/a\n16390 /srv/with space\n";
        let expected = [
            tablespace(16385, b"/srv/a"),
            tablespace(16390, b"/srv/with space"),
        ];
        for major in 13..=18 {
            assert_eq!(parse(map, major).unwrap(), expected);
            assert_eq!(to_bytes(&expected, major), map);
            assert_eq!(parse(b"", major).unwrap(), []);
        }
    }

    #[test]
    fn backslashes_are_escaped_from_14_on() {
        let odd = [tablespace(1, b"/a\\b\nc\rd\\")];
        assert_eq!(to_bytes(&odd, 13), b"1 /a\\b\\\nc\\\rd\\\n");
        assert_eq!(to_bytes(&odd, 14), b"1 /a\\\\b\\\nc\\\rd\\\\\n");
        assert_eq!(parse(&to_bytes(&odd, 14), 14).unwrap(), odd);
    }

    #[test]
    fn what_no_server_writes_is_refused() {
        for (map, fault) in [
            (&b"16385 /srv/a"[..], MapFault::Cut),
            (b"16385 /srv/a\\", MapFault::Cut),
            (b"1 /a\nx /b\n", MapFault::Line(2)),
            (b"1 /a\n1 /b\n", MapFault::Twice(1)),
            (b"0 /a\n", MapFault::Line(1)),
            (b"01 /a\n", MapFault::Line(1)),
            (b"1 \n", MapFault::Line(1)),
            (b"1\n", MapFault::Line(1)),
            (b"\n", MapFault::Line(1)),
            (b"1 /a\0b\n", MapFault::Line(1)),
        ] {
            assert_eq!(parse(map, 15), Err(fault), "{}", map.escape_ascii());
        }
    }

    #[test]
    fn only_the_plain_spelling_of_a_number_is_an_oid() {
        assert_eq!(oid_of(b"16385"), Some(16385));
        assert_eq!(oid_of(b"4294967295"), Some(u32::MAX));
        for name in ["", "0", "016385", "+1", "1a", " 1", "4294967296"] {
            assert_eq!(oid_of(name.as_bytes()), None, "{name}");
        }
        assert_eq!(oid_of(&[0xFF]), None);
    }

    proptest! {
        #[test]
        fn fault_65_paths_of_any_bytes_come_back_exactly(
            locations in vec(vec(prop_oneof![1..=255_u8, Just(b'\\'), Just(b'\n')], 1..40), 0..5),
            major in 13..=18_u8,
        ) {
            let mut tablespaces = Vec::new();
            for (oid, mut location) in (1..).zip(locations) {
                // 13 cannot tell a backslash at the end from an escape, nor read its own map.
                if major == 13 {
                    location.retain(|byte| *byte != b'\\');
                    location.push(b'x');
                }
                tablespaces.push(tablespace(oid, &location));
            }
            prop_assert_eq!(parse(&to_bytes(&tablespaces, major), major), Ok(tablespaces));
        }
    }
}
