//! Which sets there are, and holding one while it is read.
//! Never lists what was not sealed: only a sealed set has a `backup_label`. Invariant: what is said
//! of a set was read from its directory, under the lock on the names.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use walmgr_protocol::limits::SMALL_FILE_BYTES_MAX;
use walmgr_protocol::names::BackupName;

use super::BackupSets;
use super::error::SetError;
use super::lock::{Mode, NamesLock, lock};
use crate::pg::backup_label::BackupLabel;
use crate::store::StoreError;
use crate::store::tree::Node;

/// One backup set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetEntry {
    /// Its name.
    pub name: BackupName,
    /// What its `backup_label` says, or why nobody can tell.
    pub label: Result<BackupLabel, String>,
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

/// The directory of a set and what its label says, or why nobody can tell.
type OpenedSet = (OwnedFd, Result<BackupLabel, String>);

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
        let _names = NamesLock::acquire(&self.parent, &self.lock_name(), Mode::Shared)?;
        self.list_locked()
    }

    /// The same for somebody who has the names locked.
    pub(super) fn list_locked(&self) -> Result<Vec<SetEntry>, SetError> {
        let mut sets = Vec::new();
        for text in self.parent.names()? {
            if let Ok(name) = self.newest.parse_sibling(&text)
                && let Some((_, label)) = self.read_set(&name)?
            {
                sets.push(SetEntry { name, label });
            }
        }
        sets.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(sets)
    }

    /// Holds a set for reading: no expiry removes it meanwhile.
    pub fn hold(&self, name: &BackupName) -> Result<HeldSet, SetError> {
        let _names = NamesLock::acquire(&self.parent, &self.lock_name(), Mode::Shared)?;
        self.hold_locked(name, Mode::Shared, None)
    }

    /// Holds a set alone, to take it away: nobody reads it, and no name changes meanwhile.
    pub fn take(&self, name: &BackupName) -> Result<HeldSet, SetError> {
        let names = NamesLock::acquire(&self.parent, &self.lock_name(), Mode::Alone)?;
        self.ensure_no_intent()?;
        self.hold_locked(name, Mode::Alone, Some(names))
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
        let (directory, label) = self.read_set(name)?.ok_or_else(absent)?;
        let path = self.path_of(&text);
        let label = label.map_err(|why| SetError::InTheWay {
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

    /// Opens a set and reads its label; `None` when there is no directory with a label.
    fn read_set(&self, name: &BackupName) -> Result<Option<OpenedSet>, SetError> {
        let text = name.to_string();
        let parent = &self.parent;
        let failed = |op, error| parent.failure(op, &text, error);
        match parent.disk.node(parent.handle(), text.as_ref()) {
            Ok(Node::Directory) => {}
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("examine", error).into()),
        }
        let root = parent.disk.enter(parent.handle(), text.as_ref());
        let root = root.map_err(|error| failed("open set", error))?;
        match parent.disk.node(root.as_fd(), "backup_label".as_ref()) {
            Ok(Node::File(len)) if len > SMALL_FILE_BYTES_MAX => {
                return Ok(Some((root, Err(format!("it has {len} bytes")))));
            }
            Ok(Node::File(_)) => {}
            Ok(_) => return Ok(Some((root, Err("it is no regular file".to_owned())))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("examine the label of", error).into()),
        }
        let label = self.read_label(root.as_fd(), &text)?;
        let label = BackupLabel::parse(&label).map_err(|fault| fault.to_string());
        Ok(Some((root, label)))
    }

    fn read_label(&self, root: BorrowedFd<'_>, set: &str) -> Result<Vec<u8>, StoreError> {
        let parent = &self.parent;
        let name = format!("{set}/backup_label");
        let file = parent.disk.open_file(root, "backup_label".as_ref());
        let file = file.map_err(|error| parent.failure("open", &name, error))?;
        let mut bytes = Vec::new();
        parent.read_through(file.as_fd(), &name, |piece| {
            bytes.extend_from_slice(piece);
            bytes.len() as u64 <= SMALL_FILE_BYTES_MAX
        })?;
        Ok(bytes)
    }
}
