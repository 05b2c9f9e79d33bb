//! Reads a file and packs it block by block, on two threads where packing is what takes long.
//! Never holds more than a few blocks. Invariant: blocks come in their order without a gap, and the checksum is that of
//! their raw bytes in that order, whichever thread was the faster.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc as threads;

use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle};
use walmgr_protocol::compress::{Block, Packer};
use walmgr_protocol::limits::BLOCKS_IN_FLIGHT;

/// How blocks are made.
#[derive(Debug, Clone, Copy)]
pub struct Blocks {
    /// Raw bytes in a block.
    pub block_bytes: u32,
    /// zstd level, 0 for none.
    pub compression: u8,
}

/// Threads that take turns, block by block: packing one takes longer than to send it and to check it over there.
const PACKING_LANES: u64 = 2;

/// The blocks of a file, packed ahead of who sends them.
pub(in crate::master) struct PackedBlocks<Fault> {
    /// The one whose turn it is comes first.
    lanes: VecDeque<Lane<Fault>>,
    crc: crc32fast::Hasher,
    block_bytes: u32,
    has_ended: bool,
}

/// Why there is no next block.
#[derive(Debug)]
pub(in crate::master) enum NoBlock<Fault> {
    /// It could not be read.
    Unread(Fault),
    /// Its thread has panicked.
    Lost(JoinError),
}

/// A thread that packs every so many blocks.
struct Lane<Fault> {
    ready: mpsc::Receiver<SummedBlock>,
    /// Buffers to be filled again.
    empty: threads::Sender<Vec<u8>>,
    work: JoinHandle<Result<(), Fault>>,
}

/// A block, and the CRC-32 of its raw bytes.
struct SummedBlock {
    block: Block,
    crc: crc32fast::Hasher,
}

impl<Fault: Send + 'static> PackedBlocks<Fault> {
    /// Begins behind an offset, where `crc` is that of what is before it. `fill` appends what the file has from a
    /// place on, a block at most.
    pub(in crate::master) fn start(
        (offset, crc): (u64, crc32fast::Hasher),
        blocks: Blocks,
        fill: impl Fn(u64, &mut Vec<u8>) -> Result<(), Fault> + Send + Sync + 'static,
    ) -> Self {
        let count = if blocks.compression > 0 {
            PACKING_LANES
        } else {
            1
        };
        let step = u64::from(blocks.block_bytes);
        let fill = Arc::new(fill);
        let lanes = (0..count)
            .map(|lane| (offset + lane * step, count * step))
            .map(|places| Lane::start(places, blocks.compression, &fill))
            .collect();
        PackedBlocks {
            lanes,
            crc,
            block_bytes: blocks.block_bytes,
            has_ended: false,
        }
    }

    /// The next block, or none behind the last.
    pub(in crate::master) async fn next(&mut self) -> Result<Option<Block>, NoBlock<Fault>> {
        let Some(lane) = self.lanes.front_mut().filter(|_| !self.has_ended) else {
            return Ok(None);
        };
        let Some(SummedBlock { block, crc }) = lane.ready.recv().await else {
            self.has_ended = true;
            let ended = (&mut lane.work).await.map_err(NoBlock::Lost)?;
            return ended.map(|()| None).map_err(NoBlock::Unread);
        };
        self.crc.combine(&crc);
        // The file ends here, whatever is there by the time that another thread looks behind it.
        self.has_ended = block.raw_bytes < self.block_bytes;
        self.lanes.rotate_left(1);
        Ok(Some(block))
    }

    /// Has the buffer of the block that came last filled again.
    pub(in crate::master) fn give_back(&mut self, block: Block) {
        if let Some(lane) = self.lanes.back() {
            // The thread may have ended; then nobody needs it.
            let _ = lane.empty.send(block.into_buffer());
        }
    }

    /// The CRC-32 of all of it, up to the block that came last.
    pub(in crate::master) fn crc32(self) -> u32 {
        self.crc.finalize()
    }
}

impl<Fault: Send + 'static> Lane<Fault> {
    fn start<Fill>(places: (u64, u64), compression: u8, fill: &Arc<Fill>) -> Self
    where
        Fill: Fn(u64, &mut Vec<u8>) -> Result<(), Fault> + Send + Sync + 'static,
    {
        let (full, ready) = mpsc::channel(BLOCKS_IN_FLIGHT);
        let (empty, reusable) = threads::channel();
        let fill = Arc::clone(fill);
        let work = move || pack(places, compression, (&full, &reusable), &*fill);
        Lane {
            ready,
            empty,
            work: tokio::task::spawn_blocking(work),
        }
    }
}

