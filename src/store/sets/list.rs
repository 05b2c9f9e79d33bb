//! Which sets there are, and holding one while it is read.
//! Never calls good what was not sealed: only a sealed set has a `backup_label`. Invariant: what is said
//! of a set was read from its directory, under the lock on the names.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use walmgr_protocol::limits::SMALL_FILE_BYTES_MAX;
use walmgr_protocol::message::fetch::{MadeOn, SetDetails};
use walmgr_protocol::names::{BackupName, Lsn, TimelineId};

use super::BackupSets;
use super::condition::Condition;
use super::error::SetError;
use super::lock::{Mode, NamesLock, lock};
use super::round_note::SetsNote;
use super::use_note::{SetUse, UseNote};
use crate::pg::backup_history::seconds_until;
use crate::pg::backup_label::{BackupLabel, FROM_STANDBY};
use crate::pg::backup_note::{self, BackupNote};
use crate::pg::layout;
use crate::pg::manifest::{FileEntry, Scanned};
use crate::store::lineage::TimelineLine;
use crate::store::reach::{history_of, off_line};
use crate::store::tree::Node;
use crate::store::{ArchiveReader, StoreError};
use crate::wal::obstacle::{Met, Obstacle};

/// How often sets are listed anew because one was removed meanwhile.
const LIST_ATTEMPTS: u32 = 5;

/// One backup set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetEntry {
    /// Its name.
    pub name: BackupName,
    /// What its `backup_label` says, or why nobody can tell.
    pub label: Result<BackupLabel, String>,
    /// When it got its label here, which seals it, in milliseconds since 1970 by this host's clock.
    pub sealed_ms: i64,
    /// When its label was written, by the label's own time; never behind `sealed_ms`. Whoever moves an archive or changes
    /// its owner leaves it as it was. Anybody can set it, so it decides no more than the set's week and month.
    pub(crate) written_ms: i64,
    /// Whether it is good, as far as that is seen without reading all of it.
    pub condition: Condition,
    /// What it takes on the disk, as far as that was measured.
    pub(crate) disk_use: Option<SetUse>,
    /// How it was made, if it says so.
    pub(crate) made: Option<BackupNote>,
    /// What its manifest says; nothing where there is none, or none that can be believed.
    pub(crate) manifest: Scanned,
}

impl SetEntry {
    /// The timeline and the place where its backup ended, as its manifest has it.
    pub(crate) fn end_in_manifest(&self) -> Option<(TimelineId, Lsn)> {
        self.manifest.last_range.map(|range| range.ends_at())
    }

    /// What is known of it beside its label. Nothing is an error here: what is not known is not shown.
    pub fn details(&self, archive: Option<&ArchiveReader>) -> SetDetails {
        let Ok(label) = &self.label else {
            return SetDetails::default();
        };
        let history = archive.and_then(|archive| history_of(archive, label));
        let history = history.unwrap_or_default();
        let manifest = &self.manifest;
        let has_name = |file: &&FileEntry| file.path.as_bytes() == layout::BACKUP_LABEL.as_bytes();
        let made_on = match label.from.as_deref() {
            Some("primary" | "master") => Some(MadeOn::Master),
            Some(FROM_STANDBY) => Some(MadeOn::Standby),
            _ => None,
        };
        // Whoever made it wrote the label behind everything else. A server that sends one itself sends it first.
        let sealed = manifest.entries.iter().find(has_name);
        let duration_s = history.duration_s.or_else(|| {
            let took = seconds_until(&label.start_time, sealed?.last_modified);
            took.filter(|seconds| *seconds > 0)
        });
        SetDetails {
            size_bytes: Some(manifest.files_bytes).filter(|bytes| *bytes > 0),
            own_bytes: self.disk_use.and_then(|it| it.own_bytes),
            duration_s,
            stop: self
                .end_in_manifest()
                .map(|(_, stop)| stop)
                .or(history.stop),
            made_on,
        }
    }

    /// Why it is of no use along this line, if its backup ended elsewhere.
    pub(crate) fn off_line(&self, archive: &ArchiveReader, line: &TimelineLine) -> Option<String> {
        let timeline = self.label.as_ref().ok()?.first_segment.timeline();
        let stop = || self.details(Some(archive)).stop;
        let end = self.end_in_manifest();
        let end = end.or_else(|| stop().map(|stop| (timeline, stop)))?;
        (!line.passes(end)).then(|| off_line(end, line))
    }

