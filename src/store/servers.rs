//! The data directories on this host whose servers ask this archive for WAL.
//! Never says which WAL a server needs, and never removes any. Invariant: a directory is noted before its
//! server is handed its first file, so no purge has to know it from settings, which change.
//!
//! # On disk
//!
//! `completed_wals/.servers/NAME`: the absolute path of one directory, as bytes. NAME is the CRC-32C of the
//! path and then its CRC-32, 16 hexadecimal digits, so the same directory is noted once and a note that is
//! not what was written is known as such. Notes stay, but for a drill's: one of a directory that is gone costs a purge one look.
//!
//! # What a crash leaves
//!
//! A note whose directory does not exist yet, which needs nothing.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::error::StoreError;
use super::folder::Folder;
use super::reader::ArchiveReader;

const SERVERS_NAME: &str = ".servers";

/// Linux has no longer path.
const PATH_BYTES_MAX: usize = 4096;

/// One note.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Noted {
    /// A server's data directory.
    Directory(PathBuf),
    /// A note that nobody can read any more; where it lies.
    Damaged(PathBuf),
}

impl ArchiveReader {
    /// Notes that the server in this directory asks for WAL from here, unless that is known.
    pub fn note_server(&self, data: &Path) -> Result<(), StoreError> {
        let path = data.as_os_str().as_bytes();
        let name = name_of(path);
        if let Some(folder) = self.completed.below(SERVERS_NAME)?
            && folder.read_small(&name, PATH_BYTES_MAX)?.as_deref() == Some(path)
        {
            return Ok(());
        }
        self.completed.make_below(SERVERS_NAME)?;
        match self.completed.below(SERVERS_NAME)? {
            Some(folder) => folder.write_small(&name, path),
            None => Ok(()),
        }
    }

    /// Takes the note of a server back that was for a while and is about to be removed.
    pub fn forget_server(&self, data: &Path) -> Result<(), StoreError> {
        match self.completed.below(SERVERS_NAME)? {
            Some(folder) => folder.remove(&name_of(data.as_os_str().as_bytes())),
            None => Ok(()),
        }
    }
}

impl ArchiveReader {
    /// The directories that are noted and can be read.
    pub(crate) fn servers(&self) -> Result<Vec<PathBuf>, StoreError> {
        let found = noted(&self.completed)?.into_iter();
        Ok(found
            .filter_map(|note| match note {
                Noted::Directory(path) => Some(path),
                Noted::Damaged(_) => None,
            })
            .collect())
    }
}

/// Every directory that is noted.
pub(super) fn noted(completed: &Folder) -> Result<Vec<Noted>, StoreError> {
    let Some(folder) = completed.below(SERVERS_NAME)? else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for name in folder.names()? {
        if name.len() != 16 || !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            continue;
        }
        let Some(path) = folder.read_small(&name, PATH_BYTES_MAX)? else {
            continue;
        };
        found.push(match name_of(&path) == name {
            true => Noted::Directory(OsString::from_vec(path).into()),
            false => Noted::Damaged(folder.path().join(name)),
        });
    }
    Ok(found)
}

fn name_of(path: &[u8]) -> String {
    format!("{:08x}{:08x}", crc32c::crc32c(path), crc32fast::hash(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{new_archive, real, scratch_folder};

    #[test]
    fn a_directory_is_noted_once_and_a_flipped_note_is_known_as_damaged() {
        let scratch = scratch_folder();
        let completed = new_archive(scratch.path()).completed_wals;
        let archive = ArchiveReader::open(&completed, real()).unwrap();
        assert_eq!(noted(&archive.completed).unwrap(), []);
        let odd = OsString::from_vec(b"/srv/\xff\n16/main".to_vec());
        for path in [Path::new("/srv/pg"), Path::new(&odd), Path::new("/srv/pg")] {
            archive.note_server(path).unwrap();
        }
        let mut found = noted(&archive.completed).unwrap();
        found.sort_by_key(|note| format!("{note:?}"));
        let expected = [PathBuf::from("/srv/pg"), PathBuf::from(odd)];
        let mut expected = expected.map(Noted::Directory);
        expected.sort_by_key(|note| format!("{note:?}"));
        assert_eq!(found, expected);

        let note = completed.join(SERVERS_NAME).join(name_of(b"/srv/pg"));
        std::fs::write(&note, "/srv/pf").unwrap();
        let found = noted(&archive.completed).unwrap();
        assert!(found.contains(&Noted::Damaged(note)), "{found:?}");
        // Whoever asks again puts it right.
        archive.note_server(Path::new("/srv/pg")).unwrap();
        let found = noted(&archive.completed).unwrap();
        assert!(
            found.contains(&Noted::Directory("/srv/pg".into())),
            "{found:?}"
        );
    }
}
