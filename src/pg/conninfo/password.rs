//! `~/.pgpass`: the password of a host, port, database and user.
//! Never uses a file that others may read. Invariant: the first line that fits counts, and a line
//! fits where libpq (`passwordFromFile`, `src/interfaces/libpq/fe-connect.c`) finds that it does.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What a line has to fit: spellings of the host, port, database, user.
pub(super) type WantedServer = [Vec<String>; 4];

/// The password in this file, if it is private and has one.
pub(super) fn from_file(file: &Path, wanted: &WantedServer) -> Option<Vec<u8>> {
    let metadata = std::fs::metadata(file).ok()?;
    if !metadata.is_file() {
        tracing::warn!("ignored {}: it is not a file", file.display());
        return None;
    }
    if metadata.mode() & 0o077 != 0 {
        tracing::warn!(
            "ignored {}: others may read it; chmod 600 helps",
            file.display()
        );
        return None;
    }
    match super::read_file(file) {
        Ok(text) => text
            .split(|byte| *byte == b'\n')
            .find_map(|line| of_line(line, wanted)),
        Err(error) => {
            tracing::warn!("ignored {}: {error}", file.display());
            None
        }
    }
}

/// `host:port:database:user:password`, each may be `*`; colons and backslashes are escaped by a
/// backslash.
pub(super) fn of_line(line: &[u8], wanted: &WantedServer) -> Option<Vec<u8>> {
    if line.starts_with(b"#") {
        return None;
    }
    let ends = line.iter().rposition(|byte| !b"\r\n".contains(byte))?;
    let mut rest = &line[..=ends];
    for spellings in wanted {
        rest = spellings
            .iter()
            .find_map(|it| behind(rest, it.as_bytes()))?;
    }
    let mut password = Vec::new();
    while let [first, left @ ..] = rest {
        rest = left;
        match first {
            // What follows a fifth colon is for fields that nobody has thought of yet.
            b':' => break,
            b'\\' if let [escaped, left @ ..] = rest => {
                password.push(*escaped);
                rest = left;
            }
            byte => password.push(*byte),
        }
    }
    Some(password)
}

/// What follows the field, if it fits: `pwdfMatchesString`. Only a bare `*` stands for everything,
/// and a colon of what is wanted, as in `::1`, needs no backslash.
fn behind<'a>(line: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    if let Some(rest) = line.strip_prefix(b"*:") {
        return Some(rest);
    }
    let (mut line, mut wanted) = (line, wanted);
    loop {
        if wanted.is_empty() {
            return line.strip_prefix(b":");
        }
        let escaped = line.strip_prefix(b"\\").unwrap_or(line);
        let (found, left) = escaped.split_first()?;
        let (expected, to_come) = wanted.split_first()?;
        if found != expected {
            return None;
        }
        (line, wanted) = (left, to_come);
    }
}
