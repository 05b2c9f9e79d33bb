//! Files of an old data directory that a restore takes over, and what of them is not as it has to be.
//! Never follows a link, and never believes a name, a length or a time. Invariant: what is taken over was read, and is
//! what is listed but for the blocks that are named; no file that has a second name is written or handed on.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::io::retry_on_intr;
use walmgr_protocol::names::RelativePath;

use super::layout;
use super::manifest::{FileEntry, ListedDigest};
use super::page;
use crate::files::slices::{EqualParts, PartDigest, SLICE_BYTES};
use crate::files::{self, ChangeStamp};

/// What is compared, and brought if it differs: a page of PostgreSQL.
pub(crate) const BLOCK_BYTES: usize = page::PAGE_BYTES;

/// One read: whole blocks.
pub(crate) const PIECE_BYTES: usize = 128 * BLOCK_BYTES;

/// How many directories stay open for the files that are looked for next.
const OPEN_MAX: usize = 16;

/// An old data directory.
#[derive(Debug)]
pub(crate) struct OldFiles {
    root: OwnedFd,
    /// Directories in it, by their paths.
    open: Mutex<HashMap<RelativePath, Arc<OwnedFd>>>,
}

/// A file in it.
pub(crate) struct OldFile {
    directory: Arc<OwnedFd>,
    name: OsString,
    file: File,
    stamp: ChangeStamp,
}

impl OldFiles {
    /// Opens a directory.
    pub(crate) fn open(data: &Path) -> io::Result<OldFiles> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(data, flags, Mode::empty())?;
        let open = Mutex::default();
        Ok(OldFiles { root, open })
    }

    /// The file at a path of a set, if it may be taken over: one that belongs to this user alone and has no other
    /// name.
    pub(crate) fn find(&self, path: &RelativePath) -> Option<OldFile> {
        if !may_be_taken(path) {
            return None;
        }
        let name = OsStr::from_bytes(path.file_name());
        let directory = self.directory(&path.parent()?)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(&directory, name, flags, Mode::empty()).ok()?);
        let found = file.metadata().ok()?;
        let is_own = found.is_file()
            && found.nlink() == 1
            && found.uid() == rustix::process::geteuid().as_raw();
        is_own.then(|| OldFile {
            directory,
            name: name.to_owned(),
            file,
            stamp: ChangeStamp::of(&found),
        })
    }

    /// The file at a path, if it is still what it was when it had this stamp.
    pub(crate) fn find_again(&self, path: &RelativePath, stamp: ChangeStamp) -> Option<OldFile> {
        self.find(path).filter(|file| file.stamp == stamp)
    }

    /// A directory in it, unless there is a link on the way to it. It may have been removed since it was opened, and then
    /// nothing is found in it.
    fn directory(&self, path: &RelativePath) -> Option<Arc<OwnedFd>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = open.get(path) {
            return Some(Arc::clone(found));
        }
        let mut found = self.root.try_clone().ok()?;
        for next in path.components().map(OsStr::from_bytes) {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            found = rustix::fs::openat(&found, next, flags, Mode::empty()).ok()?;
        }
        if open.len() >= OPEN_MAX {
            open.clear();
        }
        let found = Arc::new(found);
        open.insert(path.clone(), Arc::clone(&found));
        Some(found)
    }
}

/// Whether a file at this path of a set may come from an old directory. Files at the top are small, and the directory
/// is known by them; WAL is of the old server's life.
pub(crate) fn may_be_taken(path: &RelativePath) -> bool {
    let is_in_wal = path.components().next() == Some(layout::PG_WAL.as_bytes());
    path.parent().is_some() && !is_in_wal && path.as_bytes() != layout::PG_CONTROL.as_bytes()
}

impl OldFile {
    /// Its length.
    pub(crate) const fn len(&self) -> u64 {
        self.stamp.size
    }

    /// What it was when it was opened.
    pub(crate) const fn stamp(&self) -> ChangeStamp {
        self.stamp
    }

