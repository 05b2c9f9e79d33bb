//! What a patch holds: pages of a file that otherwise is as an older set has it, and looks at pages that should be
//! the same there. Never reads a file. Invariant: however its bytes are cut into pieces, the same pages come out, each
//! at most once, in ascending order, and none behind the file's length.
//!
//! ```text
//! u32 first block, u32 count above 0    count pages follow
//! u32 block, u32 0                      u64 LSN and u32 CRC-32C of that page follow
//! ```

use std::fmt;

use crate::names::Lsn;

/// Bytes of a page; clusters with others have no patches.
pub const PAGE_BYTES: u64 = 8192;

/// The pax keyword of an entry whose content is a patch: the length of the file that comes of it.
pub const TAR_PATCH_KEYWORD: &str = "WALMGR.patch";

/// Bytes of a record before what follows it.
pub const RECORD_BYTES: usize = 8;

/// Bytes that follow the record of a look.
pub const LOOK_BYTES: usize = 12;

/// What a page looks like, without what two good copies of it may differ in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageLook {
    /// Its LSN.
    pub lsn: Lsn,
    /// CRC-32C of it without its checksum and its unused middle.
    pub crc32c: u32,
}

/// What comes next of a patch.
#[derive(Debug, PartialEq, Eq)]
pub enum PatchStep<'a> {
    /// These bytes belong at this offset of the file.
    Bytes(u64, &'a [u8]),
    /// The page of this number looks like this on the master.
    Look(u32, PageLook),
    /// All input is used up.
    NeedMore,
}

/// Why a patch is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PatchFault {
    /// What was found.
    pub block: u32,
    /// The lowest that may come.
    pub least: u64,
    /// Behind the last that may.
    pub end: u64,
}

impl fmt::Display for PatchFault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PatchFault { block, least, end } = self;
        write!(
            out,
            "its patch goes on with block {block}, where one from {least} on and before {end} has to come"
        )
    }
}

impl std::error::Error for PatchFault {}

/// Takes a patch apart. After a fault it must not be used again.
#[derive(Debug)]
pub struct PatchReader {
    /// Pages of the file.
    pages: u64,
    /// The lowest block that may come.
    least: u64,
    state: PatchState,
    record: [u8; RECORD_BYTES + LOOK_BYTES],
}

#[derive(Debug, Clone, Copy)]
enum PatchState {
    /// In a record, of which this many bytes are there.
    Record(usize),
    /// In pages: the offset in the file, and what is missing.
    Pages(u64, u64),
}

impl PatchReader {
    /// For a file that will have this length.
    pub const fn new(len: u64) -> PatchReader {
        PatchReader {
            pages: len / PAGE_BYTES,
            least: 0,
            state: PatchState::Record(0),
            record: [0; RECORD_BYTES + LOOK_BYTES],
        }
    }

    /// The next thing in it. What it is made of is taken from `input`.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<PatchStep<'a>, PatchFault> {
        loop {
            match self.state {
                PatchState::Pages(_, 0) => self.state = PatchState::Record(0),
                _ if input.is_empty() => return Ok(PatchStep::NeedMore),
                PatchState::Pages(offset, left) => {
                    let count = usize::try_from(left).map_or(input.len(), |it| it.min(input.len()));
                    let (taken, rest) = input.split_at(count);
                    *input = rest;
                    self.state = PatchState::Pages(offset + count as u64, left - count as u64);
                    return Ok(PatchStep::Bytes(offset, taken));
                }
                PatchState::Record(filled) => {
                    let is_look = filled >= RECORD_BYTES;
                    let end = RECORD_BYTES + if is_look { LOOK_BYTES } else { 0 };
                    let count = input.len().min(end - filled);
                    let (taken, rest) = input.split_at(count);
                    *input = rest;
                    self.record[filled..filled + count].copy_from_slice(taken);
                    self.state = PatchState::Record(filled + count);
                    if filled + count == end
                        && let Some(step) = self.record_is_there(is_look)?
                    {
                        return Ok(step);
                    }
                }
            }
        }
    }

    /// Whether it may end here.
    pub const fn is_at_end(&self) -> bool {
        matches!(self.state, PatchState::Record(0) | PatchState::Pages(_, 0))
    }

    fn record_is_there(&mut self, is_look: bool) -> Result<Option<PatchStep<'static>>, PatchFault> {
        let (block, count) = (self.u32_at(0), self.u32_at(4));
        if is_look {
            let lsn = u64::from(self.u32_at(8)) | u64::from(self.u32_at(12)) << 32;
            let look = PageLook {
                lsn: Lsn(lsn),
                crc32c: self.u32_at(16),
            };
            self.state = PatchState::Record(0);
            return Ok(Some(PatchStep::Look(block, look)));
        }
        let behind = u64::from(block) + u64::from(count.max(1));
        if u64::from(block) < self.least || behind > self.pages {
            let (least, end) = (self.least, self.pages);
            return Err(PatchFault { block, least, end });
        }
        self.least = behind;
        if count > 0 {
            let offset = u64::from(block) * PAGE_BYTES;
            self.state = PatchState::Pages(offset, u64::from(count) * PAGE_BYTES);
        }
        Ok(None)
    }

    fn u32_at(&self, at: usize) -> u32 {
        let byte = |at: usize| u32::from(self.record[at]);
        byte(at) | byte(at + 1) << 8 | byte(at + 2) << 16 | byte(at + 3) << 24
    }
}

