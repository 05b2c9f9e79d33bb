//! What was stored and acknowledged under a name that another file has now: `NAME.displaced`, with a number
//! behind the second and every later one.
//! Never serves it, never writes over it, and never removes it but with the WAL around it (`sets::purge`).
//! Invariant: whoever was told that a file is stored finds its bytes under its name or under one of these.
//!
//! ```text
//! write .apart/NAME.displaced      who brought it; a crash leaves a note without a file, which means nothing
//! rename .checksums/NAME           its checksum goes with it; a crash leaves NAME without one: it counts
//! link NAME to NAME.displaced, sync   a crash leaves the file under both names
//! rename the other one to NAME, sync
//! ```
//!
//! For one name there are at most `DISPLACED_MAX`. Then the stored file gives way no more until a person
//! has looked: nothing is written over to make room for what may be forged.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use walmgr_protocol::names::WalFileName;

use super::apart_notes;
use super::beside::{Beside, CopyName};
use super::binding::{Marker, MarkerRole};
use super::checksums::Checksums;
use super::disk::Disk;
use super::error::StoreError;
use super::folder::Folder;
use super::health::Monitor;
use super::obstacle_notes;
use super::reader::ArchiveReader;
use super::recovery;
use super::shared::Shared;

/// How many files of one name may have given way: a genuine master displaces one that was forged, once.
const DISPLACED_MAX: usize = 16;

impl Shared {
    /// Whether the stored file of this name may give way to one more.
    pub(super) fn may_displace(&self, name: WalFileName) -> Result<bool, StoreError> {
        let copies = CopyName::to_choose_from(name, self.completed.names_beside()?);
        let displaced = copies.iter().filter(|copy| copy.kind == Beside::Displaced);
        if displaced.count() < DISPLACED_MAX {
            return Ok(true);
        }
        tracing::error!(
            "ALARM: {DISPLACED_MAX} files of the name {name} are already displaced, so the stored \
            one stays: look at them (`choose {name}`) and move them away"
        );
        Ok(false)
    }

