//! `drill [SET]`: proves that a backup set restores, in a directory of its own that goes away afterwards.
//! Never changes the archive, a set or the standby's own server. Invariant: wherever it ends, the next drill finds what
//! it left by `completed_wals/DRILL` and by the mark in the directory itself, and removes it first.
//!
//! ```text
//! take the lock                              a second drill is refused
//! remove what a killed drill left            its server too
//! write the directory to DRILL, make it      a mark in it says whose it is
//! bring the set, compare all of it           by the code of `restore`; no file of it is written
//! note the server for purges                 the set keeps its WAL until here
//! copy the segments in progress, write goal  what is to be reached
//! start PostgreSQL, wait until it opens      WAL comes by `xrestore --drill`
//! compare what it reached, check its data
//! end it, remove everything, write DRILL
//! ```

mod amcheck;
mod end;
pub(crate) mod goal;
mod place;
mod programs;
mod query;
mod record;
mod server;
mod settings;

use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use jiff::Timestamp;

use crate::abnormal::Interrupt;
use crate::config::StandbyConfig;
use crate::error::{CommandError, Kind, Result};
use crate::files::RoomNeeded;
use crate::options::Options;
use crate::output;
use crate::standby::restore::scratch::ScratchRestore;
use crate::standby::xrestore::tablespaces;
use crate::status::DrillOutcome;
use crate::store::{ArchiveReader, RealDisk, StoreError};

use goal::DrillGoal;
use place::ScratchPlace;
use programs::DrillPrograms;
use record::{DrillLock, DrillRecord, UnderWay};
use server::ScratchServer;

pub(crate) use record::facts;

/// What stood behind `drill`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub(crate) struct DrillArgs {
    /// The set, as `listbackups` prints it; without it the newest
    #[arg(id = "backup_set", value_name = "SET")]
    pub set: Option<String>,
}

/// Drills, or says what would be done.
pub(crate) fn run(config: &StandbyConfig, options: &Options, arguments: &DrillArgs) -> Result<()> {
    let place = ScratchPlace::of(config)?;
    if options.not_really {
        return rehearse(config, arguments, &place);
    }
    let lock = DrillLock::take(config)?;
    let interrupt = Interrupt::heed()?;
    let mut record = DrillRecord::read(config);
    clear_leftovers(config, &place, &mut record)?;
    let mut outcome = DrillOutcome::begin(Timestamp::now().as_second());
    let drill = Drill {
        config,
        place: &place,
        interrupt: &interrupt,
    };
    let ended = drill.run(arguments, &mut record, &mut outcome);
    let cleared = place.remove(config);
    if cleared.is_ok() {
        record.under_way = None;
    }
    // What somebody ended or mistyped says nothing about a set.
    let is_result =
        interrupt.goes_on() && !matches!(&ended, Err(error) if error.kind() == Kind::Usage);
    if is_result {
        outcome.failure = ended.as_ref().err().map(ToString::to_string);
        record.last = Some(outcome.clone());
    }
    let written = record.write(config);
    drop(lock);
    if options.json && is_result {
        output::print(&outcome.json(0.0).to_string())?;
    }
    ended?;
    if !options.json {
        output::print(&outcome.text())?;
    }
    cleared.and(written)
}

fn rehearse(config: &StandbyConfig, arguments: &DrillArgs, place: &ScratchPlace) -> Result<()> {
    let restore = ScratchRestore::plan(config, arguments.set.as_deref(), &place.data())?;
    DrillPrograms::find(config, restore.set())?;
    let goal = DrillGoal::look(config, restore.label())?;
    output::not_really(&format!(
        "restore {} ({} bytes) into {}, replay it to {}, check it, and remove it",
        restore.name(),
        restore.bytes(),
        place.path().display(),
        goal.end()
    ))
}

/// Removes what a drill left that was killed: where this one is going to work, and where that one said it did.
fn clear_leftovers(
    config: &StandbyConfig,
    place: &ScratchPlace,
    record: &mut DrillRecord,
) -> Result<()> {
    if let Some(left) = record.under_way.take() {
        let left = ScratchPlace::at(config, left.directory);
        if left.is_there()? {
            tracing::warn!("a drill was killed; removing {}", left.path().display());
            left.remove(config)?;
        }
        record.write(config)?;
    }
    place.remove(config)
}

/// One drill.
struct Drill<'a> {
    config: &'a StandbyConfig,
    place: &'a ScratchPlace,
    interrupt: &'a Interrupt,
}

