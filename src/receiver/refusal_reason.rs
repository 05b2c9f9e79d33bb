//! Why peers are refused, in few words that never change: for whoever counts.
//! Never says whom. Invariant: every code of the wire has a reason, so that a new one cannot go uncounted.

use walmgr_protocol::message::ErrorCode;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $word:literal,)*) => {
        /// Why somebody or something was refused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum RefusalReason { $($(#[$doc])* $name,)* }

        impl RefusalReason {
            /// All there are.
            pub(crate) const ALL: &'static [RefusalReason] = &[$(RefusalReason::$name,)*];

            /// For programs.
            pub(crate) const fn word(self) -> &'static str {
                match self { $(RefusalReason::$name => $word,)* }
            }
        }
    };
}

reasons! {
    /// It sent nothing, or not enough in time.
    Silent = "silent",
    /// What it sent was no TLS, or no hello.
    Handshake = "handshake",
    /// It speaks no common version, or said what has no place.
    Protocol = "protocol",
    /// It is on no list.
    NotAuthorized = "not_authorized",
    /// It is on a list, without the right.
    RightMissing = "right_missing",
    /// The archive is not set up.
    NotSetUp = "not_set_up",
    /// It is of another cluster, or what it sent is.
    Foreign = "foreign",
    /// What it sent is no intact WAL.
    Damaged = "damaged",
    /// What arrived is not what was offered.
    Mismatch = "mismatch",
    /// The disk is full.
    DiskFull = "disk_full",
    /// The disk failed.
    DiskFailed = "disk_failed",
    /// There are too many at once.
    Busy = "busy",
    /// The receiver stops.
    Stopping = "stopping",
    /// Its WAL contradicts what is archived, or a boot froze it.
    Diverged = "diverged",
    /// Another one ships records.
    WriterActive = "writer_active",
    /// It has to begin again, or to send something else first: no harm.
    Retry = "retry",
    /// The receiver or the system has failed.
    Internal = "internal",
}

impl From<ErrorCode> for RefusalReason {
    fn from(code: ErrorCode) -> Self {
        match code {
            ErrorCode::Malformed | ErrorCode::Misbehaved | ErrorCode::Incompatible => {
                RefusalReason::Protocol
            }
            ErrorCode::NotAuthorized => RefusalReason::NotAuthorized,
            ErrorCode::RightMissing => RefusalReason::RightMissing,
            ErrorCode::NotSetUp => RefusalReason::NotSetUp,
            ErrorCode::ForeignCluster | ErrorCode::ForeignFile => RefusalReason::Foreign,
            ErrorCode::DamagedFile | ErrorCode::ParentUnfit => RefusalReason::Damaged,
            ErrorCode::Mismatch | ErrorCode::TooLarge => RefusalReason::Mismatch,
            ErrorCode::DiskFull => RefusalReason::DiskFull,
            ErrorCode::DiskFailed => RefusalReason::DiskFailed,
            ErrorCode::Busy => RefusalReason::Busy,
            ErrorCode::ShuttingDown => RefusalReason::Stopping,
            ErrorCode::TimedOut => RefusalReason::Silent,
            ErrorCode::Internal => RefusalReason::Internal,
            ErrorCode::WriterActive => RefusalReason::WriterActive,
            ErrorCode::Diverged => RefusalReason::Diverged,
            ErrorCode::Abandoned | ErrorCode::Finished | ErrorCode::HistoryMissing => {
                RefusalReason::Retry
            }
        }
    }
}
