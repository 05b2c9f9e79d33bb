//! Stops and starts the standby's server by the administrator's commands.
//! Never signals a server itself. Invariant: when `stop_server` returns 0, no server runs on the
//! directory that is about to be moved.

use std::time::{Duration, Instant};

use super::plan::Plan;
use crate::config::StandbyConfig;
use crate::error::{CommandError, Result};
use crate::output::Waiting;
use crate::pg::conf;
use crate::pg::control::State;
use crate::pg::data_directory::DataDirectory;
use crate::pg::set_place::Occupant;
use crate::shell::{SettingsCommand, check_log_of};
use crate::standby::replay::{COMMAND_TIMEOUT, SERVER_TIMEOUT, TICK};

/// How long a server that is not ready yet has to live to count as started: one that finds nothing
/// wrong with its settings and its directory within that time replays.
const SETTLING: Duration = Duration::from_secs(3);

impl Plan<'_> {
    /// Stops the server on the old directory; whether one ran.
    pub(super) fn stop_server(&self) -> Result<bool> {
        let data = &self.place.data;
        if !self.place.is_slave_data || self.place.occupant != Occupant::Old {
            return Ok(false);
        }
        let old = DataDirectory::open(data)?;
        if old.running()?.is_none() {
            return Ok(false);
        }
        let Some(command) = &self.config.slave_stop_cmd else {
            return Err(
                CommandError::retry(format!("a server runs in {}", data.display()))
                    .hint("stop it, or set slave_stop_cmd"),
            );
        };
        tracing::info!("stopping the server: {command}");
        if let Err(error) = command_of(self.config, "slave_stop_cmd", command).run() {
            let now = match old.running() {
                Ok(Some(_)) => "the server still runs, and nothing was changed",
                Ok(None) => "but the server has ended: start it; nothing else was changed",
                Err(_) => "nothing was changed",
            };
            return Err(error.hint(now));
        }
        let (begun, mut waiting) = (Instant::now(), Waiting::begin());
        while old.running()?.is_some() {
            if begun.elapsed() > SERVER_TIMEOUT {
                return Err(CommandError::retry(format!(
                    "slave_stop_cmd `{command}` succeeded, but the server in {} runs",
                    data.display()
                )));
            }
            if waiting.is_due() {
                tracing::info!("slave_stop_cmd has ended; waiting for the server to end");
            }
            std::thread::sleep(TICK);
        }
        Ok(true)
    }

    /// Starts the server on the new directory, or says that it has to be started; whether it runs.
    pub(super) fn start_server(&self) -> Result<bool> {
        let data = self.place.data.display();
        let missing = self.missing_pieces()?;
        for piece in &missing {
            tracing::warn!("the server needs {piece}, which is missing");
        }
        let command = (self.config.slave_start_cmd.as_ref()).filter(|_| self.place.is_slave_data);
        let Some(command) = command else {
            tracing::info!("{data} is ready: start PostgreSQL there");
            return Ok(false);
        };
        tracing::info!("{data} is ready, starting the server: {command}");
        let started = command_of(self.config, "slave_start_cmd", command).run();
        let started = started.map_err(|error| match missing.is_empty() {
            true => error,
            false => error.because(std::io::Error::other(format!(
                "its configuration names files that are missing: {}",
                missing.join(", ")
            ))),
        });
        if started.is_err() && self.has_ended_at_target(&DataDirectory::open(&self.place.data)?) {
            // That is what `pg_ctl -w` calls a server that could not be started.
            tracing::info!("the server has reached its target and shut down; `boot` opens it");
            return Ok(true);
        }
        started?;
        self.wait_until_running()?;
        let server = DataDirectory::open(&self.place.data).and_then(|data| data.running());
        if let Ok(Some(server)) = server {
            check_log_of("slave_start_cmd", server.pid);
        }
        Ok(true)
    }

    /// Files that the configuration names and that are not there. The command that starts the server may
    /// give it others, so they are told and do not end the restore.
    fn missing_pieces(&self) -> Result<Vec<String>> {
        let data = &self.place.data;
        let server = self.server.moved(&self.place.staging(), data);
        let pieces = conf::pieces(server.config_file(), data)?.into_iter();
        let missing = pieces.filter(|piece| piece.is_missing());
        Ok(missing.map(|piece| piece.to_string()).collect())
    }

    fn wait_until_running(&self) -> Result<()> {
        let data = DataDirectory::open(&self.place.data)?;
        let shown = data.path().display();
        let (begun, mut waiting) = (Instant::now(), Waiting::begin());
        let mut seen_at: Option<Instant> = None;
        loop {
            // A file that is being written proves nothing yet.
            match (data.running(), seen_at) {
                (Ok(Some(server)), _) if server.ready => return Ok(()),
                (Ok(Some(_)), Some(seen_at)) if seen_at.elapsed() > SETTLING => return Ok(()),
                (Ok(Some(_)), _) => drop(seen_at.get_or_insert_with(Instant::now)),
                _ if self.has_ended_at_target(&data) => return Ok(()),
                (Ok(None), Some(_)) => {
                    return Err(CommandError::retry(format!(
                        "slave_start_cmd succeeded, but the server in {shown} ended right after it \
                         was started"
                    ))
                    .hint("PostgreSQL's log says why"));
                }
                _ if begun.elapsed() > SERVER_TIMEOUT => {
                    return Err(CommandError::retry(format!(
                        "slave_start_cmd succeeded, but no server runs in {shown}"
                    ))
                    .hint("check that it starts the server of this directory"));
                }
                _ if waiting.is_due() => {
                    tracing::info!("slave_start_cmd has ended; waiting for a server in {shown}");
                }
                _ => {}
            }
            std::thread::sleep(TICK);
        }
    }

    /// A recovery to a target may be over before anybody has looked.
    fn has_ended_at_target(&self, data: &DataDirectory) -> bool {
        let is_down = || data.control().map(|control| control.state);
        self.recovery.target.is_some() && is_down().is_ok_and(|it| it == State::ShutDownInRecovery)
    }
}

/// A command of the settings that stops or starts the server.
pub(super) fn command_of<'a>(
    config: &'a StandbyConfig,
    setting: &'a str,
    command: &'a str,
) -> SettingsCommand<'a> {
    SettingsCommand {
        setting,
        command,
        limit: COMMAND_TIMEOUT,
        programs: config.slave_bin.as_deref(),
    }
}
