//! A backup that is built on an older one: whole, startable, and never wrong without anybody noticing.
//! Never takes walmgr's word for what is in a set. Invariant: whatever is wrong with the older set, a good set comes of it.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::{amcheck, archiving, beside, newest, site, site_of, start_from, verify};
use crate::support::cluster::StopMode;
use crate::support::loopfs::{FileSystem, LoopFs, give_back};
use crate::support::{Cluster, Site, run, wait_for};

/// A master with two hundred thousand rows of which a set exists, and one percent of the rows changed since.
fn changed_site(cluster: crate::support::cluster::Builder) -> Site {
    let site = site_of(cluster.conf("autovacuum", "off"));
    site.cluster().pgbench(&["-i", "-q", "-s", "2"]);
    let said = site.master_command(&["backup"]).succeed();
    assert!(
        said.contains("full, because there is no older set"),
        "{said}"
    );
    let change = "UPDATE pgbench_accounts SET abalance = 7 WHERE aid % 100 = 0 AND aid < 40000";
    site.cluster().psql(change);
    site
}

#[track_caller]
fn inode(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).unwrap().ino()
}

#[test]
fn an_incremental_backup_verifies_starts_and_has_the_masters_data() {
    skip_unless!(Cluster::available(15));
    let site = changed_site(Cluster::builder());
    let sum = "SELECT count(*), sum(abalance), sum(aid) FROM pgbench_accounts";
    let before = site.cluster().psql(sum);
    let rehearsed = site.master_command(&["backup", "-n"]).succeed();
    assert!(rehearsed.contains("built on data.master"), "{rehearsed}");
    assert_eq!(beside(&site), ["data.master"]);
    let said = site.master_command(&["backup"]).succeed();
    assert!(said.contains("incremental, built on data.master"), "{said}");
    assert_eq!(beside(&site), ["data.master", "data.master.0"]);
    let older = site.archive_folder().join("data.master.0");
    verify(&site, &newest(&site));
    verify(&site, &older);
    let table = site
        .cluster()
        .psql("SELECT pg_relation_filepath('pgbench_accounts')");
    assert_ne!(
        inode(&newest(&site).join(&table)),
        inode(&older.join(&table))
    );
    let (server, _home) = start_from(&site, &newest(&site));
    assert_eq!(server.psql(sum), before);
    amcheck(&server);
    let said = site.master_command(&["backup", "--full"]).succeed();
    assert!(said.contains("full, because --full says so"), "{said}");
    let rehearsed = site.master_command(&["backup", "-n", "--full"]).succeed();
    assert!(
        rehearsed.contains("everything: --full says so"),
        "{rehearsed}"
    );
}

/// What `status` and the metrics of the standby say of how the newest set was made.
fn told_of_newest(site: &Site) -> (Value, String, String) {
    let file = site.home().join("made.prom");
    let path = file.to_str().unwrap();
    let text = site.standby_command(&["status"]).stdout;
    let words = ["status", "--json", "--metrics", path];
    let json = site.standby_command(&words).stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    let metrics = std::fs::read_to_string(&file).unwrap();
    (json["standby"]["newest_set"].clone(), text, metrics)
}

#[test]
fn status_and_metrics_tell_how_the_newest_set_was_made() {
    skip_unless!(Cluster::available(15));
    let site = changed_site(Cluster::builder());
    let size = || site.listed_sets()[0]["size_bytes"].as_u64().unwrap();
    let check = |kind: &str| {
        let (set, text, metrics) = told_of_newest(&site);
        let number = |name: &str| set[name].as_u64().unwrap();
        let (read, sent) = (number("read_bytes"), number("sent_bytes"));
        assert_eq!(
            (&set["set"], &set["kind"]),
            (&"data.master".into(), &kind.into())
        );
        let ratio = read as f64 / sent as f64;
        assert!(
            (set["ratio"].as_f64().unwrap() - ratio).abs() < 0.02,
            "{set}"
        );
        let row = format!("  made       data.master is {kind}: ");
        assert!(text.contains(&row) && text.contains(", ratio "), "{text}");
        let is_incremental = u64::from(kind == "incremental");
        for (metric, told) in [
            ("incremental", is_incremental),
            ("read_bytes", read),
            ("sent_bytes", sent),
        ] {
            let begins = format!("walmgr_backup_last_{metric}{{");
            let line = metrics
                .lines()
                .find(|line| line.starts_with(&begins))
                .unwrap();
            let found: f64 = line.rsplit_once(' ').unwrap().1.parse().unwrap();
            assert_eq!(found, told as f64, "{line}");
        }
        (read, sent)
    };
    let (read, _) = check("full");
    // All files but its label, and what the standby itself writes.
    assert!(size().abs_diff(read) < 1 << 20, "{read} of {}", size());
    site.master_command(&["backup"]).succeed();
    let (incremental, sent) = check("incremental");
    assert!(
        incremental < read / 2 && sent < read / 2,
        "{incremental} of {read}"
    );
    verify(&site, &newest(&site));
    // A set that does not say so, as one that PostgreSQL's own tool made.
    std::fs::remove_file(newest(&site).join("walmgr_backup")).unwrap();
    let (set, text, metrics) = told_of_newest(&site);
    assert_eq!(set, Value::Null);
    assert!(!text.contains("  made "), "{text}");
    assert!(!metrics.contains("backup_last_read_bytes"), "{metrics}");
}

