//! The packed form of a segment: zstd frames, one a block, and what finds and checks them.
//! Never opens a file. Invariant: a block is handed out only if its bytes are those that were packed, and a file is
//! taken apart only if every byte of it is accounted for.
//!
//! # Format
//!
//! ```text
//! block 0 … n-1      each 256 KiB of the segment, the last maybe fewer, as zstd frames; a block that came packed over
//!                    the wire is stored as it came
//! checks             a skippable frame: magic 0x184D2A5D, then its length in 4 bytes
//!   8 bytes          "walmgr", 0, 1
//!   8 bytes          length of the segment
//!   4 bytes          CRC-32 (zlib) of the segment
//!   n × 4 bytes      CRC-32 of each block as it stands in this file
//!   4 bytes          CRC-32 of the checks up to here and of the whole seek table
//! seek table         of the zstd seekable format, a skippable frame: magic 0x184D2A5E, then its length in 4 bytes
//!   n+1 × 8 bytes    length of each frame in this file, and unpacked; the last one is the checks, 0 unpacked
//!   4 bytes          n + 1
//!   1 byte           0: no checksums here
//!   4 bytes          0x8F92EAB1
//! ```
//!
//! All numbers are little-endian. `zstd -d` unpacks such a file, and tools that know the seekable format read a part
//! of it. A file that ends otherwise was packed by somebody else, and is read from its beginning.

mod beside;
mod packer;

use walmgr_protocol::limits::BLOCK_BYTES_DEFAULT;
use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, get_error_name};

pub(super) use packer::SegmentPacker;

/// Raw bytes of a block: what the wire carries in one.
pub(super) const PACKED_BLOCK_BYTES: usize = BLOCK_BYTES_DEFAULT as usize;

/// The longest segment that PostgreSQL has.
const RAW_BYTES_MAX: u64 = 1 << 30;

const BLOCKS_MAX: usize = 4096;
const _: () = assert!((BLOCKS_MAX * PACKED_BLOCK_BYTES) as u64 == RAW_BYTES_MAX);

/// A block that zstd cannot shrink grows by a few bytes a frame.
const STORED_BLOCK_BYTES_MAX: usize = PACKED_BLOCK_BYTES + (4 << 10);

/// What every reader of zstd has to be able to hold (RFC 8878), and enough for `zstd -19`.
const FOREIGN_WINDOW_LOG_MAX: u32 = 23;

const ZSTD_MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
const CHECKS_MAGIC: u32 = 0x184D_2A5D;
const SEEK_TABLE_MAGIC: u32 = 0x184D_2A5E;
const SEEKABLE_MAGIC: u32 = 0x8F92_EAB1;
const OUR_MAGIC: [u8; 8] = *b"walmgr\0\x01";

const FRAME_HEADER_BYTES: usize = 8;
const FOOTER_BYTES: usize = 9;
const ENTRY_BYTES: usize = 8;

/// Bytes of the checks behind their header, without those of the blocks.
const CHECKS_BYTES: usize = OUR_MAGIC.len() + 8 + 4 + 4;

/// Why a file is no packed segment, as a part of a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct PackedFault(String);

fn fault<T>(why: impl Into<String>) -> Result<T, PackedFault> {
    Err(PackedFault(why.into()))
}

/// Where a block stands in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PackedBlock {
    pub(super) offset_bytes: u64,
    pub(super) bytes: u32,
    raw_bytes: u32,
    crc32: u32,
}

impl PackedBlock {
    /// Its length unpacked.
    pub(super) const fn raw_bytes(&self) -> u32 {
        self.raw_bytes
    }

    /// Whether these are the bytes that were stored.
    pub(super) fn check(&self, stored: &[u8]) -> Result<(), PackedFault> {
        match is_other(crc32fast::hash(stored), self.crc32) {
            true => fault(format!(
                "the block at its byte {} is damaged",
                self.offset_bytes
            )),
            false => Ok(()),
        }
    }
}

/// What stands behind the blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SeekTable {
    pub(super) blocks: Vec<PackedBlock>,
    pub(super) raw_bytes: u64,
    pub(super) raw_crc32: u32,
}

impl SeekTable {
    /// How many bytes from the end of a file on have to be read, by its last ones; `None` if it is not of this format.
    pub(super) fn tail_bytes(end: &[u8]) -> Result<Option<usize>, PackedFault> {
        let Some(footer) = end.last_chunk::<FOOTER_BYTES>() else {
            return Ok(None);
        };
        if footer[5..] != SEEKABLE_MAGIC.to_le_bytes() {
            return Ok(None);
        }
        let frames = le32(footer, 0) as usize;
        if footer[4] != 0 || !(2..=BLOCKS_MAX + 1).contains(&frames) {
            return fault("its seek table is damaged");
        }
        Ok(Some(tail_bytes_of(frames - 1)))
    }

