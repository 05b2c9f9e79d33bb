//! Fuzz bodies for everything in this room that reads bytes it did not write.
//! Never part of a command. Invariant: each takes any bytes and asserts what must hold for all.

use aws_lc_rs::digest::{SHA256, digest};
use walmgr_protocol::limits::SET_ENTRIES_MAX;
use walmgr_protocol::names::SystemId;

use super::backup_label::BackupLabel;
use super::conf::{self, foreign};
use super::conninfo::{self, Environment};
use super::control;
use super::data_directory::Postmaster;
use super::hba;
use super::manifest::{FileEntry, Reader, Scan, Writer};
use super::tablespace_map;

/// Control files: no panic, and nothing behind the checksum matters.
pub fn control_file(bytes: &[u8]) {
    if let Ok(control) = control::parse(bytes) {
        let mut longer = bytes.to_vec();
        longer.push(0xFF);
        assert_eq!(control::parse(&longer).as_ref(), Ok(&control));
    }
}

/// `postmaster.pid`: no panic, and no process group or "every process" as an id to signal.
pub fn postmaster_pid(bytes: &[u8]) {
    if let Some(postmaster) = Postmaster::parse(&String::from_utf8_lossy(bytes)) {
        assert!(postmaster.pid > 0);
    }
}

/// `postgresql.conf`: an edit can be read back, and doing it again changes nothing.
pub fn conf_edit(bytes: &[u8]) {
    let changes = [
        ("archive_command", "'walmgr' \\ %p"),
        ("archive_mode", "on"),
    ];
    let edit = |text: &[u8]| conf::edit(text, &changes).expect("names and values are valid");
    let (edited, made) = edit(bytes);
    for (name, value) in changes {
        assert_eq!(conf::value(&edited, name).as_deref(), Some(value));
    }
    assert!(made.len() <= changes.len());
    let (again, nothing) = edit(&edited);
    assert!(nothing.is_empty() && again == edited);
}

/// Settings and access rules from another host: what is left runs nothing and includes nothing from
/// elsewhere, looking again finds nothing more, and no line of a foreign file is wider than itself.
pub fn foreign_settings(bytes: &[u8]) {
    let data = std::path::Path::new("/srv/data");
    let host = foreign::Host { own: b"", data };
    let (kept, off) = host.neutralise(bytes, data);
    assert!(kept.len() >= bytes.len());
    for name in ["archive_command", "restore_command", "archive_library"] {
        let left = conf::value(&kept, name).unwrap_or_default();
        assert_eq!(left, "", "{name} is left");
    }
    let (again, nothing) = host.neutralise(&kept, data);
    assert!(
        nothing.is_empty() && again == kept,
        "{off:?}, then {nothing:?}"
    );
    assert!(hba::wider(bytes, Some(bytes)).is_empty());
    let all = hba::wider(bytes, Some(b""));
    assert!(
        hba::wider(bytes, None)
            .iter()
            .all(|line| all.contains(line))
    );
}

/// Connection strings: no panic, and never a session with TLS silently left out.
pub fn connection_string(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(config) = conninfo::parse(&text, &Environment::default()) {
        assert!(config.get_user().is_some());
        assert!(!config.get_ports().is_empty());
    }
}

/// `backup_label`: what is accepted is written back byte for byte.
pub fn backup_label(bytes: &[u8]) {
    if let Ok(label) = BackupLabel::parse(bytes) {
        assert_eq!(label.to_bytes(), bytes);
    }
}

/// `tablespace_map`: the same tablespaces, each once, after the map has been written again.
pub fn tablespace_map(bytes: &[u8]) {
    for major in [13, 18] {
        let Ok(map) = tablespace_map::parse(bytes, major) else {
            continue;
        };
        let mut oids: Vec<u32> = map.iter().map(|tablespace| tablespace.oid).collect();
        oids.sort_unstable();
        oids.dedup();
        assert_eq!(oids.len(), map.len());
        // 13 cannot write a backslash before the end of a line.
        if major > 13 {
            let written = tablespace_map::to_bytes(&map, major);
            assert_eq!(tablespace_map::parse(&written, major), Ok(map));
        }
    }
}

/// `backup_manifest`: no panic and no entry without a right checksum; the second time with one, so
/// that what lies behind it is reached. What is read can be written and read again.
pub fn manifest(bytes: &[u8]) {
    read_manifest(bytes);
    let digest = digest(&SHA256, bytes);
    let digest: String = (digest.as_ref().iter())
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let line = format!("\"Manifest-Checksum\": \"{digest}\"}}\n");
    read_manifest(&[bytes, line.as_bytes()].concat());
}

