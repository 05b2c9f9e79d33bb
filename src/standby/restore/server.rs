//! Stops and starts the standby's server by the administrator's commands.
//! Never signals a server itself. Invariant: when `stop_server` returns 0, no server runs on the
//! directory that is about to be moved.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::place::Occupant;
use super::plan::Plan;
use crate::error::{CommandError, Result};
use crate::pg::data_directory::DataDirectory;
use crate::standby::replay::TICK;

/// A shutdown waits for its checkpoint, a start may wait for replay to get consistent.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(600);

/// How long a server may outlive the command that stopped it, or come up after its start.
const SERVER_TIMEOUT: Duration = Duration::from_secs(60);

impl Plan<'_> {
    /// Stops the server on the old directory, if one runs.
    pub fn stop_server(&self) -> Result<()> {
        let data = &self.place.data;
        if !self.place.is_slave_data || self.place.occupant != Occupant::Old {
            return Ok(());
        }
        let old = DataDirectory::open(data)?;
        if old.running()?.is_none() {
            return Ok(());
        }
        let Some(command) = &self.config.slave_stop_cmd else {
            return Err(
                CommandError::retry(format!("a server runs in {}", data.display()))
                    .hint("stop it, or set slave_stop_cmd"),
            );
        };
        tracing::info!("stopping the server: {command}");
        run("slave_stop_cmd", command)?;
        let begun = Instant::now();
        while old.running()?.is_some() {
            if begun.elapsed() > SERVER_TIMEOUT {
                return Err(CommandError::retry(format!(
                    "slave_stop_cmd `{command}` succeeded, but the server in {} runs",
                    data.display()
                )));
            }
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    /// Starts the server on the new directory, or says that it has to be started.
    pub fn start_server(&self) -> Result<()> {
        let data = self.place.data.display();
        let command = (self.config.slave_start_cmd.as_ref()).filter(|_| self.place.is_slave_data);
        let Some(command) = command else {
            tracing::info!("{data} is ready: start PostgreSQL on it");
            return Ok(());
        };
        tracing::info!("{data} is ready, starting the server: {command}");
        let hint = "the data directory is complete; PostgreSQL's log says why it does not start";
        run("slave_start_cmd", command).map_err(|error| error.hint(hint))?;
        wait_until_running(&self.place.data).map_err(|error| error.hint(hint))
    }
}

fn wait_until_running(data: &Path) -> Result<()> {
    let data = DataDirectory::open(data)?;
    let begun = Instant::now();
    // A file that is being written proves nothing yet.
    while !matches!(data.running(), Ok(Some(_))) {
        if begun.elapsed() > SERVER_TIMEOUT {
            return Err(CommandError::retry(format!(
                "slave_start_cmd succeeded, but no server runs in {}",
                data.path().display()
            )));
        }
        std::thread::sleep(TICK);
    }
    Ok(())
}

/// Runs a command of the settings to its end. Its output goes nowhere: a server that it starts
/// keeps it open.
fn run(setting: &str, command: &str) -> Result<()> {
    let failed = || CommandError::retry(format!("run {setting} `{command}`"));
    let mut child = Command::new("/bin/sh")
        .arg("-c")
        .arg(command)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| failed().because(error))?;
    let begun = Instant::now();
    loop {
        match child.try_wait().map_err(|error| failed().because(error))? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => {
                return Err(CommandError::retry(format!(
                    "{setting} `{command}` failed with {status}"
                )));
            }
            None if begun.elapsed() > COMMAND_TIMEOUT => {
                return Err(CommandError::retry(format!(
                    "{setting} `{command}` has not ended within {} s",
                    COMMAND_TIMEOUT.as_secs()
                )));
            }
            None => std::thread::sleep(TICK / 4),
        }
    }
}
