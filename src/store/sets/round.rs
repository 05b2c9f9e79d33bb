//! Reads the files of all backup sets, piece after piece, and notes the first of each that is not what was sealed.
//! Never holds a set: whoever restores or removes one does not wait. Invariant: a note counts only as long as
//! its file is the one that was read, in the set that it was read in.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use walmgr_protocol::names::RelativePath;

use super::BackupSets;
use super::error::SetError;
use super::round_note::{NotedFile, SetsNote};
use crate::pg::layout;
use crate::pg::manifest::{self, FileEntry};
use crate::pg::tablespace_map::oid_of;
use crate::store::disk::FileStat;

/// What a step reads at most: others use the disk too.
const STEP_BYTES: u64 = 1 << 20;

/// Most files in a step; many are empty.
const STEP_FILES: usize = 64;

/// How much is read again at most after a restart, beside one file.
const NOTED_EVERY_BYTES: u64 = 64 << 20;

/// One read. Holds two of a manifest's longest lines.
const PIECE_BYTES: usize = 256 << 10;

/// A round through all sets.
pub(crate) struct SetsRound {
    sets: BackupSets,
    note: SetsNote,
    /// The sets that follow; `None` between two rounds.
    pending: Option<VecDeque<OwnedFd>>,
    reading: Option<SetReading>,
    unnoted_bytes: u64,
    buffer: Vec<u8>,
}

/// The set that is being read.
struct SetReading {
    root: OwnedFd,
    inode: u64,
    manifest: OwnedFd,
    offset_bytes: u64,
    /// What was read of the manifest and not looked at.
    lines: Vec<u8>,
    /// How many of its files were read, and how many of those that an earlier process read come before.
    passed: u64,
    to_skip: u64,
    file: Option<ListedFile>,
}

/// The file of it that is being read.
struct ListedFile {
    handle: OwnedFd,
    stat: FileStat,
    entry: FileEntry,
    read_bytes: u64,
    crc32c: u32,
}

/// A file that is not what its manifest lists.
struct ListedFault {
    path: RelativePath,
    /// `None` for one that is gone.
    stat: Option<FileStat>,
    why: String,
}

/// How a set is; `None` while that is not known.
type SetFound = Option<Result<(), ListedFault>>;

impl SetsRound {
    /// Goes on where an earlier process was.
    pub(crate) fn of(sets: BackupSets) -> Self {
        SetsRound {
            note: SetsNote::read(&sets.completed),
            sets,
            pending: None,
            reading: None,
            unnoted_bytes: 0,
            buffer: vec![0; PIECE_BYTES],
        }
    }

    /// Whether an earlier process was amid a round.
    pub(crate) const fn is_under_way(&self) -> bool {
        self.note.at.is_some()
    }

    #[cfg(test)]
    pub(super) const fn note(&self) -> &SetsNote {
        &self.note
    }

    /// Reads on; how many bytes, or `None` when the round is over.
    pub(crate) fn step(&mut self) -> Result<Option<u64>, SetError> {
        if let Some(mut reading) = self.reading.take() {
            let (read_bytes, found) = self.read_on(&mut reading)?;
            match found {
                None => self.go_on_with(reading, read_bytes),
                Some(Ok(())) => drop(self.note.damaged.remove(&reading.inode)),
                Some(Err(fault)) => self.settle(&reading, fault)?,
            }
            return Ok(Some(read_bytes));
        }
        let mut pending = match self.pending.take() {
            Some(pending) => pending,
            None => self.list()?,
        };
        let Some(root) = pending.pop_front() else {
            self.note.at = None;
            self.forget_what_is_gone()?;
            self.write();
            return Ok(None);
        };
        self.pending = Some(pending);
        self.reading = self.begin(root)?;
        Ok(Some(0))
    }

    /// The sets that can be read, newest first, from the one on in which an earlier process was.
    fn list(&self) -> Result<VecDeque<OwnedFd>, SetError> {
        let mut roots = VecDeque::from(self.sets.open_sound()?);
        if let Some((inode, _)) = self.note.at {
            let inodes = roots.iter().map(|root| self.inode_of(root));
            let inodes = inodes.collect::<Result<Vec<u64>, SetError>>()?;
            if let Some(place) = inodes.iter().position(|one| *one == inode) {
                roots.drain(..place);
            }
        }
        Ok(roots)
    }

    fn inode_of(&self, root: &OwnedFd) -> Result<u64, SetError> {
        let parent = &self.sets.parent;
        let stat = parent.disk.stat(root.as_fd());
        let stat = stat.map_err(|error| parent.failure("examine", "a backup set", error))?;
        Ok(stat.identity.inode)
    }

