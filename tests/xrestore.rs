//! `xrestore` without a server: exit codes to the letter, in a folder that looks like its PGDATA.
//! Never trusts an exit code alone: what lies under PATH is looked at too.
//! Invariant: 0 means the stored bytes, anything else means no file.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use walmgr::abnormal;
use walmgr::error::ExitTable;

use crate::support::place::{give_to_server, server_user};
use crate::support::strace::Strace;
use crate::support::{Output, Site, wait_for};

const PATIENCE: Duration = Duration::from_secs(20);

/// An archive and a folder that PostgreSQL would call its data directory.
struct Standby {
    site: Site,
    data: PathBuf,
}

impl Standby {
    fn new() -> Standby {
        Standby::of(Site::start())
    }

    fn of(site: Site) -> Standby {
        let data = site.home().create_dir("pgdata");
        fs::create_dir(data.join("pg_wal")).unwrap();
        give_to_server(&data);
        Standby { site, data }
    }

    /// Makes it a standby, or a recovery towards a target.
    fn signal_file(&self, name: &str) {
        fs::write(self.data.join(name), "").unwrap();
    }

    fn control_file(&self, name: &str, text: &str) {
        let path = self.site.unpacked_path(name);
        fs::write(&path, text).unwrap();
        give_to_server(&path);
    }

    fn store(&self, number: u64) -> String {
        let name = self.site.segment_name(number);
        self.site.write_segment(number);
        self.site.archive(&name).succeed();
        name
    }

    /// Puts a file into the archive as no receiver would.
    fn plant(&self, name: &str, content: &[u8]) {
        let path = self.site.unpacked_path(name);
        fs::write(&path, content).unwrap();
        give_to_server(&path);
    }

    fn command(&self, name: &str) -> Command {
        let mut command = self
            .site
            .standby_walmgr(&["xrestore", name, "pg_wal/RECOVERYXLOG"]);
        command.current_dir(&self.data);
        command
    }

    fn spawn(&self, name: &str) -> Child {
        let mut command = self.command(name);
        let piped = command.stdin(Stdio::null()).stdout(Stdio::piped());
        piped.stderr(Stdio::piped()).spawn().unwrap()
    }

    fn restored(&self) -> PathBuf {
        self.data.join("pg_wal/RECOVERYXLOG")
    }

    #[track_caller]
    fn serves(&self, name: &str) {
        Output::of(&mut self.command(name)).succeed();
        assert!(fs::read(self.restored()).unwrap() == self.site.archived(name));
        fs::remove_file(self.restored()).unwrap();
        self.left_nothing();
    }

    /// Absent, within the time that a look takes, and without a word: it is no failure.
    #[track_caller]
    fn lacks_at_once(&self, name: &str) {
        // Far beyond what a busy machine needs for a look.
        let mut command = self.command(name);
        command.args(["--set", "restore_wait=60s"]);
        let begun = Instant::now();
        let ended = Output::of(&mut command);
        assert!(begun.elapsed() < Duration::from_secs(50));
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(1), ""));
        self.left_nothing();
    }

    #[track_caller]
    fn refuses(&self, name: &str, part: &str) {
        let ended = Output::of(&mut self.command(name));
        let line = ended.fail(254);
        assert!(line.contains(part), "{part:?} is not in: {line}");
        self.left_nothing();
    }

    #[track_caller]
    fn left_nothing(&self) {
        let entries = fs::read_dir(self.data.join("pg_wal")).unwrap();
        assert_eq!(entries.count(), 0);
        assert!(!self.restores());
    }

    /// Whether PROGRESS names a file.
    fn restores(&self) -> bool {
        fs::read(self.site.completed_wals().join("PROGRESS"))
            .is_ok_and(|text| !text.trim_ascii().is_empty())
    }
}

fn code(child: Child) -> Output {
    child.wait_with_output().unwrap().into()
}

