//! What a peer may ask of the receiver: names, lengths, memory, slots, descriptors, patience.
//! Never lets a flood outlive its test. Invariant: whatever is asked, the receiver still serves a
//! real master afterwards, and its memory and its log stay small.

use std::time::Duration;

use walmgr_protocol::message::{ErrorCode, Message, MessageKind};
use walmgr_protocol::names::WalFileName;

use crate::support::peer::{Peer, commit, data, offer_of};
use crate::support::place::below_but_index;
use crate::support::{Site, wait_for};

mod admission;
mod channels;
mod floods;
mod idle;
mod memory;
mod panics;
mod shares;

fn plain_site() -> Site {
    Site::builder().plain().build()
}

fn peer_of(site: &Site) -> Peer {
    Peer::connect(site.address(), Some(site.facts().cluster))
}

fn wait_for_no_temporary(site: &Site) {
    wait_for("temporaries to be removed", Duration::from_secs(3), || {
        site.temporaries().is_empty().then_some(())
    });
}

/// A master is still served.
fn still_serves(site: &Site, number: u64) {
    let name = site.segment_name(number);
    site.write_segment(number);
    site.archive(&name).succeed();
    assert_eq!(site.archived(&name), site.segment(number, "walmgr"));
}

/// The payload of an offer of any name.
fn offer_payload(name: &[u8]) -> Vec<u8> {
    let mut payload = u16::try_from(name.len()).unwrap().to_le_bytes().to_vec();
    payload.extend_from_slice(name);
    payload.extend_from_slice(&1_048_576_u64.to_le_bytes());
    payload.extend_from_slice(&[0, 0, 0, 0, 2]);
    payload
}

#[test]
fn fault_89_a_name_that_is_no_wal_file_is_refused_and_nothing_is_created() {
    let site = plain_site();
    let everything = || {
        let found = below_but_index(site.home().path());
        found.into_keys().collect::<Vec<_>>()
    };
    let before = everything();
    let long = "0".repeat(300);
    let names: [&[u8]; 14] = [
        b"../000000010000000000000001",
        b"../x",
        b"/tmp/000000010000000000000001",
        b"/etc/passwd",
        b"000000010000000000000001\0",
        b"00000001\x00000000000000001",
        b".in.000000010000000000000001.1",
        b".walmgr-archive",
        b".walmgr-lock",
        b"000000010000000000000001.damaged",
        b"00000001000000000000000g",
        b"\xff\xfe",
        b"",
        long.as_bytes(),
    ];
    for name in names {
        let mut peer = peer_of(&site);
        let frame = peer.raw_frame(MessageKind::Offer as u8, 0, 1, &offer_payload(name));
        peer.send_bytes(&frame);
        let error = peer.last_words();
        assert_eq!(error.code, ErrorCode::Malformed, "{error}");
        assert!(!error.message.is_empty());
    }
    assert_eq!(everything(), before);
    still_serves(&site, 1);
}

#[test]
fn fault_91_a_length_of_4_gib_is_refused_without_memory() {
    let site = plain_site();
    still_serves(&site, 1);
    let before = site.receiver.memory_kib();
    for length in [u32::MAX, 1 << 30, (1 << 20) + 1] {
        let mut peer = peer_of(&site);
        let header = peer.header(MessageKind::Data as u8, 0, 1, length, b"");
        peer.send_bytes(&header);
        let error = peer.last_words();
        assert_eq!(error.code, ErrorCode::Malformed);
        assert!(error.message.contains("at most 1048576"), "{error}");
    }
    // A hello is bounded before anything is known of the peer.
    for length in [u32::MAX, 4097] {
        let mut bytes = b"walmgr\r\n\x01\0\x01\0".to_vec();
        bytes.extend_from_slice(&length.to_le_bytes());
        assert_eq!(
            crate::support::peer::answer_to(site.address(), &bytes),
            None
        );
    }
    // Sizes are bounded by what the name can be.
    for size in [u64::MAX, (1 << 20) + 1] {
        let mut peer = peer_of(&site);
        let name: WalFileName = site.segment_name(2).parse().unwrap();
        let mut offer = offer_of(name, b"");
        offer.size = size;
        peer.send(1, &Message::Offer(offer));
        assert_eq!(peer.refusal().code, ErrorCode::TooLarge);
    }
    let grown = site.receiver.memory_kib().saturating_sub(before);
    assert!(grown < 4 << 10, "{grown} KiB more");
    still_serves(&site, 3);
}