    /// Takes apart what [`SeekTable::tail_bytes`] has said.
    pub(super) fn parse(file_bytes: u64, tail: &[u8]) -> Result<SeekTable, PackedFault> {
        let damaged = || PackedFault("its seek table is damaged".to_owned());
        if SeekTable::tail_bytes(tail)? != Some(tail.len()) {
            return Err(damaged());
        }
        let count = le32(tail, tail.len() - FOOTER_BYTES) as usize - 1;
        let checks_bytes = FRAME_HEADER_BYTES + CHECKS_BYTES + count * 4;
        let (checks, table) = tail.split_at(checks_bytes);
        let (covered, crc) = checks.split_at(checks_bytes - 4);
        let mut computed = crc32fast::Hasher::new();
        computed.update(covered);
        computed.update(table);
        if is_other(computed.finalize(), le32(crc, 0)) {
            return fault("its checks or its seek table are damaged");
        }
        let is_framed = le32(checks, 0) == CHECKS_MAGIC
            && le32(checks, 4) as usize == checks_bytes - FRAME_HEADER_BYTES
            && checks[8..16] == OUR_MAGIC
            && le32(table, 0) == SEEK_TABLE_MAGIC
            && le32(table, 4) as usize == table.len() - FRAME_HEADER_BYTES;
        if !is_framed {
            return fault("its seek table is not walmgr's; unpack it with zstd -d");
        }
        let raw_bytes = u64::from(le32(checks, 16)) | u64::from(le32(checks, 20)) << 32;
        let (mut blocks, mut offset_bytes, mut raw_left) = (Vec::new(), 0, raw_bytes);
        for number in 0..count {
            let entry = FRAME_HEADER_BYTES + number * ENTRY_BYTES;
            let block = PackedBlock {
                offset_bytes,
                bytes: le32(table, entry),
                raw_bytes: le32(table, entry + 4),
                crc32: le32(checks, 28 + number * 4),
            };
            let expected = raw_left.min(PACKED_BLOCK_BYTES as u64);
            let fits = (1..=STORED_BLOCK_BYTES_MAX).contains(&(block.bytes as usize));
            if expected == 0 || u64::from(block.raw_bytes) != expected || !fits {
                return Err(damaged());
            }
            raw_left -= expected;
            offset_bytes += u64::from(block.bytes);
            blocks.push(block);
        }
        let last = FRAME_HEADER_BYTES + count * ENTRY_BYTES;
        let ends = le32(table, last) as usize == checks_bytes && le32(table, last + 4) == 0;
        if !ends || raw_left != 0 || offset_bytes + tail.len() as u64 != file_bytes {
            return Err(damaged());
        }
        let raw_crc32 = le32(checks, 24);
        Ok(SeekTable {
            blocks,
            raw_bytes,
            raw_crc32,
        })
    }

    /// Whether all blocks from `from_bytes` on, whose raw bytes have this CRC-32, are the segment.
    pub(super) fn check_whole(&self, from_bytes: u64, crc32: u32) -> Result<(), PackedFault> {
        match from_bytes == 0 && is_other(crc32, self.raw_crc32) {
            true => fault("its blocks are not the segment that was packed"),
            false => Ok(()),
        }
    }

    fn write(&self) -> Vec<u8> {
        let count = self.blocks.len();
        let mut out = Vec::with_capacity(tail_bytes_of(count));
        let checks_bytes = FRAME_HEADER_BYTES + CHECKS_BYTES + count * 4;
        let put = |out: &mut Vec<u8>, number: usize| {
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            out.extend_from_slice(&number.to_le_bytes());
        };
        out.extend_from_slice(&CHECKS_MAGIC.to_le_bytes());
        put(&mut out, checks_bytes - FRAME_HEADER_BYTES);
        out.extend_from_slice(&OUR_MAGIC);
        out.extend_from_slice(&self.raw_bytes.to_le_bytes());
        out.extend_from_slice(&self.raw_crc32.to_le_bytes());
        for block in &self.blocks {
            out.extend_from_slice(&block.crc32.to_le_bytes());
        }
        let mut table = SEEK_TABLE_MAGIC.to_le_bytes().to_vec();
        put(&mut table, (count + 1) * ENTRY_BYTES + FOOTER_BYTES);
        for block in &self.blocks {
            table.extend_from_slice(&block.bytes.to_le_bytes());
            table.extend_from_slice(&block.raw_bytes.to_le_bytes());
        }
        put(&mut table, checks_bytes);
        put(&mut table, 0);
        put(&mut table, count + 1);
        table.push(0);
        table.extend_from_slice(&SEEKABLE_MAGIC.to_le_bytes());
        let mut crc = crc32fast::Hasher::new();
        crc.update(&out);
        crc.update(&table);
        out.extend_from_slice(&crc.finalize().to_le_bytes());
        out.extend_from_slice(&table);
        out
    }
}

const fn tail_bytes_of(blocks: usize) -> usize {
    FRAME_HEADER_BYTES
        + CHECKS_BYTES
        + blocks * 4
        + FRAME_HEADER_BYTES
        + (blocks + 1) * ENTRY_BYTES
        + FOOTER_BYTES
}

