//! `stop`: turns archiving off again.
//! Never touches the archive, never turns off what another program archives or the standbys that somebody else
//! has commits wait for, and never leaves an `archive_command` that fails for ever.

use crate::config::MasterConfig;
use crate::daemon::{self, DaemonControl};
use crate::error::{CommandError, Result};
use crate::master::archiving::{self, Activation};
use crate::master::synch_standby;
use crate::options::Options;
use crate::output;
use crate::pg::archive_command::LETS_GO;
use crate::pg::grants::Task;
use crate::status::Archiving;

/// Deconfigures archiving.
pub(crate) fn run(config: &MasterConfig, options: &Options) -> Result<()> {
    let runtime = crate::master::runtime()?;
    let archives = runtime.block_on(archiving::found(config))?.archives;
    if let Archiving::Foreign(what) = archives.archiving {
        return Err(foreign(config, &what));
    }
    if synch_standby::clears_own(config)? {
        // Whoever cannot do all of it does not begin.
        runtime.block_on(synch_standby::clear_own(config, options.not_really))?;
    }
    // Without a restart archive_mode stays on, and a command that always succeeds keeps
    // PostgreSQL from piling up segments.
    let change = match config.master_restart_cmd {
        Some(_) => ("archive_mode", "off"),
        None => ("archive_command", LETS_GO),
    };
    archiving::edit(
        config,
        &[(change.0, change.1.to_owned())],
        options.not_really,
    )?;
    stop_syncdaemon(config, options)?;
    if options.not_really {
        return Ok(());
    }
    match runtime.block_on(archiving::activate(config, &[change], Task::Stop))? {
        Activation::Done(_) => {
            tracing::warn!(
                "{} = {}: WAL written from now on will never be in the archive, so standbys and \
                base backups end here; make a new base backup after the next `setup`",
                change.0,
                change.1
            );
        }
        Activation::RestartNeeded => {}
    }
    Ok(())
}

fn foreign(config: &MasterConfig, what: &str) -> CommandError {
    CommandError::config(format!(
        "the server's {what}, which is not walmgr's with {}: nothing was changed",
        config.path.display()
    ))
    .hint("run stop with the ini file that it names, or remove it from postgresql.conf by hand")
}

/// What is shipped record by record ends with the archiving.
fn stop_syncdaemon(config: &MasterConfig, options: &Options) -> Result<()> {
    let pidfile = config.syncdaemon_pidfile();
    if !daemon::is_running(&pidfile)? {
        return Ok(());
    }
    if options.not_really {
        return output::not_really("stop the syncdaemon");
    }
    let pid = daemon::signal_running(&pidfile, DaemonControl::Stop, daemon::END_TIMEOUT)?;
    tracing::info!("the syncdaemon, process {pid}, is stopped");
    Ok(())
}
