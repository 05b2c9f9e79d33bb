//! Blocks that are measured and dropped: both ends of one channel.
//! Never does IO. Invariant: the receiver takes no more than what was announced, without hole or overlap, and the client
//! believes only figures of exactly the bytes that it sent.
//!
//! ```text
//! master                                        receiver
//!   Begin {size, synced}                  ->      looks for room
//!                                         <-      Begun
//!   Data {offset, raw length, bytes} …    ->      unpacks, checks, drops
//!   End {size, crc}                       ->
//!                                         <-      Measured {size, crc, times}
//! ```
//!
//! Any answer may be an error instead.
//!
//! ```text
//! client:    Asked ─▶ Sending ─▶ Ended ─▶ Over
//! receiver:  Idle ─▶ Admitting ─▶ Taking ─▶ Measuring ─▶ Idle
//! ```

use crate::error::{PeerMisbehaved, ProtocolError};
use crate::message::trial::{Measured, Trial, TrialBegin};
use crate::message::{Data, Digest, Error, Message, MessageKind};
use crate::session::{Misuse, Standing, misuse, unexpected};

/// How a trial ended for its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrialOutcome {
    /// All of it arrived.
    Measured(Measured),
    /// Refused in words.
    Refused(Error),
}

/// What the client's driver does.
#[must_use = "a session goes on only when its driver does what it says"]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrialClientAction {
    /// Send the blocks, feed [`TrialClient::block_sent`] for each and [`TrialClient::ended`] at the end.
    SendBlocks,
    /// It is over.
    Finish(TrialOutcome),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TrialClientState {
    Asked,
    Sending { sent_bytes: u64 },
    Ended(Digest),
    Over,
}

/// The client's end.
#[derive(Debug)]
pub struct TrialClient {
    state: TrialClientState,
}

impl TrialClient {
    /// Begins with the message that asks.
    pub const fn start(begin: TrialBegin) -> (Self, Message) {
        let state = TrialClientState::Asked;
        (TrialClient { state }, Message::Trial(Trial::Begin(begin)))
    }

    /// A message arrived on the channel.
    pub fn received(&mut self, message: Message) -> Result<TrialClientAction, ProtocolError> {
        match (self.state, message) {
            (TrialClientState::Over, message) => Err(unexpected(&self.state, &message)),
            (_, Message::Error(error)) => Ok(self.finish(TrialOutcome::Refused(error))),
            (TrialClientState::Asked, Message::Trial(Trial::Begun)) => {
                self.state = TrialClientState::Sending { sent_bytes: 0 };
                Ok(TrialClientAction::SendBlocks)
            }
            (TrialClientState::Ended(sent), Message::Trial(Trial::Measured(measured))) => {
                same(sent, measured.digest)?;
                Ok(self.finish(TrialOutcome::Measured(measured)))
            }
            (state, message) => Err(unexpected(&state, &message)),
        }
    }

    /// A block of this many raw bytes went out.
    pub fn block_sent(&mut self, raw_bytes: u32) -> Result<(), Misuse> {
        let TrialClientState::Sending { sent_bytes } = &mut self.state else {
            return Err(misuse(&self.state, "block_sent"));
        };
        *sent_bytes = sent_bytes.saturating_add(u64::from(raw_bytes));
        Ok(())
    }

    /// That was all of it, and this is its CRC-32.
    pub fn ended(&mut self, crc32: u32) -> Result<Message, Misuse> {
        let TrialClientState::Sending { sent_bytes } = self.state else {
            return Err(misuse(&self.state, "ended"));
        };
        let digest = Digest {
            size: sent_bytes,
            crc32,
        };
        self.state = TrialClientState::Ended(digest);
        Ok(Message::Trial(Trial::End(digest)))
    }

    fn finish(&mut self, outcome: TrialOutcome) -> TrialClientAction {
        self.state = TrialClientState::Over;
        TrialClientAction::Finish(outcome)
    }
}

fn same(sent: Digest, found: Digest) -> Result<(), PeerMisbehaved> {
    match sent == found {
        true => Ok(()),
        false => Err(PeerMisbehaved::OtherFile {
            offered: (sent.size, sent.crc32),
            found: (found.size, found.crc32),
        }),
    }
}

