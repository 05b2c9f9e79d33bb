//! Pages of relations: their checksums, and what a wrong one means while a backup is made.
//! Never reads a file. Invariant: a page is called bad only if no WAL of the backup repairs it.

use walmgr_protocol::names::{Lsn, RelativePath};
use walmgr_protocol::patch::PageLook;

use super::control::ControlFile;
use super::relation::RelationFile;

/// Bytes of a page, unless PostgreSQL was built otherwise (`BLCKSZ`).
pub const PAGE_BYTES: usize = 8192;

// `PageHeaderData` (`src/include/storage/bufpage.h`): pd_lsn is two u32, the high one first; then
// pd_checksum u16, pd_flags u16, pd_lower u16, pd_upper u16, ...
const LSN_HIGH: usize = 0;
const LSN_LOW: usize = 4;
const CHECKSUM: usize = 8;
const LOWER: usize = 12;
const UPPER: usize = 14;
const SPECIAL: usize = 16;
/// `SizeOfPageHeaderData`.
const HEADER_BYTES: usize = 24;

// `SpGistPageOpaqueData` (`src/include/access/spgist_private.h`), the last bytes of each page of an SP-GiST index:
// flags u16, nRedirection u16, nPlaceholder u16, spgist_page_id u16.
const SPGIST_OPAQUE: usize = PAGE_BYTES - 8;
const SPGIST_PAGE_ID: u16 = 0xFF82;
/// The flag of the index's first page.
const SPGIST_META: u16 = 1;
/// `SpGistMetaPageData`: the magic number u32, and then `lastUsedPages`.
const SPGIST_LAST_USED: usize = HEADER_BYTES + 4;

/// What a page looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageState {
    /// Its checksum is right.
    Good,
    /// All zeros: added to the relation, not yet used.
    New,
    /// Its checksum is wrong, but it was being written while the backup ran: replay puts back the
    /// whole page, because full pages are logged as long as a backup runs.
    NewerThanStart,
    /// Its checksum is wrong and nothing repairs it. Read again it may be better: a write
    /// can be seen half done.
    Bad,
}

/// A relation file whose pages carry checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pages {
    /// The number of the file's first page within its fork.
    first_block: u32,
}

impl Pages {
    /// `None` for a file that has no pages, and for all files of a cluster without checksums or
    /// with pages of another size.
    pub fn of(path: &RelativePath, control: &ControlFile) -> Option<Pages> {
        let has_pages = control.data_checksums && control.block_bytes as usize == PAGE_BYTES;
        let file = has_pages.then(|| RelationFile::of(path))??;
        let first_block = file.segment.checked_mul(control.segment_blocks)?;
        Some(Pages { first_block })
    }

    /// Judges the page at this place of the file, counted in pages. `start` is where the WAL of the
    /// backup begins (`verify_page_checksum`, `src/backend/backup/basebackup.c`; which pages
    /// count as new is `PageIsVerified`'s, `src/backend/storage/page/bufpage.c`).
    pub fn judge(self, page: &[u8; PAGE_BYTES], index: u32, start: Lsn) -> PageState {
        let block = self.first_block.wrapping_add(index);
        if page.iter().all(|byte| *byte == 0) {
            PageState::New
        } else if stored_checksum(page) == checksum(page, block) {
            PageState::Good
        } else if lsn(page) >= start {
            PageState::NewerThanStart
        } else {
            PageState::Bad
        }
    }

    /// Whether the page was just being written when it was read, or is damaged.
    pub(crate) fn is_torn(self, page: &[u8; PAGE_BYTES], index: u32, start: Lsn) -> bool {
        !matches!(
            self.judge(page, index, start),
            PageState::Good | PageState::New
        )
    }

    /// Which pages of a piece of the file are bad, as places in the file. The piece begins with
    /// the page at `first_index`; a rest shorter than a page is not looked at.
    pub fn bad_blocks(
        self,
        piece: &[u8],
        first_index: u32,
        start: Lsn,
    ) -> impl Iterator<Item = u32> {
        let (pages, _) = piece.as_chunks::<PAGE_BYTES>();
        let numbered = (first_index..).zip(pages);
        let is_bad = move |(index, page): &(u32, &[u8; PAGE_BYTES])| {
            self.judge(page, *index, start) == PageState::Bad
        };
        numbered.filter(is_bad).map(|(index, _)| index)
    }
}

/// `pd_lsn`: the end of the WAL record that changed the page last.
pub(crate) fn lsn(page: &[u8; PAGE_BYTES]) -> Lsn {
    let half = |at: usize| u64::from(u32_at(page, at));
    Lsn(half(LSN_HIGH) << 32 | half(LSN_LOW))
}

