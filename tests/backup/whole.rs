//! What a backup has to be: whole, startable, the master's data, whatever the master does meanwhile.
//! Never trusts a count of files. Invariant: a set is looked at with PostgreSQL's own programs.

use super::{amcheck, archiving, beside, newest, site, site_of, start_from, verify};
use crate::support::{Cluster, Site, soak};

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

#[test]
fn backups_of_every_version_verify_and_start() {
    for major in Cluster::available_majors() {
        // The oldest has other functions, the newest another manifest.
        if !soak() && !matches!(major, 13 | 18) {
            continue;
        }
        let cluster = Cluster::builder().major(major);
        let site = site_of(cluster);
        site.cluster().pgbench(&["-i", "-q"]);
        site.master_command(&["backup"]).succeed();
        let (server, _home) = start_from(&site, &newest(&site));
        let count = server.psql("SELECT count(*) FROM pgbench_accounts");
        assert_eq!(count, "100000", "PostgreSQL {major}");
    }
}

#[test]
fn a_compressed_backup_sends_less_and_is_the_same() {
    skip_unless!(Cluster::available(15));
    let cluster = Cluster::builder().conf("archive_mode", "on").start();
    let builder = Site::builder().cluster(cluster);
    let site = archiving(builder.master_set("compression", "1").plain());
    let said = site.master_command(&["backup"]).succeed();
    let first = said.lines().next().unwrap();
    let ratio: f64 = first.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(ratio > 2.0, "{first}");
    verify(&site, &newest(&site));
}

#[test]
fn fault_68_flipped_bit_in_a_stored_set_is_found_before_a_server_starts() {
    skip_unless!(Cluster::available(15));
    let site = site();
    site.cluster().psql("CREATE TABLE t AS SELECT 1 AS n");
    let file = site.cluster().psql("SELECT pg_relation_filepath('t')");
    site.master_command(&["backup"]).succeed();
    let path = newest(&site).join(&file);
    let good = std::fs::read(&path).unwrap();
    let mut rotten = good.clone();
    rotten[100] ^= 4;
    std::fs::write(&path, rotten).unwrap();
    let to = site.home().join("restored");
    let words = ["restore", "data.master", to.to_str().unwrap()];
    let refused = site.standby_command(&words);
    refused.fail_last(1, &format!("{file}: its CRC-32C is not the manifest's"));
    assert!(!to.exists() && !to.with_extension("restoring").exists());
    std::fs::write(&path, good).unwrap();
    site.standby_command(&words).succeed();
    assert!(to.join("global/pg_control").exists());
}
