//! What whole files load to, and how they are refused.
//! Never needs a path named in them to exist. Invariant: the manual's own files load unchanged.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::keys::{KEYS, Side};
use super::sample::{InitMaster, InitStandby};
use super::*;

fn try_load(text: &str, set: &str) -> std::result::Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("main.ini");
    std::fs::write(&path, text).unwrap();
    let overrides = match set {
        "" => Vec::new(),
        set => parse_overrides(set).map_err(|error| error.to_string())?,
    };
    load(&path, &overrides).map_err(|error| {
        assert_eq!(error.kind(), Kind::Config);
        error
            .to_string()
            .replace(path.to_str().unwrap(), "main.ini")
    })
}

fn master(text: &str) -> MasterConfig {
    try_load(text, "").unwrap().into_master("setup").unwrap()
}

fn standby(text: &str) -> StandbyConfig {
    try_load(text, "")
        .unwrap()
        .into_standby("receiver")
        .unwrap()
}

fn refused(text: &str) -> String {
    try_load(text, "").unwrap_err()
}

const MASTER: &str = "[walmgr]\nmaster_data = /data\nslave = localhost\n";
const STANDBY: &str = "[walmgr]\nwalmgr_data = /archive\nslave_data = /data\n";

#[test]
fn the_manuals_master_file_loads_unchanged() {
    let config = master(include_str!("testdata/manual-master.ini"));
    assert_eq!(config.job_name, "main");
    assert!(config.logfile.unwrap().ends_with("master.log"));
    assert_eq!(
        config.pidfile.unwrap(),
        config.path.with_file_name("master.pid")
    );
    assert_eq!(config.master_db, "dbname=template1");
    assert_eq!(
        config.master_data,
        Path::new("/var/lib/postgresql/8.0/main")
    );
    assert_eq!(
        config.master_config,
        Path::new("/etc/postgresql/8.0/main/postgresql.conf")
    );
    assert_eq!(
        (config.slave.host.as_str(), config.slave.port),
        ("slave", 7432)
    );
    let base = "/var/lib/postgresql/walshipping";
    assert_eq!(config.slave.ignored_path.as_deref(), Some(base));
    assert_eq!(
        config.ignored_folders[0],
        (
            "completed_wals".to_owned(),
            format!("slave:{base}/logs.complete")
        )
    );
    assert_eq!(config.loop_delay, Duration::from_secs(10));
    assert!(config.use_xlog_functions);
    assert_eq!(config.compression, 1);
    assert!(config.notes[0].contains(&format!(":7: slave: the path {base} is ignored")));
    assert!(config.notes[1].contains("completed_wals, partial_wals, full_backup ignored"));
    assert_eq!(config.notes.len(), 2);
}

#[test]
fn the_manuals_slave_file_loads_unchanged() {
    let config = standby(include_str!("testdata/manual-slave.ini"));
    let base = Path::new("/var/lib/postgresql/walshipping");
    assert_eq!(
        config.slave_data.as_deref(),
        Some(Path::new("/var/lib/postgresql/8.0/main"))
    );
    assert_eq!(
        config.slave_stop_cmd.as_deref(),
        Some("/etc/init.d/postgresql-8.0 stop")
    );
    assert_eq!(
        config.slave_start_cmd.as_deref(),
        Some("/etc/init.d/postgresql-8.0 start")
    );
    assert_eq!(config.walmgr_data.as_deref(), Some(base));
    assert_eq!(config.completed_wals, base.join("logs.complete"));
    assert_eq!(config.partial_wals, base.join("logs.partial"));
    assert_eq!(config.full_backup, Some(base.join("data.master")));
    assert_eq!((config.keep_backups, config.backup_datadir), (5, true));
    assert_eq!(config.config_backup, None);
    assert_eq!(config.notes, Vec::<String>::new());
}

