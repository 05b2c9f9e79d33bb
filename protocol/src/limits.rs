//! Every bound of the wire, with its reason. A length read from a peer is compared with one of
//! these before a byte is allocated for it.

/// Longest payload a frame may announce unless both sides agreed on more: large enough that
/// per-frame work vanishes beside the copy, small enough that 8 in flight stay in a CPU's cache.
pub const FRAME_PAYLOAD_BYTES: u32 = 1 << 20;

/// Longest payload that may ever be agreed on in the hello.
pub const FRAME_PAYLOAD_BYTES_MAX: u32 = 8 << 20;

/// Raw bytes in a data block when `block_size` does not say otherwise.
pub const BLOCK_BYTES_DEFAULT: u32 = 256 << 10;

/// The highest level of `store_compression`: a receiver that names a higher one has masters spend no more on it.
pub const STORE_LEVEL_MAX: u8 = 9;

/// Smallest `block_size`: below it the frame header and the system calls outweigh the data.
pub const BLOCK_BYTES_MIN: u32 = 4 << 10;

/// Largest `block_size`, and the most a receiver takes, packed or not: every bound on memory below
/// counts in blocks of this size.
pub const BLOCK_BYTES_MAX: u32 = 256 << 10;

/// Longest string in a message: room for a sentence and a path, none for a flood.
pub const STRING_BYTES_MAX: usize = 4 << 10;

/// Longest file name: PostgreSQL's longest is a 24 + 1 + 8 + 7 byte backup history name.
pub const NAME_BYTES_MAX: usize = 64;

/// Longest body of a hello or its answer; they are read before the peer is known.
pub const HELLO_BODY_BYTES_MAX: u32 = 4 << 10;

/// Uploads that may be open at once on one connection: one being written, one being synced, and
/// two so that neither waits for the other's acknowledgement.
pub const CHANNELS_MAX: u16 = 4;

/// Blocks of one upload between the socket and the disk: one that waits while one is written.
pub const BLOCKS_IN_FLIGHT: usize = 2;

/// What one connection may hold in memory: for every channel the blocks in flight and one that
/// is unpacked, and the frame that is being read.
pub const CONNECTION_BYTES_MAX: u64 = 4 << 20;

/// zstd window (log2) a block may ask for: 8 MiB, the most a decoder here will set aside.
pub const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// Highest zstd level `compression` accepts; beyond 19 windows grow past the bound above.
pub const ZSTD_LEVEL_MAX: u8 = 19;

/// What one key may have stored that no reader follows: segments and histories that are set apart,
/// `.partial` and `.backup` files. It is more than a master leaves that catches up a thousand segments of 16 MiB
/// behind a hole, so only a flood meets it, or a timeline that nobody has looked at for long. Then no more of
/// that key is set apart, and of `.partial` and `.backup` files, which count by themselves, its oldest go.
/// What is followed does not count.
pub const UNFOLLOWED_BYTES_PER_KEY_MAX: u64 = 32 << 30;

/// What each of those counts for at least, so that small ones use up no inodes.
pub const UNFOLLOWED_FILE_BYTES_MIN: u64 = 1 << 20;

/// Segments in progress that a stream may leave behind without a whole one before them. A master
/// leaves one, where a hole in the archive ends.
pub const STRAY_SEGMENTS_MAX: usize = 16;

/// Segments for which room is kept on the standby's disk: a boot freezes what is in progress, and writes
/// a history. The last of it is for small files, so that a full disk loses no failover.
pub const RESERVED_SEGMENTS: u64 = 4;

/// Longest file a history, backup-history or other non-segment upload may be: PostgreSQL writes
/// some hundred bytes; a cluster that was promoted a thousand times stays below this.
pub const SMALL_FILE_BYTES_MAX: u64 = 1 << 20;

/// Raw bytes of one trial of `bench`: some seconds on the fastest link there is, and no more than a few uploads.
pub const TRIAL_BYTES_MAX: u64 = 1 << 30;

