//! A standby with its receiver, and a master that archives to it: a real cluster, or a data
//! directory that only looks like one. Never touches a receiver it did not start.
//! Invariant: when a site is dropped, no process of it is left, however the test ended.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use walmgr::test_support::config;
use walmgr::test_support::master::ask::Asking;
use walmgr::test_support::master::cluster::ClusterFacts;
use walmgr::test_support::wal::record::{RM_XLOG, XLOG_NOOP};
use walmgr::test_support::wal::writer::WalWriter;
use walmgr_protocol::message::{ClusterIdentity as Facts, Overview, SetupDone};
use walmgr_protocol::names::{SegmentName, SystemId, WalSegmentSize};

use super::host::HostedAt;
use super::imitation::{segment_of, write_data_directory};
use super::outcome::Output;
use super::place::{TempDir, give_to_server, walmgr};
use super::proxy::Proxy;
use super::receiver::Receiver;
use super::stored;
use super::{Cluster, free_port, wait_for};

/// Until two lists in a row say the same: a receiver measures two sets a second.
const LIST_LIMIT: Duration = Duration::from_secs(60);

/// The settings of an ini file, in order; setting one again replaces it.
#[derive(Debug, Clone, Default)]
pub(super) struct Ini(Vec<(String, String)>);

impl Ini {
    pub(super) fn set_all(&mut self, other: &Ini) {
        for (key, value) in &other.0 {
            self.set(key, value);
        }
    }

    fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(known, _)| known == key)
    }

    fn unset(&mut self, key: &str) {
        self.0.retain(|(known, _)| known != key);
    }

    pub(super) fn set(&mut self, key: &str, value: &str) {
        self.unset(key);
        self.0.push((key.to_owned(), value.to_owned()));
    }

    pub(super) fn write(&self, path: &Path) {
        let mut text = String::from("[walmgr]\n");
        for (key, value) in &self.0 {
            text.push_str(&format!("{key} = {}\n", value.replace('%', "%%")));
        }
        // A server's restore_command may read it at any moment, and must not find half of it.
        let new = path.with_extension("new");
        std::fs::write(&new, text).unwrap();
        give_to_server(&new);
        std::fs::rename(new, path).unwrap();
    }
}

/// What a site shall be like.
pub struct Builder {
    cluster: Option<Cluster>,
    facts: Facts,
    timeline: u32,
    tls: bool,
    proxied: bool,
    running: bool,
    bound: bool,
    archive: Option<PathBuf>,
    master_folder: String,
    standby: Ini,
    master: Ini,
    hosted: Option<HostedAt>,
}

impl Builder {
    /// The standby is a cluster of a host, whose receiver serves it: see [`super::Host::add`].
    pub(super) fn hosted(mut self, at: HostedAt) -> Self {
        self.hosted = Some(at);
        self.running = false;
        self.bound = false;
        self
    }

    /// The master is this real cluster, not a data directory that looks like one.
    pub fn cluster(mut self, cluster: Cluster) -> Self {
        self.cluster = Some(cluster);
        self
    }

    /// Major version of a data directory without a server; 15 unless said otherwise.
    pub fn major(mut self, major: u8) -> Self {
        self.facts.postgres_major = u16::from(major);
        self
    }

    /// Segment size of a data directory without a server; 1 MiB unless said otherwise.
    pub fn segment_size_mb(mut self, size_mb: u32) -> Self {
        self.facts.segment_size = WalSegmentSize::new(size_mb << 20).unwrap();
        self
    }

    /// System identifier of a data directory without a server.
    pub fn system_id(mut self, system_id: u64) -> Self {
        self.facts.system_id = SystemId(system_id);
        self
    }

    /// Timeline of a data directory without a server; 1 unless said otherwise.
    pub fn timeline(mut self, timeline: u32) -> Self {
        self.timeline = timeline;
        self
    }

    /// `tls = off` on both sides.
    pub fn plain(mut self) -> Self {
        self.tls = false;
        self
    }

    /// The master reaches the receiver through a [`Proxy`].
    pub fn proxied(mut self) -> Self {
        self.proxied = true;
        self
    }

    /// The archive's folders lie here (on a file system of its own, for example), not in the
    /// site's folder.
    pub fn archive(mut self, folder: &Path) -> Self {
        self.archive = Some(folder.to_path_buf());
        self
    }

    /// The folder of master.ini below the site's; may have blanks and quotes in it.
    pub fn master_folder(mut self, name: &str) -> Self {
        name.clone_into(&mut self.master_folder);
        self
    }

