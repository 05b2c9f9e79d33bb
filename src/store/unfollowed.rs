//! What each key has stored that no reader follows, and how much of that may be.
//! Never removes WAL or a history, nor what another key brought. Invariant: what one key can make the disk
//! hold in vain is bounded in bytes, and what was acknowledged and could be chosen later stays.
//!
//! Where the bound is met, no more is set apart of that key: PostgreSQL keeps what is refused. Of what no
//! reader ever asks for (`.partial`, `.backup`) the oldest goes instead, since a refusal would hold up the WAL
//! behind it. The key is the peer's name in the note, without its address.

use std::sync::atomic::Ordering;

use walmgr_protocol::limits::UNFOLLOWED_FILE_BYTES_MIN;
use walmgr_protocol::names::WalFileName;

use super::apart_notes::{brought_by, copy_by, marked, notes, settle};
use super::beside::{Beside, CopyName};
use super::error::StoreError;
use super::shared::Shared;

/// Whoever brought a file, wherever it came from.
fn key_of(by: &str) -> &str {
    by.rsplit_once(" (").map_or(by, |(key, _)| key)
}

/// What no reader asks for, whatever becomes of the timelines.
fn is_never_read(name: WalFileName) -> bool {
    matches!(
        name,
        WalFileName::Partial(_) | WalFileName::BackupHistory(..)
    )
}

impl Shared {
    /// Sees to it that this key has room for one more that nobody follows, or refuses it. Only one may do so at
    /// a time.
    pub(super) fn make_room(&self, name: WalFileName, by: &str) -> Result<(), StoreError> {
        let bytes_max = self.unfollowed_bytes_max.load(Ordering::Relaxed);
        let (names, displaced) = if is_never_read(name) {
            (marked(&self.completed)?, Vec::new())
        } else {
            let notes = notes(&self.completed)?.into_keys().collect();
            (notes, self.displaced()?)
        };
        let count = (names.len() + displaced.len()) as u64 + 1;
        if count.saturating_mul(self.file_bytes()) <= bytes_max {
            // The most that they can have together.
            return Ok(());
        }
        let mut own = Vec::new();
        // One that is early only counts, as far as anybody knows.
        let names = names.into_iter().filter(|one| *one != name);
        for one in names.filter(|one| is_never_read(*one) == is_never_read(name)) {
            let Some(stat) = self.completed.stat_at(&one.to_string())? else {
                continue;
            };
            if key_of(&brought_by(&self.completed, one)?) == key_of(by) {
                let bytes = stat.len.max(UNFOLLOWED_FILE_BYTES_MIN);
                own.push((stat.changed_ms, one, bytes));
            }
        }
        let mut sum = own.iter().map(|(_, _, bytes)| bytes).sum::<u64>() + self.file_bytes();
        // What gave way stays, so it counts on for whoever brought it.
        for copy in displaced {
            let stat = self.completed.stat_at(&copy)?;
            if key_of(&copy_by(&self.completed, &copy)?) == key_of(by) {
                sum += stat.map_or(0, |stat| stat.len.max(UNFOLLOWED_FILE_BYTES_MIN));
            }
        }
        if sum <= bytes_max {
            return Ok(());
        }
        if !is_never_read(name) {
            let key = key_of(by).to_owned();
            return Err(StoreError::Unfollowed {
                name,
                key,
                mib_max: bytes_max >> 20,
            });
        }
        own.sort();
        self.remove_oldest(own, sum, bytes_max, key_of(by))
    }

    /// What gave way to another file of its name.
    fn displaced(&self) -> Result<Vec<String>, StoreError> {
        let names = self.completed.names_beside()?.into_iter();
        let is_displaced = |copy: CopyName| copy.kind == Beside::Displaced;
        Ok(names
            .filter(|text| CopyName::parse(text).is_some_and(is_displaced))
            .collect())
    }

    /// Removes what nobody reads, the oldest first, until no more is left than may be.
    fn remove_oldest(
        &self,
        own: Vec<(i64, WalFileName, u64)>,
        mut sum: u64,
        bytes_max: u64,
        key: &str,
    ) -> Result<(), StoreError> {
        for (_, oldest, bytes) in own {
            if sum <= bytes_max {
                break;
            }
            // Whoever has the name may be telling its sender that it is stored.
            let Some(_guard) = self.names.try_lock(oldest) else {
                continue;
            };
            self.checksums.clear(oldest)?;
            self.completed.remove(&oldest.to_string())?;
            self.completed.sync()?;
            settle(&self.completed, oldest)?;
            sum -= bytes;
            tracing::error!(
                "ALARM: {oldest} is removed: nobody reads it, and it is the oldest file of {key}, \
                whose files would take more than {} MiB",
                bytes_max >> 20
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
