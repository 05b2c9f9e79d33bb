//! Page headers of PostgreSQL 13 to 18 and the rules a page has to follow.
//! Never looks at records. Invariant: a page that passes belongs at the address it was read from.
//!
//! Layout (`src/include/access/xlog_internal.h`), little-endian:
//!
//! ```text
//!  0  u16 xlp_magic      which major version wrote the page
//!  2  u16 xlp_info       flags, below
//!  4  u32 xlp_tli        timeline of the first record on the page
//!  8  u64 xlp_pageaddr   LSN of the page
//! 16  u32 xlp_rem_len    bytes left of a record that continues from the page before
//! 20  u32 padding
//! 24  u64 xlp_sysid         only in the first page of a segment
//! 32  u32 xlp_seg_size      only there
//! 36  u32 xlp_xlog_blcksz   only there
//! ```

use walmgr_protocol::names::{Lsn, SystemId, TimelineId, WalSegmentSize};

/// `XLOG_BLCKSZ`: the size of a WAL page.
pub(crate) const PAGE_BYTES: u64 = 8192;

/// `SizeOfXLogShortPHD`: the header of every page but a segment's first.
pub(crate) const SHORT_HEADER_BYTES: usize = 24;

/// `SizeOfXLogLongPHD`: the header of a segment's first page.
pub(crate) const LONG_HEADER_BYTES: usize = SHORT_HEADER_BYTES + 16;

/// `XLP_FIRST_IS_CONTRECORD`: the page begins with the rest of a record.
pub(crate) const FIRST_IS_CONTRECORD: u16 = 0x0001;
/// `XLP_LONG_HEADER`: the header has the three fields of a segment's first page.
pub(crate) const LONG_HEADER: u16 = 0x0002;
/// `XLP_BKP_REMOVABLE`: full-page images that begin on this page may be left out.
pub(crate) const BKP_REMOVABLE: u16 = 0x0004;
/// `XLP_FIRST_IS_OVERWRITE_CONTRECORD`: the rest of a record belongs here, but a crash lost it,
/// and the page begins with a record that says so.
pub(crate) const FIRST_IS_OVERWRITE_CONTRECORD: u16 = 0x0008;

const ALL_FLAGS: u16 =
    FIRST_IS_CONTRECORD | LONG_HEADER | BKP_REMOVABLE | FIRST_IS_OVERWRITE_CONTRECORD;

/// `XLOG_PAGE_MAGIC` of each major version, oldest first.
const MAGICS: [(u16, u8); 6] = [
    (0xD106, 13),
    (0xD10D, 14),
    (0xD110, 15),
    (0xD113, 16),
    (0xD116, 17),
    (0xD118, 18),
];

/// The major version that writes pages with this magic number, if it is one of 13 to 18.
pub(crate) fn major_of(magic: u16) -> Option<u8> {
    let known = MAGICS.iter().find(|(known, _)| *known == magic)?;
    Some(known.1)
}

/// The magic number this major version writes, if it is one of 13 to 18.
pub(crate) fn magic_of(major: u8) -> Option<u16> {
    let known = MAGICS.iter().find(|(_, known)| *known == major)?;
    Some(known.0)
}

/// How many bytes the header of the page at `address` has.
pub(crate) fn header_bytes(address: Lsn, size: WalSegmentSize) -> usize {
    if address.0.is_multiple_of(size.bytes()) {
        LONG_HEADER_BYTES
    } else {
        SHORT_HEADER_BYTES
    }
}

/// Where a record begins that follows one which ends here.
pub(crate) fn record_begins_behind(end: Lsn, size: WalSegmentSize) -> Lsn {
    match end.0.is_multiple_of(PAGE_BYTES) {
        true => Lsn(end.0.saturating_add(header_bytes(end, size) as u64)),
        false => end,
    }
}

