//! `/healthz` of both daemons: 200 while they can do their work, else 503 and why; well again by themselves.
//! Never asks the log. Invariant tested: nobody has to archive anything for health to be true.

use std::net::SocketAddr;

use rustix::process::Signal;

use super::{PATIENCE, free_address, get, value};
use crate::disk::Ballast;
use crate::partial::daemon::Syncdaemon;
use crate::support::loopfs::TmpFs;
use crate::support::strace::Strace;
use crate::support::{Cluster, Host, Site, StopMode, wait_for};

/// Waits until health is that of this status, and answers with what it says.
fn wait_for_health(address: SocketAddr, status: &str) -> String {
    let begins = format!("HTTP/1.1 {status} ");
    wait_for(&begins, PATIENCE, || {
        let answer = get(address, "/healthz");
        answer.head.starts_with(&begins).then_some(answer.content)
    })
}

fn archive(site: &Site, number: u64) -> crate::support::outcome::Output {
    site.write_segment(number);
    site.archive(&site.segment_name(number))
}

/// It is one line of this cluster with these words, and no path or address.
#[track_caller]
fn assert_says(content: &str, words: &str) {
    assert!(content.starts_with("standby: "), "{content}");
    assert!(content.contains(words), "{content}");
    assert!(
        !content.contains('/') && !content.contains("127.0."),
        "{content}"
    );
}

#[test]
fn fault_191_a_full_disk_is_unhealthy_until_there_is_room() {
    let disk = skip_unless!(TmpFs::create(12 << 10, 0));
    let address = free_address();
    let site = Site::builder()
        .archive(&disk.path().join("archive"))
        .standby_set("metrics_listen", &address.to_string())
        .build();
    archive(&site, 2).succeed();
    wait_for_health(address, "200");
    let ballast = Ballast::fill(disk.path());
    archive(&site, 3).fail(6);
    assert_says(&wait_for_health(address, "503"), "no space is left");
    let page = get(address, "/metrics").content;
    assert_eq!(value(&page, "walmgr_up{"), Some(0.0), "{page}");
    ballast.remove();
    assert_eq!(wait_for_health(address, "200"), "ok\n");
    // The room that was tried is given back.
    assert_eq!(site.temporaries(), [""; 0]);
    archive(&site, 3).succeed();
}

#[test]
fn fault_191_a_closed_archive_is_unhealthy_until_it_is_open_again() {
    skip_unless!(Strace::attachable());
    let address = free_address();
    let mut host = Host::builder()
        .set("metrics_listen", &address.to_string())
        .build();
    host.start();
    let site = host.add("standby", Site::builder());
    let other = host.add(
        "other",
        Site::builder().system_id(7_700_000_000_000_000_002),
    );
    archive(&site, 2).succeed();
    wait_for_health(address, "200");
    let strace = Strace::available().unwrap();
    let strace = strace
        .only_on(&site.completed_wals())
        .inject("fsync:error=EIO");
    let attached = strace.attach(host.receiver.pid());
    archive(&site, 3).fail(6);
    let said = wait_for_health(address, "503");
    assert_says(&said, "sync failed");
    assert_eq!(said.lines().count(), 1, "{said}");
    archive(&other, 2).succeed();
    drop(attached);
    wait_for_health(address, "200");
    archive(&site, 3).succeed();
}

#[test]
fn fault_191_an_archive_of_no_cluster_yet_is_not_able() {
    let address = free_address();
    let site = Site::builder()
        .standby_set("metrics_listen", &address.to_string())
        .unbound()
        .build();
    assert_says(&wait_for_health(address, "503"), "`setup` on the master");
    site.bind();
    wait_for_health(address, "200");
}

/// A master that archives, whose syncdaemon will serve its metrics at this address.
fn shipping_site(address: SocketAddr) -> Site {
    let cluster = Cluster::builder().conf("archive_mode", "on").start();
    let site = Site::builder()
        .cluster(cluster)
        .master_set("loop_delay", "0.1")
        .master_set("metrics_listen", &address.to_string())
        .build();
    site.master_command(&["setup"]).succeed();
    site
}

#[test]
fn fault_190_a_syncdaemon_is_healthy_while_it_ships_and_knows_the_rpo() {
    skip_unless!(Cluster::available(15));
    let address = free_address();
    let mut site = shipping_site(address);
    let daemon = Syncdaemon::start(&site);
    daemon.wait_for_log(&format!("http://{address}/metrics"));
    let rpo = |address| value(&get(address, "/metrics").content, "walmgr_rpo_seconds{");
    wait_for_health(address, "200");
    wait_for("all to be shipped", PATIENCE, || {
        rpo(address).filter(|seconds| *seconds == 0.0)
    });
    site.receiver.kill9();
    site.cluster().psql("CREATE TABLE lost ()");
    let said = wait_for_health(address, "503");
    assert!(
        said.starts_with("master: records are not shipped"),
        "{said}"
    );
    let waits = |least: f64, address| {
        wait_for("the commit's age", PATIENCE, || {
            rpo(address).filter(|seconds| *seconds > least)
        })
    };
    let missing = waits(0.5, address);
    // The server writes a record of its end, which is no commit.
    site.cluster_mut().stop(StopMode::Fast);
    waits(missing + 1.0, address);
    let second = free_address();
    site.master_set("metrics_listen", &second.to_string());
    daemon.signal(Signal::HUP);
    daemon.wait_for_log(&format!("http://{second}/metrics"));
    waits(missing + 1.0, second);
    site.start_receiver();
    wait_for_health(second, "200");
    wait_for("all to be shipped again", PATIENCE, || {
        rpo(second).filter(|seconds| *seconds == 0.0)
    });
}

#[test]
fn fault_232_a_syncdaemon_that_starts_without_its_receiver_knows_the_rpo() {
    skip_unless!(Cluster::available(15));
    let address = free_address();
    let mut site = shipping_site(address);
    let note = site.master_ini().with_extension("held");
    let rpo = || value(&get(address, "/metrics").content, "walmgr_rpo_seconds{");
    let daemon = Syncdaemon::start(&site);
    site.cluster().psql("CREATE TABLE kept ()");
    wait_for("the note of all", PATIENCE, || {
        let flushed = site.cluster().psql("SELECT pg_current_wal_flush_lsn()");
        let noted = std::fs::read_to_string(&note).ok()?;
        noted.ends_with(&format!(" {flushed}\n")).then_some(())
    });
    // Both sides lose power; the receiver does not come back.
    daemon.signal(Signal::KILL);
    drop(daemon);
    site.receiver.kill9();
    std::fs::remove_file(site.home().join("syncdaemon.log")).unwrap();
    let daemon = Syncdaemon::start(&site);
    daemon.wait_for_log(&format!("http://{address}/metrics"));
    wait_for("nothing is missing", PATIENCE, || {
        rpo().filter(|seconds| *seconds == 0.0)
    });
    site.cluster().psql("CREATE TABLE lost ()");
    wait_for("the commit's age", PATIENCE, || {
        rpo().filter(|seconds| *seconds > 1.0)
    });
    site.start_receiver();
    wait_for("all to be shipped", PATIENCE, || {
        rpo().filter(|seconds| *seconds == 0.0)
    });
}
