//! Sessions fuzzed two ways: messages out of raw bytes, and sequences of messages that are valid.
//! Never a driver with IO: files are lengths here. Invariant: two honest ends never refuse each
//! other, and whatever a dishonest one says, no end takes a hole, an overlap or more than was offered.

mod backup;
mod fetch;
mod hello;
mod messages;
mod partial;
mod push;

use arbitrary::Unstructured;
use bytes::Bytes;

pub use backup::backup_session;
pub use fetch::fetch_session;
pub use hello::hello;
pub use partial::partial_session;
pub use push::push_session;

use crate::message::Message;

/// The input decides nothing more, or an end closed the connection.
pub(super) struct Over;

impl From<arbitrary::Error> for Over {
    fn from(_: arbitrary::Error) -> Self {
        Over
    }
}

impl From<crate::error::ProtocolError> for Over {
    fn from(_: crate::error::ProtocolError) -> Self {
        Over
    }
}

/// Both ends of a session, and what is on its way between them.
pub(super) trait Ends {
    /// A message that some client sent arrives at the receiver; its driver decides by `choices`.
    fn arrive(&mut self, message: Message, choices: &mut Unstructured<'_>) -> Result<(), Over>;

    /// Something happens that `choices` names: an end sends, a message arrives, a link breaks.
    fn step(&mut self, choices: &mut Unstructured<'_>) -> Result<(), Over>;
}

/// An even first byte: the rest are messages as a peer's bytes. An odd one: the rest are choices.
fn run(input: &[u8], ends: &mut impl Ends) {
    let Some((mode, rest)) = input.split_first() else {
        return;
    };
    if mode % 2 == 0 {
        let mut rest = rest;
        while let Some(message) = next_message(&mut rest) {
            let arrived = message.map(|message| ends.arrive(message, &mut Unstructured::new(&[])));
            if !matches!(arrived, Ok(Ok(()))) {
                return;
            }
        }
        return;
    }
    let mut choices = Unstructured::new(rest);
    while !choices.is_empty() {
        if ends.step(&mut choices).is_err() {
            return;
        }
    }
}

/// Kind, flags and a length of two bytes, then the payload: what a frame carries, without what
/// [`super::frame`] fuzzes.
fn next_message(rest: &mut &[u8]) -> Option<Result<Message, crate::error::ProtocolError>> {
    let ([kind, flags, low, high], behind) = rest.split_first_chunk()?;
    let payload_bytes = usize::from(u16::from_le_bytes([*low, *high]));
    let (payload, behind) = behind.split_at(payload_bytes.min(behind.len()));
    *rest = behind;
    let payload = Bytes::copy_from_slice(payload);
    Some(Message::decode(*kind, *flags, payload))
}

/// Messages as [`run`] reads them out of raw bytes.
pub fn raw_messages(messages: &[Message]) -> Vec<u8> {
    let mut out = vec![0];
    for message in messages {
        let mut payload = bytes::BytesMut::new();
        let flags = message.encode(&mut payload);
        let payload_bytes = u16::try_from(payload.len()).unwrap_or(u16::MAX);
        out.extend_from_slice(&[message.kind() as u8, flags]);
        out.extend_from_slice(&payload_bytes.to_le_bytes());
        out.extend_from_slice(&payload);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BODIES: [fn(&[u8]); 5] = [
        push_session,
        partial_session,
        backup_session,
        fetch_session,
        hello,
    ];

    #[test]
    fn every_stored_input_passes_its_body() {
        let targets = ["push", "partial", "backup", "fetch", "hello"];
        for (target, body) in targets.into_iter().zip(BODIES) {
            let folder = format!("{}/../fuzz/seeds", env!("CARGO_MANIFEST_DIR"));
            let folder = match target {
                "hello" => format!("{folder}/hello"),
                flow => format!("{folder}/{flow}_session"),
            };
            let inputs = std::fs::read_dir(&folder).unwrap();
            let count = inputs
                .map(|input| body(&std::fs::read(input.unwrap().path()).unwrap()))
                .count();
            assert!(count > 0, "{folder} has no stored inputs");
        }
    }

    #[test]
    fn every_sample_arrives_as_raw_bytes() {
        let samples = super::super::sample_messages();
        let raw = raw_messages(&samples);
        let mut rest = &raw[1..];
        for sample in samples {
            assert_eq!(next_message(&mut rest), Some(Ok(sample)));
        }
        assert_eq!(next_message(&mut rest), None);
        for body in BODIES {
            body(&raw);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn any_choices_pass_every_session(
            mode in 0_u8..2, input in proptest::collection::vec(any::<u8>(), 0..2_000),
        ) {
            for body in BODIES {
                body(&[&[mode], &input[..]].concat());
            }
        }

        #[test]
        fn small_choices_pass_every_session(
            input in proptest::collection::vec(0_u8..24, 0..1_000),
        ) {
            for body in BODIES {
                body(&[&[1], &input[..]].concat());
            }
        }
    }
}
