//! Something the standby keeps on its way back: both ends of one channel.
//! Never does IO. Invariant: what was fetched counts as whole only when its length and its CRC-32 are
//! those that the receiver states at the end; and blocks follow one another without hole or overlap.
//!
//! ```text
//! master                                        receiver
//!   GetFile {name, level}                 ->      looks in the archive
//!                                         <-      NotFound {what that means}     done
//!                                         <-      Data {offset, raw length, bytes} …
//!                                         <-      End {size, crc}
//! ```
//!
//! `GetSet` goes the same way. The receiver checks a file while it sends it; damage that shows only
//! then ends it with an error in the place of the end.
//!
//! ```text
//! fetcher:   Asked ─▶ Receiving ─▶ Checking ─▶ Done
//! provider:  Idle ─▶ LookingUp ─▶ Sending ─▶ Idle
//! ```

use crate::error::{PeerMisbehaved, ProtocolError};
use crate::message::fetch::{Fetch, GetFile, GetSet, NotFound};
use crate::message::{Data, Digest, Error, Kind, Message};
use crate::session::{Standing, unexpected};

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A file of the archive.
    File(GetFile),
    /// The stream of a backup set.
    Set(GetSet),
}

impl Request {
    /// Where the first block begins.
    const fn offset(&self) -> u64 {
        match self {
            Request::File(_) => 0,
            Request::Set(set) => set.offset,
        }
    }
}

/// How a fetch ended for whoever asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All of it has arrived.
    Whole,
    /// There is no such thing.
    NotFound(NotFound),
    /// What arrived is not what was sent.
    Differs {
        /// What the receiver states.
        stated: Digest,
        /// What arrived.
        found: Digest,
    },
    /// Refused in words, or given up halfway.
    Refused(Error),
}

/// What the driver of whoever asked does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FetcherAction {
    /// Unpack this block and append it.
    Append(Data),
    /// Feed size and CRC-32 of everything that was appended to [`Fetcher::checked`].
    Check,
    /// It is over.
    Finish(Outcome),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FetcherState {
    Receiving { next_offset: u64, begun: bool },
    Checking(Digest),
    Done,
}

/// The end that asks.
#[derive(Debug)]
pub struct Fetcher {
    state: FetcherState,
}

impl Fetcher {
    /// Begins with the message that asks.
    pub fn start(request: Request) -> (Self, Message) {
        let state = FetcherState::Receiving {
            next_offset: request.offset(),
            begun: false,
        };
        let message = match request {
            Request::File(file) => Fetch::GetFile(file),
            Request::Set(set) => Fetch::GetSet(set),
        };
        (Fetcher { state }, Message::Fetch(message))
    }

    /// A message arrived on the channel.
    pub fn received(&mut self, message: Message) -> Result<FetcherAction, ProtocolError> {
        match (self.state, message) {
            (FetcherState::Done, message) => Err(unexpected(&self.state, &message)),
            (_, Message::Error(error)) => Ok(self.finish(Outcome::Refused(error))),
            (FetcherState::Receiving { next_offset, .. }, Message::Data(data)) => {
                if data.offset != next_offset {
                    let (expected, found) = (next_offset, data.offset);
                    return Err(PeerMisbehaved::Offset { expected, found }.into());
                }
                self.state = FetcherState::Receiving {
                    next_offset: next_offset.saturating_add(u64::from(data.raw_bytes)),
                    begun: true,
                };
                Ok(FetcherAction::Append(data))
            }
            (FetcherState::Receiving { .. }, Message::Fetch(Fetch::End(stated))) => {
                self.state = FetcherState::Checking(stated);
                Ok(FetcherAction::Check)
            }
            (
                FetcherState::Receiving { begun: false, .. },
                Message::Fetch(Fetch::NotFound(not_found)),
            ) => Ok(self.finish(Outcome::NotFound(not_found))),
            (state, message) => Err(unexpected(&state, &message)),
        }
    }

    /// The answer to [`FetcherAction::Check`].
    pub fn checked(&mut self, found: Digest) -> Option<FetcherAction> {
        let FetcherState::Checking(stated) = self.state else {
            return None;
        };
        Some(self.finish(match stated == found {
            true => Outcome::Whole,
            false => Outcome::Differs { stated, found },
        }))
    }

    fn finish(&mut self, outcome: Outcome) -> FetcherAction {
        self.state = FetcherState::Done;
        FetcherAction::Finish(outcome)
    }
}

impl Standing for FetcherState {
    fn name(&self) -> &'static str {
        match self {
            FetcherState::Receiving { .. } => "something is being fetched",
            FetcherState::Checking(_) => "what was fetched is being checked",
            FetcherState::Done => "the fetch is over",
        }
    }

    fn expects(&self) -> &'static [Kind] {
        match self {
            FetcherState::Receiving { begun: false, .. } => {
                &[Kind::Data, Kind::FetchEnd, Kind::FetchNotFound, Kind::Error]
            }
            FetcherState::Receiving { .. } => &[Kind::Data, Kind::FetchEnd, Kind::Error],
            FetcherState::Checking(_) => &[Kind::Error],
            FetcherState::Done => &[],
        }
    }
}

