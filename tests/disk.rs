//! Disks that are full, broken, slow, read-only or gone, below a receiver that runs.
//! Never mocks: real file systems, and system calls of the real daemon that strace makes fail.
//! Invariant: whatever the disk did, 0 was said only for a file that is stored whole.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use walmgr::test_support::wal::writer::WalWriter;
use walmgr_protocol::message::Message;
use walmgr_protocol::message::partial::{self, Partial, PartialBegin};
use walmgr_protocol::names::Lsn;

use crate::support::Cluster;
use crate::support::hostile::{Key, ask, ship, ship_on};
use crate::support::loopfs::{FileSystem, LoopFs, TmpFs};
use crate::support::outcome::Output;
use crate::support::place::{as_server, give_to_server};
use crate::support::site::Site;
use crate::support::strace::Strace;
use crate::support::{report_skip, run, wait_for};

/// How soon archiving goes on after the disk is well again.
const RECOVERY_LIMIT: Duration = Duration::from_secs(60);

/// Archives a segment of the site that was not offered before.
fn archive(site: &Site, number: u64) -> Output {
    site.write_segment(number);
    site.archive(&site.segment_name(number))
}

/// The segment was refused for the disk's sake, in words, and nothing of it is left.
#[track_caller]
fn assert_refused(site: &Site, number: u64, output: &Output, words: &str) {
    let line = output.fail(6);
    assert!(line.contains(words), "{line:?} lacks {words:?}");
    let folder = site.completed_wals();
    assert!(line.contains(folder.to_str().unwrap()), "{line}");
    assert_nothing_left(site, number);
}

#[track_caller]
fn assert_nothing_left(site: &Site, number: u64) {
    assert!(!site.holds(&site.segment_name(number)));
    assert_eq!(site.temporaries(), [""; 0]);
}

/// The segment is accepted soon, by the same receiver, and is stored as it was offered.
#[track_caller]
fn assert_recovers(site: &mut Site, number: u64) {
    let begin = Instant::now();
    assert_stores(site, number);
    assert!(begin.elapsed() < RECOVERY_LIMIT, "{:?}", begin.elapsed());
    assert!(site.receiver.is_running());
}

#[track_caller]
fn assert_stores(site: &Site, number: u64) {
    let name = site.segment_name(number);
    archive(site, number).succeed();
    assert!(is_stored(site, number), "{name} is stored differently");
}

fn is_stored(site: &Site, number: u64) -> bool {
    site.archived(&site.segment_name(number)) == site.segment(number, "walmgr")
}

/// Each call of an upload in which a disk can say that it is full, and at which count: the first
/// file an upload opens is the stored one, the second what was shipped of it, the third its temporary.
const SPACE_CALLS: [&str; 7] = [
    "openat:when=4",
    "fallocate:when=1",
    "pwrite64:when=1",
    "pwrite64:when=3",
    "sync_file_range:when=1",
    "fsync:when=1",
    "renameat2:when=1",
];

#[test]
fn fault_31_no_space_at_any_step_refuses_and_serves_on() {
    refuses_and_serves_on("ENOSPC", &SPACE_CALLS);
}

#[test]
fn fault_31_no_space_for_a_packed_segment_refuses_and_serves_on() {
    skip_unless!(Strace::attachable());
    let mut site = Site::builder()
        .standby_set("store_compression", "zstd")
        .build();
    for (number, call) in (2..).zip(["pwrite64", "renameat2"]) {
        let strace = Strace::available().unwrap();
        let strace = strace.inject(&format!("{call}:error=ENOSPC:when=1"));
        let attached = strace.attach(site.receiver.pid());
        let output = archive(&site, number);
        drop(attached);
        let words = "no space left on the standby's disk";
        assert_refused(&site, number, &output, words);
        assert_recovers(&mut site, number);
    }
}

#[test]
fn fault_36_a_used_up_quota_or_a_file_size_limit_refuses_like_a_full_disk() {
    refuses_and_serves_on("EDQUOT", &SPACE_CALLS);
    refuses_and_serves_on("EFBIG", &["fallocate:when=1", "pwrite64:when=1"]);
}

