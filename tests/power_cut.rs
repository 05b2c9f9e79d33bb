//! Power cuts below the real receiver, on ext4 and XFS, at each step of an upload and at random.
//! Never trusts what the receiver says about itself: an oracle on another disk judges.
//! Invariant: each kind of cut also runs right after a sync of an unrelated file, which commits the
//! journal and so exposes names that were made durable before their content.

mod choosing;
mod packing;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;

use crate::support::loopfs::{FileSystem, LoopFs};
use crate::support::oracle::Oracle;
use crate::support::outcome::Output;
use crate::support::site::Site;
use crate::support::strace::{Strace, is_held};
use crate::support::{soak, wait_for};

/// What comes right before the cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Nothing,
    UnrelatedSync,
}

const EACH: [Before; 2] = [Before::Nothing, Before::UnrelatedSync];

/// More files than this are removed between two cuts.
const FILES_KEPT_MAX: usize = 60;

/// Longer than any step of a test; a call that waits so long is ended by the kill.
const HELD: &str = "delay_enter=60s";

/// Segments, and every fourth time a small file, whose content nothing writes back early.
fn is_small(number: u64) -> bool {
    number.is_multiple_of(4)
}

fn name_of(site: &Site, number: u64) -> String {
    match is_small(number) {
        true => format!("{number:08X}.history"),
        false => site.segment_name(number),
    }
}

fn content_of(site: &Site, number: u64) -> Vec<u8> {
    match is_small(number) {
        true => format!("1\t0/3000000\tpower cut {number}\n").into_bytes(),
        false => site.segment(number, "walmgr"),
    }
}

fn offer(site: &Site, oracle: &Oracle, number: u64) -> Output {
    let (name, content) = (name_of(site, number), content_of(site, number));
    oracle.offer(site, &name, &content)
}

/// A standby whose archive lies on a disk of its own; the receiver goes before the disk does.
struct Standby {
    site: Site,
    disk: LoopFs,
    oracle: Oracle,
    next: AtomicU64,
    cuts: u32,
    acknowledged: usize,
}

impl Standby {
    fn on(kind: FileSystem) -> Result<Standby, String> {
        let disk = LoopFs::create(kind, 600)?;
        let site = Site::builder()
            .archive(&disk.path().join("archive"))
            .build();
        disk.sync_unrelated_file();
        Ok(Standby {
            site,
            disk,
            oracle: Oracle::new(),
            next: AtomicU64::new(2),
            cuts: 0,
            acknowledged: 0,
        })
    }

