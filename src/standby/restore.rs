//! `restore [SET [DST]]`: brings a backup set back as a server that replays from this archive.
//! Never touches anything before everything was checked, and never starts a server on what is not
//! complete. Invariant: wherever it is killed, `slave_data` is the old directory, nothing, or the new
//! one, and the new one has no `global/pg_control` until all of it is durable.
//!
//! ```text
//! the set, compared with its manifest         the server goes on running
//! moved or copied to DST.restoring            the server goes on running
//! stop the server
//! global/pg_control out of the way            a copy never had it
//! tablespaces, pg_wal, settings, signal       each step can be done twice
//! configuration files
//! DST to DST.1                                the old directory
//! DST.restoring to DST
//! global/pg_control back                      from here on PostgreSQL starts
//! start the server
//! remove what is not to be kept               the old directory, a set that had to be copied
//! ```
//!
//! `createslave` does the same with a base backup of the running master in the place of a copied set.
//!
//! What a killed run leaves is told by what the control file is called. A copy is removed and made
//! again. A set that was moved exists nowhere else, so the next `restore` finishes it.

mod base_backup;
mod choose;
mod config_files;
mod delta;
mod keep;
mod plan;
mod prepare;
mod promoted;
pub(crate) mod scratch;
mod server;
mod settings;
mod spaces;
mod streamed;
pub(crate) mod taken;
mod undo;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::StandbyConfig;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use crate::options::{Options, Restoring};
use crate::output::{self, Waiting};
use crate::pg::backup_label::BackupLabel;
use crate::pg::layout;
use crate::pg::mounts;
use crate::pg::recovery::TargetTimeline;
use crate::standby::boot::begun;
use crate::standby::frozen::Partials;
use crate::standby::sets;
use crate::store::sets::{Copying, HeldSet, SetError};
use crate::store::{ArchiveReader, RealDisk, StoreError};

use crate::pg::set_place::{
    self as place, Occupant, SetOrigin, SetPlace, taking, transfer, within,
};
use plan::{Chosen, Plan, SetSource};

/// Restores, or says what would be done.
pub(crate) fn run(config: &StandbyConfig, options: &Options, restoring: &Restoring) -> Result<()> {
    if !options.not_really {
        gather(config, restoring)?;
    }
    let mut plan = Plan::make(config, restoring)?;
    if options.not_really {
        return output::not_really(&plan.in_words());
    }
    plan.alone = Some(alone_at(&plan.place)?);
    plan.run()
}

/// Makes `slave_data` a standby out of a base backup of the running master, or says what would be done.
pub(crate) fn run_streamed(
    config: &StandbyConfig,
    options: &Options,
    restoring: &Restoring,
) -> Result<()> {
    if !options.not_really {
        gather(config, restoring)?;
    }
    let mut plan = streamed::plan(config, options, restoring)?;
    if options.not_really {
        return output::not_really(&plan.in_words());
    }
    plan.alone = Some(streamed::alone(&plan.place)?);
    plan.run()
}

/// A set whose names were moving into a mount point is in two places, and has to be in one to be looked at.
fn gather(config: &StandbyConfig, restoring: &Restoring) -> Result<()> {
    let data = restoring
        .destination
        .as_ref()
        .or(config.slave_data.as_ref());
    let Some(data) = data.and_then(|data| data.canonicalize().ok()) else {
        return Ok(());
    };
    if !mounts::is_mount_point(&data)? || !within::was_entering(&data)? {
        return Ok(());
    }
    let _alone = alone_in(data.parent().unwrap_or(&data))?;
    within::retreat(&data)
}

/// Two restores to one place would take each other's directories for leftovers.
fn alone_at(place: &SetPlace) -> Result<File> {
    alone_in(place.above())
}

fn alone_in(above: &Path) -> Result<File> {
    files::try_lock(Kind::Config, above)?.ok_or_else(|| {
        CommandError::retry(format!("another restore is running in {}", above.display()))
    })
}

