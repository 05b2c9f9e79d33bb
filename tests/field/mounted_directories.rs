//! Data and WAL directories that are mount points: of a disk of their own, or of a directory beside them.
//! Never unmounts what a test did not mount. Invariant: a mount point is restored into, in one piece wherever
//! it is killed, or refused before anything is taken or stopped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::restore::kills::{CALLS, Wreck, copy};
use crate::restore::{Scene, names_in};
use crate::support::backup_set::{make_set, set_path};
use crate::support::loopfs::{FileSystem, LoopFs};
use crate::support::place::give_to_server;
use crate::support::strace::Strace;
use crate::support::{Cluster, StopMode, run};

const MAJORS: [u8; 2] = [15, 18];

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
        let words = ["restore", "data.master", other.path().to_str().unwrap()];
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
