//! A failover that a stolen key makes up exactly at the end of the archived WAL, with records that chain.
//! Never tells the receiver which of the two lines is right. Invariant tested: the genuine master archives
//! and ships on, both lines stay, and readers follow the one that leads further.

use std::time::Duration;

use walmgr_protocol::message::partial::{Partial, PartialBegin};
use walmgr_protocol::message::{Message, WireVerify};
use walmgr_protocol::names::{Lsn, SegmentName, TimelineId};

use crate::support::hostile::{Key, ask, ship, ship_on, store};
use crate::support::imitation::segment_of;
use crate::support::place::server_user;
use crate::support::{Output, Site, wait_for};

const HISTORY: &str = "00000002.history";

fn two() -> TimelineId {
    TimelineId::new(2).unwrap()
}

fn forged_name(site: &Site, number: u64) -> SegmentName {
    SegmentName::from_number(two(), number, site.facts().cluster.segment_size)
}

/// Segments 3 and 4 are genuine; then a thief forges timeline 2 from segment 5 on.
fn forged_failover(forged: std::ops::Range<u64>) -> (Site, Key) {
    let site = Site::start();
    archive(&site, 3..5);
    let thief = Key::authorized(&site, "thief", "push");
    let mut peer = thief.connect(&site);
    let text = b"1\t0/500000\tforged\n";
    store(&mut peer, HISTORY.parse().unwrap(), text, WireVerify::Off).unwrap();
    for number in forged {
        let content = segment_of(&site.facts().cluster, two(), number, "forged");
        let name = forged_name(&site, number).to_string();
        store(
            &mut peer,
            name.parse().unwrap(),
            &content,
            WireVerify::Records,
        )
        .unwrap();
    }
    (site, thief)
}

fn archive(site: &Site, numbers: std::ops::Range<u64>) {
    for number in numbers {
        site.write_segment(number);
        site.archive(&site.segment_name(number)).succeed();
    }
}

fn restored(site: &Site, name: &str) -> Output {
    let got = site.home().join("got");
    site.standby_command(&["xrestore", name, &got.display().to_string()])
}

#[test]
fn fault_110_a_forged_failover_gives_way_to_the_master_that_goes_on() {
    let _user = skip_unless!(server_user());
    let (site, _thief) = forged_failover(5..6);
    restored(&site, HISTORY).succeed();
    // Stored and acknowledged, and told with the keys of both.
    archive(&site, 5..6);
    let status = site.standby_command(&["status"]);
    let told = format!("{}{}", status.stdout, status.stderr);
    for part in [
        "of master",
        "00000002.history of thief",
        "choose 00000002.history",
    ] {
        assert!(told.contains(part), "{part} is not in: {told}");
    }
    // It leads further now.
    archive(&site, 6..8);
    for number in 5..8 {
        restored(&site, &site.segment_name(number)).succeed();
    }
    assert_eq!(restored(&site, HISTORY).code, Some(1));
    let told = site.standby_command(&["choose", HISTORY]).succeed();
    for part in [
        "thief",
        "timeline 1 at 0/500000, but that one goes on to",
        "master",
    ] {
        assert!(told.contains(part), "{part} is not in: {told}");
    }
    // The forged segment is there for whoever wants to see it.
    assert!(site.holds(&forged_name(&site, 5).to_string()));
}

#[test]
fn fault_110_a_forged_failover_keeps_no_stream_out() {
    let _user = skip_unless!(server_user());
    let (site, thief) = forged_failover(5..6);
    // The thief holds the writer lock, and ships on.
    let mut peer = thief.connect(&site);
    let content = segment_of(&site.facts().cluster, two(), 6, "forged");
    ship(
        &mut peer,
        forged_name(&site, 6),
        two(),
        &content[..9_000],
        Lsn(6 << 20),
        false,
    )
    .unwrap();
    drop(peer);
    let master = Key::stolen(&site);
    let mut peer = master.connect(&site);
    let timeline = site.facts().timeline;
    let begin = Message::Partial(Partial::Begin(PartialBegin { timeline }));
    // The thief's place is free a moment after it left.
    wait_for("the place", Duration::from_secs(60), || {
        peer = master.connect(&site);
        ask(&mut peer, 1, &begin).ok()
    });
    for number in 5..8 {
        let name = site.segment_name(number).parse().unwrap();
        let content = site.segment(number, "walmgr");
        let shipped = ship_on(&mut peer, name, &content, Lsn(number << 20), false);
        shipped.unwrap_or_else(|refused| panic!("{}", refused.words()));
    }
    // Records alone outgrew it.
    site.receiver
        .wait_for_log("readers follow timeline 1 again");
    assert_eq!(restored(&site, HISTORY).code, Some(1));
    archive(&site, 5..8);
}

