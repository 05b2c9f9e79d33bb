//! Which code runs for a command, on which side.
//! Never does the work itself. Invariant: settings are loaded before anything is started, and a
//! daemon goes into the background before it has threads, a pidfile or a log.

use std::path::{Path, PathBuf};

use super::command::{self, Command};
use super::{Invocation, audited, owner};
use crate::config::{self, Config, LogFormat};
use crate::daemon::{self, ForkSide, Readiness};
use crate::error::{self, Result};
use crate::master::{setup_by_root, synch_standby};
use crate::options::Options;
use crate::{abnormal, cleanup, output, standby};

/// Runs one command to its end.
pub fn run(invocation: &Invocation) -> Result<()> {
    let Invocation {
        ini,
        word,
        command,
        options,
    } = invocation;
    if let Command::Init(arguments) = command {
        if let Some(owner) = owner::starts_for(ini, arguments).filter(|_| !options.not_really) {
            return standby::start::as_owner(ini, owner);
        }
        owner::check_init(ini, arguments)?;
        output::start(options, log(None, command))?;
        return audited::run_init((ini, word), options, || {
            command::run_init(ini, options, arguments)
        });
    }
    if let Command::SynchStandby(typed) = command
        && ini.as_os_str().is_empty()
    {
        let data = synch_standby::data_without_file(typed.pgdata.as_deref())?;
        owner::check_data(&data)?;
        output::start(options, log(None, command))?;
        return synch_standby::run_without_file(options, typed);
    }
    let is_agent = matches!(command, Command::Xarchive(typed) if typed.look_ahead);
    if matches!(command, Command::Xarchive(_) | Command::Xrestore(_)) && !is_agent {
        // Once they push or copy a file the log says so, too.
        abnormal::exit_on_signals();
    }
    owner::check_readable(ini, command)?;
    if matches!(command, Command::Cleanup(_)) && is_gone(ini) {
        output::start(options, log(None, command))?;
        return cleanup::nothing_left(ini);
    }
    let config = match command.takes_folder() && ini.is_dir() {
        true => Config::Host(Box::new(config::load_folder(ini)?)),
        false => config::load(ini, &options.overrides)?,
    };
    match &config {
        Config::Master(_) => error::name_own_ini("MASTER.ini", ini),
        Config::Standby(_) => error::name_own_ini("STANDBY.ini", ini),
        Config::Host(_) => {}
    }
    if let (Config::Master(own), Command::Setup(typed)) = (&config, command)
        && let Some(owner) = owner::restarts_for(own, typed).filter(|_| !options.not_really)
    {
        output::start(options, log(None, command))?;
        return setup_by_root::run(own, owner);
    }
    owner::check_command(&config, command)?;
    // Before the log and before any thread, so that only the daemon has them.
    let Some(readiness) = background(options).or_else(|error| {
        start_log_of_starter(&config, command, options)?;
        Err(error)
    })?
    else {
        return Ok(());
    };
    start_log(&config, command, options)?;
    audited::run((command, word), &config, options, || {
        command::run_command(command, word, &config, options, readiness)
    })
}

/// Whether there is nothing of this name, a dangling link aside.
fn is_gone(path: &Path) -> bool {
    let found = path.symlink_metadata();
    found.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

/// What is said of a daemon that did not get ready has the form of its log; the logfile is the daemon's alone.
fn start_log_of_starter(config: &Config, command: &Command, options: &Options) -> Result<()> {
    let log = output::Log {
        logfile: None,
        ..log(Some(config), command)
    };
    output::start(options, log)
}

/// Has the log go where the settings say, and says there what they are noted for.
fn start_log(config: &Config, command: &Command, options: &Options) -> Result<()> {
    let is_setup = matches!(command, Command::Setup(_));
    if is_setup && !options.not_really {
        make_folders(config);
    }
    let beside = logfile_beside(config, command, options);
    let mut log = log(Some(config), command);
    let is_cleanup = matches!(command, Command::Cleanup(_));
    let may_make =
        |path: &&Path| path.exists() || (!is_cleanup && owner::may_make_log(config, command));
    log.logfile = log.logfile.filter(may_make).or(beside.as_deref());
    output::start(options, log)?;
    if let Some(path) = &beside {
        tracing::info!("logfile is not set: the log goes to {}", path.display());
    }
    for warning in config.warnings() {
        match is_setup {
            true => tracing::warn!("{warning}"),
            false => tracing::debug!("{warning}"),
        }
    }
    for note in config.notes() {
        // Said by default where somebody has just edited the file, and nowhere else.
        match is_setup {
            true => tracing::info!("{note}"),
            false => tracing::debug!("{note}"),
        }
    }
    Ok(())
}

/// `None` for the process that was typed with `-d`, once the daemon is ready.
fn background(options: &Options) -> Result<Option<Readiness>> {
    if !options.daemon || options.not_really {
        return Ok(Some(Readiness::in_foreground()));
    }
    Ok(match daemon::into_background()? {
        ForkSide::Starter => None,
        ForkSide::Daemon(readiness) => Some(readiness),
    })
}

/// A daemon in the background has no stderr: without a `logfile` its log goes beside the ini file.
fn logfile_beside(config: &Config, command: &Command, options: &Options) -> Option<PathBuf> {
    let is_daemon = command.daemon_flags().is_some();
    if !is_daemon || !options.daemon || options.not_really || config.logfile().is_some() {
        return None;
    }
    Some(config.path().with_extension("log"))
}

/// Makes the folders of log and pid file, as the old walmgr did: its own ini files name some below
/// the home directory. Whoever opens the files says what is wrong.
fn make_folders(config: &Config) {
    for path in [config.logfile(), config.pidfile()].into_iter().flatten() {
        let _ = path.parent().map(std::fs::create_dir_all);
    }
}

fn log<'a>(config: Option<&'a Config>, command: &Command) -> output::Log<'a> {
    let format = match config {
        Some(Config::Standby(config)) => config.log_format,
        Some(Config::Host(config)) => config.log_format,
        _ => LogFormat::Text,
    };
    let format = match format {
        LogFormat::Json => output::Format::Json,
        LogFormat::Text => output::Format::Text,
    };
    output::Log {
        logfile: config.and_then(Config::logfile),
        format,
        speaker: command.speaker(),
    }
}
