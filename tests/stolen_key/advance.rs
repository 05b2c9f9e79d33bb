//! Names that a stolen key takes before the genuine master needs them.
//! Never has a person choose. Invariant tested: the genuine file goes on with what is before it, so it gets
//! its name with exit code 0; the other is kept beside it and told.

use walmgr_protocol::message::Message;
use walmgr_protocol::message::WireVerify;
use walmgr_protocol::message::partial::{Open, Partial, PartialBegin};
use walmgr_protocol::names::Lsn;

use crate::support::hostile::{Key, ask, ship_on, store};
use crate::support::place::server_user;
use crate::support::{Output, Site};

fn genuine(site: &Site, numbers: std::ops::Range<u64>) {
    for number in numbers {
        site.write_segment(number);
        site.archive(&site.segment_name(number)).succeed();
    }
}

fn forge(site: &Site, thief: &Key, number: u64) {
    let name = site.segment_name(number).parse().unwrap();
    let content = site.forged_segment(number);
    store(
        &mut thief.connect(site),
        name,
        &content,
        WireVerify::Records,
    )
    .unwrap();
}

fn took_its_place(site: &Site, number: u64) {
    let name = site.segment_name(number);
    assert!(
        site.archived(&name) == site.segment(number, "walmgr"),
        "{name}"
    );
    let kept = format!("{name}.displaced");
    assert!(
        site.archived(&kept) == site.forged_segment(number),
        "{kept}"
    );
    let told = format!("ALARM: {name} of thief");
    assert!(site.receiver.log().contains(&told), "{told}");
}

#[test]
fn fault_113_name_taken_in_advance_goes_to_what_continues_the_archive() {
    let _user = skip_unless!(server_user());
    let site = Site::builder()
        .standby_set("archive_ahead_max", "8")
        .build();
    genuine(&site, 3..5);
    let thief = Key::authorized(&site, "thief", "push");
    // Near enough to be expected, and so far ahead that they are set apart.
    for number in [6, 7, 20] {
        forge(&site, &thief, number);
    }
    genuine(&site, 5..6);
    // From here on a standby waits for the genuine one.
    let got = site.home().join("got");
    let name = site.segment_name(6);
    let data = site.home().join("replaying");
    std::fs::create_dir_all(data.join("pg_wal")).unwrap();
    std::fs::write(data.join("standby.signal"), "").unwrap();
    let mut asks = site.standby_walmgr(&["xrestore", &name, &got.display().to_string()]);
    let absent = Output::of(asks.current_dir(&data));
    assert_eq!(absent.code, Some(1), "{}", absent.stderr);
    genuine(&site, 6..22);
    for number in [6, 7, 20] {
        took_its_place(&site, number);
        let name = site.segment_name(number);
        let words = ["xrestore", &name, &got.display().to_string()];
        site.standby_command(&words).succeed();
    }
    // The other way round nothing gives way, as often as it is tried.
    for number in [5, 6, 20] {
        let name = site.segment_name(number).parse().unwrap();
        let content = site.forged_segment(number);
        let mut peer = thief.connect(&site);
        assert!(store(&mut peer, name, &content, WireVerify::Records).is_err());
        let stored = site.archived(&site.segment_name(number));
        assert!(stored == site.segment(number, "walmgr"));
        // Nor is what gave way lost to what is offered then.
        let kept = format!("{}.displaced", site.segment_name(number));
        assert!(number == 5 || site.archived(&kept) == site.forged_segment(number));
    }
}

#[test]
fn fault_113_shipped_segment_gets_the_name_taken_in_advance() {
    let _user = skip_unless!(server_user());
    let site = Site::start();
    genuine(&site, 3..5);
    let thief = Key::authorized(&site, "thief", "push");
    forge(&site, &thief, 6);
    let master = Key::stolen(&site);
    let mut peer = master.connect(&site);
    let timeline = site.facts().timeline;
    let begin = Message::Partial(Partial::Begin(PartialBegin { timeline }));
    ask(&mut peer, 1, &begin).unwrap();
    for number in [5, 6] {
        let name = site.segment_name(number).parse().unwrap();
        let content = site.segment(number, "walmgr");
        let end = Lsn(number << 20);
        ship_on(&mut peer, name, &content, end, false).unwrap();
    }
    genuine(&site, 5..7);
    took_its_place(&site, 6);
}

#[test]
fn fault_113_the_stream_is_not_told_of_segments_that_came_in_advance() {
    let _user = skip_unless!(server_user());
    let site = Site::start();
    genuine(&site, 3..5);
    let thief = Key::authorized(&site, "thief", "push");
    forge(&site, &thief, 9);
    let master = Key::stolen(&site);
    let mut peer = master.connect(&site);
    let timeline = site.facts().timeline;
    let begin = Message::Partial(Partial::Begin(PartialBegin { timeline }));
    match ask(&mut peer, 1, &begin).unwrap() {
        Message::Partial(Partial::Begun(begun)) => {
            let newest = site.segment_name(4).parse().unwrap();
            assert_eq!(begun.newest_finished, Some(newest));
        }
        other => panic!("{other:?}"),
    }
    // It can be opened, as if nothing was there.
    let open = Open {
        segment: site.segment_name(9).parse().unwrap(),
        bytes: 0,
        crc32: 0,
    };
    match ask(&mut peer, 1, &Message::Partial(Partial::Open(open))).unwrap() {
        Message::Partial(Partial::At(at)) => assert_eq!(at.held_bytes, 0),
        other => panic!("{other:?}"),
    }
}

#[test]
fn fault_110_history_forged_in_advance_gives_way_to_the_genuine_one() {
    let _user = skip_unless!(server_user());
    let site = Site::start();
    genuine(&site, 3..6);
    let thief = Key::authorized(&site, "thief", "push");
    let name = "00000002.history";
    for forged in ["1\t0/480000\tforged\n", "1\t0/FF00000\tforged\n"] {
        let mut peer = thief.connect(&site);
        let stored = store(
            &mut peer,
            name.parse().unwrap(),
            forged.as_bytes(),
            WireVerify::Off,
        );
        stored.unwrap();
    }
    // A segment of the timeline from before it begins contradicts nothing either.
    let early = crate::support::imitation::segment_of(
        &site.facts().cluster,
        walmgr_protocol::names::TimelineId::new(2).unwrap(),
        2,
        "forged",
    );
    let early_name = "000000020000000000000002";
    store(
        &mut thief.connect(&site),
        early_name.parse().unwrap(),
        &early,
        WireVerify::Records,
    )
    .unwrap();
    // The failover that really takes place, elsewhere.
    let genuine = "1\t0/600000\tno recovery target specified\n";
    site.write_wal(name, genuine);
    site.archive(name).succeed();
    assert_eq!(site.archived(name), genuine.as_bytes());
    let two = walmgr_protocol::names::TimelineId::new(2).unwrap();
    let content = crate::support::imitation::segment_of(&site.facts().cluster, two, 6, "walmgr");
    let first = "000000020000000000000006";
    site.write_wal(first, &content);
    site.archive(first).succeed();
    let claimed = site
        .completed_wals()
        .join(".apart/00000002.history.claimed");
    assert!(claimed.exists(), "{}", site.receiver.log());
    let got = site.home().join("got");
    let words = ["xrestore", first, &got.display().to_string()];
    site.standby_command(&words).succeed();
}
