//! Segments that the master's `xrestore` fetches before a server asks for them.
//! Never trusts an exit code alone: which file was handed out is looked at too. Invariant: what is handed out is what is
//! stored, wherever it lay before.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, SystemTime};

use walmgr::test_support::wal::record::{RM_XLOG, XLOG_NOOP};
use walmgr::test_support::wal::writer::WalWriter;
use walmgr_protocol::names::{Lsn, SegmentName};

use super::Scene;
use crate::replay::{master, replays_what_lies_ready};
use crate::support::imitation::write_data_directory;
use crate::support::place::{as_server, give_to_server, server_user};
use crate::support::proxy::{Direction, Fault};
use crate::support::strace::Strace;
use crate::support::{Cluster, Output, Site, wait_for};

const PATIENCE: Duration = Duration::from_secs(20);
const RM_TBLSPC: u8 = 5;

/// A process that walmgr takes for the server of a data directory.
struct Asking {
    scene: Scene,
    names: Vec<String>,
    server: Child,
}

impl Drop for Asking {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Asking {
    /// It asks for the segments 2 to 9.
    fn start() -> Asking {
        Asking::of(Scene::new())
    }

    fn of(scene: Scene) -> Asking {
        let names = (2..10).map(|number| scene.store(number)).collect();
        write_data_directory(&scene.data, &scene.site.facts().cluster, 1);
        let mut server = Command::new("sleep");
        let server = as_server(server.arg("600"));
        let server = server.current_dir(&scene.data).spawn().unwrap();
        let asking = Asking {
            scene,
            names,
            server,
        };
        asking.started_at(1_700_000_000);
        asking
    }

    /// It says that it has run since then.
    fn started_at(&self, seconds: u64) {
        let (pid, data) = (self.server.id(), &self.scene.data);
        let path = data.join("postmaster.pid");
        fs::write(&path, format!("{pid}\n{}\n{seconds}\n", data.display())).unwrap();
        give_to_server(&path);
    }

    fn folder(&self) -> PathBuf {
        self.scene.data.join("pg_wal/.walmgr")
    }

    /// What lies ready, by the name of the segment.
    fn laid(&self) -> BTreeMap<String, PathBuf> {
        let found = fs::read_dir(self.folder()).into_iter();
        let paths = found.flatten().flatten().map(|entry| entry.path());
        let paths = paths.filter(|path| !path.ends_with("asked"));
        let named = paths.map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            (name.split('.').next().unwrap().to_owned(), path)
        });
        named.collect()
    }

    fn wait_until_laid(&self, names: &[String]) -> BTreeMap<String, PathBuf> {
        wait_for("segments that lie ready", PATIENCE, || {
            let laid = self.laid();
            laid.keys().eq(names).then_some(laid)
        })
    }

    /// Has the segment handed out; which file it is then.
    #[track_caller]
    fn handed_out(&self, name: &str, options: &[&str]) -> u64 {
        let mut command = self.scene.command(name);
        Output::of(command.args(options)).succeed();
        let restored = self.scene.data.join("pg_wal/RECOVERYXLOG");
        assert!(fs::read(&restored).unwrap() == self.scene.site.archived(name));
        let file = inode(&restored);
        fs::remove_file(restored).unwrap();
        file
    }

    /// Two segments are handed out, and those behind them lie ready.
    fn replay_two(&self) -> BTreeMap<String, PathBuf> {
        self.handed_out(&self.names[0], &[]);
        self.handed_out(&self.names[1], &[]);
        self.wait_until_laid(&self.names[2..6])
    }

    /// Nobody lays any more, and who did has ended.
    fn stop_laying(&self) -> File {
        let folder = File::open(self.folder()).unwrap();
        folder.lock().unwrap();
        folder
    }

    /// The server asked for a segment so long ago.
    fn asked_before(&self, passed: Duration) {
        let note = File::options()
            .write(true)
            .open(self.folder().join("asked"));
        note.unwrap()
            .set_modified(SystemTime::now() - passed)
            .unwrap();
    }
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

