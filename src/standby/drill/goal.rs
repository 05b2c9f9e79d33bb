//! Up to where a drill has to come: the newest record that the standby holds when it looks.
//! Never freezes a segment in progress, and never changes one. Invariant: what is fixed does not change while
//! PostgreSQL replays it, however often it asks for the same file.
//!
//! In the drill's directory, `goal` has the LSN as text, `partial` the copies of the segments in progress with their
//! list, and `asked` the name of the file that PostgreSQL asked for last.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use walmgr_protocol::limits::SMALL_FILE_BYTES_MAX;
use walmgr_protocol::names::{Lsn, WalFileName, WalSegmentSize};

use crate::config::StandbyConfig;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use crate::pg::backup_label::BackupLabel;
use crate::standby::frozen::Partials;
use crate::standby::verdict::{self, AcknowledgedEnd, InProgress};
use crate::store::{ArchiveReader, PartialWals, RealDisk, StoreError};

const GOAL_NAME: &str = "goal";
const COPIES_NAME: &str = "partial";
const ASKED_NAME: &str = "asked";

/// What has to be reached.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DrillGoal {
    /// The end of the last record, and its timeline.
    pub(super) acknowledged: AcknowledgedEnd,
}

impl DrillGoal {
    /// Looks how far the WAL leads now from where a set begins; fails where some of it is missing or damaged.
    pub(super) fn look(config: &StandbyConfig, label: &BackupLabel) -> Result<DrillGoal> {
        let partials = Partials::open(config)?.in_progress()?;
        DrillGoal::with(config, label, &partials)
    }

    fn with(
        config: &StandbyConfig,
        label: &BackupLabel,
        partials: &InProgress,
    ) -> Result<DrillGoal> {
        let archive = open(config)?;
        let at = (label.first_segment.timeline(), label.start);
        let way = verdict::find(&archive, partials, at)?;
        if let Some(gap) = way.gap {
            return Err(CommandError::retry(format!(
                "{} is missing in the archive: the set can be replayed only up to {}, and WAL up to {} is held",
                gap.missing, gap.lost_from, gap.lost_to
            ))
            .hint("archive it again from the master's pg_wal, or make a new backup"));
        }
        if let Some(damage) = way.damage {
            return Err(CommandError::retry(damage.to_string())
                .hint("send it again from the master (syncdaemon, or xarchive of the segment)"));
        }
        Ok(DrillGoal {
            acknowledged: way.acknowledged,
        })
    }

    /// Copies the segments in progress into the drill's directory, and writes down how far all there is leads.
    pub(super) fn fix(
        config: &StandbyConfig,
        label: &BackupLabel,
        scratch: &Path,
    ) -> Result<DrillGoal> {
        let before = DrillGoal::look(config, label)?;
        let archive = open(config)?;
        let copies = DrillGoal::copies(scratch);
        files::make_directory(&copies)?;
        let disk = Arc::new(RealDisk);
        let failed = |error: StoreError| {
            CommandError::new(error.kind(), "copy the segments in progress").because(error)
        };
        let partials = PartialWals::open(&config.partial_wals, disk.clone()).map_err(failed)?;
        let scanner_before = |segment| archive.scanner_before(segment);
        let ends = partials
            .snapshot(&copies, &scanner_before)
            .map_err(failed)?;
        let vanished = Vec::new();
        // The archive is looked at behind the copies: what is in neither was in progress in between.
        let mut goal = DrillGoal::with(config, label, &InProgress { ends, vanished })?;
        if goal.end() < before.end() {
            goal = before;
        }
        // What was finished meanwhile goes further.
        let archive = open(config)?;
        let is_finished = |segment| {
            let found = archive.find(WalFileName::Segment(segment));
            matches!(found, Ok(Some(_)))
        };
        let copies = PartialWals::of_copies(&copies, archive.binding(), disk).map_err(failed)?;
        (copies.keep_copies(|segment| !is_finished(segment))).map_err(failed)?;
        let path = scratch.join(GOAL_NAME);
        let text = format!("{}\n", goal.end());
        files::replace(&path, text.as_bytes(), 0o600).at(Kind::Retry, "write", &path)?;
        Ok(goal)
    }

    /// What the drill in whose directory this is wrote down.
    pub(crate) fn read(scratch: &Path) -> Result<FixedGoal> {
        let path = scratch.join(GOAL_NAME);
        let text = files::read_at_most(&path, SMALL_FILE_BYTES_MAX);
        let text = text.map_err(|error| {
            CommandError::config("--drill is for the server of a drill").because(error)
        })?;
        let lsn = std::str::from_utf8(&text).ok();
        let lsn = lsn.and_then(|text| text.trim().parse().ok());
        let end = lsn.ok_or_else(|| {
            CommandError::config(format!("expected an LSN in {}", path.display()))
        })?;
        Ok(FixedGoal { end })
    }

    /// Where the copies of the segments in progress are.
    pub(crate) fn copies(scratch: &Path) -> PathBuf {
        scratch.join(COPIES_NAME)
    }

    /// The file that PostgreSQL asked for last.
    pub(super) fn asked(scratch: &Path) -> Option<String> {
        let text = files::read_at_most(&scratch.join(ASKED_NAME), SMALL_FILE_BYTES_MAX).ok()?;
        let text = String::from_utf8(text).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// The LSN.
    pub(super) const fn end(&self) -> Lsn {
        self.acknowledged.end
    }
}

/// A goal as `xrestore` reads it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FixedGoal {
    end: Lsn,
}

impl FixedGoal {
    /// The number of the last segment that is needed.
    pub(crate) fn last_number(&self, size: WalSegmentSize) -> u64 {
        self.end.0.saturating_sub(1) / size.bytes()
    }

    /// Says which file was asked for, for whoever waits; without that a drill is only silent.
    pub(crate) fn note_asked(&self, scratch: &Path, name: WalFileName) {
        let _ = files::note(&scratch.join(ASKED_NAME), format!("{name}\n").as_bytes());
    }
}

fn open(config: &StandbyConfig) -> Result<ArchiveReader> {
    let archive = ArchiveReader::open(&config.completed_wals, Arc::new(RealDisk));
    archive.map_err(|error| CommandError::new(error.kind(), "open the archive").because(error))
}
