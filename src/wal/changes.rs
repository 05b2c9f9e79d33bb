//! What a stretch of WAL changes in a data directory: blocks of relations, lengths, whole databases.
//! Never says less than the WAL does; what it cannot tell apart it calls whole. Invariant: the changes of two
//! stretches, merged, are those of both, and say of no page that it stayed the same unless both do.
//!
//! Nothing here speaks of files that are no relations, of free space maps or of visibility maps. Their changes are
//! not in the WAL, or are without being named: clearing a bit of a visibility map names no page of it. Whoever
//! uses this takes all of them whole.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use roaring::RoaringBitmap;
use walmgr_protocol::names::Lsn;

/// `forkNames` (`src/common/relpath.c`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fork {
    /// The rows or the index itself.
    Main,
    /// The free space map.
    FreeSpace,
    /// The visibility map.
    Visibility,
    /// What an unlogged relation is reset to after a crash.
    Init,
}

impl Fork {
    /// The fork of this `ForkNumber`.
    pub(crate) const fn of_number(number: u32) -> Option<Fork> {
        Some(match number {
            0 => Fork::Main,
            1 => Fork::FreeSpace,
            2 => Fork::Visibility,
            3 => Fork::Init,
            _ => return None,
        })
    }

    /// Its `ForkNumber`.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Whether the WAL names each of its blocks that changes.
    pub(crate) const fn is_told(self) -> bool {
        matches!(self, Fork::Main | Fork::Init)
    }
}

/// A fork of a relation, as WAL names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelationFork {
    /// `spcOid`: 1663 is `base`, 1664 is `global`.
    pub tablespace: u32,
    /// `dbOid`, 0 in `global`.
    pub database: u32,
    /// `relNumber`, the name of the file.
    pub relfilenode: u32,
    /// Which fork.
    pub fork: Fork,
}

/// What of a fork may have changed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ForkChange {
    /// Blocks of the whole relation, not of one of its files. Those behind `limit` are left out.
    blocks: RoaringBitmap,
    /// The shortest that it was in between.
    limit: Option<u32>,
    is_whole: bool,
}

/// Why a stretch of WAL may have changed everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum EverythingReason {
    /// A resource manager that walmgr does not know, such as one that an extension brings.
    #[error("walmgr does not know what records of resource manager {0} change")]
    Manager(u8),
    /// A kind of record that walmgr does not know.
    #[error(
        "walmgr does not know what a record of type {info:#04X} of resource manager {rmid} changes"
    )]
    Record {
        /// `xl_rmid`
        rmid: u8,
        /// `xl_info`
        info: u8,
    },
    /// A record that cannot be what it says.
    #[error("a record of resource manager {0} names its blocks in a way that walmgr cannot read")]
    Garbled(u8),
    /// `wal_level` was `minimal`.
    #[error("wal_level was minimal, so the WAL does not tell every change")]
    Minimal,
    /// `pg_resetwal` began the WAL anew.
    #[error("pg_resetwal began the WAL anew")]
    Reset,
    /// More relations than a map has room for.
    #[error("more relations changed than a map has room for")]
    TooMany,
}

/// What a stretch of WAL changes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changes {
    forks: BTreeMap<RelationFork, ForkChange>,
    databases: BTreeSet<(u32, u32)>,
    everything: Option<Everything>,
}

/// The records that may have changed anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Everything {
    first: (Lsn, EverythingReason),
    last: Lsn,
}

/// What a fork needs that is to become what it is now, out of what it was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Needed<'a> {
    /// Nothing but the blocks behind its old end.
    Nothing,
    /// All of it.
    Whole,
    /// Some blocks, and those behind its old end.
    Some(&'a ForkChange),
}

impl Changes {
    /// Says that a block may have changed. Of forks that are taken whole anyway nothing is kept.
    pub fn add_block(&mut self, fork: RelationFork, block: u32) {
        if fork.fork.is_told() {
            self.forks.entry(fork).or_default().add_block(block);
        }
    }

