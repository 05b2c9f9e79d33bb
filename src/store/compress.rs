//! Packs the segments of an archive that lie there as they came, beside a running receiver.
//! Never takes away a form before the other one is durable and was read back from the disk. Invariant: at every moment
//! one form at least of each segment is there, whole and durable.
//!
//! ```text
//! write .in.NAME.RANDOM, sync    a crash leaves a temporary, which the receiver's next start removes
//! rename to NAME.zst, sync       a crash leaves both forms of one content, which are one segment
//! read NAME.zst from the disk    as above
//! rename NAME to .in.NAME.RANDOM, look whether it is the file that was packed, sync, remove
//! ```
//!
//! Somebody else may give the name to another file, set it aside or remove it meanwhile. Then the packed form of what
//! had the name goes again, unless it is what the checksum of the name tells.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use walmgr_protocol::names::WalFileName;

use super::binding::{Binding, Marker, MarkerRole};
use super::checksums::Checksums;
use super::disk::Disk;
use super::durable::Temporary;
use super::error::StoreError;
use super::folder::{Folder, TEMPORARY_PREFIX, random_suffix};
use super::health::Monitor;
use super::shared::{StoredCheck, finished_names};
use crate::config::StoreCompression;
use crate::wal::segment::Verify;

/// Its lock; the file stays.
const LOCK_NAME: &str = ".walmgr-compress";

/// What became of a segment.
#[derive(Debug)]
pub(crate) enum Compressed {
    /// It took so many bytes, and takes so many.
    Packed { before: u64, after: u64 },
    /// It stays as it is, for this reason.
    Left { name: WalFileName, why: String },
    /// It was replaced, set aside or removed meanwhile.
    Gone,
}

/// An archive whose segments are packed; nobody else packs them at the same time.
pub(crate) struct Compressor {
    completed: Arc<Folder>,
    binding: Binding,
    _lock: OwnedFd,
}

/// The segments that lie there as they came, and the bytes that they take.
pub(crate) fn plain_segments(
    completed_wals: &Path,
    disk: Arc<dyn Disk>,
) -> Result<(Vec<WalFileName>, u64), StoreError> {
    let completed = Folder::open_completed(completed_wals, disk, Arc::new(Monitor::new()))?;
    let (mut plain, mut bytes) = (Vec::new(), 0);
    for (name, text) in finished_names(&completed)? {
        if matches!(name, WalFileName::Segment(_))
            && let Some(stat) = completed.stat_stored(&text)?.filter(|stat| stat.is_file)
        {
            plain.push(name);
            bytes += stat.len;
        }
    }
    Ok((plain, bytes))
}

impl Compressor {
    /// Takes the right to pack; `None` if another process has it.
    pub(crate) fn open(
        completed_wals: &Path,
        disk: Arc<dyn Disk>,
    ) -> Result<Option<Compressor>, StoreError> {
        let completed = Folder::open_completed(completed_wals, disk, Arc::new(Monitor::new()))?;
        let not_set_up = || StoreError::NotSetUp {
            path: completed_wals.to_path_buf(),
        };
        let marker = Marker::read(&completed, MarkerRole::Completed)?.ok_or_else(not_set_up)?;
        let binding = marker.binding.ok_or(StoreError::NotBound)?;
        let failed = |error| completed.failure("lock", LOCK_NAME, error);
        let lock = (completed.disk.open_lock(completed.handle(), LOCK_NAME)).map_err(failed)?;
        if !completed.disk.lock(lock.as_fd()).map_err(failed)? {
            return Ok(None);
        }
        Ok(Some(Compressor {
            completed: Arc::new(completed),
            binding,
            _lock: lock,
        }))
    }

