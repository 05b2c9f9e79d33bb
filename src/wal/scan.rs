//! Walks WAL record by record as bytes arrive, and says where valid WAL ends.
//! Never holds a record: checksums grow piece by piece, only headers and suspects' beginnings are gathered.
//! Invariant: the steps depend on the bytes alone, never on the pieces they arrive in.
//!
//! ```text
//!  Start ──page header──► Tail ──last byte──► Between ──first byte──► Header ──24 bytes──► Body
//!    │                                       ▲   ▲                                          │
//!    └───────────────────────────────────────┘   └──────────────── last byte ───────────────┤
//!                                                └──segment's end── Switched ◄──────────────┘
//!  any ──► Done(EndOfWal | Invalid)
//! ```
//!
//! A record that a crash cut short is forgotten when the next page says that its rest was
//! overwritten; that page has to begin with the record that tells replay the same
//! (`XLogDecodeNextRecord`, `src/backend/access/transam/xlogreader.c`).
//!
//! A file that PostgreSQL is still writing may end in a half-written page. Its tail can look
//! [`ScanStep::Invalid`]; whoever reads such a file reads on later from [`Scanner::valid_end`].

#![allow(
    clippy::cast_possible_truncation,
    reason = "every cast is of a length within one page or one record, and both fit 32 bits"
)]

use walmgr_protocol::names::{Lsn, SystemId, TimelineId, WalSegmentSize};

pub use super::fault::Why;

use super::changes::Changes;
use super::commit::{self, CommitAt, CommitSpan};
use super::obstacle::{self, Met, OBSTACLE_BYTES_MAX, Obstacles};
use super::page::{
    FIRST_IS_CONTRECORD, FIRST_IS_OVERWRITE_CONTRECORD, LONG_HEADER_BYTES, PAGE_BYTES, PageFault,
    PageHeader, PageRules, header_bytes,
};
use super::record::{
    ALIGNMENT, CHECKED_HEADER_BYTES, RECORD_HEADER_BYTES, RecordHeader, RecordInfo,
    XLOG_OVERWRITE_CONTRECORD, XLOG_SWITCH, record_bytes_max,
};
use super::references::ChangeReader;

/// What the scanner found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScanStep {
    /// The next record, whole and verified.
    Record(RecordInfo),
    /// All bytes fed so far are used up.
    NeedMore,
    /// Nothing was written behind this position: zeros, or a page from before the segment was
    /// recycled. The record that may have begun here is not whole.
    EndOfWal(Lsn),
    /// What was written here is not valid WAL.
    Invalid {
        /// Where the record or the page at fault begins.
        lsn: Lsn,
        /// What is wrong with it.
        why: Why,
    },
}

/// The scanner: build it where a page or a record begins, feed it everything from there.
#[derive(Debug, Clone)]
pub struct Scanner {
    rules: PageRules,
    checksums: bool,
    /// The LSN of the next byte to be fed.
    position: Lsn,
    state: ScanState,
    page_header: [u8; LONG_HEADER_BYTES],
    record_header: [u8; RECORD_HEADER_BYTES],
    /// Of the open record: where it begins, what is left of it and its checksum so far.
    record_start: Lsn,
    remaining_bytes: u32,
    crc: u32,
    previous: Previous,
    valid_end: Lsn,
    overwrite_announced: bool,
    /// The beginning of the open record if it may be an obstacle, or is a commit to note; else empty.
    suspect: Vec<u8>,
    obstacles: Obstacles,
    notes_commits: bool,
    commits: CommitSpan,
    changes: Option<Box<ChangeReader>>,
}

#[derive(Debug, Clone, Copy)]
enum ScanState {
    /// At the beginning of a page, with nothing known about a record that continues there.
    Start,
    /// In the rest of a record whose beginning was not seen.
    Tail,
    Between,
    Header {
        filled: usize,
    },
    Body,
    Switched {
        until: Lsn,
    },
    Done(ScanStep),
}

#[derive(Debug, Clone, Copy)]
enum Previous {
    Is(Lsn),
    Before(Lsn),
}

