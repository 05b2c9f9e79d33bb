//! A receiver that is killed at each system call of an upload and of its own start.
//! Never helps it: what starts after the kill is the same command, with nothing cleaned by hand.
//! Invariant: after any kill every final name is whole, and the next try succeeds.

use std::path::Path;

use crate::support::oracle::Oracle;
use crate::support::outcome::Output;
use crate::support::site::Site;
use crate::support::soak;
use crate::support::strace::Strace;

/// Those that differ for a segment that is stored as it comes.
const PLAIN_CALLS: [&str; 3] = ["fallocate", "pwrite64", "sync_file_range"];

/// The calls of an upload, from the connection to the acknowledgement. The kill comes before the
/// call, so each is also the end of the step before it.
const UPLOAD_CALLS: [&str; 10] = [
    "accept4",
    "openat",
    "getrandom",
    "pwrite64",
    "fsync",
    "close",
    "newfstatat",
    "renameat2",
    "write",
    "writev",
];

/// No upload of one segment makes more calls of a kind than this on one thread.
const CALLS_MAX: u32 = 40;

/// Offers a segment.
fn offer(site: &Site, oracle: &Oracle, number: u64) -> Output {
    let (name, content) = (site.segment_name(number), site.segment(number, "walmgr"));
    oracle.offer(site, &name, &content)
}

/// A site and what it has to remember.
struct Scene {
    site: Site,
    oracle: Oracle,
    next: u64,
}

impl Scene {
    fn new() -> Scene {
        Scene {
            site: Site::start(),
            oracle: Oracle::new(),
            next: 2,
        }
    }

    fn judge(&self) {
        self.oracle.judge(&self.site.completed_wals()).unwrap();
    }

    /// Starts the receiver as a service manager would, and checks that it has cleaned up and that
    /// what was refused is taken.
    fn recover(&mut self) {
        self.judge();
        self.site.start_receiver();
        assert_eq!(self.site.temporaries(), [""; 0]);
        self.judge();
        for name in self.oracle.unanswered() {
            let number = self.number_of(&name);
            offer(&self.site, &self.oracle, number).succeed();
        }
        self.judge();
    }

    fn number_of(&self, name: &str) -> u64 {
        (2..self.next)
            .find(|number| self.site.segment_name(*number) == name)
            .expect("a segment of this scene")
    }

    /// Kills the receiver at the call of this count; `false` when the upload has fewer.
    fn upload_killed_at(&mut self, call: &str, count: u32) -> bool {
        let strace = Strace::available().unwrap();
        let strace = strace.inject(&format!("{call}:signal=KILL:when={count}"));
        let attached = strace.attach(self.site.receiver.pid());
        let number = self.next;
        self.next += 1;
        let output = offer(&self.site, &self.oracle, number);
        if output.code == Some(0) && self.site.receiver.is_running() {
            return false;
        }
        assert!(
            matches!(output.code, Some(0 | 1)),
            "{call} {count}: {output:?}"
        );
        let status = self.site.receiver.wait();
        assert_eq!(status.code(), None, "{call} {count}: {status}");
        drop(attached);
        self.recover();
        true
    }
}

fn kill_at_each(calls: &[&str], form: &str, at_least_once: &[&str]) {
    skip_unless!(Strace::attachable());
    let mut scene = Scene::new();
    scene.site.standby_set("store_compression", form);
    scene.site.restart_receiver();
    let mut kills = Vec::new();
    for call in calls {
        let reached = (1..CALLS_MAX).take_while(|count| scene.upload_killed_at(call, *count));
        kills.push(format!("{call} {}", reached.count()));
    }
    println!("receiver killed at: {}", kills.join(", "));
    let split = |kill: &str| {
        let (call, count) = kill.rsplit_once(' ').unwrap();
        (call.to_owned(), count.parse::<u32>().unwrap())
    };
    for wanted in at_least_once {
        let (call, least) = split(wanted);
        // A thread that is begun may make some of its own.
        let is_reached = (kills.iter().map(|kill| split(kill)))
            .any(|(other, count)| other == call && count >= least);
        assert!(is_reached, "{wanted} is missing: {kills:?}");
    }
}

#[test]
fn fault_12_to_16_kill_at_any_upload_step_tears_nothing() {
    let at_least_once = ["openat 9", "pwrite64 7", "fsync 2", "renameat2 1"];
    kill_at_each(&UPLOAD_CALLS, "zstd", &at_least_once);
}

#[test]
fn fault_12_to_16_kill_at_the_writes_of_a_plain_upload_tears_nothing() {
    kill_at_each(&PLAIN_CALLS, "none", &["fallocate 1", "pwrite64 6"]);
}

/// The calls of a start that change something, and those that look at it.
const START_CALLS: [&str; 6] = [
    "flock",
    "unlinkat",
    "fsync",
    "/renameat2?",
    "ftruncate",
    "listen",
];
const START_CALLS_IN_FULL: [&str; 4] = ["openat", "pread64", "getdents64", "newfstatat"];

/// Leaves a receiver's folder as a crash at the worst moment would: temporaries, a torn segment that
/// some other tool left, a binding that reached only one of the two directories.
fn wreck(site: &Site) {
    let (completed, partial) = (site.completed_wals(), site.partial_wals());
    let plant = |path: &Path, content: &[u8]| {
        std::fs::write(path, content).unwrap();
        crate::support::place::give_to_server(path);
    };
    for number in 0..4 {
        let name = format!(".in.{}.{number:016x}", site.segment_name(90));
        plant(&completed.join(&name), &[7; 5000]);
        plant(&partial.join(&name), b"");
    }
    plant(&completed.join(site.segment_name(99)), b"");
    let marker = partial.join(".walmgr-archive");
    let text = std::fs::read_to_string(&marker).unwrap();
    let mut unbound: serde_json::Value = serde_json::from_str(&text).unwrap();
    for bound in [
        "system_identifier",
        "wal_segment_size",
        "postgres_major",
        "checksum",
    ] {
        unbound.as_object_mut().unwrap().remove(bound).unwrap();
    }
    let checksum = crc32fast::hash(unbound.to_string().as_bytes());
    unbound["checksum"] = format!("{checksum:08X}").into();
    let text = unbound.to_string();
    plant(&marker, text.as_bytes());
}

