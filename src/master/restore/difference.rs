//! A set that is brought by difference: what an old directory has is taken over, and only the rest comes over the wire.
//! Never writes into the old directory before all that it lacks has come and was kept. Invariant: every file that is
//! taken over or made was read as a whole and is what the manifest lists.
//!
//! ```text
//! fetch the outline of the set              its directories, the manifest, what no old directory can have
//! compare the old directory with it         beside: into files of the new one, shared or copied
//! fetch the pages that are missing          in place: kept in a file of their own
//! in place: global/pg_control out of the way, files change directories, kept pages are written into them
//! ```

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use walmgr_protocol::limits::MANIFEST_BYTES_MAX;
use walmgr_protocol::names::RelativePath;

use super::kept::KeptPages;
use super::old::OldDirectory;
use super::pages::{MissingPages, PageSink};
use super::place::{RestorePlace, SPARE_BYTES};
use super::stream::{RemoteSet, Streams};
use super::tree::{NewTree, failed, refused};
use super::unpack::{Layout, Unpack};
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files::slices::{PartDigest, in_slices};
use crate::files::{self, RoomNeeded};
use crate::master::fetch::Fetching;
use crate::pg::control;
use crate::pg::layout;
use crate::pg::listed::{Listed, stored_path};
use crate::pg::manifest::{Checksum, FileEntry, ListedDigest, Reader};
use crate::pg::old_files::{
    BLOCK_BYTES, OldFile, OldFiles, PIECE_BYTES, agreeing, block_digest, may_be_taken, read_full,
};
use crate::pg::set_place::taking::{self, DeltaWay};

/// How many compare at once: reading is what costs, and the host has other work.
const THREADS: usize = 2;

/// How much of the set is compared before what is missing of that is fetched: this many bytes of digests in a thousandth.
const ROUND_BYTES: u64 = 32 << 30;

/// What is read at once for checksums: so little that it is still in the processor's cache for the last of them.
const HASHED_BYTES: usize = 32 * BLOCK_BYTES;

/// A file of the set that an old directory may have.
pub(super) struct SetFile {
    /// Its path in the set.
    pub path: RelativePath,
    pub entry: FileEntry,
}

/// What there is of a file.
enum FileStanding {
    /// All of it is where it belongs.
    Taken { crc32c: u32 },
    /// It is made, and these pages are missing.
    Made(VecDeque<u64>),
    /// It lies in the old directory, with all of it as it has to be.
    Lying { old_len: u64, crc32c: u32 },
    /// It lies in the old directory, and pages are missing.
    Differing {
        old_len: u64,
        digests: VecDeque<u64>,
    },
}

/// What a difference is made of.
struct Difference<'a> {
    old: OldFiles,
    way: DeltaWay,
    /// Whether files can share their content.
    shares: bool,
    tree: NewTree,
    files: &'a [SetFile],
}

