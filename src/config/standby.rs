//! The standby's settings, typed.
//! Never touches what a path names. Invariant: no two of its directories are, or lie in, one
//! another, so that rotating, purging or restoring one can never reach into another.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::address::{ListenAddress, METRICS_PORT};
use super::claims::WantedPaths;
use super::fault::{Fault, SettingPlace};
use super::master::VerifyWal;
use super::overlap::{Named, check_directories, check_files, check_rotation};
use super::settings::{GivenSettings, default_job_name};
use super::tls::TlsSettings;

/// What `xrestore` does about a damaged file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnCorrupt {
    /// End PostgreSQL's recovery with an error.
    #[default]
    Stop,
    /// Keep PostgreSQL waiting.
    Stall,
}

/// As `walmgr_protocol::compress::Packer` sets it up, it packs WAL as tightly as level 3 in less time.
const DEFAULT_LEVEL: u8 = 1;

/// In which form finished segments are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreCompression {
    /// As they are.
    None,
    /// Packed by zstd at this level.
    Zstd(u8),
}

impl Default for StoreCompression {
    fn default() -> Self {
        StoreCompression::Zstd(DEFAULT_LEVEL)
    }
}

impl StoreCompression {
    fn read(settings: &GivenSettings) -> Result<Self, Fault> {
        Ok(match settings.choice("store_compression")? {
            "none" => StoreCompression::None,
            other => {
                let level = other.split_once(':').map(|(_, level)| level.parse());
                StoreCompression::Zstd(level.and_then(Result::ok).unwrap_or(DEFAULT_LEVEL))
            }
        })
    }

    /// The level, if they are packed.
    pub(crate) const fn level(self) -> Option<u8> {
        match self {
            StoreCompression::None => None,
            StoreCompression::Zstd(level) => Some(level),
        }
    }
}

/// How the receiver's log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

impl LogFormat {
    pub(super) fn read(settings: &GivenSettings) -> Result<Self, Fault> {
        Ok(match settings.choice("log_format")? {
            "json" => LogFormat::Json,
            _ => LogFormat::Text,
        })
    }
}

