//! Boots that were killed, or did not wait: the next one ends them.
//! Never helps in between. Invariant: wherever a boot is killed, `boot` typed again opens the database with
//! everything that was acknowledged, says so, and its history is in the archive.

use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::*;
use crate::support::strace::Strace;

/// The calls of a boot that change something. Each one is counted by itself.
const CALLS: [&str; 8] = [
    "/^rename$",
    "/^renameat2$",
    "/^unlink$",
    "/^unlinkat$",
    "fsync",
    "fallocate",
    "pwrite64",
    "write",
];

/// No phase of a boot makes more calls of a kind.
const CALLS_MAX: u32 = 40;

/// A master that died with a record that was only shipped, and its standby.
fn dead_master() -> (Site, Cluster) {
    let mut site = bare_master(15);
    site.master_set("use_xlog_functions", "1");
    let standby = standby_of(&mut site, true);
    site.cluster().psql("CREATE TABLE t (n int)");
    let last = finish(&site);
    wait_until_restored(&standby, &last);
    site.cluster().psql("INSERT INTO t VALUES (1)");
    site.master_command(&["sync"]).succeed();
    (site, standby)
}

fn note(site: &Site) -> PathBuf {
    site.completed_wals().join("BOOT")
}

fn history(site: &Site) -> PathBuf {
    site.completed_wals().join("00000002.history")
}

fn findings(site: &Site) -> Vec<String> {
    let output = site.standby_command(&["status", "--json"]);
    let parsed: Value = serde_json::from_str(&output.stdout).unwrap();
    let codes = parsed["findings"].as_array().unwrap().iter();
    let mut codes: Vec<String> = codes
        .map(|found| found["code"].as_str().unwrap().to_owned())
        .collect();
    codes.retain(|code| code == "boot");
    codes
}

fn wait_until_open(standby: &Cluster) {
    wait_for("the database to open", PATIENCE, || {
        let answer = standby.try_psql("SELECT pg_is_in_recovery()").ok()?;
        (answer == "f").then_some(())
    });
}

/// Types `boot`, which has to succeed, and looks at everything that it promises.
#[track_caller]
fn boot_is_finished(site: &Site, context: &str) {
    let output = site.standby_command(&["boot"]);
    assert_eq!(output.code, Some(0), "{context}: {output:?}");
    let told = "The database is open on timeline 2. It has timeline 1 up to ";
    assert!(output.stdout.starts_with(told), "{context}: {output:?}");
    assert!(history(site).exists(), "{context}");
    assert!(!site.holds("STOP"), "{context}");
    let copies = fs::read_dir(site.partial_wals()).unwrap().flatten();
    let mut names = copies.map(|entry| entry.file_name().into_string().unwrap());
    assert!(!names.any(|name| name.ends_with(".frozen")), "{context}");
    assert_eq!(findings(site), [""; 0], "{context}");
}

#[test]
fn fault_105_boot_without_waiting_is_named_until_the_next_finishes_it() {
    skip_unless!(Cluster::available(15));
    let (mut site, mut standby) = dead_master();
    site.cluster_mut().kill9();
    site.standby_command(&["boot", "--no-wait"]).succeed();
    wait_until_open(&standby);
    assert!(!history(&site).exists());
    // Another process number, and a checkpoint on the new timeline.
    standby.restart();
    assert_eq!(findings(&site), ["boot"]);
    let said = site.standby_command(&["boot", "-n"]).succeed();
    assert!(
        said.starts_with("would report the result of the boot"),
        "{said}"
    );
    boot_is_finished(&site, "behind a restart");
    assert_eq!(standby.psql("TABLE t"), "1");
    boot_is_finished(&site, "twice");
    // Also of one that has ended since.
    fs::remove_file(history(&site)).unwrap();
    standby.stop(StopMode::Fast);
    boot_is_finished(&site, "down");
}

#[test]
fn fault_105_boot_with_leftovers_says_so_and_archives_by_force_only() {
    skip_unless!(Cluster::available(15));
    let (mut site, standby) = dead_master();
    site.cluster_mut().kill9();
    site.standby_command(&["boot", "--no-wait"]).succeed();
    wait_until_open(&standby);
    // As if the server had opened before the shipped record.
    let text = fs::read_to_string(note(&site)).unwrap();
    let mut value: Value = serde_json::from_str(&text).unwrap();
    value.as_object_mut().unwrap().remove("crc32");
    value["acknowledged"] = "F/0".into();
    let crc32 = crc32fast::hash(value.to_string().as_bytes());
    value["crc32"] = crc32.into();
    fs::write(note(&site), format!("{value:#}\n")).unwrap();
    for _ in 0..2 {
        let lacking = site.standby_command(&["boot"]);
        lacking.fail_last(1, "timeline 1 was acknowledged up to F/0");
        assert!(!history(&site).exists());
        assert_eq!(findings(&site), ["boot"]);
    }
    let forced = site.standby_command(&["boot", "--force"]);
    forced.fail_last(1, "timeline 1 was acknowledged up to F/0");
    assert!(history(&site).exists());
    assert_eq!(findings(&site), [""; 0]);
    // One that says nothing leaves the refusal of a server that nobody has booted.
    fs::write(note(&site), "{}").unwrap();
    let refused = site.standby_command(&["boot"]);
    refused.fail_last(1, "is not in recovery: it is in production");
}

