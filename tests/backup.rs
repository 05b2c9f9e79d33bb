//! `backup`: a base backup of a real server to a real receiver, and what becomes of it.
//! Never calls a set good because a file is there: pg_verifybackup, a start and pg_amcheck say so.
//! Invariant: every test ends with what `full_backup` holds.

mod churn;
mod giving_way;
mod incremental;
mod interrupted;
mod keeping;
mod page_equal;
mod power;
pub(crate) mod rate;
mod rules;
mod sizes;
mod whole;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::{Cluster, Site, TempDir, run, wait_for};

/// A master that archives to a standby.
fn site() -> Site {
    site_of(Cluster::builder())
}

/// The same with a cluster of one's own taste.
fn site_of(cluster: crate::support::cluster::Builder) -> Site {
    archiving(Site::builder().cluster(cluster.conf("archive_mode", "on").start()))
}

/// Any site, archiving.
fn archiving(builder: crate::support::site::Builder) -> Site {
    let site = builder.build();
    site.master_command(&["setup"]).succeed();
    site
}

/// The newest set.
fn newest(site: &Site) -> PathBuf {
    site.archive_folder().join("data.master")
}

/// What lies beside the archive's folders, sorted; hidden files aside.
fn beside(site: &Site) -> Vec<String> {
    let entries = std::fs::read_dir(site.archive_folder()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names
        .filter(|name| !name.starts_with('.') && !name.starts_with("logs."))
        .collect();
    names.sort();
    names
}

/// pg_verifybackup has nothing to say against a set.
#[track_caller]
fn verify(site: &Site, set: &Path) {
    judge(site, set).unwrap();
}

/// What pg_verifybackup says against a set.
fn judge(site: &Site, set: &Path) -> Result<(), String> {
    let mut verify = site.cluster().command("pg_verifybackup");
    // Through the links it sees tablespaces where the manifest has them.
    verify.args(["-n", "-i", "tmpspc"]);
    run(verify.arg(set)).map(drop)
}

/// A server on a copy of a set, recovered from the archive as far as that goes, and open.
fn start_from(site: &Site, set: &Path) -> (Cluster, TempDir) {
    let home = TempDir::new();
    let data = home.join("data");
    let mut copy = site.cluster().command("cp");
    run(copy.arg("-a").arg(set).arg(&data)).unwrap();
    let map = data.join("tablespace_map");
    // Its tablespaces are the copy's own, not the live server's.
    if map.exists() {
        let text = std::fs::read_to_string(&map).unwrap();
        let own = |line: &str| {
            let oid = line.split(' ').next().unwrap().to_owned();
            format!("{oid} {}\n", data.join("tmpspc").join(&oid).display())
        };
        std::fs::write(&map, text.lines().map(own).collect::<String>()).unwrap();
    }
    crate::support::stored::unpack_all(&site.completed_wals());
    let wal = site.completed_wals().display().to_string();
    let settings = format!("restore_command = 'cp {wal}/%f %p'\narchive_mode = off\n");
    let conf = data.join("postgresql.auto.conf");
    std::fs::write(conf, settings).unwrap();
    std::fs::write(data.join("recovery.signal"), "").unwrap();
    crate::support::place::give_to_server(&data.join("recovery.signal"));
    let mut server = Cluster::on_directory(site.cluster().major(), &data);
    server.start();
    wait_for("the end of recovery", Duration::from_secs(120), || {
        let is_open = server.try_psql("SELECT pg_is_in_recovery()").ok()? == "f";
        is_open.then_some(())
    });
    (server, home)
}

/// pg_amcheck has nothing to say against a server's databases.
#[track_caller]
fn amcheck(server: &Cluster) {
    server.psql("CREATE EXTENSION IF NOT EXISTS amcheck");
    let mut amcheck = server.command("pg_amcheck");
    run(amcheck.args(["--heapallindexed", "-d", "postgres"])).unwrap();
}
