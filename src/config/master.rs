//! The master's settings, typed.
//! Never touches what a path names. Invariant: what is here has passed every check of its row and
//! every check between settings.

use std::path::PathBuf;
use std::time::Duration;

use super::address::{ListenAddress, SlaveAddress};
use super::fault::{Fault, shown};
use super::overlap::{Named, check_files};
use super::settings::{GivenSettings, default_job_name};
use super::tls::TlsSettings;

/// How closely WAL is checked before it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VerifyWal {
    /// Every record.
    #[default]
    Records,
    /// The page headers only.
    Headers,
    /// Only length and checksum of the transfer.
    Off,
}

impl VerifyWal {
    pub(super) fn read(settings: &GivenSettings, name: &str) -> Result<VerifyWal, Fault> {
        Ok(match settings.choice(name)? {
            "off" => VerifyWal::Off,
            "headers" => VerifyWal::Headers,
            _ => VerifyWal::Records,
        })
    }
}

/// How the checkpoint before a backup is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackupCheckpoint {
    /// At once.
    #[default]
    Fast,
    /// Spread over `checkpoint_completion_target`.
    Spread,
}

/// A master.ini. Fields carry the names of the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MasterConfig {
    /// The ini file, absolute.
    pub path: PathBuf,
    /// Name used in log lines.
    pub job_name: String,
    /// Where to log.
    pub logfile: Option<PathBuf>,
    /// Pid file of `syncdaemon`.
    pub pidfile: Option<PathBuf>,
    /// Connection string, as libpq takes it.
    pub master_db: String,
    /// The data directory.
    pub master_data: PathBuf,
    /// The postgresql.conf to edit.
    pub master_config: PathBuf,
    /// Where PostgreSQL's programs are.
    pub master_bin: Option<PathBuf>,
    /// Restarts the master.
    pub master_restart_cmd: Option<String>,
    /// The standby's receiver.
    pub slave: SlaveAddress,
    /// The receiver's key.
    pub slave_fingerprint: Option<String>,
    /// Whether the file asks for a hot standby's WAL.
    pub hot_standby: bool,
    /// Time from the beginning of one pass of `syncdaemon` to that of the next, and between two
    /// that written WAL called for.
    pub loop_delay: Duration,
    /// Whether the end of WAL is asked of the database.
    pub use_xlog_functions: bool,
    /// Whether `syncdaemon` is a standby that commits can wait for.
    pub synchronous: bool,
    /// How long commits wait for it before it is taken out of their way; zero is for ever.
    pub synchronous_timeout: Duration,
    /// The replication slot of that standby.
    pub slot: Option<String>,
    /// zstd level of what is sent and fetched, 0 for none; `None` if the file does not say.
    pub compression: Option<u8>,
    /// Least time between two runs of `periodic_command`; zero is never.
    pub command_interval: Option<Duration>,
    /// What `periodic` runs.
    pub periodic_command: Option<String>,
    /// How to prove oneself and check the receiver.
    pub tls: TlsSettings,
    /// Longest wait for a connection and its handshake.
    pub connect_timeout: Duration,
    /// Longest `xarchive` may take.
    pub push_timeout: Duration,
    /// Bytes in one block on the wire.
    pub block_size: u32,
    /// Streams of a backup.
    pub backup_jobs: u32,
    /// Bytes a second that a backup reads at most.
    pub backup_rate: Option<u64>,
    /// How a backup's checkpoint is made.
    pub backup_checkpoint: BackupCheckpoint,
    /// Finished segments that the syncdaemon ships before the archiver asks for them; 0 for none.
    pub archive_batch: u32,
    /// Connections that they go over.
    pub archive_jobs: u32,
    /// How many segments `xrestore` lays ready.
    pub restore_ahead: u32,
    /// How closely WAL is checked.
    pub verify_wal: VerifyWal,
    /// The standby's folders as an old file names them; kept for nobody but the curious.
    pub ignored_folders: Vec<(String, String)>,
    /// Where the syncdaemon serves metrics; nowhere if there is no address.
    pub metrics_listen: Vec<ListenAddress>,
    /// Things worth saying that stop nobody.
    pub notes: Vec<String>,
    /// Values that count as others.
    pub warnings: Vec<String>,
}

/// What `loop_delay = 0` means, which was no pause at all: a pass that looks at the directory a
/// hundred times a second costs little, and nobody notices the difference.
const LOOP_DELAY_LEAST: Duration = Duration::from_millis(10);

/// What is left of PostgreSQL's names (`NAMEDATALEN`).
const SLOT_BYTES_MAX: usize = 63;

/// Settings of the standby's folders that old master files carry.
const FOLDERS: [&str; 5] = [
    "walmgr_data",
    "completed_wals",
    "partial_wals",
    "full_backup",
    "config_backup",
];

impl MasterConfig {
    /// The zstd level of whatever the standby stores in another form than it travels, 0 for none.
    pub fn network_level(&self) -> u8 {
        self.compression.unwrap_or_default()
    }

