//! Tablespaces that the WAL of a drill creates: made in the drill's data directory instead of where the master has them.
//! Never makes anything outside that directory, and never changes the archive. Invariant: a record that creates a
//! tablespace is handed over changed (`wal::in_place`), or its segment is not handed over.
//!
//! A record may begin in one segment and end in the next. Its bytes are then read out of both: the one before out of
//! `pg_wal`, where PostgreSQL keeps what it was handed, the one behind from where it will be handed over.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use walmgr_protocol::limits::SMALL_FILE_BYTES_MAX;
use walmgr_protocol::names::{Lsn, SegmentName, WalFileName, WalSegmentSize};

use super::{RestoreCall, failed};
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use crate::pg::{crossing, layout, location};
use crate::store::SegmentBefore;
use crate::wal::in_place::{self, InPlace};
use crate::wal::obstacle::{Obstacle, Obstacles};

/// In the drill's directory: a line for each tablespace that the set does not have, its location on the master.
const CREATED_NAME: &str = "created";

/// What is read of the segment behind: such a record is shorter than a page.
const BEHIND_BYTES: usize = 16 << 10;

/// The locations, on the master, of the tablespaces that the WAL of the drill in this directory created.
pub(crate) fn created(scratch: &Path) -> BTreeSet<String> {
    let text = files::read_at_most(&scratch.join(CREATED_NAME), SMALL_FILE_BYTES_MAX);
    let text = String::from_utf8(text.unwrap_or_default()).unwrap_or_default();
    text.lines().map(ToOwned::to_owned).collect()
}

/// A segment that is about to be handed over, with the ends of its neighbours.
struct Stretch<'a> {
    size: WalSegmentSize,
    start: Lsn,
    before: Option<File>,
    file: &'a File,
    behind: Vec<u8>,
}

impl Stretch<'_> {
    const fn end(&self) -> Lsn {
        Lsn(self.start.0 + self.size.bytes())
    }

    fn read_at(&self, lsn: Lsn, piece: &mut [u8]) -> io::Result<usize> {
        if lsn < self.start {
            let offset = (lsn.0 + self.size.bytes()).checked_sub(self.start.0);
            return match (&self.before, offset) {
                (Some(file), Some(offset)) => file.read_at(piece, offset),
                _ => Ok(0),
            };
        }
        if lsn < self.end() {
            return self.file.read_at(piece, lsn.0 - self.start.0);
        }
        let offset = usize::try_from(lsn.0 - self.end().0).unwrap_or(usize::MAX);
        let behind = self.behind.get(offset..).unwrap_or_default();
        let read_bytes = piece.len().min(behind.len());
        piece[..read_bytes].copy_from_slice(&behind[..read_bytes]);
        Ok(read_bytes)
    }

    fn change_of(&self, lsn: Lsn) -> io::Result<Option<InPlace>> {
        in_place::change_of(lsn, self.size, |lsn, piece| self.read_at(lsn, piece))
    }

    /// Changes what lies in this segment.
    fn apply(&self, change: &InPlace) -> io::Result<()> {
        let here = self.start..self.end();
        let here = change.changes.iter().filter(|(lsn, _)| here.contains(lsn));
        for (lsn, byte) in here {
            self.file.write_all_at(&[*byte], lsn.0 - self.start.0)?;
        }
        Ok(())
    }
}