impl Scanner {
    /// A scanner for WAL from `start` on: the beginning of a page or of a record, or the
    /// [`RecordInfo::end`] of one.
    pub fn new(start: Lsn, size: WalSegmentSize) -> Self {
        let page_start = Lsn(start.0 - start.0 % PAGE_BYTES);
        let header_end = header_bytes(page_start, size) as u64;
        let state = match start.0 % PAGE_BYTES {
            0 => ScanState::Start,
            offset if offset >= header_end && offset % ALIGNMENT == 0 => ScanState::Between,
            _ => ScanState::Done(ScanStep::Invalid {
                lsn: start,
                why: Why::Start,
            }),
        };
        Scanner {
            rules: PageRules::new(size),
            checksums: true,
            position: start,
            state,
            page_header: [0; LONG_HEADER_BYTES],
            record_header: [0; RECORD_HEADER_BYTES],
            record_start: start,
            remaining_bytes: 0,
            crc: 0,
            previous: Previous::Before(start),
            valid_end: start,
            overwrite_announced: false,
            suspect: Vec::new(),
            obstacles: Obstacles::default(),
            notes_commits: false,
            commits: CommitSpan::default(),
            changes: None,
        }
    }

    /// Accepts only WAL of this cluster.
    #[must_use]
    pub fn of_cluster(mut self, system_id: SystemId) -> Self {
        self.rules.system_id = Some(system_id);
        self
    }

    /// Accepts only WAL that this major version wrote; without it the first page decides.
    #[must_use]
    pub fn of_major(mut self, major: u8) -> Self {
        self.rules.major = Some(major);
        self
    }

    /// Accepts no page of a timeline newer than this one.
    #[must_use]
    pub fn up_to_timeline(mut self, newest: TimelineId) -> Self {
        self.rules.newest_timeline = Some(newest);
        self
    }

    /// Expects the first record to follow the one that begins at `previous`.
    #[must_use]
    pub fn following(mut self, previous: Lsn) -> Self {
        self.previous = Previous::Is(previous);
        if let ScanState::Start = self.state {
            self.state = ScanState::Between;
        }
        self
    }

    /// Checks headers, lengths and links only.
    #[must_use]
    pub fn without_checksums(mut self) -> Self {
        self.checksums = false;
        self
    }

    /// Notes when the first and the last commit were.
    #[must_use]
    pub fn noting_commits(mut self) -> Self {
        self.notes_commits = true;
        self
    }

    /// The commits so far of one that notes them, in whole records whose beginning it saw.
    pub(crate) fn commits(&self) -> CommitSpan {
        let header = RecordHeader::decode(&self.record_header);
        let is_open = matches!(self.state, ScanState::Body) && self.notes_commits;
        CommitSpan {
            open: (is_open && commit::begins_commit(&header)).then_some(self.record_start),
            ..self.commits
        }
    }

    /// Notes what the records change.
    #[must_use]
    pub fn noting_changes(mut self) -> Self {
        self.changes = Some(Box::default());
        self
    }

    /// Takes the changes out of a scanner that notes them: those of all records whose beginning it saw. Beside them
    /// stands the begin of a record that is not complete yet and may change more. The scanner then notes no changes.
    pub fn take_changes(&mut self) -> Option<(Changes, Option<Lsn>)> {
        let reader = self.changes.take()?;
        let is_open = match self.state {
            ScanState::Header { .. } => true,
            ScanState::Body => reader.is_due(),
            _ => false,
        };
        let open = is_open.then_some(self.record_start);
        Some((reader.into_changes(), open))
    }

    /// Has met these obstacles already.
    #[must_use]
    pub fn having_met(mut self, obstacles: &Obstacles) -> Self {
        self.obstacles = obstacles.clone();
        self
    }

    /// What it has met so far that replay may not get past, in whole records whose beginning it saw.
    pub const fn obstacles(&self) -> &Obstacles {
        &self.obstacles
    }

    /// Forgets what it has met, behind the end of a segment.
    #[must_use]
    pub fn forgetting(mut self) -> Self {
        self.obstacles = Obstacles::default();
        self.changes = None;
        self
    }

    /// The LSN of the next byte to be fed.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// The end of the last whole record, or where the scan began: WAL is valid up to here.
    /// The rest of a record that began before the scan counts as valid though its checksum
    /// cannot be known.
    pub fn valid_end(&self) -> Lsn {
        self.valid_end
    }

