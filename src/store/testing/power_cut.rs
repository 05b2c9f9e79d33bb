//! A disk that knows what a power cut would leave behind.
//! Never loses anything by itself: the test asks for one of the possible outcomes. Invariant: only
//! a sync makes content or names durable; everything else may or may not have reached the disk.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::files::FileId;
use crate::store::disk::{Disk, FileStat};
use crate::store::real_disk::RealDisk;
use crate::store::tree::{Node, Tree};

/// What became of content that was written but not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// As it was at the last sync.
    Synced,
    /// All of it arrived.
    Written,
    /// The length arrived, the bytes did not.
    Zeros,
    /// The first half arrived.
    Half,
}

/// One of the states a power cut may leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) content: Content,
    /// How many of each directory's unsynced changes arrived, in their order.
    pub(crate) changes: usize,
}

enum Change {
    Add(OsString, FileId),
    Remove(OsString),
    Rename(OsString, OsString, FileId),
}

struct DirectoryModel {
    durable: BTreeMap<OsString, FileId>,
    unsynced: Vec<Change>,
}

struct FileModel {
    /// Kept open so that its inode number is not used again.
    file: File,
    durable: Vec<u8>,
    is_dirty: bool,
}

#[derive(Default)]
struct Model {
    root: Option<FileId>,
    directories: HashMap<FileId, DirectoryModel>,
    files: HashMap<FileId, FileModel>,
    open_directories: Vec<OwnedFd>,
    /// Symbolic links and where they lead; a link has no content to sync.
    links: HashMap<FileId, PathBuf>,
    syncs: usize,
    swallowed: Option<usize>,
}

/// A real disk with a model beside it of what a power cut would leave.
pub(crate) struct PowerCutDisk(Mutex<Model>);

impl PowerCutDisk {
    /// Takes everything below `root` as durable.
    pub(crate) fn new(root: &Path) -> Arc<Self> {
        let mut model = Model::default();
        model.root = Some(model.adopt_directory(root));
        Arc::new(PowerCutDisk(Mutex::new(model)))
    }

    /// Makes the sync with this number, counted from the next one, do nothing.
    pub(crate) fn swallow_sync(&self, number: usize) {
        let mut model = self.0.lock().unwrap();
        model.swallowed = Some(model.syncs + number);
    }

    /// How many syncs were asked for.
    pub(crate) fn syncs(&self) -> usize {
        self.0.lock().unwrap().syncs
    }

    /// Every state that a power cut at this moment may leave.
    pub(crate) fn outcomes(&self) -> Vec<Outcome> {
        let model = self.0.lock().unwrap();
        let changes = model
            .directories
            .values()
            .map(|directory| directory.unsynced.len());
        let most = changes.max().unwrap_or(0);
        let contents = if model.files.values().any(|file| file.is_dirty) {
            &[
                Content::Synced,
                Content::Written,
                Content::Zeros,
                Content::Half,
            ][..]
        } else {
            &[Content::Synced]
        };
        (0..=most)
            .flat_map(|changes| {
                contents.iter().map(move |content| Outcome {
                    content: *content,
                    changes,
                })
            })
            .collect()
    }

    /// Builds below `target` what the outcome leaves below the root.
    pub(crate) fn cut(&self, outcome: Outcome, target: &Path) {
        let mut model = self.0.lock().unwrap();
        let root = model.root.unwrap();
        model.build(root, outcome, target);
    }

    fn synced(&self, apply: impl FnOnce(&mut Model)) {
        let mut model = self.0.lock().unwrap();
        let number = model.syncs;
        model.syncs += 1;
        if model.swallowed != Some(number) {
            apply(&mut model);
        }
    }

    fn change(&self, directory: BorrowedFd<'_>, change: Change) -> io::Result<()> {
        let identity = RealDisk.stat(directory)?.identity;
        let mut model = self.0.lock().unwrap();
        model
            .directories
            .get_mut(&identity)
            .unwrap()
            .unsynced
            .push(change);
        Ok(())
    }

    fn dirty(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        let identity = RealDisk.stat(file)?.identity;
        self.0
            .lock()
            .unwrap()
            .files
            .get_mut(&identity)
            .unwrap()
            .is_dirty = true;
        Ok(())
    }

