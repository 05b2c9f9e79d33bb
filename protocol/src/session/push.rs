//! One finished WAL file on its way into the archive: the sender and the receiver of one channel.
//! Never does IO. Invariant: an acknowledgement exists only where a [`ProofOfDurability`] was
//! shown, and the sender believes only one that names the bytes it offered.
//!
//! ```text
//! sender:    Start ─▶ Offered ───┬─▶ Hashing ─▶ Sending ─▶ Committed ─▶ Done
//!              │        ▲ Summing ├───────────────▲ (nothing held)
//!              │        └────▲    │
//!              └─▶ Announced ┴────┘ (without a checksum; Summing where the name is held)
//! receiver:  Idle ─▶ Looking ─▶ Receiving ─▶ Sealing ─▶ Idle
//! ```
//!
//! # Offers without a checksum
//!
//! To take a checksum before the offer is to read the file twice. What it is good for there is a name that is held: only
//! then the receiver asks for it, and the sender offers again. For a new name the commit carries the checksum of what was
//! read and sent; the receiver compares it with that of what arrived, and acknowledges it. Two readings that agree had
//! also shown that the file stayed the same between them; whoever offers none has to see that in another way, before it
//! says that the source ended, or says that it changed ([`Sender::source_changed`]).

use crate::error::{PeerMisbehaved, ProtocolError};
use crate::message::{
    Acknowledgement, Data, Digest, Error, ErrorCode, Have, Message, MessageKind, Offer, Scope,
};
use crate::names::WalFileName;
use crate::session::{Misuse, Standing, misuse, unexpected};

/// Shown by whoever made a file durable. The archive's store is the only place that may
/// implement it.
pub trait ProofOfDurability {
    /// The name under which it is durable.
    fn name(&self) -> WalFileName;
    /// Size and CRC-32 of what is durable.
    fn digest(&self) -> Digest;
}

/// The acknowledgement of a durable file: there is no other way to build one.
pub fn acknowledge(proof: &impl ProofOfDurability) -> Message {
    Message::Stored(Acknowledgement(proof.digest()))
}

/// How an upload ended for its sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Durable on the receiver's disk.
    Stored,
    /// Another file of this name is stored there; this is its digest.
    Conflict(Digest),
    /// The source changed between the offer and the end of reading it.
    SourceChanged,
    /// Refused in words.
    Refused(Error),
}

/// What a sender's driver does.
#[must_use = "a session goes on only when its driver does what it says"]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SenderAction {
    /// Send this on the channel.
    Send(Message),
    /// Take the checksum of the whole source and feed [`Sender::checksum_taken`].
    TakeChecksum,
    /// Hash this many bytes from the source's beginning and feed [`Sender::prefix_hashed`].
    HashPrefix(u64),
    /// Read the source from this offset to its end, send each block, feed [`Sender::block_sent`]
    /// for each and [`Sender::source_ended`] at the end.
    SendFrom(u64),
    /// The upload is over.
    Finish(Outcome),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SenderState {
    Announced,
    Summing,
    Offered,
    Hashing(Have),
    Sending { next_offset: u64 },
    Committed,
    Done,
}

/// The master's end of one upload.
#[derive(Debug, Clone)]
pub struct Sender {
    offer: Offer,
    state: SenderState,
}

impl Sender {
    /// Starts an upload by sending its offer.
    pub fn start(offer: Offer) -> (Self, SenderAction) {
        let action = SenderAction::Send(Message::Offer(offer));
        (
            Sender {
                offer,
                state: match offer.crc32 {
                    Some(_) => SenderState::Offered,
                    None => SenderState::Announced,
                },
            },
            action,
        )
    }

