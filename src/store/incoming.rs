//! One file on its way into the archive, from its first byte to its proof.
//! Never holds a lock while bytes arrive. Invariant: whatever fails, no final name was touched
//! and the temporary is gone.

use std::sync::Arc;

use walmgr_protocol::compress::UnpackedBlock;
use walmgr_protocol::limits::{RESERVED_SEGMENTS, SMALL_FILE_BYTES_MAX};
use walmgr_protocol::names::WalFileName;

use super::binding::Binding;
use super::durable::{Durable, Temporary};
use super::error::StoreError;
use super::shared::{Shared, StoredUnderName};
use crate::wal::scan::Scanner;
use crate::wal::segment::{SegmentCheck, Verify};

/// How often the final name may turn out taken by a file that is then set aside or vanishes.
const PUBLISH_ATTEMPTS_MAX: u32 = 3;

/// A file whose bytes are arriving. Dropping it removes what was written.
pub struct Incoming {
    shared: Arc<Shared>,
    name: WalFileName,
    len: u64,
    verify: Verify,
    /// Who sends it.
    by: String,
    /// Whether its sender may decide where a timeline ends.
    may_fail_over: bool,
    /// The text of a history, which says where a timeline begins.
    text: Vec<u8>,
    /// `None` after a failure.
    writing: Option<Writing>,
}

/// What happened to a complete file.
#[derive(Debug)]
pub enum FileSealed {
    /// It is durable under its name, by this upload or by an earlier one of the same bytes.
    Stored(Durable),
    /// Another file of this name is stored and stays.
    Conflict {
        /// Its length in bytes.
        len: u64,
        /// Its CRC-32.
        crc32: u32,
    },
}

struct Writing {
    temporary: Temporary,
    check: SegmentCheck,
}

impl Incoming {
    pub(super) fn begin(
        shared: Arc<Shared>,
        name: WalFileName,
        len: u64,
        verify: Verify,
    ) -> Result<Self, StoreError> {
        let binding = shared.binding()?;
        let limit = len_limit(name, &binding);
        if len > limit {
            return Err(StoreError::TooLarge { name, len, limit });
        }
        shared.monitor.check()?;
        let opened = (shared.completed.ensure_in_place())
            .and_then(|()| {
                let reserved = reserved_bytes(name, &binding);
                (shared.completed).keep_free(&name.to_string(), len, reserved)
            })
            .and_then(|()| {
                let form = shared.compression();
                Temporary::create_in(&shared.completed, (&name.to_string(), len), form)
            });
        let temporary = shared.monitor.watch(opened)?;
        let check = SegmentCheck::new(name, &binding.expected(), verify).noting_changes();
        Ok(Incoming {
            shared,
            name,
            len,
            verify,
            by: String::new(),
            may_fail_over: false,
            text: Vec::new(),
            writing: Some(Writing { temporary, check }),
        })
    }

    /// Says whether its sender may decide where a timeline ends.
    #[must_use]
    pub fn may_fail_over(mut self, may: bool) -> Self {
        self.may_fail_over = may;
        self
    }

    /// Remembers who sends it, for the note that it may get.
    #[must_use]
    pub fn brought_by(mut self, by: &str) -> Self {
        by.clone_into(&mut self.by);
        self
    }

    /// Appends bytes and checks them on the way. After an error the upload is over.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.append(bytes, |temporary| temporary.append(bytes))
    }

    /// Appends a block as it travelled and checks its bytes on the way. After an error the upload is over. A block that
    /// came packed may be stored as it came.
    pub fn write_block(&mut self, block: &UnpackedBlock<'_>) -> Result<(), StoreError> {
        self.append(block.raw(), |temporary| temporary.append_block(block))
    }

    fn append(
        &mut self,
        bytes: &[u8],
        append: impl FnOnce(&mut Temporary) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let Some(mut writing) = self.writing.take() else {
            return Err(StoreError::GivenUp { name: self.name });
        };
        let len = writing
            .temporary
            .written_bytes()
            .saturating_add(bytes.len() as u64);
        if len > self.len {
            let (name, limit) = (self.name, self.len);
            return Err(StoreError::TooLarge { name, len, limit });
        }
        // First, so that they are packed while they are checked.
        let written = append(&mut writing.temporary);
        if let Err(error) = written {
            return self.shared.monitor.watch(Err(error));
        }
        (writing.check.update(bytes)).map_err(|fault| StoreError::of_fault(self.name, &fault))?;
        if matches!(self.name, WalFileName::History(_)) {
            self.text.extend_from_slice(bytes);
        }
        self.writing = Some(writing);
        Ok(())
    }

    /// Makes the file durable under its final name, if it is what the sender committed to.
    pub fn seal(mut self, len: u64, crc32: u32) -> Result<FileSealed, StoreError> {
        let name = self.name;
        let Some(Writing { temporary, check }) = self.writing.take() else {
            return Err(StoreError::GivenUp { name });
        };
        expect_same(name, "length", len, temporary.written_bytes())?;
        expect_same(name, "length", self.len, len)?;
        expect_same(name, "CRC-32", crc32.into(), temporary.crc32().into())?;
        let (summary, scanner) = check
            .finish_at_end()
            .map_err(|fault| StoreError::of_fault(name, &fault))?;
        let records = summary.wal.map_or(0, |wal| wal.records);
        self.shared.monitor.checked(records);
        let checked = CheckedFile {
            name,
            verify: self.verify,
            scanner,
            digest: (len, crc32),
            may_fail_over: self.may_fail_over,
        };
        let origin = (self.text.as_slice(), self.by.as_str());
        let sealed = seal_checked(&self.shared, checked, temporary, origin);
        self.shared.monitor.outcome(sealed)
    }
}