    /// Open for reading.
    pub(crate) fn handle(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Gives it another name, which nothing has: it is in the old directory no more.
    pub(crate) fn move_to(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        files::rename_new((self.directory.as_fd(), &self.name), (directory, name))
    }

    /// Reads at an offset until the buffer is full or the file ends.
    pub(crate) fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        read_full(self.file.as_fd(), buffer, offset)
    }
}

/// Reads a file, and tells its CRC-32C if it is what is listed.
pub(crate) fn agreeing(file: BorrowedFd<'_>, entry: &FileEntry, buffer: &mut [u8]) -> Option<u32> {
    let mut digest = ListedDigest::begin(Some(entry.checksum.as_ref()?));
    loop {
        let read_bytes = read_full(file, buffer, digest.len()).ok()?;
        digest.update(&buffer[..read_bytes]);
        if read_bytes < buffer.len() || digest.len() > entry.size {
            break;
        }
    }
    let crc32c = digest.crc32c();
    (digest.agrees(entry) == Some(true)).then_some(crc32c)
}

/// Reads at an offset until the buffer is full or the file ends.
pub(crate) fn read_full(file: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        let at = offset + filled as u64;
        match retry_on_intr(|| rustix::io::pread(file, &mut buffer[filled..], at))? {
            0 => break,
            read_bytes => filled += read_bytes,
        }
    }
    Ok(filled)
}

/// What tells a block from another one without its bytes. Two checksums, since the one of the whole file, which is
/// compared behind it, is the first of them again.
pub(crate) fn block_digest(block: &[u8]) -> u64 {
    u64::from(crc32fast::hash(block)) << 32 | u64::from(crc32c::crc32c(block))
}

/// Takes the checksums of whole blocks together. Made once: to make it costs more than to read a small file.
pub(crate) static WHOLE_BLOCKS: LazyLock<EqualParts> =
    LazyLock::new(|| EqualParts::new(BLOCK_BYTES));

/// Takes a block whose digest is known, without going through it again.
pub(crate) fn add_block(whole: &mut PartDigest, block: &[u8], block_digest: u64) {
    match block.len() == BLOCK_BYTES {
        true => WHOLE_BLOCKS.append(whole, crc32c_of(block_digest)),
        false => whole.update(block),
    }
}

/// The CRC-32C of a block with this digest.
pub(crate) const fn crc32c_of(block_digest: u64) -> u32 {
    let [.., a, b, c, d] = block_digest.to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

/// Which blocks of a file are not as they have to be: a bit for each, so that a file of any length fits into memory.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ChangedBlocks {
    bits: Vec<u64>,
    /// Of what has to be there instead, in order.
    wanted: PartDigest,
}

impl ChangedBlocks {
    /// Compares a piece that lies at this offset, which is that of a block, with the digests of what there is from there
    /// on; what is behind the last of them differs. Takes the piece into the checksum of the whole.
    pub(crate) fn compare_digests(
        &mut self,
        offset: u64,
        digests: &[u64],
        new: &[u8],
        whole: &mut PartDigest,
    ) {
        let first = offset / BLOCK_BYTES as u64;
        for ((number, block), at) in (first..).zip(new.chunks(BLOCK_BYTES)).zip(0..) {
            let digest = block_digest(block);
            add_block(whole, block, digest);
            if digests.get::<usize>(at) != Some(&digest) {
                self.add(number);
                self.wanted.update(block);
            }
        }
    }

    /// Takes what was found in a slice that begins here, its blocks numbered from its own beginning.
    pub(crate) fn append(&mut self, slice_start: u64, next: &ChangedBlocks) {
        const { assert!((SLICE_BYTES / BLOCK_BYTES as u64).is_multiple_of(64)) };
        if next.bits.is_empty() {
            return;
        }
        let words = slice_start / (64 * BLOCK_BYTES as u64);
        self.bits
            .resize(usize::try_from(words).unwrap_or(usize::MAX), 0);
        self.bits.extend(&next.bits);
        self.wanted.append(next.wanted);
    }

