//! Three real clusters on one receiver, under load: one's disk is full, one's loses what is written, one's peer floods.
//! Never puts a fault on the cluster that is measured. Invariant tested: that one archives and ships without one
//! failure and about as fast as without the others' faults, and each of the others goes on by itself afterwards.
//!
//! The disk that loses what was written is a file system in a file of another one: `chattr +i` on that file refuses the
//! writes that a sync brings, so `fsync` says EIO and the page cache has what the disk never got.
//!
//! `WALMGR_SOAK=1` gives each part two minutes and asserts the figures; the ordinary run has a few seconds for each,
//! prints them, and asserts that nothing fails and everything goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crate::disk::Ballast;
use crate::partial::daemon::Syncdaemon;
use crate::support::dice::Dice;
use crate::support::hostile::{Key, hello_of};
use crate::support::loopfs::{FileSystem, LoopFs};
use crate::support::peer::{Peer, dial_from};
use crate::support::{Cluster, Host, Site, run, soak, wait_for};

/// How soon a cluster goes on once its fault is over; ten seconds are the claim, a minute is patience.
const GOES_ON_WITHIN: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(120);

/// How much slower the healthy cluster may get.
const SLOWER_MAX: f64 = 1.3;

fn part() -> Duration {
    Duration::from_secs(if soak() { 120 } else { 4 })
}

/// `pgbench`, for as long as this lives.
struct Bench(Child);