/// Names one list answer carries before the client asks for the next page.
pub const LIST_ENTRIES_MAX: u16 = 1_000;

/// Longest path inside a backup set: Linux's `PATH_MAX`, which PostgreSQL cannot exceed either.
pub const PATH_BYTES_MAX: usize = 4 << 10;

/// Longest single name inside a backup set: `NAME_MAX` of every Linux file system.
pub const COMPONENT_BYTES_MAX: usize = 255;

/// Deepest path inside a backup set. PostgreSQL needs 5 (`tmpspc/OID/VERSION/DATABASE/FILE`);
/// the rest is for what people keep in a data directory.
pub const PATH_DEPTH_MAX: usize = 64;

/// Highest number behind a backup set's name: as many as `keep_backups` can ask for.
pub const BACKUP_NUMBER_MAX: u32 = 10_000;

/// Files and directories in one backup set. The standby remembers some hundred bytes of each
/// until the set is complete, so this bounds its memory, and the inodes a peer can take.
pub const SET_ENTRIES_MAX: usize = 2 << 20;

/// Bytes of all paths in one backup set, directories included: thirty for each of
/// [`SET_ENTRIES_MAX`], where PostgreSQL's have twenty. The standby remembers them until the set is
/// complete, and a set of few files with the longest paths may not cost more.
pub const SET_PATH_BYTES_MAX: usize = 64 << 20;

/// Longest line of a `backup_manifest` without its path: the names of the fields, a size, a time, and
/// the longest checksum.
pub const MANIFEST_ENTRY_BYTES_MAX: u64 = 320;

/// Bytes of a `backup_manifest` beside its files: its head, and a line for each timeline that passed.
pub const MANIFEST_FRAME_BYTES_MAX: u64 = 128 << 10;

/// Longest extended header of a tar entry: one path, one size, and the times and owners that
/// some programs add.
pub const TAR_EXTENDED_BYTES_MAX: usize = 16 << 10;

/// Streams of one backup: as many as `backup_jobs` can ask for, and one for the control file.
pub const BACKUP_STREAMS_MAX: u16 = 65;

/// Paths in one question, answer or confirmation: the longest of them fit a frame.
pub const BACKUP_PATHS_MAX: u16 = 128;

/// Ranges of blocks that are needed of one file: of a file of 1 GiB every other page, but for one. What is scattered
/// wider, in longer files, is taken together.
pub const FILE_RANGES_MAX: u16 = u16::MAX;

/// Ranges of blocks in one answer: those of a file with the most, and of many others; they fit a frame.
pub const NEEDED_RANGES_MAX: usize = 98_304;

/// Warnings behind a sealed set.
pub const BACKUP_WARNINGS_MAX: u16 = 16;

/// Longest `backup_manifest`: what a set of [`SET_ENTRIES_MAX`] files with ordinary names needs.
/// The standby holds it in memory while it compares it with what has arrived, so it also takes no
/// longer one than the files that have arrived can have.
pub const MANIFEST_BYTES_MAX: u64 = 512 << 20;

/// Longest configuration file that a backup brings along.
pub const CONFIG_FILE_BYTES_MAX: u64 = 1 << 20;

/// Configuration files that a backup brings along: PostgreSQL has three, the rest is for includes.
pub const CONFIG_FILES_MAX: usize = 16;

/// Backup sets in one page of a list: three sentences of the longest for each fit a frame.
pub const LISTED_BACKUPS_MAX: u16 = 64;

/// Tablespaces in the description of a set: with the longest paths they fit a frame.
pub const SET_TABLESPACES_MAX: u16 = 240;

/// Restore points that a verdict about a target names: what fits a sentence.
pub const RESTORE_POINTS_MAX: u16 = 5;

/// Files in one request for pages: with the longest paths and [`WANTED_DIGESTS_MAX`] they fit a frame.
pub const WANTED_FILES_MAX: u16 = 128;

