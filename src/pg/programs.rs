//! PostgreSQL's own programs: where they are looked for, and whether they are of a cluster's version.
//! Never runs one but for its version. Invariant: a program that is returned is a file that may be run; a wrong
//! `master_bin` or `slave_bin` is named with what it should be, and no other directory stands in for it.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{Access, access};

use crate::config::{MasterConfig, StandbyConfig};
use crate::error::{CommandError, Result};
use crate::files;
use crate::patience::process;
use crate::pg::data_directory::DataDirectory;
use crate::pg::layout;

/// A program that only prints its version does so at once; one on a dead network file system never does.
const VERSION_PATIENCE: Duration = Duration::from_secs(10);

/// `postmaster.opts`; no system takes a longer command line.
const OPTIONS_BYTES_MAX: u64 = 2 << 20;

/// Longest text of `--version` that is looked at.
const VERSION_BYTES_MAX: u64 = 4 << 10;

/// Where packages put the programs of a version: Debian, and the PostgreSQL project's RPMs.
const OF_PACKAGES: [(&str, &str); 2] = [("/usr/lib/postgresql/", "/bin"), ("/usr/pgsql-", "/bin")];

/// Where a process without `PATH` (`env -i`, some service managers) finds programs.
const PATH_WITHOUT_ONE: &str = "/usr/local/bin:/usr/bin:/bin";

/// Where one side's settings say that the programs are.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    /// The setting's name, for messages.
    setting: &'static str,
    folder: Option<PathBuf>,
}

/// Which versions of a program will do for a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    /// The server's.
    Same,
    /// That, or a newer one.
    NotOlder,
}

impl Fit {
    fn takes(self, found: u8, major: u8) -> bool {
        match self {
            Fit::Same => found == major,
            Fit::NotOlder => found >= major,
        }
    }

    fn wanted(self, major: u8) -> String {
        match self {
            Fit::Same => major.to_string(),
            Fit::NotOlder => format!("{major} or newer"),
        }
    }
}

impl Programs {
    /// Those of `master_bin`.
    pub(crate) fn of_master(config: &MasterConfig) -> Programs {
        Programs::new("master_bin", config.master_bin.as_deref())
    }

    /// Those of `slave_bin`.
    pub(crate) fn of_standby(config: &StandbyConfig) -> Programs {
        Programs::new("slave_bin", config.slave_bin.as_deref())
    }

    fn new(setting: &'static str, folder: Option<&Path>) -> Programs {
        Programs {
            setting,
            folder: folder.map(Path::to_path_buf),
        }
    }

    /// The program of this name for a cluster of this version: from the directory of the setting alone, or where
    /// it is not set, from the `PATH` and then from where packages put it.
    pub(crate) fn find(&self, name: &str, major: u8) -> Result<PathBuf> {
        self.search(name, major, Fit::Same)
    }

    /// A program that works with servers of its own version and of older ones, from where [`Programs::find`] looks.
    pub(crate) fn find_not_older(&self, name: &str, major: u8) -> Result<PathBuf> {
        self.search(name, major, Fit::NotOlder)
    }

    fn search(&self, name: &str, major: u8, fit: Fit) -> Result<PathBuf> {
        if let Some(folder) = &self.folder {
            return self.in_folder(folder, name, major, fit);
        }
        let by_path = std::env::var_os("PATH").unwrap_or_else(|| PATH_WITHOUT_ONE.into());
        let folders: Vec<PathBuf> = std::env::split_paths(&by_path)
            .chain(folders_of_packages(major))
            .collect();
        let programs = folders.iter().map(|folder| folder.join(name));
        let mut runnable = programs.filter(|program| may_run(program));
        let fits = |program: &PathBuf| version_of(program).is_ok_and(|it| fit.takes(it, major));
        let found = runnable.find(fits);
        found.ok_or_else(|| {
            let wanted = fit.wanted(major);
            CommandError::config(format!("{name} of PostgreSQL {wanted} is not in the PATH")).hint(
                format!(
                    "set {} to the directory of PostgreSQL {major}'s programs{}",
                    self.setting,
                    such_as(major)
                ),
            )
        })
    }

