//! A segment that its master sends from the beginning, because it has other bytes than are held.
//! Never writes over what is held: other records go to a file of their own, which takes the
//! segment's place once they are proven. Invariant: records that were acknowledged and are in no
//! segment any more are in `NAME.differs`, durable before that.
//!
//! # What proves that a master lost its tail
//!
//! A master that crashed writes on behind the last record that its disk kept: its WAL has whole
//! records in common with what is held, up to one, and behind that a whole record of its own which
//! follows it by its link and checks. So that much has to be there before anything is dropped. A
//! torn record or a difference within the first record of a segment proves nothing, unless the
//! segment before it is held and leads to it.
//!
//! A key that is in the wrong hands can forge such records. It destroys nothing with them: what they
//! replace is kept, an alarm says so, and when [`COPIES_MAX`](super::anew::COPIES_MAX) copies are there the next one is
//! refused until a person has looked.

use std::os::fd::AsFd;
use std::sync::Arc;

use walmgr_protocol::names::{Lsn, SegmentName, WalFileName};

use super::acknowledged;
use super::anew::{DAMAGED, DIFFERS, Rewriting, refuse_more_copies};
use super::extents::PartialExtent;
use super::file::PartialFile;
use super::open::{PartialStream, drop_later};
use super::records::{RecordSearch, scanner_at, start_of};
use super::state::{HeldSegment, OpenSegment, SegmentComparison, SegmentState, WalkPosition};
use crate::store::binding::Binding;
use crate::store::error::StoreError;
use crate::store::shared::Shared;
use crate::wal::scan::Scanner;
use crate::wal::segment::Verify;
use crate::wal::through::Through;

impl OpenSegment {
    /// Writes records that were walked through, behind the ones before, or compares them with what is held.
    pub(super) fn take(
        &mut self,
        offset: u64,
        bytes: &[u8],
        boundaries: &[u64],
    ) -> Result<(), StoreError> {
        if let SegmentState::Damaged(_) = &self.state {
            self.make_way()?;
        }
        let segment = self.position.segment;
        match &mut self.state {
            SegmentState::Comparing(comparison) => {
                let differs_at = comparison.compare(offset, bytes, boundaries)?;
                let Some(differs_at) = differs_at else {
                    return Ok(());
                };
                let rest = &bytes[usize::try_from(differs_at - offset).unwrap_or(bytes.len())..];
                self.differ(differs_at, rest, boundaries)
            }
            SegmentState::Rewriting(_, anew) => anew.write(offset, bytes, boundaries),
            SegmentState::Writing(held) | SegmentState::Damaged(held) => {
                held.file.write(offset, bytes)?;
                if let Some(crc) = &mut self.position.crc {
                    crc.update(bytes);
                }
                Ok(())
            }
            SegmentState::Finished | SegmentState::New => Err(StoreError::Finished { segment }),
        }
    }

    /// Writes the first bytes that are not what is held: behind it, or to another file.
    fn differ(
        &mut self,
        differs_at: u64,
        bytes: &[u8],
        boundaries: &[u64],
    ) -> Result<(), StoreError> {
        let segment = self.position.segment;
        let held = self.held()?;
        if differs_at >= held.held_bytes {
            self.change(|state| match state {
                SegmentState::Comparing(comparison) => comparison.ended(),
                other => other,
            });
            self.make_way()?;
            return self.held()?.file.write(differs_at, bytes);
        }
        let mut anew = Rewriting::begin(&held.file, segment, differs_at)?;
        anew.write(differs_at, bytes, boundaries)?;
        self.change(|state| match state {
            SegmentState::Comparing(comparison) => SegmentState::Rewriting(comparison, anew),
            other => other,
        });
        Ok(())
    }

    /// Keeps a copy of a damaged file and clears it behind its records, before anything is written
    /// there.
    fn make_way(&mut self) -> Result<(), StoreError> {
        let SegmentState::Damaged(held) = &self.state else {
            return Ok(());
        };
        let WalkPosition { segment, start, .. } = self.position;
        let (file, folder) = (&held.file, held.file.folder());
        refuse_more_copies(folder, DAMAGED)?;
        let kept = folder.keep_copy(file.handle(), &segment.to_string(), DAMAGED)?;
        tracing::error!(
            "ALARM: the damaged {segment} is kept as {kept}; the master sends the WAL after {} \
            again",
            Lsn(start.0 + held.held_bytes)
        );
        file.clear_behind(held.held_bytes)?;
        self.change(|state| match state {
            SegmentState::Damaged(held) => SegmentState::Writing(held),
            other => other,
        });
        Ok(())
    }
}

impl SegmentComparison {
    /// The offset of the first of these bytes that is not what is held there, if there is one.
    fn compare(
        &mut self,
        offset: u64,
        bytes: &[u8],
        boundaries: &[u64],
    ) -> Result<Option<u64>, StoreError> {
        let held = &self.held;
        let (end, mut same) = (offset + bytes.len() as u64, 0_usize);
        (held.file).read(offset..end.min(held.held_bytes), |piece| {
            let ours = &bytes[same..same + piece.len()];
            let equal = ours.iter().zip(piece).take_while(|(a, b)| a == b).count();
            same += equal;
            equal == piece.len()
        })?;
        let differs_at = offset + same as u64;
        self.has_common_record |= boundaries.iter().any(|end| *end <= differs_at);
        Ok((same < bytes.len()).then_some(differs_at))
    }
}

