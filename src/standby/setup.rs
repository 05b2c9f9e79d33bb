//! `setup` on the standby: makes the archive's folders and marks them.
//! Never touches a folder that is marked already; a folder that holds files of something else is
//! left as it is. Invariant: running it again changes nothing.

use std::sync::Arc;

use crate::config::StandbyConfig;
use crate::error::{CommandError, Kind, Result};
use crate::options::Options;
use crate::output;
use crate::pg::data_directory::DataDirectory;
use crate::pg::programs::Programs;
use crate::standby::{archive_cleaners, next_step};
use crate::store::sets::Keeping;
use crate::store::{Archive, ArchiveFolders, RealDisk, StoreError};

/// Makes the folders, and says what is typed next.
pub(crate) fn run(config: &StandbyConfig, options: &Options) -> Result<()> {
    make(config, options)?;
    match options.not_really {
        true => Ok(()),
        false => next_step::after_setup(config),
    }
}

/// Makes the folders.
pub(super) fn make(config: &StandbyConfig, options: &Options) -> Result<()> {
    let places = ArchiveFolders::of(config);
    if options.not_really {
        return output::not_really(&format!(
            "make {} and {}",
            places.completed_wals.display(),
            places.partial_wals.display()
        ));
    }
    Archive::create(&places, Arc::new(RealDisk)).map_err(|error| failed(&error))?;
    tracing::info!(
        "{} and {} are ready",
        places.completed_wals.display(),
        places.partial_wals.display()
    );
    tell(config);
    Ok(())
}

/// What these settings mean here and meant something else, or cannot mean, and what works against them.
fn tell(config: &StandbyConfig) {
    if Keeping::of(config).keeps_all() {
        tracing::info!(
            "keep_backups is 0: every backup and all WAL is kept until it is set to a number of backups (Skytools \
            kept one, and removed WAL once it was replayed)"
        );
    }
    let major = config
        .slave_data
        .as_deref()
        .and_then(|data| DataDirectory::open(data).ok());
    let major = major.map(|data| data.major());
    if let Err(error) = Programs::of_standby(config).check(major) {
        tracing::warn!("{error}");
    }
    for sentence in archive_cleaners::named(config) {
        tracing::warn!("{sentence}");
    }
}

fn failed(error: &StoreError) -> CommandError {
    let kind = match error.kind() {
        Kind::ReceiverDisk => Kind::Retry,
        kind => kind,
    };
    CommandError::new(kind, format!("create the archive's directories: {error}"))
        .hint("run it as the receiver's user, and check the paths in the ini file")
}
