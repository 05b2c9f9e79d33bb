//! Members of a Patroni cluster on this host, each with its own ini file and key, and one receiver for all of them.
//! Never changes the recipe but for ports and paths. Invariant: when this is dropped, none of its processes is left.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::place::{as_server, give_to_server};
use crate::support::receiver::Receiver;
use crate::support::{Output, TempDir, free_port, run, wait_for, walmgr, walmgr_binary};

/// Where Debian has the server that the recipe names.
const BIN: &str = "/usr/lib/postgresql/15/bin";

/// A failover takes Patroni's `ttl`, and the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// How much of a member's log is shown where a test fails.
const LOG_LINES_MAX: usize = 400;

/// The recipe as users take it.
const RECIPE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/contrib/patroni/patroni.yml");

/// Patroni and etcd, as tests/fetch-patroni.sh leaves them.
pub struct Tools {
    patroni: PathBuf,
    patronictl: PathBuf,
    etcd: PathBuf,
}

impl Tools {
    /// Them, or why they cannot be had here.
    pub fn find() -> Result<Tools, String> {
        let folder = std::env::var_os("WALMGR_TEST_PATRONI").map_or_else(
            || PathBuf::from("/var/tmp/walmgr-test-patroni"),
            PathBuf::from,
        );
        crate::support::Cluster::available(15)?;
        if !Path::new(BIN).join("pg_rewind").exists() {
            return Err(format!("{BIN} has no pg_rewind"));
        }
        let tools = Tools {
            patroni: folder.join("venv/bin/patroni"),
            patronictl: folder.join("venv/bin/patronictl"),
            etcd: folder.join("etcd/usr/bin/etcd"),
        };
        let runs = |program: &Path| {
            let mut command = Command::new(program);
            let output = as_server(command.arg("--version").current_dir("/tmp")).output();
            output.is_ok_and(|output| output.status.success())
        };
        match runs(&tools.patroni) && runs(&tools.etcd) {
            true => Ok(tools),
            false => {
                Err("there is no Patroni here; tests/fetch-patroni.sh can fetch it".to_owned())
            }
        }
    }
}

/// A child that is ended with its process group.
struct Process(Child);

impl Process {
    fn spawn(command: &mut Command, log: &Path) -> Process {
        let log = File::options().create(true).append(true).open(log).unwrap();
        as_server(command)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        Process(command.spawn().unwrap())
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, signal);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(rustix::process::Signal::KILL);
        let _ = self.0.wait();
    }
}

/// What the drop-in for systemd does: `syncdaemon` is started again whenever it has ended.
struct Unit {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Unit {
    fn start(ini: PathBuf, log: PathBuf) -> Unit {
        let ends = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ends);
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                let mut command = walmgr();
                let mut daemon = Process::spawn(command.arg(&ini).arg("syncdaemon"), &log);
                while !told.load(Ordering::Relaxed) && daemon.0.try_wait().unwrap().is_none() {
                    std::thread::sleep(Duration::from_millis(100));
                }
                drop(daemon);
                // `RestartSec`.
                std::thread::sleep(Duration::from_secs(1));
            }
        });
        Unit {
            ends,
            thread: Some(thread),
        }
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One member.
pub struct Member {
    pub name: String,
    pub folder: PathBuf,
    port: u16,
    patroni: Option<Process>,
    unit: Option<Unit>,
}

