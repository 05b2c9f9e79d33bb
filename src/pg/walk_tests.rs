//! What is listed of data directories that hold everything a data directory can hold.
//! Never starts a server; `tests/pg_backup.rs` compares with `pg_basebackup`. Invariant: every
//! rule has a name here that it takes and one that it leaves.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::FileType;

use super::data_directory::DataDirectory;
use super::fixtures::control_file;
use super::left_out::{PassedOver, WhyNot};
use super::walk::{File, Listing, walk};
use crate::error::{Kind, Result};

const VERSION_DIRECTORY: &str = "PG_15_202209061";

fn write(root: &Path, path: &str) {
    write_bytes(root, path.as_bytes(), path.as_bytes());
}

fn write_bytes(root: &Path, path: &[u8], content: &[u8]) {
    let path = root.join(OsStr::from_bytes(path));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

fn make(major: u8) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    write_bytes(&data, b"PG_VERSION", major.to_string().as_bytes());
    write_bytes(&data, b"global/pg_control", &control_file(major));
    for directory in ["pg_wal/archive_status", "pg_tblspc", "base/5"] {
        std::fs::create_dir_all(data.join(directory)).unwrap();
    }
    home
}

fn list(home: &tempfile::TempDir) -> Result<Listing> {
    walk(&DataDirectory::open(&home.path().join("data")).unwrap())
}

fn paths(listing: &Listing) -> Vec<String> {
    listing
        .files
        .iter()
        .map(|file| file.path.to_string())
        .collect()
}

fn directories(listing: &Listing) -> Vec<String> {
    listing
        .directories
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn content(listing: &Listing, file: &File) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    listing.roots.open_file(file)?.read_to_end(&mut content)?;
    Ok(content)
}

#[test]
fn fault_63_what_a_server_makes_anew_is_left_out() {
    let home = make(15);
    let data = home.path().join("data");
    let taken = [
        "base/5/1",
        "base/5/1_fsm",
        "base/5/2_init",
        "base/5/PG_VERSION",
        "base/5/pg_filenode.map",
        "base/5/t_1",
        "extra/pg_wal/kept",
        "extra/t3_1",
        "global/1262",
        "pg_xact/0000",
        "postgresql.auto.conf",
    ];
    let left = [
        "backup_label",
        "backup_label.old",
        "backup_manifest",
        "base/5/2",
        "base/5/2.1",
        "base/5/2_fsm",
        "base/5/2_vm",
        "base/5/pg_internal.init",
        "base/5/pg_internal.init.123",
        "base/5/t3_1",
        "base/5/t3_1_fsm.1",
        "base/pgsql_tmp/pgsql_tmp1.0",
        "current_logfiles.tmp",
        "global/pg_internal.init",
        "pg_dynshmem/x",
        "pg_notify/0000",
        "pg_replslot/slot/state",
        "pg_serial/x",
        "pg_snapshots/x",
        "pg_stat_tmp/global.stat",
        "pg_subtrans/0000",
        "pg_wal/000000010000000000000001",
        "pg_wal/archive_status/000000010000000000000001.done",
        "postgresql.auto.conf.tmp",
        "postmaster.opts",
        "postmaster.pid",
        "tablespace_map",
        "tablespace_map.old",
    ];
    for path in taken.iter().chain(&left) {
        write(&data, path);
    }
    write(&data, "walmgr_left_out");
    let listing = list(&home).unwrap();
    let mut expected: Vec<&str> = [&taken[..], &["PG_VERSION"]].concat();
    expected.sort_unstable();
    assert_eq!(paths(&listing), expected);
    assert_eq!(listing.control.path.as_bytes(), b"global/pg_control");
    assert_eq!(listing.control.size, 8192);
    let found = directories(&listing);
    for directory in [
        "base",
        "base/5",
        "pg_notify",
        "pg_replslot",
        "pg_wal",
        "pg_wal/archive_status",
        "pg_tblspc",
    ] {
        assert!(found.iter().any(|it| it == directory), "{directory}");
    }
    for directory in ["base/pgsql_tmp", "pg_replslot/slot", "pg_wal/summaries"] {
        assert!(!found.iter().any(|it| it == directory), "{directory}");
    }
    assert_eq!(listing.passed_over, []);
    for file in &listing.files {
        if file.path.as_bytes() != b"PG_VERSION" {
            assert_eq!(content(&listing, file).unwrap(), file.path.as_bytes());
        }
    }
    let newer = list(&make(17)).unwrap();
    assert!(
        directories(&newer)
            .iter()
            .any(|it| it == "pg_wal/summaries")
    );
}

