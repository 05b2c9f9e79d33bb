//! `expire`: removes the backup sets and the WAL that the settings no longer keep, as each backup does behind itself.
//! Never decides anything (`store::sets::policy` does), and removes nothing where nothing is set. Invariant: `-n` prints
//! the lines of a run that meets nothing new.

use std::path::Path;

use walmgr_protocol::names::{BackupName, SegmentName};

use crate::config::StandbyConfig;
use crate::error::{CommandError, Kind, Result};
use crate::options::Options;
use crate::output;
use crate::pg::needs;
use crate::shell::archive_set;
use crate::standby::sets;
use crate::store::sets::{BackupSets, Expiry, Keeping, Purged, SetDecision, SetError};

/// Expires, or says what would be removed.
pub(crate) fn run(config: &StandbyConfig, options: &Options) -> Result<()> {
    let sets = sets::open(config)?;
    if Keeping::of(config).keeps_all() {
        tracing::info!("nothing is removed: neither keep_backups nor keep_days is set");
        return Ok(());
    }
    let failed = |error| sets::failed("remove what is not kept", &error);
    if options.not_really {
        for line in lines_to_come(config, &sets).map_err(failed)? {
            output::not_really(&line)?;
        }
        return Ok(());
    }
    let (expiry, purged) = expire(config, &sets).map_err(failed)?;
    for name in &expiry.in_use {
        tracing::warn!("{name} is being read and stays");
    }
    for line in lines(&expiry, &expiry.removed, &purged) {
        output::print(&line)?;
    }
    match expiry.refused {
        None => Ok(()),
        Some((name, why)) => Err(CommandError::new(
            Kind::Retry,
            format!("{name} and the sets to go behind it stay: archive_command failed: {why}"),
        )
        .hint("correct archive_command in the ini file, and type expire again")),
    }
}

/// The sets first: a set that goes lets go of its WAL only when it is gone.
fn expire(
    config: &StandbyConfig,
    sets: &BackupSets,
) -> std::result::Result<(Expiry, Purged), SetError> {
    let keeping = Keeping::of(config);
    let lease = sets.lease(&format!("expire, process {}", std::process::id()))?;
    let mut archive = |set: &Path| match &config.archive_command {
        Some(command) => archive_set(command, config.slave_bin.as_deref(), set),
        None => Ok(()),
    };
    let expiry = sets.expire(&lease, keeping, &mut archive)?;
    let slave_data = config.slave_data.as_deref();
    let purged = sets.purge_wal(&lease, keeping, slave_data, &needed)?;
    Ok((expiry, purged))
}

fn lines_to_come(
    config: &StandbyConfig,
    sets: &BackupSets,
) -> std::result::Result<Vec<String>, SetError> {
    sets.ensure_not_locked_by_hand()?;
    let keeping = Keeping::of(config);
    let expiry = sets.expiry(keeping)?;
    let goes = expiry.decided.iter().filter(|set| set.goes());
    let goes: Vec<BackupName> = goes.map(|set| set.name.clone()).collect();
    let slave_data = config.slave_data.as_deref();
    let purged = sets.purge_to_come((keeping, &goes), slave_data, &needed)?;
    Ok(lines(&expiry, &goes, &purged))
}

fn needed(data: &Path) -> std::result::Result<Vec<SegmentName>, String> {
    needs::of_servers(data).map_err(|error| error.to_string())
}

/// What becomes of each set, the newest first, and which WAL goes.
fn lines(expiry: &Expiry, gone: &[BackupName], purged: &Purged) -> Vec<String> {
    let of_set = |set: &SetDecision| {
        let does = match (set.goes(), gone.contains(&set.name)) {
            (true, true) => "remove",
            // It was to go, and something came between.
            (true, false) => return None,
            (false, _) => "keep",
        };
        Some(format!("{does} {}: {}", set.name, set.why()))
    };
    let of_wal = purged.stretches.iter().map(|stretch| {
        let (first, last, files) = (stretch.first, stretch.last, stretch.files);
        format!(
            "remove WAL {first} to {last}, {files} files: no set that stays and no server needs it"
        )
    });
    let sets = expiry.decided.iter().filter_map(of_set);
    sets.chain(of_wal).collect()
}
