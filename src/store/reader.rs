//! The archive as those see it who only read: a recovering PostgreSQL's commands.
//! Never takes the lock, never changes or sets aside anything, so it works beside a running
//! receiver. Invariant: what it hands out is what was acknowledged, was checked record by record then or now, and
//! goes on with the segment before it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use walmgr_protocol::limits::SMALL_FILE_BYTES_MAX;
use walmgr_protocol::names::{Lsn, SegmentName, TimelineId, WalFileName, WalSegmentSize};

use super::apart_notes::{self, ApartNote};
use super::beside::damaged_copy_of;
use super::binding::{Binding, Marker, MarkerRole};
use super::checksums::{Checksums, KeptChecksum};
use super::disk::{Disk, FileStat};
use super::error::StoreError;
use super::finished::{FinishedFile, StoredPiece};
use super::folder::Folder;
use super::health::Monitor;
use super::joints::{JointVerdict, Joints};
use super::lineage::{
    HistoryAnswer, Lineage, LineageFacts, Missing, SegmentProgress, TimelineLine,
};
use super::map_notes;
use super::partial::PartialEnd;
use super::proof::{Prover, WalProof};
use super::segment_runs::SegmentRuns;
use crate::files::{self, FileId};
use crate::wal::history::History;
use crate::wal::joint::SegmentEnd;
use crate::wal::obstacle::Obstacles;
use crate::wal::scan::Scanner;
use crate::wal::segment::{SegmentCheck, Verify, WalSummary};
use crate::wal::segment_map::{MappedFile, SegmentMap};

/// An archive that is open for reading.
pub struct ArchiveReader {
    pub(super) completed: Arc<Folder>,
    checksums: Arc<Checksums>,
    binding: Binding,
}

/// A stored file that is open; what its name leads to later makes no difference.
pub struct Stored {
    folder: Arc<Folder>,
    checksums: Arc<Checksums>,
    binding: Binding,
    name: WalFileName,
    file: FinishedFile,
}

/// What a file turned out to be that was looked at by itself.
struct Alone {
    wal: Option<WalSummary>,
    /// Whether it was compared with what was kept.
    is_as_kept: bool,
    /// What replay may not get past in it.
    obstacles: Obstacles,
    /// Length and CRC-32.
    digest: (u64, u32),
    /// What its records change, if that was wanted.
    map: Option<SegmentMap>,
}

/// What a file turned out to be that was handed out.
struct ReadOnce {
    /// Whether one record fills it.
    is_filled: bool,
    is_as_kept: bool,
    /// The CRC-32 of the segment before, if nothing in the record between the two need be looked at again.
    follows: Option<u32>,
    obstacles: Obstacles,
}

impl ReadOnce {
    /// One whose records need not be gone through.
    fn proven(kept: KeptChecksum) -> ReadOnce {
        ReadOnce {
            is_filled: kept.end == Some(SegmentEnd::Inside),
            is_as_kept: true,
            follows: kept.follows,
            obstacles: Obstacles::default(),
        }
    }
}

impl From<Alone> for ReadOnce {
    fn from(alone: Alone) -> ReadOnce {
        ReadOnce {
            is_filled: (alone.wal).is_some_and(|wal| wal.records == 0 && wal.continues),
            is_as_kept: alone.is_as_kept,
            follows: None,
            obstacles: alone.obstacles,
        }
    }
}

/// Whether whoever reads a segment has read the one before it.
#[derive(Clone, Copy)]
pub enum SegmentBefore<'a> {
    /// He has, so this one has to go on with that.
    Read,
    /// His recovery begins within this one: what was stored under the name before makes it no worse.
    NotRead,
    /// Unknown. If the segment does not go on with the one before, this function says whether a recovery can
    /// only begin within it.
    ReadUnless(&'a dyn Fn(SegmentName) -> bool),
}

/// What a listing of the archive says about a file that it does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Absence {
    /// It is not there, nor anything behind it on its timeline.
    Proven,
    /// It is not there, but this is, which shows that it should be.
    Gap(WalFileName),
    /// All there is of it is this damaged copy.
    OnlyDamaged(String),
    /// It was stored in the meantime.
    Appeared,
}

/// The files that an archive holds, and those of which it holds a damaged copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveListing {
    /// Finished segments.
    pub segments: SegmentRuns,
    /// Other finished files, with what has the name of a segment and not of one of this size.
    pub others: BTreeSet<WalFileName>,
    /// Files that were set aside, with the name of the copy.
    pub damaged: BTreeSet<(WalFileName, String)>,
}

