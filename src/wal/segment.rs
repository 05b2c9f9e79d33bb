//! Decides while the bytes of a WAL file stream past whether it may enter the archive.
//! Never reads or writes a file. Invariant: what passes is of this cluster and of this name, and
//! replay can walk through it; the answer does not depend on the pieces the bytes come in.
//!
//! | file | has to hold |
//! |---|---|
//! | segment | its full length; records that chain to its end or to a switch |
//! | `.partial` | its full length; a first page that belongs here. Where its records stop is free |
//! | `.history` | ancestors of the timeline it is named after |
//! | `.backup` | a first line that names the segment and the position of its own name |
//!
//! Behind a switch nothing is checked: a crash in the middle of one leaves bytes there from
//! before the segment was recycled, and no reader looks at them.

use std::fmt;
use std::str::FromStr;

use walmgr_protocol::limits::SMALL_FILE_BYTES_MAX;
use walmgr_protocol::names::{Lsn, SegmentName, SystemId, TimelineId, WalFileName, WalSegmentSize};

use super::history::History;
use super::page::{LONG_HEADER_BYTES, PageFault, PageHeader, PageRules, major_of};
use super::scan::{ScanStep, Scanner};

/// What the archive is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpectedSegment {
    /// The cluster.
    pub system_id: SystemId,
    /// `wal_segment_size`
    pub segment_size: WalSegmentSize,
    /// The major version, when it is known.
    pub postgres_major: Option<u8>,
}

/// The `verify_wal` setting: how closely a file is looked at. A segment's length and its first
/// page are checked at every level, because a foreign file must never enter the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verify {
    /// Every record with its checksum.
    #[default]
    Records,
    /// Every page and record header, and that the records chain; no checksums.
    Headers,
    /// Nothing further.
    Off,
}

impl fmt::Display for Verify {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Verify::Records => "records",
            Verify::Headers => "headers",
            Verify::Off => "off",
        })
    }
}

impl FromStr for Verify {
    type Err = UnknownVerify;

    fn from_str(text: &str) -> Result<Self, UnknownVerify> {
        match text {
            "records" => Ok(Verify::Records),
            "headers" => Ok(Verify::Headers),
            "off" => Ok(Verify::Off),
            _ => Err(UnknownVerify),
        }
    }
}

/// Text that is no level of verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected records, headers or off")]
pub struct UnknownVerify;

/// Why a file may not enter the archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SegmentFault {
    /// It is another cluster's, or another file than its name says.
    #[error("the file is not of this archive: its {what} is {found}, expected {expected}")]
    Foreign {
        /// What differs, as a noun: system identifier, PostgreSQL version, timeline, …
        what: &'static str,
        /// What the archive or the name says.
        expected: String,
        /// What the file says.
        found: String,
    },
    /// Its WAL is not valid.
    #[error("the WAL is damaged at {lsn}: {why}")]
    Damaged {
        /// Where the record or the page at fault begins.
        lsn: Lsn,
        /// What is wrong with it.
        why: String,
    },
    /// It is a history or backup history file that cannot be what its name says.
    #[error("the text of the file is damaged: {why}")]
    Text {
        /// What is wrong with it.
        why: String,
    },
    /// It is stored packed and cannot be unpacked.
    #[error("{why}")]
    Packed {
        /// What is wrong with it.
        why: String,
    },
    /// It is shorter or longer than it has to be.
    #[error("the file has {found} bytes, expected {expected}")]
    WrongLength {
        /// The length, or for text the longest that is accepted.
        expected: u64,
        /// How many bytes came, at least.
        found: u64,
    },
}

/// What a file that passed holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentSummary {
    /// Its length.
    pub bytes: u64,
    /// What its WAL looks like; `None` for text.
    pub wal: Option<WalSummary>,
}

/// What the WAL of a segment looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalSummary {
    /// The cluster its first page names.
    pub system_id: SystemId,
    /// The major version that wrote it.
    pub postgres_major: u8,
    /// The timeline of the last page seen.
    pub timeline: TimelineId,
    /// Whole records, 0 with [`Verify::Off`].
    pub records: u64,
    /// Where the first whole record begins.
    pub first_record: Option<Lsn>,
    /// Where the last whole record begins.
    pub last_record: Option<Lsn>,
    /// Up to here records were walked; the segment's beginning with [`Verify::Off`].
    pub valid_end: Lsn,
    /// Whether the segment ends with a switch.
    pub ends_with_switch: bool,
    /// Whether its last record continues in the next segment.
    pub continues: bool,
}

