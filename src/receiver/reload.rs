//! What SIGHUP does: reads the settings and keys again.
//! Never takes half of them. Invariant: when anything is wrong, or cannot change while the receiver runs, the
//! old settings stay in force.

use std::sync::Arc;

use crate::audit::AuditLog;
use crate::config::{self, StandbyConfig};
use crate::daemon;
use crate::error::Result;
use crate::options::Options;
use crate::output;
use crate::receiver::cluster::settings::ClusterSettings;
use crate::receiver::clusters::Clusters;
use crate::receiver::clusters::reading::cannot_change;
use crate::receiver::process_settings::ProcessSettings;

/// Reads everything again and puts it in force; a failure is a line in the log. Answers with what was read.
pub(crate) fn reload(
    config: &StandbyConfig,
    options: &Options,
    clusters: &Clusters,
) -> Option<StandbyConfig> {
    daemon::tell_reloading();
    let loaded = config::load(&config.path, &options.overrides)
        .and_then(|fresh| fresh.into_standby("receiver"))
        .and_then(|fresh| unchanged(config, &fresh).map(|()| fresh))
        .and_then(|fresh| {
            let server = process_of(&fresh)?;
            let settings = ClusterSettings::load(&fresh, &server)?;
            Ok((server, settings, fresh))
        });
    let fresh = match loaded {
        Ok((server, settings, fresh)) => {
            clusters.set_process(server);
            for (_, hosted) in clusters.served() {
                hosted.cluster.reconfigure(Arc::clone(&settings));
            }
            tracing::info!("settings and keys reloaded");
            Some(fresh)
        }
        Err(error) => {
            tracing::error!("reload failed, the old settings remain in force: {error}");
            clusters.tell_reload_failed(&error);
            None
        }
    };
    clusters.reopen_audit_logs();
    if let Err(error) = output::reopen_logfile() {
        tracing::warn!("{error}");
    }
    daemon::tell_ready();
    fresh
}

/// The settings of a process that serves this file alone.
pub(crate) fn process_of(config: &StandbyConfig) -> Result<Arc<ProcessSettings>> {
    ProcessSettings::load(
        &config.tls,
        // The cluster's own rate is that of all there are.
        (config.max_connections, None),
        (
            &config.job_name,
            config.audit_log.as_deref(),
            AuditLog::losses_in(&config.completed_wals),
        ),
    )
}

/// What a running daemon cannot change is refused rather than ignored.
fn unchanged(old: &StandbyConfig, new: &StandbyConfig) -> Result<()> {
    let changed = [
        ("listen", old.listen != new.listen),
        ("completed_wals", old.completed_wals != new.completed_wals),
        ("partial_wals", old.partial_wals != new.partial_wals),
        ("full_backup", old.full_backup != new.full_backup),
        ("config_backup", old.config_backup != new.config_backup),
        ("pidfile", old.receiver_pidfile() != new.receiver_pidfile()),
        ("logfile", old.logfile != new.logfile),
        ("log_format", old.log_format != new.log_format),
    ];
    match changed.into_iter().find(|(_, changed)| *changed) {
        None => Ok(()),
        Some((key, _)) => Err(cannot_change(key)),
    }
}
