//! Moves directories' content and links about, below paths that a restore owns.
//! Never follows a link that it moves. Invariant: an entry is under its old path or, whole and
//! durable, under its new one; doing it again goes on where it was interrupted.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::error::{IoContext, Kind, Result};
use crate::files;
use crate::pg::layout;
use crate::pg::mounts::LOST_AND_FOUND;

/// What is appended to the name of an entry while it is being copied.
const COPYING: &str = ".restoring";

/// The names in a directory, but for what belongs to the file system that is mounted there.
pub(crate) fn entries(directory: &Path) -> io::Result<Vec<OsString>> {
    let names = std::fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name()));
    let mut names: Vec<OsString> = names.collect::<io::Result<_>>()?;
    names.retain(|name| name != LOST_AND_FOUND);
    Ok(names)
}

/// Moves every entry of one directory into another one.
pub(crate) fn move_entries(from: &Path, to: &Path) -> Result<()> {
    for name in entries(from).at(Kind::Retry, "list", from)? {
        move_entry(&from.join(&name), &to.join(&name))?;
    }
    Ok(())
}

fn move_entry(from: &Path, to: &Path) -> Result<()> {
    // What is there is from an attempt that was killed before it had removed the original.
    files::remove_any(to)?;
    match files::move_to(from, to) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::XDEV) => {}
        other => return other.at(Kind::Retry, "move", from),
    }
    let mut copy = to.as_os_str().to_owned();
    copy.push(COPYING);
    let copy = PathBuf::from(copy);
    files::remove_any(&copy)?;
    copy_durably(from, &copy)?;
    files::move_to(&copy, to).at(Kind::Retry, "move into place", to)?;
    files::remove_any(from)
}

fn copy_durably(from: &Path, to: &Path) -> Result<()> {
    let kind = from.symlink_metadata().at(Kind::Retry, "examine", from)?;
    if !kind.is_dir() {
        return files::copy(from, to).at(Kind::Retry, "copy", from);
    }
    files::make_directory(to)?;
    for name in entries(from).at(Kind::Retry, "list", from)? {
        copy_durably(&from.join(&name), &to.join(&name))?;
    }
    files::sync_directory(to).at(Kind::Retry, "sync", to)
}

/// Removes everything in a directory, which stays.
pub(crate) fn remove_entries(directory: &Path) -> Result<()> {
    let names = match entries(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.at(Kind::Retry, "list", directory)?,
    };
    for name in names {
        files::remove_any(&directory.join(name))?;
    }
    Ok(())
}

/// Where the links in a directory lead; none if there is no such directory.
pub(crate) fn link_targets(directory: &Path) -> Result<Vec<PathBuf>> {
    let names = match entries(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.at(Kind::Retry, "list", directory)?,
    };
    let targets = names
        .iter()
        .filter_map(|name| std::fs::read_link(directory.join(name)).ok());
    Ok(targets.collect())
}

/// Makes the links of a data directory that was moved lead to where the old ones led, where
/// that is below `from`.
pub(crate) fn relink(data: &Path, from: &Path, to: &Path) -> Result<()> {
    let spaces = data.join(layout::PG_TBLSPC);
    let names = match entries(&spaces) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other.at(Kind::Retry, "list", &spaces)?,
    };
    let mut links: Vec<PathBuf> = names.iter().map(|name| spaces.join(name)).collect();
    links.push(data.join(layout::PG_WAL));
    for link in links {
        let target = std::fs::read_link(&link).ok();
        let below = target
            .as_ref()
            .and_then(|target| target.strip_prefix(from).ok());
        if let Some(below) = below {
            let target = match below.as_os_str().is_empty() {
                true => to.to_path_buf(),
                false => to.join(below),
            };
            files::link(&link, &target).at(Kind::Retry, "link", &link)?;
        }
    }
    Ok(())
}