/// zstd's format (RFC 8878): a frame with one run-length block, of any window and content size.
fn bomb(window_log: u8, content_bytes: u32) -> Vec<u8> {
    let mut frame = 0xFD2F_B528_u32.to_le_bytes().to_vec();
    // A content size of 4 bytes, no checksum, a window descriptor.
    frame.push(0b1000_0000);
    frame.push((window_log - 10) << 3);
    frame.extend_from_slice(&content_bytes.to_le_bytes());
    let mut left = content_bytes;
    while left > 0 {
        let run = left.min(128 << 10);
        left -= run;
        let header = (run << 3) | 0b010 | u32::from(left == 0);
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.push(0);
    }
    frame
}

#[test]
fn fault_92_a_compressed_bomb_or_a_huge_window_is_refused_without_memory() {
    let site = plain_site();
    still_serves(&site, 1);
    let name: WalFileName = site.segment_name(2).parse().unwrap();
    let segment = site.segment(2, "bomb");
    let before = site.receiver.memory_peak_kib();
    for (bytes, raw_bytes) in [
        (bomb(17, 512 << 20), 256 << 10),
        (bomb(17, 512 << 10), 256 << 10),
        (bomb(17, 1 << 10), 256 << 10),
        (bomb(41, 256 << 10), 256 << 10),
        (bomb(17, 0), 4096),
        (b"not zstd at all".to_vec(), 4096),
        (vec![], 4096),
    ] {
        let mut peer = peer_of(&site);
        peer.offer(1, name, &segment);
        assert!(matches!(peer.answer(1), Message::Have(_)));
        let mut payload = 0_u64.to_le_bytes().to_vec();
        payload.extend_from_slice(&u32::to_le_bytes(raw_bytes));
        payload.extend_from_slice(&bytes);
        let frame = peer.raw_frame(MessageKind::Data as u8, 1, 1, &payload);
        peer.send_bytes(&frame);
        let error = peer.refusal();
        assert!(
            matches!(error.code, ErrorCode::Malformed | ErrorCode::DamagedFile),
            "{error:?}"
        );
    }
    for raw_bytes in [0, (512 << 10) + 1, u32::MAX] {
        let mut peer = peer_of(&site);
        peer.offer(1, name, &segment);
        assert!(matches!(peer.answer(1), Message::Have(_)));
        let mut payload = 0_u64.to_le_bytes().to_vec();
        payload.extend_from_slice(&u32::to_le_bytes(raw_bytes));
        payload.extend_from_slice(&bomb(17, 4096));
        let frame = peer.raw_frame(MessageKind::Data as u8, 1, 1, &payload);
        peer.send_bytes(&frame);
        assert_eq!(peer.last_words().code, ErrorCode::Malformed);
    }
    wait_for_no_temporary(&site);
    let grown = site.receiver.memory_peak_kib() - before;
    assert!(grown < 8 << 10, "{grown} KiB more at the peak");
    assert_eq!(site.archived_names(), [site.segment_name(1)]);
    still_serves(&site, 3);
}

#[test]
fn four_uploads_on_one_connection_are_all_stored() {
    let site = plain_site();
    let mut peer = peer_of(&site);
    let channels = peer.welcome.channels_max;
    assert_eq!(channels, 4);
    let segments: Vec<(WalFileName, Vec<u8>)> = (1..=u64::from(channels))
        .map(|number| {
            let name = site.segment_name(number).parse().unwrap();
            (name, site.segment(number, "side by side"))
        })
        .collect();
    for (channel, (name, content)) in (1..).zip(&segments) {
        peer.offer(channel, *name, content);
    }
    let mut ready = Vec::new();
    while ready.len() < segments.len() {
        let frame = peer.receive().unwrap();
        assert!(matches!(frame.message, Message::Have(_)), "{frame:?}");
        ready.push(frame.channel);
    }
    ready.sort_unstable();
    assert_eq!(ready, [1, 2, 3, 4]);
    assert_eq!(site.temporaries().len(), 4);
    let block = 64 << 10;
    for begin in (0..1 << 20).step_by(block) {
        for (channel, (_, content)) in (1..).zip(&segments) {
            peer.send(channel, &data(begin as u64, &content[begin..begin + block]));
        }
    }
    // The last begun is the first finished.
    for (channel, (_, content)) in (1..5_u16).zip(&segments).rev() {
        peer.send(channel, &commit(content));
    }
    let mut stored = Vec::new();
    while stored.len() < segments.len() {
        let frame = peer.receive().unwrap();
        assert!(matches!(frame.message, Message::Stored(_)), "{frame:?}");
        stored.push(frame.channel);
    }
    stored.sort_unstable();
    assert_eq!(stored, [1, 2, 3, 4]);
    for (name, content) in &segments {
        assert_eq!(&site.archived(&name.to_string()), content);
    }
    // Each channel can be used again.
    peer.offer(2, segments[0].0, &segments[0].1);
    assert!(matches!(peer.answer(2), Message::Stored(_)));
}

