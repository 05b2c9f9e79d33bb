//! Power cuts below segments that get packed: when shipped records are sealed, and while `compress` converts.
//! Never goes by what the programs say but by their exit codes. Invariant tested: whenever the power goes, each
//! acknowledged segment and record is there in one form at least, as it was.

use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use rustix::process::Signal;
use walmgr_protocol::names::Lsn;

use super::{Before, Chance, EACH, Standby, offer};
use crate::support::cluster::Cluster;
use crate::support::loopfs::{FileSystem, LoopFs};
use crate::support::site::Site;
use crate::support::{rounds, stored};

/// Cuts of each kind on each file system: with two of each, 300 of a campaign, or 16.
fn cuts_of_each() -> u64 {
    rounds(4, 75)
}

/// How many plain segments lie there when `compress` begins.
const PLAIN_SEGMENTS: u64 = 6;

fn leftovers(site: &Site) -> Vec<String> {
    let entries = std::fs::read_dir(site.completed_wals()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| {
            [".in.", ".packing.", ".retired."]
                .iter()
                .any(|it| name.starts_with(it))
        })
        .collect()
}

/// Cuts after this long, while `compress` runs and another file is archived.
fn cut_beside_compress(standby: &mut Standby, moment: Duration, before: Before) {
    std::thread::scope(|scope| {
        let (site, oracle) = (&standby.site, &standby.oracle);
        let mut compress = site.standby_walmgr(&["compress"]);
        compress.stdout(Stdio::null()).stderr(Stdio::null());
        let mut compress = compress.spawn().unwrap();
        let number = standby.next();
        scope.spawn(move || offer(site, oracle, number));
        sleep(moment);
        if before == Before::UnrelatedSync {
            standby.site.receiver.signal(Signal::STOP);
            let pid = rustix::process::Pid::from_child(&compress);
            // It may have ended.
            let _ = rustix::process::kill_process(pid, Signal::STOP);
            standby.disk.sync_unrelated_file();
        }
        standby.disk.power_cut();
        standby.site.receiver.signal(Signal::KILL);
        let _ = compress.kill();
        compress.wait().unwrap();
    });
    standby.cut_is_over();
}

fn conversions(kind: FileSystem) {
    let mut standby = skip_unless!(Standby::on(kind));
    standby.site.standby_set("store_compression", "none");
    standby.site.restart_receiver();
    let mut chance = Chance::new();
    for _ in 0..cuts_of_each() {
        for before in EACH {
            for _ in 0..PLAIN_SEGMENTS {
                offer(&standby.site, &standby.oracle, standby.next()).succeed();
            }
            let moment = Duration::from_micros(1_000 + chance.below(200_000));
            cut_beside_compress(&mut standby, moment, before);
            if let Err(wrong) = standby.recover() {
                panic!("{kind:?}, compress, after {moment:?}, {before:?}: {wrong}");
            }
            assert_eq!(leftovers(&standby.site), [""; 0]);
            standby.site.standby_command(&["compress"]).succeed();
            standby.judge().unwrap();
        }
    }
    standby.report("while compress converts", kind);
}

#[test]
fn fault_220_power_cuts_below_compress_lose_nothing_on_ext4() {
    conversions(FileSystem::Ext4);
}

#[test]
fn fault_220_power_cuts_below_compress_lose_nothing_on_xfs() {
    conversions(FileSystem::Xfs);
}

/// A real master whose archiver does nothing by itself, and a standby on a disk of its own.
struct Shipped {
    site: Site,
    disk: LoopFs,
    /// What was acknowledged whole.
    stored: Vec<String>,
    cuts: u32,
}

impl Shipped {
    fn on(kind: FileSystem) -> Result<Shipped, String> {
        let disk = LoopFs::create(kind, 900)?;
        let cluster = Cluster::builder()
            .wal_segment_size_mb(1)
            .conf("archive_mode", "on")
            .conf("archive_command", "/bin/false")
            .conf("max_wal_size", "4GB")
            .conf("checkpoint_timeout", "1h")
            .start();
        cluster.psql("CREATE TABLE t (n int, pad text)");
        let site = Site::builder()
            .cluster(cluster)
            .archive(&disk.path().join("archive"))
            .master_set("use_xlog_functions", "1")
            .build();
        disk.sync_unrelated_file();
        Ok(Shipped {
            site,
            disk,
            stored: Vec::new(),
            cuts: 0,
        })
    }

