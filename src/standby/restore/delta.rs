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

use super::plan::{Plan, SPARE_BYTES, SetSource};
use super::same;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::options::Restoring;
use crate::output::Waiting;
use crate::pg::layout;
use crate::pg::old_files::OldFiles;
use crate::pg::set_place::taking::{self, DeltaWay, can_share, is_source};
use crate::pg::set_place::{self, Occupant, SetPlace};
use crate::standby::sets;
use crate::store::ArchiveReader;
use crate::store::sets::{Copying, DeltaSource, HeldSet};

/// What was typed; refuses a place that is never replaced.
pub(super) fn way_typed(restoring: &Restoring) -> Result<Option<DeltaWay>> {
    match (DeltaWay::typed(restoring), &restoring.destination) {
        (Some(_), Some(_)) => Err(CommandError::usage(
            "--delta takes files of slave_data over, and does not go with another directory",
        )
        .hint("type it without the directory, or without --delta")),
        (way, _) => Ok(way),
    }
}

/// Refuses an old directory of another cluster: nothing of it would be as it has to be.
pub(super) fn check_old(place: &SetPlace, archive: &ArchiveReader) -> Result<()> {
    let own = archive.binding().system_id;
    taking::check_cluster(place, "the archive's WAL", own)
        .map_err(|error| error.hint("type it without --delta, or correct slave_data"))
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
    let bytes = held.bytes_beyond(&taking::sources(place)?, is_mapped);
    let bytes = bytes.map_err(|error| sets::failed("measure the set", &error))?;
    Ok(Some(bytes + SPARE_BYTES))
}

impl Plan<'_> {
    pub(super) fn is_in_place(&self) -> bool {
        self.delta == Some(DeltaWay::InPlace)
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
        taking::hide_old_control(&place.data)
            .and_then(|()| self.take_over(&held, &mut taken))
            .inspect_err(|_| self.tell_where_it_stands(was_running))?;
        tell_counts(&taken);
        Ok((Some(held), was_running))
    }

    fn compare(&self, held: &HeldSet) -> Result<DeltaSource> {
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

    fn take_over(&self, held: &HeldSet, taken: &mut DeltaSource) -> Result<()> {
        let staging = self.place.staging();
        set_place::claim_tablespaces(&staging, &self.tablespaces)?;
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
    pub(super) fn cloned_from(&self, held: &HeldSet) -> Result<Option<DeltaSource>> {
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
pub(super) fn tell_counts(taken: &DeltaSource) {
    let (taken_bytes, brought_bytes) = taken.counts();
    taking::tell_counts(taken_bytes, brought_bytes);
}
