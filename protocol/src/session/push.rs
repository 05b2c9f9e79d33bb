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
//! says that the source ended, or says that it changed ([`PushSender::source_changed`]).

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
pub enum PushOutcome {
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
pub enum PushSenderAction {
    /// Send this on the channel.
    Send(Message),
    /// Take the checksum of the whole source and feed [`PushSender::checksum_taken`].
    TakeChecksum,
    /// Hash this many bytes from the source's beginning and feed [`PushSender::prefix_hashed`].
    HashPrefix(u64),
    /// Read the source from this offset to its end, send each block, feed [`PushSender::block_sent`]
    /// for each and [`PushSender::source_ended`] at the end.
    SendFrom(u64),
    /// The upload is over.
    Finish(PushOutcome),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PushSenderState {
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
pub struct PushSender {
    offer: Offer,
    state: PushSenderState,
}

impl PushSender {
    /// Starts an upload by sending its offer.
    pub fn start(offer: Offer) -> (Self, PushSenderAction) {
        let action = PushSenderAction::Send(Message::Offer(offer));
        (
            PushSender {
                offer,
                state: match offer.crc32 {
                    Some(_) => PushSenderState::Offered,
                    None => PushSenderState::Announced,
                },
            },
            action,
        )
    }

    /// A message arrived on the upload's channel.
    pub fn received(&mut self, message: Message) -> Result<PushSenderAction, ProtocolError> {
        match (self.state, message) {
            (PushSenderState::Done, message) => Err(unexpected(&self.state, &message)),
            (_, Message::Error(error)) => Ok(self.finish(PushOutcome::Refused(error))),
            (PushSenderState::Announced, Message::ChecksumRequest) => {
                self.state = PushSenderState::Summing;
                Ok(PushSenderAction::TakeChecksum)
            }
            (PushSenderState::Offered | PushSenderState::Committed, Message::Stored(stored)) => {
                self.same_as_offered(stored.digest())?;
                Ok(self.finish(PushOutcome::Stored))
            }
            (PushSenderState::Offered | PushSenderState::Committed, Message::Conflict(stored)) => {
                Ok(self.finish(PushOutcome::Conflict(stored)))
            }
            (PushSenderState::Announced | PushSenderState::Offered, Message::Have(have)) => {
                Ok(self.continue_from(have))
            }
            (state, message) => Err(unexpected(&state, &message)),
        }
    }

    /// The checksum that was offered, or committed.
    pub const fn checksum(&self) -> Option<u32> {
        self.offer.crc32
    }

    /// The answer to [`PushSenderAction::TakeChecksum`].
    pub fn checksum_taken(&mut self, crc32: u32) -> Result<PushSenderAction, Misuse> {
        let PushSenderState::Summing = self.state else {
            return Err(misuse(&self.state, "checksum_taken"));
        };
        self.offer.crc32 = Some(crc32);
        self.state = PushSenderState::Offered;
        Ok(PushSenderAction::Send(Message::Offer(self.offer)))
    }

    /// The answer to [`PushSenderAction::HashPrefix`].
    pub fn prefix_hashed(&mut self, crc32: u32) -> Result<PushSenderAction, Misuse> {
        let PushSenderState::Hashing(have) = self.state else {
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
        let PushSenderState::Sending { next_offset } = &mut self.state else {
            return Err(misuse(&self.state, "block_sent"));
        };
        *next_offset = next_offset.saturating_add(u64::from(raw_bytes));
        Ok(())
    }

    /// The source ended; `crc32` is that of the whole source as it was read this time.
    pub fn source_ended(&mut self, crc32: u32) -> Result<PushSenderAction, Misuse> {
        let PushSenderState::Sending { next_offset } = self.state else {
            return Err(misuse(&self.state, "source_ended"));
        };
        let found = Digest {
            size: next_offset,
            crc32,
        };
        let offered = self.offer.crc32.get_or_insert(crc32);
        if (found.size, found.crc32) != (self.offer.size, *offered) {
            return Ok(self.finish(PushOutcome::SourceChanged));
        }
        self.state = PushSenderState::Committed;
        Ok(PushSenderAction::Send(Message::Commit(found)))
    }

    /// The source is another one than when it was offered: nothing is committed.
    pub fn source_changed(&mut self) -> Result<PushSenderAction, Misuse> {
        let PushSenderState::Sending { .. } = self.state else {
            return Err(misuse(&self.state, "source_changed"));
        };
        Ok(self.finish(PushOutcome::SourceChanged))
    }

    fn continue_from(&mut self, have: Have) -> PushSenderAction {
        if have.prefix_bytes == 0 || have.prefix_bytes > self.offer.size {
            return self.send_from(0);
        }
        self.state = PushSenderState::Hashing(have);
        PushSenderAction::HashPrefix(have.prefix_bytes)
    }

    fn send_from(&mut self, offset: u64) -> PushSenderAction {
        self.state = PushSenderState::Sending {
            next_offset: offset,
        };
        PushSenderAction::SendFrom(offset)
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

    fn finish(&mut self, outcome: PushOutcome) -> PushSenderAction {
        self.state = PushSenderState::Done;
        PushSenderAction::Finish(outcome)
    }
}

impl Standing for PushSenderState {
    fn name(&self) -> &'static str {
        match self {
            PushSenderState::Announced => "waiting for the answer to an offer without a checksum",
            PushSenderState::Offered => "waiting for the answer to an offer",
            PushSenderState::Summing => "taking the checksum of a file",
            PushSenderState::Hashing(_) => "comparing what the receiver already holds",
            PushSenderState::Sending { .. } => "sending a file",
            PushSenderState::Committed => "waiting for the acknowledgement of a file",
            PushSenderState::Done => "the upload is over",
        }
    }

    fn expects(&self) -> &'static [MessageKind] {
        match self {
            PushSenderState::Announced => &[
                MessageKind::ChecksumRequest,
                MessageKind::Have,
                MessageKind::Error,
            ],
            PushSenderState::Offered => &[
                MessageKind::Have,
                MessageKind::Stored,
                MessageKind::Conflict,
                MessageKind::Error,
            ],
            PushSenderState::Summing
            | PushSenderState::Hashing(_)
            | PushSenderState::Sending { .. } => &[MessageKind::Error],
            PushSenderState::Committed => &[
                MessageKind::Stored,
                MessageKind::Conflict,
                MessageKind::Error,
            ],
            PushSenderState::Done => &[],
        }
    }
}

/// What the archive holds under an offered name.
#[derive(Debug)]
pub enum PushHeld<P> {
    /// The offered file, durable.
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
pub enum PushSealed<P> {
    /// It is durable.
    Durable(P),
    /// Another file took the name first.
    Other(Digest),
}

/// What a receiver's driver does.
#[must_use = "a session goes on only when its driver does what it says"]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushReceiverAction {
    /// Look the offer up in the archive and feed [`PushReceiver::looked_up`].
    LookUp(Offer),
    /// Send this on the channel.
    Send(Message),
    /// Open a place for the file, keep this many bytes of what is held, and send the answer.
    Begin(Offer, Message),
    /// Unpack and write this block.
    Write(Data),
    /// Check, make durable, and feed [`PushReceiver::sealed`].
    Seal(Digest),
    /// Throw away what was written of the file.
    Discard,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PushReceiverState {
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
pub struct PushReceiver {
    state: PushReceiverState,
}

impl Default for PushReceiver {
    fn default() -> Self {
        PushReceiver {
            state: PushReceiverState::Idle,
        }
    }
}

impl PushReceiver {
    /// Whether an upload is under way.
    pub fn is_idle(&self) -> bool {
        matches!(
            self.state,
            PushReceiverState::Idle | PushReceiverState::Draining
        )
    }

    /// A message arrived on the channel.
    pub fn received(
        &mut self,
        message: Message,
    ) -> Result<Option<PushReceiverAction>, ProtocolError> {
        match (self.state, message) {
            (PushReceiverState::Idle | PushReceiverState::Draining, Message::Offer(offer)) => {
                self.state = PushReceiverState::Looking(offer);
                Ok(Some(PushReceiverAction::LookUp(offer)))
            }
            (PushReceiverState::Receiving { .. }, Message::Data(data)) => self.data(data).map(Some),
            (
                PushReceiverState::Receiving {
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
                self.state = PushReceiverState::Sealing(offer);
                Ok(Some(PushReceiverAction::Seal(digest)))
            }
            (PushReceiverState::Draining, Message::Data(_)) => Ok(None),
            (PushReceiverState::Draining, Message::Commit(_)) => {
                self.state = PushReceiverState::Idle;
                Ok(None)
            }
            (PushReceiverState::Receiving { .. }, Message::Error(_)) => {
                self.state = PushReceiverState::Idle;
                Ok(Some(PushReceiverAction::Discard))
            }
            (PushReceiverState::Draining | PushReceiverState::Idle, Message::Error(_)) => {
                self.state = PushReceiverState::Idle;
                Ok(None)
            }
            (state, message) => Err(unexpected(&state, &message)),
        }
    }

    /// The answer to [`PushReceiverAction::LookUp`].
    pub fn looked_up<P: ProofOfDurability>(
        &mut self,
        held: &PushHeld<P>,
    ) -> Result<PushReceiverAction, Misuse> {
        let PushReceiverState::Looking(offer) = self.state else {
            return Err(misuse(&self.state, "looked_up"));
        };
        self.state = PushReceiverState::Idle;
        Ok(match held {
            PushHeld::Same(proof) => PushReceiverAction::Send(acknowledge(proof)),
            PushHeld::Other(digest) => PushReceiverAction::Send(Message::Conflict(*digest)),
            PushHeld::Unknown => PushReceiverAction::Send(Message::ChecksumRequest),
            PushHeld::Prefix(have) => {
                let held_bytes = have.prefix_bytes;
                self.state = PushReceiverState::Receiving {
                    offer,
                    held_bytes,
                    next_offset: 0,
                    begun: false,
                };
                PushReceiverAction::Begin(offer, Message::Have(*have))
            }
        })
    }

    /// The answer to [`PushReceiverAction::Seal`].
    pub fn sealed<P: ProofOfDurability>(
        &mut self,
        sealed: &PushSealed<P>,
    ) -> Result<PushReceiverAction, Misuse> {
        let PushReceiverState::Sealing(_) = self.state else {
            return Err(misuse(&self.state, "sealed"));
        };
        self.state = PushReceiverState::Idle;
        Ok(PushReceiverAction::Send(match sealed {
            PushSealed::Durable(proof) => acknowledge(proof),
            PushSealed::Other(digest) => Message::Conflict(*digest),
        }))
    }

    /// Something the driver was asked to do failed; the error goes to the sender.
    pub fn failed(&mut self, code: ErrorCode, message: String, hint: String) -> PushReceiverAction {
        self.state = match self.state {
            PushReceiverState::Receiving { .. } => PushReceiverState::Draining,
            _ => PushReceiverState::Idle,
        };
        PushReceiverAction::Send(Message::Error(Error {
            code,
            scope: Scope::Channel,
            message,
            hint,
        }))
    }

    fn data(&mut self, data: Data) -> Result<PushReceiverAction, ProtocolError> {
        let PushReceiverState::Receiving {
            offer,
            held_bytes,
            next_offset,
            begun,
        } = &mut self.state
        else {
            return Ok(PushReceiverAction::Discard);
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
        Ok(PushReceiverAction::Write(data))
    }
}

impl Standing for PushReceiverState {
    fn name(&self) -> &'static str {
        match self {
            PushReceiverState::Idle => "no upload is open on the channel",
            PushReceiverState::Looking(_) => "an offer is being looked up",
            PushReceiverState::Receiving { .. } => "a file is being received",
            PushReceiverState::Sealing(_) => "a file is being made durable",
            PushReceiverState::Draining => "a refused upload is being drained",
        }
    }

    fn expects(&self) -> &'static [MessageKind] {
        match self {
            PushReceiverState::Idle => &[
                MessageKind::Offer,
                MessageKind::Announcement,
                MessageKind::Error,
            ],
            PushReceiverState::Looking(_) | PushReceiverState::Sealing(_) => &[],
            PushReceiverState::Receiving { .. } => {
                &[MessageKind::Data, MessageKind::Commit, MessageKind::Error]
            }
            PushReceiverState::Draining => &[
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

    fn senders() -> [PushSenderState; 7] {
        let have = Have {
            prefix_bytes: 1,
            prefix_crc32: 1,
        };
        [
            PushSenderState::Announced,
            PushSenderState::Summing,
            PushSenderState::Offered,
            PushSenderState::Hashing(have),
            PushSenderState::Sending { next_offset: 1 },
            PushSenderState::Committed,
            PushSenderState::Done,
        ]
    }

    fn receivers() -> [PushReceiverState; 5] {
        let offer = offer();
        [
            PushReceiverState::Idle,
            PushReceiverState::Looking(offer),
            PushReceiverState::Receiving {
                offer,
                held_bytes: 1,
                next_offset: 1,
                begun: true,
            },
            PushReceiverState::Sealing(offer),
            PushReceiverState::Draining,
        ]
    }

    fn sender(state: PushSenderState) -> PushSender {
        PushSender {
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
            PushReceiver { state }.received(message).map(|_| ())
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
            PushReceiver { state }.looked_up(&PushHeld::Same(Nothing))
        });
        let elsewhere = [idle, looking, receiving, draining];
        assert_misused("sealed", elsewhere, |state| {
            PushReceiver { state }.sealed(&PushSealed::Durable(Nothing))
        });
    }
}
