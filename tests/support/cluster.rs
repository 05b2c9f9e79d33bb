//! A real PostgreSQL server that lives as long as the value: own folder, port, socket, log.
//! Never touches a server it did not start. Invariant: when it is dropped no process of it is left.

use std::fs::OpenOptions;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::place::{TempDir, as_server, give_to_server, server_user};
use super::versions::MAJORS;
use super::{free_port, run, wait_for};

const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// How a server is asked to end (`pg_ctl stop -m`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Waits for clients.
    Smart,
    /// Disconnects clients, writes a checkpoint, waits for the archiver.
    Fast,
    /// Leaves without a checkpoint, so that the next start recovers.
    Immediate,
}

/// What a new cluster shall be like.
#[derive(Debug, Clone)]
pub struct Builder {
    major: u8,
    wal_segment_size_mb: u32,
    fsync: bool,
    initdb_args: Vec<String>,
    settings: Vec<(String, String)>,
    environment: Vec<(String, String)>,
}

impl Builder {
    /// The major version, 13 to 18; 15 unless said otherwise.
    pub fn major(mut self, major: u8) -> Self {
        self.major = major;
        self
    }

    /// `initdb --wal-segsize`; 1 unless said otherwise, so that segments fill quickly.
    pub fn wal_segment_size_mb(mut self, size_mb: u32) -> Self {
        self.wal_segment_size_mb = size_mb;
        self
    }

    /// Whether the server syncs; off unless said otherwise.
    pub fn fsync(mut self, on: bool) -> Self {
        self.fsync = on;
        self
    }

    /// One more argument for `initdb`.
    pub fn initdb_arg(mut self, argument: &str) -> Self {
        self.initdb_args.push(argument.to_owned());
        self
    }