/// Appends the record of pages that follow it.
pub fn put_pages(out: &mut Vec<u8>, first: u32, count: u32) {
    out.extend_from_slice(&first.to_le_bytes());
    out.extend_from_slice(&count.to_le_bytes());
}

/// Appends a look.
pub fn put_look(out: &mut Vec<u8>, block: u32, look: PageLook) {
    put_pages(out, block, 0);
    out.extend_from_slice(&look.lsn.0.to_le_bytes());
    out.extend_from_slice(&look.crc32c.to_le_bytes());
}

/// Whatever the bytes, what comes out of them does not depend on how they are cut, and lies within the file.
pub fn fuzz(input: &[u8]) {
    let Some((&piece_bytes, patch)) = input.split_first() else {
        return;
    };
    let len = 5 * PAGE_BYTES + 3;
    let whole = taken_apart(patch, usize::MAX, len);
    assert_eq!(
        whole,
        taken_apart(patch, usize::from(piece_bytes).max(1), len)
    );
}

/// Where looks are noted: behind every file.
const LOOKS: u64 = 1 << 60;

/// The runs of bytes and the looks of a patch, and whether it was refused or could end.
fn taken_apart(patch: &[u8], piece_bytes: usize, len: u64) -> (Vec<(u64, Vec<u8>)>, bool, bool) {
    let mut reader = PatchReader::new(len);
    let mut found: Vec<(u64, Vec<u8>)> = Vec::new();
    for mut piece in patch.chunks(piece_bytes.min(patch.len().max(1))) {
        loop {
            match reader.next(&mut piece) {
                Ok(PatchStep::NeedMore) => break,
                Ok(PatchStep::Look(block, look)) => {
                    let what = format!("{look:?}").into_bytes();
                    found.push((LOOKS + u64::from(block), what));
                }
                Ok(PatchStep::Bytes(offset, bytes)) => {
                    assert!(offset + bytes.len() as u64 <= len, "behind the end");
                    match found.last_mut() {
                        Some((at, run)) if *at + run.len() as u64 == offset => {
                            run.extend_from_slice(bytes);
                        }
                        _ => found.push((offset, bytes.to_vec())),
                    }
                }
                Err(_) => return (found, true, false),
            }
        }
    }
    (found, false, reader.is_at_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 8192;

    fn sample() -> Vec<u8> {
        let mut patch = Vec::new();
        put_pages(&mut patch, 0, 2);
        patch.resize(patch.len() + 2 * PAGE, 7);
        let lsn = Lsn(0x0102_0304_0506_0708);
        put_look(&mut patch, 2, PageLook { lsn, crc32c: 9 });
        put_pages(&mut patch, 4, 1);
        patch.resize(patch.len() + PAGE, 8);
        patch
    }

    #[test]
    fn a_patch_is_the_same_however_it_is_cut() {
        let len = 5 * PAGE_BYTES;
        let whole = taken_apart(&sample(), usize::MAX, len);
        let offsets: Vec<u64> = whole.0.iter().map(|(offset, _)| *offset).collect();
        assert_eq!(offsets, [0, LOOKS + 2, 4 * PAGE_BYTES]);
        assert!(whole.2);
        for piece_bytes in [1, 2, 7, 19, 20, 4_000, 8_192, 8_200] {
            assert_eq!(taken_apart(&sample(), piece_bytes, len), whole);
            fuzz(&[&[u8::try_from(piece_bytes % 256).unwrap()], &sample()[..]].concat());
        }
        let cut = sample();
        for end in [1, 7, 9, cut.len() - 1] {
            assert!(!taken_apart(&cut[..end], usize::MAX, len).2, "{end}");
        }
    }

    #[test]
    fn fault_205_a_patch_that_goes_back_or_beyond_the_file_is_refused() {
        let refused = |blocks: &[(u32, u32)]| {
            let mut patch = Vec::new();
            for (first, count) in blocks {
                put_pages(&mut patch, *first, *count);
                let follows = match count {
                    0 => LOOK_BYTES,
                    count => (*count).min(5) as usize * PAGE,
                };
                patch.resize(patch.len() + follows, 0);
            }
            taken_apart(&patch, usize::MAX, 5 * PAGE_BYTES + 100).1
        };
        assert!(!refused(&[(0, 1), (1, 0), (2, 3)]));
        for blocks in [
            &[(1, 1), (0, 1)][..],
            &[(1, 1), (1, 0)],
            &[(1, 0), (1, 1)],
            &[(5, 0)],
            &[(4, 2)],
            &[(u32::MAX, u32::MAX)],
        ] {
            assert!(refused(blocks), "{blocks:?}");
        }
    }
}