    /// The major version that wrote the WAL, once a page header was seen.
    pub fn major(&self) -> Option<u8> {
        self.rules.major
    }

    /// The timeline of the last page seen.
    pub fn timeline(&self) -> Option<TimelineId> {
        TimelineId::new(self.rules.oldest_timeline)
    }

    /// Whether a record has begun whose end was not fed.
    pub fn in_record(&self) -> bool {
        matches!(
            self.state,
            ScanState::Tail | ScanState::Header { .. } | ScanState::Body
        )
    }

    /// The record that has begun and has not ended, if its beginning was seen: where that is, and the
    /// record before it if that was seen too.
    pub fn open_record(&self) -> Option<(Lsn, Option<Lsn>)> {
        let is_open = matches!(self.state, ScanState::Header { .. } | ScanState::Body);
        is_open.then(|| (self.record_start, self.last_record()))
    }

    /// Where the last whole record begins.
    pub fn last_record(&self) -> Option<Lsn> {
        match self.previous {
            Previous::Is(lsn) => Some(lsn),
            Previous::Before(_) => None,
        }
    }

    /// Whether it has checked the header of a record that begins at `lsn` or behind it, and is in that
    /// record.
    pub fn is_in_body_from(&self, lsn: Lsn) -> bool {
        matches!(self.state, ScanState::Body) && self.record_start >= lsn
    }

    /// Uses up bytes from the front of `input` until there is something to say.
    ///
    /// After [`ScanStep::EndOfWal`] and [`ScanStep::Invalid`] nothing more is used up and the answer
    /// stays the same.
    pub fn advance(&mut self, input: &mut &[u8]) -> ScanStep {
        while !input.is_empty() {
            let step = match self.state {
                ScanState::Done(step) => return step,
                ScanState::Switched { until } => self.skip_to(until, input),
                _ if self.in_page_header() => self.gather_page_header(input),
                ScanState::Start | ScanState::Between => self.begin_record(input),
                ScanState::Tail => self.skip_tail(input),
                ScanState::Header { filled } => self.gather_record_header(filled, input),
                ScanState::Body => self.checksum_body(input),
            };
            if let Some(step) = step {
                return step;
            }
        }
        match self.state {
            ScanState::Done(step) => step,
            _ => ScanStep::NeedMore,
        }
    }

    fn in_page_header(&self) -> bool {
        let offset = self.position.0 % PAGE_BYTES;
        offset < LONG_HEADER_BYTES as u64 && offset < self.page_header_bytes() as u64
    }

    fn page_start(&self) -> Lsn {
        Lsn(self.position.0 - self.position.0 % PAGE_BYTES)
    }

    fn page_header_bytes(&self) -> usize {
        header_bytes(self.page_start(), self.rules.segment_size)
    }

    fn gather_page_header(&mut self, input: &mut &[u8]) -> Option<ScanStep> {
        let address = self.page_start();
        let length = self.page_header_bytes();
        let filled = self.offset_in_page();
        let piece = self.take(length - filled, input);
        self.page_header[filled..filled + piece.len()].copy_from_slice(piece);
        if filled + piece.len() < length {
            return None;
        }
        match self.rules.check(&self.page_header, address) {
            Ok(header) => self.enter_page(address, &header),
            Err(PageFault::Blank | PageFault::Stale { .. }) => self.end_of_wal(),
            Err(fault) => self.invalid(address, fault.into()),
        }
    }

    fn enter_page(&mut self, address: Lsn, header: &PageHeader) -> Option<ScanStep> {
        self.rules.oldest_timeline = header.timeline;
        self.rules.major = self.rules.major.or(super::page::major_of(header.magic));
        let continues = header.has(FIRST_IS_CONTRECORD);
        let overwrites = header.has(FIRST_IS_OVERWRITE_CONTRECORD);
        let found_bytes = header.remaining_bytes;
        if continues && (overwrites || found_bytes == 0) {
            return self.invalid(address, Why::UnexpectedContinuation);
        }
        self.overwrite_announced = overwrites;
        match self.state {
            _ if overwrites => self.state = ScanState::Between,
            ScanState::Start if continues => {
                self.state = ScanState::Tail;
                self.remaining_bytes = found_bytes;
            }
            ScanState::Tail | ScanState::Header { .. } | ScanState::Body => {
                let expected_bytes = self.remaining_bytes;
                if !continues {
                    return self.invalid(address, Why::MissingContinuation { expected_bytes });
                }
                if found_bytes != expected_bytes {
                    let why = Why::ContinuationLength {
                        expected_bytes,
                        found_bytes,
                    };
                    return self.invalid(address, why);
                }
            }
            _ if continues => return self.invalid(address, Why::UnexpectedContinuation),
            _ => self.state = ScanState::Between,
        }
        None
    }

