//! `restore --delta`: what the old data directory has as the set's manifest lists it is taken over from there.
//! Never touches the old directory unless `--in-place` was typed, and then not before the server is stopped and all that is
//! needed of the set was read and found good. Invariant: from the first file that leaves the old directory on it has no
//! `global/pg_control`, and the new one has none before it is whole.
//!
//! ```text
//! stop the server                              in place only
//! compare both directories                     nothing was changed yet
//! DST/global/pg_control to pg_control.taken    the old directory is gone: no server starts from it
//! DST/FILE to DST.restoring/FILE               and the blocks that differ are written into it
//! the rest of the set to DST.restoring         from here on as any other restore
//! ```
//!
//! A run that was killed left each file in one of the two directories, or in both. The next one has them in DST again,
//! and compares them anew: which run wrote a file proves nothing.

use std::ffi::OsStr;
use std::path::Path;

use indicatif::HumanBytes;
use rustix::fs::CWD;
use rustix::io::Errno;

use super::place::{self, Occupant, SetOrigin, SetPlace};
use super::plan::{Plan, SPARE_BYTES, SetSource};
use super::transfer::entries;
use super::{prepare, same};
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files::{self, RoomNeeded};
use crate::options::Restoring;
use crate::output::Waiting;
use crate::pg::control;
use crate::pg::layout;
use crate::pg::old_files::OldFiles;
use crate::standby::sets;
use crate::store::ArchiveReader;
use crate::store::sets::{Copying, HeldSet, TakenOver};

/// The control file's names, whose content is of one directory only.
const CONTROLS: [&str; 4] = [
    layout::PG_CONTROL,
    layout::CONTROL_COPIED,
    layout::CONTROL_MOVED,
    layout::CONTROL_TAKEN,
];

/// How files of the old directory are taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeltaWay {
    /// Cloned; the old directory stays whole.
    Beside,
    /// They change directories, and the old one is gone.
    InPlace,
}

impl DeltaWay {
    /// What was typed; refuses a place that is never replaced.
    pub(super) fn typed(restoring: &Restoring) -> Result<Option<DeltaWay>> {
        if !restoring.delta {
            return Ok(None);
        }
        if restoring.destination.is_some() {
            return Err(CommandError::usage(
                "--delta takes files of slave_data over, and does not go with another directory",
            )
            .hint("type it without the directory, or without --delta"));
        }
        Ok(Some(match restoring.in_place {
            true => DeltaWay::InPlace,
            false => DeltaWay::Beside,
        }))
    }
}

/// Whether there is a directory to take files from: a data directory, or what an interrupted copy left.
fn is_source(place: &SetPlace) -> bool {
    matches!(
        place.occupant,
        Occupant::Old | Occupant::Unfinished(SetOrigin::Copied)
    )
}

/// Refuses an old directory of another cluster: nothing of it would be as it has to be.
pub(super) fn check_old(place: &SetPlace, archive: &ArchiveReader) -> Result<()> {
    let controls = CONTROLS.iter().map(|name| place.data.join(name));
    let found = controls
        .filter_map(|path| control::read_file(&path).ok())
        .next();
    let own = archive.binding().system_id;
    match found.filter(|found| found.system_id != own) {
        None => Ok(()),
        Some(found) => Err(CommandError::config(format!(
            "{} is of another cluster (system identifier {}) than the archive's WAL ({own}), so nothing of it can be \
            taken over; nothing was changed",
            place.data.display(),
            found.system_id
        ))
        .hint("type it without --delta, or correct slave_data")),
    }
}

/// The least that has to be written outside of mapped tablespaces; `None` if that is all of the set.
pub(super) fn needed_bytes(
    way: Option<DeltaWay>,
    place: &SetPlace,
    held: &HeldSet,
    is_mapped: &dyn Fn(&OsStr) -> bool,
) -> Result<Option<u64>> {
    let is_less = match way {
        Some(DeltaWay::InPlace) => is_source(place),
        Some(DeltaWay::Beside) => place.occupant == Occupant::Old && can_share(place),
        None => false,
    };
    if !is_less {
        return Ok(None);
    }
    let (staging, mut old) = (place.staging(), Vec::new());
    for directory in [&place.data, &staging] {
        if place::exists(directory)? {
            old.push(OldFiles::open(directory).at(Kind::Config, "open", directory)?);
        }
    }
    let bytes = held.bytes_beyond(&old, is_mapped);
    let bytes = bytes.map_err(|error| sets::failed("measure the set", &error))?;
    Ok(Some(bytes + SPARE_BYTES))
}

/// Whether a file beside the old directory can share the content of one in it.
fn can_share(place: &SetPlace) -> bool {
    let probe = place.staging_above().join(".walmgr-restore-probe");
    let shared = || -> std::io::Result<()> {
        let from = files::open_at_once(place.data.join(layout::PG_VERSION))?;
        let to = std::fs::File::create_new(&probe)?;
        Ok(rustix::fs::ioctl_ficlone(&to, &from)?)
    };
    let _ = std::fs::remove_file(&probe);
    let shared = shared();
    let _ = std::fs::remove_file(&probe);
    shared.is_ok()
}

