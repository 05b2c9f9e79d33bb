//! The end of the master's WAL in the files of `pg_wal`: which records are whole, and their bytes.
//! Never waits and never writes. Invariant: nothing behind the last whole and verified record, nor
//! behind the bound that the caller states, is ever counted.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use walmgr_protocol::message::ClusterIdentity;
use walmgr_protocol::names::{Lsn, SegmentName, TimelineId, WalSegmentSize};

use crate::files;
use crate::wal::page::PAGE_BYTES;
use crate::wal::record::ALIGNMENT;
use crate::wal::scan::{ScanStep, Scanner, Why};

/// Bytes read at once.
const READ_BYTES: usize = 256 << 10;

/// The segments of one timeline in `pg_wal`.
#[derive(Debug, Clone)]
pub(crate) struct WalFiles {
    folder: PathBuf,
    cluster: ClusterIdentity,
    timeline: TimelineId,
}

impl WalFiles {
    /// The files of this cluster and timeline in this folder.
    pub(crate) const fn new(
        folder: PathBuf,
        cluster: ClusterIdentity,
        timeline: TimelineId,
    ) -> Self {
        WalFiles {
            folder,
            cluster,
            timeline,
        }
    }

    /// The timeline.
    pub(crate) const fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// The cluster.
    pub(crate) const fn cluster(&self) -> &ClusterIdentity {
        &self.cluster
    }

    /// `wal_segment_size`.
    pub(crate) const fn segment_size(&self) -> WalSegmentSize {
        self.cluster.segment_size
    }

    /// Bytes of a segment.
    pub(crate) const fn segment_bytes(&self) -> u64 {
        self.cluster.segment_size.bytes()
    }

    /// The segment that holds the byte at `lsn`.
    pub(crate) fn containing(&self, lsn: Lsn) -> SegmentName {
        SegmentName::containing(self.timeline, lsn, self.cluster.segment_size)
    }

    /// Where a segment begins.
    pub(crate) fn start(&self, segment: SegmentName) -> Lsn {
        segment.start(self.cluster.segment_size).unwrap_or_default()
    }

    /// The segment behind this one.
    pub(crate) fn next(&self, segment: SegmentName) -> Option<SegmentName> {
        segment.next(self.cluster.segment_size)
    }

    /// The segment before this one.
    pub(crate) fn previous(&self, segment: SegmentName) -> Option<SegmentName> {
        let number = segment.number(self.cluster.segment_size)?.checked_sub(1)?;
        let size = self.cluster.segment_size;
        (number > 0).then(|| SegmentName::from_number(self.timeline, number, size))
    }

    /// Whether there is a file of this name; it may hold another segment's bytes from before it
    /// was recycled.
    pub(crate) fn exists(&self, segment: SegmentName) -> bool {
        self.folder.join(segment.to_string()).exists()
    }

    /// Whether the server waits for this segment to be archived.
    pub(crate) fn waits_for_archiver(&self, segment: SegmentName) -> bool {
        let mark = format!("archive_status/{segment}.ready");
        self.folder.join(mark).exists()
    }

    /// Where `pg_wal` is.
    pub(crate) fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    /// A scanner for records from `lsn` on, the beginning of a page or of a record.
    pub(crate) fn scanner(&self, lsn: Lsn) -> Scanner {
        let scanner = Scanner::new(lsn, self.cluster.segment_size)
            .of_cluster(self.cluster.system_id)
            .up_to_timeline(self.timeline);
        match u8::try_from(self.cluster.postgres_major) {
            Ok(major) => scanner.of_major(major),
            Err(_) => scanner,
        }
    }

    /// Appends at most `most` bytes from `lsn` on to `buffer`, none beyond the end of the segment
    /// that holds them; nothing where there is no such file.
    pub(crate) fn read(&self, lsn: Lsn, most: u64, buffer: &mut Vec<u8>) -> io::Result<()> {
        let segment = self.containing(lsn);
        let offset = lsn.0 - self.start(segment).0;
        let most = most.min(self.segment_bytes() - offset);
        // By its name each time: a file that was recycled has another one.
        let file = match files::open_at_once(self.folder.join(segment.to_string())) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let begin = buffer.len();
        buffer.resize(begin + usize::try_from(most).unwrap_or(READ_BYTES), 0);
        let mut filled = begin;
        while filled < buffer.len() {
            let at = offset + (filled - begin) as u64;
            match file.read_at(&mut buffer[filled..], at)? {
                0 => break,
                read_bytes => filled += read_bytes,
            }
        }
        buffer.truncate(filled);
        Ok(())
    }

