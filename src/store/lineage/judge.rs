//! What becomes of a file that arrives: it counts, or it is set apart until something connects it.
//! Never changes what was decided about another file but to join it. Invariant: no file that arrives
//! makes anything unreachable that was acknowledged before.

use std::collections::BTreeSet;

use walmgr_protocol::names::{Lsn, SegmentName, TimelineId, WalFileName};

use super::model::{ApartKind, Lineage};
use super::rival::Rival;
use crate::wal::history::History;

/// Why a file is set apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Apart {
    /// A segment too far beyond the end of its run.
    #[error("it is {segments} segments beyond {end}, where the WAL before it ends")]
    Ahead {
        /// Where the run before it ends.
        end: Lsn,
        /// How far beyond.
        segments: u64,
    },
    /// A segment of a timeline older than any that has WAL here.
    #[error("the archive begins on timeline {lowest}, which is newer")]
    Older {
        /// The lowest that has WAL.
        lowest: TimelineId,
    },
    /// A segment that holds WAL behind the end of its timeline.
    #[error("timeline {newer} has left its timeline at {switch} already")]
    Behind {
        /// The timeline that counts.
        newer: TimelineId,
        /// Where it left.
        switch: Lsn,
    },
    /// A segment of a timeline that does not count.
    #[error("nothing says where timeline {timeline} comes from")]
    UnknownTimeline {
        /// Which.
        timeline: TimelineId,
    },
    /// A segment of a timeline whose history is set apart.
    #[error("the history of timeline {timeline} is set apart")]
    SetAside {
        /// Which.
        timeline: TimelineId,
    },
    /// The chain of a history has a hole.
    #[error("PostgreSQL would not find timeline {timeline}: there is no history of {missing}")]
    Hole {
        /// Whose history.
        timeline: TimelineId,
        /// The first that is missing.
        missing: TimelineId,
    },
    /// A history that contradicts that of its parent.
    #[error("it tells another past of timeline {parent} than that one's own history")]
    OtherPast {
        /// Whose history.
        timeline: TimelineId,
        /// Its parent.
        parent: TimelineId,
    },
    /// The switch point lies before acknowledged WAL.
    #[error(
        "it leaves timeline {parent} at {switch}, but WAL of that one was acknowledged up to {end}"
    )]
    BeforeAcknowledged {
        /// The timeline it leaves.
        parent: TimelineId,
        /// Where.
        switch: Lsn,
        /// Where that one's WAL ends.
        end: Lsn,
    },
    /// The parent went on further than the timeline did.
    #[error(
        "it leaves timeline {parent} at {switch}, but that one goes on to {end}, which is more"
    )]
    Outgrown {
        /// The timeline it leaves.
        parent: TimelineId,
        /// Where.
        switch: Lsn,
        /// Up to where the parent goes on.
        end: Lsn,
    },
    /// An older timeline that counts has left the same line, and holds.
    #[error("timeline {older} parted from its line at {switch} before, and leads to {end}")]
    Rival {
        /// The older one.
        older: TimelineId,
        /// Where the two part.
        switch: Lsn,
        /// Up to where the older one leads.
        end: Lsn,
    },
    /// Nothing of the timeline is there yet, or its parent does not lead to where it begins.
    #[error("no WAL leads to {switch}, where it begins, and on from there")]
    Unconnected {
        /// Where it leaves its parent.
        switch: Lsn,
    },
    /// The timeline has WAL from before the switch point.
    #[error("the timeline has WAL from before {switch}, where it would begin")]
    Contradicts {
        /// Where it leaves its parent.
        switch: Lsn,
    },
}

impl Apart {
    /// Whether a key with the right to fail over has a history followed all the same: it says which line ended where,
    /// and not what leads nowhere.
    pub const fn yields_to_failover(&self) -> bool {
        matches!(
            self,
            Apart::BeforeAcknowledged { .. }
                | Apart::Outgrown { .. }
                | Apart::Rival { .. }
                | Apart::Unconnected { .. }
        )
    }

    /// What the note says.
    pub const fn kind(&self) -> ApartKind {
        match self {
            Apart::Ahead { .. } | Apart::Older { .. } => ApartKind::Ahead,
            Apart::Behind { .. } => ApartKind::Behind,
            Apart::UnknownTimeline { .. } | Apart::SetAside { .. } => ApartKind::Timeline,
            _ => ApartKind::History,
        }
    }
}

impl Lineage {
    /// What becomes of a segment that arrives; `None`: it counts.
    pub fn judge(&self, segment: SegmentName, ahead_max: u64) -> Option<Apart> {
        let timeline = segment.timeline();
        let Some(lowest) = self.lowest() else {
            // The first one there is: the archive begins with it.
            return None;
        };
        if !self.counts(timeline) {
            let known = self.facts.histories.contains_key(&timeline);
            return Some(match known {
                _ if timeline < lowest => Apart::Older { lowest },
                true => Apart::SetAside { timeline },
                false => Apart::UnknownTimeline { timeline },
            });
        }
        if let Some((newer, switch)) = self.left_at(timeline)
            && self.end(segment) > self.left_end(timeline, switch)
        {
            return Some(Apart::Behind { newer, switch });
        }
        self.ahead(segment, ahead_max)
    }

