//! What this process remembers of the partial segments that it has written to or read back.
//! Never asked whether a segment is there. Invariant: what is remembered was synced, and is forgotten before anything
//! else could be true of the file.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError};

use walmgr_protocol::names::SegmentName;

use super::file::PartialFile;
use crate::files::FileId;
use crate::store::error::StoreError;

/// What this process knows of a partial segment that it has written to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PartialExtent {
    /// What is known of the acknowledged bytes without reading them again.
    pub(super) checked: Option<CheckedRecords>,
    /// What the whole file was when it was read back.
    pub(super) read_back: Option<ReadBack>,
}

/// Bytes from a segment's beginning that this process has found to be records, and has synced.
#[derive(Debug, Clone, Copy)]
pub(super) struct CheckedRecords {
    pub(super) bytes: u64,
    pub(super) crc32: u32,
    /// Whether the last record is a switch: what follows has to be zeros.
    pub(super) switched: bool,
}

impl CheckedRecords {
    /// Whether nothing of the segment is missing.
    pub(super) const fn is_whole(&self, size: u64) -> bool {
        self.switched || self.bytes == size
    }
}

/// A file as it was when it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReadBack {
    /// Of the whole file.
    pub(super) crc32: u32,
    pub(super) stamp: FileStamp,
}

/// What changes when a file does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileStamp {
    pub(super) identity: FileId,
    pub(super) len: u64,
    pub(super) changed_ms: i64,
}

impl ReadBack {
    /// Whether that file is this one, and nothing has touched it since.
    pub(super) fn is_of(&self, file: &PartialFile) -> Result<bool, StoreError> {
        Ok(self.stamp == stamp(file)?)
    }
}

/// The partial segments written to since the start.
#[derive(Debug, Default)]
pub(in crate::store) struct PartialExtents {
    extents: Mutex<HashMap<SegmentName, PartialExtent>>,
    pub(super) reading_back: Busy,
}

impl PartialExtents {
    pub(super) fn of(&self, segment: SegmentName) -> PartialExtent {
        self.map().get(&segment).copied().unwrap_or_default()
    }

    pub(super) fn change(&self, segment: SegmentName, change: impl FnOnce(&mut PartialExtent)) {
        change(self.map().entry(segment).or_default());
    }

    /// Changes what is known of a segment, unless that was forgotten.
    pub(super) fn change_known(
        &self,
        segment: SegmentName,
        change: impl FnOnce(&mut PartialExtent),
    ) {
        if let Some(extent) = self.map().get_mut(&segment) {
            change(extent);
        }
    }

    pub(super) fn forget(&self, segment: SegmentName) {
        self.map().remove(&segment);
    }

    fn map(&self) -> MutexGuard<'_, HashMap<SegmentName, PartialExtent>> {
        // Each change is one assignment, so a panic elsewhere cannot have left half of one.
        self.extents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether one is going on: a master that catches up ships faster than is worth reading twice.
#[derive(Debug, Default)]
pub(super) struct Busy(pub(super) AtomicBool);

pub(super) fn stamp(file: &PartialFile) -> Result<FileStamp, StoreError> {
    let stat = file.stat()?;
    Ok(FileStamp {
        identity: stat.identity,
        len: stat.len,
        changed_ms: stat.changed_ms,
    })
}
