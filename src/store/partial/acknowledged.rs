//! The acknowledged end of a partial segment, in a file of its own beside it: `NAME.acknowledged`.
//! Never synced, and never ahead of what is durable of the segment. Invariant: a file that is torn,
//! flipped or another segment's says nothing, rather than something wrong.
//!
//! ```text
//! 000000010000000000000003 00000000/0312A4C8 boot 8f6a…36 characters… crc 1A2B3C4D
//! ```
//!
//! It has 98 bytes, its CRC-32 is that of what stands before ` crc `, and one write replaces it
//! after the records were synced and before their acknowledgement leaves the host. A power cut may
//! bring back an older one or none. What ends before it has lost something all the same.
//!
//! # How far it is believed
//!
//! The file carries the boot of the kernel that it was written under (`boot_id` in `/proc`). While
//! that is this boot, no power was cut since, and a killed process takes nothing with it that was
//! written: then the end is *exact*, and what lies behind it was never acknowledged. A torn tail
//! may look like damage (its last page on the disk, the one before not), and is none there. Under
//! another boot the end is a lower bound only: what lies behind it may have been acknowledged, and
//! its look decides (`wal::behind`).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use walmgr_protocol::names::{Lsn, SegmentName};

use crate::files::{BOOT_BYTES, boot};
use crate::store::error::StoreError;
use crate::store::folder::Folder;

/// What the file is called behind its segment's name.
const SUFFIX: &str = ".acknowledged";

/// The whole file.
const FILE_BYTES: usize = 24 + 1 + 17 + 6 + BOOT_BYTES + 5 + 8 + 1;

/// What was acknowledged of a segment, at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) struct Acknowledged {
    /// The end of the last record that was.
    pub(in crate::store) end: Lsn,
    /// Whether nothing behind it was.
    pub(in crate::store) is_exact: bool,
}

/// The open file of a segment.
pub(super) struct AcknowledgedNote {
    segment: SegmentName,
    file: OwnedFd,
    end: Lsn,
}

impl AcknowledgedNote {
    /// Opens the file of a segment, or creates it with nothing in it, which says nothing.
    pub(super) fn open(
        folder: &Folder,
        segment: SegmentName,
    ) -> Result<AcknowledgedNote, StoreError> {
        let name = name_of(segment);
        let failed = |op| move |error| folder.failure(op, &name_of(segment), error);
        let end = Acknowledged::read(folder, segment)?;
        let file = match folder.disk.reopen(folder.handle(), &name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let file = folder.disk.create(folder.handle(), &name);
                file.map_err(failed("create"))?
            }
            other => other.map_err(failed("open"))?,
        };
        Ok(AcknowledgedNote {
            segment,
            file,
            end: end.map_or(Lsn(0), |found| found.end),
        })
    }

    /// Notes that records up to `end` are acknowledged; they are durable. The note never moves back: an
    /// earlier `end` changes nothing.
    pub(super) fn raise(&mut self, folder: &Folder, end: Lsn) -> Result<(), StoreError> {
        if end <= self.end {
            return Ok(());
        }
        let text = text_of(self.segment, end, boot());
        (folder.disk)
            .write_all(self.file.as_fd(), text.as_bytes(), 0)
            .map_err(|error| folder.failure("write", &name_of(self.segment), error))?;
        self.end = end;
        Ok(())
    }
}

impl Acknowledged {
    /// What is noted of a segment; `None` where nothing that can be believed is.
    pub(in crate::store) fn read(
        folder: &Folder,
        segment: SegmentName,
    ) -> Result<Option<Acknowledged>, StoreError> {
        let text = folder.read_small(&name_of(segment), FILE_BYTES)?;
        Ok(text.and_then(|text| parse(segment, &text)))
    }
}

/// Removes the file; whether that outlives a power cut is told by the next sync of the folder.
pub(in crate::store) fn remove(folder: &Folder, segment: SegmentName) -> Result<(), StoreError> {
    folder.remove(&name_of(segment))
}

/// The segment whose note has this name in the folder.
pub(super) fn segment_of(name: &str) -> Option<SegmentName> {
    name.strip_suffix(SUFFIX)?.parse().ok()
}

pub(super) fn name_of(segment: SegmentName) -> String {
    format!("{segment}{SUFFIX}")
}

pub(in crate::store) fn text_of(segment: SegmentName, end: Lsn, boot: &str) -> String {
    let (high, low) = (end.0 >> 32, end.0 & 0xFFFF_FFFF);
    let said = format!("{segment} {high:08X}/{low:08X} boot {boot:-<BOOT_BYTES$.BOOT_BYTES$}");
    let crc32 = crc32fast::hash(said.as_bytes());
    format!("{said} crc {crc32:08X}\n")
}

pub(in crate::store) fn parse(segment: SegmentName, text: &[u8]) -> Option<Acknowledged> {
    let text = std::str::from_utf8(text).ok()?;
    let mut words = text.split(' ');
    let (high, low) = words.nth(1)?.split_once('/')?;
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    let end = Lsn(number(high)? << 32 | number(low)?);
    let written_under = words.nth(1)?;
    // Every byte counts: it is sound if it is what would be written.
    (text == text_of(segment, end, written_under)).then(|| Acknowledged {
        end,
        is_exact: written_under == boot() && !written_under.starts_with('-'),
    })
}

/// Makes each file one from before a power cut.
#[cfg(test)]
pub(in crate::store) fn write_under_another_boot(partial_wals: &std::path::Path) {
    let entries = std::fs::read_dir(partial_wals).into_iter().flatten();
    for path in entries.map(|entry| entry.unwrap().path()) {
        let name = path.file_name().unwrap().to_str().unwrap();
        if let Some(segment) = segment_of(name)
            && let Some(known) = parse(segment, &std::fs::read(&path).unwrap())
        {
            std::fs::write(&path, text_of(segment, known.end, "another-boot")).unwrap();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(text: &str) -> SegmentName {
        text.parse().unwrap()
    }

    #[test]
    fn fault_101_torn_flipped_or_foreign_note_says_nothing() {
        let name = segment("000000010000000A00000003");
        let end = Lsn(0xA_0312_A4C8);
        for written_under in [boot(), "", "another-boot-0000-0000-000000000000a"] {
            let text = text_of(name, end, written_under);
            assert_eq!(text.len(), FILE_BYTES);
            let is_exact = written_under == boot() && !boot().is_empty();
            let sound = Some(Acknowledged { end, is_exact });
            assert_eq!(parse(name, text.as_bytes()), sound);
            assert_eq!(
                parse(segment("000000010000000A00000004"), text.as_bytes()),
                None
            );
            for cut in 0..text.len() {
                assert_eq!(parse(name, &text.as_bytes()[..cut]), None, "{cut}");
                for bit in 0..8 {
                    let mut flipped = text.clone().into_bytes();
                    flipped[cut] ^= 1 << bit;
                    assert_eq!(parse(name, &flipped), None, "bit {bit} of byte {cut}");
                }
            }
        }
    }
}