#[test]
fn fault_313_a_segment_that_was_fetched_ahead_is_handed_out_by_its_name() {
    let _user = skip_unless!(server_user());
    let asking = Asking::start();
    let (scene, names) = (&asking.scene, &asking.names);
    // Whoever asks for one alone, as at the end of the archive, has nothing fetched.
    asking.handed_out(&names[0], &[]);
    std::thread::sleep(Duration::from_millis(300));
    assert!(asking.laid().is_empty());
    asking.handed_out(&names[1], &[]);
    let ready = asking.wait_until_laid(&names[2..6]);
    let file = inode(&ready[&names[2]]);
    assert_eq!(asking.handed_out(&names[2], &[]), file);
    // PostgreSQL asks for a history when it comes to the end.
    let history = Output::of(&mut scene.command("00000009.history"));
    assert_eq!(history.code, Some(1));
    assert!(!asking.folder().exists());
    // Whoever begins to lay when that is over makes no folder, and is no failure.
    Output::of(scene.command(&names[1]).arg("--lay-behind")).succeed();
    assert!(!asking.folder().exists());
    asking.handed_out(&names[5], &[]);
    asking.handed_out(&names[6], &[]);
    asking.wait_until_laid(&names[7..8]);
    // A segment that is absent ends it as well.
    let absent = scene.site.segment_name(99);
    assert_eq!(Output::of(&mut scene.command(&absent)).code, Some(1));
    assert!(!asking.folder().exists());
}

#[test]
fn fault_313_what_was_fetched_counts_for_one_run_and_a_minute_only() {
    let _user = skip_unless!(server_user());
    let mut asking = Asking::start();
    let names = asking.names.clone();
    let ready = asking.replay_two();
    // No number of a file comes twice as long as these are open.
    let open: Vec<File> = names[2..6]
        .iter()
        .map(|name| File::open(&ready[name]).unwrap())
        .collect();
    let files: Vec<u64> = open
        .iter()
        .map(|file| file.metadata().unwrap().ino())
        .collect();
    let _folder = asking.stop_laying();
    // With a setting of its own a call is given nothing that lies ready, nor where the ini file has another one.
    let other = ["--set", "push_timeout=59s"];
    assert_ne!(asking.handed_out(&names[2], &other), files[0]);
    asking.scene.site.master_set("push_timeout", "59s");
    assert_ne!(asking.handed_out(&names[2], &[]), files[0]);
    asking.scene.site.master_unset("push_timeout");
    // Another run of the server.
    asking.started_at(1_700_000_001);
    assert_ne!(asking.handed_out(&names[2], &[]), files[0]);
    asking.started_at(1_700_000_000);
    // Of another boot of the kernel, and torn.
    let path = &ready[&names[2]];
    let name = path.file_name().unwrap().to_str().unwrap();
    let other = path.with_file_name(name.replacen('-', "0", 1));
    fs::rename(path, other).unwrap();
    assert_ne!(asking.handed_out(&names[2], &[]), files[0]);
    let torn = File::options().write(true).open(&ready[&names[5]]);
    torn.unwrap().set_len(8192).unwrap();
    assert_ne!(asking.handed_out(&names[5], &[]), files[3]);
    // A file that somebody else can still write to.
    fs::hard_link(&ready[&names[3]], asking.scene.data.join("second")).unwrap();
    assert_ne!(asking.handed_out(&names[3], &[]), files[1]);
    // It has lain there for long.
    let laid = File::options().write(true).open(&ready[&names[4]]);
    let long_ago = SystemTime::now() - Duration::from_secs(61);
    laid.unwrap().set_modified(long_ago).unwrap();
    assert_ne!(asking.handed_out(&names[4], &[]), files[2]);
}

#[test]
fn fault_315_nothing_is_fetched_ahead_for_a_server_that_replays_slowly() {
    let _user = skip_unless!(server_user());
    let asking = Asking::start();
    let names = &asking.names;
    asking.handed_out(&names[0], &[]);
    // The last of four would be asked for after more than a minute.
    asking.asked_before(Duration::from_secs(16));
    asking.handed_out(&names[1], &[]);
    std::thread::sleep(Duration::from_millis(300));
    assert!(asking.laid().is_empty());
    asking.asked_before(Duration::from_secs(14));
    asking.handed_out(&names[2], &[]);
    asking.wait_until_laid(&names[3..7]);
}

