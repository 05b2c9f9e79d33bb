//! What a command that is given one cluster's file has to know of the host that serves it with others.
//! Never ends a receiver that serves more than was named. Invariant: what is said of the host is its own file's.

use std::path::PathBuf;

use crate::audit::AuditLog;
use crate::config::{self, Config, HostConfig, StandbyConfig};
use crate::daemon;
use crate::error::{CommandError, Result};
use crate::files;
use crate::identity;
use crate::options::Options;
use crate::status::HostFacts;

/// `identity` of a cluster: its host's, as that is what masters meet.
pub(crate) fn print_identity(config: &StandbyConfig, options: &Options) -> Result<()> {
    match host_of(config)? {
        None => identity::run(&config.tls, &config.job_name, options),
        Some(host) => {
            tracing::info!(
                "the receiver of {} serves this cluster, so this is its fingerprint",
                host.path.display()
            );
            identity::run(&host.tls, &host.job_name, options)
        }
    }
}

/// Refuses `--stop` and `--kill` where the process serves other clusters, too.
pub(crate) fn check_ends_alone(config: &StandbyConfig, options: &Options) -> Result<()> {
    let word = match (options.stop, options.kill) {
        (true, _) => "--stop",
        (_, true) => "--kill",
        _ => return Ok(()),
    };
    let Some(ini) = daemon::serving_host(&config.receiver_pidfile())? else {
        return Ok(());
    };
    let serves = match load_host(ini.clone())?.map(|host| host.read_clusters()) {
        Some(Ok(files)) if files.good.len() == 1 => "this cluster by a host's file".to_owned(),
        Some(Ok(files)) => format!("{} clusters", files.good.len()),
        _ => "all clusters of its host".to_owned(),
    };
    Err(
        CommandError::usage(format!("this receiver serves {serves}")).hint(format!(
            "to end it for all of them type: walmgr {ini} receiver {word}; to end it for this one move {} out of the \
             folder and type: walmgr {ini} receiver --reload",
            config.path.display(),
            ini = ini.display(),
        )),
    )
}

/// The host of a cluster as `status` tells of it; `None` if the cluster's file is served alone.
pub(crate) fn host_facts(config: &StandbyConfig) -> Option<HostFacts> {
    let host = host_of(config).ok()??;
    let noted = daemon::noted_as_unserved(&host.receiver_pidfile()).ok()?;
    let name = config.path.file_stem().unwrap_or_default();
    Some(HostFacts {
        ini: host.path.display().to_string(),
        runs: noted.is_some(),
        unserved: noted.and_then(|mut noted| noted.remove(name.to_str()?)),
    })
}

/// What monitoring and the audit log call a cluster, whoever tells of it: its receiver, or a command.
pub(super) fn shown_name(config: &StandbyConfig) -> String {
    match host_of(config) {
        Ok(Some(_)) => config::shown_cluster_name(&config.path),
        _ => config.job_name.clone(),
    }
}

/// The audit log of the host that serves this cluster, if it has one, and where it is noted what is lost of its own.
pub(super) fn audit_log_and_losses(config: &StandbyConfig) -> Option<(PathBuf, PathBuf)> {
    let host = host_of(config).ok()??;
    let note = AuditLog::losses_beside(&host.receiver_pidfile());
    Some((host.audit_log?, note))
}

/// The host whose receiver serves this cluster, or would.
pub(super) fn host_of(config: &StandbyConfig) -> Result<Option<HostConfig>> {
    match daemon::serving_host(&config.receiver_pidfile())? {
        Some(ini) => load_host(ini),
        None => Ok(config::host_around(&config.path).or_else(|| host_of_others(config))),
    }
}

/// The host that serves others of the same folder, wherever its file lies.
fn host_of_others(config: &StandbyConfig) -> Option<HostConfig> {
    let folder = config.path.parent()?;
    let beside = folder.read_dir().ok()?.flatten();
    let mut pidfiles = beside
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "pid"));
    let serves_folder =
        |host: &HostConfig| files::resolved(&host.clusters) == files::resolved(folder);
    pidfiles.find_map(|path| {
        let ini = daemon::serving_host(&path).ok()??;
        load_host(ini).ok()?.filter(serves_folder)
    })
}

fn load_host(ini: PathBuf) -> Result<Option<HostConfig>> {
    Ok(match config::load(&ini, &[])? {
        Config::Host(host) => Some(*host),
        _ => None,
    })
}
