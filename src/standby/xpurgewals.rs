//! `xpurgewals`: removes archived WAL that nothing can ask for any more.
//! Never removes what a listed set, a set that is being restored or the standby's own server still
//! needs. Invariant: where that cannot be told, nothing is removed.

use std::io;
use std::path::{Path, PathBuf};

use walmgr_protocol::names::SegmentName;

use crate::config::StandbyConfig;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::options::Options;
use crate::output;
use crate::pg::backup_label::BackupLabel;
use crate::pg::control::{self, State};
use crate::standby::sets;

/// Purges.
pub fn run(config: &StandbyConfig, options: &Options) -> Result<()> {
    let sets = sets::open(config)?;
    let needed = needed_by_servers(config)?;
    if options.not_really {
        return output::not_really("remove the WAL that neither a set nor the standby needs");
    }
    let owner = format!("xpurgewals, process {}", std::process::id());
    let failed = |error| sets::failed("purge WAL", &error);
    let lease = sets.lease(&owner).map_err(failed)?;
    let purged = sets.purge_wal(&lease, &needed).map_err(failed)?;
    match purged.oldest_needed {
        Some(oldest) => tracing::info!("{} files removed, all before {oldest}", purged.files),
        None => tracing::info!("nothing says which WAL is needed, so all of it stays"),
    }
    Ok(())
}

/// The oldest segments that the standby's server, and a set that is being restored for it, need.
pub fn needed_by_servers(config: &StandbyConfig) -> Result<Vec<SegmentName>> {
    let Some(data) = &config.slave_data else {
        return Ok(Vec::new());
    };
    let data = std::fs::canonicalize(data).unwrap_or_else(|_| data.clone());
    let mut staging = data.clone().into_os_string();
    staging.push(".restoring");
    let mut needed = needed_by(&data)?;
    needed.extend(needed_by(&PathBuf::from(staging))?);
    Ok(needed)
}

fn needed_by(data: &Path) -> Result<Vec<SegmentName>> {
    let mut needed = Vec::new();
    // It is renamed when the server has begun to replay and knows by itself where it stands.
    let path = data.join("backup_label");
    match std::fs::read(&path) {
        Ok(text) => {
            let label = BackupLabel::parse(&text).map_err(|why| {
                CommandError::retry(format!("{} is no label: {why}", path.display()))
            })?;
            needed.push(label.first_segment);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).at(Kind::Retry, "read", &path),
    }
    if data.join(control::FILE_NAME).exists() {
        let control = control::read(data)?;
        let recovers = [State::InArchiveRecovery, State::ShutDownInRecovery];
        if recovers.contains(&control.state) {
            let (timeline, size) = (control.timeline, control.segment_size);
            needed.push(SegmentName::containing(timeline, control.redo, size));
        }
    }
    Ok(needed)
}
