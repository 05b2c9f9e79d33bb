//! `authorize FPR NAME`: lets the owner of a key in.
//! Never changes a line that is there; a running receiver is asked to read the list again.

use crate::config::StandbyConfig;
use crate::daemon::{self, Control};
use crate::error::{CommandError, Result};
use crate::options::Options;
use crate::output;
use crate::transport::authorized_keys::{AuthorizedKeys, Rights};
use crate::transport::identity::Fingerprint;

/// Adds a line to `authorized_keys`.
pub fn run(
    config: &StandbyConfig,
    options: &Options,
    fingerprint: &str,
    name: &str,
    rights: &[String],
) -> Result<()> {
    let fingerprint: Fingerprint = fingerprint.parse().map_err(|error| {
        CommandError::usage(format!("authorize {fingerprint}"))
            .because(error)
            .hint("`walmgr MASTER.ini identity` prints it on the master")
    })?;
    let rights = match rights {
        [] => Rights::default(),
        words => words
            .join(",")
            .parse::<Rights>()
            .map_err(CommandError::usage)?,
    };
    let mut keys = AuthorizedKeys::load(&config.authorized_keys)?;
    keys.authorize(fingerprint, name, rights)?;
    if options.not_really {
        let path = config.authorized_keys.display();
        return output::not_really(&format!("add {fingerprint} as {name} to {path}"));
    }
    keys.save(&config.authorized_keys)?;
    tracing::info!("{name} may {rights}");
    tell_receiver(config)
}

/// A receiver that runs learns of the change at once; one that does not reads the list anyway.
///
/// One that runs and cannot be told is a failure: it still goes by the old list.
pub fn tell_receiver(config: &StandbyConfig) -> Result<()> {
    let pidfile = config.receiver_pidfile();
    if !daemon::is_running(&pidfile)? {
        tracing::debug!("no receiver runs, so none has to be told");
        return Ok(());
    }
    let pid = daemon::signal_running(&pidfile, Control::Reload, daemon::END_TIMEOUT).map_err(
        |error| {
            CommandError::new(
                error.kind(),
                "the list is changed, but the running receiver was not told",
            )
            .because(error)
            .hint("run `walmgr STANDBY.ini receiver --reload` as the receiver's user")
        },
    )?;
    tracing::info!("the receiver (process {pid}) reads the list again");
    Ok(())
}
