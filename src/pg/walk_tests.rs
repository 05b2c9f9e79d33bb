//! What is listed of data directories that hold everything a data directory can hold.
//! Never starts a server; `tests/pg_backup.rs` compares with `pg_basebackup`. Invariant: every
//! rule has a name here that it takes and one that it leaves.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::data_directory::DataDirectory;
use super::fixtures::control_file;
use super::walk::{File, Listing, PassedOver, WhyNot, balance, walk};
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
    assert_eq!(times(&format!("pg_tblspc/16385/{VERSION_DIRECTORY}/5")), 1);
    assert_eq!(times(&format!("nested/{VERSION_DIRECTORY}")), 0);
    let passed = |path: &str, why| PassedOver {
        path: path.parse().unwrap(),
        why,
    };
    assert_eq!(
        listing.passed_over,
        [
            passed("pg_tblspc/16388", WhyNot::Dangling),
            passed("pg_tblspc/mine", WhyNot::Link),
        ]
    );
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

#[test]
fn links_and_special_files_are_passed_over_and_named() {
    let home = make(15);
    let data = home.path().join("data");
    write(home.path(), "elsewhere/secret");
    std::fs::remove_dir_all(data.join("pg_wal")).unwrap();
    std::fs::create_dir(home.path().join("wal")).unwrap();
    write(home.path(), "wal/000000010000000000000001");
    symlink(home.path().join("wal"), data.join("pg_wal")).unwrap();
    symlink(home.path().join("elsewhere"), data.join("pg_replslot")).unwrap();
    symlink(home.path().join("elsewhere"), data.join("log")).unwrap();
    symlink(home.path().join("elsewhere/secret"), data.join("base/5/7")).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, data.join("pipe"), fifo, mode, 0).unwrap();
    let listing = list(&home).unwrap();
    assert_eq!(paths(&listing), ["PG_VERSION"]);
    let found = directories(&listing);
    for directory in ["pg_wal", "pg_wal/archive_status", "pg_replslot"] {
        assert!(found.iter().any(|it| it == directory), "{directory}");
    }
    let passed: Vec<String> = listing
        .passed_over
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        passed,
        [
            "base/5/7 is a symbolic link",
            "log is a symbolic link",
            "pipe is neither a file nor a directory",
        ]
    );
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

#[test]
fn the_largest_files_come_first_and_streams_are_even() {
    let file = |number: u64, size| File {
        path: format!("base/5/{number}").parse().unwrap(),
        size,
        modified_s: 0,
    };
    let mega = 1 << 20;
    let sizes = [3 * mega, mega, 7 * mega, 2 * mega, 2 * mega, mega];
    let files: Vec<File> = (1..)
        .zip(sizes)
        .map(|(number, size)| file(number, size))
        .collect();
    let streams = balance(files.clone(), NonZeroUsize::new(2).unwrap());
    let megas =
        |stream: &[File]| -> Vec<u64> { stream.iter().map(|file| file.size / mega).collect() };
    assert_eq!(megas(&streams[0]), [7, 1]);
    assert_eq!(megas(&streams[1]), [3, 2, 2, 1]);
    let empty: Vec<File> = (1..=100).map(|number| file(number, 0)).collect();
    for stream in balance(empty, NonZeroUsize::new(4).unwrap()) {
        assert_eq!(stream.len(), 25);
    }
    assert_eq!(balance(files, NonZeroUsize::new(20).unwrap()).len(), 20);
}
