//! Removes WAL that nobody needs any more, and the copies that were kept beside it.
//! Never removes a timeline's history, and nothing while the need of a listed set is unknown. Invariant: a file goes
//! only if its segment is in none of the stretches that `policy` keeps for a set or a server, on whatever timeline.
//!
//! An LSN only grows along a cluster's history, also where it changes timelines. A recovery that
//! begins in segment N of one timeline therefore reads no segment with a lower number on any other,
//! and one bound holds for all timelines. A bound for each timeline would remove more, and would be
//! wrong for a set from which another branch can be reached.
//!
//! Before a stretch goes that lies behind WAL that stays, it is noted (see `purged_note`): what is missing there is no
//! hole that somebody has to hear of.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use walmgr_protocol::names::{BackupName, SegmentName, WalFileName, WalSegmentSize};

use super::BackupSets;
use super::condition::Condition;
use super::error::SetError;
use super::list::SetEntry;
use super::lock::{Lease, Mode, NamesLock};
use super::policy::{Keeping, SegmentPlace, WalNeeds};
use super::purged_note::{PurgedStretches, WalStretch};
use super::retention::now_ms;
use crate::audit::AuditEvent;
use crate::store::apart_notes;
use crate::store::beside::CopyName;
use crate::store::binding::{Marker, MarkerRole};
use crate::store::checksums::remove_finished;
use crate::store::folder::Folder;
use crate::store::servers::{self, Noted};
use crate::store::shared::finished_names;

/// What a purge did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Purged {
    /// The oldest segment that has to stay; `None` when nothing says what is needed, and so
    /// nothing was removed.
    pub oldest_needed: Option<SegmentName>,
    /// How many files are gone.
    pub files: usize,
    /// The stretches that they were.
    pub stretches: Vec<WalStretch>,
    /// The server that keeps more than the sets do and that the settings do not name.
    pub held_by: Option<PathBuf>,
}

impl fmt::Display for Purged {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(oldest) = self.oldest_needed else {
            return out.write_str("it is unknown which WAL is needed, so all WAL stays");
        };
        let before =
            |stretch: &WalStretch| SegmentPlace::of(stretch.last) < SegmentPlace::of(oldest);
        match self.stretches.iter().all(before) {
            true => write!(out, "{} files removed, all before {oldest}", self.files)?,
            false => write!(
                out,
                "{} files removed, before {oldest} and behind backup sets that need no more",
                self.files
            )?,
        }
        match &self.held_by {
            Some(data) => write!(out, ", which the server in {} needs", data.display()),
            None => Ok(()),
        }
    }
}

/// What a server in a directory may still read: its oldest segments.
pub(crate) type AskServer<'a> = &'a dyn Fn(&Path) -> Result<Vec<SegmentName>, String>;

/// What goes, by the folder it is in.
#[derive(Default)]
struct Superfluous {
    finished: Vec<(WalFileName, String)>,
    copies: Vec<String>,
    partial_copies: Vec<String>,
    stretches: Vec<WalStretch>,
}

/// What is needed, and of whom.
struct ArchiveNeeds {
    needs: WalNeeds,
    oldest: Option<SegmentName>,
    held_by: Option<PathBuf>,
}

impl BackupSets {
    /// Removes what neither a listed set nor a server on this host can ask for, and that lies here for
    /// the minimum age at least. `needed` is asked for the oldest segments that the server in a directory may
    /// still read: of `slave_data`, and of each one that is noted as reading from this archive. It is
    /// asked while no set can be taken from the list: a set that was moved into place is not listed any more.
    pub(crate) fn purge_wal(
        &self,
        lease: &Lease,
        keeping: Keeping,
        slave_data: Option<&Path>,
        needed: AskServer<'_>,
    ) -> Result<Purged, SetError> {
        self.recover(lease)?;
        // Nobody takes a set away between the list and the removal.
        let _names = NamesLock::acquire(&self.parent, &self.lock_name(), Mode::Alone)?;
        let found = self.needed_wal((keeping, &[]), slave_data, needed)?;
        let superfluous = self.superfluous(&found.needs, keeping)?;
        let purged = Purged::of(found, &superfluous);
        if purged.files > 0 {
            self.remove_superfluous(&superfluous)?;
        }
        Ok(purged)
    }

