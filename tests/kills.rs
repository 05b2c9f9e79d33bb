//! A real server under pgbench archives over TLS while its receiver, or its clients, are killed.
//! Never lends a hand: the receiver is started again as a service manager would, nothing else.
//! Invariant: whatever was acknowledged to PostgreSQL is stored as it was, and archiving catches up.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::support::oracle::sha256;
use crate::support::place::{TempDir, give_to_server, walmgr_binary};
use crate::support::site::Site;
use crate::support::{Cluster, soak, wait_for};

/// How soon everything is archived once nobody is killed any more.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(30);

/// The archiver waits a second after each failure, so two hundred take minutes.
const CLIENT_KILLS_LIMIT: Duration = Duration::from_secs(1_800);

/// Reading everything again after every kill would take most of the time.
const KILLS_BETWEEN_JUDGEMENTS: u32 = 10;

/// The archiver tells nobody what it was told, so a script between it and walmgr writes down what
/// was offered, and, synced, what was acknowledged. A killed client ends as 137 there, upon which
/// the archiver would leave for ten seconds; the script makes that a failure like any other.
fn witness(site: &Site, folder: &TempDir) -> (PathBuf, PathBuf) {
    let (script, log) = (folder.join("witness.sh"), folder.write("witness.log", ""));
    let (walmgr, ini) = (walmgr_binary().display(), site.master_ini().display());
    let text = format!(
        "#!/bin/sh\n\
         digest=$(sha256sum <\"$1\") || exit 1\n\
         echo \"offered $2 ${{digest%% *}}\" >>{log}\n\
         {walmgr} {ini} xarchive \"$1\" \"$2\"\n\
         code=$?\n\
         [ $code -le 125 ] || exit 1\n\
         [ $code -eq 0 ] || exit $code\n\
         echo \"acknowledged $2 ${{digest%% *}}\" >>{log}\n\
         sync {log}\n",
        log = log.display()
    );
    std::fs::write(&script, text).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, mode).unwrap();
    give_to_server(&script);
    (script, log)
}

/// What the witness wrote down: offered and acknowledged digests by name.
#[derive(Default)]
struct Testimony {
    offered: BTreeMap<String, Vec<String>>,
    acknowledged: BTreeMap<String, String>,
}

impl Testimony {
    fn read(log: &Path) -> Testimony {
        let mut testimony = Testimony::default();
        for line in std::fs::read_to_string(log).unwrap().lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [what, name, digest] = words[..] else {
                panic!("the witness wrote {line:?}")
            };
            if what == "acknowledged" {
                testimony
                    .acknowledged
                    .insert(name.to_owned(), digest.to_owned());
            }
            let offered = testimony.offered.entry(name.to_owned()).or_default();
            offered.push(digest.to_owned());
        }
        testimony
    }
}

/// Every acknowledged file is there, every file that is there was offered so, or shipped ahead as the server has it.
fn judge(site: &Site, log: &Path) -> Testimony {
    // In this order, because archiving goes on: what is stored was offered before, and what was
    // acknowledged was stored before.
    let stored = site.archived_names().into_iter();
    let stored: Vec<_> = stored
        .map(|name| (sha256(&site.archived(&name)), name))
        .collect();
    let testimony = Testimony::read(log);
    for (digest, name) in stored {
        let offered = testimony.offered.get(&name);
        let offered = offered.is_some_and(|offered| offered.contains(&digest));
        let own = std::fs::read(site.data().join("pg_wal").join(&name));
        let is_ahead = own.is_ok_and(|own| sha256(&own) == digest);
        assert!(offered || is_ahead, "{name} was never offered like this");
    }
    for (name, digest) in &testimony.acknowledged {
        assert!(site.holds(name), "{name} was acknowledged and is lost");
        let same = sha256(&site.archived(name)) == *digest;
        assert!(same, "{name} was acknowledged and is another file");
    }
    testimony
}

/// pgbench until it is dropped.
struct Load(Child);