/// The check: feed it everything from the first byte on.
#[derive(Debug, Clone)]
pub struct SegmentCheck {
    name: WalFileName,
    bytes: u64,
    failed: Option<SegmentFault>,
    content: FileContent,
}

#[derive(Debug, Clone)]
enum FileContent {
    Wal(Box<WalCheck>),
    Text {
        expected: ExpectedSegment,
        verify: Verify,
        text: Vec<u8>,
    },
}

impl SegmentCheck {
    /// A check for a file of this name in an archive bound to `expected`.
    pub fn new(name: WalFileName, expected: &ExpectedSegment, verify: Verify) -> Self {
        let content = match name {
            WalFileName::Segment(segment) | WalFileName::Partial(segment) => {
                FileContent::Wal(Box::new(WalCheck::new(segment, expected, verify)))
            }
            WalFileName::History(_) | WalFileName::BackupHistory(..) => FileContent::Text {
                expected: *expected,
                verify,
                text: Vec::new(),
            },
        };
        SegmentCheck {
            name,
            bytes: 0,
            failed: None,
            content,
        }
    }

    /// Has the scanner at its end know when the first and the last commit were.
    #[must_use]
    pub(crate) fn noting_commits(mut self) -> Self {
        if let FileContent::Wal(check) = &mut self.content {
            check.scanner = check.scanner.clone().noting_commits();
        }
        self
    }

    /// Has the scanner at its end know what the records change.
    #[must_use]
    pub fn noting_changes(mut self) -> Self {
        if let FileContent::Wal(check) = &mut self.content {
            check.scanner = check.scanner.clone().noting_changes();
        }
        self
    }

    /// Looks at the next bytes of the file.
    ///
    /// # Errors
    /// As soon as it is certain that the file cannot pass; the same fault again from then on.
    pub fn update(&mut self, bytes: &[u8]) -> Result<(), SegmentFault> {
        if let Some(fault) = &self.failed {
            return Err(fault.clone());
        }
        self.bytes += bytes.len() as u64;
        let partial = matches!(self.name, WalFileName::Partial(_));
        let outcome = match &mut self.content {
            FileContent::Wal(check) => check.update(bytes, self.bytes, partial),
            FileContent::Text { text, .. } => {
                let room = SMALL_FILE_BYTES_MAX.saturating_sub(text.len() as u64);
                if bytes.len() as u64 > room {
                    Err(SegmentFault::WrongLength {
                        expected: SMALL_FILE_BYTES_MAX,
                        found: self.bytes,
                    })
                } else {
                    text.extend_from_slice(bytes);
                    Ok(())
                }
            }
        };
        self.failed = outcome.clone().err();
        outcome
    }

    /// Decides, when every byte has been looked at.
    ///
    /// # Errors
    /// Why the file may not enter the archive.
    pub fn finish(self) -> Result<SegmentSummary, SegmentFault> {
        self.finish_at_end().map(|(summary, _)| summary)
    }

    /// Decides, when every byte has been looked at, and hands out the scanner that walked through a segment to its last byte: it can go on into the
    /// next. There is none where nothing was walked through.
    ///
    /// # Errors
    /// Why the file may not enter the archive.
    pub fn finish_at_end(self) -> Result<(SegmentSummary, Option<Scanner>), SegmentFault> {
        if let Some(fault) = self.failed {
            return Err(fault);
        }
        let mut scanner = None;
        let wal = match self.content {
            FileContent::Wal(check) => {
                let wal = check.finish(self.bytes)?;
                scanner = (!check.stopped).then_some(check.scanner);
                Some(wal)
            }
            FileContent::Text {
                expected,
                verify,
                text,
            } => {
                if verify != Verify::Off {
                    check_text(self.name, &expected, &text)?;
                }
                None
            }
        };
        let summary = SegmentSummary {
            bytes: self.bytes,
            wal,
        };
        Ok((summary, scanner))
    }
}