fn refuses_and_serves_on(errno: &str, calls: &[&str]) {
    skip_unless!(Strace::attachable());
    let mut site = Site::builder()
        .standby_set("store_compression", "none")
        .build();
    let pid = site.receiver.pid();
    for (number, call) in (2..).zip(calls) {
        let (name, when) = call.split_once(':').unwrap();
        let strace = Strace::available().unwrap();
        let strace = strace.inject(&format!("{name}:error={errno}:{when}"));
        let attached = strace.attach(pid);
        let output = archive(&site, number);
        drop(attached);
        let log = strace.log().join("\n");
        assert!(log.contains("INJECTED"), "{call}: nothing failed:\n{log}");
        assert_refused(
            &site,
            number,
            &output,
            "no space left on the standby's disk",
        );
        assert_recovers(&mut site, number);
        assert_eq!(site.receiver.pid(), pid);
    }
}

/// A file of the test's that takes whatever is left of a disk.
pub struct Ballast(PathBuf);

impl Ballast {
    pub fn fill(disk: &Path) -> Ballast {
        let path = disk.join("ballast");
        let mut dd = Command::new("dd");
        dd.args(["if=/dev/zero", "bs=64k"])
            .arg(format!("of={}", path.display()));
        let error = run(&mut dd).unwrap_err();
        assert!(error.contains("No space left"), "{error}");
        Ballast(path)
    }

    pub fn remove(self) {
        std::fs::remove_file(self.0).unwrap();
    }
}

#[test]
fn fault_31_a_full_disk_refuses_and_archiving_goes_on_when_there_is_space() {
    let tmpfs = skip_unless!(TmpFs::create(8 << 10, 0));
    on_a_full_disk(tmpfs.path());
    for kind in [FileSystem::Ext4, FileSystem::Xfs] {
        match LoopFs::create(kind, 24) {
            Ok(disk) => on_a_full_disk(disk.path()),
            Err(reason) => report_skip(&reason),
        }
    }
}

fn on_a_full_disk(disk: &Path) {
    let mut site = Site::builder().archive(&disk.join("archive")).build();
    assert_stores(&site, 2);
    let ballast = Ballast::fill(disk);
    let words = "no space left on the standby's disk";
    for number in 3..6 {
        assert_refused(&site, number, &archive(&site, number), words);
    }
    // What is stored is served as before, also by a receiver that starts on the full disk.
    assert_stores(&site, 2);
    site.restart_receiver();
    assert_stores(&site, 2);
    assert_refused(&site, 3, &archive(&site, 3), words);
    ballast.remove();
    assert_recovers(&mut site, 3);
}

#[test]
fn fault_32_used_up_inodes_refuse_like_a_full_disk() {
    let disk = skip_unless!(TmpFs::create(32 << 10, 40));
    let mut site = Site::builder()
        .archive(&disk.path().join("archive"))
        .build();
    let files = (0..64).map(|number| disk.path().join(format!("file-{number}")));
    let files: Vec<PathBuf> = files
        .take_while(|path| std::fs::write(path, "").is_ok())
        .collect();
    assert!(files.len() < 40);
    let words = "no space left on the standby's disk";
    assert_refused(&site, 2, &archive(&site, 2), words);
    std::fs::remove_file(&files[0]).unwrap();
    assert_recovers(&mut site, 2);
}

#[test]
fn fault_36_the_receiver_survives_its_file_size_limit() {
    let mut site = Site::builder()
        .standby_set("store_compression", "none")
        .build();
    let pid = site.receiver.pid().to_string();
    let limit = |bytes: &str| {
        let mut prlimit = Command::new("prlimit");
        prlimit.args(["--pid", &pid, &format!("--fsize={bytes}:unlimited")]);
        run(as_server(&mut prlimit)).unwrap();
    };
    limit("524288");
    let output = archive(&site, 2);
    assert!(site.receiver.is_running(), "{}", site.receiver.log());
    assert_refused(&site, 2, &output, "no space left on the standby's disk");
    limit("unlimited");
    assert_recovers(&mut site, 2);
}

#[test]
fn fault_33_a_failed_write_refuses_and_the_next_try_writes_a_new_file() {
    skip_unless!(Strace::attachable());
    let mut site = Site::builder()
        .standby_set("store_compression", "none")
        .build();
    for (number, call) in (2..).zip(["openat:when=4", "pwrite64:when=2", "renameat2:when=1"]) {
        let (name, when) = call.split_once(':').unwrap();
        let strace = Strace::available().unwrap();
        let strace = strace.inject(&format!("{name}:error=EIO:{when}"));
        let attached = strace.attach(site.receiver.pid());
        let output = archive(&site, number);
        drop(attached);
        assert_refused(&site, number, &output, "Input/output error");
        assert_recovers(&mut site, number);
    }
}

