//! The rules that hold the house up: which room may look into which, and who may make things durable.
//! Never looks at what only tests compile, except for the rules on files. Invariant: every rule has
//! a test that plants a violation and sees it caught.

mod arrows;
mod circles;
mod faults;
mod finished_files;
mod flows;
mod names;
mod source;
mod standing_alone;
mod whole_files;

use arrows::ARROWS;
use source::{Source, Tree, is_word, words};
use std::path::Path;

/// Paths that a whole room may not name although the room behind them is open to it.
const CLOSED_DOORS: [(&str, &str, &str); 2] = [
    (
        "store",
        "pg::sql",
        "the archive must not depend on a running server",
    ),
    (
        "wal",
        "protocol::!names,limits",
        "WAL bytes know names and bounds, not the wire",
    ),
];

/// Words that make a file or a name survive a power cut.
const DURABLE_WORDS: [&str; 14] = [
    "sync_all",
    "sync_data",
    "fsync",
    "fdatasync",
    "syncfs",
    "rename",
    "renameat",
    "renameat2",
    "renameat_with",
    "rename_with",
    "rename_noreplace",
    "persist",
    "persist_noclobber",
    "hard_link",
];

const DURABLE_FILES: [&str; 3] = [
    "src/store/durable.rs",
    "src/store/real_disk.rs",
    "src/files.rs",
];

/// The one file that knows when a WAL file is durable.
const PROOF_FILE: &str = "src/store/durable.rs";

/// `fuzzing` proves with a private type that it wrote into a `Vec`, or nowhere.
const PROOF_IMPLEMENTATIONS: [&str; 4] = [
    PROOF_FILE,
    "src/store/durable/records.rs",
    "protocol/src/fuzzing/sessions/push.rs",
    "protocol/src/fuzzing/sessions/partial.rs",
];

/// Who may say that a backup set is sealed: what sealed it, and the fuzzed receiver.
const SEAL_IMPLEMENTATIONS: [&str; 2] = [
    "src/store/sets/seal.rs",
    "protocol/src/fuzzing/sessions/backup.rs",
];

/// Each says at its top why no safe crate does what it needs.
const UNSAFE_FILES: [&str; 4] = [
    "src/memory.rs",
    "src/shell.rs",
    "src/store/real_disk.rs",
    "fuzz/src/lib.rs",
];

/// Where a checksum is compared that a program built for fuzzing leaves out, once each. What these
/// files check is checked by a test of theirs, which no fuzz target replaces.
const SKIPPED_CHECKSUMS: [(&str, usize); 11] = [
    ("protocol/src/codec.rs", 1),
    ("protocol/src/frame.rs", 1),
    ("protocol/src/session/hello.rs", 1),
    ("src/pg/control.rs", 1),
    ("src/pg/manifest.rs", 1),
    ("src/pg/manifest/scan.rs", 1),
    ("src/store/checksums.rs", 1),
    ("src/store/packed.rs", 1),
    ("src/tar/reader.rs", 1),
    ("src/wal/scan.rs", 1),
    ("src/wal/segment_map.rs", 1),
];

const LINES_MAX: usize = 800;

/// What the language crate may stand on, and what it may not touch.
const PROTOCOL_DEPENDENCIES: [&str; 3] = ["bytes", "crc32fast", "zstd"];
const PROTOCOL_STRANGERS: [&str; 8] = [
    "std::fs",
    "std::net",
    "std::thread",
    "std::process",
    "std::env",
    "Instant::now",
    "SystemTime",
    "tokio",
];

#[test]
fn imports_run_one_way() {
    check(arrows);
}

#[test]
fn rooms_are_open_only_to_the_program() {
    check(open_rooms);
}

#[test]
fn only_the_durable_files_sync_and_rename() {
    check(durable_words);
}

#[test]
fn whole_files_are_read_in_one_place() {
    check(whole_files::in_one_place);
}

#[test]
fn finished_files_have_one_reader() {
    check(finished_files::have_one_reader);
}

