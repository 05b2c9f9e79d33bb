//! `continue`: lets replay go on after `pause`.
//! Never touches the server. Invariant: afterwards there is no PAUSE.

use crate::config::StandbyConfig;
use crate::error::Result;
use crate::options::Options;
use crate::output;
use crate::standby::replay::ControlFiles;
use crate::standby::standing;

/// Removes PAUSE.
pub(crate) fn run(config: &StandbyConfig, options: &Options) -> Result<()> {
    let control = ControlFiles::of(config);
    if options.not_really {
        return output::not_really(match control.is_paused()? {
            true => "remove PAUSE, so that replay continues",
            false => "do nothing: replay is not paused",
        });
    }
    let resumed = control.resume()?;
    if control.is_held_by_backup()? {
        tracing::info!("a backup holds replay; it goes on when that has copied the data directory");
        return Ok(());
    }
    match (resumed, standing::at_target(config)) {
        (true, Some(waits)) => tracing::info!("PAUSE is gone, and replay does not go on; {waits}"),
        (true, None) => tracing::info!("replay goes on"),
        (false, Some(waits)) => tracing::info!("there was no PAUSE; {waits}"),
        (false, None) => tracing::info!("replay was not paused: there was no PAUSE"),
    }
    Ok(())
}
