//! What an open archive works with, and what every part of it asks of a stored file.
//! Never changes what is stored but to set a damaged file aside. Invariant: it knows none of those who work with it.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use walmgr_protocol::names::WalFileName;

use super::binding::{Binding, Marker};
use super::checksums::Checksums;
use super::durable::{Durable, ExistingContent};
use super::error::StoreError;
use super::folder::Folder;
use super::health::Monitor;
use super::joints::Carried;
use super::name_lock::NameLocks;
use super::partial::extents::PartialExtents;
use super::partial::known_ends::KnownEnds;
use super::recovery_report::RecoveryReport;
use crate::config::{StandbyConfig, StoreCompression};
use crate::wal::scan::Scanner;
use crate::wal::segment::{ExpectedSegment, SegmentCheck, SegmentFault, Verify};

/// Where an archive lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveFolders {
    /// Finished WAL files, and the lock.
    pub completed_wals: PathBuf,
    /// The segments that are still being written.
    pub partial_wals: PathBuf,
}

impl ArchiveFolders {
    /// Where the settings put it.
    pub fn of(config: &StandbyConfig) -> ArchiveFolders {
        ArchiveFolders {
            completed_wals: config.completed_wals.clone(),
            partial_wals: config.partial_wals.clone(),
        }
    }
}

/// An open archive; clones share it, and the last one gives up the lock.
#[derive(Clone)]
pub struct Archive {
    pub(super) shared: Arc<Shared>,
}

/// What the archive holds under a name that a client offers.
#[derive(Debug)]
pub enum StoredUnderName {
    /// Nothing that counts.
    Absent,
    /// The bytes that are offered, durable.
    Identical(Durable),
    /// Another valid file; it stays.
    Different {
        /// Its length in bytes.
        len: u64,
        /// Its CRC-32.
        crc32: u32,
    },
}

/// What the archive and the files on their way into it work with.
pub(super) struct Shared {
    pub(super) completed: Arc<Folder>,
    pub(super) partial: Arc<Folder>,
    pub(super) monitor: Arc<Monitor>,
    pub(super) names: NameLocks,
    pub(super) partials: Arc<PartialExtents>,
    pub(super) ends: KnownEnds,
    pub(super) checksums: Checksums,
    pub(super) carried: Carried,
    /// Held alone by whoever judges a file, and with others by whoever only goes on.
    pub(super) order: RwLock<()>,
    /// Whether anything may be set apart.
    pub(super) has_notes: AtomicBool,
    /// The highest timeline that a name was seen of.
    pub(super) newest_timeline: AtomicU32,
    /// How far beyond the end of its run a segment may be that counts.
    pub(super) ahead_max: AtomicU64,
    /// In which form segments are stored.
    pub(super) compression: RwLock<StoreCompression>,
    /// What one key may have stored that nobody follows.
    pub(super) unfollowed_bytes_max: AtomicU64,
    /// Held for a moment only, as the receiver asks for the binding where it must not wait.
    pub(super) marker: RwLock<Marker>,
    /// Held by whoever binds the archive, while the disk takes its time.
    pub(super) binding_turn: Mutex<()>,
    pub(super) recovery: RecoveryReport,
    pub(super) _lock: OwnedFd,
}

impl Shared {
    pub(super) fn binding(&self) -> Result<Binding, StoreError> {
        self.marker().binding.ok_or(StoreError::NotBound)
    }

    /// In which form a segment is stored now.
    pub(super) fn compression(&self) -> StoreCompression {
        *(self.compression.read()).unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn marker(&self) -> RwLockReadGuard<'_, Marker> {
        self.marker.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs the check of a stored file to its first fault.
pub(super) struct StoredCheck {
    check: Option<SegmentCheck>,
    fault: Option<SegmentFault>,
}

impl StoredCheck {
    pub(super) fn new(name: WalFileName, expected: &ExpectedSegment, verify: Verify) -> Self {
        StoredCheck {
            check: Some(SegmentCheck::new(name, expected, verify)),
            fault: None,
        }
    }

    /// Has the scanner at its end know when the first and the last commit were.
    pub(super) fn noting_commits(self) -> Self {
        StoredCheck {
            check: self.check.map(SegmentCheck::noting_commits),
            fault: self.fault,
        }
    }

    /// Has the scanner at its end know what the records change.
    pub(super) fn noting_changes(self) -> Self {
        StoredCheck {
            check: self.check.map(SegmentCheck::noting_changes),
            fault: self.fault,
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        if let Some(check) = &mut self.check
            && let Err(fault) = check.update(bytes)
        {
            self.fault = Some(fault);
            self.check = None;
        }
    }

    /// What is wrong with the file that was shown.
    pub(super) fn finish_of(self, content: &ExistingContent) -> Option<SegmentFault> {
        self.finish_at_end_of(content).err()
    }

    /// What is wrong with the file that was shown, or else the scanner at the end of a segment that was walked through.
    /// A file that cannot be unpacked is wrong: it was not shown to its end.
    pub(super) fn finish_at_end_of(
        self,
        content: &ExistingContent,
    ) -> Result<Option<Scanner>, SegmentFault> {
        match &content.broken {
            Some(why) => Err(SegmentFault::Packed { why: why.clone() }),
            None => self.finish_at_end(),
        }
    }

    /// What is wrong with the file, or else the scanner at the end of a segment that was walked through.
    pub(super) fn finish_at_end(self) -> Result<Option<Scanner>, SegmentFault> {
        match (self.fault, self.check) {
            (Some(fault), _) => Err(fault),
            (None, Some(check)) => check.finish_at_end().map(|(_, scanner)| scanner),
            (None, None) => Ok(None),
        }
    }
}

/// Another cluster's valid file is not damaged: it stays where it is and conflicts.
pub(super) const fn is_damage(fault: &SegmentFault) -> bool {
    match fault {
        SegmentFault::Damaged { .. }
        | SegmentFault::Text { .. }
        | SegmentFault::Packed { .. }
        | SegmentFault::WrongLength { .. } => true,
        SegmentFault::Foreign { .. } => false,
    }
}

/// Renames a damaged file away and says so where people look. What is kept of it stays until another one
/// gets its name: a crash before the rename must not make an honest file of it.
pub(super) fn set_aside(
    folder: &Folder,
    name: WalFileName,
    why: &dyn fmt::Display,
) -> Result<String, StoreError> {
    let aside = folder.set_aside(&name.to_string())?;
    tracing::warn!(file = %name, kept_as = %aside, why = %why, "a stored WAL file is damaged");
    Ok(aside)
}

/// Every name in the directory that is a WAL file's, sorted.
pub(super) fn finished_names(folder: &Folder) -> Result<BTreeMap<WalFileName, String>, StoreError> {
    let names = folder.names()?.into_iter();
    Ok(names
        .filter_map(|text| Some((text.parse().ok()?, text)))
        .collect())
}
