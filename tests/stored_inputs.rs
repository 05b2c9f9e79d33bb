//! The inputs that fuzzing found worth keeping, run through the fuzz bodies of the ordinary program.
//! Never fuzzes. Invariant: every target has a body here or in the protocol's own tests, says which
//! parser it is for, and has inputs; all of them together stay small.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

type Body = fn(&[u8]);

/// The bodies by their targets.
const BODIES: [(&str, Body); 38] = [
    (
        "agent_words",
        walmgr::test_support::master::fuzzing::agent_words,
    ),
    (
        "replication_messages",
        walmgr::test_support::pg::fuzzing::replication_messages,
    ),
    (
        "record_references",
        walmgr::test_support::wal::fuzzing::record_references,
    ),
    (
        "segment_map",
        walmgr::test_support::wal::fuzzing::segment_map,
    ),
    (
        "packed_segment",
        walmgr::test_support::store::fuzzing::packed_segment,
    ),
    (
        "http_request",
        walmgr::test_support::metrics::fuzzing::http_request,
    ),
    (
        "held_names",
        walmgr::test_support::store::fuzzing::held_names,
    ),
    (
        "verified_note",
        walmgr::test_support::store::fuzzing::verified_note,
    ),
    (
        "kept_checksum",
        walmgr::test_support::store::fuzzing::kept_checksum,
    ),
    (
        "foreign_settings",
        walmgr::test_support::pg::fuzzing::foreign_settings,
    ),
    (
        "hand_note",
        walmgr::test_support::store::sets::fuzzing::hand_note,
    ),
    ("wal_joint", walmgr::test_support::wal::fuzzing::joint),
    (
        "acknowledged_end",
        walmgr::test_support::store::fuzzing::acknowledged_end,
    ),
    (
        "authorized_names",
        walmgr::test_support::transport::fuzzing::authorized_names,
    ),
    (
        "certificate",
        walmgr::test_support::transport::fuzzing::certificate,
    ),
    ("wal_behind", walmgr::test_support::wal::fuzzing::behind),
    (
        "authorized_keys",
        walmgr::test_support::transport::fuzzing::authorized_keys,
    ),
    (
        "backup_label",
        walmgr::test_support::pg::fuzzing::backup_label,
    ),
    (
        "commit_record",
        walmgr::test_support::wal::fuzzing::commit_record,
    ),
    ("conf_edit", walmgr::test_support::pg::fuzzing::conf_edit),
    (
        "conf_pieces",
        walmgr::test_support::pg::fuzzing::conf_pieces,
    ),
    (
        "conninfo",
        walmgr::test_support::pg::fuzzing::connection_string,
    ),
    ("frame", walmgr_protocol::fuzzing::frame),
    ("history", walmgr::test_support::wal::fuzzing::history),
    ("ini", walmgr::test_support::config::fuzzing::ini_file),
    ("manifest", walmgr::test_support::pg::fuzzing::manifest),
    ("message", walmgr_protocol::fuzzing::message),
    ("names", walmgr_protocol::fuzzing::names),
    (
        "pg_control",
        walmgr::test_support::pg::fuzzing::control_file,
    ),
    (
        "postmaster_pid",
        walmgr::test_support::pg::fuzzing::postmaster_pid,
    ),
    ("segment", walmgr::test_support::wal::fuzzing::segment),
    (
        "server_certificate",
        walmgr::test_support::pg::fuzzing::server_certificate,
    ),
    (
        "synchronous_names",
        walmgr::test_support::pg::fuzzing::synchronous_names,
    ),
    (
        "tablespace_map",
        walmgr::test_support::pg::fuzzing::tablespace_map,
    ),
    (
        "tar_stream",
        walmgr::test_support::store::sets::fuzzing::tar_stream,
    ),
    ("patch", walmgr_protocol::patch::fuzz),
    ("wal_scan", walmgr::test_support::wal::fuzzing::scanner),
    (
        "wal_written",
        walmgr::test_support::wal::fuzzing::written_wal,
    ),
];

/// The protocol replays these itself: what they are made with is compiled for its tests alone.
const IN_THE_PROTOCOL: [&str; 6] = [
    "backup_session",
    "fetch_session",
    "hello",
    "partial_session",
    "push_session",
    "trial_session",
];

const ALL_BYTES_MAX: u64 = 1 << 20;

#[test]
fn every_stored_input_passes_its_body() {
    for (target, body) in BODIES {
        let inputs = files(&fuzz().join("seeds").join(target));
        assert!(!inputs.is_empty(), "{target} has no stored inputs");
        for input in inputs {
            let bytes = std::fs::read(&input).unwrap();
            let passed = std::panic::catch_unwind(|| body(&bytes));
            assert!(passed.is_ok(), "{} does not pass", input.display());
        }
    }
}

#[test]
fn every_target_has_a_parser_a_body_and_inputs() {
    let replayed: BTreeSet<&str> = BODIES
        .iter()
        .map(|(target, _)| *target)
        .chain(IN_THE_PROTOCOL)
        .collect();
    let readme = std::fs::read_to_string(fuzz().join("README.md")).unwrap();
    let mut found = BTreeSet::new();
    for path in files(&fuzz().join("src/bin")) {
        let target = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let Some(parsers) = text
            .lines()
            .find_map(|line| line.strip_prefix("//! Parser: "))
        else {
            assert_eq!(target, "write_seeds", "it names no parser");
            continue;
        };
        for parser in parsers.split(' ') {
            let exists = fuzz().join("..").join(parser).exists();
            assert!(exists, "{target} is for {parser}, which is not there");
        }
        let is_listed = readme.contains(&format!("| `{target}` |"));
        assert!(is_listed, "{target} has no line in fuzz/README.md");
        found.insert(target);
    }
    assert_eq!(
        found.iter().map(String::as_str).collect::<BTreeSet<_>>(),
        replayed
    );
}

#[test]
fn stored_inputs_stay_below_a_mebibyte() {
    let folders = std::fs::read_dir(fuzz().join("seeds")).unwrap();
    let sizes = folders.flat_map(|folder| files(&folder.unwrap().path()));
    let bytes: u64 = sizes.map(|file| file.metadata().unwrap().len()).sum();
    assert!(bytes < ALL_BYTES_MAX, "{bytes} bytes");
}

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}