impl Member {
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    pub fn ini(&self) -> PathBuf {
        self.folder.join("master.ini")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("patroni.log")).unwrap_or_default()
    }

    pub fn try_psql(&self, sql: &str) -> Result<String, String> {
        let mut psql = Command::new(Path::new(BIN).join("psql"));
        psql.args(["-XAtq", "-U", "postgres", "-d", "postgres", "-c", sql, "-h"])
            .arg(&self.folder)
            .args(["-p", &self.port.to_string()])
            .env("PGCONNECT_TIMEOUT", "5");
        run(as_server(&mut psql)).map(|output| output.trim().to_owned())
    }

    pub fn psql(&self, sql: &str) -> String {
        self.try_psql(sql).unwrap()
    }

    pub fn walmgr(&self, words: &[&str]) -> Output {
        let mut command = walmgr();
        Output::of(command.arg(self.ini()).args(words))
    }

    /// WAL files that wait for their archiver.
    pub fn ready(&self) -> Vec<String> {
        let folder = self.data().join("pg_wal/archive_status");
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut ready: Vec<String> = names.filter(|name| name.ends_with(".ready")).collect();
        ready.sort();
        ready
    }

    /// Removes the segments of its timeline that a recovery of this server needs no more; says how many.
    pub fn remove_checkpointed_wal(&self) -> usize {
        let sql = "SELECT pg_walfile_name(redo_lsn) FROM pg_control_checkpoint()";
        let keep = self.psql(sql);
        let pg_wal = self.data().join("pg_wal");
        let names = fs::read_dir(&pg_wal).unwrap().flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let is_old = |name: &String| name.len() == 24 && name[8..] < keep[8..];
        let old: Vec<String> = names.filter(is_old).collect();
        for name in &old {
            fs::remove_file(pg_wal.join(name)).unwrap();
        }
        old.len()
    }

    /// `kill -9` of Patroni; its server goes on.
    pub fn kill_patroni(&mut self) {
        self.patroni = None;
    }

    /// `kill -9` of the server's postmaster.
    pub fn kill_postgres(&self) {
        if let Some(pid) = self.postmaster() {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }

    fn postmaster(&self) -> Option<rustix::process::Pid> {
        let text = fs::read_to_string(self.data().join("postmaster.pid")).ok()?;
        let pid: i32 = text.lines().next()?.trim().parse().ok()?;
        let here = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
        (here == self.data())
            .then(|| rustix::process::Pid::from_raw(pid))
            .flatten()
    }
}

/// The members, what they agree by, and where they archive.
pub struct Members {
    tools: Tools,
    pub members: Vec<Member>,
    pub standby_ini: PathBuf,
    pub receiver: Receiver,
    etcd: Option<Process>,
    home: TempDir,
}

impl Members {
    /// Starts the receiver, etcd, and the first member alone; sets up its archive and makes a backup.
    pub fn start(tools: Tools, count: usize) -> Members {
        let home = TempDir::new();
        let (receiver_port, client, peer) = (free_port(), free_port(), free_port());
        let standby = home.create_dir("standby");
        let archive = home.create_dir("archive");
        let settings = format!(
            "[walmgr]\nwalmgr_data = {}\nlisten = 127.0.0.1:{receiver_port}\nslave_bin = {BIN}\n",
            archive.display()
        );
        let standby_ini = home.write("standby/standby.ini", settings);
        let fingerprint = type_in(&standby_ini, &["identity"]).succeed();
        type_in(&standby_ini, &["setup"]).succeed();
        let mut receiver = Receiver::new(standby.join("receiver.log"));
        let mut command = walmgr();
        receiver
            .start(command.arg(&standby_ini).arg("receiver"))
            .unwrap();

        let [client_url, peer_url] = [client, peer].map(|port| format!("http://127.0.0.1:{port}"));
        let mut etcd = Command::new(&tools.etcd);
        etcd.arg("--data-dir").arg(home.join("etcd"));
        etcd.args([
            "--listen-client-urls",
            &client_url,
            "--advertise-client-urls",
            &client_url,
        ]);
        etcd.args(["--listen-peer-urls", &peer_url, "--unsafe-no-fsync"]);
        let etcd = Process::spawn(&mut etcd, &home.join("etcd.log"));

        let mut members = Members {
            tools,
            members: Vec::new(),
            standby_ini,
            receiver,
            etcd: Some(etcd),
            home,
        };
        for number in 1..=count {
            members.introduce(&format!("db{number}"), receiver_port, &fingerprint, client);
        }
        members.start_member(0);
        wait_for("the first leader", PATIENCE, || members.leader());
        // As the recipe's text: bind the archive, then make the first set.
        members.members[0].walmgr(&["setup"]).succeed();
        members.members[0].walmgr(&["backup"]).succeed();
        members
    }

