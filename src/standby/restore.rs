//! `restore [SET [DST]]`: brings a backup set back as a server that replays from this archive.
//! Never touches anything before everything was checked, and never starts a server on what is not
//! complete. Invariant: wherever it is killed, `slave_data` is the old directory, nothing, or the new
//! one, and the new one has no `global/pg_control` until all of it is durable.
//!
//! ```text
//! the set, moved or copied to DST.restoring   the server goes on running
//! stop the server
//! global/pg_control out of the way            a copy never had it
//! tablespaces, pg_wal, settings, signal       each step can be done twice
//! configuration files
//! DST to DST.1                                the old directory is kept, or removed in the end
//! DST.restoring to DST
//! global/pg_control back                      from here on PostgreSQL starts
//! start the server
//! ```
//!
//! What a killed run leaves is told by what the control file is called. A copy is removed and made
//! again. A set that was moved exists nowhere else, so the next `restore` finishes it.

mod config_files;
mod place;
mod plan;
mod prepare;
mod server;
mod transfer;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::config::StandbyConfig;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::options::{Options, Restoring};
use crate::pg::control;
use crate::standby::sets;
use crate::store::sets::{Copying, HeldSet};
use crate::{files, output};

use place::{COPIED, Occupant, Origin, Place};
use plan::{Plan, Source};

/// How often a long copy is reported.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Restores, or says what would be done.
pub fn run(config: &StandbyConfig, options: &Options, restoring: &Restoring) -> Result<()> {
    let plan = Plan::make(config, restoring)?;
    if options.not_really {
        return output::not_really(&plan.in_words());
    }
    let _alone = alone_at(&plan.place)?;
    plan.run()
}

/// Two restores to one place would take each other's directories for leftovers.
fn alone_at(place: &Place) -> Result<File> {
    let above = place.above();
    let file = File::open(above).at(Kind::Config, "open", above)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(CommandError::retry(format!(
            "another restore is going on in {}",
            above.display()
        ))),
        Err(error) => Err(std::io::Error::from(error)).at(Kind::Retry, "lock", above),
    }
}

impl Plan<'_> {
    fn run(self) -> Result<()> {
        self.clear_leftovers()?;
        let copied_from = self.bring()?;
        let staging = self.place.staging();
        if let Err(error) = self.stop_server() {
            self.take_back(copied_from.is_some());
            return Err(error);
        }
        place::hide_control(&staging)?;
        prepare::run(&self, &staging)?;
        if self.place.is_slave_data {
            config_files::restore(self.config, &staging, &self.place.data)?;
        }
        let aside = self.place.make_way(self.config.backup_datadir)?;
        let data = &self.place.data;
        files::move_to(&staging, data).at(Kind::Retry, "move into place", data)?;
        place::show_control(data)?;
        self.place.settle(aside)?;
        self.discard(copied_from)?;
        self.start_server()
    }

    /// Removes what an interrupted copy left, and brings a moved set back to where it is prepared.
    fn clear_leftovers(&self) -> Result<()> {
        let (staging, data) = (self.place.staging(), &self.place.data);
        if place::origin_of_staging(&staging)? == Some(Origin::Copied) {
            place::remove_copy(&staging, data)?;
        }
        match self.place.occupant {
            Occupant::Unfinished(Origin::Copied) => place::remove_copy(data, data),
            Occupant::Unfinished(Origin::Moved) => {
                files::move_to(data, &staging).at(Kind::Retry, "move", data)
            }
            _ => Ok(()),
        }
    }

    /// Has the set's files where they are prepared; the set if it was copied.
    fn bring(&self) -> Result<Option<HeldSet>> {
        let staging = self.place.staging();
        match &self.source {
            Source::Taken => {
                tracing::info!(
                    "going on with the set that an interrupted restore took, in {}",
                    staging.display()
                );
                Ok(None)
            }
            Source::Move(expected) => {
                let doing = || format!("move {}", expected.name());
                let taken = self.sets.take(expected.name());
                let taken = taken.map_err(|error| sets::failed(&doing(), &error))?;
                if taken.label() != expected.label() {
                    return Err(CommandError::retry(format!(
                        "{} became another set meanwhile: a backup was made",
                        expected.name()
                    ))
                    .hint("type it again"));
                }
                match taken.move_to(&staging) {
                    Ok(None) => {
                        tracing::info!("{} moved to {}", expected.name(), staging.display());
                        Ok(None)
                    }
                    // Nobody is kept from the list of sets for as long as a copy takes.
                    Ok(Some(taken)) => {
                        let name = taken.name().clone();
                        drop(taken);
                        let held = self.sets.hold(&name);
                        self.copy(held.map_err(|error| sets::failed(&doing(), &error))?)
                    }
                    Err(error) => Err(sets::failed(&doing(), &error)),
                }
            }
            Source::Copy(name) => {
                let held = self.sets.hold(name);
                let doing = format!("copy {name}");
                self.copy(held.map_err(|error| sets::failed(&doing, &error))?)
            }
        }
    }

    fn copy(&self, held: HeldSet) -> Result<Option<HeldSet>> {
        let staging = self.place.staging();
        let total_bytes = self.size.bytes + self.size.tablespaces.values().sum::<u64>();
        tracing::info!("copying {} ({total_bytes} bytes)", held.name());
        for space in self.tablespaces.values() {
            place::make_directory(space)?;
        }
        let (mut copied_bytes, mut reported) = (0, Instant::now());
        let copying = Copying {
            to: &staging,
            control_name: COPIED,
            tablespaces: &self.tablespaces,
            progress: &mut |bytes| {
                copied_bytes += bytes;
                if reported.elapsed() >= REPORT_INTERVAL {
                    reported = Instant::now();
                    tracing::info!("copied {copied_bytes} of {total_bytes} bytes");
                }
            },
        };
        let doing = format!("copy {} to {}", held.name(), staging.display());
        match held.copy(copying) {
            Ok(()) => Ok(Some(held)),
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
            (_, true) => {
                let removed = place::remove_copy(&staging, &self.place.data);
                for space in self.tablespaces.values() {
                    let _ = transfer::remove_entries(space);
                }
                removed
            }
            (Source::Move(set), false) => (self.sets.put_back(&staging, set.name()))
                .map_err(|error| sets::failed("put the set back", &error)),
            _ => Ok(()),
        };
        if let Err(error) = undone {
            tracing::warn!("{error}; `restore` goes on with {}", staging.display());
        }
    }

    /// A set that had to be copied because it was to go to another file system goes away now.
    fn discard(&self, copied_from: Option<HeldSet>) -> Result<()> {
        let (Source::Move(_), Some(held)) = (&self.source, copied_from) else {
            return Ok(());
        };
        let label = held.label().clone();
        let name = held.name().clone();
        drop(held);
        let taken = self.sets.take(&name);
        let discarded = taken.and_then(|taken| match *taken.label() == label {
            true => self.sets.discard(taken),
            false => Ok(()),
        });
        discarded.map_err(|error| sets::failed(&format!("remove {name}"), &error))
    }
}

/// The control file below a data directory, by any of its names.
fn control_path(data: &Path, name: &str) -> PathBuf {
    data.join(control::FILE_NAME).with_file_name(name)
}
