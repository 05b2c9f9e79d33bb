//! Sets that come of it: listed, verified, rotated, restored and booted like any other.
//! Never moves a set by hand.

use super::*;
use crate::support::TempDir;
use crate::support::loopfs::{FileSystem, LoopFs};
use crate::support::place::give_to_server;

const CONTENT: &str = "SELECT (SELECT md5(string_agg(a::text, ',' ORDER BY aid)) FROM pgbench_accounts a), \
     (SELECT count(*) FROM pgbench_history)";

#[test]
fn fault_152_a_standbys_set_is_listed_restored_and_promoted() {
    for major in majors() {
        for hot in [true, false] {
            let mut pair = Pair::new(major, hot);
            pair.site.cluster().pgbench(&["-n", "-t", "50"]);
            pair.catch_up();
            let said = pair.site.standby_command(&["-n", "backup"]).succeed();
            assert!(said.contains("copy ") && pair.listed().is_empty(), "{said}");
            let said = pair.backup().succeed();
            assert!(said.contains("data.master is sealed: "), "{said}");
            pair.verify("data.master");
            let label = fs::read_to_string(pair.set("data.master/backup_label")).unwrap();
            assert!(label.contains("BACKUP FROM: standby\n"), "{label}");
            for gone in ["standby.signal", "postmaster.pid", "backup_label.unsealed"] {
                assert!(!pair.set("data.master").join(gone).exists(), "{gone}");
            }
            // The receiver is no part of it.
            pair.site.receiver.stop();
            pair.backup().succeed();
            assert_eq!(pair.listed(), ["data.master", "data.master.0"]);
            pair.site.start_receiver();
            assert_eq!(pair.listed(), ["data.master", "data.master.0"]);
            // Beside sets of the master.
            pair.site.master_command(&["backup"]).succeed();
            assert_eq!(pair.listed().len(), 3);

            pair.site.cluster().pgbench(&["-n", "-t", "50"]);
            let content = pair.site.cluster().psql(CONTENT);
            drain(&pair.site);
            pair.standby.stop(crate::support::StopMode::Fast);
            // The older of the two, into a directory of its own.
            let home = TempDir::new();
            give_to_server(home.path());
            let data = home.join("restored");
            let path = data.display().to_string();
            let words = ["restore", "data.master.1", path.as_str()];
            pair.site.standby_command(&words).succeed();
            let mut restored = Cluster::on_directory(major, &data);
            restored.start();
            pair.site.standby_set("slave_data", &path);
            let said = pair.site.standby_command(&["boot"]).succeed();
            assert!(said.contains("open on timeline 2"), "{said}");
            assert_eq!(
                restored.psql(CONTENT),
                content,
                "PostgreSQL {major}, hot {hot}"
            );
            restored.psql("CREATE TABLE open_again ()");
        }
    }
}

/// What sessions of the master read, and how many there were; the second with this one.
fn master_load(pair: &Pair) -> (u64, u64) {
    // PostgreSQL counts a session when it has ended.
    pair.site.cluster().psql("SELECT pg_sleep(1)");
    let count = |sql: &str| pair.site.cluster().psql(sql).parse::<u64>().unwrap();
    let reads = count(
        "SELECT sum(reads) FROM pg_stat_io WHERE backend_type IN ('client backend', 'walsender')",
    );
    let sessions = count("SELECT sum(sessions) FROM pg_stat_database");
    (reads, sessions)
}

/// Of [`master_load`] itself.
const SESSIONS_OF_OURS: u64 = 3;

#[test]
fn fault_152_the_master_reads_nothing_for_a_standbys_set() {
    skip_unless!(Cluster::available(18));
    for hot in [true, false] {
        let pair = Pair::new(18, hot);
        // Its catalog is in memory now.
        master_load(&pair);
        let before = master_load(&pair);
        pair.backup().succeed();
        let after = master_load(&pair);
        println!("hot {hot}: {before:?} before, {after:?} after");
        assert_eq!(after.0, before.0, "hot {hot}");
        let sessions = after.1 - before.1;
        assert!(sessions <= SESSIONS_OF_OURS, "{before:?}, {after:?}");
        // A backup of the master has a session, and so counts.
        pair.site.master_command(&["backup"]).succeed();
        let sessions = master_load(&pair).1 - after.1;
        assert!(sessions > SESSIONS_OF_OURS, "{after:?}, {sessions}");
    }
}

