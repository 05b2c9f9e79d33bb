//! Masters that crash, lose their tail, change their timeline, or come from another past.
//! Never with a daemon: one pass shows it. Invariant tested: the standby follows its master, and
//! nobody else.

use std::process::Command;

use walmgr_protocol::names::Lsn;

use super::{assert_ships, flushed, in_pg_wal, site_of, sync};
use crate::support::{Cluster, Site, StopMode, run, soak};

fn segment_of(site: &Site, lsn: Lsn) -> String {
    site.segment_name(lsn.0 / site.facts().cluster.segment_size.bytes())
}

/// Ships for the first time, which begins with the current segment; where that one begins.
fn begin_of(site: &Site) -> Lsn {
    sync(site);
    let lsn = flushed(site);
    let size = site.facts().cluster.segment_size.bytes();
    Lsn(lsn.0 - lsn.0 % size)
}

#[test]
fn fault_47_48_a_tail_that_the_master_lost_is_kept_until_it_is_written_anew() {
    skip_unless!(Cluster::available(15));
    let mut site = site_of(Cluster::builder().start(), true);
    let begin = begin_of(&site);
    site.cluster().psql("CREATE TABLE t (n int); CHECKPOINT");
    sync(&site);
    let common = flushed(&site);
    site.cluster().psql("INSERT INTO t VALUES (1), (2), (3)");
    let lost = sync(&site);
    assert!(lost > common);
    site.cluster_mut().kill9();
    // The disk lied about the last few records.
    let name = segment_of(&site, common);
    let path = in_pg_wal(&site, &name);
    let mut wal = std::fs::read(&path).unwrap();
    let from = usize::try_from(common.0 % wal.len() as u64).unwrap();
    wal[from..].fill(0);
    std::fs::write(&path, &wal).unwrap();
    let kept = super::held(&site, &name).unwrap();
    let output = site.master_command(&["sync"]);
    output.succeed();
    assert!(output.stderr.contains("lost its tail"), "{}", output.stderr);
    assert_eq!(
        super::held(&site, &name).unwrap(),
        kept,
        "nothing is dropped yet"
    );
    site.cluster_mut().start();
    site.cluster()
        .psql("INSERT INTO t SELECT generate_series(1, 500)");
    let durable = sync(&site);
    assert!(durable > lost);
    assert_ships(&site, begin, durable);
    site.receiver.wait_for_log("wrote its WAL anew behind");
    let output = site.master_command(&["sync"]);
    assert!(!output.stderr.contains("sent anew"), "{}", output.stderr);
}

#[test]
fn fault_49_54_a_standby_ships_nothing_and_a_promoted_one_its_own_timeline() {
    skip_unless!(Cluster::available(15));
    for asked in [true, false] {
        let mut site = site_of(Cluster::builder().start(), asked);
        site.cluster().psql("CREATE TABLE t (n int)");
        let old = sync(&site);
        let name = segment_of(&site, old);
        let before = std::fs::read(site.partial_wals().join(&name)).unwrap();
        site.cluster_mut().stop(StopMode::Fast);
        let signal = site.data().join("standby.signal");
        std::fs::write(&signal, "").unwrap();
        crate::support::place::give_to_server(&signal);
        site.cluster_mut().start();
        site.master_command(&["sync"]).fail_last(2, "is a standby");
        site.master_command(&["syncdaemon"]).succeed();
        assert!(std::fs::read(site.partial_wals().join(&name)).unwrap() == before);
        site.cluster().psql("SELECT pg_promote()");
        site.cluster()
            .psql("INSERT INTO t SELECT generate_series(1, 100)");
        let wanted = flushed(&site);
        let durable = sync(&site);
        assert!(durable >= wanted, "{durable} of {wanted}");
        assert_eq!(site.archived_names(), ["00000002.history"]);
        let segment = name.replacen("00000001", "00000002", 1);
        let ours = std::fs::read(in_pg_wal(&site, &segment)).unwrap();
        let theirs = std::fs::read(site.partial_wals().join(&segment)).unwrap();
        let wanted = usize::try_from(durable.0 % ours.len() as u64).unwrap();
        assert!(ours[..wanted] == theirs[..wanted]);
        assert!(
            std::fs::read(site.partial_wals().join(&name)).unwrap() == before,
            "kept"
        );
    }
}

