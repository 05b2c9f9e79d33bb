//! Reads a segment that was shipped to its end back from the disk, before a push asks for it.
//! Never holds up a stream or a push: where it has not come to an end, or was not begun because
//! another one is going on, the push reads the file itself. Invariant: what was read counts only as
//! long as nothing has touched the file since.
//!
//! The kernel's times are those of its last tick, so a file that changed a moment ago could change
//! once more at the same time. It is read when it has been left alone for longer than that.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, SystemTime};

use walmgr_protocol::names::SegmentName;

use super::extents::{FileStamp, PartialExtents, ReadBack, stamp};
use super::file::PartialFile;
use crate::store::error::StoreError;
use crate::store::folder::Folder;

/// How long a file is left alone before it is read; ten ticks of the slowest kernel.
const QUIET: Duration = Duration::from_millis(100);

/// Begins in a thread of its own, which nobody waits for.
pub(super) fn begin(
    folder: &Arc<Folder>,
    extents: &Arc<PartialExtents>,
    segment: SegmentName,
    size: u64,
) {
    if extents.reading_back.0.swap(true, Ordering::Relaxed) {
        return;
    }
    let (folder, known) = (Arc::clone(folder), Arc::clone(extents));
    let thread = thread::Builder::new().name(format!("read {segment}"));
    let begun = thread.spawn(move || {
        thread::sleep(QUIET + QUIET / 2);
        // A push finds the same error, and says so to whoever waits for it.
        if let Ok(Some(read_back)) = read(&folder, segment, size) {
            known.change_known(segment, |extent| extent.read_back = Some(read_back));
        }
        known.reading_back.0.store(false, Ordering::Relaxed);
    });
    if begun.is_err() {
        extents.reading_back.0.store(false, Ordering::Relaxed);
    }
}

fn read(
    folder: &Arc<Folder>,
    segment: SegmentName,
    size: u64,
) -> Result<Option<ReadBack>, StoreError> {
    let Some(file) = PartialFile::open(folder, segment, size)? else {
        return Ok(None);
    };
    let before = stamp(&file)?;
    if !is_quiet(&before) {
        return Ok(None);
    }
    let crc32 = file.hash(0..size)?.finalize();
    let unchanged = stamp(&file)? == before;
    Ok(unchanged.then_some(ReadBack {
        crc32,
        stamp: before,
    }))
}

fn is_quiet(stamp: &FileStamp) -> bool {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let quiet_ms = i64::try_from(QUIET.as_millis()).unwrap_or(i64::MAX);
    since.is_ok_and(|since| {
        i64::try_from(since.as_millis()).is_ok_and(|now_ms| now_ms - stamp.changed_ms >= quiet_ms)
    })
}
