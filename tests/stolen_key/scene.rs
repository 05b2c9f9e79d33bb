//! A genuine master with its archive, and what of it must be there after each attack.
//! Never trusts a name: content decides. Invariant: only what the genuine master was told is stored
//! counts as acknowledged.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use walmgr_protocol::names::SegmentName;

use super::moves::{Attacker, Move};
use crate::support::hostile::Key;
use crate::support::oracle::sha256;
use crate::support::place::give_to_server;
use crate::support::{Cluster, Output, Site, wait_for, walmgr_binary};

/// How soon the genuine master archives when an attack is over.
const ARCHIVES_WITHIN: Duration = Duration::from_secs(5);

/// The promise of docs/explain/receiver.md, and what the receiver needs for itself.
const RECEIVER_KIB: u64 = 32 << 10;
const CONNECTION_KIB: u64 = 4 << 10;
/// The attacker's, the genuine master's and the questions of this test.
const CONNECTIONS: u64 = 8;

pub struct Scene {
    site: Site,
    keys: BTreeMap<&'static str, Key>,
    /// Sets by their labels, with the digest of every small file that decides.
    sets: BTreeMap<String, String>,
    /// What the rotation of the second genuine set left begins with this.
    floor: String,
    rows: u64,
    chosen: u64,
    /// What receivers took that were stopped since.
    peak_kib: u64,
    slowest: Duration,
    refusals: u64,
}

impl Scene {
    pub fn new() -> Scene {
        let cluster = Cluster::builder()
            .conf("archive_mode", "on")
            .conf("wal_keep_size", "4GB")
            .start();
        let site = Site::builder()
            .cluster(cluster)
            .standby_set("keep_backups", "2")
            .build();
        site.master_command(&["setup"]).succeed();
        site.cluster().psql("CREATE TABLE t (n int, pad text)");
        let mut scene = Scene {
            site,
            keys: BTreeMap::new(),
            sets: BTreeMap::new(),
            floor: String::new(),
            rows: 0,
            chosen: 0,
            peak_kib: 0,
            slowest: Duration::ZERO,
            refusals: 0,
        };
        for rights in super::RIGHTS {
            let key = Key::authorized(&scene.site, &rights.replace(',', "-"), rights);
            scene.keys.insert(rights, key);
        }
        for _ in 0..2 {
            scene.work();
            scene.site.master_command(&["backup"]).succeed();
        }
        scene.work();
        scene.site.master_command(&["sync"]).succeed();
        scene.floor = scene.site.archived_names().remove(0);
        scene.sets = scene.read_sets();
        assert_eq!(scene.sets.len(), 2);
        scene
    }

    pub fn figures(&self) -> String {
        format!(
            "{} refusals, archived at most {:.1?} after an attack, {} chosen, receiver at most {} KiB",
            self.refusals,
            self.slowest,
            self.chosen,
            self.peak_kib.max(self.site.receiver.memory_peak_kib())
        )
    }

    fn work(&mut self) {
        let sql = "INSERT INTO t SELECT g, md5(random()::text) FROM generate_series(1, 100) g; \
             SELECT pg_switch_wal()";
        self.site.cluster().psql(sql);
        self.rows += 100;
        self.archived().unwrap();
    }

    fn current(&self) -> SegmentName {
        let text = self
            .site
            .cluster()
            .psql("SELECT pg_walfile_name(pg_current_wal_lsn())");
        text.parse().unwrap()
    }

    /// Runs an attack, and looks whether it did any harm.
    pub fn attack(&mut self, rights: &'static str, sequence: &[Move]) -> Result<(), String> {
        let mut attacker = Attacker::new(&self.site, &self.keys[rights], self.current());
        for step in sequence {
            attacker.make(*step);
        }
        self.refusals += attacker.refusals().len() as u64;
        let told = attacker.refusals().join("\n  ");
        drop(attacker);
        let judged = self.judge();
        judged.map_err(|why| {
            let log = self.site.receiver.log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            format!(
                "{why}\ntold:\n  {told}\nlog, newest first:\n{}",
                tail.join("\n")
            )
        })
    }

    fn judge(&mut self) -> Result<(), String> {
        let begun = Instant::now();
        let sql =
            "INSERT INTO t SELECT g, 'x' FROM generate_series(1, 10) g; SELECT pg_switch_wal()";
        self.site.cluster().psql(sql);
        self.rows += 10;
        self.archived()?;
        self.slowest = self.slowest.max(begun.elapsed());
        if !self.site.receiver.is_running() {
            return Err("the receiver is gone".to_owned());
        }
        let log = self.site.receiver.log();
        if let Some(line) = log.lines().find(|line| line.contains("panic")) {
            return Err(line.to_owned());
        }
        let (peak, bound) = (
            self.site.receiver.memory_peak_kib(),
            RECEIVER_KIB + CONNECTIONS * CONNECTION_KIB,
        );
        if peak > bound {
            return Err(format!("the receiver took {peak} KiB, {bound} are allowed"));
        }
        self.every_byte_is_there()?;
        let sets = self.read_sets();
        match self
            .sets
            .iter()
            .find(|(label, digest)| sets.get(*label) != Some(digest))
        {
            None => Ok(()),
            Some((label, _)) => Err(format!("the set {label} is gone or another one")),
        }
    }

