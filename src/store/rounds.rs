//! Reads all of an archive, file after file, and then its backup sets, round after round, and notes what is not
//! what was acknowledged or sealed.
//! Never moves, locks or changes a file of the archive, and never decides how fast it goes. Invariant: a note
//! counts only as long as its file is the one that was read.
//!
//! # `completed_wals/.rounds`
//!
//! ```text
//! next 000000010000000000000042                  where a receiver that is started goes on
//! damaged 131085 1767225600123 00000001…07 its CRC-32 is …
//! partial 131090 0 00000001…0A                   its records end before what was acknowledged
//! check 01234567                                 CRC-32 of the lines above
//! ```
//!
//! The numbers are a file's inode and, of a finished one, the time of its last change in milliseconds since
//! 1970: whatever takes its place is another file, and has no note. A segment in progress changes all the
//! time; whoever reads its note looks at it again. One that is absent, torn or flipped says nothing, and a
//! round begins anew.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use walmgr_protocol::names::{SegmentName, WalFileName};

use super::binding::Binding;
use super::compress::clear_leftovers;
use super::disk::FileStat;
use super::error::StoreError;
use super::folder::Folder;
use super::health::Monitor;
use super::partial::partial_names;
use super::reading::WalReading;
use super::sets::{BackupSets, SetError, SetsRound};
use super::shared::Archive;
use super::verify::note::VERIFIED_NAME;

/// The note's name.
const NOTE_NAME: &str = ".rounds";

/// The name of the note that `verify` writes in its folder.
const VERIFY_NOTE_NAME: &str = "damaged";

/// How many damaged files are noted: one is enough to have somebody look.
const NOTED_MAX: usize = 128;

/// How much is said about one.
const WHY_CHARS_MAX: usize = 240;

/// Its lines at their longest.
const NOTE_BYTES_MAX: usize = (NOTED_MAX + 2) * (WHY_CHARS_MAX * 4 + 128);

/// How many names are taken from one listing of a folder, which may hold hundreds of thousands.
const LISTED_MAX: usize = 256;

/// One file that a round reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum RoundFile {
    Finished(WalFileName),
    Partial(SegmentName),
}

/// What is known to be damaged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct DamageNote {
    next: Option<WalFileName>,
    damaged: BTreeMap<RoundFile, NotedDamage>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct NotedDamage {
    inode: u64,
    changed_ms: i64,
    why: String,
}

/// What reading one file came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stride {
    /// How much was read.
    pub read_bytes: u64,
    /// Whether the round ends here.
    pub is_round_done: bool,
}

/// A round that goes on.
pub struct Rounds {
    archive: Archive,
    completed: Arc<Folder>,
    partial: Arc<Folder>,
    note: DamageNote,
    pending: VecDeque<RoundFile>,
    left: UnlistedFiles,
    sets: Option<SetsRound>,
}

/// What a round has not listed yet.
#[derive(Debug, Clone, Copy)]
enum UnlistedFiles {
    /// Finished files from this one on.
    Finished(Option<WalFileName>),
    Partials,
    /// No WAL: only sets.
    Sets,
}

impl Archive {
    /// Goes on with the round that an earlier process left.
    pub fn rounds(&self, sets: Option<BackupSets>) -> Result<Rounds, StoreError> {
        let shared = &self.shared;
        // What fails here says nothing about what is stored.
        let open = |folder: &Folder| folder.again(Arc::new(Monitor::new())).map(Arc::new);
        let completed = open(&shared.completed)?;
        let note = DamageNote::read(&completed, NOTE_NAME);
        let sets = sets.map(SetsRound::of);
        Ok(Rounds {
            archive: self.clone(),
            left: match &sets {
                Some(sets) if sets.is_under_way() => UnlistedFiles::Sets,
                _ => UnlistedFiles::Finished(note.next),
            },
            sets,
            note,
            partial: open(&shared.partial)?,
            completed,
            pending: VecDeque::new(),
        })
    }
}

impl Rounds {
    /// Reads the next file. An archive that belongs to nobody yet is read in no time.
    pub fn step(&mut self) -> Result<Stride, SetError> {
        let done = Stride {
            read_bytes: 0,
            is_round_done: true,
        };
        let Some(binding) = self.archive.binding() else {
            return Ok(done);
        };
        self.list()?;
        let Some(place) = self.pending.pop_front() else {
            if let Some(sets) = &mut self.sets
                && let Some(read_bytes) = sets.step()?
            {
                return Ok(Stride {
                    read_bytes,
                    is_round_done: false,
                });
            }
            self.left = UnlistedFiles::Finished(None);
            self.note.next = None;
            self.note
                .forget_what_is_gone(&self.completed, &self.partial)?;
            self.write();
            return Ok(done);
        };
        let (read_bytes, faults) = match place {
            RoundFile::Finished(name) => self.finished(name, &binding)?,
            RoundFile::Partial(segment) => self.in_progress(segment, &binding)?,
        };
        self.settle(place, faults)?;
        Ok(Stride {
            read_bytes,
            is_round_done: false,
        })
    }

