//! What the master gets back from the standby: the list of backups, files of the archive, whole sets.
//! Never trusts an exit code alone: what lies at the destination is looked at too.
//! Invariant: what is there is what is stored, and what is not whole is not there.

mod ahead;
mod difference;
mod difference_kills;
mod restore;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use walmgr_protocol::message::fetch::{Fetch, GetFile, GetSet};
use walmgr_protocol::message::{ErrorCode, Message};
use walmgr_protocol::names::Lsn;

use crate::support::peer::Peer;
use crate::support::place::give_to_server;
use crate::support::proxy::{Direction, Fault};
use crate::support::{Output, Site};

/// An archive and a folder that PostgreSQL would call its data directory, on the master.
struct Scene {
    site: Site,
    data: PathBuf,
}

impl Scene {
    fn new() -> Scene {
        Scene::of(Site::start())
    }

    fn of(site: Site) -> Scene {
        let data = site.home().create_dir("pgdata");
        fs::create_dir(data.join("pg_wal")).unwrap();
        give_to_server(&data);
        Scene { site, data }
    }

    fn store(&self, number: u64) -> String {
        let name = self.site.segment_name(number);
        self.site.write_segment(number);
        self.site.archive(&name).succeed();
        name
    }

    fn plant(&self, name: &str, content: &[u8]) {
        let path = self.site.unpacked_path(name);
        fs::write(&path, content).unwrap();
        give_to_server(&path);
    }

    /// A directory that is listed as a set.
    fn plant_set(&self, name: &str, label: &str) {
        let set = self.site.completed_wals().with_file_name(name);
        fs::create_dir(&set).unwrap();
        fs::write(set.join("backup_label"), label).unwrap();
        give_to_server(&set);
    }

    fn command(&self, name: &str) -> Command {
        let mut command = self
            .site
            .master_walmgr(&["xrestore", name, "pg_wal/RECOVERYXLOG"]);
        command.current_dir(&self.data);
        command
    }

    #[track_caller]
    fn serves(&self, name: &str) {
        let restored = self.data.join("pg_wal/RECOVERYXLOG");
        Output::of(&mut self.command(name)).succeed();
        assert!(fs::read(&restored).unwrap() == self.site.archived(name));
        fs::remove_file(restored).unwrap();
        self.left_nothing();
    }

    #[track_caller]
    fn lacks(&self, name: &str) {
        let ended = Output::of(&mut self.command(name));
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
    }

    /// The master's key may do only this from now on.
    fn limit_rights(&self, rights: &str) {
        self.site.standby_command(&["revoke", "master"]).succeed();
        let key = self.site.master_fingerprint();
        let words = ["authorize", &key, "master", "--rights", rights];
        self.site.standby_command(&words).succeed();
        self.site.receiver.signal(rustix::process::Signal::HUP);
        crate::support::wait_for("the new rights", Duration::from_secs(10), || {
            let listed = self.site.master_command(&["listbackups"]);
            let is_allowed = listed.code == Some(0);
            (is_allowed == rights.contains("read")).then_some(())
        });
    }
}

fn label(second: u32) -> String {
    format!(
        "START WAL LOCATION: 0/300028 (file 000000010000000000000003)\n\
         CHECKPOINT LOCATION: 0/300060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
         START TIME: 2026-01-02 03:04:{second:02} UTC\nLABEL: FullBackup\nSTART TIMELINE: 1\n"
    )
}

#[test]
fn the_master_lists_what_the_standby_lists_over_more_than_one_page() {
    let _user = skip_unless!(crate::support::place::server_user());
    let scene = Scene::new();
    let both = |words: &[&str]| {
        let standby = scene.site.standby_command(words).succeed();
        assert_eq!(scene.site.master_command(words).succeed(), standby);
        standby
    };
    assert_eq!(both(&["listbackups"]).trim(), "There are no backups.");
    scene.plant_set("data.master", &label(0));
    for number in 0..70 {
        let text = match number {
            7 => "nonsense".to_owned(),
            number => label(number % 60),
        };
        scene.plant_set(&format!("data.master.{number}"), &text);
    }
    let table = both(&["listbackups"]);
    assert_eq!(table.lines().count(), 4 + 71, "{table}");
    assert!(
        table.contains("data.master.7      ") || table.contains("unreadable"),
        "{table}"
    );
    let sets = scene.site.listed_sets();
    assert_eq!(sets.len(), 71);
    assert_eq!(sets[70]["set"], "data.master.69");
}