#[test]
fn the_walkthroughs_master_file_loads_unchanged() {
    let config = master(include_str!("testdata/walkthrough-master.ini"));
    assert_eq!(config.job_name, "wal-master");
    assert_eq!(
        config.logfile.unwrap(),
        Path::new("/var/log/postgresql/wal-master.log")
    );
    assert_eq!(
        config.pidfile.unwrap(),
        Path::new("/var/run/postgresql/wal-master.pid")
    );
    assert_eq!(config.master_db, "port=5434 dbname=template1");
    assert_eq!(
        config.master_data,
        Path::new("/var/lib/postgresql/9.1/main")
    );
    assert_eq!(
        config.master_bin.unwrap(),
        Path::new("/usr/lib/postgresql/9.1/bin")
    );
    assert_eq!(
        config.master_restart_cmd.unwrap(),
        "pg_ctlcluster 9.1 main restart"
    );
    assert_eq!(config.slave.to_string(), "127.0.0.1:7432");
    assert_eq!(config.slave.ignored_path, None);
    assert_eq!(config.ignored_folders.len(), 5);
    assert_eq!(config.compression, 0);
    assert!(config.keep_symlinks && !config.use_xlog_functions && !config.hot_standby);
    assert_eq!(
        (config.command_interval, config.periodic_command),
        (None, None)
    );
    assert!(config.notes[0].contains("slave_config is ignored"));
}

#[test]
fn the_walkthroughs_standby_file_loads_unchanged() {
    let config = standby(include_str!("testdata/walkthrough-standby.ini"));
    assert_eq!(config.job_name, "wal-standby");
    assert_eq!(
        config.slave_config_dir.unwrap(),
        Path::new("/etc/postgresql/9.1/standby")
    );
    assert_eq!(
        config.slave_bin.unwrap(),
        Path::new("/usr/lib/postgresql/9.1/bin")
    );
    let base = Path::new("/var/lib/postgresql/walshipping/9.1/main");
    assert_eq!(config.config_backup.unwrap(), base.join("config.backup"));
    assert_eq!((config.keep_backups, config.backup_datadir), (0, false));
    assert_eq!(config.archive_command, None);
    assert_eq!(
        config.primary_conninfo.as_deref(),
        Some("host=127.0.0.1 port=5434 user=postgres")
    );
    assert_eq!(config.notes, Vec::<String>::new());
}

#[test]
fn a_file_pasted_with_the_manuals_indentation_loads_the_same() {
    let text = include_str!("testdata/manual-slave.ini");
    let indented: String = text
        .lines()
        .map(|line| format!("           {line}\r\n"))
        .collect();
    let (plain, pasted) = (standby(text), standby(&format!("\u{FEFF}{indented}")));
    assert_eq!(plain.completed_wals, pasted.completed_wals);
    assert_eq!(plain.keep_backups, pasted.keep_backups);
}

#[test]
fn a_short_master_file_gets_the_defaults() {
    let config = master(MASTER);
    assert_eq!(config.master_db, "dbname=postgres");
    assert_eq!(config.master_config, Path::new("/data/postgresql.conf"));
    assert_eq!(config.connect_timeout, Duration::from_secs(10));
    assert_eq!(config.push_timeout, Duration::from_secs(60));
    assert_eq!(config.block_size, 256 << 10);
    assert_eq!((config.compression, config.archive_batch), (0, 1));
    assert_eq!(config.verify_wal, VerifyWal::Records);
    assert_eq!(config.backup_checkpoint, BackupCheckpoint::Fast);
    assert!(config.tls.enabled && !config.tls.allow_plaintext);
    assert_eq!(config.tls.key, config.path.with_file_name("main.key"));
    assert_eq!(
        config.tls.certificate,
        config.path.with_file_name("main.crt")
    );
    assert!(config.path.is_absolute());
}

#[test]
fn a_short_standby_file_gets_the_defaults() {
    let config = standby(STANDBY);
    assert_eq!(config.completed_wals, Path::new("/archive/logs.complete"));
    assert_eq!(config.listen[0].to_string(), "127.0.0.1:7432");
    assert_eq!(
        config.authorized_keys,
        config.path.with_file_name("authorized_keys")
    );
    assert_eq!((config.max_connections, config.keep_backups), (64, 0));
    assert_eq!(config.restore_wait, Duration::from_secs(1));
    assert_eq!(
        (config.on_corrupt, config.log_format),
        (OnCorrupt::Stop, LogFormat::Text)
    );
    assert!(config.backup_datadir && config.metrics_listen.is_empty());
}

