//! The longest files of a set that another is built on, brought into memory before they are needed.
//! Never counts for anything: what comes of a file is what is read of it later, and compared then. Invariant: one backup of
//! a process at a time has it, and no more than a quarter of the memory that is free; a file is left alone once that is
//! read for good.

use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use walmgr_protocol::names::RelativePath;

use super::BackupSets;
use crate::files;
use crate::files::slices::SLICE_BYTES;
use crate::pg::listed::stored_path;
use crate::store::disk::read_full;

/// Shorter files are read as fast as they are found.
const FILE_BYTES_MIN: u64 = 1 << 20;

/// How much is brought in at most: what a fast disk reads while the master gets ready and sends the short files.
const BYTES_MAX: u64 = 1 << 30;

/// What share of the memory that is free: what was brought in shall still be there when it is needed.
const MEMORY_SHARE: u64 = 4;

/// What is read at once. The kernel reads ahead of a file that is read from its beginning on; whoever asks it to do more has
/// the disk take longer.
const PIECE_BYTES: usize = 256 << 10;

/// One more than go through a long file later: nothing else is asked of the processors while these wait for the disk.
const THREADS: usize = 3;

/// `MemAvailable` is one of its first lines.
const MEMORY_FACTS: &str = "/proc/meminfo";
const MEMORY_FACTS_BYTES_MAX: u64 = 64 << 10;

/// Held while files are brought in: several backups that begin at once would have each other's go again.
static READS_AHEAD: Mutex<()> = Mutex::new(());

/// Files that are being brought in.
pub(super) struct ReadingAhead {
    sets: BackupSets,
    files: Vec<AheadFile>,
    /// The next slice of all files that no thread has taken.
    next: AtomicUsize,
    is_over: AtomicBool,
}

struct AheadFile {
    path: RelativePath,
    len: u64,
    /// Whoever needs it reads it by now.
    is_left: AtomicBool,
}

impl ReadingAhead {
    /// Begins with the longest of these, on threads of its own.
    pub(super) fn begin<'a>(
        sets: &BackupSets,
        root: &OwnedFd,
        listed: impl Iterator<Item = (&'a RelativePath, u64)>,
    ) -> Arc<ReadingAhead> {
        let memory = files::read_at_most(Path::new(MEMORY_FACTS), MEMORY_FACTS_BYTES_MAX);
        let free_bytes = memory.ok().and_then(|facts| available_bytes(&facts));
        let room_bytes = BYTES_MAX.min(free_bytes.unwrap_or(0) / MEMORY_SHARE);
        let this = Arc::new(ReadingAhead::of(sets, listed, room_bytes));
        // A description of its own: what holds the set ends with its holder, however long a disk takes.
        if let Ok(root) = sets.parent.disk.enter(root.as_fd(), ".".as_ref()) {
            let thread = std::thread::Builder::new().name("read ahead".to_owned());
            let of_thread = Arc::clone(&this);
            // Where no thread can be had nothing is read ahead.
            let _ = thread.spawn(move || of_thread.run_all(&root));
        }
        this
    }

    /// The longest of these that fit into so much memory, none of them begun.
    fn of<'a>(
        sets: &BackupSets,
        listed: impl Iterator<Item = (&'a RelativePath, u64)>,
        room_bytes: u64,
    ) -> ReadingAhead {
        ReadingAhead {
            sets: sets.clone(),
            files: longest(listed, room_bytes),
            next: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
        }
    }

    /// Leaves a file alone: it is read for good.
    pub(super) fn leave(&self, path: &RelativePath, len: u64) {
        if len >= FILE_BYTES_MIN
            && let Some(file) = self.files.iter().find(|file| file.path == *path)
        {
            file.is_left.store(true, Ordering::Relaxed);
        }
    }

    /// Leaves all of them alone.
    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// On several threads, unless another backup does.
    fn run_all(&self, root: &OwnedFd) {
        let Some(_alone) = alone(&READS_AHEAD) else {
            return;
        };
        std::thread::scope(|scope| {
            for _ in 1..THREADS {
                let thread = std::thread::Builder::new().name("read ahead".to_owned());
                let _ = thread.spawn_scoped(scope, || self.run(root));
            }
            self.run(root);
        });
    }

    fn run(&self, root: &OwnedFd) {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some((file, slice)) = self.slice(number) else {
                return;
            };
            if self.read(root, file, slice).is_none() {
                self.end();
            }
        }
    }

    /// The slice with this number, counted through all files.
    fn slice(&self, number: usize) -> Option<(&AheadFile, Range<u64>)> {
        let mut before = 0;
        for file in &self.files {
            let at = u64::try_from(number - before).ok()?;
            let start = at.saturating_mul(SLICE_BYTES);
            if start < file.len {
                return Some((file, start..file.len.min(start + SLICE_BYTES)));
            }
            before += usize::try_from(file.len.div_ceil(SLICE_BYTES)).ok()?;
        }
        None
    }

    /// Brings a slice in; `None` where that is of no use.
    fn read(&self, root: &OwnedFd, of: &AheadFile, slice: Range<u64>) -> Option<()> {
        let is_unwanted =
            || self.is_over.load(Ordering::Relaxed) || of.is_left.load(Ordering::Relaxed);
        if is_unwanted() {
            return Some(());
        }
        // What is gone or cannot be read is found again by whoever needs it.
        let (file, _) = (self.sets.open_below(root, &of.path)).ok()?;
        let disk = &*self.sets.parent.disk;
        let mut piece = vec![0; PIECE_BYTES];
        for offset in slice.clone().step_by(PIECE_BYTES) {
            let left = usize::try_from(slice.end - offset).unwrap_or(PIECE_BYTES);
            let piece = &mut piece[..left.min(PIECE_BYTES)];
            read_full(disk, file.as_fd(), piece, offset).ok()?;
            // Where nobody can tell that it is there, or the memory is short already, it would be read twice.
            disk.read_in_memory(file.as_fd(), &mut piece[..1], offset)?;
            if is_unwanted() {
                break;
            }
        }
        Some(())
    }
}

