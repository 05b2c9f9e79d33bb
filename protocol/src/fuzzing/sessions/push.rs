//! An upload between a sender and a receiver, over an archive that is a few bytes of memory.
//! Never seals what was not offered. Invariant: what the receiver writes has no hole, and what an
//! honest sender believes stored is its source.

use std::collections::VecDeque;

use arbitrary::Unstructured;

use super::messages;
use super::run::{Ends, Over, run};
use crate::message::{Digest, Error, ErrorCode, Have, Message, Offer, WireVerify};
use crate::names::WalFileName;
use crate::session::push::{
    ProofOfDurability, PushHeld, PushOutcome, PushReceiver, PushReceiverAction, PushSealed,
    PushSender, PushSenderAction,
};

/// What the fuzzed receiver shows as proof: exactly the bytes that were written.
struct WrittenBytes(WalFileName, Digest);

impl ProofOfDurability for WrittenBytes {
    fn name(&self) -> WalFileName {
        self.0
    }

    fn digest(&self) -> Digest {
        self.1
    }
}

/// Both ends of an upload.
pub fn push_session(input: &[u8]) {
    run(input, &mut Upload::default());
}

#[derive(Default)]
struct Upload {
    receiver: PushReceiver,
    offered: Option<Offer>,
    written: Vec<u8>,
    /// What is durable, for every name.
    stored: Option<Vec<u8>>,
    sender: Option<PushSender>,
    source: Vec<u8>,
    to_receiver: VecDeque<Message>,
    to_sender: VecDeque<Message>,
    /// Somebody else spoke on this connection.
    is_tapped: bool,
}

impl Ends for Upload {
    fn arrive(&mut self, message: Message, choices: &mut Unstructured<'_>) -> Result<(), Over> {
        let mut next = self.receiver.received(message)?;
        while let Some(action) = next.take() {
            match action {
                PushReceiverAction::LookUp(offer) => next = self.look_up(offer, choices)?,
                PushReceiverAction::Begin(_, answer) => self.to_sender.push_back(answer),
                PushReceiverAction::Write(data) => {
                    // The first block says whether the sender goes on or begins again.
                    if data.offset == 0 {
                        self.written.clear();
                    }
                    let written = self.written.len() as u64;
                    assert_eq!(data.offset, written, "a hole or an overlap");
                    let bytes = data.bytes.iter().chain(std::iter::repeat(&0));
                    let bytes = bytes.take(data.raw_bytes.min(1 << 10) as usize);
                    self.written.extend(bytes);
                    if data.raw_bytes > 1 << 10 {
                        return Err(Over);
                    }
                }
                PushReceiverAction::Seal(digest) => next = Some(self.seal(digest, choices)?),
                PushReceiverAction::Discard => self.written.clear(),
                PushReceiverAction::Send(message) => self.to_sender.push_back(message),
            }
        }
        Ok(())
    }

