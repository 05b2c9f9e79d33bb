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
//!   NAME.displaced     who brought the file that has this name beside the stored one (see `displaced`)
//!   NAME.claimed       a history that counts, but only because of what a key brought; its text is who
//!   NAME.unread        a `.partial` or `.backup` file; its text is who brought it
//!   NAME.early         a segment that counts and had a hole before it when it came; its text is who brought it.
//!                      Removed when what arrives before it leads to it
//! ```
//!
//! The name of a note is what counts. Its text is for people: who brought the file, and in the second line
//! why it is set apart. So a flipped bit in a note lets nothing in.
//!
//! What a crash leaves: behind the note, a note without a file, which the next start takes away;
//! behind a file that joins others, notes that it takes away too.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLockReadGuard, RwLockWriteGuard};

use walmgr_protocol::names::{SegmentName, TimelineId, WalFileName};

use super::archive::{Archive, Shared, finished_names};
use super::beside::damaged_copy_of;
use super::error::StoreError;
use super::folder::Folder;
use super::lineage::{Apart, Kind, Lineage, Outgrown, Progress};
use super::partial::{PartialEnd, partial_end, partial_names};
use super::reader::Reader;
use crate::wal::history::History;

/// The folder of the notes.
pub(super) const APART_NAME: &str = ".apart";

/// Two lines.
const NOTE_BYTES_MAX: usize = 4096;

/// Behind the name of a history that only a key claims.
const CLAIMED_SUFFIX: &str = ".claimed";

/// Behind the name of a file that no reader ever follows, `.partial` or `.backup`.
pub(super) const UNREAD_SUFFIX: &str = ".unread";

/// Behind the name of a segment that came before the one before it.
const EARLY_SUFFIX: &str = ".early";

