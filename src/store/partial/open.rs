//! The stream of records: which segment is open in it, and the file of a new one.
//! Never writes records. Invariant: a segment that goes on with nothing takes no room that a master's stream needs.

use std::sync::Arc;
use std::time::Instant;

use walmgr_protocol::limits::{RESERVED_SEGMENTS, STRAY_SEGMENTS_MAX};
use walmgr_protocol::names::{SegmentName, TimelineId, WalFileName};

use super::acknowledged;
use super::anew::DIFFERS;
use super::file::PartialFile;
use super::names::partial_names;
use super::state::{HeldSegment, OpenSegment, SegmentState};
use crate::store::apart_notes::is_unproven;
use crate::store::binding::Binding;
use crate::store::durable::Existing;
use crate::store::error::StoreError;
use crate::store::shared::Shared;
use crate::wal::scan::Scanner;
use crate::wal::segment::Verify;

/// The one stream of records into the archive; whoever has it makes sure that there is no other.
pub struct PartialStream {
    pub(super) shared: Arc<Shared>,
    pub(super) binding: Binding,
    pub(super) timeline: TimelineId,
    pub(super) open: Option<OpenSegment>,
    /// The scanner as it left the segment before the named one.
    pub(super) carried: Option<(SegmentName, Scanner)>,
    /// When what is shipped was last weighed against a newer timeline.
    pub(super) weighed: Option<Instant>,
}

impl PartialStream {
    /// The segment that is open.
    pub(super) fn opened(&mut self) -> Result<&mut OpenSegment, StoreError> {
        let timeline = self.timeline;
        self.open.as_mut().ok_or_else(|| StoreError::Diverged {
            why: format!("no segment of timeline {timeline} is open"),
        })
    }
}

impl OpenSegment {
    /// Makes the file of a new segment, while its name is locked.
    pub(super) fn make_file(&mut self, shared: &Shared, size: u64) -> Result<(), StoreError> {
        let segment = self.position.segment;
        let name = WalFileName::Segment(segment);
        if Existing::open(&shared.completed, name)?.is_some()
            && !is_unproven(&shared.completed, name)?
        {
            return Err(StoreError::Finished { segment });
        }
        refuse_more_strays(shared, segment)?;
        (shared.partial).keep_free(&segment.to_string(), size, RESERVED_SEGMENTS * size)?;
        let file = PartialFile::create(&shared.partial, segment, size)?;
        self.state = SegmentState::Writing(HeldSegment::made(file));
        Ok(())
    }
}

/// Fails when a segment has no whole one before it, and as many like it are there as may be. A master's stream
/// goes from one to the next.
fn refuse_more_strays(shared: &Shared, segment: SegmentName) -> Result<(), StoreError> {
    let size = shared.binding()?.segment_size;
    let partials = partial_names(&shared.partial)?;
    let is_led = |name: SegmentName| -> Result<bool, StoreError> {
        let before = name.number(size).and_then(|number| number.checked_sub(1));
        let Some(before) = before else {
            return Ok(true);
        };
        let before = SegmentName::from_number(name.timeline(), before, size);
        if partials.contains(&before) {
            let checked = shared.partials.of(before).checked;
            // Of one that this process has not written to nobody knows it without reading it.
            return Ok(checked.is_none_or(|checked| checked.is_whole(size.bytes())));
        }
        Ok(shared.completed.stat_at(&before.to_string())?.is_some())
    };
    if is_led(segment)? {
        return Ok(());
    }
    let mut strays = 0;
    for name in &partials {
        strays += usize::from(!is_led(*name)?);
    }
    if strays < STRAY_SEGMENTS_MAX {
        return Ok(());
    }
    Err(StoreError::Diverged {
        why: format!(
            "{segment} continues no WAL of this archive, and {} holds {strays} such segments: \
            look at them and move them away first",
            shared.partial.path().display()
        ),
    })
}

/// What was held behind a segment whose end was rewritten continues nothing any more.
pub(super) fn drop_later(shared: &Shared, segment: SegmentName) -> Result<(), StoreError> {
    let (folder, timeline) = (&shared.partial, segment.timeline());
    let later = partial_names(folder)?.into_iter();
    for name in later.filter(|name| name.timeline() == timeline && *name > segment) {
        acknowledged::remove(folder, name)?;
        let aside = folder.set_aside_as(&name.to_string(), DIFFERS)?;
        // What is remembered of it is not true of what comes under its name.
        shared.partials.forget(name);
        shared.carried.put(name, Verify::Records, None, None);
        tracing::warn!("{name} follows WAL that was dropped; it is kept as {aside}");
    }
    Ok(())
}