    /// The label as a list shows it, with what lies `ahead` of its recovery, and the newest timeline if it is of no use
    /// on that; or what is wrong with the set.
    pub fn readable_label(
        self,
        ahead: &[Met],
        of_no_use_on: Option<TimelineId>,
    ) -> Result<BackupLabel, String> {
        if let Some(why) = self.condition.refusal() {
            return Err(why.to_owned());
        }
        let mut label = self.label?;
        if let Some(remark) = self.condition.remark() {
            label.label.push_str(&format!(" ({remark})"));
        }
        if let Some(timeline) = of_no_use_on {
            (label.label).push_str(&format!(" (of no use on timeline {timeline})"));
        }
        for met in ahead {
            let lsn = met.lsn;
            let remark = match met.obstacle {
                Obstacle::Minimal | Obstacle::Reset => format!(" (recoverable up to {lsn} only)"),
                Obstacle::Manager(id) => {
                    format!(" (from {lsn} on with the library of resource manager {id} only)")
                }
                Obstacle::Settings(_) | Obstacle::Tablespace { .. } => continue,
            };
            label.label.push_str(&remark);
            if met.obstacle.is_end() {
                break;
            }
        }
        Ok(label)
    }
}

/// A set that stays where it is and as it is while this exists; its name may change.
pub struct HeldSet {
    name: BackupName,
    path: PathBuf,
    directory: OwnedFd,
    label: BackupLabel,
    pub(super) sets: BackupSets,
    /// Only when it was taken.
    _names: Option<NamesLock>,
}

/// A name of a set, with its directory and label, or what is wrong with it.
pub(super) type ListedName = (BackupName, Result<OpenedSet, Condition>);

/// The directory of a set, and its label.
pub(super) struct OpenedSet {
    pub(super) root: OwnedFd,
    /// What it says, or why nobody can tell.
    pub(super) label: Result<BackupLabel, String>,
    pub(super) sealed_ms: i64,
    written_ms: i64,
}

impl HeldSet {
    /// The name under which it was found.
    pub const fn name(&self) -> &BackupName {
        &self.name
    }

    /// Where it was found. After a rotation another set may be there: read through
    /// [`directory`](Self::directory).
    pub const fn path(&self) -> &PathBuf {
        &self.path
    }

    /// Its directory, whatever its name is by now.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// What its label says.
    pub const fn label(&self) -> &BackupLabel {
        &self.label
    }
}

impl BackupSets {
    /// Every set, newest first.
    pub fn list(&self) -> Result<Vec<SetEntry>, SetError> {
        let mut attempt = 1;
        loop {
            let names = NamesLock::acquire(&self.parent, &self.lock_name(), Mode::Shared)?;
            let opened = self.open_all()?;
            // Whoever wants to change a name does not wait for this.
            drop(names);
            let (entries, all_in_place) = self.look_at(opened)?;
            if all_in_place || attempt == LIST_ATTEMPTS {
                return Ok(entries);
            }
            attempt += 1;
        }
    }

    /// The sets, the newest first, for somebody who has the names locked.
    pub(super) fn list_locked(&self) -> Result<Vec<SetEntry>, SetError> {
        Ok(self.look_at(self.open_all()?)?.0)
    }

    /// The sets as their directories were opened, the newest first. Locks the names itself, and only meanwhile.
    pub(super) fn open_now(&self) -> Result<Vec<ListedName>, SetError> {
        let names = NamesLock::acquire(&self.parent, &self.lock_name(), Mode::Shared)?;
        let opened = self.open_all();
        drop(names);
        opened
    }

    /// Whatever has a set's name is listed: a set that cannot be read may still need its WAL.
    fn open_all(&self) -> Result<Vec<ListedName>, SetError> {
        let mut sets = Vec::new();
        for text in self.parent.names()? {
            if let Ok(name) = self.newest.parse_sibling(&text)
                && let Some(opened) = self.read_set(&name).transpose()
            {
                sets.push((name, opened));
            }
        }
        sets.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(sets)
    }

