//! A master whose receiver was taken over: what it says, sends and never ends saying.
//! Never trusts that a command ended well. Invariant tested: nothing outside the destination is
//! touched, memory and disk have their bounds, and no word of a peer moves a cursor or forges a line.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use walmgr::test_support::tar::writer::{END, padding, put_file};
use walmgr_protocol::fuzzing::sample_messages;
use walmgr_protocol::hello::Welcome;
use walmgr_protocol::message::fetch::{
    Backups, Fetch, ListedSet, SetDescription, SetDetails, SetLabel, Tablespace,
};
use walmgr_protocol::message::overview::{Overview, SetReach, SetStanding};
use walmgr_protocol::message::reach::{TargetRange, TargetVerdict};
use walmgr_protocol::message::{Data, Digest, Error, ErrorCode, Message};
use walmgr_protocol::names::{Lsn, SegmentName, TimelineId};

use crate::support::dice::Dice;
use crate::support::hostile_receiver::{HostileReceiver, Reply};
use crate::support::place::server_user;
use crate::support::receiver::memory_kib;
use crate::support::{Output, Site, soak};

/// A title for the window, a colour, a line of its own, C1's way to say so, and a reversed word.
const EVIL: &str = "x\u{1b}]0;owned\u{7}\u{1b}[31m\nRPO 0.0 s: ok\r\u{9b}31m\u{202e}ko\u{200b}";

const BLOCK: usize = 256 << 10;

/// A master whose receiver goes by this script.
fn lured(
    script: impl Fn(&Message) -> Vec<Reply> + Send + Sync + 'static,
) -> (Site, HostileReceiver) {
    let mut site = Site::builder()
        .master_set("push_timeout", "5s")
        .stopped()
        .build();
    let receiver = HostileReceiver::start(script);
    receiver.lure(&mut site);
    (site, receiver)
}

fn segment() -> SegmentName {
    "000000010000000000000003".parse().unwrap()
}

fn label(words: &str) -> SetLabel {
    SetLabel {
        timestamp: words.to_owned(),
        label: words.to_owned(),
        first_segment: segment(),
        start: Lsn(0x30_0028),
    }
}

fn say(fetch: Fetch) -> Vec<Reply> {
    vec![Reply::Say(Message::Fetch(fetch))]
}

/// Nothing in it moves a cursor, and nothing but the command made its lines.
#[track_caller]
fn harmless(output: &Output, lines: usize) {
    for text in [&output.stdout, &output.stderr] {
        let evil = text.chars().find(|found| {
            (found.is_control() && *found != '\n') || ['\u{202e}', '\u{200b}'].contains(found)
        });
        assert_eq!(evil, None, "{text:?}");
        assert!(!text.contains("\nRPO 0.0 s: ok"), "{text}");
    }
    let found = output.stdout.lines().count();
    assert!(found <= lines, "{found} lines:\n{}", output.stdout);
}

#[test]
fn fault_123_no_word_of_a_receiver_moves_a_cursor_or_forges_a_line() {
    let _user = skip_unless!(server_user());
    let (site, _receiver) = lured(|message| match message {
        Message::Fetch(Fetch::ListBackups(_)) => say(Fetch::Backups(Backups {
            sets: vec![
                ListedSet {
                    name: EVIL.into(),
                    label: Ok(label(EVIL)),
                    details: SetDetails::default(),
                },
                ListedSet {
                    name: EVIL.into(),
                    label: Err(EVIL.into()),
                    details: SetDetails::default(),
                },
            ],
            more: false,
        })),
        Message::OverviewRequest => vec![Reply::Say(Message::Overview(Box::new(evil_overview())))],
        _ => vec![Reply::Say(Message::Error(Error::channel(
            ErrorCode::Internal,
            EVIL,
            EVIL,
        )))],
    });
    let words: [(&[&str], usize); 7] = [
        (&["listbackups"], 6),
        (&["--json", "listbackups"], 1),
        (&["status"], 40),
        (&["--json", "status"], 1),
        (&["xrestore", "000000010000000000000003", "out"], 0),
        (&["restore", "data.master", "/tmp/never-made"], 0),
        (&["setup", "--no-check"], 40),
    ];
    for (words, lines) in words {
        let output = site.master_command(words);
        harmless(&output, lines);
        if words[0] == "--json" {
            let parsed: Result<serde_json::Value, _> = serde_json::from_str(&output.stdout);
            assert!(parsed.is_ok(), "{}", output.stdout);
        }
    }
}