impl RestoreCall<'_> {
    /// Has the tablespaces that the segment in `file` creates made in the data directory.
    pub(super) fn keep_tablespaces_inside(&self, file: &File, obstacles: &Obstacles) -> Result<()> {
        let (WalFileName::Segment(segment), Some(data)) = (self.name, self.data.as_deref()) else {
            return Ok(());
        };
        let size = self.archive.binding().segment_size;
        let Some(start) = segment.start(size) else {
            return Ok(());
        };
        let mut stretch = Stretch {
            size,
            start,
            before: None,
            file,
            behind: Vec::new(),
        };
        let begin = location::recovery_begin(data).unwrap_or_default();
        let mut creating: BTreeSet<Lsn> = (obstacles.all().iter())
            .filter(|met| met.lsn >= begin && is_elsewhere(&met.obstacle))
            .map(|met| met.lsn)
            .collect();
        let changing = |result: io::Result<()>| result.at(Kind::Retry, "change", self.path);
        let reading = |error: io::Error| CommandError::retry("read the WAL").because(error);
        if let Some(open) = crossing::open_record(file, segment, size).map_err(reading)? {
            let header = in_place::header_at(open, size, |lsn, piece| stretch.read_at(lsn, piece));
            let header = header.map_err(reading)?;
            if header.is_none_or(|header| in_place::creates_tablespace(&header)) {
                stretch.behind = self.beginning_behind(segment)?;
                if stretch.change_of(open).map_err(reading)?.is_some() {
                    creating.insert(open);
                }
            }
        }
        if creating.first().is_some_and(|lsn| *lsn < start) {
            stretch.before = crossing::file_before(data, segment, size);
        }
        for lsn in creating {
            let change = stretch.change_of(lsn).map_err(reading)?.ok_or_else(|| {
                CommandError::retry(format!(
                    "{segment} is held back: the record at {lsn}, which creates a tablespace, cannot be read whole"
                ))
            })?;
            make_room(data, &change)?;
            changing(stretch.apply(&change))?;
        }
        Ok(())
    }

    /// How the segment behind this one begins, on its own timeline or the next that has it.
    fn beginning_behind(&self, segment: SegmentName) -> Result<Vec<u8>> {
        let size = self.archive.binding().segment_size;
        let number = segment
            .number(size)
            .and_then(|number| number.checked_add(1));
        let Some(number) = number else {
            return Ok(Vec::new());
        };
        let mut bytes = Vec::new();
        let mut take = |piece: &[u8]| {
            let room = BEHIND_BYTES - bytes.len();
            bytes.extend_from_slice(&piece[..room.min(piece.len())]);
            bytes.len() < BEHIND_BYTES
        };
        let is_behind = |name: &SegmentName| {
            name.number(size) == Some(number) && name.timeline() >= segment.timeline()
        };
        let copies = self.copies(Path::new(".."))?;
        let listed = self.listed_copies(&copies)?;
        let copied = listed.iter().filter(|copy| is_behind(&copy.segment));
        if let Some(copy) = copied.min_by_key(|copy| copy.segment.timeline()) {
            let read = copies.read_copy(copy, take);
            read.map_err(|error| failed("read the drill's copies", &error))?;
            return Ok(bytes);
        }
        let doing = || format!("look for what goes on behind {segment}");
        let listing = self.archive.listing();
        let listing = listing.map_err(|error| failed(&doing(), &error))?;
        let mut finished = listing.segments.following(segment);
        let Some(next) = finished.next() else {
            return Ok(bytes);
        };
        let stored = self.archive.find(WalFileName::Segment(next));
        if let Some(stored) = stored.map_err(|error| failed(&doing(), &error))? {
            // It ends with an error as nobody reads on; what is wrong with it is told where it is handed over.
            let _ = stored.read_verified(SegmentBefore::NotRead, &mut take);
        }
        Ok(bytes)
    }
}

fn is_elsewhere(obstacle: &Obstacle) -> bool {
    matches!(obstacle, Obstacle::Tablespace { location, .. } if !location.is_empty())
}

/// Leads the tablespace to a directory of its own below the data directory, as those of the set are.
fn make_room(data: &Path, change: &InPlace) -> Result<()> {
    let data = data.canonicalize().at(Kind::Retry, "find", data)?;
    let oid = change.oid.to_string();
    let link = data.join(layout::PG_TBLSPC).join(&oid);
    if link.symlink_metadata().is_ok() {
        return Ok(());
    }
    let kept = data.join(layout::TMPSPC);
    files::make_directory(&kept)?;
    let space = kept.join(&oid);
    files::make_directory(&space)?;
    note_created(&data, change)?;
    files::link(&link, &space).at(Kind::Retry, "link", &link)
}

fn note_created(data: &Path, change: &InPlace) -> Result<()> {
    let path = data.with_file_name(CREATED_NAME);
    let location = String::from_utf8_lossy(&change.location);
    let line = format!("{}\n", location.escape_debug());
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path);
    let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
    written.at(Kind::Retry, "write", &path)
}