/// A standby.ini. Fields carry the names of the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandbyConfig {
    /// The ini file, absolute.
    pub path: PathBuf,
    /// Name used in log lines.
    pub job_name: String,
    /// Where to log.
    pub logfile: Option<PathBuf>,
    /// Pid file of `receiver -d`.
    pub pidfile: Option<PathBuf>,
    /// The standby's data directory.
    pub slave_data: Option<PathBuf>,
    /// Where PostgreSQL's programs are.
    pub slave_bin: Option<PathBuf>,
    /// Where PostgreSQL's configuration files are.
    pub slave_config_dir: Option<PathBuf>,
    /// By what the restored server archives once it is open.
    pub promoted_ini: Option<PathBuf>,
    /// Stops the standby.
    pub slave_stop_cmd: Option<String>,
    /// Starts the standby.
    pub slave_start_cmd: Option<String>,
    /// Where a restored standby's WAL directory lives.
    pub slave_pg_xlog: Option<PathBuf>,
    /// Base directory of the archive: `walmgr_data`, or `slave` by its older name.
    pub walmgr_data: Option<PathBuf>,
    /// Where finished WAL files and the control files are kept.
    pub completed_wals: PathBuf,
    /// Where the WAL file being written is kept.
    pub partial_wals: PathBuf,
    /// The newest base backup; unset only if no base directory is set either.
    pub full_backup: Option<PathBuf>,
    /// Where the master's configuration files are kept.
    pub config_backup: Option<PathBuf>,
    /// Every such base backup is a full one; 0: only those that have to be.
    pub full_every: u32,
    /// Base backups to keep; 0 for all.
    pub keep_backups: u32,
    /// Whether the file says so, and not the default.
    pub keep_backups_is_set: bool,
    /// Of how many days every instant stays reachable; 0 for no such rule.
    pub keep_days: u32,
    /// Of how many weeks the first base backup stays.
    pub keep_weekly: u32,
    /// Of how many months the first base backup stays.
    pub keep_monthly: u32,
    /// How old what a backup makes go is at least.
    pub keep_minimum_age: Duration,
    /// Whether a restore keeps the old data directory.
    pub backup_datadir: bool,
    /// Whether a restore links pg_wal and the log as the old data directory does.
    pub keep_symlinks: bool,
    /// Run before the oldest backup is removed.
    pub archive_command: Option<String>,
    /// Connection string for streaming replication.
    pub primary_conninfo: Option<String>,
    /// Where the receiver listens; at least one address.
    pub listen: Vec<ListenAddress>,
    /// How to prove oneself and check the masters.
    pub tls: TlsSettings,
    /// The masters that may connect.
    pub authorized_keys: PathBuf,
    /// `authorized_names`: whom the receiver lets in where `tls_ca` vouches for names.
    pub authorized_names: PathBuf,
    /// Connections served at once.
    pub max_connections: u32,
    /// How closely WAL is checked at least.
    pub verify_wal_min: VerifyWal,
    /// How many segments beyond the end of its run one may be that is not set apart.
    pub archive_ahead_max: u64,
    /// In which form segments are stored.
    pub store_compression: StoreCompression,
    /// Bytes a second that are read to find what the disk changed.
    pub recheck_rate: u64,
    /// Bytes a second that `backup` reads at most.
    pub backup_rate: Option<u64>,
    /// Bytes a second that are read at most of sets that masters fetch.
    pub fetch_rate: Option<u64>,
    /// How long `verify` passes a file over that it found good.
    pub verify_again_after: Duration,
    /// What `xrestore` does about a damaged file.
    pub on_corrupt: OnCorrupt,
    /// How many segments `xrestore` lays ready.
    pub restore_ahead: u32,
    /// How long `xrestore` waits for a file.
    pub restore_wait: Duration,
    /// Where a drill makes its directory.
    pub drill_directory: Option<PathBuf>,
    /// What a drill asks the restored server.
    pub drill_sql: Option<String>,
    /// In which database.
    pub drill_database: String,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Where it is told who did what to the archive.
    pub audit_log: Option<PathBuf>,
    /// Where metrics are served.
    pub metrics_listen: Vec<ListenAddress>,
    /// Things worth saying that stop nobody.
    pub notes: Vec<String>,
}

impl StandbyConfig {
    /// The pidfile whose lock shows that a receiver runs: `pidfile`, or one beside the ini file.
    pub fn receiver_pidfile(&self) -> PathBuf {
        let beside = || self.path.with_extension("pid");
        self.pidfile.clone().unwrap_or_else(beside)
    }

    /// The directories that settings name for what must not be mixed with anything else: archive, sets, server.
    pub fn directories(&self) -> impl Iterator<Item = &PathBuf> {
        let own = [
            Some(&self.completed_wals),
            Some(&self.partial_wals),
            self.full_backup.as_ref(),
            self.config_backup.as_ref(),
            self.slave_data.as_ref(),
            self.slave_pg_xlog.as_ref(),
        ];
        own.into_iter().flatten()
    }

    /// Every address to listen on, for people.
    pub fn listen_text(&self) -> String {
        let addresses: Vec<String> = self.listen.iter().map(ToString::to_string).collect();
        addresses.join(", ")
    }

