//! One tar stream of a backup, taken apart into files of the incoming set as it arrives.
//! Never follows a link and never opens a path of more than one component. Invariant: nothing
//! outside the set's directory is touched, whatever the stream holds.

use std::sync::Arc;

use super::error::SetError;
use super::file_writer::{FileWriter, SealedFile};
use super::shared::SetShared;
use crate::tar::{EntryKind, TarEntry, TarReader, TarStep};

/// The writer for one stream. Dropping it in the middle of a file keeps what has arrived, so
/// that another stream can go on from there.
pub struct StreamWriter {
    shared: Arc<SetShared>,
    tar: TarReader,
    files: FileWriter,
}

impl StreamWriter {
    pub(super) fn new(shared: Arc<SetShared>) -> Result<Self, SetError> {
        Ok(StreamWriter {
            files: FileWriter::new(Arc::clone(&shared))?,
            shared,
            tar: TarReader::default(),
        })
    }

    /// Takes the next bytes of the stream and returns the files that became complete. After an
    /// error the whole set is given up.
    pub fn write(&mut self, bytes: &[u8]) -> Result<Vec<SealedFile>, SetError> {
        self.shared.inventory().check()?;
        let result = self.take(bytes);
        if let Err(error) = &result {
            self.shared.inventory().give_up(error);
        }
        result
    }

    /// Ends the stream; an error when that is not its end. A stream whose connection broke is
    /// dropped instead.
    pub fn finish(self) -> Result<(), SetError> {
        self.shared.inventory().check()?;
        let result = self.tar.finish().map_err(SetError::from);
        if let Err(error) = &result {
            self.shared.inventory().give_up(error);
        }
        result
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<Vec<SealedFile>, SetError> {
        let mut sealed = Vec::new();
        loop {
            match self.tar.next(&mut bytes)? {
                TarStep::Entry(entry) => self.begin(entry)?,
                TarStep::Data(data) => self.files.append(data)?,
                TarStep::FileEnd => sealed.extend(self.files.end()?),
                TarStep::NeedMore => return Ok(sealed),
            }
        }
    }

    fn begin(&mut self, entry: TarEntry) -> Result<(), SetError> {
        let TarEntry { path, kind } = entry;
        match kind {
            EntryKind::Directory => self.files.declare(&path),
            EntryKind::File { size, offset } => self.files.begin(path, size, offset),
            EntryKind::Patch { len, .. } => self.files.begin_patch(path, len),
        }
    }
}
