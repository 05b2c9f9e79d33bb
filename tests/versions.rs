//! Every supported PostgreSQL: the main flows, several segment sizes, and across a promotion.
//! Never runs a version that is not installed: that prints a SKIP line.
//! Invariant: what the server finished is in the archive, byte for byte.

mod main_flows;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::load::{assert_archive_equals_master, drain};
use crate::support::place::give_to_server;
use crate::support::{Cluster, Site, StopMode, run, soak, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

fn archiving_cluster(major: u8, size_mb: u32) -> Site {
    let size = |segments: u32| format!("{}MB", size_mb.max(16) * segments);
    let cluster = Cluster::builder()
        .major(major)
        .wal_segment_size_mb(size_mb)
        .conf("archive_mode", "on")
        .conf("min_wal_size", &size(2))
        .conf("max_wal_size", &size(4))
        .conf("wal_keep_size", "8GB")
        .start();
    let mut site = Site::with_cluster(cluster);
    // The standbys here read by `cp`.
    site.standby_set("store_compression", "none");
    site.restart_receiver();
    site.master_command(&["setup"]).succeed();
    site
}

fn check_segments_of(size_mb: u32, majors: &[u8]) {
    for major in majors {
        let site = archiving_cluster(*major, size_mb);
        let cluster = site.cluster();
        let before = site.archived_names().len();
        cluster.pgbench(&["-i", "-q", "-s", "1"]);
        for round in 0..3 {
            cluster.psql(&format!(
                "CREATE TABLE t{round} AS SELECT generate_series(1, 2000)"
            ));
            cluster.switch_wal();
        }
        drain(&site);
        let (count, bytes) = assert_archive_equals_master(&site);
        assert!(count >= before + 4, "{count} files, {before} before");
        assert_eq!(
            bytes >> 20,
            u64::from(size_mb) * u64::try_from(count).unwrap()
        );
    }
}

#[test]
fn segments_of_1_mib_of_every_version_arrive() {
    check_segments_of(1, &Cluster::available_majors());
}

#[test]
fn segments_of_16_mib_of_every_version_arrive() {
    check_segments_of(16, &Cluster::available_majors());
}

#[test]
fn segments_of_64_mib_of_every_version_arrive() {
    check_segments_of(64, &Cluster::available_majors());
}

#[test]
fn segments_of_1_gib_arrive() {
    if !soak() {
        skip!("segments of 1 GiB take gigabytes; set WALMGR_SOAK=1");
    }
    skip_unless!(Cluster::available(15));
    check_segments_of(1024, &[15]);
}

/// A copy of the master's data directory that follows the archive when it is started.
fn standby_of(site: &Site, major: u8) -> (Cluster, std::path::PathBuf) {
    let data = site.home().join("promoted");
    run(Command::new("cp")
        .arg("-a")
        .arg(site.cluster().data())
        .arg(&data))
    .unwrap();
    // Its own ini file: the same key and receiver, another data directory.
    let ini = site.master_ini().with_file_name("promoted.ini");
    let text = fs::read_to_string(site.master_ini()).unwrap();
    let (old, new) = (site.cluster().data().display(), data.display());
    let own = text.replace(
        &format!("master_data = {old}"),
        &format!("master_data = {new}"),
    );
    let identity = |extension: &str| site.master_ini().with_extension(extension);
    let keys = format!(
        "tls_key = {}\ntls_cert = {}\n",
        identity("key").display(),
        identity("crt").display()
    );
    fs::write(&ini, own + &keys).unwrap();
    give_to_server(&ini);
    let walmgr = crate::support::walmgr_binary().display();
    let restore = format!("cp {}/%f %p", site.completed_wals().display());
    let conf = data.join("postgresql.conf");
    let text = fs::read_to_string(&conf).unwrap();
    let lines = format!(
        "archive_command = '{walmgr} {} xarchive %p %f'\nrestore_command = '{restore}'\n",
        ini.display()
    );
    fs::write(&conf, text + &lines).unwrap();
    fs::write(data.join("standby.signal"), "").unwrap();
    give_to_server(&data);
    (Cluster::on_directory(major, &data), ini)
}

fn copy_wal(from: &Path, to: &Path, name: &str) {
    let to = to.join("pg_wal").join(name);
    fs::copy(from.join("pg_wal").join(name), &to).unwrap();
    give_to_server(&to);
}

#[test]
fn a_promoted_standby_archives_its_new_timeline_beside_the_old_one() {
    for major in Cluster::available_majors() {
        let mut site = archiving_cluster(major, 1);
        site.cluster_mut().stop(StopMode::Fast);
        let (mut standby, _ini) = standby_of(&site, major);
        site.cluster_mut().start();
        let master = site.cluster();
        master.psql("CREATE TABLE t AS SELECT generate_series(1, 50000) AS n");
        drain(&site);
        let before = site.archived_names();
        // The last records of the master are in a segment that it will never finish.
        master.psql("INSERT INTO t VALUES (0)");
        let last = master.psql("SELECT pg_walfile_name(pg_current_wal_lsn())");
        site.cluster_mut().stop(StopMode::Immediate);
        copy_wal(site.cluster().data(), standby.data(), &last);

        standby.start();
        wait_for("the replay", PATIENCE, || {
            let answer = standby.try_psql("SELECT count(*) FROM t").ok()?;
            (answer == "50001").then_some(())
        });
        standby.psql("SELECT pg_promote()");
        standby.psql("CREATE TABLE u AS SELECT generate_series(1, 50000)");
        let first = last.replacen("00000001", "00000002", 1);
        let expected = [
            "00000002.history".to_owned(),
            format!("{last}.partial"),
            first,
        ];
        standby.psql("SELECT pg_switch_wal()");
        for name in &expected {
            wait_for(name, PATIENCE, || site.holds(name).then_some(()));
            let own = fs::read(standby.data().join("pg_wal").join(name));
            if let Ok(own) = own {
                assert!(site.archived(name) == own, "{name}");
            }
        }
        for name in &before {
            assert!(site.holds(name), "{name} of the old timeline is gone");
        }
        let failed = standby.psql("SELECT failed_count FROM pg_stat_archiver");
        assert_eq!(failed, "0", "PostgreSQL {major}:\n{}", standby.log());

        // The old master comes back: its own end of that segment stands beside the partial one.
        site.cluster_mut().start();
        drain(&site);
        assert!(site.holds(&last));
        let kept = fs::read(site.cluster().data().join("pg_wal").join(&last)).unwrap();
        assert!(site.archived(&last) == kept);
    }
}
