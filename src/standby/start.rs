//! `init --start`: has the receiver run that the new file is for, now and after the next boot where systemd does that.
//! Never starts a second one. Invariant: what was started has said that it is ready.

use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use rustix::process::geteuid;

use crate::config::{self, Config, StandbyConfig, packaged};
use crate::daemon;
use crate::error::{CommandError, Result};
use crate::shell;

/// How it stands with the receiver behind [`receiver`].
pub(super) enum ReceiverStart {
    /// It runs; in these words.
    Runs(String),
    /// Only root may start its unit: the line to type.
    TypedByRoot(String),
}

/// Starts the receiver of a cluster whose folders are there.
pub(super) fn receiver(config: &StandbyConfig, unit_follows: bool) -> Result<ReceiverStart> {
    if daemon::is_running(&config.receiver_pidfile())? {
        return Ok(ReceiverStart::Runs("The receiver runs already".to_owned()));
    }
    match packaged::unit("receiver", &config.path) {
        Some(unit) if unit_follows => Ok(ReceiverStart::Runs(format!("{unit} runs in a moment"))),
        Some(unit) if geteuid().is_root() => {
            start_unit(&unit)?;
            Ok(ReceiverStart::Runs(format!(
                "{unit} runs, also after a boot of this host"
            )))
        }
        Some(_) => Ok(ReceiverStart::TypedByRoot(packaged::starting(
            "receiver",
            &config.path,
        ))),
        None => {
            let mut walmgr = Command::new(shell::this_program()?);
            walmgr
                .arg(&config.path)
                .args(["receiver", "--daemon"])
                .stdin(Stdio::null());
            let ended = walmgr
                .status()
                .map_err(|error| failed("start the receiver", error))?;
            succeeded(ended, "the receiver did not start")?;
            Ok(ReceiverStart::Runs(
                "The receiver runs in the background until the next boot".to_owned(),
            ))
        }
    }
}

/// Types the same line as the user `owner`, for root, which would write files that only root can read; then starts the
/// unit, which only root may.
pub(crate) fn as_owner(ini: &Path, owner: u32) -> Result<()> {
    let unit = packaged::unit("receiver", ini);
    // A second one would fail, and systemd would keep on trying.
    let runs = match config::load(ini, &[]) {
        Ok(Config::Standby(config)) => daemon::is_running(&config.receiver_pidfile())?,
        _ => false,
    };
    let mut walmgr = shell::as_user(owner)?;
    walmgr.args(std::env::args_os().skip(1));
    walmgr.args(unit.iter().map(|_| "--unit-follows"));
    let ended = walmgr
        .status()
        .map_err(|error| failed("start walmgr", error))?;
    succeeded(ended, &format!("what was typed failed as user {owner}"))?;
    match unit {
        Some(unit) if !runs => start_unit(&unit),
        _ => Ok(()),
    }
}

fn start_unit(unit: &str) -> Result<()> {
    let [_, program, arguments @ ..] = packaged::enabling(unit);
    let mut systemctl = Command::new(program);
    let ended = systemctl.args(arguments).stdin(Stdio::null()).status();
    let ended = ended.map_err(|error| failed("call systemctl", error))?;
    succeeded(
        ended,
        &format!("{unit} did not start; `journalctl -u {unit}` says why"),
    )
}

fn failed(doing: &str, error: std::io::Error) -> CommandError {
    CommandError::retry(doing).because(error)
}

fn succeeded(ended: ExitStatus, otherwise: &str) -> Result<()> {
    match ended.success() {
        true => Ok(()),
        false => Err(CommandError::retry(format!("{otherwise} ({ended})"))),
    }
}
