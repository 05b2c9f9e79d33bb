//! The model of the archive's timelines: how they branch, and which files readers do not follow.
//! Never reads a file, and never asks for the time. Invariant: it chooses the timeline that PostgreSQL
//! would choose, and files that are set apart do not change its answers about other files.
//!
//! # Which timeline counts
//!
//! PostgreSQL asks for the histories of the next timelines one after the other until one is missing
//! (`findNewestTimeLine`), and reads the last (`readTimeLineHistory`). So a history counts here when
//! the archive has every timeline between it and its parent, its ancestors are those that
//! its parent's own history names, and its parent counts. The lowest timeline that has WAL counts
//! without any history: an archive may begin on any timeline.
//!
//! # What is set apart
//!
//! The key of a master may add WAL and histories. The holder of a key can forge both: a history is plain text, and a
//! record's checksum has no secret. So no content proves that a failover took place. Two things cannot
//! be forged: files that this host wrote (`boot` writes the history of the timeline that it
//! opened, `choose` the administrator's decision), and the order in which files
//! arrived. Hence a file is judged when it arrives ([`Lineage::judge`]), before it has its name. The verdict stays
//! beside the file as a note (`apart`) until something connects the file ([`Lineage::joined`]):
//!
//! - A *history* is joined when its timeline begins exactly where its parent ends: no acknowledged
//!   byte of the parent lies behind the switch point, the parent's WAL leads to the segment of the
//!   switch point, and the new timeline has that segment, finished or in progress. A failover
//!   elsewhere looks like this, in whatever order its files arrive. A thief can forge this too. He then appends
//!   to the end of the archive's WAL, as he also could with the parent's next segment; no WAL that was
//!   acknowledged before becomes unreachable. A switch point before acknowledged WAL would make
//!   that WAL unreachable, so only `boot` and `choose` join such a timeline.
//! - A *segment* far ahead of the archived WAL is joined when the segment before it arrives.
//! - A segment *behind* the point where a newer timeline that counts branched off its own comes from the old
//!   master. `choose` joins it, and so does a `restore` into `slave_data` if the newer timeline has no WAL
//!   here ([`Lineage::giving_way_to`]).
//!
//! # A timeline that only keys claim
//!
//! A history that was joined in this way is *claimed* until a `boot` of this host or `choose`
//! settles it. A claim does not keep out the parent's stream, and it holds only while its own WAL extends at least
//! as far as the parent's WAL without a gap ([`Lineage::outgrown`]): a master that a
//! forgery declared dead outgrows the claim, while a master that really failed soon writes no more.
//! Meanwhile readers follow the claim, and the parent's new WAL is stored as WAL behind the end of its
//! timeline. Once the parent has outgrown the claim, readers follow the parent again, and the history is set apart for
//! good. The longer timeline wins in either direction, so no arrival makes readers end earlier. Two timelines that
//! left one line compete likewise: a claim does not hold against an older sibling that leads further. The claim is
//! set apart at once if the sibling was opened here or chosen.
//!
//! # A record that its server never ended
//!
//! A server writes whole pages ahead of a commit. One that dies there leaves a finished segment, archived as such, whose
//! last record goes on into a segment that never came. Whoever is promoted behind it begins where that record does, before the
//! segment's last byte. No record is lost with it, so such a history does not lie before acknowledged WAL, and the segment not
//! behind the end of its timeline ([`Lineage::learn_unended`]). The rest of that record, should it arrive, is the parent going on.
//!
//! A file in the archive without a note counts: it was accepted, or an administrator put it there.

use std::collections::BTreeSet;

use walmgr_protocol::names::{Lsn, SegmentName, TimelineId, WalFileName};

use crate::wal::history::History;

mod claim;
mod judge;
mod line;
mod model;
mod pieces;
mod rival;
#[cfg(test)]
mod tests;
mod unended;

pub(crate) use claim::Outgrown;
pub(crate) use judge::Apart;
pub(crate) use line::{Led, LineGap, TimelineLine};
pub(crate) use model::{ApartKind, Lineage, LineageFacts, SegmentProgress, Unreadable};

/// What the archive says about a segment that it does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// Nothing behind it on its timeline is there, or it is from before that timeline.
    Nothing,
    /// This is there, which shows that it should be.
    Later(SegmentName),
}

/// What a server that asks for a history is to get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistoryAnswer {
    /// The file.
    File,
    /// Something that PostgreSQL takes for a history and never follows: it asks one number after
    /// the other, and a newer one counts.
    Placeholder,
    /// Nothing.
    Nothing,
}

