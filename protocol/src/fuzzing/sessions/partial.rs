//! A partial stream between a sender and a receiver; a segment is a length here.
//! Never a driver. Invariant: the receiver appends where the segment that is open goes on and not
//! behind its end, and the sender believes nothing durable that it did not send.

use std::collections::VecDeque;

use arbitrary::Unstructured;
use bytes::Bytes;

use super::messages::{self, SEGMENT_SIZE};
use super::run::{Ends, Over, run};
use crate::message::Message;
use crate::message::partial::{Append, At};
use crate::names::Lsn;
use crate::session::Misuse;
use crate::session::partial::{
    PartialAnswer, PartialReceiver, PartialReceiverAction, PartialSender, ProofOfRecords,
};

/// What the fuzzed receiver shows as proof: the end that was stated for what was written.
struct WrittenRecords(Lsn);

impl ProofOfRecords for WrittenRecords {
    fn end(&self) -> Lsn {
        self.0
    }
}

/// Both ends of a partial stream.
pub fn partial_session(input: &[u8]) {
    run(input, &mut FuzzedStream::default());
}

#[derive(Default)]
struct FuzzedStream {
    receiver: PartialReceiver,
    /// What the receiver holds of the segment that is open.
    held_bytes: u64,
    is_open: bool,
    was_granted: bool,
    sender: Option<PartialSender>,
    sent_end: Lsn,
    appended: usize,
    to_receiver: VecDeque<Message>,
    to_sender: VecDeque<Message>,
    /// Somebody else spoke on this connection.
    is_tapped: bool,
}

impl Ends for FuzzedStream {
    fn arrive(&mut self, message: Message, choices: &mut Unstructured<'_>) -> Result<(), Over> {
        let Some(action) = self.receiver.received(message)? else {
            return Ok(());
        };
        if choices.ratio(1, 12)? {
            let failed = self.receiver.failed(messages::error(choices)?);
            self.send(failed);
            assert_eq!(self.receiver.durable(&WrittenRecords(Lsn(1))), Ok(None));
            return Ok(());
        }
        match action {
            PartialReceiverAction::Begin(_) => {
                (self.is_open, self.was_granted) = (false, true);
                let begun = messages::begun(choices)?;
                let answer = self.receiver.begun(begun, SEGMENT_SIZE);
                self.answer_awaited(answer);
                let again = self.receiver.begun(begun, SEGMENT_SIZE);
                assert!(!matches!(again, Ok(Some(_))), "answered twice");
            }
            PartialReceiverAction::Open(open) => {
                assert!(self.was_granted, "opened without a grant");
                self.held_bytes = choices.int_in_range(0..=SEGMENT_SIZE.bytes())?;
                self.is_open = true;
                let at = At {
                    held_bytes: self.held_bytes,
                    common_bytes: self.held_bytes.min(open.bytes),
                    common_crc32: 0,
                };
                let answer = self.receiver.opened(at);
                self.answer_awaited(answer);
                let again = self.receiver.opened(at);
                assert!(!matches!(again, Ok(Some(_))), "answered twice");
            }
            PartialReceiverAction::Rewrite => {
                assert!(self.is_open, "rewritten while nothing is open");
                self.held_bytes = 0;
            }
            PartialReceiverAction::Append(append) => {
                assert!(self.is_open, "appended while nothing is open");
                assert_eq!(append.offset, self.held_bytes, "a hole or an overlap");
                self.held_bytes += u64::from(append.raw_bytes);
                assert!(self.held_bytes <= SEGMENT_SIZE.bytes());
                // Often several appends are synced at once.
                if !choices.ratio(1, 3)? {
                    let durable = self.receiver.durable(&WrittenRecords(append.end));
                    self.answer_awaited(durable);
                }
            }
            send @ PartialReceiverAction::Send(_) => self.send(send),
        }
        Ok(())
    }

