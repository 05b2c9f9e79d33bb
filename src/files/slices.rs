//! A long file gone through by several threads at once, a slice each.
//! Never holds more than a slice's result for each slice. Invariant: the results are in the order of the slices, which
//! together are the whole length.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What one thread takes at a time: a multiple of a page, and so long that to begin it costs nothing beside it.
pub(crate) const SLICE_BYTES: u64 = 16 << 20;

/// How many go through one file: reading and checksums keep a processor busy, and the host has other work.
const THREADS: usize = 2;

/// A checksum and the length of what it is of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PartDigest {
    pub(crate) len: u64,
    pub(crate) crc32c: u32,
}

impl PartDigest {
    /// Takes the next bytes.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.crc32c = crc32c::crc32c_append(self.crc32c, bytes);
        self.len += bytes.len() as u64;
    }

    /// Takes what another one is of, which follows.
    pub(crate) fn append(&mut self, next: PartDigest) {
        // A small file has one part: what follows costs more than to read that.
        if self.len == 0 {
            *self = next;
            return;
        }
        let len = usize::try_from(next.len).unwrap_or(usize::MAX);
        self.crc32c = crc32c::crc32c_combine(self.crc32c, next.crc32c, len);
        self.len += next.len;
    }
}

/// Takes checksums of parts that all have one length together, which costs next to nothing beside reading them.
pub(crate) struct EqualParts {
    len: u64,
    /// What so many bytes behind it make of each bit of a checksum.
    bits: [u32; 32],
}

impl EqualParts {
    pub(crate) fn new(len: usize) -> EqualParts {
        EqualParts {
            len: len as u64,
            bits: std::array::from_fn(|bit| crc32c::crc32c_combine(1 << bit, 0, len)),
        }
    }

    /// Takes the checksum of the next part, which has that length.
    pub(crate) fn append(&self, whole: &mut PartDigest, crc32c: u32) {
        let moved = (self.bits.iter().enumerate())
            .filter(|(bit, _)| whole.crc32c >> bit & 1 == 1)
            .fold(0, |moved, (_, of_bit)| moved ^ of_bit);
        whole.crc32c = moved ^ crc32c;
        whole.len += self.len;
    }
}

/// Has each slice of so many bytes looked at, in no order; the results in theirs. The first failure ends it.
pub(crate) fn in_slices<T: Send, E: Send>(
    len: u64,
    look: impl Fn(Range<u64>) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    if len <= SLICE_BYTES {
        return Ok(vec![look(0..len)?]);
    }
    let (next, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let run = || {
        let mut found = Vec::new();
        loop {
            let from = next.fetch_add(SLICE_BYTES, Ordering::Relaxed);
            if from >= len || is_over.load(Ordering::Relaxed) {
                return Ok(found);
            }
            let result = look(from..len.min(from + SLICE_BYTES));
            let result = result.inspect_err(|_| is_over.store(true, Ordering::Relaxed))?;
            found.push((from, result));
        }
    };
    let mut found = std::thread::scope(|scope| {
        // Where no thread can be had, those that there are do it alone.
        let begin = |_| std::thread::Builder::new().spawn_scoped(scope, run).ok();
        let others: Vec<_> = (1..THREADS).filter_map(begin).collect();
        let mut found = run();
        for other in others {
            match other.join() {
                Ok(more) => found = both(found, more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        found
    })?;
    found.sort_by_key(|(from, _)| *from);
    Ok(found.into_iter().map(|(_, result)| result).collect())
}

fn both<T, E>(found: Result<Vec<T>, E>, more: Result<Vec<T>, E>) -> Result<Vec<T>, E> {
    let mut found = found?;
    found.extend(more?);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_come_in_order_and_are_the_whole_length() {
        for len in [0, 1, SLICE_BYTES, SLICE_BYTES + 1, 5 * SLICE_BYTES - 7] {
            let slices = in_slices(len, Ok::<_, ()>).unwrap();
            let mut end = 0;
            for slice in slices {
                assert_eq!(slice.start, end);
                end = slice.end;
            }
            assert_eq!(end, len);
        }
    }

    #[test]
    fn a_failure_of_any_slice_is_the_failure_of_all() {
        for bad in 0..6 {
            let look = |slice: Range<u64>| match slice.start / SLICE_BYTES == bad {
                true => Err(bad),
                false => Ok(()),
            };
            assert_eq!(in_slices(6 * SLICE_BYTES, look), Err(bad));
        }
    }

    #[test]
    fn parts_that_follow_each_other_have_the_checksum_of_the_whole() {
        let bytes: Vec<u8> = (0..70_000_u32)
            .map(|at| u8::try_from(at.wrapping_mul(at) % 251).unwrap())
            .collect();
        for cuts in [[0, 0], [1, 2], [8192, 65_536], [70_000, 70_000]] {
            let mut whole = PartDigest::default();
            for part in [
                &bytes[..cuts[0]],
                &bytes[cuts[0]..cuts[1]],
                &bytes[cuts[1]..],
            ] {
                let mut digest = PartDigest::default();
                digest.update(part);
                whole.append(digest);
            }
            assert_eq!(whole.crc32c, crc32c::crc32c(&bytes));
            assert_eq!(whole.len, bytes.len() as u64);
        }
        for len in [1, 7, 8192, 10_000] {
            let (parts, mut whole) = (EqualParts::new(len), PartDigest::default());
            let pieces = bytes.chunks_exact(len);
            let end = bytes.len() - pieces.remainder().len();
            pieces.for_each(|piece| parts.append(&mut whole, crc32c::crc32c(piece)));
            assert_eq!(whole.crc32c, crc32c::crc32c(&bytes[..end]));
            assert_eq!(whole.len, end as u64);
        }
    }
}
