//! What of a page is in no WAL, so that no copy made by WAL has to have it.
//! Never masks a hint: whether hints are logged is the caller's to know. Invariant: a page of another kind stays as it is.

const PAGE_BYTES: usize = 8192;
/// Where the opaque part of each page of an SP-GiST index begins: flags u16, ..., `spgist_page_id` u16.
const OPAQUE: usize = PAGE_BYTES - 8;
/// Behind the magic number of the first page: `lastUsedPages`, eight times a block and its free bytes.
const LAST_USED: std::ops::Range<usize> = 28..92;

/// Empties what the first page of an SP-GiST index remembers of pages with room, and the page's checksum.
/// `SpGistUpdateMetaPage` writes that and never logs it, and `SpGistGetBuffer` takes it as a hint (`spgutils.c`):
/// replay knows nothing of it. It leaves the LSN as it was, by which each other change still shows.
pub fn mask_spgist_cache(page: &mut [u8]) {
    let u16_at = |at: usize| u16::from_le_bytes([page[at], page[at + 1]]);
    let is_meta = usize::from(u16_at(16)) == OPAQUE
        && u16_at(PAGE_BYTES - 2) == 0xFF82
        && u16_at(OPAQUE) & 1 != 0;
    if is_meta {
        page[8..10].fill(0);
        page[LAST_USED].fill(0);
    }
}