    /// A message arrived on the upload's channel.
    pub fn received(&mut self, message: Message) -> Result<SenderAction, ProtocolError> {
        match (self.state, message) {
            (SenderState::Done, message) => Err(unexpected(&self.state, &message)),
            (_, Message::Error(error)) => Ok(self.finish(Outcome::Refused(error))),
            (SenderState::Announced, Message::ChecksumRequest) => {
                self.state = SenderState::Summing;
                Ok(SenderAction::TakeChecksum)
            }
            (SenderState::Offered | SenderState::Committed, Message::Stored(stored)) => {
                self.same_as_offered(stored.digest())?;
                Ok(self.finish(Outcome::Stored))
            }
            (SenderState::Offered | SenderState::Committed, Message::Conflict(stored)) => {
                Ok(self.finish(Outcome::Conflict(stored)))
            }
            (SenderState::Announced | SenderState::Offered, Message::Have(have)) => {
                Ok(self.continue_from(have))
            }
            (state, message) => Err(unexpected(&state, &message)),
        }
    }

    /// The checksum that was offered, or committed.
    pub const fn checksum(&self) -> Option<u32> {
        self.offer.crc32
    }

    /// The answer to [`SenderAction::TakeChecksum`].
    pub fn checksum_taken(&mut self, crc32: u32) -> Result<SenderAction, Misuse> {
        let SenderState::Summing = self.state else {
            return Err(misuse(&self.state, "checksum_taken"));
        };
        self.offer.crc32 = Some(crc32);
        self.state = SenderState::Offered;
        Ok(SenderAction::Send(Message::Offer(self.offer)))
    }

    /// The answer to [`SenderAction::HashPrefix`].
    pub fn prefix_hashed(&mut self, crc32: u32) -> Result<SenderAction, Misuse> {
        let SenderState::Hashing(have) = self.state else {
            return Err(misuse(&self.state, "prefix_hashed"));
        };
        // Another prefix than ours is of no use: begin anew, and the receiver replaces it.
        let offset = if have.prefix_crc32 == crc32 {
            have.prefix_bytes
        } else {
            0
        };
        Ok(self.send_from(offset))
    }

    /// A block of this many raw bytes went out.
    pub fn block_sent(&mut self, raw_bytes: u32) -> Result<(), Misuse> {
        let SenderState::Sending { next_offset } = &mut self.state else {
            return Err(misuse(&self.state, "block_sent"));
        };
        *next_offset = next_offset.saturating_add(u64::from(raw_bytes));
        Ok(())
    }

    /// The source ended; `crc32` is that of the whole source as it was read this time.
    pub fn source_ended(&mut self, crc32: u32) -> Result<SenderAction, Misuse> {
        let SenderState::Sending { next_offset } = self.state else {
            return Err(misuse(&self.state, "source_ended"));
        };
        let found = Digest {
            size: next_offset,
            crc32,
        };
        let offered = self.offer.crc32.get_or_insert(crc32);
        if (found.size, found.crc32) != (self.offer.size, *offered) {
            return Ok(self.finish(Outcome::SourceChanged));
        }
        self.state = SenderState::Committed;
        Ok(SenderAction::Send(Message::Commit(found)))
    }

    /// The source is another one than when it was offered: nothing is committed.
    pub fn source_changed(&mut self) -> Result<SenderAction, Misuse> {
        let SenderState::Sending { .. } = self.state else {
            return Err(misuse(&self.state, "source_changed"));
        };
        Ok(self.finish(Outcome::SourceChanged))
    }

    fn continue_from(&mut self, have: Have) -> SenderAction {
        if have.prefix_bytes == 0 || have.prefix_bytes > self.offer.size {
            return self.send_from(0);
        }
        self.state = SenderState::Hashing(have);
        SenderAction::HashPrefix(have.prefix_bytes)
    }

    fn send_from(&mut self, offset: u64) -> SenderAction {
        self.state = SenderState::Sending {
            next_offset: offset,
        };
        SenderAction::SendFrom(offset)
    }

    fn same_as_offered(&self, found: Digest) -> Result<(), PeerMisbehaved> {
        let offered = (self.offer.size, self.offer.crc32);
        ((found.size, Some(found.crc32)) == offered)
            .then_some(())
            .ok_or(PeerMisbehaved::OtherFile {
                offered: (offered.0, offered.1.unwrap_or_default()),
                found: (found.size, found.crc32),
            })
    }

