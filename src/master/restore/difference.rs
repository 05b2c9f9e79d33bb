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

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use walmgr_protocol::limits::MANIFEST_BYTES_MAX;
use walmgr_protocol::names::RelativePath;

use super::comparing::Comparing;
use super::kept::{ChangedFile, KeptFiles, KeptPages};
use super::made::{MadePages, SetFile};
use super::old::OldDirectory;
use super::pages::{MissingPages, PageSink};
use super::place::{RestorePlace, SPARE_BYTES};
use super::stream::{RemoteSet, Streams};
use super::tree::{NewTree, failed, refused};
use super::unpack::{Layout, Unpack};
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files::{self, ChangeStamp, RoomNeeded};
use crate::master::fetch::Fetching;
use crate::pg::control;
use crate::pg::hashed_pages::HashedPages;
use crate::pg::layout;
use crate::pg::listed::{Listed, stored_path};
use crate::pg::manifest::Reader;
use crate::pg::old_files::{OldFile, OldFiles, PIECE_BYTES, may_be_taken, read_full};
use crate::pg::set_place::taking::{self, DeltaWay};

/// How many compare at once: reading is what costs, and the host has other work.
const THREADS: usize = 2;

/// How much of the set is compared at a time, while what is missing of the round before comes: so much that a request more
/// costs nothing beside it. One file may be more.
const ROUND_BYTES: u64 = 256 << 20;

/// How long the connection stays while nothing is asked for.
const PATIENCE: Duration = Duration::from_secs(2);

/// What there is of a file.
enum FileStanding {
    /// All of it is where it belongs.
    Taken { crc32c: u32 },
    /// It is made, and lacks pages that are not these.
    Made(MadePages),
    /// It lies in the old directory, with all of it as it has to be.
    Lying { old: ChangeStamp, crc32c: u32 },
    /// It lies in the old directory, and lacks pages that are not these.
    Differing { old: ChangeStamp, pages: MadePages },
}

/// What came of the files of a round.
struct RoundPages<'a, 'k> {
    /// Of those that are made, where that was written.
    written: HashMap<RelativePath, Vec<Range<u64>>>,
    /// Of those that lie in the old directory, if any does.
    kept: Option<&'a mut KeptFiles<'k>>,
}

impl<'k> RoundPages<'_, 'k> {
    fn kept_of(&mut self, number: usize, path: &RelativePath) -> Result<ChangedFile<'k>> {
        let lost = || refused(path, "nothing is kept of what differs");
        self.kept.as_mut().ok_or_else(lost)?.of(number)
    }
}

/// What a difference is made of.
struct Difference {
    old: OldFiles,
    way: DeltaWay,
    /// Whether files can share their content.
    shares: bool,
    tree: NewTree,
    files: Vec<SetFile>,
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
    let difference = Arc::new(Difference {
        old: OldFiles::open(&place.data).at(Kind::Retry, "open", &place.data)?,
        way: old.way,
        shares,
        tree: NewTree::of(place)?,
        files,
    });
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
    let mut kept_files = kept.as_ref().map(KeptPages::files);
    let mut next = difference.begin_round(0)?;
    while let Some(round) = next.take() {
        let mut found = round.found(PATIENCE, &mut streams).await?;
        let from = standings.len();
        next = difference.begin_round(from + found.len())?;
        let missing = difference.missing(from, &mut found);
        let keeper = kept.as_ref().map(KeptPages::writer).transpose()?;
        let counters = streams.counters();
        let mut sink = PageSink::new(difference.tree.clone(), missing, keeper, counters);
        while !sink.is_done() {
            sink = streams.get(sink).await?;
            sink.answered()?;
        }
        brought_bytes += sink.brought_bytes();
        let arrived = RoundPages {
            written: sink.into_written(),
            kept: kept_files.as_mut(),
        };
        difference.check_round(from, &mut found, arrived, &mut listed)?;
        standings.append(&mut found);
    }
    streams.pause().await;
    if let Some(kept) = kept {
        old.touch()?;
        difference.move_over(&standings)?;
        difference.write_kept(&kept, &standings)?;
        kept.remove()?;
    }
    let finished = listed.finish();
    finished.map_err(|(path, why)| refused(&path, &why))?;
    let total_bytes: u64 = difference.files.iter().map(|file| file.entry.size).sum();
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

impl Difference {
    /// The files from this one on that are compared before what is missing of them is fetched; none behind the last.
    fn round(&self, from: usize) -> Range<usize> {
        let mut bytes = 0_u64;
        let fits = |file: &&SetFile| {
            bytes = bytes.saturating_add(file.entry.size);
            bytes <= ROUND_BYTES
        };
        let count = self.files[from..].iter().take_while(fits).count().max(1);
        from..self.files.len().min(from + count)
    }

