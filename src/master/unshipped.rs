//! The first commit behind where the standby's WAL ends, looked for in `pg_wal` again and again.
//! Never reads what it has read, but for an end that may have grown. Invariant: nothing counts as missing nowhere
//! unless the WAL was seen to its end.

use std::io;
use std::time::{Duration, Instant};

use walmgr_protocol::names::{Lsn, SegmentName, WalFileName};

use crate::master::lag::{PIECE_BYTES, commit_time_at};
use crate::master::tail::WalFiles;
use crate::wal::commit::is_commit;
use crate::wal::page::{LONG_HEADER_BYTES, PAGE_BYTES};
use crate::wal::scan::{ScanStep, Scanner};

/// How long one look may take: a load of data that commits late is looked through in several.
const LOOK_TIME: Duration = Duration::from_millis(30);

/// What is missing on the standby, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unshipped {
    /// No commit.
    Nothing,
    /// The first commit was made then, in microseconds since 1970; or an earlier one, where WAL before it is gone.
    Commit(i64),
    /// The look has not come to the end of WAL, or cannot.
    Unseen,
}

/// One place where the standby's WAL ends, and what was seen behind it.
pub(super) struct UnshippedScan {
    files: WalFiles,
    held: Lsn,
    /// Behind the last whole record.
    base: Scanner,
    /// In the middle of a record, where a look ended for want of time.
    ahead: Option<Scanner>,
    commit_us: Option<i64>,
    buffer: Vec<u8>,
}

/// Why a look ended.
enum ScanEnd {
    Commit(Lsn),
    /// Up to here the WAL was seen; behind it nothing can be read.
    End(Lsn),
    NoFile(Lsn),
    NoTime,
}

impl UnshippedScan {
    /// Begins at the end of the last whole record that the standby has, or at the beginning of a segment.
    pub(super) fn from(files: &WalFiles, held: Lsn) -> UnshippedScan {
        UnshippedScan {
            base: files.scanner(held),
            files: files.clone(),
            held,
            ahead: None,
            commit_us: None,
            buffer: Vec::new(),
        }
    }

    /// Whether it is about this place.
    pub(super) fn is_from(&self, files: &WalFiles, held: Lsn) -> bool {
        self.held == held && self.files.timeline() == files.timeline()
    }

    /// Looks on, once more where nothing was found. The server has flushed so far at least, as far as is known.
    pub(super) fn look(&mut self, flushed: Lsn) -> io::Result<Unshipped> {
        if let Some(time_us) = self.commit_us {
            return Ok(Unshipped::Commit(time_us));
        }
        let until = Instant::now() + LOOK_TIME;
        let mut stopped_at = None;
        loop {
            match self.walk(until)? {
                ScanEnd::NoTime => return Ok(Unshipped::Unseen),
                ScanEnd::Commit(lsn) => {
                    self.commit_us = commit_time_at(&self.files, lsn)?;
                    return Ok(self.commit_us.map_or(Unshipped::Unseen, Unshipped::Commit));
                }
                ScanEnd::NoFile(at) => match self.first_written(self.files.containing(at))? {
                    Some(later) => self.go_on_in(later),
                    None => return Ok(seen_to(at, flushed)),
                },
                ScanEnd::End(at) => {
                    let next = self.files.next(self.files.containing(self.base.position()));
                    let next = next.filter(|next| self.is_written(*next));
                    match next {
                        // It was written on while it was looked at, or a switch ended it before this place.
                        Some(_) if stopped_at != Some(at) => stopped_at = Some(at),
                        Some(next) => self.go_on_in(next),
                        None => return Ok(seen_to(at, flushed)),
                    }
                }
            }
        }
    }

    fn go_on_in(&mut self, segment: SegmentName) {
        self.ahead = None;
        self.base = self.files.scanner(self.files.start(segment));
    }

    /// Walks to the first commit, or as far as there is anything.
    fn walk(&mut self, until: Instant) -> io::Result<ScanEnd> {
        let mut scanner = self.ahead.take().unwrap_or_else(|| self.base.clone());
        // Mostly there is little, so the rest of the page comes first.
        let mut piece_bytes = PAGE_BYTES - scanner.position().0 % PAGE_BYTES;
        loop {
            let at = scanner.position();
            self.buffer.clear();
            self.files.read(at, piece_bytes, &mut self.buffer)?;
            if self.buffer.is_empty() {
                return Ok(ScanEnd::NoFile(at));
            }
            if let Some(end) = self.advance(&mut scanner) {
                return Ok(end);
            }
            if Instant::now() > until {
                self.ahead = Some(scanner);
                return Ok(ScanEnd::NoTime);
            }
            piece_bytes = (4 * piece_bytes).min(PIECE_BYTES);
        }
    }

    /// Through the bytes read.
    fn advance(&mut self, scanner: &mut Scanner) -> Option<ScanEnd> {
        let mut rest = &self.buffer[..];
        loop {
            match scanner.advance(&mut rest) {
                ScanStep::NeedMore => return None,
                ScanStep::Record(record) if is_commit(&record) => {
                    return Some(ScanEnd::Commit(record.lsn));
                }
                ScanStep::Record(record) if record.is_switch() => {
                    // Nothing behind it means anything.
                    *scanner = self.files.scanner(record.end).following(record.lsn);
                    self.base = scanner.clone();
                    return None;
                }
                ScanStep::Record(_) => self.base = scanner.clone(),
                ScanStep::EndOfWal(_) | ScanStep::Invalid { .. } => {
                    return Some(ScanEnd::End(scanner.position()));
                }
            }
        }
    }

