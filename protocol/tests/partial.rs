//! Both ends of a partial stream in one thread, over connections that break at any frame.
//! Claim: whatever breaks, the receiver holds a beginning of what the master has, it never
//! acknowledged more than that, and the next connection ends with all of it.

#![allow(clippy::unwrap_used, clippy::panic)]

use bytes::{Bytes, BytesMut};
use walmgr_protocol::codec::{Decoder, Encoder};
use walmgr_protocol::error::{PeerMisbehaved, ProtocolError};
use walmgr_protocol::message::partial::{Append, At, Begun, Open, Partial, PartialBegin};
use walmgr_protocol::message::{Error, ErrorCode, Message};
use walmgr_protocol::names::{Lsn, SegmentName, TimelineId, WalSegmentSize};
use walmgr_protocol::session::partial::{
    PartialAnswer, PartialReceiver, PartialReceiverAction, PartialSender, ProofOfRecords,
    acknowledge,
};

const START: u64 = 0x0300_0000;
const BLOCK: usize = 700;

struct Proof(Lsn);

impl ProofOfRecords for Proof {
    fn end(&self) -> Lsn {
        self.0
    }
}

fn segment() -> SegmentName {
    "000000010000000000000003".parse().unwrap()
}

fn size() -> WalSegmentSize {
    WalSegmentSize::DEFAULT
}

/// What the receiver's disk holds across connections, and what it has acknowledged.
#[derive(Default)]
struct Standby {
    held: Vec<u8>,
    comparing: Option<usize>,
    acknowledged: u64,
}

impl Standby {
    /// Performs what the session asks for, and returns what goes back.
    fn perform(
        &mut self,
        session: &mut PartialReceiver,
        action: PartialReceiverAction,
    ) -> Option<Message> {
        let next = match action {
            PartialReceiverAction::Begin(_) => session.begun(
                Begun {
                    newest_finished: None,
                    oldest_partial: None,
                    newest_partial: None,
                },
                size(),
            ),
            PartialReceiverAction::Open(open) => {
                let common = self.held.len().min(usize::try_from(open.bytes).unwrap());
                self.comparing = None;
                session.opened(At {
                    held_bytes: self.held.len() as u64,
                    common_bytes: common as u64,
                    common_crc32: crc32fast::hash(&self.held[..common]),
                })
            }
            PartialReceiverAction::Rewrite => {
                self.comparing = Some(0);
                Ok(None)
            }
            PartialReceiverAction::Append(append) => {
                let at = usize::try_from(append.offset).unwrap();
                let end = at + append.bytes.len();
                let same = self.comparing.is_some()
                    && self
                        .held
                        .get(at..end)
                        .is_some_and(|held| held == append.bytes);
                if !same {
                    self.held.truncate(at);
                    self.held.extend_from_slice(&append.bytes);
                    self.comparing = None;
                }
                self.acknowledged = append.end.0 - START;
                session.durable(&Proof(append.end))
            }
            PartialReceiverAction::Send(message) => return Some(message),
        };
        match next.unwrap() {
            Some(PartialReceiverAction::Send(message)) => Some(message),
            _ => None,
        }
    }
}

