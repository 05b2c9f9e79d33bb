//! Records that a timeline has the beginning of and never ended, where another one left it.
//! Never reads a file: whoever can says how segments end. Invariant: behind the place where a timeline is left, up to
//! where [`Lineage::left_end`] says, there is nothing but a part of one record.

use std::collections::BTreeSet;

use walmgr_protocol::names::{Lsn, SegmentName, TimelineId};

use super::model::{Lineage, SegmentProgress};
use crate::wal::history::History;
use crate::wal::joint::SegmentEnd;
use crate::wal::page::record_begins_behind;

impl Lineage {
    /// Notes for the histories here, and for one that is about to arrive, which of them leave their parents at the
    /// beginning of a record that nobody ended. `ends` tells how a finished segment ends, of which that is known.
    pub(in crate::store) fn learn_unended(
        &mut self,
        arriving: Option<&History>,
        ends: impl Fn(SegmentName) -> Option<SegmentEnd>,
    ) {
        let histories = self.facts.histories.values().chain(arriving);
        let ancestors = histories.flat_map(History::ancestors);
        let left: BTreeSet<(TimelineId, Lsn)> = ancestors
            .map(|ancestor| (ancestor.timeline, ancestor.switch_point))
            .collect();
        let unended = left.into_iter().filter_map(|(timeline, switch)| {
            let end = self.unended_to(timeline, switch, &ends)?;
            Some(((timeline, switch), end))
        });
        self.facts.unended = unended.collect();
    }

    /// Up to where the segments of a timeline hold no whole record behind the place where another one left it.
    pub(super) fn left_end(&self, timeline: TimelineId, switch: Lsn) -> Lsn {
        let unended = self.facts.unended.get(&(timeline, switch));
        unended.copied().unwrap_or(switch)
    }

    fn unended_to(
        &self,
        timeline: TimelineId,
        switch: Lsn,
        ends: impl Fn(SegmentName) -> Option<SegmentEnd>,
    ) -> Option<Lsn> {
        let size = self.facts.size;
        let name = |number| SegmentName::from_number(timeline, number, size);
        let mut number = switch.0 / size.bytes();
        let begins_here = match ends(name(number)) {
            Some(SegmentEnd::Open { begins, .. }) => {
                begins == switch || begins == record_begins_behind(switch, size)
            }
            Some(SegmentEnd::Closed { .. } | SegmentEnd::Inside) => false,
            // What is in progress and reaches the segment's end, although its last whole record does not.
            None => {
                let progress = self.facts.partials.get(&name(number));
                progress.is_some_and(|it| {
                    *it == Some(SegmentProgress {
                        end: switch,
                        is_whole: true,
                    })
                })
            }
        };
        if !begins_here {
            return None;
        }
        number += 1;
        while ends(name(number)) == Some(SegmentEnd::Inside) {
            number += 1;
        }
        Some(Lsn(number.saturating_mul(size.bytes())))
    }
}
