//! `syncdaemon` as a process: started, stopped, killed, refused.
//! Never signals a process it did not start. Invariant tested: whatever dies, shipping goes on.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use walmgr_protocol::names::Lsn;

use super::{assert_ships, flushed, held, site_of, sync};
use crate::support::{Cluster, Site, soak, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

/// A syncdaemon in the foreground, and what it says.
pub struct Syncdaemon {
    child: Child,
    log: std::path::PathBuf,
}

impl Syncdaemon {
    pub fn start(site: &Site) -> Syncdaemon {
        Syncdaemon::start_as(site, &mut site.master_walmgr(&["syncdaemon"]))
    }

    /// The same with a command of the caller's, which may have an environment of its own.
    pub fn start_as(site: &Site, command: &mut Command) -> Syncdaemon {
        let log = site.home().join("syncdaemon.log");
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&log);
        let file = file.unwrap();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file);
        let child = command.spawn().unwrap();
        Syncdaemon { child, log }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    pub fn wait_for_log(&self, text: &str) {
        wait_for(text, PATIENCE, || self.log().contains(text).then_some(()));
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn wait(&mut self) -> Option<i32> {
        wait_for("the syncdaemon's end", PATIENCE, || {
            self.child.try_wait().unwrap()
        })
        .code()
    }
}

impl Drop for Syncdaemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("the syncdaemon said:\n{}", self.log());
        }
    }
}

/// Waits until the standby holds everything that was flushed at the beginning of the wait.
pub fn wait_until_shipped(site: &Site, from: Lsn) -> Lsn {
    let to = flushed(site);
    let size = site.facts().cluster.segment_size.bytes();
    let last = Lsn(to.0 - 1);
    let segment = site.segment_name(last.0 / size);
    let ours = std::fs::read(super::in_pg_wal(site, &segment)).unwrap();
    let wanted = usize::try_from(last.0 % size).unwrap() + 1;
    wait_for("the standby to hold it", PATIENCE, || {
        let theirs = held(site, &segment)?;
        // It may have been created, and not be written yet.
        (theirs.get(..wanted)? == &ours[..wanted]).then_some(())
    });
    assert_ships(site, from, to);
    to
}

#[test]
fn fault_45_an_archiver_that_hangs_over_five_switches_leaves_no_gap() {
    skip_unless!(Cluster::available(15));
    let cluster = Cluster::builder()
        .conf("archive_mode", "on")
        .conf("archive_command", "sleep 600")
        .start();
    let mut site = site_of(cluster, true);
    site.master_set("loop_delay", "0.05");
    site.cluster().psql("CREATE TABLE t (n int)");
    let begin = flushed(&site);
    let mut daemon = Syncdaemon::start(&site);
    daemon.wait_for_log("is shipped to");
    for _ in 0..5 {
        let insert = "INSERT INTO t SELECT generate_series(1, 3000)";
        site.cluster().psql(insert);
        site.cluster().switch_wal();
    }
    site.cluster().psql("INSERT INTO t VALUES (1)");
    wait_until_shipped(&site, begin);
    // Each segment is finished in place without the archiver, and is so when it comes round.
    let size = site.facts().cluster.segment_size.bytes();
    for number in begin.0 / size..begin.0 / size + 5 {
        let name = site.segment_name(number);
        let partial = site.partial_wals().join(&name);
        wait_for("the finished segment", PATIENCE, || {
            (site.holds(&name) && !partial.exists()).then_some(())
        });
        site.archive(&name).succeed();
        let path = super::in_pg_wal(&site, &name);
        assert_eq!(site.archived(&name), std::fs::read(path).unwrap(), "{name}");
        assert!(!partial.exists());
    }
    site.cluster().psql("INSERT INTO t VALUES (2)");
    wait_until_shipped(&site, begin);
    let lines = daemon.log().lines().count();
    assert!(lines <= 4, "one line a change of state:\n{}", daemon.log());
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), Some(0));
}

#[test]
fn written_wal_is_shipped_long_before_the_next_pass_is_due() {
    skip_unless!(Cluster::available(15));
    let mut site = site_of(Cluster::builder().start(), true);
    site.master_set("loop_delay", "1h");
    site.cluster().psql("CREATE TABLE t (n int)");
    let begin = flushed(&site);
    let daemon = Syncdaemon::start(&site);
    daemon.wait_for_log("is shipped to");
    site.cluster().psql("INSERT INTO t VALUES (1)");
    wait_until_shipped(&site, begin);
}

