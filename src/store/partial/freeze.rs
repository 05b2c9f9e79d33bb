//! The freeze: nothing more of a timeline is taken, and what is held of it can be replayed.
//! Never takes the archive's lock and never waits for who has it: a standby is booted whether its
//! receiver runs, hangs or is gone. Invariant: every record that was or will be acknowledged is in
//! the frozen copies, and those do not change.
//!
//! ```text
//! write FROZEN, sync            from here on the receiver refuses the timeline, also after a restart
//! copy NAME to NAME.frozen, sync   a crash leaves copies that nobody reads; they are made again
//! write the list to FROZEN, sync   they count: these bytes, and zeros to the segment's length
//! ```
//!
//! The receiver looks for FROZEN after it has synced records and before it acknowledges them. If it
//! finds none, they were in the file before the copies were made. If it finds one, it acknowledges
//! nothing, whether the copies have them or not. So there is no lock that a receiver which
//! hangs could keep from whoever boots.
//!
//! The partial segments themselves stay as they are. A freeze ends with [`PartialWals::thaw`], and
//! never concerned a newer timeline.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use walmgr_protocol::names::{Lsn, SegmentName, TimelineId, WalFileName};

use super::acknowledged::Acknowledged;
use super::names::{PartialEnd, partial_end, partial_names};
use super::proven::{self, LOOKS_MAX};
use super::records::{Before, RecordSearch, out_of, scanner_at, start_of};
use crate::store::binding::{Binding, Marker, MarkerRole};
use crate::store::damage::Damage;
use crate::store::disk::Disk;
use crate::store::error::StoreError;
use crate::store::folder::Folder;
use crate::store::health::Monitor;
use crate::wal::scan::Scanner;

/// The file that says so.
const FROZEN_NAME: &str = "FROZEN";

/// What a copy is called behind its segment's name.
const COPY_SUFFIX: &str = ".frozen";

/// Some hundred bytes a segment, and more of them than a master can have ahead of its archive.
const FROZEN_BYTES_MAX: usize = 16 << 20;

/// A receiver that starts clears what looks like its own temporaries.
const WRITE_ATTEMPTS_MAX: u32 = 3;

/// What FROZEN says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freeze {
    /// This timeline and every older one are frozen.
    pub timeline: TimelineId,
    /// The server that is booted with the copies, as `STOP` names it.
    pub server: String,
    /// The copies; `None` while they are being made.
    pub segments: Option<Vec<FrozenSegment>>,
}

/// A copy that is replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrozenSegment {
    /// Of which segment.
    pub segment: SegmentName,
    /// Where its records end.
    pub end: Lsn,
    /// CRC-32 of the whole segment, the zeros included.
    pub crc32: u32,
}

/// What a server has of a frozen segment by itself, against the copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnSegment {
    /// The records of the copy, or less of them.
    NoMore,
    /// More: it was streamed.
    Further,
    /// Other records.
    Other,
}

/// A copy, and a scanner at the beginning of the next segment if replay goes on there.
type Copied = (FrozenSegment, Option<Scanner>);

/// The partial segments as those see them who boot: beside a receiver, and without its lock.
pub struct PartialWals {
    pub(super) folder: Arc<Folder>,
    pub(super) binding: Binding,
}

/// Fails if the timeline is frozen.
pub(super) fn refuse(folder: &Folder, timeline: TimelineId) -> Result<(), StoreError> {
    match is_frozen(folder, timeline)? {
        true => Err(StoreError::Frozen { timeline }),
        false => Ok(()),
    }
}

/// Whether the timeline is frozen.
pub(super) fn is_frozen(folder: &Folder, timeline: TimelineId) -> Result<bool, StoreError> {
    let freeze = Freeze::read(folder)?;
    Ok(freeze.is_some_and(|freeze| timeline <= freeze.timeline))
}

