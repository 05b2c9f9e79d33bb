//! One data block, raw or as a zstd frame of its own, with the room for its headers in front.
//! Never unpacks more than the bytes a block states, never with a window above
//! [`ZSTD_WINDOW_LOG_MAX`]. Invariant: a block travels raw unless zstd saves a sixteenth of it.

use bytes::Bytes;
use zstd::zstd_safe::{CCtx, CParameter, DCtx, DParameter};

use crate::error::Malformed;
use crate::frame::DATA_HEADROOM_BYTES;
use crate::limits::{BLOCK_BYTES_MAX, ZSTD_LEVEL_MAX, ZSTD_WINDOW_LOG_MAX};

/// Bytes of the shortest match that level 1 looks for; zstd's own choice for a block of 256 KiB, six, misses much of what
/// repeats in WAL and in pages, and is no faster.
const FASTEST_MATCH_BYTES: u32 = 5;

/// A block of a file, ready to become a data frame.
#[derive(Debug)]
pub struct Block {
    /// [`DATA_HEADROOM_BYTES`] of room for the headers, then the block as it travels.
    pub(crate) bytes: Vec<u8>,
    /// Where in the file it begins, in bytes.
    pub offset: u64,
    /// Its length before compression, in bytes.
    pub raw_bytes: u32,
    /// Whether it travels as a zstd frame.
    pub zstd: bool,
}

impl Block {
    /// One that somebody has packed before, in this buffer.
    pub fn of_packed(mut buffer: Vec<u8>, offset: u64, raw_bytes: u32, packed: &[u8]) -> Block {
        buffer.clear();
        buffer.resize(DATA_HEADROOM_BYTES, 0);
        buffer.extend_from_slice(packed);
        Block {
            bytes: buffer,
            offset,
            raw_bytes,
            zstd: true,
        }
    }

    /// Takes the buffer back, to be filled again.
    pub fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }

    /// The block as it travels, without the room for its headers.
    pub fn payload(&self) -> &[u8] {
        &self.bytes[DATA_HEADROOM_BYTES..]
    }
}

/// The most bytes that so many may be packed to and travel packed.
pub const fn worth_bytes(raw_bytes: usize) -> usize {
    raw_bytes - raw_bytes.div_ceil(16)
}

/// Has `context` pack blocks at this level, whichever it had before.
pub fn set_level(context: &mut CCtx<'_>, level: u8) {
    let level = level.min(ZSTD_LEVEL_MAX);
    // 0 leaves it to zstd.
    let match_bytes = if level == 1 { FASTEST_MATCH_BYTES } else { 0 };
    // Neither parameter can be out of range, and a refused one leaves zstd's default.
    let _ = context.set_parameter(CParameter::CompressionLevel(i32::from(level)));
    let _ = context.set_parameter(CParameter::MinMatch(match_bytes));
}

/// Packs blocks at one level; keeps zstd's working memory between them.
pub struct Packer {
    context: Option<CCtx<'static>>,
    spare: Vec<u8>,
}

impl Packer {
    /// A packer for `compression` as the ini file says it: 0 packs nothing.
    pub fn new(level: u8) -> Self {
        let context = (level > 0).then(|| {
            let mut context = CCtx::create();
            set_level(&mut context, level);
            context
        });
        Packer {
            context,
            spare: Vec::new(),
        }
    }

    /// Packs the block that `fill` leaves behind the headroom of `buffer`.
    ///
    /// `fill` gets the buffer, truncated to its headroom, and appends the raw bytes.
    pub fn pack<E>(
        &mut self,
        mut buffer: Vec<u8>,
        offset: u64,
        fill: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<Block, E> {
        buffer.clear();
        buffer.resize(DATA_HEADROOM_BYTES, 0);
        fill(&mut buffer)?;
        let raw_len = buffer.len().saturating_sub(DATA_HEADROOM_BYTES);
        let raw_bytes = u32::try_from(raw_len).unwrap_or(u32::MAX);
        let zstd = self.shrink(&mut buffer, raw_len);
        Ok(Block {
            bytes: buffer,
            offset,
            raw_bytes,
            zstd,
        })
    }

    /// Replaces the raw bytes by their packed form if that is worth unpacking them again.
    fn shrink(&mut self, buffer: &mut Vec<u8>, raw_len: usize) -> bool {
        let Some(context) = &mut self.context else {
            return false;
        };
        let worth = worth_bytes(raw_len);
        // Nothing is read of what is in there, and what is long enough already is not filled with zeros again.
        self.spare.resize(DATA_HEADROOM_BYTES + worth, 0);
        let packed = context.compress2(
            &mut self.spare[DATA_HEADROOM_BYTES..],
            &buffer[DATA_HEADROOM_BYTES..],
        );
        // An error here is "does not fit into 15/16", which is the answer we asked for.
        let Ok(packed_len) = packed else { return false };
        self.spare.truncate(DATA_HEADROOM_BYTES + packed_len);
        std::mem::swap(buffer, &mut self.spare);
        true
    }
}

/// The raw bytes of a block and what travelled. Only [`Unpacker::unpack_block`] makes one, so the raw bytes are
/// what the packed ones give.
#[derive(Debug, Clone, Copy)]
pub struct UnpackedBlock<'a> {
    raw: &'a [u8],
    travelled: &'a Bytes,
    zstd: bool,
}

