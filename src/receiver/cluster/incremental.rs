//! What a backup need not send: files are compared with what WAL changed since an older set was made.
//! Never waits, and never calls a page unchanged on the word of the master. Invariant: a file is needed as a whole if
//! WAL does not tell which of its blocks changed.

use std::sync::Arc;

use walmgr_protocol::limits::FILE_RANGES_MAX;
use walmgr_protocol::message::parent::{BlockRange, FileLen, FileNeed, ParentAnswer, ParentSet};
use walmgr_protocol::patch::PAGE_BYTES;

use crate::pg::relation;
use crate::store::sets::ParentOfSet;
use crate::wal::changes::{Changes, Fork, Needed};

/// A set to build on, and what WAL changed since it was made.
pub(crate) struct Incremental {
    pub parent: Arc<ParentOfSet>,
    pub changes: Changes,
    pub segment_blocks: u32,
}

impl Incremental {
    /// What the master is told of it.
    pub(crate) fn answer(&self) -> ParentAnswer {
        ParentAnswer::Parent(ParentSet {
            name: self.parent.name().to_string(),
            start: self.parent.start(),
            since_full: self.parent.since_full(),
        })
    }

    /// What is needed of these files beside what the parent has.
    pub(crate) fn needs(&self, files: &[FileLen]) -> Vec<FileNeed> {
        let need = |file: &FileLen| self.need(file).map_or(FileNeed::Whole, FileNeed::Blocks);
        files.iter().map(need).collect()
    }

    /// `None` for all of it.
    fn need(&self, file: &FileLen) -> Option<Vec<BlockRange>> {
        let (fork, segment) = relation::fork_at(&file.path)?;
        let blocks_in = |len: u64| {
            let blocks = u32::try_from(len / PAGE_BYTES).ok();
            blocks.filter(|_| len.is_multiple_of(PAGE_BYTES))
        };
        let old_blocks = blocks_in(self.parent.file_len(&file.path)?)?;
        let new_blocks = blocks_in(file.len)?;
        let first_block = segment.checked_mul(self.segment_blocks)?;
        let needed = self.changes.of(fork);
        if fork.fork != Fork::Main || needed == Needed::Whole {
            return None;
        }
        let ranges = needed.in_file(first_block, old_blocks, new_blocks);
        let ranges = ranges.into_iter().map(|range| BlockRange {
            first: range.start,
            count: range.end - range.start,
        });
        Some(coarsened(ranges.collect(), usize::from(FILE_RANGES_MAX)))
    }
}

/// At most `most` ranges: neighbours with the fewest blocks between them are joined.
fn coarsened(ranges: Vec<BlockRange>, most: usize) -> Vec<BlockRange> {
    if ranges.len() <= most {
        return ranges;
    }
    let gap = |pair: &[BlockRange]| pair[1].first - (pair[0].first + pair[0].count);
    let mut gaps: Vec<u32> = ranges.windows(2).map(gap).collect();
    gaps.sort_unstable();
    // So many gaps go that the rest fits.
    let widest = gaps[ranges.len() - most - 1];
    let mut coarse: Vec<BlockRange> = Vec::with_capacity(most);
    for range in ranges {
        match coarse.last_mut() {
            Some(last) if range.first - (last.first + last.count) <= widest => {
                last.count = range.first + range.count - last.first;
            }
            _ => coarse.push(range),
        }
    }
    coarse
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_204_ranges_that_are_taken_together_lose_no_block() {
        let mut ranges = Vec::new();
        let mut at = 0;
        for step in 0..1_000_u32 {
            at += 1 + step * 7 % 13;
            let count = 1 + step % 3;
            ranges.push(BlockRange { first: at, count });
            at += count;
        }
        let blocks = |ranges: &[BlockRange]| -> Vec<u32> {
            let each = ranges.iter();
            each.flat_map(|range| range.first..range.first + range.count)
                .collect()
        };
        let before = blocks(&ranges);
        for most in [1, 2, 10, 500, 999, 1_000, 2_000] {
            let coarse = coarsened(ranges.clone(), most);
            assert!(coarse.len() <= most);
            let after = blocks(&coarse);
            assert!(
                before
                    .iter()
                    .all(|block| after.binary_search(block).is_ok())
            );
            for pair in coarse.windows(2) {
                assert!(pair[0].first + pair[0].count < pair[1].first);
            }
        }
    }
}