#[test]
fn a_stored_file_is_put_in_place_whatever_was_there_before() {
    let _user = skip_unless!(server_user());
    let standby = Standby::new();
    let name = standby.store(7);
    standby.serves(&name);
    fs::write(standby.restored(), vec![1; 3 << 20]).unwrap();
    give_to_server(&standby.restored());
    standby.serves(&name);
    // With %r, beside a stopped receiver, and of any kind of name.
    standby.plant("00000002.history", b"1\t0/800000\tpromoted\n");
    standby.serves("00000002.history");
    Output::of(standby.command(&name).arg(&name)).succeed();
    let mut site = standby.site;
    site.receiver.stop();
    let standby = Standby::of(site_in_new_place(site));
    standby.serves(&name);
}

/// The folder of the first standby stays; a second one needs another name.
fn site_in_new_place(site: Site) -> Site {
    fs::rename(site.home().join("pgdata"), site.home().join("before")).unwrap();
    site
}

#[test]
fn fault_72_absent_is_1_at_once_but_a_gap_is_254_and_named() {
    let _user = skip_unless!(server_user());
    let standby = Standby::new();
    let missing = standby.site.segment_name(4);
    for signal_file in [None, Some("recovery.signal"), Some("standby.signal")] {
        if let Some(name) = signal_file {
            standby.signal_file(name);
        }
        standby.lacks_at_once("00000002.history");
    }
    fs::remove_file(standby.data.join("standby.signal")).unwrap();
    standby.lacks_at_once(&missing);
    standby.store(3);
    standby.lacks_at_once(&missing);
    let later = standby.store(6);
    standby.refuses(
        &missing,
        &format!("{missing} is missing although {later} is there"),
    );
    // Not on another timeline.
    standby.lacks_at_once(&missing.replacen("00000001", "00000002", 1));
    // A standby never opens by itself, so it may wait.
    standby.signal_file("standby.signal");
    let said = Output::of(&mut standby.command(&missing));
    assert_eq!(said.code, Some(1));
    assert!(
        said.stderr.contains("the archive has a gap"),
        "{}",
        said.stderr
    );
    assert!(!standby.restored().exists());
    standby.control_file("STOP", "");
    standby.refuses(&missing, "the archive has a gap");
    standby.store(4);
    standby.serves(&missing);
}

#[test]
fn fault_73_a_file_that_is_not_what_was_archived_is_254() {
    let _user = skip_unless!(server_user());
    let standby = Standby::new();
    let name = standby.store(7);
    let good = standby.site.archived(&name);
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 0x10;
    let stale = standby.site.segment(3, "walmgr");
    let short = &good[..good.len() - 8192];
    let half_zeroed = [&good[..good.len() / 2], &vec![0; good.len() / 2]].concat();
    let zeroed = vec![0; good.len()];
    for signal_file in [None, Some("standby.signal")] {
        if let Some(name) = signal_file {
            standby.signal_file(name);
        }
        for wrong in [&flipped[..], &stale, short, &half_zeroed, &zeroed, &[]] {
            standby.plant(&name, wrong);
            standby.refuses(&name, &name);
            // The archive is not xrestore's to tidy up.
            assert!(standby.site.archived(&name) == wrong);
        }
    }
    fs::remove_file(standby.site.stored_path(&name)).unwrap();
    standby.plant(&format!("{name}.damaged"), &flipped);
    standby.refuses(&name, &format!("set aside as {name}.damaged"));
    standby.plant(&name, &good);
    standby.serves(&name);
}

