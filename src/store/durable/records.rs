//! The proofs about stretches of WAL and about records, and how a partial segment gets its final name.
//! Never looks at the records themselves. Invariant: a [`DurableRecords`] exists only after the
//! bytes it speaks of, the name of their file included, were synced without an error.
//!
//! ```text
//! link to NAME in completed_wals   whole under NAME or not there, since the content is durable
//! sync completed_wals              there for good, and under its old name too
//! remove the old name              a crash before it is durable leaves both, of one file
//! ```
//!
//! A rename between two directories would need both synced at once to never be in neither.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rustix::io::Errno;
use walmgr_protocol::names::{Lsn, SegmentName, WalFileName, WalSegmentSize};
use walmgr_protocol::session::partial::ProofOfRecords;

use super::{Durable, SyncedTemporary, Temporary};
use crate::store::error::StoreError;
use crate::store::folder::Folder;

/// The proof that a stretch of WAL is in the archive, every segment of it: without one no backup
/// set is sealed. It grows by the proofs of its segments.
#[derive(Debug, PartialEq, Eq)]
pub struct DurableWal {
    first: SegmentName,
    last: SegmentName,
}

impl DurableWal {
    /// The stretch of one segment; `None` for any other file.
    pub(in crate::store) const fn of(segment: &Durable) -> Option<Self> {
        match segment.name() {
            WalFileName::Segment(name) => Some(DurableWal {
                first: name,
                last: name,
            }),
            _ => None,
        }
    }

    /// Goes on with the segment behind it; `None` for any other file.
    pub(in crate::store) fn and(self, segment: &Durable, size: WalSegmentSize) -> Option<Self> {
        let follows = self.last.next(size).map(WalFileName::Segment) == Some(segment.name());
        let last = Self::of(segment)?.last;
        follows.then_some(DurableWal { last, ..self })
    }

    /// Its first segment.
    pub const fn first(&self) -> SegmentName {
        self.first
    }

    /// Its last segment.
    pub const fn last(&self) -> SegmentName {
        self.last
    }
}

/// The proof that the records of a partial segment are on the standby's disk up to an LSN.
#[derive(Debug, PartialEq, Eq)]
pub struct DurableRecords {
    segment: SegmentName,
    end: Lsn,
}

impl DurableRecords {
    /// The segment that holds them, or the last of them.
    pub const fn segment(&self) -> SegmentName {
        self.segment
    }
}

impl ProofOfRecords for DurableRecords {
    fn end(&self) -> Lsn {
        self.end
    }
}

/// What a partial segment became.
pub(in crate::store) enum Linked {
    /// It is durable under its final name, and has its old one no longer.
    Durable(Durable),
    /// Another file has the final name.
    Taken,
    /// The file system cannot give a file of one folder a name in the other.
    Impossible,
}

impl Folder {
    /// Makes everything written to an open partial segment durable; its records end at `end`.
    pub(in crate::store) fn sync_records(
        &self,
        file: BorrowedFd<'_>,
        segment: SegmentName,
        end: Lsn,
    ) -> Result<DurableRecords, StoreError> {
        self.monitor.check()?;
        (self.monitor.timed(|| self.disk.sync_bytes(file)))
            .map_err(|error| self.lost(file, &segment.to_string(), error))?;
        self.ensure_in_place()?;
        Ok(DurableRecords { segment, end })
    }

    /// Makes the content and the length of an open partial segment durable.
    pub(in crate::store) fn sync_content(
        &self,
        file: BorrowedFd<'_>,
        name: &str,
    ) -> Result<(), StoreError> {
        self.monitor.check()?;
        (self.monitor.timed(|| self.disk.sync_file(file)))
            .map_err(|error| self.lost(file, name, error))
    }

    /// A failed sync of a file that is read again. What it has lost stands in the kernel's copy as if the disk had it,
    /// and where there was no room the archive goes on: whoever opens the file next finds what the disk gives back.
    fn lost(&self, file: BorrowedFd<'_>, name: &str, error: io::Error) -> StoreError {
        // First: forgetting may take its time, and whoever opens the file meanwhile hears no error from the kernel.
        let failure = self.sync_failure(name, error);
        // Advice only, as for a finished file.
        let _ = self.disk.forget_cache(file);
        failure
    }

    /// Gives a partial segment of this folder its final name in `completed`. Its content must
    /// have been checked and synced, and `crc32` be that of all its `len` bytes.
    pub(in crate::store) fn finish_into(
        &self,
        completed: &Folder,
        segment: SegmentName,
        (len, crc32): (u64, u32),
    ) -> Result<Linked, StoreError> {
        let text = segment.to_string();
        completed.ensure_in_place()?;
        // In its other form.
        if completed.stat_at(&text)?.is_some() {
            return Ok(Linked::Taken);
        }
        match (self.disk).link_into(self.handle(), &text, completed.handle(), &text) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(Linked::Taken),
            Err(error) if cannot_link(&error) => return Ok(Linked::Impossible),
            Err(error) => return Err(completed.failure("link to", &text, error)),
        }
        if let Err(error) = (completed.sync())
            .and_then(|()| completed.ensure_in_place())
            // Another stream's sync of this file may have failed meanwhile, and the kernel tells that once.
            .and_then(|()| self.monitor.check())
        {
            let _ = completed.disk.remove(completed.handle(), &text);
            return Err(error);
        }
        self.remove(&text)?;
        let name = WalFileName::Segment(segment);
        Ok(Linked::Durable(Durable::under(name, len, crc32)))
    }
}

