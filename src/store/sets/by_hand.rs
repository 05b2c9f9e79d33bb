//! The lock that a person or a script holds on the backup sets: `BACKUPLOCK` from `xlock` to `xrelease`.
//! Never ends by itself: a script over ssh is another process with each line. Invariant: while it is there, nobody
//! makes, renames or removes a set, or takes one away.

use super::BackupSets;
use super::error::SetError;
use super::hand_note::HandNote;
use super::lock::{LEASE_NAME, Lease, Mode, NamesLock, read_text};

impl BackupSets {
    /// Locks the sets until [`release`](Self::release), whatever becomes of this process. What an interrupted rotation
    /// left is seen to first, so that names are what they stay.
    pub(crate) fn lock_by_hand(&self, note: &HandNote) -> Result<(), SetError> {
        let lease = self.lease(&note.who)?;
        self.recover(&lease)?;
        // Whoever takes a set away looks for the note under this lock.
        let _names = NamesLock::acquire(&self.parent, &self.lock_name(), Mode::Alone)?;
        lease.leave_by_hand(note)
    }

    /// Who locked the sets by hand, if anybody did.
    pub(crate) fn locked_by_hand(&self) -> Result<Option<HandNote>, SetError> {
        let Some(file) = self.completed.open_file(LEASE_NAME)? else {
            return Ok(None);
        };
        Ok(HandNote::parse(&read_text(&self.completed, &file)?))
    }

    /// Fails while a person has the sets locked.
    pub(crate) fn ensure_not_locked_by_hand(&self) -> Result<(), SetError> {
        self.locked_by_hand()?
            .map_or(Ok(()), |note| Err(note.refusal()))
    }

    /// Ends the lock of a person that `may_end` agrees with, and says whose that was; `None` if there is none. A
    /// backup's is never ended: `Busy`.
    pub(crate) fn release<E: From<SetError>>(
        &self,
        may_end: impl FnOnce(&HandNote) -> Result<(), E>,
    ) -> Result<Option<HandNote>, E> {
        if self
            .completed
            .open_file(LEASE_NAME)
            .map_err(SetError::from)?
            .is_none()
        {
            return Ok(None);
        }
        let lease = Lease::acquire_unsaid(&self.completed)?;
        let text = lease.text().map_err(SetError::from)?;
        let Some(note) = HandNote::parse(&text) else {
            // What a dead process left.
            lease.removes_file(true);
            return Ok(None);
        };
        may_end(&note)?;
        self.completed.remove(LEASE_NAME).map_err(SetError::from)?;
        self.completed.sync().map_err(SetError::from)?;
        Ok(Some(note))
    }
}
