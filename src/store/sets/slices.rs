//! A file of a set that is read once, by several threads where its checksum allows that.
//! Never changes a set. Invariant: what was handed on counts only if the whole is what the manifest lists, which is told
//! behind the last of it.

use std::ffi::OsStr;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use walmgr_protocol::names::RelativePath;

use super::error::SetError;
use super::list::HeldSet;
use crate::files::slices::{PartDigest, SLICE_BYTES, in_slices};
use crate::pg::hashed_pages::each_piece;
use crate::pg::manifest::{Checksum, FileEntry, ListedDigest};
use crate::pg::old_files::BLOCK_BYTES;

/// What was made of a slice so far, and the checksum of what was read of it.
pub(super) type Slice<'a, T> = (&'a mut T, &'a mut PartDigest);

/// Takes a piece that lies at this offset.
type EachPiece<'a> = &'a mut dyn FnMut(&[u8], u64) -> Result<(), SetError>;

impl HeldSet {
    /// Reads a file slice by slice. `each` gets each piece with its offset, the slice's result so far and the slice's
    /// checksum, to which `each` adds the piece. Returns the file's length and CRC-32C, and the slices' results. Fails
    /// if the file is not as the manifest lists it.
    pub(super) fn read_slices<T: Default + Send>(
        &self,
        file: BorrowedFd<'_>,
        path: &RelativePath,
        entry: Option<&FileEntry>,
        each: impl Fn(Slice<'_, T>, &[u8], u64) -> Result<(), SetError> + Sync,
    ) -> Result<(PartDigest, Vec<T>), SetError> {
        let shown = Path::new(OsStr::from_bytes(path.as_bytes()));
        let stat = self.sets.parent.disk.stat(file);
        let len = stat
            .map_err(|error| self.failure("examine", shown, error))?
            .len;
        let checksum = entry.and_then(|entry| entry.checksum.as_ref());
        let (digest, made) = match checksum {
            // One that can only be computed from the beginning on.
            Some(Checksum::Sha(_)) => {
                let (mut digest, mut made) = (ListedDigest::begin(checksum), Vec::new());
                for number in 0..len.div_ceil(SLICE_BYTES) {
                    let start = number * SLICE_BYTES;
                    let (mut of_slice, slice) = (T::default(), start..len.min(start + SLICE_BYTES));
                    let mut found = PartDigest::default();
                    self.read_slice((file, shown), slice, &mut |piece, offset| {
                        digest.update(piece);
                        each((&mut of_slice, &mut found), piece, offset)
                    })?;
                    made.push(of_slice);
                }
                (digest, made)
            }
            _ => {
                let slices = in_slices(len, |slice| {
                    let (mut found, mut of_slice) = (PartDigest::default(), T::default());
                    self.read_slice((file, shown), slice, &mut |piece, offset| {
                        each((&mut of_slice, &mut found), piece, offset)
                    })?;
                    Ok::<_, SetError>((found, of_slice))
                })?;
                let mut whole = PartDigest::default();
                let made = slices.into_iter().map(|(found, of_slice)| {
                    whole.append(found);
                    of_slice
                });
                let made = made.collect();
                (ListedDigest::of(whole), made)
            }
        };
        let (len, crc32c) = (digest.len(), digest.crc32c());
        check(digest, entry, path)?;
        Ok((PartDigest { len, crc32c }, made))
    }

    fn read_slice(
        &self,
        (file, shown): (BorrowedFd<'_>, &Path),
        slice: Range<u64>,
        each: EachPiece<'_>,
    ) -> Result<(), SetError> {
        let read = |piece: &mut [u8], offset| self.read_piece(file, piece, offset, shown);
        each_piece(file, slice, read, each)
    }
}

/// The digests of the pages from this offset on.
pub(super) fn from_offset(digests: &[u64], offset: u64) -> &[u64] {
    let page = usize::try_from(offset / BLOCK_BYTES as u64).unwrap_or(usize::MAX);
    digests.get(page..).unwrap_or_default()
}

/// Refuses a file of the set that is not what is listed.
fn check(
    digest: ListedDigest,
    entry: Option<&FileEntry>,
    path: &RelativePath,
) -> Result<(), SetError> {
    match entry.map(|entry| digest.agrees(entry)) {
        Some(Some(false)) => Err(SetError::Manifest {
            path: path.clone(),
            why: "its length or checksum is not the manifest's".to_owned(),
        }),
        _ => Ok(()),
    }
}
