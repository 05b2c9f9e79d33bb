//! `cleanup` on the standby: removes what `init`, `setup` and the receiver made, and the archive's folders if they are empty.
//! Never removes a segment, a history, a set, a partial segment, a data directory or what leads elsewhere. Invariant: the
//! archive is locked until the end, so that no receiver starts on half of it.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cleanup::{self, CleanupArgs, Neighbours, Trace};
use crate::config::{HostConfig, StandbyConfig};
use crate::daemon;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use crate::options::Options;
use crate::pg::archive_command::Ours;
use crate::pg::archive_command::restores::may_restore_with;
use crate::pg::data_directory::DataDirectory;
use crate::pg::layout;
use crate::standby::hold::HOLD_NAME;
use crate::standby::{absent_notes, own_server, sets};
use crate::store::{ArchiveReader, RealDisk};

/// What tells a receiver that there is an archive.
const MARKER: &str = ".walmgr-archive";

/// The receiver's lock.
const LOCK: &str = ".walmgr-lock";

/// What else is in the folders of an archive that never held anything, or holds nothing any more.
const OWN_FILES: [&str; 7] = [
    ".rounds",
    ".rounds.sets",
    ".walmgr-compress",
    ".sets.use",
    "PROGRESS",
    "PAUSE",
    HOLD_NAME,
];

/// The folders of notes below them.
const OWN_FOLDERS: [&str; 7] = [
    ".checksums",
    ".maps",
    ".names",
    ".obstacles",
    ".apart",
    ".servers",
    ".verified",
];

/// Lists what goes with the file of a cluster, asks, and removes it.
pub(crate) fn run(config: &StandbyConfig, options: &Options, typed: CleanupArgs) -> Result<()> {
    let (ini, others) = (&config.path, Neighbours::of(&config.path));
    refuse_while_used(config)?;
    // Until the end: whoever is asked may answer tomorrow.
    let _locked = lock(config, options)?;
    let beside_ini = ini.with_extension("log");
    let log = config.logfile.as_deref().unwrap_or(&beside_ini);
    let mut traces = of_server(config);
    traces.extend(cleanup::pidfile(&config.receiver_pidfile(), &others));
    traces.extend(cleanup::log(log, &others));
    traces.extend(of_sets(config));
    traces.extend(of_archive(config, &others));
    traces.extend(Trace::password_lines(ini, |fields| {
        others.user_of_password(fields)
    }));
    traces.extend(cleanup::list_of_keys(&config.authorized_keys, &others));
    traces.extend(cleanup::list_of_names(&config.authorized_names, &others));
    traces.extend(cleanup::identity(&config.tls, &others));
    cleanup::finish(ini, traces, options, typed, || refuse_while_used(config))
}

/// Lists what goes with a host's file, asks, and removes it. Fails while the host has a cluster.
pub(crate) fn run_host(config: &HostConfig, options: &Options, typed: CleanupArgs) -> Result<()> {
    let (ini, others) = (&config.path, Neighbours::of(&config.path));
    refuse_while_host_is_used(config)?;
    let beside_ini = ini.with_extension("log");
    let log = config.logfile.as_deref().unwrap_or(&beside_ini);
    let mut traces: Vec<Trace> = [
        cleanup::pidfile(&config.receiver_pidfile(), &others),
        cleanup::log(log, &others),
        Trace::folder(&config.clusters, "folder of the clusters"),
    ]
    .into_iter()
    .flatten()
    .collect();
    traces.extend(cleanup::identity(&config.tls, &others));
    cleanup::finish(ini, traces, options, typed, || {
        refuse_while_host_is_used(config)
    })
}

fn refuse_while_host_is_used(config: &HostConfig) -> Result<()> {
    if daemon::is_running(&config.receiver_pidfile())? {
        return Err(runs(&config.path));
    }
    let entries = config.clusters.read_dir().into_iter().flatten().flatten();
    let mut clusters: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    clusters.retain(|path| path.extension().is_some_and(|extension| extension == "ini"));
    clusters.sort();
    if let Some(first) = clusters.first() {
        return Err(CommandError::config(format!(
            "the folder {} has {} clusters, whose masters know this host by its key; nothing was removed",
            config.clusters.display(),
            clusters.len()
        ))
        .hint(format!("first type for each: walmgr {} cleanup", first.display())));
    }
    Ok(())
}

