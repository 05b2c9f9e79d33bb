//! Targets of `restore` on the master: in reach, behind the end of the archive, behind an obstacle.
//! Never asks walmgr where a target lies: the master says so. Invariant: what is refused is refused before the
//! directory exists, with the range that is in reach and a command that works.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::load::drain;
use crate::support::backup_set::make_set;
use crate::support::{Cluster, Output, Site, StopMode, wait_for};

const PATIENCE: Duration = Duration::from_secs(90);

/// A place in the WAL, and how each kind of target says it.
struct Place {
    xid: String,
    lsn: String,
    time: String,
    name: String,
}

impl Place {
    /// Inserts a row, and a transaction later on that ends behind its time.
    fn make(site: &Site, name: &str) -> Place {
        let line = |sql: &str| site.cluster().psql(sql).trim().to_owned();
        let insert = format!(
            "WITH i AS (INSERT INTO places VALUES ('{name}') RETURNING 1) SELECT txid_current() FROM i"
        );
        let (xid, lsn) = (line(&insert), line("SELECT pg_current_wal_insert_lsn()"));
        let time = line(&format!(
            "SELECT to_char(pg_xact_commit_timestamp('{xid}'::text::xid) AT TIME ZONE 'UTC', \
             'YYYY-MM-DD HH24:MI:SS.US')"
        ));
        line(&format!("SELECT pg_create_restore_point('{name}')"));
        Place {
            xid,
            lsn,
            time: format!("{time}+00"),
            name: name.to_owned(),
        }
    }

    /// The words of each kind.
    fn targets(&self) -> [[&str; 2]; 4] {
        [
            ["--target-xid", &self.xid],
            ["--target-lsn", &self.lsn],
            ["--target-time", &self.time],
            ["--target-name", &self.name],
        ]
    }
}

/// A master with a set.
struct Scene {
    site: Site,
}

impl Scene {
    fn new(major: u8) -> Scene {
        let cluster = Cluster::builder()
            .major(major)
            .conf("archive_mode", "on")
            .conf("track_commit_timestamp", "on")
            .start();
        let site = Site::with_cluster(cluster);
        site.master_command(&["setup"]).succeed();
        site.cluster().psql("CREATE TABLE places (name text)");
        make_set(&site, "data.master");
        Scene { site }
    }

    fn destination(&self) -> PathBuf {
        self.site.home().join("again")
    }

    fn restore(&self, more: &[&str]) -> Output {
        let destination = self.destination().display().to_string();
        let words = [&["restore", "data.master", &destination], more].concat();
        self.site.master_command(&words)
    }

    /// The refusal's only line, of a restore that touched nothing.
    #[track_caller]
    fn refused(&self, more: &[&str]) -> String {
        let refused = self.restore(more);
        let line = refused.fail(1).to_owned();
        assert!(!self.destination().exists(), "{line}");
        assert!(line.contains("nothing was changed"), "{line}");
        line
    }

    /// The places that a recovery with these words has brought back.
    #[track_caller]
    fn recovered(&self, more: &[&str]) -> String {
        self.restore(&[more, &["--target-action", "promote"]].concat())
            .succeed();
        let major = self.site.cluster().major();
        let mut server = Cluster::on_directory(major, &self.destination());
        server.start();
        wait_for("the server to open", PATIENCE, || {
            (server.try_psql("SELECT pg_is_in_recovery()").ok()? == "f").then_some(())
        });
        let found = server.psql("SELECT string_agg(name, ' ' ORDER BY name) FROM places");
        server.stop(StopMode::Fast);
        fs::remove_dir_all(self.destination()).unwrap();
        found
    }
}

#[test]
fn fault_127_every_kind_of_target_in_reach_is_restored() {
    for major in crate::support::USUAL {
        skip_unless!(Cluster::available(major));
        let scene = Scene::new(major);
        let one = Place::make(&scene.site, "a");
        Place::make(&scene.site, "b");
        drain(&scene.site);
        for words in one.targets() {
            let shown = scene.restore(&[&["-n"][..], &words].concat());
            shown.succeed();
            assert!(!scene.destination().exists());
            assert_eq!(scene.recovered(&words).trim(), "a", "{major} {words:?}");
        }
        let words = [&one.targets()[0][..], &["--target-timeline", "current"]].concat();
        assert_eq!(scene.recovered(&words).trim(), "a");
    }
}

#[test]
fn fault_127_targets_behind_the_end_are_refused_in_the_same_words() {
    for major in crate::support::USUAL {
        skip_unless!(Cluster::available(major));
        let scene = Scene::new(major);
        let (first, last) = (Place::make(&scene.site, "a"), Place::make(&scene.site, "b"));
        drain(&scene.site);
        for (words, part) in [
            (["--target-lsn", "FF/0"], "LSNs from "),
            (
                ["--target-lsn", "0/100"],
                "no other set was found that reaches back to it",
            ),
            (["--target-time", "2100-01-01 00:00:00Z"], &*last.time),
            (["--target-time", "2001-01-01 00:00:00Z"], "no other set"),
            (["--target-xid", "4000000000"], &last.xid),
            (["--target-name", "never"], "a, b; nothing was changed"),
        ] {
            let line = scene.refused(&words);
            assert!(line.contains("is out of reach: "), "{line}");
            assert!(line.contains(part), "{part:?}: {line}");
            assert!(line.contains(" recovers all there is"), "{line}");
            // The standby says the same of its own restore.
            let place = scene.destination().display().to_string();
            let restore = ["restore", "data.master", &place];
            let standby = scene.site.standby_command(&[&restore[..], &words].concat());
            let [master, other] = [scene.site.master_ini(), scene.site.standby_ini()]
                .map(|ini| ini.display().to_string());
            let same = line.replace(&master, &other);
            assert_eq!(standby.fail(1), same);
        }
        let line = scene.refused(&["--target-timeline", "7", "--target-xid", &first.xid]);
        assert!(line.contains("no history of timeline 7"), "{line}");
        let line = scene.refused(&["--target-timeline", "7"]);
        assert!(line.contains("no history of timeline 7"), "{line}");
        // The command that the refusal shows is one that works.
        let line = scene.refused(&["--target-name", "never"]);
        let shown = line.rsplit('`').nth(1).unwrap();
        assert!(shown.ends_with(" --target-name 'b'"), "{line}");
        assert_eq!(scene.recovered(&["--target-name", "b"]).trim(), "a b");
    }
}

#[test]
fn fault_127_targets_behind_an_obstacle_are_refused() {
    for major in crate::support::USUAL {
        skip_unless!(Cluster::available(major));
        let mut scene = Scene::new(major);
        let before = Place::make(&scene.site, "a");
        scene.site.cluster().psql("INSERT INTO places VALUES ('b')");
        super::unreplayable_wal::write_minimally(&mut scene.site);
        let behind = Place::make(&scene.site, "c");
        Place::make(&scene.site, "d");
        drain(&scene.site);
        for words in behind.targets() {
            let line = scene.refused(&words);
            assert!(line.contains("is out of reach: "), "{line}");
            assert!(line.contains("wal_level = minimal"), "{line}");
        }
        for words in [&[][..], &["--target-timeline", "current"]] {
            let line = scene.refused(words);
            assert!(
                line.contains("wal_level = minimal") && line.contains("new backup"),
                "{line}"
            );
        }
        for words in before.targets() {
            assert_eq!(scene.recovered(&words).trim(), "a", "{major} {words:?}");
        }
    }
}
