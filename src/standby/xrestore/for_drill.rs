//! What the server of a drill gets: the archive up to the drill's goal, and copies of the segments in progress.
//! Never heeds or leaves a control file or a note in the archive, and never waits. Invariant: behind the goal there is
//! nothing, and where the goal is not known nothing is said to be absent.

use std::path::Path;
use std::sync::Arc;

use walmgr_protocol::names::{SegmentName, WalFileName};

use super::{ArchiveLook, RestoreCall, absent, failed};
use crate::error::{CommandError, Kind, Result};
use crate::pg::location;
use crate::standby::drill::goal::{DrillGoal, FixedGoal};
use crate::store::{ArchiveReader, PartialWals, RealDisk};
use crate::wal::obstacle::{Obstacle, Obstacles};
use crate::wal::obstacle_walk::ObstacleWalk;
use crate::wal::scan::Scanner;

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
        let binding = self.archive.binding();
        let failed = |error| failed("read the drill's copies", &error);
        let copies = DrillGoal::copies(scratch);
        let copies =
            PartialWals::of_copies(&copies, binding, Arc::new(RealDisk)).map_err(failed)?;
        let listed = copies.frozen().map_err(failed)?;
        let mut listed = listed
            .and_then(|listed| listed.segments)
            .unwrap_or_default()
            .into_iter();
        let Some(copy) = listed.find(|copy| copy.segment == segment) else {
            return Ok(None);
        };
        let served = self.hand_over(|each| {
            let before = |segment| ArchiveReader::scanner_before(&self.archive, segment);
            let scanner = copies.scanner_before_copy(segment, &before)?;
            let size = binding.segment_size;
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

    /// A tablespace would be made where the WAL says, and no drill writes outside its directory.
    pub(super) fn held_back_from_drill(&self, obstacles: &Obstacles) -> Option<CommandError> {
        if obstacles.is_cut() {
            let doing = "it creates too many tablespaces to check";
            return Some(CommandError::new(Kind::Retry, doing));
        }
        let begin = self.data.as_deref().and_then(location::recovery_begin);
        let mut ahead = obstacles.all().iter();
        let ahead = ahead.find_map(|met| match &met.obstacle {
            Obstacle::Tablespace { oid, location }
                if !location.is_empty() && begin.is_none_or(|begin| met.lsn >= begin) =>
            {
                let location = String::from_utf8_lossy(location).into_owned();
                Some((met.lsn, *oid, location))
            }
            _ => None,
        });
        if let Some((lsn, oid, location)) = ahead {
            let doing = format!(
                "{} is held back: the WAL at {lsn} creates tablespace {oid} at {}, and a drill does not write \
                 outside its own directory",
                self.name,
                location.escape_debug()
            );
            let hint =
                "make a new backup on the master: a set that has the tablespace can be drilled";
            return Some(CommandError::new(Kind::Retry, doing).hint(hint));
        }
        None
    }
}
