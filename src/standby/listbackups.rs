//! `listbackups`: which base backups there are.
//! Never shows one that is not complete. Invariant: the newest stands first.

use std::sync::Arc;

use crate::config::StandbyConfig;
use crate::error::Result;
use crate::options::Options;
use crate::output;
use crate::output::backups::{self, BackupFacts, BackupLine};
use crate::standby::restore::taken::TakenSet;
use crate::standby::sets;
use crate::store::{ArchiveReader, RealDisk};

/// Prints the list.
pub(crate) fn run(config: &StandbyConfig, options: &Options) -> Result<()> {
    let (lines, taken) = lines(config)?;
    output::print(&match options.json {
        true => backups::json(&lines),
        false => backups::text(&lines, options.verbosity > 0),
    })?;
    if let Some(sentence) = taken {
        // Beside the list: a program, and whoever knows the list from the manual, counts on it alone.
        tracing::info!("{sentence}");
    }
    Ok(())
}

/// The sets, the newest first, and what is to be said of one that a restore took.
pub(crate) fn lines(config: &StandbyConfig) -> Result<(Vec<BackupLine>, Option<String>)> {
    let listed = sets::open(config)?.list();
    let listed = listed.map_err(|error| sets::failed("list the backup sets", &error))?;
    let taken = TakenSet::newest_of(config, &listed);
    // Without an archive there are sets all the same.
    let archive = ArchiveReader::open(&config.completed_wals, Arc::new(RealDisk)).ok();
    let lines = listed.into_iter().map(|entry| {
        let set = entry.name.to_string();
        let ahead = archive.as_ref().zip(entry.label.as_ref().ok());
        let ahead = ahead.and_then(|(archive, label)| archive.ahead_of(label).ok());
        let details = entry.details(archive.as_ref()).into();
        let label = entry
            .readable_label(&ahead.unwrap_or_default())
            .map(|label| BackupFacts {
                timestamp: label.start_time,
                label: label.label,
                first_wal: label.first_segment.to_string(),
                timeline: label.first_segment.timeline().number(),
                start: label.start.to_string(),
            });
        BackupLine {
            set,
            label,
            details,
        }
    });
    Ok((lines.collect(), taken))
}
