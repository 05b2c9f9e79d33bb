//! Proves an archive and its backup sets: every byte that a recovery reads, and what is missing between.
//! Never locks, moves or changes anything but its own notes, so it runs beside everything else. Invariant: what a
//! receiver, a purge or a rotation does meanwhile is no finding.
//!
//! ```text
//! segments in progress    before the listing of finished ones: each may be finished any moment
//! finished files          all of them, or those that one set needs; what is remembered is passed over
//! files of each set       as its manifest lists them, and what it does not list
//! holes                   looked for twice: one that a purge or a late segment makes is not there the second time
//! windows                 from the commits that were seen while the segments were read, or are remembered
//! ```

pub(crate) mod finding;
pub(super) mod memory;
pub(crate) mod note;
mod wal;
mod window;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use walmgr_protocol::names::{
    BackupName, Lsn, SegmentName, TimelineId, WalFileName, WalSegmentSize,
};

use self::finding::{
    FaultPlace, SetWindow, VerifyFinding, VerifyFindings, VerifyReport, VerifyStep,
};
use self::memory::VerifyMemory;
use self::wal::WalVerification;
use self::window::{BackupWal, WalHole};
use super::binding::{Binding, Marker, MarkerRole};
use super::disk::Disk;
use super::error::StoreError;
use super::folder::Folder;
use super::health::Monitor;
use super::partial::{PartialEnd, partial_end, partial_names};
use super::reach::history_of;
use super::reader::ArchiveReader;
use super::route::Route;
use super::sets::purged_note::PurgedStretches;
use super::sets::verify::{DamagedSets, NamedSet, SetHere, SetRead};
use super::sets::{BackupSets, SetError};
use super::shared::{ArchiveFolders, finished_names};

/// What is to be proven.
#[derive(Clone, Copy)]
pub(crate) struct VerifyRequest<'a> {
    /// The archive.
    pub places: &'a ArchiveFolders,
    /// The newest set, if sets are kept.
    pub full_backup: Option<&'a Path>,
    /// Where both are.
    pub disk: &'a Arc<dyn Disk>,
    /// One set with the WAL that it needs, instead of everything.
    pub set: Option<&'a BackupName>,
    /// What was read longer ago is read again.
    pub again_after: Duration,
    /// Whether everything is read, whatever is remembered.
    pub reads_all: bool,
}

/// How many files there are to read, and in how many sets: for somebody who wants to know beforehand.
pub(crate) fn extent(request: &VerifyRequest<'_>) -> Result<(usize, usize), SetError> {
    let (completed, _, _) = open(request)?;
    let sets = open_sets(request)?;
    let here = here(sets.as_ref(), request.set)?;
    Ok((finished_names(&completed)?.len(), here.len()))
}