    /// Says that blocks may have changed, fastest in order.
    pub(super) fn add_blocks(&mut self, fork: RelationFork, blocks: impl Iterator<Item = u32>) {
        if fork.fork.is_told() {
            (self.forks.entry(fork).or_default()).add_blocks(blocks.collect());
        }
    }

    /// Says that a fork was this long, in blocks: what is behind is not what it was before.
    pub fn add_limit(&mut self, fork: RelationFork, blocks: u32) {
        if fork.fork.is_told() {
            self.forks.entry(fork).or_default().add_limit(blocks);
        }
    }

    /// Says that any of a fork may have changed.
    pub fn add_whole(&mut self, fork: RelationFork) {
        if fork.fork.is_told() {
            self.forks.entry(fork).or_default().set_whole();
        }
    }

    /// Says that any relation of a database in a tablespace may have changed.
    pub fn add_database(&mut self, tablespace: u32, database: u32) {
        self.databases.insert((tablespace, database));
    }

    /// Says that a record at `lsn` may have changed anything.
    pub fn set_everything(&mut self, lsn: Lsn, reason: EverythingReason) {
        let first = (lsn, reason);
        self.merge_everything(Everything { first, last: lsn });
    }

    fn merge_everything(&mut self, met: Everything) {
        self.everything = Some(self.everything.map_or(met, |before| Everything {
            first: before.first.min(met.first),
            last: before.last.max(met.last),
        }));
    }

    /// Forgets the records that may have changed anything, if all of them begin outside of a stretch. Of those within
    /// its first segment that begin before and behind its beginning, all count.
    pub(crate) fn clear_everything_outside(&mut self, stretch: Range<Lsn>) {
        let is_within = |it: &Everything| it.last >= stretch.start && it.first.0 < stretch.end;
        self.everything = self.everything.filter(is_within);
    }

    /// Adds the changes of another stretch. The order does not matter: a limit is the least of all, and whatever is
    /// behind it is needed anyway.
    pub fn merge(&mut self, other: &Changes) {
        for (fork, change) in &other.forks {
            self.forks.entry(*fork).or_default().merge(change);
        }
        self.databases.extend(&other.databases);
        if let Some(met) = other.everything {
            self.merge_everything(met);
        }
    }

    /// Why anything may have changed, and where first; `None` if what changed is known.
    pub fn everything(&self) -> Option<(Lsn, EverythingReason)> {
        self.everything.map(|everything| everything.first)
    }

    /// The first record that may have changed anything, and where the last such record begins.
    pub(super) fn everything_span(&self) -> Option<((Lsn, EverythingReason), Lsn)> {
        self.everything.map(|met| (met.first, met.last))
    }

    /// Puts back a fork's change.
    pub(super) fn put(&mut self, fork: RelationFork, change: ForkChange) {
        self.forks.insert(fork, change);
    }

    /// What a fork needs.
    pub fn of(&self, fork: RelationFork) -> Needed<'_> {
        let in_database = self.databases.contains(&(fork.tablespace, fork.database));
        if self.everything.is_some() || in_database || !fork.fork.is_told() {
            return Needed::Whole;
        }
        match self.forks.get(&fork) {
            None => Needed::Nothing,
            Some(change) if change.is_whole || change.limit == Some(0) => Needed::Whole,
            Some(change) => Needed::Some(change),
        }
    }

    /// Every fork of which something changed, but for those in [`Changes::databases`].
    pub fn forks(&self) -> impl Iterator<Item = (&RelationFork, &ForkChange)> {
        self.forks.iter()
    }

    /// The tablespaces and databases of which everything may have changed.
    pub fn databases(&self) -> impl Iterator<Item = &(u32, u32)> {
        self.databases.iter()
    }
}