#[test]
fn every_so_many_backups_one_is_full() {
    skip_unless!(Cluster::available(15));
    let cluster = Cluster::builder().conf("archive_mode", "on").start();
    let site = Site::builder()
        .cluster(cluster)
        .standby_set("full_every", "3");
    let site = archiving(site);
    let kinds: Vec<bool> = (0..5)
        .map(|_| {
            let said = site.master_command(&["backup"]).succeed();
            said.contains("incremental, built on")
        })
        .collect();
    assert_eq!(kinds, [false, true, true, false, true]);
}

#[test]
fn fault_207_a_set_that_a_server_or_the_disk_changed_is_no_parent() {
    skip_unless!(Cluster::available(15));
    let site = changed_site(Cluster::builder());
    let table = site
        .cluster()
        .psql("SELECT pg_relation_filepath('pgbench_accounts')");
    let file = std::fs::File::options();
    let file = file
        .clone()
        .write(true)
        .open(newest(&site).join(&table))
        .unwrap();
    file.write_all_at(b"rotten", 1_000 * 8192 + 500).unwrap();
    drop(file);
    let said = site.master_command(&["backup"]).succeed();
    assert!(said.contains("full, because"), "{said}");
    assert!(said.contains("its CRC-32C is not its manifest's"), "{said}");
    verify(&site, &newest(&site));
    // The damaged one is passed over, and the good one is built on.
    let said = site.master_command(&["backup"]).succeed();
    assert!(said.contains("incremental, built on data.master"), "{said}");
    verify(&site, &newest(&site));
}

#[test]
fn fault_208_a_page_that_changed_without_wal_makes_the_backup_full() {
    skip_unless!(Cluster::available(15));
    let mut site = changed_site(Cluster::builder());
    let table = site
        .cluster()
        .psql("SELECT pg_relation_filepath('pgbench_accounts')");
    site.cluster_mut().stop(StopMode::Fast);
    let path = site.data().join(&table);
    let file = std::fs::File::options().write(true).open(path).unwrap();
    for block in 1_000..3_000 {
        file.write_all_at(&[0, 0, 0, 0, 1, 0, 0, 0], block * 8192)
            .unwrap();
    }
    drop(file);
    site.cluster_mut().start();
    let said = site.master_command(&["backup"]).succeed();
    assert!(said.contains("full, because"), "{said}");
    assert!(said.contains("is not the same on the master"), "{said}");
    verify(&site, &newest(&site));
    let status = site.standby_command(&["status"]);
    let status = format!("{}{}", status.stdout, status.stderr);
    assert!(status.contains("is not the same on the master"), "{status}");
    // Until somebody has looked at it none is built on another.
    let said = site.master_command(&["backup"]).succeed();
    assert!(
        said.contains("full, because an incremental backup would have been wrong"),
        "{said}"
    );
    std::fs::remove_file(site.completed_wals().join(".incremental.differs")).unwrap();
    let said = site.master_command(&["backup"]).succeed();
    assert!(said.contains("incremental, built on data.master"), "{said}");
}

/// By the numbers of their resource managers: rows, what vacuum does to them, and B-trees.
#[test]
fn fault_208_a_decoder_that_passes_over_a_kind_of_record_is_caught() {
    skip_unless!(Cluster::available(15));
    let mut site = changed_site(Cluster::builder());
    for (manager, act) in [
        ("10", "DELETE FROM pgbench_accounts WHERE aid % 61 = 0"),
        ("9", "VACUUM pgbench_accounts"),
        (
            "11",
            "INSERT INTO pgbench_accounts SELECT 61 * n, 1 FROM generate_series(1, 3000) n",
        ),
    ] {
        site.receiver.stop();
        let mut command = site.receiver_walmgr();
        command.env("WALMGR_PASSED_OVER_MANAGER", manager);
        site.receiver.start(&mut command).unwrap();
        site.master_command(&["backup", "--full"]).succeed();
        // Vacuum takes nothing that somebody may still see.
        let seeing = "SELECT count(*) FROM pg_stat_activity \
            WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid()";
        wait_for("nobody who sees old rows", Duration::from_secs(60), || {
            (site.cluster().psql(seeing) == "0").then_some(())
        });
        site.cluster().psql(act);
        let said = site.master_command(&["backup"]).succeed();
        assert!(said.contains("is not the same on the master"), "{said}");
        verify(&site, &newest(&site));
        std::fs::remove_file(site.completed_wals().join(".incremental.differs")).unwrap();
    }
}

