//! `setup` on the standby: makes the archive's folders and marks them.
//! Never touches a folder that is marked already; a folder that holds files of something else is
//! left as it is. Invariant: running it again changes nothing.

use std::sync::Arc;

use crate::config::StandbyConfig;
use crate::error::{CommandError, Kind, Result};
use crate::options::Options;
use crate::output;
use crate::store::{Archive, ArchiveFolders, RealDisk, StoreError};

/// Makes the folders.
pub(crate) fn run(config: &StandbyConfig, options: &Options) -> Result<()> {
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
    Ok(())
}

fn failed(error: &StoreError) -> CommandError {
    let kind = match error.kind() {
        Kind::ReceiverDisk => Kind::Retry,
        kind => kind,
    };
    CommandError::new(kind, format!("create the archive's directories: {error}"))
        .hint("run it as the receiver's user, and check the paths in the ini file")
}
