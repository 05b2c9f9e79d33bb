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
//! `GetSet`, `GetOutline` and `GetPages` go the same way. The receiver checks a file while it sends it; damage that shows only
//! then ends it with an error in the place of the end.
//!
//! ```text
//! fetcher:   Asked ─▶ Receiving ─▶ Checking ─▶ Done
//! provider:  Idle ─▶ LookingUp ─▶ Sending ─▶ Idle
//!            any ──given up by whoever asked──▶ GivenUp, which is Idle where late reports come
//! ```

use crate::error::{PeerMisbehaved, ProtocolError};
use crate::message::fetch::{Fetch, GetFile, GetPages, GetSet, NotFound};
use crate::message::{Data, Digest, Error, Message, MessageKind};
use crate::session::{Misuse, Standing, misuse, unexpected};

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FetchRequest {
    /// A file of the archive.
    File(GetFile),
    /// The stream of a backup set.
    Set(GetSet),
    /// The outline of a backup set.
    Outline(GetSet),
    /// Pages of a backup set.
    Pages(GetPages),
}

impl FetchRequest {
    /// Where the first block begins.
    const fn offset(&self) -> u64 {
        match self {
            FetchRequest::File(_) | FetchRequest::Pages(_) => 0,
            FetchRequest::Set(set) | FetchRequest::Outline(set) => set.offset,
        }
    }
}

/// How a fetch ended for whoever asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FetchOutcome {
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
#[must_use = "a session goes on only when its driver does what it says"]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FetcherAction {
    /// Unpack this block and append it.
    Append(Data),
    /// Feed size and CRC-32 of everything that was appended to [`Fetcher::checked`].
    Check,
    /// It is over.
    Finish(FetchOutcome),
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
    pub fn start(request: FetchRequest) -> (Self, Message) {
        let state = FetcherState::Receiving {
            next_offset: request.offset(),
            begun: false,
        };
        let message = match request {
            FetchRequest::File(file) => Fetch::GetFile(file),
            FetchRequest::Set(set) => Fetch::GetSet(set),
            FetchRequest::Outline(set) => Fetch::GetOutline(set),
            FetchRequest::Pages(pages) => Fetch::GetPages(pages),
        };
        (Fetcher { state }, Message::Fetch(message))
    }

    /// A message arrived on the channel.
    pub fn received(&mut self, message: Message) -> Result<FetcherAction, ProtocolError> {
        match (self.state, message) {
            (FetcherState::Done, message) => Err(unexpected(&self.state, &message)),
            (_, Message::Error(error)) => Ok(self.finish(FetchOutcome::Refused(error))),
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
            ) => Ok(self.finish(FetchOutcome::NotFound(not_found))),
            (state, message) => Err(unexpected(&state, &message)),
        }
    }

    /// The answer to [`FetcherAction::Check`].
    pub fn checked(&mut self, found: Digest) -> Result<FetcherAction, Misuse> {
        let FetcherState::Checking(stated) = self.state else {
            return Err(misuse(&self.state, "checked"));
        };
        Ok(self.finish(match stated == found {
            true => FetchOutcome::Whole,
            false => FetchOutcome::Differs { stated, found },
        }))
    }

    fn finish(&mut self, outcome: FetchOutcome) -> FetcherAction {
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

    fn expects(&self) -> &'static [MessageKind] {
        match self {
            FetcherState::Receiving { begun: false, .. } => &[
                MessageKind::Data,
                MessageKind::FetchEnd,
                MessageKind::FetchNotFound,
                MessageKind::Error,
            ],
            FetcherState::Receiving { .. } => {
                &[MessageKind::Data, MessageKind::FetchEnd, MessageKind::Error]
            }
            FetcherState::Checking(_) => &[MessageKind::Error],
            FetcherState::Done => &[],
        }
    }
}