#[test]
fn every_setting_takes_its_example_and_its_default() {
    for side in [Side::Master, Side::Standby] {
        for row in keys::rows(side) {
            let base = if side == Side::Master {
                MASTER
            } else {
                STANDBY
            };
            let mut text: String = base
                .lines()
                .filter(|line| !line.starts_with(&format!("{} ", row.name)))
                .map(|line| format!("{line}\n"))
                .collect();
            if row.example.contains("walmgr_data") && side == Side::Master {
                text.push_str("walmgr_data = /archive\n");
            }
            text.push_str(&format!("{} = {}\n", row.name, row.example));
            let config = try_load(&text, "").unwrap_or_else(|error| panic!("{error}"));
            let is_noted = config
                .notes()
                .iter()
                .any(|note| note.contains("does not use it yet"));
            assert_eq!(is_noted, row.is_new && !row.effective(), "{}", row.name);
        }
    }
}

#[test]
fn later_versions_settings_are_accepted_with_a_note() {
    let config = standby(&format!(
        "{STANDBY}metrics_listen = 127.0.0.1:9000\non_corrupt = stall\n"
    ));
    assert_eq!(config.on_corrupt, OnCorrupt::Stall);
    let notes = config.notes.join("\n");
    assert!(notes.contains(":4: metrics_listen is accepted, but this version does not use it yet"));
    assert!(notes.contains(":5: on_corrupt is accepted"));
}

#[test]
fn fault_96_an_unknown_key_is_named_with_the_nearest() {
    assert_eq!(
        refused(&format!("{MASTER}compresion = 1\n")),
        "main.ini:4: compresion: expected a known setting, found an unknown one; \
         did you mean compression?"
    );
    assert!(refused(&format!("{STANDBY}standby_bn = /x\n")).ends_with("did you mean standby_bin?"));
    assert!(
        refused(&format!("{MASTER}colour = red\n")).ends_with("walmgr --ini prints every setting")
    );
}

#[test]
fn fault_96_a_duplicate_key_is_named_with_both_lines() {
    assert_eq!(
        refused(&format!("{MASTER}SLAVE = other\n")),
        "main.ini:4: slave: expected each key once, found it a second time (first on line 3); \
         remove one of the two"
    );
    assert_eq!(
        refused(&format!("{STANDBY}standby_data = /data\n")),
        "main.ini:4: standby_data: expected each key once, found it under two spellings \
         (slave_data on line 3); remove one of the two"
    );
}

#[test]
fn fault_96_wrong_values_say_what_was_expected_and_found() {
    for (line, expected) in [
        (
            "compression = 20",
            "compression: expected a whole number from 0 to 19, found `20`",
        ),
        (
            "compression = high",
            "compression: expected a whole number from 0 to 19, found `high`",
        ),
        (
            "compression =",
            "found nothing; write for example `compression = 0`",
        ),
        (
            "hot_standby = maybe",
            "hot_standby: expected 1, true, yes or on, or 0, false, no or off",
        ),
        (
            "push_timeout = 0",
            "push_timeout: expected more than zero: a time from 1ms to 1d",
        ),
        (
            "connect_timeout = 0s",
            "connect_timeout: expected more than zero",
        ),
        ("loop_delay = 0.0", "loop_delay: expected more than zero"),
        (
            "loop_delay = 10 # seconds",
            "a comment starts with a space and a semicolon",
        ),
        (
            "block_size = 1MB",
            "block_size: expected a size from 4kB to 512kB",
        ),
        (
            "verify_wal = some",
            "verify_wal: expected records or headers or off, found `some`",
        ),
        (
            "slave_fingerprint = MD5:x",
            "`walmgr standby.ini identity` prints it",
        ),
        ("logfile = a\n  b", "logfile: expected a value on one line"),
        (
            "master_db = 100%",
            "master_db: expected %% or %(name)s, found `%`",
        ),
        (
            "logfile = %(log_dir)s/x",
            "%(log_dir)s is a setting that this file does not set",
        ),
    ] {
        let error = refused(&format!("{MASTER}{line}\n"));
        assert!(
            error.starts_with("main.ini:4: ") && error.contains(expected),
            "{error}"
        );
    }
    for (line, expected) in [
        (
            "listen = *:7432",
            "every address of this machine is 0.0.0.0:7432",
        ),
        (
            "max_connections = 0",
            "max_connections: expected a whole number from 1",
        ),
        ("restore_wait = 0", "restore_wait: expected more than zero"),
        (
            "slave = db2:/archive",
            "slave: expected an absolute path, found `db2:/archive`",
        ),
    ] {
        let error = refused(&format!("{STANDBY}{line}\n"));
        assert!(
            error.starts_with("main.ini:4: ") && error.contains(expected),
            "{error}"
        );
    }
}

