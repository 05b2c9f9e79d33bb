//! The conversations, one file a flow, with both ends side by side.
//! Never waits and never does IO. A driver feeds events and performs the actions that come back.
//!
//! Rules every driver obeys:
//! - perform actions in the order they are returned;
//! - feed the answer to an action before the next message of the same channel;
//! - when a session returns an error, send it as [`crate::message::Error`] of scope `connection`
//!   and close.

pub mod backup;
pub mod fetch;
pub mod hello;
pub mod keepalive;
pub mod partial;
pub mod push;

use crate::error::{PeerMisbehaved, ProtocolError};
use crate::message::{Kind, Message};

/// Where one end of a conversation stands, as its errors say it.
trait Standing {
    /// In words.
    fn name(&self) -> &'static str;

    /// The kinds that may come there; what one of them says may still be wrong.
    fn expects(&self) -> &'static [Kind];
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
fn assert_expected<S: Standing>(
    states: impl IntoIterator<Item = S>,
    receive: impl Fn(S, Message) -> Result<(), ProtocolError>,
) where
    S: Clone,
{
    let samples = crate::fuzzing::sample_messages();
    for kind in Kind::ALL {
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