#[test]
fn fault_315_a_call_waits_for_its_segment_while_that_grows() {
    let _user = skip_unless!(server_user());
    let asking = Asking::start();
    let name = &asking.names[2];
    let path = asking.replay_two().remove(name).unwrap();
    let _folder = asking.stop_laying();
    let content = fs::read(&path).unwrap();
    let begun = path.with_file_name(format!(
        ".{}.1.new",
        path.file_name().unwrap().to_str().unwrap()
    ));
    fs::remove_file(&path).unwrap();
    fs::write(&begun, "").unwrap();
    give_to_server(&begun);
    let file = inode(&begun);
    let handed_out = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut grows = File::options().append(true).open(&begun).unwrap();
            for piece in content.chunks(content.len() / 6) {
                std::thread::sleep(Duration::from_millis(300));
                grows.write_all(piece).unwrap();
            }
            fs::rename(&begun, &path).unwrap();
        });
        asking.handed_out(name, &[])
    });
    assert_eq!(handed_out, file);
    // One that no longer grows is not waited for.
    let name = &asking.names[3];
    let path = asking.laid().remove(name).unwrap();
    let begun = path.with_file_name(format!(
        ".{}.1.new",
        path.file_name().unwrap().to_str().unwrap()
    ));
    fs::rename(&path, &begun).unwrap();
    assert_ne!(asking.handed_out(name, &[]), inode(&begun));
}

#[test]
fn fault_315_whoever_fetches_ahead_ends_with_its_server() {
    let _user = skip_unless!(server_user());
    let mut asking = Asking::of(Scene::of(Site::builder().proxied().build()));
    asking.handed_out(&asking.names[0], &[]);
    let stuck = Fault::Blackhole { at_byte: 20_000 };
    let proxy = asking.scene.site.proxy();
    proxy.set_faults([(Direction::ToClient, stuck)]);
    let mut lays = asking.scene.command(&asking.names[0]);
    let mut lays = lays.arg("--lay-behind").spawn().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert!(lays.try_wait().unwrap().is_none(), "it has not begun");
    asking.server.kill().unwrap();
    asking.server.wait().unwrap();
    let ended = wait_for("its end", PATIENCE, || lays.try_wait().unwrap());
    assert!(ended.success());
}

/// Two segments, with a tablespace at `location` in a record that begins in the first and ends in the second.
fn segments_with_tablespace_across(site: &Site, number: u64, location: &Path) -> [Vec<u8>; 2] {
    let facts = site.facts().cluster;
    let name: SegmentName = site.segment_name(number).parse().unwrap();
    let start = name.start(facts.segment_size).unwrap();
    let major = u8::try_from(facts.postgres_major).unwrap();
    let writer = WalWriter::new(name, facts.segment_size, facts.system_id, major);
    let mut writer = writer.following(Lsn(start.0 + 24 - 2 * 8192));
    let size = usize::try_from(facts.segment_size.bytes()).unwrap();
    let begins = size - 48;
    while writer.bytes().len() + 4 * 8192 < begins {
        writer.record(RM_XLOG, XLOG_NOOP, &[0x5A; 4000]);
    }
    let headers = begins / 8192 - writer.bytes().len() / 8192;
    let body = begins - writer.bytes().len() - 24 * (headers + 1);
    writer.record(RM_XLOG, XLOG_NOOP, &vec![0x5A; body]);
    assert_eq!(writer.bytes().len(), begins);
    writer.record(RM_TBLSPC, 0, &tablespace_created(location));
    writer.fill_segment();
    let bytes = writer.bytes();
    assert_eq!(bytes.len(), 2 * size);
    [bytes[..size].to_vec(), bytes[size..].to_vec()]
}

