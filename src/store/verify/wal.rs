//! The archive's WAL, file by file, for `verify`: what is remembered is passed over.
//! Never changes a file. Invariant: a file that goes away or changes while it is read is no finding, and a segment is
//! passed over only if the one before it is the one that it was checked against.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use walmgr_protocol::names::{Lsn, SegmentName, WalFileName};

use super::finding::{FaultPlace, ReadCounts, VerifyFinding, VerifyFindings};
use super::memory::{VerifyMemory, now_ns};
use super::note::{NoteSubject, VerifiedFile, VerifiedNote, WAL_NOTE};
use crate::store::beside::{Beside, CopyName};
use crate::store::binding::Binding;
use crate::store::damage::Damage;
use crate::store::error::StoreError;
use crate::store::folder::Folder;
use crate::store::partial::{PartialEnd, partial_names, vanished};
use crate::store::reader::ArchiveReader;
use crate::store::reading::{FinishedRead, PartialFault, WalFault, WalReading};
use crate::store::rounds::{self, FoundDamage};
use crate::wal::commit::CommitSpan;

/// How much is read again at most after a kill.
const NOTED_EVERY_BYTES: u64 = 4 << 30;

const REMEDY: &str = "archive it again from the master's pg_wal, or copy a good one here; without either make a new \
                      backup";
const PARTIAL_REMEDY: &str = "a running syncdaemon sends it again; else type `sync` on the master";

/// Of a segment that differs although each of its own records holds.
const BESIDE_RECORDS: &str =
    " (between its records, in the record that began in the segment before, or behind a switch)";

/// The WAL of an archive while it is verified.
pub(super) struct WalVerification<'a> {
    pub(super) completed: &'a Arc<Folder>,
    pub(super) partial: &'a Folder,
    pub(super) binding: &'a Binding,
    note: VerifiedNote<WalFileName>,
    damage: FoundDamage,
    /// Files that a round or an earlier run found damaged are read, whatever is remembered.
    doubted: BTreeSet<WalFileName>,
    /// The segments that no reader gets past.
    pub(super) broken: BTreeSet<SegmentName>,
    /// The commits of each segment that was looked at, in progress or not.
    pub(super) commits: BTreeMap<SegmentName, CommitSpan>,
    pub(super) counts: ReadCounts,
    unnoted_bytes: u64,
}

