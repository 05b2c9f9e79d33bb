//! The old manuals, walked through: every command, option and setting that they name, by its name, on a real server.
//! Never takes a name for granted: what was not typed or set is told as missing. Invariant: a name works, or has a
//! successor that is named when it is typed, or a note that says what became of it.

mod names;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::restore::{CONTENT, PATIENCE, Scene};
use crate::support::place::{give_to_server, walmgr};
use crate::support::{Cluster, Output, StopMode, wait_for};

/// What became of a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Works,
    Successor,
    Note,
}

impl Fate {
    fn word(self) -> &'static str {
        match self {
            Fate::Works => "works",
            Fate::Successor => "successor",
            Fate::Note => "note",
        }
    }
}

/// The walk so far.
#[derive(Default)]
struct Walk(BTreeMap<String, Fate>);

impl Walk {
    fn found(&mut self, kind: &str, fate: Fate, names: &[&str]) {
        for name in names {
            self.0.insert(format!("{kind} {name}"), fate);
        }
    }

    fn commands(&mut self, names: &[&str]) {
        self.found("command", Fate::Works, names);
    }

    fn options(&mut self, names: &[&str]) {
        self.found("option", Fate::Works, names);
    }

    /// Prints the list, and fails for a name that is in none.
    fn end(self) {
        let all = [
            ("command", &names::COMMANDS[..]),
            ("option", &names::OPTIONS),
            ("setting of the master", &names::MASTER_SETTINGS),
            ("setting of the standby", &names::STANDBY_SETTINGS),
            ("setting of Skytools", &names::FRAMEWORK_SETTINGS),
        ];
        let all: Vec<String> = all
            .iter()
            .flat_map(|(kind, names)| names.iter().map(move |name| format!("{kind} {name}")))
            .collect();
        for name in &all {
            let fate = self.0.get(name).map_or("MISSING", |fate| fate.word());
            println!("{fate:>10}  {name}");
        }
        let missing: Vec<&String> = all
            .iter()
            .filter(|name| !self.0.contains_key(*name))
            .collect();
        assert!(missing.is_empty(), "not exercised: {missing:?}");
        let unknown: Vec<&String> = self.0.keys().filter(|name| !all.contains(name)).collect();
        assert!(unknown.is_empty(), "in no manual: {unknown:?}");
    }
}

/// A success, and never an answer that the command is for a later version.
#[track_caller]
fn well(output: &Output) -> String {
    let later = ["does not have", "not in this version"];
    assert!(
        later.iter().all(|part| !output.stderr.contains(part)),
        "{}",
        output.stderr
    );
    output.succeed();
    format!("{}{}", output.stdout, output.stderr)
}

fn without_file(walk: &mut Walk) {
    let typed = |word: &str| well(&Output::of(walmgr().arg(word)));
    for word in ["-h", "--help"] {
        assert!(typed(word).contains("config.ini"));
    }
    for word in ["-V", "--version"] {
        assert!(typed(word).starts_with("walmgr "));
    }
    assert!(typed("--ini").contains("master_data = "));
    walk.options(&["-h", "--help", "-V", "--version", "--ini"]);
    for (words, part) in [
        (
            &["--init-master", "--slave", "a", "--ssh-keygen"][..],
            "identity",
        ),
        (&["--init-slave", "--ssh-add-key", "/k"], "authorize"),
        (&["--ssh-remove-key", "k"], "revoke"),
    ] {
        let output = Output::of(walmgr().args(words));
        assert!(output.fail(2).contains(part));
    }
    let of_ssh = ["--ssh-keygen", "--ssh-add-key", "--ssh-remove-key"];
    walk.found("option", Fate::Successor, &of_ssh);
}

