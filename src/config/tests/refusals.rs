//! How wrong files and overrides are refused.
//! Never matches on less than the place and the key. Invariant: every error is one sentence and a hint.

use super::*;

#[test]
fn fault_96_an_unknown_key_is_named_with_the_nearest() {
    assert_eq!(
        refused(&format!("{MASTER}compresion = 1\n")),
        "main.ini:4: compresion: expected a known setting, found an unknown one; did you mean \
        compression? If not, nothing refers to this key, so the line can be deleted"
    );
    let near = refused(&format!("{STANDBY}standby_bn = /x\n"));
    assert!(near.contains("did you mean standby_bin?"), "{near}");
    let far = refused(&format!("{MASTER}colour = red\n"));
    assert!(
        far.ends_with("so the line can be deleted; walmgr --ini prints every setting"),
        "{far}"
    );
}

#[test]
fn fault_96_a_key_under_two_spellings_is_named_with_both_lines() {
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
            "compression = -20",
            "compression: expected a whole number from 0 to 19, found `-20`",
        ),
        (
            "compression = high",
            "compression: expected a whole number from 0 to 19, found `high`",
        ),
        (
            "compression =",
            "found nothing; write for example `compression = 1`",
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
        (
            "slot = Walmgr",
            "slot: expected a slot's name, lower-case letters, digits and _, found Walmgr",
        ),
        (
            "loop_delay = 2d",
            "loop_delay: expected a time from 0s to 1d",
        ),
        (
            "loop_delay = 10 # seconds",
            "a comment starts with a space and a semicolon",
        ),
        (
            "block_size = 1MB",
            "block_size: expected a size from 4kB to 256kB",
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
}

#[test]
fn fault_96_wrong_values_of_the_standby_say_what_was_expected_and_found() {
    for (line, expected) in [
        (
            "listen = *:7432",
            "for every address of this host write 0.0.0.0:7432",
        ),
        (
            "max_connections = 0",
            "max_connections: expected a whole number from 1",
        ),
        ("restore_wait = 0", "restore_wait: expected more than zero"),
        (
            "slave = db2:/archive",
            "slave: expected a directory, with a slash in it, found `db2:/archive`",
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
fn a_file_of_neither_side_or_half_a_side_says_what_is_missing() {
    let error = refused("[walmgr]\nlogfile = x\n");
    assert!(
        error
            .starts_with("main.ini:1: expected a setting that only a master or only a standby has"),
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
fn fault_96_wrong_overrides_name_the_option() {
    let cases: [(&[(&str, &str)], &str); 5] = [
        (
            &[("compresion", "1")],
            "--set: compresion: expected a known setting",
        ),
        (
            &[("compression", "x")],
            "--set: compression: expected a whole number",
        ),
        (
            &[("slave", "a"), ("standby", "b")],
            "--set: standby: expected each key once",
        ),
        (
            &[("keep_backups", "1")],
            "--set: keep_backups: expected a master's setting, found one of the standby; this is a \
             master's file because of master_data on line 2; move it to the standby's ini file",
        ),
        (
            &[("push_timeout", "0")],
            "--set: push_timeout: expected more than zero",
        ),
    ];
    for (set, expected) in cases {
        let error = try_load(MASTER, set).unwrap_err();
        assert!(error.contains(expected), "{set:?}: {error}");
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
    let error = try_load(STANDBY, &[])
        .unwrap()
        .into_master("xarchive")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("xarchive expected a master's ini file, found a standby's"),
        "{error}"
    );
    assert!(
        try_load(MASTER, &[])
            .unwrap()
            .into_standby("receiver")
            .is_err()
    );
}
