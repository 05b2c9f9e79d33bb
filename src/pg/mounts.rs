//! Which paths on this host are mount points, which nobody can rename or remove.
//! Never goes by device numbers: a bind mount may have its neighbour's. Invariant: a mount point of any
//! kind is seen, as long as `/proc` is mounted or the kernel answers `statx` (5.8 and later).

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};

use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;

/// What this process sees.
const MOUNT_TABLE: &str = "/proc/self/mountinfo";

/// What lies in the root of a file system and belongs to it: `fsck` puts there what it finds.
pub(crate) const LOST_AND_FOUND: &str = "lost+found";

/// Whether this directory is a mount point. The root counts as one, also of a `chroot`: nobody renames it.
pub(crate) fn is_mount_point(path: &Path) -> Result<bool> {
    let path = match path.canonicalize() {
        Ok(path) => path,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).at(Kind::Config, "examine", path),
    };
    if path.parent().is_none() {
        return Ok(true);
    }
    let is_root = StatxAttributes::MOUNT_ROOT;
    if let Ok(found) = statx(CWD, &path, AtFlags::empty(), StatxFlags::BASIC_STATS)
        && found.stx_attributes_mask.contains(is_root)
    {
        return Ok(found.stx_attributes.contains(is_root));
    }
    Ok(table()?.contains(&path))
}

/// The mount points below this directory.
pub(crate) fn below(directory: &Path) -> Result<Vec<PathBuf>> {
    let Ok(directory) = directory.canonicalize() else {
        return Ok(Vec::new());
    };
    let is_below = |path: &PathBuf| *path != directory && path.starts_with(&directory);
    Ok(table()?.into_iter().filter(is_below).collect())
}

/// Refuses a directory that is to be renamed although something is mounted within it: the mount would go
/// along, and after the next boot of the host it would hide what took the directory's place.
pub(crate) fn refuse_below(directory: &Path, remedy: &str) -> Result<()> {
    match below(directory)?.first() {
        None => Ok(()),
        Some(mount) => Err(CommandError::config(format!(
            "{} is a mount point within {}, which restore has to move aside",
            mount.display(),
            directory.display()
        ))
        .hint(remedy.replace("MOUNT", &mount.display().to_string()))),
    }
}

/// Refuses a mount point of another user: PostgreSQL starts from no such directory, and nobody can put one
/// of its own in the place.
pub(crate) fn refuse_foreign(path: &Path) -> Result<()> {
    if !is_mount_point(path)? {
        return Ok(());
    }
    let owner = path.metadata().at(Kind::Config, "examine", path)?.uid();
    let user = rustix::process::geteuid().as_raw();
    if owner == user {
        return Ok(());
    }
    let shown = path.display();
    Err(CommandError::config(format!(
        "{shown} is a mount point and belongs to another user (uid {owner}), so no server of uid {user} \
         starts from it"
    ))
    .hint(format!("sudo chown {user} {shown}")))
}

fn table() -> Result<Vec<PathBuf>> {
    let table = Path::new(MOUNT_TABLE);
    match files::read(table) {
        Ok(text) => Ok(parse(&text)),
        // A container without /proc: what `statx` says has to do.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).at(Kind::Config, "read", table),
    }
}

/// The fifth word of each line; the kernel writes blanks and backslashes as octal numbers.
fn parse(text: &[u8]) -> Vec<PathBuf> {
    let lines = text.split(|byte| *byte == b'\n');
    let words = lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    words
        .map(|word| PathBuf::from(OsString::from_vec(unescaped(word))))
        .collect()
}

fn unescaped(word: &[u8]) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::with_capacity(word.len()), word);
    while let Some((first, behind)) = rest.split_first() {
        let digits = behind
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match byte.filter(|_| *first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[3..];
            }
            None => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_129_the_mount_table_is_read_whatever_the_names_are() {
        let text = b"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            36 22 8:1 /pg /srv/my\\040data\\134x rw shared:1 - ext4 /dev/sda1 rw\n\
            37 22 0:5 / /srv/\\04 rw - tmpfs tmpfs rw\nshort line\n\n";
        let found = parse(text);
        assert_eq!(
            found,
            ["/", "/srv/my data\\x", "/srv/\\04"].map(PathBuf::from)
        );
    }

    #[test]
    fn fault_129_the_root_is_a_mount_point_and_a_new_directory_is_none() {
        let home = tempfile::tempdir().unwrap();
        assert!(is_mount_point(Path::new("/")).unwrap());
        assert!(!is_mount_point(home.path()).unwrap());
        assert!(!is_mount_point(&home.path().join("absent")).unwrap());
        assert_eq!(below(home.path()).unwrap(), [""; 0].map(PathBuf::from));
        assert!(
            below(Path::new("/"))
                .unwrap()
                .contains(&PathBuf::from("/proc"))
        );
    }
}
