//! Reads a host's folder of clusters, with the lists that its files name.
//! Never changes what is in force. Invariant: a file that is not good in all of its parts is broken, and says why in a
//! sentence that names it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::audit::AuditLog;
use crate::config::{self, Config, HostConfig, StandbyConfig, WantedInForce, WantedPaths};
use crate::error::{CommandError, Kind, Result};
use crate::options::Options;
use crate::patience::Patience;
use crate::receiver::cluster::settings::ClusterSettings;
use crate::receiver::clusters::BrokenCluster;
use crate::receiver::process_settings::ProcessSettings;
use walmgr_protocol::message::ErrorCode;

/// What the host's file and its folder say at one moment.
pub(crate) struct HostRead {
    /// The host's file.
    pub host: HostConfig,
    /// What it says of the process.
    pub process: Arc<ProcessSettings>,
    /// The clusters to serve, by the names of their files without `.ini`.
    pub good: BTreeMap<String, GoodCluster>,
    /// The files that cannot be served as they are, by the same names.
    pub broken: BTreeMap<String, BrokenCluster>,
}

/// A cluster's file that can be served.
#[derive(Clone)]
pub(crate) struct GoodCluster {
    /// What it says.
    pub config: StandbyConfig,
    /// What a reload may change of it.
    pub settings: Arc<ClusterSettings>,
    /// What it has on the disk.
    pub wanted: Arc<WantedPaths>,
}

/// Reads the folder of a host. `in_force` is what the served clusters have on the disk. Clusters beyond `clusters_max`
/// count as broken.
pub(crate) fn read(
    host: HostConfig,
    clusters_max: usize,
    in_force: &WantedInForce,
    patience: &Patience,
) -> Result<HostRead> {
    let process = ProcessSettings::load(
        &host.tls,
        (host.max_connections, host.fetch_rate),
        (
            "",
            host.audit_log.as_deref(),
            AuditLog::losses_beside(&host.receiver_pidfile()),
        ),
    )?;
    read_folder(host, process, clusters_max, in_force, patience)
}

/// Reads the folder alone; the settings of the process stay as they are given.
pub(crate) fn read_folder(
    host: HostConfig,
    process: Arc<ProcessSettings>,
    clusters_max: usize,
    in_force: &WantedInForce,
    patience: &Patience,
) -> Result<HostRead> {
    let of_process = Arc::clone(&process);
    let load = move |config: &StandbyConfig| ClusterSettings::load(config, &of_process);
    let (mut files, mut loaded) = host.read_clusters_beside(in_force, patience, load)?;
    let (mut good, mut broken) = (BTreeMap::new(), BTreeMap::new());
    for (path, sentence) in files.broken {
        let name = config::shown_cluster_name(&path);
        let settings = loaded.remove(&path);
        let file = BrokenCluster::new(&path, &sentence, ErrorCode::Busy, settings);
        broken.insert(name, file);
    }
    // Whoever is served stays so.
    let is_served = |config: &StandbyConfig| in_force.contains_key(&config.path);
    let served = files.good.values().filter(|config| is_served(config));
    let mut room = clusters_max.saturating_sub(served.count());
    for (name, config) in files.good {
        let (settings, wanted) = (loaded.remove(&config.path), files.wanted.remove(&name));
        let is_welcome = is_served(&config) || room > 0;
        if !is_served(&config) {
            room = room.saturating_sub(1);
        }
        match (settings, wanted) {
            (Some(settings), Some(wanted)) if is_welcome => {
                let file = GoodCluster {
                    config,
                    settings,
                    wanted,
                };
                good.insert(name, file);
            }
            (settings, _) => {
                let file = of_error(&config.path, &too_many(clusters_max), settings);
                broken.insert(name, file);
            }
        }
    }
    Ok(HostRead {
        host,
        process,
        good,
        broken,
    })
}

/// Reads the host's file and its folder for a process that runs; a change that needs a restart is refused.
pub(crate) fn read_again(
    old: &HostConfig,
    options: &Options,
    clusters_max: usize,
    in_force: &WantedInForce,
    patience: &Patience,
) -> Result<HostRead> {
    let fresh = match config::load(&old.path, &options.overrides)? {
        Config::Host(fresh) => *fresh,
        Config::Master(_) | Config::Standby(_) => return Err(cannot_change("clusters")),
    };
    let changed = [
        ("listen", old.listen != fresh.listen),
        ("clusters", old.clusters != fresh.clusters),
        (
            "pidfile",
            old.receiver_pidfile() != fresh.receiver_pidfile(),
        ),
        ("logfile", old.logfile != fresh.logfile),
        ("log_format", old.log_format != fresh.log_format),
    ];
    match changed.into_iter().find(|(_, changed)| *changed) {
        None => read(fresh, clusters_max, in_force, patience),
        Some((key, _)) => Err(cannot_change(key)),
    }
}

/// The refusal of a reload that would change what only a start reads.
pub(crate) fn cannot_change(key: &str) -> CommandError {
    CommandError::config(format!("{key} cannot change by a reload")).hint("restart the receiver")
}

/// A cluster that cannot be served because of this.
pub(crate) fn of_error(
    path: &Path,
    error: &CommandError,
    settings: Option<Arc<ClusterSettings>>,
) -> BrokenCluster {
    let code = match error.kind() {
        Kind::ReceiverDisk => ErrorCode::DiskFailed,
        _ => ErrorCode::Busy,
    };
    BrokenCluster::new(path, &error.to_string(), code, settings)
}

fn too_many(clusters_max: usize) -> CommandError {
    CommandError::config(format!(
        "the descriptors of this process are enough for {clusters_max} clusters"
    ))
    .hint("raise LimitNOFILE in the systemd unit, or `ulimit -n`, and restart the receiver")
}