#[test]
fn fault_53_a_second_writer_is_refused_while_the_first_one_lives() {
    skip_unless!(Cluster::available(15));
    let mut site = site_of(Cluster::builder().start(), true);
    site.master_set("loop_delay", "0.05");
    let mut daemon = Syncdaemon::start(&site);
    daemon.wait_for_log("is shipped to");
    let second = site.master_command(&["sync"]);
    second.fail_last(1, "already ships records of this WAL");
    site.master_command(&["syncdaemon"])
        .fail_last(2, "already running");
    daemon.signal(Signal::KILL);
    daemon.wait();
    wait_for("the place to be free", PATIENCE, || {
        (site.master_command(&["sync"]).code == Some(0)).then_some(())
    });
    sync(&site);
}

#[test]
fn a_daemon_in_the_background_is_stopped_by_its_pidfile() {
    skip_unless!(Cluster::available(15));
    let mut site = site_of(Cluster::builder().start(), true);
    site.master_set("loop_delay", "0.05");
    let logfile = site.home().join("master").join("syncdaemon.log");
    site.master_set("logfile", &logfile.display().to_string());
    site.master_command(&["syncdaemon", "-d"]).succeed();
    let from = flushed(&site);
    site.cluster().psql("CREATE TABLE t (n int)");
    wait_until_shipped(&site, from);
    site.master_command(&["syncdaemon", "-r"]).succeed();
    wait_for("the reload", PATIENCE, || {
        let log = std::fs::read_to_string(&logfile).unwrap();
        log.contains("settings reloaded").then_some(())
    });
    site.cluster().psql("INSERT INTO t VALUES (1)");
    wait_until_shipped(&site, from);
    site.master_command(&["syncdaemon", "-s"]).succeed();
    site.master_command(&["syncdaemon", "-s"])
        .fail_last(1, "not running");
}

#[test]
fn fault_42_whatever_is_killed_shipping_goes_on_without_a_gap() {
    skip_unless!(Cluster::available(15));
    let cluster = Cluster::builder().conf("wal_keep_size", "1GB");
    let mut site = site_of(cluster.start(), true);
    site.master_set("loop_delay", "0.02");
    site.cluster().pgbench(&["-i", "-q"]);
    let from = flushed(&site);
    let mut daemon = Syncdaemon::start(&site);
    for round in 0..if soak() { 60 } else { 6 } {
        site.cluster().pgbench(&["-c", "2", "-t", "60", "-n"]);
        match round % 3 {
            0 => {
                site.receiver.kill9();
                site.start_receiver();
            }
            1 => {
                daemon.signal(Signal::KILL);
                daemon.wait();
                daemon = Syncdaemon::start(&site);
            }
            _ => {
                site.cluster_mut().kill9();
                site.cluster_mut().start();
            }
        }
        wait_until_shipped(&site, from);
    }
}

/// When the syncdaemon asked the server last; nothing while it does.
fn asked_at(cluster: &Cluster) -> String {
    cluster.psql(
        "SELECT max(query_start) FROM pg_stat_activity WHERE query LIKE '%pg_current_wal_flush_lsn%' \
         AND pid <> pg_backend_pid()",
    )
}

#[test]
fn a_server_that_writes_nothing_is_asked_once_a_second() {
    skip_unless!(Cluster::available(15));
    let mut site = Site::with_cluster(Cluster::builder().start());
    site.master_set("loop_delay", "0.01");
    let _daemon = Syncdaemon::start(&site);
    let cluster = site.cluster();
    cluster.psql("CREATE TABLE t (n int)");
    // A checkpoint or a running transaction now and then writes all the same.
    wait_for("rare questions", Duration::from_secs(120), || {
        let mut asked: Vec<String> = (0..20)
            .map(|_| {
                std::thread::sleep(Duration::from_millis(50));
                asked_at(cluster)
            })
            .collect();
        asked.dedup();
        (asked.len() <= 4).then_some(())
    });
    cluster.psql("INSERT INTO t VALUES (1)");
    let written = cluster.psql("SELECT pg_current_wal_flush_lsn()");
    wait_for(
        "what is written after a rest",
        Duration::from_secs(60),
        || {
            let held = site.overview().held?.1.to_string();
            let sql = format!("SELECT '{held}'::pg_lsn >= '{written}'::pg_lsn");
            (cluster.psql(&sql) == "t").then_some(())
        },
    );
}
