//! `restore SET DST --delta` on the master: an old directory that is nearly the set, over the wire.
//! Never trusts what walmgr says: every file is compared with `backup_manifest`, and bytes are counted at a proxy.
//! Invariant: the old directory is as it was until the new one is whole, unless `--in-place` was typed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::names_in;
use super::restore::{CONTENT, PATIENCE};
use crate::load::drain;
use crate::support::dice::Dice;
use crate::support::old_data::{CONTENT_OF, assert_manifest, assert_same, change, files_below};
use crate::support::place::give_to_server;
use crate::support::strace::Strace;
use crate::support::{Cluster, Output, Site, run, wait_for};

pub const BESIDE: [&str; 1] = ["--delta"];
pub const IN_PLACE: [&str; 2] = ["--delta", "--in-place"];

/// A master that has made a backup, and a directory whose files are nearly those of the set.
pub struct OldScene {
    pub site: Site,
    /// Where the set goes, and the old directory is.
    pub data: PathBuf,
    /// The set as it was made, and the old directory as it was.
    pub spare: PathBuf,
    pub old: PathBuf,
}

impl OldScene {
    pub fn new(site: Site, data: &Path, dice: &mut Dice) -> OldScene {
        site.master_command(&["setup"]).succeed();
        let space = site.home().create_dir("space");
        let cluster = site.cluster();
        let sql = format!("CREATE TABLESPACE s LOCATION '{}'", space.display());
        cluster.psql(&sql);
        cluster.psql("CREATE TABLE in_space TABLESPACE s AS SELECT generate_series(1, 20000) AS n");
        cluster.pgbench(&["-i", "-q", "-s", "1"]);
        site.master_command(&["backup"]).succeed();
        let set = site.completed_wals().with_file_name("data.master");
        let [spare, old] = ["spare", "old"].map(|name| data.with_file_name(name));
        let scene = OldScene {
            site,
            data: data.to_owned(),
            spare,
            old,
        };
        copy(&set, &scene.spare);
        copy(&set, &scene.old);
        change(&scene.old, dice);
        fs::write(scene.old.join("of-the-old"), "").unwrap();
        scene.begin();
        scene
    }

    /// The site of a cluster that archives.
    pub fn site(builder: crate::support::site::Builder) -> Site {
        let cluster = Cluster::builder().conf("archive_mode", "on").start();
        builder.cluster(cluster).build()
    }

    /// The old directory alone.
    pub fn begin(&self) {
        let above = self.data.parent().unwrap();
        let own = self.data.file_name().unwrap().to_str().unwrap();
        for name in names_in(above) {
            if name.starts_with(own) {
                fs::remove_dir_all(above.join(name)).unwrap();
            }
        }
        copy(&self.old, &self.data);
        give_to_server(&self.data);
    }

    pub fn words<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        let data = self.data.to_str().unwrap();
        [&["restore", "data.master", data][..], more].concat()
    }

    pub fn restore(&self, more: &[&str]) -> Output {
        self.site.master_command(&self.words(more))
    }

    pub fn aside(&self) -> PathBuf {
        self.data.with_extension("1")
    }

    pub fn is_startable(&self) -> bool {
        self.data.join("global/pg_control").exists()
    }

    /// What is in place is the set, and nothing of a restore is left.
    #[track_caller]
    pub fn assert_restored(&self, context: &str) {
        self.assert_in_place(context);
        let left = self.data.with_extension("restoring");
        assert!(!left.exists(), "{context}");
    }

    /// What is in place has the set's content and nothing else, and every file is what the manifest lists. Another
    /// restore may have begun beside it.
    #[track_caller]
    pub fn assert_in_place(&self, context: &str) {
        assert!(self.is_startable(), "{context}");
        assert!(!self.data.join("of-the-old").exists(), "{context}");
        assert!(self.data.join("standby.signal").exists(), "{context}");
        let wal = names_in(&self.data.join("pg_wal"));
        assert!(wal.iter().all(|name| name == "archive_status"), "{wal:?}");
        for name in CONTENT_OF {
            assert_same(&self.data.join(name), &self.spare.join(name), context);
        }
        assert!(assert_manifest(&self.data, context) > 800, "{context}");
        for name in ["walmgr.pages", "global/pg_control.copied"] {
            assert!(!self.data.join(name).exists(), "{context}: {name}");
        }
    }

    /// The old directory is there, byte for byte.
    #[track_caller]
    pub fn assert_old(&self, place: &Path, context: &str) {
        assert_same(place, &self.old, context);
    }

    fn start(&self) -> Cluster {
        let mut server = Cluster::on_directory(self.site.cluster().major(), &self.data);
        server.start();
        server
    }
}

