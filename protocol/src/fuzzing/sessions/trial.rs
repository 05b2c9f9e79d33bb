//! A trial between both of its ends; what is sent is a length here.
//! Never unpacks. Invariant: two honest ends never refuse each other, and the receiver takes exactly what was announced.

use std::collections::VecDeque;

use arbitrary::Unstructured;

use super::messages;
use super::run::{Ends, Over, run};
use crate::message::trial::{Measured, TrialBegin};
use crate::message::{Digest, Error, ErrorCode, Message};
use crate::session::trial::{TrialClient, TrialClientAction, TrialReceiver, TrialReceiverAction};

/// Both ends of a trial.
pub fn trial_session(input: &[u8]) {
    run(input, &mut TrialEnds::default());
}

#[derive(Default)]
struct TrialEnds {
    receiver: TrialReceiver,
    begun: Option<TrialBegin>,
    taken_bytes: u64,
    client: Option<TrialClient>,
    announced: u64,
    to_receiver: VecDeque<Message>,
    to_client: VecDeque<Message>,
    /// Somebody else spoke on this connection.
    is_tapped: bool,
}

impl Ends for TrialEnds {
    fn arrive(&mut self, message: Message, choices: &mut Unstructured<'_>) -> Result<(), Over> {
        let mut next = self.receiver.received(message)?;
        while let Some(action) = next.take() {
            match action {
                TrialReceiverAction::Begin(begin) => {
                    (self.begun, self.taken_bytes) = (Some(begin), 0);
                    next = Some(match choices.ratio(1, 8)? {
                        true => self.receiver.failed(busy()),
                        false => self.receiver.begun().expect("it was asked for room"),
                    });
                    assert!(self.receiver.begun().is_err(), "begun twice");
                }
                TrialReceiverAction::Take(data) => {
                    assert_eq!(data.offset, self.taken_bytes, "a hole or an overlap");
                    self.taken_bytes += u64::from(data.raw_bytes);
                    let announced = self.begun.map_or(0, |begun| begun.size);
                    assert!(self.taken_bytes <= announced, "more than was announced");
                    if choices.ratio(1, 32)? {
                        next = Some(self.receiver.failed(busy()));
                        assert!(self.receiver.is_idle());
                    }
                }
                TrialReceiverAction::Measure => {
                    let size = self.taken_bytes;
                    assert_eq!(Some(size), self.begun.map(|begun| begun.size));
                    let measured = Measured {
                        digest: Digest { size, crc32: 0 },
                        worked_us: 1,
                        synced_us: 1,
                    };
                    let told = self.receiver.measured(measured);
                    next = Some(told.expect("it was asked for figures"));
                    assert!(self.receiver.is_idle());
                }
                TrialReceiverAction::Send(message) => self.to_client.push_back(message),
                TrialReceiverAction::Stop => assert!(self.receiver.is_idle()),
            }
        }
        Ok(())
    }

    fn step(&mut self, choices: &mut Unstructured<'_>) -> Result<(), Over> {
        match choices.int_in_range(0_u8..=10)? {
            0 | 1 => self.begin(choices)?,
            2..=4 => {
                if let Some(message) = self.to_receiver.pop_front()
                    && self.arrive(message, choices).is_err()
                {
                    assert!(
                        self.is_tapped || choices.is_empty(),
                        "an honest client was refused"
                    );
                    self.break_link();
                }
            }
            5..=7 => {
                if let Some(message) = self.to_client.pop_front() {
                    self.answer(message, choices)?;
                }
            }
            8 => {
                self.is_tapped = true;
                let message = messages::any(choices)?;
                if self.arrive(message, choices).is_err() {
                    self.break_link();
                }
            }
            9 => {
                self.is_tapped = true;
                let message = messages::any(choices)?;
                self.answer(message, choices)?;
            }
            _ => self.break_link(),
        }
        Ok(())
    }
}

fn busy() -> Error {
    Error::channel(ErrorCode::Busy, "", "")
}

impl TrialEnds {
    fn begin(&mut self, choices: &mut Unstructured<'_>) -> Result<(), Over> {
        if self.client.is_some() {
            return Ok(());
        }
        let begin = TrialBegin {
            size: choices.int_in_range(0..=200)?,
            synced: choices.arbitrary()?,
        };
        self.announced = begin.size;
        let (client, message) = TrialClient::start(begin);
        self.client = Some(client);
        self.to_receiver.push_back(message);
        Ok(())
    }

    fn answer(&mut self, message: Message, choices: &mut Unstructured<'_>) -> Result<(), Over> {
        let Some(client) = &mut self.client else {
            return Ok(());
        };
        match client.received(message) {
            Ok(TrialClientAction::Finish(_)) => self.client = None,
            Ok(TrialClientAction::SendBlocks) => {
                let mut offset = 0;
                while offset < self.announced {
                    let left = u32::try_from(self.announced - offset).unwrap_or(u32::MAX);
                    let bytes = messages::length(choices)?.min(left);
                    let block = messages::data(offset, bytes, choices)?;
                    self.to_receiver.push_back(Message::Data(block));
                    client.block_sent(bytes).expect("it is sending");
                    offset += u64::from(bytes);
                }
                let end = client.ended(0).expect("it is sending");
                assert!(client.ended(0).is_err(), "ended twice");
                self.to_receiver.push_back(end);
            }
            Err(_) => {
                assert!(self.is_tapped, "an honest receiver was refused");
                self.break_link();
            }
        }
        Ok(())
    }

    fn break_link(&mut self) {
        *self = TrialEnds::default();
    }
}
