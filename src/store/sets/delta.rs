//! Compares a set with an old data directory, of which `take_over` takes what is as the manifest lists it.
//! Never changes anything. Invariant: a verdict is about a file that was read, and there is none before every file that is
//! needed of the set was found good.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use rustix::io::Errno;
use walmgr_protocol::names::RelativePath;

use super::error::SetError;
use super::list::HeldSet;
use super::slices::{Slice, from_offset};
use crate::files::ChangeStamp;
use crate::files::slices::SLICE_BYTES;
use crate::pg::hashed_pages::HashedPages;
use crate::pg::layout;
use crate::pg::listed::{Listed, listed_path};
use crate::pg::manifest::{FileEntry, ListedDigest, Reader};
use crate::pg::old_files::{ChangedBlocks, OldFiles, PIECE_BYTES};
use crate::store::disk::read_full;
use crate::store::durable::TREE_DEPTH_MAX;
use crate::store::tree::Node;

/// How many compare at once: reading is what costs, and the server's host has other work.
const THREADS: usize = 2;

/// An old data directory, and what of it was taken over.
pub struct DeltaSource {
    pub(super) old: OldFiles,
    /// By the path that the manifest has.
    entries: HashMap<RelativePath, FileEntry>,
    /// Of files that are to change directories; none where they are cloned.
    pub(super) verdicts: Option<HashMap<PathBuf, Verdict>>,
    /// Bytes that did not have to be brought.
    pub(super) taken_bytes: u64,
    /// Bytes that came from the set.
    pub(super) brought_bytes: u64,
}

/// What there is of a file in the old directory.
pub(super) struct Verdict {
    pub(super) len: u64,
    /// Of the file as it has to be.
    pub(super) crc32c: u32,
    /// The old one, as it was read.
    pub(super) old: ChangeStamp,
    pub(super) changed: ChangedBlocks,
}

impl HeldSet {
    /// Takes files over from this directory, which may be written meanwhile: they are cloned where the file system
    /// can do that, and copied from the set elsewhere.
    pub(crate) fn beside(&self, old: OldFiles) -> Result<DeltaSource, SetError> {
        let mut entries = HashMap::new();
        if let Some(manifest) = self.manifest()? {
            let bad = |fault| self.bad_manifest(&fault);
            for entry in Reader::new(&manifest).map_err(bad)? {
                let entry = entry.map_err(bad)?;
                entries.insert(entry.path.clone(), entry);
            }
        }
        Ok(DeltaSource {
            old,
            entries,
            verdicts: None,
            taken_bytes: 0,
            brought_bytes: 0,
        })
    }

    /// Compares the files of this directory, which nobody may write any more, and reads all that will be needed of
    /// the set. Changes nothing. Hears how many bytes of the set were looked at.
    pub(crate) fn compare_in_place(
        &self,
        old: OldFiles,
        progress: &mut dyn FnMut(u64),
    ) -> Result<DeltaSource, SetError> {
        let mut taken = self.beside(old)?;
        let mut files = self.files()?;
        self.check_names(&files, &taken.entries)?;
        // The longest first, so that nobody waits for a thread that began with it last.
        files.sort_by_key(|(path, len)| (std::cmp::Reverse(*len), path.clone()));
        let comparison = DirectoryComparison {
            set: self,
            taken: &taken,
            files: &files,
            next: AtomicUsize::new(0),
            bytes: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
        };
        let verdicts = std::thread::scope(|scope| {
            let others: Vec<_> = (1..THREADS)
                .map(|_| scope.spawn(|| comparison.run(&mut |_| {})))
                .collect();
            let mut verdicts = comparison.run(progress)?;
            for other in others {
                let lost = || SetError::GivenUp {
                    why: "a thread that compares ended".to_owned(),
                    needs_full: false,
                };
                verdicts.extend(other.join().map_err(|_| lost())??);
            }
            Ok::<_, SetError>(verdicts)
        })?;
        taken.verdicts = Some(verdicts);
        Ok(taken)
    }