impl Lineage {
    /// Draws the conclusions.
    pub fn of(facts: LineageFacts) -> Lineage {
        let partials = facts.partials.keys().map(|segment| segment.timeline());
        let taken = facts.segments.timelines().chain(partials);
        let taken = taken.chain(facts.damaged.iter().map(|segment| segment.timeline()));
        let taken = taken.chain(facts.histories.keys().copied());
        let taken = taken.chain(facts.unreadable.keys().copied());
        let mut lineage = Lineage {
            taken: taken.collect(),
            counting: BTreeSet::new(),
            facts,
        };
        lineage.counting.extend(lineage.lowest());
        // A parent is older than its child, so one pass in this order sees every parent first.
        let histories: Vec<TimelineId> = lineage.facts.histories.keys().copied().collect();
        for timeline in histories {
            let noted = lineage.note(WalFileName::History(timeline)).is_some();
            if !noted && lineage.chain(timeline).is_ok() {
                lineage.counting.insert(timeline);
            }
        }
        lineage
    }

    /// What it was made from.
    pub const fn facts(&self) -> &LineageFacts {
        &self.facts
    }

    /// Whether readers follow this timeline.
    pub fn counts(&self, timeline: TimelineId) -> bool {
        self.counting.contains(&timeline)
    }

    /// Whether readers pass this segment over, wherever they come from.
    pub fn is_apart(&self, segment: SegmentName) -> bool {
        !self.counts(segment.timeline()) || !self.is_plain(segment)
    }

    /// The newest timeline that counts; `None` in an archive without WAL.
    pub fn newest(&self) -> Option<TimelineId> {
        self.counting.last().copied()
    }

    /// The newest that a server on `timeline` finds (`findNewestTimeLine`).
    pub fn newest_for(&self, timeline: TimelineId) -> Result<TimelineId, Unreadable> {
        let mut newest = timeline;
        for next in (self.counting.iter()).filter(|next| **next > timeline) {
            if self.taken_between(timeline, *next).is_none() {
                newest = *next;
            }
        }
        // One that nobody can read might be the one that PostgreSQL would read.
        let mut unreadable = self.facts.unreadable.iter();
        let above = unreadable.find(|(damaged, _)| {
            **damaged > newest && self.taken_between(newest, **damaged).is_none()
        });
        match above {
            Some((timeline, why)) => Err(Unreadable {
                timeline: *timeline,
                why: why.clone(),
            }),
            None => Ok(newest),
        }
    }

    /// The line that ends on this timeline, as its history says. Without a history the timeline stands alone.
    pub fn line_to(&self, timeline: TimelineId) -> TimelineLine {
        let size = self.facts.size;
        match self.past(timeline) {
            Some(history) => TimelineLine::of(history, size),
            None => TimelineLine::alone(timeline, size),
        }
    }

    /// The line of a server that stands on `timeline` and needs the WAL from `from` on. The server goes to the
    /// newest timeline, if that one left the server's at `from` or behind. Otherwise it stays on its own.
    pub fn line_from(&self, timeline: TimelineId, from: Lsn) -> Result<TimelineLine, Unreadable> {
        let newest = self.line_to(self.newest_for(timeline)?);
        match newest.leg(timeline) {
            Some(own) if own.end >= from => Ok(newest),
            _ => Ok(self.line_to(timeline)),
        }
    }

    /// What it means that a segment is not there.
    pub fn missing(&self, segment: SegmentName) -> Result<Missing, Unreadable> {
        let timeline = segment.timeline();
        // Within a timeline the names sort as the segments do.
        let damaged = self.facts.damaged.iter().copied();
        let damaged = damaged.filter(|it| it.timeline() == timeline && *it > segment);
        let damaged = damaged.filter(|it| self.is_plain(*it)).min();
        let mut finished = self.facts.segments.behind(segment);
        let finished = finished.find(|it| self.is_plain(*it));
        match finished.into_iter().chain(damaged).min() {
            Some(later) if !self.is_before(segment)? => Ok(Missing::Later(later)),
            _ => Ok(Missing::Nothing),
        }
    }

    /// What a server gets that asks for this history. A server that is about to open (`opens`) asks
    /// in order to find a number that no timeline has.
    pub fn asked(&self, timeline: TimelineId, opens: bool) -> HistoryAnswer {
        if self.facts.unreadable.contains_key(&timeline) {
            // Whoever reads it hears what is wrong with it.
            return HistoryAnswer::File;
        }
        if self.counts(timeline) {
            // The past of the next timeline is copied from this file, so nothing else may stand for it.
            return match self.past(timeline) {
                Some(_) => HistoryAnswer::File,
                None => HistoryAnswer::Nothing,
            };
        }
        let newer = self.newest().is_some_and(|newest| newest > timeline);
        let stands_between = newer && timeline > TimelineId::FIRST;
        match stands_between || (opens && self.taken.contains(&timeline)) {
            true => HistoryAnswer::Placeholder,
            false => HistoryAnswer::Nothing,
        }
    }

    /// The segments of a line in order, from the one that holds `from` to the last before the first gap.
    pub fn gapless(&self, line: &TimelineLine, from: Lsn) -> Vec<SegmentName> {
        let size = self.facts.size;
        let (pieces, end) = (self.pieces(line), self.led(line, from).end);
        let first = from.0 / size.bytes();
        let numbers = pieces
            .from(first)
            .flat_map(|(numbers, part)| numbers.map(move |number| (number, part.timeline)));
        let before_end = numbers.take_while(|(number, _)| number * size.bytes() < end.0);
        before_end
            .map(|(number, timeline)| SegmentName::from_number(timeline, number, size))
            .collect()
    }