/// PostgreSQL 17 and 18 lose the cleared bits of the visibility map here.
#[test]
fn fault_204_cleared_visibility_bits_are_in_an_incremental_backup() {
    for major in Cluster::available_majors() {
        let site = site_of(Cluster::builder().major(major).conf("autovacuum", "off"));
        let sql = "CREATE TABLE seen AS SELECT n FROM generate_series(1, 100000) n; \
            CREATE INDEX ON seen (n); VACUUM (ANALYZE, FREEZE) seen; CHECKPOINT";
        for sql in sql.split(';') {
            site.cluster().psql(sql);
        }
        site.master_command(&["backup"]).succeed();
        site.cluster().psql("DELETE FROM seen WHERE n % 10 = 0");
        let said = site.master_command(&["backup"]).succeed();
        assert!(said.contains("incremental, built on"), "{said}");
        let (server, _home) = start_from(&site, &newest(&site));
        let by_index = "SET enable_seqscan = off; SET enable_bitmapscan = off; \
            SELECT count(*) FROM seen WHERE n > 0";
        let found = server.psql(by_index);
        assert_eq!(found.lines().last(), Some("90000"), "PostgreSQL {major}");
    }
}

#[test]
fn wal_of_level_minimal_makes_the_next_backup_full() {
    skip_unless!(Cluster::available(15));
    let mut site = site();
    site.cluster().psql("CREATE TABLE t AS SELECT 1 AS n");
    site.master_command(&["backup"]).succeed();
    for (level, senders, mode) in [("minimal", "0", "off"), ("replica", "10", "on")] {
        let cluster = site.cluster_mut();
        cluster.append_conf(&format!("wal_level = {level}"));
        cluster.append_conf(&format!("max_wal_senders = {senders}"));
        cluster.append_conf(&format!("archive_mode = {mode}"));
        cluster.restart();
        cluster.psql("INSERT INTO t SELECT 2");
    }
    let said = site.master_command(&["backup"]).succeed();
    assert!(
        said.contains("full, because what changed cannot be told"),
        "{said}"
    );
}

#[test]
fn fault_209_a_killed_receiver_leaves_the_older_set_whole() {
    skip_unless!(Cluster::available(15));
    let mut site = changed_site(Cluster::builder());
    let mut dice = crate::support::dice::Dice::thrown("killed while built on an older set");
    let begun = std::time::Instant::now();
    site.master_command(&["backup"]).succeed();
    let whole_ms = u64::try_from(begun.elapsed().as_millis()).unwrap();
    let wanted = if crate::support::soak() { 100 } else { 4 };
    let (mut hits, mut rounds) = (0, 0);
    // What ended before it was killed counts for nothing.
    while hits < wanted {
        rounds += 1;
        assert!(rounds < 4 * wanted + 10, "{hits} hits in {rounds} rounds");
        let mut backup = site.master_walmgr(&["backup"]);
        let mut backup = backup.stderr(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(dice.below(whole_ms)));
        hits += u32::from(backup.try_wait().unwrap().is_none());
        site.receiver.kill9();
        site.start_receiver();
        // It may have been sealed before.
        let _ = backup.wait();
        let leftover = site.archive_folder().join("data.master.incoming");
        assert!(!leftover.join("backup_label").exists());
        for set in sealed(&site) {
            verify(&site, &site.archive_folder().join(&set));
        }
    }
    println!("{rounds} kills, {hits} of them below a backup");
    let said = site.master_command(&["backup"]).succeed();
    assert!(said.contains("incremental, built on data.master"), "{said}");
    verify(&site, &newest(&site));
}

/// A master with ninety megabytes whose sets and WAL are on this disk: one set, and a hundredth changed since.
pub(super) fn changed_site_on(disk: &LoopFs) -> Site {
    let cluster = Cluster::builder()
        .conf("archive_mode", "on")
        .conf("autovacuum", "off");
    let builder = Site::builder().cluster(cluster.start());
    let site = archiving(builder.archive(&disk.path().join("archive")));
    site.cluster().pgbench(&["-i", "-q", "-s", "6"]);
    site.master_command(&["backup"]).succeed();
    let change = "UPDATE pgbench_accounts SET abalance = 7 WHERE aid < 6000";
    site.cluster().psql(change);
    site
}

/// Bytes of the disk that are in use, and that are free.
fn space(disk: &LoopFs) -> (u64, u64) {
    run(std::process::Command::new("sync")
        .arg("-f")
        .arg(disk.path()))
    .unwrap();
    let found = rustix::fs::statvfs(disk.path()).unwrap();
    let used = (found.f_blocks - found.f_bfree) * found.f_frsize;
    (used, found.f_bavail * found.f_frsize)
}

