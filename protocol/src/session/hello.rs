//! The introduction: who is there, which version both speak, and within which bounds.
//! Never trusts a body length above [`HELLO_BODY_BYTES_MAX`]. Invariant: the first 16 bytes of a
//! hello and of its answer, and the body of a refusal, never change.
//!
//! # Bodies
//!
//! The 16 bytes around them are drawn in the [crate's documentation](crate). In the order of their
//! fields, with `string`, `bool` and cluster as in [`crate::message`]:
//!
//! | | body |
//! |---|---|
//! | hello | `u8` role (1 master, 2 tool), `bool` a cluster follows, the cluster, `u32` timeline, 16 bytes nonce, `string` version |
//! | welcome | 16 bytes nonce, `u32` longest payload, `u32` longest raw block, `u16` channels, `string` newest segment or empty, `string` version |
//! | refusal | `u16` [`ErrorCode`], `string` message, `string` hint |
//!
//! A later version appends fields; whoever does not know them skips them.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::codec::{Decoder, Encoder};
use crate::error::Malformed;
use crate::fields::{Fields, put_string};
use crate::frame::{Direction, Nonce, first_sequence};
use crate::limits::{BLOCK_BYTES_MAX, CHANNELS_MAX, FRAME_PAYLOAD_BYTES, HELLO_BODY_BYTES_MAX};
use crate::message::{ClusterIdentity, ErrorCode};
use crate::names::{SegmentName, TimelineId};
use crate::version::VersionRange;

/// How a hello begins. CR LF shows a link that meddles with line ends.
pub const HELLO_MAGIC: [u8; 8] = *b"walmgr\r\n";

/// How the answer begins.
pub const ANSWER_MAGIC: [u8; 8] = *b"walmgr\n\r";

const PREAMBLE_BYTES: usize = 16;
const CRC_BYTES: usize = 4;
const ANSWER_WELCOME: u16 = 1;
const ANSWER_REFUSED: u16 = 2;

/// The versions a client speaks, and its hello if the body could be read.
pub type ReceivedHello = (VersionRange, Result<Hello, Malformed>);

/// What a client wants to be taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// The host where PostgreSQL writes.
    Master = 1,
    /// A person's tool that belongs to neither.
    Tool = 2,
}

/// What a client says first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// What it wants to be taken for.
    pub role: Role,
    /// Its cluster; a tool may have none.
    pub cluster: Option<ClusterIdentity>,
    /// The timeline its cluster is on.
    pub timeline: TimelineId,
    /// Fresh random bytes.
    pub nonce: Nonce,
    /// Its version, for people.
    pub software: String,
}

/// What a receiver answers when it will talk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// Fresh random bytes.
    pub nonce: Nonce,
    /// Longest payload of a frame, in bytes.
    pub payload_bytes_max: u32,
    /// Longest raw block, in bytes.
    pub block_bytes_max: u32,
    /// Uploads that may be open at once.
    pub channels_max: u16,
    /// The highest finished segment it holds durably for this cluster.
    pub newest_segment: Option<SegmentName>,
    /// Its version, for people.
    pub software: String,
    /// The zstd level at which it packs segments, 0 for not at all: those that come packed in blocks of
    /// [`BLOCK_BYTES_DEFAULT`](crate::limits::BLOCK_BYTES_DEFAULT) are stored as they came. One that does not say so is 0.
    pub store_level: u8,
}

impl Welcome {
    /// A welcome with this program's own bounds.
    pub fn with_our_limits(
        nonce: Nonce,
        newest_segment: Option<SegmentName>,
        software: String,
    ) -> Self {
        Welcome {
            nonce,
            payload_bytes_max: FRAME_PAYLOAD_BYTES,
            block_bytes_max: BLOCK_BYTES_MAX,
            channels_max: CHANNELS_MAX,
            newest_segment,
            software,
            store_level: 0,
        }
    }

    /// This welcome from a receiver that packs segments at this level of zstd; 0 stands for not at all.
    #[must_use]
    pub fn storing_at(mut self, level: u8) -> Self {
        self.store_level = level;
        self
    }
}

/// What a receiver answers when it will not. Its layout is frozen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What kind of refusal.
    pub code: ErrorCode,
    /// What is wrong: one sentence.
    pub message: String,
    /// What a person can do about it; may be empty.
    pub hint: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

/// The answer to a hello.
#[must_use = "it has to be sent, or to be obeyed"]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HelloAnswer {
    /// Talk, in this version.
    Welcome(u16, Welcome),
    /// Do not.
    Refused(Refusal),
}

/// Both ends of a connection's frames, once each knows the other's nonce.
pub fn coders(side: Direction, hello: &Nonce, welcome: &Welcome) -> (Encoder, Decoder) {
    let first = |direction| first_sequence(hello, &welcome.nonce, direction);
    let (out, back) = match side {
        Direction::FromClient => (Direction::FromClient, Direction::FromReceiver),
        Direction::FromReceiver => (Direction::FromReceiver, Direction::FromClient),
    };
    (
        Encoder::new(first(out)),
        Decoder::new(first(back), welcome.payload_bytes_max),
    )
}