fn runs(ini: &Path) -> CommandError {
    CommandError::config("the receiver of this ini file runs; nothing was removed")
        .hint(format!("type: walmgr {} receiver --stop", ini.display()))
}

/// Fails while anything uses the archive or the ini file.
fn refuse_while_used(config: &StandbyConfig) -> Result<()> {
    let pidfile = config.receiver_pidfile();
    if let Some(host) = daemon::serving_host(&pidfile)? {
        let host = host.display();
        return Err(CommandError::config(format!(
            "the receiver of {host} serves this cluster; nothing was removed"
        ))
        .hint(format!(
            "move {} out of the folder of the clusters, type: walmgr {host} receiver --reload, and then cleanup with \
             the file where it is",
            config.path.display()
        )));
    }
    if daemon::is_running(&pidfile)? {
        return Err(runs(&config.path));
    }
    if let Ok(sets) = sets::open(config)
        && let Ok(Some(holder)) = sets.lease_holder()
    {
        return Err(CommandError::config(format!(
            "the backup sets are in use: {holder}; nothing was removed"
        ))
        .hint("wait until that ends; a lock by hand ends with: walmgr STANDBY.ini xrelease"));
    }
    for data in servers(config) {
        if let Some(data) = replays(config, &data)
            && data.running()?.is_some()
        {
            return Err(CommandError::config(format!(
                "the server in {} replays with this ini file; nothing was removed",
                data.path().display()
            ))
            .hint("stop it, or open it: walmgr STANDBY.ini boot"));
        }
    }
    Ok(())
}

/// The receiver's lock, if there is an archive. One that no receiver has opened yet gets it here, or a receiver could
/// start between the list and the removal.
fn lock(config: &StandbyConfig, options: &Options) -> Result<Option<File>> {
    if !config.completed_wals.join(MARKER).exists() {
        return Ok(None);
    }
    let path = config.completed_wals.join(LOCK);
    let opened = match options.not_really {
        true => files::open_at_once(&path),
        false => files::open_lock(&path),
    };
    let file = match opened {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.at(Kind::Config, "open", &path)?,
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(CommandError::config(format!(
            "another process works in {}; nothing was removed",
            config.completed_wals.display()
        ))
        .hint("a receiver of another ini file? `fuser` on .walmgr-lock in it names the process")),
        Err(TryLockError::Error(error)) => Err(error).at(Kind::Config, "lock", &path),
    }
}

/// The data directories whose servers are known to fetch from here.
fn servers(config: &StandbyConfig) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = config.slave_data.iter().cloned().collect();
    if let Ok(archive) = ArchiveReader::open(&config.completed_wals, Arc::new(RealDisk)) {
        found.extend(archive.servers().unwrap_or_default());
    }
    found.sort();
    found.dedup();
    found
}

/// The directory, if its server is a standby that fetches with this ini file.
fn replays(config: &StandbyConfig, data: &Path) -> Option<DataDirectory> {
    let data = DataDirectory::open(data).ok()?;
    let is_standby = layout::SIGNALS
        .iter()
        .any(|name| data.path().join(name).exists());
    let command = own_server::settings(config, &data).value("restore_command")?;
    let ours = Ours {
        ini: &config.path,
        data: data.path(),
    };
    (is_standby && may_restore_with(&command, &ours)).then_some(data)
}

fn of_server(config: &StandbyConfig) -> Vec<Trace> {
    let mut traces = Vec::new();
    for data in servers(config).iter().filter(|data| data.exists()) {
        let why = match replays(config, data) {
            Some(_) => {
                "cleanup removes none; its restore_command uses this ini file, so it does not start as a standby"
            }
            None => "cleanup removes none",
        };
        traces.push(Trace::stays(data, "data directory", why));
        let notes = absent_notes::paths(data);
        traces.extend(
            notes
                .iter()
                .filter_map(|path| Trace::file(path, "note of a file that was absent")),
        );
    }
    traces
}

