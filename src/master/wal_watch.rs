//! When a pass of the syncdaemon may begin before it is due: PostgreSQL has written WAL.
//! Over time never more often than once in `loop_delay`, however much is written, but for the looks that await a flush and
//! where commits wait for the standby, and never instead of the pass that is due: a file system that tells nothing costs
//! only the delay.
//! Invariant: what a pass has already looked at brings about no further one.
//!
//! The kernel tells of a write, not of the flush behind it. So a look at once may find nothing flushed: then it is
//! repeated after a millisecond, two, four, until that time is `loop_delay`.
//!
//! A master that commits now and then shall not wait for `loop_delay`: a few passes that did not come while nothing was
//! written may be made up for.
//!
//! Where the kernel has told of no write for a while, a pass that is due finds nothing: then one a second is made, for
//! a flush that took so long, and for a server that became another's standby.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::inotify::WatchFlags;

use crate::master::folder_watch::FolderWatch;

/// When what was just written is looked for again that was not flushed at once.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// How many passes that were not needed may be made up for.
const PASSES_SAVED: u32 = 4;

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
    /// When as many passes have been due, one each `loop_delay`, as early ones were made.
    made_up: Instant,
    loop_delay: Duration,
    /// When the next early look comes without a further write, if one does, and what it waits for the flush.
    again: Option<(Instant, Duration)>,
    waited: Option<Duration>,
    /// When the kernel told of a write last, or was first asked to; ahead while it is not believed.
    written_at: Instant,
}

