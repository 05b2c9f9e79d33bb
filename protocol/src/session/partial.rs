//! The records of the segment in progress on their way to the standby: both ends of the stream.
//! Never does IO. Invariant: bytes are appended only behind a prefix that both ends compared, and
//! an acknowledgement exists only where a [`ProofOfRecords`] was shown.
//!
//! ```text
//! sender:    Beginning ─▶ Ready ─▶ Opening ─▶ Comparing ─┬─▶ Appending ─┐
//!                          ▲ ▲────────── the next segment, or again ────┘
//!                          └──────── the receiver holds more ────────────
//! receiver:  Idle ─▶ Beginning ─▶ Ready ─▶ Opening ─▶ Appending ─▶ (Opening)
//!            any ──failure──▶ Draining ──begin──▶
//! ```
//!
//! Acknowledgements come while more is being appended, so that the sender may have several appends
//! on their way. Each covers everything before it.

use std::collections::VecDeque;

use crate::error::{PeerMisbehaved, ProtocolError};
use crate::message::partial::{Append, At, Begin, Begun, DurableTo, Open, Partial};
use crate::message::{Error, Message, MessageKind, Scope};
use crate::names::{Lsn, WalSegmentSize};
use crate::session::{Misuse, Standing, misuse, unexpected};

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
#[must_use = "a session goes on only when its driver does what it says"]
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

    /// Goes on with this segment, which has no place while an answer is awaited.
    pub fn open(&mut self, open: Open) -> Result<Message, Misuse> {
        match self.state {
            SenderState::Ready | SenderState::Appending { .. } => {
                let offered_bytes = open.bytes;
                self.state = SenderState::Opening { offered_bytes };
                Ok(Message::Partial(Partial::Open(open)))
            }
            state => Err(misuse(&state, "open")),
        }
    }

    /// The answer to [`Answer::Compare`]: whether our bytes are the same. What comes back has to
    /// be sent, and the segment then from its beginning.
    pub fn compared(&mut self, same: bool) -> Result<Option<Message>, Misuse> {
        let SenderState::Comparing(at) = self.state else {
            return Err(misuse(&self.state, "compared"));
        };
        self.state = match same {
            // What it holds beyond ours was not compared, so nothing may follow it yet.
            true if at.common_bytes < at.held_bytes => SenderState::Ready,
            true => SenderState::Appending {
                next_offset: at.held_bytes,
            },
            false => SenderState::Appending { next_offset: 0 },
        };
        Ok((!same).then_some(Message::Partial(Partial::Rewrite)))
    }

    /// Where the next append has to begin, once the segment was compared.
    pub const fn next_offset(&self) -> Option<u64> {
        match self.state {
            SenderState::Appending { next_offset } => Some(next_offset),
            _ => None,
        }
    }

    /// The message that appends this block there.
    pub fn append(&mut self, append: Append) -> Result<Message, Misuse> {
        let SenderState::Appending { next_offset } = &mut self.state else {
            return Err(misuse(&self.state, "append"));
        };
        if append.offset != *next_offset || append.raw_bytes == 0 {
            return Err(misuse(&self.state, "append of nothing, or elsewhere"));
        }
        *next_offset += u64::from(append.raw_bytes);
        self.sent = self.sent.max(append.end);
        self.in_flight.push_back(append.end);
        Ok(Message::Partial(Partial::Append(append)))
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

    fn expects(&self) -> &'static [MessageKind] {
        match self {
            SenderState::Beginning => &[MessageKind::PartialBegun, MessageKind::Error],
            SenderState::Opening { .. } => &[
                MessageKind::PartialAt,
                MessageKind::PartialDurable,
                MessageKind::Error,
            ],
            SenderState::Ready | SenderState::Comparing(_) | SenderState::Appending { .. } => {
                &[MessageKind::PartialDurable, MessageKind::Error]
            }
            SenderState::Over => &[],
        }
    }
}

/// What a receiver's driver does.
#[must_use = "a session goes on only when its driver does what it says"]
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
    /// An error was sent, and whatever comes before the next beginning was on its way by then.
    Draining,
}

/// The receiver's end of the stream.
#[derive(Debug)]
pub struct Receiver {
    state: ReceiverState,
    segment_bytes: u64,
    /// Whether a stream was refused or given up here: what its driver was doing then may still be
    /// reported, in whatever state the next one is.
    drained: bool,
}

