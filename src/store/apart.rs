//! The notes beside files that are set apart: who brought each, and why readers do not follow it.
//! Never decides anything; `lineage` does. Invariant: a note is durable before its file has its name, so
//! no crash leaves a file that counts although it should not.
//!
//! # On disk
//!
//! ```text
//! completed_wals/.apart/
//!   NAME.ahead         a segment without anything before it that it could belong to
//!   NAME.behind        a segment behind the end of its timeline
//!   NAME.timeline      a segment of a timeline that does not count
//!   NAME.history       a history that does not count
//!   NAME.differs       who brought another file of a stored name (see `differs`)
//! ```
//!
//! The name of a note is what counts. Its text is for people: who brought the file, and in the second line
//! why it is set apart. So a flipped bit in a note lets nothing in.
//!
//! What a crash leaves: behind the note, a note without a file, which the next start takes away;
//! behind a file that joins others, notes that it takes away too.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLockReadGuard, RwLockWriteGuard};

use walmgr_protocol::names::{SegmentName, TimelineId, WalFileName};

use super::archive::{Archive, Shared, damaged_copy_of, finished_names};
use super::differs::DIFFERS_SUFFIX;
use super::error::StoreError;
use super::folder::Folder;
use super::lineage::{Apart, Kind, Lineage, Progress};
use super::partial::{PartialEnd, partial_end, partial_names};
use super::reader::Reader;
use crate::wal::history::History;

/// The folder of the notes.
const APART_NAME: &str = ".apart";

/// Two lines.
const NOTE_BYTES_MAX: usize = 4096;

const KINDS: [(Kind, &str); 4] = [
    (Kind::Ahead, "ahead"),
    (Kind::Behind, "behind"),
    (Kind::Timeline, "timeline"),
    (Kind::History, "history"),
];

/// What a note tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// About which file.
    pub name: WalFileName,
    /// What kind of note it is.
    pub kind: Kind,
    /// Who brought the file.
    pub by: String,
    /// Why it is set apart.
    pub why: String,
}

/// Leave for one file to get its name; nobody judges another one meanwhile.
pub(super) enum Admission<'a> {
    /// It goes on where others end.
    Next {
        _with_others: RwLockReadGuard<'a, ()>,
    },
    /// It was looked at with everything that is there.
    Judged {
        _alone: RwLockWriteGuard<'a, ()>,
        noted: bool,
    },
    /// Readers follow no file of this kind.
    Free,
}

/// Which files have a note.
pub(super) fn notes(completed: &Folder) -> Result<BTreeMap<WalFileName, Kind>, StoreError> {
    let Some(folder) = open(completed)? else {
        return Ok(BTreeMap::new());
    };
    let names = folder.names()?.into_iter();
    Ok(names.filter_map(|text| parse(&text)).collect())
}

/// Every note with its text.
pub(super) fn told(completed: &Folder) -> Result<Vec<Told>, StoreError> {
    let Some(folder) = open(completed)? else {
        return Ok(Vec::new());
    };
    let mut told = Vec::new();
    for (name, kind) in notes(completed)? {
        let text = read(&folder, &text_of(name, kind))?;
        let mut lines = text.lines();
        let by = lines.next().unwrap_or_default().to_owned();
        let why = lines.next().unwrap_or_default().to_owned();
        told.push(Told {
            name,
            kind,
            by,
            why,
        });
    }
    Ok(told)
}

/// Whether a segment lies behind the end of its timeline.
pub(super) fn is_behind(completed: &Folder, segment: SegmentName) -> Result<bool, StoreError> {
    let name = text_of(WalFileName::Segment(segment), Kind::Behind);
    let path = format!("{APART_NAME}/{name}");
    Ok(completed.stat_at(&path)?.is_some())
}

/// Sets a file apart.
fn write(completed: &Folder, name: WalFileName, apart: &Apart, by: &str) -> Result<(), StoreError> {
    make(completed)?;
    remove(completed, name)?;
    if let Some(folder) = open(completed)? {
        let text = one_line(by) + &one_line(&apart.to_string());
        folder.write_small(&text_of(name, apart.kind()), text.as_bytes())?;
    }
    Ok(())
}