    pub(super) fn build(settings: &GivenSettings) -> Result<Self, Fault> {
        let base = settings
            .path("walmgr_data")
            .or_else(|| settings.path("slave"));
        let folder = |name: &str, below: &str| {
            let derived = base.as_ref().map(|base| base.join(below));
            settings.path(name).or(derived)
        };
        let needed = |name: &str, below: &str| {
            let why = "set it, or set `walmgr_data`, its base directory";
            folder(name, below).ok_or_else(|| settings.missing(name, why))
        };
        let listen = settings.listen("listen")?;
        let tls = TlsSettings::read(settings)?;
        for address in &listen {
            let is_loopback = address.is_loopback();
            tls.check_plaintext(settings, "listen", &address.to_string(), is_loopback)?;
        }
        let config = StandbyConfig {
            path: settings.file.clone(),
            job_name: settings
                .text("job_name")?
                .unwrap_or_else(|| default_job_name(&settings.file)),
            logfile: settings.path("logfile"),
            pidfile: settings.path("pidfile"),
            slave_data: settings.path("slave_data"),
            slave_bin: settings.path("slave_bin"),
            slave_config_dir: settings.path("slave_config_dir"),
            promoted_ini: settings.path("promoted_ini"),
            slave_stop_cmd: settings.text("slave_stop_cmd")?,
            slave_start_cmd: settings.text("slave_start_cmd")?,
            slave_pg_xlog: settings.path("slave_pg_xlog"),
            completed_wals: needed("completed_wals", "logs.complete")?,
            partial_wals: needed("partial_wals", "logs.partial")?,
            full_backup: folder("full_backup", "data.master"),
            walmgr_data: base.clone(),
            config_backup: settings.path("config_backup"),
            full_every: settings.number("full_every")?,
            keep_backups: settings.number("keep_backups")?,
            keep_backups_is_set: settings.get("keep_backups").is_some(),
            keep_days: settings.number("keep_days")?,
            keep_weekly: settings.number("keep_weekly")?,
            keep_monthly: settings.number("keep_monthly")?,
            keep_minimum_age: settings.duration("keep_minimum_age")?,
            backup_datadir: settings.boolean("backup_datadir")?,
            keep_symlinks: settings.boolean("keep_symlinks")?,
            archive_command: settings.text("archive_command")?,
            primary_conninfo: settings.text("primary_conninfo")?,
            listen,
            tls,
            authorized_keys: settings
                .path("authorized_keys")
                .unwrap_or_else(|| settings.file.with_file_name("authorized_keys")),
            authorized_names: settings
                .path("authorized_names")
                .unwrap_or_else(|| settings.file.with_file_name("authorized_names")),
            max_connections: settings.number("max_connections")?,
            verify_wal_min: VerifyWal::read(settings, "verify_wal_min")?,
            archive_ahead_max: settings.number("archive_ahead_max")?,
            store_compression: StoreCompression::read(settings)?,
            recheck_rate: settings.number("recheck_rate")?,
            backup_rate: settings.optional_size("backup_rate")?,
            fetch_rate: settings.optional_size("fetch_rate")?,
            verify_again_after: settings.duration("verify_again_after")?,
            on_corrupt: match settings.choice("on_corrupt")? {
                "stall" => OnCorrupt::Stall,
                _ => OnCorrupt::Stop,
            },
            restore_ahead: settings.number("restore_ahead")?,
            restore_wait: settings.duration("restore_wait")?,
            drill_directory: settings.path("drill_directory"),
            drill_sql: settings.text("drill_sql")?,
            drill_database: settings.text("drill_database")?.unwrap_or_default(),
            log_format: LogFormat::read(settings)?,
            audit_log: settings.path("audit_log"),
            metrics_listen: metrics_listen(settings)?,
            notes: notes(settings)?,
        };
        config.check_overlap(settings)?;
        Ok(config)
    }