/// The turn to read ahead, unless another has it. A panic of whoever had it before takes it from nobody.
fn alone(turn: &Mutex<()>) -> Option<MutexGuard<'_, ()>> {
    match turn.try_lock() {
        Ok(turn) => Some(turn),
        Err(TryLockError::Poisoned(turn)) => Some(turn.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// The longest of these files, as many as there is room for, by their paths in the set.
fn longest<'a>(
    listed: impl Iterator<Item = (&'a RelativePath, u64)>,
    room_bytes: u64,
) -> Vec<AheadFile> {
    let mut long: Vec<_> = listed.filter(|(_, len)| *len >= FILE_BYTES_MIN).collect();
    long.sort_unstable_by(|(path, len), (other, other_len)| (other_len, path).cmp(&(len, other)));
    let mut left_bytes = room_bytes;
    let fits = |(path, len): (&RelativePath, u64)| {
        // A shorter one may.
        left_bytes = left_bytes.checked_sub(len)?;
        Some(AheadFile {
            path: stored_path(path.clone()),
            len,
            is_left: AtomicBool::new(false),
        })
    };
    long.into_iter().filter_map(fits).collect()
}

/// What Linux would give to a process before it began to swap.
fn available_bytes(facts: &[u8]) -> Option<u64> {
    let facts = std::str::from_utf8(facts).ok()?;
    let line = facts
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1 << 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sets::testing::{back_up, lease, path, prepare, real_sets, wal_proof};
    use crate::store::testing::scratch_folder;

    const LONG: &str = "base/1/77";

    #[test]
    fn fault_285_what_is_gone_or_read_for_good_is_not_read_ahead() {
        let folder = scratch_folder();
        prepare(folder.path());
        let (wal, sets) = (wal_proof(folder.path()), real_sets(folder.path()));
        back_up(&sets, &lease(&sets).unwrap(), 1, &wal).unwrap();
        let held = sets.hold(sets.newest()).unwrap();
        let root = held.directory().try_clone_to_owned().unwrap();
        let (path, len) = (path(LONG), SLICE_BYTES + 5);
        let begin = || ReadingAhead::of(&sets, [(&path, len)].into_iter(), BYTES_MAX);
        let is_over = |ahead: &ReadingAhead| ahead.is_over.load(Ordering::Relaxed);
        // Nobody looks for it any more.
        let ahead = begin();
        ahead.leave(&path, len);
        ahead.run(&root);
        assert!(!is_over(&ahead));
        let ahead = begin();
        ahead.run(&root);
        assert!(is_over(&ahead));
        // However short it is by now.
        std::fs::write(held.path().join(LONG), [7; 99]).unwrap();
        let ahead = begin();
        ahead.run(&root);
        assert_eq!(ahead.next.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn after_a_panic_of_one_reading_ahead_another_has_its_turn() {
        let turn = Mutex::new(());
        let panicked = std::thread::scope(|scope| {
            let panics = || {
                let _turn = alone(&turn).unwrap();
                assert!(alone(&turn).is_some(), "a bug");
            };
            scope.spawn(panics).join().is_err()
        });
        assert!(panicked);
        assert!(alone(&turn).is_some());
    }

    #[test]
    fn slices_of_what_is_read_ahead_are_all_of_each_file() {
        let folder = scratch_folder();
        prepare(folder.path());
        let sets = real_sets(folder.path());
        let files = [
            (path("base/1/3"), FILE_BYTES_MIN),
            (path("base/1/2"), 2 * SLICE_BYTES + 1),
            (path("base/1/1"), 2 * SLICE_BYTES + 1),
            (path("base/1/4"), FILE_BYTES_MIN - 1),
            (path("base/1/5"), SLICE_BYTES),
        ];
        let all = || files.iter().map(|(path, len)| (path, *len));
        let ahead = ReadingAhead::of(&sets, all(), BYTES_MAX);
        let slices = (0..).map_while(|number| ahead.slice(number));
        let slices: Vec<_> = slices
            .map(|(file, slice)| (file.path.to_string(), slice.start, slice.end))
            .collect();
        let two = 2 * SLICE_BYTES;
        let expected = [
            ("base/1/1", 0, SLICE_BYTES),
            ("base/1/1", SLICE_BYTES, two),
            ("base/1/1", two, two + 1),
            ("base/1/2", 0, SLICE_BYTES),
            ("base/1/2", SLICE_BYTES, two),
            ("base/1/2", two, two + 1),
            ("base/1/5", 0, SLICE_BYTES),
            ("base/1/3", 0, FILE_BYTES_MIN),
        ];
        let expected = expected.map(|(path, start, end)| (path.to_owned(), start, end));
        assert_eq!(slices, expected);
        // What does not fit is not begun; what is behind it may fit.
        let ahead = ReadingAhead::of(&sets, all(), two + 1 + SLICE_BYTES);
        let lens: Vec<u64> = ahead.files.iter().map(|file| file.len).collect();
        assert_eq!(lens, [two + 1, SLICE_BYTES]);
        assert!(ReadingAhead::of(&sets, all(), 0).files.is_empty());
    }

    #[test]
    fn memory_that_is_free_is_what_linux_says() {
        let facts = b"MemTotal:  24683920 kB\nMemFree:  123 kB\nMemAvailable:   2048 kB\n";
        assert_eq!(available_bytes(facts), Some(2 << 20));
        assert_eq!(available_bytes(b"MemTotal: 1 kB\n"), None);
    }
}
