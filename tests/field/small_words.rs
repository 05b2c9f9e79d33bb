//! What a person reads who is new to it: lines to type that can be typed, and hints for what is usual.
//! Never a matter of data. Invariant: a message that shows a command shows one for this very host.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::restore::Scene;
use crate::support::backup_set::make_set;
use crate::support::place::{give_to_server, walmgr};
use crate::support::{Cluster, Output, Site, StopMode};

#[test]
fn fault_144_a_guess_at_a_mistyped_word_stands_on_its_own_line() {
    for (words, message, tip) in [
        (
            &["s.ini", "receiver", "--stpo"][..],
            "walmgr: unexpected argument '--stpo' found; see walmgr --help",
            "walmgr: tip: a similar argument exists: '--stop'",
        ),
        (
            &["s.ini", "setpu"],
            "walmgr: there is no command `setpu`; the commands are: init, identity,",
            "walmgr: tip: did you mean `setup`?",
        ),
    ] {
        let said = Output::of(walmgr().args(words));
        assert_eq!(said.code, Some(2));
        let lines: Vec<&str> = said.stderr.lines().collect();
        assert!(lines[0].starts_with(message), "{lines:?}");
        assert_eq!(lines[1..], [tip]);
    }
    let said = Output::of(walmgr().args(["s.ini", "receiver", "--zzzz"]));
    assert_eq!(said.stderr.lines().count(), 1, "{}", said.stderr);
}

#[test]
fn fault_144_lines_to_type_name_the_ini_file_that_was_read() {
    let mut site = Site::builder().unbound().build();
    let name = site.segment_name(1);
    site.write_segment(1);
    let ini = site.master_ini().display().to_string();
    let unbound = site.archive(&name);
    let line = unbound.fail(1);
    assert!(line.contains(&format!("`walmgr {ini} setup`")), "{line}");
    fs::remove_file(site.master_ini().with_extension("key")).unwrap();
    fs::remove_file(site.master_ini().with_extension("crt")).unwrap();
    let keyless = site.archive(&name);
    let line = keyless.fail(2);
    assert!(line.contains(&format!("`walmgr {ini} identity`")), "{line}");

    site.receiver.stop();
    let ini = site.standby_ini().display().to_string();
    let status = site.standby_command(&["status"]);
    let start = format!("`walmgr {ini} receiver -d`");
    assert!(status.stdout.contains(&start), "{}", status.stdout);
    let absent = Output::of(walmgr().args(["/etc/nowhere.ini", "status"]));
    let line = absent.fail(2);
    assert!(line.contains("`walmgr /etc/nowhere.ini init`"), "{line}");
}

#[test]
fn fault_144_paths_are_shown_without_a_dot_behind_them() {
    let mut site = Site::start();
    let folder = site.home().create_dir("sets");
    let newest = folder.join("data.master");
    site.standby_set("full_backup", newest.to_str().unwrap());
    site.standby_command(&["listbackups"]).succeed();
    fs::remove_dir_all(&folder).unwrap();
    for words in [&["listbackups"][..], &["status"], &["restore"]] {
        let said = site.standby_command(words);
        let all = said.stdout + &said.stderr;
        assert!(
            !all.contains("/. ") && !all.contains("/.:") && !all.contains("/.\n"),
            "{all}"
        );
    }
    let said = site.standby_command(&["listbackups"]);
    assert!(
        said.stderr.contains(folder.to_str().unwrap()),
        "{}",
        said.stderr
    );
}

fn what_a_file_system_has_at_its_root(major: u8) {
    skip_unless!(Cluster::available(major));
    if !rustix::process::geteuid().is_root() {
        skip!("only root can make a directory that the server's user may not read");
    }
    let cluster = Cluster::builder()
        .major(major)
        .conf("archive_mode", "on")
        .start();
    let site = Site::with_cluster(cluster);
    site.master_command(&["setup"]).succeed();
    let lost = site.data().join("lost+found");
    fs::create_dir(&lost).unwrap();
    fs::set_permissions(&lost, fs::Permissions::from_mode(0o700)).unwrap();
    // Nothing of the server's can be in it.
    site.master_command(&["backup"]).succeed();

    // A place to restore to that has nothing else is empty; a mount point keeps it: see row 129.
    for (name, on_the_master) in [("disk", true), ("other-disk", false)] {
        let place = site.home().create_dir(name);
        fs::create_dir(place.join("lost+found")).unwrap();
        give_to_server(&place);
        let words = ["restore", "data.master", place.to_str().unwrap()];
        let restored = match on_the_master {
            true => site.master_command(&words),
            false => site.standby_command(&words),
        };
        restored.succeed();
        assert!(place.join("global/pg_control").exists());
    }
}

#[test]
fn fault_144_a_lost_and_found_is_known_15() {
    what_a_file_system_has_at_its_root(15);
}

#[test]
fn fault_144_a_lost_and_found_is_known_18() {
    what_a_file_system_has_at_its_root(18);
}

fn restarted_into_nowhere(major: u8) {
    skip_unless!(Cluster::available(major));
    let cluster = Cluster::builder().major(major).start();
    let mut site = Site::with_cluster(cluster);
    let pg_ctl = site.cluster().bin().join("pg_ctl");
    let restart = format!(
        "{} -D {} -m fast -w restart",
        pg_ctl.display(),
        site.data().display()
    );
    let lost = format!("{restart} >/dev/null 2>&1");
    site.master_set("master_restart_cmd", &lost);
    let said = site.master_command(&["setup"]);
    said.succeed();
    let warned = "that master_restart_cmd started goes to /dev/null";
    assert!(said.stderr.contains(warned), "{}", said.stderr);

    site.master_command(&["stop"]).succeed();
    let log = site.home().join("server.log");
    let kept = format!("{restart} -l {} >/dev/null 2>&1", log.display());
    site.master_set("master_restart_cmd", &kept);
    let said = site.master_command(&["setup"]);
    said.succeed();
    assert!(!said.stderr.contains(warned), "{}", said.stderr);
}

#[test]
fn fault_144_a_log_that_a_restored_server_loses_is_noticed() {
    for major in crate::support::USUAL {
        skip_unless!(Cluster::available(major));
        let mut scene = Scene::new(major);
        make_set(&scene.site, "data.master");
        let kept = scene.start_command();
        let log = scene.site.home().join("standby.log");
        let lost = kept.replace(&format!(" -l {}", log.display()), "");
        assert_ne!(lost, kept);
        let warned = "that slave_start_cmd started goes to /dev/null";
        for (line, is_warned) in [(lost, true), (kept, false)] {
            let line = format!("{line} >/dev/null 2>&1");
            scene.site.standby_set("slave_start_cmd", &line);
            let said = scene.restore(&["data.master"]);
            said.succeed();
            assert_eq!(said.stderr.contains(warned), is_warned, "{}", said.stderr);
        }
        scene.standby.stop(StopMode::Fast);
    }
}

#[test]
fn fault_144_a_log_that_a_restart_loses_is_noticed_15() {
    restarted_into_nowhere(15);
}

#[test]
fn fault_144_a_log_that_a_restart_loses_is_noticed_18() {
    restarted_into_nowhere(18);
}
