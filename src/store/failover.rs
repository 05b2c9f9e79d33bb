//! A failover that somebody with the right to it declares: readers follow the new timeline from where it began.
//! Never removes what the old timeline has behind that point. Invariant: a history that PostgreSQL would not find, or
//! that contradicts another one, is followed no more than it was.
//!
//! A cluster that chooses its leader by itself (Patroni) promotes a replica that may lack the last records of the
//! leader that died, although these were shipped and acknowledged. For a stranger's key such a history is set apart
//! (`lineage`). A key with the right `failover` decides as `choose --take` does: the timeline is
//! settled, and the old leader's stream is refused from then on.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use walmgr_protocol::names::{TimelineId, WalFileName};

use super::apart_notes::{is_unproven, settle};
use super::error::StoreError;
use super::lineage::Apart;
use super::shared::{Archive, Shared};

impl Archive {
    /// Has readers follow a history that is stored already, if it was only claimed or set apart.
    pub fn declare_failover(&self, timeline: TimelineId, by: &str) -> Result<(), StoreError> {
        let (shared, name) = (&self.shared, WalFileName::History(timeline));
        if !shared.has_newer_than(TimelineId::FIRST) {
            return Ok(());
        }
        let _alone = shared.order.write().unwrap_or_else(PoisonError::into_inner);
        let mut lineage = shared.lineage()?;
        if lineage.counts(timeline) && !lineage.is_claimed(timeline) {
            return Ok(());
        }
        let Some(history) = lineage.without_history(timeline) else {
            return Ok(());
        };
        let judged = lineage.judge_history(&history);
        if judged.is_some_and(|apart| !apart.yields_to_failover()) {
            return Ok(());
        }
        tell(name, by, judged);
        settle(&shared.completed, name)?;
        shared.has_notes.store(true, Ordering::Relaxed);
        shared.join_or_warn();
        Ok(())
    }
}

impl Shared {
    /// Whether the stored history of this name, which nobody follows, gives way to one that is declared.
    pub(super) fn gives_way_to_failover(&self, name: WalFileName) -> Result<bool, StoreError> {
        Ok(matches!(name, WalFileName::History(_))
            && is_unproven(&self.completed, name)?
            && self.may_displace(name)?)
    }
}

/// Says what is followed from now on, and what is left behind for it.
pub(super) fn tell(name: WalFileName, by: &str, judged: Option<Apart>) {
    let WalFileName::History(timeline) = name else {
        return;
    };
    match judged {
        None | Some(Apart::Unconnected { .. }) => {
            tracing::info!("{by} declares a failover: readers follow timeline {timeline}");
        }
        Some(apart) => tracing::warn!(
            "{by} declares a failover: readers follow timeline {timeline}, although {apart}; what lies behind is kept"
        ),
    }
}
