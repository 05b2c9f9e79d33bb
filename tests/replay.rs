//! Standbys that replay from the archive on real servers: warm, hot, paused, booted, promoted.
//! Never streams: every byte comes through `xrestore`. Invariant: a standby that opens has all the
//! data that its archive held.

mod boot;
mod damage;
mod ends;
mod shipped;
pub(crate) mod timelines;
mod unfinished;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::load::drain;
use crate::support::place::give_to_server;
use crate::support::{Cluster, Site, StopMode, run, soak, wait_for, walmgr_binary};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What tells whether two servers hold the same.
const CONTENT: &str = "SELECT (SELECT md5(string_agg(a::text, ',' ORDER BY aid)) FROM pgbench_accounts a), \
     (SELECT md5(string_agg(h::text, ',' ORDER BY h::text)) FROM pgbench_history h), \
     (SELECT sum(tbalance) FROM pgbench_tellers)";

/// A master that archives, with pgbench's tables.
pub(crate) fn master(major: u8) -> Site {
    let site = bare_master(major);
    site.cluster().pgbench(&["-i", "-q", "-s", "1"]);
    site
}

/// A master that archives.
pub(crate) fn bare_master(major: u8) -> Site {
    let cluster = Cluster::builder()
        .major(major)
        .conf("archive_mode", "on")
        .conf("track_commit_timestamp", "on")
        .start();
    let site = Site::with_cluster(cluster);
    site.master_command(&["setup"]).succeed();
    site
}

/// A copy of the master as it is, not started, that restores from the archive.
pub(crate) fn copy_of_master(site: &mut Site, name: &str, settings: &[&str]) -> Cluster {
    drain(site);
    let major = site.cluster().major();
    site.cluster_mut().stop(StopMode::Fast);
    let data = site.home().join(name);
    copy_directory(site.cluster().data(), &data);
    site.cluster_mut().start();
    let mut conf = fs::read_to_string(data.join("postgresql.conf")).unwrap();
    conf.push_str(&format!(
        "archive_mode = off\nwal_retrieve_retry_interval = '1s'\nrestore_command = '{}'\n",
        restore_command(site)
    ));
    for line in settings {
        conf.push_str(&format!("{line}\n"));
    }
    fs::write(data.join("postgresql.conf"), conf).unwrap();
    give_to_server(&data);
    Cluster::on_directory(major, &data)
}

fn restore_command(site: &Site) -> String {
    let (walmgr, ini) = (walmgr_binary().display(), site.standby_ini().display());
    format!("{walmgr} {ini} xrestore %f %p %r")
}

fn copy_directory(from: &Path, to: &Path) {
    run(Command::new("cp").arg("-a").arg(from).arg(to)).unwrap();
}

pub(crate) fn signal_file(standby: &Cluster, name: &str) {
    let path = standby.data().join(name);
    fs::write(&path, "").unwrap();
    give_to_server(&path);
}

/// A standby that replays, known to the settings as `slave_data`.
pub(crate) fn standby_of(site: &mut Site, hot: bool) -> Cluster {
    let hot = format!("hot_standby = {}", if hot { "on" } else { "off" });
    let mut standby = copy_of_master(site, "replaying", &[&hot]);
    signal_file(&standby, "standby.signal");
    site.standby_set("slave_data", &standby.data().display().to_string());
    standby.start();
    standby
}

pub(crate) fn has_restored(standby: &Cluster, name: &str) -> bool {
    let line = format!("restored log file \"{name}\" from archive");
    standby.log().contains(&line)
}

