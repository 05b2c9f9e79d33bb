//! `backup` on the standby: sets made of a server that replays, hot and cold, and what becomes of them.
//! Never calls a set good because it is listed: pg_verifybackup, a start and its pages say so. Invariant: the master
//! sees no session of walmgr's while a set is made.

mod pages;
mod refusals;
mod sets;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::load::drain;
use crate::replay::copy_of_master;
use crate::support::{Cluster, Output, Site, run, wait_for};

const PATIENCE: Duration = Duration::from_secs(120);

/// A master that archives, and a standby of it that replays from the archive.
struct Pair {
    standby: Cluster,
    site: Site,
}

impl Pair {
    fn new(major: u8, hot: bool) -> Pair {
        Pair::of(Cluster::builder().major(major), hot)
    }

    fn of(builder: crate::support::cluster::Builder, hot: bool) -> Pair {
        let cluster = builder.conf("archive_mode", "on").start();
        let site = Site::with_cluster(cluster);
        site.master_command(&["setup"]).succeed();
        site.cluster().pgbench(&["-i", "-q", "-s", "2"]);
        Pair::on(site, hot)
    }

    /// With the archive, and so the sets, in this folder; its server is a small one.
    fn with_archive(folder: &Path, hot: bool) -> Pair {
        let cluster = Cluster::builder().conf("archive_mode", "on").start();
        let site = Site::builder().cluster(cluster).archive(folder).build();
        site.master_command(&["setup"]).succeed();
        Pair::on(site, hot)
    }

    /// Adds the standby.
    fn on(mut site: Site, hot: bool) -> Pair {
        let hot = format!("hot_standby = {}", if hot { "on" } else { "off" });
        // Few buffers, so that pages are written out while they are replayed.
        let settings = [hot.as_str(), "shared_buffers = 1MB"];
        let mut standby = copy_of_master(&mut site, "replaying", &settings);
        crate::replay::signal_file(&standby, "standby.signal");
        site.standby_set("slave_data", &standby.data().display().to_string());
        standby.start();
        let pair = Pair { standby, site };
        pair.catch_up();
        pair
    }

    /// Waits until the standby has asked for what is not there yet.
    fn catch_up(&self) {
        self.site.cluster().psql("CHECKPOINT");
        drain(&self.site);
        let last = crate::replay::newest_segment(&self.site);
        crate::replay::wait_until_restored(&self.standby, &last);
    }

    fn backup(&self) -> Output {
        self.site.standby_command(&["backup"])
    }

    fn listed(&self) -> Vec<String> {
        let json = self.site.standby_command(&["listbackups", "--json"]);
        let sets: serde_json::Value = serde_json::from_str(&json.succeed()).unwrap();
        let sets = sets.as_array().unwrap().iter();
        sets.map(|set| set["set"].as_str().unwrap().to_owned())
            .collect()
    }

    fn set(&self, name: &str) -> PathBuf {
        self.site.archive_folder().join(name)
    }

    /// What lies beside the archive's folders, sorted; hidden files aside.
    fn beside(&self) -> Vec<String> {
        let entries = fs::read_dir(self.site.archive_folder()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let is_set = |name: &String| name.starts_with("data.master");
        let mut names: Vec<String> = names.filter(is_set).collect();
        names.sort();
        names
    }

    /// Removes the newest set, if it was not there before.
    fn take_back(&self, before: &[String]) {
        let mut names = self.beside();
        if names.len() > before.len() {
            // `data.master` comes first, then `.0`, `.1` and so on.
            names.sort_by_key(|name| name.len());
            fs::remove_dir_all(self.set("data.master")).unwrap();
            for pair in names.windows(2) {
                fs::rename(self.set(&pair[1]), self.set(&pair[0])).unwrap();
            }
        }
    }

    #[track_caller]
    fn verify(&self, name: &str) {
        // That of another version does not know the manifest.
        if !self.site.cluster().bin().join("pg_verifybackup").exists() {
            return;
        }
        let mut verify = self.site.cluster().command("pg_verifybackup");
        verify.args(["-n", "-i", "tmpspc"]);
        run(verify.arg(self.set(name))).unwrap();
    }
}

/// A backup that runs beside the test, and is killed with it.
struct Running(Option<Child>);

impl Running {
    /// Stopped in the middle of its copy.
    fn halted(pair: &Pair) -> Running {
        for _ in 0..20 {
            let before = pair.beside();
            let running = Running::start(pair);
            let incoming = pair.set("data.master.incoming");
            let begun = std::time::Instant::now();
            while !has_content(&incoming.join("base")) {
                assert!(begun.elapsed() < PATIENCE, "no copy begins");
                std::thread::sleep(Duration::from_millis(1));
            }
            running.signal(Signal::STOP);
            // The control file is the last to be copied.
            if incoming.exists() && !incoming.join("global/pg_control").exists() {
                return running;
            }
            running.signal(Signal::CONT);
            running.end();
            pair.take_back(&before);
        }
        panic!("every copy was over before it could be stopped");
    }

    fn start(pair: &Pair) -> Running {
        let mut backup = pair.site.standby_walmgr(&["backup"]);
        backup
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Running(Some(backup.spawn().unwrap()))
    }

    fn signal(&self, signal: Signal) {
        let child = self.0.as_ref().unwrap();
        // It may have ended by itself.
        let _ = kill_process(Pid::from_child(child), signal);
    }

    fn end(mut self) -> Output {
        self.0.take().unwrap().wait_with_output().unwrap().into()
    }
}

/// Whether a file below the databases has anything in it.
fn has_content(base: &Path) -> bool {
    let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files = entries(base).flat_map(|database| entries(&database.path()));
    files.any(|file| file.metadata().is_ok_and(|found| found.len() > 0))
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The oldest and the newest version, as far as the machine has them.
fn majors() -> Vec<u8> {
    let mut majors = Cluster::available_majors();
    majors.retain(|major| [15, 18].contains(major));
    majors
}
