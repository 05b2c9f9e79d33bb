//! The backup sets as the standby's commands reach them.
//! Never changes any. Invariant: an error of the sets ends with what a person can do about it.

use std::sync::Arc;

use walmgr_protocol::names::BackupName;

use crate::config::StandbyConfig;
use crate::error::{CommandError, Kind, Result};
use crate::standby::audited;
use crate::store::sets::{BackupSets, SetError};
use crate::store::{Disk, RealDisk};

/// What ends a lock by hand.
pub(super) const LOCKED_HINT: &str = "when the copying has ended type: walmgr STANDBY.ini xrelease";

/// The sets of the settings.
pub(super) fn open(config: &StandbyConfig) -> Result<BackupSets> {
    let full_backup = config.full_backup.as_deref().ok_or_else(|| {
        CommandError::config("there is no setting `full_backup`")
            .hint("set it, or set `walmgr_data`, its base directory")
    })?;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    BackupSets::open(full_backup, &config.completed_wals, &disk)
        .and_then(|sets| sets.with_partials(&config.partial_wals))
        .map(|sets| audited::telling(config, sets))
        .map_err(|error| failed("open the backup sets", &error))
}

/// The set of this name.
pub(super) fn named(sets: &BackupSets, text: &str) -> Result<BackupName> {
    sets.newest().parse_sibling(text).map_err(|error| {
        CommandError::usage(format!("{text:?} is no backup set"))
            .because(error)
            .hint("`listbackups` lists the sets")
    })
}

/// The error of a command that was doing this with the sets.
pub(super) fn failed(doing: &str, error: &SetError) -> CommandError {
    // The standby's own disk is no receiver's here, and somebody else's work ends.
    let kind = match error.kind() {
        Kind::ReceiverDisk | Kind::AlreadyRunning => Kind::Retry,
        kind => kind,
    };
    let hint = match error {
        SetError::Busy { .. } => "try again when it has ended",
        SetError::LockedByHand { .. } => LOCKED_HINT,
        SetError::Absent { .. } => "`listbackups` lists the sets",
        SetError::Manifest { .. } | SetError::Damaged { .. } => {
            "the set is damaged: restore another one; `listbackups` lists them"
        }
        _ => "",
    };
    CommandError::new(kind, doing).because(error).hint(hint)
}