/// What two good copies of a page have in common: all but its checksum, but what lies between `pd_lower` and `pd_upper`,
/// which replay fills with zeros, and but what an SP-GiST index remembers of where there was room.
pub(crate) fn look(page: &[u8; PAGE_BYTES]) -> PageLook {
    let u16_at = |at: usize| usize::from(u16::from_ne_bytes([page[at], page[at + 1]]));
    let (lower, upper) = (u16_at(LOWER), u16_at(UPPER));
    let mut masked = *page;
    masked[CHECKSUM..CHECKSUM + 2].fill(0);
    // As `RestoreBlockImage` and `mask_unused_space` have it; another page has no hole.
    if lower >= HEADER_BYTES && lower <= upper && upper <= PAGE_BYTES {
        masked[lower..upper].fill(0);
    }
    if is_spgist_meta(page) {
        masked[SPGIST_LAST_USED..SPGIST_OPAQUE].fill(0);
    }
    PageLook {
        lsn: lsn(page),
        crc32c: crc32c::crc32c(&masked),
    }
}

/// Whether this is the first page of an SP-GiST index. What it says of pages with room is not in the WAL, and need not be
/// right: `SpGistUpdateMetaPage` marks the page dirty and logs nothing, and `SpGistGetBuffer` looks at such a page before
/// it uses it (`src/backend/access/spgist/spgutils.c`). Such a page is there: an SP-GiST index never gets shorter.
fn is_spgist_meta(page: &[u8; PAGE_BYTES]) -> bool {
    let u16_at = |at: usize| u16::from_ne_bytes([page[at], page[at + 1]]);
    usize::from(u16_at(SPECIAL)) == SPGIST_OPAQUE
        && u16_at(SPGIST_OPAQUE + 6) == SPGIST_PAGE_ID
        && u16_at(SPGIST_OPAQUE) & SPGIST_META != 0
}

fn stored_checksum(page: &[u8; PAGE_BYTES]) -> u16 {
    u16::from_ne_bytes([page[CHECKSUM], page[CHECKSUM + 1]])
}

fn u32_at(page: &[u8; PAGE_BYTES], at: usize) -> u32 {
    u32::from_ne_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]])
}

/// How many FNV-1a hashes run side by side, so that a processor can use its vectors.
const SUMS: usize = 32;
const FNV_PRIME: u32 = 16_777_619;

/// `checksumBaseOffsets`: what the hashes begin with.
const BASE_OFFSETS: [u32; SUMS] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// `pg_checksum_page` (`src/include/storage/checksum_impl.h`): the page with its checksum taken as
/// zero, mixed with its number so that a page in a wrong place is noticed; never 0.
pub(crate) fn checksum(page: &[u8; PAGE_BYTES], block: u32) -> u16 {
    let mut sums = BASE_OFFSETS;
    let (rows, _) = page.as_chunks::<{ SUMS * 4 }>();
    let mut first = rows[0];
    first[CHECKSUM..CHECKSUM + 2].fill(0);
    mix_row(&mut sums, &first);
    for row in &rows[1..] {
        mix_row(&mut sums, row);
    }
    // Two rounds of zeros, so that the last values reach every bit.
    mix_row(&mut sums, &[0; SUMS * 4]);
    mix_row(&mut sums, &[0; SUMS * 4]);
    let mixed = sums.iter().fold(0, |mixed, sum| mixed ^ sum) ^ block;
    // One above a remainder of 65535 fits.
    u16::try_from(mixed % 65_535 + 1).unwrap_or(u16::MAX)
}

fn mix_row(sums: &mut [u32; SUMS], row: &[u8; SUMS * 4]) {
    let (values, _) = row.as_chunks::<4>();
    for (sum, value) in sums.iter_mut().zip(values) {
        let mixed = *sum ^ u32::from_ne_bytes(*value);
        *sum = mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17);
    }
}

#[cfg(test)]
mod tests {
    use super::super::control;
    use super::super::fixtures::control_file;
    use super::*;

    const START: Lsn = Lsn(0x1_0000_1000);

    fn pages(path: &str) -> Option<Pages> {
        let control = control::parse(&control_file(15)).unwrap();
        Pages::of(&path.parse().unwrap(), &control)
    }