impl PartialWals {
    /// Opens `partial_wals`; it has to be set up and bound to a cluster.
    pub fn open(partial_wals: &Path, disk: Arc<dyn Disk>) -> Result<PartialWals, StoreError> {
        let folder = Folder::open(partial_wals, disk, Arc::new(Monitor::new()))?;
        let marker = Marker::read(&folder, MarkerRole::Partial)?;
        let marker = marker.ok_or_else(|| StoreError::NotSetUp {
            path: partial_wals.to_path_buf(),
        })?;
        Ok(PartialWals {
            folder: Arc::new(folder),
            binding: marker.binding.ok_or(StoreError::NotBound)?,
        })
    }

    /// Where each partial segment ends that holds anything; reads all of them.
    pub fn ends(&self) -> Result<Vec<PartialEnd>, StoreError> {
        let mut ends = Vec::new();
        for segment in partial_names(&self.folder)? {
            ends.extend(partial_end(&self.folder, &self.binding, segment)?);
        }
        Ok(ends)
    }

    /// The segments in progress whose records were acknowledged and whose file is gone from this folder. The
    /// finished segment may exist elsewhere.
    pub fn vanished(&self) -> Result<Vec<Damage>, StoreError> {
        proven::vanished(None, &self.folder, &self.binding)
    }

    /// What is frozen, if anything.
    pub fn frozen(&self) -> Result<Option<Freeze>, StoreError> {
        Freeze::read(&self.folder)
    }

    /// Freezes this timeline and the older ones for a server, and copies what it is to replay:
    /// the partial segments for which `wanted` holds. Done again for the same server it only takes
    /// those off the list that are wanted no longer: what was finished since goes further.
    ///
    /// `before` has a scanner that comes out of the finished segment before one, so that the record that
    /// crosses into it is checked too.
    ///
    /// A segment that is damaged ends it with an error, unless `damaged_too`: then what is before
    /// the damage is copied.
    pub fn freeze(
        &self,
        timeline: TimelineId,
        server: &str,
        damaged_too: bool,
        mut wanted: impl FnMut(SegmentName) -> Result<bool, StoreError>,
        before: Before<'_>,
    ) -> Result<Freeze, StoreError> {
        // One that cannot be read stops the stream as well, and is replaced.
        if let Ok(Some(mut frozen)) = self.frozen()
            && (frozen.timeline, frozen.server.as_str()) == (timeline, server)
            && let Some(segments) = frozen.segments.take()
        {
            let before = segments.len();
            let mut kept = Vec::new();
            for copy in segments {
                if wanted(copy.segment)? {
                    kept.push(copy);
                }
            }
            let changed = kept.len() != before;
            frozen.segments = Some(kept);
            if changed {
                // At once and not by way of an empty list: a promotion may be under way.
                frozen.write(&self.folder)?;
            }
            return Ok(frozen);
        }
        let mut freeze = Freeze {
            timeline,
            server: server.to_owned(),
            segments: None,
        };
        freeze.write(&self.folder)?;
        self.remove_copies()?;
        let mut segments = Vec::new();
        let mut carried: Option<(SegmentName, Scanner)> = None;
        for segment in partial_names(&self.folder)? {
            if !wanted(segment)? {
                continue;
            }
            let scanner = match carried.take().filter(|(next, _)| *next == segment) {
                Some((_, scanner)) => Some(scanner),
                None => before(segment)?,
            };
            let Some((copy, behind)) = self.copy(segment, scanner, &self.folder, damaged_too)?
            else {
                continue;
            };
            segments.push(copy);
            carried = segment.next(self.binding.segment_size).zip(behind);
        }
        self.folder.sync()?;
        freeze.segments = Some(segments);
        freeze.write(&self.folder)?;
        Ok(freeze)
    }

    /// Copies every segment in progress into `to`, an empty directory, as a freeze does into this one, and freezes
    /// nothing. Whoever opens `to` by [`PartialWals::of_copies`] finds the copies that [`PartialWals::keep_copies`]
    /// names there.
    ///
    /// A record that was acknowledged before this call is in them, or in the archive by now. Of a damaged segment
    /// they have what is before the damage: [`PartialWals::ends`] tells of that.
    pub fn snapshot(&self, to: &Path, before: Before<'_>) -> Result<Vec<PartialEnd>, StoreError> {
        let to = self.copies_folder(to)?;
        let mut ends = Vec::new();
        let mut carried: Option<(SegmentName, Scanner)> = None;
        for segment in partial_names(&self.folder)? {
            let scanner = match carried.take().filter(|(next, _)| *next == segment) {
                Some((_, scanner)) => Some(scanner),
                None => before(segment)?,
            };
            let Some((copy, behind)) = self.copy(segment, scanner, &to, true)? else {
                continue;
            };
            ends.push(PartialEnd {
                segment,
                end: copy.end,
                is_whole: behind.is_some(),
                damage: None,
            });
            Self::append_copy(&to, copy)?;
            carried = segment.next(self.binding.segment_size).zip(behind);
        }
        Ok(ends)
    }

