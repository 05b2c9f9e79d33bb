//! A directory that cannot be renamed, as it is a mount point: its content changes places inside it.
//! Never touches what has one of the names below but as that says, nor `lost+found`. Invariant: wherever it
//! is killed, PostgreSQL starts from nothing half done, and each name tells what is in it.
//!
//! ```text
//! walmgr.restoring/   the set while it is prepared, as data.restoring is elsewhere
//! walmgr.aside/       what was here, on its way out: global first, so that no server starts from the rest
//! walmgr.old.N/       the same, complete; walmgr.removing/ if it is not to be kept
//! walmgr.entering/    walmgr.restoring once the way is free: what is not in it any more is in place
//! ```

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::transfer::{self, entries};
use super::{Occupant, SetOrigin, control_names, exists, free_name, remove_old};
use crate::error::{IoContext, Kind, Result};
use crate::files;
use crate::pg::data_directory::DataDirectory;
use crate::pg::layout;
use crate::pg::needs::{ENTERING_WITHIN, RESTORING_WITHIN, WITHIN_PREFIX};

/// Where a set is prepared.
pub(crate) fn staging(mount: &Path) -> PathBuf {
    mount.join(RESTORING_WITHIN)
}

fn entering(mount: &Path) -> PathBuf {
    mount.join(ENTERING_WITHIN)
}

fn aside(mount: &Path) -> PathBuf {
    mount.join(format!("{WITHIN_PREFIX}aside"))
}

/// Where what is not to be kept lies until it is removed.
pub(crate) fn removing(mount: &Path) -> PathBuf {
    mount.join(format!("{WITHIN_PREFIX}removing"))
}

/// What there is but for names of this room.
fn own_entries(mount: &Path) -> Result<Vec<OsString>> {
    let mut names = entries(mount).at(Kind::Config, "list", mount)?;
    names.retain(|name| {
        !name
            .as_encoded_bytes()
            .starts_with(WITHIN_PREFIX.as_bytes())
    });
    names.sort_by_key(|name| (name != layout::GLOBAL, name.clone()));
    Ok(names)
}

/// What there is in a data directory that is a mount point.
pub(crate) fn occupant(mount: &Path) -> Result<Occupant> {
    let places = [mount.to_path_buf(), entering(mount)];
    let [is_moved, is_copied, is_whole] = control_names(&places)?;
    if exists(&places[1])? || !is_whole && (is_moved || is_copied) {
        // What nobody can tell is not thrown away.
        return Ok(Occupant::Unfinished(match is_copied && !is_moved {
            true => SetOrigin::Copied,
            false => SetOrigin::Moved,
        }));
    }
    if own_entries(mount)?.is_empty() || (exists(&aside(mount))? && !is_whole) {
        return Ok(Occupant::Empty);
    }
    DataDirectory::open(mount)?;
    Ok(Occupant::Old)
}

/// Moves what is in the directory to one inside it; `None` if there was nothing.
pub(crate) fn make_way(mount: &Path, keep_old: bool) -> Result<Option<PathBuf>> {
    let aside = aside(mount);
    let names = own_entries(mount)?;
    if names.is_empty() && !exists(&aside)? {
        return Ok(None);
    }
    files::make_directory(&aside)?;
    for name in names {
        let from = mount.join(&name);
        files::move_to(&from, &aside.join(&name)).at(Kind::Retry, "move aside", &from)?;
    }
    let old = match keep_old {
        true => free_name(&mount.join(format!("{WITHIN_PREFIX}old")))?,
        false => removing(mount),
    };
    if !keep_old {
        remove_old(&old)?;
    }
    transfer::relink(&aside, mount, &old)?;
    files::move_to(&aside, &old).at(Kind::Retry, "move aside", &aside)?;
    if keep_old {
        tracing::info!(
            "the old content of {} is now in {}",
            mount.display(),
            old.display()
        );
    }
    Ok(Some(old))
}

/// Moves what was prepared into the directory, which is free.
pub(crate) fn enter(mount: &Path) -> Result<()> {
    let (staging, entering) = (staging(mount), entering(mount));
    let mode = staging.metadata().at(Kind::Retry, "examine", &staging)?;
    let mode = PermissionsExt::from_mode(mode.permissions().mode() & 0o7777);
    files::move_to(&staging, &entering).at(Kind::Retry, "move into place", mount)?;
    for name in entries(&entering).at(Kind::Retry, "list", &entering)? {
        let from = entering.join(&name);
        files::move_to(&from, &mount.join(&name)).at(Kind::Retry, "move into place", &from)?;
    }
    files::remove_any(&entering)?;
    std::fs::set_permissions(mount, mode).at(Kind::Retry, "change the mode of", mount)?;
    files::sync_directory(mount).at(Kind::Retry, "sync", mount)
}

/// Undoes [`enter`], wherever it was interrupted.
pub(crate) fn retreat(mount: &Path) -> Result<()> {
    let (staging, entering) = (staging(mount), entering(mount));
    files::make_directory(&entering)?;
    for name in own_entries(mount)? {
        let to = entering.join(&name);
        files::move_to(&mount.join(&name), &to).at(Kind::Retry, "move back", &to)?;
    }
    files::move_to(&entering, &staging).at(Kind::Retry, "move back", &entering)
}

/// Whether [`enter`] was interrupted while it moved names.
pub(crate) fn was_entering(mount: &Path) -> Result<bool> {
    exists(&entering(mount))
}
