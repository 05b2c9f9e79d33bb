//! The records of the segment in progress on their way to the standby: both ends of the stream.
//! Never does IO. Invariant: bytes are appended only behind a prefix that both ends compared, and
//! an acknowledgement exists only where a [`ProofOfRecords`] was shown.
//!
//! ```text
//! sender:    Beginning ─▶ Ready ─▶ Opening ─▶ Comparing ─┬─▶ Appending ─┐
//!                          ▲ ▲────────── the next segment, or again ────┘
//!                          └──────── the receiver holds more ────────────
//! receiver:  Idle ─▶ Beginning ─▶ Ready ─▶ Opening ─▶ Appending ─▶ (Opening)
//!            any ──failure──▶ Draining ──open or begin──▶
//! ```
//!
//! Acknowledgements come while more is being appended, so that the sender may have several appends
//! on their way. Each covers everything before it.

use std::collections::VecDeque;

use crate::error::{PeerMisbehaved, ProtocolError};
use crate::message::partial::{Append, At, Begin, Begun, DurableTo, Open, Partial};
use crate::message::{Error, Kind, Message, Scope};
use crate::names::{Lsn, WalSegmentSize};
use crate::session::{Standing, unexpected};

/// Shown by whoever made records durable. The archive's store is the only place that may
/// implement it.
pub trait ProofOfRecords {
    /// The end of the last whole record; everything of its segment before it is durable too.
    fn end(&self) -> Lsn;
}

/// The acknowledgement of durable records: there is no other way to build one.
pub fn acknowledge(proof: &impl ProofOfRecords) -> Message {
    Message::Partial(Partial::Durable(DurableTo(proof.end())))
}

/// What the receiver said, for the sender's driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The stream is ours, and there it stands.
    Begun(Begun),
    /// Compare this with the segment, and feed [`Sender::compared`].
    Compare(At),
    /// Records are durable up to here.
    Durable(Lsn),
    /// Refused in words; the stream has to begin again.
    Refused(Error),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SenderState {
    Beginning,
    Ready,
    Opening { offered_bytes: u64 },
    Comparing(At),
    Appending { next_offset: u64 },
    Over,
}

/// The master's end of the stream.
#[derive(Debug)]
pub struct Sender {
    state: SenderState,
    /// Where the records of each append end that was not acknowledged.
    in_flight: VecDeque<Lsn>,
    sent: Lsn,
}

impl Sender {
    /// Asks for the stream.
    pub fn begin(begin: Begin) -> (Self, Message) {
        let sender = Sender {
            state: SenderState::Beginning,
            in_flight: VecDeque::new(),
            sent: Lsn(0),
        };
        (sender, Message::Partial(Partial::Begin(begin)))
    }

    /// A message arrived on the stream's channel.
    pub fn received(&mut self, message: Message) -> Result<Answer, ProtocolError> {
        match (self.state, message) {
            (SenderState::Over, message) => Err(unexpected(&self.state, &message)),
            (_, Message::Error(error)) => {
                self.state = SenderState::Over;
                Ok(Answer::Refused(error))
            }
            (SenderState::Beginning, Message::Partial(Partial::Begun(begun))) => {
                self.state = SenderState::Ready;
                Ok(Answer::Begun(begun))
            }
            (SenderState::Opening { offered_bytes }, Message::Partial(Partial::At(at))) => {
                if at.common_bytes != at.held_bytes.min(offered_bytes) {
                    return Err(PeerMisbehaved::Prefix {
                        offered: offered_bytes,
                        held: at.held_bytes,
                        common: at.common_bytes,
                    }
                    .into());
                }
                self.state = SenderState::Comparing(at);
                Ok(Answer::Compare(at))
            }
            (
                SenderState::Ready
                | SenderState::Opening { .. }
                | SenderState::Comparing(_)
                | SenderState::Appending { .. },
                Message::Partial(Partial::Durable(durable)),
            ) => self.acknowledged(durable.lsn()),
            (state, message) => Err(unexpected(&state, &message)),
        }
    }

