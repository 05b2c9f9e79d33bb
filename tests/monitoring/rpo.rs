//! `walmgr_rpo_seconds` against the truth: the time of the first commit that the standby does not have.
//! Never asks walmgr for the truth: the commits' times are PostgreSQL's, and what is held is what stands in the
//! standby's files. Invariant tested: through stalls of the link and the receiver the metric is right within half a
//! second.

use std::io::Write;
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use walmgr_protocol::names::Lsn;

use super::programs::get;
use crate::partial::daemon::Syncdaemon;
use crate::partial::{flushed, held, in_pg_wal};
use crate::support::dice::Dice;
use crate::support::{Cluster, Site, TempDir, free_port, rounds, soak};

const PATIENCE: Duration = Duration::from_secs(60);

/// How far the metric may be from the truth.
const TOLERANCE_S: f64 = 0.5;

/// Time between two commits of the load, much less than the tolerance.
const COMMIT_INTERVAL: Duration = Duration::from_millis(20);

/// Up to where the master's and the standby's files are compared at once.
const WAL_KEPT: &str = "1GB";

/// What stops.
#[derive(Debug, Clone, Copy)]
enum Stall {
    /// The link passes nothing on; the connections stay.
    Link,
    /// The connections end, and new ones get no answer.
    LinkCut,
    /// The receiver's process stands still.
    Receiver,
    /// It is killed, and comes back.
    ReceiverKilled,
}

/// How often each kind comes.
const STALLS: [Stall; 8] = [
    Stall::Link,
    Stall::Link,
    Stall::Link,
    Stall::LinkCut,
    Stall::Receiver,
    Stall::Receiver,
    Stall::Receiver,
    Stall::ReceiverKilled,
];

/// A session that commits a row every few milliseconds, each with the end of WAL before it.
struct Load {
    psql: Child,
    input: Arc<Mutex<ChildStdin>>,
    pauses: Arc<AtomicBool>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

fn commit(input: &Mutex<ChildStdin>) {
    let sql = b"INSERT INTO log (before) VALUES (pg_current_wal_insert_lsn());\n";
    // The session is gone when the test ends.
    let _ = input.lock().unwrap().write_all(sql);
}

impl Load {
    fn start(cluster: &Cluster) -> Load {
        cluster.psql("CREATE TABLE log (number serial PRIMARY KEY, before pg_lsn)");
        let mut psql = cluster
            .command("psql")
            .args(["-X", "-q"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let input = Arc::new(Mutex::new(psql.stdin.take().unwrap()));
        let [pauses, ends] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let (theirs, paused, ended) = (Arc::clone(&input), Arc::clone(&pauses), Arc::clone(&ends));
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::SeqCst) {
                if !paused.load(Ordering::SeqCst) {
                    commit(&theirs);
                }
                std::thread::sleep(COMMIT_INTERVAL);
            }
        });
        Load {
            psql,
            input,
            pauses,
            ends,
            thread: Some(thread),
        }
    }

    fn pause(&self, pauses: bool) {
        self.pauses.store(pauses, Ordering::SeqCst);
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = self.psql.kill();
        let _ = self.psql.wait();
    }
}

fn now_s() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_secs_f64()
}

/// A master that ships through a link to break, and whose syncdaemon tells its RPO.
struct Watched {
    // Dropped before what they work with.
    load: Load,
    _syncdaemon: Syncdaemon,
    site: Site,
    _archive: TempDir,
    metrics: SocketAddr,
    /// The standby's files are known to be whole up to here, within this segment.
    whole: Lsn,
}

impl Watched {
    fn start() -> Watched {
        let metrics = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let cluster = Cluster::builder()
            .conf("archive_mode", "on")
            .conf("track_commit_timestamp", "on")
            .conf("autovacuum", "off")
            .conf("wal_keep_size", WAL_KEPT)
            .start();
        // Where a sync takes no time: what stands in the standby's files is durable.
        let archive = TempDir::in_memory();
        let site = Site::builder()
            .cluster(cluster)
            .archive(&archive.join("archive"))
            .proxied()
            .master_set("use_xlog_functions", "1")
            .master_set("loop_delay", "0.1")
            .master_set("metrics_listen", &metrics.to_string())
            .build();
        site.master_command(&["setup"]).succeed();
        let whole = flushed(&site);
        let load = Load::start(site.cluster());
        let syncdaemon = Syncdaemon::start(&site);
        syncdaemon.wait_for_log("is shipped to");
        Watched {
            load,
            _syncdaemon: syncdaemon,
            site,
            _archive: archive,
            metrics,
            whole,
        }
    }

    /// What the metric says.
    fn said(&self) -> Option<f64> {
        let page = get(self.metrics, "/metrics", "text/plain").unwrap().content;
        let mut lines = page.lines();
        let line = lines.find(|line| line.starts_with("walmgr_rpo_seconds{"))?;
        line.rsplit_once(' ')?.1.parse().ok()
    }

