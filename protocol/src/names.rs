//! Names and positions that cross the wire, parsed once into types that cannot hold nonsense.
//! Never touches a file or a socket. Invariant: a [`WalFileName`] is one path component made of
//! ASCII letters, digits and dots, so it can neither leave its folder nor hide in it.

mod backup_name;
mod relative_path;

pub use backup_name::BackupName;
pub use relative_path::RelativePath;

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use crate::limits::NAME_BYTES_MAX;

/// A position in the WAL stream of a cluster, in bytes since its beginning.
/// Written `X/Y` as PostgreSQL does (`pg_lsn`, `src/backend/utils/adt/pg_lsn.c`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let half = |digits: &str| {
            let plain = (1..=8).contains(&digits.len())
                && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            plain
                .then(|| u64::from_str_radix(digits, 16).ok())
                .flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Lsn(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| InvalidName::new("an LSN such as 16/B374D848", text))
    }
}

/// A timeline of a cluster; the first is 1 and 0 never exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimelineId(NonZeroU32);

impl TimelineId {
    /// The one that every cluster begins on.
    pub const FIRST: TimelineId = TimelineId(NonZeroU32::MIN);

    /// The timeline with this number, or `None` for 0.
    pub const fn new(number: u32) -> Option<Self> {
        match NonZeroU32::new(number) {
            Some(number) => Some(TimelineId(number)),
            None => None,
        }
    }

    /// Its number, as the first eight hexadecimal digits of a segment's name say it.
    pub const fn number(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.0)
    }
}

/// What tells one cluster from another: `system_identifier` of `global/pg_control`
/// (`src/include/catalog/pg_control.h`), repeated in the first page of every WAL segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemId(pub u64);

impl fmt::Display for SystemId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.0)
    }
}

/// `wal_segment_size`: a power of two from 1 MiB to 1 GiB (`IsValidWalSegSize`,
/// `src/include/access/xlog_internal.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalSegmentSize(u32);

impl WalSegmentSize {
    /// What `initdb` chooses when nobody asks for another.
    pub const DEFAULT: WalSegmentSize = WalSegmentSize(16 << 20);

    /// The size in bytes as a checked type, or `None` when PostgreSQL would not accept it.
    pub const fn new(size_bytes: u32) -> Option<Self> {
        let fits = size_bytes.is_power_of_two() && size_bytes >= 1 << 20 && size_bytes <= 1 << 30;
        if fits {
            Some(WalSegmentSize(size_bytes))
        } else {
            None
        }
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0 as u64
    }

    /// The size in bytes, as PostgreSQL's `uint32` headers carry it.
    pub const fn bytes_u32(self) -> u32 {
        self.0
    }

    /// How many segments share one 4 GiB log id (`XLogSegmentsPerXLogId`).
    pub const fn segments_per_log(self) -> u32 {
        // 2^32 over a power of two of at least 2^20, without leaving u32.
        1 << (32 - self.0.trailing_zeros())
    }
}

impl fmt::Display for WalSegmentSize {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} MiB", self.0 >> 20)
    }
}

/// The 24 hexadecimal digits that name a segment: timeline, log id, and number within the log id.
///
/// Which LSN the name stands for depends on the segment size, so the arithmetic asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    timeline: TimelineId,
    log: u32,
    number_in_log: u32,
}

impl SegmentName {
    /// The segment of `timeline` that holds the byte at `lsn`.
    ///
    /// On an exact boundary this is the segment that begins there, which is what PostgreSQL
    /// 17's `pg_walfile_name_offset` answers and what older servers answer one too low.
    pub fn containing(timeline: TimelineId, lsn: Lsn, size: WalSegmentSize) -> Self {
        Self::from_number(timeline, lsn.0 / size.bytes(), size)
    }

    /// The segment with this number counted from the start of the stream (`XLogSegNo`).
    pub fn from_number(timeline: TimelineId, number: u64, size: WalSegmentSize) -> Self {
        let per_log = u64::from(size.segments_per_log());
        // An LSN has 64 bits, so neither half of number / per_log can exceed 32.
        SegmentName {
            timeline,
            log: u32::try_from(number / per_log).unwrap_or(u32::MAX),
            number_in_log: u32::try_from(number % per_log).unwrap_or(u32::MAX),
        }
    }

    /// The timeline the name begins with. Pages within may carry an older one: the first
    /// segment after a promotion starts as a copy of the old timeline's last.
    pub const fn timeline(self) -> TimelineId {
        self.timeline
    }