    /// One more setting of standby.ini.
    pub fn standby_set(mut self, key: &str, value: &str) -> Self {
        self.standby.set(key, value);
        self
    }

    /// One more setting of master.ini.
    pub fn master_set(mut self, key: &str, value: &str) -> Self {
        self.master.set(key, value);
        self
    }

    /// The archive is not bound to the master's cluster yet.
    pub fn unbound(mut self) -> Self {
        self.bound = false;
        self
    }

    /// The receiver does not run yet, so the archive is not bound either.
    pub fn stopped(mut self) -> Self {
        self.running = false;
        self.bound = false;
        self
    }

    /// Makes everything, and unless said otherwise starts the receiver and binds the archive.
    pub fn build(self) -> Site {
        let home = TempDir::new();
        let standby_home = home.create_dir("standby");
        let master_home = home.join(&self.master_folder);
        std::fs::create_dir_all(&master_home).unwrap();
        give_to_server(&master_home);
        let archive = self.archive.unwrap_or_else(|| standby_home.join("archive"));
        let (facts, data) = match &self.cluster {
            Some(cluster) => (None, cluster.data().to_path_buf()),
            None => (Some(self.facts), master_home.join("data")),
        };
        let standby_ini = match &self.hosted {
            Some(at) => at.cluster_ini.clone(),
            None => standby_home.join("standby.ini"),
        };
        let port = self.hosted.as_ref().map(|at| at.address.port());
        let mut site = Site {
            archive,
            standby_ini,
            receiver_fingerprint: self.hosted.map(|at| at.fingerprint),
            master_ini: master_home.join("master.ini"),
            standby: Ini::default(),
            master: Ini::default(),
            facts,
            timeline: self.timeline,
            data,
            port: port.unwrap_or_else(free_port),
            receiver: Receiver::new(standby_home.join("receiver.log")),
            proxy: None,
            cluster: self.cluster,
            tls: self.tls,
            home,
        };
        site.write_data_directory();
        site.standby = site.standby_settings();
        site.master = site.master_settings();
        site.standby.set_all(&self.standby);
        site.master.set_all(&self.master);
        site.standby.write(&site.standby_ini);
        site.master.write(&site.master_ini);
        site.standby_command(&["setup"]).succeed();
        if site.tls {
            site.introduce();
        }
        if self.running {
            site.start_receiver();
        }
        if self.proxied {
            let proxy = Proxy::start(site.address());
            site.route(proxy.address());
            site.proxy = Some(proxy);
        }
        if self.bound {
            site.bind();
        }
        site
    }
}

/// A standby with its receiver, and a master.
///
/// The receiver goes first when this is dropped, the cluster after it.
pub struct Site {
    /// The standby's daemon.
    pub receiver: Receiver,
    /// Between master and receiver, if asked for.
    pub proxy: Option<Proxy>,
    /// The master's server, if it is real.
    pub cluster: Option<Cluster>,
    archive: PathBuf,
    standby_ini: PathBuf,
    master_ini: PathBuf,
    standby: Ini,
    master: Ini,
    facts: Option<Facts>,
    timeline: u32,
    data: PathBuf,
    port: u16,
    tls: bool,
    /// Of a host's receiver; that of a cluster alone has the key beside its ini file.
    receiver_fingerprint: Option<String>,
    home: TempDir,
}

impl Site {
    /// Begins with a data directory without a server (PostgreSQL 15, segments of 1 MiB), TLS,
    /// and a receiver that runs and is bound to it.
    pub fn builder() -> Builder {
        Builder {
            cluster: None,
            facts: Facts {
                system_id: SystemId(7_700_000_000_000_000_001),
                postgres_major: 15,
                segment_size: WalSegmentSize::new(1 << 20).unwrap(),
            },
            timeline: 1,
            tls: true,
            proxied: false,
            running: true,
            bound: true,
            archive: None,
            master_folder: "master".to_owned(),
            standby: Ini::default(),
            master: Ini::default(),
            hosted: None,
        }
    }

    /// What [`Site::builder`] begins with.
    pub fn start() -> Site {
        Site::builder().build()
    }

    /// A receiver over TLS, bound to a real cluster whose `postgresql.conf` is untouched yet:
    /// `master_command(&["setup"])` turns archiving on.
    pub fn with_cluster(cluster: Cluster) -> Site {
        Site::builder().cluster(cluster).build()
    }

    /// The site's folder; everything is in it.
    pub fn home(&self) -> &TempDir {
        &self.home
    }

