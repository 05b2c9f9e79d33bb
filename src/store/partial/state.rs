//! The segment that a stream of records goes into: how far its records were walked, and what may be done with it.
//! Never decides what may be written over. Invariant: bytes count as checked only behind the records that were walked
//! through, and what a state does not have cannot be read in it.
//!
//! ```text
//! archived ────► Finished                takes nothing
//! nothing held ► New ────────append────► Writing
//! held ────────► Writing                    ▲ ▲ ▲
//! held, its end before what was             │ │ │
//! acknowledged ► Damaged ──append, a copy kept│ │
//!                                             │ │
//! rewrite of any that has a file ► Comparing ─┘ │  goes on behind what is held (one that was damaged: by Damaged)
//!                                    │ differs  │
//!                                    ▼          │
//!                                 Rewriting ────┘  sync, with a whole record of the master's own
//! ```

use walmgr_protocol::names::{Lsn, SegmentName, WalFileName};

use super::acknowledged::AcknowledgedNote;
use super::anew::Rewriting;
use super::extents::CheckedRecords;
use super::file::PartialFile;
use crate::store::error::StoreError;
use crate::store::folder::Folder;
use crate::wal::scan::{ScanStep, Scanner};

pub(super) struct OpenSegment {
    pub(super) position: WalkPosition,
    pub(super) state: SegmentState,
}

/// How far the records of a segment were walked, as its master sends them.
pub(super) struct WalkPosition {
    pub(super) segment: SegmentName,
    /// The segment's first byte.
    pub(super) start: Lsn,
    /// The scanner at the segment's beginning, for a rewrite.
    pub(super) first_scanner: Scanner,
    pub(super) scanner: Scanner,
    /// Where the next append begins.
    pub(super) next_offset: u64,
    /// CRC-32 of everything before `next_offset`, if it was all seen.
    pub(super) crc: Option<crc32fast::Hasher>,
    /// Where the last record begins, if it is a switch.
    pub(super) last_switch: Option<Lsn>,
    /// The end of the last whole record, as far as the sender states it too.
    pub(super) end: Lsn,
}

pub(super) enum SegmentState {
    /// It was archived: what its master has was compared when it was opened, and nothing is taken.
    Finished,
    /// Nothing is held of it. The first records make its file, so that asking for segments costs no room.
    New,
    /// Records are appended behind those that are held.
    Writing(HeldSegment),
    /// Its records end before what was acknowledged, and its file is still as it was found.
    Damaged(HeldSegment),
    /// It comes from its beginning once more, and is what is held so far.
    Comparing(SegmentComparison),
    /// It comes from its beginning once more, and what comes goes to another file, as it is not what is held.
    Rewriting(SegmentComparison, Rewriting),
}

/// The file under the segment's name.
pub(super) struct HeldSegment {
    pub(super) file: PartialFile,
    /// Bytes from the segment's beginning that are durable records.
    pub(super) held_bytes: u64,
    /// Up to where it was acknowledged, at least.
    pub(super) acknowledged: Lsn,
    /// Where that is noted; opened by the first append.
    pub(super) note: Option<AcknowledgedNote>,
    /// Whether the file's name is durable.
    pub(super) folder_synced: bool,
}

/// What is held, while its master sends it from the beginning.
pub(super) struct SegmentComparison {
    pub(super) held: HeldSegment,
    /// Whether the records that are held end before what was acknowledged.
    pub(super) is_damaged: bool,
    /// Whether a whole record was the same.
    pub(super) has_common_record: bool,
}

impl OpenSegment {
    /// What is held of the segment. Fails if the segment is finished or has no file yet.
    pub(super) fn held(&mut self) -> Result<&mut HeldSegment, StoreError> {
        match &mut self.state {
            SegmentState::Finished | SegmentState::New => Err(StoreError::Finished {
                segment: self.position.segment,
            }),
            SegmentState::Writing(held) | SegmentState::Damaged(held) => Ok(held),
            SegmentState::Comparing(comparison) | SegmentState::Rewriting(comparison, _) => {
                Ok(&mut comparison.held)
            }
        }
    }

    /// Whether records may go into it: its name leads to its file, or it has none yet.
    pub(super) fn is_in_place(&mut self) -> Result<bool, StoreError> {
        match &self.state {
            SegmentState::Finished => Ok(false),
            SegmentState::New => Ok(true),
            _ => self.held()?.file.is_in_place(),
        }
    }

