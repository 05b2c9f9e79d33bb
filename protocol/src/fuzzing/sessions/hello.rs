//! Introductions: any bytes, and two ends that introduce themselves and then talk.
//! Never a socket. Invariant: what one end writes the other reads, and a frame of another
//! connection is refused.

use arbitrary::Unstructured;
use bytes::BytesMut;

use super::messages;
use super::run::Over;
use crate::error::ProtocolError;
use crate::frame::Direction;
use crate::message::{ClusterIdentity, Error, ErrorCode};
use crate::names::{SystemId, WalSegmentSize};
use crate::session::hello::{Hello, HelloAnswer, Refusal, Role, Welcome, choose_version, coders};
use crate::version::VersionRange;

/// Hellos and their answers: never a panic, and what reads writes back to what reads the same.
pub fn hello(input: &[u8]) {
    match input.split_first() {
        Some((mode, choices)) if mode % 2 == 1 => {
            // The choices may end anywhere.
            let _ = introduced(&mut Unstructured::new(choices));
        }
        Some((_, bytes)) => read(bytes),
        None => {}
    }
}

fn read(bytes: &[u8]) {
    let mut buffer = BytesMut::from(bytes);
    if let Ok(Some((versions, Ok(hello)))) = Hello::decode(&mut buffer) {
        let mut again = BytesMut::new();
        hello.encode(versions, &mut again);
        assert_eq!(Hello::decode(&mut again), Ok(Some((versions, Ok(hello)))));
    }
    let mut buffer = BytesMut::from(bytes);
    if let Ok(Some(answer)) = HelloAnswer::decode(&mut buffer) {
        let mut again = BytesMut::new();
        answer.encode(&mut again);
        assert!(matches!(HelloAnswer::decode(&mut again), Ok(Some(_))));
    }
}

fn introduced(choices: &mut Unstructured<'_>) -> Result<(), Over> {
    let (versions, hello) = (range(choices)?, any_hello(choices)?);
    let mut wire = BytesMut::new();
    hello.encode(versions, &mut wire);
    arrives_byte_by_byte(&wire, |buffer| {
        Hello::decode(buffer).map(|hello| hello.is_some())
    });
    assert_eq!(
        Hello::decode(&mut wire),
        Ok(Some((versions, Ok(hello.clone()))))
    );
    let ours = range(choices)?;
    let answer = match choose_version(ours, versions) {
        Ok(version) => {
            assert!(ours.contains(version) && versions.contains(version));
            HelloAnswer::Welcome(version, welcome(choices)?)
        }
        Err(refusal) => {
            assert!(refusal.to_string().contains(&ours.to_string()));
            HelloAnswer::Refused(refusal)
        }
    };
    let refused = HelloAnswer::Refused(refusal(choices)?);
    for answer in [&answer, &refused] {
        let mut wire = BytesMut::new();
        answer.encode(&mut wire);
        arrives_byte_by_byte(&wire, |buffer| {
            HelloAnswer::decode(buffer).map(|answer| answer.is_some())
        });
        assert_eq!(
            HelloAnswer::decode(&mut wire).as_ref(),
            Ok(&Some(answer.clone()))
        );
    }
    if let HelloAnswer::Welcome(_, welcome) = answer {
        talk(&hello, &welcome, choices)?;
    }
    Ok(())
}

/// There is nothing to read before the last byte.
fn arrives_byte_by_byte<E>(wire: &[u8], decode: impl Fn(&mut BytesMut) -> Result<bool, E>) {
    for end in [0, 1, 8, 12, 16, wire.len() - 1] {
        assert!(matches!(
            decode(&mut BytesMut::from(&wire[..end])),
            Ok(false)
        ));
    }
}

/// Frames both ways, and one that was recorded on another connection.
fn talk(hello: &Hello, welcome: &Welcome, choices: &mut Unstructured<'_>) -> Result<(), Over> {
    let (mut out, mut back) = coders(Direction::FromClient, &hello.nonce, welcome);
    let (mut answers, mut questions) = coders(Direction::FromReceiver, &hello.nonce, welcome);
    while !choices.is_empty() {
        let (channel, message) = (choices.arbitrary()?, messages::any(choices)?);
        for (encoder, decoder) in [(&mut out, &mut questions), (&mut answers, &mut back)] {
            let mut wire = BytesMut::new();
            encoder.encode(channel, &message, &mut wire);
            let payload_bytes = wire.len() - crate::frame::HEADER_BYTES;
            match decoder.decode(&mut wire) {
                Ok(Some(frame)) => {
                    assert_eq!((frame.channel, &frame.message), (channel, &message));
                    assert!(!decoder.mid_frame(&wire));
                }
                Ok(None) => unreachable!("the frame is whole"),
                Err(error) => {
                    let is_bounded = payload_bytes > welcome.payload_bytes_max as usize;
                    assert!(is_bounded, "an honest frame was refused: {error}");
                    return Ok(());
                }
            }
        }
    }
    let error = Error::channel(ErrorCode::Internal, "", "");
    let mut wire = BytesMut::new();
    out.encode(0, &crate::message::Message::Error(error), &mut wire);
    // What the client says is nothing that the receiver could have said.
    let echoed = back.decode(&mut wire);
    assert!(matches!(
        echoed,
        Err(ProtocolError::Misbehaved(_) | ProtocolError::Malformed(_))
    ));
    Ok(())
}

fn range(choices: &mut Unstructured<'_>) -> Result<VersionRange, Over> {
    let lowest = choices.int_in_range(1..=5)?;
    let highest = choices.int_in_range(lowest..=6)?;
    Ok(VersionRange { lowest, highest })
}

fn any_hello(choices: &mut Unstructured<'_>) -> Result<Hello, Over> {
    Ok(Hello {
        role: *choices.choose(&[Role::Master, Role::Tool])?,
        cluster: match choices.arbitrary()? {
            true => Some(cluster(choices)?),
            false => None,
        },
        timeline: messages::timeline(choices)?,
        nonce: choices.arbitrary()?,
        software: software(choices)?,
    })
}

fn cluster(choices: &mut Unstructured<'_>) -> Result<ClusterIdentity, Over> {
    let shift = choices.int_in_range(20_u32..=30)?;
    Ok(ClusterIdentity {
        system_id: SystemId(choices.arbitrary()?),
        postgres_major: choices.int_in_range(13..=18)?,
        segment_size: WalSegmentSize::new(1 << shift).ok_or(Over)?,
    })
}

fn welcome(choices: &mut Unstructured<'_>) -> Result<Welcome, Over> {
    let newest = match choices.arbitrary()? {
        true => Some(messages::segment(choices)?),
        false => None,
    };
    let welcome = Welcome::with_our_limits(choices.arbitrary()?, newest, software(choices)?)
        .storing_at(choices.arbitrary()?);
    Ok(match choices.arbitrary()? {
        true => welcome,
        false => Welcome {
            payload_bytes_max: choices.arbitrary()?,
            ..welcome
        },
    })
}

fn refusal(choices: &mut Unstructured<'_>) -> Result<Refusal, Over> {
    Ok(Refusal {
        code: *choices.choose(ErrorCode::ALL)?,
        message: software(choices)?,
        hint: software(choices)?,
    })
}

fn software(choices: &mut Unstructured<'_>) -> Result<String, Over> {
    let length = choices.int_in_range(0..=40)?;
    let letters = choices.bytes(length)?;
    Ok(String::from_utf8_lossy(letters).into_owned())
}
