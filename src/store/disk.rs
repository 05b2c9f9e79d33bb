//! Every system call the archive makes, as one trait, so that a test can fail or stop any of them.
//! Never decides anything. Invariant: names are single components below an open directory, and
//! no call follows a symbolic link in that last component.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::tree::Tree;
use crate::files::FileId;

/// What `stat` says, as far as the archive cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStat {
    /// Which file it is.
    pub identity: FileId,
    /// Its length in bytes.
    pub len: u64,
    /// Whether it is a regular file.
    pub is_file: bool,
    /// When its content was written last, in nanoseconds since 1970.
    pub modified_ns: i64,
    /// When it or its name changed last, in nanoseconds since 1970.
    pub changed_ns: i64,
    /// When it or its name changed last, in milliseconds since 1970.
    pub changed_ms: i64,
}

/// More than the clock of a file system stands still for: a hundredth of a second at most (`CONFIG_HZ`).
pub(super) const CLOCK_STEP: Duration = Duration::from_millis(20);

/// Whether what changed at this time, in nanoseconds since 1970, would have another time if it changed now.
pub(super) fn is_past(changed_ns: i64) -> bool {
    let changed = Duration::from_nanos(u64::try_from(changed_ns).unwrap_or_default());
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.is_ok_and(|now| now > changed + CLOCK_STEP / 2)
}

/// The operations; [`RealDisk`](super::real_disk::RealDisk) is the one that runs in production.
///
/// Errors are the plain errno; the caller adds the path.
pub trait Disk: Tree + Send + Sync {
    /// Makes one directory, mode 0700.
    fn create_directory(&self, path: &Path) -> io::Result<()>;

    /// Opens a directory; the last component may not be a symbolic link.
    fn open_directory(&self, path: &Path) -> io::Result<OwnedFd>;

    /// What this path leads to at the moment, without following a last symbolic link.
    fn identity_at(&self, path: &Path) -> io::Result<FileId>;

    /// What an open file or directory is.
    fn stat(&self, file: BorrowedFd<'_>) -> io::Result<FileStat>;

    /// What a name is, without opening it.
    fn stat_at(&self, directory: BorrowedFd<'_>, name: &str) -> io::Result<FileStat>;

    /// The names in a directory, unsorted; those that are no UTF-8 cannot be ours and are left out.
    fn names(&self, directory: BorrowedFd<'_>) -> io::Result<Vec<String>>;

    /// Hands out the same names one by one, so that nobody has to hold them all.
    fn each_name(&self, directory: BorrowedFd<'_>, each: &mut dyn FnMut(&str)) -> io::Result<()> {
        self.names(directory)?.iter().for_each(|name| each(name));
        Ok(())
    }

    /// Creates a file that must not exist, mode 0600, for writing.
    fn create(&self, directory: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd>;

    /// Opens a file for reading; never waits, not even for a FIFO.
    fn open(&self, directory: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd>;

    /// Opens a lock file for reading and writing, creating it if need be.
    fn open_lock(&self, directory: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd>;

    /// Opens a lock file for reading only, creating it if need be: enough to hold the lock.
    fn open_lock_to_hold(&self, directory: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd>;

    /// Opens a file that exists for reading and writing, without changing it.
    fn reopen(&self, directory: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd>;

    /// Takes an exclusive `flock` without waiting; `false` when another open file holds it.
    fn lock(&self, file: BorrowedFd<'_>) -> io::Result<bool>;

    /// Reads at an offset; 0 at the end of the file.
    fn read(&self, file: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Reads at an offset as much as is in memory and needs no disk; `None` where nobody can tell what that is.
    fn read_in_memory(
        &self,
        file: BorrowedFd<'_>,
        buffer: &mut [u8],
        offset: u64,
    ) -> Option<usize> {
        let _ = (file, buffer, offset);
        None
    }

    /// Sets blocks aside for the first `len` bytes.
    fn allocate(&self, file: BorrowedFd<'_>, len: u64) -> io::Result<()>;

    /// Writes at an offset and says how much of it.
    fn write(&self, file: BorrowedFd<'_>, bytes: &[u8], offset: u64) -> io::Result<usize>;

    /// Writes all of it.
    fn write_all(&self, file: BorrowedFd<'_>, mut bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut offset = offset;
        while !bytes.is_empty() {
            match self.write(file, bytes, offset)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => {
                    offset += written as u64;
                    bytes = &bytes[written..];
                }
            }
        }
        Ok(())
    }

    /// Cuts or extends a file to this length.
    fn set_len(&self, file: BorrowedFd<'_>, len: u64) -> io::Result<()>;

    /// Gives a new file the content that another has at one instant, which both share until one of them is written; an
    /// error where the file system cannot, or the two lie on different ones.
    fn share_content(&self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()>;

    /// Chooses how many bytes the file system makes the file's own when a part of shared content is written; `None`
    /// leaves the choice to the file system. Where there is no such choice, the call succeeds without an effect.
    fn set_unshared_bytes(&self, file: BorrowedFd<'_>, bytes: Option<u32>) -> io::Result<()> {
        let _ = (file, bytes);
        Ok(())
    }

    /// Says when a file's content was written last; what is written afterwards says otherwise.
    fn set_modified(&self, file: BorrowedFd<'_>, modified_ns: i64) -> io::Result<()>;

    /// Starts writing a range to the disk and does not wait; promises nothing.
    fn start_writeback(&self, file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()>;

    /// Asks the kernel to drop its cached copy, so that the next read shows what the disk holds.
    fn forget_cache(&self, file: BorrowedFd<'_>) -> io::Result<()>;

    /// Makes a file's content durable.
    fn sync_file(&self, file: BorrowedFd<'_>) -> io::Result<()>;

    /// Makes a file's content durable, and of the rest only what reading it back needs.
    fn sync_bytes(&self, file: BorrowedFd<'_>) -> io::Result<()>;

    /// Closes a file that was written; some file systems report a failed write only here.
    fn close(&self, file: OwnedFd) -> io::Result<()>;

    /// Renames within a directory; `EEXIST` when the new name is taken, `EINVAL` when the file
    /// system cannot promise that.
    fn rename_new(&self, directory: BorrowedFd<'_>, from: &str, to: &str) -> io::Result<()>;

    /// Renames within a directory and replaces what the new name led to.
    fn rename_over(&self, directory: BorrowedFd<'_>, from: &str, to: &str) -> io::Result<()>;

    /// Gives a file a second name; `EEXIST` when it is taken.
    fn link(&self, directory: BorrowedFd<'_>, from: &str, to: &str) -> io::Result<()>;

    /// Gives a file a second name in another directory; `EEXIST` when it is taken.
    fn link_into(
        &self,
        directory: BorrowedFd<'_>,
        from: &str,
        other: BorrowedFd<'_>,
        to: &str,
    ) -> io::Result<()>;

    /// Removes a name.
    fn remove(&self, directory: BorrowedFd<'_>, name: &str) -> io::Result<()>;

    /// Makes a directory's names durable.
    fn sync_directory(&self, directory: BorrowedFd<'_>) -> io::Result<()>;

    /// Bytes that this user can still write to the file system.
    fn free_bytes(&self, directory: BorrowedFd<'_>) -> io::Result<u64>;
}

/// Reads until the buffer is full or the file ends.
pub(in crate::store) fn read_full(
    disk: &dyn Disk,
    file: BorrowedFd<'_>,
    buffer: &mut [u8],
    offset: u64,
) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match disk.read(file, &mut buffer[filled..], offset + filled as u64)? {
            0 => break,
            read_bytes => filled += read_bytes,
        }
    }
    Ok(filled)
}