    fn step(&mut self, choices: &mut Unstructured<'_>) -> Result<(), Over> {
        match choices.int_in_range(0_u8..=15)? {
            0 => {
                let (sender, message) = PartialSender::begin(messages::partial_begin(choices)?);
                // A stream begins on a connection of its own.
                self.break_link();
                self.sender = Some(sender);
                self.to_receiver.push_back(message);
            }
            1 | 2 => self.open(choices)?,
            3..=6 => self.append(choices)?,
            7..=9 => {
                if let Some(message) = self.to_receiver.pop_front()
                    && self.arrive(message, choices).is_err()
                {
                    assert!(
                        self.is_tapped || choices.is_empty(),
                        "an honest sender was refused"
                    );
                    self.break_link();
                }
            }
            10..=12 => {
                if let Some(message) = self.to_sender.pop_front() {
                    self.answer(message, choices)?;
                }
            }
            13 => {
                self.is_tapped = true;
                let message = messages::any(choices)?;
                if self.arrive(message, choices).is_err() {
                    self.break_link();
                }
            }
            14 => {
                self.is_tapped = true;
                let message = messages::any(choices)?;
                self.answer(message, choices)?;
            }
            _ => self.break_link(),
        }
        Ok(())
    }
}

impl FuzzedStream {
    fn send(&mut self, action: PartialReceiverAction) {
        match action {
            PartialReceiverAction::Send(message) => self.to_sender.push_back(message),
            other => unreachable!("{other:?} is no answer"),
        }
    }

    /// Nothing that was asked for goes unanswered.
    fn answer_awaited(&mut self, action: Result<Option<PartialReceiverAction>, Misuse>) {
        let action = action.expect("it was asked for");
        self.send(action.expect("nobody gave it up"));
    }

    fn open(&mut self, choices: &mut Unstructured<'_>) -> Result<(), Over> {
        let open = messages::open(choices)?;
        let message = self
            .sender
            .as_mut()
            .and_then(|sender| sender.open(open).ok());
        self.to_receiver.extend(message);
        Ok(())
    }

    fn append(&mut self, choices: &mut Unstructured<'_>) -> Result<(), Over> {
        let Some(sender) = &mut self.sender else {
            return Ok(());
        };
        let Some(offset) = sender.next_offset() else {
            return Ok(());
        };
        let left = SEGMENT_SIZE.bytes().saturating_sub(offset);
        let most = u32::try_from(left.min(1 << 19)).map_err(|_| Over)?;
        let raw_bytes = choices.int_in_range(0..=most)?;
        let append = Append {
            offset,
            end: Lsn(offset + u64::from(raw_bytes)),
            raw_bytes,
            zstd: choices.arbitrary()?,
            bytes: Bytes::new(),
        };
        let elsewhere = Append {
            offset: offset + 1,
            ..append.clone()
        };
        assert!(sender.append(elsewhere).is_err());
        let end = append.end;
        let message = sender.append(append).ok();
        assert_eq!(message.is_some(), raw_bytes > 0);
        if message.is_some() {
            self.sent_end = self.sent_end.max(end);
            self.appended += 1;
        }
        self.to_receiver.extend(message);
        Ok(())
    }

    fn answer(&mut self, message: Message, choices: &mut Unstructured<'_>) -> Result<(), Over> {
        let Some(sender) = &mut self.sender else {
            return Ok(());
        };
        match sender.received(message) {
            Ok(PartialAnswer::Compare(_)) => {
                let message = sender.compared(choices.arbitrary()?);
                let message = message.expect("it was asked to compare");
                assert!(sender.compared(true).is_err(), "compared twice");
                self.to_receiver.extend(message);
            }
            Ok(PartialAnswer::Durable(end)) => {
                assert!(end <= self.sent_end, "believed more than it sent")
            }
            Ok(PartialAnswer::Begun(_)) => {}
            Ok(PartialAnswer::Refused(_)) => {
                assert!(sender.open(messages::open(choices)?).is_err());
                assert_eq!(sender.next_offset(), None);
                assert!(sender.received(Message::Ping).is_err(), "it goes on");
                self.sender = None;
            }
            Err(_) => {
                assert!(self.is_tapped, "an honest receiver was refused");
                self.break_link();
            }
        }
        if let Some(sender) = &self.sender {
            assert!(sender.in_flight() <= self.appended);
        }
        Ok(())
    }

    fn break_link(&mut self) {
        *self = FuzzedStream::default();
    }
}
