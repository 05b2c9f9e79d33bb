//! `synchronous = 1`: commits that wait for the standby's disk, on real servers, whatever dies in between.
//! Never counts as returned what psql did not print. Invariant tested: a commit returns only when it can be recovered
//! on the standby's host.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::partial::daemon::Syncdaemon;
use crate::support::dice::Dice;
use crate::support::strace::{Strace, is_held};
use crate::support::{Cluster, Site, StopMode, USUAL_AND_17, report_skip, rounds, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

/// Any disk is quick.
const QUICK: (&str, &str) = ("WALMGR_QUICK_SYNC_MS", "3600000");

/// A master whose commits wait for its syncdaemon.
struct Waiting {
    daemon: Syncdaemon,
    site: Site,
}

impl Waiting {
    fn new(major: u8, settings: &[(&str, &str)], timeout: &str) -> Waiting {
        let mut site = archiving(major, settings);
        site.master_set("synchronous", "1");
        site.master_set("synchronous_timeout", timeout);
        let daemon = Syncdaemon::start(&site);
        let waiting = Waiting { daemon, site };
        waiting.wait_for_flush();
        waiting.commits_wait();
        waiting
    }

    /// The server knows what the standby's disk holds.
    fn wait_for_flush(&self) {
        wait_for("the standby to tell of its disk", PATIENCE, || {
            (self.senders("count(flush_lsn)") == "1").then_some(())
        });
    }

    fn commits_wait(&self) {
        let name = self.site.master_config().job_name;
        let words = ["synch-standby", &name];
        self.site.master_command(&words).succeed();
    }

    fn names(&self) -> String {
        self.site.cluster().psql("SHOW synchronous_standby_names")
    }

    fn wait_for_names(&self, names: &str) {
        wait_for(&format!("names '{names}'"), PATIENCE, || {
            (self.names() == names).then_some(())
        });
    }

    fn set_names(&self, names: &str) {
        let set = format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'");
        self.site.cluster().psql(&set);
        self.site.cluster().reload();
        self.wait_for_names(names);
    }

    /// Whether `status` has the finding, and is critical with it.
    fn is_found_out(&self) -> bool {
        let status = self.site.master_command(&["--json", "status"]);
        let json: Value = serde_json::from_str(&status.stdout).unwrap();
        let findings = json["findings"].as_array().unwrap();
        let is_it = |finding: &&Value| finding["code"] == "synchronous";
        let found = findings.iter().find(is_it);
        assert!(found.is_none_or(|found| found["level"] == "critical" && status.code == Some(2)));
        found.is_some()
    }

    /// Something about who streams; never waits for a commit.
    fn senders(&self, what: &str) -> String {
        let sql = format!("SELECT {what} FROM pg_stat_replication");
        self.site.cluster().psql(&sql)
    }

    /// Starts the receiver anew, with these in its environment.
    fn restart_receiver_with(&mut self, variables: &[(&str, &str)]) {
        self.site.receiver.stop();
        let mut command = self.site.receiver_walmgr();
        command.envs(variables.iter().copied());
        self.site.receiver.start(&mut command).unwrap();
        self.wait_for_flush();
    }

    /// Commits, one behind the other.
    fn commits(&self) {
        let statements = "INSERT INTO t VALUES (-2);\n".repeat(200);
        Client::start(&self.site, "many", &statements).wait();
    }

    /// A commit that is under way.
    fn commit(&self) -> Client {
        Client::start(
            &self.site,
            "one",
            "INSERT INTO t VALUES (-1) RETURNING n;\n",
        )
    }
}

/// A site whose server archives, and has a table.
fn archiving(major: u8, settings: &[(&str, &str)]) -> Site {
    let mut cluster = Cluster::builder()
        .major(major)
        .conf("archive_mode", "on")
        .conf("wal_keep_size", "64MB");
    for (name, value) in settings {
        cluster = cluster.conf(name, value);
    }
    let site = Site::builder()
        .cluster(cluster.start())
        .standby_set("keep_backups", "2")
        .build();
    site.master_command(&["setup"]).succeed();
    site.cluster().psql("CREATE TABLE t (n bigint)");
    site
}

/// psql with statements, each of which prints its row when it has returned.
struct Client {
    child: Child,
    said: PathBuf,
}

impl Client {
    fn start(site: &Site, name: &str, statements: &str) -> Client {
        let script = site.home().write(&format!("{name}.sql"), statements);
        let said = site.home().join(format!("{name}.said"));
        let mut psql = site.cluster().command("psql");
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]);
        // Not -f: the server's user may not read it.
        let child = psql
            .stdin(File::open(script).unwrap())
            .stdout(File::create(&said).unwrap())
            .stderr(Stdio::null())
            .spawn();
        let child = child.unwrap();
        Client { child, said }
    }

    /// Rows from `first` on, one commit each.
    fn inserting(site: &Site, name: &str, first: u64) -> Client {
        let insert = |n: u64| format!("INSERT INTO t VALUES ({n}) RETURNING n;\n");
        let statements: String = (first..first + 100_000).map(insert).collect();
        Client::start(site, name, &statements)
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    fn wait(&mut self) {
        wait_for("psql's end", PATIENCE, || self.has_ended().then_some(()));
    }

    /// What returned, once it has ended.
    fn returned(&mut self) -> BTreeSet<u64> {
        self.wait();
        let said = std::fs::read_to_string(&self.said).unwrap();
        said.lines().map(|line| line.parse().unwrap()).collect()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn fault_270_a_master_that_is_gone_takes_no_commit_with_it_that_returned() {
    skip_unless!(Cluster::available(15));
    let mut dice = Dice::thrown("zero loss");
    let (mut returned, count) = (0, rounds(3, 500));
    for _ in 0..count {
        let major = *dice.choose(&USUAL_AND_17);
        if Cluster::available(major).is_ok() {
            returned += one_loss(major, &mut dice);
        }
    }
    println!("{count} masters killed, {returned} commits had returned, 0 are missing");
}

/// A master is killed while clients commit, and never seen again. Returns how many commits had returned.
fn one_loss(major: u8, dice: &mut Dice) -> usize {
    let mut site = archiving(major, &[]);
    site.master_command(&["backup"]).succeed();
    let data = site.home().join("slave");
    site.standby_set("slave_data", &data.display().to_string());
    site.standby_command(&["restore", "data.master"]).succeed();
    let mut standby = Cluster::on_directory(major, &data);
    standby.start();
    site.master_set("synchronous", "1");
    let daemon = Syncdaemon::start(&site);
    let mut waiting = Waiting { daemon, site };
    waiting.wait_for_flush();
    waiting.commits_wait();
    let first = |client: u64| client * 1_000_000;
    let mut clients: Vec<Client> = (1..=3)
        .map(|client| Client::inserting(&waiting.site, &format!("client{client}"), first(client)))
        .collect();
    let moment = Duration::from_millis(300 + dice.below(1_200));
    let does = dice.below(4);
    std::thread::sleep(moment / 2);
    match does {
        0 => drop(waiting.site.cluster().try_psql("SELECT pg_switch_wal()")),
        1 => waiting.site.restart_receiver(),
        2 => {
            waiting.daemon.signal(Signal::KILL);
            waiting.daemon.wait();
            waiting.daemon = Syncdaemon::start(&waiting.site);
        }
        _ => {}
    }
    std::thread::sleep(moment / 2);
    waiting.site.cluster_mut().kill9();
    // Whatever the master's disk still had is of no use to anybody.
    waiting.daemon.signal(Signal::KILL);
    waiting.daemon.wait();
    std::fs::remove_dir_all(waiting.site.data()).unwrap();
    let returned: BTreeSet<u64> = clients.iter_mut().flat_map(Client::returned).collect();
    waiting.site.standby_command(&["boot"]).succeed();
    let rows = standby.psql("SELECT n FROM t");
    let rows: BTreeSet<u64> = rows.lines().map(|line| line.parse().unwrap()).collect();
    let missing: Vec<&u64> = returned.difference(&rows).collect();
    assert!(missing.is_empty(), "{does}, lost: {missing:?}");
    returned.len()
}

#[test]
fn the_standby_has_what_is_written_and_is_told_to_have_what_is_flushed() {
    skip_unless!(Cluster::available(15));
    // Nobody flushes for ten seconds what is no commit.
    let settings = [
        ("wal_buffers", "32kB"),
        ("wal_writer_delay", "10s"),
        ("wal_writer_flush_after", "1GB"),
        ("autovacuum", "off"),
    ];
    let waiting = Waiting::new(15, &settings, "0");
    let cluster = waiting.site.cluster();
    // Rolled back, so that nobody has anything to flush.
    let write = "BEGIN; SELECT count(pg_logical_emit_message(false, 'm', repeat('x', 1000))) FROM generate_series(1, 200); \
        ROLLBACK";
    let held = || {
        cluster.psql(write);
        std::thread::sleep(Duration::from_millis(200));
        let name = cluster.psql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
        let held = std::fs::read(waiting.site.partial_wals().join(&name)).ok()?;
        let too_far = "count(*) FILTER (WHERE flush_lsn > pg_current_wal_flush_lsn())";
        assert_eq!(waiting.senders(too_far), "0");
        // Asked for last: what is there behind this was there before it was flushed.
        let flushed = "SELECT (pg_walfile_name_offset(pg_current_wal_flush_lsn())).file_offset";
        let flushed: usize = cluster.psql(flushed).parse().unwrap();
        let written = std::fs::read(waiting.site.data().join("pg_wal").join(name)).unwrap();
        let behind = flushed..flushed + (64 << 10);
        let (held, written) = (held.get(behind.clone())?, written.get(behind)?);
        let is_written = written.iter().filter(|byte| **byte == b'x').count() > 32 << 10;
        (is_written && held == written).then_some(())
    };
    wait_for("records that nobody has flushed", PATIENCE, held);
}

#[test]
fn records_that_come_alone_are_synced_by_the_thread_that_reads_them() {
    skip_unless!(Cluster::available(15));
    let strace = skip_unless!(Strace::attachable()).trace("recvfrom,fdatasync");
    let mut waiting = Waiting::new(15, &[], "0");
    waiting.restart_receiver_with(&[QUICK]);
    let attached = strace.attach(waiting.site.receiver.pid());
    waiting.commits();
    drop(attached);
    let (by_readers, all) = syncs(&strace.log());
    assert!(all > 100 && by_readers > all / 2, "{by_readers} of {all}");
}

#[test]
fn fault_145_a_panic_beside_a_commit_ends_its_stream_and_loses_nothing() {
    if !cfg!(debug_assertions) {
        report_skip("only a program with debug assertions takes a planted panic");
        return;
    }
    skip_unless!(Cluster::available(15));
    let mut waiting = Waiting::new(15, &[], "0");
    waiting.restart_receiver_with(&[QUICK, ("WALMGR_PANIC_IN", "first append")]);
    waiting.commits();
    let log = waiting.site.receiver.log();
    let said = "a panic ended this append: planted at src/receiver/worker.rs:";
    assert_eq!(log.matches(said).count(), 1, "{log}");
    waiting.wait_for_flush();
    waiting.commit().wait();
}

#[test]
fn fault_301_a_disk_that_hangs_below_a_commit_holds_up_one_connection() {
    skip_unless!(Cluster::available(15));
    let strace = skip_unless!(Strace::attachable())
        .trace("recvfrom")
        .inject("fdatasync:delay_enter=600s");
    let mut waiting = Waiting::new(15, &[], "0");
    waiting.site.master_set("push_timeout", "2");
    waiting.daemon.signal(Signal::HUP);
    waiting.restart_receiver_with(&[QUICK]);
    waiting.commits();
    let pid = waiting.site.receiver.pid();
    let attached = strace.attach(pid);
    let mut commit = waiting.commit();
    wait_for("a sync that hangs", PATIENCE, || {
        (is_held(pid) && syncs(&strace.log()).1 > 0).then_some(())
    });
    for _ in 0..3 {
        waiting.site.master_command(&["listbackups"]).succeed();
    }
    // Whoever ships gives the connection up, comes again, and hears what keeps it waiting.
    let said = "wait for the disk of the archive, for ";
    waiting.daemon.wait_for_log(said);
    assert!(!commit.has_ended() && is_held(pid));
    assert_eq!(syncs(&strace.log()), (1, 1), "it hangs elsewhere");
    drop(attached);
    commit.wait();
    waiting.site.receiver.stop();
}

/// How many syncs of records began on threads that read from a socket, and how many in all.
fn syncs(log: &[String]) -> (usize, usize) {
    let threads = |call: &str| -> Vec<&str> {
        let lines = log.iter().filter(|line| line.contains(call));
        lines.filter_map(|line| line.split(' ').next()).collect()
    };
    let (read, synced) = (threads("recvfrom("), threads("fdatasync("));
    let by_readers = synced.iter().filter(|thread| read.contains(thread));
    (by_readers.count(), synced.len())
}

#[test]
fn fault_271_a_commit_waits_for_a_receiver_that_is_away_and_returns() {
    skip_unless!(Cluster::available(15));
    let mut waiting = Waiting::new(15, &[("wal_sender_timeout", "4s")], "0");
    waiting.commit().wait();
    let lone = waiting.senders("pid");

    // It hangs: the server is answered meanwhile, and hears of nothing flushed.
    waiting.site.receiver.signal(Signal::STOP);
    let mut commit = waiting.commit();
    std::thread::sleep(Duration::from_secs(6));
    assert!(!commit.has_ended());
    assert_eq!(
        waiting.senders("pid"),
        lone,
        "{}",
        waiting.site.cluster().log()
    );
    assert_eq!(waiting.senders("flush_lsn < sent_lsn"), "t");
    waiting.site.receiver.signal(Signal::CONT);
    commit.wait();

    // It is down: the server sees no standby, and waits for one.
    waiting.site.receiver.stop();
    let mut commit = waiting.commit();
    wait_for("the server to see no standby", PATIENCE, || {
        (waiting.senders("count(flush_lsn)") == "0").then_some(())
    });
    std::thread::sleep(Duration::from_millis(500));
    assert!(!commit.has_ended());
    waiting.site.start_receiver();
    commit.wait();
    assert_eq!(waiting.site.cluster().psql("SELECT count(*) FROM t"), "3");
}

#[test]
fn fault_272_a_hole_in_the_archive_keeps_commits_waiting() {
    skip_unless!(Cluster::available(15));
    let mut site = archiving(15, &[]);
    site.master_command(&["backup"]).succeed();
    let mut names = Vec::new();
    for n in 0..3 {
        site.cluster().psql(&format!("INSERT INTO t VALUES ({n})"));
        let name = site
            .cluster()
            .psql("SELECT pg_walfile_name(pg_switch_wal())");
        wait_for("the archiver", PATIENCE, || site.holds(&name).then_some(()));
        names.push(name);
    }
    site.receiver.stop();
    std::fs::remove_file(site.stored_path(&names[1])).unwrap();
    site.start_receiver();
    site.master_set("synchronous", "1");
    let waiting = Waiting {
        daemon: Syncdaemon::start(&site),
        site,
    };
    let said = format!("no commit can wait for master: {} is missing on", names[1]);
    waiting.daemon.wait_for_log(&said);
    assert_eq!(waiting.senders("count(*), count(flush_lsn)"), "1|0");
    let refused = (waiting.site).master_command(&["synch-standby", "master"]);
    refused.fail_last(1, "tells nothing of its disk");
    waiting.site.archive(&names[1]).succeed();
    waiting.wait_for_flush();
    waiting.daemon.wait_for_log("commits can wait for master");
    waiting.commits_wait();
    waiting.commit().wait();
}

#[test]
fn fault_273_a_restarted_master_has_its_standby_and_its_slot_back() {
    skip_unless!(Cluster::available(15));
    let mut waiting = Waiting::new(15, &[], "0");
    // A fast stop waits until the standby has the shutdown checkpoint.
    waiting.site.cluster_mut().restart();
    waiting.commit().wait();
    waiting.site.cluster_mut().kill9();
    waiting.site.cluster_mut().start();
    waiting.commit().wait();
    waiting.site.cluster_mut().stop(StopMode::Immediate);
    waiting.site.cluster_mut().start();
    waiting.commit().wait();

    waiting.site.master_set("slot", "walmgr_1");
    waiting.daemon.signal(Signal::HUP);
    let said = "no commit can wait for master: begin to stream WAL: ERROR: replication slot \"walmgr_1\" does not exist";
    waiting.daemon.wait_for_log(said);
    let mut commit = waiting.commit();
    let create = "SELECT pg_create_physical_replication_slot('walmgr_1')";
    waiting.site.cluster().psql(create);
    commit.wait();
    let kept = "SELECT active AND restart_lsn IS NOT NULL FROM pg_replication_slots";
    wait_for("the slot", PATIENCE, || {
        (waiting.site.cluster().psql(kept) == "t").then_some(())
    });
}

#[test]
fn fault_274_a_standby_that_is_away_too_long_is_out_till_it_has_all() {
    skip_unless!(Cluster::available(15));
    let mut waiting = Waiting::new(15, &[], "2s");
    waiting.commit().wait();
    assert!(!waiting.is_found_out());

    // It hangs.
    let begun = Instant::now();
    waiting.site.receiver.signal(Signal::STOP);
    waiting.commit().wait();
    // What was under way a moment before counts, too.
    assert!(
        begun.elapsed() >= Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    waiting.wait_for_names("");
    waiting.commit().wait();
    assert!(waiting.is_found_out());
    waiting.site.receiver.signal(Signal::CONT);
    waiting.wait_for_names("master");
    waiting
        .daemon
        .wait_for_log("is back in synchronous_standby_names = 'master'");
    assert!(!waiting.is_found_out());
    waiting.commit().wait();

    // It is down, and then commits wait again.
    waiting.site.receiver.stop();
    waiting.commit().wait();
    waiting.wait_for_names("");
    waiting.site.start_receiver();
    waiting.wait_for_names("master");
    waiting.commit().wait();
    waiting.site.master_command(&["stop"]).succeed();
    assert_eq!(waiting.names(), "");
}

#[test]
fn fault_275_a_name_that_is_out_comes_back_unless_somebody_set_others() {
    skip_unless!(Cluster::available(15));
    let mut waiting = Waiting::new(15, &[], "1s");
    waiting.set_names("FIRST 1 (Master, b)");
    waiting.site.receiver.stop();
    waiting.wait_for_names("FIRST 1 (\"b\")");
    waiting.daemon.signal(Signal::KILL);
    waiting.daemon.wait();
    waiting.site.start_receiver();
    waiting.daemon = Syncdaemon::start(&waiting.site);
    waiting.wait_for_names("FIRST 1 (Master, b)");

    let before = waiting.daemon.log().len();
    waiting.site.receiver.stop();
    waiting.wait_for_names("FIRST 1 (\"b\")");
    wait_for("the second time", PATIENCE, || {
        let said = waiting.daemon.log().split_off(before);
        said.contains("is taken out of").then_some(())
    });
    waiting.set_names("c");
    waiting.site.start_receiver();
    waiting
        .daemon
        .wait_for_log("somebody has set other synchronous_standby_names");
    wait_for("the finding to go", PATIENCE, || {
        (!waiting.is_found_out()).then_some(())
    });
    assert_eq!(waiting.names(), "c");

    waiting.set_names("master");
    waiting.site.receiver.stop();
    waiting.wait_for_names("");
    waiting
        .daemon
        .wait_for_log("is taken out of synchronous_standby_names, now ''");
    waiting
        .site
        .master_command(&["synch-standby", ""])
        .succeed();
    assert!(!waiting.is_found_out());
    waiting.site.start_receiver();
    waiting.wait_for_flush();
    assert_eq!(waiting.names(), "");
}
