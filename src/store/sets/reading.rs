//! Reads the files that a set's manifest lists, one after the other, and compares each with its entry: for the
//! receiver's rounds and for `verify`. Never holds a set: whoever restores or removes it does not wait. Invariant: at
//! most one piece of a file and one line of the manifest are in memory.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use aws_lc_rs::digest::Context;
use walmgr_protocol::names::{Lsn, RelativePath};

use super::BackupSets;
use super::error::SetError;
use crate::pg::control::{self, ControlFile};
use crate::pg::layout;
use crate::pg::listed::stored_path;
use crate::pg::manifest::{self, Checksum, FileEntry};
use crate::pg::page::{PAGE_BYTES, Pages};
use crate::store::disk::FileStat;

/// One read: whole pages. Holds two of a manifest's longest lines.
const PIECE_BYTES: usize = 256 << 10;

/// The end of a manifest, with its own checksum in it.
const MANIFEST_END_BYTES: usize = 128;

/// A set that is being read.
pub(super) struct SetReading {
    pub(super) root: OwnedFd,
    pub(super) inode: u64,
    manifest: OwnedFd,
    offset_bytes: u64,
    /// What was read of the manifest and not looked at.
    lines: Vec<u8>,
    pages: Option<SetPages>,
    buffer: Vec<u8>,
}

/// What the pages of a set have to be like.
struct SetPages {
    control: ControlFile,
    /// Where the WAL of the backup begins.
    start: Lsn,
}

/// The file of it that is being read.
pub(super) struct ListedFile {
    handle: OwnedFd,
    pub(super) stat: FileStat,
    pub(super) entry: FileEntry,
    pub(super) read_bytes: u64,
    pub(super) crc32c: u32,
    sha: Option<Context>,
    pages: Option<Pages>,
    /// The first bad page, counted in pages of this file, and how many there are.
    pub(super) bad_pages: Option<(u32, u64)>,
}

/// A file that is not what its manifest lists.
#[derive(Debug)]
pub(super) struct ListedFault {
    pub(super) path: RelativePath,
    /// `None` for one that is gone.
    pub(super) stat: Option<FileStat>,
    /// Where it begins, in bytes from the file's beginning, if that is known.
    pub(super) offset_bytes: Option<u64>,
    pub(super) why: String,
}

/// The next file of a manifest.
pub(super) enum NextListed {
    /// There is none.
    End,
    /// Its line says nothing.
    Faulty(ListedFault),
    Entry(FileEntry),
}