    /// One more setting, appended to `postgresql.conf`; the value is quoted here.
    pub fn conf(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// One more variable in the environment of its server and of whatever is run beside it.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs `initdb` and starts the server; panics with its log when that fails.
    pub fn start(self) -> Cluster {
        let mut cluster = self.create();
        for attempt in 1.. {
            match cluster.try_start() {
                Ok(()) => break,
                // Somebody took the port between the choice and the start.
                Err(log) if attempt < 4 && log.contains("Address already in use") => {
                    cluster.port = free_port();
                    cluster.append_conf(&format!("port = {}", cluster.port));
                }
                Err(log) => panic!("PostgreSQL {} does not start:\n{log}", cluster.major),
            }
        }
        cluster
    }

    /// Runs `initdb` only.
    pub fn create(self) -> Cluster {
        let home = TempDir::new();
        let mut cluster = Cluster {
            major: self.major,
            bin: binaries(self.major).unwrap_or_else(|reason| panic!("{reason}")),
            port: free_port(),
            data: home.join("data"),
            log_path: home.join("log"),
            options: Vec::new(),
            environment: self.environment,
            child: None,
            started_pid: None,
            home,
        };
        let mut initdb = cluster.command("initdb");
        initdb
            .args(["-D", "data", "-U", "postgres", "-A", "trust", "--no-sync"])
            .args(["--locale=C", "--encoding=UTF8"])
            .arg(format!("--wal-segsize={}", self.wal_segment_size_mb))
            .args(&self.initdb_args);
        run(initdb.current_dir(cluster.home.path())).unwrap();
        let socket_folder = cluster.home.path().display().to_string();
        let fsync = if self.fsync { "on" } else { "off" };
        let port = cluster.port.to_string();
        let ours = [
            ("listen_addresses", "127.0.0.1"),
            ("port", port.as_str()),
            ("unix_socket_directories", &socket_folder),
            ("fsync", fsync),
            ("shared_buffers", "16MB"),
            ("max_wal_size", "64MB"),
            ("min_wal_size", "32MB"),
            ("logging_collector", "off"),
            ("log_line_prefix", "%m [%p] "),
        ];
        let theirs = self.settings.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        for (name, value) in ours.into_iter().chain(theirs) {
            cluster.append_conf(&format!("{name} = '{}'", value.replace('\'', "''")));
        }
        cluster
    }
}

/// A server, running or stopped, with its folder.
pub struct Cluster {
    major: u8,
    bin: PathBuf,
    port: u16,
    data: PathBuf,
    log_path: PathBuf,
    options: Vec<String>,
    environment: Vec<(String, String)>,
    child: Option<Child>,
    started_pid: Option<u32>,
    home: TempDir,
}

impl Cluster {
    /// Begins with PostgreSQL 15, segments of 1 MiB, no fsync.
    pub fn builder() -> Builder {
        Builder {
            major: 15,
            wal_segment_size_mb: 1,
            fsync: false,
            initdb_args: Vec::new(),
            settings: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// Whether servers of this version can run here, or why not.
    pub fn available(major: u8) -> Result<(), String> {
        server_user()?;
        client_program("psql")?;
        binaries(major).map(|_| ())
    }

    /// Whether this version is here with a program of its own; clients are taken from any version.
    pub fn has(major: u8, program: &str) -> bool {
        binaries(major).is_ok_and(|folder| folder.join(program).is_file())
    }

    /// Those of the table of versions whose turn it is and that can run here.
    pub fn available_majors() -> Vec<u8> {
        super::versions::available_majors()
    }

    /// A cluster, not started, on a data directory that exists: a restored backup for example.
    ///
    /// Port and socket are given on the command line, so they hold whatever its files say.
    pub fn on_directory(major: u8, data: &Path) -> Cluster {
        let home = TempDir::new();
        let port = free_port();
        let option = |name: &str, value: &dyn std::fmt::Display| format!("{name}={value}");
        let options = vec![
            option("port", &port),
            option("listen_addresses", &"127.0.0.1"),
            option("unix_socket_directories", &home.path().display()),
            option("logging_collector", &"off"),
        ];
        Cluster {
            major,
            bin: binaries(major).unwrap_or_else(|reason| panic!("{reason}")),
            port,
            data: data.to_path_buf(),
            log_path: home.join("log"),
            options,
            environment: Vec::new(),
            child: None,
            started_pid: None,
            home,
        }
    }

    /// Its major version.
    pub fn major(&self) -> u8 {
        self.major
    }

    /// The TCP port on 127.0.0.1, and the number in the socket's name.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The folder with the data directory, the socket and the log.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// `postgresql.conf`.
    pub fn config_file(&self) -> PathBuf {
        self.data.join("postgresql.conf")
    }

    /// The folder of its programs; for versions other than Debian's `initdb`, `pg_ctl`, `postgres`.
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// A libpq connection string for its Unix socket.
    pub fn conninfo(&self) -> String {
        let socket = self.home.path().display();
        format!(
            "host={socket} port={} user=postgres dbname=postgres",
            self.port
        )
    }

    /// A libpq connection string for TCP, for a proxy in between for example.
    pub fn conninfo_tcp(&self) -> String {
        let port = self.port;
        format!("host=127.0.0.1 port={port} user=postgres dbname=postgres")
    }

    /// A command that runs as the server's user, beside the data directory, with the environment
    /// that libpq needs to find this server. Bare names are looked up among PostgreSQL's programs.
    pub fn command(&self, program: &str) -> Command {
        let own = self.bin.join(program);
        let path = match program.contains('/') {
            true => PathBuf::from(program),
            false if own.is_file() => own,
            false => client_program(program).unwrap_or_else(|reason| panic!("{reason}")),
        };
        let mut command = Command::new(path);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.home.path())
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .env("PGHOST", self.home.path())
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres")
            .env("PGDATA", &self.data)
            .envs(self.environment.iter().cloned())
            .current_dir(self.home.path())
            .stdin(Stdio::null());
        as_server(&mut command);
        command
    }

    /// Appends a line to `postgresql.conf`; it counts after a reload or restart.
    pub fn append_conf(&mut self, line: &str) {
        use std::io::Write;
        let mut file = OpenOptions::new()
            .append(true)
            .open(self.config_file())
            .unwrap();
        writeln!(file, "{line}").unwrap();
    }

    /// Gives `name=value` on the command line from the next start on.
    pub fn add_option(&mut self, option: &str) {
        self.options.push(option.to_owned());
    }

    /// Takes one of them off the command line again.
    pub fn remove_option(&mut self, option: &str) {
        self.options.retain(|one| one != option);
    }

    /// Starts it, and panics with its log when that fails.
    pub fn start(&mut self) {
        if let Err(log) = self.try_start() {
            panic!("PostgreSQL {} does not start:\n{log}", self.major);
        }
    }

    /// Starts it and waits until it accepts connections, or as a standby without `hot_standby`
    /// until it replays; the error is its log.
    pub fn try_start(&mut self) -> Result<(), String> {
        self.spawn();
        let begin = Instant::now();
        loop {
            if let Some(status) = self
                .child
                .as_mut()
                .and_then(|child| child.try_wait().unwrap())
            {
                self.child = None;
                return Err(format!("{status}\n{}", self.log()));
            }
            // PM_STATUS_READY and PM_STATUS_STANDBY, src/include/utils/pidfile.h
            let line = self.pid_file_line(7).unwrap_or_default();
            let ours = self.child.as_ref().map(Child::id) == self.pid();
            if ours && matches!(line.trim(), "ready" | "standby") {
                return Ok(());
            }
            if begin.elapsed() > START_LIMIT {
                self.kill9();
                return Err(format!("not ready within {START_LIMIT:?}\n{}", self.log()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts it without waiting for anything.
    pub fn spawn(&mut self) {
        assert!(!self.is_running(), "the server runs already");
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log_path)
            .unwrap();
        give_to_server(&self.log_path);
        let mut postgres = self.command("postgres");
        postgres.arg("-D").arg(&self.data);
        for option in &self.options {
            postgres.arg("-c").arg(option);
        }
        postgres
            .env_remove("PGDATA")
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let child = postgres.spawn().unwrap();
        self.started_pid = Some(child.id());
        self.child = Some(child);
    }

    /// Ends it and waits until its process is gone; nothing happens if it does not run.
    pub fn stop(&mut self, mode: StopMode) {
        let signal = match mode {
            StopMode::Smart => "TERM",
            StopMode::Fast => "INT",
            StopMode::Immediate => "QUIT",
        };
        self.signal(signal);
        self.wait_until_gone(STOP_LIMIT);
    }

    /// Kills the postmaster without warning, and waits until its children have noticed and left:
    /// a new server would refuse to start before.
    pub fn kill9(&mut self) {
        self.signal("KILL");
        self.wait_until_gone(STOP_LIMIT);
        wait_for("the children's end", STOP_LIMIT, || {
            processes_of(&self.data).is_empty().then_some(())
        });
    }

    /// Stops it fast and starts it again.
    pub fn restart(&mut self) {
        self.stop(StopMode::Fast);
        self.start();
    }

    /// Makes it read its settings again.
    pub fn reload(&self) {
        self.psql("SELECT pg_reload_conf()");
    }

    /// Whether its postmaster lives, by whomever it was started.
    pub fn is_running(&self) -> bool {
        self.pid().is_some_and(is_alive)
    }

    /// The postmaster of this data directory that `postmaster.pid` names, alive or not.
    pub fn pid(&self) -> Option<u32> {
        self.pid_file_line(0)?.trim().parse().ok()
    }

    /// Everything the server has logged.
    pub fn log(&self) -> String {
        let mut text = Vec::new();
        if let Ok(mut file) = std::fs::File::open(&self.log_path) {
            file.read_to_end(&mut text).unwrap();
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Waits until the log contains this text.
    pub fn wait_for_log(&self, text: &str, limit: Duration) {
        let what = format!("{text:?} in the log");
        wait_for(&what, limit, || self.log().contains(text).then_some(()));
    }

    /// The answer to a statement, columns separated by `|`; panics when it fails.
    pub fn psql(&self, sql: &str) -> String {
        self.try_psql(sql)
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// The answer to a statement, or psql's complaint.
    pub fn try_psql(&self, sql: &str) -> Result<String, String> {
        let mut psql = self.command("psql");
        psql.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", sql]);
        run(&mut psql).map(|answer| answer.trim_end().to_owned())
    }

    /// What this server can do with the page images in its WAL. `on` is pglz, by the word that every version knows.
    pub fn wal_compressions(&self) -> Vec<&'static str> {
        let can = |kind: &&str| {
            let asked = self.try_psql(&format!("SET wal_compression = {kind}"));
            asked.is_ok()
        };
        let all = ["off", "on", "lz4", "zstd"];
        all.into_iter().filter(can).collect()
    }

    /// Has sessions that begin from here on do that, also behind a crash.
    pub fn compress_wal(&self, kind: &str) {
        self.psql(&format!("ALTER SYSTEM SET wal_compression = {kind}"));
        self.psql("SELECT pg_reload_conf()");
    }

    /// Runs `pgbench` with these arguments and returns what it printed.
    pub fn pgbench(&self, arguments: &[&str]) -> String {
        run(self.command("pgbench").args(arguments)).unwrap()
    }

    /// Switches to the next segment, if the current one is not empty.
    pub fn switch_wal(&self) {
        self.psql("SELECT pg_switch_wal()");
    }

    fn pid_file_line(&self, index: usize) -> Option<String> {
        let text = std::fs::read_to_string(self.data.join("postmaster.pid")).ok()?;
        text.lines().nth(index).map(str::to_owned)
    }

    /// Sends to the server that runs on the folder, be it ours or one that a command under test
    /// started in its place.
    fn signal(&self, name: &str) {
        for pid in self.live_pids() {
            let _ = Command::new("kill")
                .args([&format!("-{name}"), &pid.to_string()])
                .stderr(Stdio::null())
                .status();
        }
    }

    fn live_pids(&self) -> Vec<u32> {
        let mut pids: Vec<u32> = self.child.iter().map(Child::id).collect();
        pids.extend(self.pid().filter(|pid| is_postmaster(*pid, &self.data)));
        pids.dedup();
        pids.retain(|pid| is_alive(*pid));
        pids
    }

    fn wait_until_gone(&mut self, limit: Duration) {
        let begin = Instant::now();
        loop {
            // A zombie still looks alive to a new server, so our child has to be reaped.
            if self
                .child
                .as_mut()
                .is_some_and(|child| child.try_wait().unwrap().is_some())
            {
                self.child = None;
            }
            if self.child.is_none() && self.live_pids().is_empty() {
                return;
            }
            if begin.elapsed() > limit {
                let log = self.log();
                if !std::thread::panicking() {
                    panic!("the server does not stop within {limit:?}:\n{log}");
                }
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.signal("QUIT");
        let begin = Instant::now();
        while !self.live_pids().is_empty() && begin.elapsed() < Duration::from_secs(5) {
            if let Some(child) = &mut self.child {
                let _ = child.try_wait();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.signal("KILL");
        if let Some(child) = &mut self.child {
            let _ = child.wait();
        }
    }
}

/// Whether a process exists and is more than a zombie nobody has reaped.
pub fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        let state = stat.rsplit(')').next().unwrap_or_default();
        !matches!(state.trim_start().chars().next(), Some('Z' | 'X') | None)
    })
}

/// A pid file can outlive its server, and its number can belong to somebody else by then.
fn is_postmaster(pid: u32, data: &Path) -> bool {
    processes_of(data).contains(&pid)
}

/// The processes of the server on this directory: postmaster and children work in it.
fn processes_of(data: &Path) -> Vec<u32> {
    let Ok(data) = std::fs::canonicalize(data) else {
        return Vec::new();
    };
    let serves = |pid: &u32| {
        let process = Path::new("/proc").join(pid.to_string());
        std::fs::read_to_string(process.join("comm")).is_ok_and(|name| name.trim() == "postgres")
            && std::fs::read_link(process.join("cwd")).is_ok_and(|folder| folder == data)
    };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(serves)
        .collect()
}

/// Where the programs of a version are that the tests run.
pub fn binaries(major: u8) -> Result<PathBuf, String> {
    let fetched = std::env::var_os("WALMGR_TEST_PG").map_or_else(
        || PathBuf::from("/var/tmp/walmgr-test-postgres"),
        PathBuf::from,
    );
    let folders = [
        PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")),
        fetched.join(format!("{major}/native/bin")),
        PathBuf::from(format!(
            concat!(env!("CARGO_MANIFEST_DIR"), "/target/postgres/{}/native/bin"),
            major
        )),
    ];
    let complete = |folder: &PathBuf| {
        let runs = |program: &str| {
            as_server(Command::new(folder.join(program)).arg("--version"))
                .output()
                .is_ok_and(|output| output.status.success())
        };
        folder.join("initdb").exists() && runs("initdb") && runs("postgres")
    };
    folders.into_iter().find(complete).ok_or_else(|| {
        format!("PostgreSQL {major} is not installed here; tests/fetch-postgres.sh can fetch it")
    })
}

/// The library of clients that belongs to a version. Debian has one for all, of the newest version.
pub fn library(major: u8) -> Result<PathBuf, String> {
    let bin = binaries(major)?;
    let beside = bin.with_file_name("lib").join("libpq.so.5");
    Ok(match beside.exists() {
        true => beside,
        false => PathBuf::from("libpq.so.5"),
    })
}

/// psql and pgbench talk to every server version, so any installed one will do.
fn client_program(program: &str) -> Result<PathBuf, String> {
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    (MAJORS.into_iter().rev())
        .map(|major| PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")))
        .chain(std::env::split_paths(&on_path).collect::<Vec<_>>())
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
        .ok_or_else(|| format!("{program} is not installed"))
}

#[test]
fn a_cluster_starts_restarts_survives_kill_9_and_leaves_nothing() {
    for major in Cluster::available_majors() {
        let mut cluster = Cluster::builder()
            .major(major)
            .conf("work_mem", "5MB")
            .start();
        assert_eq!(cluster.psql("SHOW work_mem"), "5MB");
        assert_eq!(cluster.psql("SHOW wal_segment_size"), "1MB");
        let version = cluster.psql("SHOW server_version_num");
        assert_eq!(version.parse::<u32>().unwrap() / 10_000, u32::from(major));
        cluster.psql("CREATE TABLE kept AS SELECT 1 AS number");
        cluster.kill9();
        assert!(!cluster.is_running());
        cluster.start();
        assert_eq!(cluster.psql("SELECT number FROM kept"), "1");
        cluster.restart();
        cluster.pgbench(&["-i", "-q"]);
        let (pid, home) = (cluster.pid().unwrap(), cluster.home().to_path_buf());
        drop(cluster);
        assert!(!is_alive(pid) && !home.exists());
    }
}