    pub(super) fn build(settings: &GivenSettings) -> Result<Self, Fault> {
        let master_data = settings
            .path("master_data")
            .ok_or_else(|| settings.missing("master_data", "the master's data directory"))?;
        let slave = settings.slave_address("slave")?;
        let tls = TlsSettings::read(settings)?;
        tls.check_plaintext(settings, "slave", &slave.to_string(), slave.is_loopback())?;
        let (ignored_folders, notes) = leftovers(settings, &slave)?;
        let synchronous = settings.boolean("synchronous")?;
        let config = MasterConfig {
            path: settings.file.clone(),
            job_name: settings
                .text("job_name")?
                .unwrap_or_else(|| default_job_name(&settings.file)),
            logfile: settings.path("logfile"),
            pidfile: settings.path("pidfile"),
            master_db: settings.text("master_db")?.unwrap_or_default(),
            master_config: settings
                .path("master_config")
                .unwrap_or_else(|| master_data.join("postgresql.conf")),
            master_data,
            master_bin: settings.path("master_bin"),
            master_restart_cmd: settings.text("master_restart_cmd")?,
            slave,
            slave_fingerprint: settings.text("slave_fingerprint")?,
            hot_standby: settings.boolean("hot_standby")?,
            loop_delay: match settings.duration("loop_delay")? {
                Duration::ZERO => LOOP_DELAY_LEAST,
                delay => delay,
            },
            use_xlog_functions: settings.boolean("use_xlog_functions")? || synchronous,
            synchronous,
            synchronous_timeout: settings.duration("synchronous_timeout")?,
            slot: slot(settings)?,
            compression: settings.optional_number("compression")?,
            command_interval: settings.optional_duration("command_interval")?,
            periodic_command: settings.text("periodic_command")?,
            tls,
            connect_timeout: settings.duration("connect_timeout")?,
            push_timeout: settings.duration("push_timeout")?,
            block_size: settings.number("block_size")?,
            backup_jobs: settings.number("backup_jobs")?,
            backup_rate: settings.optional_size("backup_rate")?,
            backup_checkpoint: match settings.choice("backup_checkpoint")? {
                "spread" => BackupCheckpoint::Spread,
                _ => BackupCheckpoint::Fast,
            },
            archive_batch: settings.number("archive_batch")?,
            archive_jobs: settings.number("archive_jobs")?,
            restore_ahead: settings.number("restore_ahead")?,
            verify_wal: VerifyWal::read(settings, "verify_wal")?,
            metrics_listen: settings.listen("metrics_listen")?,
            ignored_folders,
            notes,
            warnings: settings.warnings.clone(),
        };
        config.check_files(settings)?;
        Ok(config)
    }

    /// The pidfile whose lock shows that a syncdaemon runs: `pidfile`, or one beside the ini file.
    pub fn syncdaemon_pidfile(&self) -> PathBuf {
        let beside = || self.path.with_extension("pid");
        self.pidfile.clone().unwrap_or_else(beside)
    }

    fn check_files(&self, settings: &GivenSettings) -> Result<(), Fault> {
        let mut files = vec![
            Named::new(settings, "this ini file", &self.path),
            Named::new(settings, "master_config", &self.master_config),
            Named::new(settings, "tls_key", &self.tls.key),
            Named::new(settings, "tls_cert", &self.tls.certificate),
        ];
        let optional = [("logfile", &self.logfile), ("pidfile", &self.pidfile)];
        for (name, path) in optional {
            files.extend(path.iter().map(|path| Named::new(settings, name, path)));
        }
        check_files(&files)
    }
}

/// A replication slot's name goes into a command as it is, so it is one that PostgreSQL takes.
fn slot(settings: &GivenSettings) -> Result<Option<String>, Fault> {
    let Some(name) = settings.text("slot")?.filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    let is_taken = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    match (
        name.len() <= SLOT_BYTES_MAX && name.bytes().all(is_taken),
        settings.get("slot"),
    ) {
        (false, Some(setting)) => Err(Fault::of_key(
            setting.place,
            "slot",
            format!(
                "expected a slot's name, lower-case letters, digits and _, found {}",
                shown(&name)
            ),
        )),
        _ => Ok(Some(name)),
    }
}

/// Folders by their settings' names, and notes.
type Leftovers = (Vec<(String, String)>, Vec<String>);

/// What an old file says that means nothing any more, and the notes about it.
fn leftovers(settings: &GivenSettings, slave: &SlaveAddress) -> Result<Leftovers, Fault> {
    let path = slave.ignored_path.as_ref().map(|path| {
        let why = "directories are set in the standby's ini file";
        ("slave", format!(": the path {path} is ignored: {why}"))
    });
    let user = slave.ignored_user.as_ref().map(|user| {
        let why = "walmgr does not use ssh";
        ("slave", format!(": the user {user} is ignored: {why}"))
    });
    let other_file = settings.get("slave_config").map(|_| {
        let why = "the standby's commands have their own ini file";
        ("slave_config", format!(" is ignored: {why}"))
    });
    let skylog = (settings.number::<u64>("use_skylog")? != 0).then(|| {
        let why = "skylog.ini no longer exists";
        ("use_skylog", format!(" is ignored: {why}"))
    });
    let links = settings.get("keep_symlinks").map(|_| {
        let why = "it is a setting of the standby, where its default is yes";
        ("keep_symlinks", format!(" is ignored: {why}"))
    });
    let mut notes = settings.notes.clone();
    for (name, note) in [path, user, other_file, skylog, links]
        .into_iter()
        .flatten()
    {
        let place = match settings.get(name) {
            Some(setting) => format!(
                "{}: {}",
                setting.place.in_file(&settings.file),
                setting.spelled
            ),
            None => name.to_owned(),
        };
        notes.push(format!("{place}{note}"));
    }
    let folders = ignored_folders(settings)?;
    if !folders.is_empty() {
        let names: Vec<&str> = folders.iter().map(|(name, _)| name.as_str()).collect();
        notes.push(format!(
            "{}: {} ignored: directories are set in the standby's ini file",
            settings.file.display(),
            names.join(", ")
        ));
    }
    Ok((folders, notes))
}

/// The standby's folders, which an old file of the master names.
fn ignored_folders(settings: &GivenSettings) -> Result<Vec<(String, String)>, Fault> {
    let mut folders = Vec::new();
    for name in FOLDERS {
        if settings.get(name).is_some()
            && let Some(text) = settings.text(name)?
        {
            folders.push((name.to_owned(), text));
        }
    }
    Ok(folders)
}