    /// What the sets are like, and whether each set that is not good still has its name. A set that has
    /// lost its name was being removed, which looks like damage.
    fn look_at(&self, opened: Vec<ListedName>) -> Result<(Vec<SetEntry>, bool), SetError> {
        let mut all_in_place = true;
        let notes = SetsNote::read_all(&self.completed);
        let uses = UseNote::read(&self.completed);
        let mut entries = Vec::with_capacity(opened.len());
        for (name, set) in opened {
            let text = name.to_string();
            let set = match set {
                Ok(set) => set,
                Err(condition) => {
                    let why = condition.refusal().unwrap_or_default().to_owned();
                    entries.push(SetEntry {
                        name,
                        label: Err(why),
                        sealed_ms: i64::MAX,
                        written_ms: i64::MAX,
                        condition,
                        disk_use: None,
                        made: None,
                        manifest: Scanned::default(),
                    });
                    continue;
                }
            };
            let key = self.key_of(&set)?;
            let (mut condition, manifest) = self.examine(set.root.as_fd(), &text, &set.label);
            // Whoever holds a set to read it reads all of it: only lists go by what was found before.
            if condition.refusal().is_none()
                && let Some(why) = (notes.iter()).find_map(|it| self.damaged_file(it, &set.root))
            {
                condition = Condition::DamagedFile(why);
            }
            if condition.refusal().is_some() {
                all_in_place &= self.is_at(&text, &set.root)?;
            }
            entries.push(SetEntry {
                name,
                label: set.label,
                sealed_ms: set.sealed_ms,
                written_ms: set.written_ms,
                condition,
                disk_use: uses.of(key),
                made: self.made(set.root.as_fd(), &text),
                manifest,
            });
        }
        Ok((entries, all_in_place))
    }

    /// The directories of the sets that nothing but a damaged file speaks against, newest first, and where the WAL of
    /// each begins.
    pub(super) fn open_sound(&self) -> Result<Vec<(OwnedFd, Lsn)>, SetError> {
        let opened = self.open_now()?;
        let sound = opened.into_iter().filter_map(|(name, set)| {
            let set = set.ok()?;
            let condition = self.condition(set.root.as_fd(), &name.to_string(), &set.label);
            let start = set.label.ok()?.start;
            condition.refusal().is_none().then_some((set.root, start))
        });
        Ok(sound.collect())
    }