/// Digests of pages in one request, of all its files: those of 128 MiB, so that the next request is asked for
/// while the disk still reads ahead, and the receiver remembers little of each.
pub const WANTED_DIGESTS_MAX: u16 = 16 << 10;

/// Longest that WAL is looked through for a target, in seconds: at 300 MiB/s a terabyte. Whoever asked waits as
/// long; then it is left to PostgreSQL.
pub const TARGET_SEARCH_S_MAX: u64 = 3_600;

/// Masters that an overview names: what fits a screen; the others are counted.
pub const OVERVIEW_MASTERS_MAX: u16 = 16;

/// Backup sets that an overview describes: with the longest sentences they and the masters fit a
/// frame; the others are counted.
pub const OVERVIEW_SETS_MAX: u16 = 64;

const _: () = assert!(
    (OVERVIEW_SETS_MAX as usize) * (2 * (2 + STRING_BYTES_MAX) + 32)
        + (OVERVIEW_MASTERS_MAX as usize + 4) * (2 + STRING_BYTES_MAX)
        + 4 * NAME_BYTES_MAX
        + 256
        < FRAME_PAYLOAD_BYTES as usize
);
const _: () = assert!(
    (LISTED_BACKUPS_MAX as usize) * (3 * (2 + STRING_BYTES_MAX) + NAME_BYTES_MAX + 16) + 64
        < FRAME_PAYLOAD_BYTES as usize
);
const _: () = assert!(
    (SET_TABLESPACES_MAX as usize) * (4 + 8 + 2 + PATH_BYTES_MAX)
        + (3 + RESTORE_POINTS_MAX as usize) * (2 + STRING_BYTES_MAX)
        + 128
        < FRAME_PAYLOAD_BYTES as usize
);
const _: () = assert!(
    (WANTED_FILES_MAX as usize) * (2 + PATH_BYTES_MAX + 8 + 8 + 2)
        + (WANTED_DIGESTS_MAX as usize) * 8
        + STRING_BYTES_MAX
        + 64
        < FRAME_PAYLOAD_BYTES as usize
);
const _: () = assert!(
    (BACKUP_PATHS_MAX as usize) * (2 + PATH_BYTES_MAX + 8 + 4) + 64 < FRAME_PAYLOAD_BYTES as usize
);
const _: () = assert!(
    NEEDED_RANGES_MAX * 8 + (BACKUP_PATHS_MAX as usize) * 3 + 64 < FRAME_PAYLOAD_BYTES as usize
);
const _: () = assert!(
    (BACKUP_WARNINGS_MAX as usize + 2) * (2 + STRING_BYTES_MAX) + 64 < FRAME_PAYLOAD_BYTES as usize
);
const _: () = assert!(TAR_EXTENDED_BYTES_MAX > 2 * PATH_BYTES_MAX);
const _: () = assert!(PATH_BYTES_MAX > COMPONENT_BYTES_MAX);
const _: () = assert!(BLOCK_BYTES_DEFAULT >= BLOCK_BYTES_MIN);
const _: () = assert!(BLOCK_BYTES_DEFAULT <= BLOCK_BYTES_MAX);
const _: () = assert!(BLOCK_BYTES_MAX + 64 <= FRAME_PAYLOAD_BYTES);
const _: () = assert!(FRAME_PAYLOAD_BYTES <= FRAME_PAYLOAD_BYTES_MAX);
const _: () = assert!(BLOCK_BYTES_MAX <= 1 << ZSTD_WINDOW_LOG_MAX);
const _: () = assert!(
    // A list page must fit a frame: a name behind its u16 length, and a u64 size each.
    (LIST_ENTRIES_MAX as usize) * (2 + NAME_BYTES_MAX + 8) + 64 < FRAME_PAYLOAD_BYTES as usize
);
const _: () = assert!(
    (BLOCKS_IN_FLIGHT as u64 + 1) * BLOCK_BYTES_MAX as u64 * CHANNELS_MAX as u64
        + FRAME_PAYLOAD_BYTES as u64
        <= CONNECTION_BYTES_MAX
);