impl ForkChange {
    /// The change that a map has: blocks, the limit, and whether it is whole.
    pub(super) fn of_parts(blocks: RoaringBitmap, limit: Option<u32>, is_whole: bool) -> Self {
        let mut change = ForkChange {
            blocks,
            ..ForkChange::default()
        };
        if let Some(limit) = limit {
            change.add_limit(limit);
        }
        if is_whole {
            change.set_whole();
        }
        change
    }

    /// The blocks before the limit.
    pub fn blocks(&self) -> &RoaringBitmap {
        &self.blocks
    }

    /// The shortest that the fork was, in blocks, if it was made or truncated.
    pub fn limit(&self) -> Option<u32> {
        self.limit
    }

    /// Whether any block may have changed.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    fn add_block(&mut self, block: u32) {
        if !self.is_whole && self.limit.is_none_or(|limit| block < limit) {
            self.blocks.insert(block);
        }
    }

    fn add_blocks(&mut self, blocks: RoaringBitmap) {
        if self.is_whole {
            return;
        }
        self.blocks |= blocks;
        if let Some(limit) = self.limit {
            self.blocks.remove_range(limit..);
        }
    }

    fn add_limit(&mut self, limit: u32) {
        if !self.is_whole && self.limit.is_none_or(|before| limit < before) {
            self.limit = Some(limit);
            self.blocks.remove_range(limit..);
        }
    }

    fn set_whole(&mut self) {
        *self = ForkChange {
            is_whole: true,
            ..ForkChange::default()
        };
    }

    fn merge(&mut self, other: &ForkChange) {
        if other.is_whole {
            return self.set_whole();
        }
        if self.is_whole {
            return;
        }
        self.blocks |= &other.blocks;
        if let Some(limit) = self.limit.into_iter().chain(other.limit).min() {
            self.limit = Some(limit);
            self.blocks.remove_range(limit..);
        }
    }
}

impl Needed<'_> {
    /// What to read of one file of the fork, in blocks of that file, in order, never two that touch: `first_block` is the number within the
    /// relation of the file's first block (0, 131072 for `.1`, …), `old_blocks` how long the file is that exists
    /// already (0 if there is none), `new_blocks` how long it is to be. Blocks behind the old end are new.
    pub fn in_file(&self, first_block: u32, old_blocks: u32, new_blocks: u32) -> Vec<Range<u32>> {
        let change = match self {
            Needed::Nothing => None,
            Needed::Whole => return non_empty(0..new_blocks).into_iter().collect(),
            Needed::Some(change) => Some(change),
        };
        let limit = change
            .and_then(|change| change.limit)
            .map_or(u32::MAX, |limit| limit.saturating_sub(first_block));
        // From here on everything is needed.
        let tail = old_blocks.min(limit).min(new_blocks);
        let mut ranges: Vec<Range<u32>> = Vec::new();
        let mut add = |range: Range<u32>| match ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => ranges.push(range),
        };
        if let Some(change) = change {
            let end = first_block.saturating_add(tail);
            for block in change.blocks.range(first_block..end) {
                let block = block - first_block;
                add(block..block + 1);
            }
        }
        if let Some(tail) = non_empty(tail..new_blocks) {
            add(tail);
        }
        ranges
    }
}

