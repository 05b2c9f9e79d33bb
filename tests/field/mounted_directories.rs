//! Data and WAL directories that are mount points: of a disk of their own, or of a directory beside them.
//! Never unmounts what a test did not mount. Invariant: a mount point is restored into, in one piece wherever
//! it is killed, or refused before anything is taken or stopped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::servers_that_do_not_start::undo_line;
use crate::restore::kills::{CALLS, Wreck, copy};
use crate::restore::{Scene, names_in};
use crate::support::backup_set::{make_set, set_path};
use crate::support::loopfs::{FileSystem, LoopFs};
use crate::support::place::{give_to_server, server_user};
use crate::support::strace::Strace;
use crate::support::{Cluster, StopMode, report_skip, run};

const MAJORS: [u8; 2] = crate::support::USUAL;

/// A directory that is mounted on another one of the same disk.
pub struct Bound(PathBuf);

impl Bound {
    pub fn new(from: &Path, to: &Path) -> Result<Bound, String> {
        for path in [from, to] {
            fs::create_dir_all(path).unwrap();
            give_to_server(path);
        }
        run(Command::new("mount").arg("--bind").arg(from).arg(to))?;
        Ok(Bound(to.to_path_buf()))
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg("-l").arg(&self.0));
    }
}

/// What a mount point holds but for what a restore keeps there.
fn of_the_cluster(mount: &Path) -> Vec<String> {
    let mut names = names_in(mount);
    names.retain(|name| !name.starts_with("walmgr.") && name != "lost+found");
    names
}

fn restored_twice(scene: &Scene, data: &Path) {
    make_set(&scene.site, "data.master");
    for round in 0..2 {
        scene.restore(&["data.master"]).succeed();
        let content = scene.content();
        scene.wait_until_standby_has(&content);
        assert_eq!(data.join("walmgr.old.1/PG_VERSION").exists(), round == 1);
    }
    scene.work("10");
    scene.restore(&[]).succeed();
    assert!(!set_path(&scene.site, "data.master").exists());
    let content = scene.content();
    scene.wait_until_standby_has(&content);
    assert!(data.join("walmgr.old.2/global/pg_control").exists());
    assert!(!data.join("walmgr.restoring").exists() && !data.join("walmgr.entering").exists());
    // What is kept there goes into no backup of this server.
    scene.boot();
    scene.standby.psql("SELECT 1");
}

#[test]
fn fault_129_a_data_directory_on_a_disk_of_its_own_is_restored_into() {
    for major in MAJORS {
        skip_unless!(Cluster::available(major));
        let disk = LoopFs::create(FileSystem::Ext4, 900);
        skip_unless!(disk.as_ref().map(|_| ()).map_err(Clone::clone));
        let disk = disk.unwrap();
        let mut scene = Scene::new(major);
        scene.standby = Cluster::on_directory(major, disk.path());
        scene
            .site
            .standby_set("slave_data", disk.path().to_str().unwrap());
        let scene = scene.with_commands();
        restored_twice(&scene, disk.path());
        make_set(&scene.site, "data.master");
        let other = LoopFs::create(FileSystem::Ext4, 300).unwrap();
        // A practice boot opened timeline 2 before this set was made.
        let other_path = other.path().to_str().unwrap();
        let words = [
            "restore",
            "data.master",
            other_path,
            "--target-timeline",
            "1",
        ];
        let refused = scene.site.master_command(&words[..3]);
        refused.fail_last(1, "timeline 2 does not branch off timeline 1");
        scene.site.master_command(&words).succeed();
        assert!(other.path().join("global/pg_control").exists());
        assert!(disk.path().join("lost+found").exists());
        let mut scene = scene;
        scene.standby.stop(StopMode::Fast);
    }
}

#[test]
fn fault_129_bind_mounts_for_data_and_wal_are_restored_into() {
    for major in MAJORS {
        skip_unless!(Cluster::available(major));
        let mut scene = Scene::new(major);
        let home = scene.site.home().path().to_path_buf();
        let data = scene.data();
        let bound = Bound::new(&home.join("disk"), &data);
        skip_unless!(bound.as_ref().map(|_| ()).map_err(Clone::clone));
        let wal = home.join("wal-mount");
        let _wal = Bound::new(&home.join("wal-disk"), &wal).unwrap();
        scene
            .site
            .standby_set("slave_pg_xlog", wal.to_str().unwrap());
        restored_twice(&scene, &data);
        assert!(!of_the_cluster(&wal).is_empty());
        assert!(wal.join("walmgr.old.1").is_dir());
        scene.standby.stop(StopMode::Fast);
        let old = fs::read_link(data.join("walmgr.old.2/pg_wal")).unwrap();
        assert!(old.starts_with(&wal), "{}", old.display());
    }
}

