//! `createslave` on real servers: a standby out of a base backup of the running master, by pg_basebackup.
//! Never a set: what it makes comes from the master alone. Invariant: whatever is refused, fails or is killed, the
//! old server's directory is whole, and the next call finishes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::promoted::{archives_its_timeline, write_promoted_ini};
use crate::restore::{CONTENT, PATIENCE, Scene, names_in};
use crate::support::backup_set::make_set;
use crate::support::cluster::is_alive;
use crate::support::place::give_to_server;
use crate::support::soak;
use crate::support::strace::Strace;
use crate::support::{Cluster, Output, Site, StopMode, wait_for};

/// Debian's, the only one that comes with pg_basebackup; it copies servers of its version and older ones.
const CLIENT_BIN: &str = "/usr/lib/postgresql/15/bin";
const CLIENT_MAJOR: u8 = 15;

/// Whether a server of this version can be copied here.
fn copies(major: u8) -> Result<(), String> {
    Cluster::available(major)?;
    if major > CLIENT_MAJOR {
        return Err(format!(
            "there is no pg_basebackup of PostgreSQL {major} on this machine"
        ));
    }
    match Path::new(CLIENT_BIN).join("pg_basebackup").is_file() {
        true => Ok(()),
        false => Err(format!("{CLIENT_BIN} has no pg_basebackup")),
    }
}

/// A master, and settings for a standby that streams from it as a role of its own, with a password.
fn scene(major: u8) -> Scene {
    let mut scene = Scene::new(major);
    let master = scene.site.cluster();
    master.psql(
        "SET password_encryption = 'scram-sha-256'; \
         CREATE ROLE streamer LOGIN REPLICATION PASSWORD 'se cret'",
    );
    let hba = "local replication streamer scram-sha-256\nhost replication streamer 127.0.0.1/32 scram-sha-256\n\
        host all streamer 127.0.0.1/32 scram-sha-256\n";
    allow(&scene, hba);
    let primary = format!(
        "host=127.0.0.1 port={} user=streamer password='se cret' application_name=created",
        scene.site.cluster().port()
    );
    scene.site.standby_set("primary_conninfo", &primary);
    scene.site.standby_set("slave_bin", CLIENT_BIN);
    scene
}

/// Has these lines come first in the master's pg_hba.conf.
fn allow(scene: &Scene, lines: &str) {
    let path = scene.site.data().join("pg_hba.conf");
    let rest = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{lines}{rest}")).unwrap();
    scene.site.cluster().reload();
    // The postmaster reads it when it gets to it.
    std::thread::sleep(Duration::from_millis(500));
}

fn create(scene: &Scene, words: &[&str]) -> Output {
    let output = scene
        .site
        .standby_command(&[&["createslave"], words].concat());
    if output.code != Some(0) {
        println!("{}\n{}", output.stderr, scene.standby_log());
    }
    output
}

fn streams(scene: &Scene) {
    let sql = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' \
        AND application_name = 'created'";
    wait_for("streaming", PATIENCE, || {
        (scene.site.cluster().psql(sql) == "1").then_some(())
    });
}

/// What lies beside `slave_data` under names that begin with its.
fn beside(scene: &Scene) -> Vec<String> {
    let data = scene.data();
    let own = data.file_name().unwrap().to_str().unwrap().to_owned();
    let mut names = names_in(data.parent().unwrap());
    names.retain(|name| name.starts_with(&own));
    names
}

#[test]
fn fault_184_a_created_standby_archives_by_its_promoted_ini_once_open() {
    skip_unless!(copies(15));
    let mut scene = scene(15);
    let data = scene.data();
    let ini = write_promoted_ini(&scene, &data);
    (scene.site).standby_set("promoted_ini", ini.to_str().unwrap());
    create(&scene, &[]).succeed();
    streams(&scene);
    assert_eq!(scene.standby.psql("SHOW archive_mode"), "on");
    let archives_by = scene.standby.psql("SHOW archive_command");
    assert!(archives_by.contains(ini.to_str().unwrap()), "{archives_by}");
    // Until it is open the master alone archives.
    scene.work("10");
    let content = scene.content();
    scene.wait_until_standby_has(&content);
    let count = "SELECT archived_count + failed_count FROM pg_stat_archiver";
    assert_eq!(scene.standby.psql(count), "0");
    scene.site.cluster_mut().stop(StopMode::Immediate);
    scene.boot();
    archives_its_timeline(&scene.site, &scene.standby);
}