#[test]
fn the_list_needs_no_data_directory() {
    let _user = skip_unless!(crate::support::place::server_user());
    let scene = Scene::new();
    fs::remove_dir_all(scene.site.data()).unwrap();
    let listed = scene.site.master_command(&["listbackups"]).succeed();
    assert_eq!(listed.trim(), "There are no backups.");
}

#[test]
fn fault_72_only_what_is_proven_absent_is_absent_on_the_master_too() {
    let _user = skip_unless!(crate::support::place::server_user());
    let scene = Scene::new();
    let (third, fifth) = (scene.store(3), scene.store(5));
    scene.plant("00000002.history", b"1\t0/580000\tpromoted\n");
    scene.serves(&third);
    scene.serves("00000002.history");
    scene.lacks(&scene.site.segment_name(6));
    scene.lacks("00000003.history");
    let fourth = scene.site.segment_name(4);
    scene.refuses(&fourth, &format!("{fifth} is there"));
    scene.plant(&format!("{fourth}.damaged"), b"x");
    scene.refuses(&fourth, "set aside");
}

#[test]
fn fault_73_a_damaged_file_reaches_no_server_on_the_master() {
    let _user = skip_unless!(crate::support::place::server_user());
    let scene = Scene::new();
    let name = scene.store(3);
    let good = scene.site.archived(&name);
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    let foreign = scene.site.segment(4, "other");
    for wrong in [
        flipped,
        vec![0; good.len()],
        good[..good.len() - 1].to_vec(),
        foreign,
    ] {
        scene.plant(&name, &wrong);
        scene.refuses(&name, &name);
    }
    scene.plant(&name, &good);
    scene.serves(&name);
}

#[test]
fn fault_113_what_lies_before_the_oldest_set_keeps_no_master_from_it() {
    let _user = skip_unless!(crate::support::place::server_user());
    let scene = Scene::new();
    let first = scene.store(3);
    scene.store(4);
    let before = scene.site.segment_name(2);
    let forged = scene.site.forged_segment(2);
    scene.site.write_wal(&before, forged);
    scene.site.archive(&before).succeed();
    scene.refuses(&first, "or this one is damaged");
    scene.plant_set("data.master", &label(5));
    scene.serves(&first);
    // An older set needs what lies before it.
    let older = label(4).replace("0/3000", "0/2000");
    let older = older.replace("000000010000000000000003", &before);
    scene.plant_set("data.master.0", &older);
    scene.refuses(&first, "or this one is damaged");
}