/// Has all files of the set in the new directory.
pub(super) async fn fetch<'c>(
    set: &RemoteSet<'c>,
    place: &RestorePlace,
    old: &OldDirectory,
    first: Fetching<'c>,
) -> Result<Layout> {
    let mut streams = Streams::begin(set, first);
    let mut listed = fetch_outline(set, place, old, &mut streams).await?;
    let files = set_files(place, &listed)?;
    let shares = old.way == DeltaWay::Beside && taking::can_share(&old.place);
    check_room(place, old, &files, shares)?;
    let difference = Difference {
        old: OldFiles::open(&place.data).at(Kind::Retry, "open", &place.data)?,
        way: old.way,
        shares,
        tree: NewTree::of(place)?,
        files: &files,
    };
    let kept = match old.way {
        DeltaWay::InPlace => Some(KeptPages::create(&place.prepared)?),
        DeltaWay::Beside => None,
    };
    tracing::info!(
        "comparing {} with {}",
        place.data.display(),
        set.described.name
    );
    let (mut standings, mut brought_bytes) = (Vec::new(), 0);
    while standings.len() < files.len() {
        let from = standings.len();
        standings.extend(difference.compare(difference.round(from))?);
        let missing = difference.missing(from, &mut standings[from..]);
        let keeper = kept.as_ref().map(KeptPages::writer).transpose()?;
        let counters = streams.counters();
        let mut sink = PageSink::new(difference.tree.clone(), missing, keeper, counters);
        while !sink.is_done() {
            sink = streams.get(sink).await?;
            sink.answered()?;
        }
        brought_bytes += sink.brought_bytes();
        streams.pause().await;
    }
    difference.check_made(&standings, &mut listed)?;
    if let Some(kept) = kept {
        difference.check_kept(&kept, &standings, &mut listed)?;
        old.touch()?;
        difference.move_over(&standings)?;
        difference.write_kept(&kept, &standings)?;
        kept.remove()?;
    }
    let finished = listed.finish();
    finished.map_err(|(path, why)| refused(&path, &why))?;
    let total_bytes: u64 = files.iter().map(|file| file.entry.size).sum();
    taking::tell_counts(total_bytes.saturating_sub(brought_bytes), brought_bytes);
    Ok(Layout { has_manifest: true })
}

/// The directories and what no old directory has; what the manifest lists beside that. Fails if the old directory
/// cannot be the one of such a set.
async fn fetch_outline<'c>(
    set: &RemoteSet<'c>,
    place: &RestorePlace,
    old: &OldDirectory,
    streams: &mut Streams<'_, 'c>,
) -> Result<Listed> {
    let name = &set.described.name;
    tracing::info!("fetching the outline of {name}");
    let sink = Unpack::begin(place, &set.described, streams.counters())?;
    let listed = streams.get(sink).await?.finish_outline()?;
    // Nothing is asked for while files are compared.
    streams.pause().await;
    let listed = listed.ok_or_else(|| {
        CommandError::retry(format!(
            "{name} has no backup_manifest, which would say what of the old directory is as it has to be"
        ))
        .hint("type it without --delta, to an empty directory")
    })?;
    let outlined = listed.finish_but(may_be_taken);
    outlined.map_err(|(path, why)| refused(&path, &why))?;
    set.check(place)?;
    let control = control::read_file(&place.prepared.join(place.control_name()))?;
    taking::check_cluster(&old.place, "the set", control.system_id)
        .map_err(|error| error.hint("type it without --delta, to an empty directory"))?;
    Ok(listed)
}

