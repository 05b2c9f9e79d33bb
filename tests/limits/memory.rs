//! What a key with the right to make backups can make the receiver remember.
//! Never sends more than the receiver takes. Invariant: its memory stays within 32 MiB, 4 MiB more for
//! each connection, and what the backup's own files cost.

use std::time::Duration;

use walmgr::test_support::tar::writer::put_directory;
use walmgr_protocol::limits::{BLOCK_BYTES_MAX, MANIFEST_FRAME_BYTES_MAX, SET_PATH_BYTES_MAX};
use walmgr_protocol::message::backup::{Backup, Join, Part, PartName};
use walmgr_protocol::message::{ErrorCode, Message};

use super::still_serves;
use crate::support::hostile::{Answered, ForgedSet, Key, Refused, ask, next, send_part};
use crate::support::peer::{Peer, data};
use crate::support::{Site, soak, wait_for};

/// What it remembers of a file or directory beside its path, as docs/explain/receiver.md says.
const ENTRY_BYTES: u64 = 200;

/// What the receiver may have: its own, and that of so many connections.
fn bound_kib(connections: u64) -> u64 {
    (32 << 10) + connections * (4 << 10)
}

fn set_of_nothing(site: &Site) -> ForgedSet {
    still_serves(site, 1);
    ForgedSet::at(site, site.segment_name(1).parse().unwrap(), Vec::new())
}

fn code<T: std::fmt::Debug>(answered: &Answered<T>) -> ErrorCode {
    match answered {
        Err(Refused::InWords(error)) => error.code,
        other => panic!("{other:?}"),
    }
}

/// Announces a part and sends as much of it as the receiver takes.
fn announce(control: &mut Peer, name: PartName, size: u64) -> Answered<()> {
    let part = Part {
        name,
        size,
        crc32: 0,
    };
    control.send(1, &Message::Backup(Backup::Part(part)));
    let zeros = vec![0; BLOCK_BYTES_MAX as usize];
    for offset in (0..size).step_by(zeros.len()) {
        control.send(1, &data(offset, &zeros));
    }
    next(control).map(drop)
}

#[test]
fn fault_115_manifest_is_bounded_by_what_arrived_and_parts_are_unique() {
    let site = Site::start();
    let set = set_of_nothing(&site);
    let key = Key::stolen(&site);
    let mut control = key.connect(&site);
    set.begin(&mut control).unwrap();
    let refused = announce(&mut control, PartName::Manifest, 16 << 20);
    assert_eq!(code(&refused), ErrorCode::TooLarge);
    let mut control = key.connect(&site);
    set.begin(&mut control).unwrap();
    for _ in 0..3 {
        send_part(&mut control, PartName::Label, &set.label);
    }
    assert_eq!(code(&next(&mut control)), ErrorCode::Misbehaved);
    let peak = site.receiver.memory_peak_kib();
    println!("{peak} KiB");
    assert!(peak < bound_kib(2), "{peak} KiB");
    // What fits is taken.
    let sent = set.send(&site, &key).map_err(|refused| refused.words());
    assert!(!format!("{sent:?}").contains("manifest has"), "{sent:?}");
    still_serves(&site, 2);
}

#[test]
fn fault_115_the_paths_of_a_set_are_bounded_together() {
    let site = Site::start();
    let set = set_of_nothing(&site);
    let key = Key::stolen(&site);
    let mut control = key.connect(&site);
    let token = set.begin(&mut control).unwrap();
    let mut stream = key.connect(&site);
    ask(
        &mut stream,
        1,
        &Message::Backup(Backup::Join(Join { token, stream: 0 })),
    )
    .unwrap();
    let mut tar = Vec::new();
    let mut offset = 0;
    for number in 0..30_000 {
        // Sixteen directories deep, none of them known before.
        let component = format!("{number:0250}");
        let path = [component.as_str(); 15].join("/");
        put_directory(&mut tar, path.as_bytes());
        if tar.len() >= 128 << 10 {
            stream.send(1, &data(offset, &tar));
            offset += tar.len() as u64;
            tar.clear();
        }
        if offset > 64 << 20 {
            break;
        }
    }
    let refused = next(&mut stream);
    assert_eq!(code(&refused), ErrorCode::TooLarge, "{refused:?}");
    let peak = site.receiver.memory_peak_kib();
    println!("{peak} KiB");
    // Each path once, and what it costs to find it.
    let paths_kib = (SET_PATH_BYTES_MAX as u64 * 5 / 4) >> 10;
    assert!(peak < bound_kib(2) + paths_kib, "{peak} KiB");
    still_serves(&site, 2);
}

/// Directories in all: at most as many as a large cluster has files.
fn entries() -> u64 {
    if soak() { 30_000 } else { 5_000 }
}

#[test]
fn fault_115_backup_memory_is_bounded_by_entries_paths_and_manifest() {
    let site = Site::start();
    let set = set_of_nothing(&site);
    let key = Key::stolen(&site);
    let mut control = key.connect(&site);
    let token = set.begin(&mut control).unwrap();
    let mut streams = Vec::new();
    let mut path_bytes = 0;
    for stream in 0..5_u16 {
        let mut peer = key.connect(&site);
        let join = Join { token, stream };
        ask(&mut peer, 1, &Message::Backup(Backup::Join(join))).unwrap();
        let (mut tar, mut offset) = (Vec::new(), 0);
        for number in 0..entries() / 5 {
            let path = format!("{stream}{number:0199}");
            path_bytes += path.len() as u64;
            put_directory(&mut tar, path.as_bytes());
            if tar.len() >= 128 << 10 {
                peer.send(1, &data(offset, &tar));
                offset += tar.len() as u64;
                tar.clear();
            }
        }
        peer.send(1, &data(offset, &tar));
        streams.push(peer);
    }
    let incoming = site.archive_folder().join("data.master.incoming");
    wait_for("the entries", Duration::from_secs(120), || {
        let made = std::fs::read_dir(&incoming).ok()?.count() as u64;
        (made >= entries()).then_some(())
    });
    // Directories have no line in a manifest.
    let refused = announce(&mut control, PartName::Manifest, 16 << 20);
    assert_eq!(code(&refused), ErrorCode::TooLarge);
    drop(streams);
    let peak = site.receiver.memory_peak_kib();
    println!("{peak} KiB, {path_bytes} bytes of paths");
    let entries_kib = (entries() * ENTRY_BYTES) >> 10;
    let paths_kib = (path_bytes * 5 / 4) >> 10;
    let manifest_kib = MANIFEST_FRAME_BYTES_MAX >> 10;
    let bound = bound_kib(6) + entries_kib + paths_kib + manifest_kib;
    assert!(peak < bound, "{peak} of {bound} KiB");
    still_serves(&site, 2);
}