#[test]
fn fault_152_sets_of_a_standby_rotate_and_their_wal_stays() {
    skip_unless!(Cluster::available(15));
    let mut pair = Pair::new(15, true);
    pair.site.standby_set("keep_backups", "2");
    pair.site.standby_set("keep_minimum_age", "0");
    let shown = pair.site.home().join("shown");
    let command = format!("echo $BACKUPDIR >> {}", shown.display());
    pair.site.standby_set("archive_command", &command);
    for _ in 0..4 {
        pair.site.cluster().pgbench(&["-n", "-t", "50"]);
        pair.catch_up();
        pair.backup().succeed();
    }
    assert_eq!(pair.listed(), ["data.master", "data.master.0"]);
    let shown = fs::read_to_string(shown).unwrap();
    assert_eq!(shown.lines().count(), 2, "{shown}");
    // The oldest set's WAL is what is left.
    let label = fs::read_to_string(pair.set("data.master.0/backup_label")).unwrap();
    let first = label.split("(file ").nth(1).unwrap()[..24].to_owned();
    let mut kept = pair.site.archived_names();
    kept.retain(|name| name.len() == 24);
    assert_eq!(kept.first(), Some(&first));
    pair.verify("data.master.0");
}

#[test]
fn fault_152_tablespaces_of_a_standby_come_along_where_they_are_there() {
    skip_unless!(Cluster::available(15));
    for hot in [true, false] {
        let home = TempDir::new();
        give_to_server(home.path());
        let here = home.create_dir("master-space");
        let cluster = Cluster::builder().conf("archive_mode", "on").start();
        let mut site = Site::with_cluster(cluster);
        site.master_command(&["setup"]).succeed();
        site.cluster().psql(&format!(
            "CREATE TABLESPACE far LOCATION '{}'",
            here.display()
        ));
        site.cluster()
            .psql("CREATE TABLE t TABLESPACE far AS SELECT generate_series(1, 9999) AS n");
        site.master_command(&["backup"]).succeed();
        let (data, there) = (home.join("data"), home.join("standby-space"));
        let mapping = format!("{}={}", here.display(), there.display());
        let restore = [
            "restore",
            "data.master",
            data.to_str().unwrap(),
            "--tablespace-mapping",
            &mapping,
        ];
        site.standby_command(&restore).succeed();
        let mut standby = Cluster::on_directory(15, &data);
        standby.append_conf(&format!("hot_standby = {}", if hot { "on" } else { "off" }));
        standby.start();
        site.standby_set("slave_data", &data.display().to_string());
        let pair = Pair { standby, site };
        pair.catch_up();
        let output = pair.site.standby_command(&["backup"]);
        output.succeed();
        pair.verify("data.master");
        let map = fs::read_to_string(pair.set("data.master/tablespace_map")).unwrap();
        assert!(map.contains(&there.display().to_string()), "{map}");
        let oid = map.split(' ').next().unwrap();
        assert!(pair.set("data.master/tmpspc").join(oid).is_dir());
        // A copy beside the first, mapped elsewhere again.
        let again = home.join("again");
        let mapping = format!("{}={}", there.display(), home.join("third").display());
        let restore = [
            "restore",
            "data.master",
            again.to_str().unwrap(),
            "--tablespace-mapping",
            &mapping,
        ];
        pair.site.standby_command(&restore).succeed();
        let mut server = Cluster::on_directory(15, &again);
        server.start();
        wait_for("the table", PATIENCE, || {
            let count = server.try_psql("SELECT count(*) FROM t").ok();
            // A cold one does not answer.
            (!hot || count? == "9999").then_some(())
        });
    }
}

