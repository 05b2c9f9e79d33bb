//! What a finished file goes through right before it is acknowledged, whichever way it came: the check
//! against its neighbours, and its checksum. Never syncs on that way. Invariant: both happen while
//! the names of the file and of the one behind it are locked, so two neighbours that arrive at once see
//! each other.

use walmgr_protocol::names::{Lsn, SegmentName, WalFileName};

use super::apart_notes::is_unproven;
use super::checksums::KeptChecksum;
use super::durable::Durable;
use super::error::StoreError;
use super::joints::{JointVerdict, Joints};
use super::map_notes;
use super::name_lock::NameGuard;
use super::obstacle_notes;
use super::shared::Shared;
use crate::wal::joint::SegmentEnd;
use crate::wal::obstacle::Obstacles;
use crate::wal::scan::Scanner;
use crate::wal::segment::Verify;
use crate::wal::segment_map::{MappedFile, SegmentMap};

/// A file that may be acknowledged as far as its neighbours go.
#[derive(Debug, Default)]
pub(super) struct Joined {
    end: Option<SegmentEnd>,
    /// Stands at the segment's end and can go on.
    scanner: Option<Scanner>,
    verify: Verify,
    /// What replay may not get past in it, and in the records that cross its ends.
    obstacles: Obstacles,
    /// What its records change, if somebody walked through them for that.
    pub(super) map: Option<SegmentMap>,
    /// Whether the segment before is there and leads to it.
    pub(super) is_led: bool,
    /// The CRC-32 of that segment.
    follows: Option<u32>,
    /// The segment behind, and why it is set apart once this one has its name.
    unled: Option<(SegmentName, String)>,
}

impl Joined {
    /// How the segment ends, if somebody walked to there.
    pub(super) const fn end(&self) -> Option<SegmentEnd> {
        self.end
    }

    /// Whether whoever hands it out need not go through its records: each held, and replay gets past all of them.
    fn has_sound_records(&self) -> bool {
        let is_free = self.obstacles.all().is_empty() && !self.obstacles.is_cut();
        self.end.is_some() && self.verify == Verify::Records && is_free
    }
}

impl Shared {
    /// Takes the names of a file and of the segment behind it, in this order.
    pub(super) fn lock_with_next(
        &self,
        name: WalFileName,
    ) -> (NameGuard<'_>, Option<NameGuard<'_>>) {
        let guard = self.names.lock(name);
        let next = match (name, self.binding()) {
            (WalFileName::Segment(segment), Ok(binding)) => segment.next(binding.segment_size),
            _ => None,
        };
        (
            guard,
            next.map(|next| self.names.lock(WalFileName::Segment(next))),
        )
    }

    /// Checks a file against its neighbours. `scanner` walked to its end; `None` if nobody walked through
    /// it now, and then what the stream of records left counts. `read` hands out the file's bytes
    /// until they are wanted no longer.
    ///
    /// # Errors
    /// `Damaged` if the segment before is what was acknowledged and this one does not go on with it. If the
    /// segment before is not, or nobody knows, there is an alarm: what the master has is all there is. So it
    /// is with the segment behind: it came first, and whoever sent it may not be who sends this one. A
    /// reader is given neither of two that do not go together.
    pub(super) fn join(
        &self,
        name: WalFileName,
        verify: Verify,
        scanner: Option<Scanner>,
        read: impl FnOnce(&mut dyn FnMut(&[u8]) -> bool) -> Result<(), StoreError>,
    ) -> Result<Joined, StoreError> {
        let WalFileName::Segment(segment) = name else {
            return Ok(Joined::default());
        };
        let binding = self.binding()?;
        let start = segment.start(binding.segment_size).unwrap_or_default();
        let mut scanner = scanner.or_else(|| self.carried.of(segment, verify));
        let map = scanner.as_mut().and_then(SegmentMap::take);
        let end = scanner
            .as_ref()
            .map(|scanner| match SegmentEnd::of(scanner) {
                SegmentEnd::Open { begins, .. } if begins < start => SegmentEnd::Inside,
                end => end,
            });
        let joints = Joints {
            completed: &self.completed,
            checksums: &self.checksums,
            binding,
            verify,
        };
        let mut obstacles = Obstacles::default();
        if let Some(scanner) = &scanner {
            obstacles.add_before(scanner.obstacles(), Lsn(u64::MAX));
        }
        let mut is_led = true;
        let before = joints.name_before(segment)?;
        let crc32_before = || before.and_then(|before| self.carried.crc32_of(before));
        let (remembered, mut follows) = (crc32_before(), None);
        let scanner = match joints.check(segment, Some(&self.carried), read)? {
            JointVerdict::Inside(scanner) => Some(*scanner),
            JointVerdict::Joined(crossing) => {
                obstacles.add_before(&crossing, start);
                // Of what is not remembered, or gave way meanwhile, whoever hands this one out reads the end again.
                follows = remembered.filter(|_| crc32_before() == remembered);
                scanner
            }
            JointVerdict::Unchecked => {
                is_led = false;
                scanner
            }
            // What nobody follows says nothing about what comes behind it.
            JointVerdict::Unjoined(before, _)
                if is_unproven(&self.completed, WalFileName::Segment(before))? =>
            {
                is_led = false;
                scanner
            }
            JointVerdict::Unjoined(before, why) => {
                joints.admit_unjoined(segment, before, &why.to_string())?;
                is_led = false;
                scanner
            }
        };
        let mut unled = None;
        if let Some(scanner) = &scanner
            && SegmentEnd::of(scanner) != SegmentEnd::Inside
        {
            match self.join_next(&joints, segment, scanner)? {
                Ok(crossing) => obstacles.add_before(&crossing, Lsn(u64::MAX)),
                Err((next, why)) => {
                    let gives_way = is_led && self.is_set_apart_unled(segment, next)?;
                    unled = gives_way.then_some((next, why));
                }
            }
        }
        Ok(Joined {
            end,
            scanner: scanner.map(Scanner::forgetting),
            verify,
            obstacles,
            map,
            is_led,
            follows,
            unled,
        })
    }