#[test]
fn fault_33_a_failed_sync_or_close_refuses_and_ends_the_receiver() {
    skip_unless!(Strace::attachable());
    let mut site = Site::start();
    let mut calls = vec!["close:when=1", "fsync:when=2", "fsync:when=1"];
    for number in 2..12 {
        let Some(call) = calls.last().copied() else {
            break;
        };
        let (name, when) = call.split_once(':').unwrap();
        let strace = Strace::available().unwrap();
        let strace = strace
            .trace("openat,fsync,renameat2,unlinkat")
            .inject(&format!("{name}:error=EIO:{when}"));
        let attached = strace.attach(site.receiver.pid());
        let said_before = site.receiver.log().matches("Input/output error").count();
        let output = archive(&site, number);
        // strace counts by thread, and this one closed something else before: nobody asks how.
        if name == "close" && output.code == Some(0) {
            continue;
        }
        calls.pop();
        let status = site.receiver.wait();
        drop(attached);
        assert_refused(&site, number, &output, "Input/output error");
        assert_eq!(status.code(), Some(1), "{call}");
        let log = site.receiver.log();
        let last = log.lines().last().unwrap();
        assert!(last.contains("Input/output error"), "{last}");
        assert!(
            last.contains("the service manager starts it again"),
            "{last}"
        );
        assert_eq!(
            log.matches("Input/output error").count(),
            1 + said_before,
            "{log}"
        );
        assert_no_sync_after_failure(&strace.log());
        site.start_receiver();
        assert_recovers(&mut site, number);
    }
    assert_eq!(calls, Vec::<&str>::new());
}

/// The bytes whose sync failed are never synced again: nothing is, by this process.
fn assert_no_sync_after_failure(log: &[String]) {
    let failed = log.iter().position(|line| line.contains("EIO")).unwrap();
    let again = log[failed + 1..]
        .iter()
        .find(|line| line.contains("fsync("));
    assert_eq!(again, None, "{}", log.join("\n"));
}

#[test]
fn fault_34_a_sync_that_fails_once_and_then_succeeds_refuses_for_good() {
    skip_unless!(Strace::attachable());
    let mut site = Site::start();
    assert_stores(&site, 2);
    let strace = Strace::available().unwrap();
    let strace = strace
        .inject("fsync:error=EIO:when=1")
        .inject("pwrite64:delay_enter=300ms:when=1");
    let attached = strace.attach(site.receiver.pid());
    // Both are on their way when the first sync fails; the other thread's would succeed.
    let outputs = std::thread::scope(|scope| {
        let site = &site;
        let pushing = [3, 4].map(|number| scope.spawn(move || archive(site, number)));
        pushing.map(|push| push.join().unwrap())
    });
    let status = site.receiver.wait();
    drop(attached);
    assert_eq!(status.code(), Some(1));
    for (number, output) in (3..).zip(outputs) {
        output.fail(6);
        assert_nothing_left(&site, number);
    }
    site.start_receiver();
    for number in 2..5 {
        assert_recovers(&mut site, number);
    }
}

#[test]
fn fault_33_failed_sync_after_the_client_left_ends_the_receiver() {
    skip_unless!(Strace::attachable());
    let mut site = Site::builder().master_set("push_timeout", "500ms").build();
    let strace = Strace::available().unwrap();
    let strace = strace.inject("fsync:error=EIO:delay_enter=1500ms:when=1");
    let attached = strace.attach(site.receiver.pid());
    archive(&site, 2).fail(1);
    assert_eq!(site.receiver.wait().code(), Some(1));
    drop(attached);
    site.start_receiver();
    assert_recovers(&mut site, 2);
}

#[test]
fn fault_33_failed_sync_while_binding_ends_the_receiver() {
    skip_unless!(Strace::attachable());
    for when in 1..5 {
        let cluster = Cluster::builder().conf("archive_mode", "on").start();
        let mut site = Site::builder().cluster(cluster).unbound().build();
        let strace = Strace::available().unwrap();
        let strace = strace.inject(&format!("fsync:error=EIO:when={when}"));
        let attached = strace.attach(site.receiver.pid());
        let output = site.master_command(&["setup"]);
        assert_ne!(output.code, Some(0));
        let said = &output.stderr;
        assert!(said.contains("Input/output error"), "{said}");
        assert_eq!(site.receiver.wait().code(), Some(1));
        drop(attached);
        site.start_receiver();
        site.bind();
        assert_recovers(&mut site, 2);
    }
}

