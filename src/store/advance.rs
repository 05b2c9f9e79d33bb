//! Names that were taken in advance: which stored file gives way to one that is proven to belong there.
//! Never gives up what readers follow. Invariant: what goes out of its place is kept, and only records, never a
//! name or a text, decide between two segments.
//!
//! Whoever has a key may store a file under a name that the genuine master will need. If that file has a note
//! (`apart`), or is early, and does not go on with the segment before it, it gives way to one that does: its
//! place goes to the newcomer, and it is kept as `NAME.displaced`. A history that has a note gives way to any that
//! stands no worse. Nobody followed them, so nobody loses them.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use walmgr_protocol::names::{SegmentName, TimelineId, WalFileName};

use super::apart::NamingPermit;
use super::apart_notes::{self, brought_by, is_early, is_unproven, note_unread, settle};
use super::beside::{Beside, CopyName};
use super::displaced;
use super::durable::{Durable, SyncedTemporary};
use super::error::StoreError;
use super::joints::{JointVerdict, Joints};
use super::lineage::{Apart, ApartKind};
use super::shared::{Archive, Shared};
use crate::wal::joint::SegmentEnd;
use crate::wal::segment::Verify;

impl Archive {
    /// Whether the stored file of this name may have to give way to another one.
    pub fn is_unproven(&self, name: WalFileName) -> Result<bool, StoreError> {
        is_unproven(&self.shared.completed, name)
    }
}

impl Shared {
    /// Puts a checked file in the place of the stored one, which gives way to it and is kept. `content` is the text of
    /// a history, and how a segment ends. The name must be locked.
    pub(super) fn take_place(
        &self,
        name: WalFileName,
        synced: SyncedTemporary,
        _alone: &NamingPermit<'_>,
        content: (&[u8], Option<SegmentEnd>),
        by: &str,
    ) -> Result<Durable, StoreError> {
        let stored_by = self.origin_of(name)?;
        let origin = (name, stored_by.as_str());
        let put = |kept: &str| synced.publish_over(name, kept);
        let (durable, kept) = displaced::displace(&self.completed, &self.checksums, origin, put)?;
        if matches!(name, WalFileName::Partial(_)) {
            tracing::info!(
                "{name} of {by} takes the name of that of {stored_by}, which is kept as {kept}"
            );
            note_unread(&self.completed, name, by);
            return Ok(durable);
        }
        tracing::error!(
            "ALARM: {name} of {stored_by} was stored in advance and nobody followed it; the \
            {name} that {by} sent takes its place, and the old one is kept as {kept}"
        );
        // Behind the exchange, so that a crash leaves what counts for less.
        self.judge_anew(name, content, by)?;
        self.forget_offered(name, &durable)?;
        Ok(durable)
    }

    /// Removes the copy that was kept when this file was offered before: it is stored now.
    fn forget_offered(&self, name: WalFileName, stored: &Durable) -> Result<(), StoreError> {
        let copy = CopyName {
            name,
            kind: Beside::Differs,
            number: 0,
        };
        let text = copy.to_string();
        if self.has_content(&text, (stored.len(), stored.crc32()))? {
            self.completed.remove_present([&text])?;
            apart_notes::remove_copy_note(&self.completed, &text)?;
        }
        Ok(())
    }

    /// What becomes of a file that has taken another's place.
    pub(super) fn judge_anew(
        &self,
        name: WalFileName,
        content: (&[u8], Option<SegmentEnd>),
        by: &str,
    ) -> Result<(), StoreError> {
        let mut lineage = self.lineage()?;
        match name {
            WalFileName::History(timeline) => {
                lineage.without_history(timeline);
            }
            _ => lineage = lineage.without_note(name),
        }
        match self.judge(&mut lineage, name, content)? {
            Some(apart) => apart_notes::write(&self.completed, name, &apart, by)?,
            // It is joined with its connections, which are looked at next.
            None if matches!(name, WalFileName::History(_)) => {
                apart_notes::write_text(
                    &self.completed,
                    name,
                    ApartKind::History,
                    by,
                    "it is being looked at",
                )?;
            }
            None => settle(&self.completed, name)?,
        }
        Ok(())
    }

