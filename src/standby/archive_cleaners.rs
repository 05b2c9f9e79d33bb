//! Servers on this host whose recovery runs a command that removes WAL from the archive: `pg_archivecleanup` in
//! configurations that Skytools wrote. Never changes a setting, and never runs a command. Invariant: the server in
//! `slave_data` and each that fetches from the archive is looked at, by its files, its command line and its own word.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::StandbyConfig;
use crate::pg::archive_command::cleanup;
use crate::pg::control::State;
use crate::pg::data_directory::DataDirectory;
use crate::pg::layout;
use crate::standby::own_server;
use crate::store::{ArchiveReader, RealDisk};

/// A sentence for each such command, with what to do.
pub(super) fn named(config: &StandbyConfig) -> Vec<String> {
    let mut found = Vec::new();
    for path in data_directories(config) {
        let Ok(data) = DataDirectory::open(&path) else {
            continue;
        };
        if !replays(&data) {
            continue;
        }
        for (setting, command, place) in commands(config, &data) {
            if cleanup::reaches(&command, &config.completed_wals, &path) {
                found.push(format!(
                    "{setting} of the server in {} is `{}` ({place}), which removes WAL from the archive that backup \
                     sets need: set it to '' there and reload; keep_backups and `xpurgewals` remove what nobody needs",
                    path.display(),
                    command.escape_debug(),
                ));
            }
        }
    }
    found
}

/// That of the settings first, each once.
fn data_directories(config: &StandbyConfig) -> Vec<PathBuf> {
    let archive = ArchiveReader::open(&config.completed_wals, Arc::new(RealDisk));
    let noted = archive.and_then(|archive| archive.servers());
    let mut paths: Vec<PathBuf> = config.slave_data.iter().cloned().collect();
    for path in noted.unwrap_or_default() {
        if !paths.iter().any(|known| is_same(known, &path)) {
            paths.push(path);
        }
    }
    paths
}

fn is_same(one: &Path, other: &Path) -> bool {
    one == other
        || one
            .canonicalize()
            .ok()
            .is_some_and(|one| Some(one) == other.canonicalize().ok())
}

/// An open server runs neither command.
fn replays(data: &DataDirectory) -> bool {
    let signals = layout::SIGNALS;
    let has_signal = signals.iter().any(|name| data.path().join(name).exists());
    let state = data.control().map(|control| control.state);
    has_signal
        || matches!(
            state,
            Ok(State::InArchiveRecovery | State::ShutDownInRecovery)
        )
}

/// What the server is set to and where, by its files and by its own word: each counts, one now and one later.
fn commands(config: &StandbyConfig, data: &DataDirectory) -> Vec<(&'static str, String, String)> {
    let files = own_server::settings(config, data);
    let mut found = Vec::new();
    for name in cleanup::SETTINGS {
        found.extend(files.get(name).map(|set| (name, set.value, set.place)));
    }
    let is_own = config.slave_data.as_deref() == Some(data.path());
    let server = data.running().ok().flatten().filter(|_| is_own);
    let asked = server.map(|server| {
        own_server::ask(data, &server, async |session| {
            session.in_force(&cleanup::SETTINGS).await
        })
    });
    for said in asked.and_then(Result::ok).into_iter().flatten() {
        let name = cleanup::SETTINGS
            .into_iter()
            .find(|name| *name == said.name);
        let is_known =
            |(name, value, _): &(&str, String, String)| *name == said.name && *value == said.value;
        if let Some(name) = name
            && !found.iter().any(is_known)
        {
            let place = format!("in force, from {}", said.place());
            found.push((name, said.value, place));
        }
    }
    found
}
