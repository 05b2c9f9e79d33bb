//! Directories and files of the data directory that an administrator moved elsewhere, with a link left.
//! Never moves a tablespace, which is a link anyway. Invariant: what the server sees is in the set, and
//! what cannot be is named, marked, and no success.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::restore::{Scene, names_in};
use crate::support::backup_set::set_path;
use crate::support::place::give_to_server;
use crate::support::{Cluster, StopMode, run};

const MAJORS: [u8; 2] = crate::support::USUAL;

/// Moves a name of the master's data directory to another disk, so to say.
fn move_away(scene: &Scene, name: &str) -> PathBuf {
    let from = scene.site.data().join(name);
    let elsewhere = scene.site.home().join("elsewhere");
    fs::create_dir_all(&elsewhere).unwrap();
    give_to_server(&elsewhere);
    let to = elsewhere.join(name.replace('/', "-"));
    fs::rename(&from, &to).unwrap();
    symlink(&to, &from).unwrap();
    to
}

fn links_below(path: &Path) -> String {
    let mut find = std::process::Command::new("find");
    run(find.arg(path).args(["-type", "l"])).unwrap()
}

/// The relative path of a table with some rows, in a tablespace if one is named.
fn make_table(scene: &Scene, name: &str, space: &str) -> String {
    let cluster = scene.site.cluster();
    let sql = format!("CREATE TABLE {name} {space} AS SELECT generate_series(1, 1000) AS n");
    cluster.psql(&sql);
    cluster.psql(&format!("SELECT pg_relation_filepath('{name}')"))
}

const COUNTS: &str = "SELECT (SELECT count(*) FROM apart) + (SELECT count(*) FROM in_space)";

#[test]
fn fault_125_directories_behind_links_are_in_the_set_and_come_back() {
    for major in MAJORS {
        skip_unless!(Cluster::available(major));
        let mut scene = Scene::new(major);
        let space = scene.site.home().create_dir("space");
        let location = space.display();
        (scene.site.cluster()).psql(&format!("CREATE TABLESPACE s LOCATION '{location}'"));
        let relation = make_table(&scene, "apart", "");
        let in_space = make_table(&scene, "in_space", "TABLESPACE s");
        let in_space = Path::new(&in_space)
            .parent()
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let first = [
            relation.as_str(),
            "pg_multixact/members",
            in_space.as_str(),
            "pg_xact",
        ];
        let second = [
            "base",
            "global/pg_control",
            "global",
            "pg_multixact",
            "postgresql.conf",
        ];
        for (round, names) in [&first[..], &second].into_iter().enumerate() {
            scene.site.cluster_mut().stop(StopMode::Fast);
            for name in names {
                move_away(&scene, name);
            }
            scene.site.cluster_mut().start();
            scene.work("20");
            let made = scene.site.master_command(&["backup"]);
            assert_eq!(made.code, Some(0), "{}", made.stderr);
            let set = set_path(&scene.site, "data.master");
            let links = links_below(&set);
            assert!(
                links.lines().all(|link| link.contains("/pg_tblspc/")),
                "{links}"
            );
            // An older one does not read a newer manifest.
            let verify = scene.site.cluster().bin().join("pg_verifybackup");
            if verify.exists() {
                let mut verify = scene.site.cluster().command("pg_verifybackup");
                run(verify.args(["-n", "-i", "tmpspc"]).arg(&set)).unwrap();
            }
            scene.restore(&["data.master"]).succeed();
            let content = scene.content();
            scene.wait_until_standby_has(&content);
            assert_eq!(scene.standby.psql(COUNTS), "2000", "round {round}");
            assert!(links_below(&scene.data().join("base")).is_empty());
        }
        scene.boot();
        assert_eq!(scene.standby.psql(COUNTS), "2000");
    }
}

