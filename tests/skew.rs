//! Two sides of different versions, and things on the port that are no walmgr at all.
//! Never waits for an answer without a bound. Invariant: what does not fit is refused in words,
//! and a client that is refused so tries again later.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use walmgr_protocol::codec::{Decoder, Encoder, Frame};
use walmgr_protocol::frame::Direction;
use walmgr_protocol::hello::{Hello, HelloAnswer, Refusal, Welcome, choose_version, coders};
use walmgr_protocol::limits::FRAME_PAYLOAD_BYTES;
use walmgr_protocol::message::{ErrorCode, Message, MessageKind};
use walmgr_protocol::version::VersionRange;

use crate::network::Running;
use crate::support::peer::{Peer, answer_to, hello, hello_bytes, read_arrived};
use crate::support::{Output, Site};

/// Many times what an end takes that does not hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// What one release said: the name of each frame and its bytes.
type Said = Vec<(String, Vec<u8>)>;

/// CRC-32 of the file of each release, in the order of their names.
const RELEASES: [(&str, u32); 1] = [("4.0.0-alpha.1", 0x71E3D8AF)];

/// The files of the releases, by release.
fn golden_files() -> BTreeMap<String, String> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/protocol/tests/golden");
    let files = std::fs::read_dir(folder).unwrap();
    files
        .map(|file| {
            let path = file.unwrap().path();
            let release = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (release, std::fs::read_to_string(path).unwrap())
        })
        .collect()
}

/// What the releases said, by release: lines of a name and the bytes in hexadecimal digits.
fn recorded() -> Vec<(String, Said)> {
    let line = |line: &str| {
        let (name, hex) = line.split_once(' ').unwrap();
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        let bytes = (0..hex.len()).step_by(2).map(byte).collect();
        (name.to_owned(), bytes)
    };
    let files = golden_files().into_iter();
    files
        .map(|(release, text)| (release, text.lines().map(line).collect()))
        .collect()
}

/// What this walmgr says after it read what a release said.
fn said_again(name: &str, bytes: &[u8]) -> Result<BytesMut, String> {
    let (mut inbox, mut out) = (BytesMut::from(bytes), BytesMut::new());
    let cut_short = || "it is cut short".to_owned();
    if name.starts_with("hello") {
        let hello = Hello::decode(&mut inbox).map_err(|fault| fault.to_string())?;
        let (versions, hello) = hello.ok_or_else(cut_short)?;
        let hello = hello.map_err(|fault| fault.to_string())?;
        hello.encode(versions, &mut out);
    } else if name == "welcome" || name.starts_with("refusal") {
        let answer = HelloAnswer::decode(&mut inbox).map_err(|fault| fault.to_string())?;
        answer.ok_or_else(cut_short)?.encode(&mut out);
    } else {
        let frame = frame(&mut inbox)?.ok_or_else(cut_short)?;
        let kind = format!("{:?}", frame.message.kind());
        if kind != name {
            return Err(format!("it is {kind}"));
        }
        Encoder::new(0).encode(frame.channel, &frame.message, &mut out);
    }
    match inbox.is_empty() {
        true => Ok(out),
        false => Err("bytes are left".to_owned()),
    }
}

fn frame(inbox: &mut BytesMut) -> Result<Option<Frame>, String> {
    let decoded = Decoder::new(0, FRAME_PAYLOAD_BYTES).decode(inbox);
    decoded.map_err(|fault| fault.to_string())
}

#[test]
fn fault_98_every_release_is_understood_and_said_again_byte_for_byte() {
    for (release, lines) in recorded() {
        for (name, bytes) in lines {
            let again = said_again(&name, &bytes);
            assert_eq!(again.as_deref(), Ok(&bytes[..]), "{release}: {name}");
        }
    }
}

#[test]
fn fault_98_no_byte_of_a_release_can_be_another_one() {
    for (release, lines) in recorded() {
        for (name, bytes) in lines {
            for at in 0..bytes.len() {
                let mut other = bytes.clone();
                other[at] ^= 0x01;
                let again = said_again(&name, &other);
                assert!(again.is_err(), "{release}: {name}, byte {at}: {again:?}");
            }
        }
    }
}