    /// Goes on with this segment; `None` while an answer is awaited.
    pub fn open(&mut self, open: Open) -> Option<Message> {
        match self.state {
            SenderState::Ready | SenderState::Appending { .. } => {
                let offered_bytes = open.bytes;
                self.state = SenderState::Opening { offered_bytes };
                Some(Message::Partial(Partial::Open(open)))
            }
            _ => None,
        }
    }

    /// The answer to [`Answer::Compare`]: whether our bytes are the same. What comes back has to
    /// be sent, and the segment then from its beginning.
    pub fn compared(&mut self, same: bool) -> Option<Message> {
        let SenderState::Comparing(at) = self.state else {
            return None;
        };
        self.state = match same {
            // What it holds beyond ours was not compared, so nothing may follow it yet.
            true if at.common_bytes < at.held_bytes => SenderState::Ready,
            true => SenderState::Appending {
                next_offset: at.held_bytes,
            },
            false => SenderState::Appending { next_offset: 0 },
        };
        (!same).then_some(Message::Partial(Partial::Rewrite))
    }

    /// Where the next append has to begin, once the segment was compared.
    pub const fn next_offset(&self) -> Option<u64> {
        match self.state {
            SenderState::Appending { next_offset } => Some(next_offset),
            _ => None,
        }
    }

    /// The message that appends this block there; `None` where nothing may be appended.
    pub fn append(&mut self, append: Append) -> Option<Message> {
        let SenderState::Appending { next_offset } = &mut self.state else {
            return None;
        };
        if append.offset != *next_offset || append.raw_bytes == 0 {
            return None;
        }
        *next_offset += u64::from(append.raw_bytes);
        self.sent = self.sent.max(append.end);
        self.in_flight.push_back(append.end);
        Some(Message::Partial(Partial::Append(append)))
    }

    /// Appends that were not acknowledged.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    fn acknowledged(&mut self, end: Lsn) -> Result<Answer, ProtocolError> {
        if end > self.sent {
            return Err(PeerMisbehaved::BeyondSent {
                sent: self.sent,
                found: end,
            }
            .into());
        }
        while self.in_flight.front().is_some_and(|waits| *waits <= end) {
            self.in_flight.pop_front();
        }
        Ok(Answer::Durable(end))
    }
}

impl Standing for SenderState {
    fn name(&self) -> &'static str {
        match self {
            SenderState::Beginning => "waiting for the right to write the partial stream",
            SenderState::Ready => "no partial segment is open",
            SenderState::Opening { .. } => "waiting for what is held of a partial segment",
            SenderState::Comparing(_) => "comparing a partial segment",
            SenderState::Appending { .. } => "appending to a partial segment",
            SenderState::Over => "the partial stream is over",
        }
    }

    fn expects(&self) -> &'static [Kind] {
        match self {
            SenderState::Beginning => &[Kind::PartialBegun, Kind::Error],
            SenderState::Opening { .. } => &[Kind::PartialAt, Kind::PartialDurable, Kind::Error],
            SenderState::Ready | SenderState::Comparing(_) | SenderState::Appending { .. } => {
                &[Kind::PartialDurable, Kind::Error]
            }
            SenderState::Over => &[],
        }
    }
}

/// What a receiver's driver does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReceiverAction {
    /// Take the stream for this client and feed [`Receiver::begun`].
    Begin(Begin),
    /// Open the segment and feed [`Receiver::opened`].
    Open(Open),
    /// From the segment's beginning, compare what is appended with what is held.
    Rewrite,
    /// Unpack, check and write this block, then feed [`Receiver::durable`].
    Append(Append),
    /// Send this on the channel.
    Send(Message),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReceiverState {
    Idle,
    Beginning,
    Ready,
    Opening,
    Appending {
        next_offset: u64,
        /// Whether nothing was appended since the segment was opened.
        fresh: bool,
    },
    /// An error was sent while appends may still be on their way.
    Draining {
        granted: bool,
    },
}