    /// What is wrong with the setting, for a cluster of this version if that is known; nothing where it is not set.
    pub(crate) fn check(&self, major: Option<u8>) -> Result<()> {
        match (&self.folder, major) {
            (Some(_), Some(major)) => self.find("postgres", major).map(drop),
            (Some(folder), None) if !may_run(&folder.join("postgres")) => {
                Err(CommandError::config(format!(
                    "{} is {}, which has no program postgres",
                    self.setting,
                    folder.display()
                ))
                .hint("set it to the directory of PostgreSQL's programs, or remove it"))
            }
            _ => Ok(()),
        }
    }

    /// A program as a line that a person types has it.
    pub(crate) fn typed(&self, name: &str) -> String {
        match &self.folder {
            Some(folder) if may_run(&folder.join(name)) => folder.join(name).display().to_string(),
            _ => name.to_owned(),
        }
    }

    fn in_folder(&self, folder: &Path, name: &str, major: u8, fit: Fit) -> Result<PathBuf> {
        let program = folder.join(name);
        let (setting, shown) = (self.setting, folder.display());
        let why = if !folder.is_dir() {
            "which is not a directory".to_owned()
        } else if !may_run(&program) {
            format!("which has no program {name}")
        } else {
            match version_of(&program) {
                Ok(found) if fit.takes(found, major) => return Ok(program),
                Ok(found) => {
                    let wanted = fit.wanted(major);
                    format!("whose {name} is of PostgreSQL {found}, not {wanted}")
                }
                Err(why) => format!("whose {name} does not say its version: {why}"),
            }
        };
        Err(
            CommandError::config(format!("{setting} is {shown}, {why}")).hint(format!(
                "set {setting} to the directory of PostgreSQL {major}'s programs{}, or remove it",
                such_as(major)
            )),
        )
    }
}

/// Where the programs of a cluster are: where its server was started from, or where packages put them. Also where a
/// shell finds them by itself: cron's does not.
pub(crate) fn folder_of(data: &DataDirectory) -> Option<PathBuf> {
    let line = files::read_at_most(
        &data.path().join(layout::POSTMASTER_OPTS),
        OPTIONS_BYTES_MAX,
    );
    let line = line.unwrap_or_default();
    let started = started_from(&line).filter(|folder| may_run(&folder.join("pg_ctl")));
    started.or_else(|| folder_of_packages(data.major()))
}

/// The directory of the program that stands at the beginning of `postmaster.opts`.
fn started_from(line: &[u8]) -> Option<PathBuf> {
    let ends = line.windows(2).position(|bytes| bytes == b" \"");
    let program = &line[..ends.unwrap_or(line.len())];
    let program = Path::new(OsStr::from_bytes(program.trim_ascii_end()));
    let folder = program.parent().filter(|folder| folder.is_absolute())?;
    Some(folder.to_path_buf())
}

/// The directory of the programs of a version where packages put it.
fn folder_of_packages(major: u8) -> Option<PathBuf> {
    folders_of_packages(major).find(|folder| may_run(&folder.join("postgres")))
}

fn folders_of_packages(major: u8) -> impl Iterator<Item = PathBuf> {
    OF_PACKAGES
        .into_iter()
        .map(move |(before, behind)| PathBuf::from(format!("{before}{major}{behind}")))
}

fn such_as(major: u8) -> String {
    match folder_of_packages(major) {
        Some(folder) => format!(", such as {}", folder.display()),
        None => String::new(),
    }
}

fn may_run(program: &Path) -> bool {
    program.is_file() && access(program, Access::EXEC_OK).is_ok()
}

/// The major version that a program says it is of.
fn version_of(program: &Path) -> std::result::Result<u8, String> {
    let started = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = started.map_err(|error| error.to_string())?;
    let ended = process::exited_within(&mut child, VERSION_PATIENCE);
    if !matches!(ended, Ok(Some(_))) {
        let _ = child.kill();
        let _ = child.wait();
        return Err(match ended {
            Err(error) => error.to_string(),
            Ok(_) => "it does not end".to_owned(),
        });
    }
    let mut said = Vec::new();
    if let Some(output) = child.stdout.take() {
        let read = output.take(VERSION_BYTES_MAX).read_to_end(&mut said);
        read.map_err(|error| error.to_string())?;
    }
    major_in(&said).ok_or_else(|| {
        let said = String::from_utf8_lossy(&said);
        let line = said.lines().next().unwrap_or_default();
        format!("it says {:?}", line.chars().take(80).collect::<String>())
    })
}