#[test]
fn tablespaces_are_listed_once_wherever_they_are() {
    let home = make(15);
    let data = home.path().join("data");
    let outside = home.path().join("outside");
    let nested = data.join("nested");
    for (root, oid) in [(&outside, "16385"), (&nested, "16386")] {
        write(root, &format!("{VERSION_DIRECTORY}/5/16390"));
        write(root, &format!("{VERSION_DIRECTORY}/5/t1_16390"));
        write(root, "PG_14_202107181/5/16390");
        write(root, "note");
        symlink(root, data.join("pg_tblspc").join(oid)).unwrap();
    }
    write(&data, &format!("pg_tblspc/16387/{VERSION_DIRECTORY}/5/9"));
    write(&data, "pg_tblspc/16387/note");
    symlink("/nonexistent", data.join("pg_tblspc/16388")).unwrap();
    symlink(&outside, data.join("pg_tblspc/mine")).unwrap();
    let listing = list(&home).unwrap();
    assert_eq!(listing.tablespaces, [16385, 16386]);
    assert_eq!(
        paths(&listing),
        [
            "PG_VERSION".to_owned(),
            format!("pg_tblspc/16387/{VERSION_DIRECTORY}/5/9"),
            format!("pg_tblspc/16385/{VERSION_DIRECTORY}/5/16390"),
            format!("pg_tblspc/16386/{VERSION_DIRECTORY}/5/16390"),
        ]
    );
    let found = directories(&listing);
    let times = |path: &str| found.iter().filter(|it| *it == path).count();
    assert_eq!(times("nested"), 1);
    assert_eq!(times("pg_tblspc/16385"), 1);
    assert_eq!(times("pg_tblspc/mine"), 1);
    assert_eq!(times(&format!("pg_tblspc/16385/{VERSION_DIRECTORY}/5")), 1);
    assert_eq!(times(&format!("nested/{VERSION_DIRECTORY}")), 0);
    let dangling = PassedOver {
        path: "pg_tblspc/16388".parse().unwrap(),
        why: WhyNot::Dangling,
    };
    assert_eq!(listing.passed_over, [dangling]);
    for file in &listing.files[1..] {
        let read = content(&listing, file).unwrap();
        assert!(file.path.as_bytes().ends_with(&read[read.len() - 3..]));
    }
}

#[test]
fn tablespaces_are_found_where_their_links_were_moved_to() {
    let home = make(15);
    let data = home.path().join("data");
    let (outside, links) = (home.path().join("outside"), home.path().join("links"));
    write(&outside, &format!("{VERSION_DIRECTORY}/5/16390"));
    std::fs::rename(data.join("pg_tblspc"), &links).unwrap();
    symlink(&links, data.join("pg_tblspc")).unwrap();
    symlink(&outside, links.join("16385")).unwrap();
    write(&links, &format!("16387/{VERSION_DIRECTORY}/5/9"));
    let listing = list(&home).unwrap();
    assert_eq!(listing.tablespaces, [16385]);
    assert_eq!(listing.passed_over, []);
    let found = paths(&listing);
    let below = |oid, number| format!("pg_tblspc/{oid}/{VERSION_DIRECTORY}/5/{number}");
    assert_eq!(found[1..], [below(16387, 9), below(16385, 16390)]);
    assert!(directories(&listing).iter().any(|it| it == "pg_tblspc"));
    for file in &listing.files[1..] {
        content(&listing, file).unwrap();
    }
}

