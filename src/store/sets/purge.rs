//! Removes WAL that no backup set needs any more, and the copies that were kept beside it.
//! Never removes a timeline's history, and nothing while the need of a listed set is unknown.
//! Invariant: a file goes only if its segment number is below that of the first segment of every
//! listed set and of everything the caller names, on whatever timeline.
//!
//! An LSN only grows along a cluster's history, also where it changes timelines. A recovery that
//! begins in segment N of one timeline therefore reads no segment with a lower number on any other,
//! and one bound holds for all timelines. A bound for each timeline would remove more, and would be
//! wrong for a set from which another branch can be reached.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use walmgr_protocol::names::{SegmentName, WalFileName};

use super::condition::Condition;
use super::error::SetError;
use super::lock::{Lease, Mode, NamesLock};
use super::{BackupSets, Removal};
use crate::store::apart_notes;
use crate::store::beside::CopyName;
use crate::store::binding::{Marker, MarkerRole};
use crate::store::checksums::remove_finished;
use crate::store::folder::Folder;
use crate::store::servers::{self, Noted};
use crate::store::shared::finished_names;

/// What a purge did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Purged {
    /// The oldest segment that has to stay; `None` when nothing says what is needed, and so
    /// nothing was removed.
    pub oldest_needed: Option<SegmentName>,
    /// How many files are gone.
    pub files: usize,
    /// The server that keeps more than the sets do and that the settings do not name.
    pub held_by: Option<PathBuf>,
}

impl fmt::Display for Purged {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(oldest) = self.oldest_needed else {
            return out.write_str("it is unknown which WAL is needed, so all WAL stays");
        };
        write!(out, "{} files removed, all before {oldest}", self.files)?;
        match &self.held_by {
            Some(data) => write!(out, ", which the server in {} needs", data.display()),
            None => Ok(()),
        }
    }
}

/// Where a segment stands in the WAL, without its timeline: names of one size sort like their
/// positions.
type SegmentPosition = String;

impl BackupSets {
    /// Removes what neither a listed set nor a server on this host can ask for, and that lies here for
    /// `minimum_age` at least. `needed` is asked for the oldest segments that the server in a directory may
    /// still read: of `slave_data`, and of each one that is noted as reading from this archive. It is
    /// asked while no set can be taken from the list: a set that was moved into place is not listed any more.
    pub fn purge_wal(
        &self,
        lease: &Lease,
        minimum_age: Duration,
        slave_data: Option<&Path>,
        needed: &dyn Fn(&Path) -> Result<Vec<SegmentName>, String>,
    ) -> Result<Purged, SetError> {
        self.recover(lease)?;
        // Nobody takes a set away between the list and the removal.
        let _names = NamesLock::acquire(&self.parent, &self.lock_name(), Mode::Alone)?;
        let marker = Marker::read(&self.completed, MarkerRole::Completed)?;
        let segment_size = marker
            .and_then(|marker| marker.binding)
            .map(|binding| binding.segment_size);
        let unknown = |why| SetError::Unknown { why };
        let mut oldest = match slave_data {
            Some(data) => needed(data).map_err(unknown)?,
            None => Vec::new(),
        };
        for set in self.list_locked()? {
            if let Some(why) = set.condition.refusal()
                && !matches!(set.condition, Condition::DamagedFile(_))
            {
                return Err(SetError::Unknown {
                    why: format!("{} is damaged: {why}", set.name),
                });
            }
            let label = set.label.map_err(|why| SetError::Unknown {
                why: format!("the backup_label of {} is not one: {why}", set.name),
            })?;
            oldest.push(label.first_segment);
            // The label names the same segment twice; whichever is older is believed.
            let timeline = label.first_segment.timeline();
            oldest.extend(
                segment_size.map(|size| SegmentName::containing(timeline, label.start, size)),
            );
        }
        let mut oldest = oldest.into_iter().min_by_key(|name| position(*name));
        let mut held_by = None;
        for data in self.noted_servers()? {
            let of_server = needed(&data).map_err(unknown)?;
            let of_server = of_server.into_iter().min_by_key(|name| position(*name));
            let is_older = |name| oldest.is_none_or(|oldest| position(name) < position(oldest));
            if of_server.is_some_and(is_older) {
                (oldest, held_by) = (of_server, Some(data));
            }
        }
        let Some(oldest_needed) = oldest else {
            return Ok(Purged::default());
        };
        Ok(Purged {
            oldest_needed: Some(oldest_needed),
            files: self.remove_before(oldest_needed, minimum_age)?,
            held_by,
        })
    }

