//! What the server of a drill gets: the archive up to the drill's goal, and copies of the segments in progress.
//! Never heeds or leaves a control file or a note in the archive, and never waits. Invariant: behind the goal there is
//! nothing, and where the goal is not known nothing is said to be absent.

use std::path::Path;
use std::sync::Arc;

use walmgr_protocol::names::{SegmentName, WalFileName};

use super::{ArchiveLook, RestoreCall, absent, failed};
use crate::error::{CommandError, Result};
use crate::standby::drill::goal::{DrillGoal, FixedGoal};
use crate::store::{ArchiveReader, FrozenSegment, PartialWals, RealDisk};
use crate::wal::obstacle::Obstacles;
use crate::wal::obstacle_walk::ObstacleWalk;
use crate::wal::scan::Scanner;

const READING_COPIES: &str = "read the drill's copies";

impl RestoreCall<'_> {
    /// Hands over one file to a server that stands in the directory of its drill.
    pub(super) fn run_for_drill(&self) -> Result<()> {
        // PostgreSQL works in its data directory, and so do we.
        let scratch = Path::new("..");
        let goal = DrillGoal::read(scratch)?;
        goal.note_asked(scratch, self.name);
        match self.look_for_drill(&goal, scratch)? {
            ArchiveLook::Served => Ok(()),
            ArchiveLook::Absent => Err(absent(self.name)),
            ArchiveLook::Gap(error) | ArchiveLook::Unfit(error) => Err(error),
            ArchiveLook::Held => Err(CommandError::retry("replay is paused")),
        }
    }

    fn look_for_drill(&self, goal: &FixedGoal, scratch: &Path) -> Result<ArchiveLook> {
        if let Some(look) = self.look_at_history(None)? {
            return Ok(look);
        }
        let size = self.archive.binding().segment_size;
        if let WalFileName::Segment(segment) = self.name {
            if segment
                .number(size)
                .is_none_or(|number| number > goal.last_number(size))
            {
                return Ok(ArchiveLook::Absent);
            }
            if let Some(look) = self.look_at_copies(scratch, segment)? {
                return Ok(look);
            }
            let passed_over = self.archive.is_passed_over(segment);
            if passed_over.map_err(|error| failed(&format!("look for {segment}"), &error))? {
                return Ok(ArchiveLook::Absent);
            }
        }
        match self.archive.find(self.name) {
            Ok(Some(stored)) => self.serve(&stored),
            Ok(None) => self.look_at_absence(),
            Err(error) => Ok(ArchiveLook::Unfit(self.unreadable(&error))),
        }
    }

    /// A segment that was in progress when the drill looked.
    fn look_at_copies(&self, scratch: &Path, segment: SegmentName) -> Result<Option<ArchiveLook>> {
        let copies = self.copies(scratch)?;
        let mut listed = self.listed_copies(&copies)?.into_iter();
        let Some(copy) = listed.find(|copy| copy.segment == segment) else {
            return Ok(None);
        };
        let served = self.hand_over(|each| {
            let before = |segment| ArchiveReader::scanner_before(&self.archive, segment);
            let scanner = copies.scanner_before_copy(segment, &before)?;
            let size = self.archive.binding().segment_size;
            let start = segment.start(size).unwrap_or_default();
            let scanner = scanner.unwrap_or_else(|| Scanner::new(start, size));
            let mut walk = ObstacleWalk::from(scanner.up_to_timeline(segment.timeline()));
            copies.read_copy(&copy, |bytes| {
                walk.update(bytes);
                each(bytes)
            })?;
            Ok(walk.obstacles().clone())
        });
        served.map(Some)
    }

    pub(super) fn copies(&self, scratch: &Path) -> Result<PartialWals> {
        let copies = DrillGoal::copies(scratch);
        let copies = PartialWals::of_copies(&copies, self.archive.binding(), Arc::new(RealDisk));
        copies.map_err(|error| failed(READING_COPIES, &error))
    }

    pub(super) fn listed_copies(&self, copies: &PartialWals) -> Result<Vec<FrozenSegment>> {
        let listed = copies.frozen();
        let listed = listed.map_err(|error| failed(READING_COPIES, &error))?;
        let segments = listed.and_then(|listed| listed.segments);
        Ok(segments.unwrap_or_default())
    }

    /// More tablespaces than are remembered would be made where the WAL says.
    pub(super) fn held_back_from_drill(&self, obstacles: &Obstacles) -> Option<CommandError> {
        obstacles.is_cut().then(|| {
            CommandError::retry(format!(
                "{} is held back: it creates too many tablespaces to check",
                self.name
            ))
            .hint("make a new backup on the master: a set that has the tablespaces can be drilled")
        })
    }
}
