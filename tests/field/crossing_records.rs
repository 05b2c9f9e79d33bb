//! Records that cross from one segment into the next, which is how most segments end.
//! Never trusts that one did: the notes of the receiver tell. Invariant: what a server may not replay is seen
//! wherever its record lies, by whichever side hands it out.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::replayed_tablespaces::Scene;
use crate::load::drain;
use crate::support::backup_set::make_set;
use crate::support::place::give_to_server;
use crate::support::{Cluster, Site, StopMode, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

const SEGMENT_BYTES: u64 = 1 << 20;

/// What a `CREATE TABLESPACE` writes before the record that makes the directory.
pub(crate) const BEFORE_BYTES: u64 = 300;

fn insert_position(master: &Cluster) -> u64 {
    let position = master.psql("SELECT pg_current_wal_insert_lsn() - '0/0'");
    position.trim().parse().unwrap()
}

/// Writes WAL until so much is left of a segment.
pub(crate) fn pad(master: &Cluster, left_bytes: u64) {
    for _ in 0..50 {
        let left = SEGMENT_BYTES - insert_position(master) % SEGMENT_BYTES;
        // Headers of pages and of the record come on top.
        let body = match left.checked_sub(left_bytes) {
            None => left,
            Some(0..100) => return,
            Some(more @ 100..7_000) => more - 90,
            Some(more) => (more - 6_000).min(400_000) * 99 / 100,
        };
        let sql = format!("SELECT pg_logical_emit_message(false, 'pad', repeat('x', {body}))");
        master.psql(&sql);
    }
    panic!("no end of the padding");
}

/// A directory whose path takes most of a kilobyte, so that the record about it is long.
fn long_directory(scene: &Scene) -> PathBuf {
    let mut path = scene.site.home().path().to_path_buf();
    while path.as_os_str().len() < 650 {
        path.push("x".repeat(200));
        fs::create_dir(&path).unwrap();
        give_to_server(&path);
    }
    path.push("beside");
    fs::create_dir(&path).unwrap();
    give_to_server(&path);
    path
}

/// Has a table in a tablespace whose creation crosses a boundary.
fn create_across(scene: &Scene) -> PathBuf {
    let (master, space) = (scene.site.cluster(), long_directory(scene));
    // Its pages of the catalog are in the WAL as a whole now.
    for sql in [
        "ALTER TABLESPACE before RENAME TO renamed",
        "ALTER TABLESPACE renamed RENAME TO before",
    ] {
        master.psql(sql);
    }
    let at = space.display().to_string();
    pad(master, BEFORE_BYTES + at.len() as u64 / 2);
    master.psql(&format!("CREATE TABLESPACE beside LOCATION '{at}'"));
    master
        .psql("CREATE TABLE in_beside TABLESPACE beside AS SELECT generate_series(1, 20000) AS n");
    drain(&scene.site);
    assert!(
        crosses(&scene.site, &at),
        "the record does not cross: try other bounds"
    );
    space
}

/// Whether the note about a location lies beside a later segment than its record begins in.
pub(crate) fn crosses(site: &Site, location: &str) -> bool {
    let folder = site.completed_wals().join(".obstacles");
    fs::read_dir(folder).unwrap().flatten().any(|entry| {
        let name = entry.file_name().into_string().unwrap();
        let text = fs::read_to_string(entry.path()).unwrap();
        let line = text.lines().find(|line| line.ends_with(location));
        let number = line.map(|line| {
            let (_, low) = line.split_once(' ').unwrap().0.split_once('/').unwrap();
            u64::from_str_radix(low, 16).unwrap() / SEGMENT_BYTES
        });
        number.is_some_and(|number| name != site.segment_name(number))
    })
}

fn restored_on_the_master(scene: &Scene, name: &str) -> Cluster {
    let place = scene.site.home().join(name);
    let words = ["restore", "data.master.0", place.to_str().unwrap()];
    scene.site.master_command(&words).succeed();
    Cluster::on_directory(scene.site.cluster().major(), &place)
}

fn held_back(scene: &Scene, server: &mut Cluster, space: &Path) {
    server.spawn();
    wait_for("the server to end", PATIENCE, || {
        (server.log().contains("is held back") && !server.is_running()).then_some(())
    });
    let log = server.log();
    assert!(log.contains(&space.display().to_string()), "{log}");
    assert_eq!(
        fs::read_dir(space).unwrap().count(),
        1,
        "{}",
        scene.status()
    );
}

#[test]
fn fault_124_a_tablespace_record_that_crosses_segments_is_held_back() {
    for major in crate::support::USUAL {
        skip_unless!(Cluster::available(major));
        let mut scene = Scene::new(major, &[]);
        scene.tablespace("before");
        fs::remove_dir_all(scene.standby.data()).unwrap();
        make_set(&scene.site, "data.master.0");
        let words = ["restore", "data.master.0"];
        scene.site.standby_command(&words).succeed();
        let mut other = restored_on_the_master(&scene, "again");
        let space = create_across(&scene);
        held_back(&scene, &mut other, &space);
        let mut standby = Cluster::on_directory(major, scene.standby.data());
        held_back(&scene, &mut standby, &space);
        assert!(
            scene.status().contains("creates tablespace"),
            "{}",
            scene.status()
        );
        assert_eq!(scene.master_rows("beside").as_deref(), Some("20000"));
        // Where the place is free it is replayed, also from within the record after a crash.
        scene.site.cluster_mut().stop(StopMode::Fast);
        let aside = space.with_file_name("of the master");
        fs::rename(&space, aside).unwrap();
        fs::create_dir(&space).unwrap();
        give_to_server(&space);
        for _ in 0..2 {
            standby.start();
            wait_for("the rows", PATIENCE, || {
                (Scene::rows(&standby, "beside")? == "20000").then_some(())
            });
            standby.stop(StopMode::Immediate);
        }
    }
}
