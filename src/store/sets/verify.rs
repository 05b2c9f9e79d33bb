//! All of a set compared with its manifest, for `verify`: every file that is listed, and files that are not.
//! Never changes a set and never holds it: whoever restores, rotates or removes it does not wait. Invariant: what is
//! found of a set that is no longer one is not told.

use std::collections::HashSet;
use std::ffi::OsString;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use walmgr_protocol::limits::MANIFEST_BYTES_MAX;
use walmgr_protocol::names::{BackupName, Lsn, RelativePath, TimelineId};

use super::BackupSets;
use super::condition::{Condition, SMALL_FILES};
use super::error::SetError;
use super::reading::{ListedFault, ListedFile, NextListed, SetReading};
use super::round_note::{NotedFile, SetsNote};
use crate::pg::backup_label::BackupLabel;
use crate::pg::layout;
use crate::pg::listed::stored_path;
use crate::pg::manifest::Scan;
use crate::store::durable::TREE_DEPTH_MAX;
use crate::store::folder::Folder;
use crate::store::tree::Node;
use crate::store::verify::finding::{FaultPlace, ReadCounts, VerifyFinding, VerifyFindings};
use crate::store::verify::memory::{VerifyMemory, now_ns, set_note};
use crate::store::verify::note::{NoteSubject, VerifiedFile, VerifiedNote};
use crate::wal::commit::CommitSpan;

/// How much is read again at most after a kill.
const NOTED_EVERY_BYTES: u64 = 4 << 30;

/// What to do about a damaged file of a set.
const REMEDY: &str =
    "put a good copy of the file in its place, or restore another set; make a new backup";

/// Files in a set that a manifest does not list; `pg_verifybackup` passes them over too.
const UNLISTED: [&str; 2] = [layout::BACKUP_MANIFEST, layout::AUTO_CONF];

/// A directory with the name of a set.
pub(in crate::store) struct SetHere {
    pub(in crate::store) name: BackupName,
    pub(in crate::store) root: OwnedFd,
    pub(in crate::store) inode: u64,
    pub(in crate::store) label: Result<BackupLabel, String>,
}

/// What has the name of a set: a directory, or something that is none and why.
pub(in crate::store) type NamedSet = Result<SetHere, (BackupName, String)>;

/// What reading a set came to.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::store) struct SetRead {
    pub(in crate::store) files: u64,
    pub(in crate::store) damaged_files: u64,
    /// Whether nothing speaks against it.
    pub(in crate::store) is_good: bool,
    pub(in crate::store) counts: ReadCounts,
}

/// What was found damaged in sets.
#[derive(Debug, Default)]
pub(in crate::store) struct DamagedSets(SetsNote);

impl DamagedSets {
    /// By an earlier run.
    pub(in crate::store) fn read(folder: &Folder) -> DamagedSets {
        DamagedSets(SetsNote::read_by_verify(folder))
    }

    /// Forgets sets that are not there any more.
    pub(in crate::store) fn retain(&mut self, is_there: impl Fn(u64) -> bool) {
        self.0.damaged.retain(|inode, _| is_there(*inode));
    }

    pub(in crate::store) fn write(
        &self,
        folder: &Arc<Folder>,
    ) -> Result<(), crate::store::StoreError> {
        self.0.write_by_verify(folder)
    }
}

/// A set that is being compared.
struct SetComparison<'a, 'each> {
    sets: &'a BackupSets,
    set: &'a SetHere,
    condition: Condition,
    findings: &'a mut VerifyFindings<'each>,
    /// Files that a round found damaged are read, whatever is remembered.
    doubted: Vec<RelativePath>,
    note: VerifiedNote<u32>,
    read: SetRead,
    first_fault: Option<NotedFile>,
    /// Damaged files that a look at the set as a whole may name too.
    told: Vec<String>,
    /// Hashes of the paths of listed files.
    listed: HashSet<u64>,
    hasher: RandomState,
    unnoted_bytes: u64,
}

impl BackupSets {
    /// Whatever has the name of a set, newest first.
    pub(in crate::store) fn here(&self) -> Result<Vec<NamedSet>, SetError> {
        let mut here = Vec::new();
        for (name, opened) in self.open_now()? {
            here.push(match opened {
                Err(condition) => Err((name, condition.refusal().unwrap_or_default().to_owned())),
                Ok(opened) => Ok(SetHere {
                    inode: self.inode_of(&opened.root)?,
                    name,
                    root: opened.root,
                    label: opened.label,
                }),
            });
        }
        Ok(here)
    }