impl Folder {
    /// Puts the file `anew`, complete and of this segment, in the place of the segment's own, for
    /// good. What it replaces is kept under another name first if `keep` says what to call it.
    ///
    /// ```text
    /// sync `anew`                  a crash leaves the old file, and a temporary
    /// link NAME to NAME.keep, sync the old file under both names
    /// rename `anew` to NAME, sync  the new one, and the old one beside it
    /// ```
    pub(in crate::store) fn replace_partial(
        self: &Arc<Self>,
        (anew, anew_name): (BorrowedFd<'_>, &str),
        (old, segment): (BorrowedFd<'_>, SegmentName),
        keep: Option<&str>,
    ) -> Result<Option<String>, StoreError> {
        let name = segment.to_string();
        self.sync_content(anew, anew_name)?;
        self.ensure_in_place()?;
        let kept = match keep {
            Some(what) => Some(self.keep(old, &name, what)?),
            None => None,
        };
        (self.disk.rename_over(self.handle(), anew_name, &name))
            .map_err(|error| self.failure("rename to", &name, error))?;
        self.sync()?;
        Ok(kept)
    }

    /// Gives a file another name beside its own, for good; where that cannot be, to a copy of it.
    fn keep(
        self: &Arc<Self>,
        file: BorrowedFd<'_>,
        name: &str,
        what: &str,
    ) -> Result<String, StoreError> {
        for aside in Self::names_aside(name, what) {
            if self.keep_as(file, name, &aside)? {
                return Ok(aside);
            }
        }
        Err(self.too_many_aside(name))
    }

    /// Keeps a copy under a certain name, durable on return; `false` if another file has it.
    pub(super) fn keep_as(
        self: &Arc<Self>,
        file: BorrowedFd<'_>,
        name: &str,
        aside: &str,
    ) -> Result<bool, StoreError> {
        match self.disk.link(self.handle(), name, aside) {
            Ok(()) => self.sync().map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // A crash between the second name and what it was made for leaves the file under both.
                let is_same = self.is_same_file(name, aside)?;
                if is_same {
                    self.sync()?;
                }
                Ok(is_same)
            }
            Err(error) if cannot_link(&error) => {
                let mut copied = self.copied(file, name)?;
                self.publish_copy(&mut copied, name, aside)
            }
            Err(error) => Err(self.failure("set aside", name, error)),
        }
    }

    /// Whether two names lead to one file.
    pub(in crate::store) fn is_same_file(
        &self,
        one: &str,
        other: &str,
    ) -> Result<bool, StoreError> {
        let (one, other) = (self.stat_at(one)?, self.stat_at(other)?);
        Ok(one.is_some() && one.map(|stat| stat.identity) == other.map(|stat| stat.identity))
    }

    /// Copies an open file to `NAME.what`, or with a number behind it, for good.
    pub(in crate::store) fn keep_copy(
        self: &Arc<Self>,
        file: BorrowedFd<'_>,
        name: &str,
        what: &str,
    ) -> Result<String, StoreError> {
        let mut copied = self.copied(file, name)?;
        for aside in Self::names_aside(name, what) {
            if self.publish_copy(&mut copied, name, &aside)? {
                return Ok(aside);
            }
        }
        Err(self.too_many_aside(name))
    }

    /// A durable copy of an open file that has no name of its own yet.
    fn copied(
        self: &Arc<Self>,
        file: BorrowedFd<'_>,
        name: &str,
    ) -> Result<SyncedTemporary, StoreError> {
        let mut copy = Temporary::create(self, name, 0)?;
        let mut copied = Ok(());
        self.read_through(file, name, |piece| {
            copied = copy.append(piece);
            copied.is_ok()
        })?;
        copied?;
        copy.sync()
    }

    /// Gives it one; `false` if another file has that.
    fn publish_copy(
        &self,
        copied: &mut SyncedTemporary,
        name: &str,
        aside: &str,
    ) -> Result<bool, StoreError> {
        match self.rename_to_absent(&copied.name.name, aside) {
            Ok(()) => {
                copied.name.exists = false;
                self.sync().map(|()| true)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(self.failure("set aside", name, error)),
        }
    }
}

/// Two file systems, or one without hard links.
fn cannot_link(error: &io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(|errno| {
        matches!(
            errno,
            Errno::XDEV | Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK
        )
    })
}
