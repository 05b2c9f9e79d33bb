//! Which records a server meets in the archive that replay may not get past.
//! Never decides who gets past; `wal::obstacle` says what each asks. Invariant: a segment whose note says nothing that
//! can be believed is read itself.

use std::collections::BTreeMap;

use walmgr_protocol::names::{Lsn, SegmentName, WalFileName};

use super::error::StoreError;
use super::lineage::{Lineage, TimelineLine};
use super::obstacle_notes::{NOTE_BYTES_MAX, OBSTACLES_NAME, open, parse, renew, walk};
use super::reader::ArchiveReader;
use super::shared::{Archive, finished_names};
use crate::pg::backup_label::BackupLabel;
use crate::wal::obstacle::{Met, Obstacles};

/// Says that segments from before were looked through.
const WALKED: &str = "walked";

impl Archive {
    /// Looks through the segments that were stored before anybody noted obstacles, until `stops` says so.
    pub fn note_older_obstacles(&self, stops: &dyn Fn() -> bool) -> Result<(), StoreError> {
        let completed = &self.shared.completed;
        let Ok(binding) = self.shared.binding() else {
            return Ok(());
        };
        completed.make_below(OBSTACLES_NAME)?;
        let Some(folder) = open(completed)? else {
            return Ok(());
        };
        if folder.stat_at(WALKED)?.is_some() {
            return Ok(());
        }
        for name in finished_names(completed)?.into_keys() {
            if stops() {
                return Ok(());
            }
            if let WalFileName::Segment(segment) = name {
                let _guard = self.shared.names.lock(name);
                if folder.stat_at(&segment.to_string())?.is_none() {
                    renew(completed, segment, binding.segment_size)?;
                }
            }
        }
        folder.write_small(WALKED, b"")
    }
}

impl ArchiveReader {
    /// What replay may not get past, of every segment that is here and has any.
    pub fn obstacles(&self) -> Result<BTreeMap<SegmentName, Obstacles>, StoreError> {
        let mut found = BTreeMap::new();
        let Some(folder) = open(&self.completed)? else {
            return Ok(found);
        };
        for text in folder.names()? {
            let Ok(segment) = text.parse::<SegmentName>() else {
                continue;
            };
            if self.completed.stat_at(&text)?.is_none() {
                continue;
            }
            let note = folder.read_small(&text, NOTE_BYTES_MAX)?;
            let noted = note.and_then(|note| parse(segment, &note));
            let obstacles = match noted {
                Some(noted) => noted,
                None => walk(&self.completed, segment, self.binding().segment_size)?,
            };
            found.insert(segment, obstacles);
        }
        Ok(found)
    }

    /// The obstacles ahead of a recovery that begins with this label and follows the newest timeline, in the order of
    /// the WAL.
    pub fn ahead_of(&self, label: &BackupLabel) -> Result<Vec<Met>, StoreError> {
        let noted = self.obstacles()?;
        if noted.is_empty() {
            return Ok(Vec::new());
        }
        let lineage = self.lineage(&[])?;
        let line = lineage.line_from(label.first_segment.timeline(), label.start)?;
        Ok(along(noted, &lineage, &line, label.start))
    }

    /// The obstacles ahead of a server that reads along this line from `from` on, in the order of the WAL.
    pub fn obstacles_on(
        &self,
        lineage: &Lineage,
        line: &TimelineLine,
        from: Lsn,
    ) -> Result<Vec<Met>, StoreError> {
        Ok(along(self.obstacles()?, lineage, line, from))
    }
}

fn along(
    noted: BTreeMap<SegmentName, Obstacles>,
    lineage: &Lineage,
    line: &TimelineLine,
    from: Lsn,
) -> Vec<Met> {
    let mut found: Vec<Met> = Vec::new();
    for (segment, obstacles) in noted {
        let Some((number, end)) = line.part_of(segment) else {
            continue;
        };
        if lineage.segment(line, number) == Some(segment) {
            found.extend(obstacles.between(from, end).cloned());
        }
    }
    found.sort_by_key(|met| met.lsn);
    found.dedup();
    found
}
