//! Drills that are killed or interrupted at any moment, two at once, and beside a live standby.
//! Never waits for a certain moment to kill. Invariant: the next drill leaves no process, no directory and no socket.

use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::*;
use crate::support::dice::Dice;
use crate::support::soak;

fn spawn(drilled: &Drilled) -> Child {
    let mut command: Command = drilled.site.standby_walmgr(&["drill"]);
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null());
    quiet.stderr(Stdio::piped()).spawn().unwrap()
}

pub(super) fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Ends a drill; its code and its words.
fn ended(mut child: Child) -> (Option<i32>, String) {
    let mut text = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut text).unwrap();
    (child.wait().unwrap().code(), text)
}

fn wait_for_server(drilled: &Drilled) {
    let pid_file = drilled.scratch().join("data/postmaster.pid");
    wait_for("the server of the drill", PATIENCE, || {
        pid_file.exists().then_some(())
    });
}

#[test]
fn fault_158_what_a_killed_drill_leaves_the_next_one_removes() {
    let mut drilled = Drilled::new(15);
    drilled.site.cluster().pgbench(&["-n", "-t", "100"]);
    let (flushed, _) = drilled.ship();
    drilled
        .site
        .standby_set("drill_sql", "SELECT pg_sleep(1) IS NOT NULL");
    let mut dice = Dice::thrown("moments to kill a drill");
    let count = if soak() { 20 } else { 4 };
    for round in 0..count {
        let child = spawn(&drilled);
        // The first one is certain to leave a server.
        match round {
            0 => wait_for_server(&drilled),
            _ => std::thread::sleep(Duration::from_millis(dice.below(3_000))),
        }
        signal(&child, Signal::KILL);
        let _ = ended(child);
        if drilled.scratch().join("walmgr-drill").exists() {
            let status = drilled.status();
            assert_eq!(
                status["standby"]["unfinished_drill"],
                drilled.scratch().to_str().unwrap(),
                "{status}"
            );
        }
        let result = drilled.result();
        assert_eq!(result["lsn"], flushed.as_str());
        drilled.assert_clear();
        assert!(drilled.status()["standby"]["unfinished_drill"].is_null());
    }
}

#[test]
fn fault_158_an_interrupted_drill_clears_up_and_is_no_result() {
    let mut drilled = Drilled::new(15);
    drilled
        .site
        .standby_set("drill_sql", "SELECT pg_sleep(300) IS NOT NULL");
    for number in [Signal::INT, Signal::TERM, Signal::HUP] {
        let child = spawn(&drilled);
        wait_for_server(&drilled);
        signal(&child, number);
        let (code, text) = ended(child);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains("interrupted by SIG"), "{text}");
        drilled.assert_clear();
    }
    assert!(drilled.status()["standby"]["drill"].is_null());
}

#[test]
fn fault_158_a_second_drill_is_refused_with_who_runs() {
    let mut drilled = Drilled::new(15);
    drilled
        .site
        .standby_set("drill_sql", "SELECT pg_sleep(300) IS NOT NULL");
    let first = spawn(&drilled);
    wait_for_server(&drilled);
    let refused = drilled.drill(&[]);
    let words = format!("another drill is running: process {} since ", first.id());
    refused.fail_last(1, &words);
    assert!(drilled.scratch().join("data/postmaster.pid").exists());
    let page = drilled.site.standby_command(&["status"]).stdout;
    let row = format!("  drill      process {} drills", first.id());
    assert!(page.contains(&row), "{page}");
    signal(&first, Signal::TERM);
    ended(first);
    drilled.assert_clear();
}

