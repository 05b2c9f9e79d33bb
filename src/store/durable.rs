//! The only place in the archive that syncs and renames, and so the only one that can prove a
//! file durable. Never acknowledges, never retries a failed sync. Invariant: a [`Durable`] exists
//! only after its file's content and then its directory entry were synced without an error.
//!
//! ```text
//! create .in.NAME.RANDOM   a crash leaves a temporary, removed at the next start
//! allocate, write          as above
//! sync the file            as above; after a failure the bytes are never synced again
//! rename to NAME           whole under NAME or not there, since the content is durable
//! sync the directory       there for good
//! ```
//!
//! A backup set is a tree of many small files, so its syncs are one `syncfs` and three more;
//! their order is `sets::seal`'s.

mod over;
mod records;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use rustix::fs::{self, Mode, OFlags, RenameFlags};
use rustix::io::{Errno, retry_on_intr};
use walmgr_protocol::compress::UnpackedBlock;
use walmgr_protocol::message::Digest;
use walmgr_protocol::names::WalFileName;
use walmgr_protocol::session::push::ProofOfDurability;

use super::beside::Beside;
use super::disk::Disk;
use super::error::StoreError;
use super::finished::FinishedFile;
use super::folder::{Folder, PACKING_PREFIX, TEMPORARY_PREFIX, random_suffix};
use super::packed::SegmentPacker;
use super::tree::Node;
use crate::config::StoreCompression;
use crate::files;

pub(super) use records::Linked;
pub(crate) use records::{DurableRecords, DurableWal};

/// How much is written before its write-back is started, so that the sync at the end finds
/// little left to do.
const WRITEBACK_BYTES: u64 = 1 << 20;

/// Deeper trees are nobody's backup; see `PATH_DEPTH_MAX`.
pub(super) const TREE_DEPTH_MAX: usize = walmgr_protocol::limits::PATH_DEPTH_MAX + 1;

/// How many `.damaged` names one file may have before a person has to look.
const SET_ASIDE_NAMES_MAX: u32 = 1_000;

/// The proof that a file is on the standby's disk under its name, content and directory entry.
///
/// Only this module makes one, after the syncs: nobody else sees its fields.
#[derive(Debug, PartialEq, Eq)]
pub struct Durable {
    name: WalFileName,
    len: u64,
    crc32: u32,
}

impl Durable {
    /// For [`records`] and [`over`], which have synced content and name.
    const fn under(name: WalFileName, len: u64, crc32: u32) -> Self {
        Durable { name, len, crc32 }
    }

    /// The file.
    pub const fn name(&self) -> WalFileName {
        self.name
    }

    /// Its length in bytes.
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// The CRC-32 (zlib) of its content.
    pub const fn crc32(&self) -> u32 {
        self.crc32
    }
}

impl ProofOfDurability for Durable {
    fn name(&self) -> WalFileName {
        self.name
    }

    fn digest(&self) -> Digest {
        Digest {
            size: self.len,
            crc32: self.crc32,
        }
    }
}

/// A file that is being written beside its final name; dropping it removes it.
pub(super) struct Temporary {
    name: TemporaryName,
    file: OwnedFd,
    written_bytes: u64,
    stored_bytes: u64,
    writeback_bytes: u64,
    crc32: crc32fast::Hasher,
    /// What packs it on its way to the disk.
    packer: Option<SegmentPacker>,
    /// When what it is made of was written, if it is nothing new.
    modified_ns: Option<i64>,
}

/// A temporary whose content is durable and closed; all it lacks is its final name.
pub(super) struct SyncedTemporary {
    name: TemporaryName,
    pub(super) len: u64,
    pub(super) crc32: u32,
    is_packed: bool,
}

/// The name of a temporary, removed when it is dropped unless a rename took it away.
pub(super) struct TemporaryName {
    folder: Arc<Folder>,
    name: String,
    exists: bool,
}

impl TemporaryName {
    pub(super) fn of(folder: &Arc<Folder>, name: String) -> TemporaryName {
        TemporaryName {
            folder: Arc::clone(folder),
            name,
            exists: true,
        }
    }

    /// Says that a rename took it away.
    pub(super) const fn taken(&mut self) {
        self.exists = false;
    }
}

