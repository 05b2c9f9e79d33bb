//! What a peer may use its channels for: one thing at a time, one fetch and one stream a connection.

use std::fs;

use walmgr_protocol::message::fetch::{Fetch, GetFile, GetSet};
use walmgr_protocol::message::partial::{Partial, PartialBegin};
use walmgr_protocol::message::{Error, ErrorCode, Message, Scope};
use walmgr_protocol::names::{Lsn, TimelineId, WalFileName};

use super::{peer_of, plain_site, still_serves};
use crate::support::Site;
use crate::support::backup_set::set_path;
use crate::support::peer::Peer;
use crate::support::place::give_to_server;

fn get(name: WalFileName) -> Message {
    Message::Fetch(Fetch::GetFile(GetFile {
        name,
        compression: 0,
    }))
}

fn begin() -> Message {
    let timeline = TimelineId::FIRST;
    Message::Partial(Partial::Begin(PartialBegin { timeline }))
}

/// Archives a segment, and returns its name.
fn stored(site: &Site, number: u64) -> WalFileName {
    site.write_segment(number);
    let name = site.segment_name(number);
    site.archive(&name).succeed();
    name.parse().unwrap()
}

/// Asks for a set with more than the sockets between the two take: it is under way as long as nobody reads it.
fn get_much(site: &Site) -> Message {
    let set = set_path(site, "data.master");
    fs::create_dir(&set).unwrap();
    let start_time = "2026-01-02 03:04:05 UTC";
    let label = format!(
        "START WAL LOCATION: 0/300028 (file {})\nCHECKPOINT LOCATION: 0/300060\nBACKUP METHOD: streamed\n\
         BACKUP FROM: primary\nSTART TIME: {start_time}\nLABEL: x\nSTART TIMELINE: 1\n",
        site.segment_name(3)
    );
    fs::write(set.join("backup_label"), label).unwrap();
    fs::write(set.join("much"), vec![7; 64 << 20]).unwrap();
    give_to_server(&set);
    Message::Fetch(Fetch::GetSet(GetSet {
        start: Lsn(0x30_0028),
        timestamp: start_time.to_owned(),
        offset: 0,
        compression: 0,
    }))
}

/// Takes a file to its end.
fn fetched(peer: &mut Peer, channel: u16, name: WalFileName) -> u64 {
    peer.send(channel, &get(name));
    loop {
        match peer.answer(channel) {
            Message::Data(_) => {}
            Message::Fetch(Fetch::End(digest)) => return digest.size,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_second_fetch_on_a_connection_meanwhile_breaks_a_rule() {
    let site = plain_site();
    let name = stored(&site, 1);
    let mut peer = peer_of(&site);
    peer.send(1, &get_much(&site));
    assert!(!matches!(peer.answer(1), Message::Error(_)));
    peer.send(2, &get(name));
    let error = loop {
        match peer.receive().expect("words before the end").message {
            Message::Error(error) => break error,
            Message::Fetch(Fetch::End(_)) => panic!("all of it came"),
            _ => {}
        }
    };
    assert_eq!(
        (error.code, error.scope),
        (ErrorCode::Misbehaved, Scope::Connection)
    );
    assert!(error.message.contains("is being fetched"), "{error}");
    assert_eq!(peer.receive(), None);
    let mut peer = peer_of(&site);
    let size = site.facts().cluster.segment_size.bytes();
    assert_eq!(fetched(&mut peer, 2, name), size);
    assert_eq!(fetched(&mut peer, 3, name), size);
}

#[test]
fn a_channel_serves_one_thing_after_another() {
    let site = plain_site();
    let first = stored(&site, 1);
    let mut peer = peer_of(&site);
    let content = site.segment(2, "walmgr");
    fetched(&mut peer, 1, first);
    let second: WalFileName = site.segment_name(2).parse().unwrap();
    peer.offer(1, second, &content);
    assert!(matches!(peer.answer(1), Message::Have(_)));
    peer.upload(1, &content);
    assert!(matches!(peer.answer(1), Message::Stored(_)));
    let size = fetched(&mut peer, 1, second);
    assert_eq!(size, content.len() as u64);
    peer.send(1, &begin());
    assert!(matches!(
        peer.answer(1),
        Message::Partial(Partial::Begun(_))
    ));
    // The stream has the channel from here on.
    peer.offer(1, second, &content);
    let error = peer.last_words();
    assert_eq!(error.code, ErrorCode::Misbehaved, "{error}");
    still_serves(&site, 3);
}

#[test]
fn a_stream_that_was_given_up_goes_on_on_another_channel() {
    let site = plain_site();
    stored(&site, 1);
    let mut peer = peer_of(&site);
    for channel in [2, 3, 2] {
        peer.send(channel, &begin());
        let answer = peer.answer(channel);
        assert!(
            matches!(answer, Message::Partial(Partial::Begun(_))),
            "{answer:?}"
        );
        let given_up = Error::channel(ErrorCode::Abandoned, "it has nothing to ship", "");
        peer.send(channel, &Message::Error(given_up));
    }
    // Uploads go on beside it.
    let content = site.segment(2, "walmgr");
    peer.offer(1, site.segment_name(2).parse().unwrap(), &content);
    assert!(matches!(peer.answer(1), Message::Have(_)));
    peer.upload(1, &content);
    assert!(matches!(peer.answer(1), Message::Stored(_)));
}