fn assert_repaired(site: &mut Site) {
    site.start_receiver();
    assert_eq!(site.temporaries(), [""; 0]);
    assert_eq!(std::fs::read_dir(site.partial_wals()).unwrap().count(), 1);
    let marker = std::fs::read_to_string(site.partial_wals().join(".walmgr-archive")).unwrap();
    assert!(marker.contains("system_identifier"), "{marker}");
    let torn = site.segment_name(99);
    assert!(!site.holds(&torn));
    assert_eq!(site.archived(&format!("{torn}.damaged")), b"");
    std::fs::remove_file(site.completed_wals().join(format!("{torn}.damaged"))).unwrap();
}

#[test]
fn fault_18_receiver_killed_at_every_step_of_its_start_recovers() {
    skip_unless!(Strace::available());
    let mut site = Site::start();
    let oracle = Oracle::new();
    for number in 2..7 {
        offer(&site, &oracle, number).succeed();
    }
    site.receiver.kill9();
    let mut kills = 0;
    let mut calls = START_CALLS.to_vec();
    if soak() {
        calls.extend(START_CALLS_IN_FULL);
    }
    for call in calls {
        wreck(&site);
        let begun = kills;
        // Each start goes on from where the kills before it have left the archive.
        for count in (1..).map(|count| count as u32) {
            let strace = Strace::available().unwrap().unprivileged();
            let strace = strace.inject(&format!("{call}:signal=KILL:when={count}"));
            let command = site.receiver_walmgr();
            match site.receiver.start(&mut strace.wrap(&command)) {
                Err(_) => kills += 1,
                Ok(()) => break,
            }
            assert!(count < 400, "{call}: no end");
        }
        site.receiver.kill9();
        assert!(kills > begun, "{call} was not reached");
        assert_repaired(&mut site);
        oracle.judge(&site.completed_wals()).unwrap();
        site.receiver.kill9();
    }
    println!("receiver killed {kills} times while it started");
    assert!(kills >= if soak() { 50 } else { 10 }, "{kills}");
    site.start_receiver();
    for number in 2..8 {
        offer(&site, &oracle, number).succeed();
    }
}

#[test]
fn fault_19_no_connection_is_accepted_before_recovery_is_complete() {
    skip_unless!(Strace::available());
    let mut site = Site::start();
    for number in 2..9 {
        site.write_segment(number);
        site.archive(&site.segment_name(number)).succeed();
    }
    site.receiver.kill9();
    let temporary = format!(".in.{}.0123456789abcdef", site.segment_name(9));
    std::fs::write(site.completed_wals().join(&temporary), "x").unwrap();
    let strace = Strace::available().unwrap().unprivileged().named();
    let strace = strace.trace("flock,openat,unlinkat,pread64,fsync,listen");
    let command = site.receiver_walmgr();
    (site.receiver.start(&mut strace.wrap(&command))).unwrap();
    let log = strace.log();
    let (completed, partial) = (site.completed_wals(), site.partial_wals());
    let folder = |path: &Path| format!("<{}>", path.display());
    let newest = format!("{}>", site.stored_path(site.segment_name(8)).display());
    let order: [&[&str]; 7] = [
        &["flock(", ".walmgr-lock>"],
        &["unlinkat(", &temporary],
        &["fsync(", &folder(&completed)],
        &["fsync(", &newest],
        &["pread64(", &newest],
        &["fsync(", &folder(&partial)],
        &["listen("],
    ];
    // Each behind the one before it; what is done beside the listening may repeat some.
    let mut listening = 0;
    for words in order {
        let place = log[listening..]
            .iter()
            .position(|line| words.iter().all(|word| line.contains(word)));
        let place = place.unwrap_or_else(|| panic!("no {words:?}:\n{}", log.join("\n")));
        listening += place;
    }
    for number in 5..9 {
        let path = format!("{}>", site.stored_path(site.segment_name(number)).display());
        let read = |line: &String| line.contains("pread64(") && line.contains(&path);
        assert!(log[..listening].iter().any(read), "{path} was not read");
    }
}

#[test]
fn fault_20_what_a_killed_receiver_left_locks_nobody_out() {
    let mut site = Site::start();
    let lock = site.completed_wals().join(".walmgr-lock");
    let pidfile = site.standby_ini().with_extension("pid");
    // Nobody; somebody else who is alive; nonsense.
    let alive = format!("{}\n", std::process::id());
    for text in [
        None,
        Some(alive.as_str()),
        Some("1\n"),
        Some("no number\n"),
        Some(""),
    ] {
        site.receiver.kill9();
        assert!(lock.exists() && pidfile.exists());
        if let Some(text) = text {
            std::fs::write(&lock, text).unwrap();
            std::fs::write(&pidfile, text).unwrap();
        }
        site.start_receiver();
        let pid = format!("{}\n", site.receiver.pid());
        assert_eq!(std::fs::read_to_string(&lock).unwrap(), pid);
        site.write_segment(2);
        site.archive(&site.segment_name(2)).succeed();
    }
}
