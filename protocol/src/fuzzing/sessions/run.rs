//! How an input drives both ends of a session.
//! Never decides what an end does. Invariant: every input comes to its end.

use arbitrary::Unstructured;
use bytes::Bytes;

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
pub(super) fn run(input: &[u8], ends: &mut impl Ends) {
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

/// MessageKind, flags and a length of two bytes, then the payload: what a frame carries, without what
/// [`crate::fuzzing::frame`] fuzzes.
pub(super) fn next_message(
    rest: &mut &[u8],
) -> Option<Result<Message, crate::error::ProtocolError>> {
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
