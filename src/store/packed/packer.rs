//! Packs a segment block by block, beside whoever brings it.
//! Never changes the order of the blocks, and never writes by itself. Invariant: what is handed out unpacks to what was
//! brought, and was found to.

use std::collections::VecDeque;

use bytes::Bytes;
use walmgr_protocol::compress::UnpackedBlock;

use super::beside::{self, BlockToPack, PackedBytes, RawBlock};
use super::{PACKED_BLOCK_BYTES, PackedBlock, PackedFault, STORED_BLOCK_BYTES_MAX, SeekTable};

/// Blocks of one segment that are being packed, or wait for those before them, while the next is received and checked:
/// one that is packed and one that waits for its turn.
const BLOCKS_AHEAD_MAX: usize = 2;

/// Packs a segment block by block, and unpacks each block again before it is let go.
pub(in crate::store) struct SegmentPacker {
    level: u8,
    /// What is no whole block yet.
    waiting: Vec<u8>,
    /// What was brought and not handed out yet, in its order.
    ahead: VecDeque<BlockAhead>,
    table: SeekTable,
    offset_bytes: u64,
}

/// A block on its way.
enum BlockAhead {
    Packing(BlockToPack),
    Packed(PackedBytes<Bytes>),
}

impl SegmentPacker {
    /// One that packs at this level.
    pub(in crate::store) fn new(level: u8) -> SegmentPacker {
        SegmentPacker {
            level,
            waiting: Vec::new(),
            ahead: VecDeque::new(),
            table: SeekTable {
                blocks: Vec::new(),
                raw_bytes: 0,
                raw_crc32: 0,
            },
            offset_bytes: 0,
        }
    }

    /// Takes the next bytes of the segment. `each` gets what can be stored: packed blocks of these bytes, or of bytes
    /// that were taken before.
    pub(in crate::store) fn add<E: From<PackedFault>>(
        &mut self,
        mut raw: &[u8],
        each: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while !raw.is_empty() {
            let room = PACKED_BLOCK_BYTES - self.waiting.len();
            let (now, later) = raw.split_at(room.min(raw.len()));
            self.waiting.reserve_exact(room);
            self.waiting.extend_from_slice(now);
            raw = later;
            if self.waiting.len() == PACKED_BLOCK_BYTES {
                self.flush(each)?;
            }
        }
        Ok(())
    }

    /// Takes the next block as it came over the wire: without a copy, and as it is if it came packed, where it is a
    /// whole block of this file.
    pub(in crate::store) fn add_block<E: From<PackedFault>>(
        &mut self,
        block: &UnpackedBlock<'_>,
        each: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let raw = block.raw();
        if raw.len() != PACKED_BLOCK_BYTES || !self.waiting.is_empty() {
            return self.add(raw, each);
        }
        match block.packed() {
            Some(packed) if packed.len() > STORED_BLOCK_BYTES_MAX => self.add(raw, each),
            // It was unpacked from these very bytes: what was made of it is what they will give again.
            Some(packed) => {
                let packed = PackedBytes::of(packed.clone(), raw.len());
                self.ahead.push_back(BlockAhead::Packed(packed));
                self.hand_out(beside::threads_max().min(BLOCKS_AHEAD_MAX), each)
            }
            None => self.pack(RawBlock::Shared(block.travelled().clone()), each),
        }
    }

    fn flush<E: From<PackedFault>>(
        &mut self,
        each: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let raw = std::mem::take(&mut self.waiting);
        self.pack(RawBlock::Own(raw), each)
    }

    fn pack<E: From<PackedFault>>(
        &mut self,
        raw: RawBlock,
        each: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let begun = BlockToPack::begin(self.level, raw);
        self.ahead.push_back(BlockAhead::Packing(begun));
        // With one processor nobody packs beside, so there is nothing to wait for.
        self.hand_out(beside::threads_max().min(BLOCKS_AHEAD_MAX), each)
    }

    /// Hands out what is ready, and waits for the oldest as long as more than `ahead_max` are not.
    fn hand_out<E: From<PackedFault>>(
        &mut self,
        ahead_max: usize,
        each: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some(oldest) = self.ahead.pop_front() {
            match oldest {
                BlockAhead::Packed(packed) => {
                    self.note(&packed);
                    each(&packed.stored)?;
                }
                BlockAhead::Packing(block) if self.ahead.len() < ahead_max && !block.is_done() => {
                    self.ahead.push_front(BlockAhead::Packing(block));
                    break;
                }
                BlockAhead::Packing(block) => {
                    let (packed, raw) = block.finish();
                    let packed = packed?;
                    self.note(&packed);
                    each(&packed.stored)?;
                    if self.waiting.capacity() == 0 {
                        self.waiting = raw.into_buffer();
                    }
                }
            }
        }
        Ok(())
    }

    fn note<Stored: AsRef<[u8]>>(&mut self, packed: &PackedBytes<Stored>) {
        let bytes_of = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        let stored = packed.stored.as_ref();
        self.table.blocks.push(PackedBlock {
            offset_bytes: self.offset_bytes,
            bytes: bytes_of(stored.len()),
            raw_bytes: bytes_of(packed.raw_bytes),
            crc32: packed.crc32,
        });
        self.offset_bytes += stored.len() as u64;
        self.table.raw_bytes += packed.raw_bytes as u64;
    }

    /// Ends the file, whose raw bytes have this CRC-32.
    pub(in crate::store) fn finish<E: From<PackedFault>>(
        mut self,
        raw_crc32: u32,
        each: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.waiting.is_empty() {
            self.flush(each)?;
        }
        self.hand_out(0, each)?;
        self.table.raw_crc32 = raw_crc32;
        let tail = self.table.write();
        let file_bytes = self.offset_bytes + tail.len() as u64;
        if SeekTable::parse(file_bytes, &tail)? != self.table {
            return Err(PackedFault("its seek table cannot be read again".to_owned()).into());
        }
        each(&tail)
    }
}