    /// Up to where the standby's files are the master's WAL.
    fn held(&mut self) -> Lsn {
        let size = self.site.facts().cluster.segment_size.bytes();
        loop {
            let number = self.whole.0 / size;
            let segment = self.site.segment_name(number);
            // In this order: the master has what the standby had a moment ago.
            let theirs = held(&self.site, &segment).unwrap_or_default();
            // The server makes a segment when it writes the first byte of it.
            let Ok(ours) = std::fs::read(in_pg_wal(&self.site, &segment)) else {
                return self.whole;
            };
            let pairs = ours.iter().zip(&theirs);
            let same = pairs.take_while(|(ours, theirs)| ours == theirs).count();
            // Behind what is flushed both may have zeros.
            let end = Lsn(number * size + same as u64).min(flushed(&self.site));
            if end.0 < (number + 1) * size {
                return end;
            }
            self.whole = end;
        }
    }

    /// When the first commit was that the standby does not hold, in seconds since 1970; nothing if it holds all.
    fn oldest_missing(&mut self) -> Option<f64> {
        let held = self.held();
        let sql = format!(
            "SELECT extract(epoch FROM min(pg_xact_commit_timestamp(xmin))) FROM (SELECT xmin, \
             coalesce(lead(before) OVER (ORDER BY number), pg_current_wal_insert_lsn()) AS behind \
             FROM log) AS commits WHERE behind > '{held}'"
        );
        self.site.cluster().psql(&sql).parse().ok()
    }

    /// Compares once: what the metric says, and what it should say.
    fn compare(&mut self, when: &str) -> (f64, f64) {
        let before = self.oldest_missing();
        let begun = now_s();
        let said = self.said();
        let asked = f64::midpoint(begun, now_s());
        let after = self.oldest_missing();
        // Where nothing moves both are the same; else it was between them at that moment.
        let [before, after] = [before, after].map(|at| at.map_or(0.0, |at| (asked - at).max(0.0)));
        let said =
            said.unwrap_or_else(|| panic!("{when}: no RPO, truth {before:.2} to {after:.2}"));
        let (least, most) = (before.min(after), before.max(after));
        assert!(
            said > least - TOLERANCE_S && said < most + TOLERANCE_S,
            "{when}: walmgr_rpo_seconds is {said:.3}, the truth {before:.3} before and {after:.3} after"
        );
        let off = (least - said).max(said - most).max(0.0);
        (off, most)
    }

    fn begin(&mut self, stall: Stall) {
        match stall {
            Stall::Link => self.site.proxy().stall(),
            Stall::LinkCut => {
                self.site.proxy().stall();
                self.site.proxy().cut_all();
            }
            Stall::Receiver => self.site.receiver.signal(Signal::STOP),
            Stall::ReceiverKilled => self.site.receiver.kill9(),
        }
    }

    fn end(&mut self, stall: Stall) {
        match stall {
            Stall::Link | Stall::LinkCut => self.site.proxy().resume(),
            Stall::Receiver => self.site.receiver.signal(Signal::CONT),
            Stall::ReceiverKilled => self.site.start_receiver(),
        }
    }
}

/// How long a stall lasts.
fn duration(dice: &mut Dice) -> Duration {
    let long = soak() && dice.once_in(50);
    Duration::from_millis(match long {
        true => 20_000 + dice.below(40_000),
        false => 100 + dice.below(1_400),
    })
}

#[test]
fn fault_190_the_rpo_is_true_within_half_a_second_through_stalls() {
    skip_unless!(Cluster::available(15));
    let mut dice = Dice::thrown("stalls");
    let count = rounds(25, 1_000);
    let mut watched = Watched::start();
    let (mut worst, mut longest, mut samples) = (0.0_f64, 0.0_f64, 0);
    let begun = Instant::now();
    for number in 1..=count {
        let stall = *dice.choose(&STALLS);
        // Sometimes the master has only a few commits to lose, sometimes more and more.
        let is_quiet = dice.once_in(3);
        let lasts = duration(&mut dice);
        let what = format!("stall {number}, {stall:?}, {lasts:?}, quiet: {is_quiet}");
        watched.load.pause(is_quiet);
        std::thread::sleep(Duration::from_millis(200 + dice.below(200)));
        watched.begin(stall);
        let stalled = Instant::now();
        if is_quiet {
            (0..=dice.below(3)).for_each(|_| commit(&watched.load.input));
        }
        while stalled.elapsed() < lasts {
            let rest = lasts.saturating_sub(stalled.elapsed());
            std::thread::sleep(rest.min(Duration::from_millis(100 + dice.below(600))));
            let (off, truth) = watched.compare(&what);
            (worst, longest, samples) = (worst.max(off), longest.max(truth), samples + 1);
        }
        watched.end(stall);
        watched.load.pause(false);
        let ended = Instant::now();
        loop {
            let (off, truth) = watched.compare(&what);
            (worst, samples) = (worst.max(off), samples + 1);
            if truth < TOLERANCE_S {
                break;
            }
            assert!(ended.elapsed() < PATIENCE, "{what}: it does not go on");
        }
        if dice.once_in(5) {
            watched.site.cluster().switch_wal();
        }
    }
    println!(
        "{count} stalls in {:.0?}, {samples} comparisons: off by at most {worst:.3} s, RPO up to {longest:.1} s",
        begun.elapsed()
    );
    // Otherwise nothing was compared but zeros.
    assert!(longest > 1.0, "{longest}");
}
