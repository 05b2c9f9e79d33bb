//! A receiver whose clock stands before 1970: a shim in front of the C library says so.
//! Never sets the clock of the machine. Invariant: nothing panics, and both sides are told.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::with_authority;
use crate::support::place::give_to_server;
use crate::support::{Site, have, run, wait_for};

/// Answers every question for the time of day with one a hundred years ago.
const SHIM: &str = "
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    long said = syscall(SYS_clock_gettime, clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec -= 3155760000;
    return (int)said;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec fine;
    clock_gettime(CLOCK_REALTIME, &fine);
    now->tv_sec = fine.tv_sec;
    now->tv_usec = fine.tv_nsec / 1000;
    return 0;
}
";

fn shim(site: &Site) -> PathBuf {
    let source = site.home().write("clock.c", SHIM);
    let library = site.home().join("clock.so");
    let mut compile = Command::new("cc");
    compile.args(["-shared", "-fPIC", "-o"]).arg(&library);
    run(compile.arg(&source)).unwrap();
    give_to_server(&library);
    library
}

fn start_early(site: &mut Site) {
    site.receiver.stop();
    let mut early = site.receiver_walmgr();
    early.env("LD_PRELOAD", shim(site));
    site.receiver.start(&mut early).unwrap();
}

#[test]
fn fault_119_a_receiver_before_1970_serves_pinned_keys() {
    if !have("cc") {
        skip!("cc is not installed");
    }
    let mut site = Site::start();
    start_early(&mut site);
    // The certificates that walmgr makes have no beginning worth the name.
    site.write_segment(1);
    site.archive(&site.segment_name(1)).succeed();
    assert!(!site.receiver.log().contains("panic"));
}

#[test]
fn fault_119_a_receiver_before_1970_refuses_young_certificates_in_words() {
    if !have("cc") {
        skip!("cc is not installed");
    }
    let (mut site, _ours) = with_authority();
    let name = site.segment_name(1);
    site.write_segment(1);
    start_early(&mut site);
    let ended = site.archive(&name);
    let line = ended.fail(4);
    assert!(
        line.contains("by its clock the certificate is expired or not yet valid"),
        "{line}"
    );
    site.receiver.wait_for_log("the clock here says 1970-01-01");
    let log = site.receiver.log();
    assert!(!log.contains("panic"), "{log}");
    site.restart_receiver();
    site.archive(&name).succeed();
}

#[test]
fn fault_119_a_plain_receiver_before_1970_stores_ships_and_answers() {
    if !have("cc") {
        skip!("cc is not installed");
    }
    let mut site = Site::builder().plain().build();
    start_early(&mut site);
    site.write_segment(1);
    site.archive(&site.segment_name(1)).succeed();
    assert!(site.holds(&site.segment_name(1)));
    // That of the push may take a moment to end.
    wait_for("its own connection alone", Duration::from_secs(30), || {
        (site.overview().connections == 1).then_some(())
    });
    // It judges the ages of what it holds.
    let mut status = site.master_walmgr(&["status"]);
    let said = crate::support::Output::of(&mut status);
    assert!(!said.stderr.contains("panic"), "{}", said.stderr);
    let log = site.receiver.log();
    assert!(!log.contains("panic"), "{log}");
}