impl Load {
    fn start(cluster: &Cluster) -> Load {
        cluster.pgbench(&["-i", "-q", "-s", "2"]);
        let mut pgbench = cluster.command("pgbench");
        pgbench.args(["-n", "-c", "2", "-T", "600"]);
        let pgbench = pgbench.stdout(Stdio::null()).stderr(Stdio::null());
        Load(pgbench.spawn().unwrap())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server that archives through the witness, as `walmgr setup` has arranged it.
struct Scene {
    site: Site,
    log: PathBuf,
    seed: u64,
    _folder: TempDir,
}

impl Scene {
    fn new() -> Scene {
        let cluster = Cluster::builder()
            .conf("archive_mode", "on")
            .conf("wal_level", "replica")
            .conf("wal_keep_size", "32MB")
            .start();
        let mut site = Site::with_cluster(cluster);
        site.master_command(&["setup"]).succeed();
        let folder = TempDir::new();
        let (script, log) = witness(&site, &folder);
        // What the set-up had archived was seen by nobody.
        for name in site.archived_names() {
            std::fs::remove_file(site.stored_path(name)).unwrap();
        }
        let command = format!("archive_command = '{} %p %f'", script.display());
        site.cluster_mut().append_conf(&command);
        site.cluster().reload();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let seed = u64::from(now.subsec_nanos()) | 1;
        println!("seed {seed}");
        Scene {
            site,
            log,
            seed,
            _folder: folder,
        }
    }

    /// A random moment of the load's life.
    fn moment(&mut self) -> Duration {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        Duration::from_micros(20_000 + self.seed % 200_000)
    }

    /// Ends the load and waits until all WAL up to this moment is archived.
    fn catch_up(&self, load: Load) {
        drop(load);
        let cluster = self.site.cluster();
        // Wakes the archiver, which may be waiting after three failures.
        cluster.psql("SELECT pg_create_restore_point('last')");
        let last = cluster.psql("SELECT pg_walfile_name(pg_switch_wal())");
        let begin = Instant::now();
        wait_for("archiving to catch up", CATCH_UP_LIMIT, || {
            let ready = names_in(&cluster.data().join("pg_wal/archive_status"));
            let waiting = ready.iter().any(|name| name.ends_with(".ready"));
            (!waiting && self.site.holds(&last)).then_some(())
        });
        println!("caught up within {:.1?}", begin.elapsed());
    }

    /// Judges by the witness and by what PostgreSQL itself has marked as archived and still keeps.
    fn judge(&self, kills: u32) {
        let testimony = judge(&self.site, &self.log);
        let wal = self.site.cluster().data().join("pg_wal");
        let mut compared = 0;
        for name in testimony.acknowledged.keys() {
            let done = wal.join("archive_status").join(format!("{name}.done"));
            if done.exists() {
                let same = std::fs::read(wal.join(name)).unwrap() == self.site.archived(name);
                assert!(same, "{name} differs from the master's");
                compared += 1;
            }
        }
        assert!(compared > 0);
        let cluster = self.site.cluster();
        println!(
            "{kills} kills, {} segments acknowledged, {compared} compared with the master's, {} failed \
             attempts",
            testimony.acknowledged.len(),
            cluster.psql("SELECT failed_count FROM pg_stat_archiver"),
        );
        assert!(testimony.acknowledged.len() as u64 > u64::from(kills) / 4);
    }
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn kills_wanted() -> u32 {
    if soak() { 200 } else { 15 }
}

#[test]
fn killing_the_receiver_under_load_loses_nothing_and_needs_no_help() {
    skip_unless!(Cluster::available(15));
    let mut scene = Scene::new();
    let load = Load::start(scene.site.cluster());
    for kills in 0..kills_wanted() {
        sleep(scene.moment());
        scene.site.receiver.kill9();
        let completed = scene.site.completed_wals();
        if kills.is_multiple_of(KILLS_BETWEEN_JUDGEMENTS) {
            judge(&scene.site, &scene.log);
        }
        scene.site.start_receiver();
        let stale = names_in(&completed)
            .iter()
            .filter(|name| name.contains(".damaged"))
            .count();
        assert_eq!(stale, 0);
    }
    scene.catch_up(load);
    scene.judge(kills_wanted());
    scene.site.restart_receiver();
    assert_eq!(scene.site.temporaries(), [""; 0]);
}

/// The clients that run for this site at the moment.
fn clients(site: &Site) -> Vec<u32> {
    let ini = site.master_ini().to_str().unwrap().to_owned();
    let is_client = |pid: &u32| {
        let process = Path::new("/proc").join(pid.to_string());
        let Ok(line) = std::fs::read(process.join("cmdline")) else {
            return false;
        };
        let line = String::from_utf8_lossy(&line).into_owned();
        let words: Vec<&str> = line.split('\0').collect();
        words.first().copied() == walmgr_binary().to_str() && words.contains(&ini.as_str())
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(is_client)
        .collect()
}

#[test]
fn fault_4_killing_clients_under_load_loses_nothing_and_needs_no_help() {
    skip_unless!(Cluster::available(15));
    let mut scene = Scene::new();
    let load = Load::start(scene.site.cluster());
    let mut kills = 0;
    let begin = Instant::now();
    while kills < kills_wanted() {
        assert!(begin.elapsed() < CLIENT_KILLS_LIMIT, "{kills} kills");
        // Somewhere in the life of a client, which lasts some ten milliseconds.
        let late = scene.moment() / 20;
        let found = wait_for("a client", CATCH_UP_LIMIT, || clients(&scene.site).pop());
        sleep(late);
        let mut kill = Command::new("kill");
        kill.args(["-9", &found.to_string()]).stderr(Stdio::null());
        // Only what is still a client of this site.
        if clients(&scene.site).contains(&found) && kill.status().unwrap().success() {
            kills += 1;
            if kills.is_multiple_of(KILLS_BETWEEN_JUDGEMENTS) {
                judge(&scene.site, &scene.log);
            }
        }
    }
    scene.catch_up(load);
    scene.judge(kills);
    assert!(scene.site.receiver.is_running());
    wait_for("the last upload to be cleared", CATCH_UP_LIMIT, || {
        scene.site.temporaries().is_empty().then_some(())
    });
}
