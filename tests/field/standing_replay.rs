//! Standbys whose replay stands still: paused, delayed, held up by a query or by a setting, in want of WAL.
//! Never a replay that just runs. Invariant: `status` names the reason, and `boot` ends it or says first
//! what to do.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use crate::replay::{
    PATIENCE, bare_master, copy_of_master, finish, signal_file, standby_of, wait_until_restored,
};
use crate::support::{Cluster, Output, Site, StopMode, wait_for};

const MAJORS: [u8; 2] = crate::support::USUAL;

/// Runs a test on both versions, as far as they are here.
fn on_versions(test: impl Fn(u8)) {
    for major in MAJORS {
        match Cluster::available(major) {
            Ok(()) => test(major),
            Err(reason) => crate::support::report_skip(&reason),
        }
    }
}

/// What `status --json` says of the replay.
fn replay(site: &Site) -> serde_json::Value {
    let told = site.standby_command(&["--json", "status"]);
    let told: serde_json::Value = serde_json::from_str(&told.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", told.stdout, told.stderr));
    told["standby"]["replay"].clone()
}

fn has_reason(replay: &serde_json::Value, part: &str) -> bool {
    let reasons = replay["reasons"].as_array().unwrap();
    reasons
        .iter()
        .any(|reason| reason.as_str().unwrap().contains(part))
}

/// Waits until `status` gives this reason, and returns what it says.
fn wait_for_reason(site: &Site, part: &str) -> serde_json::Value {
    wait_for(part, PATIENCE, || {
        let replay = replay(site);
        if replay.is_null() {
            return None;
        }
        has_reason(&replay, part).then_some(replay)
    })
}

/// The screen of `status`.
fn screen(site: &Site) -> String {
    site.standby_command(&["status"]).stdout
}

/// A segment with a table of this name, that the standby will not have replayed for now.
fn archive_table(site: &Site, name: &str) -> String {
    site.cluster().psql(&format!(
        "CREATE TABLE {name} AS SELECT generate_series(1, 1000) AS n"
    ));
    finish(site)
}

fn has_table(standby: &Cluster, name: &str) -> bool {
    standby.psql(&format!("SELECT to_regclass('{name}') IS NOT NULL")) == "t"
}

/// `boot` in the background, and what it says so far.
struct Booting {
    child: Child,
    log: std::path::PathBuf,
}

impl Booting {
    fn start(site: &Site, words: &[&str]) -> Booting {
        let log = site.home().join("boot.log");
        let file = File::create(&log).unwrap();
        let child = site
            .standby_walmgr(words)
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Booting { child, log }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    fn wait_for(&self, part: &str) -> String {
        wait_for(part, PATIENCE, || {
            Some(self.said()).filter(|said| said.contains(part))
        })
    }

    fn succeed(mut self) -> String {
        let ended = wait_for("boot", PATIENCE, || self.child.try_wait().unwrap());
        assert!(ended.success(), "{}", self.said());
        self.said()
    }
}

impl Drop for Booting {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A session that sees what it saw first.
struct Snapshot(Child);

impl Snapshot {
    fn take(server: &Cluster, sql: &str) -> Snapshot {
        let mut psql = server.command("psql");
        psql.args(["-X", "-q"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = psql.spawn().unwrap();
        let text = format!("BEGIN ISOLATION LEVEL REPEATABLE READ;\n{sql};\n");
        child
            .stdin
            .as_mut()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
        wait_for("the snapshot", PATIENCE, || {
            let idle = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'";
            (server.psql(idle) == "1").then_some(())
        });
        Snapshot(child)
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A copy of the master, not started, that replays for ever and is the `slave_data` of the site.
fn replaying(site: &mut Site, settings: &[&str]) -> Cluster {
    let standby = copy_of_master(site, "replaying", settings);
    signal_file(&standby, "standby.signal");
    site.standby_set("slave_data", &standby.data().display().to_string());
    standby
}

/// Has it replay each commit an hour late. What its `postgresql.auto.conf` then says.
fn delay(standby: &Cluster) -> (PathBuf, String) {
    let automatic = standby.data().join("postgresql.auto.conf");
    let mut text = fs::read_to_string(&automatic).unwrap();
    text.push_str("recovery_min_apply_delay = '1h'\n");
    fs::write(&automatic, &text).unwrap();
    (automatic, text)
}

#[test]
fn fault_131_a_pause_by_sql_is_named_and_a_boot_resumes_it() {
    on_versions(|major| {
        let mut site = bare_master(major);
        let standby = standby_of(&mut site, true);
        wait_until_restored(&standby, &archive_table(&site, "before"));
        standby.psql("SELECT pg_wal_replay_pause()");
        archive_table(&site, "during");
        archive_table(&site, "behind");
        let told = wait_for_reason(&site, "paused by pg_wal_replay_pause()");
        assert_eq!(told["replay_paused"], true);
        assert_eq!(told["server_asked"], true);
        assert!(told["replay_lag_bytes"].as_u64().unwrap() > 0, "{told}");
        assert!(told["replay_lag_seconds"].as_f64().unwrap() > 0.0, "{told}");
        let status = site.standby_command(&["status"]);
        assert!(
            status
                .stdout
                .contains("warning: replay is paused by pg_wal_replay_pause()"),
            "{}",
            status.stdout
        );
        assert!(
            status.stdout.contains("  replay     timeline 1, up to 0/"),
            "{}",
            status.stdout
        );

        let said = Booting::start(&site, &["boot"]).succeed();
        assert!(
            said.contains("The database is open on timeline 2."),
            "{said}"
        );
        assert!(has_table(&standby, "during") && has_table(&standby, "behind"));
    });
}

#[test]
fn fault_131_a_delay_is_named_and_ends_with_a_boot_without_a_record_lost() {
    on_versions(|major| {
        for hot in [true, false] {
            let mut site = bare_master(major);
            let hot_standby = if hot {
                "hot_standby = on"
            } else {
                "hot_standby = off"
            };
            let mut standby = replaying(&mut site, &[hot_standby]);
            let (automatic, text) = delay(&standby);
            standby.start();
            let first = archive_table(&site, "during");
            archive_table(&site, "behind");
            wait_until_restored(&standby, &first);
            let told = wait_for_reason(&site, "recovery_min_apply_delay = 1h");
            assert_eq!(told["server_asked"], hot, "{told}");
            assert!(has_reason(&told, "postgresql.auto.conf, line "), "{told}");
            // Somebody asked for it.
            assert!(!screen(&site).contains("warning: replay"));
            // What is in progress is what a boot that ends the delay too soon would lose.
            site.cluster()
                .psql("CREATE TABLE in_progress AS SELECT generate_series(1, 1000) AS n");
            site.master_command(&["sync"]).succeed();

            let said = Booting::start(&site, &["boot"]).succeed();
            assert!(
                said.contains("The database is open on timeline 2."),
                "{said}"
            );
            for table in ["during", "behind", "in_progress"] {
                assert!(has_table(&standby, table), "{major} {hot} {table}: {said}");
            }
            assert_eq!(fs::read_to_string(&automatic).unwrap(), text);
        }
    });
}

/// Since 15 a server reads ahead while it waits, and acts on what it then heard to be absent; an older one, and one
/// that is told not to, asks for a segment only once it has replayed the one before.
const READS_AHEAD: u8 = 15;

/// A standby that waits for a delay on its command line with a table still to be replayed, and the option.
fn delayed_by_command_line(major: u8, settings: &[&str]) -> (Site, Cluster, &'static str) {
    let mut site = bare_master(major);
    let mut standby = replaying(&mut site, &[&["hot_standby = on"], settings].concat());
    let delay = "recovery_min_apply_delay=1h";
    standby.add_option(delay);
    standby.start();
    wait_until_restored(&standby, &archive_table(&site, "during"));
    let told = wait_for_reason(&site, "recovery_min_apply_delay = 1h");
    assert!(has_reason(&told, "the server's command line"), "{told}");
    (site, standby, delay)
}

#[test]
fn fault_131_a_delay_on_the_command_line_is_refused_on_15_and_later() {
    on_versions(|major| {
        assert!(major >= READS_AHEAD);
        let (site, mut standby, delay) = delayed_by_command_line(major, &[]);
        let line = site.standby_command(&["boot"]).fail(1).to_owned();
        assert!(
            line.contains("command line") && line.contains("restart the server without it"),
            "{line}"
        );
        assert!(!site.holds("STOP") && !site.partial_wals().join("FROZEN").exists());
        // What it says helps.
        standby.stop(StopMode::Fast);
        standby.remove_option(delay);
        standby.start();
        site.standby_command(&["boot"]).succeed();
        assert!(has_table(&standby, "during"));
    });
}

#[test]
fn fault_131_a_delay_on_the_command_line_ends_without_prefetch() {
    for (major, settings) in [
        (13, &[][..]),
        (14, &[][..]),
        (15, &["recovery_prefetch = off"]),
        (18, &["recovery_prefetch = off"]),
    ] {
        if let Err(reason) = Cluster::available(major) {
            crate::support::report_skip(&reason);
            continue;
        }
        let (site, standby, _) = delayed_by_command_line(major, settings);
        site.cluster()
            .psql("CREATE TABLE in_progress AS SELECT 1 AS n");
        site.master_command(&["sync"]).succeed();
        site.standby_command(&["boot"]).succeed();
        assert!(
            has_table(&standby, "during") && has_table(&standby, "in_progress"),
            "{major}"
        );
    }
}

#[test]
fn fault_131_delay_lifted_by_a_killed_boot_is_named_and_put_back() {
    on_versions(|major| {
        let mut site = bare_master(major);
        site.cluster()
            .psql("CREATE TABLE seen AS SELECT generate_series(1, 10) AS n");
        let settings = ["hot_standby = on", "max_standby_archive_delay = -1"];
        let mut standby = replaying(&mut site, &settings);
        let (automatic, _) = delay(&standby);
        standby.start();
        let snapshot = Snapshot::take(&standby, "SELECT count(*) FROM seen");
        site.cluster().psql("DELETE FROM seen");
        site.cluster().psql("VACUUM (FREEZE) seen");
        wait_until_restored(&standby, &finish(&site));
        wait_for_reason(&site, "recovery_min_apply_delay = 1h");
        // PostgreSQL reads ahead, and has to ask for the next segment again before it may open.
        let answers = standby.data().join("pg_stat_tmp");
        wait_for("an answer", PATIENCE, || {
            let mut names = fs::read_dir(&answers).unwrap().flatten();
            names.find(|entry| {
                entry
                    .file_name()
                    .to_string_lossy()
                    .starts_with("walmgr.absent.")
            })
        });

        // Without the delay the query holds replay up.
        let booting = Booting::start(&site, &["boot"]);
        booting.wait_for("SELECT pg_terminate_backend(");
        let during = fs::read_to_string(&automatic).unwrap();
        assert!(
            during.contains("recovery_min_apply_delay = '0'"),
            "{during}"
        );
        drop(booting);
        let named = "recovery_min_apply_delay = 0 for an unfinished boot; it was '1h'";
        assert!(screen(&site).contains(named), "{}", screen(&site));
        // Somebody else's line is nothing to put back over.
        standby.psql("ALTER SYSTEM SET work_mem = '5MB'");

        let booting = Booting::start(&site, &["boot"]);
        let said = booting.wait_for("SELECT pg_terminate_backend(");
        assert!(said.contains("the old value is restored"), "{said}");
        drop(snapshot);
        booting.succeed();
        assert_eq!(standby.psql("SELECT count(*) FROM seen"), "0");
        let left = fs::read_to_string(&automatic).unwrap();
        assert!(left.contains("recovery_min_apply_delay = '1h'"), "{left}");
        assert!(left.contains("work_mem = '5MB'"), "{left}");
        assert!(!screen(&site).contains("recovery_min_apply_delay"));
    });
}

#[test]
fn fault_131_query_that_blocks_replay_is_named_and_ended_by_force() {
    on_versions(|major| {
        for force in [false, true] {
            let mut site = bare_master(major);
            site.cluster()
                .psql("CREATE TABLE seen AS SELECT generate_series(1, 1000) AS n");
            let settings = ["hot_standby = on", "max_standby_archive_delay = -1"];
            let mut standby = replaying(&mut site, &settings);
            standby.start();
            let snapshot = Snapshot::take(&standby, "SELECT count(*) FROM seen");
            site.cluster().psql("DELETE FROM seen");
            site.cluster().psql("VACUUM (FREEZE) seen");
            archive_table(&site, "behind");
            let told = wait_for_reason(&site, "held up by process ");
            assert!(
                has_reason(&told, "max_standby_archive_delay = -1"),
                "{told}"
            );
            assert!(screen(&site).contains("warning: replay is held up by process "));
            if force {
                let said = Booting::start(&site, &["boot", "--force"]).succeed();
                assert!(
                    said.contains("holds replay up; boot --force ends it"),
                    "{said}"
                );
            } else {
                let booting = Booting::start(&site, &["boot"]);
                let said = booting.wait_for("SELECT pg_terminate_backend(");
                assert!(!said.contains("pg_wal_replay_resume"), "{said}");
                drop(snapshot);
                booting.succeed();
            }
            assert!(has_table(&standby, "behind"));
        }
    });
}

#[test]
fn fault_131_too_low_parameter_is_refused_before_any_change() {
    on_versions(|major| {
        let mut site = bare_master(major);
        let mut standby = standby_of(&mut site, true);
        site.cluster_mut().append_conf("max_connections = 150");
        site.cluster_mut()
            .append_conf("max_prepared_transactions = 5");
        site.cluster_mut().restart();
        archive_table(&site, "behind");
        let told = wait_for_reason(&site, "max_connections is 100, and 150 on the master");
        assert!(
            has_reason(&told, "max_prepared_transactions is 0, and 5 on the master"),
            "{told}"
        );
        assert_eq!(told["replay_paused"], true);
        let status = site.standby_command(&["status"]);
        assert_eq!(status.code, Some(2), "{}", status.stdout);
        assert!(
            status.stdout.contains("set max_connections = 150 (set in "),
            "{}",
            status.stdout
        );

        let refused_by = |site: &Site, words: &[&str]| {
            let refused = site.standby_command(words);
            let line = refused.fail(1).to_owned();
            assert!(
                line.contains("max_connections is 100, and 150 on the master"),
                "{line}"
            );
            assert!(
                line.contains("set max_connections = 150 (set in "),
                "{line}"
            );
            assert!(!site.holds("STOP"));
            line
        };
        for words in [&["boot"][..], &["boot", "--force"], &["boot", "-n"]] {
            let line = refused_by(&site, words);
            assert!(line.contains("postgresql.conf, line "), "{line}");
        }
        // Nothing was frozen.
        site.cluster().psql("CREATE TABLE in_progress ()");
        site.master_command(&["sync"]).succeed();
        // Resumed, it ends; started, it does not come up.
        standby.stop(StopMode::Fast);
        let line = refused_by(&site, &["boot"]);
        assert!(line.contains("no server runs in "), "{line}");
        assert!(screen(&site).contains("max_connections is 100, and 150 on the master"));

        standby.append_conf("max_connections = 150");
        standby.append_conf("max_prepared_transactions = 5");
        standby.start();
        site.standby_command(&["boot"]).succeed();
        assert!(has_table(&standby, "behind") && has_table(&standby, "in_progress"));
    });
}

#[test]
fn fault_131_a_parameter_is_too_low_before_its_record_is_replayed() {
    on_versions(|major| {
        let mut site = bare_master(major);
        let mut standby = standby_of(&mut site, true);
        wait_until_restored(&standby, &archive_table(&site, "before"));
        site.standby_command(&["pause"]).succeed();
        site.cluster_mut().append_conf("max_worker_processes = 20");
        site.cluster_mut().restart();
        finish(&site);
        let low = "max_worker_processes is 8, and 20 on the master";
        let told = screen(&site);
        assert!(
            told.contains(&format!("warning: replay will stop: {low}")),
            "{told}"
        );
        let refused = site.standby_command(&["boot"]);
        let line = refused.fail(1);
        assert!(line.contains(low), "{line}");
        assert!(site.holds("PAUSE") && !site.holds("STOP"));
        standby.stop(StopMode::Fast);
        standby.append_conf("max_worker_processes = 20");
        site.standby_command(&["continue"]).succeed();
        standby.start();
        site.standby_command(&["boot"]).succeed();
    });
}

#[test]
fn fault_131_warm_standby_position_is_a_lower_bound() {
    on_versions(|major| {
        let mut site = bare_master(major);
        let standby = standby_of(&mut site, false);
        wait_until_restored(&standby, &archive_table(&site, "t"));
        let told = replay(&site);
        assert_eq!(told["server_asked"], false, "{told}");
        assert!(
            told["replay_lag_bytes"].is_u64() && told["replayed_lsn"].is_string(),
            "{told}"
        );
        let screen = screen(&site);
        assert!(screen.contains("at least up to 0/"), "{screen}");
    });
}

#[test]
fn fault_131_a_segment_in_progress_or_damaged_is_what_replay_waits_for() {
    on_versions(|major| {
        let mut site = bare_master(major);
        let mut standby = standby_of(&mut site, true);
        wait_until_restored(&standby, &archive_table(&site, "t"));
        site.cluster()
            .psql("CREATE TABLE in_progress AS SELECT 1 AS n");
        site.master_command(&["sync"]).succeed();
        let told = wait_for_reason(&site, " is finished");
        assert!(told["replay_lag_bytes"].as_u64().unwrap() > 0, "{told}");
        assert!(!screen(&site).contains("warning: replay"));

        site.standby_command(&["pause"]).succeed();
        let last = finish(&site);
        let path = site.unpacked_path(&last);
        let length = fs::metadata(&path).unwrap().len();
        fs::write(&path, vec![0; usize::try_from(length).unwrap()]).unwrap();
        site.standby_command(&["continue"]).succeed();
        wait_for("the server's end", PATIENCE, || {
            (!standby.is_running()).then_some(())
        });
        let told = wait_for_reason(&site, &format!("cannot go on: {last}: "));
        assert_eq!(told["server_asked"], false, "{told}");
        standby.stop(StopMode::Fast);
    });
}

/// Whether a server was asked and answers no is one thing, that it is open another.
#[test]
fn fault_131_a_target_that_was_reached_is_no_fault_and_boot_opens_it() {
    on_versions(|major| {
        let mut site = bare_master(major);
        let settings = ["hot_standby = on"];
        let mut standby = copy_of_master(&mut site, "replaying", &settings);
        signal_file(&standby, "recovery.signal");
        site.standby_set("slave_data", &standby.data().display().to_string());
        site.cluster()
            .psql("SELECT pg_create_restore_point('here')");
        archive_table(&site, "behind");
        let automatic = standby.data().join("postgresql.auto.conf");
        let mut text = fs::read_to_string(&automatic).unwrap();
        text.push_str("recovery_target_name = 'here'\nrecovery_target_action = 'pause'\n");
        fs::write(&automatic, &text).unwrap();
        standby.start();
        wait_for_reason(&site, "its recovery has reached the target");
        assert!(!screen(&site).contains("warning: replay"));
        let booted: Output = site.standby_command(&["boot"]);
        booted.succeed();
        assert!(!has_table(&standby, "behind"));
    });
}
