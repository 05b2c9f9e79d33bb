//! Backups that are killed, cut and raced: what is listed afterwards is whole, and the next one works.
//! Never waits for a lease to run out. Invariant: nobody has to remove anything by hand.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::{amcheck, archiving, beside, judge, newest, site, start_from, verify};
use crate::support::{Cluster, Output, Site, soak, wait_for};

const SOON: Duration = Duration::from_secs(30);

/// A backup that runs beside the test, and is killed with it.
struct Backup(Option<Child>);

impl Backup {
    fn start(site: &Site) -> Backup {
        let mut backup: Command = site.master_walmgr(&["backup"]);
        backup
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Backup(Some(backup.spawn().unwrap()))
    }

    /// Started, and in the possession of the lease.
    fn under_way(site: &Site) -> Backup {
        let mut backup = Backup::start(site);
        wait_for("the lease", SOON, || {
            let has_ended = backup.0.as_mut()?.try_wait().unwrap().is_some();
            (has_ended || beside(site).iter().any(|name| name.ends_with(".incoming"))).then_some(())
        });
        backup
    }

    fn signal(&self, signal: Signal) {
        let child = self.0.as_ref().unwrap();
        // It may have ended by itself.
        let _ = kill_process(Pid::from_child(child), signal);
    }

    fn end(mut self) -> Output {
        self.0.take().unwrap().wait_with_output().unwrap().into()
    }
}

impl Drop for Backup {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Moments spread over a backup, from a seed that is printed.
fn moments(count: u32) -> impl Iterator<Item = Duration> {
    let mut state = std::process::id() | 1;
    println!("seed {state}");
    (0..count).map(move |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        Duration::from_millis(u64::from(state % 1_500))
    })
}

fn kills() -> u32 {
    if soak() { 20 } else { 2 }
}

/// The sets that are listed are whole, and the next backup is made without further ado.
#[track_caller]
fn assert_next_works(site: &Site, sets: usize) {
    let listed = |name: &String| {
        site.archive_folder()
            .join(name)
            .join("backup_label")
            .exists()
    };
    let names = loop {
        let names: Vec<String> = beside(site).into_iter().filter(listed).collect();
        let judged: Result<(), String> =
            (names.iter()).try_for_each(|name| judge(site, &site.archive_folder().join(name)));
        // A set whose client was killed after its last word is sealed without it, and moves the others.
        if beside(site)
            .into_iter()
            .filter(listed)
            .eq(names.iter().cloned())
        {
            judged.unwrap();
            break names;
        }
    };
    assert!(names.len() >= sets, "{names:?}");
    site.master_command(&["backup"]).succeed();
    assert!(beside(site).len() > names.len(), "{:?}", beside(site));
    verify(site, &newest(site));
}

#[test]
fn fault_58_client_killed_at_any_moment_leaves_the_next_backup_working() {
    skip_unless!(Cluster::available(15));
    let site = site();
    site.cluster().pgbench(&["-i", "-q", "-s", "2"]);
    site.master_command(&["backup"]).succeed();
    for (sets, moment) in (1..).zip(moments(kills())) {
        let backup = Backup::start(&site);
        std::thread::sleep(moment);
        backup.signal(Signal::KILL);
        backup.end();
        assert_next_works(&site, sets);
    }
    let (server, _home) = start_from(&site, &newest(&site));
    amcheck(&server);
}

#[test]
fn fault_58_receiver_killed_at_any_moment_leaves_the_next_working() {
    skip_unless!(Cluster::available(15));
    let mut site = site();
    site.cluster().pgbench(&["-i", "-q", "-s", "2"]);
    site.master_command(&["backup"]).succeed();
    for (sets, moment) in (1..).zip(moments(kills())) {
        let backup = Backup::start(&site);
        std::thread::sleep(moment);
        site.receiver.kill9();
        site.start_receiver();
        let output = backup.end();
        assert!(matches!(output.code, Some(0 | 1)), "{}", output.stderr);
        assert_next_works(&site, sets);
    }
}

#[test]
fn fault_58_session_ended_by_the_server_fails_the_backup_only() {
    skip_unless!(Cluster::available(15));
    let site = site();
    site.cluster().pgbench(&["-i", "-q", "-s", "2"]);
    let backup = Backup::under_way(&site);
    backup.signal(Signal::STOP);
    site.cluster().psql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'",
    );
    backup.signal(Signal::CONT);
    backup.end().fail_last(1, "PostgreSQL");
    assert_next_works(&site, 0);
}

#[test]
fn fault_58_session_ended_at_any_moment_leaves_the_next_working() {
    skip_unless!(Cluster::available(15));
    let site = site();
    site.cluster().pgbench(&["-i", "-q", "-s", "2"]);
    site.master_command(&["backup"]).succeed();
    for (sets, moment) in (1..).zip(moments(kills() / 2)) {
        let backup = Backup::start(&site);
        std::thread::sleep(moment);
        site.cluster().psql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'",
        );
        let output = backup.end();
        assert!(matches!(output.code, Some(0 | 1)), "{}", output.stderr);
        assert_next_works(&site, sets);
    }
}