#[test]
fn a_standby_is_made_of_the_master_and_ends_as_restore_does() {
    for major in [13, 15, 18] {
        if let Err(reason) = copies(major) {
            crate::support::report_skip(&reason);
            continue;
        }
        let scene = scene(major);
        let space = scene.site.home().create_dir("space");
        let master = scene.site.cluster();
        master.psql(&format!(
            "CREATE TABLESPACE s LOCATION '{}'",
            space.display()
        ));
        master.psql("CREATE TABLE in_space TABLESPACE s AS SELECT generate_series(1, 1000) AS n");
        let data = scene.data();
        let said = create(&scene, &["-n"]).succeed();
        let expected = format!(
            "would make a base backup of the master at 127.0.0.1 port {}",
            master.port()
        );
        assert!(said.starts_with(&expected), "{said}");
        assert!(
            said.ends_with(&format!("to {}, to recover as a standby", data.display())),
            "{said}"
        );
        assert!(beside(&scene).is_empty());

        create(&scene, &[]).succeed();
        streams(&scene);
        scene.work("50");
        let content = scene.content();
        scene.wait_until_standby_has(&content);
        assert_eq!(scene.standby.psql("SELECT count(*) FROM in_space"), "1000");
        assert_eq!(scene.standby.psql("SHOW archive_mode"), "off");
        let restore_command = scene.standby.psql("SHOW restore_command");
        assert!(
            restore_command.ends_with(" xrestore %f %p"),
            "{restore_command}"
        );
        let place = "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 's'";
        let place = scene.standby.psql(place);
        assert!(
            place.starts_with(data.join("tmpspc").to_str().unwrap()),
            "{place}"
        );
        let slots = "SELECT count(*) FROM pg_replication_slots";
        assert_eq!(scene.site.cluster().psql(slots), "0");

        // Once more, with the server running, and the tablespace and WAL elsewhere.
        let (new, wal) = (
            scene.site.home().join("new = space"),
            scene.site.home().join("wal"),
        );
        let mut scene = scene;
        scene
            .site
            .standby_set("slave_pg_xlog", wal.to_str().unwrap());
        let escaped = new.display().to_string().replace('=', "\\=");
        let mapping = format!("--tablespace-mapping={}={escaped}", space.display());
        create(&scene, &[&mapping]).succeed();
        streams(&scene);
        assert_eq!(scene.standby.psql("SELECT count(*) FROM in_space"), "1000");
        assert_eq!(fs::read_link(data.join("pg_wal")).unwrap(), wal);
        let link = names_in(&data.join("pg_tblspc"));
        assert_eq!(
            fs::read_link(data.join("pg_tblspc").join(&link[0])).unwrap(),
            new
        );
        assert_eq!(beside(&scene), ["standby-data", "standby-data.1"]);
        assert!(
            scene
                .data()
                .with_extension("1")
                .join("global/pg_control")
                .exists()
        );
        let said = scene.boot();
        assert!(said.contains("open on timeline 2"), "{said}");
        assert_eq!(scene.standby.psql(CONTENT), content);
    }
}

/// The old server goes on running, and nothing of ours is left.
fn refuses(scene: &Scene, words: &[&str], code: i32, part: &str) {
    let refused = scene
        .site
        .standby_command(&[&["createslave"], words].concat());
    refused.fail_last(code, part);
    let last = refused.stderr.lines().last().unwrap();
    assert!(last.contains("; "), "no hint: {last}");
    assert!(!refused.stderr.contains("se cret"), "{}", refused.stderr);
    assert_eq!(beside(scene), ["standby-data"], "{part}");
    assert_eq!(scene.standby.psql("SELECT 1"), "1", "{part}");
}