/// The version to speak with a client of `theirs`, or the refusal that says why none.
pub fn choose_version(ours: VersionRange, theirs: VersionRange) -> Result<u16, Refusal> {
    ours.common(theirs).ok_or_else(|| {
        let (older, newer) = if theirs.highest < ours.lowest {
            ("client", "receiver")
        } else {
            ("receiver", "client")
        };
        Refusal {
            code: ErrorCode::Incompatible,
            message: format!(
                "the client speaks protocol version {theirs}, the receiver speaks {ours}"
            ),
            hint: format!("upgrade the {older}'s walmgr to that of the {newer}"),
        }
    })
}

impl Hello {
    /// Appends the hello to `out`.
    pub fn encode(&self, versions: VersionRange, out: &mut BytesMut) {
        let mut body = BytesMut::new();
        body.put_u8(self.role as u8);
        body.put_u8(u8::from(self.cluster.is_some()));
        if let Some(cluster) = self.cluster {
            cluster.encode(&mut body);
        }
        body.put_u32_le(self.timeline.number());
        body.put_slice(&self.nonce);
        put_string(&mut body, &self.software);
        seal(HELLO_MAGIC, versions.lowest, versions.highest, &body, out);
    }

    /// The hello at the front of `buffer`, or `None` when there is less than one.
    ///
    /// A body that cannot be read is an error of its own beside the versions: they are compared
    /// first, and a client of a version to come is refused in words.
    pub fn decode(buffer: &mut BytesMut) -> Result<Option<ReceivedHello>, Malformed> {
        let Some((lowest, highest, body)) = open(HELLO_MAGIC, "a hello", buffer)? else {
            return Ok(None);
        };
        Ok(Some((
            VersionRange { lowest, highest },
            Hello::decode_body(body),
        )))
    }

    fn decode_body(body: Bytes) -> Result<Hello, Malformed> {
        let mut fields = Fields::new("a hello", body);
        let role = match fields.u8()? {
            1 => Role::Master,
            2 => Role::Tool,
            found => {
                return Err(Malformed::BadValue {
                    what: "role",
                    found: u64::from(found),
                });
            }
        };
        let has_cluster = fields.boolean("has a cluster")?;
        Ok(Hello {
            role,
            cluster: has_cluster
                .then(|| ClusterIdentity::decode(&mut fields))
                .transpose()?,
            timeline: fields.timeline()?,
            nonce: fields.array()?,
            software: fields.string("software version")?,
        })
    }
}

impl HelloAnswer {
    /// Appends the answer to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        let mut body = BytesMut::new();
        match self {
            HelloAnswer::Welcome(version, welcome) => {
                body.put_slice(&welcome.nonce);
                body.put_u32_le(welcome.payload_bytes_max);
                body.put_u32_le(welcome.block_bytes_max);
                body.put_u16_le(welcome.channels_max);
                let newest = welcome.newest_segment.map(|name| name.to_string());
                put_string(&mut body, &newest.unwrap_or_default());
                put_string(&mut body, &welcome.software);
                body.put_u8(welcome.store_level);
                seal(ANSWER_MAGIC, ANSWER_WELCOME, *version, &body, out);
            }
            HelloAnswer::Refused(refusal) => {
                body.put_u16_le(refusal.code as u16);
                // Both strings together stay below the bound of a body.
                put_string(&mut body, cut(&refusal.message, 2_000));
                put_string(&mut body, cut(&refusal.hint, 2_000));
                seal(ANSWER_MAGIC, ANSWER_REFUSED, 0, &body, out);
            }
        }
    }

    /// The answer at the front of `buffer`, or `None` when there is less than one.
    pub fn decode(buffer: &mut BytesMut) -> Result<Option<HelloAnswer>, Malformed> {
        let Some((kind, version, body)) = open(ANSWER_MAGIC, "the answer to a hello", buffer)?
        else {
            return Ok(None);
        };
        let mut fields = Fields::new("the answer to a hello", body);
        match kind {
            ANSWER_WELCOME => Ok(Some(HelloAnswer::Welcome(
                version,
                Welcome::decode(&mut fields)?,
            ))),
            ANSWER_REFUSED => Ok(Some(HelloAnswer::Refused(Refusal {
                code: ErrorCode::from_number(fields.u16()?),
                message: fields.string("refusal")?,
                hint: fields.string("hint")?,
            }))),
            _ => Err(Malformed::BadValue {
                what: "kind of answer",
                found: u64::from(kind),
            }),
        }
    }
}

impl Welcome {
    fn decode(fields: &mut Fields) -> Result<Welcome, Malformed> {
        Ok(Welcome {
            nonce: fields.array()?,
            payload_bytes_max: fields.u32()?,
            block_bytes_max: fields.u32()?,
            channels_max: fields.u16()?,
            newest_segment: fields.optional_segment()?,
            software: fields.string("software version")?,
            store_level: fields.added_u8(0)?,
        })
    }
}

fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