    /// Takes the copies off the snapshot's list for which `keeps` is false.
    pub fn keep_copies(&self, keeps: impl Fn(SegmentName) -> bool) -> Result<(), StoreError> {
        let Some(mut snapshot) = self.frozen()? else {
            return Ok(());
        };
        let segments = snapshot.segments.take().unwrap_or_default().into_iter();
        snapshot.segments = Some(segments.filter(|copy| keeps(copy.segment)).collect());
        snapshot.write(&self.folder)
    }

    /// Opens the directory of a snapshot of an archive with this binding.
    pub fn of_copies(
        copies: &Path,
        binding: Binding,
        disk: Arc<dyn Disk>,
    ) -> Result<PartialWals, StoreError> {
        let folder = Folder::open(copies, disk, Arc::new(Monitor::new()))?;
        let folder = Arc::new(folder);
        Ok(PartialWals { folder, binding })
    }

    fn copies_folder(&self, to: &Path) -> Result<Arc<Folder>, StoreError> {
        let disk = Arc::clone(&self.folder.disk);
        let folder = Folder::open(to, disk, Arc::new(Monitor::new()))?;
        Ok(Arc::new(folder))
    }

    fn append_copy(to: &Arc<Folder>, copy: FrozenSegment) -> Result<(), StoreError> {
        let mut snapshot = Freeze::read(to)?.unwrap_or_else(|| Freeze {
            timeline: copy.segment.timeline(),
            server: "snapshot".to_owned(),
            segments: Some(Vec::new()),
        });
        snapshot.segments.get_or_insert_default().push(copy);
        snapshot.write(to)
    }

    /// Removes the copies: nobody replays them any more. The freeze stays.
    pub fn remove_copies(&self) -> Result<(), StoreError> {
        for name in self.folder.names()? {
            let of = name.strip_suffix(COPY_SUFFIX);
            if of.is_some_and(|segment| segment.parse::<SegmentName>().is_ok()) {
                self.folder.remove(&name)?;
            }
        }
        Ok(())
    }

    /// Ends the freeze; `false` when there was none.
    pub fn thaw(&self) -> Result<bool, StoreError> {
        let there = self.folder.stat_at(FROZEN_NAME)?.is_some();
        self.folder.remove(FROZEN_NAME)?;
        self.remove_copies()?;
        self.folder.sync()?;
        Ok(there)
    }

    /// Hands a copy to `each` piece by piece, to its end or until `each` has seen enough.
    ///
    /// # Errors
    /// What is wrong with it. What was handed over by then is worth nothing.
    pub fn read_copy(
        &self,
        frozen: &FrozenSegment,
        mut each: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), StoreError> {
        let (name, file) = self.open_copy(frozen)?;
        let (mut crc, mut enough) = (crc32fast::Hasher::new(), false);
        self.folder.read_through(file.as_fd(), &name, |piece| {
            crc.update(piece);
            enough = !each(piece);
            !enough
        })?;
        match enough || crc.finalize() == frozen.crc32 {
            true => Ok(()),
            false => Err(Self::damaged("it is not what was frozen", frozen)),
        }
    }