#[derive(Debug, Clone)]
struct WalCheck {
    name: SegmentName,
    expected: ExpectedSegment,
    start: Lsn,
    scanner: Scanner,
    /// Set once the records of a `.partial` file stop; the rest of it is not looked at.
    stopped: bool,
    first_header: [u8; LONG_HEADER_BYTES],
    first_page: Option<PageHeader>,
    records: u64,
    first_record: Option<Lsn>,
    last_record: Option<Lsn>,
    last_is_switch: bool,
}

impl WalCheck {
    fn new(name: SegmentName, expected: &ExpectedSegment, verify: Verify) -> Self {
        let start = name.start(expected.segment_size).unwrap_or_default();
        let scanner = Scanner::new(start, expected.segment_size)
            .of_cluster(expected.system_id)
            .up_to_timeline(name.timeline());
        let scanner = match expected.postgres_major {
            Some(major) => scanner.of_major(major),
            None => scanner,
        };
        WalCheck {
            name,
            expected: *expected,
            start,
            scanner: match verify {
                Verify::Headers => scanner.without_checksums(),
                Verify::Records | Verify::Off => scanner,
            },
            stopped: verify == Verify::Off,
            first_header: [0; LONG_HEADER_BYTES],
            first_page: None,
            records: 0,
            first_record: None,
            last_record: None,
            last_is_switch: false,
        }
    }

    fn update(
        &mut self,
        bytes: &[u8],
        total_bytes: u64,
        partial: bool,
    ) -> Result<(), SegmentFault> {
        let expected = self.expected.segment_size.bytes();
        self.gather_first_page(bytes, total_bytes - bytes.len() as u64)?;
        if total_bytes > expected {
            return Err(SegmentFault::WrongLength {
                expected,
                found: total_bytes,
            });
        }
        let mut rest = bytes;
        while !self.stopped {
            match self.scanner.advance(&mut rest) {
                ScanStep::NeedMore => break,
                ScanStep::Record(record) => {
                    self.records += 1;
                    self.first_record = self.first_record.or(Some(record.lsn));
                    self.last_record = Some(record.lsn);
                    self.last_is_switch = record.is_switch();
                }
                ScanStep::EndOfWal(_) | ScanStep::Invalid { .. } if partial => self.stopped = true,
                ScanStep::EndOfWal(lsn) => {
                    let why = "no valid record begins here and the segment is not at its end";
                    return Err(damaged(lsn, why));
                }
                ScanStep::Invalid { lsn, why } => return Err(damaged(lsn, why)),
            }
        }
        Ok(())
    }

    fn gather_first_page(&mut self, bytes: &[u8], bytes_before: u64) -> Result<(), SegmentFault> {
        if self.first_page.is_some() {
            return Ok(());
        }
        let filled = usize::try_from(bytes_before).unwrap_or(LONG_HEADER_BYTES);
        let count = (LONG_HEADER_BYTES - filled).min(bytes.len());
        self.first_header[filled..filled + count].copy_from_slice(&bytes[..count]);
        if filled + count == LONG_HEADER_BYTES {
            self.first_page = Some(self.check_first_page()?);
        }
        Ok(())
    }

    /// The first page says whose the file is, so a wrong field here speaks of another cluster
    /// or another name, where on a later page it speaks of damage.
    fn check_first_page(&self) -> Result<PageHeader, SegmentFault> {
        let size = self.expected.segment_size;
        if self.name.number(size).is_none() {
            return Err(foreign(
                "segment size",
                size,
                format!("larger, for {}", self.name),
            ));
        }
        let rules = PageRules {
            system_id: Some(self.expected.system_id),
            major: self.expected.postgres_major,
            newest_timeline: Some(self.name.timeline()),
            ..PageRules::new(size)
        };
        let fault = match rules.check(&self.first_header, self.start) {
            Ok(header) => return Ok(header),
            Err(fault) => fault,
        };
        let position = |lsn: Lsn| format!("WAL from {lsn} on");
        Err(match fault {
            PageFault::SystemId { expected, found } => {
                foreign("system identifier", expected, found)
            }
            PageFault::Version { expected, found } => {
                foreign("PostgreSQL version", expected, found)
            }
            PageFault::SegmentSize { expected, found } => {
                foreign("segment size", expected.bytes(), found)
            }
            PageFault::NewerTimeline { newest, found } => foreign("timeline", newest, found),
            PageFault::Stale { found } | PageFault::Address { found, .. } => {
                foreign("content", position(self.start), position(found))
            }
            PageFault::Magic(magic) if self.looks_like_wal() => foreign(
                "PostgreSQL version",
                "one of 13 to 18",
                format!("unknown (page magic {magic:#06X})"),
            ),
            _ => damaged(self.start, fault),
        })
    }

