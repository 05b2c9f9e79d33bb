//! The last transaction that a recovery brought back, read from the WAL it replayed.
//! Never asks the server: after a promotion it has forgotten. Invariant: a time is that of the last
//! commit record before the end of recovery, or there is none.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use walmgr_protocol::names::{Lsn, SegmentName, WalFileName, WalSegmentSize};

use crate::files;
use crate::store::ArchiveReader;
use crate::wal::commit::{TIME_BYTES_MAX, commit_time_us, is_commit};
use crate::wal::history::History;
use crate::wal::record::{RecordInfo, read_record};
use crate::wal::scan::{ScanStep, Scanner};

/// How far back a commit is looked for.
const SEGMENTS_MAX: u64 = 64;
const PIECE_BYTES: usize = 256 << 10;

/// The WAL that a server has replayed: in the archive, or else in its `pg_wal`.
pub(super) struct Replayed<'a> {
    /// The archive.
    pub archive: &'a ArchiveReader,
    /// The server's own segments.
    pub pg_wal: PathBuf,
    /// The history of the timeline that the recovery began.
    pub history: &'a History,
    /// `wal_segment_size`.
    pub size: WalSegmentSize,
}

impl Replayed<'_> {
    /// When the last commit before `end` happened, in microseconds since 1970; `None` if the WAL
    /// that is at hand has none.
    pub(super) fn last_commit_us(&self, end: Lsn) -> io::Result<Option<i64>> {
        let segment_bytes = self.size.bytes();
        let last = end.0.saturating_sub(1) / segment_bytes;
        for number in (last.saturating_sub(SEGMENTS_MAX)..=last).rev() {
            let limit = Lsn(((number + 1) * segment_bytes).min(end.0));
            let Some(commit) = self.last_commit_in(number, limit, end)? else {
                continue;
            };
            let mut record = [0; TIME_BYTES_MAX];
            let read_at = |lsn: Lsn, piece: &mut [u8]| self.read_at(lsn, piece);
            let read_bytes = read_record(commit.lsn, self.size, &mut record, read_at)?;
            return Ok(commit_time_us(&record[..read_bytes]));
        }
        Ok(None)
    }

    /// The last commit that begins in a segment and before `limit`. The last record may go on in
    /// the next segment, so it is read to its end.
    fn last_commit_in(&self, number: u64, limit: Lsn, end: Lsn) -> io::Result<Option<RecordInfo>> {
        let start = Lsn(number * self.size.bytes());
        let mut scanner = Scanner::new(start, self.size);
        let mut commit = None;
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let position = scanner.position();
            if position >= end || (position >= limit && !scanner.in_record()) {
                return Ok(commit);
            }
            let read_bytes = self.read_at(position, &mut piece)?;
            if read_bytes == 0 {
                return Ok(commit);
            }
            let mut input = &piece[..read_bytes];
            loop {
                match scanner.advance(&mut input) {
                    ScanStep::Record(record) if record.lsn >= limit => return Ok(commit),
                    ScanStep::Record(record) if is_commit(&record) => commit = Some(record),
                    ScanStep::Record(_) => {}
                    ScanStep::NeedMore => break,
                    ScanStep::EndOfWal(_) | ScanStep::Invalid { .. } => return Ok(commit),
                }
            }
        }
    }

    /// Reads within one segment; 0 where there is none.
    fn read_at(&self, lsn: Lsn, buffer: &mut [u8]) -> io::Result<usize> {
        let offset_bytes = lsn.0 % self.size.bytes();
        let left = usize::try_from(self.size.bytes() - offset_bytes).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let stored = (self.archive).find(WalFileName::Segment(self.replayed(lsn)));
        if let Some(stored) = stored.map_err(io::Error::other)? {
            return stored.read_at(&mut buffer[..wanted], offset_bytes);
        }
        match self.open_own(lsn)? {
            Some(file) => file.read_at(&mut buffer[..wanted], offset_bytes),
            None => Ok(0),
        }
    }

    /// The segment that a byte was replayed from.
    fn replayed(&self, lsn: Lsn) -> SegmentName {
        SegmentName::containing(self.history.timeline_at(lsn), lsn, self.size)
    }

    /// The segment in `pg_wal` that holds this byte. If the old timeline's last segment is not there, the new
    /// timeline's first segment is taken, to which the server copied the records.
    fn open_own(&self, lsn: Lsn) -> io::Result<Option<File>> {
        let newest = SegmentName::containing(self.history.timeline(), lsn, self.size);
        for name in [self.replayed(lsn), newest] {
            match files::open_at_once(self.pg_wal.join(name.to_string())) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => return other.map(Some),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{BINDING, new_archive, real, scratch_folder};
    use crate::wal::page::PAGE_BYTES;
    use crate::wal::record::{RM_XLOG, XLOG_NOOP};
    use crate::wal::writer::WalWriter;
    use walmgr_protocol::names::TimelineId;

    const RM_XACT: u8 = 1;
    const SINCE_2000_US: i64 = 123_456_789;
    const EXPECTED_US: i64 = 946_684_800_000_000 + SINCE_2000_US;

    /// A commit whose time lies half in one segment and half in the next.
    #[test]
    fn a_commit_across_two_segments_has_its_time() {
        let timeline = TimelineId::new(1).unwrap();
        let segment = SegmentName::from_number(timeline, 3, BINDING.segment_size);
        let segment_bytes = BINDING.segment_size.bytes();
        let mut writer = WalWriter::new(segment, BINDING.segment_size, BINDING.system_id, 15);
        let end = (segment.start(BINDING.segment_size).unwrap().0) + segment_bytes;
        while writer.position().0 + PAGE_BYTES / 2 < end {
            writer.record(RM_XLOG, XLOG_NOOP, &[0; 1_000]);
        }
        let room = usize::try_from(end - writer.position().0).unwrap();
        writer.record(RM_XLOG, XLOG_NOOP, &vec![0; room - 24 - 32]);
        let body = [&[255, 8][..], &SINCE_2000_US.to_le_bytes()].concat();
        let commit = writer.record(RM_XACT, 0, &body);
        assert!(commit.lsn.0 < end && commit.end.0 > end);
        writer.record(RM_XLOG, XLOG_NOOP, &[0; 100]);
        let behind = writer.position();
        writer.zeros_to_segment_end();

        let folder = scratch_folder();
        let places = new_archive(folder.path());
        let archive = ArchiveReader::open(&places.completed_wals, real()).unwrap();
        let halves = writer
            .bytes()
            .chunks(usize::try_from(segment_bytes).unwrap());
        for (name, half) in [segment, segment.next(BINDING.segment_size).unwrap()]
            .iter()
            .zip(halves)
        {
            std::fs::write(folder.path().join(name.to_string()), half).unwrap();
        }
        let text = format!("1\t{behind}\tno recovery target specified\n");
        let history = History::parse(TimelineId::new(2).unwrap(), text.as_bytes()).unwrap();
        let replayed = Replayed {
            archive: &archive,
            pg_wal: folder.path().to_path_buf(),
            history: &history,
            size: BINDING.segment_size,
        };
        for end in [behind, commit.end] {
            assert_eq!(replayed.last_commit_us(end).unwrap(), Some(EXPECTED_US));
        }
        assert_eq!(replayed.last_commit_us(commit.lsn).unwrap(), None);
    }
}
