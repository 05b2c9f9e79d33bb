//! The file that is to take a partial segment's place, and the copies of those that were replaced.
//! Never decides which of the two is right; `rewrite` does. Invariant: it goes away with whoever writes it, unless it
//! took that place.

use walmgr_protocol::names::SegmentName;

use super::file::PartialFile;
use crate::store::durable::TemporaryName;
use crate::store::error::StoreError;
use crate::store::folder::{Folder, TEMPORARY_PREFIX};

/// What a copy of records that a master wrote anew is called behind its segment's name.
pub(super) const DIFFERS: &str = "differs";

/// What a copy of a damaged segment is called.
pub(super) const DAMAGED: &str = "damaged";

/// How many copies of either kind `partial_wals` may hold: a crashed master leaves one, or one a
/// segment that it was ahead of its archiver, and nobody fills the disk with them.
pub(super) const COPIES_MAX: usize = 16;

/// The file that is to take a segment's place.
pub(super) struct Rewriting {
    pub(super) file: PartialFile,
    /// Removes it if it does not come to that.
    temporary: TemporaryName,
    /// The first byte that differs from what is held.
    pub(super) differs_at: u64,
    /// Whether a whole record of the master's own is in it.
    pub(super) has_own_record: bool,
}

impl Rewriting {
    pub(super) fn begin(
        held: &PartialFile,
        segment: SegmentName,
        common: u64,
    ) -> Result<Self, StoreError> {
        let (folder, size) = (held.folder(), held.size());
        let name = format!("{TEMPORARY_PREFIX}{segment}.anew");
        folder.remove(&name)?;
        let file = PartialFile::create_as(folder, segment, name.clone(), size)?;
        let temporary = TemporaryName::of(folder, name);
        let (mut at, mut copied) = (0, Ok(()));
        held.read(0..common, |piece| {
            copied = file.write(at, piece);
            at += piece.len() as u64;
            copied.is_ok()
        })?;
        copied?;
        Ok(Rewriting {
            file,
            temporary,
            differs_at: common,
            has_own_record: false,
        })
    }

    pub(super) fn write(
        &mut self,
        offset: u64,
        bytes: &[u8],
        boundaries: &[u64],
    ) -> Result<(), StoreError> {
        self.has_own_record |= boundaries.iter().any(|end| *end > self.differs_at);
        self.file.write(offset, bytes)
    }

    /// The file, which by now has the segment's own name.
    pub(super) fn in_place(mut self) -> PartialFile {
        self.temporary.taken();
        self.file.renamed()
    }
}

/// Fails when `partial_wals` holds as many copies as it may.
pub(super) fn refuse_more_copies(folder: &Folder, what: &str) -> Result<(), StoreError> {
    let mark = format!(".{what}");
    let names = folder.names()?;
    let copies = names.iter().filter(|name| {
        let of = name.split_once(&mark).map(|(segment, _)| segment);
        of.is_some_and(|segment| segment.parse::<SegmentName>().is_ok())
    });
    let count = copies.count();
    if count < COPIES_MAX {
        return Ok(());
    }
    Err(StoreError::Diverged {
        why: format!(
            "{} holds {count} copies ({mark}) of replaced WAL: look at them and move them away \
            first",
            folder.path().display()
        ),
    })
}