#[test]
fn fault_113_what_lies_before_the_first_segment_keeps_no_restore_from_it() {
    let _user = skip_unless!(server_user());
    let standby = Standby::new();
    let first = standby.store(5);
    standby.store(6);
    standby.serves(&first);
    // What a key can make up: sound by itself, and leading nowhere.
    let before = standby.site.segment_name(4);
    standby
        .site
        .write_wal(&before, standby.site.forged_segment(4));
    standby.site.archive(&before).succeed();
    // Who comes from the one would end at the other.
    standby.serves(&before);
    standby.refuses(&first, "or this one is damaged");
    let label = format!(
        "START WAL LOCATION: 0/500028 (file {first})\nCHECKPOINT LOCATION: 0/500060\n\
         START TIME: 2026-01-02 03:04:05 UTC\nLABEL: x\n"
    );
    fs::write(standby.data.join("backup_label"), label).unwrap();
    fs::write(standby.data.join("PG_VERSION"), "15\n").unwrap();
    standby.serves(&first);
}

#[test]
fn fault_107_a_flip_that_nothing_else_shows_is_254_and_status_says_so() {
    let _user = skip_unless!(server_user());
    let standby = Standby::new();
    let segment = standby.store(7);
    let history = "00000002.history".to_owned();
    let backup = format!("{segment}.00000028.backup");
    let location = format!("START WAL LOCATION: 0/700028 (file {segment})\nLABEL: weekly\n");
    for (name, text) in [
        (&history, "1\t0/800000\tpromoted\n"),
        (&backup, location.as_str()),
    ] {
        standby.site.write_wal(name, text);
        standby.site.archive(name).succeed();
        if *name == history {
            // No WAL leads there in this archive.
            let words = ["choose", name, "--take"];
            standby.site.standby_command(&words).succeed();
        }
        standby.serves(name);
    }
    for (name, from, to) in [
        (&history, "0/800000", "0/800200"),
        (&backup, "weekly", "veekly"),
    ] {
        let good = standby.site.archived(name);
        let text = String::from_utf8(good.clone()).unwrap();
        standby.plant(name, text.replace(from, to).as_bytes());
        standby.refuses(name, "when it was acknowledged");
        let status = standby.site.standby_command(&["status"]);
        if *name == history {
            assert_eq!(status.code, Some(2), "{}{}", status.stdout, status.stderr);
            assert!(status.stdout.contains(&history), "{}", status.stdout);
        }
        // What the master has is what was acknowledged.
        standby.site.archive(name).succeed();
        standby.serves(name);
        assert!(standby.site.archived(name) == good);
        assert!(standby.site.holds(&format!("{name}.damaged")));
    }
}

#[test]
fn fault_107_a_round_finds_what_nobody_reads_and_status_names_it() {
    let _user = skip_unless!(server_user());
    let mut standby = Standby::new();
    let names: Vec<String> = (3..10).map(|number| standby.store(number)).collect();
    let good = standby.site.archived(&names[1]);
    let mut spoilt = good.clone();
    spoilt[700_000] ^= 1;
    standby.plant(&names[1], &spoilt);
    let told = |standby: &Standby| {
        let status = standby.site.standby_command(&["status"]);
        let line = format!("1 archived files are damaged, the first is {}", names[1]);
        status.stdout.contains(&line)
    };
    assert!(!told(&standby), "nobody has read it");
    standby.site.standby_set("recheck_rate", "1024MB");
    standby.site.receiver.kill9();
    standby.site.start_receiver();
    wait_for("the round", PATIENCE, || told(&standby).then_some(()));
    standby.refuses(&names[1], "is damaged");
    // What the master has takes its place, and nothing is said of that.
    standby.site.archive(&names[1]).succeed();
    assert!(!told(&standby));
    assert!(standby.site.archived(&names[1]) == good);
}

