//! `xpurgewals`: removes archived WAL that nothing can ask for any more.
//! Never removes what a listed set, a set that is being restored or the standby's own server still
//! needs. Invariant: where that cannot be told, nothing is removed.

use std::time::Duration;

use walmgr_protocol::names::SegmentName;

use crate::config::StandbyConfig;
use crate::error::Result;
use crate::options::Options;
use crate::output;
use crate::pg::needs;
use crate::standby::sets;

/// Purges.
pub fn run(config: &StandbyConfig, options: &Options) -> Result<()> {
    let sets = sets::open(config)?;
    let needed = || needs(config).map_err(|error| error.to_string());
    if options.not_really {
        return output::not_really("remove the WAL that neither a set nor the standby needs");
    }
    let owner = format!("xpurgewals, process {}", std::process::id());
    let failed = |error| sets::failed("purge WAL", &error);
    let lease = sets.lease(&owner).map_err(failed)?;
    // Whoever types this says what goes, whatever its age.
    let purged = sets.purge_wal(&lease, Duration::ZERO, &needed);
    let purged = purged.map_err(failed)?;
    match purged.oldest_needed {
        Some(oldest) => tracing::info!("{} files removed, all before {oldest}", purged.files),
        None => tracing::info!("nothing says which WAL is needed, so all of it stays"),
    }
    Ok(())
}

fn needs(config: &StandbyConfig) -> Result<Vec<SegmentName>> {
    match &config.slave_data {
        Some(slave_data) => needs::of_servers(slave_data),
        None => Ok(Vec::new()),
    }
}