/// The number in `pg_ctl (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)`.
pub(super) fn major_in(said: &[u8]) -> Option<u8> {
    const BEFORE: &[u8] = b"(PostgreSQL) ";
    let at = said
        .windows(BEFORE.len())
        .position(|bytes| bytes == BEFORE)?;
    let number = said[at + BEFORE.len()..].iter();
    let digits: Vec<u8> = number
        .copied()
        .take_while(u8::is_ascii_digit)
        .take(4)
        .collect();
    std::str::from_utf8(&digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn program(folder: &Path, name: &str, says: &str) {
        let path = folder.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{says}\n")).unwrap();
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }

    #[test]
    fn a_version_is_read_as_the_programs_print_it() {
        for (said, major) in [
            (
                "postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n",
                Some(15),
            ),
            ("pg_ctl (PostgreSQL) 18beta2\n", Some(18)),
            ("pg_ctl (PostgreSQL) 9.1.24\n", Some(9)),
            ("pg_ctl (PostgreSQL) 99999\n", None),
            ("pg_ctl (PostgreSQL) \n", None),
            ("pg_ctl 15\n", None),
            ("", None),
        ] {
            assert_eq!(major_in(said.as_bytes()), major, "{said}");
        }
    }

    #[test]
    fn the_server_shows_where_its_programs_are() {
        for (line, folder) in [
            (
                "/usr/lib/postgresql/15/bin/postgres \"-D\" \"/pg\"\n",
                Some("/usr/lib/postgresql/15/bin"),
            ),
            ("/opt/my pg/bin/postgres\n", Some("/opt/my pg/bin")),
            ("postgres \"-D\" \"/pg\"\n", None),
            ("/\n", None),
            ("", None),
        ] {
            assert_eq!(
                started_from(line.as_bytes()),
                folder.map(PathBuf::from),
                "{line}"
            );
        }
    }

    #[test]
    fn a_wrong_directory_is_named_with_what_it_should_be() {
        let home = tempfile::tempdir().unwrap();
        let of = |folder: &Path| Programs::new("slave_bin", Some(folder));
        let wrong = |folder: &Path| of(folder).find("pg_ctl", 15).unwrap_err().to_string();
        let none = home.path().join("none");
        assert!(
            wrong(&none).contains("slave_bin is ") && wrong(&none).contains("is not a directory")
        );
        assert!(wrong(home.path()).contains("has no program pg_ctl"));
        std::fs::write(home.path().join("pg_ctl"), "").unwrap();
        assert!(wrong(home.path()).contains("has no program pg_ctl"));
        program(home.path(), "pg_ctl", "echo 'pg_ctl (PostgreSQL) 14.2'");
        assert!(wrong(home.path()).contains("whose pg_ctl is of PostgreSQL 14, not 15"));
        program(home.path(), "pg_ctl", "echo nonsense");
        assert!(wrong(home.path()).contains("it says \"nonsense\""));
        program(home.path(), "pg_ctl", "echo 'pg_ctl (PostgreSQL) 15.2'");
        let found = of(home.path()).find("pg_ctl", 15).unwrap();
        assert_eq!(found, home.path().join("pg_ctl"));
        assert_eq!(of(home.path()).find_not_older("pg_ctl", 13).unwrap(), found);
        let older = of(home.path()).find_not_older("pg_ctl", 16).unwrap_err();
        assert!(
            older
                .to_string()
                .contains("whose pg_ctl is of PostgreSQL 15, not 16 or newer")
        );
        assert_eq!(of(home.path()).typed("pg_ctl"), found.display().to_string());
        assert_eq!(of(home.path()).typed("psql"), "psql");
        for major in [None, Some(15)] {
            assert!(of(home.path()).check(major).is_err(), "it has no postgres");
            assert!(Programs::new("slave_bin", None).check(major).is_ok());
        }
    }
}
