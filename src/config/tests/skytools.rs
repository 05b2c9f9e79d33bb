//! What Skytools took in an ini file, and walmgr takes since, though much of it means nothing now.
//! Never a file of walmgr's own kind alone. Invariant: what is not used is a note that names it.

use super::*;

/// The notes of a file, without its path.
fn notes(text: &str) -> Vec<String> {
    let config = try_load(text, &[]).unwrap();
    let path = match &config {
        Config::Master(config) => &config.path,
        Config::Standby(config) => &config.path,
        Config::Host(config) => &config.path,
    };
    let before = format!("{}:", path.display());
    let bare = |note: &String| note.strip_prefix(&before).unwrap_or(note).to_owned();
    config.notes().iter().map(bare).collect()
}

#[test]
fn the_frameworks_settings_are_noted_and_not_looked_at() {
    for name in table::FRAMEWORK {
        for (base, line) in [(MASTER, 4), (STANDBY, 4)] {
            for value in ["", "5", "no number %(nothing)s 100%", "a\n  b"] {
                assert_eq!(
                    notes(&format!("{base}{} = {value}\n", name.to_uppercase())),
                    [format!(
                        "{line}: {name} is ignored: it belonged to Skytools"
                    )]
                );
            }
        }
    }
    let all: String = table::FRAMEWORK
        .iter()
        .map(|name| format!("{name} = 1\n"))
        .collect();
    let names = table::FRAMEWORK.join(", ");
    assert_eq!(
        notes(&format!("{MASTER}{all}remote_extra_connstr = a=b\n")),
        [format!(
            "4: {names}, remote_extra_connstr are ignored: they belonged to Skytools"
        )]
    );
    let extra = notes(&format!("{MASTER}remote_extra_connstr = sslmode=require\n"));
    assert_eq!(
        extra[0],
        "4: remote_extra_connstr is ignored: it belonged to Skytools"
    );
}

#[test]
fn skytools_own_names_can_be_referred_to_and_set() {
    let host = rustix::system::uname();
    let host = host.nodename().to_str().unwrap().to_owned();
    let config = master(
        "[wal-prod]\nmaster_data = /%(host_name)s/%(Service_Name)s/%(job_name)s/%(__name__)s\n\
         slave = a\nlogfile = %(config_dir)s/x.log\nperiodic_command = cat %(config_file)s\n",
    );
    assert_eq!(
        config.master_data.to_str().unwrap(),
        format!("/{host}/wal-prod/main/wal-prod")
    );
    assert_eq!(config.logfile, Some(config.path.with_file_name("x.log")));
    assert_eq!(
        config.periodic_command.unwrap(),
        format!("cat {}", config.path.display())
    );
    let config = master(&format!(
        "{MASTER}host_name = db1\njob_name = %(host_name)s-wal\n"
    ));
    assert_eq!(config.job_name, "db1-wal");
}

#[test]
fn variables_of_the_writers_own_count_where_they_are_referred_to() {
    let config = standby(
        "[walmgr]\nPgRoot = /srv/%(pgversion)s\npgversion = 9.1\nslave_data = %(pgroot)s/main\n\
         standby_root = /arch/%(pgversion)s\nwalmgr_data = %(standby_root)s\n",
    );
    assert_eq!(config.slave_data.unwrap(), Path::new("/srv/9.1/main"));
    assert_eq!(config.walmgr_data.unwrap(), Path::new("/arch/9.1"));
    assert_eq!(config.notes, Vec::<String>::new());

    let text = format!("{MASTER}base = /x\nlogfile = %(base)s/l\n");
    let set = [("base", "/y"), ("pidfile", "%(base)s/p")];
    let set = try_load(&text, &set).unwrap().into_master("setup").unwrap();
    assert_eq!(set.logfile.unwrap(), Path::new("/y/l"));
    assert_eq!(set.pidfile.unwrap(), Path::new("/y/p"));
    let error = try_load(&text, &[("bas", "/y")]).unwrap_err();
    assert!(
        error.contains("--set: bas: expected a known setting"),
        "{error}"
    );
}

#[test]
fn an_unknown_key_that_only_itself_or_nothing_refers_to_is_an_error() {
    for line in [
        "base = %(base)s/x",
        "base = /x",
        "a = %(base)s\nbase = %%(a)s",
    ] {
        let error = refused(&format!("{MASTER}{line}\n"));
        assert!(
            error.contains("expected a known setting, found an unknown one"),
            "{error}"
        );
        assert!(error.contains("nothing refers to this key"), "{error}");
    }
}