impl Plan<'_> {
    fn run(self) -> Result<()> {
        self.tell_purges()?;
        let (copied_from, was_running) = match self.is_in_place() {
            true => {
                taking::gather(&self.place, self.config.backup_datadir)?;
                self.bring_in_place()?
            }
            false => self.bring_and_stop()?,
        };
        let aside = match self.put_in_place(copied_from.is_some()) {
            Ok(aside) => aside,
            Err(error) => {
                self.tell_where_it_stands(was_running);
                return Err(error);
            }
        };
        self.thaw();
        // What went before is given up once the server runs on what came instead.
        self.start_server()
            .map_err(|error| self.after_failed_start(error, aside.as_deref()))?;
        self.place.settle(aside)?;
        self.discard(copied_from)
    }

    /// The set's files beside the old directory, whose server is stopped then; whether one ran.
    fn bring_and_stop(&self) -> Result<(Option<HeldSet>, bool)> {
        self.clear_leftovers()?;
        let copied_from = self.bring()?;
        match self.stop_server() {
            Ok(was_running) => Ok((copied_from, was_running)),
            Err(error) => {
                self.take_back(copied_from.is_some());
                Err(error)
            }
        }
    }

    fn total_bytes(&self) -> u64 {
        self.size.bytes + self.size.tablespaces.values().sum::<u64>()
    }

    /// From here on a purge asks what the server in this directory needs, whatever the settings of the
    /// receiver say.
    fn tell_purges(&self) -> Result<()> {
        let data =
            std::path::absolute(&self.place.data).at(Kind::Config, "find", &self.place.data)?;
        let archive = ArchiveReader::open(&self.config.completed_wals, Arc::new(RealDisk));
        let noted = archive.and_then(|archive| archive.note_server(&data));
        let noting = "note in the archive that the server reads from it";
        noted.map_err(|error| CommandError::new(error.kind(), noting).because(error))
    }

    /// Turns what was brought into the data directory; where the old one lies, if there was one.
    fn put_in_place(&self, is_copy: bool) -> Result<Option<PathBuf>> {
        let staging = self.place.staging();
        place::hide_control(&staging)?;
        prepare::run(self, &staging)?;
        if self.place.is_slave_data && self.config.slave_config_dir.is_some() {
            config_files::restore(self, &staging)?;
        }
        settings::protect_archive(self)?;
        match &self.source {
            SetSource::Move(set) if self.place.is_slave_data && !is_copy => {
                taken::write(&staging, Some(set.name.to_string()))?;
            }
            SetSource::Taken if self.place.is_slave_data => taken::write(&staging, None)?,
            _ => {}
        }
        let aside = self.place.make_way(self.config.backup_datadir)?;
        let data = &self.place.data;
        self.place.move_in()?;
        place::show_control(data)?;
        Ok(aside)
    }

    /// The server that was booted, if one was, is out of the way: the master's stream may go on.
    fn thaw(&self) {
        if !self.place.is_slave_data {
            return;
        }
        let thawed = Partials::open(self.config).and_then(|partials| {
            self.clear_the_way(&partials)?;
            partials.thaw()
        });
        for result in [thawed.map(|_| ()), begun::forget(self.config)] {
            if let Err(error) = result {
                tracing::warn!("{error}");
            }
        }
    }

    /// A timeline that a boot opened, and that archived nothing, would keep the server from the WAL of
    /// a master that went on without it.
    fn clear_the_way(&self, partials: &Partials) -> Result<()> {
        if self.recovery.timeline != TargetTimeline::Latest {
            return Ok(());
        }
        let path = self.place.data.join(layout::BACKUP_LABEL);
        let text = files::read(&path).at(Kind::Retry, "read", &path)?;
        let label = BackupLabel::parse(&text)
            .map_err(|why| CommandError::retry(format!("{}: {why}", path.display())))?;
        let failed = |error: StoreError| {
            CommandError::new(error.kind(), "look for timelines to set apart").because(error)
        };
        let archive = ArchiveReader::open(&self.config.completed_wals, Arc::new(RealDisk));
        let ends = partials.in_progress()?.ends;
        let timeline = label.first_segment.timeline();
        let gave_way = archive.and_then(|archive| archive.give_way(&ends, timeline));
        for newer in gave_way.map_err(failed)? {
            tracing::warn!(
                "timeline {newer} branched off timeline {timeline} and has no WAL here; it is set \
                apart, so that the server follows timeline {timeline}"
            );
        }
        Ok(())
    }

    /// Removes what an interrupted copy left, and brings a moved set back to where it is prepared.
    fn clear_leftovers(&self) -> Result<()> {
        self.place.clear_copies()?;
        match self.place.occupant {
            Occupant::Unfinished(SetOrigin::Moved) => self.place.move_back(),
            _ => Ok(()),
        }
    }

    /// Has the set's files where they are prepared; the set if it was copied.
    fn bring(&self) -> Result<Option<HeldSet>> {
        let staging = self.place.staging();
        let set = match &self.source {
            SetSource::Taken => {
                tracing::info!(
                    "continuing with the set of an interrupted restore, in {}",
                    staging.display()
                );
                return Ok(None);
            }
            SetSource::Streamed(streamed) => {
                self.receive(streamed)?;
                return Ok(None);
            }
            SetSource::Copy(set) => set,
            SetSource::Move(set) => {
                self.finish_rotation();
                // The server goes on running, and everybody may read the list of sets.
                self.verify(&same(set, self.sets.hold(&set.name))?)?;
                let taken = same(set, self.sets.take(&set.name))?;
                let moved = taken.move_to(&staging);
                match moved.map_err(|error| sets::failed(&format!("move {}", set.name), &error))? {
                    None => {
                        tracing::info!("{} moved to {}", set.name, staging.display());
                        return Ok(None);
                    }
                    // Nobody is kept from the list of sets for as long as a copy takes.
                    Some(taken) => drop(taken),
                }
                set
            }
        };
        self.copy(same(set, self.sets.hold(&set.name))?).map(Some)
    }

    /// No set can be taken in the middle of a rotation, and a receiver that was killed in one may
    /// be gone for good.
    fn finish_rotation(&self) {
        let owner = format!("restore, process {}", std::process::id());
        let lease = self.sets.lease(&owner);
        let finished = lease.and_then(|lease| self.sets.recover(&lease));
        if let Err(error) = finished {
            tracing::debug!("an interrupted rotation is not finished: {error}");
        }
    }

    /// What moves is not copied, and so is read by itself before anything is touched.
    fn verify(&self, held: &HeldSet) -> Result<()> {
        let total_bytes = self.total_bytes();
        tracing::info!(
            "comparing {} ({total_bytes} bytes) with its manifest",
            held.name()
        );
        let (mut read_bytes, mut waiting) = (0, Waiting::begin());
        let verified = held.verify(&mut |bytes| {
            read_bytes += bytes;
            if waiting.is_due() {
                tracing::info!("compared {read_bytes} of {total_bytes} bytes");
            }
        });
        verified.map_err(|error| sets::failed(&format!("restore {}", held.name()), &error))
    }

    fn copy(&self, held: HeldSet) -> Result<HeldSet> {
        let staging = self.place.staging();
        let total_bytes = self.total_bytes();
        tracing::info!("copying {} ({total_bytes} bytes)", held.name());
        place::claim_tablespaces(&staging, &self.tablespaces)?;
        let mut taken = self.cloned_from(&held)?;
        let (mut copied_bytes, mut waiting) = (0, Waiting::begin());
        let copying = Copying {
            to: &staging,
            control_name: layout::name_of(layout::CONTROL_COPIED),
            tablespaces: &self.tablespaces,
            shares: false,
            taken: taken.as_mut(),
            progress: &mut |bytes| {
                copied_bytes += bytes;
                if waiting.is_due() {
                    tracing::info!("copied {copied_bytes} of {total_bytes} bytes");
                }
                true
            },
        };
        let doing = format!("copy {} to {}", held.name(), staging.display());
        match held.copy(copying) {
            Ok(()) => {
                taken.iter().for_each(delta::tell_counts);
                Ok(held)
            }
            Err(error) => {
                self.take_back(true);
                Err(sets::failed(&doing, &error))
            }
        }
    }

    /// Undoes [`Plan::bring`] as well as it can; what stays the next restore sees to.
    fn take_back(&self, is_copy: bool) {
        let staging = self.place.staging();
        let undone = match (&self.source, is_copy) {
            (SetSource::Streamed(_), _) | (_, true) => {
                let removed = place::remove_copy(&staging, &self.place.data);
                for space in self.tablespaces.values() {
                    let _ = transfer::remove_entries(space);
                }
                removed
            }
            (SetSource::Move(set), false) => (self.sets.put_back(&staging, &set.name))
                .map_err(|error| sets::failed("put the set back", &error)),
            _ => Ok(()),
        };
        if let Err(error) = undone {
            tracing::warn!(
                "{error}; type `{}` again to continue with {}",
                self.word(),
                staging.display()
            );
        }
    }

    /// A set that had to be copied because it was to go to another file system goes away now.
    fn discard(&self, copied_from: Option<HeldSet>) -> Result<()> {
        let (SetSource::Move(set), Some(held)) = (&self.source, copied_from) else {
            return Ok(());
        };
        drop(held);
        let taken = same(set, self.sets.take(&set.name))?;
        let discarded = self.sets.discard(taken);
        discarded.map_err(|error| sets::failed(&format!("remove {}", set.name), &error))
    }
}

/// The set of the plan: a backup that was made meanwhile gives its name to another one.
fn same(expected: &Chosen, held: std::result::Result<HeldSet, SetError>) -> Result<HeldSet> {
    let name = &expected.name;
    let held = held.map_err(|error| sets::failed(&format!("restore {name}"), &error))?;
    match *held.label() == expected.label {
        true => Ok(held),
        false => Err(CommandError::retry(format!(
            "{name} became another set meanwhile: a backup was made"
        ))
        .hint("type it again")),
    }
}