/// The receiver's end of the stream.
#[derive(Debug)]
pub struct Receiver {
    state: ReceiverState,
    segment_bytes: u64,
}

impl Default for Receiver {
    fn default() -> Self {
        Receiver {
            state: ReceiverState::Idle,
            segment_bytes: 0,
        }
    }
}

impl Receiver {
    /// A message arrived on the channel.
    pub fn received(&mut self, message: Message) -> Result<Option<ReceiverAction>, ProtocolError> {
        let partial = match message {
            Message::Partial(partial) => partial,
            // The client gives the stream up, or cannot go on.
            Message::Error(_) => {
                self.drain();
                return Ok(None);
            }
            message => return Err(unexpected(&self.state, &message)),
        };
        match (self.state, partial) {
            (ReceiverState::Idle | ReceiverState::Draining { .. }, Partial::Begin(begin)) => {
                self.state = ReceiverState::Beginning;
                Ok(Some(ReceiverAction::Begin(begin)))
            }
            (
                ReceiverState::Ready
                | ReceiverState::Appending { .. }
                | ReceiverState::Draining { granted: true },
                Partial::Open(open),
            ) => {
                self.state = ReceiverState::Opening;
                Ok(Some(ReceiverAction::Open(open)))
            }
            (ReceiverState::Appending { fresh: true, .. }, Partial::Rewrite) => {
                self.state = ReceiverState::Appending {
                    next_offset: 0,
                    fresh: false,
                };
                Ok(Some(ReceiverAction::Rewrite))
            }
            (ReceiverState::Appending { next_offset, .. }, Partial::Append(append)) => {
                self.append(next_offset, append).map(Some)
            }
            (ReceiverState::Draining { .. }, Partial::Append(_) | Partial::Rewrite) => Ok(None),
            (state, partial) => Err(unexpected(&state, &Message::Partial(partial))),
        }
    }

    /// The answer to [`ReceiverAction::Begin`].
    pub fn begun(&mut self, begun: Begun, size: WalSegmentSize) -> Option<ReceiverAction> {
        if self.state != ReceiverState::Beginning {
            return None;
        }
        self.state = ReceiverState::Ready;
        self.segment_bytes = size.bytes();
        Some(send(Partial::Begun(begun)))
    }

    /// The answer to [`ReceiverAction::Open`].
    pub fn opened(&mut self, at: At) -> Option<ReceiverAction> {
        if self.state != ReceiverState::Opening {
            return None;
        }
        self.state = ReceiverState::Appending {
            next_offset: at.held_bytes,
            fresh: true,
        };
        Some(send(Partial::At(at)))
    }

    /// Records are durable; may cover several appends at once.
    pub fn durable(&self, proof: &impl ProofOfRecords) -> Option<ReceiverAction> {
        // Behind an error the client waits for nothing any more.
        let is_awaited = !matches!(
            self.state,
            ReceiverState::Idle | ReceiverState::Draining { .. }
        );
        is_awaited.then(|| ReceiverAction::Send(acknowledge(proof)))
    }

    /// Something the driver was asked to do failed; the error goes to the sender.
    pub fn failed(&mut self, error: Error) -> ReceiverAction {
        self.drain();
        ReceiverAction::Send(Message::Error(Error {
            scope: Scope::Channel,
            ..error
        }))
    }

    fn drain(&mut self) {
        let granted = self.state.granted();
        self.state = ReceiverState::Draining { granted };
    }

