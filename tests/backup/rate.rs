//! `backup_rate` and `fetch_rate`: how fast a backup, a set's way back, and WAL meanwhile may be read.
//! Never only believes walmgr's own figure: the clock around the process says the same. Invariant: no limit is
//! exceeded by more than a tenth.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{archiving, judge, newest};
use crate::support::{Cluster, Host, Output, Site, wait_for};

const MIB: u64 = 1 << 20;

fn limited(rate: &str, jobs: &str) -> Site {
    let cluster = Cluster::builder().conf("archive_mode", "on").start();
    let builder = Site::builder().cluster(cluster);
    archiving(
        builder
            .master_set("backup_rate", rate)
            .master_set("backup_jobs", jobs)
            .master_set("compression", "1"),
    )
}

/// Bytes of all files below a directory.
pub(crate) fn bytes_below(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).unwrap().map(Result::unwrap);
    let bytes_of = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => bytes_below(&entry.path()),
        Ok(found) => found.len(),
        // It is being received, and has another name by now.
        Err(_) => 0,
    };
    entries.map(bytes_of).sum()
}

/// At most a tenth faster than the limit; slower as the machine is busy, but the limit was what it waited for.
#[track_caller]
pub(crate) fn check_rate(bytes: u64, took: Duration, rate: u64) {
    let ratio = bytes as f64 / took.as_secs_f64() / rate as f64;
    println!("{bytes} bytes in {took:?}: {ratio:.3} of the limit");
    assert!(ratio <= 1.1, "{bytes} bytes in {took:?}: {ratio:.3}");
    assert!(ratio >= 0.3, "{bytes} bytes in {took:?}: {ratio:.3}");
}