/// Moves a name of the data directory out of it and leaves a link; where it is now.
fn move_behind_link(home: &tempfile::TempDir, name: &str) -> std::path::PathBuf {
    let (from, to) = (
        home.path().join("data").join(name),
        home.path().join("moved"),
    );
    std::fs::create_dir_all(&to).unwrap();
    let to = to.join(name.replace('/', "-"));
    std::fs::rename(&from, &to).unwrap();
    symlink(&to, &from).unwrap();
    to
}

fn passed(listing: &Listing) -> Vec<String> {
    let passed = listing.passed_over.iter();
    passed.map(ToString::to_string).collect()
}

#[test]
fn fault_125_moved_behind_links_is_listed_where_the_server_sees_it() {
    let moved: [&[&str]; 3] = [
        &[
            "base/5",
            "pg_xact",
            "global",
            "PG_VERSION",
            "pg_multixact/offsets",
            "base/6/7",
        ],
        &["base", "pg_multixact"],
        &["pg_tblspc/16385/PG_15_202209061/5", "global/pg_control"],
    ];
    for names in moved {
        let home = make(15);
        let data = home.path().join("data");
        let outside = home.path().join("outside");
        symlink(&outside, data.join("pg_tblspc/16385")).unwrap();
        write(&outside, &format!("{VERSION_DIRECTORY}/5/16390"));
        for path in [
            "base/5/1",
            "base/6/7",
            "pg_xact/0000",
            "pg_multixact/offsets/0000",
        ] {
            write(&data, path);
        }
        let plain = list(&home).unwrap();
        for name in names {
            move_behind_link(&home, name);
        }
        // A chain of links leads there as well.
        let last = data.join(names[0]);
        std::fs::rename(&last, home.path().join("chain")).unwrap();
        symlink(home.path().join("chain"), &last).unwrap();
        let listing = list(&home).unwrap();
        assert_eq!(paths(&listing), paths(&plain), "{names:?}");
        assert_eq!(directories(&listing), directories(&plain), "{names:?}");
        assert_eq!(listing.passed_over, []);
        for file in listing.files.iter().chain([&listing.control]) {
            let read = content(&listing, file).unwrap();
            assert_eq!(read.len() as u64, file.size, "{}", file.path);
        }
    }
}

#[test]
fn fault_125_what_a_link_does_not_lead_to_is_named() {
    let home = make(15);
    let data = home.path().join("data");
    let link = |to: &str, name: &str| symlink(to, data.join(name)).unwrap();
    link("/nonexistent", "base/7");
    link("itself", "itself");
    link("..", "around");
    link("/", "host");
    link("../base", "base/round");
    link("../../PG_VERSION/x", "base/5/8");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    for (name, kind) in [("pipe", FileType::Fifo), ("socket", FileType::Socket)] {
        rustix::fs::mknodat(rustix::fs::CWD, data.join(name), kind, mode, 0).unwrap();
    }
    write(home.path(), "logs/of the server");
    symlink(home.path().join("logs"), data.join("log")).unwrap();
    let listing = list(&home).unwrap();
    assert_eq!(paths(&listing), ["PG_VERSION"]);
    assert!(directories(&listing).iter().any(|it| it == "log"));
    assert_eq!(
        passed(&listing),
        [
            "around is a symbolic link to a directory that it lies in",
            "base/5/8 is a symbolic link to what does not exist",
            "base/7 is a symbolic link to what does not exist",
            "base/round is a symbolic link to a directory that it lies in",
            "host is a symbolic link to a directory that it lies in",
            "itself is a symbolic link that leads to itself",
            "log is a symbolic link to the server's log",
            "pipe is neither a file nor a directory",
            "socket is a socket",
        ]
    );
    let losses = listing.passed_over.iter().filter(|it| it.why.is_loss());
    assert_eq!(losses.count(), 7);
}

#[test]
fn a_link_of_what_is_emptied_anyway_is_a_directory() {
    let home = make(15);
    let data = home.path().join("data");
    write(home.path(), "elsewhere/secret");
    write(&data, "pg_wal/000000010000000000000001");
    move_behind_link(&home, "pg_wal");
    symlink(home.path().join("elsewhere"), data.join("pg_replslot")).unwrap();
    let listing = list(&home).unwrap();
    assert_eq!(paths(&listing), ["PG_VERSION"]);
    for directory in ["pg_wal", "pg_wal/archive_status", "pg_replslot"] {
        let found = directories(&listing);
        assert!(found.iter().any(|it| it == directory), "{directory}");
    }
    assert_eq!(listing.passed_over, []);
}

