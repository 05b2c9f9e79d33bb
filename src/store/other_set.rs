//! The set from which a recovery gets to a target, where the set that was asked for does not lead there.
//! Never changes anything and never refuses: it finds one or none. Invariant: a set that is named is whole, and
//! what it is recovered with is in the archive.

use std::path::Path;
use std::time::{Duration, Instant};

use walmgr_protocol::message::reach::TargetVerdict;
use walmgr_protocol::names::BackupName;

use super::reader::ArchiveReader;
use super::sets::BackupSets;
use super::{RecoveryReach, sets};
use crate::pg::recovery::{RecoveryTarget, TargetTimeline};

/// How long the search may take. The user has been refused already and waits only for a hint what to type instead.
const PATIENCE: Duration = Duration::from_secs(2);

/// What somebody wants of a set.
pub(crate) struct WantedSet<'a> {
    /// Where a recovery of it is to end,
    pub target: &'a RecoveryTarget,
    /// along which timeline.
    pub timeline: TargetTimeline,
    /// Whether a server on the set in this directory loads libraries.
    pub loads_libraries: &'a dyn Fn(&Path) -> bool,
    /// Whether somebody still waits.
    pub goes_on: &'a dyn Fn() -> bool,
}

impl WantedSet<'_> {
    /// The newest set but this one that gets to the target.
    pub(crate) fn find_other(
        &self,
        archive: &ArchiveReader,
        sets: &BackupSets,
        than: &BackupName,
    ) -> Option<BackupName> {
        let begun = Instant::now();
        let goes_on = || begun.elapsed() < PATIENCE && (self.goes_on)();
        let names = sets.list().ok()?.into_iter().map(|entry| entry.name);
        names
            .filter(|name| name != than)
            .take_while(|_| goes_on())
            .find(|name| self.fits(archive, sets.hold(name), &goes_on))
    }

    fn fits(
        &self,
        archive: &ArchiveReader,
        held: Result<sets::HeldSet, sets::SetError>,
        goes_on: &dyn Fn() -> bool,
    ) -> bool {
        let Ok(held) = held else { return false };
        let (path, label) = (held.path(), held.label());
        let loads = (self.loads_libraries)(path);
        let reach = RecoveryReach::of(archive, path, label, self.timeline, loads);
        let verdict = reach.and_then(|reach| reach.judge(self.target, goes_on));
        matches!(verdict, Ok(TargetVerdict::Fits))
    }
}