    /// Whether one of the copies that are kept beside the stored file of this name has these bytes.
    pub(super) fn keeps_beside(
        &self,
        name: WalFileName,
        (len, crc32): (u64, u32),
    ) -> Result<bool, StoreError> {
        for copy in CopyName::to_choose_from(name, self.completed.names_beside()?) {
            if self.has_content(&copy.to_string(), (len, crc32))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the file of this name in the directory has these bytes.
    pub(super) fn has_content(&self, text: &str, digest: (u64, u32)) -> Result<bool, StoreError> {
        let folder = &self.completed;
        let Some(file) = folder.open_finished(text)? else {
            return Ok(false);
        };
        if (folder.finished_len(&file)?).is_some_and(|len| len != digest.0) {
            return Ok(false);
        }
        match folder.digest_of(&file) {
            // It cannot be unpacked.
            Err(StoreError::Damaged { .. }) => Ok(false),
            found => Ok(found? == digest),
        }
    }
}

/// Has `put` put another file in the place of the stored one, which it keeps under the name that it is given.
/// Returns what it made, and that name.
pub(super) fn displace<T>(
    completed: &Arc<Folder>,
    checksums: &Checksums,
    (name, by): (WalFileName, &str),
    put: impl FnOnce(&str) -> Result<T, StoreError>,
) -> Result<(T, String), StoreError> {
    let kept = free_name(completed, name)?;
    apart_notes::note_copy(completed, &kept, by)?;
    // What was kept of the one that goes is not true of the other.
    checksums.hand_on(&name.to_string(), &kept)?;
    Ok((put(&kept)?, kept))
}

/// The name that the next file which gives way gets; what a crash left of the last attempt is used again.
fn free_name(completed: &Folder, name: WalFileName) -> Result<String, StoreError> {
    let copies = CopyName::to_choose_from(name, completed.names_beside()?);
    let mut next = 0;
    for copy in copies.iter().filter(|it| it.kind == Beside::Displaced) {
        let text = copy.to_string();
        if completed.is_same_file(&name.to_string(), &text)? {
            return Ok(text);
        }
        next = copy.number.saturating_add(1);
    }
    let copy = CopyName {
        name,
        kind: Beside::Displaced,
        number: next,
    };
    Ok(copy.to_string())
}

impl ArchiveReader {
    /// The copies that might be served in the place of a stored file, by that file's name. Damaged copies are not
    /// among them.
    pub fn beside(&self) -> Result<BTreeMap<WalFileName, Vec<CopyName>>, StoreError> {
        let mut beside = BTreeMap::<WalFileName, Vec<CopyName>>::new();
        for text in self.completed.names_beside()? {
            if let Some(copy) = CopyName::parse(&text)
                && copy.kind != Beside::Damaged
                // What a crash left of an attempt is the stored file itself.
                && !self.completed.is_same_file(&copy.name.to_string(), &text)?
            {
                beside.entry(copy.name).or_default().push(copy);
            }
        }
        beside.values_mut().for_each(|copies| copies.sort());
        Ok(beside)
    }

    /// The copies that a person has to decide about: all but those of a `.partial`. No reader asks for a `.partial`,
    /// and each server that followed a timeline to its end writes a different one.
    pub fn to_decide(&self) -> Result<BTreeMap<WalFileName, Vec<CopyName>>, StoreError> {
        let mut beside = self.beside()?;
        beside.retain(|name, _| !matches!(name, WalFileName::Partial(_)));
        Ok(beside)
    }

    /// Why a copy is not what was acknowledged, if that was kept and it is not.
    pub fn copy_is_changed(&self, copy: &CopyName) -> Result<Option<String>, StoreError> {
        let text = copy.to_string();
        let Some(kept) = Checksums::open(&self.completed).read_copy(copy.name, &text) else {
            return Ok(None);
        };
        let Some(file) = self.completed.open_finished(&text)? else {
            return Ok(None);
        };
        match self.completed.digest_of(&file) {
            Err(StoreError::Damaged { why, .. }) => Ok(Some(why)),
            digest => digest.map(|(len, crc32)| kept.contradicts(len, crc32)),
        }
    }

    /// Who brought a copy, if that is known.
    pub fn copy_by(&self, copy: &CopyName) -> Result<String, StoreError> {
        apart_notes::copy_by(&self.completed, &copy.to_string())
    }
}

/// Puts a copy in the place of the stored file, and keeps the stored file under another name, which is returned.
/// Fails while a receiver has the archive open: it would go on to acknowledge the old file under its name.
///
/// A displaced copy and the stored file change names in one step, since both were acknowledged.
pub(crate) fn take_copy(
    completed_wals: &Path,
    disk: Arc<dyn Disk>,
    copy: &CopyName,
) -> Result<String, StoreError> {
    let folder = Arc::new(Folder::open_completed(
        completed_wals,
        disk,
        Arc::new(Monitor::new()),
    )?);
    let _lock = recovery::lock(&folder)?;
    let (name, text) = (copy.name, copy.to_string());
    let (stored, checksums) = (name.to_string(), Checksums::open(&folder));
    if let WalFileName::Segment(segment) = name {
        obstacle_notes::doubt(&folder, segment)?;
    }
    let stored_by = checksums.brought_by(name).unwrap_or_default();
    // Two forms cannot change places in one step.
    folder.store_alike(&text, &stored)?;
    let kept = if copy.kind == Beside::Displaced {
        let (was_stored, was_kept) = (checksums.text(&stored), checksums.text(&text));
        // A crash leaves nobody named, and nothing that is true of the other one only.
        checksums.remove(&[stored.clone(), text.clone()])?;
        apart_notes::remove_copy_note(&folder, &text)?;
        folder.exchange(&stored, &text)?;
        checksums.put(&stored, was_kept);
        checksums.put(&text, was_stored);
        apart_notes::note_copy(&folder, &text, &stored_by)?;
        text
    } else {
        let origin = (name, stored_by.as_str());
        let put = |kept: &str| folder.put_over(&text, &stored, kept);
        let ((), kept) = displace(&folder, &checksums, origin, put)?;
        apart_notes::remove_copy_note(&folder, &text)?;
        kept
    };
    if let WalFileName::Segment(segment) = name
        && let Some(binding) =
            Marker::read(&folder, MarkerRole::Completed)?.and_then(|it| it.binding)
    {
        obstacle_notes::renew(&folder, segment, binding.segment_size)?;
    }
    Ok(kept)
}

#[cfg(test)]
mod tests;