    /// Whether it still is a set, under whatever name.
    pub(in crate::store) fn is_here(&self, set: &SetHere) -> Result<bool, SetError> {
        self.is_listed(&set.root)
    }

    /// Where the backup ended, as its manifest has it.
    pub(in crate::store) fn backup_end(&self, set: &SetHere) -> Option<(TimelineId, Lsn)> {
        let parent = &self.parent;
        let name = layout::BACKUP_MANIFEST;
        let file = parent
            .disk
            .open_file(set.root.as_fd(), name.as_ref())
            .ok()?;
        let (mut scan, mut fed, mut read_bytes) = (Scan::new(&[]), Ok(()), 0);
        let read = parent.read_through(file.as_fd(), name, |piece| {
            read_bytes += piece.len() as u64;
            fed = scan.feed(piece);
            fed.is_ok() && read_bytes <= MANIFEST_BYTES_MAX
        });
        read.ok()?;
        let scanned = fed.and_then(|()| scan.finish()).ok()?;
        scanned.last_range.map(|range| range.ends_at())
    }

    /// Reads the files of a set that are not remembered, and tells what is not as it was sealed.
    pub(in crate::store) fn verify_files(
        &self,
        set: &SetHere,
        memory: &mut VerifyMemory,
        damaged: &mut DamagedSets,
        has_newer_good: bool,
        findings: &mut VerifyFindings<'_>,
    ) -> Result<SetRead, SetError> {
        let noted = SetsNote::read_all(&self.completed);
        let noted = noted.iter().filter_map(|note| note.damaged.get(&set.inode));
        let mut comparison = SetComparison {
            sets: self,
            set,
            condition: self.condition(set.root.as_fd(), &set.name.to_string(), &set.label),
            findings,
            doubted: noted.map(|noted| noted.path.clone()).collect(),
            note: VerifiedNote::empty(NoteSubject::Set(0)),
            read: SetRead::default(),
            first_fault: None,
            told: Vec::new(),
            listed: HashSet::new(),
            hasher: RandomState::new(),
            unnoted_bytes: 0,
        };
        comparison.run(memory, has_newer_good)?;
        let (mut read, first_fault) = (comparison.read, comparison.first_fault);
        read.is_good = comparison.condition.is_good() && read.damaged_files == 0;
        match first_fault {
            Some(fault) => damaged.0.insert(set.inode, fault),
            None => drop(damaged.0.damaged.remove(&set.inode)),
        }
        Ok(read)
    }
}

impl SetComparison<'_, '_> {
    fn run(&mut self, memory: &mut VerifyMemory, has_newer_good: bool) -> Result<(), SetError> {
        let (sets, set) = (self.sets, self.set);
        let root = set.root.try_clone();
        let root = root.map_err(|error| sets.parent.failure("open", "a backup set", error))?;
        let start = set.label.as_ref().ok().map(|label| label.start);
        // The lines of one that is not sound say nothing.
        let condition = self.condition.refusal().unwrap_or_default();
        let is_sound = file_in(condition) != layout::BACKUP_MANIFEST;
        match SetReading::begin(sets, root, start)? {
            Some(reading) if is_sound => {
                self.compare(reading, memory)?;
                self.tell_additional()?;
            }
            Some(_) => {}
            None => self.tell(
                layout::BACKUP_MANIFEST,
                "unproven",
                "it is absent, so the files of the set cannot be compared with anything",
                "make a new backup, or restore this set for practice",
            )?,
        }
        self.tell_condition(has_newer_good)
    }

