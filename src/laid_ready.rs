//! Segments that lie ready in a server's `pg_wal` while it replays the ones before them: a call of `xrestore` then only
//! renames one.
//! Never says whether a segment may be handed out; the call does, as for any other. Invariant: what lies there is a whole
//! copy, and its name tells what it was made of and for whom.
//!
//! # In `pg_wal`
//!
//! ```text
//! .walmgr/SEGMENT.STAMP  a segment; whoever lays it says what STAMP tells beside the boot of the kernel
//! .walmgr/asked          when a segment was handed out last, by the time of its change
//! ```
//!
//! A process of its own lays them: it begins when a segment has been handed out, lays as many as `restore_ahead` says, and
//! ends. It changes nothing else, so it may be killed at any moment: of what it had begun a temporary is left, which the
//! next one removes. PostgreSQL knows nothing of the folder.
//!
//! Its parent ends before it does. Where the server is the first process of its container it is the server's child then:
//! so it always ends with 0, and only one that somebody kills would be taken for a crash of one of the server's own.
//!
//! Copies are not synced. After a power cut one may be torn, but its stamp is then one of another boot, and nobody takes
//! it.
//!
//! When PostgreSQL asks for a history, or for what is not there, replay of the archive has come to an end. The folder is
//! renamed and goes, and only a call makes it anew.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::geteuid;
use walmgr_protocol::names::{SegmentName, WalSegmentSize};

use crate::abnormal::LAY_BEHIND;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files::{self, FileId, RoomNeeded};
use crate::pg::layout;
use crate::shell;

/// The folder in `pg_wal`.
const FOLDER: &str = ".walmgr";

/// Room that is left to the server on the file system of `pg_wal`, in segments beside those that are laid.
const SPARE_SEGMENTS: u64 = 8;

/// So long a copy is as good as when it was made.
pub(crate) const TRUSTED_FOR: Duration = Duration::from_secs(60);

/// When a segment was handed out last.
const ASKED: &str = "asked";

/// How soon it is looked again whether a segment lies ready.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// So long a segment that is on its way may not grow, and whoever lays may take to begin with it.
const GROWS_WITHIN: Duration = Duration::from_secs(1);
const BEGINS_WITHIN: Duration = Duration::from_millis(100);

/// Segments of which one is missing before more are laid: two, as whoever lays them has to be begun.
const MISSED_AT_MOST: usize = 2;

/// Where segments lie ready for one server.
pub(crate) struct LaidFolder {
    folder: PathBuf,
    size: WalSegmentSize,
}

impl LaidFolder {
    /// Beside the path that PostgreSQL asks for a segment under; nothing where that is not in its `pg_wal`.
    pub(crate) fn beside(path: &Path, size: WalSegmentSize) -> Option<LaidFolder> {
        let above = path.parent()?;
        let is_in_pg_wal = above.file_name() == Some(OsStr::new(layout::PG_WAL));
        is_in_pg_wal.then(|| LaidFolder {
            folder: above.join(FOLDER),
            size,
        })
    }

    /// Whether a call has made it.
    pub(crate) fn exists(&self) -> bool {
        self.folder.exists()
    }

    /// Whoever lays segments makes no folder, so that once it is gone it stays so.
    pub(crate) fn make(&self) -> Result<()> {
        files::make_directory(&self.folder)
    }