#[test]
fn fault_74_whatever_else_goes_wrong_is_254() {
    let _user = skip_unless!(crate::support::place::server_user());
    let site = Site::builder().master_set("push_timeout", "2").build();
    let mut scene = Scene::of(site);
    let name = scene.store(3);
    scene.limit_rights("push");
    scene.refuses(&name, "`read`");
    let listed = scene.site.master_command(&["listbackups"]);
    listed.fail_last(1, "`read`");
    scene.limit_rights("read");
    scene.serves(&name);
    scene.refuses("not-a-wal-file", "not-a-wal-file");
    scene.site.receiver.stop();
    let begun = Instant::now();
    scene.refuses(&name, "connect");
    assert!(
        begun.elapsed() < Duration::from_secs(60),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn fault_21_a_link_that_breaks_is_tried_again() {
    let _user = skip_unless!(crate::support::place::server_user());
    let scene = Scene::of(
        Site::builder()
            .proxied()
            .master_set("push_timeout", "20")
            .build(),
    );
    let name = scene.store(3);
    let before = scene.site.proxy().recordings().len();
    scene.serves(&name);
    let whole = scene.site.proxy().recordings().remove(before);
    let bytes = whole.to_client.len() as u64;
    for at_byte in [0, 700, bytes / 2, bytes * 3 / 4, bytes - 100] {
        let cut = (Direction::ToClient, Fault::Cut { at_byte });
        let reset = (Direction::ToClient, Fault::Reset { at_byte });
        for fault in [cut, reset] {
            scene.site.proxy().set_faults([fault]);
            let running = std::thread::scope(|scope| {
                let running = scope.spawn(|| Output::of(&mut scene.command(&name)));
                std::thread::sleep(Duration::from_millis(500));
                scene.site.proxy().set_faults([]);
                running.join().unwrap()
            });
            running.succeed();
            let restored = scene.data.join("pg_wal/RECOVERYXLOG");
            assert!(fs::read(&restored).unwrap() == scene.site.archived(&name));
            fs::remove_file(restored).unwrap();
            scene.left_nothing();
        }
    }
}

#[test]
fn fault_73_a_segment_that_travels_as_it_is_stored_is_whole_or_refused() {
    let _user = skip_unless!(crate::support::place::server_user());
    let scene = Scene::of(Site::builder().proxied().build());
    let name = scene.store(3);
    let path = scene.site.stored_path(&name);
    let stored = fs::read(&path).unwrap();
    let before = scene.site.proxy().recordings().len();
    scene.serves(&name);
    let sent = scene.site.proxy().recordings().remove(before).to_client;
    // The certificate, and what the receiver says beside it.
    let most = stored.len() + (8 << 10);
    assert!(sent.len() < most, "{} of {}", sent.len(), stored.len());
    for at in (0..stored.len()).step_by(stored.len() / 12) {
        let mut flipped = stored.clone();
        flipped[at] ^= 4;
        fs::write(&path, flipped).unwrap();
        scene.refuses(&name, &name);
    }
    // Sound by itself, and not what was acknowledged.
    let other = scene.store(4);
    fs::copy(scene.site.stored_path(&other), &path).unwrap();
    scene.refuses(&name, &name);
    fs::write(&path, stored).unwrap();
    scene.serves(&name);
}

#[test]
fn a_rehearsal_looks_and_places_nothing() {
    let _user = skip_unless!(crate::support::place::server_user());
    let scene = Scene::new();
    let name = scene.store(3);
    let mut command = scene
        .site
        .master_walmgr(&["-n", "xrestore", &name, "pg_wal/RECOVERYXLOG"]);
    Output::of(command.current_dir(&scene.data)).succeed();
    scene.left_nothing();
}

#[test]
fn what_has_no_place_is_answered_in_words_and_the_receiver_goes_on() {
    let _user = skip_unless!(crate::support::place::server_user());
    let scene = Scene::of(Site::builder().plain().build());
    let name = scene.store(3);
    let file = || {
        Message::Fetch(Fetch::GetFile(GetFile {
            name: name.parse().unwrap(),
            compression: 1,
        }))
    };
    let cluster = Some(scene.site.facts().cluster);
    let mut peer = Peer::connect(scene.site.address(), cluster);
    peer.send(0, &file());
    assert_eq!(peer.last_words().code, ErrorCode::Misbehaved);
    // A set nobody has, then a file on the same channel.
    let mut peer = Peer::connect(scene.site.address(), cluster);
    let set = Message::Fetch(Fetch::GetSet(GetSet {
        start: Lsn(1),
        timestamp: String::new(),
        offset: u64::MAX,
        compression: 0,
    }));
    peer.send(1, &set);
    assert!(matches!(peer.answer(1), Message::Fetch(Fetch::NotFound(_))));
    peer.send(1, &file());
    assert!(matches!(peer.answer(1), Message::Data(_)));
    scene.serves(&name);
}

/// Names in a directory, sorted.
fn names_in(path: &Path) -> Vec<String> {
    let names = fs::read_dir(path).unwrap();
    let mut names: Vec<String> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