    /// The next names of the round; none when it is over.
    fn list(&mut self) -> Result<(), StoreError> {
        while self.pending.is_empty() {
            match self.left {
                UnlistedFiles::Finished(from) => {
                    if from.is_none() {
                        clear_leftovers(&self.completed)?;
                    }
                    let listing = self.archive.shared.listing()?;
                    let mut names = listing.starting_at(from, LISTED_MAX + 1).into_iter();
                    self.pending = names
                        .by_ref()
                        .take(LISTED_MAX)
                        .map(RoundFile::Finished)
                        .collect();
                    self.left = names.next().map_or(UnlistedFiles::Partials, |next| {
                        UnlistedFiles::Finished(Some(next))
                    });
                    self.note.next = match self.pending.front() {
                        Some(RoundFile::Finished(first)) => Some(*first),
                        _ => None,
                    };
                    self.write();
                }
                UnlistedFiles::Partials => {
                    let partials = partial_names(&self.partial)?.into_iter();
                    self.pending = partials.map(RoundFile::Partial).collect();
                    self.left = UnlistedFiles::Sets;
                }
                UnlistedFiles::Sets => break,
            }
        }
        Ok(())
    }

    fn finished(&self, name: WalFileName, binding: &Binding) -> Result<(u64, Faults), StoreError> {
        let Some(read) = self.reading(binding).finished(name)? else {
            return Ok((0, Faults::new()));
        };
        let fault = read.fault.map(|it| (RoundFile::Finished(it.name), it.why));
        Ok((read.raw_bytes, fault.into_iter().collect()))
    }

    fn in_progress(
        &self,
        segment: SegmentName,
        binding: &Binding,
    ) -> Result<(u64, Faults), StoreError> {
        let Some(read) = self.reading(binding).in_progress(segment)? else {
            return Ok((0, Faults::new()));
        };
        let fault = (read.fault).map(|fault| (RoundFile::Partial(segment), fault.to_string()));
        Ok((read.read_bytes, fault.into_iter().collect()))
    }

    fn reading<'a>(&'a self, binding: &'a Binding) -> WalReading<'a> {
        WalReading {
            completed: &self.completed,
            partial: &self.partial,
            binding,
        }
    }

    /// Notes what was found of a file, and forgets what was found of it before.
    fn settle(&mut self, place: RoundFile, faults: Faults) -> Result<(), StoreError> {
        let mut found = BTreeMap::new();
        for (place, why) in faults {
            let Some(stat) = stat_of(&self.completed, &self.partial, place)? else {
                continue;
            };
            found.insert(place, NotedDamage::of(place, &stat, &why));
        }
        let before = self.note.damaged.clone();
        if !found.contains_key(&place) {
            self.note.damaged.remove(&place);
        }
        for (place, noted) in found {
            let is_known = before.get(&place) == Some(&noted);
            if !is_known {
                let (what, why) = (place.text(), &noted.why);
                tracing::error!(file = %what, why, "ALARM: a stored file is damaged");
            }
            if is_known || self.note.damaged.len() < NOTED_MAX {
                self.note.damaged.insert(place, noted);
            }
        }
        if self.note.damaged != before {
            self.write();
        }
        Ok(())
    }

    /// A note that cannot be written costs the next start its place, and `status` a word.
    fn write(&self) {
        let text = self.note.text();
        if let Err(error) = self.completed.write_small(NOTE_NAME, text.as_bytes()) {
            tracing::debug!("{NOTE_NAME} is not written: {error}");
        }
    }
}

/// The damage that `verify` found in files of the archive.
#[derive(Debug, Default)]
pub(super) struct FoundDamage(DamageNote);

impl FoundDamage {
    /// What an earlier run found.
    pub(super) fn read(folder: &Folder) -> FoundDamage {
        FoundDamage(DamageNote::read(folder, VERIFY_NOTE_NAME))
    }

    /// Notes what is wrong with a finished file.
    pub(super) fn note(&mut self, name: WalFileName, stat: &FileStat, why: &str) {
        self.insert(RoundFile::Finished(name), stat, why);
    }

    /// Notes what is wrong with a segment in progress.
    pub(super) fn note_partial(&mut self, segment: SegmentName, stat: &FileStat, why: &str) {
        self.insert(RoundFile::Partial(segment), stat, why);
    }