    fn page(lsn: Lsn, block: u32) -> [u8; PAGE_BYTES] {
        let mut page = [0; PAGE_BYTES];
        for (at, byte) in page.iter_mut().enumerate() {
            *byte = u8::try_from(at * 7 % 251).unwrap();
        }
        let halves = [lsn.0 >> 32, lsn.0 & 0xFFFF_FFFF];
        for (at, half) in [LSN_HIGH, LSN_LOW].into_iter().zip(halves) {
            let half = u32::try_from(half).unwrap();
            page[at..at + 4].copy_from_slice(&half.to_ne_bytes());
        }
        let sum = checksum(&page, block);
        page[CHECKSUM..CHECKSUM + 2].copy_from_slice(&sum.to_ne_bytes());
        page
    }

    #[test]
    fn only_relation_files_of_clusters_with_checksums_have_pages() {
        assert_eq!(pages("base/5/16384").unwrap().first_block, 0);
        assert_eq!(pages("base/5/16384_vm.3").unwrap().first_block, 3 << 17);
        assert_eq!(pages("base/5/pg_filenode.map"), None);
        assert_eq!(pages("base/5/16384.4294967295"), None);
        let mut control = control::parse(&control_file(15)).unwrap();
        control.data_checksums = false;
        assert_eq!(Pages::of(&"base/5/16384".parse().unwrap(), &control), None);
    }

    #[test]
    fn fault_57_a_torn_page_is_bad_unless_wal_repairs_it() {
        let pages = pages("base/5/16384.1").unwrap();
        let block = (1 << 17) + 5;
        let judge = |page: &[u8; PAGE_BYTES]| pages.judge(page, 5, START);
        assert_eq!(judge(&[0; PAGE_BYTES]), PageState::New);
        for (lsn, torn) in [
            (Lsn(START.0 - 1), PageState::Bad),
            (START, PageState::NewerThanStart),
            (Lsn(START.0 + 1), PageState::NewerThanStart),
        ] {
            let mut page = page(lsn, block);
            assert_eq!(judge(&page), PageState::Good);
            page[4096..].fill(0);
            assert_eq!(judge(&page), torn);
        }
        let elsewhere = page(Lsn(1), block + 1);
        assert_eq!(judge(&elsewhere), PageState::Bad, "a page in a wrong place");
        let mut half_new = [0; PAGE_BYTES];
        half_new[8000] = 1;
        assert_eq!(judge(&half_new), PageState::Bad);
    }

    #[test]
    fn fault_57_every_flipped_bit_of_an_old_page_is_noticed() {
        let pages = pages("base/5/16384").unwrap();
        let mut page = page(Lsn(1), 0);
        for at in 8..PAGE_BYTES {
            page[at] ^= 1 << (at % 8);
            assert_eq!(pages.judge(&page, 0, START), PageState::Bad, "byte {at}");
            page[at] ^= 1 << (at % 8);
        }
    }

    #[test]
    fn fault_208_of_a_first_page_only_the_cache_of_sp_gist_is_not_compared() {
        let mut meta = [0; PAGE_BYTES];
        let put = |page: &mut [u8; PAGE_BYTES], at: usize, value: u16| {
            page[at..at + 2].copy_from_slice(&value.to_ne_bytes());
        };
        put(&mut meta, LOWER, 92);
        put(&mut meta, UPPER, 8184);
        put(&mut meta, SPECIAL, 8184);
        put(&mut meta, SPGIST_OPAQUE, SPGIST_META);
        put(&mut meta, PAGE_BYTES - 2, SPGIST_PAGE_ID);
        // Another kind of page, an inner one of the same index, and one without a special space.
        for (at, value) in [
            (PAGE_BYTES - 2, 0xFF81),
            (SPGIST_OPAQUE, 4),
            (SPECIAL, 8192),
        ] {
            let mut other = meta;
            put(&mut other, at, value);
            let before = look(&other);
            other[60] ^= 1;
            assert_ne!(look(&other), before, "{at}");
        }
        let before = look(&meta);
        for at in SPGIST_LAST_USED..92 {
            meta[at] ^= 1;
            assert_eq!(look(&meta), before, "{at}");
        }
        for at in [0, 10, HEADER_BYTES, SPGIST_OPAQUE + 2] {
            let mut other = meta;
            other[at] ^= 1;
            assert_ne!(look(&other), before, "{at}");
        }
    }

    #[test]
    fn bad_pages_are_named_by_their_place_in_the_file() {
        let pages = pages("base/5/16384").unwrap();
        let mut piece = Vec::new();
        for block in 10..14 {
            piece.extend_from_slice(&page(Lsn(1), block));
        }
        piece[PAGE_BYTES + 100] ^= 1;
        piece[3 * PAGE_BYTES + 100] ^= 1;
        piece.extend_from_slice(&[7; 100]);
        let bad: Vec<u32> = pages.bad_blocks(&piece, 10, START).collect();
        assert_eq!(bad, [11, 13]);
    }
}