    /// Whether `segment`, which does not go on with `before`, is set apart. It is if `segment` came early, or if
    /// `before` may have to give way itself.
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
        apart_notes::write_text(&self.completed, name, ApartKind::Ahead, &by, why)?;
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
        // No reader asks for it. Each server that followed a timeline to its end has one, with other bytes behind the
        // last record, and none of them may stop its server's archiver.
        if matches!(name, WalFileName::Partial(_)) {
            return self.may_displace(name);
        }
        if !is_unproven(&self.completed, name)? {
            return Ok(false);
        }
        let gives_way = match name {
            WalFileName::Segment(_) => is_led && !self.is_led(name)?,
            WalFileName::History(timeline) => self.history_gives_way(timeline, text)?,
            WalFileName::Partial(_) | WalFileName::BackupHistory(..) => false,
        };
        Ok(gives_way && self.may_displace(name)?)
    }

    fn history_gives_way(&self, timeline: TimelineId, text: &[u8]) -> Result<bool, StoreError> {
        let name = WalFileName::History(timeline);
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
        Ok(!stored || is_open(self.judge(&mut lineage, name, (text, None))?))
    }

    /// Removes the marks of segments that came early and by now go on with the segment before them. With `arrived`,
    /// looks only at the segments that follow it without a gap. Returns the segments in the order of the WAL.
    pub(super) fn settle_early(
        &self,
        arrived: Option<SegmentName>,
    ) -> Result<Vec<SegmentName>, StoreError> {
        let mut early: Vec<SegmentName> =
            apart_notes::early(&self.completed)?.into_iter().collect();
        if early.is_empty() {
            return Ok(early);
        }
        let size = self.binding()?.segment_size;
        let number = |segment: SegmentName| segment.number(size).unwrap_or_default();
        early.sort_by_key(|segment| number(*segment));
        let mut led: BTreeSet<u64> = match arrived {
            Some(arrived) => BTreeSet::from([number(arrived) + 1]),
            None => early.iter().map(|segment| number(*segment)).collect(),
        };
        let mut settled = Vec::new();
        for segment in early {
            if !led.contains(&number(segment)) {
                continue;
            }
            let _guard = self.names.lock(WalFileName::Segment(segment));
            if self.is_proven_by_now(segment)? {
                apart_notes::remove_early(&self.completed, segment)?;
                led.insert(number(segment) + 1);
                settled.push(segment);
            }
        }
        Ok(settled)
    }

    /// Whether a segment that came early goes on with the one before it, which has shown itself that it belongs
    /// there.
    fn is_proven_by_now(&self, segment: SegmentName) -> Result<bool, StoreError> {
        let completed = &self.completed;
        let joints = self.joints()?;
        let Some(before) = joints.name_before(segment)? else {
            return Ok(false);
        };
        if apart_notes::is_noted(completed, WalFileName::Segment(segment))?
            || is_unproven(completed, WalFileName::Segment(before))?
        {
            return Ok(false);
        }
        let Some(file) = completed.open_finished(&segment.to_string())? else {
            return Ok(false);
        };
        let verdict = joints.check(segment, Some(&self.carried), |each| {
            completed.read_finished_pages(&file, 0, each)
        });
        let verdict = match verdict {
            // It cannot be unpacked.
            Err(StoreError::Damaged { .. }) => return Ok(false),
            verdict => verdict?,
        };
        Ok(matches!(
            verdict,
            JointVerdict::Joined(_) | JointVerdict::Inside(_)
        ))
    }

    fn joints(&self) -> Result<Joints<'_>, StoreError> {
        Ok(Joints {
            completed: &self.completed,
            checksums: &self.checksums,
            binding: self.binding()?,
            verify: Verify::Records,
        })
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
        let joints = self.joints()?;
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
        let (completed, partial) = (&self.completed, &self.partial);
        let verdict = if let Some(file) = completed.open_finished(&text)? {
            let read =
                |each: &mut dyn FnMut(&[u8]) -> bool| completed.read_finished_pages(&file, 0, each);
            match joints.check(segment, None, read) {
                // It cannot be unpacked.
                Err(StoreError::Damaged { .. }) => return Ok(false),
                verdict => verdict?,
            }
        } else if let Some(file) = partial.open_file(&text)? {
            let read = |each: &mut dyn FnMut(&[u8]) -> bool| {
                partial.read_pages(file.as_fd(), &text, 0, each)
            };
            joints.check(segment, None, read)?
        } else {
            return Ok(true);
        };
        Ok(!matches!(verdict, JointVerdict::Unjoined(..)))
    }
}