/// `--init-master`, `--init-slave` and what goes with them, in a home of its own.
fn init(walk: &mut Walk, scene: &Scene) {
    let home = scene.site.home().create_dir("typist");
    let password = home.join("password");
    fs::write(&password, "secret\n").unwrap();
    give_to_server(&password);
    let typed = |words: &[&str]| {
        let mut command = walmgr();
        well(&Output::of(command.args(words).env("HOME", &home)))
    };
    let data = scene.site.data().to_str().unwrap();
    typed(&["--init-master", "--slave", "standby:7432", "--pgdata", data]);
    assert!(home.join("conf/wal-master.ini").exists());
    let conf = home.join("etc");
    let conf = conf.to_str().unwrap();
    let conninfo = "host=db1 user=rep";
    let password = password.to_str().unwrap();
    typed(&[
        "--init-slave",
        "--config-dir",
        conf,
        "--primary-conninfo",
        conninfo,
        "--add-password",
        password,
    ]);
    let lines = || fs::read_to_string(home.join(".pgpass")).unwrap();
    assert_eq!(lines(), "db1:5432:replication:rep:secret\n");
    typed(&["--remove-password", "--config-dir", conf]);
    assert_eq!(lines(), "");
    walk.commands(&["--init-master", "--init-slave", "--remove-password"]);
    walk.options(&[
        "--slave",
        "--pgdata",
        "--config-dir",
        "--primary-conninfo",
        "--add-password",
    ]);
}

/// A site with every setting set that the manuals name.
fn furnish(scene: &mut Scene) -> PathBuf {
    let home = scene.site.home().path().to_path_buf();
    let at = |name: &str| home.join(name).display().to_string();
    let bin = scene.site.cluster().bin().display().to_string();
    let conninfo = scene.site.cluster().conninfo();
    let (data, log) = (
        scene.site.data().display().to_string(),
        at("master/server.log"),
    );
    let restart = format!(
        "command -v pg_ctl >{}; pg_ctl -D {data} -l {log} -m fast -w restart",
        at("master/found")
    );
    let port = scene.site.address().port();
    for (key, value) in [
        ("job_name", "walk-master"),
        ("logfile", &at("master/walk.log")),
        ("pidfile", &at("master/walk.pid")),
        ("use_skylog", "1"),
        ("master_config", &format!("{data}/postgresql.conf")),
        ("master_bin", &bin),
        ("master_restart_cmd", &restart),
        ("slave", &format!("127.0.0.1:{port}:/walshipping")),
        ("slave_config", "/etc/standby.ini"),
        ("walmgr_data", "/walshipping"),
        ("completed_wals", "/walshipping/logs.complete"),
        ("partial_wals", "/walshipping/logs.partial"),
        ("full_backup", "/walshipping/data.master"),
        ("config_backup", "/walshipping/config.backup"),
        ("loop_delay", "0.1"),
        ("use_xlog_functions", "1"),
        ("compression", "1"),
        ("keep_symlinks", "1"),
        ("hot_standby", "1"),
        ("command_interval", "1"),
        (
            "periodic_command",
            &format!("touch {}", at("master/periodic-ran")),
        ),
    ] {
        scene.site.master_set(key, value);
    }
    for folder in ["config.backup", "etc", "logs"] {
        scene.site.home().create_dir(folder);
    }
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        let copy = home.join("config.backup").join(name);
        fs::copy(scene.site.data().join(name), &copy).unwrap();
        give_to_server(&copy);
    }
    let archive = scene.site.archive_folder().display().to_string();
    for (key, value) in [
        ("job_name", "walk-standby"),
        ("logfile", &at("standby/walk.log")),
        ("pidfile", &at("standby/walk.pid")),
        ("use_skylog", "1"),
        ("slave_bin", &bin),
        ("slave_config_dir", &at("etc")),
        ("slave", &archive),
        ("slave_pg_xlog", &at("standby-wal")),
        ("config_backup", &at("config.backup")),
        ("full_backup", &format!("{archive}/data.master")),
        ("keep_backups", "1"),
        ("keep_minimum_age", "0"),
        ("keep_symlinks", "1"),
        ("backup_datadir", "no"),
        (
            "archive_command",
            &format!("echo $BACKUPDIR >>{}", at("standby/rotated")),
        ),
        (
            "primary_conninfo",
            &format!("{conninfo} application_name=walk"),
        ),
    ] {
        scene.site.standby_set(key, value);
    }
    for name in names::FRAMEWORK_SETTINGS {
        scene.site.standby_set(name, "1");
    }
    // What `slave_bin` is for: the commands find their programs there.
    let start = scene.start_command().replace(&format!("{bin}/"), "");
    scene.site.standby_set("slave_start_cmd", &start);
    for ini in [scene.site.master_ini(), scene.site.standby_ini()] {
        let text = fs::read_to_string(ini).unwrap();
        fs::write(ini, text.replace("/walk.log", "/%(job_name)s.log")).unwrap();
    }
    home
}

