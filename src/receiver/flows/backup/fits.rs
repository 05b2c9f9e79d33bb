//! Whether what arrived is a backup of the cluster that the archive is of, as far as that can be told.
//! Never believes a word of the client that a file of the set does not say too. Invariant: a set that
//! passes has the files without which no server starts, and begins where the archive's WAL does.

use std::collections::BTreeSet;

use walmgr_protocol::message::backup::{Finish, PartName};
use walmgr_protocol::message::{Error, ErrorCode};
use walmgr_protocol::names::{RelativePath, SegmentName, TimelineId};

use super::received::Received;
use crate::pg::backup_label::BackupLabel;
use crate::pg::control::{self, ControlFile};
use crate::pg::layout;
use crate::pg::manifest::Reader;
use crate::receiver::cluster::running::Running;
use crate::store::Binding;

/// Files that every cluster has, whatever is in it.
const NEEDED: [&str; 6] = [
    layout::PG_VERSION,
    layout::BACKUP_LABEL,
    "base/1/PG_VERSION",
    "base/1/pg_filenode.map",
    layout::PG_CONTROL,
    "global/pg_filenode.map",
];

/// Files of another life of the server, which no backup has either, and the names that a restore gives
/// the control file until it is done: whoever looks what WAL a server needs reads those first.
const UNWANTED: [&str; 8] = [
    layout::BACKUP_MANIFEST,
    layout::CONTROL_COPIED,
    layout::CONTROL_MOVED,
    layout::CONTROL_RESTORING,
    layout::POSTMASTER_OPTS,
    layout::POSTMASTER_PID,
    layout::RECOVERY_SIGNAL,
    layout::STANDBY_SIGNAL,
];

/// The first segment that the set needs, if all of it fits together and into this archive.
pub(crate) fn check(
    binding: &Binding,
    running: &Running,
    parts: &Received,
    asked: &Finish,
) -> Result<SegmentName, Error> {
    let label = parts.need(&PartName::Label)?;
    let label = check_label(running.timeline(), label, asked)?;
    check_start(binding, &label, asked)?;
    let manifest = parts.need(&PartName::Manifest)?;
    let has_map = parts.find(&PartName::TablespaceMap).is_some();
    check_manifest(binding, manifest, asked, has_map)?;
    let version = running.read_small(layout::PG_VERSION)?;
    let control = running.read_small(layout::PG_CONTROL)?;
    let control = control::parse(&control)
        .map_err(|fault| mismatch(format!("its {} is not one: {fault}", layout::PG_CONTROL)))?;
    check_control(binding, &control, &version, &label)?;
    Ok(label.first_segment)
}

/// The label, if it says what the client says.
fn check_label(began: TimelineId, label: &[u8], asked: &Finish) -> Result<BackupLabel, Error> {
    if asked.timeline != began {
        return Err(mismatch(format!(
            "the backup began on timeline {} and ended on timeline {}: the server was promoted \
             meanwhile",
            began.number(),
            asked.timeline.number()
        )));
    }
    let label = BackupLabel::parse(label)
        .map_err(|error| mismatch(format!("its backup_label is not one: {error}")))?;
    if label.start != asked.start || label.first_segment.timeline() != asked.timeline {
        return Err(mismatch(format!(
            "its backup_label begins at {} in {}, not at {} on timeline {}",
            label.start,
            label.first_segment,
            asked.start,
            asked.timeline.number()
        )));
    }
    Ok(label)
}

fn check_start(binding: &Binding, label: &BackupLabel, asked: &Finish) -> Result<(), Error> {
    let expected = SegmentName::containing(asked.timeline, label.start, binding.segment_size);
    if label.first_segment != expected {
        return Err(mismatch(format!(
            "its backup_label says that {} lies in {}, it lies in {expected}",
            label.start, label.first_segment
        )));
    }
    if label.checkpoint < label.start || asked.stop <= label.checkpoint {
        return Err(mismatch(format!(
            "it begins at {}, has its checkpoint at {} and ends at {}, which is not in order",
            label.start, label.checkpoint, asked.stop
        )));
    }
    Ok(())
}

