//! The blocks that records named lately, on their way into the changes of a stretch.
//! Never forgets one: before it runs out of room, everything goes into the changes. Invariant: what it hands over
//! is what adding to the changes one by one would have left there.
//!
//! Records name the same few blocks again and again, or neighbours of them. A search in a tree of forks and in a list
//! of blocks for each of them is a sixth of the work of ingesting a segment; here it is a comparison and a bit.

use super::changes::{Changes, Fork, RelationFork};

/// Blocks of a group: one fork, one range. Enough that the pages of a table of 4 GiB have room side by side, when a
/// load takes them by chance.
const GROUP_BLOCKS: u32 = 512;
/// 90 KiB for each segment that is being received.
const GROUPS: usize = 1024;
/// How far from its place a group may lie.
const PROBES: usize = 8;
/// No group has this number.
const FREE: u32 = u32::MAX;

/// The blocks lately named.
#[derive(Debug, Clone)]
pub(super) struct RecentBlocks {
    groups: Vec<BlockGroup>,
}

#[derive(Debug, Clone, Copy)]
struct BlockGroup {
    fork: RelationFork,
    /// Its first block over [`GROUP_BLOCKS`].
    number: u32,
    /// A bit for each block.
    words: [u64; GROUP_BLOCKS as usize / 64],
}

const FREE_GROUP: BlockGroup = BlockGroup {
    fork: RelationFork {
        tablespace: 0,
        database: 0,
        relfilenode: 0,
        fork: Fork::Main,
    },
    number: FREE,
    words: [0; GROUP_BLOCKS as usize / 64],
};

impl Default for RecentBlocks {
    fn default() -> Self {
        RecentBlocks {
            groups: vec![FREE_GROUP; GROUPS],
        }
    }
}

impl RecentBlocks {
    /// Notes a block for `changes`.
    #[inline]
    pub(super) fn add(&mut self, fork: RelationFork, block: u32, changes: &mut Changes) {
        let number = block / GROUP_BLOCKS;
        let place = place(&fork, number);
        for probe in 0..PROBES {
            let group = &mut self.groups[(place + probe) % GROUPS];
            if group.number == number && group.fork == fork {
                return group.add(block);
            }
            if group.number == FREE {
                (group.fork, group.number) = (fork, number);
                return group.add(block);
            }
        }
        self.hand_over(changes);
        changes.add_block(fork, block);
    }

    /// Adds everything to the changes, and is empty.
    #[cold]
    pub(super) fn hand_over(&mut self, changes: &mut Changes) {
        let mut taken: Vec<BlockGroup> = Vec::new();
        for group in self.groups.iter_mut().filter(|it| it.number != FREE) {
            taken.push(std::mem::replace(group, FREE_GROUP));
        }
        // In order, which is how a set of blocks is built fastest.
        taken.sort_unstable_by_key(|group| (group.fork, group.number));
        for groups in taken.chunk_by(|one, next| one.fork == next.fork) {
            let blocks = groups.iter().flat_map(BlockGroup::blocks);
            changes.add_blocks(groups[0].fork, blocks);
        }
    }
}

impl BlockGroup {
    #[inline]
    fn add(&mut self, block: u32) {
        let bit = (block % GROUP_BLOCKS) as usize;
        self.words[bit / 64] |= 1 << (bit % 64);
    }

    /// The blocks, in order.
    fn blocks(&self) -> impl Iterator<Item = u32> {
        let first = self.number * GROUP_BLOCKS;
        (0_u32..).zip(self.words).flat_map(move |(index, word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros())?;
                rest &= rest - 1;
                Some(first + index * 64 + bit)
            })
        })
    }
}

/// Where a group lies, if there is room. Neighbours of a fork lie apart from each other and from other forks'.
#[inline]
fn place(fork: &RelationFork, number: u32) -> usize {
    let mixed = u64::from(fork.relfilenode).wrapping_mul(0x9E37_79B9_7F4A_7C15)
        ^ u64::from(fork.database).wrapping_mul(0xC2B2_AE3D_27D4_EB4F)
        ^ u64::from(number).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    (mixed >> 32) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Few forks and far blocks as well as many forks and near ones, more than there is room for.
        #[test]
        fn what_is_handed_over_is_what_one_by_one_would_leave(
            forks in 1_u32..60,
            far in 1_u32..=u32::MAX,
            named in prop::collection::vec((any::<u32>(), any::<u32>(), 0_u32..50), 0..3_000),
            limit in any::<u32>(),
        ) {
            let (mut recent, mut buffered) = (RecentBlocks::default(), Changes::default());
            let mut expected = Changes::default();
            for (fork, block, other) in named {
                let kind = if other == 1 { Fork::Init } else { Fork::Main };
                let fork = RelationFork {
                    tablespace: 1663,
                    database: fork % 2,
                    relfilenode: fork % forks,
                    fork: kind,
                };
                // The limits go in at once, the blocks when they may.
                if other == 0 {
                    buffered.add_limit(fork, limit % far);
                    expected.add_limit(fork, limit % far);
                }
                recent.add(fork, block % far, &mut buffered);
                expected.add_block(fork, block % far);
            }
            recent.hand_over(&mut buffered);
            prop_assert_eq!(&buffered, &expected);
            recent.hand_over(&mut buffered);
            prop_assert_eq!(buffered, expected);
        }
    }

    #[test]
    fn the_last_block_of_all_has_a_place() {
        let (mut recent, mut changes) = (RecentBlocks::default(), Changes::default());
        for block in [0, u32::MAX] {
            recent.add(FREE_GROUP.fork, block, &mut changes);
        }
        recent.hand_over(&mut changes);
        let (_, change) = changes.forks().next().unwrap();
        assert!(change.blocks().iter().eq([0, u32::MAX]));
    }
}
