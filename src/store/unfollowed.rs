//! What each key has stored that no reader follows, and how much of that stays.
//! Never removes what is followed, or what another key brought. Invariant: what one key can make the disk
//! hold in vain is bounded in bytes.
//!
//! A master's key may always store WAL: refusing genuine WAL fills the master's disk. So where the bound is met,
//! the oldest of the same key's go. The key is the peer's name in the note, without its address.

use std::sync::atomic::Ordering;

use walmgr_protocol::limits::UNFOLLOWED_FILE_BYTES_MIN;
use walmgr_protocol::names::WalFileName;

use super::apart::{brought_by, marked, notes, settle};
use super::archive::Shared;
use super::error::StoreError;

/// Whoever brought a file, wherever it came from.
fn key_of(by: &str) -> &str {
    by.rsplit_once(" (").map_or(by, |(key, _)| key)
}

impl Shared {
    /// Removes what this key brought first, until there is room for one more that nobody follows. Only one
    /// may do so at a time.
    pub(super) fn make_room(&self, name: WalFileName, by: &str) -> Result<(), StoreError> {
        let most = self.unfollowed_bytes_max.load(Ordering::Relaxed);
        let mut own = Vec::new();
        let mut names = marked(&self.completed)?;
        // One that is early only counts, as far as anybody knows.
        names.retain(|one| {
            matches!(
                one,
                WalFileName::Partial(_) | WalFileName::BackupHistory(..)
            )
        });
        names.extend(notes(&self.completed)?.into_keys());
        if (names.len() as u64 + 1).saturating_mul(self.file_bytes()) <= most {
            // The most that they can have together.
            return Ok(());
        }
        for one in names.into_iter().filter(|one| *one != name) {
            let Some(stat) = self.completed.stat_at(&one.to_string())? else {
                continue;
            };
            if key_of(&brought_by(&self.completed, one)?) == key_of(by) {
                own.push((
                    stat.changed_ms,
                    one,
                    stat.len.max(UNFOLLOWED_FILE_BYTES_MIN),
                ));
            }
        }
        let mut sum = own.iter().map(|(_, _, bytes)| bytes).sum::<u64>() + self.file_bytes();
        own.sort();
        for (_, oldest, bytes) in own {
            if sum <= most {
                break;
            }
            // Whoever has the name may be telling its sender that it is stored.
            let Some(_guard) = self.names.try_lock(oldest) else {
                continue;
            };
            let text = oldest.to_string();
            self.checksums.clear(oldest)?;
            self.completed.remove(&text)?;
            self.completed.sync()?;
            settle(&self.completed, oldest)?;
            sum -= bytes;
            tracing::error!(
                "ALARM: {oldest} is removed: nobody follows it, it is the oldest of what {} brought in \
                 vain, and all of that would take more than {} MiB",
                key_of(by),
                most >> 20
            );
        }
        Ok(())
    }

    /// The most that one file takes.
    fn file_bytes(&self) -> u64 {
        let size = self.binding().map(|binding| binding.segment_size.bytes());
        size.unwrap_or_default().max(UNFOLLOWED_FILE_BYTES_MIN)
    }
}