    fn in_pg_wal(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.site.data().join("pg_wal").join(name)).unwrap()
    }

    /// Ends a segment and ships it record by record; its name, and up to where all is acknowledged.
    fn ship(&self) -> (String, Lsn) {
        let rows = "INSERT INTO t SELECT g, md5(random()::text) FROM generate_series(1, 4000) g";
        self.site.cluster().psql(rows);
        let switched = "SELECT pg_walfile_name(pg_switch_wal())";
        let name = self.site.cluster().psql(switched);
        let durable = crate::partial::sync(&self.site);
        (name, durable)
    }

    /// Cuts this long after the archiver has offered the segment, which seals what was shipped of it.
    fn cut_after(&mut self, name: &str, moment: Duration, before: Before) {
        let is_acknowledged = std::thread::scope(|scope| {
            let site = &self.site;
            let archiving = scope.spawn(move || site.archive(name).code == Some(0));
            sleep(moment);
            if before == Before::UnrelatedSync {
                self.site.receiver.signal(Signal::STOP);
                self.disk.sync_unrelated_file();
            }
            self.disk.power_cut();
            self.site.receiver.signal(Signal::KILL);
            archiving.join().unwrap()
        });
        self.site.receiver.wait();
        self.cuts += 1;
        self.disk.remount();
        if is_acknowledged {
            self.stored.push(name.to_owned());
        }
    }

    /// What is there of a segment that was shipped up to here: whole, or at least so far.
    fn judge(&self, name: &str, durable: Lsn) -> Result<(), String> {
        for stored in self.stored.iter().rev().take(8) {
            let path = self.site.stored_path(stored);
            let found = stored::read(&path).map_err(|error| format!("{stored}: {error}"))?;
            if found != self.in_pg_wal(stored) {
                return Err(format!("{stored} was acknowledged and is another file"));
            }
        }
        let ours = self.in_pg_wal(name);
        if self.site.holds(name) {
            let found = stored::read(&self.site.stored_path(name));
            return match found.is_ok_and(|found| found == ours) {
                true => Ok(()),
                false => Err(format!("{name} has its name and is torn")),
            };
        }
        let segment: walmgr_protocol::names::SegmentName = name.parse().unwrap();
        let size = self.site.facts().cluster.segment_size;
        let start = segment.start(size).unwrap();
        let shipped = durable.0.saturating_sub(start.0).min(size.bytes());
        let shipped = usize::try_from(shipped).unwrap();
        let held = std::fs::read(self.site.partial_wals().join(name));
        let held = held.map_err(|error| format!("{name} was shipped and is lost: {error}"))?;
        match held.get(..shipped) == ours.get(..shipped) {
            true => Ok(()),
            false => Err(format!("{name} is not what was shipped of it")),
        }
    }
}

fn seals(kind: FileSystem) {
    skip_unless!(Cluster::available(15));
    let mut shipped = skip_unless!(Shipped::on(kind));
    let mut chance = Chance::new();
    for _ in 0..cuts_of_each() {
        for before in EACH {
            let (name, durable) = shipped.ship();
            let moment = Duration::from_micros(5_000 + chance.below(90_000));
            shipped.cut_after(&name, moment, before);
            let told = |wrong: String| panic!("{kind:?}, after {moment:?}, {before:?}: {wrong}");
            (shipped.judge(&name, durable)).unwrap_or_else(told);
            shipped.site.start_receiver();
            (shipped.judge(&name, durable)).unwrap_or_else(told);
            shipped.site.archive(&name).succeed();
            if shipped.stored.last() != Some(&name) {
                shipped.stored.push(name.clone());
            }
            (shipped.judge(&name, durable)).unwrap_or_else(told);
            let stored = shipped.site.stored_path(&name);
            assert!(stored.extension().is_some_and(|end| end == "zst"));
            assert_eq!(leftovers(&shipped.site), [""; 0]);
        }
    }
    for name in &shipped.stored {
        assert!(
            shipped.site.archived(name) == shipped.in_pg_wal(name),
            "{name}"
        );
    }
    println!(
        "{kind:?}, while shipped records are sealed: {} power cuts, {} segments acknowledged, none lost or torn",
        shipped.cuts,
        shipped.stored.len()
    );
}

#[test]
fn fault_220_power_cuts_below_packed_seals_lose_nothing_on_ext4() {
    seals(FileSystem::Ext4);
}

#[test]
fn fault_220_power_cuts_below_packed_seals_lose_nothing_on_xfs() {
    seals(FileSystem::Xfs);
}