/// A connection of at most this many frames from the master. Whether all of the WAL was
/// acknowledged on it.
fn connection(wal: &[u8], standby: &mut Standby, frames: usize) -> bool {
    let mut receiver = PartialReceiver::default();
    let (mut encoder, mut decoder) = (Encoder::new(0), Decoder::new(0, 1 << 20));
    let (mut left, mut wire) = (frames, BytesMut::new());
    let timeline = TimelineId::new(1).unwrap();
    let (mut sender, first) = PartialSender::begin(PartialBegin { timeline });
    let mut outbox = vec![first];
    loop {
        let mut answers = Vec::new();
        for message in outbox.drain(..) {
            if left == 0 {
                return false;
            }
            left -= 1;
            encoder.encode(2, &message, &mut wire);
            let frame = decoder.decode(&mut wire).unwrap().unwrap();
            if let Some(action) = receiver.received(frame.message).unwrap() {
                answers.extend(standby.perform(&mut receiver, action));
            }
        }
        for answer in answers {
            match sender.received(answer).unwrap() {
                PartialAnswer::Begun(_) => outbox.extend(sender.open(Open {
                    segment: segment(),
                    bytes: wal.len() as u64,
                    crc32: crc32fast::hash(wal),
                })),
                PartialAnswer::Compare(at) => {
                    let common = usize::try_from(at.common_bytes).unwrap();
                    let same = crc32fast::hash(&wal[..common]) == at.common_crc32;
                    outbox.extend(sender.compared(same).unwrap());
                }
                PartialAnswer::Durable(_) => {}
                PartialAnswer::Refused(error) => panic!("{error}"),
            }
        }
        let Some(offset) = sender.next_offset() else {
            if outbox.is_empty() {
                // The standby holds more, all of it the same.
                return false;
            }
            continue;
        };
        let at = usize::try_from(offset).unwrap();
        if at == wal.len() && outbox.is_empty() {
            return sender.in_flight() == 0;
        }
        let bytes = &wal[at..(at + BLOCK).min(wal.len())];
        if !bytes.is_empty() {
            outbox.extend(sender.append(Append {
                offset,
                end: Lsn(START + offset + bytes.len() as u64),
                raw_bytes: u32::try_from(bytes.len()).unwrap(),
                zstd: false,
                bytes: Bytes::copy_from_slice(bytes),
            }));
        }
    }
}

fn wal(bytes: usize, fill: u8) -> Vec<u8> {
    (0..bytes).map(|at| at.to_le_bytes()[0] ^ fill).collect()
}

#[test]
fn a_stream_that_breaks_at_every_frame_goes_on_where_it_was() {
    let wal = wal(6_000, 0);
    for frames in 0..14 {
        let mut standby = Standby::default();
        connection(&wal, &mut standby, frames);
        assert!(wal.starts_with(&standby.held), "after {frames} frames");
        assert!(standby.acknowledged <= standby.held.len() as u64);
        let before = standby.held.len();
        assert!(connection(&wal, &mut standby, usize::MAX));
        assert_eq!(standby.held, wal);
        assert!(before <= standby.held.len());
    }
}

#[test]
fn fault_41_48_another_tail_replaces_the_old_from_the_first_difference() {
    let old = wal(5_000, 0);
    let mut anew = old.clone();
    anew.truncate(3_000);
    anew.extend(wal(2_500, 0x55));
    for frames in 0..14 {
        let mut standby = Standby {
            held: old.clone(),
            ..Standby::default()
        };
        connection(&anew, &mut standby, frames);
        assert!(old.starts_with(&standby.held) || anew.starts_with(&standby.held));
        assert!(connection(&anew, &mut standby, usize::MAX));
        assert_eq!(standby.held, anew);
    }
}

#[test]
fn fault_47_a_lost_tail_is_kept_until_it_is_contradicted() {
    let whole = wal(5_000, 0);
    let mut standby = Standby {
        held: whole.clone(),
        ..Standby::default()
    };
    assert!(!connection(&whole[..3_000], &mut standby, usize::MAX));
    assert_eq!(standby.held, whole);
}

/// A receiver that has granted the stream and opened the segment at 100 bytes.
fn receiver_at_100() -> PartialReceiver {
    let mut receiver = PartialReceiver::default();
    let mut standby = Standby {
        held: vec![1; 100],
        ..Standby::default()
    };
    let timeline = TimelineId::new(1).unwrap();
    let open = Open {
        segment: segment(),
        bytes: 100,
        crc32: 0,
    };
    for partial in [
        Partial::Begin(PartialBegin { timeline }),
        Partial::Open(open),
    ] {
        let action = receiver.received(Message::Partial(partial)).unwrap();
        standby.perform(&mut receiver, action.unwrap()).unwrap();
    }
    receiver
}

fn append_at(offset: u64) -> Message {
    Message::Partial(Partial::Append(Append {
        offset,
        end: Lsn(START.wrapping_add(offset)),
        raw_bytes: 8,
        zstd: false,
        bytes: Bytes::from_static(b"8 bytes."),
    }))
}

