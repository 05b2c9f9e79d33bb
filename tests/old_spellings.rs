//! Options of Skytools 3 that were commands without an ini file, typed as they were.
//! Never a home that is not the test's own. Invariant: each does what it did, or names its successor and changes
//! nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::support::place::{as_server, give_to_server, walmgr};
use crate::support::{Cluster, Output, TempDir};

/// As the server's user types it, in a home of its own.
fn typed(home: &Path, words: &[&str]) -> Output {
    Output::of(&mut line(home, words))
}

fn line(home: &Path, words: &[&str]) -> Command {
    let mut command = walmgr();
    command
        .args(words)
        .env("HOME", home)
        .env("PGHOST", "of-this-shell")
        .env("PGPASSFILE", home.join("of-this-shell"))
        .current_dir(home);
    as_server(&mut command);
    command
}

fn home() -> TempDir {
    let home = TempDir::new();
    give_to_server(home.path());
    home
}

#[test]
fn init_master_writes_its_file_into_the_folder_for_them() {
    skip_unless!(Cluster::available(15));
    let cluster = Cluster::builder().major(15).start();
    let home = home();
    let pgdata = cluster.data().to_str().unwrap();
    let base = [
        "--init-master",
        "--slave",
        "standby.example",
        "--pgdata",
        pgdata,
    ];
    let rehearsed = typed(home.path(), &[&base[..], &["-n"]].concat());
    rehearsed.succeed();
    assert!(!home.join("conf").exists());
    let made = typed(home.path(), &base);
    let said = made.succeed() + &made.stderr;
    let ini = home.join("conf/wal-master.ini");
    let now = format!(
        "--init-master is now: walmgr {} init master --pgdata {pgdata} --slave standby.example",
        ini.display()
    );
    assert!(said.contains(&now), "{said}");
    assert!(!said.contains("--ini "), "{said}");
    let text = fs::read_to_string(&ini).unwrap();
    assert!(text.contains("slave = standby.example"), "{text}");
    let bin = format!("master_bin = {}", cluster.bin().display());
    assert!(text.contains(&bin), "{text}");
    assert!(home.join("conf/wal-master.key").exists());
    // The file is the administrator's from then on.
    typed(home.path(), &base).fail_last(2, "exists already and is not changed");

    let other = home.join("etc/walmgr");
    let words = [&base[..], &["--config-dir", other.to_str().unwrap()]].concat();
    typed(home.path(), &words).succeed();
    assert!(other.join("wal-master.ini").exists());
    typed(
        home.path(),
        &["--init-master", "--pgdata", pgdata, "--config-dir=~/a"],
    )
    .fail_last(2, "add --slave HOST:PORT");
}

#[test]
fn fault_168_init_slave_writes_its_file_and_the_password_once() {
    let home = home();
    let password = home.write("password", "s:e\\cret\n");
    give_to_server(&password);
    let pgpass = home.write(".pgpass", "other:5432:app:me:kept\n*:*:*:rep:old\n");
    fs::set_permissions(&pgpass, PermissionsExt::from_mode(0o644)).unwrap();
    give_to_server(&pgpass);
    let conninfo = "host=db1,db2 port=5433 user=rep";
    let words = [
        "--init-slave",
        "--config-dir",
        "~/conf",
        "--primary-conninfo",
        conninfo,
        "--add-password",
        password.to_str().unwrap(),
    ];
    let said = typed(home.path(), &words);
    said.succeed();
    assert!(!said.stderr.contains("cret"), "{}", said.stderr);
    let ini = home.join("conf/wal-slave.ini");
    let text = fs::read_to_string(&ini).unwrap();
    assert!(
        text.contains(&format!("primary_conninfo = {conninfo}")),
        "{text}"
    );
    let expected = "other:5432:app:me:kept\ndb1:5433:replication:rep:s\\:e\\\\cret\n\
        db2:5433:replication:rep:s\\:e\\\\cret\n*:*:*:rep:old\n";
    assert_eq!(fs::read_to_string(&pgpass).unwrap(), expected);
    let mode = fs::metadata(&pgpass).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    // Again: nothing changes, and the file is told to be there.
    let again = typed(home.path(), &words);
    again.succeed();
    assert!(
        again.stderr.contains("exists already and is not changed"),
        "{}",
        again.stderr
    );
    assert_eq!(fs::read_to_string(&pgpass).unwrap(), expected);

    // The connection string is that of the file.
    typed(home.path(), &["--remove-password", "-n"]).succeed();
    assert_eq!(fs::read_to_string(&pgpass).unwrap(), expected);
    for _ in 0..2 {
        typed(home.path(), &["--remove-password"]).succeed();
        let left = fs::read_to_string(&pgpass).unwrap();
        assert_eq!(left, "other:5432:app:me:kept\n*:*:*:rep:old\n");
    }
    let ini = ini.to_str().unwrap();
    typed(home.path(), &[ini, "init", "--add-password", "password"]).succeed();
    assert_eq!(fs::read_to_string(&pgpass).unwrap(), expected);
    typed(
        home.path(),
        &[ini, "--remove-password", "--primary-conninfo", conninfo],
    )
    .succeed();
    assert_eq!(fs::read_to_string(&pgpass).unwrap().lines().count(), 2);
}

