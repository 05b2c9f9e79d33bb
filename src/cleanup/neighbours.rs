//! The other ini files of this host that may use what one of them made: beside it, and those of a host's folder.
//! Never decides what goes. Invariant: a file of settings that cannot be read counts as a user of everything it names.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::config::{self, Config, TlsSettings};
use crate::files;
use crate::pg::conninfo::password_lines::PasswordLines;
use crate::pg::conninfo::{self, Environment};

/// Longest file of settings that is read for the names in it.
const INI_BYTES_MAX: u64 = 1 << 20;

/// A file that cannot be read as settings.
#[derive(Debug)]
struct UnreadIni {
    path: PathBuf,
    /// `None` if not even that can be read.
    text: Option<String>,
}

/// Who uses which path.
#[derive(Debug, Default)]
pub(crate) struct Neighbours {
    users: BTreeMap<PathBuf, PathBuf>,
    /// By the fields of the lines in `.pgpass` that they need.
    passwords: BTreeMap<String, PathBuf>,
    /// Those that cannot be read as settings.
    unread: Vec<UnreadIni>,
}

impl Neighbours {
    /// Those of this ini file.
    pub(crate) fn of(ini: &Path) -> Neighbours {
        let mut found = Neighbours::default();
        let own = files::resolved(ini);
        let mut folders = vec![folder_of(&own)];
        if let Some(host) = config::host_around(&own) {
            folders.push(folder_of(&host.path));
        }
        let mut at = 0;
        while let Some(folder) = folders.get(at).cloned() {
            at += 1;
            let entries = folder.read_dir().into_iter().flatten().flatten();
            let inis = entries.map(|entry| entry.path());
            for path in inis.filter(|path| path.extension() == Some(OsStr::new("ini"))) {
                if files::resolved(&path) == own {
                    continue;
                }
                if let Some(clusters) = found.add(&path) {
                    let clusters = files::resolved(&clusters);
                    if !folders.contains(&clusters) {
                        folders.push(clusters);
                    }
                }
            }
        }
        found
    }

    /// Why a path stays, if another file of settings uses it.
    pub(crate) fn user_of(&self, path: &Path) -> Option<String> {
        if let Some(user) = self.users.get(&files::resolved(path)) {
            return Some(format!("{} uses it, too", user.display()));
        }
        let name = path.file_name()?;
        let unread = self.unread.iter().find(|ini| ini.may_use(path, name))?;
        let ini = unread.path.display();
        Some(match &unread.text {
            Some(_) => format!("{ini} names it and cannot be read"),
            None => format!("{ini} cannot be read and may use it"),
        })
    }

    /// Why a line of `.pgpass` with these fields stays, if another file of settings uses it.
    pub(crate) fn user_of_password(&self, fields: &str) -> Option<String> {
        if let Some(user) = self.passwords.get(fields) {
            return Some(format!("{} uses it, too", user.display()));
        }
        let mut unread = self.unread.iter();
        let may_stream = |ini: &&UnreadIni| match &ini.text {
            Some(text) => text.contains("primary_conninfo"),
            None => true,
        };
        let unread = unread.find(may_stream)?;
        let ini = unread.path.display();
        Some(format!("{ini} may use it and cannot be read"))
    }

    /// Notes what a file uses; returns the folder of its clusters, if it is a host's.
    fn add(&mut self, ini: &Path) -> Option<PathBuf> {
        let Ok(config) = config::load(ini, &[]) else {
            // What is no file, or leads nowhere, nobody can have as settings.
            if !matches!(ini.metadata(), Ok(found) if !found.is_file())
                && !matches!(ini.metadata(), Err(error) if error.kind() == ErrorKind::NotFound)
            {
                let read = files::open_at_once(ini)
                    .and_then(|file| files::read_whole(&file, INI_BYTES_MAX));
                let text = read.ok().flatten();
                self.unread.push(UnreadIni {
                    path: ini.to_path_buf(),
                    text: text.map(|text| String::from_utf8_lossy(&text).into_owned()),
                });
            }
            return None;
        };
        let mut used = Vec::new();
        let mut clusters = None;
        let identity = |tls: &TlsSettings| [tls.key.clone(), tls.certificate.clone()];
        match &config {
            Config::Master(own) => {
                used.extend(identity(&own.tls));
                used.push(own.syncdaemon_pidfile());
                used.push(own.master_config.clone());
            }
            Config::Standby(own) => {
                used.extend(identity(&own.tls));
                used.push(own.receiver_pidfile());
                used.extend([own.authorized_keys.clone(), own.authorized_names.clone()]);
                for fields in own
                    .primary_conninfo
                    .iter()
                    .flat_map(|text| passwords_of(text))
                {
                    self.passwords.insert(fields, ini.to_path_buf());
                }
                used.extend([own.completed_wals.clone(), own.partial_wals.clone()]);
                used.extend(
                    [&own.config_backup, &own.full_backup]
                        .into_iter()
                        .flatten()
                        .cloned(),
                );
            }
            Config::Host(own) => {
                used.extend(identity(&own.tls));
                used.push(own.receiver_pidfile());
                clusters = Some(own.clusters.clone());
            }
        }
        used.extend(config.logfile().map(Path::to_path_buf));
        for path in used {
            self.users
                .entry(files::resolved(&path))
                .or_insert_with(|| ini.to_path_buf());
        }
        clusters
    }
}

/// The fields of the lines that a standby with this connection string reads.
fn passwords_of(primary_conninfo: &str) -> Vec<String> {
    let environment = Environment::of_process().without_libpq();
    let lines = conninfo::parse(primary_conninfo, &environment);
    let lines = lines.and_then(|conninfo| PasswordLines::of(&conninfo));
    lines.map(|lines| lines.each_fields()).unwrap_or_default()
}

impl UnreadIni {
    /// What it names, what it has unless it names another, and everything where nothing is known.
    fn may_use(&self, path: &Path, name: &OsStr) -> bool {
        let Some(text) = &self.text else {
            return true;
        };
        let names_it = name.to_str().is_some_and(|name| text.contains(name));
        let beside = |name: &str| self.path.with_file_name(name);
        let of_job = ["key", "crt", "pid", "log"].map(|ending| self.path.with_extension(ending));
        let mut defaults = vec![beside("authorized_keys"), beside("authorized_names")];
        defaults.extend(of_job);
        let path = files::resolved(path);
        names_it || defaults.iter().any(|own| files::resolved(own) == path)
    }
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    }
}