pub fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("-a").arg(from).arg(to)).unwrap();
}

/// How many names there are below a directory, if it is there.
fn count(folder: &Path) -> usize {
    let found = Command::new("find").arg(folder).output().unwrap();
    found.stdout.iter().filter(|byte| **byte == b'\n').count()
}

#[test]
fn fault_227_what_differs_comes_over_the_wire_and_nothing_else() {
    let _user = skip_unless!(crate::support::place::server_user());
    let mut dice = Dice::thrown("an old directory on the master");
    let site = OldScene::site(Site::builder().proxied());
    let data = site.home().join("restored");
    let scene = OldScene::new(site, &data, &mut dice);
    let later = {
        scene.site.cluster().pgbench(&["-n", "-t", "50"]);
        let content = scene.site.cluster().psql(CONTENT);
        drain(&scene.site);
        content
    };
    let size = run(Command::new("du").arg("-sb").arg(&scene.spare)).unwrap();
    let size: usize = size.split('\t').next().unwrap().parse().unwrap();
    for words in [&BESIDE[..], &IN_PLACE] {
        scene.begin();
        let before = scene.site.proxy().recordings().len();
        let output = scene.restore(words);
        assert!(
            output.stderr.contains("were taken over"),
            "{}",
            output.stderr
        );
        output.succeed();
        scene.assert_restored(&format!("{words:?}"));
        let connections = &scene.site.proxy().recordings()[before..];
        let arrived: usize = connections.iter().map(|it| it.to_client.len()).sum();
        println!("{words:?}: {arrived} bytes for a set of {size}");
        // A tenth of the files are gone or second names, and the manifest comes besides.
        assert!(arrived < size / 2, "{arrived} of {size}");
        match words == BESIDE {
            true => scene.assert_old(&scene.aside(), "beside"),
            // Only what was not taken over, which the dice decide.
            false => assert!(count(&scene.aside()) < count(&scene.old) / 2),
        }
        let server = scene.start();
        wait_for("the master's data", PATIENCE, || {
            (server.try_psql(CONTENT).ok()? == later).then_some(())
        });
        assert_eq!(server.psql("SELECT count(*) FROM in_space"), "20000");
    }
}

#[test]
fn fault_227_a_link_that_is_cut_again_and_again_costs_no_page_twice() {
    let _user = skip_unless!(crate::support::place::server_user());
    let mut dice = Dice::thrown("a difference over a bad link");
    let builder = Site::builder().proxied().master_set("push_timeout", "60");
    let site = OldScene::site(builder);
    let data = site.home().join("restored");
    let scene = OldScene::new(site, &data, &mut dice);
    for words in [&BESIDE[..], &IN_PLACE] {
        scene.begin();
        // A file of the old directory that is of no use, so that enough is missing.
        for file in files_below(&scene.data, &["base"]) {
            if file.metadata().unwrap().len() > 1 << 20 {
                fs::write(&file, "").unwrap();
            }
        }
        use crate::support::proxy::{Direction, Fault};
        let before = scene.site.proxy().recordings().len();
        let cut = Fault::Cut { at_byte: 2 << 20 };
        scene.site.proxy().set_faults([(Direction::ToClient, cut)]);
        let output = scene.restore(words);
        scene.site.proxy().set_faults([]);
        output.succeed();
        let connections = scene.site.proxy().recordings().len() - before;
        assert!(connections > 4, "{connections}");
        scene.assert_restored(&format!("{words:?}"));
    }
}

#[test]
fn fault_227_the_master_itself_comes_back_by_difference_and_goes_on() {
    let _user = skip_unless!(crate::support::place::server_user());
    for major in Cluster::available_majors() {
        let cluster = Cluster::builder().major(major).conf("archive_mode", "on");
        let mut site = Site::builder().cluster(cluster.start()).build();
        site.master_command(&["setup"]).succeed();
        site.cluster().pgbench(&["-i", "-q", "-s", "1"]);
        site.master_command(&["backup"]).succeed();
        site.cluster().pgbench(&["-n", "-t", "100"]);
        let content = site.cluster().psql(CONTENT);
        drain(&site);
        let data = site.data().to_owned();
        let words = ["restore", "data.master", data.to_str().unwrap(), "--delta"];
        let running = site.master_command(&words);
        running.fail_last(1, "runs in");
        site.cluster_mut().stop(crate::support::StopMode::Fast);
        let mut dice = Dice::thrown("a master whose disk lies");
        let files = files_below(&data, &["base"]);
        for _ in 0..20 {
            crate::support::old_data::flip(&files[dice.index(files.len())], &mut dice);
        }
        let words = [&words[..], &["--in-place"]].concat();
        let output = site.master_command(&words);
        assert!(
            output.stderr.contains("were taken over"),
            "{}",
            output.stderr
        );
        output.succeed();
        assert_manifest(&data, "the master");
        site.cluster_mut().start();
        wait_for("the master's data", PATIENCE, || {
            (site.cluster().try_psql(CONTENT).ok()? == content).then_some(())
        });
        site.cluster().psql("SELECT pg_promote()");
        assert_eq!(site.cluster().psql("SHOW archive_mode"), "on");
        site.cluster().pgbench(&["-n", "-t", "10"]);
        drain(&site);
    }
}

