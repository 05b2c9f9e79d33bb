//! A file takes the place of another one of its name, which is kept under a second name.
//! Never leaves the name to nobody, and never writes over what has the second one. Invariant: a crash leaves the
//! old file, the old one under both names, or what was wanted.

use std::sync::Arc;

use walmgr_protocol::names::WalFileName;

use super::{Durable, SyncedTemporary, Temporary};
use crate::config::StoreCompression;
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
        let text = name.to_string();
        if folder.is_packed(&text)? != self.is_packed {
            // Two forms cannot change places in one step.
            self = self.in_other_form(&text)?;
        }
        folder.put_stored_over((&self.name.name, self.is_packed), &text, kept)?;
        self.name.exists = false;
        folder.ensure_in_place()?;
        Ok(Durable::under(name, self.len, self.crc32))
    }
}

impl SyncedTemporary {
    /// Gets the name of a file that lies there in the other form, for good.
    pub(in crate::store) fn publish_beside(mut self, text: &str) -> Result<(), StoreError> {
        let folder = Arc::clone(&self.name.folder);
        let stored_name = self.stored_name(text);
        folder.ensure_in_place()?;
        (folder.rename_to_absent(&self.name.name, &stored_name))
            .map_err(|error| folder.failure("rename to", &stored_name, error))?;
        self.name.exists = false;
        folder.sync()
    }

    /// Copies the temporary into the other form: packs what is plain, unpacks what is packed.
    fn in_other_form(self, text: &str) -> Result<SyncedTemporary, StoreError> {
        let folder = &self.name.folder;
        let form = match self.is_packed {
            true => StoreCompression::None,
            false => StoreCompression::default(),
        };
        let Some(file) = folder.open_temporary(&self.name.name, self.is_packed)? else {
            return Err(folder.failure("open", text, std::io::ErrorKind::NotFound.into()));
        };
        let mut other = Temporary::create_in(folder, (text, self.len), form)?;
        let mut copied = Ok(());
        folder.read_finished(&file, |piece| {
            copied = other.append(piece);
            copied.is_ok()
        })?;
        copied?;
        other.sync()
    }
}

impl Folder {
    /// Has one file stored in the form of another. A crash leaves both forms, with the same content.
    pub(in crate::store) fn store_alike(
        self: &Arc<Self>,
        text: &str,
        other: &str,
    ) -> Result<(), StoreError> {
        let is_packed = self.is_packed(other)?;
        if self.is_packed(text)? == is_packed {
            return Ok(());
        }
        let form = match is_packed {
            true => StoreCompression::default(),
            false => StoreCompression::None,
        };
        let Some(file) = self.open_finished(text)? else {
            return Ok(());
        };
        let mut anew = Temporary::create_in(self, (text, 0), form)?;
        let mut copied = Ok(());
        self.read_finished(&file, |piece| {
            copied = anew.append(piece);
            copied.is_ok()
        })?;
        copied?;
        anew.sync()?.publish_beside(text)?;
        let old = match is_packed {
            true => text.to_owned(),
            false => self.packed_name(text).unwrap_or_default(),
        };
        self.remove_stored(&old)?;
        self.sync()
    }

    /// Gives the file `from` the name `to`, for good; what has that name is kept as `kept`, durable before that. Both
    /// have to be stored in one form.
    pub(in crate::store) fn put_over(
        self: &Arc<Self>,
        from: &str,
        to: &str,
        kept: &str,
    ) -> Result<(), StoreError> {
        let is_packed = self.is_packed(from)?;
        let packed = self.packed_name(from).filter(|_| is_packed);
        self.put_stored_over((packed.as_deref().unwrap_or(from), is_packed), to, kept)
    }

    /// Gives the file that has the name `from` on the disk the name `to`, for good. The file that had the name `to` is
    /// kept as `kept`, durable before that. Both have to be stored in one form.
    fn put_stored_over(
        self: &Arc<Self>,
        (from, is_packed): (&str, bool),
        to: &str,
        kept: &str,
    ) -> Result<(), StoreError> {
        self.ensure_in_place()?;
        let taken = |kind: std::io::ErrorKind| self.failure("set aside as", kept, kind.into());
        let Some(stored) = self.open_finished(to)? else {
            return Err(self.failure("set aside", to, std::io::ErrorKind::NotFound.into()));
        };
        if stored.is_plain() == is_packed {
            let why = "it was packed or unpacked meanwhile; walmgr tries again";
            return Err(self.failure("set aside", to, std::io::Error::other(why)));
        }
        let (to, kept) = match (self.packed_name(to), self.packed_name(kept)) {
            (Some(to), Some(kept)) if is_packed => (to, kept),
            _ => (to.to_owned(), kept.to_owned()),
        };
        let (to, kept) = (to.as_str(), kept.as_str());
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