impl<'a> UnpackedBlock<'a> {
    /// Its raw bytes.
    pub const fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// What travelled: its raw bytes, or what they were unpacked from.
    pub const fn travelled(&self) -> &'a Bytes {
        self.travelled
    }

    /// The zstd frame that it was unpacked from, if it was packed.
    pub fn packed(&self) -> Option<&'a Bytes> {
        self.zstd.then_some(self.travelled)
    }
}

/// Unpacks blocks; keeps zstd's working memory between them.
#[derive(Default)]
pub struct Unpacker {
    context: Option<DCtx<'static>>,
    raw: Vec<u8>,
}

impl Unpacker {
    /// A block that travelled as `travelled` and states `raw_bytes`, with its raw bytes beside what travelled.
    pub fn unpack_block<'a>(
        &'a mut self,
        travelled: &'a Bytes,
        raw_bytes: u32,
        zstd: bool,
    ) -> Result<UnpackedBlock<'a>, Malformed> {
        let raw = self.unpack(travelled, raw_bytes, zstd)?;
        Ok(UnpackedBlock {
            raw,
            travelled,
            zstd,
        })
    }

    /// The raw bytes of a block that travelled as `payload` and states `raw_bytes`.
    pub fn unpack<'a>(
        &'a mut self,
        payload: &'a [u8],
        raw_bytes: u32,
        zstd: bool,
    ) -> Result<&'a [u8], Malformed> {
        check_raw_bytes(raw_bytes)?;
        let raw_len = raw_bytes as usize;
        if !zstd {
            return match payload.len() == raw_len {
                true => Ok(payload),
                false => Err(Malformed::BadBlock {
                    why: format!("it states {raw_len} bytes and carries {}", payload.len()),
                }),
            };
        }
        let bad = |code| Malformed::BadBlock {
            why: zstd::zstd_safe::get_error_name(code).into(),
        };
        if self.context.is_none() {
            let mut context = DCtx::create();
            context
                .set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX))
                .map_err(bad)?;
            self.context = Some(context);
        }
        self.raw.resize(raw_len, 0);
        let unpacked = match &mut self.context {
            Some(context) => context
                .decompress(&mut self.raw[..], payload)
                .map_err(bad)?,
            None => 0,
        };
        if unpacked != raw_len {
            return Err(Malformed::BadBlock {
                why: format!("it states {raw_len} bytes and unpacks to {unpacked}"),
            });
        }
        Ok(&self.raw)
    }
}

/// A block is neither empty nor above the bound, whatever a peer states.
pub(crate) fn check_raw_bytes(raw_bytes: u32) -> Result<(), Malformed> {
    match raw_bytes {
        0 => Err(Malformed::BadValue {
            what: "raw length of a block",
            found: 0,
        }),
        1..=BLOCK_BYTES_MAX => Ok(()),
        _ => Err(Malformed::TooLong {
            what: "raw length of a block",
            most: u64::from(BLOCK_BYTES_MAX),
            found: u64::from(raw_bytes),
        }),
    }
}