#[test]
fn fault_314_a_record_that_ends_in_a_segment_that_lies_ready_is_looked_at() {
    let _user = skip_unless!(server_user());
    let asking = Asking::start();
    let site = &asking.scene.site;
    let location = site.home().join("nowhere");
    let names = [10, 11].map(|number| site.segment_name(number));
    let segments = segments_with_tablespace_across(site, 10, &location);
    for (name, segment) in names.iter().zip(&segments) {
        site.write_wal(name, segment);
        site.archive(name).succeed();
    }
    // As PostgreSQL keeps what it replays.
    let replays = asking.scene.data.join("pg_wal").join(&names[0]);
    fs::write(&replays, &segments[0]).unwrap();
    give_to_server(&replays);
    asking.handed_out(&asking.names[6], &[]);
    asking.handed_out(&asking.names[7], &[]);
    let ready = asking.wait_until_laid(&names);
    let _folder = asking.stop_laying();
    let held = Output::of(&mut asking.scene.command(&names[1]));
    assert!(held.fail(254).contains("is held back"));
    fs::create_dir(&location).unwrap();
    give_to_server(&location);
    let file = inode(&ready[&names[1]]);
    assert_eq!(asking.handed_out(&names[1], &[]), file);
}

#[test]
fn fault_313_whoever_fetches_ahead_may_be_killed_at_any_step() {
    let _user = skip_unless!(server_user());
    let asking = Asking::start();
    let mut kills = 0;
    for (call, occurrences) in [("/rename.*", 4), ("write", 8), ("flock", 1), ("connect", 1)] {
        for when in 1..=occurrences {
            let folder = asking.folder();
            fs::create_dir_all(&folder).unwrap();
            give_to_server(&folder);
            let mut command = asking.scene.command(&asking.names[0]);
            command.arg("--lay-behind");
            let strace = skip_unless!(Strace::available())
                .unprivileged()
                .inject(&format!("{call}:signal=KILL:when={when}"));
            let mut traced = strace.wrap(&command);
            traced.current_dir(&asking.scene.data);
            kills += u32::from(Output::of(&mut traced).code != Some(0));
            for name in &asking.names[1..3] {
                // The note of the call before is gone with the folder, so nobody begins to lay.
                let _ = fs::remove_file(folder.join("asked"));
                asking.handed_out(name, &[]);
            }
            fs::remove_dir_all(folder).unwrap();
        }
    }
    assert!(kills >= 8, "{kills}");
}

/// The data of a record that creates a tablespace there.
fn tablespace_created(location: &Path) -> Vec<u8> {
    let location = location.to_str().unwrap().as_bytes();
    let created = [&99_u32.to_le_bytes()[..], location, &[0]].concat();
    let created_bytes = u32::try_from(created.len()).unwrap().to_le_bytes();
    [&[254][..], &created_bytes, &created].concat()
}

/// A segment behind `number - 1` that creates a tablespace.
fn segment_with_tablespace(site: &Site, number: u64, location: &Path) -> Vec<u8> {
    let facts = site.facts().cluster;
    let name: SegmentName = site.segment_name(number).parse().unwrap();
    let start = name.start(facts.segment_size).unwrap();
    let previous = Lsn(start.0 + 24 - 2 * 8192);
    let major = u8::try_from(facts.postgres_major).unwrap();
    let writer = WalWriter::new(name, facts.segment_size, facts.system_id, major);
    let mut writer = writer.following(previous);
    writer.record(RM_TBLSPC, 0, &tablespace_created(location));
    writer.fill_segment();
    writer.bytes().to_vec()
}

#[test]
fn fault_314_a_segment_that_may_hold_replay_back_is_not_fetched_ahead() {
    let _user = skip_unless!(server_user());
    let asking = Asking::start();
    let site = &asking.scene.site;
    let location = site.home().join("nowhere");
    let name = site.segment_name(10);
    site.write_wal(&name, segment_with_tablespace(site, 10, &location));
    site.archive(&name).succeed();
    asking.handed_out(&asking.names[5], &[]);
    asking.handed_out(&asking.names[6], &[]);
    asking.wait_until_laid(&asking.names[7..8]);
    drop(asking.stop_laying());
    assert!(!asking.laid().contains_key(&name));
    // The call looks what there is by then.
    let held = Output::of(&mut asking.scene.command(&name));
    assert!(held.fail(254).contains("is held back"));
    fs::create_dir(&location).unwrap();
    give_to_server(&location);
    asking.handed_out(&name, &[]);
}

#[test]
fn a_server_on_the_master_replays_segments_that_were_fetched_ahead() {
    skip_unless!(Cluster::available(15));
    let site = master(15);
    let ini = site.master_ini().to_path_buf();
    replays_what_lies_ready(site, &ini);
}