#[test]
fn fault_33_a_receiver_that_cannot_sync_does_not_start() {
    let probe = skip_unless!(Strace::available());
    drop(probe);
    let mut site = Site::start();
    for number in 2..6 {
        assert_stores(&site, number);
    }
    site.receiver.stop();
    for when in 1..6 {
        let strace = Strace::available().unwrap().unprivileged();
        let strace = strace.inject(&format!("fsync:error=EIO:when={when}"));
        let command = site.receiver_walmgr();
        let said = site.receiver.start(&mut strace.wrap(&command)).unwrap_err();
        assert!(said.contains("Input/output error"), "{said}");
        assert!(!said.contains("panicked"), "{said}");
    }
    site.start_receiver();
    for number in 2..7 {
        assert_stores(&site, number);
    }
}

#[test]
fn fault_33_a_disk_that_loses_writes_at_the_sync_is_never_acknowledged() {
    // The image is larger than what holds it: writes succeed, and fsync finds out.
    let thin = skip_unless!(TmpFs::create(24 << 10, 0));
    let mut disk = skip_unless!(LoopFs::create_in(FileSystem::Ext4, 256, thin.path()));
    let mut site = Site::builder()
        .standby_set("store_compression", "none")
        .archive(&disk.path().join("archive"))
        .build();
    assert_stores(&site, 2);
    disk.sync_unrelated_file();
    let ballast = Ballast::fill(thin.path());
    let mut acknowledged = vec![2];
    let mut refused = Vec::new();
    let mut number = 3;
    while refused.len() < 5 {
        assert!(number < 60, "no fsync failed");
        let output = archive(&site, number);
        match output.code {
            Some(0) => acknowledged.push(number),
            // Nobody listens after a failure that was not said to be for want of space.
            Some(1) if !refused.is_empty() => refused.push(number),
            _ => {
                output.fail(6);
                refused.push(number);
            }
        }
        number += 1;
    }
    let log = site.receiver.log();
    let said = log.contains("was not stored") || log.contains("the receiver ends");
    assert!(said, "{log}");
    let ended = match site.receiver.is_running() {
        true => site.receiver.stop(),
        false => site.receiver.wait(),
    };
    assert_eq!(
        ended.code(),
        Some(i32::from(log.contains("the receiver ends")))
    );
    ballast.remove();
    // Mounted anew, nothing comes from the kernel's memory.
    disk.remount();
    for number in acknowledged {
        assert!(is_stored(&site, number), "segment {number} was lost");
    }
    site.start_receiver();
    for number in refused {
        assert_stores(&site, number);
    }
}

#[test]
fn fault_33_records_that_a_failed_sync_lost_are_not_said_to_be_held() {
    // They still stand in the kernel's memory, as clean as if the disk had them.
    let thin = skip_unless!(TmpFs::create(24 << 10, 0));
    let kind = FileSystem::Ext4WithoutJournal;
    let mut disk = skip_unless!(LoopFs::create_in(kind, 256, thin.path()));
    let mut site = Site::builder()
        .archive(&disk.path().join("archive"))
        .build();
    assert_stores(&site, 2);
    let (facts, name) = (site.facts(), site.segment_name(30));
    let (segment, cluster) = (name.parse().unwrap(), facts.cluster);
    let mut writer = WalWriter::new(segment, cluster.segment_size, cluster.system_id, 15);
    let ends: Vec<Lsn> = (0..60)
        .map(|_| writer.record(10, 0, &[7; 8_000]).end)
        .collect();
    let bytes_to = |end: Lsn| usize::try_from(end.0 % cluster.segment_size.bytes()).unwrap();
    let wal = writer.bytes().to_vec();
    let mut peer = Key::stolen(&site).connect(&site);
    let part = |end| &wal[..bytes_to(end)];
    let shipped = ship(
        &mut peer,
        segment,
        facts.timeline,
        part(ends[9]),
        ends[9],
        false,
    );
    let mut acknowledged = shipped.unwrap_or_else(|error| panic!("{}", error.words()));
    disk.sync_unrelated_file();
    let ballast = Ballast::fill(thin.path());
    let failed = ends[10..].iter().find(|end| {
        match ship_on(&mut peer, segment, part(**end), **end, false) {
            Ok(durable) => {
                acknowledged = durable;
                false
            }
            Err(_) => true,
        }
    });
    assert!(failed.is_some(), "no sync failed");
    drop(peer);
    ballast.remove();
    let ended = !site.receiver.log().contains("No space left");
    if ended {
        site.receiver.wait();
        site.start_receiver();
    }
    let mut peer = Key::stolen(&site).connect(&site);
    let timeline = facts.timeline;
    let begin = Message::Partial(Partial::Begin(PartialBegin { timeline }));
    ask(&mut peer, 1, &begin).unwrap_or_else(|error| panic!("{}", error.words()));
    let open = Message::Partial(Partial::Open(partial::Open {
        segment,
        bytes: wal.len() as u64,
        crc32: crc32fast::hash(&wal),
    }));
    let held = match ask(&mut peer, 1, &open) {
        Ok(Message::Partial(Partial::At(at))) => usize::try_from(at.held_bytes).unwrap(),
        Ok(other) => panic!("{other:?}"),
        Err(error) => panic!("{}", error.words()),
    };
    assert!(held >= bytes_to(acknowledged), "{held} of {acknowledged}");
    drop(peer);
    // Mounted anew, nothing comes from the kernel's memory.
    site.receiver.stop();
    disk.remount();
    let found = std::fs::read(site.partial_wals().join(&name)).unwrap();
    assert!(
        found[..held] == wal[..held],
        "{held} bytes are said to be held, and are not there"
    );
    site.start_receiver();
    let mut peer = Key::stolen(&site).connect(&site);
    // One block.
    let last = ends[35];
    let shipped = ship(&mut peer, segment, facts.timeline, part(last), last, false);
    assert_eq!(
        shipped.unwrap_or_else(|error| panic!("{}", error.words())),
        last
    );
}

