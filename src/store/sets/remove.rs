//! Removes a tree that nobody needs any more.
//! Never follows a link: a tablespace's link goes, what it leads to stays. Invariant: every name is
//! removed through the handle of the directory it was listed in.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use crate::store::Disk;
use crate::store::durable::TREE_DEPTH_MAX;
use crate::store::tree::Node;

/// Removes the directory `name` and everything in it.
pub(super) fn tree(disk: &dyn Disk, above: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    remove(disk, above, name.as_ref(), TREE_DEPTH_MAX)
}

/// Removes everything in the directory `name`, which stays.
pub(super) fn content(disk: &dyn Disk, above: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    empty(disk, above, name.as_ref(), TREE_DEPTH_MAX)
}

fn remove(
    disk: &dyn Disk,
    above: BorrowedFd<'_>,
    name: &OsStr,
    depth_left: usize,
) -> io::Result<()> {
    empty(disk, above, name, depth_left)?;
    disk.remove_directory(above, name)
}

fn empty(
    disk: &dyn Disk,
    above: BorrowedFd<'_>,
    name: &OsStr,
    depth_left: usize,
) -> io::Result<()> {
    let depth_left = depth_left.checked_sub(1).ok_or(Errno::LOOP)?;
    let here = disk.enter(above, name)?;
    for name in disk.entries(here.as_fd())? {
        match disk.node(here.as_fd(), &name)? {
            Node::Directory => remove(disk, here.as_fd(), &name, depth_left)?,
            Node::File(_) | Node::Link | Node::Other => disk.remove_name(here.as_fd(), &name)?,
        }
    }
    Ok(())
}
