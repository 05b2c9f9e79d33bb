//! Another valid file of a stored name: kept beside the stored one until a person has chosen.
//! Never serves it. Invariant: there is at most one for each name, so whoever offers many fills no disk.
//!
//! It is the one that was offered last: a master offers its file again and again, so the genuine one
//! is among the two whatever a stolen key has stored and offered before.
//!
//! `NAME.differs` lies in `completed_wals`, and `.apart/NAME.differs` says who brought it. A crash
//! leaves the note without the file, which means nothing.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use walmgr_protocol::names::WalFileName;

use super::advance::is_unproven;
use super::apart;
use super::archive::{Archive, Shared};
use super::binding::{Marker, Role};
use super::checksums::Checksums;
use super::disk::Disk;
use super::durable::{SyncedTemporary, Temporary};
use super::error::StoreError;
use super::folder::Folder;
use super::health::Monitor;
use super::obstacles;
use super::reader::Reader;
use super::recovery;

/// What another file of a stored name is called behind that name.
pub const DIFFERS_SUFFIX: &str = ".differs";

/// How often a receiver that starts may clear what looks like its own temporary.
const WRITE_ATTEMPTS_MAX: u32 = 3;

impl Archive {
    /// Whether the file that is kept beside the stored one of this name has these bytes.
    pub fn keeps_differing(
        &self,
        name: WalFileName,
        len: u64,
        crc32: u32,
    ) -> Result<bool, StoreError> {
        Ok(self.shared.differing(name)? == Some((len, crc32)))
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
        let kept = format!("{name}{DIFFERS_SUFFIX}");
        if self.differing(name)? == Some((synced.len, synced.crc32)) {
            return Ok(());
        }
        apart::note_differing(&self.completed, name, by)?;
        synced.replace(&kept)?;
        tracing::error!(
            "ALARM: {by} offered another {name} than the stored one, which stays; the offered one is \
             kept as {kept}. `choose {name}` shows both"
        );
        Ok(())
    }
}

impl Shared {
    /// Length and CRC-32 of the file that is kept beside the stored one.
    fn differing(&self, name: WalFileName) -> Result<Option<(u64, u32)>, StoreError> {
        let kept = format!("{name}{DIFFERS_SUFFIX}");
        let Some(file) = self.completed.open_file(&kept)? else {
            return Ok(None);
        };
        let (mut len, mut crc) = (0, crc32fast::Hasher::new());
        self.completed.read_through(file.as_fd(), &kept, |piece| {
            len += piece.len() as u64;
            crc.update(piece);
            true
        })?;
        Ok(Some((len, crc.finalize())))
    }
}

impl Reader {
    /// Names of which another file is kept.
    pub fn differing(&self) -> Result<Vec<WalFileName>, StoreError> {
        let names = self.completed.names()?.into_iter();
        let mut names: Vec<WalFileName> = names
            .filter_map(|name| name.strip_suffix(DIFFERS_SUFFIX)?.parse().ok())
            .collect();
        names.sort();
        Ok(names)
    }

    /// Who brought the other file of a name, if that is known.
    pub fn differing_by(&self, name: WalFileName) -> Result<String, StoreError> {
        apart::differing_by(&self.completed, name)
    }
}

/// Puts the history of a timeline that was opened on this host into the archive, beside a running
/// receiver. It counts: no key of a master had to do with it. `false`: it was there already.
pub fn keep_history(
    completed_wals: &Path,
    disk: Arc<dyn Disk>,
    name: WalFileName,
    text: &[u8],
) -> Result<bool, StoreError> {
    let folder = Arc::new(Folder::open(
        completed_wals,
        disk,
        Arc::new(Monitor::new()),
    )?);
    Marker::read(&folder, Role::Completed)?.ok_or_else(|| StoreError::NotSetUp {
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
            Ok(Some(_)) => return apart::settle(&folder, name).map(|()| true),
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
        return apart::settle(folder, name);
    }
    if is_unproven(folder, name)? {
        // Nobody followed it, and a server that opened here needs its name.
        let kept = format!("{name}{DIFFERS_SUFFIX}");
        apart::note_differing(folder, name, &apart::brought_by(folder, name)?)?;
        Checksums::open(folder).remove(&[name.to_string()])?;
        let mut temporary = Temporary::create(folder, &name.to_string(), text.len() as u64)?;
        temporary.append(text)?;
        temporary.sync()?.publish_over(name, &kept)?;
        return apart::settle(folder, name);
    }
    let why = format!("the archive has another {name} than the server that opened here");
    Err(StoreError::Diverged { why })
}

/// Has readers follow a file that was set apart.
pub fn take_apart(
    completed_wals: &Path,
    disk: Arc<dyn Disk>,
    name: WalFileName,
) -> Result<(), StoreError> {
    let folder = Folder::open(completed_wals, disk, Arc::new(Monitor::new()))?;
    apart::settle(&folder, name)
}

/// Puts the other file of a name in the place of the stored one, which is kept instead. The archive has to be
/// closed, or a receiver would acknowledge the one that goes as stored under its name.
///
/// The two change names in one step, so a crash leaves them as they were or exchanged, without a
/// checksum, which then means nothing.
pub fn take_differing(
    completed_wals: &Path,
    disk: Arc<dyn Disk>,
    name: WalFileName,
) -> Result<(), StoreError> {
    let folder = Folder::open(completed_wals, disk, Arc::new(Monitor::new()))?;
    let _lock = recovery::lock(&folder)?;
    let (stored, kept) = (name.to_string(), format!("{name}{DIFFERS_SUFFIX}"));
    let checksums = Checksums::open(&folder);
    let stored_by = checksums.brought_by(name);
    // What was kept of the one that goes is not true of the other. A crash leaves nobody named rather than
    // somebody else.
    checksums.remove(std::slice::from_ref(&stored))?;
    apart::remove_differing(&folder, name)?;
    if let WalFileName::Segment(segment) = name {
        obstacles::doubt(&folder, segment)?;
    }
    folder.exchange(&stored, &kept)?;
    if let WalFileName::Segment(segment) = name
        && let Some(binding) = Marker::read(&folder, Role::Completed)?.and_then(|it| it.binding)
    {
        obstacles::renew(&folder, segment, binding.segment_size)?;
    }
    match stored_by {
        Some(by) => apart::note_differing(&folder, name, &by),
        None => Ok(()),
    }
}