#[test]
fn fault_98_the_recorded_frames_of_a_release_stay_as_they_are() {
    let found: Vec<(String, String)> = golden_files()
        .into_iter()
        .map(|(release, text)| (release, format!("{:08x}", crc32fast::hash(text.as_bytes()))))
        .collect();
    let known: Vec<(String, String)> = RELEASES
        .iter()
        .map(|(release, crc32)| ((*release).to_owned(), format!("{crc32:08x}")))
        .collect();
    assert_eq!(
        found, known,
        "what a tagged release says is in the field: a change is a message or a version of its own, \
         as protocol/src/version.rs says. Before the tag, its checksum here changes with it"
    );
}

#[test]
fn fault_98_this_version_has_its_frames_and_a_changelog_section() {
    let version = env!("CARGO_PKG_VERSION");
    let is_recorded = RELEASES.iter().any(|(release, _)| *release == version);
    assert!(is_recorded, "{version} is not in protocol/tests/golden");
    let changelog = include_str!("../CHANGELOG.md");
    assert!(changelog.contains(&format!("\n## [{version}] - 20")));
}

#[test]
fn fault_98_this_version_recorded_every_kind_with_every_field_set() {
    let (_, lines) = recorded().pop().unwrap();
    let unset = [
        ": 0,", ": 0 ", ": false", ": None", ": \"\"", ": []", ": b\"\"",
    ];
    for kind in MessageKind::ALL {
        let name = format!("{kind:?}");
        let shown: Vec<String> = (lines.iter().filter(|(line, _)| *line == name))
            .map(|(_, bytes)| frame(&mut BytesMut::from(&bytes[..])))
            .map(|frame| format!("{:?},", frame.unwrap().unwrap().message))
            .collect();
        // An announcement is an offer that lacks just this.
        let without = |message: &String| match kind {
            MessageKind::Announcement => message.replacen("crc32: None, ", "", 1),
            _ => message.clone(),
        };
        let is_set = |message: &String| {
            let message = without(message);
            !unset.iter().any(|unset| message.contains(unset))
        };
        assert!(shown.iter().any(is_set), "{name}: {shown:#?}");
    }
    for name in ["hello-of-a-master", "hello-of-a-tool", "welcome", "refusal"] {
        assert!(lines.iter().any(|(line, _)| line == name), "no {name}");
    }
}

#[test]
fn fault_98_a_client_of_each_release_is_welcomed_and_told_what_it_asks() {
    for (release, lines) in recorded() {
        let line = |wanted: &str| {
            let line = lines.iter().find(|(name, _)| name == wanted);
            line.map_or_else(|| panic!("{release} has no {wanted}"), |(_, bytes)| bytes)
        };
        for name in ["hello-of-a-master", "hello-of-a-tool"] {
            let bytes = line(name);
            let (_, hello) = Hello::decode(&mut BytesMut::from(&bytes[..]))
                .unwrap()
                .unwrap();
            // A standby that nobody set up takes every cluster.
            let site = Site::builder().plain().unbound().build();
            let mut socket = crate::support::peer::dial(site.address());
            socket.write_all(bytes).unwrap();
            let mut inbox = BytesMut::new();
            let answer = read_until(&mut socket, &mut inbox, |inbox| {
                HelloAnswer::decode(inbox).unwrap()
            });
            let HelloAnswer::Welcome(1, welcome) = answer else {
                panic!("{release}: {answer:?}");
            };
            let nonce = hello.unwrap().nonce;
            let (mut encoder, mut decoder) = coders(Direction::FromClient, &nonce, &welcome);
            let mut asked = BytesMut::from(&line("OverviewRequest")[..]);
            let asked = Decoder::new(0, FRAME_PAYLOAD_BYTES).decode(&mut asked);
            let mut out = BytesMut::new();
            encoder.encode(0, &asked.unwrap().unwrap().message, &mut out);
            socket.write_all(&out).unwrap();
            let told = read_until(&mut socket, &mut inbox, |inbox| {
                decoder.decode(inbox).unwrap()
            });
            assert_eq!(told.message.kind(), MessageKind::Overview, "{release}");
        }
    }
}