impl Bench {
    fn start(cluster: &Cluster) -> Bench {
        // Some transactions, and five segments a second; one in a long run, or the disks would be large.
        let others = if soak() { 39 } else { 7 };
        let switch = cluster.home().join("switch.sql");
        std::fs::write(&switch, "SELECT pg_switch_wal();\n").unwrap();
        let mut pgbench = cluster.command("pgbench");
        pgbench.args(["-n", "-c", "2", "-R", "40", "-T", "3600"]);
        pgbench.args(["-b", &format!("simple-update@{others}")]);
        pgbench.args(["-f", &format!("{}@1", switch.display())]);
        let quiet = pgbench.stdout(Stdio::null()).stderr(Stdio::null());
        Bench(quiet.spawn().unwrap())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A master under load that archives nowhere yet, so that the processors have the same to do in each part.
struct Unhosted {
    // Dropped before what it works with.
    bench: Bench,
    cluster: Cluster,
}

impl Unhosted {
    fn start(major: u8) -> Unhosted {
        let cluster = Cluster::builder()
            .major(major)
            .conf("archive_mode", "on")
            .conf("archive_command", "/bin/true")
            .start();
        cluster.pgbench(&["-i", "-q", "-s", "1"]);
        Unhosted {
            bench: Bench::start(&cluster),
            cluster,
        }
    }

    /// Sets it up at the host's receiver.
    fn join(self, host: &Host, archive: Option<&LoopFs>) -> Loaded {
        let name = format!("pg{}", self.cluster.major());
        let mut builder = Site::builder()
            .cluster(self.cluster)
            .master_set("loop_delay", "0.2");
        if let Some(disk) = archive {
            builder = builder.archive(&disk.path().join("archive"));
        }
        let site = host.add(&name, builder);
        site.master_command(&["setup"]).succeed();
        let syncdaemon = Syncdaemon::start(&site);
        syncdaemon.wait_for_log("is shipped to");
        Loaded {
            _bench: self.bench,
            syncdaemon,
            site,
        }
    }
}

/// A cluster under load, with its syncdaemon.
struct Loaded {
    // Dropped before what they work with.
    _bench: Bench,
    syncdaemon: Syncdaemon,
    site: Site,
}

impl Loaded {
    fn failures(&self) -> u64 {
        let count = "SELECT failed_count FROM pg_stat_archiver";
        self.site.cluster().psql(count).parse().unwrap()
    }

    /// How well it archives and ships in this time.
    fn pace_for(&self, time: Duration) -> Pace {
        let status = self.site.data().join("pg_wal/archive_status");
        let mut waiting: BTreeMap<String, Option<Instant>> = BTreeMap::new();
        let (mut took, mut ages, begun) = (Vec::new(), Vec::new(), Instant::now());
        let mut newest = self.last_shipped();
        while begun.elapsed() < time {
            let names = std::fs::read_dir(&status).unwrap().flatten();
            let names = names.filter_map(|entry| entry.file_name().into_string().ok());
            let ready: BTreeSet<String> = names
                .filter_map(|name| Some(name.strip_suffix(".ready")?.to_owned()))
                .collect();
            let now = Instant::now();
            // When those became ready that are so at first, nobody has seen.
            let since =
                (!waiting.is_empty() || now - begun > Duration::from_millis(20)).then_some(now);
            for name in &ready {
                waiting.entry(name.clone()).or_insert(since);
            }
            let done: Vec<String> = waiting
                .keys()
                .filter(|name| !ready.contains(*name))
                .cloned()
                .collect();
            for name in done {
                let since = waiting.remove(&name).unwrap();
                took.extend(since.map(|since| now - since));
            }
            newest = newest.max(self.last_shipped());
            // The clock of the file system is a tick behind.
            ages.push(newest.elapsed().unwrap_or_default());
            std::thread::sleep(Duration::from_millis(1));
        }
        Pace {
            archived: p95(took),
            shipped: p95(ages),
        }
    }

    /// When the standby last wrote records of a segment in progress.
    fn last_shipped(&self) -> SystemTime {
        let files = std::fs::read_dir(self.site.partial_wals()).unwrap();
        // A segment that is finished leaves the folder.
        let written = files.filter_map(|file| file.ok()?.metadata().ok()?.modified().ok());
        written.max().unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Waits until something more is archived than there was, and records are shipped.
    fn goes_on(&self, what: &str) {
        let before = self.site.archived_names().len();
        let (begun, since) = (Instant::now(), SystemTime::now());
        wait_for(what, PATIENCE, || {
            let is_archived = self.site.archived_names().len() > before;
            (is_archived && self.last_shipped() > since).then_some(())
        });
        let took = begun.elapsed();
        println!("{what}: within {took:.1?}");
        assert!(!soak() || took < GOES_ON_WITHIN, "{what}: {took:?}");
    }
}

/// How fast a cluster's WAL comes to the standby: of 100 of each, 95 are no slower.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// From when PostgreSQL has a segment ready until it is told that it is stored.
    archived: Duration,
    /// The age of the newest records on the standby, at any moment.
    shipped: Duration,
}

impl Pace {
    /// How many times as long as that it takes: a segment, and the newest records.
    fn slower_than(self, alone: Pace) -> [f64; 2] {
        [
            self.archived.as_secs_f64() / alone.archived.as_secs_f64(),
            self.shipped.as_secs_f64() / alone.shipped.as_secs_f64(),
        ]
    }
}

/// The value below which 95 of 100 lie.
fn p95(mut took: Vec<Duration>) -> Duration {
    assert!(!took.is_empty(), "no segment was finished");
    took.sort();
    took[(took.len() * 95).div_ceil(100) - 1]
}

/// A file system, and the file that it is in on another one.
struct LosingDisk {
    inner: LoopFs,
    image: PathBuf,
    _outer: LoopFs,
}

impl LosingDisk {
    fn create(size_mb: u64) -> Result<LosingDisk, String> {
        let outer = LoopFs::create(FileSystem::Ext4, size_mb * 3 / 2)?;
        // A journal that cannot be written would end the file system for good.
        let kind = FileSystem::Ext4WithoutJournal;
        Ok(LosingDisk {
            inner: LoopFs::create_in(kind, size_mb, outer.path())?,
            image: outer.path().join("image"),
            _outer: outer,
        })
    }

    /// Whether it loses what is written, of which a sync tells: `chattr +i` refuses writes to a file that is open.
    fn set_losing(&self, is_losing: bool) {
        let mut chattr = Command::new("chattr");
        chattr.arg(if is_losing { "+i" } else { "-i" });
        run(chattr.arg(&self.image)).unwrap();
    }
}

/// Whoever has a cluster's key, and strangers, at their worst; until told to end.
fn flood(site: &Site, ended: &AtomicBool) {
    let key = Key::stolen(site);
    let hello = hello_of(site);
    std::thread::scope(|scope| {
        // A hundred that are let in as far as there is room, say nothing, and come again.
        for crowd in 0..4 {
            let (key, hello) = (&key, &hello);
            scope.spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    let come = (0..25).filter_map(|_| {
                        let line = key.line_from(10 + crowd, site.address()).ok()?;
                        Peer::introduce(line, hello).ok()?.ok()
                    });
                    let crowd: Vec<Peer> = come.collect();
                    std::thread::sleep(Duration::from_millis(500));
                    drop(crowd);
                }
            });
        }
        scope.spawn(|| {
            let mut dice = Dice::thrown("garbage");
            while !ended.load(Ordering::Relaxed) {
                if let Ok(mut stream) = dial_from(50, site.address()) {
                    let len = dice.index(4096);
                    // It is hung up on.
                    let _ = stream.write_all(&dice.bytes(len));
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                let half_open: Vec<TcpStream> = (0..100)
                    .filter_map(|_| dial_from(51, site.address()).ok())
                    .collect();
                std::thread::sleep(Duration::from_secs(1));
                drop(half_open);
            }
        });
    });
}