#[test]
fn fault_152_what_streams_waits_for_the_archive_and_says_so() {
    skip_unless!(Cluster::available(15));
    let mut pair = Pair::new(15, true);
    pair.standby.stop(crate::support::StopMode::Fast);
    let primary = pair.site.cluster().conninfo();
    pair.standby
        .append_conf(&format!("primary_conninfo = '{primary}'"));
    pair.standby.start();
    let streams = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
    wait_for("streaming", PATIENCE, || {
        (pair.site.cluster().psql(streams) == "1").then_some(())
    });
    pair.site.cluster().psql("CREATE TABLE streamed ()");
    wait_for("the table", PATIENCE, || {
        pair.standby.try_psql("TABLE streamed").ok()
    });
    // What is flushed by now raises the point at which recovery is consistent.
    pair.standby.psql("CHECKPOINT");
    let log = pair.site.home().join("backup.log");
    let mut backup = pair.site.standby_walmgr(&["backup"]);
    backup.stderr(fs::File::create(&log).unwrap());
    let mut child = backup.spawn().unwrap();
    let last = pair.site.cluster().psql("SELECT pg_current_wal_lsn()");
    wait_for("the words", PATIENCE, || {
        // It need not wait where nothing was flushed that was streamed.
        let has_ended = child.try_wait().unwrap().is_some();
        let said = fs::read_to_string(&log).unwrap();
        (has_ended || said.contains("pg_switch_wal()")).then_some(())
    });
    println!("streamed up to {last}");
    drain(&pair.site);
    assert!(child.wait().unwrap().success());
    pair.verify("data.master");
}

#[test]
fn fault_152_a_file_system_that_can_shares_blocks_and_never_a_file() {
    use std::os::unix::fs::MetadataExt;
    let disk = skip_unless!(LoopFs::create(FileSystem::Xfs, 1500));
    for hot in [true, false] {
        let folder = disk.path().join(format!("hot-{hot}"));
        fs::create_dir(&folder).unwrap();
        give_to_server(&folder);
        let cluster = Cluster::builder()
            .initdb_arg("--data-checksums")
            .conf("archive_mode", "on")
            .start();
        let builder = Site::builder().cluster(cluster);
        let mut site = builder.archive(&folder.join("archive")).build();
        site.master_command(&["setup"]).succeed();
        site.cluster().pgbench(&["-i", "-q", "-s", "2"]);
        site.master_command(&["backup"]).succeed();
        let data = folder.join("data");
        let restore = ["restore", "data.master", data.to_str().unwrap()];
        site.standby_command(&restore).succeed();
        let mut standby = Cluster::on_directory(15, &data);
        standby.append_conf(&format!("hot_standby = {}", if hot { "on" } else { "off" }));
        standby.start();
        site.standby_set("slave_data", &data.display().to_string());
        let pair = Pair { standby, site };
        pair.catch_up();
        let said = pair.backup().succeed();
        assert!(!said.contains("; 0 B share"), "{said}");
        pair.verify("data.master");
        let file = "base/1/PG_VERSION";
        let metadata = fs::metadata(pair.set("data.master").join(file)).unwrap();
        assert_eq!(metadata.nlink(), 1);
    }
}

#[test]
fn fault_188_a_standbys_backup_keeps_its_rate_and_ends_when_told() {
    let major = *majors().first().unwrap();
    let mut pair = Pair::new(major, true);
    pair.site.standby_set("backup_rate", "10MB");
    let begun = std::time::Instant::now();
    let said = pair.backup().succeed();
    let took = begun.elapsed();
    assert!(
        said.contains("(at most 10.00 MiB/s, as backup_rate says)"),
        "{said}"
    );
    pair.verify("data.master");
    let listed = pair.site.standby_command(&["-n", "backup"]).succeed();
    assert!(listed.contains("as backup_rate says"), "{listed}");
    let bytes = crate::backup::rate::bytes_below(&pair.set("data.master"));
    crate::backup::rate::check_rate(bytes, took, 10 << 20);
    pair.site.standby_set("backup_rate", "256kB");
    let slow = Running::start(&pair);
    std::thread::sleep(Duration::from_secs(2));
    let begun = std::time::Instant::now();
    slow.signal(Signal::TERM);
    slow.end().fail_last(1, "stopped by SIGTERM");
    assert!(begun.elapsed() < Duration::from_secs(30));
    assert_eq!(pair.listed(), ["data.master"]);
}