fn evil_overview() -> Overview {
    let reach = SetReach {
        timestamp: EVIL.into(),
        age_ms: i64::MIN,
        timeline: TimelineId::new(u32::MAX).unwrap(),
        start: Lsn(u64::MAX),
        reaches: Lsn(u64::MAX),
    };
    let set = |reach| SetStanding {
        name: EVIL.into(),
        reach,
    };
    Overview {
        newest_segment: Some(segment()),
        newest_age_ms: i64::MAX,
        partial_segment: Some(segment()),
        partial_end: Lsn(u64::MAX),
        held: Some((TimelineId::FIRST, Lsn(1))),
        damaged_count: u64::MAX,
        damaged: EVIL.into(),
        received_age_ms: i64::MIN,
        free_bytes: u64::MAX,
        trouble: EVIL.into(),
        shipped_by: EVIL.into(),
        masters: vec![EVIL.into()],
        masters_count: u64::MAX,
        completed_wals: EVIL.into(),
        sets: vec![set(Ok(reach)), set(Err(EVIL.into()))],
        sets_count: u64::MAX,
        clock_ms: i64::MIN,
        ..Overview::default()
    }
}

/// What bringing one file back may take, in KiB.
const FILE_PEAK_KIB_MAX: u64 = 12 << 10;