/// Ends what runs beside a measurement, however that ends.
struct EndAfter<'a>(&'a AtomicBool);

impl Drop for EndAfter<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn fault_149_a_healthy_cluster_notices_no_fault_of_the_others() {
    for major in crate::support::USUAL_AND_17 {
        skip_unless!(Cluster::available(major));
    }
    let size_mb = if soak() { 1536 } else { 256 };
    let small = skip_unless!(LoopFs::create(FileSystem::Ext4, size_mb));
    let lossy = skip_unless!(LosingDisk::create(size_mb));
    let mut host = Host::builder().build();
    host.start();
    let [full, loses, healthy] = crate::support::USUAL_AND_17.map(Unhosted::start);
    let healthy = healthy.join(&host, None);
    let alone = healthy.pace_for(part());
    let full = full.join(&host, Some(&small));
    let loses = loses.join(&host, Some(&lossy.inner));
    let beside = healthy.pace_for(part());
    let before = [full.failures(), loses.failures()];

    lossy.inner.sync_unrelated_file();
    lossy.set_losing(true);
    let ballast = Ballast::fill(small.path());
    let disks = healthy.pace_for(part());
    wait_for("the faults to be felt", PATIENCE, || {
        let felt = full.failures() > before[0] && loses.failures() > before[1];
        felt.then_some(())
    });
    let log = host.receiver.log();
    assert!(log.contains("Input/output error"), "{log}");

    // All at once; the key that floods is that of the cluster whose disk is full.
    let ended = AtomicBool::new(false);
    let everything = std::thread::scope(|scope| {
        let _end = EndAfter(&ended);
        scope.spawn(|| flood(&full.site, &ended));
        healthy.pace_for(part())
    });
    lossy.set_losing(false);
    loses.goes_on("the disk that lost what was written");
    let log = host.receiver.log();
    assert!(log.contains("the archive is open again"), "{log}");
    ballast.remove();
    full.goes_on("the full file system whose key flooded");

    println!("p95 of a segment, and of the newest records' age, alone on the receiver {alone:.1?}");
    let slower = [
        ("two healthy clusters", beside),
        ("two broken disks", disks),
        ("two broken disks and a flood", everything),
    ];
    let slower = slower.map(|(what, pace)| {
        let times = pace.slower_than(alone);
        println!("beside {what}: {times:.2?} times that");
        times
    });
    assert_eq!(healthy.failures(), 0);
    let warned = healthy.syncdaemon.log();
    assert!(!warned.contains("warning"), "{warned}");
    assert!(host.receiver.is_running());
    if soak() {
        let worst = slower.into_iter().flatten().fold(0.0, f64::max);
        assert!(worst <= SLOWER_MAX, "{slower:?}");
    }
    nothing_is_lost(&[&full, &loses, &healthy]);
}

/// Whatever PostgreSQL was told is stored is there.
fn nothing_is_lost(all: &[&Loaded]) {
    for loaded in all {
        let status = loaded.site.data().join("pg_wal/archive_status");
        let names = std::fs::read_dir(status).unwrap().flatten();
        for name in names.filter_map(|entry| entry.file_name().into_string().ok()) {
            let Some(name) = name.strip_suffix(".done") else {
                continue;
            };
            assert!(loaded.site.holds(name), "{name}");
        }
    }
}
