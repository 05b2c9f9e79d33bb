//! Which pages of a file are sent, and at which others is looked, so that a standby that is wrong about the WAL is found.
//! Never reads a file but for those looks. Invariant: every page is sent, looked at or passed over, in ascending order,
//! and behind the length that was asked about none is passed over.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;

use rustix::io::{pread, retry_on_intr};
use walmgr_protocol::names::Lsn;
use walmgr_protocol::patch::{LOOK_BYTES, PAGE_BYTES, PageLook, RECORD_BYTES};

use super::needs::NeededBlocks;
use crate::files;
use crate::pg::page::{self, Pages};

/// Of so many pages that are not needed at one is looked.
const PAGES_A_LOOK: u64 = 100;

/// What comes next of a patch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PatchPiece {
    /// These pages.
    Pages(Range<u32>),
    /// A look at this page.
    Look(u32, PageLook),
}

/// The pieces of a patch, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct PatchPlan(pub VecDeque<PatchPiece>);

impl PatchPlan {
    /// For a file of `len` bytes; `random` gives numbers that nobody guesses. What was written behind `start` is none
    /// of the standby's business: WAL writes it again.
    pub(crate) fn make(
        file: &File,
        (needed, len): (&NeededBlocks, u64),
        (pages, start): (Option<Pages>, Lsn),
        random: &mut impl FnMut() -> u64,
    ) -> io::Result<PatchPlan> {
        let sent = sent(needed, len);
        let looks = looked_at(&sent, blocks_in(len), random);
        // They lie far apart: the disk takes many at once better than one after the other.
        for block in &looks {
            let offset = u64::from(*block) * PAGE_BYTES;
            files::read_ahead(file.as_fd(), offset..offset + PAGE_BYTES);
        }
        let mut looks = looks.into_iter().peekable();
        let mut pieces = VecDeque::new();
        for range in sent.into_iter().map(Some).chain([None]) {
            let before = range.as_ref().map_or(u32::MAX, |range| range.start);
            while let Some(block) = looks.next_if(|block| *block < before) {
                let look = look_at(file, block, pages, start)?;
                pieces.extend(look.map(|look| PatchPiece::Look(block, look)));
            }
            pieces.extend(range.map(PatchPiece::Pages));
        }
        Ok(PatchPlan(pieces))
    }

    /// Bytes of the patch.
    pub(crate) fn bytes(&self) -> u64 {
        let bytes = |piece: &PatchPiece| match piece {
            PatchPiece::Pages(range) => u64::from(range.end - range.start) * PAGE_BYTES,
            PatchPiece::Look(..) => LOOK_BYTES as u64,
        };
        let pieces = self.0.iter();
        pieces.map(|piece| RECORD_BYTES as u64 + bytes(piece)).sum()
    }
}

fn blocks_in(len: u64) -> u32 {
    u32::try_from(len / PAGE_BYTES).unwrap_or(u32::MAX)
}

/// What is needed of a file that is so long by now.
fn sent(needed: &NeededBlocks, len: u64) -> Vec<Range<u32>> {
    let (end, asked_end) = (blocks_in(len), blocks_in(needed.asked_len));
    let asked = needed.ranges.iter();
    let asked = asked.map(|range| range.first..range.first.saturating_add(range.count));
    let mut sent: Vec<Range<u32>> = Vec::new();
    for range in asked.chain(std::iter::once(asked_end..end)) {
        let range = range.start..range.end.min(end);
        match sent.last_mut() {
            _ if range.is_empty() => {}
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => sent.push(range),
        }
    }
    sent
}

/// One of each hundred blocks that are not sent; of the rest behind the last hundred one as often as it is long.
fn looked_at(sent: &[Range<u32>], end: u32, random: &mut impl FnMut() -> u64) -> Vec<u32> {
    let mut looks = Vec::new();
    // How many blocks that are not sent were passed, and which of them is looked at next.
    let (mut passed, mut hundred) = (0, 0);
    let mut next = random() % PAGES_A_LOOK;
    let mut at = 0;
    for range in sent.iter().cloned().chain(std::iter::once(end..end)) {
        let gap = u64::from(range.start.saturating_sub(at));
        while next < passed + gap {
            let within = u32::try_from(next - passed).unwrap_or(0);
            looks.push(at + within);
            hundred += PAGES_A_LOOK;
            next = hundred + random() % PAGES_A_LOOK;
        }
        passed += gap;
        at = range.end;
    }
    looks
}

/// What a page looks like; `None` of one that WAL writes again, or that cannot be read whole.
fn look_at(
    file: &File,
    block: u32,
    pages: Option<Pages>,
    start: Lsn,
) -> io::Result<Option<PageLook>> {
    let mut bytes = [0; page::PAGE_BYTES];
    let offset = u64::from(block) * PAGE_BYTES;
    let read_bytes = retry_on_intr(|| pread(file, &mut bytes, offset))?;
    let is_torn = pages.is_some_and(|pages| pages.is_torn(&bytes, block, start));
    let look = page::look(&bytes);
    let is_old = read_bytes == bytes.len() && !is_torn && look.lsn < start;
    Ok(is_old.then_some(look))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use walmgr_protocol::message::parent::BlockRange;

    use super::*;

    fn needed(asked_blocks: u64, ranges: &[(u32, u32)]) -> NeededBlocks {
        let range = |(first, count): &(u32, u32)| BlockRange {
            first: *first,
            count: *count,
        };
        NeededBlocks {
            asked_len: asked_blocks * PAGE_BYTES,
            ranges: ranges.iter().map(range).collect(),
        }
    }

    #[test]
    fn fault_204_what_grew_since_it_was_asked_about_is_sent() {
        let asked = needed(10, &[(2, 3), (8, 2)]);
        assert_eq!(sent(&asked, 12 * PAGE_BYTES), [2..5, 8..12]);
        assert_eq!(sent(&asked, 10 * PAGE_BYTES), [2..5, 8..10]);
        assert_eq!(sent(&asked, 9 * PAGE_BYTES), [2..5, 8..9]);
        assert_eq!(sent(&asked, 3 * PAGE_BYTES).first(), Some(&(2..3)));
        assert_eq!(sent(&asked, 0), []);
        let new = sent(&needed(0, &[]), 2 * PAGE_BYTES);
        assert_eq!(new.first(), Some(&(0..2)));
    }

    #[test]
    fn one_page_of_a_hundred_that_are_not_sent_is_looked_at() {
        let mut seed = 7_u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            seed >> 33
        };
        let looks = looked_at(std::slice::from_ref(&(50..1_000)), 100_000, &mut random);
        assert!((985..=995).contains(&looks.len()), "{}", looks.len());
        let short: usize = (0..1_000)
            .map(|_| looked_at(&[], 10, &mut random).len())
            .sum();
        assert!((50..=200).contains(&short), "{short}");
    }

    proptest! {
        #[test]
        fn looks_ascend_and_are_at_pages_that_are_not_sent(
            lengths in prop::collection::vec((1_u32..300, 1_u32..300), 0..20), seed in any::<u64>(),
        ) {
            let mut at = 0;
            let mut sent = Vec::new();
            for (gap, count) in lengths {
                sent.push(at + gap..at + gap + count);
                at += gap + count;
            }
            let end = at + 150;
            let mut seed = seed;
            let mut random = || {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                seed >> 33
            };
            let looks = looked_at(&sent, end, &mut random);
            prop_assert!(looks.is_sorted_by(|one, other| one < other));
            for look in looks {
                prop_assert!(look < end && !sent.iter().any(|range| range.contains(&look)));
            }
        }
    }
}