    /// Compares the files from this one on, as many as are a round; `None` behind the last.
    fn begin_round(self: &Arc<Self>, from: usize) -> Result<Option<Comparing<Vec<FileStanding>>>> {
        let (difference, round) = (Arc::clone(self), self.round(from));
        if round.is_empty() {
            return Ok(None);
        }
        Comparing::begin(move |is_over| difference.compare(round, is_over)).map(Some)
    }

    /// What there is of these files. Ends soon when it is over.
    fn compare(&self, range: Range<usize>, is_over: &AtomicBool) -> Result<Vec<FileStanding>> {
        // The first is the one to tell of: the others end because of it.
        let (next, first_fault) = (AtomicUsize::new(range.start), OnceLock::new());
        let run = || {
            let (mut tree, mut buffer) = (self.tree.clone(), vec![0; PIECE_BYTES]);
            let mut standings = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= range.end || is_over.load(Ordering::Relaxed) {
                    return standings;
                }
                let file = &self.files[number];
                match self.judge(file, &mut tree, &mut buffer, is_over) {
                    Ok(standing) => standings.push((number, standing)),
                    Err(fault) => {
                        let _ = first_fault.set(fault);
                        is_over.store(true, Ordering::Relaxed);
                    }
                }
            }
        };
        let mut all = std::thread::scope(|scope| {
            let others: Vec<_> = (1..THREADS).map(|_| scope.spawn(run)).collect();
            let mut all = run();
            for other in others {
                let lost = |_| CommandError::retry("wait for a thread that compares");
                all.extend(other.join().map_err(lost)?);
            }
            Ok::<_, CommandError>(all)
        })?;
        if let Some(fault) = first_fault.into_inner() {
            return Err(fault);
        }
        all.sort_by_key(|(number, _)| *number);
        Ok(all.into_iter().map(|(_, standing)| standing).collect())
    }

    fn judge(
        &self,
        file: &SetFile,
        tree: &mut NewTree,
        buffer: &mut [u8],
        is_over: &AtomicBool,
    ) -> Result<FileStanding> {
        let (path, entry) = (&file.path, &file.entry);
        let old = self.old.find(path);
        if self.way == DeltaWay::Beside {
            let new = tree.make_file(path, path.file_name())?;
            return match old {
                Some(old) => self.take(&old, &new, file, (buffer, is_over)),
                None => Ok(FileStanding::Made(MadePages::default())),
            };
        }
        // Nothing changes directories across file systems.
        let Some(old) = old.filter(|_| !tree.is_elsewhere(path)) else {
            tree.make_file(path, path.file_name())?;
            return Ok(FileStanding::Made(MadePages::default()));
        };
        let (old_len, handle) = (old.len(), old.handle());
        let found = HashedPages::of(handle, old_len.min(entry.size), |_, _| go_on(is_over))?;
        // The disk may have lost more of one that cannot be read, so nothing is written into it.
        if found.digest.len < old_len.min(entry.size) {
            tree.make_file(path, path.file_name())?;
            return Ok(FileStanding::Made(MadePages::default()));
        }
        Ok(match found.agrees(entry, (handle, old_len), buffer) {
            Some(crc32c) => FileStanding::Lying {
                old: old.stamp(),
                crc32c,
            },
            None => FileStanding::Differing {
                old: old.stamp(),
                pages: MadePages::of(found),
            },
        })
    }

