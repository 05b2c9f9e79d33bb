//! Master and standby on one host, and tablespaces that the master makes after the restore.
//! Never trusts a count alone: the master's own data is looked at in the end. Invariant: a standby that
//! replays, boots or is restarted changes no file of another server.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::mounted_directories::Bound;
use crate::load::drain;
use crate::support::backup_set::make_set;
use crate::support::cluster::Builder;
use crate::support::place::give_to_server;
use crate::support::{Cluster, Site, StopMode, report_skip, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

/// The oldest version that has everything here, and the newest.
const MAJORS: [u8; 2] = crate::support::USUAL;

/// A master, and a standby restored from it that was not started yet.
pub(super) struct Scene {
    pub(super) site: Site,
    pub(super) standby: Cluster,
}

impl Scene {
    pub(super) fn new(major: u8, settings: &[(&str, &str)]) -> Scene {
        Scene::of(Cluster::builder().major(major), settings)
    }

    fn of(mut builder: Builder, settings: &[(&str, &str)]) -> Scene {
        for (name, value) in [("archive_mode", "on"), ("wal_level", "replica")] {
            builder = builder.conf(name, value);
        }
        for (name, value) in settings {
            builder = builder.conf(name, value);
        }
        let mut site = Site::with_cluster(builder.start());
        site.master_set("use_xlog_functions", "1");
        site.master_command(&["setup"]).succeed();
        make_set(&site, "data.master");
        let data = site.home().join("standby-data");
        site.standby_set("slave_data", &data.display().to_string());
        site.standby_command(&["restore", "data.master"]).succeed();
        let standby = Cluster::on_directory(site.cluster().major(), &data);
        Scene { site, standby }
    }

    /// A tablespace on the master with 20,000 rows in it; where it is.
    pub(super) fn tablespace(&self, name: &str) -> PathBuf {
        let space = self.site.home().create_dir(name);
        give_to_server(&space);
        let master = self.site.cluster();
        let at = space.display();
        master.psql(&format!("CREATE TABLESPACE {name} LOCATION '{at}'"));
        let rows = "AS SELECT generate_series(1, 20000) AS n";
        master.psql(&format!("CREATE TABLE in_{name} TABLESPACE {name} {rows}"));
        space
    }

    pub(super) fn rows(server: &Cluster, name: &str) -> Option<String> {
        let count = format!("SELECT count(*) FROM in_{name}");
        server.try_psql(&count).ok().map(|it| it.trim().to_owned())
    }

    /// What is on the master's disk, and not in its memory only.
    pub(super) fn master_rows(&mut self, name: &str) -> Option<String> {
        self.site.cluster_mut().stop(StopMode::Fast);
        self.site.cluster_mut().start();
        Scene::rows(self.site.cluster(), name)
    }

    pub(super) fn status(&self) -> String {
        let status = self.site.standby_command(&["status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
        let findings = status["findings"].as_array().unwrap();
        let mut ours = findings.iter().filter(|it| it["code"] == "tablespace");
        let found = ours
            .next()
            .map(|it| it["text"].as_str().unwrap().to_owned());
        found.unwrap_or_default()
    }

    /// Waits until a server that asked for the WAL has ended.
    pub(super) fn wait_until_ended(&self) -> String {
        wait_for("the server to end", PATIENCE, || {
            (self.standby.log().contains("is held back") && !self.standby.is_running())
                .then_some(())
        });
        self.standby.log()
    }
}

fn version_directories(space: &Path) -> usize {
    fs::read_dir(space).unwrap().count()
}

#[test]
fn fault_124_a_tablespace_of_the_master_on_this_host_is_not_replayed_into() {
    for major in MAJORS {
        skip_unless!(Cluster::available(major));
        let mut scene = Scene::new(major, &[]);
        let space = scene.tablespace("beside");
        drain(&scene.site);
        scene.standby.spawn();
        let log = scene.wait_until_ended();
        let place = space.display().to_string();
        assert!(
            log.contains(&place) && log.contains("make a new backup"),
            "{log}"
        );
        let told = scene.status();
        assert!(
            told.contains(&place) && told.contains("creates tablespace"),
            "{told}"
        );
        let data = scene.site.cluster().data().display().to_string();
        assert!(told.contains(&data), "the other server is named: {told}");
        assert_eq!(version_directories(&space), 1);
        assert_eq!(scene.master_rows("beside").as_deref(), Some("20000"));
        // The remedy that is named.
        fs::remove_dir_all(scene.standby.data()).unwrap();
        make_set(&scene.site, "data.master.0");
        scene
            .site
            .standby_command(&["restore", "data.master.0"])
            .succeed();
        scene.standby.start();
        wait_for("the rows", PATIENCE, || {
            (Scene::rows(&scene.standby, "beside")? == "20000").then_some(())
        });
        assert_eq!(scene.status(), "");
        scene.site.standby_command(&["boot"]).succeed();
        scene
            .standby
            .psql("DELETE FROM in_beside WHERE n > 10000; CHECKPOINT");
        for sql in ["VACUUM in_beside", "CHECKPOINT"] {
            scene.standby.psql(sql);
        }
        assert_eq!(scene.master_rows("beside").as_deref(), Some("20000"));
    }
}

#[test]
fn fault_124_boot_is_refused_before_records_make_the_masters_tablespace() {
    for major in MAJORS {
        skip_unless!(Cluster::available(major));
        // What is made here fills no segment, so none is archived.
        let builder = Cluster::builder().major(major).wal_segment_size_mb(16);
        let mut scene = Scene::of(builder, &[]);
        scene.standby.start();
        let space = scene.tablespace("beside");
        scene.site.master_command(&["sync"]).succeed();
        let boot = scene.site.standby_command(&["boot"]);
        let line = boot.fail(1);
        assert!(line.contains(&space.display().to_string()), "{line}");
        assert!(line.contains("nothing was changed"), "{line}");
        assert!(!scene.site.partial_wals().join("FROZEN").exists() && !scene.site.holds("STOP"));
        assert!(scene.standby.is_running());
        assert!(scene.status().contains("creates tablespace"));
        // Forced, it opens without them.
        scene.site.standby_command(&["boot", "--force"]);
        wait_for("an end", PATIENCE, || {
            let open = scene.standby.try_psql("SELECT pg_is_in_recovery()");
            (!scene.standby.is_running() || open.is_ok_and(|it| it.trim() == "f")).then_some(())
        });
        assert_eq!(Scene::rows(&scene.standby, "beside"), None);
        assert_eq!(scene.master_rows("beside").as_deref(), Some("20000"));
    }
}

#[test]
fn fault_124_missing_tablespace_directory_is_named_on_another_host() {
    for major in MAJORS {
        skip_unless!(Cluster::available(major));
        let mut scene = Scene::new(major, &[]);
        let space = scene.tablespace("beside");
        let gone = scene.tablespace("gone");
        let master = scene.site.cluster();
        master.psql("DROP TABLE in_gone");
        master.psql("DROP TABLESPACE gone");
        master.psql("CREATE DATABASE there TABLESPACE beside");
        master.psql("DROP DATABASE there");
        master.psql("CREATE TABLE last ()");
        drain(&scene.site);
        // The master's host is gone, and its directories with it.
        scene.site.cluster_mut().stop(StopMode::Fast);
        fs::rename(&space, scene.site.home().join("of the master")).unwrap();
        scene.standby.spawn();
        let log = scene.wait_until_ended();
        assert!(
            log.contains("not on this host") && log.contains("mkdir"),
            "{log}"
        );
        assert!(scene.status().contains(&space.display().to_string()));
        // A link to a directory with another name does as well.
        let elsewhere = scene.site.home().create_dir("elsewhere");
        give_to_server(&elsewhere);
        std::os::unix::fs::symlink(&elsewhere, &space).unwrap();
        assert_eq!(scene.status(), "");
        for _ in 0..2 {
            scene.standby.start();
            wait_for("everything", PATIENCE, || {
                scene.standby.try_psql("TABLE last").ok()
            });
            assert_eq!(
                Scene::rows(&scene.standby, "beside").as_deref(),
                Some("20000")
            );
            // The next start reads the same records again.
            scene.standby.stop(StopMode::Immediate);
        }
        assert_eq!(
            (version_directories(&elsewhere), version_directories(&gone)),
            (1, 0)
        );
        // The same by a mapping, beforehand.
        fs::remove_file(&space).unwrap();
        let new = scene.site.home().join("mapped");
        let mapping =
            |old: &Path| format!("--tablespace-mapping={}={}", old.display(), new.display());
        let refused = scene
            .site
            .standby_command(&["restore", "data.master", &mapping(&gone)]);
        refused.fail_last(2, "exists on this host");
        let words = ["restore", "data.master", &mapping(&space)];
        scene.site.standby_command(&words).succeed();
        scene.standby.start();
        wait_for("the rows", PATIENCE, || {
            (Scene::rows(&scene.standby, "beside")? == "20000").then_some(())
        });
        assert_eq!(version_directories(&new), 1);
        // Until it has replayed the end of the other tablespace, that one's files lie there.
        wait_for("everything", PATIENCE, || {
            scene.standby.try_psql("TABLE last").ok()
        });
        the_master_leads_there_as_well(scene, &space, &new);
    }
}

/// On the master's new host, say.
fn the_master_leads_there_as_well(mut scene: Scene, space: &Path, taken: &Path) {
    scene.standby.stop(StopMode::Fast);
    let place = scene.site.home().join("new host");
    let restore = |new: &Path| {
        let mapping = format!("--tablespace-mapping={}={}", space.display(), new.display());
        let place = place.to_str().unwrap();
        let words = ["restore", "data.master", place, &mapping];
        scene.site.master_command(&words)
    };
    let new = scene.site.home().join("mapped-again");
    restore(&new).fail_last(2, "exists on this host");
    fs::remove_file(space).unwrap();
    restore(taken).fail_last(2, "is not empty");
    restore(&place.join("within")).fail_last(2, "must not contain, or lie in");
    assert!(!place.exists() && !space.exists());
    restore(&new).succeed();
    assert_eq!(fs::read_link(space).unwrap(), new);
    let mut server = Cluster::on_directory(scene.site.cluster().major(), &place);
    server.start();
    wait_for("the rows", PATIENCE, || {
        (Scene::rows(&server, "beside")? == "20000").then_some(())
    });
    assert_eq!(
        (version_directories(&new), version_directories(taken)),
        (1, 1)
    );
}

#[test]
fn fault_124_a_server_whose_directory_has_two_names_is_no_other_server() {
    skip_unless!(Cluster::available(15));
    let mut scene = Scene::new(15, &[]);
    let space = scene.tablespace("beside");
    drain(&scene.site);
    scene.site.cluster_mut().stop(StopMode::Fast);
    fs::rename(&space, scene.site.home().join("of the master")).unwrap();
    fs::create_dir(&space).unwrap();
    give_to_server(&space);
    scene.standby.start();
    wait_for("the rows", PATIENCE, || {
        (Scene::rows(&scene.standby, "beside")? == "20000").then_some(())
    });
    assert_eq!(scene.status(), "");
    let other = scene.site.home().join("other-name");
    match Bound::new(scene.standby.data(), &other) {
        Ok(_bound) => {
            let other = other.display().to_string();
            scene.site.standby_set("slave_data", &other);
            assert_eq!(scene.status(), "");
            scene.site.standby_command(&["boot"]).succeed();
        }
        Err(reason) => report_skip(&reason),
    }
}

#[test]
fn fault_124_tablespaces_in_place_are_replayed() {
    for major in MAJORS {
        skip_unless!(Cluster::available(major));
        let mut scene = Scene::new(major, &[("allow_in_place_tablespaces", "on")]);
        let master = scene.site.cluster();
        for name in ["inside", "passing"] {
            master.psql(&format!("CREATE TABLESPACE {name} LOCATION ''"));
        }
        master.psql("CREATE TABLE in_inside TABLESPACE inside AS SELECT generate_series(1, 7)");
        master.psql("DROP TABLESPACE passing");
        drain(&scene.site);
        scene.standby.start();
        wait_for("the rows", PATIENCE, || {
            (Scene::rows(&scene.standby, "inside")? == "7").then_some(())
        });
        assert_eq!(scene.status(), "");
    }
}

#[test]
fn fault_124_restored_server_leaves_the_masters_tablespaces_alone() {
    for major in MAJORS {
        skip_unless!(Cluster::available(major));
        let mut scene = Scene::new(major, &[]);
        let place = scene.site.home().join("again");
        let words = ["restore", "data.master", place.to_str().unwrap()];
        scene.site.master_command(&words).succeed();
        let space = scene.tablespace("beside");
        drain(&scene.site);
        scene.standby = Cluster::on_directory(major, &place);
        scene.standby.spawn();
        let log = scene.wait_until_ended();
        assert!(log.contains(&space.display().to_string()), "{log}");
        assert_eq!(scene.master_rows("beside").as_deref(), Some("20000"));
    }
}
