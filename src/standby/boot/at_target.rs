//! A server that stands shut down at its recovery target, and that no promotion can reach: it is started so
//! that it opens there. Never moves a target, and never touches a standby. Invariant: if it does not open, its
//! settings are again what they were, and the stream goes on.
//!
//! PostgreSQL ends at its target with `recovery_target_action = shutdown`, with `pause` where
//! `hot_standby = off` (`validateRecoveryParameters`), and when its administrator or its host stops it while
//! it waits there. Started as it is it would replay to the same target, and end or wait again.

use std::time::Instant;

use super::begun::BegunBoot;
use super::changed::Changed;
use super::{BootedStandby, alone, archive, call_off, or_forced};
use crate::config::StandbyConfig;
use crate::error::{CommandError, Result};
use crate::options::Options;
use crate::output::{self, Waiting};
use crate::pg::conf::ServerSettings;
use crate::pg::control::State;
use crate::pg::data_directory::{DataDirectory, Postmaster};
use crate::pg::layout;
use crate::pg::programs::Programs;
use crate::pg::recovery::TARGETS;
use crate::pg::sql_settings::COMMAND_LINE;
use crate::shell::SettingsCommand;
use crate::standby::frozen::Partials;
use crate::standby::own_server;
use crate::standby::replay::{COMMAND_TIMEOUT, SERVER_TIMEOUT, TICK};
use crate::standby::verdict::{self, InProgress};

const ACTION: &str = "recovery_target_action";

/// Whether no server runs there, and one that is started recovers up to a target.
pub(super) fn stands(config: &StandbyConfig, data: &DataDirectory) -> Result<bool> {
    let there = |name: &str| data.path().join(name).exists();
    if !there(layout::RECOVERY_SIGNAL) || there(layout::STANDBY_SIGNAL) || data.running()?.is_some()
    {
        return Ok(false);
    }
    let state = data.control()?.state;
    let has_replayed = matches!(state, State::ShutDownInRecovery | State::InArchiveRecovery);
    let settings = own_server::settings(config, data);
    Ok(has_replayed && own_server::has_target(data, None, &settings))
}

/// Starts the server so that it opens at its target, and does what a boot does.
pub(super) fn open(
    config: &StandbyConfig,
    options: &Options,
    data: DataDirectory,
    wait: bool,
    force: bool,
) -> Result<()> {
    let place = data.path().display().to_string();
    let settings = own_server::settings(config, &data);
    let pg_ctl = Programs::of_standby(config).typed("pg_ctl");
    let Some(command) = &config.slave_start_cmd else {
        return Err(CommandError::config(format!(
            "the server in {place} has shut down at its recovery target, and boot cannot start it"
        ))
        .hint(format!(
            "set slave_start_cmd, or start the server yourself so that it opens: {}",
            start_by_hand(&pg_ctl, &place, &settings)
        )));
    };
    refuse_lost_target((&place, &pg_ctl), command, &settings)?;
    if options.not_really {
        return output::not_really(&format!(
            "freeze the incoming stream, and start the server in {place}, which has shut down at \
            its recovery target, so that it opens there"
        ));
    }
    tracing::info!("the server in {place} has shut down at its recovery target");
    let alone = alone(&data)?;
    let standby = BootedStandby {
        before: data.control()?,
        settings,
        archive: archive(config)?,
        at_target: true,
        // No server knows of the freeze: up to a target none is given what was frozen.
        server: this_process()?,
        data,
    };
    let partials = or_forced(force, Partials::open(config))?;
    let found = match partials.as_ref().map(Partials::in_progress) {
        Some(found) => or_forced(force, found)?.unwrap_or_default(),
        None => InProgress::default(),
    };
    let acknowledged = verdict::find(&standby.archive, &found, standby.replayed())?.acknowledged;
    let frozen = standby.freeze(partials.as_ref(), force, false)?;
    let begun = standby.begun(acknowledged.with(frozen))?;
    let opened = begun
        .write(config)
        .and_then(|()| standby.start_and_open(command, wait, (&begun, config)));
    let has_opened = match opened {
        Ok(has_opened) => has_opened,
        Err(error) => {
            call_off(config, partials.as_ref());
            return Err(error);
        }
    };
    drop(alone);
    if !has_opened {
        tracing::info!(
            "the server in {place} opens at its target; type `boot` again to see the result"
        );
        return Ok(());
    }
    standby.opened(config, &begun).finish(force)
}