#[test]
fn fault_41_an_append_anywhere_but_at_the_end_is_refused() {
    for offset in [0, 92, 99, 101, 108, u64::MAX - 3, size().bytes() - 4] {
        let error = receiver_at_100().received(append_at(offset)).unwrap_err();
        let expected = PeerMisbehaved::Offset {
            expected: 100,
            found: offset,
        };
        assert_eq!(error, ProtocolError::from(expected));
    }
    let mut receiver = receiver_at_100();
    for offset in [100, 108, 116] {
        let action = receiver.received(append_at(offset)).unwrap();
        assert!(matches!(action, Some(PartialReceiverAction::Append(_))));
    }
    // From the beginning only before anything was appended.
    let rewrite = Message::Partial(Partial::Rewrite);
    receiver.received(rewrite.clone()).unwrap_err();
    let mut receiver = receiver_at_100();
    assert_eq!(
        receiver.received(rewrite).unwrap(),
        Some(PartialReceiverAction::Rewrite)
    );
    assert!(receiver.received(append_at(0)).unwrap().is_some());
}

#[test]
fn what_was_on_its_way_when_an_append_failed_is_dropped() {
    let mut receiver = receiver_at_100();
    let appends = receiver.received(append_at(100)).unwrap();
    assert!(matches!(appends, Some(PartialReceiverAction::Append(_))));
    let refusal = Error::channel(ErrorCode::DamagedFile, "no record", "");
    let refused = receiver.failed(refusal);
    assert!(matches!(
        refused,
        PartialReceiverAction::Send(Message::Error(_))
    ));
    assert_eq!(receiver.received(append_at(108)).unwrap(), None);
    assert_eq!(receiver.durable(&Proof(Lsn(START + 108))), Ok(None));
    let open = Open {
        segment: segment(),
        bytes: 0,
        crc32: 0,
    };
    let open = Message::Partial(Partial::Open(open));
    assert_eq!(receiver.received(open.clone()).unwrap(), None);
    // The sender goes on by asking for the stream again.
    let timeline = TimelineId::new(1).unwrap();
    let begin = Message::Partial(Partial::Begin(PartialBegin { timeline }));
    let begun = receiver.received(begin).unwrap();
    assert!(matches!(begun, Some(PartialReceiverAction::Begin(_))));
    // Nothing is opened by one who was never granted the stream.
    PartialReceiver::default().received(open).unwrap_err();
}

#[test]
fn the_sender_believes_no_answer_that_cannot_be() {
    let timeline = TimelineId::new(1).unwrap();
    let begun = Message::Partial(Partial::Begun(Begun {
        newest_finished: None,
        oldest_partial: None,
        newest_partial: None,
    }));
    let opened = || {
        let (mut sender, _) = PartialSender::begin(PartialBegin { timeline });
        let answer = sender.received(begun.clone()).unwrap();
        assert!(matches!(answer, PartialAnswer::Begun(_)));
        let open = Open {
            segment: segment(),
            bytes: 100,
            crc32: 0,
        };
        sender.open(open).unwrap();
        sender
    };
    for (held_bytes, common_bytes) in [(50, 60), (50, 40), (200, 150)] {
        let at = At {
            held_bytes,
            common_bytes,
            common_crc32: 0,
        };
        let at = Message::Partial(Partial::At(at));
        assert!(opened().received(at).is_err());
    }
    let beyond = acknowledge(&Proof(Lsn(START + 1)));
    let error = opened().received(beyond).unwrap_err();
    assert!(error.to_string().contains("sent up to 0/0"), "{error}");
    assert!(opened().received(begun.clone()).is_err());
    let refusal = Error::channel(ErrorCode::Diverged, "another past", "");
    let mut sender = opened();
    let answer = sender.received(Message::Error(refusal.clone())).unwrap();
    assert_eq!(answer, PartialAnswer::Refused(refusal));
    assert!(sender.received(begun).is_err(), "it is over");
}