impl WalWatch {
    /// Watches the folder with the segments.
    pub(super) fn watch(pg_wal: &Path, loop_delay: Duration) -> WalWatch {
        WalWatch {
            writes: FolderWatch::of(pg_wal, WatchFlags::MODIFY),
            made_up: Instant::now(),
            loop_delay,
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

    /// When the next pass is due at the latest, after a pass that began at `begun` and gave the standby everything.
    /// `due` is when it would be due; a server that writes nothing is looked at later.
    pub(super) fn due_behind(&self, begun: Instant, due: Instant) -> Instant {
        let is_quiet = self.writes.is_heard() && self.written_at.elapsed() >= QUIET_AFTER;
        match is_quiet {
            true => due.max(begun + QUIET_DELAY),
            false => due,
        }
    }

    /// The pass that began then is over. `awaits_flush` where the server has written more than it has flushed.
    pub(super) fn pass_ended(&mut self, begun: Instant, shipped: bool, awaits_flush: bool) {
        // Something was written and nobody told, as when `pg_wal` was moved.
        if shipped && begun.saturating_duration_since(self.written_at) >= QUIET_AFTER {
            self.written_at = begun + UNTOLD_FOR;
        }
        let again = match (self.waited.take(), shipped) {
            (Some(waited), false) => Some(LOOK_AGAIN.max(waited * 2)),
            _ if awaits_flush && self.may_begin() <= Instant::now() => {
                self.begins_early();
                Some(LOOK_AGAIN)
            }
            _ => None,
        };
        let again = again.filter(|again| *again < self.loop_delay);
        self.again = again.map(|again| (Instant::now() + again, again));
    }

    /// Returns when a pass should begin, if one should. Nothing is lost when it is dropped: the
    /// next pass that is due finds the same. With `commits_wait` each write begins one.
    pub(super) async fn is_due(&mut self, commits_wait: bool) {
        if commits_wait {
            self.writes.told().await;
            self.written_at = Instant::now();
            return;
        }
        if let Some((at, waited)) = self.again {
            tokio::time::sleep_until(at.into()).await;
            self.waited = Some(waited);
            return;
        }
        tokio::time::sleep_until(self.may_begin().into()).await;
        self.writes.told().await;
        self.written_at = Instant::now();
        self.begins_early();
        self.waited = Some(Duration::ZERO);
    }

    /// From when on a pass may begin that is not due.
    fn may_begin(&self) -> Instant {
        let saved = self.loop_delay * PASSES_SAVED;
        self.made_up.checked_sub(saved).unwrap_or(self.made_up)
    }

    fn begins_early(&mut self) {
        self.made_up = self.made_up.max(Instant::now()) + self.loop_delay;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOP_DELAY: Duration = Duration::from_millis(50);

    async fn comes(early: &mut WalWatch, within: Duration) -> bool {
        tokio::time::timeout(within, early.is_due(false))
            .await
            .is_ok()
    }

    #[tokio::test]
    async fn a_write_brings_one_pass_at_once_and_a_few_before_they_are_due() {
        let pg_wal = tempfile::tempdir().unwrap();
        let write = || std::fs::write(pg_wal.path().join("1"), b"record").unwrap();
        let mut early = WalWatch::watch(pg_wal.path(), LOOP_DELAY);
        let long = Duration::from_secs(5);
        assert!(!comes(&mut early, LOOP_DELAY).await, "nothing was written");
        write();
        assert!(comes(&mut early, long).await);
        // Written before the pass, and so seen by it.
        write();
        early.pass_begins();
        early.pass_ended(Instant::now(), true, false);
        assert!(!comes(&mut early, LOOP_DELAY * 2).await);
        let (begun, mut passes) = (Instant::now(), 0);
        while begun.elapsed() < 10 * LOOP_DELAY {
            write();
            assert!(comes(&mut early, long).await);
            early.pass_begins();
            early.pass_ended(Instant::now(), true, false);
            passes += 1;
        }
        let due = begun.elapsed().div_duration_f64(LOOP_DELAY);
        let most = due + 1.0 + f64::from(PASSES_SAVED);
        assert!(f64::from(passes) <= most, "{passes} in {due} intervals");
    }

    #[tokio::test]
    async fn a_slow_flush_is_looked_for_again_until_the_next_pass_is_due() {
        let pg_wal = tempfile::tempdir().unwrap();
        let mut early = WalWatch::watch(pg_wal.path(), LOOP_DELAY);
        std::fs::write(pg_wal.path().join("1"), b"record").unwrap();
        let mut passes = 0;
        while comes(&mut early, Duration::from_secs(2)).await {
            early.pass_begins();
            early.pass_ended(Instant::now(), false, true);
            passes += 1;
        }
        // At once and after 1, 2, 4, 8, 16 and 32 ms.
        assert_eq!(passes, 7);
    }

    #[tokio::test]
    async fn a_flush_behind_what_was_shipped_is_looked_for_within_the_same_bound() {
        let pg_wal = tempfile::tempdir().unwrap();
        let mut early = WalWatch::watch(pg_wal.path(), Duration::from_secs(60));
        let mut passes = 0;
        early.pass_ended(Instant::now(), true, true);
        while comes(&mut early, Duration::from_millis(100)).await {
            early.pass_ended(Instant::now(), true, true);
            passes += 1;
        }
        assert_eq!(passes, PASSES_SAVED + 1);
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_watched_brings_none() {
        let mut early = WalWatch::watch(Path::new("/nowhere"), LOOP_DELAY);
        assert!(!comes(&mut early, LOOP_DELAY).await);
        early.written_at -= QUIET_AFTER;
        let begun = Instant::now();
        assert_eq!(early.due_behind(begun, begun), begun, "nobody tells");
    }

    #[tokio::test]
    async fn passes_are_rare_only_while_nothing_is_written() {
        let pg_wal = tempfile::tempdir().unwrap();
        let mut early = WalWatch::watch(pg_wal.path(), LOOP_DELAY);
        let begun = Instant::now();
        let due = begun + LOOP_DELAY;
        assert_eq!(early.due_behind(begun, due), due, "it has just begun");
        early.written_at -= QUIET_AFTER;
        assert_eq!(early.due_behind(begun, due), begun + QUIET_DELAY);
        let late = begun + 2 * QUIET_DELAY;
        assert_eq!(early.due_behind(begun, late), late);
        // A pass finds what nobody told of.
        early.pass_ended(begun, true, false);
        assert_eq!(early.due_behind(begun, due), due, "it is not believed");
        early.written_at = begun - QUIET_AFTER;
        std::fs::write(pg_wal.path().join("1"), b"record").unwrap();
        early.pass_begins();
        assert_eq!(early.due_behind(begun, due), due, "its flush is awaited");
    }
}
