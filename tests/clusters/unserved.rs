//! Clusters whose disks hang, cannot be opened, or are too many, beside others that are well.
//! Never waits as long as a receiver for users does. Invariant tested: the others are served, `status` says why one is
//! not, and it is served by itself once nothing is wrong any more.

use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use rustix::process::Signal;

use super::{archives, host_of, started};
use crate::support::peer::PATIENCE;
use crate::support::place::{as_server, give_to_server, server_user, walmgr};
use crate::support::receiver::Receiver;
use crate::support::stored;
use crate::support::strace::Strace;
use crate::support::{Host, Site, free_port, run, wait_for};

/// A host whose receiver waits as short as a test likes, with clusters a and b.
fn impatient() -> (Host, Vec<Site>) {
    let host = Host::builder()
        .env("WALMGR_RETRY_INTERVAL_MS", "1000")
        .env("WALMGR_READING_PATIENCE_MS", "2000")
        .env("WALMGR_OPENING_PATIENCE_MS", "3000");
    started(host.build(), &["a", "b"])
}

fn text_of(host: &Host, name: &str) -> String {
    std::fs::read_to_string(host.cluster_ini(name)).unwrap()
}

/// What `status` of a cluster says of the receiver.
fn told_by_status(site: &Site) -> String {
    let status = site.standby_command(&["status"]);
    status.stdout.clone() + &status.stderr
}

#[test]
fn fault_170_a_hung_mount_of_one_cluster_delays_no_other() {
    let _user = skip_unless!(server_user());
    let strace = skip_unless!(Strace::attachable());
    let (mut host, sites) = impatient();
    let [a, b] = &sites[..] else { unreachable!() };
    let mount = host.home().create_dir("mount");
    let text = text_of(&host, "b");
    let with_mount = format!("{text}config_backup = {}/configs\n", mount.display());
    host.write_cluster("b", &with_mount);
    host.reload();
    let strace = strace.inject("readlink:delay_enter=600s").only_on(&mount);
    // A reload while it hangs: its old settings stay in force, and what else has changed is taken over.
    let attached = strace.attach(host.receiver.pid());
    let c = Site::builder().system_id(7_700_000_000_000_000_009);
    let c = host.add("c", c);
    let log = host.receiver.log();
    let line = log.lines().rfind(|line| line.contains("b.ini")).unwrap();
    assert!(line.contains("a file system does not answer"), "{line}");
    for site in [a, b, &c] {
        archives(site, 1);
    }
    let said = told_by_status(b);
    assert!(said.contains("old settings: "), "{said}");
    drop(attached);
    // The look that hung ends a moment after the file system answers.
    let said = wait_for("the mount to answer", PATIENCE, || {
        let said = host.reload();
        (!said.contains("broken")).then_some(said)
    });
    assert!(said.contains("serves 3 of 3 clusters"), "{said}");
    assert!(!told_by_status(b).contains("old settings"));
    // A start: it is served as soon as the file system answers.
    host.receiver.stop();
    let strace = strace.unprivileged();
    host.receiver
        .start(&mut strace.wrap(&host.receiver_walmgr()))
        .unwrap();
    host.receiver.wait_for_log("serves 2 of 3 clusters");
    for site in [a, &c] {
        archives(site, 2);
    }
    host.receiver.kill9();
}

#[test]
fn fault_170_status_of_a_cluster_says_why_it_is_not_served() {
    let _user = skip_unless!(server_user());
    let (mut host, sites) = impatient();
    let [a, b] = &sites[..] else { unreachable!() };
    archives(b, 1);
    let archive = b.completed_wals();
    let aside = archive.with_extension("aside");
    host.receiver.stop();
    let ini = host.ini().display().to_string();
    let said = told_by_status(b);
    assert!(
        said.contains(&format!("walmgr {ini} receiver -d")),
        "{said}"
    );
    std::fs::rename(&archive, &aside).unwrap();
    host.start();
    archives(a, 1);
    let said = told_by_status(b);
    let line = said.lines().find(|line| line.contains("does not serve"));
    let line = line.unwrap_or_else(|| panic!("{said}"));
    assert!(line.contains(&format!("receiver of {ini}")), "{line}");
    assert!(line.contains("open the archive"), "{line}");
    let all = host.command(&["status", "--all"]);
    let line = all.stdout.lines().find(|line| line.starts_with("b: "));
    assert!(line.unwrap().contains("open the archive"), "{}", all.stdout);
    // Nobody has to say that it was mended.
    std::fs::rename(&aside, &archive).unwrap();
    b.write_segment(2);
    wait_for("the cluster to be opened", PATIENCE, || {
        (b.archive(&b.segment_name(2)).code == Some(0)).then_some(())
    });
    let said = told_by_status(b);
    assert!(!said.contains("does not serve"), "{said}");
    assert!(!std::fs::exists(format!("{}.unserved", host.pidfile().display())).unwrap());
}

#[test]
fn fault_170_an_opening_that_hangs_keeps_no_start_from_listening() {
    let _user = skip_unless!(server_user());
    let strace = skip_unless!(Strace::available());
    let (mut host, sites) = impatient();
    let [a, b] = &sites[..] else { unreachable!() };
    host.receiver.stop();
    let strace = strace
        .unprivileged()
        .inject("openat:delay_enter=600s")
        .only_on(&b.completed_wals());
    host.receiver
        .start(&mut strace.wrap(&host.receiver_walmgr()))
        .unwrap();
    host.receiver
        .wait_for_log("it is being opened for longer than 3s");
    archives(a, 1);
    b.write_segment(1);
    let refused = b.archive(&b.segment_name(1));
    assert!(refused.stderr.contains("it is being opened"), "{refused:?}");
    host.receiver.kill9();
}

