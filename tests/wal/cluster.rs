//! A throw-away PostgreSQL of a chosen major version and segment size, reached by its socket only.
//! Never leaves a server behind: dropping it kills the process it started, by its handle.
//! Invariant: nothing outside its own temporary folder is touched, so tests run side by side.

use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

use crate::support::cluster::binaries;

const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Where one major version's programs are, and who may run them.
pub struct Installation {
    pub major: u8,
    programs: PathBuf,
    clients: PathBuf,
    server_user: Option<(u32, u32)>,
}

impl Installation {
    /// Looks in `$WALMGR_TEST_PG`, in `target/postgres` and where Debian puts it.
    pub fn find(major: u8) -> Result<Installation, String> {
        let programs = binaries(major)?;
        let clients = (13..=18)
            .rev()
            .map(|version| PathBuf::from(format!("/usr/lib/postgresql/{version}/bin")))
            .find(|place| place.join("psql").exists() && place.join("pgbench").exists())
            .ok_or("psql and pgbench are not on this machine")?;
        let installation = Installation {
            major,
            programs,
            clients,
            server_user: server_user()?,
        };
        let version = installation
            .server_program("postgres")
            .arg("--version")
            .output();
        match version {
            Ok(output) if output.status.success() => Ok(installation),
            _ => Err(format!(
                "user postgres cannot run {}",
                installation.programs.join("postgres").display()
            )),
        }
    }

    pub fn has(&self, program: &str) -> bool {
        self.programs.join(program).exists()
    }

    /// One of the server's own programs, run as the user the server runs as.
    pub fn server_program(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.current_dir("/").env("LC_ALL", "C");
        if let Some((user, group)) = self.server_user {
            command.uid(user).gid(group);
        }
        command
    }
}

/// PostgreSQL refuses to run as root; anyone else runs it as themselves.
fn server_user() -> Result<Option<(u32, u32)>, String> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd").map_err(|error| error.to_string())?;
    users
        .lines()
        .find_map(|line| {
            let mut fields = line.strip_prefix("postgres:")?.split(':').skip(1);
            Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
        })
        .map(Some)
        .ok_or_else(|| "there is no user postgres to run a server as".to_owned())
}

pub struct Cluster {
    pub installation: Installation,
    folder: TempDir,
    server: Option<Child>,
}

impl Cluster {
    pub fn create(installation: Installation, segment_mib: u32) -> Cluster {
        let folder = tempfile::Builder::new()
            .prefix("walmgr-wal-")
            .tempdir()
            .unwrap();
        if let Some((user, group)) = installation.server_user {
            chown(folder.path(), Some(user), Some(group)).unwrap();
        }
        let cluster = Cluster {
            installation,
            folder,
            server: None,
        };
        let segment_size = format!("--wal-segsize={segment_mib}");
        let output = cluster
            .installation
            .server_program("initdb")
            .args([
                "-U",
                "postgres",
                "-A",
                "trust",
                "-N",
                "--no-locale",
                "-E",
                "UTF8",
            ])
            .arg(segment_size)
            .arg("-D")
            .arg(cluster.data())
            .output()
            .unwrap();
        assert!(output.status.success(), "initdb: {output:?}");
        cluster
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn wal(&self) -> PathBuf {
        self.data().join("pg_wal")
    }

    /// Starts the server and waits until it answers.
    pub fn start(&mut self) {
        let deadline = Instant::now() + START_TIMEOUT;
        // Backends of a killed server hold its shared memory until they notice.
        while !self.try_start(deadline) {
            assert!(Instant::now() < deadline, "no server: {}", self.log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn try_start(&mut self, deadline: Instant) -> bool {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("log"))
            .unwrap();
        let server = self
            .installation
            .server_program("postgres")
            .arg("-D")
            .arg(self.data())
            .arg("-k")
            .arg(self.folder.path())
            .args([
                "-c",
                "listen_addresses=",
                "-c",
                "fsync=off",
                "-c",
                "shared_buffers=16MB",
            ])
            .args(["-c", "max_connections=20", "-c", "max_wal_size=4GB"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.server = Some(server);
        while Instant::now() < deadline && self.is_running() {
            if psql(&self.installation, self.folder.path(), "SELECT 1")
                .status
                .success()
            {
                return true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    }

    pub fn is_running(&mut self) -> bool {
        let ended = self
            .server
            .as_mut()
            .is_none_or(|server| server.try_wait().unwrap().is_some());
        if ended {
            self.server = None;
        }
        !ended
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Runs SQL, and gives its rows unaligned, columns apart by `|`.
    pub fn sql(&self, sql: &str) -> String {
        let output = psql(&self.installation, self.folder.path(), sql);
        assert!(output.status.success(), "{sql}: {output:?}: {}", self.log());
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn pgbench(&self, arguments: &[&str]) -> Child {
        Command::new(self.installation.clients.join("pgbench"))
            .args(["-U", "postgres", "-n"])
            .arg("-h")
            .arg(self.folder.path())
            .args(arguments)
            .arg("postgres")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Stops the server with a shutdown checkpoint (a "fast" stop).
    pub fn stop(&mut self) {
        self.end_with(Signal::INT);
    }

    /// Kills the server and all its processes, so that nothing writes WAL any more.
    pub fn crash(&mut self) {
        let Some(server) = &self.server else { return };
        // Children of a killed postmaster stop by themselves, but may write until they do.
        let children = children_of(server.id());
        self.end_with(Signal::KILL);
        for child in children {
            let _ = kill_process(child, Signal::KILL);
        }
    }

    fn end_with(&mut self, signal: Signal) {
        let Some(mut server) = self.server.take() else {
            return;
        };
        let pid = Pid::from_child(&server);
        let _ = kill_process(pid, signal);
        let deadline = Instant::now() + START_TIMEOUT;
        while server.try_wait().is_ok_and(|status| status.is_none()) {
            if Instant::now() > deadline {
                let _ = server.kill();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.end_with(Signal::QUIT);
    }
}

fn children_of(parent: u32) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").unwrap();
    processes
        .filter_map(|entry| {
            let name = entry.ok()?.file_name();
            let status = fs::read_to_string(Path::new("/proc").join(&name).join("stat")).ok()?;
            // The program's name in parentheses may hold anything; state and parent follow it.
            let parent_found = status.rsplit_once(')')?.1.split_whitespace().nth(1)?;
            (parent_found.parse() == Ok(parent)).then_some(())?;
            Pid::from_raw(name.to_str()?.parse().ok()?)
        })
        .collect()
}

fn psql(installation: &Installation, socket: &Path, sql: &str) -> std::process::Output {
    Command::new(installation.clients.join("psql"))
        .args([
            "-U",
            "postgres",
            "-d",
            "postgres",
            "-XAtq",
            "-v",
            "ON_ERROR_STOP=1",
        ])
        .arg("-h")
        .arg(socket)
        .args(["-c", sql])
        .env("PGOPTIONS", "-c statement_timeout=60s")
        .env("PGCONNECT_TIMEOUT", "10")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}
