//! Folders and sets of the standby that an administrator moved to another disk, with a link left.
//! Never links anything within a set. Invariant: what lies elsewhere is kept, rotated, restored and removed as
//! if it lay there, and no name of a set is overlooked when WAL is removed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::restore::Scene;
use crate::support::backup_set::set_path;
use crate::support::loopfs::{FileSystem, LoopFs};
use crate::support::place::give_to_server;
use crate::support::{Cluster, run};

const MAJORS: [u8; 2] = crate::support::USUAL;

/// Moves a directory into another one and leaves a link; where it is now.
fn move_into(path: &Path, folder: &Path) -> PathBuf {
    let to = folder.join(path.file_name().unwrap());
    run(std::process::Command::new("mv").arg(path).arg(&to)).unwrap();
    symlink(&to, path).unwrap();
    to
}

fn backup(scene: &Scene) {
    scene.work("10");
    scene.site.master_command(&["backup"]).succeed();
}

fn elsewhere(scene: &Scene) -> PathBuf {
    let folder = scene.site.home().create_dir("elsewhere");
    give_to_server(&folder);
    folder
}

#[test]
fn fault_126_folders_that_lie_elsewhere_serve_as_if_they_lay_there() {
    for major in MAJORS {
        skip_unless!(Cluster::available(major));
        let mut scene = Scene::new(major);
        let folder = elsewhere(&scene);
        let configs = scene.site.archive_folder().join("config.backup");
        scene
            .site
            .standby_set("config_backup", configs.to_str().unwrap());
        fs::create_dir(&configs).unwrap();
        let archive = scene.site.archive_folder().to_path_buf();
        for path in [
            scene.site.completed_wals(),
            scene.site.partial_wals(),
            configs,
            archive,
        ] {
            move_into(&path, &folder);
        }
        scene.site.restart_receiver();
        scene.site.standby_command(&["setup"]).succeed();
        backup(&scene);
        scene.site.master_command(&["sync"]).succeed();
        scene.site.standby_command(&["pause"]).succeed();
        scene.site.standby_command(&["continue"]).succeed();
        scene.restore(&[]).succeed();
        let content = scene.content();
        scene.wait_until_standby_has(&content);
        scene.site.standby_command(&["xpurgewals"]).succeed();
        scene.site.restart_receiver();
        backup(&scene);
        scene.boot();
    }
}

#[test]
fn fault_126_sets_behind_links_are_listed_rotated_restored_and_removed() {
    for major in MAJORS {
        skip_unless!(Cluster::available(major));
        let mut scene = Scene::new(major);
        let disk = LoopFs::create(FileSystem::Ext4, 400);
        let folder = elsewhere(&scene);
        let folders = [Some(folder.as_path()), disk.as_ref().ok().map(LoopFs::path)];
        scene.site.standby_set("keep_backups", "2");
        scene.site.standby_set("keep_minimum_age", "0");
        scene.site.restart_receiver();
        for folder in folders.into_iter().flatten() {
            backup(&scene);
            let moved = move_into(&set_path(&scene.site, "data.master"), folder);
            assert!(scene.listed().contains(&"data.master".to_owned()));
            scene.restore(&["data.master"]).succeed();
            let content = scene.content();
            scene.wait_until_standby_has(&content);
            // It moves up, and is removed where it lies.
            backup(&scene);
            assert_eq!(scene.listed(), ["data.master", "data.master.0"]);
            assert!(set_path(&scene.site, "data.master.0").is_symlink());
            scene.restore(&["data.master.0"]).succeed();
            backup(&scene);
            assert!(!moved.exists(), "{}", moved.display());
            assert_eq!(scene.listed(), ["data.master", "data.master.0"]);
            // The newest is moved, not copied.
            let moved = move_into(&set_path(&scene.site, "data.master"), folder);
            scene.restore(&[]).succeed();
            assert!(
                !moved.exists() && !moved.is_symlink(),
                "{}",
                moved.display()
            );
            assert_eq!(scene.listed(), ["data.master.0"]);
            let content = scene.content();
            scene.wait_until_standby_has(&content);
        }
    }
}

