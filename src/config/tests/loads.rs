//! What whole files load to.
//! Never needs a path named in them to exist. Invariant: the manual's own files load unchanged.

use super::*;

#[test]
fn the_manuals_master_file_loads_unchanged() {
    let config = master(include_str!("../testdata/manual-master.ini"));
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
    assert_eq!(config.compression, Some(1));
    assert!(config.notes[0].contains(&format!(":7: slave: the path {base} is ignored")));
    assert!(config.notes[1].contains("completed_wals, partial_wals, full_backup ignored"));
    assert_eq!(config.notes.len(), 2);
}

#[test]
fn the_manuals_slave_file_loads_unchanged() {
    let config = standby(include_str!("../testdata/manual-slave.ini"));
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
    let config = master(include_str!("../testdata/walkthrough-master.ini"));
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
    assert_eq!(config.compression, Some(0));
    assert!(!config.use_xlog_functions && !config.hot_standby);
    assert_eq!(
        (config.command_interval, config.periodic_command),
        (None, None)
    );
    assert!(config.notes[0].contains("slave_config is ignored"));
}

#[test]
fn the_walkthroughs_standby_file_loads_unchanged() {
    let config = standby(include_str!("../testdata/walkthrough-standby.ini"));
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
    let text = include_str!("../testdata/manual-slave.ini");
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
    assert_eq!(config.compression, None);
    assert_eq!((config.archive_batch, config.archive_jobs), (8, 2));
    assert_eq!((config.synchronous, &config.slot), (false, &None));
    assert_eq!(config.synchronous_timeout, Duration::ZERO);
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
    assert!(config.keep_symlinks && config.backup_datadir && config.metrics_listen.is_empty());
}

#[test]
fn every_setting_takes_its_example_and_its_default() {
    for side in [Side::Master, Side::Standby, Side::Host] {
        for row in keys::rows(side) {
            let base = match side {
                Side::Master => MASTER,
                Side::Host => HOST,
                _ => STANDBY,
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
            try_load(&text, &[]).unwrap_or_else(|error| panic!("{error}"));
        }
    }
}

#[test]
fn overrides_replace_lines_and_pass_the_same_checks() {
    let config = try_load(
        MASTER,
        &[
            ("compression", "3"),
            ("slave", "db2:1"),
            (" Loop_Delay ", " 2s "),
        ],
    )
    .unwrap();
    let config = config.into_master("setup").unwrap();
    assert_eq!((config.compression, config.slave.port), (Some(3), 1));
    assert_eq!(config.loop_delay, Duration::from_secs(2));
    let comma = try_load(STANDBY, &[("listen", "127.0.0.1,[::1]")]).unwrap();
    assert_eq!(comma.into_standby("receiver").unwrap().listen.len(), 2);
    let folder = try_load(
        STANDBY,
        &[
            ("standby_data", "%(walmgr_data)s/pg"),
            ("walmgr_data", "/b"),
        ],
    )
    .unwrap();
    let folder = folder.into_standby("receiver").unwrap();
    assert_eq!(folder.slave_data.unwrap(), PathBuf::from("/b/pg"));
}

#[test]
fn a_file_that_is_being_written_in_its_place_is_read_when_it_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("standby.ini");
    std::fs::write(&path, "").unwrap();
    std::thread::scope(|scope| {
        let loading = scope.spawn(|| load(&path, &[]));
        std::thread::sleep(Duration::from_millis(100));
        std::fs::write(&path, "[walmgr]\nwalmgr_data = /archive\n").unwrap();
        let config = loading.join().unwrap().unwrap();
        assert!(matches!(config, Config::Standby(_)));
    });
}