#[test]
fn fault_35_a_read_only_disk_refuses_and_serves_on_when_it_is_writable() {
    skip_unless!(Strace::attachable());
    let mut site = Site::builder()
        .standby_set("store_compression", "none")
        .build();
    assert_stores(&site, 2);
    let strace = Strace::available().unwrap();
    let strace = strace
        .inject("openat:error=EROFS:when=4+4")
        .inject("fallocate:error=EROFS")
        .inject("pwrite64:error=EROFS")
        .inject("renameat2:error=EROFS")
        .inject("unlinkat:error=EROFS");
    let attached = strace.attach(site.receiver.pid());
    for number in [3, 4, 5] {
        assert_refused(
            &site,
            number,
            &archive(&site, number),
            "Read-only file system",
        );
    }
    drop(attached);
    assert_recovers(&mut site, 3);
}

#[test]
fn fault_35_the_file_system_below_an_idle_receiver_can_be_made_read_only() {
    let disk = skip_unless!(LoopFs::create(FileSystem::Ext4, 32));
    let mut site = Site::builder()
        .archive(&disk.path().join("archive"))
        .build();
    assert_stores(&site, 2);
    disk.set_read_only(true);
    archive(&site, 3).fail(6);
    disk.set_read_only(false);
    assert_recovers(&mut site, 3);
}

#[test]
fn fault_35_read_only_file_system_refuses_until_mounted_again() {
    let mut disk = skip_unless!(LoopFs::create(FileSystem::Ext4, 32));
    let mut site = Site::builder()
        .archive(&disk.path().join("archive"))
        .build();
    assert_stores(&site, 2);
    disk.sync_unrelated_file();
    disk.abort();
    for number in [3, 4] {
        archive(&site, number).fail(6);
    }
    if site.receiver.is_running() {
        site.receiver.stop();
    } else {
        assert_ne!(site.receiver.wait().code(), Some(0));
    }
    // One that cannot even take its lock does not pretend to serve.
    let command = site.receiver_walmgr().output().unwrap();
    assert_eq!(Output::from(command).code, Some(1));
    disk.remount();
    site.start_receiver();
    for number in 2..5 {
        assert_stores(&site, number);
    }
}

#[test]
fn fault_38_moved_or_replaced_directory_refuses_until_it_is_back() {
    let mut site = Site::start();
    assert_stores(&site, 2);
    let (folder, aside) = (site.completed_wals(), site.home().join("aside"));
    std::fs::rename(&folder, &aside).unwrap();
    let gone = |site: &Site, number| {
        let output = archive(site, number);
        let line = output.fail(6);
        assert!(line.contains("was moved or replaced"), "{line}");
        assert!(line.contains(folder.to_str().unwrap()), "{line}");
        assert!(!aside.join(site.segment_name(number)).exists());
        // An identical file in a place where nobody finds it does not count either.
        archive(site, 2).fail(6);
    };
    gone(&site, 3);
    std::fs::create_dir(&folder).unwrap();
    give_to_server(&folder);
    gone(&site, 4);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    std::fs::remove_dir(&folder).unwrap();
    std::os::unix::fs::symlink(&aside, &folder).unwrap();
    // The same directory, wherever it lies.
    archive(&site, 5).succeed();
    std::fs::remove_file(&folder).unwrap();
    let other = site.home().create_dir("other");
    std::os::unix::fs::symlink(&other, &folder).unwrap();
    gone(&site, 6);
    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(&aside, &folder).unwrap();
    for number in [2, 3, 4, 6] {
        assert_recovers(&mut site, number);
    }
}