    fn finish(&mut self, outcome: Outcome) -> SenderAction {
        self.state = SenderState::Done;
        SenderAction::Finish(outcome)
    }
}

impl Standing for SenderState {
    fn name(&self) -> &'static str {
        match self {
            SenderState::Announced => "waiting for the answer to an offer without a checksum",
            SenderState::Offered => "waiting for the answer to an offer",
            SenderState::Summing => "taking the checksum of a file",
            SenderState::Hashing(_) => "comparing what the receiver already holds",
            SenderState::Sending { .. } => "sending a file",
            SenderState::Committed => "waiting for the acknowledgement of a file",
            SenderState::Done => "the upload is over",
        }
    }

    fn expects(&self) -> &'static [MessageKind] {
        match self {
            SenderState::Announced => &[
                MessageKind::ChecksumRequest,
                MessageKind::Have,
                MessageKind::Error,
            ],
            SenderState::Offered => &[
                MessageKind::Have,
                MessageKind::Stored,
                MessageKind::Conflict,
                MessageKind::Error,
            ],
            SenderState::Summing | SenderState::Hashing(_) | SenderState::Sending { .. } => {
                &[MessageKind::Error]
            }
            SenderState::Committed => &[
                MessageKind::Stored,
                MessageKind::Conflict,
                MessageKind::Error,
            ],
            SenderState::Done => &[],
        }
    }
}

/// What the archive holds under an offered name.
#[derive(Debug)]
pub enum Held<P> {
    /// The same file, durable.
    Same(P),
    /// Another file.
    Other(Digest),
    /// Some file, and the offer has no checksum to compare it with.
    Unknown,
    /// Bytes from its beginning, possibly none.
    Prefix(Have),
}

/// How sealing a file ended.
#[derive(Debug)]
pub enum Sealed<P> {
    /// It is durable.
    Durable(P),
    /// Another file took the name first.
    Other(Digest),
}

/// What a receiver's driver does.
#[must_use = "a session goes on only when its driver does what it says"]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReceiverAction {
    /// Look the offer up in the archive and feed [`Receiver::looked_up`].
    LookUp(Offer),
    /// Send this on the channel.
    Send(Message),
    /// Open a place for the file, keep this many bytes of what is held, and send the answer.
    Begin(Offer, Message),
    /// Unpack and write this block.
    Write(Data),
    /// Check, make durable, and feed [`Receiver::sealed`].
    Seal(Digest),
    /// Throw away what was written of the file.
    Discard,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReceiverState {
    Idle,
    Looking(Offer),
    Receiving {
        offer: Offer,
        held_bytes: u64,
        next_offset: u64,
        begun: bool,
    },
    Sealing(Offer),
    /// An error was sent while data may still be on its way: it is dropped up to the commit.
    Draining,
}

/// The receiver's end of one channel; uploads follow one another on it.
#[derive(Debug)]
pub struct Receiver {
    state: ReceiverState,
}

impl Default for Receiver {
    fn default() -> Self {
        Receiver {
            state: ReceiverState::Idle,
        }
    }
}

