//! The files in a host's folder `clusters`: one standby's file a cluster, each good or broken on its own.
//! Never lets one file's mistake stop another. Invariant: of a file that is good, every setting of the process is
//! the host's, and a broken one has the sentence that says what to do; no file gets a place that a cluster keeps in force.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::claims::{Claims, WantedInForce, WantedPaths};
use super::fault::shown;
use super::host::HostConfig;
use super::keys::Side;
use super::settings::GivenSettings;
use super::standby::StandbyConfig;
use super::value::Surroundings;
use super::{Config, ini, load, read_ini, sample};
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use crate::patience::{NoAnswer, Patience};

/// Most files that a folder may have. More than anybody runs on one host, and each is read at every reload.
const CLUSTERS_MAX: usize = 10_000;

/// What the folder holds.
#[derive(Debug, Default)]
pub struct ClusterFiles {
    /// The clusters to serve, by the names of their files without `.ini`.
    pub good: BTreeMap<String, StandbyConfig>,
    /// The files that cannot be served, and why, in a sentence.
    pub broken: BTreeMap<PathBuf, String>,
    /// What the good ones have on the disk, by the same names.
    pub(crate) wanted: BTreeMap<String, Arc<WantedPaths>>,
}

/// A file that is good as long as no other wants the same.
struct ReadCluster {
    name: String,
    config: StandbyConfig,
    settings: GivenSettings,
    wanted: WantedPaths,
}

impl HostConfig {
    /// Reads every `*.ini` of the folder `clusters`, in the order of the names.
    ///
    /// That the folder cannot be read is an error; what is wrong in a file is told in [`ClusterFiles::broken`].
    pub(crate) fn read_clusters(&self) -> Result<ClusterFiles> {
        let nothing = WantedInForce::new();
        let read = self.read_clusters_beside(&nothing, &Patience::default(), |_| Ok(()));
        read.map(|(files, _)| files)
    }