/// Packs the block at the first place, and one at every so many bytes behind it, up to where there is nothing.
fn pack<Fault>(
    (first, every): (u64, u64),
    compression: u8,
    (full, reusable): (&mpsc::Sender<SummedBlock>, &threads::Receiver<Vec<u8>>),
    fill: impl Fn(u64, &mut Vec<u8>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let mut packer = Packer::new(compression);
    let mut at = first;
    loop {
        let buffer = reusable.try_recv().unwrap_or_default();
        let mut crc = crc32fast::Hasher::new();
        let block = packer.pack(buffer, at, |buffer| {
            let headroom = buffer.len();
            fill(at, buffer)?;
            crc.update(&buffer[headroom..]);
            Ok(())
        })?;
        // Without a receiver the connection is gone, and with it the reason to go on.
        if block.raw_bytes == 0 || full.blocking_send(SummedBlock { block, crc }).is_err() {
            return Ok(());
        }
        at += every;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK_BYTES: u32 = 1000;

    fn blocks(compression: u8) -> Blocks {
        Blocks {
            block_bytes: BLOCK_BYTES,
            compression,
        }
    }

    /// Fills from a content that may be another one each time it is read.
    fn filled(
        content: impl Fn(u64) -> Vec<u8>,
    ) -> impl Fn(u64, &mut Vec<u8>) -> Result<(), String> {
        move |at, buffer| {
            let content = content(at);
            let from = content.len().min(usize::try_from(at).unwrap());
            let to = content.len().min(from + BLOCK_BYTES as usize);
            buffer.extend_from_slice(&content[from..to]);
            Ok(())
        }
    }

    async fn all(packed: &mut PackedBlocks<String>) -> Result<Vec<(u64, u32)>, NoBlock<String>> {
        let mut places = Vec::new();
        while let Some(block) = packed.next().await? {
            places.push((block.offset, block.raw_bytes));
            packed.give_back(block);
        }
        Ok(places)
    }

    fn content(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at / 7 % 251).to_le_bytes()[0]).collect()
    }

    #[tokio::test]
    async fn blocks_come_in_order_with_the_checksum_of_the_whole() {
        for compression in [0, 1, 3] {
            for len in [0, 1, 999, 1000, 1001, 2000, 2500, 64_000, 64_001] {
                let whole = content(len);
                for offset in [0, 1000, 1500].into_iter().filter(|offset| *offset <= len) {
                    let mut crc = crc32fast::Hasher::new();
                    crc.update(&whole[..offset]);
                    let file = whole.clone();
                    let fill = filled(move |_| file.clone());
                    let from = (offset as u64, crc);
                    let mut packed = PackedBlocks::start(from, blocks(compression), fill);
                    let mut next = offset as u64;
                    for (at, raw_bytes) in all(&mut packed).await.unwrap() {
                        assert_eq!(at, next);
                        next += u64::from(raw_bytes);
                    }
                    assert_eq!(next, len as u64);
                    assert_eq!(packed.crc32(), crc32fast::hash(&whole));
                }
            }
        }
    }

    #[tokio::test]
    async fn a_file_that_grows_while_it_is_read_ends_at_its_short_block() {
        // Whoever looks behind the third block finds more.
        let fill = filled(|at| content(if at > 2000 { 9000 } else { 2500 }));
        let mut packed = PackedBlocks::start((0, crc32fast::Hasher::new()), blocks(1), fill);
        let places = all(&mut packed).await.unwrap();
        assert_eq!(places, [(0, 1000), (1000, 1000), (2000, 500)]);
        assert_eq!(packed.crc32(), crc32fast::hash(&content(2500)));
    }

    #[tokio::test]
    async fn a_block_that_cannot_be_read_ends_it_in_its_turn() {
        for bad in [0, 1000, 5000, 6000] {
            let good = filled(|_| content(64_000));
            let fill = move |at, buffer: &mut Vec<u8>| match at == bad {
                true => Err(format!("nothing at {at}")),
                false => good(at, buffer),
            };
            let start = (0, crc32fast::Hasher::new());
            let mut packed = PackedBlocks::start(start, blocks(1), fill);
            for at in (0..bad).step_by(1000) {
                assert_eq!(packed.next().await.unwrap().unwrap().offset, at);
            }
            let failed = packed.next().await;
            let is_told =
                matches!(&failed, Err(NoBlock::Unread(why)) if *why == format!("nothing at {bad}"));
            assert!(is_told, "{failed:?}");
            assert!(packed.next().await.unwrap().is_none());
        }
    }
}