    /// Forgets a finished file, which was found good.
    pub(super) fn forget(&mut self, name: WalFileName) {
        self.0.damaged.remove(&RoundFile::Finished(name));
    }

    /// Forgets a segment in progress.
    pub(super) fn forget_partial(&mut self, segment: SegmentName) {
        self.0.damaged.remove(&RoundFile::Partial(segment));
    }

    /// Forgets what is not there any more.
    pub(super) fn retain_there(
        &mut self,
        completed: &Folder,
        partial: &Folder,
    ) -> Result<(), StoreError> {
        self.0.forget_what_is_gone(completed, partial)
    }

    /// Writes the note.
    pub(super) fn write(&self, folder: &Arc<Folder>) -> Result<(), StoreError> {
        folder.write_small(VERIFY_NOTE_NAME, self.0.text().as_bytes())
    }

    fn insert(&mut self, place: RoundFile, stat: &FileStat, why: &str) {
        if self.0.damaged.len() < NOTED_MAX || self.0.damaged.contains_key(&place) {
            let noted = NotedDamage::of(place, stat, why);
            self.0.damaged.insert(place, noted);
        }
    }
}

/// What is wrong with which files.
type Faults = BTreeMap<RoundFile, String>;

/// The finished files that are known to be damaged, by a round or by `verify`, and the segments in progress that were.
pub(super) fn noted(
    completed: &Folder,
    partial: &Folder,
) -> Result<(BTreeMap<WalFileName, String>, BTreeSet<SegmentName>), StoreError> {
    let (mut finished, mut partials) = (BTreeMap::new(), BTreeSet::new());
    let by_verify = completed.below(VERIFIED_NAME).ok().flatten();
    let by_verify = by_verify.map(|folder| DamageNote::read(&folder, VERIFY_NOTE_NAME));
    let by_rounds = DamageNote::read(completed, NOTE_NAME);
    let damaged = by_verify.unwrap_or_default().damaged.into_iter();
    for (place, noted) in damaged.chain(by_rounds.damaged) {
        let stat = stat_of(completed, partial, place)?;
        if stat.is_none_or(|stat| !noted.is_of(place, &stat)) {
            continue;
        }
        match place {
            RoundFile::Finished(name) => drop(finished.insert(name, noted.why)),
            RoundFile::Partial(segment) => drop(partials.insert(segment)),
        }
    }
    Ok((finished, partials))
}

fn stat_of(
    completed: &Folder,
    partial: &Folder,
    place: RoundFile,
) -> Result<Option<FileStat>, StoreError> {
    match place {
        RoundFile::Finished(name) => completed.stat_at(&name.to_string()),
        RoundFile::Partial(segment) => partial.stat_at(&segment.to_string()),
    }
}

impl RoundFile {
    fn text(self) -> String {
        match self {
            RoundFile::Finished(name) => name.to_string(),
            RoundFile::Partial(segment) => segment.to_string(),
        }
    }
}

impl NotedDamage {
    fn of(place: RoundFile, stat: &FileStat, why: &str) -> NotedDamage {
        let why = why.chars().take(WHY_CHARS_MAX);
        NotedDamage {
            inode: stat.identity.inode,
            changed_ms: match place {
                RoundFile::Finished(_) => stat.changed_ms,
                RoundFile::Partial(_) => 0,
            },
            why: why
                .map(|char| if char.is_control() { ' ' } else { char })
                .collect(),
        }
    }

    fn is_of(&self, place: RoundFile, stat: &FileStat) -> bool {
        let found = NotedDamage::of(place, stat, "");
        (found.inode, found.changed_ms) == (self.inode, self.changed_ms)
    }
}

impl DamageNote {
    fn read(folder: &Folder, name: &str) -> DamageNote {
        let text = folder.read_small(name, NOTE_BYTES_MAX).ok().flatten();
        text.and_then(|text| DamageNote::parse(&text))
            .unwrap_or_default()
    }

    fn forget_what_is_gone(
        &mut self,
        completed: &Folder,
        partial: &Folder,
    ) -> Result<(), StoreError> {
        let mut kept = BTreeMap::new();
        for (place, noted) in std::mem::take(&mut self.damaged) {
            let stat = stat_of(completed, partial, place)?;
            if stat.is_some_and(|stat| noted.is_of(place, &stat)) {
                kept.insert(place, noted);
            }
        }
        self.damaged = kept;
        Ok(())
    }

    fn text(&self) -> String {
        let mut text = self
            .next
            .map_or_else(String::new, |next| format!("next {next}\n"));
        for (
            place,
            NotedDamage {
                inode,
                changed_ms,
                why,
            },
        ) in &self.damaged
        {
            let word = match place {
                RoundFile::Finished(_) => "damaged",
                RoundFile::Partial(_) => "partial",
            };
            text += &format!("{word} {inode} {changed_ms} {} {why}\n", place.text());
        }
        let check = crc32fast::hash(text.as_bytes());
        text + &format!("check {check:08X}\n")
    }

