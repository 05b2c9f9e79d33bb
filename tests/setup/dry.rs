//! `-n`: every command with and without it. Never compares what a command prints.
//! Invariant: with `-n` no file, folder, mode or time below the site changes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::support::place::{below_but_index, server_user};
use crate::support::{Cluster, Site};

/// Everything about every file below a folder, but what the server and the receiver write in their own time.
fn tree(folder: &Path) -> BTreeMap<PathBuf, (u32, u32, i64, i64, Vec<u8>)> {
    let found = below_but_index(folder).into_iter();
    let found = found.filter(|(path, _)| !path.ends_with("receiver.log"));
    found
        .map(|(path, status)| {
            let content = match status.is_file() {
                true => fs::read(&path).unwrap(),
                false => Vec::new(),
            };
            let time = (status.mtime(), status.mtime_nsec());
            (path, (status.mode(), status.uid(), time.0, time.1, content))
        })
        .collect()
}

#[test]
fn not_really_changes_nothing_and_ends_as_the_real_run_would() {
    let _user = skip_unless!(server_user());
    let mut site = Site::builder()
        .master_set("periodic_command", "touch ran")
        .build();
    site.write_segment(1);
    let name = site.segment_name(1);
    let path = format!("{}/pg_wal/{name}", site.data().display());
    let key = site.master_fingerprint();
    let other = "SHA256:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
    let before = tree(site.home().path());
    let commands = |site: &Site| {
        let master: [(&[&str], i32); 5] = [
            (&["identity", "-n"], 0),
            (&["periodic", "-n"], 0),
            (&["xarchive", &path, &name, "-n"], 0),
            (&["xarchive", "absent", &name, "-n"], 1),
            (&["xarchive", "/", &name, "-n"], 2),
        ];
        for (words, code) in master {
            let ended = site.master_command(words);
            assert_eq!(ended.code, Some(code), "{words:?}: {ended:?}");
        }
        let standby: [(&[&str], i32); 7] = [
            (&["setup", "-n"], 0),
            (&["identity", "-n"], 0),
            (&["authorize", other, "other", "-n"], 0),
            (&["authorize", &key, "other", "-n"], 2),
            (&["revoke", "master", "-n"], 0),
            (&["revoke", "nobody", "-n"], 1),
            (&["receiver", "-s", "-n"], 0),
        ];
        for (words, code) in standby {
            let ended = site.standby_command(words);
            assert_eq!(ended.code, Some(code), "{words:?}: {ended:?}");
        }
    };
    commands(&site);
    assert_eq!(tree(site.home().path()), before);
    assert!(site.receiver.is_running());

    // What the real run would fail with is told: the receiver, its opinion of us, the server.
    site.master_command(&["setup", "-n"])
        .fail_last(1, "connect");
    site.receiver.stop();
    let words = ["xarchive", &path, &name, "-n"];
    site.master_command(&words)
        .fail_last(1, "Connection refused");
    site.master_command(&["setup", "-n"])
        .fail_last(1, "Connection refused");
    site.start_receiver();
    site.standby_command(&["revoke", "master"]).succeed();
    site.receiver.wait_for_log("settings and keys reloaded");
    site.master_command(&words).fail_last(4, "authorize");
    site.master_command(&["setup", "-n"])
        .fail_last(1, "authorize");
}

#[test]
fn a_first_ini_file_is_only_shown() {
    let _user = skip_unless!(server_user());
    let site = Site::start();
    let before = tree(site.home().path());
    let folder = site.home().path();
    for (name, words) in [
        ("new-standby.ini", vec!["init".to_owned(), "-n".to_owned()]),
        (
            "new-master.ini",
            ["init", "-n", "--slave", "standby.example", "--pgdata"]
                .map(str::to_owned)
                .into_iter()
                .chain([site.data().display().to_string()])
                .collect(),
        ),
    ] {
        let mut command = crate::support::walmgr();
        command.arg(folder.join(name)).args(words);
        let ended = crate::support::Output::of(&mut command);
        ended.succeed();
    }
    assert_eq!(tree(site.home().path()), before);
}

#[test]
fn setup_and_stop_on_a_server_are_only_shown() {
    skip_unless!(Cluster::available(15));
    let mut site = Site::builder()
        .cluster(Cluster::builder().start())
        .unbound()
        .build();
    site.master_set("master_restart_cmd", "touch restarted");
    let conf = site.cluster().config_file();
    let before = (fs::read(&conf).unwrap(), tree(site.home().path()));
    for words in [["setup", "-n"], ["stop", "-n"]] {
        let ended = site.master_command(&words);
        ended.succeed();
        assert!(ended.stdout.contains("archive_mode"), "{ended:?}");
    }
    let after = (fs::read(&conf).unwrap(), tree(site.home().path()));
    assert_eq!(after, before);
    assert!(!conf.with_file_name("postgresql.conf.old").exists());
    assert!(site.overview().cluster.is_none(), "nothing was bound");
}
