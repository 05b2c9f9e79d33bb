//! Restores whose server does not stop or start: commands that are missing, fail, or start nothing.
//! Never a set that is lost sight of. Invariant: the message is true of what failed, and its line undoes it.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::restore::{CONTENT, Scene};
use crate::support::backup_set::{make_set, set_path};
use crate::support::{Cluster, Output, StopMode, run};

#[track_caller]
fn last_line(failed: &Output) -> String {
    failed.fail_last(1, "");
    failed.stderr.lines().last().unwrap().to_owned()
}

/// The line that a message shows for having the old directory back.
pub(super) fn undo_line(said: &str) -> String {
    let (_, line) = said
        .split_once("to have the old directory back: ")
        .unwrap_or_else(|| panic!("no line: {said}"));
    line.lines().next().unwrap().to_owned()
}

fn start_fails_and_is_undone(major: u8) {
    let mut scene = Scene::new(major);
    make_set(&scene.site, "data.master");
    scene.restore(&["data.master"]).succeed();
    let content = scene.content();
    scene.wait_until_standby_has(&content);
    let good_start = scene.start_command();

    let log = scene.site.home().join("walmgr.log");
    scene.site.standby_set("logfile", log.to_str().unwrap());
    scene.site.standby_set(
        "slave_start_cmd",
        "echo starting it >&2; pg_ctl_of_nowhere start",
    );
    let failed = scene.site.standby_command(&["restore"]);
    let last = last_line(&failed);
    assert!(last.contains("exit status 127"), "{last}");
    assert!(!last.contains("PostgreSQL's log"), "{last}");
    assert!(last.contains("data.master was moved there"), "{last}");
    assert!(
        failed.stderr.contains("slave_start_cmd: starting it"),
        "{}",
        failed.stderr
    );
    let kept = fs::read_to_string(&log).unwrap();
    assert!(kept.contains("slave_start_cmd: starting it"), "{kept}");

    let listed = scene.site.standby_command(&["listbackups"]);
    assert_eq!(listed.succeed(), "There are no backups.");
    let said = &listed.stderr;
    assert!(said.contains("`restore` moved it to"), "{said}");
    let status = || scene.site.standby_command(&["status"]).stdout;
    assert!(status().contains("`restore` moved it to"), "{}", status());
    assert!(scene.listed().is_empty());

    let mut shell = scene.standby.command("/bin/sh");
    run(shell.arg("-c").arg(undo_line(&last))).unwrap();
    let failed_data = scene.data().with_file_name("standby-data.failed");
    assert!(failed_data.join("global/pg_control").exists());
    let mut shell = scene.standby.command("/bin/sh");
    run(shell.arg("-c").arg(&good_start)).unwrap();
    let content = scene.content();
    scene.wait_until_standby_has(&content);

    // The next set ends the talk of the one that was moved.
    fs::remove_dir_all(&failed_data).unwrap();
    scene.site.standby_set("slave_start_cmd", &good_start);
    scene.site.standby_set("logfile", "");
    make_set(&scene.site, "data.master");
    scene.restore(&[]).succeed();
    let listed = || scene.site.standby_command(&["listbackups"]).stderr;
    assert!(listed().contains("`restore` moved it to"), "{}", listed());
    scene.work("20");
    make_set(&scene.site, "data.master");
    assert!(!listed().contains("moved it to"), "{}", listed());
    let status = scene.site.standby_command(&["status", "--json"]).stdout;
    assert!(status.contains("\"moved_set\":null"), "{status}");
    assert_eq!(scene.boot().lines().count(), 1);
    assert_eq!(scene.standby.psql(CONTENT), scene.content());
}

#[test]
fn fault_134_missing_start_command_is_named_and_undone() {
    for major in crate::support::USUAL {
        skip_unless!(Cluster::available(major));
        start_fails_and_is_undone(major);
    }
}

