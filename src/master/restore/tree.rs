//! The directories of a set where they come to lie: the new data directory, and tablespaces elsewhere.
//! Never follows a link and never opens a path of more than one component. Invariant: nothing outside the
//! directories it was given is touched.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use walmgr_protocol::names::RelativePath;

use super::place::RestorePlace;
use crate::error::{CommandError, Result};
use crate::pg::layout;

/// Where files are put, by their paths in the set. Clones share the handles.
#[derive(Clone)]
pub(super) struct NewTree {
    root: Arc<OwnedFd>,
    spaces: Vec<(u32, Arc<OwnedFd>)>,
    /// The directory that was used last: files come in the order of their directories.
    last: Option<(Vec<u8>, Arc<OwnedFd>)>,
}

impl NewTree {
    /// That of a place which was begun.
    pub(super) fn of(place: &RestorePlace) -> Result<NewTree> {
        let (root, spaces) = place.handles()?;
        Ok(NewTree::new(root, spaces))
    }

    pub(super) fn new(root: OwnedFd, spaces: Vec<(u32, OwnedFd)>) -> NewTree {
        let spaces = spaces.into_iter();
        NewTree {
            root: Arc::new(root),
            spaces: spaces.map(|(oid, space)| (oid, Arc::new(space))).collect(),
            last: None,
        }
    }

    /// Whether a file belongs to a tablespace elsewhere, perhaps on another file system.
    pub(super) fn is_elsewhere(&self, path: &RelativePath) -> bool {
        let space = layout::tablespace_of(path.as_bytes(), layout::TMPSPC);
        space.is_some_and(|(oid, _)| self.spaces.iter().any(|(known, _)| *known == oid))
    }

    /// The directory that a file belongs into.
    pub(super) fn above(&mut self, path: &RelativePath) -> Result<Arc<OwnedFd>> {
        let parent = path.parent();
        self.enter(parent.as_ref().map_or(&[][..], RelativePath::as_bytes))
    }

    /// Makes a file under the last component of its path, or another name; nothing may be there.
    pub(super) fn make_file(&mut self, path: &RelativePath, name: &[u8]) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        self.open_with(path, name, flags, "create")
    }

    /// Opens a file that is there, to read and to write it.
    pub(super) fn open_file(&mut self, path: &RelativePath) -> Result<File> {
        self.open_with(path, path.file_name(), OFlags::RDWR, "open")
    }

    fn open_with(
        &mut self,
        path: &RelativePath,
        name: &[u8],
        flags: OFlags,
        op: &str,
    ) -> Result<File> {
        let directory = self.above(path)?;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let opened = rustix::fs::openat(&directory, OsStr::from_bytes(name), flags, mode);
        opened
            .map(File::from)
            .map_err(|error| failed(op, path, error))
    }

    /// The handle of a directory, made as far as it is not there.
    pub(super) fn enter(&mut self, path: &[u8]) -> Result<Arc<OwnedFd>> {
        if let Some((last, handle)) = &self.last
            && last == path
        {
            return Ok(Arc::clone(handle));
        }
        let (mut here, mut rest) = (Arc::clone(&self.root), path);
        if let Some((oid, below)) = layout::tablespace_of(path, layout::TMPSPC)
            && let Some((_, space)) = self.spaces.iter().find(|(known, _)| *known == oid)
        {
            (here, rest) = (Arc::clone(space), below);
        }
        for component in rest.split(|byte| *byte == b'/').filter(|it| !it.is_empty()) {
            let name = OsStr::from_bytes(component);
            let failed = |op: &str, error: Errno| {
                let shown = path.escape_ascii();
                CommandError::retry(format!("{op} {shown}")).because(std::io::Error::from(error))
            };
            match rustix::fs::mkdirat(here.as_fd(), name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(failed("create directory", error)),
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let entered = rustix::fs::openat(here.as_fd(), name, flags, Mode::empty());
            here = Arc::new(entered.map_err(|error| failed("enter directory", error))?);
        }
        self.last = Some((path.to_vec(), Arc::clone(&here)));
        Ok(here)
    }
}

/// What went wrong with a file of the set.
pub(super) fn failed(
    op: &str,
    path: &RelativePath,
    error: impl Into<std::io::Error>,
) -> CommandError {
    CommandError::retry(format!("{op} {path}")).because(error.into())
}

/// What the set is refused for.
pub(super) fn refused(path: &RelativePath, why: &str) -> CommandError {
    CommandError::retry(format!("the backup set is refused: {path}: {why}"))
        .hint("look at the set on the standby, or restore another one; `listbackups` lists them")
}
