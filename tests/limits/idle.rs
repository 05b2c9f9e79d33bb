//! Peers that were welcomed and then stop listening, talking, or both.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use walmgr_protocol::message::{ErrorCode, Message, MessageKind, Scope};

use super::{peer_of, plain_site, still_serves, wait_for_no_temporary};
use crate::support::peer::data;
use crate::support::wait_for;

#[test]
fn fault_24_peers_that_went_silent_or_deaf_give_their_slots_back() {
    let site = plain_site();
    // Answers no ping.
    let silent = peer_of(&site);
    // Stops inside a frame.
    let mut torn = peer_of(&site);
    let header = torn.header(MessageKind::Data as u8, 0, 1, 100_000, b"");
    torn.send_bytes(&header[..11]);
    // Asks and asks, and never reads an answer.
    let mut silent_reader = peer_of(&site);
    let stream = silent_reader.stream();
    stream
        .set_write_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    let stuck = (0..2_000).any(|_| {
        let pings: Vec<u8> = (0..1_000)
            .flat_map(|_| silent_reader.frame(0, &Message::Ping))
            .collect();
        silent_reader.stream().write_all(&pings).is_err()
    });
    assert!(stuck, "the receiver goes on answering");
    let begin = Instant::now();
    assert_eq!(site.overview().connections, 4);
    let bound = walmgr::test_support::receiver::IDLE_DEADLINE + Duration::from_secs(8);
    wait_for("the slots", bound, || {
        (site.overview().connections == 1).then_some(())
    });
    println!("three slots came back after {:?}", begin.elapsed());
    for mut peer in [silent, torn] {
        let mut rest = Vec::new();
        peer.stream().read_to_end(&mut rest).unwrap();
    }
    still_serves(&site, 1);
}

#[test]
fn fault_24_upload_of_a_peer_that_only_pings_is_ended_and_removed() {
    let site = plain_site();
    let mut peer = peer_of(&site);
    let segment = site.segment(1, "idle");
    let name = site.segment_name(1).parse().unwrap();
    peer.offer(1, name, &segment);
    assert!(matches!(peer.answer(1), Message::Have(_)));
    peer.send(1, &data(0, &segment[..8192]));
    let begin = Instant::now();
    let error = loop {
        let frame = peer.receive().expect("the connection stays open");
        match frame.message {
            Message::Ping => peer.send(frame.channel, &Message::Pong),
            Message::Error(error) => break error,
            other => panic!("{other:?}"),
        }
    };
    let took = begin.elapsed();
    assert_eq!(error.code, ErrorCode::TimedOut);
    assert_eq!(error.scope, Scope::Channel);
    let bound = walmgr::test_support::receiver::BLOCK_DEADLINE;
    let allowed = bound..bound + Duration::from_secs(8);
    assert!(allowed.contains(&took), "{took:?}");
    wait_for_no_temporary(&site);
    // The connection is as good as before.
    peer.offer(1, name, &segment);
    assert!(matches!(peer.answer(1), Message::Have(_)));
    peer.upload(1, &segment);
    assert!(matches!(peer.answer(1), Message::Stored(_)));
}