/// The files that the manifest lists and that the outline did not have, by their paths.
fn set_files(place: &RestorePlace, listed: &Listed) -> Result<Vec<SetFile>> {
    let path = place.prepared.join(layout::BACKUP_MANIFEST);
    let manifest = files::read_at_most(&path, MANIFEST_BYTES_MAX);
    let manifest = manifest.at(Kind::Retry, "read", &path)?;
    let bad = |fault| CommandError::retry("read the set's backup_manifest").because(fault);
    let mut found = Vec::new();
    for entry in Reader::new(&manifest).map_err(bad)? {
        let entry = entry.map_err(bad)?;
        let path = stored_path(entry.path.clone());
        if may_be_taken(&path) && listed.awaits(&path) {
            found.push(SetFile { path, entry });
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(found)
}

/// Refuses what cannot fit: the files that the old directory has none of the same length for are new in any case.
fn check_room(
    place: &RestorePlace,
    old: &OldDirectory,
    files: &[SetFile],
    shares: bool,
) -> Result<()> {
    let sources = match shares || old.way == DeltaWay::InPlace {
        true => taking::sources(&old.place)?,
        false => Vec::new(),
    };
    let mut needed = RoomNeeded::new(Kind::Retry);
    needed.add(&place.prepared, SPARE_BYTES)?;
    for file in files {
        let mut found = sources.iter().filter_map(|old| old.find(&file.path));
        if found.any(|found| found.len() == file.entry.size) {
            continue;
        }
        let space = layout::tablespace_of(file.path.as_bytes(), layout::TMPSPC);
        let space = space.and_then(|(oid, _)| place.spaces.get(&oid));
        needed.add(space.unwrap_or(&place.prepared), file.entry.size)?;
    }
    taking::check_room(&needed, Some(old.way))
}

impl Difference<'_> {
    /// The files from this one on that are compared before what is missing of them is fetched.
    fn round(&self, from: usize) -> Range<usize> {
        let mut bytes = 0_u64;
        let fits = |file: &&SetFile| {
            bytes = bytes.saturating_add(file.entry.size);
            bytes <= ROUND_BYTES
        };
        let count = self.files[from..].iter().take_while(fits).count().max(1);
        from..from + count
    }

    fn compare(&self, range: Range<usize>) -> Result<Vec<FileStanding>> {
        let (next, is_over) = (AtomicUsize::new(range.start), AtomicBool::new(false));
        let run = || {
            let (mut tree, mut buffer) = (self.tree.clone(), vec![0; PIECE_BYTES]);
            let mut standings = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= range.end || is_over.load(Ordering::Relaxed) {
                    return Ok::<_, CommandError>(standings);
                }
                let standing = self.judge(&self.files[number], &mut tree, &mut buffer);
                let standing = standing.inspect_err(|_| is_over.store(true, Ordering::Relaxed))?;
                standings.push((number, standing));
            }
        };
        let mut all = std::thread::scope(|scope| {
            let others: Vec<_> = (1..THREADS).map(|_| scope.spawn(run)).collect();
            let mut all = run()?;
            for other in others {
                let lost = |_| CommandError::retry("wait for a thread that compares");
                all.extend(other.join().map_err(lost)??);
            }
            Ok::<_, CommandError>(all)
        })?;
        all.sort_by_key(|(number, _)| *number);
        Ok(all.into_iter().map(|(_, standing)| standing).collect())
    }

    fn judge(&self, file: &SetFile, tree: &mut NewTree, buffer: &mut [u8]) -> Result<FileStanding> {
        let (path, entry) = (&file.path, &file.entry);
        let old = self.old.find(path);
        if self.way == DeltaWay::Beside {
            let new = tree.make_file(path, path.file_name())?;
            return match old {
                Some(old) => self.take(&old, &new, file, buffer),
                None => Ok(FileStanding::Made(VecDeque::new())),
            };
        }
        // Nothing changes directories across file systems.
        let Some(old) = old.filter(|_| !tree.is_elsewhere(path)) else {
            tree.make_file(path, path.file_name())?;
            return Ok(FileStanding::Made(VecDeque::new()));
        };
        let (old_len, handle) = (old.len(), old.handle());
        let found = HashedPages::of(handle, old_len.min(entry.size), |_, _| Ok(()))?;
        // The disk may have lost more of one that cannot be read, so nothing is written into it.
        if found.digest.len < old_len.min(entry.size) {
            tree.make_file(path, path.file_name())?;
            return Ok(FileStanding::Made(VecDeque::new()));
        }
        match found.agrees(entry, (handle, old_len), buffer) {
            Some(crc32c) => Ok(FileStanding::Lying { old_len, crc32c }),
            None => {
                let digests = found.digests.into();
                Ok(FileStanding::Differing { old_len, digests })
            }
        }
    }

    /// Has the content of an old file in a new one, as far as it can be read.
    fn take(
        &self,
        old: &OldFile,
        new: &File,
        file: &SetFile,
        buffer: &mut [u8],
    ) -> Result<FileStanding> {
        let (path, entry) = (&file.path, &file.entry);
        let is_shared = self.shares && rustix::fs::ioctl_ficlone(new, old.handle()).is_ok();
        let source = match is_shared {
            true => new.as_fd(),
            false => old.handle(),
        };
        let len = old.len().min(entry.size);
        // What cannot be read is fetched.
        let found = HashedPages::of(source, len, |piece, offset| {
            if !is_shared {
                let written = new.write_all_at(piece, offset);
                written.map_err(|error| failed("write", path, error))?;
            }
            Ok(())
        })?;
        match found.agrees(entry, (new.as_fd(), old.len()), buffer) {
            Some(crc32c) => Ok(FileStanding::Taken { crc32c }),
            None => Ok(FileStanding::Made(found.digests.into())),
        }
    }

    /// What has to be fetched of these files, the first of which has this number.
    fn missing(&self, from: usize, standings: &mut [FileStanding]) -> Vec<MissingPages> {
        let mut missing = Vec::new();
        for (number, standing) in (from..).zip(standings) {
            let (file, is_kept) = (
                &self.files[number],
                matches!(standing, FileStanding::Differing { .. }),
            );
            let (FileStanding::Made(digests) | FileStanding::Differing { digests, .. }) = standing
            else {
                continue;
            };
            if file.entry.size > 0 {
                missing.push(MissingPages {
                    path: file.path.clone(),
                    kept_as: is_kept.then(|| u32::try_from(number).unwrap_or(u32::MAX)),
                    offset: 0,
                    end: file.entry.size,
                    digests: std::mem::take(digests),
                    asked_end: 0,
                });
            }
        }
        missing
    }

    /// Compares what was made with the manifest.
    fn check_made(&self, standings: &[FileStanding], listed: &mut Listed) -> Result<()> {
        let (mut tree, mut buffer) = (self.tree.clone(), vec![0; PIECE_BYTES]);
        for (file, standing) in self.files.iter().zip(standings) {
            let (path, size) = (&file.path, file.entry.size);
            match standing {
                FileStanding::Taken { crc32c } => pass(listed, path, size, *crc32c)?,
                FileStanding::Made(_) => {
                    let made = tree.open_file(path)?;
                    let cut = made.set_len(size);
                    cut.map_err(|error| failed("set the length of", path, error))?;
                    let read = |piece: &mut [u8], offset| read_full(made.as_fd(), piece, offset);
                    let crc32c = check(file, &mut buffer, read)?;
                    pass(listed, path, size, crc32c)?;
                }
                FileStanding::Lying { .. } | FileStanding::Differing { .. } => {}
            }
        }
        Ok(())
    }

    /// Compares what the files of the old directory will be with the manifest, before any of them is touched.
    fn check_kept(
        &self,
        kept: &KeptPages,
        standings: &[FileStanding],
        listed: &mut Listed,
    ) -> Result<()> {
        let (mut buffer, mut pages) = (vec![0; PIECE_BYTES], kept.files()?);
        for (number, (file, standing)) in self.files.iter().zip(standings).enumerate() {
            let crc32c = match standing {
                FileStanding::Taken { .. } | FileStanding::Made(_) => continue,
                FileStanding::Lying { crc32c, .. } => *crc32c,
                FileStanding::Differing { .. } => {
                    let changed = pages.of(number)?;
                    let old = self.lying(file, standing)?;
                    check(file, &mut buffer, |piece, offset| {
                        let found = old.read(piece, offset)?;
                        let left = file.entry.size.saturating_sub(offset);
                        let len = usize::try_from(left)
                            .unwrap_or(piece.len())
                            .min(piece.len());
                        piece[found.min(len)..len].fill(0);
                        changed.overlay(&mut piece[..len], offset)?;
                        Ok(len)
                    })?
                }
            };
            pass(listed, &file.path, file.entry.size, crc32c)?;
        }
        Ok(())
    }

    /// A file of the old directory that is still as it was when it was compared.
    fn lying(&self, file: &SetFile, standing: &FileStanding) -> Result<OldFile> {
        let (FileStanding::Lying { old_len, .. } | FileStanding::Differing { old_len, .. }) =
            standing
        else {
            return Err(refused(&file.path, "it is not in the old directory"));
        };
        let found = self
            .old
            .find(&file.path)
            .filter(|old| old.len() == *old_len);
        found.ok_or_else(|| {
            CommandError::retry(format!(
                "{} was changed in the old directory meanwhile",
                file.path
            ))
        })
    }

    fn move_over(&self, standings: &[FileStanding]) -> Result<()> {
        let mut tree = self.tree.clone();
        for (file, standing) in self.files.iter().zip(standings) {
            if matches!(
                standing,
                FileStanding::Lying { .. } | FileStanding::Differing { .. }
            ) {
                let (above, name) = (tree.above(&file.path)?, file.path.file_name());
                let moved = self
                    .lying(file, standing)?
                    .move_to(above.as_fd(), OsStr::from_bytes(name));
                moved.map_err(|error| failed("move", &file.path, error))?;
            }
        }
        Ok(())
    }

    fn write_kept(&self, kept: &KeptPages, standings: &[FileStanding]) -> Result<()> {
        let (mut tree, mut pages) = (self.tree.clone(), kept.files()?);
        for (number, (file, standing)) in self.files.iter().zip(standings).enumerate() {
            if !matches!(standing, FileStanding::Differing { .. }) {
                continue;
            }
            let moved = tree.open_file(&file.path)?;
            let written = (pages.of(number)?).write_into(&moved);
            let written = written.and_then(|()| moved.set_len(file.entry.size));
            written.map_err(|error| failed("write", &file.path, error))?;
        }
        Ok(())
    }
}

