//! The messages of a trial, which measures a link with blocks that nobody keeps; kinds 96 to 99.
//! Never carries a file of the archive. Invariant: nothing here can be taken for an acknowledgement of one.
//!
//! # Payloads
//!
//! Fields as in [`crate::message`]. All of them belong to a channel from 1 on. The blocks travel in data blocks (kind 5)
//! from the client.
//!
//! | kind | message | sent by | payload |
//! |-----:|---------|---------|---------|
//! | 96 | begin | client | `u64` size of all blocks before compression, `bool` they are to be synced |
//! | 97 | begun | receiver | nothing |
//! | 98 | end | client | `u64` size, `u32` CRC-32 of what was sent |
//! | 99 | measured | receiver | `u64` size, `u32` CRC-32 of what arrived, `u64` microseconds of unpacking, checking and writing, `u64` microseconds of syncing |

use bytes::{BufMut, BytesMut};

use crate::error::Malformed;
use crate::fields::Fields;
use crate::message::kind::MessageKind;
use crate::message::shared::Digest;

/// Asks for a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrialBegin {
    /// Bytes of all blocks before compression, at most [`crate::limits::TRIAL_BYTES_MAX`].
    pub size: u64,
    /// Whether they are written to the archive's disk and synced there before they are dropped.
    pub synced: bool,
}

/// What the receiver found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// Size and CRC-32 of what arrived, unpacked.
    pub digest: Digest,
    /// Time of unpacking, checking and writing, in microseconds.
    pub worked_us: u64,
    /// Time of syncing, in microseconds.
    pub synced_us: u64,
}

/// Everything that is said about a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trial {
    /// I would like to send so much.
    Begin(TrialBegin),
    /// Send it.
    Begun,
    /// That was all of it.
    End(Digest),
    /// It arrived, and is dropped.
    Measured(Measured),
}

impl Trial {
    pub(super) const fn kind(&self) -> MessageKind {
        match self {
            Trial::Begin(_) => MessageKind::TrialBegin,
            Trial::Begun => MessageKind::TrialBegun,
            Trial::End(_) => MessageKind::TrialEnd,
            Trial::Measured(_) => MessageKind::TrialMeasured,
        }
    }

    pub(super) fn encode(&self, out: &mut BytesMut) {
        let put_digest = |out: &mut BytesMut, digest: &Digest| {
            out.put_u64_le(digest.size);
            out.put_u32_le(digest.crc32);
        };
        match self {
            Trial::Begin(begin) => {
                out.put_u64_le(begin.size);
                out.put_u8(u8::from(begin.synced));
            }
            Trial::Begun => {}
            Trial::End(digest) => put_digest(out, digest),
            Trial::Measured(measured) => {
                put_digest(out, &measured.digest);
                out.put_u64_le(measured.worked_us);
                out.put_u64_le(measured.synced_us);
            }
        }
    }

    /// The message of this kind that a payload holds; `None` for a kind of another flow.
    pub(super) fn decode(
        kind: MessageKind,
        fields: &mut Fields,
    ) -> Result<Option<Trial>, Malformed> {
        Ok(Some(match kind {
            MessageKind::TrialBegin => Trial::Begin(TrialBegin {
                size: fields.u64()?,
                synced: fields.boolean("blocks are synced")?,
            }),
            MessageKind::TrialBegun => Trial::Begun,
            MessageKind::TrialEnd => Trial::End(fields.digest()?),
            MessageKind::TrialMeasured => Trial::Measured(Measured {
                digest: fields.digest()?,
                worked_us: fields.u64()?,
                synced_us: fields.u64()?,
            }),
            _ => return Ok(None),
        }))
    }
}
