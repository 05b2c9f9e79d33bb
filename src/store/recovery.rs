//! What happens before a receiver may listen: lock, markers, temporaries, the newest segments.
//! Never trusts a pid or a file's time. Invariant: running it again, or after it was killed at
//! any point, leaves the same archive.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use walmgr_protocol::names::{Lsn, SegmentName, WalFileName};

use super::archive::{Places, StoredCheck, finished_names, is_damage, set_aside};
use super::binding::{Binding, MARKER_NAME, Marker, Role};
use super::disk::Disk;
use super::durable::Existing;
use super::error::StoreError;
use super::folder::{Folder, TEMPORARY_PREFIX};
use super::health::Monitor;
use super::partial::{self, Damage};
use crate::wal::segment::{SegmentFault, Verify};

/// The lock file in `completed_wals`. It is never removed: a removed one could be locked twice.
pub const LOCK_NAME: &str = ".walmgr-lock";

/// How many of the newest segments are read at the start: more than a power cut can have touched
/// while few enough to listen within seconds.
const CHECKED_SEGMENTS_MAX: usize = 4;

/// How much is read at most where segments are large; one segment is always read.
const CHECKED_BYTES_MAX: u64 = 256 << 20;

/// A pid has at most ten digits.
const LOCK_TEXT_BYTES_MAX: usize = 32;

/// What the start-up recovery found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Temporaries that an earlier process left.
    pub temporaries_removed: usize,
    /// The newest segments that were read and synced.
    pub segments_checked: Vec<WalFileName>,
    /// Segments whose records do not hold; they stay, because they may have been let in so.
    pub damaged: Vec<(WalFileName, String)>,
    /// Segments that were torn, what they are called since, and what was wrong.
    pub set_aside: Vec<(WalFileName, String, String)>,
    /// Segments of another cluster, version or size; they stay.
    pub foreign: Vec<(WalFileName, String)>,
    /// Segments that the disk does not give back, or whose name leads to no file; they stay.
    pub unreadable: Vec<(WalFileName, String)>,
    /// The segments still being written, and where their records end.
    pub partials: Vec<(SegmentName, Lsn)>,
    /// Those whose records end before what is known to have been there; they stay.
    pub damaged_partials: Vec<Damage>,
}

/// The two directories before anybody owns them.
pub(super) struct Folders {
    pub(super) completed: Arc<Folder>,
    pub(super) partial: Arc<Folder>,
}

pub(super) fn open_folders(
    places: &Places,
    disk: &Arc<dyn Disk>,
    monitor: &Arc<Monitor>,
) -> Result<Folders, StoreError> {
    let open = |path| Folder::open(path, Arc::clone(disk), Arc::clone(monitor)).map(Arc::new);
    Ok(Folders {
        completed: open(&places.completed_wals)?,
        partial: open(&places.partial_wals)?,
    })
}

impl Folders {
    pub(super) const fn each(&self) -> [(&Arc<Folder>, Role); 2] {
        [
            (&self.completed, Role::Completed),
            (&self.partial, Role::Partial),
        ]
    }

    pub(super) fn read_markers(&self) -> Result<[Option<Marker>; 2], StoreError> {
        Ok([
            Marker::read(&self.completed, Role::Completed)?,
            Marker::read(&self.partial, Role::Partial)?,
        ])
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
pub(super) fn recover(folders: &Folders, marker: &Marker) -> Result<RecoveryReport, StoreError> {
    let mut report = RecoveryReport::default();
    for (folder, role) in folders.each() {
        for name in folder.names()? {
            if name.starts_with(TEMPORARY_PREFIX) {
                folder.remove(&name)?;
                report.temporaries_removed += 1;
            }
        }
        if marker.binding.is_some() && Marker::read(folder, role)?.as_ref() != Some(marker) {
            marker.write(folder, role)?;
        }
    }
    check_newest_segments(folders, marker, &mut report)?;
    if let Some(binding) = &marker.binding {
        let found = partial::recover(&folders.completed, &folders.partial, binding)?;
        (report.partials, report.damaged_partials) = (found.ends, found.damaged);
    }
    // A file that was renamed just before the last process died is whole, but its name may
    // not be durable, and a recovering PostgreSQL may read it any moment.
    folders.completed.sync()?;
    folders.partial.sync()?;
    Ok(report)
}

fn check_newest_segments(
    folders: &Folders,
    marker: &Marker,
    report: &mut RecoveryReport,
) -> Result<(), StoreError> {
    let Some(binding) = &marker.binding else {
        return Ok(());
    };
    let fitting = CHECKED_BYTES_MAX / binding.segment_size.bytes();
    let count = usize::try_from(fitting)
        .unwrap_or(1)
        .clamp(1, CHECKED_SEGMENTS_MAX);
    let folder = &folders.completed;
    let segments = finished_names(folder)?
        .into_keys()
        .filter(|name| matches!(name, WalFileName::Segment(_)))
        .rev()
        .take(count);
    for name in segments.collect::<Vec<_>>() {
        let Faults { torn, records } = match read_segment(folder, name, binding) {
            Ok(Some(faults)) => faults,
            Ok(None) => continue,
            // One bad sector is no reason to keep all the others from whoever recovers, or to
            // let the master's disk fill up.
            Err(error) if is_unreadable(folder, &error) => {
                tracing::error!(file = %name, why = %error, "a stored segment cannot be read");
                report.unreadable.push((name, error.to_string()));
                continue;
            }
            Err(error) => return Err(error),
        };
        report.segments_checked.push(name);
        match torn {
            None => {
                // It may have been let in with verify_wal = off, and it was acknowledged: it
                // stays where it is, and whoever recovers from it looks again.
                if let Some(fault) = records {
                    tracing::error!(file = %name, why = %fault, "a stored segment is damaged");
                    report.damaged.push((name, fault.to_string()));
                }
            }
            Some(fault) if is_damage(&fault) => {
                let aside = set_aside(folder, name, &fault)?;
                report.set_aside.push((name, aside, fault.to_string()));
            }
            Some(fault) => {
                tracing::warn!(file = %name, why = %fault, "a stored WAL file belongs elsewhere");
                report.foreign.push((name, fault.to_string()));
            }
        }
    }
    Ok(())
}

/// What is wrong with a segment at first sight, and record by record.
struct Faults {
    torn: Option<SegmentFault>,
    records: Option<SegmentFault>,
}

/// `None` when it is gone.
fn read_segment(
    folder: &Arc<Folder>,
    name: WalFileName,
    binding: &Binding,
) -> Result<Option<Faults>, StoreError> {
    let Some(existing) = Existing::open(folder, name)? else {
        return Ok(None);
    };
    let mut torn = StoredCheck::new(name, &binding.expected(), Verify::Off);
    let mut records = StoredCheck::new(name, &binding.expected(), Verify::Records);
    existing.read(|bytes| {
        torn.update(bytes);
        records.update(bytes);
    })?;
    Ok(Some(Faults {
        torn: torn.finish(),
        records: records.finish(),
    }))
}

/// Whether only this file is affected. After a failed sync nothing is known of any.
fn is_unreadable(folder: &Folder, error: &StoreError) -> bool {
    matches!(error, StoreError::Disk { .. }) && folder.monitor.check().is_ok()
}
