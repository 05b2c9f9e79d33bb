//! What happens before a receiver may listen: lock, markers, temporaries, the newest segments, and the small
//! files that tell where timelines part.
//! Never trusts a pid or a file's time. Invariant: running it again, or after it was killed at
//! any point, leaves the same archive.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use walmgr_protocol::names::{Lsn, SegmentName, WalFileName};

use super::binding::{Binding, MARKER_NAME, Marker, MarkerRole};
use super::checksums::{Checksums, KeptChecksum};
use super::compress;
use super::disk::Disk;
use super::durable::{Existing, ExistingContent};
use super::error::StoreError;
use super::folder::{Folder, TEMPORARY_PREFIX};
use super::health::Monitor;
use super::joints::{JointVerdict, Joints};
use super::partial;
use super::recovery_report::RecoveryReport;
use super::shared::{ArchiveFolders, StoredCheck, is_damage, set_aside};
use crate::wal::commit::CommitSpan;
use crate::wal::joint::SegmentEnd;
use crate::wal::scan::Scanner;
use crate::wal::segment::{SegmentFault, Verify};

/// The lock file in `completed_wals`. It is never removed: a removed one could be locked twice.
pub(crate) const LOCK_NAME: &str = ".walmgr-lock";

/// How many of the newest segments are read at the start: more than a power cut can have touched
/// while few enough to listen within seconds.
const CHECKED_SEGMENTS_MAX: usize = 4;

/// How much is read at most where segments are large; one segment is always read.
const CHECKED_BYTES_MAX: u64 = 256 << 20;

/// A pid has at most ten digits.
const LOCK_TEXT_BYTES_MAX: usize = 32;

/// The two directories before anybody owns them.
pub(super) struct Folders {
    pub(super) completed: Arc<Folder>,
    pub(super) partial: Arc<Folder>,
}

pub(super) fn open_folders(
    places: &ArchiveFolders,
    disk: &Arc<dyn Disk>,
    monitor: &Arc<Monitor>,
) -> Result<Folders, StoreError> {
    let (disk, monitor) = (|| Arc::clone(disk), || Arc::clone(monitor));
    let completed = Folder::open_completed(&places.completed_wals, disk(), monitor())?;
    let partial = Folder::open(&places.partial_wals, disk(), monitor())?;
    Ok(Folders {
        completed: Arc::new(completed),
        partial: Arc::new(partial),
    })
}

impl Folders {
    pub(super) const fn each(&self) -> [(&Arc<Folder>, MarkerRole); 2] {
        [
            (&self.completed, MarkerRole::Completed),
            (&self.partial, MarkerRole::Partial),
        ]
    }

    pub(super) fn read_markers(&self) -> Result<[Option<Marker>; 2], StoreError> {
        Ok([
            Marker::read(&self.completed, MarkerRole::Completed)?,
            Marker::read(&self.partial, MarkerRole::Partial)?,
        ])
    }

    /// Writes a damaged marker anew from the one in the other directory; the lock must be held. One
    /// that names no cluster is no pattern for `completed_wals`, which learns its cluster first.
    pub(super) fn mend_marker(&self) -> Result<(), StoreError> {
        let [(completed, _), (partial, _)] = self.each();
        let read = (
            Marker::read(completed, MarkerRole::Completed),
            Marker::read(partial, MarkerRole::Partial),
        );
        let (folder, role, marker, error) = match read {
            (Ok(Some(marker)), Err(error @ StoreError::DamagedMarker { .. })) => {
                (partial, MarkerRole::Partial, marker, error)
            }
            (Err(error @ StoreError::DamagedMarker { .. }), Ok(Some(marker)))
                if marker.binding.is_some() =>
            {
                (completed, MarkerRole::Completed, marker, error)
            }
            _ => return Ok(()),
        };
        tracing::warn!("rebuilt from the other marker: {error}");
        marker.write(folder, role)
    }

    /// The archive's marker, when both directories carry one and they belong together.
    pub(super) fn check_markers(&self) -> Result<Marker, StoreError> {
        let not_set_up = |folder: &Folder| StoreError::NotSetUp {
            path: folder.path().to_path_buf(),
        };
        let [completed, partial] = self.read_markers()?;
        let completed = completed.ok_or_else(|| not_set_up(&self.completed))?;
        let partial = partial.ok_or_else(|| not_set_up(&self.partial))?;
        let wrong = |why: String| StoreError::Marker {
            path: self.partial.path().join(MARKER_NAME),
            why,
        };
        let (ours, theirs) = (&completed.archive_id, &partial.archive_id);
        if ours != theirs {
            return Err(wrong(format!(
                "it belongs to archive {theirs}, completed_wals to {ours}"
            )));
        }
        // A crash while binding leaves the second one unbound, never the first.
        if partial.binding.is_some() && partial.binding != completed.binding {
            return Err(wrong(
                "it names another cluster than completed_wals does".to_owned(),
            ));
        }
        Ok(completed)
    }
}

