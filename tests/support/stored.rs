//! Finished files as a test sees them, whichever form they are stored in.
//! Never goes through the program's own reader. Invariant: what `content` returns is what `zstd -d` of the stored file
//! would print.

use std::path::{Path, PathBuf};

use super::place::give_to_server;

/// Where the file of this name lies in `completed_wals`; where it would lie as it is, if it is not there.
pub fn path(completed_wals: &Path, name: &str) -> PathBuf {
    let packed = completed_wals.join(format!("{name}.zst"));
    match packed.exists() {
        true => packed,
        false => completed_wals.join(name),
    }
}

/// What it holds; panics if it is not there.
pub fn content(completed_wals: &Path, name: &str) -> Vec<u8> {
    let path = path(completed_wals, name);
    read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What a file holds that its name says to be packed or not.
pub fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let stored = std::fs::read(path)?;
    match path.extension().is_some_and(|end| end == "zst") {
        true => zstd::stream::decode_all(&stored[..]),
        false => Ok(stored),
    }
}

/// Unpacks it where it lies, as `zstd -d --rm` would, and says where that is.
pub fn unpack(completed_wals: &Path, name: &str) -> PathBuf {
    let (stored, plain) = (path(completed_wals, name), completed_wals.join(name));
    if stored != plain {
        std::fs::write(&plain, read(&stored).unwrap()).unwrap();
        give_to_server(&plain);
        std::fs::remove_file(stored).unwrap();
    }
    plain
}

/// Unpacks all of them, for a server or a program that reads plain files only.
pub fn unpack_all(completed_wals: &Path) {
    for entry in std::fs::read_dir(completed_wals).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if let Some(name) = name.strip_suffix(".zst") {
            unpack(completed_wals, name);
        }
    }
}