#[test]
fn fault_96_a_key_of_the_other_side_is_named_as_such() {
    assert_eq!(
        refused(&format!("{MASTER}keep_backups = 5\n")),
        "main.ini:4: keep_backups: expected a master's setting, found one of the standby; this is \
         a master's file because of master_data on line 2; move it to the standby's ini file, or \
         remove it"
    );
    let error = refused(&format!("{STANDBY}loop_delay = 5\n"));
    assert!(
        error.contains("expected a standby's setting, found one of the master"),
        "{error}"
    );
    assert!(error.contains("because of slave_data on line 3"), "{error}");
    let both = refused(&format!("{MASTER}standby_data = /x\n"));
    assert!(
        both.starts_with("main.ini:4: standby_data: expected a master's setting"),
        "{both}"
    );
}

#[test]
fn a_file_of_neither_side_or_half_a_side_says_what_is_missing() {
    let error = refused("[walmgr]\nlogfile = x\n");
    assert!(
        error.starts_with("main.ini:1: expected a master's or a standby's settings"),
        "{error}"
    );
    let error = refused("[walmgr]\nmaster_db = x\nslave = a\n");
    assert!(
        error.starts_with("main.ini:1: master_data: expected a value, found none"),
        "{error}"
    );
    let error = refused("[walmgr]\nmaster_data = /x\nslave =\n");
    assert!(
        error.contains("slave: expected a value, found none"),
        "{error}"
    );
    let error = refused("[walmgr]\ncompleted_wals = /x\n");
    assert!(
        error.contains("partial_wals: expected a value, found none"),
        "{error}"
    );
    assert!(
        standby("[walmgr]\ncompleted_wals = /x\npartial_wals = /y\n")
            .full_backup
            .is_none()
    );
}

#[test]
fn fault_96_overlapping_directories_name_both_keys() {
    for (lines, keys) in [
        (
            "completed_wals = /a\npartial_wals = /a/",
            ["completed_wals", "partial_wals"],
        ),
        (
            "completed_wals = /a\npartial_wals = /a/b",
            ["completed_wals", "partial_wals"],
        ),
        (
            "completed_wals = /a/b\npartial_wals = /a/x/..",
            ["partial_wals", "completed_wals"],
        ),
        (
            "full_backup = %(walmgr_data)s/logs.complete/x",
            ["completed_wals", "full_backup"],
        ),
        (
            "config_backup = /archive/data.master/conf",
            ["full_backup", "config_backup"],
        ),
        (
            "completed_wals = /data/wal",
            ["slave_data", "completed_wals"],
        ),
        (
            "slave_pg_xlog = /data/pg_wal",
            ["slave_data", "slave_pg_xlog"],
        ),
        (
            "slave_config_dir = /archive/logs.partial",
            ["partial_wals", "slave_config_dir"],
        ),
        (
            "completed_wals = /archive/data.master.0",
            ["full_backup", "completed_wals"],
        ),
        ("partial_wals = /data.1", ["slave_data", "partial_wals"]),
        ("logfile = /x/l\npidfile = /x/l", ["logfile", "pidfile"]),
        ("pidfile = main.ini", ["this ini file", "pidfile"]),
        ("tls_key = /k\ntls_cert = /k", ["tls_key", "tls_cert"]),
    ] {
        let error = refused(&format!("{STANDBY}{lines}\n"));
        assert!(error.starts_with("main.ini:"), "{error}");
        assert!(
            keys.iter().all(|key| error.contains(key)),
            "{lines}: {error}"
        );
    }
    let in_data = standby(&format!("{STANDBY}slave_config_dir = /data\n"));
    assert_eq!(in_data.slave_config_dir, in_data.slave_data);
}

