//! What one key can take from others: connections, the stream of records, room for segments.
//! Never lets a key have more than it takes. Invariant: the genuine master archives at its first try.

use std::time::Duration;
use walmgr_protocol::message::partial::{Open, Partial, PartialBegin};

use walmgr::test_support::receiver::UPLOADS_MAX;
use walmgr_protocol::limits::{CHANNELS_MAX, STRAY_SEGMENTS_MAX};
use walmgr_protocol::message::{Data, Error, ErrorCode, Message};
use walmgr_protocol::names::{Lsn, SegmentName};

use super::still_serves;
use crate::support::hostile::{Key, Refused, ask, next, ship, ship_on};
use crate::support::peer::{Peer, offer_of};
use crate::support::{Site, soak, wait_for};

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
    let answer = ask(&mut held[55], 0, &Message::OverviewRequest);
    assert!(matches!(answer, Ok(Message::Overview(_))), "{answer:?}");
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
    let answer = ask(&mut held[0], 0, &Message::OverviewRequest);
    assert!(matches!(answer, Ok(Message::Overview(_))), "{answer:?}");
}

#[test]
fn fault_116_segments_in_progress_that_follow_nothing_are_bounded() {
    let site = Site::start();
    still_serves(&site, 1);
    let thief = Key::authorized(&site, "thief", "push");
    let timeline = site.facts().timeline;
    let begin = Message::Partial(Partial::Begin(PartialBegin { timeline }));
    // A moment after a refused one has left, the place is free.
    let connect = |key: &Key| {
        wait_for("the place", Duration::from_secs(60), || {
            let mut peer = key.connect(&site);
            ask(&mut peer, 1, &begin).ok().map(|_| peer)
        })
    };
    // One record each, one behind the other and with holes between.
    let mut refused = String::new();
    let mut peer = connect(&thief);
    for number in (20..40).chain((50..70).step_by(2)) {
        let segment: SegmentName = site.segment_name(number).parse().unwrap();
        let content = site.segment(number, "forged");
        let shipped = ship_on(
            &mut peer,
            segment,
            &content[..9_000],
            Lsn(number << 20),
            false,
        );
        if let Err(error) = shipped {
            refused = error.words();
            drop(peer);
            peer = connect(&thief);
        }
    }
    assert!(
        refused.contains("continues no WAL of this archive"),
        "{refused}"
    );
    drop(peer);
    let held = std::fs::read_dir(site.partial_wals()).unwrap().flatten();
    let held = held.filter(|entry| entry.file_name().len() == 24).count();
    assert!(held <= STRAY_SEGMENTS_MAX + 1, "{held}");
    // The genuine stream goes on behind what is archived, as far as it likes.
    let mut peer = connect(&Key::stolen(&site));
    for number in 2..20 {
        let segment = site.segment_name(number).parse().unwrap();
        let content = site.segment(number, "walmgr");
        let shipped = ship_on(&mut peer, segment, &content, Lsn(number << 20), false);
        shipped.unwrap_or_else(|error| panic!("{number}: {}", error.words()));
    }
    still_serves(&site, 2);
}

#[test]
fn fault_116_a_stream_that_the_archive_contradicts_gives_its_place_up() {
    let site = Site::start();
    still_serves(&site, 1);
    let thief = Key::authorized(&site, "thief", "push");
    let mut peer = thief.connect(&site);
    let timeline = site.facts().timeline;
    let name = |number| site.segment_name(number).parse::<SegmentName>().unwrap();
    let forged = site.segment(2, "forged");
    ship(
        &mut peer,
        name(2),
        timeline,
        &forged[..9_000],
        Lsn(2 << 20),
        false,
    )
    .unwrap();
    let master = Key::stolen(&site);
    let genuine = |number: u64| {
        let content = site.segment(number, "walmgr");
        let mut peer = master.connect(&site);
        ship(
            &mut peer,
            name(number),
            timeline,
            &content,
            Lsn(number << 20),
            false,
        )
    };
    assert!(genuine(3).unwrap_err().words().contains("thief"));
    // The archiver brings what the thief said to be something else.
    still_serves(&site, 2);
    genuine(3).unwrap_or_else(|error| panic!("{}", error.words()));
    let open = Message::Partial(Partial::Open(Open {
        segment: name(4),
        bytes: 0,
        crc32: 0,
    }));
    assert!(ask(&mut peer, 1, &open).is_err());
}

