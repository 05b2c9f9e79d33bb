//! The notes beside files that are set apart: who brought each, and why readers do not follow it.
//! Never decides anything; `lineage` does. Invariant: only the name of a note decides, so a torn or flipped text lets
//! nothing in.
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
use std::sync::Arc;

use walmgr_protocol::names::{SegmentName, TimelineId, WalFileName};

use super::error::StoreError;
use super::folder::Folder;
use super::lineage::{Apart, ApartKind, Lineage};

/// The folder of the notes.
pub(super) const APART_NAME: &str = ".apart";

/// Two lines.
const NOTE_BYTES_MAX: usize = 4096;

/// Behind the name of a history that only a key claims.
pub(super) const CLAIMED_SUFFIX: &str = ".claimed";

/// Behind the name of a file that no reader ever follows, `.partial` or `.backup`.
pub(super) const UNREAD_SUFFIX: &str = ".unread";

/// Behind the name of a segment that came before the one before it.
pub(super) const EARLY_SUFFIX: &str = ".early";

pub(super) const KINDS: [(ApartKind, &str); 4] = [
    (ApartKind::Ahead, "ahead"),
    (ApartKind::Behind, "behind"),
    (ApartKind::Timeline, "timeline"),
    (ApartKind::History, "history"),
];

/// What a note tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApartNote {
    /// About which file.
    pub name: WalFileName,
    /// What kind of note it is.
    pub kind: ApartKind,
    /// Who brought the file.
    pub by: String,
    /// Why it is set apart.
    pub why: String,
}

/// Which files have a note.
pub(super) fn notes(completed: &Folder) -> Result<BTreeMap<WalFileName, ApartKind>, StoreError> {
    let Some(folder) = open(completed)? else {
        return Ok(BTreeMap::new());
    };
    let names = folder.names()?.into_iter();
    Ok(names.filter_map(|text| parse(&text)).collect())
}

/// Every note with its text.
pub(super) fn told(completed: &Folder) -> Result<Vec<ApartNote>, StoreError> {
    let Some(folder) = open(completed)? else {
        return Ok(Vec::new());
    };
    let mut told = Vec::new();
    for (name, kind) in notes(completed)? {
        let text = read(&folder, &text_of(name, kind))?;
        let mut lines = text.lines();
        let by = lines.next().unwrap_or_default().to_owned();
        let why = lines.next().unwrap_or_default().to_owned();
        told.push(ApartNote {
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
pub(super) fn claim(completed: &Folder, timeline: TimelineId, by: &str) -> Result<(), StoreError> {
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
pub(super) fn note_unread(completed: &Folder, name: WalFileName, by: &str) {
    // One that is there already is no failure, and without the folder the next call fails.
    let _ = (completed.disk).create_directory(&completed.path().join(APART_NAME));
    let Ok(Some(folder)) = open(completed) else {
        return;
    };
    let text = format!("{name}{UNREAD_SUFFIX}");
    let written = (folder.disk.create(folder.handle(), &text))
        .and_then(|file| (folder.disk).write_all(file.as_fd(), one_line(by).as_bytes(), 0));
    if let Err(error) = written {
        tracing::debug!("cannot note who sent {name}: {error}");
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

/// Whether the file that has this name may have to give way: nothing has shown that it belongs there.
pub(super) fn is_unproven(completed: &Folder, name: WalFileName) -> Result<bool, StoreError> {
    if is_noted(completed, name)? {
        return Ok(true);
    }
    match name {
        WalFileName::Segment(segment) => is_early(completed, segment),
        _ => Ok(false),
    }
}

/// The segments that arrived while there was a hole before them.
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

/// Whether a standby passes over a segment when it comes to it. It does if the segment lies behind the end of its
/// timeline, or does not go on with the segment before.
pub(super) fn is_passed_over(completed: &Folder, segment: SegmentName) -> Result<bool, StoreError> {
    for kind in [ApartKind::Behind, ApartKind::Ahead] {
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
    kind: ApartKind,
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
            let name = text_of(WalFileName::History(*newer), ApartKind::History);
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

pub(super) fn text_of(name: WalFileName, kind: ApartKind) -> String {
    let mut kinds = KINDS.iter().filter(|(known, _)| *known == kind);
    let word = kinds.next().map_or("", |(_, word)| *word);
    format!("{name}.{word}")
}

fn parse(text: &str) -> Option<(WalFileName, ApartKind)> {
    let (name, word) = text.rsplit_once('.')?;
    let (kind, _) = KINDS.iter().find(|(_, known)| *known == word)?;
    Some((name.parse().ok()?, *kind))
}

fn read(folder: &Folder, name: &str) -> Result<String, StoreError> {
    let mut text = folder.read_small(name, NOTE_BYTES_MAX)?.unwrap_or_default();
    text.truncate(NOTE_BYTES_MAX);
    Ok(String::from_utf8_lossy(&text).into_owned())
}
