//! The maps that are kept beside finished segments, in `.maps`.
//! Never trusted for more than they are: one that is absent, torn or of another file is made again from the segment.
//! Invariant: a map that is read is the one of the file that was acknowledged under its name.
//!
//! # What a crash leaves
//!
//! A map is written when its segment and its name have been synced, before the segment is acknowledged, as its
//! checksum is, and is not synced either: after a power cut it is whole, torn or absent. It has a checksum of its own and
//! the length and the CRC-32 of its segment, so the last two, and a map of a file that had the name before, say
//! nothing. A purge removes segments first; the maps that a crash leaves go with the next file of that name.

use std::os::fd::AsFd;

use super::error::StoreError;
use super::folder::Folder;
use crate::wal::segment_map::{MappedFile, SegmentMap};

/// The folder of the maps.
const MAPS_NAME: &str = ".maps";

/// Keeps the map of a finished file. A failure costs nothing but the time to make it again.
pub(super) fn keep(completed: &Folder, file: &MappedFile, map: &SegmentMap) {
    if let Err(error) = try_keep(completed, file, map) {
        tracing::debug!("cannot keep the map of {}: {error}", file.segment);
    }
}

fn try_keep(completed: &Folder, file: &MappedFile, map: &SegmentMap) -> Result<(), StoreError> {
    let mut folder = completed.below(MAPS_NAME)?;
    if folder.is_none() {
        // Not synced, as what is in it is not.
        let path = completed.path().join(MAPS_NAME);
        (completed.disk.create_directory(&path))
            .map_err(|error| completed.failure("create", MAPS_NAME, error))?;
        folder = completed.below(MAPS_NAME)?;
    }
    match folder {
        Some(folder) => write(&folder, &file.segment.to_string(), &map.to_bytes(file)),
        None => Ok(()),
    }
}

fn write(folder: &Folder, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    // One that is there is of an earlier file, or torn.
    folder.remove(name)?;
    let disk = &folder.disk;
    (disk.create(folder.handle(), name))
        .and_then(|file| disk.write_all(file.as_fd(), bytes, 0))
        .map_err(|error| folder.failure("write", name, error))
}

/// The map of this file; `None` if it has to be made.
pub(super) fn read(
    completed: &Folder,
    file: &MappedFile,
) -> Result<Option<SegmentMap>, StoreError> {
    let Some(folder) = completed.below(MAPS_NAME)? else {
        return Ok(None);
    };
    let bytes_max = usize::try_from(file.map_bytes_max()).unwrap_or(usize::MAX);
    let bytes = match folder.read_small(&file.segment.to_string(), bytes_max) {
        // The segment has all of it.
        Err(StoreError::Disk { .. }) => None,
        other => other?,
    };
    Ok(bytes.and_then(|bytes| SegmentMap::parse(file, &bytes)))
}

/// Removes the maps of files that are gone.
pub(super) fn remove(completed: &Folder, names: &[String]) -> Result<(), StoreError> {
    match completed.below(MAPS_NAME)? {
        Some(folder) => folder.remove_present(names),
        None => Ok(()),
    }
}