#[test]
fn fault_107_a_flipped_marker_is_found_by_everybody_and_mended_by_setup() {
    let _user = skip_unless!(server_user());
    let mut standby = Standby::new();
    let name = standby.store(7);
    let marker = standby.site.completed_wals().join(".walmgr-archive");
    let good = fs::read_to_string(&marker).unwrap();
    let digit = good.find("\"system_identifier\": \"").unwrap() + 24;
    let mut flipped = good.clone().into_bytes();
    flipped[digit] ^= 1;
    standby.site.receiver.stop();
    fs::write(&marker, &flipped).unwrap();
    standby.refuses(&name, "is damaged: its checksum is");
    for word in ["receiver", "status"] {
        let output = standby.site.standby_command(&[word]);
        let said = format!("{}{}", output.stdout, output.stderr);
        assert!(
            said.contains(".walmgr-archive is damaged"),
            "{word}: {said}"
        );
        assert_ne!(output.code, Some(0), "{word}: {said}");
    }
    assert_eq!(fs::read(&marker).unwrap(), flipped);
    standby.site.standby_command(&["setup"]).succeed();
    assert_eq!(fs::read_to_string(&marker).unwrap(), good);
    standby.serves(&name);
}

#[test]
fn fault_74_wrong_settings_and_unreadable_places_are_254() {
    let _user = skip_unless!(server_user());
    let mut standby = Standby::new();
    let name = standby.store(7);
    let folder = standby.site.completed_wals();
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    for (path, restored) in [
        (standby.site.stored_path(&name), 0o600),
        (folder.clone(), 0o700),
    ] {
        mode(&path, 0o000);
        standby.refuses(&name, "Permission denied");
        mode(&path, restored);
    }
    mode(&standby.data.join("pg_wal"), 0o500);
    standby.refuses(&name, "RECOVERYXLOG");
    mode(&standby.data.join("pg_wal"), 0o700);
    let absent = standby.site.segment_name(9);
    mode(&folder, 0o300);
    standby.refuses(&absent, "Permission denied");
    mode(&folder, 0o700);
    let aside = folder.with_extension("aside");
    fs::rename(&folder, &aside).unwrap();
    standby.refuses(&absent, "is not set up as an archive");
    fs::create_dir(&folder).unwrap();
    give_to_server(&folder);
    standby.refuses(&absent, "is not set up as an archive");
    fs::remove_dir(&folder).unwrap();
    fs::rename(&aside, &folder).unwrap();
    standby.site.standby_set("restore_wiat", "1s");
    standby.refuses(&absent, "restore_wait");
}

#[test]
fn fault_37_a_stored_file_that_cannot_be_read_is_254() {
    let _user = skip_unless!(server_user());
    let standby = Standby::new();
    let name = standby.store(7);
    let path = standby.site.unpacked_path(&name);
    for when in [1, 3] {
        let strace = skip_unless!(Strace::available())
            .unprivileged()
            .only_on(&path)
            .inject(&format!("pread64:error=EIO:when={when}"));
        let mut traced = strace.wrap(&standby.command(&name));
        let ended = Output::of(traced.current_dir(&standby.data));
        let line = ended.fail(254);
        assert!(line.contains("Input/output error") && line.contains(&name));
        standby.left_nothing();
    }
    standby.serves(&name);
}

#[test]
fn a_rehearsal_says_what_would_be_done_and_exits_as_the_real_run() {
    let _user = skip_unless!(server_user());
    let standby = Standby::new();
    let name = standby.store(7);
    let rehearse = |name: &str| Output::of(standby.command(name).arg("-n"));
    let said = rehearse(&name).succeed();
    assert_eq!(
        said,
        format!("would put {name} in place as pg_wal/RECOVERYXLOG")
    );
    assert_eq!(rehearse(&standby.site.segment_name(8)).code, Some(1));
    rehearse(&standby.site.segment_name(6)).fail(254);
    standby.plant(&name, b"short");
    rehearse(&name).fail(254);
    standby.left_nothing();
}

