//! What a file of an old data directory was when it was read: its checksum, and that of each page.
//! Never writes, and never tells what it did not read. Invariant: it is of the file's beginning, up to its end or to where it
//! could not be read.

use std::ops::Range;
use std::os::fd::BorrowedFd;

use super::manifest::{Checksum, FileEntry};
use super::old_files::{BLOCK_BYTES, add_block, agreeing, block_digest, read_full};
use crate::files;
use crate::files::slices::{PartDigest, in_slices};

/// What is read at once for checksums: so little that it is still in the processor's cache for the last of them.
pub(crate) const HASHED_BYTES: usize = 32 * BLOCK_BYTES;

/// How far ahead the disk is asked to read: a few of its longest requests at once for each that reads.
pub(crate) const AHEAD_BYTES: u64 = 2 << 20;

/// Has a slice of a file read piece by piece, and the disk read ahead of that; ends behind a piece that is short.
pub(crate) fn each_piece<E>(
    file: BorrowedFd<'_>,
    slice: Range<u64>,
    read: impl Fn(&mut [u8], u64) -> Result<usize, E>,
    mut each: impl FnMut(&[u8], u64) -> Result<(), E>,
) -> Result<(), E> {
    let len = usize::try_from(slice.end - slice.start).unwrap_or(HASHED_BYTES);
    let mut buffer = vec![0; len.min(HASHED_BYTES)];
    // What one read brings is not asked for before it.
    if len > HASHED_BYTES {
        files::read_ahead(file, slice.start..slice.end.min(slice.start + AHEAD_BYTES));
    }
    for offset in slice.clone().step_by(HASHED_BYTES) {
        let ahead = offset + AHEAD_BYTES;
        files::read_ahead(file, ahead..slice.end.min(ahead + HASHED_BYTES as u64));
        let left = usize::try_from(slice.end - offset).unwrap_or(HASHED_BYTES);
        let piece = &mut buffer[..left.min(HASHED_BYTES)];
        let read_bytes = read(piece, offset)?;
        each(&piece[..read_bytes], offset)?;
        if read_bytes < piece.len() {
            break;
        }
    }
    Ok(())
}

/// What was read of a file from its beginning on, up to where it could not be read.
#[derive(Debug, Default)]
pub(crate) struct HashedPages {
    pub(crate) digest: PartDigest,
    /// Of its pages.
    pub(crate) digests: Vec<u64>,
}

impl HashedPages {
    /// Reads so many bytes of a file once, and passes each piece on.
    pub(crate) fn of<E: Send>(
        file: BorrowedFd<'_>,
        len: u64,
        each: impl Fn(&[u8], u64) -> Result<(), E> + Sync,
    ) -> Result<HashedPages, E> {
        let slices = in_slices(len, |slice| {
            let found = HashedPages::of_slice(file, slice.clone(), &each)?;
            Ok((slice, found))
        })?;
        let mut all = HashedPages::default();
        for (slice, found) in slices {
            if all.digest.len < slice.start {
                break;
            }
            all.digest.append(found.digest);
            all.digests.extend(found.digests);
        }
        Ok(all)
    }

    fn of_slice<E>(
        file: BorrowedFd<'_>,
        slice: Range<u64>,
        each: &impl Fn(&[u8], u64) -> Result<(), E>,
    ) -> Result<HashedPages, E> {
        let mut found = HashedPages::default();
        let read_there = |piece: &mut [u8], offset| Ok(read_full(file, piece, offset).unwrap_or(0));
        each_piece(file, slice, read_there, |read, offset| {
            each(read, offset)?;
            for block in read.chunks(BLOCK_BYTES) {
                let digest = block_digest(block);
                add_block(&mut found.digest, block, digest);
                found.digests.push(digest);
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// The CRC-32C of the file, which is so long and was read to its end, if it is what is listed.
    pub(crate) fn agrees(
        &self,
        entry: &FileEntry,
        (file, len): (BorrowedFd<'_>, u64),
        buffer: &mut [u8],
    ) -> Option<u32> {
        let is_whole = (len, self.digest.len) == (entry.size, entry.size);
        match entry.checksum.as_ref().filter(|_| is_whole)? {
            Checksum::Crc32c(listed) => {
                (*listed == self.digest.crc32c).then_some(self.digest.crc32c)
            }
            Checksum::Sha(_) => agreeing(file, entry, buffer),
        }
    }
}
