//! Which code runs for a command, on which side.
//! Never does the work itself. Invariant: settings are loaded before anything is started, and a
//! daemon goes into the background before it has threads, a pidfile or a log.

use std::path::{Path, PathBuf};

use super::{Command, Init, Invocation, owner};
use crate::config::{self, Config, HostConfig, LogFormat, MasterConfig, StandbyConfig};
use crate::daemon::{self, ForkSide, Readiness};
use crate::error::{self, CommandError, Result};
use crate::options::Options;
use crate::{abnormal, identity, master, output, receiver, standby};

/// Runs one command to its end.
pub fn run(invocation: &Invocation) -> Result<()> {
    let Invocation {
        ini,
        command,
        options,
    } = invocation;
    if let Command::Init(side) = command {
        owner::check_init(ini, side)?;
        output::start(options, log(None, command))?;
        return init(ini, side, options);
    }
    if matches!(command, Command::Xarchive { .. } | Command::Xrestore { .. }) {
        abnormal::exit_on_signals(command.exit_table())?;
    }
    owner::check_readable(ini, command)?;
    let config = config::load(ini, &options.overrides)?;
    match &config {
        Config::Master(_) => error::name_own_ini("MASTER.ini", ini),
        Config::Standby(_) => error::name_own_ini("STANDBY.ini", ini),
        Config::Host(_) => {}
    }
    owner::check_command(&config, command)?;
    // Before the log and before any thread, so that only the daemon has them.
    let readiness = match background(options) {
        Ok(Some(readiness)) => readiness,
        Ok(None) => return Ok(()),
        Err(error) => {
            // Said in the form of the daemon's log; the logfile is the daemon's alone.
            let log = log(Some(&config), command);
            output::start(
                options,
                output::Log {
                    logfile: None,
                    ..log
                },
            )?;
            return Err(error);
        }
    };
    start_log(&config, command, options)?;
    match config {
        Config::Master(config) => run_on_master(&config, command, options, readiness),
        Config::Standby(config) => run_on_standby(&config, command, options, readiness),
        Config::Host(config) => run_on_host(&config, command, options),
    }
}

/// The one command that has no file of settings yet.
fn init(ini: &Path, side: &Init, options: &Options) -> Result<()> {
    match side {
        Init::Standby => standby::init::run(ini, options),
        Init::Master {
            pgdata,
            slave,
            slave_fingerprint,
        } => {
            let typed = master::init::InitArgs {
                pgdata: pgdata.as_deref(),
                slave: slave.as_deref(),
                slave_fingerprint: slave_fingerprint.as_deref(),
            };
            master::init::run(ini, options, &typed)
        }
    }
}

/// Has the log go where the settings say, and says there what they are noted for.
fn start_log(config: &Config, command: &Command, options: &Options) -> Result<()> {
    let is_setup = matches!(command, Command::Setup { .. });
    if is_setup && !options.not_really {
        make_folders(config);
    }
    let beside = logfile_beside(config, command, options);
    let mut log = log(Some(config), command);
    let may_make = |path: &&Path| path.exists() || owner::may_make_log(config, command);
    log.logfile = log.logfile.filter(may_make).or(beside.as_deref());
    output::start(options, log)?;
    if let Some(path) = &beside {
        tracing::info!("logfile is not set: the log goes to {}", path.display());
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

fn run_on_master(
    config: &MasterConfig,
    command: &Command,
    options: &Options,
    readiness: Readiness,
) -> Result<()> {
    match command {
        Command::Identity => identity::run(&config.tls, &config.job_name, options),
        Command::Setup { check } => master::setup::run(config, options, *check),
        Command::Stop => master::stop::run(config, options),
        Command::Xarchive { path, name } => master::xarchive::run(config, options, path, *name),
        Command::Periodic => master::periodic::run(config, options),
        Command::ListBackups => master::listbackups::run(config, options),
        Command::Status(thresholds) => master::status::run(config, options, thresholds),
        Command::Restore(restoring) => master::restore::run(config, options, restoring),
        Command::Xrestore { name, path } => master::xrestore::run(config, options, *name, path),
        Command::Backup { allow_left_out } => master::backup::run(config, options, *allow_left_out),
        Command::Sync => master::sync::run(config, options),
        Command::Syncdaemon => master::syncdaemon::run(config, options, readiness),
        other => Err(wrong_side(other, "standby", &config.path)),
    }
}

fn run_on_standby(
    config: &StandbyConfig,
    command: &Command,
    options: &Options,
    readiness: Readiness,
) -> Result<()> {
    match command {
        Command::Identity => identity::run(&config.tls, &config.job_name, options),
        Command::Setup { .. } => standby::setup::run(config, options),
        Command::Authorize {
            fingerprint,
            name,
            rights,
        } => standby::authorize::run(config, options, fingerprint, name, rights),
        Command::Revoke { name } => standby::revoke::run(config, options, name),
        Command::Receiver => receiver::run(config, options, readiness),
        Command::Xrestore { name, path } => standby::xrestore::run(config, options, *name, path),
        Command::ListBackups => standby::listbackups::run(config, options),
        Command::Status(thresholds) => standby::status::run(config, options, thresholds),
        Command::Restore(restoring) => standby::restore::run(config, options, restoring),
        Command::Xpurgewals => standby::xpurgewals::run(config, options),
        Command::Choose { name, take } => standby::choose::run(config, options, name, *take),
        Command::Pause => standby::pause::run(config, options),
        Command::Continue => standby::continue_::run(config, options),
        Command::Boot { wait, force } => standby::boot::run(config, options, *wait, *force),
        other => Err(wrong_side(other, "master", &config.path)),
    }
}

fn run_on_host(config: &HostConfig, command: &Command, options: &Options) -> Result<()> {
    match command {
        Command::Identity => identity::run(&config.tls, &config.job_name, options),
        other => Err(config.not_for(other.word())),
    }
}

fn wrong_side(command: &Command, side: &str, ini: &Path) -> CommandError {
    CommandError::usage(format!("`{}` runs on the {side}", command.word()))
        .hint(format!("{} is the other side's file", ini.display()))
}

/// A daemon in the background has no stderr: without a `logfile` its log goes beside the ini file.
fn logfile_beside(config: &Config, command: &Command, options: &Options) -> Option<PathBuf> {
    let is_daemon = matches!(command, Command::Receiver | Command::Syncdaemon);
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
    let speaker = match command {
        Command::Xarchive { .. } | Command::Xrestore { .. } => output::Speaker::Archiver,
        Command::Receiver | Command::Syncdaemon => output::Speaker::Daemon,
        _ => output::Speaker::Person,
    };
    output::Log {
        logfile: config.and_then(Config::logfile),
        format,
        speaker,
    }
}
