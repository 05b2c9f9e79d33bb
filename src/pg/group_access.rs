//! Group access to a data directory (`initdb -g`): how a set says of it, and giving it back.
//! Never widens what the master's own file keeps from its group. Invariant: modes come from here, and not from
//! the umask of whoever made the files.
//!
//! PostgreSQL goes by the mode of the data directory alone (`checkDataDir`), which a set cannot carry: the
//! note in it does, one line for each file that the group may not read.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use walmgr_protocol::limits::SMALL_FILE_BYTES_MAX;
use walmgr_protocol::names::RelativePath;

use super::conf::brought;
use super::mounts::LOST_AND_FOUND;
use crate::files;

/// The note in a set of a cluster with group access. PostgreSQL does not look at it.
pub(crate) const NOTE: &str = "walmgr_group_access";

/// What the group may do in a directory, and with a file.
const DIRECTORY_MODE: u32 = 0o750;
const FILE_MODE: u32 = 0o640;

/// What its group has to have of a data directory with group access.
const GROUP_BITS: u32 = 0o050;

/// What is not the cluster's: files that a backup brought along, which may be keys, and the file system's own.
const KEPT_CLOSED: [&str; 2] = [brought::FOLDER, LOST_AND_FOUND];

/// A tree that is deeper is none of PostgreSQL's.
const DEPTH_MAX: usize = 64;

/// Whether a data directory of this mode has group access.
pub(crate) const fn is_granted(mode: u32) -> bool {
    mode & GROUP_BITS == GROUP_BITS
}

/// The note; `None` if it names more files than a small file can.
pub(crate) fn note(private: &[RelativePath]) -> Option<Vec<u8>> {
    let mut text = b"files that the group may not read:\n".to_vec();
    for path in private {
        text.extend_from_slice(path.as_bytes());
        text.push(b'\n');
    }
    (text.len() as u64 <= SMALL_FILE_BYTES_MAX).then_some(text)
}

/// Gives what lies in `root`, and in its tablespaces elsewhere, the modes that the note in it says; nothing
/// without a note. Links are not followed.
pub(crate) fn apply(root: &Path, spaces: &[PathBuf]) -> io::Result<bool> {
    let text = match files::read_at_most(&root.join(NOTE), SMALL_FILE_BYTES_MAX) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    let lines = text.split(|byte| *byte == b'\n').skip(1);
    let private: HashSet<PathBuf> = lines
        .filter(|line| !line.is_empty())
        .map(|line| PathBuf::from(OsString::from_vec(line.to_vec())))
        .collect();
    for tree in spaces.iter().map(PathBuf::as_path).chain([root]) {
        grant(tree, Path::new(""), &private, DEPTH_MAX)?;
    }
    Ok(true)
}

fn grant(
    directory: &Path,
    below: &Path,
    private: &HashSet<PathBuf>,
    depth_left: usize,
) -> io::Result<()> {
    let depth_left =
        (depth_left.checked_sub(1)).ok_or_else(|| io::Error::other("it is too deep"))?;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let (kind, below) = (entry.file_type()?, below.join(entry.file_name()));
        if KEPT_CLOSED.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        if kind.is_dir() {
            grant(&entry.path(), &below, private, depth_left)?;
        } else if kind.is_file() && !private.contains(&below) {
            fs::set_permissions(entry.path(), Permissions::from_mode(FILE_MODE))?;
        }
    }
    fs::set_permissions(directory, Permissions::from_mode(DIRECTORY_MODE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_136_the_group_reads_all_but_what_the_note_names() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("set");
        fs::create_dir_all(root.join("base/1")).unwrap();
        for name in ["server.key", "base/1/1259"] {
            fs::write(root.join(name), "").unwrap();
            fs::set_permissions(root.join(name), Permissions::from_mode(0o600)).unwrap();
        }
        assert!(!apply(&root, &[]).unwrap());
        let note = note(&["server.key".parse().unwrap()]).unwrap();
        fs::write(root.join(NOTE), note).unwrap();
        assert!(apply(&root, &[]).unwrap());
        let mode = |name: &str| root.join(name).metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("server.key"), mode("base/1/1259")), (0o600, 0o640));
        assert_eq!((mode("base/1"), mode("")), (0o750, 0o750));
        assert!(is_granted(0o40750) && !is_granted(0o40700) && !is_granted(0o40740));
        let many = vec!["x".repeat(200).parse().unwrap(); 1 << 20];
        assert!(super::note(&many).is_none());
    }
}
