//! Reads the files of all backup sets, piece after piece, and notes the first of each that is not what was sealed.
//! Never holds a set: whoever restores or removes one does not wait. Invariant: a note counts only as long as
//! its file is the one that was read, in the set that it was read in.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use walmgr_protocol::names::Lsn;

use super::BackupSets;
use super::error::SetError;
use super::reading::{ListedFault, ListedFile, NextListed, SetReading};
use super::round_note::{NotedFile, SetsNote};

/// What a step reads at most: others use the disk too.
const STEP_BYTES: u64 = 1 << 20;

/// Most files in a step; many are empty.
const STEP_FILES: usize = 64;

/// How much is read again at most after a restart, beside one file.
const NOTED_EVERY_BYTES: u64 = 64 << 20;

/// A round through all sets.
pub(crate) struct SetsRound {
    sets: BackupSets,
    note: SetsNote,
    /// The sets that follow; `None` between two rounds.
    pending: Option<VecDeque<(OwnedFd, Lsn)>>,
    reading: Option<ReadSet>,
    unnoted_bytes: u64,
}

/// The set that is being read.
struct ReadSet {
    reading: SetReading,
    /// How many of its files were read, by this process or an earlier one.
    passed: u64,
    /// How many files that an earlier process read are still to be skipped.
    to_skip: u64,
    file: Option<ListedFile>,
}

/// How a set is; `None` while that is not known.
type SetFound = Option<Result<(), ListedFault>>;

impl SetsRound {
    /// Goes on where an earlier process was.
    pub(crate) fn of(sets: BackupSets) -> Self {
        SetsRound {
            note: SetsNote::read(&sets.completed),
            sets,
            pending: None,
            reading: None,
            unnoted_bytes: 0,
        }
    }

    /// Whether an earlier process was amid a round.
    pub(crate) const fn is_under_way(&self) -> bool {
        self.note.at.is_some()
    }

    #[cfg(test)]
    pub(super) const fn note(&self) -> &SetsNote {
        &self.note
    }

    /// Reads on; how many bytes, or `None` when the round is over.
    pub(crate) fn step(&mut self) -> Result<Option<u64>, SetError> {
        if let Some(mut reading) = self.reading.take() {
            let (read_bytes, found) = self.read_on(&mut reading)?;
            match found {
                None => self.go_on_with(reading, read_bytes),
                Some(Ok(())) => drop(self.note.damaged.remove(&reading.reading.inode)),
                Some(Err(fault)) => self.settle(&reading.reading, fault)?,
            }
            return Ok(Some(read_bytes));
        }
        let mut pending = match self.pending.take() {
            Some(pending) => pending,
            None => self.list()?,
        };
        let Some((root, start)) = pending.pop_front() else {
            self.note.at = None;
            self.forget_what_is_gone()?;
            self.write();
            return Ok(None);
        };
        self.pending = Some(pending);
        self.reading = self.begin(root, start)?;
        Ok(Some(0))
    }

    /// The sets that can be read, newest first, from the one on in which an earlier process was.
    fn list(&self) -> Result<VecDeque<(OwnedFd, Lsn)>, SetError> {
        let mut roots = VecDeque::from(self.sets.open_sound()?);
        if let Some((inode, _)) = self.note.at {
            let inodes = roots.iter().map(|(root, _)| self.sets.inode_of(root));
            let inodes = inodes.collect::<Result<Vec<u64>, SetError>>()?;
            if let Some(place) = inodes.iter().position(|one| *one == inode) {
                roots.drain(..place);
            }
        }
        Ok(roots)
    }

    /// Begins a set; `None` for one without a manifest, which cannot be compared with anything.
    fn begin(&mut self, root: OwnedFd, start: Lsn) -> Result<Option<ReadSet>, SetError> {
        let Some(reading) = SetReading::begin(&self.sets, root, Some(start))? else {
            return Ok(None);
        };
        let known = self.note.at.filter(|(known, _)| *known == reading.inode);
        let passed = known.map_or(0, |(_, passed)| passed);
        self.note.at = Some((reading.inode, passed));
        self.write();
        Ok(Some(ReadSet {
            reading,
            passed,
            to_skip: passed,
            file: None,
        }))
    }