impl SetReading {
    /// Begins a set; `None` for one without a manifest, which cannot be compared with anything. Pages are looked at
    /// where `start` says where the backup's WAL begins.
    pub(super) fn begin(
        sets: &BackupSets,
        root: OwnedFd,
        start: Option<Lsn>,
    ) -> Result<Option<SetReading>, SetError> {
        let parent = &sets.parent;
        let name = layout::BACKUP_MANIFEST;
        let manifest = match parent.disk.open_file(root.as_fd(), name.as_ref()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|error| parent.failure("open", name, error))?,
        };
        let control = sets.read_small(root.as_fd(), "", layout::PG_CONTROL);
        let control = control.ok().and_then(|bytes| control::parse(&bytes).ok());
        Ok(Some(SetReading {
            inode: sets.inode_of(&root)?,
            root,
            manifest,
            offset_bytes: 0,
            lines: Vec::new(),
            pages: (control.zip(start)).map(|(control, start)| SetPages { control, start }),
            buffer: vec![0; PIECE_BYTES],
        }))
    }

    /// What tells this manifest from any other: its own checksum.
    pub(super) fn manifest_crc32(&self, sets: &BackupSets) -> Result<u32, SetError> {
        let (disk, failure) = (&sets.parent.disk, |error| {
            sets.parent.failure("read", layout::BACKUP_MANIFEST, error)
        });
        let stat = disk.stat(self.manifest.as_fd()).map_err(failure)?;
        let mut end = [0; MANIFEST_END_BYTES];
        let from = stat.len.saturating_sub(MANIFEST_END_BYTES as u64);
        let read = disk.read(self.manifest.as_fd(), &mut end, from);
        Ok(crc32fast::hash(&end[..read.map_err(failure)?]))
    }

    /// How long the manifest is, as far as it was read.
    pub(super) const fn manifest_bytes(&self) -> u64 {
        self.offset_bytes
    }

    /// The next file that the manifest lists.
    pub(super) fn next_entry(&mut self, sets: &BackupSets) -> Result<NextListed, SetError> {
        let parent = &sets.parent;
        loop {
            if let Some(end) = self.lines.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.lines.drain(..=end).collect();
                match manifest::entry_in(&line) {
                    None => continue,
                    Some(Ok(entry)) => return Ok(NextListed::Entry(entry)),
                    Some(Err(fault)) => {
                        let path = layout::BACKUP_MANIFEST.parse();
                        let path = path.map_err(|_| SetError::GivenUp {
                            why: fault.to_string(),
                            needs_full: false,
                        })?;
                        return Ok(NextListed::Faulty(ListedFault {
                            path,
                            stat: parent.disk.stat(self.manifest.as_fd()).ok(),
                            offset_bytes: None,
                            why: fault.to_string(),
                        }));
                    }
                }
            }
            let read =
                (parent.disk).read(self.manifest.as_fd(), &mut self.buffer, self.offset_bytes);
            let read =
                read.map_err(|error| parent.failure("read", layout::BACKUP_MANIFEST, error))?;
            // Whoever lists sets has found its checksum right: what is longer than a line ends it too.
            if read == 0 || self.lines.len() >= PIECE_BYTES {
                return Ok(NextListed::End);
            }
            self.offset_bytes += read as u64;
            self.lines.extend_from_slice(&self.buffer[..read]);
        }
    }

    /// Opens a listed file; `None` for a file that may differ from the list in a good set.
    pub(super) fn open(
        &self,
        sets: &BackupSets,
        mut entry: FileEntry,
    ) -> Result<Option<ListedFile>, ListedFault> {
        // Looked at whenever sets are listed; a signal file may have come with other settings.
        if entry.path.as_bytes() == layout::AUTO_CONF.as_bytes() {
            return Ok(None);
        }
        let rules = self.pages.as_ref();
        let pages = rules.and_then(|rules| Pages::of(&entry.path, &rules.control));
        entry.path = stored_path(entry.path);
        let fault = |stat, why: String| ListedFault {
            path: entry.path.clone(),
            stat,
            offset_bytes: None,
            why,
        };
        match sets.open_below(&self.root, &entry.path) {
            Ok((_, stat)) if !stat.is_file => Err(fault(Some(stat), "it is no file".to_owned())),
            Ok((handle, stat)) => Ok(Some(ListedFile {
                handle,
                stat,
                read_bytes: 0,
                crc32c: 0,
                sha: entry.checksum.as_ref().and_then(manifest::sha_of),
                entry,
                pages,
                bad_pages: None,
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(fault(None, "it is gone".to_owned()))
            }
            Err(error) => Err(fault(None, format!("it cannot be opened: {error}"))),
        }
    }

    /// Reads the next piece; `true` when the file is at its end.
    pub(super) fn read_on(
        &mut self,
        sets: &BackupSets,
        file: &mut ListedFile,
    ) -> Result<bool, ListedFault> {
        let (disk, mut filled) = (&sets.parent.disk, 0);
        if file.read_bytes == 0 {
            // The disk is asked, not what is left in memory of writing it.
            let _ = disk.forget_cache(file.handle.as_fd());
        }
        while filled < self.buffer.len() {
            let from = file.read_bytes + filled as u64;
            match disk.read(file.handle.as_fd(), &mut self.buffer[filled..], from) {
                Ok(0) => break,
                Ok(read_bytes) => filled += read_bytes,
                Err(error) => {
                    let mut fault = file.fault(format!("it cannot be read: {error}"));
                    fault.offset_bytes = Some(from);
                    return Err(fault);
                }
            }
        }
        let piece = &self.buffer[..filled];
        file.crc32c = crc32c::crc32c_append(file.crc32c, piece);
        if let Some(sha) = &mut file.sha {
            sha.update(piece);
        }
        if let (Some(pages), Some(rules)) = (file.pages, &self.pages) {
            let first = u32::try_from(file.read_bytes / PAGE_BYTES as u64).unwrap_or(u32::MAX);
            for bad in pages.bad_blocks(piece, first, rules.start) {
                let (first, count) = file.bad_pages.unwrap_or((bad, 0));
                file.bad_pages = Some((first, count + 1));
            }
        }
        file.read_bytes += filled as u64;
        let is_at_end = filled < self.buffer.len();
        if is_at_end {
            // What others read is worth more.
            let _ = disk.forget_cache(file.handle.as_fd());
        }
        Ok(is_at_end)
    }
}

impl ListedFile {
    /// Whether a file that was read to its end is what its manifest lists.
    pub(super) fn compare(mut self) -> Result<ListedFile, ListedFault> {
        let (size, found) = (self.entry.size, self.read_bytes);
        if found != size {
            let mut fault = self.fault(format!("its manifest says {size} bytes, it has {found}"));
            fault.offset_bytes = Some(size.min(found));
            return Err(fault);
        }
        let why = match &self.entry.checksum {
            Some(Checksum::Crc32c(listed)) if *listed != self.crc32c => Some(format!(
                "its CRC-32C is not the manifest's: expected {listed:08X}, found {:08X}",
                self.crc32c
            )),
            Some(Checksum::Sha(listed)) => {
                let found = self.sha.take().map(Context::finish);
                let differs = found.is_some_and(|found| found.as_ref() != &**listed);
                let bits = listed.len() * 8;
                differs.then(|| format!("its SHA-{bits} is not the manifest's"))
            }
            Some(Checksum::Crc32c(_)) => None,
            None => self
                .bad_pages
                .map(|_| "the checksum of a page of it is wrong".to_owned()),
        };
        match why {
            None => Ok(self),
            Some(why) => {
                let mut fault = self.fault(why);
                let page = self.bad_pages.map(|(page, _)| u64::from(page));
                fault.offset_bytes = page.map(|page| page * PAGE_BYTES as u64);
                Err(fault)
            }
        }
    }

    fn fault(&self, why: String) -> ListedFault {
        ListedFault {
            path: self.entry.path.clone(),
            stat: Some(self.stat),
            offset_bytes: None,
            why,
        }
    }
}

impl BackupSets {
    pub(super) fn inode_of(&self, root: &OwnedFd) -> Result<u64, SetError> {
        let parent = &self.parent;
        let stat = parent.disk.stat(root.as_fd());
        let stat = stat.map_err(|error| parent.failure("examine", "a backup set", error))?;
        Ok(stat.identity.inode)
    }

    /// A file of a set, by the path under which the set keeps it.
    pub(super) fn open_below(
        &self,
        root: &OwnedFd,
        path: &RelativePath,
    ) -> io::Result<(OwnedFd, FileStat)> {
        let disk = &self.parent.disk;
        let mut parts = path.components().map(OsStr::from_bytes);
        let mut name = parts.next().unwrap_or_default();
        let mut directory: Option<OwnedFd> = None;
        for next in parts {
            let here = directory.as_ref().unwrap_or(root);
            directory = Some(disk.enter(here.as_fd(), name)?);
            name = next;
        }
        let handle = disk.open_file(directory.as_ref().unwrap_or(root).as_fd(), name)?;
        let stat = disk.stat(handle.as_fd())?;
        Ok((handle, stat))
    }
}
