//! `revoke NAME`: lets a peer in no longer.
//! Never touches what the peer stored; a running receiver hangs up on it.

use clap::Args;

use crate::config::StandbyConfig;
use crate::error::{CommandError, Result};
use crate::options::Options;
use crate::output;
use crate::standby::authorize::tell_receiver;
use crate::transport::authorized_keys::AuthorizedKeys;

/// What stood behind `revoke`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct RevokeArgs {
    /// The name it was authorized under
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// Removes a line from `authorized_keys`.
pub(crate) fn run(
    config: &StandbyConfig,
    options: &Options,
    RevokeArgs { name }: &RevokeArgs,
) -> Result<()> {
    let _lock = AuthorizedKeys::lock(&config.authorized_keys)?;
    let mut keys = AuthorizedKeys::load(&config.authorized_keys)?;
    let Some(key) = keys.revoke(name) else {
        let known: Vec<&str> = keys.keys().map(|key| key.name.as_str()).collect();
        let known = if known.is_empty() {
            "none".to_owned()
        } else {
            known.join(", ")
        };
        return Err(CommandError::retry(format!(
            "{} has no key named {name}",
            config.authorized_keys.display()
        ))
        .hint(format!("it has: {known}")));
    };
    if options.not_really {
        return output::not_really(&format!("remove {} ({name})", key.fingerprint));
    }
    keys.save(&config.authorized_keys)?;
    tracing::info!("{name} ({}) may no longer connect", key.fingerprint);
    tell_receiver(config)
}