#[test]
fn defaults_stand_in_for_what_the_section_does_not_set() {
    let config = standby(
        "[walmgr]\nslave_data = /data\nkeep_backups = 3\n[DEFAULT]\nroot = /r\nkeep_backups = 5\n\
         walmgr_data = %(root)s/wal\nlog_count = 3\n",
    );
    assert_eq!(config.keep_backups, 3);
    assert_eq!(config.walmgr_data.unwrap(), Path::new("/r/wal"));
    assert_eq!(config.notes.len(), 1, "{:?}", config.notes);
    let error = refused(&format!("[DEFAULT]\ncompresion = 1\n{MASTER}"));
    assert!(error.starts_with("main.ini:2: compresion: "), "{error}");
    let variable = format!("[DEFAULT]\nx = 1\n{MASTER}[pgqadm]\njob_name = %(x)s\n");
    assert_eq!(
        notes(&variable),
        ["6: [pgqadm] is ignored: the settings are in [walmgr]"]
    );
}

#[test]
fn of_a_key_that_stands_twice_the_last_line_counts() {
    let text = format!("{MASTER}compression = 1\nSLAVE = db3\ncompression = 2\n");
    let config = master(&text);
    assert_eq!(
        (config.compression, config.slave.host.as_str()),
        (Some(2), "db3")
    );
    assert_eq!(
        notes(&text),
        [
            "5: slave is set twice, first on line 3: this line counts",
            "6: compression is set twice, first on line 4: this line counts"
        ]
    );
}

#[test]
fn setting_of_the_other_side_is_noted_with_the_key_that_decides() {
    assert_eq!(
        notes(&format!("{MASTER}keep_backups = many\n")),
        [
            "4: keep_backups is ignored: a setting of the standby, and this is a master's file \
          because of master_data on line 2"
        ]
    );
    assert_eq!(
        notes(&format!("{STANDBY}loop_delay = 5\nmaster_db = 100%\n")),
        [
            "4: loop_delay is ignored: a setting of the master, and this is a standby's file \
             because of slave_data on line 3",
            "5: master_db is ignored: a setting of the master, and this is a standby's file \
             because of slave_data on line 3"
        ]
    );
    let sided = "[wal-slave]\nmaster_data = /m\nmaster_db =\nwalmgr_data = /a\n";
    assert_eq!(standby(sided).walmgr_data.unwrap(), Path::new("/a"));
    assert!(notes(sided)[0].contains("because of [wal-slave] on line 1"));
    let sided = "[wal-master]\nslave_data = /s\nslave_bin = /b\nkeep_backups = 1\nmaster_data = /m\nslave = a\n";
    assert_eq!(notes(sided).len(), 3);
}

#[test]
fn no_interval_is_never_and_no_delay_the_least() {
    for zero in ["0", "0.0", "0s"] {
        let config = master(&format!(
            "{MASTER}command_interval = {zero}\nloop_delay = {zero}\n"
        ));
        assert_eq!(config.command_interval, Some(Duration::ZERO));
        assert_eq!(config.loop_delay, Duration::from_millis(10));
    }
    for (text, seconds) in [("5.", 5.0), (".5", 0.5), ("10.0", 10.0)] {
        let config = master(&format!("{MASTER}loop_delay = {text}\n"));
        assert_eq!(
            config.loop_delay,
            Duration::from_secs_f64(seconds),
            "{text}"
        );
    }
}

#[test]
fn a_directory_behind_the_host_may_be_relative() {
    let config = master(
        "[walmgr]\nmaster_data = /d\nslave = postgres@db2:walshipping\n\
         completed_wals = %(slave)s/logs.complete\n",
    );
    assert_eq!(config.slave.to_string(), "db2:7432");
    assert_eq!(config.slave.ignored_path.as_deref(), Some("walshipping"));
    assert_eq!(
        config.ignored_folders[0].1,
        "postgres@db2:walshipping/logs.complete"
    );
    let config = standby("[wal-slave]\nslave = arch/9.1\nslave_data = /d\n");
    assert_eq!(
        config.walmgr_data.unwrap(),
        config.path.with_file_name("arch/9.1")
    );
}

#[test]
fn a_level_of_compression_beyond_the_most_is_the_most_and_warned_of() {
    for (text, level, warns) in [
        ("0", 0, false),
        ("19", 19, false),
        ("20", 19, true),
        ("022", 19, true),
        ("99999999999999999999999999", 19, true),
    ] {
        let config = master(&format!("{MASTER}compression = {text}\n"));
        assert_eq!(config.compression, Some(level), "{text}");
        let warned = config.warnings.iter().any(|warning| {
            warning.ends_with(&format!(
                "main.ini:4: compression = {text} is more than 19, the most there is: 19 counts"
            ))
        });
        assert_eq!(warned, warns, "{text}: {:?}", config.warnings);
    }
    let set = try_load(MASTER, &[("compression", "22")]).unwrap();
    assert!(set.warnings()[0].contains("--set"), "{:?}", set.warnings());
    for wrong in ["-1", "zstd", "1.5"] {
        let error = refused(&format!("{MASTER}compression = {wrong}\n"));
        assert!(error.contains("compression: expected"), "{error}");
    }
}