/// Refuses what does not fit; `beside` says what would fit instead.
pub(super) fn check_room(needed: &RoomNeeded, way: Option<DeltaWay>) -> Result<()> {
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

impl Plan<'_> {
    pub(super) fn is_in_place(&self) -> bool {
        self.delta == Some(DeltaWay::InPlace)
    }

    /// Has what an interrupted run left in the old directory again, where files are taken from.
    pub(super) fn gather_old(&self) -> Result<()> {
        let (staging, data) = (self.place.staging(), &self.place.data);
        if self.place.is_mount && matches!(self.place.occupant, Occupant::Unfinished(_)) {
            self.place.move_back()?;
        }
        if !place::exists(&staging)? {
            return Ok(());
        }
        let now = SetPlace::examine(data, true)?;
        if matches!(now.occupant, Occupant::Nobody | Occupant::Empty) {
            // It was about to take this name.
            let _ = self.place.make_way(self.config.backup_datadir)?;
            return self.place.move_in();
        }
        merge(&staging, data, Path::new(""))?;
        place::remove_copy(&staging, data)
    }

    /// Has the set's files where they are prepared, as many as can be from the old directory itself; whether a server
    /// was stopped.
    pub(super) fn bring_in_place(&self) -> Result<(Option<HeldSet>, bool)> {
        let SetSource::Copy(set) = &self.source else {
            return Err(CommandError::usage("--in-place goes with a set"));
        };
        let held = same(set, self.sets.hold(&set.name))?;
        let place = SetPlace::examine(&self.place.data, true)?;
        if !is_source(&place) {
            tracing::info!("there is nothing to take over in {}", place.data.display());
            return Ok((Some(self.copy(held)?), false));
        }
        let was_running = self.stop_server()?;
        let untouched = |error: CommandError| match was_running {
            true => error.hint("nothing was changed, but the server was stopped: start it"),
            false => error.hint("nothing was changed"),
        };
        let mut taken = self.compare(&held).map_err(untouched)?;
        hide_old_control(&place.data)?;
        let copied = self.take_over(&held, &mut taken);
        copied.inspect_err(|_| self.tell_where_it_stands(was_running))?;
        tell_counts(&taken);
        Ok((Some(held), was_running))
    }

    fn compare(&self, held: &HeldSet) -> Result<TakenOver> {
        let (data, total_bytes) = (&self.place.data, self.total_bytes());
        let old = OldFiles::open(data).at(Kind::Retry, "open", data)?;
        tracing::info!("comparing {} with {}", data.display(), held.name());
        let (mut read_bytes, mut waiting) = (0, Waiting::begin());
        let compared = held.compare_in_place(old, &mut |bytes| {
            read_bytes += bytes;
            if waiting.is_due() {
                tracing::info!("compared {read_bytes} of {total_bytes} bytes");
            }
        });
        compared.map_err(|error| sets::failed(&format!("compare with {}", held.name()), &error))
    }

    fn take_over(&self, held: &HeldSet, taken: &mut TakenOver) -> Result<()> {
        let staging = self.place.staging();
        prepare::claim_tablespaces(self, &staging)?;
        let copying = Copying {
            to: &staging,
            control_name: layout::name_of(layout::CONTROL_COPIED),
            tablespaces: &self.tablespaces,
            shares: false,
            taken: Some(taken),
            progress: &mut |_| true,
        };
        let doing = || format!("bring {} to {}", held.name(), staging.display());
        (held.copy(copying)).map_err(|error| sets::failed(&doing(), &error))
    }

    /// What files are cloned from, where that is asked for and there is something.
    pub(super) fn cloned_from(&self, held: &HeldSet) -> Result<Option<TakenOver>> {
        let place = &self.place;
        if self.delta != Some(DeltaWay::Beside) || place.occupant != Occupant::Old {
            return Ok(None);
        }
        if !can_share(place) {
            tracing::info!(
                "the file system of {} cannot share content between files, so all of the set is copied; --in-place \
                would bring only what differs",
                place.data.display()
            );
            return Ok(None);
        }
        let old = OldFiles::open(&place.data).at(Kind::Retry, "open", &place.data)?;
        let taken = held.beside(old);
        let taken = taken.map_err(|error| sets::failed("read the set's manifest", &error))?;
        Ok(Some(taken))
    }
}

/// Says how much came from where.
pub(super) fn tell_counts(taken: &TakenOver) {
    let (taken_bytes, brought_bytes) = taken.counts();
    tracing::info!(
        "{} were taken over from the old directory, {} came from the set",
        HumanBytes(taken_bytes),
        HumanBytes(brought_bytes)
    );
}

/// Keeps PostgreSQL from ever starting on what will be left.
fn hide_old_control(data: &Path) -> Result<()> {
    let taken = data.join(layout::CONTROL_TAKEN);
    for name in [layout::PG_CONTROL, layout::CONTROL_COPIED] {
        let control = data.join(name);
        if place::exists(&control)? {
            files::remove(&taken).at(Kind::Retry, "remove", &taken)?;
            files::move_to(&control, &taken).at(Kind::Retry, "rename", &control)?;
        }
    }
    let global = data.join(layout::GLOBAL);
    match place::exists(&global)? {
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
            if !place::exists(&target)? {
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
