//! The numbers under which a refusal travels, and what it ends.
//! Never says anything in words. Invariant: a number is never used again for another meaning.

/// What an error ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Scope {
    /// The connection; nothing follows.
    Connection = 0,
    /// The upload on the frame's channel.
    Channel = 1,
}

macro_rules! error_codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// Why something was refused. Numbers are never used again for another meaning.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u16)]
        pub enum ErrorCode { $($(#[$doc])* $name = $number,)* }

        impl ErrorCode {
            /// Every code there is.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$name,)*];
        }
    };
}

error_codes! {
    /// Bytes that no correct program sends.
    Malformed = 1,
    /// A correct message in the wrong place.
    Misbehaved = 2,
    /// No common protocol version, or a kind or flag this version does not know.
    Incompatible = 3,
    /// The peer's key is not in `authorized_keys`, or TLS is required.
    NotAuthorized = 4,
    /// The peer's key is known but lacks the right this asks for.
    RightMissing = 5,
    /// The archive is bound to no cluster; `setup` has to run first.
    NotSetUp = 6,
    /// The archive is bound to another cluster.
    ForeignCluster = 7,
    /// The file does not belong to the cluster, or not under this name.
    ForeignFile = 8,
    /// The file is not intact WAL.
    DamagedFile = 9,
    /// The bytes that arrived are not the ones that were offered.
    Mismatch = 10,
    /// The file is larger than a file of its kind can be.
    TooLarge = 11,
    /// No space, inodes or quota left where the archive is.
    DiskFull = 12,
    /// The disk failed in another way; nothing was acknowledged.
    DiskFailed = 13,
    /// Too many connections or uploads at once.
    Busy = 14,
    /// The receiver is stopping.
    ShuttingDown = 15,
    /// Nothing, or too little, arrived for too long.
    TimedOut = 16,
    /// The receiver has a bug.
    Internal = 17,
    /// The other side gave this upload up.
    Abandoned = 18,
    /// The set that an incremental backup began with is not what it should be: a full one has to be made.
    ParentUnfit = 19,
    /// Another client writes the partial stream.
    WriterActive = 32,
    /// The WAL contradicts what is archived, or the archive has a newer timeline.
    Diverged = 33,
    /// The open partial segment was finished meanwhile: open it again.
    Finished = 34,
    /// The history of the timeline has to be archived first.
    HistoryMissing = 35,
}

impl ErrorCode {
    /// The code with this number, [`ErrorCode::Internal`] for one of a later version.
    pub fn from_number(number: u16) -> ErrorCode {
        Self::ALL
            .iter()
            .copied()
            .find(|code| *code as u16 == number)
            .unwrap_or(Self::Internal)
    }
}