impl Standing for TrialClientState {
    fn name(&self) -> &'static str {
        match self {
            TrialClientState::Asked => "waiting for a trial to begin",
            TrialClientState::Sending { .. } => "sending the blocks of a trial",
            TrialClientState::Ended(_) => "waiting for what a trial measured",
            TrialClientState::Over => "the trial is over",
        }
    }

    fn expects(&self) -> &'static [MessageKind] {
        match self {
            TrialClientState::Asked => &[MessageKind::TrialBegun, MessageKind::Error],
            TrialClientState::Sending { .. } => &[MessageKind::Error],
            TrialClientState::Ended(_) => &[MessageKind::TrialMeasured, MessageKind::Error],
            TrialClientState::Over => &[],
        }
    }
}

/// What the receiver's driver does.
#[must_use = "a session goes on only when its driver does what it says"]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrialReceiverAction {
    /// Find room and feed [`TrialReceiver::begun`] or [`TrialReceiver::failed`].
    Begin(TrialBegin),
    /// Unpack this block, and drop it.
    Take(Data),
    /// Feed [`TrialReceiver::measured`] or [`TrialReceiver::failed`].
    Measure,
    /// Send this.
    Send(Message),
    /// Whoever asked wants no more.
    Stop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TrialReceiverState {
    Idle,
    Admitting(TrialBegin),
    Taking {
        size: u64,
        next_offset: u64,
    },
    Measuring,
    /// An error was sent while blocks may still be on their way: they are dropped up to the end.
    Draining,
}

/// The receiver's end; trials follow one another on it.
#[derive(Debug)]
pub struct TrialReceiver {
    state: TrialReceiverState,
}

impl Default for TrialReceiver {
    fn default() -> Self {
        TrialReceiver {
            state: TrialReceiverState::Idle,
        }
    }
}

impl TrialReceiver {
    /// Whether no trial is under way.
    pub const fn is_idle(&self) -> bool {
        matches!(
            self.state,
            TrialReceiverState::Idle | TrialReceiverState::Draining
        )
    }

    /// A message arrived on the channel.
    pub fn received(
        &mut self,
        message: Message,
    ) -> Result<Option<TrialReceiverAction>, ProtocolError> {
        match (self.state, message) {
            (
                TrialReceiverState::Idle | TrialReceiverState::Draining,
                Message::Trial(Trial::Begin(begin)),
            ) => {
                self.state = TrialReceiverState::Admitting(begin);
                Ok(Some(TrialReceiverAction::Begin(begin)))
            }
            (TrialReceiverState::Taking { size, next_offset }, Message::Data(data)) => {
                let end = data.offset.saturating_add(u64::from(data.raw_bytes));
                if data.offset != next_offset {
                    let (expected, found) = (next_offset, data.offset);
                    return Err(PeerMisbehaved::Offset { expected, found }.into());
                }
                if end > size {
                    return Err(PeerMisbehaved::BeyondOffer { size, end }.into());
                }
                let next_offset = end;
                self.state = TrialReceiverState::Taking { size, next_offset };
                Ok(Some(TrialReceiverAction::Take(data)))
            }
            (
                TrialReceiverState::Taking { size, next_offset },
                Message::Trial(Trial::End(sent)),
            ) => {
                if (sent.size, next_offset) != (size, size) {
                    let (offered, found) = ((size, sent.crc32), (next_offset, sent.crc32));
                    return Err(PeerMisbehaved::OtherFile { offered, found }.into());
                }
                self.state = TrialReceiverState::Measuring;
                Ok(Some(TrialReceiverAction::Measure))
            }
            (TrialReceiverState::Draining, Message::Data(_)) => Ok(None),
            (TrialReceiverState::Draining, Message::Trial(Trial::End(_)))
            | (TrialReceiverState::Draining | TrialReceiverState::Idle, Message::Error(_)) => {
                self.state = TrialReceiverState::Idle;
                Ok(None)
            }
            (TrialReceiverState::Taking { .. }, Message::Error(_)) => {
                self.state = TrialReceiverState::Idle;
                Ok(Some(TrialReceiverAction::Stop))
            }
            (state, message) => Err(unexpected(&state, &message)),
        }
    }

    /// There is room.
    pub fn begun(&mut self) -> Result<TrialReceiverAction, Misuse> {
        let TrialReceiverState::Admitting(begin) = self.state else {
            return Err(misuse(&self.state, "begun"));
        };
        self.state = TrialReceiverState::Taking {
            size: begin.size,
            next_offset: 0,
        };
        Ok(TrialReceiverAction::Send(Message::Trial(Trial::Begun)))
    }

    /// The answer to [`TrialReceiverAction::Measure`].
    pub fn measured(&mut self, measured: Measured) -> Result<TrialReceiverAction, Misuse> {
        let TrialReceiverState::Measuring = self.state else {
            return Err(misuse(&self.state, "measured"));
        };
        self.state = TrialReceiverState::Idle;
        let measured = Message::Trial(Trial::Measured(measured));
        Ok(TrialReceiverAction::Send(measured))
    }