    /// What becomes of a history that arrives; `None`: it counts.
    pub fn judge_history(&self, history: &History) -> Option<Apart> {
        let timeline = history.timeline();
        let parent = history.ancestors().last()?;
        let (parent, switch) = (parent.timeline, parent.switch_point);
        let size = self.facts.size.bytes();
        let first = switch.0 / size;
        let counts = |name: &SegmentName| {
            let note = self.note(WalFileName::Segment(*name));
            matches!(note, None | Some(ApartKind::Timeline))
        };
        let lowest = self.facts.segments.on(timeline).find(counts);
        let partials = self.facts.partials.keys().copied();
        let partials = partials.filter(|name| name.timeline() == timeline);
        let own = lowest.into_iter().chain(partials);
        let begins = own.filter_map(|name| name.number(self.facts.size)).min();
        let is_lowest = self.lowest() == Some(timeline);
        // What nobody follows contradicts nothing: it can be made up to have a number in advance.
        let is_followed = is_lowest || self.counts(timeline);
        if is_followed && begins.is_some_and(|number| number < first) {
            return Some(Apart::Contradicts { switch });
        }
        if is_lowest {
            return None;
        }
        if let Err(apart) = self.chain_of(history) {
            return Some(apart);
        }
        let end = self.end_of(parent);
        if let Some(end) = end.filter(|end| *end > self.left_end(parent, switch)) {
            return Some(Apart::BeforeAcknowledged {
                parent,
                switch,
                end,
            });
        }
        // What was set apart because of another claim counts against this one as well.
        if let Some(end) = self.goes_on_to(parent, switch)
            && end > self.raw_end(timeline, switch)
        {
            return Some(Apart::Outgrown {
                parent,
                switch,
                end,
            });
        }
        let own_end = self.raw_end(timeline, switch);
        let holds = |rival: &Rival| rival.is_settled || rival.end > own_end;
        if let Some(Rival {
            older, switch, end, ..
        }) = self.rivals(history).find(holds)
        {
            return Some(Apart::Rival { older, switch, end });
        }
        let has_first = |timeline: TimelineId| {
            let name = SegmentName::from_number(timeline, first, self.facts.size);
            self.facts.segments.contains(name) && counts(&name)
                || self.facts.partials.contains_key(&name)
        };
        let goes_on = has_first(timeline) || self.left_within(history, first).any(has_first);
        match self.is_reached(history, first) && goes_on {
            true => None,
            false => Some(Apart::Unconnected { switch }),
        }
    }

    /// Whether WAL of an ancestor leads to the `first` segment of this timeline. An ancestor that began in that segment
    /// and was left in it has no WAL of its own, so the ancestor before it counts then.
    fn is_reached(&self, history: &History, first: u64) -> bool {
        let size = self.facts.size.bytes();
        let mut before = history.ancestors().iter().rev().peekable();
        while let Some(ancestor) = before.next() {
            let end = self.end_of(ancestor.timeline);
            if end.is_some_and(|end| end.0 >= first * size) {
                return true;
            }
            let began = before.peek().map(|parent| parent.switch_point.0 / size);
            if began != Some(first) {
                break;
            }
        }
        false
    }

    /// The timelines that left this one in its `first` segment. Their segment of that number has this timeline's
    /// records too. PostgreSQL archives this timeline's own only as `.partial`.
    fn left_within(&self, history: &History, first: u64) -> impl Iterator<Item = TimelineId> {
        let (timeline, past) = (history.timeline(), history.ancestors());
        let size = self.facts.size.bytes();
        let newer = self.facts.histories.range(timeline..);
        newer.filter_map(move |(newer, other)| {
            let (before, behind) = other.ancestors().split_at_checked(past.len())?;
            let left = behind.first().filter(|left| left.timeline == timeline)?;
            let mut pairs = before.iter().zip(past);
            let is_same = pairs.all(|(theirs, own)| {
                (theirs.timeline, theirs.switch_point) == (own.timeline, own.switch_point)
            });
            (is_same && left.switch_point.0 / size == first).then_some(*newer)
        })
    }

    /// Whether a segment that counts has a hole before it, so that nothing shows yet that it belongs there.
    pub fn is_early(&self, segment: SegmentName) -> bool {
        let pieces = self.pieces(&self.line_to(segment.timeline()));
        let number = segment.number(self.facts.size).unwrap_or_default();
        (pieces.before(number)).is_some_and(|(before, _)| before + 1 < number)
    }