#[test]
fn fault_168_a_password_that_cannot_be_put_there_changes_nothing() {
    let home = home();
    let empty = home.write("empty", "\n");
    give_to_server(&empty);
    let conninfo = ["--primary-conninfo", "host=db1 user=rep"];
    for (words, code, part) in [
        (
            vec!["--init-slave", "--add-password", "empty"],
            2,
            "add --primary-conninfo",
        ),
        (
            [&["--init-slave", "--add-password", "empty"], &conninfo[..]].concat(),
            2,
            "first line of",
        ),
        (
            [&["--init-slave", "--add-password", "none"], &conninfo[..]].concat(),
            2,
            "No such file",
        ),
        (vec!["--remove-password"], 2, "add --primary-conninfo"),
    ] {
        typed(home.path(), &words).fail_last(code, part);
        assert!(!home.join(".pgpass").exists() && !home.join("conf/wal-slave.ini").exists());
    }
    home.create_dir(".pgpass");
    give_to_server(&home.join(".pgpass"));
    typed(
        home.path(),
        &[&["--remove-password"], &conninfo[..]].concat(),
    )
    .fail_last(2, "it is not a file");
}

#[test]
fn options_of_ssh_name_what_replaces_them_and_change_nothing() {
    let home = home();
    for (words, parts) in [
        (
            vec!["--init-master", "--slave", "a", "--ssh-keygen"],
            ["--ssh-keygen", "identity"],
        ),
        (
            vec!["--init-slave", "--ssh-add-key", "/tmp/id.pub"],
            ["--ssh-add-key", "authorize"],
        ),
        (
            vec!["--ssh-remove-key", "postgres@db1"],
            ["--ssh-remove-key", "revoke"],
        ),
        (
            vec!["s.ini", "--ssh-remove-key=postgres@db1"],
            ["--ssh-remove-key", "revoke"],
        ),
    ] {
        let output = typed(home.path(), &words);
        let said = output.fail(2);
        assert!(
            parts.iter().all(|part| said.contains(part)),
            "{words:?}: {said}"
        );
        assert_eq!(said.trim_end().lines().count(), 1, "{said}");
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
    }
}

#[test]
fn options_that_do_not_belong_together_are_named() {
    let home = home();
    for (words, part) in [
        (vec!["--init-master", "--init-slave"], "exclude each other"),
        (
            vec!["--init-master", "--slave", "a", "m.ini", "setup"],
            "`setup` is another",
        ),
        (
            vec!["--init-slave", "--slave", "a"],
            "--slave goes with --init-master, not with --init-slave",
        ),
        (
            vec!["--init-master", "--slave", "a", "--add-password", "f"],
            "--add-password goes with",
        ),
        (vec!["--pgdata", "/x"], "--pgdata goes with --init-master"),
        (
            vec!["--slave", "a", "m.ini", "init"],
            "walmgr m.ini init --slave",
        ),
        (
            vec!["--add-password", "f", "s.ini"],
            "--add-password goes with --init-slave",
        ),
        (
            vec!["--init-mastr"],
            "unexpected argument '--init-mastr' found",
        ),
    ] {
        let output = typed(home.path(), &words);
        assert_eq!(output.code, Some(2), "{words:?}: {}", output.stderr);
        assert!(output.stderr.contains(part), "{words:?}: {}", output.stderr);
    }
}
