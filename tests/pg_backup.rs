//! The pieces of a base backup against real servers of every version that is installed.
//! Never trusts what this program wrote where PostgreSQL's own programs can judge it.
//! Invariant: a file is in a backup if and only if `pg_basebackup` would have taken it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use walmgr::error::Kind;
use walmgr::test_support::pg::backup_label::BackupLabel;
use walmgr::test_support::pg::data_directory::DataDirectory;
use walmgr::test_support::pg::manifest::{Checksum, FileEntry, ManifestWriter, Reader, WalRange};
use walmgr::test_support::pg::page::{PAGE_BYTES, PageState, Pages};
use walmgr::test_support::pg::sql::{Limits, Session};
use walmgr::test_support::pg::sql_backup::FinishedBackup;
use walmgr::test_support::pg::tablespace_map;
use walmgr::test_support::pg::walk::{File, Listing, walk};
use walmgr_protocol::names::Lsn;

use crate::support::place::give_to_server;
use crate::support::{Cluster, StopMode, report_skip, run, wait_for};

const PATIENCE: Duration = Duration::from_secs(30);

async fn connect(cluster: &Cluster) -> Session {
    let session = Session::connect(&cluster.conninfo(), Limits::default()).await;
    session.unwrap()
}

/// Makes a directory beside the cluster, of any name, and a tablespace in it.
fn add_tablespace(cluster: &Cluster, name: &str, directory: &[u8]) -> PathBuf {
    let location = cluster.home().join(OsStr::from_bytes(directory));
    std::fs::create_dir(&location).unwrap();
    give_to_server(&location);
    let octal = |byte: &u8| format!("\\{byte:03o}");
    let quoted: String = (location.as_os_str().as_bytes().iter())
        .map(octal)
        .collect();
    cluster.psql(&format!("CREATE TABLESPACE {name} LOCATION E'{quoted}'"));
    location
}

#[tokio::test]
async fn a_backup_begins_and_ends_on_every_version() {
    for major in Cluster::available_majors() {
        let cluster = Cluster::builder().major(major).start();
        let session = connect(&cluster).await;
        assert!(!session.is_in_recovery().await.unwrap());
        assert_eq!(session.timeline().await.unwrap().number(), 1);
        let backup = session.backup_start("Full 'é'", true).await.unwrap();
        assert!(!backup.session().is_in_recovery().await.unwrap());
        let start = backup.start();
        cluster.psql("CREATE TABLE t AS SELECT generate_series(1, 1000)");
        let finished = backup.stop().await.unwrap();
        assert_eq!(finished.tablespace_map, None);
        assert!(finished.stop_lsn > start);
        let label = BackupLabel::parse(&finished.backup_label).unwrap();
        assert_eq!(label.to_bytes(), finished.backup_label);
        assert_eq!((label.start, label.label.as_str()), (start, "Full 'é'"));
        assert_eq!(label.timeline.unwrap().number(), 1);
        let from = if major == 13 { "master" } else { "primary" };
        assert_eq!(label.from.as_deref(), Some(from), "{major}");
        assert_eq!(label.method.as_deref(), Some("streamed"));
        let refused = connect(&cluster).await.backup_start("a\nb", true).await;
        assert_eq!(refused.err().unwrap().kind(), Kind::Usage);
    }
}

#[tokio::test]
async fn a_backup_whose_session_is_dropped_ends_on_the_server() {
    for major in Cluster::available_majors() {
        let cluster = Cluster::builder().major(major).start();
        let backup = connect(&cluster).await.backup_start("x", true).await;
        let sessions = "SELECT count(*) FROM pg_stat_activity \
             WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        assert_eq!(cluster.psql(sessions), "1");
        drop(backup.unwrap());
        tokio::task::yield_now().await;
        wait_for("the session's end", PATIENCE, || {
            (cluster.psql(sessions) == "0").then_some(())
        });
        let log = cluster.log();
        assert!(log.contains("aborting backup"), "{major}: {log}");
    }
}