/// Sets the histories apart that give way to a server that goes on along an older timeline, and joins
/// what was behind them. For this host's own commands: the receiver, which may run meanwhile,
/// comes to the same notes.
pub(super) fn give_way(
    completed: &Folder,
    lineage: Lineage,
    timeline: TimelineId,
) -> Result<Vec<TimelineId>, StoreError> {
    let deserted = lineage.giving_way_to(timeline);
    let mut lineage = lineage;
    for newer in &deserted {
        make(completed)?;
        if let Some(folder) = open(completed)? {
            let name = text_of(WalFileName::History(*newer), Kind::History);
            let why = format!("a set of timeline {timeline} was restored, and it has no WAL here");
            let text = one_line("restore on this host") + &one_line(&why);
            folder.write_small(&name, text.as_bytes())?;
        }
        lineage = lineage.with_history_apart(*newer);
    }
    // Behind those: a crash in between leaves what the next start of the receiver joins.
    while !deserted.is_empty()
        && let Some(name) = lineage.joined(0)
    {
        remove(completed, name)?;
        lineage = lineage.without_note(name);
    }
    Ok(deserted)
}

/// Takes the notes about a file away.
pub(super) fn remove(completed: &Folder, name: WalFileName) -> Result<(), StoreError> {
    let Some(folder) = open(completed)? else {
        return Ok(());
    };
    let mut removed = false;
    for (kind, _) in KINDS {
        let text = text_of(name, kind);
        if folder.stat_at(&text)?.is_some() {
            folder.remove(&text)?;
            removed = true;
        }
    }
    if removed { folder.sync() } else { Ok(()) }
}

/// Says who brought another file of a stored name.
pub(super) fn note_differing(
    completed: &Folder,
    name: WalFileName,
    by: &str,
) -> Result<(), StoreError> {
    make(completed)?;
    if let Some(folder) = open(completed)? {
        folder.write_small(&format!("{name}{DIFFERS_SUFFIX}"), one_line(by).as_bytes())?;
    }
    Ok(())
}

/// Who brought it; empty if nobody knows.
pub(super) fn differing_by(completed: &Folder, name: WalFileName) -> Result<String, StoreError> {
    let Some(folder) = open(completed)? else {
        return Ok(String::new());
    };
    let text = read(&folder, &format!("{name}{DIFFERS_SUFFIX}"))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// Forgets who brought it: the two have changed places.
pub(super) fn remove_differing(completed: &Folder, name: WalFileName) -> Result<(), StoreError> {
    match open(completed)? {
        Some(folder) => folder.remove(&format!("{name}{DIFFERS_SUFFIX}")),
        None => Ok(()),
    }
}

/// A line of a note, whatever a peer calls itself.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ") + "\n"
}

fn make(completed: &Folder) -> Result<(), StoreError> {
    let path = completed.path().join(APART_NAME);
    match completed.disk.create_directory(&path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => {
            other.map_err(|error| completed.failure("create", APART_NAME, error))?;
            completed.sync()
        }
    }
}