/// Whether a checksum is another one than it should be.
const fn is_other(found: u32, expected: u32) -> bool {
    found != expected && !cfg!(fuzzing)
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    let four = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>());
    u32::from_le_bytes(*four.unwrap_or(&[0; 4]))
}

/// Unpacks blocks; keeps zstd's working memory between them.
pub(super) struct BlockUnpacker {
    context: DCtx<'static>,
    raw: Vec<u8>,
}

impl BlockUnpacker {
    /// One that takes no more memory than a block and zstd's tables.
    pub(super) fn new() -> Self {
        BlockUnpacker {
            context: DCtx::create(),
            raw: vec![0; PACKED_BLOCK_BYTES],
        }
    }

    /// The raw bytes of a block.
    pub(super) fn unpack(
        &mut self,
        block: &PackedBlock,
        stored: &[u8],
    ) -> Result<&[u8], PackedFault> {
        let at = block.offset_bytes;
        block.check(stored)?;
        self.unpack_exactly(stored, block.raw_bytes as usize)
            .map_err(|PackedFault(why)| PackedFault(format!("the block at its byte {at}: {why}")))
    }

    fn unpack_exactly(&mut self, stored: &[u8], raw_bytes: usize) -> Result<&[u8], PackedFault> {
        // The place is as long as the block has to be, so nothing unpacks to more.
        let raw = &mut self.raw[..raw_bytes.min(PACKED_BLOCK_BYTES)];
        match self.context.decompress(raw, stored) {
            Ok(unpacked) if unpacked == raw_bytes => Ok(&self.raw[..raw_bytes]),
            Ok(unpacked) => fault(format!("it unpacks to {unpacked} bytes, not {raw_bytes}")),
            Err(code) => fault(get_error_name(code)),
        }
    }
}

/// Unpacks a file that somebody else has packed, from its first byte on.
pub(super) struct ForeignUnpacker {
    context: DCtx<'static>,
    raw: Vec<u8>,
    raw_bytes: u64,
    /// What came of the next frame's magic number.
    magic: Vec<u8>,
    is_in_frame: bool,
}

impl ForeignUnpacker {
    /// One that is given the file from its beginning.
    pub(super) fn new() -> Result<Self, PackedFault> {
        let mut context = DCtx::create();
        let window = DParameter::WindowLogMax(FOREIGN_WINDOW_LOG_MAX);
        if let Err(code) = context.set_parameter(window) {
            return fault(get_error_name(code));
        }
        Ok(ForeignUnpacker {
            context,
            raw: vec![0; PACKED_BLOCK_BYTES],
            raw_bytes: 0,
            magic: Vec::new(),
            is_in_frame: false,
        })
    }

    /// Takes the next bytes of the file; `false` if `each` has seen enough.
    pub(super) fn update(
        &mut self,
        mut stored: &[u8],
        mut each: impl FnMut(&[u8]) -> bool,
    ) -> Result<bool, PackedFault> {
        while !stored.is_empty() {
            if !self.is_in_frame {
                let missing = ZSTD_MAGIC.len() - self.magic.len();
                let (now, later) = stored.split_at(missing.min(stored.len()));
                self.magic.extend_from_slice(now);
                stored = later;
                if self.magic.len() < ZSTD_MAGIC.len() {
                    return Ok(true);
                }
                if self.magic != ZSTD_MAGIC {
                    return fault(
                        "it is cut short, or something that is no zstd frame is in it or behind it",
                    );
                }
                self.is_in_frame = true;
                let magic = std::mem::take(&mut self.magic);
                if !self.feed(&magic, &mut each)?.1 {
                    return Ok(false);
                }
            }
            let (taken, goes_on) = self.feed(stored, &mut each)?;
            if !goes_on {
                return Ok(false);
            }
            stored = &stored[taken..];
        }
        Ok(true)
    }

    /// How many bytes the frame took, and whether more are wanted.
    fn feed(
        &mut self,
        stored: &[u8],
        each: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<(usize, bool), PackedFault> {
        let mut input = InBuffer::around(stored);
        loop {
            let mut output = OutBuffer::around(&mut self.raw[..]);
            let left = match self.context.decompress_stream(&mut output, &mut input) {
                Ok(left) => left,
                Err(code) => {
                    let why = get_error_name(code);
                    return fault(format!(
                        "{why}; if its window is above 8 MiB, unpack it with zstd -d"
                    ));
                }
            };
            let unpacked = output.pos();
            self.raw_bytes += unpacked as u64;
            if self.raw_bytes > RAW_BYTES_MAX {
                return fault("it unpacks to more than any segment has");
            }
            if unpacked > 0 && !each(&self.raw[..unpacked]) {
                return Ok((input.pos(), false));
            }
            if left == 0 {
                self.is_in_frame = false;
                return Ok((input.pos(), true));
            }
            if input.pos() == stored.len() && unpacked < self.raw.len() {
                return Ok((input.pos(), true));
            }
        }
    }

    /// Whether the file may end here.
    pub(super) fn finish(&self) -> Result<(), PackedFault> {
        match self.is_in_frame || !self.magic.is_empty() || self.raw_bytes == 0 {
            true => fault("it is cut short"),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