fn started(mut command: std::process::Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command.stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn fault_188_all_streams_of_a_backup_together_keep_its_rate() {
    skip_unless!(Cluster::available(15));
    let mut site = limited("5MB", "4");
    for (rate, jobs) in [(5, "4"), (8, "1")] {
        // The next backup takes what the file says then.
        site.master_set("backup_rate", &format!("{rate}MB"));
        site.master_set("backup_jobs", jobs);
        let rehearsed = site.master_command(&["-n", "backup", "--full"]).succeed();
        let said = format!("(at most {rate}.00 MiB/s, as backup_rate says)");
        assert!(rehearsed.contains(&said), "{rehearsed}");
        let begun = Instant::now();
        let made = site.master_command(&["backup", "--full"]).succeed();
        let took = begun.elapsed();
        assert!(made.contains(&said), "{made}");
        judge(&site, &newest(&site)).unwrap();
        check_rate(bytes_below(&newest(&site)), took, rate * MIB);
    }
}

#[test]
fn fault_188_wal_is_archived_at_once_while_a_backup_is_slow() {
    skip_unless!(Cluster::available(15));
    let site = limited("256kB", "2");
    let backed_up = Instant::now();
    let mut backup = started(site.master_walmgr(&["backup"]));
    let incoming = site.archive_folder().join("data.master.incoming");
    wait_for("the first file", Duration::from_secs(60), || {
        incoming.join("PG_VERSION").exists().then_some(())
    });
    // Two segments have more bytes than the backup may read in two minutes.
    let begun = Instant::now();
    for _ in 0..2 {
        let name = site
            .cluster()
            .psql("SELECT pg_walfile_name(pg_current_wal_lsn())");
        site.cluster()
            .psql("SELECT pg_logical_emit_message(false, 'walmgr', repeat('x', 10 << 20))");
        site.cluster().switch_wal();
        wait_for("the segment", Duration::from_secs(60), || {
            site.holds(&name).then_some(())
        });
    }
    assert!(backup.try_wait().unwrap().is_none());
    // It is slow by its rate, and not by the machine: the rest is what it may read at once.
    let most = backed_up.elapsed().as_secs() * (256 << 10) * 11 / 10 + 4 * MIB;
    let bytes = bytes_below(&incoming);
    assert!(bytes <= most, "{bytes} bytes in {:?}", backed_up.elapsed());
    assert!(
        begun.elapsed() < Duration::from_secs(100),
        "{:?}",
        begun.elapsed()
    );
    // It ends at once when it is told to, also while it waits.
    let pid = rustix::process::Pid::from_child(&backup);
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    let ended: Output = backup.wait_with_output().unwrap().into();
    ended.fail_last(1, "stopped by SIGTERM");
}

#[test]
fn fault_188_fetches_of_sets_keep_their_rate_until_a_reload_lifts_it() {
    skip_unless!(Cluster::available(15));
    let mut site = limited("1GB", "2");
    site.master_command(&["backup"]).succeed();
    let bytes = bytes_below(&newest(&site));
    let reload = |site: &mut Site, rate: &str| {
        let marked = site
            .receiver
            .log()
            .matches("settings and keys reloaded")
            .count();
        site.standby_set("fetch_rate", rate);
        site.receiver.signal(Signal::HUP);
        wait_for("the reload", Duration::from_secs(60), || {
            let log = site.receiver.log();
            (log.matches("settings and keys reloaded").count() > marked).then_some(())
        });
    };
    reload(&mut site, "8MB");
    let restore = |site: &Site, name: &str| {
        let destination = site.home().join(name).display().to_string();
        site.master_walmgr(&["restore", "data.master", &destination])
    };
    // Two at once share the limit.
    let begun = Instant::now();
    let both = [restore(&site, "one"), restore(&site, "other")].map(started);
    for child in both {
        Output::from(child.wait_with_output().unwrap()).succeed();
    }
    let both_took = begun.elapsed();
    check_rate(2 * bytes, both_took, 8 * MIB);
    // What it takes at the slowest rate is minutes: not done in the time that two of them took, however busy the machine is.
    reload(&mut site, "256kB");
    let at_that_rate = Duration::from_secs(bytes / (256 << 10));
    let begun = Instant::now();
    let mut slow = started(restore(&site, "slow"));
    std::thread::sleep(Duration::from_secs(1));
    fetch_wal(&site, at_that_rate / 4);
    std::thread::sleep(both_took.saturating_sub(begun.elapsed()));
    assert!(
        slow.try_wait().unwrap().is_none(),
        "the reload changed nothing"
    );
    // Lifted, it is done while it waits.
    reload(&mut site, "1GB");
    Output::from(slow.wait_with_output().unwrap()).succeed();
    assert!(begun.elapsed() < at_that_rate / 2, "{:?}", begun.elapsed());
}

/// Fetches so much WAL that it would take twice as long at the slowest rate, beside a set that has all of that.
fn fetch_wal(site: &Site, limit: Duration) {
    let mut names = site.archived_names().into_iter();
    let segment = names.rfind(|name| name.len() == 24).unwrap();
    let count = limit.as_secs() * 2 * (256 << 10) / MIB;
    let begun = Instant::now();
    for number in 0..count {
        let path = site.home().join(format!("fetched.{number}"));
        let words = ["xrestore", &segment, path.to_str().unwrap()];
        site.master_command(&words).succeed();
    }
    let took = begun.elapsed();
    println!("{count} segments were fetched in {took:?}, which is no more than {limit:?}");
    assert!(took < limit, "WAL is kept back: {count} in {took:?}");
}

#[test]
fn fault_233_fetches_of_all_clusters_of_a_host_keep_its_rate_together() {
    skip_unless!(Cluster::available(15));
    let mut host = Host::builder().build();
    host.start();
    let sites = ["db1", "db2"].map(|name| {
        let cluster = Cluster::builder().conf("archive_mode", "on").start();
        let site = host.add(name, Site::builder().cluster(cluster));
        site.master_command(&["setup"]).succeed();
        site.master_command(&["backup"]).succeed();
        site
    });
    let bytes = sites.each_ref().map(|site| bytes_below(&newest(site)));
    let restore = |site: &Site, name: &str| {
        let destination = site.home().join(name).display().to_string();
        started(site.master_walmgr(&["restore", "data.master", &destination]))
    };
    // By a reload, and from the start.
    for (name, rate) in [("one", 10), ("other", 16)] {
        host.set("fetch_rate", &format!("{rate}MB"));
        match name {
            "one" => drop(host.reload()),
            _ => host.restart(),
        }
        let begun = Instant::now();
        let both = sites.each_ref().map(|site| restore(site, name));
        for child in both {
            Output::from(child.wait_with_output().unwrap()).succeed();
        }
        check_rate(bytes[0] + bytes[1], begun.elapsed(), rate * MIB);
    }
}
