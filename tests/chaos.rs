//! Chaos: a master under load, its receiver, its syncdaemon and a standby that replays, while each of
//! them is killed or stopped, the link is cut, and the disk fills; then the master is gone for good.
//! Never counts as acknowledged what the receiver did not say is durable. Invariant tested: the standby
//! that is booted in the end has every row that was, and so has each set that is listed.
//!
//! `WALMGR_SOAK=1` makes ten minutes of it on each version instead of some seconds.

mod aftermath;

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use walmgr_protocol::names::Lsn;

use crate::partial::daemon::Syncdaemon;
use crate::support::dice::Dice;
use crate::support::loopfs::{FileSystem, LoopFs};
use crate::support::place::TempDir;
use crate::support::proxy::{Direction, Fault};
use crate::support::{Cluster, Output, Site, report_skip, run, soak, wait_for};

/// How long everything may take to be well again when nothing more happens.
const PATIENCE: Duration = Duration::from_secs(90);

#[test]
fn chaos_on_15_costs_no_acknowledged_row() {
    chaos(15);
}

#[test]
fn chaos_on_17_costs_no_acknowledged_row() {
    chaos(17);
}

fn chaos(major: u8) {
    skip_unless!(Cluster::available(major));
    let mut dice = Dice::thrown("chaos");
    let disk = LoopFs::create(FileSystem::Ext4, 700);
    if let Err(reason) = &disk {
        report_skip(&format!("{reason}; the disk does not fill"));
    }
    let seconds = if soak() { 600 } else { 15 };
    let mut world = World::new(major, disk.ok());
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(seconds) {
        let event = *dice.choose(&EVENTS);
        let length = Duration::from_millis(200 + dice.below(1_300));
        world.happens(event, length);
        world.note_acknowledged(Duration::from_millis(1_500));
    }
    println!("PostgreSQL {major}: {:?}", world.told());
    world.end(dice.once_in(2));
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Event {
    KillReceiver,
    StopReceiver,
    EndReceiver,
    KillSyncdaemon,
    StopSyncdaemon,
    KillMaster,
    KillStandby,
    CutLink,
    StallLink,
    LoseAcknowledgements,
    FillDisk,
    Backup,
    KillBackup,
    Purge,
    SwitchWal,
    Nothing,
}

const EVENTS: [Event; 16] = [
    Event::KillReceiver,
    Event::StopReceiver,
    Event::EndReceiver,
    Event::KillSyncdaemon,
    Event::StopSyncdaemon,
    Event::KillMaster,
    Event::KillStandby,
    Event::CutLink,
    Event::StallLink,
    Event::LoseAcknowledgements,
    Event::FillDisk,
    Event::Backup,
    Event::KillBackup,
    Event::Purge,
    Event::SwitchWal,
    Event::Nothing,
];

/// A child that ends with the test.
struct Load(Child);

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Everything that can be hurt. Fields go in their order: the load first, the disk last.
struct World {
    load: Option<Load>,
    syncdaemon: Option<Syncdaemon>,
    standby: Cluster,
    site: Site,
    script: PathBuf,
    acknowledged: u64,
    notes: u64,
    backups: u64,
    events: u64,
    _home: TempDir,
    disk: Option<LoopFs>,
}

impl World {
    fn new(major: u8, disk: Option<LoopFs>) -> World {
        let home = TempDir::new();
        let cluster = Cluster::builder()
            .major(major)
            .conf("archive_mode", "on")
            .conf("wal_keep_size", "128MB")
            .start();
        let place = disk.as_ref().map_or(home.path(), LoopFs::path);
        let mut site = Site::builder()
            .cluster(cluster)
            .archive(&place.join("archive"))
            .standby_set("keep_backups", "2")
            .standby_set("keep_minimum_age", "0")
            .master_set("use_xlog_functions", "1")
            .master_set("loop_delay", "0.05")
            .master_set("connect_timeout", "2s")
            .master_set("push_timeout", "5s")
            .proxied()
            .build();
        site.master_command(&["setup"]).succeed();
        site.cluster().psql("CREATE TABLE t (n bigint, pad text)");
        let script = home.write(
            "load.sql",
            "INSERT INTO t VALUES (:client_id, repeat(md5(random()::text), 4));\n",
        );
        site.master_command(&["backup"]).succeed();
        let data = home.join("standby");
        // The receiver is not told: it goes on with the settings that it was started with.
        site.standby_set("slave_data", &data.display().to_string());
        let standby = Cluster::on_directory(major, &data);
        site.standby_command(&["restore", "data.master"]).succeed();
        let mut world = World {
            load: None,
            syncdaemon: None,
            standby,
            site,
            script,
            acknowledged: 0,
            notes: 0,
            backups: 0,
            events: 0,
            _home: home,
            disk,
        };
        world.standby.start();
        world.run();
        world
    }

    fn told(&self) -> (String, String) {
        let (events, notes, backups) = (self.events, self.notes, self.backups);
        (
            format!(
                "{events} events, {notes} times everything was acknowledged, {backups} backups"
            ),
            format!("{} rows", self.acknowledged),
        )
    }

    /// Whatever does not run is started.
    fn run(&mut self) {
        if !self.site.cluster().is_running() {
            self.site.cluster_mut().start();
        }
        if !self.site.receiver.is_running() {
            self.site.start_receiver();
        }
        if !self.standby.is_running() {
            // It may be right to refuse while its archive is not to be reached.
            let _ = self.standby.try_start();
        }
        let has_ended = |load: &mut Load| load.0.try_wait().unwrap().is_some();
        if self.load.as_mut().is_none_or(has_ended) {
            let mut pgbench = self.site.cluster().command("pgbench");
            pgbench.args(["-n", "-c", "2", "-T", "3600", "-R", "300", "-f"]);
            pgbench
                .arg(&self.script)
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            self.load = Some(Load(pgbench.spawn().unwrap()));
        }
        if self.syncdaemon.is_none() {
            self.syncdaemon = Some(Syncdaemon::start(&self.site));
        }
    }

    fn happens(&mut self, event: Event, length: Duration) {
        self.events += 1;
        match event {
            Event::KillReceiver => self.site.receiver.kill9(),
            Event::EndReceiver => drop(self.site.receiver.stop()),
            Event::StopReceiver => {
                let pid = self.site.receiver.pid();
                stopped(pid, length);
            }
            Event::KillSyncdaemon => {
                if let Some(mut daemon) = self.syncdaemon.take() {
                    daemon.signal(Signal::KILL);
                    daemon.wait();
                }
            }
            Event::StopSyncdaemon => {
                if let Some(daemon) = &self.syncdaemon {
                    daemon.signal(Signal::STOP);
                    std::thread::sleep(length);
                    daemon.signal(Signal::CONT);
                }
            }
            Event::KillMaster => self.site.cluster_mut().kill9(),
            Event::KillStandby => self.standby.kill9(),
            Event::CutLink => self.site.proxy().cut_all(),
            Event::StallLink => {
                self.site.proxy().stall();
                std::thread::sleep(length);
                self.site.proxy().resume();
            }
            Event::LoseAcknowledgements => {
                let never = Fault::Blackhole { at_byte: 40_000 };
                self.site.proxy().set_faults([(Direction::ToClient, never)]);
                std::thread::sleep(length);
                self.site.proxy().cut_all();
            }
            Event::FillDisk => self.fill_disk(length),
            Event::Backup => {
                let made = self.site.master_command(&["backup"]);
                self.backups += u64::from(made.code == Some(0));
            }
            Event::KillBackup => {
                let mut backup = self.site.master_walmgr(&["backup"]);
                backup
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null());
                let backup = Load(backup.spawn().unwrap());
                std::thread::sleep(length);
                drop(backup);
            }
            Event::Purge => drop(self.site.standby_command(&["xpurgewals"])),
            Event::SwitchWal => drop(self.site.cluster().try_psql("SELECT pg_switch_wal()")),
            Event::Nothing => std::thread::sleep(length),
        }
        self.site.proxy().set_faults([]);
        self.run();
    }

    fn fill_disk(&self, length: Duration) {
        let Some(disk) = &self.disk else { return };
        let ballast = disk.path().join("ballast");
        let mut dd = Command::new("dd");
        dd.args(["if=/dev/zero", "bs=1M"]);
        // It ends when there is nothing left.
        let _ = run(dd.arg(format!("of={}", ballast.display())));
        std::thread::sleep(length);
        fs::remove_file(ballast).unwrap();
    }

    /// Counts the rows that are committed, and notes them if the standby says in time that it holds
    /// everything up to there.
    fn note_acknowledged(&mut self, limit: Duration) -> bool {
        let master = self.site.cluster();
        let asked = master.try_psql("SELECT count(*) FROM t");
        let Ok(Ok(count)) = asked.map(|answer| answer.parse::<u64>()) else {
            return false;
        };
        let Ok(flushed) = master.try_psql("SELECT pg_current_wal_flush_lsn()") else {
            return false;
        };
        let flushed: Lsn = flushed.parse().unwrap();
        let begun = Instant::now();
        while begun.elapsed() < limit {
            if held(&self.site).is_some_and(|held| held >= flushed) {
                assert!(count >= self.acknowledged, "the master lost rows");
                self.acknowledged = count;
                self.notes += 1;
                return true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    }

    /// Peace: everything is well again, and then the master is gone.
    fn end(mut self, is_receiver_killed: bool) {
        self.is_well_again();
        // The sets that are judged need WAL of before and behind each other, whatever chance brought.
        for _ in 0..2 {
            self.site.master_command(&["backup"]).succeed();
            self.is_well_again();
        }
        self.standby_catches_up();
        self.site.standby_command(&["xpurgewals"]).succeed();
        self.is_well_again();
        self.load = None;
        self.site.cluster_mut().kill9();
        self.syncdaemon = None;
        if is_receiver_killed {
            self.site.receiver.kill9();
        }
        wait_for("the standby", PATIENCE, || {
            self.standby.is_running().then_some(())
        });
        let booted: Output = self.site.standby_command(&["boot"]);
        assert_eq!(
            booted.code,
            Some(0),
            "{}{}\n{}",
            booted.stdout,
            booted.stderr,
            self.words()
        );
        let rows = self.standby.psql("SELECT count(*) FROM t");
        let rows: u64 = rows.parse().unwrap();
        println!(
            "{rows} rows, {} were acknowledged: {}",
            self.acknowledged, booted.stdout
        );
        assert!(rows >= self.acknowledged, "{rows} of {}", self.acknowledged);
        self.judge_what_is_left();
        assert!(!self.site.receiver.log().contains("panicked"));
    }

    /// The standby's server needs less WAL than any set: what a purge keeps is for the sets alone.
    fn standby_catches_up(&self) {
        let redo = "SELECT redo_wal_file FROM pg_control_checkpoint()";
        let master = self.site.cluster();
        master.psql("CHECKPOINT");
        master.switch_wal();
        let reached = master.psql(redo);
        wait_for("the restartpoint", PATIENCE, || {
            self.standby.try_psql("CHECKPOINT").ok()?;
            (self.standby.try_psql(redo).ok()? >= reached).then_some(())
        });
    }

    fn is_well_again(&mut self) {
        self.run();
        let begun = Instant::now();
        while !self.note_acknowledged(Duration::from_secs(5)) {
            assert!(
                begun.elapsed() < PATIENCE,
                "nothing is shipped any more:\n{}",
                self.words()
            );
            self.run();
        }
    }

    fn words(&self) -> String {
        let status = self.site.master_command(&["status"]);
        let log = self.standby.log();
        let tail: Vec<&str> = log.lines().rev().take(15).collect();
        format!(
            "{}\nthe standby, newest first:\n{}",
            status.stdout,
            tail.join("\n")
        )
    }
}

fn stopped(pid: u32, length: Duration) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    std::thread::sleep(length);
    kill_process(pid, Signal::CONT).unwrap();
}

/// Up to where the receiver says that it holds WAL.
fn held(site: &Site) -> Option<Lsn> {
    let status = site.master_command(&["--json", "status"]);
    let parsed: Value = serde_json::from_str(&status.stdout).ok()?;
    parsed["archive"]["held_lsn"].as_str()?.parse().ok()
}
