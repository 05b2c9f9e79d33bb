//! Recoveries to a target whose server cannot wait there, or does not run any more when it is to be opened.
//! Never a server that a test promotes itself. Invariant: `boot` opens each of them at its target.

use std::fs;

use crate::restore::{CONTENT, PATIENCE, Scene};
use crate::support::backup_set::make_set;
use crate::support::{Cluster, Output, StopMode, report_skip, wait_for};

/// A master with `hot_standby = off` and a restore point `here`; the rows at that point.
fn scene(major: u8) -> (Scene, String) {
    let builder = Cluster::builder().major(major);
    let scene = Scene::of(builder.conf("hot_standby", "off"));
    make_set(&scene.site, "data.master");
    scene.work("20");
    let content = scene.site.cluster().psql(CONTENT);
    let point = "SELECT pg_create_restore_point('here')";
    scene.site.cluster().psql(point);
    scene.work("20");
    assert_ne!(scene.content(), content);
    (scene, content)
}

fn restore(scene: &Scene, more: &[&str]) -> Output {
    let words = [&["data.master", "--target-name", "here"], more].concat();
    let output = scene.restore(&words);
    output.succeed();
    output
}

fn opens_at(scene: &Scene, content: &str) {
    let said = scene.boot();
    assert!(said.contains("open on timeline 2"), "{said}");
    assert_eq!(scene.standby.psql(CONTENT), content);
    let history = scene.site.completed_wals().join("00000002.history");
    assert!(history.exists());
}

fn wait_until_down(scene: &Scene) {
    wait_for("the end at the target", PATIENCE, || {
        (!scene.standby.is_running()).then_some(())
    });
}

fn on_15_and_18(test: impl Fn(u8)) {
    for major in crate::support::USUAL {
        match Cluster::available(major) {
            Ok(_) => test(major),
            Err(why) => report_skip(&why),
        }
    }
}

#[test]
fn fault_132_a_target_has_a_server_wait_and_answer() {
    on_15_and_18(|major| {
        let (scene, content) = scene(major);
        let output = restore(&scene, &[]);
        let named = "hot_standby is set to on, not off";
        assert!(output.stderr.contains(named), "{}", output.stderr);
        scene.wait_until_standby_has(&content);
        opens_at(&scene, &content);
    });
}

#[test]
fn fault_132_a_server_that_ended_at_its_target_is_opened_there() {
    on_15_and_18(|major| {
        let (mut scene, content) = scene(major);
        // What is given on the command line wins over what restore writes.
        let start = scene.start_command();
        let start = start.replace("-o '", "-o '-c hot_standby=off ");
        scene.site.standby_set("slave_start_cmd", &start);
        restore(&scene, &[]);
        wait_until_down(&scene);
        let said = scene.site.standby_command(&["boot", "-n"]).succeed();
        assert!(said.contains("has shut down at its"), "{said}");
        opens_at(&scene, &content);
    });
}

#[test]
fn fault_132_shutdown_at_the_target_is_no_end_for_boot() {
    skip_unless!(Cluster::available(15));
    let (mut scene, content) = scene(15);
    restore(&scene, &["--target-action", "shutdown"]);
    wait_until_down(&scene);
    let start = scene.start_command();
    scene.site.standby_set("slave_start_cmd", "");
    let refused = scene.site.standby_command(&["boot"]);
    refused.fail_last(2, "recovery_target_action=promote' start`");
    // One that does not start leaves everything as it was.
    let auto = scene.data().join("postgresql.auto.conf");
    let before = fs::read_to_string(&auto).unwrap();
    scene.site.standby_set("slave_start_cmd", "false");
    scene
        .site
        .standby_command(&["boot"])
        .fail_last(1, "exit status 1");
    assert_eq!(fs::read_to_string(&auto).unwrap(), before);
    assert!(!scene.site.completed_wals().join("BOOT").exists());
    assert!(!scene.site.partial_wals().join("FROZEN").exists());
    scene.site.standby_set("slave_start_cmd", &start);
    opens_at(&scene, &content);
}

#[test]
fn fault_132_server_stopped_or_killed_while_waiting_is_opened() {
    skip_unless!(Cluster::available(15));
    for kill in [false, true] {
        let (mut scene, content) = scene(15);
        restore(&scene, &[]);
        scene.wait_until_standby_has(&content);
        match kill {
            true => {
                scene.standby.kill9();
                // Its number is nobody's, as after a crash of the host, also where nobody reaps it.
                fs::remove_file(scene.data().join("postmaster.pid")).unwrap();
                let socket = format!(".s.PGSQL.{}.lock", scene.standby.port());
                fs::remove_file(scene.standby.home().join(socket)).unwrap();
            }
            false => scene.standby.stop(StopMode::Fast),
        }
        opens_at(&scene, &content);
    }
}