#[test]
fn fault_125_a_backup_that_lacks_something_fails_and_its_set_is_marked() {
    for major in MAJORS {
        skip_unless!(Cluster::available(major));
        let scene = Scene::new(major);
        let link = scene.site.data().join("base/4711");
        symlink("/nonexistent/4711", &link).unwrap();
        let made = scene.site.master_command(&["backup"]);
        made.fail_last(1, "sealed and lacks 1 entries");
        let named = "base/4711 is a symbolic link to what does not exist";
        assert!(made.stderr.contains(named), "{}", made.stderr);
        assert!(made.stderr.contains("--allow-left-out"), "{}", made.stderr);
        let set = set_path(&scene.site, "data.master");
        let note = fs::read_to_string(set.join("walmgr_left_out")).unwrap();
        assert_eq!(note, format!("{named}\n"));
        let listed = |mark: &str| {
            for output in [
                scene.site.standby_command(&["listbackups"]),
                scene.site.master_command(&["listbackups"]),
            ] {
                let text = output.succeed();
                assert!(text.contains(mark), "{text}");
            }
        };
        listed("(something left out)");
        let status = scene.site.standby_command(&["status"]);
        assert!(
            status.code == Some(1) || status.code == Some(2),
            "{}",
            status.stdout
        );
        let finding = "data.master: it lacks files of the master";
        assert!(
            status.stdout.contains("walmgr_left_out"),
            "{finding}: {}",
            status.stdout
        );

        let made = scene.site.master_command(&["backup", "--allow-left-out"]);
        assert_eq!(made.code, Some(0), "{}", made.stderr);
        assert!(made.stderr.contains(named), "{}", made.stderr);
        assert!(set.join("walmgr_left_out_allowed").exists());
        listed("(something left out, as allowed)");
        let status = scene.site.standby_command(&["status"]);
        assert!(
            !status.stdout.contains("walmgr_left_out"),
            "{}",
            status.stdout
        );

        // What it lacks is said again when it is restored; the mark goes into no later set.
        let restored = scene.restore(&["data.master"]);
        assert!(restored.stderr.contains(named), "{}", restored.stderr);
        restored.succeed();
        fs::remove_file(&link).unwrap();
        fs::write(scene.site.data().join("walmgr_left_out"), "of a set before").unwrap();
        give_to_server(&scene.site.data().join("walmgr_left_out"));
        scene.site.master_command(&["backup"]).succeed();
        assert!(!set.join("walmgr_left_out").exists());
    }
}

#[test]
fn fault_125_links_of_wal_and_log_are_kept_where_the_settings_say_so() {
    for major in MAJORS {
        skip_unless!(Cluster::available(major));
        let mut scene = Scene::new(major);
        fs::create_dir(scene.site.data().join("log")).unwrap();
        fs::write(scene.site.data().join("log/of the master"), "").unwrap();
        give_to_server(&scene.site.data().join("log"));
        scene.site.master_command(&["backup"]).succeed();
        scene.restore(&["data.master"]).succeed();
        scene.standby.stop(StopMode::Fast);
        let (wal, logs) = (
            scene.site.home().join("own-wal"),
            scene.site.home().join("own-log"),
        );
        let (link, log_link) = (scene.data().join("pg_wal"), scene.data().join("log"));
        fs::rename(&link, &wal).unwrap();
        symlink(&wal, &link).unwrap();
        fs::rename(&log_link, &logs).unwrap();
        symlink("../own-log", &log_link).unwrap();

        scene.restore(&["data.master"]).succeed();
        let content = scene.content();
        scene.wait_until_standby_has(&content);
        assert_eq!(fs::read_link(&link).unwrap(), wal);
        assert_eq!(fs::read_link(&log_link).unwrap(), Path::new("../own-log"));
        assert_eq!(
            names_in(&scene.data().join("log.of-the-set")),
            ["of the master"]
        );
        let old = scene.data().with_extension("1");
        assert_eq!(
            fs::read_link(old.join("pg_wal")).unwrap(),
            wal.with_extension("1")
        );

        scene.site.standby_set("keep_symlinks", "no");
        scene.restore(&["data.master"]).succeed();
        for link in [&link, &log_link] {
            assert!(link.is_dir() && !link.is_symlink(), "{}", link.display());
        }
        let content = scene.content();
        scene.wait_until_standby_has(&content);
    }
}
