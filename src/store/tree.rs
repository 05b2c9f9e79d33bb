//! The system calls on directory trees whose names are any bytes: backup sets.
//! Never decides anything. Invariant: every call works below an open directory, on one component,
//! and only `enter_linked` follows a symbolic link, so a chain of them cannot leave the tree.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

/// What a name in a tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// A regular file and its length in bytes.
    File(u64),
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A device, FIFO or socket.
    Other,
}

/// What a file takes on the disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileUse {
    /// Its blocks.
    pub allocated_bytes: u64,
    /// Those that other files have too; `None` where the file system does not tell.
    pub shared_bytes: Option<u64>,
}

/// The operations; errors are the plain errno, the caller adds the path.
pub trait Tree {
    /// Makes one directory, mode 0700; `EEXIST` when the name is taken.
    fn make_directory(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()>;

    /// Opens a directory below another one.
    fn enter(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd>;

    /// Opens a directory or what a symbolic link to one leads to: for the name of a set, which an
    /// administrator may have moved to another disk, and for nothing in it.
    fn enter_linked(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd>;

    /// Creates a file that must not exist, mode 0600, for writing.
    fn make_file(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd>;

    /// Opens a file that exists for writing, without changing it.
    fn reopen_file(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd>;

    /// Opens a file for reading; never waits, not even for a FIFO.
    fn open_file(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd>;

    /// The room that a file takes on the disk. The file system may know the room only after a sync of the file.
    fn file_use(&self, file: BorrowedFd<'_>) -> io::Result<FileUse> {
        let _ = file;
        Err(rustix::io::Errno::OPNOTSUPP.into())
    }

    /// Makes a symbolic link.
    fn make_link(&self, directory: BorrowedFd<'_>, name: &OsStr, target: &OsStr) -> io::Result<()>;

    /// What a name is.
    fn node(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<Node>;

    /// Every name in a directory, unsorted.
    fn entries(&self, directory: BorrowedFd<'_>) -> io::Result<Vec<OsString>>;

    /// Removes a name that is no directory.
    fn remove_name(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()>;

    /// Removes an empty directory.
    fn remove_directory(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()>;

    /// Takes a shared `flock` without waiting; `false` when another open file holds it alone.
    fn lock_shared(&self, file: BorrowedFd<'_>) -> io::Result<bool>;

    /// Makes everything on the file system of this directory durable, and reports every failed
    /// write-back since the directory was opened; `ENOSYS` where the kernel does not report them.
    fn sync_everything(&self, directory: BorrowedFd<'_>) -> io::Result<()>;
}
