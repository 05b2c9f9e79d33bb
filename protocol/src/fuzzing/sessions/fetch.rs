//! A fetch between both of its ends; what is fetched is a length and a CRC-32 here.
//! Never unpacks. Invariant: blocks are appended in order and without holes, only the stated bytes
//! are ever whole, and the receiver sends nothing that was not asked for.

use std::collections::VecDeque;

use arbitrary::Unstructured;

use super::messages;
use super::run::{Ends, Over, run};
use crate::message::fetch::Fetch;
use crate::message::{Digest, Error, ErrorCode, Message};
use crate::session::Misuse;
use crate::session::fetch::{
    FetchOutcome, FetchRequest, Fetcher, FetcherAction, Provider, ProviderAction,
};

/// Both ends of a fetch.
pub fn fetch_session(input: &[u8]) {
    run(input, &mut Exchange::default());
}

#[derive(Default)]
struct Exchange {
    provider: Provider,
    /// Where the next block of what is being sent begins.
    sending: Option<u64>,
    fetcher: Option<Fetcher>,
    /// Where it was asked to begin, and what was appended.
    begin: u64,
    fetched: u64,
    to_provider: VecDeque<Message>,
    to_fetcher: VecDeque<Message>,
    /// Somebody else spoke on this connection.
    is_tapped: bool,
}

impl Ends for Exchange {
    fn arrive(&mut self, message: Message, choices: &mut Unstructured<'_>) -> Result<(), Over> {
        let was_idle = self.provider.is_idle();
        match self.provider.received(message) {
            Ok(Some(ProviderAction::Find(request))) => {
                assert!(was_idle);
                self.find(&request, choices)?;
            }
            Ok(Some(ProviderAction::Stop)) => {
                assert!(!was_idle && self.provider.is_idle());
                self.sending = None;
            }
            Ok(Some(ProviderAction::SendFrom(_) | ProviderAction::Send(_))) => {
                unreachable!("only an answer of the driver sends")
            }
            Ok(None) => assert_eq!(self.provider.is_idle(), was_idle),
            Err(error) => {
                assert_eq!(self.provider.is_idle(), was_idle);
                return Err(error.into());
            }
        }
        Ok(())
    }

    fn step(&mut self, choices: &mut Unstructured<'_>) -> Result<(), Over> {
        match choices.int_in_range(0_u8..=14)? {
            0 | 1 => self.ask(choices)?,
            2 | 3 => {
                if let Some(message) = self.to_provider.pop_front()
                    && self.arrive(message, choices).is_err()
                {
                    assert!(
                        self.is_tapped || choices.is_empty(),
                        "an honest fetch was refused"
                    );
                    self.break_link();
                }
            }
            4..=6 => {
                if let Some(message) = self.to_fetcher.pop_front() {
                    self.answer(message, choices)?;
                }
            }
            7..=9 => self.send(choices)?,
            10 => {
                let (was_idle, error) = (self.provider.is_idle(), messages::error(choices)?);
                let failed = self.provider.failed(error);
                assert!(self.provider.is_idle());
                self.sending = None;
                match was_idle {
                    true => assert!(!matches!(failed, Ok(Some(_))), "an answer to nothing"),
                    false => self.answer_with(failed),
                }
            }
            11 => {
                let given_up = Error::channel(ErrorCode::Abandoned, "", "");
                if self.fetcher.is_some() {
                    self.to_provider.push_back(Message::Error(given_up));
                    self.fetcher = None;
                    // What is still on its way belongs to nobody.
                    self.is_tapped = true;
                }
            }
            12 => {
                self.is_tapped = true;
                let message = messages::any(choices)?;
                if self.arrive(message, choices).is_err() {
                    self.break_link();
                }
            }
            13 => {
                self.is_tapped = true;
                let message = messages::any(choices)?;
                self.answer(message, choices)?;
            }
            _ => self.break_link(),
        }
        Ok(())
    }
}

/// Where the first block has to begin.
const fn begin_of(request: &FetchRequest) -> u64 {
    match request {
        FetchRequest::File(_) | FetchRequest::Pages(_) => 0,
        FetchRequest::Set(set) | FetchRequest::Outline(set) => set.offset,
    }
}