/// The standby's server replays on, paused or not, and a purge goes on meanwhile.
#[test]
fn fault_158_a_drill_runs_beside_a_live_standby_its_pause_and_a_purge() {
    let mut drilled = Drilled::new(15);
    let standby = add_standby(&mut drilled);
    drilled.site.standby_command(&["pause"]).succeed();
    drilled.site.cluster().pgbench(&["-n", "-t", "300"]);
    drilled.site.cluster().switch_wal();
    drilled.site.cluster().pgbench(&["-n", "-t", "30"]);
    let (flushed, commit) = drilled.ship();
    let before = drilled.archive_content();

    let drill = spawn(&drilled);
    wait_for("the directory of the drill", PATIENCE, || {
        drilled.scratch().exists().then_some(())
    });
    while drilled.scratch().exists() {
        drilled.site.standby_command(&["xpurgewals"]).succeed();
    }
    let (code, text) = ended(drill);
    assert_eq!(code, Some(0), "{text}");
    let result = &drilled.status()["standby"]["drill"];
    assert_eq!(result["lsn"], flushed.as_str());
    assert_eq!(result["commit_time"], commit.as_str());
    drilled.assert_clear();
    assert!(drilled.site.completed_wals().join("PAUSE").exists());
    // What a purge may remove is what only sets before ours needed.
    for (path, content) in drilled.archive_content() {
        assert_eq!(before.get(&path), Some(&content), "{}", path.display());
    }
    drilled.site.standby_command(&["continue"]).succeed();
    drilled.site.cluster().switch_wal();
    let count = "SELECT count(*) FROM pgbench_history";
    let expected = drilled.site.cluster().psql(count);
    wait_for("the standby to replay on", PATIENCE, || {
        (standby.try_psql(count).ok()? == expected).then_some(())
    });
}

/// A set of before a failover follows the new timeline, also where that has no WAL yet.
#[test]
fn fault_158_a_drill_follows_the_timeline_of_a_failover() {
    let mut drilled = Drilled::new(15);
    let standby = add_standby(&mut drilled);
    drilled.site.cluster().pgbench(&["-n", "-t", "100"]);
    let (flushed, commit) = drilled.ship();
    drilled
        .site
        .cluster_mut()
        .stop(crate::support::StopMode::Immediate);
    let booted = drilled.site.standby_command(&["boot"]);
    let told = booted.succeed();
    assert!(told.contains(&flushed), "{told}");
    let result = drilled.result();
    assert_eq!(result["lsn"], flushed.as_str());
    assert_eq!(result["commit_time"], commit.as_str());
    // The new timeline's first segment arrives by hand.
    standby.psql("CREATE TABLE since (n int)");
    standby.switch_wal();
    let end = standby.psql("SELECT pg_walfile_name(pg_current_wal_lsn())");
    assert!(end.starts_with("00000002"), "{end}");
    drilled.assert_clear();
    let frozen = drilled.site.partial_wals().join("FROZEN");
    assert!(frozen.exists(), "the freeze of the boot stays");
}

/// `--drill` outside a drill says nothing about the end of the WAL.
#[test]
fn fault_158_xrestore_for_a_drill_is_refused_elsewhere() {
    let drilled = Drilled::new(15);
    let name = "0000000100000000000000FF";
    let path = drilled.site.home().join("to");
    for side in [false, true] {
        let words = ["xrestore", "--drill", name, path.to_str().unwrap()];
        let mut command = match side {
            false => drilled.site.standby_walmgr(&words),
            true => drilled.site.master_walmgr(&words),
        };
        let output = Output::of(command.current_dir(drilled.site.home().path()));
        assert_eq!(output.code, Some(254), "{}", output.stderr);
    }
    assert!(!path.exists());
}

/// A server that replays from the archive, restored from a copy of the set.
fn add_standby(drilled: &mut Drilled) -> Cluster {
    let data = drilled.site.home().join("standby-data");
    let standby = Cluster::on_directory(15, &data);
    let pg_ctl = standby.bin().join("pg_ctl").display().to_string();
    let options = format!(
        "-c port={} -c listen_addresses= -c unix_socket_directories={} -c logging_collector=off",
        standby.port(),
        standby.home().display()
    );
    let (shown, log) = (data.display(), drilled.site.home().join("standby.log"));
    let start = format!(
        "{pg_ctl} -D {shown} -l {} -o '{options}' -w start",
        log.display()
    );
    drilled
        .site
        .standby_set("slave_data", data.to_str().unwrap());
    drilled.site.standby_set("slave_start_cmd", &start);
    let restored = drilled.site.standby_command(&["restore", "data.master"]);
    restored.succeed();
    standby
}
