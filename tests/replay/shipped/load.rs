//! Masters that die under load: what was committed and acknowledged is in the booted database.
//! Never stops the load before the kill. Invariant tested: every commit at or below the last durable
//! LSN is there, and that LSN is never older than a pass and a moment.

use std::process::{Child, Stdio};
use std::time::SystemTime;

use super::*;

/// How old the durable LSN may be beside one pass. A machine that runs other tests at the same
/// time is late for everything.
fn moment_s() -> f64 {
    if soak() { 0.2 } else { 1.5 }
}

/// A commit, as the client that made it notes it.
struct Commit {
    number: u32,
    lsn: Lsn,
    at_s: f64,
}

/// A client that commits one row after another and notes the end of each, in a file: a pipe that
/// nobody empties would stop it.
struct Client {
    psql: Child,
    notes: PathBuf,
}

impl Client {
    fn start(site: &Site) -> Client {
        let noting = "SELECT pg_current_wal_lsn(), extract(epoch FROM clock_timestamp());\n";
        let script: String = (1..=100_000)
            .map(|number| format!("INSERT INTO t VALUES ({number});\n\\echo {number}\n{noting}"))
            .collect();
        let script = site.home().write("client.sql", script);
        let notes = site.home().join("client.notes");
        let mut psql = site.cluster().command("psql");
        psql.args(["-X", "-A", "-t", "-q", "-f"])
            .arg(script)
            .stdout(fs::File::create(&notes).unwrap())
            .stderr(Stdio::null());
        Client {
            psql: psql.spawn().unwrap(),
            notes,
        }
    }

    /// Once the server is gone.
    fn commits(mut self) -> Vec<Commit> {
        self.psql.wait().unwrap();
        let notes = fs::read_to_string(&self.notes).unwrap();
        let lines: Vec<&str> = notes.lines().collect();
        let commits = lines.chunks_exact(2).filter_map(|pair| {
            let (lsn, at_s) = pair[1].split_once('|')?;
            Some(Commit {
                number: pair[0].parse().ok()?,
                lsn: lsn.parse().ok()?,
                at_s: at_s.parse().ok()?,
            })
        });
        commits.collect()
    }
}

fn now_s() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap().as_secs_f64()
}

