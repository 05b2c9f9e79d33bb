//! Key, log and pid files in the wrong hands or of the wrong kind, and settings nobody can mean.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};

use crate::support::place::{give_to_server, server_user};
use crate::support::{Site, run};

fn stopped() -> Site {
    Site::builder().stopped().build()
}

#[test]
fn fault_95_a_key_that_others_can_read_is_refused_by_both_sides() {
    let site = stopped();
    let name = site.segment_name(1);
    site.write_segment(1);
    for mode in [0o644, 0o640, 0o604] {
        for ini in [site.standby_ini(), site.master_ini()] {
            let mode = PermissionsExt::from_mode(mode);
            std::fs::set_permissions(ini.with_extension("key"), mode).unwrap();
        }
        for output in [site.standby_command(&["receiver"]), site.archive(&name)] {
            let line = output.fail(2);
            assert!(line.contains("other users can read the key"), "{line}");
            assert!(line.contains("chmod 600"), "{line}");
        }
    }
}

#[test]
fn fault_95_a_key_that_is_a_link_a_pipe_or_missing_is_refused_at_once() {
    for kind in ["link", "pipe", "folder", "missing", "empty", "nonsense"] {
        let site = stopped();
        let key = site.standby_ini().with_extension("key");
        let elsewhere = site.home().join("elsewhere");
        std::fs::rename(&key, &elsewhere).unwrap();
        match kind {
            "link" => symlink(&elsewhere, &key).unwrap(),
            "pipe" => drop(run(Command::new("mkfifo").args(["-m", "600"]).arg(&key)).unwrap()),
            "folder" => std::fs::create_dir(&key).unwrap(),
            "empty" => std::fs::write(&key, "").unwrap(),
            "nonsense" => std::fs::write(&key, "-----BEGIN PRIVATE KEY-----\nsecret").unwrap(),
            _ => {}
        }
        if key.exists() {
            give_to_server(&key);
            if kind != "link" {
                std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
            }
        }
        let output = site.standby_command(&["receiver"]);
        let line = output.fail(2);
        assert!(line.contains("standby.key"), "{kind}: {line}");
        assert!(!line.contains("secret"), "{line}");
    }
}

#[test]
fn fault_95_linked_log_or_pidfile_is_refused_and_its_target_untouched() {
    for setting in ["logfile", "pidfile"] {
        let mut site = stopped();
        let precious = site.home().write("precious", "precious");
        let link = site.home().join("a-link");
        symlink(&precious, &link).unwrap();
        site.standby_set(setting, &link.display().to_string());
        let output = site.standby_command(&["receiver"]);
        let line = output.fail(2);
        assert!(line.contains("is a symlink"), "{line}");
        assert!(line.contains("a-link"), "{line}");
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
    }
}

#[test]
fn fault_96_settings_nobody_can_mean_end_with_2_and_name_the_key() {
    for (key, value) in [
        ("push_timeout", "0"),
        ("connect_timeout", "-1"),
        ("block_size", "1GB"),
        ("compression", "much"),
        ("verify_wal", "maybe"),
        ("slave", "host:99999"),
        ("slave_fingerprint", "SHA256:short"),
        ("tls_keyy", "x"),
    ] {
        let mut site = stopped();
        let name = site.segment_name(1);
        site.write_segment(1);
        site.master_set(key, value);
        let output = site.archive(&name);
        let line = output.fail(2);
        assert!(
            line.contains(key) && line.contains("master.ini"),
            "{key}: {line}"
        );
    }
    for (key, value) in [
        ("max_connections", "0"),
        ("listen", "127.0.0.1:99999"),
        ("tls", "perhaps"),
    ] {
        let mut site = stopped();
        site.standby_set(key, value);
        let output = site.standby_command(&["receiver"]);
        let line = output.fail(2);
        assert!(
            line.contains(key) && line.contains("standby.ini"),
            "{key}: {line}"
        );
    }
    let mut site = stopped();
    site.standby_set("tls", "off");
    site.standby_set("listen", "0.0.0.0:0");
    let output = site.standby_command(&["receiver"]);
    assert!(output.fail(2).contains("allow_plaintext = 1"));
}

#[test]
fn keys_that_are_authorized_and_revoked_at_once_do_not_lose_each_other() {
    let site = stopped();
    let key = |number: usize| {
        let digit = char::from(b'A' + u8::try_from(number).unwrap());
        format!("SHA256:{}A", digit.to_string().repeat(42))
    };
    site.standby_command(&["authorize", &key(20), "leaves"])
        .succeed();
    let mut commands: Vec<_> = (0..8)
        .map(|number| site.standby_walmgr(&["authorize", &key(number), &format!("db{number}")]))
        .collect();
    commands.push(site.standby_walmgr(&["revoke", "leaves"]));
    let running: Vec<_> = commands
        .iter_mut()
        .map(|command| command.stderr(Stdio::null()).spawn().unwrap())
        .collect();
    for mut child in running {
        assert!(child.wait().unwrap().success());
    }
    let keys = site.standby_ini().with_file_name("authorized_keys");
    let text = std::fs::read_to_string(keys).unwrap();
    let mut names: Vec<&str> = text
        .lines()
        .map(|line| line.split(' ').nth(1).unwrap())
        .collect();
    names.sort_unstable();
    let expected = "db0 db1 db2 db3 db4 db5 db6 db7 master";
    assert_eq!(names.join(" "), expected);
}

#[test]
fn authorizing_a_known_key_changes_its_rights_and_says_from_what() {
    let site = stopped();
    let key = site.master_fingerprint();
    let words = ["authorize", &key, "master", "--rights", "read"];
    let rehearsed = site.standby_command(&[&words[..], &["-n"]].concat());
    assert!(
        rehearsed
            .succeed()
            .contains("give master read instead of push,backup,read")
    );
    let changed = site.standby_command(&words);
    changed.succeed();
    let said = "master may now read; its rights were push,backup,read";
    assert!(changed.stderr.contains(said), "{}", changed.stderr);
    let refused = site.standby_command(&["authorize", &key, "other"]);
    let line = refused.fail(2);
    assert!(line.contains("is authorized already, as master"), "{line}");
    assert!(line.contains("revoke master` first"), "{line}");
}

#[test]
fn an_ini_file_that_is_missing_or_closed_is_named_with_the_way_out() {
    let site = stopped();
    let mut absent = crate::support::walmgr();
    absent.arg(site.home().join("absent.ini")).arg("identity");
    let ended = crate::support::Output::of(&mut absent);
    assert!(
        ended.fail(2).contains(" init` writes a first file"),
        "{ended:?}"
    );
    if !matches!(server_user(), Ok(Some(_))) {
        return;
    }
    let closed = site.home().create_dir("closed");
    std::os::unix::fs::chown(&closed, Some(0), Some(0)).unwrap();
    let mut init = crate::support::walmgr();
    init.arg(closed.join("standby.ini")).arg("init");
    let ended = crate::support::Output::of(&mut init);
    let place = format!("the owner of {}", closed.display());
    assert!(ended.fail(2).contains(&place), "{ended:?}");
}
