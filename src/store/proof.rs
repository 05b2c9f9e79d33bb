//! The proof that a stretch of WAL is in the archive, whole and durable: for whoever seals a set.
//! Never changes what is stored. Invariant: every segment was read to its end, goes on with the one before it, and
//! was synced under its name.

use std::sync::Arc;

use walmgr_protocol::names::{Lsn, SegmentName, WalFileName};

use super::binding::Binding;
use super::checksums::Checksums;
use super::durable::{Durable, DurableWal, Existing};
use super::error::StoreError;
use super::folder::Folder;
use super::joints::{Carried, JointVerdict, Joints};
use super::shared::StoredCheck;
use crate::wal::scan::Scanner;
use crate::wal::segment::Verify;

/// Whether a stretch of WAL is here.
#[derive(Debug, PartialEq, Eq)]
pub enum WalProof {
    /// All of it, durable.
    Durable(DurableWal),
    /// At least this segment is missing.
    Missing(SegmentName),
}

/// A segment that was read and synced, and the scanner that came out of it; `None` when there is none.
type Confirmed = Option<(Durable, Option<Scanner>)>;

/// What confirms one segment; the segment before has been walked where it is given.
type Confirm<'a> =
    &'a mut dyn FnMut(SegmentName, Option<&Carried>) -> Result<Confirmed, StoreError>;

/// An archive, as far as a proof reads it.
pub(super) struct Prover<'a> {
    pub(super) completed: &'a Arc<Folder>,
    pub(super) checksums: &'a Checksums,
    pub(super) binding: Binding,
}

impl Prover<'_> {
    /// Proves that the segments from `first` to the one that holds the last byte before `stop` are
    /// here. `confirm` is [`Prover::confirm`], with what its caller does around it.
    pub(super) fn prove(
        &self,
        first: SegmentName,
        stop: Lsn,
        verify: Verify,
        confirm: Confirm<'_>,
    ) -> Result<WalProof, StoreError> {
        let size = self.binding.segment_size;
        let stop = Lsn(stop.0.saturating_sub(1));
        let last = SegmentName::containing(first.timeline(), stop, size);
        // The last one is the one that is not there yet, and looking is cheaper than reading.
        if self.completed.stat_at(&last.to_string())?.is_none() {
            return Ok(WalProof::Missing(last));
        }
        let mut proof: Option<DurableWal> = None;
        let mut next = Some(first);
        let walked = Carried::default();
        while let Some(name) = next.filter(|name| proof.is_none() || *name <= last) {
            let before = proof.is_some().then_some(&walked);
            let Some((segment, scanner)) = confirm(name, before)? else {
                return Ok(WalProof::Missing(name));
            };
            walked.put(name, verify, scanner, None);
            proof = match proof {
                None => DurableWal::of(&segment),
                Some(proof) => proof.and(&segment, size),
            };
            next = name.next(size);
        }
        Ok(proof.map_or(WalProof::Missing(last), WalProof::Durable))
    }

    /// Syncs and reads a stored segment; `None` when there is none.
    pub(super) fn confirm(
        &self,
        segment: SegmentName,
        verify: Verify,
        before: Option<&Carried>,
    ) -> Result<Confirmed, StoreError> {
        let name = WalFileName::Segment(segment);
        let Some(existing) = Existing::open(self.completed, name)? else {
            return Ok(None);
        };
        let mut check = StoredCheck::new(name, &self.binding.expected(), verify);
        let content = existing.read(|bytes| check.update(bytes))?;
        let mut scanner = (check.finish_at_end_of(&content))
            .map_err(|fault| StoreError::of_fault(name, &fault))?;
        let kept = self.checksums.read(name);
        let differs = kept.and_then(|kept| kept.contradicts(content.len, content.crc32));
        if let Some(why) = differs {
            return Err(StoreError::Damaged { name, why });
        }
        if before.is_some() {
            let joints = Joints {
                completed: self.completed,
                checksums: self.checksums,
                binding: self.binding,
                verify,
            };
            match joints.check(segment, before, |each| content.read_pages(each))? {
                JointVerdict::Joined(_) | JointVerdict::Unchecked => {}
                JointVerdict::Inside(through) => scanner = Some(*through),
                JointVerdict::Unjoined(before, why) => {
                    let why = format!("{why}; {before} or this one is damaged");
                    return Err(StoreError::Damaged { name, why });
                }
            }
        }
        Ok(Some((content.confirm()?, scanner)))
    }
}
