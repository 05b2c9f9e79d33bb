//! Peers that were welcomed and then stop listening, talking, or both.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use walmgr_protocol::message::{Kind, Message};

use super::{peer_of, plain_site, still_serves};
use crate::support::wait_for;

#[test]
fn fault_24_peers_that_went_silent_or_deaf_give_their_slots_back() {
    let site = plain_site();
    // Answers no ping.
    let silent = peer_of(&site);
    // Stops inside a frame.
    let mut torn = peer_of(&site);
    let header = torn.header(Kind::Data as u8, 0, 1, 100_000, b"");
    torn.send_bytes(&header[..11]);
    // Asks and asks, and never reads an answer.
    let mut deaf = peer_of(&site);
    let stream = deaf.stream();
    stream
        .set_write_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    let stuck = (0..2_000).any(|_| {
        let pings: Vec<u8> = (0..1_000)
            .flat_map(|_| deaf.frame(0, &Message::Ping))
            .collect();
        deaf.stream().write_all(&pings).is_err()
    });
    assert!(stuck, "the receiver goes on answering");
    let begin = Instant::now();
    assert_eq!(site.status().connections, 4);
    let bound = walmgr::receiver::IDLE_DEADLINE + Duration::from_secs(8);
    wait_for("the slots", bound, || {
        (site.status().connections == 1).then_some(())
    });
    println!("three slots came back after {:?}", begin.elapsed());
    for mut peer in [silent, torn] {
        let mut rest = Vec::new();
        peer.stream().read_to_end(&mut rest).unwrap();
    }
    still_serves(&site, 1);
}