#[test]
fn fault_38_a_directory_replaced_in_the_middle_of_an_upload_refuses() {
    skip_unless!(Strace::attachable());
    let mut site = Site::start();
    let (folder, aside) = (site.completed_wals(), site.home().join("aside"));
    for (number, call) in (2..).zip(["pwrite64:when=2", "renameat2:when=1", "fsync:when=2"]) {
        let (name, when) = call.split_once(':').unwrap();
        let strace = Strace::available().unwrap();
        let strace = strace.inject(&format!("{name}:delay_enter=700ms:{when}"));
        let attached = strace.attach(site.receiver.pid());
        let output = std::thread::scope(|scope| {
            let pushing = scope.spawn(|| archive(&site, number));
            wait_for("the upload to be held", RECOVERY_LIMIT, || {
                crate::support::strace::is_held(site.receiver.pid()).then_some(())
            });
            std::fs::rename(&folder, &aside).unwrap();
            pushing.join().unwrap()
        });
        drop(attached);
        let line = output.fail(6);
        assert!(line.contains("was moved or replaced"), "{line}");
        std::fs::rename(&aside, &folder).unwrap();
        assert_nothing_left(&site, number);
        assert_recovers(&mut site, number);
    }
}

#[test]
fn fault_38_an_unmounted_disk_refuses_and_no_receiver_starts_without_it() {
    let mut disk = skip_unless!(LoopFs::create(FileSystem::Ext4, 32));
    let mut site = Site::builder()
        .archive(&disk.path().join("archive"))
        .build();
    assert_stores(&site, 2);
    disk.sync_unrelated_file();
    disk.detach();
    let line = archive(&site, 3);
    let line = line.fail(6);
    assert!(line.contains("was moved or replaced"), "{line}");
    assert!(
        line.contains("check that its file system is mounted"),
        "{line}"
    );
    site.receiver.stop();
    disk.unmount();
    // Neither on the empty mount point, nor on directories somebody made there.
    for made in [false, true] {
        if made {
            for folder in [site.completed_wals(), site.partial_wals()] {
                std::fs::create_dir_all(&folder).unwrap();
            }
            give_to_server(disk.path());
        }
        let output = Output::of(&mut site.receiver_walmgr());
        let line = output.fail(2);
        assert!(line.contains("is not set up as an archive"), "{line}");
        assert!(
            line.contains("check that the file system is mounted"),
            "{line}"
        );
    }
    disk.remount();
    site.start_receiver();
    assert_stores(&site, 2);
    assert_stores(&site, 3);
}

#[test]
fn fault_39_a_slow_sync_delays_the_acknowledgement_not_the_client() {
    skip_unless!(Strace::attachable());
    let mut site = Site::builder().master_set("push_timeout", "1s").build();
    let name = site.segment_name(2);
    for (number, when) in [(2, 1), (3, 2)] {
        let strace = Strace::available().unwrap();
        let strace = strace.inject(&format!("fsync:delay_enter=10s:when={when}"));
        let attached = strace.attach(site.receiver.pid());
        let begin = Instant::now();
        let output = archive(&site, number);
        let took = begin.elapsed();
        let line = output.fail(1);
        assert!(line.contains("push_timeout"), "{line}");
        // It gave up by its own clock, while the sync still hung.
        assert!(took >= Duration::from_secs(1), "{took:?}");
        let log = site.receiver.log();
        let stored = format!("{} stored", site.segment_name(number));
        assert!(!log.contains(&stored), "{log}");
        site.receiver.wait_for_log(&stored);
        drop(attached);
    }
    let inode = |name: &str| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(site.stored_path(name)).unwrap().ino()
    };
    let before = inode(&name);
    archive(&site, 2).succeed();
    assert_eq!(inode(&name), before);
    site.restart_receiver();
    assert_recovers(&mut site, 2);
}