    /// Reads what is listed.
    fn compare(
        &mut self,
        mut reading: SetReading,
        memory: &mut VerifyMemory,
    ) -> Result<(), SetError> {
        let subject = NoteSubject::Set(reading.manifest_crc32(self.sets)?);
        let name = set_note(self.set.inode);
        self.note = memory.read(&name, subject);
        let mut number = 0_u32;
        loop {
            let entry = match reading.next_entry(self.sets)? {
                NextListed::End => break,
                NextListed::Faulty(fault) => {
                    self.tell_fault(&fault)?;
                    continue;
                }
                NextListed::Entry(entry) => entry,
            };
            let path = stored_path(entry.path.clone());
            self.listed.insert(self.hasher.hash_one(path.as_bytes()));
            self.read.files += 1;
            match reading.open(self.sets, entry) {
                Ok(None) => {}
                Ok(Some(file)) => self.look_at(number, file, &mut reading, memory)?,
                Err(fault) => {
                    self.note.files.remove(&number);
                    self.tell_fault(&fault)?;
                }
            }
            number = number.saturating_add(1);
            if self.unnoted_bytes >= NOTED_EVERY_BYTES {
                self.unnoted_bytes = 0;
                memory.write(&name, &self.note);
            }
        }
        self.note.files.retain(|known, _| *known < number);
        self.read.counts.bytes_read += reading.manifest_bytes();
        memory.write(&name, &self.note);
        Ok(())
    }

    fn look_at(
        &mut self,
        number: u32,
        mut file: ListedFile,
        reading: &mut SetReading,
        memory: &VerifyMemory,
    ) -> Result<(), SetError> {
        let begun_ns = now_ns();
        self.findings.passed(file.stat.len);
        if let Some(known) = self.note.files.get(&number)
            && memory.is_fresh(known, &file.stat)
            && file.entry.crc32c().is_none_or(|listed| listed == known.crc)
            && file.entry.size == file.stat.len
            && !self.doubted.contains(&file.entry.path)
        {
            self.read.counts.skipped(file.stat.len);
            return Ok(());
        }
        self.note.files.remove(&number);
        let read = loop {
            match reading.read_on(self.sets, &mut file) {
                Ok(false) => {}
                Ok(true) => break file.compare(),
                Err(fault) => break Err(fault),
            }
        };
        match read {
            Ok(file) => {
                self.read.counts.read(file.read_bytes);
                self.unnoted_bytes += file.read_bytes;
                let now = self.sets.open_below(&reading.root, &file.entry.path);
                let is_same = now.is_ok_and(|(_, now)| now == file.stat);
                if let Some((page, count)) = file.bad_pages {
                    return self.tell_pages(&file.entry.path, page, count);
                }
                let crc = file.crc32c;
                let known = VerifiedFile::of(&file.stat, crc, CommitSpan::default(), begun_ns);
                if let Some(known) = known.filter(|_| is_same) {
                    self.note.files.insert(number, known);
                }
                Ok(())
            }
            Err(fault) => {
                self.read.counts.read(fault.stat.map_or(0, |stat| stat.len));
                self.tell_fault(&fault)
            }
        }
    }

    /// A file that is not as it is listed, if it is still the one that was read.
    fn tell_fault(&mut self, fault: &ListedFault) -> Result<(), SetError> {
        let noted = NotedFile::of(&fault.path, fault.stat.as_ref(), &fault.why);
        let (sets, set) = (self.sets, self.set);
        if !sets.is_as_noted(&set.root, &noted) || !sets.is_here(set)? {
            return Ok(());
        }
        self.read.damaged_files += 1;
        self.first_fault.get_or_insert(noted);
        let path = fault.path.to_string();
        if SMALL_FILES.contains(&&*path) {
            self.told.push(path);
        }
        let place = FaultPlace {
            offset_bytes: fault.offset_bytes,
            lsn: None,
        };
        self.add(
            true,
            "damaged",
            &fault.path.to_string(),
            place,
            &fault.why,
            REMEDY,
        );
        Ok(())
    }

    /// Pages that were damaged when the set was made.
    fn tell_pages(&mut self, path: &RelativePath, page: u32, count: u64) -> Result<(), SetError> {
        // The backup has named them, and the set says so.
        if self.condition == Condition::DamagedPages || !self.sets.is_here(self.set)? {
            return Ok(());
        }
        let place = FaultPlace {
            offset_bytes: Some(u64::from(page) * crate::pg::page::PAGE_BYTES as u64),
            lsn: None,
        };
        let why = format!(
            "{count} pages from block {page} of this file on have a wrong checksum, although the file is what \
             its manifest lists: they were damaged on the master"
        );
        let remedy = "look at the master's disk; an older set may have the pages whole";
        self.add(false, "pages", &path.to_string(), place, &why, remedy);
        Ok(())
    }