impl<'a> WalVerification<'a> {
    pub(super) fn begin(
        completed: &'a Arc<Folder>,
        partial: &'a Folder,
        binding: &'a Binding,
        memory: &VerifyMemory,
    ) -> Result<WalVerification<'a>, StoreError> {
        let (doubted, _) = rounds::noted(completed, partial)?;
        let damage = memory.folder().map(|folder| FoundDamage::read(folder));
        Ok(WalVerification {
            completed,
            partial,
            binding,
            note: memory.read(WAL_NOTE, NoteSubject::Wal),
            damage: damage.unwrap_or_default(),
            doubted: doubted.into_keys().collect(),
            broken: BTreeSet::new(),
            commits: BTreeMap::new(),
            counts: ReadCounts::default(),
            unnoted_bytes: 0,
        })
    }

    /// Reads finished files, in order. How many were there.
    pub(super) fn finished(
        &mut self,
        names: impl IntoIterator<Item = WalFileName>,
        memory: &mut VerifyMemory,
        findings: &mut VerifyFindings<'_>,
    ) -> Result<u64, StoreError> {
        let (mut count, mut follows_new) = (0, false);
        for name in names {
            let Some(stat) = self.completed.stat_at(&name.to_string())? else {
                continue;
            };
            count += 1;
            findings.passed(stat.len);
            let known = self.note.files.get(&name).copied();
            let is_new = known.is_none_or(|known| !known.is_of(&stat));
            let known = known.filter(|known| memory.is_fresh(known, &stat));
            match known.filter(|_| !follows_new && !self.doubted.contains(&name)) {
                Some(known) => {
                    self.counts.skipped(stat.len);
                    self.remember_commits(name, known.commits);
                }
                None => self.read(name, findings)?,
            }
            follows_new = is_new && matches!(name, WalFileName::Segment(_));
            if self.unnoted_bytes >= NOTED_EVERY_BYTES {
                self.unnoted_bytes = 0;
                self.write(memory);
            }
        }
        Ok(count)
    }

    fn read(
        &mut self,
        name: WalFileName,
        findings: &mut VerifyFindings<'_>,
    ) -> Result<(), StoreError> {
        let begun_ns = now_ns();
        self.note.files.remove(&name);
        let reading = self.reading();
        let Some(read) = reading.finished(name)? else {
            return Ok(());
        };
        let FinishedRead {
            stat,
            raw_bytes,
            crc32,
            commits,
            fault,
        } = read;
        self.counts.read(stat.len);
        self.unnoted_bytes += raw_bytes;
        self.remember_commits(name, commits);
        let Some(fault) = fault else {
            self.damage.forget(name);
            if let Some(known) = VerifiedFile::of(&stat, crc32, commits, begun_ns) {
                self.note.files.insert(name, known);
            }
            return Ok(());
        };
        self.tell(&fault, findings)
    }

    /// Tells of a fault, unless the file that is at fault is gone by now.
    fn tell(
        &mut self,
        fault: &WalFault,
        findings: &mut VerifyFindings<'_>,
    ) -> Result<(), StoreError> {
        let name = fault.name;
        let Some(stat) = self.completed.stat_at(&name.to_string())? else {
            return Ok(());
        };
        self.note.files.remove(&name);
        self.damage.note(name, &stat, &fault.why);
        if let WalFileName::Segment(segment) = name {
            self.broken.insert(segment);
        }
        findings.add(&VerifyFinding {
            is_critical: true,
            code: "damaged",
            set: None,
            file: name.to_string(),
            place: self.place(name, fault.lsn),
            why: match (name, fault.lsn) {
                (WalFileName::Segment(_), None) => format!("{}{}", fault.why, BESIDE_RECORDS),
                _ => fault.why.clone(),
            },
            remedy: REMEDY.to_owned(),
        });
        Ok(())
    }

    /// Reads the segments in progress that are wanted; what is acknowledged of each.
    pub(super) fn in_progress(
        &mut self,
        is_wanted: &dyn Fn(SegmentName) -> bool,
        findings: &mut VerifyFindings<'_>,
    ) -> Result<Vec<PartialEnd>, StoreError> {
        let mut ends = Vec::new();
        let names = partial_names(self.partial)?.into_iter();
        for segment in names.filter(|segment| is_wanted(*segment)) {
            let Some(read) = self.reading().in_progress(segment)? else {
                self.damage.forget_partial(segment);
                continue;
            };
            self.counts.read(read.read_bytes);
            // Behind a finished segment its beginning means nothing.
            self.commits.entry(segment).or_insert(read.commits);
            ends.extend(read.found);
            match read.fault {
                None => self.damage.forget_partial(segment),
                Some(fault) => self.tell_partial(segment, &fault, findings)?,
            }
        }
        let gone = vanished(Some(self.completed), self.partial, self.binding)?;
        for damage in gone.into_iter().filter(|damage| is_wanted(damage.segment)) {
            self.add_partial(damage.segment, &PartialFault::Damaged(damage), findings);
        }
        Ok(ends)
    }

    fn tell_partial(
        &mut self,
        segment: SegmentName,
        fault: &PartialFault,
        findings: &mut VerifyFindings<'_>,
    ) -> Result<(), StoreError> {
        let name = segment.to_string();
        // A push may have finished it meanwhile.
        let Some(stat) = self.partial.stat_at(&name)? else {
            return Ok(());
        };
        if self.completed.stat_at(&name)?.is_some() {
            return Ok(());
        }
        self.damage.note_partial(segment, &stat, &fault.to_string());
        self.add_partial(segment, fault, findings);
        Ok(())
    }

    fn add_partial(
        &self,
        segment: SegmentName,
        fault: &PartialFault,
        findings: &mut VerifyFindings<'_>,
    ) {
        let lsn = match fault {
            PartialFault::Damaged(Damage { end, .. }) => Some(*end),
            PartialFault::Unreadable(_) => None,
        };
        findings.add(&VerifyFinding {
            is_critical: true,
            code: "damaged",
            set: None,
            file: segment.to_string(),
            place: self.place(WalFileName::Segment(segment), lsn),
            why: fault.to_string(),
            remedy: PARTIAL_REMEDY.to_owned(),
        });
    }

    /// Adds findings for what lies beside finished files. Returns how many damaged copies have a good file beside them.
    pub(super) fn beside(
        &self,
        reader: &ArchiveReader,
        findings: &mut VerifyFindings<'_>,
    ) -> Result<u64, StoreError> {
        let mut add = |is_critical, code, file: String, why: String, remedy: String| {
            findings.add(&VerifyFinding {
                is_critical,
                code,
                set: None,
                file,
                place: FaultPlace::default(),
                why,
                remedy,
            });
        };
        for told in reader.apart()? {
            let why = format!(
                "it is set apart and not used: {} (sent by {})",
                told.why, told.by
            );
            let remedy = format!("`choose {}` says what it would take", told.name);
            add(false, "apart", told.name.to_string(), why, remedy);
        }
        for (name, copies) in reader.to_decide()? {
            for copy in copies {
                let (by, file) = (reader.copy_by(&copy)?, copy.to_string());
                let by = if by.is_empty() { "somebody" } else { &by };
                let why = format!("another file of the name {name} is kept, sent by {by}");
                let remedy = format!("`choose {name}` shows both");
                add(true, "differs", file, why, remedy);
            }
        }
        let mut old_copies = 0;
        let names = self.completed.names()?;
        for copy in names.iter().filter_map(|text| CopyName::parse(text)) {
            if copy.kind != Beside::Damaged {
                continue;
            }
            if self.completed.stat_at(&copy.name.to_string())?.is_some() {
                old_copies += 1;
                continue;
            }
            let why = format!("all there is of {} is this damaged copy", copy.name);
            add(true, "damaged", copy.to_string(), why, REMEDY.to_owned());
        }
        Ok(old_copies)
    }

    /// Remembers all that was found good; after a look at the whole archive nothing that is gone.
    pub(super) fn finish(
        &mut self,
        listed: Option<&BTreeSet<WalFileName>>,
        memory: &mut VerifyMemory,
    ) -> Result<(), StoreError> {
        if let Some(listed) = listed {
            self.note.files.retain(|name, _| listed.contains(name));
        }
        self.damage.retain_there(self.completed, self.partial)?;
        self.write(memory);
        Ok(())
    }

    fn write(&self, memory: &mut VerifyMemory) {
        memory.write(WAL_NOTE, &self.note);
        let folder = memory.folder().cloned();
        memory.keep(|| folder.map_or(Ok(()), |folder| self.damage.write(&folder)));
    }

    fn remember_commits(&mut self, name: WalFileName, commits: CommitSpan) {
        if let WalFileName::Segment(segment) = name {
            self.commits.insert(segment, commits);
        }
    }

    fn place(&self, name: WalFileName, lsn: Option<Lsn>) -> FaultPlace {
        let start = match name {
            WalFileName::Segment(segment) => segment.start(self.binding.segment_size),
            _ => None,
        };
        FaultPlace {
            offset_bytes: lsn
                .zip(start)
                .map(|(lsn, start)| lsn.0.saturating_sub(start.0)),
            lsn,
        }
    }

    fn reading(&self) -> WalReading<'a> {
        WalReading {
            completed: self.completed,
            partial: self.partial,
            binding: self.binding,
        }
    }
}
