//! Foreign settings in every spelling that PostgreSQL understands.
//! Never starts a server. Invariant tested: what is left of a text orders nothing.

use proptest::prelude::*;

use super::*;

fn host() -> Host<'static> {
    Host {
        own: b"ssl_passphrase_command = '/etc/own'\nlog_directory = '/var/log/postgresql'\n",
        data: Path::new("/data/standby"),
    }
}

fn neutralised(text: &[u8]) -> (Vec<u8>, Vec<SwitchedOff>) {
    let host = host();
    host.neutralise(text, host.data)
}

/// The settings that may not say a path; the others are not Boolean by chance.
fn names_of_orders() -> Vec<&'static str> {
    let orders = TABLE.iter().filter(|(_, rule, _)| *rule != Rule::Off);
    orders.map(|(name, ..)| *name).collect()
}

fn off(text: &str) -> Vec<String> {
    let (kept, off) = neutralised(text.as_bytes());
    for (name, ..) in TABLE {
        if off.iter().any(|off| off.name == name) {
            assert_eq!(value(&kept, name).unwrap_or_default(), "", "{text}");
        }
    }
    off.into_iter().map(|off| off.name).collect()
}

#[test]
fn fault_106_orders_are_switched_off_in_every_spelling() {
    for text in [
        "archive_cleanup_command = 'rm -rf /'",
        "ARCHIVE_Cleanup_COMMAND='rm'",
        "archive_cleanup_command 'rm'\n",
        "\t archive_cleanup_command\t=\t'rm' # why not\r\n",
        "archive_cleanup_command = rm",
        r"archive_cleanup_command = E''",
        r"archive_cleanup_command = '\162\155'",
        "archive_cleanup_command'rm'",
    ] {
        let name = line::setting(text.as_bytes()).map(|setting| setting.name);
        let expected: Vec<String> = name.into_iter().collect();
        assert_eq!(off(text), expected, "{text}");
    }
    let twice = "archive_cleanup_command = 'a'\nwork_mem = 1MB\narchive_cleanup_command = ''\n\
        archive_cleanup_command = 'b'\n";
    assert_eq!(off(twice).len(), 2);
    let (kept, _) = neutralised(twice.as_bytes());
    assert_eq!(value(&kept, "work_mem").as_deref(), Some("1MB"));
    assert!(
        String::from_utf8(kept)
            .unwrap()
            .contains("#walmgr restore: archive_cleanup_command = 'b'\n")
    );
}

#[test]
fn fault_135_a_copy_does_not_run_on_the_directory_that_this_host_serves() {
    let host = Host {
        own: b"data_directory = '/data/main'\n",
        data: Path::new("/data/copy"),
    };
    let (_, off) = host.neutralise(b"data_directory = '/data/main'\n", host.data);
    assert_eq!(off.len(), 1);
}

