//! The conversations, one file a flow, with both ends side by side.
//! Never waits and never does IO. A driver feeds events and performs the actions that come back.
//!
//! Rules every driver obeys:
//! - perform actions in the order they are returned;
//! - feed the answer to an action before the next message of the same channel;
//! - call what has a place where the session stands: anything else is a [`Misuse`], a fault of the
//!   driver and not of the peer;
//! - when a session returns an error of the peer, send it as [`crate::message::Error`] of scope `connection`
//!   and close.

pub mod backup;
pub mod fetch;
pub mod hello;
pub mod keepalive;
pub mod partial;
pub mod push;
pub mod trial;

use crate::error::{PeerMisbehaved, ProtocolError};
use crate::message::{Message, MessageKind};

/// A driver called what has no place where its session stands: a fault of this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Misuse {
    /// What was called.
    pub called: &'static str,
    /// Where the session stood.
    pub state: &'static str,
}

impl std::fmt::Display for Misuse {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Misuse { called, state } = self;
        write!(out, "`{called}` was called while {state}")
    }
}

impl std::error::Error for Misuse {}

/// Where one end of a conversation stands, as its errors say it.
trait Standing {
    /// In words.
    fn name(&self) -> &'static str;

    /// The kinds that may come there; what one of them says may still be wrong.
    fn expects(&self) -> &'static [MessageKind];
}

/// The driver called this where it has no place.
fn misuse(state: &impl Standing, called: &'static str) -> Misuse {
    Misuse {
        called,
        state: state.name(),
    }
}

/// A message came whose kind has no place here.
fn unexpected(state: &impl Standing, message: &Message) -> ProtocolError {
    PeerMisbehaved::Unexpected {
        state: state.name(),
        expected: state.expects(),
        found: message.kind(),
    }
    .into()
}

/// Feeds a message of every kind to an end in each of these states: exactly those are unexpected that
/// the state does not name, and the error says so.
#[cfg(test)]
fn assert_expected<S: Standing + Clone>(
    states: impl IntoIterator<Item = S>,
    receive: impl Fn(S, Message) -> Result<(), ProtocolError>,
) {
    let samples = crate::fuzzing::sample_messages();
    for kind in MessageKind::ALL {
        assert!(samples.iter().any(|sample| sample.kind() == *kind));
    }
    for state in states {
        for sample in &samples {
            let found = sample.kind();
            let case = format!("{found:?} while {}", state.name());
            let said = PeerMisbehaved::Unexpected {
                state: state.name(),
                expected: state.expects(),
                found,
            };
            let is_unexpected = receive(state.clone(), sample.clone()) == Err(said.into());
            assert_ne!(is_unexpected, state.expects().contains(&found), "{case}");
        }
    }
}

/// Calls something in states where it has no place.
#[cfg(test)]
fn assert_misused<S: Standing, T: std::fmt::Debug + PartialEq>(
    called: &'static str,
    states: impl IntoIterator<Item = S>,
    call: impl Fn(S) -> Result<T, Misuse>,
) {
    for state in states {
        let misuse = misuse(&state, called);
        assert_eq!(call(state), Err(misuse));
    }
}
