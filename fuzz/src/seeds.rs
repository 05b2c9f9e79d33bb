//! Inputs for the targets to begin with: real messages, tar streams and files, and slices of what
//! servers wrote. Never guesses a format: what is written here comes out of walmgr's own writers or
//! out of a server. Invariant: an input has at most 32 KiB, since longer ones only run slower.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bytes::BytesMut;
use walmgr::test_support::tar::{BLOCK_BYTES, writer};
use walmgr::test_support::wal::writer::WalWriter;
use walmgr_protocol::codec::Encoder;
use walmgr_protocol::fuzzing::{raw_messages, sample_messages, sample_stream};
use walmgr_protocol::message::{Backup, Data, Fetch, Message, Partial, Trial};
use walmgr_protocol::names::{SegmentName, SystemId, TimelineId, WalSegmentSize};
use walmgr_protocol::session::hello::{Hello, HelloAnswer, Role, Welcome};
use walmgr_protocol::version::VersionRange;

const INPUT_BYTES_MAX: usize = 32 << 10;

/// As a receiver writes it.
const ACKNOWLEDGED: &[u8] = b"000000010000000000000003 00000000/0312A4C8 boot \
    b9cf12a3-27be-4bb7-bd5c-0a81b0ba5c70 crc 00000000\n";

/// A page of WAL, and the segments that `collect.sh` has servers write.
const PAGE_BYTES: usize = 8192;
const SEGMENT_BYTES: u64 = 1 << 20;

/// Writes `FOLDER/TARGET/NAME` for every target; `collected` is what `collect.sh` made.
pub fn write(folder: &Path, collected: Option<&Path>) -> io::Result<()> {
    let seeds = Seeds(folder.to_owned());
    wire(&seeds)?;
    sessions(&seeds)?;
    tar_streams(&seeds)?;
    joints(&seeds)?;
    texts(&seeds)?;
    let Some(collected) = collected else {
        return Ok(());
    };
    for major in 13..=18_u8 {
        let server = collected.join(major.to_string());
        if server.is_dir() {
            of_server(&seeds, major, &server)?;
        }
    }
    Ok(())
}

struct Seeds(PathBuf);

impl Seeds {
    fn put(&self, target: &str, name: &str, input: &[u8]) -> io::Result<()> {
        let folder = self.0.join(target);
        fs::create_dir_all(&folder)?;
        let length = input.len().min(INPUT_BYTES_MAX);
        fs::write(folder.join(name), &input[..length])
    }
}

/// Frames, messages and introductions.
fn wire(seeds: &Seeds) -> io::Result<()> {
    let stream = sample_stream();
    seeds.put("frame", "all", &[&[0], &stream[..]].concat())?;
    seeds.put("frame", "in_pieces_of_7", &[&[7], &stream[..]].concat())?;
    for (at, message) in sample_messages().iter().enumerate() {
        let mut payload = BytesMut::new();
        let flags = message.encode(&mut payload);
        let kind = message.kind() as u8;
        let input = [&[kind, flags], &payload[..]].concat();
        seeds.put("message", &format!("{at}"), &input)?;
        let mut wire = BytesMut::new();
        Encoder::new(0).encode(3, message, &mut wire);
        seeds.put("frame", &format!("{at}"), &[&[1], &wire[..]].concat())?;
    }
    let hello = Hello {
        role: Role::Master,
        cluster: None,
        timeline: TimelineId::FIRST,
        nonce: [7; 16],
        software: "4.0.0".into(),
    };
    let mut said = BytesMut::new();
    hello.encode(VersionRange::OURS, &mut said);
    let mut answered = BytesMut::new();
    let newest = "00000001000000020000009A".parse().ok();
    let welcome = Welcome::with_our_limits([9; 16], newest, "4.0.0".into());
    HelloAnswer::Welcome(1, welcome).encode(&mut answered);
    seeds.put("hello", "hello", &[&[0], &said[..]].concat())?;
    seeds.put("hello", "welcome", &[&[0], &answered[..]].concat())
}