    fn append(
        &mut self,
        next_offset: u64,
        append: Append,
    ) -> Result<ReceiverAction, ProtocolError> {
        if append.offset != next_offset {
            return Err(PeerMisbehaved::Offset {
                expected: next_offset,
                found: append.offset,
            }
            .into());
        }
        let end = append.offset.saturating_add(u64::from(append.raw_bytes));
        if end > self.segment_bytes {
            return Err(PeerMisbehaved::BeyondOffer {
                size: self.segment_bytes,
                end,
            }
            .into());
        }
        self.state = ReceiverState::Appending {
            next_offset: end,
            fresh: false,
        };
        Ok(ReceiverAction::Append(append))
    }
}

impl ReceiverState {
    /// Whether the stream was granted; a failed append does not take it away.
    const fn granted(self) -> bool {
        match self {
            ReceiverState::Idle | ReceiverState::Beginning => false,
            ReceiverState::Ready | ReceiverState::Opening | ReceiverState::Appending { .. } => true,
            ReceiverState::Draining { granted } => granted,
        }
    }
}

impl Standing for ReceiverState {
    fn name(&self) -> &'static str {
        match self {
            ReceiverState::Idle => "no partial stream was begun",
            ReceiverState::Beginning => "a partial stream is being begun",
            ReceiverState::Ready => "no partial segment is open",
            ReceiverState::Opening => "a partial segment is being opened",
            ReceiverState::Appending { .. } => "a partial segment is being written",
            ReceiverState::Draining { .. } => "a refused partial stream is being drained",
        }
    }

    fn expects(&self) -> &'static [Kind] {
        match self {
            ReceiverState::Idle => &[Kind::PartialBegin, Kind::Error],
            ReceiverState::Beginning | ReceiverState::Opening => &[Kind::Error],
            ReceiverState::Ready => &[Kind::PartialOpen, Kind::Error],
            ReceiverState::Appending { fresh: true, .. } => &[
                Kind::PartialOpen,
                Kind::PartialRewrite,
                Kind::PartialAppend,
                Kind::Error,
            ],
            ReceiverState::Appending { .. } => {
                &[Kind::PartialOpen, Kind::PartialAppend, Kind::Error]
            }
            ReceiverState::Draining { granted: true } => &[
                Kind::PartialBegin,
                Kind::PartialOpen,
                Kind::PartialRewrite,
                Kind::PartialAppend,
                Kind::Error,
            ],
            ReceiverState::Draining { granted: false } => &[
                Kind::PartialBegin,
                Kind::PartialRewrite,
                Kind::PartialAppend,
                Kind::Error,
            ],
        }
    }
}

fn send(partial: Partial) -> ReceiverAction {
    ReceiverAction::Send(Message::Partial(partial))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::assert_expected;

    #[test]
    fn each_state_takes_the_kinds_that_it_names() {
        let at = At {
            held_bytes: 1,
            common_bytes: 1,
            common_crc32: 1,
        };
        let senders = [
            SenderState::Beginning,
            SenderState::Ready,
            SenderState::Opening { offered_bytes: 1 },
            SenderState::Comparing(at),
            SenderState::Appending { next_offset: 1 },
            SenderState::Over,
        ];
        assert_expected(senders, |state, message| {
            let (in_flight, sent) = (VecDeque::new(), Lsn(0));
            let mut sender = Sender {
                state,
                in_flight,
                sent,
            };
            sender.received(message).map(|_| ())
        });
        let [fresh, begun] = [true, false].map(|fresh| ReceiverState::Appending {
            next_offset: 1,
            fresh,
        });
        let receivers = [
            ReceiverState::Idle,
            ReceiverState::Beginning,
            ReceiverState::Ready,
            ReceiverState::Opening,
            fresh,
            begun,
            ReceiverState::Draining { granted: true },
            ReceiverState::Draining { granted: false },
        ];
        assert_expected(receivers, |state, message| {
            let segment_bytes = 16 << 20;
            let mut receiver = Receiver {
                state,
                segment_bytes,
            };
            receiver.received(message).map(|_| ())
        });
    }
}