fn read_until<T>(
    socket: &mut TcpStream,
    inbox: &mut BytesMut,
    mut whole: impl FnMut(&mut BytesMut) -> Option<T>,
) -> T {
    loop {
        if let Some(whole) = whole(inbox) {
            return whole;
        }
        let mut buffer = [0; 1024];
        let count = read_arrived(socket, &mut buffer).unwrap();
        assert!(count > 0, "hung up on");
        inbox.extend_from_slice(&buffer[..count]);
    }
}

fn plain_site() -> Site {
    Site::builder().plain().build()
}

#[test]
fn fault_98_a_client_of_other_versions_is_refused_in_words_or_served() {
    let site = plain_site();
    let hello = hello(Some(site.facts().cluster));
    for (lowest, highest, older) in [
        (2, 3, "receiver"),
        (7, u16::MAX, "receiver"),
        (0, 0, "client"),
        (3, 2, "receiver"),
    ] {
        let mut bytes = hello_bytes(&hello, lowest, highest);
        let refused = answer_to(site.address(), &bytes).expect("an answer in words");
        let HelloAnswer::Refused(refusal) = refused else {
            panic!("{lowest} to {highest} was welcomed");
        };
        assert_eq!(refusal.code, ErrorCode::Incompatible);
        assert!(
            refusal.message.contains("the receiver speaks 1"),
            "{refusal}"
        );
        assert!(
            refusal.hint.contains(&format!("upgrade the {older}'s")),
            "{}",
            refusal.hint
        );
        // Whatever the body of that version looks like.
        let body_bytes = bytes.len() - 20;
        bytes[16..16 + body_bytes].fill(0xEE);
        let crc = crc32fast::hash(&bytes[..16 + body_bytes]).to_le_bytes();
        bytes[16 + body_bytes..].copy_from_slice(&crc);
        let refused = answer_to(site.address(), &bytes);
        assert_eq!(refused, Some(HelloAnswer::Refused(refusal)));
    }
    site.receiver
        .wait_for_log("the client speaks protocol version 2 to 3");
    // One that can also do more is served in what both can.
    let mut socket = crate::support::peer::dial(site.address());
    socket.write_all(&hello_bytes(&hello, 1, 9)).unwrap();
    let answer = read_until(&mut socket, &mut BytesMut::new(), |inbox| {
        HelloAnswer::decode(inbox).unwrap()
    });
    assert!(matches!(answer, HelloAnswer::Welcome(1, _)), "{answer:?}");
}

#[test]
fn fault_98_a_broken_body_of_our_own_version_is_refused_in_words() {
    let site = plain_site();
    let mut bytes = hello_bytes(&hello(None), 1, 1);
    bytes[16] = 77;
    let end = bytes.len() - 4;
    let crc = crc32fast::hash(&bytes[..end]).to_le_bytes();
    bytes[end..].copy_from_slice(&crc);
    let Some(HelloAnswer::Refused(refusal)) = answer_to(site.address(), &bytes) else {
        panic!("not refused in words");
    };
    assert_eq!(refusal.code, ErrorCode::Malformed);
    assert!(refusal.message.contains("role cannot be 77"), "{refusal}");
}

#[test]
fn fault_98_unknown_kinds_and_flags_in_a_session_are_refused_in_words() {
    let site = plain_site();
    for (kind, flags) in [
        (0, 0),
        (6, 0),
        (255, 0),
        (MessageKind::Ping as u8, 1),
        (MessageKind::Offer as u8, 4),
    ] {
        for channel in [0, 1] {
            let mut peer = Peer::connect(site.address(), Some(site.facts().cluster));
            let frame = peer.raw_frame(kind, flags, channel, b"from the future");
            peer.send_bytes(&frame);
            let error = peer.last_words();
            assert_eq!(error.code, ErrorCode::Incompatible);
            assert!(error.message.contains("too far apart"), "{error}");
        }
    }
    // Known kinds with more behind their last field.
    let mut peer = Peer::connect(site.address(), Some(site.facts().cluster));
    let frame = peer.raw_frame(MessageKind::Ping as u8, 0, 0, b"more");
    peer.send_bytes(&frame);
    assert_eq!(peer.last_words().code, ErrorCode::Malformed);
    let mut peer = Peer::connect(site.address(), Some(site.facts().cluster));
    peer.send(0, &Message::Ping);
    assert_eq!(peer.answer(0), Message::Pong);
}

