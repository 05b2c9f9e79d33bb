//! Masters that crash, lose their tail, change their timeline, or come from another past.
//! Never with a daemon: one pass shows it. Invariant tested: the standby follows its master, and
//! nobody else.

use std::process::Command;

use walmgr_protocol::names::Lsn;

use super::{assert_ships, flushed, in_pg_wal, site_of, sync};
use crate::support::{Cluster, Site, StopMode, run};

pub fn segment_of(site: &Site, lsn: Lsn) -> String {
    site.segment_name(lsn.0 / site.facts().cluster.segment_size.bytes())
}

/// Ships for the first time, which begins with the current segment; where that one begins.
pub fn begin_of(site: &Site) -> Lsn {
    sync(site);
    let lsn = flushed(site);
    let size = site.facts().cluster.segment_size.bytes();
    Lsn(lsn.0 - lsn.0 % size)
}

#[test]
fn fault_47_48_tail_lost_by_the_master_is_kept_until_rewritten() {
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
    assert!(output.stderr.contains("lost the tail"), "{}", output.stderr);
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
    site.receiver.wait_for_log("rewrote its WAL after");
    let output = site.master_command(&["sync"]);
    assert!(
        !output.stderr.contains("is sent again"),
        "{}",
        output.stderr
    );
}

#[test]
fn fault_49_54_standby_ships_nothing_until_it_is_promoted() {
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
