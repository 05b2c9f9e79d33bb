//! Folders of notes below a folder of the archive: made once, opened when needed, thinned by name.
//! Never says what a note means. Invariant: a folder that was made, and a name that was removed, stay so
//! behind a power cut.

use std::io;
use std::sync::Arc;

use super::error::StoreError;
use super::folder::Folder;

impl Folder {
    /// The folder of this name; `None` where there is none.
    pub(super) fn below(&self, name: &str) -> Result<Option<Arc<Folder>>, StoreError> {
        let path = self.path().join(name);
        let (disk, monitor) = (Arc::clone(&self.disk), Arc::clone(&self.monitor));
        match Folder::open(&path, disk, monitor) {
            Ok(folder) => Ok(Some(Arc::new(folder))),
            Err(StoreError::NotSetUp { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the folder of this name, unless it is there.
    pub(super) fn make_below(&self, name: &str) -> Result<(), StoreError> {
        match self.disk.create_directory(&self.path().join(name)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(self.failure("create", name, error)),
            Ok(()) => self.sync(),
        }
    }

    /// Removes those of these names that are here, with one sync if there were any.
    pub(super) fn remove_present(
        &self,
        names: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<(), StoreError> {
        let mut removed = false;
        for name in names {
            let name = name.as_ref();
            if self.stat_at(name)?.is_some() {
                self.remove(name)?;
                removed = true;
            }
        }
        if removed { self.sync() } else { Ok(()) }
    }
}