/// Conversations as a client says them, and choices that lead anywhere.
fn sessions(seeds: &Seeds) -> io::Result<()> {
    let samples = sample_messages();
    let of_flow = |belongs: fn(&Message) -> bool| -> Vec<Message> {
        samples
            .iter()
            .filter(|message| belongs(message))
            .cloned()
            .collect()
    };
    let push = of_flow(|message| {
        matches!(
            message,
            Message::Offer(_) | Message::Data(_) | Message::Commit(_)
        )
    });
    let partial = of_flow(|message| {
        matches!(
            message,
            Message::Partial(
                Partial::Begin(_) | Partial::Open(_) | Partial::Rewrite | Partial::Append(_)
            )
        )
    });
    let control = of_flow(|message| {
        matches!(
            message,
            Message::Backup(
                Backup::Begin(_) | Backup::Resume(_) | Backup::Part(_) | Backup::Finish(_)
            )
        )
    });
    let stream = of_flow(|message| {
        matches!(
            message,
            Message::Backup(Backup::Join(_) | Backup::HeldRequest(_) | Backup::StreamEnd(_))
        )
    });
    let fetch = of_flow(|message| {
        matches!(
            message,
            Message::Fetch(
                Fetch::GetFile(_) | Fetch::GetSet(_) | Fetch::GetOutline(_) | Fetch::GetPages(_)
            )
        )
    });
    let trial = of_flow(|message| {
        matches!(
            message,
            Message::Trial(Trial::Begin(_) | Trial::End(_)) | Message::Data(_)
        )
    });
    for (target, name, messages) in [
        ("push_session", "upload", push),
        ("partial_session", "stream", partial),
        ("backup_session", "control", control),
        ("backup_session", "stream", with_data(stream)),
        ("fetch_session", "fetch", fetch),
        ("trial_session", "trial", trial),
    ] {
        seeds.put(target, name, &raw_messages(&messages))?;
        for (at, message) in messages.iter().enumerate() {
            let alone = raw_messages(std::slice::from_ref(message));
            seeds.put(target, &format!("{name}_{at}"), &alone)?;
        }
    }
    let targets = [
        "push_session",
        "partial_session",
        "backup_session",
        "fetch_session",
        "trial_session",
        "hello",
    ];
    for target in targets {
        for seed in 1..=32_u32 {
            seeds.put(target, &format!("choices_{seed}"), &choices(seed))?;
        }
    }
    Ok(())
}

/// The blocks of a stream, behind the message that opens it.
fn with_data(mut messages: Vec<Message>) -> Vec<Message> {
    let block = |offset| {
        Message::Data(Data {
            offset,
            raw_bytes: 3,
            zstd: false,
            bytes: bytes::Bytes::from_static(b"tar"),
        })
    };
    messages.insert(1, block(0));
    messages.insert(2, block(3));
    messages
}

/// Up to 600 bytes that look random, mostly small, behind the byte that says that they are choices.
fn choices(seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9) | 1;
    let mut bytes = vec![1];
    for _ in 0..50 + (seed % 12) * 50 {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        let [low, _, small, high] = state.to_le_bytes();
        bytes.push(if high % 3 == 0 { low } else { small % 20 });
    }
    bytes
}

fn tar_streams(seeds: &Seeds) -> io::Result<()> {
    let long = format!("base/1/{}", "long".repeat(40));
    let mut plain = vec![255];
    writer::put_directory(&mut plain, b"base/1");
    put_file(&mut plain, b"base/1/1259", 0, b"a page");
    put_file(&mut plain, b"base/1/empty", 0, b"");
    plain.extend_from_slice(&writer::END);
    seeds.put("tar_stream", "plain", &plain)?;
    let mut extended = vec![3];
    put_file(&mut extended, long.as_bytes(), 1 << 20, b"goes on");
    put_file(&mut extended, b"base/1/1259", 8192, b"goes on");
    writer::put_file(&mut extended, b"base/1/2", 9 << 30, 0);
    seeds.put("tar_stream", "pax", &extended)?;
    let mut gnu = vec![100];
    put_gnu(&mut gnu, b'L', [long.as_bytes(), &[0]].concat());
    put_gnu(&mut gnu, b'0', b"content".to_vec());
    gnu.extend_from_slice(&writer::END);
    seeds.put("tar_stream", "gnu", &gnu)
}

