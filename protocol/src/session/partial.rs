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
use crate::message::partial::{Append, At, Begun, DurableTo, Open, Partial, PartialBegin};
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
pub enum PartialAnswer {
    /// The stream is ours, and there it stands.
    Begun(Begun),
    /// Compare this with the segment, and feed [`PartialSender::compared`].
    Compare(At),
    /// Records are durable up to here.
    Durable(Lsn),
    /// Refused in words; the stream has to begin again.
    Refused(Error),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PartialSenderState {
    Beginning,
    Ready,
    Opening { offered_bytes: u64 },
    Comparing(At),
    Appending { next_offset: u64 },
    Over,
}

/// The master's end of the stream.
#[derive(Debug)]
pub struct PartialSender {
    state: PartialSenderState,
    /// Where the records of each append end that was not acknowledged.
    in_flight: VecDeque<Lsn>,
    sent: Lsn,
}

impl PartialSender {
    /// Asks for the stream.
    pub fn begin(begin: PartialBegin) -> (Self, Message) {
        let sender = PartialSender {
            state: PartialSenderState::Beginning,
            in_flight: VecDeque::new(),
            sent: Lsn(0),
        };
        (sender, Message::Partial(Partial::Begin(begin)))
    }

    /// A message arrived on the stream's channel.
    pub fn received(&mut self, message: Message) -> Result<PartialAnswer, ProtocolError> {
        match (self.state, message) {
            (PartialSenderState::Over, message) => Err(unexpected(&self.state, &message)),
            (_, Message::Error(error)) => {
                self.state = PartialSenderState::Over;
                Ok(PartialAnswer::Refused(error))
            }
            (PartialSenderState::Beginning, Message::Partial(Partial::Begun(begun))) => {
                self.state = PartialSenderState::Ready;
                Ok(PartialAnswer::Begun(begun))
            }
            (PartialSenderState::Opening { offered_bytes }, Message::Partial(Partial::At(at))) => {
                if at.common_bytes != at.held_bytes.min(offered_bytes) {
                    return Err(PeerMisbehaved::Prefix {
                        offered: offered_bytes,
                        held: at.held_bytes,
                        common: at.common_bytes,
                    }
                    .into());
                }
                self.state = PartialSenderState::Comparing(at);
                Ok(PartialAnswer::Compare(at))
            }
            (
                PartialSenderState::Ready
                | PartialSenderState::Opening { .. }
                | PartialSenderState::Comparing(_)
                | PartialSenderState::Appending { .. },
                Message::Partial(Partial::Durable(durable)),
            ) => self.acknowledged(durable.lsn()),
            (state, message) => Err(unexpected(&state, &message)),
        }
    }

    /// Goes on with this segment, which has no place while an answer is awaited.
    pub fn open(&mut self, open: Open) -> Result<Message, Misuse> {
        match self.state {
            PartialSenderState::Ready | PartialSenderState::Appending { .. } => {
                let offered_bytes = open.bytes;
                self.state = PartialSenderState::Opening { offered_bytes };
                Ok(Message::Partial(Partial::Open(open)))
            }
            state => Err(misuse(&state, "open")),
        }
    }

    /// The answer to [`PartialAnswer::Compare`]: whether our bytes are the same. What comes back has to
    /// be sent, and the segment then from its beginning.
    pub fn compared(&mut self, same: bool) -> Result<Option<Message>, Misuse> {
        let PartialSenderState::Comparing(at) = self.state else {
            return Err(misuse(&self.state, "compared"));
        };
        self.state = match same {
            // What it holds beyond ours was not compared, so nothing may follow it yet.
            true if at.common_bytes < at.held_bytes => PartialSenderState::Ready,
            true => PartialSenderState::Appending {
                next_offset: at.held_bytes,
            },
            false => PartialSenderState::Appending { next_offset: 0 },
        };
        Ok((!same).then_some(Message::Partial(Partial::Rewrite)))
    }

    /// Where the next append has to begin, once the segment was compared.
    pub const fn next_offset(&self) -> Option<u64> {
        match self.state {
            PartialSenderState::Appending { next_offset } => Some(next_offset),
            _ => None,
        }
    }

