//! Backups of servers that change while they are read, and of data directories with oddities.
//! Never chooses the moment: the load runs all the time. Invariant: each set is started and checked.

use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::{amcheck, newest, site, site_of, start_from, verify};
use crate::load::drain;
use crate::support::place::give_to_server;
use crate::support::{Cluster, Site, TempDir, run, soak, wait_for};

/// Hundreds of segments may have to be replayed.
const PATIENCE: Duration = Duration::from_secs(300);

/// Something that runs beside a test until it is dropped.
struct Load(Child);

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs each of these scripts all the time, with the weight before it.
fn load(site: &Site, scripts: &[(u32, &str)], home: &TempDir) -> Load {
    let mut pgbench = site.cluster().command("pgbench");
    pgbench.args(["-n", "-c", "3", "-R", "60", "-T", "600"]);
    for (weight, script) in scripts {
        let path = home.write(&format!("load-{weight}.sql"), script);
        pgbench
            .arg("-f")
            .arg(format!("{}@{weight}", path.display()));
    }
    pgbench.stdout(Stdio::null()).stderr(Stdio::null());
    Load(pgbench.spawn().unwrap())
}

/// Tables come and go, grow and shrink; what is committed together stays together. A load that was
/// ended leaves a table behind, on which the next one must not stumble.
const CHURN: &str = "\
    \\set n random(1, 1000000)
    \\set a random(1, 200000)
    BEGIN;
    UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = :a;
    UPDATE pgbench_branches SET bbalance = bbalance + 1 WHERE bid = 1;
    COMMIT;
    DROP TABLE IF EXISTS churn_:client_id;
    CREATE TABLE churn_:client_id AS SELECT repeat('x', 500) FROM generate_series(1, 300);
    INSERT INTO grown SELECT repeat('y', 500) FROM generate_series(1, 200);
    DROP TABLE churn_:client_id;
    TRUNCATE shrunk;
    INSERT INTO shrunk SELECT repeat('z', 500) FROM generate_series(1, 400);
    INSERT INTO spread SELECT :n;
    ";

/// Tablespaces come and go. They lie in the data directory: a server that replays where one was
/// elsewhere would take the master's own.
const SPACES: &str = "\
    DROP TABLE IF EXISTS in_space_:client_id;
    DROP TABLESPACE IF EXISTS space_:client_id;
    CREATE TABLESPACE space_:client_id LOCATION '';
    CREATE TABLE in_space_:client_id TABLESPACE space_:client_id AS
        SELECT repeat('s', 500) FROM generate_series(1, 300);
    DROP TABLE in_space_:client_id;
    DROP TABLESPACE space_:client_id;
    ";

const CONTENT: &str = "SELECT (SELECT sum(abalance) FROM pgbench_accounts), \
     (SELECT count(*) FROM grown), (SELECT count(*) FROM shrunk), \
     (SELECT sum(n) FROM spread), (SELECT count(*) FROM pg_class)";

#[test]
fn fault_55_56_changing_tables_and_tablespaces_cost_nothing() {
    skip_unless!(Cluster::available(15));
    let cluster = Cluster::builder().initdb_arg("--data-checksums");
    let site = site_of(cluster.conf("allow_in_place_tablespaces", "on"));
    site.cluster().pgbench(&["-i", "-q", "-s", "2"]);
    let home = TempDir::new();
    give_to_server(home.path());
    let space = home.create_dir("space");
    for sql in [
        "CREATE TABLE grown (t text)",
        "CREATE TABLE shrunk (t text)",
        &format!("CREATE TABLESPACE spread LOCATION '{}'", space.display()),
        "CREATE TABLE spread (n bigint) TABLESPACE spread",
    ] {
        site.cluster().psql(sql);
    }
    for round in 0..(if soak() { 20 } else { 1 }) {
        let load = load(&site, &[(19, CHURN), (1, SPACES)], &home);
        site.master_command(&["backup"]).succeed();
        // What it wrote has to be replayed below.
        drop(load);
        verify(&site, &newest(&site));
        assert!(!newest(&site).join("walmgr_damaged_pages").exists());
        let (server, copy) = start_from(&site, &newest(&site));
        let sums = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = \
                    (SELECT bbalance FROM pgbench_branches WHERE bid = 1)";
        assert_eq!(server.psql(sums), "t");
        amcheck(&server);
        drop((server, copy));
        println!("set {round} verifies, starts and is sound");
        assert_a_standby_follows(&site, &home.join(format!("standby-{round}")));
    }
}