#[test]
fn fault_206_shared_blocks_cost_no_space_and_change_with_no_other_set() {
    skip_unless!(Cluster::available(15));
    let disk = skip_unless!(LoopFs::create(FileSystem::Xfs, 1500));
    let site = changed_site_on(&disk);
    let wal = |site: &Site| super::rate::bytes_below(&site.completed_wals());
    let (wal_before, before) = (wal(&site), space(&disk).0);
    let said = site.master_command(&["backup"]).succeed();
    assert!(said.contains("incremental, built on data.master"), "{said}");
    let (wal_bytes, taken) = (
        wal(&site) - wal_before,
        space(&disk).0.saturating_sub(before),
    );
    let whole = super::rate::bytes_below(&newest(&site));
    println!("a set of {whole} bytes took {taken}, with {wal_bytes} of WAL");
    assert!(taken < wal_bytes + whole / 3, "{taken} of {whole}");
    let older = site.archive_folder().join("data.master.0");
    verify(&site, &newest(&site));
    let table = site
        .cluster()
        .psql("SELECT pg_relation_filepath('pgbench_accounts')");
    let file = std::fs::File::options()
        .write(true)
        .open(newest(&site).join(&table));
    file.unwrap()
        .write_all_at(&[7; 65_536], 5_000 * 8192)
        .unwrap();
    verify(&site, &older);
}

/// XFS keeps 128 KiB for each shared page that is written, unless it is told otherwise.
#[test]
fn fault_206_scattered_pages_take_their_own_space_and_no_more() {
    skip_unless!(Cluster::available(15));
    let disk = skip_unless!(LoopFs::create(FileSystem::Xfs, 1500));
    let site = changed_site_on(&disk);
    let change = "UPDATE pgbench_accounts SET abalance = 8 WHERE aid % 300 = 0";
    site.cluster().psql(change);
    let before = space(&disk).0;
    let wal = |site: &Site| super::rate::bytes_below(&site.completed_wals());
    let wal_before = wal(&site);
    let said = site.master_command(&["backup"]).succeed();
    let stored_mib: f64 = said
        .split_once(" read, ")
        .and_then(|(_, stored)| stored.split_once(" MiB stored"))
        .and_then(|(stored, _)| stored.parse().ok())
        .unwrap_or_else(|| panic!("{said}"));
    let taken = space(&disk).0.saturating_sub(before) as f64;
    let taken_mib = (taken - (wal(&site) - wal_before) as f64) / f64::from(1 << 20);
    println!("{stored_mib} MiB were stored, {taken_mib} MiB taken");
    assert!(
        taken_mib < 1.25 * stored_mib + 8.0,
        "{taken_mib} MiB for {stored_mib}"
    );
    verify(&site, &newest(&site));
    // A server that is made of the set must not inherit that: its files would fall into pieces.
    let table = (site.cluster()).psql("SELECT pg_relation_filepath('pgbench_accounts')");
    let mut asked = std::process::Command::new("xfs_io");
    let asked = asked.args(["-r", "-c", "cowextsize"]);
    let hint = run(asked.arg(newest(&site).join(table))).unwrap();
    assert!(hint.starts_with("[0] "), "{hint}");
}

#[test]
fn fault_209_a_full_disk_leaves_the_older_set_whole() {
    skip_unless!(Cluster::available(15));
    let disk = skip_unless!(LoopFs::create(FileSystem::Ext4, 900));
    let site = changed_site_on(&disk);
    // Room for the WAL of a backup, and not for a copy of the set.
    let filler = space(&disk).1 - (80 << 20);
    let mut fill = std::process::Command::new("fallocate");
    let fill = fill.arg("-l").arg(filler.to_string());
    run(fill.arg(disk.path().join("filler"))).unwrap();
    let failed = site.master_command(&["backup"]);
    assert_ne!(failed.code, Some(0), "{}", failed.stdout);
    assert_eq!(sealed(&site), ["data.master"], "{}", failed.stderr);
    verify(&site, &newest(&site));
    give_back(disk.path());
    let said = site.master_command(&["backup"]).succeed();
    assert!(said.contains("incremental, built on data.master"), "{said}");
    assert_eq!(sealed(&site), ["data.master", "data.master.0"]);
    verify(&site, &newest(&site));
}

/// The sets that whoever recovers may take; what was given up is named otherwise until it is gone.
pub(super) fn sealed(site: &Site) -> Vec<String> {
    let mut sets = beside(site);
    sets.retain(|name| match name.strip_prefix("data.master") {
        Some(number) => number.is_empty() || number[1..].parse::<u32>().is_ok(),
        None => false,
    });
    sets
}
