//! A new file that begins as another one is: shared by the file system where it can, else copied.
//! Never makes a second name for a file, and never writes the one it takes from. Invariant: what is written into the new
//! file later changes nothing in the other.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use super::disk::Disk;
use crate::files;
use crate::files::slices::in_slices;

/// What is read and written at once.
const PIECE_BYTES: usize = 1 << 20;

/// How far ahead the disk is asked to read.
const AHEAD_BYTES: u64 = 4 << 20;

/// How much is written before its write-back is started, so that the one sync at the end finds little left to do.
const WRITEBACK_BYTES: u64 = 8 << 20;

/// Zeros are recognised in pieces of this size and left out: a hole reads the same.
const HOLE_BYTES: usize = 64 << 10;

static ZEROS: [u8; HOLE_BYTES] = [0; HOLE_BYTES];

/// How a file took over the content of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TakenContent {
    /// The two share their blocks until one of them is written.
    Shared,
    /// It has so many bytes of its own.
    Copied(u64),
}

/// Gives an empty file the content and length of another. Its blocks can then be written over; nothing is synced.
pub(crate) fn take_over(
    disk: &dyn Disk,
    from: BorrowedFd<'_>,
    into: BorrowedFd<'_>,
) -> io::Result<TakenContent> {
    // Whatever keeps it from sharing is found again, or not, when the content is written.
    if disk.share_content(from, into).is_ok() {
        return Ok(TakenContent::Shared);
    }
    let len = disk.stat(from)?.len;
    // Its length first: the last of it may be a hole, and nobody waits for another's slice.
    disk.set_len(into, len)?;
    let stored = in_slices(len, |slice| copy_slice(disk, (from, into), slice))?;
    Ok(TakenContent::Copied(stored.into_iter().sum()))
}

/// Copies a slice; how much of it is no hole.
fn copy_slice(
    disk: &dyn Disk,
    (from, into): (BorrowedFd<'_>, BorrowedFd<'_>),
    slice: Range<u64>,
) -> io::Result<u64> {
    let mut buffer = vec![0; PIECE_BYTES];
    let (mut offset, mut started, mut stored) = (slice.start, slice.start, 0);
    let mut ahead_end = slice.start;
    while offset < slice.end {
        let until = slice.end.min(offset + AHEAD_BYTES);
        files::read_ahead(from, ahead_end..until);
        ahead_end = until;
        let left = usize::try_from(slice.end - offset).unwrap_or(PIECE_BYTES);
        let read_bytes = disk.read(from, &mut buffer[..left.min(PIECE_BYTES)], offset)?;
        if read_bytes == 0 {
            break;
        }
        for piece in buffer[..read_bytes].chunks(HOLE_BYTES) {
            if piece != &ZEROS[..piece.len()] {
                disk.write_all(into, piece, offset)?;
                stored += piece.len() as u64;
            }
            offset += piece.len() as u64;
        }
        if offset - started >= WRITEBACK_BYTES {
            // Advice only: the sync at the end is what counts, and it reports every failure.
            let _ = disk.start_writeback(into, started, offset - started);
            started = offset;
        }
    }
    Ok(stored)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;
    use crate::store::testing::{real, scratch_folder};

    #[test]
    fn fault_206_a_file_that_took_another_over_shares_no_write_with_it() {
        let folder = scratch_folder();
        let at = |name: &str| folder.path().join(name);
        let mut content = vec![7; 3 * HOLE_BYTES + 5];
        content[HOLE_BYTES..2 * HOLE_BYTES].fill(0);
        content.resize(4 << 20, 0);
        std::fs::write(at("old"), &content).unwrap();
        let old = File::open(at("old")).unwrap();
        let new = File::create_new(at("new")).unwrap();
        let disk = real();
        take_over(&*disk, old.as_fd(), new.as_fd()).unwrap();
        assert!(std::fs::read(at("new")).unwrap() == content);
        disk.write_all(new.as_fd(), &[9; 100], 50).unwrap();
        assert!(std::fs::read(at("old")).unwrap() == content);
        content[50..150].fill(9);
        assert!(std::fs::read(at("new")).unwrap() == content);
    }
}