    /// Sound only if every byte of it is what would be written.
    fn parse(content: &[u8]) -> Option<DamageNote> {
        let told = std::str::from_utf8(content).ok()?;
        let (above, _) = told.rsplit_once("check ")?;
        let mut note = DamageNote::default();
        for line in above.lines() {
            let mut words = line.splitn(5, ' ');
            let word = words.next()?;
            if word == "next" {
                note.next = Some(words.next()?.parse().ok()?);
                continue;
            }
            let (inode, changed_ms) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
            let name = words.next()?;
            let place = match word {
                "damaged" => RoundFile::Finished(name.parse().ok()?),
                "partial" => RoundFile::Partial(name.parse().ok()?),
                _ => return None,
            };
            let why = words.next()?.to_owned();
            let noted = NotedDamage {
                inode,
                changed_ms,
                why,
            };
            note.damaged.insert(place, noted);
        }
        (note.text() == told).then_some(note)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::survey::survey;
    use crate::store::testing::{
        assert_stored, history_file, new_archive, open, real, scratch_folder, segment,
    };
    use proptest::prelude::*;

    fn round(rounds: &mut Rounds) -> u64 {
        let mut read_bytes = 0;
        loop {
            let stride = rounds.step().unwrap();
            read_bytes += stride.read_bytes;
            if stride.is_round_done {
                return read_bytes;
            }
        }
    }

    #[test]
    fn fault_107_round_notes_changed_files_and_forgets_mended_ones() {
        let folder = scratch_folder();
        let places = new_archive(folder.path());
        let archive = open(&places);
        let files: Vec<_> = (3..12).map(|number| segment(number, 1)).collect();
        for file in &files {
            assert_stored(&archive, file);
        }
        assert_stored(&archive, &history_file(2, "promoted"));
        let look = || survey(&places, None, &real(), None).unwrap();
        let mut rounds = archive.rounds(None).unwrap();
        assert!(round(&mut rounds) > 9 << 20);
        assert_eq!(look().damaged_count, 0);

        let spoilt = &files[1];
        let path = places.completed_wals.join(spoilt.name.to_string());
        let mut bytes = spoilt.bytes.clone();
        bytes[700_000] ^= 4;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(look().damaged_count, 0, "nobody has read it");
        round(&mut rounds);
        let told = look();
        assert_eq!(told.damaged_count, 1);
        assert!(
            told.damaged.starts_with(&spoilt.name.to_string()),
            "{}",
            told.damaged
        );
        // The next process knows too, and goes on where this one was.
        assert_eq!(archive.rounds(None).unwrap().note, rounds.note);
        // Whatever takes its place has no note.
        std::fs::remove_file(&path).unwrap();
        assert_eq!(look().damaged_count, 0);
        std::fs::write(&path, &spoilt.bytes).unwrap();
        assert_eq!(look().damaged_count, 0);
        round(&mut rounds);
        assert!(rounds.note.damaged.is_empty());
        assert_eq!(look().damaged_count, 0);
    }

    #[test]
    fn a_round_goes_on_where_the_one_before_was_cut() {
        let folder = scratch_folder();
        let places = new_archive(folder.path());
        let archive = open(&places);
        for number in 3..7 {
            assert_stored(&archive, &segment(number, 1));
        }
        let mut rounds = archive.rounds(None).unwrap();
        rounds.note.next = Some(segment(5, 1).name);
        rounds.write();
        let mut rounds = archive.rounds(None).unwrap();
        assert_eq!(round(&mut rounds), 2 << 20);
        assert_eq!(round(&mut rounds), 4 << 20);
    }

    #[test]
    fn fault_107_a_note_with_a_flipped_bit_says_nothing() {
        let name: WalFileName = "000000010000000000000002".parse().unwrap();
        let segment = "000000010000000000000003".parse().unwrap();
        let noted = |why: &str| NotedDamage {
            inode: 7,
            changed_ms: -3,
            why: why.to_owned(),
        };
        let damaged = [
            (RoundFile::Finished(name), noted("its CRC-32 is wrong")),
            (RoundFile::Partial(segment), noted("")),
        ];
        let note = DamageNote {
            next: Some(name),
            damaged: damaged.into_iter().collect(),
        };
        let text = note.text().into_bytes();
        assert_eq!(DamageNote::parse(&text), Some(note));
        for bit in 0..text.len() * 8 {
            let mut flipped = text.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(DamageNote::parse(&flipped), None, "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = DamageNote::parse(&text);
        }
    }
}
