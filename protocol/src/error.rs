//! What can be wrong with bytes from a peer, sorted by whose fault it is.
//! Never carries more of the peer's bytes than a bounded excerpt.

use std::fmt;

use crate::error_code::ErrorCode;
use crate::message::kind::MessageKind;
use crate::names::{InvalidName, Lsn};

/// Bytes that no correct program sends: line noise, an attack, or something else on the port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Malformed {
    /// The stream does not begin like ours.
    NotWalmgr {
        /// The bytes found where the magic should be.
        found: [u8; 8],
    },
    /// A checksum does not hold.
    Checksum {
        /// What was checksummed.
        of: &'static str,
        /// The CRC-32 the sender wrote.
        stated: u32,
        /// The CRC-32 of what arrived.
        found: u32,
    },
    /// A length is above its bound.
    TooLong {
        /// What is too long.
        what: &'static str,
        /// The bound, in the unit of the length.
        most: u64,
        /// The length found.
        found: u64,
    },
    /// A message ends before its fields do.
    CutShort {
        /// What is cut short.
        what: &'static str,
    },
    /// A message goes on after its last field.
    Surplus {
        /// What goes on.
        what: &'static str,
        /// Bytes behind the last field.
        bytes: usize,
    },
    /// A field holds a value that has no meaning.
    BadValue {
        /// The field.
        what: &'static str,
        /// The value found.
        found: u64,
    },
    /// A string is not UTF-8.
    NotText {
        /// The field.
        what: &'static str,
    },
    /// A name is none.
    BadName(InvalidName),
    /// A compressed block does not unpack to what it states.
    BadBlock {
        /// Why.
        why: String,
    },
}

impl fmt::Display for Malformed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Malformed::NotWalmgr { found } => write!(
                out,
                "the other side does not speak walmgr's protocol: it began with \"{}\"",
                found.escape_ascii()
            ),
            Malformed::Checksum { of, stated, found } => write!(
                out,
                "the {of} was damaged on its way: CRC-32 {stated:08X} was sent, {found:08X} arrived"
            ),
            Malformed::TooLong { what, most, found } => {
                write!(out, "{what} of {found} where at most {most} is allowed")
            }
            Malformed::CutShort { what } => write!(out, "{what} ends before its fields do"),
            Malformed::Surplus { what, bytes } => {
                write!(out, "{what} has {bytes} bytes behind its last field")
            }
            Malformed::BadValue { what, found } => write!(out, "{what} cannot be {found}"),
            Malformed::NotText { what } => write!(out, "{what} is not UTF-8"),
            Malformed::BadName(error) => error.fmt(out),
            Malformed::BadBlock { why } => write!(out, "a compressed block is damaged: {why}"),
        }
    }
}

impl std::error::Error for Malformed {}

impl From<InvalidName> for Malformed {
    fn from(error: InvalidName) -> Self {
        Malformed::BadName(error)
    }
}

/// Well-formed frames that break the rules of the conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerMisbehaved {
    /// A frame arrived twice, out of order, or from another connection.
    Sequence {
        /// The sequence the next frame must carry.
        expected: u32,
        /// The one it carried.
        found: u32,
    },
    /// A message that has no place where the conversation stands.
    Unexpected {
        /// Where the conversation stands.
        state: &'static str,
        /// What may come there.
        expected: &'static [MessageKind],
        /// What came.
        found: MessageKind,
    },
    /// A data block does not continue where the last one ended.
    Offset {
        /// Where the next block must begin, in bytes.
        expected: u64,
        /// Where it began.
        found: u64,
    },
    /// More bytes than the offer named.
    BeyondOffer {
        /// The size offered, in bytes.
        size: u64,
        /// Where the block would have ended.
        end: u64,
    },
    /// A commit or an acknowledgement speaks of another file than the offer.
    OtherFile {
        /// Size and CRC-32 offered.
        offered: (u64, u32),
        /// Size and CRC-32 found.
        found: (u64, u32),
    },
    /// What is said to be held of a segment does not fit what was asked about.
    Prefix {
        /// Bytes that were asked about.
        offered: u64,
        /// Bytes said to be held.
        held: u64,
        /// Bytes said to be compared; it has to be the lesser of both.
        common: u64,
    },
    /// Records are acknowledged that were never sent.
    BeyondSent {
        /// The end of what was sent.
        sent: Lsn,
        /// What was acknowledged.
        found: Lsn,
    },
    /// An answer is about another number of things than was asked or sent.
    Count {
        /// Of what.
        of: &'static str,
        /// How many there were.
        expected: u64,
        /// How many the answer is about.
        found: u64,
    },
    /// A channel number above what was agreed.
    Channel {
        /// Highest channel agreed.
        most: u16,
        /// The one found.
        found: u16,
    },
}