#[test]
fn fault_162_what_cannot_be_copied_is_named_and_the_old_server_goes_on() {
    skip_unless!(copies(15));
    let mut scene = scene(15);
    create(&scene, &[]).succeed();
    streams(&scene);
    let port = scene.site.cluster().port();
    let string = |rest: &str| format!("host=127.0.0.1 port={port} {rest}");
    let right = string("user=streamer password='se cret' application_name=created");
    scene
        .site
        .cluster()
        .psql("CREATE ROLE nobody LOGIN PASSWORD 'x'; CREATE ROLE closed LOGIN REPLICATION");
    allow(&scene, "host replication closed 127.0.0.1/32 reject\n");
    for (primary, code, part) in [
        (
            string("user=streamer password=wrong"),
            2,
            "password authentication failed",
        ),
        (string("user=streamer"), 2, "~/.pgpass"),
        (string("user=nobody"), 2, "ALTER ROLE name REPLICATION"),
        (string("user=closed"), 2, "pg_hba.conf"),
        (
            "host=127.0.0.1 port=1 user=streamer".to_owned(),
            1,
            "Connection refused",
        ),
        (
            string("user=streamer sslpassword=x"),
            2,
            "sslpassword cannot be given to a program",
        ),
        ("host=127.0.0.1 hots=x".to_owned(), 2, "hots"),
    ] {
        scene.site.standby_set("primary_conninfo", &primary);
        let refused = scene.site.standby_command(&["createslave"]);
        refused.fail_last(code, part);
        assert_eq!(beside(&scene), ["standby-data"], "{part}");
    }
    // The server in slave_data itself.
    let own = scene.standby.port();
    scene.site.standby_set(
        "primary_conninfo",
        &format!("host=127.0.0.1 port={own} user=postgres"),
    );
    refuses(&scene, &[], 2, "leads to the server in slave_data");
    let other = Cluster::builder().start();
    let elsewhere = format!("host=127.0.0.1 port={} user=postgres", other.port());
    scene.site.standby_set("primary_conninfo", &elsewhere);
    refuses(&scene, &[], 2, "leads to another cluster");
    scene.site.standby_set("primary_conninfo", &right);
    scene.site.standby_set("slave_bin", "/nonexistent");
    refuses(
        &scene,
        &[],
        2,
        "slave_bin is /nonexistent, which is not a directory",
    );

    // Programs that are not what they seem.
    let bin = scene.site.home().create_dir("bin");
    scene.site.standby_set("slave_bin", bin.to_str().unwrap());
    for (script, code, part) in [
        (
            "echo 'pg_basebackup (PostgreSQL) 14.9'",
            2,
            "whose pg_basebackup is of PostgreSQL 14, not 15 or newer",
        ),
        ("echo what", 2, "it says \"what\""),
        (
            "[ $1 = --version ] && echo 'x (PostgreSQL) 15.1' || { mkdir -p $2/base; echo 'pg_basebackup: error: \
            could not write to file \"x\": No space left on device' >&2; exit 1; }",
            1,
            "No space left on device; free some space",
        ),
        (
            "[ $1 = --version ] && echo 'x (PostgreSQL) 15.1' || { echo '0/9999999999999 kB (0%), 0/1' >&2; \
            sleep 600; }",
            1,
            "not enough space in",
        ),
        (
            "[ $1 = --version ] && echo 'x (PostgreSQL) 15.1' || kill -9 $$",
            1,
            "it had no output",
        ),
    ] {
        program(&bin, script);
        refuses(&scene, &[], code, part);
    }
    scene.site.standby_set("primary_conninfo", "");
    refuses(&scene, &[], 2, "needs the setting `primary_conninfo`");
}

/// A pg_basebackup that does this.
fn program(bin: &Path, script: &str) {
    let path = bin.join("pg_basebackup");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    give_to_server(&path);
}

#[test]
fn fault_162_a_newer_master_is_refused_before_anything_happens() {
    skip_unless!(Cluster::available(18));
    skip_unless!(copies(15));
    let scene = scene(18);
    let refused = create(&scene, &[]);
    refused.fail_last(
        2,
        "whose pg_basebackup is of PostgreSQL 15, not 18 or newer",
    );
    assert!(
        refused
            .stderr
            .contains("set slave_bin to the directory of PostgreSQL 18"),
        "{}",
        refused.stderr
    );
    assert!(beside(&scene).is_empty());
}

