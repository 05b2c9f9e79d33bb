//! What the standby's server archives by once it is booted or promoted: the ini file that `promoted_ini` names.
//! Never sends anything. Invariant: a server archives only by an ini file that is for its own data directory.

use crate::config::{self, StandbyConfig};
use crate::error::{CommandError, Result};
use crate::files;
use crate::pg::command::walmgr_command;
use crate::pg::recovery::AfterPromotion;

/// By what the server of `slave_data` archives once it is open.
pub(super) fn archiving(config: &StandbyConfig) -> Result<AfterPromotion> {
    let (Some(ini), Some(data)) = (&config.promoted_ini, &config.slave_data) else {
        return Ok(AfterPromotion::ArchivesNothing);
    };
    let why = || format!("promoted_ini in {}", config.path.display());
    let loaded = config::load(ini, &[]).and_then(|loaded| loaded.into_master("xarchive"));
    let master = loaded.map_err(|error| CommandError::new(error.kind(), why()).because(error))?;
    if files::resolved(&master.master_data) != files::resolved(data) {
        return Err(CommandError::config(format!(
            "{} is for the server in {}, but slave_data is {}",
            ini.display(),
            master.master_data.display(),
            data.display()
        ))
        .hint("set master_data in that file to the same directory, or take promoted_ini out"));
    }
    Ok(AfterPromotion::ArchivesBy(walmgr_command(
        "archive_command",
        ini,
        "xarchive %p %f",
    )?))
}
