//! Packs the segments of an archive that lie there as they came, beside a running receiver.
//! Never takes away a form before the other one is durable and was read back from the disk. Invariant: at every moment
//! one form at least of each segment is there, whole and durable.
//!
//! ```text
//! write .packing.NAME.RANDOM, sync     a crash leaves it
//! rename to NAME.zst, sync             a crash leaves both forms of one content, which are one segment
//! read NAME.zst from the disk          as above
//! rename NAME to .retired.NAME.RANDOM  a crash leaves that, which may be another file than the one that was packed
//! look whether it is that file, sync, remove
//! ```
//!
//! Somebody else may give the name to another file, set it aside or remove it meanwhile. Then the packed form of what
//! had the name goes again, unless it is what the checksum of the name tells.
//!
//! What a killed run leaves, the next one, the receiver's start and each of its rounds through the archive clear away:
//! what was being packed is removed, and what was retired only if it is what its name gives; else it gets its name
//! back, or stays as `NAME.displaced`.

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
use super::folder::{Folder, PACKING_PREFIX, random_suffix};
use super::health::Monitor;
use super::shared::{StoredCheck, finished_names};
use crate::config::StoreCompression;
use crate::wal::segment::Verify;

/// Its lock; the file stays.
const LOCK_NAME: &str = ".walmgr-compress";

/// The plain form of a segment on its way out.
const RETIRED_PREFIX: &str = ".retired.";

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
        let Some(lock) = lock(&completed)? else {
            return Ok(None);
        };
        clear(&completed, &leftovers(&completed)?)?;
        Ok(Some(Compressor {
            completed: Arc::new(completed),
            binding,
            _lock: lock,
        }))
    }

    /// Whether this is wrong with one segment only.
    pub(crate) fn concerns_one(&self, error: &StoreError) -> bool {
        matches!(error, StoreError::Disk { .. } | StoreError::Damaged { .. })
            && self.completed.monitor.check().is_ok()
            && self.completed.ensure_in_place().is_ok()
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
            let stat = (folder.disk.stat(plain.as_fd()))
                .map_err(|error| folder.failure("examine", &text, error))?;
            let mut temporary =
                Temporary::create_to_convert(folder, (&text, stat.modified_ns), form)?;
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
        if self.moves_away(text, plain)? {
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

    /// Removes the file of this name if it is this one; says whether it was.
    fn moves_away(&self, text: &str, plain: &OwnedFd) -> Result<bool, StoreError> {
        let folder = &self.completed;
        let failed = |op, error| folder.failure(op, text, error);
        let ours = (folder.disk.stat(plain.as_fd())).map_err(|error| failed("examine", error))?;
        let is_ours = |name: &str| {
            let there = folder.stat_stored(name)?;
            Ok::<bool, StoreError>(there.is_some_and(|stat| stat.identity == ours.identity))
        };
        if !is_ours(text)? {
            return Ok(false);
        }
        let random = random_suffix().map_err(|error| failed("name", error))?;
        let retired = format!("{RETIRED_PREFIX}{text}.{random}");
        match folder.move_stored(text, &retired) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other.map_err(|error| failed("rename", error))?,
        }
        if !is_ours(&retired)? {
            // Another file has got the name just now: it keeps it.
            return give_back(folder, text, &retired).map(|()| false);
        }
        folder.sync()?;
        folder.remove_stored(&retired)?;
        folder.sync()?;
        Ok(true)
    }
}

/// Takes the right to pack; `None` if another process has it.
fn lock(completed: &Folder) -> Result<Option<OwnedFd>, StoreError> {
    let failed = |error| completed.failure("lock", LOCK_NAME, error);
    let lock = (completed.disk.open_lock(completed.handle(), LOCK_NAME)).map_err(failed)?;
    let is_taken = completed.disk.lock(lock.as_fd()).map_err(failed)?;
    Ok(is_taken.then_some(lock))
}

/// Clears away what a killed `compress` has left; says how many files those were.
pub(super) fn clear_leftovers(completed: &Folder) -> Result<usize, StoreError> {
    // Most archives have none, and whoever only looks leaves no lock behind.
    if leftovers(completed)?.is_empty() {
        return Ok(0);
    }
    let Some(_lock) = lock(completed)? else {
        return Ok(0);
    };
    let left = leftovers(completed)?;
    clear(completed, &left).map(|()| left.len())
}

fn leftovers(completed: &Folder) -> Result<Vec<String>, StoreError> {
    let mut names = completed.names_beside()?;
    names.retain(|name| name.starts_with(PACKING_PREFIX) || name.starts_with(RETIRED_PREFIX));
    Ok(names)
}

fn clear(completed: &Folder, left: &[String]) -> Result<(), StoreError> {
    for stored in left {
        match retired_name(stored) {
            Some(text) => settle_retired(completed, text, stored)?,
            None if stored.starts_with(PACKING_PREFIX) => completed.remove_stored(stored)?,
            None => tracing::warn!("{stored} is no file of walmgr's; look at it and move it away"),
        }
    }
    Ok(())
}

/// Which segment this was until it was retired.
fn retired_name(stored: &str) -> Option<&str> {
    let (text, _random) = stored.strip_prefix(RETIRED_PREFIX)?.rsplit_once('.')?;
    let name: WalFileName = text.parse().ok()?;
    matches!(name, WalFileName::Segment(_)).then_some(text)
}

/// Removes what a run had retired when it was killed, if its name gives the same bytes.
fn settle_retired(completed: &Folder, text: &str, stored: &str) -> Result<(), StoreError> {
    let Some(retired) = completed.open_temporary(stored, false)? else {
        return Ok(());
    };
    let is_superseded = match completed.open_finished(text) {
        Ok(Some(present)) => {
            completed.sync_content(present.handle(), text)?;
            completed.sync()?;
            let _ = completed.disk.forget_cache(present.handle());
            let (gone, there) = (completed.digest_of(&retired), completed.digest_of(&present));
            gone.is_ok_and(|gone| there.is_ok_and(|there| gone == there))
        }
        Ok(None) | Err(_) => false,
    };
    match is_superseded {
        true => completed.remove_stored(stored),
        false => give_back(completed, text, stored),
    }
}

/// Gives a file the name back that it had, or, where another has it by now, one beside it.
fn give_back(completed: &Folder, text: &str, retired: &str) -> Result<(), StoreError> {
    match completed.move_stored(retired, text) {
        // A receiver that has just started was first.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let kept = completed.keep_beside(retired, text)?;
            tracing::warn!("{retired} and {text} are two files: the first stays as {kept}");
        }
        other => other.map_err(|error| completed.failure("rename back to", text, error))?,
    }
    completed.sync()
}