    /// Writes a member's files, and makes its key known.
    fn introduce(&mut self, name: &str, receiver: u16, fingerprint: &str, etcd: u16) {
        let folder = self.home.create_dir(name);
        let (port, api) = (free_port(), free_port());
        let settings = format!(
            "[walmgr]\nmaster_data = {0}/data\nmaster_bin = {BIN}\n\
             master_db = host={0} port={port} dbname=postgres user=postgres\n\
             slave = 127.0.0.1:{receiver}\nslave_fingerprint = {fingerprint}\n\
             use_xlog_functions = 1\nloop_delay = 0.05\n",
            folder.display()
        );
        let ini = self.home.write(&format!("{name}/master.ini"), settings);
        let own = type_in(&ini, &["identity"]).succeed();
        let rights = ["--rights", "push,backup,read,failover"];
        let words = [&["authorize", own.trim(), name][..], &rights].concat();
        type_in(&self.standby_ini, &words).succeed();

        let path = |name: &str| folder.join(name).display().to_string();
        let at = |port: u16| format!("127.0.0.1:{port}");
        let mut yaml = fs::read_to_string(RECIPE).unwrap();
        for (theirs, ours) in [
            ("name: db1\n", format!("name: {name}\n")),
            ("0.0.0.0:8008", at(api)),
            ("db1.example.com:8008", at(api)),
            ("etcd.example.com:2379", at(etcd)),
            ("0.0.0.0:5432", at(port)),
            ("db1.example.com:5432", at(port)),
            ("/var/lib/postgresql/15/main", path("data")),
            ("/var/lib/postgresql/.pgpass_patroni", path("pgpass")),
            ("/var/run/postgresql", folder.display().to_string()),
            ("/usr/bin/walmgr", walmgr_binary().display().to_string()),
            ("/etc/walmgr/master.ini", ini.display().to_string()),
        ] {
            assert!(yaml.contains(theirs), "the recipe has no {theirs}");
            yaml = yaml.replace(theirs, &ours);
        }
        self.home.write(&format!("{name}/patroni.yml"), yaml);
        self.members.push(Member {
            name: name.to_owned(),
            folder,
            port,
            patroni: None,
            unit: None,
        });
    }

    /// Starts Patroni, and the unit that ships records.
    pub fn start_member(&mut self, index: usize) {
        let member = &mut self.members[index];
        let mut patroni = Command::new(&self.tools.patroni);
        patroni
            .arg(member.folder.join("patroni.yml"))
            .current_dir("/")
            .env("HOME", &member.folder)
            .env("TZ", "UTC");
        let log = member.folder.join("patroni.log");
        member.patroni = Some(Process::spawn(&mut patroni, &log));
        if member.unit.is_none() {
            let log = member.folder.join("syncdaemon.log");
            member.unit = Some(Unit::start(member.ini(), log));
        }
    }

    /// Ends Patroni in good order, with its server.
    pub fn stop_member(&mut self, index: usize) {
        let Some(mut patroni) = self.members[index].patroni.take() else {
            return;
        };
        patroni.signal(rustix::process::Signal::TERM);
        wait_for("the end of Patroni", PATIENCE, || {
            patroni.0.try_wait().unwrap()
        });
    }

    /// The member that takes writes, if there is one alone.
    pub fn leader(&self) -> Option<usize> {
        let opened = |member: &Member| {
            member
                .try_psql("SELECT pg_is_in_recovery()")
                .is_ok_and(|answer| answer == "f")
        };
        let mut leaders = (0..self.members.len()).filter(|index| opened(&self.members[*index]));
        let first = leaders.next()?;
        leaders.next().is_none().then_some(first)
    }