/// Lets `xarchive` meet something that is no receiver of its version.
fn meet(tls: bool, act: impl FnOnce(TcpStream) + Send + 'static) -> (Output, Duration) {
    let builder = Site::builder()
        .master_set("connect_timeout", "2")
        .master_set("push_timeout", "3");
    let mut site = if tls { builder } else { builder.plain() }.build();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let name = site.segment_name(1);
    site.write_segment(1);
    site.route(address);
    let begin = Instant::now();
    let running = Running::start(&site, &name);
    let (stream, _) = listener.accept().unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let acting = std::thread::spawn(move || act(stream));
    let output = running.end(Duration::from_secs(10));
    let elapsed = begin.elapsed();
    acting.join().unwrap();
    (output, elapsed)
}

/// Reads the client's hello.
fn heard(stream: &mut TcpStream) -> Hello {
    let mut inbox = BytesMut::new();
    loop {
        if let Some((_, hello)) = Hello::decode(&mut inbox).unwrap() {
            return hello.unwrap();
        }
        let mut buffer = [0; 1024];
        let count = read_arrived(stream, &mut buffer).unwrap();
        assert!(count > 0);
        inbox.extend_from_slice(&buffer[..count]);
    }
}

fn say(stream: &mut TcpStream, answer: &HelloAnswer) {
    let mut out = BytesMut::new();
    answer.encode(&mut out);
    stream.write_all(&out).unwrap();
}

fn until_closed(mut stream: TcpStream) {
    let _ = stream.read_to_end(&mut Vec::new());
}

fn welcome() -> Welcome {
    Welcome::with_our_limits([7; 16], None, "9.9".to_owned())
}

#[test]
fn fault_98_a_receiver_that_refuses_the_version_is_tried_again_later() {
    let range = |lowest, highest| VersionRange { lowest, highest };
    for ours in [range(2, 3), range(8, 9)] {
        let (output, _) = meet(false, move |mut stream| {
            heard(&mut stream);
            let refusal = choose_version(ours, VersionRange::OURS).unwrap_err();
            say(&mut stream, &HelloAnswer::Refused(refusal));
            until_closed(stream);
        });
        let line = output.fail(1);
        assert!(
            line.contains("the client speaks protocol version 1"),
            "{line}"
        );
        assert!(line.contains("upgrade the client's walmgr"), "{line}");
    }
    // A code of a later version is none of ours.
    let (output, _) = meet(false, |mut stream| {
        heard(&mut stream);
        let refusal = Refusal {
            code: ErrorCode::Internal,
            message: "a reason\nfrom the future".to_owned(),
            hint: "a hint".to_owned(),
        };
        let mut out = BytesMut::new();
        HelloAnswer::Refused(refusal).encode(&mut out);
        out[16..18].copy_from_slice(&999_u16.to_le_bytes());
        let end = out.len() - 4;
        let crc = crc32fast::hash(&out[..end]).to_le_bytes();
        out[end..].copy_from_slice(&crc);
        stream.write_all(&out).unwrap();
        until_closed(stream);
    });
    assert!(output.fail(1).contains("a reason from the future; a hint"));
}

#[test]
fn fault_98_a_receiver_that_chooses_a_version_we_do_not_speak_is_left() {
    for version in [0, 2, 9] {
        let (output, _) = meet(false, move |mut stream| {
            heard(&mut stream);
            say(&mut stream, &HelloAnswer::Welcome(version, welcome()));
            until_closed(stream);
        });
        let line = output.fail(1);
        assert!(
            line.contains(&format!("protocol version {version}")),
            "{line}"
        );
    }
}