    /// Packs one segment.
    pub(crate) fn pack(
        &self,
        name: WalFileName,
        form: StoreCompression,
    ) -> Result<Compressed, StoreError> {
        let (folder, text) = (&self.completed, name.to_string());
        let left = |why: String| Ok(Compressed::Left { name, why });
        let Some(packed) = folder.packed_name(&text) else {
            return Ok(Compressed::Gone);
        };
        let Some(plain) = folder.open_file(&text)? else {
            return Ok(Compressed::Gone);
        };
        let digest = match self.check(name, &plain)? {
            Ok(digest) => digest,
            Err(why) => return left(why),
        };
        if folder.stat_stored(&packed)?.is_none() {
            let mut temporary = Temporary::create_in(folder, (&text, digest.0), form)?;
            let mut copied = Ok(());
            folder.read_through(plain.as_fd(), &text, |piece| {
                copied = temporary.append(piece);
                copied.is_ok()
            })?;
            copied?;
            let synced = temporary.sync()?;
            if (synced.len, synced.crc32) != digest {
                return left("it changed while it was read".to_owned());
            }
            synced.publish_beside(&text)?;
        }
        match self.read_back(&text, &packed)? {
            Ok(read_back) if read_back == digest => {}
            Ok(_) => return left(format!("{packed} is there too and holds other bytes")),
            Err(why) => return left(why),
        }
        self.retire(name, (&text, &packed), &plain, digest)
    }

    /// What a plain segment holds, or what is wrong with it: it is packed only if it is what was acknowledged.
    fn check(
        &self,
        name: WalFileName,
        plain: &OwnedFd,
    ) -> Result<Result<(u64, u32), String>, StoreError> {
        let folder = &self.completed;
        let mut check = StoredCheck::new(name, &self.binding.expected(), Verify::Records);
        let (mut len, mut crc) = (0, crc32fast::Hasher::new());
        folder.read_through(plain.as_fd(), &name.to_string(), |piece| {
            check.update(piece);
            crc.update(piece);
            len += piece.len() as u64;
            true
        })?;
        let digest = (len, crc.finalize());
        let kept = Checksums::open(folder).read(name);
        Ok(match (check.finish_at_end(), kept) {
            (_, Some(kept)) if (kept.len, kept.crc32) == digest => Ok(digest),
            (_, Some(kept)) if kept.contradicts(digest.0, digest.1).is_some() => {
                Err("it is not what was acknowledged".to_owned())
            }
            (Err(fault), _) => Err(fault.to_string()),
            (Ok(_), _) => Ok(digest),
        })
    }

    /// What the disk gives back of a packed segment.
    fn read_back(
        &self,
        text: &str,
        packed: &str,
    ) -> Result<Result<(u64, u32), String>, StoreError> {
        let folder = &self.completed;
        let Some(file) = folder.open_packed(text, packed)? else {
            return Ok(Err(format!("{packed} was removed")));
        };
        // One that an earlier run, or a person, has left may not be on the disk yet.
        folder.sync_content(file.handle(), packed)?;
        folder.sync()?;
        // Advice only, as for a finished file.
        let _ = folder.disk.forget_cache(file.handle());
        match folder.digest_of(&file) {
            Err(StoreError::Damaged { why, .. }) => Ok(Err(why)),
            digest => digest.map(Ok),
        }
    }

    /// Removes the plain form of a segment whose packed form is durable.
    fn retire(
        &self,
        name: WalFileName,
        (text, packed): (&str, &str),
        plain: &OwnedFd,
        digest: (u64, u32),
    ) -> Result<Compressed, StoreError> {
        let folder = &self.completed;
        let failed = |op, error| folder.failure(op, text, error);
        let random = random_suffix().map_err(|error| failed("name", error))?;
        let retired = format!("{TEMPORARY_PREFIX}{text}.{random}");
        let moved = folder.move_stored(text, &retired);
        let is_it = match moved {
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(failed("rename", error)),
            Ok(()) => {
                let there = folder.stat_stored(&retired)?.map(|stat| stat.identity);
                let ours = folder.disk.stat(plain.as_fd());
                let is_it = there == ours.ok().map(|stat| stat.identity);
                if !is_it {
                    // Another file has got the name: it keeps it.
                    (folder.move_stored(&retired, text))
                        .map_err(|error| failed("rename back to", error))?;
                }
                is_it
            }
        };
        if is_it {
            folder.sync()?;
            folder.remove_stored(&retired)?;
            folder.sync()?;
            let after = folder.stat_stored(packed)?.map_or(0, |stat| stat.len);
            let before = digest.0;
            return Ok(Compressed::Packed { before, after });
        }
        let kept = Checksums::open(folder).read(name);
        if kept.is_none_or(|kept| (kept.len, kept.crc32) != digest) {
            folder.remove_stored(packed)?;
            folder.sync()?;
        }
        Ok(Compressed::Gone)
    }
}
