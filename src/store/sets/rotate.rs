//! The names of the sets: the newest is `data.master`, older ones move up; what was set aside goes.
//! Never decides that a set goes (see `policy`). Invariant: after a crash at any step, finishing the intent
//! leaves every set under exactly one name, in their order.
//!
//! The intent, `.data.master.intent`, is JSON: `format` (1) and `shifted`, how many sets move one
//! number up. With 2 of them: `data.master.0` to `.1`, `data.master` to `.0`, and the incoming set, if there is one,
//! to `data.master`. Every target is free when its turn comes, so a target that exists tells that
//! its step was done, and the steps can be gone through again from the first.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;

use serde_json::{Value, json};
use walmgr_protocol::limits::BACKUP_NUMBER_MAX;
use walmgr_protocol::names::BackupName;

use super::BackupSets;
use super::error::SetError;
use super::lock::{LEASE_NAME, Lease, Mode, NamesLock};
use super::names::UNSEALED_LABEL;
use crate::pg::layout;
use crate::store::StoreError;
use crate::store::folder::{TEMPORARY_PREFIX, random_suffix};
use crate::store::tree::Node;

/// The newest format of the intent that this walmgr reads and writes.
const FORMAT: u64 = 1;

/// An intent has some thirty bytes; more is somebody else's file.
const INTENT_BYTES_MAX: usize = 4 << 10;

/// What an interrupted backup or rotation left, and what became of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SetsRecovery {
    /// A rotation was finished: a set that had been sealed got its name.
    pub finished_rotation: bool,
    /// Sets that were never sealed, or that had expired, and are gone.
    pub removed: usize,
}

impl BackupSets {
    /// Finishes a rotation that was interrupted and removes what was never sealed. Whoever starts
    /// a backup, an expiry or a purge does this first; doing it twice does nothing more.
    pub fn recover(&self, lease: &Lease) -> Result<SetsRecovery, SetError> {
        lease.ensure_idle()?;
        self.recover_idle()
    }

    /// As [`BackupSets::recover`], for a process that starts. Takes the lease, in the name of `owner`, only where something is left,
    /// since its file changes the folder of the archive, and so an index of that is as new as before.
    pub fn recover_at_start(&self, owner: &str) -> Result<SetsRecovery, SetError> {
        let names = NamesLock::acquire(&self.parent, &self.lock_name(), Mode::Shared)?;
        // Before the look: whoever makes a set begins with its lease.
        if self.completed.stat_at(LEASE_NAME)?.is_none() && !self.has_leftovers()? {
            // A name may be visible and not durable, since a process died.
            self.parent.sync()?;
            return Ok(SetsRecovery::default());
        }
        drop(names);
        self.recover(&self.lease(owner)?)
    }

    /// Whether there is anything that [`BackupSets::recover`] finishes or removes.
    fn has_leftovers(&self) -> Result<bool, SetError> {
        let (intent, incoming) = (self.intent_name(), self.incoming_name());
        let begun = [self.begun_intent_prefix(), self.expired_prefix()];
        let is_left = |name: &String| {
            *name == intent
                || *name == incoming
                || begun.iter().any(|begun| name.starts_with(begun))
        };
        Ok(self.parent.names()?.iter().any(is_left))
    }

    /// How the names of intents begin that were never put in place.
    fn begun_intent_prefix(&self) -> String {
        format!("{TEMPORARY_PREFIX}{}.", self.intent_name())
    }

    /// Finishes an interrupted rotation for somebody who knows that no set is being received.
    pub(super) fn recover_idle(&self) -> Result<SetsRecovery, SetError> {
        let mut report = SetsRecovery::default();
        let parent = &self.parent;
        let names = NamesLock::acquire(parent, &self.lock_name(), Mode::Alone)?;
        // A name may be visible and not durable, since a process died.
        parent.sync()?;
        let temporary = self.begun_intent_prefix();
        for name in parent.names()? {
            if name.starts_with(&temporary) {
                parent.remove(&name)?;
            }
        }
        match self.read_intent()? {
            Some(shifted) => {
                self.finish_intent(shifted)?;
                report.finished_rotation = true;
            }
            None => self.set_incoming_aside()?,
        }
        drop(names);
        report.removed = self.sweep()?;
        Ok(report)
    }

    /// How many sets have to move for `data.master` to be free.
    pub(super) fn names_to_shift(&self) -> Result<u32, SetError> {
        let mut name = self.newest.clone();
        let mut shifted = 0;
        while self.parent.stat_at(&name.to_string())?.is_some() {
            shifted += 1;
            name = name.next().ok_or_else(|| SetError::InTheWay {
                path: self.parent.path().join(name.to_string()),
                why: format!("there are {BACKUP_NUMBER_MAX} sets and more"),
            })?;
        }
        Ok(shifted)
    }

    pub(super) fn write_intent(&self, shifted: u32) -> Result<(), SetError> {
        let text = format!("{}\n", json!({ "format": FORMAT, "shifted": shifted }));
        Ok(self
            .parent
            .write_small(&self.intent_name(), text.as_bytes())?)
    }

    /// Takes back an intent that may or may not have been written.
    pub(super) fn withdraw_intent(&self) -> Result<(), SetError> {
        self.parent.remove(&self.intent_name())?;
        Ok(self.parent.sync()?)
    }