/// Proves it; each finding is handed out when it is made, and each file that was passed.
pub(crate) fn verify(
    request: &VerifyRequest<'_>,
    each: &mut dyn FnMut(VerifyStep<'_>),
) -> Result<VerifyReport, SetError> {
    let (completed, partial, binding) = open(request)?;
    let sets = open_sets(request)?;
    // A set that is not there is told before anything is made.
    here(sets.as_ref(), request.set)?;
    let memory = VerifyMemory::open(&completed, request.again_after, request.reads_all)?;
    let reader = ArchiveReader::of(Arc::clone(&completed), binding);
    let wal = WalVerification::begin(&completed, &partial, &binding, &memory)?;
    let run = VerifyRun {
        request,
        reader: &reader,
        partial: &partial,
        sets: sets.as_ref(),
        wal,
        memory,
        findings: VerifyFindings::to(each),
        report: VerifyReport::default(),
        has_newer_that_leads_on: false,
    };
    run.run()
}

fn open(request: &VerifyRequest<'_>) -> Result<(Arc<Folder>, Folder, Binding), SetError> {
    let open = |path: &Path| Folder::open(path, Arc::clone(request.disk), Arc::new(Monitor::new()));
    let completed = Arc::new(Folder::open_completed(
        &request.places.completed_wals,
        Arc::clone(request.disk),
        Arc::new(Monitor::new()),
    )?);
    let not_set_up = || StoreError::NotSetUp {
        path: completed.path().to_path_buf(),
    };
    let marker = Marker::read(&completed, MarkerRole::Completed)?.ok_or_else(not_set_up)?;
    let binding = marker.binding.ok_or(StoreError::NotBound)?;
    Ok((completed, open(&request.places.partial_wals)?, binding))
}

/// `None` where there is no place for sets.
fn open_sets(request: &VerifyRequest<'_>) -> Result<Option<BackupSets>, SetError> {
    let Some(full_backup) = request.full_backup else {
        return Ok(None);
    };
    match BackupSets::open(full_backup, &request.places.completed_wals, request.disk) {
        Ok(sets) => Ok(Some(sets)),
        Err(SetError::Store(StoreError::NotSetUp { .. })) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The sets that are wanted.
fn here(sets: Option<&BackupSets>, wanted: Option<&BackupName>) -> Result<Vec<NamedSet>, SetError> {
    let mut here = sets.map_or_else(|| Ok(Vec::new()), BackupSets::here)?;
    if let Some(wanted) = wanted {
        here.retain(|set| name_of(set) == wanted);
        if here.is_empty() {
            let name = wanted.clone();
            return Err(SetError::Absent { name });
        }
    }
    Ok(here)
}

fn name_of(set: &NamedSet) -> &BackupName {
    match set {
        Ok(here) => &here.name,
        Err((name, _)) => name,
    }
}

struct VerifyRun<'a, 'each> {
    request: &'a VerifyRequest<'a>,
    reader: &'a ArchiveReader,
    partial: &'a Folder,
    sets: Option<&'a BackupSets>,
    wal: WalVerification<'a>,
    memory: VerifyMemory,
    findings: VerifyFindings<'each>,
    report: VerifyReport,
    /// Whether a whole set that was looked at before leads to the newest record.
    has_newer_that_leads_on: bool,
}

/// A hole, and the sets whose recovery ends there.
type FoundHoles = BTreeMap<WalHole, Vec<BackupName>>;

impl VerifyRun<'_, '_> {
    fn run(mut self) -> Result<VerifyReport, SetError> {
        let ends = self.read_wal()?;
        let here = here(self.sets, self.request.set)?;
        let mut windows = self.read_sets(&here)?;
        self.tell_holes(&ends)?;
        for (window, set) in windows.iter_mut().zip(&here) {
            if let Ok(set) = set {
                self.set_window(window, set, &ends)?;
            }
        }
        self.report.sets = windows;
        self.report.critical_count = self.findings.critical_count;
        self.report.warning_count = self.findings.warning_count;
        let counts = self.wal.counts;
        self.report.counts.files_read += counts.files_read;
        self.report.counts.files_skipped += counts.files_skipped;
        self.report.counts.bytes_read += counts.bytes_read;
        self.report.counts.bytes_skipped += counts.bytes_skipped;
        self.report.not_remembered = self.memory.into_why_not();
        Ok(self.report)
    }

    /// Reads the WAL that is wanted. The segments in progress, as far as they go.
    fn read_wal(&mut self) -> Result<Vec<PartialEnd>, SetError> {
        let needed = match self.request.set {
            None => None,
            Some(_) => Some(self.needed_by_set()?),
        };
        let is_wanted = |segment: SegmentName| {
            let needed = needed.as_ref();
            needed.is_none_or(|needed| needed.has(segment))
        };
        let ends = self.wal.in_progress(&is_wanted, &mut self.findings)?;
        self.report.partials = ends.len() as u64;
        let mut seen = BTreeSet::new();
        // What arrives meanwhile is read too, once.
        for _ in 0..2 {
            let names = finished_names(self.wal.completed)?.into_keys();
            let names: Vec<WalFileName> = names
                .filter(|name| needed.as_ref().is_none_or(|needed| needed.has_file(*name)))
                .filter(|name| seen.insert(*name))
                .collect();
            let is_segment = |name: &WalFileName| matches!(name, WalFileName::Segment(_));
            let (segments, others): (Vec<_>, Vec<_>) = names.into_iter().partition(is_segment);
            let (memory, findings) = (&mut self.memory, &mut self.findings);
            self.report.other_files += self.wal.finished(others, memory, findings)?;
            self.report.segments += self.wal.finished(segments, memory, findings)?;
        }
        if self.request.set.is_none() {
            self.report.old_copies = self.wal.beside(self.reader, &mut self.findings)?;
        }
        let all = self.request.set.is_none().then_some(&seen);
        self.wal.finish(all, &mut self.memory)?;
        Ok(ends)
    }

    fn needed_by_set(&self) -> Result<SetWal, SetError> {
        let mut needed = SetWal::default();
        for set in here(self.sets, self.request.set)?.iter().flatten() {
            let Some(from) = begin_of(set) else { continue };
            let wal = BackupWal::find(self.reader, &[], from, &BTreeSet::new())?;
            let size = self.reader.binding().segment_size;
            needed.timelines.extend(wal.timelines());
            needed.begin = Some((from.1.0 / size.bytes(), size));
        }
        Ok(needed)
    }

    fn read_sets(&mut self, here: &[NamedSet]) -> Result<Vec<SetWindow>, SetError> {
        let mut windows = Vec::with_capacity(here.len());
        let folder = self.memory.folder().cloned();
        let mut damaged = folder
            .as_ref()
            .map(|it| DamagedSets::read(it))
            .unwrap_or_default();
        let mut has_newer_good = false;
        for set in here {
            let mut window = SetWindow {
                set: name_of(set).clone(),
                files: 0,
                damaged_files: 0,
                from: None,
                stop: None,
                end: Lsn(0),
                first: None,
                last: None,
            };
            match (set, self.sets) {
                (Ok(set), Some(sets)) => {
                    let (memory, findings) = (&mut self.memory, &mut self.findings);
                    let read =
                        sets.verify_files(set, memory, &mut damaged, has_newer_good, findings);
                    // One that the disk does not give back keeps nobody from the others.
                    let read = match read {
                        Err(SetError::Store(error @ StoreError::Disk { .. })) => {
                            if sets.is_here(set)? {
                                let remedy = "look at the disk; make a new backup";
                                self.add_of_set(&set.name, true, error.to_string(), remedy);
                            }
                            SetRead {
                                damaged_files: 1,
                                ..SetRead::default()
                            }
                        }
                        other => other?,
                    };
                    has_newer_good |= read.is_good;
                    (window.files, window.damaged_files) = (read.files, read.damaged_files);
                    self.report.counts.files_read += read.counts.files_read;
                    self.report.counts.files_skipped += read.counts.files_skipped;
                    self.report.counts.bytes_read += read.counts.bytes_read;
                    self.report.counts.bytes_skipped += read.counts.bytes_skipped;
                }
                (Err((name, why)), _) => {
                    window.damaged_files = 1;
                    let remedy = "mount or move what belongs there, or remove the name";
                    self.add_of_set(name, true, why.clone(), remedy);
                }
                (Ok(_), None) => {}
            }
            if let Some(folder) = &folder {
                self.memory.keep(|| damaged.write(folder));
            }
            windows.push(window);
        }
        if self.request.set.is_none() {
            let inodes: BTreeSet<u64> = here.iter().flatten().map(|set| set.inode).collect();
            damaged.retain(|inode| inodes.contains(&inode));
            self.memory.forget_sets_but(&inodes);
            if let Some(folder) = &folder {
                self.memory.keep(|| damaged.write(folder));
            }
        }
        Ok(windows)
    }

    /// Holes that are there the second time too.
    fn tell_holes(&mut self, ends: &[PartialEnd]) -> Result<(), SetError> {
        let mut holes = self.holes(ends)?;
        if holes.is_empty() {
            return Ok(());
        }
        let mut again = self.holes(&self.ends_now()?)?;
        holes.retain(|hole, _| again.contains_key(hole));
        // One whose label cannot be read is told already.
        let all = here(self.sets, None)?;
        let newest = all.iter().flatten().find(|set| begin_of(set).is_some());
        let newest = newest.map(|set| set.name.clone());
        for (first, last) in holes.into_keys() {
            let sets = again.remove(&(first, last)).unwrap_or_default();
            let is_newest = newest.as_ref().is_none_or(|newest| sets.contains(newest));
            let what = match first == last {
                true => "it is missing, although WAL behind it is there".to_owned(),
                false => format!(
                    "it is missing, as is everything up to {last}, although WAL behind it is there"
                ),
            };
            let names: Vec<String> = sets.iter().map(ToString::to_string).collect();
            let whose = match names.is_empty() {
                true => String::new(),
                false => format!("; {} cannot be recovered beyond it", names.join(", ")),
            };
            self.findings.add(&VerifyFinding {
                is_critical: is_newest,
                code: "gap",
                set: None,
                file: first.to_string(),
                place: FaultPlace {
                    offset_bytes: None,
                    lsn: first.start(self.reader.binding().segment_size),
                },
                why: format!("{what}{whose}"),
                remedy: "archive it from the master's pg_wal if it is still there, or make a new \
                         backup"
                    .to_owned(),
            });
        }
        Ok(())
    }

    /// What is missing behind the beginnings of the wanted sets; of an archive without any, behind its first segment.
    fn holes(&self, ends: &[PartialEnd]) -> Result<FoundHoles, SetError> {
        let mut found = FoundHoles::new();
        let purged = PurgedStretches::read(self.wal.completed);
        let is_loss = |(first, last): &WalHole| !purged.covers(*first, *last);
        let here = here(self.sets, self.request.set);
        let here = match here {
            // It was removed meanwhile.
            Err(SetError::Absent { .. }) => return Ok(found),
            other => other?,
        };
        for set in here.iter().flatten() {
            let Some(from) = begin_of(set) else { continue };
            let wal = BackupWal::find(self.reader, ends, from, &BTreeSet::new())?;
            for hole in wal.holes().into_iter().filter(is_loss) {
                found.entry(hole).or_default().push(set.name.clone());
            }
        }
        if here.is_empty()
            && let Some(route) = Route::to_newest(self.reader, self.reader.lineage(ends)?)
        {
            let names = finished_names(self.wal.completed)?.into_keys();
            let mut on_line = names.filter_map(|name| match name {
                WalFileName::Segment(segment) => Some(segment),
                _ => None,
            });
            let first = on_line.find(|name| route.is_read(*name));
            let size = self.reader.binding().segment_size;
            let start = first.and_then(|first| first.start(size));
            let holes = start.map_or_else(Vec::new, |start| route.holes(start));
            found.extend(holes.into_iter().map(|hole| (hole, Vec::new())));
        }
        Ok(found)
    }

    /// How far the segments in progress go by now.
    fn ends_now(&self) -> Result<Vec<PartialEnd>, SetError> {
        let mut ends = Vec::new();
        for segment in partial_names(self.partial)? {
            match partial_end(self.partial, self.wal.binding, segment) {
                Ok(end) => ends.extend(end),
                // It is told already.
                Err(StoreError::Disk { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(ends)
    }

    fn set_window(
        &mut self,
        window: &mut SetWindow,
        set: &SetHere,
        ends: &[PartialEnd],
    ) -> Result<(), SetError> {
        let (Some(sets), Ok(label), Some(from)) = (self.sets, &set.label, begin_of(set)) else {
            return Ok(());
        };
        let wal = BackupWal::find(self.reader, ends, from, &self.wal.broken)?;
        let backup_end = sets
            .backup_end(set)
            .or_else(|| Some((from.0, history_of(self.reader, label)?.stop?)));
        let stop = backup_end.map(|(_, stop)| stop);
        (window.from, window.stop, window.end) = (Some(from), stop, wal.end());
        (window.first, window.last) = wal.window(stop.unwrap_or(from.1), &self.wal.commits);
        let needed = stop.unwrap_or(from.1);
        let off_line = backup_end.and_then(|end| wal.off_line(end));
        if let Some((left_at, _)) = &off_line {
            (window.end, window.first, window.last) = (*left_at, None, None);
        }
        let leads_on = off_line.is_none() && wal.end() >= needed;
        if !leads_on && sets.is_here(set)? {
            let end = wal.end();
            let (is_critical, why, remedy) = match off_line {
                // More WAL never helps it.
                Some((_, why)) => (
                    !self.has_newer_that_leads_on,
                    format!("it cannot be recovered along the newest timeline: {why}"),
                    "make a new backup, or recover it with --target-timeline",
                ),
                None => (
                    true,
                    format!(
                        "it cannot be recovered: its WAL ends at {end}, and the backup ended at {needed}"
                    ),
                    "make a new backup",
                ),
            };
            self.add_of_set(&set.name, is_critical, why, remedy);
        }
        self.has_newer_that_leads_on |= leads_on && window.damaged_files == 0;
        Ok(())
    }

    fn add_of_set(&mut self, name: &BackupName, is_critical: bool, why: String, remedy: &str) {
        self.findings.add(&VerifyFinding {
            is_critical,
            code: "backup",
            set: Some(name.clone()),
            file: String::new(),
            place: FaultPlace::default(),
            why,
            remedy: remedy.to_owned(),
        });
    }
}

/// The WAL that one set needs.
#[derive(Default)]
struct SetWal {
    timelines: BTreeSet<TimelineId>,
    /// The number of its first segment.
    begin: Option<(u64, WalSegmentSize)>,
}

impl SetWal {
    fn has(&self, segment: SegmentName) -> bool {
        let is_behind = self.begin.is_some_and(|(first, size)| {
            let number = segment.number(size);
            number.is_some_and(|number| number >= first)
        });
        is_behind && self.timelines.contains(&segment.timeline())
    }

    /// Whether a finished file is needed, or became needed since.
    fn has_file(&self, name: WalFileName) -> bool {
        match name {
            WalFileName::Segment(segment) => self.has(segment),
            WalFileName::History(timeline) => self.timelines.contains(&timeline),
            WalFileName::Partial(_) | WalFileName::BackupHistory(..) => false,
        }
    }
}

/// Where the WAL of a set begins.
fn begin_of(set: &SetHere) -> Option<(TimelineId, Lsn)> {
    let label = set.label.as_ref().ok()?;
    Some((label.first_segment.timeline(), label.start))
}
