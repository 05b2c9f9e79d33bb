//! What tells that a file is the one that was looked at, as it was then.
//! Never looks into a file. Invariant: whoever writes to a file gives it another stamp, unless that is within a tick of a clock.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::FileId;

/// How long a file system that keeps whole seconds, or two of them, may stamp two changes alike.
const TICK_OF_SECONDS: Duration = Duration::from_secs(3);

/// What changes when a file does: any write to it moves the time of its last change, which nobody can set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChangeStamp {
    /// Device and inode.
    pub id: FileId,
    /// Bytes.
    pub size: u64,
    /// `st_mtim`, in seconds and nanoseconds.
    pub modified: (i64, i64),
    /// `st_ctim`, likewise.
    pub changed: (i64, i64),
}

impl ChangeStamp {
    /// Of a file that is open, or that a path led to.
    pub(crate) fn of(metadata: &Metadata) -> ChangeStamp {
        ChangeStamp {
            id: FileId::of_metadata(metadata),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether it may be written to after `now`, as [`file_clock`] told it, without another stamp.
    pub(crate) fn is_fresh(&self, now: Duration) -> bool {
        let (seconds, nanoseconds) = self.changed;
        let changed = u64::try_from(seconds)
            .ok()
            .zip(u32::try_from(nanoseconds).ok());
        let Some((seconds, nanoseconds)) = changed else {
            return false;
        };
        let changed = Duration::new(seconds, nanoseconds);
        let is_near = now.abs_diff(changed) < TICK_OF_SECONDS;
        // One from the time before a clock was set back gets another stamp with the next write.
        is_near && (changed >= now || nanoseconds == 0)
    }
}

/// Since 1970 by the clock that local file systems stamp changes with; it stands still between two ticks. One that a
/// server keeps stamps with that host's.
pub(crate) fn file_clock() -> Duration {
    let now = clock_gettime(ClockId::RealtimeCoarse);
    let nanoseconds = u32::try_from(now.tv_nsec).unwrap_or_default();
    Duration::new(u64::try_from(now.tv_sec).unwrap_or_default(), nanoseconds)
}