    fn next(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn judge(&self) -> Result<(), String> {
        self.oracle.judge(&self.site.completed_wals())
    }

    /// The power goes, and with it the receiver; what the disk holds is mounted again.
    fn cut(&mut self, before: Before) {
        if before == Before::UnrelatedSync {
            self.disk.sync_unrelated_file();
        }
        self.disk.power_cut();
        self.kill();
        self.cuts += 1;
        self.disk.remount();
    }

    fn kill(&mut self) {
        if self.site.receiver.is_running() {
            self.site.receiver.kill9();
        } else {
            // The disk went before it, so it may have left by itself.
            self.site.receiver.wait();
        }
    }

    /// What PostgreSQL would find is right at once, and after the receiver's own recovery; then
    /// everything that was refused is taken.
    fn recover(&mut self) -> Result<(), String> {
        self.judge()
            .map_err(|wrong| format!("before recovery: {wrong}"))?;
        self.site.start_receiver();
        let left = self.site.temporaries();
        assert!(left.is_empty(), "{left:?}");
        self.judge()
            .map_err(|wrong| format!("after recovery: {wrong}"))?;
        for number in self.unanswered() {
            offer(&self.site, &self.oracle, number).succeed();
        }
        self.judge()?;
        if self.oracle.count() > FILES_KEPT_MAX {
            self.acknowledged += self.oracle.count();
            let sources = self.site.data().join("pg_wal");
            self.oracle.forget(&[&self.site.completed_wals(), &sources]);
            // Or the next cut would bring the names back.
            self.disk.sync_unrelated_file();
        }
        Ok(())
    }

    fn unanswered(&self) -> Vec<u64> {
        let names = self.oracle.unanswered();
        if names.is_empty() {
            return Vec::new();
        }
        let all = 2..self.next.load(Ordering::Relaxed);
        all.filter(|number| names.contains(&name_of(&self.site, *number)))
            .collect()
    }

    /// Cuts while the upload waits before the call of this count; `false` when it has fewer.
    fn cut_at(&mut self, call: &str, count: u32, before: Before) -> bool {
        let strace = Strace::available().unwrap();
        let strace = strace.inject(&format!("{call}:{HELD}:when={count}"));
        let pid = self.site.receiver.pid();
        let attached = strace.attach(pid);
        let number = self.next();
        let mut reached = false;
        std::thread::scope(|scope| {
            let (site, oracle) = (&self.site, &self.oracle);
            let pushing = scope.spawn(move || offer(site, oracle, number));
            // Held for a moment only is no harm: then the cut comes a little earlier.
            wait_for("the call", Duration::from_secs(20), || {
                reached = (0..3).all(|_| {
                    sleep(Duration::from_millis(4));
                    is_held(pid)
                });
                (reached || pushing.is_finished()).then_some(())
            });
            if before == Before::UnrelatedSync {
                self.disk.sync_unrelated_file();
            }
            self.disk.power_cut();
            site.receiver.signal(Signal::KILL);
            attached.kill();
        });
        self.cut_is_over();
        reached
    }

    /// Cuts after this long, while uploads go on side by side.
    fn cut_after(&mut self, moment: Duration, before: Before) {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        offer(&self.site, &self.oracle, self.next());
                    }
                });
            }
            sleep(moment);
            if before == Before::UnrelatedSync {
                // Nothing may happen between the sync and the cut.
                self.site.receiver.signal(Signal::STOP);
                self.disk.sync_unrelated_file();
            }
            over.store(true, Ordering::Relaxed);
            self.disk.power_cut();
            self.site.receiver.signal(Signal::KILL);
        });
        self.cut_is_over();
    }

    fn cut_is_over(&mut self) {
        self.site.receiver.wait();
        self.cuts += 1;
        self.disk.remount();
    }

    fn report(&self, what: &str, kind: FileSystem) {
        println!(
            "{kind:?}, {what}: {} power cuts, {} files acknowledged, none lost or torn",
            self.cuts,
            self.acknowledged + self.oracle.count()
        );
    }
}

/// The calls of an upload that change the disk or tell the client.
const CALLS: [&str; 8] = [
    "openat",
    "fallocate",
    "pwrite64",
    "sync_file_range",
    "fsync",
    "close",
    "renameat2",
    "writev",
];

/// Those that only a segment makes which is stored as it comes: how long a packed one gets nobody knows before.
const PLAIN_CALLS: [&str; 2] = ["fallocate", "sync_file_range"];

fn at_each_step(kind: FileSystem) {
    skip_unless!(Strace::attachable());
    let mut standby = skip_unless!(Standby::on(kind));
    for call in CALLS {
        let form = match PLAIN_CALLS.contains(&call) {
            true => "none",
            false => "zstd",
        };
        standby.site.standby_set("store_compression", form);
        standby.site.restart_receiver();
        for count in 1..12 {
            let reached = EACH.map(|before| {
                // A small file makes fewer calls than a segment.
                while is_small(standby.next.load(Ordering::Relaxed)) {
                    offer(&standby.site, &standby.oracle, standby.next()).succeed();
                }
                let reached = standby.cut_at(call, count, before);
                if let Err(wrong) = standby.recover() {
                    panic!("{kind:?}, before {call} {count}, {before:?}: {wrong}");
                }
                reached
            });
            if reached == [false; 2] {
                assert!(count > 1, "{call} was not reached");
                break;
            }
        }
    }
    standby.report("at each step", kind);
}

#[test]
fn fault_13_to_17_power_cut_loses_nothing_acknowledged_on_ext4() {
    at_each_step(FileSystem::Ext4);
}

#[test]
fn fault_13_to_17_power_cut_loses_nothing_acknowledged_on_xfs() {
    at_each_step(FileSystem::Xfs);
}

/// Enough chance for a moment, and printed.
struct Chance(u64);

