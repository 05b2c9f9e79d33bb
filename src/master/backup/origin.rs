//! Who makes a backup: a name that only one living process can use at a time.
//! Never trusts a process id. Invariant: whoever sends the origin of a data directory holds the
//! lock on it, so an open backup of the same origin is one of a process that died.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::error::{IoContext, Kind, Result};
use crate::files;
use crate::transport::connect::fresh_nonce;

/// The name under which a process makes backups of a data directory. The lock on the directory ends with the
/// value, or with the process.
pub(crate) struct BackupOrigin {
    text: String,
    host: String,
    _lock: Option<File>,
}

impl BackupOrigin {
    /// Locks the data directory, without a trace in it. While another process has it locked, the
    /// origin is one that is like no other, and the receiver says who makes the backup.
    pub(crate) fn claim(data: &Path) -> Result<BackupOrigin> {
        let lock = files::try_lock(Kind::Config, data)?;
        let metadata = std::fs::metadata(data).at(Kind::Config, "look at", data)?;
        let host = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        let text = match lock {
            Some(_) => {
                let (device, inode) = (metadata.dev(), metadata.ino());
                format!("{host} {} {device} {inode}", files::boot())
            }
            None => format!("{host} {:02x?}", fresh_nonce()?),
        };
        Ok(BackupOrigin {
            text,
            host,
            _lock: lock,
        })
    }

    /// What the receiver compares.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// What people read while the backup runs.
    pub(crate) fn who(&self, job_name: &str) -> String {
        format!(
            "{job_name} on {}, process {}",
            self.host,
            std::process::id()
        )
    }
}