pub(crate) fn wait_until_restored(standby: &Cluster, name: &str) {
    let begun = Instant::now();
    while !has_restored(standby, name) {
        let waits = standby.is_running() && begun.elapsed() < PATIENCE;
        assert!(waits, "{name} is not restored:\n{}", standby.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// How many files the standby has restored so far.
pub(crate) fn restored_count(standby: &Cluster) -> usize {
    standby.log().matches("restored log file").count()
}

pub(crate) fn newest_segment(site: &Site) -> String {
    let mut names = site.archived_names();
    names.retain(|name| name.len() == 24);
    names.pop().unwrap()
}

/// Everything the master has written is archived; the name of the last segment.
pub(crate) fn finish(site: &Site) -> String {
    drain(site);
    newest_segment(site)
}

#[test]
fn a_standby_far_behind_replays_segments_that_lie_ready() {
    skip_unless!(Cluster::available(15));
    let site = master(15);
    let ini = site.standby_ini().to_path_buf();
    replays_what_lies_ready(site, &ini);
}

/// A standby far behind, whose `restore_command` is that of these settings, is handed out what lies ready for it.
pub(crate) fn replays_what_lies_ready(mut site: Site, ini: &Path) {
    let (walmgr, ini) = (walmgr_binary().display(), ini.display());
    let command = format!("restore_command = '{walmgr} -v -v {ini} xrestore %f %p %r'");
    let mut standby = copy_of_master(&mut site, "behind", &["hot_standby = on", &command]);
    signal_file(&standby, "standby.signal");
    site.standby_set("slave_data", &standby.data().display().to_string());
    for round in 0..12 {
        let sql =
            format!("CREATE TABLE round_{round} AS SELECT 1 AS n FROM generate_series(1, 20000)");
        site.cluster().psql(&sql);
        site.cluster().switch_wal();
    }
    let last = finish(&site);
    standby.start();
    wait_until_restored(&standby, &last);
    let ready = standby
        .log()
        .matches("lay ready for pg_wal/RECOVERYXLOG")
        .count();
    assert!(ready >= 2, "{ready} lay ready:\n{}", standby.log());
    wait_for("the last table", Duration::from_secs(60), || {
        standby.try_psql("TABLE round_11 LIMIT 1").ok()
    });
    // It asks in vain for the next one.
    wait_for("nothing that lies ready", Duration::from_secs(60), || {
        (!standby.data().join("pg_wal/.walmgr").exists()).then_some(())
    });
}

fn pgbench(site: &Site, seconds: &str) {
    site.cluster().pgbench(&["-n", "-c", "2", "-T", seconds]);
}

#[test]
fn a_standby_replays_each_segment_once_it_is_stored() {
    skip_unless!(Cluster::available(15));
    for hot in [true, false] {
        let mut site = master(15);
        let standby = standby_of(&mut site, hot);
        let mut slowest = Duration::ZERO;
        for round in 0..5 {
            let sql = format!("CREATE TABLE round_{round} AS SELECT 1 AS n");
            site.cluster().psql(&sql);
            let name = finish(&site);
            let stored = Instant::now();
            wait_until_restored(&standby, &name);
            slowest = slowest.max(stored.elapsed());
            if hot {
                wait_for("the table", Duration::from_secs(60), || {
                    standby.try_psql(&format!("TABLE round_{round}")).ok()
                });
            }
        }
        println!("hot_standby = {hot}: restored {slowest:.0?} after storing at most");
        assert!(!standby.log().contains("walmgr: "), "{}", standby.log());
    }
}

#[test]
fn pause_continue_and_boot_bring_the_masters_data_on_every_version() {
    for major in Cluster::available_majors() {
        // Both kinds on the main version, one of them on each other.
        let kinds: &[bool] = if major == 15 {
            &[true, false]
        } else {
            &[major % 2 == 0]
        };
        for hot in kinds {
            pause_continue_boot(major, *hot);
        }
    }
}

fn pause_continue_boot(major: u8, hot: bool) {
    let mut site = master(major);
    let mut standby = standby_of(&mut site, hot);
    pgbench(&site, "2");
    site.standby_command(&["pause"]).succeed();
    pgbench(&site, "2");
    let last = finish(&site);
    let held = restored_count(&standby);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(restored_count(&standby), held, "replay is not paused");
    assert!(!has_restored(&standby, &last));
    site.standby_command(&["continue"]).succeed();
    wait_until_restored(&standby, &last);
    pgbench(&site, "1");
    let last = finish(&site);
    let content = site.cluster().psql(CONTENT);
    let commit = site
        .cluster()
        .psql("SELECT timestamp AT TIME ZONE 'UTC' FROM pg_last_committed_xact()");

    let begun = Instant::now();
    let said = site.standby_command(&["boot"]).succeed();
    println!(
        "PostgreSQL {major}, hot_standby = {hot}: {:.1?}: {said}",
        begun.elapsed()
    );
    assert!(
        said.contains("The database is open on timeline 2."),
        "{said}"
    );
    assert!(has_restored(&standby, &last));
    let history = fs::read_to_string(standby.data().join("pg_wal/00000002.history")).unwrap();
    let end = history.split_whitespace().nth(1).unwrap();
    assert!(
        said.contains(&format!("timeline 1 up to {end}")),
        "{said}: {history}"
    );
    // SQL leaves out zeros at the end.
    assert!(
        said.contains(&format!("the last commit was at {commit}")),
        "{said}: {commit}"
    );
    for gone in ["PAUSE", "STOP"] {
        assert!(!site.holds(gone), "{gone}");
    }
    assert_eq!(site.archived("PROGRESS").trim_ascii(), b"");
    assert!(!standby.data().join("standby.signal").exists());
    assert_eq!(standby.psql(CONTENT), content, "PostgreSQL {major}");
    standby.psql("CREATE TABLE open_again ()");
    standby.restart();
}

#[test]
fn a_plain_promotion_replays_everything_too() {
    skip_unless!(Cluster::available(15));
    for hot in [true, false] {
        let mut site = master(15);
        let standby = standby_of(&mut site, hot);
        pgbench(&site, "2");
        finish(&site);
        let content = site.cluster().psql(CONTENT);
        let mut promote = standby.command("pg_ctl");
        promote
            .args(["promote", "-w", "-t", "30", "-D"])
            .arg(standby.data());
        let begun = Instant::now();
        run(&mut promote).unwrap();
        println!("hot_standby = {hot}: promoted in {:.1?}", begun.elapsed());
        assert_eq!(standby.psql(CONTENT), content);
    }
}

/// PostgreSQL asks for early segments on the new timeline too, where they never were.
#[test]
fn a_standby_follows_a_promotion_through_the_archive() {
    let mut majors = Cluster::available_majors();
    if !soak() && majors.len() > 2 {
        majors.drain(1..majors.len() - 1);
    }
    for major in majors {
        let mut site = master(major);
        let mut follower = copy_of_master(&mut site, "follower", &["hot_standby = on"]);
        signal_file(&follower, "standby.signal");
        let data = site.home().join("replaying");
        let (walmgr, ini) = (walmgr_binary().display(), site.master_ini().display());
        let archive_command = format!(
            "archive_command = '{walmgr} --set master_data={} {ini} xarchive %p %f'",
            data.display()
        );
        let settings = ["archive_mode = on", archive_command.as_str()];
        let mut promoted = copy_of_master(&mut site, "replaying", &settings);
        signal_file(&promoted, "standby.signal");
        site.standby_set("slave_data", &data.display().to_string());
        promoted.start();
        pgbench(&site, "2");
        finish(&site);
        site.standby_command(&["boot"]).succeed();
        promoted.pgbench(&["-n", "-t", "200"]);
        promoted.psql("SELECT pg_create_restore_point('x')");
        let last = promoted.psql("SELECT pg_walfile_name(pg_switch_wal())");
        wait_for(&last, PATIENCE, || site.holds(&last).then_some(()));
        let content = promoted.psql(CONTENT);

        follower.start();
        wait_for("the promoted server's data", PATIENCE, || {
            assert!(
                follower.is_running(),
                "PostgreSQL {major}:\n{}",
                follower.log()
            );
            (follower.try_psql(CONTENT).ok()? == content).then_some(())
        });
        assert!(has_restored(&follower, "00000002.history"));
        assert!(has_restored(&follower, &last));
    }
}

/// Processes of `xrestore` with this site's settings.
fn xrestores(site: &Site) -> Vec<u32> {
    let ini = site.standby_ini().display().to_string();
    let ours = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.contains(&ini.as_bytes()) && words.contains(&&b"xrestore"[..])
    };
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(ours).collect()
}

#[test]
fn xrestore_ends_with_the_postgresql_that_asked() {
    skip_unless!(Cluster::available(15));
    let mut site = master(15);
    let mut standby = standby_of(&mut site, false);
    for mode in [None, Some(StopMode::Immediate), Some(StopMode::Fast)] {
        site.standby_command(&["pause"]).succeed();
        wait_for("a held xrestore", PATIENCE, || {
            (!xrestores(&site).is_empty()).then_some(())
        });
        let begun = Instant::now();
        match mode {
            None => standby.kill9(),
            Some(mode) => standby.stop(mode),
        }
        wait_for("its end", Duration::from_secs(5), || {
            xrestores(&site).is_empty().then_some(())
        });
        println!(
            "{mode:?}: everything was gone after {:.1?}",
            begun.elapsed()
        );
        assert!(standby.data().join("standby.signal").exists());
        site.standby_command(&["continue"]).succeed();
        standby.start();
    }
    // Nothing that was interrupted left anything behind.
    pgbench(&site, "1");
    let last = finish(&site);
    wait_until_restored(&standby, &last);
    let names = fs::read_dir(standby.data().join("pg_wal"))
        .unwrap()
        .flatten();
    let left = names.filter(|name| name.file_name().to_string_lossy().ends_with(".new"));
    assert_eq!(left.count(), 0);
}
