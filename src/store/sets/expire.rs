//! Removes the sets that the policy gives up, oldest first.
//! Never decides which: that is `policy`'s. Invariant: a set that is listed is whole, as one that goes leaves the list
//! by a rename before anything of it is removed; its WAL goes only after it (see `purge`).

use std::path::Path;

use walmgr_protocol::names::BackupName;

use super::BackupSets;
use super::condition::Condition;
use super::error::SetError;
use super::lock::{Lease, Mode, NamesLock, lock};
use super::policy::{KeepReason, Keeping, SetDecision};
use crate::audit::AuditEvent;

/// What an expiry did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Expiry {
    /// What was decided on each set, the newest first.
    pub decided: Vec<SetDecision>,
    /// Sets that are gone, oldest first.
    pub removed: Vec<BackupName>,
    /// Sets that should be gone and stay, because somebody reads them.
    pub in_use: Vec<BackupName>,
    /// Why `archive_command` stopped the expiry, and for which set.
    pub refused: Option<(BackupName, String)>,
}

impl BackupSets {
    /// Removes the sets that `keeping` gives up, oldest first. Each is shown to `archive` first,
    /// with the path it has; when that fails, it stays, and so do the ones after it.
    pub(crate) fn expire(
        &self,
        lease: &Lease,
        keeping: Keeping,
        archive: &mut dyn FnMut(&Path) -> Result<(), String>,
    ) -> Result<Expiry, SetError> {
        self.recover(lease)?;
        if keeping.keeps_all() {
            return Ok(Expiry::default());
        }
        let mut expiry = Expiry {
            decided: self.retention_sure(keeping)?.decided,
            ..Expiry::default()
        };
        let goes: Vec<SetDecision> = expiry
            .decided
            .iter()
            .filter(|set| set.goes())
            .cloned()
            .collect();
        for set in goes.into_iter().rev() {
            let (name, text) = (set.name.clone(), set.name.to_string());
            // Somebody took it away.
            let Some(handle) = self.enter_set(&name)? else {
                continue;
            };
            let parent = &self.parent;
            let locked = lock(parent, &handle, Mode::Alone);
            if !locked.map_err(|error| parent.failure("lock", &text, error))? {
                let decided = expiry.decided.iter_mut().find(|it| it.name == name);
                decided.into_iter().for_each(SetDecision::is_read);
                expiry.in_use.push(name);
                continue;
            }
            if let Err(why) = archive(&self.path_of(&text)) {
                expiry.refused = Some((name, why));
                break;
            }
            let names = NamesLock::acquire(parent, &self.lock_name(), Mode::Alone)?;
            // While the names were not locked, somebody may have taken it away, or pinned it.
            if self.is_at(&text, &handle)? && !self.is_pinned(&name)? {
                self.tell(&AuditEvent::SetRemoved {
                    set: text.clone(),
                    because: &set.why(),
                });
                self.set_aside(&text)?;
                expiry.removed.push(name);
            }
            drop(names);
            self.sweep()?;
        }
        Ok(expiry)
    }

    /// What an expiry would do, and which sets somebody reads.
    pub(crate) fn expiry(&self, keeping: Keeping) -> Result<Expiry, SetError> {
        if keeping.keeps_all() {
            return Ok(Expiry::default());
        }
        let decided = self.retention_now(keeping)?.decided;
        let is_read = |set: &&SetDecision| set.keeps == [KeepReason::IsRead];
        let in_use = decided.iter().rev().filter(is_read);
        Ok(Expiry {
            in_use: in_use.map(|set| set.name.clone()).collect(),
            decided,
            ..Expiry::default()
        })
    }

    fn is_pinned(&self, name: &BackupName) -> Result<bool, SetError> {
        let opened = match self.read_set(name) {
            Ok(opened) => opened,
            // Whoever cannot read the label does not know whether it is pinned.
            Err(Condition::Unreadable(why)) => {
                let name = name.clone();
                return Err(SetError::Damaged { name, why });
            }
            Err(_) => None,
        };
        match opened.and_then(|opened| opened.label.ok()) {
            Some(label) => Ok(self.pin_of(&label)?.is_some()),
            None => Ok(false),
        }
    }
}