fn put_file(out: &mut Vec<u8>, path: &[u8], offset: u64, content: &[u8]) {
    let size = content.len() as u64;
    writer::put_file(out, path, size, offset);
    out.extend_from_slice(content);
    out.resize(out.len() + writer::padding(size), 0);
}

/// An entry as GNU tar writes it.
fn put_gnu(out: &mut Vec<u8>, kind: u8, content: Vec<u8>) {
    let begin = out.len();
    put_file(out, b"././@LongLink", 0, &content);
    let header = &mut out[begin..begin + BLOCK_BYTES];
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar  \0");
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn texts(seeds: &Seeds) -> io::Result<()> {
    let names = [
        "00000001000000020000009A",
        "00000001000000020000009A.partial",
        "00000001000000020000009A.00000028.backup",
        "00000002.history",
    ];
    for name in names {
        seeds.put("names", name, name.as_bytes())?;
    }
    let connections = [
        "host=/run/postgresql port=5433 dbname=template1 user=postgres",
        "postgresql://user:pa%20ss@[::1]:5433,db2/base?sslmode=require&connect_timeout=10",
        "host='a b' application_name='it\\'s' sslmode=verify-full sslrootcert=system",
        "hostaddr=127.0.0.1 keepalives=1 options='-c geqo=off' target_session_attrs=read-write",
    ];
    for (at, text) in connections.iter().enumerate() {
        seeds.put("conninfo", &at.to_string(), text.as_bytes())?;
    }
    let list = "# hosts\ndb1.example.org push,read\n\nspiffe://example.org/db2 backup\n";
    seeds.put("authorized_names", "two", list.as_bytes())?;
    seeds.put("acknowledged_end", "whole", ACKNOWLEDGED)?;
    // A time behind the header and the mark of short content, and a restore point's name.
    let header = [0; 24];
    seeds.put(
        "commit_record",
        "time",
        &[&header[..], &[255, 8, 1, 2, 3, 4, 5, 6, 7, 0]].concat(),
    )?;
    seeds.put(
        "commit_record",
        "name",
        &[&header[..], &[254, 9, 0, 0, 0], &[0; 8], b"x\0"].concat(),
    )?;
    for (at, end) in [
        "end closed 0/9\n",
        "end open 0/9 after 0/7\n",
        "end inside\nfound\n",
        "",
    ]
    .iter()
    .enumerate()
    {
        let lines =
            format!("name 000000010000000000000003\nlength 16777216\ncrc32 00000007\n{end}");
        let text = format!("{lines}check 00000000\n");
        seeds.put("kept_checksum", &at.to_string(), text.as_bytes())?;
    }
    let index = "walmgr names 1\nfolder 2050 131073 1 2\nboot b9cf12a3-27be-4bb7-bd5c-0a81b0ba5c70\nsize 16777216\n\
        plain 000000010000000000000001 000000010000000100000002\npacked 000000010000000100000003 000000010000000100000003\n\
        other 00000002.history\ncheck 00000000\n";
    seeds.put("held_names", "index", index.as_bytes())?;
    let note = "verified 1 wal\n000000010000000000000003 7 16777216 1 2 0000000A 3 first 0/3000148 5 last 0/30FF120 \
        6 open 0/3FFFFE8\n00000002.history 8 41 1 2 0000000B 3\ncheck 00000000\n";
    seeds.put("verified_note", "wal", note.as_bytes())?;
    let settings = "archive_command = 'cp %p /x'\ninclude '../y'\nport=1 # z\n\
        shared_preload_libraries = '$libdir/a,/tmp/b'\nlog_directory 'log'\n\
        host all all 0.0.0.0/0 trust\nlocal all all peer\n";
    seeds.put("foreign_settings", "orders", settings.as_bytes())?;
    let included = "include 'b'\ninclude_dir 'd'\ninclude_if_exists 'c/b'\nssl = on\n\
        ssl_ca_file = '/x/ca'\nkrb_server_keyfile 'FILE:/x/tab'\n";
    let access =
        "hba_file = 'hba'\ninclude \"more\"\ninclude_dir d\nlocal all @users,\"x\" peer # y\n";
    for (name, texts) in [
        ("settings", vec![included]),
        ("access", vec![access]),
        ("both", vec![included, access]),
        ("round", vec![access, included, access]),
    ] {
        seeds.put("conf_pieces", name, texts.join("\0").as_bytes())?;
    }
    certificates(seeds)?;
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/config/testdata");
    for entry in fs::read_dir(files)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "ini") {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            seeds.put("ini", &name, &fs::read(&path)?)?;
        }
    }
    Ok(())
}

