//! Bytes to messages and back, one frame at a time, asking for more when there is less than one.
//! Never allocates for a length it did not bound. Invariant: after the first error a decoder
//! yields nothing more, so a damaged stream cannot be resynchronised into something else.

use bytes::{Buf, BytesMut};

use crate::compress::Block;
use crate::error::{Malformed, PeerMisbehaved, ProtocolError};
use crate::frame::{DATA_HEADROOM_BYTES, FLAG_ZSTD, HEADER_BYTES, Header};
use crate::limits::FRAME_PAYLOAD_BYTES_MAX;
use crate::message::{Message, MessageKind};

/// A message and the channel it came on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// 0 for the connection itself, 1 and up for uploads.
    pub channel: u16,
    /// What it says.
    pub message: Message,
}

/// Takes frames off the front of a buffer that the driver fills.
#[derive(Debug)]
pub struct Decoder {
    sequence: u32,
    payload_bytes_max: u32,
    header: Option<Header>,
    failed: Option<ProtocolError>,
}

impl Decoder {
    /// A decoder for one direction, from its first frame on.
    pub fn new(first_sequence: u32, payload_bytes_max: u32) -> Self {
        Decoder {
            sequence: first_sequence,
            payload_bytes_max: payload_bytes_max.min(FRAME_PAYLOAD_BYTES_MAX),
            header: None,
            failed: None,
        }
    }

    /// The next frame, or `None` when `buffer` does not hold all of it.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, ProtocolError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.decode_next(buffer)
            .inspect_err(|error| self.failed = Some(error.clone()))
    }

    /// Whether part of a frame has arrived, so that the rest is owed.
    pub fn mid_frame(&self, buffer: &BytesMut) -> bool {
        self.header.is_some() || !buffer.is_empty()
    }

    fn decode_next(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, ProtocolError> {
        let Some(header) = self.header(buffer)? else {
            return Ok(None);
        };
        let payload_len = header.payload_bytes as usize;
        if buffer.len() < payload_len {
            buffer.reserve(payload_len - buffer.len());
            return Ok(None);
        }
        self.header = None;
        self.sequence = self.sequence.wrapping_add(1);
        let payload = buffer.split_to(payload_len).freeze();
        let found = crc32fast::hash(&payload);
        if found != header.payload_crc32 && !cfg!(fuzzing) {
            let stated = header.payload_crc32;
            return Err(Malformed::Checksum {
                of: "frame payload",
                stated,
                found,
            }
            .into());
        }
        let message = Message::decode(header.kind, header.flags, payload)?;
        Ok(Some(Frame {
            channel: header.channel,
            message,
        }))
    }

    /// The header of the frame at the front, checked, and kept until its payload is complete.
    fn header(&mut self, buffer: &mut BytesMut) -> Result<Option<Header>, ProtocolError> {
        if self.header.is_none() {
            let Some(bytes) = buffer.first_chunk::<HEADER_BYTES>() else {
                return Ok(None);
            };
            let header = Header::decode(bytes)?;
            if header.sequence != self.sequence {
                return Err(PeerMisbehaved::Sequence {
                    expected: self.sequence,
                    found: header.sequence,
                }
                .into());
            }
            if header.payload_bytes > self.payload_bytes_max {
                return Err(Malformed::TooLong {
                    what: "a frame's payload",
                    most: u64::from(self.payload_bytes_max),
                    found: u64::from(header.payload_bytes),
                }
                .into());
            }
            buffer.advance(HEADER_BYTES);
            self.header = Some(header);
        }
        Ok(self.header)
    }
}

/// Turns messages into frames.
#[derive(Debug)]
pub struct Encoder {
    sequence: u32,
}

impl Encoder {
    /// An encoder for one direction, from its first frame on.
    pub fn new(first_sequence: u32) -> Self {
        Encoder {
            sequence: first_sequence,
        }
    }

    /// Appends a frame to `out`.
    pub fn encode(&mut self, channel: u16, message: &Message, out: &mut BytesMut) {
        let start = out.len();
        out.extend_from_slice(&[0; HEADER_BYTES]);
        let flags = message.encode(out);
        let payload = &out[start + HEADER_BYTES..];
        let header = Header {
            // Every message is bounded far below 4 GiB by what its fields may hold.
            payload_bytes: u32::try_from(payload.len()).unwrap_or(u32::MAX),
            kind: message.kind() as u8,
            flags,
            channel,
            sequence: self.next_sequence(),
            payload_crc32: crc32fast::hash(payload),
        };
        out[start..start + HEADER_BYTES].copy_from_slice(&header.encode());
    }