/// The last LSN that the syncdaemon was told to be durable.
fn acknowledged(daemon: &Syncdaemon) -> Lsn {
    let log = daemon.log();
    let last = log.rsplit("durable up to ").next().unwrap();
    last.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn fault_76_commits_up_to_the_durable_lsn_outlive_a_killed_master() {
    skip_unless!(Cluster::available(15));
    for round in 0..if soak() { 100 } else { 2 } {
        killed_under_load(round);
    }
}

fn killed_under_load(round: u32) {
    let (mut site, mut standby) = shipping(round.is_multiple_of(2));
    site.cluster()
        .psql("CREATE TABLE t (n int); CREATE TABLE u (n int)");
    let mut command = site.master_walmgr(&["syncdaemon", "-v", "-v"]);
    let mut daemon = Syncdaemon::start_as(&site, &mut command);
    daemon.wait_for_log("is shipped to");
    let others = "INSERT INTO u SELECT generate_series(1, 20); UPDATE u SET n = 0 WHERE n = 7;\n";
    let others = site.home().write("others.sql", others);
    let mut load = site.cluster().command("pgbench");
    load.args(["-n", "-c", "2", "-T", "60", "-f"])
        .arg(others)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut load = load.spawn().unwrap();
    let client = Client::start(&site);
    std::thread::sleep(Duration::from_millis(800 + u64::from(round % 10) * 150));
    let killed_at_s = now_s();
    site.cluster_mut().kill9();
    daemon.signal(Signal::KILL);
    daemon.wait();
    load.wait().unwrap();
    let commits = client.commits();
    let durable = acknowledged(&daemon);

    let output = site.standby_command(&["boot"]);
    let said = output.succeed();
    let end = said.split(" up to ").nth(1).unwrap();
    let end: Lsn = end.split(';').next().unwrap().parse().unwrap();
    assert!(end >= durable, "{end} of {durable}: {}", output.stderr);
    let rows = standby.psql("SELECT n FROM t ORDER BY n");
    let rows: std::collections::BTreeSet<u32> = rows.lines().map(|n| n.parse().unwrap()).collect();
    assert!(commits.len() > 50, "{}", commits.len());
    let promised = commits.iter().filter(|commit| commit.lsn <= durable);
    let lost: Vec<u32> = promised.map(|commit| commit.number).collect();
    let kept = lost.len();
    let lost: Vec<u32> = lost.into_iter().filter(|n| !rows.contains(n)).collect();
    assert!(
        lost.is_empty(),
        "acknowledged at {durable} and lost: {lost:?}"
    );
    // What was flushed one pass and a moment before the end.
    let age_s = 0.05 + moment_s();
    let due = commits
        .iter()
        .filter(|commit| commit.at_s < killed_at_s - age_s);
    let late = due.filter(|commit| commit.lsn > durable).count();
    let oldest = commits.iter().find(|commit| commit.lsn > durable);
    let oldest_ms = oldest.map_or(0.0, |commit| 1_000.0 * (killed_at_s - commit.at_s));
    println!(
        "round {round}: {} commits, {kept} acknowledged up to {durable}, the first that was not \
         {oldest_ms:.0} ms before the end, {} in the database",
        commits.len(),
        rows.len()
    );
    assert_eq!(late, 0, "{durable} was older than {age_s} s");
    check(&standby);
    standby.stop(StopMode::Fast);
}

fn check(standby: &Cluster) {
    if !standby.bin().join("pg_amcheck").exists() {
        return crate::support::report_skip("pg_amcheck is not installed here");
    }
    let mut check = standby.command("pg_amcheck");
    run(check.args(["--install-missing", "-d", "postgres"])).unwrap();
}

#[test]
fn fault_76_hanging_archiver_costs_a_boot_nothing() {
    skip_unless!(Cluster::available(15));
    // The syncdaemon finishes the segments that are closed, or leaves all of them in progress.
    for batch in [8, 0] {
        boots_behind_a_hanging_archiver(batch);
    }
}

fn boots_behind_a_hanging_archiver(batch: usize) {
    let (mut site, standby) = shipping(false);
    site.master_set("archive_batch", &batch.to_string());
    site.cluster().psql("CREATE TABLE t (n int)");
    finish(&site);
    // As long as the server lives: it could not be started again beside its child.
    let hang = "while kill -0 $(head -1 postmaster.pid) 2>/dev/null; do sleep 0.1; done; false";
    let hang = format!("ALTER SYSTEM SET archive_command = '{hang}'");
    site.cluster().psql(&hang);
    site.cluster().reload();
    let archived = site.archived_names();
    let daemon = Syncdaemon::start(&site);
    daemon.wait_for_log("is shipped to");
    for _ in 0..5 {
        let insert = "INSERT INTO t SELECT generate_series(1, 5000)";
        site.cluster().psql(insert);
        site.cluster().switch_wal();
    }
    site.cluster().psql("INSERT INTO t VALUES (1)");
    let (name, behind) = segment_before(flushed(&site));
    let ours = fs::read(site.data().join("pg_wal").join(name.to_string())).unwrap();
    wait_for("the newest record", PATIENCE, || {
        let held = fs::read(site.partial_wals().join(name.to_string())).ok()?;
        (held.get(..behind)? == &ours[..behind]).then_some(())
    });
    let finished = if batch > 0 { 5 } else { 0 };
    wait_for("the closed segments", PATIENCE, || {
        (site.archived_names().len() == archived.len() + finished).then_some(())
    });
    site.cluster_mut().kill9();
    let output = site.standby_command(&["boot"]);
    output.succeed();
    assert_eq!(count(&standby), 25_001, "{}", output.stderr);
    let copies = fs::read_dir(site.partial_wals()).unwrap().flatten();
    let copies = copies.filter(|entry| entry.file_name().to_string_lossy().ends_with(".frozen"));
    assert_eq!(copies.count(), 0, "they are of no use any more");
}