#[test]
fn fault_162_no_secret_is_shown_and_a_role_for_replication_is_enough() {
    skip_unless!(copies(15));
    let scene = scene(15);
    // The role may replicate and connect to no database.
    let hba = fs::read_to_string(scene.site.data().join("pg_hba.conf")).unwrap();
    let hba = hba.replace(
        "host all streamer 127.0.0.1/32 scram-sha-256",
        "host all streamer 127.0.0.1/32 reject",
    );
    fs::write(scene.site.data().join("pg_hba.conf"), hba).unwrap();
    allow(&scene, "");
    let space = scene.site.home().create_dir("space");
    let master = scene.site.cluster();
    master.psql(&format!(
        "CREATE TABLESPACE s LOCATION '{}'",
        space.display()
    ));
    master.psql("CREATE TABLE in_space TABLESPACE s AS SELECT generate_series(1, 1000) AS n");
    let bin = scene.site.home().create_dir("bin");
    let words = scene.site.home().join("words");
    program(
        &bin,
        &format!(
            "echo \"$@\" >>{words}; exec {CLIENT_BIN}/pg_basebackup \"$@\"",
            words = words.display()
        ),
    );
    let mut scene = scene;
    scene.site.standby_set("slave_bin", bin.to_str().unwrap());
    create(&scene, &[]).succeed();
    streams(&scene);
    assert_eq!(scene.standby.psql("SELECT count(*) FROM in_space"), "1000");
    let words = fs::read_to_string(words).unwrap();
    assert!(
        words.contains("user='streamer'") && !words.contains("cret"),
        "{words}"
    );
    assert!(words.contains("--tablespace-mapping="), "{words}");
}

/// walmgr is killed at its system calls, and pg_basebackup's own processes at random moments before.
#[test]
fn fault_163_killed_anywhere_the_next_call_finishes() {
    skip_unless!(Strace::available());
    skip_unless!(copies(15));
    let mut scene = scene(15);
    let space = scene.site.home().create_dir("space");
    scene.site.cluster().psql(&format!(
        "CREATE TABLESPACE s LOCATION '{}'",
        space.display()
    ));
    scene
        .site
        .cluster()
        .psql("CREATE TABLE in_space TABLESPACE s AS SELECT 1 AS n");
    scene.site.standby_set("slave_start_cmd", "");
    create(&scene, &[]).succeed();
    let old = scene.data();
    fs::write(old.join("of-the-old"), "").unwrap();
    let new = scene.site.home().join("new-space");
    let mapping = format!("--tablespace-mapping={}={}", space.display(), new.display());
    let few: [(&str, &[u32]); 4] = [
        ("mkdir", &[1, 4]),
        ("/rename.*", &[1, 3, 30]),
        ("symlink", &[2]),
        ("/unlink.*", &[2]),
    ];
    let many: [(&str, &[u32]); 4] = [
        ("mkdir", &[1, 2, 3, 4, 5, 6]),
        (
            "/rename.*",
            &[1, 2, 3, 4, 9, 20, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35],
        ),
        ("symlink", &[1, 2, 3]),
        ("/unlink.*", &[1, 2, 3, 5, 8]),
    ];
    for (call, counts) in if soak() { many } else { few } {
        for count in counts {
            let context = format!("{call} {count}");
            let killed = killed_at(&scene, &["createslave", &mapping], call, *count);
            let places: Vec<PathBuf> = [old.clone()]
                .into_iter()
                .chain(moved_aside(&scene))
                .collect();
            let whole = |path: &&PathBuf| {
                path.join("of-the-old").exists() && path.join("global/pg_control").exists()
            };
            assert_eq!(
                places.iter().filter(whole).count(),
                1,
                "{context}: {places:?}"
            );
            let startable = old.join("global/pg_control").exists();
            if startable && !old.join("of-the-old").exists() {
                assert_complete(&old, &new, &context);
            }
            let again = scene.site.standby_command(&["createslave", &mapping]);
            // All was in place when it was killed: the tablespace belongs to the new server.
            let is_done = again.stderr.contains("new-space is not empty") && startable;
            assert!(
                again.code == Some(0) || is_done,
                "{context}: {}",
                again.stderr
            );
            assert_complete(&old, &new, &context);
            println!("{context}: killed {killed}");
            begin_again(&scene, &new);
        }
    }
}

/// The old directory under its name again, and nothing else.
fn begin_again(scene: &Scene, new: &Path) {
    let data = scene.data();
    for path in moved_aside(scene) {
        if path.join("of-the-old").exists() {
            fs::remove_dir_all(&data).unwrap();
            fs::rename(&path, &data).unwrap();
        } else {
            fs::remove_dir_all(&path).unwrap();
        }
    }
    fs::remove_dir_all(new).unwrap();
    assert!(data.join("of-the-old").exists());
}

