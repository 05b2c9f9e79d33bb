//! Commands typed as somebody who does not own what they write: root as a rule, or another user.
//! Never a group that may write. Invariant: nothing is touched, and the refusal ends with the line to type.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::support::place::server_user;
use crate::support::{Output, Site, TempDir, walmgr_binary};

/// `nobody`, on every Linux.
const NOBODY: u32 = 65_534;

fn walmgr_as(user: u32, folder: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(walmgr_binary());
    command.current_dir(folder).args(words);
    if user != 0 {
        command.uid(user).gid(user);
    }
    Output::of(&mut command)
}

/// The owner of everything below a folder.
fn owners(folder: &Path) -> Vec<(std::path::PathBuf, u32)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        found.push((path.clone(), metadata.uid()));
        if metadata.is_dir() {
            found.extend(owners(&path));
        }
    }
    found.sort();
    found
}

#[test]
fn fault_130_whoever_is_not_the_owner_is_told_the_line_to_type() {
    let Ok(Some((owner, _))) = server_user() else {
        skip!("only root can type a command as somebody else");
    };
    let site = Site::start();
    crate::support::place::give_to_server(site.data());
    let before = owners(site.home().path());
    let master = site.master_ini().display().to_string();
    let standby = site.standby_ini().display().to_string();
    for user in [0, NOBODY] {
        for (ini, words) in [
            (&master, &["setup"][..]),
            (&master, &["-n", "setup"]),
            (&master, &["stop"]),
            (&master, &["backup"]),
            (&master, &["sync"]),
            (&master, &["syncdaemon", "-d"]),
            (&standby, &["setup"]),
            (&standby, &["receiver", "-d"]),
            (&standby, &["authorize", "SHA256:x", "it's me"]),
            (&standby, &["pause"]),
            (&standby, &["boot", "--force"]),
            (&standby, &["restore"]),
            (&standby, &["xpurgewals"]),
        ] {
            let words: Vec<&str> = [ini.as_str()]
                .into_iter()
                .chain(words.iter().copied())
                .collect();
            let refused = walmgr_as(user, Path::new("/"), &words);
            let line = refused.fail(2);
            let program = walmgr_binary().display();
            let typed = words.iter().map(|word| match *word {
                "it's me" => "'it'\\''s me'",
                word => word,
            });
            let typed: Vec<&str> = typed.collect();
            let hint = format!("type: sudo -u postgres {program} {}", typed.join(" "));
            assert!(line.ends_with(&hint), "{user} {words:?}: {line}");
        }
    }
    assert_eq!(owners(site.home().path()), before);
    assert!(before.iter().any(|(_, uid)| *uid == owner));
    // Who only looks may be anybody that can read.
    let looked = walmgr_as(0, Path::new("/"), &[&standby, "status"]);
    assert_ne!(looked.code, None);
    assert!(
        looked.stdout.contains("RPO"),
        "{}{}",
        looked.stdout,
        looked.stderr
    );
}

#[test]
fn fault_130_init_and_identity_leave_nothing_that_is_roots_in_another_users_folder() {
    if !matches!(server_user(), Ok(Some(_))) {
        skip!("only root can type a command as somebody else");
    }
    let home = TempDir::new();
    let site = Site::start();
    crate::support::place::give_to_server(site.data());
    let pgdata = site.data().display().to_string();
    for words in [
        &["standby.ini", "init"][..],
        &[
            "master.ini",
            "init",
            "--pgdata",
            &pgdata,
            "--slave",
            "127.0.0.1:7432",
        ],
    ] {
        let refused = walmgr_as(0, home.path(), words);
        let line = refused.fail(2);
        assert!(line.contains("type: sudo -u postgres "), "{line}");
        assert!(line.ends_with(&words.join(" ")), "{line}");
    }
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
    let key = site.master_ini().with_extension("key");
    std::fs::remove_file(&key).unwrap();
    let master = site.master_ini().display().to_string();
    let refused = walmgr_as(0, home.path(), &[&master, "identity"]);
    assert!(refused.fail(2).contains("type: sudo -u postgres "));
    assert!(!key.exists());
}

#[test]
fn fault_130_where_all_belongs_to_root_root_may_type() {
    if !matches!(server_user(), Ok(Some(_))) {
        skip!("only root can own a folder here");
    }
    let home = tempfile::tempdir().unwrap();
    let typed = |words: &[&str]| {
        let mut command = Command::new(walmgr_binary());
        command
            .env("HOME", home.path())
            .current_dir(home.path())
            .args(words);
        Output::of(&mut command)
    };
    typed(&["standby.ini", "init"]).succeed();
    typed(&["standby.ini", "setup"]).succeed();
    typed(&["standby.ini", "pause"]).succeed();
    typed(&["standby.ini", "continue"]).succeed();
}