impl PartialStream {
    /// Puts the master's other records in the place of those that are held, if they are proven by
    /// now.
    pub(super) fn adopt(&mut self) -> Result<(), StoreError> {
        let (shared, binding) = (Arc::clone(&self.shared), self.binding);
        let open = self.opened()?;
        let WalkPosition { segment, start, .. } = open.position;
        let SegmentState::Rewriting(comparison, anew) = &mut open.state else {
            return Ok(());
        };
        let common = Lsn(start.0 + anew.differs_at);
        // The rest of a record from the segment before ends without one, and is acknowledged all the same.
        if !anew.has_own_record && open.position.end <= common {
            return match open.position.next_offset < binding.segment_size.bytes() {
                true => Ok(()),
                false => Err(ends_unproven(segment, common)),
            };
        }
        if !comparison.has_common_record {
            follows_what_is_held(&shared, &binding, &anew.file, (segment, common))?;
        }
        let _guard = shared.names.lock(WalFileName::Partial(segment));
        let held = &mut comparison.held;
        if !held.file.is_in_place()? {
            return Err(StoreError::Finished { segment });
        }
        let folder = &shared.partial;
        let keep = (held.acknowledged > common || comparison.is_damaged).then_some(DIFFERS);
        if keep.is_some() {
            refuse_more_copies(folder, DIFFERS)?;
        }
        // Before the exchange: the acknowledged end of the old records would call the new ones
        // damaged, while without one the old ones are what they were.
        held.note = None;
        acknowledged::remove(folder, segment)?;
        let (from, old) = ((anew.file.handle(), anew.file.name()), held.file.handle());
        let kept = folder.replace_partial(from, (old, segment), keep)?;
        let kept = kept.map_or_else(
            || "nothing after it was acknowledged".to_owned(),
            |kept| format!("the old WAL is kept as {kept}"),
        );
        tracing::error!("ALARM: {segment}: the master rewrote its WAL after {common}; {kept}");
        (shared.partials).change(segment, |extent| *extent = PartialExtent::default());
        open.position.crc = None;
        open.change(|state| match state {
            SegmentState::Rewriting(comparison, anew) => SegmentState::Writing(HeldSegment {
                file: anew.in_place(),
                acknowledged: Lsn(0),
                ..comparison.held
            }),
            other => other,
        });
        // The acknowledgement that comes next is of the new records.
        open.held()?.note(&shared.partial, segment)?;
        // A scanner that came through what is dropped leads nowhere.
        shared.carried.put(segment, Verify::Records, None, None);
        drop_later(&shared, segment)
    }
}

/// Going on to the next segment would drop what this one brought, and the record that crosses over would be
/// acknowledged without its beginning.
fn ends_unproven(segment: SegmentName, differs_at: Lsn) -> StoreError {
    StoreError::Diverged {
        why: format!(
            "the master's {segment} differs from what was shipped of it after {differs_at}, and no record behind \
             that ends in it: the master's counts once it is archived"
        ),
    }
}

/// Fails unless other records of a segment follow the segment before it, which is held.
fn follows_what_is_held(
    shared: &Shared,
    binding: &Binding,
    anew: &PartialFile,
    (segment, differs_at): (SegmentName, Lsn),
) -> Result<(), StoreError> {
    let follows = match scanner_behind_previous(shared, binding, segment)? {
        Some(scanner) => {
            let mut search = RecordSearch::new(segment, binding, scanner);
            anew.read(0..anew.size(), |piece| search.feed(piece))?;
            search.finish().lsn > differs_at
        }
        None => false,
    };
    if follows {
        return Ok(());
    }
    Err(StoreError::Diverged {
        why: format!(
            "the master's {segment} has no record in common with what was shipped of it, and does \
             not follow the segment before it"
        ),
    })
}

/// The scanner as it leaves the segment before this one, if that is held whole.
pub(super) fn scanner_behind_previous(
    shared: &Shared,
    binding: &Binding,
    segment: SegmentName,
) -> Result<Option<Scanner>, StoreError> {
    let size = binding.segment_size;
    let before = segment
        .number(size)
        .and_then(|number| number.checked_sub(1));
    let Some(before) = before else {
        return Ok(None);
    };
    let before = SegmentName::from_number(segment.timeline(), before, size);
    let name = before.to_string();
    for folder in [&shared.partial, &shared.completed] {
        let Some(file) = folder.open_file(&name)? else {
            continue;
        };
        let scanner = scanner_at(before, start_of(before, binding), binding);
        let mut through = Through::new(scanner, before, size);
        folder.read_through(file.as_fd(), &name, |piece| through.update(piece))?;
        if let Some(scanner) = through.finish().out() {
            return Ok(Some(scanner));
        }
    }
    Ok(None)
}
