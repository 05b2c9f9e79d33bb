//! The end of a partial segment, proven: by its records, by what was acknowledged, and by what lies
//! behind it. Never clears and never changes anything. Invariant: an end is either that of the
//! records that were shipped, or damage with its reason, and nobody takes the one for the other.
//!
//! | the records end | and then it is |
//! |---|---|
//! | before the acknowledged end | damage |
//! | at it or behind it, and it is exact | the end: what lies behind was never acknowledged |
//! | elsewhere, a whole record lies behind | damage: it may have been acknowledged |
//! | elsewhere, nothing of the kind behind | the end |
//!
//! In the third case a power cut may have torn a tail that nobody was promised. To tell the two
//! apart there is nothing left then, and the mistake on this side costs no record: a stream keeps a
//! copy and has the master send the records again, and a boot asks for `--force`.

use std::os::fd::{AsFd, BorrowedFd};

use walmgr_protocol::names::{Lsn, SegmentName};

use super::acknowledged::{self, Acknowledged};
use super::records::{RecordSearch, RecordsEnd, scanner_at, start_of};
use crate::store::binding::Binding;
use crate::store::damage::{Damage, KnownBy};
use crate::store::error::StoreError;
use crate::store::folder::Folder;
use crate::wal::behind::Behind;
use crate::wal::scan::Scanner;

/// How often a segment is looked at that somebody may be writing to meanwhile.
pub(super) const LOOKS_MAX: u32 = 3;

/// An end, and what it is worth.
pub(super) struct Proven {
    pub(super) end: RecordsEnd,
    pub(super) acknowledged: Option<Acknowledged>,
    pub(super) damage: Option<Damage>,
}

/// Finds and proves the end of an open partial segment; `scanner` stands at its beginning.
///
/// The acknowledged end is read first, as what it speaks of is in the file by then.
pub(super) fn find(
    folder: &Folder,
    file: BorrowedFd<'_>,
    binding: &Binding,
    segment: SegmentName,
    scanner: Scanner,
) -> Result<Proven, StoreError> {
    let acknowledged = Acknowledged::read(folder, segment)?;
    let mut search = RecordSearch::new(segment, binding, scanner);
    folder.read_through(file, &segment.to_string(), |piece| search.feed(piece))?;
    prove(folder, file, binding, search, acknowledged)
}

/// Proves the end of records that were read already.
pub(super) fn prove(
    folder: &Folder,
    file: BorrowedFd<'_>,
    binding: &Binding,
    search: RecordSearch<'_>,
    acknowledged: Option<Acknowledged>,
) -> Result<Proven, StoreError> {
    let segment = search.segment();
    let end = search.finish();
    let damage = |known| Damage {
        segment,
        end: end.lsn,
        known,
    };
    let known = match acknowledged {
        Some(known) if known.end > end.lsn => Some(KnownBy::Acknowledged(known.end)),
        Some(known) if known.is_exact => None,
        _ => look(folder, file, binding, segment, &end)?.map(KnownBy::Behind),
    };
    Ok(Proven {
        damage: known.map(damage),
        end,
        acknowledged,
    })
}

/// Where a whole record ends behind the end.
fn look(
    folder: &Folder,
    file: BorrowedFd<'_>,
    binding: &Binding,
    segment: SegmentName,
    end: &RecordsEnd,
) -> Result<Option<Lsn>, StoreError> {
    let (start, size) = (start_of(segment, binding), binding.segment_size.bytes());
    if end.switched.is_some() || end.held_bytes >= size {
        return Ok(None);
    }
    let from = Lsn(start.0 + end.held_bytes);
    let mut behind = Behind::new(from, |lsn| scanner_at(segment, lsn, binding));
    let name = segment.to_string();
    folder.read_on(file, &name, end.held_bytes, |piece| behind.feed(piece))?;
    Ok(behind.finish())
}

/// Finds and proves the end of a segment by its name, beside a receiver that may be writing; `None` where there is no such file. Without a scanner
/// that comes from the segment before, it begins with this one.
pub(super) fn by_name(
    folder: &Folder,
    binding: &Binding,
    segment: SegmentName,
    scanner: Option<Scanner>,
) -> Result<Option<Proven>, StoreError> {
    let mut looks = 0;
    loop {
        let Some(file) = folder.open_file(&segment.to_string())? else {
            return Ok(None);
        };
        let scanner = scanner.clone();
        let scanner =
            scanner.unwrap_or_else(|| scanner_at(segment, start_of(segment, binding), binding));
        let proven = find(folder, file.as_fd(), binding, segment, scanner)?;
        looks += 1;
        // What was read while it was being written may look like anything.
        if proven.damage.is_none() || looks >= LOOKS_MAX {
            return Ok(Some(proven));
        }
    }
}

/// The segments of which something was acknowledged and no file is left, neither in progress nor,
/// where `completed` is given, finished.
pub(in crate::store) fn vanished(
    completed: Option<&Folder>,
    partial: &Folder,
    binding: &Binding,
) -> Result<Vec<Damage>, StoreError> {
    let mut vanished = Vec::new();
    let names = partial.names()?;
    for segment in names
        .iter()
        .filter_map(|name| acknowledged::segment_of(name))
    {
        let known = match Acknowledged::read(partial, segment) {
            // Of what the disk does not give back nothing is known, and the others are not worse for it.
            Err(error @ StoreError::Disk { .. }) => {
                tracing::error!("cannot tell how much of {segment} was acknowledged: {error}");
                continue;
            }
            other => other?,
        };
        let Some(known) = known else { continue };
        let name = segment.to_string();
        // In this order: a push may finish it meanwhile.
        let is_gone = partial.stat_at(&name)?.is_none();
        let finished = match completed.filter(|_| is_gone) {
            Some(completed) => completed.stat_at(&name)?,
            None => None,
        };
        if is_gone && finished.is_none() {
            vanished.push(Damage {
                segment,
                end: start_of(segment, binding),
                known: KnownBy::Acknowledged(known.end),
            });
        }
    }
    vanished.sort_by_key(|damage| damage.segment);
    Ok(vanished)
}