impl ArchiveListing {
    /// Everything that is there, as far as WAL files go; segments have this size.
    pub(super) fn read(completed: &Folder, size: WalSegmentSize) -> Result<Self, StoreError> {
        let (segments, others) = completed.held(size)?;
        let mut listing = ArchiveListing {
            segments,
            others: BTreeSet::new(),
            damaged: BTreeSet::new(),
        };
        for text in others {
            if let Ok(name) = text.parse() {
                listing.others.insert(name);
            } else if let Some(name) = damaged_copy_of(&text) {
                listing.damaged.insert((name, text));
            }
        }
        Ok(listing)
    }

    /// Whether a file is there under its final name.
    pub fn contains(&self, name: WalFileName) -> bool {
        match name {
            WalFileName::Segment(segment) if self.segments.contains(segment) => true,
            name => self.others.contains(&name),
        }
    }

    /// The files from this name on, in order, so many of them at most.
    pub(super) fn starting_at(&self, first: Option<WalFileName>, most: usize) -> Vec<WalFileName> {
        let mut names: Vec<WalFileName> =
            first.filter(|it| self.contains(*it)).into_iter().collect();
        names.extend(self.behind(first, most));
        names.truncate(most);
        names
    }

    /// The files behind this one, in order, so many of them at most.
    pub(super) fn behind(&self, after: Option<WalFileName>, most: usize) -> Vec<WalFileName> {
        let segments: Vec<SegmentName> = match after {
            Some(WalFileName::Segment(after)) => {
                let newer = self
                    .segments
                    .timelines()
                    .filter(|it| *it > after.timeline());
                let newer = newer.flat_map(|timeline| self.segments.on(timeline));
                self.segments
                    .behind(after)
                    .chain(newer)
                    .take(most)
                    .collect()
            }
            _ => self.segments.iter().take(most).collect(),
        };
        let others = self.others.iter().copied();
        let found = segments.into_iter().map(WalFileName::Segment).chain(others);
        let mut found: Vec<WalFileName> = found
            .filter(|name| after.is_none_or(|after| *name > after))
            .collect();
        found.sort_unstable();
        found.truncate(most);
        found
    }
}

impl ArchiveReader {
    /// Opens `completed_wals`; it has to be set up and bound to a cluster.
    pub fn open(completed_wals: &Path, disk: Arc<dyn Disk>) -> Result<ArchiveReader, StoreError> {
        let folder = Folder::open_completed(completed_wals, disk, Arc::new(Monitor::new()))?;
        let not_set_up = || StoreError::NotSetUp {
            path: completed_wals.to_path_buf(),
        };
        let marker = Marker::read(&folder, MarkerRole::Completed)?.ok_or_else(not_set_up)?;
        let binding = marker.binding.ok_or(StoreError::NotBound)?;
        Ok(ArchiveReader::of(Arc::new(folder), binding))
    }

    /// The archive in a folder that is open and bound to a cluster.
    pub(super) fn of(completed: Arc<Folder>, binding: Binding) -> ArchiveReader {
        ArchiveReader {
            checksums: Arc::new(Checksums::open(&completed)),
            completed,
            binding,
        }
    }

    /// The cluster whose WAL is kept here.
    pub const fn binding(&self) -> Binding {
        self.binding
    }

    /// Opens a file, or says `None` when there is none of this name.
    pub fn find(&self, name: WalFileName) -> Result<Option<Stored>, StoreError> {
        self.find_beside(name, &name.to_string())
    }

    /// Opens a file of this name, or a copy that is kept beside it under the name `text`.
    pub fn find_beside(&self, name: WalFileName, text: &str) -> Result<Option<Stored>, StoreError> {
        let file = self.completed.open_finished(text)?;
        Ok(file.map(|file| Stored {
            folder: Arc::clone(&self.completed),
            checksums: Arc::clone(&self.checksums),
            binding: self.binding,
            name,
            file,
        }))
    }

    /// What the disk says of a finished file.
    pub fn stat(&self, name: WalFileName) -> Result<Option<FileStat>, StoreError> {
        self.completed.stat_at(&name.to_string())
    }

    /// Who brought a finished file, if that was kept.
    pub fn brought_by(&self, name: WalFileName) -> Option<String> {
        self.checksums.brought_by(name)
    }

