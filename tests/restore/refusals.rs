//! What `restore` refuses before it touches anything.
//! Never leaves a set, a directory or a server other than it was.

use super::*;
use crate::support::loopfs::TmpFs;

#[test]
fn fault_80_a_restore_that_cannot_succeed_touches_nothing() {
    skip_unless!(Cluster::available(15));
    let mut scene = Scene::new(15);
    let refused = |scene: &Scene, words: &[&str], code: i32, part: &str| {
        for not_really in [&["-n"][..], &[]] {
            let words = [&["restore"], words, not_really].concat();
            let output = scene.site.standby_command(&words);
            let line = output.fail(code);
            assert!(line.contains(part), "{part:?}: {line}");
        }
    };
    refused(&scene, &[], 1, "there is no backup set");
    make_set(&scene.site, "data.master");
    let set = names_in(&set_path(&scene.site, "data.master"));
    refused(
        &scene,
        &["data.master.7"],
        2,
        "there is no backup set data.master.7",
    );
    refused(
        &scene,
        &["nonsense"],
        2,
        "expected the name of a backup set",
    );
    let full = scene.site.home().create_dir("full");
    fs::write(full.join("precious"), "x").unwrap();
    refused(
        &scene,
        &["data.master", full.to_str().unwrap()],
        2,
        "is not empty",
    );
    let below = full.join("a/b");
    refused(
        &scene,
        &["data.master", below.to_str().unwrap()],
        2,
        "cannot create",
    );
    // A place of the archive's own.
    let archive = scene.site.completed_wals().join("x");
    refused(
        &scene,
        &["data.master", archive.to_str().unwrap()],
        2,
        "must not contain each other",
    );
    scene.site.standby_set("slave_data", full.to_str().unwrap());
    refused(&scene, &[], 2, "is not empty");
    assert_eq!(names_in(&full), ["precious"]);
    // A server that nobody may stop.
    let data = scene.data();
    scene.site.standby_set("slave_data", data.to_str().unwrap());
    scene.restore(&["data.master"]).succeed();
    let before = names_in(&data);
    scene.site.standby_set("slave_stop_cmd", "");
    refused(&scene, &[], 1, "a server (process ");
    // One that does not stop.
    scene.site.standby_set("slave_stop_cmd", "false");
    let failed = scene.site.standby_command(&["restore"]);
    failed.fail_last(1, "slave_stop_cmd `false` failed");
    let failed = scene.site.standby_command(&["restore", "data.master"]);
    failed.fail_last(1, "slave_stop_cmd `false` failed");
    assert!(scene.standby.is_running());
    assert_eq!(names_in(&data), before);
    assert_eq!(names_in(&set_path(&scene.site, "data.master")), set);
    assert!(!data.with_extension("restoring").exists());
    assert_eq!(scene.listed(), ["data.master"]);
}

#[test]
fn fault_80_a_disk_without_room_is_refused_before_a_byte_is_copied() {
    skip_unless!(Cluster::available(15));
    let disk = skip_unless!(TmpFs::create(40 << 10, 0));
    let scene = Scene::new(15);
    make_set(&scene.site, "data.master");
    let data = disk.path().join("data");
    give_to_server(disk.path());
    let output = scene.restore(&["data.master", data.to_str().unwrap()]);
    let line = output.fail(1);
    assert!(line.contains("not enough space in "), "{line}");
    assert_eq!(names_in(disk.path()), [""; 0]);
}

#[test]
fn a_set_is_moved_to_another_file_system_by_copying_it_first() {
    skip_unless!(Cluster::available(15));
    let disk = skip_unless!(TmpFs::create(300 << 10, 0));
    let mut scene = Scene::new(15);
    make_set(&scene.site, "data.master");
    let data = disk.path().join("data");
    give_to_server(disk.path());
    scene.standby = Cluster::on_directory(15, &data);
    scene.site.standby_set("slave_data", data.to_str().unwrap());
    let mut scene = scene.with_commands();
    scene.restore(&[]).succeed();
    assert_eq!(scene.listed(), [""; 0]);
    let content = scene.content();
    scene.wait_until_standby_has(&content);
    scene.standby.stop(StopMode::Fast);
}