    /// A file whose note is no longer right.
    pub fn joined(&self, ahead_max: u64) -> Option<WalFileName> {
        self.joined_but(ahead_max, &BTreeSet::new())
    }

    /// A file whose note is no longer right. The files in `unled` are left out: they are known not to go on with what
    /// is before them.
    pub fn joined_but(&self, ahead_max: u64, unled: &BTreeSet<WalFileName>) -> Option<WalFileName> {
        let mut notes = (self.facts.notes.iter()).filter(|(name, _)| !unled.contains(name));
        let joins = |(name, kind): &(&WalFileName, &ApartKind)| match (name, kind) {
            (WalFileName::History(timeline), _) => {
                let history = self.facts.histories.get(timeline);
                history.is_none_or(|history| self.judge_history(history).is_none())
            }
            (WalFileName::Segment(segment), ApartKind::Timeline) => {
                self.counts(segment.timeline()) && self.judge(*segment, ahead_max).is_none()
            }
            (WalFileName::Segment(segment), ApartKind::Ahead) => {
                self.counts(segment.timeline()) && self.follows(*segment)
            }
            // What has left its timeline gave way (see `giving_way_to`).
            (WalFileName::Segment(segment), ApartKind::Behind) => {
                let left = self.left_at(segment.timeline());
                let left = left.map(|(_, switch)| self.left_end(segment.timeline(), switch));
                left.is_none_or(|left| self.end(*segment) <= left)
                    && self.judge(*segment, ahead_max).is_none()
            }
            _ => false,
        };
        notes.find(joins).map(|(name, _)| *name)
    }

    /// Takes a note away.
    #[must_use]
    pub fn without_note(mut self, name: WalFileName) -> Lineage {
        self.facts.notes.remove(&name);
        Lineage::of(self.facts)
    }

    /// The timelines that came from this one and give way when it goes on: neither they nor what came
    /// from them have WAL here, so nothing that was acknowledged becomes unreachable.
    ///
    /// A boot that was a trial leaves such a timeline, once its old master is the master again.
    pub fn giving_way_to(&self, timeline: TimelineId) -> Vec<TimelineId> {
        let partials = self.facts.partials.keys().map(|name| name.timeline());
        let has_wal = self.facts.segments.timelines().chain(partials);
        let has_wal: BTreeSet<TimelineId> = has_wal.collect();
        let mut staying = BTreeSet::new();
        let mut giving_way = Vec::new();
        // The newest first: nothing comes from it.
        for newer in self.counting.iter().rev() {
            let ancestors = self.past(*newer).map(History::ancestors);
            let past = ancestors.unwrap_or_default().iter();
            let past: Vec<TimelineId> = past.map(|ancestor| ancestor.timeline).collect();
            if has_wal.contains(newer) || staying.contains(newer) {
                staying.extend(past);
            } else if past.contains(&timeline) {
                giving_way.push(*newer);
            }
        }
        giving_way
    }

    /// This archive with the history of a timeline set apart.
    #[must_use]
    pub fn with_history_apart(mut self, timeline: TimelineId) -> Lineage {
        let name = WalFileName::History(timeline);
        self.facts.notes.insert(name, ApartKind::History);
        Lineage::of(self.facts)
    }

    /// Where a timeline that counts has left this one, the earliest of them.
    fn left_at(&self, timeline: TimelineId) -> Option<(TimelineId, Lsn)> {
        let newer = self.counting.iter().filter(|newer| **newer > timeline);
        let left = newer.filter_map(|newer| {
            let history = self.past(*newer)?;
            let mut ancestors = history.ancestors().iter();
            let own = ancestors.find(|ancestor| ancestor.timeline == timeline)?;
            Some((*newer, own.switch_point))
        });
        // Two may have left it, as after a boot from an older set: what leads to either stays.
        left.max_by_key(|(_, switch)| *switch)
    }

    /// Whether the segment before this one is there.
    fn follows(&self, segment: SegmentName) -> bool {
        let line = self.line_to(segment.timeline());
        let number = segment.number(self.facts.size);
        let before = number.and_then(|number| number.checked_sub(1));
        before.is_some_and(|before| self.pieces(&line).get(before).is_some())
    }

    fn ahead(&self, segment: SegmentName, ahead_max: u64) -> Option<Apart> {
        let number = segment.number(self.facts.size)?;
        let pieces = self.pieces(&self.line_to(segment.timeline()));
        // What is older than everything else sets nothing apart, and is in nobody's way.
        let (before, _) = pieces.up_to(number)?;
        let segments = number - before;
        let end = Lsn((before + 1).saturating_mul(self.facts.size.bytes()));
        (segments > ahead_max).then_some(Apart::Ahead { end, segments })
    }

    /// Where a segment ends.
    pub(super) fn end(&self, segment: SegmentName) -> Lsn {
        let start = segment.start(self.facts.size).unwrap_or_default();
        Lsn(start.0.saturating_add(self.facts.size.bytes()))
    }
}