    /// Where the acknowledged WAL of a timeline ends, without what is set apart.
    pub fn end_of(&self, timeline: TimelineId) -> Option<Lsn> {
        let size = self.facts.size;
        let mine = |segment: &SegmentName| segment.timeline() == timeline;
        let end = |segment: SegmentName| Some(Lsn(segment.start(size)?.0 + size.bytes()));
        let mut finished = self.facts.segments.on(timeline);
        let finished = finished.rfind(|segment| self.is_plain(*segment));
        let finished = finished.and_then(end);
        let mut partial = self.facts.partials.iter();
        let partial = partial.rfind(|(segment, _)| mine(segment));
        let partial = partial.and_then(|(segment, progress)| match progress {
            Some(progress) if !progress.is_whole => Some(progress.end),
            _ => end(*segment),
        });
        finished.max(partial)
    }

    /// Whether a finished segment has no note that keeps readers from it. A note says nothing of the segment in
    /// progress of that name: the records that a boot froze count even if the old master has finished the segment.
    pub fn is_plain(&self, segment: SegmentName) -> bool {
        self.note(WalFileName::Segment(segment)).is_none()
    }

    /// The history that says where a timeline comes from. A history that is set apart does not say it of a timeline
    /// that counts without it.
    fn past(&self, timeline: TimelineId) -> Option<&History> {
        let noted = self.note(WalFileName::History(timeline)).is_some();
        let history = self.facts.histories.get(&timeline);
        history.filter(|_| !(noted && self.counts(timeline)))
    }

    fn note(&self, name: WalFileName) -> Option<ApartKind> {
        self.facts.notes.get(&name).copied()
    }

    /// The lowest timeline that has WAL.
    pub fn lowest(&self) -> Option<TimelineId> {
        // One whose note says no more than that its timeline does not count proves no beginning.
        let segments = &self.facts.segments;
        let finished = (segments.timelines())
            .find(|timeline| segments.on(*timeline).any(|segment| self.is_plain(segment)));
        let partials = self.facts.partials.keys();
        finished
            .into_iter()
            .chain(partials.map(|segment| segment.timeline()))
            .min()
    }

    /// The first timeline that no file speaks of between these two, both excluded.
    fn taken_between(&self, older: TimelineId, newer: TimelineId) -> Option<TimelineId> {
        let mut expected = older.number().checked_add(1)?;
        for taken in self
            .taken
            .range(older..newer)
            .filter(|taken| **taken > older)
        {
            if taken.number() != expected {
                break;
            }
            expected = expected.saturating_add(1);
        }
        let hole = TimelineId::new(expected)?;
        (hole < newer).then_some(hole)
    }

    /// Whether a timeline's history leads back to WAL that is there.
    fn chain(&self, timeline: TimelineId) -> Result<(), Apart> {
        let Some(history) = self.facts.histories.get(&timeline) else {
            return Err(Apart::UnknownTimeline { timeline });
        };
        self.chain_of(history)
    }

    fn chain_of(&self, history: &History) -> Result<(), Apart> {
        let timeline = history.timeline();
        if self.lowest().is_none_or(|lowest| lowest >= timeline) {
            return Ok(());
        }
        let Some((parent, before)) = history.ancestors().split_last() else {
            return Err(Apart::UnknownTimeline { timeline });
        };
        if let Some(missing) = self.taken_between(parent.timeline, timeline) {
            return Err(Apart::Hole { timeline, missing });
        }
        let own = self.facts.histories.get(&parent.timeline);
        let same = own.is_none_or(|own| {
            let pairs = own.ancestors().iter().zip(before);
            own.ancestors().len() == before.len()
                && pairs.into_iter().all(|(ours, theirs)| {
                    (ours.timeline, ours.switch_point) == (theirs.timeline, theirs.switch_point)
                })
        });
        if !same {
            let parent = parent.timeline;
            return Err(Apart::OtherPast { timeline, parent });
        }
        match self.counts(parent.timeline) {
            true => Ok(()),
            false => Err(Apart::Hole {
                timeline,
                missing: parent.timeline,
            }),
        }
    }

    /// Whether the timeline began only after this segment: PostgreSQL asks for each segment on
    /// the newest timeline first, and finds the early ones on an older one.
    fn is_before(&self, segment: SegmentName) -> Result<bool, Unreadable> {
        let timeline = segment.timeline();
        if let Some(why) = self.facts.unreadable.get(&timeline) {
            let why = why.clone();
            return Err(Unreadable { timeline, why });
        }
        let (Some(number), Some(history)) = (segment.number(self.facts.size), self.past(timeline))
        else {
            return Ok(false);
        };
        let parent = history.ancestors().last();
        let first = parent.map(|parent| parent.switch_point.0 / self.facts.size.bytes());
        Ok(first.is_some_and(|first| number < first))
    }
}