#[test]
fn fault_126_no_name_of_a_set_is_overlooked_when_wal_is_removed() {
    for major in MAJORS {
        skip_unless!(Cluster::available(major));
        let scene = Scene::new(major);
        backup(&scene);
        backup(&scene);
        let (set, folder) = (set_path(&scene.site, "data.master.0"), elsewhere(&scene));
        let moved = move_into(&set, &folder);
        let oldest = scene.site.archived_names();
        scene.site.standby_command(&["xpurgewals"]).succeed();
        let kept = scene.site.archived_names();
        let label = fs::read_to_string(moved.join("backup_label")).unwrap();
        let first = label.split("(file ").nth(1).unwrap()[..24].to_owned();
        assert!(
            kept.contains(&first),
            "{first} of {oldest:?} is gone: {kept:?}"
        );

        let aside = folder.join("aside");
        let blocked = |what: &str, why: &str| {
            let names = scene.site.archived_names();
            let purged = scene.site.standby_command(&["xpurgewals"]);
            assert_eq!(purged.code, Some(1), "{what}: {}", purged.stderr);
            for part in ["data.master.0", why] {
                assert!(purged.stderr.contains(part), "{what}: {}", purged.stderr);
            }
            assert_eq!(scene.site.archived_names(), names, "{what}");
            let listed = scene.site.standby_command(&["listbackups"]).succeed();
            assert!(listed.contains(why), "{what}: {listed}");
            let status = scene.site.standby_command(&["status"]);
            assert!(status.stdout.contains(why), "{what}: {}", status.stdout);
        };
        // An unmounted disk leaves the link without an end, or with an empty directory behind it.
        fs::rename(&moved, &aside).unwrap();
        blocked("a dangling link", "a symbolic link to what does not exist");
        fs::create_dir(&moved).unwrap();
        give_to_server(&moved);
        blocked("an empty directory", "no backup_label");
        fs::remove_dir(&moved).unwrap();
        fs::write(&moved, "").unwrap();
        blocked("a file", "it is no directory");
        fs::remove_file(&moved).unwrap();
        fs::remove_file(&set).unwrap();
        symlink("data.master.0", &set).unwrap();
        blocked("a loop", "symbolic links");
        fs::remove_file(&set).unwrap();
        fs::create_dir(&set).unwrap();
        fs::set_permissions(&set, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
        blocked("a closed directory", "ermission denied");
        fs::remove_dir(&set).unwrap();
        fs::rename(&aside, &set).unwrap();
        scene.site.standby_command(&["xpurgewals"]).succeed();
    }
}

#[test]
fn fault_126_a_link_within_a_set_is_refused_before_anything_stops() {
    for major in MAJORS {
        skip_unless!(Cluster::available(major));
        let scene = Scene::new(major);
        let space = scene.site.home().create_dir("space");
        give_to_server(&space);
        let sql = format!("CREATE TABLESPACE aside LOCATION '{}'", space.display());
        scene.site.cluster().psql(&sql);
        let rows = "CREATE TABLE there TABLESPACE aside AS SELECT generate_series(1, 999) n";
        scene.site.cluster().psql(rows);
        backup(&scene);
        scene.restore(&["data.master"]).succeed();
        let content = scene.content();
        scene.wait_until_standby_has(&content);
        let (set, folder) = (set_path(&scene.site, "data.master"), elsewhere(&scene));
        let spaces = set.join("tmpspc");
        let oid = fs::read_dir(&spaces)
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        let again = scene.site.home().join("again");
        for path in [oid, spaces, set.join("base")] {
            let moved = move_into(&path, &folder);
            let refused = [
                scene.site.standby_command(&["restore"]),
                scene.site.standby_command(&["restore", "data.master"]),
                scene
                    .site
                    .master_command(&["restore", "data.master", again.to_str().unwrap()]),
            ];
            for refused in refused {
                assert_ne!(refused.code, Some(0));
                for part in [path.to_str().unwrap(), "a link to", "remove the link"] {
                    assert!(refused.stderr.contains(part), "{part}: {}", refused.stderr);
                }
            }
            assert!(scene.standby.is_running() && set.is_dir() && !again.exists());
            fs::remove_file(&path).unwrap();
            fs::rename(&moved, &path).unwrap();
        }
        scene.restore(&[]).succeed();
        scene.wait_until_standby_has(&scene.content());
        assert_eq!(
            scene.standby.psql("SELECT count(*) FROM there").trim(),
            "999"
        );
    }
}
