//! `stop`: turns archiving off again.
//! Never touches the archive, and never leaves an `archive_command` that fails for ever.

use crate::config::MasterConfig;
use crate::error::Result;
use crate::master::archiving::{self, Activation};
use crate::options::Options;

/// Deconfigures archiving.
pub fn run(config: &MasterConfig, options: &Options) -> Result<()> {
    // Without a restart archive_mode stays on, and a command that always succeeds keeps
    // PostgreSQL from piling up segments.
    let change = match config.master_restart_cmd {
        Some(_) => ("archive_mode", "off"),
        None => ("archive_command", "/bin/true"),
    };
    archiving::edit(
        config,
        &[(change.0, change.1.to_owned())],
        options.not_really,
    )?;
    let runtime = crate::master::runtime()?;
    if options.not_really {
        return runtime.block_on(archiving::reach(config));
    }
    match runtime.block_on(archiving::activate(config, &[change]))? {
        Activation::Done(_) => {
            tracing::info!(
                "{} = {}: nothing is archived from here on",
                change.0,
                change.1
            );
        }
        Activation::RestartNeeded => {}
    }
    Ok(())
}
