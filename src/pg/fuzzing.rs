//! Fuzz bodies for every parser of outside bytes in this module.
//! Never part of a command. Invariant: each takes any bytes and asserts what must hold for all.

use std::collections::BTreeSet;

use aws_lc_rs::digest::{SHA256, digest};
use walmgr_protocol::limits::SET_ENTRIES_MAX;
use walmgr_protocol::names::SystemId;

use super::archive_command;
use super::backup_history::{BackupHistory, seconds_until};
use super::backup_label::BackupLabel;
use super::conf::{self, CommandLine, foreign};
use super::conninfo::{self, Environment};
use super::control;
use super::data_directory::Postmaster;
use super::encryption::{self, settings::SslMode};
use super::hba;
use super::manifest::{FileEntry, ManifestWriter, Reader, Scan};
use super::replication_messages::{self, HEAD_BYTES};
use super::synchronous_names::SynchronousNames;
use super::tablespace_map;

/// `synchronous_standby_names`: no panic, and what was read can be written in quotes and read again.
pub fn synchronous_names(bytes: &[u8]) {
    let Ok(names) = SynchronousNames::parse(&String::from_utf8_lossy(bytes)) else {
        return;
    };
    let quoted: Vec<String> = (names.names.iter())
        .map(|name| format!("\"{}\"", name.replace('"', "\"\"")))
        .collect();
    let how = if names.is_any { "ANY" } else { "FIRST" };
    let text = format!("{how} {} ({})", names.needed, quoted.join(","));
    let again = SynchronousNames::parse(&text).expect("a list in quotes can be read");
    assert_eq!(again, names);
    assert!(names.names.iter().all(|name| names.takes(name)));
}

/// What a server sends while it streams WAL: no panic, no message beyond its bound, and WAL that ends where its bytes do.
pub fn replication_messages(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(Some((kind, length))) = replication_messages::head(rest) {
        let Some(body) = rest.get(HEAD_BYTES..HEAD_BYTES + length) else {
            return;
        };
        rest = &rest[HEAD_BYTES + length..];
        match kind {
            b'd' => {
                let found = replication_messages::streamed(body);
                if let Ok(replication_messages::StreamSaid::Wal { end }) = found {
                    assert!(end.0 >= body.len() as u64 - 25);
                }
            }
            b'D' => {
                let columns = replication_messages::row(body).unwrap_or_default();
                assert!(columns.len() <= body.len());
            }
            _ => drop(replication_messages::refusal(body)),
        }
    }
}

/// Control files: no panic, and nothing behind the checksum matters.
pub fn control_file(bytes: &[u8]) {
    if let Ok(control) = control::parse(bytes) {
        let mut longer = bytes.to_vec();
        longer.push(0xFF);
        assert_eq!(control::parse(&longer).as_ref(), Ok(&control));
    }
}