fn read_manifest(bytes: &[u8]) {
    let scan = |piece_bytes: usize| {
        let mut scan = Scan::new(&["PG_VERSION", "a"]);
        (bytes.chunks(piece_bytes)).try_for_each(|piece| scan.feed(piece))?;
        scan.finish()
    };
    let is_equal = match (scan(bytes.len().max(1)), scan(7)) {
        (Ok(whole), Ok(pieces)) => whole == pieces,
        (whole, pieces) => whole.is_err() && pieces.is_err(),
    };
    assert!(is_equal, "entries depend on the pieces");
    let Ok(reader) = Reader::new(bytes) else {
        return;
    };
    let (system_id, ranges) = (reader.system_id(), reader.wal_ranges().to_vec());
    let Ok(files) = reader.collect::<Result<Vec<FileEntry>, _>>() else {
        return;
    };
    assert!(files.len() <= SET_ENTRIES_MAX);
    let major = if system_id.is_some() { 17 } else { 16 };
    let rewrite = || {
        let mut writer = Writer::new(Vec::new(), major, system_id.unwrap_or(SystemId(0)))?;
        files.iter().try_for_each(|file| writer.add(file))?;
        writer.finish(&ranges)
    };
    let written: std::io::Result<Vec<u8>> = rewrite();
    let written = written.expect("a vector takes everything");
    let again = Reader::new(&written).expect("it was just written");
    assert_eq!(
        (again.system_id(), again.wal_ranges()),
        (system_id, &ranges[..])
    );
    let again: Result<Vec<FileEntry>, _> = again.collect();
    assert_eq!(again, Ok(files));
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{CONTROL_FILES, control_file as fixture};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn damaged_real_files_satisfy_the_fuzz_bodies() {
        for (major, _) in CONTROL_FILES {
            let mut file = fixture(major);
            file.truncate(300);
            for at in 0..file.len() {
                control_file(&file);
                file[at] ^= 0x55;
                control_file(&file[..at]);
                control_file(&file);
                file[at] ^= 0x55;
            }
        }
    }

    /// Bytes whose checksum is right reach the checks behind it.
    #[test]
    fn nonsense_under_a_right_checksum_satisfies_the_fuzz_body() {
        for (major, _) in CONTROL_FILES {
            let crc_at = if major == 18 { 292 } else { 288 };
            for at in (16..crc_at).filter(|at| *at < 8 || *at >= 12) {
                let mut file = fixture(major);
                file[at] ^= 0xFF;
                let crc = crc32c::crc32c(&file[..crc_at]);
                file[crc_at..crc_at + 4].copy_from_slice(&crc.to_ne_bytes());
                control_file(&file);
            }
        }
    }

    const LABEL: &[u8] = b"START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
        CHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
        START TIME: now\nLABEL: x\nSTART TIMELINE: 1\n\
        INCREMENTAL FROM LSN: 0/1000028\nINCREMENTAL FROM TLI: 1\n";
    const MANIFEST: &[u8] = b"{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\
        \"System-Identifier\": 7,\n\"Files\": [\n\
        { \"Path\": \"a\\n\", \"Size\": 1, \"Last-Modified\": \"2026-01-02 03:04:05 GMT\", \
        \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"01020304\" },\n\
        { \"Encoded-Path\": \"61ff\", \"Size\": 2, \"Last-Modified\": \"1970-01-01 00:00:00 GMT\" }\n\
        ],\n\"WAL-Ranges\": [\n\
        { \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }\n],\n";

    #[test]
    fn damaged_files_of_a_backup_satisfy_the_fuzz_bodies() {
        let map = b"16385 /srv/a\\\\b\n16390 /srv/line\\\nend\n";
        let settings = b"archive_command = 'cp %p /x'\ninclude '../y'\nport=1 # z\n\
            shared_preload_libraries = '$libdir/a,/tmp/b'\nlog_directory 'log'\n";
        for_every_damage(settings, foreign_settings);
        for_every_damage(LABEL, backup_label);
        for_every_damage(map, tablespace_map);
        for_every_damage(MANIFEST, manifest);
    }

    fn for_every_damage(whole: &[u8], body: fn(&[u8])) {
        body(whole);
        for at in 0..whole.len() {
            body(&whole[..at]);
            for bit in 0..8 {
                let mut damaged = whole.to_vec();
                damaged[at] ^= 1 << bit;
                body(&damaged);
                damaged.remove(at);
                body(&damaged);
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_satisfy_the_fuzz_bodies(bytes: Vec<u8>, text in "[a-z'= \\\\\n#_0-9]{0,60}") {
            for bytes in [bytes.as_slice(), text.as_bytes()] {
                control_file(bytes);
                postmaster_pid(bytes);
                conf_edit(bytes);
                foreign_settings(bytes);
                connection_string(bytes);
                backup_label(bytes);
                tablespace_map(bytes);
                manifest(bytes);
            }
        }
    }
}
