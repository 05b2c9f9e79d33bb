//! An old data directory whose files a restore takes over: which it is, and how it stops being a server's.
//! Never touches it unless it is to become the new one. Invariant: from the first file that leaves the old directory on it
//! has no `global/pg_control`.

use std::path::Path;

use indicatif::HumanBytes;
use rustix::fs::CWD;
use rustix::io::Errno;
use walmgr_protocol::names::SystemId;

use super::transfer::entries;
use super::{Occupant, SetOrigin, SetPlace, exists, remove_copy};
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files::{self, RoomNeeded};
use crate::options::Restoring;
use crate::pg::old_files::OldFiles;
use crate::pg::{control, layout};

/// The control file's names, whose content is of one directory only.
const CONTROLS: [&str; 4] = [
    layout::PG_CONTROL,
    layout::CONTROL_COPIED,
    layout::CONTROL_MOVED,
    layout::CONTROL_TAKEN,
];

/// How files of the old directory are taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeltaWay {
    /// Into a new directory; the old one stays whole.
    Beside,
    /// They change directories, and the old one is gone.
    InPlace,
}

impl DeltaWay {
    /// What was typed.
    pub(crate) const fn typed(restoring: &Restoring) -> Option<DeltaWay> {
        match (restoring.delta, restoring.in_place) {
            (false, _) => None,
            (true, true) => Some(DeltaWay::InPlace),
            (true, false) => Some(DeltaWay::Beside),
        }
    }
}

/// Whether there is a directory to take files from: a data directory, or what an interrupted copy left.
pub(crate) const fn is_source(place: &SetPlace) -> bool {
    matches!(
        place.occupant,
        Occupant::Old | Occupant::Unfinished(SetOrigin::Copied)
    )
}

/// Refuses an old directory of another cluster than this one: nothing of it would be as it has to be. `whose` is
/// what is of this one.
pub(crate) fn check_cluster(place: &SetPlace, whose: &str, own: SystemId) -> Result<()> {
    let controls = CONTROLS.iter().map(|name| place.data.join(name));
    let found = controls
        .filter_map(|path| control::read_file(&path).ok())
        .next();
    match found.filter(|found| found.system_id != own) {
        None => Ok(()),
        Some(found) => Err(CommandError::config(format!(
            "{} is of another cluster (system identifier {}) than {whose} ({own}), so nothing of it can be \
            taken over; nothing was changed",
            place.data.display(),
            found.system_id
        ))),
    }
}

/// The directories that files may be taken from: the old one, and what an interrupted run moved out of it.
pub(crate) fn sources(place: &SetPlace) -> Result<Vec<OldFiles>> {
    let (staging, mut old) = (place.staging(), Vec::new());
    for directory in [&place.data, &staging] {
        if exists(directory)? {
            old.push(OldFiles::open(directory).at(Kind::Config, "open", directory)?);
        }
    }
    Ok(old)
}

/// Whether a file beside the old directory can share the content of one in it.
pub(crate) fn can_share(place: &SetPlace) -> bool {
    let probe = place.staging_above().join(".walmgr-restore-probe");
    files::can_share(&place.data.join(layout::PG_VERSION), &probe)
}

/// Refuses what does not fit; where it would be beside the old directory, the hint says what would fit instead.
pub(crate) fn check_room(needed: &RoomNeeded, way: Option<DeltaWay>) -> Result<()> {
    let refused = match needed.check() {
        Err(refused) if way == Some(DeltaWay::Beside) => refused,
        other => return other,
    };
    Err(CommandError::retry(format!(
        "no room for a new directory beside the old one: {refused}"
    ))
    .hint(
        "with --delta --in-place the old directory itself becomes the new one: it is gone from the first byte on, and \
        a run that is interrupted has to be typed again before anything starts",
    ))
}

/// Says how much came from where.
pub(crate) fn tell_counts(taken_bytes: u64, brought_bytes: u64) {
    tracing::info!(
        "{} were taken over from the old directory, {} came from the set",
        HumanBytes(taken_bytes),
        HumanBytes(brought_bytes)
    );
}

/// Has what an interrupted run took out of the old directory in it again, where files are taken from. As long as that has
/// its control file nothing was taken: all that was prepared is of the set, and goes.
pub(crate) fn gather(place: &SetPlace, keep_old: bool) -> Result<()> {
    let (staging, data) = (place.staging(), &place.data);
    if place.is_mount && matches!(place.occupant, Occupant::Unfinished(_)) {
        place.move_back()?;
    }
    if !exists(&staging)? {
        return Ok(());
    }
    if exists(&data.join(layout::PG_CONTROL))? {
        return remove_copy(&staging, data);
    }
    let now = SetPlace::examine(data, true)?;
    if matches!(now.occupant, Occupant::Nobody | Occupant::Empty) {
        // It was about to take this name.
        let _ = place.make_way(keep_old)?;
        return place.move_in();
    }
    merge(&staging, data, Path::new(""))?;
    remove_copy(&staging, data)
}

/// Keeps PostgreSQL from ever starting on what will be left.
pub(crate) fn hide_old_control(data: &Path) -> Result<()> {
    let taken = data.join(layout::CONTROL_TAKEN);
    for name in [layout::PG_CONTROL, layout::CONTROL_COPIED] {
        let control = data.join(name);
        if exists(&control)? {
            files::remove(&taken).at(Kind::Retry, "remove", &taken)?;
            files::move_to(&control, &taken).at(Kind::Retry, "rename", &control)?;
        }
    }
    let global = data.join(layout::GLOBAL);
    match exists(&global)? {
        true => files::sync_directory(&global).at(Kind::Retry, "sync", &global),
        false => Ok(()),
    }
}

/// Moves the files of one directory into another, those at the top excepted. Nothing counts by lying there.
fn merge(from: &Path, into: &Path, path: &Path) -> Result<()> {
    let here = from.join(path);
    for name in entries(&here).at(Kind::Retry, "list", &here)? {
        let below = path.join(&name);
        let (source, target) = (from.join(&below), into.join(&below));
        let kind = (source.symlink_metadata()).at(Kind::Retry, "examine", &source)?;
        let is_control = CONTROLS.iter().any(|control| Path::new(control) == below);
        if kind.is_dir() && below != Path::new(layout::PG_WAL) {
            if !exists(&target)? {
                files::make_directory(&target)?;
            }
            if target.symlink_metadata().is_ok_and(|found| found.is_dir()) {
                merge(from, into, &below)?;
            }
        } else if kind.is_file() && path != Path::new("") && !is_control {
            if target.symlink_metadata().is_ok_and(|found| !found.is_dir()) {
                std::fs::remove_file(&target).at(Kind::Retry, "remove", &target)?;
            }
            let moved = files::rename_new((CWD, source.as_os_str()), (CWD, target.as_os_str()));
            match moved {
                Err(error) if Errno::from_io_error(&error) == Some(Errno::EXIST) => {}
                other => other.at(Kind::Retry, "move", &source)?,
            }
        }
    }
    Ok(())
}
