//! What makes a drill fail, each with the words that say where to look; and file systems.
//! Never repairs a set by walmgr. Invariant: a drill that fails leaves nothing behind, and the next one can succeed.

use std::os::unix::fs::symlink;

use super::*;
use crate::support::loopfs::{FileSystem, LoopFs, give_back, take_all};
use crate::support::place::give_to_server;

/// Flips one bit in the middle of the set's largest relation; its path in the set, and what undoes it.
fn damage(drilled: &Drilled) -> (String, impl Fn() + use<>) {
    let set = drilled.site.completed_wals().with_file_name("data.master");
    let sql = "SELECT pg_relation_filepath('pgbench_accounts')";
    let name = drilled.site.cluster().psql(sql);
    let path = set.join(&name);
    let good = fs::read(&path).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    fs::write(&path, bad).unwrap();
    (name, move || fs::write(&path, &good).unwrap())
}

fn damaged_file_is_named(major: u8) {
    skip_unless!(Cluster::available(major));
    let drilled = Drilled::new(major);
    let (name, repair) = damage(&drilled);
    drilled.drill(&[]).fail_last(1, &name);
    drilled.assert_clear();
    let findings = drilled.status()["findings"].to_string();
    assert!(findings.contains(&name), "{findings}");
    repair();
    assert!(drilled.result()["failure"].is_null());
    assert!(!drilled.status()["findings"].to_string().contains(&name));
}

#[test]
fn fault_160_a_damaged_file_of_the_set_is_named_15() {
    damaged_file_is_named(15);
}

#[test]
fn fault_160_a_damaged_file_of_the_set_is_named_18() {
    damaged_file_is_named(18);
}

#[test]
fn fault_160_missing_wal_is_named_before_anything_is_copied() {
    let drilled = Drilled::new(15);
    drilled.site.cluster().switch_wal();
    for _ in 0..3 {
        drilled.site.cluster().pgbench(&["-n", "-t", "20"]);
        crate::load::drain(&drilled.site);
    }
    let names = drilled.site.archived_names();
    let segments: Vec<&String> = names.iter().filter(|name| name.len() == 24).collect();
    let missing = segments[segments.len() - 2];
    let path = drilled.site.unpacked_path(missing);
    let aside = drilled.site.home().join("aside");
    fs::rename(&path, &aside).unwrap();
    let words = format!("{missing} is missing in the archive");
    drilled.drill(&[]).fail_last(1, &words);
    drilled.assert_clear();
    // Damaged in its records, which only replay finds.
    let mut bytes = fs::read(&aside).unwrap();
    bytes[9_000] ^= 1;
    fs::write(&path, &bytes).unwrap();
    give_to_server(&path);
    drilled.drill(&[]).fail_last(1, missing);
    drilled.assert_clear();
    fs::rename(&aside, &path).unwrap();
    assert!(drilled.result()["failure"].is_null());
}

#[test]
fn fault_158_what_no_drill_made_stays_where_it_is() {
    let drilled = Drilled::new(15);
    let (scratch, elsewhere) = (drilled.scratch(), drilled.site.home().join("elsewhere"));
    fs::create_dir(&elsewhere).unwrap();
    for folder in [&scratch, &elsewhere] {
        let _ = fs::create_dir(folder);
        fs::write(folder.join("kept"), "of an administrator").unwrap();
        give_to_server(folder);
    }
    drilled
        .drill(&[])
        .fail_last(2, "is not the directory of a drill on this archive");
    assert!(scratch.join("kept").exists());
    fs::remove_dir_all(&scratch).unwrap();
    symlink(&elsewhere, &scratch).unwrap();
    drilled
        .drill(&[])
        .fail_last(2, "is not the directory of a drill on this archive");
    assert!(elsewhere.join("kept").exists() && scratch.is_symlink());
    fs::remove_file(&scratch).unwrap();
    assert!(drilled.result()["failure"].is_null());
}