    /// The first segment behind `absent` that the server has written to. If there is one, `absent` was removed;
    /// otherwise it was not made yet.
    fn first_written(&self, absent: SegmentName) -> io::Result<Option<SegmentName>> {
        let mut first: Option<SegmentName> = None;
        for entry in std::fs::read_dir(self.files.folder())? {
            let name = entry?.file_name();
            let name = name.to_str().and_then(|name| name.parse().ok());
            let Some(WalFileName::Segment(segment)) = name else {
                continue;
            };
            let is_later = segment.timeline() == absent.timeline() && segment > absent;
            if is_later && first.is_none_or(|first| segment < first) {
                first = Some(segment);
            }
        }
        Ok(first.filter(|first| self.is_written(*first)))
    }

    /// Whether the file has WAL of its own: one that was recycled for later begins with an old page.
    fn is_written(&self, segment: SegmentName) -> bool {
        let start = self.files.start(segment);
        let mut first = Vec::new();
        let read = self.files.read(start, LONG_HEADER_BYTES as u64, &mut first);
        let mut rest = &first[..];
        read.is_ok()
            && !rest.is_empty()
            && matches!(
                self.files.scanner(start).advance(&mut rest),
                ScanStep::NeedMore
            )
    }
}

/// Nothing is missing where all was seen that the server calls written.
fn seen_to(at: Lsn, flushed: Lsn) -> Unshipped {
    match at >= flushed {
        true => Unshipped::Nothing,
        false => Unshipped::Unseen,
    }
}

#[cfg(test)]
mod tests {
    use walmgr_protocol::message::ClusterIdentity;
    use walmgr_protocol::names::{SystemId, TimelineId, WalSegmentSize};

    use super::*;
    use crate::wal::writer::WalWriter;

    const SIZE: WalSegmentSize = WalSegmentSize::new(1 << 20).unwrap();
    const SYSTEM: SystemId = SystemId(42);

    /// 2000-01-01 in microseconds since 1970, where PostgreSQL's clock begins.
    const EPOCH_US: i64 = 946_684_800_000_000;

    fn segment(number: u64) -> SegmentName {
        SegmentName::from_number(TimelineId::FIRST, number, SIZE)
    }

    fn files(folder: &std::path::Path) -> WalFiles {
        let cluster = ClusterIdentity {
            system_id: SYSTEM,
            postgres_major: 15,
            segment_size: SIZE,
        };
        WalFiles::new(folder.to_path_buf(), cluster, TimelineId::FIRST)
    }

    fn commit(writer: &mut WalWriter, time_us: i64) -> Lsn {
        let mut body = vec![255, 8];
        body.extend(time_us.to_le_bytes());
        writer.record(1, 0, &body).end
    }

    fn write(folder: &std::path::Path, name: SegmentName, writer: &WalWriter) {
        let mut bytes = writer.bytes().to_vec();
        bytes.resize(1 << 20, 0);
        std::fs::write(folder.join(name.to_string()), bytes).unwrap();
    }

    #[test]
    fn fault_190_the_first_commit_behind_what_is_held_is_found_as_it_comes() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, name) = (folder.path(), segment(3));
        let mut writer = WalWriter::new(name, SIZE, SYSTEM, 15);
        let held = commit(&mut writer, 1);
        write(folder, name, &writer);
        let mut scan = UnshippedScan::from(&files(folder), held);
        assert_eq!(scan.look(held).unwrap(), Unshipped::Nothing);
        // The server says that there is more than can be seen.
        assert_eq!(scan.look(Lsn(held.0 + 80)).unwrap(), Unshipped::Unseen);
        writer.record(10, 0, &[7; 9_000]);
        write(folder, name, &writer);
        assert_eq!(scan.look(Lsn(0)).unwrap(), Unshipped::Nothing);
        commit(&mut writer, 5);
        commit(&mut writer, 9);
        write(folder, name, &writer);
        let found = Unshipped::Commit(EPOCH_US + 5);
        assert_eq!(scan.look(Lsn(0)).unwrap(), found);
        // Known for as long as no more is held, whatever becomes of the file.
        std::fs::remove_file(folder.join(name.to_string())).unwrap();
        assert_eq!(scan.look(Lsn(0)).unwrap(), found);
    }

    #[test]
    fn fault_190_wal_that_is_gone_hides_no_commit_behind_it() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let mut writer = WalWriter::new(segment(5), SIZE, SYSTEM, 15);
        commit(&mut writer, 7);
        write(folder, segment(5), &writer);
        let held = files(folder).start(segment(3));
        let mut scan = UnshippedScan::from(&files(folder), held);
        let found = scan.look(Lsn(0)).unwrap();
        assert_eq!(found, Unshipped::Commit(EPOCH_US + 7));
        // A file that was recycled for later has WAL of before, and is none.
        let behind = files(folder).start(segment(6));
        write(folder, segment(7), &writer);
        let mut scan = UnshippedScan::from(&files(folder), behind);
        assert_eq!(scan.look(behind).unwrap(), Unshipped::Nothing);
    }

    #[test]
    fn fault_190_a_segment_that_ended_early_hides_no_commit_behind_it() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let mut writer = WalWriter::new(segment(3), SIZE, SYSTEM, 15);
        let held = commit(&mut writer, 1);
        write(folder, segment(3), &writer);
        let mut next = WalWriter::new(segment(4), SIZE, SYSTEM, 15);
        commit(&mut next, 8);
        write(folder, segment(4), &next);
        let mut scan = UnshippedScan::from(&files(folder), held);
        assert_eq!(scan.look(Lsn(0)).unwrap(), Unshipped::Commit(EPOCH_US + 8));
    }
}
