//! Makes the newest name free without a new set, as `xrotate` does: every set moves one number up.
//! Never removes a set; `expire` does. Invariant: after a crash at any step whoever comes next finishes the move.

use walmgr_protocol::names::BackupName;

use super::BackupSets;
use super::error::SetError;
use super::lock::{Lease, Mode, NamesLock};
use super::policy::Keeping;

impl BackupSets {
    /// Moves the sets one number up, and says how many moved: none where the newest name is free.
    pub(crate) fn make_room(&self, lease: &Lease) -> Result<u32, SetError> {
        self.recover(lease)?;
        let _names = NamesLock::acquire(&self.parent, &self.lock_name(), Mode::Alone)?;
        let shifted = self.names_to_shift()?;
        if shifted == 0 {
            return Ok(0);
        }
        if let Err(error) = self.write_intent(shifted) {
            // If that fails, too, the next one finishes what this one began.
            let _ = self.withdraw_intent();
            return Err(error);
        }
        self.finish_intent(shifted)?;
        Ok(shifted)
    }

    /// What such a move and the expiry before it would do: which sets go, oldest first, and which move.
    pub(crate) fn room_to_make(&self, keeping: Keeping) -> Result<RoomToMake, SetError> {
        let expiry = self.expiry(keeping)?;
        let goes = expiry.decided.into_iter().rev().filter(|set| set.goes());
        let goes: Vec<BackupName> = goes.map(|set| set.name).collect();
        let mut moves = Vec::new();
        let mut name = Some(self.newest.clone());
        while let Some(from) = name.filter(|name| !goes.contains(name)) {
            if self.parent.stat_at(&from.to_string())?.is_none() {
                break;
            }
            name = from.next();
            moves.push(from);
        }
        Ok(RoomToMake { goes, moves })
    }
}

/// What would be done.
pub(crate) struct RoomToMake {
    /// Sets that go, oldest first.
    pub(crate) goes: Vec<BackupName>,
    /// Sets that get the next number, newest first.
    pub(crate) moves: Vec<BackupName>,
}
