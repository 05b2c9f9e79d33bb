//! A file takes the place of another one of its name, which is kept under a second name.
//! Never leaves the name to nobody, and never writes over what has the second one. Invariant: a crash leaves the
//! old file, the old one under both names, or what was wanted.

use std::sync::Arc;

use walmgr_protocol::names::WalFileName;

use super::{Durable, SyncedTemporary};
use crate::store::error::StoreError;
use crate::store::folder::Folder;

impl SyncedTemporary {
    /// Takes the place of the file that has this name, which is kept as `kept`.
    pub(in crate::store) fn publish_over(
        mut self,
        name: WalFileName,
        kept: &str,
    ) -> Result<Durable, StoreError> {
        let folder = Arc::clone(&self.name.folder);
        folder.monitor.check()?;
        folder.put_over(&self.name.name, &name.to_string(), kept)?;
        self.name.exists = false;
        folder.ensure_in_place()?;
        Ok(Durable::under(name, self.len, self.crc32))
    }
}

impl Folder {
    /// Gives the file `from` the name `to`, for good; what has that name is kept as `kept`, durable before that.
    pub(in crate::store) fn put_over(
        self: &Arc<Self>,
        from: &str,
        to: &str,
        kept: &str,
    ) -> Result<(), StoreError> {
        self.ensure_in_place()?;
        let taken = |kind: std::io::ErrorKind| self.failure("set aside as", kept, kind.into());
        let Some(stored) = self.open_finished(to)? else {
            return Err(self.failure("set aside", to, std::io::ErrorKind::NotFound.into()));
        };
        if !self.keep_as(stored.handle(), to, kept)? {
            return Err(taken(std::io::ErrorKind::AlreadyExists));
        }
        (self.disk.rename_over(self.handle(), from, to))
            .map_err(|error| self.failure("rename to", to, error))?;
        self.sync()
    }

    /// Gives a note the name of another file, for good, if it is there.
    pub(in crate::store) fn hand_on(&self, from: &str, to: &str) -> Result<(), StoreError> {
        match self.disk.rename_over(self.handle(), from, to) {
            Ok(()) => self.sync(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(self.failure("rename to", to, error)),
        }
    }
}