/// Takes the archive's lock and leaves the pid in it for people.
///
/// What is held is open for reading only, or the file system could not be remounted read-only
/// below an idle receiver. NFS locks nothing through such a file (flock(2), `EBADF`).
pub(super) fn lock(folder: &Folder) -> Result<OwnedFd, StoreError> {
    let failed = |op| move |error| folder.failure(op, LOCK_NAME, error);
    let disk = &folder.disk;
    let mut file = disk
        .open_lock_to_hold(folder.handle(), LOCK_NAME)
        .map_err(failed("open lock"))?;
    let taken = match disk.lock(file.as_fd()) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::BADF) => {
            file = disk
                .open_lock(folder.handle(), LOCK_NAME)
                .map_err(failed("open lock"))?;
            disk.lock(file.as_fd())
        }
        other => other,
    };
    if !taken.map_err(failed("lock"))? {
        let mut text = Vec::new();
        folder.read_through(file.as_fd(), LOCK_NAME, |bytes| {
            text.extend_from_slice(bytes);
            text.len() <= LOCK_TEXT_BYTES_MAX
        })?;
        text.truncate(LOCK_TEXT_BYTES_MAX);
        let text = String::from_utf8_lossy(&text);
        return Err(StoreError::Locked {
            path: folder.path().join(LOCK_NAME),
            pid: match text.trim() {
                "" => "unknown".to_owned(),
                pid => pid.to_owned(),
            },
        });
    }
    // A full disk is no reason to refuse to serve what is stored.
    let _ = note_pid(folder);
    Ok(file)
}

fn note_pid(folder: &Folder) -> io::Result<()> {
    let disk = &folder.disk;
    let file = disk.open_lock(folder.handle(), LOCK_NAME)?;
    disk.set_len(file.as_fd(), 0)?;
    let text = format!("{}\n", std::process::id());
    disk.write(file.as_fd(), text.as_bytes(), 0).map(drop)
}

/// Brings both directories into a state that can be served; the lock must be held.
pub(super) fn recover(
    folders: &Folders,
    marker: &Marker,
    checksums: &Checksums,
) -> Result<RecoveryReport, StoreError> {
    let mut report = RecoveryReport::default();
    for (folder, role) in folders.each() {
        for name in folder.names_beside()? {
            if name.starts_with(TEMPORARY_PREFIX) {
                folder.remove(&name)?;
                report.temporaries_removed += 1;
            }
        }
        if marker.binding.is_some() && Marker::read(folder, role)?.as_ref() != Some(marker) {
            marker.write(folder, role)?;
        }
    }
    report.temporaries_removed += compress::clear_leftovers(&folders.completed)?;
    // A file that was renamed just before the last process died is whole, but its name may
    // not be durable, and a recovering PostgreSQL may read it any moment.
    folders.completed.sync()?;
    if let Some(binding) = &marker.binding {
        let check = FinishedCheck {
            folder: &folders.completed,
            checksums,
            binding,
        };
        check.run(&mut report)?;
        let found = partial::recover(&folders.completed, &folders.partial, binding)?;
        (report.partials, report.damaged_partials) = (found.ends, found.damaged);
    }
    folders.partial.sync()?;
    Ok(report)
}

/// Reads finished files whose names are durable, and keeps the checksums of those that have none.
pub(super) struct FinishedCheck<'a> {
    pub(super) folder: &'a Arc<Folder>,
    pub(super) checksums: &'a Checksums,
    pub(super) binding: &'a Binding,
}

/// What a file was found to be.
pub(super) struct FileFound {
    content: ExistingContent,
    /// What is wrong with it at first sight.
    torn: Option<SegmentFault>,
    /// What is wrong with it record by record, or where that led.
    walked: Result<Option<Scanner>, SegmentFault>,
}

impl FileFound {
    /// The CRC-32 of its content.
    pub(super) const fn crc32(&self) -> u32 {
        self.content.crc32
    }

    /// How long its content is.
    pub(super) const fn raw_bytes(&self) -> u64 {
        self.content.len
    }

    /// Its first and last commit, if it is a segment that was walked through.
    pub(super) fn commits(&self) -> CommitSpan {
        let scanner = self.walked.as_ref().ok().and_then(Option::as_ref);
        scanner.map_or_else(CommitSpan::default, Scanner::commits)
    }
}