    /// Compares a copy with the same segment in a server's own `pg_wal`.
    pub fn compare(&self, frozen: &FrozenSegment, own: &File) -> Result<OwnSegment, StoreError> {
        let (name, copy) = self.open_copy(frozen)?;
        let mut search = search(&self.binding, frozen.segment);
        let failed = |error| self.folder.failure("read pg_wal's", &name, error);
        let mut buffer = vec![0; 256 << 10];
        let mut offset_bytes = 0;
        loop {
            let read_bytes = own.read_at(&mut buffer, offset_bytes).map_err(failed)?;
            offset_bytes += read_bytes as u64;
            if read_bytes == 0 || !search.feed(&buffer[..read_bytes]) {
                break;
            }
        }
        let own_end = search.finish().lsn;
        let start = start_of(frozen.segment, &self.binding);
        let common_bytes = own_end.min(frozen.end).0.saturating_sub(start.0);
        let (mut at, mut same) = (0, Ok(true));
        self.folder.read_through(copy.as_fd(), &name, |piece| {
            let left = usize::try_from(common_bytes - at).unwrap_or(usize::MAX);
            let piece = &piece[..left.min(piece.len())];
            let ours = &mut buffer[..piece.len()];
            same = own.read_exact_at(ours, at).map(|()| *ours == *piece);
            at += piece.len() as u64;
            matches!(same, Ok(true)) && at < common_bytes
        })?;
        Ok(match same.map_err(failed)? {
            false => OwnSegment::Other,
            true if own_end > frozen.end => OwnSegment::Further,
            true => OwnSegment::NoMore,
        })
    }

    fn open_copy(&self, frozen: &FrozenSegment) -> Result<(String, OwnedFd), StoreError> {
        let name = format!("{}{COPY_SUFFIX}", frozen.segment);
        match self.folder.open_file(&name)? {
            Some(file) => Ok((name, file)),
            None => Err(Self::damaged("the frozen copy is gone", frozen)),
        }
    }

    fn damaged(why: &str, frozen: &FrozenSegment) -> StoreError {
        StoreError::Damaged {
            name: WalFileName::Partial(frozen.segment),
            why: why.to_owned(),
        }
    }

    /// Copies the records of a segment; `None` when it has none, or a push has finished it.
    ///
    /// Each look reads it once, as the receiver may be writing to it behind them. What is read while it is
    /// being written may look like anything, so damage is looked at again.
    fn copy(
        &self,
        segment: SegmentName,
        before: Option<Scanner>,
        to: &Folder,
        damaged_too: bool,
    ) -> Result<Option<Copied>, StoreError> {
        let mut looks = 0;
        loop {
            looks += 1;
            // By the last look what is damaged is what is there.
            let damaged_too = damaged_too && looks >= LOOKS_MAX;
            match self.copy_once(segment, before.clone(), to, damaged_too) {
                Err(StoreError::PartialDamaged(_)) if looks < LOOKS_MAX => {
                    to.remove(&format!("{segment}{COPY_SUFFIX}"))?;
                }
                other => return other,
            }
        }
    }

    fn copy_once(
        &self,
        segment: SegmentName,
        before: Option<Scanner>,
        to: &Folder,
        damaged_too: bool,
    ) -> Result<Option<Copied>, StoreError> {
        let (folder, size) = (&self.folder, self.binding.segment_size.bytes());
        let (name, copied) = (segment.to_string(), format!("{segment}{COPY_SUFFIX}"));
        let Some(file) = folder.open_file(&name)? else {
            return Ok(None);
        };
        let failed = |op| move |error| to.failure(op, &format!("{segment}{COPY_SUFFIX}"), error);
        let acknowledged = Acknowledged::read(folder, segment)?;
        let copy = (to.disk.create(to.handle(), &copied)).map_err(failed("create"))?;
        let first = before.map(|before| before.up_to_timeline(segment.timeline()));
        let first = first.unwrap_or_else(|| first_scanner(&self.binding, segment));
        let mut search = RecordSearch::new(segment, &self.binding, first);
        let (mut offset, mut written) = (0, Ok(()));
        folder.read_through(file.as_fd(), &name, |piece| {
            written = to.disk.write_all(copy.as_fd(), piece, offset);
            offset += piece.len() as u64;
            search.feed(piece) && written.is_ok()
        })?;
        written.map_err(failed("write"))?;
        let source = (folder.as_ref(), file.as_fd());
        let proven = proven::prove(source.0, source.1, &self.binding, search, acknowledged)?;
        match proven.damage {
            Some(damage) if !damaged_too => return Err(StoreError::PartialDamaged(damage)),
            Some(damage) => tracing::warn!("{damage}; it is replayed up to there"),
            None => {}
        }
        let end = proven.end;
        for len in [end.held_bytes, size] {
            (to.disk.set_len(copy.as_fd(), len)).map_err(failed("set the length of"))?;
        }
        to.sync_content(copy.as_fd(), &copied)?;
        if end.held_bytes == 0 {
            to.remove(&copied)?;
            return Ok(None);
        }
        let mut crc = crc32fast::Hasher::new();
        let copy = to.open_file(&copied)?.unwrap_or(copy);
        to.read_through(copy.as_fd(), &copied, |piece| {
            crc.update(piece);
            true
        })?;
        let frozen = FrozenSegment {
            segment,
            end: end.lsn,
            crc32: crc.finalize(),
        };
        let behind = out_of(end, segment, &self.binding);
        Ok(Some((frozen, behind)))
    }
}