fn settings_are_taken(walk: &mut Walk, scene: &mut Scene, home: &Path) {
    let said = well(&scene.site.standby_command(&["-v", "setup"]));
    let note = format!(
        "{} are ignored: they belonged to Skytools",
        names::FRAMEWORK_SETTINGS.join(", ")
    );
    assert!(said.contains(&note), "{said}");
    walk.found(
        "setting of Skytools",
        Fate::Note,
        &names::FRAMEWORK_SETTINGS,
    );
    assert!(said.contains("use_skylog is ignored"), "{said}");
    walk.found("setting of the standby", Fate::Note, &["use_skylog"]);
    scene.site.restart_receiver();
    assert!(home.join("standby/walk.pid").exists());
    assert!(home.join("standby/walk-standby.log").exists());
    walk.found(
        "setting of the standby",
        Fate::Works,
        &["job_name", "logfile", "pidfile"],
    );

    scene.site.cluster().psql("ALTER SYSTEM RESET ALL");
    let conf = scene.site.cluster().config_file();
    let text = fs::read_to_string(&conf).unwrap()
        + "archive_mode = off\nwal_level = minimal\nmax_wal_senders = 0\n";
    fs::write(&conf, text).unwrap();
    scene.site.cluster_mut().restart();
    let kept = fs::read_to_string(&conf)
        .unwrap()
        .replace("max_wal_senders = 0\n", "");
    fs::write(&conf, kept).unwrap();
    let said = well(
        &scene
            .site
            .master_command(&["--verbose", "--set", "compression=22", "setup"]),
    );
    assert_eq!(scene.site.cluster().psql("SHOW wal_level"), "replica");
    assert_eq!(scene.site.cluster().psql("SHOW archive_mode"), "on");
    let found = fs::read_to_string(home.join("master/found")).unwrap();
    assert!(
        found.starts_with(scene.site.cluster().bin().to_str().unwrap()),
        "{found}"
    );
    assert!(home.join("master/walk-master.log").exists());
    for part in [
        "use_skylog is ignored",
        "the path /walshipping is ignored",
        "slave_config is ignored",
        "keep_symlinks is ignored",
        "walmgr_data, completed_wals, partial_wals, full_backup, config_backup ignored",
        "compression = 22 is more than 19",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let ignored = [
        "use_skylog",
        "slave_config",
        "walmgr_data",
        "completed_wals",
        "partial_wals",
        "full_backup",
        "config_backup",
        "keep_symlinks",
    ];
    walk.found("setting of the master", Fate::Note, &ignored);
    let used = [
        "job_name",
        "logfile",
        "master_db",
        "master_data",
        "master_config",
        "master_bin",
        "master_restart_cmd",
        "slave",
        "compression",
        "hot_standby",
    ];
    walk.found("setting of the master", Fate::Works, &used);
    walk.commands(&["standby setup", "master setup"]);
    walk.options(&["-v", "--verbose", "a section [walmgr]"]);
}

fn ships(walk: &mut Walk, scene: &Scene, home: &Path) {
    let master = |words: &[&str]| well(&scene.site.master_command(words));
    master(&["-q", "stop", "--not-really"]);
    master(&["--quiet", "-n", "setup"]);
    walk.options(&["-q", "--quiet", "-n", "--not-really"]);
    master(&["periodic"]);
    assert!(home.join("master/periodic-ran").exists());
    let settings = ["command_interval", "periodic_command"];
    walk.found("setting of the master", Fate::Works, &settings);

    scene.work("10");
    master(&["--set", "loop_delay=1,compression=1", "sync"]);
    assert!(fs::read_dir(scene.site.partial_wals()).unwrap().count() > 1);
    let pid = home.join("master/walk.pid");
    for (start, other, end) in [
        ("-d", "-r", "-s"),
        ("--daemon", "--reload", "--stop"),
        ("-d", "-r", "-k"),
        ("-d", "-r", "--kill"),
    ] {
        master(&[start, "syncdaemon"]);
        assert!(pid.exists());
        master(&["syncdaemon", other]);
        scene.work("5");
        master(&["syncdaemon", end]);
    }
    walk.options(&[
        "-d", "--daemon", "-r", "--reload", "-s", "--stop", "-k", "--kill", "--set",
    ]);
    let settings = ["pidfile", "loop_delay", "use_xlog_functions"];
    walk.found("setting of the master", Fate::Works, &settings);
    // PostgreSQL types this one.
    scene.content();
    let archived = scene
        .site
        .cluster()
        .psql("SELECT archived_count > 0 FROM pg_stat_archiver");
    assert_eq!(archived, "t");
    walk.commands(&[
        "master periodic",
        "master sync",
        "master syncdaemon",
        "master xarchive",
    ]);
}

fn types_records(walk: &mut Walk, scene: &mut Scene) {
    // The records since the last segment, by hand, where there is no receiver.
    scene.site.cluster().switch_wal();
    scene.content();
    scene.site.receiver.stop();
    scene.work("5");
    let lsn = scene
        .site
        .cluster()
        .psql("SELECT pg_current_wal_flush_lsn()");
    let name = scene
        .site
        .cluster()
        .psql(&format!("SELECT pg_walfile_name('{lsn}')"));
    let sql = format!("SELECT file_offset FROM pg_walfile_name_offset('{lsn}')");
    let end = scene.site.cluster().psql(&sql);
    let mut bytes = fs::read(scene.site.data().join("pg_wal").join(&name)).unwrap();
    bytes.truncate(end.parse().unwrap());
    let input = scene.site.home().write("typist/records", bytes);
    let mut command = scene
        .site
        .standby_walmgr(&["xpartialsync", &name, "0", &end]);
    let typed = command.stdin(File::open(input).unwrap()).output().unwrap();
    well(&typed.into());
    walk.commands(&["standby xpartialsync"]);
    scene.site.start_receiver();
}

fn backs_up(walk: &mut Walk, scene: &Scene, home: &Path) {
    let master = |words: &[&str]| well(&scene.site.master_command(words));
    let standby = |words: &[&str]| well(&scene.site.standby_command(words));
    master(&["backup"]);
    master(&["backup"]);
    let rotated = fs::read_to_string(home.join("standby/rotated")).unwrap();
    assert!(rotated.contains("data.master"), "{rotated}");
    for listed in [master(&["listbackups"]), standby(&["listbackups"])] {
        assert!(listed.contains("data.master"), "{listed}");
    }
    let settings = ["keep_backups", "archive_command", "full_backup"];
    walk.found("setting of the standby", Fate::Works, &settings);
    standby(&["xlock"]);
    let refused = scene.site.master_command(&["backup"]);
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    standby(&["xrelease"]);
    standby(&["xpurgewals"]);
    walk.commands(&[
        "master backup",
        "master listbackups",
        "standby listbackups",
        "standby xlock",
        "standby xrelease",
        "standby xpurgewals",
    ]);
    let again = home.join("again");
    master(&["restore", "data.master", again.to_str().unwrap()]);
    assert!(again.join("standby.signal").exists());
    walk.commands(&["master restore SET DST"]);
    let other = home.join("other");
    standby(&["restore", "data.master", other.to_str().unwrap()]);
    assert!(other.join("standby.signal").exists());
    walk.commands(&["standby restore SRC DST"]);
    fs::remove_dir_all(other).unwrap();
}

fn replays(walk: &mut Walk, scene: &Scene, home: &Path) {
    let master = |words: &[&str]| well(&scene.site.master_command(words));
    let standby = |words: &[&str]| well(&scene.site.standby_command(words));
    let streams = || {
        wait_for("the stream", PATIENCE, || {
            let sql = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'walk' AND state = 'streaming' \
                AND flush_lsn IS NOT NULL";
            (scene.site.cluster().psql(sql) == "1").then_some(())
        });
    };
    standby(&["restore", "data.master"]);
    streams();
    let data = scene.data();
    assert_eq!(
        fs::read_link(data.join("pg_wal")).unwrap(),
        home.join("standby-wal")
    );
    assert!(home.join("etc/pg_hba.conf").exists());
    // A log behind a link, as Debian had it.
    let log = data.join("log");
    let _ = fs::remove_dir_all(&log);
    std::os::unix::fs::symlink(home.join("logs"), &log).unwrap();
    // A master that does nothing never ends the segment whose first records were streamed.
    std::thread::scope(|scope| {
        let backup = scope.spawn(|| standby(&["backup"]));
        while !backup.is_finished() {
            scene.site.cluster().switch_wal();
            std::thread::sleep(Duration::from_millis(500));
        }
    });
    walk.commands(&["standby backup"]);
    standby(&["restore"]);
    streams();
    assert_eq!(fs::read_link(&log).unwrap(), home.join("logs"));
    assert!(!data.with_extension("1").exists(), "backup_datadir = no");
    walk.commands(&["standby restore SRC", "standby restore"]);
    let settings = [
        "slave_data",
        "slave_bin",
        "slave_config_dir",
        "slave_stop_cmd",
        "slave_start_cmd",
        "slave_pg_xlog",
        "config_backup",
        "keep_symlinks",
        "backup_datadir",
        "primary_conninfo",
    ];
    walk.found("setting of the standby", Fate::Works, &settings);

    master(&["synch-standby", "walk"]);
    assert!(
        scene
            .site
            .cluster()
            .psql("SHOW synchronous_standby_names")
            .contains("walk")
    );
    master(&["synch-standby", ""]);
    let pgdata = scene.site.data().to_str().unwrap().to_owned();
    well(&Output::of(walmgr().args([
        "--synch-standby",
        "",
        "--pgdata",
        &pgdata,
    ])));
    walk.commands(&["master synch-standby", "--synch-standby"]);

    standby(&["pause"]);
    standby(&["continue"]);
    let content = scene.content();
    scene.wait_until_standby_has(&content);
    let mut names = scene.site.archived_names();
    names.retain(|name| name.len() == 24);
    let copy = home.join("typist/copy");
    standby(&["xrestore", &names[0], copy.to_str().unwrap()]);
    assert_eq!(fs::read(&copy).unwrap(), scene.site.archived(&names[0]));
    walk.commands(&["standby pause", "standby continue", "standby xrestore"]);
    let folders = ["slave", "walmgr_data", "completed_wals", "partial_wals"];
    walk.found("setting of the standby", Fate::Works, &folders);

    standby(&["createslave"]);
    streams();
    walk.commands(&["standby createslave"]);
    let content = scene.content();
    scene.wait_until_standby_has(&content);
    standby(&["boot"]);
    assert_eq!(scene.standby.psql(CONTENT), content);
    walk.commands(&["standby boot"]);
}

fn administers(walk: &mut Walk, scene: &mut Scene) {
    well(&scene.site.master_command(&["backup"]));
    well(&scene.site.standby_command(&["xrotate"]));
    walk.commands(&["standby xrotate"]);
    scene.site.receiver.stop();
    scene.standby.stop(StopMode::Fast);
    well(&scene.site.master_command(&["stop"]));
    assert_eq!(scene.site.cluster().psql("SHOW archive_mode"), "off");
    for (ini, cleaned) in [
        (
            scene.site.master_ini(),
            scene.site.master_command(&["cleanup", "--force"]),
        ),
        (
            scene.site.standby_ini(),
            scene.site.standby_command(&["cleanup", "--force"]),
        ),
    ] {
        well(&cleaned);
        assert!(!ini.exists());
    }
    assert!(!scene.site.archived_names().is_empty(), "an archive stays");
    walk.commands(&["master stop", "master cleanup", "standby cleanup"]);
}

/// The sections that walmgr 2 had, one a side.
fn sections(walk: &mut Walk, scene: &Scene) {
    for (section, ini, name) in [
        (
            "[wal-master]",
            scene.site.master_ini(),
            "a section [wal-master]",
        ),
        (
            "[wal-slave]",
            scene.site.standby_ini(),
            "a section [wal-slave]",
        ),
    ] {
        let text = fs::read_to_string(ini).unwrap();
        fs::write(ini, text.replacen("[walmgr]", section, 1)).unwrap();
        well(&Output::of(walmgr().arg(ini).args(["listbackups"])));
        fs::write(ini, text).unwrap();
        walk.options(&[name]);
    }
}

#[test]
fn fault_168_every_name_of_the_old_manuals_works_or_is_told_of() {
    skip_unless!(Cluster::available(15));
    let mut walk = Walk::default();
    without_file(&mut walk);
    let mut scene = Scene::new(15);
    init(&mut walk, &scene);
    let home = furnish(&mut scene);
    settings_are_taken(&mut walk, &mut scene, &home);
    sections(&mut walk, &scene);
    ships(&mut walk, &scene, &home);
    types_records(&mut walk, &mut scene);
    backs_up(&mut walk, &scene, &home);
    replays(&mut walk, &scene, &home);
    administers(&mut walk, &mut scene);
    walk.end();
}
