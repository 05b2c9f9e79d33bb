//! Who has to type a command: the owner of what it writes, root included.
//! Never looks at commands that only read. Invariant: a refusal comes before anything is touched, and ends with the
//! line to type; a new command does not compile before it is decided here what it writes.
//!
//! What a command of another user leaves is nobody's: PostgreSQL cannot read what root wrote, and the next
//! `archive_command` fails. Where the owner is the caller there is nothing to say, so that a container in which
//! all belongs to root works. What belongs to root and is written by somebody else is left to the file
//! system, and a folder that a group may write is enough, but for a data directory.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};
use rustix::process::geteuid;

use super::command::Command;
use crate::config::{Config, HostConfig, MasterConfig, StandbyConfig};
use crate::error::{CommandError, Result};
use crate::files;
use crate::master::setup::SetupArgs;
use crate::options::InitArgs;

/// A place that a command writes to.
struct Written {
    path: PathBuf,
    /// PostgreSQL starts only for its owner.
    is_data_directory: bool,
}

impl Written {
    fn data(path: &Path) -> Written {
        Written {
            path: path.to_path_buf(),
            is_data_directory: true,
        }
    }

    fn folder(path: &Path) -> Written {
        Written {
            path: path.to_path_buf(),
            is_data_directory: false,
        }
    }
}

/// Refuses `init` for anybody but the owner of where it writes, or of the data directory it is told.
pub(super) fn check_init(ini: &Path, arguments: &InitArgs) -> Result<()> {
    let told = arguments.pgdata.as_deref().map(Written::data);
    check(told.as_slice(), &[Written::folder(folder_of(ini))])
}

/// The user who owns where `init --start` writes, if root typed it for somebody else.
pub(super) fn starts_for(ini: &Path, arguments: &InitArgs) -> Option<u32> {
    let (_, owner) = nearest(folder_of(ini)).ok()?;
    (arguments.start && geteuid().is_root() && owner != 0).then_some(owner)
}

/// The user who owns the server that `setup --restart` restarts, if root typed it.
pub(super) fn restarts_for(config: &MasterConfig, arguments: &SetupArgs) -> Option<u32> {
    let (_, owner) = nearest(&config.master_data).ok()?;
    (arguments.restart && geteuid().is_root() && owner != 0).then_some(owner)
}

/// Refuses a command without a file of settings for anybody but the owner of this data directory.
pub(super) fn check_data(data: &Path) -> Result<()> {
    check(&[Written::data(data)], &[])
}

/// Refuses a file of settings that only its owner may read, with the line to type.
pub(super) fn check_readable(ini: &Path, command: &Command) -> Result<()> {
    let by_postgresql = matches!(command, Command::Xarchive(_) | Command::Xrestore(_));
    if by_postgresql || access(ini, Access::READ_OK) != Err(rustix::io::Errno::ACCESS) {
        return Ok(());
    }
    match nearest(ini) {
        Ok((path, owner)) if owner != geteuid().as_raw() && owner != 0 => {
            Err(refusal(&path, owner))
        }
        _ => Ok(()),
    }
}

/// Refuses a command for anybody but the owner of what it writes.
pub(super) fn check_command(config: &Config, command: &Command) -> Result<()> {
    let (places, beside) = places(config, command);
    check(&places, &beside)
}

fn places(config: &Config, command: &Command) -> Places {
    match config {
        Config::Master(config) => of_master(config, command),
        Config::Standby(config) => of_standby(config, command),
        Config::Host(config) => of_host(config, command),
    }
}

/// Whether a command may make the logfile, if there is none yet: what somebody makes who only looks, or root for a
/// file elsewhere, is closed to the owner's daemon, which does not start without its log.
pub(super) fn may_make_log(config: &Config, command: &Command) -> bool {
    let (places, beside) = places(config, command);
    let path = match config {
        Config::Master(config) => &config.master_data,
        Config::Standby(config) => &config.completed_wals,
        Config::Host(config) => &config.clusters,
    };
    let is_owner = || nearest(path).is_ok_and(|(_, owner)| owner == geteuid().as_raw());
    let only_looks = places.is_empty() && beside.is_empty();
    let by_root = matches!(command, Command::Xrestore(_)) && geteuid().is_root();
    !(only_looks || by_root) || is_owner()
}