    fn skip_to(&mut self, until: Lsn, input: &mut &[u8]) -> Option<ScanStep> {
        self.take_u64(until.0.wrapping_sub(self.position.0), input);
        if self.position == until {
            self.state = ScanState::Between;
        }
        None
    }

    fn skip_tail(&mut self, input: &mut &[u8]) -> Option<ScanStep> {
        self.take_of_record(input);
        if self.remaining_bytes == 0 {
            self.valid_end = self.aligned_position();
            self.state = ScanState::Between;
        }
        None
    }

    fn begin_record(&mut self, input: &mut &[u8]) -> Option<ScanStep> {
        let padding = self.aligned_position().0.wrapping_sub(self.position.0);
        self.take_u64(padding, input);
        if padding == 0 {
            self.record_start = self.position;
            self.state = ScanState::Header { filled: 0 };
            return self.gather_record_header(0, input);
        }
        None
    }

    fn gather_record_header(&mut self, filled: usize, input: &mut &[u8]) -> Option<ScanStep> {
        let room = (PAGE_BYTES as usize - self.offset_in_page()).min(RECORD_HEADER_BYTES - filled);
        let piece = self.take(room, input);
        let now_filled = filled + piece.len();
        self.record_header[filled..now_filled].copy_from_slice(piece);
        self.state = ScanState::Header { filled: now_filled };
        if now_filled < 4 {
            return None;
        }
        let [t0, t1, t2, t3, ..] = self.record_header;
        let total_bytes = u32::from_le_bytes([t0, t1, t2, t3]);
        if filled < 4 {
            if total_bytes == 0 {
                return self.end_of_wal();
            }
            let longest = record_bytes_max(self.rules.major);
            if !(RECORD_HEADER_BYTES as u32..=longest).contains(&total_bytes) {
                return self.invalid(self.record_start, Why::Length(total_bytes));
            }
        }
        self.remaining_bytes = total_bytes - now_filled as u32;
        if now_filled < RECORD_HEADER_BYTES {
            return None;
        }
        self.begin_body()
    }

    fn begin_body(&mut self) -> Option<ScanStep> {
        let header = RecordHeader::decode(&self.record_header);
        if let Err(why) = self.check_record_header(&header) {
            return self.invalid(self.record_start, why);
        }
        self.overwrite_announced = false;
        self.crc = 0;
        self.suspect.clear();
        let is_noted = self.notes_commits && commit::begins_commit(&header);
        if is_noted || obstacle::is_suspect(&header) {
            self.suspect.extend_from_slice(&self.record_header);
        }
        if let Some(changes) = &mut self.changes {
            changes.begin(self.record_start, header, self.rules.major);
        }
        self.state = ScanState::Body;
        (self.remaining_bytes == 0)
            .then(|| self.finish_record())
            .flatten()
    }

    fn check_record_header(&self, header: &RecordHeader) -> Result<(), Why> {
        let found = header.prev;
        match self.previous {
            Previous::Is(expected) if found != expected => {
                return Err(Why::PreviousLink { expected, found });
            }
            // The very first record of a cluster has no other before it and says 0.
            Previous::Before(limit) if found >= limit && found.0 != 0 => {
                return Err(Why::PreviousNotBefore { limit, found });
            }
            _ => {}
        }
        if header.is_xlog(XLOG_OVERWRITE_CONTRECORD) != self.overwrite_announced {
            return Err(Why::Overwrite);
        }
        Ok(())
    }

    fn checksum_body(&mut self, input: &mut &[u8]) -> Option<ScanStep> {
        let piece = self.take_of_record(input);
        if self.checksums {
            self.crc = crc32c::crc32c_append(self.crc, piece);
        }
        if let Some(changes) = &mut self.changes {
            changes.update(piece);
        }
        if !self.suspect.is_empty() {
            let room = OBSTACLE_BYTES_MAX.saturating_sub(self.suspect.len());
            let kept = &piece[..room.min(piece.len())];
            self.suspect.extend_from_slice(kept);
        }
        (self.remaining_bytes == 0)
            .then(|| self.finish_record())
            .flatten()
    }

