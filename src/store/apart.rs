//! Files that are set apart: judged when they arrive, noted, and joined when something connects them.
//! Never says what counts; `lineage` does. Invariant: a note is durable before its file has its name, so
//! no crash leaves a file that counts although it should not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLockReadGuard, RwLockWriteGuard};

use walmgr_protocol::names::{SegmentName, TimelineId, WalFileName};

use super::apart_notes::{
    CLAIMED_SUFFIX, EARLY_SUFFIX, brought_by, claim, claims, is_early, marked, note_unread, notes,
    open, remove, settle, told, write, write_mark, write_text,
};
use super::error::StoreError;
use super::failover;
use super::lineage::{Apart, ApartKind, Lineage, Outgrown};
use super::partial::partial_names;
use super::reader::ArchiveReader;
use super::shared::{Archive, Shared};
use crate::wal::history::History;
use crate::wal::joint::SegmentEnd;

/// Leave for one file to get its name; nobody judges another one meanwhile.
pub(super) enum NamingPermit<'a> {
    /// It goes on where others end.
    Next {
        _with_others: RwLockReadGuard<'a, ()>,
    },
    /// It was looked at with everything that is there.
    Judged {
        _alone: RwLockWriteGuard<'a, ()>,
        noted: bool,
    },
    /// Readers follow no file of this kind.
    Free,
}

impl Archive {
    /// How far beyond the end of its run a segment may be that counts.
    pub fn set_ahead_max(&self, segments: u64) {
        self.shared.ahead_max.store(segments, Ordering::Relaxed);
    }

    /// A backup set begins with this segment: so does a run.
    pub fn begin_run(&self, segment: SegmentName) -> Result<(), StoreError> {
        let shared = &self.shared;
        let _alone = shared.order.write().unwrap_or_else(PoisonError::into_inner);
        let name = WalFileName::Segment(segment);
        let was_ahead = notes(&shared.completed)?.get(&name) == Some(&ApartKind::Ahead);
        if was_ahead || is_early(&shared.completed, segment)? {
            settle(&shared.completed, name)?;
            shared.settle_shipped(&[segment])?;
        }
        if was_ahead {
            shared.join_all()?;
        }
        Ok(())
    }

    /// Every file that a note says to pass over.
    pub fn noted(&self) -> Result<BTreeSet<WalFileName>, StoreError> {
        Ok(notes(&self.shared.completed)?.into_keys().collect())
    }

    /// Whether readers pass this file over, as far as a note says so.
    pub fn is_noted(&self, name: WalFileName) -> bool {
        let shared = &self.shared;
        shared.has_notes.load(Ordering::Relaxed)
            && notes(&shared.completed).is_ok_and(|notes| notes.contains_key(&name))
    }
}