    /// Waits until everything that is finished is archived. Where a forged file has the name, the
    /// administrator chooses, which is what the refusal tells him to do.
    fn archived(&mut self) -> Result<(), String> {
        let begun = Instant::now();
        let status = self.site.data().join("pg_wal/archive_status");
        let mut since = Instant::now();
        loop {
            let names = fs::read_dir(&status).unwrap().flatten();
            let mut ready = names.filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                name.strip_suffix(".ready").map(str::to_owned)
            });
            let Some(name) = ready.next() else {
                return Ok(());
            };
            let differs = self.site.stored_path(format!("{name}.differs"));
            if differs.exists() && self.choose(&name)? {
                since = Instant::now();
                // An archiver that was refused three times sleeps for a minute unless it is woken.
                self.site.cluster().psql("SELECT pg_switch_wal()");
            }
            if since.elapsed() > ARCHIVES_WITHIN || begun.elapsed() > 4 * ARCHIVES_WITHIN {
                return Err(format!(
                    "{name} is not archived within {:.1?}",
                    begun.elapsed()
                ));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Puts the genuine file in the place of the forged one; `false` if that was done already.
    fn choose(&mut self, name: &str) -> Result<bool, String> {
        let genuine = fs::read(self.site.data().join("pg_wal").join(name)).unwrap();
        if self.site.archived(name) == genuine {
            return Ok(false);
        }
        self.peak_kib = self.peak_kib.max(self.site.receiver.memory_peak_kib());
        self.site.receiver.stop();
        if self.site.archived(name) == genuine {
            // It got its name before the receiver had ended, as what goes on with the archive does.
            self.site.start_receiver();
            return Ok(true);
        }
        // Others may have been displaced under this name before.
        let offered = format!("{name}.differs");
        let chosen = self.site.standby_command(&["choose", &offered, "--take"]);
        self.site.start_receiver();
        self.chosen += 1;
        match chosen.code {
            Some(0) => Ok(true),
            _ => Err(format!("choose {name}: {}{}", chosen.stdout, chosen.stderr)),
        }
    }

    /// Everything that PostgreSQL was told is archived is there, byte by byte.
    fn every_byte_is_there(&self) -> Result<(), String> {
        let wal = self.site.data().join("pg_wal");
        for entry in fs::read_dir(wal.join("archive_status")).unwrap().flatten() {
            let file = entry.file_name().into_string().unwrap();
            let Some(name) = file.strip_suffix(".done") else {
                continue;
            };
            if name < self.floor.as_str() {
                continue;
            }
            let stored = fs::read(self.site.unpacked_path(name));
            let stored = stored.map_err(|error| format!("{name}: {error}"))?;
            if fs::read(wal.join(name)).is_ok_and(|genuine| genuine != stored) {
                return Err(format!("{name} was acknowledged and is another file"));
            }
        }
        Ok(())
    }

    /// Label and manifest of each set, as its files have them.
    fn read_sets(&self) -> BTreeMap<String, String> {
        let mut sets = BTreeMap::new();
        for entry in fs::read_dir(self.site.archive_folder()).unwrap().flatten() {
            let path = entry.path();
            let (Ok(label), Ok(manifest)) = (
                fs::read_to_string(path.join("backup_label")),
                fs::read(path.join("backup_manifest")),
            ) else {
                continue;
            };
            if path
                .extension()
                .is_none_or(|extension| extension != "incoming")
            {
                sets.insert(label, sha256(&manifest));
            }
        }
        sets
    }

    fn folder_of(&self, label: &str) -> PathBuf {
        let entries = fs::read_dir(self.site.archive_folder()).unwrap().flatten();
        let mut paths = entries.map(|entry| entry.path());
        let is_it = |path: &PathBuf| {
            fs::read_to_string(path.join("backup_label")).is_ok_and(|found| found == label)
        };
        paths.find(is_it).expect("a set that is there")
    }

    /// The older of the two genuine sets replays to the end and has every row.
    pub fn everything_is_restorable(mut self) {
        self.site.master_command(&["sync"]);
        let rows = self.rows;
        let label = self.sets.keys().next().unwrap().clone();
        let set = self.folder_of(&label);
        let set = set.file_name().unwrap().to_str().unwrap().to_owned();
        self.site.cluster_mut().kill9();
        let data = self.site.home().join("replaying");
        self.site
            .standby_set("slave_data", &data.display().to_string());
        self.site.standby_command(&["restore", &set]).succeed();
        let conf = data.join("postgresql.conf");
        let mut text = fs::read_to_string(&conf).unwrap();
        let (walmgr, ini) = (walmgr_binary().display(), self.site.standby_ini().display());
        text.push_str(&format!(
            "\nrestore_command = '{walmgr} {ini} xrestore %f %p %r'\n"
        ));
        fs::write(&conf, text).unwrap();
        give_to_server(&conf);
        let mut server = Cluster::on_directory(15, &data);
        server.start();
        let last = self.last_archived();
        wait_for(&last, Duration::from_secs(60), || {
            let line = format!("restored log file \"{last}\" from archive");
            assert!(server.is_running(), "{}", server.log());
            server.log().contains(&line).then_some(())
        });
        // Forged files beyond the end are acknowledged too, and a boot does not hide that it lacks
        // them; what counts here is that no genuine row is missing.
        let booted = self.site.standby_command(&["boot"]);
        if booted.code != Some(0) {
            let forced: Output = self.site.standby_command(&["boot", "--force"]);
            println!("boot: {}boot --force: {}", booted.stderr, forced.stderr);
            assert!(server.is_running(), "{}", server.log());
        }
        assert_eq!(server.psql("SELECT count(*) FROM t"), rows.to_string());
    }

    fn last_archived(&self) -> String {
        let status = self.site.data().join("pg_wal/archive_status");
        let names = fs::read_dir(status).unwrap().flatten();
        let done = names.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            name.strip_suffix(".done")
                .filter(|name| name.len() == 24)
                .map(str::to_owned)
        });
        done.max().unwrap()
    }
}