/// What a receiver's driver does.
#[must_use = "a session goes on only when its driver does what it says"]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProviderAction {
    /// Find this and feed [`Provider::found`], [`Provider::not_found`] or [`Provider::failed`].
    Find(FetchRequest),
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
    /// Whoever asked gave it up; what the driver still says about it goes nowhere.
    GivenUp,
    LookingUp(FetchRequest),
    Sending {
        begin: u64,
        next_offset: u64,
    },
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
        matches!(self.state, ProviderState::Idle | ProviderState::GivenUp)
    }

    /// A message arrived on the channel.
    pub fn received(&mut self, message: Message) -> Result<Option<ProviderAction>, ProtocolError> {
        let is_idle = self.is_idle();
        match message {
            Message::Fetch(Fetch::GetFile(file)) if is_idle => {
                Ok(Some(self.find(FetchRequest::File(file))))
            }
            Message::Fetch(Fetch::GetSet(set)) if is_idle => {
                Ok(Some(self.find(FetchRequest::Set(set))))
            }
            Message::Fetch(Fetch::GetOutline(set)) if is_idle => {
                Ok(Some(self.find(FetchRequest::Outline(set))))
            }
            Message::Fetch(Fetch::GetPages(pages)) if is_idle => {
                Ok(Some(self.find(FetchRequest::Pages(pages))))
            }
            // It may have been sent before the end arrived there.
            Message::Error(_) if is_idle => Ok(None),
            Message::Error(_) => {
                self.state = ProviderState::GivenUp;
                Ok(Some(ProviderAction::Stop))
            }
            message => Err(unexpected(&self.state, &message)),
        }
    }

    /// What a message is that came on another channel while this one fetches.
    pub fn unexpected(&self, message: &Message) -> ProtocolError {
        unexpected(&self.state, message)
    }

    /// What was asked for is there. Nothing is done about any of these where it was given up.
    pub fn found(&mut self) -> Result<Option<ProviderAction>, Misuse> {
        let begin = match &self.state {
            ProviderState::LookingUp(request) => request.offset(),
            ProviderState::GivenUp => return Ok(None),
            state => return Err(misuse(state, "found")),
        };
        let next_offset = begin;
        self.state = ProviderState::Sending { begin, next_offset };
        Ok(Some(ProviderAction::SendFrom(begin)))
    }

    /// What was asked for is not there.
    pub fn not_found(&mut self, what: NotFound) -> Result<Option<ProviderAction>, Misuse> {
        match &self.state {
            ProviderState::LookingUp(_) => {}
            ProviderState::GivenUp => return Ok(None),
            state => return Err(misuse(state, "not_found")),
        }
        self.state = ProviderState::Idle;
        let message = Message::Fetch(Fetch::NotFound(what));
        Ok(Some(ProviderAction::Send(message)))
    }

    /// A block of this many raw bytes went out.
    pub fn block_sent(&mut self, raw_bytes: u32) -> Result<(), Misuse> {
        match &mut self.state {
            ProviderState::Sending { next_offset, .. } => {
                *next_offset = next_offset.saturating_add(u64::from(raw_bytes));
                Ok(())
            }
            ProviderState::GivenUp => Ok(()),
            state => Err(misuse(state, "block_sent")),
        }
    }

    /// That was all, it was found good, and this is the CRC-32 of what was sent.
    pub fn ended(&mut self, crc32: u32) -> Result<Option<ProviderAction>, Misuse> {
        let size = match &self.state {
            ProviderState::Sending { begin, next_offset } => next_offset - begin,
            ProviderState::GivenUp => return Ok(None),
            state => return Err(misuse(state, "ended")),
        };
        self.state = ProviderState::Idle;
        let end = Fetch::End(Digest { size, crc32 });
        Ok(Some(ProviderAction::Send(Message::Fetch(end))))
    }

    /// It cannot be found or sent; the error goes to whoever asked.
    pub fn failed(&mut self, error: Error) -> Result<Option<ProviderAction>, Misuse> {
        match &self.state {
            ProviderState::LookingUp(_) | ProviderState::Sending { .. } => {}
            ProviderState::GivenUp => return Ok(None),
            state @ ProviderState::Idle => return Err(misuse(state, "failed")),
        }
        self.state = ProviderState::Idle;
        Ok(Some(ProviderAction::Send(Message::Error(error))))
    }

    fn find(&mut self, request: FetchRequest) -> ProviderAction {
        self.state = ProviderState::LookingUp(request.clone());
        ProviderAction::Find(request)
    }
}

