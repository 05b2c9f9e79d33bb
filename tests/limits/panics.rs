//! Bugs: a panic is planted in each of the receiver's workers, and in the task of a connection.

use walmgr_protocol::message::backup::{Backup, Begin};
use walmgr_protocol::message::fetch::{Fetch, GetFile};
use walmgr_protocol::message::partial::{self, Partial};
use walmgr_protocol::message::{Error, ErrorCode, Message, Scope};
use walmgr_protocol::names::{TimelineId, WalFileName};

use super::{offer_of, peer_of, plain_site, still_serves};
use crate::support::Site;

/// Starts the receiver anew, with a bug.
fn restart_with(site: &mut Site, place: &str) {
    site.receiver.stop();
    let mut command = site.receiver_walmgr();
    command.env("WALMGR_PANIC_IN", place);
    site.receiver.start(&mut command).unwrap();
}

/// The messages that make each worker begin.
fn openings(site: &Site) -> [(&'static str, Message); 4] {
    let name: WalFileName = site.segment_name(1).parse().unwrap();
    let timeline = TimelineId::FIRST;
    let backup = Begin {
        who: "db1".to_owned(),
        origin: "here".to_owned(),
        label: "x".to_owned(),
        timeline,
    };
    let file = GetFile {
        name,
        compression: 0,
    };
    [
        ("upload", Message::Offer(offer_of(name, b"x"))),
        (
            "stream",
            Message::Partial(Partial::Begin(partial::Begin { timeline })),
        ),
        ("backup", Message::Backup(Backup::Begin(backup))),
        ("fetch", Message::Fetch(Fetch::GetFile(file))),
    ]
}

/// The log has one line about the panic, which names the place, and the answer says where to look.
#[track_caller]
fn is_told(site: &Site, place: &str, answer: &Error) {
    assert_eq!(answer.code, ErrorCode::Internal, "{answer}");
    let text = format!("the receiver failed on this {place}");
    assert_eq!(answer.message, text);
    let log = site.receiver.log();
    let lines: Vec<_> = log
        .lines()
        .filter(|line| line.contains("planted") || line.contains("internal error"))
        .collect();
    let said = format!("a panic ended this {place}: planted at src/receiver/worker.rs:");
    let said = lines.iter().filter(|line| line.contains(&said)).count();
    assert_eq!(said, 1, "{log}");
    let about_others = lines.iter().filter(|line| !line.contains("a panic ended"));
    assert_eq!(about_others.count(), 0, "{log}");
}

#[test]
fn fault_145_a_panic_in_any_worker_is_answered_internal_and_one_line() {
    if !cfg!(debug_assertions) {
        println!("SKIP: only a program with debug assertions takes a planted panic");
        return;
    }
    let mut site = plain_site();
    for (place, message) in openings(&site) {
        restart_with(&mut site, place);
        let mut other = peer_of(&site);
        let mut peer = peer_of(&site);
        peer.send(1, &message);
        let answer = peer.refusal();
        assert_eq!(answer.scope, Scope::Channel);
        is_told(&site, place, &answer);
        // Neither its connection nor another is ended by it.
        for peer in [&mut peer, &mut other] {
            peer.send(0, &Message::Ping);
            assert_eq!(peer.receive().unwrap().message, Message::Pong);
        }
    }
    restart_with(&mut site, "nothing");
    still_serves(&site, 1);
}

#[test]
fn fault_145_a_panic_in_a_connections_task_ends_it_in_words() {
    if !cfg!(debug_assertions) {
        println!("SKIP: only a program with debug assertions takes a planted panic");
        return;
    }
    let mut site = plain_site();
    restart_with(&mut site, "connection");
    let answer = peer_of(&site).last_words();
    assert_eq!(answer.scope, Scope::Connection);
    is_told(&site, "connection", &answer);
    // The receiver goes on: the next one gets the same answer.
    assert_eq!(peer_of(&site).last_words(), answer);
    restart_with(&mut site, "nothing");
    still_serves(&site, 1);
}