#[test]
fn fault_147_a_cluster_moves_with_its_folder_by_a_reload() {
    let _user = skip_unless!(server_user());
    let (host, sites) = host_of(&["a", "b"]);
    let [a, b] = &sites[..] else { unreachable!() };
    archives(b, 1);
    let archive = b.completed_wals();
    let elsewhere = archive.with_extension("elsewhere");
    std::fs::rename(&archive, &elsewhere).unwrap();
    let (old, new) = (
        archive.display().to_string(),
        elsewhere.display().to_string(),
    );
    let text = text_of(&host, "b");
    assert!(text.contains(&old), "{text}");
    host.write_cluster("b", &text.replace(&old, &new));
    let said = host.reload();
    assert!(said.contains("completed_wals has changed"), "{said}");
    archives(a, 1);
    b.write_segment(2);
    b.archive(&b.segment_name(2)).succeed();
    for number in [1, 2] {
        let stored = stored::content(&elsewhere, &b.segment_name(number));
        assert_eq!(stored, b.segment(number, "walmgr"));
    }
    assert!(!archive.exists());
}

#[test]
fn fault_148_clusters_beyond_the_descriptors_are_named_not_served() {
    let _user = skip_unless!(server_user());
    let names = ["a", "b", "c", "d", "e"];
    let (mut host, sites) = host_of(&names);
    host.receiver.stop();
    let walmgr = host.receiver_walmgr();
    let mut limited = Command::new("prlimit");
    limited.arg("--nofile=64:64").arg(walmgr.get_program());
    limited.args(walmgr.get_args());
    as_server(&mut limited);
    host.receiver.start(&mut limited).unwrap();
    host.receiver.wait_for_log("serves 4 of 5 clusters");
    let log = host.receiver.log();
    let said = "e: not served: ";
    let line = log.lines().find(|line| line.contains(said)).unwrap();
    assert!(line.contains("enough for 4 clusters"), "{line}");
    for site in &sites[..4] {
        archives(site, 1);
    }
}

#[test]
fn fault_170_what_a_killed_receiver_noted_is_not_told_again() {
    let _user = skip_unless!(server_user());
    let (mut host, sites) = host_of(&["a"]);
    let note = format!("{}.unserved", host.pidfile().display());
    host.write_cluster("b", "[walmgr]\ncompleted_wal = /x\n");
    host.reload();
    assert!(
        std::fs::read_to_string(&note)
            .unwrap()
            .contains("completed_wal")
    );
    host.receiver.kill9();
    std::fs::write(&note, "{\"a\": \"an old story\"}").unwrap();
    std::fs::remove_file(host.cluster_ini("b")).unwrap();
    host.start();
    archives(&sites[0], 1);
    let said = told_by_status(&sites[0]);
    assert!(!said.contains("an old story"), "{said}");
    assert!(!std::fs::exists(&note).unwrap());
}

#[test]
fn fault_170_attacks_on_the_folder_break_one_cluster_each() {
    let _user = skip_unless!(server_user());
    let (mut host, sites) = host_of(&["a", "b", "c", "d", "\u{fffd}"]);
    let clusters = host.clusters().to_path_buf();
    let at = |name: &str| clusters.join(format!("{name}.ini"));
    // What serves goes on, whatever takes the place of its file.
    for name in ["b", "c", "d"] {
        std::fs::remove_file(at(name)).unwrap();
    }
    std::fs::create_dir(at("b")).unwrap();
    run(Command::new("mkfifo").arg(at("c"))).unwrap();
    std::os::unix::fs::symlink(at("d"), at("d")).unwrap();
    // A name that is no text is not that of the cluster that it looks like.
    let no_text = std::ffi::OsStr::from_bytes(b"\xff.ini");
    std::fs::copy(at("a"), clusters.join(no_text)).unwrap();
    let huge = std::fs::File::create(at("huge")).unwrap();
    huge.set_len(1 << 40).unwrap();
    let longest = Site::builder().system_id(7_700_000_000_000_000_009);
    let longest = host.add(&"n".repeat(64), longest);
    let log = host.receiver.log();
    let summary = log.lines().rfind(|line| line.contains("reloaded; "));
    let summary = summary.unwrap();
    assert!(summary.contains("serves 6 of 8 clusters"), "{summary}");
    for site in sites.iter().chain([&longest]) {
        archives(site, 1);
    }
    let said = told_by_status(&sites[4]);
    assert!(!said.contains("old settings"), "{said}");
    // Killed while it reads all of that.
    for _ in 0..3 {
        host.receiver.signal(Signal::HUP);
        host.receiver.kill9();
        host.start();
    }
    for site in [&sites[0], &sites[4], &longest] {
        archives(site, 2);
    }
    no_second_host_gets_what_is_served(&host);
    archives(&sites[0], 3);
}

fn no_second_host_gets_what_is_served(host: &Host) {
    let other = host.ini().with_file_name("other.ini");
    let (folder, port) = (host.clusters().display(), free_port());
    let text = format!("[walmgr]\nclusters = {folder}\nlisten = 127.0.0.1:{port}\ntls = off\n");
    std::fs::write(&other, text).unwrap();
    give_to_server(&other);
    let mut second = Receiver::beside(other.with_extension("log"), other.with_extension("pid"));
    second.start(walmgr().arg(&other).arg("receiver")).unwrap();
    second.wait_for_log("serves 0 of ");
    let log = second.log();
    let line = log.lines().find(|line| line.starts_with("walmgr: a: "));
    let line = line.unwrap_or_else(|| panic!("{log}"));
    let served_by = format!("the receiver of {} serves this", host.ini().display());
    assert!(line.contains(&served_by), "{line}");
    second.stop();
}
