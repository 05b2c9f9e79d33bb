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
use super::extents::Extent;
use super::file::PartialFile;
use super::open::{OpenSegment, PartialStream, drop_later};
use super::records::{RecordSearch, scanner_at, start_of};
use crate::store::binding::Binding;
use crate::store::error::StoreError;
use crate::store::shared::Shared;
use crate::wal::scan::Scanner;
use crate::wal::segment::Verify;
use crate::wal::through::Through;

impl OpenSegment {
    /// Compares bytes with what is held; from the first difference on they go to another file.
    pub(super) fn compare(
        &mut self,
        offset: u64,
        bytes: &[u8],
        boundaries: &[u64],
    ) -> Result<(), StoreError> {
        if let Some(rewriting) = &mut self.rewriting {
            return rewriting.write(offset, bytes, boundaries);
        }
        let same = self.common(offset, bytes)?;
        let differs_at = offset + same as u64;
        let is_common = |end: &u64| *end <= differs_at;
        self.has_common_record |= boundaries.iter().any(is_common);
        if same == bytes.len() {
            return Ok(());
        }
        if differs_at >= self.held_bytes {
            // It goes on behind what is held, and that is the same.
            self.comparing = false;
            self.make_way()?;
            return self.file()?.write(differs_at, &bytes[same..]);
        }
        let mut rewriting = Rewriting::begin(self.file()?, self.segment, differs_at)?;
        rewriting.write(differs_at, &bytes[same..], boundaries)?;
        self.rewriting = Some(rewriting);
        Ok(())
    }

    /// How many of these bytes are the same as those that are held there.
    fn common(&self, offset: u64, bytes: &[u8]) -> Result<usize, StoreError> {
        let end = offset + bytes.len() as u64;
        let mut same = 0_usize;
        self.file()?
            .read(offset..end.min(self.held_bytes), |piece| {
                let ours = &bytes[same..same + piece.len()];
                let equal = ours.iter().zip(piece).take_while(|(a, b)| a == b).count();
                same += equal;
                equal == piece.len()
            })?;
        Ok(same)
    }

    /// Keeps a copy of a damaged file and clears it behind its records, before anything is written
    /// there.
    pub(super) fn make_way(&mut self) -> Result<(), StoreError> {
        if !self.is_damaged {
            return Ok(());
        }
        let file = self.file()?;
        let (folder, segment) = (file.folder(), self.segment);
        refuse_more_copies(folder, DAMAGED)?;
        let kept = folder.keep_copy(file.handle(), &segment.to_string(), DAMAGED)?;
        tracing::error!(
            "ALARM: the damaged {segment} is kept as {kept}; the master sends again what follows {}",
            Lsn(self.start.0 + self.held_bytes)
        );
        file.clear_behind(self.held_bytes)?;
        self.is_damaged = false;
        Ok(())
    }
}

impl PartialStream {
    /// Puts the master's other records in the place of those that are held, if they are proven by
    /// now.
    pub(super) fn adopt(&mut self) -> Result<(), StoreError> {
        let (shared, binding) = (Arc::clone(&self.shared), self.binding);
        let open = self.opened()?;
        let (segment, start) = (open.segment, open.start);
        let Some(mut rewriting) = open.rewriting.take_if(|it| it.has_own_record) else {
            return Ok(());
        };
        let Some(anew) = &rewriting.file else {
            return Ok(());
        };
        if !open.has_common_record {
            let differs_at = Lsn(start.0 + rewriting.differs_at);
            follows_what_is_held(&shared, &binding, anew, (segment, differs_at))?;
        }
        let _guard = shared.names.lock(WalFileName::Partial(segment));
        if !open.file()?.is_in_place()? {
            return Err(StoreError::Finished { segment });
        }
        let folder = &shared.partial;
        let common = Lsn(start.0 + rewriting.differs_at);
        let keep = (open.acknowledged > common || open.is_damaged).then_some(DIFFERS);
        if keep.is_some() {
            refuse_more_copies(folder, DIFFERS)?;
        }
        // Before the exchange: the acknowledged end of the old records would call the new ones
        // damaged, while without one the old ones are what they were.
        open.note = None;
        acknowledged::remove(folder, segment)?;
        let (from, old) = ((anew.handle(), anew.name()), open.file()?.handle());
        let kept = folder.replace_partial(from, (old, segment), keep)?;
        let kept = kept.map_or_else(
            || "nothing behind it was acknowledged".to_owned(),
            |kept| format!("what was held is kept as {kept}"),
        );
        tracing::error!("ALARM: {segment}: the master wrote its WAL anew behind {common}; {kept}");
        (shared.partials).change(segment, |extent| *extent = Extent::default());
        open.file = rewriting.file.take().map(PartialFile::renamed);
        open.comparing = false;
        open.is_damaged = false;
        open.acknowledged = Lsn(0);
        open.crc = None;
        // A scanner that came through what is dropped leads nowhere.
        shared.carried.put(segment, Verify::Records, None);
        drop_later(&shared, segment)
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
fn scanner_behind_previous(
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