#[test]
fn fault_125_a_link_that_leads_elsewhere_meanwhile_is_no_vanished_file() {
    let home = make(15);
    let data = home.path().join("data");
    write(&data, "base/6/1");
    let moved = move_behind_link(&home, "base/6");
    let listing = list(&home).unwrap();
    let file = listing
        .files
        .iter()
        .find(|file| file.path.to_string() == "base/6/1")
        .unwrap();
    assert_eq!(content(&listing, file).unwrap(), b"base/6/1");
    // As an unmounted file system leaves it: there, and empty.
    std::fs::rename(&moved, moved.with_extension("gone")).unwrap();
    for make_anew in [false, true] {
        if make_anew {
            std::fs::create_dir(&moved).unwrap();
        }
        let error = content(&listing, file).unwrap_err();
        assert_ne!(error.kind(), io::ErrorKind::NotFound, "{error}");
    }
}

#[test]
fn a_name_that_became_a_link_or_a_pipe_is_not_opened() {
    let home = make(15);
    let data = home.path().join("data");
    for path in ["base/5/1", "base/5/2", "base/6/1", "base/7/1"] {
        write(&data, path);
    }
    write(home.path(), "elsewhere/1");
    let listing = list(&home).unwrap();
    std::fs::remove_file(data.join("base/5/1")).unwrap();
    symlink(home.path().join("elsewhere/1"), data.join("base/5/1")).unwrap();
    std::fs::remove_file(data.join("base/5/2")).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, data.join("base/5/2"), fifo, mode, 0).unwrap();
    std::fs::remove_dir_all(data.join("base/6")).unwrap();
    symlink(home.path().join("elsewhere"), data.join("base/6")).unwrap();
    std::fs::remove_dir_all(data.join("base/7")).unwrap();
    for file in &listing.files {
        let opened = content(&listing, file);
        match file.path.as_bytes() {
            b"PG_VERSION" => assert_eq!(opened.unwrap(), b"15"),
            b"base/7/1" => assert_eq!(opened.unwrap_err().kind(), io::ErrorKind::NotFound),
            _ => assert!(opened.is_err(), "{}", file.path),
        }
    }
}

#[test]
fn fault_65_names_of_any_bytes_are_listed_and_opened() {
    let home = make(15);
    let data = home.path().join("data");
    let longest = [b'n'; 255];
    let deep = [&longest[..], b"/", &longest, b"/file"].concat();
    let mut names: Vec<&[u8]> = vec![
        b"\xFF\xFE",
        b"line\nend",
        b"back\\slash",
        &longest[..9],
        &deep,
    ];
    for name in &names {
        write_bytes(&data, name, name);
    }
    let listing = list(&home).unwrap();
    let mut found: Vec<&[u8]> = listing
        .files
        .iter()
        .map(|file| file.path.as_bytes())
        .collect();
    names.push(b"PG_VERSION");
    names.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, names);
    for file in listing.files.iter().filter(|file| file.size != 2) {
        assert_eq!(content(&listing, file).unwrap(), file.path.as_bytes());
    }
}

#[test]
fn fault_66_a_directory_that_cannot_be_read_fails_the_backup() {
    let home = make(15);
    let data = home.path().join("data");
    std::fs::remove_dir(data.join("pg_tblspc")).unwrap();
    let error = list(&home).err().unwrap();
    assert!(error.to_string().contains("/pg_tblspc: "), "{error}");
    symlink("/nonexistent", data.join("pg_tblspc")).unwrap();
    assert!(list(&home).is_err());
    std::fs::remove_file(data.join("pg_tblspc")).unwrap();
    std::fs::create_dir(data.join("pg_tblspc")).unwrap();
    assert!(list(&home).is_ok());
    let deep = vec!["d"; 65].join("/");
    std::fs::create_dir_all(data.join(deep)).unwrap();
    assert_eq!(list(&home).err().unwrap().kind(), Kind::Config);
}
