//! `~/.pgpass`: the password of a host, port, database and user.
//! Never uses a file that others may read. Invariant: the first line that fits counts.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What a line has to fit: spellings of the host, port, database, user.
pub type Wanted = [Vec<String>; 4];

/// The password in this file, if it is private and has one.
pub fn from_file(file: &Path, wanted: &Wanted) -> Option<String> {
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
    let text = super::read_file(file).ok()?;
    let text = String::from_utf8_lossy(&text);
    text.lines().find_map(|line| of_line(line, wanted))
}

/// `host:port:database:user:password`, each may be `*`; colons and backslashes are escaped by a
/// backslash.
pub(super) fn of_line(line: &str, wanted: &Wanted) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let mut fields = vec![String::new()];
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            ':' if fields.len() < 5 => {
                fields.push(String::new());
                continue;
            }
            '\\' => fields.last_mut()?.extend(letters.next()),
            letter => fields.last_mut()?.push(letter),
        }
    }
    let password = fields.get(4)?.clone();
    let fits = |(field, wanted): (&String, &Vec<String>)| field == "*" || wanted.contains(field);
    fields.iter().zip(wanted).all(fits).then_some(password)
}