fn seal(magic: [u8; 8], first: u16, second: u16, body: &[u8], out: &mut BytesMut) {
    let start = out.len();
    out.put_slice(&magic);
    out.put_u16_le(first);
    out.put_u16_le(second);
    // A body is a handful of bounded fields, well below HELLO_BODY_BYTES_MAX.
    out.put_u32_le(u32::try_from(body.len()).unwrap_or(u32::MAX));
    out.put_slice(body);
    let crc = crc32fast::hash(&out[start..]);
    out.put_u32_le(crc);
}

fn open(
    magic: [u8; 8],
    what: &'static str,
    buffer: &mut BytesMut,
) -> Result<Option<(u16, u16, Bytes)>, Malformed> {
    // Something else on the port is named as soon as its first byte differs.
    let seen = buffer.len().min(magic.len());
    if buffer[..seen] != magic[..seen] {
        let mut found = [0; 8];
        found[..seen].copy_from_slice(&buffer[..seen]);
        return Err(Malformed::NotWalmgr { found });
    }
    if buffer.len() < PREAMBLE_BYTES {
        return Ok(None);
    }
    let body_bytes = u32::from_le_bytes([buffer[12], buffer[13], buffer[14], buffer[15]]);
    if body_bytes > HELLO_BODY_BYTES_MAX {
        let (most, found) = (u64::from(HELLO_BODY_BYTES_MAX), u64::from(body_bytes));
        return Err(Malformed::TooLong { what, most, found });
    }
    let checked = PREAMBLE_BYTES + body_bytes as usize;
    if buffer.len() < checked + CRC_BYTES {
        return Ok(None);
    }
    let mut message = buffer.split_to(checked + CRC_BYTES).freeze();
    let found = crc32fast::hash(&message[..checked]);
    let stated = message.slice(checked..).get_u32_le();
    if stated != found && !cfg!(fuzzing) {
        return Err(Malformed::Checksum {
            of: what,
            stated,
            found,
        });
    }
    message.advance(magic.len());
    let (first, second) = (message.get_u16_le(), message.get_u16_le());
    message.advance(4);
    Ok(Some((first, second, message.slice(..body_bytes as usize))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_do_not_meet_are_refused_with_both_and_what_to_upgrade() {
        let range = |lowest, highest| VersionRange { lowest, highest };
        let refusal = choose_version(range(4, 5), range(1, 2)).unwrap_err();
        assert!(refusal.message.contains("1 to 2") && refusal.message.contains("4 to 5"));
        assert!(refusal.hint.contains("upgrade the client's"));
        let refusal = choose_version(range(1, 2), range(3, 4)).unwrap_err();
        assert!(refusal.hint.contains("upgrade the receiver's"));
    }

    #[test]
    fn another_program_on_the_port_is_named_at_its_first_wrong_byte() {
        let mut http = BytesMut::from(&b"HTTP"[..]);
        let error = HelloAnswer::decode(&mut http).unwrap_err();
        assert!(error.to_string().contains("HTTP"));
    }

    #[test]
    fn every_flipped_bit_behind_the_magic_of_a_hello_or_an_answer_is_noticed() {
        let mut hello = BytesMut::new();
        Hello {
            role: Role::Master,
            cluster: None,
            timeline: TimelineId::FIRST,
            nonce: [9; 16],
            software: "4.0.0".into(),
        }
        .encode(VersionRange::OURS, &mut hello);
        let mut answer = BytesMut::new();
        let welcome = Welcome::with_our_limits([7; 16], None, "4.0.0".into());
        HelloAnswer::Welcome(1, welcome).encode(&mut answer);
        let flipped = |bytes: &BytesMut, bit: usize| {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            damaged
        };
        // A longer body than there is is waited for; whatever is there is refused.
        for bit in HELLO_MAGIC.len() * 8..hello.len() * 8 {
            assert!(!matches!(
                Hello::decode(&mut flipped(&hello, bit)),
                Ok(Some(_))
            ));
        }
        for bit in ANSWER_MAGIC.len() * 8..answer.len() * 8 {
            assert!(!matches!(
                HelloAnswer::decode(&mut flipped(&answer, bit)),
                Ok(Some(_))
            ));
        }
    }

    #[test]
    fn fields_a_later_version_appends_are_skipped() {
        let hello = Hello {
            role: Role::Tool,
            cluster: None,
            timeline: TimelineId::new(1).unwrap(),
            nonce: [9; 16],
            software: "9.9".into(),
        };
        let mut plain = BytesMut::new();
        hello.encode(VersionRange::OURS, &mut plain);
        let body_end = plain.len() - CRC_BYTES;
        let mut body = plain[PREAMBLE_BYTES..body_end].to_vec();
        body.extend_from_slice(b"from the future");
        let mut longer = BytesMut::new();
        seal(HELLO_MAGIC, 1, 2, &body, &mut longer);
        let (versions, decoded) = Hello::decode(&mut longer).unwrap().unwrap();
        assert_eq!(
            versions,
            VersionRange {
                lowest: 1,
                highest: 2
            }
        );
        assert_eq!(decoded.unwrap(), hello);
    }
}
