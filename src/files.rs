//! Small files that walmgr writes outside the archive: settings, keys, lists, stamps.
//! Never follows a symlink it did not resolve first, never leaves half a file under the final
//! name. Invariant: after a return of `Ok` the content survives a power cut.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, OFlags, Uid};

use crate::error::{CommandError, Result};

/// Creates `path` with this content; an existing file, or a symlink, is an error.
pub fn create_new(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .custom_flags(i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0))
        .open(path)?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    if let Err(error) = written {
        // The name was ours alone, so removing it cannot lose anybody's file.
        let _ = std::fs::remove_file(path);
        return Err(error);
    }
    sync_directory_of(path)
}

/// Creates a first ini file; an existing one is the operator's and stays.
pub fn create_settings(path: &Path, text: &str) -> Result<()> {
    create_new(path, text.as_bytes(), 0o640).map_err(|error| {
        let exists = error.kind() == io::ErrorKind::AlreadyExists;
        let hint = if exists {
            "choose another name, or edit the file that is there"
        } else {
            ""
        };
        CommandError::config(format!("write {}", path.display()))
            .because(error)
            .hint(hint)
    })
}

/// Replaces `path` by this content in one step, keeping its owner and mode if it exists.
///
/// A symlink is resolved first, so the link stays and the file it leads to is replaced.
pub fn replace(path: &Path, content: &[u8], mode_if_new: u32) -> io::Result<()> {
    let target = match std::fs::canonicalize(path) {
        Ok(target) => target,
        Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_path_buf(),
        Err(error) => return Err(error),
    };
    let old = match std::fs::metadata(&target) {
        Ok(metadata) => Some(metadata),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let temporary = temporary_beside(&target);
    let mode = old
        .as_ref()
        .map_or(mode_if_new, |metadata| metadata.mode() & 0o7777);
    create_new(&temporary, content, mode)?;
    let finish = || -> io::Result<()> {
        if let Some(metadata) = &old {
            let file = File::open(&temporary)?;
            rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
            let owner = Uid::from_raw(metadata.uid());
            let group = Gid::from_raw(metadata.gid());
            let new = file.metadata()?;
            if (new.uid(), new.gid()) != (metadata.uid(), metadata.gid()) {
                rustix::fs::fchown(&file, Some(owner), Some(group))?;
            }
        }
        std::fs::rename(&temporary, &target)?;
        sync_directory_of(&target)
    };
    finish().inspect_err(|_| {
        let _ = std::fs::remove_file(&temporary);
    })
}

fn temporary_beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.new", std::process::id()));
    path.with_file_name(name)
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn replacing_keeps_mode_and_leaves_nothing_beside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.conf");
        create_new(&path, b"one", 0o640).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o604)).unwrap();
        replace(&path, b"two", 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o604);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn fault_95_a_planted_symlink_is_not_written_through() {
        let folder = tempfile::tempdir().unwrap();
        let victim = folder.path().join("victim");
        std::fs::write(&victim, "precious").unwrap();
        let link = folder.path().join("key");
        std::os::unix::fs::symlink(&victim, &link).unwrap();
        assert!(create_new(&link, b"secret", 0o600).is_err());
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    }
}