/// A path is written by one version's rules and read by the same version's.
#[tokio::test]
async fn fault_65_tablespaces_of_odd_names_come_out_of_every_servers_map() {
    for major in Cluster::available_majors() {
        // Only there are the bytes of a name nobody's business.
        let builder = Cluster::builder().major(major);
        let cluster = builder.initdb_arg("--encoding=SQL_ASCII").start();
        let mut locations = Vec::new();
        for (number, name) in [
            &b"plain"[..],
            b"a b",
            b"line\nend",
            b"back\\slash",
            b"tail\\ ",
            b"re\rturn",
            b"\xFF\xFE",
        ]
        .into_iter()
        .enumerate()
        {
            locations.push(add_tablespace(&cluster, &format!("t{number}"), name));
        }
        let backup = connect(&cluster).await.backup_start("x", true).await;
        let finished = backup.unwrap().stop().await.unwrap();
        let bytes = finished.tablespace_map.unwrap();
        let map = tablespace_map::parse(&bytes, major).unwrap();
        let shown = bytes.escape_ascii();
        let mut found: Vec<PathBuf> = map.iter().map(|line| line.location.clone()).collect();
        found.sort();
        locations.sort();
        assert_eq!(found, locations, "{major}: {shown}");
        assert_eq!(tablespace_map::to_bytes(&map, major), bytes, "{major}");
    }
}

fn list(cluster: &Cluster) -> Listing {
    walk(&DataDirectory::open(cluster.data()).unwrap()).unwrap()
}

fn read(listing: &Listing, file: &File) -> Vec<u8> {
    let mut content = Vec::new();
    let mut opened = listing.roots.open_file(file).unwrap();
    opened.read_to_end(&mut content).unwrap();
    content
}

/// Every path below a folder, those of directories with a slash behind; links of tablespaces are
/// followed.
fn paths_below(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(above) = folders.pop() {
        for entry in std::fs::read_dir(above).unwrap() {
            let path = entry.unwrap().path();
            let below = path.strip_prefix(folder).unwrap().display().to_string();
            if path.is_dir() {
                found.insert(format!("{below}/"));
                folders.push(path);
            } else {
                found.insert(below);
            }
        }
    }
    found
}

/// A cluster that holds one of everything that a backup leaves out, and a session that keeps its
/// temporary table.
async fn cluster_of_everything(major: u8) -> (Cluster, Session) {
    let mut builder = Cluster::builder().major(major).conf("autovacuum", "off");
    if major >= 15 {
        builder = builder.conf("allow_in_place_tablespaces", "on");
    }
    let cluster = builder.start();
    let location = add_tablespace(&cluster, "side", b"side");
    std::fs::create_dir(location.join("not mine")).unwrap();
    if major >= 15 {
        cluster.psql("CREATE TABLESPACE inside LOCATION ''");
        cluster.psql("CREATE TABLE i TABLESPACE inside AS SELECT 1");
    }
    for place in ["pg_default", "side"] {
        cluster.psql(&format!(
            "CREATE TABLE kept_{place} TABLESPACE {place} AS SELECT generate_series(1, 5000) AS n; \
             CREATE UNLOGGED TABLE unlogged_{place} (n int PRIMARY KEY) TABLESPACE {place}; \
             INSERT INTO unlogged_{place} SELECT generate_series(1, 5000)",
        ));
        cluster.psql(&format!("VACUUM unlogged_{place}"));
    }
    cluster.psql("SELECT pg_create_physical_replication_slot('slot', true)");
    let session = connect(&cluster).await;
    for place in ["pg_default", "side"] {
        let sql = format!(
            "CREATE TEMPORARY TABLE t_{place} TABLESPACE {place} AS SELECT generate_series(1, 9)"
        );
        session.query(&sql, &[]).await.unwrap();
    }
    cluster.psql("CHECKPOINT");
    let data = cluster.data();
    std::fs::create_dir_all(data.join("base/pgsql_tmp")).unwrap();
    for name in [
        "base/pgsql_tmp/pgsql_tmp1.0",
        "global/pg_internal.init.77",
        "postgresql.auto.conf.tmp",
        "current_logfiles.tmp",
        "a note of mine",
    ] {
        std::fs::write(data.join(name), "x").unwrap();
    }
    std::os::unix::fs::symlink("/nonexistent", data.join("a link of mine")).unwrap();
    give_to_server(data);
    (cluster, session)
}

