//! What the records change that were shipped of a segment in progress.
//! Never proves where they end: whoever asks knows how far he needs them. Invariant: the changes are those of the
//! whole records up to the end that is returned with them, and maybe of the one behind.

use std::os::fd::AsFd;

use walmgr_protocol::names::{Lsn, SegmentName};

use super::freeze::PartialWals;
use super::records::{scanner_at, start_of};
use crate::store::error::StoreError;
use crate::wal::scan::ScanStep;
use crate::wal::segment_map::SegmentMap;

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
        let start = start_of(segment, &self.binding);
        let mut scanner = scanner_at(segment, start, &self.binding).noting_changes();
        let segment_end = Lsn(start.0.saturating_add(self.binding.segment_size.bytes()));
        let mut is_switched = false;
        (self.folder).read_through(file.as_fd(), &name, |piece| {
            let mut rest = piece;
            loop {
                match scanner.advance(&mut rest) {
                    ScanStep::NeedMore => return true,
                    ScanStep::Record(record) if record.is_switch() => {
                        is_switched = true;
                        return false;
                    }
                    ScanStep::Record(_) => {}
                    ScanStep::EndOfWal(_) | ScanStep::Invalid { .. } => return false,
                }
            }
        })?;
        let map = SegmentMap::of(&scanner).unwrap_or_default();
        // A record that runs on into the next segment has its references here, or the map says where it begins.
        let is_whole = is_switched || scanner.position() >= segment_end;
        let end = match is_whole {
            true => segment_end,
            false => scanner.valid_end(),
        };
        Ok(Some((map, end)))
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