    /// Whether all but the magic number is as it should be.
    fn looks_like_wal(&self) -> bool {
        let header = PageHeader::decode(&self.first_header, true);
        header.address == self.start
            && header.segment_bytes == self.expected.segment_size.bytes_u32()
    }

    fn finish(&self, total_bytes: u64) -> Result<WalSummary, SegmentFault> {
        let expected = self.expected.segment_size.bytes();
        let first_page = match self.first_page {
            Some(first_page) if total_bytes == expected => first_page,
            _ => {
                return Err(SegmentFault::WrongLength {
                    expected,
                    found: total_bytes,
                });
            }
        };
        let first_timeline = TimelineId::new(first_page.timeline);
        Ok(WalSummary {
            system_id: first_page.system_id,
            postgres_major: major_of(first_page.magic).unwrap_or_default(),
            timeline: self
                .scanner
                .timeline()
                .or(first_timeline)
                .unwrap_or(self.name.timeline()),
            records: self.records,
            first_record: self.first_record,
            last_record: self.last_record,
            valid_end: self.scanner.valid_end(),
            ends_with_switch: self.last_is_switch,
            continues: self.scanner.in_record(),
        })
    }
}

fn check_text(
    name: WalFileName,
    expected: &ExpectedSegment,
    text: &[u8],
) -> Result<(), SegmentFault> {
    match name {
        WalFileName::History(timeline) => {
            History::parse(timeline, text)
                .map(|_| ())
                .map_err(|fault| SegmentFault::Text {
                    why: fault.to_string(),
                })
        }
        WalFileName::BackupHistory(segment, offset) => {
            check_backup_history(segment, offset, expected, text)
        }
        WalFileName::Segment(_) | WalFileName::Partial(_) => Ok(()),
    }
}

/// The first line as `build_backup_content`, `src/backend/access/transam/xlogbackup.c`,
/// writes it: `START WAL LOCATION: X/Y (file SEGMENT)`.
fn check_backup_history(
    segment: SegmentName,
    offset: u32,
    expected: &ExpectedSegment,
    text: &[u8],
) -> Result<(), SegmentFault> {
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let (location, file) = std::str::from_utf8(line)
        .ok()
        .and_then(|line| line.trim_end().strip_prefix("START WAL LOCATION: "))
        .and_then(|rest| rest.strip_suffix(')')?.split_once(" (file "))
        .ok_or_else(|| SegmentFault::Text {
            why: "the first line is not START WAL LOCATION: X/Y (file NAME)".to_owned(),
        })?;
    if file != segment.to_string() {
        return Err(foreign("first segment", segment, file.to_owned()));
    }
    let named = segment
        .start(expected.segment_size)
        .map(|start| Lsn(start.0.wrapping_add(u64::from(offset))));
    match (named, location.parse::<Lsn>()) {
        (Some(named), Ok(found)) if named == found => Ok(()),
        (Some(named), _) => Err(foreign("start location", named, location.to_owned())),
        (None, _) => Err(foreign(
            "segment size",
            expected.segment_size,
            format!("larger, for {segment}"),
        )),
    }
}

fn damaged(lsn: Lsn, why: impl ToString) -> SegmentFault {
    SegmentFault::Damaged {
        lsn,
        why: why.to_string(),
    }
}

fn foreign(what: &'static str, expected: impl ToString, found: impl ToString) -> SegmentFault {
    SegmentFault::Foreign {
        what,
        expected: expected.to_string(),
        found: found.to_string(),
    }
}