#[test]
fn fault_228_what_a_difference_cannot_go_by_is_refused_untouched() {
    let _user = skip_unless!(crate::support::place::server_user());
    let mut dice = Dice::thrown("refusals on the master");
    let site = OldScene::site(Site::builder());
    let data = site.home().join("restored");
    let scene = OldScene::new(site, &data, &mut dice);
    let set = scene.site.completed_wals().with_file_name("data.master");

    // A file of the set that is damaged, and needed: found before anything is touched.
    let damaged = set.join("base/1/PG_VERSION");
    let good = fs::read(&damaged).unwrap();
    fs::write(&damaged, "51\n").unwrap();
    fs::write(scene.data.join("base/1/PG_VERSION"), "16\n").unwrap();
    for words in [&BESIDE[..], &IN_PLACE] {
        let output = scene.restore(words);
        assert_eq!(output.code, Some(1), "{}", output.stderr);
        for part in ["base/1/PG_VERSION", "not the manifest's", "is as it was"] {
            assert!(output.stderr.contains(part), "{}", output.stderr);
        }
        assert!(scene.is_startable());
        assert!(!scene.data.with_extension("restoring").exists());
    }
    fs::write(&damaged, &good).unwrap();

    // A set without a manifest says nothing about any file.
    scene.begin();
    let (manifest, away) = (set.join("backup_manifest"), set.with_extension("away"));
    fs::rename(&manifest, &away).unwrap();
    scene
        .restore(&IN_PLACE)
        .fail_last(1, "has no backup_manifest");
    fs::rename(&away, &manifest).unwrap();
    scene.assert_old(&scene.data, "no manifest");

    // What is no data directory is not replaced, nor is one on whose way somebody else's directory lies.
    let foreign = scene.site.home().create_dir("foreign");
    fs::write(foreign.join("precious"), "x").unwrap();
    let words = [
        "restore",
        "data.master",
        foreign.to_str().unwrap(),
        "--delta",
    ];
    scene
        .site
        .master_command(&words)
        .fail_last(2, "is not empty");
    assert_eq!(names_in(&foreign), ["precious"]);
    let staging = scene.data.with_extension("restoring");
    fs::create_dir(&staging).unwrap();
    fs::write(staging.join("precious"), "x").unwrap();
    scene.restore(&BESIDE).fail_last(2, "is in the way");
    assert_eq!(names_in(&staging), ["precious"]);
    fs::remove_dir_all(&staging).unwrap();
    scene.assert_old(&scene.data, "in the way");

    // Another cluster's directory.
    let other = Cluster::builder().start();
    let control = other.data().join("global/pg_control");
    fs::copy(&control, scene.data.join("global/pg_control")).unwrap();
    for words in [&BESIDE[..], &IN_PLACE] {
        scene.restore(words).fail_last(2, "of another cluster");
        assert_same(
            &control,
            &scene.data.join("global/pg_control"),
            "another cluster",
        );
    }
}

#[test]
fn fault_228_a_second_caller_is_refused_and_harms_nothing() {
    let _user = skip_unless!(crate::support::place::server_user());
    skip_unless!(Strace::available());
    let mut dice = Dice::thrown("two callers");
    let site = OldScene::site(Site::builder());
    let data = site.home().join("restored");
    let scene = OldScene::new(site, &data, &mut dice);
    for words in [&BESIDE[..], &IN_PLACE] {
        scene.begin();
        // The first one waits where it has the new directory already.
        let strace = Strace::available()
            .unwrap()
            .unprivileged()
            .inject("syncfs:delay_enter=5s:when=1");
        let command = scene.site.master_walmgr(&scene.words(words));
        let mut first = strace.wrap(&command).spawn().unwrap();
        wait_for("the first caller", PATIENCE, || {
            let staging = scene.data.with_extension("restoring");
            staging.join("backup_manifest").exists().then_some(())
        });
        for second in [&BESIDE[..], &IN_PLACE] {
            scene
                .restore(second)
                .fail_last(1, "another restore is running");
        }
        assert!(first.wait().unwrap().success());
        scene.assert_restored(&format!("{words:?}"));
    }
}