    /// The name of the newest damaged copy of a segment that was set aside.
    pub fn damaged_copy(&self, segment: SegmentName) -> Result<Option<String>, StoreError> {
        let copies = self.listing()?.damaged.into_iter();
        let mut copies = copies.filter(|(name, _)| *name == WalFileName::Segment(segment));
        Ok(copies.next_back().map(|(_, copy)| copy))
    }

    /// A scanner that comes out of the finished segment before this one; `None` if there is none, or its
    /// own records do not hold.
    pub fn scanner_before(&self, segment: SegmentName) -> Result<Option<Scanner>, StoreError> {
        self.joints().scanner_before(segment)
    }

    fn joints(&self) -> Joints<'_> {
        Joints {
            completed: &self.completed,
            checksums: &self.checksums,
            binding: self.binding,
            verify: Verify::Records,
        }
    }

    /// Proves that a stretch of WAL is here, as [`Archive::prove_wal`](super::Archive::prove_wal) does, beside a
    /// receiver or without one.
    pub fn prove_wal(
        &self,
        first: SegmentName,
        stop: Lsn,
        verify: Verify,
    ) -> Result<WalProof, StoreError> {
        let prover = Prover {
            completed: &self.completed,
            checksums: &self.checksums,
            binding: self.binding,
        };
        prover.prove(first, stop, verify, &mut |name, before| {
            prover.confirm(name, verify, before)
        })
    }

    /// The timelines that lead to the newest; nothing where there is no WAL, or it cannot be told.
    pub fn newest_line(&self) -> Option<TimelineLine> {
        let lineage = self.lineage(&[]).ok()?;
        Some(lineage.line_to(lineage.newest()?))
    }

    /// Everything that is there, as far as WAL files go.
    pub fn listing(&self) -> Result<ArchiveListing, StoreError> {
        ArchiveListing::read(&self.completed, self.binding.segment_size)
    }

    /// Whether a standby passes over a segment when it comes to it. It does if an old master wrote the segment behind
    /// the end of its timeline, or if the segment does not go on with the one before.
    pub fn is_passed_over(&self, segment: SegmentName) -> Result<bool, StoreError> {
        apart_notes::is_passed_over(&self.completed, segment)
    }

    /// Lets the timelines give way that came from this one and have no WAL here; see
    /// [`Lineage::giving_way_to`]. Says which.
    pub fn give_way(
        &self,
        partials: &[PartialEnd],
        timeline: TimelineId,
    ) -> Result<Vec<TimelineId>, StoreError> {
        apart_notes::give_way(&self.completed, self.lineage(partials)?, timeline)
    }

    /// What is set apart, and who brought it.
    pub fn apart(&self) -> Result<Vec<ApartNote>, StoreError> {
        apart_notes::told(&self.completed)
    }

    /// The timelines that only keys claim, and who brought the history of each.
    pub fn claims(&self) -> Result<BTreeMap<TimelineId, String>, StoreError> {
        apart_notes::claims(&self.completed)
    }

    /// What a server gets that asks for a timeline's history; see [`Lineage::asked`].
    pub fn asked(&self, timeline: TimelineId, opens: bool) -> Result<HistoryAnswer, StoreError> {
        Ok(self.lineage(&[])?.asked(timeline, opens))
    }

    /// What leads from where to where, with these segments in progress.
    pub fn lineage(&self, partials: &[PartialEnd]) -> Result<Lineage, StoreError> {
        let partials = partials
            .iter()
            .map(|partial| (partial.segment, Some(partial.progress())));
        self.lineage_of(&self.listing()?, partials.collect())
    }

    /// What leads from where to where, by a listing that was made before; `partials` as
    /// [`LineageFacts::partials`].
    pub fn lineage_of(
        &self,
        listing: &ArchiveListing,
        partials: BTreeMap<SegmentName, Option<SegmentProgress>>,
    ) -> Result<Lineage, StoreError> {
        let mut facts = LineageFacts {
            size: self.binding.segment_size,
            segments: listing.segments.clone(),
            damaged: BTreeSet::new(),
            partials,
            histories: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            notes: apart_notes::notes(&self.completed)?,
            claimed: apart_notes::claims(&self.completed)?.into_keys().collect(),
            unended: BTreeMap::new(),
        };
        for name in &listing.others {
            match name {
                WalFileName::History(timeline) => match self.history(*timeline) {
                    Ok(Some(history)) => {
                        facts.histories.insert(*timeline, history);
                    }
                    Ok(None) => {}
                    Err(StoreError::Damaged { why, .. }) => {
                        facts.unreadable.insert(*timeline, why);
                    }
                    // One bad sector keeps nobody from the other timelines.
                    Err(error @ StoreError::Disk { .. }) => {
                        facts.unreadable.insert(*timeline, error.to_string());
                    }
                    Err(error) => return Err(error),
                },
                WalFileName::Segment(_)
                | WalFileName::Partial(_)
                | WalFileName::BackupHistory(..) => {}
            }
        }
        let damaged = listing.damaged.iter().filter_map(|(name, _)| match name {
            WalFileName::Segment(segment) => Some(*segment),
            _ => None,
        });
        facts.damaged = damaged.collect();
        let mut lineage = Lineage::of(facts);
        lineage.learn_unended(None, |segment| self.end_of(&listing.segments, segment))?;
        Ok(lineage)
    }

    /// How a finished segment ends; `None` if it is not there or nobody can tell.
    pub(super) fn end_of(
        &self,
        finished: &SegmentRuns,
        segment: SegmentName,
    ) -> Result<Option<SegmentEnd>, StoreError> {
        match finished.contains(segment) {
            true => self.joints().end_of(segment),
            false => Ok(None),
        }
    }

    /// What it means that [`ArchiveReader::find`] found nothing.
    pub fn absence(&self, name: WalFileName) -> Result<Absence, StoreError> {
        let listing = self.listing()?;
        if listing.contains(name) {
            return Ok(Absence::Appeared);
        }
        if let Some((_, copy)) = listing.damaged.iter().find(|(of, _)| *of == name) {
            return Ok(Absence::OnlyDamaged(copy.clone()));
        }
        let WalFileName::Segment(segment) = name else {
            return Ok(Absence::Proven);
        };
        match self
            .lineage_of(&listing, BTreeMap::new())?
            .missing(segment)?
        {
            Missing::Later(later) => Ok(Absence::Gap(WalFileName::Segment(later))),
            Missing::Nothing => Ok(Absence::Proven),
        }
    }

    /// A timeline's history, if it is there; a damaged one is an error.
    pub fn history(&self, timeline: TimelineId) -> Result<Option<History>, StoreError> {
        let name = WalFileName::History(timeline);
        let Some(stored) = self.find(name)? else {
            return Ok(None);
        };
        let mut text = Vec::new();
        stored.read_verified(SegmentBefore::Read, |bytes| {
            text.extend_from_slice(bytes);
            text.len() as u64 <= SMALL_FILE_BYTES_MAX
        })?;
        let damaged = |why: String| StoreError::Damaged { name, why };
        let history =
            History::parse(timeline, &text).map_err(|fault| damaged(fault.to_string()))?;
        Ok(Some(history))
    }
}

