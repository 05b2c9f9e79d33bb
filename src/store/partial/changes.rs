//! What the records change that were shipped of a segment in progress.
//! Never proves where they end: whoever asks knows how far he needs them. Invariant: the changes are those of the
//! whole records up to the end that is returned with them, and maybe of the one behind.

use std::os::fd::AsFd;

use walmgr_protocol::names::{Lsn, SegmentName};

use super::freeze::PartialWals;
use super::records::start_of;
use crate::store::error::StoreError;
use crate::wal::segment_map::{MapReader, SegmentMap};

impl PartialWals {
    /// What the records of a segment in progress change, and up to where that is all; `None` where there is none.
    pub(in crate::store) fn map(
        &self,
        segment: SegmentName,
    ) -> Result<Option<(SegmentMap, Lsn)>, StoreError> {
        let name = segment.to_string();
        let Some(file) = self.folder.open_file(&name)? else {
            return Ok(None);
        };
        let mut reader = MapReader::new(segment, &self.binding.expected());
        (self.folder).read_through(file.as_fd(), &name, |piece| reader.feed(piece))?;
        Ok(Some(reader.finish()))
    }

    /// Reads from a segment in progress; 0 where there is none.
    pub(in crate::store) fn read_at(
        &self,
        segment: SegmentName,
        lsn: Lsn,
        piece: &mut [u8],
    ) -> Result<usize, StoreError> {
        let name = segment.to_string();
        let Some(file) = self.folder.open_file(&name)? else {
            return Ok(0);
        };
        let offset_bytes = lsn.0.saturating_sub(start_of(segment, &self.binding).0);
        let read = self.folder.disk.read(file.as_fd(), piece, offset_bytes);
        read.map_err(|error| self.folder.failure("read", &name, error))
    }
}
