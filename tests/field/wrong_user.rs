//! Commands typed as somebody who does not own what they write: root as a rule, or another user.
//! Never a group that may write. Invariant: nothing is touched, and the refusal ends with the line to type.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::place::{below_but_index, server_user};
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
fn owners(folder: &Path) -> Vec<(PathBuf, u32)> {
    let found = below_but_index(folder).into_iter();
    found
        .map(|(path, metadata)| (path, metadata.uid()))
        .collect()
}

/// What a command does for somebody who does not own what it would write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// It names the line to type, and ends.
    Refuses,
    /// It does what it does: it only reads.
    Looks,
    /// It belongs to the other side.
    IsElsewhere,
}
use Then::{IsElsewhere, Looks, Refuses};

/// A command with its words, what it does with a master's file, and with a standby's.
const COMMANDS: [(&[&str], Then, Then); 34] = [
    // Without a key: it would make one.
    (&["identity"], Refuses, Refuses),
    (&["authorize", "SHA256:x", "it's me"], IsElsewhere, Refuses),
    (&["revoke", "it's me"], IsElsewhere, Refuses),
    (&["setup"], Refuses, Refuses),
    (&["stop"], Refuses, IsElsewhere),
    (
        &["xarchive", "pg_wal/NAME", "000000010000000000000001"],
        Refuses,
        IsElsewhere,
    ),
    (&["periodic"], Refuses, IsElsewhere),
    (&["backup"], Refuses, Refuses),
    (&["bench"], Looks, IsElsewhere),
    (&["sync"], Refuses, IsElsewhere),
    (&["syncdaemon", "-d"], Refuses, IsElsewhere),
    (&["synch-standby", "a"], Refuses, IsElsewhere),
    (&["receiver", "-d"], IsElsewhere, Refuses),
    (
        &["xrestore", "000000010000000000000001", "PGDATA/pg_wal/x"],
        Refuses,
        Refuses,
    ),
    (&["listbackups"], Looks, Looks),
    (&["status"], Looks, Looks),
    (&["restore", "data.master", "PGDATA/new"], Refuses, Refuses),
    (&["verify"], IsElsewhere, Refuses),
    (&["createslave"], IsElsewhere, Refuses),
    (&["keep", "data.master"], IsElsewhere, Refuses),
    (&["unkeep", "data.master"], IsElsewhere, Refuses),
    (&["expire"], IsElsewhere, Refuses),
    (&["xpurgewals"], IsElsewhere, Refuses),
    (&["compress"], IsElsewhere, Refuses),
    (&["xlock"], IsElsewhere, Refuses),
    (&["xrelease"], IsElsewhere, Refuses),
    (&["xrotate"], IsElsewhere, Refuses),
    (
        &["xpartialsync", "000000010000000000000001", "0", "8192"],
        IsElsewhere,
        Refuses,
    ),
    (&["cleanup", "--force"], Refuses, Refuses),
    (
        &["choose", "000000010000000000000001", "--take"],
        IsElsewhere,
        Refuses,
    ),
    (&["pause"], IsElsewhere, Refuses),
    (&["continue"], IsElsewhere, Refuses),
    (&["drill"], IsElsewhere, Refuses),
    (&["boot", "--force"], IsElsewhere, Refuses),
];

/// `init` writes the file that the others read: it has a test of its own.
const WITHOUT_FILE: &str = "init";

#[test]
fn every_command_has_its_row_among_those_that_are_typed_as_somebody_else() {
    let mut rows: Vec<&str> = COMMANDS.iter().map(|(words, ..)| words[0]).collect();
    rows.push(WITHOUT_FILE);
    rows.sort_unstable();
    let mut commands = walmgr::cli::words();
    commands.sort_unstable();
    assert_eq!(rows, commands);
}

#[test]
fn fault_130_whoever_is_not_the_owner_is_told_the_line_to_type() {
    let Ok(Some((owner, _))) = server_user() else {
        skip!("only root can type a command as somebody else");
    };
    let mut site = Site::start();
    crate::support::place::give_to_server(site.data());
    let log = site.home().join("walmgr.log").display().to_string();
    site.master_set("logfile", &log);
    site.standby_set("logfile", &log);
    for ini in [site.master_ini(), site.standby_ini()] {
        std::fs::remove_file(ini.with_extension("key")).unwrap();
    }
    let before = owners(site.home().path());
    let [master, standby] =
        [site.master_ini(), site.standby_ini()].map(|ini| ini.display().to_string());
    let pgdata = site.data().display().to_string();
    for user in [0, NOBODY] {
        for (words, on_master, on_standby) in COMMANDS {
            for (ini, then) in [(&master, on_master), (&standby, on_standby)] {
                let words = words.iter().map(|word| word.replace("PGDATA", &pgdata));
                let words: Vec<String> = [ini.clone()].into_iter().chain(words).collect();
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                behaves(user, &words, then);
                if then == Refuses {
                    behaves(user, &[&["-n"], &words[..]].concat(), then);
                }
            }
        }
    }
    assert_eq!(owners(site.home().path()), before);
    assert!(before.iter().any(|(_, uid)| *uid == owner));
}

/// Types a command from `/`, and holds what it says against what it has to.
fn behaves(user: u32, words: &[&str], then: Then) {
    let output = walmgr_as(user, Path::new("/"), words);
    let said = format!("{user} {words:?}: {}{}", output.stdout, output.stderr);
    let tail = output.stderr.trim_end();
    match then {
        Looks => assert!(!said.contains("sudo"), "{said}"),
        IsElsewhere => {
            assert_eq!(output.code, Some(2), "{said}");
            assert!(tail.ends_with("is the other side's file"), "{said}");
        }
        Refuses => {
            let code = if words.contains(&"xrestore") { 254 } else { 2 };
            assert_eq!(output.code, Some(code), "{said}");
            let typed = words.iter().map(|word| match *word {
                "it's me" => "'it'\\''s me'",
                word => word,
            });
            let typed: Vec<&str> = typed.collect();
            let program = walmgr_binary().display();
            let hint = format!("type: sudo -u postgres {program} {}", typed.join(" "));
            assert!(tail.ends_with(&hint) && tail.lines().count() == 1, "{said}");
        }
    }
}

#[test]
fn fault_130_init_and_identity_leave_no_root_files_in_a_users_folder() {
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
