//! The messages of the partial stream, each struct beside its encoding; kinds 80 to 86.
//! Never interprets one. Invariant: an append states where the whole records in it end, and only a
//! proof makes the answer to it.
//!
//! # Payloads
//!
//! Fields as in [`crate::message`]; `lsn` is a `u64`, `segment` a `name`, or empty where it says so.
//! All of them belong to a channel from 1 on.
//!
//! | kind | message | sent by | payload |
//! |-----:|---------|---------|---------|
//! | 80 | begin | client | `u32` timeline |
//! | 81 | begun | receiver | `segment` newest finished or empty, `segment` oldest partial behind it or empty, `segment` newest partial or empty; all of the timeline |
//! | 82 | open | client | `segment`, `u64` bytes of it that the client has, `u32` CRC-32 of them |
//! | 83 | at | receiver | `u64` bytes held, `u64` the lesser of both lengths, `u32` CRC-32 of that many bytes held |
//! | 84 | rewrite | client | nothing |
//! | 85 | append | client | `u64` offset, `lsn` end of the last whole record, `u32` raw length, then the block, raw or (flag bit 0) one zstd frame |
//! | 86 | durable | receiver | `lsn` |

use bytes::{BufMut, Bytes, BytesMut};

use crate::compress::{check_payload, check_raw_bytes};
use crate::error::Malformed;
use crate::fields::{Fields, put_string};
use crate::frame::FLAG_ZSTD;
use crate::message::kind::MessageKind;
use crate::names::{Lsn, SegmentName, TimelineId};

/// Asks to be the one that writes the stream of this timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartialBegin {
    /// The timeline that is being written.
    pub timeline: TimelineId,
}

/// Where the receiver stands on the timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    /// The highest finished segment.
    pub newest_finished: Option<SegmentName>,
    /// The lowest partial segment behind it.
    pub oldest_partial: Option<SegmentName>,
    /// The highest partial segment behind it.
    pub newest_partial: Option<SegmentName>,
}

/// The segment that is written next, and what the client has of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Open {
    /// Which.
    pub segment: SegmentName,
    /// Bytes from its beginning that are whole records.
    pub bytes: u64,
    /// CRC-32 of them.
    pub crc32: u32,
}

/// What the receiver holds of the open segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    /// Durable bytes from its beginning.
    pub held_bytes: u64,
    /// The lesser of these and what the client has.
    pub common_bytes: u64,
    /// CRC-32 of that many bytes, to be compared with the client's own.
    pub common_crc32: u32,
}

/// Bytes that continue the open segment; the block itself is the rest of the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Append {
    /// Where in the segment they begin.
    pub offset: u64,
    /// Where the last record ends that is whole with them. Bytes behind it are the beginning of a
    /// record that is too long for one append, or that continues in the next segment.
    pub end: Lsn,
    /// Their number before compression.
    pub raw_bytes: u32,
    /// Whether `bytes` is one zstd frame (header flag, not payload).
    pub zstd: bool,
    /// The block as it travels.
    pub bytes: Bytes,
}

/// Up to where records are durable. The only way to one on the sending side is
/// [`crate::session::partial::acknowledge`], which asks for a proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DurableTo(pub(crate) Lsn);

impl DurableTo {
    /// The end of the last record that is durable.
    pub const fn lsn(self) -> Lsn {
        self.0
    }
}

/// Everything the partial stream says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Partial {
    /// I write this timeline.
    Begin(PartialBegin),
    /// Go on from there.
    Begun(Begun),
    /// This segment is next.
    Open(Open),
    /// This much of it is here.
    At(At),
    /// It is not the same: I send it from its beginning.
    Rewrite,
    /// More of it.
    Append(Append),
    /// It is durable. Only [`crate::session::partial`] builds one, from a proof.
    Durable(DurableTo),
}

impl Partial {
    pub(super) const fn kind(&self) -> MessageKind {
        match self {
            Partial::Begin(_) => MessageKind::PartialBegin,
            Partial::Begun(_) => MessageKind::PartialBegun,
            Partial::Open(_) => MessageKind::PartialOpen,
            Partial::At(_) => MessageKind::PartialAt,
            Partial::Rewrite => MessageKind::PartialRewrite,
            Partial::Append(_) => MessageKind::PartialAppend,
            Partial::Durable(_) => MessageKind::PartialDurable,
        }
    }

    /// Appends the payload and returns the header's flags.
    pub(super) fn encode(&self, out: &mut BytesMut) -> u8 {
        match self {
            Partial::Begin(begin) => out.put_u32_le(begin.timeline.number()),
            Partial::Begun(begun) => {
                for segment in [
                    begun.newest_finished,
                    begun.oldest_partial,
                    begun.newest_partial,
                ] {
                    put_string(
                        out,
                        &segment.map_or_else(String::new, |name| name.to_string()),
                    );
                }
            }
            Partial::Open(open) => {
                put_string(out, &open.segment.to_string());
                out.put_u64_le(open.bytes);
                out.put_u32_le(open.crc32);
            }
            Partial::At(at) => {
                out.put_u64_le(at.held_bytes);
                out.put_u64_le(at.common_bytes);
                out.put_u32_le(at.common_crc32);
            }
            Partial::Rewrite => {}
            Partial::Append(append) => {
                out.put_u64_le(append.offset);
                out.put_u64_le(append.end.0);
                out.put_u32_le(append.raw_bytes);
                out.put_slice(&append.bytes);
                return if append.zstd { FLAG_ZSTD } else { 0 };
            }
            Partial::Durable(durable) => out.put_u64_le(durable.0.0),
        }
        0
    }

    /// The message of this kind that a payload holds; `None` for a kind of another flow.
    pub(super) fn decode(
        kind: MessageKind,
        flags: u8,
        fields: &mut Fields,
    ) -> Result<Option<Partial>, Malformed> {
        Ok(Some(match kind {
            MessageKind::PartialBegin => Partial::Begin(PartialBegin {
                timeline: fields.timeline()?,
            }),
            MessageKind::PartialBegun => Partial::Begun(Begun {
                newest_finished: fields.optional_segment()?,
                oldest_partial: fields.optional_segment()?,
                newest_partial: fields.optional_segment()?,
            }),
            MessageKind::PartialOpen => Partial::Open(Open {
                segment: fields.name()?.parse()?,
                bytes: fields.u64()?,
                crc32: fields.u32()?,
            }),
            MessageKind::PartialAt => Partial::At(At {
                held_bytes: fields.u64()?,
                common_bytes: fields.u64()?,
                common_crc32: fields.u32()?,
            }),
            MessageKind::PartialAppend => {
                let (offset, end) = (fields.u64()?, Lsn(fields.u64()?));
                let raw_bytes = fields.u32()?;
                check_raw_bytes(raw_bytes)?;
                let bytes = fields.rest();
                check_payload(bytes.len(), raw_bytes)?;
                Partial::Append(Append {
                    offset,
                    end,
                    raw_bytes,
                    zstd: flags & FLAG_ZSTD != 0,
                    bytes,
                })
            }
            MessageKind::PartialDurable => Partial::Durable(DurableTo(Lsn(fields.u64()?))),
            MessageKind::PartialRewrite => Partial::Rewrite,
            _ => return Ok(None),
        }))
    }
}