    fn step(&mut self, choices: &mut Unstructured<'_>) -> Result<(), Over> {
        match choices.int_in_range(0_u8..=11)? {
            0 | 1 => self.offer(choices)?,
            2..=4 => {
                if let Some(message) = self.to_receiver.pop_front()
                    && self.arrive(message, choices).is_err()
                {
                    assert!(self.is_tapped, "an honest sender was refused");
                    self.break_link();
                }
            }
            5..=7 => {
                if let Some(message) = self.to_sender.pop_front() {
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
            10 => {
                let stopped = ErrorCode::Abandoned;
                let error = Message::Error(Error::channel(stopped, "", ""));
                self.to_receiver.push_back(error);
                // What is still on its way is an answer to nobody.
                self.is_tapped |= self.sender.take().is_some();
            }
            _ => self.break_link(),
        }
        Ok(())
    }
}

impl Upload {
    fn look_up(
        &mut self,
        offer: Offer,
        choices: &mut Unstructured<'_>,
    ) -> Result<Option<PushReceiverAction>, Over> {
        self.offered = Some(offer);
        if choices.ratio(1, 8)? {
            let refused = self.receiver.failed(ErrorCode::Busy, "".into(), "".into());
            assert!(
                self.receiver
                    .looked_up(&PushHeld::<WrittenBytes>::Other(zero()))
                    .is_err()
            );
            return Ok(Some(refused));
        }
        let held = match &self.stored {
            Some(_) if offer.crc32.is_none() => PushHeld::Unknown,
            Some(stored) if Some(digest_of(stored)) == digest(&offer) => {
                PushHeld::Same(WrittenBytes(offer.name, digest_of(stored)))
            }
            Some(stored) => PushHeld::Other(digest_of(stored)),
            None => {
                let most = self
                    .written
                    .len()
                    .min(usize::try_from(offer.size).unwrap_or(0));
                let prefix_bytes = choices.int_in_range(0..=most)?;
                self.written.truncate(prefix_bytes);
                PushHeld::Prefix(Have {
                    prefix_bytes: prefix_bytes as u64,
                    prefix_crc32: crc32fast::hash(&self.written),
                })
            }
        };
        let is_prefix = matches!(held, PushHeld::Prefix(_));
        let next = self.receiver.looked_up(&held);
        assert_eq!(is_prefix, !self.receiver.is_idle());
        assert!(self.receiver.looked_up(&held).is_err(), "answered twice");
        Ok(Some(next.expect("it was asked to be looked up")))
    }

    fn seal(
        &mut self,
        stated: Digest,
        choices: &mut Unstructured<'_>,
    ) -> Result<PushReceiverAction, Over> {
        let offer = self.offered.ok_or(Over)?;
        assert_eq!(stated.size, offer.size);
        assert!(offer.crc32.is_none_or(|offered| offered == stated.crc32));
        assert_eq!(self.written.len() as u64, stated.size);
        let found = digest_of(&self.written);
        let sealed = match choices.int_in_range(0_u8..=7)? {
            6 => PushSealed::Other(messages::digest(choices)?),
            7 => {
                return Ok(self
                    .receiver
                    .failed(ErrorCode::DiskFull, "".into(), "".into()));
            }
            _ if found != stated => {
                let (code, text) = (ErrorCode::Mismatch, String::new());
                return Ok(self.receiver.failed(code, text.clone(), text));
            }
            _ => {
                self.stored = Some(std::mem::take(&mut self.written));
                PushSealed::Durable(WrittenBytes(offer.name, found))
            }
        };
        let action = self.receiver.sealed(&sealed);
        assert!(self.receiver.is_idle());
        Ok(action.expect("it was asked to be sealed"))
    }

    /// A source is offered, mostly one that is not stored.
    fn offer(&mut self, choices: &mut Unstructured<'_>) -> Result<(), Over> {
        if self.sender.is_some() {
            return Ok(());
        }
        if choices.ratio(2, 3)? {
            self.stored = None;
        }
        let size = choices.int_in_range(0_u8..=200)?;
        let byte: u8 = choices.arbitrary()?;
        self.source = (0..size).map(|at| at ^ byte).collect();
        let Digest { size, crc32 } = digest_of(&self.source);
        let (name, verify) = (messages::file_name(choices)?, WireVerify::Records);
        let crc32 = choices.ratio(1, 2)?.then_some(crc32);
        let (sender, action) = PushSender::start(Offer {
            name,
            size,
            crc32,
            verify,
        });
        self.sender = Some(sender);
        self.perform(action, choices)
    }

    fn answer(&mut self, message: Message, choices: &mut Unstructured<'_>) -> Result<(), Over> {
        let Some(sender) = &mut self.sender else {
            return Ok(());
        };
        match sender.received(message) {
            Ok(action) => self.perform(action, choices),
            Err(_) => {
                assert!(self.is_tapped, "an honest receiver was refused");
                self.break_link();
                Ok(())
            }
        }
    }

    fn perform(
        &mut self,
        action: PushSenderAction,
        choices: &mut Unstructured<'_>,
    ) -> Result<(), Over> {
        let mut next = Some(action);
        while let (Some(action), Some(sender)) = (next.take(), &mut self.sender) {
            match action {
                PushSenderAction::Send(message) => self.to_receiver.push_back(message),
                PushSenderAction::TakeChecksum => {
                    let taken = sender.checksum_taken(crc32fast::hash(&self.source));
                    next = Some(taken.expect("it was asked for"));
                }
                PushSenderAction::HashPrefix(bytes) => {
                    let held = usize::try_from(bytes).map_err(|_| Over)?;
                    let prefix = self.source.get(..held);
                    let prefix = prefix.expect("no more is hashed than there is");
                    let hashed = sender.prefix_hashed(crc32fast::hash(prefix));
                    next = Some(hashed.expect("it was asked for"));
                }
                PushSenderAction::SendFrom(offset) => {
                    let mut at = usize::try_from(offset).map_err(|_| Over)?;
                    while at < self.source.len() {
                        let most = self.source.len() - at;
                        let bytes = (messages::length(choices)? as usize).min(most);
                        let raw_bytes = u32::try_from(bytes).unwrap_or(1);
                        let mut data = messages::data(at as u64, raw_bytes, choices)?;
                        data.bytes = self.source[at..at + bytes].to_vec().into();
                        self.to_receiver.push_back(Message::Data(data));
                        let sent = sender.block_sent(raw_bytes);
                        sent.expect("it was asked to send");
                        at += bytes;
                    }
                    // The source may have changed while it was read.
                    let changed = u32::from(choices.ratio(1, 8)?);
                    let ended = match changed == 1 && sender.checksum().is_none() {
                        true => sender.source_changed(),
                        false => sender.source_ended(crc32fast::hash(&self.source) ^ changed),
                    };
                    next = Some(ended.expect("it was asked to send"));
                }
                PushSenderAction::Finish(outcome) => {
                    if outcome == PushOutcome::Stored && !self.is_tapped {
                        assert_eq!(self.stored.as_ref(), Some(&self.source));
                    }
                    if outcome == PushOutcome::SourceChanged {
                        let code = ErrorCode::Abandoned;
                        let error = Message::Error(Error::channel(code, "", ""));
                        self.to_receiver.push_back(error);
                    }
                    assert!(sender.prefix_hashed(0).is_err());
                    assert!(sender.source_ended(0).is_err());
                    assert!(sender.received(Message::Ping).is_err(), "it goes on");
                    self.sender = None;
                }
            }
        }
        Ok(())
    }

    /// The connection ends; what was written of a file stays for the next offer.
    fn break_link(&mut self) {
        self.receiver = PushReceiver::default();
        self.sender = None;
        self.to_receiver.clear();
        self.to_sender.clear();
        self.is_tapped = false;
    }
}

fn zero() -> Digest {
    Digest { size: 0, crc32: 0 }
}

fn digest(offer: &Offer) -> Option<Digest> {
    offer.crc32.map(|crc32| Digest {
        size: offer.size,
        crc32,
    })
}

fn digest_of(bytes: &[u8]) -> Digest {
    Digest {
        size: bytes.len() as u64,
        crc32: crc32fast::hash(bytes),
    }
}