impl Exchange {
    fn ask(&mut self, choices: &mut Unstructured<'_>) -> Result<(), Over> {
        if self.fetcher.is_some() {
            return Ok(());
        }
        let request = match choices.int_in_range(0_u8..=3)? {
            0 => FetchRequest::File(messages::get_file(choices)?),
            1 => FetchRequest::Set(messages::get_set(choices)?),
            2 => FetchRequest::Outline(messages::get_set(choices)?),
            _ => FetchRequest::Pages(messages::get_pages(choices)?),
        };
        self.begin = begin_of(&request);
        self.fetched = 0;
        let (fetcher, message) = Fetcher::start(request);
        self.fetcher = Some(fetcher);
        self.to_provider.push_back(message);
        Ok(())
    }

    fn find(&mut self, request: &FetchRequest, choices: &mut Unstructured<'_>) -> Result<(), Over> {
        let begin = begin_of(request);
        match choices.int_in_range(0_u8..=5)? {
            5 => {
                let answer = self.provider.not_found(messages::not_found(choices)?);
                assert!(self.provider.is_idle());
                self.answer_with(answer);
            }
            _ => {
                assert!(self.provider.ended(0).is_err(), "ended before it began");
                let found = self.provider.found();
                assert_eq!(found, Ok(Some(ProviderAction::SendFrom(begin))));
                assert!(self.provider.found().is_err());
                self.sending = Some(begin);
            }
        }
        Ok(())
    }

    /// A block, or the end.
    fn send(&mut self, choices: &mut Unstructured<'_>) -> Result<(), Over> {
        let Some(offset) = self.sending else {
            return Ok(());
        };
        if choices.ratio(1, 4)? {
            let crc32 = choices.int_in_range(0..=1)?;
            self.sending = None;
            let answer = self.provider.ended(crc32);
            assert!(self.provider.is_idle());
            self.answer_with(answer);
            return Ok(());
        }
        let bytes = messages::length(choices)?;
        let Some(next) = offset.checked_add(u64::from(bytes)) else {
            return Err(Over);
        };
        let data = messages::data(offset, bytes, choices)?;
        let sent = self.provider.block_sent(bytes);
        sent.expect("it is sending");
        self.sending = Some(next);
        self.to_fetcher.push_back(Message::Data(data));
        Ok(())
    }

    fn answer_with(&mut self, action: Result<Option<ProviderAction>, Misuse>) {
        match action {
            Ok(Some(ProviderAction::Send(message))) => self.to_fetcher.push_back(message),
            other => unreachable!("{other:?} is no answer"),
        }
    }

    fn answer(&mut self, message: Message, choices: &mut Unstructured<'_>) -> Result<(), Over> {
        let Some(fetcher) = &mut self.fetcher else {
            return Ok(());
        };
        let stated = match &message {
            Message::Fetch(Fetch::End(digest)) => Some(*digest),
            _ => None,
        };
        let Ok(action) = fetcher.received(message) else {
            assert!(self.is_tapped, "an honest receiver was refused");
            self.break_link();
            return Ok(());
        };
        match action {
            FetcherAction::Append(data) => {
                let expected = self.begin.wrapping_add(self.fetched);
                assert_eq!(data.offset, expected, "a hole or an overlap");
                self.fetched = self.fetched.saturating_add(u64::from(data.raw_bytes));
            }
            FetcherAction::Check => {
                let crc32 = choices.int_in_range(0..=1)?;
                let found = Digest {
                    size: self.fetched,
                    crc32,
                };
                let whole = FetcherAction::Finish(FetchOutcome::Whole);
                let outcome = fetcher.checked(found);
                assert_eq!(outcome == Ok(whole), stated == Some(found));
                assert!(fetcher.checked(found).is_err(), "checked twice");
                if !self.is_tapped {
                    assert_eq!(stated.map(|stated| stated.size), Some(self.fetched));
                }
                assert!(fetcher.received(Message::Ping).is_err(), "it goes on");
                self.fetcher = None;
            }
            FetcherAction::Finish(outcome) => {
                assert_ne!(outcome, FetchOutcome::Whole);
                self.fetcher = None;
            }
        }
        Ok(())
    }

    fn break_link(&mut self) {
        *self = Exchange::default();
    }
}