#[test]
fn fault_112_what_runs_loads_or_writes_elsewhere_is_switched_off() {
    for (name, bad, good) in [
        ("recovery_end_command", "x", ""),
        ("archive_command", "cp %p /x", ""),
        ("archive_library", "basic_archive", ""),
        ("restore_command", "cp", ""),
        ("ssl_passphrase_command", "/etc/other", "/etc/own"),
        (
            "shared_preload_libraries",
            "/tmp/evil",
            "pg_stat_statements, auto_explain",
        ),
        (
            "shared_preload_libraries",
            "auto_explain,\"base/evil\"",
            "$libdir/auto_explain",
        ),
        (
            "session_preload_libraries",
            "$libdir/../../tmp/evil",
            "auto_explain",
        ),
        (
            "local_preload_libraries",
            "./evil.so",
            "$libdir/plugins/auto_explain",
        ),
        ("jit_provider", "../../../tmp/evil", "llvmjit"),
        ("oauth_validator_libraries", "/x", "mine"),
        // A file of the set: only with `$libdir` in front it is the installation's.
        (
            "session_preload_libraries",
            "plugins/evil",
            "$libdir/plugins/auto_explain",
        ),
        ("dynamic_library_path", "/tmp:$libdir", "$libdir"),
        ("extension_control_path", "$system:/tmp", "$system"),
        ("data_directory", "/elsewhere", "/data/standby"),
        (
            "external_pid_file",
            "/home/postgres/.ssh/authorized_keys",
            "",
        ),
        (
            "log_directory",
            "/home/postgres/.ssh",
            "/var/log/postgresql",
        ),
        ("log_directory", "../..", "log"),
        ("log_filename", "../.profile", "postgresql-%a.log"),
        ("log_filename", "%Z", "%Y-%m-%d_%H%M%S.log"),
        ("log_filename", "a%EZ", "100%%.log"),
        ("log_filename", "%+", "%%Z"),
        ("log_filename", "%%/x", "plain"),
        ("stats_temp_directory", "/run/x", "pg_stat_tmp"),
        ("primary_conninfo", "host=evil", ""),
        ("recovery_min_apply_delay", "1d", ""),
        ("recovery_target_lsn", "0/1", ""),
        ("promote_trigger_file", "/tmp/go", ""),
        ("synchronous_standby_names", "ANY 1 (a, b)", ""),
        ("synchronized_standby_slots", "one", ""),
        ("sync_replication_slots", "tr", "fal"),
        ("cluster_name", "main", ""),
        ("ignore_invalid_pages", "1", "0"),
        ("ignore_checksum_failure", "yes", "no"),
        ("zero_damaged_pages", "ON", "of"),
        ("include", "/etc/x.conf", "conf.d/a.conf"),
        ("include_if_exists", "../x.conf", "x.conf"),
        ("include_dir", "/etc/x", "conf.d"),
        // A tablespace, WAL and relations are what the server writes, or are linked later.
        ("include", "pg_tblspc/16384/x.conf", "pg_settings.conf"),
        ("include_if_exists", "./base/1/x", "my/base"),
        ("basebackup_to_shell.command", "sh", ""),
        ("plperl.on_init", "system q(x)", ""),
        ("pgsodium.getkey_script", "/x", ""),
        ("pltcl.start_proc", "x", ""),
        ("basic_archive.archive_directory", "/x", ""),
    ] {
        assert_eq!(
            off(&format!("{name} = '{bad}'\n")),
            [name],
            "{name} = {bad}"
        );
        assert_eq!(
            off(&format!("{name} = '{good}'\n")),
            [""; 0],
            "{name} = {good}"
        );
    }
    for harmless in [
        "work_mem = 1GB",
        "listen_addresses = '*'",
        "my.setting = 'x'",
        "pg_stat_statements.max = 9",
    ] {
        assert_eq!(off(harmless), [""; 0], "{harmless}");
    }
    let (_, off) = neutralised(b"restore_command = '\xff'\n");
    assert_eq!(off.len(), 1, "no text");
}

#[test]
fn fault_112_included_files_of_a_set_are_neutralised_too() {
    let set = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = set.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write(
        "postgresql.conf",
        "include_dir = 'conf.d'\ninclude 'more/one'\nport = 1\n",
    );
    write("conf.d/a.conf", "recovery_end_command = 'x'\ninclude 'b'\n");
    write("conf.d/b", "archive_command = 'x'\n");
    write(
        "more/one",
        "include '../postgresql.conf'\nrestore_command = 'x'\n",
    );
    write("postgresql.auto.conf", "archive_cleanup_command = 'x'\n");
    let outside = tempfile::tempdir().unwrap();
    let theirs = outside.path().join("their.conf");
    std::fs::write(&theirs, "restore_command = 'theirs'\n").unwrap();
    std::os::unix::fs::symlink(&theirs, set.path().join("conf.d/link.conf")).unwrap();
    let host = Host {
        own: b"",
        data: set.path(),
    };
    let off = host.neutralise_directory(set.path()).unwrap();
    let mut names: Vec<&str> = off.iter().map(|(_, off)| off.name.as_str()).collect();
    names.sort_unstable();
    let expected = [
        "archive_cleanup_command",
        "archive_command",
        "include",
        "recovery_end_command",
        "restore_command",
    ];
    assert_eq!(names, expected);
    assert!(!set.path().join("conf.d/link.conf").exists());
    assert_eq!(
        std::fs::read(&theirs).unwrap(),
        b"restore_command = 'theirs'\n"
    );
    assert_eq!(host.neutralise_directory(set.path()).unwrap(), []);
}