fn open(completed: &Folder) -> Result<Option<Arc<Folder>>, StoreError> {
    let path = completed.path().join(APART_NAME);
    let (disk, monitor) = (Arc::clone(&completed.disk), Arc::clone(&completed.monitor));
    match Folder::open(&path, disk, monitor) {
        Ok(folder) => Ok(Some(Arc::new(folder))),
        Err(StoreError::NotSetUp { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn text_of(name: WalFileName, kind: Kind) -> String {
    let mut kinds = KINDS.iter().filter(|(known, _)| *known == kind);
    let word = kinds.next().map_or("", |(_, word)| *word);
    format!("{name}.{word}")
}

fn parse(text: &str) -> Option<(WalFileName, Kind)> {
    let (name, word) = text.rsplit_once('.')?;
    let (kind, _) = KINDS.iter().find(|(_, known)| *known == word)?;
    Some((name.parse().ok()?, *kind))
}

fn read(folder: &Folder, name: &str) -> Result<String, StoreError> {
    let mut text = folder.read_small(name, NOTE_BYTES_MAX)?.unwrap_or_default();
    text.truncate(NOTE_BYTES_MAX);
    Ok(String::from_utf8_lossy(&text).into_owned())
}

impl Archive {
    /// How far beyond the end of its run a segment may be that counts.
    pub fn set_ahead_max(&self, segments: u64) {
        self.shared.ahead_max.store(segments, Ordering::Relaxed);
    }

    /// A backup set begins with this segment: so does a run.
    pub fn begin_run(&self, segment: SegmentName) -> Result<(), StoreError> {
        let shared = &self.shared;
        let _alone = shared.order.write().unwrap_or_else(PoisonError::into_inner);
        let name = WalFileName::Segment(segment);
        if notes(&shared.completed)?.get(&name) == Some(&Kind::Ahead) {
            remove(&shared.completed, name)?;
            shared.join_all()?;
        }
        Ok(())
    }

    /// Every file that a note says to pass over.
    pub fn noted(&self) -> Result<BTreeSet<WalFileName>, StoreError> {
        Ok(notes(&self.shared.completed)?.into_keys().collect())
    }

    /// Whether readers pass this file over, as far as a note says so.
    pub fn is_noted(&self, name: WalFileName) -> bool {
        let shared = &self.shared;
        shared.has_notes.load(Ordering::Relaxed)
            && notes(&shared.completed).is_ok_and(|notes| notes.contains_key(&name))
    }
}

impl Shared {
    /// Judges a file that is about to get its name; `text` is that of a history. What is set
    /// apart has its note when this returns.
    pub(super) fn admit(
        &self,
        name: WalFileName,
        text: &[u8],
        by: &str,
    ) -> Result<Admission<'_>, StoreError> {
        match name {
            WalFileName::Segment(segment) => {
                let with_others = self.order.read().unwrap_or_else(PoisonError::into_inner);
                if self.is_next(segment)? {
                    return Ok(Admission::Next {
                        _with_others: with_others,
                    });
                }
            }
            WalFileName::History(_) => {}
            WalFileName::Partial(_) | WalFileName::BackupHistory(..) => {
                return Ok(Admission::Free);
            }
        }
        let alone = self.order.write().unwrap_or_else(PoisonError::into_inner);
        let mut noted = false;
        if self.completed.stat_at(&name.to_string())?.is_none() && !self.counted(name)? {
            match self.judge(name, text)? {
                Some(apart) => {
                    write(&self.completed, name, &apart, by)?;
                    self.has_notes.store(true, Ordering::Relaxed);
                    noted = true;
                    tracing::error!(
                        "ALARM: {name} of {by} is stored but set apart, so no reader follows it: {apart}"
                    );
                }
                None if self.has_notes.load(Ordering::Relaxed) => remove(&self.completed, name)?,
                None => {}
            }
        }
        Ok(Admission::Judged {
            _alone: alone,
            noted,
        })
    }

    /// Whether a file of this name counted until the disk changed it: what heals it counts too, although
    /// what once connected it may be purged.
    fn counted(&self, name: WalFileName) -> Result<bool, StoreError> {
        let damaged = self
            .completed
            .stat_at(&format!("{name}.damaged"))?
            .is_some();
        Ok(damaged && !notes(&self.completed)?.contains_key(&name))
    }

    /// Joins what the file that has its name connects.
    pub(super) fn admitted(&self, admission: &Admission<'_>, name: WalFileName) {
        self.note_timeline(name.timeline());
        if matches!(admission, Admission::Judged { .. }) {
            self.join_or_warn();
        }
    }

    /// Somebody on this host put the same file there meanwhile, as a boot does with its history: it
    /// counts, and what was noted for it is void.
    pub(super) fn overtaken(
        &self,
        admission: &Admission<'_>,
        name: WalFileName,
    ) -> Result<(), StoreError> {
        if matches!(admission, Admission::Judged { noted: true, .. }) {
            remove(&self.completed, name)?;
            self.join_or_warn();
        }
        Ok(())
    }

    /// Joins what a segment in progress connects.
    pub(super) fn joined_by_partial(&self, segment: SegmentName) {
        self.note_timeline(segment.timeline());
        if self.has_notes.load(Ordering::Relaxed) {
            let _alone = self.order.write().unwrap_or_else(PoisonError::into_inner);
            self.join_or_warn();
        }
    }

    /// What an earlier process left undone.
    pub(super) fn recover_notes(&self) -> Result<(), StoreError> {
        for name in finished_names(&self.completed)?.into_keys() {
            self.note_timeline(name.timeline());
        }
        for segment in partial_names(&self.partial)? {
            self.note_timeline(segment.timeline());
        }
        // One without its file, as a purge that was cut leaves it. A damaged copy is still apart.
        let texts = self.completed.names()?.into_iter();
        let there = texts.filter_map(|text| text.parse().ok().or_else(|| damaged_copy_of(&text)));
        let there: BTreeSet<WalFileName> = there.collect();
        for name in notes(&self.completed)?.into_keys() {
            if !there.contains(&name) {
                remove(&self.completed, name)?;
            }
        }
        let noted = !notes(&self.completed)?.is_empty();
        self.has_notes.store(noted, Ordering::Relaxed);
        if noted && self.binding().is_ok() {
            self.join_all()?;
        }
        Ok(())
    }

    /// What leads from where to where.
    pub(super) fn lineage(&self) -> Result<Lineage, StoreError> {
        let binding = self.binding()?;
        let reader = Reader::of(Arc::clone(&self.completed), binding);
        let mut partials = BTreeMap::new();
        for segment in partial_names(&self.partial)? {
            match partial_end(&self.partial, &binding, segment) {
                Ok(Some(PartialEnd { end, is_whole, .. })) => {
                    partials.insert(segment, Some(Progress { end, is_whole }));
                }
                // One that holds no record proves nothing.
                Ok(None) => {}
                // One bad sector is no reason to refuse every other file.
                Err(error @ StoreError::Disk { .. }) => {
                    tracing::error!("a partial segment counts as whole: {error}");
                    partials.insert(segment, None);
                }
                Err(error) => return Err(error),
            }
        }
        reader.lineage_of(&reader.listing()?, partials)
    }

    /// Whether a newer timeline counts.
    pub(super) fn is_left(&self, timeline: TimelineId) -> Result<bool, StoreError> {
        Ok(
            self.newest_timeline.load(Ordering::Relaxed) > timeline.number()
                && self.lineage()?.newest() > Some(timeline),
        )
    }

    fn judge(&self, name: WalFileName, text: &[u8]) -> Result<Option<Apart>, StoreError> {
        let lineage = self.lineage()?;
        match name {
            WalFileName::Segment(segment) => {
                Ok(lineage.judge(segment, self.ahead_max.load(Ordering::Relaxed)))
            }
            WalFileName::History(timeline) => {
                let history = History::parse(timeline, text);
                let history = history.map_err(|fault| StoreError::Damaged {
                    name,
                    why: fault.to_string(),
                })?;
                Ok(lineage.judge_history(&history))
            }
            WalFileName::Partial(_) | WalFileName::BackupHistory(..) => Ok(None),
        }
    }

    /// Whether a segment goes on where the one before it ends, on the newest timeline, with nothing
    /// set apart. That is so for nearly all of them, and costs two looks at a name.
    fn is_next(&self, segment: SegmentName) -> Result<bool, StoreError> {
        let (size, timeline) = (self.binding()?.segment_size, segment.timeline());
        if self.has_notes.load(Ordering::Relaxed)
            || self.newest_timeline.load(Ordering::Relaxed) > timeline.number()
        {
            return Ok(false);
        }
        let number = segment
            .number(size)
            .and_then(|number| number.checked_sub(1));
        let Some(before) = number.map(|number| SegmentName::from_number(timeline, number, size))
        else {
            return Ok(false);
        };
        // A boot puts a history here without this process.
        let newer = timeline.number().checked_add(1).and_then(TimelineId::new);
        let newer = newer.map(|newer| WalFileName::History(newer).to_string());
        let is_left = match newer {
            Some(newer) => self.completed.stat_at(&newer)?.is_some(),
            None => false,
        };
        Ok(!is_left && self.completed.stat_at(&before.to_string())?.is_some())
    }

    fn note_timeline(&self, timeline: TimelineId) {
        self.newest_timeline
            .fetch_max(timeline.number(), Ordering::Relaxed);
    }

    fn join_or_warn(&self) {
        if self.has_notes.load(Ordering::Relaxed)
            && let Err(error) = self.join_all()
        {
            // The file is stored; the next one, or the next start, joins what is connected.
            tracing::warn!("what is set apart was not looked at again: {error}");
        }
    }

    fn join_all(&self) -> Result<(), StoreError> {
        let mut lineage = self.lineage()?;
        let ahead_max = self.ahead_max.load(Ordering::Relaxed);
        while let Some(name) = lineage.joined(ahead_max) {
            remove(&self.completed, name)?;
            tracing::warn!("{name} was set apart and is joined: what connects it has arrived");
            lineage = lineage.without_note(name);
        }
        let left = !lineage.facts().notes.is_empty();
        self.has_notes.store(left, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{
        assert_stored, history_file, new_archive, open as open_archive, scratch_folder, segment,
    };
    use crate::store::{Places, Sealed};
    use crate::wal::segment::Verify;

    fn note_names(places: &Places) -> Vec<String> {
        let entries = std::fs::read_dir(places.completed_wals.join(APART_NAME));
        let names = entries.into_iter().flatten().flatten();
        let mut names: Vec<String> = names
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn fault_113_a_far_segment_stays_apart_until_its_run_arrives() {
        let folder = scratch_folder();
        let places = new_archive(folder.path());
        let archive = open_archive(&places);
        archive.set_ahead_max(2);
        assert_stored(&archive, &segment(3, 1));
        assert_stored(&archive, &segment(7, 1));
        let note = format!("{}.ahead", segment(7, 1).name);
        assert_eq!(note_names(&places), [note.as_str()]);
        assert!(archive.is_noted(segment(7, 1).name));
        drop(archive);
        let archive = open_archive(&places);
        for number in 4..6 {
            assert_stored(&archive, &segment(number, 1));
            assert_eq!(note_names(&places), [note.as_str()]);
        }
        assert_stored(&archive, &segment(6, 1));
        assert_eq!(note_names(&places), [""; 0]);
        // Nothing is looked up any more for the next one.
        assert!(!archive.shared.has_notes.load(Ordering::Relaxed));
    }

    #[test]
    fn fault_113_a_start_joins_what_a_crash_left_apart() {
        let folder = scratch_folder();
        let places = new_archive(folder.path());
        let archive = open_archive(&places);
        archive.set_ahead_max(2);
        for number in [3, 7, 12] {
            assert_stored(&archive, &segment(number, 1));
        }
        assert_eq!(note_names(&places).len(), 2);
        drop(archive);
        // Published, and killed before the note was taken away.
        for number in 4..7 {
            let sample = segment(number, 1);
            let path = places.completed_wals.join(sample.name.to_string());
            std::fs::write(path, sample.bytes).unwrap();
        }
        let archive = open_archive(&places);
        let left = format!("{}.ahead", segment(12, 1).name);
        assert_eq!(note_names(&places), [left]);
        // A run begins where a backup set does.
        archive
            .begin_run(segment(12, 1).name.segment().unwrap())
            .unwrap();
        assert_eq!(note_names(&places), [""; 0]);
    }

    #[test]
    fn fault_113_a_start_takes_away_notes_whose_files_are_gone() {
        let folder = scratch_folder();
        let places = new_archive(folder.path());
        let archive = open_archive(&places);
        archive.set_ahead_max(2);
        for number in [3, 7, 12] {
            assert_stored(&archive, &segment(number, 1));
        }
        drop(archive);
        // A purge that was killed between the files and their notes.
        let gone = places.completed_wals.join(segment(7, 1).name.to_string());
        std::fs::remove_file(gone).unwrap();
        let last = places.completed_wals.join(segment(12, 1).name.to_string());
        std::fs::rename(&last, last.with_extension("damaged")).unwrap();
        drop(open_archive(&places));
        let left = format!("{}.ahead", segment(12, 1).name);
        assert_eq!(note_names(&places), [left]);
    }

    #[test]
    fn fault_110_a_note_names_who_brought_a_history_and_why_it_waits() {
        let folder = scratch_folder();
        let places = new_archive(folder.path());
        let archive = open_archive(&places);
        assert_stored(&archive, &segment(3, 1));
        let sample = history_file(9, "forged");
        let begun = archive.begin(sample.name, sample.len(), Verify::Records);
        let mut incoming = begun.unwrap().brought_by("thief\n(192.0.2.1:1)");
        incoming.write(&sample.bytes).unwrap();
        let sealed = incoming.seal(sample.len(), sample.crc32()).unwrap();
        assert!(matches!(sealed, Sealed::Stored(_)));
        let told = told(&archive.shared.completed).unwrap();
        assert_eq!((told.len(), told[0].kind), (1, Kind::History));
        assert_eq!(told[0].by, "thief (192.0.2.1:1)");
        assert!(told[0].why.contains("there is no history of 2"), "{told:?}");
        // A note that a bit flipped in keeps its file apart all the same.
        let path = places
            .completed_wals
            .join(APART_NAME)
            .join("00000009.history.history");
        std::fs::write(path, [0xFF; 9]).unwrap();
        assert_eq!(
            archive.shared.lineage().unwrap().newest().unwrap().number(),
            1
        );
    }
}