    /// Whether another than this one takes writes.
    pub fn leads_beside(&self, old: usize) -> bool {
        let others = (0..self.members.len()).filter(|index| *index != old);
        let mut others = others.map(|index| &self.members[index]);
        let sql = "SELECT pg_is_in_recovery()";
        others.any(|other| other.try_psql(sql).is_ok_and(|it| it == "f"))
    }

    /// Waits until all others stream from one leader, which is named.
    pub fn settled(&self) -> usize {
        let replicas = (self.members.len() - 1).to_string();
        let sql = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        wait_for("a leader and its replicas", PATIENCE, || {
            let leader = self.leader()?;
            let streaming = self.members[leader].try_psql(sql).ok()?;
            if streaming != replicas {
                std::thread::sleep(Duration::from_millis(500));
            }
            (streaming == replicas).then_some(leader)
        })
    }

    /// `patronictl` with the first member's file.
    pub fn patronictl(&self, words: &[&str]) -> Result<String, String> {
        let mut command = Command::new(&self.tools.patronictl);
        command
            .arg("-c")
            .arg(self.members[0].folder.join("patroni.yml"))
            .args(words)
            .current_dir("/")
            .env("HOME", self.home.path())
            .stdin(Stdio::null());
        run(as_server(&mut command))
    }

    /// A `conninfo` that leads to the leader, whoever that is.
    pub fn conninfo(&self) -> String {
        let each = |of: &dyn Fn(&Member) -> String| {
            let texts: Vec<String> = self.members.iter().map(of).collect();
            texts.join(",")
        };
        format!(
            "host={} port={} dbname=postgres user=postgres connect_timeout=5 target_session_attrs=read-write",
            each(&|member| member.folder.display().to_string()),
            each(&|member| member.port.to_string())
        )
    }

    pub fn standby(&self, words: &[&str]) -> Output {
        type_in(&self.standby_ini, words)
    }

    pub fn archived(&self) -> Vec<String> {
        let names = crate::restore::names_in(&self.home.join("archive/logs.complete"));
        let unpacked = |name: &String| name.strip_suffix(".zst").unwrap_or(name).to_owned();
        names.iter().map(unpacked).collect()
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for member in &self.members {
                let log = member.log();
                let lines: Vec<&str> = log.lines().collect();
                let last = lines.len().saturating_sub(LOG_LINES_MAX);
                println!("{} said:\n{}", member.name, lines[last..].join("\n"));
            }
        }
        for member in &mut self.members {
            member.unit = None;
            member.patroni = None;
        }
        // Patroni's end leaves the servers.
        for member in &self.members {
            member.kill_postgres();
            let begun = std::time::Instant::now();
            while member.postmaster().is_some() && begun.elapsed() < Duration::from_secs(10) {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        self.etcd = None;
    }
}

fn type_in(ini: &Path, words: &[&str]) -> Output {
    give_to_server(ini);
    let mut command = walmgr();
    Output::of(command.arg(ini).args(words))
}

/// pgbench against whoever leads, until it is dropped.
pub struct Load {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    pub fn start(members: &Members) -> Load {
        let (conninfo, log) = (members.conninfo(), members.home.join("pgbench.log"));
        let pgbench = move |words: &[&str]| {
            let mut command = Command::new(Path::new(BIN).join("pgbench"));
            command.args(words).arg(&conninfo).current_dir("/");
            Process::spawn(&mut command, &log)
        };
        assert!(
            pgbench(&["-i", "-q", "-s", "5"])
                .0
                .wait()
                .unwrap()
                .success()
        );
        let ends = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ends);
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                // It ends whenever its leader does.
                let mut bench = pgbench(&["-n", "-c", "2", "-R", "200", "-T", "3600"]);
                while !told.load(Ordering::Relaxed) && bench.0.try_wait().unwrap().is_none() {
                    std::thread::sleep(Duration::from_millis(100));
                }
                drop(bench);
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        Load {
            ends,
            thread: Some(thread),
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