    /// Checks a file against the segment behind it, which came first; returns what is in the record that
    /// crosses into that, or why they do not go together.
    fn join_next(
        &self,
        joints: &Joints<'_>,
        segment: SegmentName,
        scanner: &Scanner,
    ) -> Result<Result<Obstacles, (SegmentName, String)>, StoreError> {
        Ok(match joints.check_next(segment, scanner)? {
            JointVerdict::Joined(crossing) => Ok(crossing),
            JointVerdict::Inside(_) | JointVerdict::Unchecked => Ok(Obstacles::default()),
            JointVerdict::Unjoined(next, why) => {
                tracing::error!(
                    "ALARM: {next}, which was stored before {segment}, does not follow it: {why}; one of \
                     the two is damaged or not of this cluster, both are stored"
                );
                Err((next, why.to_string()))
            }
        })
    }

    /// Whether the locked name can be given to a file: then nothing is left of an earlier one that had it,
    /// and what replay may not get past in this one is noted.
    pub(super) fn make_way(&self, name: WalFileName, joined: &Joined) -> Result<bool, StoreError> {
        let is_free = self.completed.stat_at(&name.to_string())?.is_none();
        if is_free {
            self.checksums.clear(name)?;
            self.note_joined(name, joined)?;
        }
        Ok(is_free)
    }

    /// Notes the obstacles in a segment before anybody hears that it is stored, and sets the next segment apart
    /// if that does not go on with it. The notes do no harm if the segment does not get its name after all.
    pub(super) fn note_joined(&self, name: WalFileName, joined: &Joined) -> Result<(), StoreError> {
        match name {
            WalFileName::Segment(segment) => {
                if let Some((next, why)) = &joined.unled {
                    self.set_apart_unled(*next, why)?;
                }
                obstacle_notes::note(&self.completed, segment, &joined.obstacles)
            }
            _ => Ok(()),
        }
    }

    /// Keeps what a durable file is and who brought it, before it is acknowledged. Its name must be locked,
    /// and have been
    /// given after [`Shared::make_way`].
    pub(super) fn keep(&self, durable: &Durable, joined: Joined, by: &str) {
        let kept = KeptChecksum {
            len: durable.len(),
            crc32: durable.crc32(),
            end: joined.end,
            has_sound_records: joined.has_sound_records(),
            follows: joined.follows,
            is_found: false,
        };
        self.checksums.keep(durable.name(), &kept, by);
        if let WalFileName::Segment(segment) = durable.name() {
            if let Some(map) = &joined.map {
                let (len, crc32) = (kept.len, kept.crc32);
                let file = MappedFile {
                    segment,
                    len,
                    crc32,
                };
                map_notes::keep(&self.completed, &file, map);
            }
            let crc32 = Some(kept.crc32);
            self.carried
                .put(segment, joined.verify, joined.scanner, crc32);
        }
    }
}