#[test]
fn fault_129_mount_in_the_data_directory_is_refused_before_any_stop() {
    for major in MAJORS {
        skip_unless!(Cluster::available(major));
        let scene = Scene::new(major);
        make_set(&scene.site, "data.master");
        scene.restore(&["data.master"]).succeed();
        let inside = scene.data().join("log");
        let bound = Bound::new(&scene.site.home().join("logs"), &inside);
        skip_unless!(bound.as_ref().map(|_| ()).map_err(Clone::clone));
        for words in [&["data.master"][..], &[]] {
            let refused = scene.restore(words);
            refused.fail_last(2, "is a mount point within");
            let line = format!("umount {}", inside.display());
            assert!(refused.stderr.contains(&line), "{}", refused.stderr);
            assert!(scene.standby.is_running());
            assert!(set_path(&scene.site, "data.master").exists());
        }
    }
}

#[test]
fn fault_129_the_undo_line_of_a_mount_point_undoes_a_failed_start() {
    for major in MAJORS {
        skip_unless!(Cluster::available(major));
        let mut scene = Scene::new(major);
        let data = scene.data();
        let bound = Bound::new(&scene.site.home().join("disk"), &data);
        skip_unless!(bound.as_ref().map(|_| ()).map_err(Clone::clone));
        fs::create_dir(data.join("lost+found")).unwrap();
        make_set(&scene.site, "data.master");
        scene.restore(&["data.master"]).succeed();
        let content = scene.content();
        scene.wait_until_standby_has(&content);
        let good_start = scene.start_command();
        // Typed again, it has another name for what failed.
        for failed in ["walmgr.failed", "walmgr.failed.2"] {
            scene.site.standby_set("slave_start_cmd", "false");
            let refused = scene.site.standby_command(&["restore", "data.master"]);
            refused.fail_last(1, "to have the old directory back");
            let line = undo_line(&refused.stderr);
            let mut shell = scene.standby.command("/bin/sh");
            run(shell.arg("-c").arg(&line)).unwrap();
            assert!(data.join(failed).join("global/pg_control").exists());
            let mut shell = scene.standby.command("/bin/sh");
            run(shell.arg("-c").arg(&good_start)).unwrap();
            scene.work("10");
            let content = scene.content();
            scene.wait_until_standby_has(&content);
            assert!(data.join("lost+found").is_dir());
        }
        scene.site.standby_set("slave_start_cmd", &good_start);
        scene.restore(&["data.master"]).succeed();
        scene.boot();
    }
}

#[test]
fn fault_129_a_mount_point_of_another_user_is_refused_with_a_remedy() {
    let Some((user, _)) = skip_unless!(server_user()) else {
        return report_skip("everything is this user's");
    };
    skip_unless!(Cluster::available(15));
    let scene = Scene::new(15);
    let data = scene.data();
    let bound = Bound::new(&scene.site.home().join("disk"), &data);
    skip_unless!(bound.as_ref().map(|_| ()).map_err(Clone::clone));
    let other = scene.site.home().join("other");
    let _other = Bound::new(&scene.site.home().join("other-disk"), &other).unwrap();
    make_set(&scene.site, "data.master");
    // As mkfs leaves it: of root, and open to all.
    for path in [&data, &other] {
        std::os::unix::fs::chown(path, Some(0), Some(0)).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(path, mode).unwrap();
    }
    let there = other.to_str().unwrap();
    let words = ["restore", "data.master", there];
    let all = [
        (scene.restore(&["data.master"]), &data),
        (scene.site.standby_command(&words), &other),
        (scene.site.master_command(&words), &other),
    ];
    for (refused, path) in all {
        refused.fail_last(2, "belongs to another user (uid 0)");
        let line = format!("sudo chown {user} {}", path.display());
        assert!(refused.stderr.contains(&line), "{}", refused.stderr);
        assert!(names_in(path).is_empty());
    }
    for path in [&data, &other] {
        std::os::unix::fs::chown(path, Some(user), None).unwrap();
    }
    scene.restore(&["data.master"]).succeed();
    scene.site.master_command(&words).succeed();
}

