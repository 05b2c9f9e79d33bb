//! `periodic`: runs `periodic_command` when `command_interval` has passed since it last ran.
//! Never holds archiving up: `xarchive` starts it and does not look back. Invariant: of two that
//! find the time has come at once, one runs it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use rustix::fs::OFlags;

use crate::config::MasterConfig;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::options::Options;
use crate::output;
use crate::shell::{self, shell_for};

/// Runs the command if it is due and waits for it.
pub(crate) fn run(config: &MasterConfig, options: &Options) -> Result<()> {
    let Some(command) = &config.periodic_command else {
        tracing::info!("periodic_command is not set, nothing to do");
        return Ok(());
    };
    if never(config) {
        tracing::info!("command_interval is 0, so periodic_command never runs");
        return Ok(());
    }
    if options.not_really {
        return output::not_really(&format!(
            "run periodic_command if command_interval has passed: \
            {command}"
        ));
    }
    let Some(stamp) = Stamp::take_if_due(config)? else {
        tracing::info!("periodic_command is running, or ran less than command_interval ago");
        return Ok(());
    };
    tracing::info!("running periodic_command: {command}");
    let status = shell_for(command, config.master_bin.as_deref())
        .status()
        .map_err(|error| {
            CommandError::retry(format!("start periodic_command `{command}`")).because(error)
        })?;
    stamp.ran()?;
    if status.success() {
        return Ok(());
    }
    Err(CommandError::retry(format!(
        "periodic_command `{command}` failed with {status}"
    )))
}

/// Starts the command if it is due, as a process of its own that nobody waits for.
pub(crate) fn start(config: &MasterConfig) {
    let Some(command) = config.periodic_command.as_ref().filter(|_| !never(config)) else {
        return;
    };
    let started = Stamp::take_if_due(config).and_then(|stamp| {
        let Some(stamp) = stamp else { return Ok(()) };
        // As its input, the stamp's lock lives as long as the command: no second one starts beside
        // it. Its own process group: a signal for the archiver's group is not meant for it.
        let lock = stamp.file.try_clone();
        let lock = lock.at(Kind::Retry, "share the time stamp", &stamp.path)?;
        shell::keep_descriptors();
        let child = std::os::unix::process::CommandExt::process_group(
            &mut shell_for(command, config.master_bin.as_deref()),
            0,
        )
        .stdin(Stdio::from(lock))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
        child.map_err(|error| {
            CommandError::retry(format!("start periodic_command `{command}`")).because(error)
        })?;
        stamp.ran()
    });
    if let Err(error) = started {
        tracing::warn!("{error}");
    }
}

/// Without an interval the command runs every time, as an interval of 0 never made it do.
fn never(config: &MasterConfig) -> bool {
    config.command_interval == Some(Duration::ZERO)
}

/// The file whose time of change says when the command last ran, locked while it is being run.
struct Stamp {
    path: PathBuf,
    file: File,
}

impl Stamp {
    fn take_if_due(config: &MasterConfig) -> Result<Option<Stamp>> {
        let path = stamp_path(config);
        let doing = "open the time stamp of periodic_command,";
        let existed = path.exists();
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0))
            .open(&path)
            .at(Kind::Retry, doing, &path)?;
        if file.try_lock().is_err() {
            return Ok(None);
        }
        let changed = file.metadata().and_then(|metadata| metadata.modified());
        let age = SystemTime::now().duration_since(changed.at(Kind::Retry, doing, &path)?);
        // A time stamp from the future is a clock that was wrong: due.
        let interval = config.command_interval.unwrap_or(Duration::ZERO);
        let due = !existed || age.map_or(true, |age| age >= interval);
        Ok(due.then_some(Stamp { path, file }))
    }

    fn ran(self) -> Result<()> {
        let now = SystemTime::now();
        self.file
            .set_modified(now)
            .at(Kind::Retry, "stamp", &self.path)
    }
}

/// Beside the ini file, because the archive's folders are on another host.
fn stamp_path(config: &MasterConfig) -> PathBuf {
    config.path.with_extension("periodic")
}