    /// Reads the files for a process that serves clusters already, with `in_force` on the disk. A served cluster keeps
    /// its paths against a new one. A file that is refused, here or by `load`, claims what its cluster keeps. Also
    /// returns what `load` made of each file.
    ///
    /// A file is broken as well if its paths lie on a file system that does not answer.
    pub(crate) fn read_clusters_beside<Loaded: Send + 'static>(
        &self,
        in_force: &WantedInForce,
        patience: &Patience,
        load: impl Fn(&StandbyConfig) -> Result<Loaded> + Send + Sync + 'static,
    ) -> Result<(ClusterFiles, BTreeMap<PathBuf, Loaded>)> {
        let (mut read, mut loaded) = (BTreeMap::new(), BTreeMap::new());
        let mut broken = BTreeMap::new();
        let host = self.clone();
        let each = patience.each(self.cluster_paths()?, move |path| {
            let one = host.read_cluster(path)?;
            load(&one.config).map(|loaded| (one, loaded))
        });
        for (path, answer) in each {
            let one = answer.unwrap_or_else(|why| Err(unanswered(&path, why)));
            match one {
                Ok((one, of_it)) => {
                    loaded.insert(path.clone(), of_it);
                    read.insert(path, one);
                }
                Err(error) => {
                    broken.insert(path, error.to_string());
                }
            }
        }
        let mut files = ClusterFiles::default();
        // Each turn but the last refuses a file of a cluster that is served, so there is an end.
        let (refused, mut notes) = loop {
            let (refused, notes) = self.claim(in_force, &read, &broken);
            let stay: Vec<&PathBuf> = (refused.keys())
                .filter(|path| in_force.contains_key(*path))
                .collect();
            if stay.is_empty() {
                break (refused, notes);
            }
            for path in stay {
                read.remove(path);
                broken.insert(path.clone(), refused[path].clone());
            }
        };
        broken.extend(refused);
        files.broken = broken;
        for (path, mut one) in read {
            let Some(notes) = notes.remove(&path) else {
                continue;
            };
            one.config.notes.extend(notes);
            files.wanted.insert(one.name.clone(), Arc::new(one.wanted));
            let config = self.take_over(one.config, &one.settings);
            files.good.insert(one.name, config);
        }
        Ok((files, loaded))
    }

    /// Why which files get not what they want, and notes about the others.
    fn claim(
        &self,
        in_force: &WantedInForce,
        read: &BTreeMap<PathBuf, ReadCluster>,
        broken: &BTreeMap<PathBuf, String>,
    ) -> (BTreeMap<PathBuf, String>, BTreeMap<PathBuf, Vec<String>>) {
        let mut claims = Claims::of_host(self);
        for (path, wanted) in in_force {
            if broken.contains_key(path) {
                // They got it before, so that it could be refused only because of what is the host's from now on.
                let _ = claims.take(path, wanted);
            }
        }
        let rank = |(path, one): &(&PathBuf, &ReadCluster)| match in_force.get(*path) {
            Some(wanted) if wanted.is_same(&one.wanted) => 0,
            Some(_) => 1,
            None => 2,
        };
        let mut ranked: Vec<(&PathBuf, &ReadCluster)> = read.iter().collect();
        ranked.sort_by_key(rank);
        let (mut refused, mut notes) = (BTreeMap::new(), BTreeMap::new());
        for (path, one) in ranked {
            match claims.take(path, &one.wanted) {
                Ok(shared) => {
                    notes.insert(path.clone(), shared);
                }
                Err(fault) => {
                    refused.insert(path.clone(), fault.into_error(path).to_string());
                }
            }
        }
        (refused, notes)
    }

    /// The paths of the clusters' files. What is hidden is an editor's or a package manager's.
    fn cluster_paths(&self) -> Result<BTreeSet<PathBuf>> {
        let folder = &self.clusters;
        let read = || folder.read_dir()?.collect::<std::io::Result<Vec<_>>>();
        let entries = read()
            .at(Kind::Config, "read the folder clusters", folder)
            .map_err(|error| {
                error.hint(format!(
                    "check `clusters` in {}, or make the folder: mkdir -m 700 {}",
                    self.path.display(),
                    folder.display()
                ))
            })?;
        let is_cluster = |path: &PathBuf| {
            let hidden = path
                .file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            path.extension() == Some(OsStr::new("ini")) && !hidden
        };
        let paths: BTreeSet<PathBuf> = entries
            .iter()
            .map(std::fs::DirEntry::path)
            .filter(is_cluster)
            .collect();
        if paths.len() > CLUSTERS_MAX {
            let text = format!(
                "{}: expected at most {CLUSTERS_MAX} files of clusters, found {}",
                folder.display(),
                paths.len()
            );
            return Err(CommandError::config(text).hint("share them between several hosts"));
        }
        Ok(paths)
    }

    fn read_cluster(&self, path: &Path) -> Result<ReadCluster> {
        let name = cluster_name(path)?;
        let bytes = read_ini(path)?;
        let directory = path.parent().unwrap_or(Path::new("/")).to_path_buf();
        let around = Surroundings::of_process(directory);
        let settings = ini::parse(&bytes)
            .and_then(|section| GivenSettings::check(path, &section, &[], around))
            .map_err(|fault| fault.into_error(path))?;
        if settings.side != Side::Standby {
            let text = format!(
                "{}: expected a cluster's file, as of a standby, found a {}'s",
                path.display(),
                settings.side.word()
            );
            return Err(CommandError::config(text).hint(format!(
                "move it out of {}, where every file is a cluster's",
                path.parent().unwrap_or(path).display()
            )));
        }
        let config = StandbyConfig::build(&settings).map_err(|fault| fault.into_error(path))?;
        let mut wanted = config.wanted_paths(&settings, &self.tls);
        wanted.find_places(&files::resolved);
        Ok(ReadCluster {
            name,
            config,
            settings,
            wanted,
        })
    }

    /// The cluster's settings as they count here: those of the process are the host's.
    fn take_over(&self, mut config: StandbyConfig, settings: &GivenSettings) -> StandbyConfig {
        let own = &config.tls;
        // `logfile` and `pidfile` stay the cluster's: its own commands log there and find the receiver there.
        let differs = [
            ("listen", config.listen != self.listen),
            ("tls", own.enabled != self.tls.enabled),
            ("tls_key", own.key != self.tls.key),
            ("tls_cert", own.certificate != self.tls.certificate),
            ("tls_ca", own.authority != self.tls.authority),
            ("log_format", config.log_format != self.log_format),
            (
                "metrics_listen",
                config.metrics_listen != self.metrics_listen,
            ),
        ];
        for (name, differs) in differs {
            let Some(setting) = settings.get(name).filter(|_| differs) else {
                continue;
            };
            config.notes.push(format!(
                "{}: {} counts only where this file is served alone; here {} decides",
                setting.place.in_file(&config.path),
                setting.spelled,
                self.path.display()
            ));
        }
        config.listen.clone_from(&self.listen);
        config.tls.clone_from(&self.tls);
        config.log_format = self.log_format;
        config.metrics_listen.clone_from(&self.metrics_listen);
        config
    }
}