    /// Whether a set's name leads to the directory that was opened, whichever it is by now.
    pub(super) fn is_listed(&self, opened: &OwnedFd) -> Result<bool, SetError> {
        for text in self.parent.names()? {
            if self.newest.parse_sibling(&text).is_ok() && self.is_at(&text, opened)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a name still leads to the directory that was opened.
    pub(super) fn is_at(&self, name: &str, opened: &OwnedFd) -> Result<bool, SetError> {
        let parent = &self.parent;
        let failed = |error| parent.failure("examine", name, error);
        let opened = parent.disk.stat(opened.as_fd()).map_err(failed)?;
        let named = match parent.disk.enter_linked(parent.handle(), name.as_ref()) {
            // A file that has the name of a set is none.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(false);
            }
            other => other.map_err(failed)?,
        };
        let named = parent.disk.stat(named.as_fd()).map_err(failed)?;
        Ok(named.identity == opened.identity)
    }

    /// Holds a set for reading: no expiry removes it meanwhile.
    pub fn hold(&self, name: &BackupName) -> Result<HeldSet, SetError> {
        let names = NamesLock::acquire(&self.parent, &self.lock_name(), Mode::Shared)?;
        let held = self.hold_locked(name, Mode::Shared, None)?;
        drop(names);
        self.refuse_damaged(held)
    }

    /// Holds a set alone, to take it away: nobody reads it, and no name changes meanwhile.
    pub fn take(&self, name: &BackupName) -> Result<HeldSet, SetError> {
        let names = NamesLock::acquire(&self.parent, &self.lock_name(), Mode::Alone)?;
        self.ensure_no_intent()?;
        // Whoever locks the sets by hand has these names locked when the note is written.
        self.ensure_not_locked_by_hand()?;
        let held = self.hold_locked(name, Mode::Alone, Some(names))?;
        self.refuse_damaged(held)
    }

    fn refuse_damaged(&self, held: HeldSet) -> Result<HeldSet, SetError> {
        let text = held.name.to_string();
        let label = Ok(held.label.clone());
        match self.condition(held.directory(), &text, &label).refusal() {
            None => Ok(held),
            Some(why) => {
                let (name, why) = (held.name.clone(), why.to_owned());
                Err(SetError::Damaged { name, why })
            }
        }
    }

    /// The steps of a rotation count on the names that are there.
    pub(super) fn ensure_no_intent(&self) -> Result<(), SetError> {
        match self.read_intent()? {
            None => Ok(()),
            Some(_) => Err(SetError::Busy {
                what: "the list of backup sets".to_owned(),
                holder: "a rotation was interrupted and has to be finished first".to_owned(),
            }),
        }
    }

    fn hold_locked(
        &self,
        name: &BackupName,
        mode: Mode,
        names: Option<NamesLock>,
    ) -> Result<HeldSet, SetError> {
        let text = name.to_string();
        let absent = || SetError::Absent { name: name.clone() };
        let opened = match self.read_set(name) {
            Ok(opened) => opened.ok_or_else(absent)?,
            Err(condition) => {
                let why = condition.refusal().unwrap_or_default().to_owned();
                let name = name.clone();
                return Err(SetError::Damaged { name, why });
            }
        };
        let path = self.path_of(&text);
        let directory = opened.root;
        let label = opened.label.map_err(|why| SetError::InTheWay {
            path: path.clone(),
            why: format!("its backup_label is not one: {why}"),
        })?;
        let locked = lock(&self.parent, &directory, mode);
        if !locked.map_err(|error| self.parent.failure("lock", &text, error))? {
            return Err(SetError::Busy {
                what: format!("backup set {name}"),
                holder: match mode {
                    Mode::Shared => "it is about to be removed".to_owned(),
                    Mode::Alone => "another process reads it".to_owned(),
                },
            });
        }
        Ok(HeldSet {
            name: name.clone(),
            path,
            directory,
            label,
            sets: self.clone(),
            _names: names,
        })
    }

    /// Opens a set and reads its label; `None` when nothing has the name.
    pub(super) fn read_set(&self, name: &BackupName) -> Result<Option<OpenedSet>, Condition> {
        let text = name.to_string();
        let parent = &self.parent;
        let damaged = |why: &str| Err(Condition::Damaged(why.to_owned()));
        let unreadable = |op, error| {
            let failure = parent.failure(op, &text, error);
            Condition::Unreadable(failure.to_string())
        };
        let node = match parent.disk.node(parent.handle(), text.as_ref()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|error| unreadable("examine", error))?,
        };
        let root = match parent.disk.enter_linked(parent.handle(), text.as_ref()) {
            Ok(root) => root,
            Err(error) if error.kind() == io::ErrorKind::NotFound && node == Node::Link => {
                return damaged("it is a symbolic link to what does not exist");
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return damaged("it is no directory, and has the name of a backup set");
            }
            Err(error) => return Err(unreadable("open set", error)),
        };
        let len = match parent
            .disk
            .node(root.as_fd(), layout::BACKUP_LABEL.as_ref())
        {
            Ok(Node::File(len)) => Ok(len),
            Ok(_) => Err("it is no regular file".to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return damaged("it has the name of a backup set, and no backup_label");
            }
            Err(error) => return Err(unreadable("examine the label of", error)),
        };
        let unknown_ms = (i64::MAX, i64::MAX);
        let (label, (sealed_ms, written_ms)) = match len {
            Err(why) => (Err(why), unknown_ms),
            Ok(len) if len > SMALL_FILE_BYTES_MAX => {
                (Err(format!("it has {len} bytes")), unknown_ms)
            }
            Ok(_) => {
                let stat = parent.disk.stat_at(root.as_fd(), layout::BACKUP_LABEL);
                let stat = stat.map_err(|error| unreadable("examine the label of", error))?;
                let bytes = self.read_small(root.as_fd(), &text, layout::BACKUP_LABEL);
                let bytes = bytes.map_err(|error| Condition::Unreadable(error.to_string()))?;
                let label = BackupLabel::parse(&bytes).map_err(|fault| fault.to_string());
                let written_ms = stat.modified_ns.div_euclid(1_000_000);
                (label, (stat.changed_ms, written_ms.min(stat.changed_ms)))
            }
        };
        Ok(Some(OpenedSet {
            root,
            label,
            sealed_ms,
            written_ms,
        }))
    }

    /// How a set was made, if it says so.
    fn made(&self, root: BorrowedFd<'_>, set: &str) -> Option<BackupNote> {
        let node = self.parent.disk.node(root, backup_note::NAME.as_ref());
        let is_small = matches!(node, Ok(Node::File(len)) if len <= backup_note::BYTES_MAX);
        let text = is_small.then(|| self.read_small(root, set, backup_note::NAME));
        BackupNote::parse(&text?.ok()?)
    }

    /// A file in the root of a set, or the beginning of one that is longer than any small file is.
    pub(super) fn read_small(
        &self,
        directory: BorrowedFd<'_>,
        set: &str,
        name: &str,
    ) -> Result<Vec<u8>, StoreError> {
        let parent = &self.parent;
        let shown = format!("{set}/{name}");
        let file = parent.disk.open_file(directory, name.as_ref());
        let file = file.map_err(|error| parent.failure("open", &shown, error))?;
        let mut bytes = Vec::new();
        parent.read_through(file.as_fd(), &shown, |piece| {
            bytes.extend_from_slice(piece);
            bytes.len() as u64 <= SMALL_FILE_BYTES_MAX
        })?;
        Ok(bytes)
    }
}
