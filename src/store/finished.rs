//! The one way to the bytes of a finished file, for everybody who reads one.
//! Never changes a file. Invariant: whoever reads through it gets the bytes that the master offered, or an error.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::error::StoreError;
use super::folder::Folder;

/// A finished file, or a copy that is kept beside one, open for reading.
pub(super) struct FinishedFile {
    text: String,
    file: OwnedFd,
}

impl FinishedFile {
    /// What lies on the disk, to sync it or to drop the kernel's copy of it; its bytes are nobody's to read.
    pub(super) fn handle(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Folder {
    /// Opens the finished file of this name, or says `None` where there is none.
    pub(super) fn open_finished(&self, text: &str) -> Result<Option<FinishedFile>, StoreError> {
        let file = self.open_file(text)?;
        Ok(file.map(|file| FinishedFile {
            text: text.to_owned(),
            file,
        }))
    }

    /// Hands a finished file to `each` from its first byte on, in large pieces, to its end or until `each` has seen
    /// enough.
    pub(super) fn read_finished(
        &self,
        file: &FinishedFile,
        each: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), StoreError> {
        self.read_on(file.handle(), &file.text, 0, each)
    }

    /// Hands a finished file to `each` from an offset on, until `each` has seen enough: for those who want only some
    /// of it.
    pub(super) fn read_finished_pages(
        &self,
        file: &FinishedFile,
        from_bytes: u64,
        each: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), StoreError> {
        self.read_pages(file.handle(), &file.text, from_bytes, each)
    }

    /// Fills as much of a buffer from an offset on as there is; 0 at the end.
    pub(super) fn read_finished_at(
        &self,
        file: &FinishedFile,
        buffer: &mut [u8],
        from_bytes: u64,
    ) -> Result<usize, StoreError> {
        let mut filled = 0;
        self.read_finished_pages(file, from_bytes, |piece| {
            let count = piece.len().min(buffer.len() - filled);
            buffer[filled..filled + count].copy_from_slice(&piece[..count]);
            filled += count;
            filled < buffer.len()
        })?;
        Ok(filled)
    }
}
