//! What a backup has to be: whole, startable, the master's data, whatever the master does meanwhile.
//! Never trusts a count of files. Invariant: a set is looked at with PostgreSQL's own programs.

use super::{amcheck, beside, newest, site, start_from, verify};
use crate::support::Cluster;

#[test]
fn a_backup_verifies_starts_and_has_the_masters_data() {
    skip_unless!(Cluster::available(15));
    let site = site();
    site.cluster().pgbench(&["-i", "-q", "-s", "2"]);
    let sum = "SELECT count(*), sum(abalance), sum(aid) FROM pgbench_accounts";
    let before = site.cluster().psql(sum);
    let said = site.master_command(&["backup"]).succeed();
    for part in ["data.master is sealed", "ratio", "segments 0000"] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
    assert_eq!(beside(&site), ["data.master"]);
    assert!(!site.completed_wals().join("BACKUPLOCK").exists());
    verify(&site, &newest(&site));
    let (server, _home) = start_from(&site, &newest(&site));
    assert_eq!(server.psql(sum), before);
    amcheck(&server);
}
