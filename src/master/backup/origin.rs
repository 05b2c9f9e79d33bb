//! Who makes a backup: a name that only one living process can use at a time.
//! Never trusts a process id. Invariant: whoever sends the origin of a data directory holds the
//! lock on it, so an open backup of the same origin is one of a process that died.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{CommandError, IoContext, Kind, Result};
use crate::transport::connect::fresh_nonce;

/// Tells one boot of a host from another, and so the processes of both.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// See the module; the lock ends with the value, or with the process.
pub struct Origin {
    text: String,
    host: String,
    _lock: OwnedFd,
}

impl Origin {
    /// Locks the data directory, without a trace in it. While another process has it locked, the
    /// origin is one that is like no other, and the receiver says who makes the backup.
    pub fn claim(data: &Path) -> Result<Origin> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(data, flags, Mode::empty());
        let directory = directory.at(Kind::Config, "open", data)?;
        let metadata = std::fs::metadata(data).at(Kind::Config, "look at", data)?;
        let host = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        let text = match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                let boot = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
                let (device, inode) = (metadata.dev(), metadata.ino());
                format!("{host} {} {device} {inode}", boot.trim())
            }
            Err(Errno::WOULDBLOCK) => format!("{host} {:02x?}", fresh_nonce()?),
            Err(error) => {
                let doing = format!("lock {}", data.display());
                return Err(CommandError::retry(doing).because(std::io::Error::from(error)));
            }
        };
        Ok(Origin {
            text,
            host,
            _lock: directory,
        })
    }

    /// What the receiver compares.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What people read while the backup runs.
    pub fn who(&self, job_name: &str) -> String {
        format!(
            "{job_name} on {}, process {}",
            self.host,
            std::process::id()
        )
    }
}