#[test]
fn fault_96_a_slave_data_inside_the_archive_is_refused() {
    let error = refused("[w]\nwalmgr_data = /archive\nslave_data = /archive/logs.complete/pg\n");
    assert!(
        error.starts_with("main.ini:3: slave_data: expected completed_wals and slave_data apart")
    );
}

#[test]
fn plain_text_beyond_loopback_needs_a_word_of_its_own() {
    assert!(
        master(&format!("{MASTER}tls = off\n"))
            .tls
            .enabled
            .eq(&false)
    );
    let remote = "[walmgr]\nmaster_data = /data\nslave = db2\ntls = off\n";
    let error = refused(remote);
    assert!(
        error.starts_with("main.ini:4: tls: expected on, as slave = db2:7432 (line 3)"),
        "{error}"
    );
    assert!(error.contains("allow_plaintext = 1"));
    assert!(
        master(&format!("{remote}allow_plaintext = 1\n"))
            .tls
            .allow_plaintext
    );
    let error = refused(&format!("{STANDBY}listen = 127.0.0.1, 0.0.0.0\ntls = no\n"));
    assert!(
        error.starts_with("main.ini:5: tls: expected on, as listen = 0.0.0.0:7432"),
        "{error}"
    );
}

#[test]
fn a_setting_indented_by_accident_is_not_swallowed() {
    let error = refused(&format!(
        "{MASTER}periodic_command = a\n   compression = 1\n"
    ));
    assert!(error.starts_with("main.ini:5: compression: expected a setting at the line's start"));
}

#[test]
fn overrides_replace_lines_and_pass_the_same_checks() {
    let config = try_load(MASTER, "compression=3,slave=db2:1, Loop_Delay = 2s ").unwrap();
    let config = config.into_master("setup").unwrap();
    assert_eq!((config.compression, config.slave.port), (3, 1));
    assert_eq!(config.loop_delay, Duration::from_secs(2));
    let comma = try_load(STANDBY, r"listen=127.0.0.1\,[::1]").unwrap();
    assert_eq!(comma.into_standby("receiver").unwrap().listen.len(), 2);
    let folder = try_load(STANDBY, "standby_data=%(walmgr_data)s/pg,walmgr_data=/b").unwrap();
    let folder = folder.into_standby("receiver").unwrap();
    assert_eq!(folder.slave_data.unwrap(), PathBuf::from("/b/pg"));
}