    /// What a purge would remove once these sets are gone.
    pub(crate) fn purge_to_come(
        &self,
        (keeping, gone): (Keeping, &[BackupName]),
        slave_data: Option<&Path>,
        needed: AskServer<'_>,
    ) -> Result<Purged, SetError> {
        let _names = NamesLock::acquire(&self.parent, &self.lock_name(), Mode::Shared)?;
        let found = self.needed_wal((keeping, gone), slave_data, needed)?;
        let superfluous = self.superfluous(&found.needs, keeping)?;
        Ok(Purged::of(found, &superfluous))
    }

    fn needed_wal(
        &self,
        (keeping, gone): (Keeping, &[BackupName]),
        slave_data: Option<&Path>,
        needed: AskServer<'_>,
    ) -> Result<ArchiveNeeds, SetError> {
        let unknown = |why| SetError::Unknown { why };
        let of_server = match slave_data {
            Some(data) => needed(data).map_err(unknown)?,
            None => Vec::new(),
        };
        let mut listed = self.list_locked()?;
        listed.retain(|set| !gone.contains(&set.name));
        let mut oldest = of_server.clone();
        let marker = Marker::read(&self.completed, MarkerRole::Completed)?;
        let binding = marker.and_then(|marker| marker.binding);
        let size = binding.map(|binding| binding.segment_size);
        for set in &listed {
            oldest.extend(first_segments(set, size)?);
        }
        let retention = self.retention_of(listed, keeping)?;
        let needs = WalNeeds::of(&retention.sets, &retention.decided);
        let mut needs = needs.ok_or_else(|| unknown("the label of a set is damaged".to_owned()))?;
        for name in of_server {
            needs.add(
                SegmentPlace::of(name),
                None,
                "the server in slave_data".to_owned(),
            );
        }
        let mut oldest = oldest
            .into_iter()
            .min_by_key(|name| SegmentPlace::of(*name));
        let mut held_by = None;
        for data in self.noted_servers()? {
            let of_server = needed(&data).map_err(unknown)?;
            for name in &of_server {
                let by = format!("the server in {}", data.display());
                needs.add(SegmentPlace::of(*name), None, by);
            }
            let of_server = of_server
                .into_iter()
                .min_by_key(|name| SegmentPlace::of(*name));
            let is_older = |name| {
                oldest.is_none_or(|oldest| SegmentPlace::of(name) < SegmentPlace::of(oldest))
            };
            if of_server.is_some_and(is_older) {
                (oldest, held_by) = (of_server, Some(data));
            }
        }
        Ok(ArchiveNeeds {
            needs,
            oldest,
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

    /// What nobody needs, oldest first: a purge that is interrupted leaves no gap within what stays.
    fn superfluous(&self, needs: &WalNeeds, keeping: Keeping) -> Result<Superfluous, SetError> {
        let mut found = Superfluous::default();
        if needs.is_empty() {
            return Ok(found);
        }
        let mut names: BTreeMap<(SegmentPlace, WalFileName), String> = BTreeMap::new();
        for (name, text) in finished_names(&self.completed)? {
            if let Some(segment) = name.segment() {
                names.insert((SegmentPlace::of(segment), name), text);
            }
        }
        let mut segments = Vec::new();
        for ((place, name), text) in names {
            if needs.by(place).is_some() {
                continue;
            }
            if !is_old(&self.completed, &text, keeping)? {
                break;
            }
            segments.extend(name.segment());
            found.finished.push((name, text));
        }
        found.copies = copies_in(&self.completed, (needs, keeping), &mut segments)?;
        if let Some(partial) = &self.partial {
            found.partial_copies = copies_in(partial, (needs, keeping), &mut segments)?;
        }
        found.stretches = stretches(segments, needs);
        Ok(found)
    }

    fn remove_superfluous(&self, found: &Superfluous) -> Result<(), SetError> {
        let completed = &self.completed;
        PurgedStretches::read(completed)
            .with(&found.stretches)
            .write(completed)?;
        for stretch in &found.stretches {
            self.tell(&AuditEvent::WalPurged {
                first: stretch.first.to_string(),
                last: stretch.last.to_string(),
                files: stretch.files,
            });
        }
        let names: Vec<String> = found
            .finished
            .iter()
            .map(|(_, text)| text.clone())
            .collect();
        remove_finished(completed, &names)?;
        // Behind the files: one without its note would count.
        for (name, _) in &found.finished {
            apart_notes::settle(completed, *name)?;
        }
        remove_finished(completed, &found.copies)?;
        for copy in &found.copies {
            apart_notes::remove_copy_note(completed, copy)?;
        }
        if let Some(partial) = &self.partial {
            partial.remove_present(&found.partial_copies)?;
        }
        Ok(())
    }
}

impl Purged {
    fn of(found: ArchiveNeeds, superfluous: &Superfluous) -> Purged {
        let files = superfluous.stretches.iter().map(|stretch| stretch.files);
        Purged {
            oldest_needed: found.oldest,
            files: files.sum(),
            stretches: superfluous.stretches.clone(),
            held_by: found.held_by,
        }
    }
}

/// The segment that a set's WAL begins with, by both of what its label says of it.
fn first_segments(
    set: &SetEntry,
    size: Option<WalSegmentSize>,
) -> Result<Vec<SegmentName>, SetError> {
    if let Some(why) = set.condition.refusal()
        && !matches!(set.condition, Condition::DamagedFile(_))
    {
        return Err(SetError::Unknown {
            why: format!("{} is damaged: {why}", set.name),
        });
    }
    let label = set.label.as_ref().map_err(|why| SetError::Unknown {
        why: format!("the backup_label of {} is not one: {why}", set.name),
    })?;
    let named = label.first_segment;
    let found = size.map(|size| SegmentName::containing(named.timeline(), label.start, size));
    Ok([Some(named), found].into_iter().flatten().collect())
}

/// The names of copies in a folder whose segments nobody needs any more. Adds these segments to `segments`.
fn copies_in(
    folder: &Folder,
    (needs, keeping): (&WalNeeds, Keeping),
    segments: &mut Vec<SegmentName>,
) -> Result<Vec<String>, SetError> {
    let mut copies = Vec::new();
    for text in folder.names_beside()? {
        let segment = CopyName::parse(&text).and_then(|copy| copy.name.segment());
        if let Some(segment) = segment
            && needs.by(SegmentPlace::of(segment)).is_none()
            && is_old(folder, &text, keeping)?
        {
            copies.push(text);
            segments.push(segment);
        }
    }
    Ok(copies)
}

/// What goes, cut where something stays between.
fn stretches(mut segments: Vec<SegmentName>, needs: &WalNeeds) -> Vec<WalStretch> {
    segments.sort_by_key(|segment| (SegmentPlace::of(*segment), *segment));
    let mut found: Vec<WalStretch> = Vec::new();
    for segment in segments {
        let place = SegmentPlace::of(segment);
        match found.last_mut() {
            Some(last) if !needs.begins_between(SegmentPlace::of(last.last), place) => {
                (last.last, last.files) = (segment, last.files + 1);
            }
            _ => found.push(WalStretch {
                first: segment,
                last: segment,
                files: 1,
                is_behind: needs.begins_between(SegmentPlace(0), place),
            }),
        }
    }
    found
}

/// Whether a file has lain there that long, by this host's own record.
fn is_old(folder: &Folder, name: &str, keeping: Keeping) -> Result<bool, SetError> {
    let stat = folder.stat_at(name)?;
    Ok(stat.is_some_and(|stat| keeping.is_old(stat.changed_ms, now_ms())))
}
