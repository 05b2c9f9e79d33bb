//! What the backup sets take on the disk: all of a set, and what no other file has too.
//! Never holds a set: whoever removes one does not wait. Invariant: what is noted of a set was measured in it.
//!
//! A set that was built on an older one shares blocks with it where the file system can. What is its own is what its
//! removal would free. That changes when another set comes or goes, so sets that share are measured again then.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::BackupSets;
use super::error::SetError;
use super::list::OpenedSet;
use super::use_note::{SetKey, SetUse, UseNote};
use crate::store::Disk;
use crate::store::durable::TREE_DEPTH_MAX;
use crate::store::tree::Node;

impl BackupSets {
    /// Measures one set whose use of the disk is unknown or outdated. Returns `false` if there is no such set.
    pub(crate) fn measure_next(&self) -> Result<bool, SetError> {
        let roots = self.keyed()?;
        let keys: Vec<SetKey> = roots.iter().map(|(key, _)| *key).collect();
        let mut note = UseNote::read(&self.completed);
        note.keep(&keys);
        let Some(due) = note.due(&keys) else {
            return Ok(false);
        };
        let Some((_, root)) = roots.iter().find(|(key, _)| *key == due) else {
            return Ok(false);
        };
        let measured = self.measure(root)?;
        note.insert(due, measured, &keys);
        note.write(&self.completed)?;
        Ok(true)
    }

    /// Measures the newest set, which was just sealed.
    pub(crate) fn measure_newest(&self) -> Result<(), SetError> {
        let roots = self.keyed()?;
        let Some((newest, root)) = roots.first() else {
            return Ok(());
        };
        let measured = self.measure(root)?;
        let keys: Vec<SetKey> = roots.iter().map(|(key, _)| *key).collect();
        let mut note = UseNote::read(&self.completed);
        note.keep(&keys);
        note.insert(*newest, measured, &keys);
        Ok(note.write(&self.completed)?)
    }

    /// The sets that can be read, the newest first.
    fn keyed(&self) -> Result<Vec<(SetKey, OwnedFd)>, SetError> {
        let mut keyed = Vec::new();
        for (_, opened) in self.open_now()? {
            if let Ok(opened) = opened {
                keyed.push((self.key_of(&opened)?, opened.root));
            }
        }
        Ok(keyed)
    }

    /// What tells a set from another one that has its place later.
    pub(super) fn key_of(&self, opened: &OpenedSet) -> Result<SetKey, SetError> {
        Ok(SetKey {
            inode: self.inode_of(&opened.root)?,
            sealed_ms: opened.sealed_ms,
        })
    }

    fn measure(&self, root: &OwnedFd) -> Result<SetUse, SetError> {
        let mut found = SetUse {
            allocated_bytes: 0,
            own_bytes: Some(0),
        };
        let disk = self.parent.disk.as_ref();
        add_entries(disk, root.as_fd(), TREE_DEPTH_MAX, &mut found)
            .map_err(|error| self.parent.failure("measure", "a backup set", error))?;
        Ok(found)
    }
}

fn add_entries(
    disk: &dyn Disk,
    directory: BorrowedFd<'_>,
    depth_left: usize,
    found: &mut SetUse,
) -> io::Result<()> {
    let depth_left = depth_left.checked_sub(1).ok_or(Errno::LOOP)?;
    for name in disk.entries(directory)? {
        match add_entry(disk, directory, &name, depth_left, found) {
            // The set is being removed, or its owner works in it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

fn add_entry(
    disk: &dyn Disk,
    directory: BorrowedFd<'_>,
    name: &OsStr,
    depth_left: usize,
    found: &mut SetUse,
) -> io::Result<()> {
    match disk.node(directory, name)? {
        Node::Directory => {
            let below = disk.enter(directory, name)?;
            add_entries(disk, below.as_fd(), depth_left, found)
        }
        Node::File(_) => {
            let file = disk.open_file(directory, name)?;
            let taken = disk.file_use(file.as_fd())?;
            found.allocated_bytes += taken.allocated_bytes;
            let own = |shared: u64| taken.allocated_bytes.saturating_sub(shared);
            found.own_bytes = (found.own_bytes)
                .zip(taken.shared_bytes)
                .map(|(before, shared)| before + own(shared));
            Ok(())
        }
        Node::Link | Node::Other => Ok(()),
    }
}