#[test]
fn fault_96_wrong_overrides_name_the_option() {
    for (set, expected) in [
        (
            "compresion=1",
            "--set: compresion: expected a known setting",
        ),
        (
            "compression=x",
            "--set: compression: expected a whole number",
        ),
        (
            "slave=a,standby=b",
            "--set: standby: expected each key once",
        ),
        (
            "keep_backups=1",
            "--set: keep_backups: expected a master's setting",
        ),
        (
            "push_timeout=0",
            "--set: push_timeout: expected more than zero",
        ),
        (
            "compression",
            "--set: expected `param=val[,param=val]`, found `compression`",
        ),
        ("master_db=a,b", "a comma inside a value is written \\,"),
        ("=1", "--set: expected `param=val"),
    ] {
        let error = try_load(MASTER, set).unwrap_err();
        assert!(error.contains(expected), "{set}: {error}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named_without_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let missing = load(&folder.path().join("no.ini"), &[]).unwrap_err();
    assert!(
        missing.to_string().contains("no.ini: No such file"),
        "{missing}"
    );
    let directory = load(folder.path(), &[]).unwrap_err();
    assert!(
        directory.to_string().contains("expected a file"),
        "{directory}"
    );
    let endless = load(Path::new("/dev/zero"), &[]).unwrap_err();
    assert_eq!(endless.kind(), Kind::Config);
    let fifo = folder.path().join("fifo");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert!(load(&fifo, &[]).is_err());
    let large = folder.path().join("large.ini");
    std::fs::write(&large, vec![b'#'; ini::FILE_BYTES_MAX + 10]).unwrap();
    assert!(
        load(&large, &[])
            .unwrap_err()
            .to_string()
            .contains("larger than")
    );
}

#[test]
fn a_command_of_the_other_side_says_which_file_it_wants() {
    let error = try_load(STANDBY, "")
        .unwrap()
        .into_master("xarchive")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("xarchive expected a master's ini file, found a standby's"),
        "{error}"
    );
    assert!(
        try_load(MASTER, "")
            .unwrap()
            .into_standby("receiver")
            .is_err()
    );
}

#[test]
fn the_printed_samples_load_and_know_every_setting() {
    let (of_master, of_standby) = (sample::master_sample(), sample::standby_sample());
    assert_eq!(master(&of_master).slave.host, "standby.example");
    assert!(standby(&of_standby).walmgr_data.is_some());
    assert!(try_load(&sample::both_samples(), "").is_ok());
    for (text, side) in [(&of_master, Side::Master), (&of_standby, Side::Standby)] {
        assert!(
            text.lines()
                .all(|line| !line.starts_with('#') || line.len() <= 120)
        );
        for row in keys::rows(side).filter(|row| row.effect != keys::Effect::Ignored) {
            let line = format!("{} = ", row.name);
            assert!(
                text.lines()
                    .any(|found| found.trim_start_matches('#').starts_with(&line))
            );
        }
    }
}

#[test]
fn the_samples_load_with_every_line_in_force() {
    for text in [sample::master_sample(), sample::standby_sample()] {
        let active: String = text
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(rest) if !rest.starts_with(' ') => format!("{rest}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        // `slave` and `walmgr_data` name the same base on the standby; both may stand there.
        if let Err(error) = try_load(&active, "") {
            panic!("{error}\n{active}");
        }
    }
}

#[test]
fn the_files_that_init_writes_load_to_what_it_was_given() {
    let init = InitMaster {
        pgdata: PathBuf::from("/data/100% full"),
        slave: "db2:7500".to_owned(),
        master_db: Some("port=5433 dbname=postgres".to_owned()),
        ..InitMaster::default()
    };
    let text = sample::master_ini(&init).unwrap();
    let config = master(&text);
    assert_eq!((config.master_data, config.slave.port), (init.pgdata, 7500));
    assert_eq!(config.master_db, "port=5433 dbname=postgres");
    assert!(text.lines().count() < 40 && config.notes.is_empty());

    let init = InitStandby {
        walmgr_data: PathBuf::from("/archive"),
        listen: Some("0.0.0.0:7500".to_owned()),
        slave_data: Some(PathBuf::from("/data")),
        slave_bin: None,
    };
    let config = standby(&sample::standby_ini(&init).unwrap());
    assert_eq!(config.completed_wals, Path::new("/archive/logs.complete"));
    assert_eq!(config.listen[0].to_string(), "0.0.0.0:7500");
    assert!(config.notes.is_empty());

    for bad in ["/a\nb", " /a", "/a ;b"] {
        let init = InitMaster {
            pgdata: PathBuf::from(bad),
            slave: "a".to_owned(),
            ..InitMaster::default()
        };
        assert!(sample::master_ini(&init).is_err(), "{bad}");
    }
}

#[test]
fn the_readmes_rows_cover_the_table() {
    let rows = sample::readme_rows(Side::Master) + &sample::readme_rows(Side::Standby);
    for key in KEYS {
        let row = format!("| `{}` | ", key.name);
        assert!(rows.contains(&row), "{}", key.name);
    }
    assert!(
        rows.lines().all(|line| line.matches(" | ").count() == 3),
        "{rows}"
    );
}
