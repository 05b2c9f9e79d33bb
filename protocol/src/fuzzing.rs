//! Fuzz bodies as plain functions, so that unit tests run them too and they cannot rot.
//! Each panics when an invariant breaks and returns otherwise.

mod backup;
mod fetch;
mod overview;
mod partial;
/// What a release does not need: `arbitrary` stays out of it.
#[cfg(any(test, fuzzing))]
mod sessions;
mod trial;

#[cfg(any(test, fuzzing))]
pub use sessions::{
    backup_session, fetch_session, hello, partial_session, push_session, raw_messages,
    trial_session,
};

use bytes::{Bytes, BytesMut};

use crate::codec::{Decoder, Encoder};
use crate::compress::{Packer, Unpacker};
use crate::frame::{DATA_HEADROOM_BYTES, HEADER_BYTES, Header};
use crate::limits::{BLOCK_BYTES_MAX, FRAME_PAYLOAD_BYTES, FRAME_PAYLOAD_BYTES_MAX};
use crate::message::{Data, Digest, Message};
use crate::names::WalFileName;

/// Names: whatever parses has one spelling and is one path component.
pub fn names(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    if let Ok(name) = text.parse::<WalFileName>() {
        assert_eq!(name.to_string(), text);
        assert!(!text.contains(['/', '\0']) && !text.starts_with('.'));
    }
}

/// Frames: the same stream gives the same frames however it is cut, and memory stays bounded.
pub fn frame(input: &[u8]) {
    let Some((&first, stream)) = input.split_first() else {
        return;
    };
    let whole = decode_all(stream, stream.len().max(1));
    let pieces = decode_all(stream, usize::from(first).max(1));
    assert_eq!(whole, pieces);
    if let Some(bytes) = stream.first_chunk::<HEADER_BYTES>()
        && let Ok(header) = Header::decode(bytes)
    {
        // The last four bytes are the checksum, which is not compared while fuzzing.
        let fields = HEADER_BYTES - 4;
        assert_eq!(header.encode()[..fields], bytes[..fields]);
    }
}

/// Messages: what reads writes back to the same bytes; blocks unpack within their bound.
pub fn message(input: &[u8]) {
    let [kind, flags, payload @ ..] = input else {
        return;
    };
    let Ok(message) = Message::decode(*kind, *flags, Bytes::copy_from_slice(payload)) else {
        return;
    };
    if let Message::Data(data) = &message {
        let mut unpacker = Unpacker::default();
        if let Ok(raw) = unpacker.unpack(&data.bytes, data.raw_bytes, data.zstd) {
            assert!(raw.len() == data.raw_bytes as usize && data.raw_bytes <= BLOCK_BYTES_MAX);
        }
    }
    let mut again = BytesMut::new();
    let flags = message.encode(&mut again);
    let reread = Message::decode(*kind, flags, again.freeze());
    assert_eq!(reread.as_ref(), Ok(&message));
}

fn decode_all(stream: &[u8], piece_bytes: usize) -> (Vec<crate::codec::Frame>, bool) {
    let mut decoder = Decoder::new(0, FRAME_PAYLOAD_BYTES);
    let mut buffer = BytesMut::new();
    let mut frames = Vec::new();
    for piece in stream.chunks(piece_bytes) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, true),
            }
        }
        let bound = FRAME_PAYLOAD_BYTES_MAX as usize + stream.len();
        assert!(buffer.capacity() <= 2 * bound, "a length was believed");
    }
    (frames, false)
}

/// A stream of valid frames, to seed corpora and tests with.
pub fn sample_stream() -> Vec<u8> {
    let mut encoder = Encoder::new(0);
    let mut out = BytesMut::new();
    for message in sample_messages() {
        encoder.encode(1, &message, &mut out);
    }
    let Ok(mut block) = Packer::new(1).pack(Vec::new(), 0, |buffer| {
        buffer.resize(DATA_HEADROOM_BYTES + 5_000, b'w');
        Ok::<(), std::convert::Infallible>(())
    });
    out.extend_from_slice(encoder.encode_block(1, &mut block));
    out.to_vec()
}

