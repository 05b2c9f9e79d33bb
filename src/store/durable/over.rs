//! A file takes the place of another one of its name, which is kept under a second name.
//! Never leaves the name to nobody. Invariant: a crash leaves the old file, the old one under both names, or what
//! was wanted.

use std::sync::Arc;

use walmgr_protocol::names::WalFileName;

use super::{Durable, SyncedTemporary};
use crate::store::error::StoreError;

impl SyncedTemporary {
    /// Takes the place of the file that has this name, which is kept as `kept`.
    pub(in crate::store) fn publish_over(
        mut self,
        name: WalFileName,
        kept: &str,
    ) -> Result<Durable, StoreError> {
        let folder = Arc::clone(&self.name.folder);
        let final_name = name.to_string();
        folder.monitor.check()?;
        folder.ensure_in_place()?;
        folder.remove(kept)?;
        (folder.disk.link(folder.handle(), &final_name, kept))
            .map_err(|error| folder.failure("link to", kept, error))?;
        folder.sync()?;
        (folder.disk)
            .rename_over(folder.handle(), &self.name.name, &final_name)
            .map_err(|error| folder.failure("rename to", &final_name, error))?;
        self.name.exists = false;
        folder.sync().and_then(|()| folder.ensure_in_place())?;
        Ok(Durable::under(name, self.len, self.crc32))
    }
}
