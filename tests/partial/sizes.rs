//! Every segment size on every version: one pair a version by default, all of them in the long run.
//! Never runs a version that is not installed: that prints a SKIP line.

use walmgr_protocol::names::Lsn;

use super::faults::{begin_of, segment_of};
use super::{assert_ships, flushed, in_pg_wal, site_of, sync};
use crate::support::{Cluster, Site, soak};

const SIZES_MB: [u32; 3] = [1, 16, 64];

#[test]
fn fault_44_46_51_postgres_13_ships_recycled_segments_of_all_sizes() {
    skip_unless!(Cluster::available(13));
    check(13, 1);
}

#[test]
fn fault_44_46_51_postgres_15_ships_recycled_segments_of_all_sizes() {
    skip_unless!(Cluster::available(15));
    check(15, 16);
}

#[test]
fn fault_44_46_51_postgres_17_ships_recycled_segments_of_all_sizes() {
    skip_unless!(Cluster::available(17));
    check(17, 64);
}

#[test]
fn fault_44_46_51_postgres_18_ships_recycled_segments_of_all_sizes() {
    skip_unless!(Cluster::available(18));
    check(18, 1);
}

fn check(major: u8, usual_mb: u32) {
    for size_mb in SIZES_MB {
        if soak() || size_mb == usual_mb {
            check_size(major, size_mb);
        }
    }
}

fn check_size(major: u8, size_mb: u32) {
    let cluster = Cluster::builder().major(major).wal_segment_size_mb(size_mb);
    let cluster = cluster
        .conf("min_wal_size", "256MB")
        .conf("max_wal_size", "512MB");
    let site = site_of(cluster.start(), major % 2 == 1);
    let mut first = begin_of(&site);
    site.cluster().psql("CREATE TABLE t (n int)");
    for round in 0..4 {
        let insert = format!("INSERT INTO t SELECT generate_series(1, {})", 900 * round);
        site.cluster().psql(&insert);
        if round % 2 == 1 {
            // Exactly on the border, with a segment behind it that was recycled.
            site.cluster().switch_wal();
        }
        let wanted = flushed(&site);
        let durable = sync(&site);
        assert!(durable >= wanted, "{size_mb}: {durable} of {wanted}");
        assert_ships(&site, first, durable);
        if round == 1 {
            assert_held(&site, durable);
        }
        if round == 1 && (soak() || size_mb < 64) {
            let finished = segment_of(&site, Lsn(durable.0 - 1));
            site.archive(&finished).succeed();
            let ours = std::fs::read(in_pg_wal(&site, &finished)).unwrap();
            assert!(site.archived(&finished) == ours, "{size_mb}");
        }
        // What is on the standby may go from the master, and come back under another name.
        first = Lsn(durable.0 - durable.0 % (u64::from(size_mb) << 20));
        site.cluster().psql("CHECKPOINT");
    }
}

/// `status` says that the standby holds everything up to there.
#[track_caller]
fn assert_held(site: &Site, durable: Lsn) {
    let output = site.master_command(&["status", "--json"]);
    let said: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    let held = said["archive"]["held_lsn"].as_str().unwrap();
    assert!(
        held.parse::<Lsn>().unwrap() >= durable,
        "{durable} in {said}"
    );
}