    /// The bytes of the files that none of these directories has a file of the same length for: at least so much is
    /// new outside of the tablespaces that go elsewhere.
    pub(crate) fn bytes_beyond(
        &self,
        old: &[OldFiles],
        is_elsewhere: &dyn Fn(&OsStr) -> bool,
    ) -> Result<u64, SetError> {
        let mut bytes = 0;
        for (path, len) in self.files()? {
            let mut parts = path.iter();
            let is_in_space = parts.next() == Some(OsStr::new(layout::TMPSPC));
            let is_mapped = is_in_space && parts.next().is_some_and(is_elsewhere);
            let Some(path) = relative(&path).filter(|_| !is_mapped) else {
                continue;
            };
            let mut found = old.iter().filter_map(|old| old.find(&path));
            if !found.any(|found| found.len() == len) {
                bytes += len;
            }
        }
        Ok(bytes)
    }

    /// Refuses a set that lacks a file, or has one more, than its manifest lists.
    fn check_names(
        &self,
        files: &[(PathBuf, u64)],
        entries: &HashMap<RelativePath, FileEntry>,
    ) -> Result<(), SetError> {
        let Some(manifest) = self.manifest()? else {
            return Ok(());
        };
        let listed = Listed::parse(&manifest);
        let mut listed = listed.map_err(|fault| self.bad_manifest(&fault))?;
        for (path, len) in files {
            let Some(path) = relative(path) else { continue };
            // Its content is compared elsewhere; that of the settings here, where alone it may differ.
            let (len, crc32c) = match entries.get(&listed_path(&path)) {
                Some(_) if path.as_bytes() == layout::AUTO_CONF.as_bytes() => {
                    let digest = self.digest(&path)?;
                    (digest.len(), digest.crc32c())
                }
                Some(entry) => (entry.size, entry.crc32c().unwrap_or_default()),
                None => (*len, 0),
            };
            let passed = listed.pass(&path, len, crc32c);
            passed.map_err(|why| SetError::Manifest { path, why })?;
        }
        let finished = listed.finish();
        finished.map_err(|(path, why)| SetError::Manifest { path, why })
    }

    /// Its files with their lengths.
    fn files(&self) -> Result<Vec<(PathBuf, u64)>, SetError> {
        let mut files = Vec::new();
        self.add_files(self.directory(), Path::new(""), &mut files)?;
        Ok(files)
    }

    fn add_files(
        &self,
        here: BorrowedFd<'_>,
        path: &Path,
        files: &mut Vec<(PathBuf, u64)>,
    ) -> Result<(), SetError> {
        if path.components().count() > TREE_DEPTH_MAX {
            return Err(self.failure("list", path, Errno::LOOP.into()));
        }
        let disk = &self.sets.parent.disk;
        let names = disk.entries(here);
        for name in names.map_err(|error| self.failure("list", path, error))? {
            let path = path.join(&name);
            match disk.node(here, &name) {
                Ok(Node::File(len)) => files.push((path, len)),
                Ok(Node::Directory) => {
                    let below = disk.enter(here, &name);
                    let below = below.map_err(|error| self.failure("open", &path, error))?;
                    self.add_files(below.as_fd(), &path, files)?;
                }
                Ok(Node::Link | Node::Other) => self.pass_over(&path)?,
                Err(error) => return Err(self.failure("examine", &path, error)),
            }
        }
        Ok(())
    }
}

impl DeltaSource {
    /// How many bytes did not have to be brought, and how many were.
    pub(crate) const fn counts(&self) -> (u64, u64) {
        (self.taken_bytes, self.brought_bytes)
    }

    pub(super) fn entry(&self, path: &RelativePath) -> Option<&FileEntry> {
        self.entries.get(&listed_path(path))
    }
}

/// Files that are compared by several threads.
struct DirectoryComparison<'a> {
    set: &'a HeldSet,
    taken: &'a DeltaSource,
    files: &'a [(PathBuf, u64)],
    next: AtomicUsize,
    bytes: AtomicU64,
    /// Whether one of them has failed.
    is_over: AtomicBool,
}

