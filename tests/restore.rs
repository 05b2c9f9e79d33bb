//! Backup sets that are restored on the standby: moved, copied, replayed, booted.
//! Never restores a set that walmgr made: each is a plain copy of the master. Invariant: a restored
//! server has the master's data, and what is refused or killed leaves everything as it was.

mod delta;
mod exact_targets;
pub mod kills;
mod listed;
mod power;
mod purge;
mod refusals;
mod settings;
mod streaming;
mod targets;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::load::drain;
use crate::support::backup_set::{make_set, set_path};
use crate::support::place::give_to_server;
use crate::support::{Cluster, Output, Site, StopMode, wait_for};

pub const PATIENCE: Duration = Duration::from_secs(60);

pub const CONTENT: &str = "SELECT (SELECT md5(string_agg(a::text, ',' ORDER BY aid)) FROM pgbench_accounts a), \
     (SELECT md5(string_agg(h::text, ',' ORDER BY h::text)) FROM pgbench_history h), \
     (SELECT sum(tbalance) FROM pgbench_tellers)";

/// A master with pgbench's tables that archives, and the server that will be restored.
pub struct Scene {
    pub standby: Cluster,
    pub site: Site,
}

impl Scene {
    pub fn new(major: u8) -> Scene {
        Scene::of(Cluster::builder().major(major))
    }

    pub fn of(builder: crate::support::cluster::Builder) -> Scene {
        Scene::placed(builder, None)
    }

    /// The same with archive and `slave_data` in this folder.
    pub fn placed(builder: crate::support::cluster::Builder, folder: Option<&Path>) -> Scene {
        let cluster = builder
            .conf("archive_mode", "on")
            .conf("wal_level", "replica")
            .start();
        let mut builder = Site::builder().cluster(cluster);
        if let Some(folder) = folder {
            builder = builder.archive(&folder.join("archive"));
        }
        let mut site = builder.build();
        site.master_command(&["setup"]).succeed();
        site.cluster().pgbench(&["-i", "-q", "-s", "1"]);
        let data = folder.unwrap_or(site.home().path()).join("standby-data");
        let standby = Cluster::on_directory(site.cluster().major(), &data);
        site.standby_set("slave_data", &data.display().to_string());
        let scene = Scene { standby, site };
        scene.with_commands()
    }

    /// The commands that stop and start the standby, by pg_ctl.
    pub fn with_commands(mut self) -> Scene {
        let start = self.start_command();
        let (pg_ctl, data) = (self.standby.bin().join("pg_ctl"), self.standby.data());
        let stop = format!("{} -D {} -m fast -w stop", pg_ctl.display(), data.display());
        self.site.standby_set("slave_start_cmd", &start);
        self.site.standby_set("slave_stop_cmd", &stop);
        self
    }

    /// What starts the standby.
    pub fn start_command(&self) -> String {
        let pg_ctl = self.standby.bin().join("pg_ctl");
        let (pg_ctl, data) = (pg_ctl.display(), self.standby.data().display());
        let log = self.site.home().join("standby.log");
        let options = format!(
            "-c port={} -c listen_addresses=127.0.0.1 -c unix_socket_directories={} -c logging_collector=off",
            self.standby.port(),
            self.standby.home().display()
        );
        format!(
            "{pg_ctl} -D {data} -l {} -o '{options}' -w start",
            log.display()
        )
    }

    pub fn restore(&self, words: &[&str]) -> Output {
        let words = [&["restore"], words].concat();
        let output = self.site.standby_command(&words);
        if output.code != Some(0) {
            println!("{}\n{}", output.stderr, self.standby_log());
        }
        output
    }

    pub fn standby_log(&self) -> String {
        fs::read_to_string(self.site.home().join("standby.log")).unwrap_or_default()
    }

    pub fn data(&self) -> PathBuf {
        self.standby.data().to_path_buf()
    }

    pub fn work(&self, transactions: &str) {
        self.site.cluster().pgbench(&["-n", "-t", transactions]);
    }

    /// What the master has now, all of it archived.
    pub fn content(&self) -> String {
        let content = self.site.cluster().psql(CONTENT);
        drain(&self.site);
        content
    }

    pub fn wait_until_standby_has(&self, content: &str) {
        wait_for("the master's data", PATIENCE, || {
            let found = self.standby.try_psql(CONTENT).ok()?;
            (found == content).then_some(())
        });
    }

    pub fn boot(&self) -> String {
        let output = self.site.standby_command(&["boot"]);
        if output.code != Some(0) {
            println!("{}\n{}", output.stderr, self.standby_log());
        }
        output.succeed()
    }