#[test]
fn fault_112_what_the_scanner_reads_otherwise_orders_nothing() {
    // PostgreSQL reads `evil` here: it ends at the NUL byte, and the last byte goes as a quote.
    let (kept, off) = neutralised(b"include_if_exists 'evilX\0'\nwork_mem = 1MB\n");
    assert_eq!(off.len(), 1);
    assert!(kept.starts_with(MARK));
    // A lone point is a value.
    let set = tempfile::tempdir().unwrap();
    std::fs::create_dir(set.path().join("sub")).unwrap();
    let write = |name: &str, text: &str| std::fs::write(set.path().join(name), text).unwrap();
    write("postgresql.conf", "include 'sub/a'\n");
    write("sub/a", "include_dir .\n");
    write("sub/evil.conf", "archive_cleanup_command = 'x'\n");
    let host = Host {
        own: b"",
        data: set.path(),
    };
    let off = host.neutralise_directory(set.path()).unwrap();
    assert_eq!(off.len(), 1);
    assert_eq!(off[0].1.name, "archive_cleanup_command");
}

#[test]
fn fault_112_too_many_included_files_are_refused_not_skipped() {
    let set = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(set.path().join(name), text).unwrap();
    std::fs::create_dir(set.path().join("d")).unwrap();
    for number in 0..FILES_MAX {
        write(&format!("d/{number}.conf"), "");
    }
    write("postgresql.auto.conf", "include_dir 'd'\n");
    write("postgresql.conf", "restore_command = 'x'\n");
    let host = Host {
        own: b"",
        data: set.path(),
    };
    assert!(host.neutralise_directory(set.path()).is_err());
}

#[test]
fn fault_112_an_included_data_directory_loses_no_file() {
    let set = tempfile::tempdir().unwrap();
    std::fs::create_dir(set.path().join("base")).unwrap();
    let relation = set.path().join("base/16384");
    std::fs::write(&relation, "restore_command = 'x'\n").unwrap();
    let large = std::fs::File::create(set.path().join("large")).unwrap();
    large.set_len(FILE_BYTES_MAX + 1).unwrap();
    let host = Host {
        own: b"",
        data: set.path(),
    };
    let conf = set.path().join("postgresql.conf");
    std::fs::write(&conf, "include_dir '.'\ninclude_dir 'base'\n").unwrap();
    let off = host.neutralise_directory(set.path()).unwrap();
    assert_eq!(off.len(), 1, "the server writes there: {off:?}");
    assert_eq!(off[0].1.value, "base");
    assert_eq!(host.neutralise_directory(set.path()).unwrap(), []);
    assert_eq!(
        std::fs::read(&relation).unwrap(),
        b"restore_command = 'x'\n"
    );
    // One that is too long to be looked through is refused, not obeyed and not removed.
    std::fs::write(&conf, "include 'large'\n").unwrap();
    assert!(host.neutralise_directory(set.path()).is_err());
    assert!(set.path().join("large").exists());
}

proptest! {
    #[test]
    fn fault_112_no_text_keeps_an_order(
        before in "[ \t]{0,3}", between in "[ \t]{0,2}=?[ \t]{0,2}", bytes: Vec<u8>,
        name in prop::sample::select(names_of_orders()), upper: bool,
    ) {
        let name = if upper { name.to_ascii_uppercase() } else { name.to_owned() };
        let mut text = format!("{before}{name}{between}").into_bytes();
        text.extend_from_slice(&bytes);
        text.extend_from_slice(b"\n");
        text.extend_from_slice(format!("{before}{name}{between}'/x/../y'\n").as_bytes());
        let (kept, _) = neutralised(&text);
        prop_assert!(neutralised(&kept).1.is_empty());
        prop_assert_ne!(value(&kept, &name), Some("/x/../y".to_owned()));
    }
}

#[test]
fn fault_112_no_other_file_stands_in_the_place_of_pg_hba_conf() {
    let host = Host {
        own: b"ident_file = '/etc/own/ident'\n",
        data: Path::new("/data"),
    };
    let text = b"hba_file = '/data/more/hba'\nident_file = '/etc/own/ident'\n\
        hba_file = 'other'\nhba_file = '/data/pg_hba.conf'\nhba_file = '/conf/pg_hba.conf'\n\
        ident_file = '/data/pg_hba.conf'\n";
    let (_, off) = host.neutralise(text, Path::new("/conf"));
    let off: Vec<&str> = off.iter().map(|off| off.value.as_str()).collect();
    assert_eq!(off, ["/data/more/hba", "other", "/data/pg_hba.conf"]);
}