    fn tell_condition(&mut self, has_newer_good: bool) -> Result<(), SetError> {
        let (code, why, remedy) = match &self.condition.clone() {
            Condition::Good | Condition::LeftOutAllowed => return Ok(()),
            Condition::DamagedPages | Condition::LeftOut if has_newer_good => return Ok(()),
            Condition::Damaged(why) | Condition::DamagedFile(why) | Condition::Unreadable(why) => {
                let file = file_in(why);
                if !self.told.iter().any(|told| told == file) && self.sets.is_here(self.set)? {
                    self.read.damaged_files += 1;
                    let place = FaultPlace::default();
                    self.add(true, "damaged", file, place, why, REMEDY);
                }
                return Ok(());
            }
            Condition::DamagedPages => (
                "backup",
                "it has damaged pages, as the master had: `walmgr_damaged_pages` in it names them",
                "repair the master, and make a new backup",
            ),
            Condition::LeftOut => (
                "backup",
                "it lacks files of the master: `walmgr_left_out` in it names them",
                "mend what it names, and make a new backup",
            ),
        };
        self.tell("", code, why, remedy)
    }

    /// A warning.
    fn tell(
        &mut self,
        file: &str,
        code: &'static str,
        why: &str,
        remedy: &str,
    ) -> Result<(), SetError> {
        if self.sets.is_here(self.set)? {
            self.add(false, code, file, FaultPlace::default(), why, remedy);
        }
        Ok(())
    }

    fn add(
        &mut self,
        is_critical: bool,
        code: &'static str,
        file: &str,
        place: FaultPlace,
        why: &str,
        remedy: &str,
    ) {
        self.findings.add(&VerifyFinding {
            is_critical,
            code,
            set: Some(self.set.name.clone()),
            file: file.to_owned(),
            place,
            why: why.to_owned(),
            remedy: remedy.to_owned(),
        });
    }

    /// Files that are not listed.
    fn tell_additional(&mut self) -> Result<(), SetError> {
        let mut additional = Vec::new();
        let looked = self.look_below(self.set.root.as_fd(), &[], TREE_DEPTH_MAX, &mut additional);
        match looked {
            Ok(()) => {}
            // A set that is being removed, or was changed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let name = self.set.name.to_string();
                return Err(self.sets.parent.failure("list", &name, error).into());
            }
        }
        for path in additional {
            let path = String::from_utf8_lossy(&path).into_owned();
            let why = "its manifest does not list it";
            self.tell(&path, "additional", why, "remove it, if nobody misses it")?;
        }
        Ok(())
    }

    fn look_below(
        &self,
        directory: BorrowedFd<'_>,
        above: &[u8],
        depth_left: usize,
        additional: &mut Vec<Vec<u8>>,
    ) -> io::Result<()> {
        let disk = &self.sets.parent.disk;
        let names: Vec<OsString> = disk.entries(directory)?;
        for name in names {
            let mut path = above.to_vec();
            path.extend_from_slice(name.as_bytes());
            match disk.node(directory, &name) {
                Ok(Node::Directory) => {
                    // WAL that a set brings along is no part of it.
                    if depth_left == 0 || path == layout::PG_WAL.as_bytes() {
                        continue;
                    }
                    let below = match disk.enter(directory, &name) {
                        Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                        below => below?,
                    };
                    path.push(b'/');
                    self.look_below(below.as_fd(), &path, depth_left - 1, additional)?;
                }
                Ok(Node::File(_)) => {
                    let is_listed = self.listed.contains(&self.hasher.hash_one(&path[..]));
                    if !is_listed && !is_unlisted(&path) && additional.len() < ADDITIONAL_MAX {
                        additional.push(path);
                    }
                }
                Ok(Node::Link | Node::Other) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// How many files that are not listed are named: who copied a tree into a set sees it by the first.
const ADDITIONAL_MAX: usize = 100;

/// The file that is named by what speaks against a set as a whole; empty if it is none of the small ones.
fn file_in(why: &str) -> &'static str {
    let name = why.strip_prefix("its ").unwrap_or(why);
    let name = name.split([' ', ':']).next().unwrap_or_default();
    let mut names = SMALL_FILES.into_iter().chain([layout::BACKUP_MANIFEST]);
    names.find(|known| *known == name).unwrap_or_default()
}

/// What a set may have although no manifest lists it.
fn is_unlisted(path: &[u8]) -> bool {
    let names = UNLISTED.iter().chain(&layout::SINCE_THE_BACKUP);
    let mut names = names.map(|name| name.as_bytes());
    names.any(|name| name == path)
}