/// Runs this very test again as a process of its own, which panics as told.
#[test]
fn fault_74_a_panic_on_any_thread_is_254_and_one_line() {
    const ASKED: &str = "WALMGR_TEST_PANIC";
    if let Some(thread) = std::env::var_os(ASKED) {
        abnormal::prepare(ExitTable::Xrestore);
        if thread == "main" {
            panic!("planted\nin two lines");
        }
        let _ = std::thread::spawn(|| panic!("planted\nin two lines")).join();
        std::process::exit(0);
    }
    for thread in ["main", "another"] {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again
            .args(["--exact", "--nocapture"])
            .arg("xrestore::fault_74_a_panic_on_any_thread_is_254_and_one_line")
            .env(ASKED, thread);
        let ended = Output::of(&mut again);
        assert_eq!(ended.code, Some(254), "{}", ended.stderr);
        assert!(
            ended.stderr.contains("internal error: planted"),
            "{}",
            ended.stderr
        );
    }
}

#[test]
fn fault_75_a_kill_at_any_step_leaves_no_file_and_the_next_call_serves() {
    let _user = skip_unless!(server_user());
    let standby = Standby::new();
    let name = standby.store(7);
    for (call, occurrences) in [("/rename.*", 1), ("write", 4), ("/unlink.*", 1)] {
        for when in 1..=occurrences {
            let strace = skip_unless!(Strace::available())
                .unprivileged()
                .inject(&format!("{call}:signal=KILL:when={when}"));
            let mut traced = strace.wrap(&standby.command(&name));
            traced.current_dir(&standby.data);
            let ended = Output::of(&mut traced);
            assert_ne!(ended.code, Some(0), "{call} {when}");
            if call != "/unlink.*" {
                assert!(!standby.restored().exists(), "{call} {when}");
            }
            let _ = fs::remove_file(standby.restored());
            standby.serves(&name);
        }
    }
}

#[test]
fn a_standby_waits_for_a_file_and_gets_it_the_moment_it_is_stored() {
    let _user = skip_unless!(server_user());
    let mut standby = Standby::new();
    standby.site.standby_set("restore_wait", "60s");
    standby.signal_file("standby.signal");
    let name = standby.site.segment_name(7);
    let mut waiting = standby.spawn(&name);
    std::thread::sleep(Duration::from_millis(300));
    assert!(waiting.try_wait().unwrap().is_none(), "it does not wait");
    standby.store(7);
    let begun = Instant::now();
    code(waiting).succeed();
    assert!(begun.elapsed() < Duration::from_secs(50));
    assert!(fs::read(standby.restored()).unwrap() == standby.site.archived(&name));
    fs::remove_file(standby.restored()).unwrap();

    let next = standby.site.segment_name(8);
    standby.site.standby_set("restore_wait", "400ms");
    let begun = Instant::now();
    assert_eq!(Output::of(&mut standby.command(&next)).code, Some(1));
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(400), "{took:?}");
    // A promotion under way, or STOP, ends the waiting.
    standby.site.standby_set("restore_wait", "60s");
    for (folder, sign) in [
        (standby.data.clone(), "promote"),
        (standby.site.completed_wals(), "STOP"),
    ] {
        let waiting = standby.spawn(&next);
        std::thread::sleep(Duration::from_millis(200));
        fs::write(folder.join(sign), "").unwrap();
        give_to_server(&folder.join(sign));
        let begun = Instant::now();
        assert_eq!(code(waiting).code, Some(1), "{sign}");
        assert!(begun.elapsed() < Duration::from_secs(50), "{sign}");
        fs::remove_file(folder.join(sign)).unwrap();
    }
    // STOP for another server means nothing here.
    standby.site.standby_set("restore_wait", "400ms");
    standby.control_file("STOP", "1 1\n");
    let begun = Instant::now();
    assert_eq!(Output::of(&mut standby.command(&next)).code, Some(1));
    assert!(begun.elapsed() >= Duration::from_millis(400));
}

