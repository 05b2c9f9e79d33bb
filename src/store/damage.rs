//! What is known of a partial segment whose records end too early.
//! Never finds it; `partial::proven` does. Invariant: it names an end of records, and one behind that.

use std::fmt;

use walmgr_protocol::names::{Lsn, SegmentName};

/// Why an end of records is none of WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damage {
    /// The segment.
    pub segment: SegmentName,
    /// Where its records end.
    pub end: Lsn,
    /// Up to where there were more.
    pub known: KnownBy,
}

/// How it is known that there was more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KnownBy {
    /// It was acknowledged up to here.
    Acknowledged(Lsn),
    /// A whole record lies behind, which ends here.
    Behind(Lsn),
}

impl Damage {
    /// Up to where there were records, at least.
    pub const fn known_to(&self) -> Lsn {
        match self.known {
            KnownBy::Acknowledged(lsn) | KnownBy::Behind(lsn) => lsn,
        }
    }

    /// Up to where records were acknowledged for certain.
    pub const fn acknowledged(&self) -> Option<Lsn> {
        match self.known {
            KnownBy::Acknowledged(lsn) => Some(lsn),
            KnownBy::Behind(_) => None,
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Damage { segment, end, .. } = self;
        match self.known {
            KnownBy::Acknowledged(lsn) => write!(
                out,
                "the partial {segment} is damaged: its records end at {end}, but were \
                 acknowledged up to {lsn}"
            ),
            KnownBy::Behind(lsn) => write!(
                out,
                "the partial {segment} is damaged: its records end at {end}, but a whole record \
                 behind that ends at {lsn}"
            ),
        }
    }
}