    /// Where it lies under this name, of segment and stamp.
    pub(crate) fn path_of(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The segment under this name, if it lies ready.
    pub(crate) fn find(&self, name: &str) -> Option<LaidSegment> {
        let path = self.path_of(name);
        let file = files::open_at_once(&path).ok()?;
        let found = file.metadata().ok()?;
        let is_whole = found.is_file() && found.len() == self.size.bytes();
        let is_ours = found.uid() == geteuid().as_raw() && found.nlink() == 1;
        let age = found.modified().ok()?.elapsed();
        // A clock that was set back says nothing.
        let is_young = age.is_ok_and(|age| age < TRUSTED_FOR);
        (is_whole && is_ours).then_some(LaidSegment {
            path,
            file,
            is_young,
        })
    }

    /// Waits while somebody lays the segment under this name, and it grows, at most for so long.
    pub(crate) fn wait_for(&self, name: &str, patience: Duration) {
        let (begun, mut changed, mut seen) = (Instant::now(), Instant::now(), None);
        while self.exists() && !self.path_of(name).exists() {
            if !matches!(self.lock(), Ok(None)) {
                return;
            }
            let laid_bytes = self.under_way(name);
            if laid_bytes != seen {
                (changed, seen) = (Instant::now(), laid_bytes);
            }
            let most = match laid_bytes {
                Some(_) => GROWS_WITHIN,
                None => BEGINS_WITHIN,
            };
            if changed.elapsed() >= most || begun.elapsed() >= patience {
                return;
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Bytes that are there of the one that somebody lays under this name.
    fn under_way(&self, name: &str) -> Option<u64> {
        let begins = format!(".{name}.");
        let mut entries = std::fs::read_dir(&self.folder).ok()?.flatten();
        let found = entries.find(|entry| {
            let file_name = entry.file_name();
            file_name.as_encoded_bytes().starts_with(begins.as_bytes())
        });
        Some(found?.metadata().ok()?.len())
    }

    /// Notes that a segment is handed out; whether the one before was within this.
    pub(crate) fn is_asked_again_within(&self, patience: Duration) -> bool {
        let note = self.folder.join(ASKED);
        let before = note.metadata().and_then(|found| found.modified());
        let noted = self.make().and_then(|()| {
            let noted = files::note(&note, b"\n");
            noted.at(Kind::Retry, "note in", &self.folder)
        });
        if let Err(error) = noted {
            tracing::debug!("no segment is laid ready: {error}");
            return false;
        }
        let passed = before.ok().and_then(|before| before.elapsed().ok());
        passed.is_some_and(|passed| passed < patience)
    }

    /// Those behind a segment on its timeline, of which the first `ahead` are to lie ready.
    pub(crate) fn behind(
        &self,
        segment: SegmentName,
        ahead: u32,
    ) -> impl Iterator<Item = SegmentName> {
        let size = self.size;
        let behind = std::iter::successors(segment.next(size), move |it| it.next(size));
        behind.take(usize::try_from(ahead).unwrap_or(usize::MAX))
    }

    /// Begins the process that lays the segments behind this one with these settings, if one of the next is to be laid.
    pub(crate) fn have_laid(
        &self,
        settings: &Path,
        (segment, path): (SegmentName, &Path),
        ahead: u32,
        is_to_be_laid: impl FnMut(SegmentName) -> bool,
    ) {
        let mut next = self.behind(segment, ahead).take(MISSED_AT_MOST);
        if !next.any(is_to_be_laid) {
            return;
        }
        let laying = self.make().and_then(|()| {
            let mut laying = shell::unawaited()?;
            laying.arg("-q").arg(settings);
            laying.args(["xrestore", LAY_BEHIND]);
            laying.arg(segment.to_string()).arg(path);
            shell::begin(&mut laying)
        });
        if let Err(error) = laying {
            tracing::debug!("no segment is laid ready: {error}");
        }
    }

    /// Keeps others from laying; `None` where somebody lays already, who goes on when he is asked again.
    pub(crate) fn lock(&self) -> Result<Option<File>> {
        files::try_lock(Kind::Retry, &self.folder)
    }

    /// Removes all but these, and the note.
    pub(crate) fn keep_only(&self, wanted: &[PathBuf]) -> Result<()> {
        let entries = std::fs::read_dir(&self.folder).at(Kind::Retry, "list", &self.folder)?;
        for path in entries.flatten().map(|entry| entry.path()) {
            if !wanted.contains(&path) && path.file_name() != Some(OsStr::new(ASKED)) {
                files::remove_any(&path)?;
            }
        }
        Ok(())
    }

    /// Fails where another one would take room that the server may need, or the folder that was locked is gone.
    pub(crate) fn check(&self, lock: &File) -> Result<()> {
        let locked = lock.metadata().map(|found| FileId::of_metadata(&found));
        if locked.ok() != FileId::at(&self.folder) {
            let doing = "lay a segment where replay has come to an end";
            return Err(CommandError::retry(doing));
        }
        let mut needed = RoomNeeded::new(Kind::Retry);
        needed.add(&self.folder, self.size.bytes() * (SPARE_SEGMENTS + 1))?;
        needed.check()
    }

    /// Removes everything: replay of the archive has come to an end, for now or for good.
    pub(crate) fn clear(&self) {
        if !self.exists() {
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
}

/// A segment that lies ready.
pub(crate) struct LaidSegment {
    path: PathBuf,
    file: File,
    is_young: bool,
}

impl LaidSegment {
    /// Whether it is as good as when it was made. One that has lain there for long, as while replay was paused, is not.
    pub(crate) const fn is_young(&self) -> bool {
        self.is_young
    }

    /// Hands its bytes to `each` until that has seen enough.
    pub(crate) fn read(&self, mut each: impl FnMut(&[u8]) -> bool) -> std::io::Result<()> {
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
    pub(crate) fn digest(&self) -> std::io::Result<(u64, u32)> {
        let (mut len, mut crc) = (0, crc32fast::Hasher::new());
        self.read(|bytes| {
            len += bytes.len() as u64;
            crc.update(bytes);
            true
        })?;
        Ok((len, crc.finalize()))
    }

    /// Gives it the name that PostgreSQL asked for.
    pub(crate) fn put_in_place(self, path: &Path) -> std::io::Result<()> {
        files::hand_over(&self.path, path)
    }
}