impl Shared {
    /// Judges a file that is about to get its name, by its length and CRC-32 too; `text` is that of a history, `end` how a
    /// segment ends. What is set apart has its note when this returns.
    pub(super) fn admit(
        &self,
        (name, digest): (WalFileName, (u64, u32)),
        (text, end): (&[u8], Option<SegmentEnd>),
        (by, may_fail_over): (&str, bool),
    ) -> Result<NamingPermit<'_>, StoreError> {
        match name {
            WalFileName::Segment(segment) => {
                let with_others = self.order.read().unwrap_or_else(PoisonError::into_inner);
                if self.is_next(segment)? {
                    return Ok(NamingPermit::Next {
                        _with_others: with_others,
                    });
                }
            }
            WalFileName::History(_) => {}
            WalFileName::Partial(_) | WalFileName::BackupHistory(..) => {
                let alone = self.order.write().unwrap_or_else(PoisonError::into_inner);
                if self.completed.stat_at(&name.to_string())?.is_none() {
                    self.make_room(name, by)?;
                    note_unread(&self.completed, name, by);
                }
                drop(alone);
                return Ok(NamingPermit::Free);
            }
        }
        let alone = self.order.write().unwrap_or_else(PoisonError::into_inner);
        let mut noted = false;
        if self.completed.stat_at(&name.to_string())?.is_none() && !self.counted(name, digest)? {
            noted = self.note(name, (text, end), (by, may_fail_over))?;
        }
        Ok(NamingPermit::Judged {
            _alone: alone,
            noted,
        })
    }

    /// Writes the note of a file that is set apart; `false` if it counts.
    fn note(
        &self,
        name: WalFileName,
        (text, end): (&[u8], Option<SegmentEnd>),
        (by, may_fail_over): (&str, bool),
    ) -> Result<bool, StoreError> {
        let mut lineage = self.lineage()?;
        let judged = self.judge(&mut lineage, name, (text, end))?;
        let is_declared = may_fail_over && matches!(name, WalFileName::History(_));
        if is_declared && judged.is_none_or(|apart| apart.yields_to_failover()) {
            failover::tell(name, by, judged);
            settle(&self.completed, name)?;
            return Ok(false);
        }
        if let Some(apart) = judged {
            self.make_room(name, by)?;
            write(&self.completed, name, &apart, by)?;
            self.has_notes.store(true, Ordering::Relaxed);
            tracing::error!(
                "ALARM: {name} of {by} is stored but set apart, so no reader follows it: {apart}"
            );
            return Ok(true);
        }
        match name {
            // It counts once it has its name, and its first records were found to go on with its parent's.
            WalFileName::History(timeline) if lineage.lowest() != Some(timeline) => {
                let why = "what connects it is being examined";
                write_text(&self.completed, name, ApartKind::History, by, why)?;
                self.has_notes.store(true, Ordering::Relaxed);
                return Ok(true);
            }
            WalFileName::Segment(segment) if lineage.is_early(segment) => {
                write_mark(&self.completed, name, EARLY_SUFFIX, by)?;
            }
            _ => {}
        }
        if self.has_notes.load(Ordering::Relaxed) {
            remove(&self.completed, name)?;
        }
        Ok(false)
    }

    /// Whether a file of this name counted until the disk changed it: what heals it counts too, although
    /// what once connected it may be purged. Where a checksum tells what it was, no other file heals it.
    fn counted(&self, name: WalFileName, (len, crc32): (u64, u32)) -> Result<bool, StoreError> {
        let damaged = self
            .completed
            .stat_at(&format!("{name}.damaged"))?
            .is_some();
        let kept = self.checksums.read(name);
        let heals = kept.is_none_or(|kept| kept.contradicts(len, crc32).is_none());
        Ok(damaged && heals && !notes(&self.completed)?.contains_key(&name))
    }

    /// Joins what the file that has its name connects.
    pub(super) fn admitted(&self, admission: &NamingPermit<'_>, name: WalFileName) {
        self.note_timeline(name.timeline());
        let may_change =
            self.has_notes.load(Ordering::Relaxed) || self.has_newer_than(name.timeline());
        if matches!(admission, NamingPermit::Judged { .. }) && may_change {
            self.join_or_warn();
        }
    }

    /// Somebody on this host put the same file there meanwhile, as a boot does with its history: it
    /// counts, and what was noted for it is void.
    pub(super) fn overtaken(
        &self,
        admission: &NamingPermit<'_>,
        name: WalFileName,
    ) -> Result<(), StoreError> {
        if matches!(admission, NamingPermit::Judged { noted: true, .. }) {
            settle(&self.completed, name)?;
            self.join_or_warn();
        }
        Ok(())
    }

    /// Joins what a segment in progress connects.
    pub(super) fn joined_by_partial(&self, segment: SegmentName) {
        self.note_timeline(segment.timeline());
        if self.has_notes.load(Ordering::Relaxed) || self.has_newer_than(segment.timeline()) {
            let _alone = self.order.write().unwrap_or_else(PoisonError::into_inner);
            self.join_or_warn();
        }
    }

    /// Whether a name was seen of a timeline above this one.
    pub(super) fn has_newer_than(&self, timeline: TimelineId) -> bool {
        self.newest_timeline.load(Ordering::Relaxed) > timeline.number()
    }

    /// What an earlier process left undone.
    pub(super) fn recover_notes(&self) -> Result<(), StoreError> {
        let there = self.listing()?;
        let others = there.others.iter().map(|name| name.timeline());
        for timeline in there.segments.timelines().chain(others) {
            self.note_timeline(timeline);
        }
        for segment in partial_names(&self.partial)? {
            self.note_timeline(segment.timeline());
        }
        // One without its file, as a purge that was cut leaves it. A damaged copy is still apart.
        let is_damaged = |name| there.damaged.iter().any(|(damaged, _)| *damaged == name);
        let is_there = |name| there.contains(name) || is_damaged(name);
        for name in notes(&self.completed)?.into_keys() {
            if !is_there(name) {
                remove(&self.completed, name)?;
            }
        }
        for name in marked(&self.completed)? {
            if !is_there(name) {
                settle(&self.completed, name)?;
            }
        }
        let claims = claims(&self.completed)?;
        let noted = !notes(&self.completed)?.is_empty();
        self.has_notes.store(noted, Ordering::Relaxed);
        if self.binding().is_err() {
            return Ok(());
        }
        if noted || !claims.is_empty() {
            self.join_all()?;
        }
        let proven = self.settle_early(None)?;
        self.settle_shipped(&proven)
    }

    /// What leads from where to where.
    pub(super) fn lineage(&self) -> Result<Lineage, StoreError> {
        let binding = self.binding()?;
        let reader = ArchiveReader::of(Arc::clone(&self.completed), binding);
        let mut partials = BTreeMap::new();
        let in_progress = partial_names(&self.partial)?;
        self.ends.keep_only(&in_progress);
        for segment in in_progress {
            match self.ends.of(&self.partial, &binding, segment) {
                Ok(Some(found)) => {
                    partials.insert(segment, Some(found.progress()));
                }
                // One that holds no record proves nothing.
                Ok(None) => {}
                // One bad sector is no reason to refuse every other file.
                Err(error @ StoreError::Disk { .. }) => {
                    tracing::error!("a partial segment counts as whole: {error}");
                    partials.insert(segment, None);
                }
                Err(error) => return Err(error),
            }
        }
        reader.lineage_of(&reader.listing()?, partials)
    }

    /// Whether a newer timeline counts.
    pub(super) fn is_left(&self, timeline: TimelineId) -> Result<bool, StoreError> {
        Ok(self.has_newer_than(timeline) && self.lineage()?.newest() > Some(timeline))
    }

    pub(super) fn judge(
        &self,
        lineage: &mut Lineage,
        name: WalFileName,
        (text, end): (&[u8], Option<SegmentEnd>),
    ) -> Result<Option<Apart>, StoreError> {
        let reader = ArchiveReader::of(Arc::clone(&self.completed), self.binding()?);
        let finished = lineage.facts().segments.clone();
        let stored_end = |segment| reader.end_of(&finished, segment);
        match name {
            WalFileName::Segment(segment) => {
                let arriving = |other| match other == segment {
                    true => Ok(end),
                    false => stored_end(other),
                };
                lineage.learn_unended(None, arriving)?;
                Ok(lineage.judge(segment, self.ahead_max.load(Ordering::Relaxed)))
            }
            WalFileName::History(timeline) => {
                let history = History::parse(timeline, text);
                let history = history.map_err(|fault| StoreError::Damaged {
                    name,
                    why: fault.to_string(),
                })?;
                lineage.learn_unended(Some(&history), stored_end)?;
                Ok(lineage.judge_history(&history))
            }
            WalFileName::Partial(_) | WalFileName::BackupHistory(..) => Ok(None),
        }
    }

    /// Whether a segment goes on where the one before it ends, on the newest timeline, with nothing
    /// set apart. That is so for nearly all of them, and costs two looks at a name.
    fn is_next(&self, segment: SegmentName) -> Result<bool, StoreError> {
        let (size, timeline) = (self.binding()?.segment_size, segment.timeline());
        if self.has_notes.load(Ordering::Relaxed)
            || self.newest_timeline.load(Ordering::Relaxed) > timeline.number()
        {
            return Ok(false);
        }
        let number = segment
            .number(size)
            .and_then(|number| number.checked_sub(1));
        let Some(before) = number.map(|number| SegmentName::from_number(timeline, number, size))
        else {
            return Ok(false);
        };
        // A boot puts a history here without this process.
        let newer = timeline.number().checked_add(1).and_then(TimelineId::new);
        let newer = newer.map(|newer| WalFileName::History(newer).to_string());
        let is_left = match newer {
            Some(newer) => self.completed.stat_at(&newer)?.is_some(),
            None => false,
        };
        Ok(!is_left && self.completed.stat_at(&before.to_string())?.is_some())
    }

    fn note_timeline(&self, timeline: TimelineId) {
        self.newest_timeline
            .fetch_max(timeline.number(), Ordering::Relaxed);
    }

    pub(super) fn join_or_warn(&self) {
        if let Err(error) = self.join_all() {
            // The file is stored; the next one, or the next start, joins what is connected.
            tracing::warn!("the files that are set apart were not examined again: {error}");
        }
    }

    /// Joins what is connected, and gives up the claims that their parents outgrew.
    fn join_all(&self) -> Result<(), StoreError> {
        let mut lineage = self.lineage()?;
        let ahead_max = self.ahead_max.load(Ordering::Relaxed);
        let mut unled = BTreeSet::new();
        loop {
            if let Some(outgrown) = lineage.outgrown() {
                lineage = self.give_up(lineage, &outgrown)?;
            } else if let Some(name) = lineage.joined_but(ahead_max, &unled) {
                // Neither a name nor a text connects anything; records do.
                if !self.is_led(name)? {
                    unled.insert(name);
                    continue;
                }
                if let WalFileName::History(timeline) = name {
                    claim(
                        &self.completed,
                        timeline,
                        &brought_by(&self.completed, name)?,
                    )?;
                    lineage = lineage.with_claim(timeline);
                }
                remove(&self.completed, name)?;
                tracing::warn!(
                    "{name} was set apart and is now followed: what connects it has \
                    arrived"
                );
                lineage = lineage.without_note(name);
            } else {
                break;
            }
        }
        let left = !lineage.facts().notes.is_empty();
        self.has_notes.store(left, Ordering::Relaxed);
        Ok(())
    }

    /// Sets the history of a claim apart, which had readers follow it until now, and what it had them read.
    fn give_up(&self, lineage: Lineage, outgrown: &Outgrown) -> Result<Lineage, StoreError> {
        let Outgrown {
            timeline, followed, ..
        } = *outgrown;
        let name = WalFileName::History(timeline);
        let by = claims(&self.completed)?
            .remove(&timeline)
            .unwrap_or_default();
        let mut notes = told(&self.completed)?.into_iter();
        let of_parent = notes.find(|told| {
            told.kind == ApartKind::Behind
                && told.name.timeline() == followed
                && !told.by.is_empty()
        });
        let gone_on =
            of_parent.map_or_else(String::new, |told| format!(", brought by {}", told.by));
        let why = format!("{}{gone_on}", outgrown.apart());
        write_text(&self.completed, name, ApartKind::History, &by, &why)?;
        self.has_notes.store(true, Ordering::Relaxed);
        tracing::error!(
            "ALARM: {name} of {by} is set apart, and readers follow timeline {followed} again: {why}. \
             If timeline {timeline} is the right one, `choose {name} --take`"
        );
        let (lineage, segments) = lineage.given_up(timeline);
        for segment in segments {
            let apart = Apart::SetAside {
                timeline: segment.timeline(),
            };
            let name = WalFileName::Segment(segment);
            write_text(&self.completed, name, apart.kind(), &by, &apart.to_string())?;
        }
        // Behind the notes: a crash in between leaves those, which count for more.
        if let Some(folder) = open(&self.completed)? {
            folder.remove(&format!("{name}{CLAIMED_SUFFIX}"))?;
            folder.sync()?;
        }
        Ok(lineage)
    }
}

#[cfg(test)]
mod tests;