#[test]
fn fault_71_a_promotion_during_a_backup_fails_it_and_the_next_works() {
    skip_unless!(Cluster::available(15));
    let mut site = site();
    site.cluster().pgbench(&["-i", "-q", "-s", "2"]);
    let backup = Backup::under_way(&site);
    backup.signal(Signal::STOP);
    // A master becomes a standby by a restart only, which ends the session that holds the backup.
    let signal = site.data().join("standby.signal");
    std::fs::write(&signal, "").unwrap();
    crate::support::place::give_to_server(&signal);
    site.cluster_mut().restart();
    site.cluster().psql("SELECT pg_promote()");
    let timeline = "SELECT timeline_id FROM pg_control_checkpoint()";
    site.cluster().psql("CHECKPOINT");
    assert_eq!(site.cluster().psql(timeline), "2");
    backup.signal(Signal::CONT);
    let output = backup.end();
    output.fail_last(1, "PostgreSQL");
    assert_next_works(&site, 0);
    let label = std::fs::read_to_string(newest(&site).join("backup_label")).unwrap();
    assert!(label.contains("START TIMELINE: 2"), "{label}");
}

#[test]
fn fault_58_a_signal_ends_a_backup_at_once_and_the_next_works() {
    skip_unless!(Cluster::available(15));
    let site = site();
    site.cluster().pgbench(&["-i", "-q", "-s", "2"]);
    for signal in [Signal::TERM, Signal::INT] {
        let backup = Backup::under_way(&site);
        backup.signal(signal);
        backup.end().fail_last(1, "before the backup was complete");
        wait_for("the end of the lease", SOON, || {
            (!site.completed_wals().join("BACKUPLOCK").exists()).then_some(())
        });
        let backups = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%backup_start%' \
                       AND pid <> pg_backend_pid()";
        wait_for("the end of the session", SOON, || {
            (site.cluster().psql(backups) == "0").then_some(())
        });
    }
    assert_next_works(&site, 0);
}

#[test]
fn fault_84_a_second_backup_is_refused_and_told_who_makes_the_first() {
    skip_unless!(Cluster::available(15));
    let site = site();
    site.cluster().pgbench(&["-i", "-q", "-s", "2"]);
    let first = Backup::under_way(&site);
    first.signal(Signal::STOP);
    let lock = std::fs::read_to_string(site.completed_wals().join("BACKUPLOCK")).unwrap();
    let pid = first.0.as_ref().unwrap().id();
    assert!(lock.contains(&format!("process {pid}, since ")), "{lock}");
    let second = site.master_command(&["backup"]);
    second.fail_last(1, &format!("a backup is running: {}", lock.trim_end()));
    first.signal(Signal::CONT);
    first.end().succeed();
    assert_next_works(&site, 1);
}

#[test]
fn fault_67_a_link_cut_ten_times_costs_a_tenth_at_most() {
    skip_unless!(Cluster::available(15));
    let cluster = Cluster::builder().conf("archive_mode", "on").start();
    let site = archiving(
        Site::builder()
            .cluster(cluster)
            .proxied()
            .master_set("backup_jobs", "2"),
    );
    let scale = if soak() { "60" } else { "12" };
    site.cluster().pgbench(&["-i", "-q", "-s", scale]);
    let backup = Backup::under_way(&site);
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(150));
        site.proxy().cut_all();
    }
    let output = backup.end();
    let said = output.succeed();
    assert!(
        output.stderr.contains("connections broke"),
        "{}",
        output.stderr
    );
    verify(&site, &newest(&site));
    let first = said.lines().next().unwrap();
    let ratio: f64 = first.rsplit(' ').next().unwrap().parse().unwrap();
    println!("ten cuts: {first}");
    // What a cut costs is what the sockets held, whatever the size: little of a large backup, more
    // of the small one of an ordinary run.
    let at_least = if soak() { 1.0 / 1.1 } else { 0.75 };
    assert!(ratio > at_least, "{first}");
}

#[test]
fn fault_58_a_client_that_stays_away_loses_its_backup() {
    skip_unless!(Cluster::available(15));
    if !soak() {
        skip!("a lease takes a minute to run out: set WALMGR_SOAK");
    }
    let site = site();
    site.cluster().pgbench(&["-i", "-q", "-s", "2"]);
    let backup = Backup::under_way(&site);
    backup.signal(Signal::STOP);
    // It is asked whether it is there, and then given up; the lease begins when it is.
    let limit = Duration::from_secs(150);
    wait_for("the end of the lease", limit, || {
        // The lease goes last: nobody begins a backup beside the rest of this one.
        let is_over = !site.completed_wals().join("BACKUPLOCK").exists();
        (is_over && beside(&site).is_empty()).then_some(())
    });
    backup.signal(Signal::CONT);
    backup.end().fail_last(1, "no such backup is running");
    assert_next_works(&site, 0);
}
