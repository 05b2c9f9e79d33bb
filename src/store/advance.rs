//! Names that were taken in advance: which stored file gives way to one that is proven to belong there.
//! Never gives up what readers follow. Invariant: what goes out of its place is kept, and only records, never a
//! name or a text, decide between two segments.
//!
//! Whoever has a key may store a file under a name that the genuine master will need. If that file has a note
//! (`apart`), or is early, and does not go on with the segment before it, it gives way to one that does: its
//! place goes to the newcomer, and it is kept as `NAME.differs`. A history that has a note gives way to any that
//! stands no worse. Nobody followed them, so nobody loses them.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use walmgr_protocol::names::{SegmentName, WalFileName};

use super::apart::{self, APART_NAME, Admission, KINDS, brought_by, is_early, settle, text_of};
use super::archive::{Archive, Shared};
use super::differs::DIFFERS_SUFFIX;
use super::durable::{Durable, SyncedTemporary};
use super::error::StoreError;
use super::folder::Folder;
use super::joints::{Joints, Verdict};
use super::lineage::{Apart, Kind};
use crate::wal::segment::Verify;

impl Archive {
    /// Whether the stored file of this name may have to give way to another one.
    pub fn is_unproven(&self, name: WalFileName) -> Result<bool, StoreError> {
        is_unproven(&self.shared.completed, name)
    }
}

/// Whether the file that has this name may have to give way: nothing has shown that it belongs there.
pub(super) fn is_unproven(completed: &Folder, name: WalFileName) -> Result<bool, StoreError> {
    for (kind, _) in KINDS {
        let path = format!("{APART_NAME}/{}", text_of(name, kind));
        if completed.stat_at(&path)?.is_some() {
            return Ok(true);
        }
    }
    match name {
        WalFileName::Segment(segment) => is_early(completed, segment),
        _ => Ok(false),
    }
}

impl Shared {
    /// Puts a checked file in the place of the stored one, which gives way to it and is kept. The name must be
    /// locked.
    pub(super) fn take_place(
        &self,
        name: WalFileName,
        synced: SyncedTemporary,
        _alone: &Admission<'_>,
        (text, by): (&[u8], &str),
    ) -> Result<Durable, StoreError> {
        let kept = format!("{name}{DIFFERS_SUFFIX}");
        let stored_by = self.origin_of(name)?;
        apart::note_differing(&self.completed, name, &stored_by)?;
        self.checksums.clear(name)?;
        let durable = synced.publish_over(name, &kept)?;
        tracing::error!(
            "ALARM: {name} of {stored_by} was stored in advance and nobody followed it; the {name} that {by} \
             brought takes its place, and the old one is kept as {kept}"
        );
        // Behind the exchange, so that a crash leaves what counts for less.
        self.judge_anew(name, text, by)?;
        Ok(durable)
    }

    /// What becomes of a file that has taken another's place.
    pub(super) fn judge_anew(
        &self,
        name: WalFileName,
        text: &[u8],
        by: &str,
    ) -> Result<(), StoreError> {
        let mut lineage = self.lineage()?;
        match name {
            WalFileName::History(timeline) => {
                lineage.without_history(timeline);
            }
            _ => lineage = lineage.without_note(name),
        }
        match self.judge(&lineage, name, text)? {
            Some(apart) => apart::write(&self.completed, name, &apart, by)?,
            // It is joined with its connections, which are looked at next.
            None if matches!(name, WalFileName::History(_)) => {
                apart::write_text(
                    &self.completed,
                    name,
                    Kind::History,
                    by,
                    "it is being looked at",
                )?;
            }
            None => settle(&self.completed, name)?,
        }
        Ok(())
    }

    /// Whether a segment that does not go on with the one before it is set apart: if it came early, or after one
    /// that is about to give way.
    pub(super) fn is_set_apart_unled(
        &self,
        before: SegmentName,
        segment: SegmentName,
    ) -> Result<bool, StoreError> {
        let (completed, before) = (&self.completed, WalFileName::Segment(before));
        Ok(is_early(completed, segment)? || is_unproven(completed, before)?)
    }

    /// Sets it apart. Its name must be locked.
    pub(super) fn set_apart_unled(
        &self,
        segment: SegmentName,
        why: &str,
    ) -> Result<(), StoreError> {
        let name = WalFileName::Segment(segment);
        let by = self.origin_of(name)?;
        apart::write_text(&self.completed, name, Kind::Ahead, &by, why)?;
        self.has_notes.store(true, Ordering::Relaxed);
        tracing::error!("ALARM: {name} of {by} is set apart, so no reader follows it: {why}");
        Ok(())
    }

    /// Whether the stored file of this name gives way to another one that is about to be sealed. `text` is that
    /// of a history, `is_led` whether a segment goes on with the one before it. The name must be locked.
    pub(super) fn gives_way(
        &self,
        name: WalFileName,
        text: &[u8],
        is_led: bool,
    ) -> Result<bool, StoreError> {
        if !is_unproven(&self.completed, name)? {
            return Ok(false);
        }
        match name {
            WalFileName::Segment(_) => Ok(is_led && !self.is_led(name)?),
            WalFileName::History(timeline) => {
                let mut lineage = self.lineage()?;
                if lineage.lowest().is_none() {
                    // Without any WAL there is nothing to judge them by.
                    return Ok(false);
                }
                let Some(stored) = lineage.without_history(timeline) else {
                    return Ok(true);
                };
                // Neither has WAL that leads to it, or only the new one may have.
                let is_open =
                    |apart: Option<Apart>| matches!(apart, None | Some(Apart::Unconnected { .. }));
                let stored = is_open(lineage.judge_history(&stored));
                Ok(!stored || is_open(self.judge(&lineage, name, text)?))
            }
            WalFileName::Partial(_) | WalFileName::BackupHistory(..) => Ok(false),
        }
    }

    /// Who brought a stored file, by its note, or by its checksum if it counts without one.
    fn origin_of(&self, name: WalFileName) -> Result<String, StoreError> {
        let noted = brought_by(&self.completed, name)?;
        if !noted.is_empty() {
            return Ok(noted);
        }
        Ok(self.checksums.brought_by(name).unwrap_or_default())
    }

    /// Whether a stored file goes on with what is before it, as far as anybody can tell.
    pub(super) fn is_led(&self, name: WalFileName) -> Result<bool, StoreError> {
        let joints = Joints {
            completed: &self.completed,
            checksums: &self.checksums,
            binding: self.binding()?,
            verify: Verify::Records,
        };
        let segment = match name {
            WalFileName::Segment(segment) => segment,
            WalFileName::History(timeline) => {
                let lineage = self.lineage()?;
                let histories = &lineage.facts().histories;
                let parent = histories
                    .get(&timeline)
                    .and_then(|one| one.ancestors().last());
                let Some(parent) = parent else {
                    return Ok(true);
                };
                let size = self.binding()?.segment_size;
                let number = parent.switch_point.0 / size.bytes();
                SegmentName::from_number(timeline, number, size)
            }
            WalFileName::Partial(_) | WalFileName::BackupHistory(..) => return Ok(true),
        };
        let text = segment.to_string();
        for folder in [&self.completed, &self.partial] {
            if let Some(file) = folder.open_file(&text)? {
                let verdict = joints.check(segment, None, |each| {
                    folder.read_pages(file.as_fd(), &text, 0, each)
                })?;
                return Ok(!matches!(verdict, Verdict::Unjoined(..)));
            }
        }
        Ok(true)
    }
}
