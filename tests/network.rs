//! What a network can do to an upload: cut, flip, repeat, lose, delay, and go silent.
//! Never lets a test wait for a peer without a bound. Invariant: whatever happened, the archive
//! holds the whole file or nothing, and the next attempt succeeds.

use std::io::{Read, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use walmgr::test_support::wal::writer::WalWriter;
use walmgr_protocol::message::{ErrorCode, Message};
use walmgr_protocol::names::WalFileName;

use crate::support::outcome::Output;
use crate::support::peer::{Peer, commit, data};
use crate::support::proxy::{Direction, Fault, Recording};
use crate::support::{Cluster, Site, soak, wait_for};

/// Many times what an end takes that does not hang.
const PATIENCE: Duration = Duration::from_secs(60);

mod addresses;
mod drain;
mod link;

const HISTORY: &str = "00000002.history";
const HISTORY_TEXT: &str = "1\t0/3000000\tno recovery target specified\n";

/// A plain site behind a proxy, with a history file in `pg_wal`.
/// Writes a file that will be offered as any other: of one that was written a moment ago the checksum comes first.
fn write_settled(site: &Site, name: &str, content: impl AsRef<[u8]>) {
    site.write_wal(name, content);
    std::thread::sleep(Duration::from_millis(50));
}

fn plain_site() -> Site {
    let site = Site::builder().plain().proxied().build();
    write_settled(&site, HISTORY, HISTORY_TEXT);
    site
}

/// Archives it without faults, and returns what went over the wire; it is stored no more.
fn clean_session(site: &Site, name: &str) -> Recording {
    site.proxy().set_faults([]);
    site.archive(name).succeed();
    wait_until_quiet(site);
    forget(site, name);
    site.proxy().recordings().pop().unwrap()
}

fn forget(site: &Site, name: &str) {
    std::fs::remove_file(site.stored_path(name)).unwrap();
}

fn wait_until_quiet(site: &Site) {
    let limit = Duration::from_secs(10);
    wait_for("the connections to end", limit, || {
        site.proxy().is_idle().then_some(())
    });
    wait_for("temporaries to be removed", limit, || {
        site.temporaries().is_empty().then_some(())
    });
}

/// Where the hello and each frame of one direction lie.
fn parts(bytes: &[u8]) -> Vec<Range<usize>> {
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let first = 0..16 + u32_at(12) + 4;
    let mut parts = vec![first];
    while let Some(begin) = parts.last().map(|part| part.end)
        && begin < bytes.len()
    {
        parts.push(begin..begin + 20 + u32_at(begin));
    }
    assert_eq!(parts.last().unwrap().end, bytes.len());
    parts
}

/// The bytes around every boundary and in the middle of every part; all bytes in a soak.
fn places(bytes: &[u8]) -> Vec<u64> {
    let mut places: Vec<usize> = match soak() {
        true => (0..bytes.len()).collect(),
        false => parts(bytes)
            .into_iter()
            .flat_map(|part| [part.start, part.start + 17, part.end - 1])
            .collect(),
    };
    places.dedup();
    places.into_iter().map(|place| place as u64).collect()
}

fn both_ways(recording: &Recording) -> [(Direction, &[u8]); 2] {
    [
        (Direction::ToServer, &recording.to_server),
        (Direction::ToClient, &recording.to_client),
    ]
}

/// After a session that broke: nothing wrong is stored, nothing is left lying about, and the next
/// attempt succeeds.
fn recovers(site: &Site, name: &str, what: &str) {
    wait_until_quiet(site);
    let source = std::fs::read(site.data().join("pg_wal").join(name)).unwrap();
    for stored in site.archived_names() {
        assert_eq!(stored, name, "{what}");
        assert_eq!(site.archived(name), source, "{what}");
    }
    site.proxy().set_faults([]);
    site.archive(name).succeed();
    assert_eq!(site.archived(name), source, "{what}");
    assert_eq!(site.archived_names(), [name], "{what}");
    wait_until_quiet(site);
    forget(site, name);
}

/// A segment that was switched away from at once: zeros, but for its first page.
fn switched_segment(site: &Site, name: &str) -> Vec<u8> {
    let cluster = site.facts().cluster;
    let size = cluster.segment_size;
    let mut writer = WalWriter::new(name.parse().unwrap(), size, cluster.system_id, 15);
    writer.switch();
    writer.bytes().to_vec()
}

fn cut_everywhere(site: &Site, name: &str) -> usize {
    let clean = clean_session(site, name);
    let mut cuts = 0;
    for (direction, bytes) in both_ways(&clean) {
        for at_byte in places(bytes) {
            let what = format!("{name} cut {direction:?} at {at_byte} of {}", bytes.len());
            site.proxy()
                .set_faults([(direction, Fault::Cut { at_byte })]);
            let output = site.archive(name);
            assert_eq!(output.code, Some(1), "{what}: {}", output.stderr);
            assert_eq!(
                output.stderr.lines().count(),
                1,
                "{what}: {}",
                output.stderr
            );
            if direction == Direction::ToServer {
                wait_until_quiet(site);
                assert_eq!(site.archived_names(), [""; 0], "{what}");
            }
            recovers(site, name, &what);
            cuts += 1;
        }
    }
    cuts
}

#[test]
fn fault_21_session_cut_at_any_byte_is_repeated_without_harm() {
    let mut site = plain_site();
    let begin = Instant::now();
    let mut cuts = cut_everywhere(&site, HISTORY);
    // Small on the wire, whole on the disk.
    site.master_set("compression", "1");
    let segment = site.segment_name(3);
    write_settled(&site, &segment, switched_segment(&site, &segment));
    cuts += cut_everywhere(&site, &segment);
    println!("{cuts} cuts in {:?}", begin.elapsed());
}

#[test]
fn fault_21_tls_session_cut_at_any_byte_is_repeated_without_harm() {
    let site = Site::builder().proxied().build();
    write_settled(&site, HISTORY, HISTORY_TEXT);
    site.archive(HISTORY).succeed();
    wait_until_quiet(&site);
    forget(&site, HISTORY);
    let clean = site.proxy().recordings().pop().unwrap();
    let samples = if soak() { 400 } else { 9 };
    for (direction, bytes) in both_ways(&clean) {
        for sample in 0..samples {
            let at_byte = (bytes.len() * sample / samples) as u64;
            let what = format!("TLS cut {direction:?} at {at_byte} of {}", bytes.len());
            site.proxy()
                .set_faults([(direction, Fault::Cut { at_byte })]);
            let output = site.archive(HISTORY);
            // A close_notify of TLS after the acknowledgement is not part of the answer.
            assert!(
                matches!(output.code, Some(0 | 1)),
                "{what}: {}",
                output.stderr
            );
            assert!(output.code == Some(1) || site.holds(HISTORY), "{what}");
            recovers(&site, HISTORY, &what);
        }
    }
}

#[test]
fn fault_22_one_flipped_bit_is_refused_and_stores_nothing() {
    let mut site = plain_site();
    for key in ["connect_timeout", "push_timeout"] {
        site.master_set(key, "3");
    }
    let clean = clean_session(&site, HISTORY);
    for (direction, bytes) in both_ways(&clean) {
        for at_byte in places(bytes) {
            // The length of a hello can only be waited for: it is tried once, below.
            if (12..14).contains(&at_byte) {
                continue;
            }
            let bit = u8::try_from(at_byte % 8).unwrap();
            let what = format!("bit {bit} of byte {at_byte} {direction:?}");
            site.proxy()
                .set_faults([(direction, Fault::FlipBit { at_byte, bit })]);
            let output = site.archive(HISTORY);
            assert_eq!(output.code, Some(1), "{what}: {}", output.stderr);
            if direction == Direction::ToServer {
                wait_until_quiet(&site);
                assert_eq!(site.archived_names(), [""; 0], "{what}");
            }
            recovers(&site, HISTORY, &what);
        }
    }
    let (at_byte, bit) = (13, 0);
    let fault = Fault::FlipBit { at_byte, bit };
    site.proxy().set_faults([(Direction::ToServer, fault)]);
    let begin = Instant::now();
    let output = site.archive(HISTORY);
    output.fail(1);
    assert!(begin.elapsed() < PATIENCE);
    recovers(&site, HISTORY, "a longer hello");
}

#[test]
fn fault_22_the_receiver_logs_what_was_damaged() {
    let clean = clean_session(&plain_site(), HISTORY);
    let parts = parts(&clean.to_server);
    let cases = [
        (parts[0].start, "does not speak walmgr's protocol"),
        (parts[0].end - 1, "a hello was damaged on its way"),
        (
            parts[1].start + 2,
            "the frame header was damaged on its way",
        ),
        (parts[2].end - 1, "the frame payload was damaged on its way"),
    ];
    for (at_byte, reason) in cases {
        // The log of one address is rate-limited, so each case has a receiver of its own.
        let site = plain_site();
        let at_byte = at_byte as u64;
        let fault = Fault::FlipBit { at_byte, bit: 3 };
        site.proxy().set_faults([(Direction::ToServer, fault)]);
        site.archive(HISTORY).fail(1);
        site.receiver.wait_for_log(reason);
        assert!(site.receiver.log().contains("refused 127.0.0.1:"));
        assert_eq!(site.archived_names(), [""; 0]);
    }
}

/// Where the TLS records of one direction begin.
pub fn tls_records(bytes: &[u8]) -> Vec<usize> {
    let mut records = vec![0];
    while let Some(begin) = records.last().copied()
        && begin + 5 < bytes.len()
    {
        let length = u16::from_be_bytes([bytes[begin + 3], bytes[begin + 4]]);
        records.push(begin + 5 + usize::from(length));
    }
    records.pop();
    records
}

#[test]
fn fault_23_one_flipped_bit_under_tls_is_refused_and_stores_nothing() {
    let mut site = Site::builder().proxied().build();
    write_settled(&site, HISTORY, HISTORY_TEXT);
    for key in ["connect_timeout", "push_timeout"] {
        site.master_set(key, "3");
    }
    let clean = clean_session(&site, HISTORY);
    let samples = if soak() { 400 } else { 10 };
    for (direction, bytes) in both_ways(&clean) {
        for sample in 0..samples {
            let at = bytes.len() * sample / samples + 5;
            let at_byte = at as u64;
            let bit = u8::try_from(sample % 8).unwrap();
            let what = format!("bit {bit} of byte {at_byte} {direction:?} under TLS");
            site.proxy()
                .set_faults([(direction, Fault::FlipBit { at_byte, bit })]);
            let begin = Instant::now();
            let output = site.archive(HISTORY);
            assert!(begin.elapsed() < PATIENCE, "{what}");
            wait_until_quiet(&site);
            let code = output.code;
            assert!(matches!(code, Some(0 | 1)), "{what}: {}", output.stderr);
            // The minor version in a record's header means nothing in TLS 1.3 (RFC 8446 section
            // 5.1), and the receiver's close_notify follows its acknowledgement.
            let ignored = tls_records(bytes).iter().any(|begin| begin + 2 == at);
            if direction == Direction::ToServer && !ignored {
                assert_eq!(code, Some(1), "{what}");
                assert_eq!(site.archived_names(), [""; 0], "{what}");
            }
            assert!(code == Some(1) || site.holds(HISTORY), "{what}");
            recovers(&site, HISTORY, &what);
        }
    }
}

#[test]
fn fault_26_retry_after_a_lost_acknowledgement_finds_the_same_file() {
    for tls in [false, true] {
        let builder = Site::builder().proxied();
        let site = if tls { builder } else { builder.plain() }.build();
        write_settled(&site, HISTORY, HISTORY_TEXT);
        site.archive(HISTORY).succeed();
        wait_until_quiet(&site);
        forget(&site, HISTORY);
        let clean = site.proxy().recordings().pop().unwrap();
        let last = clean.to_client.len() as u64 - 1;
        // Under TLS the close_notify may follow the acknowledgement.
        let resets = if tls {
            last / 2..last / 2 + 1
        } else {
            last - 20..last
        };
        for at_byte in resets.step_by(7) {
            site.proxy()
                .set_faults([(Direction::ToClient, Fault::Reset { at_byte })]);
            site.archive(HISTORY).fail(1);
            wait_until_quiet(&site);
            let path = site.completed_wals().join(HISTORY);
            let before = inode(&path);
            site.proxy().set_faults([]);
            site.archive(HISTORY).succeed();
            assert!(before.is_none() || before == inode(&path), "stored twice");
            assert_eq!(before.is_some(), !tls, "the acknowledgement alone was lost");
            forget(&site, HISTORY);
        }
    }
}

fn inode(path: &std::path::Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    Some(std::fs::metadata(path).ok()?.ino())
}

#[test]
fn fault_27_a_frame_that_arrives_twice_is_refused_by_either_side() {
    let clean = clean_session(&plain_site(), HISTORY);
    let second = |bytes: &[u8], index: usize| {
        let part = parts(bytes)[index].clone();
        part.start as u64..part.end as u64
    };
    let offer = second(&clean.to_server, 1);
    let block = second(&clean.to_server, 2);
    let have = second(&clean.to_client, 1);
    for (direction, bytes) in [
        (Direction::ToServer, offer),
        (Direction::ToServer, block),
        (Direction::ToClient, have),
    ] {
        let site = plain_site();
        site.proxy()
            .set_faults([(direction, Fault::Duplicate { bytes })]);
        let output = site.archive(HISTORY);
        let line = output.fail(1);
        let words = "repeated, reordered, or from another connection";
        match direction {
            Direction::ToServer => {
                site.receiver.wait_for_log(words);
                assert_eq!(site.archived_names(), [""; 0]);
            }
            Direction::ToClient => assert!(line.contains(words), "{line}"),
        }
        recovers(&site, HISTORY, "a repeated frame");
    }
}

#[test]
fn fault_27_frames_in_another_order_are_refused() {
    let site = Site::builder().plain().build();
    let segment = site.segment(5, "order");
    let name: WalFileName = site.segment_name(5).parse().unwrap();
    let mut peer = Peer::connect(site.address(), Some(site.facts().cluster));
    peer.offer(1, name, &segment);
    assert!(matches!(peer.answer(1), Message::Have(_)));
    let first = peer.frame(1, &data(0, &segment[..8192]));
    let second = peer.frame(1, &data(8192, &segment[8192..16384]));
    peer.send_bytes(&second);
    peer.send_bytes(&first);
    let error = peer.last_words();
    assert_eq!(error.code, ErrorCode::Misbehaved);
    assert!(error.message.contains("reordered"), "{error}");
    // In the right order, but at the wrong place of the file.
    let mut peer = Peer::connect(site.address(), Some(site.facts().cluster));
    peer.offer(1, name, &segment);
    assert!(matches!(peer.answer(1), Message::Have(_)));
    peer.send(1, &data(8192, &segment[8192..16384]));
    peer.send(1, &commit(&segment));
    let error = peer.last_words();
    assert!(error.message.contains("where 0 was due"), "{error}");
    wait_for("temporaries to be removed", Duration::from_secs(5), || {
        site.temporaries().is_empty().then_some(())
    });
    assert_eq!(site.archived_names(), [""; 0]);
}

/// An `xarchive` under way.
pub struct Running(Child);

impl Running {
    pub fn start(site: &Site, name: &str) -> Running {
        let mut command = site.xarchive_walmgr(&PathBuf::from("pg_wal").join(name), name);
        Running::spawn(&mut command)
    }

    pub fn spawn(command: &mut Command) -> Running {
        let piped = command.stdin(Stdio::null()).stdout(Stdio::piped());
        Running(piped.stderr(Stdio::piped()).spawn().unwrap())
    }

    pub fn end(mut self, limit: Duration) -> Output {
        let status = wait_for("the end of xarchive", limit, || self.0.try_wait().unwrap());
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let pipes = (self.0.stdout.take(), self.0.stderr.take());
        pipes.0.unwrap().read_to_end(&mut stdout).unwrap();
        pipes.1.unwrap().read_to_end(&mut stderr).unwrap();
        Output::from(std::process::Output {
            status,
            stdout,
            stderr,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts an upload that comes to a halt in its middle for this long.
pub fn half_way(site: &Site, name: &str, by: Duration) -> Running {
    let at_byte = 300_000;
    let fault = Fault::Delay { at_byte, by };
    site.proxy().set_faults([(Direction::ToServer, fault)]);
    let running = Running::start(site, name);
    wait_for("an upload under way", Duration::from_secs(10), || {
        (!site.temporaries().is_empty()).then_some(())
    });
    running
}

#[test]
fn fault_28_stopped_receiver_costs_the_client_its_deadline_only() {
    for tls in [false, true] {
        let builder = Site::builder()
            .proxied()
            .master_set("push_timeout", "2")
            .master_set("connect_timeout", "1");
        let site = if tls { builder } else { builder.plain() }.build();
        let name = site.segment_name(9);
        site.write_segment(9);
        let running = half_way(&site, &name, Duration::from_secs(4));
        site.receiver.signal(Signal::STOP);
        let output = running.end(PATIENCE);
        assert!(output.fail(1).contains("push_timeout"), "{}", output.stderr);
        // Nobody is greeted either.
        site.proxy().set_faults([]);
        let begin = Instant::now();
        let output = site.archive(&name);
        let line = output.fail(1);
        assert!(
            line.contains("did not introduce itself within 1s"),
            "{line}"
        );
        assert!(begin.elapsed() < PATIENCE);
        site.receiver.signal(Signal::CONT);
        recovers(&site, &name, "a receiver that was stopped");
    }
}

#[test]
fn fault_28_a_receiver_that_falls_silent_fails_setup_within_push_timeout() {
    let cluster = Cluster::builder().conf("archive_mode", "on").start();
    let builder = Site::builder().cluster(cluster).unbound();
    let mut site = builder.plain().proxied().build();
    site.master_set("push_timeout", "1s");
    site.master_command(&["setup"]).succeed();
    // The first to connect; what archives comes later.
    let clean = site.proxy().recordings().swap_remove(0);
    let answer = &parts(&clean.to_client)[1];
    site.proxy().set_faults([(
        Direction::ToClient,
        Fault::Blackhole {
            at_byte: answer.end as u64 - 1,
        },
    )]);
    let began = Instant::now();
    site.master_command(&["setup"])
        .fail_last(1, "did not answer a setup request within push_timeout");
    assert!(began.elapsed() < PATIENCE);
}

#[test]
fn fault_29_answers_from_an_earlier_connection_are_refused() {
    let mut site = plain_site();
    let clean = clean_session(&site, HISTORY);
    let parts = parts(&clean.to_client);
    let mut fresh_welcome = clean.to_client[parts[0].clone()].to_vec();
    // The nonce comes first; the checksum covers it.
    fresh_welcome[16] ^= 1;
    let end = fresh_welcome.len() - 4;
    let crc = crc32fast::hash(&fresh_welcome[..end]).to_le_bytes();
    fresh_welcome[end..].copy_from_slice(&crc);
    let late = [fresh_welcome, clean.to_client[parts[1].start..].to_vec()].concat();
    for answer in [clean.to_client.clone(), late] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        site.route(listener.local_addr().unwrap());
        let running = Running::start(&site, HISTORY);
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut [0; 16]).unwrap();
        stream.write_all(&answer).unwrap();
        let output = running.end(PATIENCE);
        let line = output.fail(1);
        assert!(line.contains("from another connection"), "{line}");
    }
}