    /// `XLogSegNo`, or `None` when no segment of this size can have this name.
    pub fn number(self, size: WalSegmentSize) -> Option<u64> {
        (self.number_in_log < size.segments_per_log()).then(|| {
            u64::from(self.log) * u64::from(size.segments_per_log()) + u64::from(self.number_in_log)
        })
    }

    /// Where the segment begins, or `None` when no segment of this size can have this name.
    pub fn start(self, size: WalSegmentSize) -> Option<Lsn> {
        self.number(size).map(|number| Lsn(number * size.bytes()))
    }

    /// The segment after this one on the same timeline, or `None` at the end of all WAL.
    pub fn next(self, size: WalSegmentSize) -> Option<Self> {
        let next = self.number(size)?.checked_add(1)?;
        (next <= u64::MAX / size.bytes()).then(|| Self::from_number(self.timeline, next, size))
    }

    fn parse(text: &str) -> Option<Self> {
        let field = |at: usize| hexadecimal(text.get(at..at + 8)?);
        (text.len() == 24).then_some(())?;
        Some(SegmentName {
            timeline: TimelineId::new(field(0)?)?,
            log: field(8)?,
            number_in_log: field(16)?,
        })
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{:08X}{:08X}{:08X}",
            self.timeline.number(),
            self.log,
            self.number_in_log
        )
    }
}

impl FromStr for SegmentName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Self::parse(text).ok_or_else(|| {
            InvalidName::new("a segment name of 24 upper-case hexadecimal digits", text)
        })
    }
}

/// Every kind of file that PostgreSQL's archiver hands to `archive_command`
/// (`IsXLogFileName` and friends, `src/include/access/xlog_internal.h`).
///
/// Ordered by kind, then by timeline and position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalFileName {
    /// `TTTTTTTT.history`: how a timeline came about.
    History(TimelineId),
    /// `SEGMENT.OFFSET.backup`: where a base backup began and ended.
    BackupHistory(SegmentName, u32),
    /// `SEGMENT`: one finished segment.
    Segment(SegmentName),
    /// `SEGMENT.partial`: the last, unfinished segment of a timeline that a promotion left.
    Partial(SegmentName),
}

impl WalFileName {
    /// The segment that the name begins with; a history file has none.
    pub const fn segment(self) -> Option<SegmentName> {
        match self {
            WalFileName::History(_) => None,
            WalFileName::BackupHistory(segment, _)
            | WalFileName::Segment(segment)
            | WalFileName::Partial(segment) => Some(segment),
        }
    }

    /// The timeline the name speaks of.
    pub const fn timeline(self) -> TimelineId {
        match self {
            WalFileName::History(timeline) => timeline,
            WalFileName::BackupHistory(segment, _)
            | WalFileName::Segment(segment)
            | WalFileName::Partial(segment) => segment.timeline,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        if let Some(stem) = text.strip_suffix(".history") {
            (stem.len() == 8).then_some(())?;
            return Some(WalFileName::History(TimelineId::new(hexadecimal(stem)?)?));
        }
        let (segment, rest) = text.split_at_checked(24)?;
        let segment = SegmentName::parse(segment)?;
        match rest {
            "" => Some(WalFileName::Segment(segment)),
            ".partial" => Some(WalFileName::Partial(segment)),
            _ => {
                let offset = rest.strip_prefix('.')?.strip_suffix(".backup")?;
                (offset.len() == 8).then_some(())?;
                Some(WalFileName::BackupHistory(segment, hexadecimal(offset)?))
            }
        }
    }
}

impl fmt::Display for WalFileName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WalFileName::History(timeline) => write!(out, "{:08X}.history", timeline.number()),
            WalFileName::BackupHistory(segment, offset) => {
                write!(out, "{segment}.{offset:08X}.backup")
            }
            WalFileName::Segment(segment) => write!(out, "{segment}"),
            WalFileName::Partial(segment) => write!(out, "{segment}.partial"),
        }
    }
}

impl FromStr for WalFileName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        (text.len() <= NAME_BYTES_MAX)
            .then(|| Self::parse(text))
            .flatten()
            .ok_or_else(|| {
                InvalidName::new(
                    "a WAL file name: 24 upper-case hexadecimal digits, with .partial or \
                 .OFFSET.backup behind them, or TIMELINE.history",
                    text,
                )
            })
    }
}

/// Text that is not the name it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidName {
    expected: &'static str,
    found: String,
}