fn non_empty(range: Range<u32>) -> Option<Range<u32>> {
    (!range.is_empty()).then_some(range)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAIN: RelationFork = RelationFork {
        tablespace: 1663,
        database: 5,
        relfilenode: 16_384,
        fork: Fork::Main,
    };

    #[test]
    #[allow(clippy::single_range_in_vec_init, reason = "they are lists of ranges")]
    fn what_nobody_touched_needs_only_what_is_behind_its_old_end() {
        let mut changes = Changes::default();
        assert_eq!(changes.of(MAIN), Needed::Nothing);
        assert_eq!(changes.of(MAIN).in_file(0, 4, 9), [4..9]);
        assert_eq!(changes.of(MAIN).in_file(0, 9, 4), []);
        changes.add_block(MAIN, 2);
        let needed = changes.of(MAIN);
        assert_eq!(needed.in_file(0, 4, 9), [2..3, 4..9]);
        assert_eq!(needed.in_file(0, 2, 9), [2..9]);
        assert_eq!(needed.in_file(0, 9, 2), []);
        assert_eq!(needed.in_file(131_072, 5, 5), []);
    }

    #[test]
    fn maps_of_a_relation_are_whole_whatever_changed() {
        let changes = Changes::default();
        for fork in [Fork::FreeSpace, Fork::Visibility] {
            assert_eq!(changes.of(RelationFork { fork, ..MAIN }), Needed::Whole);
        }
    }

    #[test]
    fn what_was_truncated_is_needed_behind_the_cut() {
        let mut changes = Changes::default();
        changes.add_block(MAIN, 7);
        changes.add_limit(MAIN, 5);
        changes.add_limit(MAIN, 6);
        changes.add_block(MAIN, 1);
        assert_eq!(changes.of(MAIN).in_file(0, 10, 10), [1..2, 5..10]);
        changes.add_limit(MAIN, 0);
        assert_eq!(changes.of(MAIN), Needed::Whole);
    }

    #[test]
    fn a_copied_database_is_whole_in_its_tablespace_only() {
        let mut changes = Changes::default();
        changes.add_database(1663, 5);
        assert_eq!(changes.of(MAIN), Needed::Whole);
        let elsewhere = RelationFork {
            tablespace: 16_390,
            ..MAIN
        };
        assert_eq!(changes.of(elsewhere), Needed::Nothing);
        changes.set_everything(Lsn(9), EverythingReason::Manager(130));
        changes.set_everything(Lsn(3), EverythingReason::Minimal);
        assert_eq!(
            changes.everything(),
            Some((Lsn(3), EverythingReason::Minimal))
        );
        assert_eq!(changes.of(elsewhere), Needed::Whole);
    }

    #[derive(Debug, Clone)]
    enum Act {
        Block(u32),
        Limit(u32),
        Whole,
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            20 => (0_u32..40).prop_map(Act::Block),
            3 => (0_u32..40).prop_map(Act::Limit),
            1 => Just(Act::Whole),
        ];
        prop::collection::vec(act, 0..30)
    }

    fn told(acts: &[Act]) -> Changes {
        let mut changes = Changes::default();
        for act in acts {
            match act {
                Act::Block(block) => changes.add_block(MAIN, *block),
                Act::Limit(blocks) => changes.add_limit(MAIN, *blocks),
                Act::Whole => changes.add_whole(MAIN),
            }
        }
        changes
    }

    /// Whether a block is needed, told one by one.
    fn is_needed(acts: &[Act], block: u32, old_blocks: u32) -> bool {
        block >= old_blocks
            || acts.iter().any(|act| match act {
                Act::Block(changed) => *changed == block,
                Act::Limit(limit) => block >= *limit,
                Act::Whole => true,
            })
    }

    proptest! {
        #[test]
        fn fault_200_merged_changes_are_those_of_both(
            one in acts(), other in acts(), first in 0_u32..3, old in 0_u32..20, new in 0_u32..20,
        ) {
            let first = first * 16;
            let mut merged = told(&one);
            merged.merge(&told(&other));
            let both = [one, other].concat();
            prop_assert_eq!(&merged, &told(&both));
            let ranges = merged.of(MAIN).in_file(first, old, new);
            for pair in ranges.windows(2) {
                prop_assert!(pair[0].end < pair[1].start, "{ranges:?}");
            }
            for block in 0..new {
                let found = ranges.iter().any(|range| range.contains(&block));
                let expected = block >= old || is_needed(&both, first + block, u32::MAX);
                prop_assert_eq!(found, expected, "{} of {:?}", block, ranges);
            }
            prop_assert!(ranges.last().is_none_or(|last| last.end <= new));
        }
    }
}