/// The fields of a page header; those of a segment's first page are 0 in any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageHeader {
    /// `xlp_magic`
    pub magic: u16,
    /// `xlp_info`
    pub flags: u16,
    /// `xlp_tli`
    pub timeline: u32,
    /// `xlp_pageaddr`
    pub address: Lsn,
    /// `xlp_rem_len`
    pub remaining_bytes: u32,
    /// `xlp_sysid`
    pub system_id: SystemId,
    /// `xlp_seg_size`
    pub segment_bytes: u32,
    /// `xlp_xlog_blcksz`
    pub page_bytes: u32,
}

impl PageHeader {
    /// Reads a header that has its three further fields if `long`.
    pub(crate) fn decode(bytes: &[u8; LONG_HEADER_BYTES], long: bool) -> Self {
        let further = |value: u64| if long { value } else { 0 };
        PageHeader {
            magic: u16_at(bytes, 0),
            flags: u16_at(bytes, 2),
            timeline: u32_at(bytes, 4),
            address: Lsn(u64_at(bytes, 8)),
            remaining_bytes: u32_at(bytes, 16),
            system_id: SystemId(further(u64_at(bytes, 24))),
            segment_bytes: if long { u32_at(bytes, 32) } else { 0 },
            page_bytes: if long { u32_at(bytes, 36) } else { 0 },
        }
    }

    /// Writes the header as a segment's first page has it; other pages use its first
    /// [`SHORT_HEADER_BYTES`].
    pub(crate) fn encode(&self) -> [u8; LONG_HEADER_BYTES] {
        let mut bytes = [0; LONG_HEADER_BYTES];
        bytes[0..2].copy_from_slice(&self.magic.to_le_bytes());
        bytes[2..4].copy_from_slice(&self.flags.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.timeline.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.address.0.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.remaining_bytes.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.system_id.0.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.segment_bytes.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.page_bytes.to_le_bytes());
        bytes
    }

    /// Whether all of these flags are set.
    pub(crate) const fn has(&self, flags: u16) -> bool {
        self.flags & flags == flags
    }
}

/// What a page has to agree with. What is `None` is not known and accepts anything.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageRules {
    /// `wal_segment_size`
    pub segment_size: WalSegmentSize,
    /// The cluster.
    pub system_id: Option<SystemId>,
    /// The major version that wrote the pages before.
    pub major: Option<u8>,
    /// The timeline of the page before; it never decreases.
    pub oldest_timeline: u32,
    /// The newest timeline a page may have.
    pub newest_timeline: Option<TimelineId>,
}

impl PageRules {
    /// Rules that know nothing but the segment size.
    pub(crate) const fn new(segment_size: WalSegmentSize) -> Self {
        PageRules {
            segment_size,
            system_id: None,
            major: None,
            oldest_timeline: 0,
            newest_timeline: None,
        }
    }

    /// Reads the header of the page at `address`.
    ///
    /// # Errors
    /// [`PageFault::Blank`] and [`PageFault::Stale`] when WAL has not been written here, any
    /// other fault when what was written does not belong here.
    pub(crate) fn check(
        &self,
        bytes: &[u8; LONG_HEADER_BYTES],
        address: Lsn,
    ) -> Result<PageHeader, PageFault> {
        let length = header_bytes(address, self.segment_size);
        let header = PageHeader::decode(bytes, length == LONG_HEADER_BYTES);
        if bytes[..length].iter().all(|byte| *byte == 0) {
            return Err(PageFault::Blank);
        }
        let found = major_of(header.magic).ok_or(PageFault::Magic(header.magic))?;
        self.check_version(found)?;
        if header.flags & !ALL_FLAGS != 0 {
            return Err(PageFault::Flags(header.flags));
        }
        if header.has(LONG_HEADER) != (length == LONG_HEADER_BYTES) {
            return Err(PageFault::Flags(header.flags));
        }
        if header.has(LONG_HEADER) {
            self.check_cluster(&header)?;
        }
        self.check_address(header.address, address)?;
        self.check_timeline(header.timeline)?;
        Ok(header)
    }

    fn check_version(&self, found: u8) -> Result<(), PageFault> {
        match self.major {
            Some(expected) if expected != found => Err(PageFault::Version { expected, found }),
            _ => Ok(()),
        }
    }