#[tokio::test]
async fn fault_63_a_backup_takes_the_files_that_pg_basebackup_takes() {
    for major in Cluster::available_majors() {
        let (cluster, _session) = cluster_of_everything(major).await;
        let target = cluster.home().join("copy");
        let side = cluster.home().join("side").display().to_string();
        let mut program = cluster.command("pg_basebackup");
        program.args(["-X", "none", "-c", "fast", "--no-sync", "-D"]);
        program.arg(&target).arg(format!("-T{side}={side}.copy"));
        if let Err(reason) = run(&mut program) {
            // A pg_basebackup knows its own version and older ones.
            assert!(reason.contains("incompatible server version"), "{reason}");
            report_skip(&format!("there is no pg_basebackup for PostgreSQL {major}"));
            continue;
        }
        let listing = list(&cluster);
        let mut ours: BTreeSet<String> = (listing.files.iter().chain([&listing.control]))
            .map(|file| String::from_utf8(file.path.as_bytes().to_vec()).unwrap())
            .collect();
        let named = |path: &_| format!("{}/", String::from_utf8_lossy(path));
        ours.extend((listing.directories.iter()).map(|path| named(path.as_bytes())));
        let mut theirs = paths_below(&target);
        for own in ["backup_label", "backup_manifest"] {
            assert!(theirs.remove(own), "{own}");
        }
        let missing: Vec<_> = theirs.difference(&ours).collect();
        let needless: Vec<_> = ours.difference(&theirs).collect();
        assert_eq!((missing, needless), (vec![], vec![]), "{major}");
        assert!(ours.iter().any(|path| path.ends_with("_init")));
        let passed: Vec<_> = listing
            .passed_over
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            passed,
            ["a link of mine is a symbolic link to what does not exist"]
        );
        let manifest = std::fs::read(target.join("backup_manifest")).unwrap();
        let files = Reader::new(&manifest).unwrap().map(Result::unwrap);
        for file in files {
            let path = target.join(OsStr::from_bytes(file.path.as_bytes()));
            let content = std::fs::read(path).unwrap();
            assert_eq!(file.size, content.len() as u64);
            assert_eq!(file.crc32c(), Some(crc32c::crc32c(&content)));
        }
    }
}

/// Copies a cluster as a backup does, and describes the copy.
async fn back_up(cluster: &Cluster, target: &Path) -> FinishedBackup {
    let backup = connect(cluster)
        .await
        .backup_start("x", true)
        .await
        .unwrap();
    let start = backup.start();
    let listing = list(cluster);
    for directory in &listing.directories {
        let directory = OsStr::from_bytes(directory.as_bytes());
        std::fs::create_dir_all(target.join(directory)).unwrap();
    }
    let data = DataDirectory::open(cluster.data()).unwrap();
    let system_id = data.control().unwrap().system_id;
    let mut manifest = ManifestWriter::new(Vec::new(), cluster.major(), system_id).unwrap();
    let mut store = |path: &[u8], last_modified: i64, content: &[u8]| {
        std::fs::write(target.join(OsStr::from_bytes(path)), content).unwrap();
        let entry = FileEntry {
            path: walmgr_protocol::names::RelativePath::new(path).unwrap(),
            size: content.len() as u64,
            last_modified,
            checksum: Some(Checksum::Crc32c(crc32c::crc32c(content))),
        };
        manifest.add(&entry).unwrap();
    };
    for file in listing.files.iter().chain([&listing.control]) {
        let content = read(&listing, file);
        store(file.path.as_bytes(), file.modified_s, &content);
    }
    let finished = backup.stop().await.unwrap();
    store(b"backup_label", 0, &finished.backup_label);
    if let Some(map) = &finished.tablespace_map {
        store(b"tablespace_map", 0, map);
    }
    let label = BackupLabel::parse(&finished.backup_label).unwrap();
    let range = WalRange {
        timeline: label.first_segment.timeline(),
        start,
        end: finished.stop_lsn,
    };
    let manifest = manifest.finish(&[range]).unwrap();
    std::fs::write(target.join("backup_manifest"), manifest).unwrap();
    give_to_server(target);
    finished
}

