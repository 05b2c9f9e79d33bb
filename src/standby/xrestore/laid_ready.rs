//! Segments of the archive that lie ready in the server's `pg_wal` (`crate::laid_ready`).
//! Never says whether a segment may be handed out. Invariant: what lies there is a copy of a file of the archive that has
//! not changed since: the stamp tells that file, as it was (`Stored::stamp`).
//!
//! A file of the archive that changes has another stamp. A copy that has lain there for long is compared with what was
//! stored before it is handed out; a younger one was when it was copied.

use std::path::{Path, PathBuf};

use walmgr_protocol::names::{SegmentName, WalFileName};

use crate::config::StandbyConfig;
use crate::error::{IoContext, Kind, Result};
use crate::files::HandedOver;
use crate::laid_ready::{LaidFolder, LaidSegment};
use crate::store::{ArchiveReader, SegmentBefore, Stored};

/// Where segments of the archive lie ready for one server.
pub(super) struct LaidReady<'a> {
    config: &'a StandbyConfig,
    archive: &'a ArchiveReader,
    folder: LaidFolder,
}

impl<'a> LaidReady<'a> {
    /// Beside the path that PostgreSQL asks for a segment under; nothing where that is not in its `pg_wal`.
    pub(super) fn beside(
        config: &'a StandbyConfig,
        archive: &'a ArchiveReader,
        path: &Path,
    ) -> Option<LaidReady<'a>> {
        if config.restore_ahead == 0 {
            return None;
        }
        let folder = LaidFolder::beside(path, archive.binding().segment_size)?;
        Some(LaidReady {
            config,
            archive,
            folder,
        })
    }

    /// The copy of a stored segment, if one lies ready.
    pub(super) fn copy_of(&self, stored: &Stored) -> Option<LaidSegment> {
        let laid = self.folder.find(&stored.stamp()?)?;
        let is_sound = laid.is_young() || laid.digest().ok() == stored.proven_digest();
        is_sound.then_some(laid)
    }

    /// Has the segments behind this one laid, if they are in the archive and do not lie ready yet.
    pub(super) fn lay_behind(&self, segment: SegmentName, path: &Path) {
        let config = self.config;
        let is_to_be_laid = |segment| self.is_to_be_laid(segment);
        let asked = (segment, path);
        (self.folder).have_laid(&config.path, asked, config.restore_ahead, is_to_be_laid);
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
        let Some(lock) = self.folder.lock()? else {
            return Ok(());
        };
        let (mut wanted, mut paths) = (Vec::new(), Vec::new());
        for next in self.folder.behind(segment, self.config.restore_ahead) {
            let found = self.archive.find(WalFileName::Segment(next));
            let Ok(Some(stored)) = found else { break };
            let Some(path) = self.path_of(&stored) else {
                break;
            };
            wanted.push(stored);
            paths.push(path);
        }
        self.folder.keep_only(&paths)?;
        for (stored, path) in wanted.iter().zip(&paths) {
            if path.exists() {
                continue;
            }
            self.folder.check(&lock)?;
            if !copy(stored, path)? {
                break;
            }
        }
        Ok(())
    }

    /// Removes everything: replay of the archive has come to an end, for now or for good.
    pub(super) fn clear(&self) {
        self.folder.clear();
    }

    fn path_of(&self, stored: &Stored) -> Option<PathBuf> {
        Some(self.folder.path_of(&stored.stamp()?))
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