/// What was read of a file from its beginning on, up to where it could not be read.
#[derive(Default)]
struct HashedPages {
    digest: PartDigest,
    /// Of its pages.
    digests: Vec<u64>,
}

impl HashedPages {
    /// Reads so many bytes of a file once, and passes each piece on.
    fn of(
        file: BorrowedFd<'_>,
        len: u64,
        each: impl Fn(&[u8], u64) -> Result<()> + Sync,
    ) -> Result<HashedPages> {
        let slices = in_slices(len, |slice| {
            let (mut buffer, mut found) = (vec![0; HASHED_BYTES], HashedPages::default());
            for offset in slice.clone().step_by(HASHED_BYTES) {
                let left = usize::try_from(slice.end - offset).unwrap_or(HASHED_BYTES);
                let piece = &mut buffer[..left.min(HASHED_BYTES)];
                let read_bytes = read_full(file, piece, offset).unwrap_or(0);
                each(&piece[..read_bytes], offset)?;
                found.digest.update(&piece[..read_bytes]);
                let blocks = piece[..read_bytes].chunks(BLOCK_BYTES);
                found.digests.extend(blocks.map(block_digest));
                if read_bytes < piece.len() {
                    break;
                }
            }
            Ok::<_, CommandError>((slice, found))
        })?;
        let mut all = HashedPages::default();
        for (slice, found) in slices {
            if all.digest.len < slice.start {
                break;
            }
            all.digest.append(found.digest);
            all.digests.extend(found.digests);
        }
        Ok(all)
    }

