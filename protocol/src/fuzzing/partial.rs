//! The partial stream's part of the fuzz bodies and samples.
//! Never a driver: a file is a length here.

use bytes::Bytes;

use crate::message::partial::{Append, At, Begin, Begun, DurableTo, Open, Partial};
use crate::message::{Error, ErrorCode, Message};
use crate::names::{Lsn, TimelineId, WalSegmentSize};
use crate::session::partial::{ProofOfRecords, Receiver, ReceiverAction};

/// What the fuzzed receiver shows as proof: the end that was stated for what was written.
struct WrittenRecords(Lsn);

impl ProofOfRecords for WrittenRecords {
    fn end(&self) -> Lsn {
        self.0
    }
}

/// The receiver of a partial stream under arbitrary messages: it never writes but where the segment
/// that is open goes on, nor behind its end, and acknowledges nothing before it was granted.
pub fn partial_session(input: &[u8]) {
    let Some(size) = WalSegmentSize::new(1 << 20) else {
        return;
    };
    let mut receiver = Receiver::default();
    let mut next_offset = None;
    for operation in input.chunks(4) {
        let Some(message) = operation_message(operation) else {
            continue;
        };
        let Ok(action) = receiver.received(message) else {
            return;
        };
        match action {
            Some(ReceiverAction::Begin(_)) => {
                next_offset = None;
                if operation[3] % 4 == 0 {
                    receiver.failed(Error::channel(ErrorCode::WriterActive, "", ""));
                    continue;
                }
                let begun = receiver.begun(nothing_yet(), size);
                assert!(matches!(begun, Some(ReceiverAction::Send(_))));
            }
            Some(ReceiverAction::Open(open)) => {
                let at = At {
                    held_bytes: u64::from(operation[3]),
                    common_bytes: u64::from(operation[3]).min(open.bytes),
                    common_crc32: 0,
                };
                assert!(receiver.opened(at).is_some());
                next_offset = Some(at.held_bytes);
            }
            Some(ReceiverAction::Rewrite) => next_offset = next_offset.map(|_| 0),
            Some(ReceiverAction::Append(append)) => {
                assert_eq!(Some(append.offset), next_offset, "a hole or an overlap");
                let end = append.offset + u64::from(append.raw_bytes);
                assert!(end <= size.bytes());
                next_offset = Some(end);
                assert!(receiver.durable(&WrittenRecords(append.end)).is_some());
            }
            Some(ReceiverAction::Send(_)) | None => {}
        }
    }
}

fn nothing_yet() -> Begun {
    Begun {
        newest_finished: None,
        oldest_partial: None,
        newest_partial: None,
    }
}

/// A message of the stream with small numbers, so that fuzzing reaches the states behind it.
fn operation_message(operation: &[u8]) -> Option<Message> {
    let [kind, a, b, c] = operation else {
        return None;
    };
    Some(Message::Partial(match kind % 8 {
        0 => Partial::Begin(Begin {
            timeline: TimelineId::new(u32::from(*a))?,
        }),
        1 => Partial::Open(Open {
            segment: "000000010000000000000001".parse().ok()?,
            bytes: u64::from(*a),
            crc32: u32::from(*b),
        }),
        2 => Partial::Rewrite,
        3 | 4 => Partial::Append(Append {
            offset: u64::from(*a),
            end: Lsn(u64::from(*b)),
            raw_bytes: if c % 2 == 0 {
                u32::from(*b).max(1)
            } else {
                1 << 19
            },
            zstd: c % 3 == 1,
            bytes: Bytes::new(),
        }),
        5 => Partial::Durable(DurableTo(Lsn(1))),
        6 => {
            let error = Error::channel(ErrorCode::Abandoned, "", "");
            return Some(Message::Error(error));
        }
        _ => return Some(Message::Ping),
    }))
}

/// One message of every kind, with every optional field once present and once absent.
pub(super) fn sample_messages() -> Vec<Message> {
    let segment = "00000001000000020000009A".parse().ok();
    let mut messages = vec![
        Partial::Begun(Begun {
            newest_finished: segment,
            oldest_partial: segment,
            newest_partial: segment,
        }),
        Partial::Begun(nothing_yet()),
        Partial::At(At {
            held_bytes: 24_576,
            common_bytes: 8192,
            common_crc32: 0xCAFE_F00D,
        }),
        Partial::Rewrite,
        Partial::Append(Append {
            offset: 8192,
            end: Lsn(0x0000_0002_9A00_2018),
            raw_bytes: 3,
            zstd: false,
            bytes: Bytes::from_static(b"wal"),
        }),
        Partial::Durable(DurableTo(Lsn(0x0000_0002_9A00_2018))),
    ];
    messages.extend(TimelineId::new(1).map(|timeline| Partial::Begin(Begin { timeline })));
    messages.extend(segment.map(|segment| {
        Partial::Open(Open {
            segment,
            bytes: 8192,
            crc32: 0xCAFE_F00D,
        })
    }));
    messages.into_iter().map(Message::Partial).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_usual_stream_passes() {
        partial_session(&[
            0, 1, 0, 1, 1, 9, 5, 9, 3, 9, 4, 0, 1, 9, 5, 9, 2, 0, 0, 0, 3, 0, 9, 0,
        ]);
    }

    proptest! {
        #[test]
        fn any_bytes_pass(input in proptest::collection::vec(any::<u8>(), 0..600)) {
            partial_session(&input);
        }

        #[test]
        fn any_stream_that_was_granted_passes(input in proptest::collection::vec(0_u8..12, 0..600)) {
            partial_session(&[&[0, 1, 0, 1, 1, 0, 0, 0], &input[..]].concat());
        }
    }
}