#[test]
fn replay_goes_through_no_names_and_leaves_the_archive_as_it_is() {
    let _user = skip_unless!(server_user());
    let strace = skip_unless!(Strace::available())
        .unprivileged()
        .named()
        .trace("getdents64,inotify_add_watch");
    let standby = Standby::new();
    let (name, next) = (standby.store(7), standby.store(8));
    standby.serves(&name);
    let archive = standby.site.completed_wals();
    let changed = |path: &Path| fs::metadata(path).and_then(|found| found.modified());
    let before = changed(&archive).unwrap();
    wait_for("the index of names", PATIENCE, || {
        let noted = changed(&archive.join(".names/index")).ok()?;
        (noted > before).then_some(())
    });
    standby.lacks_at_once("00000002.history");
    // As a standby, so that the call waits for what is absent.
    standby.signal_file("standby.signal");
    for (name, exit) in [(next, 0), (standby.site.segment_name(9), 1)] {
        let mut traced = strace.wrap(&standby.command(&name));
        assert_eq!(Output::of(&mut traced).code, Some(exit));
    }
    assert_eq!(
        changed(&archive).unwrap(),
        before,
        "every name is read again"
    );
    let (log, path) = (strace.log(), archive.display());
    // For a watch the kernel goes through those it has in memory.
    let of_archive = [format!("<{path}>"), format!("\"{path}\"")];
    let through = log
        .iter()
        .find(|call| of_archive.iter().any(|it| call.contains(it)));
    assert!(!log.is_empty() && through.is_none(), "{through:?}");
}

#[test]
fn pause_holds_segments_but_no_history_until_continue() {
    let _user = skip_unless!(server_user());
    let standby = Standby::new();
    let name = standby.store(7);
    let said = standby.site.standby_command(&["pause", "-n"]).succeed();
    assert!(said.starts_with("would write ") && !standby.site.holds("PAUSE"));
    let said = standby.site.standby_command(&["continue"]);
    assert_eq!(said.code, Some(0));
    assert!(said.stderr.contains("was not paused"), "{}", said.stderr);
    standby.site.standby_command(&["pause"]).succeed();
    assert!(standby.site.holds("PAUSE"));
    standby.lacks_at_once("00000002.history");
    let mut waiting = standby.spawn(&name);
    std::thread::sleep(Duration::from_millis(300));
    assert!(waiting.try_wait().unwrap().is_none(), "it is not held");
    assert!(!standby.restored().exists() && !standby.restores());
    let said = standby.site.standby_command(&["pause"]);
    assert!(
        said.code == Some(0) && said.stderr.contains("already"),
        "{}",
        said.stderr
    );
    standby.site.standby_command(&["continue"]).succeed();
    code(waiting).succeed();
    assert!(fs::read(standby.restored()).unwrap() == standby.site.archived(&name));
}

#[test]
fn call_of_a_crashed_server_ends_although_replay_is_paused() {
    let _user = skip_unless!(server_user());
    let standby = Standby::new();
    let name = standby.store(7);
    standby.site.standby_command(&["pause"]).succeed();
    fs::write(standby.data.join("PG_VERSION"), "15\n").unwrap();
    // Nobody has this number, and its children may outlive it.
    let left = format!("{}\n{}\n1700000000\n", i32::MAX, standby.data.display());
    fs::write(standby.data.join("postmaster.pid"), left).unwrap();
    let mut asking = standby.spawn(&name);
    wait_for("its end", PATIENCE, || asking.try_wait().unwrap());
    code(asking).fail_last(254, "the server that asked has ended");
    assert!(!standby.restored().exists());
}

#[test]
fn pause_waits_for_the_segment_that_is_being_restored() {
    let _user = skip_unless!(server_user());
    let standby = Standby::new();
    let name = standby.store(7);
    let strace = skip_unless!(Strace::available())
        .unprivileged()
        .inject("/rename.*:delay_enter=1500000");
    let mut slow = strace.wrap(&standby.command(&name));
    slow.current_dir(&standby.data)
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    let slow = slow.spawn().unwrap();
    wait_for("PROGRESS", PATIENCE, || standby.restores().then_some(()));
    let said = standby.site.standby_command(&["pause"]);
    assert!(
        said.code == Some(0) && said.stderr.contains(&name),
        "{}",
        said.stderr
    );
    assert!(standby.restored().exists(), "pause did not wait");
    code(slow).succeed();
    // One that was killed holds nobody up.
    standby.control_file("PROGRESS", &format!("{name} {}\n", i32::MAX));
    standby.site.standby_command(&["pause"]).succeed();
}