pub(super) const KINDS: [(Kind, &str); 4] = [
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

/// The timelines that only keys claim, and who brought the history of each.
pub(super) fn claims(completed: &Folder) -> Result<BTreeMap<TimelineId, String>, StoreError> {
    let mut claims = BTreeMap::new();
    let Some(folder) = open(completed)? else {
        return Ok(claims);
    };
    for text in folder.names()? {
        let name = text.strip_suffix(CLAIMED_SUFFIX).map(str::parse);
        if let Some(Ok(WalFileName::History(timeline))) = name {
            let by = read(&folder, &text)?;
            let by = by.lines().next().unwrap_or_default().to_owned();
            claims.insert(timeline, by);
        }
    }
    Ok(claims)
}

/// Every file that has a mark.
pub(super) fn marked(completed: &Folder) -> Result<BTreeSet<WalFileName>, StoreError> {
    let Some(folder) = open(completed)? else {
        return Ok(BTreeSet::new());
    };
    let names = folder.names()?.into_iter();
    let marked = names.filter_map(|text| {
        let name =
            [CLAIMED_SUFFIX, EARLY_SUFFIX, UNREAD_SUFFIX].map(|suffix| text.strip_suffix(suffix));
        name.into_iter()
            .flatten()
            .find_map(|name| name.parse().ok())
    });
    Ok(marked.collect())
}

/// Says that a history counts because of what a key brought.
fn claim(completed: &Folder, timeline: TimelineId, by: &str) -> Result<(), StoreError> {
    write_mark(
        completed,
        WalFileName::History(timeline),
        CLAIMED_SUFFIX,
        by,
    )
}

/// Says who brought a file, under a name that is no note.
pub(super) fn write_mark(
    completed: &Folder,
    name: WalFileName,
    suffix: &str,
    by: &str,
) -> Result<(), StoreError> {
    completed.make_below(APART_NAME)?;
    match open(completed)? {
        Some(folder) => folder.write_small(&format!("{name}{suffix}"), one_line(by).as_bytes()),
        None => Ok(()),
    }
}

/// Notes who brought a file that no reader follows, without a sync: what a power cut takes away counts for nobody.
fn note_unread(completed: &Folder, name: WalFileName, by: &str) {
    // One that is there already is no failure, and without the folder the next call fails.
    let _ = (completed.disk).create_directory(&completed.path().join(APART_NAME));
    let Ok(Some(folder)) = open(completed) else {
        return;
    };
    let text = format!("{name}{UNREAD_SUFFIX}");
    let written = (folder.disk.create(folder.handle(), &text))
        .and_then(|file| (folder.disk).write_all(file.as_fd(), one_line(by).as_bytes(), 0));
    if let Err(error) = written {
        tracing::debug!("who brought {name} is not noted: {error}");
    }
}

/// Whether a segment came before the one before it.
pub(super) fn is_early(completed: &Folder, segment: SegmentName) -> Result<bool, StoreError> {
    let path = format!("{APART_NAME}/{segment}{EARLY_SUFFIX}");
    Ok(completed.stat_at(&path)?.is_some())
}

/// What was before it has arrived, and leads to it.
pub(super) fn remove_early(completed: &Folder, segment: SegmentName) -> Result<(), StoreError> {
    match open(completed)? {
        Some(folder) => folder.remove_present([format!("{segment}{EARLY_SUFFIX}")]),
        None => Ok(()),
    }
}

/// Whether a note says to pass a file over.
pub(super) fn is_noted(completed: &Folder, name: WalFileName) -> Result<bool, StoreError> {
    for (kind, _) in KINDS {
        let path = format!("{APART_NAME}/{}", text_of(name, kind));
        if completed.stat_at(&path)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The segments that came before those before them.
pub(super) fn early(completed: &Folder) -> Result<BTreeSet<SegmentName>, StoreError> {
    let Some(folder) = open(completed)? else {
        return Ok(BTreeSet::new());
    };
    let names = folder.names()?.into_iter();
    let early = names.filter_map(|text| text.strip_suffix(EARLY_SUFFIX)?.parse().ok());
    Ok(early.collect())
}

/// Who brought the stored file of a name, if a note or a mark tells.
pub(super) fn brought_by(completed: &Folder, name: WalFileName) -> Result<String, StoreError> {
    let Some(folder) = open(completed)? else {
        return Ok(String::new());
    };
    let notes = KINDS.iter().map(|(kind, _)| text_of(name, *kind));
    let marks =
        [CLAIMED_SUFFIX, EARLY_SUFFIX, UNREAD_SUFFIX].map(|suffix| format!("{name}{suffix}"));
    for text in notes.chain(marks) {
        let text = read(&folder, &text)?;
        if let Some(by) = text.lines().next().filter(|by| !by.is_empty()) {
            return Ok(by.to_owned());
        }
    }
    Ok(String::new())
}

/// Forgets every reason why a file counts or does not: it is gone, or this host or a person vouches
/// for it.
pub(super) fn settle(completed: &Folder, name: WalFileName) -> Result<(), StoreError> {
    remove(completed, name)?;
    let suffixes = [CLAIMED_SUFFIX, EARLY_SUFFIX, UNREAD_SUFFIX];
    match open(completed)? {
        Some(folder) => folder.remove_present(suffixes.map(|suffix| format!("{name}{suffix}"))),
        None => Ok(()),
    }
}

/// Whether a standby passes a segment over that it comes to: one behind the end of its timeline, or one that does
/// not go on with the segment before it.
pub(super) fn is_passed_over(completed: &Folder, segment: SegmentName) -> Result<bool, StoreError> {
    for kind in [Kind::Behind, Kind::Ahead] {
        let name = text_of(WalFileName::Segment(segment), kind);
        if completed
            .stat_at(&format!("{APART_NAME}/{name}"))?
            .is_some()
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Sets a file apart.
pub(super) fn write(
    completed: &Folder,
    name: WalFileName,
    apart: &Apart,
    by: &str,
) -> Result<(), StoreError> {
    remove(completed, name)?;
    write_text(completed, name, apart.kind(), by, &apart.to_string())
}

pub(super) fn write_text(
    completed: &Folder,
    name: WalFileName,
    kind: Kind,
    by: &str,
    why: &str,
) -> Result<(), StoreError> {
    completed.make_below(APART_NAME)?;
    if let Some(folder) = open(completed)? {
        let text = one_line(by) + &one_line(why);
        folder.write_small(&text_of(name, kind), text.as_bytes())?;
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
        completed.make_below(APART_NAME)?;
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
        && let Some(name) = lineage.joined(u64::MAX)
    {
        remove(completed, name)?;
        lineage = lineage.without_note(name);
    }
    Ok(deserted)
}

/// Takes the notes about a file away.
pub(super) fn remove(completed: &Folder, name: WalFileName) -> Result<(), StoreError> {
    match open(completed)? {
        Some(folder) => folder.remove_present(KINDS.map(|(kind, _)| text_of(name, kind))),
        None => Ok(()),
    }
}

/// Says who brought a copy that is kept beside the stored file of a name.
pub(super) fn note_copy(completed: &Folder, copy: &str, by: &str) -> Result<(), StoreError> {
    completed.make_below(APART_NAME)?;
    match open(completed)? {
        Some(folder) => folder.write_small(copy, one_line(by).as_bytes()),
        None => Ok(()),
    }
}

/// Who brought it; empty if nobody knows.
pub(super) fn copy_by(completed: &Folder, copy: &str) -> Result<String, StoreError> {
    let Some(folder) = open(completed)? else {
        return Ok(String::new());
    };
    let text = read(&folder, copy)?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// Forgets who brought it: it is gone, or has another name.
pub(super) fn remove_copy_note(completed: &Folder, copy: &str) -> Result<(), StoreError> {
    match open(completed)? {
        Some(folder) => folder.remove_present([copy]),
        None => Ok(()),
    }
}

/// A line of a note, whatever a peer calls itself.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ") + "\n"
}

pub(super) fn open(completed: &Folder) -> Result<Option<Arc<Folder>>, StoreError> {
    completed.below(APART_NAME)
}

pub(super) fn text_of(name: WalFileName, kind: Kind) -> String {
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
        let was_ahead = notes(&shared.completed)?.get(&name) == Some(&Kind::Ahead);
        if was_ahead || is_early(&shared.completed, segment)? {
            settle(&shared.completed, name)?;
            shared.settle_shipped(&[segment])?;
        }
        if was_ahead {
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
    /// Judges a file that is about to get its name, by its length and CRC-32 too; `text` is that of a history.
    /// What is set apart has its note when this returns.
    pub(super) fn admit(
        &self,
        (name, digest): (WalFileName, (u64, u32)),
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
                let alone = self.order.write().unwrap_or_else(PoisonError::into_inner);
                if self.completed.stat_at(&name.to_string())?.is_none() {
                    self.make_room(name, by)?;
                    note_unread(&self.completed, name, by);
                }
                drop(alone);
                return Ok(Admission::Free);
            }
        }
        let alone = self.order.write().unwrap_or_else(PoisonError::into_inner);
        let mut noted = false;
        if self.completed.stat_at(&name.to_string())?.is_none() && !self.counted(name, digest)? {
            noted = self.note(name, text, by)?;
        }
        Ok(Admission::Judged {
            _alone: alone,
            noted,
        })
    }

    /// Writes the note of a file that is set apart; `false` if it counts.
    fn note(&self, name: WalFileName, text: &[u8], by: &str) -> Result<bool, StoreError> {
        let lineage = self.lineage()?;
        if let Some(apart) = self.judge(&lineage, name, text)? {
            self.make_room(name, by)?;
            write(&self.completed, name, &apart, by)?;
            self.has_notes.store(true, Ordering::Relaxed);
            tracing::error!(
                "ALARM: {name} of {by} is stored but set apart, so no reader follows it: {apart}"
            );
            return Ok(true);
        }
        match name {
            // It counts once it has its name, and its first records were found to go on with its parent's.
            WalFileName::History(timeline) if lineage.lowest() != Some(timeline) => {
                let why = "what connects it is being looked at";
                write_text(&self.completed, name, Kind::History, by, why)?;
                self.has_notes.store(true, Ordering::Relaxed);
                return Ok(true);
            }
            WalFileName::Segment(segment) if lineage.is_early(segment) => {
                write_mark(&self.completed, name, EARLY_SUFFIX, by)?;
            }
            _ => {}
        }
        if self.has_notes.load(Ordering::Relaxed) {
            remove(&self.completed, name)?;
        }
        Ok(false)
    }

    /// Whether a file of this name counted until the disk changed it: what heals it counts too, although
    /// what once connected it may be purged. Where a checksum tells what it was, no other file heals it.
    fn counted(&self, name: WalFileName, (len, crc32): (u64, u32)) -> Result<bool, StoreError> {
        let damaged = self
            .completed
            .stat_at(&format!("{name}.damaged"))?
            .is_some();
        let kept = self.checksums.read(name);
        let heals = kept.is_none_or(|kept| kept.contradicts(len, crc32).is_none());
        Ok(damaged && heals && !notes(&self.completed)?.contains_key(&name))
    }

    /// Joins what the file that has its name connects.
    pub(super) fn admitted(&self, admission: &Admission<'_>, name: WalFileName) {
        self.note_timeline(name.timeline());
        let may_change =
            self.has_notes.load(Ordering::Relaxed) || self.has_newer_than(name.timeline());
        if matches!(admission, Admission::Judged { .. }) && may_change {
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
            settle(&self.completed, name)?;
            self.join_or_warn();
        }
        Ok(())
    }

    /// Joins what a segment in progress connects.
    pub(super) fn joined_by_partial(&self, segment: SegmentName) {
        self.note_timeline(segment.timeline());
        if self.has_notes.load(Ordering::Relaxed) || self.has_newer_than(segment.timeline()) {
            let _alone = self.order.write().unwrap_or_else(PoisonError::into_inner);
            self.join_or_warn();
        }
    }

    /// Whether a name was seen of a timeline above this one.
    pub(super) fn has_newer_than(&self, timeline: TimelineId) -> bool {
        self.newest_timeline.load(Ordering::Relaxed) > timeline.number()
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
        for name in marked(&self.completed)? {
            if !there.contains(&name) {
                settle(&self.completed, name)?;
            }
        }
        let claims = claims(&self.completed)?;
        let noted = !notes(&self.completed)?.is_empty();
        self.has_notes.store(noted, Ordering::Relaxed);
        if self.binding().is_err() {
            return Ok(());
        }
        if noted || !claims.is_empty() {
            self.join_all()?;
        }
        let proven = self.settle_early(None)?;
        self.settle_shipped(&proven)
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
        Ok(self.has_newer_than(timeline) && self.lineage()?.newest() > Some(timeline))
    }

    pub(super) fn judge(
        &self,
        lineage: &Lineage,
        name: WalFileName,
        text: &[u8],
    ) -> Result<Option<Apart>, StoreError> {
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
        if let Err(error) = self.join_all() {
            // The file is stored; the next one, or the next start, joins what is connected.
            tracing::warn!("what is set apart was not looked at again: {error}");
        }
    }

    /// Joins what is connected, and gives up the claims that their parents outgrew.
    fn join_all(&self) -> Result<(), StoreError> {
        let mut lineage = self.lineage()?;
        let ahead_max = self.ahead_max.load(Ordering::Relaxed);
        let mut unled = BTreeSet::new();
        loop {
            if let Some(outgrown) = lineage.outgrown() {
                lineage = self.give_up(lineage, &outgrown)?;
            } else if let Some(name) = lineage.joined_but(ahead_max, &unled) {
                // Neither a name nor a text connects anything; records do.
                if !self.is_led(name)? {
                    unled.insert(name);
                    continue;
                }
                if let WalFileName::History(timeline) = name {
                    claim(
                        &self.completed,
                        timeline,
                        &brought_by(&self.completed, name)?,
                    )?;
                    lineage = lineage.with_claim(timeline);
                }
                remove(&self.completed, name)?;
                tracing::warn!("{name} was set apart and is joined: what connects it has arrived");
                lineage = lineage.without_note(name);
            } else {
                break;
            }
        }
        let left = !lineage.facts().notes.is_empty();
        self.has_notes.store(left, Ordering::Relaxed);
        Ok(())
    }

    /// Sets the history of a claim apart, which had readers follow it until now, and what it had them read.
    fn give_up(&self, lineage: Lineage, outgrown: &Outgrown) -> Result<Lineage, StoreError> {
        let Outgrown {
            timeline, parent, ..
        } = *outgrown;
        let name = WalFileName::History(timeline);
        let by = claims(&self.completed)?
            .remove(&timeline)
            .unwrap_or_default();
        let mut notes = told(&self.completed)?.into_iter();
        let of_parent = notes.find(|told| {
            told.kind == Kind::Behind && told.name.timeline() == parent && !told.by.is_empty()
        });
        let gone_on =
            of_parent.map_or_else(String::new, |told| format!(", brought by {}", told.by));
        let why = format!("{}{gone_on}", outgrown.apart());
        write_text(&self.completed, name, Kind::History, &by, &why)?;
        self.has_notes.store(true, Ordering::Relaxed);
        tracing::error!(
            "ALARM: {name} of {by} is set apart, and readers follow timeline {parent} again: {why}. \
             If timeline {timeline} is the right one, `choose {name} --take`"
        );
        let (lineage, segments) = lineage.given_up(timeline);
        for segment in segments {
            let apart = Apart::TimelineApart {
                timeline: segment.timeline(),
            };
            let name = WalFileName::Segment(segment);
            write_text(&self.completed, name, apart.kind(), &by, &apart.to_string())?;
        }
        // Behind the notes: a crash in between leaves those, which count for more.
        if let Some(folder) = open(&self.completed)? {
            folder.remove(&format!("{name}{CLAIMED_SUFFIX}"))?;
            folder.sync()?;
        }
        Ok(lineage)
    }
}

#[cfg(test)]
mod tests;