    fn go_on_with(&mut self, reading: ReadSet, read_bytes: u64) {
        self.unnoted_bytes += read_bytes;
        if self.unnoted_bytes >= NOTED_EVERY_BYTES {
            self.unnoted_bytes = 0;
            self.note.at = Some((reading.reading.inode, reading.passed));
            self.write();
        }
        self.reading = Some(reading);
    }

    /// How much was read, and how the set is once that is known.
    fn read_on(&mut self, set: &mut ReadSet) -> Result<(u64, SetFound), SetError> {
        let (sets, reading) = (&self.sets, &mut set.reading);
        let (mut read_bytes, mut files) = (0, 0);
        while read_bytes < STEP_BYTES && files < STEP_FILES {
            let ended = match set.file.take() {
                Some(mut file) => {
                    let before = file.read_bytes;
                    let at_end = reading.read_on(sets, &mut file);
                    read_bytes += file.read_bytes - before;
                    match at_end {
                        Ok(false) => {
                            set.file = Some(file);
                            continue;
                        }
                        Ok(true) => file.compare().map(drop),
                        Err(fault) => Err(fault),
                    }
                }
                None => match reading.next_entry(sets)? {
                    NextListed::End => return Ok((read_bytes, Some(Ok(())))),
                    NextListed::Entry(_) if set.to_skip > 0 => {
                        set.to_skip -= 1;
                        continue;
                    }
                    NextListed::Faulty(fault) => Err(fault),
                    NextListed::Entry(entry) => match reading.open(sets, entry) {
                        Ok(Some(file)) => {
                            set.file = Some(file);
                            continue;
                        }
                        Ok(None) => Ok(()),
                        Err(fault) => Err(fault),
                    },
                },
            };
            if let Err(fault) = ended {
                return Ok((read_bytes, Some(Err(fault))));
            }
            set.passed += 1;
            files += 1;
        }
        Ok((read_bytes, None))
    }

    /// Notes what was found, if it is still so and the set is one.
    fn settle(&mut self, reading: &SetReading, fault: ListedFault) -> Result<(), SetError> {
        let noted = NotedFile::of(&fault.path, fault.stat.as_ref(), &fault.why);
        if !self.sets.is_as_noted(&reading.root, &noted) || !self.sets.is_listed(&reading.root)? {
            return Ok(());
        }
        let before = self.note.damaged.get(&reading.inode);
        if before != Some(&noted) {
            let (file, why) = (fault.path.to_string(), &noted.why);
            let set = reading.inode;
            tracing::error!(set, %file, why, "ALARM: a file of a backup set is damaged");
        }
        self.note.insert(reading.inode, noted);
        self.write();
        Ok(())
    }

    fn forget_what_is_gone(&mut self) -> Result<(), SetError> {
        let mut listed = Vec::new();
        for (root, _) in self.sets.open_sound()? {
            listed.push((self.sets.inode_of(&root)?, root));
        }
        let sets = &self.sets;
        self.note.damaged.retain(|inode, noted| {
            let mut named = listed.iter().filter(|(one, _)| one == inode);
            named.any(|(_, root)| sets.is_as_noted(root, noted))
        });
        Ok(())
    }

    /// A note that cannot be written costs the next start its place, and `status` a word.
    fn write(&self) {
        if let Err(error) = self.note.write(&self.sets.completed) {
            tracing::debug!("cannot note the damage found in backup sets: {error}");
        }
    }
}

impl BackupSets {
    /// What a round found damaged in the set in this directory.
    pub(super) fn damaged_file(&self, note: &SetsNote, root: &OwnedFd) -> Option<String> {
        let noted = note.damaged.get(&self.inode_of(root).ok()?)?;
        let is_so = self.is_as_noted(root, noted);
        is_so.then(|| format!("its {}: {}", noted.path, noted.why))
    }

    pub(super) fn is_as_noted(&self, root: &OwnedFd, noted: &NotedFile) -> bool {
        match self.open_below(root, &noted.path) {
            Ok((_, stat)) => noted.is_of(Some(&stat)),
            Err(_) => noted.is_of(None),
        }
    }
}
