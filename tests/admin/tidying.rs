//! `cleanup`: what goes, what stays, when it is refused, and what a kill leaves.
//! Never removes by itself what the command left. Invariant: no segment, set, data directory or foreign file goes.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Command;

use super::*;
use crate::restore::Scene;
use crate::support::place::{as_server, give_to_server, server_user, walmgr_binary};
use crate::support::{TempDir, have, wait_for, walmgr};

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

fn at(home: &TempDir, line: &str) -> Command {
    let mut command = walmgr();
    command.env("HOME", home.path()).current_dir(home.path());
    command.args(line.split_whitespace());
    command
}

fn typed(home: &TempDir, line: &str) -> Output {
    Output::of(&mut at(home, line))
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A standby as the guide begins it, with a key, a log and a list.
fn begun() -> TempDir {
    let home = TempDir::new();
    begin(&home);
    home
}

fn begin(home: &TempDir) {
    typed(home, "standby.ini init").succeed();
    typed(home, "standby.ini setup").succeed();
    let fingerprint = typed(home, "standby.ini identity").succeed();
    let line = format!("standby.ini authorize {} master", fingerprint.trim());
    typed(home, &line).succeed();
    for (name, text) in [
        (
            "standby.log",
            "2026-01-31 17:45:00,123 4711 INFO listening\n",
        ),
        ("standby.pid", "4711\n"),
    ] {
        fs::write(home.join(name), text).unwrap();
        give_to_server(&home.join(name));
    }
}

#[test]
fn fault_166_cleanup_removes_what_init_and_setup_made() {
    let _user = skip_unless!(server_user());
    let home = begun();
    let before = names(home.path());
    let refused = typed(&home, "standby.ini cleanup");
    says(&refused, 2, &["no terminal", "standby.ini cleanup --force"]);
    let told = typed(&home, "standby.ini cleanup -n").succeed();
    for part in [
        "standby.ini (",
        "standby.key (",
        "authorized_keys (",
        "logs.complete,",
    ] {
        assert!(told.contains(part), "{part} is not in: {told}");
    }
    assert_eq!(names(home.path()), before);
    typed(&home, "standby.ini cleanup --force").succeed();
    assert_eq!(names(home.path()), [""; 0]);
    let again = typed(&home, "standby.ini cleanup");
    assert!(again.succeed().contains("nothing is left"));
    // The same on the master, whose data directory is not there any more.
    let data = home.create_dir("data");
    fs::write(data.join("PG_VERSION"), "15\n").unwrap();
    let text = "[walmgr]\nmaster_data = gone\nslave = 127.0.0.1:1\n";
    fs::write(home.join("master.ini"), text).unwrap();
    give_to_server(&home.join("master.ini"));
    typed(&home, "master.ini identity").succeed();
    // A killed syncdaemon leaves its socket.
    let socket = home.join("master.pid.agent");
    drop(UnixListener::bind(&socket).unwrap());
    give_to_server(&socket);
    typed(&home, "master.ini cleanup --force").succeed();
    assert_eq!(names(home.path()), ["data"]);
}

#[test]
fn fault_166_cleanup_asks_on_a_terminal() {
    let _user = skip_unless!(server_user());
    if !have("script") {
        return crate::support::report_skip("there is no `script`, which makes a terminal");
    }
    let home = begun();
    let answered = |answer: &str| {
        let line = format!("{} standby.ini cleanup", walmgr_binary().display());
        let shell = format!("(sleep 1; {answer}; sleep 1) | script -qec '{line}' /dev/null");
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(shell).current_dir(home.path());
        as_server(&mut command);
        command.env("HOME", home.path()).output().unwrap()
    };
    let said = String::from_utf8_lossy(&answered("echo n").stdout).into_owned();
    assert!(said.contains("(y/N)"), "{said}");
    assert!(home.join("standby.ini").exists());
    // Somebody locks the sets while the question stands.
    let locked = format!("{} standby.ini xlock; echo y", walmgr_binary().display());
    let said = String::from_utf8_lossy(&answered(&locked).stdout).into_owned();
    assert!(said.contains("by hand"), "{said}");
    assert!(home.join("standby.ini").exists(), "{said}");
    typed(&home, "standby.ini xrelease").succeed();
    let said = answered("echo y");
    assert!(!home.join("standby.ini").exists(), "{said:?}");
}

#[test]
fn fault_166_cleanup_keeps_what_is_not_walmgrs() {
    let _user = skip_unless!(server_user());
    let home = begun();
    let write = |name: &str, text: &str| {
        fs::write(home.join(name), text).unwrap();
        give_to_server(&home.join(name));
    };
    // ssh's list, another program's log, a key that lies elsewhere, a set, a segment.
    write("authorized_keys", "ssh-ed25519 AAAA postgres@db1\n");
    write(
        "standby.log",
        "2026-01-31 17:45:00.123 UTC [4711] LOG:  starting\n",
    );
    write("standby.pid", "/run/x\n");
    fs::rename(home.join("standby.crt"), home.join("elsewhere.crt")).unwrap();
    symlink("elsewhere.crt", home.join("standby.crt")).unwrap();
    let archive = home.join("walshipping");
    fs::create_dir(archive.join("data.master.0")).unwrap();
    write("walshipping/logs.complete/000000010000000000000001", "x");
    let before = names(home.path());
    let told = typed(&home, "standby.ini cleanup --force").succeed();
    for part in [
        "it holds 000000010000000000000001",
        "data.master.0",
        "no regular file",
        "not walmgr's",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let mut left = names(home.path());
    left.push("standby.ini".to_owned());
    left.sort();
    assert_eq!(left, before);
    assert!(archive.join("data.master.0").exists());
    let kept = names(&archive.join("logs.complete"));
    for name in [".walmgr-archive", "000000010000000000000001"] {
        assert!(kept.contains(&name.to_owned()), "{kept:?}");
    }
}

#[test]
fn fault_166_cleanup_keeps_what_another_ini_file_uses() {
    let _user = skip_unless!(server_user());
    let home = begun();
    let text = fs::read_to_string(home.join("standby.ini")).unwrap();
    let other = text.replace("walshipping", "other");
    let shared = "\ntls_key = standby.key\ntls_cert = standby.crt\nlogfile = standby.log\n";
    fs::write(home.join("other.ini"), other + shared).unwrap();
    fs::write(
        home.join("broken.ini"),
        "[x]\nnonsense = 1\npidfile = standby.pid\n",
    )
    .unwrap();
    give_to_server(&home.join("other.ini"));
    give_to_server(&home.join("broken.ini"));
    let told = typed(&home, "standby.ini cleanup --force").succeed();
    assert!(told.contains("other.ini uses it, too"), "{told}");
    assert!(
        told.contains("broken.ini names it and cannot be read"),
        "{told}"
    );
    let left = [
        "authorized_keys",
        "broken.ini",
        "other.ini",
        "standby.crt",
        "standby.key",
        "standby.log",
        "standby.pid",
    ];
    assert_eq!(names(home.path()), left);
}

#[test]
fn fault_176_what_a_broken_or_unreadable_ini_file_may_use_stays() {
    let _user = skip_unless!(server_user());
    let home = begun();
    let write = |text: &str| {
        fs::write(home.join("broken.ini"), text).unwrap();
        give_to_server(&home.join("broken.ini"));
    };
    // It names no list, so it has the usual one.
    write("[x]\nnonsense = 1\n");
    let told = typed(&home, "standby.ini cleanup -n").succeed();
    assert!(
        told.contains("authorized_keys (keys that may connect): "),
        "{told}"
    );
    assert!(
        told.contains("goes   ") && told.contains("standby.key"),
        "{told}"
    );
    // It may name anything.
    write(&" ".repeat(2 << 20));
    let told = typed(&home, "standby.ini cleanup --force").succeed();
    assert!(
        told.contains("broken.ini cannot be read and may use it"),
        "{told}"
    );
    for kept in [
        "authorized_keys",
        "standby.key",
        "standby.crt",
        "standby.log",
    ] {
        assert!(home.join(kept).exists(), "{kept}: {told}");
    }
}

#[test]
fn fault_166_a_killed_cleanup_is_finished_by_the_next() {
    let _user = skip_unless!(server_user());
    skip_unless!(Strace::available());
    for call in ["/unlink.*", "/rmdir.*", "fsync"] {
        for count in 1..CALLS_MAX {
            let home = begun();
            let strace = Strace::available().unwrap().unprivileged();
            let strace = strace.inject(&format!("{call}:signal=KILL:when={count}"));
            let command = at(&home, "standby.ini cleanup --force");
            let ended = strace.wrap(&command).stdin(Stdio::null()).output().unwrap();
            typed(&home, "standby.ini cleanup --force").succeed();
            assert_eq!(names(home.path()), [""; 0], "{call} {count}");
            if ended.status.success() {
                break;
            }
        }
    }
}

#[test]
fn fault_166_cleanup_is_refused_while_anything_uses_the_file() {
    skip_unless!(Cluster::available(15));
    let mut scene = Scene::new(15);
    let force = ["cleanup", "--force"];
    let site = &scene.site;
    says(
        &site.master_command(&force),
        2,
        &["archives with this ini file", "stop"],
    );
    says(
        &site.standby_command(&force),
        2,
        &["receiver", "receiver --stop"],
    );
    site.master_command(&["syncdaemon", "-d"]).succeed();
    says(&site.master_command(&force), 2, &["syncdaemon --stop"]);
    site.master_command(&["syncdaemon", "-s"]).succeed();
    crate::support::backup_set::make_set(site, "data.master");
    scene.restore(&["data.master"]).succeed();
    scene.site.receiver.stop();
    let site = &scene.site;
    says(
        &site.standby_command(&force),
        2,
        &["replays with this ini file", "boot"],
    );
    site.standby_command(&["xlock"]).succeed();
    says(&site.standby_command(&force), 2, &["by hand", "xrelease"]);
    site.standby_command(&["xrelease"]).succeed();
    let segments = site.archived_names();
    assert!(!segments.is_empty());
    // On the master once archiving is off: the server, its settings and its data directory stay.
    site.master_command(&["stop"]).succeed();
    let conf = site.cluster().config_file();
    let text = fs::read(&conf).unwrap();
    let old = PathBuf::from(format!("{}.old", conf.display()));
    assert!(old.exists());
    let told = site.master_command(&force).succeed();
    assert!(!old.exists() && !site.master_ini().exists(), "{told}");
    assert_eq!(fs::read(&conf).unwrap(), text);
    assert_eq!(site.cluster().psql("SELECT 1"), "1");
    // On the standby once its server is stopped: everything that was archived stays.
    scene.standby.stop(crate::support::StopMode::Fast);
    let told = scene.site.standby_command(&force).succeed();
    assert!(!scene.site.standby_ini().exists(), "{told}");
    assert_eq!(scene.site.archived_names(), segments);
    assert!(scene.data().join("PG_VERSION").exists());
    assert_eq!(beside(&scene.site), ["data.master"]);
}

#[test]
fn fault_174_a_cluster_that_a_running_host_serves_stays_with_what_to_type() {
    let _user = skip_unless!(server_user());
    let home = TempDir::new();
    typed(&home, "host.ini init --host").succeed();
    let text = fs::read_to_string(home.join("host.ini")).unwrap();
    let port = crate::support::free_port();
    let listen = format!("listen = 127.0.0.1:{port}\n");
    fs::write(home.join("host.ini"), format!("{text}\n{listen}")).unwrap();
    give_to_server(&home.join("host.ini"));
    typed(&home, "clusters.d/db1.ini init").succeed();
    typed(&home, "clusters.d/db1.ini setup").succeed();
    typed(&home, "host.ini receiver -d").succeed();
    let before = names(&home.join("clusters.d"));
    let refused = typed(&home, "clusters.d/db1.ini cleanup --force");
    let hint = format!("{} receiver --reload", home.join("host.ini").display());
    says(
        &refused,
        2,
        &["serves this cluster; nothing was removed", &hint],
    );
    assert_eq!(names(&home.join("clusters.d")), before);
    // As the hint says.
    fs::rename(home.join("clusters.d/db1.ini"), home.join("db1.ini")).unwrap();
    typed(&home, "host.ini receiver --reload").succeed();
    wait_for("the host to let go of it", PATIENCE, || {
        let cleaned = typed(&home, "db1.ini cleanup --force");
        (cleaned.code == Some(0)).then_some(())
    });
    assert!(!home.join("db1.ini").exists());
    typed(&home, "host.ini receiver --stop").succeed();
}

#[test]
fn fault_174_commits_that_wait_for_our_standbys_keep_cleanup_from_it() {
    skip_unless!(Cluster::available(15));
    let cluster = Cluster::builder().conf("archive_mode", "on").start();
    let site = crate::support::Site::with_cluster(cluster);
    let names = "ALTER SYSTEM SET synchronous_standby_names = 'elsewhere'";
    site.master_command(&["setup"]).succeed();
    let note = site.cluster().data().join("walmgr_synchronous_standbys");
    site.cluster().psql(names);
    // As synch-standby notes what it set.
    fs::write(&note, r#"{"synchronous_standby_names": ["elsewhere"]}"#).unwrap();
    give_to_server(&note);
    let conf = fs::read_to_string(site.cluster().config_file()).unwrap();
    // Whatever else called this ini file is gone.
    let conf: String = conf
        .lines()
        .filter(|line| !line.contains("archive"))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(site.cluster().config_file(), conf).unwrap();
    site.cluster().reload();
    let refused = wait_for("the settings", PATIENCE, || {
        let refused = site.master_command(&["cleanup", "--force"]);
        refused.stderr.contains("commits wait").then_some(refused)
    });
    says(
        &refused,
        2,
        &[
            "commits wait for the standbys that walmgr set (elsewhere)",
            "stop",
        ],
    );
    assert!(site.master_ini().exists() && note.exists());
    site.master_command(&["stop"]).succeed();
    site.master_command(&["cleanup", "--force"]).succeed();
    assert_eq!(site.cluster().psql("SHOW synchronous_standby_names"), "");
    assert!(!note.exists());
}

#[test]
fn fault_174_cleanup_takes_out_the_password_lines_that_init_wrote() {
    let _user = skip_unless!(server_user());
    let home = TempDir::new();
    let pgpass = home.join(".pgpass");
    fs::write(&pgpass, "db0:5432:replication:repl:own\n").unwrap();
    give_to_server(&pgpass);
    fs::set_permissions(&pgpass, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    fs::write(home.join("secret"), "se:cret\n").unwrap();
    give_to_server(&home.join("secret"));
    let init = |ini: &str, host: &str| {
        let mut command = at(&home, ini);
        let conninfo = format!("host={host} user=repl");
        command.args([
            "init",
            "--primary-conninfo",
            &conninfo,
            "--add-password",
            "secret",
        ]);
        Output::of(&mut command).succeed();
    };
    init("standby.ini", "db1");
    init("other.ini", "db2");
    let text = |name: &str| fs::read_to_string(home.join(name)).unwrap();
    assert_eq!(text(".pgpass").lines().count(), 3);
    assert!(!text("standby.pgpass").contains("se:cret"));
    let listed = typed(&home, "standby.ini -n cleanup").succeed();
    let line = "goes   db1:5432:replication:repl:*** in ";
    assert!(
        listed.contains(line) && !listed.contains("db2:"),
        "{listed}"
    );
    typed(&home, "standby.ini cleanup --force").succeed();
    let expected = "db0:5432:replication:repl:own\ndb2:5432:replication:repl:se\\:cret\n";
    assert_eq!(text(".pgpass"), expected);
    assert!(!home.join("standby.pgpass").exists());
    // Another file of settings beside it needs the same line.
    init("third.ini", "db2");
    let told = typed(&home, "other.ini cleanup --force").succeed();
    assert!(told.contains("third.ini uses it, too"), "{told}");
    assert_eq!(text(".pgpass"), expected);
}

#[test]
fn fault_166_a_hosts_file_goes_after_its_clusters() {
    let _user = skip_unless!(server_user());
    let home = TempDir::new();
    typed(&home, "host.ini init --host").succeed();
    for name in ["db1", "db2"] {
        typed(&home, &format!("clusters.d/{name}.ini init")).succeed();
        typed(&home, &format!("clusters.d/{name}.ini setup")).succeed();
    }
    let refused = typed(&home, "host.ini cleanup --force");
    says(&refused, 2, &["2 clusters", "db1.ini cleanup"]);
    typed(&home, "clusters.d/db1.ini cleanup --force").succeed();
    assert!(home.join("host.key").exists() && home.join("clusters.d/db2.ini").exists());
    typed(&home, "clusters.d/db2.ini cleanup --force").succeed();
    typed(&home, "host.ini cleanup --force").succeed();
    let left = names(home.path());
    assert!(left.is_empty() || left == ["walshipping"], "{left:?}");
}
