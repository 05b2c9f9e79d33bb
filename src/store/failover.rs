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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::FileSealed;
    use crate::store::testing::{
        Sample, assert_stored, new_archive, open as open_archive, scratch_folder, segment,
    };
    use crate::wal::segment::Verify;

    /// A history of this timeline, whose lines are these.
    fn history(timeline: u32, lines: &str) -> Sample {
        Sample {
            name: format!("{timeline:08X}.history").parse().unwrap(),
            bytes: lines.as_bytes().to_vec(),
        }
    }

    /// Offers it as this peer does.
    fn offer(archive: &Archive, sample: &Sample, by: &str, may_fail_over: bool) -> FileSealed {
        let begun = archive.begin(sample.name, sample.len(), Verify::Records);
        let mut incoming = begun.unwrap().brought_by(by).may_fail_over(may_fail_over);
        incoming.write(&sample.bytes).unwrap();
        incoming.seal(sample.len(), sample.crc32()).unwrap()
    }

    fn counts(archive: &Archive, number: u32) -> bool {
        let timeline = TimelineId::new(number).unwrap();
        archive.shared.lineage().unwrap().counts(timeline)
    }

    fn declare(archive: &Archive, number: u32) {
        let timeline = TimelineId::new(number).unwrap();
        archive.declare_failover(timeline, "db2").unwrap();
    }

    /// An archive with segments 3 to 5 of timeline 1, and a history that leaves it amid the fourth.
    const EARLY: &str = "1\t0/480000\tno recovery target specified\n";

    fn with_segments(folder: &std::path::Path) -> crate::store::ArchiveFolders {
        let places = new_archive(folder);
        let archive = open_archive(&places);
        for number in 3..6 {
            assert_stored(&archive, &segment(number, 1));
        }
        places
    }

    #[test]
    fn fault_234_what_a_key_could_not_decide_the_right_to_fail_over_does() {
        let folder = scratch_folder();
        let places = with_segments(folder.path());
        let archive = open_archive(&places);
        // Nothing is there to be declared.
        declare(&archive, 2);
        let early = history(2, EARLY);
        let stored = offer(&archive, &early, "thief", false);
        assert!(matches!(stored, FileSealed::Stored(_)));
        assert!(archive.is_noted(early.name) && !counts(&archive, 2));
        for _ in 0..2 {
            declare(&archive, 2);
            assert!(!archive.is_noted(early.name) && counts(&archive, 2));
        }
        drop(archive);
        let archive = open_archive(&places);
        assert!(counts(&archive, 2));
        // What lies behind the switch is kept.
        let last = places.completed_wals.join(segment(5, 1).name.to_string());
        assert!(last.exists());
    }

    #[test]
    fn fault_234_a_history_with_the_right_is_followed_as_it_arrives() {
        let folder = scratch_folder();
        let archive = open_archive(&with_segments(folder.path()));
        let early = history(2, EARLY);
        assert!(matches!(
            offer(&archive, &early, "db2", true),
            FileSealed::Stored(_)
        ));
        assert!(!archive.is_noted(early.name) && counts(&archive, 2));
        // A segment has no such right.
        let apart = segment(900, 1);
        assert!(matches!(
            offer(&archive, &apart, "db2", true),
            FileSealed::Stored(_)
        ));
        assert!(archive.is_noted(apart.name));
    }

    #[test]
    fn fault_234_nobody_declares_what_leads_nowhere() {
        let folder = scratch_folder();
        let archive = open_archive(&with_segments(folder.path()));
        let orphan = history(9, "8\t0/480000\tforged\n");
        assert!(matches!(
            offer(&archive, &orphan, "db2", true),
            FileSealed::Stored(_)
        ));
        declare(&archive, 9);
        assert!(archive.is_noted(orphan.name) && !counts(&archive, 9));
    }

    #[test]
    fn fault_234_a_forged_history_gives_way_to_a_declared_one_alone() {
        let folder = scratch_folder();
        let places = with_segments(folder.path());
        let archive = open_archive(&places);
        // At the end of what is there, as a failover that lost nothing.
        let forged = history(2, "1\t0/600000\tforged\n");
        offer(&archive, &forged, "thief", false);
        let genuine = history(2, EARLY);
        let refused = offer(&archive, &genuine, "db1", false);
        assert!(matches!(refused, FileSealed::Conflict { .. }));
        assert!(matches!(
            offer(&archive, &genuine, "db2", true),
            FileSealed::Stored(_)
        ));
        let stored = places.completed_wals.join(genuine.name.to_string());
        assert_eq!(std::fs::read(&stored).unwrap(), genuine.bytes);
        let kept = std::fs::read(stored.with_extension("history.displaced"));
        assert_eq!(kept.unwrap(), forged.bytes);
        // As the receiver does before the sender hears of it.
        declare(&archive, 2);
        assert!(counts(&archive, 2));
        // What is followed gives way to nobody.
        let refused = offer(&archive, &forged, "db3", true);
        assert!(matches!(refused, FileSealed::Conflict { .. }));
        assert_eq!(std::fs::read(&stored).unwrap(), genuine.bytes);
    }
}