    fn finish_record(&mut self) -> Option<ScanStep> {
        let header = RecordHeader::decode(&self.record_header);
        if self.checksums {
            let checked = &self.record_header[..CHECKED_HEADER_BYTES];
            let computed = crc32c::crc32c_append(self.crc, checked);
            if computed != header.crc && !cfg!(fuzzing) {
                let why = Why::Checksum {
                    computed,
                    found: header.crc,
                };
                return self.invalid(self.record_start, why);
            }
        }
        let mut end = self.aligned_position();
        self.state = ScanState::Between;
        if header.is_xlog(XLOG_SWITCH) {
            end = self.segment_end(end);
            self.state = ScanState::Switched { until: end };
        }
        self.previous = Previous::Is(self.record_start);
        self.valid_end = end;
        let record = RecordInfo {
            lsn: self.record_start,
            end,
            prev: header.prev,
            xid: header.xid,
            tot_len: header.total_bytes,
            rmid: header.rmid,
            info: header.info,
        };
        if !self.suspect.is_empty() {
            self.meet(&record);
        }
        Some(ScanStep::Record(record))
    }

    /// Remembers a record that replay may not get past, or a commit.
    fn meet(&mut self, record: &RecordInfo) {
        if commit::is_commit(record) {
            if let Some(time_us) = commit::commit_time_us(&self.suspect) {
                let lsn = record.lsn;
                self.commits.add(CommitAt { lsn, time_us });
            }
            return self.suspect.clear();
        }
        // initdb's first record is the first of segment 1.
        let first = self.rules.segment_size.bytes() + LONG_HEADER_BYTES as u64;
        if let Some(obstacle) = obstacle::read(record, &self.suspect, Lsn(first)) {
            let lsn = record.lsn;
            self.obstacles.add(Met { lsn, obstacle });
        }
        self.suspect.clear();
    }

    /// `lsn` itself if a segment ends there: a switch that fills its segment wastes no other.
    fn segment_end(&self, lsn: Lsn) -> Lsn {
        let segment_bytes = self.rules.segment_size.bytes();
        match lsn.0 % segment_bytes {
            0 => lsn,
            offset => Lsn((lsn.0 - offset).wrapping_add(segment_bytes)),
        }
    }

    fn end_of_wal(&mut self) -> Option<ScanStep> {
        self.done(ScanStep::EndOfWal(self.valid_end))
    }

    fn invalid(&mut self, lsn: Lsn, why: Why) -> Option<ScanStep> {
        self.done(ScanStep::Invalid { lsn, why })
    }

    fn done(&mut self, step: ScanStep) -> Option<ScanStep> {
        self.state = ScanState::Done(step);
        Some(step)
    }

    fn offset_in_page(&self) -> usize {
        (self.position.0 % PAGE_BYTES) as usize
    }

    fn aligned_position(&self) -> Lsn {
        Lsn(self.position.0.wrapping_add(ALIGNMENT - 1) & !(ALIGNMENT - 1))
    }

    /// What this page and the input hold of the open record.
    fn take_of_record<'a>(&mut self, input: &mut &'a [u8]) -> &'a [u8] {
        let on_page = PAGE_BYTES as usize - self.offset_in_page();
        let piece = self.take(on_page.min(self.remaining_bytes as usize), input);
        self.remaining_bytes -= piece.len() as u32;
        piece
    }

    fn take_u64<'a>(&mut self, most: u64, input: &mut &'a [u8]) -> &'a [u8] {
        self.take(usize::try_from(most).unwrap_or(usize::MAX), input)
    }

    // The LSN wraps at the end of all WAL, which no server reaches: a wrong answer for a
    // made-up name is better than a panic.
    fn take<'a>(&mut self, most: usize, input: &mut &'a [u8]) -> &'a [u8] {
        let (piece, rest) = input.split_at(most.min(input.len()));
        *input = rest;
        self.position = Lsn(self.position.0.wrapping_add(piece.len() as u64));
        piece
    }
}
