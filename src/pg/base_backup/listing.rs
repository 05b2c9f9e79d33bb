//! What came of a backup's files: the manifest that lists them, and the notes that mark a set.
//! Never reads a file. Invariant: a set with damaged pages, or without something that was there, says so itself.

use bytes::Bytes;
use walmgr_protocol::names::{RelativePath, SystemId};

use super::{Arrived, BadBlock, Content, Item};
use crate::error::{CommandError, Result};
use crate::pg::backup_label::BackupLabel;
use crate::pg::backup_note::{self, BackupNote};
use crate::pg::group_access;
use crate::pg::layout;
use crate::pg::left_out::{self, PassedOver};
use crate::pg::manifest::{Checksum, FileEntry, ManifestWriter, WalRange};
use crate::pg::sql_backup::FinishedBackup;

/// The note that marks a set with damaged pages; `None` when there are none.
pub(crate) fn note_of_pages(bad_blocks: &[BadBlock]) -> Option<Item> {
    let line = |bad: &BadBlock| format!("{} block {}\n", bad.path, bad.block);
    let text: String = bad_blocks.iter().map(line).collect();
    note(left_out::DAMAGED_PAGES, text)
}

/// The note that marks a set which lacks something; `None` when it lacks nothing.
pub(crate) fn note_of_left_out(left_out: &[PassedOver], is_allowed: bool) -> Option<Item> {
    let line = |left_out: &PassedOver| format!("{left_out}\n");
    let name = match is_allowed {
        true => left_out::LEFT_OUT_ALLOWED,
        false => left_out::LEFT_OUT,
    };
    note(name, left_out.iter().map(line).collect())
}

/// The note that says how the set was made.
pub(crate) fn note_of_backup(made: &BackupNote) -> Option<Item> {
    note(backup_note::NAME, made.text())
}

pub(super) fn note_of_group_access(private: &[RelativePath]) -> Option<Item> {
    Some(Item {
        target: RelativePath::new(group_access::NOTE.as_bytes()).ok()?,
        content: Content::Note(group_access::note(private)?.into()),
    })
}

fn note(name: &str, text: String) -> Option<Item> {
    let target = RelativePath::new(name.as_bytes()).ok();
    target.filter(|_| !text.is_empty()).map(|target| Item {
        target,
        content: Content::Note(text.into()),
    })
}

/// The manifest of what arrived, and of the files that only the seal writes.
pub(crate) fn manifest(
    (major, system_id): (u16, SystemId),
    arrived: Vec<Arrived>,
    finished: &FinishedBackup,
    label: &BackupLabel,
) -> Result<Bytes> {
    let own = [
        (layout::BACKUP_LABEL, Some(&finished.backup_label)),
        (layout::TABLESPACE_MAP, finished.tablespace_map.as_ref()),
    ];
    let own = own.into_iter().filter_map(|(name, content)| {
        let content = content?;
        Some(FileEntry {
            path: RelativePath::new(name.as_bytes()).ok()?,
            size: content.len() as u64,
            last_modified: jiff::Timestamp::now().as_second(),
            checksum: Some(Checksum::Crc32c(crc32c::crc32c(content))),
        })
    });
    let arrived = arrived.into_iter().map(|arrived| FileEntry {
        path: arrived.path,
        size: arrived.digest.len,
        last_modified: arrived.modified_s,
        checksum: Some(Checksum::Crc32c(arrived.digest.crc32c)),
    });
    let write = || -> std::io::Result<Vec<u8>> {
        let major = u8::try_from(major).unwrap_or(u8::MAX);
        let mut writer = ManifestWriter::new(Vec::new(), major, system_id)?;
        for file in arrived.chain(own) {
            writer.add(&file)?;
        }
        writer.finish(&[WalRange {
            timeline: label.first_segment.timeline(),
            start: label.start,
            end: finished.stop_lsn,
        }])
    };
    let written = write();
    let written =
        written.map_err(|error| CommandError::retry("write the backup_manifest").because(error))?;
    Ok(written.into())
}