impl Stored {
    /// Hands the file to `each` piece by piece; ends early, with an error, when `each` has seen enough. Says what
    /// replay may not get past in it. A segment whose records all held when it was stored is compared with what it
    /// was then; the records of any other are gone through.
    ///
    /// # Errors
    /// What is wrong with the file, or with how it goes on with the segment before. What was handed over by
    /// then is worth nothing.
    pub fn read_verified(
        &self,
        before: SegmentBefore<'_>,
        each: impl FnMut(&[u8]) -> bool,
    ) -> Result<Obstacles, StoreError> {
        let read = match self.proven() {
            Some(kept) => self.read_proven(kept, each)?,
            None => self.read_alone(false, each)?.into(),
        };
        self.joined(read, before)
    }

    /// Hands the file to `each` piece by piece, for a caller that can unpack. A packed segment whose records all held
    /// when it was stored is handed over packed; any other file is handed over as it was before it was packed. Returns
    /// the unpacked file's length in bytes and its CRC-32. The caller compares both with what it unpacked.
    ///
    /// # Errors
    /// As [`Stored::read_verified`].
    pub(crate) fn read_as_stored(
        &self,
        before: SegmentBefore<'_>,
        mut each: impl FnMut(StoredPiece<'_>) -> bool,
    ) -> Result<(u64, u32), StoreError> {
        if let Some(kept) = self.proven() {
            let mut is_wanted = true;
            let packed = self.folder.read_packed(&self.file, |piece| {
                is_wanted = each(piece);
                is_wanted
            })?;
            if !is_wanted {
                return Err(self.not_read_on());
            }
            if let Some((len, crc32)) = packed {
                self.check_kept(kept, (len, crc32))?;
                self.joined(ReadOnce::proven(kept), before)?;
                return Ok((len, crc32));
            }
        }
        let (mut len, mut crc) = (0, crc32fast::Hasher::new());
        self.read_verified(before, |bytes| {
            len += bytes.len() as u64;
            crc.update(bytes);
            each(StoredPiece::Raw(bytes))
        })?;
        Ok((len, crc.finalize()))
    }

    fn not_read_on(&self) -> StoreError {
        StoreError::Damaged {
            name: self.name,
            why: "it was not read to its end".to_owned(),
        }
    }

    /// Whether this is what was stored.
    fn check_kept(&self, kept: KeptChecksum, (len, crc32): (u64, u32)) -> Result<(), StoreError> {
        let Some(why) = kept.contradicts(len, crc32) else {
            return Ok(());
        };
        // Where it is damaged is what somebody will want to know.
        self.read_alone(false, |_| true)?;
        let name = self.name;
        Err(StoreError::Damaged { name, why })
    }

    /// What replay may not get past in it, the record that crosses its beginning included.
    fn joined(&self, read: ReadOnce, before: SegmentBefore<'_>) -> Result<Obstacles, StoreError> {
        let ReadOnce {
            is_filled,
            is_as_kept,
            follows,
            mut obstacles,
        } = read;
        let WalFileName::Segment(segment) = self.name else {
            return Ok(obstacles);
        };
        // What one record fills is checked where that ends.
        if is_filled || matches!(before, SegmentBefore::NotRead) {
            return Ok(obstacles);
        }
        if follows.is_some() && self.joints().kept_before(segment)? == follows {
            return Ok(obstacles);
        }
        match (self.check_joint(segment, is_as_kept), before) {
            (Ok(crossing), _) => obstacles.add_before(&crossing, Lsn(u64::MAX)),
            (Err(StoreError::Damaged { why, .. }), SegmentBefore::ReadUnless(begins))
                if begins(segment) =>
            {
                tracing::warn!("{segment} is handed out, since recovery may begin with it: {why}");
            }
            (Err(error), _) => return Err(error),
        }
        Ok(obstacles)
    }

    /// What a segment was when it was stored, if its records need not be gone through again.
    pub(super) fn proven(&self) -> Option<KeptChecksum> {
        let kept = self.checksums.read(self.name)?;
        (kept.has_sound_records && !kept.is_found).then_some(kept)
    }

    /// Hands out a segment whose records held when it was stored, and compares it with what it was.
    fn read_proven(
        &self,
        kept: KeptChecksum,
        mut each: impl FnMut(&[u8]) -> bool,
    ) -> Result<ReadOnce, StoreError> {
        let (mut crc, mut len, mut is_enough) = (crc32fast::Hasher::new(), 0, false);
        self.folder.read_finished(&self.file, |bytes| {
            crc.update(bytes);
            len += bytes.len() as u64;
            is_enough = !each(bytes);
            !is_enough
        })?;
        if is_enough && len < kept.len {
            return Err(self.not_read_on());
        }
        self.check_kept(kept, (len, crc.finalize()))?;
        Ok(ReadOnce::proven(kept))
    }

    /// What the records of a segment change: as it is kept, or else the segment is read for it, and it is kept.
    ///
    /// # Errors
    /// What is wrong with the file by itself.
    pub(super) fn map(&self) -> Result<SegmentMap, StoreError> {
        let WalFileName::Segment(segment) = self.name else {
            return Ok(SegmentMap::default());
        };
        let file = |(len, crc32)| MappedFile {
            segment,
            len,
            crc32,
        };
        if let Some(kept) = self.checksums.read(self.name)
            && let Some(map) = map_notes::read(&self.folder, &file((kept.len, kept.crc32)))?
        {
            return Ok(map);
        }
        let alone = self.read_alone(true, |_| true)?;
        let map = alone.map.unwrap_or_default();
        map_notes::keep(&self.folder, &file(alone.digest), &map);
        Ok(map)
    }

    fn read_alone(
        &self,
        notes_changes: bool,
        mut each: impl FnMut(&[u8]) -> bool,
    ) -> Result<Alone, StoreError> {
        let mut check = SegmentCheck::new(self.name, &self.binding.expected(), Verify::Records);
        if notes_changes {
            check = check.noting_changes();
        }
        let mut fault = None;
        let (mut crc, mut len) = (crc32fast::Hasher::new(), 0);
        self.folder.read_finished(&self.file, |bytes| {
            crc.update(bytes);
            len += bytes.len() as u64;
            fault = check.update(bytes).err();
            fault.is_none() && each(bytes)
        })?;
        let checked = fault.map_or_else(|| check.finish_at_end(), Err);
        let (summary, mut scanner) =
            checked.map_err(|fault| StoreError::of_fault(self.name, &fault))?;
        let kept = self.checksums.read(self.name);
        let crc32 = crc.finalize();
        let differs = kept.and_then(|kept| kept.contradicts(len, crc32));
        if let Some(why) = differs {
            let name = self.name;
            return Err(StoreError::Damaged { name, why });
        }
        Ok(Alone {
            wal: summary.wal,
            is_as_kept: kept.is_some(),
            digest: (len, crc32),
            map: scanner.as_mut().and_then(SegmentMap::take),
            obstacles: scanner.map_or_else(Obstacles::default, |it| it.obstacles().clone()),
        })
    }

    /// The obstacles in the record that crosses into the segment; fails if the segment does not go on with the
    /// one before. With `is_as_kept` the segment is what was acknowledged. It is then handed out even if the
    /// segment before is not what was acknowledged: only a recovery that begins here gets that far.
    fn check_joint(&self, segment: SegmentName, is_as_kept: bool) -> Result<Obstacles, StoreError> {
        let joints = self.joints();
        let verdict = joints.check(segment, None, |each| {
            self.folder.read_finished_pages(&self.file, 0, each)
        })?;
        let (before, why) = match verdict {
            JointVerdict::Unjoined(before, why) => (before, why),
            JointVerdict::Joined(crossing) => return Ok(crossing),
            JointVerdict::Inside(_) | JointVerdict::Unchecked => return Ok(Obstacles::default()),
        };
        if is_as_kept && joints.is_as_kept(before)? == Some(false) {
            tracing::warn!("{before} differs from what was acknowledged; {segment} does not");
            return Ok(Obstacles::default());
        }
        let name = self.name;
        let why = format!("{why}; {before} or this one is damaged");
        Err(StoreError::Damaged { name, why })
    }

    fn joints(&self) -> Joints<'_> {
        Joints {
            completed: &self.folder,
            checksums: &self.checksums,
            binding: self.binding,
            verify: Verify::Records,
        }
    }