#[tokio::test]
async fn fault_68_pg_verifybackup_accepts_a_manifest_and_notices_damage() {
    skip_unless!(Cluster::available(15));
    let (cluster, _session) = cluster_of_everything(15).await;
    let odd = cluster
        .data()
        .join(OsStr::from_bytes(b"\xFF \"quoted\"\n\\"));
    std::fs::write(odd, "content").unwrap();
    std::fs::write(cluster.data().join("é \"quoted\"\n\\\u{1}"), "content").unwrap();
    give_to_server(cluster.data());
    let target = cluster.home().join("copy");
    back_up(&cluster, &target).await;
    let verify = || {
        let mut program = cluster.command("pg_verifybackup");
        program
            .arg("-w")
            .arg(cluster.data().join("pg_wal"))
            .arg(&target);
        run(&mut program)
    };
    verify().unwrap();
    let path = target.join("global/1262");
    let mut content = std::fs::read(&path).unwrap();
    content[100] ^= 1;
    std::fs::write(&path, content).unwrap();
    let refused = verify().unwrap_err();
    assert!(refused.contains("checksum mismatch"), "{refused}");
}

/// Every page of every relation file of a stopped server, and the files that have pages.
fn judge_all(cluster: &Cluster, start: Lsn) -> (Vec<PageState>, Vec<PathBuf>) {
    let control = DataDirectory::open(cluster.data())
        .unwrap()
        .control()
        .unwrap();
    let listing = list(cluster);
    let (mut states, mut files) = (Vec::new(), Vec::new());
    for file in &listing.files {
        let Some(pages) = Pages::of(&file.path, &control) else {
            continue;
        };
        let content = read(&listing, file);
        let (whole, rest) = content.as_chunks::<PAGE_BYTES>();
        assert!(rest.is_empty(), "{}", file.path);
        states.extend(
            (0..)
                .zip(whole)
                .map(|(at, page)| pages.judge(page, at, start)),
        );
        files.push(cluster.data().join(OsStr::from_bytes(file.path.as_bytes())));
    }
    (states, files)
}

#[test]
fn fault_57_pages_of_real_clusters_are_good_until_they_are_damaged() {
    for major in Cluster::available_majors() {
        let builder = Cluster::builder().major(major);
        let mut cluster = builder.initdb_arg("--data-checksums").start();
        add_tablespace(&cluster, "side", b"side");
        cluster.psql(
            "CREATE TABLE t TABLESPACE side AS SELECT generate_series(1, 50000) AS n; \
             CREATE INDEX ON t (n); CREATE INDEX ON t USING gin ((array[n]))",
        );
        cluster.psql("VACUUM t");
        cluster.stop(StopMode::Fast);
        let (states, files) = judge_all(&cluster, Lsn(u64::MAX));
        let count = |wanted: PageState| states.iter().filter(|state| **state == wanted).count();
        assert_eq!(count(PageState::Bad), 0, "{major}");
        assert_eq!(count(PageState::NewerThanStart), 0, "{major}");
        assert!(
            count(PageState::Good) > 1000,
            "{major}: {}",
            count(PageState::Good)
        );
        let damaged = files.iter().find(|path| path.ends_with("global/1262"));
        let damaged = damaged.unwrap();
        let mut content = std::fs::read(damaged).unwrap();
        content[8000] ^= 1;
        std::fs::write(damaged, content).unwrap();
        let bad = |start| {
            let (states, _) = judge_all(&cluster, start);
            states
                .iter()
                .filter(|state| **state == PageState::Bad)
                .count()
        };
        assert_eq!(bad(Lsn(u64::MAX)), 1, "{major}");
        assert_eq!(bad(Lsn(0)), 0, "WAL from the beginning repairs everything");
    }
}
