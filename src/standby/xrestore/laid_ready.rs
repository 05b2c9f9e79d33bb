//! Segments that lie ready in the server's `pg_wal` while it replays the ones before them: a call then only renames one.
//! Never says whether a segment may be handed out; the call does, as for any other. Invariant: what lies there is a
//! whole copy of a file of the archive that has not changed since, made under this boot of the kernel.
//!
//! # In `pg_wal`
//!
//! ```text
//! .walmgr/NAME.STAMP     a segment; STAMP tells the file of the archive that it was copied from, as it was, and the
//!                        boot of the kernel (`Stored::stamp`)
//! ```
//!
//! A process of its own lays them: it begins when a segment has been handed out and the next ones are in the archive,
//! lays as many as `restore_ahead` says, and ends. It changes nothing else, so it may be killed at any moment: of what
//! it had begun a temporary is left, which the next one removes. PostgreSQL knows nothing of the folder.
//!
//! Its parent ends before it does. Where the server is the first process of its container it is the server's child then:
//! so it always ends with 0, and only one that somebody kills would be taken for a crash of one of the server's own.
//!
//! Copies are not synced. After a power cut one may be torn, but its stamp is then one of another boot, and nobody takes
//! it. A file of the archive that changes has another stamp as well. One that has lain there for long, as while replay
//! was paused, is compared with what was stored before it is handed out; a younger one was when it was copied.
//!
//! When PostgreSQL asks for a history, or for what is not there, replay of the archive has come to an end. The folder is
//! renamed and goes, and only a call makes it anew.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::geteuid;
use walmgr_protocol::names::{SegmentName, WalFileName, WalSegmentSize};

use crate::abnormal::LAY_BEHIND;
use crate::config::StandbyConfig;
use crate::error::{IoContext, Kind, Result};
use crate::files::{self, HandedOver, RoomNeeded};
use crate::pg::layout;
use crate::shell;
use crate::store::{ArchiveReader, SegmentBefore, Stored};

/// The folder in `pg_wal`.
const FOLDER: &str = ".walmgr";

/// Room that is left to the server on the file system of `pg_wal`, in segments beside those that are laid.
const SPARE_SEGMENTS: u64 = 8;

/// So long nobody compares a copy again.
const TRUSTED_FOR: Duration = Duration::from_secs(60);

/// Where segments lie ready for one server.
pub(super) struct LaidReady<'a> {
    config: &'a StandbyConfig,
    archive: &'a ArchiveReader,
    folder: PathBuf,
}