    /// What replay may not get past in it, if that is known without reading it, and how it goes on with the segment
    /// before; nothing if it has to be read.
    ///
    /// # Errors
    /// It does not go on with the segment before.
    pub fn obstacles_unread(
        &self,
        before: SegmentBefore<'_>,
    ) -> Result<Option<Obstacles>, StoreError> {
        let proven = self.proven().map(ReadOnce::proven);
        proven.map(|proven| self.joined(proven, before)).transpose()
    }

    /// What it was when it was stored, if its records need not be gone through again: length and CRC-32.
    pub fn proven_digest(&self) -> Option<(u64, u32)> {
        self.proven().map(|kept| (kept.len, kept.crc32))
    }

    /// A name for a copy of it, which tells the stored file as it is, under this boot of the kernel, from any other;
    /// nothing where the system does not tell that.
    pub fn stamp(&self) -> Option<String> {
        let stat = self.folder.disk.stat(self.file.handle()).ok()?;
        let boot = files::boot();
        let FileId { device, inode } = stat.identity;
        let (len, modified, changed) = (stat.len, stat.modified_ns, stat.changed_ns);
        let name = self.name;
        (!boot.is_empty())
            .then(|| format!("{name}.{boot}.{device:x}.{inode:x}.{len:x}.{modified:x}.{changed:x}"))
    }

    /// Hands its bytes to `each` until that has seen enough, for a caller that has them checked already or checks
    /// them itself.
    pub fn read_unchecked(&self, each: impl FnMut(&[u8]) -> bool) -> Result<(), StoreError> {
        self.folder.read_finished(&self.file, each)
    }

    /// Fills as much of a buffer from an offset on as there is, unchecked; 0 at the end.
    pub fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<usize> {
        let read = (self.folder).read_finished_at(&self.file, buffer, offset_bytes);
        read.map_err(io::Error::other)
    }
}
