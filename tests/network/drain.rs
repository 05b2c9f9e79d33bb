//! A receiver that is asked to end while files are on their way, and two clients with one name.

use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use walmgr_protocol::message::{ErrorCode, Message};
use walmgr_protocol::names::WalFileName;

use super::{Running, half_way};
use crate::support::peer::Peer;
use crate::support::place::give_to_server;
use crate::support::{Site, soak, wait_for};

#[test]
fn a_receiver_that_is_asked_to_end_completes_the_upload_under_way() {
    for (signal, tls) in [(Signal::TERM, true), (Signal::INT, false)] {
        let builder = Site::builder().proxied();
        let mut site = if tls { builder } else { builder.plain() }.build();
        let name = site.segment_name(4);
        site.write_segment(4);
        let running = half_way(&site, &name, Duration::from_secs(2));
        let limit = Duration::from_secs(10);
        // A connection without an upload is not waited for.
        let idle = (!tls).then(|| Peer::connect(site.address(), None));
        site.receiver.signal(signal);
        if let Some(mut idle) = idle {
            let error = idle.last_words();
            assert_eq!(error.code, ErrorCode::ShuttingDown);
        }
        wait_for("the port to be closed", limit, || {
            TcpStream::connect(site.address()).is_err().then_some(())
        });
        assert!(site.receiver.is_running(), "it left the upload alone");
        running.end(limit).succeed();
        assert!(site.receiver.wait().success(), "{signal:?}");
        assert!(site.receiver.log().contains("receiver stopped"));
        assert_eq!(site.archived(&name), site.segment(4, "walmgr"));
        assert!(site.temporaries().is_empty());
    }
}

#[test]
fn an_offer_to_a_receiver_that_is_ending_is_refused_in_words() {
    let mut site = Site::builder().plain().build();
    let cluster = Some(site.facts().cluster);
    let segment = site.segment(1, "first");
    let name = |number| -> WalFileName { site.segment_name(number).parse().unwrap() };
    let mut peer = Peer::connect(site.address(), cluster);
    peer.offer(1, name(1), &segment);
    assert!(matches!(peer.answer(1), Message::Have(_)));
    let other = name(2);
    site.receiver.signal(Signal::TERM);
    wait_for("the port to be closed", Duration::from_secs(5), || {
        TcpStream::connect(site.address()).is_err().then_some(())
    });
    peer.offer(2, other, &segment);
    assert_eq!(peer.refusal().code, ErrorCode::ShuttingDown);
    peer.upload(1, &segment);
    assert!(matches!(peer.answer(1), Message::Stored(_)));
    assert_eq!(peer.last_words().code, ErrorCode::ShuttingDown);
    assert!(site.receiver.wait().success());
}

#[test]
fn unfinished_upload_delays_the_end_for_its_bound_only() {
    let mut site = Site::builder().plain().build();
    let segment = site.segment(1, "first");
    let name: WalFileName = site.segment_name(1).parse().unwrap();
    let mut peer = Peer::connect(site.address(), Some(site.facts().cluster));
    peer.offer(1, name, &segment);
    assert!(matches!(peer.answer(1), Message::Have(_)));
    let begin = Instant::now();
    site.receiver.signal(Signal::TERM);
    assert!(site.receiver.wait().success());
    let elapsed = begin.elapsed();
    let bound = walmgr::test_support::receiver::DRAIN_DEADLINE;
    assert!(
        elapsed > bound / 2 && elapsed < bound + Duration::from_secs(6),
        "{elapsed:?}"
    );
    assert!(site.temporaries().is_empty());
}

#[test]
fn the_service_manager_goes_on_hearing_from_a_receiver_that_drains() {
    let mut site = Site::builder().plain().build();
    site.receiver.stop();
    let path = site.home().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    give_to_server(&path);
    socket
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut command = site.receiver_walmgr();
    command.env("NOTIFY_SOCKET", &path);
    command.env("WATCHDOG_USEC", "1000000");
    site.receiver.start(&mut command).unwrap();
    let next = || {
        let mut message = [0; 256];
        let length = socket.recv(&mut message).unwrap();
        let text = String::from_utf8_lossy(&message[..length]).into_owned();
        text.lines().next().unwrap_or_default().to_owned()
    };
    let mut peer = Peer::connect(site.address(), Some(site.facts().cluster));
    let name: WalFileName = site.segment_name(1).parse().unwrap();
    peer.offer(1, name, &site.segment(1, "first"));
    assert!(matches!(peer.answer(1), Message::Have(_)));
    site.receiver.signal(Signal::TERM);
    while next() != "STOPPING=1" {}
    for _ in 0..3 {
        assert_eq!(next(), "WATCHDOG=1");
    }
    drop(peer);
    assert!(site.receiver.wait().success());
}

#[test]
fn fault_83_two_clients_with_one_name_agree_or_the_second_conflicts() {
    let mut site = Site::start();
    let rounds = if soak() { 50 } else { 6 };
    for round in 0..rounds {
        let name = site.segment_name(round);
        site.write_segment(round);
        let twin = site.home().write("twin", site.segment(round, "walmgr"));
        let mut command = site.xarchive_walmgr(&twin, &name);
        let other = Running::spawn(&mut command);
        let one = Running::start(&site, &name);
        for running in [one, other] {
            running.end(Duration::from_secs(20)).succeed();
        }
        assert_eq!(site.archived(&name), site.segment(round, "walmgr"));
    }
    for round in 100..100 + rounds {
        let name = site.segment_name(round);
        site.write_segment(round);
        let twin = site.home().write("twin", site.segment(round, "another"));
        let mut command = site.xarchive_walmgr(&twin, &name);
        let other = Running::spawn(&mut command);
        let one = Running::start(&site, &name);
        let limit = Duration::from_secs(20);
        let mut codes = [one.end(limit).code, other.end(limit).code];
        let kept = if codes[0] == Some(0) {
            "walmgr"
        } else {
            "another"
        };
        codes.sort();
        assert_eq!(codes, [Some(0), Some(3)]);
        assert_eq!(site.archived(&name), site.segment(round, kept));
    }
    assert!(site.temporaries().is_empty());
    assert!(site.receiver.log().contains("CONFLICT"));
    assert!(site.receiver.is_running());
}