impl Standing for ProviderState {
    fn name(&self) -> &'static str {
        match self {
            ProviderState::Idle | ProviderState::GivenUp => "nothing is being fetched",
            ProviderState::LookingUp(_) => "something to be fetched is looked up",
            ProviderState::Sending { .. } => "something is being fetched",
        }
    }

    fn expects(&self) -> &'static [MessageKind] {
        match self {
            ProviderState::Idle | ProviderState::GivenUp => &[
                MessageKind::FetchGetFile,
                MessageKind::FetchGetSet,
                MessageKind::FetchGetOutline,
                MessageKind::FetchGetPages,
                MessageKind::Error,
            ],
            ProviderState::LookingUp(_) | ProviderState::Sending { .. } => &[MessageKind::Error],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{assert_expected, assert_misused};

    const STATED: Digest = Digest { size: 1, crc32: 1 };

    fn fetchers() -> [FetcherState; 4] {
        let [fresh, begun] = [false, true].map(|begun| FetcherState::Receiving {
            next_offset: 1,
            begun,
        });
        [
            fresh,
            begun,
            FetcherState::Checking(STATED),
            FetcherState::Done,
        ]
    }

    fn providers() -> [ProviderState; 4] {
        let file = GetFile {
            name: "00000001000000020000009A".parse().unwrap(),
            compression: 0,
        };
        let sending = ProviderState::Sending {
            begin: 0,
            next_offset: 1,
        };
        [
            ProviderState::Idle,
            ProviderState::LookingUp(FetchRequest::File(file)),
            sending,
            ProviderState::GivenUp,
        ]
    }

    #[test]
    fn each_state_takes_the_kinds_that_it_names() {
        assert_expected(fetchers(), |state, message| {
            Fetcher { state }.received(message).map(|_| ())
        });
        assert_expected(providers(), |state, message| {
            Provider { state }.received(message).map(|_| ())
        });
    }

    #[test]
    fn a_driver_that_calls_out_of_turn_is_told_so() {
        let [fresh, begun, _, done] = fetchers();
        assert_misused("checked", [fresh, begun, done], |state| {
            Fetcher { state }.checked(STATED)
        });
        let [idle, looking, sending, _] = providers();
        let not_looking = [idle.clone(), sending];
        let not_sending = [idle.clone(), looking];
        assert_misused("found", not_looking.clone(), |state| {
            Provider { state }.found()
        });
        assert_misused("not_found", not_looking, |state| {
            Provider { state }.not_found(NotFound::NoSuchSet)
        });
        assert_misused("block_sent", not_sending.clone(), |state| {
            Provider { state }.block_sent(1)
        });
        assert_misused("ended", not_sending, |state| Provider { state }.ended(1));
        assert_misused("failed", [idle], |state| {
            Provider { state }.failed(abandoned())
        });
    }

    #[test]
    fn reports_about_what_was_given_up_go_nowhere() {
        let mut provider = Provider {
            state: ProviderState::GivenUp,
        };
        assert_eq!(provider.found(), Ok(None));
        assert_eq!(provider.not_found(NotFound::NoSuchSet), Ok(None));
        assert_eq!(provider.block_sent(1), Ok(()));
        assert_eq!(provider.ended(1), Ok(None));
        assert_eq!(provider.failed(abandoned()), Ok(None));
    }

    fn abandoned() -> Error {
        Error::channel(crate::message::ErrorCode::Abandoned, "", "")
    }
}