    /// The directories of the servers that read from this archive.
    fn noted_servers(&self) -> Result<Vec<PathBuf>, SetError> {
        let noted = servers::noted(&self.completed)?.into_iter();
        let path_of = |note| match note {
            Noted::Directory(path) => Ok(path),
            Noted::Damaged(note) => Err(SetError::Unknown {
                why: format!(
                    "{} should name the data directory of a server that reads from this archive, and is \
                     damaged; remove it once that server has asked for a file",
                    note.display()
                ),
            }),
        };
        noted.map(path_of).collect()
    }

    fn remove_before(&self, needed: SegmentName, minimum_age: Duration) -> Result<usize, SetError> {
        let (completed, oldest) = (&self.completed, &position(needed));
        // Oldest first: a purge that is interrupted leaves no gap.
        let mut found: BTreeMap<(SegmentPosition, WalFileName), String> = BTreeMap::new();
        for (name, text) in finished_names(completed)? {
            if let Some(segment) = name.segment() {
                found.insert((position(segment), name), text);
            }
        }
        let (mut names, mut noted) = (Vec::new(), Vec::new());
        for ((at, name), text) in found {
            if at >= *oldest || !is_old(completed, &text, minimum_age)? {
                break;
            }
            noted.push(name);
            names.push(text);
        }
        let copies = Self::copies_before(completed, oldest, minimum_age)?;
        let partials = match &self.partial {
            Some(partial) => Self::copies_before(partial, oldest, minimum_age)?,
            None => Vec::new(),
        };
        let files = names.len() + copies.len() + partials.len();
        if files > 0 {
            self.tell(&Removal::Wal(needed, files));
        }
        remove_finished(completed, &names)?;
        // Behind the files: one without its note would count.
        for name in noted {
            apart_notes::settle(completed, name)?;
        }
        remove_finished(completed, &copies)?;
        for copy in &copies {
            apart_notes::remove_copy_note(completed, copy)?;
        }
        if let Some(partial) = &self.partial {
            partial.remove_present(&partials)?;
        }
        Ok(files)
    }

    /// What was kept in a folder beside segments that nobody needs any more.
    fn copies_before(
        folder: &Folder,
        oldest: &SegmentPosition,
        minimum_age: Duration,
    ) -> Result<Vec<String>, SetError> {
        let mut copies = Vec::new();
        for text in folder.names()? {
            let segment = CopyName::parse(&text).and_then(|copy| copy.name.segment());
            if segment.is_some_and(|segment| position(segment) < *oldest)
                && is_old(folder, &text, minimum_age)?
            {
                copies.push(text);
            }
        }
        Ok(copies)
    }
}

/// Whether a file has lain there that long, by this host's own record.
fn is_old(folder: &Folder, name: &str, minimum_age: Duration) -> Result<bool, SetError> {
    let stat = folder.stat_at(name)?;
    Ok(stat.is_some_and(|stat| is_older_than(stat.changed_ms, minimum_age)))
}

/// Whether this many milliseconds since 1970 are that long ago. A clock that stands behind makes nothing
/// old.
pub(super) fn is_older_than(since_ms: i64, minimum_age: Duration) -> bool {
    let now_ms = jiff::Timestamp::now().as_millisecond();
    let minimum_ms = i64::try_from(minimum_age.as_millis()).unwrap_or(i64::MAX);
    minimum_age.is_zero() || now_ms.saturating_sub(since_ms) >= minimum_ms
}

fn position(segment: SegmentName) -> SegmentPosition {
    segment.to_string()[8..].to_owned()
}