    pub fn listed(&self) -> Vec<String> {
        let json = self.site.standby_command(&["listbackups", "--json"]);
        let sets: serde_json::Value = serde_json::from_str(&json.succeed()).unwrap();
        let sets = sets.as_array().unwrap().iter();
        sets.map(|set| set["set"].as_str().unwrap().to_owned())
            .collect()
    }
}

/// Names in a directory, sorted.
pub fn names_in(path: &Path) -> Vec<String> {
    let names = fs::read_dir(path).unwrap();
    let mut names: Vec<String> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn newest_set_moves_replays_pauses_and_boots_on_every_version() {
    for major in Cluster::available_majors() {
        let scene = Scene::new(major);
        let set = make_set(&scene.site, "data.master");
        let listed = scene.site.standby_command(&["listbackups"]).succeed();
        assert!(listed.contains("FullBackup"), "{listed}");
        assert_eq!(scene.listed(), ["data.master"]);
        scene.work("100");
        scene.restore(&[]).succeed();
        assert!(!set.exists(), "it was copied");
        assert_eq!(scene.listed(), [""; 0]);
        let content = scene.content();
        scene.wait_until_standby_has(&content);
        assert_eq!(scene.standby.psql("SHOW archive_mode"), "off");
        assert_eq!(scene.standby.psql("SHOW wal_retrieve_retry_interval"), "1s");
        assert!(scene.data().join("standby.signal").exists());

        scene.site.standby_command(&["pause"]).succeed();
        scene.work("100");
        let content = scene.content();
        std::thread::sleep(Duration::from_millis(1500));
        assert_ne!(scene.standby.psql(CONTENT), content);
        scene.site.standby_command(&["continue"]).succeed();
        scene.wait_until_standby_has(&content);
        let said = scene.boot();
        assert!(said.contains("open on timeline 2"), "{said}");
        assert_eq!(scene.standby.psql(CONTENT), content);
    }
}

#[test]
fn a_named_set_is_copied_and_the_directory_before_it_is_kept() {
    skip_unless!(Cluster::available(15));
    let mut scene = Scene::new(15);
    make_set(&scene.site, "data.master.0");
    scene.work("50");
    make_set(&scene.site, "data.master");
    for (round, set) in ["data.master", "data.master.0"].iter().enumerate() {
        scene.restore(&[set]).succeed();
        assert_eq!(scene.listed(), ["data.master", "data.master.0"]);
        let old = scene.data().with_extension(round.to_string());
        assert_eq!(old.exists(), round > 0, "{}", old.display());
        let content = scene.content();
        scene.wait_until_standby_has(&content);
    }
    // The kept one is a whole directory.
    let old = scene.data().with_extension("1");
    for name in ["global/pg_control", "PG_VERSION", "standby.signal"] {
        assert!(old.join(name).exists(), "{name}");
    }
    scene.site.standby_set("backup_datadir", "no");
    scene.restore(&["data.master"]).succeed();
    assert!(!scene.data().with_extension("2").exists());
    assert!(!scene.data().with_extension("removing").exists());
    let content = scene.content();
    scene.wait_until_standby_has(&content);
}

#[test]
fn a_set_goes_to_another_place_beside_a_standby_that_runs() {
    skip_unless!(Cluster::available(15));
    let scene = Scene::new(15);
    make_set(&scene.site, "data.master");
    scene.restore(&["data.master"]).succeed();
    let other = scene.site.home().join("other");
    let before = names_in(&scene.data());
    scene
        .restore(&["data.master", other.to_str().unwrap()])
        .succeed();
    assert_eq!(names_in(&scene.data()), before);
    let mut cluster = Cluster::on_directory(15, &other);
    cluster.start();
    let content = scene.content();
    wait_for("the master's data", PATIENCE, || {
        (cluster.try_psql(CONTENT).ok()? == content).then_some(())
    });
    assert!(scene.standby.is_running());
    scene.wait_until_standby_has(&content);
}

#[test]
fn not_really_says_what_it_would_do_and_changes_nothing() {
    skip_unless!(Cluster::available(15));
    let scene = Scene::new(15);
    make_set(&scene.site, "data.master");
    let said = scene.restore(&["-n"]).succeed();
    let data = scene.data();
    let expected = format!(
        "would move data.master to {}, to recover as a standby",
        data.display()
    );
    assert_eq!(said, expected);
    let said = scene.restore(&["-n", "data.master"]).succeed();
    assert!(said.starts_with("would copy data.master to "), "{said}");
    assert!(!data.exists());
    assert_eq!(scene.listed(), ["data.master"]);
}

const SPACES: [&str; 2] = ["kept", "mapped"];

/// Tablespaces of the master with a table in each, and where they are.
fn make_spaces(scene: &Scene) -> [PathBuf; 2] {
    SPACES.map(|name| {
        let path = scene.site.home().create_dir(name);
        let cluster = scene.site.cluster();
        let location = path.display();
        cluster.psql(&format!("CREATE TABLESPACE {name} LOCATION '{location}'"));
        cluster.psql(&format!(
            "CREATE TABLE in_{name} TABLESPACE {name} AS SELECT generate_series(1, 1000) AS n"
        ));
        path
    })
}

/// How many rows the two tables have.
const ROWS: &str = "SELECT (SELECT count(*) FROM in_kept) + (SELECT count(*) FROM in_mapped)";

/// Takes the configuration files out of a set, as Debian has them elsewhere.
fn configure_as_debian(scene: &mut Scene, set: &Path) {
    let saved = set_path(&scene.site, "config.backup");
    let config = scene.site.home().create_dir("config");
    fs::create_dir(&saved).unwrap();
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        fs::rename(set.join(name), saved.join(name)).unwrap();
    }
    give_to_server(&saved);
    let start = format!(
        "{}/pg_ctl -D {data} -l {} -w start -o '-c config_file={config}/postgresql.conf \
         -c hba_file={config}/pg_hba.conf -c ident_file={config}/pg_ident.conf \
         -c data_directory={data} -c port={} -c unix_socket_directories={}'",
        scene.standby.bin().display(),
        scene.site.home().join("standby.log").display(),
        scene.standby.port(),
        scene.standby.home().display(),
        data = scene.data().display(),
        config = config.display(),
    );
    scene.site.standby_set("slave_start_cmd", &start);
    for (key, path) in [("config_backup", saved), ("slave_config_dir", config)] {
        scene.site.standby_set(key, path.to_str().unwrap());
    }
}

