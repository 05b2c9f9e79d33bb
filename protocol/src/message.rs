//! Every message, each struct beside its encoding.
//! Never interprets a message. Invariant: `decode(encode(m)) == m`, and a payload that is longer
//! or shorter than its fields is refused.
//!
//! # Payloads
//!
//! Fields follow one another without padding. `string` is a `u16` length in bytes and UTF-8 text of
//! at most 4096 bytes; `name` is a string of at most 64 bytes that is the name of a file in the
//! archive ([`WalFileName`]), or empty where it says so; `bool` is one byte, 0 or 1.
//!
//! | kind | message | sent by | payload |
//! |-----:|---------|---------|---------|
//! | 1 | error | both | `u16` [`ErrorCode`], `u8` scope (0 connection, 1 channel), `string` message, `string` hint |
//! | 2 | ping | both | nothing |
//! | 3 | pong | both | nothing |
//! | 4 | goodbye | both | nothing |
//! | 5 | data | both | `u64` offset, `u32` raw length, then the block, raw or (flag bit 0) one zstd frame |
//! | 16 | setup | client | nothing |
//! | 17 | setup done | receiver | `bool` newly bound, `string` path of the archive |
//! | 18 | list request | client | `name` to begin behind, or empty; `u16` limit |
//! | 19 | list | receiver | `u16` count, then that many times `name` and `u64` size; `bool` more follow |
//! | 20–21 | overview | both | see [`overview`] |
//! | 32 | offer | client | `name`, `u64` size, `u32` CRC-32, `u8` verify (0 off, 1 headers, 2 records) |
//! | 33 | have | receiver | `u64` bytes held from the beginning, `u32` CRC-32 of them |
//! | 34 | commit | client | `u64` size, `u32` CRC-32 |
//! | 35 | stored | receiver | `u64` size, `u32` CRC-32 of what is durable |
//! | 36 | conflict | receiver | `u64` size, `u32` CRC-32 of what is stored under the name |
//! | 37 | announcement | client | `name`, `u64` size, `u8` verify: an offer whose CRC-32 is not known yet |
//! | 38 | checksum request | receiver | nothing: the name is held, and the client offers it with its CRC-32 |
//! | 64–73 | fetch | both | see [`fetch`] |
//! | 80–86 | partial stream | both | see [`partial`] |
//! | 96–99 | trial | both | see [`trial`] |
//! | 128–143 | backup | both | see [`backup`] |
//!
//! A cluster is `u64` system identifier, `u16` PostgreSQL major version, `u32` `wal_segment_size`.
//! CRC-32 is zlib's throughout. Each flow has a range of numbers ([`kind`]). Those of [`Flow::Control`] belong to
//! channel 0, as does a goodbye; those of the other flows to a channel from 1 on; an error to the channel whose upload it ends.

pub mod backup;
pub mod fetch;
pub mod kind;
pub mod overview;
pub mod parent;
pub mod partial;
pub mod reach;
mod shared;
pub mod trial;

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

pub use crate::error_code::{ErrorCode, Scope};
pub use backup::Backup;
pub use fetch::Fetch;
pub use kind::{Flow, MessageKind};
pub use overview::Overview;
pub use partial::Partial;
pub use shared::{ClusterIdentity, Digest};
pub use trial::Trial;

use crate::compress::{check_payload, check_raw_bytes};
use crate::error::{Malformed, ProtocolError};
use crate::fields::{Fields, put_string};
use crate::frame::FLAG_ZSTD;
use crate::limits::LIST_ENTRIES_MAX;
use crate::names::WalFileName;

/// How closely the receiver looks at a WAL file before it acknowledges it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum WireVerify {
    /// Length and checksum of the transfer only.
    Off = 0,
    /// The first page's header: cluster, version, timeline, number, segment size.
    Headers = 1,
    /// Every page and every record's CRC-32C and links.
    Records = 2,
}

/// A file the client wants stored. Answered by [`Message::Have`], [`Message::Stored`],
/// [`Message::Conflict`], [`Message::ChecksumRequest`] or [`Message::Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// Its name in the archive.
    pub name: WalFileName,
    /// Its size in bytes.
    pub size: u64,
    /// CRC-32 of its content; none if it was not taken yet. Nothing that is stored can be compared with that.
    pub crc32: Option<u32>,
    /// How closely to look at it.
    pub verify: WireVerify,
}

