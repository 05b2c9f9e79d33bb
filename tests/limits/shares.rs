//! What one key can take from others: connections, the stream of records, room for segments.
//! Never lets a key have more than it takes. Invariant: the genuine master archives at its first try.

use walmgr_protocol::message::partial::{Begin, Open, Partial};
use walmgr_protocol::message::{ErrorCode, Message};

use super::still_serves;
use crate::support::hostile::{Key, Refused, ask, next};
use crate::support::{Site, soak};

#[test]
fn fault_116_a_key_that_only_reads_cannot_hold_all_connections() {
    let site = Site::start();
    let reader = Key::authorized(&site, "reader", "read");
    let mut held: Vec<_> = (0..57).map(|_| reader.connect(&site)).collect();
    let mut late = held.pop().unwrap();
    match next(&mut late) {
        Err(Refused::InWords(error)) => {
            assert_eq!(error.code, ErrorCode::Busy);
            assert!(error.message.contains("do not push"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    still_serves(&site, 1);
    // Those that it may have are as good as before.
    let answer = ask(&mut held[55], 0, &Message::StatusRequest);
    assert!(matches!(answer, Ok(Message::Status(_))), "{answer:?}");
}

#[test]
fn fault_116_a_key_that_holds_all_connections_gives_one_up() {
    let site = Site::builder().standby_set("max_connections", "8").build();
    let thief = Key::authorized(&site, "thief", "push");
    let mut held: Vec<_> = (0..8).map(|_| thief.connect(&site)).collect();
    still_serves(&site, 1);
    match next(held.last_mut().unwrap()) {
        Err(Refused::InWords(error)) => assert_eq!(error.code, ErrorCode::Busy),
        other => panic!("{other:?}"),
    }
    let answer = ask(&mut held[0], 0, &Message::StatusRequest);
    assert!(matches!(answer, Ok(Message::Status(_))), "{answer:?}");
}

#[test]
fn fault_116_segments_that_are_opened_without_a_record_take_no_room() {
    let site = Site::start();
    still_serves(&site, 1);
    let thief = Key::authorized(&site, "thief", "push");
    let mut peer = thief.connect(&site);
    let timeline = site.facts().timeline;
    let say = Message::Partial;
    ask(&mut peer, 1, &say(Partial::Begin(Begin { timeline }))).unwrap();
    let count = if soak() { 3_000 } else { 300 };
    for number in 2..count + 2 {
        let open = Open {
            segment: site.segment_name(number).parse().unwrap(),
            bytes: 0,
            crc32: 0,
        };
        let answer = ask(&mut peer, 1, &say(Partial::Open(open)));
        assert!(
            matches!(answer, Ok(Message::Partial(Partial::At(_)))),
            "{answer:?}"
        );
    }
    let held: Vec<_> = std::fs::read_dir(site.partial_wals())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.len() == 24)
        .collect();
    assert_eq!(held, [""; 0]);
    still_serves(&site, 2);
}