/// A `boot` that is killed at this call.
struct Killed {
    strace: Strace,
    tracer: Child,
}

impl Killed {
    fn begin(site: &Site, call: &str, count: u32) -> Killed {
        let strace = Strace::available().unwrap().unprivileged();
        let strace = strace.inject(&format!("{call}:signal=KILL:when={count}"));
        let strace = strace.trace("clock_nanosleep");
        let mut command = strace.wrap(&site.standby_walmgr(&["boot"]));
        let tracer = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let tracer = tracer.unwrap();
        Killed { strace, tracer }
    }

    /// Whether it was killed at its call before it began to wait for the server; then it is killed there.
    fn before_it_waits(mut self) -> bool {
        let waiting = wait_for("a kill, or the wait", PATIENCE, || {
            if self.tracer.try_wait().unwrap().is_some() {
                return Some(None);
            }
            let log = self.strace.log();
            let mut sleeping = log.iter().filter(|line| line.contains("clock_nanosleep"));
            let pid = sleeping.next_back()?.split(' ').next()?.parse().ok()?;
            Some(Pid::from_raw(pid))
        });
        if let Some(pid) = waiting {
            kill_process(pid, Signal::KILL).unwrap();
            self.tracer.wait().unwrap();
        }
        waiting.is_none()
    }

    fn was_killed(mut self) -> bool {
        !self.tracer.wait().unwrap().success()
    }
}

#[test]
fn fault_105_a_boot_that_is_killed_at_any_step_is_finished_by_the_next() {
    skip_unless!(Cluster::available(15));
    skip_unless!(Strace::available());
    let (mut site, standby) = dead_master();
    let hold = site.home().join("hold");
    let script = "while [ -e ${0%/*}/hold ]; do sleep 0.05; done; exec \"$@\"\n";
    shipped::restore_through(&site, &standby, script);
    fs::write(&hold, "").unwrap();
    site.cluster_mut().kill9();
    // The server may act on an answer of before, and cannot ask again: every boot waits for it.
    let told = standby
        .data()
        .join("pg_stat_tmp/walmgr.absent.000000010000000000000099");
    wait_for("the server to be held", PATIENCE, || {
        fs::write(&told, "").unwrap();
        std::thread::sleep(Duration::from_secs(2));
        told.exists().then_some(())
    });
    let mut kills = Vec::new();
    for call in CALLS {
        let killed =
            (1..CALLS_MAX).take_while(|count| Killed::begin(&site, call, *count).before_it_waits());
        kills.push(format!("{call} {}", killed.count()));
    }
    println!("killed before the promotion at: {}", kills.join(", "));
    assert!(standby.data().join("standby.signal").exists());

    // And one whose server opens with nobody there.
    let mut boot = site.standby_walmgr(&["boot"]);
    let mut boot = boot
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the promotion to be held", PATIENCE, || {
        site.holds("BOOT").then_some(())
    });
    fs::remove_file(&hold).unwrap();
    let signal = standby.data().join("standby.signal");
    wait_for("the promotion", PATIENCE, || {
        (!signal.exists()).then_some(())
    });
    boot.kill().unwrap();
    boot.wait().unwrap();
    wait_until_open(&standby);
    assert_eq!(standby.psql("TABLE t"), "1");
    let begun = fs::read_to_string(note(&site)).unwrap();

    let mut kills = Vec::new();
    for call in CALLS {
        let mut killed = 0;
        for count in 1..CALLS_MAX {
            let unfinished = begun.replace("\"finished\": true", "\"finished\": false");
            fs::write(note(&site), &unfinished).unwrap();
            let _ = fs::remove_file(history(&site));
            if !Killed::begin(&site, call, count).was_killed() {
                break;
            }
            killed += 1;
            boot_is_finished(&site, &format!("{call} {count}"));
        }
        kills.push(format!("{call} {killed}"));
    }
    println!("killed behind it at: {}", kills.join(", "));
    for at_least in ["/^rename$ 1", "/^renameat2$ 1", "pwrite64 1"] {
        assert!(kills.iter().any(|kill| kill == at_least), "{kills:?}");
    }
    assert_eq!(standby.psql("TABLE t"), "1");
}