/// What the receiver already holds of an offered file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Have {
    /// Bytes held from the file's beginning; 0 for none.
    pub prefix_bytes: u64,
    /// CRC-32 of them.
    pub prefix_crc32: u32,
}

/// The header of a block of a file; the block itself is the rest of the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Data {
    /// Where in the file the block begins, in bytes.
    pub offset: u64,
    /// Its length before compression, in bytes.
    pub raw_bytes: u32,
    /// Whether `bytes` is one zstd frame (header flag, not payload).
    pub zstd: bool,
    /// The block as it travels.
    pub bytes: Bytes,
}

/// The answer to [`Message::Setup`]: the archive belongs to the client's cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetupDone {
    /// Whether this request bound it, rather than an earlier one.
    pub newly_bound: bool,
    /// Where the archive is on the receiver's host, for people.
    pub completed_wals: String,
}

/// Asks for names in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListRequest {
    /// Only names behind this one, in the order of [`WalFileName`].
    pub after: Option<WalFileName>,
    /// At most this many, and never more than [`LIST_ENTRIES_MAX`].
    pub limit: u16,
}

/// Names in the archive, in the order of [`WalFileName`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    /// Names and their sizes in bytes.
    pub entries: Vec<(WalFileName, u64)>,
    /// Whether names follow behind the last.
    pub more: bool,
}

/// A refusal in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What kind of refusal.
    pub code: ErrorCode,
    /// What it ends.
    pub scope: Scope,
    /// What is wrong: one sentence.
    pub message: String,
    /// What a person can do about it; may be empty.
    pub hint: String,
}

impl Error {
    /// A refusal that ends the upload it answers.
    pub fn channel(code: ErrorCode, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Error {
            code,
            scope: Scope::Channel,
            message: message.into(),
            hint: hint.into(),
        }
    }