    /// The message that appends this block there.
    pub fn append(&mut self, append: Append) -> Result<Message, Misuse> {
        let PartialSenderState::Appending { next_offset } = &mut self.state else {
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

    fn acknowledged(&mut self, end: Lsn) -> Result<PartialAnswer, ProtocolError> {
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
        Ok(PartialAnswer::Durable(end))
    }
}

impl Standing for PartialSenderState {
    fn name(&self) -> &'static str {
        match self {
            PartialSenderState::Beginning => "waiting for the right to write the partial stream",
            PartialSenderState::Ready => "no partial segment is open",
            PartialSenderState::Opening { .. } => "waiting for what is held of a partial segment",
            PartialSenderState::Comparing(_) => "comparing a partial segment",
            PartialSenderState::Appending { .. } => "appending to a partial segment",
            PartialSenderState::Over => "the partial stream is over",
        }
    }

    fn expects(&self) -> &'static [MessageKind] {
        match self {
            PartialSenderState::Beginning => &[MessageKind::PartialBegun, MessageKind::Error],
            PartialSenderState::Opening { .. } => &[
                MessageKind::PartialAt,
                MessageKind::PartialDurable,
                MessageKind::Error,
            ],
            PartialSenderState::Ready
            | PartialSenderState::Comparing(_)
            | PartialSenderState::Appending { .. } => {
                &[MessageKind::PartialDurable, MessageKind::Error]
            }
            PartialSenderState::Over => &[],
        }
    }
}

/// What a receiver's driver does.
#[must_use = "a session goes on only when its driver does what it says"]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PartialReceiverAction {
    /// Take the stream for this client and feed [`PartialReceiver::begun`].
    Begin(PartialBegin),
    /// Open the segment and feed [`PartialReceiver::opened`].
    Open(Open),
    /// From the segment's beginning, compare what is appended with what is held.
    Rewrite,
    /// Unpack, check and write this block, then feed [`PartialReceiver::durable`].
    Append(Append),
    /// Send this on the channel.
    Send(Message),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PartialReceiverState {
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
pub struct PartialReceiver {
    state: PartialReceiverState,
    segment_bytes: u64,
    /// Whether a stream was refused or given up here: what its driver was doing then may still be
    /// reported, in whatever state the next one is.
    drained: bool,
}

impl Default for PartialReceiver {
    fn default() -> Self {
        PartialReceiver {
            state: PartialReceiverState::Idle,
            segment_bytes: 0,
            drained: false,
        }
    }
}

impl PartialReceiver {
    /// A message arrived on the channel.
    pub fn received(
        &mut self,
        message: Message,
    ) -> Result<Option<PartialReceiverAction>, ProtocolError> {
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
            (
                PartialReceiverState::Idle | PartialReceiverState::Draining,
                Partial::Begin(begin),
            ) => {
                self.state = PartialReceiverState::Beginning;
                Ok(Some(PartialReceiverAction::Begin(begin)))
            }
            (
                PartialReceiverState::Ready | PartialReceiverState::Appending { .. },
                Partial::Open(open),
            ) => {
                self.state = PartialReceiverState::Opening;
                Ok(Some(PartialReceiverAction::Open(open)))
            }
            (PartialReceiverState::Appending { fresh: true, .. }, Partial::Rewrite) => {
                self.state = PartialReceiverState::Appending {
                    next_offset: 0,
                    fresh: false,
                };
                Ok(Some(PartialReceiverAction::Rewrite))
            }
            (PartialReceiverState::Appending { next_offset, .. }, Partial::Append(append)) => {
                self.append(next_offset, append).map(Some)
            }
            (
                PartialReceiverState::Draining,
                Partial::Open(_) | Partial::Append(_) | Partial::Rewrite,
            ) => Ok(None),
            (state, partial) => Err(unexpected(&state, &Message::Partial(partial))),
        }
    }

    /// The answer to [`PartialReceiverAction::Begin`].
    pub fn begun(
        &mut self,
        begun: Begun,
        size: WalSegmentSize,
    ) -> Result<Option<PartialReceiverAction>, Misuse> {
        if self.state != PartialReceiverState::Beginning {
            return self.late("begun");
        }
        self.state = PartialReceiverState::Ready;
        self.segment_bytes = size.bytes();
        Ok(Some(send(Partial::Begun(begun))))
    }

    /// The answer to [`PartialReceiverAction::Open`].
    pub fn opened(&mut self, at: At) -> Result<Option<PartialReceiverAction>, Misuse> {
        if self.state != PartialReceiverState::Opening {
            return self.late("opened");
        }
        self.state = PartialReceiverState::Appending {
            next_offset: at.held_bytes,
            fresh: true,
        };
        Ok(Some(send(Partial::At(at))))
    }

    /// Records are durable; may cover several appends at once. Behind an error the client waits for
    /// nothing any more.
    pub fn durable(
        &self,
        proof: &impl ProofOfRecords,
    ) -> Result<Option<PartialReceiverAction>, Misuse> {
        match self.state {
            PartialReceiverState::Idle => Err(misuse(&self.state, "durable")),
            PartialReceiverState::Draining => Ok(None),
            _ => Ok(Some(PartialReceiverAction::Send(acknowledge(proof)))),
        }
    }

    /// Something the driver was asked to do failed; the error goes to the sender.
    pub fn failed(&mut self, error: Error) -> PartialReceiverAction {
        self.drain();
        PartialReceiverAction::Send(Message::Error(Error {
            scope: Scope::Channel,
            ..error
        }))
    }

    fn drain(&mut self) {
        self.state = PartialReceiverState::Draining;
        self.drained = true;
    }

    /// An answer that is not awaited: to something that was refused since, or to nothing.
    fn late(&self, called: &'static str) -> Result<Option<PartialReceiverAction>, Misuse> {
        match self.drained {
            true => Ok(None),
            false => Err(misuse(&self.state, called)),
        }
    }

    fn append(
        &mut self,
        next_offset: u64,
        append: Append,
    ) -> Result<PartialReceiverAction, ProtocolError> {
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
        self.state = PartialReceiverState::Appending {
            next_offset: end,
            fresh: false,
        };
        Ok(PartialReceiverAction::Append(append))
    }
}

impl Standing for PartialReceiverState {
    fn name(&self) -> &'static str {
        match self {
            PartialReceiverState::Idle => "no partial stream was begun",
            PartialReceiverState::Beginning => "a partial stream is being begun",
            PartialReceiverState::Ready => "no partial segment is open",
            PartialReceiverState::Opening => "a partial segment is being opened",
            PartialReceiverState::Appending { .. } => "a partial segment is being written",
            PartialReceiverState::Draining => "a refused partial stream is being drained",
        }
    }