impl Chance {
    fn new() -> Chance {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let seed = u64::from(now.subsec_nanos()) | 1;
        println!("seed {seed}");
        Chance(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn at_random(kind: FileSystem) {
    let mut standby = skip_unless!(Standby::on(kind));
    let mut chance = Chance::new();
    let cuts_of_each = if soak() { 100 } else { 6 };
    for _ in 0..cuts_of_each {
        for before in EACH {
            let moment = Duration::from_micros(1_000 + chance.below(150_000));
            standby.cut_after(moment, before);
            if let Err(wrong) = standby.recover() {
                panic!("{kind:?}, after {moment:?}, {before:?}: {wrong}");
            }
        }
    }
    standby.report("at random", kind);
}

#[test]
fn fault_17_a_power_cut_at_any_moment_loses_nothing_acknowledged_on_ext4() {
    at_random(FileSystem::Ext4);
}

#[test]
fn fault_17_a_power_cut_at_any_moment_loses_nothing_acknowledged_on_xfs() {
    at_random(FileSystem::Xfs);
}

#[test]
fn fault_18_a_power_cut_at_any_step_of_a_start_loses_nothing_acknowledged() {
    skip_unless!(Strace::available());
    for kind in [FileSystem::Ext4, FileSystem::Xfs] {
        let mut standby = match Standby::on(kind) {
            Ok(standby) => standby,
            Err(reason) => skip!("{reason}"),
        };
        for _ in 0..3 {
            offer(&standby.site, &standby.oracle, standby.next()).succeed();
        }
        for call in ["unlinkat", "fsync", "listen"] {
            for count in 1..8 {
                let begun = EACH.map(|before| {
                    standby.kill();
                    cut_while_starting(&mut standby, call, count, before)
                });
                if begun == [false; 2] {
                    break;
                }
            }
        }
        standby.report("while it starts", kind);
    }
}

/// Cuts while the start waits before the call of this count; `false` when it has fewer.
fn cut_while_starting(standby: &mut Standby, call: &str, count: u32, before: Before) -> bool {
    let temporary = format!(".in.{}.0123456789abcdef", standby.site.segment_name(9));
    std::fs::write(standby.site.completed_wals().join(temporary), "x").unwrap();
    let strace = Strace::available().unwrap().unprivileged();
    let strace = strace.inject(&format!("{call}:{HELD}:when={count}"));
    let command = standby.site.receiver_walmgr();
    standby.site.receiver.spawn(&mut strace.wrap(&command));
    let log_before = standby.site.receiver.log().len();
    let reached = wait_for("the call", Duration::from_secs(20), || {
        let log = standby.site.receiver.log();
        let said = log.get(log_before..).unwrap_or_default();
        let pid = standby.site.receiver.traced_pid()?;
        let held = (0..3).all(|_| {
            sleep(Duration::from_millis(4));
            is_held(pid)
        });
        (held || said.contains("listens on")).then_some(held)
    });
    standby.cut(before);
    if let Err(wrong) = standby.recover() {
        panic!("start cut before {call} {count}, {before:?}: {wrong}");
    }
    reached
}

/// The proof that these tests would notice: one kind of sync is swallowed on its way to the kernel,
/// and the same cuts must then lose or tear something that was acknowledged.
fn control(kind: FileSystem, swallowed: &str, only_folder: bool, before: Before) {
    skip_unless!(Strace::attachable());
    let mut standby = skip_unless!(Standby::on(kind));
    for _ in 0..12 {
        let strace = Strace::available().unwrap().inject(swallowed);
        let strace = match only_folder {
            true => strace.only_on(&standby.site.completed_wals()),
            false => strace,
        };
        let attached = strace.attach(standby.site.receiver.pid());
        for _ in 0..4 {
            offer(&standby.site, &standby.oracle, standby.next()).succeed();
        }
        standby.cut(before);
        drop(attached);
        assert!(strace.log().iter().any(|line| line.contains("INJECTED")));
        if let Err(wrong) = standby.judge() {
            let cuts = standby.cuts;
            println!("{kind:?} without {swallowed}: noticed at cut {cuts}: {wrong}");
            return;
        }
        standby.recover().unwrap();
    }
    panic!("{kind:?}: nobody notices that {swallowed} is missing");
}

/// On the thread of an upload every odd sync is the file's, every even one the directory's.
const FILE_SYNCS: &str = "fsync:retval=0:when=1+2";
const FOLDER_SYNCS: &str = "fsync:retval=0";

#[test]
fn control_without_file_sync_power_cuts_tear_acknowledged_files() {
    control(FileSystem::Ext4, FILE_SYNCS, false, Before::UnrelatedSync);
    control(FileSystem::Xfs, FILE_SYNCS, false, Before::UnrelatedSync);
}

#[test]
fn control_without_directory_sync_power_cuts_lose_acknowledged_files() {
    control(FileSystem::Ext4, FOLDER_SYNCS, true, Before::Nothing);
    control(FileSystem::Xfs, FOLDER_SYNCS, true, Before::Nothing);
}