    /// The CRC-32C of the file, which is so long and was read to its end, if it is what is listed.
    fn agrees(
        &self,
        entry: &FileEntry,
        (file, len): (BorrowedFd<'_>, u64),
        buffer: &mut [u8],
    ) -> Option<u32> {
        let is_whole = (len, self.digest.len) == (entry.size, entry.size);
        match entry.checksum.as_ref().filter(|_| is_whole)? {
            Checksum::Crc32c(listed) => {
                (*listed == self.digest.crc32c).then_some(self.digest.crc32c)
            }
            Checksum::Sha(_) => agreeing(file, entry, buffer),
        }
    }
}

/// Reads what a file is or will be, and refuses it if it is not what the manifest lists; its CRC-32C.
fn check(
    file: &SetFile,
    buffer: &mut [u8],
    read: impl Fn(&mut [u8], u64) -> io::Result<usize> + Sync,
) -> Result<u32> {
    let (path, entry) = (&file.path, &file.entry);
    let failed = |error| failed("read", path, error);
    let (agrees, crc32c) = match entry.checksum {
        Some(Checksum::Crc32c(listed)) => {
            let found = check_slices(entry.size, &read).map_err(failed)?;
            (
                found.len == entry.size && found.crc32c == listed,
                found.crc32c,
            )
        }
        _ => {
            let mut digest = ListedDigest::begin(entry.checksum.as_ref());
            loop {
                let read_bytes = read(buffer, digest.len()).map_err(failed)?;
                digest.update(&buffer[..read_bytes]);
                if read_bytes < buffer.len() {
                    break;
                }
            }
            let crc32c = digest.crc32c();
            (digest.agrees(entry) != Some(false), crc32c)
        }
    };
    match agrees {
        true => Ok(crc32c),
        false => Err(refused(
            path,
            "its length or checksum is not the manifest's",
        )),
    }
}

/// The length and checksum of what is read up to this length.
fn check_slices(
    len: u64,
    read: &(impl Fn(&mut [u8], u64) -> io::Result<usize> + Sync),
) -> io::Result<PartDigest> {
    let slices = in_slices(len, |slice| {
        let (mut buffer, mut found) = (vec![0; HASHED_BYTES], PartDigest::default());
        for offset in slice.clone().step_by(HASHED_BYTES) {
            let left = usize::try_from(slice.end - offset).unwrap_or(HASHED_BYTES);
            let piece = &mut buffer[..left.min(HASHED_BYTES)];
            let read_bytes = read(piece, offset)?;
            found.update(&piece[..read_bytes]);
        }
        Ok::<_, io::Error>(found)
    })?;
    let mut all = PartDigest::default();
    slices.into_iter().for_each(|found| all.append(found));
    Ok(all)
}

fn pass(listed: &mut Listed, path: &RelativePath, len: u64, crc32c: u32) -> Result<()> {
    let passed = listed.pass(path, len, crc32c);
    passed.map_err(|why| refused(path, &why))
}

#[cfg(test)]
mod tests {
    use crate::files::slices::SLICE_BYTES;

