//! A data directory: which version it is of, and whether a server runs on it.
//! Never changes it. Invariant: a `DataDirectory` is of a major version that walmgr supports.

use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, test_kill_process};

use super::control::{self, ControlFile};
use super::layout;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use crate::files::FileId;

/// The oldest and the newest major version walmgr supports.
pub const SUPPORTED_MAJORS: std::ops::RangeInclusive<u8> = 13..=18;

/// `PG_VERSION` and `postmaster.pid` are some lines long.
const SMALL_FILE_BYTES: u64 = 16 << 10;

/// The directory of a cluster of a supported version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataDirectory {
    path: PathBuf,
    major: u8,
}

impl DataDirectory {
    /// Looks at `PG_VERSION`; the error says in one sentence what is wrong with the directory.
    pub fn open(path: &Path) -> Result<DataDirectory> {
        let text = match files::read_at_most(&path.join(layout::PG_VERSION), SMALL_FILE_BYTES) {
            Ok(text) => String::from_utf8_lossy(&text).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let doing = format!(
                    "{} is not a PostgreSQL data directory: it has no PG_VERSION",
                    path.display()
                );
                return Err(CommandError::config(doing));
            }
            Err(error) => return Err(error).at(Kind::Config, "read PG_VERSION in", path),
        };
        let version = text.trim();
        let major = version
            .parse()
            .ok()
            .filter(|major| SUPPORTED_MAJORS.contains(major));
        match major {
            Some(major) => Ok(DataDirectory {
                path: path.to_path_buf(),
                major,
            }),
            None => Err(CommandError::config(format!(
                "{} is of PostgreSQL {}; walmgr supports {} to {}",
                path.display(),
                version.chars().take(20).collect::<String>().escape_debug(),
                SUPPORTED_MAJORS.start(),
                SUPPORTED_MAJORS.end(),
            ))),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its major version, 13 to 18.
    pub fn major(&self) -> u8 {
        self.major
    }

    /// The folder of its WAL, which may be a symlink.
    pub fn wal(&self) -> PathBuf {
        self.path.join(layout::PG_WAL)
    }

    /// The name of the user it belongs to, as the server has to.
    pub fn owner_name(&self) -> Option<String> {
        use std::os::unix::fs::MetadataExt;
        files::user_name(std::fs::metadata(&self.path).ok()?.uid())
    }

    /// Its control file.
    pub fn control(&self) -> Result<ControlFile> {
        control::read(&self.path)
    }

    /// The server that runs on it, or `None`.
    ///
    /// A `postmaster.pid` that a crash left does not count, also not when its number belongs to
    /// another program by now. One that cannot be read is an error, as it may be of a server.
    pub fn running(&self) -> Result<Option<Postmaster>> {
        let last = self.last_server()?;
        Ok(last.filter(|postmaster| self.is_alive(postmaster)))
    }

    /// The server that runs on it, or that crashed and left its `postmaster.pid`; children of it may
    /// still be there.
    pub fn last_server(&self) -> Result<Option<Postmaster>> {
        let path = self.path.join(layout::POSTMASTER_PID);
        let text = match files::read_at_most(&path, SMALL_FILE_BYTES) {
            Ok(text) => String::from_utf8_lossy(&text).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).at(Kind::Config, "read", &path),
        };
        // A server that is starting creates the file and fills it a moment later.
        let Some(postmaster) = Postmaster::parse(&text) else {
            let doing = format!("{} does not begin with a process id", path.display());
            return Err(CommandError::retry(doing));
        };
        Ok(Some(postmaster))
    }

    fn is_alive(&self, postmaster: &Postmaster) -> bool {
        let Some(pid) = Pid::from_raw(postmaster.pid) else {
            return false;
        };
        match test_kill_process(pid) {
            Ok(()) | Err(rustix::io::Errno::PERM) => {}
            Err(_) => return false,
        }
        // A server works in its data directory, under whatever name: a bind mount gives it several. Another
        // user's process cannot be looked at, and then a wrong yes is less harmful than a wrong no.
        let works_in = std::fs::metadata(format!("/proc/{}/cwd", postmaster.pid));
        match (works_in, std::fs::metadata(&self.path)) {
            (Ok(works_in), Ok(data)) => {
                FileId::of_metadata(&works_in) == FileId::of_metadata(&data)
            }
            (Err(error), _) if error.kind() == io::ErrorKind::NotFound => false,
            _ => true,
        }
    }
}

/// What `postmaster.pid` says (`src/include/utils/pidfile.h`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Postmaster {
    /// Its process id.
    pub pid: i32,
    /// A backend in single-user mode, which does not accept connections.
    pub single_user: bool,
    /// When it started, in seconds since 1970.
    pub started_s: Option<i64>,
    /// The port it listens on, also part of the socket's name.
    pub port: Option<u16>,
    /// The first folder of `unix_socket_directories`, if it listens on Unix sockets.
    pub socket_directory: Option<PathBuf>,
    /// The first of `listen_addresses` to connect to, if it listens on TCP.
    pub listen_address: Option<String>,
    /// Whether it has finished starting: connections are accepted, or it replays as a standby.
    pub ready: bool,
    /// Whether connections are accepted, by a standby too.
    pub accepts: bool,
}

