//! The header of a frame: 20 bytes that say what follows, each offset chained from the one
//! before. Never holds a payload. Invariant: a [`Header`] that was decoded had a valid checksum.

use crate::error::Malformed;

const LENGTH_AT: usize = 0;
const KIND_AT: usize = LENGTH_AT + 4;
const FLAGS_AT: usize = KIND_AT + 1;
const CHANNEL_AT: usize = FLAGS_AT + 1;
const SEQUENCE_AT: usize = CHANNEL_AT + 2;
const PAYLOAD_CRC_AT: usize = SEQUENCE_AT + 4;
const HEADER_CRC_AT: usize = PAYLOAD_CRC_AT + 4;

/// Bytes in a frame's header.
pub const HEADER_BYTES: usize = HEADER_CRC_AT + 4;

/// Bytes of a data frame before the block: the frame's header, the offset, the raw length.
pub const DATA_HEADROOM_BYTES: usize = HEADER_BYTES + 8 + 4;

/// Flag: the data block is one zstd frame.
pub const FLAG_ZSTD: u8 = 1;

/// Random bytes each side puts in its hello.
pub type Nonce = [u8; 16];

/// Which way a frame travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the side that opened the connection.
    FromClient,
    /// From the receiver.
    FromReceiver,
}

/// The sequence of the first frame in a direction: the CRC-32 of the client's nonce, the
/// receiver's nonce, and one byte (0 from the client, 1 from the receiver).
///
/// It ties every frame to this connection: the receiver's nonce is fresh, so a recorded session
/// that is played again breaks at its first frame.
pub fn first_sequence(client: &Nonce, receiver: &Nonce, direction: Direction) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(client);
    crc.update(receiver);
    crc.update(&[match direction {
        Direction::FromClient => 0,
        Direction::FromReceiver => 1,
    }]);
    crc.finalize()
}

/// What stands before every payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes of payload behind the header.
    pub payload_bytes: u32,
    /// Which message the payload is; see [`crate::message::MessageKind`].
    pub kind: u8,
    /// [`FLAG_ZSTD`] or 0.
    pub flags: u8,
    /// 0 for the connection, 1 and up for uploads.
    pub channel: u16,
    /// Counts up by one a frame from [`first_sequence`].
    pub sequence: u32,
    /// CRC-32 of the payload as sent, that is after compression.
    pub payload_crc32: u32,
}

impl Header {
    /// The header as bytes, with its checksum.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[LENGTH_AT..KIND_AT].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[KIND_AT] = self.kind;
        bytes[FLAGS_AT] = self.flags;
        bytes[CHANNEL_AT..SEQUENCE_AT].copy_from_slice(&self.channel.to_le_bytes());
        bytes[SEQUENCE_AT..PAYLOAD_CRC_AT].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[PAYLOAD_CRC_AT..HEADER_CRC_AT].copy_from_slice(&self.payload_crc32.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..HEADER_CRC_AT]);
        bytes[HEADER_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header these bytes hold, if their checksum says so.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Header, Malformed> {
        let stated = u32_at(bytes, HEADER_CRC_AT);
        let found = crc32fast::hash(&bytes[..HEADER_CRC_AT]);
        // A fuzzer cannot guess checksums: built for one, what lies behind them is reached.
        if stated != found && !cfg!(fuzzing) {
            return Err(Malformed::Checksum {
                of: "frame header",
                stated,
                found,
            });
        }
        Ok(Header {
            payload_bytes: u32_at(bytes, LENGTH_AT),
            kind: bytes[KIND_AT],
            flags: bytes[FLAGS_AT],
            channel: u16::from_le_bytes([bytes[CHANNEL_AT], bytes[CHANNEL_AT + 1]]),
            sequence: u32_at(bytes, SEQUENCE_AT),
            payload_crc32: u32_at(bytes, PAYLOAD_CRC_AT),
        })
    }
}

fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_back_and_any_flipped_bit_is_noticed() {
        let header = Header {
            payload_bytes: 0x0102_0304,
            kind: 5,
            flags: FLAG_ZSTD,
            channel: 0x0607,
            sequence: 0x0809_0A0B,
            payload_crc32: 0x0C0D_0E0F,
        };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Ok(header));
        for bit in 0..HEADER_BYTES * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(
                Header::decode(&damaged).is_err(),
                "bit {bit} went unnoticed"
            );
        }
    }

    #[test]
    fn fault_88_a_new_receiver_nonce_moves_the_sequence() {
        let one = first_sequence(&[1; 16], &[2; 16], Direction::FromClient);
        let other = first_sequence(&[1; 16], &[3; 16], Direction::FromClient);
        let back = first_sequence(&[1; 16], &[2; 16], Direction::FromReceiver);
        assert!(one != other && one != back);
    }
}