#[test]
fn stalled_standby_alarms_until_the_file_is_mended_or_it_boots() {
    let _user = skip_unless!(server_user());
    let mut standby = Standby::new();
    standby.site.standby_set("on_corrupt", "stall");
    let name = standby.store(7);
    let good = standby.site.archived(&name);
    standby.plant(&name, &vec![0; good.len()]);
    // Only a standby stalls: a recovery towards a target ends.
    standby.signal_file("recovery.signal");
    standby.refuses(&name, &name);
    standby.signal_file("standby.signal");
    let mut waiting = standby.spawn(&name);
    std::thread::sleep(Duration::from_millis(1200));
    assert!(waiting.try_wait().unwrap().is_none(), "it does not stall");
    standby.plant(&name, &good);
    let ended = code(waiting);
    ended.succeed();
    assert_eq!(ended.stderr.matches("ALARM").count(), 1, "{}", ended.stderr);
    fs::remove_file(standby.restored()).unwrap();

    standby.plant(&name, &vec![0; good.len()]);
    let waiting = standby.spawn(&name);
    std::thread::sleep(Duration::from_millis(300));
    standby.control_file("STOP", "");
    assert_eq!(code(waiting).code, Some(254));
    standby.left_nothing();
}

#[test]
fn fault_74_signals_are_254() {
    let _user = skip_unless!(server_user());
    let mut standby = Standby::new();
    standby.site.standby_set("restore_wait", "30s");
    standby.signal_file("standby.signal");
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        let waiting = standby.spawn(&standby.site.segment_name(7));
        std::thread::sleep(Duration::from_millis(300));
        kill_process(Pid::from_child(&waiting), signal).unwrap();
        let ended = code(waiting);
        assert!(ended.fail(254).contains("stopped by SIG"));
    }
}

/// A standby whose server asks, with segments from this one on.
fn asking_server(segments: std::ops::Range<u64>) -> (Standby, Vec<String>) {
    let standby = Standby::new();
    let names = segments.map(|number| standby.store(number)).collect();
    fs::write(standby.data.join("PG_VERSION"), "15\n").unwrap();
    let left = format!("{}\n{}\n1700000000\n", i32::MAX, standby.data.display());
    fs::write(standby.data.join("postmaster.pid"), left).unwrap();
    give_to_server(&standby.data);
    (standby, names)
}

/// What lies ready for its server, by the name of the segment.
fn laid(standby: &Standby) -> BTreeMap<String, PathBuf> {
    let found = fs::read_dir(standby.data.join("pg_wal/.walmgr")).into_iter();
    let paths = found.flatten().flatten().map(|entry| entry.path());
    let named = paths.map(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        (name.split('.').next().unwrap().to_owned(), path)
    });
    named.collect()
}

fn wait_until_laid(standby: &Standby, names: &[String]) -> BTreeMap<String, PathBuf> {
    wait_for("segments that lie ready", PATIENCE, || {
        let laid = laid(standby);
        laid.keys().eq(names).then_some(laid)
    })
}

/// Has the segment handed out; which file it is then.
#[track_caller]
fn handed_out(standby: &Standby, name: &str) -> u64 {
    handed_out_with(standby, name, &[])
}

#[track_caller]
fn handed_out_with(standby: &Standby, name: &str, options: &[&str]) -> u64 {
    Output::of(standby.command(name).args(options)).succeed();
    let restored = standby.restored();
    assert!(fs::read(&restored).unwrap() == standby.site.archived(name));
    let file = fs::metadata(&restored).unwrap().ino();
    fs::remove_file(restored).unwrap();
    file
}