impl Receiver {
    /// Whether an upload is under way.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, ReceiverState::Idle | ReceiverState::Draining)
    }

    /// A message arrived on the channel.
    pub fn received(&mut self, message: Message) -> Result<Option<ReceiverAction>, ProtocolError> {
        match (self.state, message) {
            (ReceiverState::Idle | ReceiverState::Draining, Message::Offer(offer)) => {
                self.state = ReceiverState::Looking(offer);
                Ok(Some(ReceiverAction::LookUp(offer)))
            }
            (ReceiverState::Receiving { .. }, Message::Data(data)) => self.data(data).map(Some),
            (
                ReceiverState::Receiving {
                    offer,
                    held_bytes,
                    next_offset,
                    begun,
                },
                Message::Commit(digest),
            ) => {
                let end = if begun { next_offset } else { held_bytes };
                let offered = (offer.size, offer.crc32.unwrap_or(digest.crc32));
                if (digest.size, digest.crc32) != offered || end != offer.size {
                    let found = (end, digest.crc32);
                    return Err(PeerMisbehaved::OtherFile { offered, found }.into());
                }
                self.state = ReceiverState::Sealing(offer);
                Ok(Some(ReceiverAction::Seal(digest)))
            }
            (ReceiverState::Draining, Message::Data(_)) => Ok(None),
            (ReceiverState::Draining, Message::Commit(_)) => {
                self.state = ReceiverState::Idle;
                Ok(None)
            }
            (ReceiverState::Receiving { .. }, Message::Error(_)) => {
                self.state = ReceiverState::Idle;
                Ok(Some(ReceiverAction::Discard))
            }
            (ReceiverState::Draining | ReceiverState::Idle, Message::Error(_)) => {
                self.state = ReceiverState::Idle;
                Ok(None)
            }
            (state, message) => Err(unexpected(&state, &message)),
        }
    }

    /// The answer to [`ReceiverAction::LookUp`].
    pub fn looked_up<P: ProofOfDurability>(
        &mut self,
        held: &Held<P>,
    ) -> Result<ReceiverAction, Misuse> {
        let ReceiverState::Looking(offer) = self.state else {
            return Err(misuse(&self.state, "looked_up"));
        };
        self.state = ReceiverState::Idle;
        Ok(match held {
            Held::Same(proof) => ReceiverAction::Send(acknowledge(proof)),
            Held::Other(digest) => ReceiverAction::Send(Message::Conflict(*digest)),
            Held::Unknown => ReceiverAction::Send(Message::ChecksumRequest),
            Held::Prefix(have) => {
                let held_bytes = have.prefix_bytes;
                self.state = ReceiverState::Receiving {
                    offer,
                    held_bytes,
                    next_offset: 0,
                    begun: false,
                };
                ReceiverAction::Begin(offer, Message::Have(*have))
            }
        })
    }

    /// The answer to [`ReceiverAction::Seal`].
    pub fn sealed<P: ProofOfDurability>(
        &mut self,
        sealed: &Sealed<P>,
    ) -> Result<ReceiverAction, Misuse> {
        let ReceiverState::Sealing(_) = self.state else {
            return Err(misuse(&self.state, "sealed"));
        };
        self.state = ReceiverState::Idle;
        Ok(ReceiverAction::Send(match sealed {
            Sealed::Durable(proof) => acknowledge(proof),
            Sealed::Other(digest) => Message::Conflict(*digest),
        }))
    }

    /// Something the driver was asked to do failed; the error goes to the sender.
    pub fn failed(&mut self, code: ErrorCode, message: String, hint: String) -> ReceiverAction {
        self.state = match self.state {
            ReceiverState::Receiving { .. } => ReceiverState::Draining,
            _ => ReceiverState::Idle,
        };
        ReceiverAction::Send(Message::Error(Error {
            code,
            scope: Scope::Channel,
            message,
            hint,
        }))
    }

    fn data(&mut self, data: Data) -> Result<ReceiverAction, ProtocolError> {
        let ReceiverState::Receiving {
            offer,
            held_bytes,
            next_offset,
            begun,
        } = &mut self.state
        else {
            return Ok(ReceiverAction::Discard);
        };
        // The first block continues what is held or begins anew; each later one continues it.
        let restarts = !*begun && data.offset == 0;
        let expected = if *begun { *next_offset } else { *held_bytes };
        if data.offset != expected && !restarts {
            return Err(PeerMisbehaved::Offset {
                expected,
                found: data.offset,
            }
            .into());
        }
        let end = data.offset.saturating_add(u64::from(data.raw_bytes));
        if end > offer.size {
            return Err(PeerMisbehaved::BeyondOffer {
                size: offer.size,
                end,
            }
            .into());
        }
        *begun = true;
        *next_offset = end;
        Ok(ReceiverAction::Write(data))
    }
}