    /// Begins again at the segment's beginning: what comes is compared with what is held.
    pub(super) fn restart(&mut self) -> Result<(), StoreError> {
        let segment = self.position.segment;
        if matches!(self.state, SegmentState::Finished) {
            let why = format!("the master's {segment} is not the one that was archived");
            return Err(StoreError::Diverged { why });
        }
        self.position = WalkPosition {
            crc: None,
            ..WalkPosition::at_start(segment, self.position.start, &self.position.first_scanner)
        };
        self.change(|state| match state {
            // There is nothing to compare with.
            SegmentState::Finished | SegmentState::New => state,
            SegmentState::Writing(held) => {
                SegmentState::Comparing(SegmentComparison::of(held, false))
            }
            SegmentState::Damaged(held) => {
                SegmentState::Comparing(SegmentComparison::of(held, true))
            }
            SegmentState::Comparing(comparison) | SegmentState::Rewriting(comparison, _) => {
                let SegmentComparison {
                    held, is_damaged, ..
                } = comparison;
                SegmentState::Comparing(SegmentComparison::of(held, is_damaged))
            }
        });
        Ok(())
    }

    /// Goes to the next state. A panic on the way leaves the one that takes nothing.
    pub(super) fn change(&mut self, next: impl FnOnce(SegmentState) -> SegmentState) {
        let state = std::mem::replace(&mut self.state, SegmentState::Finished);
        self.state = next(state);
    }
}

impl WalkPosition {
    /// At a segment's beginning, with nothing seen of it.
    pub(super) fn at_start(
        segment: SegmentName,
        start: Lsn,
        first_scanner: &Scanner,
    ) -> WalkPosition {
        WalkPosition {
            segment,
            start,
            first_scanner: first_scanner.clone(),
            scanner: first_scanner.clone(),
            next_offset: 0,
            crc: Some(crc32fast::Hasher::new()),
            last_switch: None,
            end: first_scanner.valid_end(),
        }
    }

    /// What has been seen of the bytes before `next_offset`.
    pub(super) fn checked(&self) -> Option<CheckedRecords> {
        self.crc.clone().map(|crc| CheckedRecords {
            bytes: self.next_offset,
            crc32: crc.finalize(),
            switched: self.last_switch.is_some(),
        })
    }

    /// Walks the records in `bytes` and returns the offsets where whole ones end.
    pub(super) fn walk(&mut self, bytes: &[u8], stated: Lsn) -> Result<Vec<u64>, StoreError> {
        let name = WalFileName::Partial(self.segment);
        let damaged = |why: String| StoreError::Damaged { name, why };
        let mut boundaries = Vec::new();
        let mut rest = bytes;
        loop {
            match self.scanner.advance(&mut rest) {
                ScanStep::NeedMore => break,
                ScanStep::Record(record) => {
                    boundaries.push(record.end.0.saturating_sub(self.start.0));
                    self.last_switch = record.is_switch().then_some(record.lsn);
                }
                ScanStep::EndOfWal(lsn) => {
                    return Err(damaged(format!("no record begins at {lsn}")));
                }
                ScanStep::Invalid { lsn, why } => return Err(damaged(format!("at {lsn}, {why}"))),
            }
        }
        let found = self.scanner.valid_end();
        // A sender that does not know how the segment before ended states this one's beginning.
        if stated > found.max(self.start) {
            return Err(damaged(format!(
                "its records end at {found}, expected {stated}"
            )));
        }
        self.end = stated.min(found);
        Ok(boundaries)
    }
}

impl HeldSegment {
    /// A file that was made a moment ago: its name is synced before its first records are acknowledged.
    pub(super) const fn made(file: PartialFile) -> HeldSegment {
        HeldSegment {
            file,
            held_bytes: 0,
            acknowledged: Lsn(0),
            note: None,
            folder_synced: false,
        }
    }

    /// The note of what is acknowledged, opened if it was not; the segment's name is locked and in place, as a
    /// push that finishes the segment removes it.
    pub(super) fn note(
        &mut self,
        folder: &Folder,
        segment: SegmentName,
    ) -> Result<&mut AcknowledgedNote, StoreError> {
        let note = match self.note.take() {
            Some(note) => note,
            None => AcknowledgedNote::open(folder, segment)?,
        };
        Ok(self.note.insert(note))
    }

    /// Notes that records up to `end` are acknowledged, where that is noted at all.
    pub(super) fn acknowledge(&mut self, folder: &Folder, end: Lsn) -> Result<(), StoreError> {
        if let Some(note) = &mut self.note {
            note.raise(folder, end)?;
            self.acknowledged = self.acknowledged.max(end);
        }
        Ok(())
    }
}

impl SegmentComparison {
    const fn of(held: HeldSegment, is_damaged: bool) -> SegmentComparison {
        SegmentComparison {
            held,
            is_damaged,
            has_common_record: false,
        }
    }

    /// The state in which records go behind those that are held.
    pub(super) fn ended(self) -> SegmentState {
        match self.is_damaged {
            true => SegmentState::Damaged(self.held),
            false => SegmentState::Writing(self.held),
        }
    }
}