    fn check_cluster(&self, header: &PageHeader) -> Result<(), PageFault> {
        match self.system_id {
            Some(expected) if expected != header.system_id => {
                return Err(PageFault::SystemId {
                    expected,
                    found: header.system_id,
                });
            }
            _ => {}
        }
        if header.segment_bytes != self.segment_size.bytes_u32() {
            return Err(PageFault::SegmentSize {
                expected: self.segment_size,
                found: header.segment_bytes,
            });
        }
        if u64::from(header.page_bytes) != PAGE_BYTES {
            return Err(PageFault::PageSize(header.page_bytes));
        }
        Ok(())
    }

    /// A recycled segment is an old one under a new name, so what it still holds from its first
    /// life has a lower address at the same offset. Any other address is damage.
    fn check_address(&self, found: Lsn, expected: Lsn) -> Result<(), PageFault> {
        let same_offset =
            found.0 % self.segment_size.bytes() == expected.0 % self.segment_size.bytes();
        if found == expected {
            Ok(())
        } else if found < expected && same_offset {
            Err(PageFault::Stale { found })
        } else {
            Err(PageFault::Address { expected, found })
        }
    }

    fn check_timeline(&self, found: u32) -> Result<(), PageFault> {
        if found == 0 || found < self.oldest_timeline {
            return Err(PageFault::OlderTimeline {
                expected: self.oldest_timeline.max(1),
                found,
            });
        }
        match self.newest_timeline {
            Some(newest) if found > newest.number() => {
                Err(PageFault::NewerTimeline { newest, found })
            }
            _ => Ok(()),
        }
    }
}

/// Why a page does not belong where it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PageFault {
    /// Nothing was written here yet.
    #[error("the page header is all zeros")]
    Blank,
    /// Nothing was written here since the segment was recycled.
    #[error("the page is left over from {found}, before the segment was recycled")]
    Stale {
        /// Where the page belonged in the segment's first life.
        found: Lsn,
    },
    /// Not a magic number of PostgreSQL 13 to 18.
    #[error("page magic {0:#06X} is not one of PostgreSQL 13 to 18")]
    Magic(u16),
    /// Another major version's magic number.
    #[error("the page was written by PostgreSQL {found}, expected {expected}")]
    Version {
        /// The major version of the pages before, or of the archive.
        expected: u8,
        /// The major version that writes this magic number.
        found: u8,
    },
    /// Unknown flags, or a long header where none belongs, or none where one belongs.
    #[error("page flags {0:#06X} are not possible here")]
    Flags(u16),
    /// Another cluster's WAL.
    #[error("the page belongs to system identifier {found}, expected {expected}")]
    SystemId {
        /// The cluster the WAL should be of.
        expected: SystemId,
        /// The cluster it is of.
        found: SystemId,
    },
    /// WAL of another `wal_segment_size`.
    #[error("the page says segments have {found} bytes, expected {expected}")]
    SegmentSize {
        /// The size segments should have.
        expected: WalSegmentSize,
        /// `xlp_seg_size`
        found: u32,
    },
    /// A server built with another `--with-wal-blocksize`.
    #[error("the page says WAL pages have {0} bytes, expected {PAGE_BYTES}")]
    PageSize(u32),
    /// The page belongs somewhere else.
    #[error("the page says its address is {found}, expected {expected}")]
    Address {
        /// Where the page was read.
        expected: Lsn,
        /// `xlp_pageaddr`
        found: Lsn,
    },
    /// The timeline decreases from one page to the next.
    #[error("the page is of timeline {found} after pages of timeline {expected}")]
    OlderTimeline {
        /// The timeline of the page before.
        expected: u32,
        /// `xlp_tli`
        found: u32,
    },
    /// The page is of a timeline that is newer than its file's.
    #[error("the page is of timeline {found}, newer than {newest}")]
    NewerTimeline {
        /// The newest timeline that may stand here.
        newest: TimelineId,
        /// `xlp_tli`
        found: u32,
    },
}