/// The clusters of a folder, for a command that only reads: by their host's file if that lies beside, else without.
pub(crate) fn load_folder(folder: &Path) -> Result<HostConfig> {
    let folder = std::path::absolute(folder).at(Kind::Config, "find", folder)?;
    if let Some(host) = host_of(&folder) {
        return Ok(host);
    }
    let text = sample::host_ini(&folder)?;
    let around = Surroundings::of_process(folder.clone());
    let section = ini::parse(text.as_bytes());
    let settings = section.and_then(|section| GivenSettings::check(&folder, &section, &[], around));
    settings
        .and_then(|settings| HostConfig::build(&settings))
        .map_err(|fault| fault.into_error(&folder))
}

/// The host in whose folder `clusters` a cluster's file lies, if its own file lies beside that folder.
pub(crate) fn host_around(cluster: &Path) -> Option<HostConfig> {
    host_of(cluster.parent()?)
}

/// The host of a folder, if its file lies beside.
fn host_of(folder: &Path) -> Option<HostConfig> {
    let folder = files::resolved(folder);
    let beside = folder.parent()?.read_dir().ok()?;
    let inis = beside.flatten().map(|entry| entry.path());
    let inis = inis.filter(|path| path.extension() == Some(OsStr::new("ini")));
    let host = |path: PathBuf| match load(&path, &[]) {
        Ok(Config::Host(host)) => Some(*host),
        _ => None,
    };
    let is_around = |host: &HostConfig| files::resolved(&host.clusters) == folder;
    inis.filter_map(host).find(is_around)
}

fn unanswered(path: &Path, why: NoAnswer) -> CommandError {
    CommandError::config(format!("{}: {why}", path.display()))
}

/// What a broken file is called: its name without `.ini`, in a form that no good file has if it is no text.
pub(crate) fn shown_cluster_name(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default();
    stem.to_str()
        .map_or_else(|| format!("{stem:?}"), str::to_owned)
}

/// The name of the file without `.ini`: what log lines call the cluster.
fn cluster_name(path: &Path) -> Result<String> {
    let stem = path.file_stem().unwrap_or_default();
    match stem.to_str() {
        Some(name) if !name.contains(char::is_control) => Ok(name.to_owned()),
        _ => {
            let text = format!(
                "{}: expected a name that can stand in a log line, found `{}`",
                path.parent().unwrap_or(path).display(),
                shown(&stem.to_string_lossy())
            );
            Err(CommandError::config(text).hint("rename the file"))
        }
    }
}
