//! Certificates of an authority: which names may come in, with which rights, and for how long.
//! Never trusts a certificate because of its authority alone. Invariant: whoever is in no list has no
//! rights, and no connection is older than the certificate it was made with.

use std::time::{Duration, Instant, SystemTime};

use rcgen::{CertificateParams, DnType, SanType};
use rustix::process::Signal;
use walmgr_protocol::message::{ErrorCode, Message};
use walmgr_protocol::names::SegmentName;

use super::{Refused, authorize_names, renew, sign, unchanged, with_authority};
use crate::network::half_way;
use crate::support::Site;
use crate::support::hostile::{Key, ship};

/// How long a certificate holds that ends while its holder is connected.
const SHORT: Duration = Duration::from_secs(5);

/// Far longer than anything takes that is about to happen.
const PATIENCE: Duration = Duration::from_secs(60);

fn short(parameters: &mut CertificateParams) {
    parameters.not_after = (SystemTime::now() + SHORT).into();
}

#[test]
fn fault_117_a_certificate_in_no_list_has_no_rights() {
    let (site, ours) = with_authority();
    sign(site.master_ini(), &ours, "www.example", unchanged);
    Refused {
        code: 4,
        client: "is not in the receiver's authorized_names",
        receiver: "the certificate is for \"www.example\"",
    }
    .check("a web server of the same authority", &site);
    // A key that is in the list of keys, and an empty list of names.
    authorize_names(&site, "");
    site.receiver.signal(Signal::HUP);
    site.receiver.wait_for_log("settings and keys reloaded");
    sign(site.master_ini(), &ours, "master.example", unchanged);
    let line = site.archive(&site.segment_name(1)).stderr;
    assert!(line.contains("authorized_names"), "{line}");
    assert_eq!(site.archived_names(), [""; 0]);
}

#[test]
fn fault_117_a_uri_or_a_common_name_is_matched_with_its_rights() {
    let (mut site, ours) = with_authority();
    authorize_names(&site, "spiffe://example.org/db1\ndb 2\n");
    site.receiver.signal(Signal::HUP);
    site.receiver.wait_for_log("authorized_names, line 2");
    authorize_names(&site, "spiffe://example.org/db1\ndb2 read\n");
    site.restart_receiver();
    site.write_segment(1);
    let name = site.segment_name(1);
    sign(site.master_ini(), &ours, "x", |parameters| {
        let uri = "spiffe://example.org/db1".try_into().unwrap();
        parameters.subject_alt_names = vec![SanType::URI(uri)];
        parameters
            .distinguished_name
            .push(DnType::CommonName, "db2");
    });
    site.archive(&name).succeed();
    sign(site.master_ini(), &ours, "x", |parameters| {
        parameters.subject_alt_names.clear();
        parameters
            .distinguished_name
            .push(DnType::CommonName, "db2");
    });
    let ended = site.archive(&name);
    let line = ended.fail(4);
    assert!(line.contains("db2 lacks the right `push`"), "{line}");
}

#[test]
fn fault_120_a_name_taken_off_the_list_ends_its_connection() {
    let (mut site, _ours) = with_authority();
    let proxy = crate::support::proxy::Proxy::start(site.address());
    site.route(proxy.address());
    site.proxy = Some(proxy);
    site.write_segment(1);
    let running = half_way(&site, &site.segment_name(1), Duration::from_secs(4));
    authorize_names(&site, "other.example\n");
    site.receiver.signal(Signal::HUP);
    let ended = running.end(Duration::from_secs(10));
    let line = ended.fail(4);
    assert!(
        line.contains("is not in the receiver's authorized_names"),
        "{line}"
    );
    assert_eq!(site.archived_names(), [""; 0]);
}

#[test]
fn fault_120_an_upload_ends_with_its_certificate() {
    let (mut site, ours) = with_authority();
    let proxy = crate::support::proxy::Proxy::start(site.address());
    site.route(proxy.address());
    site.proxy = Some(proxy);
    site.write_segment(1);
    sign(site.master_ini(), &ours, "master.example", short);
    let running = half_way(&site, &site.segment_name(1), SHORT * 2);
    let ended = running.end(Duration::from_secs(20));
    let line = ended.fail(4);
    assert!(line.contains("expired on"), "{line}");
    site.receiver
        .wait_for_log("the certificate of the client expired on");
    assert_eq!(site.archived_names(), [""; 0]);
}

#[test]
fn fault_120_a_stream_ends_with_the_certificate_of_its_key() {
    let site = Site::start();
    renew(site.master_ini(), short);
    let begin = Instant::now();
    let key = Key::stolen(&site);
    let mut peer = key.connect(&site);
    let segment: SegmentName = site.segment_name(1).parse().unwrap();
    let timeline = site.facts().timeline;
    let content = site.segment(1, "x");
    let size = site.facts().cluster.segment_size;
    let end = walmgr_protocol::names::Lsn(segment.start(size).unwrap().0 + 1);
    let _ = ship(&mut peer, segment, timeline, &content[..8192], end, false);
    // Pings would be answered for ever.
    let error = loop {
        let frame = peer.receive().expect("a last word, not the end");
        match frame.message {
            Message::Ping => peer.send(frame.channel, &Message::Pong),
            Message::Error(error) => break error,
            _ => {}
        }
        assert!(begin.elapsed() < PATIENCE, "the stream outlives its key");
    };
    assert_eq!(error.code, ErrorCode::NotAuthorized);
    assert!(error.message.contains("expired on"), "{error}");
    // Renewed with the same key it comes in again.
    renew(site.master_ini(), unchanged);
    site.write_segment(2);
    site.archive(&site.segment_name(2)).succeed();
}
