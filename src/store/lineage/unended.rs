//! Records that a timeline began and never ended, because another timeline left it there.
//! Never reads a file: callers say how segments end. Invariant: between the place where a timeline is left and
//! [`Lineage::left_end`] there is nothing but a part of one record.

use std::collections::{BTreeMap, BTreeSet};

use walmgr_protocol::names::{Lsn, SegmentName, TimelineId};

use super::model::{Lineage, SegmentProgress};
use crate::wal::history::History;
use crate::wal::joint::SegmentEnd;
use crate::wal::page::record_begins_behind;
use crate::wal::record::record_bytes_max;

impl Lineage {
    /// Notes which histories, here and `arriving`, leave their parents at the beginning of a record that was never
    /// ended. `ends` tells how a finished segment ends; `None` if that is unknown.
    ///
    /// # Errors
    /// Those of `ends`.
    pub(in crate::store) fn learn_unended<Fault>(
        &mut self,
        arriving: Option<&History>,
        ends: impl Fn(SegmentName) -> Result<Option<SegmentEnd>, Fault>,
    ) -> Result<(), Fault> {
        let histories = self.facts.histories.values().chain(arriving);
        let ancestors = histories.flat_map(History::ancestors);
        let left: BTreeSet<(TimelineId, Lsn)> = ancestors
            .map(|ancestor| (ancestor.timeline, ancestor.switch_point))
            .collect();
        let mut unended = BTreeMap::new();
        for (timeline, switch) in left {
            if let Some(end) = self.unended_to(timeline, switch, &ends)? {
                unended.insert((timeline, switch), end);
            }
        }
        self.facts.unended = unended;
        Ok(())
    }

    /// The end of the stretch behind `switch` in which the segments of `timeline` hold no whole record.
    pub(super) fn left_end(&self, timeline: TimelineId, switch: Lsn) -> Lsn {
        let unended = self.facts.unended.get(&(timeline, switch));
        unended.copied().unwrap_or(switch)
    }

    fn unended_to<Fault>(
        &self,
        timeline: TimelineId,
        switch: Lsn,
        ends: impl Fn(SegmentName) -> Result<Option<SegmentEnd>, Fault>,
    ) -> Result<Option<Lsn>, Fault> {
        let size = self.facts.size;
        let name = |number| SegmentName::from_number(timeline, number, size);
        let first = switch.0 / size.bytes();
        let begins_here = match ends(name(first))? {
            Some(SegmentEnd::Open { begins, .. }) => {
                begins == switch || begins == record_begins_behind(switch, size)
            }
            Some(SegmentEnd::Closed { .. } | SegmentEnd::Inside) => false,
            // A claim that stands was found to leave it at its end.
            None if self.facts.segments.contains(name(first)) => {
                self.is_claimed_at(timeline, switch)
            }
            // Behind the segment's first byte, or it may be a record from before that fills it.
            None => switch.0 > first * size.bytes() && self.is_filled_from(name(first), switch),
        };
        if !begins_here {
            return Ok(None);
        }
        let mut number = first + 1;
        let longest = u64::from(record_bytes_max(None)).div_ceil(size.bytes());
        while number - first <= longest {
            let start = Lsn(number.saturating_mul(size.bytes()));
            let is_filled = ends(name(number))? == Some(SegmentEnd::Inside)
                || self.is_filled_from(name(number), start);
            if !is_filled {
                break;
            }
            number += 1;
        }
        Ok(Some(Lsn(number.saturating_mul(size.bytes()))))
    }

    /// Whether what is in progress reaches the segment's end, although its last whole record ends here.
    fn is_filled_from(&self, segment: SegmentName, end: Lsn) -> bool {
        let progress = SegmentProgress {
            end,
            is_whole: true,
            is_damaged: false,
        };
        self.facts.partials.get(&segment) == Some(&Some(progress))
    }

    /// Whether a timeline that readers follow, because keys brought it, leaves that one here.
    fn is_claimed_at(&self, timeline: TimelineId, switch: Lsn) -> bool {
        let histories = &self.facts.histories;
        self.facts.claimed.iter().any(|claimed| {
            let history = histories.get(claimed);
            let left = history.and_then(|history| history.ancestors().last());
            left.is_some_and(|left| (left.timeline, left.switch_point) == (timeline, switch))
        })
    }
}
