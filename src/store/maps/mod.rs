//! What changed in the data directory between two places in the archive's WAL.
//! Never changes the archive's WAL. Invariant: what is said to have stayed the same is named by no record of the
//! whole stretch, and a stretch of which a byte is missing says nothing.

use std::io;

use walmgr_protocol::names::{Lsn, SegmentName, TimelineId, WalFileName, WalSegmentSize};

use super::error::StoreError;
use super::partial::PartialWals;
use super::reader::ArchiveReader;
use super::route::Route;
use crate::error::CommandError;
use crate::pg::recovery::TargetTimeline;
use crate::wal::changes::Changes;
use crate::wal::page::{FIRST_IS_CONTRECORD, LONG_HEADER_BYTES, PageHeader};
use crate::wal::record;
use crate::wal::references::{self, REFERENCES_BYTES_MAX};
use crate::wal::segment_map::SegmentMap;

#[cfg(test)]
mod tests;

/// A stretch of WAL: from a place on one timeline to a place on the same one, or on one that came from it
/// behind the first place. Both are where records begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapStretch {
    /// As a rule the start of the backup that is to be built on.
    pub from: (TimelineId, Lsn),
    /// As a rule the start of the backup that is being made.
    pub to: (TimelineId, Lsn),
}

/// Why the archive does not say what changed.
#[derive(Debug, thiserror::Error)]
pub enum NoChanges {
    /// WAL is missing. Right behind the newest segment it may still come.
    #[error("{segment} is missing, or the archive has not all of it yet")]
    Missing {
        /// The first segment that is.
        segment: SegmentName,
    },
    /// No timeline leads from the one place to the other.
    #[error("no timeline leads from {} on timeline {} to {} on timeline {}", .0.from.1, .0.from.0, .0.to.1, .0.to.0)]
    OffLine(MapStretch),
    /// The archive's timelines cannot be told.
    #[error(transparent)]
    Timelines(CommandError),
    /// The WAL cannot be read, or is not what was acknowledged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record that crosses from one segment into the next cannot be read.
    #[error("cannot read the archive: {0}")]
    Unreadable(io::Error),
}

/// What may have changed in a cluster's relations while this stretch of WAL was written. Along the line of timelines that
/// leads from one place to the other, every record that begins at `from` or behind and before `to` counts, and maybe
/// some around them. `partials` has what was shipped of segments that are not finished.
///
/// Whoever builds a new copy of a cluster on an old one, takes of each relation what [`Changes::of`] asks for, and
/// whole what is no relation. If [`Changes::everything`] says so, the old copy is of no use.
///
/// # Errors
/// [`NoChanges::Missing`] if a segment is not here, or does not reach up to `to` yet.
pub fn changes_between(
    archive: &ArchiveReader,
    partials: Option<&PartialWals>,
    stretch: MapStretch,
) -> Result<Changes, NoChanges> {
    let MapStretch { from, to } = stretch;
    let lineage = archive.lineage(&[])?;
    let line = lineage.line_to(to.0);
    let is_on_line = line.leg(from.0).is_some_and(|leg| from.1 <= leg.end);
    if from.1 > to.1 || !is_on_line {
        return Err(NoChanges::OffLine(stretch));
    }
    let wanted = TargetTimeline::Number(to.0);
    let route = Route::within(archive, lineage, from, wanted).map_err(NoChanges::Timelines)?;
    let walk = MapWalk {
        archive,
        partials,
        route,
        size: archive.binding().segment_size,
    };
    walk.changes(from.1, to.1)
}

/// A walk over the maps of a stretch.
struct MapWalk<'a> {
    archive: &'a ArchiveReader,
    partials: Option<&'a PartialWals>,
    route: Route<'a>,
    size: WalSegmentSize,
}

impl MapWalk<'_> {
    fn changes(&self, from: Lsn, to: Lsn) -> Result<Changes, NoChanges> {
        let mut changes = Changes::default();
        let first = from.0 / self.size.bytes();
        // Nothing begins before the headers of the first page.
        let last = to.0.saturating_sub(1) / self.size.bytes();
        for number in first..=last {
            let map = self.map(number, to)?;
            changes.merge(&map.changes);
            if let Some(begins) = map.open.filter(|begins| *begins < to) {
                self.add_crossing(begins, &mut changes)?;
            }
        }
        changes.clear_everything_outside(from..to);
        Ok(changes)
    }

    fn map(&self, number: u64, to: Lsn) -> Result<SegmentMap, NoChanges> {
        if let Some(segment) = self.route.segment(number) {
            let name = WalFileName::Segment(segment);
            if let Some(stored) = self.archive.find(name)? {
                return Ok(stored.map()?);
            }
        }
        let segment = self.route.line().name(number);
        let partial = match self.partials {
            Some(partials) => partials.map(segment)?,
            None => None,
        };
        let (map, end) = partial.ok_or(NoChanges::Missing { segment })?;
        let segment_end = Lsn((number + 1) * self.size.bytes());
        (end >= to.min(segment_end))
            .then_some(map)
            .ok_or(NoChanges::Missing { segment })
    }

    /// Adds what a record changes that begins so close to the end of its segment that the map does not have it.
    fn add_crossing(&self, begins: Lsn, changes: &mut Changes) -> Result<(), NoChanges> {
        let next = begins.0 / self.size.bytes() + 1;
        let boundary = Lsn(next * self.size.bytes());
        let segment = self.route.line().name(next);
        let mut header = [0; LONG_HEADER_BYTES];
        if self.read_at(boundary, &mut header)? < header.len() {
            return Err(NoChanges::Missing { segment });
        }
        if !PageHeader::decode(&header, true).has(FIRST_IS_CONTRECORD) {
            // A crash cut it short, and nobody replays it.
            return Ok(());
        }
        let mut record = [0; REFERENCES_BYTES_MAX];
        let read_at = |lsn: Lsn, piece: &mut [u8]| self.read_at(lsn, piece);
        let read_bytes = record::read_record(begins, self.size, &mut record, read_at)?;
        let major = self.archive.binding().postgres_major;
        let is_noted = references::note_record(changes, begins, &record[..read_bytes], major);
        is_noted.then_some(()).ok_or(NoChanges::Missing { segment })
    }

    /// Reads within one segment; 0 where there is none.
    fn read_at(&self, lsn: Lsn, piece: &mut [u8]) -> Result<usize, NoChanges> {
        let read_bytes = (self.route.read_at(lsn, piece)).map_err(NoChanges::Unreadable)?;
        match self.partials {
            Some(partials) if read_bytes == 0 => {
                let segment = self.route.line().name(lsn.0 / self.size.bytes());
                Ok(partials.read_at(segment, lsn, piece)?)
            }
            _ => Ok(read_bytes),
        }
    }
}