#[test]
fn tablespaces_wal_and_configuration_go_where_the_settings_say() {
    skip_unless!(Cluster::available(15));
    let mut scene = Scene::new(15);
    let [_, mapped] = make_spaces(&scene);
    let set = make_set(&scene.site, "data.master");
    configure_as_debian(&mut scene, &set);
    let wal = scene.site.home().join("wal");
    scene
        .site
        .standby_set("slave_pg_xlog", wal.to_str().unwrap());
    let new = scene.site.home().join("new space");
    let mapping = format!(
        "--tablespace-mapping={}={}",
        mapped.display(),
        new.display()
    );
    for set in [&["data.master"][..], &[]] {
        // The second one finds the space of the first one taken.
        if set.is_empty() {
            scene.restore(&[&mapping]).fail_last(2, "is not empty");
            scene.standby.stop(StopMode::Fast);
            fs::remove_dir_all(&new).unwrap();
        }
        scene.restore(&[set, &[&mapping]].concat()).succeed();
        let content = scene.content();
        scene.wait_until_standby_has(&content);
        assert_eq!(scene.standby.psql(ROWS), "2000");
        let location = "SELECT pg_tablespace_location(oid) FROM pg_tablespace \
                        WHERE spcname IN ('kept', 'mapped') ORDER BY spcname";
        let places = scene.standby.psql(location);
        let tmpspc = scene.data().join("tmpspc");
        assert!(places.starts_with(tmpspc.to_str().unwrap()), "{places}");
        assert!(places.ends_with(new.to_str().unwrap()), "{places}");
        assert_eq!(fs::read_link(scene.data().join("pg_wal")).unwrap(), wal);
    }
    assert_eq!(scene.standby.psql("SHOW archive_command"), "(disabled)");
    // The old directory has its own WAL and tablespace still.
    let old = scene.data().with_extension("1");
    let old_wal = fs::read_link(old.join("pg_wal")).unwrap();
    assert_eq!(old_wal, wal.with_extension("1"));
    let [link] = &names_in(&old.join("tmpspc"))[..] else {
        panic!("{old:?}");
    };
    let link = fs::read_link(old.join("pg_tblspc").join(link)).unwrap();
    assert!(link.starts_with(&old), "{link:?}");
    // Nothing of the master's own was touched.
    assert_eq!(scene.site.cluster().psql(ROWS), "2000");
    scene.boot();
    scene.standby.psql("INSERT INTO in_mapped VALUES (1)");
}