/// The parameters of the target that the server was given on its command line.
fn target_on_line(settings: &ServerSettings) -> impl Iterator<Item = (&'static str, String)> {
    let names = TARGETS.into_iter().chain(["recovery_target_inclusive"]);
    let given = names.filter_map(|name| Some((name, settings.get(name)?)));
    let given = given.filter(|(_, set)| set.place == COMMAND_LINE && !set.value.is_empty());
    given.map(|(name, set)| (name, set.value))
}

/// The line that opens it at its target.
fn start_by_hand(pg_ctl: &str, place: &str, settings: &ServerSettings) -> String {
    let given = target_on_line(settings);
    let given: String = given
        .map(|(name, value)| format!(" -c {name}={}", escaped(&value)))
        .collect();
    format!("`{pg_ctl} -D {place} -o '-c {ACTION}=promote{given}' start`")
}

/// A value as the words of `pg_ctl -o '…'` take it: a shell reads them twice.
fn escaped(value: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./:+".contains(letter);
    if value.chars().all(is_plain) {
        return value.to_owned();
    }
    let mut quoted = String::from("\"");
    for letter in value.chars() {
        match letter {
            '\'' => quoted.push_str("'\\''"),
            '"' | '\\' | '$' | '`' => quoted.extend(['\\', letter]),
            letter => quoted.push(letter),
        }
    }
    quoted + "\""
}

/// Started without the target that its command line had, the server would replay all there is, and open there.
fn refuse_lost_target(
    (place, pg_ctl): (&str, &str),
    command: &str,
    settings: &ServerSettings,
) -> Result<()> {
    let mut given = target_on_line(settings).filter(|(name, _)| !command.contains(name));
    let Some((name, value)) = given.next() else {
        return Ok(());
    };
    Err(CommandError::config(format!(
        "the server in {place} has shut down at its recovery target, {name} = {value}, which was \
        on its command line; slave_start_cmd does not name this target, so the server would go \
        past it"
    ))
    .hint(format!(
        "put {name} = '{}' into {}, or start the server yourself so that it opens: {}",
        value.replace('\'', "''"),
        settings.automatic().display(),
        start_by_hand(pg_ctl, place, settings)
    )))
}

fn this_process() -> Result<Postmaster> {
    let parsed = Postmaster::parse(&format!("{}\n", std::process::id()));
    parsed.ok_or_else(|| CommandError::retry("find this process's own id"))
}

impl BootedStandby {
    /// Whether the server opened, if that was waited for.
    fn start_and_open(
        &self,
        command: &str,
        wait: bool,
        (begun, config): (&BegunBoot, &StandbyConfig),
    ) -> Result<bool> {
        let path = self.settings.automatic();
        let changed = Changed::of(&path, ACTION, "promote")?;
        begun.with(Some(changed.clone()), config)?;
        changed.make(&path)?;
        tracing::info!("starting the server: {command}");
        let start = SettingsCommand {
            setting: "slave_start_cmd",
            command,
            limit: COMMAND_TIMEOUT,
            programs: config.slave_bin.as_deref(),
        };
        let started = start.run().and_then(|()| match wait {
            true => self.wait_until_it_opened().map(|()| true),
            false => Ok(false),
        });
        if started.is_err() && matches!(self.data.running(), Ok(None)) {
            changed.put_back(&path)?;
        }
        started
    }

    fn wait_until_it_opened(&self) -> Result<()> {
        let (begun, mut waiting) = (Instant::now(), Waiting::begin());
        let mut was_seen = false;
        loop {
            let is_running = self.data.running()?.is_some();
            let control = self.data.control()?;
            if is_running && control.state == State::InProduction {
                return Ok(());
            }
            if !is_running && (was_seen || begun.elapsed() > SERVER_TIMEOUT) {
                return Err(CommandError::retry(format!(
                    "the server in {} ended before it had opened; its log says why",
                    self.data.path().display()
                ))
                .hint(format!(
                    "check that its target is in the archive, and that slave_start_cmd does not \
                    set {ACTION}, which overrides what boot writes"
                )));
            }
            was_seen |= is_running;
            if waiting.is_due() {
                tracing::info!(
                    "replaying to the target; checkpoint at {}",
                    control.checkpoint
                );
            }
            std::thread::sleep(TICK);
        }
    }
}