#[test]
fn only_the_archive_proves_durability() {
    check(proofs);
}

#[test]
fn imports_within_a_room_run_one_way() {
    check(circles::of_imports);
}

#[test]
fn no_flow_of_the_receiver_sees_another() {
    check(flows::see_no_other);
}

#[test]
fn a_type_name_stands_for_one_thing() {
    check(names::of_types);
}

#[test]
fn names_of_tests_are_short() {
    check(names::of_tests);
}

#[test]
fn a_doc_comment_stands_alone() {
    check(standing_alone::in_docs);
}

#[test]
fn unsafe_code_stays_where_it_is_explained() {
    check(unsafe_code);
}

#[test]
fn every_file_opens_with_its_job_and_fits() {
    check(shape_of_files);
}

#[test]
fn only_checksums_are_left_out_for_a_fuzzer() {
    check(left_out_for_fuzzing);
}

#[test]
fn the_language_stands_alone() {
    check(protocol_alone);
}

#[test]
fn the_project_stands_alone() {
    check(project_alone);
}

fn check(rule: fn(&Tree) -> Vec<String>) {
    let tree = Tree::read(Path::new(env!("CARGO_MANIFEST_DIR")));
    let violations = rule(&tree);
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

fn arrows(tree: &Tree) -> Vec<String> {
    let mut violations = Vec::new();
    for source in tree.rust() {
        // The one names the rooms, the other hands on what is in them.
        let is_outside = |room: &str| ["lib", "test_support"].contains(&room);
        let Some(room) = room_of(&source.path).filter(|room| !is_outside(room)) else {
            continue;
        };
        let Some((_, open)) = ARROWS.iter().find(|(name, _)| *name == room) else {
            violations.push(format!(
                "{}: room `{room}` has no line in ARROWS",
                source.path
            ));
            continue;
        };
        for (position, seen) in paths_out_of(source) {
            let other = seen.split("::").next().unwrap_or_default();
            let place = format!("{}:{}", source.path, source.line_at(position));
            if other != room && other != "error" && !open.contains(&other) {
                violations.push(format!("{place}: `{room}` must not see `{other}`"));
            }
            for (closed, door, reason) in CLOSED_DOORS {
                if room == closed && leads_through(&seen, door) {
                    violations.push(format!("{place}: `{room}` must not see `{seen}`: {reason}"));
                }
            }
        }
    }
    violations
}

/// In an open room the compiler does not see what nobody uses.
fn open_rooms(tree: &Tree) -> Vec<String> {
    let code_of = |path| {
        Some(
            tree.rust()
                .find(|source| source.path == path)?
                .code
                .as_str(),
        )
    };
    let program = code_of("src/main.rs").unwrap_or_default();
    let rooms = code_of("src/lib.rs").unwrap_or_default().lines();
    let open = rooms.filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    open.filter(|room| *room != "test_support" && !words(program).any(|(_, word)| word == *room))
        .map(|room| format!("src/lib.rs: room `{room}` is open, and main.rs does not use it"))
        .collect()
}

/// `a::b` closes that path; `a::!b,c` closes everything of `a` but `b` and `c`.
fn leads_through(seen: &str, door: &str) -> bool {
    match door.split_once("::!") {
        None => seen == door || seen.starts_with(&format!("{door}::")),
        Some((room, open)) => {
            let mut parts = seen.split("::");
            parts.next() == Some(room)
                && parts
                    .next()
                    .is_some_and(|part| !open.split(',').any(|open| open == part))
        }
    }
}

fn room_of(path: &str) -> Option<&str> {
    let behind = path.strip_prefix("src/")?;
    let room = behind.split('/').next()?;
    Some(room.trim_end_matches(".rs"))
}

/// Every path that leaves the file for the root of the crate or for the language, as
/// `room::module`, with groups in braces taken apart.
fn paths_out_of(source: &Source) -> Vec<(usize, String)> {
    let depth = module_depth(&source.path);
    let mut found = Vec::new();
    let mut supers = 0;
    for (position, word) in source.words() {
        let behind = &source.code[position + word.len()..];
        let climbs = word == "super";
        supers = if climbs { supers + 1 } else { 0 };
        let root = match word {
            "crate" => "",
            "walmgr" if room_of(&source.path) == Some("main") => "",
            "walmgr_protocol" => "protocol",
            "super" if supers == depth => "",
            _ => continue,
        };
        if let Some(rest) = behind.trim_start().strip_prefix("::") {
            for seen in first_two_parts(rest) {
                let seen = if root.is_empty() {
                    seen
                } else {
                    format!("{root}::{seen}")
                };
                found.push((position, seen));
            }
        }
    }
    found.retain(|(_, seen)| !seen.starts_with("super"));
    found
}

/// How many `super` lead from this file to the root of its crate.
fn module_depth(path: &str) -> usize {
    let stem = path.trim_start_matches("src/").trim_end_matches(".rs");
    stem.trim_end_matches("/mod").split('/').count()
}

/// `a::b::c` gives `a::b`; `{a, b::{c, d}}` gives `a`, `b::c`, `b::d`.
fn first_two_parts(text: &str) -> Vec<String> {
    branches(text)
        .into_iter()
        .flat_map(
            |(first, behind)| match behind.trim_start().strip_prefix("::") {
                None => vec![first],
                Some(rest) => branches(rest)
                    .into_iter()
                    .map(|(second, _)| format!("{first}::{second}"))
                    .collect(),
            },
        )
        .collect()
}

/// The alternatives that a path continues with: one name, or those of a group in braces.
fn branches(text: &str) -> Vec<(String, &str)> {
    let text = text.trim_start();
    let Some(group) = text.strip_prefix('{') else {
        return words(text)
            .take(1)
            .filter(|(begin, _)| *begin == 0)
            .map(|(_, word)| (word.to_owned(), &text[word.len()..]))
            .collect();
    };
    let mut depth = 0_usize;
    let mut begin = 0;
    let mut found = Vec::new();
    for (position, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            ',' if depth == 0 => {
                found.extend(branches(&group[begin..position]));
                begin = position + 1;
            }
            '}' if depth == 0 => {
                found.extend(branches(&group[begin..position]));
                break;
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    found
}

fn durable_words(tree: &Tree) -> Vec<String> {
    let sources = tree
        .rust()
        .filter(|source| !DURABLE_FILES.contains(&source.path.as_str()));
    sources
        .flat_map(|source| {
            let found = source
                .words()
                .filter(|(_, word)| DURABLE_WORDS.contains(word));
            found.map(|(position, word)| {
                let place = format!("{}:{}", source.path, source.line_at(position));
                format!(
                    "{place}: `{word}` belongs into {}",
                    DURABLE_FILES.join(" or ")
                )
            })
        })
        .collect()
}

fn proofs(tree: &Tree) -> Vec<String> {
    let mut violations = Vec::new();
    for source in tree.rust() {
        for (position, word) in source.words() {
            let before = source.code[..position].trim_end();
            let behind = source.code[position + word.len()..].trim_start();
            let place = format!("{}:{}", source.path, source.line_at(position));
            let previous = before.rsplit(|c| !is_word(c)).next().unwrap_or_default();
            let is_type = ["struct", "for", "impl", "enum"].contains(&previous);
            let is_return = before.ends_with("->");
            let constructs = word == "Durable" && behind.starts_with('{') && !is_type && !is_return;
            if constructs && source.path != PROOF_FILE {
                violations.push(format!(
                    "{place}: only {PROOF_FILE} may construct `Durable`"
                ));
            }
            let implements = ["ProofOfDurability", "ProofOfRecords"].contains(&word)
                && words(behind).next() == Some((0, "for"))
                && !PROOF_IMPLEMENTATIONS.contains(&source.path.as_str());
            if implements {
                violations.push(format!("{place}: only {PROOF_FILE} may prove durability"));
            }
            let seals = word == "ProofOfSeal"
                && words(behind).next() == Some((0, "for"))
                && !SEAL_IMPLEMENTATIONS.contains(&source.path.as_str());
            if seals {
                let file = SEAL_IMPLEMENTATIONS[0];
                violations.push(format!(
                    "{place}: only {file} may prove that a set is sealed"
                ));
            }
        }
    }
    violations
}

fn unsafe_code(tree: &Tree) -> Vec<String> {
    let sources = tree
        .rust()
        .filter(|source| !UNSAFE_FILES.contains(&source.path.as_str()));
    sources
        .flat_map(|source| {
            let found = source.words().filter(|(_, word)| *word == "unsafe");
            found.map(|(position, _)| {
                format!("{}:{}: unsafe code", source.path, source.line_at(position))
            })
        })
        .collect()
}

/// `cfg!(fuzzing)` beside anything but a checksum would fuzz another program than the one that runs.
fn left_out_for_fuzzing(tree: &Tree) -> Vec<String> {
    let sources = tree
        .rust()
        .filter(|source| !source.path.starts_with("fuzz/"));
    sources
        .filter_map(|source| {
            let found = source.code.matches("cfg!(fuzzing)").count();
            let allowed = SKIPPED_CHECKSUMS
                .iter()
                .find(|(path, _)| *path == source.path)
                .map_or(0, |(_, count)| *count);
            (found != allowed).then(|| {
                let path = &source.path;
                format!("{path}: {found} times `cfg!(fuzzing)`, {allowed} in SKIPPED_CHECKSUMS")
            })
        })
        .collect()
}

fn shape_of_files(tree: &Tree) -> Vec<String> {
    let mut violations = Vec::new();
    for source in tree.rust() {
        if !source.text.starts_with("//!") {
            violations.push(format!("{}: does not open with `//!`", source.path));
        }
        let lines = source.text.lines().count();
        if lines > LINES_MAX {
            violations.push(format!(
                "{}: {lines} lines, {LINES_MAX} at most",
                source.path
            ));
        }
    }
    violations
}

fn protocol_alone(tree: &Tree) -> Vec<String> {
    let mut violations = Vec::new();
    for source in tree
        .0
        .iter()
        .filter(|source| source.path == "protocol/Cargo.toml")
    {
        let section = source
            .text
            .split("[dependencies]")
            .nth(1)
            .unwrap_or_default();
        let section = section.split("\n[").next().unwrap_or_default();
        for line in section.lines().map(str::trim) {
            let name = line
                .split(|c: char| !is_word(c) && c != '-')
                .next()
                .unwrap_or_default();
            let counts = !line.is_empty() && !line.starts_with('#');
            if counts && !PROTOCOL_DEPENDENCIES.contains(&name) {
                violations.push(format!("{}: depends on `{name}`", source.path));
            }
        }
    }
    for source in tree
        .rust()
        .filter(|source| source.path.starts_with("protocol/src/"))
    {
        for stranger in PROTOCOL_STRANGERS {
            if let Some(position) = source.code.find(stranger) {
                let line = source.line_at(position);
                violations.push(format!("{}:{line}: mentions `{stranger}`", source.path));
            }
        }
    }
    violations
}

/// Names of places that exist only where the project is written.
fn project_alone(tree: &Tree) -> Vec<String> {
    // Taken apart, so that this file does not contain them.
    let strangers = [
        concat!("/wo", "rk"),
        concat!("..", "/shared"),
        concat!("/ro", "ot/w"),
    ];
    let mut violations = Vec::new();
    for source in &tree.0 {
        for (number, line) in source.text.lines().enumerate() {
            for stranger in strangers {
                let mentioned = line.match_indices(stranger).any(|(position, _)| {
                    let before = line[..position].chars().next_back();
                    let behind = line[position + stranger.len()..].chars().next();
                    let inside_a_path = before.is_some_and(|c| is_word(c) || c == '.');
                    !inside_a_path && !behind.is_some_and(|c| is_word(c) || c == '-')
                });
                if mentioned {
                    violations.push(format!("{}:{}: `{stranger}`", source.path, number + 1));
                }
            }
        }
    }
    violations
}

#[cfg(test)]
mod planted {
    //! A planted violation for every rule, beside what the rule must not mind.

    use super::*;

    fn found(rule: fn(&Tree) -> Vec<String>, path: &str, text: &str) -> Vec<String> {
        rule(&Tree::of(vec![(path.to_owned(), text.to_owned())]))
    }

    pub(super) fn assert_caught(rule: fn(&Tree) -> Vec<String>, path: &str, text: &str) {
        assert!(
            !found(rule, path, text).is_empty(),
            "not caught in {path}: {text}"
        );
    }

    pub(super) fn assert_allowed(rule: fn(&Tree) -> Vec<String>, path: &str, text: &str) {
        let violations = found(rule, path, text);
        assert!(violations.is_empty(), "{violations:?}");
    }

    #[test]
    fn a_wrong_import_is_caught_however_it_is_written() {
        for (path, text) in [
            ("src/master/xarchive.rs", "use crate::store::Archive;"),
            (
                "src/master/xarchive.rs",
                "use crate::{wal, store::archive};",
            ),
            (
                "src/master/xarchive.rs",
                "fn f() { crate ::store::open(); }",
            ),
            ("src/master/xarchive.rs", "use super::super::store;"),
            ("src/master/mod.rs", "use super::store::Archive;"),
            ("src/master/mod.rs", "use super::{wal, store};"),
            ("src/wal/scan.rs", "use crate::error::Kind;\nuse crate::pg;"),
            ("src/wal/scan.rs", "use walmgr_protocol::message::Offer;"),
            (
                "src/wal/scan.rs",
                "use walmgr_protocol::{names::Lsn, codec};",
            ),
            ("src/store/archive.rs", "use crate::pg::{control, sql};"),
            ("src/store/archive.rs", "use crate::pg::sql::connect;"),
            ("src/transport/wire.rs", "use crate::receiver;"),
            ("src/receiver/server.rs", "use crate::{cli, store};"),
            ("src/output.rs", "use crate::config;"),
            ("src/main.rs", "use walmgr::master;"),
            ("src/newroom.rs", "fn f() {}"),
        ] {
            assert_caught(arrows, path, text);
        }
    }

    #[test]
    fn a_room_open_to_everybody_is_caught() {
        assert_caught(open_rooms, "src/lib.rs", "pub mod store;");
        assert_allowed(open_rooms, "src/lib.rs", "pub(crate) mod store;");
        assert_allowed(open_rooms, "src/lib.rs", "pub mod test_support;");
    }

    #[test]
    fn an_import_along_the_arrows_is_allowed() {
        for (path, text) in [
            (
                "src/master/xarchive.rs",
                "use crate::transport::{wire, connect};\nuse super::push;",
            ),
            (
                "src/master/xarchive.rs",
                "// crate::store\nconst A: &str = \"crate::store\";",
            ),
            (
                "src/master/xarchive.rs",
                "#[cfg(test)]\nmod tests { use crate::store::Archive; }",
            ),
            (
                "src/wal/scan.rs",
                "use walmgr_protocol::{limits, names::{Lsn, TimelineId}};",
            ),
            (
                "src/store/archive.rs",
                "use crate::pg::control; use crate::error::{Kind, Result};",
            ),
            (
                "src/main.rs",
                "use walmgr::{abnormal, memory, output}; use walmgr::cli::{self};",
            ),
            ("src/lib.rs", "pub use crate::store::Archive;"),
            (
                "src/daemon/pidfile.rs",
                "use super::Control; use super::super::output;",
            ),
        ] {
            assert_allowed(arrows, path, text);
        }
    }

    #[test]
    fn syncing_outside_the_durable_files_is_caught() {
        let text = "fn f(file: &File) { file.sync_all().ok(); }";
        assert_caught(durable_words, "src/receiver/flows/push/work.rs", text);
        assert_caught(durable_words, "src/master/setup.rs", "use std::fs::rename;");
        assert_allowed(durable_words, "src/store/durable.rs", text);
        assert_allowed(
            durable_words,
            "src/store/disk.rs",
            "trait D { fn rename_new(&self); }",
        );
        assert_allowed(
            durable_words,
            "src/wal/scan.rs",
            "/// Never calls fsync.\nfn f() {}",
        );
    }

    #[test]
    fn forging_a_proof_is_caught() {
        let forged = "fn f() -> Held { Held::Identical(Durable { name, len: 0, crc32: 0 }) }";
        assert_caught(proofs, "src/receiver/flows/push/work.rs", forged);
        assert_allowed(proofs, PROOF_FILE, forged);
        let implemented = "impl ProofOfDurability for Mine { }";
        assert_caught(proofs, "src/receiver/flows/push/work.rs", implemented);
        assert_allowed(proofs, PROOF_FILE, implemented);
        assert_allowed(
            proofs,
            "src/receiver/flows/push/work.rs",
            "fn f() -> Durable { seal() }",
        );
        let bound = "fn acknowledge<P: ProofOfDurability>(proof: &P) {}";
        assert_allowed(proofs, "protocol/src/session/push.rs", bound);
    }

    #[test]
    fn unexplained_unsafe_code_is_caught() {
        let text = "fn f() { unsafe { g() } }";
        assert_caught(unsafe_code, "src/transport/tls.rs", text);
        assert_allowed(unsafe_code, "src/memory.rs", text);
        assert_allowed(unsafe_code, "src/lib.rs", "#![deny(unsafe_code)] // unsafe");
    }

    #[test]
    fn a_branch_for_the_fuzzer_alone_is_caught() {
        let text = "fn f() { if cfg!(fuzzing) { return; } }";
        assert_caught(left_out_for_fuzzing, "src/store/archive.rs", text);
        assert_caught(left_out_for_fuzzing, "src/wal/scan.rs", &text.repeat(2));
        assert_caught(left_out_for_fuzzing, "src/wal/scan.rs", "fn f() {}");
        assert_allowed(left_out_for_fuzzing, "src/wal/scan.rs", text);
    }

    #[test]
    fn a_file_without_a_job_or_an_end_is_caught() {
        assert_caught(shape_of_files, "tests/a.rs", "use b;\n//! late");
        assert_caught(
            shape_of_files,
            "src/a.rs",
            &format!("//! a\n{}", "\n".repeat(LINES_MAX)),
        );
        assert_allowed(
            shape_of_files,
            "src/a.rs",
            &format!("//! a{}", "\n".repeat(LINES_MAX)),
        );
        assert_allowed(shape_of_files, "README.md", &"\n".repeat(LINES_MAX * 2));
    }

    #[test]
    fn a_stranger_in_the_language_is_caught() {
        let manifest = |dependency: &str| {
            format!(
                "[dependencies]\nbytes.workspace = true\n{dependency}\n\n[dev-dependencies]\nx = \"1\""
            )
        };
        assert_caught(
            protocol_alone,
            "protocol/Cargo.toml",
            &manifest("tokio = \"1\""),
        );
        assert_allowed(
            protocol_alone,
            "protocol/Cargo.toml",
            &manifest("# why\nzstd.workspace = true"),
        );
        let clock = "fn f() { let now = std::time::Instant::now(); }";
        assert_caught(protocol_alone, "protocol/src/session/push.rs", clock);
        let argument = "fn f(now: std::time::Duration) {}";
        assert_allowed(protocol_alone, "protocol/src/session/push.rs", argument);
    }

    #[test]
    fn a_place_of_the_workshop_is_caught_in_any_file() {
        let path = concat!("/wo", "rk/main");
        assert_caught(project_alone, "README.md", &format!("see {path}"));
        assert_caught(project_alone, "test.sh", concat!("cp ..", "/shared/x ."));
        assert_allowed(
            project_alone,
            "README.md",
            "lib/workspace and of network/work-mem",
        );
    }
}