impl FinishedCheck<'_> {
    fn run(&self, report: &mut RecoveryReport) -> Result<(), StoreError> {
        let fitting = CHECKED_BYTES_MAX / self.binding.segment_size.bytes();
        let count = usize::try_from(fitting)
            .unwrap_or(1)
            .clamp(1, CHECKED_SEGMENTS_MAX);
        let (segments, others) = self.folder.held(self.binding.segment_size)?;
        let texts = others.iter().filter_map(|text| text.parse().ok());
        let texts = texts.filter(|name| {
            matches!(
                name,
                WalFileName::History(_) | WalFileName::BackupHistory(..)
            )
        });
        let newest = segments.iter().rev().take(count);
        let newest: Vec<SegmentName> = newest.collect();
        // The oldest first: what is kept of one says where the next one looks back to.
        let newest = newest.into_iter().rev().map(WalFileName::Segment);
        for name in newest.chain(texts) {
            match self.look(name) {
                Ok(Some(found)) => self.judge(name, &found, report)?,
                Ok(None) => {}
                // One bad sector is no reason to keep all the others from whoever recovers, or to
                // let the master's disk fill up.
                Err(error) if is_unreadable(self.folder, &error) => {
                    tracing::error!(file = %name, why = %error, "a stored file cannot be read");
                    report.unreadable.push((name, error.to_string()));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// `None` when it is gone.
    pub(super) fn look(&self, name: WalFileName) -> Result<Option<FileFound>, StoreError> {
        let Some(existing) = Existing::open(self.folder, name)? else {
            return Ok(None);
        };
        let expected = self.binding.expected();
        let mut torn = StoredCheck::new(name, &expected, Verify::Off);
        let mut records = StoredCheck::new(name, &expected, Verify::Records).noting_commits();
        let content = existing.read(|bytes| {
            torn.update(bytes);
            records.update(bytes);
        })?;
        Ok(Some(FileFound {
            torn: torn.finish_of(&content),
            walked: records.finish_at_end_of(&content),
            content,
        }))
    }

    fn judge(
        &self,
        name: WalFileName,
        found: &FileFound,
        report: &mut RecoveryReport,
    ) -> Result<(), StoreError> {
        let is_segment = matches!(name, WalFileName::Segment(_));
        if is_segment {
            report.segments_checked.push(name);
        }
        match &found.torn {
            Some(fault) if is_segment && is_damage(fault) => {
                let aside = set_aside(self.folder, name, fault)?;
                report.set_aside.push((name, aside, fault.to_string()));
                return Ok(());
            }
            Some(fault) if is_segment => {
                tracing::warn!(file = %name, why = %fault, "a stored WAL file belongs elsewhere");
                report.foreign.push((name, fault.to_string()));
                return Ok(());
            }
            _ => {}
        }
        let fault = self.fault(name, found)?;
        // It may have been let in with verify_wal = off, and it was acknowledged: it stays where it is,
        // and whoever recovers from it looks again.
        if let Some((damaged, why)) = fault {
            tracing::error!(file = %damaged, why, "ALARM: a stored file is damaged");
            report.damaged.push((damaged, why));
        } else if self.checksums.read(name).is_none() {
            let content = &found.content;
            let scanner = found.walked.as_ref().ok().and_then(Option::as_ref);
            let found = KeptChecksum {
                len: content.len,
                crc32: content.crc32,
                end: scanner.map(SegmentEnd::of),
                has_sound_records: false,
                follows: None,
                is_found: true,
            };
            self.checksums.keep(name, &found, "");
        }
        Ok(())
    }

    /// Which file is damaged, and why, if this one is not what was acknowledged.
    pub(super) fn fault(
        &self,
        name: WalFileName,
        found: &FileFound,
    ) -> Result<Option<(WalFileName, String)>, StoreError> {
        let content = &found.content;
        let kept = self.checksums.read(name);
        let differs = kept.and_then(|kept| kept.contradicts(content.len, content.crc32));
        match (&found.walked, differs) {
            (Err(fault), _) => Ok(Some((name, fault.to_string()))),
            (Ok(_), Some(why)) => Ok(Some((name, why))),
            (Ok(_), None) => self.unjoined(name, content),
        }
    }

    /// Where in this file it begins to be wrong, if that is known: the record or page that does not hold, or else
    /// the last record, if that is not where the last one was when the file was acknowledged.
    pub(super) fn place(&self, name: WalFileName, found: &FileFound) -> Option<Lsn> {
        match &found.walked {
            Err(SegmentFault::Damaged { lsn, .. }) => Some(*lsn),
            Err(_) | Ok(None) => None,
            Ok(Some(scanner)) => {
                let end = SegmentEnd::of(scanner);
                let kept = self.checksums.read(name)?.end?;
                let (begins, _) = scanner.open_record().filter(|_| kept != end)?;
                Some(begins)
            }
        }
    }

    /// Which of two segments is damaged that do not go together, if this one and the one before do not.
    fn unjoined(
        &self,
        name: WalFileName,
        content: &ExistingContent,
    ) -> Result<Option<(WalFileName, String)>, StoreError> {
        let WalFileName::Segment(segment) = name else {
            return Ok(None);
        };
        let joints = Joints {
            completed: self.folder,
            checksums: self.checksums,
            binding: *self.binding,
            verify: Verify::Records,
        };
        let verdict = joints.check(segment, None, |each| content.read_pages(each))?;
        let JointVerdict::Unjoined(before, why) = verdict else {
            return Ok(None);
        };
        let name_before = WalFileName::Segment(before);
        Ok(Some(match joints.is_as_kept(before)? {
            Some(false) => (name_before, "it is not what was acknowledged".to_owned()),
            Some(true) => (name, why.to_string()),
            None => (name, format!("{why}; {before} or this one is damaged")),
        }))
    }
}

/// Whether only this file is affected. After a failed sync nothing is known of any.
fn is_unreadable(folder: &Folder, error: &StoreError) -> bool {
    matches!(error, StoreError::Disk { .. }) && folder.monitor.check().is_ok()
}