    /// What this file wants for its cluster alone, where it is one of several of a host.
    /// Of the lists of those who are let in, the host's `tls` says which is in force.
    pub(super) fn wanted_paths(&self, settings: &GivenSettings, tls: &TlsSettings) -> WantedPaths {
        let named = |name: &str, path: &Path| Named::new(settings, name, path);
        let every = |paths: &[(&str, Option<&PathBuf>)]| -> Vec<Named> {
            let given =
                |(name, path): &(&str, Option<&PathBuf>)| path.map(|path| named(name, path));
            paths.iter().filter_map(given).collect()
        };
        let by_name = tls.authority.is_some();
        let lists = [
            (
                "authorized_keys",
                &self.authorized_keys,
                tls.enabled && !by_name,
            ),
            (
                "authorized_names",
                &self.authorized_names,
                tls.enabled && by_name,
            ),
        ];
        let lists = |in_force| {
            let found = lists.iter().filter(move |list| list.2 == in_force);
            found.map(|(name, path, _)| named(name, path))
        };
        WantedPaths {
            directories: every(&[
                ("completed_wals", Some(&self.completed_wals)),
                ("partial_wals", Some(&self.partial_wals)),
                ("full_backup", self.full_backup.as_ref()),
                ("config_backup", self.config_backup.as_ref()),
                ("slave_data", self.slave_data.as_ref()),
                ("slave_pg_xlog", self.slave_pg_xlog.as_ref()),
            ]),
            rotated: every(&[
                ("full_backup", self.full_backup.as_ref()),
                ("slave_data", self.slave_data.as_ref()),
            ]),
            // Not the key and the certificate: where a host has its own, nobody reads the cluster's.
            files: every(&[
                ("this ini file", Some(&self.path)),
                ("pidfile", Some(&self.receiver_pidfile())),
            ]),
            shared_files: lists(false)
                .chain(every(&[
                    ("logfile", self.logfile.as_ref()),
                    ("audit_log", self.audit_log.as_ref()),
                ]))
                .collect(),
            let_in: lists(true).next(),
            ..WantedPaths::default()
        }
    }

    fn check_overlap(&self, settings: &GivenSettings) -> Result<(), Fault> {
        let named = |name: &str, path: &Path| Named::new(settings, name, path);
        let optional =
            |name: &str, path: &Option<PathBuf>| path.as_deref().map(|path| named(name, path));
        let mut archive = vec![
            named("completed_wals", &self.completed_wals),
            named("partial_wals", &self.partial_wals),
        ];
        archive.extend(optional("full_backup", &self.full_backup));
        archive.extend(optional("config_backup", &self.config_backup));

        let mut directories = archive.clone();
        directories.extend(optional("slave_data", &self.slave_data));
        directories.extend(optional("slave_pg_xlog", &self.slave_pg_xlog));
        check_directories(&directories)?;
        // PostgreSQL's configuration may well lie in its data directory, but not in the archive.
        if let Some(config) = optional("slave_config_dir", &self.slave_config_dir) {
            for directory in &archive {
                check_directories(&[directory.clone(), config.clone()])?;
            }
        }
        for (name, path) in [
            ("full_backup", &self.full_backup),
            ("slave_data", &self.slave_data),
        ] {
            if let Some(rotated) = optional(name, path) {
                check_rotation(&rotated, &directories)?;
            }
        }
        let mut files = vec![
            named("this ini file", &self.path),
            named("tls_key", &self.tls.key),
            named("tls_cert", &self.tls.certificate),
            named("authorized_keys", &self.authorized_keys),
            named("authorized_names", &self.authorized_names),
        ];
        files.extend(optional("logfile", &self.logfile));
        files.extend(optional("pidfile", &self.pidfile));
        files.extend(optional("audit_log", &self.audit_log));
        check_files(&files)
    }
}

/// Where metrics are served: never where the receiver listens for masters.
pub(super) fn metrics_listen(settings: &GivenSettings) -> Result<Vec<ListenAddress>, Fault> {
    let (data, metrics) = (
        settings.listen("listen")?,
        settings.listen("metrics_listen")?,
    );
    let taken = (metrics.iter()).find(|own| data.iter().any(|other| own.is_same_place(other)));
    let Some(taken) = taken else {
        return Ok(metrics);
    };
    let place = settings.get("metrics_listen");
    let place = place.map_or(SettingPlace::File, |setting| setting.place);
    let says = format!(
        "expected an address of its own, found {taken}, where `listen` has the receiver listen for masters"
    );
    Err(Fault::of_key(place, "metrics_listen", says).hint(format!(
        "give it a port of its own: `metrics_listen = 127.0.0.1:{METRICS_PORT}`"
    )))
}

/// What is worth saying of a file of this host.
pub(super) fn notes(settings: &GivenSettings) -> Result<Vec<String>, Fault> {
    let mut notes = settings.notes.clone();
    if settings.number::<u64>("use_skylog")? != 0 {
        notes.push(format!(
            "{}: use_skylog is ignored: skylog.ini no longer exists",
            settings.file.display()
        ));
    }
    Ok(notes)
}
