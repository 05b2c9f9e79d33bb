//! What `verify` finds, and what it has read: a line of each for a person, a member of each for a program.
//! Never prints. Invariant: a finding names a file, and a place in it wherever that is known.

use walmgr_protocol::names::{BackupName, Lsn, TimelineId};

use crate::wal::commit::CommitAt;

/// How many findings are handed out; the others are counted. A disk that died makes one of every file.
const FINDINGS_MAX: u64 = 10_000;

/// Something that is not as it was archived or sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VerifyFinding {
    /// Whether a recovery may fail, or end early, because of it.
    pub is_critical: bool,
    /// For programs; the words of `status` where it has one for the same.
    pub code: &'static str,
    /// The set that it is in, if it is in one.
    pub set: Option<BackupName>,
    /// The file, in its set or in the archive.
    pub file: String,
    /// Where it begins.
    pub place: FaultPlace,
    /// What was expected and what was found.
    pub why: String,
    /// What to do.
    pub remedy: String,
}

/// A place in a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct FaultPlace {
    /// Bytes from the file's beginning.
    pub offset_bytes: Option<u64>,
    /// The place's LSN, where the file is WAL and it is known.
    pub lsn: Option<Lsn>,
}

/// How much was read, and how much was not, as it was read before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ReadCounts {
    /// Files that were read.
    pub files_read: u64,
    /// Files that have not changed since they were.
    pub files_skipped: u64,
    /// Bytes of them.
    pub bytes_read: u64,
    /// Bytes of those.
    pub bytes_skipped: u64,
}

impl ReadCounts {
    pub(in crate::store) const fn read(&mut self, bytes: u64) {
        self.files_read += 1;
        self.bytes_read += bytes;
    }

    pub(in crate::store) const fn skipped(&mut self, bytes: u64) {
        self.files_skipped += 1;
        self.bytes_skipped += bytes;
    }
}

/// A set, and the times to which it can be restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SetWindow {
    /// Its name.
    pub set: BackupName,
    /// How many files it has.
    pub files: u64,
    /// How many of them are not what was sealed.
    pub damaged_files: u64,
    /// Where its WAL begins.
    pub from: Option<(TimelineId, Lsn)>,
    /// Where the backup ended: before, a recovery is not consistent.
    pub stop: Option<Lsn>,
    /// Up to where a recovery gets.
    pub end: Lsn,
    /// The first commit behind the backup's end.
    pub first: Option<CommitAt>,
    /// The last.
    pub last: Option<CommitAt>,
}

impl SetWindow {
    /// Whether a recovery gets to where it is consistent.
    pub(crate) fn is_recoverable(&self) -> bool {
        let start = self.from.map(|(_, start)| start);
        let needed = self.stop.or(start);
        self.damaged_files == 0 && needed.is_some_and(|needed| self.end >= needed)
    }
}

/// What `verify` did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct VerifyReport {
    /// Finished segments.
    pub segments: u64,
    /// Other finished files: histories and backup histories.
    pub other_files: u64,
    /// Segments in progress.
    pub partials: u64,
    /// Damaged copies beside a good file.
    pub old_copies: u64,
    /// The sets, newest first.
    pub sets: Vec<SetWindow>,
    /// What was read.
    pub counts: ReadCounts,
    /// How many findings may end a recovery.
    pub critical_count: u64,
    /// How many other findings there are.
    pub warning_count: u64,
    /// Why nothing is remembered for the next run, if that is so.
    pub not_remembered: Option<String>,
}

/// What there is to say while it runs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum VerifyStep<'a> {
    /// Something was found.
    Found(&'a VerifyFinding),
    /// A file of so many bytes is about to be read, or was passed over.
    Passed(u64),
}

/// Takes findings: hands them on, and counts them.
pub(in crate::store) struct VerifyFindings<'a> {
    each: &'a mut dyn FnMut(VerifyStep<'_>),
    pub(in crate::store) critical_count: u64,
    pub(in crate::store) warning_count: u64,
}

impl<'a> VerifyFindings<'a> {
    pub(in crate::store) const fn to(each: &'a mut dyn FnMut(VerifyStep<'_>)) -> Self {
        VerifyFindings {
            each,
            critical_count: 0,
            warning_count: 0,
        }
    }

    pub(in crate::store) fn passed(&mut self, bytes: u64) {
        (self.each)(VerifyStep::Passed(bytes));
    }

    pub(in crate::store) fn add(&mut self, finding: &VerifyFinding) {
        if self.critical_count + self.warning_count < FINDINGS_MAX {
            (self.each)(VerifyStep::Found(finding));
        }
        match finding.is_critical {
            true => self.critical_count += 1,
            false => self.warning_count += 1,
        }
    }
}