fn u16_at(bytes: &[u8; LONG_HEADER_BYTES], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8; LONG_HEADER_BYTES], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8; LONG_HEADER_BYTES], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: WalSegmentSize = WalSegmentSize::DEFAULT;
    const SYSTEM: SystemId = SystemId(7_000_000_000_000_000_001);

    fn first_page(address: u64) -> PageHeader {
        PageHeader {
            magic: 0xD110,
            flags: LONG_HEADER,
            timeline: 3,
            address: Lsn(address),
            remaining_bytes: 0,
            system_id: SYSTEM,
            segment_bytes: SIZE.bytes_u32(),
            page_bytes: 8192,
        }
    }

    fn rules() -> PageRules {
        PageRules {
            system_id: Some(SYSTEM),
            major: Some(15),
            oldest_timeline: 2,
            newest_timeline: TimelineId::new(3),
            ..PageRules::new(SIZE)
        }
    }

    #[test]
    fn a_header_survives_encoding() {
        let header = first_page(SIZE.bytes() * 5);
        assert_eq!(rules().check(&header.encode(), header.address), Ok(header));
        assert_eq!(header_bytes(header.address, SIZE), 40);
        assert_eq!(header_bytes(Lsn(header.address.0 + 8192), SIZE), 24);
    }

    #[test]
    fn each_supported_major_has_its_own_magic() {
        for major in 13..=18 {
            assert_eq!(major_of(magic_of(major).unwrap()), Some(major));
        }
        assert_eq!(magic_of(12), None);
        assert_eq!(major_of(0xD101), None);
    }

    #[test]
    fn each_wrong_field_has_its_own_fault() {
        let at = Lsn(SIZE.bytes() * 5);
        let fault = |change: &dyn Fn(&mut PageHeader)| {
            let mut header = first_page(at.0);
            change(&mut header);
            rules().check(&header.encode(), at).unwrap_err()
        };
        assert_eq!(fault(&|page| page.magic = 0xD119), PageFault::Magic(0xD119));
        assert_eq!(
            fault(&|page| page.magic = 0xD118),
            PageFault::Version {
                expected: 15,
                found: 18
            }
        );
        assert_eq!(fault(&|page| page.flags |= 0x10), PageFault::Flags(0x12));
        assert_eq!(fault(&|page| page.flags = 0), PageFault::Flags(0));
        assert_eq!(
            fault(&|page| page.system_id = SystemId(1)),
            PageFault::SystemId {
                expected: SYSTEM,
                found: SystemId(1)
            }
        );
        assert_eq!(
            fault(&|page| page.segment_bytes = 1 << 20),
            PageFault::SegmentSize {
                expected: SIZE,
                found: 1 << 20
            }
        );
        assert_eq!(
            fault(&|page| page.page_bytes = 4096),
            PageFault::PageSize(4096)
        );
        assert_eq!(
            fault(&|page| page.timeline = 4),
            PageFault::NewerTimeline {
                newest: TimelineId::new(3).unwrap(),
                found: 4
            }
        );
        assert_eq!(
            fault(&|page| page.timeline = 1),
            PageFault::OlderTimeline {
                expected: 2,
                found: 1
            }
        );
        assert_eq!(
            fault(&|page| page.address = Lsn(at.0 + SIZE.bytes())),
            PageFault::Address {
                expected: at,
                found: Lsn(at.0 + SIZE.bytes())
            }
        );
    }

    #[test]
    fn what_a_recycled_segment_still_holds_is_not_damage() {
        let at = Lsn(SIZE.bytes() * 5);
        let stale = first_page(SIZE.bytes() * 2);
        assert_eq!(
            rules().check(&stale.encode(), at),
            Err(PageFault::Stale {
                found: stale.address
            })
        );
        assert_eq!(
            rules().check(&[0; LONG_HEADER_BYTES], at),
            Err(PageFault::Blank)
        );
        let elsewhere = first_page(SIZE.bytes() * 2 + 8192);
        assert!(matches!(
            rules().check(&elsewhere.encode(), at),
            Err(PageFault::Address { .. })
        ));
    }
}
