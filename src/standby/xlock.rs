//! `xlock`: locks the backup sets for a script that copies them.
//! Never ends by itself: with ssh each line of a script is another process. Invariant: when it returns 0, nobody makes,
//! renames or removes a set until `xrelease`, whatever is killed or restarted meanwhile.

use rustix::process::geteuid;

use crate::config::StandbyConfig;
use crate::error::{CommandError, Kind, Result};
use crate::files;
use crate::options::Options;
use crate::output;
use crate::standby::sets;
use crate::store::sets::{BackupSets, HandNote, SetError};

/// Makes `BACKUPLOCK`.
pub(crate) fn run(config: &StandbyConfig, options: &Options) -> Result<()> {
    let sets = sets::open(config)?;
    if options.not_really {
        ensure_free(&sets)?;
        return output::not_really("lock the backup sets until `xrelease`");
    }
    let uid = geteuid().as_raw();
    let user = files::user_name(uid).unwrap_or_else(|| format!("user {uid}"));
    let now = jiff::Zoned::now();
    let note = HandNote {
        who: format!(
            "{user} by hand, since {}",
            now.strftime("%Y-%m-%d %H:%M:%S %Z")
        ),
        uid,
        since_ms: now.timestamp().as_millisecond(),
    };
    sets.lock_by_hand(&note).map_err(|error| failed(&error))?;
    tracing::info!(
        "the backup sets are locked until `xrelease`: no backup, rotation or purge begins"
    );
    Ok(())
}

/// Fails as the real run would.
fn ensure_free(sets: &BackupSets) -> Result<()> {
    sets.ensure_not_locked_by_hand()
        .map_err(|error| failed(&error))?;
    match sets.lease_holder().map_err(|error| failed(&error))? {
        None => Ok(()),
        Some(holder) => Err(failed(&SetError::Busy {
            what: "the backup".to_owned(),
            holder,
        })),
    }
}

fn failed(error: &SetError) -> CommandError {
    match error {
        SetError::LockedByHand { holder } => CommandError::new(
            Kind::Retry,
            format!("the backup sets are already locked: {holder}"),
        )
        .hint(sets::LOCKED_HINT),
        SetError::Busy { holder, .. } => {
            CommandError::new(Kind::Retry, format!("the backup sets are in use: {holder}"))
                .hint("try again when it has ended")
        }
        error => sets::failed("lock the backup sets", error),
    }
}