impl DirectoryComparison<'_> {
    fn run(&self, progress: &mut dyn FnMut(u64)) -> Result<HashMap<PathBuf, Verdict>, SetError> {
        let (mut verdicts, mut told_bytes) = (HashMap::new(), 0);
        let mut buffer = vec![0; PIECE_BYTES];
        while let Some((path, len)) = self.files.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            if self.is_over.load(Ordering::Relaxed) {
                break;
            }
            let verdict = self.judge((path, *len), &mut buffer).inspect_err(|_| {
                self.is_over.store(true, Ordering::Relaxed);
            })?;
            verdicts.extend(verdict.map(|verdict| (path.clone(), verdict)));
            let bytes = self.bytes.fetch_add(*len, Ordering::Relaxed) + len;
            progress(bytes.saturating_sub(told_bytes));
            told_bytes = bytes.max(told_bytes);
        }
        Ok(verdicts)
    }

    /// What there is of a file that has this length in the set; `None` if all of it has to be copied.
    fn judge(
        &self,
        (path, len): (&Path, u64),
        buffer: &mut [u8],
    ) -> Result<Option<Verdict>, SetError> {
        let Some(relative) = relative(path) else {
            return Ok(None);
        };
        let (old, entry) = (self.taken.old.find(&relative), self.taken.entry(&relative));
        let of_settings = relative.as_bytes() == layout::AUTO_CONF.as_bytes();
        let Some(old) = old else {
            if entry.is_some() && !of_settings {
                self.read(&relative, entry, &[])?;
            }
            return Ok(None);
        };
        let old_len = old.len();
        let end = len.min(old_len);
        let pages = HashedPages::of(old.handle(), end, |_, _| Ok::<_, SetError>(()))?;
        let agreed = entry.and_then(|entry| {
            let crc32c = pages.agrees(entry, (old.handle(), old_len), buffer)?;
            Some((entry.size, crc32c))
        });
        let (len, crc32c, changed) = match agreed {
            Some((len, crc32c)) => (len, crc32c, ChangedBlocks::default()),
            None => self.read(&relative, entry, &pages.digests)?,
        };
        // One that cannot be read is not written over either: the disk may have lost more of it.
        Ok((pages.digest.len == end).then_some(Verdict {
            len,
            crc32c,
            old: old.stamp(),
            changed,
        }))
    }

    /// Reads the set's file: its length, its CRC-32C, and where the old one, whose pages have these digests, is not it.
    fn read(
        &self,
        path: &RelativePath,
        entry: Option<&FileEntry>,
        digests: &[u64],
    ) -> Result<(u64, u32, ChangedBlocks), SetError> {
        let set = self.set;
        let root = set.directory().try_clone_to_owned();
        let opened = root.and_then(|root| set.sets.open_below(&root, path));
        let (source, _) = opened.map_err(|error| {
            let shown = Path::new(OsStr::from_bytes(path.as_bytes()));
            set.failure("open", shown, error)
        })?;
        let compare = |(changed, whole): Slice<'_, ChangedBlocks>, new: &[u8], offset: u64| {
            let digests = from_offset(digests, offset);
            changed.compare_digests(offset % SLICE_BYTES, digests, new, whole);
            Ok(())
        };
        let (whole, slices) = set.read_slices(source.as_fd(), path, entry, compare)?;
        let mut changed = ChangedBlocks::default();
        for (number, slice) in (0..).zip(&slices) {
            changed.append(number * SLICE_BYTES, slice);
        }
        Ok((whole.len, whole.crc32c, changed))
    }
}

impl HeldSet {
    /// Reads a file of it that is small.
    fn digest(&self, path: &RelativePath) -> Result<ListedDigest, SetError> {
        let shown = Path::new(OsStr::from_bytes(path.as_bytes()));
        let root = self.directory().try_clone_to_owned();
        let opened = root.and_then(|root| self.sets.open_below(&root, path));
        let (file, _) = opened.map_err(|error| self.failure("open", shown, error))?;
        let mut digest = ListedDigest::begin(None);
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let read_bytes = self.read_piece(file.as_fd(), &mut buffer, digest.len(), shown)?;
            digest.update(&buffer[..read_bytes]);
            if read_bytes < buffer.len() {
                return Ok(digest);
            }
        }
    }

    pub(super) fn read_piece(
        &self,
        file: BorrowedFd<'_>,
        buffer: &mut [u8],
        offset: u64,
        path: &Path,
    ) -> Result<usize, SetError> {
        let read = read_full(&*self.sets.parent.disk, file, buffer, offset);
        read.map_err(|error| self.failure("read", path, error))
    }
}

/// The path of a file of a set, unless nobody could list it.
pub(super) fn relative(path: &Path) -> Option<RelativePath> {
    RelativePath::new(path.as_os_str().as_bytes()).ok()
}
