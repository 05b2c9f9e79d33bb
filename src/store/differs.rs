//! Another valid file of a stored name: kept beside the stored one until a person has chosen.
//! Never serves it, and never holds what was acknowledged (that is `displaced`). Invariant: there is at most one
//! for each name, so whoever offers many fills no disk.
//!
//! It is the one that was offered last, and nobody was told that it is stored: a master offers its file again
//! and again, so the genuine one is among the two whatever a stolen key has stored and offered before.
//!
//! `NAME.differs` lies in `completed_wals`, and `.apart/NAME.differs` says who brought it. A crash
//! leaves the note without the file, which means nothing.

use std::io;
use std::path::Path;
use std::sync::Arc;

use walmgr_protocol::names::WalFileName;

use super::apart_notes::{self, is_unproven};
use super::beside::Beside;
use super::binding::{Marker, MarkerRole};
use super::checksums::Checksums;
use super::disk::Disk;
use super::displaced;
use super::durable::{SyncedTemporary, Temporary};
use super::error::StoreError;
use super::folder::Folder;
use super::health::Monitor;
use super::shared::{Archive, Shared};

/// How often a receiver that starts may clear what looks like its own temporary.
const WRITE_ATTEMPTS_MAX: u32 = 3;

impl Archive {
    /// Whether a file that is kept beside the stored one of this name has these bytes.
    pub fn keeps_differing(
        &self,
        name: WalFileName,
        len: u64,
        crc32: u32,
    ) -> Result<bool, StoreError> {
        self.shared.keeps_beside(name, (len, crc32))
    }
}

impl Shared {
    /// Keeps a checked file whose name another one has. The name must be locked.
    pub(super) fn keep_differing(
        &self,
        name: WalFileName,
        synced: SyncedTemporary,
        by: &str,
    ) -> Result<(), StoreError> {
        if self.keeps_beside(name, (synced.len, synced.crc32))? {
            return Ok(());
        }
        let kept = format!("{name}{}", Beside::Differs.suffix());
        apart_notes::note_copy(&self.completed, &kept, by)?;
        synced.replace(&kept)?;
        tracing::error!(
            "ALARM: {by} offered another {name} than the stored one, which stays; the offered one is \
             kept as {kept}. `choose {name}` shows both"
        );
        Ok(())
    }
}

/// Puts the history of a timeline that was opened on this host into the archive, beside a running
/// receiver. It counts: no key of a master had to do with it. `false`: it was there already.
pub(crate) fn keep_history(
    completed_wals: &Path,
    disk: Arc<dyn Disk>,
    name: WalFileName,
    text: &[u8],
) -> Result<bool, StoreError> {
    let folder = Arc::new(Folder::open_completed(
        completed_wals,
        disk,
        Arc::new(Monitor::new()),
    )?);
    Marker::read(&folder, MarkerRole::Completed)?.ok_or_else(|| StoreError::NotSetUp {
        path: completed_wals.to_path_buf(),
    })?;
    let mut failure = StoreError::GivenUp { name };
    for _ in 0..WRITE_ATTEMPTS_MAX {
        let published = Temporary::create(&folder, &name.to_string(), text.len() as u64).and_then(
            |mut temporary| {
                temporary.append(text)?;
                temporary.sync()?.publish(name)
            },
        );
        match published {
            // The server's own archiver may just be sending it, and have left a note.
            Ok(Some(_)) => return apart_notes::settle(&folder, name).map(|()| true),
            Ok(None) => return same_or_diverged(&folder, name, text).map(|()| false),
            Err(StoreError::Disk { op, path, source })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                failure = StoreError::Disk { op, path, source };
            }
            Err(error) => return Err(error),
        }
    }
    Err(failure)
}

/// The stored history of that name says the same; then it counts too, whoever brought it.
fn same_or_diverged(
    folder: &Arc<Folder>,
    name: WalFileName,
    text: &[u8],
) -> Result<(), StoreError> {
    let stored = folder.read_small(&name.to_string(), text.len())?;
    if stored.as_deref() == Some(text) {
        folder.sync()?;
        return apart_notes::settle(folder, name);
    }
    if is_unproven(folder, name)? {
        // Nobody followed it, and a server that opened here needs its name.
        let mut temporary = Temporary::create(folder, &name.to_string(), text.len() as u64)?;
        temporary.append(text)?;
        let synced = temporary.sync()?;
        let by = apart_notes::brought_by(folder, name)?;
        let put = |kept: &str| synced.publish_over(name, kept);
        displaced::displace(folder, &Checksums::open(folder), (name, &by), put)?;
        return apart_notes::settle(folder, name);
    }
    let why = format!("the archive has another {name} than the server that opened here");
    Err(StoreError::Diverged { why })
}

/// Has readers follow a file that was set apart.
pub(crate) fn take_apart(
    completed_wals: &Path,
    disk: Arc<dyn Disk>,
    name: WalFileName,
) -> Result<(), StoreError> {
    let folder = Folder::open_completed(completed_wals, disk, Arc::new(Monitor::new()))?;
    apart_notes::settle(&folder, name)
}