/// What decides, and what does where none of that is there yet.
type Places = (Vec<Written>, Vec<Written>);

/// Nothing is written.
const NOTHING: Places = (Vec::new(), Vec::new());

fn of_master(config: &MasterConfig, command: &Command) -> Places {
    let data = Written::data(&config.master_data);
    match command {
        Command::Setup(_)
        | Command::Stop
        | Command::Periodic
        | Command::Backup(_)
        | Command::Sync
        | Command::Syncdaemon(_)
        | Command::SynchStandby(_)
        // It remembers in pg_wal which histories are archived.
        | Command::Xarchive(_) => (vec![data], Vec::new()),
        Command::Cleanup(_) => (vec![data], vec![Written::folder(folder_of(&config.path))]),
        Command::Xrestore(typed) => handed_over(&typed.path),
        Command::Restore(restoring) => {
            let place = restoring.destination.as_deref().map(Written::data);
            (vec![data], place.into_iter().collect())
        }
        Command::Identity if !config.tls.key.exists() => (
            vec![data],
            vec![Written::folder(folder_of(&config.tls.key))],
        ),
        Command::Identity
        | Command::Bench(_)
        | Command::ListBackups(_)
        | Command::Status(_) => NOTHING,
        // Those of the standby are refused as such.
        Command::Init(_)
        | Command::Authorize(_)
        | Command::Revoke(_)
        | Command::Receiver(_)
        | Command::Verify(_)
        | Command::CreateSlave(_)
        | Command::Keep(_)
        | Command::Unkeep(_)
        | Command::Expire
        | Command::Xpurgewals
        | Command::Compress
        | Command::Xlock
        | Command::Xrelease(_)
        | Command::Xrotate
        | Command::Xpartialsync(_)
        | Command::Choose(_)
        | Command::Pause
        | Command::Continue
        | Command::Drill(_)
        | Command::Boot(_) => NOTHING,
    }
}

/// A file that PostgreSQL is going to read and remove.
fn handed_over(path: &Path) -> Places {
    (vec![Written::folder(folder_of(path))], Vec::new())
}

fn of_standby(config: &StandbyConfig, command: &Command) -> Places {
    let archive = || Written::folder(&config.completed_wals);
    let server = || config.slave_data.as_deref().map(Written::data);
    match command {
        Command::Setup(_) => (vec![archive()], vec![archive()]),
        Command::Receiver(_)
        | Command::Authorize(_)
        | Command::Revoke(_)
        // It remembers in the archive what it has read.
        | Command::Verify(_)
        | Command::Keep(_)
        | Command::Unkeep(_)
        | Command::Expire
        | Command::Xpurgewals
        | Command::Compress
        | Command::Xlock
        | Command::Xrelease(_)
        | Command::Xrotate
        | Command::Xpartialsync(_)
        | Command::Cleanup(_)
        | Command::Choose(_)
        | Command::Pause
        | Command::Continue => (
            vec![archive()],
            vec![Written::folder(folder_of(&config.path))],
        ),
        Command::Backup(_)
        | Command::Boot(_)
        | Command::Drill(_)
        | Command::Restore(_)
        | Command::CreateSlave(_) => (
            server().into_iter().chain([archive()]).collect(),
            Vec::new(),
        ),
        Command::Identity if !config.tls.key.exists() => (
            vec![archive()],
            vec![Written::folder(folder_of(&config.tls.key))],
        ),
        Command::Xrestore(typed) => handed_over(&typed.path),
        Command::Identity | Command::ListBackups(_) | Command::Status(_) => NOTHING,
        // Those of the master are refused as such.
        Command::Init(_)
        | Command::Bench(_)
        | Command::Stop
        | Command::Xarchive(_)
        | Command::Periodic
        | Command::Sync
        | Command::Syncdaemon(_)
        | Command::SynchStandby(_) => NOTHING,
    }
}

