//! `xrotate`: moves every backup set one number up, so that the newest name is free for the next one.
//! Never removes the last set that restores, nor one that `archive_command` fails for. Invariant: after a kill at any
//! moment every set has one name, and the next command that changes sets finishes the move.

use std::path::Path;

use crate::config::StandbyConfig;
use crate::error::{CommandError, Kind, Result};
use crate::options::Options;
use crate::output;
use crate::shell::archive_set;
use crate::standby::sets;
use crate::store::sets::{BackupSets, Keeping, Lease};

/// Rotates.
pub(crate) fn run(config: &StandbyConfig, options: &Options) -> Result<()> {
    let sets = sets::open(config)?;
    let keeping = keeping(config);
    let failed = |error| sets::failed("rotate the backup sets", &error);
    if options.not_really {
        sets.ensure_not_locked_by_hand().map_err(failed)?;
        return say_what_would_be_done(config, &sets, keeping);
    }
    let owner = format!("xrotate, process {}", std::process::id());
    let lease = sets.lease(&owner).map_err(failed)?;
    expire(config, &sets, &lease, keeping)?;
    let newest = sets.newest();
    match sets.make_room(&lease).map_err(failed)? {
        0 => tracing::info!("no set moves: the name {newest} is free"),
        1 => tracing::info!("{newest} is now {newest}.0; the next backup is {newest}"),
        moved => tracing::info!(
            "{moved} sets moved, {newest} is now {newest}.0; the next backup is {newest}"
        ),
    }
    Ok(())
}

/// `keep_backups - 1` sets remain until the next one is there, and at least one that restores. Whoever types this says
/// what goes, whatever its age.
fn keeping(config: &StandbyConfig) -> Keeping {
    let keeping = Keeping::of(config).at_any_age();
    Keeping {
        sets: match keeping.sets {
            0 => 0,
            keep => (keep - 1).max(1),
        },
        ..keeping
    }
}

fn expire(
    config: &StandbyConfig,
    sets: &BackupSets,
    lease: &Lease,
    keeping: Keeping,
) -> Result<()> {
    let mut archive = |set: &Path| match &config.archive_command {
        Some(command) => archive_set(command, config.slave_bin.as_deref(), set),
        None => Ok(()),
    };
    let expiry = (sets.expire(lease, keeping, &mut archive))
        .map_err(|error| sets::failed("remove the oldest backup sets", &error))?;
    for name in &expiry.removed {
        tracing::info!("{name} is removed");
    }
    for name in &expiry.in_use {
        tracing::warn!("{name} is being read and is kept");
    }
    match expiry.refused {
        None => Ok(()),
        Some((name, why)) => Err(CommandError::new(
            Kind::Retry,
            format!("no set is renamed: archive_command failed for {name}: {why}"),
        )
        .hint("correct archive_command in the ini file, and type xrotate again")),
    }
}

fn say_what_would_be_done(
    config: &StandbyConfig,
    sets: &BackupSets,
    keeping: Keeping,
) -> Result<()> {
    let room = sets.room_to_make(keeping);
    let room = room.map_err(|error| sets::failed("rotate the backup sets", &error))?;
    for name in &room.goes {
        let first = match config.archive_command {
            Some(_) => "run archive_command for and then remove",
            None => "remove",
        };
        output::not_really(&format!("{first} {name}"))?;
    }
    for name in room.moves.iter().rev() {
        if let Some(to) = name.next() {
            output::not_really(&format!("rename {name} to {to}"))?;
        }
    }
    match room.moves.is_empty() {
        true => output::not_really(&format!(
            "rename no set: the name {} is free",
            sets.newest()
        )),
        false => Ok(()),
    }
}