#[test]
fn fault_284_a_segment_that_lies_ready_is_handed_out_by_its_name() {
    let _user = skip_unless!(server_user());
    let (standby, names) = asking_server(2..9);
    handed_out(&standby, &names[0]);
    let ready = wait_until_laid(&standby, &names[1..5]);
    let file = fs::metadata(&ready[&names[1]]).unwrap().ino();
    assert_eq!(handed_out(&standby, &names[1]), file);
    // PostgreSQL asks for a history when it comes to the end.
    let history = Output::of(&mut standby.command("00000009.history"));
    assert_eq!(history.code, Some(1));
    assert!(!standby.data.join("pg_wal/.walmgr").exists());
    // Whoever begins to lay when that is over makes no folder, and is no failure.
    let mut late = standby.command(&names[1]);
    Output::of(late.arg("--lay-behind")).succeed();
    assert!(!standby.data.join("pg_wal/.walmgr").exists());
    handed_out(&standby, &names[2]);
    wait_until_laid(&standby, &names[3..7]);
    // Nothing lies behind the last.
    handed_out(&standby, &names[6]);
    assert!(laid(&standby).len() <= 4);
}

#[test]
fn fault_284_what_lies_there_counts_only_as_the_copy_of_what_is_stored() {
    let _user = skip_unless!(server_user());
    let (standby, names) = asking_server(2..9);
    handed_out(&standby, &names[0]);
    let ready = wait_until_laid(&standby, &names[1..5]);
    let file = |name: &String| fs::metadata(&ready[name]).unwrap().ino();
    let files: Vec<u64> = names[1..5].iter().map(file).collect();
    // The archive has another file of that name, with the same content.
    let stored = standby.site.stored_path(&names[1]);
    let content = fs::read(&stored).unwrap();
    fs::remove_file(&stored).unwrap();
    fs::write(&stored, content).unwrap();
    give_to_server(&stored);
    // Torn, and of another boot of the kernel.
    let torn = fs::OpenOptions::new().write(true).open(&ready[&names[2]]);
    torn.unwrap().set_len(8192).unwrap();
    let name = ready[&names[3]].file_name().unwrap().to_str().unwrap();
    let other = ready[&names[3]].with_file_name(name.replacen('-', "0", 1));
    fs::write(&ready[&names[3]], "torn").unwrap();
    fs::rename(&ready[&names[3]], other).unwrap();
    // A file that somebody else can still write to.
    fs::hard_link(&ready[&names[4]], standby.data.join("second")).unwrap();
    // Nobody lays any more.
    let folder = fs::File::open(standby.data.join("pg_wal/.walmgr")).unwrap();
    folder.lock().unwrap();
    for (name, file) in names[1..5].iter().zip(files) {
        assert_ne!(handed_out(&standby, name), file, "{name}");
    }
}

#[test]
fn fault_284_whoever_lays_segments_may_be_killed_at_any_step() {
    let _user = skip_unless!(server_user());
    let (standby, names) = asking_server(2..8);
    let mut kills = 0;
    for (call, occurrences) in [("/rename.*", 4), ("write", 12), ("flock", 1)] {
        for when in 1..=occurrences {
            let folder = standby.data.join("pg_wal/.walmgr");
            fs::create_dir(&folder).unwrap();
            give_to_server(&folder);
            let mut command = standby.command(&names[0]);
            command.arg("--lay-behind");
            let strace = skip_unless!(Strace::available())
                .unprivileged()
                .inject(&format!("{call}:signal=KILL:when={when}"));
            let mut traced = strace.wrap(&command);
            traced.current_dir(&standby.data);
            kills += u32::from(Output::of(&mut traced).code != Some(0));
            for name in &names[1..3] {
                // With a setting of its own a call has nothing laid.
                handed_out_with(&standby, name, &["--set", "restore_wait=1s"]);
            }
            fs::remove_dir_all(folder).unwrap();
        }
    }
    assert!(kills >= 10, "{kills}");
}