    pub(super) fn read_intent(&self) -> Result<Option<u32>, SetError> {
        let name = self.intent_name();
        let Some(content) = self.parent.read_small(&name, INTENT_BYTES_MAX)? else {
            return Ok(None);
        };
        let path = || self.parent.path().join(&name);
        let value: Value = serde_json::from_slice(&content).unwrap_or_default();
        let format = value.get("format").and_then(Value::as_u64);
        if let Some(found) = format.filter(|found| *found > FORMAT) {
            return Err(SetError::Store(StoreError::NewerFormat {
                path: path(),
                found,
                supported: FORMAT,
            }));
        }
        let shifted = value.get("shifted").and_then(Value::as_u64);
        let shifted = shifted.and_then(|shifted| u32::try_from(shifted).ok());
        match (format, shifted) {
            (Some(FORMAT), Some(shifted)) if shifted <= BACKUP_NUMBER_MAX + 1 => Ok(Some(shifted)),
            _ => Err(SetError::InTheWay {
                path: path(),
                why: "it is not the intent that a rotation writes".to_owned(),
            }),
        }
    }

    /// Goes through the steps of an intent, those that were done included, and removes it.
    pub(super) fn finish_intent(&self, shifted: u32) -> Result<(), SetError> {
        // Highest number first: names 0 to shifted - 2 move, then the newest.
        for number in (0..shifted).rev() {
            let from = match number.checked_sub(1) {
                None => Some(self.newest.clone()),
                Some(number) => self.newest.numbered(number),
            };
            let to = from.as_ref().and_then(BackupName::next);
            if let (Some(from), Some(to)) = (from, to) {
                self.step(&from.to_string(), &to.to_string())?;
            }
        }
        let incoming = self.incoming_name();
        // There is none where the newest name was only made free (see `make_room`).
        if self.parent.stat_at(&incoming)?.is_some() {
            self.label_incoming(&incoming)?;
            self.step(&incoming, &self.newest.to_string())?;
        }
        self.withdraw_intent()
    }

    fn step(&self, from: &str, to: &str) -> Result<(), SetError> {
        if self.parent.stat_at(to)?.is_some() {
            return Ok(());
        }
        if self.parent.stat_at(from)?.is_none() {
            tracing::warn!(set = from, "a set that was to be renamed is gone");
            return Ok(());
        }
        Ok(self.parent.rename_directory(from, to)?)
    }

    /// Gives the sealed set its `backup_label`.
    fn label_incoming(&self, incoming: &str) -> Result<(), SetError> {
        let parent = &self.parent;
        let failed = |op| move |error| parent.failure(op, incoming, error);
        let root = (parent.disk)
            .enter(parent.handle(), incoming.as_ref())
            .map_err(failed("open set"))?;
        match parent.disk.node(root.as_fd(), UNSEALED_LABEL.as_ref()) {
            Ok(_) => {
                Ok(parent.rename_in_tree(root.as_fd(), UNSEALED_LABEL, layout::BACKUP_LABEL)?)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("examine")(error).into()),
        }
    }

    /// Gives up the set that was on its way.
    pub(super) fn discard_incoming(&self) -> Result<(), SetError> {
        self.set_incoming_aside()?;
        self.sweep().map(drop)
    }

    fn set_incoming_aside(&self) -> Result<(), SetError> {
        let incoming = self.incoming_name();
        match self.parent.stat_at(&incoming)? {
            None => Ok(()),
            Some(_) => self.set_aside(&incoming),
        }
    }

    /// Takes a tree out of sight for good, so that a half removed one is never taken for a set.
    pub(super) fn set_aside(&self, name: &str) -> Result<(), SetError> {
        let random = random_suffix().map_err(|error| self.parent.failure("name", name, error))?;
        let aside = format!("{}{random}", self.expired_prefix());
        Ok(self.parent.rename_directory(name, &aside)?)
    }

    /// Removes every tree that was set aside, and says how many. One that cannot be removed is out
    /// of sight and no reason to make no backups; the next sweep tries again.
    pub(super) fn sweep(&self) -> Result<usize, SetError> {
        let mut removed = 0;
        let prefix = self.expired_prefix();
        for name in self.parent.names()? {
            if name.starts_with(&prefix) {
                match self.remove_tree(&name) {
                    Ok(()) => removed += 1,
                    Err(why) => tracing::warn!(%why, "an expired backup set cannot be removed"),
                }
            }
        }
        Ok(removed)
    }

    fn remove_tree(&self, name: &str) -> Result<(), SetError> {
        let parent = &self.parent;
        let removed = match parent.disk.node(parent.handle(), name.as_ref()) {
            Ok(Node::Directory) => super::remove::tree(parent.disk.as_ref(), parent.handle(), name),
            // A set that lies elsewhere.
            Ok(Node::Link) => self.remove_linked(name),
            // Not ours.
            Ok(_) => parent.disk.remove_name(parent.handle(), name.as_ref()),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(parent.failure("remove", name, error).into())
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

impl BackupSets {
    /// Removes a set that lies elsewhere: the link last, so that a kill leaves the way to the rest.
    fn remove_linked(&self, name: &str) -> io::Result<()> {
        let parent = &self.parent;
        if let Ok(target) = std::fs::canonicalize(parent.path().join(name)) {
            let (above, last) = (target.parent(), target.file_name().and_then(OsStr::to_str));
            if let (Some(above), Some(last)) = (above, last) {
                let above = parent.disk.open_directory(above)?;
                super::remove::content(parent.disk.as_ref(), above.as_fd(), last)?;
                // A mount point stays, empty.
                let _ = parent.disk.remove_directory(above.as_fd(), last.as_ref());
                parent.disk.sync_directory(above.as_fd())?;
            }
        }
        parent.disk.remove_name(parent.handle(), name.as_ref())
    }
}