    /// Begins a set; `None` for one without a manifest, which cannot be compared with anything.
    fn begin(&mut self, root: OwnedFd) -> Result<Option<SetReading>, SetError> {
        let parent = &self.sets.parent;
        let manifest = match parent
            .disk
            .open_file(root.as_fd(), layout::BACKUP_MANIFEST.as_ref())
        {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => {
                other.map_err(|error| parent.failure("open", layout::BACKUP_MANIFEST, error))?
            }
        };
        let inode = self.inode_of(&root)?;
        let known = self.note.at.filter(|(known, _)| *known == inode);
        let passed = known.map_or(0, |(_, passed)| passed);
        self.note.at = Some((inode, passed));
        self.write();
        Ok(Some(SetReading {
            root,
            inode,
            manifest,
            offset_bytes: 0,
            lines: Vec::new(),
            passed,
            to_skip: passed,
            file: None,
        }))
    }

    fn go_on_with(&mut self, reading: SetReading, read_bytes: u64) {
        self.unnoted_bytes += read_bytes;
        if self.unnoted_bytes >= NOTED_EVERY_BYTES {
            self.unnoted_bytes = 0;
            self.note.at = Some((reading.inode, reading.passed));
            self.write();
        }
        self.reading = Some(reading);
    }

    /// How much was read, and how the set is once that is known.
    fn read_on(&mut self, reading: &mut SetReading) -> Result<(u64, SetFound), SetError> {
        let (mut read_bytes, mut files) = (0, 0);
        while read_bytes < STEP_BYTES && files < STEP_FILES {
            let ended = match &mut reading.file {
                Some(file) => match self.sets.read_piece(file, &mut self.buffer) {
                    Ok(0) => compare(file),
                    Ok(bytes) => {
                        read_bytes += bytes;
                        continue;
                    }
                    Err(error) => Err(fault_of(file, format!("it cannot be read: {error}"))),
                },
                None => match self.next_entry(reading)? {
                    None => return Ok((read_bytes, Some(Ok(())))),
                    Some(Err(fault)) => Err(fault),
                    Some(Ok(entry)) => match self.sets.open_listed(reading, entry) {
                        Ok(Some(file)) => {
                            reading.file = Some(file);
                            continue;
                        }
                        Ok(None) => Ok(()),
                        Err(fault) => Err(fault),
                    },
                },
            };
            if let Err(fault) = ended {
                return Ok((read_bytes, Some(Err(fault))));
            }
            if let Some(file) = reading.file.take() {
                // What others read is worth more.
                let _ = self.sets.parent.disk.forget_cache(file.handle.as_fd());
            }
            reading.passed += 1;
            files += 1;
        }
        Ok((read_bytes, None))
    }

    /// The next file that the manifest lists.
    fn next_entry(
        &mut self,
        reading: &mut SetReading,
    ) -> Result<Option<Result<FileEntry, ListedFault>>, SetError> {
        let parent = &self.sets.parent;
        loop {
            if let Some(end) = reading.lines.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = reading.lines.drain(..=end).collect();
                match manifest::entry_in(&line) {
                    None => continue,
                    Some(_) if reading.to_skip > 0 => reading.to_skip -= 1,
                    Some(Ok(entry)) => return Ok(Some(Ok(entry))),
                    Some(Err(fault)) => {
                        let stat = parent.disk.stat(reading.manifest.as_fd()).ok();
                        let path = layout::BACKUP_MANIFEST.parse();
                        let path = path.map_err(|_| SetError::GivenUp {
                            why: fault.to_string(),
                        })?;
                        let why = fault.to_string();
                        return Ok(Some(Err(ListedFault { path, stat, why })));
                    }
                }
                continue;
            }
            let read = (parent.disk).read(
                reading.manifest.as_fd(),
                &mut self.buffer,
                reading.offset_bytes,
            );
            let read =
                read.map_err(|error| parent.failure("read", layout::BACKUP_MANIFEST, error))?;
            // Whoever lists sets has found its checksum right: what is longer than a line ends it too.
            if read == 0 || reading.lines.len() >= PIECE_BYTES {
                return Ok(None);
            }
            reading.offset_bytes += read as u64;
            reading.lines.extend_from_slice(&self.buffer[..read]);
        }
    }

    /// Notes what was found, if it is still so and the set is one.
    fn settle(&mut self, reading: &SetReading, fault: ListedFault) -> Result<(), SetError> {
        let noted = NotedFile::of(&fault.path, fault.stat.as_ref(), &fault.why);
        if !self.sets.is_as_noted(&reading.root, &noted) || !self.sets.is_listed(&reading.root)? {
            return Ok(());
        }
        let before = self.note.damaged.get(&reading.inode);
        if before != Some(&noted) {
            let (file, why) = (fault.path.to_string(), &noted.why);
            let set = reading.inode;
            tracing::error!(set, %file, why, "ALARM: a file of a backup set is damaged");
        }
        self.note.insert(reading.inode, noted);
        self.write();
        Ok(())
    }

    fn forget_what_is_gone(&mut self) -> Result<(), SetError> {
        let mut listed = Vec::new();
        for root in self.sets.open_sound()? {
            listed.push((self.inode_of(&root)?, root));
        }
        let sets = &self.sets;
        self.note.damaged.retain(|inode, noted| {
            let mut named = listed.iter().filter(|(one, _)| one == inode);
            named.any(|(_, root)| sets.is_as_noted(root, noted))
        });
        Ok(())
    }

    /// A note that cannot be written costs the next start its place, and `status` a word.
    fn write(&self) {
        if let Err(error) = self.note.write(&self.sets.completed) {
            tracing::debug!("cannot note the damage found in backup sets: {error}");
        }
    }
}

