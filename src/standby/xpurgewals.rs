//! `xpurgewals`: removes archived WAL that nothing can ask for any more.
//! Never removes what a listed set, a set that is being restored or the standby's own server still
//! needs. Invariant: where that cannot be told, nothing is removed.

use std::path::Path;

use crate::config::StandbyConfig;
use crate::error::Result;
use crate::options::Options;
use crate::output;
use crate::pg::needs;
use crate::standby::sets;
use crate::store::sets::Keeping;

/// Purges.
pub(crate) fn run(config: &StandbyConfig, options: &Options) -> Result<()> {
    let sets = sets::open(config)?;
    let needed = |data: &Path| needs::of_servers(data).map_err(|error| error.to_string());
    if options.not_really {
        return output::not_really("remove the WAL that neither a set nor the standby needs");
    }
    let owner = format!("xpurgewals, process {}", std::process::id());
    let failed = |error| sets::failed("purge WAL", &error);
    let lease = sets.lease(&owner).map_err(failed)?;
    // Whoever types this says what goes, whatever its age.
    let slave_data = config.slave_data.as_deref();
    let keeping = Keeping::of(config).at_any_age();
    let purged = sets.purge_wal(&lease, keeping, slave_data, &needed);
    tracing::info!("{}", purged.map_err(failed)?);
    Ok(())
}