fn search(binding: &Binding, segment: SegmentName) -> RecordSearch<'_> {
    RecordSearch::new(segment, binding, first_scanner(binding, segment))
}

fn first_scanner(binding: &Binding, segment: SegmentName) -> Scanner {
    scanner_at(segment, start_of(segment, binding), binding)
}

impl Freeze {
    fn read(folder: &Folder) -> Result<Option<Freeze>, StoreError> {
        let Some(content) = folder.read_small(FROZEN_NAME, FROZEN_BYTES_MAX)? else {
            return Ok(None);
        };
        let value = serde_json::from_slice(&content).ok();
        let freeze = value.as_ref().and_then(Freeze::parse);
        let freeze = freeze.filter(|freeze| freeze.text().as_bytes() == content);
        // Whoever wrote it meant the stream to stop, so nothing passes.
        let freeze = freeze.ok_or_else(|| StoreError::Marker {
            path: folder.path().join(FROZEN_NAME),
            why: "it is damaged, or boot did not write it".to_owned(),
        })?;
        Ok(Some(freeze))
    }

    fn parse(value: &Value) -> Option<Freeze> {
        let timeline = value.get("timeline")?.as_u64()?;
        let segments = match value.get("segments") {
            None => None,
            Some(list) => {
                let parsed: Option<Vec<_>> = (list.as_array()?.iter())
                    .map(FrozenSegment::parse)
                    .collect();
                Some(parsed?)
            }
        };
        Some(Freeze {
            timeline: TimelineId::new(u32::try_from(timeline).ok()?)?,
            server: value.get("server")?.as_str()?.to_owned(),
            segments,
        })
    }

    /// The file: JSON with the CRC-32 of itself without that. It is sound only if every byte of it is
    /// what would be written.
    fn text(&self) -> String {
        let mut value = json!({
            "timeline": self.timeline.number(),
            "server": self.server,
        });
        if let Some(segments) = &self.segments {
            value["segments"] = segments.iter().map(FrozenSegment::value).collect();
        }
        let crc32 = crc32fast::hash(value.to_string().as_bytes());
        value["crc32"] = json!(crc32);
        format!("{value:#}\n")
    }

    fn write(&self, folder: &Arc<Folder>) -> Result<(), StoreError> {
        let text = self.text();
        let mut written = folder.write_small(FROZEN_NAME, text.as_bytes());
        for _ in 1..WRITE_ATTEMPTS_MAX {
            if written.is_err() && folder.monitor.check().is_ok() {
                written = folder.write_small(FROZEN_NAME, text.as_bytes());
            }
        }
        written
    }
}

impl FrozenSegment {
    fn parse(value: &Value) -> Option<FrozenSegment> {
        Some(FrozenSegment {
            segment: value.get("segment")?.as_str()?.parse().ok()?,
            end: value.get("end")?.as_str()?.parse().ok()?,
            crc32: u32::try_from(value.get("crc32")?.as_u64()?).ok()?,
        })
    }

    fn value(&self) -> Value {
        json!({
            "segment": self.segment.to_string(),
            "end": self.end.to_string(),
            "crc32": self.crc32,
        })
    }
}
