//! `unkeep SET`: ends the pin of `keep`; the settings decide again how long the set stays.
//! Never removes the set: the next backup or `expire` does, if it is to go. Invariant: doing it twice does nothing more.

use clap::Args;

use crate::audit::{AuditEvent, AuditOutcome};
use crate::config::StandbyConfig;
use crate::error::Result;
use crate::options::Options;
use crate::output;
use crate::standby::{audited, sets};

/// What stood behind `unkeep`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct UnkeepArgs {
    /// The set, as `listbackups` prints it
    #[arg(id = "backup_set", value_name = "SET")]
    pub set: String,
}

/// Unpins it.
pub(crate) fn run(config: &StandbyConfig, options: &Options, typed: &UnkeepArgs) -> Result<()> {
    let sets = sets::open(config)?;
    let name = sets::named(&sets, &typed.set)?;
    let failed = |error| sets::failed("end the pin of a backup set", &error);
    if options.not_really {
        return output::not_really(&match sets.pin_named(&name).map_err(failed)? {
            Some(_) => format!("end the pin of {name}"),
            None => format!("do nothing: {name} is not pinned"),
        });
    }
    if !sets.unpin(&name).map_err(failed)? {
        tracing::info!("{name} is not pinned");
        return Ok(());
    }
    let event = AuditEvent::SetUnpinned {
        set: &name.to_string(),
    };
    audited::tell(config, AuditOutcome::Done, &event);
    tracing::info!("{name} is not pinned any more; `expire -n` says whether it goes");
    Ok(())
}
