//! What a backup has to send beside what an older set of the standby holds: asked once, before the first file.
//! Never decides what changed: the standby knows the WAL. Invariant: a file that was not asked about is sent whole.

use std::collections::HashMap;

use indicatif::HumanBytes;
use walmgr_protocol::limits::{BACKUP_PATHS_MAX, FILE_RANGES_MAX, NEEDED_RANGES_MAX};
use walmgr_protocol::message::parent::{
    BlockRange, FileLen, FileNeed, ParentAnswer, ParentRequest, ParentSet,
};
use walmgr_protocol::names::{Lsn, RelativePath, TimelineId};
use walmgr_protocol::patch::PAGE_BYTES;

use crate::error::Result;
use crate::master::backup::control::BackupControl;
use crate::pg::base_backup::{Content, Item};
use crate::pg::control::ControlFile;
use crate::pg::relation::RelationFile;

/// How long the standby waits for WAL up to the beginning of the backup after the server was told to finish the
/// segment, in seconds: the archiver's pause after a failure, and some more.
pub(crate) const WAL_WAIT_S: u32 = 90;

/// How long the standby waits for that WAL where walmgr may not have the server finish the segment, in seconds. A
/// syncdaemon has sent the records by then.
pub(crate) const UNSWITCHED_WAL_WAIT_S: u32 = 5;

/// Which kind of backup it is.
pub(crate) enum BackupKind {
    /// Everything is sent, and why.
    Full(String),
    /// What this set has is not.
    On(ParentSet),
}

impl BackupKind {
    /// How many backups the set is away from a full one.
    pub(crate) const fn since_full(&self) -> u32 {
        match self {
            BackupKind::Full(_) => 0,
            BackupKind::On(parent) => parent.since_full,
        }
    }
}

/// What is needed of a file of which not all is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NeededBlocks {
    /// The length that was asked about: all behind is needed.
    pub asked_len: u64,
    /// What is needed before that.
    pub ranges: Vec<BlockRange>,
}

/// What is needed, by path in the data directory.
pub(crate) type Needs = HashMap<RelativePath, NeededBlocks>;

/// The question for a parent.
pub(crate) fn question(
    control: &ControlFile,
    (timeline, start): (TimelineId, Lsn),
    wal_wait_s: u32,
) -> ParentRequest {
    ParentRequest {
        start,
        timeline,
        data_checksums: control.data_checksums,
        block_bytes: control.block_bytes,
        segment_blocks: control.segment_blocks,
        wal_wait_s,
    }
}

/// The kind of a backup that got this answer.
pub(crate) fn kind(answer: ParentAnswer) -> BackupKind {
    match answer {
        ParentAnswer::Full(why) => BackupKind::Full(why),
        ParentAnswer::Parent(parent) => BackupKind::On(parent),
    }
}

/// Asks what is needed of these.
pub(crate) async fn ask(control: &mut BackupControl<'_>, items: &[Item]) -> Result<Needs> {
    let mut needs = Needs::new();
    for files in batches(items) {
        let answers = control.compare(files.clone()).await?;
        for (file, need) in files.into_iter().zip(answers) {
            if let FileNeed::Blocks(ranges) = need {
                let asked_len = file.len;
                needs.insert(file.path, NeededBlocks { asked_len, ranges });
            }
        }
    }
    Ok(needs)
}

impl BackupControl<'_> {
    /// What a backup of these would read and send, in words.
    pub(crate) async fn tell(&mut self, items: &[Item]) -> Result<String> {
        let kind = match self.rehearsed() {
            Some(answer) => kind(answer.clone()),
            None => BackupKind::Full("nobody was asked".to_owned()),
        };
        let parent = match kind {
            BackupKind::Full(why) => return Ok(format!("everything: {why}")),
            BackupKind::On(parent) => parent,
        };
        let needs = ask(self, items).await?;
        let bytes = needed_bytes(items, &needs);
        Ok(format!(
            "{} of that, built on {}",
            HumanBytes(bytes),
            parent.name
        ))
    }
}

/// Bytes that these take when only what is needed is sent.
pub(crate) fn needed_bytes(items: &[Item], needs: &Needs) -> u64 {
    let bytes = |item: &Item| match &item.content {
        Content::Directory => 0,
        Content::Note(note) => note.len() as u64,
        Content::File(file) => match needs.get(&file.path) {
            None => file.size,
            Some(needed) => {
                let blocks = needed.ranges.iter().map(|range| u64::from(range.count));
                blocks.sum::<u64>() * PAGE_BYTES
            }
        },
    };
    items.iter().map(bytes).sum()
}

/// The files of relations' rows and indexes, in questions whose answers fit even if every other block is needed.
fn batches(items: &[Item]) -> Vec<Vec<FileLen>> {
    let mut batches: Vec<Vec<FileLen>> = Vec::new();
    let mut ranges = usize::MAX;
    for item in items {
        let Content::File(file) = &item.content else {
            continue;
        };
        let is_asked_about = RelationFile::of(&file.path)
            .is_some_and(|of| of.is_rows() && file.size.is_multiple_of(PAGE_BYTES));
        if !is_asked_about {
            continue;
        }
        let blocks = usize::try_from(file.size / PAGE_BYTES).unwrap_or(usize::MAX);
        let most = blocks.div_ceil(2).min(usize::from(FILE_RANGES_MAX));
        ranges = ranges.saturating_add(most);
        let is_full = |batch: &Vec<FileLen>| batch.len() >= usize::from(BACKUP_PATHS_MAX);
        if ranges > NEEDED_RANGES_MAX || batches.last().is_none_or(is_full) {
            batches.push(Vec::new());
            ranges = most;
        }
        if let Some(batch) = batches.last_mut() {
            batch.push(FileLen {
                path: file.path.clone(),
                len: file.size,
            });
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::walk;

    fn item(path: &str, size: u64) -> Item {
        let path: RelativePath = path.parse().unwrap();
        let modified_s = 0;
        Item {
            target: path.clone(),
            content: Content::File(walk::File {
                path,
                size,
                modified_s,
            }),
        }
    }

    #[test]
    fn fault_204_only_rows_and_indexes_are_asked_about() {
        let items = [
            item("base/5/16384", 8192),
            item("base/5/16384.1", 0),
            item("global/1262", 8192),
            item("base/5/16384_fsm", 8192),
            item("base/5/16384_vm", 8192),
            item("base/5/16384_init", 8192),
            item("base/5/t3_16384", 8192),
            item("base/5/16390", 8191),
            item("base/5/PG_VERSION", 8192),
            item("pg_xact/0000", 8192),
        ];
        let asked = batches(&items).concat();
        let asked: Vec<String> = asked.iter().map(|file| file.path.to_string()).collect();
        assert_eq!(asked, ["base/5/16384", "base/5/16384.1", "global/1262"]);
    }

    #[test]
    fn the_answer_to_each_question_has_room_for_every_other_block() {
        let items: Vec<Item> = (0..500_u64)
            .map(|at| item(&format!("base/5/{}", 16_384 + at), (at % 40) << 24))
            .collect();
        let batches = batches(&items);
        assert_eq!(batches.concat().len(), 500);
        for batch in batches {
            let most = |file: &FileLen| (file.len / PAGE_BYTES).div_ceil(2).min(65_535);
            assert!(batch.len() <= 128 && batch.iter().map(most).sum::<u64>() <= 98_304);
        }
    }
}