/// What a receiver's driver does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProviderAction {
    /// Find this and feed [`Provider::found`], [`Provider::not_found`] or [`Provider::failed`].
    Find(Request),
    /// Send blocks from here on, feed [`Provider::block_sent`] for each and [`Provider::ended`] or
    /// [`Provider::failed`] at the end.
    SendFrom(u64),
    /// Send this.
    Send(Message),
    /// Whoever asked wants no more.
    Stop,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum ProviderState {
    Idle,
    LookingUp(Request),
    Sending { begin: u64, next_offset: u64 },
}

/// The receiver's end; fetches follow one another on it.
#[derive(Debug)]
pub struct Provider {
    state: ProviderState,
}

impl Default for Provider {
    fn default() -> Self {
        Provider {
            state: ProviderState::Idle,
        }
    }
}

impl Provider {
    /// Whether nothing is being fetched.
    pub const fn is_idle(&self) -> bool {
        matches!(self.state, ProviderState::Idle)
    }

    /// A message arrived on the channel.
    pub fn received(&mut self, message: Message) -> Result<Option<ProviderAction>, ProtocolError> {
        match (&self.state, message) {
            (ProviderState::Idle, Message::Fetch(Fetch::GetFile(file))) => {
                Ok(Some(self.find(Request::File(file))))
            }
            (ProviderState::Idle, Message::Fetch(Fetch::GetSet(set))) => {
                Ok(Some(self.find(Request::Set(set))))
            }
            // It may have been sent before the end arrived there.
            (ProviderState::Idle, Message::Error(_)) => Ok(None),
            (_, Message::Error(_)) => {
                self.state = ProviderState::Idle;
                Ok(Some(ProviderAction::Stop))
            }
            (state, message) => Err(unexpected(state, &message)),
        }
    }

    /// What a message is that came on another channel while this one fetches.
    pub fn unexpected(&self, message: &Message) -> ProtocolError {
        unexpected(&self.state, message)
    }

    /// What was asked for is there.
    pub fn found(&mut self) -> Option<ProviderAction> {
        let ProviderState::LookingUp(request) = &self.state else {
            return None;
        };
        let begin = request.offset();
        let next_offset = begin;
        self.state = ProviderState::Sending { begin, next_offset };
        Some(ProviderAction::SendFrom(begin))
    }

    /// What was asked for is not there.
    pub fn not_found(&mut self, what: NotFound) -> Option<ProviderAction> {
        let ProviderState::LookingUp(_) = self.state else {
            return None;
        };
        self.state = ProviderState::Idle;
        let message = Message::Fetch(Fetch::NotFound(what));
        Some(ProviderAction::Send(message))
    }

    /// A block of this many raw bytes went out.
    pub fn block_sent(&mut self, raw_bytes: u32) {
        if let ProviderState::Sending { next_offset, .. } = &mut self.state {
            *next_offset = next_offset.saturating_add(u64::from(raw_bytes));
        }
    }

    /// That was all, it was found good, and this is the CRC-32 of what was sent.
    pub fn ended(&mut self, crc32: u32) -> Option<ProviderAction> {
        let ProviderState::Sending { begin, next_offset } = self.state else {
            return None;
        };
        self.state = ProviderState::Idle;
        let size = next_offset - begin;
        let end = Fetch::End(Digest { size, crc32 });
        Some(ProviderAction::Send(Message::Fetch(end)))
    }

    /// It cannot be found or sent; the error goes to whoever asked.
    pub fn failed(&mut self, error: Error) -> Option<ProviderAction> {
        if self.is_idle() {
            return None;
        }
        self.state = ProviderState::Idle;
        Some(ProviderAction::Send(Message::Error(error)))
    }

    fn find(&mut self, request: Request) -> ProviderAction {
        self.state = ProviderState::LookingUp(request.clone());
        ProviderAction::Find(request)
    }
}

impl Standing for ProviderState {
    fn name(&self) -> &'static str {
        match self {
            ProviderState::Idle => "nothing is being fetched",
            ProviderState::LookingUp(_) => "something to be fetched is looked up",
            ProviderState::Sending { .. } => "something is being fetched",
        }
    }

    fn expects(&self) -> &'static [Kind] {
        match self {
            ProviderState::Idle => &[Kind::FetchGetFile, Kind::FetchGetSet, Kind::Error],
            ProviderState::LookingUp(_) | ProviderState::Sending { .. } => &[Kind::Error],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::assert_expected;

    #[test]
    fn each_state_takes_the_kinds_that_it_names() {
        let [fresh, begun] = [false, true].map(|begun| FetcherState::Receiving {
            next_offset: 1,
            begun,
        });
        let stated = Digest { size: 1, crc32: 1 };
        let fetchers = [
            fresh,
            begun,
            FetcherState::Checking(stated),
            FetcherState::Done,
        ];
        assert_expected(fetchers, |state, message| {
            Fetcher { state }.received(message).map(|_| ())
        });
        let file = GetFile {
            name: "00000001000000020000009A".parse().unwrap(),
            compression: 0,
        };
        let providers = [
            ProviderState::Idle,
            ProviderState::LookingUp(Request::File(file)),
            ProviderState::Sending {
                begin: 0,
                next_offset: 1,
            },
        ];
        assert_expected(providers, |state, message| {
            Provider { state }.received(message).map(|_| ())
        });
    }
}