    fn track_new(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        let file = File::from(RealDisk.open_file(directory, name)?);
        let identity = RealDisk.stat(file.as_fd())?.identity;
        let durable = Vec::new();
        let is_dirty = true;
        self.0.lock().unwrap().files.insert(
            identity,
            FileModel {
                file,
                durable,
                is_dirty,
            },
        );
        self.change(directory, Change::Add(name.to_owned(), identity))
    }
}

impl Model {
    fn adopt_directory(&mut self, path: &Path) -> FileId {
        let mut durable = BTreeMap::new();
        for entry in std::fs::read_dir(path).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name();
            let kind = entry.file_type().unwrap();
            let identity = if kind.is_dir() {
                self.adopt_directory(&entry.path())
            } else if kind.is_symlink() {
                self.adopt_link(&entry.path())
            } else {
                self.adopt_file(&entry.path())
            };
            durable.insert(name, identity);
        }
        let identity = identity_of(path);
        let unsynced = Vec::new();
        self.directories
            .insert(identity, DirectoryModel { durable, unsynced });
        identity
    }

    fn adopt_link(&mut self, path: &Path) -> FileId {
        let identity = identity_of(path);
        let target = std::fs::read_link(path).unwrap();
        self.links.insert(identity, target);
        identity
    }

    fn adopt_file(&mut self, path: &Path) -> FileId {
        let model = FileModel {
            file: File::open(path).unwrap(),
            durable: std::fs::read(path).unwrap(),
            is_dirty: false,
        };
        let identity = identity_of(path);
        self.files.insert(identity, model);
        identity
    }

    fn build(&mut self, identity: FileId, outcome: Outcome, target: &Path) {
        if let Some(leads_to) = self.links.get(&identity) {
            std::os::unix::fs::symlink(leads_to, target).unwrap();
            return;
        }
        let Some(directory) = self.directories.get(&identity) else {
            let content = self
                .files
                .get_mut(&identity)
                .unwrap()
                .after(outcome.content);
            std::fs::write(target, content).unwrap();
            return;
        };
        let mut names = directory.durable.clone();
        for change in directory.unsynced.iter().take(outcome.changes) {
            apply(&mut names, change);
        }
        if !target.exists() {
            std::fs::create_dir(target).unwrap();
        }
        for (name, identity) in names {
            self.build(identity, outcome, &target.join(name));
        }
    }
}

impl FileModel {
    fn current(&mut self) -> Vec<u8> {
        let mut content = Vec::new();
        self.file.rewind().unwrap();
        self.file.read_to_end(&mut content).unwrap();
        content
    }

    fn after(&mut self, content: Content) -> Vec<u8> {
        if !self.is_dirty {
            return self.durable.clone();
        }
        let current = self.current();
        match content {
            Content::Synced => self.durable.clone(),
            Content::Written => current,
            Content::Zeros => self.mixed(&current, 0),
            Content::Half => {
                let same = |(ours, theirs): &(&u8, &u8)| ours == theirs;
                let first = current.iter().zip(&self.durable).take_while(same).count();
                let last = match current.len() == self.durable.len() {
                    true => {
                        let behind = current.iter().rev().zip(self.durable.iter().rev());
                        current.len() - behind.take_while(same).count()
                    }
                    false => current.len(),
                };
                self.mixed(&current, first + last.saturating_sub(first) / 2)
            }
        }
    }

    /// What changed below `arrived` as it is, and zeros where it changed behind that: what was
    /// synced before is not lost because something beside it was written.
    fn mixed(&self, current: &[u8], arrived: usize) -> Vec<u8> {
        const PIECE_BYTES: usize = 4096;
        let mut mixed = Vec::with_capacity(current.len());
        for (index, piece) in current.chunks(PIECE_BYTES).enumerate() {
            let begin = index * PIECE_BYTES;
            let durable = self.durable.get(begin..begin + piece.len());
            if durable == Some(piece) || begin + piece.len() <= arrived {
                mixed.extend_from_slice(piece);
                continue;
            }
            mixed.extend(piece.iter().enumerate().map(|(offset, byte)| {
                let is_durable = self.durable.get(begin + offset) == Some(byte);
                let stays = is_durable || begin + offset < arrived;
                if stays { *byte } else { 0 }
            }));
        }
        mixed
    }
}