impl BackupSets {
    /// What a round found damaged in the set in this directory.
    pub(super) fn damaged_file(&self, note: &SetsNote, root: &OwnedFd) -> Option<String> {
        let stat = self.parent.disk.stat(root.as_fd()).ok()?;
        let noted = note.damaged.get(&stat.identity.inode)?;
        let is_so = self.is_as_noted(root, noted);
        is_so.then(|| format!("its {}: {}", noted.path, noted.why))
    }

    fn is_as_noted(&self, root: &OwnedFd, noted: &NotedFile) -> bool {
        match self.open_below(root, &noted.path) {
            Ok((_, stat)) => noted.is_of(Some(&stat)),
            Err(_) => noted.is_of(None),
        }
    }

    /// A file of a set, by the path under which the set keeps it.
    fn open_below(&self, root: &OwnedFd, path: &RelativePath) -> io::Result<(OwnedFd, FileStat)> {
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

    /// Opens a file that is listed; `None` for one that a set need not have as it is listed.
    fn open_listed(
        &self,
        reading: &SetReading,
        mut entry: FileEntry,
    ) -> Result<Option<ListedFile>, ListedFault> {
        // Looked at whenever sets are listed; a signal file may have come with other settings.
        if entry.path.as_bytes() == layout::AUTO_CONF.as_bytes() {
            return Ok(None);
        }
        entry.path = stored_path(entry.path);
        let fault = |stat, why: String| ListedFault {
            path: entry.path.clone(),
            stat,
            why,
        };
        match self.open_below(&reading.root, &entry.path) {
            Ok((_, stat)) if !stat.is_file => Err(fault(Some(stat), "it is no file".to_owned())),
            Ok((handle, stat)) => {
                // The disk is asked, not what is left in memory of writing it.
                let _ = self.parent.disk.forget_cache(handle.as_fd());
                Ok(Some(ListedFile {
                    handle,
                    stat,
                    entry,
                    read_bytes: 0,
                    crc32c: 0,
                }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(fault(None, "it is gone".to_owned()))
            }
            Err(error) => Err(fault(None, format!("it cannot be opened: {error}"))),
        }
    }

    fn read_piece(&self, file: &mut ListedFile, buffer: &mut [u8]) -> io::Result<u64> {
        let read = (self.parent.disk).read(file.handle.as_fd(), buffer, file.read_bytes)?;
        file.crc32c = crc32c::crc32c_append(file.crc32c, &buffer[..read]);
        file.read_bytes += read as u64;
        Ok(read as u64)
    }
}

fn compare(file: &ListedFile) -> Result<(), ListedFault> {
    let (size, found) = (file.entry.size, file.read_bytes);
    if found != size {
        let why = format!("its manifest says {size} bytes, it has {found}");
        return Err(fault_of(file, why));
    }
    match file.entry.crc32c() {
        Some(listed) if listed != file.crc32c => Err(fault_of(
            file,
            "its CRC-32C is not the manifest's".to_owned(),
        )),
        _ => Ok(()),
    }
}

fn fault_of(file: &ListedFile, why: String) -> ListedFault {
    ListedFault {
        path: file.entry.path.clone(),
        stat: Some(file.stat),
        why,
    }
}

/// Where a set keeps what the manifest lists under this path.
fn stored_path(path: RelativePath) -> RelativePath {
    let below = path.as_bytes().strip_prefix(layout::PG_TBLSPC.as_bytes());
    let below = below.and_then(|below| below.strip_prefix(b"/"));
    let oid = below.and_then(|below| below.split(|byte| *byte == b'/').next());
    let moved = below.filter(|_| oid.is_some_and(|oid| oid_of(oid).is_some()));
    moved
        .map(|below| [layout::TMPSPC.as_bytes(), b"/", below].concat())
        .and_then(|moved| RelativePath::new(&moved).ok())
        .unwrap_or(path)
}