/// Reads all of it once, so that a second reading can count on it.
fn check_manifest(
    binding: &Binding,
    manifest: &[u8],
    asked: &Finish,
    has_map: bool,
) -> Result<(), Error> {
    let refuse = |error: String| mismatch(format!("the backup_manifest is not one: {error}"));
    let reader = Reader::new(manifest).map_err(|error| refuse(error.to_string()))?;
    if let Some(foreign) = reader.system_id().filter(|id| *id != binding.system_id) {
        return Err(mismatch(format!(
            "its backup_manifest is of the cluster {foreign}, the archive of {}",
            binding.system_id
        )));
    }
    let is_its = reader.wal_ranges().iter().any(|range| {
        (range.timeline, range.start, range.end) == (asked.timeline, asked.start, asked.stop)
    });
    if !is_its {
        return Err(mismatch(format!(
            "its backup_manifest does not say that it needs WAL from {} to {}",
            asked.start, asked.stop
        )));
    }
    let mut missing: BTreeSet<&str> = NEEDED.into_iter().collect();
    missing.extend(has_map.then_some(layout::TABLESPACE_MAP));
    for file in reader {
        let file = file.map_err(|error| refuse(error.to_string()))?;
        let path = file.path.as_bytes();
        let is_unwanted =
            UNWANTED.iter().any(|name| name.as_bytes() == path) || is_in_emptied(&file.path);
        if is_unwanted {
            return Err(mismatch(format!("{} is in no backup", file.path)));
        }
        if file.crc32c().is_none() {
            return Err(mismatch(format!(
                "its backup_manifest has no CRC-32C of {}",
                file.path
            )));
        }
        if let Ok(path) = std::str::from_utf8(path) {
            missing.remove(path);
        }
    }
    match missing.first() {
        None => Ok(()),
        Some(name) => Err(mismatch(format!(
            "it has no {name}, so it is no backup of a cluster"
        ))),
    }
}

/// Whether it lies in a folder whose content no backup has: a server would go by what lies there.
fn is_in_emptied(path: &RelativePath) -> bool {
    let top = path.components().next().unwrap_or_default();
    let mut emptied = layout::EMPTIED.iter().chain([&layout::PG_WAL]);
    path.parent().is_some() && emptied.any(|folder| folder.as_bytes() == top)
}

fn check_control(
    binding: &Binding,
    control: &ControlFile,
    version: &[u8],
    label: &BackupLabel,
) -> Result<(), Error> {
    if (control.system_id, control.segment_size) != (binding.system_id, binding.segment_size) {
        return Err(mismatch(format!(
            "its control file is of the cluster {}, the archive of {}",
            control.system_id, binding.system_id
        )));
    }
    let major = u32::from(binding.postgres_major);
    let version = String::from_utf8_lossy(version);
    let is_of_it = control
        .postgres_major()
        .is_none_or(|of| u32::from(of) == major);
    if !is_of_it || version.trim() != major.to_string() {
        return Err(mismatch(format!(
            "it is of PostgreSQL {:?}, the archive of {major}",
            version.trim()
        )));
    }
    // The control file is read last: it knows of the checkpoint that the backup began with.
    let timeline = label.first_segment.timeline();
    if control.timeline != timeline || control.redo < label.start {
        return Err(mismatch(format!(
            "its control file stands at {} on timeline {}, before the backup began at {} on {}",
            control.redo,
            control.timeline.number(),
            label.start,
            timeline.number()
        )));
    }
    Ok(())
}

fn mismatch(text: String) -> Error {
    Error::channel(
        ErrorCode::Mismatch,
        text,
        "nothing was changed; make the backup with `walmgr MASTER.ini backup`",
    )
}

#[cfg(test)]
#[path = "fits_tests.rs"]
mod tests;