    /// Writes the headers into a block's headroom and returns the whole frame.
    ///
    /// The block is not copied: the buffer the file was read into is what goes to the socket.
    pub fn encode_block<'a>(&mut self, channel: u16, block: &'a mut Block) -> &'a [u8] {
        let bytes = &mut block.bytes;
        bytes[HEADER_BYTES..HEADER_BYTES + 8].copy_from_slice(&block.offset.to_le_bytes());
        bytes[HEADER_BYTES + 8..DATA_HEADROOM_BYTES]
            .copy_from_slice(&block.raw_bytes.to_le_bytes());
        let payload = &bytes[HEADER_BYTES..];
        let header = Header {
            payload_bytes: u32::try_from(payload.len()).unwrap_or(u32::MAX),
            kind: MessageKind::Data as u8,
            flags: if block.zstd { FLAG_ZSTD } else { 0 },
            channel,
            sequence: self.next_sequence(),
            payload_crc32: crc32fast::hash(payload),
        };
        bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
        bytes
    }

    fn next_sequence(&mut self) -> u32 {
        let sequence = self.sequence;
        self.sequence = sequence.wrapping_add(1);
        sequence
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame_bytes(message: &Message) -> BytesMut {
        let mut out = BytesMut::new();
        Encoder::new(7).encode(3, message, &mut out);
        out
    }

    #[test]
    fn fault_91_a_length_of_4_gib_is_refused_before_a_byte_is_allocated() {
        let header = Header {
            payload_bytes: u32::MAX,
            kind: MessageKind::Data as u8,
            flags: 0,
            channel: 1,
            sequence: 7,
            payload_crc32: 0,
        };
        let mut buffer = BytesMut::from(&header.encode()[..]);
        let capacity = buffer.capacity();
        let mut decoder = Decoder::new(7, u32::MAX);
        assert!(matches!(
            decoder.decode(&mut buffer),
            Err(ProtocolError::Malformed(Malformed::TooLong { .. }))
        ));
        assert!(buffer.capacity() <= capacity);
    }

    #[test]
    fn fault_27_a_frame_that_arrives_twice_is_refused() {
        let once = frame_bytes(&Message::Ping);
        let mut buffer = once.clone();
        buffer.extend_from_slice(&once);
        let mut decoder = Decoder::new(7, 1 << 20);
        assert!(decoder.decode(&mut buffer).unwrap().is_some());
        let twice = decoder.decode(&mut buffer);
        assert!(matches!(
            twice,
            Err(ProtocolError::Misbehaved(PeerMisbehaved::Sequence {
                expected: 8,
                found: 7
            }))
        ));
        assert_eq!(
            decoder.decode(&mut BytesMut::new()),
            twice,
            "it must not recover"
        );
    }

    #[test]
    fn fault_98_unknown_kinds_and_flags_are_refused_in_words() {
        for (kind, flags) in [
            (255, 0),
            (MessageKind::Ping as u8, 1),
            (MessageKind::Data as u8, 2),
        ] {
            let header = Header {
                payload_bytes: 0,
                kind,
                flags,
                channel: 0,
                sequence: 7,
                payload_crc32: 0,
            };
            let mut buffer = BytesMut::from(&header.encode()[..]);
            let error = Decoder::new(7, 1 << 20).decode(&mut buffer).unwrap_err();
            assert_eq!(error.code(), crate::message::ErrorCode::Incompatible);
            assert!(error.to_string().contains("too far apart"));
        }
    }

    #[test]
    fn a_block_frame_equals_the_frame_of_its_message() {
        use crate::message::Data;
        let raw = b"some bytes of a file";
        let mut block = crate::compress::Packer::new(0)
            .pack(Vec::new(), 4096, |buffer| {
                buffer.extend_from_slice(raw);
                Ok::<(), ()>(())
            })
            .unwrap();
        let message = Message::Data(Data {
            offset: 4096,
            raw_bytes: 20,
            zstd: false,
            bytes: bytes::Bytes::from_static(raw),
        });
        let direct = Encoder::new(7).encode_block(3, &mut block).to_vec();
        assert_eq!(direct, frame_bytes(&message));
    }
}
