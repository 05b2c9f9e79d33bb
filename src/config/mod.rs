//! The ini file: its dialect, the table of settings, and what the master and the standby get.
//! Never asks whether a directory exists, never writes. Invariant: a [`Config`] that loads has
//! passed every check, and every error names file, line and key.
//!
//! In reading order: [`ini`] (lines to keys), `interpolate` (`%(name)s`), [`keys`] and `table`
//! (what is known of each), `value`, `quantity` and `address` (texts to values), `collect` and
//! `settings` (one file, checked key by key), `overlap` and [`tls`] (checks between keys), [`master`], [`standby`] and
//! [`host`], and `clusters` and `claims` (the files of a host's clusters, and what each has for itself).

pub(crate) mod address;
mod claims;
mod clusters;
mod collect;
pub(crate) mod fault;
pub(crate) mod fuzzing;
pub(crate) mod host;
pub(crate) mod ini;
mod interpolate;
pub(crate) mod keys;
pub(crate) mod master;
mod overlap;
pub(crate) mod packaged;
mod quantity;
pub(crate) mod sample;
mod settings;
pub(crate) mod standby;
mod table;
pub(crate) mod tls;
mod value;

use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use fault::Fault;
use keys::Side;
use settings::GivenSettings;
use value::Surroundings;

pub(crate) use address::{DEFAULT_PORT, ListenAddress};
pub(crate) use claims::{WantedInForce, WantedPaths};
pub use clusters::ClusterFiles;
pub(crate) use clusters::{host_around, load_folder, shown_cluster_name};
pub use host::HostConfig;
pub use master::MasterConfig;
pub(crate) use master::{BackupCheckpoint, VerifyWal};
pub(crate) use quantity::{duration as read_duration, size as read_size};
pub use standby::StandbyConfig;
pub(crate) use standby::{LogFormat, OnCorrupt, StoreCompression};
pub(crate) use tls::TlsSettings;

/// What an ini file turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Config {
    /// A master.ini.
    Master(Box<MasterConfig>),
    /// A standby.ini.
    Standby(Box<StandbyConfig>),
    /// A host.ini: a file with `clusters`.
    Host(Box<HostConfig>),
}

/// Reads and checks an ini file, with the settings of `--set` in place of its lines.
///
/// Relative paths in it start at its own directory. Errors are of [`Kind::Config`].
pub fn load(path: &Path, overrides: &[(String, String)]) -> Result<Config> {
    let path = std::path::absolute(path).at(Kind::Config, "find", path)?;
    let bytes = read_ini(&path)?;
    let directory = path.parent().unwrap_or(Path::new("/")).to_path_buf();
    let around = Surroundings::of_process(directory);
    load_bytes(&bytes, &path, overrides, around).map_err(|fault| fault.into_error(&path))
}

/// The part of [`load`] that reads nothing but its arguments.
fn load_bytes(
    bytes: &[u8],
    path: &Path,
    overrides: &[(String, String)],
    around: Surroundings,
) -> std::result::Result<Config, Fault> {
    let section = ini::parse(bytes)?;
    let settings = GivenSettings::check(path, &section, overrides, around)?;
    Ok(match settings.side {
        Side::Standby => Config::Standby(Box::new(StandbyConfig::build(&settings)?)),
        Side::Host => Config::Host(Box::new(HostConfig::build(&settings)?)),
        Side::Master | Side::Both => Config::Master(Box::new(MasterConfig::build(&settings)?)),
    })
}

/// An editor or a shell that writes a file in its place leaves it empty for a moment, and a server whose
/// `restore_command` reads it then would end.
const WRITTEN_WITHIN: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

fn read_ini(path: &Path) -> Result<Vec<u8>> {
    let hint = |error: &std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            format!(
                "check the path on the command line; `walmgr {} init` writes a first file",
                path.display()
            )
        }
        std::io::ErrorKind::PermissionDenied => {
            let user = rustix::process::geteuid().as_raw();
            format!(
                "this runs as user {user}: run it as the file's owner, or let this user read it"
            )
        }
        _ => "check the path on the command line".to_owned(),
    };
    let read = || -> std::io::Result<Vec<u8>> {
        // Looked at before it is opened: opening a FIFO would wait for its writer.
        if !std::fs::metadata(path)?.is_file() {
            return Err(std::io::Error::other(
                "expected a file, found something else",
            ));
        }
        // One byte more, so that `ini::parse` sees that it is too long.
        files::read_at_most(path, ini::FILE_BYTES_MAX as u64 + 1)
    };
    let read_whole = || {
        let given_up = Instant::now() + WRITTEN_WITHIN;
        loop {
            let bytes = read()?;
            if !bytes.is_empty() || Instant::now() > given_up {
                return Ok(bytes);
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    };
    read_whole().or_else(|error: std::io::Error| {
        let hint = hint(&error);
        Err(error)
            .at(Kind::Config, "read", path)
            .map_err(|error| error.hint(hint))
    })
}

impl Config {
    /// The master's settings, for a command that runs only there.
    pub fn into_master(self, command: &str) -> Result<MasterConfig> {
        match self {
            Config::Master(config) => Ok(*config),
            Config::Standby(config) => Err(wrong_side(&config.path, command, Side::Standby)),
            Config::Host(config) => Err(config.not_for(command)),
        }
    }

    /// The standby's settings, for a command that runs only there.
    pub fn into_standby(self, command: &str) -> Result<StandbyConfig> {
        match self {
            Config::Standby(config) => Ok(*config),
            Config::Master(config) => Err(wrong_side(&config.path, command, Side::Master)),
            Config::Host(config) => Err(config.not_for(command)),
        }
    }

    /// The ini file, absolute.
    pub fn path(&self) -> &Path {
        match self {
            Config::Master(config) => &config.path,
            Config::Standby(config) => &config.path,
            Config::Host(config) => &config.path,
        }
    }

    /// Where to log.
    pub fn logfile(&self) -> Option<&Path> {
        match self {
            Config::Master(config) => config.logfile.as_deref(),
            Config::Standby(config) => config.logfile.as_deref(),
            Config::Host(config) => config.logfile.as_deref(),
        }
    }

    /// The running daemon's pid file, if one is set.
    pub fn pidfile(&self) -> Option<&Path> {
        match self {
            Config::Master(config) => config.pidfile.as_deref(),
            Config::Standby(config) => config.pidfile.as_deref(),
            Config::Host(config) => config.pidfile.as_deref(),
        }
    }

    /// Things worth saying that stop nobody; for the caller to print.
    pub fn notes(&self) -> &[String] {
        match self {
            Config::Master(config) => &config.notes,
            Config::Standby(config) => &config.notes,
            Config::Host(config) => &config.notes,
        }
    }
}

impl Config {
    /// Values that count as others; only a master's file may have some.
    pub fn warnings(&self) -> &[String] {
        match self {
            Config::Master(config) => &config.warnings,
            Config::Standby(_) | Config::Host(_) => &[],
        }
    }
}

fn wrong_side(path: &Path, command: &str, found: Side) -> CommandError {
    let expected = match found {
        Side::Master => Side::Standby,
        Side::Standby | Side::Host | Side::Both => Side::Master,
    };
    CommandError::config(format!(
        "{}: {command} expected a {}'s ini file, found a {}'s",
        path.display(),
        expected.word(),
        found.word()
    ))
    .hint(format!(
        "run it on the {0}, with the {0}'s ini file",
        expected.word()
    ))
}

#[cfg(test)]
mod tests;
