//! Failbacks by `pg_rewind -c`, which asks a `restore_command` for WAL that `pg_wal` has no more.
//! Never a line that a test made up: each is the one that `restore` wrote, on either side. Invariant: both
//! servers end with the same rows. Debian has one `pg_rewind`, so one version is tried.

use std::fs;
use std::path::Path;

use crate::load::drain;
use crate::restore::{CONTENT, PATIENCE, Scene};
use crate::support::backup_set::make_set;
use crate::support::place::give_to_server;
use crate::support::{Cluster, StopMode, run, wait_for};

fn scene() -> Scene {
    let scene = Scene::of(Cluster::builder().major(15).conf("wal_log_hints", "on"));
    make_set(&scene.site, "data.master");
    scene.restore(&["data.master"]).succeed();
    scene.work("20");
    let content = scene.content();
    scene.wait_until_standby_has(&content);
    scene
}

/// The line in a directory that `restore` made.
fn line_of(data: &Path) -> String {
    let text = fs::read_to_string(data.join("postgresql.auto.conf")).unwrap();
    let mut lines = text.lines();
    let line = lines.find(|line| line.starts_with("restore_command = "));
    let line = line.unwrap().to_owned();
    assert!(!line.contains("%r"), "pg_rewind refuses it: {line}");
    line
}

fn append(data: &Path, text: &str) {
    let path = data.join("postgresql.auto.conf");
    let mut old = fs::read_to_string(&path).unwrap();
    old.push_str(text);
    fs::write(&path, old).unwrap();
    give_to_server(&path);
}

fn signal(data: &Path) {
    fs::write(data.join("standby.signal"), "").unwrap();
    give_to_server(&data.join("standby.signal"));
}

/// Rewinds; the same without `-c` has to fail, as the WAL is gone from `pg_wal`.
fn rewind(target: &Cluster, source: &Cluster) {
    source.psql("CHECKPOINT");
    let conninfo = source.conninfo();
    let rewind = |more: &[&str]| {
        let mut rewind = target.command("pg_rewind");
        rewind.arg("-D").arg(target.data());
        run(rewind.arg(format!("--source-server={conninfo}")).args(more))
    };
    let refused = rewind(&["-n"]).unwrap_err();
    assert!(refused.contains("could not open file"), "{refused}");
    rewind(&["-c"]).unwrap();
}

/// Takes away what a server has replayed or checkpointed, as it does itself in time.
fn remove_wal(data: &Path, timeline: &str, keep: &str) {
    for entry in fs::read_dir(data.join("pg_wal")).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let is_segment = name.len() == 24 && name.starts_with(timeline);
        if is_segment && name.as_str() < keep {
            fs::remove_file(entry.path()).unwrap();
        }
    }
}

fn segment(server: &Cluster) -> String {
    server.psql("SELECT pg_walfile_name(pg_current_wal_lsn())")
}

#[test]
fn fault_133_old_master_is_rewound_with_the_masters_restore_line() {
    skip_unless!(Cluster::available(15));
    let mut scene = scene();
    let tried = scene.site.home().join("tried");
    let words = ["restore", "data.master", tried.to_str().unwrap()];
    scene.site.master_command(&words).succeed();
    let line = line_of(&tried);
    scene.boot();
    scene.standby.pgbench(&["-n", "-t", "30"]);
    // The old master went on, and what it archived is set apart.
    for _ in 0..3 {
        scene.work("300");
        scene.site.cluster().psql("CHECKPOINT");
    }
    drain(&scene.site);
    let last = segment(scene.site.cluster());
    scene.site.cluster_mut().stop(StopMode::Fast);
    let old = scene.site.cluster().data().to_path_buf();
    remove_wal(&old, "00000001", &last);
    append(&old, &format!("{line}\n"));
    rewind(scene.site.cluster(), &scene.standby);
    let source = scene.standby.conninfo();
    append(
        &old,
        &format!(
            "{line}\nprimary_conninfo = '{source}'\nport = {}\n",
            scene.site.cluster().port()
        ),
    );
    signal(&old);
    scene.site.cluster_mut().start();
    let content = scene.standby.psql(CONTENT);
    wait_for("the new master's rows", PATIENCE, || {
        let found = scene.site.cluster().try_psql(CONTENT).ok()?;
        (found == content).then_some(())
    });
    let recovers = scene.site.cluster().psql("SELECT pg_is_in_recovery()");
    assert_eq!(recovers, "t");
}

#[test]
fn fault_133_opened_standby_is_rewound_with_its_restore_line() {
    skip_unless!(Cluster::available(15));
    let mut scene = scene();
    let line = line_of(&scene.data());
    scene.boot();
    scene.standby.pgbench(&["-n", "-t", "30"]);
    scene.work("300");
    let content = scene.content();
    scene.standby.psql("CHECKPOINT");
    scene.standby.stop(StopMode::Fast);
    let data = scene.data();
    remove_wal(&data, "00000001", "00000002");
    rewind(&scene.standby, scene.site.cluster());
    append(
        &data,
        &format!("{line}\nrecovery_target_timeline = 'current'\narchive_mode = off\n"),
    );
    signal(&data);
    let mut standby = scene.standby.command("/bin/sh");
    run(standby.arg("-c").arg(scene.start_command())).unwrap();
    scene.wait_until_standby_has(&content);
    assert_eq!(scene.standby.psql("SELECT pg_is_in_recovery()"), "t");
}