/// One with names, one with a common name alone.
fn certificates(seeds: &Seeds) -> io::Result<()> {
    let key = rcgen::KeyPair::generate().map_err(io::Error::other)?;
    let uri = "spiffe://example.org/db1".try_into();
    let uri = rcgen::SanType::URI(uri.map_err(io::Error::other)?);
    for (name, names, uris) in [
        ("names", vec!["db1.example.org".to_owned()], vec![uri]),
        ("common", Vec::new(), Vec::new()),
    ] {
        let parameters = rcgen::CertificateParams::new(names);
        let mut parameters = parameters.map_err(io::Error::other)?;
        parameters.subject_alt_names.extend(uris);
        let certificate = parameters.self_signed(&key).map_err(io::Error::other)?;
        seeds.put("certificate", name, certificate.der())?;
        // As a server's that is its own authority.
        let der: &[u8] = certificate.der();
        let length = u16::try_from(der.len()).map_err(io::Error::other)?;
        let both = [&length.to_be_bytes()[..], der, der].concat();
        seeds.put("server_certificate", name, &both)?;
    }
    // One that is marked as an authority's, which webpki leaves to us, and the authority above it.
    let marked = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut parameters = rcgen::CertificateParams::new(names).map_err(io::Error::other)?;
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(1));
        io::Result::Ok(parameters)
    };
    let (above, below) = (marked(&["above"])?, marked(&["db1.example.org", "::1"])?);
    let of_below = rcgen::KeyPair::generate().map_err(io::Error::other)?;
    let below = below.signed_by(&of_below, &rcgen::Issuer::from_params(&above, &key));
    let below = below.map_err(io::Error::other)?;
    let above = above.self_signed(&key).map_err(io::Error::other)?;
    let length = u16::try_from(below.der().len()).map_err(io::Error::other)?;
    let both = [&length.to_be_bytes()[..], below.der(), above.der()].concat();
    seeds.put("server_certificate", "marked", &both)
}

/// What `collect.sh` took from one server.
fn of_server(seeds: &Seeds, major: u8, server: &Path) -> io::Result<()> {
    for entry in fs::read_dir(server)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let content = fs::read(&path)?;
        let named = |what: &str| format!("pg{major}_{what}");
        match name.as_str() {
            "pg_control" => {
                let length = content.len().min(300);
                seeds.put("pg_control", &named("control"), &content[..length])?;
            }
            "postmaster.pid" => seeds.put("postmaster_pid", &named("pid"), &content)?,
            "backup_label" => seeds.put("backup_label", &named("label"), &content)?,
            "postgresql.conf" => {
                let length = content.len().min(4 << 10);
                let last = &content[content.len().saturating_sub(1 << 10)..];
                seeds.put("conf_edit", &named("begin"), &content[..length])?;
                seeds.put("foreign_settings", &named("begin"), &content[..length])?;
                seeds.put("conf_edit", &named("end"), last)?;
            }
            "backup_manifest" => {
                seeds.put("manifest", &named("manifest"), &short_manifest(&content))?;
            }
            "base.tar" => {
                let stream = [&[128], &short_tar(&content)[..]].concat();
                seeds.put("tar_stream", &named("base"), &stream)?;
            }
            _ if name.ends_with(".history") => {
                let text = [&2_u32.to_le_bytes(), &content[..]].concat();
                seeds.put("history", &named("history"), &text)?;
                seeds.put(
                    "segment",
                    &named("history"),
                    &[&[64, 0, 3, 0], &content[..]].concat(),
                )?;
            }
            _ if name.ends_with(".backup") => {
                let text = [&[1, 0, 40, 0], &content[..]].concat();
                seeds.put("segment", &named("backup"), &text)?;
            }
            _ if name.len() == 24 => wal(seeds, &named(&name[16..]), major, &name, &content)?,
            _ => {}
        }
    }
    Ok(())
}