    /// Shows the bytes of a segment from its beginning up to `bytes` to `each`.
    pub(crate) fn read_through(
        &self,
        segment: SegmentName,
        bytes: u64,
        mut each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let (start, mut buffer) = (self.start(segment), Vec::new());
        let mut offset = 0;
        while offset < bytes {
            buffer.clear();
            let most = (bytes - offset).min(READ_BYTES as u64);
            self.read(Lsn(start.0 + offset), most, &mut buffer)?;
            if buffer.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            each(&buffer);
            offset += buffer.len() as u64;
        }
        Ok(())
    }
}

/// Why a look ahead ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TailEnd {
    /// At the bound.
    Bound,
    /// Far enough; there may be more.
    Enough,
    /// This segment is not there.
    NoFile(SegmentName),
    /// Nothing was written behind the last record.
    End,
    /// What is there is no record; a server that is writing leaves that at its end too.
    Invalid(Lsn, Why),
}

/// The records from a segment's beginning on, as far as they were looked at.
#[derive(Debug)]
pub(crate) struct Records {
    files: WalFiles,
    /// Behind the last whole record.
    base: Scanner,
    end: Lsn,
    /// Up to where the bytes belong to records, the last one whole or not.
    seen: Lsn,
    /// Segments that a switch ended early: where they end, and where their records do.
    switches: Vec<(Lsn, Lsn)>,
    buffer: Vec<u8>,
}

impl Records {
    /// Begins with the first byte of this segment.
    pub(crate) fn from(files: &WalFiles, first: SegmentName) -> Self {
        let start = files.start(first);
        Records {
            files: files.clone(),
            base: files.scanner(start),
            end: start,
            seen: start,
            switches: Vec::new(),
            buffer: Vec::new(),
        }
    }

    /// The end of the last whole record found.
    pub(crate) const fn end(&self) -> Lsn {
        self.end
    }

    /// Whether the segment that ends at `segment_end` was seen to its last byte, though its last
    /// record may go on in the next one.
    pub(crate) fn reach_end_of(&self, segment_end: Lsn) -> bool {
        self.seen >= segment_end
    }

    /// Where the bytes end that belong to records of the segment that ends at `segment_end`.
    pub(crate) fn data_end(&self, segment_end: Lsn) -> Lsn {
        let switch = (self.switches.iter()).find(|(end, _)| *end == segment_end);
        switch.map_or(segment_end, |(_, data_end)| *data_end)
    }

    /// Forgets about segments that end at `lsn` or before.
    pub(crate) fn forget(&mut self, lsn: Lsn) {
        self.switches.retain(|(end, _)| *end > lsn);
    }

    /// Looks at what was written since, up to `bound`, and no further than `enough`.
    pub(crate) fn look_ahead(&mut self, bound: Lsn, enough: Lsn) -> io::Result<TailEnd> {
        let mut scanner = self.base.clone();
        // Mostly there is little, so the rest of the page comes first.
        let mut piece_bytes = PAGE_BYTES - scanner.position().0 % PAGE_BYTES;
        loop {
            let at = scanner.position();
            if self.end >= enough {
                return Ok(TailEnd::Enough);
            }
            if at >= bound {
                return Ok(TailEnd::Bound);
            }
            self.buffer.clear();
            self.files
                .read(at, piece_bytes.min(bound.0 - at.0), &mut self.buffer)?;
            piece_bytes = (4 * piece_bytes).min(READ_BYTES as u64);
            if self.buffer.is_empty() {
                return Ok(TailEnd::NoFile(self.files.containing(at)));
            }
            let stop = self.walk(&mut scanner);
            self.seen = self.seen.max(scanner.position());
            if let Some(stop) = stop {
                return Ok(stop);
            }
        }
    }

    /// Walks through the bytes read; `Some` when there is no use in more of them.
    fn walk(&mut self, scanner: &mut Scanner) -> Option<TailEnd> {
        let mut rest = &self.buffer[..];
        loop {
            let step = scanner.advance(&mut rest);
            // The rest of a record from before the first segment counts though it is no step.
            self.end = self.end.max(scanner.valid_end());
            match step {
                ScanStep::NeedMore => return None,
                ScanStep::EndOfWal(_) => return Some(TailEnd::End),
                ScanStep::Invalid { lsn, why } => return Some(TailEnd::Invalid(lsn, why)),
                ScanStep::Record(record) if record.is_switch() => {
                    let data_end = Lsn(scanner.position().0.next_multiple_of(ALIGNMENT));
                    self.switches.push((record.end, data_end));
                    *scanner = self.files.scanner(record.end).following(record.lsn);
                    self.base = scanner.clone();
                    return None;
                }
                ScanStep::Record(_) => self.base = scanner.clone(),
            }
        }
    }
}