/// One message of every kind, with every optional field once present and once absent.
pub fn sample_messages() -> Vec<Message> {
    use crate::message::{Acknowledgement, List, ListRequest, SetupDone};
    let digest = Digest {
        size: 16 << 20,
        crc32: 0xCAFE_F00D,
    };
    let segment = "00000001000000020000009A";
    let mut messages = vec![
        Message::Setup,
        Message::SetupDone(SetupDone {
            newly_bound: true,
            completed_wals: "/srv".into(),
        }),
        Message::Have(crate::message::Have {
            prefix_bytes: 8192,
            prefix_crc32: 1,
        }),
        Message::Data(Data {
            offset: 262_144,
            raw_bytes: 3,
            zstd: false,
            bytes: Bytes::from_static(b"wal"),
        }),
        Message::Data(Data {
            offset: 524_288,
            raw_bytes: 8192,
            zstd: true,
            bytes: Bytes::from_static(b"packed"),
        }),
        Message::Commit(digest),
        Message::Stored(Acknowledgement(digest)),
        Message::Conflict(digest),
        Message::Error(crate::message::Error::channel(
            crate::message::ErrorCode::DiskFull,
            "no space left",
            "free some",
        )),
        Message::ListRequest(ListRequest {
            after: segment.parse().ok(),
            limit: 100,
        }),
        Message::ListRequest(ListRequest {
            after: None,
            limit: 0,
        }),
        Message::ChecksumRequest,
        Message::Ping,
        Message::Pong,
        Message::Goodbye,
    ];
    if let (Ok(name), Ok(history)) = (segment.parse(), "00000002.history".parse()) {
        messages.extend([Some(digest.crc32), None].map(|crc32| {
            Message::Offer(crate::message::Offer {
                name,
                size: digest.size,
                crc32,
                verify: crate::message::WireVerify::Records,
            })
        }));
        messages.push(Message::List(List {
            entries: vec![(history, 42), (name, 16 << 20)],
            more: true,
        }));
    }
    messages.extend(backup::sample_messages());
    messages.extend(fetch::sample_messages());
    messages.extend(partial::sample_messages());
    messages.extend(overview::sample_messages());
    messages.extend(trial::sample_messages());
    messages
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Partial;
    use proptest::prelude::*;

    #[test]
    fn the_sample_stream_holds_every_message_once() {
        let (frames, failed) = decode_all(&sample_stream(), 1);
        assert!(!failed);
        assert_eq!(frames.len(), sample_messages().len() + 1);
        for (frame, message) in frames.iter().zip(sample_messages()) {
            assert_eq!(frame.message, message);
        }
    }

    #[test]
    fn every_message_cut_at_every_byte_is_refused_or_waits() {
        for sample in sample_messages() {
            let mut payload = BytesMut::new();
            let flags = sample.encode(&mut payload);
            let payload = payload.freeze();
            for len in 0..payload.len() {
                let cut = Message::decode(sample.kind() as u8, flags, payload.slice(..len));
                let shorter_block = match sample {
                    Message::Data(_) => len >= 12,
                    Message::Partial(Partial::Append(_)) => len >= 20,
                    _ => false,
                };
                assert!(
                    cut.is_err() || shorter_block,
                    "{sample:?} cut at {len} was read"
                );
            }
            let mut longer = payload.to_vec();
            longer.push(0);
            let surplus = Message::decode(sample.kind() as u8, flags, longer.into());
            let has_block = matches!(
                sample,
                Message::Data(_) | Message::Partial(Partial::Append(_))
            );
            assert!(surplus.is_err() || has_block);
        }
        let stream = sample_stream();
        for len in 0..stream.len().min(2_000) {
            let (_, failed) = decode_all(&stream[..len], 64);
            assert!(!failed, "a stream cut at {len} is short, not wrong");
        }
    }

    #[test]
    fn fault_22_every_flipped_bit_of_a_stream_is_noticed() {
        let stream = sample_stream();
        let (whole, _) = decode_all(&stream, 4096);
        for bit in 0..stream.len() * 8 {
            let mut damaged = stream.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let (frames, failed) = decode_all(&damaged, 4096);
            assert!(
                failed || frames.len() < whole.len(),
                "bit {bit} went unnoticed"
            );
            assert_eq!(
                frames[..],
                whole[..frames.len()],
                "bit {bit} changed a message"
            );
        }
    }

    #[test]
    fn samples_pass_every_body() {
        let stream = sample_stream();
        frame(&stream);
        frame(&[&[7], &stream[..]].concat());
        for sample in sample_messages() {
            let mut payload = BytesMut::new();
            let flags = sample.encode(&mut payload);
            message(&[&[sample.kind() as u8, flags], &payload[..]].concat());
        }
        names(b"00000001000000020000009A.partial");
    }

    proptest! {
        #[test]
        fn any_bytes_pass_every_body(input in proptest::collection::vec(any::<u8>(), 0..600)) {
            names(&input);
            frame(&input);
            message(&input);
        }
    }
}
