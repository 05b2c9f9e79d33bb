//! `listbackups`: which base backups there are.
//! Never shows one that is not complete. Invariant: the newest stands first.

use std::sync::Arc;

use crate::config::StandbyConfig;
use crate::error::Result;
use crate::options::Options;
use crate::output;
use crate::output::backups::{self, BackupFacts, BackupLine, KeptLine};
use crate::standby::kept;
use crate::standby::restore::taken::TakenSet;
use crate::standby::sets;
use crate::store::{ArchiveReader, RealDisk};

/// Prints the list.
pub(crate) fn run(config: &StandbyConfig, options: &Options) -> Result<()> {
    let (lines, said) = lines(config)?;
    output::print(&match options.json {
        true => backups::json(&lines),
        false => backups::text(&lines, options.verbosity > 0),
    })?;
    for sentence in said {
        // Beside the list: a program, and whoever knows the list from the manual, counts on it alone.
        tracing::info!("{sentence}");
    }
    Ok(())
}

/// The sets, the newest first, and what is to be said of one that a restore took, and of the one that goes next.
pub(crate) fn lines(config: &StandbyConfig) -> Result<(Vec<BackupLine>, Vec<String>)> {
    let listed = sets::open(config)?.list();
    let listed = listed.map_err(|error| sets::failed("list the backup sets", &error))?;
    let taken = TakenSet::newest_of(config, &listed);
    // Without an archive there are sets all the same.
    let archive = ArchiveReader::open(&config.completed_wals, Arc::new(RealDisk)).ok();
    let newest = archive.as_ref().and_then(ArchiveReader::newest_line);
    let newest = archive.as_ref().zip(newest.as_ref());
    let kept::KeptSets {
        lines: mut kept,
        next,
    } = kept::lines(config);
    let lines = listed.into_iter().map(|entry| {
        let set = entry.name.to_string();
        let ahead = archive.as_ref().zip(entry.label.as_ref().ok());
        let ahead = ahead.and_then(|(archive, label)| archive.ahead_of(label).ok());
        let details = entry.details(archive.as_ref()).into();
        let off_line = newest.and_then(|(archive, line)| entry.off_line(archive, line));
        let of_no_use_on =
            (newest.filter(|_| off_line.is_some())).map(|(_, line)| line.newest_timeline());
        let label = entry
            .readable_label(&ahead.unwrap_or_default(), of_no_use_on)
            .map(|label| BackupFacts {
                timestamp: label.start_time,
                label: label.label,
                first_wal: label.first_segment.to_string(),
                timeline: label.first_segment.timeline().number(),
                start: label.start.to_string(),
            });
        let kept =
            (kept.iter().position(|(name, _)| *name == set)).map(|at| kept.swap_remove(at).1);
        BackupLine {
            set,
            label: label.map(|facts| marked(facts, kept.as_ref())),
            details,
            kept,
            off_line,
        }
    });
    let lines = lines.collect();
    let next = next.map(|(set, days)| match days {
        0 => format!("{set} goes with the next backup"),
        _ => format!("{set} goes next, in {days} days with a backup a day"),
    });
    Ok((lines, taken.into_iter().chain(next).collect()))
}

/// With what a person has to know of the set beside its label.
fn marked(mut facts: BackupFacts, kept: Option<&KeptLine>) -> BackupFacts {
    if let Some(kept) = kept {
        match kept.pin.as_deref() {
            Some("") => facts.label.push_str(" (pinned)"),
            Some(note) => facts.label.push_str(&format!(" (pinned: {note})")),
            None => {}
        }
        if !kept.has_way_forward {
            facts.label.push_str(" (no way forward from its end)");
        }
    }
    facts
}
