//! The settings of the receiver's process, typed: those of a file with `clusters`.
//! Never looks into the folder `clusters` while it loads. Invariant: what is here is the process's, and no cluster's
//! file changes it.

use std::path::{Path, PathBuf};

use super::address::ListenAddress;
use super::fault::{Fault, SettingPlace};
use super::overlap::{Named, check_files};
use super::settings::{GivenSettings, default_job_name};
use super::standby::{self, LogFormat};
use super::tls::TlsSettings;
use crate::error::CommandError;
use crate::files;

/// A host.ini. Fields carry the names of the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostConfig {
    /// The ini file, absolute.
    pub path: PathBuf,
    /// Name used in log lines.
    pub job_name: String,
    /// Where the receiver logs.
    pub logfile: Option<PathBuf>,
    /// Pid file of `receiver`.
    pub pidfile: Option<PathBuf>,
    /// Where the receiver listens; at least one address.
    pub listen: Vec<ListenAddress>,
    /// How to prove oneself and check the masters.
    pub tls: TlsSettings,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Connections served at once, of all clusters together.
    pub max_connections: u32,
    /// Bytes a second that masters fetch of sets at most, of all clusters together.
    pub fetch_rate: Option<u64>,
    /// Where it is told who did what, for clusters that have no such file of their own.
    pub audit_log: Option<PathBuf>,
    /// Where metrics are served.
    pub metrics_listen: Vec<ListenAddress>,
    /// The folder of the clusters' files, absolute.
    pub clusters: PathBuf,
    /// Things worth saying that stop nobody.
    pub notes: Vec<String>,
}

impl HostConfig {
    /// The pidfile whose lock shows that the receiver runs: `pidfile`, or one beside the ini file.
    pub(crate) fn receiver_pidfile(&self) -> PathBuf {
        let beside = || self.path.with_extension("pid");
        self.pidfile.clone().unwrap_or_else(beside)
    }

    /// Every address to listen on, for people.
    pub(crate) fn listen_text(&self) -> String {
        let addresses: Vec<String> = self.listen.iter().map(ToString::to_string).collect();
        addresses.join(", ")
    }

    /// The refusal of a command that takes the file of one cluster, and what to type instead.
    pub(crate) fn not_for(&self, command: &str) -> CommandError {
        CommandError::usage(format!(
            "{}: `{command}` takes the file of one cluster, and this file serves those of the folder clusters",
            self.path.display()
        ))
        .hint(format!(
            "type: walmgr {} {command}",
            self.clusters.join("NAME.ini").display()
        ))
    }

    pub(super) fn build(settings: &GivenSettings) -> Result<Self, Fault> {
        let listen = settings.listen("listen")?;
        let tls = TlsSettings::read(settings)?;
        for address in &listen {
            let is_loopback = address.is_loopback();
            tls.check_plaintext(settings, "listen", &address.to_string(), is_loopback)?;
        }
        let clusters = settings
            .path("clusters")
            .ok_or_else(|| settings.missing("clusters", "the folder of the clusters' files"))?;
        let config = HostConfig {
            path: settings.file.clone(),
            job_name: settings
                .text("job_name")?
                .unwrap_or_else(|| default_job_name(&settings.file)),
            logfile: settings.path("logfile"),
            pidfile: settings.path("pidfile"),
            listen,
            tls,
            log_format: LogFormat::read(settings)?,
            max_connections: settings.number("max_connections")?,
            fetch_rate: settings.optional_size("fetch_rate")?,
            audit_log: settings.path("audit_log"),
            metrics_listen: standby::metrics_listen(settings)?,
            clusters,
            notes: standby::notes(settings)?,
        };
        config.check_overlap(settings)?;
        Ok(config)
    }

    fn check_overlap(&self, settings: &GivenSettings) -> Result<(), Fault> {
        let named = |name: &str, path: &Path| Named::new(settings, name, path);
        let mut files = vec![
            named("this ini file", &self.path),
            named("tls_key", &self.tls.key),
            named("tls_cert", &self.tls.certificate),
        ];
        let optional = [
            ("logfile", &self.logfile),
            ("pidfile", &self.pidfile),
            ("audit_log", &self.audit_log),
        ];
        for (name, path) in optional {
            files.extend(path.as_deref().map(|path| named(name, path)));
        }
        check_files(&files)?;
        // Every `*.ini` of the folder is a cluster's, and this one is none.
        let own = self.path.parent().map(files::resolved);
        if Some(files::resolved(&self.clusters)) != own {
            return Ok(());
        }
        let setting = settings.get("clusters");
        let place = setting.map_or(SettingPlace::File, |setting| setting.place);
        let says = format!(
            "expected a folder of the clusters' files alone, found {}, where this file lies",
            self.clusters.display()
        );
        Err(Fault::of_key(place, "clusters", says)
            .hint("make a folder beside this file and move the clusters' files there: `clusters = clusters.d`"))
    }
}
