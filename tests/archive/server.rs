//! A real PostgreSQL whose receiver is silent or down.
//! Never waits for a fixed time. Invariant: PostgreSQL neither hangs nor loses a segment.

use std::time::{Duration, Instant};

use crate::support::{Cluster, Site, StopMode, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

fn archived_up_to_date(cluster: &Cluster) -> bool {
    // Some records, so that the switch has a segment to finish, which also wakes the archiver.
    cluster.psql("SELECT pg_create_restore_point('x')");
    cluster.switch_wal();
    let waiting = std::fs::read_dir(cluster.data().join("pg_wal/archive_status")).unwrap();
    waiting
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".ready"))
        .count()
        <= 1
}

#[test]
fn fault_6_a_silent_receiver_does_not_hold_up_the_shutdown_of_postgresql() {
    skip_unless!(Cluster::available(15));
    let cluster = Cluster::builder().conf("archive_mode", "on").start();
    let mut site = Site::builder()
        .cluster(cluster)
        .proxied()
        .master_set("push_timeout", "1s")
        .build();
    site.master_command(&["setup"]).succeed();
    site.proxy().stall();
    let cluster = site.cluster();
    cluster.psql("CREATE TABLE t AS SELECT generate_series(1, 1000)");
    cluster.switch_wal();
    cluster.wait_for_log("archive command failed with exit code 1", PATIENCE);
    cluster.wait_for_log("within push_timeout = 1s", PATIENCE);
    let begun = Instant::now();
    site.cluster_mut().stop(StopMode::Fast);
    let took = begun.elapsed();
    assert!(took < PATIENCE, "{took:?}");
    // The archiver was never lost to an exit code it does not count.
    assert!(!site.cluster().log().contains("archiver process"));
}

#[test]
fn fault_11_wal_written_while_the_receiver_was_down_arrives_later() {
    skip_unless!(Cluster::available(15));
    let cluster = Cluster::builder()
        .conf("archive_mode", "on")
        .conf("wal_keep_size", "1GB")
        .start();
    let mut site = Site::with_cluster(cluster);
    site.master_command(&["setup"]).succeed();
    site.receiver.stop();
    let before = site.archived_names();
    let cluster = site.cluster();
    cluster.psql("CREATE TABLE t AS SELECT generate_series(1, 150000) AS n");
    cluster.switch_wal();
    let failures = || {
        let counted = cluster.psql("SELECT failed_count FROM pg_stat_archiver");
        counted.parse::<u32>().unwrap()
    };
    wait_for("a counted failure", PATIENCE, || {
        (failures() >= 2).then_some(())
    });
    assert!(cluster.log().contains("Connection refused"));
    assert_eq!(site.archived_names(), before);
    site.start_receiver();
    wait_for("the archive to be complete", PATIENCE, || {
        archived_up_to_date(site.cluster()).then_some(())
    });
    let after = site.archived_names();
    assert!(after.len() > before.len() + 5, "{after:?}");
    for name in &after {
        let kept = site.cluster().data().join("pg_wal").join(name);
        assert_eq!(site.archived(name), std::fs::read(kept).unwrap(), "{name}");
    }
}
