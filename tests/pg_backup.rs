//! The pieces of a base backup against real servers of every version that is installed.
//! Never trusts what this program wrote where PostgreSQL's own programs can judge it.
//! Invariant: a file is in a backup if and only if `pg_basebackup` would have taken it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use walmgr::error::Kind;
use walmgr::pg::backup_label::BackupLabel;
use walmgr::pg::sql::{Limits, Session};
use walmgr::pg::tablespace_map;

use crate::support::place::give_to_server;
use crate::support::{Cluster, wait_for};

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