#[test]
fn fault_129_a_tablespace_goes_to_a_disk_of_its_own() {
    for major in MAJORS {
        skip_unless!(Cluster::available(major));
        let disks = [1, 2].map(|_| LoopFs::create(FileSystem::Ext4, 100));
        skip_unless!(disks[1].as_ref().map(|_| ()).map_err(Clone::clone));
        let [one, two] = disks.map(Result::unwrap);
        let scene = Scene::new(major);
        let space = scene.site.home().create_dir("space");
        give_to_server(&space);
        let master = scene.site.cluster();
        master.psql(&format!(
            "CREATE TABLESPACE aside LOCATION '{}'",
            space.display()
        ));
        master.psql("CREATE TABLE there TABLESPACE aside AS SELECT generate_series(1, 999) n");
        make_set(&scene.site, "data.master");
        let mapping = |to: &LoopFs| {
            format!(
                "--tablespace-mapping={}={}",
                space.display(),
                to.path().display()
            )
        };
        let rows = |server: &Cluster| {
            crate::support::wait_for("the rows", crate::restore::PATIENCE, || {
                let count = server.try_psql("SELECT count(*) FROM there").ok()?;
                (count.trim() == "999").then_some(())
            });
        };
        // Moved, and the same again over an old server, whose tablespace stays with it.
        scene.restore(&[&mapping(&one)]).succeed();
        rows(&scene.standby);
        make_set(&scene.site, "data.master");
        scene
            .restore(&[&mapping(&one)])
            .fail_last(2, "is not empty");
        rows(&scene.standby);
        let place = scene.site.home().join("again");
        let words = [
            "restore",
            "data.master",
            place.to_str().unwrap(),
            &mapping(&two),
        ];
        scene.site.master_command(&words).succeed();
        let mut server = Cluster::on_directory(major, &place);
        server.start();
        rows(&server);
        for disk in [&one, &two] {
            let names = names_in(disk.path());
            assert!(names.contains(&"lost+found".to_owned()), "{names:?}");
            assert!(
                names.iter().any(|name| name.starts_with("PG_")),
                "{names:?}"
            );
        }
        server.stop(StopMode::Fast);
        let mut scene = scene;
        scene.standby.stop(StopMode::Fast);
    }
}

/// One set, and an old directory in the mount point.
fn begin(wreck: &Wreck) {
    let (data, set) = (
        wreck.scene.data(),
        set_path(&wreck.scene.site, "data.master"),
    );
    for name in names_in(&data) {
        run(Command::new("rm").arg("-rf").arg(data.join(name))).unwrap();
    }
    let _ = fs::remove_dir_all(&set);
    copy(&wreck.spare, &set);
    let wal = data.with_file_name("wal");
    let _ = fs::remove_dir_all(&wal);
    fs::create_dir(&wal).unwrap();
    give_to_server(&wal);
    let mut cp = Command::new("cp");
    run(cp.arg("-aT").arg(&wreck.old).arg(&data)).unwrap();
    fs::write(data.join("of-the-old"), "").unwrap();
    give_to_server(&data);
}

#[test]
fn fault_129_a_restore_into_a_mount_point_killed_at_any_step_is_finished() {
    skip_unless!(Strace::available());
    skip_unless!(Cluster::available(15));
    let scene = Scene::new(15);
    let data = scene.data();
    let bound = Bound::new(&scene.site.home().join("disk"), &data);
    skip_unless!(bound.as_ref().map(|_| ()).map_err(Clone::clone));
    let wreck = Wreck::of(scene);
    for words in [&["restore"][..], &["restore", "data.master"]] {
        for call in CALLS.iter().filter(|call| !call.contains("sync")) {
            let mut count = 1;
            loop {
                begin(&wreck);
                let context = format!("{words:?} {call} {count}");
                if !wreck.killed_at(words, call, count) {
                    wreck.assert_complete(&context);
                    break;
                }
                wreck.judge(&context);
                wreck.finish(words, &context);
                let old = data.join("walmgr.old.1/of-the-old");
                assert!(old.exists(), "{context}: the old one is gone");
                count += if crate::support::soak() { 1 } else { 11 };
                assert!(count < 2_000, "{context}: no end");
            }
        }
    }
}