impl Postmaster {
    /// Reads the lines of the file; those a starting server has not written yet may be missing.
    pub fn parse(text: &str) -> Option<Postmaster> {
        let line = |number: usize| {
            let line = text.lines().nth(number - 1)?.trim();
            (!line.is_empty()).then_some(line)
        };
        let pid: i32 = line(1)?.parse().ok()?;
        let listen_address = line(6).map(|address| match address {
            // It listens on every address; this one reaches it.
            "*" => "127.0.0.1".to_owned(),
            address => address.to_owned(),
        });
        Some(Postmaster {
            // Single-user mode writes its number negative.
            pid: pid.checked_abs().filter(|pid| *pid > 0)?,
            single_user: pid < 0,
            started_s: line(3).and_then(|number| number.parse().ok()),
            port: line(4).and_then(|number| number.parse().ok()),
            socket_directory: line(5).map(PathBuf::from),
            listen_address,
            ready: matches!(line(8), Some("ready" | "standby")),
            accepts: line(8) == Some("ready"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(version: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("PG_VERSION"), version).unwrap();
        folder
    }

    #[test]
    fn supported_versions_are_13_to_18_and_others_are_named_in_one_sentence() {
        for major in 13..=18_u8 {
            let folder = directory(&format!("{major}\n"));
            assert_eq!(DataDirectory::open(folder.path()).unwrap().major(), major);
        }
        for version in ["9.6\n", "12\n", "19\n", "", "\u{1b}[31m15"] {
            let folder = directory(version);
            let error = DataDirectory::open(folder.path()).unwrap_err();
            assert_eq!(error.kind(), Kind::Config);
            assert!(
                error.to_string().ends_with("walmgr supports 13 to 18"),
                "{error}"
            );
            assert!(!error.to_string().contains('\u{1b}'));
        }
        let empty = tempfile::tempdir().unwrap();
        let error = DataDirectory::open(empty.path()).unwrap_err().to_string();
        assert!(error.ends_with("is not a PostgreSQL data directory: it has no PG_VERSION"));
    }

    #[test]
    fn a_running_servers_pid_file_is_understood() {
        let text =
            "4711\n/srv/data\n1700000000\n5434\n/run/postgresql\n*\n  5434001  98315\nready   \n";
        assert_eq!(
            Postmaster::parse(text).unwrap(),
            Postmaster {
                pid: 4711,
                single_user: false,
                started_s: Some(1_700_000_000),
                port: Some(5434),
                socket_directory: Some("/run/postgresql".into()),
                listen_address: Some("127.0.0.1".into()),
                ready: true,
                accepts: true,
            }
        );
        let replaying = Postmaster::parse(&text.replace("ready", "standby")).unwrap();
        assert!(replaying.ready && !replaying.accepts);
        let starting = Postmaster::parse("4711\n/srv/data\n1700000000\n5434\n").unwrap();
        assert!(!starting.ready && starting.socket_directory.is_none());
        assert!(Postmaster::parse("-4711\n/srv/data\n").unwrap().single_user);
        for nonsense in ["", "\n", "0\n", "-2147483648\n", "postgres\n"] {
            assert_eq!(Postmaster::parse(nonsense), None, "{nonsense:?}");
        }
    }

    #[test]
    fn a_stale_pid_file_is_not_a_running_server() {
        let folder = directory("15\n");
        let data = DataDirectory::open(folder.path()).unwrap();
        assert_eq!(data.running().unwrap(), None);
        let pid_file = folder.path().join("postmaster.pid");
        // This very process lives, but works elsewhere.
        std::fs::write(&pid_file, format!("{}\n", std::process::id())).unwrap();
        assert_eq!(data.running().unwrap(), None);
        std::fs::write(&pid_file, format!("{}\n", i32::MAX)).unwrap();
        assert_eq!(data.running().unwrap(), None);
        std::fs::write(&pid_file, "").unwrap();
        assert_eq!(data.running().unwrap_err().kind(), Kind::Retry);
    }

    #[test]
    fn a_process_that_works_in_the_directory_is_its_server() {
        let folder = directory("15\n");
        let mut sleeper = std::process::Command::new("sleep")
            .arg("60")
            .current_dir(folder.path())
            .spawn()
            .unwrap();
        let pid_file = folder.path().join("postmaster.pid");
        std::fs::write(&pid_file, format!("{}\n", sleeper.id())).unwrap();
        let data = DataDirectory::open(folder.path()).unwrap();
        let running = data.running().unwrap();
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert_eq!(running.unwrap().pid.unsigned_abs(), sleeper.id());
        assert_eq!(data.running().unwrap(), None);
    }
}
