//! The flows that everybody needs, on every version: setup, archive, sync, backup, verify, restore warm and hot,
//! points in time, boot. Never looks at a flow's finer points: the flow's own module does. Invariant: what the master had
//! is there behind every restore, and each flow prints how long it took.

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::load::{assert_archive_equals_master, drain};
use crate::restore::{CONTENT, PATIENCE, Scene};
use crate::support::backup_set::set_path;
use crate::support::versions::{MAJORS, is_its_turn};
use crate::support::{Cluster, run, wait_for};

/// A test for each version, since each takes a while.
macro_rules! on_each_version {
    ($($name:ident: $major:literal)*) => {
        $(#[test]
        fn $name() {
            if !is_its_turn($major) {
                skip!("PostgreSQL {}: only with ALL_VERSIONS=1 or --soak", $major);
            }
            skip_unless!(Cluster::available($major));
            main_flows($major);
        })*

        #[test]
        fn every_version_of_the_table_has_its_test() {
            assert_eq!(MAJORS, [$($major),*]);
        }
    };
}

on_each_version! {
    main_flows_on_13: 13
    main_flows_on_14: 14
    main_flows_on_15: 15
    main_flows_on_16: 16
    main_flows_on_17: 17
    main_flows_on_18: 18
}

fn main_flows(major: u8) {
    let mut times = Times(Vec::new());
    // Everything that is archived can be compared.
    let builder = Cluster::builder().major(major).conf("wal_keep_size", "1GB");
    let mut scene = times.of("setup", || Scene::of(builder));
    times.of("archive", || archive(&scene));
    times.of("sync", || sync(&scene));
    times.of("backup", || backup(&scene));
    times.of("listbackups", || list(&scene));
    times.of("verify", || verify(&scene));
    times.of("restore warm", || restore_warm(&scene));
    times.of("boot", || boot(&scene));
    times.of("restore hot", || restore_hot(&mut scene));
    times.of("backup on the standby", || backup_on_standby(&scene));
    times.of("drill", || drill(&mut scene));
    times.of("point in time", || point_in_time(&mut scene));
    times.of("restore on the master", || restore_on_master(&scene));
    // Not println!, which `cargo test` swallows where a test passes.
    let line = format!("PostgreSQL {major}: {}\n", times.0.join(", "));
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// How long each flow took.
struct Times(Vec<String>);

impl Times {
    fn of<T>(&mut self, flow: &str, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let done = work();
        let seconds = begun.elapsed().as_secs_f64();
        self.0.push(format!("{flow} {seconds:.1} s"));
        done
    }
}

fn archive(scene: &Scene) {
    scene.work("50");
    drain(&scene.site);
    let (files, _) = assert_archive_equals_master(&scene.site);
    assert!(files > 0);
}

/// What no segment has brought yet is shipped record by record.
fn sync(scene: &Scene) {
    let cluster = scene.site.cluster();
    cluster.psql("CREATE TABLE shipped AS SELECT 1 AS n");
    scene.site.master_command(&["sync"]).succeed();
    let segment = cluster.psql("SELECT pg_walfile_name(pg_current_wal_lsn())");
    assert!(scene.site.partial_wals().join(segment).exists());
}

fn backup(scene: &Scene) {
    scene.site.master_command(&["backup"]).succeed();
    // Only Debian's servers come with it, and that of 15 does not know later manifests.
    let cluster = scene.site.cluster();
    if cluster.bin().join("pg_verifybackup").exists() {
        let set = set_path(&scene.site, "data.master");
        run(cluster.command("pg_verifybackup").arg("-n").arg(set)).unwrap();
    }
}

/// Both sides say the same of the set, and the server's own label and history bear it out.
fn list(scene: &Scene) {
    let site = &scene.site;
    // It is archived behind the WAL that the backup waits for.
    let history = wait_for("the backup history file", PATIENCE, || {
        let mut names = site.archived_names().into_iter();
        names.find(|name| name.ends_with(".backup"))
    });
    let set = &site.listed_sets()[0];
    assert_eq!(set["made_on"], "master", "{set}");
    assert_eq!(set["timeline"], 1, "{set}");
    assert!(set["size_bytes"].as_u64().unwrap() > 1 << 20, "{set}");
    assert!(set["duration_s"].is_u64(), "{set}");
    let label = fs::read_to_string(set_path(site, "data.master").join("backup_label")).unwrap();
    let start = set["start_lsn"].as_str().unwrap();
    assert!(label.starts_with(&format!("START WAL LOCATION: {start} (")));
    let history = String::from_utf8(site.archived(&history)).unwrap();
    let stop = set["stop_lsn"].as_str().unwrap();
    assert!(
        history.contains(&format!("STOP WAL LOCATION: {stop} (")),
        "{history}"
    );
    for output in [
        site.master_command(&["listbackups", "-v"]),
        site.standby_command(&["listbackups", "-v"]),
    ] {
        let text = output.succeed();
        assert!(text.contains(&format!("{start} - {stop}")), "{text}");
    }
}

/// Nothing is wrong with what the flows before have made.
fn verify(scene: &Scene) {
    let text = scene.site.standby_command(&["verify", "--json"]).succeed();
    let report: Value = serde_json::from_str(&text).unwrap();
    assert!(report.is_object(), "{report}");
}

/// From the archive alone.
fn restore_warm(scene: &Scene) {
    scene.restore(&["data.master"]).succeed();
    scene.work("50");
    let content = scene.content();
    scene.wait_until_standby_has(&content);
    let standby = |word: &str| drop(scene.site.standby_command(&[word]).succeed());
    standby("pause");
    standby("continue");
}

/// With the segment in progress.
fn boot(scene: &Scene) {
    scene.work("10");
    let content = scene.site.cluster().psql(CONTENT);
    scene.site.master_command(&["sync"]).succeed();
    let said = scene.boot();
    assert!(said.contains("open on timeline 2"), "{said}");
    assert_eq!(scene.standby.psql(CONTENT), content);
}

/// With a stream beside the archive.
fn restore_hot(scene: &mut Scene) {
    let primary = scene.site.cluster().conninfo();
    scene.site.standby_set("primary_conninfo", &primary);
    scene.restore(&["data.master"]).succeed();
    let cluster = scene.site.cluster();
    let streams = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
    wait_for("streaming", PATIENCE, || {
        (cluster.psql(streams) == "1").then_some(())
    });
    scene.work("10");
    let content = cluster.psql(CONTENT);
    scene.wait_until_standby_has(&content);
}

/// The standby that streams; the master goes on meanwhile.
fn backup_on_standby(scene: &Scene) {
    scene.work("10");
    let cluster = scene.site.cluster();
    std::thread::scope(|scope| {
        let backup = scope.spawn(|| scene.site.standby_command(&["backup"]));
        // It waits until the segment is archived that the standby has reached.
        while !backup.is_finished() {
            cluster.psql("SELECT pg_create_restore_point('goes on')");
            cluster.switch_wal();
            std::thread::sleep(Duration::from_millis(500));
        }
        backup.join().unwrap().succeed();
    });
    let list = scene.site.standby_command(&["listbackups", "--json"]);
    let list: Value = serde_json::from_str(&list.succeed()).unwrap();
    assert_eq!(list[0]["made_on"], "standby", "{list}");
}

/// The set that the standby has made, up to what is shipped.
fn drill(scene: &mut Scene) {
    scene.work("10");
    scene.site.master_command(&["sync"]).succeed();
    let bin = scene.site.cluster().bin().display().to_string();
    scene.site.standby_set("slave_bin", &bin);
    let report = scene.site.standby_command(&["drill", "--json"]).succeed();
    let report: Value = serde_json::from_str(&report).unwrap();
    assert!(report["lsn"].is_string(), "{report}");
}

fn point_in_time(scene: &mut Scene) {
    let cluster = scene.site.cluster();
    let insert = |number: &str| {
        cluster.psql(&format!(
            "WITH i AS (INSERT INTO shipped VALUES ({number}) RETURNING 1) \
             SELECT txid_current() FROM i"
        ))
    };
    let (second, third) = (insert("2"), insert("3"));
    drain(&scene.site);
    for (words, expected) in [
        (vec!["--target-xid", &second], "1 2"),
        (vec!["--target-xid", &third, "--target-exclusive"], "1 2"),
        (vec!["--target-immediate"], "1"),
    ] {
        let words = [&words[..], &["--target-action", "promote"]].concat();
        scene.restore(&words).succeed();
        wait_for("the server to open", PATIENCE, || {
            let answer = scene.standby.try_psql("SELECT pg_is_in_recovery()");
            (answer.ok()? == "f").then_some(())
        });
        let found = "SELECT string_agg(n::text, ' ' ORDER BY n) FROM shipped";
        assert_eq!(scene.standby.psql(found), expected, "{words:?}");
    }
}

fn restore_on_master(scene: &Scene) {
    let place = scene.site.home().join("again");
    let words = ["restore", "data.master", place.to_str().unwrap()];
    scene.site.master_command(&words).succeed();
    let content = scene.content();
    let mut server = Cluster::on_directory(scene.site.cluster().major(), &place);
    server.start();
    wait_for("the master's data", PATIENCE, || {
        (server.try_psql(CONTENT).ok()? == content).then_some(())
    });
}