    fn expects(&self) -> &'static [MessageKind] {
        match self {
            PartialReceiverState::Idle => &[MessageKind::PartialBegin, MessageKind::Error],
            PartialReceiverState::Beginning | PartialReceiverState::Opening => {
                &[MessageKind::Error]
            }
            PartialReceiverState::Ready => &[MessageKind::PartialOpen, MessageKind::Error],
            PartialReceiverState::Appending { fresh: true, .. } => &[
                MessageKind::PartialOpen,
                MessageKind::PartialRewrite,
                MessageKind::PartialAppend,
                MessageKind::Error,
            ],
            PartialReceiverState::Appending { .. } => &[
                MessageKind::PartialOpen,
                MessageKind::PartialAppend,
                MessageKind::Error,
            ],
            PartialReceiverState::Draining => &[
                MessageKind::PartialBegin,
                MessageKind::PartialOpen,
                MessageKind::PartialRewrite,
                MessageKind::PartialAppend,
                MessageKind::Error,
            ],
        }
    }
}

fn send(partial: Partial) -> PartialReceiverAction {
    PartialReceiverAction::Send(Message::Partial(partial))
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

    fn sender(state: PartialSenderState) -> PartialSender {
        PartialSender {
            state,
            in_flight: VecDeque::new(),
            sent: Lsn(0),
        }
    }

    fn receiver(state: PartialReceiverState) -> PartialReceiver {
        PartialReceiver {
            state,
            segment_bytes: 16 << 20,
            drained: false,
        }
    }

    fn senders() -> [PartialSenderState; 6] {
        [
            PartialSenderState::Beginning,
            PartialSenderState::Ready,
            PartialSenderState::Opening { offered_bytes: 1 },
            PartialSenderState::Comparing(AT),
            PartialSenderState::Appending { next_offset: 1 },
            PartialSenderState::Over,
        ]
    }

    fn receivers() -> [PartialReceiverState; 7] {
        let [fresh, begun] = [true, false].map(|fresh| PartialReceiverState::Appending {
            next_offset: 1,
            fresh,
        });
        [
            PartialReceiverState::Idle,
            PartialReceiverState::Beginning,
            PartialReceiverState::Ready,
            PartialReceiverState::Opening,
            fresh,
            begun,
            PartialReceiverState::Draining,
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
        let elsewhere = elsewhere.filter(|state| *state != PartialReceiverState::Beginning);
        assert_misused("begun", elsewhere, |state| {
            receiver(state).begun(BEGUN, size)
        });
        let elsewhere = receivers().into_iter();
        let elsewhere = elsewhere.filter(|state| *state != PartialReceiverState::Opening);
        assert_misused("opened", elsewhere, |state| receiver(state).opened(AT));
        assert_misused("durable", [PartialReceiverState::Idle], |state| {
            receiver(state).durable(&Everything)
        });
    }

    #[test]
    fn reports_about_a_stream_that_was_refused_go_nowhere() {
        let refused = Error::channel(crate::message::ErrorCode::Finished, "", "");
        let mut late = receiver(PartialReceiverState::Opening);
        let _ = late.failed(refused);
        assert_eq!(late.opened(AT), Ok(None));
        assert_eq!(late.durable(&Everything), Ok(None));
        let begin = PartialBegin {
            timeline: crate::names::TimelineId::FIRST,
        };
        let asked = late.received(Message::Partial(Partial::Begin(begin)));
        assert_eq!(asked, Ok(Some(PartialReceiverAction::Begin(begin))));
        assert_eq!(late.opened(AT), Ok(None));
    }

    #[test]
    fn an_opening_that_was_on_its_way_at_a_refusal_is_not_answered() {
        let open = Open {
            segment: "00000001000000020000009A".parse().unwrap(),
            bytes: 1,
            crc32: 1,
        };
        let begin = PartialBegin {
            timeline: crate::names::TimelineId::FIRST,
        };
        // The sender cannot open without a beginning once it has heard of the refusal.
        let refused = || Error::channel(crate::message::ErrorCode::Finished, "", "");
        let mut ours = receiver(PartialReceiverState::Ready);
        let _ = ours.failed(refused());
        let opened = ours.received(Message::Partial(Partial::Open(open)));
        assert_eq!(opened, Ok(None));
        let begun = ours.received(Message::Partial(Partial::Begin(begin)));
        assert_eq!(begun, Ok(Some(PartialReceiverAction::Begin(begin))));
    }
}