fn of_sets(config: &StandbyConfig) -> Vec<Trace> {
    let Some(full_backup) = &config.full_backup else {
        return Vec::new();
    };
    let (Some(above), Some(base)) = (
        full_backup.parent(),
        full_backup.file_name().and_then(|name| name.to_str()),
    ) else {
        return Vec::new();
    };
    let names = names_in(above);
    let mut traces: Vec<Trace> = names
        .iter()
        .filter(|name| *name == base || name.starts_with(&format!("{base}.")))
        .map(|name| Trace::stays(&above.join(name), "backup set", "cleanup removes none"))
        .collect();
    let lock = format!(".{base}.lock");
    let has_more = !traces.is_empty() || names.contains(&format!(".{base}.intent"));
    let file = Trace::file(&above.join(&lock), "lock on the names of the sets");
    traces.extend(file.map(|file| file.unless(has_more.then(|| "there are sets".to_owned()))));
    traces
}

/// The folders of WAL, if both hold nothing; markers first, so that a receiver finds no archive in what is left.
fn of_archive(config: &StandbyConfig, others: &Neighbours) -> Vec<Trace> {
    let folders = [&config.completed_wals, &config.partial_wals];
    let what = "folder of the archive";
    let held = folders
        .iter()
        .find_map(|folder| Some(((*folder).clone(), held_in(folder)?)));
    let used = folders.iter().find_map(|folder| others.user_of(folder));
    let mut traces = Vec::new();
    if held.is_some() || used.is_some() {
        for folder in folders.into_iter().filter(|folder| folder.exists()) {
            let why = match (&used, &held) {
                (Some(used), _) => used.clone(),
                (None, Some((at, why))) if at == folder => why.clone(),
                (None, _) => "it belongs to an archive that is not empty".to_owned(),
            };
            traces.push(Trace::stays(folder, what, why));
        }
    } else {
        let file =
            |folder: &PathBuf, name: &str| Trace::file(&folder.join(name), "of the empty archive");
        traces.extend(folders.iter().filter_map(|folder| file(folder, MARKER)));
        for folder in folders {
            traces.extend(OWN_FILES.iter().filter_map(|name| file(folder, name)));
            let notes =
                |name: &&str| Trace::notes(&folder.join(name), "notes of the empty archive");
            traces.extend(OWN_FOLDERS.iter().filter_map(notes));
            traces.extend(file(folder, LOCK));
            traces.extend(Trace::folder(folder, what));
        }
    }
    let copies = config.config_backup.as_deref();
    traces.extend(copies.and_then(|path| Trace::folder(path, "copies of configuration files")));
    let base = config.walmgr_data.as_deref();
    traces.extend(base.and_then(|path| Trace::folder(path, "base directory of the archive")));
    traces
}

/// Why a folder is more than an empty one of an archive.
fn held_in(folder: &Path) -> Option<String> {
    let found = folder.symlink_metadata().ok()?;
    if !found.is_dir() {
        return Some("it is a link, or no folder".to_owned());
    }
    let own = |name: &String| {
        let name = name.as_str();
        [MARKER, LOCK].contains(&name) || OWN_FILES.contains(&name) || OWN_FOLDERS.contains(&name)
    };
    let held: Vec<String> = match folder.read_dir() {
        Err(error) => return Some(format!("it cannot be looked at: {error}")),
        Ok(_) => names_in(folder)
            .into_iter()
            .filter(|name| !own(name))
            .collect(),
    };
    let first = held.first()?;
    Some(match held.len() {
        1 => format!("it holds {first}"),
        count => format!("it holds {count} files, {first} among them"),
    })
}

/// The names in a folder, sorted.
fn names_in(folder: &Path) -> Vec<String> {
    let entries = folder.read_dir().into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
