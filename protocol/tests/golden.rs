//! The bytes of the wire, frozen: a change here breaks every program in the field.

#![allow(clippy::unwrap_used)]

use bytes::BytesMut;
use walmgr_protocol::codec::Encoder;
use walmgr_protocol::fuzzing::sample_messages;
use walmgr_protocol::hello::{Hello, HelloAnswer, Refusal, Role, Welcome};
use walmgr_protocol::message::{ClusterIdentity, ErrorCode};
use walmgr_protocol::names::{SystemId, TimelineId, WalSegmentSize};
use walmgr_protocol::version::VersionRange;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn hello() -> Hello {
    Hello {
        role: Role::Master,
        cluster: Some(ClusterIdentity {
            system_id: SystemId(0x0102_0304_0506_0708),
            postgres_major: 15,
            segment_size: WalSegmentSize::DEFAULT,
        }),
        timeline: TimelineId::new(2).unwrap(),
        nonce: *b"0123456789abcdef",
        software: "4.0.0".into(),
    }
}

fn encoded(answer: &HelloAnswer) -> String {
    let mut out = BytesMut::new();
    answer.encode(&mut out);
    hex(&out)
}

#[test]
fn the_hello_of_version_1_is_frozen() {
    let mut out = BytesMut::new();
    hello().encode(
        VersionRange {
            lowest: 1,
            highest: 1,
        },
        &mut out,
    );
    assert_eq!(
        hex(&out),
        concat!(
            "77616c6d67720d0a", // magic
            "0100",             // lowest version
            "0100",             // highest version
            "2b000000",         // body
            "01",               // role
            "01",               // a cluster follows
            "0807060504030201", // system identifier
            "0f00",             // PostgreSQL 15
            "00000001",         // 16 MiB
            "02000000",         // timeline
            "30313233343536373839616263646566",
            "0500342e302e30", // software
            "319e64fa"
        )
    );
}

#[test]
fn the_welcome_of_version_1_is_frozen() {
    // The layout is frozen, what a receiver says in it is its own affair: no bound of ours here.
    let welcome = Welcome {
        nonce: *b"fedcba9876543210",
        payload_bytes_max: 1 << 20,
        block_bytes_max: 512 << 10,
        channels_max: 4,
        newest_segment: "000000020000000000000007".parse().ok(),
        software: "4.0.0".into(),
        store_level: 3,
    };
    assert_eq!(
        encoded(&HelloAnswer::Welcome(1, welcome)),
        concat!(
            "77616c6d67720a0d", // magic
            "0100",             // welcome
            "0100",             // version chosen
            "3c000000",         // body
            "66656463626139383736353433323130",
            "00001000", // payload
            "00000800", // block
            "0400",     // channels
            "1800303030303030303230303030303030303030303030303037",
            "0500342e302e30", // software
            "03",             // level at which segments are stored
            "1a392b0a"
        )
    );
}

#[test]
fn a_refusal_is_frozen_for_every_version() {
    let refusal = Refusal {
        code: ErrorCode::NotAuthorized,
        message: "no".into(),
        hint: "ask".into(),
    };
    assert_eq!(
        encoded(&HelloAnswer::Refused(refusal)),
        concat!(
            "77616c6d67720a0d", // magic
            "0200",             // refused
            "0000",             // no version
            "0b000000",         // body
            "0400",             // code
            "02006e6f",
            "030061736b",
            "c175161f"
        )
    );
}

#[test]
fn every_message_of_version_1_is_frozen() {
    // Of the newest version; `tests/skew.rs` reads those of all.
    let frozen = include_str!("golden/4.0.0-alpha.1.txt");
    let is_message = |line: &&str| line.starts_with(char::is_uppercase);
    let frozen: String = (frozen.split_inclusive('\n').filter(is_message)).collect();
    let mut found = String::new();
    for message in sample_messages() {
        let mut out = BytesMut::new();
        Encoder::new(0).encode(1, &message, &mut out);
        found.push_str(&format!("{:?} {}\n", message.kind(), hex(&out)));
    }
    assert_eq!(found, frozen, "found:\n{found}");
}

#[test]
fn error_codes_keep_their_numbers() {
    let numbers: Vec<u16> = ErrorCode::ALL.iter().map(|code| *code as u16).collect();
    assert_eq!(numbers, (1..=19).chain(32..=35).collect::<Vec<u16>>());
    assert_eq!(ErrorCode::DiskFull as u16, 12);
    assert_eq!(ErrorCode::from_number(60_000), ErrorCode::Internal);
}
