//! Timelines that left one line and compete for its readers by how far they lead.
//! Never compares a timeline with its ancestors. Invariant: a timeline without WAL behind the point where two part is
//! nobody's rival.

use walmgr_protocol::names::{Lsn, TimelineId};

use super::model::Lineage;
use crate::wal::history::History;

/// A timeline that has left the line of a history before it, and goes on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rival {
    pub(super) older: TimelineId,
    /// Where the two part.
    pub(super) switch: Lsn,
    pub(super) end: Lsn,
    /// Whether this host opened it, or a person chose it.
    pub(super) is_settled: bool,
}

impl Lineage {
    /// The older timelines that readers would follow instead of the one of this history, with what they have behind
    /// the point where the two part.
    pub(super) fn rivals(&self, history: &History) -> impl Iterator<Item = Rival> {
        let older = self.counting.range(..history.timeline());
        older.filter_map(move |older| {
            let past = self.past(*older)?;
            let switch = parting(past, history)?;
            let end = self.led(&self.line_to(*older), switch).end;
            (end > switch).then(|| Rival {
                older: *older,
                switch,
                end,
                is_settled: !self.is_claimed(*older) && self.lowest() != Some(*older),
            })
        })
    }
}

/// Where the lines of two timelines part; `None` if the older one is on the line of the other, or they share nothing.
fn parting(older: &History, newer: &History) -> Option<Lsn> {
    let mut ancestors = newer.ancestors().iter();
    if ancestors.any(|ancestor| ancestor.timeline == older.timeline()) {
        return None;
    }
    let mut shared = None;
    for (one, other) in older.ancestors().iter().zip(newer.ancestors()) {
        if one.timeline != other.timeline {
            break;
        }
        shared = Some(one.switch_point.min(other.switch_point));
        if one.switch_point != other.switch_point {
            break;
        }
    }
    shared
}