impl Disk for PowerCutDisk {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        RealDisk.create_directory(path)?;
        let parent = RealDisk.open_directory(&path.parent().unwrap().join("."))?;
        let name = path.file_name().unwrap().to_owned();
        let identity = self.0.lock().unwrap().adopt_directory(path);
        self.change(parent.as_fd(), Change::Add(name, identity))
    }

    fn open_directory(&self, path: &Path) -> io::Result<OwnedFd> {
        RealDisk.open_directory(path)
    }

    fn identity_at(&self, path: &Path) -> io::Result<FileId> {
        RealDisk.identity_at(path)
    }

    fn stat(&self, file: BorrowedFd<'_>) -> io::Result<FileStat> {
        RealDisk.stat(file)
    }

    fn stat_at(&self, directory: BorrowedFd<'_>, name: &str) -> io::Result<FileStat> {
        RealDisk.stat_at(directory, name)
    }

    fn names(&self, directory: BorrowedFd<'_>) -> io::Result<Vec<String>> {
        RealDisk.names(directory)
    }

    fn create(&self, directory: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
        let file = RealDisk.create(directory, name)?;
        self.track_new(directory, name.as_ref())?;
        Ok(file)
    }

    fn open(&self, directory: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
        RealDisk.open(directory, name)
    }

    fn open_lock(&self, directory: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
        let is_new = RealDisk.stat_at(directory, name).is_err();
        let file = RealDisk.open_lock(directory, name)?;
        if is_new {
            self.track_new(directory, name.as_ref())?;
        }
        Ok(file)
    }

    fn open_lock_to_hold(&self, directory: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
        let is_new = RealDisk.stat_at(directory, name).is_err();
        let file = RealDisk.open_lock_to_hold(directory, name)?;
        if is_new {
            self.track_new(directory, name.as_ref())?;
        }
        Ok(file)
    }

    fn reopen(&self, directory: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
        RealDisk.reopen(directory, name)
    }

    fn lock(&self, file: BorrowedFd<'_>) -> io::Result<bool> {
        RealDisk.lock(file)
    }

    fn read(&self, file: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        RealDisk.read(file, buffer, offset)
    }

    fn allocate(&self, file: BorrowedFd<'_>, len: u64) -> io::Result<()> {
        self.dirty(file)?;
        RealDisk.allocate(file, len)
    }

    fn write(&self, file: BorrowedFd<'_>, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.dirty(file)?;
        RealDisk.write(file, bytes, offset)
    }

    fn set_len(&self, file: BorrowedFd<'_>, len: u64) -> io::Result<()> {
        self.dirty(file)?;
        RealDisk.set_len(file, len)
    }

    fn share_content(&self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
        let _ = (from, to);
        Err(io::ErrorKind::Unsupported.into())
    }

    fn set_modified(&self, file: BorrowedFd<'_>, modified_ns: i64) -> io::Result<()> {
        RealDisk.set_modified(file, modified_ns)
    }

    fn start_writeback(&self, file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
        RealDisk.start_writeback(file, offset, len)
    }

    fn forget_cache(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        RealDisk.forget_cache(file)
    }

    fn sync_file(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        let identity = RealDisk.stat(file)?.identity;
        self.synced(|model| {
            let file = model.files.get_mut(&identity).unwrap();
            file.durable = file.current();
            file.is_dirty = false;
        });
        Ok(())
    }

    fn sync_bytes(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        self.sync_file(file)
    }

    fn close(&self, file: OwnedFd) -> io::Result<()> {
        RealDisk.close(file)
    }

    fn rename_new(&self, directory: BorrowedFd<'_>, from: &str, to: &str) -> io::Result<()> {
        let identity = RealDisk.stat_at(directory, from)?.identity;
        RealDisk.rename_new(directory, from, to)?;
        self.change(directory, Change::Rename(from.into(), to.into(), identity))
    }

    fn rename_over(&self, directory: BorrowedFd<'_>, from: &str, to: &str) -> io::Result<()> {
        let identity = RealDisk.stat_at(directory, from)?.identity;
        RealDisk.rename_over(directory, from, to)?;
        self.change(directory, Change::Rename(from.into(), to.into(), identity))
    }

    fn link(&self, directory: BorrowedFd<'_>, from: &str, to: &str) -> io::Result<()> {
        let identity = RealDisk.stat_at(directory, from)?.identity;
        RealDisk.link(directory, from, to)?;
        self.change(directory, Change::Add(to.into(), identity))
    }

    fn link_into(
        &self,
        directory: BorrowedFd<'_>,
        from: &str,
        other: BorrowedFd<'_>,
        to: &str,
    ) -> io::Result<()> {
        let identity = RealDisk.stat_at(directory, from)?.identity;
        RealDisk.link_into(directory, from, other, to)?;
        self.change(other, Change::Add(to.into(), identity))
    }

    fn remove(&self, directory: BorrowedFd<'_>, name: &str) -> io::Result<()> {
        RealDisk.remove(directory, name)?;
        self.change(directory, Change::Remove(name.into()))
    }

    fn sync_directory(&self, directory: BorrowedFd<'_>) -> io::Result<()> {
        let identity = RealDisk.stat(directory)?.identity;
        self.synced(|model| {
            // Directories above the root are not the test's.
            if let Some(directory) = model.directories.get_mut(&identity) {
                for change in std::mem::take(&mut directory.unsynced) {
                    apply(&mut directory.durable, &change);
                }
            }
        });
        Ok(())
    }

    fn free_bytes(&self, directory: BorrowedFd<'_>) -> io::Result<u64> {
        RealDisk.free_bytes(directory)
    }
}

