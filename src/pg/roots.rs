//! Opening what was listed of a data directory: below handles, by the links that were followed.
//! Never follows a link that was not one when the directory was listed. Invariant: a file that is opened
//! lies in the directory that was listed, also where another was mounted or linked there since.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Dir, FileType, Mode, OFlags, Stat, fstat, openat};
use rustix::io::{Errno, retry_on_intr};

use walmgr_protocol::names::RelativePath;

use super::layout;
use super::tablespace_map::oid_of;
use super::walk::File;
use crate::files::FileId;

/// The links that were followed, by the path they are at, and what they led to.
pub(super) type Followed = BTreeMap<Vec<u8>, FileId>;

/// The directory and its tablespaces, held open.
pub struct Roots {
    pub(super) data: OwnedFd,
    /// `pg_tblspc`, which may be a link itself.
    pub(super) links: OwnedFd,
    pub(super) tablespaces: BTreeMap<u32, OwnedFd>,
    pub(super) followed: Followed,
}

impl Roots {
    /// Opens a listed file for reading. `NotFound` when it has been removed since; what a link led to is
    /// never just gone, as PostgreSQL removes no such directory.
    pub fn open_file(&self, file: &File) -> io::Result<std::fs::File> {
        let path = file.path.as_bytes();
        let mut components = file.path.components().peekable();
        let mut here = Entered::Root(self.data.as_fd());
        let mut end_bytes = 0;
        let mut pass = |component: &[u8]| {
            // Behind the component before and its slash.
            end_bytes += component.len() + usize::from(end_bytes > 0);
            self.followed.get(&path[..end_bytes])
        };
        if let Some((handle, skipped)) = self.tablespace_of(&file.path) {
            here = Entered::Root(handle);
            for component in components.by_ref().take(skipped) {
                pass(component);
            }
        }
        while let Some(component) = components.next() {
            let led_to = pass(component);
            if components.peek().is_some() {
                here = Entered::Below(match led_to {
                    None => enter(here.as_fd(), component)?,
                    Some(led_to) => reenter(here.as_fd(), component, *led_to)?,
                });
                continue;
            }
            let follow = match led_to {
                None => OFlags::NOFOLLOW,
                Some(_) => OFlags::empty(),
            };
            // Without waiting: a FIFO that took the name must not hold up a backup.
            let flags = OFlags::RDONLY | follow | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let opened = retry_on_intr(|| openat(here.as_fd(), component, flags, Mode::empty()))?;
            if !is(&fstat(&opened)?, FileType::RegularFile) {
                return Err(io::Error::other("it is no longer a file"));
            }
            return Ok(opened.into());
        }
        Err(io::ErrorKind::NotFound.into())
    }

    /// The root that a path begins in and how many of its components lead there.
    fn tablespace_of(&self, path: &RelativePath) -> Option<(BorrowedFd<'_>, usize)> {
        let mut components = path.components();
        (components.next()? == layout::PG_TBLSPC.as_bytes()).then_some(())?;
        let oid = components.next().and_then(oid_of);
        let handle = oid.and_then(|oid| self.tablespaces.get(&oid));
        // Tablespaces in place are directories like any other.
        Some(handle.map_or((self.links.as_fd(), 1), |handle| (handle.as_fd(), 2)))
    }
}

enum Entered<'a> {
    Root(BorrowedFd<'a>),
    Below(OwnedFd),
}

impl AsFd for Entered<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Entered::Root(handle) => *handle,
            Entered::Below(handle) => handle.as_fd(),
        }
    }
}

/// The directory behind a link; an error when it is not the one that was listed.
fn reenter(directory: BorrowedFd<'_>, name: &[u8], led_to: FileId) -> io::Result<OwnedFd> {
    let changed = || io::Error::other("a symlink of the path has changed");
    match enter_linked(directory, name) {
        Ok(entered) if FileId::of(&fstat(&entered)?) == led_to => Ok(entered),
        Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => Err(changed()),
        Err(error) => Err(error.into()),
    }
}

/// Every name in a directory, sorted, so that two listings can be compared.
pub(super) fn names(directory: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Opens a directory that is no link.
pub(super) fn enter(directory: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    retry_on_intr(|| openat(directory, name, flags, Mode::empty()))
}

/// Opens a directory wherever an administrator moved it, as the server does.
pub(super) fn enter_linked(directory: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    retry_on_intr(|| openat(directory, name, flags, Mode::empty()))
}

pub(super) fn is(stat: &Stat, file_type: FileType) -> bool {
    FileType::from_raw_mode(stat.st_mode) == file_type
}
