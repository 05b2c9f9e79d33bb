//! `xrelease`: ends the lock of `xlock`.
//! Never ends that of a backup, a rotation or a purge. Invariant: another user's lock goes only with `--force`.

use clap::Args;
use rustix::process::geteuid;

use crate::config::StandbyConfig;
use crate::error::{CommandError, Kind, Result};
use crate::options::Options;
use crate::output;
use crate::standby::sets;
use crate::store::sets::{HandNote, SetError};

/// What stood behind `xrelease`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub(crate) struct XreleaseArgs {
    /// End the lock of another user, too
    #[arg(long)]
    pub force: bool,
}

/// Why it does not end.
enum Unreleased {
    Sets(SetError),
    Others(HandNote),
}

impl From<SetError> for Unreleased {
    fn from(error: SetError) -> Self {
        Unreleased::Sets(error)
    }
}

/// Removes `BACKUPLOCK`.
pub(crate) fn run(config: &StandbyConfig, options: &Options, typed: XreleaseArgs) -> Result<()> {
    let sets = sets::open(config)?;
    let may_end = |note: &HandNote| match typed.force || note.uid == geteuid().as_raw() {
        true => Ok(()),
        false => Err(Unreleased::Others(note.clone())),
    };
    if options.not_really {
        let found = sets
            .locked_by_hand()
            .map_err(|error| failed(Unreleased::Sets(error)))?;
        let doing = match found {
            None => "do nothing: the backup sets are not locked by hand".to_owned(),
            Some(note) => {
                may_end(&note).map_err(failed)?;
                format!("end the lock: {}", note.holder())
            }
        };
        return output::not_really(&doing);
    }
    match sets.release(may_end).map_err(failed)? {
        None => tracing::info!("the backup sets are not locked by hand"),
        Some(note) => tracing::info!("the lock is released: {}", note.holder()),
    }
    Ok(())
}

fn failed(error: Unreleased) -> CommandError {
    match error {
        Unreleased::Others(note) => CommandError::new(
            Kind::Retry,
            format!(
                "the backup sets are locked by another user: {}",
                note.holder()
            ),
        )
        .hint("to end that lock type: walmgr STANDBY.ini xrelease --force"),
        Unreleased::Sets(SetError::Busy { holder, .. }) => CommandError::new(
            Kind::Retry,
            format!("this lock is not one of xlock: {holder}"),
        )
        .hint("it ends with its process"),
        Unreleased::Sets(error) => sets::failed("release the backup sets", &error),
    }
}
