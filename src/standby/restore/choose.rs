//! Which set is restored: the one that was typed, the newest, or the newest that fits a target.
//! Never changes anything. Invariant: the set that is returned is whole, and held.

use std::cell::RefCell;
use std::path::Path;

use walmgr_protocol::message::reach::{TargetRange, TargetVerdict};
use walmgr_protocol::names::BackupName;

use crate::error::{CommandError, Result};
use crate::options::Restoring;
use crate::output::Waiting;
use crate::pg::in_reach::{self, TypedTarget};
use crate::pg::recovery::{RecoveryTarget, TargetTimeline};
use crate::standby::sets;
use crate::store::sets::{BackupSets, HeldSet};
use crate::store::{ArchiveReader, PartialEnd, RecoveryReach, Route, WantedSet, check_backup_end};

/// The set that was asked for, or the newest. The timeline to follow has to come from the set's own. With
/// `partials`, timelines that came from the set's and have no WAL give way (see `Plan::thaw`).
pub(super) fn choose(
    archive: &ArchiveReader,
    sets: &BackupSets,
    restoring: &Restoring,
    timeline: TargetTimeline,
    partials: Option<&[PartialEnd]>,
    loads_libraries: &dyn Fn(&Path) -> bool,
) -> Result<HeldSet> {
    let names = names(sets, restoring)?;
    let newest = names.first().ok_or_else(no_set)?;
    let held = hold(sets, newest)?;
    let label = held.label();
    let from = (label.first_segment.timeline(), label.start);
    let lineage = archive.lineage(partials.unwrap_or_default());
    let mut lineage = lineage
        .map_err(|error| CommandError::new(error.kind(), "read the archive").because(error))?;
    if partials.is_some() {
        for newer in lineage.giving_way_to(from.0) {
            lineage = lineage.with_history_apart(newer);
        }
    }
    let route = Route::within(archive, lineage, from, timeline)
        .and_then(|route| {
            check_backup_end(archive, held.path(), label, &route)?;
            Ok(route)
        })
        .map_err(|error| typed(restoring).astray(error))?;
    let met = (route.obstacles(from.1))
        .map_err(|error| CommandError::new(error.kind(), "read the archive").because(error))?;
    if let Some(end) = in_reach::end_of(&met, loads_libraries(held.path())) {
        return Err(typed(restoring).ended(&held.name().to_string(), &end));
    }
    Ok(held)
}

/// The set that was asked for, or the newest that can be recovered to the target.
pub(super) fn choose_for(
    target: &RecoveryTarget,
    archive: &ArchiveReader,
    sets: &BackupSets,
    restoring: &Restoring,
    timeline: TargetTimeline,
    loads_libraries: &dyn Fn(&Path) -> bool,
) -> Result<HeldSet> {
    let waiting = RefCell::new(Waiting::begin());
    let goes_on = || {
        if waiting.borrow_mut().is_due() {
            tracing::info!("looking through the WAL of the archive for {target}");
        }
        true
    };
    let mut found: Option<TargetRange> = None;
    let (mut astray, mut ended_by, mut other) = (None, None, None);
    for name in names(sets, restoring)? {
        let held = hold(sets, &name)?;
        let (path, label) = (held.path(), held.label());
        let reach = match RecoveryReach::of(archive, path, label, timeline, loads_libraries(path)) {
            Ok(reach) => reach,
            // Its timeline leads elsewhere; an older set may be on the way.
            Err(error) => {
                astray = Some(typed(restoring).astray(error));
                continue;
            }
        };
        match reach.judge(target, &goes_on)? {
            TargetVerdict::Fits => {
                tracing::info!("{name} can be recovered to {target}");
                return Ok(held);
            }
            TargetVerdict::Untold(why) => {
                tracing::warn!("{}", in_reach::untold_text(target, &why));
                return Ok(held);
            }
            TargetVerdict::OutOfReach(range, _) => {
                if restoring.set.is_some() {
                    let wanted = WantedSet {
                        target,
                        timeline,
                        loads_libraries,
                        goes_on: &goes_on,
                    };
                    other = wanted.find_other(archive, sets, &name);
                }
                ended_by = ended_by.or(reach.ended_by());
                found = Some(match found {
                    Some(newer) => in_reach::widened(newer, range),
                    None => range,
                });
            }
            TargetVerdict::NoWay(why) => astray = Some(typed(restoring).no_way(&why)),
        }
    }
    Err(match (found, astray) {
        (Some(range), _) => {
            let other = other.map(|set| set.to_string());
            typed(restoring).refused(target, &range, ended_by.as_ref(), other.as_deref())
        }
        (None, Some(error)) => error,
        (None, None) => no_set(),
    })
}

const fn typed(restoring: &Restoring) -> TypedTarget<'_> {
    TypedTarget {
        command: "walmgr STANDBY.ini restore",
        restoring,
        can_load: true,
    }
}

/// The sets that come into question, newest first.
fn names(sets: &BackupSets, restoring: &Restoring) -> Result<Vec<BackupName>> {
    let Some(text) = &restoring.set else {
        let listed = sets.list();
        let listed = listed.map_err(|error| sets::failed("list the backup sets", &error))?;
        return Ok(listed.into_iter().map(|set| set.name).collect());
    };
    let name = sets.newest().parse_sibling(text).map_err(|error| {
        CommandError::usage(format!("restore {text}"))
            .because(error)
            .hint("`listbackups` lists the sets")
    })?;
    Ok(vec![name])
}

fn hold(sets: &BackupSets, name: &BackupName) -> Result<HeldSet> {
    let held = sets.hold(name);
    held.map_err(|error| sets::failed(&format!("restore {name}"), &error))
}

fn no_set() -> CommandError {
    CommandError::retry("there is no backup set to restore")
        .hint("make one with `backup` on the master")
}