#[test]
fn fault_50_a_master_that_was_restored_is_refused() {
    skip_unless!(Cluster::available(15));
    let mut site = site_of(Cluster::builder().start(), true);
    site.cluster().psql("CREATE TABLE t (n int)");
    let name = segment_of(&site, flushed(&site));
    site.cluster_mut().stop(StopMode::Fast);
    let copy = site.home().join("copy");
    run(Command::new("cp").arg("-a").arg(site.data()).arg(&copy)).unwrap();
    site.cluster_mut().start();
    site.cluster()
        .psql("INSERT INTO t SELECT generate_series(1, 2000)");
    sync(&site);
    site.cluster().switch_wal();
    site.archive(&name).succeed();
    site.cluster()
        .psql("INSERT INTO t SELECT generate_series(1, 10)");
    sync(&site);
    let before = site.archived(&name);
    site.cluster_mut().stop(StopMode::Fast);
    run(Command::new("rm").arg("-r").arg(site.data())).unwrap();
    run(Command::new("mv").arg(&copy).arg(site.data())).unwrap();
    site.cluster_mut().start();
    site.cluster()
        .psql("INSERT INTO t SELECT generate_series(7, 700)");
    let refused = site.master_command(&["sync"]);
    refused.fail_last(1, "is not the one that was archived");
    refused.fail_last(1, "restored, rewound or replaced");
    assert_eq!(site.archived(&name), before);
}

/// `status` says that the standby holds everything up to there.
#[track_caller]
fn assert_held(site: &Site, durable: Lsn) {
    let output = site.master_command(&["status", "--json"]);
    let said: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    let held: Lsn = said["archive"]["held_lsn"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(held >= durable, "{durable} in {said}");
}

#[test]
fn fault_44_46_51_old_and_new_versions_of_all_segment_sizes_ship_recycled_segments_too() {
    let all = [13, 15, 17, 18].into_iter();
    let all = all.flat_map(|major| [1, 16, 64].map(|size_mb| (major, size_mb)));
    let few = |pair: &(u8, u32)| [(13, 1), (15, 16), (17, 64), (18, 1)].contains(pair);
    for (major, size_mb) in all.filter(|pair| soak() || few(pair)) {
        if Cluster::available(major).is_err() {
            crate::support::report_skip(&format!("PostgreSQL {major} is not installed here"));
            continue;
        }
        let cluster = Cluster::builder().major(major).wal_segment_size_mb(size_mb);
        let cluster = cluster
            .conf("min_wal_size", "256MB")
            .conf("max_wal_size", "512MB");
        let site = site_of(cluster.start(), major % 2 == 1);
        let begin = begin_of(&site);
        site.cluster().psql("CREATE TABLE t (n int)");
        let mut first = begin;
        for round in 0..4 {
            let insert = format!("INSERT INTO t SELECT generate_series(1, {})", 900 * round);
            site.cluster().psql(&insert);
            if round % 2 == 1 {
                // Exactly on the border, with a segment behind it that was recycled.
                site.cluster().switch_wal();
            }
            let wanted = flushed(&site);
            let durable = sync(&site);
            assert!(
                durable >= wanted,
                "{major} {size_mb}: {durable} of {wanted}"
            );
            assert_ships(&site, first, durable);
            if round == 1 {
                assert_held(&site, durable);
            }
            if round == 1 && (soak() || size_mb < 64) {
                let finished = segment_of(&site, Lsn(durable.0 - 1));
                site.archive(&finished).succeed();
                let ours = std::fs::read(in_pg_wal(&site, &finished)).unwrap();
                assert!(site.archived(&finished) == ours, "{major} {size_mb}");
            }
            // What is on the standby may go from the master, and come back under another name.
            first = Lsn(durable.0 - durable.0 % (u64::from(size_mb) << 20));
            site.cluster().psql("CHECKPOINT");
        }
    }
}