impl Drill<'_> {
    fn run(
        &self,
        arguments: &DrillArgs,
        record: &mut DrillRecord,
        outcome: &mut DrillOutcome,
    ) -> Result<()> {
        let data = self.place.data();
        let restore = ScratchRestore::plan(self.config, arguments.set.as_deref(), &data)?;
        outcome.set = restore.name();
        let programs = DrillPrograms::find(self.config, restore.set())?;
        DrillGoal::look(self.config, restore.label())?;
        record.under_way = Some(UnderWay {
            directory: self.place.path().to_path_buf(),
            process: std::process::id(),
            begun_s: outcome.begun_s,
        });
        record.write(self.config)?;
        self.place.make()?;
        let begun = Instant::now();
        self.bring(&restore)?;
        outcome.copied_ms = Some(elapsed_ms(begun));
        let set_settings = restore.settings();
        let label = restore.label().clone();
        // From here on the note keeps the WAL, and a rotation may have the set.
        drop(restore);
        let begun = Instant::now();
        let goal = DrillGoal::fix(self.config, &label, self.place.path())?;
        let set_up =
            settings::of_server(&set_settings, &programs, self.place, self.segment_bytes()?);
        outcome.notes.extend(set_up.notes);
        let mut server = ScratchServer::start(&programs, self.place, &set_up.settings)?;
        let opened = server.wait_until_open(self.place, self.interrupt);
        opened.map_err(|error| error.hint(format!("the goal was {}", goal.end())))?;
        outcome.replayed_ms = Some(elapsed_ms(begun));
        outcome.notes.extend(note_of_created(self.place));
        let begun = Instant::now();
        self.compare(&goal, outcome)?;
        self.check(&programs, outcome)?;
        outcome.checked_ms = Some(elapsed_ms(begun));
        server.end();
        self.interrupt.check()
    }

    fn bring(&self, restore: &ScratchRestore<'_>) -> Result<()> {
        let shares = self.place.can_share_with(restore.set());
        let (bytes, set) = (restore.bytes(), restore.name());
        // What shares its content is written anew as far as replay changes it.
        let copied_bytes = if shares { 0 } else { bytes };
        let wal_bytes = settings::wal_bytes_max(self.segment_bytes()?);
        let mut needed = RoomNeeded::new(Kind::Config);
        needed.add(
            self.place.path(),
            copied_bytes + wal_bytes + ScratchRestore::spare_bytes(),
        )?;
        let checked = needed.check();
        checked.map_err(|error| error.hint("or set drill_directory to another file system"))?;
        let how = match shares {
            true => "sharing its content with",
            false => "a copy of",
        };
        tracing::info!(
            "bringing {} ({bytes} bytes), {how} {set}",
            self.place.path().display()
        );
        restore.bring(shares, &|| self.interrupt.goes_on())?;
        // Before the set is let go of.
        self.note_server()?;
        restore.put_in_place()?;
        self.interrupt.check()
    }

    fn archive(&self) -> Result<ArchiveReader> {
        let archive = ArchiveReader::open(&self.config.completed_wals, Arc::new(RealDisk));
        archive.map_err(|error| CommandError::new(error.kind(), "open the archive").because(error))
    }

    fn segment_bytes(&self) -> Result<u64> {
        Ok(self.archive()?.binding().segment_size.bytes())
    }

    /// A purge has to keep what the server is going to ask for.
    fn note_server(&self) -> Result<()> {
        let noted = self.archive()?.note_server(&self.place.data());
        let failed = |error: StoreError| {
            let doing = "note in the archive that a drill reads from it";
            CommandError::new(error.kind(), doing).because(error)
        };
        noted.map_err(failed)
    }

    /// What was reached, and whether that is all there was.
    fn compare(&self, goal: &DrillGoal, outcome: &mut DrillOutcome) -> Result<()> {
        let archive = self.archive()?;
        let reached = end::of(&self.place.data(), &archive)?;
        outcome.reached = Some((reached.timeline, reached.end));
        match reached.commit_us {
            Ok(commit_us) => outcome.commit_us = commit_us,
            Err(why) => outcome.notes.push(why),
        }
        goal.acknowledged.judge(&reached.history)
    }

    fn check(&self, programs: &DrillPrograms, outcome: &mut DrillOutcome) -> Result<()> {
        let user = query::superuser(self.place, self.interrupt)?;
        let note = amcheck::run(programs, self.place, &user, self.interrupt)?;
        outcome.notes.extend(note);
        if let Some(sql) = &self.config.drill_sql {
            query::run(
                self.place,
                &user,
                &self.config.drill_database,
                sql,
                self.interrupt,
            )?;
        }
        Ok(())
    }
}

/// What a server needs that is restored from this set, and a drill does without.
fn note_of_created(place: &ScratchPlace) -> Option<String> {
    let created: Vec<String> = tablespaces::created(place.path()).into_iter().collect();
    (!created.is_empty()).then(|| {
        format!(
            "the WAL creates tablespaces that the set does not have, at {}; the drill had them in its own directory, and \
             a server that is restored on this host needs an empty directory, or a link to one, at each",
            created.join(", ")
        )
    })
}

fn elapsed_ms(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)
}
