//! `status` on both sides against a real server and receiver: what it says and how it ends.
//! Never looks at how it found out. Invariant tested: its exit code is monitoring's, and it ends in
//! time whoever is down.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::load::drain;
use crate::partial::daemon::{Syncdaemon, wait_until_shipped};
use crate::partial::flushed;
use crate::support::backup_set::{make_set, set_path};
use crate::support::place::server_user;
use crate::support::{Cluster, Output, Site, StopMode, run, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

/// The least that is free on a machine that runs tests.
const SPACE: [&str; 2] = ["--warning-free=0", "--critical-free=0"];

/// A master that archives to its receiver.
fn archiving() -> Site {
    let cluster = Cluster::builder().conf("archive_mode", "on").start();
    let mut site = Site::with_cluster(cluster);
    site.master_set("use_xlog_functions", "1");
    site.master_set("loop_delay", "0.05");
    site.master_set("connect_timeout", "2s");
    site.master_set("push_timeout", "5s");
    site.master_command(&["setup"]).succeed();
    site
}

fn status(site: &Site, words: &[&str]) -> Output {
    site.master_command(&[&["status"], &SPACE[..], words].concat())
}

fn on_standby(site: &Site, words: &[&str]) -> Output {
    site.standby_command(&[&["status"], &SPACE[..], words].concat())
}

#[track_caller]
fn parsed(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Each finding as `level code`.
fn findings(parsed: &Value) -> Vec<String> {
    let words = parsed["findings"].as_array().unwrap().iter();
    let word = |found: &Value| {
        let part = |name: &str| found[name].as_str().unwrap().to_owned();
        format!("{} {}", part("level"), part("code"))
    };
    words.map(word).collect()
}

#[track_caller]
fn expect(output: &Output, code: i32, expected: &[&str]) -> Value {
    assert_eq!(output.code, Some(code), "{output:?}");
    assert_eq!(output.stderr, "", "what is wrong is on stdout");
    let parsed = parsed(output);
    assert_eq!(findings(&parsed), expected, "{output:?}");
    parsed
}

#[test]
fn all_is_well_while_records_are_shipped_and_a_backup_is_there() {
    skip_unless!(Cluster::available(15));
    let mut site = archiving();
    // A busy machine is not what this is about, nor is what the server does by itself.
    site.master_set("connect_timeout", "60s");
    site.master_set("push_timeout", "60s");
    site.cluster().psql("ALTER SYSTEM SET autovacuum = off");
    site.cluster().reload();
    drain(&site);
    let no_backup = expect(&status(&site, &["--json"]), 1, &["warning no_backup"]);
    assert!(no_backup["recovery_window"].is_null(), "{no_backup}");
    make_set(&site, "data.master");
    let from = flushed(&site);
    let mut daemon = Syncdaemon::start(&site);
    daemon.wait_for_log("is shipped to");
    site.cluster()
        .psql("CREATE TABLE t AS SELECT generate_series(1, 3000)");
    let to = wait_until_shipped(&site, from);

    let found = wait_for("everything to be held", PATIENCE, || {
        let output = status(&site, &["--json"]);
        let found = parsed(&output);
        (found["bytes_behind"] == 0).then(|| expect(&output, 0, &[]))
    });
    assert_eq!(found["rpo_seconds"], 0.0);
    assert_eq!(found["state"], "ok");
    assert_eq!(found["master"]["syncdaemon"], "running");
    assert_eq!(found["master"]["archiving"], "on");
    let shipped_by = found["shipped_by"].as_str().unwrap();
    assert!(shipped_by.starts_with("master (127.0.0.1:"), "{found}");
    assert_eq!(found["connected_masters"][0], shipped_by);
    let held: walmgr_protocol::names::Lsn = found["archive"]["held_lsn"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(held >= to, "{held} of {to}");
    assert_eq!(
        found["archive"]["held_lsn"],
        found["archive"]["partial_lsn"]
    );
    assert_eq!(found["backups"][0]["set"], "data.master");
    assert!(found["backups"][0]["age_seconds"].as_f64().unwrap() < 300.0);
    assert_eq!(found["recovery_window"]["set"], "data.master");

    let text = status(&site, &[]).succeed();
    assert!(text.starts_with("RPO 0.0 s, "), "{text}");
    assert_eq!(status(&site, &["-q"]).succeed(), "");
    assert_eq!(status(&site, &["-n"]).code, Some(0));
    // The backup is the oldest thing there is.
    let old = ["--json", "--warning-backup-age", "0"];
    expect(&status(&site, &old), 1, &["warning backup_age"]);

    let found = expect(&on_standby(&site, &["--json"]), 0, &[]);
    assert!(found["rpo_seconds"].is_null(), "it cannot know: {found}");
    assert!(found["rpo_seconds_at_most"].as_f64().unwrap() < 60.0);
    assert_eq!(found["standby"]["receiver_runs"], true);
    let masters = found["connected_masters"].as_array().unwrap();
    assert!(
        !masters.is_empty() && shipped_by.contains(masters[0].as_str().unwrap()),
        "{found}"
    );

    daemon.signal(Signal::KILL);
    daemon.wait();
    let died = parsed(&status(&site, &["--json"]));
    assert!(
        findings(&died).contains(&"warning syncdaemon".to_owned()),
        "{died}"
    );
}

#[test]
fn seconds_are_those_since_the_first_transaction_that_is_not_there() {
    skip_unless!(Cluster::available(15));
    let site = archiving();
    site.cluster().psql("CREATE TABLE t (n int)");
    drain(&site);
    make_set(&site, "data.master");
    // What a checkpoint writes was promised to nobody.
    site.cluster().psql("CHECKPOINT");
    let found = expect(&status(&site, &["--json"]), 0, &[]);
    assert_eq!(found["rpo_seconds"], 0.0);
    assert!(found["bytes_behind"].as_u64().unwrap() > 0, "{found}");

    let begun = Instant::now();
    site.cluster().psql("INSERT INTO t VALUES (1)");
    let committed = Instant::now();
    std::thread::sleep(Duration::from_millis(1_500));
    site.cluster().psql("INSERT INTO t VALUES (2)");
    let least = committed.elapsed();
    let lagging = ["--json", "--warning-lag", "1s"];
    let found = expect(&status(&site, &lagging), 1, &["warning lag"]);
    let seconds = found["rpo_seconds"].as_f64().unwrap();
    let bounds = least.as_secs_f64()..=begun.elapsed().as_secs_f64();
    assert!(bounds.contains(&seconds), "{seconds} in {bounds:?}");
    let worse = ["--json", "--warning-lag", "500ms", "--critical-lag", "1s"];
    expect(&status(&site, &worse), 2, &["critical lag"]);
    let text = status(&site, &["-q", "--warning-lag", "1s"]);
    assert_eq!(text.code, Some(1));
    assert_eq!(text.stdout.lines().count(), 2, "{}", text.stdout);

    site.master_command(&["sync"]).succeed();
    let found = expect(&status(&site, &lagging), 0, &[]);
    assert_eq!(found["bytes_behind"], 0, "{found}");
}

#[test]
fn whoever_is_down_is_an_alarm_and_not_waited_for() {
    skip_unless!(Cluster::available(15));
    let mut site = archiving();
    site.cluster().psql("CREATE TABLE t (n int)");
    drain(&site);
    make_set(&site, "data.master");
    let timely = |site: &Site| {
        let begun = Instant::now();
        let output = status(site, &["--json"]);
        assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
        output
    };
    // One that hangs, for both sides.
    let hung = |pid: u32| {
        let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        let hung = timely(&site);
        kill_process(pid, Signal::CONT).unwrap();
        hung
    };
    expect(
        &hung(site.cluster().pid().unwrap()),
        2,
        &["critical server"],
    );
    expect(&hung(site.receiver.pid()), 2, &["critical receiver"]);
    site.receiver.stop();
    let found = expect(&timely(&site), 2, &["critical receiver"]);
    // What PostgreSQL heard is durable.
    assert!(found["rpo_seconds_at_most"].as_f64().is_some(), "{found}");
    site.start_receiver();

    site.cluster().psql("INSERT INTO t VALUES (1)");
    site.cluster_mut().stop(StopMode::Immediate);
    let found = expect(&timely(&site), 2, &["critical server"]);
    assert!(
        found["bytes_behind"].as_u64().unwrap() > 0,
        "from the files: {found}"
    );
    assert!(found["rpo_seconds"].as_f64().unwrap() > 0.0, "{found}");

    site.receiver.stop();
    let found = expect(&timely(&site), 2, &["critical receiver", "critical server"]);
    assert!(found["rpo_seconds"].is_null() && found["archive"].is_null());
    let found = expect(
        &on_standby(&site, &["--json"]),
        2,
        &["critical no_receiver"],
    );
    assert_eq!(found["backups"][0]["set"], "data.master");
}

#[test]
fn fault_78_a_gap_and_archiving_that_is_off_are_alarms() {
    skip_unless!(Cluster::available(15));
    let site = archiving();
    drain(&site);
    make_set(&site, "data.master");
    for _ in 0..3 {
        site.cluster().psql("CREATE TABLE t (); DROP TABLE t");
        site.cluster().switch_wal();
    }
    drain(&site);
    let names = site.archived_names();
    let segments: Vec<&String> = names.iter().filter(|name| name.len() == 24).collect();
    let missing = segments[segments.len() - 2];
    std::fs::remove_file(site.stored_path(missing)).unwrap();
    let output = status(&site, &["--json"]);
    assert_eq!(output.code, Some(2), "{output:?}");
    let found = parsed(&output);
    assert!(
        findings(&found).contains(&"critical gap".to_owned()),
        "{found}"
    );
    assert_eq!(found["archive"]["missing_segment"], missing.as_str());
    let found = expect(&on_standby(&site, &["--json"]), 2, &["critical gap"]);
    assert_eq!(found["archive"]["missing_segment"], missing.as_str());
    let marker = site.partial_wals().join("FROZEN");
    std::fs::write(&marker, "timeline 1").unwrap();
    let found = on_standby(&site, &["--json"]);
    let expected = ["critical frozen", "critical gap"];
    let found = expect(&found, 2, &expected);
    assert!(found["standby"]["frozen_timeline"].is_null(), "{found}");
    std::fs::remove_file(&marker).unwrap();
    std::fs::remove_dir_all(set_path(&site, "data.master")).unwrap();
    site.master_command(&["stop"]).succeed();
    let found = parsed(&status(&site, &["--json"]));
    let expected = ["critical archiving_off", "warning gap", "warning no_backup"];
    assert_eq!(findings(&found), expected, "{found}");
}

/// A library that sets the clock of a process back by an hour.
fn clock_set_back(site: &Site) -> Result<std::path::PathBuf, String> {
    let source = site.home().write(
        "clock.c",
        "#define _GNU_SOURCE\n#include <time.h>\n#include <unistd.h>\n#include <sys/syscall.h>\n\
         int clock_gettime(clockid_t id, struct timespec *at) {\n\
         int code = syscall(SYS_clock_gettime, id, at);\n\
         if (id == CLOCK_REALTIME) at->tv_sec -= 3600;\n return code; }\n",
    );
    let library = site.home().join("clock.so");
    let mut compiler = std::process::Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]);
    run(compiler.arg(&library).arg(source)).map(|_| library)
}

#[test]
fn fault_109_a_clock_that_stands_behind_is_no_rpo_of_zero() {
    let _user = skip_unless!(server_user());
    let site = Site::start();
    site.write_segment(7);
    site.archive(&site.segment_name(7)).succeed();
    let library = skip_unless!(clock_set_back(&site));
    let words = [&["--json", "status"], &SPACE[..]].concat();
    let with_clock =
        |mut command: std::process::Command| Output::of(command.env("LD_PRELOAD", &library));
    let there = with_clock(site.standby_walmgr(&words));
    let json = parsed(&there);
    assert!(json["rpo_seconds_at_most"].is_null(), "{json}");
    assert!(
        findings(&json).contains(&"critical clock".to_owned()),
        "{json}"
    );
    assert_eq!(there.code, Some(2));
    // On the master only its own clock is wrong: both differ.
    let here = parsed(&with_clock(site.master_walmgr(&words)));
    assert!(
        findings(&here).contains(&"warning clock".to_owned()),
        "{here}"
    );
}