/// Every cluster's archive is its receiver's too; that they are one user's is found when they are opened.
fn of_host(config: &HostConfig, command: &Command) -> Places {
    let clusters = || vec![Written::folder(&config.clusters)];
    match command {
        // `verify` remembers in each archive what it has read.
        Command::Receiver(_) | Command::Cleanup(_) | Command::Verify(_) => {
            (clusters(), vec![Written::folder(folder_of(&config.path))])
        }
        Command::Identity if !config.tls.key.exists() => (
            clusters(),
            vec![Written::folder(folder_of(&config.tls.key))],
        ),
        // All others take a cluster's file.
        _ => NOTHING,
    }
}

fn check(places: &[Written], otherwise: &[Written]) -> Result<()> {
    // What may not be looked at is there.
    let is_there = |place: &&Written| place.path.try_exists().unwrap_or(true);
    let there: Vec<_> = places.iter().filter(is_there).collect();
    let looked_at = match there.is_empty() {
        true => otherwise.iter().collect(),
        false => there,
    };
    for place in looked_at {
        // What cannot be looked at is told by whoever opens it.
        let Ok((path, owner)) = nearest(&place.path) else {
            continue;
        };
        let user = geteuid().as_raw();
        let shared = user != 0
            && !(place.is_data_directory && path == place.path)
            && access(&path, Access::WRITE_OK).is_ok();
        if owner != user && owner != 0 && !shared {
            return Err(refusal(&path, owner));
        }
    }
    Ok(())
}

/// The path, or the nearest folder above it that can be looked at; and its owner.
fn nearest(path: &Path) -> io::Result<(PathBuf, u32)> {
    let mut looked = Err(io::ErrorKind::NotFound.into());
    for path in path.ancestors() {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        looked = std::fs::metadata(path).map(|found| (path.to_path_buf(), found.uid()));
        if looked.is_ok() {
            break;
        }
    }
    looked
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn refusal(path: &Path, owner: u32) -> CommandError {
    let (user, owner) = (user_text(geteuid().as_raw()), user_text(owner));
    let words = std::env::args_os().map(|word| quoted(&word.to_string_lossy()));
    let typed: Vec<String> = words.collect();
    CommandError::config(format!(
        "this runs as {user}, but {} belongs to {owner}, who could not use the new files; nothing \
        was changed",
        path.display()
    ))
    .hint(format!(
        "type: sudo -u {} {}",
        quoted(&owner),
        typed.join(" ")
    ))
}

/// A user as `sudo -u` takes it.
fn user_text(uid: u32) -> String {
    files::user_name(uid).unwrap_or_else(|| format!("#{uid}"))
}

/// A word as a shell takes it.
pub(super) fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+=:@%,".contains(&byte);
    match !word.is_empty() && word.bytes().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell() {
        for (word, expected) in [
            ("setup", "setup"),
            ("/srv/my files/a.ini", "'/srv/my files/a.ini'"),
            ("it's", "'it'\\''s'"),
            ("#1001", "'#1001'"),
            ("", "''"),
        ] {
            assert_eq!(quoted(word), expected);
        }
    }

    #[test]
    fn what_is_not_there_yet_belongs_to_whoever_has_the_folder_above() {
        let folder = tempfile::tempdir().unwrap();
        let (path, owner) = nearest(&folder.path().join("a/b")).unwrap();
        assert_eq!(path, folder.path());
        assert_eq!(owner, geteuid().as_raw());
        assert!(check(&[Written::data(folder.path())], &[]).is_ok());
        assert_eq!(folder_of(Path::new("master.ini")), Path::new("."));
    }
}
