//! What is shipped in the ordinary course of things.
//! Never with anything failing.

use walmgr_protocol::names::Lsn;

use super::{assert_ships, flushed, site_of, sync};
use crate::support::Cluster;

#[test]
fn sync_ships_every_whole_record_and_only_what_is_new() {
    skip_unless!(Cluster::available(15));
    for asked in [true, false] {
        let site = site_of(Cluster::builder().start(), asked);
        site.cluster().psql("CREATE TABLE t (n int)");
        let begin = flushed(&site);
        let from = Lsn(begin.0 - begin.0 % (1 << 20));
        let mut before = Lsn(0);
        for round in 0..5 {
            let insert = format!("INSERT INTO t SELECT generate_series(1, {})", 1000 * round);
            site.cluster().psql(&insert);
            let flushed = flushed(&site);
            let durable = sync(&site);
            assert!(durable >= flushed, "{durable} of {flushed}");
            assert!(durable >= before);
            before = durable;
            assert_ships(&site, from, durable);
        }
        assert_eq!(site.archived_names(), Vec::<String>::new());
    }
}

#[test]
fn fault_189_sync_names_a_gap_before_what_it_shipped() {
    skip_unless!(Cluster::available(15));
    let mut site = site_of(Cluster::builder().start(), true);
    let mut names = Vec::new();
    for _ in 0..3 {
        site.cluster().psql("SELECT pg_create_restore_point('x')");
        let name = site
            .cluster()
            .psql("SELECT pg_walfile_name(pg_switch_wal())");
        site.archive(&name).succeed();
        names.push(name);
    }
    sync(&site);
    let gone = &names[1];
    site.receiver.stop();
    std::fs::remove_file(site.stored_path(gone)).unwrap();
    site.start_receiver();
    let output = site.master_command(&["sync"]);
    let said = output.fail(1);
    let told = format!("{gone} is missing in the archive");
    assert!(output.stderr.contains(&told), "{said}");
    let typed = format!("xarchive pg_wal/{gone} {gone}`");
    assert!(output.stderr.contains(&typed), "{}", output.stderr);
    site.archive(gone).succeed();
    let shipped = sync(&site);
    assert!(shipped >= flushed(&site));
}
