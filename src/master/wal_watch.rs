//! When a pass of the syncdaemon may begin before it is due: PostgreSQL has written WAL.
//! Never for more than one write in `loop_delay`, however much is written, and never instead of
//! the pass that is due: a file system that tells nothing costs only the delay.
//! Invariant: what a pass has already looked at brings about no further one.
//!
//! The kernel tells of a write, not of the flush behind it, so the first look comes a moment
//! later. Where it finds nothing flushed the disk is slow, and it is repeated after twice the time,
//! again and again until that time is `loop_delay`.
//!
//! Where the kernel has told of no write for a while, a pass that is due finds nothing: then one a second is made, for
//! a flush that took so long, and for a server that became another's standby.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::inotify::WatchFlags;

use crate::master::folder_watch::FolderWatch;

/// How long a fast disk takes to flush what was just written.
const FLUSH_FIRST: Duration = Duration::from_millis(2);

/// So long after the last write its flush is over, as good as always.
const QUIET_AFTER: Duration = Duration::from_secs(1);

/// Between passes while nothing is written.
const QUIET_DELAY: Duration = Duration::from_secs(1);

/// How long the kernel is not believed that told of no write where there was one.
const UNTOLD_FOR: Duration = Duration::from_secs(60);

/// The passes that begin early.
#[derive(Debug)]
pub(super) struct WalWatch {
    writes: FolderWatch,
    not_before: Instant,
    /// What the next early look waits for the flush, if one comes without a further write.
    again: Option<Duration>,
    waited: Option<Duration>,
    /// When the kernel told of a write last, or was first asked to; ahead while it is not believed.
    written_at: Instant,
}

impl WalWatch {
    /// Watches the folder with the segments.
    pub(super) fn watch(pg_wal: &Path) -> WalWatch {
        WalWatch {
            writes: FolderWatch::of(pg_wal, WatchFlags::MODIFY),
            not_before: Instant::now(),
            again: None,
            waited: None,
            written_at: Instant::now(),
        }
    }

    /// A pass begins; it sees whatever was written by now.
    pub(super) fn pass_begins(&mut self) {
        if self.writes.forget() {
            self.written_at = Instant::now();
        }
    }

    /// When a pass is due at the latest behind one that began then and would be due then, and after which the standby
    /// had all.
    pub(super) fn due_behind(&self, begun: Instant, due: Instant) -> Instant {
        let is_quiet = self.writes.is_heard() && self.written_at.elapsed() >= QUIET_AFTER;
        match is_quiet {
            true => due.max(begun + QUIET_DELAY),
            false => due,
        }
    }

    /// The pass that began then is over.
    pub(super) fn pass_ended(&mut self, begun: Instant, loop_delay: Duration, shipped: bool) {
        let waited = self.waited.take();
        // Something was written and nobody told, as when `pg_wal` was moved.
        if shipped && begun.saturating_duration_since(self.written_at) >= QUIET_AFTER {
            self.written_at = begun + UNTOLD_FOR;
        }
        self.again = match waited {
            Some(waited) if !shipped => Some(waited * 2).filter(|again| *again < loop_delay),
            _ => None,
        };
        if waited.is_some() {
            self.not_before = begun + loop_delay;
        }
    }

    /// Returns when a pass should begin, if one should. Nothing is lost when it is dropped: the
    /// next pass that is due finds the same.
    pub(super) async fn is_due(&mut self) {
        let wait = match self.again {
            Some(again) => again,
            None => {
                tokio::time::sleep_until(self.not_before.into()).await;
                self.writes.told().await;
                self.written_at = Instant::now();
                FLUSH_FIRST
            }
        };
        tokio::time::sleep(wait).await;
        self.waited = Some(wait);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOP_DELAY: Duration = Duration::from_millis(50);

    async fn comes(early: &mut WalWatch, within: Duration) -> bool {
        tokio::time::timeout(within, early.is_due()).await.is_ok()
    }

    #[tokio::test]
    async fn a_write_brings_one_pass_and_not_more_often_than_asked() {
        let pg_wal = tempfile::tempdir().unwrap();
        let write = || std::fs::write(pg_wal.path().join("1"), b"record").unwrap();
        let mut early = WalWatch::watch(pg_wal.path());
        let long = Duration::from_secs(5);
        assert!(!comes(&mut early, LOOP_DELAY).await, "nothing was written");
        write();
        assert!(comes(&mut early, long).await);
        // Written before the pass, and so seen by it.
        write();
        let begun = Instant::now();
        early.pass_begins();
        early.pass_ended(begun, LOOP_DELAY, true);
        assert!(!comes(&mut early, LOOP_DELAY * 2).await);
        write();
        assert!(comes(&mut early, long).await);
        let begun = Instant::now();
        early.pass_begins();
        early.pass_ended(begun, LOOP_DELAY, true);
        write();
        assert!(comes(&mut early, long).await);
        assert!(begun.elapsed() >= LOOP_DELAY);
    }

    #[tokio::test]
    async fn a_slow_flush_is_looked_for_again_until_the_next_pass_is_due() {
        let pg_wal = tempfile::tempdir().unwrap();
        let mut early = WalWatch::watch(pg_wal.path());
        std::fs::write(pg_wal.path().join("1"), b"record").unwrap();
        let mut passes = 0;
        while comes(&mut early, Duration::from_secs(2)).await {
            early.pass_begins();
            early.pass_ended(Instant::now(), LOOP_DELAY, false);
            passes += 1;
        }
        // After 2, 4, 8, 16 and 32 ms.
        assert_eq!(passes, 5);
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_watched_brings_none() {
        let mut early = WalWatch::watch(Path::new("/nowhere"));
        assert!(!comes(&mut early, LOOP_DELAY).await);
        early.written_at -= QUIET_AFTER;
        let begun = Instant::now();
        assert_eq!(early.due_behind(begun, begun), begun, "nobody tells");
    }

    #[tokio::test]
    async fn passes_are_rare_only_while_nothing_is_written() {
        let pg_wal = tempfile::tempdir().unwrap();
        let mut early = WalWatch::watch(pg_wal.path());
        let begun = Instant::now();
        let due = begun + LOOP_DELAY;
        assert_eq!(early.due_behind(begun, due), due, "it has just begun");
        early.written_at -= QUIET_AFTER;
        assert_eq!(early.due_behind(begun, due), begun + QUIET_DELAY);
        let late = begun + 2 * QUIET_DELAY;
        assert_eq!(early.due_behind(begun, late), late);
        // A pass finds what nobody told of.
        early.pass_ended(begun, LOOP_DELAY, true);
        assert_eq!(early.due_behind(begun, due), due, "it is not believed");
        early.written_at = begun - QUIET_AFTER;
        std::fs::write(pg_wal.path().join("1"), b"record").unwrap();
        early.pass_begins();
        assert_eq!(early.due_behind(begun, due), due, "its flush is awaited");
    }
}