#[test]
fn fault_134_what_goes_before_stays_until_the_server_runs() {
    skip_unless!(Cluster::available(15));
    let mut scene = Scene::new(15);
    make_set(&scene.site, "data.master");
    scene.site.standby_set("backup_datadir", "no");
    scene.restore(&["data.master"]).succeed();
    let content = scene.content();
    scene.wait_until_standby_has(&content);
    let good_start = scene.start_command();
    // PostgreSQL itself refuses.
    let refused = format!(
        "echo 'no_such_setting = 1' >>{}/postgresql.conf; {good_start}",
        scene.data().display()
    );
    scene.site.standby_set("slave_start_cmd", &refused);
    let failed = scene.site.standby_command(&["restore", "data.master"]);
    let last = last_line(&failed);
    assert!(last.contains("failed with exit status 1: "), "{last}");
    assert!(
        failed.stderr.contains("slave_start_cmd: "),
        "{}",
        failed.stderr
    );
    let old = scene.data().with_extension("removing");
    assert!(old.join("global/pg_control").exists());
    assert_eq!(scene.listed(), ["data.master"], "it was copied");
    let mut shell = scene.standby.command("/bin/sh");
    run(shell.arg("-c").arg(undo_line(&last))).unwrap();
    let mut shell = scene.standby.command("/bin/sh");
    run(shell.arg("-c").arg(&good_start)).unwrap();
    scene.wait_until_standby_has(&content);
    // Once the server runs nothing of either is left.
    fs::remove_dir_all(scene.data().with_extension("failed")).unwrap();
    scene.site.standby_set("slave_start_cmd", &good_start);
    scene.restore(&["data.master"]).succeed();
    assert!(!old.exists());
    scene.standby.stop(StopMode::Fast);
}

#[test]
fn fault_134_a_stop_command_that_fails_says_whether_the_server_runs_on() {
    skip_unless!(Cluster::available(15));
    let mut scene = Scene::new(15);
    make_set(&scene.site, "data.master");
    scene.restore(&["data.master"]).succeed();
    let content = scene.content();
    scene.wait_until_standby_has(&content);
    let program = scene.site.home().write("stop", "#!/bin/sh\n");
    fs::set_permissions(&program, PermissionsExt::from_mode(0o644)).unwrap();
    scene
        .site
        .standby_set("slave_stop_cmd", program.to_str().unwrap());
    let failed = scene.site.standby_command(&["restore"]);
    failed.fail_last(1, "may not be executed");
    failed.fail_last(1, "the server still runs, and nothing was changed");
    assert!(scene.standby.is_running());
    let stop = format!(
        "kill -INT $(head -1 {0}/postmaster.pid); while [ -e {0}/postmaster.pid ]; do sleep 0.1; done; \
         echo it went wrong; exit 5",
        scene.data().display()
    );
    scene.site.standby_set("slave_stop_cmd", &stop);
    let failed = scene.site.standby_command(&["restore"]);
    failed.fail_last(1, "exit status 5: it went wrong");
    failed.fail_last(1, "the server has ended: start it");
    assert!(set_path(&scene.site, "data.master").is_dir());
    assert_eq!(scene.listed(), ["data.master"]);
}

#[test]
fn fault_134_whoever_waits_for_a_server_is_told_for_what() {
    skip_unless!(Cluster::available(15));
    let mut scene = Scene::new(15);
    make_set(&scene.site, "data.master");
    scene.restore(&["data.master"]).succeed();
    let content = scene.content();
    scene.wait_until_standby_has(&content);
    // The commands take their time; the second one does it behind the administrator's back.
    let pg_ctl = scene.standby.bin().join("pg_ctl");
    let stop = format!(
        "sleep 4; {} -D {} -w stop",
        pg_ctl.display(),
        scene.data().display()
    );
    scene.site.standby_set("slave_stop_cmd", &stop);
    let start = scene.start_command();
    let later = format!("(sleep 5; {start}) >/dev/null 2>&1 &");
    scene.site.standby_set("slave_start_cmd", &later);
    let said = scene.restore(&["data.master"]).stderr;
    for told in [
        "slave_stop_cmd has run for 3 s of at most 600 s",
        "slave_start_cmd has ended; waiting for a server in ",
    ] {
        assert_eq!(said.matches(told).count(), 1, "{said}");
    }
    scene.wait_until_standby_has(&content);
}
