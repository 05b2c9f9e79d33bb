//! What one key can take from others: connections, the stream of records, room for segments.
//! Never lets a key have more than it takes. Invariant: the genuine master archives at its first try.

use walmgr_protocol::message::{ErrorCode, Message};

use super::still_serves;
use crate::support::Site;
use crate::support::hostile::{Key, Refused, ask, next};

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