/// The last page of a segment and the first two of the next: a record runs over the boundary, ends at
/// it, or goes on for longer than there are pages.
fn joints(seeds: &Seeds) -> io::Result<()> {
    let size = WalSegmentSize::DEFAULT;
    let name = SegmentName::from_number(TimelineId::FIRST, 2, size);
    let boundary = 16_usize << 20;
    for (what, lengths) in [
        ("over", [boundary - 30_000, 9_000, 30_000, 700]),
        ("short", [boundary - 12_000, 3_000, 12_000, 700]),
        ("long", [boundary - 30_000, 90_000, 100, 700]),
    ] {
        let mut writer = WalWriter::new(name, size, SystemId(7), 15);
        for length in lengths {
            writer.record(10, 0, &vec![7; length]);
        }
        let end = (boundary + 2 * PAGE_BYTES).min(writer.bytes().len());
        let both = &writer.bytes()[boundary - PAGE_BYTES..end];
        seeds.put("wal_joint", what, &[&[7, 0], both].concat())?;
    }
    Ok(())
}

/// The first lines and the last ones: thousands of entries in between are alike.
fn short_manifest(content: &[u8]) -> Vec<u8> {
    let lines: Vec<&[u8]> = content.split_inclusive(|byte| *byte == b'\n').collect();
    let end = lines.len().saturating_sub(6);
    [&lines[..8.min(end)], &lines[end..]].concat().concat()
}

/// The first small entries of an archive, and its end.
fn short_tar(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = content;
    while let Some(header) = rest.first_chunk::<BLOCK_BYTES>() {
        let size = std::str::from_utf8(&header[124..135]).unwrap_or_default();
        let Ok(size) = usize::from_str_radix(size, 8) else {
            break;
        };
        let length = BLOCK_BYTES + size.next_multiple_of(BLOCK_BYTES);
        let Some((entry, behind)) = rest.split_at_checked(length) else {
            break;
        };
        if size <= 2 * BLOCK_BYTES && out.len() < 12 << 10 {
            out.extend_from_slice(entry);
        }
        rest = behind;
    }
    out.extend_from_slice(&writer::END);
    out
}

/// The begin of a segment and the end of what was written of it, for the scanner and the check.
fn wal(seeds: &Seeds, label: &str, major: u8, name: &str, content: &[u8]) -> io::Result<()> {
    let number = |range: std::ops::Range<usize>| {
        u64::from_str_radix(&name[range], 16).map_err(io::Error::other)
    };
    let start = (number(8..16)? << 32) + number(16..24)? * SEGMENT_BYTES;
    let written = content
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |at| at + 1);
    let last_page = written / PAGE_BYTES * PAGE_BYTES;
    for (place, from, to) in [
        ("begin", 0, 2 * PAGE_BYTES),
        ("end", last_page.saturating_sub(PAGE_BYTES), written + 64),
    ] {
        let start = start + from as u64;
        let slice = &content[from..to.min(content.len())];
        let input = [&[0, 7, 0, 1], &start.to_le_bytes()[..], slice].concat();
        seeds.put("wal_scan", &format!("{label}_{place}"), &input)?;
        let offset = u16::try_from(from / 8 % (1 << 16))
            .unwrap_or(0)
            .to_le_bytes();
        let input = [&[9, major - 12], &offset[..], slice].concat();
        seeds.put("wal_behind", &format!("{label}_{place}"), &input)?;
    }
    let begin = &content[..(2 * PAGE_BYTES).min(content.len())];
    let whole = &content[..written];
    // 6 numbers the versions from 13 on, as the body reads them.
    let settings = [3, major - 12, 0, 0];
    seeds.put(
        "segment",
        &format!("{label}_begin"),
        &[&settings, begin].concat(),
    )?;
    if written < INPUT_BYTES_MAX {
        seeds.put(
            "segment",
            &format!("{label}_whole"),
            &[&settings, whole].concat(),
        )?;
    }
    Ok(())
}