fn moved_aside(scene: &Scene) -> Vec<PathBuf> {
    let data = scene.data();
    let names = beside(scene).into_iter();
    let others = names.filter(|name| *name != "standby-data" && !name.ends_with(".restoring"));
    others.map(|name| data.with_file_name(name)).collect()
}

fn assert_complete(data: &Path, space: &Path, context: &str) {
    for name in [
        "global/pg_control",
        "backup_label",
        "standby.signal",
        "PG_VERSION",
        "base/1/PG_VERSION",
    ] {
        assert!(data.join(name).exists(), "{context}: {name}");
    }
    assert!(!data.join("walmgr.streamed").exists(), "{context}");
    assert!(!data.with_extension("restoring").exists(), "{context}");
    let links = names_in(&data.join("pg_tblspc"));
    assert_eq!(
        fs::read_link(data.join("pg_tblspc").join(&links[0])).unwrap(),
        space,
        "{context}"
    );
    assert_eq!(fs::read_dir(space).unwrap().count(), 1, "{context}");
    let conf = fs::read_to_string(data.join("postgresql.auto.conf")).unwrap();
    assert!(conf.contains("xrestore %f %p'\n"), "{context}: {conf}");
}

/// Kills walmgr alone; `false` when it has fewer of these calls and so ended by itself.
fn killed_at(scene: &Scene, words: &[&str], call: &str, count: u32) -> bool {
    let strace = Strace::available().unwrap().unprivileged();
    let strace = strace.inject(&format!("{call}:signal=KILL:when={count}"));
    let command = scene.site.standby_walmgr(words);
    let output = strace.wrap(&command).stdin(Stdio::null()).output().unwrap();
    !output.status.success()
}

/// pg_basebackup outlives a walmgr that was killed; the next call does not take its work for a leftover.
#[test]
fn fault_163_an_orphan_is_waited_for_and_then_removed() {
    skip_unless!(copies(15));
    let mut scene = scene(15);
    let bin = scene.site.home().create_dir("bin");
    let begun = scene.site.home().join("begun");
    program(
        &bin,
        &format!(
            "[ $1 = --version ] || {{ mkdir -p $2/base; touch {begun}; sleep 3; echo late >$2/base/late; exit 1; }}\n\
            echo 'x (PostgreSQL) 15.1'",
            begun = begun.display()
        ),
    );
    scene.site.standby_set("slave_bin", bin.to_str().unwrap());
    let mut killed = scene.site.standby_walmgr(&["createslave"]);
    let mut killed = killed
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("pg_basebackup to begin", PATIENCE, || {
        begun.exists().then_some(())
    });
    killed.kill().unwrap();
    killed.wait().unwrap();
    let restored = scene.site.standby_command(&["restore"]);
    assert_ne!(restored.code, Some(0));
    scene.site.standby_set("slave_bin", CLIENT_BIN);
    create(&scene, &[]).succeed();
    streams(&scene);
    assert_eq!(beside(&scene), ["standby-data"]);
    assert!(!scene.data().join("base/late").exists());
}

/// As `pg_basebackup` has a process that receives WAL, this one has a process that ends only when it is told to.
#[test]
fn fault_163_no_process_outlives_createslave_or_its_program() {
    skip_unless!(copies(15));
    let mut scene = scene(15);
    let bin = scene.site.home().create_dir("bin");
    let begun = scene.site.home().join("begun");
    program(
        &bin,
        &format!(
            "[ $1 = --version ] && exec echo 'x (PostgreSQL) 15.1'\n\
            mkdir -p $2/base; sleep 1000 & echo $$ $! >{begun}.new; mv {begun}.new {begun}\n\
            while :; do echo '    0/23191 kB (0%), 0/1 tablespace' >&2; sleep 0.1; done",
            begun = begun.display()
        ),
    );
    scene.site.standby_set("slave_bin", bin.to_str().unwrap());
    for killed in ["walmgr", "pg_basebackup"] {
        let _ = fs::remove_file(&begun);
        let mut walmgr = scene.site.standby_walmgr(&["createslave"]);
        let mut walmgr = (walmgr.stdin(Stdio::null()).stderr(Stdio::null()))
            .spawn()
            .unwrap();
        wait_for("pg_basebackup to begin", PATIENCE, || {
            begun.exists().then_some(())
        });
        let text = fs::read_to_string(&begun).unwrap();
        let pids: Vec<&str> = text.split_whitespace().collect();
        match killed {
            "walmgr" => walmgr.kill().unwrap(),
            _ => drop(Command::new("kill").args(["-9", pids[0]]).status().unwrap()),
        }
        wait_for("createslave to end", PATIENCE, || {
            walmgr.try_wait().unwrap()
        });
        wait_for("its processes to end", PATIENCE, || {
            let mut numbers = pids.iter().map(|pid| pid.parse().unwrap());
            numbers.all(|pid| !is_alive(pid)).then_some(())
        });
    }
}