/// `postmaster.pid` and `postmaster.opts`: no panic, no process group or "every process" as an id to signal, and
/// an option is not lost for one behind it.
pub fn postmaster_pid(bytes: &[u8]) {
    let line = CommandLine::parse(bytes);
    let longer = [bytes, b" \"-c\" \"port=7\"\n"].concat();
    let is_known = line.value("port").is_some() && bytes.ends_with(b"\"");
    if is_known && !bytes.contains(&b'\n') {
        assert!(CommandLine::parse(&longer).value("port").is_some());
    }
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
    if let Some(command) = conf::value(bytes, "archive_command") {
        let ours = archive_command::Ours {
            ini: std::path::Path::new("/srv/m.ini"),
            data: std::path::Path::new("/srv/data"),
        };
        let kept = archive_command::is_worth_keeping(&command, &ours);
        let destination = archive_command::destination(&command, &ours);
        assert!(!kept || destination == archive_command::Destination::Here);
    }
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

/// Configurations in pieces, a text each behind a zero byte: an end, also where files include each other or
/// all that there are; each file once, with what names it.
pub fn conf_pieces(bytes: &[u8]) {
    let Ok(found) = conf::pieces_in_texts(bytes) else {
        return;
    };
    let paths: BTreeSet<_> = found.iter().map(|piece| &piece.path).collect();
    assert_eq!(paths.len(), found.len(), "a file is named twice");
    for piece in &found {
        assert!(piece.path.is_absolute() && piece.named_in.is_absolute());
        assert!(!piece.setting.is_empty());
    }
}

/// Connection strings: no panic, never less TLS than was asked for, and no secret in an error. The
/// environment has a user and nothing else. Behind a zero byte each follow `pg_service.conf` and
/// `.pgpass`.
pub fn connection_string(bytes: &[u8]) {
    let all = String::from_utf8_lossy(bytes);
    let mut parts = all.splitn(3, '\0');
    let mut next = || parts.next().unwrap_or_default();
    let (text, services, passwords) = (next(), next(), next());
    let served = conninfo::service_in(services, passwords);
    assert!(
        served
            .iter()
            .all(|name| conninfo::options::find(name).is_some() && *name != "service")
    );
    let environment = Environment::default().with_variable("USER", "u");
    if let Ok(info) = conninfo::parse(text, &environment) {
        assert!(!info.places.is_empty() && !info.user.is_empty());
        let mode = info.encryption.mode;
        assert!(!info.encryption.direct || mode >= SslMode::Require);
        for (word, least) in [
            ("require", SslMode::Require),
            ("verify-full", SslMode::VerifyFull),
        ] {
            let again = format!("{text} sslmode={word}");
            // Behind an address or an open value the words belong to what is before them.
            if let (false, Ok(again)) =
                (text.contains("://"), conninfo::parse(&again, &environment))
                && !text.trim_end().ends_with(['=', '\\'])
            {
                assert!(again.encryption.mode >= least, "{text:?}");
            }
        }
    }
    if let Ok((open, _)) = conninfo::without_password(text) {
        let again = conninfo::without_password(&open).expect("what was written can be read");
        assert_eq!(again, (open, None));
    }
    for secret in ["password=", "x='y' sslpassword=", "postgres://u:"] {
        let end = if secret.ends_with(':') { "@h/%" } else { " =" };
        let text = format!("{secret}Zq7{end}");
        let error = conninfo::parse(&text, &environment)
            .err()
            .map(|error| error.to_string());
        assert!(!error.unwrap_or_default().contains("Zq7"), "{text}");
    }
}

/// What a PostgreSQL server shows as its certificate, and an authority, the first one's length before
/// them: no panic, and nothing leads to an authority where there is none.
pub fn server_certificate(bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk() else {
        return;
    };
    let length = usize::from(u16::from_be_bytes(*length));
    let (shown, authority) = rest.split_at(rest.len().min(length));
    // The beginning of 2027: the seeds are valid then.
    let now_s = 1_800_000_000;
    assert!(!encryption::judged(shown, &[], "localhost", now_s));
    if encryption::judged(shown, &[authority], "db.example", now_s) {
        assert!(!authority.is_empty());
    }
}

/// `backup_label`: what is accepted is written back byte for byte. The history file of a backup has most of its
/// lines, and whatever it says is no error.
pub fn backup_label(bytes: &[u8]) {
    if let Ok(label) = BackupLabel::parse(bytes) {
        assert_eq!(label.to_bytes(), bytes);
        let _ = seconds_until(&label.start_time, i64::MAX);
    }
    let _ = BackupHistory::parse(&String::from_utf8_lossy(bytes));
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
        scan.finish().map(|scanned| scanned.entries)
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
        let mut writer = ManifestWriter::new(Vec::new(), major, system_id.unwrap_or(SystemId(0)))?;
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

    const PIECES: &[u8] = b"include 'b'\ninclude_dir 'd'\nssl=on\nssl_ca_file '/x/y'\n\0\
        include_if_exists 'c/b'\nhba_file 'hba'\0include \"more\"\nlocal all @users,x peer # y\n";

    #[test]
    fn files_that_include_many_others_come_to_an_end() {
        let names = (0..40).map(|at| format!("include '{at}/d'\n"));
        let settings: String = names.collect();
        let every_file = format!("{settings}\0{settings}\0{settings}");
        conf_pieces(every_file.as_bytes());
        assert_eq!(
            conf::pieces_in_texts(every_file.as_bytes()).unwrap().len(),
            1000
        );
    }

    #[test]
    fn damaged_files_of_a_backup_satisfy_the_fuzz_bodies() {
        let map = b"16385 /srv/a\\\\b\n16390 /srv/line\\\nend\n";
        let settings = b"archive_command = 'cp %p /x'\ninclude '../y'\nport=1 # z\n\
            shared_preload_libraries = '$libdir/a,/tmp/b'\nlog_directory 'log'\n";
        for_every_damage(settings, foreign_settings);
        for_every_damage(PIECES, conf_pieces);
        for_every_damage(LABEL, backup_label);
        for_every_damage(map, tablespace_map);
        for_every_damage(MANIFEST, manifest);
    }

    #[test]
    fn certificates_of_servers_hold_when_damaged() {
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = parameters.self_signed(&key).unwrap();
        let der: &[u8] = certificate.der();
        let length = u16::try_from(der.len()).unwrap();
        let whole = [&length.to_be_bytes()[..], der, der].concat();
        server_certificate(&whole);
        let now_s = 1_800_000_000;
        assert!(encryption::judged(der, &[der], "localhost", now_s));
        // Damage to the one that is shown makes it another one, which nobody has signed.
        for at in (0..whole.len()).step_by(3) {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << (at % 8);
            server_certificate(&damaged);
            let shown = &damaged[2..2 + der.len()];
            assert_eq!(
                encryption::judged(shown, &[der], "localhost", now_s),
                shown == der,
                "{at}"
            );
        }
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
                conf_pieces(bytes);
                connection_string(bytes);
                server_certificate(bytes);
                backup_label(bytes);
                tablespace_map(bytes);
                manifest(bytes);
            }
        }
    }
}