    /// Has the content of an old file in a new one, as far as it can be read.
    fn take(
        &self,
        old: &OldFile,
        new: &File,
        file: &SetFile,
        (buffer, is_over): (&mut [u8], &AtomicBool),
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
            go_on(is_over)
        })?;
        match found.agrees(entry, (new.as_fd(), old.len()), buffer) {
            Some(crc32c) => Ok(FileStanding::Taken { crc32c }),
            None => Ok(FileStanding::Made(MadePages::of(found))),
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
            let digests = match standing {
                FileStanding::Made(pages) | FileStanding::Differing { pages, .. } => {
                    pages.take_digests()
                }
                FileStanding::Taken { .. } | FileStanding::Lying { .. } => continue,
            };
            if file.entry.size > 0 {
                missing.push(MissingPages {
                    path: file.path.clone(),
                    kept_as: is_kept.then(|| u32::try_from(number).unwrap_or(u32::MAX)),
                    offset: 0,
                    end: file.entry.size,
                    digests: digests.into(),
                    asked_end: 0,
                });
            }
        }
        missing
    }

    /// Compares what files are or will be with the manifest, the first of which has this number; this of them came. What they
    /// had is of no use behind that.
    fn check_round(
        &self,
        from: usize,
        standings: &mut [FileStanding],
        mut arrived: RoundPages<'_, '_>,
        listed: &mut Listed,
    ) -> Result<()> {
        let (mut tree, mut buffer) = (self.tree.clone(), vec![0; PIECE_BYTES]);
        for (number, standing) in (from..).zip(standings) {
            let file = &self.files[number];
            let (path, size) = (&file.path, file.entry.size);
            let crc32c = match standing {
                FileStanding::Taken { crc32c } | FileStanding::Lying { crc32c, .. } => *crc32c,
                FileStanding::Made(pages) => {
                    let made = tree.open_file(path)?;
                    let cut = made.set_len(size);
                    cut.map_err(|error| failed("set the length of", path, error))?;
                    let written = arrived.written.get(path).map_or(&[][..], Vec::as_slice);
                    let read = |piece: &mut [u8], offset| read_full(made.as_fd(), piece, offset);
                    std::mem::take(pages).check(file, written, &mut buffer, read)?
                }
                FileStanding::Differing { old, pages } => {
                    let changed = arrived.kept_of(number, path)?;
                    let old = self.lying(file, *old)?;
                    let read =
                        |piece: &mut [u8], offset| changed.read_over(&old, size, piece, offset);
                    std::mem::take(pages).check(file, &changed.ranges(), &mut buffer, read)?
                }
            };
            pass(listed, path, size, crc32c)?;
        }
        Ok(())
    }

    /// A file of the old directory that is still as it was when it was compared.
    fn lying(&self, file: &SetFile, old: ChangeStamp) -> Result<OldFile> {
        (self.old.find_again(&file.path, old)).ok_or_else(|| {
            CommandError::retry(format!(
                "{} was changed in the old directory meanwhile",
                file.path
            ))
        })
    }

    fn move_over(&self, standings: &[FileStanding]) -> Result<()> {
        let mut tree = self.tree.clone();
        for (file, standing) in self.files.iter().zip(standings) {
            let (FileStanding::Lying { old, .. } | FileStanding::Differing { old, .. }) = standing
            else {
                continue;
            };
            let (above, name) = (tree.above(&file.path)?, file.path.file_name());
            let old = self.lying(file, *old)?;
            let moved = old.move_to(above.as_fd(), OsStr::from_bytes(name));
            moved.map_err(|error| failed("move", &file.path, error))?;
        }
        Ok(())
    }

    fn write_kept(&self, kept: &KeptPages, standings: &[FileStanding]) -> Result<()> {
        let (mut tree, mut pages) = (self.tree.clone(), kept.files());
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

/// Ends a comparison that nobody waits for any more.
fn go_on(is_over: &AtomicBool) -> Result<()> {
    match is_over.load(Ordering::Relaxed) {
        false => Ok(()),
        true => Err(CommandError::retry(
            "the comparison of the old directory is over",
        )),
    }
}

fn pass(listed: &mut Listed, path: &RelativePath, len: u64, crc32c: u32) -> Result<()> {
    let passed = listed.pass(path, len, crc32c);
    passed.map_err(|why| refused(path, &why))
}
