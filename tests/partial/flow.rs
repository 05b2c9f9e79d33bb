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