/// A set that an interrupted restore moved exists nowhere else.
#[test]
fn fault_163_the_moved_set_of_a_restore_is_no_leftover() {
    skip_unless!(copies(15));
    let scene = scene(15);
    let staging = scene.data().with_extension("restoring");
    fs::create_dir_all(staging.join("global")).unwrap();
    fs::write(staging.join("global/pg_control.moved"), "the only one").unwrap();
    give_to_server(&staging);
    create(&scene, &[]).fail_last(2, "type `restore` to finish it");
    assert!(staging.join("global/pg_control.moved").exists());
}

#[test]
fn fault_163_somebody_elses_directory_in_the_way_stays() {
    skip_unless!(copies(15));
    let scene = scene(15);
    make_set(&scene.site, "data.master");
    let staging = scene.data().with_extension("restoring");
    let precious = staging.join("precious");
    for kind in ["directory", "link", "file"] {
        let elsewhere = scene.site.home().create_dir(kind);
        fs::write(elsewhere.join("precious"), "").unwrap();
        match kind {
            "directory" => {
                fs::create_dir(&staging).unwrap();
                fs::write(&precious, "").unwrap();
                give_to_server(&staging);
            }
            "link" => std::os::unix::fs::symlink(&elsewhere, &staging).unwrap(),
            _ => fs::write(&staging, "precious").unwrap(),
        }
        for word in ["createslave", "restore"] {
            let refused = scene.site.standby_command(&[word]);
            refused.fail_last(2, "standby-data.restoring is in the way");
            assert!(
                elsewhere.join("precious").exists() && staging.exists(),
                "{kind} {word}"
            );
        }
        match kind {
            "directory" => fs::remove_dir_all(&staging).unwrap(),
            _ => fs::remove_file(&staging).unwrap(),
        }
    }
    assert_eq!(scene.listed(), ["data.master"]);
}

#[test]
fn fault_162_a_full_disk_leaves_the_old_server_running() {
    skip_unless!(copies(15));
    let disk = skip_unless!(crate::support::loopfs::TmpFs::create(220_000, 20_000));
    give_to_server(disk.path());
    let mut scene = Scene::placed(Cluster::builder(), Some(disk.path()));
    let primary = scene.site.cluster().conninfo();
    scene.site.standby_set("primary_conninfo", &primary);
    scene.site.standby_set("slave_bin", CLIENT_BIN);
    scene.site.standby_set("backup_datadir", "no");
    create(&scene, &[]).succeed();
    let filler = disk.path().join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut file, &[1; 1 << 16]).is_ok() {}
    // Room for the server that runs, and for less than another one.
    let size = file.metadata().unwrap().len();
    file.set_len(size - (20 << 20)).unwrap();
    let refused = scene.site.standby_command(&["createslave"]);
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("space"), "{}", refused.stderr);
    assert_eq!(scene.standby.psql("SELECT 1"), "1");
    assert_eq!(beside(&scene), ["standby-data"]);
    drop(file);
    fs::remove_file(filler).unwrap();
    create(&scene, &[]).succeed();
}

#[test]
fn a_command_line_of_createslave_that_makes_no_sense_is_2() {
    let _user = skip_unless!(crate::support::place::server_user());
    let site = Site::builder().stopped().build();
    site.standby_command(&["createslave", "x"]).fail(2);
    site.standby_command(&["createslave", "--tablespace-mapping", "a=b"])
        .fail(2);
    let elsewhere = site.master_command(&["createslave"]);
    assert!(elsewhere.fail(2).contains("runs on the standby"));
    site.standby_command(&["createslave"])
        .fail_last(2, "needs the setting `slave_data`");
}
