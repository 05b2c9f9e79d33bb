//! What a peer may use its channels for: one thing at a time, one fetch and one stream a connection.

use walmgr_protocol::message::fetch::{Fetch, GetFile};
use walmgr_protocol::message::partial::{Begin, Partial};
use walmgr_protocol::message::{Error, ErrorCode, Message, Scope};
use walmgr_protocol::names::{TimelineId, WalFileName};

use super::{peer_of, plain_site, still_serves};
use crate::support::Site;
use crate::support::peer::Peer;

fn get(name: WalFileName) -> Message {
    Message::Fetch(Fetch::GetFile(GetFile {
        name,
        compression: 0,
    }))
}

fn begin() -> Message {
    let timeline = TimelineId::FIRST;
    Message::Partial(Partial::Begin(Begin { timeline }))
}

/// Archives a segment, and returns its name.
fn stored(site: &Site, number: u64) -> WalFileName {
    site.write_segment(number);
    let name = site.segment_name(number);
    site.archive(&name).succeed();
    name.parse().unwrap()
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
    // More than the sockets between the two take, so it cannot have ended.
    let site = Site::builder().plain().segment_size_mb(64).build();
    let name = stored(&site, 1);
    let mut peer = peer_of(&site);
    peer.send(1, &get(name));
    assert!(matches!(peer.answer(1), Message::Data(_)));
    peer.send(2, &get(name));
    let error = loop {
        match peer.receive().expect("words before the end").message {
            Message::Error(error) => break error,
            Message::Data(_) => {}
            other => panic!("{other:?}"),
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