    /// The real cluster.
    pub fn cluster(&self) -> &Cluster {
        self.cluster.as_ref().expect("a site with a cluster")
    }

    /// The real cluster, to stop and start it.
    pub fn cluster_mut(&mut self) -> &mut Cluster {
        self.cluster.as_mut().expect("a site with a cluster")
    }

    /// The proxy of a site that was built with one.
    pub fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("a site with a proxy")
    }

    /// The master's data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// master.ini.
    pub fn master_ini(&self) -> &Path {
        &self.master_ini
    }

    /// standby.ini.
    pub fn standby_ini(&self) -> &Path {
        &self.standby_ini
    }

    /// The folder of the archive, with the backup sets in it.
    pub fn archive_folder(&self) -> &Path {
        &self.archive
    }

    /// `completed_wals`.
    pub fn completed_wals(&self) -> PathBuf {
        self.archive.join("logs.complete")
    }

    /// `partial_wals`.
    pub fn partial_wals(&self) -> PathBuf {
        self.archive.join("logs.partial")
    }

    /// Where the receiver listens.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Changes a setting of master.ini, for the next command.
    pub fn master_set(&mut self, key: &str, value: &str) {
        self.master.set(key, value);
        self.master.write(&self.master_ini);
    }

    /// Takes a setting out of master.ini.
    pub fn master_unset(&mut self, key: &str) {
        self.master.unset(key);
        self.master.write(&self.master_ini);
    }

    /// Changes a setting of standby.ini; a running receiver needs a SIGHUP.
    pub fn standby_set(&mut self, key: &str, value: &str) {
        self.standby.set(key, value);
        self.standby.write(&self.standby_ini);
    }

    /// The master reaches the receiver by this address from here on. Whatever is there counts or delays bytes, so they
    /// travel as they are, unless a test says otherwise.
    pub fn route(&mut self, address: SocketAddr) {
        if !self.master.has("compression") {
            self.master_set("compression", "0");
        }
        self.master_set("slave", &address.to_string());
    }

    /// walmgr with master.ini and these words, to be run as the server's user.
    pub fn master_walmgr(&self, words: &[&str]) -> Command {
        let mut command = walmgr();
        command.arg(&self.master_ini).args(words);
        command
    }

    /// walmgr with standby.ini and these words, to be run as the server's user.
    pub fn standby_walmgr(&self, words: &[&str]) -> Command {
        let mut command = walmgr();
        command.arg(&self.standby_ini).args(words);
        command
    }

    /// The list of sets, as both sides give it. What is pinned, stays and goes is for the standby to decide, and
    /// unknown on the master.
    #[track_caller]
    pub fn listed_sets(&self) -> Vec<serde_json::Value> {
        let words = ["listbackups", "--json"];
        let listed = |json: String| serde_json::from_str::<Vec<serde_json::Value>>(&json).unwrap();
        // The receiver measures sets by itself, so a list holds as long as the next one says the same.
        let mut sets = listed(self.standby_command(&words).succeed());
        let of_master = wait_for("a list that nothing changes", LIST_LIMIT, || {
            let of_master = listed(self.master_command(&words).succeed());
            let before =
                std::mem::replace(&mut sets, listed(self.standby_command(&words).succeed()));
            (before == sets).then_some(of_master)
        });
        for set in &mut sets {
            for member in [
                "pinned",
                "note",
                "goes",
                "why",
                "has_way_forward",
                "off_line",
            ] {
                set[member] = serde_json::Value::Null;
            }
        }
        for (of_master, set) in of_master.iter().zip(&sets) {
            assert_eq!(of_master, set);
        }
        assert_eq!(of_master.len(), sets.len());
        sets
    }

    /// Runs [`Site::master_walmgr`] to its end.
    pub fn master_command(&self, words: &[&str]) -> Output {
        Output::of(&mut self.master_walmgr(words))
    }

    /// Runs [`Site::standby_walmgr`] to its end.
    pub fn standby_command(&self, words: &[&str]) -> Output {
        Output::of(&mut self.standby_walmgr(words))
    }

    /// `xarchive`, in the working directory PostgreSQL would give it.
    pub fn xarchive_walmgr(&self, path: &Path, name: &str) -> Command {
        let mut command = self.master_walmgr(&["xarchive"]);
        command.arg(path).arg(name).current_dir(&self.data);
        command
    }

    /// Runs `xarchive` to its end.
    pub fn xarchive(&self, path: impl AsRef<Path>, name: &str) -> Output {
        Output::of(&mut self.xarchive_walmgr(path.as_ref(), name))
    }

    /// Runs `xarchive` for a file in `pg_wal`, as PostgreSQL would.
    pub fn archive(&self, name: &str) -> Output {
        self.xarchive(Path::new("pg_wal").join(name), name)
    }

    /// A stored file as the master sent it; panics if it is not there.
    pub fn archived(&self, name: &str) -> Vec<u8> {
        stored::content(&self.completed_wals(), name)
    }

    /// Where a stored file lies, in whichever form.
    pub fn stored_path(&self, name: impl AsRef<str>) -> PathBuf {
        stored::path(&self.completed_wals(), name.as_ref())
    }

    /// Where a stored file lies after somebody has unpacked it, for a test that changes its bytes.
    pub fn unpacked_path(&self, name: impl AsRef<str>) -> PathBuf {
        stored::unpack(&self.completed_wals(), name.as_ref())
    }

    /// Whether a file is stored.
    pub fn holds(&self, name: &str) -> bool {
        self.stored_path(name).exists()
    }

    /// Every name in `completed_wals` that a WAL file could have, sorted; of a packed one the name that it has unpacked.
    pub fn archived_names(&self) -> Vec<String> {
        let mut names = self.all_names();
        names.retain(|name| !name.starts_with('.') && name != "PROGRESS");
        for name in &mut names {
            if let Some(unpacked) = name.strip_suffix(".zst") {
                *name = unpacked.to_owned();
            }
        }
        names.sort();
        names
    }

    /// Uploads that did not come to their end.
    pub fn temporaries(&self) -> Vec<String> {
        let mut names = self.all_names();
        names.retain(|name| name.starts_with(".in."));
        names
    }

    fn all_names(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.completed_wals())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// What the control file says of the cluster.
    pub fn facts(&self) -> ClusterFacts {
        ClusterFacts::read(&self.master_config()).unwrap()
    }

    /// The settings of master.ini.
    pub fn master_config(&self) -> config::MasterConfig {
        let loaded = config::load(&self.master_ini, &[]).unwrap();
        loaded.into_master("the test").unwrap()
    }

    /// The name of a segment on the master's timeline.
    pub fn segment_name(&self, number: u64) -> String {
        let facts = self.facts();
        SegmentName::from_number(facts.timeline, number, facts.cluster.segment_size).to_string()
    }

    /// Valid WAL for this segment of this cluster; another `salt` gives other content.
    pub fn segment(&self, number: u64, salt: &str) -> Vec<u8> {
        let ClusterFacts { cluster, timeline } = self.facts();
        segment_of(&cluster, timeline, number, salt)
    }

    /// What somebody with a key can make up: sound by itself, and leading nowhere.
    pub fn forged_segment(&self, number: u64) -> Vec<u8> {
        let ClusterFacts { cluster, timeline } = self.facts();
        let size = cluster.segment_size;
        let segment = SegmentName::from_number(timeline, number, size);
        let major = u8::try_from(cluster.postgres_major).unwrap();
        let mut forged = WalWriter::new(segment, size, cluster.system_id, major);
        forged.record(RM_XLOG, XLOG_NOOP, b"forged");
        forged.switch();
        forged.zeros_to_segment_end();
        forged.bytes().to_vec()
    }

    /// Writes valid WAL into `pg_wal` and returns its path.
    pub fn write_segment(&self, number: u64) -> PathBuf {
        self.write_wal(&self.segment_name(number), self.segment(number, "walmgr"))
    }

    /// Marks a file as PostgreSQL does that waits for its archiver.
    pub fn make_ready(&self, name: &str) {
        let marks = self.data.join("pg_wal/archive_status");
        std::fs::create_dir_all(&marks).unwrap();
        give_to_server(&marks);
        let mark = marks.join(format!("{name}.ready"));
        std::fs::write(&mark, b"").unwrap();
        give_to_server(&mark);
    }

    /// Writes a file into `pg_wal` and returns its path.
    pub fn write_wal(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.data.join("pg_wal").join(name);
        std::fs::write(&path, content).unwrap();
        give_to_server(&path);
        path
    }

    /// Binds the archive to the master's cluster, without a server and without an edit.
    pub fn bind(&self) -> SetupDone {
        self.ask(async |asking| asking.set_up().await.unwrap())
    }

    /// What the receiver holds and how it fares.
    pub fn overview(&self) -> Overview {
        self.ask(async |asking| asking.overview().await.unwrap())
    }

    fn ask<T>(&self, question: impl AsyncFnOnce(&mut Asking<'_>) -> T) -> T {
        let mut config = self.master_config();
        let facts = ClusterFacts::read(&config).unwrap();
        if config.tls.enabled {
            // A key has to belong to the user that uses it, and here that is the test's.
            let own = self.home.join("asking.key");
            std::fs::copy(&config.tls.key, &own).unwrap();
            config.tls.key = own;
        }
        walmgr::test_support::master::runtime()
            .unwrap()
            .block_on(async {
                let mut asking = Asking::connect(&config, &facts).await.unwrap();
                let answer = question(&mut asking).await;
                asking.close().await;
                answer
            })
    }

    /// The fingerprint of the master's key.
    pub fn master_fingerprint(&self) -> String {
        self.master_command(&["identity"]).succeed()
    }

    /// The fingerprint of the receiver's key.
    pub fn standby_fingerprint(&self) -> String {
        if let Some(fingerprint) = &self.receiver_fingerprint {
            return fingerprint.clone();
        }
        self.standby_command(&["identity"]).succeed()
    }

    /// Starts the receiver and waits until it listens; on another port if somebody took this one.
    pub fn start_receiver(&mut self) {
        for _ in 0..3 {
            match self.receiver.start(&mut self.receiver_walmgr()) {
                Ok(()) => return,
                Err(log) if log.contains("Address already in use") => {
                    self.port = free_port();
                    self.standby_set("listen", &self.address().to_string());
                    self.route(self.address());
                }
                Err(log) => panic!("the receiver does not start:\n{log}"),
            }
        }
        panic!("the receiver found no free port");
    }

    /// The command that [`Receiver::start`] takes; wrap it to have it traced.
    pub fn receiver_walmgr(&self) -> Command {
        self.standby_walmgr(&["receiver"])
    }

    /// Stops the receiver in good order and starts it again on the same port.
    pub fn restart_receiver(&mut self) {
        self.receiver.stop();
        self.start_receiver();
    }

    /// Creates both identities, and makes each known to the other side.
    fn introduce(&mut self) {
        let receiver = self.standby_fingerprint();
        self.master_set("slave_fingerprint", &receiver);
        let master = self.master_fingerprint();
        self.standby_command(&["authorize", &master, "master"])
            .succeed();
    }

    fn standby_settings(&self) -> Ini {
        let mut ini = Ini::default();
        ini.set("walmgr_data", &self.archive.display().to_string());
        let completed = self.completed_wals().display().to_string();
        ini.set("completed_wals", &completed);
        let partial = self.partial_wals().display().to_string();
        ini.set("partial_wals", &partial);
        ini.set("listen", &self.address().to_string());
        ini.set("tls", if self.tls { "on" } else { "off" });
        if self.receiver_fingerprint.is_some() {
            // Beside the ini file they would be those of all clusters.
            for list in ["authorized_keys", "authorized_names"] {
                let path = self.standby_ini.with_extension(list);
                ini.set(list, &path.display().to_string());
            }
        }
        ini
    }

    fn master_settings(&self) -> Ini {
        let mut ini = Ini::default();
        ini.set("master_data", &self.data.display().to_string());
        if let Some(cluster) = &self.cluster {
            ini.set("master_db", &cluster.conninfo());
        }
        ini.set("slave", &self.address().to_string());
        ini.set("tls", if self.tls { "on" } else { "off" });
        ini
    }

    fn write_data_directory(&self) {
        let Some(facts) = self.facts else { return };
        write_data_directory(&self.data, &facts, self.timeline);
    }
}

#[test]
fn a_site_archives_and_leaves_nothing() {
    let _user = skip_unless!(super::place::server_user());
    for builder in [Site::builder(), Site::builder().plain().proxied()] {
        let mut site = builder.build();
        let path = site.write_segment(7);
        let name = site.segment_name(7);
        site.archive(&name).succeed();
        assert_eq!(site.archived(&name), std::fs::read(path).unwrap());
        assert_eq!(site.archived_names(), std::slice::from_ref(&name));
        site.restart_receiver();
        site.archive(&name).succeed();
        site.receiver.kill9();
        site.archive(&name).fail(1);
        site.start_receiver();
        site.archive(&name).succeed();
        let (pid, home) = (site.receiver.pid(), site.home().path().to_path_buf());
        assert!(site.receiver.memory_peak_kib() > 0);
        drop(site);
        assert!(!super::cluster::is_alive(pid) && !home.exists());
    }
}