impl Temporary {
    /// Creates a temporary for `final_name` with room for `len` bytes.
    pub(super) fn create(
        folder: &Arc<Folder>,
        final_name: &str,
        len: u64,
    ) -> Result<Self, StoreError> {
        Temporary::create_as(TEMPORARY_PREFIX, folder, final_name, len)
    }

    fn create_as(
        prefix: &str,
        folder: &Arc<Folder>,
        final_name: &str,
        len: u64,
    ) -> Result<Self, StoreError> {
        let random = random_suffix().map_err(|error| folder.failure("name", final_name, error))?;
        let name = format!("{prefix}{final_name}.{random}");
        let file = (folder.disk.create(folder.handle(), &name))
            .map_err(|error| folder.failure("create", &name, error))?;
        let temporary = Temporary {
            name: TemporaryName::of(folder, name),
            file,
            written_bytes: 0,
            stored_bytes: 0,
            writeback_bytes: 0,
            crc32: crc32fast::Hasher::new(),
            packer: None,
            modified_ns: None,
        };
        temporary.allocate(len)?;
        Ok(temporary)
    }

    /// Creates a temporary for a segment, or a copy of one, of `len` bytes that is stored in this form.
    pub(super) fn create_in(
        folder: &Arc<Folder>,
        (final_name, len): (&str, u64),
        form: StoreCompression,
    ) -> Result<Self, StoreError> {
        Temporary::create_in_as(TEMPORARY_PREFIX, folder, (final_name, len), form)
    }

    /// Creates a temporary for a file that lies there already in the other form. The temporary gets that file's time of
    /// modification, in nanoseconds since 1970.
    pub(super) fn create_to_convert(
        folder: &Arc<Folder>,
        (final_name, modified_ns): (&str, i64),
        form: StoreCompression,
    ) -> Result<Self, StoreError> {
        let temporary = Temporary::create_in_as(PACKING_PREFIX, folder, (final_name, 0), form)?;
        Ok(Temporary {
            modified_ns: Some(modified_ns),
            ..temporary
        })
    }

    fn create_in_as(
        prefix: &str,
        folder: &Arc<Folder>,
        (final_name, len): (&str, u64),
        form: StoreCompression,
    ) -> Result<Self, StoreError> {
        let level = form
            .level()
            .filter(|_| folder.packed_name(final_name).is_some());
        // How long it gets nobody knows, so nothing is set aside for a packed one.
        let len = if level.is_some() { 0 } else { len };
        let temporary = Temporary::create_as(prefix, folder, final_name, len)?;
        Ok(Temporary {
            packer: level.map(SegmentPacker::new),
            ..temporary
        })
    }