impl Tree for PowerCutDisk {
    fn make_directory(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        RealDisk.make_directory(directory, name)?;
        let made = RealDisk.enter(directory, name)?;
        let identity = RealDisk.stat(made.as_fd())?.identity;
        let mut model = self.0.lock().unwrap();
        let (durable, unsynced) = (BTreeMap::new(), Vec::new());
        // Kept open so that its inode number is not used again.
        model.open_directories.push(made);
        model
            .directories
            .insert(identity, DirectoryModel { durable, unsynced });
        drop(model);
        self.change(directory, Change::Add(name.to_owned(), identity))
    }

    fn enter(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
        RealDisk.enter(directory, name)
    }

    fn enter_linked(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
        RealDisk.enter_linked(directory, name)
    }

    fn make_file(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
        let file = RealDisk.make_file(directory, name)?;
        self.track_new(directory, name)?;
        Ok(file)
    }

    fn reopen_file(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
        RealDisk.reopen_file(directory, name)
    }

    fn open_file(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
        RealDisk.open_file(directory, name)
    }

    fn make_link(&self, directory: BorrowedFd<'_>, name: &OsStr, target: &OsStr) -> io::Result<()> {
        RealDisk.make_link(directory, name, target)?;
        let stat = rustix::fs::statat(directory, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
        let identity = FileId::of(&stat);
        self.0.lock().unwrap().links.insert(identity, target.into());
        self.change(directory, Change::Add(name.to_owned(), identity))
    }

    fn node(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<Node> {
        RealDisk.node(directory, name)
    }

    fn entries(&self, directory: BorrowedFd<'_>) -> io::Result<Vec<OsString>> {
        RealDisk.entries(directory)
    }

    fn remove_name(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        RealDisk.remove_name(directory, name)?;
        self.change(directory, Change::Remove(name.to_owned()))
    }

    fn remove_directory(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        RealDisk.remove_directory(directory, name)?;
        self.change(directory, Change::Remove(name.to_owned()))
    }

    fn lock_shared(&self, file: BorrowedFd<'_>) -> io::Result<bool> {
        RealDisk.lock_shared(file)
    }

    fn sync_everything(&self, _directory: BorrowedFd<'_>) -> io::Result<()> {
        self.synced(|model| {
            for file in model.files.values_mut().filter(|file| file.is_dirty) {
                file.durable = file.current();
                file.is_dirty = false;
            }
            for directory in model.directories.values_mut() {
                for change in std::mem::take(&mut directory.unsynced) {
                    apply(&mut directory.durable, &change);
                }
            }
        });
        Ok(())
    }
}

fn apply(names: &mut BTreeMap<OsString, FileId>, change: &Change) {
    match change {
        Change::Add(name, identity) => {
            names.insert(name.clone(), *identity);
        }
        Change::Remove(name) => {
            names.remove(name);
        }
        Change::Rename(from, to, identity) => {
            names.remove(from);
            names.insert(to.clone(), *identity);
        }
    }
}

fn identity_of(path: &Path) -> FileId {
    let metadata = std::fs::symlink_metadata(PathBuf::from(path)).unwrap();
    FileId::of_metadata(&metadata)
}