impl Standing for ReceiverState {
    fn name(&self) -> &'static str {
        match self {
            ReceiverState::Idle => "no upload is open on the channel",
            ReceiverState::Looking(_) => "an offer is being looked up",
            ReceiverState::Receiving { .. } => "a file is being received",
            ReceiverState::Sealing(_) => "a file is being made durable",
            ReceiverState::Draining => "a refused upload is being drained",
        }
    }

    fn expects(&self) -> &'static [MessageKind] {
        match self {
            ReceiverState::Idle => &[
                MessageKind::Offer,
                MessageKind::Announcement,
                MessageKind::Error,
            ],
            ReceiverState::Looking(_) | ReceiverState::Sealing(_) => &[],
            ReceiverState::Receiving { .. } => {
                &[MessageKind::Data, MessageKind::Commit, MessageKind::Error]
            }
            ReceiverState::Draining => &[
                MessageKind::Offer,
                MessageKind::Announcement,
                MessageKind::Data,
                MessageKind::Commit,
                MessageKind::Error,
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::WireVerify;
    use crate::session::{assert_expected, assert_misused};

    /// Shows nothing as a proof.
    #[derive(Debug)]
    struct Nothing;

    impl ProofOfDurability for Nothing {
        fn name(&self) -> WalFileName {
            offer().name
        }

        fn digest(&self) -> Digest {
            Digest { size: 0, crc32: 0 }
        }
    }

    fn offer() -> Offer {
        Offer {
            name: "00000001000000020000009A".parse().unwrap(),
            size: 16 << 20,
            crc32: Some(1),
            verify: WireVerify::Records,
        }
    }

    fn senders() -> [SenderState; 7] {
        let have = Have {
            prefix_bytes: 1,
            prefix_crc32: 1,
        };
        [
            SenderState::Announced,
            SenderState::Summing,
            SenderState::Offered,
            SenderState::Hashing(have),
            SenderState::Sending { next_offset: 1 },
            SenderState::Committed,
            SenderState::Done,
        ]
    }

    fn receivers() -> [ReceiverState; 5] {
        let offer = offer();
        [
            ReceiverState::Idle,
            ReceiverState::Looking(offer),
            ReceiverState::Receiving {
                offer,
                held_bytes: 1,
                next_offset: 1,
                begun: true,
            },
            ReceiverState::Sealing(offer),
            ReceiverState::Draining,
        ]
    }

    fn sender(state: SenderState) -> Sender {
        Sender {
            offer: offer(),
            state,
        }
    }

    #[test]
    fn each_state_takes_the_kinds_that_it_names() {
        assert_expected(senders(), |state, message| {
            sender(state).received(message).map(|_| ())
        });
        assert_expected(receivers(), |state, message| {
            Receiver { state }.received(message).map(|_| ())
        });
    }

    #[test]
    fn a_driver_that_calls_out_of_turn_is_told_so() {
        let [
            announced,
            summing,
            offered,
            hashing,
            sending,
            committed,
            done,
        ] = senders();
        let elsewhere = [announced, offered, hashing, sending, committed, done];
        assert_misused("checksum_taken", elsewhere, |state| {
            sender(state).checksum_taken(1)
        });
        let elsewhere = [announced, offered, summing, sending, committed, done];
        assert_misused("prefix_hashed", elsewhere, |state| {
            sender(state).prefix_hashed(1)
        });
        let elsewhere = [announced, offered, summing, hashing, committed, done];
        assert_misused("block_sent", elsewhere, |state| sender(state).block_sent(1));
        assert_misused("source_ended", elsewhere, |state| {
            sender(state).source_ended(1)
        });
        assert_misused("source_changed", elsewhere, |state| {
            sender(state).source_changed()
        });
        let [idle, looking, receiving, sealing, draining] = receivers();
        let elsewhere = [idle, receiving, sealing, draining];
        assert_misused("looked_up", elsewhere, |state| {
            Receiver { state }.looked_up(&Held::Same(Nothing))
        });
        let elsewhere = [idle, looking, receiving, draining];
        assert_misused("sealed", elsewhere, |state| {
            Receiver { state }.sealed(&Sealed::Durable(Nothing))
        });
    }
}
