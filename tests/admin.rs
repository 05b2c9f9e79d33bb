//! Local administration on both sides: the lock by hand, the rotation by hand, the tidying up.
//! Never helps a killed command in between. Invariant: every test ends with what is on the disk, and no set, segment or
//! data directory is lost by any of these commands.

mod locking;
mod retention;
mod rotation;
mod shipping;
mod tidying;

use std::fs;
use std::path::Path;
use std::process::Stdio;

use crate::support::strace::Strace;
use crate::support::{Cluster, Output, Site, run};

/// The calls that change something on a disk.
const CHANGES: [&str; 8] = [
    "/rename.*",
    "fsync",
    "ftruncate",
    "/p?write.*",
    "/unlink.*",
    "/rmdir.*",
    "/mkdir.*",
    "flock",
];

/// More than any of these commands makes of one call.
const CALLS_MAX: u32 = 200;

/// Kills a command at this call, counted from 1; `false` when it has fewer and so has ended by itself.
fn killed_at(site: &Site, words: &[&str], call: &str, count: u32) -> bool {
    let strace = Strace::available().unwrap().unprivileged();
    let strace = strace.inject(&format!("{call}:signal=KILL:when={count}"));
    let command = site.standby_walmgr(words);
    let output = strace.wrap(&command).stdin(Stdio::null()).output().unwrap();
    !output.status.success()
}

/// A master that archives to a standby.
fn archiving(builder: crate::support::site::Builder) -> Site {
    let cluster = Cluster::builder().conf("archive_mode", "on").start();
    let site = builder.cluster(cluster).build();
    site.master_command(&["setup"]).succeed();
    site
}

/// What lies beside the archive's folders, sorted; hidden files aside.
fn beside(site: &Site) -> Vec<String> {
    let entries = fs::read_dir(site.archive_folder()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names
        .filter(|name| !name.starts_with('.') && !name.starts_with("logs."))
        .collect();
    names.sort();
    names
}

fn copy(from: &Path, to: &Path) {
    let mut copy = std::process::Command::new("cp");
    run(copy.arg("-a").arg(from).arg(to)).unwrap();
}

/// The command ended with this code and says this on stderr.
#[track_caller]
fn says(output: &Output, code: i32, parts: &[&str]) {
    assert_eq!(
        output.code,
        Some(code),
        "{}\n{}",
        output.stdout,
        output.stderr
    );
    for part in parts {
        assert!(
            output.stderr.contains(part),
            "{part:?} is not in: {}",
            output.stderr
        );
    }
}
