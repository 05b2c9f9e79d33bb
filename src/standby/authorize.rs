//! `authorize FPR NAME`: lets the owner of a key in.
//! Never gives a known key another name, nor a name another key; a running receiver is asked to read
//! the list again. Invariant: of two that change the list at once, none loses the other's line.

use clap::Args;

use crate::config::StandbyConfig;
use crate::daemon::{self, DaemonControl};
use crate::error::{CommandError, Result};
use crate::options::Options;
use crate::output;
use crate::standby::next_step;
use crate::transport::authorized_keys::{Authorized, AuthorizedKeys, Rights};
use crate::transport::identity::Fingerprint;

/// What stood behind `authorize`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct AuthorizeArgs {
    /// The fingerprint, as the other side's `identity` prints it
    #[arg(value_name = "FPR")]
    pub fingerprint: String,
    /// The name of this peer in the log
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Grant these rights: add WAL, add backups, fetch (all three unless given), end a timeline
    #[arg(long, value_delimiter = ',', value_parser = ["push", "backup", "read", "failover"])]
    pub rights: Vec<String>,
}

/// Adds a line to `authorized_keys`.
pub(crate) fn run(
    config: &StandbyConfig,
    options: &Options,
    arguments: &AuthorizeArgs,
) -> Result<()> {
    let AuthorizeArgs {
        fingerprint,
        name,
        rights,
    } = arguments;
    let fingerprint: Fingerprint = fingerprint.parse().map_err(|error| {
        CommandError::usage(format!("authorize {fingerprint}"))
            .because(error)
            .hint("`walmgr MASTER.ini identity` prints it on the master")
    })?;
    let rights = match rights[..] {
        [] => Rights::default(),
        _ => rights
            .join(",")
            .parse::<Rights>()
            .map_err(CommandError::usage)?,
    };
    let path = &config.authorized_keys;
    let _lock = AuthorizedKeys::lock(path)?;
    let mut keys = AuthorizedKeys::load(path)?;
    let became = keys.authorize(fingerprint, name, rights)?;
    if options.not_really {
        return output::not_really(&match became {
            Authorized::New => format!("add {fingerprint} as {name} to {}", path.display()),
            Authorized::Already => format!("leave {name} unchanged: it may {rights}"),
            Authorized::InsteadOf(before) => format!("give {name} {rights} instead of {before}"),
        });
    }
    keys.save(path)?;
    match became {
        Authorized::New => tracing::info!("{name} may {rights}"),
        Authorized::Already => tracing::info!("{name} may {rights} already"),
        Authorized::InsteadOf(before) => {
            tracing::info!("{name} may now {rights}; its rights were {before}");
        }
    }
    if config.tls.authority.is_some() {
        tracing::warn!(
            "with tls_ca the receiver checks names of certificates instead of keys: add the name \
            to {}",
            config.authorized_names.display()
        );
    }
    tell_receiver(config)?;
    next_step::after_authorize(config, rights.push)
}

/// A receiver that runs learns of the change in a moment; one that does not reads the list anyway.
///
/// One that runs and cannot be told is a failure: it still goes by the old list.
pub(crate) fn tell_receiver(config: &StandbyConfig) -> Result<()> {
    let pidfile = config.receiver_pidfile();
    if !daemon::is_running(&pidfile)? {
        tracing::debug!("no receiver runs; the next one reads the list");
        return Ok(());
    }
    let pid = daemon::signal_running(&pidfile, DaemonControl::Reload, daemon::END_TIMEOUT)
        .map_err(|error| {
            CommandError::new(
                error.kind(),
                "the list is changed, but the running receiver has not read it",
            )
            .because(error)
            .hint("run `walmgr STANDBY.ini receiver --reload` as the receiver's user")
        })?;
    tracing::info!("sent SIGHUP to the receiver, process {pid}: it now reads the list");
    Ok(())
}
