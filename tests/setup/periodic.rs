//! `periodic_command`: how often it runs, and that archiving does not notice.
//! Never leaves the command behind. Invariant: xarchive's exit code is about the file alone.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::place::server_user;
use crate::support::{Site, wait_for};

const PATIENCE: Duration = Duration::from_secs(10);

fn runs(log: &Path) -> usize {
    fs::read_to_string(log).unwrap_or_default().lines().count()
}

#[test]
fn the_command_runs_when_its_interval_has_passed_and_not_before() {
    let _user = skip_unless!(server_user());
    let mut site = Site::start();
    let log = site.home().join("ran");
    site.master_set("periodic_command", &format!("echo x >> {}", log.display()));
    site.master_set("command_interval", "1h");
    site.write_segment(1);
    let name = site.segment_name(1);
    for _ in 0..3 {
        site.archive(&name).succeed();
        site.master_command(&["periodic"]).succeed();
    }
    wait_for("the first run", PATIENCE, || {
        (runs(&log) == 1).then_some(())
    });
    site.master_set("command_interval", "1s");
    let due = Instant::now() + Duration::from_millis(1_100);
    wait_for("the interval", PATIENCE, || {
        (Instant::now() > due).then_some(())
    });
    site.archive(&name).succeed();
    wait_for("the second run", PATIENCE, || {
        (runs(&log) == 2).then_some(())
    });
    site.master_set("command_interval", "1h");
    site.master_command(&["periodic"]).succeed();
    assert_eq!(runs(&log), 2);
}

#[test]
fn neither_failure_nor_length_of_the_command_reaches_archiving() {
    let _user = skip_unless!(server_user());
    let mut site = Site::start();
    site.write_segment(1);
    let name = site.segment_name(1);
    site.master_set("periodic_command", "echo nonsense; exit 9");
    let ended = site.archive(&name);
    ended.succeed();
    assert_eq!(ended.stderr, "");
    site.master_set("periodic_command", "/nonexistent/command");
    site.archive(&name).succeed();
    // Typed by a person it does matter, once the one before has ended.
    let failed = wait_for("the command to be due", PATIENCE, || {
        let ended = site.master_command(&["periodic"]);
        (ended.code != Some(0)).then_some(ended)
    });
    failed.fail_last(1, "`/nonexistent/command` failed with exit status: 127");

    let pid_file = site.home().join("pid");
    let long = format!("echo $$ > {}; exec sleep 120", pid_file.display());
    site.master_set("periodic_command", &long);
    let begun = Instant::now();
    site.archive(&name).succeed();
    let took = begun.elapsed();
    let pid = wait_for("the command's start", PATIENCE, || {
        let text = fs::read_to_string(&pid_file).ok()?;
        Pid::from_raw(text.trim().parse().ok()?)
    });
    let alive = rustix::process::test_kill_process(pid).is_ok();
    // While it runs, no second one is started beside it.
    fs::remove_file(&pid_file).unwrap();
    let ended = site.archive(&name);
    let asked = site.master_command(&["periodic"]);
    kill_process(pid, Signal::TERM).unwrap();
    assert!(alive && took < Duration::from_secs(60), "{took:?}");
    assert!(!pid_file.exists(), "a second one was started");
    ended.succeed();
    asked.succeed();
}