#[test]
fn fault_110_a_person_settles_a_failover_either_way() {
    let _user = skip_unless!(server_user());
    let (site, _thief) = forged_failover(5..7);
    archive(&site, 5..6);
    let said = site.standby_command(&["choose", HISTORY]).succeed();
    assert!(said.contains("because thief ("), "{said}");
    site.standby_command(&["choose", HISTORY, "--take"])
        .succeed();
    archive(&site, 6..10);
    restored(&site, HISTORY).succeed();
    let master = Key::stolen(&site);
    let name = site.segment_name(10).parse().unwrap();
    let content = site.segment(10, "walmgr");
    let mut peer = master.connect(&site);
    let refused = ship(
        &mut peer,
        name,
        site.facts().timeline,
        &content,
        Lsn(10 << 20),
        false,
    );
    assert!(
        refused
            .unwrap_err()
            .words()
            .contains("has timeline 2 already")
    );
}

/// The right to fail over leads readers away, and still takes nothing that was acknowledged.
#[test]
fn fault_234_a_stolen_key_that_fails_over_loses_no_acknowledged_wal() {
    let _user = skip_unless!(server_user());
    let mut site = Site::builder()
        .standby_set("audit_log", "audit.log")
        .build();
    archive(&site, 3..6);
    let thief = Key::authorized(&site, "thief", "push,failover");
    let mut peer = thief.connect(&site);
    let text = b"1\t0/480000\tforged\n";
    store(&mut peer, HISTORY.parse().unwrap(), text, WireVerify::Off).unwrap();
    restored(&site, HISTORY).succeed();
    let audit = site.standby_ini().with_file_name("audit.log");
    wait_for("who did it", Duration::from_secs(60), || {
        let told = std::fs::read_to_string(&audit).unwrap();
        let mut told = told.lines();
        told.find(|line| line.contains("\"timeline_brought\"") && line.contains("\"thief\""))
            .map(drop)
    });
    // Whatever is read now, the master archives on, and all of it is there.
    archive(&site, 6..9);
    let kept = |site: &Site| {
        (3..9).all(|number| {
            site.archived(&site.segment_name(number)) == site.segment(number, "walmgr")
        })
    };
    assert!(kept(&site));
    let told = site.standby_command(&["status"]).stdout;
    assert!(told.contains("apart"), "{told}");
    // The way back: the key goes, its history is taken away by hand, and readers are where they were.
    site.standby_command(&["revoke", "thief"]).succeed();
    site.receiver.stop();
    let history = site.completed_wals().join(HISTORY);
    std::fs::rename(&history, site.home().join("evidence")).unwrap();
    site.start_receiver();
    for number in 3..9 {
        restored(&site, &site.segment_name(number)).succeed();
    }
    assert!(kept(&site));
    archive(&site, 9..10);
    restored(&site, &site.segment_name(9)).succeed();
}

#[test]
fn fault_110_forged_failover_without_chained_records_is_not_followed() {
    let _user = skip_unless!(server_user());
    let (site, thief) = forged_failover(0..0);
    let mut forged = site.forged_segment(5);
    // The timeline in its first page.
    forged[4] = 2;
    let name = forged_name(&site, 5).to_string();
    let mut peer = thief.connect(&site);
    let stored = store(
        &mut peer,
        name.parse().unwrap(),
        &forged,
        WireVerify::Records,
    );
    let _may_be_refused = stored;
    assert_eq!(restored(&site, HISTORY).code, Some(1));
    archive(&site, 5..7);
    restored(&site, &site.segment_name(6)).succeed();
}