impl InvalidName {
    fn new(expected: &'static str, found: &str) -> Self {
        InvalidName {
            expected,
            found: found.chars().take(NAME_BYTES_MAX).collect(),
        }
    }
}

impl fmt::Display for InvalidName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "expected {}, found {:?}", self.expected, self.found)
    }
}

impl std::error::Error for InvalidName {}

/// PostgreSQL writes names with upper-case digits only; accepting both would give one segment
/// two names in the archive.
fn hexadecimal(digits: &str) -> Option<u32> {
    let upper = digits
        .bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'));
    upper
        .then(|| u32::from_str_radix(digits, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn segment_size() -> impl Strategy<Value = WalSegmentSize> {
        (20_u32..=30).prop_map(|shift| WalSegmentSize::new(1 << shift).unwrap())
    }

    #[test]
    fn names_postgresql_writes_are_read() {
        for name in [
            "000000010000000200000092",
            "00000002.history",
            "000000010000000200000092.00000028.backup",
            "0000000A00000002000000FF.partial",
        ] {
            assert_eq!(name.parse::<WalFileName>().unwrap().to_string(), name);
        }
    }

    /// FAULTS 89: nothing but the allow-list becomes a name.
    #[test]
    fn fault_89_names_that_could_leave_the_folder_are_refused() {
        for name in [
            "",
            ".",
            "..",
            "../000000010000000200000092",
            "/000000010000000200000092",
            "000000010000000200000092/..",
            "000000010000000200000092\0",
            "00000001000000020000009a",
            ".in.000000010000000200000092.abc",
            "000000010000000200000092.partial.partial",
            "000000000000000200000092",
            "00000000.history",
            "+0000001.history",
            "000000010000000200000092.+0000028.backup",
            "00000001000000020000009é",
            "STOP",
        ] {
            assert!(
                name.parse::<WalFileName>().is_err(),
                "{name:?} was accepted"
            );
        }
    }

    #[test]
    fn a_boundary_names_the_segment_that_begins_there() {
        let timeline = TimelineId::new(1).unwrap();
        let size = WalSegmentSize::DEFAULT;
        let name = SegmentName::containing(timeline, Lsn(0x2_0000_0000), size);
        assert_eq!(name.to_string(), "000000010000000200000000");
        let before = SegmentName::containing(timeline, Lsn(0x1_FFFF_FFFF), size);
        assert_eq!(before.to_string(), "0000000100000001000000FF");
        assert_eq!(before.next(size), Some(name));
    }

    #[test]
    fn fault_51_names_of_large_segments_stop_at_their_last_number() {
        let gibibyte = WalSegmentSize::new(1 << 30).unwrap();
        let name: SegmentName = "000000010000000000000003".parse().unwrap();
        assert_eq!(
            name.next(gibibyte).unwrap().to_string(),
            "000000010000000100000000"
        );
        let beyond: SegmentName = "000000010000000000000004".parse().unwrap();
        assert_eq!(beyond.number(gibibyte), None);
    }

    #[test]
    fn lsns_read_as_postgresql_writes_them() {
        assert_eq!("16/B374D848".parse::<Lsn>().unwrap(), Lsn(0x16_B374_D848));
        assert_eq!(Lsn(0x16_B374_D848).to_string(), "16/B374D848");
        for text in [
            "",
            "/",
            "1",
            "1/",
            "/1",
            "123456789/0",
            "0/-1",
            "0/+1",
            "g/0",
        ] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?} was accepted");
        }
    }

    proptest! {
        #[test]
        fn fault_51_every_lsn_lies_in_its_segment(
            lsn: u64, timeline in 1_u32.., size in segment_size(),
        ) {
            let timeline = TimelineId::new(timeline).unwrap();
            let name = SegmentName::containing(timeline, Lsn(lsn), size);
            let start = name.start(size).unwrap().0;
            prop_assert!(start <= lsn && lsn - start < size.bytes());
            prop_assert_eq!(name.to_string().parse::<SegmentName>().unwrap(), name);
            prop_assert_eq!(name.number(size), Some(lsn / size.bytes()));
        }

        /// FAULTS 7: whatever parses, prints back to the same text, so no two texts share a file.
        #[test]
        fn fault_7_a_name_has_one_spelling(text in "[0-9A-Fa-f.]{0,40}(history|partial|backup)?") {
            if let Ok(name) = text.parse::<WalFileName>() {
                prop_assert_eq!(name.to_string(), text);
            }
        }
    }
}
