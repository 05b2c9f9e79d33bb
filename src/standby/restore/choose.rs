//! Which set is restored: the one that was typed, the newest, or the newest that fits a target.
//! Never changes anything. Invariant: the set that is returned is whole, and held.

use std::path::Path;

use walmgr_protocol::names::BackupName;

use crate::error::{CommandError, Result};
use crate::options::Restoring;
use crate::pg::recovery::{Target, TargetTimeline};
use crate::standby::ahead;
use crate::standby::reach::{self, Range, Reach, Verdict};
use crate::standby::route::Route;
use crate::standby::sets;
use crate::store::sets::{BackupSets, HeldSet};
use crate::store::{ArchiveReader, PartialEnd};

/// The set that was asked for, or the newest. The timeline that it is to follow has to come from
/// its own; with `partials` those that came from it and have no WAL give way (see `Plan::thaw`).
pub fn choose(
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
    let route = Route::within(archive, lineage, from, timeline)?;
    if let Some(met) = route.recovery_end(from.1, loads_libraries(held.path()))? {
        let doing = format!("restore {}, which is older", held.name());
        let remedy = ahead::remedy(&met).unwrap_or("make a new backup on the master");
        return Err(CommandError::retry(doing)
            .because(ahead::end_of_recovery(&met))
            .hint(format!(
                "{remedy}, or restore up to before it: --target-time or --target-lsn; nothing was changed"
            )));
    }
    Ok(held)
}

/// The set that was asked for, or the newest that can be recovered to the target.
pub fn choose_for(
    target: &Target,
    archive: &ArchiveReader,
    sets: &BackupSets,
    restoring: &Restoring,
    timeline: TargetTimeline,
    loads_libraries: &dyn Fn(&Path) -> bool,
) -> Result<HeldSet> {
    let mut in_reach: Option<Range> = None;
    let (mut astray, mut ended_by) = (None, None);
    for name in names(sets, restoring)? {
        let held = hold(sets, &name)?;
        let reach = match Reach::of(
            archive,
            held.path(),
            held.label(),
            timeline,
            loads_libraries(held.path()),
        ) {
            Ok(reach) => reach,
            // Its timeline leads elsewhere; an older set may be on the way.
            Err(error) => {
                astray = Some(error);
                continue;
            }
        };
        match reach.judge(target)? {
            Verdict::Fits => {
                tracing::info!("{name} can be recovered to {target}");
                return Ok(held);
            }
            Verdict::OutOfReach(range) => {
                ended_by = ended_by.or(reach.ended_by().cloned());
                in_reach = Some(match in_reach {
                    Some(newer) => newer.and(range),
                    None => range,
                });
            }
        }
    }
    Err(match (in_reach, astray) {
        (Some(range), _) => {
            reach::refused(target, &range, &typed_again(restoring), ended_by.as_ref())
        }
        (None, Some(error)) => error,
        (None, None) => no_set(),
    })
}

/// The command as it was typed, less its target.
fn typed_again(restoring: &Restoring) -> String {
    let mut typed = "walmgr STANDBY.ini restore".to_owned();
    let mut add = |word: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+=:@".contains(&byte);
        match !word.is_empty() && word.bytes().all(plain) {
            true => typed.push_str(&format!(" {word}")),
            false => typed.push_str(&format!(" '{}'", word.replace('\'', "'\\''"))),
        }
    };
    restoring.set.iter().for_each(|set| add(set));
    let destination = restoring.destination.iter();
    destination.for_each(|path| add(&path.display().to_string()));
    for (old, new) in &restoring.tablespaces {
        add("--tablespace-mapping");
        add(&format!("{}={}", old.display(), new.display()));
    }
    if restoring.trusts_settings {
        add("--trust-settings");
    }
    if let Some(timeline) = &restoring.target.timeline {
        add("--target-timeline");
        add(timeline);
    }
    typed
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