    use super::*;

    #[test]
    fn fault_240_a_long_old_file_has_the_digests_that_one_reading_finds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("old");
        let len = usize::try_from(2 * SLICE_BYTES).unwrap() + 5 * BLOCK_BYTES + 17;
        let numbers = (0_u32..).map(|at| u8::try_from(at.wrapping_mul(at) % 253).unwrap());
        let content: Vec<u8> = numbers.take(len).collect();
        std::fs::write(&path, &content).unwrap();
        let (old, new) = (File::open(&path).unwrap(), tempfile::tempfile().unwrap());
        let found = HashedPages::of(old.as_fd(), len as u64, |piece, offset| {
            new.write_all_at(piece, offset)
                .map_err(|error| CommandError::retry("write").because(error))
        });
        let found = found.unwrap();
        let digests: Vec<u64> = content.chunks(BLOCK_BYTES).map(block_digest).collect();
        assert!(found.digests == digests);
        assert_eq!(found.digest.len, len as u64);
        assert_eq!(found.digest.crc32c, crc32c::crc32c(&content));
        let mut copied = vec![0; len];
        new.read_exact_at(&mut copied, 0).unwrap();
        assert!(copied == content);
        let read = |piece: &mut [u8], offset| read_full(new.as_fd(), piece, offset);
        assert_eq!(check_slices(len as u64, &read).unwrap(), found.digest);
        // Nothing counts behind what cannot be read.
        let longer = HashedPages::of(old.as_fd(), 4 * SLICE_BYTES, |_, _| Ok(())).unwrap();
        assert_eq!(longer.digest, found.digest);
    }
}