#[test]
fn fault_98_whatever_else_is_on_the_port_is_named_within_the_deadline() {
    type Act = fn(TcpStream);
    let plain: [(&str, Act, &str); 7] = [
        (
            "http",
            |mut stream| {
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
                until_closed(stream);
            },
            "HTTP/1.1",
        ),
        (
            "ssh",
            |mut stream| {
                let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n");
                until_closed(stream);
            },
            "SSH-2.0",
        ),
        (
            "garbage",
            |mut stream| {
                let _ = stream.write_all(&[0xFF; 4096]);
                until_closed(stream);
            },
            "does not speak walmgr's protocol",
        ),
        (
            "half an answer",
            |mut stream| {
                let _ = stream.write_all(b"walmgr\n\r\x01\0\x01\0\x30\0\0\0half");
            },
            "ends before its fields do",
        ),
        (
            "half an answer, held",
            |mut stream| {
                let _ = stream.write_all(b"walmgr\n\r\x01\0\x01\0\x30\0\0\0half");
                until_closed(stream);
            },
            "did not introduce itself within 2s",
        ),
        (
            "nothing",
            until_closed,
            "did not introduce itself within 2s",
        ),
        ("an end", drop, "closed the connection"),
    ];
    for (what, act, words) in plain {
        let (output, elapsed) = meet(false, act);
        assert_eq!(output.code, Some(1), "{what}: {}", output.stderr);
        let line = output.fail(1);
        // A reset may come before what was said.
        assert!(
            line.contains(words) || line.contains("reset"),
            "{what}: {line}"
        );
        assert!(elapsed < PATIENCE, "{what}: {elapsed:?}");
    }
    let tls: [(&str, Act, &str); 3] = [
        (
            "http",
            |mut stream| {
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
                until_closed(stream);
            },
            "does not speak TLS",
        ),
        (
            "nothing",
            until_closed,
            "did not introduce itself within 2s",
        ),
        (
            "an end",
            |mut stream| {
                let _ = stream.read(&mut [0; 4096]);
            },
            "closed the connection during the TLS handshake",
        ),
    ];
    for (what, act, words) in tls {
        let (output, elapsed) = meet(true, act);
        let line = output.fail(1);
        assert!(line.contains(words), "{what} under TLS: {line}");
        assert!(elapsed < PATIENCE, "{what}: {elapsed:?}");
    }
}

#[test]
fn fault_98_a_receiver_with_nonsense_limits_or_silence_costs_one_attempt() {
    let mut small = welcome();
    small.block_bytes_max = 0;
    small.payload_bytes_max = 0;
    small.channels_max = 0;
    let no_receiver = "limits that no receiver of walmgr offers";
    let cases = [
        ("sane", welcome(), "push_timeout = 3s"),
        ("small", small, no_receiver),
    ];
    for (what, welcome, said) in cases {
        let (output, elapsed) = meet(false, move |mut stream| {
            heard(&mut stream);
            say(&mut stream, &HelloAnswer::Welcome(1, welcome));
            until_closed(stream);
        });
        let line = output.fail(1);
        assert!(line.contains(said), "{what}: {line}");
        assert!(elapsed < PATIENCE, "{what}: {elapsed:?}");
    }
}

#[test]
fn fault_99_an_archive_of_a_newer_format_is_left_alone() {
    for folder in ["logs.complete", "logs.partial"] {
        let site = Site::builder().stopped().build();
        let base = site.completed_wals().parent().unwrap().to_path_buf();
        let marker = base.join(folder).join(".walmgr-archive");
        let text = std::fs::read_to_string(&marker).unwrap();
        let newer = text
            .replace("\"format\":1", "\"format\":2")
            .replace("\"format\": 1", "\"format\": 2");
        assert_ne!(newer, text);
        std::fs::write(&marker, &newer).unwrap();
        // What a newer version may keep there is not cleared away.
        let theirs = site.completed_wals().join(".in.something.new");
        std::fs::write(&theirs, "x").unwrap();
        for word in ["receiver", "setup"] {
            let output = site.standby_command(&[word]);
            let line = output.fail(2);
            assert!(
                line.contains("has format 2, this walmgr knows up to 1"),
                "{line}"
            );
        }
        let line = site.standby_command(&["receiver"]).stderr;
        assert!(line.contains("upgrade walmgr on this host"), "{line}");
        assert_eq!(std::fs::read_to_string(&marker).unwrap(), newer);
        assert!(theirs.exists());
    }
}