    /// A refusal that ends the connection.
    pub fn connection(
        code: ErrorCode,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Error {
            code,
            scope: Scope::Connection,
            message: message.into(),
            hint: hint.into(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// Everything a frame can carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Bind the archive to the cluster of the hello.
    Setup,
    /// It is bound.
    SetupDone(SetupDone),
    /// A file the client wants stored.
    Offer(Offer),
    /// Something is stored under the name: offer it with its checksum.
    ChecksumRequest,
    /// Send it, from here on.
    Have(Have),
    /// A block of it.
    Data(Data),
    /// That was all of it.
    Commit(Digest),
    /// It is durable. Only [`crate::session::push`] builds one, from a proof.
    Stored(Acknowledgement),
    /// Another file of this name is stored and stays.
    Conflict(Digest),
    /// A refusal.
    Error(Error),
    /// Asks for [`Message::List`].
    ListRequest(ListRequest),
    /// Names in the archive.
    List(List),
    /// Is anybody there?
    Ping,
    /// Yes.
    Pong,
    /// Nothing follows; close without an error.
    Goodbye,
    /// Asks for [`Message::Overview`].
    OverviewRequest,
    /// What the standby holds and how it fares.
    Overview(Box<Overview>),
    /// Something about a backup.
    Backup(Backup),
    /// A message of fetching what is kept.
    Fetch(Fetch),
    /// Something about the partial stream.
    Partial(Partial),
    /// Something about a trial.
    Trial(Trial),
}

/// The digest of a file that is durable. The only way to one on the sending side is
/// [`crate::session::push::acknowledge`], which asks for a proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledgement(pub(crate) Digest);

impl Acknowledgement {
    /// Size and CRC-32 of what is durable.
    pub const fn digest(self) -> Digest {
        self.0
    }
}

impl Message {
    /// The number and the name of this message.
    pub const fn kind(&self) -> MessageKind {
        match self {
            Message::Setup => MessageKind::Setup,
            Message::SetupDone(_) => MessageKind::SetupDone,
            Message::Offer(offer) => match offer.crc32 {
                Some(_) => MessageKind::Offer,
                None => MessageKind::Announcement,
            },
            Message::ChecksumRequest => MessageKind::ChecksumRequest,
            Message::Have(_) => MessageKind::Have,
            Message::Data(_) => MessageKind::Data,
            Message::Commit(_) => MessageKind::Commit,
            Message::Stored(_) => MessageKind::Stored,
            Message::Conflict(_) => MessageKind::Conflict,
            Message::Error(_) => MessageKind::Error,
            Message::ListRequest(_) => MessageKind::ListRequest,
            Message::List(_) => MessageKind::List,
            Message::Ping => MessageKind::Ping,
            Message::Pong => MessageKind::Pong,
            Message::Goodbye => MessageKind::Goodbye,
            Message::OverviewRequest => MessageKind::OverviewRequest,
            Message::Overview(_) => MessageKind::Overview,
            Message::Backup(backup) => backup.kind(),
            Message::Fetch(fetch) => fetch.kind(),
            Message::Partial(partial) => partial.kind(),
            Message::Trial(trial) => trial.kind(),
        }
    }

    /// Its name, for people.
    pub const fn name(&self) -> &'static str {
        self.kind().words()
    }

    /// Appends the payload to `out` and returns the header's flags.
    pub fn encode(&self, out: &mut BytesMut) -> u8 {
        match self {
            Message::Setup
            | Message::Ping
            | Message::Pong
            | Message::Goodbye
            | Message::ChecksumRequest
            | Message::OverviewRequest => {}
            Message::SetupDone(done) => {
                out.put_u8(u8::from(done.newly_bound));
                put_string(out, &done.completed_wals);
            }
            Message::Offer(offer) => {
                put_string(out, &offer.name.to_string());
                out.put_u64_le(offer.size);
                if let Some(crc32) = offer.crc32 {
                    out.put_u32_le(crc32);
                }
                out.put_u8(offer.verify as u8);
            }
            Message::Have(have) => {
                out.put_u64_le(have.prefix_bytes);
                out.put_u32_le(have.prefix_crc32);
            }
            Message::Data(data) => {
                out.put_u64_le(data.offset);
                out.put_u32_le(data.raw_bytes);
                out.put_slice(&data.bytes);
                return if data.zstd { FLAG_ZSTD } else { 0 };
            }
            Message::Commit(digest)
            | Message::Stored(Acknowledgement(digest))
            | Message::Conflict(digest) => {
                out.put_u64_le(digest.size);
                out.put_u32_le(digest.crc32);
            }
            Message::Error(error) => {
                out.put_u16_le(error.code as u16);
                out.put_u8(error.scope as u8);
                put_string(out, &error.message);
                put_string(out, &error.hint);
            }
            Message::ListRequest(request) => {
                put_string(
                    out,
                    &request
                        .after
                        .map_or_else(String::new, |name| name.to_string()),
                );
                out.put_u16_le(request.limit);
            }
            Message::List(list) => list.encode(out),
            Message::Overview(overview) => overview.encode(out),
            Message::Backup(backup) => backup.encode(out),
            Message::Fetch(fetch) => fetch.encode(out),
            Message::Partial(partial) => return partial.encode(out),
            Message::Trial(trial) => trial.encode(out),
        }
        0
    }

    /// The message a payload holds.
    pub fn decode(kind: u8, flags: u8, payload: Bytes) -> Result<Message, ProtocolError> {
        let kind = MessageKind::from_number(kind).ok_or(ProtocolError::Incompatible {
            what: "frame kind",
            found: u64::from(kind),
        })?;
        let carries_block = matches!(kind, MessageKind::Data | MessageKind::PartialAppend);
        let known_flags = if carries_block { FLAG_ZSTD } else { 0 };
        if flags & !known_flags != 0 {
            let found = u64::from(flags);
            return Err(ProtocolError::Incompatible {
                what: "frame flags",
                found,
            });
        }
        let mut fields = Fields::new("a message", payload);
        let message = match kind {
            MessageKind::Setup => Message::Setup,
            MessageKind::SetupDone => Message::SetupDone(SetupDone {
                newly_bound: fields.boolean("newly bound")?,
                completed_wals: fields.string("path of the archive")?,
            }),
            MessageKind::Offer => Message::Offer(Offer {
                name: fields.name()?.parse()?,
                size: fields.u64()?,
                crc32: Some(fields.u32()?),
                verify: fields.verify()?,
            }),
            MessageKind::Announcement => Message::Offer(Offer {
                name: fields.name()?.parse()?,
                size: fields.u64()?,
                crc32: None,
                verify: fields.verify()?,
            }),
            MessageKind::ChecksumRequest => Message::ChecksumRequest,
            MessageKind::Have => Message::Have(Have {
                prefix_bytes: fields.u64()?,
                prefix_crc32: fields.u32()?,
            }),
            MessageKind::Data => {
                let (offset, raw_bytes) = (fields.u64()?, fields.u32()?);
                check_raw_bytes(raw_bytes)?;
                let bytes = fields.rest();
                check_payload(bytes.len(), raw_bytes)?;
                return Ok(Message::Data(Data {
                    offset,
                    raw_bytes,
                    zstd: flags & FLAG_ZSTD != 0,
                    bytes,
                }));
            }
            MessageKind::Commit => Message::Commit(fields.digest()?),
            MessageKind::Stored => Message::Stored(Acknowledgement(fields.digest()?)),
            MessageKind::Conflict => Message::Conflict(fields.digest()?),
            MessageKind::Error => Message::Error(Error {
                code: ErrorCode::from_number(fields.u16()?),
                scope: fields.scope()?,
                message: fields.string("error message")?,
                hint: fields.string("hint")?,
            }),
            MessageKind::ListRequest => Message::ListRequest(ListRequest {
                after: fields.optional_name()?,
                limit: fields.u16()?,
            }),
            MessageKind::List => Message::List(List::decode(&mut fields)?),
            MessageKind::Ping => Message::Ping,
            MessageKind::Pong => Message::Pong,
            MessageKind::Goodbye => Message::Goodbye,
            MessageKind::OverviewRequest => Message::OverviewRequest,
            MessageKind::Overview => Message::Overview(Box::new(Overview::decode(&mut fields)?)),
            kind => match Backup::decode(kind, &mut fields)? {
                Some(backup) => Message::Backup(backup),
                None => match Fetch::decode(kind, &mut fields)? {
                    Some(fetch) => Message::Fetch(fetch),
                    None => match Partial::decode(kind, flags, &mut fields)? {
                        Some(partial) => Message::Partial(partial),
                        None => match Trial::decode(kind, &mut fields)? {
                            Some(trial) => Message::Trial(trial),
                            None => {
                                let (what, found) = ("frame kind", u64::from(kind as u8));
                                return Err(ProtocolError::Incompatible { what, found });
                            }
                        },
                    },
                },
            },
        };
        fields.end()?;
        Ok(message)
    }
}

impl List {
    fn encode(&self, out: &mut BytesMut) {
        let count = self.entries.len().min(usize::from(LIST_ENTRIES_MAX));
        out.put_u16_le(u16::try_from(count).unwrap_or(LIST_ENTRIES_MAX));
        for (name, size) in self.entries.iter().take(count) {
            put_string(out, &name.to_string());
            out.put_u64_le(*size);
        }
        out.put_u8(u8::from(self.more || count < self.entries.len()));
    }

    fn decode(fields: &mut Fields) -> Result<List, Malformed> {
        let count = fields.u16()?;
        if count > LIST_ENTRIES_MAX {
            return Err(Malformed::TooLong {
                what: "a list",
                most: u64::from(LIST_ENTRIES_MAX),
                found: u64::from(count),
            });
        }
        let mut entries = Vec::new();
        for _ in 0..count {
            entries.push((fields.name()?.parse()?, fields.u64()?));
        }
        Ok(List {
            entries,
            more: fields.boolean("more")?,
        })
    }
}

impl Fields {
    fn digest(&mut self) -> Result<Digest, Malformed> {
        Ok(Digest {
            size: self.u64()?,
            crc32: self.u32()?,
        })
    }

    fn verify(&mut self) -> Result<WireVerify, Malformed> {
        match self.u8()? {
            0 => Ok(WireVerify::Off),
            1 => Ok(WireVerify::Headers),
            2 => Ok(WireVerify::Records),
            found => Err(Malformed::BadValue {
                what: "verify",
                found: u64::from(found),
            }),
        }
    }

    fn scope(&mut self) -> Result<Scope, Malformed> {
        match self.u8()? {
            0 => Ok(Scope::Connection),
            1 => Ok(Scope::Channel),
            found => Err(Malformed::BadValue {
                what: "scope",
                found: u64::from(found),
            }),
        }
    }
}