impl fmt::Display for PeerMisbehaved {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerMisbehaved::Sequence { expected, found } => write!(
                out,
                "frame {found} arrived where frame {expected} was due: repeated, reordered, or \
                 from another connection"
            ),
            PeerMisbehaved::Unexpected {
                state,
                expected,
                found,
            } => {
                write!(out, "{} arrived while {state}, where ", found.words())?;
                put_alternatives(out, expected)
            }
            PeerMisbehaved::Offset { expected, found } => {
                write!(
                    out,
                    "a block at offset {found} arrived where {expected} was due"
                )
            }
            PeerMisbehaved::BeyondOffer { size, end } => {
                write!(
                    out,
                    "a block ends at {end}, beyond the {size} bytes that were offered"
                )
            }
            PeerMisbehaved::OtherFile { offered, found } => write!(
                out,
                "{} bytes with CRC-32 {:08X} were offered, but the other side speaks of {} bytes \
                 with CRC-32 {:08X}",
                offered.0, offered.1, found.0, found.1
            ),
            PeerMisbehaved::Prefix {
                offered,
                held,
                common,
            } => write!(
                out,
                "the other side compares {common} bytes where {offered} were offered and {held} \
                 are held"
            ),
            PeerMisbehaved::BeyondSent { sent, found } => {
                write!(
                    out,
                    "WAL was acknowledged up to {found}, but sent up to {sent}"
                )
            }
            PeerMisbehaved::Count {
                of,
                expected,
                found,
            } => {
                write!(
                    out,
                    "the answer is about {found} {of} where there were {expected}"
                )
            }
            PeerMisbehaved::Channel { most, found } => {
                write!(out, "channel {found} was used where {most} is the highest")
            }
        }
    }
}

impl std::error::Error for PeerMisbehaved {}

fn put_alternatives(out: &mut fmt::Formatter<'_>, kinds: &[MessageKind]) -> fmt::Result {
    let Some((last, before)) = kinds.split_last() else {
        return out.write_str("nothing may come");
    };
    out.write_str("only ")?;
    for (index, kind) in before.iter().enumerate() {
        let comma = if index > 0 { ", " } else { "" };
        write!(out, "{comma}{}", kind.words())?;
    }
    let or = if before.is_empty() { "" } else { " or " };
    write!(out, "{or}{} may come", last.words())
}

/// Everything that ends a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProtocolError {
    /// The bytes make no sense.
    Malformed(Malformed),
    /// They do, but not here.
    Misbehaved(PeerMisbehaved),
    /// A kind or flag this version does not know.
    Incompatible {
        /// What is unknown: `frame kind` or `frame flags`.
        what: &'static str,
        /// Its number.
        found: u64,
    },
}

impl ProtocolError {
    /// The code under which this side reports it before it hangs up.
    pub const fn code(&self) -> ErrorCode {
        match self {
            ProtocolError::Malformed(_) => ErrorCode::Malformed,
            ProtocolError::Misbehaved(_) => ErrorCode::Misbehaved,
            ProtocolError::Incompatible { .. } => ErrorCode::Incompatible,
        }
    }
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProtocolError::Malformed(error) => error.fmt(out),
            ProtocolError::Misbehaved(error) => error.fmt(out),
            ProtocolError::Incompatible { what, found } => write!(
                out,
                "{what} {found} is unknown to this version; the two sides run versions too far \
                 apart"
            ),
        }
    }
}

impl std::error::Error for ProtocolError {}

impl From<Malformed> for ProtocolError {
    fn from(error: Malformed) -> Self {
        ProtocolError::Malformed(error)
    }
}

impl From<PeerMisbehaved> for ProtocolError {
    fn from(error: PeerMisbehaved) -> Self {
        ProtocolError::Misbehaved(error)
    }
}

impl From<InvalidName> for ProtocolError {
    fn from(error: InvalidName) -> Self {
        ProtocolError::Malformed(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unexpected_message_is_named_with_what_may_come_instead() {
        let said = |expected| {
            let (state, found) = ("a file is being received", MessageKind::Offer);
            let misbehaved = PeerMisbehaved::Unexpected {
                state,
                expected,
                found,
            };
            misbehaved.to_string()
        };
        let begin = "an offer arrived while a file is being received, where ";
        assert_eq!(said(&[]), format!("{begin}nothing may come"));
        assert_eq!(
            said(&[MessageKind::Error]),
            format!("{begin}only an error may come")
        );
        assert_eq!(
            said(&[MessageKind::Data, MessageKind::Commit, MessageKind::Error]),
            format!("{begin}only a data block, a commit or an error may come")
        );
    }
}