    /// Something the driver was asked to do failed; the error goes to the client.
    pub fn failed(&mut self, error: Error) -> TrialReceiverAction {
        self.state = match self.state {
            TrialReceiverState::Taking { .. } => TrialReceiverState::Draining,
            _ => TrialReceiverState::Idle,
        };
        TrialReceiverAction::Send(Message::Error(error))
    }
}

impl Standing for TrialReceiverState {
    fn name(&self) -> &'static str {
        match self {
            TrialReceiverState::Idle => "no trial is under way on the channel",
            TrialReceiverState::Admitting(_) => "a trial is being admitted",
            TrialReceiverState::Taking { .. } => "the blocks of a trial are taken",
            TrialReceiverState::Measuring => "a trial is being measured",
            TrialReceiverState::Draining => "a refused trial is being drained",
        }
    }

    fn expects(&self) -> &'static [MessageKind] {
        match self {
            TrialReceiverState::Idle => &[MessageKind::TrialBegin, MessageKind::Error],
            TrialReceiverState::Admitting(_) | TrialReceiverState::Measuring => &[],
            TrialReceiverState::Taking { .. } => {
                &[MessageKind::Data, MessageKind::TrialEnd, MessageKind::Error]
            }
            TrialReceiverState::Draining => &[
                MessageKind::TrialBegin,
                MessageKind::Data,
                MessageKind::TrialEnd,
                MessageKind::Error,
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{assert_expected, assert_misused};

    const BEGIN: TrialBegin = TrialBegin {
        size: 10,
        synced: false,
    };
    const DIGEST: Digest = Digest { size: 10, crc32: 7 };

    fn clients() -> [TrialClientState; 4] {
        [
            TrialClientState::Asked,
            TrialClientState::Sending { sent_bytes: 1 },
            TrialClientState::Ended(DIGEST),
            TrialClientState::Over,
        ]
    }

    fn receivers() -> [TrialReceiverState; 5] {
        [
            TrialReceiverState::Idle,
            TrialReceiverState::Admitting(BEGIN),
            TrialReceiverState::Taking {
                size: 10,
                next_offset: 1,
            },
            TrialReceiverState::Measuring,
            TrialReceiverState::Draining,
        ]
    }

    fn measured(digest: Digest) -> Measured {
        Measured {
            digest,
            worked_us: 1,
            synced_us: 2,
        }
    }

    #[test]
    fn each_state_takes_the_kinds_that_it_names() {
        assert_expected(clients(), |state, message| {
            TrialClient { state }.received(message).map(|_| ())
        });
        assert_expected(receivers(), |state, message| {
            TrialReceiver { state }.received(message).map(|_| ())
        });
    }

    #[test]
    fn a_driver_that_calls_out_of_turn_is_told_so() {
        let [asked, sending, ended, over] = clients();
        assert_misused("block_sent", [asked, ended, over], |state| {
            TrialClient { state }.block_sent(1)
        });
        assert_misused("ended", [asked, ended, over], |state| {
            TrialClient { state }.ended(1)
        });
        let _ = sending;
        let [idle, admitting, taking, measuring, draining] = receivers();
        assert_misused("begun", [idle, taking, measuring, draining], |state| {
            TrialReceiver { state }.begun()
        });
        assert_misused("measured", [idle, admitting, taking, draining], |state| {
            TrialReceiver { state }.measured(measured(DIGEST))
        });
    }

    #[test]
    fn figures_of_other_bytes_are_not_believed() {
        let mut client = TrialClient {
            state: TrialClientState::Ended(DIGEST),
        };
        let other = Digest { crc32: 8, ..DIGEST };
        let told = Message::Trial(Trial::Measured(measured(other)));
        assert!(client.received(told).is_err());
    }

    #[test]
    fn no_more_than_was_announced_is_taken() {
        let block = |offset, raw_bytes| {
            Message::Data(Data {
                offset,
                raw_bytes,
                zstd: false,
                bytes: vec![0; raw_bytes as usize].into(),
            })
        };
        let taking = || TrialReceiver {
            state: TrialReceiverState::Taking {
                size: 10,
                next_offset: 4,
            },
        };
        for wrong in [block(0, 4), block(5, 1), block(4, 7)] {
            assert!(taking().received(wrong).is_err());
        }
        assert!(taking().received(block(4, 6)).is_ok());
        let early = Message::Trial(Trial::End(DIGEST));
        assert!(taking().received(early).is_err());
    }
}