/// Packing that does not shrink a block is left away, so a longer payload is only there to take
/// memory while it waits.
pub(crate) fn check_payload(payload_bytes: usize, raw_bytes: u32) -> Result<(), Malformed> {
    match payload_bytes <= raw_bytes as usize {
        true => Ok(()),
        false => Err(Malformed::BadBlock {
            why: format!("it states {raw_bytes} bytes and carries {payload_bytes}"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(level: u8, raw: &[u8]) -> Block {
        Packer::new(level)
            .pack(Vec::new(), 0, |buffer| {
                buffer.extend_from_slice(raw);
                Ok::<(), ()>(())
            })
            .unwrap()
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        };
        (0..len).map(|_| next()).collect()
    }

    #[test]
    fn what_shrinks_travels_packed_and_unpacks_to_the_same() {
        let raw = b"the same words again and again ".repeat(1000);
        for level in [1, 3, 19] {
            let block = packed(level, &raw);
            assert!(block.zstd && block.payload().len() < raw.len() / 4);
            let mut unpacker = Unpacker::default();
            let back = unpacker
                .unpack(block.payload(), block.raw_bytes, true)
                .unwrap();
            assert_eq!(back, &raw[..]);
        }
    }

    #[test]
    fn level_1_packs_repeats_of_five_bytes() {
        let words: Vec<[u8; 5]> = (noise(640).chunks_exact(5))
            .map(|word| word.try_into().unwrap())
            .collect();
        // A word that repeats, then one byte that nothing predicts.
        let raw: Vec<u8> = noise(40_000)
            .chunks_exact(2)
            .flat_map(|pair| {
                let word = words[usize::from(pair[0]) % words.len()];
                word.into_iter().chain([pair[1]])
            })
            .collect();
        let zstds_own = zstd::bulk::compress(&raw, 1).unwrap();
        let block = packed(1, &raw);
        assert!(block.zstd);
        assert!(block.payload().len() < zstds_own.len());
        let mut unpacker = Unpacker::default();
        let back = unpacker.unpack(block.payload(), block.raw_bytes, true);
        assert_eq!(back.unwrap(), &raw[..]);
    }

    #[test]
    fn what_does_not_shrink_by_a_sixteenth_travels_raw() {
        let raw = noise(100_000);
        let block = packed(3, &raw);
        assert!(!block.zstd);
        assert_eq!(block.payload(), &raw[..]);
    }

    #[test]
    fn fault_92_a_bomb_unpacks_to_no_more_than_it_states() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
        let mut unpacker = Unpacker::default();
        assert!(unpacker.unpack(&bomb, 4096, true).is_err());
        assert!(unpacker.raw.capacity() <= BLOCK_BYTES_MAX as usize);
        assert!(unpacker.unpack(&bomb, u32::MAX, true).is_err());
        assert!(unpacker.unpack(&bomb, 0, true).is_err());
    }

    #[test]
    fn fault_92_block_longer_than_its_unpacked_length_is_refused_at_once() {
        use crate::message::{Message, MessageKind};
        let payload_of = |bytes: usize| {
            let mut payload = vec![0; 8];
            payload.extend_from_slice(&4096_u32.to_le_bytes());
            payload.resize(8 + 4 + bytes, 7);
            payload.into()
        };
        for (flags, bytes, taken) in [(0, 4096, true), (1, 4096, true), (1, 4097, false)] {
            let decoded = Message::decode(MessageKind::Data as u8, flags, payload_of(bytes));
            assert_eq!(decoded.is_ok(), taken, "{bytes} bytes, flags {flags}");
        }
    }

    #[test]
    fn fault_92_a_block_that_wants_a_huge_window_is_refused() {
        use zstd::zstd_safe::{CCtx, CParameter};
        let mut context = CCtx::create();
        context.set_parameter(CParameter::WindowLog(27)).unwrap();
        context
            .set_parameter(CParameter::ContentSizeFlag(false))
            .unwrap();
        let mut huge = vec![0; 1 << 20];
        let source = noise(BLOCK_BYTES_MAX as usize);
        let mut out = zstd::zstd_safe::OutBuffer::around(&mut huge[..]);
        let mut input = zstd::zstd_safe::InBuffer::around(&source);
        context.compress_stream(&mut out, &mut input).unwrap();
        while context.end_stream(&mut out).unwrap() > 0 {}
        let len = out.pos();
        let mut unpacker = Unpacker::default();
        let answer = unpacker.unpack(&huge[..len], BLOCK_BYTES_MAX, true);
        // One-shot decoding writes straight into the bounded output and keeps no window, so it
        // may also succeed; what it must not do is set aside 128 MiB or return other bytes.
        if let Ok(raw) = answer {
            assert_eq!(raw, &source[..]);
        }
        assert!(
            unpacker
                .context
                .is_some_and(|context| context.sizeof() < 16 << 20)
        );
    }
}
