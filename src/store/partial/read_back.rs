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
    let folder = Arc::clone(folder);
    alone(extents, format!("read {segment}"), move |known| {
        thread::sleep(QUIET + QUIET / 2);
        // A push finds the same error, and says so to whoever waits for it.
        if let Ok(Some(read_back)) = read(&folder, segment, size) {
            known.change_known(segment, |extent| extent.read_back = Some(read_back));
        }
    });
}

/// Does this in a thread of this name, unless another is at it. Says whether it does.
fn alone(
    extents: &Arc<PartialExtents>,
    name: String,
    work: impl FnOnce(&PartialExtents) + Send + 'static,
) -> bool {
    if extents.reading_back.0.swap(true, Ordering::Relaxed) {
        return false;
    }
    let turn = ReadingTurn(Arc::clone(extents));
    let thread = thread::Builder::new().name(name);
    // Where no thread can be had the turn is over with what it was for.
    thread.spawn(move || work(&turn.0)).is_ok()
}

/// The turn to read a segment back. It is over when this is dropped, by a panic too.
struct ReadingTurn(Arc<PartialExtents>);

impl Drop for ReadingTurn {
    fn drop(&mut self) {
        self.0.reading_back.0.store(false, Ordering::Relaxed);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Longer than a thread needs to begin on a machine that is busy.
    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn after_a_panic_of_one_reading_another_is_begun() {
        let extents = Arc::new(PartialExtents::default());
        let (held, released) = std::sync::mpsc::channel::<()>();
        let begun = alone(&extents, "panics".to_owned(), move |_| {
            let _ = released.recv();
            panic!("a bug");
        });
        assert!(begun);
        assert!(!alone(&extents, "one too many".to_owned(), |_| {}));
        drop(held);
        let until = std::time::Instant::now() + PATIENCE;
        while !alone(&extents, "the next".to_owned(), |_| {}) {
            assert!(std::time::Instant::now() < until, "no other is begun");
            thread::sleep(Duration::from_millis(1));
        }
    }
}