/// A file whose own bytes were found good.
struct CheckedFile {
    name: WalFileName,
    verify: Verify,
    scanner: Option<Scanner>,
    digest: (u64, u32),
    may_fail_over: bool,
}

fn seal_checked(
    shared: &Shared,
    checked: CheckedFile,
    temporary: Temporary,
    (text, by): (&[u8], &str),
) -> Result<FileSealed, StoreError> {
    let CheckedFile { name, verify, .. } = checked;
    let (len, crc32) = checked.digest;
    shared.monitor.check()?;
    let mut synced = temporary.sync()?;
    let (guard, _next) = shared.lock_with_next(name);
    let joined = shared.join(name, verify, checked.scanner, |each| {
        synced.read_pages(each)
    })?;
    let admission = shared.admit(
        (name, checked.digest),
        (text, joined.end()),
        (by, checked.may_fail_over),
    )?;
    for _ in 0..PUBLISH_ATTEMPTS_MAX {
        if shared.make_way(name, &joined)?
            && let Some(durable) = synced.publish(name)?
        {
            shared.keep(&durable, joined, by);
            shared.admitted(&admission, name);
            return Ok(FileSealed::Stored(durable));
        }
        match shared.held(&guard, len, crc32, verify)? {
            StoredUnderName::Identical(durable) => {
                shared.overtaken(&admission, name)?;
                return Ok(FileSealed::Stored(durable));
            }
            StoredUnderName::Different { .. }
                if shared.gives_way(name, text, joined.is_led)?
                    || checked.may_fail_over && shared.gives_way_to_failover(name)? =>
            {
                shared.note_joined(name, &joined)?;
                let content = (text, joined.end());
                let durable = shared.take_place(name, synced, &admission, content, by)?;
                shared.keep(&durable, joined, by);
                shared.admitted(&admission, name);
                return Ok(FileSealed::Stored(durable));
            }
            StoredUnderName::Different { len, crc32 } => {
                drop(admission);
                shared.keep_differing(name, synced, by)?;
                return Ok(FileSealed::Conflict { len, crc32 });
            }
            StoredUnderName::Absent => {}
        }
    }
    Err(StoreError::GivenUp { name })
}

fn expect_same(
    name: WalFileName,
    what: &'static str,
    expected: u64,
    found: u64,
) -> Result<(), StoreError> {
    if expected == found {
        return Ok(());
    }
    Err(StoreError::Mismatch {
        name,
        what,
        expected,
        found,
    })
}

/// What stays free behind a file. Small ones may use half of what others leave.
const fn reserved_bytes(name: WalFileName, binding: &Binding) -> u64 {
    let reserved = RESERVED_SEGMENTS * binding.segment_size.bytes();
    match name {
        WalFileName::Segment(_) | WalFileName::Partial(_) => reserved,
        WalFileName::History(_) | WalFileName::BackupHistory(..) => reserved / 2,
    }
}

/// Known before a byte is written, so that nobody fills the disk with a file that cannot be.
const fn len_limit(name: WalFileName, binding: &Binding) -> u64 {
    match name {
        WalFileName::Segment(_) | WalFileName::Partial(_) => binding.segment_size.bytes(),
        WalFileName::History(_) | WalFileName::BackupHistory(..) => SMALL_FILE_BYTES_MAX,
    }
}