#[test]
fn an_offer_on_a_channel_that_does_not_exist_is_refused_in_words() {
    let site = plain_site();
    let name: WalFileName = site.segment_name(1).parse().unwrap();
    for channel in [0, 5, u16::MAX] {
        let mut peer = peer_of(&site);
        peer.offer(channel, name, &site.segment(1, "x"));
        let error = peer.last_words();
        assert_eq!(error.code, ErrorCode::Misbehaved, "{error}");
        assert!(error.message.contains("channel"), "{error}");
    }
    still_serves(&site, 1);
}

#[test]
fn data_after_a_refusal_is_dropped_and_the_connection_goes_on() {
    let site = plain_site();
    let mut peer = peer_of(&site);
    let name: WalFileName = site.segment_name(1).parse().unwrap();
    let good = site.segment(1, "good");
    let mut damaged = good.clone();
    damaged[300_000] ^= 1;
    peer.offer(1, name, &damaged);
    assert!(matches!(peer.answer(1), Message::Have(_)));
    // All of it, long after the receiver has seen that it is damaged.
    peer.upload(1, &damaged);
    let error = peer.refusal();
    assert_eq!(error.code, ErrorCode::DamagedFile);
    peer.offer(1, name, &good);
    assert!(matches!(peer.answer(1), Message::Have(_)));
    peer.upload(1, &good);
    assert!(matches!(peer.answer(1), Message::Stored(_)));
    assert_eq!(site.archived(&name.to_string()), good);
}

#[test]
fn data_and_commits_that_nobody_asked_for_are_refused_in_words() {
    let site = plain_site();
    let segment = site.segment(1, "x");
    let other: WalFileName = site.segment_name(9).parse().unwrap();
    for message in [
        data(0, &segment[..8192]),
        commit(&segment),
        Message::Conflict(walmgr_protocol::message::Digest { size: 1, crc32: 1 }),
        Message::Goodbye,
        Message::Setup,
    ] {
        let mut peer = peer_of(&site);
        peer.send(1, &message);
        assert_eq!(peer.last_words().code, ErrorCode::Misbehaved, "{message:?}");
    }
    // An offer while another is open; more bytes than offered; a commit of another file.
    let name: WalFileName = site.segment_name(1).parse().unwrap();
    type Step = fn(&mut Peer, WalFileName, &[u8]);
    let steps: [Step; 3] = [
        |peer, other, segment| peer.offer(1, other, segment),
        |peer, _, segment| {
            peer.upload(1, &[segment, &[0; 8192]].concat());
        },
        |peer, _, segment| peer.send(1, &commit(&segment[..8192])),
    ];
    for step in steps {
        let mut peer = peer_of(&site);
        peer.offer(1, name, &segment);
        assert!(matches!(peer.answer(1), Message::Have(_)));
        step(&mut peer, other, &segment);
        assert_eq!(peer.last_words().code, ErrorCode::Misbehaved);
    }
    wait_for_no_temporary(&site);
    assert_eq!(site.archived_names(), [""; 0]);
    still_serves(&site, 1);
}

#[test]
fn a_client_that_leaves_in_the_middle_of_an_upload_leaves_no_temporary() {
    let site = plain_site();
    let name: WalFileName = site.segment_name(1).parse().unwrap();
    let segment = site.segment(1, "x");
    let begun = || {
        let mut peer = peer_of(&site);
        peer.offer(1, name, &segment);
        assert!(matches!(peer.answer(1), Message::Have(_)));
        peer.send(1, &data(0, &segment[..200_000]));
        wait_for("a temporary", Duration::from_secs(3), || {
            (site.temporaries().len() == 1).then_some(())
        });
        peer
    };
    let mut peer = begun();
    peer.send(0, &Message::Goodbye);
    assert_eq!(peer.receive(), None);
    wait_for_no_temporary(&site);
    drop(begun());
    wait_for_no_temporary(&site);
    // Given up in words: the connection can be used for the next.
    let mut peer = begun();
    let words = walmgr_protocol::message::Error::channel(ErrorCode::Abandoned, "enough", "");
    peer.send(1, &Message::Error(words));
    wait_for_no_temporary(&site);
    peer.offer(1, name, &segment);
    assert!(matches!(peer.answer(1), Message::Have(_)));
    peer.upload(1, &segment);
    assert!(matches!(peer.answer(1), Message::Stored(_)));
    assert_eq!(site.archived(&name.to_string()), segment);
}
