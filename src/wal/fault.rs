//! Everything that can be wrong with WAL, told apart so that a message can name it.
//! Never decides. Invariant: each text is a part of a sentence that follows a position.

use walmgr_protocol::names::Lsn;

use super::page::PageFault;

/// Why bytes are not valid WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// The page does not belong here.
    #[error(transparent)]
    Page(#[from] PageFault),
    /// The scan was asked to begin where neither a page nor a record can.
    #[error("no record can begin here")]
    Start,
    /// `xl_tot_len` is below a header's or above what PostgreSQL can read.
    #[error("a record of {0} bytes is not possible")]
    Length(u32),
    /// `xl_prev` is not the record before.
    #[error("the record's link to the one before says {found}, expected {expected}")]
    PreviousLink {
        /// The record before.
        expected: Lsn,
        /// `xl_prev`
        found: Lsn,
    },
    /// `xl_prev` of the first record scanned points to where the scan began or behind it.
    #[error("the record's link to the one before says {found}, expected one before {limit}")]
    PreviousNotBefore {
        /// Where the scan began.
        limit: Lsn,
        /// `xl_prev`
        found: Lsn,
    },
    /// `xl_crc` is not the checksum of the record.
    #[error("the record's checksum is {found:08X}, its bytes give {computed:08X}")]
    Checksum {
        /// Of the bytes.
        computed: u32,
        /// `xl_crc`
        found: u32,
    },
    /// The page says it continues a record, but none is open; or says 0 bytes of it are left.
    #[error("the page continues a record that does not reach it")]
    UnexpectedContinuation,
    /// A record is open, but the page does not continue it.
    #[error("the page does not continue the record before it, {expected_bytes} bytes are missing")]
    MissingContinuation {
        /// What is left of the record.
        expected_bytes: u32,
    },
    /// The page continues a record of another length.
    #[error("the page says {found_bytes} bytes of a record are left, expected {expected_bytes}")]
    ContinuationLength {
        /// What is left of the record.
        expected_bytes: u32,
        /// `xlp_rem_len`
        found_bytes: u32,
    },
    /// A page that overwrites the rest of a record has to begin with
    /// `XLOG_OVERWRITE_CONTRECORD`, and nothing else may.
    #[error("an overwritten record and the page's flags do not agree")]
    Overwrite,
}