/// A standby restored from the newest set gets to what the master has.
#[track_caller]
fn assert_a_standby_follows(site: &Site, data: &Path) {
    let words = ["restore", "data.master", data.to_str().unwrap()];
    site.standby_command(&words).succeed();
    let mut standby = Cluster::on_directory(15, data);
    standby.start();
    wait_for("the end of the load", PATIENCE, || {
        let others = "SELECT count(*) FROM pg_stat_activity \
                      WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        (site.cluster().psql(others) == "0").then_some(())
    });
    let content = site.cluster().psql(CONTENT);
    let end = site.cluster().psql("SELECT pg_current_wal_lsn()");
    drain(site);
    // Asking for the data meanwhile would hold up the replay of what locks it.
    let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
    let begun = Instant::now();
    while standby.try_psql(&replayed).ok().as_deref() != Some("t") {
        let log = || standby.log();
        assert!(begun.elapsed() < PATIENCE, "it lags:\n{}", log());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(standby.psql(CONTENT), content);
    drop(standby);
    std::fs::remove_dir_all(data).unwrap();
}

#[test]
fn fault_61_tablespaces_come_along_also_one_made_meanwhile() {
    skip_unless!(Cluster::available(15));
    let site = site();
    let home = TempDir::new();
    let make = |name: &str| {
        let folder = home.create_dir(name);
        let folder = folder.display();
        site.cluster()
            .psql(&format!("CREATE TABLESPACE {name} LOCATION '{folder}'"));
        site.cluster().psql(&format!(
            "CREATE TABLE in_{name} TABLESPACE {name} AS SELECT generate_series(1, 9999) AS n"
        ));
    };
    make("first");
    let backup = site.master_walmgr(&["backup"]).spawn().unwrap();
    make("meanwhile");
    let ended = backup.wait_with_output().unwrap();
    assert!(ended.status.success());
    let oid = site
        .cluster()
        .psql("SELECT oid FROM pg_tablespace WHERE spcname = 'first'");
    let kept = newest(&site).join("tmpspc").join(&oid);
    assert!(kept.read_dir().unwrap().next().is_some());
    let link = newest(&site).join("pg_tblspc").join(&oid);
    assert_eq!(std::fs::canonicalize(link).unwrap(), kept);
    verify(&site, &newest(&site));
    site.cluster().switch_wal();
    site.master_command(&["backup"]).succeed();
    verify(&site, &newest(&site));
    let (server, _home) = start_from(&site, &newest(&site));
    for name in ["first", "meanwhile"] {
        assert_eq!(
            server.psql(&format!("SELECT count(*) FROM in_{name}")),
            "9999"
        );
    }
    amcheck(&server);
}

#[test]
fn fault_59_62_the_label_is_the_servers_and_links_are_no_content() {
    skip_unless!(Cluster::available(15));
    let mut site = site();
    let elsewhere = TempDir::new();
    site.cluster_mut().stop(crate::support::StopMode::Fast);
    let (wal, moved) = (site.data().join("pg_wal"), elsewhere.join("wal"));
    run(site.cluster().command("mv").arg(&wal).arg(&moved)).unwrap();
    symlink(&moved, &wal).unwrap();
    give_to_server(&wal);
    let linked = elsewhere.write("own", "an administrator's");
    symlink(linked, site.data().join("a_link")).unwrap();
    site.cluster_mut().start();
    // What lies around is somebody else's.
    for name in ["backup_label", "tablespace_map", "backup_manifest"] {
        std::fs::write(site.data().join(name), "of another backup").unwrap();
        give_to_server(&site.data().join(name));
    }
    site.master_command(&["backup"]).succeed();
    for name in ["backup_label", "tablespace_map"] {
        std::fs::remove_file(site.data().join(name)).unwrap();
    }
    let set = newest(&site);
    verify(&site, &set);
    let label = std::fs::read_to_string(set.join("backup_label")).unwrap();
    assert!(label.starts_with("START WAL LOCATION: ") && label.contains("LABEL: FullBackup\n"));
    assert!(!set.join("tablespace_map").exists());
    assert!(set.join("a_link").symlink_metadata().unwrap().is_file());
    assert!(set.join("pg_wal").symlink_metadata().unwrap().is_dir());
    let (server, _home) = start_from(&site, &set);
    amcheck(&server);
}

#[test]
fn fault_57_a_damaged_page_is_named_and_the_set_marked() {
    skip_unless!(Cluster::available(15));
    let mut site = site_of(Cluster::builder().initdb_arg("--data-checksums"));
    site.cluster()
        .psql("CREATE TABLE rotten AS SELECT generate_series(1, 9999) AS n");
    let file = site.cluster().psql("SELECT pg_relation_filepath('rotten')");
    site.cluster_mut().stop(crate::support::StopMode::Fast);
    let path = site.data().join(&file);
    let damaged = std::fs::File::options().write(true).open(path).unwrap();
    damaged.write_all_at(b"rot", 2 * 8192 + 4000).unwrap();
    site.cluster_mut().start();
    let output = site.master_command(&["backup"]);
    assert_eq!(output.code, Some(1), "{}", output.stderr);
    let expected = format!("{file} block 2");
    assert!(output.stderr.contains(&expected), "{}", output.stderr);
    let note = std::fs::read_to_string(newest(&site).join("walmgr_damaged_pages")).unwrap();
    assert_eq!(note, format!("{expected}\n"));
    // It is what the master has.
    verify(&site, &newest(&site));
}