/// Runs a command to its end; also how much memory of its own it took, in KiB. The pages of the program, which are mapped
/// from its file, are as many as the build has.
fn measured(command: &mut Command) -> (Output, u64) {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let pid = child.id();
    let waiting = std::thread::spawn(move || child.wait_with_output().unwrap());
    let (begun, mut peak) = (Instant::now(), 0);
    while !waiting.is_finished() {
        peak = memory_kib(pid, "RssAnon:").unwrap_or(0).max(peak);
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
    (waiting.join().unwrap().into(), peak)
}

#[test]
fn fault_123_a_list_of_sets_that_never_ends_is_given_up() {
    let _user = skip_unless!(server_user());
    let (site, _receiver) = lured(|_| {
        let words = "w".repeat(4_000);
        let set = ListedSet {
            name: words.clone(),
            label: Ok(label(&words)),
            details: SetDetails::default(),
        };
        say(Fetch::Backups(Backups {
            sets: vec![set; 64],
            more: true,
        }))
    });
    let (output, peak) = measured(&mut site.master_walmgr(&["listbackups"]));
    output.fail_last(1, "more backup sets than an archive can have");
    assert!(peak < 64 << 10, "{peak} KiB");
}

/// A stream of these bytes that ends with what was sent, or never.
fn stream(piece: Vec<u8>, pieces: Option<u64>) -> Vec<Reply> {
    let block = Bytes::from(piece.clone());
    let data = move |number: u64| {
        if pieces.is_some_and(|pieces| number >= pieces) {
            return None;
        }
        Some(Message::Data(Data {
            offset: number * block.len() as u64,
            raw_bytes: u32::try_from(block.len()).unwrap(),
            zstd: false,
            bytes: block.clone(),
        }))
    };
    let whole = piece.repeat(usize::try_from(pieces.unwrap_or(0)).unwrap());
    let digest = Digest {
        size: whole.len() as u64,
        crc32: crc32fast::hash(&whole),
    };
    vec![
        Reply::Repeat(Box::new(data)),
        Reply::Say(Message::Fetch(Fetch::End(digest))),
    ]
}

#[test]
fn fault_123_a_file_longer_than_its_kind_is_refused_and_leaves_nothing() {
    let _user = skip_unless!(server_user());
    let (site, _receiver) = lured(|_| stream(vec![b'w'; BLOCK], None));
    let data = site.data().to_path_buf();
    for name in ["000000010000000000000003", "00000002.history"] {
        let mut command = site.master_walmgr(&["xrestore", name, "pg_wal/RECOVERYXLOG"]);
        let (output, peak) = measured(command.current_dir(&data));
        output.fail_last(254, "more for");
        assert!(peak < FILE_PEAK_KIB_MAX, "{peak} KiB");
        assert_eq!(fs::read_dir(data.join("pg_wal")).unwrap().count(), 0);
    }
}

fn file(out: &mut Vec<u8>, path: &str, content: &[u8]) {
    put_file(out, path.as_bytes(), content.len() as u64, 0);
    out.extend_from_slice(content);
    out.resize(out.len() + padding(content.len() as u64), 0);
}

/// A set that is described as something, and sent as something else.
fn described(bytes: u64, stream_bytes: u64) -> SetDescription {
    SetDescription {
        name: "data.master".to_owned(),
        label: label("2026-01-02 03:04:05 UTC"),
        stream_bytes,
        bytes,
        recovery_end: None,
        demands: [0; 5],
        verdict: TargetVerdict::Fits,
        tablespaces: Vec::new(),
    }
}

fn offering(described: SetDescription, tar: Vec<u8>) -> (Site, HostileReceiver) {
    lured(move |message| match message {
        Message::Fetch(Fetch::DescribeSet(_)) => say(Fetch::Set(described.clone())),
        _ => match tar.is_empty() {
            true => stream(endless_file(), None),
            false => {
                let pieces = tar.chunks(BLOCK).map(<[u8]>::to_vec).collect();
                in_pieces(pieces)
            }
        },
    })
}

#[test]
fn fault_127_a_long_look_for_a_target_outlasts_push_timeout() {
    let _user = skip_unless!(server_user());
    let (site, _receiver) = lured(|message| match message {
        Message::Fetch(Fetch::DescribeSet(_)) => {
            // As a receiver does that reads much WAL; push_timeout is 5 s.
            let pings = |number: u64| {
                std::thread::sleep(Duration::from_secs(1));
                (number < 8).then_some(Message::Ping)
            };
            let names = vec!["x\u{1b}[2J".to_owned(), "y\nRPO 0.0 s: ok".to_owned()];
            let range = TargetRange::Names(names, 2);
            let verdict = TargetVerdict::OutOfReach(range, Some("a`reboot`\u{1b}[2J".to_owned()));
            let answer = SetDescription {
                verdict,
                ..described(1_000, 9_000)
            };
            let mut replies = vec![Reply::Repeat(Box::new(pings))];
            replies.extend(say(Fetch::Set(answer)));
            replies
        }
        _ => Vec::new(),
    });
    let place = site.home().join("again");
    let words = [
        "restore",
        "data.master",
        place.to_str().unwrap(),
        "--target-name",
        "never",
    ];
    let refused = site.master_command(&words);
    refused.fail_last(1, "out of reach: 2 restore points are in reach");
    assert!(!refused.stderr.contains("reboot"), "{}", refused.stderr);
    let told = "looks through its WAL for the target";
    assert!(refused.stderr.contains(told), "{}", refused.stderr);
    harmless(&refused, 0);
    assert!(!place.exists());
}

fn in_pieces(pieces: Vec<Vec<u8>>) -> Vec<Reply> {
    let whole = pieces.concat();
    let digest = Digest {
        size: whole.len() as u64,
        crc32: crc32fast::hash(&whole),
    };
    let mut offset = 0;
    let mut replies: Vec<Reply> = Vec::new();
    for piece in pieces {
        let raw_bytes = u32::try_from(piece.len()).unwrap();
        let data = Data {
            offset,
            raw_bytes,
            zstd: false,
            bytes: Bytes::from(piece),
        };
        offset += u64::from(raw_bytes);
        replies.push(Reply::Say(Message::Data(data)));
    }
    replies.push(Reply::Say(Message::Fetch(Fetch::End(digest))));
    replies
}

/// Empty files without end would have no names left; a file of a length without end has.
fn endless_file() -> Vec<u8> {
    vec![0; BLOCK]
}

fn restore(site: &Site, destination: &Path) -> (Output, u64) {
    let to = destination.display().to_string();
    measured(&mut site.master_walmgr(&["restore", "data.master", &to]))
}

fn nothing_is_left(site: &Site, destination: &Path) {
    assert!(!destination.exists(), "{} is there", destination.display());
    let beside = fs::read_dir(site.home().path()).unwrap().flatten();
    let names: Vec<_> = beside.map(|entry| entry.file_name()).collect();
    assert!(names.len() <= 4, "{names:?}");
}

#[test]
fn fault_123_a_set_is_not_larger_nor_has_more_files_than_was_said() {
    let _user = skip_unless!(server_user());
    let mut large = Vec::new();
    file(&mut large, "PG_VERSION", &vec![b'1'; 3 * BLOCK]);
    large.extend_from_slice(&END);
    let length = large.len() as u64;
    for (told, tar, part) in [
        (
            described(1_000, length),
            large.clone(),
            "larger than announced",
        ),
        (
            described(1 << 20, 9_000),
            large.clone(),
            "larger than announced",
        ),
        // There is no such room, and adding to the number must not make it small.
        (described(u64::MAX, u64::MAX), large, "not enough space"),
    ] {
        let (site, _receiver) = offering(told, tar);
        let destination = site.home().join("restored");
        let (output, peak) = restore(&site, &destination);
        assert_eq!(output.code, Some(1), "{output:?}");
        assert!(output.stderr.contains(part), "{}", output.stderr);
        assert!(peak < FILE_PEAK_KIB_MAX, "{peak} KiB");
        nothing_is_left(&site, &destination);
    }
}

#[test]
fn fault_123_a_set_of_another_name_or_with_spaces_twice_is_refused() {
    let _user = skip_unless!(server_user());
    let space = |oid, bytes| Tablespace {
        oid,
        bytes,
        path: b"/etc".to_vec(),
    };
    let mut other = described(1_000, 9_000);
    other.name = format!("../{EVIL}");
    let mut twice = described(1_000, 9_000);
    twice.tablespaces = vec![space(16_385, u64::MAX), space(16_385, u64::MAX)];
    for (told, part) in [(other, "another set"), (twice, "16385")] {
        let (site, _receiver) = offering(told, END.to_vec());
        let destination = site.home().join("restored");
        let (output, _) = restore(&site, &destination);
        harmless(&output, 0);
        assert_eq!(output.code, Some(1), "{output:?}");
        assert!(output.stderr.contains(part), "{}", output.stderr);
        nothing_is_left(&site, &destination);
    }
}

#[test]
fn fault_123_a_senseless_welcome_is_refused() {
    let _user = skip_unless!(server_user());
    for (block_bytes_max, payload_bytes_max, channels_max) in [
        (0, 1 << 20, 4),
        (1, 1 << 20, 4),
        (u32::MAX, 1, 4),
        (1 << 18, u32::MAX, 0),
    ] {
        let welcome = Welcome {
            block_bytes_max,
            payload_bytes_max,
            channels_max,
            ..Welcome::with_our_limits([7; 16], None, EVIL.to_owned())
        };
        let mut site = Site::builder()
            .master_set("push_timeout", "2s")
            .stopped()
            .build();
        let receiver = HostileReceiver::welcoming(welcome, |_| vec![Reply::HangUp]);
        receiver.lure(&mut site);
        site.write_segment(7);
        let name = site.segment_name(7);
        let output = site.archive(&name);
        harmless(&output, 0);
        output.fail_last(1, "no receiver of walmgr offers");
    }
}

/// Messages that are valid and say anything.
fn any_answer(dice: &mut Dice, samples: &[Message]) -> Message {
    let sample = dice.choose(samples);
    for _ in 0..4 {
        let mut payload = BytesMut::new();
        let flags = sample.encode(&mut payload);
        if !payload.is_empty() {
            for _ in 0..=dice.below(3) {
                let at = dice.index(payload.len());
                payload[at] = *dice.choose(&[0, 1, 0x7f, 0x80, 0xff, b'w']);
            }
        }
        let decoded = Message::decode(sample.kind() as u8, flags, payload.freeze());
        if let Ok(message) = decoded {
            return message;
        }
    }
    sample.clone()
}

#[test]
fn fault_123_whatever_a_receiver_answers_no_command_panics_or_hangs() {
    let _user = skip_unless!(server_user());
    let mut dice = Dice::thrown("hostile receiver");
    let rounds = if soak() { 3_000 } else { 90 };
    let chance = std::sync::Mutex::new(dice.split());
    let samples = sample_messages();
    let (mut site, _receiver) = lured(move |_| {
        let mut dice = chance.lock().unwrap();
        let count = 1 + dice.index(3);
        (0..count)
            .map(|_| Reply::Say(any_answer(&mut dice, &samples)))
            .collect()
    });
    site.master_set("push_timeout", "1s");
    site.write_segment(7);
    let name = site.segment_name(7);
    let path = site.data().join("pg_wal").join(&name).display().to_string();
    let destination = site.home().join("restored").display().to_string();
    let commands: [&[&str]; 8] = [
        &["listbackups"],
        &["status"],
        &["xrestore", &name, "pg_wal/RECOVERYXLOG"],
        &["restore", "data.master", &destination],
        &["xarchive", &path, &name],
        &["sync"],
        &["setup", "--no-check"],
        &["backup"],
    ];
    for round in 0..rounds {
        let words = commands[round % commands.len()];
        let mut command = site.master_walmgr(words);
        let (output, peak) = measured(command.current_dir(site.data()));
        assert!(
            !output.stderr.contains("panic"),
            "{words:?}: {}",
            output.stderr
        );
        assert!(output.code.is_some(), "{words:?} ended by a signal");
        assert!(peak < 64 << 10, "{words:?}: {peak} KiB");
    }
}

#[test]
fn fault_123_the_settings_of_a_set_order_nothing_where_it_is_restored() {
    let _user = skip_unless!(server_user());
    let marker = crate::support::TempDir::new();
    let owned = format!("touch {}", marker.join("owned").display());
    let mut tar = Vec::new();
    let site = Site::builder().stopped().build();
    let control = fs::read(site.data().join("global/pg_control")).unwrap();
    drop(site);
    let label = "START WAL LOCATION: 0/300028 (file 000000010000000000000003)\n\
        CHECKPOINT LOCATION: 0/300060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
        START TIME: 2026-01-02 03:04:05 UTC\nLABEL: x\nSTART TIMELINE: 1\n";
    let auto = format!(
        "archive_cleanup_command = '{owned}'\nrecovery_end_command = '{owned}'\n\
         shared_preload_libraries = '/tmp/evil'\narchive_mode = always\narchive_command = '{owned}'\n"
    );
    let conf = format!("include '/tmp/evil.conf'\nssl_passphrase_command = '{owned}'\n");
    for (path, content) in [
        ("PG_VERSION", &b"15\n"[..]),
        ("backup_label", label.as_bytes()),
        ("postgresql.auto.conf", auto.as_bytes()),
        ("postgresql.conf", conf.as_bytes()),
        ("global/pg_control", &control),
    ] {
        file(&mut tar, path, content);
    }
    tar.extend_from_slice(&END);
    let length = tar.len() as u64;
    let (site, _receiver) = offering(described(1 << 20, length), tar);
    let destination = site.home().join("restored");
    let (output, _) = restore(&site, &destination);
    output.succeed();
    for name in ["postgresql.auto.conf", "postgresql.conf"] {
        let text = fs::read_to_string(destination.join(name)).unwrap();
        let active = text
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'));
        for line in active {
            assert!(
                !line.contains("owned") && !line.contains("evil"),
                "{name}: {line}"
            );
        }
    }
    assert!(!marker.join("owned").exists());
}