#[test]
fn fault_116_segments_that_are_opened_without_a_record_take_no_room() {
    let site = Site::start();
    still_serves(&site, 1);
    let thief = Key::authorized(&site, "thief", "push");
    let mut peer = thief.connect(&site);
    let timeline = site.facts().timeline;
    let say = Message::Partial;
    ask(
        &mut peer,
        1,
        &say(Partial::Begin(PartialBegin { timeline })),
    )
    .unwrap();
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

/// One connection of several masters, all of whose channels are amid uploads.
struct Busy {
    peer: Peer,
    begun: Vec<u16>,
}

impl Busy {
    /// Offers a segment on each of these channels, and hears whether it may come: nobody waits for the others.
    fn offer(&mut self, site: &Site, channels: &[u16], first: u64) {
        for channel in channels {
            let content = site.segment(first + u64::from(*channel), "walmgr");
            let name = site.segment_name(first + u64::from(*channel));
            let offer = offer_of(name.parse().unwrap(), &content);
            self.peer.send(*channel, &Message::Offer(offer));
        }
        let mut open: Vec<u16> = channels.to_vec();
        while !open.is_empty() {
            let frame = self.peer.receive().expect("an answer, not the end");
            match frame.message {
                Message::Ping => self.peer.send(frame.channel, &Message::Pong),
                Message::Have(_) => {
                    open.retain(|channel| *channel != frame.channel);
                    self.begun.push(frame.channel);
                }
                Message::Error(error) if error.code == ErrorCode::Busy => {
                    open.retain(|channel| *channel != frame.channel);
                }
                // Of the upload before, which was given up meanwhile.
                Message::Error(error) if error.code == ErrorCode::Malformed => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Gives its uploads up, each behind a block that no upload takes; says on which channels.
    fn give_up(&mut self) -> Vec<u16> {
        let given_up = std::mem::take(&mut self.begun);
        for channel in &given_up {
            let garbage = Message::Data(Data {
                offset: 0,
                raw_bytes: 100,
                zstd: true,
                bytes: (&b"no zstd"[..]).into(),
            });
            let never_mind = Error::channel(ErrorCode::Abandoned, "never mind", "");
            self.peer.send(*channel, &garbage);
            self.peer.send(*channel, &Message::Error(never_mind));
        }
        given_up
    }
}

#[test]
fn fault_116_masters_whose_uploads_take_every_place_do_not_deadlock() {
    let site = Site::builder()
        .standby_set("max_connections", "120")
        .build();
    let keys = ["db1", "db2", "db3"].map(|name| Key::authorized(&site, name, "push"));
    let mut all: Vec<Busy> = (0..72)
        .map(|number| Busy {
            peer: keys[number % 3].connect(&site),
            begun: Vec::new(),
        })
        .collect();
    let channels: Vec<u16> = (1..=CHANNELS_MAX).collect();
    let first = |number: usize| 10 + number as u64 * 4;
    for (number, busy) in all.iter_mut().enumerate() {
        busy.offer(&site, &channels, first(number));
    }
    let held: usize = all.iter().map(|busy| busy.begun.len()).sum();
    assert_eq!(held, UPLOADS_MAX, "every place is taken");
    // What they give up says its last words while the next is offered.
    for _ in 0..3 {
        for (number, busy) in all.iter_mut().enumerate() {
            let again = busy.give_up();
            busy.offer(&site, &again, first(number));
        }
    }
    // Whoever finds no place hears so, and not nothing.
    let held: usize = all.iter().map(|busy| busy.begun.len()).sum();
    assert!(held > UPLOADS_MAX / 2, "{held}");
    for busy in &mut all {
        busy.give_up();
    }
    site.write_segment(1);
    let name = site.segment_name(1);
    wait_for("the genuine master's turn", Duration::from_secs(60), || {
        (site.archive(&name).code == Some(0)).then_some(())
    });
    // And all the others are as good as before.
    for busy in &mut all {
        let answer = ask(&mut busy.peer, 0, &Message::OverviewRequest);
        assert!(
            matches!(&answer, Ok(Message::Overview(_)) | Err(Refused::InWords(_))),
            "{answer:?}"
        );
    }
}
