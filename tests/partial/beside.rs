//! Archiving beside the stream: the same segment at the same time, and right behind a switch.
//! Never with a master that lost anything. Invariant tested: every acknowledged byte is the
//! master's, whatever is archived meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::daemon::{Syncdaemon, wait_until_shipped};
use super::faults::segment_of;
use super::{flushed, held, in_pg_wal, site_of, sync};
use crate::support::Cluster;

#[test]
fn fault_102_archiving_the_segment_in_progress_changes_no_shipped_byte() {
    skip_unless!(Cluster::available(15));
    let cluster = Cluster::builder().conf("wal_keep_size", "1GB").start();
    let mut site = site_of(cluster, true);
    site.master_set("loop_delay", "0.02");
    site.cluster().psql("CREATE TABLE t (n int, s text)");
    let from = flushed(&site);
    let daemon = Syncdaemon::start(&site);
    daemon.wait_for_log("is shipped to");
    let ended = AtomicBool::new(false);
    let pushes = std::thread::scope(|scope| {
        let pushing = scope.spawn(|| {
            let mut pushes = 0;
            while !ended.load(Ordering::Relaxed) {
                let output = site.archive(&segment_of(&site, flushed(&site)));
                assert_ne!(output.code, Some(3), "{}", output.stderr);
                pushes += 1;
            }
            pushes
        });
        for round in 0..60 {
            site.cluster().psql(&format!(
                "INSERT INTO t SELECT {round}, repeat('x', 50) FROM generate_series(1, 60)"
            ));
            std::thread::sleep(Duration::from_millis(10));
        }
        ended.store(true, Ordering::Relaxed);
        pushing.join().unwrap()
    });
    assert!(pushes > 3, "{pushes}");
    wait_until_shipped(&site, from);
    let names = std::fs::read_dir(site.partial_wals()).unwrap().flatten();
    let aside = names.filter(|entry| entry.file_name().to_string_lossy().contains(".differs"));
    assert_eq!(aside.count(), 0);
}

#[test]
fn fault_103_a_changed_copy_does_not_keep_its_segment_from_the_archive() {
    skip_unless!(Cluster::available(15));
    let site = site_of(Cluster::builder().start(), true);
    site.cluster().psql("CREATE TABLE t (n int)");
    sync(&site);
    site.cluster()
        .psql("INSERT INTO t SELECT generate_series(1, 500)");
    let end = sync(&site);
    let name = segment_of(&site, end);
    let path = site.partial_wals().join(&name);
    let mut changed = held(&site, &name).unwrap();
    let middle = usize::try_from(end.0).unwrap() % changed.len() / 2;
    changed[middle] ^= 1;
    std::fs::write(&path, &changed).unwrap();
    site.cluster().switch_wal();
    let first = site.archive(&name);
    // PostgreSQL tries again, and no restart is needed for it.
    if first.code != Some(0) {
        first.fail_last(1, "the standby's disk changed the shipped records");
        site.archive(&name).succeed();
    }
    let ours = std::fs::read(in_pg_wal(&site, &name)).unwrap();
    assert!(site.archived(&name) == ours);
    let aside = site.partial_wals().join(format!("{name}.differs"));
    assert!(std::fs::read(aside).unwrap() == changed);
    site.receiver.wait_for_log("ALARM");
    sync(&site);
}

#[test]
fn fault_122_a_crash_right_behind_a_switch_lost_nothing_and_says_nothing() {
    skip_unless!(Cluster::available(15));
    let mut site = site_of(Cluster::builder().start(), false);
    site.cluster().psql("CREATE TABLE t (n int)");
    sync(&site);
    let name = segment_of(&site, flushed(&site));
    site.cluster().psql("INSERT INTO t VALUES (1)");
    site.cluster().switch_wal();
    site.cluster_mut().kill9();
    site.archive(&name).succeed();
    let output = site.master_command(&["sync"]);
    output.succeed();
    assert!(
        !output.stderr.contains("lost the tail"),
        "{}",
        output.stderr
    );
    site.cluster_mut().start();
    site.cluster().psql("INSERT INTO t VALUES (2)");
    sync(&site);
}