impl<'a> LaidReady<'a> {
    /// Beside the path that PostgreSQL asks for a segment under; nothing where that is not in its `pg_wal`.
    pub(super) fn beside(
        config: &'a StandbyConfig,
        archive: &'a ArchiveReader,
        path: &Path,
    ) -> Option<LaidReady<'a>> {
        let above = path.parent()?;
        let is_in_pg_wal = above.file_name() == Some(OsStr::new(layout::PG_WAL));
        (config.restore_ahead > 0 && is_in_pg_wal).then(|| LaidReady {
            config,
            archive,
            folder: above.join(FOLDER),
        })
    }

    /// The copy of a stored segment, if one lies ready.
    pub(super) fn copy_of(&self, stored: &Stored) -> Option<LaidSegment> {
        let path = self.path_of(stored)?;
        let file = files::open_at_once(&path).ok()?;
        let found = file.metadata().ok()?;
        let is_whole = found.is_file() && found.len() == self.size().bytes();
        let is_ours = found.uid() == geteuid().as_raw() && found.nlink() == 1;
        let age = found.modified().ok()?.elapsed();
        let laid = LaidSegment { path, file };
        // A clock that was set back says nothing.
        let is_young = age.is_ok_and(|age| age < TRUSTED_FOR);
        let is_sound = || is_young || laid.digest().ok() == stored.proven_digest();
        (is_whole && is_ours && is_sound()).then_some(laid)
    }

    /// Has the segments behind this one laid, if they are in the archive and do not lie ready yet.
    pub(super) fn lay_behind(&self, segment: SegmentName, path: &Path) {
        // Two at a time, as whoever lays them has to be begun.
        let some = usize::try_from(self.config.restore_ahead).map_or(2, |ahead| ahead.min(2));
        let mut next = SegmentsBehind(segment, self.size()).take(some);
        if !next.any(|segment| self.is_to_be_laid(segment)) {
            return;
        }
        // Whoever lays them makes none, so that once it is gone it stays so.
        if let Err(error) = files::make_directory(&self.folder) {
            tracing::debug!("no segment is laid ready: {error}");
            return;
        }
        let laying = shell::unawaited().and_then(|mut laying| {
            laying.arg("-q").arg(&self.config.path);
            laying.args(["xrestore", LAY_BEHIND]);
            laying.arg(segment.to_string()).arg(path);
            shell::begin(&mut laying)
        });
        if let Err(error) = laying {
            tracing::debug!("no segment is laid ready: {error}");
        }
    }

    fn is_to_be_laid(&self, segment: SegmentName) -> bool {
        let Ok(Some(stored)) = self.archive.find(WalFileName::Segment(segment)) else {
            return false;
        };
        let path = self.path_of(&stored);
        stored.proven_digest().is_some() && path.is_some_and(|path| !path.exists())
    }

    /// Lays the segments behind this one, which PostgreSQL has.
    pub(super) fn lay(&self, segment: SegmentName) -> Result<()> {
        // Whoever is at it goes on with the next ones when he is asked again.
        let Some(_lock) = files::try_lock(Kind::Retry, &self.folder)? else {
            return Ok(());
        };
        let ahead = usize::try_from(self.config.restore_ahead).unwrap_or(usize::MAX);
        let mut wanted = Vec::new();
        for next in SegmentsBehind(segment, self.size()).take(ahead) {
            let found = self.archive.find(WalFileName::Segment(next));
            let Ok(Some(stored)) = found else { break };
            let Some(path) = self.path_of(&stored) else {
                break;
            };
            wanted.push((stored, path));
        }
        self.remove_all_but(&wanted)?;
        for (stored, path) in wanted {
            if path.exists() {
                continue;
            }
            self.check_room()?;
            if !copy(&stored, &path)? {
                break;
            }
        }
        Ok(())
    }

    /// Removes everything: replay of the archive has come to an end, for now or for good.
    pub(super) fn clear(&self) {
        if !self.folder.exists() {
            return;
        }
        // Under another name nothing is laid in it any more.
        let going = self.folder.with_extension("going");
        let removed = files::remove_any(&going)
            .and_then(|()| {
                let renamed = files::hand_over(&self.folder, &going);
                renamed.at(Kind::Retry, "rename", &self.folder)
            })
            .and_then(|()| files::remove_any(&going));
        if let Err(error) = removed {
            tracing::debug!("segments still lie ready: {error}");
        }
    }

    fn size(&self) -> WalSegmentSize {
        self.archive.binding().segment_size
    }

    fn path_of(&self, stored: &Stored) -> Option<PathBuf> {
        let name = stored.stamp()?;
        Some(self.folder.join(name))
    }

    fn remove_all_but(&self, wanted: &[(Stored, PathBuf)]) -> Result<()> {
        let entries = std::fs::read_dir(&self.folder).at(Kind::Retry, "list", &self.folder)?;
        for path in entries.flatten().map(|entry| entry.path()) {
            if !wanted.iter().any(|(_, wanted)| *wanted == path) {
                files::remove_any(&path)?;
            }
        }
        Ok(())
    }

    fn check_room(&self) -> Result<()> {
        let mut needed = RoomNeeded::new(Kind::Retry);
        needed.add(&self.folder, self.size().bytes() * (SPARE_SEGMENTS + 1))?;
        needed.check()
    }
}

/// Copies a stored segment, unless it would have to be gone through for that: then whoever asks for it does.
fn copy(stored: &Stored, path: &Path) -> Result<bool> {
    if stored.proven_digest().is_none() {
        return Ok(false);
    }
    let mut copy = HandedOver::begin(path).at(Kind::Retry, "create a file beside", path)?;
    let mut written = Ok(());
    let read = stored.read_verified(SegmentBefore::NotRead, |bytes| {
        written = copy.append(bytes);
        written.is_ok()
    });
    written.at(Kind::Retry, "write", path)?;
    if read.is_err() {
        return Ok(false);
    }
    copy.put_in_place().at(Kind::Retry, "rename", path)?;
    Ok(true)
}

/// The segments behind one on its timeline.
struct SegmentsBehind(SegmentName, WalSegmentSize);

impl Iterator for SegmentsBehind {
    type Item = SegmentName;

    fn next(&mut self) -> Option<SegmentName> {
        self.0 = self.0.next(self.1)?;
        Some(self.0)
    }
}

/// A segment that lies ready.
pub(super) struct LaidSegment {
    path: PathBuf,
    file: File,
}

impl LaidSegment {
    /// Hands its bytes to `each` until that has seen enough.
    pub(super) fn read(&self, mut each: impl FnMut(&[u8]) -> bool) -> std::io::Result<()> {
        let (mut page, mut offset) = (vec![0; 64 << 10], 0);
        loop {
            match self.file.read_at(&mut page, offset)? {
                0 => return Ok(()),
                bytes if each(&page[..bytes]) => offset += bytes as u64,
                _ => return Ok(()),
            }
        }
    }

    /// Length and CRC-32.
    fn digest(&self) -> std::io::Result<(u64, u32)> {
        let (mut len, mut crc) = (0, crc32fast::Hasher::new());
        self.read(|bytes| {
            len += bytes.len() as u64;
            crc.update(bytes);
            true
        })?;
        Ok((len, crc.finalize()))
    }

    /// Gives it the name that PostgreSQL asked for.
    pub(super) fn put_in_place(self, path: &Path) -> std::io::Result<()> {
        files::hand_over(&self.path, path)
    }
}