#[test]
fn fault_160_room_is_checked_and_a_disk_that_fills_up_ends_the_drill() {
    let small = skip_unless!(LoopFs::create(FileSystem::Ext4, 64));
    let large = skip_unless!(LoopFs::create(FileSystem::Xfs, 2_000));
    let mut drilled = Drilled::placed(Cluster::builder(), Some(large.path()), |_| {});
    drilled.ship();
    // XFS shares the set's content with the drill, which reads all of it none the less.
    let shared = drilled.drill(&[]);
    shared.succeed();
    assert!(
        shared
            .stderr
            .contains("sharing its content with data.master"),
        "{}",
        shared.stderr
    );
    let (name, repair) = damage(&drilled);
    drilled.drill(&[]).fail_last(1, &name);
    repair();
    drilled.assert_clear();

    // The disk fills up once the query sorts on it: PostgreSQL does not say why it made no directory for that.
    let (sorting, filler) = (
        drilled.scratch().join("data/base/pgsql_tmp"),
        large.path().to_path_buf(),
    );
    drilled.site.standby_set(
        "drill_sql",
        "SELECT count(*) > 0 FROM (SELECT n FROM generate_series(1, 30000000) n ORDER BY n DESC) s",
    );
    let filling = std::thread::spawn(move || {
        wait_for("a query that sorts", PATIENCE, || {
            sorting.exists().then_some(())
        });
        take_all(&filler);
    });
    let failed = drilled.drill(&[]);
    filling.join().unwrap();
    failed.fail_last(1, "No space left on device");
    drilled.assert_clear();
    give_back(large.path());

    let place = small.path().display().to_string();
    give_to_server(small.path());
    drilled.site.standby_set("drill_directory", &place);
    let refused = drilled.drill(&[]);
    let why = refused.fail(1);
    assert!(
        why.contains("not enough space in") && why.contains("GiB needed"),
        "{why}"
    );
    assert!(why.contains("drill_directory"), "{why}");
    assert_eq!(processes_in(small.path()), Vec::<String>::new());
    let left = fs::read_dir(small.path()).unwrap().flatten();
    assert!(
        left.map(|entry| entry.file_name())
            .all(|name| name == "lost+found")
    );
}

/// The disk of the drill fills up while the set is copied, in the middle of a file or between two.
#[test]
fn fault_160_a_disk_that_fills_up_in_the_copy_fails_with_a_result() {
    let disk = skip_unless!(LoopFs::create(FileSystem::Ext4, 1_800));
    let mut drilled = Drilled::new(15);
    let (flushed, _) = drilled.ship();
    let place = disk.path().display().to_string();
    drilled.site.standby_set("drill_directory", &place);
    let before = drilled.archive_content();
    let scratch = disk.path().join(drilled.scratch().file_name().unwrap());
    let drill = drilled.site.standby_walmgr(&["drill", "--json"]);
    let (failed, ()) = stopped_in_copy(drill, &scratch, || take_all(disk.path()));
    assert_eq!(failed.code, Some(1), "{}", failed.stderr);
    let result: Value = serde_json::from_str(&failed.stdout).unwrap();
    let why = result["failure"].as_str().unwrap();
    assert!(why.contains("No space left on device"), "{why}");
    assert!(why.contains("copy data.master to"), "{why}");
    assert_eq!(result["set"], "data.master");
    for unknown in ["lsn", "commit_time", "rto_seconds", "copy_seconds"] {
        assert!(result[unknown].is_null(), "{unknown}: {result}");
    }
    assert!(!failed.stderr.is_empty(), "a failure is told on stderr too");
    assert_eq!(processes_in(&scratch), Vec::<String>::new());
    assert!(!scratch.exists());
    assert_eq!(drilled.archive_content(), before);
    let status = drilled.status();
    assert_eq!(status["standby"]["drill"]["failure"], result["failure"]);
    let findings = status["findings"].to_string();
    assert!(findings.contains("No space left on device"), "{findings}");

    give_back(disk.path());
    let result = drilled.result();
    assert_eq!(result["lsn"], flushed.as_str());
    assert!(drilled.status()["standby"]["drill"]["failure"].is_null());
}

/// Starts a drill, stops it once the directory of its copy is there, does something, and lets it go on.
fn stopped_in_copy<T>(
    mut command: std::process::Command,
    scratch: &Path,
    then: impl FnOnce() -> T,
) -> (Output, T) {
    use std::process::Stdio;
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = child.spawn().unwrap();
    let copying = scratch.join("data.restoring/pg_tblspc");
    let deadline = std::time::Instant::now() + PATIENCE;
    while !copying.exists() {
        assert!(std::time::Instant::now() < deadline, "no copy begins");
        std::thread::sleep(Duration::from_millis(1));
    }
    super::kills::signal(&child, rustix::process::Signal::STOP);
    let done = then();
    super::kills::signal(&child, rustix::process::Signal::CONT);
    (child.wait_with_output().unwrap().into(), done)
}