impl Default for Receiver {
    fn default() -> Self {
        Receiver {
            state: ReceiverState::Idle,
            segment_bytes: 0,
            drained: false,
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
            (ReceiverState::Idle | ReceiverState::Draining, Partial::Begin(begin)) => {
                self.state = ReceiverState::Beginning;
                Ok(Some(ReceiverAction::Begin(begin)))
            }
            (ReceiverState::Ready | ReceiverState::Appending { .. }, Partial::Open(open)) => {
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
            (ReceiverState::Draining, Partial::Open(_) | Partial::Append(_) | Partial::Rewrite) => {
                Ok(None)
            }
            (state, partial) => Err(unexpected(&state, &Message::Partial(partial))),
        }
    }

    /// The answer to [`ReceiverAction::Begin`].
    pub fn begun(
        &mut self,
        begun: Begun,
        size: WalSegmentSize,
    ) -> Result<Option<ReceiverAction>, Misuse> {
        if self.state != ReceiverState::Beginning {
            return self.late("begun");
        }
        self.state = ReceiverState::Ready;
        self.segment_bytes = size.bytes();
        Ok(Some(send(Partial::Begun(begun))))
    }

    /// The answer to [`ReceiverAction::Open`].
    pub fn opened(&mut self, at: At) -> Result<Option<ReceiverAction>, Misuse> {
        if self.state != ReceiverState::Opening {
            return self.late("opened");
        }
        self.state = ReceiverState::Appending {
            next_offset: at.held_bytes,
            fresh: true,
        };
        Ok(Some(send(Partial::At(at))))
    }

    /// Records are durable; may cover several appends at once. Behind an error the client waits for
    /// nothing any more.
    pub fn durable(&self, proof: &impl ProofOfRecords) -> Result<Option<ReceiverAction>, Misuse> {
        match self.state {
            ReceiverState::Idle => Err(misuse(&self.state, "durable")),
            ReceiverState::Draining => Ok(None),
            _ => Ok(Some(ReceiverAction::Send(acknowledge(proof)))),
        }
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
        self.state = ReceiverState::Draining;
        self.drained = true;
    }

    /// An answer that is not awaited: to something that was refused since, or to nothing.
    fn late(&self, called: &'static str) -> Result<Option<ReceiverAction>, Misuse> {
        match self.drained {
            true => Ok(None),
            false => Err(misuse(&self.state, called)),
        }
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

impl Standing for ReceiverState {
    fn name(&self) -> &'static str {
        match self {
            ReceiverState::Idle => "no partial stream was begun",
            ReceiverState::Beginning => "a partial stream is being begun",
            ReceiverState::Ready => "no partial segment is open",
            ReceiverState::Opening => "a partial segment is being opened",
            ReceiverState::Appending { .. } => "a partial segment is being written",
            ReceiverState::Draining => "a refused partial stream is being drained",
        }
    }

    fn expects(&self) -> &'static [MessageKind] {
        match self {
            ReceiverState::Idle => &[MessageKind::PartialBegin, MessageKind::Error],
            ReceiverState::Beginning | ReceiverState::Opening => &[MessageKind::Error],
            ReceiverState::Ready => &[MessageKind::PartialOpen, MessageKind::Error],
            ReceiverState::Appending { fresh: true, .. } => &[
                MessageKind::PartialOpen,
                MessageKind::PartialRewrite,
                MessageKind::PartialAppend,
                MessageKind::Error,
            ],
            ReceiverState::Appending { .. } => &[
                MessageKind::PartialOpen,
                MessageKind::PartialAppend,
                MessageKind::Error,
            ],
            ReceiverState::Draining => &[
                MessageKind::PartialBegin,
                MessageKind::PartialOpen,
                MessageKind::PartialRewrite,
                MessageKind::PartialAppend,
                MessageKind::Error,
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
    use crate::session::{assert_expected, assert_misused};

    struct Everything;

    impl ProofOfRecords for Everything {
        fn end(&self) -> Lsn {
            Lsn(1)
        }
    }

    const AT: At = At {
        held_bytes: 1,
        common_bytes: 1,
        common_crc32: 1,
    };

    const BEGUN: Begun = Begun {
        newest_finished: None,
        oldest_partial: None,
        newest_partial: None,
    };

    fn sender(state: SenderState) -> Sender {
        Sender {
            state,
            in_flight: VecDeque::new(),
            sent: Lsn(0),
        }
    }

    fn receiver(state: ReceiverState) -> Receiver {
        Receiver {
            state,
            segment_bytes: 16 << 20,
            drained: false,
        }
    }

    fn senders() -> [SenderState; 6] {
        [
            SenderState::Beginning,
            SenderState::Ready,
            SenderState::Opening { offered_bytes: 1 },
            SenderState::Comparing(AT),
            SenderState::Appending { next_offset: 1 },
            SenderState::Over,
        ]
    }

    fn receivers() -> [ReceiverState; 7] {
        let [fresh, begun] = [true, false].map(|fresh| ReceiverState::Appending {
            next_offset: 1,
            fresh,
        });
        [
            ReceiverState::Idle,
            ReceiverState::Beginning,
            ReceiverState::Ready,
            ReceiverState::Opening,
            fresh,
            begun,
            ReceiverState::Draining,
        ]
    }

    fn append(offset: u64) -> Append {
        Append {
            offset,
            end: Lsn(2),
            raw_bytes: 1,
            zstd: false,
            bytes: bytes::Bytes::from_static(b"w"),
        }
    }

    #[test]
    fn each_state_takes_the_kinds_that_it_names() {
        assert_expected(senders(), |state, message| {
            sender(state).received(message).map(|_| ())
        });
        assert_expected(receivers(), |state, message| {
            receiver(state).received(message).map(|_| ())
        });
    }

    #[test]
    fn a_driver_that_calls_out_of_turn_is_told_so() {
        let open = Open {
            segment: "00000001000000020000009A".parse().unwrap(),
            bytes: 1,
            crc32: 1,
        };
        let [beginning, ready, opening, comparing, appending, over] = senders();
        let elsewhere = [beginning, opening, comparing, over];
        assert_misused("open", elsewhere, |state| sender(state).open(open));
        let elsewhere = [beginning, ready, opening, appending, over];
        assert_misused("compared", elsewhere, |state| sender(state).compared(true));
        let elsewhere = [beginning, ready, opening, comparing, over];
        assert_misused("append", elsewhere, |state| sender(state).append(append(1)));
        assert_misused("append of nothing, or elsewhere", [appending], |state| {
            sender(state).append(append(2))
        });

        let size = WalSegmentSize::new(16 << 20).unwrap();
        let elsewhere = receivers().into_iter();
        let elsewhere = elsewhere.filter(|state| *state != ReceiverState::Beginning);
        assert_misused("begun", elsewhere, |state| {
            receiver(state).begun(BEGUN, size)
        });
        let elsewhere = receivers().into_iter();
        let elsewhere = elsewhere.filter(|state| *state != ReceiverState::Opening);
        assert_misused("opened", elsewhere, |state| receiver(state).opened(AT));
        assert_misused("durable", [ReceiverState::Idle], |state| {
            receiver(state).durable(&Everything)
        });
    }

    #[test]
    fn reports_about_a_stream_that_was_refused_go_nowhere() {
        let refused = Error::channel(crate::message::ErrorCode::Finished, "", "");
        let mut late = receiver(ReceiverState::Opening);
        let _ = late.failed(refused);
        assert_eq!(late.opened(AT), Ok(None));
        assert_eq!(late.durable(&Everything), Ok(None));
        let begin = Begin {
            timeline: crate::names::TimelineId::FIRST,
        };
        let asked = late.received(Message::Partial(Partial::Begin(begin)));
        assert_eq!(asked, Ok(Some(ReceiverAction::Begin(begin))));
        assert_eq!(late.opened(AT), Ok(None));
    }

    #[test]
    fn an_opening_that_was_on_its_way_at_a_refusal_is_not_answered() {
        let open = Open {
            segment: "00000001000000020000009A".parse().unwrap(),
            bytes: 1,
            crc32: 1,
        };
        let begin = Begin {
            timeline: crate::names::TimelineId::FIRST,
        };
        // The sender cannot open without a beginning once it has heard of the refusal.
        let refused = || Error::channel(crate::message::ErrorCode::Finished, "", "");
        let mut ours = receiver(ReceiverState::Ready);
        let _ = ours.failed(refused());
        let opened = ours.received(Message::Partial(Partial::Open(open)));
        assert_eq!(opened, Ok(None));
        let begun = ours.received(Message::Partial(Partial::Begin(begin)));
        assert_eq!(begun, Ok(Some(ReceiverAction::Begin(begin))));
    }
}