    fn add(&mut self, number: u64) {
        let at = usize::try_from(number / 64).unwrap_or(usize::MAX);
        if self.bits.len() <= at {
            self.bits.resize(at + 1, 0);
        }
        self.bits[at] |= 1 << (number % 64);
    }

    /// The CRC-32C of all that has to be written.
    pub(crate) const fn crc32c(&self) -> u32 {
        self.wanted.crc32c
    }

    fn has(&self, number: u64) -> bool {
        let word = usize::try_from(number / 64).ok();
        let word = word.and_then(|at| self.bits.get(at));
        word.is_some_and(|word| word & (1 << (number % 64)) != 0)
    }

    /// Where what differs begins, in bytes, and how long it is: at most a piece.
    pub(crate) fn runs(&self, len: u64) -> impl Iterator<Item = (u64, usize)> + '_ {
        let (block, blocks_max) = (BLOCK_BYTES as u64, (PIECE_BYTES / BLOCK_BYTES) as u64);
        let end = len.div_ceil(block).min(self.bits.len() as u64 * 64);
        let mut next = 0;
        std::iter::from_fn(move || {
            let first = (next..end).find(|number| self.has(*number))?;
            let longest = end.min(first + blocks_max);
            next = (first..longest)
                .find(|number| !self.has(*number))
                .unwrap_or(longest);
            let (from, to) = (first * block, (next * block).min(len));
            Some((from, usize::try_from(to - from).unwrap_or_default()))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::pg::hashed_pages::HashedPages;
    use crate::pg::manifest::Checksum;

    fn entry(content: &[u8]) -> FileEntry {
        FileEntry {
            path: "base/1/1".parse().unwrap(),
            size: content.len() as u64,
            last_modified: 0,
            checksum: Some(Checksum::Crc32c(crc32c::crc32c(content))),
        }
    }

    #[test]
    fn fault_292_a_file_that_was_written_to_or_replaced_is_not_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let (path, at) = ("base/1/1".parse().unwrap(), folder.path().join("base/1/1"));
        fs::create_dir_all(folder.path().join("base/1")).unwrap();
        fs::write(&at, "as compared").unwrap();
        let old = OldFiles::open(folder.path()).unwrap();
        let stamp = || old.find(&path).unwrap().stamp();
        let is_found = |stamp| old.find_again(&path, stamp).is_some();
        let compared = stamp();
        assert!(is_found(compared));
        // Behind a tick of the clock that stamps changes.
        std::thread::sleep(std::time::Duration::from_millis(50));
        fs::write(&at, "as it's now").unwrap();
        assert!(!is_found(compared));
        let written = stamp();
        fs::write(folder.path().join("new"), "as it's now").unwrap();
        fs::rename(folder.path().join("new"), &at).unwrap();
        assert!(!is_found(written));
    }

    proptest! {
        #[test]
        fn what_differs_is_found_and_written_over_it_makes_the_files_equal(
            old in proptest::collection::vec(0_u8..3, 0..9),
            new in proptest::collection::vec(0_u8..3, 0..9),
            tails in (0_usize..BLOCK_BYTES, 0_usize..BLOCK_BYTES),
        ) {
            let file = |blocks: &[u8], tail: usize| {
                let mut bytes: Vec<u8> = blocks.iter().flat_map(|it| vec![*it; BLOCK_BYTES]).collect();
                bytes.extend(vec![7; tail]);
                bytes
            };
            let (mut old, new) = (file(&old, tails.0), file(&new, tails.1));
            let (mut changed, mut whole) = (ChangedBlocks::default(), PartDigest::default());
            let digests: Vec<u64> = old.chunks(BLOCK_BYTES).map(block_digest).collect();
            for (index, piece) in new.chunks(2 * BLOCK_BYTES).enumerate() {
                let offset = index * 2 * BLOCK_BYTES;
                let digests = digests.get(2 * index..).unwrap_or_default();
                changed.compare_digests(offset as u64, digests, piece, &mut whole);
            }
            prop_assert_eq!(whole.crc32c, crc32c::crc32c(&new));
            prop_assert_eq!(whole.len, new.len() as u64);
            old.resize(new.len(), 0);
            let mut brought_bytes = 0;
            for (offset, len) in changed.runs(new.len() as u64) {
                let range = usize::try_from(offset).unwrap()..usize::try_from(offset).unwrap() + len;
                old[range.clone()].copy_from_slice(&new[range]);
                brought_bytes += len;
            }
            prop_assert!(old == new);
            prop_assert!(brought_bytes <= new.len());
        }
    }

    #[test]
    fn runs_are_as_long_as_a_piece_at_most_and_end_with_the_file() {
        let mut changed = ChangedBlocks::default();
        assert_eq!(changed.runs(1 << 30).next(), None);
        let zeros = vec![0; 3 * PIECE_BYTES / 2];
        changed.compare_digests(0, &[], &zeros, &mut PartDigest::default());
        let found: Vec<(u64, usize)> = changed.runs(zeros.len() as u64 - 100).collect();
        let piece = PIECE_BYTES as u64;
        assert_eq!(found, [(0, PIECE_BYTES), (piece, PIECE_BYTES / 2 - 100)]);
    }

    #[test]
    fn fault_216_damage_that_keeps_length_and_time_is_found() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("base/1")).unwrap();
        let path = folder.path().join("base/1/1");
        let content: Vec<u8> = (0..=255).cycle().take(50_000).collect();
        let old = OldFiles::open(folder.path()).unwrap();
        let mut buffer = vec![0; PIECE_BYTES];
        let crc32c_if_listed = |found: &OldFile, buffer: &mut [u8]| {
            let pages = HashedPages::of(found.handle(), found.len(), |_, _| Ok::<_, ()>(()));
            let of = (found.handle(), found.len());
            pages.unwrap().agrees(&entry(&content), of, buffer)
        };
        for at in (0..content.len()).step_by(997) {
            let mut damaged = content.clone();
            damaged[at] ^= 1 << (at % 8);
            fs::write(&path, damaged).unwrap();
            let found = old.find(&"base/1/1".parse().unwrap()).unwrap();
            assert_eq!(crc32c_if_listed(&found, &mut buffer), None, "{at}");
        }
        fs::write(&path, &content).unwrap();
        let found = old.find(&"base/1/1".parse().unwrap()).unwrap();
        let crc32c = crc32c_if_listed(&found, &mut buffer);
        assert_eq!(crc32c, Some(crc32c::crc32c(&content)));
    }

    #[test]
    fn fault_217_neither_links_nor_second_names_nor_wal_are_taken() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for made in ["base/1", "pg_wal", "global", "elsewhere/1"] {
            fs::create_dir_all(root.join(made)).unwrap();
        }
        for name in [
            "base/1/1",
            "base/1/twice",
            "PG_VERSION",
            "pg_wal/x",
            "global/pg_control",
            "elsewhere/1/1",
        ] {
            fs::write(root.join(name), "x").unwrap();
        }
        fs::hard_link(root.join("base/1/twice"), root.join("kept")).unwrap();
        std::os::unix::fs::symlink("1", root.join("base/1/link")).unwrap();
        std::os::unix::fs::symlink("../elsewhere/1", root.join("base/2")).unwrap();
        let mut mkfifo = std::process::Command::new("mkfifo");
        let made = mkfifo.arg(root.join("base/1/pipe")).status();
        assert!(made.unwrap().success());
        let old = OldFiles::open(root).unwrap();
        let is_found = |path: &str| old.find(&path.parse().unwrap()).is_some();
        assert!(is_found("base/1/1"));
        for path in [
            "base/1/twice",
            "base/1/link",
            "base/1/pipe",
            "base/1/gone",
            "base/2/1",
            "base/1",
            "PG_VERSION",
            "pg_wal/x",
            "global/pg_control",
        ] {
            assert!(!is_found(path), "{path}");
        }
    }
}
