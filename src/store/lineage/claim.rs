//! Timelines that only keys claim: whether one holds against a parent that goes on.
//! Never asks who brought what. Invariant: a claim that is given up leads less far than what is followed
//! instead of it, and nothing that this host opened or a person chose is ever given up.

use walmgr_protocol::names::{Lsn, SegmentName, TimelineId, WalFileName};

use super::judge::Apart;
use super::model::{ApartKind, Lineage};
use crate::wal::history::History;

/// A claim that its parent contradicts, or an older timeline that left the same line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outgrown {
    /// Which timeline is claimed.
    pub timeline: TimelineId,
    /// The timeline that the claimed one says it left.
    pub parent: TimelineId,
    /// The timeline that goes on: its parent, or a sibling.
    pub followed: TimelineId,
    /// Where the claimed timeline and the followed one part.
    pub switch: Lsn,
    /// Up to where the followed timeline goes on.
    pub end: Lsn,
}

impl Outgrown {
    /// Why its history is set apart.
    pub fn apart(&self) -> Apart {
        let Outgrown {
            parent,
            followed,
            switch,
            end,
            ..
        } = *self;
        match followed == parent {
            true => Apart::Outgrown {
                parent,
                switch,
                end,
            },
            false => Apart::Rival {
                older: followed,
                switch,
                end,
            },
        }
    }
}

impl Lineage {
    /// The newest timeline that keeps out a stream of `timeline`. A claimed timeline keeps out none: the genuine
    /// master may still write to its parent.
    pub fn fencing(&self, timeline: TimelineId) -> Option<TimelineId> {
        let mut newer = self.counting.range(timeline..).rev();
        let is_settled = |newer: &&TimelineId| {
            **newer > timeline && (!self.is_claimed(**newer) || self.lowest() == Some(**newer))
        };
        newer.find(is_settled).copied()
    }

    /// Whether only what keys brought says that there is such a timeline.
    pub fn is_claimed(&self, timeline: TimelineId) -> bool {
        self.facts.claimed.contains(&timeline)
    }

    /// This archive with the history of a timeline claimed.
    #[must_use]
    pub fn with_claim(mut self, timeline: TimelineId) -> Lineage {
        self.facts.claimed.insert(timeline);
        self
    }

    /// Takes a history out as if it had not come yet.
    pub fn without_history(&mut self, timeline: TimelineId) -> Option<History> {
        let history = self.facts.histories.remove(&timeline)?;
        self.facts.notes.remove(&WalFileName::History(timeline));
        *self = Lineage::of(self.facts.clone());
        Some(history)
    }

    /// Claims that count although their parent goes on behind the point where they leave it, or an older timeline
    /// that left it too.
    pub fn contested(&self) -> Vec<Outgrown> {
        let claims = self
            .counting
            .iter()
            .filter(|one| self.is_only_claimed(**one));
        let contested = claims.filter_map(|timeline| {
            let history = self.past(*timeline)?;
            let parent = history.ancestors().last()?;
            let (parent, switch) = (parent.timeline, parent.switch_point);
            let own = Outgrown {
                timeline: *timeline,
                parent,
                followed: parent,
                switch,
                end: switch,
            };
            let goes_on = self.goes_on_to(parent, switch);
            let by_parent = goes_on.map(|end| Outgrown { end, ..own });
            let by_rivals = self.rivals(history).map(|rival| Outgrown {
                followed: rival.older,
                switch: rival.switch,
                end: rival.end,
                ..own
            });
            by_parent
                .into_iter()
                .chain(by_rivals)
                .max_by_key(|one| one.end)
        });
        contested.collect()
    }

    /// The first of them that leads less far than its parent does, or against which a person chose.
    pub fn outgrown(&self) -> Option<Outgrown> {
        let mut contested = self.contested().into_iter();
        contested.find(|claim| {
            let own = self.descendants(claim.timeline);
            let own = own.map(|one| self.led(&self.line_to(one), claim.switch).end);
            // Segments of it may still have the note that their timeline does not count.
            let raw = self.past(claim.timeline).and_then(|past| {
                let begin = past.ancestors().last()?.switch_point;
                Some(self.raw_end(claim.timeline, begin))
            });
            let is_longer = own.chain(raw).max().is_none_or(|own| claim.end > own);
            // What arrives there gets a note, so one without it is what `choose` took.
            let segments = self.facts.segments.on(claim.parent).rev();
            let left = self.left_end(claim.parent, claim.switch);
            let mut behind = segments.take_while(|name| self.end(*name) > left);
            is_longer || claim.followed == claim.parent && behind.any(|name| self.is_plain(name))
        })
    }

    /// This archive without the claim on `timeline`. Readers follow neither its history, nor its segments, nor those
    /// of timelines that came from it. Also returns these segments.
    #[must_use]
    pub fn given_up(mut self, timeline: TimelineId) -> (Lineage, Vec<SegmentName>) {
        let timelines: Vec<TimelineId> = self.descendants(timeline).collect();
        let segments = &self.facts.segments;
        let own = timelines.iter().flat_map(|one| segments.on(*one));
        let own: Vec<SegmentName> = own.filter(|name| self.is_plain(*name)).collect();
        for name in &own {
            let name = WalFileName::Segment(*name);
            self.facts.notes.insert(name, ApartKind::Timeline);
        }
        (self.with_history_apart(timeline), own)
    }

    /// Up to where the WAL of a timeline goes on without a gap behind a point where another left it; `None` if it
    /// ends there.
    pub(super) fn goes_on_to(&self, timeline: TimelineId, switch: Lsn) -> Option<Lsn> {
        let end = self.run_end(timeline, switch, ApartKind::Behind);
        (end > self.left_end(timeline, switch)).then_some(end)
    }

    /// Up to where a timeline leads from where it begins, whether it counts or not.
    pub(super) fn raw_end(&self, timeline: TimelineId, switch: Lsn) -> Lsn {
        self.run_end(timeline, switch, ApartKind::Timeline)
    }

    /// Up to where segments of a timeline lead that have no note, or this one.
    fn run_end(&self, timeline: TimelineId, from: Lsn, kind: ApartKind) -> Lsn {
        let size = self.facts.size;
        let (mut end, mut number) = (from, from.0 / size.bytes());
        loop {
            let name = SegmentName::from_number(timeline, number, size);
            let note = self.note(WalFileName::Segment(name));
            let is_there =
                self.facts.segments.contains(name) && note.is_none_or(|noted| noted == kind);
            let partial = self.facts.partials.get(&name);
            match partial {
                _ if is_there => {}
                Some(Some(progress)) if !progress.is_whole => return end.max(progress.end),
                Some(_) => {}
                None => return end,
            }
            number += 1;
            end = Lsn(number.saturating_mul(size.bytes()));
        }
    }

    /// Whether nothing settled stands on it.
    fn is_only_claimed(&self, timeline: TimelineId) -> bool {
        self.lowest() != Some(timeline)
            && self.descendants(timeline).all(|one| self.is_claimed(one))
    }

    /// A timeline that counts, and those that came from it.
    fn descendants(&self, timeline: TimelineId) -> impl Iterator<Item = TimelineId> {
        let counting = self.counting.range(timeline..).copied();
        counting.filter(move |one| {
            let ancestors = self.past(*one).map(History::ancestors).unwrap_or_default();
            *one == timeline || ancestors.iter().any(|other| other.timeline == timeline)
        })
    }
}