    /// Finds a full disk before the bytes are sent. A file system that cannot do it finds out
    /// while writing.
    fn allocate(&self, len: u64) -> Result<(), StoreError> {
        let folder = &self.name.folder;
        match folder.disk.allocate(self.file.as_fd(), len) {
            Err(error) if !is_unsupported(&error) => {
                Err(folder.failure("allocate", &self.name.name, error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Writes these bytes behind the ones before.
    ///
    /// A file that is packed on its way gets its blocks while later ones are appended, or when it is synced.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        match self.packer.take() {
            None => self.write(bytes)?,
            Some(mut packer) => {
                packer.add(bytes, &mut |stored: &[u8]| self.write(stored))?;
                self.packer = Some(packer);
            }
        }
        self.count(bytes);
        Ok(())
    }

    /// Writes a block as it travelled behind the bytes before, without a copy. A block that came packed may be stored
    /// as it came.
    pub(super) fn append_block(&mut self, block: &UnpackedBlock<'_>) -> Result<(), StoreError> {
        match self.packer.take() {
            None => self.write(block.raw())?,
            Some(mut packer) => {
                packer.add_block(block, &mut |stored: &[u8]| self.write(stored))?;
                self.packer = Some(packer);
            }
        }
        self.count(block.raw());
        Ok(())
    }

    fn count(&mut self, bytes: &[u8]) {
        self.crc32.update(bytes);
        self.written_bytes += bytes.len() as u64;
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let folder = &self.name.folder;
        (folder.disk)
            .write_all(self.file.as_fd(), bytes, self.stored_bytes)
            .map_err(|error| folder.failure("write", &self.name.name, error))?;
        self.stored_bytes += bytes.len() as u64;
        let waiting_bytes = self.stored_bytes - self.writeback_bytes;
        if waiting_bytes >= WRITEBACK_BYTES {
            match (folder.disk).start_writeback(
                self.file.as_fd(),
                self.writeback_bytes,
                waiting_bytes,
            ) {
                Err(error) if !is_unsupported(&error) => {
                    return Err(folder.failure("write back", &self.name.name, error));
                }
                Ok(()) | Err(_) => self.writeback_bytes = self.stored_bytes,
            }
        }
        Ok(())
    }

    /// How many bytes were appended.
    pub(super) const fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// The CRC-32 of what was appended.
    pub(super) fn crc32(&self) -> u32 {
        self.crc32.clone().finalize()
    }

    /// Makes the content durable. On a failure the temporary is gone: a second sync of the same
    /// pages could succeed although they are lost.
    pub(super) fn sync(mut self) -> Result<SyncedTemporary, StoreError> {
        let is_packed = self.packer.is_some();
        if let Some(packer) = self.packer.take() {
            let crc32 = self.crc32();
            packer.finish(crc32, &mut |stored: &[u8]| self.write(stored))?;
        }
        if let Some(modified_ns) = self.modified_ns {
            // For people and `status`; nothing is kept or removed by it.
            let disk = &self.name.folder.disk;
            let _ = disk.set_modified(self.file.as_fd(), modified_ns);
        }
        let Temporary {
            name,
            file,
            written_bytes,
            crc32,
            ..
        } = self;
        let folder = &name.folder;
        if let Err(error) = folder.monitor.timed(|| folder.disk.sync_file(file.as_fd())) {
            return Err(folder.sync_failure(&name.name, error));
        }
        if let Err(error) = folder.disk.close(file) {
            return Err(folder.sync_failure(&name.name, error));
        }
        Ok(SyncedTemporary {
            name,
            len: written_bytes,
            crc32: crc32.finalize(),
            is_packed,
        })
    }
}

impl SyncedTemporary {
    /// What it is called on the disk once it has this name.
    fn stored_name(&self, name: &str) -> String {
        let packed = self
            .name
            .folder
            .packed_name(name)
            .filter(|_| self.is_packed);
        packed.unwrap_or_else(|| name.to_owned())
    }

    /// Gives the file its final name for good, or says `None` when that name is taken.
    ///
    /// When the directory cannot be synced the name is taken back: nobody was told of it, and
    /// the sender has to bring the bytes again.
    pub(super) fn publish(&mut self, name: WalFileName) -> Result<Option<Durable>, StoreError> {
        let folder = Arc::clone(&self.name.folder);
        let final_name = self.stored_name(&name.to_string());
        folder.monitor.check()?;
        folder.ensure_in_place()?;
        // In its other form.
        if folder.stat_at(&name.to_string())?.is_some() {
            return Ok(None);
        }
        match folder.rename_to_absent(&self.name.name, &final_name) {
            Ok(()) => self.name.exists = false,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            Err(error) => return Err(folder.failure("rename to", &final_name, error)),
        }
        if let Err(error) = folder.sync().and_then(|()| folder.ensure_in_place()) {
            let _ = folder.disk.remove(folder.handle(), &final_name);
            return Err(error);
        }
        Ok(Some(Durable {
            name,
            len: self.len,
            crc32: self.crc32,
        }))
    }

    /// Shows its content from its first byte on until `each` has seen enough; it is still in memory.
    pub(super) fn read_pages(&self, each: impl FnMut(&[u8]) -> bool) -> Result<(), StoreError> {
        let TemporaryName { folder, name, .. } = &self.name;
        match folder.open_temporary(name, self.is_packed)? {
            Some(file) => folder.read_finished_pages(&file, 0, each),
            None => Ok(()),
        }
    }

    /// Replaces whatever has this name, for good: old or new after any crash, never a mixture.
    pub(super) fn replace(mut self, final_name: &str) -> Result<(), StoreError> {
        let folder = Arc::clone(&self.name.folder);
        let stored_name = self.stored_name(final_name);
        // First, since both forms at once would be two files: nobody was told that what is replaced is there.
        let mut others = folder.stored_names(final_name)?;
        others.retain(|other| *other != stored_name);
        for other in others {
            folder.remove_stored(&other)?;
        }
        (folder.disk)
            .rename_over(folder.handle(), &self.name.name, &stored_name)
            .map_err(|error| folder.failure("rename to", &stored_name, error))?;
        self.name.taken();
        folder.sync()
    }
}

impl Drop for TemporaryName {
    fn drop(&mut self) {
        if self.exists {
            // What cannot be removed now is removed at the next start.
            let _ = self.folder.disk.remove(self.folder.handle(), &self.name);
        }
    }
}

/// A file that was found under its final name. Its content was synced and the kernel's copy
/// dropped before it is read, so that what is compared is what the disk holds.
pub(super) struct Existing {
    folder: Arc<Folder>,
    name: WalFileName,
    file: FinishedFile,
}

/// The length and the checksum of an [`Existing`] file, read from its first byte to its last.
pub(super) struct ExistingContent {
    existing: Existing,
    pub(super) len: u64,
    pub(super) crc32: u32,
    /// Why it could not be unpacked to its end.
    pub(super) broken: Option<String>,
}

impl Existing {
    /// Opens and syncs the file, or says `None` when the name does not exist.
    pub(super) fn open(
        folder: &Arc<Folder>,
        name: WalFileName,
    ) -> Result<Option<Self>, StoreError> {
        let text = name.to_string();
        let Some(file) = folder.open_finished(&text)? else {
            return Ok(None);
        };
        if let Err(error) = folder
            .monitor
            .timed(|| folder.disk.sync_file(file.handle()))
        {
            return Err(folder.sync_failure(&text, error));
        }
        // Advice only: a kernel that ignores it still reads what it wrote.
        let _ = folder.disk.forget_cache(file.handle());
        Ok(Some(Existing {
            folder: Arc::clone(folder),
            name,
            file,
        }))
    }

    /// Reads all of it and shows every piece to `each` on the way.
    pub(super) fn read(self, mut each: impl FnMut(&[u8])) -> Result<ExistingContent, StoreError> {
        let mut crc32 = crc32fast::Hasher::new();
        let mut len = 0;
        let read = self.folder.read_finished(&self.file, |bytes| {
            crc32.update(bytes);
            len += bytes.len() as u64;
            each(bytes);
            true
        });
        let broken = match read {
            Err(StoreError::Damaged { why, .. }) => Some(why),
            other => other.map(|()| None)?,
        };
        Ok(ExistingContent {
            existing: self,
            len,
            crc32: crc32.finalize(),
            broken,
        })
    }
}

impl ExistingContent {
    /// Reads it once more, for a check that the first reading did not run.
    pub(super) fn read_again(self, each: impl FnMut(&[u8])) -> Result<Self, StoreError> {
        self.existing.read(each)
    }

    /// Shows its content from its first byte on until `each` has seen enough.
    pub(super) fn read_pages(&self, each: impl FnMut(&[u8]) -> bool) -> Result<(), StoreError> {
        let Existing { folder, file, .. } = &self.existing;
        folder.read_finished_pages(file, 0, each)
    }

    /// Syncs the directory entry too, which completes the proof.
    pub(super) fn confirm(self) -> Result<Durable, StoreError> {
        let folder = &self.existing.folder;
        folder.monitor.check()?;
        folder.sync()?;
        folder.ensure_in_place()?;
        Ok(Durable {
            name: self.existing.name,
            len: self.len,
            crc32: self.crc32,
        })
    }
}

impl Folder {
    /// Makes every change of names so far durable. Callers that come while a sync runs share the
    /// next one.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        let turn = self.syncs_asked.fetch_add(1, Ordering::SeqCst) + 1;
        // A panic cannot leave the number wrong: it changes only after a sync that succeeded.
        let mut covered = self
            .syncs_covered
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // The kernel tells one caller of a failure; whoever comes after it must not believe
        // the success it gets.
        self.monitor.check()?;
        if *covered >= turn {
            return Ok(());
        }
        let covers = self.syncs_asked.load(Ordering::SeqCst);
        if let Err(error) = self
            .monitor
            .timed(|| self.disk.sync_directory(self.handle()))
        {
            let error = self.failure("sync directory", "", error);
            self.monitor.sync_failed(&error);
            return Err(error);
        }
        *covered = covers;
        Ok(())
    }

    /// Replaces a small file of the archive's own.
    pub(super) fn write_small(
        self: &Arc<Self>,
        name: &str,
        content: &[u8],
    ) -> Result<(), StoreError> {
        let mut temporary = Temporary::create(self, name, content.len() as u64)?;
        temporary.append(content)?;
        temporary.sync()?.replace(name)
    }

    /// Keeps a damaged file for a person to look at, under a name nothing else looks at.
    pub(super) fn set_aside(&self, name: &str) -> Result<String, StoreError> {
        self.set_aside_as(name, "damaged")
    }

    /// Keeps a file for a person to look at as `NAME.WHAT`, or with a number behind it; returns that name.
    pub(super) fn set_aside_as(&self, name: &str, what: &str) -> Result<String, StoreError> {
        let mut stored = self.stored_names(name)?;
        if stored.is_empty() {
            // Whoever calls is told that it is gone.
            stored.push(name.to_owned());
        }
        for aside in Self::names_aside(name, what) {
            if self.holds_finished() && self.stat_at(&aside)?.is_some() {
                continue;
            }
            match self.set_each_aside(name, &stored, &aside) {
                Ok(()) => return self.sync().map(|()| aside),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(self.failure("set aside", name, error)),
            }
        }
        Err(self.too_many_aside(name))
    }

    /// Renames the forms of a file: of two, the packed one first, so that a crash in between leaves no other.
    fn set_each_aside(&self, name: &str, stored: &[String], aside: &str) -> io::Result<()> {
        for form in stored.iter().rev() {
            let suffix = form.strip_prefix(name).unwrap_or_default();
            self.rename_to_absent(form, &format!("{aside}{suffix}"))?;
        }
        Ok(())
    }

    /// Keeps what has a name on the disk as a copy of a file that was displaced; not for good until the next sync.
    pub(super) fn keep_beside(&self, stored: &str, name: &str) -> Result<String, StoreError> {
        for aside in Self::names_aside(name, Beside::Displaced.suffix().trim_start_matches('.')) {
            if self.stat_at(&aside)?.is_some() {
                continue;
            }
            match self.rename_to_absent(stored, &aside) {
                Ok(()) => return Ok(aside),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(self.failure("set aside", name, error)),
            }
        }
        Err(self.too_many_aside(name))
    }

    /// What a file that is set aside may be called, in the order in which they are tried.
    fn names_aside(name: &str, what: &str) -> impl Iterator<Item = String> {
        (0..SET_ASIDE_NAMES_MAX).map(move |number| match number {
            0 => format!("{name}.{what}"),
            number => format!("{name}.{what}.{number}"),
        })
    }

    fn too_many_aside(&self, name: &str) -> StoreError {
        let error = io::Error::new(io::ErrorKind::AlreadyExists, "too many damaged copies");
        self.failure("set aside", name, error)
    }

    /// Has two files change names, for good. They have to be stored in one form.
    pub(super) fn exchange(&self, one: &str, other: &str) -> Result<(), StoreError> {
        let is_packed = self.is_packed(one)?;
        let form = |name: &str| self.packed_name(name).filter(|_| is_packed);
        let (one, other) = match (form(one), form(other)) {
            (Some(one), Some(other)) => (one, other),
            _ => (one.to_owned(), other.to_owned()),
        };
        let (one, other) = (one.as_str(), other.as_str());
        let (from, flags) = (self.handle(), RenameFlags::EXCHANGE);
        retry_on_intr(|| fs::renameat_with(from, one, from, other, flags))
            .map_err(|errno| self.failure("exchange with", other, errno.into()))?;
        self.sync()
    }

    /// Removes a file in either form, or what a crash left behind.
    pub(super) fn remove(&self, name: &str) -> Result<(), StoreError> {
        if let Some(packed) = self.packed_name(name) {
            self.remove_stored(&packed)?;
        }
        self.remove_stored(name)
    }

    /// Removes what has this name on the disk.
    pub(super) fn remove_stored(&self, name: &str) -> Result<(), StoreError> {
        match self.disk.remove(self.handle(), name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.failure("remove", name, error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Gives what has a name on the disk another one that nothing has; not for good until the next sync.
    pub(super) fn move_stored(&self, from: &str, to: &str) -> io::Result<()> {
        self.rename_to_absent(from, to)
    }

    fn rename_to_absent(&self, from: &str, to: &str) -> io::Result<()> {
        let directory: BorrowedFd<'_> = self.handle();
        match self.disk.rename_new(directory, from, to) {
            Err(error) if is_unsupported(&error) => {
                self.disk.link(directory, from, to)?;
                // A crash here leaves the file under both names.
                self.disk.remove(directory, from)
            }
            other => other,
        }
    }

    /// Moves a directory to a name that nothing has, for good.
    pub(super) fn rename_directory(&self, from: &str, to: &str) -> Result<(), StoreError> {
        let directory = self.handle();
        let renamed = match self.disk.rename_new(directory, from, to) {
            // A directory has no second name to make, and whoever renames here holds the lock.
            Err(error) if is_unsupported(&error) => match self.disk.stat_at(directory, to) {
                Ok(_) => Err(Errno::EXIST.into()),
                Err(_) => self.disk.rename_over(directory, from, to),
            },
            other => other,
        };
        renamed.map_err(|error| self.failure("rename to", to, error))?;
        self.sync()
    }

    /// Gives a file of a tree its final name, for good.
    pub(super) fn rename_in_tree(
        &self,
        tree: BorrowedFd<'_>,
        from: &str,
        to: &str,
    ) -> Result<(), StoreError> {
        (self.disk.rename_over(tree, from, to))
            .map_err(|error| self.failure("rename to", to, error))?;
        self.sync_names(tree, to)
    }

    /// Makes the names in a directory of a tree durable.
    pub(super) fn sync_names(&self, tree: BorrowedFd<'_>, name: &str) -> Result<(), StoreError> {
        (self.disk.sync_directory(tree)).map_err(|error| self.sync_failure(name, error))
    }

    /// Makes the content of a file of a tree durable and closes it.
    pub(super) fn sync_and_close(&self, file: OwnedFd, name: &str) -> Result<(), StoreError> {
        (self.disk.sync_file(file.as_fd()))
            .and_then(|()| self.disk.close(file))
            .map_err(|error| self.sync_failure(name, error))
    }

    /// Makes a whole tree durable with one call, or file by file where that call would not tell
    /// of failures. `tree` must have been opened before the first byte was written.
    pub(super) fn sync_tree(&self, tree: BorrowedFd<'_>, name: &str) -> Result<(), StoreError> {
        self.monitor.check()?;
        let synced = match self.disk.sync_everything(tree) {
            Err(error) if is_unsupported(&error) => self.sync_each(tree, TREE_DEPTH_MAX),
            other => other,
        };
        synced.map_err(|error| self.sync_failure(name, error))
    }

    fn sync_each(&self, tree: BorrowedFd<'_>, depth_left: usize) -> io::Result<()> {
        let depth_left = depth_left.checked_sub(1).ok_or(Errno::LOOP)?;
        for name in self.disk.entries(tree)? {
            match self.disk.node(tree, &name)? {
                Node::File(_) => {
                    let file = self.disk.open_file(tree, &name)?;
                    self.disk.sync_file(file.as_fd())?;
                }
                Node::Directory => {
                    let below = self.disk.enter(tree, &name)?;
                    self.sync_each(below.as_fd(), depth_left)?;
                }
                Node::Link | Node::Other => {}
            }
        }
        self.disk.sync_directory(tree)
    }

    /// A failed sync of a file: no room is the next file's chance, anything else is for good.
    fn sync_failure(&self, name: &str, error: io::Error) -> StoreError {
        let error = self.failure("sync", name, error);
        if !matches!(error, StoreError::NoSpace { .. }) {
            self.monitor.sync_failed(&error);
        }
        error
    }
}

/// Makes the names in a directory durable that is not the archive's own.
pub(super) fn sync_path(path: &Path, disk: &dyn Disk) -> io::Result<()> {
    let directory = disk.open_directory(path)?;
    disk.sync_directory(directory.as_fd())
}

/// Moves a directory to a path that nothing has, for good; `EXDEV` when that is on another file
/// system. Both directories above are synced, the new one first: a crash in between leaves it
/// under either name, never under none.
pub(super) fn move_directory(from: BorrowedFd<'_>, name: &str, to: &Path) -> io::Result<()> {
    let (Some(above), Some(new_name)) = (to.parent(), to.file_name()) else {
        return Err(Errno::INVAL.into());
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let above = fs::open(above, flags, Mode::empty())?;
    files::rename_new((from, name.as_ref()), (above.as_fd(), new_name))?;
    fs::fsync(&above)?;
    Ok(fs::fsync(from)?)
}

/// What file systems answer that lack `fallocate`, `sync_file_range` or `RENAME_NOREPLACE`.
fn is_unsupported(error: &io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(|errno| {
        matches!(
            errno,
            Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::SPIPE
        )
    })
}
